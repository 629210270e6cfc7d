"""Free atoms on a grid: against gemmi and against sums of waves, which have tests of their own."""

import gemmi
import numpy as np
import pytest
from resolved import Made, in_gemmi

from ml_phaser.crystal.peaks import Atoms
from ml_phaser.phasing.atom_fit import Aim, Scattering, fitted, stacked
from ml_phaser.phasing.atom_grid import OnGrid, scattering, step_cost
from ml_phaser.phasing.free_atoms import Moduli, Workshop

CELLS = {
    "P 1": (12, 14, 15, 80, 101, 96), "P -1": (12, 14, 15, 80, 101, 96), "P 21 21 21": (13, 14, 19, 90, 90, 90),
    "P 32 2 1": (17, 17, 21, 90, 90, 120), "C 1 2 1": (21, 12, 14, 90, 104, 90), "I 41": (15, 15, 19, 90, 90, 90),
}  # fmt: skip


def crystal(group, count=12, d_min=1.3, seed=3):
    """Reflections, absent ones among them, and atoms, one of them in a special position."""
    cell, spacegroup, rng = gemmi.UnitCell(*CELLS[group]), gemmi.SpaceGroup(group), np.random.default_rng(seed)
    hkl = np.concatenate([gemmi.make_miller_array(cell, spacegroup, d_min), [[1, 0, 0], [0, 2, 1]]]).astype(np.int32)
    images = np.ones(count, dtype=np.int64)
    images[2] = 2
    atoms = Atoms(3 * rng.random((count, 3)) - 1, rng.uniform(0.3, 2, count), rng.uniform(2, 40, count), images)
    return (hkl, cell, spacegroup), atoms, rng


def apart(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize("group", CELLS)
def test_structure_factors_are_those_of_gemmi(group):
    where, atoms, _ = crystal(group)
    atoms = Atoms(atoms.frac, np.ones(12), atoms.b, np.ones(12, dtype=np.int64))
    expected = in_gemmi(where[1], where[2], atoms.frac, ["N"] * 12, atoms.b, where[0])
    grid = OnGrid(*where)
    assert apart(grid.calculate(atoms), expected) < 2e-3
    fine = grid.stol2 > np.quantile(grid.stol2, 0.9)
    assert apart(grid.calculate(atoms)[fine], expected[fine]) < 5e-3
    state = grid.at(atoms)
    halves = state.of(np.array([5, 0, 7])).joined(state.of(np.array([1, 2, 3, 4, 6, 8, 9, 10, 11])))
    assert halves.atoms.b.tolist() == atoms.b[[5, 0, 7, 1, 2, 3, 4, 6, 8, 9, 10, 11]].tolist()
    assert apart(halves.f, state.f) < 1e-5
    assert not grid.calculate(atoms.take(np.zeros(0, dtype=int))).any()


@pytest.mark.parametrize("columns", [4, 5])
@pytest.mark.parametrize("group", CELLS)
def test_changes_are_those_of_waves(group, columns):
    where, atoms, rng = crystal(group)
    grid, waves = OnGrid(*where).at(atoms), Scattering(*where).at(atoms)
    change = rng.normal(size=(12, columns)).astype("f4")
    residual = stacked(rng.normal(size=(len(where[0]), 2)) @ [1, 1j])
    assert apart(grid.forward(change), waves.forward(change)) < 5e-3
    found, expected = grid.backward(residual, columns), waves.backward(residual, columns)
    assert found.shape == (12, columns)
    for column in range(columns):
        assert apart(found[:, column], expected[:, column]) < 1e-2
    assert not found[2, 1:4].any()  # it stays in its special position
    # To rounding, whatever the grid: conjugate gradients need it.
    assert np.vdot(grid.forward(change), residual) == pytest.approx(np.vdot(change, found), rel=1e-4, abs=1e-2)


@pytest.mark.parametrize("group", ["P 1", "P 32 2 1"])
def test_curvatures_are_those_of_waves(group):
    where, atoms, _ = crystal(group)
    assert OnGrid(*where).at(atoms).curvature == pytest.approx(Scattering(*where).at(atoms).curvature, rel=1e-2)
    none = atoms.take(np.zeros(0, dtype=int))
    assert OnGrid(*where).at(none).curvature.shape == (0, 5)


@pytest.mark.parametrize("phased", [True, False])
def test_atoms_go_back_to_where_they_came_from(phased):
    made, rng = Made("P 21 21 21", 1.2, count=12, seed=1), np.random.default_rng(2)
    target = made.f if phased else np.abs(made.f).astype(complex)
    way = rng.normal(size=made.frac.shape) * (0.06 / np.array(made.cell.parameters[:3]))
    start = Atoms(made.frac + way, np.full(12, 0.9), np.full(12, made.b.mean()), np.ones(12, dtype=np.int64))
    aim = Aim(target, phased, 1.0, float(made.b.mean()))
    ends = [fitted(kind(made.hkl, made.cell, made.spacegroup), start, aim, 15) for kind in (OnGrid, Scattering)]
    before, after, by_waves = (aim.value(state) for state in (OnGrid(*_where(made)).at(start), *ends))
    assert after < 0.05 * before
    assert after == pytest.approx(by_waves, abs=0.005 * before)


def _where(made):
    return made.hkl, made.cell, made.spacegroup


CELL, GROUP = gemmi.UnitCell(50, 60, 70, 90, 90, 90), gemmi.SpaceGroup("P 21 21 21")


def test_many_atoms_go_on_the_grid():
    where, _, _ = crystal("P 21 21 21")
    assert type(scattering(*where, 5)) is Scattering
    hkl = gemmi.make_miller_array(CELL, GROUP, 1.5)
    assert type(scattering(hkl, CELL, GROUP, 1000)) is OnGrid
    ones = np.ones(len(hkl))
    shop = Workshop(Moduli(hkl, ones, ones > 0, CELL, GROUP, 15.0))
    assert type(shop.every) is type(shop.fitted) is OnGrid


def test_the_cost_of_a_step_grows_with_pairs_and_then_more_slowly():
    where, _, _ = crystal("P 21 21 21")
    assert step_cost(*where, 4) == pytest.approx(2 * step_cost(*where, 2))
    hkl = gemmi.make_miller_array(CELL, GROUP, 1.5)
    few, some, many = (step_cost(hkl, CELL, GROUP, atoms) for atoms in (10, 1000, 2000))
    assert many < 2 * some < 40 * few
    assert step_cost(hkl, CELL, GROUP, 1000, gradients=12) > some
