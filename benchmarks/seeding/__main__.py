"""What phase seeds are worth.

python -m benchmarks.seeding oracle       (true quadrants on a share of the reflections, with noise, held or not)
python -m benchmarks.seeding own          (seeds from the engine's own maps of crystals it did not solve)
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):  # one thread a run
    os.environ[name] = "1"

from benchmarks.phasing import crystals  # noqa: E402
from benchmarks.phasing.runner import finite, read_rows, record, run  # noqa: E402
from benchmarks.seeding import design, oracle, own, picture, tables  # noqa: E402
from ml_phaser.atomic import atomic  # noqa: E402

RESULTS = Path(__file__).resolve().parents[1] / "results"
SECONDS = {"oracle": 2.0, "own": 6.0}
CRYSTALS = {"oracle": 4, "own": 18}
PROGRAM = "benchmarks.seeding"


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=PROGRAM, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("kind", choices=tuple(SECONDS))
    add("--seconds", type=float, help="processor seconds a run, twice as many on large crystals [2 oracle, 6 own]")
    add("--crystals", type=int, help="of each size [4 oracle, 18 own]; more add to what is done")
    add("--seed", type=int, default=0)
    add("--jobs", type=int, default=1, help="runs at a time, oracle only [1]")
    add("--out", type=Path, help="folder [benchmarks/results/seeds_KIND]")
    add("--redo", action="store_true", help="begin anew")
    o = parser.parse_args(argv)
    o.seconds, o.crystals = o.seconds or SECONDS[o.kind], o.crystals or CRYSTALS[o.kind]
    o.out = o.out or RESULTS / f"seeds_{o.kind}"
    return o


def main(argv: list[str]) -> int:
    o = parse(argv)
    if not (crystals.shared_data() / "coordinates").is_dir():
        sys.exit(f"{PROGRAM}: no coordinates; set ML_PHASER_DATA to the folder that has coordinates/")
    if o.kind == "oracle" and importlib.util.find_spec("matplotlib") is None:
        sys.exit(f"{PROGRAM}: the picture needs matplotlib (pip install matplotlib)")
    o.out.mkdir(parents=True, exist_ok=True)
    path, facts = o.out / "rows.jsonl", o.out / "run.json"
    if o.redo:
        path.unlink(missing_ok=True)
        facts.unlink(missing_ok=True)
    now = record({"kind": o.kind, "seconds": o.seconds, "seed": o.seed})
    earlier = json.loads(facts.read_text()) if facts.exists() else now
    if (earlier["settings"], earlier["weights"]) != (now["settings"], now["weights"]):
        sys.exit(f"{PROGRAM}: {path.name} was made with other settings or weights; --redo begins anew, --out elsewhere")
    write(facts, json.dumps(earlier, indent=1))
    stopped = False
    try:
        run_oracle(o, path) if o.kind == "oracle" else run_own(o, path)
    except KeyboardInterrupt:
        stopped = True
    rows = list(read_rows(path).values())
    if rows:
        report(o, rows, earlier)
    if stopped:
        print(f"{PROGRAM}: stopped; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


def run_oracle(o: argparse.Namespace, path: Path) -> None:
    """Every run that is not there yet, in a process of its own."""
    units = list(design.units(o.crystals, o.seconds, o.seed))
    run(units, oracle.contestants(), path, jobs=max(1, o.jobs), seed=o.seed)
    rows = read_rows(path).values()
    write(path, "\n".join(json.dumps(tables.slim(r)) for r in rows))


def run_own(o: argparse.Namespace, path: Path) -> None:
    """Every crystal that is not there yet."""
    import torch

    from ml_phaser.errors import UserError

    torch.set_num_threads(1)
    done = read_rows(path)
    for recipe in own.recipes(o.crystals, o.seed):
        if recipe.name in done:
            continue
        row: dict[str, Any] = {"unit": recipe.name, "crystal": recipe.name, "point": dict(recipe.point)}
        try:
            row |= own.one(crystals.get(recipe), o.seconds, o.seed)
        except UserError as error:
            row |= {"error": str(error)}
        with path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(finite(row)) + "\n")
        parts = {"first": row.get("first", {}), **row.get("arms", {})}
        print(recipe.name, {name: part.get("cc") for name, part in parts.items()}, flush=True)


def report(o: argparse.Namespace, rows: list[dict[str, Any]], facts: dict[str, Any]) -> None:
    """Tables, their numbers, and of true seeds a picture."""
    if o.kind == "own":
        write(o.out / "results.md", tables.own(rows, facts))
        return
    found = tables.flat(rows)
    write(o.out / "results.md", tables.oracle(rows, facts))
    cells = [json.dumps(finite(c)) for c in tables.cells(found)]
    write(o.out / "results.json", '{"record": ' + json.dumps(facts) + ',\n "cells": [\n' + ",\n".join(cells) + "\n]}")
    picture.drawn(found, o.out / "solved.png")


def write(path: Path, text: str) -> None:
    """Whole or not at all."""
    with atomic(path) as part:
        part.write_text(text.rstrip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
