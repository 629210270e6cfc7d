#!/usr/bin/env python3
"""What becomes of approximate phases of measured data: true phases with errors of known strength as ``phasein``.

    python benchmarks/phasein.py --seconds 10 --out benchmarks/results/phasein

Each acentric phase of the deposited model gets a von Mises error of concentration c E^2, as a partial model would give
(centric ones a flip with the like probability), c such that the map of measured amplitudes reaches the correlation
asked for; the figures of merit are those of these distributions. Every engine gets the same processor time.
Correlations are those of maps of measured amplitudes with the model's phases, at the origin and hand given: no search
over either.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[1]
SETS = (("5e5z", None), ("2olx", None), ("2okz", None), ("5awl", None), ("1aie", 1.7))  # name, d_min to cut at in A
STARTS = (0.3, 0.5, 0.7, 0.9)
ENGINES = ("classical", "learned", "auto")
MOST = 1e4  # concentration of errors that are none


@dataclass(frozen=True, eq=False)
class Case:
    """Measured data and the model's structure factors (n,)."""

    data: Any
    normalised: Any
    truth: NDArray[np.complex128]


def read_case(folder: Path, name: str, d_min: float | None) -> Case:
    """A measured set with the phases of its model."""
    from ml_phaser.crystal.normalise import normalise
    from ml_phaser.evaluation.reference import model_reference
    from ml_phaser.exchange.read import read_amplitudes

    with (folder / "README.csv").open(newline="", encoding="utf-8") as stream:
        row = next(r for r in csv.DictReader(stream) if r["name"] == name)
    data = read_amplitudes(folder / name / row["refl_file"], resolution=(1e3, d_min) if d_min else None)
    model = folder / name / row["model_file"]
    truth = model_reference(model, data.hkl, data.cell, data.spacegroup, f_obs=data.f).f
    return Case(data, normalise(data), truth)


