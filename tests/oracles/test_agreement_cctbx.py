"""Agreement, permitted origins and model structure factors against cctbx."""

import io
import itertools
import random
import re

import pytest

cctbx = pytest.importorskip("cctbx")
from cctbx import sgtbx, xray  # noqa: E402
from cctbx.array_family import flex  # noqa: E402
from cctbx.development import random_structure  # noqa: E402

import gemmi  # noqa: E402  isort: skip
import numpy as np  # noqa: E402  isort: skip

from ml_phaser.crystal.agreement import (  # noqa: E402
    compare,
    hand_centre,
    multiplicity,
    permissible_origins,
    random_phases,
)
from ml_phaser.evaluation.reference import model_reference  # noqa: E402

GROUPS = [
    *("P 1", "P 1 21 1", "C 1 2 1", "P 21 21 21", "P 31 2 1", "P 43 21 2", "F 2 3", "R 3:H", "P -1"),
    *("P 1 21/c 1", "I 41"),
]


def same_group(group):
    return sgtbx.space_group_info(symbol="Hall: " + group.hall)


def test_permitted_origins_are_those_of_cctbx_in_every_setting():
    """Closed groups of shifts are equal if the same reflections keep their phase under all shifts."""
    box = np.array(list(itertools.product(range(-3, 4), range(-3, 4), range(-6, 7))))
    for group in gemmi.spacegroup_table():
        ours, theirs = permissible_origins(group), same_group(group).structure_seminvariants()
        centrings = np.array(group.operations().cen_ops) / gemmi.Op.DEN
        hkl = box[np.all(np.abs(box @ centrings.T - np.rint(box @ centrings.T)) < 1e-6, axis=1)]
        turns = hkl @ ours.shifts.T
        invariant = np.all(np.abs(turns - np.rint(turns)) < 1e-6, axis=1) & np.all(
            np.abs(hkl @ ours.directions.T) < 1e-6, axis=1
        )
        expected = [theirs.is_ss(tuple(int(x) for x in h)) for h in hkl]
        np.testing.assert_array_equal(invariant, expected, err_msg=group.xhm())
        assert len(ours.directions) == theirs.number_of_continuous_allowed_origin_shifts()


def test_other_hand_exists_where_cctbx_has_one():
    for group in gemmi.spacegroup_table():
        info = same_group(group)
        assert (hand_centre(group) is None) == info.type().is_enantiomorphic(), group.xhm()
        centre = hand_centre(group)
        if centre is not None:
            move = ",".join(f"-{x}+{round(24 * c)}/24" for x, c in zip("xyz", centre, strict=True))
            op = sgtbx.change_of_basis_op(sgtbx.rt_mx(move, "", 1, 24)).new_denominators(12, 72)
            assert info.group().change_basis(op) == info.group(), group.xhm()


def random_crystal(name, seed=1, use_u_aniso=False):
    """A cctbx structure of 8 unique atoms in 45 A^3 each, and its group and cell in gemmi."""
    random.seed(seed)
    flex.set_random_seed(seed)
    info = sgtbx.space_group_info(symbol=name)
    structure = random_structure.xray_structure(
        info,
        elements=["C"] * 5 + ["N", "O", "S"],
        volume_per_atom=45,
        min_distance=1.2,
        random_u_iso=not use_u_aniso,
        use_u_iso=not use_u_aniso,
        use_u_aniso=use_u_aniso,
        general_positions_only=True,
    )
    return structure, gemmi.SpaceGroup(name), gemmi.UnitCell(*structure.unit_cell().parameters())


def arrays(miller_array):
    return np.array(miller_array.indices(), dtype=np.int32), np.array(miller_array.data())


