"""Dual-space cycles: iterated projection between measured amplitudes and what density may look like.

                      +--------- P_B: flipping, sparseness, or the learned projection <------+
                      v                                                                      |
    estimate P_B(x) --FFT--> F --measured moduli--> P_A --FFT--> next x ---------------------+

Charge flipping (Oszlanyi & Suto, Acta Cryst. A60, 134, 2004, with the weak-reflection shift of A61, 147, 2005) and
relaxed reflections, x <- x + beta (P_A(2 P_B(x) - x) - P_B(x)) (Elser, RRR; J. Opt. Soc. Am. A 20, 40, 2003), which
does not stop in traps as alternating projections do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

from ml_phaser.phasing.problem import Problem
from ml_phaser.phasing.projections import flip, forward, impose_amplitudes, inverse, with_amplitudes

QUANTILE_POINTS = 10_000  # enough of a large grid to place a threshold

Projection = Callable[[torch.Tensor], torch.Tensor]


class Method(Protocol):
    """One way of cycling a batch of maps (B, u, v, w)."""

    @property
    def name(self) -> str: ...

    def advance(self, x: torch.Tensor, cycles: int) -> torch.Tensor:
        """The state after some cycles."""
        ...

    def estimate(self, x: torch.Tensor) -> torch.Tensor:
        """Half-complex coefficients of the density the state stands for."""
        ...


@dataclass(frozen=True, eq=False)
class ChargeFlipping:
    """delta : flipping threshold in units of the r.m.s. density; weak : share of reflections whose phase is shifted."""

    problem: Problem
    delta: float = 1.1
    weak: float = 0.2
    name: str = "charge flipping"

    def _weak(self) -> torch.Tensor:
        target = self.problem.target
        moduli = target.amplitude[target.known & (target.amplitude > 0)]
        k = max(1, round(self.weak * moduli.numel()))
        return target.known & (target.amplitude < moduli.kthvalue(k).values)

    def advance(self, x: torch.Tensor, cycles: int) -> torch.Tensor:
        weak = self._weak()
        for _ in range(cycles):
            g = forward(flip(x, self.delta))
            half = torch.where(weak, g * 1j, with_amplitudes(g, self.problem.target, keep_mean=True))
            x = inverse(half, x.shape)
        return x

    def estimate(self, x: torch.Tensor) -> torch.Tensor:
        return forward(flip(x, self.delta))


@dataclass(frozen=True, eq=False)
class Relaxed:
    """Relaxed reflections with any density projection."""

    problem: Problem
    projection: Projection
    beta: float
    name: str
    keep_mean: bool = True

    def advance(self, x: torch.Tensor, cycles: int) -> torch.Tensor:
        for _ in range(cycles):
            b = self.projection(x)
            x = x + self.beta * (impose_amplitudes(2 * b - x, self.problem.target, self.keep_mean) - b)
        return x

    def estimate(self, x: torch.Tensor) -> torch.Tensor:
        return forward(self.projection(x))


@dataclass(frozen=True, eq=False)
class Alternating:
    """x <- P_A P_B x: only downhill, for finishing."""

    problem: Problem
    projection: Projection
    name: str = "error reduction"

    def advance(self, x: torch.Tensor, cycles: int) -> torch.Tensor:
        for _ in range(cycles):
            x = impose_amplitudes(self.projection(x), self.problem.target)
        return x

    def estimate(self, x: torch.Tensor) -> torch.Tensor:
        return forward(self.projection(x))


def sparse(fraction: float) -> Projection:
    """Keep the highest ``fraction`` of the density where it is positive: atoms are few and separate."""

    def project(rho: torch.Tensor) -> torch.Tensor:
        rows = rho.reshape(len(rho), -1)
        rows = rows[:, :: 1 + rows.shape[1] // QUANTILE_POINTS]
        n = rows.shape[1]
        k = max(1, min(n, round(n * (1 - fraction))))
        cut = rows.kthvalue(k, dim=1).values.clamp_min(0)[:, None, None, None]
        return rho * (rho > cut)

    return project
