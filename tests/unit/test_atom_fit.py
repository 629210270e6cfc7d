"""Least squares of atoms: structure factors against gemmi, derivatives against differences, steps that come home."""

import gemmi
import numpy as np
import pytest
from resolved import Made, in_gemmi

from ml_phaser.crystal.peaks import Atoms
from ml_phaser.phasing.atom_fit import Aim, Scattering, as_complex, fitted, stacked


@pytest.mark.parametrize("group", ["P 1", "P -1", "P 21 21 21", "P 31", "C 1 2 1", "I 4"])
def test_structure_factors_are_those_of_gemmi(group):
    rng = np.random.default_rng(3)
    edges = {"P 31": (7, 7, 11, 90, 90, 120), "C 1 2 1": (7, 8, 9, 90, 104, 90), "I 4": (7, 7, 9, 90, 90, 90)}
    cell = gemmi.UnitCell(*edges.get(group, (7, 8, 9, 90, 90, 90)))
    spacegroup = gemmi.SpaceGroup(group)
    frac, b = rng.random((5, 3)), rng.uniform(2, 20, 5)
    hkl = np.concatenate([gemmi.make_miller_array(cell, spacegroup, 1.0)[::3], [[1, 0, 0], [0, 2, 1]]])  # absent: some
    expected = in_gemmi(cell, spacegroup, frac, ["N"] * 5, b, hkl)
    shop, atoms = Scattering(hkl, cell, spacegroup), Atoms(frac, np.ones(5), b, np.ones(5, dtype=np.int64))
    assert np.abs(shop.calculate(atoms) - expected).max() < 2e-3 * np.abs(expected).max()
    halves = shop.at(atoms).of(np.array([3, 0])).joined(shop.at(atoms).of(np.array([1, 4, 2])))
    assert halves.atoms.b.tolist() == b[[3, 0, 1, 4, 2]].tolist()
    assert np.abs(halves.f - expected).max() < 2e-3 * np.abs(expected).max()
    assert not shop.calculate(atoms.take(np.zeros(0, dtype=int))).any()


def crystal(group, error=0.01, **changes):
    made = Made(group, count=5, **changes)
    rng = np.random.default_rng(1)
    frac = made.frac + error * rng.normal(size=made.frac.shape)
    atoms = Atoms(frac, np.linspace(0.5, 2, 5), made.b, np.array([1, 1, 2, 1, 1]))
    return made, Scattering(made.hkl, made.cell, made.spacegroup).at(atoms), rng


@pytest.mark.parametrize("group", ["P 1", "P 21 21 21"])
def test_derivatives_are_those_of_differences(group):
    _, state, _ = crystal(group)
    step, atoms = 1e-3, state.atoms

    def changed(x):
        frac = atoms.frac + x[:, 1:4]
        return Atoms(frac, atoms.weight * np.exp(x[:, 0]), atoms.b * np.exp(x[:, 4]), atoms.images)

    for atom in range(5):
        for what in range(5):
            one = np.zeros((5, 5), dtype=np.float32)
            one[atom, what] = step * (10 if what == 4 else 1)
            up, down = (state.scattering.calculate(changed(sign * one)) for sign in (1, -1))
            found = as_complex(state.forward(2 * one))
            if atom == 2 and 0 < what < 4:  # in a special position
                assert not found.any()
            else:
                assert np.abs(found - (up - down)).max() < 0.01 * np.abs(up - down).max()


@pytest.mark.parametrize("group", ["P -1", "P 21 21 21"])
def test_backward_is_the_transpose_of_forward(group):
    _, state, rng = crystal(group)
    change, residual = rng.normal(size=(5, 5)).astype("f4"), stacked(rng.normal(size=(len(state.f), 2)) @ [1, 1j])
    assert np.vdot(state.forward(change), residual) == pytest.approx(
        np.vdot(change, state.backward(residual)), rel=1e-3
    )


def test_the_curvature_is_that_of_single_atoms():
    """In P1 it is the diagonal itself."""
    _, state, _ = crystal("P 1")
    for atom, what in np.ndindex(5, 5):
        one = np.zeros((5, 5), dtype=np.float32)
        one[atom, what] = 1
        assert state.curvature[atom, what] == pytest.approx(np.sum(state.forward(one) ** 2), rel=1e-3)


@pytest.mark.parametrize("phased", [True, False])
@pytest.mark.parametrize("group", ["P 1", "P -1", "P 21 21 21"])
def test_atoms_go_back_to_where_they_came_from(group, phased):
    """0.1 A away, of wrong weight and B."""
    made = Made(group, 1.0, count=8, seed=1)
    rng, count = np.random.default_rng(0), len(made.frac)
    shop, ones = Scattering(made.hkl, made.cell, made.spacegroup), np.ones(count, dtype=np.int64)
    truth = Atoms(made.frac, rng.uniform(0.8, 1.2, count), rng.uniform(4, 6, count), ones)
    aim = Aim(shop.calculate(truth), phased, 1.0, 5.0)
    away = Atoms(made.frac + 0.1 / 8 * rng.normal(size=made.frac.shape), np.ones(count), np.full(count, 3.0), ones)
    found = fitted(shop, away, aim, 12)
    assert aim.value(found) < 0.01 * aim.value(shop.at(away))
    if phased:
        assert found.atoms.weight == pytest.approx(truth.weight, abs=0.05)
        assert found.atoms.b == pytest.approx(truth.b, abs=0.5)
    assert np.abs(np.abs(found.f) - np.abs(aim.target)).sum() < 0.02 * np.abs(aim.target).sum()


def test_no_step_makes_it_worse():
    """Far from everything, too."""
    made, _, rng = crystal("P 21 21 21")
    shop = Scattering(made.hkl, made.cell, made.spacegroup)
    for _ in range(5):
        atoms = Atoms(rng.random((6, 3)), np.ones(6), np.full(6, 3.0), np.ones(6, dtype=np.int64))
        for phased in (True, False):
            aim = Aim(made.f, phased, 1.0, 3.0)
            values = [aim.value(fitted(shop, atoms, aim, steps)) for steps in range(5)]
            assert (np.diff(values) <= 0).all()
            assert values[0] == pytest.approx(aim.value(shop.at(atoms)))


def test_displacements_stay_if_they_are_to():
    made, state, _ = crystal("P 21 21 21")
    aim, stiff = (Aim(made.f, True, 1.0, 3.0, spreads) for spreads in ((0.3, 0.35), (0.3, 0.0)))
    assert (stiff.step(state, 0.1).b == state.atoms.b).all()
    assert (aim.step(state, 0.1).b != state.atoms.b).any()
    assert aim.value(state) > stiff.value(state)
