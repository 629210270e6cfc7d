"""From the P1 phases of a start to a solution in the crystal's group: place, refine, keep what judges best."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ml_phaser.crystal.peaks import Atoms
from ml_phaser.crystal.phase_distributions import PhaseDistributions
from ml_phaser.outcome import Fragments
from ml_phaser.phasing.combination import Combined
from ml_phaser.phasing.confidence import probability_of_atoms, probability_of_pieces, probability_solved
from ml_phaser.phasing.dual_space import Alternating, ChargeFlipping, Method, Projection
from ml_phaser.phasing.place import Placed, hand_is_fixed, place
from ml_phaser.phasing.problem import Problem
from ml_phaser.phasing.projections import forward, inverse, unit_variance

if TYPE_CHECKING:
    from ml_phaser.phasing.search import Entrant

RIVALS = 4  # origins tried where several agree almost equally well,
RIVALS_FROM = 0.25  # if the best agrees at least so well


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
    were given, so that neither its symmetry (NaN) nor other starts that agree (0) say anything; polished : the learned
    projection and free atoms have had their say; chance : score that random phases come to, NaN where that was not
    tried; atoms : that ``f`` is calculated of, where it is not of a density; worth : how well they explain the moduli,
    as in ``confidence.probability_of_atoms``; veil : name of what was taken from the network's density in turns, as in
    ``veils.VEILS``, empty: nothing, None: to be found out
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
    fragments: Fragments | None = None
    polished: bool = False
    veil: str | None = None
    chance: float = math.nan
    atoms: Atoms | None = None
    worth: float = math.inf

    @property
    def merit(self) -> float:
        """What solutions are ranked by: the held-out score, of pieces the judgement of all reflections with it."""
        return self.score if self.fragments is None else self.fragments.merit

    @property
    def probability(self) -> float:
        p = probability_solved(self.score, self.held, self.symmetry, self.agreeing, self.d_min)
        p = max(p, probability_of_atoms(self.worth, self.score))
        placed = self.fragments
        return p if placed is None else max(p, probability_of_pieces(placed.merit, placed.lead, self.held))


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
    if entrant.seeded:
        placed = [replace(p, symmetry=math.nan) for p in placed]
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
            refined = refine(f, entrant.home, entrant.home.projections[0][1], n)[0] if entrant.home else f
            starts.append((core_residual(refined, entrant), candidate.symmetry, refined))
    core, symmetry, start = min(starts, key=lambda s: s[0])
    best: Solution | None = None
    for finisher in finishers:
        for name, projection in finisher.projections:
            f, score, residual = refine(start, finisher, projection, n)
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
        mean = half[..., 0, 0, 0] + 0.0
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


def refine(
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
