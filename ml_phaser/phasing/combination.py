"""Phase combination: density modification that does not forget what is known of the phases.

Cycles that only begin from approximate phases wander off within a few rounds. Here the phases stay in throughout, as
one of two witnesses (Sim, Acta Cryst. 12, 813, 1959; Hendrickson & Lattman, Acta Cryst. B26, 136, 1970):

    P(phi) ~ P_known(phi) exp(X cos(phi - phi_map)),   X = TRUST E_obs E_map
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ml_phaser import arrays
from ml_phaser.arrays import AXES, Array, namespace
from ml_phaser.crystal.phase_distributions import PhaseDistributions
from ml_phaser.phasing.dual_space import Projection
from ml_phaser.phasing.problem import Problem
from ml_phaser.phasing.projections import forward, inverse, measured_scale

TRUST = 4.0  # in the map: as much as a sigmaA of 0.8 would give


@dataclass(frozen=True, eq=False)
class Combined:
    """Density modification with the phases ``known`` (on ``problem.hkl``) combined in at every cycle."""

    problem: Problem
    projection: Projection
    known: PhaseDistributions
    name: str = "phase combination"

    def advance(self, x: Array, cycles: int, done: int = 0) -> Array:
        for _ in range(cycles):
            x = inverse(self.combine(forward(self.projection(x))), self.problem.shape)
        return x

    def estimate(self, x: Array) -> Array:
        return forward(self.projection(x))

    def combine(self, half: Array) -> Array:
        """Measured moduli with the combined phases, weighted; what was not measured as the map has it."""
        target = self.problem.target
        one, two, centric, to_e = self._tables
        modulus = abs(half)
        u = half / modulus.clip(min=1e-20)
        e = modulus * to_e
        mean_square = (e**2).sum(axis=AXES, keepdims=True) / int((to_e > 0).sum())
        e = e / (mean_square**0.5).clip(min=1e-20)
        # The bimodal part as its tangent at the map's phase.
        total = one + 2 * two * u.conj() + TRUST * (target.amplitude * to_e) * e * u
        x, xp = abs(total), namespace(total)
        merit = xp.where(centric, xp.tanh(x), arrays.sim(x))
        scale = measured_scale(modulus, target)
        out = target.imposed * merit * total / x.clip(min=1e-20) + target.free * half * scale
        out[..., 0, 0, 0] = 0
        return out

    @cached_property
    def _tables(self) -> tuple[Array, Array, Array, Array]:
        """On the half-complex grid: A + iB, C + iD, where phases are restricted, factors that turn moduli into E."""
        p, hl = self.problem, self.known.hl
        spread = p.expansion
        two = hl[:, 2] + 1j * hl[:, 3]
        turned = np.where(spread.friedel, np.conj(two[spread.asu]), two[spread.asu]) * np.exp(2j * spread.shift)
        doubled = arrays.beside(p.places.scatter(turned).astype(np.complex64)[None], p.target.amplitude)
        centric = arrays.beside(p.places.scatter(self.known.turn[spread.asu] != 0)[None], p.target.amplitude)
        return p.scatter(hl[:, 0] + 1j * hl[:, 1]), doubled, centric, p.target.to_e
