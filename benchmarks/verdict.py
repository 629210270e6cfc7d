#!/usr/bin/env python3
"""Is the verdict to be believed? Simulated peptide crystals, easy to impossible, phased and compared with the truth.

    python benchmarks/verdict.py --crystals 40 --timelimit 15

writes benchmarks/results/verdict.json and verdict.md: every crystal's evidence (held-out correlation, agreement with
the space group, agreeing starts), the probability claimed and the map correlation reached, and what a fit to them would
give for the coefficients of phasing/confidence.py.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
GROUPS = ("P1", "P21", "C2", "P212121")
LETTERS = "AGSVLTDNEKFYIQ"
RIGHT = 0.5  # map correlation from which on a map counts as right, as in Verdict.probability


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--crystals", type=int, default=40)
    parser.add_argument("--timelimit", type=float, default=15.0, help="seconds of phasing for each [15]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--engine", default="auto", choices=("auto", "classical", "learned"))
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "verdict.json")
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", str(args.threads))
    rows: list[dict[str, Any]] = []
    for i in range(args.crystals):
        rows.append(one(args, i))
        print(rows[-1], flush=True)
        args.out.parent.mkdir(parents=True, exist_ok=True)
        result = {"options": {k: str(v) for k, v in vars(args).items() if k != "out"}, "fit": fit(rows), "rows": rows}
        args.out.write_text(json.dumps(result, indent=1) + "\n")
        args.out.with_suffix(".md").write_text(table(rows))
    return 0


def one(args: argparse.Namespace, i: int) -> dict[str, Any]:
    """Simulate crystal ``i``, phase it, compare."""
    import numpy as np

    from ml_phaser import pipeline
    from ml_phaser.crystal.agreement import compare
    from ml_phaser.errors import UserError
    from ml_phaser.notify import Silent
    from ml_phaser.parameters import Options
    from ml_phaser.simulate.data_set import as_mtz
    from ml_phaser.simulate.families import make

    rng = np.random.default_rng([args.seed, i])
    sequence = "".join(rng.choice(list(LETTERS), rng.integers(2, 8)))
    group, d_min = str(rng.choice(GROUPS)), float(np.round(rng.uniform(0.85, 1.7), 2))
    noise, b, seed = float(rng.choice([0.02, 0.05, 0.1])), float(rng.uniform(3, 12)), int(rng.integers(2**31))
    row: dict[str, Any] = {"sequence": sequence, "group": group, "d_min": d_min, "noise": noise}
    try:
        crystal = make(
            "ideal", seed, sequence=sequence, spacegroup=group, d_min=d_min, noise=noise, completeness=0.95, b=b
        )
    except UserError as error:
        return {**row, "error": str(error)}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.mtz"
        as_mtz(crystal).write_to_file(str(path))
        options = Options(path, path.with_suffix(".map"), path.with_name("out.mtz"), path.with_suffix(".json"),
                          timelimit=args.timelimit, threads=args.threads, engine=args.engine)  # fmt: skip
        began = time.monotonic()
        data = pipeline.read(options)
        normalised = pipeline.normalise(data)
        plan = pipeline.make_plan(data, normalised, options)
        hunt = pipeline.phase(plan, options, Silent())
    best = max(hunt.solutions, key=lambda s: s.probability)
    truth = {tuple(h): f for h, f in zip(crystal.hkl.tolist(), crystal.f, strict=True)}
    f_true = np.array([truth[tuple(h)] for h in data.hkl.tolist()])
    phased = normalised.f * np.exp(1j * np.angle(best.f))
    agreement = compare(data.hkl, phased, f_true, data.cell, data.spacegroup, repeats=2)
    return {
        **row, "atoms": len(crystal.sites), "reflections": len(data), "seconds": round(time.monotonic() - began, 1),
        "trials": len(hunt.trials), "score": best.score, "held": best.held, "agreeing": best.agreeing,
        "symmetry": None if math.isnan(best.symmetry) else best.symmetry, "core": best.core,
        "probability": best.probability, "cc": agreement.map_cc, "chance": agreement.chance_cc,
        "phase_error": agreement.phase_error,
    }  # fmt: skip


def fit(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Ridge logistic regression of cc >= RIGHT on the evidence, as in ``phasing.confidence.probability_solved``."""
    import numpy as np
    from scipy.optimize import minimize

    good = [r for r in rows if "cc" in r]
    y = np.array([r["cc"] >= RIGHT for r in good], dtype=float)
    if len(set(y)) < 2:
        return {}
    cautious = [r["score"] - 1 / math.sqrt(max(r["held"], 4)) for r in good]
    symmetry = [0.0 if r["symmetry"] is None else 4 * r["symmetry"] - 1 for r in good]
    x = np.column_stack([np.ones(len(good)), cautious, symmetry, [min(r["agreeing"], 3) for r in good]])

    def loss(w: np.ndarray) -> float:
        z = x @ w
        return float(np.logaddexp(0, z).sum() - y @ z + 0.002 * (w[1:] ** 2).sum())

    w = minimize(loss, np.array([-9.0, 20.0, 2.0, 0.7]), method="BFGS").x
    return dict(zip(("bias", "per_score", "per_symmetry", "per_agreeing"), map(float, w), strict=True))


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: the claims against the truth, then every crystal."""
    good = [r for r in rows if "cc" in r]
    lines = ["| claimed probability | crystals | map CC >= 0.5 | lowest CC | highest CC |", "|---|---|---|---|---|"]
    for low, high in ((0.9, 1.01), (0.25, 0.9), (-0.01, 0.25)):
        part = [r["cc"] for r in good if low <= r["probability"] < high]
        if part:
            right = sum(c >= RIGHT for c in part)
            lines.append(
                f"| {max(low, 0)}-{min(high, 1)} | {len(part)} | {right} | {min(part):.2f} | {max(part):.2f} |"
            )
    head = "sequence,group,d_min,noise,atoms,trials,s,held-out CC,symmetry,agreeing,P,CC,chance,phase error"
    lines += ["", "| " + head.replace(",", " | ") + " |", "|" + "---|" * 14]
    for r in sorted(good, key=lambda r: r["d_min"]):
        symmetry = "-" if r["symmetry"] is None else f"{r['symmetry']:.2f}"
        lines.append(
            f"| {r['sequence']} | {r['group']} | {r['d_min']:.2f} | {r['noise']} | {r['atoms']} | {r['trials']} "
            f"| {r['seconds']:.0f} | {r['score']:.2f} | {symmetry} | {r['agreeing']} | {r['probability']:.2f} "
            f"| {r['cc']:.2f} | {r['chance']:.2f} | {r['phase_error']:.0f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
