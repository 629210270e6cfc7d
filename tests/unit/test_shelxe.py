"""Files for SHELXE, read back by cctbx, gemmi and a strict reader of FORTRAN fields."""

import re

import gemmi
import numpy as np
import pytest
from sample_outcome import amplitudes, phases, structure_factors

from ml_phaser.errors import UserError
from ml_phaser.exchange import shelxe
from ml_phaser.exchange.shelx import parse_instructions

PHI = ((4, "i"), (4, "i"), (4, "i"), (9, 2), (8, 4), (8, 1), (8, 2))
HKL = ((4, "i"), (4, "i"), (4, "i"), (8, 2), (8, 2))


def fields(text, layout):
    """Every line by FORTRAN columns: exact width, right-justified, as many decimals as the format says."""
    width = sum(w for w, _ in layout)
    rows = []
    for line in text.splitlines():
        assert len(line) == width, line
        row, at = [], 0
        for w, kind in layout:
            word, at = line[at : at + w], at + w
            pattern = r" *-?\d+" if kind == "i" else rf" *-?\d*\.\d{{{kind}}}"
            assert re.fullmatch(pattern, word), (line, word)
            row.append(float(word))
        rows.append(row)
    return np.array(rows)


def made(data=None, **more):
    data = amplitudes(**more) if data is None else data
    return data, shelxe.shelxe_set(data, phases(data), data.f, data.sigf, title="test")


def test_phi_holds_the_phases():
    data, files = made()
    rows = fields(files.phi, PHI)
    np.testing.assert_array_equal(rows[:, :3], data.hkl)
    wanted = phases(data)
    difference = np.angle(np.exp(1j * (np.deg2rad(rows[:, 5]) - wanted.phase)), deg=True)
    assert np.abs(difference).max() <= 0.0501 and (rows[:, 5] >= 0).all() and (rows[:, 5] < 360).all()
    np.testing.assert_allclose(rows[:, 4], wanted.fom, atol=6e-5)
    scale = (rows[:, 3] @ data.f) / (data.f @ data.f)
    np.testing.assert_allclose(rows[:, 3], scale * data.f, atol=0.0051)
    np.testing.assert_allclose(rows[:, 6], scale * data.sigf, atol=0.0051)


def test_amplitudes_and_intensities_share_a_scale():
    _, files = made()
    phi, hkl = fields(files.phi, PHI), fields(files.hkl, HKL)
    assert (hkl[-1] == 0).all() and len(hkl) == len(phi) + 1
    strong = phi[:, 3] > 20
    np.testing.assert_allclose(phi[strong, 3] ** 2, hkl[:-1][strong, 3], rtol=1e-3)


def test_measured_intensities_are_kept_with_their_sign():
    data = amplitudes()
    intensity = data.f**2 - 0.3 * data.f.max()
    data = amplitudes(intensity=1e6 * intensity, sigma_i=1e6 * (1 + 0.1 * data.f))
    _, files = made(data)
    rows = fields(files.hkl, HKL)[:-1]
    assert (rows[:, 3] < 0).any() and rows[:, 3].min() >= -9999.99 and rows[:, 3].max() <= 99999.99
    scale = np.median(rows[:, 3] / data.intensity)
    np.testing.assert_allclose(rows[:, 3], scale * data.intensity, atol=0.0051 + 1e-4 * abs(rows[:, 3]).max())
    np.testing.assert_allclose(rows[:, 4], scale * data.sigma_i, rtol=1e-3, atol=0.0051)


@pytest.mark.parametrize("factor", [1e-6, 1.0, 1e9])
def test_any_scale_fits_the_columns(factor):
    data = amplitudes()
    small = shelxe.shelxe_set(data, phases(data), data.f, data.sigf, title="t")
    import dataclasses

    big = dataclasses.replace(data, f=factor * data.f, sigf=factor * data.sigf)
    files = shelxe.shelxe_set(big, phases(data), big.f, big.sigf, title="t")
    assert (files.phi, files.hkl) == (small.phi, small.hkl)


