"""Reference phases from a model (protein or small molecule), and the comparison of files.

Nothing here is used for phasing; it serves to judge phases that were found without it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import gemmi
import numpy as np
from numpy.typing import NDArray

from ml_phaser.crystal.agreement import Agreement, compare, correlation, multiplicity
from ml_phaser.errors import UserError
from ml_phaser.evaluation.phase_files import (
    Complexes,
    Indices,
    Reference,
    holds_phases,
    read_prediction,
    reference_phases,
)
from ml_phaser.exchange.model import Model, read_model
from ml_phaser.exchange.spacegroup import check_same_crystal

SOLVENT_BOUNDS = ((0.05, 0.7), (5.0, 150.0))  # k_sol, B_sol; a fit outside these has not found the solvent
LEAST_SOLVENT = 0.01  # of the cell; a mask smaller than this is noise between atoms
LEAST_FITTED = 100  # reflections to fit solvent, scale and anisotropy to


@dataclass(frozen=True)
class FileAgreement:
    """Agreement of two files, what was taken from each, and ``ceiling``: the map CC that the measured
    amplitudes would reach with the reference's own phases (NaN where the prediction's file has no measured
    amplitudes)."""

    agreement: Agreement
    prediction: str
    reference: str
    ceiling: float


def atom_sum(model: Model, hkl: Indices, spacegroup: gemmi.SpaceGroup, radiation: str) -> Complexes:
    """F_calc (n,) of all atoms of a model, for "X-ray", "electron" or "neutron" radiation."""
    from ml_phaser.structure_factors.atoms import atoms_of_small, atoms_of_structure
    from ml_phaser.structure_factors.calculate import structure_factors

    if radiation == "neutron":
        return _neutron_sum(model, hkl)
    table = "electron" if radiation == "electron" else "xray"
    if isinstance(model.structure, gemmi.Structure):
        atoms = atoms_of_structure(model.structure, table=table)
    else:
        atoms = atoms_of_small(model.structure, table=table)
    return np.asarray(structure_factors(atoms, hkl, model.cell, spacegroup).numpy(), dtype=np.complex128)


def _neutron_sum(model: Model, hkl: Indices) -> Complexes:
    """The same with neutron scattering lengths, which only gemmi's own sum knows."""
    calculator = gemmi.StructureFactorCalculatorN(model.cell)
    if isinstance(model.structure, gemmi.Structure):
        f = [calculator.calculate_sf_from_model(model.structure[0], [int(x) for x in h]) for h in hkl]
    else:
        occupancies = [site.occ for site in model.structure.sites]
        model.structure.change_occupancies_to_crystallographic()
        f = [calculator.calculate_sf_from_small_structure(model.structure, [int(x) for x in h]) for h in hkl]
        for site, occupancy in zip(model.structure.sites, occupancies, strict=True):
            site.occ = occupancy
    return np.array(f, dtype=np.complex128)


def _solvent(
    st: gemmi.Structure, spacegroup: gemmi.SpaceGroup, f: Complexes, hkl: Indices, f_obs: NDArray[np.float64] | None
) -> tuple[Complexes, str]:
    """Add flat bulk solvent and, given measured amplitudes, bring F to their scale and anisotropy."""
    from ml_phaser.structure_factors.scaling import USUAL_SOLVENT, f_model, fit_scales
    from ml_phaser.structure_factors.solvent import exact_mask, mask_factors

    mask = exact_mask(st)
    k_sol, b_sol = USUAL_SOLVENT
    wet = float(mask.mean()) > LEAST_SOLVENT
    f_mask = mask_factors(mask, hkl, st.cell).numpy().astype(np.complex128) * wet
    standard = f + k_sol * np.exp(-b_sol * st.cell.calculate_1_d2_array(hkl) / 4) * f_mask
    story = f"solvent at k_sol {k_sol}, B_sol {b_sol:.0f}" if wet else "no solvent"
    if f_obs is None or (np.isfinite(f_obs) & (f_obs > 0)).sum() < LEAST_FITTED:
        return standard, story
    if wet:
        scales = fit_scales(f_obs, f, f_mask, hkl, st.cell, spacegroup)
        if all(low <= x <= high for x, (low, high) in zip(scales.solvent, SOLVENT_BOUNDS, strict=True)):
            story = f"solvent fitted, k_sol {scales.solvent[0]:.2f}, B_sol {scales.solvent[1]:.0f}"
            return np.asarray(f_model(f, f_mask, *scales.at(hkl))), story
    total, _ = fit_scales(f_obs, standard, None, hkl, st.cell, spacegroup).at(hkl)
    return standard * total, story


