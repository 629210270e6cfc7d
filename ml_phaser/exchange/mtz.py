"""MTZ files: the header through gemmi, the columns through reciprocalspaceship."""

from __future__ import annotations

import re
import tempfile
import warnings
from pathlib import Path

import gemmi
import numpy as np
from numpy.typing import NDArray

from ml_phaser.errors import UserError
from ml_phaser.exchange import columns as col
from ml_phaser.exchange.columns import Candidate, Table

_ROLES = {"F": col.AMPLITUDE, "J": col.INTENSITY, "G": col.AMPLITUDE_PAIR, "K": col.INTENSITY_PAIR}
_SIGMAS = {"F": "Q", "J": "Q", "G": "LQ", "K": "MQ"}


def read_mtz(data: bytes, where: str) -> Table:
    """Everything an MTZ holds that may matter for phasing.

    Parameters
    ----------
    data : the file, decompressed
    where : its name, for messages

    Raises
    ------
    UserError : damaged or truncated file, no H K L
    """
    mtz = parse(data, where)
    labels = [c.label for c in mtz.columns]
    position = {label: i for i, label in reversed(list(enumerate(labels)))}
    if any(position.get(x) is None for x in "HKL"):
        raise UserError("this MTZ has no columns H, K and L", where, "the file that came from data processing")
    values = _values(mtz, labels)
    index = np.column_stack([values[x] for x in "HKL"])
    if not np.all(np.abs(index) < 10_000):
        raise UserError("the MTZ file is damaged: indices are missing or huge", where, "copying the file again")
    hkl = np.rint(index).astype(np.int32)
    kept = [c for i, c in enumerate(mtz.columns) if c.type not in "HYB" and position[c.label] == i]
    after = [*list(mtz.columns)[1:], None]
    roles = {c.label: _role(c, after[position[c.label]], merged=not len(mtz.batches)) for c in kept}
    cells = {c.label: mtz.get_cell(c.dataset_id) for c in kept if roles[c.label] in col.MEASURED}
    return Table(
        where=where,
        format="MTZ",
        hkl=hkl,
        columns={label: values[label] for label in roles},
        roles=roles,
        candidates=tuple(_candidates(kept, roles)),
        cell=mtz.cell if mtz.cell.is_crystal() else None,
        spacegroup=mtz.spacegroup,
        cells={k: c for k, c in cells.items() if c.is_crystal()},
    )


def parse(data: bytes, where: str) -> gemmi.Mtz:
    """The MTZ in these bytes; UserError where it is damaged, truncated or empty."""
    if b"MTZENDOFHEADERS" not in data:
        raise UserError("the MTZ file is truncated", where, "copying the file again")
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "data.mtz"  # gemmi reads files only, and decides on compression by the name
        try:
            copy.write_bytes(data)
        except OSError as error:
            raise UserError(
                f"a temporary copy cannot be written ({error.strerror or error})", folder, "TMPDIR on another disk"
            ) from error
        try:
            mtz = gemmi.read_mtz_file(str(copy))
            _ = [(c.label, c.type) for c in mtz.columns]  # rubbish there is no text
        except (RuntimeError, ValueError, MemoryError, OverflowError) as error:
            raise UserError("the MTZ file is damaged or truncated", where, "copying the file again") from error
    if mtz.nreflections == 0 or len(mtz.columns) == 0 or np.asarray(mtz.array).size == 0:
        raise UserError("the MTZ file holds no reflections", where, "copying the file again")
    return mtz


def _values(mtz: gemmi.Mtz, labels: list[str]) -> dict[str, NDArray[np.float64]]:
    """Columns by label as float64, NaN where the file says missing; the first of several columns named
    alike.
    """
    with np.errstate(invalid="ignore"):
        array = np.asarray(mtz.array, dtype=np.float64)
    array[~(np.abs(array) < 1e30)] = np.nan  # missing, or rubbish of a damaged file
    values = {x: array[:, i] for i, x in reversed(list(enumerate(labels)))}
    if len(values) < len(labels) or labels[:3] != ["H", "K", "L"] or len(mtz.batches):
        return values  # reciprocalspaceship wants H, K, L first and unique labels
    import reciprocalspaceship as rs

    try:
        with warnings.catch_warnings():  # wavelengths that differ; missing values among integers
            warnings.simplefilter("ignore")
            dataset = rs.DataSet.from_gemmi(mtz).reset_index()
    except (ValueError, TypeError, RuntimeError, KeyError):
        return values  # it is stricter than the format: column types of its own list, dataset names that differ
    # its integer columns turn missing values into arbitrary numbers: only the others are taken from it
    real = [c.label for c in mtz.columns if c.type not in "HIYB"]
    found = {x: dataset[x].to_numpy(dtype=np.float64, na_value=np.nan) for x in real}
    return values | {x: np.where(np.isfinite(values[x]), y, np.nan) for x, y in found.items()}


def _role(column: gemmi.Mtz.Column, following: gemmi.Mtz.Column | None, *, merged: bool) -> str:
    label = column.label
    if column.type == "I":
        return col.FREE if col.is_free_flag(label) else col.OTHER
    if column.type in "QLM":
        return col.SIGMA
    if column.type not in _ROLES or (column.label == "IPR" and not merged):  # MOSFLM's second estimate
        return col.OTHER
    coefficients = column.type == "F" and following is not None and following.type == "P"
    return col.CALCULATED if coefficients or col.is_calculated(label) else _ROLES[column.type]


def _candidates(kept: list[gemmi.Mtz.Column], roles: dict[str, str]) -> list[Candidate]:
    types = {c.label: c.type for c in kept}
    labels = [c.label for c in kept]
    sigma: dict[str, str] = {}
    for kind, kinds in _SIGMAS.items():
        sigma |= col.pair_sigmas(
            labels,
            lambda x, kind=kind: types[x] == kind and roles[x] in col.MEASURED,  # type: ignore[misc]
            lambda x, kinds=kinds: types[x] in kinds,  # type: ignore[misc]
        )
    found = [
        Candidate((x,), (sigma[x],) if x in sigma else (), types[x] == "J")
        for x in labels
        if roles[x] in (col.AMPLITUDE, col.INTENSITY)
    ]
    for kind in "GK":
        members = [x for x in labels if types[x] == kind and roles[x] in col.MEASURED]
        for plus, minus in _friedel_pairs(members):
            both = (sigma[plus], sigma[minus]) if plus in sigma and minus in sigma else ()
            found.append(Candidate((plus, minus), both, kind == "K"))
    return found


def _friedel_pairs(members: list[str]) -> list[tuple[str, str]]:
    """(+) and (-) columns that belong together: by name, else neighbours."""
    pairs, rest = [], list(members)
    for plus in members:
        minus = re.sub(r"plus", "minus", plus, flags=re.IGNORECASE) if "+" not in plus else plus.replace("+", "-")
        match = [x for x in rest if x.lower() == minus.lower() and x != plus]
        if match and plus in rest:
            pairs.append((plus, match[0]))
            rest = [x for x in rest if x not in (plus, match[0])]
    pairs += [(rest[i], rest[i + 1]) for i in range(0, len(rest) - 1, 2)]
    return pairs
