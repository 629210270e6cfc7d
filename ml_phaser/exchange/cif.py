"""Reflections in CIF: structure-factor mmCIF, small-molecule _refln_ loops (.fcf), embedded SHELX lists."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import gemmi
import numpy as np
from gemmi import cif
from numpy.typing import NDArray

from ml_phaser.errors import UserError
from ml_phaser.exchange import columns as col
from ml_phaser.exchange import shelx
from ml_phaser.exchange.columns import Candidate, Table
from ml_phaser.exchange.spacegroup import checked_cell, find_spacegroup, from_triplets

# value, its sigma (the first that is there); pairs have two of each
_VALUES: tuple[tuple[tuple[str, ...], tuple[tuple[str, ...], ...], str], ...] = (
    (("F_squared_meas",), (("F_squared_sigma",),), col.INTENSITY),
    (("intensity_meas",), (("intensity_sigma",),), col.INTENSITY),
    (("F_meas",), (("F_sigma", "F_meas_sigma"),), col.AMPLITUDE),
    (("F_meas_au",), (("F_meas_sigma_au",),), col.AMPLITUDE),
    (("pdbx_I_plus", "pdbx_I_minus"), (("pdbx_I_plus_sigma",), ("pdbx_I_minus_sigma",)), col.INTENSITY_PAIR),
    (("pdbx_F_plus", "pdbx_F_minus"), (("pdbx_F_plus_sigma",), ("pdbx_F_minus_sigma",)), col.AMPLITUDE_PAIR),
    (("intensity_net",), (("intensity_sigma", "intensity_u"),), col.INTENSITY),  # of _diffrn_refln
)
_HKL_TEXT = ("_shelx_hkl_file", "_iucr_refine_reflections_details", "_shelxl_hkl_file")
RES_TEXT = ("_shelx_res_file", "_iucr_refine_instructions_details", "_shelxl_res_file")
_FCF_TEXT = ("_shelx_fcf_file", "_iucr_refine_fcf_details")
_CELL = ("length_a", "length_b", "length_c", "angle_alpha", "angle_beta", "angle_gamma")


@dataclass(frozen=True)
class Crystal:
    """Cell and group a CIF gives; None where it gives none."""

    cell: gemmi.UnitCell | None = None
    spacegroup: gemmi.SpaceGroup | None = None


def looks_like_cif(text: str) -> bool:
    """True where the first thing that is no comment is a data block."""
    for line in text[:200000].lstrip("\ufeff").split("\n"):
        if line.strip() and not line.lstrip().startswith("#"):
            return line.strip().lower().startswith("data_")
    return False


def parse(text: str, where: str) -> cif.Document:
    """Parsed document; UserError for text that breaks CIF syntax."""
    try:
        return cif.read_string(text.lstrip("\ufeff"))
    except (ValueError, RuntimeError) as error:
        place = re.sub(r"^string:", "line ", str(error).split("\n")[0])
        raise UserError(f"broken or truncated CIF ({place})", where, "copying the file again") from error


def read_crystal(doc: cif.Document, where: str) -> Crystal:
    """Cell and group of the first block that gives them."""
    cell = next((c for c in (_cell(b, where) for b in doc) if c is not None), None)
    group = next((g for g in (_spacegroup(b, cell) for b in doc) if g is not None), None)
    return Crystal(cell, group)


def read_instructions(doc: cif.Document, where: str) -> shelx.Instructions:
    """What a CIF says about a SHELX list beside it: cell and group, HKLF of an embedded .res."""
    crystal = read_crystal(doc, where)
    res = next((t for t in (_text(b, RES_TEXT) for b in doc) if t), "")
    return replace(shelx.parse_instructions(res, where), cell=crystal.cell, spacegroup=crystal.spacegroup)


def read_cif(text: str, where: str, labin: str | None = None) -> Table:
    """Measured data of a CIF; an embedded SHELX list (nearer to the measurement) before a _refln loop.

    Of several data blocks with measurements the first is taken (in the PDB, the one used for refinement),
    unless the labels in ``labin`` name another: "FP=BLOCK/F_meas_au".

    Raises
    ------
    UserError : broken CIF, no reflections, several blocks with different measurements
    """
    doc = parse(text, where)
    tables = [t for t in (_block_table(b, doc, where) for b in doc) if t is not None]
    with_data = [t for t in tables if t.candidates] or tables
    if not with_data:
        raise UserError(
            "this CIF holds no measured reflections",
            where,
            "the structure-factor file (-sf.cif, .fcf, .hkl) that belongs to it",
        )
    # data of single images (many scale groups) come after merged data, otherwise the order of the file
    first, *others = sorted(with_data, key=lambda t: t.format.endswith("images"))
    asked = re.findall(r"([^\s=,/]+)/", labin or "")
    if asked:
        named = [t for t in with_data if _block_name(t).lower() == asked[0].lower()]
        if not named:
            raise UserError(f"no data block {asked[0]} with measurements", where, "LABIN without a data block")
        first, others = named[0], []
    if others:
        left = ", ".join(_block_name(t) for t in others)
        label = others[0].candidates[0].value[0] if others[0].candidates else "LABEL"
        note = (
            f"Data block {_block_name(first)} is used; other blocks hold reflections too: {left} "
            f"(LABIN {_block_name(others[0])}/{label} to use that)."
        )
        first = replace(first, notes=(*first.notes, note))
    return replace(first, where=where, format=first.format.removesuffix(" of images"))


def _block_name(table: Table) -> str:
    return table.where.rsplit(" ", 1)[-1]


def strip_block(labin: str) -> str:
    """LABIN without the data blocks before the labels."""
    return re.sub(r"[^\s=,/]+/", "", labin)


def _block_table(block: cif.Block, doc: cif.Document, where: str) -> Table | None:
    crystal = _block_crystal(block, doc, where)
    embedded = _text(block, _HKL_TEXT)
    if embedded and shelx.looks_like_hkl(embedded):
        said = shelx.parse_instructions(_text(block, RES_TEXT) or "", where)
        table = shelx.read_hkl(embedded, where, said, form="CIF with embedded SHELX hkl")
        table = replace(table, cell=crystal.cell or said.cell, spacegroup=crystal.spacegroup or said.spacegroup)
    else:
        loop = _loop_table(block, where)
        if loop is None or not loop.candidates:
            fcf = _text(block, _FCF_TEXT)
            inner = cif.read_string(fcf)[0] if fcf and looks_like_cif(fcf) else None
            loop = (_loop_table(inner, where) if inner is not None else None) or loop
        if loop is None:
            return None
        table = replace(loop, cell=crystal.cell, spacegroup=crystal.spacegroup)
    return replace(table, where=f"{where} {block.name}")


def _block_crystal(block: cif.Block, doc: cif.Document, where: str) -> Crystal:
    """The block's own cell and group; else those of the document's other blocks."""
    anywhere = read_crystal(doc, where)
    cell = _cell(block, where) or anywhere.cell
    return Crystal(cell, _spacegroup(block, cell) or anywhere.spacegroup)


def _text(block: cif.Block, tags: tuple[str, ...]) -> str | None:
    for tag in tags:
        value = block.find_value(tag)
        if value and not cif.is_null(value):
            return cif.as_string(value).replace("\r", "")
    return None


def _cell(block: cif.Block, where: str) -> gemmi.UnitCell | None:
    raw = [block.find_value(f"_cell_{x}") or block.find_value(f"_cell.{x}") for x in _CELL]
    if any(x is None or cif.is_null(x) for x in raw[:3]):
        return None
    numbers = [cif.as_number(x) if x is not None and not cif.is_null(x) else 90.0 for x in raw]
    return checked_cell(numbers, where)


def _spacegroup(block: cif.Block, cell: gemmi.UnitCell | None) -> gemmi.SpaceGroup | None:
    """From the operators (unambiguous), else Hall symbol, Hermann-Mauguin symbol or number."""
    for tag in (
        "_space_group_symop_operation_xyz",
        "_symmetry_equiv_pos_as_xyz",
        "_space_group_symop.operation_xyz",
        "_symmetry_equiv.pos_as_xyz",
    ):
        triplets = [cif.as_string(x) for x in block.find_values(tag)]
        if triplets and (group := from_triplets(triplets)) is not None:
            return group
    for tag in (
        "_space_group_name_Hall",
        "_symmetry_space_group_name_Hall",
        "_space_group.name_Hall",
        "_symmetry.space_group_name_Hall",
        "_space_group_name_H-M_alt",
        "_symmetry_space_group_name_H-M",
        "_space_group.name_H-M_alt",
        "_symmetry.space_group_name_H-M",
        "_symmetry.pdbx_full_space_group_name_H-M",
        "_space_group_name_H-M_full",
        "_space_group_IT_number",
        "_symmetry_Int_Tables_number",
        "_space_group.IT_number",
        "_symmetry.Int_Tables_number",
    ):
        value = block.find_value(tag)
        if value and not cif.is_null(value) and (group := find_spacegroup(cif.as_string(value), cell)) is not None:
            return group
    return None


def _loop_table(block: cif.Block, where: str) -> Table | None:
    """Columns of the _refln (or _diffrn_refln) loop of a block."""
    for prefix in ("_refln.", "_refln_", "_diffrn_refln.", "_diffrn_refln_"):
        if block.find_loop(f"{prefix}index_h"):
            return _from_prefix(block, prefix, where)
    return None


def _from_prefix(block: cif.Block, prefix: str, where: str) -> Table:
    loop = block.find_loop(f"{prefix}index_h").get_loop()
    tags = [t[len(prefix) :] for t in loop.tags if t.lower().startswith(prefix)]

    def strings(tag: str) -> list[str]:
        return list(block.find_values(prefix + tag))

    def numbers(tag: str) -> NDArray[np.float64]:
        return np.array([cif.as_number(x) for x in strings(tag)], dtype=np.float64)

    by_lower = {t.lower(): t for t in tags}
    if any(f"index_{x}" not in by_lower for x in "hkl"):
        raise UserError("the list of reflections has no indices h, k and l", where, "a complete structure-factor file")
    index = np.column_stack([numbers(by_lower[f"index_{x}"]) for x in "hkl"])
    candidates: list[Candidate] = []
    columns: dict[str, NDArray[np.float64]] = {}
    roles: dict[str, str] = {}
    for names, sigma_names, role in _VALUES:
        if not all(n.lower() in by_lower for n in names):
            continue
        labels = [by_lower[n.lower()] for n in names]
        values = {x: numbers(x) for x in labels}
        if not any(np.isfinite(v).any() for v in values.values()):
            continue
        sigmas = [by_lower[s.lower()] for group in sigma_names for s in group if s.lower() in by_lower]
        sigmas = sigmas if len(sigmas) == len(labels) else []
        columns |= values | {s: numbers(s) for s in sigmas}
        roles |= dict.fromkeys(labels, role) | dict.fromkeys(sigmas, col.SIGMA)
        candidates.append(Candidate(tuple(labels), tuple(sigmas), role[0] == "I"))
    for tag in tags:
        roles.setdefault(tag, _other_role(tag))
        if roles[tag] == col.FREE:
            columns[tag] = numbers(tag)
    status = next(
        (strings(by_lower[t]) for t in ("status", "observed_status", "include_status") if t in by_lower), None
    )
    keep = np.all(np.isfinite(index), axis=1)
    free, notes = None, []
    if status is not None:
        flags = np.array([s.strip("'\"").lower()[:1] for s in status])
        unused = np.isin(flags, ["x", "-"])
        keep &= ~unused
        measured = np.isfinite(columns[candidates[0].value[0]]) if candidates else np.ones(len(keep), dtype=bool)
        if (unused & measured).any():
            notes.append(
                f"{(unused & measured).sum()} reflections with status x or - (unreliable, absent) are left out."
            )
        if (flags == "f").any():
            free = np.where(flags == "f", 0, 1)[keep].astype(np.int32)
            notes.append(f"Free-R set from the status column: {(flags[keep] == 'f').sum()} reflections (0 is free).")
    scale = strings("scale_group_code") if "scale_group_code" in tags else []
    images = len(set(scale)) > 5 or prefix.startswith("_diffrn")
    return Table(
        where=where,
        format="structure-factor CIF" + (" of images" if images else ""),
        hkl=np.rint(index[keep]).astype(np.int32),
        columns={k: v[keep] for k, v in columns.items()},
        roles=roles,
        candidates=tuple(candidates),
        free=free,
        notes=tuple(notes),
    )


def _other_role(tag: str) -> str:
    if col.is_free_flag(tag):
        return col.FREE
    return col.CALCULATED if col.is_calculated(tag.removeprefix("pdbx_")) else col.OTHER
