"""From amplitudes to density in one shot: a network sees the Patterson map, then its own prediction corrected.

A prediction with the measured amplitudes put back is shown to the network again ("recycling").
"""

from __future__ import annotations

from typing import Protocol

import torch

from ml_phaser.phasing.projections import forward, has_bfloat16, inverse, unit_variance


class OneShot(Protocol):
    """A one-shot network: Patterson maps (B, 1, u, v, w) in -1 ... 1, maps of residues by themselves (B, J, u, v, w),
    an earlier prediction with measured amplitudes (B, 1, u, v, w) or zeros, cell edges (B, 3) in A -> density
    (B, u, v, w)."""

    def __call__(
        self, patterson: torch.Tensor, parts: torch.Tensor, recycled: torch.Tensor, lengths: torch.Tensor
    ) -> torch.Tensor: ...


def scaled(rho: torch.Tensor) -> torch.Tensor:
    """Maps (B, u, v, w) brought to -1 ... 1 each."""
    low, high = rho.amin(dim=(1, 2, 3), keepdim=True), rho.amax(dim=(1, 2, 3), keepdim=True)
    return 2 * (rho - low) / (high - low).clamp_min(1e-12) - 1


def patterson(half: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """Patterson maps (B, u, v, w) in -1 ... 1 of half-complex coefficients."""
    square = half.abs().pow(2)
    return scaled(inverse(torch.complex(square, torch.zeros_like(square)), shape))


def corrected(predicted: torch.Tensor, half: torch.Tensor) -> torch.Tensor:
    """Predicted maps with the moduli of ``half``, unit variance: nothing where nothing was measured."""
    own = forward(predicted)
    return unit_variance(inverse(own / own.abs().clamp_min(1e-12) * half.abs(), predicted.shape))


def one_pass(
    network: OneShot, half: torch.Tensor, recycled: torch.Tensor, parts: torch.Tensor, lengths: torch.Tensor
) -> torch.Tensor:
    """What the network predicts, (B, u, v, w) in -1 ... 1.

    Parameters
    ----------
    half : half-complex coefficients whose moduli are the measured ones; parts, lengths : as ``OneShot`` wants them
    recycled : (B, 1, u, v, w), an earlier prediction, ``corrected``, or zeros
    """
    seen = patterson(half, recycled.shape[2:])[:, None]
    kind = seen.device.type
    with torch.autocast(kind, dtype=torch.bfloat16, enabled=has_bfloat16(kind)):
        predicted = network(seen, parts, recycled, lengths)
    return predicted.float()


def predict(
    network: OneShot, half: torch.Tensor, shape: tuple[int, int, int], parts: torch.Tensor, lengths: torch.Tensor,
    passes: int,
) -> list[torch.Tensor]:  # fmt: skip
    """Predictions (B, u, v, w) after each of ``passes`` passes, without gradients; see ``one_pass``."""
    found: list[torch.Tensor] = []
    recycled = torch.zeros((len(half), 1, *shape), dtype=torch.float32, device=half.device)
    with torch.no_grad():
        for _ in range(passes):
            found.append(one_pass(network, half, recycled, parts, lengths))
            recycled = corrected(found[-1], half)[:, None]
    return found
