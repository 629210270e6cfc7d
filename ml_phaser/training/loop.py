"""The training loop: budgeted by wall clock, resumable, the same on CPU and GPU."""

from __future__ import annotations

import io
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ml_phaser.atomic import atomic, cannot_write
from ml_phaser.errors import UserError
from ml_phaser.networks.projector import Projector, ProjectorConfig, tell
from ml_phaser.networks.store import config_from
from ml_phaser.phasing.projections import Target, forward, restore, unit_variance
from ml_phaser.simulate.batches import Batch
from ml_phaser.training.chains import Chains
from ml_phaser.training.muon import Both

CHECKPOINT, LOG = "checkpoint.pt", "log.jsonl"
LOG_EVERY = 100  # steps


@dataclass(frozen=True)
class Schedule:
    """How to train.

    seconds : wall-clock budget over all sessions; the learning rate falls to zero as a cosine over it
    batch : crystals a step; rate : highest learning rate, reached after the share ``warmup`` of the budget
    average : decay of the moving average of the weights, which is what gets used
    own_cycles : from this fraction of the budget on, batches are gone on with for ``further`` cycles on average, or
        for long, so that the network learns to correct itself and to keep what is right
    told : share of the batches whose quality the network is told, within ``doubt``
    phases : weight of the loss on phases beside the one on density: least squares alone makes a network timid
    """

    seconds: float
    batch: int = 8
    rate: float = 2e-3
    warmup: float = 0.01
    weight_decay: float = 1e-4
    average: float = 0.999
    own_cycles: float = 0.1
    further: tuple[float, float] = (1.5, 60.0)
    told: float = 0.3
    doubt: float = 0.05
    phases: float = 1.0
    save_every: float = 300.0


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


def learning_rate(schedule: Schedule, used: float) -> float:
    """Rate after a fraction ``used`` (0-1) of the budget."""
    if used < schedule.warmup:
        return schedule.rate * used / schedule.warmup
    return schedule.rate * 0.5 * (1 + math.cos(math.pi * min(1.0, used)))


