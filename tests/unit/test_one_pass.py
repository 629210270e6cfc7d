"""The one-pass benchmark: starts of known error, classical projections, who wins."""

import json

import numpy as np
import pytest
import torch
from made_library import made_library

from ml_phaser.evaluation.held_out import (
    TOLERANCE,
    held_out_crystals,
    partial_model,
    phased_by,
    start_at,
    start_correlation,
)
from ml_phaser.evaluation.one_pass import Beats, Plan, Report, evaluate, measure, summarise
from ml_phaser.evaluation.one_pass_report import brief, markdown, write_report
from ml_phaser.evaluation.rivals import (
    ENTRANTS,
    IDENTITY,
    NETWORK,
    Entrant,
    Group,
    low_density_elimination,
    solvent_flattening,
)
from ml_phaser.networks.projector import Projector, ProjectorConfig
from ml_phaser.phasing.projections import inverse
from ml_phaser.simulate.batches import resolution_profile


@pytest.fixture(scope="module")
def library():
    return made_library()


@pytest.fixture(scope="module")
def crystals(library):
    return held_out_crystals(library, 1.9, 4, seed=7)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return Projector(ProjectorConfig(channels=(8, 16))).eval()


def test_crystals_are_fixed_by_their_seed(library, crystals):
    again = held_out_crystals(library, 1.9, 4, seed=7)
    other = held_out_crystals(library, 1.9, 4, seed=8)
    assert all(np.array_equal(a.f, b.f) for a, b in zip(crystals, again, strict=True))
    assert not any(len(a.f) == len(b.f) and np.allclose(a.f, b.f) for a, b in zip(crystals, other, strict=True))


