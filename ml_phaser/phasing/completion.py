"""The last touch to a solution: the learned projection, then free atoms instead of density, where they predict more."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ml_phaser.crystal.normalise import Normalised
from ml_phaser.crystal.reflections import Amplitudes
from ml_phaser.phasing.finish import Solution
from ml_phaser.phasing.free_atoms import B_RANGE, TRIES, VOLUME, Moduli, Scattering, refine_atoms
from ml_phaser.phasing.polish import WORTH_IT, Polisher
from ml_phaser.phasing.problem import Problem

D_MIN, FINE = 1.6, 0.8  # A: beyond it there are too few reflections for an atom; finer ones than that are not needed
SHARE, AT_ONCE = 0.15, 0.03  # of the time limit: what one solution may take at the end, and while the search goes on
SUMS, CALL, PAIR = 350, 7e-4, 3e-8  # of a refinement: sums; processor seconds of each, and of an atom and a reflection
# ``Refined.worth`` that wrong atoms do not come to, with few and with MANY reflections an atom: of data with 5 %
# noise wrong ones began at 0.16 and 0.24; right ones came to 0.08, of measured data without hydrogens to 0.2.
CERTAIN, MANY = (0.12, 0.2), 20

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Completer:
    """``moduli`` of the n reflections, ``rows`` (m,) of those to refine against and to take maps of; e (n,) measured,
    normalised; to_e (n,) factors that turn moduli into them; held (n,) reflections to judge by; tries, at_once : how
    often parts are left out in vain at the end of a search, and while it goes on (-1: atoms are not tried then)"""

    moduli: Moduli
    rows: NDArray[np.int64]
    e: Floats
    to_e: Floats
    held: NDArray[np.bool_]
    tries: int
    at_once: int

    def __call__(self, solution: Solution, tries: int | None = None) -> Solution:
        """The solution as atoms, if they explain the data as wrong ones cannot, or predict the reflections held out
        better than it does by more than the luck of so many; as it was if not."""
        if solution.given or solution.fragments is not None:
            return solution
        whole, rows = self.moduli, self.rows
        coarse = replace(whole, hkl=whole.hkl[rows], f=whole.f[rows], used=whole.used[rows])
        found = refine_atoms(
            coarse, np.angle(solution.f[rows]), tries=self.tries if tries is None else tries, seed=solution.trial
        )
        if not len(found.atoms):
            return replace(solution, polished=True)
        f = Scattering(whole, np.arange(len(whole.hkl))).calculate(found.atoms)
        score, count = self.correlation(np.abs(f)), int(self.held.sum())
        luck = 2 / np.sqrt(max(4, count))  # of both scores
        many = coarse.used.sum() >= MANY * len(found.atoms)
        if found.worth > CERTAIN[int(many)] and score - solution.score < luck:
            return replace(solution, polished=True)
        return replace(
            solution, f=f, score=score, held=count, r_work=found.r, atoms=found.atoms, polished=True,
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

    def at_once(self, solution: Solution) -> Solution:
        """While the search goes on: the polisher for what is promising, the completer for all if it is cheap."""
        quick = self.completer is not None and self.completer.at_once >= 0
        promising = solution.score >= WORTH_IT
        if self.polisher is not None and promising:
            solution = replace(self.polisher(solution), polished=self.completer is None)
        if self.completer is not None and quick:
            solution = self.completer(solution, self.completer.at_once)
        return solution

    @property
    def reserve(self) -> float:
        """Share of the time that is kept for the end of the search."""
        return SHARE if self.completer is not None and self.completer.at_once < 0 else 0.0

    def without_atoms(self, solution: Solution) -> Solution:
        return solution if self.polisher is None else self.polisher(solution)

    def __call__(self, solution: Solution) -> Solution:
        solution = self.without_atoms(solution)
        return solution if self.completer is None else self.completer(solution)


def completer(
    data: Amplitudes, normalised: Normalised, whole: Problem, rows: NDArray[np.int64], seconds: float
) -> Completer | None:
    """For the reflections ``rows`` in use, in a search of ``seconds``; None where it would take too many of them or
    atoms are not resolved."""
    if data.d_min > D_MIN:
        return None
    held, used = np.zeros(len(data), dtype=bool), np.zeros(len(data), dtype=bool)
    held[rows], used[rows] = whole.held, ~whole.held
    coarse = np.flatnonzero(data.d >= FINE)
    order = len(list(data.spacegroup.operations()))
    atoms = data.cell.volume / VOLUME / order
    cost = SUMS * order * (CALL + PAIR * float(used[coarse].sum()) * atoms)
    tries, at_once = (min(TRIES, int(share * seconds / cost) - 1) for share in (SHARE, AT_ONCE))
    if tries < 0:
        return None
    b = float(np.clip(normalised.wilson_b, *B_RANGE))
    moduli = Moduli(data.hkl, normalised.f, used, data.cell, data.spacegroup, b)
    to_e = normalised.e / np.where(normalised.f > 0, normalised.f, 1.0)
    return Completer(moduli, coarse, normalised.e, to_e, held, tries, at_once)
