"""Reading measured data: any of the known formats -> one ``Amplitudes``.

file -> table of columns -> the measurement -> merged unique reflections -> Amplitudes
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import gemmi
import numpy as np
from numpy.typing import NDArray

from ml_phaser.crystal.reflections import Amplitudes, Source
from ml_phaser.errors import UserError
from ml_phaser.exchange import cif, columns, merge, shelx
from ml_phaser.exchange.columns import Candidate, Table
from ml_phaser.exchange.merge import Merged
from ml_phaser.exchange.mtz import read_mtz
from ml_phaser.exchange.spacegroup import check_fit, checked_cell, parse_spacegroup

_FEWEST = 20
_NEGATIVE = -8.0  # an intensity below this many sigmas is no noise (beam stop, ice)
_WRONG_GROUP = 0.35  # R of strong equivalents; independent reflections give 0.4 or more
_KNOWN = "an MTZ, a structure-factor CIF, a CIF with an embedded SHELX hkl, or a SHELX hkl file"


@dataclass(frozen=True, eq=False)
class _Rows:
    """Measurements as they stand in the file: hkl (n, 3), value, sigma (n,), free (n,) or None."""

    hkl: NDArray[np.int32]
    value: NDArray[np.float64]
    sigma: NDArray[np.float64]
    free: NDArray[np.int32] | None

    def at(self, keep: NDArray[np.bool_]) -> _Rows:
        return _Rows(self.hkl[keep], self.value[keep], self.sigma[keep], None if self.free is None else self.free[keep])


def read_amplitudes(
    path: str | Path,
    *,
    labin: str | None = None,
    resolution: tuple[float, float] | None = None,
    spacegroup: str | None = None,
    cell: Sequence[float] | None = None,
) -> Amplitudes:
    """Measured, merged amplitudes of a crystal.

    Parameters
    ----------
    path : MTZ, structure-factor CIF, CIF with embedded SHELX hkl, or SHELX hkl (with .ins, .res or .cif of
        the same
        stem, or ``cell`` and ``spacegroup``); also gzipped. Told apart by what is in them.
    labin : columns to use, e.g. "FP=FTOXD3 SIGFP=SIGFTOXD3" or "F,SIGF"
    resolution : (d_max, d_min) in A, both kept
    spacegroup : overrides the file's; the data are merged again, or spread over a lower symmetry
    cell : a, b, c in A, alpha, beta, gamma in degrees; overrides the file's

    Raises
    ------
    UserError : whatever keeps the file from being measured data of one crystal in one group
    """
    table = _tabulate(Path(path), labin)
    return amplitudes_from(table, str(path), labin=labin, resolution=resolution, spacegroup=spacegroup, cell=cell)


def amplitudes_from(
    table: Table,
    path: str,
    *,
    labin: str | None = None,
    resolution: tuple[float, float] | None = None,
    spacegroup: str | None = None,
    cell: Sequence[float] | None = None,
) -> Amplitudes:
    """Measured, merged amplitudes out of the columns of a file, ``path``; as ``read_amplitudes``."""
    where = Path(path).name
    labin = _without_block(labin, table)
    notes = list(table.notes)
    unit_cell = _unit_cell(table, None if cell is None else checked_cell(cell, "cell"), notes)
    group, wanted = _groups(table, spacegroup, unit_cell, where)
    check_fit(unit_cell, wanted, where)
    chosen, said = _choose(table, labin, unit_cell, group)
    notes += said
    rows, free_note = _rows(table, chosen, group)
    notes += free_note
    rows = _clean(rows, chosen, where, notes)
    merged = _merge(rows, chosen, unit_cell, group, wanted, where, notes)
    merged, free = _finish(merged, rows, chosen, resolution, unit_cell, where, notes)
    return _amplitudes(
        merged,
        free,
        chosen,
        Source(path, table.format, chosen.labels, chosen.kind),
        unit_cell,
        wanted,
        tuple(notes),
    )


def load(path: Path) -> bytes:
    """Content of a file, decompressed where it is gzipped (by content); UserError where that fails."""
    hint = "the path of a file with measured data"
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise UserError("no such file", str(path), hint) from error
    except IsADirectoryError as error:
        raise UserError("this is a directory", str(path), hint) from error
    except OSError as error:
        raise UserError(
            f"cannot be read ({error.strerror or error})", str(path), "the permissions of the file"
        ) from error
    if data[:2] == b"\x1f\x8b":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise UserError(
                "the compressed file is damaged or truncated", path.name, "copying the file again"
            ) from error
    if not data.strip():
        raise UserError("the file is empty", path.name, hint)
    return data


def _tabulate(path: Path, labin: str | None) -> Table:
    """Find out what kind of file it is, and read it."""
    where = path.name
    data = load(path)
    if data[:4] == b"MTZ ":
        return read_mtz(data, where)
    if b"\x00" in data[:4096]:
        raise UserError("not a reflection file of a known format", where, _KNOWN)
    text = _decode(data)
    if cif.looks_like_cif(text):
        try:
            return cif.read_cif(text, where, labin)
        except UserError as error:
            beside = [f.name for f in _beside(path, (".fcf", ".hkl")) if f != path]
            if "holds no measured" in error.what and beside:
                raise UserError(error.what, where, f"the reflections beside it: {beside[0]}") from error
            raise
    if shelx.looks_like_instructions(text):
        raise UserError("these are SHELX instructions, not reflections", where, f"hklin {path.stem}.hkl")
    if shelx.looks_like_hkl(text):
        return shelx.read_hkl(text, where, _said_beside(path))
    if text.startswith("!FORMAT=XDS_ASCII"):
        raise UserError("XDS_ASCII is not read", where, "xdsconv to an MTZ or SHELX hkl file")
    raise UserError("not a reflection file of a known format", where, _KNOWN)


def _decode(data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def _beside(path: Path, endings: tuple[str, ...]) -> list[Path]:
    """Files of the same stem with one of the endings, in any case, in the order of the endings."""
    stem = path.name[:-3] if path.name.lower().endswith(".gz") else path.name
    stem = stem.rsplit(".", 1)[0].lower()
    try:
        names = sorted(p for p in path.resolve().parent.iterdir() if p.stem.lower() == stem)
    except OSError:
        return []
    return [p for ending in endings for p in names if p.suffix.lower() == ending]


def _said_beside(path: Path) -> shelx.Instructions:
    """Cell, group and HKLF from the .ins, .res or .cif of the same stem."""
    for other in _beside(path, (".ins", ".res")):
        said = shelx.parse_instructions(_decode(load(other)), other.name)
        if said.cell is not None:
            return said
    for other in _beside(path, (".cif",)):
        text = _decode(load(other))
        if cif.looks_like_cif(text):
            said = cif.read_instructions(cif.parse(text, other.name), other.name)
            if said.cell is not None:
                return said
    return shelx.Instructions()


def _without_block(labin: str | None, table: Table) -> str | None:
    """LABIN without the data block that may stand before a label of a CIF."""
    return cif.strip_block(labin) if labin and "CIF" in table.format else labin


def _unit_cell(table: Table, given: gemmi.UnitCell | None, notes: list[str]) -> gemmi.UnitCell:
    if given is not None:
        if table.cell is not None and not table.cell.approx(given, 1e-3):
            old = " ".join(f"{p:g}" for p in table.cell.parameters)
            notes.append(f"The cell given replaces that of the file ({old}).")
        return given
    datasets = {c.parameters: c for c in table.cells.values()}
    found = next(iter(datasets.values())) if len(datasets) == 1 else table.cell
    if found is None:
        raise UserError("the file gives no unit cell", table.where, "the option cell a,b,c,alpha,beta,gamma")
    return checked_cell(found.parameters, table.where)


def _groups(
    table: Table, asked: str | None, cell: gemmi.UnitCell, where: str
) -> tuple[gemmi.SpaceGroup, gemmi.SpaceGroup]:
    """Group to read the file in, and group asked for."""
    wanted = None if asked is None else parse_spacegroup(asked, cell, where="spacegroup")
    group = table.spacegroup or wanted
    if group is None or (wanted or group) is None:
        raise UserError("the file gives no space group that is known", where, "the option spacegroup, e.g. P212121")
    return group, wanted or group


def _choose(
    table: Table, labin: str | None, cell: gemmi.UnitCell, group: gemmi.SpaceGroup
) -> tuple[Candidate, tuple[str, ...]]:
    """The measurement; for SHELX lists of unknown kind, by Wilson statistics."""
    if "SHELX" not in table.format or (labin and labin.strip()):
        return columns.choose(table, labin)
    value, sigma = table.columns["I"], table.columns["SIGI"]
    keep = np.isfinite(value) & ((value != 0) | (sigma > 0)) & ~((value < 0) & (sigma < 0))
    keep &= np.any(table.hkl != 0, axis=1)
    if keep.sum() < _FEWEST:
        return table.candidates[0], ()
    merged = merge.merge(table.hkl[keep], value[keep], np.maximum(sigma[keep], 0), group)
    is_f, seen = merge.amplitude_like(merged, cell, group)
    names = {
        True: ("F", "amplitudes (HKLF 3)", "F=F SIGF=SIGF"),
        False: ("I", "intensities (HKLF 4)", "I=I SIGI=SIGI"),
    }
    if len(table.candidates) == 2:
        chosen = next(c for c in table.candidates if c.intensity != is_f)
        return chosen, (
            f"The values are read as {names[is_f][1]}: nothing says so, but their spread is {seen:.2f} "
            f"of that of intensities. To change: LABIN {names[not is_f][2]}.",
        )
    chosen = table.candidates[0]
    note = f"The values are {names[not chosen.intensity][1]}, as the instructions say."
    if is_f == chosen.intensity:
        note += f" Their spread looks more like {names[is_f][1]}. To change: LABIN {names[is_f][2]}."
    return chosen, (note,)


def _rows(table: Table, chosen: Candidate, group: gemmi.SpaceGroup) -> tuple[_Rows, list[str]]:
    """Values of the chosen columns; Friedel pairs as separate rows h and -h."""
    flags = [x for x, role in table.roles.items() if role == columns.FREE and x in table.columns]
    free, notes = table.free, []
    if free is None and flags:
        column = table.columns[flags[0]]
        free = np.where(np.abs(column) < 10_000, column, -1).astype(np.int32)  # NaN too; some files hold rubbish
        if len(flags) > 1:
            notes.append(f"Free-R flags from {flags[0]}; left: {', '.join(flags[1:])}.")
    parts = []
    for i, label in enumerate(chosen.value):
        value = table.columns[label]
        sigma = table.columns[chosen.sigma[i]] if chosen.sigma else np.zeros(len(value))
        parts.append(_Rows(table.hkl if i == 0 else -table.hkl, value, sigma, free))
    if len(parts) == 1:
        return parts[0], notes
    plus, minus = parts
    both = np.isfinite(plus.value) & np.isfinite(minus.value)
    # the two members of a centric pair are one measurement written twice
    twice = (
        both & (plus.value == minus.value) & np.asarray(group.operations().centric_flag_array(table.hkl), dtype=bool)
    )
    minus = minus.at(~twice)
    stacked = _Rows(
        np.concatenate([plus.hkl, minus.hkl]),
        np.concatenate([plus.value, minus.value]),
        np.concatenate([plus.sigma, minus.sigma]),
        None if plus.free is None or minus.free is None else np.concatenate([plus.free, minus.free]),
    )
    notes.append(f"Friedel pairs are averaged ({(both & ~twice).sum()} pairs).")
    return stacked, notes


def _clean(rows: _Rows, chosen: Candidate, where: str, notes: list[str]) -> _Rows:
    """Drop what is no measurement; UserError where nothing sensible is left."""
    column = chosen.value[0]
    finite = np.isfinite(rows.value)
    if not finite.any():
        raise UserError(f"column {column} holds no values (all missing)", where, "LABIN with another column")
    rows = rows.at(finite & np.any(rows.hkl != 0, axis=1))
    sigma = np.where(np.isfinite(rows.sigma), rows.sigma, 0.0)
    unmeasured = ((rows.value == 0) & (sigma == 0) & bool(chosen.sigma)) | ((rows.value < 0) & (sigma < 0))
    if unmeasured.all():
        raise UserError(
            f"column {column} holds no measurements (zeros, or negative with negative sigma)",
            where,
            "LABIN with another column",
        )
    if unmeasured.any():
        notes.append(
            f"{unmeasured.sum()} reflections marked as not measured (zero or negative with sigma likewise) "
            "are left out."
        )
    rows = replace(rows, sigma=np.maximum(sigma, 0.0)).at(~unmeasured)
    if len(rows.value) > 1 and np.ptp(rows.value) <= 1e-9 * np.abs(rows.value).max():
        raise UserError(
            f"column {column} is constant ({rows.value[0]:g}): no measurement",
            where,
            "LABIN with another column",
        )
    if np.all(rows.value <= 0):
        raise UserError(f"all values of column {column} are negative or zero", where, "LABIN with another column")
    bad = (rows.value < _NEGATIVE * rows.sigma) & (rows.sigma > 0) if chosen.intensity else rows.value < 0
    if bad.any():
        what = (
            f"intensities below {_NEGATIVE:g} sigma (behind the beam stop?)"
            if chosen.intensity
            else "negative amplitudes"
        )
        notes.append(f"{bad.sum()} {what} are left out.")
        rows = rows.at(~bad)
    unknown = int((rows.sigma == 0).sum())
    if unknown and chosen.sigma:
        notes.append(f"{unknown} measurements have no standard uncertainty above zero.")
    return rows


def _squared(merged: Merged, chosen: Candidate) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Intensities and their uncertainties, whatever was measured."""
    if chosen.intensity:
        return merged.value, merged.sigma
    return merged.value**2, 2 * merged.value * merged.sigma


