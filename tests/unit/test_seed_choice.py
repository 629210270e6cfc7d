"""Which phases become seeds and what they are worth: against integrals, brute-force symmetry and draws."""

import gemmi
import numpy as np
import pytest
from sample_outcome import amplitudes, phases, structure_factors
from scipy.integrate import quad
from scipy.special import i0

from ml_phaser.crystal.normalise import normalise
from ml_phaser.crystal.phase_distributions import PhaseDistributions, bin_probabilities, hendrickson_lattman
from ml_phaser.crystal.symmetry import expand
from ml_phaser.outcome import Phases
from ml_phaser.phasing.seed_choice import at_seeds, choose_seeds, seeds_wanted
from ml_phaser.phasing.seeds import quadrants

TURN = 2 * np.pi


@pytest.mark.parametrize("bins", [3, 4, 6, 8])
def test_bin_probability_is_the_integral_of_von_mises(bins):
    rng = np.random.default_rng(bins)
    phase, x = rng.uniform(0, TURN, 12), rng.uniform(0, 30, 12)
    hl = np.stack([x * np.cos(phase), x * np.sin(phase), 0 * x, 0 * x], axis=1)
    found = bin_probabilities(hl, np.zeros(12, dtype=bool), bins)
    width = TURN / bins
    for i in range(12):
        for b in range(bins):
            wanted = quad(lambda t, i=i: np.exp(x[i] * np.cos(t - phase[i])), b * width, (b + 1) * width, limit=200)[0]
            assert found[i, b] == pytest.approx(wanted / (TURN * i0(x[i])), abs=1e-4)
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-12)


def test_bimodal_coefficients_count_too():
    """C = 5: two peaks, at 0 and 180 degrees, each of them half on either side of its axis."""
    hl = np.array([[0.0, 0.0, 5.0, 0.0]])
    np.testing.assert_allclose(bin_probabilities(hl, np.array([False]), 4), 0.25, atol=1e-9)
    shifted = np.array([[0.0, 0.0, 0.0, 5.0]])  # at 45 and 225 degrees
    np.testing.assert_allclose(bin_probabilities(shifted, np.array([False]), 4)[0, [0, 2]], 0.5, atol=0.005)


