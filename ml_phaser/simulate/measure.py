"""A measurement of a made crystal: structure factors, then what a detector and a scaling program make of them."""

from __future__ import annotations

from dataclasses import dataclass

import gemmi
import numpy as np
from numpy.typing import NDArray

from ml_phaser.simulate.packing import Packed, operators

U_TO_B = 8 * np.pi**2
B_SPREAD = 0.35  # of atoms' B about its mean, for the tip of a long side chain
ANISOTROPY = 0.12  # of the mean B, r.m.s. of the overall tensor's principal values about their mean
WATER_B = 1.6  # times the mean
BACKGROUND = 0.05  # of the mean intensity, under every reflection: makes weak ones relatively worse
PROPORTIONAL = 0.5  # of the asked noise: the error that grows with the intensity
SIGMA_ERROR = 0.12  # relative, r.m.s., of the sigmas themselves
NOMINAL_SIGMA = 0.005  # of the intensity, where no noise was asked for
BEAM_STOP = 10.0  # A; with other losses, reflections beyond it go first
CONE_SHARE = 0.4  # of the losses: the blind region about the spindle
FREE_GROUPS = 20  # CCP4's freerflag: 0 is the test set, 5 % of the data
MEAN_INTENSITY = 1000.0


@dataclass(frozen=True, eq=False)
class Atoms:
    """Atoms of the asymmetric unit as the PDB file holds them, peptide first, then waters.

    xyz : (n, 3) A, to 0.001; u_iso : (n,) A^2, to 0.0001; u_overall : (3, 3) A^2, to 0.0001, traceless and added to
    every atom's; element : n names
    """

    xyz: NDArray[np.float64]
    u_iso: NDArray[np.float64]
    u_overall: NDArray[np.float64]
    element: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Measurement:
    """Reflections of the asymmetric unit.

    hkl : (n, 3); f : (n,) complex, true, electrons; measured : (n,) bool; intensity, sigma : (n,) arbitrary scale;
    free : (n,) 0-19, 0 the test set
    """

    hkl: NDArray[np.int32]
    f: NDArray[np.complex128]
    measured: NDArray[np.bool_]
    intensity: NDArray[np.float64]
    sigma: NDArray[np.float64]
    free: NDArray[np.int32]


def displace(rng: np.random.Generator, crystal: Packed, b: float) -> Atoms:
    """Give atoms displacement parameters: mean ``b`` (A^2) over the molecule, more towards the tips of side chains and
    in waters, with an overall anisotropy that suits the group."""
    peptide = crystal.peptide
    depth = np.array([_depth(name) for name in peptide.names], dtype=float)
    relative = np.exp(B_SPREAD * (depth / 3 + rng.normal(0, 0.35, len(depth))))
    relative = np.concatenate([relative / relative.mean(), WATER_B * np.exp(rng.normal(0, 0.2, len(crystal.waters)))])
    u = np.round(b * relative / U_TO_B, 4)
    overall = overall_anisotropy(rng, crystal.cell, crystal.spacegroup) * ANISOTROPY * b / U_TO_B
    xyz = np.concatenate([crystal.xyz, crystal.waters])
    return Atoms(xyz, u, np.round(overall, 4), (*peptide.elements, *("O",) * len(crystal.waters)))


def _depth(name: str) -> int:
    """Bonds from the backbone, by the letter of the name: CB 1, CG 2 ... (backbone 0)."""
    return "_BGDEZH".index(name[1]) if len(name) > 1 and name[1] in "BGDEZH" else 0


def overall_anisotropy(
    rng: np.random.Generator, cell: gemmi.UnitCell, spacegroup: gemmi.SpaceGroup
) -> NDArray[np.float64]:
    """A random traceless symmetric Cartesian tensor (3, 3) that the point group leaves as it is; r.m.s. principal value
    1, or zero in cubic groups."""
    orth, frac = np.array(cell.orth.mat), np.array(cell.frac.mat)
    random = rng.normal(size=(3, 3))
    tensor = random + random.T
    turns = orth @ operators(spacegroup)[0] @ frac
    tensor = np.mean(turns @ tensor @ np.swapaxes(turns, 1, 2), axis=0)
    tensor -= np.eye(3) * np.trace(tensor) / 3
    size = np.sqrt(np.mean(np.linalg.eigvalsh(tensor) ** 2))
    return tensor / size if size > 1e-6 else np.zeros((3, 3))


