"""Phased structure factors out of files: MTZ, and CIF with calculated phases."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import gemmi
import numpy as np
from numpy.typing import NDArray

from ml_phaser.crystal.symmetry import asu_moves, look_up
from ml_phaser.errors import UserError
from ml_phaser.exchange.model import file_kind, read_cif
from ml_phaser.exchange.spacegroup import check_same_crystal

# (amplitude, phase) labels of files with phases, by preference
PHASE_COLUMNS = (
    ("FWT", "PHWT"),
    ("2FOFCWT", "PH2FOFCWT"),
    ("2FOFCWT", "PHI2FOFCWT"),
    ("FC_ALL", "PHIC_ALL"),
    ("F-model", "PHIF-model"),
    ("FMODEL", "PHIFMODEL"),
    ("FC", "PHIC"),
    ("FC", "PHIFC"),
    ("FCALC", "PHICALC"),
    ("F_calc", "phase_calc"),
    ("F_calc_au", "phase_calc"),
)

Complexes = NDArray[np.complex128]
Indices = NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class Reference:
    """Complex structure factors on the reflections asked for (n,), NaN where the file has none, and their
    story.
    """

    f: Complexes
    taken: str


@dataclass(frozen=True, eq=False)
class Prediction:
    """Phased structure factors of a result file, in gemmi's asymmetric unit.

    ``hkl`` (n, 3), ``f`` (n,) complex, ``f_obs`` (n,) measured amplitudes or None, ``taken`` names the
    columns.
    """

    hkl: Indices
    f: Complexes
    cell: gemmi.UnitCell
    spacegroup: gemmi.SpaceGroup
    f_obs: NDArray[np.float64] | None
    taken: str


def _number(text: str) -> float:
    return float(gemmi.cif.as_number(text))


def to_asu(hkl: Indices, f: Complexes, spacegroup: gemmi.SpaceGroup) -> tuple[Indices, Complexes]:
    """Move reflections into gemmi's asymmetric unit, phases with them; equivalents are averaged."""
    moved, shift, friedel = asu_moves(hkl, spacegroup)
    values = f * np.exp(1j * shift)
    values = np.where(friedel, np.conj(values), values)
    unique, where = np.unique(moved, axis=0, return_inverse=True)
    where = where.reshape(-1)
    total = np.bincount(where, values.real, len(unique)) + 1j * np.bincount(where, values.imag, len(unique))
    mean = (total / np.bincount(where, minlength=len(unique))).astype(np.complex128)
    return unique.astype(np.int32), mean


def _read_mtz(path: Path) -> gemmi.Mtz:
    try:
        mtz = gemmi.read_mtz_file(str(path))
    except (OSError, RuntimeError, ValueError) as error:
        reason = "no such file" if not path.exists() else str(error).splitlines()[0]
        raise UserError(f"cannot be read as MTZ ({reason})", str(path)) from None
    if mtz.spacegroup is None or mtz.nreflections == 0 or not mtz.cell.is_crystal():
        raise UserError("holds no reflections, cell or known space group", str(path))
    mtz.ensure_asu()
    return mtz


def _pick_labels(
    path: Path, found: list[str], pairs: list[tuple[str, str]], asked: tuple[str, str] | None, option: str
) -> tuple[str, str]:
    """(amplitude, phase) labels: those asked for, else the first preferred pair, else the sole pair of the
    file.
    """
    if asked is not None:
        missing = [label for label in asked if label not in found]
        if missing:
            raise UserError(f"has no column {missing[0]}, only {' '.join(found)}", str(path), f"another {option}")
        return asked
    for pair in PHASE_COLUMNS:
        if pair[0] in found and pair[1] in found:
            return pair
    if len(pairs) == 1:
        return pairs[0]
    hint = f"{option} {pairs[0][0]},{pairs[0][1]}" if pairs else "a file with phases"
    raise UserError(f"no columns with phases recognised among {' '.join(found)}", str(path), hint)


def _mtz_coefficients(
    path: Path, labels: tuple[str, str] | None, option: str
) -> tuple[gemmi.Mtz, Indices, Complexes, tuple[str, str]]:
    mtz = _read_mtz(path)
    types = [(c.label, c.type) for c in mtz.columns]
    adjacent = [(a, b) for (a, s), (b, t) in pairwise(types) if (s, t) == ("F", "P")]
    pair = _pick_labels(path, [label for label, _ in types], adjacent, labels, option)
    kinds = dict(types)
    if kinds[pair[0]] not in "FER" or kinds[pair[1]] != "P":
        raise UserError(
            f"{pair[0]},{pair[1]} have types {kinds[pair[0]]},{kinds[pair[1]]}, not amplitude and phase",
            str(path),
            f"another {option}",
        )
    amplitude, phase = (np.asarray(mtz.column_with_label(x).array, dtype=np.float64) for x in pair)
    f = np.asarray(amplitude * np.exp(1j * np.deg2rad(phase)), dtype=np.complex128)
    return mtz, np.asarray(mtz.make_miller_array(), dtype=np.int32), f, pair


