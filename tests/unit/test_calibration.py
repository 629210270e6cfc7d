"""Calibrated figures of merit: bounds, direction, the file that holds them, weights they were not made for."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.integrate import quad

from ml_phaser.crystal.phase_distributions import hendrickson_lattman
from ml_phaser.errors import UserError
from ml_phaser.networks.store import PROJECTOR, read_card
from ml_phaser.outcome import Promise
from ml_phaser.phasing.calibration import (
    FILE,
    HIGHEST,
    OTHERS,
    RISING,
    Evidence,
    check,
    describe,
    read_calibration,
)
from ml_phaser.phasing.confidence import figures_of_merit, weigh

N = 400
BUNDLED = read_calibration()


def evidence(seed: int = 0, *, mates: bool = True, given: bool = False, solved: float = 0.6) -> Evidence:
    rng = np.random.default_rng(seed)
    return Evidence(
        rng.random(N), solved, 0.4, rng.rayleigh(0.8, N), rng.uniform(1, 5, N),
        rng.uniform(-1, 1, N) if mates else None, rng.random(N) if given else None, 0.5 if given else 0.0,
    )  # fmt: skip


KINDS = [{"mates": m, "given": g} for m in (False, True) for g in (False, True)]


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("solved", [0.0, 0.5, 1.0])
def test_figures_of_merit_stay_within_bounds(kind: dict[str, bool], solved: float) -> None:
    fom = BUNDLED.merits(evidence(**kind, solved=solved))
    assert fom.shape == (N,) and np.isfinite(fom).all() and fom.min() >= 0 and fom.max() <= HIGHEST == 0.99


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_more_of_any_evidence_never_lowers_a_figure_of_merit(kind: dict[str, bool]) -> None:
    before = evidence(**kind)
    fom = BUNDLED.merits(before)
    more = {"sim": np.minimum(before.sim + 0.2, 1), "e": before.e + 0.5, "score": 0.7, "solved": 0.9}
    if before.agreement is not None:
        more["agreement"] = np.minimum(before.agreement + 0.3, 1)
    if before.given is not None:
        more |= {"given": np.minimum(before.given + 0.2, 1), "unaided": 0.8}
    for name, value in more.items():
        raised = BUNDLED.merits(replace(before, **{name: value}))
        assert np.all(raised >= fom - 1e-12), name
    assert BUNDLED.merits(replace(before, sim=before.sim**0.2, solved=0.9, unaided=0.9)).mean() > fom.mean()


def test_solutions_that_agree_count() -> None:
    one = evidence(mates=False, solved=0.95)
    same, other = (BUNDLED.merits(replace(one, agreement=np.full(N, c))).mean() for c in (0.97, 0.1))
    assert other < BUNDLED.merits(one).mean() < same


def test_coefficients_promise_what_the_figures_say() -> None:
    """The mean of exp(i phi) under the distribution of the coefficients, by quadrature and by summing two values."""
    fom = BUNDLED.merits(evidence())[:40]
    phase = np.random.default_rng(1).uniform(-np.pi, np.pi, 40)
    centric = np.arange(40) % 2 == 0
    phases = weigh(np.exp(1j * phase), fom, centric)
    assert np.all(phases.hl[:, 2:] == 0)
    assert np.allclose(phases.hl, hendrickson_lattman(phase, fom, centric))
    for hl, phi, m, restricted in zip(phases.hl, phase, fom, centric, strict=True):
        assert mean_cosine(hl[:2], phi, restricted) == pytest.approx(m, abs=0.003)


def mean_cosine(hl: np.ndarray, phi: float, restricted: bool) -> float:
    """Mean of cos(angle - phi) over phi and phi + pi, or over the circle, weighted by exp(A cos + B sin)."""

    def weight(angle: float) -> float:
        return float(np.exp(hl @ (np.cos(angle), np.sin(angle)) - np.hypot(*hl)))

    if restricted:
        here, there = weight(phi), weight(phi + np.pi)
        return (here - there) / (here + there)
    total = quad(lambda t: weight(t + phi), -np.pi, np.pi)[0]
    return quad(lambda t: np.cos(t) * weight(t + phi), -np.pi, np.pi)[0] / total


def test_phases_that_were_put_in_do_not_hide_what_is_known_without_them() -> None:
    """A density that the held-out reflections vouch for is not doubted for the sake of poor phases put in."""
    poor = replace(evidence(given=True, mates=False, solved=0.95), given=np.full(N, 0.05), unaided=0.99, score=0.9)
    doubtful = replace(poor, unaided=0.05)
    assert BUNDLED.merits(poor).mean() > BUNDLED.merits(doubtful).mean() + 0.1
    assert BUNDLED.merits(poor.forgetting()).mean() > 0.4


def test_it_belongs_to_the_bundled_weights() -> None:
    sha = read_card(PROJECTOR).sha256
    assert BUNDLED.holds_for({"name": PROJECTOR, "sha256": sha}) and BUNDLED.holds_for({})
    said = describe(BUNDLED, {"name": PROJECTOR, "sha256": sha})
    assert str(BUNDLED.about["crystals"]) in said and f"{BUNDLED.error:.3f}" in said
    assert not BUNDLED.holds_for({"sha256": "ab" * 32})
    said = describe(BUNDLED, {"sha256": "ab" * 32})
    assert "not calibrated" in said and "abababab" in said and BUNDLED.weights[:8] in said


def test_without_a_calibration_figures_are_those_of_sim() -> None:
    known = evidence(mates=False)
    assert figures_of_merit(known, None) == pytest.approx(np.minimum(0.6 * known.sim, HIGHEST))
    assert figures_of_merit(known, BUNDLED) == pytest.approx(BUNDLED.merits(known))


def test_the_reliability_it_states_is_that_of_its_bins() -> None:
    bins = (Promise(100, 0.2, 0.3), Promise(300, 0.8, 0.78))
    assert replace(BUNDLED, reliability=bins).error == pytest.approx((100 * 0.1 + 300 * 0.02) / 400)
    assert 0 < BUNDLED.error < 0.1


def damaged(tmp_path: Path, **changes: object) -> Path:
    path = tmp_path / "calibration.json"
    path.write_text(json.dumps({**json.loads(FILE.read_text()), **changes}))
    return path


def test_the_file_is_read_as_it_stands(tmp_path: Path) -> None:
    found = read_calibration(damaged(tmp_path))
    for kind in ("found", "given"):
        assert set(found.tables[kind].strength) <= {*RISING, *OTHERS}
        assert np.array_equal(found.tables[kind].fom, BUNDLED.tables[kind].fom)
    assert found.reliability == BUNDLED.reliability


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"fom": [0.9, 0.1], "raw": [0.1, 0.9]}, "falls"),
        ({"fom": [0.1, 0.2], "raw": [0.9, 0.1]}, "falls"),
        ({"fom": [0.1, 1.2], "raw": [0.1, 0.9]}, "range"),
        ({"fom": [0.1]}, "unequal"),
        ({"strength": {"sim": -1}}, "against itself"),
        ({"strength": {"luck": 1}}, "luck"),
        ({"raw": "x"}, "damaged"),
    ],
)
@pytest.mark.parametrize("kind", ["found", "given"])
def test_a_damaged_table_is_refused(tmp_path: Path, kind: str, changes: dict[str, object], said: str) -> None:
    tables = json.loads(FILE.read_text())["tables"]
    with pytest.raises(UserError, match=said):
        read_calibration(damaged(tmp_path, tables={**tables, kind: {**tables[kind], **changes}}))


@pytest.mark.parametrize("changes", [{"reliability": [[1, 2]]}, {"tables": {}}, {"tables": None}], ids=str)
def test_a_damaged_file_is_refused(tmp_path: Path, changes: dict[str, object]) -> None:
    with pytest.raises(UserError, match="damaged"):
        read_calibration(damaged(tmp_path, **changes))


def test_a_missing_file_is_the_users_to_mend(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="missing"):
        read_calibration(tmp_path / "none.json")


def test_the_bundled_one_is_sound() -> None:
    for table in BUNDLED.tables.values():
        check(table)
    assert BUNDLED.about["tested"] > 0 and sum(b.n for b in BUNDLED.reliability) > 1000


@pytest.mark.parametrize("bins", [3, 4, 6, 8])
def test_probabilities_of_seeds_rise_and_keep_their_kind(bins: int) -> None:
    p = np.linspace(1 / bins, 1, 50)
    free = BUNDLED.right(p, np.zeros(50, dtype=bool), bins)
    two = BUNDLED.right(p, np.ones(50, dtype=bool), bins)
    assert np.all(np.diff(free) >= 0) and np.all(np.diff(two) >= 0)
    assert 0.7 / bins < free[0] < 1.6 / bins and free[-1] > 0.8
    assert 0.4 < two[0] < 0.65 and two[-1] > 0.9  # the likelier of two values
    mixed = BUNDLED.right(p, np.arange(50) % 2 == 0, bins)
    assert np.array_equal(mixed[::2], two[::2]) and np.array_equal(mixed[1::2], free[1::2])


@pytest.mark.parametrize("changes", [{"right": [0.5, 0.4]}, {"raw": [0.5, 0.5]}, {"right": [0.5]}], ids=str)
def test_a_damaged_table_of_seeds_is_refused(tmp_path, changes) -> None:
    seeds = {**json.loads(FILE.read_text())["seeds"], "4": {"raw": [0.3, 0.6], "right": [0.3, 0.7], **changes}}
    with pytest.raises(UserError, match="damaged calibration"):
        read_calibration(damaged(tmp_path, seeds=seeds))