def calculate(
    atoms: Atoms, cell: gemmi.UnitCell, spacegroup: gemmi.SpaceGroup, hkl: NDArray[np.int32]
) -> NDArray[np.complex128]:
    """F(h) of the whole cell by direct summation in double precision, in electrons, (n,)."""
    import torch

    from ml_phaser.structure_factors.direct import structure_factors

    rotations, translations = operators(spacegroup)
    frac = atoms.xyz @ np.array(cell.frac.mat).T
    whole = (np.einsum("gij,nj->gni", rotations, frac) + translations[:, None]).reshape(-1, 3)
    elements = tuple(sorted(set(atoms.element)))
    kind = np.array([elements.index(e) for e in atoms.element])
    order = len(rotations)
    stol2 = np.asarray(cell.calculate_1_d2_array(hkl)) / 4
    f = structure_factors(
        torch.from_numpy(hkl.astype(np.float64)), torch.from_numpy(stol2), torch.from_numpy(whole),
        torch.from_numpy(np.tile(kind, order)), torch.from_numpy(np.tile(atoms.u_iso * U_TO_B, order)),
        torch.ones(len(whole), dtype=torch.float64), elements,
    )  # fmt: skip
    s = hkl @ np.array(cell.frac.mat)  # Cartesian reciprocal vectors, 1/A
    return f.numpy() * np.exp(-2 * np.pi**2 * np.einsum("ni,ij,nj->n", s, atoms.u_overall, s))


def measure(
    rng: np.random.Generator, atoms: Atoms, cell: gemmi.UnitCell, spacegroup: gemmi.SpaceGroup, *, d_min: float,
    noise: float, completeness: float,
) -> Measurement:  # fmt: skip
    """Calculate, and measure with errors.

    The variance of an intensity I is (noise I / 2)^2 + g (I + 0.05 <I>): errors of scaling, and of counting over a
    background. g is chosen so that mean sigma / mean I is ``noise``; I / sigma then falls with resolution. The sigmas
    given are estimated from the noisy intensity and wrong by some 12 % themselves.

    Parameters
    ----------
    d_min : A
    noise : mean sigma(I) over mean I, 0-1
    completeness : fraction of the unique reflections measured, 0-1
    """
    hkl = np.asarray(gemmi.make_miller_array(cell, spacegroup, d_min), dtype=np.int32)
    f = calculate(atoms, cell, spacegroup, hkl)
    true = np.abs(f) ** 2
    true = np.round(true * (MEAN_INTENSITY / true.mean()), 4)  # beyond it, processors differ
    gain = _counting_gain(true, noise)
    intensity = true + rng.normal(size=len(true)) * _sigma(true, noise, gain)
    sigma = _sigma(np.maximum(intensity, 0), noise, gain) * np.exp(SIGMA_ERROR * rng.normal(size=len(true)))
    if noise == 0:
        sigma = NOMINAL_SIGMA * (true + BACKGROUND * MEAN_INTENSITY)
    measured = not_lost(rng, hkl, cell, spacegroup, completeness)
    free = rng.integers(FREE_GROUPS, size=len(hkl)).astype(np.int32)
    return Measurement(hkl, f, measured, intensity, sigma, free)


def _sigma(intensity: NDArray, noise: float, gain: float) -> NDArray[np.float64]:
    return np.hypot(PROPORTIONAL * noise * intensity, np.sqrt(gain * (intensity + BACKGROUND * MEAN_INTENSITY)))


def _counting_gain(true: NDArray, noise: float) -> float:
    """The gain g at which mean sigma over mean intensity is ``noise`` (bisection)."""
    low, high = 0.0, MEAN_INTENSITY * 10
    for _ in range(60 if noise else 0):
        middle = (low + high) / 2
        if _sigma(true, noise, middle).mean() > noise * true.mean():
            high = middle
        else:
            low = middle
    return float(f"{low:.9g}")


def not_lost(
    rng: np.random.Generator, hkl: NDArray[np.int32], cell: gemmi.UnitCell, spacegroup: gemmi.SpaceGroup,
    completeness: float,
) -> NDArray[np.bool_]:  # fmt: skip
    """Which reflections (n,) are measured, ``completeness`` of them: lost are those behind the beam stop, those whose
    every equivalent lies in a cone about the spindle, and others at random."""
    n = len(hkl)
    lost = round((1 - completeness) * n)
    measured = np.ones(n, dtype=bool)
    d = np.asarray(cell.calculate_d_array(hkl))
    order = np.argsort(-d, kind="stable")
    behind = order[: int(np.sum(d > BEAM_STOP))][:lost]
    measured[behind] = False
    spindle = rng.normal(size=3)
    rotations = operators(spacegroup)[0]
    s = np.einsum("ni,gij->gnj", hkl, rotations) @ np.array(cell.frac.mat)
    cosine = np.abs(s @ spindle) / np.linalg.norm(s, axis=-1) / np.linalg.norm(spindle)
    blind = np.round(cosine.min(axis=0), 9)
    blind[~measured] = -1
    cone = round(CONE_SHARE * (lost - len(behind)))
    measured[np.argsort(-blind, kind="stable")[:cone]] = False
    rest = rng.permutation(np.flatnonzero(measured))[: lost - len(behind) - cone]
    measured[rest] = False
    return measured
