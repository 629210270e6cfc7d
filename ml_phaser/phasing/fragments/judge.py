"""The learned projection as judge and finisher of placed pieces.

It sees the map of measured amplitudes with the piece's phases, and the piece's own density beside it. A right piece is
added to in a way that predicts amplitudes the network has not been given; a wrong one is not. Every reflection is left
out of one pass in ``FOLDS``, so that all of them judge, not the few held out of the whole phasing, which are kept for
the verdict.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from ml_phaser.phasing.problem import Problem
from ml_phaser.phasing.projections import Restorer, forward, inverse, restore, unit_variance
from ml_phaser.phasing.weighting import Weighting, direction

FOLDS = 4  # 8 cost twice as much and told right from wrong better on 2OLX, worse on 5E5Z
COMPLETING = 5  # cycles of density modification with the model in view,
RELEASED = 10  # and then without it, where that predicts the held-out reflections better
B_MODEL = 11.0  # A^2, overall B of the maps the network was trained on

Complexes = NDArray[np.complex128]


@dataclass(frozen=True, eq=False)
class Judge:
    """A network on a problem.

    cond : (1, k) what it is told of it; e : (n,) measured E of ``problem.hkl``; weight : (n,) their multiplicity
    fold : (n,) which pass leaves a reflection out, -1 for those held out of everything
    """

    problem: Problem
    network: Restorer
    cond: torch.Tensor
    e: NDArray[np.float64]
    weight: NDArray[np.float64]
    fold: NDArray[np.int64]

    @classmethod
    def of(
        cls, problem: Problem, network: Restorer, cond: torch.Tensor, e: NDArray[np.float64],
        weight: NDArray[np.float64], seed: int = 0,
    ) -> Judge:  # fmt: skip
        """Lots are drawn which reflections go together."""
        fold = np.random.default_rng(seed).permutation(len(e)) % FOLDS
        return cls(problem, network, cond, e, weight, np.where(problem.held, -1, fold))

    def maps(self, f_model: Complexes) -> tuple[torch.Tensor, torch.Tensor]:
        """The map (1, u, v, w) of measured amplitudes with a model's phases, and the model's own; unit variance."""
        p = self.problem
        phased = np.where(p.held, 0, p.amplitude * np.exp(1j * np.angle(f_model)))
        start = unit_variance(inverse(p.scatter(phased), p.shape))
        return start, unit_variance(inverse(p.scatter(f_model), p.shape))

    @torch.no_grad()
    def score(self, f_model: Complexes) -> float:
        """Correlation of measured E and those that one pass of the network predicts without having seen them."""
        p, target = self.problem, self.problem.target
        start, model = self.maps(f_model)
        # The fold of each place on the grid; its modulus, since mates are scattered with phase shifts.
        here = p.scatter(self.fold.astype(np.complex128) + 2).abs().round() - 2
        left = torch.cat([(here == k) & target.known for k in range(FOLDS)])
        seen = replace(target, known=target.known & ~left, to_e=target.to_e * ~left)
        maps = unit_variance(inverse(forward(start) * ~left, start.shape))
        density = restore(self.network, maps, seen, self.cond.expand(FOLDS, -1), model)
        half = forward(density)
        predicted = np.zeros(len(p.hkl))
        for k in range(FOLDS):
            f = p.expansion.average(p.gather_p1(half[k]), len(p.hkl))
            predicted[self.fold == k] = np.abs(f[self.fold == k])
        judged = self.fold >= 0
        return correlation(self.e[judged], self._e(predicted)[judged], self.weight[judged])

    def _e(self, moduli: NDArray[np.float64]) -> NDArray[np.float64]:
        """E of moduli on the problem's scale."""
        p = self.problem
        return moduli * self.e / np.maximum(p.amplitude, 1e-9 * p.amplitude.max())

    @torch.no_grad()
    def complete(self, f_model: Complexes, cycles: int, released: int = RELEASED) -> tuple[Complexes, float, float]:
        """Density modification: ``cycles`` that keep the model in view, its phases and those of the map combined by
        sigmaA, and ``released`` that go on from the map alone, if the reflections held out of everything agree better
        with what those lead to.

        Returns structure factors (n,) of the density, their correlation with E on the reflections held out of
        everything, and R on the others.
        """
        p, weigh = self.problem, self.weighting
        there = p.scatter(f_model)
        model = unit_variance(inverse(there, p.shape))
        known = weigh.argument(there, held=False) * direction(there)
        x = unit_variance(inverse(weigh.combined(known), p.shape))
        found: list[tuple[Complexes, float, float]] = []
        for cycle in range(1, cycles + released + 1):
            half = forward(restore(self.network, x, p.target, self.cond, model))
            f = p.expansion.average(p.gather_p1(half[0]), len(p.hkl))
            if cycle in (cycles, cycles + released):
                found.append((f, float(p.scores(half)[0]), float(p.residuals(half)[0])))
            if cycle == cycles:
                model, known = torch.zeros_like(model), torch.zeros_like(known)
            even = p.scatter(f)
            total = known + weigh.argument(even) * direction(even)
            x = unit_variance(inverse(weigh.combined(total) + weigh.filled(even), p.shape))
        return max(found, key=lambda done: done[1])

    @cached_property
    def weighting(self) -> Weighting:
        """Of the problem."""
        return Weighting(self.problem)


def correlation(x: NDArray[np.float64], y: NDArray[np.float64], weight: NDArray[np.float64]) -> float:
    """Weighted correlation, 0 where one does not vary."""
    w = weight / weight.sum()
    x, y = x - w @ x, y - w @ y
    size = np.sqrt((w @ x**2) * (w @ y**2))
    return float(w @ (x * y) / size) if size > 0 else 0.0
