"""Structure factors against cctbx's direct summation, over space groups and kinds of displacement and scattering."""

import iotbx.pdb
import numpy as np
import pytest
import torch
from cctbx import adptbx, crystal, miller, xray
from cctbx.array_family import flex
from in_cctbx import group as cctbx_group
from in_cctbx import miller_set

import gemmi  # isort: skip  (after cctbx)

from ml_phaser.structure_factors.atoms import Atoms, Scatterer, atoms_of_structure
from ml_phaser.structure_factors.calculate import structure_factors

GROUPS = {
    "P 1": (11.1, 12.3, 14.2, 81.0, 95.0, 103.0),
    "P -1": (11.1, 12.3, 14.2, 81.0, 95.0, 103.0),
    "P 1 21 1": (10.0, 12.0, 15.0, 90.0, 104.0, 90.0),
    "P 1 21/c 1": (10.0, 12.0, 15.0, 90.0, 104.0, 90.0),
    "C 1 2 1": (20.0, 10.0, 12.0, 90.0, 101.0, 90.0),
    "I 1 2 1": (18.0, 10.0, 12.0, 90.0, 112.0, 90.0),
    "P 21 21 21": (10.0, 12.5, 16.0, 90.0, 90.0, 90.0),
    "C 2 2 21": (16.0, 19.0, 12.0, 90.0, 90.0, 90.0),
    "F 2 2 2": (18.0, 22.0, 25.0, 90.0, 90.0, 90.0),
    "F d d 2": (18.0, 22.0, 12.0, 90.0, 90.0, 90.0),
    "I 41": (15.0, 15.0, 17.0, 90.0, 90.0, 90.0),
    "P 43 21 2": (14.0, 14.0, 19.0, 90.0, 90.0, 90.0),
    "I 41/a:1": (15.0, 15.0, 18.0, 90.0, 90.0, 90.0),
    "P 31 2 1": (13.0, 13.0, 17.0, 90.0, 90.0, 120.0),
    "R 3:H": (20.0, 20.0, 14.0, 90.0, 90.0, 120.0),
    "R 3:R": (13.0, 13.0, 13.0, 72.0, 72.0, 72.0),
    "R -3 c:H": (20.0, 20.0, 24.0, 90.0, 90.0, 120.0),
    "R 3 2:R": (12.0, 12.0, 12.0, 55.0, 55.0, 55.0),
    "P 65 2 2": (15.0, 15.0, 20.0, 90.0, 90.0, 120.0),
    "P 21 3": (17.0, 17.0, 17.0, 90.0, 90.0, 90.0),
    "I 2 3": (21.0, 21.0, 21.0, 90.0, 90.0, 90.0),
    "F 4 3 2": (26.0, 26.0, 26.0, 90.0, 90.0, 90.0),
    "F d -3 m:2": (26.0, 26.0, 26.0, 90.0, 90.0, 90.0),
}


