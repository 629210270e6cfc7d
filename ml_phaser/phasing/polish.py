"""A last refinement of solutions at atomic resolution by the learned projection, which sees data to 1.3 A only.

Where atoms are resolved classical projections find a structure, and phase it worse than the network does; and its word
on wrong solutions is stricter: they were chosen by the reflections held out, it was not
(docs/decisions/0018-polishing.md).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ml_phaser.phasing.confidence import cautious
from ml_phaser.phasing.finish import Finisher, Solution, refine
from ml_phaser.phasing.problem import Problem

WORTH_IT = 0.28  # held-out correlation from which on a solution is polished while the search goes on
PER_SHELL = 100  # reflections that one scale of calculated moduli stands for

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Polisher:
    """``finisher`` : the learned projection on the reflections it sees; ``whole``, ``rows`` : the problem of all that
    are used, point atoms at rest, and their rows among all n."""

    finisher: Finisher
    whole: Problem
    rows: NDArray[np.int64]

    def __call__(self, solution: Solution) -> Solution:
        """The solution, refined where the network sees it; finer reflections keep their phases.

        Its score is that of the reflections held out, each calculated by the density that phases it: of all of them or
        of those the network sees, whichever says more for so many, since where fine data are mostly noise only the
        coarse can tell. If the network predicts what it sees worse than the solution did, by more than the luck of so
        many, the phases stay as they were, and scores are the means of both.
        """
        (_, projection), n = self.finisher.projections[0], len(solution.f)
        f, _, residual = refine(solution.f, self.finisher, projection, n)
        coarse = self.seen & self.held
        before, after = (self.correlation(g, coarse) for g in (solution.f, f))
        whole, counts = self.correlation(f, self.held), (int(self.held.sum()), int(coarse.sum()))
        if after < cautious(before, counts[1]):
            score, held = telling(((whole + solution.score) / 2, (before + after) / 2), counts)
            return replace(solution, score=score, held=held, polished=True)
        score, held = telling((whole, after), counts)
        name = f"{solution.finisher}, learned"
        return replace(solution, f=f, score=score, r_work=residual, held=held, finisher=name, polished=True)

    def correlation(self, f: NDArray[np.complex128], which: NDArray[np.bool_]) -> float:
        """Of calculated and measured moduli, both of normalised structure factors, among the reflections in use."""
        moduli = np.abs(f[self.rows])
        e = np.zeros(len(moduli))
        for shell in self._shells:
            in_use = shell[~self.held[shell]]
            e[shell] = moduli[shell] / max(1e-20, math.sqrt(np.mean(moduli[in_use] ** 2)) if len(in_use) else 0.0)
        x, y = e[which], self.whole.amplitude[which]
        if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
            return 0.0
        return float(np.corrcoef(x, y)[0, 1])

    @property
    def held(self) -> NDArray[np.bool_]:
        return self.whole.held

    @cached_property
    def seen(self) -> NDArray[np.bool_]:
        """Which of the reflections in use the network sees."""
        return np.isin(self.rows, self.finisher.rows)

    @cached_property
    def _shells(self) -> list[NDArray[np.int64]]:
        """Of equally many reflections, those that the network sees apart from the others."""
        d = self.whole.cell.calculate_d_array(self.whole.hkl)
        parts = [np.flatnonzero(which) for which in (self.seen, ~self.seen)]
        ordered = [part[np.argsort(-d[part], kind="stable")] for part in parts if len(part)]
        return [shell for part in ordered for shell in np.array_split(part, max(1, len(part) // PER_SHELL))]


def telling(scores: Sequence[float], counts: Sequence[int]) -> tuple[float, int]:
    """Of several correlations the one that is highest less its standard error, and its number of reflections."""
    return max(zip(scores, counts, strict=True), key=lambda both: cautious(*both))