def _merge(
    rows: _Rows,
    chosen: Candidate,
    cell: gemmi.UnitCell,
    group: gemmi.SpaceGroup,
    wanted: gemmi.SpaceGroup,
    where: str,
    notes: list[str],
) -> Merged:
    """Unique reflections of the wanted group without absences; UserError where the data contradict the
    group.
    """
    square = rows.value if chosen.intensity else rows.value**2
    noise = rows.sigma if chosen.intensity else 2 * rows.value * rows.sigma
    r, n = merge.r_merge(rows.hkl, square, noise, group)
    if n >= _FEWEST and r > _WRONG_GROUP and wanted.xhm() != group.xhm():
        notes.append(f"The data contradict {group.xhm()} of the file (R {r:.2f}); {wanted.xhm()} is used as asked.")
        group = wanted
        r, n = merge.r_merge(rows.hkl, square, noise, group)
    if n >= _FEWEST and r > _WRONG_GROUP:
        raise _contradiction(group, r, n, where)
    merged = merge.merge(rows.hkl, rows.value, rows.sigma, group)
    if len(merged.value) < len(rows.value):
        agreement = f", R of equivalents {r:.3f}" if n else ""
        notes.append(
            f"{len(rows.value)} measurements are merged to {len(merged.value)} unique reflections "
            f"(inverse-variance weights, Friedel mates together{agreement})."
        )
    if wanted.xhm() != group.xhm():
        merged = _regroup(merged, chosen, group, wanted, where, notes)
    i, s = _squared(merged, chosen)
    z = merge.relative_intensities(merged.hkl, i, cell, wanted)
    snr = np.where(s > 0, i / np.where(s > 0, s, 1), 99.0)
    found = merge.violations(merged.hkl, z, snr, wanted)
    if found:
        fits = merge.groups_that_fit(merged, i, s, cell, wanted)
        raise _forbidden(found, wanted, fits or ((group.xhm(),) if group.xhm() != wanted.xhm() else ()), where)
    absent = np.asarray(wanted.operations().systematic_absences(merged.hkl), dtype=bool)
    if absent.any():
        notes.append(
            f"{absent.sum()} reflections that {wanted.xhm()} forbids are left out "
            f"(mean I/sigma {np.mean(snr[absent]):.1f})."
        )
        merged = _take(merged, ~absent)
    i, s = _squared(merged, chosen)
    more = merge.higher_symmetry(merged, i, s, cell, wanted)
    if more is not None:
        named = f" (perhaps {' or '.join(more.groups)})" if more.groups else ""
        notes.append(
            f"The data also agree under rotations that {wanted.xhm()} lacks "
            f"({'; '.join(more.operations[:3])}; R {more.r:.3f}): higher symmetry{named}, "
            f"pseudo-symmetry or twinning. {wanted.xhm()} is kept. To change: spacegroup NAME."
        )
    return merged


