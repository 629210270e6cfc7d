"""Phase seeds: some phases given at the start, roughly, held for the first part of the cycles and then set free.

Phases known to the quadrant for a tenth to a third of the strong reflections can lead dual-space methods to solutions
that they do not find from random phases (Carrozzini et al., Acta Cryst. A81, 188, 2025). Seeds that are only a start
are forgotten within a few cycles, so they are imposed like the moduli until the rest has followed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ml_phaser.arrays import Array
from ml_phaser.crystal.symmetry import expand
from ml_phaser.phasing.dual_space import Method
from ml_phaser.phasing.problem import Problem
from ml_phaser.phasing.search import Entrant

HELD_SHARE = 0.5  # of a start's cycles during which the seeds are imposed


@dataclass(frozen=True, eq=False)
class Seeds:
    """Phases of some unique reflections, at an origin of the space group.

    phase : (n,) radians; given : (n,) bool, where there is one
    """

    phase: NDArray[np.float64]
    given: NDArray[np.bool_]

    def of(self, rows: NDArray[np.int64]) -> Seeds:
        """Those of some reflections."""
        return Seeds(self.phase[rows], self.given[rows])


def strongest(e: NDArray[np.float64], share: float) -> NDArray[np.bool_]:
    """The ``share`` (0-1) of the reflections with the largest E, at least one, (n,) bool."""
    chosen = np.zeros(len(e), dtype=bool)
    chosen[np.argsort(-e, kind="stable")[: max(1, round(share * len(e)))]] = True
    return chosen


def quadrants(hkl: NDArray[np.int32], phase: NDArray[np.float64], spacegroup: Any) -> NDArray[np.float64]:
    """Phases (n,) in radians rounded to 45, 135, 225 or 315 degrees; restricted ones to the nearer permitted value."""
    middle = (np.floor(phase / (np.pi / 2)) + 0.5) * (np.pi / 2)
    turn = expand(hkl, spacegroup).turn
    permitted = np.angle(turn) / 2
    nearer = np.where(np.cos(phase - permitted) >= 0, permitted, permitted + np.pi)
    return np.where(turn == 0, middle, nearer) % (2 * np.pi)


def imposing(problem: Problem, seeds: Seeds) -> Problem:
    """The problem with the phases of ``seeds``, which belong to ``problem.hkl``, imposed where moduli are."""
    direction = problem.scatter(np.where(seeds.given, np.exp(1j * seeds.phase), 0))
    direction = direction / abs(direction).clip(min=1e-20)
    return replace(problem, target=replace(problem.target, seeds=problem.target.imposed * direction))


@dataclass(frozen=True, eq=False)
class Held:
    """``bound`` for the first ``cycles``, then ``free``: one method on the problem with seeds and without."""

    bound: Method
    free: Method
    cycles: int

    @property
    def name(self) -> str:
        return f"{self.free.name}, seeded"

    def advance(self, x: Array, cycles: int, done: int = 0) -> Array:
        first = int(np.clip(self.cycles - done, 0, cycles))
        if first:
            x = self.bound.advance(x, first, done)
        return self.free.advance(x, cycles - first, done + first) if cycles > first else x

    def estimate(self, x: Array) -> Array:
        return self.free.estimate(x)


def seeded(entrant: Entrant, seeds: Seeds) -> Entrant:
    """The entrant with its starts made of the seeds and, elsewhere, random phases.

    ``seeds`` are those of all unique reflections of the crystal.
    """
    problem = imposing(entrant.problem, seeds.of(entrant.rows))
    bound: Any = replace(entrant.method, problem=problem)  # type: ignore[type-var]
    method = Held(bound, entrant.method, round(HELD_SHARE * entrant.cycles))
    return replace(entrant, method=method, origin=problem, seeded=True)
