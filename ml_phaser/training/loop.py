"""The one training loop: any network, any lesson; budgeted by wall clock, resumable, the same on CPU and GPU."""

from __future__ import annotations

import io
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from ml_phaser.atomic import atomic, cannot_write
from ml_phaser.errors import UserError
from ml_phaser.networks.store import configured
from ml_phaser.training.muon import Both

CHECKPOINT, LOG = "checkpoint.pt", "log.jsonl"
LOG_EVERY = 100  # steps


@dataclass(frozen=True)
class Schedule:
    """How to train.

    seconds : wall-clock budget over all sessions; the learning rate falls to zero as a cosine over it
    batch : crystals a step; rate : highest learning rate, reached after the share ``warmup`` of the budget
    average : decay of the moving average of the weights, which is what gets used
    clip : largest norm of the gradient of all weights together
    """

    seconds: float
    batch: int = 8
    rate: float = 2e-3
    warmup: float = 0.01
    weight_decay: float = 1e-4
    average: float = 0.999
    clip: float = 1.0
    save_every: float = 300.0


class Optimiser(Protocol):
    """What ``muon.Both`` is."""

    def step(self, rate: float) -> None: ...
    def state_dict(self) -> list[dict[str, Any]]: ...
    def load_state_dict(self, states: list[dict[str, Any]]) -> None: ...


class Lesson(Protocol):
    """What a network is taught."""

    def step(self, network: nn.Module, used: float) -> tuple[torch.Tensor, dict[str, torch.Tensor], int]:
        """The loss of one batch, to differentiate; what to log of it beside; crystals in it.

        ``used`` : share of the budget spent, 0-1
        """
        ...


def learning_rate(schedule: Schedule, used: float) -> float:
    """Rate after a fraction ``used`` (0-1) of the budget."""
    if used < schedule.warmup:
        return schedule.rate * used / schedule.warmup
    return schedule.rate * 0.5 * (1 + math.cos(math.pi * min(1.0, used)))


