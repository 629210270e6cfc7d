"""Small crystals for tests: random atoms, structure factors by brute force over explicit symmetry mates."""

from __future__ import annotations

from dataclasses import dataclass

import gemmi
import numpy as np
from numpy.typing import NDArray

from ml_phaser.crystal.agreement import compare
from ml_phaser.phasing.problem import Problem, choose_held_out, pose

CELLS = {
    "P 1": (8.1, 9.3, 10.2, 81.0, 95.0, 103.0),
    "P -1": (8.1, 9.3, 10.2, 81.0, 95.0, 103.0),
    "P 1 21 1": (8.0, 9.0, 11.0, 90.0, 104.0, 90.0),
    "P 1 21/c 1": (8.0, 9.0, 12.0, 90.0, 104.0, 90.0),
    "C 1 2 1": (16.0, 7.0, 9.0, 90.0, 101.0, 90.0),
    "P 21 21 21": (7.0, 9.5, 12.0, 90.0, 90.0, 90.0),
    "P 41": (9.0, 9.0, 12.0, 90.0, 90.0, 90.0),
    "P 31 2 1": (10.0, 10.0, 13.0, 90.0, 90.0, 120.0),
    "R 3:H": (14.0, 14.0, 9.0, 90.0, 90.0, 120.0),
    "I 41": (10.0, 10.0, 11.0, 90.0, 90.0, 90.0),
    "F 2 3": (18.0, 18.0, 18.0, 90.0, 90.0, 90.0),
}


@dataclass(frozen=True, eq=False)
class Crystal:
    """hkl (n, 3) unique reflections and their true structure factors f (n,) of equal point-like atoms."""

    hkl: NDArray[np.int32]
    f: NDArray[np.complex128]
    cell: gemmi.UnitCell
    spacegroup: gemmi.SpaceGroup
    sites: NDArray[np.float64]


def mates(sites: NDArray, spacegroup: gemmi.SpaceGroup) -> NDArray[np.float64]:
    """All symmetry mates (with centring), fractional, of (m, 3) sites."""
    return np.array([op.apply_to_xyz(list(x)) for op in spacegroup.operations() for x in sites])


def crystal(name: str, atoms: int = 6, d_min: float = 1.0, seed: int = 0, b: float = 3.0) -> Crystal:
    """A crystal of ``atoms`` carbon-like atoms in the asymmetric unit, no two nearer than 1.3 A."""
    rng = np.random.default_rng(seed)
    cell, group = gemmi.UnitCell(*CELLS[name]), gemmi.SpaceGroup(name)
    orth = np.array(cell.orth.mat)
    sites = np.zeros((0, 3))
    while len(sites) < atoms:
        trial = np.vstack([sites, rng.random((1, 3))])
        every = mates(trial, group)
        every_new = mates(trial[-1:], group)
        gaps = every_new[:1] - np.vstack([every, every_new[1:]])
        gaps = gaps - np.round(gaps)
        distance = np.linalg.norm(gaps @ orth.T, axis=1)
        if np.sort(distance)[1:].min(initial=9.0) > 1.3:
            sites = trial
    hkl = gemmi.make_miller_array(cell, group, d_min)
    hkl = hkl[~np.asarray(group.operations().systematic_absences(hkl), dtype=bool)]
    every = mates(sites, group)
    stol2 = np.asarray(cell.calculate_1_d2_array(hkl)) / 4
    f = 6 * np.exp(-b * stol2) * np.exp(2j * np.pi * (hkl @ every.T)).sum(axis=1)
    return Crystal(hkl.astype(np.int32), f, cell, group, sites)


def problem_of(c: Crystal, seed: int = 0, place: str = "cpu") -> Problem:
    d = np.asarray(c.cell.calculate_d_array(c.hkl))
    held = choose_held_out(d, float(d.min()), seed)
    moduli = np.abs(c.f)
    to_e = np.full(len(moduli), 1 / np.sqrt(np.mean(moduli**2)))
    return pose(c.hkl, moduli, to_e, held, c.cell, c.spacegroup, spacing=0.5, place=place)


def agreement(c: Crystal, f: NDArray[np.complex128]) -> float:
    """Map correlation of the measured amplitudes with phases f, up to origin and hand."""
    phased = np.abs(c.f) * np.exp(1j * np.angle(f))
    return compare(c.hkl, phased, c.f, c.cell, c.spacegroup, repeats=0).map_cc
