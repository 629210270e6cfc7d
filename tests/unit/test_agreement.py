"""Agreement of phases: known shifts and hands are found, and nothing else counts as agreement."""

import itertools

import gemmi
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml_phaser.crystal.agreement import (
    compare,
    hand_centre,
    multiplicity,
    permissible_origins,
    random_phases,
    smith,
)
from ml_phaser.errors import UserError

CELLS = {
    "triclinic": (11.0, 13.0, 9.0, 82.0, 75.0, 101.0),
    "monoclinic": (11.0, 8.0, 13.0, 90.0, 106.0, 90.0),
    "orthorhombic": (9.0, 11.0, 14.0, 90.0, 90.0, 90.0),
    "tetragonal": (12.0, 12.0, 10.0, 90.0, 90.0, 90.0),
    "trigonal": (12.0, 12.0, 10.0, 90.0, 90.0, 120.0),
    "hexagonal": (12.0, 12.0, 10.0, 90.0, 90.0, 120.0),
    "cubic": (16.0, 16.0, 16.0, 90.0, 90.0, 90.0),
}
GROUPS = [
    *(
        "P 1",
        "P 1 21 1",
        "C 1 2 1",
        "P 1 c 1",
        "P 21 21 21",
        "P 31 2 1",
        "P 43 21 2",
        "F 2 3",
        "R 3:H",
        "R 3:R",
    ),
    *("P -1", "P 1 21/c 1", "I 41", "F d d 2", "P 4", "P 63", "I 21 3", "I -4 2 d"),
]


def crystal(name, d_min=1.5, seed=0, atoms=7):
    """Cell, group, reflections and atom positions of a random crystal."""
    group = gemmi.SpaceGroup(name)
    system = group.crystal_system_str()
    cell = gemmi.UnitCell(*((13.0, 13.0, 13.0, 70.0, 70.0, 70.0) if name == "R 3:R" else CELLS[system]))
    hkl = gemmi.make_miller_array(cell, group, d_min)
    return cell, group, hkl, np.random.default_rng(seed).random((atoms, 3))


def structure_factors(hkl, group, xyz):
    """Brute force: every symmetry copy of every point atom."""
    f = np.zeros(len(hkl), dtype=complex)
    for op in group.operations():
        for x in xyz:
            f += np.exp(2j * np.pi * (hkl @ np.array(op.apply_to_xyz(list(x)))))
    return f * np.exp(-((np.linalg.norm(hkl, axis=1) / 9) ** 2))


def distance_to_lattice(vectors, group):
    """Fractional distance of (n, 3) vectors to the nearest lattice point, centring included."""
    centrings = np.array(group.operations().cen_ops) / gemmi.Op.DEN
    rest = vectors[:, None, :] - centrings
    return np.abs(rest - np.rint(rest)).max(axis=2).min(axis=1)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(-4, 4), min_size=3, max_size=3), min_size=1, max_size=9))
def test_smith_diagonalises_with_unimodular_factors(rows):
    m = np.array(rows)
    u, d, v = smith(m)
    np.testing.assert_array_equal(u @ m @ v, d)
    assert round(abs(np.linalg.det(u))) == round(abs(np.linalg.det(v))) == 1
    off = d.copy()
    np.fill_diagonal(off, 0)
    assert not off.any()


def test_origins_leave_every_operator_in_place_in_all_settings():
    rng = np.random.default_rng(1)
    for group in gemmi.spacegroup_table():
        origins = permissible_origins(group)
        anywhere = rng.random((len(origins.shifts), len(origins.directions))) @ origins.directions
        for op in group.operations().sym_ops:
            rot = np.array(op.rot) / op.DEN - np.eye(3)
            assert distance_to_lattice((origins.shifts + anywhere) @ rot.T, group).max() < 1e-9, group.xhm()


