"""Distributions of phases: figures of merit, centroids, draws."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.integrate import quad

from ml_phaser.crystal.phase_distributions import PhaseDistributions, hendrickson_lattman, restricted

FREE = np.zeros(1, dtype=complex)


def mean_by_quadrature(a: float, b: float, c: float, d: float) -> complex:
    """Mean of exp(i phi), by scipy."""

    def weight(t: float) -> float:
        return float(np.exp(a * np.cos(t) + b * np.sin(t) + c * np.cos(2 * t) + d * np.sin(2 * t)))

    total = quad(weight, 0, 2 * np.pi)[0]
    real, imag = (quad(lambda t, g=g: weight(t) * g(t), 0, 2 * np.pi)[0] for g in (np.cos, np.sin))
    return complex(real, imag) / total


@pytest.mark.parametrize("hl", [(1.0, -0.5, 0, 0), (0.3, 0.2, 2.0, -1.0), (5.0, 3.0, -1.0, 1.0), (0, 0, 3.0, 0)])
def test_centroid_is_the_mean_over_the_circle(hl: tuple[float, ...]) -> None:
    known = PhaseDistributions(np.array([hl]), FREE)
    assert known.centroid()[0] == pytest.approx(mean_by_quadrature(*hl), abs=1e-6)


@pytest.mark.parametrize("fom", [0.0, 0.1, 0.5, 0.9, 0.99])
def test_figures_of_merit_come_back(fom: float) -> None:
    turn = np.array([0, np.exp(2j * 0.4)])
    phase = np.array([2.0, 0.4 + np.pi])
    known = PhaseDistributions(hendrickson_lattman(phase, np.full(2, fom), turn != 0), turn)
    assert known.centroid() == pytest.approx(fom * np.exp(1j * phase), abs=2e-3)


@pytest.mark.parametrize("hl", [(1.0, -0.5, 0, 0), (0.2, 0.1, 2.0, -1.0)])
def test_draws_follow_the_distribution(hl: tuple[float, ...]) -> None:
    n = 20_000
    known = PhaseDistributions(np.tile(hl, (n, 1)), np.zeros(n, dtype=complex))
    drawn = known.draw(np.random.default_rng(0))
    assert np.abs(drawn) == pytest.approx(1)
    assert drawn.mean() == pytest.approx(mean_by_quadrature(*hl), abs=0.02)
    two = known.centroid().mean()
    assert abs(drawn.mean() - two) < 0.02
    assert (drawn**2).mean() == pytest.approx(second_moment(hl), abs=0.02)


def second_moment(hl: tuple[float, ...]) -> complex:
    """Mean of exp(2 i phi) on a fine grid."""
    t = np.linspace(0, 2 * np.pi, 20_000, endpoint=False)
    weight = np.exp(hl[0] * np.cos(t) + hl[1] * np.sin(t) + hl[2] * np.cos(2 * t) + hl[3] * np.sin(2 * t))
    return complex((weight * np.exp(2j * t)).sum() / weight.sum())


def test_restricted_phases_take_one_of_two_values() -> None:
    n = 5000
    turn = np.full(n, np.exp(2j * 0.7))
    known = PhaseDistributions(hendrickson_lattman(np.full(n, 0.7), np.full(n, 0.6), turn != 0), turn)
    drawn = known.draw(np.random.default_rng(1))
    up = np.isclose(drawn, np.exp(0.7j))
    assert np.all(up | np.isclose(drawn, -np.exp(0.7j)))
    assert up.mean() == pytest.approx(0.8, abs=0.02)  # (1 + fom) / 2


def test_nothing_known_is_random() -> None:
    n = 4000
    turn = np.where(np.arange(n) % 2, np.exp(2j * 0.3), 0)
    known = PhaseDistributions(np.zeros((n, 4)), turn)
    assert not known.given.any()
    assert np.abs(known.centroid()).max() < 1e-12
    assert abs(known.draw(np.random.default_rng(2)).mean()) < 0.05


def test_what_symmetry_forbids_is_taken_away() -> None:
    turn = np.array([np.exp(2j * 0.5), 0])
    across = hendrickson_lattman(np.array([0.5 + np.pi / 2, 1.0]), np.array([0.9, 0.9]), turn != 0)
    kept = restricted(across, turn)
    assert np.abs(kept[0]).max() < 1e-9
    assert kept[1] == pytest.approx(across[1])