def untrained(kind: Callable[[Any], nn.Module], config: Any, seed: int, begin: nn.Module | None = None) -> nn.Module:
    """A network of a ``kind``; the same seed gives the same one. With the weights of ``begin``, if given.

    Raises
    ------
    UserError
        where ``begin`` is another network
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = kind(config)
    if begin is not None:
        if begin.config != config:
            what = f"is another network ({_difference(begin.config, config)})"
            raise UserError(what, "begin", "the same channels and blocks")
        network.load_state_dict(begin.state_dict())
    return network


@dataclass
class State:
    """Everything a resumed run needs. network: with a ``config``; mean: moving average of its weights; seconds, steps,
    samples: over all sessions."""

    network: nn.Module
    mean: dict[str, torch.Tensor]
    optimiser: Optimiser
    seconds: float = 0.0
    steps: int = 0
    samples: int = 0

    @classmethod
    def new(
        cls, network: nn.Module, schedule: Schedule, device: str,
        optimise: Callable[[nn.Module, Schedule], Optimiser] | None = None,
    ) -> State:  # fmt: skip
        """Before the first step; ``optimise`` makes an optimiser other than ``muon.Both``."""
        network = network.to(device)
        optimiser = (optimise or _both)(network, schedule)
        return cls(network, {k: v.clone() for k, v in network.state_dict().items()}, optimiser)

    def save(self, path: Path) -> None:
        """Write a checkpoint, whole or not at all. Raises UserError where it cannot be written."""
        content = {
            "network": self.network.state_dict(), "mean": self.mean, "optimiser": self.optimiser.state_dict(),
            "seconds": self.seconds, "steps": self.steps, "samples": self.samples,
            "config": asdict(self.config),
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
        own = self.config
        config = configured(type(own), saved["config"], str(path))
        if config != own:
            raise UserError(
                f"holds another network ({_difference(config, own)})", str(path),
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

    @property
    def config(self) -> Any:
        """Of the network, a dataclass."""
        return self.network.config

    def average(self, decay: float) -> None:
        """Draw the moving average towards the weights; what is counted (by batch norms) is copied."""
        for name, value in self.network.state_dict().items():
            if value.is_floating_point():
                self.mean[name].lerp_(value, 1 - decay)
            else:
                self.mean[name].copy_(value)


def _both(network: nn.Module, schedule: Schedule) -> Optimiser:
    return Both(network, schedule.rate, schedule.weight_decay)


def _difference(a: Any, b: Any) -> str:
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
    network: nn.Module,
    schedule: Schedule,
    lessons: Callable[[int], Lesson],
    out: Path,
    *,
    device: str = "cpu",
    optimise: Callable[[nn.Module, Schedule], Optimiser] | None = None,
    session: float = math.inf,
    say: Callable[[str], None] = lambda _: None,
    progress: Callable[[float], None] = lambda _: None,
    saved: Callable[[State], None] = lambda _: None,
    stop: Callable[[], bool] = lambda: False,
) -> State:
    """Train, or go on training, until the budget or this session's share of it is spent.

    Parameters
    ----------
    network : to begin with, where there is no checkpoint yet
    lessons : given the number of steps done so far, what to teach from here on; a resumed run so asks for crystals it
        has not seen
    out : folder of checkpoint.pt (resumed from if there) and log.jsonl
    optimise : makes the optimiser, where it is not ``muon.Both``
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
    state = State.new(network, schedule, device, optimise)
    if checkpoint.exists():
        state.load(checkpoint, device, schedule.batch)
        say(f"resumed after {state.seconds:.0f} s, {state.steps} steps")
    network = state.network.train()
    torch.backends.cudnn.benchmark = device == "cuda"  # a handful of grid shapes, over and over
    lesson = lessons(state.steps)
    started = last_save = time.monotonic()
    before = state.seconds
    rows: list[dict[str, torch.Tensor]] = []

    def save() -> None:
        if rows and not math.isfinite(float(rows[-1]["loss"])):
            raise UserError(f"the training diverged after {state.steps} steps", str(out), "a smaller rate")
        state.save(checkpoint)
        saved(state)

    while state.seconds < schedule.seconds and time.monotonic() - started < session and not stop():
        used = state.seconds / schedule.seconds
        loss, facts, samples = lesson.step(network, used)
        network.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), schedule.clip)
        state.optimiser.step(learning_rate(schedule, used))
        state.steps += 1
        state.samples += samples
        state.average(min(schedule.average, state.steps / (state.steps + 10)))
        state.seconds = before + time.monotonic() - started
        # Kept on the device: to ask for their values at every step would make a GPU wait.
        rows.append({"loss": loss.detach(), **facts})
        if len(rows) == LOG_EVERY:
            row = _log_row(state, rows)
            append_row(out / LOG, row)
            told = ", ".join(f"{name} {row[name]}" for name in rows[0])
            say(f"step {row['step']}, {row['samples']} samples: {told}")
            if not math.isfinite(row["loss"]):
                save()
            rows.clear()
        progress(state.seconds / schedule.seconds)
        if time.monotonic() - last_save > schedule.save_every:
            save()
            last_save = time.monotonic()
    save()
    return state


def _log_row(state: State, rows: list[dict[str, torch.Tensor]]) -> dict[str, Any]:
    """Means over some steps."""
    means = {name: round(float(torch.stack([row[name] for row in rows]).mean()), 4) for name in rows[0]}
    return {"step": state.steps, "samples": state.samples, "seconds": round(state.seconds, 1), **means}


def append_row(path: Path, row: dict[str, Any]) -> None:
    """Add a line to a log. Raises UserError where it cannot be written."""
    try:
        with path.open("a", encoding="utf-8") as log:
            log.write(json.dumps(row) + "\n")
    except OSError as error:
        raise cannot_write(path, error) from error
