"""Inputs of every age: fresh maps of known error, and what the network and the engine made of earlier ones.

A batch of crystals is trained on, cycled as the engine would cycle it, put back and trained on again some steps later.
So the network learns to mend what it did itself, at the price of no pass more than it is trained in. A few batches are
kept for long: slow drift away from the truth shows only after many cycles, and what is not shown is not mended.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from ml_phaser import arrays
from ml_phaser.phasing.projections import Target, forward, impose_amplitudes, inverse, unit_variance, unknown
from ml_phaser.phasing.weighting import LEAST, MOST, sim_argument
from ml_phaser.simulate.batches import Batch

BETA = 0.6  # of relaxed reflections, as in the engine
HELD = 0.08  # of the reflections of a weighted chain: kept from the network, to tell sigmaA
LOST = 0.4  # map correlation below which a map has no origin of its own: chance finds 0.2-0.3 at some origin


def shifted(rho: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """Maps (B, u, v, w), band-limited below the grid's highest frequencies, moved by ``shift`` (B, 3) grid points."""
    half = forward(rho)
    u, v, w = rho.shape[-3:]
    axes = (torch.fft.fftfreq(u), torch.fft.fftfreq(v), torch.fft.rfftfreq(w))
    phase = sum(
        (f.to(shift)[None] * shift[:, i : i + 1]).reshape(-1, *(len(f) if j == i else 1 for j in range(3)))
        for i, f in enumerate(axes)
    )
    return inverse(half * torch.polar(torch.ones_like(phase), -2 * math.pi * phase), rho.shape)


