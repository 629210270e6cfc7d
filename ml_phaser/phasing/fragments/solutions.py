"""What the road leads to, as trials and solutions beside those of all other starts."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from ml_phaser.outcome import Chain, Fragments, Trial
from ml_phaser.phasing.completion import LastTouch
from ml_phaser.phasing.finish import Finisher, Solution, refine
from ml_phaser.phasing.fragments.judge import COMPLETING, RELEASED
from ml_phaser.phasing.fragments.road import Body, Completed, Road
from ml_phaser.phasing.search import Hunt

METHOD = "placed pieces"


def from_fragments(
    hunt: Hunt, road: Road, rows: NDArray[np.int64], finishers: Sequence[Finisher], n: int, seed: int, seconds: float,
    tell: Callable[[float], None], now: Callable[[], float] = time.monotonic, polisher: LastTouch | None = None,
) -> None:  # fmt: skip
    """Travel the road for so many seconds and enter what it leads to.

    Parameters
    ----------
    rows : of the road's reflections among all n
    finishers, polisher : of solutions on data finer than the network sees; none where it sees all
    """
    done = road.travel(seconds, tell, now)
    for completed in done:
        index = len(hunt.trials)
        hunt.trials.append(
            Trial(
                index,
                METHOD,
                seed,
                COMPLETING + RELEASED,
                completed.seconds,
                completed.score,
                completed.residual,
                math.nan,
            )
        )
        f = np.zeros(n, dtype=np.complex128)
        f[rows] = completed.f
        solution = _solution(completed, f, road, finishers, n, index)
        hunt.add(polisher(solution) if polisher else solution)


def _solution(
    completed: Completed, f: NDArray[np.complex128], road: Road, finishers: Sequence[Finisher], n: int, trial: int
) -> Solution:
    problem, placed = road.judge.problem, fragments(completed)
    best = Solution(
        f, completed.score, completed.residual, math.nan, int(problem.held.sum()), trial, completed.residual,
        problem.d_min, "learned, with the model", fragments=placed,
    )  # fmt: skip
    for finisher in finishers:
        for name, projection in finisher.projections:
            g, score, residual = refine(f, finisher, projection, n)
            if score > best.score:
                held = int(finisher.problem.held.sum())
                best = Solution(
                    g, score, residual, math.nan, held, trial, residual, finisher.problem.d_min, name, fragments=placed
                )
    return best


def fragments(completed: Completed) -> Fragments:
    """A model's atoms for those who write them, and what speaks for it."""
    model = completed.model
    chains = tuple(_chain(body) for body in model.bodies)
    return Fragments(model.label, model.fit, model.judged, chains, completed.merit, completed.lead)


def _chain(body: Body) -> Chain:
    p, xyz = body.piece, body.xyz.double().cpu().numpy()
    return Chain(p.names, p.elements, p.residue, p.letters, xyz, p.first + 1)
