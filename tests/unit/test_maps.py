"""Grids that suit a group, and CCP4 files read back by gemmi and mrcfile."""

import gemmi
import mrcfile
import numpy as np
import pytest

from ml_phaser.crystal.maps import density, fits, symmetric_shape, write_map
from ml_phaser.errors import UserError

CELLS = {
    "P 1": (7.1, 9.3, 11.2, 80, 95, 105),
    "P 1 21 1": (7.1, 9.3, 11.2, 90, 95, 90),
    "C 1 2 1": (17.1, 9.3, 11.2, 90, 105, 90),
    "P 21 21 21": (7.1, 9.3, 11.2, 90, 90, 90),
    "P 43 21 2": (9.3, 9.3, 21.2, 90, 90, 90),
    "P 31 2 1": (9.3, 9.3, 11.2, 90, 90, 120),
    "R 3:H": (12.3, 12.3, 9.2, 90, 90, 120),
    "R 3:R": (9.3, 9.3, 9.3, 80, 80, 80),
    "P 65 2 2": (9.3, 9.3, 21.2, 90, 90, 120),
    "F 2 3": (13.3, 13.3, 13.3, 90, 90, 90),
    "I 41 3 2": (13.3, 13.3, 13.3, 90, 90, 90),
    "F d d d:2": (9.1, 13.3, 17.2, 90, 90, 90),
}


def crystal(name, d_min=1.8):
    cell, sg = gemmi.UnitCell(*CELLS[name]), gemmi.SpaceGroup(name)
    hkl = np.asarray(gemmi.make_miller_array(cell, sg, d_min), dtype=np.int32)
    rng = np.random.default_rng(3)
    f = rng.normal(size=len(hkl)) + 1j * rng.normal(size=len(hkl))
    restricted = np.full(len(hkl), np.nan)
    for op in sg.operations().sym_ops:
        turned = np.array([op.apply_to_hkl(list(h)) for h in hkl])
        back = np.all(turned == -hkl, axis=1)
        restricted[back] = np.pi * (hkl[back] @ np.array(op.tran) / op.DEN)
    f = np.where(np.isnan(restricted), f, np.abs(f) * np.exp(1j * np.nan_to_num(restricted)))
    return cell, sg, hkl, f


def symmetric_density(name):
    cell, sg, hkl, f = crystal(name)
    return density(hkl, f, cell, sg, symmetric_shape(cell, sg, 1.8, 0.6)), cell, sg


@pytest.mark.parametrize("name", CELLS)
def test_shape_suits_the_group(name):
    """gemmi's own test of a grid against a group agrees; spacing and multiple are kept."""
    cell, sg = gemmi.UnitCell(*CELLS[name]), gemmi.SpaceGroup(name)
    shape = symmetric_shape(cell, sg, 1.5, 0.45, multiple=4)
    grid = gemmi.FloatGrid()
    grid.spacegroup = sg
    grid.set_size(*shape)  # raises where it does not suit
    for n, length in zip(shape, (cell.a, cell.b, cell.c), strict=True):
        assert n % 4 == 0 and length / n <= 0.45
        assert n >= 2 * int(length / 1.5) + 1
        assert n < 4 * length / 0.45


@pytest.mark.parametrize("name", [n for n in CELLS if n != "P 1"])
def test_fits_agrees_with_gemmi(name):
    sg = gemmi.SpaceGroup(name)
    for shape in [(12, 12, 12), (13, 13, 13), (12, 15, 18), (12, 12, 13), (14, 14, 24), (24, 24, 24)]:
        grid = gemmi.FloatGrid()
        grid.spacegroup = sg
        try:
            grid.set_size(*shape)
            suits = True
        except RuntimeError:
            suits = False
        assert fits(shape, sg) == suits, shape


@pytest.mark.parametrize("name", CELLS)
def test_density_has_the_symmetry_of_the_group(name):
    rho, cell, sg = symmetric_density(name)
    grid = gemmi.FloatGrid(rho.astype(np.float32), cell, sg)
    grid.symmetrize_avg()
    np.testing.assert_allclose(grid.array, rho, atol=2e-6 * np.abs(rho).max())
    assert abs(rho.mean()) < 1e-12 * np.abs(rho).max()


