"""Solvent: where a density varies little, what it varies by is noise.

A network that looks at a few Angstrom at a time makes protein of solvent, and less of what is protein where the map is
poor. What tells the two apart is the variance of the density around a point: it is low in solvent, as that is flat
(Wang, Methods Enzymol. 115, 90, 1985; Leslie, Acta Cryst. A43, 134, 1987; by variance: Abrahams & Leslie, Acta Cryst.
D52, 30, 1996). Two ways to use it, of which neither is always the better (docs/decisions/0032-solvent.md):

    flat : what varies least is brought to one level, over a wide range, with a smooth edge
    noise : everywhere the share of the variance is kept that is not noise, 1 - v0 / v, v0 that of the flattest part
        (Wiener's filter, with the variance of a short range)

How much of a cell is solvent is not known here; both forgive a share that is wrong by half.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ml_phaser import arrays
from ml_phaser.arrays import Array
from ml_phaser.phasing.dual_space import Projection
from ml_phaser.phasing.problem import Problem
from ml_phaser.phasing.projections import forward, inverse


@dataclass(frozen=True)
class Veil:
    """What is taken from a density.

    share : of the cell that varies least, taken to be solvent; reach : A, standard deviation of the Gaussian that the
    variance is averaged with; power : steepness of the edge of what is brought to one level; 0: Wiener's filter
    """

    name: str
    share: float
    reach: float
    power: float = 0.0


FLAT = Veil("flat solvent", 0.45, 5.0, 12.0)
NOISE = Veil("noise off", 0.2, 2.5)
VEILS = (FLAT, NOISE)


@dataclass(frozen=True, eq=False)
class Veiled:
    """A density projection with a veil over what it makes; maps (B, u, v, w) to such."""

    projection: Projection
    problem: Problem
    veil: Veil

    def __call__(self, rho: Array) -> Array:
        with arrays.no_gradients(rho):
            return self.drawn(self.projection(rho))

    def drawn(self, rho: Array) -> Array:
        """The density with the veil over it."""
        variance = inverse(forward(rho**2) * self._kernel, self.problem.shape).clip(min=1e-12)
        count = max(1, round(self.veil.share * self.problem.points))
        flat = arrays.kth(variance.reshape(len(rho), -1), count)[:, None, None, None]
        there = variance <= flat
        level = (rho * there).sum(axis=arrays.AXES, keepdims=True) / count
        if self.veil.power:
            kept = 1 / (1 + (flat / variance) ** self.veil.power)
        else:
            noise = (variance * there).sum(axis=arrays.AXES, keepdims=True) / count
            kept = (1 - noise / variance).clip(min=0)
        return level + (rho - level) * kept

    @cached_property
    def _kernel(self) -> Array:
        """Transform (u, v, w') of the Gaussian."""
        u, v, w = self.problem.shape
        axes = (np.fft.fftfreq(u, 1 / u), np.fft.fftfreq(v, 1 / v), np.arange(w // 2 + 1))
        indices = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).round().astype(np.int32)
        square = self.problem.cell.calculate_1_d2_array(indices.reshape(-1, 3)).reshape(indices.shape[:3])
        kernel = np.exp(-2 * np.pi**2 * square * self.veil.reach**2).astype(np.float32)
        return arrays.beside(kernel, self.problem.target.amplitude)


def ways(projection: Projection, problem: Problem, veils: Sequence[Veil]) -> dict[str, Projection]:
    """The projection as it is, by the empty name, and with each veil, by its name."""
    return {"": projection, **{veil.name: Veiled(projection, problem, veil) for veil in veils}}
