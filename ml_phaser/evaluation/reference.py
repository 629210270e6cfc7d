"""Reference phases: from a model (protein or small molecule), or from a file that holds phases.

Nothing here is used for phasing; it serves to judge phases that were found without it.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import gemmi
import numpy as np
from numpy.typing import NDArray

from ml_phaser.crystal.agreement import Agreement, compare, correlation, multiplicity
from ml_phaser.errors import UserError
from ml_phaser.exchange.model import file_kind, read_cif, read_model

DIRECT_TERMS = 3e8  # atoms x operators x reflections up to which summation is direct, exact and quick enough
SOLVENT = (
    0.35,
    46.0,
)  # electrons/A^3 and A^2: the averages over the PDB (Fokine & Urzhumtsev 2002, D58, 1387)
SOLVENT_BOUNDS = ((0.05, 0.7), (5.0, 150.0))  # a fit outside these has not found the solvent
LEAST_SOLVENT = 0.01  # of the cell; a mask smaller than this is noise between atoms
LEAST_FITTED = 100  # reflections to fit solvent, scale and anisotropy to
CELL_TOLERANCE = (0.02, 2.0)  # relative, degrees

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
CALCULATORS: dict[str, tuple[Any, Any]] = {
    "X-ray": (gemmi.StructureFactorCalculatorX, gemmi.DensityCalculatorX),
    "electron": (gemmi.StructureFactorCalculatorE, gemmi.DensityCalculatorE),
    "neutron": (gemmi.StructureFactorCalculatorN, gemmi.DensityCalculatorN),
}

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


@dataclass(frozen=True)
class FileAgreement:
    """Agreement of two files, what was taken from each, and ``ceiling``: the map CC that the measured
    amplitudes would reach with the reference's own phases (NaN where the prediction's file has no measured
    amplitudes)."""

    agreement: Agreement
    prediction: str
    reference: str
    ceiling: float


def _group_name(spacegroup: gemmi.SpaceGroup) -> str:
    return str(spacegroup.xhm())


def check_same_crystal(
    path: Path | str,
    found_cell: gemmi.UnitCell,
    found: gemmi.SpaceGroup | None,
    cell: gemmi.UnitCell,
    spacegroup: gemmi.SpaceGroup,
) -> None:
    """Raise UserError unless the file's cell (2 %, 2 degrees) and symmetry operations are those of the
    data.
    """
    where = str(path)
    if found is None:
        raise UserError("holds no space group that is known", where, "add it to the file")
    if not found_cell.is_similar(cell, *CELL_TOLERANCE):
        raise UserError(
            "cell {} is not that of the data, {}".format(
                *(" ".join(f"{x:.2f}" for x in c.parameters) for c in (found_cell, cell))
            ),
            where,
            "compare files of the same crystal in the same setting",
        )
    ours, theirs = ({op.triplet() for op in g.operations()} for g in (spacegroup, found))
    if ours != theirs:
        hint = "compare files in the same setting"
        inverse = found.change_of_hand_op()
        swapped = found.operations()
        swapped.change_basis_forward(inverse)
        if {op.triplet() for op in swapped} == ours:
            hint = f"these are mirror images of each other; phase the data in {_group_name(found)}"
        raise UserError(
            f"space group {_group_name(found)} is not that of the data, {_group_name(spacegroup)}",
            where,
            hint,
        )


def _number(text: str) -> float:
    return float(gemmi.cif.as_number(text))


# --- models


def _atom_sum(model: Any, hkl: Indices, d_min: float, radiation: str) -> Complexes:
    """Sum over the atoms of a gemmi Structure (its first model) or SmallStructure: (n,)."""
    direct, through_density = CALCULATORS[radiation]
    if isinstance(model, gemmi.SmallStructure):
        small_sum = direct(model.cell).calculate_sf_from_small_structure
        return np.array([small_sum(model, [int(x) for x in h]) for h in hkl], dtype=np.complex128)
    if model[0].count_atom_sites() * (len(model.cell.images) + 1) * len(hkl) < DIRECT_TERMS:
        model_sum = direct(model.cell).calculate_sf_from_model
        return np.array([model_sum(model[0], [int(x) for x in h]) for h in hkl], dtype=np.complex128)
    density = through_density()
    density.d_min = d_min
    density.rate = 1.8
    density.set_grid_cell_and_spacegroup(model)
    density.set_refmac_compatible_blur(model[0])
    density.put_model_density_on_grid(model[0])
    grid = gemmi.transform_map_to_f_phi(density.grid)
    return np.asarray(grid.get_value_by_hkl(hkl, unblur=density.blur), dtype=np.complex128)


def _solvent(
    st: gemmi.Structure,
    spacegroup: gemmi.SpaceGroup,
    f: Complexes,
    hkl: Indices,
    d_min: float,
    f_obs: NDArray[np.float64] | None,
) -> tuple[Complexes, str]:
    """Add flat bulk solvent and, given measured amplitudes, bring F to their scale and anisotropy."""
    mask = gemmi.FloatGrid()
    mask.setup_from(st, spacing=min(1.0, d_min / 3))
    gemmi.SolventMasker(gemmi.AtomicRadiiSet.Cctbx).put_mask_on_float_grid(mask, st[0])
    f_mask = np.asarray(gemmi.transform_map_to_f_phi(mask).get_value_by_hkl(hkl), dtype=np.complex128)
    stol2 = st.cell.calculate_1_d2_array(hkl) / 4
    wet = float(np.mean(mask.array)) > LEAST_SOLVENT
    standard = f + SOLVENT[0] * np.exp(-SOLVENT[1] * stol2) * f_mask if wet else f
    story = f"solvent at k_sol {SOLVENT[0]}, B_sol {SOLVENT[1]:.0f}" if wet else "no solvent"
    usable = np.isfinite(f_obs) & (f_obs > 0) if f_obs is not None else np.zeros(len(hkl), dtype=bool)
    if f_obs is None or usable.sum() < LEAST_FITTED:
        return standard, story
    rows = np.flatnonzero(usable)
    rows = rows[np.lexsort(hkl[rows].T[::-1])]  # gemmi matches sorted lists
    observed = np.stack([f_obs[rows], 0.02 * (f_obs[rows] + f_obs[rows].mean())], axis=1)

    def fitted(calc: Complexes, masked: Complexes | None) -> gemmi.Scaling:
        index = np.ascontiguousarray(hkl[rows])
        sums = [
            gemmi.ComplexAsuData(st.cell, spacegroup, index, np.ascontiguousarray(x[rows], dtype=np.complex64))
            for x in (calc, masked)
            if x is not None
        ]
        obs = gemmi.ValueSigmaAsuData(st.cell, spacegroup, index, observed.astype(np.float32))
        scaling = gemmi.Scaling(st.cell, spacegroup)
        scaling.use_solvent = masked is not None
        scaling.prepare_points(sums[0], obs, *sums[1:])
        scaling.fit_isotropic_b_approximately()
        scaling.fit_parameters()
        return scaling

    if wet:
        scaling = fitted(f, f_mask)
        values = (scaling.k_sol, scaling.b_sol)
        if all(low <= x <= high for x, (low, high) in zip(values, SOLVENT_BOUNDS, strict=True)):
            total = f + scaling.k_sol * np.exp(-scaling.b_sol * stol2) * f_mask
            story = f"solvent fitted, k_sol {scaling.k_sol:.2f}, B_sol {scaling.b_sol:.0f}"
            return total * np.asarray(scaling.get_overall_scale_factor(hkl)), story
    scaling = fitted(standard, None)
    return standard * np.asarray(scaling.get_overall_scale_factor(hkl)), story


def model_reference(
    path: Path | str,
    hkl: Indices,
    cell: gemmi.UnitCell,
    spacegroup: gemmi.SpaceGroup,
    d_min: float,
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
    d_min : resolution of the hkl in A
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
    f = _atom_sum(model.structure, hkl, d_min, used)
    story = f"F_calc of {model.n_atoms} atoms, {used} scattering factors"
    if isinstance(model.structure, gemmi.Structure) and used == "X-ray":  # the mask's density is in electrons
        f, solvent = _solvent(model.structure, spacegroup, f, hkl, d_min, f_obs)
        story += f", {solvent}"
    return Reference(f, story)


def model_structure_factors(
    path: Path | str,
    hkl: Indices,
    cell: gemmi.UnitCell,
    spacegroup: gemmi.SpaceGroup,
    d_min: float,
    *,
    f_obs: NDArray[np.float64] | None = None,
    radiation: str | None = None,
) -> Complexes:
    """(n,) complex structure factors of a model: see `model_reference`."""
    return model_reference(path, hkl, cell, spacegroup, d_min, f_obs=f_obs, radiation=radiation).f


# --- files with phases


def to_asu(hkl: Indices, f: Complexes, spacegroup: gemmi.SpaceGroup) -> tuple[Indices, Complexes]:
    """Move reflections into gemmi's asymmetric unit, phases with them; equivalents are averaged."""
    ops, asu = spacegroup.operations(), gemmi.ReciprocalAsu(spacegroup)
    moved, isym = np.empty((len(hkl), 3), dtype=np.int32), np.empty(len(hkl), dtype=np.int64)
    for i, h in enumerate(hkl):
        moved[i], isym[i] = asu.to_asu([int(x) for x in h], ops)
    translations = np.array([op.tran for op in ops.sym_ops]) / gemmi.Op.DEN
    shift = -2 * np.pi * np.einsum("ij,ij->i", hkl, translations[(isym - 1) // 2])
    values = f * np.exp(1j * shift)  # F(hR) = F(h) exp(-2 pi i h.t)
    values = np.where(isym % 2 == 0, np.conj(values), values)
    unique, where = np.unique(moved, axis=0, return_inverse=True)
    where = where.reshape(-1)
    total = np.bincount(where, values.real, len(unique)) + 1j * np.bincount(where, values.imag, len(unique))
    mean = (total / np.bincount(where, minlength=len(unique))).astype(np.complex128)
    return unique.astype(np.int32), mean


def look_up(hkl: Indices, f: Complexes, wanted: Indices) -> Complexes:
    """Values (m,) at the reflections ``wanted`` (m, 3), NaN where there is none."""
    both = np.concatenate([hkl, wanted]).astype(np.int64) + 100_000
    keys = (both[:, 0] * 200_001 + both[:, 1]) * 200_001 + both[:, 2]
    have, want = keys[: len(hkl)], keys[len(hkl) :]
    out = np.full(len(wanted), np.nan + 0j)
    if len(have) == 0:
        return out
    order = np.argsort(have)
    place = np.minimum(np.searchsorted(have[order], want), len(have) - 1)
    hit = have[order][place] == want
    out[hit] = f[order[place[hit]]]
    return out


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
        ref = model_reference(reference, found.hkl, *crystal, float(d.min()), f_obs=found.f_obs)
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


def holds_phases(path: Path | str) -> bool:
    """True for a file to take phases from (MTZ, .fcf, .hkl), False for a model."""
    path = Path(path)
    if not path.is_file():
        raise UserError("no such file", str(path))
    return file_kind(path) in (".mtz", ".fcf", ".hkl")
