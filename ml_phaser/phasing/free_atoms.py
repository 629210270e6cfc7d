"""Free atoms: a solution as atoms without bonds or names, refined against the measured amplitudes alone.

Peaks of the map become atoms of unknown weight; least squares moves them, sets their weights and displacements, first
to the phased structure factors, which resolves what the map does not, then to the moduli; those that fade are removed
and difference maps give new ones (peak list recycling: Sheldrick & Gould, Acta Cryst. B51, 423 (1995); least squares to
complete a structure: Sheldrick, Acta Cryst. A64, 112 (2008)). docs/decisions/0024-free-atoms.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import gemmi
import numpy as np
from numpy.typing import NDArray

from ml_phaser.crystal.grid import HalfSphere, grid_shape
from ml_phaser.crystal.peaks import Atoms, Images, peaks
from ml_phaser.crystal.symmetry import Expansion, expand
from ml_phaser.phasing.atom_fit import GRADIENTS, Aim, Scattering, fitted
from ml_phaser.phasing.atom_grid import scattering

APART = 0.8  # A: nearer peaks are one atom
SHARP_B = 4.0  # A^2 of the map that peaks are first taken from; of difference maps two more
VOLUME = 13.0  # A^3 for an atom
HIGH = 0.35  # of a usual atom: lowest peak that becomes an atom;
FAINT = (0.3, 0.5)  # lowest weight of one that stays, at first and at last
PHASED_ROUNDS, ROUNDS = 3, 10  # to phased structure factors, to moduli
STEPS = 8  # of least squares a round
PATIENCE, STILL = 2, 0.005  # rounds without so much gain, relative, after which atoms rest
PARAMETERS = 4  # of an atom
B_RANGE = (1.0, 30.0)  # A^2
TRIES, MOST_TRIES, LEFT_OUT = 12, 3, 0.3
SAMPLING = 4.0  # points of a map in the resolution

Floats = NDArray[np.float64]
Complexes = NDArray[np.complex128]


@dataclass(frozen=True, eq=False)
class Moduli:
    """What atoms are refined against.

    hkl (n, 3) unique; f (n,) measured moduli; used (n,) bool; b : A^2, overall
    """

    hkl: NDArray[np.int32]
    f: Floats
    used: NDArray[np.bool_]
    cell: gemmi.UnitCell
    spacegroup: gemmi.SpaceGroup
    b: float


@dataclass(frozen=True, eq=False)
class Refined:
    """atoms; f (n,) their structure factors on the scale of the data they were refined against.

    r : R of the reflections used; worth : the same over the share of them that is left when every parameter has had its
    own, lower is better (after generalised cross-validation: Golub, Heath & Wahba, Technometrics 21, 215, 1979)
    """

    atoms: Atoms
    f: Complexes
    r: float = 1.0
    worth: float = math.inf


def r_factor(f: Complexes, modulus: Floats) -> float:
    """R of calculated and measured moduli, their scale by least squares."""
    fc = np.abs(f)
    k = np.sum(fc * modulus) / max(1e-20, float(np.sum(fc**2)))
    return float(np.sum(np.abs(k * fc - modulus)) / np.sum(modulus))


@dataclass(frozen=True, eq=False)
class Mapper:
    """Maps whose peaks are measured in usual atoms. room : A^3 of an atom, of which there are never more"""

    data: Moduli
    expansion: Expansion
    images: Images
    half: HalfSphere
    scattering: Scattering
    room: float = VOLUME

    @classmethod
    def of(cls, data: Moduli, scattering: Scattering, sampling: float, room: float = VOLUME) -> Mapper:
        """For maps with so many points in the resolution."""
        expansion = expand(data.hkl, data.spacegroup)
        d_min = 0.5 / float(np.sqrt(scattering.stol2.max()))
        shape = grid_shape(data.cell, d_min * 0.99999, spacing=d_min / sampling, multiple=2)
        half = HalfSphere.of(expansion.hkl, shape)
        return cls(data, expansion, Images(data.cell, data.spacegroup), half, scattering, room)

    def peaks(self, f: Complexes, sharp: float, least: float) -> tuple[Floats, Floats]:
        """Positions and heights, in nitrogens, of peaks of structure factors (n,), B brought to ``sharp``; no two of
        them one atom."""
        stol2 = self.scattering.stol2
        half = self.half.scatter(self.expansion.spread(f * np.exp((self.data.b - sharp) * stol2)))
        rho = np.fft.irfftn(half, s=self.half.shape, axes=(0, 1, 2)) * np.prod(self.half.shape)
        form = self.scattering.form * np.exp(-sharp * stol2)
        one = 2 * float(np.sum(form[self.expansion.asu]))
        x, height = peaks(rho, least * one)
        x, height = x[: 4 * self.most], height[: 4 * self.most]
        rows = self.images.thin(x, APART)
        return x[rows], height[rows] / one

    @property
    def most(self) -> int:
        """Atoms that the asymmetric unit has room for."""
        return max(3, int(self.data.cell.volume / self.room / len(self.images.rotations)))

    def settled(self, atoms: Atoms, faint: float) -> Atoms:
        """The atoms, heaviest first, without those lighter than ``faint`` and those that have become one; in special
        positions where they are near."""
        atoms = atoms.take(np.argsort(-atoms.weight, kind="stable"))
        atoms = atoms.take(np.flatnonzero(atoms.weight > faint))
        frac, images = self.images.settle(atoms.frac, APART / 2)
        atoms = replace(atoms, frac=frac, images=images)
        return atoms.take(self.images.thin(atoms.frac, APART))

    def grown(self, atoms: Atoms, f: Complexes, sharp: float, unit: float) -> Atoms:
        """With new ones where structure factors (n,), of what is missing, have peaks apart from all. ``unit`` : weight
        of a usual atom"""
        x, height = self.peaks(f, sharp, HIGH * unit)
        if len(atoms):
            free = ~self.images.close(x, atoms.frac, APART).any(axis=1)
            x, height = x[free], height[free]
        x, height = x[: max(0, self.most - len(atoms))], height[: max(0, self.most - len(atoms))]
        x, images = self.images.settle(x, APART / 2)
        return Atoms(
            np.concatenate([atoms.frac, x]),
            np.concatenate([atoms.weight, np.clip(height, FAINT[1] * unit, None)]),
            np.concatenate([atoms.b, np.full(len(x), self.data.b)]),
            np.concatenate([atoms.images, images]),
        )


NONE = Atoms(np.zeros((0, 3)), np.zeros(0), np.zeros(0), np.zeros(0, dtype=np.int64))


def usual(weight: Floats) -> float:
    """Weight of a usual atom: of those that are as heavy or heavier have half of all weight. A few heavy atoms do not
    move it, nor do many that are no atoms, which are light."""
    order = np.sort(weight)[::-1]
    return float(order[np.searchsorted(np.cumsum(order), order.sum() / 2)])


@dataclass(eq=False)
class Workshop:
    """Data and what refines atoms against them; sampling : points of maps in the resolution; unit : weight of a usual
    atom, which follows the atoms as B does; room : A^3 of an atom; steps : of least squares a round, of so many
    gradients each."""

    data: Moduli
    sampling: float = SAMPLING
    unit: float = 1.0
    room: float = VOLUME
    steps: int = STEPS
    gradients: int = GRADIENTS

    def __post_init__(self) -> None:
        hkl, used, cell, group = self.data.hkl, self.data.used, self.data.cell, self.data.spacegroup
        where = cell, group, cell.volume / self.room / len(group.operations())
        self.every, self.fitted = scattering(hkl, *where), scattering(hkl[used], *where)
        self.mapper = Mapper.of(self.data, self.every, self.sampling, self.room)

    def fit(self, atoms: Atoms, target: Complexes, *, phased: bool) -> Refined:
        """After least squares to structure factors (n,) or their moduli."""
        used, data = self.data.used, self.data
        atoms = fitted(
            self.fitted, atoms, Aim(target[used], phased, self.unit, data.b), self.steps, self.gradients
        ).atoms
        f = self.every.calculate(atoms)
        r = r_factor(f[used], data.f[used])
        left = 1 - PARAMETERS * len(atoms) / max(1, int(used.sum()))
        return Refined(atoms, f, r, r / left if left > 0.05 else math.inf)

    def weeded(self, atoms: Atoms, faint: float) -> Atoms:
        """The atoms without the faint and the doubled; a usual one is what it is among them now."""
        self.unit = float(np.clip(usual(atoms.weight), 0.02, 50.0))
        self.data = replace(self.data, b=float(np.clip(np.median(atoms.b), *B_RANGE)))
        self.mapper = replace(self.mapper, data=self.data)
        return self.mapper.settled(atoms, faint * self.unit)

    def from_phases(self, phases: Floats, rounds: int = PHASED_ROUNDS) -> Refined:
        """Atoms fitted to the moduli used with ``phases`` (n,)."""
        used, turn = self.data.used, np.exp(1j * phases)
        _, height = self.mapper.peaks(used * self.data.f * turn, SHARP_B, 0.0)
        now = Refined(NONE, np.zeros(len(used), dtype=np.complex128))
        if not len(height) or not self.data.f.any():
            return now
        self.data = replace(self.data, f=self.data.f / usual(height[: self.mapper.most // 2 + 1]))
        self.mapper = replace(self.mapper, data=self.data)
        target = self.data.f * turn
        for k in range(rounds):
            atoms = self.mapper.grown(now.atoms, used * (target - now.f), SHARP_B + 2 * (k > 0), self.unit)
            if not len(atoms):
                break
            atoms = self.weeded(self.fit(atoms, target, phased=True).atoms, FAINT[0])
            now = Refined(atoms, self.every.calculate(atoms))
        return now

    def rest(self, atoms: Atoms, rounds: int = ROUNDS) -> Refined:
        """Atoms refined against moduli, completed and weeded until they rest, in so many rounds at most."""
        best, waiting, used = Refined(atoms, np.zeros(len(self.data.hkl), dtype=np.complex128)), 0, self.data.used
        for turn in range(rounds):
            if not len(atoms):
                break
            now = self.fit(atoms, self.data.f.astype(np.complex128), phased=False)
            waiting = 0 if now.worth < best.worth * (1 - STILL) else waiting + 1
            best = min(best, now, key=lambda x: x.worth)
            if waiting == PATIENCE:
                break
            atoms = self.weeded(now.atoms, float(np.interp(turn, (0, ROUNDS - 2), FAINT)))
            f = self.every.calculate(atoms)
            missing = used * 2 * (self.data.f - np.abs(f)) * np.exp(1j * np.angle(f))
            atoms = self.mapper.grown(atoms, missing, SHARP_B + 2, self.unit)
        return best


def refine_atoms(data: Moduli, phases: Floats, *, tries: int = TRIES, seed: int = 0) -> Refined:
    """Atoms from the map of ``phases`` (n,) in radians and the moduli used, refined until they rest; then part of them
    is left out and the rest completed anew, and again, as long as that helps.

    Parameters
    ----------
    tries : how often in vain, and no more than MOST_TRIES times as often in all; seed : of what is left out
    """
    workshop, rng = Workshop(data), np.random.default_rng(seed)
    best, vain = workshop.rest(workshop.from_phases(phases).atoms), 0
    for _ in range(MOST_TRIES * tries):
        kept = best.atoms.take(np.flatnonzero(rng.random(len(best.atoms)) > LEFT_OUT))
        found = workshop.rest(kept)
        vain = 0 if found.worth < best.worth * (1 - STILL) else vain + 1
        best = min(best, found, key=lambda x: x.worth)
        if vain == tries:
            break
    return best
