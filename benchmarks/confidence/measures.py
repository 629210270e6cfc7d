"""How well what was promised was kept: of figures of merit, resolution shells, quadrants of phases."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ml_phaser.crystal.phase_distributions import bin_of, bin_probabilities
from ml_phaser.phasing.calibration import Calibration

Floats = NDArray[np.float64]
LEAST = 30  # reflections of a bin that is judged


@dataclass(frozen=True)
class Bin:
    """Reflections that belong together: n, mean of what was promised and of what was found."""

    n: int
    promised: float
    found: float

    @property
    def gap(self) -> float:
        return self.found - self.promised


def equal_width(promised: Floats, found: Floats, count: int = 10, low: float = 0.0, high: float = 1.0) -> list[Bin]:
    """Bins of equal width of the promise, those that hold any."""
    which = np.clip(((promised - low) / (high - low) * count).astype(int), 0, count - 1)
    return [_bin(promised, found, np.flatnonzero(which == k)) for k in range(count) if np.any(which == k)]


def equal_count(key: Floats, promised: Floats, found: Floats, count: int = 10) -> list[Bin]:
    """Bins of equally many reflections along ``key``."""
    parts = np.array_split(np.argsort(key, kind="stable"), count)
    return [_bin(promised, found, part) for part in parts if len(part) >= LEAST]


def _bin(promised: Floats, found: Floats, rows: NDArray[np.intp]) -> Bin:
    return Bin(len(rows), float(promised[rows].mean()), float(found[rows].mean()))


def expected_error(bins: list[Bin]) -> float:
    """Expected calibration error: mean |gap| of the bins, each with the weight of its reflections."""
    return float(np.average([abs(b.gap) for b in bins], weights=[b.n for b in bins]))


def largest_gap(bins: list[Bin]) -> float:
    """The largest |gap| of bins with at least LEAST reflections."""
    return max((abs(b.gap) for b in bins if b.n >= LEAST), default=float("nan"))


def quadrant(
    hl: Floats, centric: NDArray[np.bool_], turn: Floats, worth: Calibration | None = None, bins: int = 4
) -> tuple[Floats, Floats]:
    """Of each reflection the probability of its likeliest quadrant (of its likelier value, where centric) and whether
    the true phase lies there.

    hl : (n, 4) with C = D = 0; turn : (n,) true less best phase in radians; worth : what such probabilities are worth;
    bins : parts of the circle, if not quadrants
    """
    best = np.arctan2(hl[:, 1], hl[:, 0])
    p = bin_probabilities(hl, centric, bins)
    right = bin_of(best + turn, bins) == p.argmax(axis=1)
    best_p = p.max(axis=1) if worth is None else worth.right(p.max(axis=1), centric, bins)
    return best_p, np.where(centric, np.cos(turn) > 0, right).astype(float)


def summary(
    fom: Floats,
    hl: Floats,
    centric: NDArray[np.bool_],
    turn: Floats,
    d: Floats,
    rank: Floats,
    worth: Calibration | None = None,
) -> dict[str, Any]:
    """All of it for a set of reflections; ``rank``: 0-1, place among those of its crystal, low resolution first."""
    cos = np.cos(turn)
    bins = equal_width(fom, cos)
    p, right = quadrant(hl, centric, turn, worth)
    return {
        "n": len(fom), "mean_fom": float(fom.mean()), "mean_cos": float(cos.mean()), "ece": expected_error(bins),
        "bins": bins, "shells": equal_count(-d, fom, cos), "ranks": equal_count(rank, fom, cos),
        "quadrants": equal_count(p[~centric], p[~centric], right[~centric]),
        "centric": equal_count(p[centric], p[centric], right[centric]) if centric.sum() >= 10 * LEAST else [],
        "all_seeds": equal_count(p, p, right),
    }  # fmt: skip
