"""SHELX reflection lists (.hkl) and the instructions (.ins, .res) that say what they mean.

The list is FORTRAN, ``3I4,2F8,I4``: fields may touch ("  10 -10  1225936.35"), so a reading by blanks is
right only if it is right for every line. Other programs write wider fields. The list ends at indices 0 0 0,
at a blank line or with the file; anything may follow. Nothing in it says whether it holds F^2 (HKLF 4) or F
(HKLF 3).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise

import gemmi
import numpy as np
from numpy.typing import NDArray

from ml_phaser.errors import UserError
from ml_phaser.exchange import columns as col
from ml_phaser.exchange.columns import Candidate, Table
from ml_phaser.exchange.spacegroup import checked_cell, from_shelx

_INTENSITY = Candidate(("I",), ("SIGI",), True)
_AMPLITUDE = Candidate(("F",), ("SIGF",), False)


@dataclass(frozen=True)
class Instructions:
    """What an .ins or .res file says about the data; None where it says nothing.

    ``hklf`` is the code of HKLF (3: F, 4: F^2, 5: F^2 of a twin), ``matrix`` its transformation of the
    indices.
    """

    cell: gemmi.UnitCell | None = None
    spacegroup: gemmi.SpaceGroup | None = None
    hklf: int | None = None
    matrix: NDArray[np.float64] | None = None


def looks_like_instructions(text: str) -> bool:
    """True for the text of an .ins or .res file."""
    head = text[:4000].upper()
    return bool(re.search(r"^CELL\s+[\d.]+(\s+[\d.]+){6}", head, re.MULTILINE)) and "_CELL" not in head


def parse_instructions(text: str, where: str) -> Instructions:
    """Read CELL, LATT, SYMM and HKLF of an .ins or .res text."""
    lines = re.sub(r"=[^\n]*\n\s+", " ", text.replace("\r", "")).split("\n")
    cell, latt, symm, hklf, matrix = None, 1, [], None, None
    for line in lines:
        words = line.split("!")[0].split()
        word = words[0].upper() if words else ""
        numbers = [float(w) for w in words[1:] if _is_number(w)]
        if word == "CELL" and len(numbers) >= 7:
            cell = checked_cell(numbers[1:7], where)
        elif word == "LATT" and numbers:
            latt = int(numbers[0])
        elif word == "SYMM":
            symm.append(line.strip()[4:])
        elif word == "HKLF" and numbers:
            hklf = abs(int(numbers[0]))
            if len(numbers) >= 11:
                matrix = np.array(numbers[2:11]).reshape(3, 3)
    if matrix is not None and np.allclose(matrix, np.eye(3)):
        matrix = None
    return Instructions(cell, from_shelx(latt, symm) if cell is not None else None, hklf, matrix)


def looks_like_hkl(text: str) -> bool:
    """True where the first lines read as reflections in one of the known layouts."""
    lines = [x for x in text[:20000].replace("\r", "\n").split("\n") if x.strip()][:20]
    lines = lines[_first_row(lines) :][:10]
    return len(lines) >= 3 and any(all(parse(x) is not None for x in lines[:3]) for parse in _LAYOUTS)


def read_hkl(text: str, where: str, said: Instructions, *, form: str = "SHELX hkl") -> Table:
    """Reflection list with what the instructions say about it.

    Without HKLF both readings, F^2 ("I") and F, are offered as candidates: ``read.py`` asks the Wilson
    statistics.

    Raises
    ------
    UserError : a line that is no reflection
    """
    rows, layout = _rows(text, where)
    notes: list[str] = []
    if layout is not _shelx8:
        notes.append(
            "The fields of the reflection list are not SHELX's (3I4,2F8): it is read by its blanks."
            if layout is _by_blanks
            else "The fields of the reflection list are 3I4,2F12 instead of SHELX's 3I4,2F8."
        )
    hkl = rows[:, :3]
    if said.matrix is not None:
        hkl = hkl @ said.matrix.T
        notes.append("Indices are transformed by the matrix of HKLF.")
    whole = np.all(np.abs(hkl - np.rint(hkl)) < 0.05, axis=1)
    alone = _single_component(rows[:, 5]) if said.hklf == 5 else np.ones(len(rows), dtype=bool)
    if not alone.all():
        notes.append(f"{(~alone).sum()} reflections of several twin components (HKLF 5) are left out.")
    keep = whole & alone
    value, sigma = rows[keep, 3], rows[keep, 4]
    columns: dict[str, NDArray[np.float64]] = {}
    roles: dict[str, str] = {}
    candidates = tuple(
        c for c, codes in ((_INTENSITY, (None, 4, 5, 2, 1)), (_AMPLITUDE, (None, 3))) if said.hklf in codes
    )
    for c in (_INTENSITY, _AMPLITUDE):
        columns |= {c.value[0]: value, c.sigma[0]: sigma}
        roles |= {c.value[0]: col.INTENSITY if c.intensity else col.AMPLITUDE, c.sigma[0]: col.SIGMA}
    return Table(
        where=where,
        format=form,
        hkl=np.rint(hkl[keep]).astype(np.int32),
        columns=columns,
        roles=roles,
        candidates=candidates or (_INTENSITY,),
        cell=said.cell,
        spacegroup=said.spacegroup,
        notes=tuple(notes),
    )


def _single_component(batch: NDArray[np.float64]) -> NDArray[np.bool_]:
    """HKLF 5: reflections of the first component that overlap no other (all but the last member are
    negative).
    """
    continued = np.concatenate([[False], batch[:-1] < 0])
    return (batch == 1) & ~continued


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _by_blanks(line: str) -> tuple[float, ...] | None:
    words = line.split()
    if len(words) < 4 or not all(re.fullmatch(r"[-+]?\d+", w) for w in words[:3]):
        return None
    return _numbers(words[:3], words[3:6])


def _fixed(width: int, line: str) -> tuple[float, ...] | None:
    """Read 3I4,2F<width>,I4."""
    indices = [line[i : i + 4].strip() for i in (0, 4, 8)]
    if not all(re.fullmatch(r"[-+]?\d+", w) for w in indices):
        return None
    ends = 12, 12 + width, 12 + 2 * width, 16 + 2 * width
    fields = [line[a:b].strip() for a, b in pairwise(ends)]
    if not fields[0] or any(" " in f for f in fields):
        return None
    return _numbers(indices, fields)


def _numbers(indices: list[str], fields: list[str]) -> tuple[float, ...] | None:
    """h, k, l, value, sigma (0 if absent), batch (1 if absent)."""
    padded = [*fields, "", ""][:3]
    try:
        value, sigma = float(padded[0]), float(padded[1] or 0)
    except ValueError:
        return None
    batch = float(padded[2]) if _is_number(padded[2]) else 1.0
    h, k, m = (float(i) for i in indices)
    return h, k, m, value, sigma, batch


def _shelx8(line: str) -> tuple[float, ...] | None:
    return _fixed(8, line)


def _wide12(line: str) -> tuple[float, ...] | None:
    return _fixed(12, line)


_LAYOUTS = (_by_blanks, _shelx8, _wide12)


def _first_row(lines: list[str]) -> int:
    """Comments and a title may come before the reflections."""
    for i, line in enumerate(lines[:20]):
        if any(parse(line) is not None for parse in _LAYOUTS):
            return i
    return 0


def _rows(text: str, where: str) -> tuple[NDArray[np.float64], object]:
    """All reflections, (n, 6): h, k, l, value, sigma, batch; and the layout that reads every one of them."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    while lines and not lines[0].strip():
        lines.pop(0)
    start = _first_row(lines)
    best: tuple[int, list[tuple[float, ...]], object] = (-1, [], _shelx8)
    for layout in _LAYOUTS:
        rows, bad = _read_with(layout, lines[start:])
        if bad is None and rows:
            # by blanks and by columns agree on proper SHELX files: call those SHELX
            same = layout is _by_blanks and _read_with(_shelx8, lines[start:]) == (rows, None)
            return np.array(rows), _shelx8 if same else layout
        if len(rows) > best[0]:
            best = (len(rows), rows, bad)
    number = start + int(best[2] if isinstance(best[2], int) else 0)
    line = lines[number].strip() if number < len(lines) else ""
    raise UserError(
        f"line {number + 1} is not a reflection: {line[:40]!r}",
        where,
        "the columns h k l F^2 sigma in the SHELX format 3I4,2F8.2",
    )


def _read_with(layout: object, lines: list[str]) -> tuple[list[tuple[float, ...]], int | None]:
    """Rows up to the terminator; and the number of the first line that does not fit, None if all fit."""
    rows: list[tuple[float, ...]] = []
    for i, line in enumerate(lines):
        if not line.strip():
            break
        row = layout(line)  # type: ignore[operator]
        if row is None:
            return rows, i
        if row[:3] == (0, 0, 0):
            if len(rows) * 2 < len(lines) - i and i < 5:  # a direct beam listed first ends nothing
                continue
            break
        rows.append(row)
    return rows, None
