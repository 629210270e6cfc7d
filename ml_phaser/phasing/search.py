"""Many starts, a few methods, one clock: look for a solution until it is found or the time is up."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray

from ml_phaser.outcome import Trial
from ml_phaser.phasing.confidence import probability_solved
from ml_phaser.phasing.dual_space import Alternating, Method, Projection
from ml_phaser.phasing.place import hand_is_fixed, place
from ml_phaser.phasing.problem import Problem
from ml_phaser.phasing.projections import inverse, unit_variance

CONVINCED = 0.95  # probability at which the search stops
PROMISING = 0.28  # held-out correlation of a running start worth finishing
KEPT = 6  # finished solutions remembered


@dataclass(frozen=True, eq=False)
class Entrant:
    """A method with its problem: ``rows`` of the full list of reflections, starts per batch, cycles per start."""

    method: Method
    problem: Problem
    rows: NDArray[np.int64]
    batch: int
    cycles: int
    block: int
    share: float = 1.0


@dataclass(frozen=True, eq=False)
class Finisher:
    """How a solution is refined on a problem: density projections tried in turn, the held-out score decides."""

    problem: Problem
    rows: NDArray[np.int64]
    projections: tuple[tuple[str, Projection], ...]
    cycles: int
    keep_mean: bool = False


@dataclass(frozen=True, eq=False)
class Solution:
    """Phases in the crystal's group.

    f : (n,) complex structure factors of the density on all unique reflections (its own moduli, not the measured
    ones); score, r_work, symmetry as in Trial; trial : index of the start it came from
    """

    f: NDArray[np.complex128]
    score: float
    r_work: float
    symmetry: float
    held: int
    trial: int
    finisher: str = ""

    @property
    def probability(self) -> float:
        return probability_solved(self.score, self.held, self.symmetry)


def finish(
    f_p1: NDArray[np.complex128], entrant: Entrant, finishers: Sequence[Finisher], n: int, trial: int
) -> Solution:
    """Take a start's P1 phases home to the group, refine them with the symmetry imposed, keep what judges best."""
    problem = entrant.problem
    moduli = problem.expansion.spread(problem.amplitude)
    phased = moduli * np.exp(1j * np.angle(f_p1))
    hands = (phased, np.conj(phased)) if hand_is_fixed(problem.spacegroup) else (phased,)
    placed = max(
        (place(f, problem.expansion, len(problem.hkl), problem.cell, problem.spacegroup) for f in hands),
        key=lambda p: -2.0 if math.isnan(p.symmetry) else p.symmetry,
    )
    start = np.zeros(n, dtype=np.complex128)
    start[entrant.rows] = placed.f
    best: Solution | None = None
    for finisher in finishers:
        for name, projection in finisher.projections:
            found = _refine(start, finisher, projection, n)
            solution = Solution(*found, placed.symmetry, int(finisher.problem.held.sum()), trial, name)
            if best is None or solution.score > best.score:
                best = solution
    assert best is not None
    return best


def _refine(
    start: NDArray[np.complex128], finisher: Finisher, projection: Projection, n: int
) -> tuple[NDArray[np.complex128], float, float]:
    """Alternate projections and averaging over the group; structure factors, held-out score, R."""
    problem = finisher.problem
    f = start[finisher.rows]
    method = Alternating(problem, projection, keep_mean=finisher.keep_mean)
    score, residual = -1.0, 1.0
    for _ in range(max(1, finisher.cycles // 10)):
        x = unit_variance(inverse(problem.scatter(f), problem.shape))
        half = method.estimate(method.advance(x, 10))
        f = problem.expansion.average(problem.gather_p1(half[0]), len(problem.hkl))
        score, residual = float(problem.scores(half)[0]), float(problem.residuals(half)[0])
    out = start.copy()
    out[finisher.rows] = f
    return out, score, residual


@dataclass(eq=False)
class Hunt:
    """The state of a search: trials so far and the best solutions, best first."""

    trials: list[Trial] = field(default_factory=list)
    solutions: list[Solution] = field(default_factory=list)

    def add(self, solution: Solution) -> None:
        self.solutions = sorted([*self.solutions, solution], key=lambda s: -s.score)[:KEPT]
        i = solution.trial
        self.trials[i] = replace(
            self.trials[i], score=solution.score, r_work=solution.r_work, symmetry=solution.symmetry
        )

    @property
    def best(self) -> Trial | None:
        return max(self.trials, key=lambda t: t.score, default=None)

    @property
    def convinced(self) -> bool:
        return bool(self.solutions) and self.solutions[0].probability >= CONVINCED


def search(
    entrants: Sequence[Entrant],
    finishers: Sequence[Finisher],
    n: int,
    *,
    seconds: float,
    most_trials: int | None,
    seed: int,
    progress: Callable[[float, Trial | None], None],
) -> Hunt:
    """Run batches of starts, each entrant in turn according to its share of the time.

    Parameters
    ----------
    n : number of unique reflections of the crystal
    seconds : time for the whole search; at least one batch gets at least one block of cycles
    most_trials : stop after so many starts
    """
    hunt = Hunt()
    generator = torch.Generator().manual_seed(seed)
    began = time.monotonic()
    spent = [0.0] * len(entrants)

    def elapsed() -> float:
        return time.monotonic() - began

    while not hunt.convinced and (not hunt.trials or elapsed() < seconds):
        left = math.inf if most_trials is None else most_trials - len(hunt.trials)
        if left <= 0:
            break
        turn = min(range(len(entrants)), key=lambda i: spent[i] / entrants[i].share)
        before = elapsed()
        _batch(entrants[turn], finishers, n, hunt, int(min(entrants[turn].batch, left)), seed, generator,
               lambda: seconds - elapsed(), lambda: progress(min(1.0, elapsed() / seconds), hunt.best))  # fmt: skip
        spent[turn] += elapsed() - before
    return hunt


def _batch(
    entrant: Entrant,
    finishers: Sequence[Finisher],
    n: int,
    hunt: Hunt,
    count: int,
    seed: int,
    generator: torch.Generator,
    time_left: Callable[[], float],
    tell: Callable[[], None],
) -> None:
    """One batch of starts, finished as soon as one looks promising, the best of it in any case."""
    first = len(hunt.trials)
    hunt.trials += [
        Trial(first + i, entrant.method.name, seed, 0, 0.0, -1.0, 1.0, float("nan")) for i in range(count)
    ]
    began = time.monotonic()
    x = entrant.problem.random_starts(count, generator)
    tried = np.full(count, PROMISING)
    finished: set[int] = set()
    scores = np.full(count, -1.0)
    done = 0
    while done < entrant.cycles:
        x = entrant.method.advance(x, entrant.block)
        done += entrant.block
        half = entrant.method.estimate(x)
        scores = entrant.problem.scores(half).cpu().numpy().astype(float)
        residuals = entrant.problem.residuals(half).cpu().numpy()
        for i in range(count):
            if first + i not in finished:
                hunt.trials[first + i] = replace(
                    hunt.trials[first + i], score=float(scores[i]), r_work=float(residuals[i])
                )
            hunt.trials[first + i] = replace(
                hunt.trials[first + i], cycles=done, seconds=(time.monotonic() - began) / count
            )
        last = done >= entrant.cycles or time_left() <= 0
        leader = int(np.argmax(scores))
        if scores[leader] > tried[leader] or (last and not finished):
            tried[leader] = scores[leader] + 0.04
            hunt.add(finish(entrant.problem.gather_p1(half[leader]), entrant, finishers, n, first + leader))
            finished.add(first + leader)
        tell()
        if last or hunt.convinced:
            break


