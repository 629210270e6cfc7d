"""Dual-space cycles: iterated projection between measured amplitudes and what density may look like.

                      +--------- P_B: flipping, sparseness, or the learned projection <------+
                      v                                                                      |
    estimate P_B(x) --FFT--> F --measured moduli--> P_A --FFT--> next x ---------------------+

Charge flipping (Oszlanyi & Suto, Acta Cryst. A60, 134, 2004, with the weak-reflection shift of A61, 147, 2005) and
relaxed reflections, x <- x + beta (P_A(2 P_B(x) - x) - P_B(x)) (Elser, RRR; J. Opt. Soc. Am. A 20, 40, 2003), which
does not stop in traps as alternating projections do; and, for molecules in mostly empty cells, hybrid input-output
(Fienup, Appl. Opt. 21, 2758, 1982) within a support that shrinks onto the molecule (Marchesini et al., Phys. Rev. B 68,
140101, 2003).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ml_phaser import arrays
from ml_phaser.arrays import Array, Generator, namespace
from ml_phaser.phasing.problem import Problem
from ml_phaser.phasing.projections import (
    flip,
    forward,
    impose_amplitudes,
    inverse,
    regrid,
    unit_variance,
    with_amplitudes,
)  # fmt: skip

QUANTILE_POINTS = 10_000  # enough of a large grid to place a threshold

Projection = Callable[[Array], Array]


class Method(Protocol):
    """One way of cycling a batch of maps (B, u, v, w)."""

    @property
    def name(self) -> str: ...

    def advance(self, x: Array, cycles: int, done: int = 0) -> Array:
        """The state after some cycles more than the ``done`` it has seen, for methods that change along the way."""
        ...

    def estimate(self, x: Array) -> Array:
        """Half-complex coefficients of the density the state stands for."""
        ...


@dataclass(frozen=True, eq=False)
class ChargeFlipping:
    """delta : flipping threshold in units of the r.m.s. density; weak : share of reflections whose phase is shifted."""

    problem: Problem
    delta: float = 1.1
    weak: float = 0.2
    name: str = "charge flipping"

    def _weak(self) -> Array:
        target = self.problem.target
        moduli = target.amplitude[target.known & (target.amplitude > 0)]
        k = max(1, round(self.weak * len(moduli)))
        return target.known & ~target.seeded & (target.amplitude < arrays.kth(moduli, k))

    def advance(self, x: Array, cycles: int, done: int = 0) -> Array:
        weak = self._weak()
        for _ in range(cycles):
            g = forward(flip(x, self.delta))
            half = namespace(g).where(weak, g * 1j, with_amplitudes(g, self.problem.target, keep_mean=True))
            x = inverse(half, x.shape)
        return x

    def estimate(self, x: Array) -> Array:
        return forward(flip(x, self.delta))


@dataclass(frozen=True, eq=False)
class Relaxed:
    """Relaxed reflections with any density projection."""

    problem: Problem
    projection: Projection
    beta: float
    name: str
    keep_mean: bool = True

    def advance(self, x: Array, cycles: int, done: int = 0) -> Array:
        for _ in range(cycles):
            b = self.projection(x)
            x = x + self.beta * (impose_amplitudes(2 * b - x, self.problem.target, self.keep_mean) - b)
        return x

    def estimate(self, x: Array) -> Array:
        return forward(self.projection(x))


@dataclass(frozen=True, eq=False)
class Shaped:
    """Random starts on ``problem``, shaped by a quicker ``method`` on its own problem ``before`` for some cycles."""

    problem: Problem
    method: Method
    before: Problem
    cycles: int

    def random_starts(self, count: int, generator: Generator) -> Array:
        """Maps (count, u, v, w)."""
        x = self.method.advance(self.before.random_starts(count, generator), self.cycles)
        half = regrid(self.method.estimate(x), self.problem.shape)
        return unit_variance(inverse(with_amplitudes(half, self.problem.target), self.problem.shape))


@dataclass(frozen=True, eq=False)
class Alternating:
    """x <- P_A P_B x: only downhill, for finishing."""

    problem: Problem
    projection: Projection
    name: str = "error reduction"

    def advance(self, x: Array, cycles: int, done: int = 0) -> Array:
        for _ in range(cycles):
            x = impose_amplitudes(self.projection(x), self.problem.target)
        return x

    def estimate(self, x: Array) -> Array:
        return forward(self.projection(x))


@dataclass(frozen=True, eq=False)
class ShrinkWrap:
    """Hybrid input-output with positivity in a support renewed from the map itself, error reduction at the end.

    share : of the cell that the support fills; beta : of the feedback outside; cycles : of a whole run, the last
    ``ending`` of them error reduction; renew : cycles a support lasts; smooth : widths, in grid points, of the
    Gaussian the map is smoothed with for the first and the last support
    """

    problem: Problem
    share: float
    name: str = "shrink-wrap HIO"
    beta: float = 0.9
    cycles: int = 400
    ending: int = 40
    renew: int = 20
    smooth: tuple[float, float] = (3.0, 1.0)

    def advance(self, x: Array, cycles: int, done: int = 0) -> Array:
        hybrid = self.cycles - self.ending
        inside: Array = None
        for cycle in range(done, done + cycles):
            y = impose_amplitudes(x, self.problem.target, keep_mean=True)
            if inside is None or cycle % self.renew == 0:
                inside = self.support(y, min(1.0, cycle / hybrid))
            x = namespace(x).where(inside & (y > 0), y, x - self.beta * y if cycle < hybrid else 0.0)
        return x

    def support(self, rho: Array, progress: float) -> Array:
        """The highest ``share`` of each smoothed map, bool; ``progress`` 0-1 of the shrinking."""
        first, last = self.smooth
        kernel = gaussian(tuple(rho.shape[-3:]), first + (last - first) * progress)
        soft = inverse(forward(rho) * arrays.beside(kernel, rho), rho.shape)
        return soft > _quantile(soft, 1 - self.share)

    def project(self, rho: Array) -> Array:
        """What is positive within the last support."""
        return rho * (self.support(rho, 1.0) & (rho > 0))

    def estimate(self, x: Array) -> Array:
        return forward(self.project(impose_amplitudes(x, self.problem.target, keep_mean=True)))


def gaussian(shape: tuple[int, ...], width: float) -> NDArray[np.float32]:
    """Factors (u, v, w // 2 + 1) on half-complex coefficients that smooth a periodic map by ``width`` grid points."""
    u, v, w = shape
    axes = (np.fft.fftfreq(u), np.fft.fftfreq(v), np.fft.rfftfreq(w))
    a, b, c = (np.exp(-2 * (np.pi * width * k) ** 2) for k in axes)
    return (a[:, None, None] * b[:, None] * c).astype(np.float32)


def sparse(fraction: float) -> Projection:
    """Keep the highest ``fraction`` of the density where it is positive: atoms are few and separate."""

    def project(rho: Array) -> Array:
        return rho * (rho > _quantile(rho, 1 - fraction).clip(min=0))

    return project


def _quantile(rho: Array, share: float) -> Array:
    """Value (B, 1, 1, 1) that ``share`` of each map's points do not exceed, from a sample of a large grid."""
    rows = rho.reshape(len(rho), -1)
    rows = rows[:, :: 1 + rows.shape[1] // QUANTILE_POINTS]
    n = rows.shape[1]
    k = max(1, min(n, round(n * share)))
    return arrays.kth(rows, k)[:, None, None, None]
