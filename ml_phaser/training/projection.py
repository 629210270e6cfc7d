"""Lessons for the learned density projection: maps to restore, of every age (``chains``)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn

from ml_phaser.networks.projector import Projector, tell
from ml_phaser.phasing.projections import Target, forward, restore, unit_variance
from ml_phaser.simulate.batches import Batch
from ml_phaser.training.chains import Chains


@dataclass(frozen=True)
class Repair:
    """What is asked of the projection.

    own_cycles : from this fraction of the budget on, batches are gone on with for ``further`` cycles on average, or
        for long, so that the network learns to correct itself and to keep what is right
    told : share of the batches whose quality the network is told, within ``doubt``
    phases : weight of the loss on phases beside the one on density: least squares alone makes a network timid
    weighted : share of the batches that are cycled with amplitudes weighted by sigmaA
    """

    own_cycles: float = 0.1
    further: tuple[float, float] = (1.5, 60.0)
    told: float = 0.3
    doubt: float = 0.05
    phases: float = 1.0
    weighted: float = 0.3


def correlation(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Map correlation of each pair of zero-mean maps, (B,)."""
    axes = (1, 2, 3)
    return (a * b).sum(axes) / (a.pow(2).sum(axes) * b.pow(2).sum(axes)).sqrt().clamp_min(1e-12)


def phase_agreement(rho: torch.Tensor, true: torch.Tensor, target: Target) -> torch.Tensor:
    """Correlation (B,) with ``true`` maps of measured amplitudes with the phases of ``rho``; nearly so where a restored
    modulus is less than a tenth of the r.m.s. one, for the sake of its gradient."""
    half, truth = forward(rho), forward(true)
    weak = 0.1 * rho.detach().pow(2).mean(dim=(1, 2, 3), keepdim=True).sqrt()
    phasor = half / (half.abs().pow(2) + weak.pow(2)).sqrt()
    sides = torch.full_like(target.amplitude, 2.0)  # the half-complex array holds two of most Friedel pairs' sums
    sides[..., 0] = 1.0
    if rho.shape[-1] % 2 == 0:
        sides[..., -1] = 1.0
    weight = target.imposed * sides
    agreed = (weight * (phasor * truth.conj()).real).sum(dim=(1, 2, 3))
    return agreed / (weight * truth.abs()).sum(dim=(1, 2, 3)).clamp_min(1e-12)


class ProjectionLesson:
    """One step: a batch of maps, what the network makes of them, and how far that is from the truth."""

    def __init__(self, source: Iterator[Batch], repair: Repair, seed: int, device: str) -> None:
        """``seed`` : of the choice of the network's own cycles."""
        self.repair, self.device = repair, device
        self.draw = torch.Generator().manual_seed(seed)
        self.chains = Chains(source, self.draw, device)

    def step(self, network: nn.Module, used: float) -> tuple[torch.Tensor, dict[str, torch.Tensor], int]:
        asked = self.repair
        further = asked.further if used >= asked.own_cycles else (0.0, 0.0)
        chain = self.chains.next(further, asked.told, asked.weighted)
        batch, rho = chain.batch, unit_variance(chain.x)
        truth = chain.truth(rho)
        quality = correlation(rho, truth)
        cond = batch.cond
        if chain.told:
            doubt = asked.doubt * torch.randn(len(rho), generator=self.draw).to(self.device)
            cond = tell(cond, (quality + doubt).clamp(0, 1))
        restored = restore(cast(Projector, network), rho, batch.target, cond, batch.model)
        loss = (restored - truth).pow(2).mean()
        loss = loss + asked.phases * (1 - phase_agreement(restored, truth, batch.target)).mean()
        chain.advance(restored.detach())
        return loss, {"cc_gain": (correlation(restored.detach(), truth) - quality).mean()}, len(truth)


def projection_lessons(
    make_batches: Callable[[int], Iterator[Batch]], repair: Repair, seed: int, device: str = "cpu"
) -> Callable[[int], ProjectionLesson]:
    """For ``train``: given the number of steps done so far, lessons with crystals and choices not met before."""
    return lambda steps: ProjectionLesson(make_batches(steps), repair, 1_000_003 * seed + 1 + steps, device)
