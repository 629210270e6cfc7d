"""Phase one crystal and keep all that figures of merit are made of: one compact file each."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.confidence.crystals import Case, crystal_of, facts


def run(case: Case, libraries: dict[str, Any]) -> dict[str, Any]:
    """Arrays and facts of one run, up to the choice of a solution; figures of merit are made of them later.

    Raises UserError.
    """
    from benchmarks.phasein import Case as Given
    from benchmarks.phasein import with_errors
    from ml_phaser import pipeline
    from ml_phaser.crystal.phase_distributions import PhaseDistributions, hendrickson_lattman
    from ml_phaser.crystal.symmetry import expand
    from ml_phaser.notify import Silent
    from ml_phaser.parameters import Options
    from ml_phaser.plan import plan_phasing

    data, truth = crystal_of(case, libraries)
    normalised = pipeline.normalise(data)
    none = Path("none")
    options = Options(none, none, none, none, timelimit=case.limit, threads=1, engine=case.engine, device="cpu")
    known = None
    if case.given is not None:
        phase, fom = with_errors(Given(data, normalised, truth), case.given, case.seed)
        if case.claimed is not None:
            fom = with_errors(Given(data, normalised, truth), case.claimed, case.seed)[1]
        hl = hendrickson_lattman(phase, fom**case.boast, data.centric)
        known = PhaseDistributions(hl, expand(data.hkl, data.spacegroup).turn)
    began = time.process_time()
    plan = plan_phasing(data, normalised, options, starts=known)
    hunt = pipeline.phase(plan, options, Silent(), now=time.process_time)
    chosen, _ = pipeline.choose(hunt, data, normalised, plan)
    held = np.zeros(len(data), dtype=bool)
    held[plan.rows] = plan.whole.held
    about = {
        "case": facts(case), "cell": list(data.cell.parameters), "group": data.spacegroup.xhm(), "d_min": data.d_min,
        "reflections": len(data), "weights": plan.weights, "trials": len(hunt.trials), "chosen": chosen.trial,
        "seconds": round(time.process_time() - began, 2), "solutions": [_evidence(s) for s in hunt.solutions],
    }  # fmt: skip
    return {
        "about": np.array(json.dumps(about)), "hkl": data.hkl.astype(np.int16), "e": normalised.e.astype(np.float32),
        "f_obs": normalised.f.astype(np.float32), "held": held, "truth": truth.astype(np.complex64),
        "chosen": chosen.f.astype(np.complex64),
        "solutions": np.array([s.f for s in hunt.solutions]).astype(np.complex64),
        "given": (np.zeros((0, 4)) if known is None else known.hl).astype(np.float32),
    }  # fmt: skip


def _evidence(s: Any) -> dict[str, Any]:
    """The numbers of a solution, None for NaN."""
    row = {k: getattr(s, k) for k in ("score", "r_work", "symmetry", "held", "trial", "core", "d_min", "finisher")}
    row |= {"worth": s.worth, "atoms": None if s.atoms is None else len(s.atoms)}
    row |= {"agreeing": s.agreeing, "cluster": s.cluster, "given": s.given, "probability": s.probability}
    if s.fragments is not None:
        row["fragments"] = {k: getattr(s.fragments, k) for k in ("fit", "judged", "merit", "lead")}
    return {k: None if isinstance(v, float) and not np.isfinite(v) else v for k, v in row.items()}


def collect(case: Case, store: Path, libraries: dict[str, Any]) -> str:
    """Run a case unless it is there already; one line that says what became of it."""
    from ml_phaser.errors import UserError

    path = store / f"{case.name}.npz"
    skip = path.with_suffix(".skipped")
    if path.exists() or skip.exists():
        return ""
    store.mkdir(parents=True, exist_ok=True)
    try:
        arrays = run(case, libraries)
    except UserError as error:
        skip.write_text(f"{error}\n", encoding="utf-8")
        return f"{case.name}: left out, {error}"
    part = path.with_suffix(".part")
    with part.open("wb") as stream:
        np.savez_compressed(stream, **arrays)
    part.replace(path)
    about = json.loads(str(arrays["about"]))
    best = max(s["probability"] for s in about["solutions"])
    return f"{case.name}: {about['reflections']} reflections, {about['seconds']} s, P {best:.2f}"