def crystal_of(name, anisotropic, anomalous, atoms=12):
    """Random atoms, as tensors and as a cctbx structure; reflections to 1.5 A."""
    rng = np.random.default_rng(len(name))
    cell, group = gemmi.UnitCell(*GROUPS[name]), gemmi.SpaceGroup(name)
    elements = ["C", "N", "O", "S", "Fe"]
    kind = np.concatenate([np.arange(5), rng.integers(5, size=atoms - 5)])
    dispersion = [(0.1, 0.0), (0.0, 0.0), (-0.2, 0.1), (0.4, 0.6), (-1.2, 3.1)] if anomalous else [(0.0, 0.0)] * 5
    xyz, b, occupancy = rng.random((atoms, 3)), rng.uniform(5, 40, atoms), rng.uniform(0.3, 1, atoms)
    root = rng.normal(size=(atoms, 3, 3)) * 0.25
    u = root @ root.transpose(0, 2, 1) + 0.04 * np.eye(3)
    u = u[:, [0, 1, 2, 0, 0, 1], [0, 1, 2, 1, 2, 2]] * (np.arange(atoms) % 2 == 0)[:, None] * anisotropic
    b = np.where(u.any(axis=1), 0, b)
    symmetry = crystal.symmetry(unit_cell=cell.parameters, space_group=cctbx_group(group))
    special = crystal.special_position_settings(symmetry, min_distance_sym_equiv=0)
    theirs = xray.structure(special_position_settings=special)
    for i in range(atoms):
        move = {"u": b[i] / (8 * np.pi**2)}
        if u[i].any():
            move = {"u": adptbx.u_cart_as_u_star(symmetry.unit_cell(), tuple(u[i]))}
        fp, fdp = dispersion[kind[i]]
        theirs.add_scatterer(
            xray.scatterer(f"A{i}", tuple(xyz[i]), occupancy=occupancy[i], scattering_type=elements[kind[i]],
                           fp=fp, fdp=fdp, **move)
        )  # fmt: skip
    theirs.scattering_type_registry(table="it1992")
    ours = Atoms(
        torch.tensor(xyz), torch.tensor(kind), torch.tensor(b), torch.tensor(occupancy),
        torch.tensor(u) if anisotropic else None,
        tuple(Scatterer(e, *d) for e, d in zip(elements, dispersion, strict=True)),
    )  # fmt: skip
    hkl = gemmi.make_miller_array(cell, group, 1.5)
    if anomalous:
        hkl = np.concatenate([hkl, -hkl[: len(hkl) // 2]])
    return ours, theirs, np.asarray(hkl), cell, group


def by_cctbx(structure, hkl):
    indices = flex.miller_index([tuple(int(i) for i in h) for h in hkl])
    reflections = miller.set(structure.crystal_symmetry(), indices, anomalous_flag=True)
    f = reflections.structure_factors_from_scatterers(structure, algorithm="direct", cos_sin_table=False).f_calc()
    return f.data().as_numpy_array()


def difference(f, expected):
    return np.linalg.norm(f.detach().numpy() - expected) / np.linalg.norm(expected)


def single(atoms):
    return atoms.to(torch.float32).replace(xyz=atoms.xyz)


@pytest.mark.parametrize("anisotropic, anomalous", [(False, False), (True, True)], ids=["plain", "anisotropic"])
@pytest.mark.parametrize("name", GROUPS)
def test_every_kind_of_group(name, anisotropic, anomalous):
    atoms, structure, hkl, cell, group = crystal_of(name, anisotropic, anomalous)
    expected = by_cctbx(structure, hkl)
    assert np.linalg.norm(expected) > 100
    assert difference(structure_factors(atoms, hkl, cell, group, "direct"), expected) < 1e-7
    assert difference(structure_factors(single(atoms), hkl, cell, group, "direct"), expected) < 1e-5
    assert difference(structure_factors(single(atoms), hkl, cell, group, "fft"), expected) < 5e-4


@pytest.mark.parametrize("d_min", [0.8, 1.2, 2.5, 4.0])
def test_fft_at_all_resolutions(d_min):
    cell, group = gemmi.UnitCell(40.0, 45.0, 50.0, 90.0, 98.0, 90.0), gemmi.SpaceGroup("C 1 2 1")
    rng = np.random.default_rng(1)
    m = 60
    mean_b = 4 + 8 * d_min**1.5
    kind = torch.tensor(rng.choice(6, size=m, p=[0.4, 0.12, 0.12, 0.3, 0.04, 0.02]))
    atoms = Atoms(
        torch.tensor(rng.random((m, 3))), kind, torch.tensor(mean_b * rng.uniform(0.4, 2, m)), torch.ones(m).double(),
        None, tuple(Scatterer(e) for e in ("C", "N", "O", "H", "S", "Zn")),
    )  # fmt: skip
    hkl = np.asarray(gemmi.make_miller_array(cell, group, d_min))
    kept = np.random.default_rng(0).permutation(len(hkl))[:800]
    kept[0] = int(np.argmax(cell.calculate_1_d2_array(hkl)))
    structure = xray.structure(
        special_position_settings=crystal.special_position_settings(
            miller_set(cell, group, hkl[:1]).crystal_symmetry(), min_distance_sym_equiv=0
        )
    )
    for i in range(m):
        structure.add_scatterer(
            xray.scatterer(
                f"A{i}", tuple(atoms.xyz[i].tolist()), u=float(atoms.b_iso[i]) / (8 * np.pi**2),
                scattering_type=atoms.scatterers[int(kind[i])].name,
            )
        )  # fmt: skip
    structure.scattering_type_registry(table="it1992")
    expected = by_cctbx(structure, hkl[kept])
    f = structure_factors(single(atoms), hkl, cell, group, "fft")[torch.from_numpy(kept)]
    assert difference(f, expected) < 5e-4


@pytest.mark.shared
def test_a_deposited_model(shared_data):
    path = shared_data / "diffraction" / "1dur" / "1dur.pdb"
    if not path.is_file():
        pytest.skip("1dur is not among the measured data")
    model = gemmi.read_structure(str(path))
    structure = iotbx.pdb.input(str(path)).xray_structure_simple()
    structure.scattering_type_registry(table="it1992")
    hkl = gemmi.make_miller_array(model.cell, model.find_spacegroup(), 2.5)
    atoms = atoms_of_structure(model)
    expected = by_cctbx(structure, hkl)
    assert difference(structure_factors(single(atoms), hkl, model.cell, "P 21 21 21", "direct"), expected) < 1e-5
    assert difference(structure_factors(single(atoms), hkl, model.cell, "P 21 21 21", "fft"), expected) < 1e-3


def test_an_atom_left_whole_on_a_special_position_counts_once(tmp_path):
    """As cctbx does it: occupancy 1 on the axis is divided, 0.5 is taken as it is."""
    text = "CRYST1   20.000   25.000   30.000  90.00 100.00  90.00 P 1 2 1       2\n"
    text += "".join(
        f"HETATM{i:5d}  O   HOH A{i:4d}    {x:8.3f}{y:8.3f}{z:8.3f}{q:6.2f} 20.00           O\n"
        for i, (x, y, z, q) in enumerate([(0, 5, 0, 1), (0, 9, 0, 0.5), (4, 5, 6, 1), (3, 3, 3, 0.5)], 1)
    )
    path = tmp_path / "water.pdb"
    path.write_text(text + "END\n")
    model = gemmi.read_structure(str(path))
    structure = iotbx.pdb.input(str(path)).xray_structure_simple()
    structure.scattering_type_registry(table="it1992")
    hkl = gemmi.make_miller_array(model.cell, gemmi.SpaceGroup("P 1 2 1"), 2.0)
    f = structure_factors(atoms_of_structure(model), hkl, model.cell, "P 1 2 1", "direct")
    assert difference(f, by_cctbx(structure, hkl)) < 1e-6
