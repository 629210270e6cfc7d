"""Solvent masks: transforms against sums, the smooth mask against the exact one, gradients against differences."""

import gemmi
import numpy as np
import pytest
import torch

from ml_phaser.structure_factors import solvent
from ml_phaser.structure_factors.solvent import SmoothMask, exact_mask, mask_factors, radius

CRYSTALS = [
    ("P 1", (24, 26, 28, 85, 100, 110)),
    ("C 1 2 1", (44, 22, 30, 90, 118, 90)),
    ("P 21 21 21", (26, 30, 34, 90, 90, 90)),
    ("P 31 2 1", (36, 36, 33, 90, 90, 120)),
    ("I 2 3", (44, 44, 44, 90, 90, 90)),
]


def crystal(name, cell, seed=0, n=70):
    """A compact chain of atoms in bonding distance, one of them hydrogen and one unoccupied, far from the rest."""
    rng = np.random.default_rng(seed)
    st = gemmi.Structure()
    st.cell, st.spacegroup_hm = gemmi.UnitCell(*cell), name
    start = np.array([5.0, 4.0, 6.0])
    places = [start]
    while len(places) < n:
        step = rng.normal(size=3)
        new = places[rng.integers(len(places))] + 1.45 * step / np.linalg.norm(step)
        if min(np.linalg.norm(new - x) for x in places) > 1.3 and np.linalg.norm(new - start) < 7:
            places.append(new)
    residue = gemmi.Residue()
    residue.name, residue.seqid = "LIG", gemmi.SeqId("1")
    for i, place in enumerate([*places, start + 14, start + 15]):
        atom = gemmi.Atom()
        atom.name, atom.element = f"A{i}", gemmi.Element(["C", "N", "O", "S"][i % 4] if i != n else "H")
        atom.pos, atom.b_iso, atom.occ = gemmi.Position(*place), 20, 0.0 if i == n + 1 else 1.0
        residue.add_atom(atom)
    chain, model = gemmi.Chain("A"), gemmi.Model(1)
    chain.add_residue(residue)
    model.add_chain(chain)
    st.add_model(model)
    st.setup_cell_images()
    return st


def parts(st):
    """Fractional coordinates, elements, occupancies."""
    atoms = [cra.atom for cra in st[0].all()]
    xyz = torch.tensor([st.cell.fractionalize(a.pos).tolist() for a in atoms], dtype=torch.float64)
    return xyz, [a.element.name for a in atoms], [a.occ for a in atoms]


@pytest.mark.parametrize(("name", "cell"), CRYSTALS)
def test_smooth_mask_follows_the_exact_one(name, cell):
    st = crystal(name, cell)
    group = st.find_spacegroup()
    hkl = gemmi.make_miller_array(st.cell, group, 2.5)
    d = st.cell.calculate_d_array(hkl)
    fine = exact_mask(st, spacing=0.22)
    exact = mask_factors(fine, hkl, st.cell).abs().numpy()
    xyz, elements, occupancy = parts(st)
    mask = SmoothMask.of(st.cell, group, elements, occupancy)(xyz)
    smooth = mask_factors(mask, hkl, st.cell).abs().numpy()
    assert mask.min() > -1e-3 and mask.max() < 1.001
    assert mask.mean().item() == pytest.approx(float(fine.mean()), abs=0.01)
    for limit, least in ((4.0, 0.995), (2.5, 0.99)):
        assert np.corrcoef(exact[d >= limit], smooth[d >= limit])[0, 1] > least
    shell = d < 4
    assert np.corrcoef(exact[shell], smooth[shell])[0, 1] > 0.9, "not only where the paper's mask does well"


@pytest.mark.parametrize(("name", "cell"), CRYSTALS[1:4])
def test_smooth_mask_has_the_symmetry_of_the_group(name, cell):
    st = crystal(name, cell)
    xyz, elements, occupancy = parts(st)
    mask = SmoothMask.of(st.cell, st.find_spacegroup(), elements, occupancy, dtype=torch.float64)(xyz)
    n = np.array(mask.shape)
    points = np.random.default_rng(0).integers(0, n, size=(200, 3))
    for op in st.find_spacegroup().operations():
        image = points / n @ (np.array(op.rot) / op.DEN).T + np.array(op.tran) / op.DEN
        index = np.rint(image * n).astype(int)
        np.testing.assert_allclose(index, image * n, atol=1e-6)
        np.testing.assert_allclose(mask[tuple((index % n).T)], mask[tuple(points.T)], atol=1e-9)


