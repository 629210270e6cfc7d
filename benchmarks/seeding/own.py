"""Seeds from the engine's own maps, on crystals it did not solve at once.

One crystal: the engine from random starts for t processor seconds. Where its map is not solved, seeds are made of it
(the strongest by |E| x probability of their quadrant) and the engine goes on with them for t seconds more; a second
run, without seeds, has 2 t seconds from random starts. Both choose among all their solutions as the program does.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.phasing.crystals import Crystal, Recipe
from benchmarks.phasing.entrants import Clock, options
from benchmarks.phasing.runner import judged
from benchmarks.phasing.tables import SOLVED_CC
from benchmarks.phasing.tasks import ORDERS, dense
from benchmarks.seeding.design import FLAWS, SMALL
from benchmarks.seeding.oracle import brief
from ml_phaser.crystal.agreement import compare, move
from ml_phaser.crystal.normalise import Normalised
from ml_phaser.crystal.phase_distributions import bin_probabilities
from ml_phaser.outcome import Phases
from ml_phaser.phasing.finish import Solution
from ml_phaser.phasing.search import Hunt
from ml_phaser.phasing.seeds import Seeds, quadrants, seeded, strongest
from ml_phaser.plan import Plan

D_MIN = (1.2, 1.4, 1.6)
SHARES = (0.2,)
BINS = 4  # quadrants
OFFSET = 100  # added to the seed: other crystals than those of true seeds
RANDOM = "no seeds"
Row = dict[str, Any]


def recipes(crystals: int, seed: int) -> list[Recipe]:
    """Small peptides, groups and resolutions in turn, every pair of them before one comes again."""
    found = []
    for i in range(crystals):
        group, asu = SMALL[i % len(SMALL)]
        point = (D_MIN[(i + i // len(D_MIN)) % len(D_MIN)], asu * ORDERS[group], group, FLAWS)
        found += dense([(point, OFFSET + i)], 0.0, seed, "own seeds")
    return found


def seeds_of(phases: Phases, e: NDArray[np.float64], crystal: Crystal, share: float) -> Seeds:
    """The quadrants that ``phases`` find likeliest, on the ``share`` (0-1) of the reflections with the largest
    ``e`` x probability of that quadrant."""
    data = crystal.data
    chances = bin_probabilities(phases.hl, data.centric, BINS)
    middle = (chances.argmax(axis=1) + 0.5) * (2 * np.pi / BINS)
    phase = quadrants(data.hkl, np.where(data.centric, phases.phase, middle), data.spacegroup)
    return Seeds(phase, strongest(e * chances.max(axis=1), share))


@dataclass(frozen=True, eq=False)
class Found:
    """One search: its plan, state, and processor seconds."""

    plan: Plan
    hunt: Hunt
    seconds: float


def hunted(
    crystal: Crystal, normalised: Normalised, seconds: float, seed: int, luck: int, seeds: Seeds | None = None
) -> Found:
    """The engine for so many processor seconds. ``seed`` of the reflections held out, ``luck`` of the starts."""
    from ml_phaser.phasing.search import Hunt, search
    from ml_phaser.plan import plan_phasing

    clock = Clock()
    plan = plan_phasing(crystal.data, normalised, replace(options(seconds, seed, "auto"), starts="random"))
    entrants = [brief(e) for e in plan.entrants]
    if seeds is not None:
        entrants = [seeded(e, seeds) for e in entrants]
    hunt = search(
        entrants, plan.finishers, plan.whole, plan.n, seconds=max(0.1, seconds - clock()), most_trials=None, seed=luck,
        progress=lambda *_: None, now=time.process_time, hunt=Hunt(plan.whole, plan.rows),
    )  # fmt: skip
    return Found(plan, hunt, clock())


def chosen(solutions: Sequence[Solution]) -> Solution:
    """As the program chooses."""
    return max(solutions, key=lambda s: s.probability)


def told(crystal: Crystal, solutions: Sequence[Solution], seconds: float, trials: int) -> Row:
    """How good the solution chosen is, and the best that was there."""
    best = chosen(solutions)
    row = judged(crystal, best.f, False, False, 0)
    return {
        "cc": row["cc"], "phase_error": row["phase_error"], "probability": round(best.probability, 3),
        "score": round(best.score, 3), "best_cc": max(judged(crystal, s.f, False, False, 0)["cc"] for s in solutions),
        "seconds": round(seconds, 1), "trials": trials,
    }  # fmt: skip


def worth(seeds: Seeds, f: NDArray[np.complex128], crystal: Crystal) -> Row:
    """How right the seeds made of structure factors ``f`` are, where f agrees best with the truth: their number, the
    share within 45 degrees of the true phase, the mean error in degrees."""
    data, known = crystal.data, np.isfinite(crystal.f)
    map_f = data.f * np.exp(1j * np.angle(f))
    a = compare(data.hkl[known], map_f[known], crystal.f[known], data.cell, data.spacegroup, repeats=0)
    moved = move(data.hkl, np.exp(1j * seeds.phase), a.origin_shift, a.inverted)
    error = np.abs(np.angle(moved * np.conj(np.where(known, crystal.f, 1))))[seeds.given & known]
    return {
        "n": len(error), "right": round(float((error <= np.pi / 4 + 1e-6).mean()), 3),
        "error": round(float(np.rad2deg(error.mean())), 1),
    }  # fmt: skip


def one(crystal: Crystal, seconds: float, seed: int) -> Row:
    """All that is done with a crystal; arms only where it is not solved at once."""
    from ml_phaser.crystal.normalise import normalise
    from ml_phaser.pipeline import weigh

    normalised = normalise(crystal.data)
    first = hunted(crystal, normalised, seconds, seed, seed)
    solutions = list(first.hunt.solutions)
    row: Row = {"first": told(crystal, solutions, first.seconds, len(first.hunt.trials))}
    if row["first"]["cc"] >= SOLVED_CC:
        return row
    arms: dict[str, Row] = {}
    longer = hunted(crystal, normalised, 2 * seconds, seed, seed + 1)
    arms[RANDOM] = told(crystal, longer.hunt.solutions, longer.seconds, len(longer.hunt.trials))
    best = chosen(solutions)
    phases = weigh(crystal.data, normalised, first.plan, best, keep_hand=True)[0]
    for share in SHARES:
        seeds = seeds_of(phases, normalised.e, crystal, share)
        more = hunted(crystal, normalised, seconds, seed, seed + 1, seeds)
        both, trials = [*solutions, *more.hunt.solutions], len(first.hunt.trials) + len(more.hunt.trials)
        arm = told(crystal, both, first.seconds + more.seconds, trials)
        arms[arm_name(share)] = {**arm, "seeds": worth(seeds, best.f, crystal)}
    return {**row, "arms": arms}


def arm_name(share: float) -> str:
    return f"seeds on {share:.0%}"
