"""How far a model's structure factors can be trusted, and the maps and the likelihood that follow.

    errors = fit_errors(f_obs, f_model, s2, epsilon, centric, free)    # s2 = 1/d^2; f_model scaled (scaling.py)
    alpha, beta = errors.at(s2, epsilon)                               # any reflections
    m = figure_of_merit(f_obs, f_model, alpha, beta, centric)          # <cos(phase error)>; D is alpha
    maps = map_coefficients(f_obs, f_model, alpha, beta, centric)      # maps.best = 2mFo-DFc, maps.difference
    loss = minus_log_likelihood(fo, f_model.abs(), alpha, beta, centric).mean()   # torch, to refine against
    bad = improbable(f_obs, f_model, alpha, beta, centric)             # outliers, given the model

The true structure factor is taken as Gaussian about alpha F_model with variance beta (epsilon included), in two
dimensions or, for centric reflections, along the line of the permitted phases (Luzzati 1952; Srinivasan 1966; Read
1986, Acta Cryst. A42, 140; Lunin & Skovoroda 1995, A51, 880). With Sigma_N and Sigma_P the mean F_obs^2 / epsilon and
|F_model|^2 / epsilon at that resolution, alpha = sigma_A sqrt(Sigma_N / Sigma_P) and beta = epsilon Sigma_N (1 -
sigma_A^2); sigma_A(s), piecewise linear in logit and s^2, is the one of the greatest likelihood of the test set.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import optimize, special, stats

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

LEAST_FREE = 100  # test reflections from which sigma_A is estimated; with fewer, all reflections serve
_PER_KNOT = 140
_MOST_KNOTS = 15
_PER_MEAN_KNOT = 150  # reflections for each knot of the mean intensities
_SMOOTH = 20.0  # weight of the second differences of logit sigma_A, in log likelihood
_IMPROBABLE = 1e-6  # Read (1999), Acta Cryst. D55, 1759


@dataclass(frozen=True, eq=False)
class Errors:
    """Error model of one crystal.

    Attributes
    ----------
    knots : (k,) s^2 in 1/A^2 of ``logit``, the logit of sigma_A
    mean_knots : (j,) s^2 of ``log_n`` and ``log_p``, the logarithms of Sigma_N and Sigma_P, on F_obs's scale
    n_used : reflections sigma_A was estimated from; ``from_free``: whether they were the test set (else sigma_A is
        too high where the model was refined against them)
    """

    knots: Floats
    logit: Floats
    mean_knots: Floats
    log_n: Floats
    log_p: Floats
    n_used: int
    from_free: bool

    def sigma_a(self, s2: Floats) -> Floats:
        """(n,) between 0 and 1."""
        return np.asarray(special.expit(np.interp(s2, self.knots, self.logit)))

    def at(self, s2: Floats, epsilon: Floats) -> tuple[Floats, Floats]:
        """alpha (D) and beta, (n,) each, at s^2 = 1/d^2 (n,)."""
        log_n, log_p = (np.interp(s2, self.mean_knots, x) for x in (self.log_n, self.log_p))
        sigma = self.sigma_a(s2)
        return sigma * np.exp((log_n - log_p) / 2), epsilon * np.exp(log_n) * (1 - sigma**2)


@dataclass(frozen=True, eq=False)
class MapCoefficients:
    """Complex coefficients (n,) of the 2mFo-DFc map (``best``) and of the difference map."""

    best: NDArray[np.complex128]
    difference: NDArray[np.complex128]


def minus_log_likelihood(
    f_obs: torch.Tensor, f_model: torch.Tensor, alpha: torch.Tensor, beta: torch.Tensor, centric: torch.Tensor
) -> torch.Tensor:
    """-ln p(F_obs | F_model), (n,), without terms of F_obs alone; amplitudes, differentiable.

    Acentric: ln beta + (Fo^2 + alpha^2 Fc^2) / beta - ln I0(2 alpha Fo Fc / beta); centric: half of the first two, less
    ln cosh(alpha Fo Fc / beta).
    """
    x = f_obs * alpha * f_model / beta
    spread = torch.log(beta) + (f_obs**2 + (alpha * f_model) ** 2) / beta
    # both logarithms without overflow
    acentric = spread - torch.log(torch.special.i0e(2 * x)) - 2 * x
    return torch.where(centric, spread / 2 - x - torch.log1p(torch.exp(-2 * x)) + np.log(2.0), acentric)


def fit_errors(
    f_obs: Floats, f_model: NDArray, s2: Floats, epsilon: Floats, centric: Flags, free: Flags | None = None
) -> Errors:
    """Error model of measured amplitudes (n,) and a scaled model (n,); missing ones (NaN) take no part.

    Raises ValueError where there is no reflection with both.
    """
    size = np.abs(f_model)
    known = np.isfinite(f_obs) & np.isfinite(size) & (f_obs >= 0)
    if not known.any() or not size[known].any() or not f_obs[known].any():
        raise ValueError("no reflections with measured and calculated amplitudes")
    mean_knots = _quantiles(s2[known], _PER_MEAN_KNOT)
    log_n, log_p = (_log_means(x[known] ** 2 / epsilon[known], s2[known], mean_knots) for x in (f_obs, size))
    from_free = free is not None and int((known & free).sum()) >= LEAST_FREE
    use = known & free if from_free and free is not None else known
    knots = _quantiles(s2[use], _PER_KNOT)
    hats = torch.tensor(np.stack([np.interp(s2[use], knots, row) for row in np.eye(len(knots))], axis=1))
    n, p = (np.exp(np.interp(s2[use], mean_knots, x)) * epsilon[use] for x in (log_n, log_p))
    e_obs, e_model = torch.tensor(f_obs[use] / np.sqrt(n)), torch.tensor(size[use] / np.sqrt(p))
    line = torch.tensor(centric[use])

    def loss(values: Floats) -> tuple[float, Floats]:
        logit = torch.tensor(values, requires_grad=True)
        sigma = torch.sigmoid(hats @ logit)
        total = minus_log_likelihood(e_obs, e_model, sigma, 1 - sigma**2, line).sum()
        total = total + _SMOOTH * torch.diff(logit, n=2).pow(2).sum()
        (slope,) = torch.autograd.grad(total, logit)
        return float(total.detach()), slope.numpy()

    bounds = [(-5.0, 7.0)] * len(knots)  # sigma_A of 0.007 to 0.999
    found = optimize.minimize(loss, np.ones(len(knots)), jac=True, method="L-BFGS-B", bounds=bounds)
    return Errors(knots, np.asarray(found.x), mean_knots, log_n, log_p, int(use.sum()), from_free)


def _quantiles(s2: Floats, each: int) -> Floats:
    """Knots between which equally many reflections lie."""
    number = int(np.clip(len(s2) // each, 1, _MOST_KNOTS))
    return np.unique(np.quantile(s2, np.linspace(0, 1, number + 1)))


def _log_means(values: Floats, s2: Floats, knots: Floats) -> Floats:
    """ln of the means of the values around each knot, weighted by the piecewise linear function it is the top of."""
    weights = np.stack([np.interp(s2, knots, row) for row in np.eye(len(knots))])
    means = weights @ values / np.maximum(weights.sum(axis=1), 1e-12)
    return np.log(np.maximum(means, 1e-6 * values.mean()))


def figure_of_merit(f_obs: Floats, f_model: NDArray, alpha: Floats, beta: Floats, centric: Flags) -> Floats:
    """m = <cos(phase error)>, (n,): I1(X) / I0(X) with X = 2 alpha Fo Fc / beta, tanh(X / 2) if centric; 0 where not
    measured."""
    x = np.nan_to_num(f_obs) * alpha * np.abs(f_model) / beta
    return np.asarray(np.where(centric, np.tanh(x), special.i1e(2 * x) / special.i0e(2 * x)))


def map_coefficients(
    f_obs: Floats, f_model: NDArray, alpha: Floats, beta: Floats, centric: Flags, *, fill: bool = False
) -> MapCoefficients:
    """Coefficients of the model-phased maps (Read 1986).

    Acentric: 2mFo - DFc and 2(mFo - DFc), both at full height; centric: mFo and mFo - DFc. Reflections that are not
    measured (NaN) are 0, in the first map DFc with ``fill``.
    """
    phase = np.exp(1j * np.angle(f_model))
    m_fo = figure_of_merit(f_obs, f_model, alpha, beta, centric) * np.nan_to_num(f_obs)
    d_fc = alpha * np.abs(f_model)
    best = np.where(centric, m_fo, 2 * m_fo - d_fc)
    difference = np.where(centric, 1.0, 2.0) * (m_fo - d_fc)
    missing = ~np.isfinite(f_obs)
    best[missing], difference[missing] = d_fc[missing] * fill, 0.0
    return MapCoefficients(best * phase, difference * phase)


def improbable(f_obs: Floats, f_model: NDArray, alpha: Floats, beta: Floats, centric: Flags) -> Flags:
    """(n,) True where F_obs is so far from its expectation that p < 1e-6 on that side, given the model (Read 1999)."""
    shift = np.nan_to_num((alpha * np.abs(f_model)) ** 2 / beta)
    power = np.nan_to_num(f_obs**2 / beta)
    degrees, scale = np.where(centric, 1, 2), np.where(centric, 1.0, 2.0)
    # only what lies far off is worth the costly tail
    far = np.abs(np.sqrt(scale * power) - np.sqrt(scale * shift)) > 4
    out = np.zeros(len(f_obs), dtype=bool)
    tail = [g(scale[far] * power[far], degrees[far], scale[far] * shift[far]) for g in (stats.ncx2.cdf, stats.ncx2.sf)]
    out[far] = np.minimum(*tail) < _IMPROBABLE
    return out & np.isfinite(f_obs)
