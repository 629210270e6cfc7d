"""Free atoms from random phases: relaxed reflections (RRR) between what the moduli allow and what so many atoms give.

The amplitude projection is the usual one; the other finds the atoms nearest to given structure factors by least
squares, begun with those of the cycle before, the lightest of them replaced by peaks of what is left over: so atoms
that the map does not resolve are told apart, too (difference map with atomicity: Elser, Acta Cryst. A59, 201 (2003);
RRR: Elser, Lan & Bendory, SIAM J. Imaging Sci. 11, 2429 (2018)). docs/decisions/0025-atoms-from-random-phases.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from ml_phaser.crystal.agreement import random_phases
from ml_phaser.crystal.peaks import Atoms
from ml_phaser.phasing.atom_fit import Aim, State
from ml_phaser.phasing.free_atoms import B_RANGE, NONE, Moduli, Refined, Workshop, r_factor

BETA = 0.7  # of relaxed reflections
DAMPING = 0.05  # of the step of least squares in each
SHARP = 2.0  # A^2 that the data are brought to
ROOMS = (13.0, 16.0, 20.0)  # A^3 an atom, of one walk after another: how many atoms there are is not known
KEPT = 0.65  # of the atoms, the heaviest, that a cycle begins with
WEIGHTS, FAINT = (0.5, 1.5), 0.3  # of new atoms; lowest of one that stays; in usual ones
SPREADS = (0.3, 0.0)  # of the logarithm of their weights; B stay
SAMPLING = 3.5  # of the maps that new atoms are taken from: points in the resolution
BLOCK, SETTLED = 100, 0.7  # cycles between two looks at what there is; R, of the usual one, at which one looks at once
LOOK, PROMISING = 2, 0.2  # rounds of refinement of a look; worth at which more are made
LONGEST = 1000  # cycles of a walk

Complexes = NDArray[np.complex128]


@dataclass(eq=False)
class Walk:
    """One start of so many atoms an asymmetric unit, on the reflections of ``data`` that are used.

    seed : of its random phases; room : A^3 of an atom
    """

    data: Moduli
    seed: tuple[int, ...]
    room: float
    cycles: int = 0
    usual: float = math.inf  # R of the blocks before
    seen: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        used, d = self.data.used, self.data
        sharp = Moduli(d.hkl[used], d.f[used], used[used], d.cell, d.spacegroup, SHARP)
        self.workshop = Workshop(sharp, sampling=SAMPLING)
        self.scattering = self.workshop.every
        stol2, order = self.scattering.stol2, len(self.scattering.turned)
        self.most = max(3, int(d.cell.volume / self.room / len(d.spacegroup.operations())))
        self.gain = np.exp((d.b - SHARP) * stol2)
        one = np.sum((self.scattering.form * np.exp(-SHARP * stol2)) ** 2)
        self.scale = math.sqrt(float(np.sum((sharp.f * self.gain) ** 2) / (self.most * order * one))) or 1.0
        self.f = sharp.f * self.gain / self.scale
        rng = np.random.default_rng(self.seed)
        self.point: Complexes = self.f * np.exp(1j * random_phases(sharp.hkl, d.spacegroup, rng))
        self.state = self.scattering.at(NONE)
        self.best: tuple[float, Atoms] = (math.inf, NONE)

    @property
    def atoms(self) -> Atoms:
        return self.state.atoms

    def nearest(self, target: Complexes) -> Complexes:
        """Structure factors of atoms, ``self.atoms`` then, that are near ``target`` (n,)."""
        aim = Aim(target, True, 1.0, SHARP, SPREADS)
        for _ in range(1 if len(self.atoms) else 3):
            moved = aim.step(self.grown(target), DAMPING)
            self.state = self.scattering.at(self.workshop.mapper.settled(moved, FAINT))
        return self.state.f

    def grown(self, target: Complexes) -> State:
        """The heaviest of the atoms, and peaks of what they leave of the target (n,), as many as there may be."""
        keep = min(len(self.atoms), max(1, int(self.most * KEPT)))
        kept = self.state.of(np.arange(keep))
        both = self.workshop.mapper.grown(kept.atoms, target - kept.f, SHARP * (2 if keep else 1), 1.0)
        new = both.take(np.arange(keep, min(self.most, len(both))))
        return kept.joined(self.scattering.at(replace(new, weight=np.clip(new.weight, *WEIGHTS))))

    def cycle(self) -> float:
        """One cycle; R of the atoms."""
        near = self.nearest(self.point)
        reflected = 2 * near - self.point
        self.point = self.point + BETA * (self.f * np.exp(1j * np.angle(reflected)) - near)
        r = r_factor(near, self.f)
        if r < self.best[0]:
            self.best = (r, self.atoms)
        self.cycles += 1
        return r

    def block(self) -> None:
        """Cycles until it is time to look at the best atoms of them: a number of them, or R far below the usual."""
        self.best, lowest = (math.inf, NONE), []
        for _ in range(BLOCK):
            lowest.append(self.cycle())
            if lowest[-1] < SETTLED * self.usual and len(lowest) > 1:
                break
        self.seen.extend(lowest)
        self.usual = float(np.median(self.seen))

    def look(self) -> Refined:
        """The best atoms of the last block, refined against the moduli: on all reflections of the data."""
        atoms, b = self.best[1], self.data.b
        shop = Workshop(replace(self.data, f=self.data.f / self.scale))
        atoms = replace(atoms, b=np.clip(atoms.b + b - SHARP, *B_RANGE))
        found = shop.rest(atoms, LOOK)
        return shop.rest(found.atoms) if found.worth < PROMISING else found

    @property
    def over(self) -> bool:
        return self.cycles >= LONGEST
