#!/usr/bin/env python3
"""Are true phases kept? Cycles of the network and of classical projections that begin with the truth, and one pass over
measured data whose phases were spoilt.

    python -m benchmarks.truth

writes benchmarks/results/truth.json and truth.md. The same command goes on where it was stopped.

plain : x <- P_F(D(x)) with all amplitudes, D the network, sparseness (as in the engine's finish) or charge flipping
engine : the methods of the plan as they are: relaxed reflections with the network and with sparseness, charge flipping;
    reflections are held out of the amplitudes' projection as ever

Boxes are cut from held-out entries, P1, their amplitudes exact or with 5 % noise. Measured sets have the phases of the
deposited model, bulk solvent included; cycles run in P1.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from numpy.typing import NDArray

from benchmarks.phasing.crystals import Crystal, measured
from benchmarks.phasing.entrants import options
from benchmarks.phasing.runner import finite, record
from benchmarks.phasing.tables import number, table

ROOT = Path(__file__).resolve().parents[1]
RESOLUTIONS = (1.3, 1.5, 1.7, 1.8, 2.0, 2.1)  # A
NOISE = (0.0, 0.05)
SETS = ("2olx", "5e5z", "2okz")
CYCLES = (1, 10, 50, 100, 200)
LEVELS = (0.3, 0.5, 0.7, 0.9)
DRAWS = 8
WHO = ("network", "sparseness", "charge flipping")
WANTED = ((1.8, 0.95), (2.0, 0.9))  # to this resolution in A, this CC after all cycles
Row = dict[str, Any]


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="benchmarks.truth", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--name", help="bundled network [the default one]")
    add("--crystals", type=int, default=2, help="boxes for each resolution [2]")
    add("--resolutions", default=",".join(f"{d:g}" for d in RESOLUTIONS), help="A, commas between")
    add("--sets", default=",".join(SETS), help="measured sets, commas between")
    add("--cycles", default=",".join(map(str, CYCLES)), help="when to look, commas between")
    add("--out", type=Path, default=ROOT / "benchmarks" / "results" / "truth.json")
    add("--redo", action="store_true", help="begin anew")
    args = parser.parse_args(argv)

    import torch

    from ml_phaser.networks.store import PROJECTOR, load_projector, read_card

    torch.set_num_threads(1)
    name = args.name or PROJECTOR
    cycles = [int(c) for c in args.cycles.split(",")]
    settings = {"network": name, "sha256": read_card(name).sha256, "cycles": cycles}
    report: dict[str, Any] = {**record({}), "settings": settings, "rows": []}
    if args.out.exists() and not args.redo:
        report = json.loads(args.out.read_text(encoding="utf-8"))
        if report["settings"] != settings:
            sys.exit(f"benchmarks.truth: {args.out.name} is of another network or other cycles; --redo begins anew")
    network = load_projector(name)
    resolutions = [float(d) for d in args.resolutions.split(",") if d]
    todo: list[tuple[str, Any, float | None, int]] = [
        ("box", d, noise, i) for i in range(args.crystals) for d in resolutions for noise in NOISE
    ]
    todo += [("measured", name, None, 0) for name in args.sets.split(",") if name]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    for what, which, noise, number_ in todo:
        key = f"{what} {which} {noise} {number_}"
        if any(row["key"] == key for row in report["rows"]):
            continue
        crystal = measured_truth(which) if what == "measured" else box(which, noise or 0.0, number_)
        row = {"key": key, "what": what, "which": which, "noise": noise, "d_min": crystal.data.d_min}
        row |= {"kept": kept(crystal, network, cycles)}
        if what == "measured":
            row["one_pass"] = one_pass(crystal, network)
        report["rows"].append(finite(row))
        save(args.out, report)
        print(json.dumps(report["rows"][-1]), flush=True)
    save(args.out, report)
    print(args.out.with_suffix(".md").read_text(encoding="utf-8"))
    return 0


def save(path: Path, report: dict[str, Any]) -> None:
    """Numbers and tables, whole or not at all."""
    from ml_phaser.atomic import atomic

    for place, text in ((path, json.dumps(report, indent=1) + "\n"), (path.with_suffix(".md"), markdown(report))):
        with atomic(place) as part:
            part.write_text(text, encoding="utf-8")


def box(d_min: float, noise: float, which: int) -> Crystal:
    """A box of a held-out entry with all reflections to ``d_min`` (A); the noise as in training."""
    import gemmi

    from benchmarks.phasing.crystals import library
    from ml_phaser.crystal.reflections import Amplitudes, Source
    from ml_phaser.evaluation.held_out import held_out_crystals
    from ml_phaser.simulate.corrupt import noisy_amplitudes

    made = held_out_crystals(library("holdout"), d_min, which + 1, seed=20_000)[which]
    cell, f = made.contents.cell, made.f
    moduli = noisy_amplitudes(np.random.default_rng([which, 5]), f, made.stol2, noise) if noise else np.abs(f)
    sigma = np.hypot(noise * np.sqrt(np.mean(moduli**2)), 0.01 * moduli)
    source = Source("simulated", "simulated", ("F", "SIGF"), "amplitude")
    data = Amplitudes(made.hkl, moduli, sigma, cell, gemmi.SpaceGroup("P 1"), source)
    return Crystal(data, f, {"volume": cell.volume})


def measured_truth(name: str) -> Crystal:
    """A measured set; its truth has the measured amplitudes and the model's phases."""
    crystal = measured(name)
    return Crystal(crystal.data, crystal.data.f * np.exp(1j * np.angle(crystal.f)), crystal.facts)