def with_errors(case: Case, cc: float, seed: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Phases (n,) in radians whose map correlates with the truth to about ``cc``, and their figures of merit."""
    from scipy.special import i0e, i1e

    from ml_phaser.crystal.agreement import multiplicity

    data, e2 = case.data, np.maximum(case.normalised.e**2, 1e-6)
    weight = multiplicity(data.hkl, data.spacegroup) * case.normalised.f**2

    def merit(c: float) -> NDArray[np.float64]:
        return np.asarray(np.where(data.centric, np.tanh(c * e2 / 2), i1e(c * e2) / i0e(c * e2)))

    low, high = 0.0, MOST
    for _ in range(100):
        c = (low + high) / 2
        low, high = (c, high) if (weight * merit(c)).sum() < cc * weight.sum() else (low, c)
    rng = np.random.default_rng(seed)
    error = rng.vonmises(0, c * e2)
    flipped = rng.random(len(e2)) > (1 + np.tanh(c * e2 / 2)) / 2
    return np.angle(case.truth) + np.where(data.centric, np.pi * flipped, error), merit(c)


def map_cc(case: Case, f: NDArray[np.complex128], weight: NDArray[np.float64] | float = 1.0) -> float:
    """Correlation of the maps of measured amplitudes, with the phases of ``f`` and with the model's, as they stand."""
    from ml_phaser.crystal.agreement import correlation, multiplicity

    measured = case.normalised.f
    ours, true = (measured * np.exp(1j * np.angle(x)) for x in (f, case.truth))
    return correlation(multiplicity(case.data.hkl, case.data.spacegroup), weight * ours, true)


def improve(
    case: Case, phase: NDArray[np.float64], fom: NDArray[np.float64], engine: str, seconds: float, seed: int
) -> dict[str, Any]:
    """The main job from the phases given, with ``seconds`` of processor time for the search."""
    from ml_phaser import pipeline
    from ml_phaser.crystal.phase_distributions import PhaseDistributions, hendrickson_lattman
    from ml_phaser.crystal.symmetry import expand
    from ml_phaser.notify import Silent
    from ml_phaser.parameters import Options
    from ml_phaser.plan import plan_phasing

    data, none = case.data, Path("none")
    options = Options(none, none, none, none, timelimit=seconds, threads=1, engine=engine, seed=seed, device="cpu")
    known = PhaseDistributions(hendrickson_lattman(phase, fom, data.centric), expand(data.hkl, data.spacegroup).turn)
    began = time.process_time()
    plan = plan_phasing(data, case.normalised, options, starts=known)
    hunt = pipeline.phase(plan, options, Silent(), time.process_time)
    solution, given = pipeline.choose(hunt, data, case.normalised, plan)
    phases, _, verdict, _ = pipeline.weigh(data, case.normalised, plan, solution)
    assert given is not None
    return {
        "cc": map_cc(case, solution.f),
        "weighted_cc": map_cc(case, solution.f, phases.fom),
        "score": solution.score,
        "verdict": verdict.word,
        "probability": verdict.probability,
        "moved": given.moved,
        "method": hunt.trials[solution.trial].method,
        "trials": len(hunt.trials),
        "seconds": time.process_time() - began,
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: a row for each start."""
    head = ["set", "group", "d_min", "reflections", "start CC", "weighted", *ENGINES, "verdict (auto)", "s"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for r in rows:
        cells = [r["set"], r["group"], f"{r['d_min']:.2f}", str(r["n"]), f"{r['start_cc']:.2f}"]
        cells += [f"{r['start_weighted_cc']:.2f}", *(f"{r[e]['cc']:.2f}" for e in ENGINES)]
        seconds = "/".join(f"{r[e]['seconds']:.0f}" for e in ENGINES)
        lines.append(
            "| " + " | ".join([*cells, f"{r['auto']['verdict']}, {r['auto']['probability']:.2f}", seconds]) + " |"
        )
    return "\n".join(lines)


def write(out: Path, rows: list[dict[str, Any]], command: str) -> None:
    """OUT.md and OUT.json of the rows so far."""
    from ml_phaser import __version__
    from ml_phaser.networks.store import PROJECTOR, read_card

    sha = read_card(PROJECTOR).sha256[:8]
    text = [
        "# Phases put in (`phasein`)", "", (__doc__ or "").split("\n\n", 2)[2].strip(), "",
        "*weighted*: the start's map weighted by its figures of merit. The engines' columns are map correlations after",
        f"the search; *s* their processor seconds. `{command}`, ml_phaser {__version__}, projector `{sha}`.", "",
        table(rows), "",
    ]  # fmt: skip
    out.with_suffix(".md").write_text("\n".join(text), encoding="utf-8")
    facts = {"command": command, "version": __version__, "projector": sha, "rows": rows}
    out.with_suffix(".json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def main(argv: list[str] | None = None) -> int:
    """Run all cases and write OUT.md and OUT.json."""
    parser = argparse.ArgumentParser(prog="phasein.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data" / "diffraction")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "phasein")
    parser.add_argument("--seconds", type=float, default=10.0, help="processor seconds of search for each engine [10]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", help="names of sets")
    words = parser.parse_args(argv)
    rows = []
    command = f"python benchmarks/phasein.py --seconds {words.seconds:g} --seed {words.seed}"
    command += f" --only {' '.join(words.only)}" if words.only else ""
    for name, cut in SETS:
        if words.only and name not in words.only:
            continue
        case = read_case(words.data, name, cut)
        for cc in STARTS:
            phase, fom = with_errors(case, cc, words.seed)
            start = np.exp(1j * phase)
            row: dict[str, Any] = {"set": name, "group": case.data.spacegroup.hm, "d_min": case.data.d_min}
            row |= {"n": len(case.data), "aimed": cc, "start_cc": map_cc(case, start)}
            row["start_weighted_cc"] = map_cc(case, start, fom)
            for engine in ENGINES:
                row[engine] = improve(case, phase, fom, engine, words.seconds, words.seed)
                print(name, cc, engine, json.dumps(row[engine]), file=sys.stderr, flush=True)
            rows.append(row)
            write(words.out, rows, command)
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