def test_unphased_rows_stay_out_and_missing_sigmas_are_said():
    import dataclasses

    data = dataclasses.replace(amplitudes(), sigf=np.zeros(len(amplitudes())))
    result = phases(data)
    result.phase[3] = np.nan
    files = shelxe.shelxe_set(data, result, data.f, data.sigf, title="t")
    assert tuple(data.hkl[3]) not in {tuple(row[:3].astype(int)) for row in fields(files.phi, PHI)}
    assert len(fields(files.phi, PHI)) == len(data) - 1
    rows = fields(files.hkl, HKL)[:-1]
    assert len(rows) == len(data) and (rows[:, 4] > 0).all()
    assert any("without a standard uncertainty" in note for note in files.notes)


def test_cctbx_reads_intensities_and_crystal(tmp_path):
    reader = pytest.importorskip("iotbx.reflection_file_reader")
    from iotbx.shelx import crystal_symmetry_from_ins

    group = gemmi.SpaceGroup("P 21 21 21")
    data, files = made(group=group)
    (tmp_path / "x.hkl").write_text(files.hkl)
    (tmp_path / "x.ins").write_text(files.ins)
    symmetry = crystal_symmetry_from_ins.extract_from(file_name=str(tmp_path / "x.ins"))
    assert symmetry.space_group().type().number() == 19
    np.testing.assert_allclose(symmetry.unit_cell().parameters(), data.cell.parameters, atol=1e-4)
    file = reader.any_reflection_file(f"{tmp_path / 'x.hkl'}=hklf4")
    array = file.as_miller_arrays(crystal_symmetry=symmetry, merge_equivalents=False)[0]
    assert array.is_xray_intensity_array()
    rows = fields(files.hkl, HKL)[:-1]
    np.testing.assert_array_equal(np.array(list(array.indices())), data.hkl)
    np.testing.assert_allclose(array.data().as_numpy_array(), rows[:, 3], atol=1e-6)
    np.testing.assert_allclose(array.sigmas().as_numpy_array(), rows[:, 4], atol=1e-6)
    wanted = data.f**2
    assert np.corrcoef(array.data().as_numpy_array(), wanted)[0, 1] > 0.999999


def settings():
    for group in gemmi.spacegroup_table():
        ops = group.operations()
        if not ops.is_centrosymmetric() or any(o.wrap().triplet() == "-x,-y,-z" for o in ops):
            yield group


def test_every_setting_with_its_centre_at_the_origin_comes_back():
    count = 0
    for group in settings():
        back = parse_instructions(shelxe.instructions(gemmi.UnitCell(9, 9, 9, 90, 90, 90), group, "t"), "t").spacegroup
        assert back is not None, group.xhm()
        assert {o.triplet() for o in back.operations()} == {o.triplet() for o in group.operations()}, group.xhm()
        count += 1
    assert count > 500


@pytest.mark.parametrize("name", ["P 1", "C 1 2 1", "P 21/c", "R 3:H", "F d -3 m:2", "I 41 2 2", "P 65"])
def test_cctbx_finds_the_group(tmp_path, name):
    extract = pytest.importorskip("iotbx.shelx.crystal_symmetry_from_ins")
    from cctbx import sgtbx

    group = gemmi.SpaceGroup(name)
    cells = {"R": (10, 10, 12, 90, 90, 120), "F": (9,) * 3 + (90,) * 3, "I": (9, 9, 12, 90, 90, 90)}
    cell = cells.get(name[0], (10, 10, 12, 90, 90, 120 if name == "P 65" else 90))
    (tmp_path / "x.ins").write_text(shelxe.instructions(gemmi.UnitCell(*cell), group, "t"))
    found = extract.extract_from(file_name=str(tmp_path / "x.ins")).space_group()
    assert found == sgtbx.space_group(sgtbx.space_group_symbols(name).hall())


def test_what_shelx_cannot_say_is_refused():
    with pytest.raises(UserError, match="inversion centre"):
        shelxe.check_group(gemmi.SpaceGroup("P n n n:1"))
    shelxe.check_group(gemmi.SpaceGroup("P n n n:2"))


