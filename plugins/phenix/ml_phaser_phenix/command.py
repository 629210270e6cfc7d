"""From PHIL's values to the command line of ml_phaser, checked as far as can be known here."""

from __future__ import annotations

import math
import os
import shutil
from pathlib import Path
from typing import Any

from libtbx import Auto
from libtbx.utils import Sorry

from ml_phaser_phenix.table import TABLE, Entry

ENVIRONMENT = "ML_PHASER_EXECUTABLE"
INSTALLED = Path(__file__).with_name("executable.txt")  # written when the plugin is installed
MAP_SUFFIXES = (".map", ".ccp4", ".mrc")


def value_of(params: Any, path: str) -> Any:
    """The value at a PHIL path; None stands for Auto too."""
    for part in path.split("."):
        params = getattr(params, part)
    return None if params is Auto else params


def values(params: Any, chosen: dict[str, Any]) -> list[tuple[Entry, Any]]:
    """Every parameter with its value, None where it is left to ml_phaser.

    ``chosen`` has values, by name, that stand in for those the user left open.
    """
    given = ((entry, value_of(params, entry.path)) for entry in TABLE)
    return [(entry, chosen.get(entry.name) if value is None else value) for entry, value in given]


def absolute(name: str) -> Path:
    """A file name as a full path; links are not followed."""
    try:
        return Path(name).expanduser().absolute()
    except RuntimeError as error:  # ~nobody
        raise Sorry(f"{name}: {error}") from None


def text_of(entry: Entry, value: Any) -> str:
    """A value as ml_phaser's command line takes it."""
    if entry.kind in ("input", "output"):
        return str(absolute(str(value)))
    if entry.kind == "flag":
        return "yes" if value else "no"
    if entry.kind == "cell":
        value = value.parameters()
    if entry.kind in ("cell", "resolution"):
        return ",".join(f"{x:.10g}" for x in value)
    return f"{value:.10g}" if entry.kind == "float" else str(value)


def words(params: Any, chosen: dict[str, Any]) -> list[str]:
    """The command line after the program's name: what differs from the defaults."""
    pairs = [(e, v) for e, v in values(params, chosen) if v is not None and v != e.default]
    return [word for entry, value in pairs for word in (entry.name, text_of(entry, value))]


# ---------------------------------------------------------------------------------------------------- checks


def check_ranges(params: Any) -> None:
    """Sorry where a number is out of its range or a resolution is not one or two of them."""
    for entry, value in values(params, {}):
        if value is None or entry.low is None or entry.high is None:
            continue
        if entry.kind == "resolution":
            value = _high_limit(entry, value)
        if not (math.isfinite(value) and entry.low <= value <= entry.high):
            unit = f" {entry.unit}" if entry.unit else ""
            allowed = f"{entry.low:.10g} to {entry.high:.10g}{unit}"
            raise Sorry(f"{entry.path}: {value:.10g} is out of range. Try: {allowed}")


def _high_limit(entry: Entry, limits: list[float]) -> float:
    if len(limits) not in (1, 2) or len(set(limits)) != len(limits):
        raise Sorry(f"{entry.path}: two different numbers wanted, or the high limit alone. Try: 20,1.2")
    return min(limits)


def check_files(params: Any, chosen: dict[str, Any]) -> None:
    """Sorry where an input is missing, or an output is in no folder or there already without output.overwrite."""
    for entry, value in values(params, chosen):
        if value is None or entry.kind not in ("input", "output"):
            continue
        path = absolute(str(value))
        if entry.kind == "input" and not path.is_file():
            raise Sorry(f"{entry.path}: no such file: {value}")
        if entry.kind == "output" and not path.parent.is_dir():
            raise Sorry(f"{entry.path}: no such folder: {path.parent}")
        if entry.kind == "output" and path.is_file() and not params.output.overwrite:
            raise Sorry(f"{entry.path}: {value} exists already. Try: --overwrite, or another name")


# --------------------------------------------------------------------------------------------------- choices


def without_suffix(name: str) -> str:
    """The name of a map less its suffix; any other last part belongs to the name."""
    path = Path(name)
    return str(path.with_suffix("")) if path.suffix.lower() in MAP_SUFFIXES else name


def stem_of(name: str) -> str:
    """Name of a data file without folder and suffix: "a/b_1.2A.mtz.gz" -> "b_1.2A"."""
    path = Path(name)
    return Path(path.stem).stem if path.suffix.lower() == ".gz" else path.stem


def labin_of(label_string: str) -> str:
    """Labels as cctbx names an array -> what ml_phaser's labin takes.

    "I,SIGI"; "F(+),SIGF(+),F(-),SIGF(-),merged"; "F,SIGF,DANO,SIGDANO,merged"; of a CIF "block,_refln.F_meas_au,...".
    """
    labels = label_string.split(",")
    if len(labels) > 1 and labels[1].startswith("_refln"):
        return ",".join(f"{labels[0]}/{label[len('_refln.') :]}" for label in labels[1:3])
    paired = len(labels) >= 4 and labels[2].lower().endswith(("(-)", "minus"))
    return ",".join(labels[: 4 if paired else 2])


def chosen_labels(manager: Any, hklin: str) -> str | None:
    """The measurement the user chose with user_selected_labels, as labin takes it; None where there is none."""
    if hklin not in manager.get_miller_array_names():
        return None
    kinds = manager.get_miller_array_array_types(filename=hklin)
    selected = manager.get_miller_array_user_selected_labels(filename=hklin)
    found = [_full_label(label, kinds) for label in selected]
    # cctbx does not know what some columns of CIFs are ("unknown"); ml_phaser does, or says so.
    measured = [m for m in found if kinds[m] in ("amplitude", "intensity")] or [
        m for m in found if kinds[m] == "unknown"
    ]
    if len(measured) > 1:
        raise Sorry(f"user_selected_labels names several measurements: {'; '.join(measured)}. Try: one of them")
    if selected and not measured:
        raise Sorry(f"user_selected_labels names no amplitudes or intensities: {'; '.join(selected)}")
    return labin_of(measured[0]) if measured else None


def _full_label(label: str, labels: dict[str, str]) -> str:
    """cctbx takes a part of a label where only one has it."""
    return label if label in labels else next(full for full in labels if label.lower() in full.lower())


def executable(named: str | None = None) -> str:
    """Path of the program ml_phaser.

    That of the parameter ``named``, of the environment, of the installation of this plugin, or on PATH. Sorry where
    there is none.
    """
    for where, name in (("run.executable", named), (ENVIRONMENT, os.environ.get(ENVIRONMENT))):
        if name:
            found = shutil.which(Path(name).expanduser())
            if found is None:
                raise Sorry(f"{where}: {name} is no program that can be run")
            return str(absolute(found))
    recorded = INSTALLED.read_text(encoding="utf-8").strip() if INSTALLED.is_file() else ""
    found = (shutil.which(recorded) if recorded else None) or shutil.which("ml_phaser")
    if found is None:
        raise Sorry("the program ml_phaser is not on PATH. Try: run.executable=/path/to/ml_phaser")
    return str(absolute(found))
