"""Phase combination: density modification that does not forget what is known of the phases.

Cycles that only begin from approximate phases wander off within a few rounds. Here the phases stay in throughout, as
one of two witnesses (Sim, Acta Cryst. 12, 813, 1959; Hendrickson & Lattman, Acta Cryst. B26, 136, 1970):

    P(phi) ~ P_known(phi) exp(X cos(phi - phi_map)),   X = 2 sigmaA E_obs E_map / (1 - sigmaA^2)

and half of that X where the phase is restricted. sigmaA is that of the reflections held out, cycle by cycle: a map that
predicts them badly hardly moves the phases given, one that predicts them well takes over
(docs/decisions/0017-sigmaa-in-phasein.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ml_phaser import arrays
from ml_phaser.arrays import Array, namespace
from ml_phaser.crystal.phase_distributions import PhaseDistributions
from ml_phaser.phasing.dual_space import Projection
from ml_phaser.phasing.problem import Problem
from ml_phaser.phasing.projections import forward, inverse, unknown
from ml_phaser.phasing.weighting import Weighting


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
        one, two, centric = self._tables
        modulus = abs(half)
        u = half / modulus.clip(min=1e-20)
        strength = self._weighting.argument(half)
        strength = namespace(strength).where(centric, 0.5 * strength, strength)
        # The bimodal part as its tangent at the map's phase.
        total = one + 2 * two * u.conj() + strength * u
        x, xp = abs(total), namespace(total)
        merit = xp.where(centric, xp.tanh(x), arrays.sim(x))
        out = target.imposed * merit * total / x.clip(min=1e-20) + unknown(half, target)
        out[..., 0, 0, 0] = 0
        return out

    @cached_property
    def _weighting(self) -> Weighting:
        return Weighting(self.problem)

    @cached_property
    def _tables(self) -> tuple[Array, Array, Array]:
        """On the half-complex grid: A + iB, C + iD, where phases are restricted."""
        p, hl = self.problem, self.known.hl
        spread = p.expansion
        two = hl[:, 2] + 1j * hl[:, 3]
        turned = np.where(spread.friedel, np.conj(two[spread.asu]), two[spread.asu]) * np.exp(2j * spread.shift)
        doubled = arrays.beside(p.places.scatter(turned).astype(np.complex64)[None], p.target.amplitude)
        centric = arrays.beside(p.places.scatter(self.known.turn[spread.asu] != 0)[None], p.target.amplitude)
        return p.scatter(hl[:, 0] + 1j * hl[:, 1]), doubled, centric
