"""Polishing of atomic solutions by a projection that sees part of the data."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from crystals import Crystal, agreement, crystal
from test_plan import data_of

from ml_phaser.crystal.normalise import normalise
from ml_phaser.parameters import Options
from ml_phaser.phasing.dual_space import Projection
from ml_phaser.phasing.finish import Finisher, Solution
from ml_phaser.phasing.polish import Polisher, telling
from ml_phaser.phasing.problem import pose
from ml_phaser.phasing.search import Hunt
from ml_phaser.plan import plan_phasing

COARSE = 1.3
OPTIONS = Options(Path("in"), Path("map"), Path("mtz"), Path("json"), threads=1)


def made(projection: Projection | None = None) -> tuple[Crystal, Polisher]:
    """A crystal of resolved atoms, and a polisher that knows what it looks like if it is not told otherwise."""
    c = crystal("P 1 21 1", atoms=12, d_min=0.9)
    held = np.random.default_rng(0).random(len(c.hkl)) < 0.15
    rows = np.flatnonzero(c.cell.calculate_d_array(c.hkl) >= COARSE)
    data = data_of(c.hkl, c.f, c.cell, c.spacegroup)
    e = normalise(data).e * np.sqrt(data.epsilon)
    whole = pose(c.hkl, e, np.ones(len(c.f)), held, c.cell, c.spacegroup, spacing=0.45)
    # The coarse problem has another fall-off: scales of moduli must not matter.
    fall_off = 3.0 * np.exp(-c.cell.calculate_1_d2_array(c.hkl))
    seen = pose((c.hkl)[rows], (np.abs(c.f) * fall_off)[rows], 1 / fall_off[rows], held[rows], c.cell, c.spacegroup,
                spacing=0.6)  # fmt: skip
    truth = torch.fft.irfftn(seen.scatter((c.f * fall_off)[rows]), s=seen.shape, norm="ortho")
    finisher = Finisher(seen, rows, (("network", projection or (lambda rho: truth + 0 * rho)),), 10)
    return c, Polisher(finisher, whole, np.arange(len(c.hkl)))


def shaken(c: Crystal, spread: float) -> np.ndarray:
    rng = np.random.default_rng(1)
    free = np.abs(c.f.imag) > 1e-6 * np.abs(c.f)
    return c.f * np.exp(1j * np.where(free, rng.normal(0, spread, len(c.f)), 0)) * rng.uniform(0.3, 1.7, len(c.f))


def solution(f: np.ndarray, score: float = 0.4) -> Solution:
    return Solution(f, score, 0.3, 0.5, 7, 0, 0.3, 0.9, "sparse")


def test_what_the_network_sees_is_refined_and_the_rest_stays() -> None:
    c, polisher = made()
    before = solution(shaken(c, 0.8))
    after = polisher(before)
    rows = polisher.finisher.rows
    finer = np.setdiff1d(np.arange(len(c.f)), rows)
    assert 20 < len(rows) < 0.6 * len(c.f)
    np.testing.assert_array_equal(after.f[finer], before.f[finer])
    assert np.abs(np.angle(after.f[rows] * np.conj(c.f[rows]))).max() < 0.01
    assert agreement(c, after.f) > agreement(c, before.f) + 0.1
    assert after.polished and after.finisher == "sparse, learned"
    assert (after.symmetry, after.trial, after.d_min) == (before.symmetry, before.trial, before.d_min)


def test_the_score_is_of_what_says_more_whatever_the_scale() -> None:
    c, polisher = made()
    before = solution(shaken(c, 0.8))
    after = polisher(before)
    coarse = polisher.held & polisher.seen
    of_all, of_coarse = (polisher.correlation(after.f, which) for which in (polisher.held, coarse))
    assert of_coarse > of_all + 0.1  # the network knows what it sees
    assert (after.score, after.held) == (pytest.approx(of_coarse), coarse.sum())
    assert polisher.correlation(np.abs(c.f), polisher.held) > 0.9
    flat = after.f * np.where(polisher.seen, 17.0, 0.2)
    assert polisher.correlation(flat, polisher.held) == pytest.approx(of_all, abs=1e-6)
    whole = np.ones(len(c.f), dtype=bool)
    assert polisher.correlation(np.ones(len(c.f), dtype=complex), whole) == pytest.approx(0, abs=0.2)


def test_many_reflections_say_more_than_few() -> None:
    assert telling((0.6, 0.7), (100, 10)) == (0.6, 100)
    assert telling((0.1, 0.7), (100, 10)) == (0.7, 10)


def test_a_network_that_makes_things_worse_is_not_followed() -> None:
    c, polisher = made(lambda rho: torch.randn(rho.shape, generator=torch.Generator().manual_seed(3)))
    before = solution(shaken(c, 0.05), score=0.9)
    after = polisher(before)
    np.testing.assert_array_equal(after.f, before.f)
    assert after.polished and after.finisher == "sparse"
    coarse = polisher.seen & polisher.held
    assert after.score < 0.8 and after.held in (int(polisher.held.sum()), int(coarse.sum()))


def test_the_best_solutions_of_a_search_are_polished_once() -> None:
    c, polisher = made()
    calls: list[int] = []

    class Counted(Polisher):
        def __call__(self, solution: Solution) -> Solution:
            calls.append(solution.trial)
            return super().__call__(solution)

    counted = Counted(polisher.finisher, polisher.whole, polisher.rows)
    hunt = Hunt(polisher.whole)
    from ml_phaser.outcome import Trial

    for i in range(4):
        hunt.trials.append(Trial(i, "x", 0, 10, 0.0, -1.0, 1.0, float("nan")))
        hunt.add(replace(solution(shaken(c, 0.5 + 0.3 * i), score=0.5 - 0.1 * i), trial=i, polished=i == 0))
    hunt.polish(counted)
    assert calls == [1]  # the second of the best two; the first was polished when it was found
    assert [s.polished for s in sorted(hunt.solutions, key=lambda s: s.trial)] == [True, True, False, False]
    assert hunt.trials[1].score == next(s.score for s in hunt.solutions if s.trial == 1)
    assert [s.merit for s in hunt.solutions] == sorted((s.merit for s in hunt.solutions), reverse=True)


@pytest.mark.parametrize(
    ("engine", "d_min", "polishes", "searches"),
    [
        ("auto", 0.85, True, False),
        ("auto", 1.1, True, True),
        ("auto", 1.5, False, True),
        ("learned", 0.85, True, True),
        ("classical", 0.85, False, False),
    ],
)
def test_the_network_polishes_what_is_finer_than_it_sees(
    engine: str, d_min: float, polishes: bool, searches: bool
) -> None:
    c = crystal("P 1 21 1", atoms=12, d_min=d_min)
    data = data_of(c.hkl, c.f, c.cell, c.spacegroup)
    planned = plan_phasing(data, normalise(data), replace(OPTIONS, engine=engine))
    assert (planned.polisher is not None) == polishes
    assert any("learned" in e.method.name for e in planned.entrants) == searches
    assert bool(planned.weights) == (polishes or searches)
    if planned.polisher is not None:
        d = c.cell.calculate_d_array(c.hkl)
        assert d[planned.polisher.finisher.rows].min() >= COARSE
        assert any("1.3 A" in said for said in planned.choices)
