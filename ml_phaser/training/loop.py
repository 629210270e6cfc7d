"""The training loop: budgeted by wall clock, resumable, the same on CPU and GPU."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ml_phaser.networks.projector import Projector, ProjectorConfig
from ml_phaser.phasing.projections import forward, inverse, unit_variance, with_amplitudes
from ml_phaser.simulate.batches import Batch


@dataclass(frozen=True)
class Schedule:
    """How to train.

    seconds : wall-clock budget over all sessions; the learning rate falls to zero as a cosine over it
    own_cycles : after this fraction of the budget, a share of the inputs are the network's own earlier cycles, so
        that it learns to correct itself and to keep what is right
    """

    seconds: float
    batch: int = 8
    rate: float = 2e-3
    warmup: float = 0.01
    weight_decay: float = 1e-4
    average: float = 0.999
    own_cycles: float = 0.25
    own_share: float = 0.5
    most_cycles: int = 4
    save_every: float = 300.0


def correlation(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Map correlation of each pair of zero-mean maps, (B,)."""
    axes = (1, 2, 3)
    return (a * b).sum(axes) / (a.pow(2).sum(axes) * b.pow(2).sum(axes)).sqrt().clamp_min(1e-12)


@torch.no_grad()
def own_cycles(network: Projector, batch: Batch, rho: torch.Tensor, cycles: int) -> torch.Tensor:
    """Maps after some cycles of projection and amplitude replacement, as in the engine."""
    for _ in range(cycles):
        half = with_amplitudes(forward(network(rho, batch.cond)), batch.target)
        rho = unit_variance(inverse(half, rho.shape))
    return rho


def learning_rate(schedule: Schedule, used: float) -> float:
    """Rate after a fraction ``used`` (0-1) of the budget."""
    if used < schedule.warmup:
        return schedule.rate * used / schedule.warmup
    return schedule.rate * 0.5 * (1 + math.cos(math.pi * min(1.0, used)))


@dataclass
class State:
    """Everything a resumed run needs."""

    network: Projector
    mean: dict[str, torch.Tensor]
    optimiser: torch.optim.Optimizer
    seconds: float = 0.0
    steps: int = 0

    def save(self, path: Path) -> None:
        part = path.with_suffix(".part")
        torch.save(
            {"network": self.network.state_dict(), "mean": self.mean, "optimiser": self.optimiser.state_dict(),
             "seconds": self.seconds, "steps": self.steps, "config": asdict(self.network.config)},
            part,
        )  # fmt: skip
        part.replace(path)

    def load(self, path: Path, device: str) -> None:
        saved = torch.load(path, map_location=device, weights_only=True)
        self.network.load_state_dict(saved["network"])
        self.mean = saved["mean"]
        self.optimiser.load_state_dict(saved["optimiser"])
        self.seconds, self.steps = saved["seconds"], saved["steps"]


def train(
    config: ProjectorConfig,
    schedule: Schedule,
    make_batches: Callable[[int], Iterator[Batch]],
    out: Path,
    *,
    device: str = "cpu",
    session: float = math.inf,
    say: Callable[[str], None] = lambda _: None,
) -> State:
    """Train, or go on training, until the budget or this session's share of it is spent.

    Parameters
    ----------
    make_batches : given a seed, an endless iterator of batches; a resumed run asks for a fresh seed
    out : folder of checkpoint.pt (resumed from if there) and log.jsonl
    session : seconds this call may take
    """
    out.mkdir(parents=True, exist_ok=True)
    checkpoint = out / "checkpoint.pt"
    network = Projector(config).to(device)
    optimiser = torch.optim.AdamW(network.parameters(), lr=schedule.rate, weight_decay=schedule.weight_decay)
    state = State(network, {k: v.clone() for k, v in network.state_dict().items()}, optimiser)
    if checkpoint.exists():
        state.load(checkpoint, device)
        say(f"resumed after {state.seconds:.0f} s, {state.steps} steps")
    draw = torch.Generator().manual_seed(1 + state.steps)
    source = make_batches(1 + state.steps)
    started = last_save = time.monotonic()
    before = state.seconds
    losses: list[float] = []
    gains: list[float] = []
    while state.seconds < schedule.seconds and time.monotonic() - started < session:
        batch = next(source).to(device)
        used = state.seconds / schedule.seconds
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(schedule, used)
        rho = batch.start_maps()
        with torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda"):
            if used > schedule.own_cycles and torch.rand((), generator=draw) < schedule.own_share:
                n = int(torch.randint(1, schedule.most_cycles + 1, (), generator=draw))
                rho = own_cycles(network, batch, rho, n)
            out_map = network(rho, batch.cond)
        loss = (out_map.float() - batch.truth).pow(2).mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        state.steps += 1
        decay = min(schedule.average, state.steps / (state.steps + 10))
        for name, value in network.state_dict().items():
            state.mean[name].lerp_(value, 1 - decay)
        state.seconds = before + time.monotonic() - started
        losses.append(float(loss.detach()))
        gains.append(float((correlation(out_map.detach().float(), batch.truth) - correlation(rho, batch.truth)).mean()))
        if len(losses) == 100:
            row: dict[str, Any] = {
                "step": state.steps, "samples": state.steps * schedule.batch, "seconds": round(state.seconds, 1),
                "loss": round(sum(losses) / 100, 4), "cc_gain": round(sum(gains) / 100, 4),
            }  # fmt: skip
            with (out / "log.jsonl").open("a") as log:
                log.write(json.dumps(row) + "\n")
            say(json.dumps(row))
            losses.clear()
            gains.clear()
        if time.monotonic() - last_save > schedule.save_every:
            state.save(checkpoint)
            last_save = time.monotonic()
    state.save(checkpoint)
    return state