def test_stems(tmp_path):
    shelxe.check_stem(tmp_path / ("x" * 75 + ".phi"))
    for name in ("x" * 76 + ".phi", "a b.phi", "x.phs", "-x.phi"):
        with pytest.raises(UserError):
            shelxe.check_stem(tmp_path / name)


def test_no_line_of_the_instructions_is_too_long():
    long = shelxe.instructions(gemmi.UnitCell(9, 9, 9, 90, 90, 90), gemmi.SpaceGroup("F m -3 m"), "t" * 200)
    assert max(map(len, long.splitlines())) <= 76
    words = [line.split()[0] for line in long.splitlines()]
    assert list(dict.fromkeys(words)) == ["TITL", "CELL", "ZERR", "LATT", "SYMM", "SFAC", "UNIT", "HKLF", "END"]


def test_phases_are_those_of_the_crystal():
    """Transformed by cctbx with the phases of the .phi, the density peaks at the atoms that made the data."""
    pytest.importorskip("cctbx.miller")
    from cctbx import crystal, miller
    from cctbx.array_family import flex

    data, files = made()
    rows = fields(files.phi, PHI)
    values = rows[:, 3] * np.exp(1j * np.deg2rad(rows[:, 5]))
    symmetry = crystal.symmetry(unit_cell=data.cell.parameters, space_group_symbol="P 21 21 21")
    indices = flex.miller_index([tuple(int(x) for x in r) for r in rows[:, :3]])
    array = miller.set(symmetry, indices, False).array(data=flex.complex_double(np.ascontiguousarray(values)))
    density = array.fft_map(resolution_factor=0.25).real_map_unpadded().as_numpy_array()
    sites = np.random.default_rng(1).random((5, 3))  # as sample_outcome places them
    assert np.abs(structure_factors(data.hkl)).max() == pytest.approx(data.f.max())
    at = [density[tuple((np.round(s * density.shape).astype(int)) % density.shape)] for s in sites]
    assert np.mean(at) > 5 * density.std()


@pytest.mark.shared
@pytest.mark.parametrize("name", ["cod2100301/2100301.hkl", "4lzt", "2olx"])
def test_measured_data_survive_the_columns(shared_data, tmp_path, name):
    """The set written for measured data, read back: the same crystal, intensities and uncertainties."""
    from ml_phaser.exchange.read import read_amplitudes
    from ml_phaser.outcome import Phases

    path = shared_data / "diffraction" / name
    files = sorted(p for p in path.iterdir() if p.suffix in (".mtz", ".cif")) if path.is_dir() else [path]
    data = read_amplitudes(files[0])
    n = len(data)
    flat = Phases(np.zeros(n), np.full(n, 0.5), np.zeros((n, 4)))
    written = shelxe.shelxe_set(data, flat, data.f, data.sigf, title="measured")
    for to, text in zip(shelxe.companions(tmp_path / "x.phi"), (written.phi, written.hkl, written.ins), strict=True):
        to.write_text(text)
    assert fields(written.phi, PHI).shape[1] == 7 and len(fields(written.hkl, HKL)) == n + 1
    back = read_amplitudes(tmp_path / "x.hkl", labin="I=I SIGI=SIGI")
    assert back.spacegroup.xhm() == data.spacegroup.xhm() and back.cell.approx(data.cell, 1e-3)
    at = {tuple(h): i for i, h in enumerate(data.hkl.tolist())}
    rows = [at[tuple(h)] for h in back.hkl.tolist()]
    assert len(rows) > 0.99 * n
    wanted = (data.f**2 if data.intensity is None else data.intensity)[rows]
    assert back.intensity is not None
    scale = (back.intensity @ wanted) / (wanted @ wanted)
    np.testing.assert_allclose(back.intensity, scale * wanted, atol=0.0051 + 1e-6 * back.intensity.max())
    assert back.intensity.max() > 9000
