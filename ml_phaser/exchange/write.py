"""The phased MTZ: the user's own file with the phases added, or a new one where that cannot be."""

from __future__ import annotations

import datetime
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import gemmi
import numpy as np
from numpy.typing import NDArray

from ml_phaser import __version__
from ml_phaser.atomic import atomic
from ml_phaser.crystal.reflections import Amplitudes
from ml_phaser.exchange import free_flags
from ml_phaser.outcome import Phases

DATASET = "ml_phaser"
# Neighbours matter: Coot pairs FWT with PHWT, ModelCraft looks for adjacent runs of types FP, PW, AAAA.
PHASE_COLUMNS = (
    ("FWT", "F"),
    ("PHWT", "P"),
    ("PHIB", "P"),
    ("FOM", "W"),
    ("HLA", "A"),
    ("HLB", "A"),
    ("HLC", "A"),
    ("HLD", "A"),
)
HISTORY_WIDTH = 80  # characters in a line of an MTZ history
TITLE_WIDTH = 70
OLD = "_in"  # appended to an input column in the way of ours
CELL_TOLERANCE = (0.01, 0.01)  # A, degrees: what the MTZ header's precision leaves of one and the same cell


@dataclass(frozen=True)
class FreeSet:
    """Free-R flags to make: share of the reflections in the test set (0-1), seed."""

    share: float
    seed: int


def write_mtz(
    path: Path | str,
    data: Amplitudes,
    phases: Phases,
    f: NDArray[np.float64] | None = None,
    sigf: NDArray[np.float64] | None = None,
    *,
    history: Sequence[str] = (),
    free: FreeSet | None = None,
) -> tuple[str, ...]:
    """Write FWT PHWT PHIB FOM HLA HLB HLC HLD, with the data they belong to.

    Where the input is a merged MTZ of the same group and cell, its copy: every column, dataset, title and
    history is kept, rows are brought to the asymmetric unit, and the phases are added in a dataset of their
    own. A column of the input with one of our names is renamed (``FWT`` to ``FWT_in``). Where amplitudes had
    to be made (from intensities or Friedel mates) they are added as F and SIGF. Otherwise a new MTZ with F,
    SIGF, I and SIGI where measured, the free-R flags, and the phases. Flags asked for with ``free`` are made for every
    reflection of the file, those without phases too, where the data have none; they stand after the data.

    Parameters
    ----------
    phases : on ``data.hkl``; rows with a phase or figure of merit that is not finite stay missing
    f, sigf : (n,) amplitudes for FWT = FOM F and the columns F, SIGF; those of ``data`` if not given
    history : lines for the MTZ history, put above those of the input
    free : free-R flags to make where ``data`` have none

    Returns
    -------
    sentences for the log about what was renamed, made or left behind

    Raises
    ------
    UserError
        where the file cannot be written; nothing is left behind
    """
    f = data.f if f is None else np.asarray(f, dtype=np.float64)
    sigf = data.sigf if sigf is None else np.asarray(sigf, dtype=np.float64)
    columns = _phase_table(phases, f)
    notes: list[str] = []
    mtz = _copy_of_input(data, notes)
    if mtz is None:
        mtz = _new(data, f, sigf)
    else:
        _make_room(mtz, notes)
        if data.source.kind != "amplitude":
            _add_amplitudes(mtz, data, f, sigf)
    if free is not None and data.free is None:
        notes.append(_add_free(mtz, data, free))
    _append(mtz, data.hkl, PHASE_COLUMNS, columns, _dataset(mtz, data))
    now = datetime.datetime.now()
    own = f"From ml_phaser {__version__} {now:%d/%m/%Y %H:%M:%S} phases and figures of merit"
    lines = [part for line in (own, *history, *notes) for part in textwrap.wrap(_ascii(line), HISTORY_WIDTH)]
    mtz.history = lines + list(mtz.history)
    mtz.update_reso()
    content = bytes(mtz.write_to_bytes())  # written by Python, which reports a full disk where C may not
    with atomic(path) as tmp:
        tmp.write_bytes(content)
    return tuple(notes)


