"""Reading models: PDB, mmCIF, small-molecule CIF, SHELX .ins or .res, and a .res embedded in a CIF.

    model = read_model("1dur.pdb")
    model.structure         gemmi.Structure (first model only) or gemmi.SmallStructure
    model.is_macromolecule  tells which
    model.radiation         "X-ray", "electron" or "neutron", as the file says

Occupancies are those of the file in its own convention, and of small molecules chemical ones, as in a CIF (an atom on
a symmetry element has 1); structure_factors.atoms takes them so. Images are set up, and displacement parameters are
usable: B of at least LOWEST_B, anisotropic ones positive definite or dropped.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import gemmi
import numpy as np

from ml_phaser.errors import UserError
from ml_phaser.exchange.cif import RES_TEXT
from ml_phaser.exchange.read import load
from ml_phaser.exchange.spacegroup import checked_cell, from_shelx

LOWEST_B = 0.5  # A^2; less stands for an unknown or unphysical one
_LOWEST_U = LOWEST_B / (8 * np.pi**2)
_USUAL_U = 0.05  # A^2, SHELXL's own default
_SAME_SITE = 0.4  # A: an atom nearer than this to its own image lies on a symmetry element
_RADIATIONS = ("X-ray", "electron", "neutron")
_ELECTRON_WAVELENGTH = 0.1  # A; X-rays of less are not used for structures
_KINDS = "PDB, mmCIF, small-molecule CIF, .ins or .res"
_NO_ATOMS = ("holds no atoms", "give a model with coordinates")


@dataclass(frozen=True, eq=False)
class Model:
    """A model as it stands in its file (see above); the space group is None where it is not a known one."""

    structure: gemmi.Structure | gemmi.SmallStructure
    radiation: str

    @property
    def is_macromolecule(self) -> bool:
        return isinstance(self.structure, gemmi.Structure)

    @property
    def cell(self) -> gemmi.UnitCell:
        return self.structure.cell

    @property
    def spacegroup(self) -> gemmi.SpaceGroup | None:
        if isinstance(self.structure, gemmi.Structure):
            return self.structure.find_spacegroup()
        return self.structure.spacegroup

    @property
    def n_atoms(self) -> int:
        """Atom sites of the asymmetric unit."""
        if isinstance(self.structure, gemmi.Structure):
            return int(self.structure[0].count_atom_sites())
        return len(self.structure.sites)


def file_kind(path: Path | str) -> str:
    """Extension without .gz, in lower case, e.g. ".pdb"."""
    name = Path(path).name.lower()
    return Path(name.removesuffix(".gz")).suffix


def read_text(path: Path) -> str:
    """Text of a file, gunzipped where needed; UserError where it cannot be read."""
    return load(path).decode("utf-8", errors="replace")


def read_cif(path: Path) -> gemmi.cif.Document:
    """Parsed CIF; UserError where it is none."""
    try:
        return gemmi.cif.read_string(read_text(path))
    except (ValueError, RuntimeError) as error:
        raise UserError(f"not a CIF ({str(error).splitlines()[0]})", str(path)) from None


def read_model(path: Path | str) -> Model:
    """Model of a file, told apart by its extension (.pdb .ent .cif .mmcif .ins .res, also gzipped).

    Raises
    ------
    UserError : not such a file, or one without atoms
    """
    path = Path(path)
    kind, where = file_kind(path), str(path)
    if kind not in (".pdb", ".ent", ".cif", ".mmcif", ".ins", ".res"):
        raise UserError("not a kind of model that is known", where, _KINDS)
    if kind in (".pdb", ".ent"):
        return _macromolecule(lambda: gemmi.read_pdb_string(read_text(path)), where)
    if kind in (".ins", ".res"):
        return _of_shelx(read_text(path), where)
    doc = read_cif(path)
    if any(block.find_values("_atom_site.Cartn_x") for block in doc):
        return _macromolecule(lambda: gemmi.make_structure_from_block(doc.sole_block()), where)
    for block in doc:
        if block.find_values("_atom_site_fract_x"):
            return _of_small_cif(block, where)
    for block in doc:
        res = next((text for text in map(block.find_value, RES_TEXT) if text), None)
        if res is not None:
            return _of_shelx(gemmi.cif.as_string(res), where)
    raise UserError(_NO_ATOMS[0], where, _NO_ATOMS[1])


def _macromolecule(read: Callable[[], gemmi.Structure], where: str) -> Model:
    """First model of a macromolecular file."""
    try:
        st = read()
    except (ValueError, RuntimeError) as error:
        raise UserError(f"not a model ({str(error).splitlines()[0]})", where) from None
    if not len(st) or st[0].count_atom_sites() == 0:
        raise UserError(_NO_ATOMS[0], where, _NO_ATOMS[1])
    while len(st) > 1:
        del st[1]
    st.setup_cell_images()
    for cra in st[0].all():
        atom = cra.atom
        if atom.aniso.nonzero() and not _positive(atom.aniso):
            atom.aniso = gemmi.SMat33f(0, 0, 0, 0, 0, 0)
        atom.b_iso = max(atom.b_iso, LOWEST_B)
    methods = " ".join(st.info["_exptl.method"].split()).upper() if "_exptl.method" in st.info else ""
    radiation = "electron" if "ELECTRON" in methods else "neutron" if methods.startswith("NEUTRON") else "X-ray"
    return Model(st, radiation)


def _positive(tensor: gemmi.SMat33f | gemmi.SMat33d) -> bool:
    return bool(np.linalg.eigvalsh(np.array(tensor.as_mat33().tolist()))[0] > 0)


def _of_small_cif(block: gemmi.cif.Block, where: str) -> Model:
    small = gemmi.make_small_structure_from_block(block)
    if small.spacegroup is None:
        small.determine_and_set_spacegroup("S.H2")
    small.setup_cell_images()
    probe = (block.find_value("_diffrn_radiation_probe") or "").strip("'\" ").lower()
    wavelength = float(gemmi.cif.as_number(block.find_value("_diffrn_radiation_wavelength") or "?"))
    radiation = probe if probe in _RADIATIONS else "X-ray"
    if probe == "" and 0 < wavelength < _ELECTRON_WAVELENGTH:
        radiation = "electron"
    return _usable(small, radiation, where)


def _of_shelx(text: str, where: str) -> Model:
    small = read_shelx(text, where)
    for site in small.sites:
        site.occ *= 1 + small.cell.is_special_position(site.fract, _SAME_SITE)
    return _usable(small, "electron" if 0 < small.wavelength < _ELECTRON_WAVELENGTH else "X-ray", where)


def _usable(small: gemmi.SmallStructure, radiation: str, where: str) -> Model:
    if not len(small.sites):
        raise UserError(_NO_ATOMS[0], where, _NO_ATOMS[1])
    for site in small.sites:
        if site.aniso.nonzero() and not _positive(site.aniso):
            site.aniso = gemmi.SMat33d(0, 0, 0, 0, 0, 0)
        site.u_iso = max(site.u_iso if np.isfinite(site.u_iso) else _USUAL_U, _LOWEST_U)
    return Model(small, radiation)


# --- SHELX


def read_shelx(text: str, where: str = "") -> gemmi.SmallStructure:
    """Atoms, cell and symmetry of a SHELX .ins or .res text (SHELX-97 manual, ch. 7).

    Free variables are honoured: 10 + p is a fixed p, 10 m + p is p times variable m, -(10 m + p) is p (1 -
    variable). A negative isotropic U, -1.2 say, is 1.2 times the equivalent U of the last atom that is not
    hydrogen. Occupancies are crystallographic in the file already. Raises UserError for a broken line.
    """
    small = gemmi.SmallStructure()
    joined = text.replace("\r", "").replace("=\n", " ")
    latt, symops, elements, variables, parent_u = 1, ["x,y,z"], [], [1.0], _USUAL_U
    for raw in joined.split("\n"):
        words = raw.split("!")[0].split()
        if not words or raw[0] == " ":
            continue
        card = words[0].upper()
        try:
            if card == "CELL":
                small.wavelength = float(words[1])
                small.cell = checked_cell([float(x) for x in words[2:8]], where)
            elif card == "LATT":
                latt = int(float(words[1]))
            elif card == "SYMM":
                symops.append(raw.split(None, 1)[1].strip())
            elif card == "SFAC":
                elements += words[1:] if not _is_number(words[2:3]) else words[1:2]
            elif card == "FVAR":
                variables += [float(x) for x in words[1:]]
            elif card in ("HKLF", "END"):
                break
            elif card.split("_")[0] not in _SHELX_CARDS and len(words) >= 5 and _is_number(words[1:5]):
                parent_u = _add_shelx_atom(small, words, elements, variables, parent_u)
        except (ValueError, IndexError):
            raise UserError(f"cannot make sense of {raw.strip()!r}", where) from None
    small.spacegroup_hm = ""
    small.spacegroup = from_shelx(latt, symops)
    small.setup_cell_images()
    return small


_SHELX_CARDS = frozenset(
    re.findall(
        r"\S+",
        """
        TITL ZERR LATT SYMM SFAC DISP UNIT LAUE REM MORE TIME END HKLF OMIT SHEL BASF TWIN EXTI SWAT HOPE
        MERG SPEC RESI MOVE ANIS AFIX HFIX FRAG FEND EXYZ EADP EQIV CONN PART BIND FREE DFIX DANG BUMP SAME
        SADI CHIV FLAT DELU SIMU DEFS ISOR NCSY SUMP L.S. CGLS BLOC DAMP STIR WGHT FVAR BOND CONF MPLA RTAB
        HTAB LIST ACTA SIZE TEMP WPDB FMAP GRID PLAN MOLE RIGU NEUT ABIN ANSC ANSR XNPD TWST PRIG CELL TREF
        """,
    )
)


def _is_number(words: list[str]) -> bool:
    try:
        return bool(words) and all(np.isfinite(float(w)) for w in words)
    except ValueError:
        return False


def _free(value: float, variables: list[float]) -> float:
    if abs(value) <= 5:
        return value
    m = int(np.floor(abs(value) / 10 + 0.5))
    p = abs(value) - 10 * m
    if m <= 1:
        return float(np.copysign(p, value)) if m == 1 else value
    return p * variables[m] if value > 0 else -p * (variables[m] - 1)


def _add_shelx_atom(
    small: gemmi.SmallStructure,
    words: list[str],
    elements: list[str],
    variables: list[float],
    parent_u: float,
) -> float:
    """Add one atom; returns the equivalent U that following hydrogens refer to."""
    values = [float(w) for w in words[2:]]
    site = gemmi.SmallStructure.Site()
    site.label = words[0]
    site.type_symbol = elements[int(words[1]) - 1]
    site.element = gemmi.Element(site.type_symbol.rstrip("0123456789+-"))
    # unlike other parameters, fixed coordinates stand as 10 + x
    site.fract = gemmi.Fractional(*(_free(x, variables) for x in values[:3]))
    site.occ = _free(values[3], variables) if len(values) > 3 else 1.0
    u = [_free(x, variables) for x in values[4:]]
    if len(u) >= 6:
        site.aniso = gemmi.SMat33d(u[0], u[1], u[2], u[5], u[4], u[3])  # SHELX order: 11 22 33 23 13 12
        site.u_iso = (u[0] + u[1] + u[2]) / 3  # enough for riding hydrogens
        parent = site.u_iso
    else:
        iso = values[4] if len(values) > 4 else _USUAL_U
        riding = -5 < iso < -0.5
        site.u_iso = -iso * parent_u if riding else u[0] if u else _USUAL_U
        parent = parent_u if riding else site.u_iso
    small.add_site(site)
    return parent
