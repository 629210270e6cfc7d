"""Many starts, a few methods, one clock: look for a solution until it is found or the time is up."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from ml_phaser.crystal.agreement import compare
from ml_phaser.crystal.phase_distributions import PhaseDistributions
from ml_phaser.outcome import Trial
from ml_phaser.phasing.combination import Combined
from ml_phaser.phasing.confidence import probability_solved
from ml_phaser.phasing.dual_space import Alternating, ChargeFlipping, Method, Projection
from ml_phaser.phasing.place import Placed, hand_is_fixed, place
from ml_phaser.phasing.problem import Problem
from ml_phaser.phasing.projections import forward, inverse, unit_variance

CONVINCED = 0.95  # probability at which the search stops
PROMISING = 0.28  # held-out correlation of a running start worth finishing, and at least 2.5 standard errors
KEPT = 6  # finished solutions remembered
SAME = 0.7  # map correlation from which on two solutions are one
FINISHING_SHARE = 0.3  # of the time so far that may go into finishing
RIVALS = 4  # origins tried where several agree almost equally well,
RIVALS_FROM = 0.25  # if the best agrees at least so well
COMPARABLE = 0.25  # held-out score from which on a solution is worth comparing with others


class Starts(Protocol):
    """Where starts come from, if they are not random."""

    def make(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """Maps (count, u, v, w) to begin with, at the origin and hand of the phases given."""
        ...


@dataclass(frozen=True, eq=False)
class Entrant:
    """A method with its problem: ``rows`` of the full list of reflections, starts per batch, cycles per start.

    core : projection that keeps the peaks of a map alone
    home : finisher at the method's own resolution, before those of the full data
    origin : the problem whose random starts are taken, where it is not ``problem``: that with seeds
    given : starts from phases that were given; their origin is that of the group, and is kept
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
    origin: Problem | None = None
    given: Starts | None = None
    finishers: tuple[Finisher, ...] = ()
    bar: float = PROMISING

    def starts(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """Maps (count, u, v, w) to begin with."""
        if self.given is not None:
            return self.given.make(count, generator)
        return (self.origin or self.problem).random_starts(count, generator)


@dataclass(frozen=True, eq=False)
class Finisher:
    """How a solution is refined on a problem: density projections tried in turn, the held-out score decides.

    flips : cycles of charge flipping in the group before, as an alternative
    known : phases of ``problem.hkl`` to be combined in
    """

    problem: Problem
    rows: NDArray[np.int64]
    projections: tuple[tuple[str, Projection], ...]
    cycles: int
    flips: int = 0
    known: PhaseDistributions | None = None

    def method(self, projection: Projection) -> Method:
        """The cycles that refine."""
        if self.known is not None:
            return Combined(self.problem, projection, self.known)
        return Alternating(self.problem, projection)


@dataclass(frozen=True, eq=False)
class Solution:
    """Phases in the crystal's group.

    f : (n,) complex structure factors of the density on all unique reflections (its own moduli, not the measured
    ones); score, r_work, symmetry as in Trial; trial : index of the start it came from; core : R of the density's
    peaks alone (``core_residual``); agreeing : number of other
    starts that led here; cluster : number of the solution, in order of discovery; given : it comes from phases that
    were given, so that neither its symmetry (NaN) nor other starts that agree (0) say anything
    """

    f: NDArray[np.complex128]
    score: float
    r_work: float
    symmetry: float
    held: int
    trial: int
    core: float
    d_min: float
    finisher: str = ""
    agreeing: int = 0
    cluster: int = 0
    given: bool = False

    @property
    def probability(self) -> float:
        return probability_solved(self.score, self.held, self.symmetry, self.agreeing, self.d_min)


def finish(
    f_p1: NDArray[np.complex128], entrant: Entrant, finishers: Sequence[Finisher], n: int, trial: int
) -> Solution:
    """Take a start's P1 phases home to the group, refine them with the symmetry imposed, keep what judges best.

    Rival origins are told apart by ``core_residual``: a wrong one leaves a superposition that needs more density.
    """
    problem = entrant.problem
    moduli = problem.expansion.spread(problem.amplitude)
    if not np.isfinite(f_p1).all():  # it diverged: random phases, as equal ones would look like a single heavy atom
        f_p1 = np.exp(2j * np.pi * np.random.default_rng(trial).random(len(f_p1)))
    phased = moduli * np.exp(1j * np.angle(f_p1))
    if entrant.given is not None:  # at the group's origin from the beginning, which is no evidence
        unseen = np.where(problem.held, 0, problem.expansion.average(phased, len(problem.hkl)))
        placed = [Placed(unseen, np.zeros(3), math.nan)]
        return _finish_placed(placed, entrant, finishers, n, trial)
    hands = (phased, np.conj(phased)) if hand_is_fixed(problem.spacegroup) else (phased,)
    placed = max(
        (place(f, problem.expansion, len(problem.hkl), problem.cell, problem.spacegroup, RIVALS) for f in hands),
        key=lambda p: -2.0 if math.isnan(p[0].symmetry) else p[0].symmetry,
    )
    if placed[0].symmetry < RIVALS_FROM:
        placed = placed[:1]
    return _finish_placed(placed, entrant, finishers, n, trial)


def _finish_placed(
    placed: Sequence[Placed], entrant: Entrant, finishers: Sequence[Finisher], n: int, trial: int
) -> Solution:
    """Refine phases brought to the group, from each rival origin, then with each finisher; the best of all."""
    starts = []
    for candidate in placed:
        start = np.zeros(n, dtype=np.complex128)
        start[entrant.rows] = candidate.f
        for f in (start, *flip_in_group(start, entrant)):
            refined = _refine(f, entrant.home, entrant.home.projections[0][1], n)[0] if entrant.home else f
            starts.append((core_residual(refined, entrant), candidate.symmetry, refined))
    core, symmetry, start = min(starts, key=lambda s: s[0])
    best: Solution | None = None
    for finisher in finishers:
        for name, projection in finisher.projections:
            f, score, residual = _refine(start, finisher, projection, n)
            held = int(finisher.problem.held.sum())
            solution = Solution(
                f, score, residual, symmetry, held, trial, core, finisher.problem.d_min, name,
                given=entrant.given is not None,
            )  # fmt: skip
            if best is None or solution.score > best.score:
                best = solution
    assert best is not None
    return best


def flip_in_group(start: NDArray[np.complex128], entrant: Entrant) -> list[NDArray[np.complex128]]:
    """Charge flipping with the group imposed every few cycles, where the entrant wants it: leaves false symmetry."""
    if entrant.home is None or not entrant.home.flips:
        return []
    problem = entrant.problem
    method = ChargeFlipping(problem)
    f = start[entrant.rows]
    x = inverse(problem.scatter(problem.amplitude * np.exp(1j * np.angle(f))), problem.shape)
    for _ in range(entrant.home.flips // 5):
        half = forward(method.advance(x, 5))
        mean = half[..., 0, 0, 0].clone()
        half = problem.scatter(problem.expansion.average(problem.gather_p1(half[0]), len(problem.hkl)))
        half[..., 0, 0, 0] = mean
        x = inverse(half, problem.shape)
    out = start.copy()
    f_p1 = problem.gather_p1(method.estimate(x)[0])
    out[entrant.rows] = problem.expansion.average(f_p1, len(problem.hkl))
    return [out]


def core_residual(f: NDArray[np.complex128], entrant: Entrant) -> float:
    """R between the measured moduli and those of the peaks alone, from the map of measured moduli and phases of f."""
    problem = entrant.problem
    phased = problem.amplitude * np.exp(1j * np.angle(f[entrant.rows]))
    x = unit_variance(inverse(problem.scatter(phased), problem.shape))
    return float(problem.residuals(forward(entrant.core(x)))[0])


def _refine(
    start: NDArray[np.complex128], finisher: Finisher, projection: Projection, n: int
) -> tuple[NDArray[np.complex128], float, float]:
    """Alternate projections and averaging over the group; structure factors, held-out score, R."""
    problem = finisher.problem
    f = start[finisher.rows]
    method = finisher.method(projection)
    score, residual = -1.0, 1.0
    cycles = min(10, finisher.cycles)
    for _ in range(max(1, finisher.cycles // 10)):
        x = unit_variance(inverse(problem.scatter(f), problem.shape))
        half = method.estimate(method.advance(x, cycles))
        f = problem.expansion.average(problem.gather_p1(half[0]), len(problem.hkl))
        score, residual = float(problem.scores(half)[0]), float(problem.residuals(half)[0])
    out = start.copy()
    out[finisher.rows] = f
    return out, score, residual


@dataclass(eq=False)
class Hunt:
    """The state of a search: trials so far and the best solutions, best first."""

    problem: Problem
    finishing: float = 0.0  # seconds
    trials: list[Trial] = field(default_factory=list)
    solutions: list[Solution] = field(default_factory=list)

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
        kept = [
            replace(s, agreeing=s.agreeing + 1) if s in mates and not older and not s.given else s
            for s in self.solutions
        ]
        kept = [s for s in kept if s.trial != solution.trial]
        self.solutions = sorted([*kept, solution], key=lambda s: -s.score)[:KEPT]
        i = solution.trial
        self.trials[i] = replace(
            self.trials[i], score=solution.score, r_work=solution.r_work, symmetry=solution.symmetry,
            cluster=cluster, finished=True,
        )  # fmt: skip

    def _same(self, a: Solution, b: Solution) -> bool:
        if min(a.score, b.score) < COMPARABLE:
            return False
        p = self.problem
        return compare(p.hkl, a.f, b.f, p.cell, p.spacegroup, repeats=0).map_cc >= SAME

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
    progress: Callable[[float, Trial | None], None],
    now: Callable[[], float] = time.monotonic,
) -> Hunt:
    """Run batches of starts, each entrant in turn according to its share of the time.

    Parameters
    ----------
    whole : the problem with all data, on whose reflections solutions are compared
    n : number of unique reflections of the crystal
    seconds : time for the whole search; batches go on, a block of cycles each, until there is one solution
    most_trials : stop after so many starts
    now : the clock, in seconds
    """
    hunt = Hunt(whole)
    generator = torch.Generator().manual_seed(seed)
    began = now()
    spent = [0.0] * len(entrants)

    def elapsed() -> float:
        return now() - began

    while not hunt.convinced and (not hunt.solutions or elapsed() < seconds):
        left = math.inf if most_trials is None else most_trials - len(hunt.trials)
        if left <= 0:
            break
        turn = min(range(len(entrants)), key=lambda i: spent[i] / entrants[i].share)
        before = elapsed()
        count = int(min(entrants[turn].batch, left))
        _batch(
            entrants[turn], finishers, n, hunt, count, count == left, seed, generator, before, now,
            lambda: seconds - elapsed(), lambda: progress(min(1.0, elapsed() / seconds), hunt.best),
        )  # fmt: skip
        spent[turn] += elapsed() - before
    return hunt


def _batch(
    entrant: Entrant,
    finishers: Sequence[Finisher],
    n: int,
    hunt: Hunt,
    count: int,
    final: bool,
    seed: int,
    generator: torch.Generator,
    spent_before: float,
    now: Callable[[], float],
    time_left: Callable[[], float],
    tell: Callable[[], None],
) -> None:
    """One batch of starts, finished as soon as one looks promising, the best of it in any case (but see ``bar``).

    ``final``: no more starts are allowed
    """
    first = len(hunt.trials)
    hunt.trials += [Trial(first + i, entrant.method.name, seed, 0, 0.0, -1.0, 1.0, float("nan")) for i in range(count)]
    began = now()
    x = entrant.starts(count, generator)
    bar = np.full(count, max(entrant.bar, 2.5 / math.sqrt(max(1, int(entrant.problem.held.sum())))))
    finished = False
    done = 0
    while done < entrant.cycles:
        x = entrant.method.advance(x, entrant.block, done)
        done += entrant.block
        half = entrant.method.estimate(x)
        scores = np.nan_to_num(entrant.problem.scores(half).cpu().numpy().astype(float), nan=-1.0)
        residuals = entrant.problem.residuals(half).cpu().numpy().astype(float)
        seconds = (now() - began) / count
        for i in range(count):
            trial = replace(hunt.trials[first + i], cycles=done, seconds=seconds)
            if not trial.finished:
                trial = replace(trial, score=float(scores[i]), r_work=float(residuals[i]))
            hunt.trials[first + i] = trial
        out_of_time = time_left() <= 0
        last = done >= entrant.cycles or out_of_time
        # The start furthest above its own bar: a start that was finished in vain must improve to be tried again.
        leader = int(np.argmax(scores - bar))
        affordable = hunt.finishing <= FINISHING_SHARE * (spent_before + now() - began)
        promising = scores[leader] > bar[leader] and affordable and not out_of_time
        wanted = entrant.bar <= PROMISING and (affordable or not hunt.solutions)
        if promising or (last and not finished and (wanted or (final and not hunt.solutions))):
            bar[leader] = scores[leader] + 0.04
            since = now()
            phases = entrant.problem.gather_p1(half[leader])
            hunt.add(finish(phases, entrant, entrant.finishers or finishers, n, first + leader))
            hunt.finishing += now() - since
            finished = True
        tell()
        if last or hunt.convinced:
            break
