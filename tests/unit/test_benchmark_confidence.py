"""The benchmark of confidence: its measures on distributions whose answer is known, its cases, its judgement."""

from __future__ import annotations

import gemmi
import numpy as np
import pytest
from scipy.stats import vonmises

from benchmarks.confidence import verdict
from benchmarks.confidence.crystals import FINE, cases
from benchmarks.confidence.fit import fit_seeds
from benchmarks.confidence.measures import equal_count, equal_width, expected_error, largest_gap, quadrant
from benchmarks.confidence.rows import judged
from ml_phaser.crystal.agreement import move
from ml_phaser.phasing import confidence

RNG = np.random.default_rng(3)


def test_promises_kept_have_no_error_and_broken_ones_theirs() -> None:
    promised = RNG.random(200_000)
    kept = (RNG.random(200_000) < promised).astype(float)
    assert expected_error(equal_width(promised, kept)) < 0.01
    assert largest_gap(equal_count(promised, promised, kept)) < 0.02
    assert expected_error(equal_width(promised / 2, kept)) == pytest.approx(0.25, abs=0.01)
    assert sum(b.n for b in equal_width(promised, kept)) == 200_000


@pytest.mark.parametrize("x", [0.0, 0.7, 3.0, 20.0])
def test_the_probability_of_a_quadrant_is_the_integral_over_it(x: float) -> None:
    best = RNG.uniform(0, 2 * np.pi, 50)
    hl = np.column_stack([x * np.cos(best), x * np.sin(best), np.zeros((50, 2))])
    p, _ = quadrant(hl, np.zeros(50, dtype=bool), np.zeros(50))
    first = np.floor(best / (np.pi / 2)) * np.pi / 2
    wanted = vonmises.cdf(first + np.pi / 2 - best, x) - vonmises.cdf(first - best, x) if x else np.full(50, 0.25)
    assert p == pytest.approx(wanted, abs=1e-3)


def test_phases_drawn_from_their_distribution_fall_as_often_as_promised() -> None:
    n = 40_000
    x, best = RNG.uniform(0, 6, n), RNG.uniform(0, 2 * np.pi, n)
    hl = np.column_stack([x * np.cos(best), x * np.sin(best), np.zeros((n, 2))])
    centric = np.arange(n) % 3 == 0
    turn = np.where(centric, np.pi * (RNG.random(n) > (1 + np.tanh(x)) / 2), RNG.vonmises(0, x))
    p, right = quadrant(hl, centric, turn)
    assert largest_gap(equal_count(p, p, right)) < 0.03


def crystal(group: str = "P 1") -> tuple[np.ndarray, gemmi.UnitCell, gemmi.SpaceGroup, np.ndarray]:
    cell, spacegroup = gemmi.UnitCell(9, 11, 13, 90, 90, 90), gemmi.SpaceGroup(group)
    hkl = np.asarray(gemmi.make_miller_array(cell, spacegroup, 1.2), dtype=np.int32)
    sites = np.random.default_rng(1).random((8, 3))
    ops = [(np.array(op.rot) / op.DEN, np.array(op.tran) / op.DEN) for op in spacegroup.operations()]
    return hkl, cell, spacegroup, sum(np.exp(2j * np.pi * (hkl @ (sites @ r.T + t).T)).sum(1) for r, t in ops)


def test_right_phases_are_right_at_any_origin_and_random_ones_have_no_luck() -> None:
    hkl, cell, group, f = crystal()
    elsewhere = judged(hkl, move(hkl, f, (0.2, 0.3, 0.4), inverted=True), f, cell, group, searched=True)
    assert np.cos(np.angle(elsewhere["moved"] * np.conj(f))).mean() > 0.99 and elsewhere["cc"] > 0.99
    luck = []
    for seed in range(8):
        phase = np.random.default_rng(seed).uniform(0, 2 * np.pi, len(f))
        found = judged(hkl, np.abs(f) * np.exp(1j * phase), f, cell, group, searched=True)
        luck.append(np.cos(np.angle(found["moved"] * np.conj(f))).mean())
        assert found["cc"] > 0.02  # the best of all origins flatters
    assert abs(np.mean(luck)) < 0.02


def test_phases_put_in_keep_their_origin_unless_the_search_found_a_better_one() -> None:
    hkl, cell, group, f = crystal()
    rng = np.random.default_rng(0)
    noisy = f * np.exp(1j * rng.vonmises(0, 1.0, len(f)))
    assert np.array_equal(judged(hkl, noisy, f, cell, group, searched=False)["moved"], noisy)
    solved = judged(hkl, move(hkl, f, (0.2, 0.3, 0.4)), f, cell, group, searched=False)
    assert solved["cc"] > 0.99


def test_a_number_is_always_the_same_crystal() -> None:
    once, again = (list(cases("validation", 3, 9)) for _ in range(2))
    assert once == again and once[2] == next(cases("validation", 5, 6))
    assert [c.settings for c in cases("holdout", 3, 9)] != [c.settings for c in once]
    assert all(0.6 <= c.settings["d_min"] <= 0.9 for c in cases("validation", FINE, FINE + 20))
    everything = list(cases("validation", 0, 300))
    assert 0.2 < np.mean([c.given is not None for c in everything]) < 0.4
    assert any(c.claimed is not None for c in everything) and any(c.boast < 1 for c in everything)


def test_the_verdict_that_is_fitted_is_the_one_that_is_used() -> None:
    """The formulas of the fit with the constants of the program give the program's probabilities."""

    class Row:
        def __init__(self, score: float, held: int, given: np.ndarray | None) -> None:
            own = {"score": score, "held": held, "symmetry": None, "agreeing": 1, "d_min": 1.4}
            self.about = {"own": own}
            self.evidence = type("E", (), {"given": given})()

    nan = float("nan")
    rows = [Row(s, h, None) for s in (-0.1, 0.3, 0.9) for h in (30, 900)]
    p = verdict.model("found", rows)[0](np.array([np.sqrt(confidence.NOISE)]))  # type: ignore[arg-type]
    assert p == pytest.approx(
        [confidence.probability_right(s, h, nan, 1, 1.4) for s in (-0.1, 0.3, 0.9) for h in (30, 900)]
    )
    given = [Row(s, 60, np.array([fom, fom])) for s in (-0.1, 0.6) for fom in (0.1, 0.9)]
    constants = np.array([confidence.GIVEN_BIAS, confidence.GIVEN_PER_SCORE, confidence.GIVEN_PER_FOM])
    p = verdict.model("given", given)[0](constants)  # type: ignore[arg-type]
    assert p == pytest.approx([confidence.probability_of_given(s, 60, fom) for s in (-0.1, 0.6) for fom in (0.1, 0.9)])


def test_entries_of_a_table_that_are_equal_when_rounded_are_kept_once() -> None:
    """As the program that reads it wants: figures of merit that differ by less than a table tells apart."""
    n = 4000
    rng = np.random.default_rng(4)

    class Row:
        best, turn = rng.uniform(-np.pi, np.pi, n), rng.normal(size=n)
        used, centric = np.ones(n, dtype=bool), np.arange(n) % 2 == 0

    tables = fit_seeds([Row()], [0.5 + 2e-4 * rng.random(n)])  # type: ignore[list-item]
    assert all(
        len(raw) > 1 and (np.diff(raw) > 0).all() and (np.diff(right) >= 0).all() for raw, right in tables.values()
    )