@pytest.mark.parametrize(("name", "cell"), [CRYSTALS[0], CRYSTALS[3]])
def test_gradients_are_those_of_finite_differences(name, cell):
    st = crystal(name, cell, n=25)
    group = st.find_spacegroup()
    hkl = gemmi.make_miller_array(st.cell, group, 3.5)
    xyz, elements, occupancy = parts(st)
    smooth = SmoothMask.of(st.cell, group, elements, occupancy, spacing=0.6, dtype=torch.float64)
    weight = torch.tensor(np.random.default_rng(1).normal(size=(2, len(hkl))))

    def loss(x):
        f = mask_factors(smooth(x), hkl, st.cell)
        return (weight[0] * f.real + weight[1] * f.imag).sum()

    x = xyz.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(x), x)
    direction = torch.tensor(np.random.default_rng(2).normal(size=xyz.shape))
    step = 1e-6
    numeric = (loss(xyz + step * direction) - loss(xyz - step * direction)) / (2 * step)
    assert (gradient * direction).sum().item() == pytest.approx(numeric.item(), rel=1e-5)
    assert gradient[-2:].abs().max() == 0, "hydrogen and unoccupied atoms are not in the mask"


def test_transform_is_the_sum_over_the_grid():
    cell = gemmi.UnitCell(9, 10, 11, 80, 95, 105)
    mask = np.random.default_rng(0).random((10, 12, 15))
    hkl = np.array([[0, 0, 0], [1, -2, 3], [-4, 5, -7], [3, 0, 0], [0, -5, 0], [4, 5, 7], [5, 0, 0], [0, 0, 9]])
    u, v, w = (np.arange(n) / n for n in mask.shape)
    turns = hkl[:, 0, None, None, None] * u[:, None, None] + hkl[:, 1, None, None, None] * v[:, None]
    turns = turns + hkl[:, 2, None, None, None] * w
    expected = (mask * np.exp(2j * np.pi * turns)).sum(axis=(1, 2, 3)) * cell.volume / mask.size
    expected[-2:] = 0  # beyond the grid
    np.testing.assert_allclose(mask_factors(mask, hkl, cell).numpy(), expected, atol=1e-9 * cell.volume)


def test_chunks_make_no_difference(monkeypatch):
    st = crystal(*CRYSTALS[2])
    xyz, elements, occupancy = parts(st)
    smooth = SmoothMask.of(st.cell, st.find_spacegroup(), elements, occupancy, spacing=0.7, dtype=torch.float64)

    def values():
        x = xyz.clone().requires_grad_()
        mask = smooth(x)
        (mask**2).sum().backward()
        return mask.detach(), x.grad

    whole = values()
    monkeypatch.setattr(solvent, "_PAIRS", 1)
    for a, b in zip(whole, values(), strict=True):
        torch.testing.assert_close(a, b)


def test_an_empty_cell_is_all_solvent():
    cell, group = gemmi.UnitCell(10, 11, 12, 90, 90, 90), gemmi.SpaceGroup("P 2 2 2")
    mask = SmoothMask.of(cell, group, ["H"])(torch.zeros(1, 3))
    torch.testing.assert_close(mask, torch.ones_like(mask), atol=1e-5, rtol=0)


@pytest.mark.parametrize("element", ["C", "N", "O", "P", "S", "Zn", "Ca", "Se", "Fe", "I", "Si"])
def test_radii_are_those_of_the_exact_mask(element):
    st = gemmi.Structure()
    st.cell, st.spacegroup_hm = gemmi.UnitCell(12, 12, 12, 90, 90, 90), "P 1"
    atom = gemmi.Atom()
    atom.element, atom.pos, atom.occ = gemmi.Element(element), gemmi.Position(6.1, 6.2, 6.3), 1.0
    residue, chain, model = gemmi.Residue(), gemmi.Chain("A"), gemmi.Model(1)
    residue.add_atom(atom)
    chain.add_residue(residue)
    model.add_chain(chain)
    st.add_model(model)
    volume = float((1 - exact_mask(st, spacing=0.15, shrink=0.0)).mean()) * st.cell.volume
    assert (0.75 * volume / np.pi) ** (1 / 3) - solvent.PROBE == pytest.approx(radius(element), abs=0.01)
