#!/usr/bin/env python3
"""Free atoms from random phases: how soon they come to the structure, and what tells that they have.

    python -m benchmarks.walks

Dense peptides of the training split, noise 5 %, one reflection in ten held out. Walks of different phases and numbers
of atoms, so many processor seconds a crystal; at every look at one the atoms are judged by the truth, and a walk that
has come to it is over. Writes walks.json and walks.md into benchmarks/results.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[name] = "1"

import numpy as np  # noqa: E402

from benchmarks.phasing import crystals, tasks  # noqa: E402
from benchmarks.phasing.crystals import Recipe  # noqa: E402
from benchmarks.phasing.runner import finite, record  # noqa: E402
from benchmarks.phasing.tables import table  # noqa: E402

OUT = Path(__file__).resolve().parent / "results" / "walks.json"
D_MIN, ATOMS = (1.1, 1.2, 1.3, 1.4, 1.6, 1.8), (12, 25, 50)
RIGHT, WRONG = 0.9, 0.6  # map correlation with the truth from, and to
Row = dict[str, Any]


def walked(recipe: Recipe, seconds: float, seed: int) -> Row:
    """All looks at the walks of one crystal."""
    from ml_phaser.crystal.agreement import compare
    from ml_phaser.crystal.normalise import normalise
    from ml_phaser.phasing.atom_search import ROOMS, Walk
    from ml_phaser.phasing.free_atoms import B_RANGE, Moduli

    crystal = crystals.get(recipe)
    data, known = crystal.data, np.isfinite(crystal.f)
    normalised = normalise(data)
    used = np.random.default_rng(seed).random(len(data)) > 0.1
    b = float(np.clip(normalised.wilson_b, *B_RANGE))
    moduli = Moduli(data.hkl, normalised.f, used, data.cell, data.spacegroup, b)
    began, walks, looks, solved = time.process_time(), 0, [], None
    while time.process_time() - began < seconds:
        walk, right = Walk(moduli, (seed, walks), ROOMS[walks % len(ROOMS)]), False
        walks += 1
        while not (walk.over or right) and time.process_time() - began < seconds:
            walk.block()
            found = walk.look()
            f = normalised.f * np.exp(1j * np.angle(found.f))
            cc = compare(data.hkl[known], f[known], crystal.f[known], data.cell, data.spacegroup, repeats=0).map_cc
            looks.append((round(found.worth, 4), round(cc, 3), len(found.atoms)))
            right = cc > RIGHT
            if right and solved is None:
                solved = round(time.process_time() - began, 2)
    return {**dict(recipe.point), "name": recipe.name, "reflections": int(used.sum()), "walks": walks, "looks": looks,
            "seconds": solved}  # fmt: skip


def line(rows: Sequence[Row], **where: Any) -> tuple[str, ...]:
    """Of the rows of one cell of the table."""
    own = [r for r in rows if all(r[k] == v for k, v in where.items())]
    looks = [(x, r) for r in own for x in r["looks"]]
    wrong = sorted(worth for (worth, cc, _), _ in looks if worth is not None and cc < WRONG)
    right = [worth for (worth, cc, _), _ in looks if worth is not None and cc > RIGHT]
    each = np.median([r["reflections"] / max(1, n) for (_, _, n), r in looks])
    solved = [r["seconds"] for r in own if r["seconds"] is not None]
    return (
        *(f"{v:g}" for v in where.values()), f"{each:.0f}", f"{len(solved)}/{len(own)}",
        f"{np.median(solved):.1f}" if solved else "-", f"{wrong[0]:.2f} of {len(wrong)}" if wrong else "-",
        f"{min(right):.2f}-{np.median(right):.2f}-{max(right):.2f}" if right else "-",
    )  # fmt: skip


HEAD = ("A", "atoms in the cell", "reflections an atom", "solved", "median s", "lowest worth of wrong atoms",
        "of right ones: lowest-median-highest")  # fmt: skip


def shares(rows: list[Row], low: float, high: float) -> list[float]:
    """Worth as a share of the limit of certainty, of all looks at atoms of a map correlation between these, to the
    resolution where a search tries them."""
    from ml_phaser.phasing.completion import D_MIN, limit

    rows = [r for r in rows if r["d_min"] <= D_MIN]
    looks = [(x, r["reflections"]) for r in rows for x in r["looks"]]
    return [worth / limit(n, count) for (worth, cc, count), n in looks if worth is not None and low < cc < high]


def report(rows: list[Row], facts: dict[str, Any]) -> str:
    s = facts["settings"]
    wrong, right = shares(rows, -2, WRONG), shares(rows, RIGHT, 2)
    cells = sorted({(r["d_min"], r["atoms"]) for r in rows})
    return "\n".join(
        [
            "# Free atoms from random phases", "",
            f"Dense peptides of the training split, 5 % noise, {s['crystals']} a line, P1, P21 and P212121, "
            f"{s['seconds']:g} processor seconds each, seed {s['seed']}; ml_phaser {facts['version']}. "
            "Worth: R over the share of the reflections that parameters leave. Right, and solved: map correlation with "
            f"the truth above {RIGHT:g} at a look; wrong: below {WRONG:g}.", "",
            "Worth as a share of the limit of certainty, which grows with the reflections an atom, to 1.6 A, as atoms "
            "are not tried in coarser data: of "
            f"{len(wrong)} looks at wrong atoms {min(wrong, default=np.nan):.2f} and more, {sum(x <= 1 for x in wrong)}"
            f" within the limit; of {len(right)} at right ones {sum(x <= 1 for x in right)} within.", "",
            *table(HEAD, [line(rows, d_min=d, atoms=n) for d, n in cells]), "",
        ]
    )  # fmt: skip


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="benchmarks.walks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--seconds", type=float, default=5.0, help="processor seconds a crystal [5]")
    add("--crystals", type=int, default=4, help="of each size and resolution [4]")
    add("--seed", type=int, default=0)
    add("--out", type=Path, default=OUT)
    o = parser.parse_args(argv)
    facts = record({name: getattr(o, name) for name in ("seconds", "crystals", "seed")})
    rows: list[Row] = []
    for recipe in tasks.recipes("frontier", 6.0, o.crystals, 0):
        point = dict(recipe.point)
        if point["d_min"] in D_MIN and point["atoms"] in ATOMS:
            rows.append(finite(walked(replace(recipe, split="train"), o.seconds, o.seed)))
    o.out.write_text(json.dumps({"record": facts, "rows": rows}, separators=(",", ":")) + "\n", encoding="utf-8")
    o.out.with_suffix(".md").write_text(report(rows, facts), encoding="utf-8")
    print(o.out.with_suffix(".md").read_text(encoding="utf-8"))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
