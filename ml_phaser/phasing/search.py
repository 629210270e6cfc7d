"""Many starts, a few methods, one clock: look for a solution until it is found or the time is up."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ml_phaser import arrays
from ml_phaser.arrays import Array, Generator
from ml_phaser.crystal.agreement import compare
from ml_phaser.outcome import Trial
from ml_phaser.phasing.atom_walks import METHOD, Walks
from ml_phaser.phasing.completion import LastTouch
from ml_phaser.phasing.dual_space import Method, Projection
from ml_phaser.phasing.finish import Finisher, Solution, finish
from ml_phaser.phasing.problem import Problem
from ml_phaser.phasing.rebuild import Rebuilder

CONVINCED = 0.95  # probability at which the search stops
PROMISING = 0.28  # held-out correlation of a running start worth finishing, and at least 2.5 standard errors
SETTLED = 0.75  # of a method's usual residual: a start below has come to rest
KEPT = 6  # finished solutions remembered
POLISHED = 2  # of them, the best, that are polished at the end, if they were not before
SAME = 0.7  # map correlation from which on two solutions are one
FINISHING_SHARE = 0.3  # of the time so far that may go into finishing
COMPARABLE = 0.25  # held-out score from which on a solution is worth comparing with others


class Starts(Protocol):
    """Where starts come from, if they are not random."""

    def make(self, count: int, generator: Generator) -> Array:
        """Maps (count, u, v, w) to begin with, at the origin and hand of the phases given."""
        ...


class Source(Protocol):
    """Where random starts come from."""

    def random_starts(self, count: int, generator: Generator) -> Array: ...


@dataclass(frozen=True, eq=False)
class Entrant:
    """A method with its problem: ``rows`` of the full list of reflections, starts per batch, cycles per start.

    core : projection that keeps the peaks of a map alone
    home : finisher at the method's own resolution, before those of the full data
    origin : whose random starts are taken, where it is not ``problem``: the problem with seeds, or a quicker method
    given : starts from phases that were given; their origin is that of the group, and is kept
    seeded : its starts have phases of seeds, which obey the group: that solutions do is no evidence
    finishers : of this entrant's solutions, where they are not those of all
    bar : held-out correlation a start must reach to be finished; a start of an entrant whose bar is above PROMISING
        is not finished below it only because nothing else is
    """

    method: Method
    problem: Problem
    rows: NDArray[np.int64]
    batch: int
    cycles: int
    block: int
    core: Projection
    share: float = 1.0
    home: Finisher | None = None
    origin: Source | None = None
    given: Starts | None = None
    finishers: tuple[Finisher, ...] = ()
    bar: float = PROMISING
    seeded: bool = False

    def starts(self, count: int, generator: Generator) -> Array:
        """Maps (count, u, v, w) to begin with."""
        if self.given is not None:
            return self.given.make(count, generator)
        source: Source = self.origin or self.problem
        return source.random_starts(count, generator)


@dataclass(eq=False)
class Hunt:
    """The state of a search: trials so far and the best solutions, best first.

    ``rows`` : of the problem's reflections among all that solutions have, where they are not all; ``chance`` : score of
    a solution that began with random phases for comparison, NaN where there is none
    """

    problem: Problem
    rows: NDArray[np.int64] | None = None
    finishing: float = 0.0  # seconds
    chance: float = math.nan
    trials: list[Trial] = field(default_factory=list)
    solutions: list[Solution] = field(default_factory=list)
    residuals: dict[str, list[float]] = field(default_factory=dict)  # of a method's starts, after each block
    turned: set[int] = field(default_factory=set)  # trials from which atoms and network in turn came to an end

    def note(self, trials: NDArray[np.int64], done: int, seconds: float, scores: NDArray, residuals: NDArray) -> None:
        """Enter how far running ``trials`` have come."""
        for i, score, residual in zip(trials, scores, residuals, strict=True):
            trial = replace(self.trials[i], cycles=done, seconds=seconds)
            if not trial.finished:
                trial = replace(trial, score=float(score), r_work=float(residual))
            self.trials[i] = trial

    def settled(self, method: str, residuals: NDArray) -> NDArray[np.bool_]:
        """Which starts (B,) of a method have come to rest: the gap between what the amplitudes and what the density
        ask for, whose size is the residual, is far smaller than it was for most before them."""
        seen = self.residuals.setdefault(method, [])
        usual = float(np.median(seen)) if seen else 0.0
        seen.extend(residuals)
        return residuals < SETTLED * usual

    def add(self, solution: Solution) -> None:
        """File a finished solution: which earlier ones it equals up to origin and hand, what its start scored."""
        number = 1 + max((s.cluster for s in self.solutions), default=-1)
        mates = [s for s in self.solutions if s.trial != solution.trial and self._same(s, solution)]
        older = [s for s in self.solutions if s.trial == solution.trial]
        cluster = min((s.cluster for s in mates), default=older[0].cluster if older else number)
        agreeing = 0 if solution.given else max((s.agreeing + 1 for s in mates), default=0)
        solution = replace(solution, cluster=cluster, agreeing=agreeing)
        if older and older[0].score >= solution.score:
            return
        self.turned.discard(solution.trial)
        kept = [
            replace(s, agreeing=s.agreeing + 1) if s in mates and not older and not s.given else s
            for s in self.solutions
        ]
        kept = [s for s in kept if s.trial != solution.trial]
        ranked = sorted([*kept, solution], key=lambda s: -s.merit)
        first = min(ranked, key=lambda s: s.trial)
        pinned = [first] if first.given else []  # what the phases given lead to by themselves is not lost to luck
        self.solutions = [*(s for s in ranked if s not in pinned)][: KEPT - len(pinned)] + pinned
        self.solutions.sort(key=lambda s: -s.merit)
        i = solution.trial
        self.trials[i] = replace(
            self.trials[i], score=solution.score, r_work=solution.r_work, symmetry=solution.symmetry,
            cluster=cluster, finished=True,
        )  # fmt: skip

    def polish(self, polisher: LastTouch, time_left: Callable[[], float] = lambda: math.inf) -> None:
        """Polish the best solutions, unless that was done when they were found; atoms are made of the best, and of
        others if there is time."""
        for i, s in enumerate(self.solutions[:POLISHED]):
            if s.polished:
                continue
            done = polisher(s) if i == 0 or time_left() > 0 else polisher.without_atoms(s)
            self.solutions[self.solutions.index(s)] = done
            self.trials[s.trial] = replace(self.trials[s.trial], score=done.score, r_work=done.r_work)
        self.solutions.sort(key=lambda s: -s.merit)

    def rebuild(
        self, rebuilder: Rebuilder, time_left: Callable[[], float], tell: Callable[[], None] = lambda: None,
        only: int | None = None,
    ) -> None:  # fmt: skip
        """Atoms and network in turn, from one solution after another, the best first, until one convinces or the time
        is up; from none again that they have gone as far from as they can. ``tell`` : called after every turn; ``only``
        : the trial whose solution is tried"""
        for s in [s for s in self.solutions if only in (None, s.trial)]:
            if time_left() < rebuilder.cost:
                return
            if rebuilder.promising(s) and s.trial not in self.turned:
                done = rebuilder(s, time_left, tell)
                self.solutions[self.solutions.index(s)] = done
                self.trials[s.trial] = replace(self.trials[s.trial], score=done.score, r_work=done.r_work)
                self.solutions.sort(key=lambda s: -s.merit)
                if time_left() >= rebuilder.cost:
                    self.turned.add(s.trial)
            if self.convinced:
                return

    def _same(self, a: Solution, b: Solution) -> bool:
        if min(a.score, b.score) < COMPARABLE:
            return False
        p = self.problem
        first, second = (s.f if self.rows is None else s.f[self.rows] for s in (a, b))
        return compare(p.hkl, first, second, p.cell, p.spacegroup, repeats=0).map_cc >= SAME

    @property
    def best(self) -> Trial | None:
        return self.trials[self.solutions[0].trial] if self.solutions else None

    @property
    def convinced(self) -> bool:
        return any(s.probability >= CONVINCED for s in self.solutions)


def search(
    entrants: Sequence[Entrant],
    finishers: Sequence[Finisher],
    whole: Problem,
    n: int,
    *,
    seconds: float,
    most_trials: int | None,
    seed: int,
    progress: Callable[[float, Trial | None, Sequence[Trial]], None],
    now: Callable[[], float] = time.monotonic,
    hunt: Hunt | None = None,
    polisher: LastTouch | None = None,
    walks: Walks | None = None,
) -> Hunt:
    """Run batches of starts, each entrant in turn according to its share of the time.

    Parameters
    ----------
    whole : the problem with all data, on whose reflections solutions are compared
    n : number of unique reflections of the crystal
    seconds : time for the whole search; batches go on, a block of cycles each, until there is one solution
    most_trials : stop after so many starts
    progress : told the part of the time that is gone, the best trial and all of them (the list goes on changing)
    now : the clock, in seconds
    hunt : a search to go on with; polisher : the last touch of solutions; walks : free atoms from random phases, which
        have their lead first, then a share of the time of all entrants together
    """
    hunt = Hunt(whole) if hunt is None else hunt
    generator = arrays.generator(seed + len(hunt.trials), whole.target.amplitude)  # never the same starts twice
    began = now()
    spent = [0.0] * len(entrants)

    def elapsed() -> float:
        return now() - began

    searching = seconds * (1 - polisher.reserve) if polisher is not None else seconds
    while not hunt.convinced and (not hunt.solutions or elapsed() < searching):
        left = math.inf if most_trials is None else most_trials - len(hunt.trials)
        if left <= 0:
            break
        before = elapsed()

        def tell() -> None:
            progress(min(1.0, elapsed() / seconds), hunt.best, hunt.trials)

        if walks is not None and walks.spent < walks.share * sum(spent) + walks.lead:
            _walk(walks, hunt, seed, now, tell)
        else:
            turn = min(range(len(entrants)), key=lambda i: spent[i] / entrants[i].share)
            count = int(min(entrants[turn].batch, left))
            _batch(
                entrants[turn], finishers, polisher, n, hunt, count, count == left, seed, generator, before, now,
                lambda: searching - elapsed(), tell,
            )  # fmt: skip
            spent[turn] += elapsed() - before
    if polisher is not None:
        hunt.polish(polisher, lambda: seconds - elapsed())
    return hunt


def walk_first(
    walks: Walks, hunt: Hunt, seed: int, progress: Callable[[float], None], now: Callable[[], float] = time.monotonic
) -> None:
    """Free atoms from random phases for the time of their lead; parameters as of ``search``."""
    while walks.spent < walks.lead and not hunt.convinced:
        _walk(walks, hunt, seed, now, lambda: progress(min(1.0, walks.spent / walks.lead)))


def _walk(walks: Walks, hunt: Hunt, seed: int, now: Callable[[], float], tell: Callable[[], None]) -> None:
    """Some cycles of free atoms; they are a solution if they explain the data as wrong ones cannot."""
    began = now()
    if walks.over:
        walks.begin(len(hunt.trials))
        hunt.trials.append(Trial(walks.trial, METHOD, seed, 0, 0.0, -1.0, 1.0, math.nan))
    found = walks.go_on()
    trial = hunt.trials[walks.trial]
    took = now() - began
    walks.spent += took
    trial = replace(trial, cycles=walks.cycles, seconds=trial.seconds + took)
    if not trial.finished:
        trial = replace(trial, score=max(trial.score, found.score), r_work=min(trial.r_work, found.r_work))
    hunt.trials[walks.trial] = trial
    if found.worth <= 1:
        hunt.add(found)
    tell()


def _batch(
    entrant: Entrant,
    finishers: Sequence[Finisher],
    polisher: LastTouch | None,
    n: int,
    hunt: Hunt,
    count: int,
    final: bool,
    seed: int,
    generator: Generator,
    spent_before: float,
    now: Callable[[], float],
    time_left: Callable[[], float],
    tell: Callable[[], None],
) -> None:
    """One batch of starts, finished as soon as one has settled or looks promising, the best of it in any case (but see
    ``bar``). A start that has settled leaves the batch once it is finished: more cycles would only turn in place.

    ``final``: no more starts are allowed
    """
    first = len(hunt.trials)
    hunt.trials += [Trial(first + i, entrant.method.name, seed, 0, 0.0, -1.0, 1.0, float("nan")) for i in range(count)]
    trials = np.arange(first, first + count)
    began = now()
    x = entrant.starts(count, generator)
    bar = np.full(count, max(entrant.bar, 2.5 / math.sqrt(max(1, int(entrant.problem.held.sum())))))
    finished = False
    done = 0
    while len(trials) and done < entrant.cycles:
        x = entrant.method.advance(x, entrant.block, done)
        done += entrant.block
        half = entrant.method.estimate(x)
        scores = np.nan_to_num(arrays.to_numpy(entrant.problem.scores(half)).astype(float), nan=-1.0)
        residuals = np.nan_to_num(arrays.to_numpy(entrant.problem.residuals(half)).astype(float), nan=1.0)
        hunt.note(trials, done, (now() - began) / count, scores, residuals)
        settled = hunt.settled(entrant.method.name, residuals)
        out_of_time = time_left() <= 0
        last = done >= entrant.cycles or out_of_time
        # The start furthest above its own bar: a start that was finished in vain must improve to be tried again.
        leader = int(np.argmax(scores - bar + 2.0 * settled))
        affordable = hunt.finishing <= FINISHING_SHARE * (spent_before + now() - began)
        promising = (scores[leader] > bar[leader] or settled[leader]) and affordable and not out_of_time
        wanted = entrant.bar <= PROMISING and (affordable or not hunt.solutions)
        if promising or (last and not finished and (wanted or (final and not hunt.solutions))):
            bar[leader] = scores[leader] + 0.04
            since = now()
            phases = entrant.problem.gather_p1(half[leader])
            solution = finish(phases, entrant, entrant.finishers or finishers, n, int(trials[leader]))
            hunt.add(polisher.at_once(solution) if polisher else solution)
            hunt.finishing += now() - since
            finished = True
            if settled[leader]:
                stay = np.arange(len(trials)) != leader
                x, trials, bar = x[arrays.beside(stay, x)], trials[stay], bar[stay]
        tell()
        if last or hunt.convinced:
            break