def _cif_coefficients(
    path: Path, labels: tuple[str, str] | None, option: str
) -> tuple[gemmi.cif.Block, Indices, Complexes, tuple[str, str]]:
    for block in read_cif(path):
        for prefix in ("_refln_", "_refln."):
            index = block.find(prefix, ["index_h", "index_k", "index_l"])
            if not len(index):
                continue
            hkl = np.array([[int(x) for x in row] for row in index], dtype=np.int32)
            found = [str(t)[len(prefix) :] for t in block.find_loop(prefix + "index_h").get_loop().tags]
            real = labels is None and {"A_calc", "B_calc"} <= set(found)
            pair = ("A_calc", "B_calc") if real else _pick_labels(path, found, [], labels, option)
            first, second = (np.array([_number(x) for x in block.find_values(prefix + label)]) for label in pair)
            cartesian = pair == ("A_calc", "B_calc")
            f = first + 1j * second if cartesian else first * np.exp(1j * np.deg2rad(second))
            return block, hkl, f, pair
    raise UserError("holds no reflections", str(path), "an MTZ or a CIF with calculated phases")


def _cif_group(block: gemmi.cif.Block) -> tuple[gemmi.UnitCell | None, gemmi.SpaceGroup | None]:
    """Cell and space group of a reflection file, None where it does not state them."""
    names = ("length_a", "length_b", "length_c", "angle_alpha", "angle_beta", "angle_gamma")
    for prefix in ("_cell_", "_cell."):
        numbers = [_number(block.find_value(prefix + name) or "?") for name in names]
        if np.isfinite(numbers).all():
            break
    else:
        return None, None
    group = gemmi.make_small_structure_from_block(block).spacegroup
    name = block.find_value("_symmetry.space_group_name_H-M")
    if group is None and name:
        group = gemmi.find_spacegroup_by_name(gemmi.cif.as_string(name), numbers[3], numbers[5])
    operators = block.find_values("_symmetry_equiv_pos_as_xyz") or block.find_values("_space_group_symop_operation_xyz")
    if group is None and len(operators):
        group = gemmi.find_spacegroup_by_ops(gemmi.GroupOps([gemmi.Op(gemmi.cif.as_string(x)) for x in operators]))
    return gemmi.UnitCell(*numbers), group


def reference_phases(
    path: Path | str,
    hkl: Indices,
    cell: gemmi.UnitCell,
    spacegroup: gemmi.SpaceGroup,
    *,
    labels: tuple[str, str] | None = None,
) -> Reference:
    """Phased structure factors of an MTZ, or of a CIF with F_calc and phases or A_calc and B_calc (.fcf,
    .hkl, .cif).

    ``labels`` names the amplitude and phase columns; otherwise the first of PHASE_COLUMNS present is taken
    and named. hkl (n, 3) must be in gemmi's asymmetric unit. Values missing from the file are NaN. Raises
    UserError for files of other crystals, or without phases.
    """
    path = Path(path)
    if file_kind(path) == ".mtz":
        mtz, have, f, pair = _mtz_coefficients(path, labels, "LABREF")
        check_same_crystal(path, mtz.cell, mtz.spacegroup, cell, spacegroup)
    else:
        block, have, f, pair = _cif_coefficients(path, labels, "LABREF")
        found_cell, found_group = _cif_group(block)
        if found_cell is not None and found_group is not None:
            check_same_crystal(path, found_cell, found_group, cell, spacegroup)
    ok = np.isfinite(f)
    have, f = to_asu(have[ok], f[ok], spacegroup)
    return Reference(look_up(have, f, np.asarray(hkl, dtype=np.int32)), f"columns {pair[0]}, {pair[1]}")


def read_prediction(path: Path | str, labels: tuple[str, str] | None = ("FWT", "PHWT")) -> Prediction:
    """Map coefficients of a result (MTZ), and the measured amplitudes that stand beside them, if any.

    The measured ones are the first F column followed by its sigma (types F, Q), else the first intensity
    column (types J, Q; negative ones give zero).
    """
    path = Path(path)
    mtz, hkl, f, pair = _mtz_coefficients(path, labels, "LABIN")
    f_obs, name = None, ""
    columns = list(mtz.columns)
    for wanted in ("F", "J"):
        first = [a for a, b in pairwise(columns) if a.type == wanted and b.type == "Q"]
        if first:
            values = np.asarray(first[0].array, dtype=np.float64)
            f_obs = values if wanted == "F" else np.sqrt(np.maximum(values, 0.0))
            name = f", measured {first[0].label}"
            break
    ok = np.isfinite(f)
    if not ok.any():
        raise UserError(f"columns {pair[0]}, {pair[1]} hold no values", str(path))
    return Prediction(
        hkl[ok],
        f[ok],
        mtz.cell,
        mtz.spacegroup,
        None if f_obs is None else f_obs[ok],
        f"columns {pair[0]}, {pair[1]}{name}",
    )


def holds_phases(path: Path | str) -> bool:
    """True for a file to take phases from (MTZ, .fcf, .hkl), False for a model."""
    path = Path(path)
    if not path.is_file():
        raise UserError("no such file", str(path))
    return file_kind(path) in (".mtz", ".fcf", ".hkl")
