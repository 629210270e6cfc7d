"""P1 expansion, centric flags and epsilon against cctbx."""

import gemmi
import numpy as np
import pytest
from cctbx.array_family import flex
from in_cctbx import miller_set

from ml_phaser.crystal.reflections import Amplitudes, Source
from ml_phaser.crystal.symmetry import expand

CELLS = {
    "P 1": (7.1, 9.3, 11.2, 80, 95, 105),
    "P -1": (7.1, 9.3, 11.2, 80, 95, 105),
    "P 1 21 1": (7.1, 9.3, 11.2, 90, 95, 90),
    "P 1 21/n 1": (7.1, 9.3, 11.2, 90, 95, 90),
    "C 1 2 1": (17.1, 9.3, 11.2, 90, 105, 90),
    "I 1 2 1": (17.1, 9.3, 11.2, 90, 95, 90),
    "P 21 21 21": (7.1, 9.3, 11.2, 90, 90, 90),
    "F d d 2": (17.1, 19.3, 11.2, 90, 90, 90),
    "P 43 21 2": (9.3, 9.3, 21.2, 90, 90, 90),
    "I 41/a:2": (9.3, 9.3, 21.2, 90, 90, 90),
    "P 31 2 1": (9.3, 9.3, 11.2, 90, 90, 120),
    "P 31 1 2": (9.3, 9.3, 11.2, 90, 90, 120),
    "R 3:H": (12.3, 12.3, 9.2, 90, 90, 120),
    "R 3:R": (9.3, 9.3, 9.3, 80, 80, 80),
    "R -3 c:H": (12.3, 12.3, 19.2, 90, 90, 120),
    "P 65 2 2": (9.3, 9.3, 21.2, 90, 90, 120),
    "F 2 3": (13.3, 13.3, 13.3, 90, 90, 90),
    "I 41 3 2": (13.3, 13.3, 13.3, 90, 90, 90),
    "F d -3 m:2": (13.3, 13.3, 13.3, 90, 90, 90),
}


def crystal_of(name, d_min=1.6):
    cell, sg = gemmi.UnitCell(*CELLS[name]), gemmi.SpaceGroup(name)
    hkl = np.asarray(gemmi.make_miller_array(cell, sg, d_min), dtype=np.int32)
    return cell, sg, hkl, miller_set(cell, sg, hkl)


@pytest.mark.parametrize("name", CELLS)
def test_expansion_to_p1(name):
    _, sg, hkl, theirs = crystal_of(name)
    rng = np.random.default_rng(0)
    f = rng.normal(size=len(hkl)) + 1j * rng.normal(size=len(hkl))
    expansion = expand(hkl, sg)
    # centric reflections must obey the group, or what an equivalent's phase is depends on the operator chosen
    turn = expansion.turn
    f = np.where(turn == 0, f, np.abs(f) * np.exp(0.5j * np.angle(turn)))
    wanted = theirs.array(data=flex.complex_double(f)).expand_to_p1()
    values = dict(zip(wanted.indices(), wanted.data(), strict=True))
    ours = expansion.spread(f)
    assert len(ours) == len(values)
    for h, value in zip(expansion.hkl, ours, strict=True):
        key = tuple(int(i) for i in h)
        mate = tuple(-i for i in key)
        theirs_value = values[key] if key in values else np.conj(values[mate])
        assert abs(value - theirs_value) < 1e-9


@pytest.mark.parametrize("name", CELLS)
def test_centric_flags_epsilon_and_resolution(name):
    cell, sg, hkl, theirs = crystal_of(name)
    data = Amplitudes(hkl, np.ones(len(hkl)), np.ones(len(hkl)), cell, sg, Source("none", "MTZ", ("F",), "amplitude"))
    np.testing.assert_array_equal(data.centric, np.array(theirs.centric_flags().data()))
    np.testing.assert_array_equal(data.epsilon, np.array(theirs.epsilons().data()))
    np.testing.assert_allclose(data.d, np.array(theirs.d_spacings().data()), rtol=1e-9)
    assert data.completeness == 1.0
    assert theirs.completeness() == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("name", CELLS)
def test_restricted_phases(name):
    _, sg, hkl, theirs = crystal_of(name)
    turn = expand(hkl, sg).turn
    for h, t in zip(theirs.indices(), turn, strict=True):
        if not theirs.space_group().is_centric(h):
            assert t == 0
        else:
            angle = theirs.space_group().phase_restriction(h).ht_angle()
            assert np.exp(2j * angle) == pytest.approx(t, abs=1e-9)
