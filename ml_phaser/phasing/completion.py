"""The last touch to a solution: the learned projection, then free atoms instead of density, where they predict more."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ml_phaser.crystal.normalise import Normalised
from ml_phaser.crystal.reflections import Amplitudes
from ml_phaser.phasing.finish import Solution
from ml_phaser.phasing.free_atoms import B_RANGE, TRIES, VOLUME, Moduli, refine_atoms
from ml_phaser.phasing.polish import WORTH_IT, Polisher
from ml_phaser.phasing.problem import Problem

D_MIN = 1.6  # A: beyond it there are too few reflections for an atom
SHARE = 0.15  # of the time limit that one solution may take
SUMS, CALL, PAIR = 350, 7e-4, 3e-8  # of a refinement: sums; processor seconds of each, and of an atom and a reflection
CERTAIN = 0.12  # ``Refined.worth`` that wrong atoms never come to: those of data with 5 % noise began at 0.16

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Completer:
    """``moduli`` to refine against; e (n,) measured, normalised; to_e (n,) factors that turn moduli into them; held
    (n,) reflections to judge by; tries : how often parts are left out in vain"""

    moduli: Moduli
    e: Floats
    to_e: Floats
    held: NDArray[np.bool_]
    tries: int

    def __call__(self, solution: Solution) -> Solution:
        """The solution as atoms, if they explain the data as wrong ones cannot, or predict the reflections held out
        better than it does by more than the luck of so many; as it was if not."""
        if solution.given or solution.fragments is not None:
            return solution
        found = refine_atoms(self.moduli, np.angle(solution.f), tries=self.tries, seed=solution.trial)
        score, count = self.correlation(np.abs(found.f)), int(self.held.sum())
        luck = 2 / np.sqrt(max(4, count))  # of both scores
        if found.worth > CERTAIN and score - solution.score < luck:
            return replace(solution, polished=True)
        return replace(
            solution, f=found.f, score=score, held=count, r_work=found.r, atoms=found.atoms, polished=True,
            finisher=f"{solution.finisher}, atoms",
        )  # fmt: skip

    def correlation(self, moduli: Floats) -> float:
        """Of calculated and measured E among the reflections held out."""
        x, y = (self.to_e * moduli)[self.held], self.e[self.held]
        if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
            return 0.0
        return float(np.corrcoef(x, y)[0, 1])


@dataclass(frozen=True, eq=False)
class LastTouch:
    """What solutions go through: ``polisher``, then ``completer``, those of the two there are."""

    polisher: Polisher | None
    completer: Completer | None

    @property
    def least(self) -> float:
        """Held-out correlation from which on it is worth its time as soon as a solution is found: where atoms can be
        left out and completed many times, any."""
        return -1.0 if self.completer is not None and self.completer.tries == TRIES else WORTH_IT

    def __call__(self, solution: Solution) -> Solution:
        for touch in (self.polisher, self.completer):
            solution = solution if touch is None else touch(solution)
        return solution


def completer(
    data: Amplitudes, normalised: Normalised, whole: Problem, rows: NDArray[np.int64], seconds: float
) -> Completer | None:
    """For the reflections ``rows`` in use, in a search of ``seconds``; None where it would take too many of them or
    atoms are not resolved."""
    if data.d_min > D_MIN:
        return None
    held, used = np.zeros(len(data), dtype=bool), np.zeros(len(data), dtype=bool)
    held[rows], used[rows] = whole.held, ~whole.held
    order = len(list(data.spacegroup.operations()))
    atoms = data.cell.volume / VOLUME / order
    cost = SUMS * order * (CALL + PAIR * float(used.sum()) * atoms)
    tries = min(TRIES, int(SHARE * seconds / cost) - 1)
    if tries < 0:
        return None
    b = float(np.clip(normalised.wilson_b, *B_RANGE))
    moduli = Moduli(data.hkl, normalised.f, used, data.cell, data.spacegroup, b)
    to_e = normalised.e / np.where(normalised.f > 0, normalised.f, 1.0)
    return Completer(moduli, normalised.e, to_e, held, tries)