@pytest.mark.parametrize("extent", ["cell", "asu"])
@pytest.mark.parametrize("name", [n for n in CELLS if n != "F d d d:2"])
def test_files_are_valid_and_hold_the_map(tmp_path, capsys, name, extent):
    rho, cell, sg = symmetric_density(name)
    path = tmp_path / "out.map"
    write_map(path, rho, cell, sg, extent)
    assert mrcfile.validate(path), capsys.readouterr().out
    ccp4 = gemmi.read_ccp4_map(str(path))
    named = "P 1" if (name, extent) == ("R 3:R", "cell") else sg.xhm()  # its number is CCP4's own
    assert ccp4.grid.spacegroup.xhm() == named
    if extent == "cell":
        np.testing.assert_array_equal(ccp4.grid.array, rho.astype(np.float32))
    elif name not in ("P 1", "R 3:R"):
        assert ccp4.grid.array.size < rho.size
    ccp4.setup(np.nan)  # expands by the group named in the header
    np.testing.assert_allclose(ccp4.grid.array, rho, atol=3e-6 * np.abs(rho).max())
    assert ccp4.grid.unit_cell.parameters == pytest.approx(cell.parameters, abs=1e-3)


def test_header_statistics_of_the_asymmetric_unit(tmp_path):
    rho, cell, sg = symmetric_density("P 21 21 21")
    write_map(tmp_path / "out.map", rho, cell, sg, "asu")
    with mrcfile.open(tmp_path / "out.map") as mrc:
        values = mrc.data.astype(np.float64)
        for word, value in (("dmin", values.min()), ("dmax", values.max()), ("dmean", values.mean())):
            assert float(mrc.header[word]) == pytest.approx(value, abs=1e-6)
        assert float(mrc.header.rms) == pytest.approx(values.std(), abs=1e-6)


def test_a_setting_without_a_ccp4_number(tmp_path):
    rho, cell, sg = symmetric_density("F d d d:2")
    write_map(tmp_path / "cell.map", rho, cell, sg)
    assert mrcfile.validate(tmp_path / "cell.map")
    np.testing.assert_array_equal(gemmi.read_ccp4_map(str(tmp_path / "cell.map")).grid.array, rho.astype(np.float32))
    with pytest.raises(UserError, match="mapextent cell"):
        write_map(tmp_path / "asu.map", rho, cell, sg, "asu")
    assert [p.name for p in tmp_path.iterdir()] == ["cell.map"]


def test_what_cannot_be_a_map_is_refused(tmp_path):
    cell, sg = gemmi.UnitCell(*CELLS["P 31 2 1"]), gemmi.SpaceGroup("P 31 2 1")
    path = tmp_path / "out.map"
    with pytest.raises(ValueError, match="does not suit"):
        write_map(path, np.zeros((10, 10, 10)), cell, sg)
    with pytest.raises(ValueError, match="not finite"):
        write_map(path, np.full((6, 6, 6), np.nan), cell, sg)
    with pytest.raises(ValueError, match="extent"):
        write_map(path, np.zeros((6, 6, 6)), cell, sg, "box")
    assert not list(tmp_path.iterdir())


def test_disk_that_fills_up_leaves_the_old_map(tmp_path):
    """A limit on file size stands in for a full disk."""
    resource, signal = pytest.importorskip("resource"), pytest.importorskip("signal")
    rho, cell, sg = symmetric_density("P 21 21 21")
    path = tmp_path / "out.map"
    path.write_bytes(b"old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(UserError, match="cannot be written"):
            write_map(path, rho, cell, sg)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


def test_unwritable_path(tmp_path):
    rho, cell, sg = symmetric_density("P 21 21 21")
    with pytest.raises(UserError, match="no such file"):
        write_map(tmp_path / "none" / "out.map", rho, cell, sg)
