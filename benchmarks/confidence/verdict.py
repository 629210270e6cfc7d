"""Fit what the verdict makes of its evidence, and count its false words."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.confidence.fit import FOLDS, Judged, placed, worth
from ml_phaser.phasing import confidence

Floats = NDArray[np.float64]
RIGHT = 0.5  # map correlation from which on a map counts as right
PLAINLY = 0.8  # from which on it must not be called "not solved"
RIDGE = 0.02
Predict = Callable[[Floats], Floats]


def kind(row: Judged) -> str:
    """Which of the ways to a probability: "given", "atoms", "pieces" or "found"; of atoms nothing is fitted here."""
    if row.evidence.given is not None:
        return "given"
    if row.of_atoms:
        return "atoms"
    return "pieces" if row.about["own"].get("fragments") else "found"


def reckoned(own: dict[str, Any]) -> tuple[float, int, float, int, float]:
    """What the search's reckoning takes of a solution."""
    symmetry = math.nan if own["symmetry"] is None else own["symmetry"]
    return own["score"], own["held"], symmetry, own["agreeing"], own["d_min"]


def odds(row: Judged) -> float:
    """The search's log-odds."""
    own = row.about["own"]
    found, pieces = confidence.log_odds_solved(*reckoned(own)), placed(own)
    if pieces is None:
        return found
    return max(found, confidence.log_odds_of_pieces(pieces.merit, pieces.lead, own["held"]))


def enough(row: Judged) -> bool:
    """Whether "solved" may be said."""
    own = row.about["own"]
    if row.evidence.given is not None or confidence.probability_of_atoms(worth(own), own["score"]) >= confidence.SOLVED:
        return True
    return confidence.enough(*reckoned(own), placed(own))


def model(which: str, rows: Sequence[Judged]) -> tuple[Predict, Floats]:
    """Probabilities (n,) as a function of the constants of ``phasing.confidence``, and where to begin."""
    held = np.array([max(r.about["own"]["held"], 4) for r in rows], dtype=float)
    if which == "given":
        cautious = np.array([max(r.about["own"]["score"], 0.0) for r in rows]) - 1 / np.sqrt(held)
        fom = np.array([np.clip(r.evidence.given.mean(), 0.02, 0.98) for r in rows])  # type: ignore[union-attr]
        x = np.column_stack([np.ones(len(rows)), cautious, np.log(fom / (1 - fom))])
        return lambda c: _sigmoid(x @ c), np.array([0.0, 5.0, 1.0])
    found, sure = np.array([odds(r) for r in rows]), confidence.SURE

    def predict(c: Floats) -> Floats:
        slope = 1 / np.sqrt(1 + c[0] ** 2 * confidence.PER_SCORE**2 / held) if which == "found" else c[0]
        return _sigmoid(np.where(found >= sure, found, sure + slope * (found - sure)))

    return predict, np.array([1.0])


def _sigmoid(x: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-np.clip(x, -30, 30))))


def loss(p: Floats, y: Floats) -> float:
    """Mean negative log-likelihood."""
    p = np.clip(p, 1e-6, 1 - 1e-6)
    return float(-np.mean(y * np.log(p) + (1 - y) * np.log(1 - p)))


def fit(which: str, rows: Sequence[Judged]) -> Floats:
    """Constants of one kind; of "found" the root of NOISE."""
    from scipy.optimize import minimize

    predict, start = model(which, rows)
    y = np.array([r.cc >= RIGHT for r in rows], dtype=float)
    ridge = RIDGE / len(rows) if which == "given" else 0.0
    found = minimize(lambda c: loss(predict(c), y) + ridge * float((c**2).sum()), start, method="Nelder-Mead")
    return np.asarray(found.x)


def crossed(which: str, rows: Sequence[Judged]) -> Floats:
    """Probability of each run by constants that were fitted without it."""
    order, out = np.random.default_rng(0).permutation(len(rows)), np.zeros(len(rows))
    for k in range(FOLDS):
        test = order[k::FOLDS]
        seen = [rows[i] for i in np.setdiff1d(order, test)]
        out[test] = model(which, [rows[i] for i in test])[0](fit(which, seen))
    return out


def words(p: Floats, rows: Sequence[Judged]) -> dict[str, Any]:
    """How many of each word, the false ones by name, Brier score and log loss."""
    cc = np.array([r.cc for r in rows])
    y = (cc >= RIGHT).astype(float)
    sure = np.array([confidence.SOLVED if r.evidence.given is None else confidence.SOLVED_GIVEN for r in rows])
    hopeless = [confidence.NOT_SOLVED if r.evidence.given is None else confidence.NOT_SOLVED_GIVEN for r in rows]
    solved, lost = (p >= sure) & np.array([enough(r) for r in rows]), p <= np.array(hopeless)

    def names(which: NDArray[np.bool_]) -> list[str]:
        return [f"{rows[i].name} ({cc[i]:.2f})" for i in np.flatnonzero(which)]

    edges = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.01)
    bins = [(low, high, (p >= low) & (p < high)) for low, high in pairwise(edges)]
    return {
        "n": len(rows), "right": int(y.sum()), "brier": float(np.mean((p - y) ** 2)), "log_loss": loss(p, y),
        "solved": int(solved.sum()), "uncertain": int((~solved & ~lost).sum()), "not_solved": int(lost.sum()),
        "solved_but_wrong": names(solved & (cc < RIGHT)), "not_solved_but_good": names(lost & (cc > PLAINLY)),
        "not_solved_but_right": int((lost & (cc >= RIGHT)).sum()),
        "bins": [[low, high, int(w.sum()), float(p[w].mean()), float(y[w].mean())] for low, high, w in bins if w.any()],
    }  # fmt: skip
