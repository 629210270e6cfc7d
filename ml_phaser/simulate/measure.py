"""Displacements, structure factors, and what a detector and a scaling program make of them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import gemmi
import numpy as np
from numpy.typing import NDArray

from ml_phaser.simulate.packing import operators

U_TO_B = 8 * np.pi**2
B_SPREAD = 0.35  # of atoms' B about its mean, for the tip of a long side chain
ANISOTROPY = 0.12  # of the mean B, r.m.s. of the overall tensor's principal values about their mean
WATER_B = 1.6  # times the mean
BACKGROUND = 0.05  # of the mean intensity, under every reflection: makes weak ones relatively worse
PROPORTIONAL = 0.5  # of the asked noise: the error that grows with the intensity
SIGMA_ERROR = 0.12  # relative, r.m.s., of the sigmas themselves
OUTER = 0.2  # of the reflections: the outer shell
NOMINAL_SIGMA = 0.005  # of the intensity, where no noise was asked for
BEAM_STOP = 10.0  # A; with other losses, reflections beyond it go first
CONE_SHARE = 0.4  # of the losses: the blind region about the spindle
FREE_GROUPS = 20  # CCP4's freerflag: 0 is the test set, 5 % of the data
MEAN_INTENSITY = 1000.0


@dataclass(frozen=True, eq=False)
class Sites:
    """Atoms of the asymmetric unit, n of them.

    xyz : (n, 3) fractional; element : n names; b : (n,) A^2; occupancy : (n,)
    name, residue : n names of atoms and residues, e.g. "CA", "SER"; number : (n,) of the residues, from 1;
    chain : n names; u_overall : (3, 3) A^2, Cartesian, symmetric: added to the displacement of every atom
    """

    xyz: NDArray[np.float64]
    element: tuple[str, ...]
    b: NDArray[np.float64]
    occupancy: NDArray[np.float64]
    name: tuple[str, ...]
    residue: tuple[str, ...]
    number: NDArray[np.int64]
    chain: tuple[str, ...]
    u_overall: NDArray[np.float64] = field(default_factory=lambda: np.zeros((3, 3)))

    def __len__(self) -> int:
        return len(self.element)

    @property
    def body(self) -> NDArray[np.int64]:
        """(n,) which rigid molecule an atom belongs to: a chain, or a single water."""
        keys = [(c, k) if r == "HOH" else (c, 0) for c, k, r in zip(self.chain, self.number, self.residue, strict=True)]
        found: dict[tuple[str, int], int] = {}
        return np.array([found.setdefault(key, len(found)) for key in keys], dtype=np.int64)

    @property
    def residue_index(self) -> NDArray[np.int64]:
        """(n,) residues counted through all chains, from 0."""
        found: dict[tuple[str, int], int] = {}
        keys = zip(self.chain, self.number.tolist(), strict=True)
        return np.array([found.setdefault(key, len(found)) for key in keys], dtype=np.int64)

    @property
    def water(self) -> NDArray[np.bool_]:
        """(n,) which are waters."""
        return np.array([r == "HOH" for r in self.residue], dtype=bool)


@dataclass(frozen=True)
class Flaws:
    """What a data set suffers from.

    noise : mean sigma(I) over mean I, 0-1; sigma_error : relative r.m.s. error of the sigmas themselves;
    sigma_scale : factor by which all sigmas are wrong
    completeness : fraction of the unique reflections measured: lost are those behind the beam stop (beyond 10 A), then
    some in a blind cone, and others at random
    Losses besides: low, reflections beyond this d (A); cone, those within this angle (degrees) of the spindle;
    wedge, degrees of the half turn not measured; shell, share lost of the outer fifth of the reflections, rising from
    none to twice that
    """

    noise: float = 0.05
    completeness: float = 1.0
    sigma_error: float = SIGMA_ERROR
    sigma_scale: float = 1.0
    low: float = np.inf
    cone: float = 0.0
    wedge: float = 0.0
    shell: float = 0.0


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


def displace(
    rng: np.random.Generator, sites: Sites, cell: gemmi.UnitCell, spacegroup: gemmi.SpaceGroup, b: float
) -> Sites:
    """Sites with displacement parameters: mean ``b`` (A^2) over the molecule, more towards the tips of side chains and
    in waters, with an overall anisotropy that suits the group. Rounded as a PDB file holds them."""
    water = sites.water
    depth = np.array([_depth(name) for name, w in zip(sites.name, water, strict=True) if not w], dtype=float)
    relative = np.exp(B_SPREAD * (depth / 3 + rng.normal(0, 0.35, len(depth))))
    both = np.empty(len(sites))
    both[~water] = relative / relative.mean()
    both[water] = WATER_B * np.exp(rng.normal(0, 0.2, int(water.sum())))
    overall = overall_anisotropy(rng, cell, spacegroup) * ANISOTROPY * b / U_TO_B
    return replace(sites, b=np.round(b * both / U_TO_B, 4) * U_TO_B, u_overall=np.round(overall, 4))


def draw_b(
    rng: np.random.Generator, residue: NDArray[np.int64], mean: float, spread: float, correlation: float
) -> NDArray[np.float64]:
    """Log-normal B factors (n,) in A^2, to 0.01, 2 at least.

    Parameters
    ----------
    residue : (n,) of each atom, counted through
    mean : A^2; spread : standard deviation of ln B, four fifths of it the residue's, three fifths the atom's own
    correlation : of neighbouring residues (0: none)
    """
    count = int(residue.max()) + 1 if len(residue) else 0
    walk, fresh = np.zeros(count), rng.normal(size=count)
    for k in range(count):
        walk[k] = fresh[k] if k == 0 else correlation * walk[k - 1] + np.sqrt(1 - correlation**2) * fresh[k]
    b = np.exp(spread * (0.8 * walk[residue] + 0.6 * rng.normal(size=len(residue))))
    return np.round(np.maximum(b * (mean / b.mean()), min(2.0, mean)), 2)


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
    sites: Sites, cell: gemmi.UnitCell, spacegroup: gemmi.SpaceGroup, hkl: NDArray[np.int32]
) -> NDArray[np.complex128]:
    """F(h) of the whole cell by direct summation in double precision, in electrons, (n,)."""
    import torch

    from ml_phaser.structure_factors.atoms import Atoms
    from ml_phaser.structure_factors.calculate import structure_factors
    from ml_phaser.structure_factors.form_factors import Scatterer

    elements = tuple(sorted(set(sites.element)))
    kind = np.array([elements.index(e) for e in sites.element])
    atoms = Atoms(
        torch.from_numpy(sites.xyz), torch.from_numpy(kind), torch.from_numpy(sites.b),
        torch.from_numpy(sites.occupancy), scatterers=tuple(Scatterer(e) for e in elements),
    )  # fmt: skip
    with torch.no_grad():
        f = structure_factors(atoms, hkl, cell, spacegroup, "direct").numpy()
    return np.asarray(f * overall_factor(hkl, cell, sites.u_overall), dtype=np.complex128)


def overall_factor(hkl: NDArray, cell: gemmi.UnitCell, u: NDArray[np.float64]) -> NDArray[np.float64]:
    """exp(-2 pi^2 s.U.s), (n,), for a Cartesian tensor (3, 3) in A^2."""
    s = hkl @ np.array(cell.frac.mat)  # Cartesian reciprocal vectors, 1/A
    return np.asarray(np.exp(-2 * np.pi**2 * np.einsum("ni,ij,nj->n", s, u, s)))


def unique_reflections(cell: gemmi.UnitCell, spacegroup: gemmi.SpaceGroup, d_min: float) -> NDArray[np.int32]:
    """(n, 3) all to d_min in A, in gemmi's reciprocal asymmetric unit, without systematic absences."""
    return np.asarray(gemmi.make_miller_array(cell, spacegroup, d_min), dtype=np.int32)


