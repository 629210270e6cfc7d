"""Structure factors against a plain sum over all atoms of the cell, gemmi, and finite differences."""

import gemmi
import numpy as np
import pytest
import torch
from crystals import CELLS

from ml_phaser.errors import UserError
from ml_phaser.structure_factors import calculate, direct
from ml_phaser.structure_factors.atoms import Atoms, Scatterer, atoms_of_small, atoms_of_structure
from ml_phaser.structure_factors.calculate import structure_factors
from ml_phaser.structure_factors.form_factors import form_factors, gaussians, ratio

SCATTERERS = (Scatterer("C"), Scatterer("Fe", -1.1, 3.2), Scatterer("O", 0.05, 0.03))
METHODS = ["direct", "fft"]


def reflections(name, d_min=1.6):
    cell, group = gemmi.UnitCell(*CELLS[name]), gemmi.SpaceGroup(name)
    return np.asarray(gemmi.make_miller_array(cell, group, d_min)), cell, group


def some_atoms(m=6, seed=0, anisotropic=True, scatterers=SCATTERERS):
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(m, 3, 3)) * 0.15
    u = (root @ root.transpose(0, 2, 1))[:, [0, 1, 2, 0, 0, 1], [0, 1, 2, 1, 2, 2]]
    return Atoms(
        torch.tensor(rng.random((m, 3))), torch.tensor(np.arange(m) % len(scatterers)),
        torch.tensor(rng.uniform(4, 20, m)), torch.tensor(rng.uniform(0.3, 1, m)),
        torch.tensor(u) if anisotropic else None, scatterers,
    )  # fmt: skip


def brute_force(atoms, hkl, cell, group):
    """The sum over every atom of the cell, its tensor turned with it, in numpy."""
    orth, frac = np.array(cell.orth.mat), np.array(cell.frac.mat)
    total = np.zeros(len(hkl), dtype=complex)
    s = hkl @ frac
    stol2 = (s**2).sum(axis=1) / 4
    for i, k in enumerate(atoms.kind.tolist()):
        kind = atoms.scatterers[k]
        a, b = gaussians(kind)
        f = sum(p * np.exp(-q * stol2) for p, q in zip(a, b, strict=True)) + kind.f_prime + 1j * kind.f_double_prime
        u = np.zeros(6) if atoms.u_aniso is None else atoms.u_aniso[i].numpy()
        u = u[[0, 3, 4, 3, 1, 5, 4, 5, 2]].reshape(3, 3) + np.eye(3) * float(atoms.b_iso[i]) / (8 * np.pi**2)
        for op in group.operations():
            turn = orth @ (np.array(op.rot) / op.DEN) @ frac
            x = op.apply_to_xyz(atoms.xyz[i].tolist())
            debye_waller = np.exp(-2 * np.pi**2 * np.einsum("ni,ij,nj->n", s, turn @ u @ turn.T, s))
            total += float(atoms.occupancy[i]) * f * debye_waller * np.exp(2j * np.pi * (hkl @ x))
    return total


