"""Crystals made from coordinates: periodic P1 boxes as dense as protein, for training the density projection."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import gemmi
import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from ml_phaser.crystal.maps import symmetric_shape
from ml_phaser.crystal.residues import ELEMENTS
from ml_phaser.errors import UserError
from ml_phaser.simulate.fragments import Library
from ml_phaser.simulate.measure import Sites
from ml_phaser.simulate.recipes import needed
from ml_phaser.simulate.simulated import Built, Solvent, structure

# At least so many atoms, less than so many A^3 for each, so many of them protein, or another piece is tried.
FEWEST_ATOMS, LOOSEST, MOSTLY, TRIES = 25, 25.5, 0.7, 100
WET = (0.25, 0.65)  # of a box with solvent: the share of it
K_SOL, B_SOL = (0.30, 0.40), (15.0, 70.0)  # electrons/A^3 and A^2, beside atoms of 4-40 A^2
MASK_SPACING = 0.5  # A


@dataclass(frozen=True, eq=False)
class Contents:
    """Atoms of a P1 cell: fractional xyz (m, 3), element (m,) index into ELEMENTS, b (m,) A^2, occupancy (m,); the
    first ``dry`` are no waters; ``source`` : the entry they come from; ``solvent`` : where no atoms are, if any."""

    cell: gemmi.UnitCell
    xyz: NDArray[np.float64]
    element: NDArray[np.int64]
    b: NDArray[np.float64]
    occupancy: NDArray[np.float64]
    dry: int = 0
    source: str = ""
    solvent: Solvent | None = None


def wrapped_distances(a: NDArray, b: NDArray, cell: gemmi.UnitCell) -> NDArray[np.float64]:
    """Distances (len(a), len(b)) in A between fractional points, to the nearest lattice translation of each axis."""
    frac = a[:, None, :] - b[None, :, :]
    frac -= np.round(frac)
    return np.linalg.norm(frac @ np.array(cell.orth.mat).T, axis=-1)


def random_cell(
    rng: np.random.Generator, shape: tuple[int, int, int], spacing: tuple[float, float], hexagonal: float = 0.0
) -> gemmi.UnitCell:
    """A cell for a given grid: spacing in A drawn per axis; of those that do not have an angle of 120 degrees, as the
    share ``hexagonal`` has, two in five are oblique (72-108 degrees)."""
    lengths = [n * rng.uniform(*spacing) for n in shape]
    if hexagonal and rng.random() < hexagonal:
        return gemmi.UnitCell(*lengths, *rng.permutation([90.0, 90.0, 120.0]))
    angles = rng.uniform(72, 108, 3) if rng.random() < 0.4 else np.full(3, 90.0)
    return gemmi.UnitCell(*lengths, *angles)


def dense_box(rng: np.random.Generator, library: Library, cell: gemmi.UnitCell) -> Contents:
    """A box cut out of a random protein: see ``cut_box``."""
    chain = library.draw(rng)
    atoms, element, b = library.chain(chain)
    return cut_box(rng, atoms - atoms[rng.integers(len(atoms))], element, b, cell, str(library.entry[chain]))


def wet_box(rng: np.random.Generator, library: Library, cell: gemmi.UnitCell) -> Contents:
    """A box cut out of the surface of a random protein, ordered waters on it and flat solvent in WET of the cell, or as
    near to that as TRIES come: cells of some 10 A have no room for it."""
    k_sol, b_sol = rng.uniform(*K_SOL), rng.uniform(*B_SOL)
    extent = cell.volume ** (1 / 3)
    least, nearest = np.inf, None
    for _ in range(TRIES):
        chain = library.draw(rng)
        atoms, element, b = library.chain(chain)
        outward = rng.normal(size=3)
        outward /= np.linalg.norm(outward)
        centre = surface_point(atoms, atoms[rng.integers(len(atoms))], outward)
        centre = centre + outward * rng.uniform(-0.4, 0.4) * extent
        contents = cut_box(rng, atoms - centre, element, b, cell, str(library.entry[chain]), shell=3.4)
        share = float(solvent_mask(contents, 0.7).mean())
        amiss = abs(share - float(np.clip(share, *WET))) + (len(contents.xyz) < FEWEST_ATOMS)
        if amiss < least:
            least, nearest = amiss, replace(contents, solvent=Solvent(k_sol, b_sol, share))
        if amiss == 0:
            break
    assert nearest is not None
    return nearest


def surface_point(atoms: NDArray, start: NDArray, outward: NDArray) -> NDArray[np.float64]:
    """Where a straight way (from ``start``, unit vector ``outward``, A) out of a cloud of atoms (n, 3) passes the last
    atom within 4 A of it."""
    ahead = (atoms - start) @ outward
    beside = np.linalg.norm(atoms - start - ahead[:, None] * outward, axis=1)
    return start + outward * float(ahead[beside < 4.0].max())


def sites_of(contents: Contents) -> Sites:
    """The atoms of a box, waters named."""
    elements = tuple(ELEMENTS[k] for k in contents.element)
    dry, waters = contents.dry, len(elements) - contents.dry
    return Sites(
        contents.xyz, elements, contents.b, contents.occupancy,
        (*(f"{e}{k}" for k, e in enumerate(elements[:dry])), *("O",) * waters), (*("UNL",) * dry, *("HOH",) * waters),
        np.concatenate([np.ones(dry, dtype=int), np.arange(waters) + 1]), (*("A",) * dry, *("W",) * waters),
    )  # fmt: skip


def solvent_mask(contents: Contents, spacing: float) -> NDArray[np.float32]:
    """Mask (u, v, w) of a box, 1 where solvent is: see ``structure_factors.solvent``; spacing in A."""
    from ml_phaser.structure_factors.solvent import exact_mask

    return exact_mask(structure(sites_of(contents), contents.cell, gemmi.SpaceGroup("P 1")), spacing=spacing)


def solvent_factors(contents: Contents, hkl: NDArray) -> NDArray[np.complex128]:
    """Of the flat solvent of a box (n,), in electrons; 0 where there is none."""
    if contents.solvent is None:
        return np.zeros(len(hkl), dtype=np.complex128)
    return contents.solvent.factors(solvent_mask(contents, MASK_SPACING), hkl, contents.cell)


def cut_box(
    rng: np.random.Generator, atoms: NDArray, element: NDArray, b: NDArray, cell: gemmi.UnitCell, source: str = "",
    shell: float = np.inf,
) -> Contents:  # fmt: skip
    """Cut a box out of a cloud of atoms (n, 3) in A, about its origin and at random orientation, and repeat it.

    Atoms that would clash (< 2.3 A) with a lattice image are removed, and part of what is left empty, no farther from
    atoms than ``shell`` (A), is filled with waters at hydrogen-bonding distance, as in a real crystal.
    """
    turned = atoms.astype(np.float64) @ Rotation.random(rng=rng).as_matrix().T
    frac = turned @ np.array(cell.frac.mat).T + rng.uniform(-0.2, 0.2, 3) + 0.5
    inside = np.all((frac >= 0) & (frac < 1), axis=1)
    frac, element, b = frac[inside], element[inside].astype(np.int64), b[inside].astype(np.float64)

    d_wrapped = wrapped_distances(frac, frac, cell)
    d_plain = np.linalg.norm((frac[:, None] - frac[None]) @ np.array(cell.orth.mat).T, axis=-1)
    across = (d_wrapped < 2.3) & (d_plain > d_wrapped + 0.5)
    keep = np.ones(len(frac), dtype=bool)
    for i, j in np.argwhere(np.triu(across)):
        if keep[i] and keep[j]:
            keep[i if rng.random() < 0.5 else j] = False
    frac, element, b = frac[keep], element[keep], b[keep]

    waters = _waters(rng, frac, cell, rng.uniform(0, 0.8), shell)
    b = varied_b(rng, b, len(waters))
    xyz = np.concatenate([frac, waters])
    kind = np.concatenate([element, np.full(len(waters), ELEMENTS.index("O"))])
    occupancy = np.ones(len(xyz))
    occupancy[len(frac) :] = rng.uniform(0.5, 1.0, len(waters))
    return Contents(cell, (xyz + rng.random(3)) % 1.0, kind, b, occupancy, len(frac), source)


def build_box(rng: np.random.Generator, chosen: Mapping[str, Any], library: Library | None) -> Built:
    """A dense box as a crystal of its own, edges about ``edge`` (A)."""
    edge = chosen["edge"]
    cell = random_cell(rng, (1, 1, 1), (0.85 * edge, 1.15 * edge))
    cell = gemmi.UnitCell(*np.round(cell.parameters[:3], 3), *np.round(cell.parameters[3:], 2))
    for _ in range(TRIES):
        contents = dense_box(rng, needed(library), cell)
        n = len(contents.xyz)
        if n >= FEWEST_ATOMS and cell.volume / n < LOOSEST and contents.dry > MOSTLY * n:
            break
    else:
        raise UserError("no piece of a protein was found that fills it", "family box", "another seed, or another edge")
    group = gemmi.SpaceGroup("P 1")
    orth = np.array(cell.orth.mat)
    sites = replace(
        sites_of(contents), xyz=np.round(contents.xyz @ orth.T, 3) @ np.linalg.inv(orth).T, b=np.round(contents.b, 2),
        occupancy=np.round(contents.occupancy, 2),
    )  # fmt: skip
    source = (str(contents.source),) if contents.source else ()
    return Built(cell, group, sites, symmetric_shape(cell, group, chosen["d_min"], chosen["d_min"] / 3), source)


def varied_b(rng: np.random.Generator, b: NDArray, waters: int) -> NDArray[np.float64]:
    """B factors (n + waters,) in A^2: the spread of those given, more or less of it, about another mean."""
    b = b - b.mean() if len(b) else b
    b = np.concatenate([np.clip(b, -8, 25) * rng.uniform(0.2, 1.0), rng.uniform(0, 20, waters)])
    return np.maximum(b + rng.uniform(4, 18), 2.0)


def _waters(
    rng: np.random.Generator, frac: NDArray, cell: gemmi.UnitCell, fill: float, shell: float
) -> NDArray[np.float64]:
    """Random positions 2.6 A or more from every atom and each other, at most ``shell`` A from those given; at most
    ``fill`` of one per 20 A^3 of such void."""
    trial = rng.random((int(cell.volume / 6), 3))
    if len(frac):
        nearest = wrapped_distances(trial, frac, cell).min(axis=1)
        trial = trial[(nearest > 2.6) & (nearest <= shell)]
    most = int(fill * len(trial) * 6 / 20)
    room = np.ones(len(trial), dtype=bool)
    chosen: list[int] = []
    for k in range(len(trial)):
        if len(chosen) >= most:
            break
        if room[k]:
            chosen.append(k)
            room &= wrapped_distances(trial, trial[k : k + 1], cell)[:, 0] > 2.6
    return trial[chosen]
