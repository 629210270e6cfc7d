"""How far the phases of a map are to be believed, reflection by reflection, while it is still being improved.

A density that predicts the moduli held out of it to sigmaA has phases with the figures of merit

    I1(X) / I0(X),   X = 2 sigmaA E_obs E_map / (1 - sigmaA^2)

(Sim, Acta Cryst. 12, 813, 1959; Read, Acta Cryst. A42, 140, 1986). Maps of weighted amplitudes lead the learned
projection from a placed fragment much further than maps of all amplitudes as measured
(docs/decisions/0016-sigmaa-weights.md). sigmaA is that of the reflections held out, since those in use fit whatever
they are used for. It is the one number by which those held out bear on a map.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ml_phaser import arrays
from ml_phaser.arrays import Array
from ml_phaser.phasing.problem import Problem
from ml_phaser.phasing.projections import unknown

PER_SHELL = 100  # unique reflections that one scale of E stands for
FEWEST = 20  # held-out places of a grid that sigmaA is taken from; where there are fewer, from those in use
LEAST, MOST = 0.05, 0.98  # sigmaA^2: no map is trusted less or more


def sim_argument(e_map: Array, e_obs: Array, sigma_a_square: Array) -> Array:
    """X of E, calculated and measured."""
    return 2 * sigma_a_square**0.5 / (1 - sigma_a_square) * e_map * e_obs


def direction(half: Array) -> Array:
    """exp(i phi) of half-complex coefficients, 0 where they are 0."""
    return half / abs(half).clip(min=1e-20)


@dataclass(frozen=True, eq=False)
class Weighting:
    """Weights on the half-complex grid of a problem. Reciprocal arrays are (B, u, v, w')."""

    problem: Problem

    def argument(self, half: Array, *, held: bool = True) -> Array:
        """X (B, u, v, w') of half-complex coefficients; sigmaA from the reflections held out, or from those in use."""
        e = self.normalised(half)
        square = self.sigma_a_square(e, held=held)
        return sim_argument(e, self._measured, square).reshape(half.shape)

    def combined(self, total: Array) -> Array:
        """Measured moduli with the phases and the figures of merit of X exp(i phi) (1, u, v, w')."""
        return self.problem.target.imposed * arrays.sim(abs(total)) * direction(total)

    def filled(self, half: Array) -> Array:
        """Coefficients (1, u, v, w') of a density where nothing is known, on the scale of the measured moduli."""
        return unknown(half, self.problem.target)

    def normalised(self, half: Array) -> Array:
        """E (B, places) of half-complex coefficients: mean square 1 of those in use in every shell, 0 where nothing was
        measured."""
        return self._level(abs(half).reshape(len(half), -1) * self._to_e)

    def _level(self, e: Array) -> Array:
        for shell, in_use in self._shells:
            e[:, shell] = e[:, shell] / ((e[:, in_use] ** 2).mean(axis=1, keepdims=True) ** 0.5).clip(min=1e-20)
        return e

    def sigma_a_square(self, e: Array, *, held: bool) -> Array:
        """sigmaA^2 (B, 1): correlation of E^2, calculated (B, places) and measured."""
        places = self.problem.judge_flat
        if not held or len(places) < FEWEST:
            places = self._work
        x, y = e[:, places] ** 2, self._measured[None, places] ** 2
        x, y = x - x.mean(axis=1, keepdims=True), y - y.mean(axis=1, keepdims=True)
        norm = ((x**2).sum(axis=1, keepdims=True) * (y**2).sum(axis=1, keepdims=True)) ** 0.5
        return ((x * y).sum(axis=1, keepdims=True) / norm.clip(min=1e-20)).clip(min=LEAST, max=MOST)

    @cached_property
    def _to_e(self) -> Array:
        """Factors (places,) that turn moduli into E, where a modulus is known or held out; else 0."""
        p = self.problem
        out = p.target.to_e.reshape(-1) + 0
        out[p.judge_flat] = p.judge_weight
        return out

    @cached_property
    def _measured(self) -> Array:
        """E (places,) as measured, 0 elsewhere, normalised alike: a problem's moduli have a scale of their own."""
        p = self.problem
        out = p.target.amplitude.reshape(-1) * self._to_e
        out[p.judge_flat] = p.judge_value
        return self._level(out[None])[0]

    @cached_property
    def _work(self) -> Array:
        """Places of the reflections in use."""
        return arrays.beside(np.flatnonzero(self._in_use), self.problem.target.amplitude)

    @cached_property
    def _in_use(self) -> NDArray[np.bool_]:
        """(places,) whether a reflection is used there."""
        return np.asarray(arrays.to_numpy(self.problem.target.to_e).reshape(-1) > 0)

    @cached_property
    def _shells(self) -> tuple[tuple[Array, Array], ...]:
        """Places of the measured reflections, shell by shell, equally many in each, and of those in use among them."""
        p = self.problem
        inverse_square = p.cell.calculate_1_d2_array(p.expansion.hkl)
        count = max(1, len(p.hkl) // PER_SHELL)
        number = np.zeros(len(inverse_square), dtype=np.int64)
        for i, part in enumerate(np.array_split(np.argsort(inverse_square, kind="stable"), count)):
            number[part] = i + 1
        shell = p.places.scatter(number).reshape(-1) * (arrays.to_numpy(self._to_e) > 0)
        found = []
        for i in range(1, count + 1):
            if ((shell == i) & self._in_use).any():
                places = (np.flatnonzero(shell == i), np.flatnonzero((shell == i) & self._in_use))
                found.append(tuple(arrays.beside(x, p.target.amplitude) for x in places))
        return tuple(found)