def difference(f, expected):
    f, expected = (x.detach().numpy() if isinstance(x, torch.Tensor) else np.asarray(x) for x in (f, expected))
    return np.linalg.norm(f - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize("anisotropic", [False, True])
@pytest.mark.parametrize("name", CELLS)
def test_the_plain_sum_over_the_cell(name, anisotropic):
    hkl, cell, group = reflections(name)
    atoms = some_atoms(anisotropic=anisotropic)
    expected = brute_force(atoms, hkl, cell, group)
    assert difference(structure_factors(atoms, hkl, cell, group, "direct"), expected) < 1e-10
    assert difference(structure_factors(atoms, hkl, cell, group, "fft"), expected) < 5e-4


@pytest.mark.parametrize("method", METHODS)
def test_extinct_and_friedel_related_reflections(method):
    hkl, cell, group = reflections("C 1 2 1")
    hkl = np.concatenate([hkl, -hkl, hkl + np.array([1, 0, 0])])  # the last are extinct
    atoms = some_atoms(scatterers=(Scatterer("C"), Scatterer("O")))
    f = structure_factors(atoms, hkl, cell, group, method)
    n = len(f) // 3
    assert torch.allclose(f[n : 2 * n], f[:n].conj(), atol=1e-9)
    assert torch.all(f[2 * n :] == 0) and torch.all(f[:n].abs() > 0)


@pytest.mark.parametrize("method", METHODS)
def test_shifting_everything_shifts_phases(method):
    hkl, cell, group = reflections("P 1")
    atoms = some_atoms()
    shift = torch.tensor([3.27, -1.61, 0.45], dtype=torch.float64)
    moved = structure_factors(atoms.replace(xyz=atoms.xyz + shift), hkl, cell, group, method)
    turned = structure_factors(atoms, hkl, cell, group, method)
    turned = turned * torch.exp(2j * np.pi * (torch.tensor(hkl).double() @ shift))
    assert difference(moved, turned) < (1e-10 if method == "direct" else 5e-4)


def test_large_indices_in_single_precision():
    cell, group = gemmi.UnitCell(300, 320, 340, 90, 90, 90), gemmi.SpaceGroup("P 21 21 21")
    rng = np.random.default_rng(0)
    hkl = rng.integers(-150, 151, size=(300, 3))
    atoms = some_atoms(30, anisotropic=False)
    single = atoms.to(torch.float32).replace(xyz=atoms.xyz)
    expected = structure_factors(atoms, hkl, cell, group, "direct")
    f = structure_factors(single, hkl, cell, group, "direct")
    assert f.dtype == torch.complex64
    assert difference(f, expected) < 2e-6


@pytest.mark.parametrize("name", ["P 1", "P 1 21/c 1", "I 41", "R 3:H"])
def test_rows_and_terms_agree(name):
    """Direct summation by matrix products and term by term; where the lattice has no right angles only the latter."""
    hkl, cell, group = reflections(name, 1.2)
    atoms = some_atoms(20, anisotropic=False)
    rows = structure_factors(atoms, hkl, cell, group, "direct")
    terms = structure_factors(atoms.replace(u_aniso=torch.zeros(20, 6).double()), hkl, cell, group, "direct")
    assert difference(rows, terms) < 1e-12


def test_rectangles_hold_every_reflection_once():
    hkl = reflections("F 2 3", 0.9)[0]
    blocks = direct.rectangles(hkl.astype(np.int64), 2, 40)
    number = np.concatenate([b.number.numpy() for b in blocks])
    assert np.array_equal(np.sort(number), np.arange(len(hkl)))
    for b in blocks:
        row, column = np.divmod(b.flat.numpy(), len(b.columns))
        assert len(b.rows) <= 40
        assert np.array_equal(np.column_stack([b.rows[row], b.columns[column]]), hkl[b.number.numpy()])


@pytest.mark.parametrize("method", METHODS)
def test_a_batch_is_its_members_padded(method):
    hkl, cell, group = reflections("P 1 21 1")
    big, small = some_atoms(6, seed=1), some_atoms(4, seed=2)

    def padded(t, value=0.0):
        return torch.cat([t, torch.full((2, *t.shape[1:]), value, dtype=t.dtype)])

    batch = Atoms(
        torch.stack([big.xyz, padded(small.xyz)]), torch.stack([big.kind, padded(small.kind, 0)]),
        torch.stack([big.b_iso, padded(small.b_iso, 9.0)]), torch.stack([big.occupancy, padded(small.occupancy)]),
        torch.stack([big.u_aniso, padded(small.u_aniso)]), SCATTERERS,
    )  # fmt: skip
    f = structure_factors(batch, hkl, cell, group, method)
    for row, atoms in zip(f, (big, small), strict=True):
        assert difference(row, structure_factors(atoms, hkl, cell, group, method)) < 2e-4


def leaves(atoms, cell):
    """Everything that has a gradient."""
    orth = torch.tensor(np.array(cell.orth.mat))
    tensors = [atoms.xyz, atoms.b_iso, atoms.occupancy, atoms.u_aniso, orth]
    return [None if t is None else t.clone().requires_grad_() for t in tensors]


@pytest.mark.parametrize("name, anisotropic", [("P 1", True), ("C 1 2 1", False), ("C 1 2 1", True)])
def test_gradients_of_the_direct_sum(name, anisotropic):
    hkl, cell, group = reflections(name, 3.0)
    atoms = some_atoms(3, anisotropic=anisotropic)
    xyz, b, occupancy, u, _ = leaves(atoms, cell)

    def f(xyz, b, occupancy, *u):
        moved = atoms.replace(xyz=xyz, b_iso=b, occupancy=occupancy, u_aniso=u[0] if u else None)
        return structure_factors(moved, hkl, cell, group, "direct")

    assert torch.autograd.gradcheck(f, [t for t in (xyz, b, occupancy, u) if t is not None])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["P 1", "C 1 2 1", "R 3:H", "P 1 21/c 1"])
