"""Phase seeds out of files: all forms that ``seed_files`` writes, and phases of other programs.

The reflections may lie in any asymmetric unit, Friedel mates and settings of the space group included; they are brought
to the data as a user's phases are (``phases``).
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ml_phaser.crystal.reflections import Amplitudes
from ml_phaser.crystal.symmetry import expand, look_up
from ml_phaser.errors import UserError
from ml_phaser.exchange.phases import PhaseFile, read_file, read_list, same_setting, to_asu
from ml_phaser.exchange.read import load
from ml_phaser.exchange.seed_files import SIR_MARK, SUPERFLIP_MARK

KNOWN = "an MTZ, .phs, .phi, CSV (h,k,l,centre), PHAS cards, a Superflip or SIR list"
OFF_AXIS = 0.5  # |cos| of the angle to the nearest permitted value, below which a restricted phase is wrong

Floats = NDArray[np.float64]
Row = tuple[int, int, int, float, float]  # h, k, l, phase in degrees, probability or NaN


@dataclass(frozen=True, eq=False)
class SeedsRead:
    """Seeds on the reflections of the data.

    phase : (n,) radians; given : (n,) bool, where there is one; probability : mean of those the file has, else NaN
    notes : sentences for the log
    """

    phase: Floats
    given: NDArray[np.bool_]
    probability: float
    notes: tuple[str, ...]


def read_seeds(path: Path | str, data: Amplitudes) -> SeedsRead:
    """Phase seeds of ``data``.

    Parameters
    ----------
    path : MTZ (column PHI, else the only phase; weight FOM or WT beside it, PROB), lists h k l F fom phi, CSV with the
        columns h, k, l and centre or phi, SHELXS instructions with PHAS, Superflip's or our SIR list; also gzipped.
        Phases in degrees, Superflip's in cycles. What has the weight 0 is no seed.

    Raises
    ------
    UserError : nothing of the kind, another crystal, no reflection of the data
    """
    file = _read(Path(path))
    phase, chance = np.deg2rad(file.columns["PHI"]), file.columns["PROB"]
    there = np.isfinite(phase)
    if not there.any():
        raise UserError("holds no phases", file.where, KNOWN)
    file, moved = same_setting(file, data)
    known = np.nan_to_num(chance, nan=1.0)
    hl = np.stack([known * np.cos(phase), known * np.sin(phase), 0 * known, 0 * known], axis=1)  # carried as A, B
    hkl, hl = to_asu(file.hkl[there], hl[there], moved[there], data.spacegroup)
    found = np.nan_to_num(look_up(hkl, hl[:, 0] + 1j * hl[:, 1], data.hkl))
    turn = expand(data.hkl, data.spacegroup).turn
    axis = np.exp(0.5j * np.angle(turn))
    along = (found * np.conj(axis)).real
    given = np.abs(found) > 1e-6
    if not given.any():
        raise UserError("none of its reflections is one of the data", file.where, "seeds of the same crystal")
    notes = [f"Phase seeds from {file.where}: {int(given.sum())} of {len(data)} reflections."]
    restricted = given & (turn != 0)
    off = int((np.abs(along) < OFF_AXIS * np.abs(found))[restricted].sum())
    if off:
        notes.append(
            f"{off} of {int(restricted.sum())} seeds that symmetry restricts are far from their permitted values: is "
            "their origin one of the space group?"
        )
    phase = np.angle(np.where(turn == 0, found, axis * np.where(along >= 0, 1.0, -1.0)))
    own = chance[there]
    mean = float(own.mean()) if np.isfinite(own).all() else float("nan")
    return SeedsRead(phase, given, mean, tuple(notes))


def _read(path: Path) -> PhaseFile:
    """A file with the columns PHI in degrees, NaN where there is no seed, and PROB, NaN where it is not said."""
    content, where = load(path), path.name
    if content[:4] == b"MTZ ":
        return _of_mtz(read_file(path))
    text = content.decode("utf-8-sig", errors="replace")
    first = text.lstrip().partition("\n")[0]
    rows: Sequence[Row]
    if re.fullmatch(r"\s*h\s*,\s*k\s*,\s*l\b.*", first.strip(), re.IGNORECASE):
        rows = list(_csv_rows(text, where))
    elif first.startswith(SIR_MARK):
        rows = list(_list_rows(text, where, ">", 4, 5, 1.0))
    elif re.search(rf"^\s*{SUPERFLIP_MARK}\b", text, re.MULTILINE | re.IGNORECASE):
        inside = re.split(rf"(?im)^\s*(?:{SUPERFLIP_MARK}|endf)\b[^\n]*\n?", text)[1]
        rows = list(_list_rows(inside, where, "#", 4, None, 360.0))
    elif cards := re.findall(r"(?im)^PHAS[ \t]+(.*)$", text):
        rows = list(_list_rows("\n".join(cards), where, "!", 3, None, 1.0))
    else:
        try:
            return _weighed(read_list(text, where))
        except UserError as error:
            raise UserError(error.what, error.where, KNOWN) from None
    if not rows:
        raise UserError("holds no phases", where, KNOWN)
    table = np.array(rows)
    columns = {"PHI": table[:, 3], "PROB": table[:, 4]}
    return PhaseFile(where, table[:, :3].astype(np.int32), columns, {"PHI": "P", "PROB": "W"})


def _of_mtz(file: PhaseFile) -> PhaseFile:
    """PHI, else the only column of phases, of an MTZ."""
    phases = [x for x, kind in file.types.items() if kind == "P"]
    if "PHI" not in phases and len(phases) != 1:
        raise UserError(
            f"which column of phases is meant? There are {', '.join(phases) or 'none'}", file.where,
            "seeds as seedout writes them: a column PHI",
        )  # fmt: skip
    columns = {"PHI": file.columns["PHI" if "PHI" in phases else phases[0]]}
    columns |= {x: file.columns[x] for x in ("FOM", "WT", "PROB") if file.types.get(x) == "W"}
    return _weighed(PhaseFile(file.where, file.hkl, columns, {}, file.cell, file.spacegroup))


def _weighed(file: PhaseFile) -> PhaseFile:
    """Without the phases whose weight is 0; probabilities NaN where there are none."""
    phase = file.columns["PHI"]
    for name in ("FOM", "WT"):
        if name in file.columns:
            phase = np.where(file.columns[name] == 0, np.nan, phase)
    chance = file.columns.get("PROB", np.full(len(phase), np.nan))
    columns = {"PHI": phase, "PROB": chance}
    return PhaseFile(file.where, file.hkl, columns, {"PHI": "P", "PROB": "W"}, file.cell, file.spacegroup)


def _csv_rows(text: str, where: str) -> Iterator[Row]:
    lines = list(csv.reader(text.splitlines()))
    head = [x.strip().lower() for x in lines[0]]
    phase = next((head.index(x) for x in ("centre", "phi", "phase") if x in head), None)
    if phase is None:
        raise UserError(f"has no column centre or phi, only {', '.join(head)}", where, "h,k,l,centre in degrees")
    chance = head.index("probability") if "probability" in head else None
    for number, words in enumerate(lines[1:], start=2):
        if words:
            yield _row(words, phase, chance, 1.0, where, number)


def _list_rows(text: str, where: str, comment: str, phase: int, chance: int | None, scale: float) -> Iterator[Row]:
    """Lines of h k l and, at the places ``phase`` and ``chance`` of their words, what is wanted; "?": no phase."""
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.split(comment)[0].split()
        if words and (len(words) <= phase or words[phase] != "?"):
            yield _row(words, phase, chance, scale, where, number)


def _row(words: Sequence[str], phase: int, chance: int | None, scale: float, where: str, number: int) -> Row:
    try:
        h, k, l = (int(x) for x in words[:3])  # noqa: E741
        probability = float("nan") if chance is None else float(words[chance])
        value = scale * float(words[phase])
    except (ValueError, IndexError):
        raise UserError(f"line {number} is no phase seed: {' '.join(words)[:40]!r}", where, KNOWN) from None
    if not np.isfinite(value) or (chance is not None and not 0 <= probability <= 1):
        raise UserError(f"line {number} has no sound phase and probability", where, KNOWN)
    return h, k, l, value, probability
