"""Grids against direct sums: signs, axis order, sizes."""

import gemmi
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml_phaser.crystal.grid import HalfSphere, analyse, grid_shape, synthesise

lengths = st.floats(3.0, 60.0)
angles = st.floats(70.0, 115.0)
cells = st.builds(gemmi.UnitCell, lengths, lengths, lengths, angles, angles, angles)


def p1_indices(cell, d_min):
    hkl = gemmi.make_miller_array(cell, gemmi.SpaceGroup("P 1"), d_min)
    return np.asarray(hkl, dtype=np.int32)


def random_f(n, seed):
    rng = np.random.default_rng(seed)
    return rng.normal(size=n) + 1j * rng.normal(size=n)


@given(cell=cells, multiple=st.sampled_from([1, 2, 4, 8]), seed=st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_structure_factors_survive_the_round_trip(cell, multiple, seed):
    d_min = max(cell.a, cell.b, cell.c) / 6
    hkl = p1_indices(cell, d_min)
    shape = grid_shape(cell, d_min, spacing=d_min, multiple=multiple)
    f = random_f(len(hkl), seed)
    rho = synthesise(hkl, f, shape, cell.volume)
    assert rho.shape == shape and rho.dtype == np.float64
    np.testing.assert_allclose(analyse(rho, hkl, cell.volume), f, atol=1e-10)


@given(cell=cells, seed=st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_density_survives_the_round_trip(cell, seed):
    """A band-limited density comes back from its structure factors, F000 included."""
    d_min = max(cell.a, cell.b, cell.c) / 5
    hkl = np.vstack([p1_indices(cell, d_min), [[0, 0, 0]]]).astype(np.int32)
    f = random_f(len(hkl), seed)
    f[-1] = f[-1].real
    rho = synthesise(hkl, f, grid_shape(cell, d_min, spacing=d_min / 3), cell.volume)
    again = synthesise(hkl, analyse(rho, hkl, cell.volume), rho.shape, cell.volume)
    np.testing.assert_allclose(again, rho, atol=1e-10 * np.abs(rho).max())


def test_synthesis_is_the_textbook_sum():
    """rho(x) = 1/V sum_h F(h) exp(-2 pi i h.x) over both Friedel mates, at every grid point."""
    cell = gemmi.UnitCell(7, 9, 11, 80, 95, 105)
    hkl = p1_indices(cell, 2.5)
    f = random_f(len(hkl), 1)
    shape = (6, 9, 10)
    rho = synthesise(hkl, f, shape, cell.volume)
    x = np.stack(np.meshgrid(*(np.arange(n) / n for n in shape), indexing="ij"), axis=-1)
    wanted = 2 / cell.volume * np.real(np.exp(-2j * np.pi * (x @ hkl.T)) @ f)
    np.testing.assert_allclose(rho, wanted, atol=1e-12)


def test_analysis_is_the_textbook_sum():
    """An atom at x gives exp(+2 pi i h.x); odd and even grids, not a multiple of anything."""
    cell = gemmi.UnitCell(7, 9, 11, 80, 95, 105)
    hkl = p1_indices(cell, 3.5)
    shape, place = (8, 9, 15), (3, 5, 11)
    rho = np.zeros(shape)
    rho[place] = np.prod(shape) / cell.volume  # one electron
    wanted = np.exp(2j * np.pi * (hkl @ (np.array(place) / shape)))
    np.testing.assert_allclose(analyse(rho, hkl, cell.volume), wanted, atol=1e-12)


def test_against_gemmi():
    cell = gemmi.UnitCell(7, 9, 11, 80, 95, 105)
    hkl = p1_indices(cell, 1.5)
    f = random_f(len(hkl), 2)
    data = gemmi.ComplexAsuData(cell, gemmi.SpaceGroup("P 1"), hkl, f.astype(np.complex64))
    grid = data.transform_f_phi_to_map(exact_size=(16, 18, 20))
    rho = synthesise(hkl, f, (16, 18, 20), cell.volume)
    np.testing.assert_allclose(rho, np.array(grid, copy=True), atol=2e-5 * np.abs(rho).max())


@given(
    cell=cells,
    fraction=st.floats(1.0, 4.0),
    multiple=st.sampled_from([1, 2, 4, 6, 16]),
    axis=st.integers(0, 2),
)
@settings(max_examples=60, deadline=None)
def test_grid_holds_every_reflection_at_the_spacing_asked(cell, fraction, multiple, axis):
    """d_min is taken from a reflection itself, as ``Amplitudes.d_min`` does: rounding must not lose it."""
    h = np.zeros((1, 3), dtype=np.int32)
    h[0, axis] = 7
    d_min = float(cell.calculate_d_array(h)[0])
    shape = grid_shape(cell, d_min, spacing=d_min / fraction, multiple=multiple)
    HalfSphere.of(p1_indices(cell, d_min * 0.99999), shape)
    HalfSphere.of(h, shape)
    for n, length in zip(shape, (cell.a, cell.b, cell.c), strict=True):
        assert n % multiple == 0
        assert length / n <= d_min / fraction * (1 + 1e-6)
        assert max(p for p in (2, 3, 5, 7, 11, 13) if n % p == 0 or p == 2) <= 5


@given(length=st.floats(20.0, 100.0))
@settings(max_examples=100, deadline=None)
def test_the_last_index_is_not_lost_to_rounding(length):
    """The smallest grid for h = 13 has 27 points; were h = 13 missed, 25 would do."""
    cell = gemmi.UnitCell(length, length, length, 90, 90, 90)
    h = np.array([[13, 0, 0]], dtype=np.int32)
    d_min = float(cell.calculate_d_array(h)[0])
    assert grid_shape(cell, d_min, spacing=length, multiple=1)[0] == 27


def test_too_coarse_a_grid_is_refused():
    hkl = np.array([[3, 0, 0]], dtype=np.int32)
    with pytest.raises(ValueError, match="do not fit"):
        HalfSphere.of(hkl, (6, 6, 6))
    HalfSphere.of(hkl, (7, 6, 6))


def test_half_sphere_keeps_every_sign_of_index():
    """gather undoes scatter whichever mate the list holds, in the l = 0 plane too."""
    hkl = np.array([[1, 2, 3], [1, -2, -3], [-1, 2, 0], [2, 0, 0], [0, -3, 0], [0, 0, -1]], dtype=np.int32)
    places = HalfSphere.of(hkl, (7, 7, 8))
    f = random_f(len(hkl), 3)
    np.testing.assert_allclose(places.gather(places.scatter(f), len(hkl)), f)
