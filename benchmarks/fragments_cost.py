#!/usr/bin/env python3
"""Processor seconds and memory of a piece's way through search, refinement and judgement, against the cell's volume and
the number of operators.

    python -m benchmarks.fragments_cost

Crystals of random atoms at 1.6 A, a strand of four alanines; every crystal in a process of its own. Writes
fragments_cost.json and fragments_cost.md into benchmarks/results.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from pathlib import Path
from typing import Any

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[name] = "1"

OUT = Path(__file__).resolve().parent / "results" / "fragments_cost.json"
CELLS = (50, 100, 200, 400)  # atoms in the cell
D_MIN = 1.6


def measure(task: tuple[str, int]) -> dict[str, Any]:
    """One crystal: volume, operators, processor seconds of a piece, of one judgement and one completion, GB at most."""
    import resource

    from benchmarks.fragments import GROUPS, Case, of_random_atoms
    from benchmarks.phasing.entrants import options
    from ml_phaser import pipeline
    from ml_phaser.phasing.fragments.pieces import STRANDS, polyalanine
    from ml_phaser.plan import plan_phasing

    group, atoms = task
    crystal = of_random_atoms(Case("atoms", "0", None, group, D_MIN, atoms // GROUPS[group], 0))
    normalised = pipeline.normalise(crystal.data)
    strand = polyalanine(4, STRANDS[0], "strand of 4")
    plan = plan_phasing(crystal.data, normalised, options(60.0, 0, "auto"), pieces=(strand,))
    road = plan.road
    if road is None:
        sys.exit(f"no pieces can be placed in {group} with {atoms} atoms")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.process_time()
    models = road.placed(road.pieces[0], (), lambda: False)
    placed = time.process_time()
    f = models[0].f if models else crystal.f[plan.road_rows]
    road.judge.score(f)
    judged = time.process_time()
    road.completed(models[0]) if models else road.judge.complete(f, 5)
    return {
        "group": group, "operators": GROUPS[group], "atoms": atoms, "volume": round(crystal.data.cell.volume),
        "reflections": len(crystal.data), "placed": round(placed - began, 2), "judged": round(judged - placed, 2),
        "completed": round(time.process_time() - judged, 2),
        "gigabytes": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        "before": round(before / 2**20, 2),
    }  # fmt: skip


def report(rows: list[dict[str, Any]], facts: dict[str, Any]) -> str:
    """Markdown: every crystal, and the exponents of volume and operators by least squares of logarithms."""
    import numpy as np

    from benchmarks.phasing.tables import table

    logs = np.log([[r["volume"], r["operators"]] for r in rows])
    design = np.column_stack([np.ones(len(rows)), logs])
    lines = [
        "# What a piece costs", "",
        f"A strand of four alanines, {D_MIN} A, one thread; ml_phaser {facts['version']}, weights "
        f"{facts['weights']['sha256'][:8]}, {facts['machine']['processor']}. *placed*: every orientation and "
        "translation, refinement, judgement of up to 12 poses; *judged*: one judgement; *completed*: one model. GB: of "
        "the process, and before the search.", "",
    ]  # fmt: skip
    head = ["group", "operators", "atoms", "volume, A^3", "reflections", "placed, s", "judged, s", "completed, s", "GB"]
    names = ("group", "operators", "atoms", "volume", "reflections", "placed", "judged", "completed")
    body = [[*(str(r[n]) for n in names), f"{r['gigabytes']} ({r['before']})"] for r in rows]
    lines += [*table(head, body), ""]
    for name in ("placed", "judged", "completed", "gigabytes"):
        _, volume, operators = np.linalg.lstsq(design, np.log([max(r[name], 0.01) for r in rows]), rcond=None)[0]
        lines.append(f"- {name}: volume to the power of {volume:.2f}, operators to that of {operators:.2f}")
    return "\n".join(lines) + "\n"


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="benchmarks.fragments_cost", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=OUT)
    o = parser.parse_args(argv)
    from benchmarks.fragments import GROUPS
    from benchmarks.phasing.runner import record
    from ml_phaser.atomic import atomic

    rows = []
    for atoms in CELLS:
        for group in GROUPS:
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                rows.append(pool.apply(measure, ((group, atoms),)))
            print(*rows[-1].values(), flush=True)
    facts = record({"d_min": D_MIN})
    for target, text in ((o.out, json.dumps({"record": facts, "rows": rows}, indent=1)),
                         (o.out.with_suffix(".md"), report(rows, facts))):  # fmt: skip
        with atomic(target) as part:
            part.write_text(text.rstrip() + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
