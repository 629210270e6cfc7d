"""Errors a density projection has to repair: wrong phases of every strength and kind, noisy and missing amplitudes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def concentration(mean_cos: float) -> float:
    """von Mises kappa with mean cosine ``mean_cos`` (Banerjee et al., J. Mach. Learn. Res. 6, 1345, 2005, eq. 4.4)."""
    c = float(np.clip(mean_cos, 1e-4, 0.9995))
    return c * (2 - c * c) / (1 - c * c)


def noisy_phases(
    rng: np.random.Generator, f: NDArray[np.complex128], stol2: NDArray, quality: float, kind: str
) -> NDArray[np.complex128]:
    """Structure factors whose map correlates with the true one by about ``quality`` (0-1), amplitudes kept.

    kind : "phase" (von Mises, equal for all), "resolution" (von Mises, worse at high resolution), "additive" (complex
        Gaussian noise, so that strong reflections are better phased than weak ones), or, whatever the ``quality``,
        "truth" (no error) and "random" (all phases at random)
    """
    n = len(f)
    if kind == "truth":
        return f
    if kind == "random":
        return np.abs(f) * np.exp(2j * np.pi * rng.random(n))
    if kind == "additive":
        # The mean cosine, weighted by F^2, of |F| plus complex noise of size s falls as s grows: s from quality.
        s = np.sqrt(np.mean(np.abs(f) ** 2)) * (1 / max(quality, 0.02) ** 2 - 1) ** 0.5 * 1.1
        noise = rng.normal(size=(n, 2)) @ np.array([1, 1j]) * s / np.sqrt(2)
        return np.abs(f) * np.exp(1j * np.angle(f + noise))
    local = np.full(n, quality)
    if kind == "resolution":
        tilt = rng.uniform(0.3, 1.5)
        x = stol2 / stol2.max()
        local = np.clip(quality * (1 + tilt * (0.6 - x)), 0.01, 0.995)
    kappa = np.array([concentration(c) for c in local]) if kind == "resolution" else concentration(quality)
    return f * np.exp(1j * rng.vonmises(0.0, kappa, n))


def noisy_amplitudes(
    rng: np.random.Generator, f: NDArray[np.complex128], stol2: NDArray, level: float
) -> NDArray[np.float64]:
    """|F| with relative errors around ``level`` of the r.m.s. amplitude in its resolution range plus 1 % of its own."""
    order = np.argsort(stol2)
    rms = np.empty(len(f))
    for part in np.array_split(order, max(1, len(f) // 200)):
        rms[part] = np.sqrt(np.mean(np.abs(f[part]) ** 2))
    sigma = np.hypot(level * rms, 0.01 * np.abs(f))
    return np.abs(np.abs(f) + rng.normal(size=len(f)) * sigma)


def missing(rng: np.random.Generator, stol2: NDArray, worst: float = 0.15) -> NDArray[np.bool_]:
    """Which reflections were measured: random losses up to ``worst``, sometimes the lowest resolution gone."""
    known = rng.random(len(stol2)) >= rng.uniform(0, worst) * (rng.random() < 0.7)
    if rng.random() < 0.3:
        known &= stol2 > (1 / (2 * rng.uniform(6, 15))) ** 2
    return known


def partial_structure(
    rng: np.random.Generator, xyz: NDArray, orth: NDArray, fraction: float, most: float = 0.4
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """A contiguous piece of the structure, misplaced.

    Returns
    -------
    (m,) bool, the ``fraction`` of atoms nearest (in the cell, modulo translations) to a random one, and (m, 3)
    fractional coordinates with random error up to ``most`` A (r.m.s.) plus a rigid shift up to 0.3 A
    """
    difference = xyz - xyz[rng.integers(len(xyz))]
    distance = np.linalg.norm((difference - np.round(difference)) @ orth.T, axis=1)
    kept = np.zeros(len(xyz), dtype=bool)
    kept[np.argsort(distance)[: max(3, round(fraction * len(xyz)))]] = True
    error = rng.normal(size=xyz.shape) * rng.uniform(0, most / 1.6) + rng.normal(size=3) * rng.uniform(0, 0.15)
    return kept, xyz + error @ np.linalg.inv(orth).T


def misplaced(
    rng: np.random.Generator, kept: NDArray[np.bool_], xyz: NDArray, orth: NDArray, most: float = 0.2
) -> NDArray[np.float64]:
    """Fractional coordinates (m, 3) with up to the share ``most`` of the kept atoms thrown some angstroms off: those a
    model gets wrong."""
    wrong = kept & (rng.random(len(kept)) < rng.uniform(0, most))
    return xyz + wrong[:, None] * (rng.normal(size=xyz.shape) * 1.5 @ np.linalg.inv(orth).T)