def _phase_table(phases: Phases, f: NDArray[np.float64]) -> NDArray[np.float32]:
    """(n, 8) values of PHASE_COLUMNS, degrees in (-180, 180], NaN where unphased."""
    degrees = (180.0 - np.mod(180.0 - np.rad2deg(phases.phase), 360.0)).astype(np.float32)
    degrees[degrees == -180] = 180  # single precision rounds -179.999999 there
    table = np.column_stack([phases.fom * f, degrees, degrees, phases.fom, phases.hl])
    table[~np.isfinite(table).all(axis=1)] = np.nan
    return table.astype(np.float32)


def _copy_of_input(data: Amplitudes, notes: list[str]) -> gemmi.Mtz | None:
    """The user's MTZ in the asymmetric unit; None (and why, in ``notes``) where it cannot take phases."""
    if data.source.format != "MTZ":
        return None
    try:
        mtz = gemmi.read_mtz_file(data.source.path)
    except (RuntimeError, ValueError, OSError):
        notes.append("the input MTZ could not be read again; its other columns are not in the output")
        return None
    why = _why_not(mtz, data)
    if not why:
        _missing_to_nan(mtz)
        mtz.ensure_asu()
        hkl = np.asarray(mtz.make_miller_array())
        if len(np.unique(hkl, axis=0)) != len(hkl):
            why = "lists equivalent reflections separately"
    if why:
        notes.append(f"the input MTZ {why}; its other columns are not in the output")
        return None
    return mtz


def _why_not(mtz: gemmi.Mtz, data: Amplitudes) -> str:
    if mtz.batches or mtz.column_with_label("M/ISYM") is not None:
        return "is unmerged"
    if mtz.spacegroup is None or mtz.spacegroup.xhm() != data.spacegroup.xhm():
        return "has another space group"
    theirs, ours = np.array(mtz.cell.parameters), np.array(data.cell.parameters)
    if np.any(np.abs(theirs - ours) > np.repeat(CELL_TOLERANCE, 3)):
        return "has another cell"
    return ""


def _missing_to_nan(mtz: gemmi.Mtz) -> None:
    """Make NaN the missing-number flag, whatever number the input uses."""
    if np.isnan(mtz.valm):
        return
    table = np.array(mtz.array, copy=True)
    values = table[:, 3:]
    values[values == np.float32(mtz.valm)] = np.nan
    mtz.set_data(table)
    mtz.valm = np.nan


def _make_room(mtz: gemmi.Mtz, notes: list[str]) -> None:
    """Rename input columns that carry our names: programs downstream must find one FWT, ours."""
    ours = {label for label, _ in PHASE_COLUMNS}
    renamed = []
    for column in mtz.columns:
        if column.label in ours:
            old = column.label
            column.label = _free_label(mtz, old + OLD)
            renamed.append(f"{old} to {column.label}")
    if renamed:
        notes.append(f"input columns renamed: {', '.join(renamed)}")


def _free_label(mtz: gemmi.Mtz, label: str) -> str:
    taken = set(mtz.column_labels())
    candidate, k = label, 2
    while candidate in taken:
        candidate, k = f"{label}{k}", k + 1
    return candidate


def _add_amplitudes(mtz: gemmi.Mtz, data: Amplitudes, f: NDArray[np.float64], sigf: NDArray[np.float64]) -> None:
    """The amplitudes the phases belong to, for programs that read no intensities."""
    labels = ("F", "SIGF") if not {"F", "SIGF"} & set(mtz.column_labels()) else ("F_ML", "SIGF_ML")
    names = tuple((_free_label(mtz, label), kind) for label, kind in zip(labels, "FQ", strict=True))
    _append(mtz, data.hkl, names, np.column_stack([f, _unknown_to_nan(sigf)]), _dataset(mtz, data))


