"""The search and the hand, on crystals a second solves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from crystals import Crystal, agreement, crystal, problem_of

from ml_phaser.outcome import Trial
from ml_phaser.phasing.dual_space import Relaxed, sparse
from ml_phaser.phasing.finish import Finisher, Solution
from ml_phaser.phasing.projections import forward, inverse
from ml_phaser.phasing.search import Entrant, Hunt, search


def hunt_for(c: Crystal, *, trials: int | None = None, seconds: float = 20.0, seed: int = 0, cycles: int = 600) -> Hunt:
    p = problem_of(c)
    rows = np.arange(len(c.hkl))
    home = Finisher(p, rows, (("sparse", sparse(0.06)),), 20, flips=50)
    method = Relaxed(p, sparse(0.08), 0.4, "RRR")
    entrant = Entrant(method, p, rows, batch=4, cycles=cycles, block=50, core=sparse(0.02), home=home)
    told: list[float] = []
    counts: list[int] = []

    def listen(fraction: float, best: Trial | None, trials: Sequence[Trial]) -> None:
        told.append(fraction)
        counts.append(len(trials))

    hunt = search([entrant], [home], p, len(c.hkl), seconds=seconds, most_trials=trials, seed=seed,
                  progress=listen)  # fmt: skip
    assert told and min(told) >= 0 and max(told) <= 1
    assert counts == sorted(counts) and counts[-1] == len(hunt.trials)
    return hunt


@pytest.mark.parametrize("name", ["P 1", "P 1 21 1", "P 21 21 21", "P 1 21/c 1", "P 41"])
def test_a_small_crystal_is_solved_in_its_group(name: str) -> None:
    c = crystal(name, atoms=12 if name == "P 1" else 6, d_min=0.9, seed=2)
    hunt = hunt_for(c)
    best = hunt.solutions[0]
    assert best.probability > 0.9
    assert agreement(c, best.f) > 0.9
    trial = hunt.trials[best.trial]
    assert trial.finished and trial.score == best.score and trial.cluster == best.cluster


def test_noise_convinces_nobody() -> None:
    c = crystal("P 21 21 21", atoms=6, d_min=0.9)
    rng = np.random.default_rng(0)
    noise = np.abs(rng.normal(size=(len(c.hkl), 2)) @ np.array([1, 1j])).astype(complex)
    hunt = hunt_for(Crystal(c.hkl, noise, c.cell, c.spacegroup, c.sites), trials=8, cycles=200)
    assert len(hunt.trials) == 8
    assert hunt.solutions[0].probability < 0.25


def test_the_seed_decides_and_the_number_of_trials_is_kept() -> None:
    c = crystal("P 1", atoms=30, d_min=1.3)  # too hard: the search runs to its end
    first, again, other = (hunt_for(c, trials=3, cycles=50, seed=s) for s in (0, 0, 1))
    assert len(first.trials) == 3
    scores = [[t.score for t in h.trials] for h in (first, again, other)]
    assert scores[0] == pytest.approx(scores[1])
    assert scores[0] != pytest.approx(scores[2])


def test_time_is_a_limit() -> None:
    hunt = hunt_for(crystal("P 1", atoms=30, d_min=1.3), seconds=0.01)
    assert len(hunt.trials) == 4 and hunt.trials[0].cycles == 50
    assert hunt.solutions  # even so there is a best map


def test_equal_solutions_are_counted_up_to_origin_and_hand() -> None:
    c = crystal("P 21 21 21", atoms=6, d_min=1.0)
    hunt = Hunt(problem_of(c))
    hunt.trials = list(hunt_for(c, trials=4, cycles=50).trials)
    shifted = np.conj(c.f) * np.exp(1j * np.pi * c.hkl[:, 0])
    wrong = np.abs(c.f) * np.exp(2j * np.pi * np.random.default_rng(0).random(len(c.f)))
    for trial, (f, score) in enumerate(((c.f, 0.6), (wrong, 0.5), (shifted, 0.7))):
        hunt.add(Solution(f, score, 0.3, 0.9, 100, trial, 0.4, 1.0))
    assert [s.trial for s in hunt.solutions] == [2, 0, 1]
    assert [s.agreeing for s in hunt.solutions] == [1, 1, 0]
    assert hunt.solutions[0].cluster == hunt.solutions[1].cluster != hunt.solutions[2].cluster


def test_solutions_are_compared_where_reflections_are_left_out_of_the_search() -> None:
    c = crystal("P 21 21 21", atoms=6, d_min=1.0)
    rows = np.delete(np.arange(len(c.hkl)), [3, 40])
    whole = problem_of(c)
    hunt = Hunt(replace(whole, hkl=c.hkl[rows]), rows)
    hunt.trials = list(hunt_for(c, trials=4, cycles=50).trials)
    spoilt = c.f.copy()
    spoilt[[3, 40]] *= -1e6  # what is left out does not count
    for trial, f in enumerate((c.f, spoilt)):
        hunt.add(Solution(f, 0.6, 0.3, 0.9, 100, trial, 0.4, 1.0))
    assert [s.agreeing for s in hunt.solutions] == [1, 1]


def test_a_start_that_diverges_stops_nothing() -> None:
    c = crystal("P 21 21 21", atoms=4, d_min=1.2)
    p = problem_of(c)
    rows = np.arange(len(c.hkl))
    home = Finisher(p, rows, (("sparse", sparse(0.06)),), 10)
    broken = Relaxed(p, lambda rho: rho * float("nan"), 0.4, "broken")
    entrant = Entrant(broken, p, rows, batch=2, cycles=10, block=5, core=sparse(0.02), home=home)
    hunt = search([entrant], [home], p, len(c.hkl), seconds=5, most_trials=2, seed=0, progress=lambda *_: None)
    best = hunt.solutions[0]
    assert np.isfinite(best.f).all() and np.isfinite(best.score)
    assert best.probability < 0.25 or agreement(c, best.f) > 0.5


@dataclass(frozen=True, eq=False)
class Told:
    """A method that turns the first start of a batch into the truth after some cycles, and leaves the others."""

    truth: torch.Tensor
    after: int
    name: str = "told"

    def advance(self, x: torch.Tensor, cycles: int, done: int = 0) -> torch.Tensor:
        return torch.cat([self.truth, x[1:]]) if done + cycles == self.after else x

    def estimate(self, x: torch.Tensor) -> torch.Tensor:
        return forward(x)


def test_a_start_that_has_settled_is_finished_whatever_it_scores_and_leaves_the_batch() -> None:
    c = crystal("P 1 21 1", atoms=6, d_min=1.0)
    p = problem_of(c)
    rows = np.arange(len(c.hkl))
    home = Finisher(p, rows, (("sparse", sparse(0.06)),), 10)
    method = Told(inverse(p.scatter(c.f), p.shape), 20)
    entrant = Entrant(method, p, rows, batch=4, cycles=50, block=10, core=sparse(0.02), home=home, bar=2.0)
    hunt = search([entrant], [home], p, len(c.hkl), seconds=60, most_trials=4, seed=0, progress=lambda *_: None)
    assert [t.finished for t in hunt.trials] == [True, False, False, False]
    assert hunt.trials[0].cycles == 20
    assert agreement(c, hunt.solutions[0].f) > 0.9
    # Nothing settles where no start differs from the others: the level is the method's own.
    assert not Hunt(p).settled("any", np.array([0.1, 0.1])).any()
    hunt.settled("flat", np.full(8, 0.3))
    assert hunt.settled("flat", np.array([0.3, 0.2, 0.29])).tolist() == [False, True, False]
