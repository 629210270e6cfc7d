"""Training crystals from other processes, so that a fast device does not wait for them."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from ml_phaser.simulate.batches import Batch, Recipe, batches
from ml_phaser.simulate.fragments import Library


@dataclass(frozen=True, eq=False)
class _Source(IterableDataset):
    """An endless stream of batches; every worker process draws crystals of its own."""

    library: Library
    size: int
    seed: tuple[int, int]
    recipe: Recipe

    def __iter__(self) -> Iterator[Batch]:
        info = get_worker_info()
        return batches(self.library, self.size, seed_of(*self.seed, info.id if info else 0), self.recipe)


def seed_of(seed: int, steps: int, worker: int) -> int:
    """One number out of a run's seed, the steps it has done and the number of the worker."""
    return int(np.random.SeedSequence([seed, steps, worker]).generate_state(1, np.uint64)[0])


def _start(worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends its workers
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)


def _as_it_is(batch: Any) -> Any:
    return batch


def stream(
    library: Library, size: int, seed: int, steps: int, workers: int = 0, recipe: Recipe | None = None
) -> Iterator[Batch]:
    """Endless batches of ``size`` crystals, made in this process or by ``workers`` others; repeatable for the same
    seed, steps and number of workers."""
    source = _Source(library, size, (seed, steps), recipe or Recipe())
    if workers == 0:
        return iter(source)
    # Forked processes share the coordinates; others get a copy each.
    context = "fork" if sys.platform == "linux" else "spawn"
    loader = DataLoader(
        source, batch_size=None, num_workers=workers, collate_fn=_as_it_is, worker_init_fn=_start, prefetch_factor=4,
        multiprocessing_context=context,
    )  # fmt: skip
    return iter(loader)
