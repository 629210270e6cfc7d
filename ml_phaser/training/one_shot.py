"""Lessons for the one-shot networks: Patterson map in, density out, its own predictions recycled.

Pan et al. and Dun et al. train by the mean squared error of maps scaled to -1 ... 1 (Pan: "after determining the
maximum and minimum values present in each"), Pan's larger runs with a little of 1 - the Pearson correlation beside it.
``free`` compares with the truth at whatever origin and hand fit best: what a Patterson map does not tell is then not
asked for.
Recycling: the network is shown its own prediction with the measured amplitudes put back, none to ``recycles`` times,
drawn anew for each batch. Some batches are under way at once, one pass of one of them a step, so that every pass is
learned from and none is made for its result alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import nn

from ml_phaser.phasing.prediction import corrected, one_pass, scaled
from ml_phaser.phasing.projections import unit_variance
from ml_phaser.simulate.one_shot import OneShotBatch
from ml_phaser.training.chains import best_shift, shifted

EPSILON = 1e-6  # within its roots


@dataclass(frozen=True)
class Asked:
    """What is asked of a one-shot network.

    loss : "mse", "mse+pearson" or "free"; pearson : weight of 1 - correlation beside the squared error (but for "mse")
    recycles : most earlier predictions, each shown to the next pass
    hidden : share of the batches whose maps of residues, if there are any, are not shown: a sequence may not be known
    """

    loss: str = "mse+pearson"
    pearson: float = 0.1
    recycles: int = 2
    hidden: float = 0.25


def pearson(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Correlation (B,) of maps, Pan et al.'s equation 7; 0, with a gradient, where a map is flat."""
    a, b = (x - x.mean(dim=(1, 2, 3), keepdim=True) for x in (a, b))
    size = (a.pow(2).sum(dim=(1, 2, 3)) + EPSILON) * (b.pow(2).sum(dim=(1, 2, 3)) + EPSILON)
    return (a * b).sum(dim=(1, 2, 3)) / size.sqrt()


def mirrored(rho: torch.Tensor) -> torch.Tensor:
    """rho(-x): the other hand, with the same Patterson map."""
    return torch.roll(rho.flip((1, 2, 3)), (1, 1, 1), (1, 2, 3))


def nearest(truth: torch.Tensor, predicted: torch.Tensor) -> torch.Tensor:
    """Of all origins and both hands of true maps those that agree best with what was predicted."""
    candidates = []
    for hand in (truth, mirrored(truth)):
        candidates.append(shifted(hand, best_shift(predicted, hand)))
    first, second = candidates
    better = pearson(first, predicted) >= pearson(second, predicted)
    return torch.where(better[:, None, None, None], first, second)


def loss_of(predicted: torch.Tensor, truth: torch.Tensor, asked: Asked) -> torch.Tensor:
    """The loss of predictions in -1 ... 1 against true maps of any scale."""
    if asked.loss == "free":
        truth = nearest(truth, unit_variance(predicted.detach()))
    loss = (predicted - scaled(truth)).pow(2).mean()
    return loss if asked.loss == "mse" else loss + asked.pearson * (1 - pearson(predicted, truth)).mean()


@dataclass
class UnderWay:
    """A batch, what the last pass made of it with measured amplitudes (B, 1, u, v, w), and the passes left."""

    batch: OneShotBatch
    recycled: torch.Tensor
    left: int


class OneShotLesson:
    """One step: a pass over a batch of Patterson maps, and how far what the network makes of them is from the truth."""

    def __init__(self, source: Iterator[OneShotBatch], asked: Asked, seed: int) -> None:
        self.source, self.asked = source, asked
        self.draw = torch.Generator().manual_seed(seed)
        self.slots: list[UnderWay | None] = [None] * (asked.recycles + 1)

    def step(self, network: nn.Module, used: float) -> tuple[torch.Tensor, dict[str, torch.Tensor], int]:
        turn = int(torch.randint(len(self.slots), (), generator=self.draw))
        now = self.slots[turn]
        if now is None or now.left <= 0:
            batch = next(self.source)
            if batch.parts.shape[1] and float(torch.rand((), generator=self.draw)) < self.asked.hidden:
                batch = replace(batch, parts=torch.zeros_like(batch.parts))
            most = self.asked.recycles if network.config.recycled else 0  # type: ignore[union-attr]
            passes = 1 + int(torch.randint(most + 1, (), generator=self.draw))
            now = self.slots[turn] = UnderWay(batch, torch.zeros_like(batch.truth)[:, None], passes)
        batch = now.batch
        predicted = one_pass(network, batch.half, now.recycled, batch.parts, batch.lengths)
        loss = loss_of(predicted, batch.truth, self.asked)
        now.left -= 1
        now.recycled = corrected(predicted.detach(), batch.half)[:, None]
        return loss, {"cc": pearson(predicted.detach(), batch.truth).mean()}, len(batch.truth)


def one_shot_lessons(
    make_batches: Callable[[int], Iterator[OneShotBatch]], asked: Asked, seed: int
) -> Callable[[int], OneShotLesson]:
    """For ``train``: given the number of steps done so far, lessons with crystals not met before."""
    return lambda steps: OneShotLesson(make_batches(steps), asked, 1_000_003 * seed + steps)
