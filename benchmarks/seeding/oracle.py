"""Phasing with seeds that are right, as far as the treatment says: charge flipping and the learned projection.

Both get the program's own search, with its finishing, and the same processor time. Starts of the learned projection are
shortened, so that one is begun, held, released and finished within seconds of one core.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from benchmarks.phasing.crystals import Crystal
from benchmarks.phasing.entrants import Answer, Clock, options
from benchmarks.phasing.entrants import Entrant as Contestant
from benchmarks.seeding.design import ENGINES, Treatment, every
from ml_phaser.phasing.search import Entrant
from ml_phaser.phasing.seeds import Seeds, quadrants, seeded, strongest
from ml_phaser.plan import LEARNED

LEARNED_CYCLES = 60  # of a start, one at a time; the program's default is 200 cycles of several at once


def noisy_quadrants(crystal: Crystal, e: NDArray[np.float64], share: float, noise: float, seed: int) -> Seeds:
    """Seeds on the ``share`` (0-1) of the reflections with the largest ``e`` (n,): the quadrants of the true phases
    after a Gaussian error of s.d. ``noise`` in degrees. The same errors, scaled, at every noise."""
    data, known = crystal.data, np.isfinite(crystal.f)
    error = np.random.default_rng([seed, len(data)]).normal(size=len(data))
    phase = np.angle(np.where(known, crystal.f, 1)) + np.deg2rad(noise) * error
    return Seeds(quadrants(data.hkl, phase, data.spacegroup), strongest(np.where(known, e, 0), share) & known)


def brief(entrant: Entrant) -> Entrant:
    """The learned projection with short starts, one at a time; others as they are."""
    if entrant.method.name != LEARNED:
        return entrant
    return replace(entrant, batch=1, cycles=LEARNED_CYCLES, block=min(entrant.block, 10))


def given(entrant: Entrant, seeds: Seeds, held: bool) -> Entrant:
    """The entrant with seeds: held for the first half of its cycles, or forming its starts and no more."""
    bound = seeded(entrant, seeds)
    return bound if held else replace(bound, method=entrant.method)


def phased(crystal: Crystal, seconds: float, seed: int, *, treatment: Treatment) -> Answer:
    """The likeliest solution that one engine finds in so many processor seconds."""
    import time

    from ml_phaser.crystal.normalise import normalise
    from ml_phaser.phasing.confidence import SOLVED
    from ml_phaser.phasing.search import Hunt, search
    from ml_phaser.plan import plan_phasing

    clock, data = Clock(), crystal.data
    normalised = normalise(data)
    kind, name = ("classical", "charge flipping") if treatment.engine == ENGINES[0] else ("learned", LEARNED)
    plan = plan_phasing(data, normalised, replace(options(seconds, seed, kind), starts="random"))
    entrants = [brief(e) for e in plan.entrants if e.method.name == name]
    if treatment.share:
        seeds = noisy_quadrants(crystal, normalised.e, treatment.share, treatment.noise, seed)
        entrants = [given(e, seeds, treatment.held) for e in entrants]
    hunt = search(
        entrants, plan.finishers, plan.whole, plan.n, seconds=max(0.1, seconds - clock()), most_trials=None, seed=seed,
        progress=lambda *_: None, now=time.process_time, hunt=Hunt(plan.whole, plan.rows),
    )  # fmt: skip
    best = max(hunt.solutions, key=lambda s: s.probability)
    return Answer(best.f, len(hunt.trials), best.score, best.probability >= SOLVED, said=entrants[0].method.name)


def contestants() -> dict[str, Contestant]:
    """All treatments by name, as the runner of the phasing benchmark takes them."""
    return {name: partial(phased, treatment=t) for name, t in every().items()}