def _take(merged: Merged, keep: NDArray[np.bool_]) -> Merged:
    return Merged(*(getattr(merged, x)[keep] for x in ("hkl", "value", "sigma", "count", "rows")))


def _contradiction(group: gemmi.SpaceGroup, r: float, n: int, where: str) -> UserError:
    return UserError(
        f"the data contradict space group {group.xhm()}: reflections it makes equivalent differ "
        f"(R {r:.2f}, {n} strong)",
        where,
        "the option spacegroup with a lower symmetry, e.g. P1",
    )


def _regroup(
    merged: Merged,
    chosen: Candidate,
    group: gemmi.SpaceGroup,
    wanted: gemmi.SpaceGroup,
    where: str,
    notes: list[str],
) -> Merged:
    i, s = _squared(merged, chosen)
    squares = Merged(merged.hkl, i, s, merged.count, merged.rows)
    _, r, n = merge.change_group(squares, group, wanted)
    if n >= _FEWEST and r > _WRONG_GROUP:
        raise _contradiction(wanted, r, n, where)
    changed, _, _ = merge.change_group(merged, group, wanted)
    agreement = f", R of new equivalents {r:.3f}" if n else ""
    notes.append(
        f"Space group {wanted.xhm()} as asked, instead of {group.xhm()} of the file: {len(merged.value)} "
        f"reflections become {len(changed.value)}{agreement}."
    )
    return changed