@pytest.mark.parametrize("name", GROUPS)
def test_correlation_and_phase_error_at_the_origin_found(name):
    """Move the test phases with cctbx by the shift we report: its correlation and phase error are ours."""
    structure, group, cell = random_crystal(name)
    reference = structure.structure_factors(d_min=1.5).f_calc()
    rng = np.random.default_rng(4)
    origins = permissible_origins(group)
    shift = origins.shifts[-1] + rng.random(len(origins.directions)) @ origins.directions
    moved = structure.apply_shift(shift.tolist())
    test = moved.structure_factors(d_min=1.5).f_calc().common_set(reference)
    hkl, f_test = arrays(test)
    wrong = rng.normal(0, 0.7, len(hkl))
    centric = np.array(test.centric_flags().data())
    f_test = f_test * np.exp(1j * np.where(centric, np.pi * (np.abs(wrong) > 1.4), wrong))
    result = compare(hkl, f_test, arrays(reference)[1], cell, group, repeats=0)

    whole = reference.expand_to_p1()
    judged = test.customized_copy(data=flex.complex_double(f_test)).expand_to_p1().common_set(whole)
    judged = judged.customized_copy(data=flex.conj(judged.data())) if result.inverted else judged
    judged = judged.translational_shift(result.origin_shift)
    assert whole.mean_weighted_phase_error(judged) == pytest.approx(result.phase_error, abs=1e-3)
    assert whole.map_correlation(judged) == pytest.approx(result.map_cc, abs=1e-6)
    maps = [
        x.fft_map(resolution_factor=1 / 3.0, symmetry_flags=None).real_map_unpadded().as_1d() for x in (whole, judged)
    ]
    assert flex.linear_correlation(*maps).coefficient() == pytest.approx(result.map_cc, abs=2e-3)
    # and no other permitted origin or hand that brute force tries is better
    assert brute_force_best(whole, judged, origins, group) <= result.map_cc + 1e-6


def brute_force_best(whole, judged, origins, group):
    """Highest cctbx correlation over 9 places along a floating direction, all discrete shifts, both hands."""
    best = -1.0
    steps = np.array(list(itertools.product(np.arange(9) / 9, repeat=min(len(origins.directions), 1))))
    along = steps @ origins.directions[:1] if len(origins.directions) else np.zeros((1, 3))
    centre = hand_centre(group)
    for discrete, free in itertools.product(origins.shifts, along):
        shift = discrete + free
        best = max(best, whole.map_correlation(judged.translational_shift(shift.tolist())))
        if centre is not None:
            other = judged.customized_copy(data=flex.conj(judged.data()))
            best = max(best, whole.map_correlation(other.translational_shift((shift + centre).tolist())))
    return best


@pytest.mark.parametrize("name", GROUPS)
def test_random_phases_and_multiplicities_obey_the_group(name):
    structure, group, _cell = random_crystal(name)
    unique = structure.structure_factors(d_min=1.6).f_calc()
    hkl, _ = arrays(unique)
    np.testing.assert_array_equal(multiplicity(hkl, group), np.array(unique.multiplicities().data()))
    phase = random_phases(hkl, group, np.random.default_rng(0))
    restrictions = [unique.space_group().phase_restriction(tuple(int(x) for x in h)) for h in hkl]
    assert all(r.is_valid_phase(float(p), False, 1e-6) for r, p in zip(restrictions, phase, strict=True))
    acentric = ~np.array(unique.centric_flags().data())
    if acentric.sum() > 100:
        assert abs(np.exp(1j * phase[acentric]).mean()) < 0.25


@pytest.mark.parametrize("name", ["P 1 21 1", "P -1", "P 43 21 2", "R 3:H"])
def test_structure_factors_of_a_small_molecule(name, tmp_path):
    """A CIF that cctbx wrote, anisotropic, with an atom at 0,0,0 (special, except in P21), summed by both."""
    structure, group, cell = random_crystal(name, use_u_aniso=True)
    structure.add_scatterer(xray.scatterer("Cl1", site=(0, 0, 0), u=0.03))
    structure.scattering_type_registry(table="it1992")
    stream = io.StringIO()
    structure.as_cif_simple(out=stream)
    path = tmp_path / "model.cif"
    path.write_text(re.sub(r"(_cell|_space_group|_symmetry|_space_group_symop)\.", r"\1_", stream.getvalue()))
    hkl, expected = arrays(structure.structure_factors(d_min=1.2, algorithm="direct").f_calc())
    f = model_reference(path, hkl, cell, group).f
    np.testing.assert_allclose(f, expected, atol=0.01 * np.abs(expected).mean())
