"""A user's phases: columns of an MTZ or mmCIF, or a SHELXE list, brought to the data's reflections.

Any asymmetric unit, Friedel mates and any setting of the space group are moved to that of the data, with the phase
shifts F(hR) = F(h) exp(-2 pi i h.t) that the translations ask for. What symmetry forbids is taken away: absences, and
of restricted phases what does not tell their two values apart. Columns are never guessed among several.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import gemmi
import numpy as np
from numpy.typing import NDArray

from ml_phaser.crystal.phase_distributions import PhaseDistributions, hendrickson_lattman, restricted
from ml_phaser.crystal.reflections import Amplitudes
from ml_phaser.crystal.symmetry import asu_moves, expand, look_up
from ml_phaser.errors import UserError
from ml_phaser.exchange import cif
from ml_phaser.exchange.mtz import parse as parse_mtz
from ml_phaser.exchange.read import load
from ml_phaser.exchange.spacegroup import CELL_TOLERANCE, check_same_crystal

OPTION = "labphase"
PLAIN_FOM = 0.7  # of phases that come without figures of merit
FEWEST = 20  # reflections with phases, as many as the data must have themselves
OFF_AXIS = 0.5  # |cos| of the angle to the nearest permitted value, below which a restricted phase is wrong
OFF_SHARE = 0.2  # of the restricted phases; more are no slips
_CIF_TYPES = {"phase_meas": "P", "phase_calc": "P", "fom": "W", "pdbx_PHWT": "P", "pdbx_FWT": "F"}
_CIF_TYPES |= {f"pdbx_HL_{x}_iso": "A" for x in "ABCD"}

Indices = NDArray[np.int32]
Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class UserPhases:
    """What a user knows of the phases: ``known`` on the reflections of the data; ``columns`` taken; sentences."""

    known: PhaseDistributions
    columns: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class PhaseFile:
    """A file of phases: hkl (n, 3), columns by label with their MTZ types in order; the crystal, None if not said."""

    where: str
    hkl: Indices
    columns: dict[str, Floats]
    types: dict[str, str]
    cell: gemmi.UnitCell | None = None
    spacegroup: gemmi.SpaceGroup | None = None


def read_phases(path: Path | str, data: Amplitudes, labels: str | None = None) -> UserPhases:
    """A user's phases on the reflections of ``data``.

    Parameters
    ----------
    path : MTZ (columns of types P and W, or four of type A), mmCIF (phase_meas or phase_calc with fom, pdbx_HL_A_iso)
        or a list h k l F fom phi [sigF] as SHELXE writes it (.phs, .phi); also gzipped
    labels : columns, e.g. "PHIB=PHI FOM=FOM", "HLA=A HLB=B HLC=C HLD=D" or just "PHI,FOM" [the only ones; the
        Hendrickson-Lattman coefficients where both are there]

    Raises
    ------
    UserError : no phases, several and no word on which, another crystal, no reflections in common
    """
    path = Path(path)
    file = read_file(path)
    chosen = _from_labels(file, labels) if labels and labels.strip() else _choose(file)
    hl, said = _coefficients(file, chosen, data)
    file, moved = same_setting(file, data)
    finite = np.isfinite(hl).all(axis=1) & np.any(hl != 0, axis=1)
    if not finite.any():
        raise UserError(f"columns {', '.join(chosen)} hold no phase with any weight", file.where, f"another {OPTION}")
    hkl, hl = to_asu(file.hkl[finite], hl[finite], moved[finite], data.spacegroup)
    found = np.stack([look_up(hkl, x.astype(np.complex128), data.hkl).real for x in hl.T], axis=1)
    found = np.nan_to_num(found)
    turn = expand(data.hkl, data.spacegroup).turn
    known = PhaseDistributions(restricted(found, turn), turn)
    count = int(known.given.sum())
    if count < FEWEST:
        raise UserError(
            f"only {count} of the reflections of the data have phases", file.where, "phases of the same crystal"
        )
    notes = (f"Phases from {file.where}, columns {', '.join(chosen)}: {count} of {len(data)} reflections{said}.",)
    return UserPhases(known, chosen, (*notes, *_remarks(found, known, data, file)))


def _remarks(found: Floats, known: PhaseDistributions, data: Amplitudes, file: PhaseFile) -> list[str]:
    """What a careful reader should know of the phases taken."""
    notes = []
    centric = (known.turn != 0) & np.any(found[:, :2] != 0, axis=1)
    length = np.hypot(found[centric, 0], found[centric, 1])
    off = np.hypot(known.hl[centric, 0], known.hl[centric, 1]) < OFF_AXIS * length
    if off.sum() > OFF_SHARE * len(off):
        notes.append(
            f"{off.sum()} of {len(off)} phases that symmetry restricts are far from their permitted values: "
            "is their origin one of the space group?"
        )
    if file.cell is None:
        notes.append("The list of phases gives no cell and no space group: those of the data are taken for its own.")
    d_phased = float(data.d[known.given].min())
    if d_phased > data.d_min * 1.02:
        notes.append(
            f"The phases end at {d_phased:.2f} A; the data go on to {data.d_min:.2f} A, where phases are free."
        )
    return notes


# ------------------------------------------------------------------------------------------- files


def read_file(path: Path) -> PhaseFile:
    """The columns with phases of an MTZ, an mmCIF or a SHELXE list. Raises UserError."""
    data = load(path)
    where = path.name
    if data[:4] == b"MTZ ":
        return _read_mtz(data, where)
    text = data.decode("utf-8-sig", errors="replace")
    if cif.looks_like_cif(text):
        return _read_cif(text, where)
    return read_list(text, where)


def _read_mtz(data: bytes, where: str) -> PhaseFile:
    mtz = parse_mtz(data, where)
    if len(mtz.batches):
        raise UserError("this MTZ is unmerged and holds no phases", where, "a merged file")
    if len(mtz.columns) < 4 or "".join(c.type for c in mtz.columns[:3]) != "HHH":
        raise UserError("this MTZ has no columns H, K and L", where, "another file")
    table = np.array(mtz.array, dtype=np.float64)
    if not np.isnan(mtz.valm):
        table[:, 3:][table[:, 3:] == mtz.valm] = np.nan
    later = {c.label: table[:, i] for i, c in enumerate(mtz.columns) if i > 2}
    types = {c.label: c.type for i, c in enumerate(mtz.columns) if i > 2}
    cell = next((mtz.get_cell(c.dataset_id) for c in mtz.columns if c.type in "PA"), mtz.cell)
    if mtz.spacegroup is None or not cell.is_crystal():
        raise UserError("holds no cell or no known space group", where, "a file with both")
    return PhaseFile(where, np.rint(table[:, :3]).astype(np.int32), later, types, cell, mtz.spacegroup)


def _read_cif(text: str, where: str) -> PhaseFile:
    for block in gemmi.as_refln_blocks(cif.parse(text, where)):
        labels = [x for x in block.column_labels() if x in _CIF_TYPES]
        if not any(_CIF_TYPES[x] in "PA" for x in labels):
            continue
        if block.spacegroup is None or not block.cell.is_crystal():
            raise UserError("holds no cell or no known space group", where, "a file with both")
        columns = {x: np.asarray(block.make_float_array(x), dtype=np.float64) for x in labels}
        hkl = np.asarray(block.make_miller_array(), dtype=np.int32)
        return PhaseFile(where, hkl, columns, {x: _CIF_TYPES[x] for x in labels}, block.cell, block.spacegroup)
    raise UserError("this CIF holds no phases (_refln.phase_meas, _refln.pdbx_HL_A_iso)", where, "another file")


def read_list(text: str, where: str) -> PhaseFile:
    """h k l F fom phi [sigF], by blanks or in SHELXE's fields (3I4,F9.2,F8.4,F8.1,F8.2)."""
    rows = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        row = _numbers(line.split()) or _numbers([line[a:b] for a, b in pairwise((0, 4, 8, 12, 21, 29, 37))])
        if row is None:
            raise UserError(
                f"line {number} is not h k l F fom phi", where, "phasein with an MTZ, a mmCIF or a SHELXE .phs file"
            )
        if row[:3] == [0.0, 0.0, 0.0]:
            break
        rows.append(row)
    if not rows:
        raise UserError("holds no reflections", where, "phasein with an MTZ, a mmCIF or a SHELXE .phs file")
    table = np.array(rows)
    return PhaseFile(
        where, table[:, :3].astype(np.int32), {"FOM": table[:, 4], "PHI": table[:, 5]}, {"PHI": "P", "FOM": "W"}
    )