def _forbidden(found: list[merge.Violation], group: gemmi.SpaceGroup, fits: tuple[str, ...], where: str) -> UserError:
    worst = max(found, key=lambda v: v.strong)
    return UserError(
        f"the data contradict space group {group.xhm()}: {worst.strong} of {worst.count} reflections that "
        f"{worst.element} forbids are strong",
        where,
        f'the option spacegroup "{fits[0]}"' if fits else "the option spacegroup with another group, e.g. P1",
    )


def _finish(
    merged: Merged,
    rows: _Rows,
    chosen: Candidate,
    resolution: tuple[float, float] | None,
    cell: gemmi.UnitCell,
    where: str,
    notes: list[str],
) -> tuple[Merged, NDArray[np.int32] | None]:
    """Resolution limits, enough reflections, free flags of the unique ones."""
    free = None if rows.free is None else rows.free[merged.rows]
    d = np.asarray(cell.calculate_d_array(merged.hkl), dtype=np.float64)
    keep = np.ones(len(d), dtype=bool)
    if chosen.intensity:
        keep &= ~((merged.sigma > 0) & (merged.value < _NEGATIVE * merged.sigma))
        if not keep.all():
            notes.append(f"{(~keep).sum()} merged intensities below {_NEGATIVE:g} sigma are left out.")
    astray = _astray(d)
    if astray.any():
        notes.append(
            f"{astray.sum()} reflections at {d[astray].max():.2f} A and beyond, far from all others "
            f"(to {d[~astray].min():.2f} A), are left out."
        )
        keep &= ~astray
    if resolution is not None:
        d_max, d_min = max(resolution), min(resolution)
        inside = (d <= d_max * (1 + 1e-6)) & (d >= d_min * (1 - 1e-6))
        if not (inside & keep).any():
            raise UserError(
                f"no reflections between {d_max:g} and {d_min:g} A; the data reach from {d.max():.2f} to "
                f"{d.min():.2f} A",
                where,
                "another resolution range",
            )
        if not inside.all():
            notes.append(f"{(~inside).sum()} reflections outside {d_max:g}-{d_min:g} A are left out.")
        keep &= inside
    if keep.sum() < _FEWEST:
        raise UserError(
            f"only {keep.sum()} unique reflections are left, fewer than {_FEWEST}",
            where,
            "a wider resolution range" if resolution is not None else "the complete data set",
        )
    merged = _take(merged, keep)
    if not np.any(merged.value > 0):
        raise UserError(
            f"all values of column {chosen.value[0]} are negative or zero", where, "LABIN with another column"
        )
    return merged, None if free is None else free[keep]


def _astray(d: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Reflections (n,) at twice the resolution of all but the last hundredth: misprints, and grids without end."""
    n = len(d)
    if n < _FEWEST:
        return np.zeros(n, dtype=bool)
    return d < 0.5 * np.partition(d, n // 100 + 1)[n // 100 + 1]


def _amplitudes(
    merged: Merged,
    free: NDArray[np.int32] | None,
    chosen: Candidate,
    source: Source,
    cell: gemmi.UnitCell,
    group: gemmi.SpaceGroup,
    notes: tuple[str, ...],
) -> Amplitudes:
    if not chosen.intensity:
        return Amplitudes(merged.hkl, merged.value, merged.sigma, cell, group, source, free=free, notes=notes)
    f = np.sqrt(np.maximum(merged.value, 0.0))
    # sigma_F = sqrt(F^2 + sigma_I) - F: sigma_I / 2F for strong reflections, finite for weak ones
    root = f + np.sqrt(f**2 + merged.sigma)
    sigf = np.where(merged.sigma > 0, merged.sigma / np.where(root > 0, root, 1.0), 0.0)
    return Amplitudes(merged.hkl, f, sigf, cell, group, source, merged.value, merged.sigma, free, notes)