def test_gradients_by_finite_differences(name, method):
    """Of a function of all F, along random directions; the cell's along its own scale and axes."""
    hkl, cell, group = reflections(name, 1.8)
    atoms = some_atoms(5)
    tensors = leaves(atoms, cell)
    rng = torch.Generator().manual_seed(1)
    target = torch.randn(len(hkl), dtype=torch.complex128, generator=rng)

    def loss(xyz, b, occupancy, u, orth, how=method):
        moved = atoms.replace(xyz=xyz, b_iso=b, occupancy=occupancy, u_aniso=u)
        f = structure_factors(moved, hkl, orth, group, how)
        return (f.abs() ** 2).sum() / 50 + (f * target).real.sum()

    gradients = torch.autograd.grad(loss(*tensors), tensors)
    for i, gradient in enumerate(gradients):
        way = torch.randn(tensors[i].shape, dtype=torch.float64, generator=rng)
        if i == 4:  # one length for all axes
            way = tensors[4].detach() / 10
        step = 2e-5

        def at(x, i=i, way=way):
            changed = [t.detach() for t in tensors]
            changed[i] = changed[i] + x * way
            return float(loss(*changed, how="direct"))

        slope = (at(step) - at(-step)) / (2 * step)
        scale = float((gradient.norm() * way.norm()).detach())
        assert abs(float((gradient * way).sum()) - slope) < (2e-6 if method == "direct" else 2e-3) * scale


