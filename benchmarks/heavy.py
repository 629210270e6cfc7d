#!/usr/bin/env python3
"""Heavy atoms from the Patterson function: how large a structure do they open, to which resolution?

    python -m benchmarks.heavy

Measured proteins, amplitudes alone, cut to several resolutions, and, if asked for in --runs, simulated crystals of
held-out proteins (protein0, protein1...; 30 to 90 residues, as many sulphur atoms as they happen to have); "heavy"
and "random" starts with the same processor time each, one thread. Writes heavy.json and heavy.md into
benchmarks/results after every run; what is there is not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[name] = "1"

from benchmarks.fragments import Case, agreement, crystal_of  # noqa: E402
from benchmarks.phasing.crystals import Crystal, Recipe, get  # noqa: E402
from benchmarks.phasing.runner import finite, record  # noqa: E402
from benchmarks.phasing.tables import table  # noqa: E402

OUT = Path(__file__).resolve().parent / "results" / "heavy.json"
# name, d_min in A (0: all data), processor seconds
RUNS = (
    ("4lzt", 0.0, 100), ("4lzt", 1.0, 100), ("4lzt", 1.1, 100), ("4lzt", 1.15, 100),
    ("4lzt", 1.2, 250),
    ("4xof", 0.0, 300), ("4axt", 0.0, 900), ("5jdt", 0.0, 900),
)  # fmt: skip
PROTEIN = (
    ("residues", (30.0, 90.0)), ("b", (6.0, 12.0)), ("noise", (0.02, 0.06)), ("solvent", (0.25, 0.45)),
)  # fmt: skip
STARTS = ("heavy", "random")


def crystal_named(name: str, cut: float) -> Crystal:
    """A measured set cut to ``cut`` A (0: not at all), or a simulated protein to ``cut`` A."""
    if not name.startswith("protein"):
        return crystal_of(Case("measured", name, d_min=cut))
    seed = int(name.removeprefix("protein"))
    return get(Recipe("heavy", f"{name} {cut:g}", "protein", seed, (*PROTEIN, ("d_min", cut))))


def sulphurs(crystal: Crystal) -> int | None:
    """In the asymmetric unit, where the sequence is known."""
    if "sequences" not in crystal.facts:
        return None
    return sum(chain.count("C") + chain.count("M") for chain in crystal.facts["sequences"])


def run(name: str, cut: float, seconds: float, starts: str, seed: int) -> dict[str, Any]:
    """One set with one kind of starts."""
    from ml_phaser import pipeline
    from ml_phaser.notify import Silent
    from ml_phaser.parameters import Options
    from ml_phaser.phasing.heavy.solutions import METHOD
    from ml_phaser.plan import plan_phasing

    crystal, none = crystal_named(name, cut), Path("none")
    options = Options(
        none, none, none, none, starts=starts, timelimit=seconds, threads=1, seed=seed, device="cpu", hand="keep"
    )
    data, began = crystal.data, time.process_time()
    normalised = pipeline.normalise(data)
    plan = plan_phasing(data, normalised, options)
    hunt = pipeline.phase(plan, options, Silent(), time.process_time)
    used = time.process_time() - began
    best, _ = pipeline.choose(hunt, data, normalised, plan)
    _, _, verdict, _ = pipeline.weigh(data, normalised, plan, best, keep_hand=True)
    heavy = [t for t in hunt.trials if t.method.startswith(METHOD)]
    return {
        "name": name, "cut": cut, "starts": starts, "group": data.spacegroup.hm, "d_min": round(data.d_min, 2),
        "reflections": len(data), "sulphurs": sulphurs(crystal),
        "volume": round(data.cell.volume / len(list(data.spacegroup.operations()))),
        "tried": len(heavy), "trials": len(hunt.trials), "budget": seconds, "seconds": round(used, 1),
        "verdict": verdict.word, "probability": verdict.probability, **agreement(crystal, best, normalised.f, 5),
    }  # fmt: skip


def report(rows: list[dict[str, Any]], facts: dict[str, Any]) -> str:
    """The table."""
    head = ("set", "group", "d_min", "reflections", "A^3 in the asymmetric unit", "S known to be there", "starts",
            "sets of sites tried",
            "all trials", "CC", "phase error", "chance", "P", "verdict", "s", "of")  # fmt: skip
    body = [
        (r["name"], r["group"], f"{r['d_min']:.2f}", str(r["reflections"]), str(r["volume"]),
         "" if r["sulphurs"] is None else str(r["sulphurs"]), r["starts"],
         str(r["tried"]), str(r["trials"]), f"{r['cc']:.2f}", f"{r['phase_error']:.0f}", f"{r['chance']:.2f}",
         f"{r['probability']:.2f}", r["verdict"], f"{r['seconds']:.0f}", f"{r['budget']:.0f}")
        for r in rows
    ]  # fmt: skip
    about = (
        "Measured proteins and simulated ones, amplitudes alone, processor seconds of one thread, seed "
        f"{facts['settings']['seed']}; ml_phaser {facts['version']}. CC: of the map with the model's, at the best "
        "origin and hand."
    )
    return "\n".join(["# Heavy atoms", "", about, "", *table(head, body)])


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="benchmarks.heavy", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--runs", default=",".join(f"{n}:{c:g}:{s}" for n, c, s in RUNS), help="NAME:D_MIN:SECONDS, commas between")
    add("--starts", default=",".join(STARTS), help="commas between")
    add("--seed", type=int, default=0)
    add("--redo", action="store_true", help="run again what is there")
    add("--out", type=Path, default=OUT)
    o = parser.parse_args(argv)
    facts: dict[str, Any] = record({"seed": o.seed})
    rows: list[dict[str, Any]] = json.loads(o.out.read_text(encoding="utf-8"))["rows"] if o.out.exists() else []
    for words in o.runs.split(","):
        name, cut, seconds = words.split(":")
        for starts in o.starts.split(","):
            key = (name, float(cut), starts)
            there = [r for r in rows if (r["name"], r["cut"], r["starts"]) == key]
            if there and not o.redo:
                continue
            row = finite(run(name, float(cut), float(seconds), starts, o.seed))
            rows = [row if r in there else r for r in rows] if there else [*rows, row]
            print(*row.values(), flush=True)
            o.out.write_text(json.dumps({"record": facts, "rows": rows}, indent=1) + "\n", encoding="utf-8")
            o.out.with_suffix(".md").write_text(report(rows, facts) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