def methods(crystal: Crystal, network: Any) -> Iterator[tuple[str, str, Any]]:
    """Who, mode ("plain" or "engine") and the method, each with its problem and the rows of the data it uses."""
    from dataclasses import replace

    from ml_phaser.board import lay_out
    from ml_phaser.crystal.normalise import normalise
    from ml_phaser.learned import density_projection
    from ml_phaser.phasing.dual_space import Alternating, sparse
    from ml_phaser.phasing.projections import flip
    from ml_phaser.plan import atoms_share, classical_entrants, learned_entrant

    judged, whole, d_search = lay_out(crystal.data, normalise(crystal.data), options(1.0, 0, "classical"))
    for mode in ("plain", "engine"):
        board = judged if mode == "engine" else replace(judged, held=np.zeros_like(judged.held))
        problem = whole if mode == "engine" else board.sharpened(board.rows, crystal.data.d_min / 2)
        learned = learned_entrant(board, network)
        classical = classical_entrants(board, problem, d_search)
        tight = next(e for e in classical if "RRR, tight" in e.method.name)
        flipping = next(e for e in classical if "flipping" in e.method.name)
        projections = (
            density_projection(network, learned.problem), sparse(atoms_share(whole.d_min, 0.8)),
            lambda rho, delta=flipping.method.delta: flip(rho, delta),  # type: ignore[attr-defined]
        )  # fmt: skip
        for who, entrant, projection in zip(WHO, (learned, tight, flipping), projections, strict=True):
            plain = replace(entrant, method=Alternating(entrant.problem, projection))
            yield who, mode, plain if mode == "plain" else entrant


def in_p1(crystal: Crystal, entrant: Any, f: NDArray) -> NDArray:
    """Values on the unique reflections, on those of P1 that an entrant's problem has."""
    spread: NDArray = entrant.problem.expansion.spread(f[entrant.rows])
    return spread


def correlation(crystal: Crystal, entrant: Any, half: Any, origin: bool = False) -> float:
    """Correlation with the true map of the one of measured amplitudes and the phases of half-complex coefficients; at
    the origin of the truth, or at the best one."""
    from ml_phaser.crystal.agreement import compare

    problem = entrant.problem
    truth = in_p1(crystal, entrant, crystal.f)
    phased = in_p1(crystal, entrant, crystal.data.f) * np.exp(1j * np.angle(problem.gather_p1(half)))
    if origin:
        import gemmi

        p1 = gemmi.SpaceGroup("P 1")
        return compare(problem.expansion.hkl, phased, truth, problem.cell, p1, hands=False, repeats=0).map_cc
    norm = np.sqrt((np.abs(phased) ** 2).sum() * (np.abs(truth) ** 2).sum())
    return float((phased * truth.conj()).real.sum() / norm)


def start(entrant: Any, f: NDArray) -> Any:
    """The map (1, u, v, w) of P1 structure factors with the moduli that the entrant works with."""
    import torch

    from ml_phaser.phasing.projections import inverse, unit_variance

    problem = entrant.problem
    own = problem.expansion.spread(problem.amplitude) * np.exp(1j * np.angle(f))
    half = torch.from_numpy(problem.places.scatter(own).astype(np.complex64))[None]
    return unit_variance(inverse(half, problem.shape))


def kept(crystal: Crystal, network: Any, cycles: Sequence[int]) -> dict[str, dict[str, list[float]]]:
    """By mode and who: correlations after so many cycles from the truth, then the last at its best origin."""
    found: dict[str, dict[str, list[float]]] = {}
    for who, mode, entrant in methods(crystal, network):
        x, done, values = start(entrant, in_p1(crystal, entrant, crystal.f)), 0, []
        for count in cycles:
            x = entrant.method.advance(x, count - done, done)
            done = count
            values.append(correlation(crystal, entrant, entrant.method.estimate(x)[0]))
        values.append(correlation(crystal, entrant, entrant.method.estimate(x)[0], origin=True))
        found.setdefault(mode, {})[who] = [round(v, 4) for v in values]
    return found