def test_origins_are_complete_where_none_floats():
    """Count all points of a 1/24 grid that satisfy the condition."""
    grid = np.array(list(itertools.product(range(24), repeat=3)))
    for name in (
        "P 21 21 21",
        "P 31 2 1",
        "P 43 21 2",
        "F 2 3",
        "P -1",
        "C 1 2/c 1",
        "I -4 2 d",
        "R 3 2:H",
        "P 6 2 2",
    ):
        group = gemmi.SpaceGroup(name)
        ops = group.operations()
        centrings = {tuple(x) for x in ops.cen_ops}
        good = np.ones(len(grid), dtype=bool)
        for op in ops.sym_ops:
            moved = grid @ (np.array(op.rot) // op.DEN - np.eye(3, dtype=int)).T % 24
            good &= [tuple(x) in centrings for x in moved.tolist()]
        origins = permissible_origins(group)
        assert len(origins.directions) == 0
        assert good.sum() == len(origins.shifts) * len(ops.cen_ops), name


def test_number_of_floating_directions():
    for name, count in {"P 1": 3, "P 1 c 1": 2, "P 1 21 1": 1, "R 3:R": 1, "F d d 2": 1, "F 2 3": 0}.items():
        assert len(permissible_origins(gemmi.SpaceGroup(name)).directions) == count


def test_hand_centre_maps_the_group_onto_itself_in_all_settings():
    for group in gemmi.spacegroup_table():
        centre = hand_centre(group)
        assert (centre is None) == group.is_enantiomorphic(), group.xhm()
        if centre is None:
            continue
        for op in group.operations().sym_ops:
            rot, tran = np.array(op.rot) / op.DEN, np.array(op.tran) / op.DEN
            # c - (R (c - x) + t) has rotation R and this translation, which must be t of the group
            assert distance_to_lattice((centre - rot @ centre - tran - tran)[None], group)[0] < 1e-9, group.xhm()


@pytest.mark.parametrize("name", GROUPS)
@pytest.mark.parametrize("inverted", [False, True])
def test_perfect_phases_at_another_origin_score_one(name, inverted):
    cell, group, hkl, xyz = crystal(name, d_min=1.6 if name != "F 2 3" else 1.9)
    origins, rng = permissible_origins(group), np.random.default_rng(3)
    shift = origins.shifts[rng.integers(len(origins.shifts))] + rng.random(len(origins.directions)) @ origins.directions
    centre = hand_centre(group)
    reference = structure_factors(hkl, group, xyz)
    if inverted and centre is None:
        mirrored = compare(hkl, np.conj(reference), reference, cell, group, repeats=0)
        assert mirrored.map_cc < 0.9, "the other hand of an enantiomorphic group is no solution in it"
        assert np.isnan(mirrored.hand_margin) and not mirrored.inverted
        return
    test = structure_factors(hkl, group, (centre - xyz if inverted else xyz) - shift)
    result = compare(hkl, 3.7 * test, reference, cell, group, repeats=0)
    assert result.map_cc == pytest.approx(1.0, abs=1e-6)
    assert result.phase_error < 0.05
    # the reported move brings the test atoms onto the reference atoms, up to symmetry: same structure factors
    sign = -1 if result.inverted else 1
    moved = structure_factors(hkl, group, sign * ((centre - xyz if inverted else xyz) - shift) + result.origin_shift)
    np.testing.assert_allclose(moved, reference, atol=2e-3 * np.abs(reference).max())
    if not group.is_centrosymmetric() and centre is not None and name != "P 1 c 1":
        assert result.inverted == inverted
        assert result.hand_margin > 0.05


def test_forbidden_shift_is_no_agreement_unless_free():
    cell, group, hkl, xyz = crystal("P 21 21 21")
    reference = structure_factors(hkl, group, xyz)
    test = reference * np.exp(2j * np.pi * hkl @ np.array([0.21, 0.13, 0.07]))
    assert compare(hkl, test, reference, cell, group, repeats=0).map_cc < 0.6


@pytest.mark.parametrize("name", ["P 1", "P 21 21 21", "P 43 21 2"])
def test_free_mode_finds_any_shift_and_hand_of_p1_phases(name):
    """Phases of the whole sphere whose origin, and in P43212 whose hand, do not fit the group."""
    cell, group, _, xyz = crystal(name, d_min=1.8)
    sphere = gemmi.make_miller_array(cell, gemmi.SpaceGroup("P 1"), 1.8)
    reference = structure_factors(sphere, group, xyz)
    for inverted in (False, True):
        test = (np.conj(reference) if inverted else reference) * np.exp(2j * np.pi * sphere @ [0.21, 0.137, 0.07])
        result = compare(sphere, test, reference, cell, group, centre="free", repeats=0)
        assert result.map_cc > 0.99999 and result.phase_error < 0.1
        assert result.inverted == inverted and result.n == len(sphere)


def test_free_mode_agrees_with_permissible_mode_on_the_same_solution():
    cell, group, hkl, xyz = crystal("C 1 2 1")
    reference = structure_factors(hkl, group, xyz)
    test = reference * np.exp(1j * np.where(structure_centric(hkl, group), 0, 0.7 * np.sin(np.arange(len(hkl)))))
    one = compare(hkl, test, reference, cell, group, repeats=0)
    other = compare(hkl, test, reference, cell, group, centre="free", repeats=0)
    assert other.map_cc == pytest.approx(one.map_cc, abs=1e-3)
    assert other.phase_error == pytest.approx(one.phase_error, abs=0.3)


def structure_centric(hkl, group):
    return np.asarray(group.operations().centric_flag_array(hkl), dtype=bool)


@pytest.mark.parametrize("name", ["P 1", "P 21 21 21", "P -1", "I 41"])
def test_chance_is_what_random_phases_score(name):
    cell, group, hkl, xyz = crystal(name)
    reference = structure_factors(hkl, group, xyz)
    noise = np.abs(reference) * np.exp(1j * random_phases(hkl, group, np.random.default_rng(77)))
    scores = compare(hkl, noise, reference, cell, group, repeats=5, seed=5)
    assert 0.01 < scores.chance_cc < 0.5
    assert abs(scores.map_cc - scores.chance_cc) < 0.1
    assert 60 < scores.chance_phase_error < 92
    again = compare(hkl, noise, reference, cell, group, repeats=5, seed=5)
    assert again == scores
    other = compare(hkl, noise, reference, cell, group, repeats=5, seed=6)
    assert other.chance_cc != scores.chance_cc


def test_phase_error_is_the_weighted_mean_by_hand():
    cell, group = gemmi.UnitCell(10, 11, 12, 90, 90, 90), gemmi.SpaceGroup("P -1")
    hkl = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1], [2, 1, 0], [3, 0, 1]], dtype=np.int32)
    reference = np.array([10, 20, 30, 40, 5, 8], dtype=complex)
    test = reference * [1, 1, 1, 1, -1, 0]  # one sign wrong, one without phase: 180 and 90 degrees
    result = compare(hkl, test, reference, cell, group, repeats=0)
    assert result.phase_error == pytest.approx((5 * 180 + 8 * 90) / 113)
    assert result.map_cc == pytest.approx((3000 - 25) / np.sqrt(3025 * 3089))
    assert result.hand_margin == 0 and result.n == 6