def measure(
    rng: np.random.Generator, hkl: NDArray[np.int32], f: NDArray[np.complex128], cell: gemmi.UnitCell,
    spacegroup: gemmi.SpaceGroup, flaws: Flaws,
) -> Measurement:  # fmt: skip
    """Measure the structure factors ``f`` of the reflections ``hkl``, with errors.

    The variance of an intensity I is (noise I / 2)^2 + g (I + 0.05 <I>): errors of scaling, and of counting over a
    background. g is chosen so that mean sigma / mean I is ``noise``; I / sigma then falls with resolution. The sigmas
    given are estimated from the noisy intensity and wrong themselves; without noise they are small and fixed.
    """
    true = np.abs(f) ** 2
    true = np.round(true * (MEAN_INTENSITY / true.mean()), 4)  # beyond it, processors differ
    noise = flaws.noise
    gain = _counting_gain(true, noise)
    intensity = true + rng.normal(size=len(true)) * _sigma(true, noise, gain)
    sigma = _sigma(np.maximum(intensity, 0), noise, gain) * np.exp(flaws.sigma_error * rng.normal(size=len(true)))
    if noise == 0:
        sigma = NOMINAL_SIGMA * (true + BACKGROUND * MEAN_INTENSITY)
    measured = not_lost(rng, hkl, cell, spacegroup, flaws.completeness)
    free = rng.integers(FREE_GROUPS, size=len(hkl)).astype(np.int32)
    measured &= spared(rng, hkl, cell, spacegroup, flaws)
    return Measurement(hkl, f, measured, intensity, sigma * flaws.sigma_scale, free)


def spared(
    rng: np.random.Generator, hkl: NDArray[np.int32], cell: gemmi.UnitCell, spacegroup: gemmi.SpaceGroup, flaws: Flaws
) -> NDArray[np.bool_]:
    """Which reflections (n,) survive the cut at low resolution, blind cone, missing wedge and the outer shell.

    A reflection is measured where one of its equivalents is.
    """
    d = np.asarray(cell.calculate_d_array(hkl))
    spindle, across = rng.normal(size=(2, 3))
    spindle /= np.linalg.norm(spindle)
    across = np.cross(spindle, across)
    across /= np.linalg.norm(across)
    s = np.einsum("ni,gij->gnj", hkl, operators(spacegroup)[0]) @ np.array(cell.frac.mat)
    cosine = np.abs(s @ spindle) / np.linalg.norm(s, axis=-1)
    azimuth = np.arctan2(s @ np.cross(spindle, across), s @ across)
    seen = (cosine <= np.cos(np.deg2rad(flaws.cone))) | (flaws.cone == 0)
    seen &= np.mod(np.round(azimuth, 9), np.pi) >= np.deg2rad(flaws.wedge)
    kept = seen.any(axis=0) & (d <= flaws.low)
    outer = np.argsort(-d, kind="stable")[len(d) - round(OUTER * len(d)) :]
    risk = 2 * flaws.shell * np.arange(len(outer)) / max(1, len(outer) - 1)
    kept[outer] &= rng.random(len(outer)) >= risk
    return kept


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
