"""The benchmark of phasing everything is judged by.

python -m benchmarks.phasing --quick --jobs 2
python -m benchmarks.phasing --jobs 2            (the full run; stop it and start it again as you like)
python -m benchmarks.phasing --break --jobs 2    (baselines, one harm to the data at a time)
python -m benchmarks.phasing --seeds             (quadrant seeds on 20 % of the reflections)
python -m benchmarks.phasing --frontier          (random starts over d_min x atoms; a picture)
python -m benchmarks.phasing --frontier-seeds    (the same with seeds)
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
from pathlib import Path

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):  # one thread an entrant
    os.environ[name] = "1"

from benchmarks.phasing import crystals, picture, tables, tasks  # noqa: E402
from benchmarks.phasing.entrants import entrants  # noqa: E402
from benchmarks.phasing.runner import Unit, finite, read_rows, record, run  # noqa: E402
from ml_phaser.atomic import atomic  # noqa: E402

RESULTS = Path(__file__).resolve().parents[1] / "results" / "phasing"
BASELINES = ("random phases", "charge flipping", "shrink-wrap HIO", "RRR")
LEARNED = ("engine, no network", "engine")
SEEDED = tuple(f"{name}, 20% seeds" for name in LEARNED)
WHO = {  # a kind that is not here has all
    "break": BASELINES, "frontier": LEARNED, "frontier-seeds": SEEDED,
    "seeds": ("random phases", "charge flipping, 20% seeds", *SEEDED),
}  # fmt: skip
SECONDS = {"quick": 2.0, "full": 20.0, "break": 2.0, "seeds": 8.0, "frontier": 6.0, "frontier-seeds": 4.0}
PER_TASK = {"quick": 2, "full": 24, "break": 6, "seeds": 6, "frontier": 2, "frontier-seeds": 1}
GROWING = ("seeds", "frontier", "frontier-seeds")  # more crystals can be added to what is done
TITLES = {
    "quick": "quick run", "full": "full run", "break": "baselines",
    "seeds": "Quadrant seeds on 20 % of the reflections: dense peptides of 50-200 atoms, noise 5 %",
    "frontier": "Random starts over d_min x atoms: dense peptides, noise 5 %",
    "frontier-seeds": "Quadrant seeds over the grid: dense peptides, noise 5 %, 20 % of the reflections",
}  # fmt: skip


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmarks.phasing", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--quick", dest="kind", action="store_const", const="quick", default="full", help="everything, a little of it")
    add("--break", dest="kind", action="store_const", const="break", help="where the baselines break")
    for name in GROWING:
        about = TITLES[name].split(":")[0].replace("%", "%%")
        add(f"--{name}", dest="kind", action="store_const", const=name, help=about)
    add("--jobs", type=int, default=1, help="units at a time, one thread each [1]")
    add("--seconds", type=float, help="processor seconds an entrant on a small cell [2 quick, 20 full...]")
    add("--crystals", type=int, help="crystals a task of the papers, or a cell of a grid [2 quick, 24 full...]")
    add("--seed", type=int, default=0)
    add("--tasks", default="", help="only tasks whose name holds one of these, semicolons between")
    add("--points", default="", help="only these points of a grid, as d_min:atoms, semicolons between")
    add("--entrants", default="", help="only these, semicolons between")
    add("--grok", help="Python of an environment with grok-phase-solver")
    add("--out", type=Path, default=RESULTS)
    add("--redo", action="store_true", help="begin anew")
    return parser.parse_args(argv)


def main(argv: list[str]) -> int:
    options = parse(argv)
    kind = options.kind
    seconds, count = options.seconds or SECONDS[kind], options.crystals or PER_TASK[kind]
    if not (crystals.shared_data() / "coordinates").is_dir():
        sys.exit("benchmarks.phasing: no coordinates; set ML_PHASER_DATA to the folder that has coordinates/")
    if kind.startswith("frontier") and importlib.util.find_spec("matplotlib") is None:
        sys.exit("benchmarks.phasing: the picture needs matplotlib (pip install matplotlib)")
    settings = {"kind": kind, "seconds": seconds, "crystals": count, "seed": options.seed, "jobs": options.jobs}
    options.out.mkdir(parents=True, exist_ok=True)
    path, facts = options.out / f"{kind}.jsonl", options.out / f"{kind}.run.json"
    if options.redo:
        path.unlink(missing_ok=True)
        facts.unlink(missing_ok=True)
    earlier = json.loads(facts.read_text()) if facts.exists() else {}
    may_differ = ("jobs", "crystals") if kind in GROWING else ("jobs",)
    same = {k: v for k, v in settings.items() if k not in may_differ}
    if earlier and {k: v for k, v in earlier["settings"].items() if k not in may_differ} != same:
        sys.exit(f"benchmarks.phasing: {path.name} was made with other settings; --redo begins anew, --out elsewhere")
    now = record(settings)
    if earlier and kind != "break" and earlier["weights"] != now["weights"]:
        sys.exit(f"benchmarks.phasing: {path.name} was made with other weights; --redo begins anew, --out elsewhere")

    who = entrants(options.grok)
    names = [n for n in who if n in WHO.get(kind, who)]
    names = [n for n in names if not options.entrants or n in options.entrants.split(";")]
    recipes = [
        r
        for r in tasks.recipes(kind, seconds, count, options.seed)
        if not options.tasks or any(word in r.task for word in options.tasks.split(";"))
    ]
    if options.points:
        wanted = {(float(d), int(n)) for d, _, n in (p.partition(":") for p in options.points.split(";"))}
        recipes = [r for r in recipes if (dict(r.point).get("d_min"), dict(r.point).get("atoms")) in wanted]
    units = [Unit(r, n) for r in recipes for n in names]
    if not units:
        sys.exit("benchmarks.phasing: no task or no entrant of that name")
    run_record = {**now, "load": list(os.getloadavg()) if hasattr(os, "getloadavg") else [0.0]}
    run_record = {**run_record, **({"load": earlier["load"]} if earlier else {})}
    write(facts, json.dumps(run_record, indent=1) + "\n")
    stopped = False
    try:
        run(units, {n: who[n] for n in names}, path, jobs=max(1, options.jobs), seed=options.seed)
    except KeyboardInterrupt:
        stopped = True
    found = list(read_rows(path).values())
    rank = {unit.name: i for i, unit in enumerate(units)}
    rows = sorted(found, key=lambda r: rank.get(r["unit"], len(rank)))
    run_record["cpu_hours"] = sum(r.get("cpu", 0.0) for r in rows) / 3600
    run_record["unit_hours"] = sum(r.get("seconds", 0.0) for r in rows) / 3600
    write(facts, json.dumps(run_record, indent=1) + "\n")
    title = TITLES[kind]
    if rows:
        makers = {"break": tables.broken, "seeds": tables.seeds, "frontier": tables.frontier}
        make = makers.get(kind.removesuffix("-seeds"), tables.full)
        write(options.out / f"{kind}.md", make(rows, run_record, title))
        if kind in GROWING:
            cells = {"record": run_record, "cells": tables.cells(rows)}
            write(options.out / f"{kind}.json", json.dumps(finite(cells), indent=1) + "\n")
        if kind.startswith("frontier"):
            picture.frontier(tables.cells(rows), options.out / f"{kind}.png", title)
        if kind in ("quick", "full"):
            write(options.out / "summary.md", tables.summary(rows, run_record, said(run_record, title)))
    if stopped:
        print("benchmarks.phasing: stopped; the same command goes on from here", file=sys.stderr)
        return 130
    print((options.out / f"{kind}.md").read_text(encoding="utf-8"))
    return 0


def said(facts: dict, title: str) -> str:
    """One sentence about the run."""
    s = facts["settings"]
    return (
        f"{title.capitalize()}: {s['seconds']:g} processor seconds an entrant (more on large cells), one "
        f"thread; version {facts['version']}, weights {facts['weights']['sha256'][:8]}, seed {s['seed']}."
    )


def write(path: Path, text: str) -> None:
    """Whole or not at all."""
    with atomic(path) as part:
        part.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
