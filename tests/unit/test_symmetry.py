"""P1 expansion against structure factors of symmetry-expanded random atoms."""

import gemmi
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml_phaser.crystal.symmetry import expand

# every lattice type, screw axes and glides, both rhombohedral settings, unusual settings, both origins
GROUPS = """P 1;P -1;P 1 2 1;P 1 21 1;C 1 2 1;A 1 2 1;I 1 2 1;P 1 1 21;P 1 21/c 1;P 1 21/n 1;C 1 2/c 1;
C 1 c 1;P 21 21 2;P 21 21 21;C 2 2 21;F 2 2 2;I 21 21 21;P n a 21;P b c a;F d d 2;F d d d:1;F d d d:2;A b a 2;
P 41;P 43 21 2;I 41;I 41/a:2;I -4 2 d;I 41/a m d:1;P 4/n:1;
P 31;P 31 2 1;P 31 1 2;P 32 2 1;R 3:H;R 3:R;R 3 2:H;R 3 2:R;R -3 c:H;R -3 c:R;P 61;P 65 2 2;P 63/m;P -6 2 c;
P 2 3;F 2 3;I 2 3;P 21 3;I 21 3;P 41 3 2;F 41 3 2;I 41 3 2;P a -3;F d -3:1;F d -3 m:2;I a -3 d;P -4 3 n"""
GROUPS = [name.strip() for name in GROUPS.replace("\n", "").split(";")]


def cell_for(sg):
    """A cell whose metric the group's rotations keep, oblique where they allow it."""
    general = np.array([[9.1, 0, 0], [1.3, 11.7, 0], [-1.7, 2.1, 13.9]])
    metric = general @ general.T
    rotations = [np.array(op.rot) / op.DEN for op in sg.operations().sym_ops]
    metric = sum(rot.T @ metric @ rot for rot in rotations) / len(rotations)
    a, b, c = np.sqrt(np.diag(metric))
    cosines = metric[1, 2] / (b * c), metric[0, 2] / (a * c), metric[0, 1] / (a * b)
    return gemmi.UnitCell(a, b, c, *np.degrees(np.arccos(cosines)))


def crystal(name, seed=0, per_axis=4, atoms=4):
    """Space group, cell, unique indices, and a function that sums over every atom of the cell."""
    sg = gemmi.SpaceGroup(name)
    cell = cell_for(sg)
    hkl = gemmi.make_miller_array(cell, sg, max(cell.a, cell.b, cell.c) / per_axis)
    rng = np.random.default_rng(seed)
    xyz, weight = rng.random((atoms, 3)), rng.uniform(5, 9, atoms)
    every = np.array([op.apply_to_xyz(list(x)) for x in xyz for op in sg.operations()])
    weights = np.repeat(weight, len(list(sg.operations())))

    def structure_factors(h):
        return np.exp(2j * np.pi * (np.asarray(h) @ every.T)) @ weights

    return sg, cell, np.asarray(hkl, dtype=np.int32), structure_factors


def test_the_list_of_groups_holds_every_lattice_and_system():
    groups = [gemmi.SpaceGroup(name) for name in GROUPS]
    assert {sg.crystal_system_str() for sg in groups} == {
        *("triclinic", "monoclinic", "orthorhombic", "tetragonal", "trigonal", "hexagonal", "cubic")
    }
    assert {sg.centring_type() for sg in groups} >= set("PACIFR")
    assert {sg.point_group_hm() for sg in groups} >= {"1", "2", "222", "422", "32", "622", "23", "432"}


@pytest.mark.parametrize("name", GROUPS)
def test_expansion_gives_the_structure_factors_of_the_whole_cell(name):
    _, _, hkl, structure_factors = crystal(name)
    expansion = expand(hkl, gemmi.SpaceGroup(name))
    f = structure_factors(hkl)
    scale = np.abs(f).max()
    assert len(hkl) > 3
    np.testing.assert_allclose(expansion.spread(f), structure_factors(expansion.hkl), atol=1e-9 * scale)
    np.testing.assert_allclose(expansion.spread(np.abs(f)), np.abs(expansion.spread(f)), atol=1e-9 * scale)


@pytest.mark.parametrize("name", GROUPS)
def test_expansion_is_complete_and_without_repeats(name):
    """Exactly the P1 half sphere, less what is systematically absent."""
    sg, cell, hkl, _ = crystal(name)
    got = expand(hkl, sg).hkl
    d_min = max(cell.a, cell.b, cell.c) / 4
    half = np.asarray(gemmi.make_miller_array(cell, gemmi.SpaceGroup("P 1"), d_min))
    half = half[~sg.operations().systematic_absences(half)]

    def up_to_friedel(h):
        return {max(tuple(int(i) for i in row), tuple(int(-i) for i in row)) for row in h}

    assert len(up_to_friedel(got)) == len(got)
    assert up_to_friedel(got) == up_to_friedel(half)


@pytest.mark.parametrize("name", GROUPS)
def test_average_undoes_spread_and_restricts_centric_phases(name):
    sg, _, hkl, structure_factors = crystal(name)
    expansion = expand(hkl, sg)
    f = structure_factors(hkl)
    np.testing.assert_allclose(expansion.average(expansion.spread(f), len(hkl)), f, atol=1e-9 * np.abs(f).max())

    centric = sg.operations().centric_flag_array(hkl)
    np.testing.assert_array_equal(expansion.turn != 0, centric)
    np.testing.assert_allclose(f[centric], np.conj(f[centric]) * expansion.turn[centric], atol=1e-8)


@pytest.mark.parametrize("name", ["P -1", "P 21 21 21", "C 1 2 1", "P 31 2 1", "R 3 2:R", "F 2 3", "I 41/a:2"])
@given(seed=st.integers(0, 10**6))
@settings(max_examples=5, deadline=None)
def test_average_is_a_projection_onto_the_group(name, seed):
    """Averaged noise obeys the group, its spread averages to itself, no symmetric set is nearer."""
    sg, _, hkl, _ = crystal(name)
    expansion = expand(hkl, sg)
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=len(expansion.hkl)) + 1j * rng.normal(size=len(expansion.hkl))
    symmetric = expansion.average(noise, len(hkl))
    again = expansion.average(expansion.spread(symmetric), len(hkl))
    np.testing.assert_allclose(again, symmetric, atol=1e-12)
    _, _, _, other = crystal(name, seed=seed + 1)
    left = noise - expansion.spread(symmetric)
    along = expansion.spread(other(hkl))
    assert abs(np.vdot(along, left).real) < 1e-9 * np.linalg.norm(along) * np.linalg.norm(left)


def test_p1_is_left_alone_and_empty_lists_pass():
    _, _, hkl, _ = crystal("P 1")
    expansion = expand(hkl, gemmi.SpaceGroup("P 1"))
    f = np.arange(len(hkl)) * (1 + 2j)
    assert len(expansion.hkl) == len(hkl)
    np.testing.assert_array_equal(expansion.average(expansion.spread(f), len(hkl)), f)
    assert expand(np.zeros((0, 3), dtype=np.int32), gemmi.SpaceGroup("F 2 3")).hkl.shape == (0, 3)
