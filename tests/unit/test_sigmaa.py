"""The error model: simulated errors come back, probabilities integrate to 1, moments and maps against sampling."""

import numpy as np
import pytest
import torch
from scipy.integrate import quad

from ml_phaser.structure_factors.sigmaa import (
    figure_of_merit,
    fit_errors,
    improbable,
    map_coefficients,
    minus_log_likelihood,
)


def simulated(n=8000, seed=0):
    """Truth Gaussian about D F_model, sigma_A falling with resolution: F_obs, truth, F_model, s^2, ..., D."""
    rng = np.random.default_rng(seed)
    s2 = np.sort(rng.random(n)) * 0.25
    epsilon, centric = rng.choice([1.0, 2.0], n), rng.random(n) < 0.2
    sigma_a = 0.95 * np.exp(-3 * s2)
    sigma_n = 400 * np.exp(-10 * s2)

    def normal():
        z = rng.normal(size=n) + 1j * rng.normal(size=n)
        return np.where(centric, rng.normal(size=n) * np.exp(0.7j), z / np.sqrt(2))

    e = normal()
    truth = np.sqrt(epsilon * sigma_n) * (sigma_a * e + np.sqrt(1 - sigma_a**2) * normal())
    f_model = np.sqrt(epsilon * sigma_n * 0.64) * e
    return np.abs(truth), truth, f_model, s2, epsilon, centric, sigma_a / 0.8


@pytest.mark.parametrize("share", [0.05, 0.0])
def test_sigma_a_and_d_come_back(share):
    f_obs, _, f_model, s2, epsilon, centric, d = simulated(20000)
    free = np.random.default_rng(1).random(len(s2)) < share
    f_obs = np.where(np.arange(len(s2)) % 50 == 0, np.nan, f_obs)
    errors = fit_errors(f_obs, f_model, s2, epsilon, centric, free)
    assert errors.from_free == (share > 0) and errors.n_used == (np.isfinite(f_obs) & (free | (share == 0))).sum()
    np.testing.assert_allclose(errors.sigma_a(s2), 0.95 * np.exp(-3 * s2), atol=0.1 if share else 0.05)
    alpha, beta = errors.at(s2, epsilon)
    np.testing.assert_allclose(alpha, d, rtol=0.25 if share else 0.15)
    expected = epsilon * 400 * np.exp(-10 * s2) * (1 - (0.95 * np.exp(-3 * s2)) ** 2)
    assert np.median(np.abs(beta / expected - 1)) < (0.1 if share else 0.05)


@pytest.mark.parametrize("centric", [False, True])
def test_likelihood_is_a_density_and_m_its_mean_cosine(centric):
    alpha, beta, f_c = 0.8, 3.0, 2.5
    flag = torch.tensor([centric])

    def density(f):
        values = (torch.tensor([v], dtype=torch.float64) for v in (f, f_c, alpha, beta))
        jacobian = np.sqrt(2 / np.pi) if centric else 2 * f
        return jacobian * np.exp(-minus_log_likelihood(*values, flag).item())

    assert quad(density, 0, 40)[0] == pytest.approx(1, abs=1e-6)
    z = np.random.default_rng(0).normal(size=(2, 2_000_000)) * np.sqrt(beta / 2)
    true = alpha * f_c + (z[0] * np.sqrt(2) if centric else z[0] + 1j * z[1])
    for f in (0.7, 2.0, 4.0):
        near = np.abs(np.abs(true) - f) < 0.01
        m = figure_of_merit(*(np.array([v]) for v in (f, f_c, alpha, beta, centric)))[0]
        assert m == pytest.approx(np.cos(np.angle(true[near])).mean(), abs=0.02)


def test_likelihood_has_the_gradient_of_differences():
    rng = torch.Generator().manual_seed(0)
    values = [torch.rand(20, dtype=torch.float64, generator=rng) + 0.5 for _ in range(4)]
    centric = torch.arange(20) % 3 == 0
    variables = [v.requires_grad_() for v in values[1:]]
    assert torch.autograd.gradcheck(lambda *x: minus_log_likelihood(values[0], *x, centric), variables)
    strong = minus_log_likelihood(*(torch.full((2,), v) for v in (3e3, 3e3, 1.0, 1e-2)), torch.tensor([True, False]))
    assert torch.isfinite(strong).all(), "no overflow where the model is certain"


