"""What a refinement writes: the model as PDB or mmCIF, and an MTZ with calculated phases and map coefficients."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from pathlib import Path

import gemmi
import numpy as np
from numpy.typing import NDArray

from ml_phaser import __version__
from ml_phaser.atomic import atomic
from ml_phaser.crystal.reflections import Amplitudes
from ml_phaser.errors import UserError

MODEL_SUFFIXES = (".pdb", ".ent", ".cif", ".mmcif")
MOST_PDB_ATOMS = 99_999  # that a PDB file numbers without tricks
COLUMNS = (
    ("F", "F"), ("SIGF", "Q"), ("FreeR_flag", "I"), ("FC", "F"), ("PHIC", "P"), ("FOM", "W"), ("FWT", "F"),
    ("PHWT", "P"), ("DELFWT", "F"), ("PHDELWT", "P"),
)  # fmt: skip


@dataclass(frozen=True)
class Statistics:
    """What the header of a refined model says: limits in A, R factors, numbers of reflections, rms deviations."""

    d_max: float
    d_min: float
    completeness: float
    r_work: float
    r_free: float
    n_work: int
    n_free: int
    bonds: float
    angles: float
    mean_b: float
    target: str


def write_model(path: Path | str, structure: gemmi.Structure, statistics: Statistics) -> None:
    """Write a structure as PDB, or mmCIF if the suffix says so, with ``statistics`` in REMARK 3 or ``_refine``.

    Remarks of the input that speak of an older refinement are dropped. Raises UserError for what PDB cannot hold.
    """
    out = structure.clone()
    out.meta.refinement = [_refinement(statistics)]
    software = gemmi.SoftwareItem()
    software.name, software.version = "ml_phaser", __version__
    software.classification = gemmi.SoftwareItem.Classification.Refinement
    out.meta.software = [software]
    out.resolution = statistics.d_min
    out.raw_remarks = []  # gemmi then writes REMARK 2 from the above, but no REMARK 3
    if Path(path).suffix.lower() in (".cif", ".mmcif"):
        text = out.make_mmcif_document().as_string()
    else:
        if out[0].count_atom_sites() > MOST_PDB_ATOMS:
            raise UserError("has too many atoms for the PDB format", str(path), "a name that ends in .cif")
        text = _with_remark_3(out.make_pdb_string(), statistics)
    with atomic(path) as tmp:
        tmp.write_text(text, encoding="utf-8")


def _with_remark_3(pdb: str, s: Statistics) -> str:
    """The text of a PDB file with REMARK 3, in the words that programs look for."""
    facts = (
        ("PROGRAM     ", f"ML_PHASER {__version__}"),
        ("REFINEMENT TARGET ", s.target.upper()),
        ("RESOLUTION RANGE HIGH (ANGSTROMS) ", f"{s.d_min:.2f}"),
        ("RESOLUTION RANGE LOW  (ANGSTROMS) ", f"{s.d_max:.2f}"),
        ("COMPLETENESS FOR RANGE        (%) ", f"{100 * s.completeness:.1f}"),
        ("NUMBER OF REFLECTIONS             ", f"{s.n_work + s.n_free}"),
        ("R VALUE            (WORKING SET) ", f"{s.r_work:.4f}"),
        ("FREE R VALUE                     ", f"{s.r_free:.4f}"),
        ("FREE R VALUE TEST SET COUNT      ", f"{s.n_free}"),
        ("MEAN B VALUE      (OVERALL, A**2) ", f"{s.mean_b:.1f}"),
        ("BOND LENGTHS  RMS DEVIATION   (A) ", f"{s.bonds:.4f}"),
        ("BOND ANGLES   RMS DEVIATION (DEG) ", f"{s.angles:.2f}"),
    )
    own = ["REMARK   3", "REMARK   3 REFINEMENT.", *(f"REMARK   3   {name}: {value}" for name, value in facts)]
    lines = pdb.splitlines()
    before = ("HEADER", "TITLE", "COMPND", "SOURCE", "KEYWDS", "EXPDTA", "NUMMDL", "MDLTYP", "AUTHOR", "REVDAT")
    first = next(i for i, line in enumerate(lines) if not line.startswith((*before, "REMARK   2")))
    return "\n".join([*lines[:first], *(f"{line:<80}" for line in own), *lines[first:]]) + "\n"


def _refinement(s: Statistics) -> gemmi.RefinementInfo:
    info = gemmi.RefinementInfo()
    info.id = "X-RAY DIFFRACTION"
    info.resolution_low, info.resolution_high, info.completeness = s.d_max, s.d_min, 100 * s.completeness
    info.r_work, info.r_free, info.mean_b = s.r_work, s.r_free, s.mean_b
    info.r_all = np.nan
    info.reflection_count, info.work_set_count, info.rfree_set_count = s.n_work + s.n_free, s.n_work, s.n_free
    info.cross_validation_method, info.rfree_selection_method = "THROUGHOUT", "RANDOM"
    info.remarks = f"ml_phaser {__version__}: {s.target}"
    bonds, angles = gemmi.RefinementInfo.Restr("f_bond_d"), gemmi.RefinementInfo.Restr("f_angle_d")
    bonds.dev_ideal, angles.dev_ideal = s.bonds, s.angles
    info.restr_stats = [bonds, angles]
    return info


def write_refined_mtz(
    path: Path | str,
    data: Amplitudes,
    flags: NDArray[np.int32],
    f_model: NDArray[np.complex128],
    fom: NDArray[np.float64],
    best: NDArray[np.complex128],
    difference: NDArray[np.complex128],
) -> None:
    """Write the measured reflections with COLUMNS: FC, PHIC of the scaled model with solvent; FWT, PHWT of 2mFo-DFc;
    DELFWT, PHDELWT of the difference map. Negative ``flags`` (n,) are missing. Phases in degrees."""
    mtz = gemmi.Mtz(with_base=True)
    mtz.spacegroup, mtz.cell, mtz.title = data.spacegroup, data.cell, "Refined model and its maps"
    dataset = mtz.add_dataset("ml_phaser")
    dataset.project_name = dataset.crystal_name = "refined"
    for label, kind in COLUMNS:
        mtz.add_column(label, kind)
    flag = np.where(flags < 0, np.nan, flags)
    sigf = np.where(data.sigf > 0, data.sigf, np.nan)
    parts = (f_model, best, difference)
    size, phase = [np.abs(x) for x in parts], [np.rad2deg(np.angle(x)) for x in parts]
    mtz.set_data(np.column_stack([
        data.hkl, data.f, sigf, flag, size[0], phase[0], fom, size[1], phase[1], size[2], phase[2],
    ]).astype(np.float32))  # fmt: skip
    mtz.history = [f"From ml_phaser {__version__} {datetime.datetime.now():%d/%m/%Y %H:%M:%S} refinement"]
    content = bytes(mtz.write_to_bytes())
    with atomic(path) as tmp:
        tmp.write_bytes(content)
