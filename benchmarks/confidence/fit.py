"""Fit the calibration of figures of merit to simulated crystals, and judge it by others."""

from __future__ import annotations

import json
import pickle
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.confidence.measures import equal_width, quadrant, summary
from benchmarks.confidence.rows import Row, read_row
from ml_phaser.outcome import Fragments
from ml_phaser.phasing.calibration import CENTRIC, HIGHEST, OTHERS, PARTS, RISING, Calibration, Evidence, Table

Floats = NDArray[np.float64]
RIDGE = 1e-5
BINS = 40  # of the evidence, before violators are pooled
DIGITS = 5  # of what a table is entered by
FOLDS = 8
NAMES = (*OTHERS, *RISING)


@dataclass(frozen=True, eq=False)
class Judged:
    """A run ready for the fit: evidence, and how far the phases are from the truth. used : (n,) where it is known"""

    name: str
    about: dict[str, Any]
    evidence: Evidence
    best: Floats
    turn: Floats
    used: NDArray[np.bool_]
    centric: NDArray[np.bool_]
    cc: float
    chance: float

    @property
    def cos(self) -> Floats:
        return np.asarray(np.cos(self.turn))

    @property
    def of_atoms(self) -> bool:
        """Whether figures of merit come from what free atoms leave of the moduli, not from the calibration."""
        return self.about["own"]["atoms"] is not None

    @property
    def rank(self) -> Floats:
        """Place of each reflection by resolution, 0-1, low resolution first."""
        out = np.empty(len(self.turn))
        out[np.argsort(-self.evidence.d, kind="stable")] = (np.arange(len(out)) + 0.5) / len(out)
        return out


def judged(row: Row) -> Judged:
    """The evidence of a run as the pipeline has it."""
    from ml_phaser.crystal.phase_distributions import PhaseDistributions
    from ml_phaser.crystal.symmetry import expand
    from ml_phaser.phasing import confidence

    own = row.evidence
    mates = [
        f for f, s in zip(row.solutions, row.about["solutions"], strict=True)
        if s["cluster"] == own["cluster"] and s["trial"] != own["trial"]
    ]  # fmt: skip
    e_calc = np.abs(row.chosen) / np.sqrt(row.epsilon)
    given = None
    if row.about["case"]["given"] is not None:
        given = np.abs(PhaseDistributions(row.given, expand(row.hkl, row.group).turn).centroid())
    phased = row.f_obs * np.exp(1j * np.angle(row.chosen))
    evidence = Evidence(
        confidence.sim_weights(row.e, e_calc, row.centric, row.held, row.d), own["probability"], own["score"],
        row.e, row.d, confidence.agreement(row.hkl, phased, mates, row.cell, row.group), given,
    )  # fmt: skip
    used = np.isfinite(row.truth) & (np.abs(row.truth) > 0)
    about = {k: v for k, v in row.about.items() if k != "solutions"} | {"own": own}
    return Judged(row.name, about, evidence, np.angle(row.moved), row.turn, used, row.centric, row.cc, row.chance)


def read_judged(store: Path, split: str) -> list[Judged]:
    """All runs of a split; each is prepared once."""
    kept = store / "prepared"
    kept.mkdir(exist_ok=True)
    out = []
    for path in sorted(store.glob(f"{split}-*.npz")):
        ready = kept / f"{path.stem}.pickle"  # our own file, of a folder of our own
        if not ready.exists() or ready.stat().st_mtime < path.stat().st_mtime:
            ready.write_bytes(pickle.dumps(judged(read_row(path))))
        row: Judged = pickle.loads(ready.read_bytes())
        own = row.about["own"]
        solved, unaided = (probability(own, given) for given in (row.evidence.given, None))
        out.append(replace(row, evidence=replace(row.evidence, solved=solved, unaided=unaided)))
    return out


