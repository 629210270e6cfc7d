"""Intervals and exponents."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Z = 1.959964  # of a 95 % interval
RESAMPLES = 2000


def wilson(good: int, n: int) -> tuple[float, float]:
    """95 % interval of a fraction (Wilson, J. Am. Stat. Assoc. 22, 209, 1927); (0, 1) where nothing was tried."""
    if n == 0:
        return 0.0, 1.0
    p, z2 = good / n, Z * Z
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def bootstrap(
    values: Sequence[float], statistic: Callable[..., NDArray] = np.mean, seed: int = 0
) -> tuple[float, float]:
    """95 % percentile interval of a statistic that takes ``axis``; NaN where there are fewer than two values."""
    x = np.asarray(values, dtype=float)
    if len(x) < 2:
        return math.nan, math.nan
    rows = np.random.default_rng(seed).integers(len(x), size=(RESAMPLES, len(x)))
    low, high = np.percentile(statistic(x[rows], axis=1), [2.5, 97.5])
    return float(low), float(high)


def exponent(size: Sequence[float], cost: Sequence[float], seed: int = 0) -> tuple[float, float, float]:
    """b of cost = a size^b by least squares of the logarithms, and its 95 % bootstrap interval.

    NaN where fewer than three positive pairs, or no range of sizes, are given.
    """
    x, y = np.asarray(size, dtype=float), np.asarray(cost, dtype=float)
    good = (x > 0) & (y > 0)
    x, y = np.log(x[good]), np.log(y[good])
    if len(x) < 3 or np.ptp(x) < 0.5:
        return math.nan, math.nan, math.nan
    rows = np.random.default_rng(seed).integers(len(x), size=(RESAMPLES, len(x)))
    xs, ys = x[rows], y[rows]
    xs, ys = xs - xs.mean(1, keepdims=True), ys - ys.mean(1, keepdims=True)
    spread = (xs * xs).sum(1)
    slopes = (xs * ys).sum(1)[spread > 0] / spread[spread > 0]
    low, high = np.percentile(slopes, [2.5, 97.5])
    return float(np.polyfit(x, y, 1)[0]), float(low), float(high)