@pytest.mark.parametrize("axis", [0.0, 1e-15, -1e-15, np.pi / 2, np.pi, 1.1])
def test_restricted_phases_have_two_values(axis):
    x = 0.8
    hl = np.array([[x * np.cos(axis), x * np.sin(axis), 0, 0]])
    found = bin_probabilities(hl, np.array([True]), 4)[0]
    likely = int(round(axis / (np.pi / 2), 9) // 1) % 4
    assert found[likely] == pytest.approx(np.exp(x) / (2 * np.cosh(x)))
    assert found[(likely + 2) % 4] == pytest.approx(np.exp(-x) / (2 * np.cosh(x)))


def test_nothing_known_is_chance():
    found = bin_probabilities(np.zeros((2, 4)), np.array([False, True]), 6)
    np.testing.assert_allclose(found[0], 1 / 6)
    assert sorted(found[1])[-2:] == [0.5, 0.5]


def chosen(data, known, **more):
    e = data.f / np.sqrt(np.mean(data.f**2))
    given = {"bins": 4, "most": 60, **more}
    return e, choose_seeds(known, e, data.hkl, data.spacegroup, **given)


def test_the_largest_e_times_probability_come_first():
    data = amplitudes()
    known = phases(data)
    e, seeds = chosen(data, known)
    table = bin_probabilities(known.hl, data.centric, 4).max(axis=1)
    worth = e * table
    assert len(seeds) == 60 and (np.diff(worth[seeds.rows]) <= 0).all()
    others = np.setdiff1d(np.arange(len(data)), seeds.rows)
    assert worth[others].max() <= worth[seeds.rows].min()
    np.testing.assert_array_equal(seeds.probability, table[seeds.rows])
    assert seeds.mean_probability == pytest.approx(table[seeds.rows].mean())


def test_least_probability_and_unusable_reflections():
    data = amplitudes()
    known = phases(data)
    _, every = chosen(data, known)
    _, good = chosen(data, known, least=0.9)
    assert good.probability.min() >= 0.9 > every.probability.min()
    usable = np.ones(len(data), dtype=bool)
    usable[every.rows[:5]] = False
    _, rest = chosen(data, known, usable=usable)
    assert not set(rest.rows) & set(every.rows[:5]) and len(rest) == 60
    _, none = chosen(data, known, least=1.0)
    assert len(none) == 0 and np.isnan(none.mean_probability)


def test_reflections_without_a_phase_make_no_seeds():
    data = amplitudes()
    known = phases(data)
    _, every = chosen(data, known)
    known.phase[every.rows[0]] = np.nan
    _, rest = chosen(data, known)
    assert every.rows[0] not in rest.rows and len(rest) == 60


@pytest.mark.parametrize(("fraction", "count", "wanted"), [(None, None, 100), (0.25, None, 250), (None, 7, 7),
                                                           (None, 5000, 1000), (0.0004, None, 1)])  # fmt: skip
def test_how_many(fraction, count, wanted):
    assert seeds_wanted(1000, fraction, count) == wanted


GROUPS = ["P 1", "P 1 21 1", "P 21 21 21", "P -1", "P 1 21/c 1", "C 1 2 1", "P 31 2 1", "P 41 21 2", "I 2 3", "R 3 :H"]


@pytest.mark.parametrize("name", GROUPS)
@pytest.mark.parametrize("bins", [3, 4, 6])
def test_seeds_of_true_phases_are_true_at_every_mate(name, bins):
    """Expanded by gemmi's operators, indices and phase shifts, and compared with direct summation at the mates."""
    group = gemmi.SpaceGroup(name)
    data = amplitudes(group=group, d_min=1.6)
    _, seeds = chosen(data, phases(data), bins=bins)
    true = structure_factors(data.hkl[seeds.rows], group)
    off = np.abs(np.angle(np.exp(1j * seeds.centre) * np.conj(true)))
    centric = data.centric[seeds.rows]
    assert (off[~centric] <= np.pi / bins + 1e-6).all() and (off[centric] < 1e-6).all()
    for op in group.operations():
        mates = np.array([op.apply_to_hkl(h) for h in data.hkl[seeds.rows].tolist()])
        shift = np.array([op.phase_shift(h) for h in data.hkl[seeds.rows].tolist()])
        there = structure_factors(mates, group)
        np.testing.assert_allclose(
            np.abs(np.angle(np.exp(1j * (seeds.centre + shift)) * np.conj(there))), off, atol=1e-5
        )
        friedel = structure_factors(-mates, group)
        np.testing.assert_allclose(
            np.abs(np.angle(np.exp(-1j * (seeds.centre + shift)) * np.conj(friedel))), off, atol=1e-5
        )


def test_quadrants_are_those_of_the_engine():
    data = amplitudes()
    _, seeds = chosen(data, phases(data))
    wanted = quadrants(data.hkl[seeds.rows], phases(data).phase[seeds.rows], data.spacegroup)
    free = ~data.centric[seeds.rows]
    np.testing.assert_allclose(np.exp(1j * seeds.centre[free]), np.exp(1j * wanted[free]), atol=1e-9)


@pytest.mark.parametrize("bins", [3, 4, 8])
def test_as_many_seeds_are_right_as_their_probability_says(bins):
    """True phases drawn from the very distributions that the seeds are judged by."""
    data = amplitudes(d_min=0.9)
    rng = np.random.default_rng(bins)
    fom = rng.uniform(0.05, 0.95, len(data))
    phase = np.angle(structure_factors(data.hkl, data.spacegroup))
    known = Phases(phase, fom, hendrickson_lattman(phase, fom, data.centric))
    _, seeds = chosen(data, known, bins=bins, most=len(data))
    turn = expand(data.hkl, data.spacegroup).turn
    hits = []
    for _ in range(40):
        true = PhaseDistributions(known.hl, turn).draw(rng)[seeds.rows]
        off = np.abs(np.angle(true * np.exp(-1j * seeds.centre)))
        hits.append(np.where(data.centric[seeds.rows], off < np.pi / 2, off <= np.pi / bins))
        cosine = np.cos(off)
    assert np.mean(hits) == pytest.approx(seeds.mean_probability, abs=0.01)
    assert cosine.mean() == pytest.approx(seeds.weight.mean(), abs=0.05)


@pytest.mark.parametrize("inverted", [False, True])
def test_a_solution_is_brought_to_origin_and_hand_of_the_seeds(inverted):
    data = amplitudes()
    true = structure_factors(data.hkl, data.spacegroup)
    _, seeds = chosen(data, phases(data))
    phase, given = np.zeros(len(data)), np.zeros(len(data), dtype=bool)
    phase[seeds.rows], given[seeds.rows] = seeds.centre, True
    elsewhere = (np.conj(true) if inverted else true) * np.exp(2j * np.pi * (data.hkl @ [0.5, 0, 0.5]))
    f, found = at_seeds(elsewhere, data, normalise(data), phase, given, 0.8)
    np.testing.assert_allclose(np.angle(f * np.conj(true)), 0, atol=1e-5)
    assert found.turned == inverted and found.n == 60 and found.probability == 0.8
    assert found.hand_margin > 0.05 and 0 < found.moved < 25