def best_shift(rho: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Shifts (B, 3), grid points, of ``truth`` that make it agree best with ``rho``, to a fraction of a point."""
    agreement = inverse(forward(rho) * forward(truth).conj(), rho.shape)
    flat = agreement.flatten(1).argmax(dim=1)
    place = torch.stack(torch.unravel_index(flat, agreement.shape[1:]), dim=1)  # (B, 3)
    batch = torch.arange(len(rho), device=rho.device)
    shift = place.to(rho)
    for axis in range(3):  # the top of the parabola through three neighbours
        step = torch.zeros_like(place)
        step[:, axis] = 1
        size = torch.tensor(agreement.shape[1:], device=rho.device)
        low, top, high = (agreement[(batch, *((place + k * step) % size).T)] for k in (-1, 0, 1))
        curve = (low - 2 * top + high).clamp_max(-1e-12)
        shift[:, axis] += (0.5 * (low - high) / curve).clamp(-0.5, 0.5)
    return shift


@dataclass(frozen=True, eq=False)
class Witness:
    """What tells how far the phases of a batch's maps are to be believed, as ``phasing.weighting`` does for a crystal.

    e : (B, u, v, w') measured E, 0 where there is none; to_e : what turns moduli into E; held : bool, kept from the
        network
    """

    e: torch.Tensor
    to_e: torch.Tensor
    held: torch.Tensor

    @classmethod
    def of(cls, target: Target, shape: tuple[int, ...], draw: torch.Generator) -> Witness:
        """A share HELD of the known reflections is held out, both mates of a pair or neither."""
        noise = forward(torch.randn(shape, generator=draw)).abs().to(target.amplitude.device)
        held = target.known & (target.to_e > 0) & (noise < math.sqrt(-math.log(1 - HELD)))
        return cls(levelled(target.amplitude * target.to_e), target.to_e, held)

    def without(self, target: Target) -> Target:
        """A target that does not know what is held out."""
        return replace(target, known=target.known & ~self.held, to_e=target.to_e * ~self.held)

    def weighted(self, restored: torch.Tensor, target: Target) -> torch.Tensor:
        """Maps of measured amplitudes with the phases of ``restored`` and Sim's weights, what is not known as it is in
        ``restored``, on the scale of the measured."""
        half = forward(restored)
        e = levelled(half.abs() * self.to_e)
        square = masked_correlation(e**2, self.e**2, self.held).clamp(LEAST, MOST)
        weight = arrays.sim(sim_argument(e, self.e, square))
        modulus = half.abs().clamp_min(1e-20)
        out = target.imposed * weight * half / modulus + unknown(half, target)
        return inverse(out, restored.shape)


def levelled(e: torch.Tensor) -> torch.Tensor:
    """E (B, ...) with a mean square of 1 where it is not 0."""
    count = (e > 0).sum(dim=(1, 2, 3), keepdim=True).clamp_min(1)
    return e / (e.pow(2).sum(dim=(1, 2, 3), keepdim=True) / count).sqrt().clamp_min(1e-20)


def masked_correlation(x: torch.Tensor, y: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    """Correlation (B, 1, 1, 1) of two arrays (B, ...) over the places ``where`` of each."""
    count = where.sum(dim=(1, 2, 3), keepdim=True).clamp_min(1)
    x, y = ((v - (v * where).sum(dim=(1, 2, 3), keepdim=True) / count) * where for v in (x, y))
    norm = (x.pow(2).sum(dim=(1, 2, 3), keepdim=True) * y.pow(2).sum(dim=(1, 2, 3), keepdim=True)).sqrt()
    return (x * y).sum(dim=(1, 2, 3), keepdim=True) / norm.clamp_min(1e-20)


@dataclass
class Chain:
    """A batch under way. x: its maps; left: times it is still to be trained on; relaxed: cycled by relaxed reflections,
    else by plain alternation, with weights if there is a witness; told: whether the network is told how good its input
    is; old: cycled before."""

    batch: Batch
    x: torch.Tensor
    left: int
    relaxed: bool
    told: bool
    old: bool = False
    witness: Witness | None = None

    def truth(self, rho: torch.Tensor) -> torch.Tensor:
        """The maps to restore ``rho`` to: the true ones, at the origin that fits best where phases began at random or
        have come to be lost since."""
        truth, adrift = self.batch.truth, self.batch.adrift
        if self.old:
            adrift = adrift | ((unit_variance(truth) * rho).mean(dim=(1, 2, 3)) < LOST)
        if not bool(adrift.any()):
            return truth
        truth = truth.clone()
        truth[adrift] = shifted(truth[adrift], best_shift(rho[adrift], truth[adrift]))
        return truth

    def advance(self, restored: torch.Tensor) -> None:
        """One cycle of the engine on, given what the network made of ``x``."""
        target = self.batch.target
        if self.witness is not None:
            self.x = unit_variance(self.witness.weighted(restored, target))
        elif self.relaxed:
            self.x = self.x + BETA * (impose_amplitudes(2 * restored - self.x, target) - restored)
        else:
            self.x = unit_variance(impose_amplitudes(restored, target))
        self.left -= 1
        self.old = True


class Chains:
    """Some chains at once, one of them drawn for each step; the first ``LONG`` are gone on with for long."""

    LONG = 2

    def __init__(self, source: Iterator[Batch], draw: torch.Generator, device: str, count: int = 8) -> None:
        self.source, self.draw, self.device = source, draw, device
        self.slots: list[Chain | None] = [None] * count

    def next(self, further: tuple[float, float], told: float, weighted: float = 0.0) -> Chain:
        """A chain with at least one step left.

        Parameters
        ----------
        further : mean number of cycles a new batch is gone on with, as a rule and for long
        told, weighted : shares of new batches whose quality is told, and that are cycled with weights
        """
        slot = int(torch.randint(len(self.slots), (), generator=self.draw))
        chain = self.slots[slot]
        if chain is None or chain.left <= 0:
            chain = self.slots[slot] = self.begin(further[slot < self.LONG], told, weighted)
        return chain

    def begin(self, further: float, told: float, weighted: float = 0.0) -> Chain:
        batch, witness = next(self.source).to(self.device), None
        chance = torch.rand(4, generator=self.draw).tolist()
        cycles = int(-further * math.log(max(chance[0], 1e-9)))  # exponential: few chains go on for long
        if chance[3] < weighted:
            witness = Witness.of(batch.target, tuple(batch.truth.shape), self.draw)
            batch = replace(batch, target=witness.without(batch.target), start=batch.start * ~witness.held)
        return Chain(batch, batch.start_maps(), 1 + cycles, chance[1] < 0.5, chance[2] < told, witness=witness)