@dataclass
class State:
    """Everything a resumed run needs. mean: moving average of the weights; seconds, steps, samples: over all
    sessions."""

    network: Projector
    mean: dict[str, torch.Tensor]
    optimiser: Both
    seconds: float = 0.0
    steps: int = 0
    samples: int = 0

    @classmethod
    def new(
        cls, config: ProjectorConfig, schedule: Schedule, device: str, seed: int, begin: Projector | None = None
    ) -> State:
        """An untrained network, the same seed gives the same one; or one with the weights of ``begin``."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = Projector(config)
        if begin is not None:
            if begin.config != config:
                what = f"is another network ({_difference(begin.config, config)})"
                raise UserError(what, "begin", "the same channels and blocks")
            network.load_state_dict(begin.state_dict())
        network = network.to(device)
        optimiser = Both(network, schedule.rate, schedule.weight_decay)
        return cls(network, {k: v.clone() for k, v in network.state_dict().items()}, optimiser)

    def save(self, path: Path) -> None:
        """Write a checkpoint, whole or not at all. Raises UserError where it cannot be written."""
        content = {
            "network": self.network.state_dict(), "mean": self.mean, "optimiser": self.optimiser.state_dict(),
            "seconds": self.seconds, "steps": self.steps, "samples": self.samples,
            "config": asdict(self.network.config),
        }  # fmt: skip
        buffer = io.BytesIO()
        torch.save(content, buffer)
        with atomic(path) as tmp:
            tmp.write_bytes(buffer.getbuffer())

    def load(self, path: Path, device: str, batch: int) -> None:
        """Go on from a checkpoint. Raises UserError if it is damaged or of another network.

        ``batch``: crystals a step, for checkpoints that did not count their samples
        """
        saved = read_checkpoint(path, device)
        config = config_from(saved["config"], str(path))
        if config != self.network.config:
            raise UserError(
                f"holds another network ({_difference(config, self.network.config)})", str(path),
                "the same channels and blocks, or another out folder",
            )  # fmt: skip
        try:
            self.network.load_state_dict(saved["network"])
            self.mean = saved["mean"]
            self.optimiser.load_state_dict(saved["optimiser"])
        except (KeyError, RuntimeError, ValueError) as error:
            raise _damaged(path, error) from None
        self.seconds, self.steps = saved["seconds"], saved["steps"]
        self.samples = saved.get("samples", self.steps * batch)


def _difference(a: ProjectorConfig, b: ProjectorConfig) -> str:
    return ", ".join(f"{k} {v}, not {getattr(b, k)}" for k, v in vars(a).items() if v != getattr(b, k))


def _damaged(path: Path, error: Exception) -> UserError:
    return UserError(f"is not a checkpoint of this program ({type(error).__name__})", str(path), "another out folder")


def read_checkpoint(path: Path, device: str = "cpu") -> dict[str, Any]:
    """Content of a checkpoint: network, mean, optimiser, seconds, steps, config, perhaps samples.

    Raises UserError if it is missing or damaged.
    """
    import pickle

    try:
        saved = torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError:
        raise UserError("there is no checkpoint", str(path), "train first, or another out folder") from None
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, ValueError) as error:
        raise _damaged(path, error) from None
    wanted = {"network", "mean", "optimiser", "seconds", "steps", "config"}
    if not isinstance(saved, dict) or not wanted <= saved.keys():
        raise _damaged(path, KeyError("content"))
    return saved


def train(
    config: ProjectorConfig,
    schedule: Schedule,
    make_batches: Callable[[int], Iterator[Batch]],
    out: Path,
    *,
    device: str = "cpu",
    seed: int = 0,
    begin: Projector | None = None,
    session: float = math.inf,
    say: Callable[[str], None] = lambda _: None,
    progress: Callable[[float], None] = lambda _: None,
    saved: Callable[[State], None] = lambda _: None,
    stop: Callable[[], bool] = lambda: False,
) -> State:
    """Train, or go on training, until the budget or this session's share of it is spent.

    Parameters
    ----------
    make_batches : given the number of steps done so far, an endless iterator of batches; a resumed run so asks for
        crystals it has not seen
    out : folder of checkpoint.pt (resumed from if there) and log.jsonl
    seed : of the weights and of the choice of the network's own cycles
    begin : a network to begin with the weights of, instead of random ones, where there is no checkpoint yet
    session : seconds this call may take
    say, progress : told a line every LOG_EVERY steps, and the fraction of the budget spent
    saved : called after each checkpoint
    stop : asked between steps; True ends the session with a checkpoint

    Raises
    ------
    UserError
        a checkpoint that does not fit, a folder that cannot be written, a loss that is no longer a number (the last
        checkpoint, saved before, stays)
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(out, error) from error
    checkpoint = out / CHECKPOINT
    state = State.new(config, schedule, device, seed, begin)
    if checkpoint.exists():
        state.load(checkpoint, device, schedule.batch)
        say(f"resumed after {state.seconds:.0f} s, {state.steps} steps")
    network, optimiser = state.network.train(), state.optimiser
    torch.backends.cudnn.benchmark = device == "cuda"  # a handful of grid shapes, over and over
    draw = torch.Generator().manual_seed(1_000_003 * seed + 1 + state.steps)
    chains = Chains(make_batches(state.steps), draw, device)
    started = last_save = time.monotonic()
    before = state.seconds
    losses: list[torch.Tensor] = []
    gains: list[torch.Tensor] = []

    def save() -> None:
        if losses and not math.isfinite(float(losses[-1])):
            raise UserError(f"the training diverged after {state.steps} steps", str(out), "a smaller rate")
        state.save(checkpoint)
        saved(state)

    while state.seconds < schedule.seconds and time.monotonic() - started < session and not stop():
        used = state.seconds / schedule.seconds
        chain = chains.next(schedule.further if used >= schedule.own_cycles else (0.0, 0.0), schedule.told)
        batch, rho = chain.batch, unit_variance(chain.x)
        truth = chain.truth(rho)
        quality = correlation(rho, truth)
        cond = batch.cond
        if chain.told:
            doubt = schedule.doubt * torch.randn(len(rho), generator=draw).to(device)
            cond = tell(cond, (quality + doubt).clamp(0, 1))
        out_map = restore(network, rho, batch.target, cond, batch.model)
        loss = (out_map - truth).pow(2).mean()
        loss = loss + schedule.phases * (1 - phase_agreement(out_map, truth, batch.target)).mean()
        network.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step(learning_rate(schedule, used))
        chain.advance(out_map.detach())
        state.steps += 1
        state.samples += len(truth)
        decay = min(schedule.average, state.steps / (state.steps + 10))
        for name, value in network.state_dict().items():
            state.mean[name].lerp_(value, 1 - decay)
        state.seconds = before + time.monotonic() - started
        # Kept on the device: to ask for their values at every step would make a GPU wait.
        losses.append(loss.detach())
        gains.append((correlation(out_map.detach(), truth) - quality).mean())
        if len(losses) == LOG_EVERY:
            row = _log_row(state, losses, gains)
            append_row(out / LOG, row)
            say(f"step {row['step']}, {row['samples']} samples: loss {row['loss']}, CC gained {row['cc_gain']}")
            if not math.isfinite(row["loss"]):
                save()
            losses.clear()
            gains.clear()
        progress(state.seconds / schedule.seconds)
        if time.monotonic() - last_save > schedule.save_every:
            save()
            last_save = time.monotonic()
    save()
    return state


def _log_row(state: State, losses: list[torch.Tensor], gains: list[torch.Tensor]) -> dict[str, Any]:
    return {
        "step": state.steps, "samples": state.samples, "seconds": round(state.seconds, 1),
        "loss": round(float(torch.stack(losses).mean()), 4), "cc_gain": round(float(torch.stack(gains).mean()), 4),
    }  # fmt: skip


def append_row(path: Path, row: dict[str, Any]) -> None:
    """Add a line to a log. Raises UserError where it cannot be written."""
    try:
        with path.open("a", encoding="utf-8") as log:
            log.write(json.dumps(row) + "\n")
    except OSError as error:
        raise cannot_write(path, error) from error