def _add_free(mtz: gemmi.Mtz, data: Amplitudes, free: FreeSet) -> str:
    """Free-R flags for all reflections of the file and of the data; a sentence for the log."""
    there = np.rint(np.asarray(mtz.make_miller_array())).astype(np.int32)
    hkl = np.unique(np.concatenate([there, data.hkl]), axis=0)
    flags = free_flags.free_flags(hkl, data.cell, free.share, free.seed)
    label = _free_label(mtz, free_flags.LABEL)
    _append(mtz, hkl, ((label, "I"),), flags[:, None], _dataset(mtz, data))
    return (
        f"Free-R flags made: {label}, 0 to {flags.max()}, the test set is 0: {int((flags == 0).sum())} of {len(hkl)} "
        f"reflections ({np.mean(flags == 0):.1%}), seed {free.seed}."
    )


def _unknown_to_nan(sigma: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(sigma > 0, sigma, np.nan)


def _new(data: Amplitudes, f: NDArray[np.float64], sigf: NDArray[np.float64]) -> gemmi.Mtz:
    mtz = gemmi.Mtz(with_base=True)
    mtz.title = _ascii(f"Phases from ml_phaser for {Path(data.source.path).name}")[:TITLE_WIDTH]
    mtz.spacegroup = data.spacegroup
    mtz.set_cell_for_all(data.cell)
    mtz.set_data(data.hkl.astype(np.float32))
    dataset = _dataset(mtz, data)
    _append(mtz, data.hkl, (("F", "F"), ("SIGF", "Q")), np.column_stack([f, _unknown_to_nan(sigf)]), dataset)
    if data.intensity is not None and data.sigma_i is not None:
        measured = np.column_stack([data.intensity, data.sigma_i])
        _append(mtz, data.hkl, (("I", "J"), ("SIGI", "Q")), measured, dataset)
    if data.free is not None:
        flags = np.where(data.free < 0, np.nan, data.free)[:, None]
        _append(mtz, data.hkl, (("FreeR_flag", "I"),), flags, dataset)
    return mtz


def _dataset(mtz: gemmi.Mtz, data: Amplitudes) -> int:
    """Number of our own dataset, made at need, with the wavelength of the data it comes from."""
    for dataset in mtz.datasets:
        if dataset.dataset_name == DATASET:
            return int(dataset.id)
    source = next((c.dataset for c in mtz.columns if c.label in data.source.columns), None)
    dataset = mtz.add_dataset(DATASET)
    dataset.cell = data.cell
    if source is not None:
        dataset.project_name, dataset.crystal_name = source.project_name, source.crystal_name
        dataset.wavelength = source.wavelength
    return int(dataset.id)


def _append(
    mtz: gemmi.Mtz,
    hkl: NDArray[np.int32],
    columns: Sequence[tuple[str, str]],
    values: NDArray,
    dataset: int,
) -> None:
    """Add columns with ``values`` (n, k) on ``hkl`` (n, 3); reflections the file lacks become new rows."""
    old = np.array(mtz.array, copy=True)  # a view would dangle once columns are added
    rows, missing = _match(np.asarray(mtz.make_miller_array()), hkl)
    for label, kind in columns:
        mtz.add_column(label, kind, dataset_id=dataset)
    n, first = len(old), old.shape[1]
    table = np.full((n + len(missing), first + len(columns)), np.nan, dtype=np.float32)
    table[:n, :first] = old
    table[n:, :3] = hkl[missing]
    table[rows, first:] = values
    mtz.set_data(table)


def _match(have: NDArray, want: NDArray[np.int32]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Row in ``have`` of each of ``want``; those it lacks get rows after its end, and are named second."""
    place = {tuple(h): i for i, h in enumerate(have.tolist())}
    rows = np.array([place.get(tuple(h), -1) for h in want.tolist()], dtype=np.int64)
    missing = np.flatnonzero(rows < 0)
    rows[missing] = len(have) + np.arange(len(missing))
    return rows, missing


def _ascii(text: str) -> str:
    return text.encode("ascii", "replace").decode()
