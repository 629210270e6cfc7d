#!/usr/bin/env python3
"""What held-out reflections say of a large structure at atomic resolution, and the verdict's constants for it.

    python -m benchmarks.heavy_verdict

Crystals of the validation and the held-out split (peptides of 200 to 500 atoms in the cell, proteins of 30 to 80
residues; 1.0 to 1.25 A), and measured proteins beside them. Phases grow as those of heavy atoms do, from true ones with
errors of every strength, some from nothing, so that maps of every quality occur; after each turn what it has come to is
finished, and the correlation on reflections never used is written down beside the map's with the truth. What counts is
its lead over the first map from nothing of the same crystal. The constants were set in view of all of it.
Writes heavy_verdict.json and .md into benchmarks/results; what is there is not run again.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[name] = "1"

import numpy as np  # noqa: E402
from numpy.typing import NDArray  # noqa: E402

from benchmarks.fragments import Case, agreement, crystal_of  # noqa: E402
from benchmarks.phasing.crystals import Crystal, Recipe, get  # noqa: E402
from benchmarks.phasing.runner import finite, record  # noqa: E402
from benchmarks.phasing.tables import table  # noqa: E402

OUT = Path(__file__).resolve().parent / "results" / "heavy_verdict.json"
MEASURED = (*(("4lzt", d) for d in (1.0, 1.1, 1.15, 1.2, 1.25)), ("4xof", 0.0), ("4axt", 0.0))  # A, 0: all data
TURNS = 3
EDGES = (-1.0, 0.0, 0.04, 0.08, 0.12, 0.16, 0.2, 0.3, 0.45, 1.0)
RIGHT = 0.5  # map correlation from which on a map counts as right
Row = dict[str, Any]


def simulated(number: int, split: str) -> Crystal:
    """Crystal ``number`` of a split: as many peptides as proteins. Raises UserError."""
    rng = np.random.default_rng([number, 77])
    settings: tuple[tuple[str, Any], ...] = (
        ("d_min", round(float(rng.uniform(1.0, 1.25)), 2)), ("noise", round(float(rng.uniform(0.01, 0.08)), 3)),
        ("b", (6.0, 12.0)),
    )  # fmt: skip
    if number % 2:
        settings += (("residues", (30.0, 80.0)), ("solvent", (0.25, 0.5)))
        return get(Recipe("verdict", f"protein {number}", "protein", number, settings, split))
    settings += (("atoms", int(rng.integers(200, 500))),)
    return get(Recipe("verdict", f"peptide {number}", "peptide", number, settings, split))


def starts(crystal: Crystal, seed: int) -> Iterator[tuple[float, NDArray[np.complex128]]]:
    """Phased truth (n,) with errors that leave a map correlation of so much: one of little, one of more, none."""
    from ml_phaser.simulate import corrupt

    rng = np.random.default_rng([seed, 5])
    known = np.nan_to_num(crystal.f)
    for low, high in ((0.1, 0.25), (0.25, 0.6)):
        quality = float(rng.uniform(low, high))
        yield quality, corrupt.noisy_phases(rng, known, 0.25 / crystal.data.d**2, quality, "phase")
    yield 0.0, np.exp(2j * np.pi * rng.random(len(known)))


def run(name: str, crystal: Crystal, seed: int) -> list[Row]:
    """A crystal from each of its starts, judged after every turn."""
    from ml_phaser import pipeline
    from ml_phaser.outcome import Trial
    from ml_phaser.parameters import Options
    from ml_phaser.phasing.finish import finish
    from ml_phaser.phasing.growth import Growing, turn
    from ml_phaser.phasing.projections import inverse, unit_variance
    from ml_phaser.phasing.search import Hunt
    from ml_phaser.plan import plan_phasing

    none = Path("none")
    options = Options(none, none, none, none, starts="heavy", threads=1, seed=seed, device="cpu")
    normalised = pipeline.normalise(crystal.data)
    plan = plan_phasing(crystal.data, normalised, options)
    assert plan.heavy is not None
    problem, rows = plan.heavy.problem, []
    for quality, phased in starts(crystal, seed):
        hunt = Hunt(plan.whole)
        hunt.trials.append(Trial(0, "", seed, 0, 0.0, -1.0, 1.0, math.nan))
        begin = np.where(problem.held, 0, problem.amplitude * np.exp(1j * np.angle(phased[plan.heavy.entrant.rows])))
        growing = Growing(0, unit_variance(inverse(problem.scatter(begin), problem.shape)))
        for done in range(TURNS):
            growing = turn(hunt, plan.heavy, growing)
            assert growing.f_p1 is not None
            s = finish(growing.f_p1, plan.heavy.entrant, plan.finishers, plan.n, 0)
            rows.append(
                finite({
                    "name": name, "group": crystal.data.spacegroup.hm, "d_min": round(crystal.data.d_min, 2),
                    "begun": round(quality, 2), "turns": done + 1, "held": s.held, "score": round(s.score, 4),
                    **agreement(crystal, s, normalised.f, 0),
                })
            )  # fmt: skip
    return rows


def with_chance(rows: list[Row]) -> list[Row]:
    """The maps that did not come from nothing, each with the score of the first one of its crystal that did."""
    null = {(r["split"], r["name"]): r["score"] for r in reversed(rows) if r["begun"] == 0}
    return [{**r, "chance": null[r["split"], r["name"]]} for r in rows if r["begun"]]


def said(rows: list[Row]) -> list[str]:
    """How many maps were right and wrong in each word of the verdict, and between which probabilities."""
    from ml_phaser.phasing.confidence import judge

    verdicts = [judge(r["score"], r["held"], math.nan, 0, r["d_min"], chance=r["chance"]) for r in rows]
    body = []
    for word in ("solved", "uncertain", "not solved"):
        own = [(v.probability, r["cc"]) for v, r in zip(verdicts, rows, strict=True) if v.word == word]
        if not own:
            body.append((word, "0", "", "", "", ""))
            continue
        p, cc = np.array(own).T
        right = cc >= RIGHT
        body.append((word, str(len(own)), str(right.sum()), f"{p.mean():.2f}", f"{right.mean():.2f}",
                     f"{cc.min():.2f} to {cc.max():.2f}"))  # fmt: skip
    return table(("word", "maps", "right (CC of 0.5 or more)", "promised", "found", "map CC"), body)


def by_score(rows: list[Row], of: str, score: Callable[[Row], float]) -> list[str]:
    """Map correlations by what ``of`` says, which ``score`` gives."""
    body = []
    for low, high in pairwise(EDGES):
        cc = np.array([r["cc"] for r in rows if low <= score(r) < high])
        if len(cc):
            body.append((f"{low:g} to {high:g}", str(len(cc)), f"{np.median(cc):.2f}", f"{cc.min():.2f}",
                         f"{cc.max():.2f}", f"{np.mean(cc >= RIGHT):.2f}"))  # fmt: skip
    return table((of, "maps", "median map CC", "least", "most", "right"), body)


def report(rows: list[Row], facts: dict[str, Any]) -> str:
    """The tables."""
    from ml_phaser.phasing.confidence import LARGE_HELD, large

    maps = with_chance(rows)
    inside = [r for r in maps if large(r["held"], r["d_min"])]
    chance = sorted({(r["split"], r["name"]): r["chance"] for r in inside}.values())
    lines = [
        "# The verdict on large structures at atomic resolution", "",
        f"`python -m benchmarks.heavy_verdict`; ml_phaser {facts['version']}. {len(maps)} maps of "
        f"{len({(r['split'], r['name']) for r in maps})} crystals, {len(inside)} of them with {LARGE_HELD} reflections "
        f"held out or more; random phases come to {chance[0]:.2f} to {chance[-1]:.2f} there, a median of "
        f"{chance[len(chance) // 2]:.2f}.", "",
    ]  # fmt: skip
    for some, which in (
        (inside, f"{LARGE_HELD} reflections or more"), ([r for r in maps if r not in inside], "fewer reflections"),
    ):  # fmt: skip
        lines += [f"## {which[0].upper()}{which[1:]}", "",
                  *by_score(some, "held-out correlation", lambda r: r["score"]), "",
                  *by_score(some, "lead over random phases", lambda r: r["score"] - r["chance"]), ""]  # fmt: skip
    for split in dict.fromkeys(r["split"] for r in inside):
        lines += [f"## What the verdict says, {split}, {LARGE_HELD} reflections or more", ""]
        lines += [*said([r for r in inside if r["split"] == split]), ""]
    return "\n".join(lines).rstrip()


def crystals(count: int) -> Iterator[tuple[str, str, int, Crystal]]:
    """Split, name, seed, and crystal; those that cannot be made are left out."""
    from ml_phaser.errors import UserError

    for split, numbers in (("validation", range(count)), ("holdout", range(count // 2))):
        for number in numbers:
            try:
                yield split, f"{'protein' if number % 2 else 'peptide'}{number}", number, simulated(number, split)
            except UserError:
                continue
    for name, d_min in MEASURED:
        yield "measured", f"{name} {d_min:g}", 0, crystal_of(Case("measured", name, d_min=d_min))


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="benchmarks.heavy_verdict", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--crystals", type=int, default=60, help="of the validation split")
    parser.add_argument("--out", type=Path, default=OUT)
    o = parser.parse_args(argv)
    facts: dict[str, Any] = record({"crystals": o.crystals})
    rows: list[Row] = json.loads(o.out.read_text(encoding="utf-8"))["rows"] if o.out.exists() else []
    for split, name, seed, crystal in crystals(o.crystals):
        if any((r["split"], r["name"]) == (split, name) for r in rows):
            continue
        new = [{"split": split, **row} for row in run(name, crystal, seed)]
        rows += new
        print(split, name, *((r["score"], r["cc"]) for r in new), flush=True)
        o.out.write_text(json.dumps({"record": facts, "rows": rows}, indent=1) + "\n", encoding="utf-8")
    o.out.with_suffix(".md").write_text(report(rows, facts) + "\n", encoding="utf-8")
    print(report(rows, facts))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