def test_atoms_stand_in_their_density_in_oblique_cells_too(library):
    """Grid, signs and cell agree: the true map is high where the atoms are, and nowhere near by chance."""
    angles = set()
    for crystal in held_out_crystals(library, 1.5, 6, seed=1):
        cell = crystal.contents.cell
        angles.add((cell.alpha, cell.beta, cell.gamma) == (90, 90, 90))
        rho = inverse(crystal.half(crystal.f), crystal.places.shape)[0].numpy()
        assert rho.std() == pytest.approx(1, abs=1e-3)
        at = np.round(crystal.contents.xyz * rho.shape).astype(int) % rho.shape
        assert rho[tuple(at.T)].mean() > 1.5
        assert abs(rho[tuple(((at + np.array(rho.shape) // 2) % rho.shape).T)].mean()) < 1
        assert max(a / n for a, n in zip((cell.a, cell.b, cell.c), rho.shape, strict=True)) * 2 < 1.5
    assert angles == {True, False}


@pytest.mark.parametrize("kind", ["phase", "additive"])
@pytest.mark.parametrize("level", [0.3, 0.9])
def test_starts_have_the_error_asked_for_and_the_true_moduli(crystals, kind, level):
    rng = np.random.default_rng(0)
    for crystal in crystals:
        start = start_at(rng, crystal, level, kind)
        assert start_correlation(crystal.f, start) == pytest.approx(level, abs=TOLERANCE)
        assert np.allclose(np.abs(start), np.abs(crystal.f))


def test_correlation_of_structure_factors_is_that_of_the_maps(crystals):
    crystal = crystals[0]
    start = start_at(np.random.default_rng(1), crystal, 0.6, "phase")
    a, b = (inverse(crystal.half(f), crystal.places.shape).numpy().ravel() for f in (crystal.f, start))
    assert np.corrcoef(a, b)[0, 1] == pytest.approx(start_correlation(crystal.f, start), abs=1e-4)


def test_more_of_the_structure_makes_a_better_start(crystals):
    def mean(fraction):
        rng = np.random.default_rng(2)
        return np.mean(
            [start_correlation(c.f, phased_by(c, partial_model(rng, c, fraction))) for c in crystals for _ in range(4)]
        )

    assert mean(0.2) + 0.1 < mean(0.5) < mean(0.95) - 0.05


def test_low_density_elimination_follows_its_formula():
    rho = torch.tensor([[[[-2.0, 0.5, 1.0, 3.0]]]])
    sigma = float(rho.pow(2).mean().sqrt())
    x = rho.clamp_min(0) / (0.7 * sigma)
    assert torch.allclose(low_density_elimination(0.7)(rho), rho.clamp_min(0) * (1 - torch.exp(-x * x / 2)))


def test_solvent_flattening_levels_the_emptiest_part(crystals):
    group = Group.of(crystals[:1])
    out = solvent_flattening(0.3, group.kernel)(group.truth)
    same = torch.isclose(out, group.truth)
    level = out[~same]
    assert 0.68 < same.float().mean() < 0.72
    assert torch.allclose(level, level[0].expand_as(level))
    assert level[0] == pytest.approx(float(group.truth[~same].mean()), abs=1e-4)


def test_sharpening_is_undone(crystals):
    group = Group.of(crystals[:2])
    half = torch.cat([c.half(c.f) for c in crystals[:2]])
    back = group.restored(Entrant(IDENTITY, 0.0, sharp=True), None, half)
    before, after = group.correlations(back)
    assert before == pytest.approx(1, abs=1e-4)
    assert after == pytest.approx(1, abs=1e-4)


def test_profile_makes_the_mean_square_of_e_one(crystals):
    for crystal in crystals:
        f = np.abs(crystal.f)
        e = f / resolution_profile(f, crystal.stol2, np.ones(len(f), dtype=bool))
        assert np.mean(e**2) == pytest.approx(1, abs=0.1)
        half = (crystal.target.amplitude * crystal.target.to_e)[crystal.target.inside]
        assert float(half.pow(2).mean()) == pytest.approx(1, abs=0.1)


def test_identity_changes_nothing_and_measured_moduli_come_back(crystals, network):
    rng = np.random.default_rng(3)
    starts = [start_at(rng, c, 0.5, "phase") for c in crystals]
    cc = measure(network, crystals, starts)
    expected = [start_correlation(c.f, s) for c, s in zip(crystals, starts, strict=True)]
    for column in cc[ENTRANTS[0]].T:
        assert column == pytest.approx(expected, abs=1e-3)
    # Untrained, the network is a multiple of the identity; a constant and a factor do not touch the correlation.
    assert cc[Entrant(NETWORK, 0.0)] == pytest.approx(cc[ENTRANTS[0]], abs=1e-3)
    assert np.mean(cc[Entrant("positivity", 0.0)][:, 1]) > np.mean(expected) + 0.02


def table(network, rival=0.6):
    """Correlations of four crystals: everybody 0.5 and ``rival``, the network as told."""
    rng = np.random.default_rng(0)
    wobble = 0.001 * rng.normal(size=(4, 2))
    cc = {e: np.full((4, 2), 0.5) + wobble for e in ENTRANTS}
    cc[Entrant("positivity", 0.0, sharp=True)] = np.full((4, 2), rival) + 0.001 * rng.normal(size=(4, 2))
    cc[Entrant(NETWORK, 0.0)] = np.asarray(network) + 0.002 * np.array([[1], [-1], [1], [-1]])
    return cc


@pytest.mark.parametrize(
    ("network", "wins"), [((0.7, 0.7), True), ((0.7, 0.55), False), ((0.55, 0.7), False), ((0.601, 0.601), False)]
)
def test_the_network_wins_only_beyond_doubt_in_both_measures(network, wins):
    rows, beats, _ = summarise(1.5, [("phase", 0.5)], [table(network)])
    assert rows[0].wins is wins
    assert beats == Beats(wins, wins, wins)
    assert rows[0].lead == pytest.approx(network[0] - 0.6, abs=0.005)
    assert rows[0].lead_f == pytest.approx(network[1] - 0.6, abs=0.005)


def test_one_lost_row_leaves_the_average():
    labels = [("phase", 0.5), ("phase", 0.7)]
    _, beats, _ = summarise(1.5, labels, [table((0.9, 0.9)), table((0.59, 0.59))])
    assert beats == Beats(True, False, False)


def test_rivals_have_one_setting_for_all_rows_unless_they_know_better():
    a, b = table((0.65, 0.65), rival=0.5), table((0.65, 0.65), rival=0.5)
    good, bad = Entrant("sparse, best share", 0.1), Entrant("sparse, best share", 0.3)
    a[good], b[good] = a[good] + 0.1, b[good] + 0.1
    a[bad], b[bad] = a[bad] + 0.2, b[bad] - 0.3
    rows, beats, settings = summarise(1.5, [("phase", 0.5), ("phase", 0.7)], [a, b])
    assert settings["sparse, best share"] == "0.1 on F"
    assert beats == Beats(True, True, False)
    assert rows[0].scores["sparse, best share"].cc_f == pytest.approx(0.6, abs=0.01)
    assert rows[0].scores["sparse, best share"].oracle_f == pytest.approx(0.7, abs=0.01)


@pytest.mark.parametrize(
    ("won", "claimed"),
    [
        ({"1.3": True, "1.5": True, "1.7": False}, (1.3, 1.5)),
        ({"1.3": True, "1.5": False, "1.7": True, "1.9": True}, (1.7, 1.9)),
        ({"1.3": False}, None),
    ],
)
def test_only_a_run_of_won_resolutions_is_claimed(won, claimed):
    beats = {d: Beats(ok, False, False) for d, ok in won.items()}
    report = Report(Plan(), (), beats, {}, {}, {}, {}, "")
    assert report.claimed() == claimed
    assert report.claimed("every_row") is None


def test_whole_benchmark_in_small(library, network, tmp_path):
    plan = Plan(resolutions=(2.0,), levels=(0.5,), kinds=("phase",), fractions=(0.5,), crystals=2, cycles=2, seed=1)
    told = []
    report = evaluate(network, library, plan, lambda fraction, text: told.append(fraction))
    assert told == [0, 1]
    kinds = ["phase", "partial", "wet phase", "wet partial"]
    assert [(r.kind, r.level, r.n) for r in report.rows] == [(kind, 0.5, 2) for kind in kinds]
    assert report.beats_wet.keys() == {"2"}
    assert report.rows[0].cc_in == pytest.approx(0.5, abs=TOLERANCE)
    assert report.kept["2"][NETWORK] == pytest.approx(1, abs=1e-3)  # a multiple of the identity keeps the truth
    assert report.kept["2"]["sparse 0.15"] < 0.99
    assert report.data == library.digest
    path = write_report(tmp_path / "table.json", report, {"name": "tiny"})
    assert json.loads((tmp_path / "table.json").read_text())["network"] == {"name": "tiny"}
    assert "name tiny" in path.read_text()
    assert "| 2 | phase 0.5 |" in markdown(report) and "| 2 | wet partial 0.5 kept |" in markdown(report)
    assert brief(report)["rows"][0]["start"] == pytest.approx(0.5, abs=TOLERANCE)