def _numbers(words: Sequence[str]) -> list[float] | None:
    try:
        row = [float(x) for x in words[:6]]
    except ValueError:
        return None
    whole = len(row) == 6 and all(x == int(x) for x in row[:3]) and np.isfinite(row).all()
    return row if whole and 0 <= row[4] <= 1.0001 else None


# ----------------------------------------------------------------------------------------- columns


def _choose(file: PhaseFile) -> tuple[str, ...]:
    """The only coefficients, else the only phase with its figure of merit; UserError where there are several."""
    quartets, phases = _quartets(file), _phases(file)
    if len(quartets) == 1:
        return quartets[0]
    if not quartets and len(phases) == 1:
        return phases[0]
    options = "; ".join(f"{OPTION} {_spelled(x)}" for x in (*quartets, *phases))
    if not options:
        raise UserError(
            f"no phases among the columns {', '.join(file.types) or '(none)'}",
            file.where,
            "a file with columns of type P, or four of type A",
        )
    raise UserError("several sets of phases and no word on which to use", file.where, f"one of: {options}")


def _quartets(file: PhaseFile) -> list[tuple[str, ...]]:
    found = [x for x, kind in file.types.items() if kind == "A"]
    return [tuple(found[i : i + 4]) for i in range(0, len(found) - 3, 4)]