def probability(own: dict[str, Any], given: Floats | None) -> float:
    """That of the verdict on a solution with this evidence."""
    from ml_phaser.phasing.confidence import judge

    symmetry = float("nan") if own["symmetry"] is None else own["symmetry"]
    mean = None if given is None else float(given.mean())
    known = own["score"], own["held"], symmetry, own["agreeing"], own["d_min"], placed(own), mean
    return judge(*known, atoms=worth(own)).probability


def worth(own: dict[str, Any]) -> float:
    """How well free atoms explain the moduli, infinite where there were none."""
    return np.inf if own["worth"] is None else own["worth"]


def placed(own: dict[str, Any]) -> Fragments | None:
    """The pieces a solution comes from, as far as the verdict looks at them."""
    if (facts := own.get("fragments")) is None:
        return None
    return Fragments("", facts["fit"], facts["judged"], (), facts["merit"], facts["lead"])


def of_kind(rows: Sequence[Judged], kind: str) -> list[Judged]:
    """Those from phases that were put in ("given"), or the others ("found")."""
    return [r for r in rows if (r.evidence.given is not None) == (kind == "given")]


def pooled(rows: Sequence[Judged], names: Sequence[str]) -> tuple[Floats, Floats, Floats]:
    """Features (m, k), cosines and weights (m,) of all reflections; each counts alike, as in what is promised."""
    features = []
    for r in rows:
        known = r.evidence.features()
        features.append(np.stack([known[n] for n in names], axis=1)[r.used])
    cos = np.concatenate([r.cos[r.used] for r in rows])
    return np.concatenate(features), cos, np.full(len(cos), 1 / len(cos))


def fit_table(rows: Sequence[Judged], names: Sequence[str], floors: Sequence[Floats] | None = None) -> Table:
    """Least squares for the strengths, rising evidence never negative, then pooled adjacent violators.

    ``floors`` : (n,) of each run, what the evidence amounts to at least
    """
    from scipy.optimize import isotonic_regression, minimize

    x, y, w = pooled(rows, names)
    floor = (
        np.zeros(len(y)) if floors is None else np.concatenate([f[r.used] for f, r in zip(floors, rows, strict=True)])
    )

    def loss(b: Floats) -> tuple[float, Floats]:
        p = 1 / (1 + np.exp(-x @ b))
        ours = p >= floor
        miss = np.where(ours, p, floor) - y
        slope = 2 * w * miss * p * (1 - p) * ours
        return float((w * miss**2).sum() + RIDGE * (b**2).sum()), x.T @ slope + 2 * RIDGE * b

    bounds = [(0.0, None) if n in RISING else (None, None) for n in names]
    b = minimize(loss, np.zeros(len(names)), jac=True, method="L-BFGS-B", bounds=bounds).x
    raw = np.maximum(1 / (1 + np.exp(-x @ b)), floor)
    parts = np.array_split(np.argsort(raw, kind="stable"), BINS)
    middle = np.array([np.average(raw[p], weights=w[p]) for p in parts]).round(DIGITS)
    found = np.array([np.average(y[p], weights=w[p]) for p in parts])
    rising = isotonic_regression(found, weights=np.array([w[p].sum() for p in parts])).x
    keep = np.concatenate([[True], np.diff(middle) > 0])
    strength = {n: round(float(v), 4) for n, v in zip(names, b, strict=True)}
    return Table(strength, middle[keep], np.round(np.clip(rising[keep], 0.0, HIGHEST), 4))


def calibrate(rows: Sequence[Judged], weights: str, about: dict[str, Any], names: Sequence[str] = NAMES) -> Calibration:
    """Fit runs without and with phases put in, those of free atoms left out; of the latter, what the former say without
    them is known already."""
    rows = [r for r in rows if not r.of_atoms]
    given = of_kind(rows, "given")
    found = fit_table(of_kind(rows, "found"), [n for n in names if n != "fom"])
    # Errors of phases put in depend on E here and on much else in practice: their own figures of merit must say so.
    own = [n for n in names if n != "strong"]
    tables = {"found": found, "given": fit_table(given, own, [found.merits(r.evidence.forgetting()) for r in given])}
    bare = Calibration(weights, tables, {}, (), about)
    return replace(bare, seeds=fit_seeds(rows, [bare.merits(r.evidence) for r in rows]))