def test_shells_split_the_data_by_resolution():
    cell, group, hkl, xyz = crystal("P 1 21 1")
    reference = structure_factors(hkl, group, xyz)
    d = cell.calculate_d_array(hkl)
    rng = np.random.default_rng(0)
    centric = structure_centric(hkl, group)
    noise = np.where(centric, 0, rng.normal(0, 1, len(hkl)) * (d < 2.0))
    result = compare(hkl, reference * np.exp(1j * noise), reference, cell, group, repeats=0, n_shells=8)
    assert len(result.shells) == 8
    assert sum(s.n for s in result.shells) == result.n == len(hkl)
    assert result.shells[0].d_max == pytest.approx(d.max()) and result.shells[-1].d_min == pytest.approx(d.min())
    assert all(a.d_min >= b.d_max for a, b in itertools.pairwise(result.shells))
    assert result.shells[0].cc > 0.999 and result.shells[0].phase_error < 2
    assert result.shells[-1].cc < 0.8 and result.shells[-1].phase_error > 25


def test_one_hand_only_on_request():
    cell, group, hkl, xyz = crystal("P 21 21 21")
    reference = structure_factors(hkl, group, xyz)
    mirrored = structure_factors(hkl, group, -xyz)
    assert compare(hkl, mirrored, reference, cell, group, repeats=0).inverted
    alone = compare(hkl, mirrored, reference, cell, group, repeats=0, hands=False)
    assert not alone.inverted and alone.map_cc < 0.7 and np.isnan(alone.hand_margin)


@pytest.mark.parametrize("name", ["P 1", "P 21 21 21", "F 2 3", "R 3:H", "P 1 21/c 1", "I 41"])
def test_multiplicity_counts_the_sphere(name):
    cell, group, hkl, _ = crystal(name, d_min=2.0)
    sphere = set()
    for h, m in zip(hkl, multiplicity(hkl, group), strict=True):
        orbit = {tuple(sign * (h @ (np.array(op.rot) // op.DEN))) for op in group.operations() for sign in (1, -1)}
        assert len(orbit) == m
        sphere |= orbit
    assert len(sphere) == 2 * len(gemmi.make_miller_array(cell, gemmi.SpaceGroup("P 1"), 2.0)) - absences(cell, group)


def absences(cell, group):
    whole = gemmi.make_miller_array(cell, gemmi.SpaceGroup("P 1"), 2.0)
    return 2 * int(np.sum(group.operations().systematic_absences(whole)))


def test_bad_input_is_refused():
    cell, group, hkl, xyz = crystal("P 1 21 1")
    f = structure_factors(hkl, group, xyz)
    with pytest.raises(UserError, match="fewer than two"):
        compare(hkl[:1], f[:1], f[:1], cell, group)
    with pytest.raises(UserError, match="fewer than two"):
        compare(hkl, np.zeros_like(f), f, cell, group)
    with pytest.raises(ValueError, match="finite"):
        compare(hkl, f * np.nan, f, cell, group)
    with pytest.raises(ValueError, match="centre"):
        compare(hkl, f, f, cell, group, centre="anywhere")
    with pytest.raises(ValueError, match="reflections"):
        compare(hkl, f[:-1], f, cell, group)
