"""The projections a dual-space cycle is made of, on batches of maps.

Arrays are torch tensors or numpy arrays (``ml_phaser.arrays``). Maps are (B, u, v, w) real; reciprocal arrays are
half-complex (B or 1, u, v, w // 2 + 1) with the conventions of ``crystal.grid`` and orthonormal transforms, so that
mean(rho^2) = sum |F|^2 / N over the full sphere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from ml_phaser import arrays
from ml_phaser.arrays import AXES, Array, namespace


@dataclass(frozen=True)
class Target:
    """What is known in reciprocal space.

    amplitude : half-complex places, real: |F| (0 where unknown); known : bool, imposed by the projection
    inside : bool, within the resolution sphere; outside of it density is band-limited to nothing
    to_e : real, factors that turn the known moduli into E, 0 elsewhere
    seeds : half-complex structure factors imposed phase and all, 0 where the phase is free; None: all phases are free
    most : real, modulus that ``unknown`` does not exceed; None: any
    """

    amplitude: Array
    known: Array
    inside: Array
    to_e: Array
    seeds: Array | None = None
    most: Array | None = None

    @cached_property
    def imposed(self) -> Array:
        """Moduli to impose, 0 where nothing is known."""
        return self.amplitude * self.known

    @cached_property
    def free(self) -> Array:
        """1 within the sphere where nothing is known, else 0."""
        return arrays.astype(self.inside & ~self.known, self.amplitude)

    @cached_property
    def seeded(self) -> Array:
        """bool, where the phase is imposed too."""
        return namespace(self.known).zeros_like(self.known) if self.seeds is None else self.seeds != 0

    def to(self, device: Any) -> Target:
        """On a torch device."""
        seeds, most = (None if a is None else a.to(device) for a in (self.seeds, self.most))
        amplitude, known, inside, to_e = (t.to(device) for t in (self.amplitude, self.known, self.inside, self.to_e))
        return Target(amplitude, known, inside, to_e, seeds, most)


def forward(rho: Array) -> Array:
    """Half-complex coefficients of maps."""
    return arrays.rfftn(rho)


def inverse(half: Array, shape: tuple[int, ...]) -> Array:
    """Maps of half-complex coefficients; ``shape`` is (..., u, v, w)."""
    return arrays.irfftn(half, tuple(shape[-3:]))


def regrid(half: Array, shape: tuple[int, ...]) -> Array:
    """Half-complex coefficients (B, u, v, w') on the grid ``shape`` (u, v, w): those both grids hold, else 0."""
    count, u, v, w = half.shape
    out = arrays.zeros((count, shape[0], shape[1], shape[2] // 2 + 1), half)
    a, b, c = (
        min(m - 1, n - 1) // 2 for m, n in zip((u, v, 2 * w - 1), shape, strict=True)
    )  # below both grids' limits
    rows, columns = np.arange(-a, a + 1)[:, None], np.arange(-b, b + 1)
    out[:, rows % shape[0], columns % shape[1], : c + 1] = half[:, rows % u, columns % v, : c + 1]
    return out


def with_amplitudes(half: Array, target: Target, keep_mean: bool = False) -> Array:
    """Measured moduli with the phases of ``half``; what was not measured is left as it stands, F(000) on request."""
    out = half * (target.imposed / abs(half).clip(min=1e-20) + target.free)
    if target.seeds is not None:
        out = namespace(half).where(target.seeded, target.seeds, out)
    out[..., 0, 0, 0] = half[..., 0, 0, 0] if keep_mean else 0
    return out


def impose_amplitudes(rho: Array, target: Target, keep_mean: bool = False) -> Array:
    """The reciprocal-space projection: the map nearest to rho that has the measured amplitudes."""
    return inverse(with_amplitudes(forward(rho), target, keep_mean), rho.shape)


def measured_scale(modulus: Array, target: Target) -> Array:
    """Factor (B, 1, 1, 1) that brings the moduli (B, u, v, w') of maps to those measured."""
    there = ((modulus * (target.imposed > 0)) ** 2).sum(axis=AXES, keepdims=True)
    return ((target.imposed**2).sum(axis=AXES, keepdims=True) / there.clip(min=1e-20)) ** 0.5


def unknown(half: Array, target: Target) -> Array:
    """Coefficients of maps where nothing is known, on the scale of the measured moduli and no larger than ``most``, and
    0 elsewhere: what cycles of weighted amplitudes are filled up with.

    Without a limit a few of them grow from cycle to cycle, fed by nothing but themselves, to many times what any
    reflection of the crystal has (docs/decisions/0035-unknown-reflections.md)."""
    out = half * target.free * measured_scale(abs(half), target)
    return out if target.most is None else out * (target.most / abs(out).clip(min=1e-20)).clip(max=1)


def rms(rho: Array) -> Array:
    """Root mean square over each cell, (..., 1, 1, 1)."""
    return (rho**2).mean(axis=AXES, keepdims=True) ** 0.5


def unit_variance(rho: Array) -> Array:
    """Zero mean and unit variance over each cell."""
    centred = rho - rho.mean(axis=AXES, keepdims=True)
    return centred / rms(centred).clip(min=1e-12)


def sharpened(rho: Array, target: Target) -> Array:
    """The map of E with the phases of ``rho``, unit variance; of known reflections alone."""
    return unit_variance(inverse(forward(rho) * target.to_e, rho.shape))


class Restorer(Protocol):
    """A network of the learned projection: maps (B, 3, u, v, w) and conditions -> density (B, u, v, w)."""

    def __call__(self, maps: Array, cond: Array) -> Array: ...


def restore(network: Restorer, rho: Array, target: Target, cond: Array, model: Array | None = None) -> Array:
    """What the network makes of maps of unit variance, seeing beside them the map of E and that of a placed ``model``
    (B, u, v, w), of unit variance, if there is one."""
    xp = namespace(rho)
    other = xp.zeros_like(rho) if model is None else xp.broadcast_to(model, rho.shape)
    maps = xp.stack([rho, sharpened(rho, target), other], axis=1)
    if not arrays.is_torch(rho):
        return network(maps, cond)
    import torch

    kind = rho.device.type
    with torch.autocast(kind, dtype=torch.bfloat16, enabled=has_bfloat16(kind)):
        return network(maps, cond).float()


def has_bfloat16(kind: str) -> bool:
    """Whether a "cuda" or "cpu" device calculates in bfloat16 itself (1.6-2.7 times as quick as in float32); where it
    does not, pretending to is slower."""
    import torch

    if kind == "cuda":
        return torch.cuda.is_bf16_supported()
    able: Callable[[], bool] = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)  # torch 2.6 and later
    return able()


def flip(rho: Array, delta: float) -> Array:
    """Charge flipping (Oszlanyi & Suto, Acta Cryst. A60, 134, 2004): density below delta x r.m.s. changes its sign."""
    threshold = delta * rms(rho)
    return namespace(rho).where(rho < threshold, -rho, rho)