def fit_seeds(rows: Sequence[Judged], foms: Sequence[Floats]) -> dict[str, tuple[Floats, Floats]]:
    """What probabilities of parts of the circle are worth, by pooled adjacent violators, every reflection alike."""
    from scipy.optimize import isotonic_regression

    from ml_phaser.crystal.phase_distributions import hendrickson_lattman

    hl = np.concatenate([hendrickson_lattman(r.best, f, r.centric)[r.used] for r, f in zip(rows, foms, strict=True)])
    centric = np.concatenate([r.centric[r.used] for r in rows])
    turn = np.concatenate([r.turn[r.used] for r in rows])
    out = {}
    for parts in PARTS:
        some = centric if parts == CENTRIC else ~centric
        p, right = quadrant(hl[some], centric[some], turn[some], bins=4 if parts == CENTRIC else int(parts))
        groups = np.array_split(np.argsort(p, kind="stable"), BINS)
        middle, found = (np.array([v[g].mean() for g in groups]) for v in (p, right))
        middle = middle.round(DIGITS)
        keep = np.concatenate([[True], np.diff(middle) > 0])
        rising = isotonic_regression(found[keep]).x
        out[parts] = middle[keep], np.round(rising, 4)
    return out


def assess(rows: Sequence[Judged], foms: Sequence[Floats], worth: Calibration | None = None) -> dict[str, Any]:
    """What ``measures.summary`` says of the reflections of all runs; ``worth`` : of probabilities of quadrants."""
    from ml_phaser.crystal.phase_distributions import hendrickson_lattman

    def gather(values: Sequence[Floats]) -> Floats:
        return np.concatenate([v[r.used] for v, r in zip(values, rows, strict=True)])

    hl = [hendrickson_lattman(r.best, f, r.centric) for r, f in zip(rows, foms, strict=True)]
    return summary(
        gather(foms), gather(hl), gather([r.centric for r in rows]), gather([r.turn for r in rows]),
        gather([r.evidence.d for r in rows]), gather([r.rank for r in rows]),
        worth,
    )  # fmt: skip


def crossed(rows: Sequence[Judged], names: Sequence[str] = NAMES) -> list[Floats]:
    """Figures of merit of every run from a calibration that has not seen it."""
    order = np.random.default_rng(0).permutation(len(rows))
    out: list[Floats] = [np.zeros(0)] * len(rows)
    for k in range(FOLDS):
        test = set(order[k::FOLDS].tolist())
        found = calibrate([r for i, r in enumerate(rows) if i not in test], "", {}, names)
        for i in test:
            out[i] = found.merits(rows[i].evidence)
    return out


def write(found: Calibration, tested: Sequence[Judged], path: Path) -> None:
    """The file that goes beside the weights, with the reliability on crystals that had no part in it."""
    tested = [r for r in tested if not r.of_atoms]
    foms = np.concatenate([found.merits(r.evidence)[r.used] for r in tested])
    cos = np.concatenate([r.cos[r.used] for r in tested])
    facts = {
        "about": {**found.about, "tested": len(tested)}, "weights": found.weights,
        "tables": {
            kind: {"strength": t.strength, "raw": t.raw.tolist(), "fom": t.fom.tolist()}
            for kind, t in found.tables.items()
        },
        "seeds": {parts: {"raw": p.tolist(), "right": right.tolist()} for parts, (p, right) in found.seeds.items()},
        "reliability": [[b.n, round(b.promised, 4), round(b.found, 4)] for b in equal_width(foms, cos)],
    }  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
