"""The run record: everything needed to know, judge and repeat a run, as JSON."""

from __future__ import annotations

import dataclasses
import datetime
import functools
import hashlib
import json
import math
import platform
import shlex
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ml_phaser import __version__
from ml_phaser.atomic import atomic
from ml_phaser.parameters import PARAMETERS, Options
from ml_phaser.report.advice import advice, warnings
from ml_phaser.report.log import ln_mean_intensities

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ml_phaser.crystal.peaks import Atoms
    from ml_phaser.crystal.reflections import Amplitudes
    from ml_phaser.outcome import Fragments, Outcome, PhaseSeeds, Trial

LIBRARIES = (
    "numpy", "scipy", "gemmi", "reciprocalspaceship", "torch", "onnxruntime", "safetensors",
    "matplotlib", "jinja2",
)  # fmt: skip


def json_safe(value: Any) -> Any:
    """The same facts in JSON's types: arrays to lists, dataclasses to dicts, paths to text, NaN and infinity
    to null.

    Raises TypeError on what has no such form, rather than write something unreadable.
    """
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, (np.integer, int)):
        return int(value)
    if isinstance(value, (np.floating, float)):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, np.bool_):
        return bool(value)
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, np.ndarray):
        return json_safe(value.tolist())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: json_safe(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): json_safe(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_safe(item) for item in value]
    raise TypeError(f"{type(value).__name__} has no place in a run record")


def command(options: Options) -> str:
    """The command line that gives these options again; defaults are left out."""
    words = ["ml_phaser"]
    for p in PARAMETERS:
        value = getattr(options, p.name)
        if value is None or value == p.default:
            continue
        words.append(p.name)
        if p.kind in ("resolution", "cell"):
            words.append(",".join(f"{x:.10g}" for x in value))
        elif p.kind == "float":
            words.append(f"{value:.10g}")
        elif p.kind != "flag":
            words.append(str(value))
    return shlex.join(words)


def _sha256(path: Path) -> str | None:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError:
        return None
    return digest.hexdigest()


@functools.cache
def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def wilson_facts(data: Amplitudes, wilson: Any) -> dict[str, Any] | None:
    """The small facts of the normalisation: all but what it holds by reflection; its shells with ln of their mean
    intensity."""
    if wilson is None:
        return None
    logs = ln_mean_intensities(data, wilson)
    shells = [{**vars(shell), "ln_mean_i": log} for shell, log in zip(wilson.shells, logs, strict=True)]
    facts = {f.name: getattr(wilson, f.name) for f in dataclasses.fields(wilson)}
    return {name: value for name, value in facts.items() if not _by_reflection(value)} | {"shells": shells}


def _fragments(placed: Fragments | None) -> dict[str, Any] | None:
    if placed is None:
        return None
    names = ("label", "atoms", "fit", "judged", "merit", "lead")
    return {name: getattr(placed, name) for name in names}


def _atoms(atoms: Atoms | None) -> list[dict[str, Any]] | None:
    """Free atoms, heaviest first: fractional x, y, z, weight in nitrogens, B in A^2, its images that are one."""
    if atoms is None:
        return None
    return [
        {
            "x": x, "y": y, "z": z, "weight": float(atoms.weight[i]), "b": float(atoms.b[i]),
            "images": int(atoms.images[i]),
        }
        for i in np.argsort(-atoms.weight, kind="stable") for x, y, z in [atoms.frac[i].tolist()]
    ]  # fmt: skip


def _seeds(seeds: PhaseSeeds | None) -> dict[str, Any] | None:
    """What phase seeds are worth: ``expected_right`` of ``n`` are in the part of the circle they are given for."""
    if seeds is None:
        return None
    return {
        "n": len(seeds),
        "bins": seeds.bins,
        "mean_probability": seeds.mean_probability,
        "least_probability": float(seeds.probability.min()) if len(seeds) else None,
        "expected_right": float(seeds.probability.sum()),
        "origin": "that of the phases in hklout, which the space group permits",
    }


def _by_reflection(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.size > 9


def _begun(options: Options, status: str) -> dict[str, Any]:
    """What is known of any run, however it stands."""
    return {
        "program": "ml_phaser",
        "version": __version__,
        "status": status,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": command(options),
        "options": options,
        "seed": options.seed,
        "versions": _versions(),
        "outputs": {p.name: getattr(options, p.name) for p in PARAMETERS if p.kind == "output"},
    }


def unfinished_record(
    options: Options,
    status: str,
    *,
    stage: str,
    fraction: float,
    seconds: float,
    trials: Sequence[Trial] = (),
    best: Trial | None = None,
    message: str | None = None,
) -> dict[str, Any]:
    """What is known of a run without a result, in JSON's types.

    Parameters
    ----------
    status : "running", "failed" or "interrupted"
    stage, fraction : the stage it is or was in; the share of the time for phasing that is gone, 0-1
    seconds : since it began
    trials : starts so far; those without a cycle yet are left out
    message : why it failed
    """
    record = _begun(options, status) | {
        "error": None if message is None else {"message": message},
        "stage": stage,
        "progress": fraction,
        "seconds": seconds,
        "best": best,
        "trials": [trial for trial in trials if trial.cycles],
    }
    safe: dict[str, Any] = json_safe(record)
    return safe


def run_record(outcome: Outcome, options: Options) -> dict[str, Any]:
    """All that is known about a run, in JSON's types.

    Lengths in A, angles in degrees, times in seconds, NaN and infinity as null. ``source.sha256`` is of the
    input file, ``outputs`` maps parameter to path.
    """
    data, cell = outcome.data, outcome.data.cell
    record = _begun(options, "finished") | {
        "device": outcome.device,
        "threads": outcome.threads,
        "best_trial": outcome.best,
        "source": {
            "path": data.source.path,
            "sha256": _sha256(Path(data.source.path)),
            "format": data.source.format,
            "columns": data.source.columns,
            "kind": data.source.kind,
        },
        "cell": (cell.a, cell.b, cell.c, cell.alpha, cell.beta, cell.gamma),
        "spacegroup": data.spacegroup.xhm(),
        "d_min": data.d_min,
        "d_max": data.d_max,
        "n_reflections": len(data),
        "completeness": data.completeness,
        "n_held": outcome.held,
        "free_flags": data.free is not None or bool(outcome.free_made),
        "notes": data.notes,
        "choices": outcome.choices,
        "wilson": wilson_facts(data, outcome.wilson),
        "verdict": outcome.verdict,
        "mean_fom": outcome.mean_fom,
        "warnings": warnings(outcome),
        "advice": advice(outcome, options),
        "density": outcome.density,
        "hand": outcome.hand.said,
        "hand_judged": {"probability": outcome.hand.probability, **vars(outcome.hand)},
        "given_phases": outcome.given,
        "fragments": _fragments(outcome.fragments),
        "atoms": _atoms(outcome.atoms),
        "seeds": _seeds(outcome.seeds),
        "given_seeds": outcome.seeds_given,
        "shells": outcome.shells,
        "calibration": outcome.calibration,
        "trials": outcome.trials,
        "weights": outcome.weights,
        "predictor": outcome.predictor,
        "times": outcome.times,
        "next": outcome.next_steps,
        "then": outcome.then,
    }
    safe: dict[str, Any] = json_safe(record)
    return safe


def write_json(path: Path | str, record: dict[str, Any]) -> None:
    """Write a record as UTF-8 JSON, whole or not at all. Raises UserError where it cannot be written."""
    text = json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    with atomic(path) as tmp:
        tmp.write_text(text, encoding="utf-8")
