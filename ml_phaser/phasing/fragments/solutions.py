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
from ml_phaser.phasing.fragments.models import Body, Completed
from ml_phaser.phasing.fragments.road import GOOD, SURE, Road
from ml_phaser.phasing.rebuild import Rebuilder, turned
from ml_phaser.phasing.search import Hunt

METHOD = "placed pieces"


def from_fragments(
    hunt: Hunt, road: Road, rows: NDArray[np.int64], finishers: Sequence[Finisher], n: int, seed: int, seconds: float,
    tell: Callable[[float], None], now: Callable[[], float] = time.monotonic, polisher: LastTouch | None = None,
    rebuilder: Rebuilder | None = None, time_left: Callable[[], float] = lambda: math.inf,
) -> None:  # fmt: skip
    """Travel the road for so many seconds and enter what it leads to.

    Parameters
    ----------
    rows : of the road's reflections among all n
    finishers, polisher : of solutions on data finer than the network sees; none where it sees all
    rebuilder : atoms and network in turn, from models that are ahead while others are looked for; ``time_left`` for it
    """
    entered: dict[tuple[Body, ...], int] = {}
    began = now()

    def enter(completed: Completed) -> int:
        index = entered.setdefault(completed.model.bodies, len(hunt.trials))
        trial = Trial(
            index, METHOD, seed, COMPLETING + RELEASED, completed.seconds, completed.score, completed.residual, math.nan
        )
        hunt.trials[index : index + 1] = [trial]
        f = np.zeros(n, dtype=np.complex128)
        f[rows] = completed.f
        solution = _solution(completed, f, road, finishers, n, index)
        hunt.add(polisher(solution) if polisher else solution)
        return index

    def onward(completed: Completed) -> bool:
        if rebuilder is not None:
            hunt.rebuild(rebuilder, time_left, lambda: tell(min(1.0, (now() - began) / seconds)), enter(completed))
        return any(s.probability >= SURE and s.score >= GOOD for s in hunt.solutions)

    road.onward = None if rebuilder is None else onward
    for completed in road.travel(seconds, tell, now):
        before = next((s for s in hunt.solutions if s.trial == entered.get(completed.model.bodies)), None)
        if before is None or (before.score < completed.score and not turned(before)):
            enter(completed)


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