def model_reference(
    path: Path | str,
    hkl: Indices,
    cell: gemmi.UnitCell,
    spacegroup: gemmi.SpaceGroup,
    *,
    f_obs: NDArray[np.float64] | None = None,
    radiation: str | None = None,
) -> Reference:
    """Structure factors of a model, and how they were calculated.

    Parameters
    ----------
    path : .pdb, .ent, mmCIF, small-molecule CIF, SHELX .ins or .res, plain or gzipped
    hkl : (n, 3)
    cell, spacegroup : of the data; the model's must agree with them
    f_obs : (n,) measured amplitudes, NaN where missing: bulk solvent, scale and anisotropy are fitted to
        them for macromolecules
    radiation : "X-ray", "electron", "neutron" [as the file says, else X-ray]

    All atoms with their occupancies, alternative conformers and hydrogens are summed (IT92, C4322 or neutron
    scattering factors of gemmi), anisotropic displacements included; B below 0.5 A^2 is raised to that.
    Raises UserError for a file without atoms or of another crystal.
    """
    model = read_model(path)
    check_same_crystal(path, model.cell, model.spacegroup, cell, spacegroup)
    used = radiation or model.radiation
    f = atom_sum(model, hkl, spacegroup, used)
    story = f"F_calc of {model.n_atoms} atoms, {used} scattering factors"
    if isinstance(model.structure, gemmi.Structure) and used == "X-ray":  # the mask's density is in electrons
        f, solvent = _solvent(model.structure, spacegroup, f, hkl, f_obs)
        story += f", {solvent}"
    return Reference(f, story)


def compare_files(
    prediction: Path | str,
    reference: Path | str,
    *,
    labels: tuple[str, str] | None = ("FWT", "PHWT"),
    reference_labels: tuple[str, str] | None = None,
    resolution: tuple[float, float] | None = None,
    hands: bool = True,
    phases: bool | None = None,
) -> FileAgreement:
    """Agreement of a result (MTZ) with a model or with a file of phases, told apart by their names.

    ``resolution`` is (d_max, d_min) in A; ``hands``: try the other hand;
    ``phases``: take the reference for a file of phases (True) or a model (False) whatever its name.
    Reflections that either file lacks are left out. Raises UserError.
    """
    reference = Path(reference)
    found = read_prediction(prediction, labels)
    crystal = (found.cell, found.spacegroup)
    d = np.asarray(found.cell.calculate_d_array(found.hkl), dtype=np.float64)
    # solvent and scale need all the data, whatever range is compared
    if holds_phases(reference) if phases is None else phases:
        ref = reference_phases(reference, found.hkl, *crystal, labels=reference_labels)
    else:
        ref = model_reference(reference, found.hkl, *crystal, f_obs=found.f_obs)
    use = np.isfinite(ref.f)
    if not use.any():
        raise UserError("has none of the reflections of the prediction", str(reference))
    if resolution is not None:
        use &= (d <= max(resolution) + 1e-4) & (d >= min(resolution) - 1e-4)
        if not use.any():
            raise UserError("no reflections in this resolution range", str(prediction), "a wider RESOLUTION")
    agreement = compare(found.hkl[use], found.f[use], ref.f[use], *crystal, hands=hands)
    ceiling = float("nan")
    if found.f_obs is not None and np.any(found.f_obs[use] > 0):
        measured = np.nan_to_num(found.f_obs[use])
        exact = measured * np.exp(1j * np.angle(ref.f[use]))
        weight = multiplicity(found.hkl[use], found.spacegroup)
        ceiling = correlation(weight, exact, ref.f[use])
    return FileAgreement(agreement, found.taken, ref.taken, ceiling)
