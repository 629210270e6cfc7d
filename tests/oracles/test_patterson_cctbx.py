"""Patterson maps against cctbx's, and CCP4 files read by iotbx.

What differs: cctbx's maps hold sums, ours are divided by the volume; its grid is its own, so ours is asked
for that one; its shells for origin removal and sharpening are of equal volume in reciprocal space, ours of
equal number, and it averages over unique reflections, we over all of P1.
"""

import gemmi
import numpy as np
import pytest
from in_cctbx import amplitude_array, group

from ml_phaser.crystal.maps import density, symmetric_shape, write_map
from ml_phaser.crystal.normalise import normalise
from ml_phaser.crystal.patterson import patterson_group, patterson_map
from ml_phaser.crystal.reflections import Amplitudes, Source

CELLS = {
    "P 1": (13, 15, 17, 80, 95, 105),
    "P 1 21 1": (13, 15, 17, 90, 95, 90),
    "C 1 2 1": (23, 15, 17, 90, 105, 90),
    "P 21 21 21": (13, 15, 17, 90, 90, 90),
    "P 31 2 1": (17, 17, 19, 90, 90, 120),
    "F 2 3": (33, 33, 33, 90, 90, 90),
}


ATOMS, B = 12, 8.0  # in the asymmetric unit; A^2


def measured(name, d_min=1.2):
    """Amplitudes of a few random atoms, and the same as a cctbx array."""
    cell, sg = gemmi.UnitCell(*CELLS[name]), gemmi.SpaceGroup(name)
    hkl = np.asarray(gemmi.make_miller_array(cell, sg, d_min), dtype=np.int32)
    sites = np.random.default_rng(0).random((ATOMS, 3))
    every = np.array([op.apply_to_xyz(list(x)) for x in sites for op in sg.operations()])
    f = np.abs(np.exp(2j * np.pi * (hkl @ every.T)).sum(axis=1))
    f *= np.exp(-B * cell.calculate_1_d2_array(hkl) / 4)
    data = Amplitudes(hkl, f, 0.01 * f, cell, sg, Source("none", "MTZ", ("F",), "amplitude"))
    return data, amplitude_array(data, f)


def cctbx_map(array, **options):
    fft = array.patterson_map(resolution_factor=1 / 3, **options).apply_volume_scaling()
    return fft.real_map_unpadded().as_numpy_array()


@pytest.mark.parametrize("name", CELLS)
def test_patterson_map(name):
    data, array = measured(name)
    wanted = cctbx_map(array)
    rho = patterson_map(data, data.f**2, shape=wanted.shape)
    np.testing.assert_allclose(rho, wanted, atol=1e-6 * wanted.max())


def correlation(one, other):
    return np.corrcoef(one.ravel(), other.ravel())[0, 1]


@pytest.mark.parametrize("name", CELLS)
def test_sharpening_and_origin_removal(name):
    """The same idea over other shells: nearly the same map."""
    data, array = measured(name)
    e2 = normalise(data).e2
    for options, coefficients, removed in [
        ({"origin_peak_removal": True}, data.f**2, True),
        ({"sharpening": True}, e2, False),
        ({"sharpening": True, "origin_peak_removal": True}, e2, True),
    ]:
        wanted = cctbx_map(array, **options)
        rho = patterson_map(data, coefficients, origin_removed=removed, shape=wanted.shape)
        assert correlation(rho, wanted) > 0.96, options


@pytest.mark.parametrize("name", CELLS)
def test_origin_removal_is_as_near_to_the_truth_as_that_of_cctbx(name):
    """The vectors from each of the equal atoms to itself are known: without them, the true map."""
    data, array = measured(name)
    theirs = cctbx_map(array, origin_peak_removal=True)
    lattice = len(data.spacegroup.operations().cen_ops)
    atoms = ATOMS * len(list(data.spacegroup.operations()))
    self_vectors = lattice * atoms * np.exp(-2 * B / data.d**2 / 4)
    truth = patterson_map(data, data.f**2 - self_vectors, shape=theirs.shape)
    ours = patterson_map(data, data.f**2, origin_removed=True, shape=theirs.shape)
    assert correlation(ours, truth) > 0.98
    assert correlation(ours, truth) > correlation(theirs, truth) - 0.01
    assert abs(ours[0, 0, 0]) < 1e-9 * np.abs(theirs).max()


@pytest.mark.parametrize("name", CELLS)
def test_patterson_group(name):
    data, array = measured(name)
    assert group(patterson_group(data.spacegroup)) == array.patterson_symmetry().space_group()


@pytest.mark.parametrize("extent", ["cell", "asu"])
@pytest.mark.parametrize("name", CELLS)
def test_map_files_hold_the_same_values_at_the_same_places(tmp_path, name, extent):
    """iotbx reads file order and origin itself; every value is compared with the whole-cell density."""
    from iotbx.map_manager import map_manager
    from libtbx.utils import null_out

    data, _ = measured(name, d_min=2.0)
    shape = symmetric_shape(data.cell, data.spacegroup, data.d_min, 0.7)
    rho = density(data.hkl, data.f.astype(complex), data.cell, patterson_group(data.spacegroup), shape)
    path = tmp_path / "out.map"
    write_map(path, rho, data.cell, data.spacegroup, extent)
    manager = map_manager(file_name=str(path), log=null_out())
    values = manager.map_data().as_numpy_array()
    origin = np.array(manager.map_data().origin())
    places = tuple((np.indices(values.shape).T + origin).T.reshape(3, -1) % np.array(shape)[:, None])
    np.testing.assert_allclose(values.ravel(), rho[places], atol=1e-6 * np.abs(rho).max())
    assert tuple(manager.unit_cell_grid) == shape
    assert manager.unit_cell().parameters() == pytest.approx(data.cell.parameters, abs=1e-3)
    if extent == "cell":
        assert values.shape == shape
