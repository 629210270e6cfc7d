"""Patterson maps against direct sums over symmetry, and against the vectors of a known structure."""

import gemmi
import numpy as np
import pytest

from ml_phaser.crystal.maps import fits
from ml_phaser.crystal.patterson import patterson_group, patterson_map
from ml_phaser.crystal.reflections import Amplitudes, Source

CELLS = {
    "P 1": (7.1, 9.3, 11.2, 80, 95, 105),
    "P 1 21 1": (7.1, 9.3, 11.2, 90, 95, 90),
    "C 1 2 1": (17.1, 9.3, 11.2, 90, 105, 90),
    "P 21 21 21": (7.1, 9.3, 11.2, 90, 90, 90),
    "P 31 2 1": (9.3, 9.3, 11.2, 90, 90, 120),
    "F 2 3": (13.3, 13.3, 13.3, 90, 90, 90),
    "R 3:R": (9.3, 9.3, 9.3, 80, 80, 80),
    "I 41/a:2": (9.3, 9.3, 11.3, 90, 90, 90),
}


def amplitudes(name, f_squared=None, d_min=1.4):
    cell, sg = gemmi.UnitCell(*CELLS[name]), gemmi.SpaceGroup(name)
    hkl = np.asarray(gemmi.make_miller_array(cell, sg, d_min), dtype=np.int32)
    intensity = np.random.default_rng(0).exponential(size=len(hkl)) if f_squared is None else f_squared(hkl)
    source = Source("none", "MTZ", ("F",), "amplitude")
    return Amplitudes(hkl, np.sqrt(intensity), np.zeros(len(hkl)), cell, sg, source)


@pytest.mark.parametrize("name", CELLS)
def test_map_is_the_sum_of_cosines_over_all_equivalents(name):
    """At random grid points, summing over every operator, lattice included, of each reflection.

    Every operator visits a special reflection more than once; dividing by the number of visits leaves each
    reflection of P1 once.
    """
    data = amplitudes(name)
    coefficients = np.random.default_rng(1).normal(1, 1, len(data))
    rho = patterson_map(data, coefficients)
    rng = np.random.default_rng(2)
    points = [(0, 0, 0)] + [tuple(rng.integers(0, n) for n in rho.shape) for _ in range(20)]
    everything = {}
    for h, c in zip(data.hkl, coefficients, strict=True):
        for op in data.spacegroup.operations().sym_ops:
            for sign in (1, -1):
                everything[tuple(sign * int(i) for i in op.apply_to_hkl(list(h)))] = c
    indices, values = np.array(list(everything)), np.array(list(everything.values()))
    for point in points:
        u = np.array(point) / rho.shape
        wanted = np.sum(values * np.cos(2 * np.pi * (indices @ u))) / data.cell.volume
        assert rho[point] == pytest.approx(wanted, abs=1e-9 * rho[0, 0, 0])


@pytest.mark.parametrize("name", CELLS)
def test_map_has_the_patterson_groups_symmetry(name):
    data = amplitudes(name)
    rho = patterson_map(data, data.f**2)
    group = patterson_group(data.spacegroup)
    assert group.is_centrosymmetric() and group.is_symmorphic() and fits(rho.shape, group)
    grid = gemmi.FloatGrid(rho.astype(np.float32), data.cell, group)
    grid.symmetrize_avg()
    np.testing.assert_allclose(grid.array, rho, atol=1e-5 * rho.max())
    assert abs(rho.mean()) < 1e-12 * rho.max()
    assert rho[0, 0, 0] == pytest.approx(rho.max(), rel=1e-12)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("P 1", "P -1"),
        ("P 1 21 1", "P 1 2/m 1"),
        ("P 1 21/c 1", "P 1 2/m 1"),
        ("C 1 2 1", "C 1 2/m 1"),
        ("P 21 21 21", "P m m m"),
        ("I 21 21 21", "I m m m"),
        ("P 43 21 2", "P 4/m m m"),
        ("P 31 2 1", "P -3 m 1"),
        ("P 31 1 2", "P -3 1 m"),
        ("R 3:H", "R -3:H"),
        ("R 3 2:R", "R -3 m:R"),
        ("P 65 2 2", "P 6/m m m"),
        ("F 2 3", "F m -3"),
        ("I 41 3 2", "I m -3 m"),
        ("F d -3 m:1", "F m -3 m"),
    ],
)
def test_patterson_groups_of_the_international_tables(name, wanted):
    assert patterson_group(gemmi.SpaceGroup(name)).xhm() == wanted


def test_every_group_has_a_patterson_group():
    for sg in gemmi.spacegroup_table():
        group = patterson_group(sg)
        assert group.is_centrosymmetric() and group.is_symmorphic()
        if group.number != 2:
            assert group.laue_str() == sg.laue_str() and group.centring_type() == sg.centring_type()


def test_peaks_stand_at_the_vectors_between_atoms():
    """Two atoms in P 21: Harker section at v = 1/2 and the cross vectors, with the heights of point atoms."""
    atoms = np.array([[0.13, 0.21, 0.34], [0.41, 0.02, 0.77]])
    mates = np.vstack([atoms, atoms * [-1, 1, -1] + [0, 0.5, 0]])

    def f_squared(hkl):
        return np.abs(np.exp(2j * np.pi * (hkl @ mates.T)).sum(axis=1)) ** 2

    data = amplitudes("P 1 21 1", f_squared, d_min=0.6)
    full = patterson_map(data, data.f**2)
    removed = patterson_map(data, data.f**2, origin_removed=True)
    vectors = (mates[:, None] - mates[None]).reshape(-1, 3)
    vectors = vectors[np.abs(vectors).sum(axis=1) > 1e-9]
    for rho in (full, removed):
        grid = gemmi.FloatGrid(rho.astype(np.float32), data.cell, patterson_group(data.spacegroup))
        heights = [grid.interpolate_value(gemmi.Fractional(*v)) for v in vectors]
        assert min(heights) > 0.15 * full[0, 0, 0]
    assert full[0, 0, 0] == full.max()


@pytest.mark.parametrize("name", CELLS)
def test_origin_removal_takes_the_origin_away_and_little_else(name):
    data = amplitudes(name)
    d_star = 1 / data.d**2
    coefficients = data.f**2 * np.exp(-2 * d_star)
    full = patterson_map(data, coefficients)
    removed = patterson_map(data, coefficients, origin_removed=True)
    assert abs(removed[0, 0, 0]) < 1e-9 * full[0, 0, 0]
    difference = full - removed
    assert difference[0, 0, 0] == pytest.approx(difference.max())
    far = np.unravel_index(np.argmin(np.abs(difference)), difference.shape)
    assert np.abs(difference[far]) < 0.02 * full[0, 0, 0]


def test_spacing_and_bad_coefficients():
    data = amplitudes("P 1 21 1")
    rho = patterson_map(data, data.f**2, spacing=0.25)
    assert all(length / n <= 0.25 for n, length in zip(rho.shape, data.cell.parameters[:3], strict=True))
    with pytest.raises(ValueError, match="finite coefficients"):
        patterson_map(data, data.f[:-1])
    with pytest.raises(ValueError, match="finite coefficients"):
        patterson_map(data, data.f * np.nan)
    with pytest.raises(ValueError, match="do not fit"):
        patterson_map(data, data.f, shape=(4, 4, 4))
