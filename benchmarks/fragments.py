#!/usr/bin/env python3
"""Starts from fragments against random ones and against true seeds, and what their verdict rests on.

    python -m benchmarks.fragments --seconds 60
    python -m benchmarks.fragments --only measured --redo
    python -m benchmarks.fragments --only atoms --crystals 100 --starts fragments
    python -m benchmarks.fragments --only protein --starts fragments --seconds 20 --out benchmarks/results/proteins.json
    python -m benchmarks.fragments --only protein --first 24 --crystals 6 --starts fragments --seconds 40 \\
        --out benchmarks/results/proteins_new.json

Measured sets; simulated dense peptides of held-out entries; crystals of random atoms, which no piece of peptide fits;
whole small proteins, of the validation split, as there are hardly any among held-out entries.
Starts: "fragments", "sequence" (the same, told the sequence), "random", "seeds" (the true quadrants of the strongest 20
% of the reflections: no result, but what good starts would be worth).
Writes fragments.jsonl, a row a run as soon as it is done (the same command goes on from there), and fragments.json and
fragments.md, into benchmarks/results. README.md explains the columns.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[name] = "1"

import numpy as np  # noqa: E402

from benchmarks.phasing.crystals import Crystal, Recipe, get  # noqa: E402
from benchmarks.phasing.runner import finite, record  # noqa: E402
from benchmarks.phasing.tables import table  # noqa: E402
from benchmarks.phasing.tasks import dense, pairs  # noqa: E402
from ml_phaser.atomic import atomic  # noqa: E402

OUT = Path(__file__).resolve().parent / "results" / "fragments.json"
MEASURED = (("5e5z", 0.0), ("2olx", 0.0), ("2okz", 0.0), ("2ona", 0.0), ("5awl", 1.5), ("6mw0", 1.5), ("1bdw", 0.0))
# 3LBW has no model in the data: nothing can be compared.
D_MIN, GROUPS, ATOMS = (1.4, 1.6, 1.8, 2.0), {"P1": 1, "P21": 2, "C2": 4, "P212121": 4}, (20, 50, 100, 200)
SEQUENCES = {"5e5z": "LVHSSN", "2olx": "NNQQ", "2okz": "MVGGVV", "2ona": "MVGGVV", "5awl": "YYDPETGTWY"}
KINDS = ("measured", "peptide", "atoms", "protein")
SEEDED = 0.2  # of the reflections, in "seeds"
NOISE, COMPLETENESS = 0.05, 0.9
PATIENCE = {"measured": 4.0, "protein": 6.0}  # so many times the seconds of other crystals
RESIDUES, PROTEIN_D_MIN = (25.0, 35.0, 45.0, 60.0), (1.3, 1.5, 1.7)  # of simulated proteins, about; A
SPLIT = "validation"  # that they come from
SOLVED, RIGHT = 0.7, 0.5  # map CC of a solved crystal; from which on a map counts as right
WIDE = 30.0  # per unit of merit
VOLUME, APART = 18.0, 1.4  # of random atoms: A^3 each, least distance in A


@dataclass(frozen=True)
class Case:
    """A crystal of one of KINDS; d_min: where the data are cut, 0 not at all; asu: atoms."""

    kind: str
    name: str
    recipe: Recipe | None = None
    group: str = ""
    d_min: float = 0.0
    asu: int = 0
    seed: int = 0


def cases(
    kinds: Sequence[str], count: int, seed: int, first: int = 0, limits: Sequence[float] = PROTEIN_D_MIN
) -> list[Case]:
    """All crystals, in the order in which they are worth running; proteins from number ``first`` on, to ``limits`` (A)
    in turn."""
    measured = [Case("measured", name, d_min=cut) for name, cut in MEASURED]
    peptides, others = list(simulated(count, seed)), list(random_atoms(count, seed))
    found = []
    for i in range(max(count, 3 * len(measured))):  # so that what is done, whenever it stops, holds some of each
        found += [*peptides[i : i + 1], *(others[i : i + 1] if i % 2 else []), *measured[i // 3 :][: i % 3 == 2]]
    chains = list(proteins(first + count, seed, limits))[first:]
    return [c for c in (*found, *chains) if c.kind in kinds]


def proteins(count: int, seed: int, limits: Sequence[float] = PROTEIN_D_MIN) -> Iterator[Case]:
    """Whole chains in common groups, with bulk solvent: each at one resolution, in turn. The same number is the same
    chain, about as large, in the same group, whatever the limits."""
    for i in range(count):
        d_min = limits[i % len(limits)]
        settings = pairs(
            residues=RESIDUES[i // len(PROTEIN_D_MIN) % len(RESIDUES)], solvent=0.3, d_min=d_min, noise=0.04,
            completeness=0.97, low=40.0, cone=0.0, wedge=0.0, shell=0.0, sigma_scale=1.0, anisotropy=0.5,
            b=round(10 + 14 * (d_min - 1), 1), b_spread=0.3,
        )  # fmt: skip
        yield Case("protein", f"{i}", Recipe("protein", f"{i}", "protein", seed + i, settings, SPLIT), "", d_min)


def simulated(count: int, seed: int) -> Iterator[Case]:
    """Dense peptides: group, resolution and size in turn, every pair of them before one comes again."""
    groups = list(GROUPS)
    for i in range(count):
        group, d_min, asu = groups[i % 4], D_MIN[(i + i // 4) % 4], ATOMS[(i // 2 + i // 8) % 4]
        (recipe,) = dense([((d_min, asu * GROUPS[group], group, NOISE), i)], 0.0, seed)
        kept = tuple((k, COMPLETENESS if k == "completeness" else v) for k, v in recipe.settings)
        yield Case("peptide", f"{i}", replace(recipe, settings=kept), group, d_min, asu, seed + i)


def random_atoms(count: int, seed: int) -> Iterator[Case]:
    """Crystals of as many atoms that belong to no molecule."""
    groups = list(GROUPS)
    for i in range(count):
        yield Case("atoms", f"{i}", None, groups[(i + 1) % 4], D_MIN[(i + i // 4) % 4], ATOMS[(i // 2) % 4], seed + i)


def crystal_of(case: Case) -> Crystal:
    """Data and truth. Raises UserError where it cannot be made."""
    if case.kind == "atoms":
        return of_random_atoms(case)
    if case.recipe is not None:
        return get(case.recipe)
    whole = get(Recipe("measured", case.name, "measured", settings=(("set", case.name),)))
    keep = whole.data.d >= case.d_min
    d = whole.data
    pair = (None, None) if d.intensity is None or d.sigma_i is None else (d.intensity[keep], d.sigma_i[keep])
    cut = replace(d, hkl=d.hkl[keep], f=d.f[keep], sigf=d.sigf[keep], intensity=pair[0], sigma_i=pair[1], free=None)
    return Crystal(cut, whole.f[keep], whole.facts)


def of_random_atoms(case: Case) -> Crystal:
    """C, N and O at random, no two closer than APART, B about 10 A^2, noise and completeness as of the peptides."""
    import gemmi

    from ml_phaser.crystal.reflections import Amplitudes, Source

    rng = np.random.default_rng([case.seed, 11])
    group = gemmi.SpaceGroup({"P21": "P 1 21 1", "C2": "C 1 2 1", "P212121": "P 21 21 21", "P1": "P 1"}[case.group])
    edges = np.array([1.0, 1.2, 1.5]) * rng.uniform(0.85, 1.15, 3)
    angles = {"P1": (85, 97, 103), "P212121": (90, 90, 90)}.get(case.group, (90, 98, 90))
    one = gemmi.UnitCell(*edges, *angles)
    cell = gemmi.UnitCell(*(edges * (VOLUME * case.asu * GROUPS[case.group] / one.volume) ** (1 / 3)), *angles)
    orth, operators = np.array(cell.orth.mat), list(group.operations())
    placed = np.empty((0, 3))
    while len(placed) < case.asu * len(operators):
        mates = np.array([op.apply_to_xyz(list(x)) for x in rng.random((1, 3)) for op in operators])
        apart = np.concatenate([placed, mates[1:]]) - mates[0]
        if not len(apart) or np.linalg.norm((apart - apart.round()) @ orth.T, axis=1).min() > APART:
            placed = np.concatenate([placed, mates])
    z = rng.choice([6.0, 7.0, 8.0], case.asu, p=[0.7, 0.15, 0.15]).repeat(len(operators))
    b = rng.uniform(6, 14, case.asu).repeat(len(operators))
    hkl = gemmi.make_miller_array(cell, group, case.d_min)
    hkl = hkl[~np.asarray(group.operations().systematic_absences(hkl), dtype=bool)].astype(np.int32)
    hkl = hkl[rng.random(len(hkl)) < COMPLETENESS]
    stol2 = np.asarray(cell.calculate_1_d2_array(hkl)) / 4
    f = (z * np.exp(-np.outer(stol2, b + 8)) * np.exp(2j * np.pi * hkl @ placed.T)).sum(1)
    moduli = np.abs(f) * np.abs(1 + NOISE * rng.normal(size=len(f)))
    source = Source("random atoms", "made", {}, "amplitude")
    data = Amplitudes(hkl, moduli, NOISE * moduli + 1e-3, cell, group, source)
    return Crystal(data, f, {"atoms": len(placed), "volume": float(cell.volume), "group": group.xhm()})


def run(case: Case, starts: str, seconds: float, seed: int) -> dict[str, Any]:
    """Phase one crystal with so many processor seconds; what was found, and how good it is."""
    from benchmarks.phasing.entrants import true_quadrants
    from ml_phaser import pipeline
    from ml_phaser.errors import UserError
    from ml_phaser.notify import Silent
    from ml_phaser.parameters import Options
    from ml_phaser.plan import plan_phasing

    crystal, none = crystal_of(case), Path("none")
    kind = {"seeds": "random", "sequence": "fragments"}.get(starts, starts)
    options = Options(none, none, none, none, timelimit=seconds, threads=1, seed=seed, starts=kind, device="cpu")
    began, data = time.process_time(), crystal.data
    normalised = pipeline.normalise(data)
    known = (SEQUENCES[case.name],) if case.name in SEQUENCES else tuple(crystal.facts.get("sequences", ()))
    if starts == "sequence" and not known:
        raise UserError("has no sequence of L residues", case.name)
    plan = plan_phasing(
        data, normalised, options, true_quadrants(crystal, normalised.e, SEEDED) if starts == "seeds" else None,
        sequences=known if starts == "sequence" else (),
    )  # fmt: skip
    hunt = pipeline.phase(plan, options, Silent(), time.process_time)
    used = time.process_time() - began
    best, _ = pipeline.choose(hunt, data, normalised, plan)
    _, _, verdict, _ = pipeline.weigh(data, normalised, plan, best, keep_hand=True)
    several = [agreement(crystal, s, normalised.f, 0)["cc"] for s in hunt.solutions]
    return {
        "group": case.group or data.spacegroup.hm, "seconds": round(used, 1), "volume": data.cell.volume,
        "reflections": len(data), "d": data.d_min,
        "room": None if plan.road is None else plan.road.room, "trials": len(hunt.trials),
        "verdict": verdict.word, "probability": verdict.probability,
        **agreement(crystal, best, normalised.f, 5), "best_cc": max(several), **ranks(crystal, plan, normalised.f),
        "solutions": [
            {"cc": cc, **features(s), "chosen": s.trial == best.trial}
            for cc, s in zip(several, hunt.solutions, strict=True)
        ],
    }  # fmt: skip


def agreement(crystal: Crystal, solution: Any, f: Any, repeats: int) -> dict[str, float]:
    """Of the map of measured amplitudes with the phases found, at the best origin and hand, with the true one."""
    from ml_phaser.crystal.agreement import compare

    data, known = crystal.data, np.isfinite(crystal.f)
    phased = f * np.exp(1j * np.angle(solution.f))
    a = compare(data.hkl[known], phased[known], crystal.f[known], data.cell, data.spacegroup, repeats=repeats)
    cc = {"cc": round(a.map_cc, 4)}
    more = {"phase_error": round(a.phase_error, 1), "chance": round(a.chance_cc, 4)} if repeats else {}
    return {**cc, **more}


def ranks(crystal: Crystal, plan: Any, f: Any) -> dict[str, Any]:
    """Of all models placed: the one nearest to the truth, its map CC, and its rank by the classical score (E^2) and by
    the learned one."""
    from ml_phaser.crystal.agreement import compare

    models = [] if plan.road is None else plan.road.models
    if not models:
        return {}
    data, rows = crystal.data, plan.road_rows[np.isfinite(crystal.f[plan.road_rows])]
    place = np.isfinite(crystal.f[plan.road_rows])
    near = [
        compare(data.hkl[rows], f[rows] * np.exp(1j * np.angle(m.f[place])), crystal.f[rows], data.cell,
                data.spacegroup, repeats=0).map_cc
        for m in models
    ]  # fmt: skip
    best = int(np.argmax(near))
    by = {name: 1 + sum(getattr(m, name) > getattr(models[best], name) for m in models) for name in ("fit", "judged")}
    return {"models": len(models), "nearest": round(near[best], 3), "rank_fit": by["fit"], "rank_judged": by["judged"]}


def features(solution: Any) -> dict[str, Any]:
    """What a verdict can rest on."""
    own = {name: getattr(solution, name) for name in ("score", "held", "symmetry", "agreeing", "d_min", "r_work")}
    placed = solution.fragments
    if placed is None:
        return own
    return {**own, **{name: getattr(placed, name) for name in ("label", "atoms", "fit", "judged", "merit", "lead")}}


def report(rows: list[dict[str, Any]], facts: dict[str, Any]) -> str:
    """Markdown."""
    from benchmarks.phasing.statistics import wilson

    s = facts["settings"]
    told = [
        f"{s['seconds']:g} processor seconds a run ({PATIENCE['measured']:g} times as many on measured sets, "
        f"{PATIENCE['protein']:g} times on proteins), one thread, seed "
        f"{s['seed']}; ml_phaser {facts['version']}, weights {facts['weights']['sha256'][:8]}, "
        f"{facts['machine']['processor']}. Peptides and random atoms: noise {NOISE:.0%}, {COMPLETENESS:.0%} complete."
    ]
    lines = ["# Starts from fragments", "", *told, ""]
    good = [r for r in rows if "cc" in r]
    body = []
    kinds = [("peptide", s) for s in ("fragments", "sequence", "random", "seeds")]
    for kind, starts in (*kinds, ("atoms", "fragments"), ("protein", "fragments"), ("protein", "random")):
        for d_min in (*sorted({r["case_d_min"] for r in good if r["kind"] == kind}), 0.0):
            part = [r for r in good if (r["kind"], r["starts"]) == (kind, starts) and d_min in (0.0, r["case_d_min"])]
            n = sum(r["cc"] >= SOLVED for r in part)
            if part:
                low, high = wilson(n, len(part))
                said = [sum(r["verdict"] == word for r in part) for word in ("solved", "uncertain", "not solved")]
                body.append([
                    kind, f"{d_min:g}" if d_min else "all", starts, f"{n}/{len(part)} ({low:.2f}-{high:.2f})",
                    " / ".join(map(str, said)), str(sum(r["verdict"] == "solved" and r["cc"] < RIGHT for r in part)),
                ])  # fmt: skip
    head = [
        "crystals",
        "d_min",
        "starts",
        f"CC >= {SOLVED} (95 %)",
        "solved / uncertain / not solved",
        "falsely solved",
    ]
    lines += [*table(head, body), ""]
    head = ["crystal", "group", "d_min", "atoms", "room", "starts", "CC", "phase error", "chance", "held-out", "judged",
            "merit", "lead", "P", "verdict", "best", "nearest (rank by E^2, by network, of)", "s"]  # fmt: skip
    lines += [*table(head, [row_of(r) for r in good]), ""]
    lines += calibration(good)
    failed = [f"{r['kind']} {r['name']}, {r['starts']}: {r['error']}" for r in rows if "error" in r]
    return "\n".join([*lines, *(f"- {line}" for line in failed)]) + "\n"


def reworded(row: dict[str, Any]) -> dict[str, Any]:
    """A row with the verdict that the program as it is now has on the solution chosen then: no run need be repeated
    when the constants of the verdict change."""
    from ml_phaser.outcome import Fragments
    from ml_phaser.phasing.confidence import judge

    s: dict[str, Any] = next((s for s in row.get("solutions", ()) if s["chosen"]), {})
    if "held" not in s:
        return row
    symmetry = float("nan") if s["symmetry"] is None else s["symmetry"]
    placed = Fragments(s["label"], s["fit"], s["judged"], (), s["merit"], s["lead"]) if "merit" in s else None
    verdict = judge(s["score"], s["held"], symmetry, s["agreeing"], s["d_min"], placed)
    return row | {"verdict": verdict.word, "probability": verdict.probability}


def evidence(rows: list[dict[str, Any]]) -> tuple[Any, Any, Any, list[str]]:
    """Merit, right or wrong, weight and crystal of every solution from pieces; the solutions of a run count as one."""
    found = [
        (s["merit"], float(s["cc"] >= RIGHT), 1 / len(r["solutions"]), f"{r['kind']} {r['name']}")
        for r in rows
        for s in r.get("solutions", ())
        if "merit" in s
    ]
    merit, right, weight, crystal = zip(*found, strict=True) if found else ((), (), (), ())
    return np.array(merit), np.array(right), np.array(weight), list(crystal)


def fit(merit: Any, right: Any, weight: Any) -> tuple[float, float]:
    """Bias and slope of P(right) in merit: logistic, the slope drawn to 0 by a Gaussian prior of width WIDE."""
    from scipy.optimize import minimize

    def loss(w: Any) -> float:
        z = w[0] + w[1] * merit
        return float(weight @ (np.logaddexp(0, z) - right * z) + 0.5 * (w[1] / WIDE) ** 2)

    bias, slope = minimize(loss, np.array([-8.0, 20.0]), method="BFGS").x
    return float(bias), float(slope)


def calibration(rows: list[dict[str, Any]]) -> list[str]:
    """Sentences: the fit, and how it does on crystals left out of it, one at a time."""
    merit, right, weight, crystal = evidence(rows)
    if not 0 < right.sum() < len(right) or len(set(crystal)) < 2:
        return []
    bias, slope = fit(merit, right, weight)
    p = np.zeros(len(merit))
    for name in set(crystal):
        out = np.array([c == name for c in crystal])
        if 0 < right[~out].sum() < (~out).sum():
            b, s = fit(merit[~out], right[~out], weight[~out])
            p[out] = 1 / (1 + np.exp(-(b + s * merit[out])))
        else:
            p[out] = np.average(right[~out], weights=weight[~out])
    brier, share = np.average((p - right) ** 2, weights=weight), np.average(right, weights=weight)
    lines = [
        f"P(CC >= {RIGHT}) of solutions from pieces: logistic, bias {bias:.1f}, slope {slope:.1f} in merit, from "
        f"{len(right)} solutions ({right.sum():.0f} right) of {len(set(crystal))} crystals. With each crystal left "
        f"out in turn: Brier score {brier:.3f} ({share * (1 - share):.3f} for the mean alone).", "",
    ]  # fmt: skip
    body = []
    for low, high in ((0.0, 0.25), (0.25, 0.9), (0.9, 1.01)):
        part = (p >= low) & (p < high)
        if part.any():
            body.append(
                [f"{low:g}-{min(high, 1):g}", str(part.sum()), f"{p[part].mean():.2f}", f"{right[part].mean():.2f}"]
            )
    return [*lines, *table(["P, crystal left out", "solutions", "mean P", "share right"], body), ""]


def row_of(r: dict[str, Any]) -> list[str]:
    """Cells of one run."""
    chosen = next(s for s in r["solutions"] if s["chosen"])
    some = [f"{chosen[k]:.2f}" if k in chosen else "-" for k in ("score", "judged", "merit", "lead")]
    return [
        f"{r['kind']} {r['name']}", r["group"] or "-", f"{r['d']:.2f}", str(r["asu"] or "-"), str(r["room"] or "-"),
        r["starts"], f"{r['cc']:.2f}", f"{r['phase_error']:.0f}", f"{r['chance']:.2f}", *some,
        f"{r['probability']:.2f}", r["verdict"], f"{r['best_cc']:.2f}",
        f"{r['nearest']:.2f} ({r['rank_fit']}, {r['rank_judged']}, {r['models']})" if "nearest" in r else "-",
        f"{r['seconds']:.0f}",
    ]  # fmt: skip


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="benchmarks.fragments", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--seconds", type=float, default=60.0, help="processor seconds a run [60]")
    add("--crystals", type=int, default=12, help="simulated ones of each kind [12]; more add to what is done")
    add("--first", type=int, default=0, help="number of the first protein: constants were chosen on 0 to 23 [0]")
    add(
        "--protein-d-min",
        default=PROTEIN_D_MIN,
        type=lambda words: tuple(map(float, words.split(","))),
        help="A, commas between: of the proteins, in turn [1.3,1.5,1.7]",
    )
    add("--seed", type=int, default=0)
    add("--only", default="measured,peptide,atoms", help="kinds of crystal, commas between; protein is the fourth")
    add("--starts", default="fragments,sequence,random,seeds", help="commas between; random atoms get fragments only")
    add("--limit", type=float, default=float("inf"), help="start no run after so many seconds")
    add("--out", type=Path, default=OUT)
    add("--redo", action="store_true", help="begin anew")
    o = parser.parse_args(argv)
    rows_file = o.out.with_suffix(".jsonl")
    o.out.parent.mkdir(parents=True, exist_ok=True)
    if o.redo:
        rows_file.unlink(missing_ok=True)
    other = {} if o.protein_d_min == PROTEIN_D_MIN else {"protein_d_min": list(o.protein_d_min)}
    facts = record({"seconds": o.seconds, "seed": o.seed, **other})
    rows = [json.loads(line) for line in rows_file.read_text().splitlines()] if rows_file.exists() else []
    stale = [r for r in rows if r["run"] != facts["settings"] | {"weights": facts["weights"]["sha256"]}]
    if stale:
        sys.exit(f"benchmarks.fragments: {rows_file.name} has other settings or weights; --redo begins anew")
    done, began = {(r["kind"], r["name"], r["starts"]) for r in rows}, time.monotonic()
    for starts in o.starts.split(","):
        for case in cases(o.only.split(","), o.crystals, o.seed, o.first, o.protein_d_min):
            key = (case.kind, case.name, starts)
            if key in done or (case.kind == "atoms" and starts != "fragments") or time.monotonic() - began > o.limit:
                continue
            rows.append(finite(one(case, starts, o, facts)))
            with rows_file.open("a") as stream:
                stream.write(json.dumps(rows[-1]) + "\n")
            print(*key, *(rows[-1].get(k) for k in ("cc", "verdict", "seconds", "error")), flush=True)
            write(o.out, rows, facts)
    write(o.out, rows, facts)
    return 0


def one(case: Case, starts: str, o: argparse.Namespace, facts: dict[str, Any]) -> dict[str, Any]:
    """The row of a run."""
    from ml_phaser.errors import UserError

    same = facts["settings"] | {"weights": facts["weights"]["sha256"]}
    row = {
        "kind": case.kind, "name": case.name, "starts": starts, "group": case.group, "case_d_min": case.d_min,
        "asu": case.asu, "run": same,
    }  # fmt: skip
    try:
        return row | run(case, starts, o.seconds * PATIENCE.get(case.kind, 1.0), o.seed)
    except UserError as error:
        return row | {"error": str(error)}


def write(path: Path, rows: list[dict[str, Any]], facts: dict[str, Any]) -> None:
    """Both views, each whole or not at all."""
    ready = sorted(map(reworded, rows), key=lambda r: (KINDS.index(r["kind"]), r["starts"]))
    for target, text in ((path, json.dumps({"record": facts, "rows": ready}, indent=1)),
                         (path.with_suffix(".md"), report(ready, facts))):  # fmt: skip
        with atomic(target) as part:
            part.write_text(text.rstrip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
