"""A user's phases brought to the data's reflections, against cctbx."""

import random

import pytest

cctbx = pytest.importorskip("cctbx")
from cctbx import miller, sgtbx, xray  # noqa: E402, F401
from cctbx.array_family import flex  # noqa: E402
from cctbx.development import random_structure  # noqa: E402

import gemmi  # noqa: E402  isort: skip
import numpy as np  # noqa: E402  isort: skip

from ml_phaser.crystal.reflections import Amplitudes, Source  # noqa: E402
from ml_phaser.exchange.phases import read_phases  # noqa: E402

GROUPS = [
    *("P 1", "P 1 21 1", "C 1 2 1", "I 1 2 1", "P 21 21 21", "P 31 2 1", "P 43 21 2", "I 41", "F d d 2", "R 3:H"),
    *("R 3:R", "P -1", "P 1 21/c 1", "I 21 3"),
]


def crystal(name, seed=1):
    """Data in gemmi's asymmetric unit and the structure they come from."""
    random.seed(seed)
    flex.set_random_seed(seed)
    info = sgtbx.space_group_info(symbol=name)
    structure = random_structure.xray_structure(info, elements=["C"] * 7 + ["S"], volume_per_atom=45, min_distance=1.2)
    cell, group = gemmi.UnitCell(*structure.unit_cell().parameters()), gemmi.SpaceGroup(name)
    hkl = np.asarray(gemmi.make_miller_array(cell, group, 1.6), dtype=np.int32)
    hkl = hkl[~np.asarray(group.operations().systematic_absences(hkl), dtype=bool)]
    f = calculated(structure, hkl)
    data = Amplitudes(hkl, np.abs(f), 0.02 * np.abs(f), cell, group, Source("none", "MTZ", ("F", "SIGF"), "amplitude"))
    return data, structure, f


def calculated(structure, hkl):
    """(n,) structure factors of any indices, by cctbx."""
    indices = flex.miller_index([tuple(int(x) for x in h) for h in hkl])
    array = miller.set(structure, indices, anomalous_flag=True)
    return np.array(array.structure_factors_from_scatterers(structure, algorithm="direct").f_calc().data())


def equivalents(data, structure, rng):
    """One equivalent or Friedel mate of each reflection, drawn by chance, with its structure factor."""
    ops = data.spacegroup.operations().sym_ops
    rot = np.array([np.array(op.rot) // op.DEN for op in ops])[rng.integers(0, len(ops), len(data))]
    hkl = np.einsum("ni,nij->nj", data.hkl, rot) * rng.choice([-1, 1], len(data))[:, None]
    return hkl.astype(np.int32), calculated(structure, hkl)


def write(path, data, hkl, columns, cell=None, group=None):
    """An MTZ of columns (label, type, values) as they stand."""
    mtz = gemmi.Mtz(with_base=True)
    mtz.spacegroup = group or data.spacegroup
    mtz.add_dataset("user")
    mtz.set_cell_for_all(cell or data.cell)
    for label, kind, _ in columns:
        mtz.add_column(label, kind)
    mtz.set_data(np.column_stack([hkl, *(x for _, _, x in columns)]).astype(np.float32))
    mtz.write_to_file(str(path))
    return path


def same_phases(known, f):
    """Nothing but the phases of f, where they are strong enough for single precision to tell."""
    strong = np.abs(f) > 1e-3 * np.abs(f).max()
    error = np.angle(known.centroid()[strong] * np.conj(f[strong]))
    assert np.abs(error).max() < 1e-3


@pytest.mark.parametrize("name", GROUPS)
def test_equivalent_reflections_bring_the_right_phases(name, tmp_path):
    data, structure, f = crystal(name)
    rng = np.random.default_rng(0)
    hkl, moved = equivalents(data, structure, rng)
    fom = np.full(len(hkl), 0.8)
    columns = [("PHI", "P", np.rad2deg(np.angle(moved))), ("FOM", "W", fom)]
    known = read_phases(write(tmp_path / "a.mtz", data, hkl, columns), data).known
    assert known.given.all()
    assert np.abs(known.centroid()) == pytest.approx(fom, abs=2e-3)
    same_phases(known, f)


@pytest.mark.parametrize("name", GROUPS)
def test_coefficients_turn_as_cctbx_turns_them(name, tmp_path):
    """map_to_asu of cctbx on A, B, C, D of acentric reflections in any asymmetric unit."""
    data, structure, _ = crystal(name)
    rng = np.random.default_rng(1)
    hkl, _ = equivalents(data, structure, rng)
    hl = rng.normal(0, 1, (len(hkl), 4)).astype(np.float32).astype(float)
    columns = [(f"HL{x}", "A", hl[:, i]) for i, x in enumerate("ABCD")]
    known = read_phases(write(tmp_path / "a.mtz", data, hkl, columns), data).known
    symmetry = cctbx.crystal.symmetry(structure.unit_cell(), space_group_info=structure.space_group_info())
    ours = flex.miller_index([tuple(int(x) for x in h) for h in data.hkl])
    theirs = flex.miller_index([tuple(int(x) for x in h) for h in hkl])

    def there(indices, values):
        array = miller.set(symmetry, indices, anomalous_flag=False).array(data=flex.hendrickson_lattman(values))
        mapped = array.map_to_asu()
        return {h: np.array(v) for h, v in zip(mapped.indices(), mapped.data(), strict=True)}

    mapped, back = there(theirs, hl.tolist()), there(ours, known.hl.tolist())
    acentric = [h for h in mapped if not structure.space_group().is_centric(h)]
    assert set(back) == set(mapped)
    assert len(acentric) > 0 or data.centric.all()
    for h in acentric:
        np.testing.assert_allclose(back[h], mapped[h], atol=2e-5)


@pytest.mark.parametrize(
    ("name", "other"), [("C 1 2 1", "I 1 2 1"), ("R 3:H", "R 3:R"), ("R 3:R", "R 3:H"), ("P 1 21/c 1", "P 1 21/n 1")]
)
def test_phases_in_another_setting(name, other, tmp_path):
    """Indices and phases that cctbx calculates for the structure moved to another setting."""
    data, structure, f = crystal(name)
    there = structure.as_reference_setting() if other == "R 3:H" else None
    if there is None:
        here_op = sgtbx.space_group_info(symbol=name).change_of_basis_op_to_reference_setting()
        other_op = sgtbx.space_group_info(symbol=other).change_of_basis_op_to_reference_setting()
        there = structure.change_basis(other_op.inverse() * here_op)
    group, cell = gemmi.SpaceGroup(other), gemmi.UnitCell(*there.unit_cell().parameters())
    assert there.space_group() == sgtbx.space_group_info(symbol=other).group()
    hkl = np.asarray(gemmi.make_miller_array(cell, group, 1.59), dtype=np.int32)
    phase = np.rad2deg(np.angle(calculated(there, hkl)))
    columns = [("PHI", "P", phase), ("FOM", "W", np.full(len(hkl), 0.9))]
    known = read_phases(write(tmp_path / "a.mtz", data, hkl, columns, cell, group), data).known
    assert known.given.mean() > 0.99
    f = np.where(known.given, f, 0)
    same_phases(known, f)
