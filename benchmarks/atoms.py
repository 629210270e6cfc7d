#!/usr/bin/env python3
"""Free atoms: what becomes of a solution when its density is replaced by atoms refined against the moduli.

    python -m benchmarks.atoms

Each crystal is phased twice with the same seed and the same processor seconds, without free atoms and with them:
measured sets with a model that atoms can be tried on in that time, and dense peptides of held-out entries, 12 to 100
atoms, 1.0 to 1.6 A, noise 5 %. Writes atoms.json and atoms.md into benchmarks/results.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[name] = "1"

import numpy as np  # noqa: E402

from benchmarks.phasing import crystals, tasks  # noqa: E402
from benchmarks.phasing.crystals import Crystal, Recipe, shared_data  # noqa: E402
from benchmarks.phasing.entrants import options  # noqa: E402
from benchmarks.phasing.runner import finite, record  # noqa: E402
from benchmarks.phasing.tables import table  # noqa: E402
from ml_phaser.errors import UserError  # noqa: E402

OUT = Path(__file__).resolve().parent / "results" / "atoms.json"
ATOMS, D_MIN = (12, 25, 50, 100), (1.0, 1.1, 1.2, 1.3, 1.4, 1.6)
SOLVED = 0.7  # of map correlation, as in the table of the frontier
Row = dict[str, Any]


def recipes(kind: str, count: int) -> Iterator[Recipe]:
    """The crystals of a kind."""
    if kind == "measured":
        from benchmarks.measured import read_sets
        from ml_phaser.phasing.completion import D_MIN as LIMIT

        for item in read_sets(shared_data() / "diffraction"):
            if item.model is not None and item.d_min < LIMIT:
                yield Recipe("measured", item.name, "measured", settings=(("set", item.name),))
        return
    wanted = [(d, n) for d in D_MIN for n in ATOMS]
    for recipe in tasks.recipes("frontier", 6.0, count, 0):
        point = dict(recipe.point)
        if (point["d_min"], point["atoms"]) in wanted:
            yield recipe


def phased(crystal: Crystal, seconds: float, seed: int, *, atoms: bool) -> Row | None:
    """The solution of a search with or without free atoms, as judged by the truth; None where they are not tried."""
    from ml_phaser import pipeline
    from ml_phaser.crystal.agreement import compare
    from ml_phaser.notify import Silent
    from ml_phaser.plan import plan_phasing

    asked, data = replace(options(seconds, seed, "auto"), starts="random"), crystal.data
    normalised = pipeline.normalise(data)
    plan = plan_phasing(data, normalised, asked)
    if plan.completer is None:
        return None
    plan = plan if atoms else replace(plan, completer=None, walks=None)
    began = time.process_time()
    hunt = pipeline.phase(plan, asked, Silent(), time.process_time)
    used = time.process_time() - began
    best, _ = pipeline.choose(hunt, data, normalised, plan)
    phases, _, verdict, hand = pipeline.weigh(data, normalised, plan, best, hunt.solutions)
    known = np.isfinite(crystal.f)
    f = normalised.f * np.exp(1j * phases.phase)
    a = compare(data.hkl[known], f[known], crystal.f[known], data.cell, data.spacegroup, repeats=0)
    return {
        "cc": round(a.map_cc, 4), "phase_error": round(a.phase_error, 1), "right_hand": not a.inverted,
        "hand": hand.said[:40], "score": round(best.score, 3), "verdict": verdict.word,
        "probability": round(verdict.probability, 3), "seconds": round(used, 1), "r": round(best.r_work, 3),
        "found": None if best.atoms is None else len(best.atoms), "starts": len(hunt.trials),
        "mean_fom": round(float(phases.fom.mean()), 3),
    }  # fmt: skip


def run(recipe: Recipe, kind: str, seconds: float, seed: int) -> Row | None:
    """One crystal, both ways; None where free atoms are not tried."""
    crystal = crystals.get(recipe)
    after = phased(crystal, seconds, seed, atoms=True)
    if after is None:
        return None
    before = phased(crystal, seconds, seed, atoms=False)
    data, sohncke = crystal.data, crystal.data.spacegroup.is_sohncke()
    return {
        "kind": kind, "name": recipe.name, "group": data.spacegroup.hm, "d_min": round(data.d_min, 2), "hands": sohncke,
        "reflections": len(data), "before": before, "after": after,
    }  # fmt: skip


def one_line(row: Row) -> tuple[str, ...]:
    both = (row["before"], row["after"])
    return (
        row["name"].removesuffix(", noise 0.05"), row["group"], f"{row['d_min']:g}", str(row["reflections"]),
        *(f"{x['cc']:.2f} ({x['phase_error']:.0f})" for x in both), str(row["after"]["found"] or "-"),
        f"{row['after']['r']:.2f}", *(f"{x['probability']:.2f} {x['verdict']}" for x in both),
        *((("yes" if x["right_hand"] else "no") if row["hands"] else "-") for x in both),
    )  # fmt: skip


HEAD = ("crystal", "group", "A", "reflections", "CC without (degrees)", "with", "atoms", "R", "P without", "with",
        "right hand without", "with")  # fmt: skip


def summary(rows: list[Row]) -> list[str]:
    """Solved, how well, and how many of those in the right hand."""
    lines = []
    for which, name in (("before", "without"), ("after", "with")):
        own = [r for r in rows if r[which]["cc"] >= SOLVED]
        chiral = [r for r in own if r["hands"]]
        right = sum(r[which]["right_hand"] for r in chiral)
        wrong = [r for r in rows if r[which]["verdict"] == "solved" and r[which]["cc"] < 0.5]
        lines.append(
            f"- {name}: {len(own)} of {len(rows)} solved, their median CC "
            f"{np.median([r[which]['cc'] for r in own]) if own else 0:.3f}, phase error "
            f"{np.median([r[which]['phase_error'] for r in own]) if own else 0:.1f} degrees, hand right in {right} of "
            f"{len(chiral)}; called solved {sum(r[which]['verdict'] == 'solved' for r in rows)}, of these wrong "
            f"{len(wrong)}; median seconds {np.median([r[which]['seconds'] for r in rows]):.1f}"
        )
    return lines


def report(rows: list[Row], facts: dict[str, Any]) -> str:
    settings = facts["settings"]
    parts = [
        "# Free atoms", "",
        f"The same search without free atoms and with them, {settings['seconds']:g} processor seconds each for dense "
        f"peptides, {settings['measured_seconds']:g} for measured data, seed {settings['seed']}; ml_phaser "
        f"{facts['version']}, weights {facts['weights']['sha256'][:8]}. CC: of maps of "
        f"measured amplitudes with the truth, at the best origin and hand; solved: {SOLVED:g} and more.", "",
    ]  # fmt: skip
    for kind, title in (("simulated", "Dense peptides"), ("measured", "Measured")):
        own = [r for r in rows if r["kind"] == kind]
        if own:
            parts += [f"## {title}", "", *summary(own), "", *table(HEAD, [one_line(r) for r in own]), ""]
    return "\n".join(parts)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="benchmarks.atoms", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--seconds", type=float, default=12.0, help="processor seconds a run of a dense peptide [12]")
    add("--measured-seconds", type=float, default=60.0, help="of measured data [60]")
    add("--crystals", type=int, default=2, help="dense peptides of each size and resolution [2]")
    add("--kinds", default="measured,simulated", help="commas between; rows of the other that are there are kept")
    add("--seed", type=int, default=0)
    add("--out", type=Path, default=OUT)
    o = parser.parse_args(argv)
    names = ("seconds", "measured_seconds", "crystals", "seed")
    facts = record({name: getattr(o, name) for name in names})
    earlier = json.loads(o.out.read_text())["rows"] if o.out.exists() else []
    rows: list[Row] = [row for row in earlier if row["kind"] not in o.kinds.split(",")]
    for kind in o.kinds.split(","):
        for recipe in recipes(kind, o.crystals):
            try:
                row = run(recipe, kind, o.measured_seconds if kind == "measured" else o.seconds, o.seed)
            except (UserError, ValueError) as error:  # sets without a model that fits their data
                print(recipe.name, str(error)[:100], flush=True)
                continue
            if row is None:
                continue
            rows.append(finite(row))
            print(*one_line(rows[-1]), flush=True)
            o.out.write_text(json.dumps({"record": facts, "rows": rows}, indent=1) + "\n", encoding="utf-8")
            o.out.with_suffix(".md").write_text(report(rows, facts), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