def _phases(file: PhaseFile) -> list[tuple[str, ...]]:
    """Phases with the figures of merit that follow them, or that are the file's only ones. Map coefficients (a phase
    after its amplitude) only where there is nothing else."""
    labels = list(file.types)
    every = [x for x in labels if file.types[x] == "P"]
    before = {b: a for a, b in pairwise(labels)}
    plain = [x for x in every if file.types.get(before.get(x, ""), "") not in ("F", "E", "G", "D")]
    merits = [x for x in labels if file.types[x] == "W"]
    out: list[tuple[str, ...]] = []
    for phase in plain or every:
        follows = next((b for a, b in pairwise(labels) if a == phase and file.types[b] == "W"), None)
        merit = follows or (merits[0] if len(merits) == 1 and len(plain or every) == 1 else None)
        out.append((phase, merit) if merit else (phase,))
    return out


def _spelled(labels: Sequence[str]) -> str:
    keys = ("HLA", "HLB", "HLC", "HLD") if len(labels) == 4 else ("PHIB", "FOM")
    return " ".join(f"{key}={label}" for key, label in zip(keys, labels, strict=False))


def _from_labels(file: PhaseFile, text: str) -> tuple[str, ...]:
    """What the user typed, checked against the file: keys do not matter beyond their order, types do."""
    words = [w for w in re.split(r"[\s,]+", re.sub(r"\s*=\s*", "=", text.strip())) if w]
    pairs = [(w.split("=", 1)[0].upper(), w.split("=", 1)[1]) if "=" in w else ("", w) for w in words]
    hint = f"{OPTION} PHIB=PHI FOM=FOM, or HLA=A HLB=B HLC=C HLD=D"
    for key, label in pairs:
        if key and not re.fullmatch(r"HL[ABCD]|PHI\w*|FOM\w*|W", key):
            raise UserError(f"{OPTION} knows no {key}=", file.where, hint)
        if label not in file.types:
            raise UserError(f"no column {label}; there are {', '.join(file.types)}", file.where, hint)
    if all(key for key, _ in pairs):
        pairs.sort(key=lambda pair: "HLA HLB HLC HLD PHI FOM W".find(pair[0][:3]))
    chosen = tuple(label for _, label in pairs)
    kinds = "".join(file.types[x] for x in chosen)
    if kinds not in ("AAAA", "P", "PW"):
        said = ", ".join(f"{x} ({file.types[x]})" for x in chosen)
        raise UserError(f"{said} are not a phase (type P) with its FOM (W), nor four of type A", file.where, hint)
    return chosen