def test_maps_are_nearer_to_the_truth_than_plain_ones():
    f_obs, truth, f_model, s2, epsilon, centric, _ = simulated()
    alpha, beta = fit_errors(f_obs, f_model, s2, epsilon, centric).at(s2, epsilon)
    maps = map_coefficients(f_obs, f_model, alpha, beta, centric)

    def error(f):
        return np.sum(np.abs(f - truth) ** 2)

    plain = f_obs * np.exp(1j * np.angle(f_model))
    m = figure_of_merit(f_obs, f_model, alpha, beta, centric)
    assert error(m * plain) < error(plain), "m Fo is the least-squares estimate"
    acentric = ~centric
    np.testing.assert_allclose(maps.best[centric], (m * plain)[centric])
    np.testing.assert_allclose(maps.best[acentric], (2 * m * plain - alpha * f_model)[acentric])


def test_small_errors_show_at_full_height():
    _, truth, _, s2, epsilon, centric, _ = simulated()
    rng = np.random.default_rng(3)
    wrong = 0.05 * np.exp(-5 * s2) * 20 * (rng.normal(size=len(s2)) + 1j * rng.normal(size=len(s2)))
    wrong = np.where(centric, wrong.real * np.exp(0.7j), wrong)
    f_obs, f_model = np.abs(truth), truth - wrong
    alpha, beta = fit_errors(f_obs, f_model, s2, epsilon, centric).at(s2, epsilon)
    difference = map_coefficients(f_obs, f_model, alpha, beta, centric).difference
    for rows in (centric, ~centric):
        slope = np.vdot(wrong[rows], difference[rows]).real / np.vdot(wrong[rows], wrong[rows]).real
        assert slope == pytest.approx(1, abs=0.12)


def test_unmeasured_reflections_are_filled_only_when_asked():
    f_obs, _, f_model, s2, epsilon, centric, _ = simulated(2000)
    gone = np.arange(2000) % 10 == 3
    f_obs = np.where(gone, np.nan, f_obs)
    alpha, beta = fit_errors(f_obs, f_model, s2, epsilon, centric).at(s2, epsilon)
    bare, filled = (map_coefficients(f_obs, f_model, alpha, beta, centric, fill=fill) for fill in (False, True))
    assert not bare.best[gone].any() and not bare.difference[gone].any() and not filled.difference[gone].any()
    np.testing.assert_allclose(filled.best[gone], (alpha * f_model)[gone])
    np.testing.assert_array_equal(filled.best[~gone], bare.best[~gone])
    assert np.isfinite(bare.best).all()


def test_only_wild_values_are_improbable():
    f_obs, _, f_model, s2, epsilon, centric, _ = simulated()
    errors = fit_errors(f_obs, f_model, s2, epsilon, centric)
    f_obs[[10, 4000, 7000]] = (
        8 * np.sqrt(errors.at(s2, epsilon)[1][[10, 4000, 7000]]) + np.abs(f_model)[[10, 4000, 7000]]
    )
    f_obs[20] = np.nan
    bad = improbable(f_obs, f_model, *errors.at(s2, epsilon), centric)
    assert bad[[10, 4000, 7000]].all() and bad.sum() <= 4 and not bad[20]


@pytest.mark.parametrize("n", [1, 2, 10])
def test_few_reflections_are_no_trouble(n):
    f_obs, _, f_model, s2, epsilon, centric, _ = (x[::800][:n] for x in simulated())
    alpha, beta = fit_errors(f_obs, f_model, s2, epsilon, centric, np.ones(n, dtype=bool)).at(s2, epsilon)
    assert np.isfinite(alpha).all() and (beta > 0).all()
    with pytest.raises(ValueError, match="no reflections"):
        fit_errors(np.full(n, np.nan), f_model, s2, epsilon, centric)