def test_the_cells_gradient_keeps_its_symmetry():
    hkl, cell, group = reflections("P 31 2 1", 1.8)
    orth = torch.tensor(np.array(cell.orth.mat)).requires_grad_()
    grads = []
    for method in METHODS:
        f = structure_factors(some_atoms(anisotropic=False), hkl, orth, group, method)
        grads.append(torch.autograd.grad(f.abs().sum(), orth)[0])
    assert difference(grads[1], grads[0]) < 2e-3
    stretch_a = torch.tensor(np.array(cell.orth.mat)) * torch.tensor([1.0, 0, 0])
    stretch_b = torch.tensor(np.array(cell.orth.mat)) * torch.tensor([0, 1.0, 0])
    assert float((grads[0] * stretch_a).sum()) == pytest.approx(float((grads[0] * stretch_b).sum()), rel=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_nothing_to_sum(method):
    hkl, cell, group = reflections("P 1 21 1", 3.0)
    none = structure_factors(some_atoms()[:0], hkl, cell, group, method)
    assert none.shape == (len(hkl),) and torch.all(none == 0)
    assert structure_factors(some_atoms(), hkl[:0], cell, group, method).shape == (0,)


def test_auto_is_exact_for_few_reflections_and_quick_for_many():
    hkl, cell, group = reflections("P 1 21 1", 2.0)
    assert calculate.quicker(some_atoms(), hkl, cell, group) == "direct"
    assert torch.equal(
        structure_factors(some_atoms(), hkl, cell, group), structure_factors(some_atoms(), hkl, cell, group, "direct")
    )
    large = gemmi.UnitCell(60, 70, 80, 90, 95, 90)
    many = gemmi.make_miller_array(large, group, 2.0)
    assert calculate.quicker(some_atoms(3000), many, large, group) == "fft"
    assert calculate.quicker(some_atoms(3000), many[:3], large, group) == "direct"
    assert calculate.quicker(some_atoms(3000), many[:3], torch.tensor(np.array(large.orth.mat)), group) == "direct"


@pytest.mark.parametrize("name, anisotropic", [("P 1", True), ("C 1 2 1", False)])
def test_chunks_do_not_matter(name, anisotropic):
    hkl, cell, group = reflections(name, 1.0)
    atoms, hkl = some_atoms(9, anisotropic=anisotropic), hkl.astype(np.int32)
    whole = direct.direct_sum(atoms, hkl, cell, group)
    assert difference(direct.direct_sum(atoms, hkl, cell, group, pairs=100), whole) < 1e-12


# Models


def model(text):
    return gemmi.read_pdb_string(text)


PDB = """CRYST1   20.000   25.000   30.000  90.00 100.00  90.00 P 1 21 1      2
ATOM      1  N   ALA A   1       1.000   2.000   3.000  1.00 10.00           N
ANISOU    1  N   ALA A   1     1000   1500   2000    100    -50     30       N
ATOM      2  CA AALA A   1       2.200   2.500   3.100  0.60 12.00           C
ATOM      3  CA BALA A   1       2.300   2.700   3.000  0.40 15.00           C
ATOM      4  H   ALA A   1       0.500   2.400   2.300  1.00 14.00           H
HETATM    5 FE    FE A   2       7.000   9.000  13.000  1.00  8.00          FE3+
END
"""


@pytest.mark.parametrize("table", ["xray", "electron"])
def test_a_model_as_gemmi_sums_it(table):
    structure = model(PDB)
    hkl = gemmi.make_miller_array(structure.cell, structure.find_spacegroup(), 2.0)
    calculator = (gemmi.StructureFactorCalculatorX if table == "xray" else gemmi.StructureFactorCalculatorE)(
        structure.cell
    )
    expected = [calculator.calculate_sf_from_model(structure[0], list(h)) for h in hkl.tolist()]
    atoms = atoms_of_structure(structure, table=table)
    assert difference(structure_factors(atoms, hkl, structure.cell, "P 1 21 1", "direct"), expected) < 1e-6
    assert difference(structure_factors(atoms, hkl, structure.cell, "P 1 21 1", "fft"), expected) < 5e-4


def test_anomalous_scattering_as_gemmi_sums_it():
    structure = model(PDB)
    hkl = gemmi.make_miller_array(structure.cell, structure.find_spacegroup(), 2.5)
    atoms = atoms_of_structure(structure, wavelength=1.5418)
    iron = next(s for s in atoms.scatterers if s.name == "Fe")
    assert iron.f_double_prime == pytest.approx(3.2, abs=0.1)
    calculator = gemmi.StructureFactorCalculatorX(structure.cell)
    for s in atoms.scatterers:
        calculator.addends.set(gemmi.Element(s.name), s.f_prime)
    expected = [calculator.calculate_sf_from_model(structure[0], list(h)) for h in hkl.tolist()]
    real = atoms.replace(scatterers=tuple(Scatterer(s.name, s.f_prime) for s in atoms.scatterers))
    assert difference(structure_factors(real, hkl, structure.cell, "P 1 21 1", "direct"), expected) < 1e-6


def test_ions_only_when_asked():
    assert {s.name for s in atoms_of_structure(model(PDB)).scatterers} == {"C", "Fe", "H", "N"}
    assert {s.name for s in atoms_of_structure(model(PDB), ions=True).scatterers} == {"C", "Fe3+", "H", "N"}
    assert sum(gaussians(Scatterer("Fe3+"))[0]) == pytest.approx(23, abs=0.05)
    assert sum(gaussians(Scatterer("Fe"))[0]) == pytest.approx(26, abs=0.05)
    assert gemmi.IT92_get_ignore_charge()


CIF = """data_x
_cell_length_a 8
_cell_length_b 9
_cell_length_c 10
_cell_angle_alpha 80
_cell_angle_beta 95
_cell_angle_gamma 105
_symmetry_space_group_name_H-M 'P -1'
loop_
_atom_site_label
_atom_site_type_symbol
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
_atom_site_U_iso_or_equiv
_atom_site_occupancy
Cu1 Cu 0 0 0 0.02 1
O1 O 0.1 0.2 0.3 0.03 1
C1 C 0.4 0.2 0.7 0.03 0.7
H1 H 0.42 0.25 0.75 0.05 1
loop_
_atom_site_aniso_label
_atom_site_aniso_U_11
_atom_site_aniso_U_22
_atom_site_aniso_U_33
_atom_site_aniso_U_12
_atom_site_aniso_U_13
_atom_site_aniso_U_23
O1 0.02 0.03 0.04 0.002 -0.003 0.005
"""


def test_a_small_molecule_as_gemmi_sums_it():
    small = gemmi.make_small_structure_from_block(gemmi.cif.read_string(CIF).sole_block())
    hkl = gemmi.make_miller_array(small.cell, small.spacegroup, 0.9)
    atoms = atoms_of_small(small)
    assert atoms.occupancy.tolist() == [0.5, 1.0, 0.7, 1.0]
    small.change_occupancies_to_crystallographic()
    calculator = gemmi.StructureFactorCalculatorX(small.cell)
    expected = [calculator.calculate_sf_from_small_structure(small, list(h)) for h in hkl.tolist()]
    assert difference(structure_factors(atoms, hkl, small.cell, "P -1", "direct"), expected) < 1e-6
    assert difference(structure_factors(atoms, hkl, small.cell, "P -1", "fft"), expected) < 5e-4


def test_a_model_without_atoms():
    atoms = atoms_of_structure(gemmi.Structure())
    assert atoms.xyz.shape == (0, 3) and atoms.scatterers == ()


def test_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match="b_iso"):
        some_atoms().replace(b_iso=torch.zeros(3))


# Scattering factors


def test_unknown_scatterers():
    for scatterer in (Scatterer("Qq"), Scatterer("X"), Scatterer("Es"), Scatterer("")):
        with pytest.raises(UserError, match="scattering factor"):
            gaussians(scatterer)


def test_an_impossible_wavelength():
    with pytest.raises(UserError, match="wavelength"):
        atoms_of_structure(model(PDB), wavelength=1000.0)


@pytest.mark.parametrize("name", ["H", "N", "O", "S", "Fe"])
def test_the_ratio_of_scattering_factors_is_as_good_as_asked(name):
    tolerance = 1e-3
    a, b = ratio(Scatterer(name), Scatterer("C"), 1 / 1.5, tolerance)
    s = torch.linspace(0, 1 / 1.5, 101, dtype=torch.float64)
    own, carbon = form_factors((Scatterer(name), Scatterer("C")), (s / 2) ** 2)
    fitted = carbon * sum(p * torch.exp(-q * s**2 / 4) for p, q in zip(a, b, strict=True))
    assert torch.all((fitted - own).abs() < 1.2 * tolerance * torch.maximum(own, carbon))