def _coefficients(file: PhaseFile, chosen: tuple[str, ...], data: Amplitudes) -> tuple[Floats, str]:
    """(n, 4) Hendrickson-Lattman coefficients on ``file.hkl``, NaN where missing, and what to say about them."""
    if len(chosen) == 4:
        return np.stack([file.columns[x] for x in chosen], axis=1), ", as Hendrickson-Lattman coefficients"
    phase = np.deg2rad(file.columns[chosen[0]])
    if len(chosen) == 2:
        fom, said = file.columns[chosen[1]], ""
        good = fom[np.isfinite(fom)]
        if len(good) and (good.min() < -0.001 or good.max() > 1.001):
            raise UserError(
                f"column {chosen[1]} is no figure of merit: {good.min():g} to {good.max():g}", file.where,
                f"another {OPTION}",
            )  # fmt: skip
    else:
        fom, said = np.full(len(phase), PLAIN_FOM), f", each given the figure of merit {PLAIN_FOM}, as there is none"
    group = file.spacegroup or data.spacegroup
    centric = np.asarray(group.operations().centric_flag_array(file.hkl), dtype=bool)
    hl = hendrickson_lattman(np.nan_to_num(phase), np.nan_to_num(fom), centric)
    hl[~(np.isfinite(phase) & np.isfinite(fom))] = np.nan
    return hl, said


# ---------------------------------------------------------------------------------------- symmetry


def same_setting(file: PhaseFile, data: Amplitudes) -> tuple[PhaseFile, Floats]:
    """The file with its indices in the setting of the data, and the phase shift (n,) in radians that goes with it.

    Raises UserError for another cell or group.
    """
    still = np.zeros(len(file.hkl))
    if file.cell is None or file.spacegroup is None:
        return file, still
    theirs, ours = file.spacegroup, data.spacegroup
    if theirs.number == ours.number and theirs.xhm() != ours.xhm():
        change = ours.basisop.inverse() * theirs.basisop
        for op in (change, change.inverse(), theirs.basisop.inverse() * ours.basisop):
            groups = theirs.operations()
            groups.change_basis_forward(op)
            cell = file.cell.changed_basis_forward(op, False)
            same = {o.triplet() for o in groups} == {o.triplet() for o in ours.operations()}
            if same and cell.is_similar(data.cell, *CELL_TOLERANCE):
                hkl, shift = _changed(file.hkl, op)
                return replace(file, hkl=hkl, cell=cell, spacegroup=ours), shift
    check_same_crystal(file.where, file.cell, theirs, data.cell, ours)
    return file, still


def _changed(hkl: Indices, op: gemmi.Op) -> tuple[Indices, Floats]:
    """Indices (n, 3) and phase shifts (n,) after x' = R x + t: h' = h R^-1, F'(h') = F(h) exp(2 pi i h'.t)."""
    rot = np.array(op.rot, dtype=np.float64) / op.DEN
    new = np.rint(hkl @ np.linalg.inv(rot)).astype(np.int32)
    return new, 2 * np.pi * (new @ (np.array(op.tran) / op.DEN))


def to_asu(
    hkl: Indices, hl: Floats, shift: Floats, spacegroup: gemmi.SpaceGroup
) -> tuple[Indices, Floats]:  # fmt: skip
    """Unique reflections in gemmi's asymmetric unit and their coefficients; those of equivalents are averaged.

    A + iB turns with the phase, C + iD twice as fast (Hendrickson & Lattman 1970).
    """
    allowed = ~np.asarray(spacegroup.operations().systematic_absences(hkl), dtype=bool)
    hkl, hl, shift = hkl[allowed], hl[allowed], shift[allowed]
    moved, more, friedel = asu_moves(hkl, spacegroup)
    turn = np.exp(1j * (shift + more))
    one, two = (hl[:, 0] + 1j * hl[:, 1]) * turn, (hl[:, 2] + 1j * hl[:, 3]) * turn**2
    one, two = np.where(friedel, np.conj(one), one), np.where(friedel, np.conj(two), two)
    unique, where = np.unique(moved, axis=0, return_inverse=True)
    count = np.bincount(where.reshape(-1), minlength=len(unique))
    columns = (one.real, one.imag, two.real, two.imag)
    mean = [np.bincount(where.reshape(-1), x, len(unique)) / count for x in columns]
    return unique.astype(np.int32), np.stack(mean, axis=1)