def one_pass(crystal: Crystal, network: Any) -> list[Row]:
    """Mean correlation before and after one pass, for phase errors of several strengths (von Mises, in P1)."""
    from ml_phaser.simulate.corrupt import concentration

    plain = [(who, entrant) for who, mode, entrant in methods(crystal, network) if mode == "plain"]
    rows: list[Row] = []
    for level in LEVELS:
        row: Row = {"level": level}
        for who, entrant in plain:
            truth, pairs = in_p1(crystal, entrant, crystal.f), []
            for draw in range(DRAWS):
                rng = np.random.default_rng([draw, round(100 * level)])
                spoilt = truth * np.exp(1j * rng.vonmises(0.0, concentration(level), len(truth)))
                before = (np.abs(truth) ** 2 * np.cos(np.angle(spoilt / np.where(truth == 0, 1, truth)))).sum()
                half = entrant.method.estimate(start(entrant, spoilt))
                pairs.append((before / (np.abs(truth) ** 2).sum(), correlation(crystal, entrant, half[0])))
            row[who] = [round(float(v), 4) for v in np.mean(pairs, axis=0)]
        rows.append(row)
    return rows


def groups(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows of one resolution and noise together; each measured set by itself."""
    found: dict[str, list[Row]] = {}
    ordered = sorted(rows, key=lambda r: (r["what"], r["d_min"], r["noise"] or 0))
    for row in ordered:
        exact = "exact" if row["noise"] == 0 else f"noise {row['noise'] or 0:.0%}"
        name = f"{row['which']}, {row['d_min']:.2f} A" if row["what"] == "measured" else f"{row['which']:g} A, {exact}"
        found.setdefault(name, []).append(row)
    return found


def verdicts(rows: Sequence[Row]) -> list[str]:
    """Whether what is wanted of the network was reached, by mode, at the best origin: the cycles run in P1, where every
    origin is as good and maps drift slowly as they are."""
    said = []
    for mode in ("plain", "engine"):
        for limit, cc in WANTED:
            values = [max(row["kept"][mode]["network"][-2:]) for row in rows if row["d_min"] <= limit + 0.005]
            if values:
                good = sum(v >= cc for v in values)
                said.append(
                    f"{mode}, to {limit:g} A, at the best origin: CC >= {cc:g} in {good} of {len(values)}, "
                    f"lowest {min(values):.3f}, mean {np.mean(values):.3f}"
                )
    return said


def markdown(report: dict[str, Any]) -> str:
    """The report in tables."""
    s, rows = report["settings"], report["rows"]
    shown = " / ".join(map(str, s["cycles"]))
    lines = [
        "# Are true phases kept?", "",
        f"Network {s['network']} {s['sha256'][:12]}. Correlation of the map of measured amplitudes and the phases of "
        "the density with the true map (measured sets: measured amplitudes, the model's phases), after "
        f"{shown} cycles from the truth, at the origin of the truth; in brackets the last at its best origin, where "
        "that is better by more than 0.01. Means over the boxes of a line. *plain*: x <- P_F(D(x)) with all "
        "amplitudes; *engine*: relaxed reflections with the network and with sparseness, and charge flipping, as the "
        "plan has them, some reflections held out.", "",
        *(f"- {line}" for line in verdicts(rows)),
    ]  # fmt: skip
    for mode in ("plain", "engine"):
        body = []
        for name, mine in groups(rows).items():
            body.append([name, str(len(mine)), *(series([r["kept"][mode][who] for r in mine]) for who in WHO)])
        lines += ["", f"## {mode}, {s['cycles'][-1]} cycles", "", *table(["", "n", *WHO], body)]
    passes = [(row, p) for row in rows for p in row.get("one_pass", ())]
    if passes:
        lines += ["", "## One pass on measured data", "", f"Von Mises phase errors, mean of {DRAWS} draws.", ""]
        names = [f"{row['which']}, {row['d_min']:.2f} A" for row, _ in passes]
        steps = [[f"{number(p[who][0])} -> {number(p[who][1], 3)}" for who in WHO] for _, p in passes]
        body = [[name, *step] for name, step in zip(names, steps, strict=True)]
        lines += table(["", *WHO], body)
    return "\n".join(lines) + "\n"


def series(values: Sequence[Sequence[float]]) -> str:
    """Means of several crystals at each count of cycles; the last number of each is at its best origin."""
    *at, best = np.mean(values, axis=0)
    return " ".join(number(float(v), 3) for v in at) + (f" [{best:.3f}]" if best > at[-1] + 0.01 else "")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
