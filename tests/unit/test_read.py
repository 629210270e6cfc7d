"""Reading measured data: every format, kind and fault, on crystals made here."""

from __future__ import annotations

import gzip
from pathlib import Path

import gemmi
import numpy as np
import pytest
from numpy.typing import NDArray

from ml_phaser.errors import UserError
from ml_phaser.exchange import merge
from ml_phaser.exchange.read import read_amplitudes
from ml_phaser.exchange.spacegroup import checked_cell, from_shelx, parse_spacegroup

CELL = gemmi.UnitCell(9.3, 10.7, 12.1, 90, 90, 90)
MONO = gemmi.UnitCell(9.3, 10.7, 12.1, 90, 104, 90)
RNG = np.random.default_rng(5)
ATOMS = RNG.random((14, 3))


def intensities(hkl: NDArray, group: str) -> NDArray[np.float64]:
    """|F|^2 of random point atoms by plain summation over the operators, with a temperature factor."""
    total = np.zeros(len(hkl), dtype=complex)
    for op in gemmi.SpaceGroup(group).operations():
        x = np.array([op.apply_to_xyz(list(a)) for a in ATOMS])
        total += np.exp(2j * np.pi * hkl @ x.T).sum(axis=1)
    return np.abs(total) ** 2


def unique(group: str, cell: gemmi.UnitCell = CELL, d_min: float = 1.2) -> NDArray[np.int32]:
    return np.asarray(gemmi.make_miller_array(cell, gemmi.SpaceGroup(group), d_min), dtype=np.int32)


def write_mtz(
    path: Path,
    hkl: NDArray,
    columns: dict[str, tuple[str, NDArray]],
    group: str = "P 21 21 21",
    cell: gemmi.UnitCell | None = CELL,
    order: str = "first",
) -> Path:
    mtz = gemmi.Mtz(with_base=False)
    mtz.spacegroup = gemmi.SpaceGroup(group)
    mtz.add_dataset("crystal")
    if cell is not None:
        mtz.set_cell_for_all(cell)
    index = [(x, "H", hkl[:, i]) for i, x in enumerate("HKL")]
    values = [(label, kind, data) for label, (kind, data) in columns.items()]
    whole = [*index, *values] if order == "first" else [*values, *index]
    for label, kind, _ in whole:
        mtz.add_column(label, kind)
    mtz.set_data(np.column_stack([x[2] for x in whole]).astype(np.float32))
    mtz.write_to_file(str(path))
    return path


def fi(hkl: NDArray, group: str = "P 21 21 21") -> tuple[NDArray, NDArray]:
    i = intensities(hkl, group)
    return i, 0.02 * i + 0.5


def hkl_lines(hkl: NDArray, i: NDArray, s: NDArray, form: str = "%4d%4d%4d%8.2f%8.2f") -> str:
    return "\n".join(form % (*h, a, b) for h, a, b in zip(hkl, i, s, strict=True)) + "\n"


INS = """TITL made here
CELL 0.71073 9.3 10.7 12.1 90 90 90
ZERR 4 0 0 0 0 0 0
LATT -1
SYMM 0.5-X,-Y,0.5+Z
SYMM -X,0.5+Y,0.5-Z
SYMM 0.5+X,0.5-Y,-Z
SFAC C
HKLF 4
"""


@pytest.fixture
def mtz_file(tmp_path: Path) -> Path:
    hkl = unique("P 21 21 21")
    i, s = fi(hkl)
    return write_mtz(tmp_path / "d.mtz", hkl, {"FP": ("F", np.sqrt(i)), "SIGFP": ("Q", s)})


def fault(path: Path, **options: object) -> str:
    with pytest.raises(UserError) as caught:
        read_amplitudes(path, **options)  # type: ignore[arg-type]
    line = str(caught.value)
    assert "\n" not in line
    return line


# ---- groups, cells, asymmetric units


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("P-1", "P -1"),
        ("P212121", "P 21 21 21"),
        ("p 21 21 21", "P 21 21 21"),
        ("19", "P 21 21 21"),
        ("No.4", "P 1 21 1"),
        ("no. 4", "P 1 21 1"),
        ("R3:H", "R 3:H"),
        ("H3", "R 3:H"),
        ("H 3 2", "R 3 2:H"),
        ("P2(1)2(1)2(1)", "P 21 21 21"),
        ("P21/n", "P 1 21/n 1"),
        ("P 2ac 2ab", "P 21 21 21"),
        ("-P 2ybc", "P 1 21/c 1"),
        ("x,y,z; -x,y+1/2,-z", "P 1 21 1"),
        ("'P 1'", "P 1"),
        ("-P 1", "P -1"),
        ("P1", "P 1"),
        ("R 3 :H", "R 3:H"),
    ],
)
def test_spacegroup_spellings(text: str, expected: str) -> None:
    assert parse_spacegroup(text).xhm() == expected


@pytest.mark.parametrize("text", ["P 99", "0", "231", "x,y,z; garbage", "", "x,y,z; x+y,y,z"])
def test_unknown_spacegroup(text: str) -> None:
    with pytest.raises(UserError):
        parse_spacegroup(text)


@pytest.mark.parametrize("name", ["P 21 21 21", "C 1 2/c 1", "R -3 c:H", "F d -3 m:2", "P -1", "I 41/a m d:2"])
def test_shelx_instructions_give_the_group(name: str) -> None:
    """LATT and SYMM as SHELX writes them (no inversion, no centring among SYMM)."""
    group = gemmi.SpaceGroup(name)
    ops = group.operations()
    latt = "PIRFABC".index(name[0]) + 1
    origin = any(op.rot == gemmi.Op("-x,-y,-z").rot and op.tran == [0, 0, 0] for op in ops.sym_ops)
    found = from_shelx(latt if origin else -latt, [op.triplet() for op in ops.sym_ops])
    assert found is not None and found.xhm() == name


@pytest.mark.parametrize(
    "cell",
    [
        (0, 5, 5, 90, 90, 90),
        (5, 5, 5, 90, 90, 180),
        (5, 5, 5, 150, 20, 90),
        (5, 5, 5, 90, 90, float("nan")),
        (5, 5, 5),
        (-5, 5, 5, 90, 90, 90),
    ],
)
def test_impossible_cells(cell: tuple[float, ...]) -> None:
    with pytest.raises(UserError):
        checked_cell(cell, "cell")


def test_asymmetric_unit_is_gemmis_in_every_setting() -> None:
    hkl = RNG.integers(-9, 10, (60, 3)).astype(np.int32)
    for group in gemmi.spacegroup_table():
        asu, ops = gemmi.ReciprocalAsu(group), group.operations()
        expected = [asu.to_asu(list(map(int, h)), ops)[0] for h in hkl]
        assert np.array_equal(merge.asu_indices(hkl, group), expected), group.xhm()


# ---- merging


@pytest.mark.parametrize("group", ["P 1", "P 1 21/c 1", "P 21 21 21", "P 43 21 2", "R 3 2:H", "F 2 3"])
def test_merge_equals_brute_force(group: str) -> None:
    sg = gemmi.SpaceGroup(group)
    hkl = RNG.integers(-4, 5, (600, 3)).astype(np.int32)
    value, sigma = RNG.normal(100, 20, 600), RNG.uniform(1, 9, 600)
    merged = merge.merge(hkl, value, sigma, sg)
    ops, asu = sg.operations(), gemmi.ReciprocalAsu(sg)
    sets: dict[tuple[int, ...], list[int]] = {}
    for row, h in enumerate(hkl):
        sets.setdefault(tuple(asu.to_asu(list(map(int, h)), ops)[0]), []).append(row)
    assert [tuple(h) for h in merged.hkl] == sorted(sets)
    for h, mean, sig, count in zip(merged.hkl, merged.value, merged.sigma, merged.count, strict=True):
        rows = sets[tuple(h)]
        w = 1 / sigma[rows] ** 2
        assert mean == pytest.approx((w * value[rows]).sum() / w.sum())
        assert count == len(rows)
        assert sig >= 1 / np.sqrt(w.sum()) * (1 - 1e-9)


def test_unknown_sigmas_stay_unknown() -> None:
    hkl = np.array([[1, 2, 3], [-1, -2, -3], [1, 1, 1]], dtype=np.int32)
    merged = merge.merge(hkl, np.array([1.0, 3.0, 5.0]), np.zeros(3), gemmi.SpaceGroup("P 1"))
    assert sorted(merged.value) == [2.0, 5.0] and not merged.sigma.any()


def test_lower_group_does_not_count_measurements_twice() -> None:
    high, low = gemmi.SpaceGroup("P 4 2 2"), gemmi.SpaceGroup("P 2 2 2")
    hkl = unique("P 4 2 2", gemmi.UnitCell(10, 10, 15, 90, 90, 90), 2.0)
    data = merge.merge(hkl, np.arange(1.0, len(hkl) + 1), np.ones(len(hkl)), high)
    changed, r, n = merge.change_group(data, high, low)
    assert np.allclose(changed.sigma, 1.0) and (np.isnan(r) or r == 0) and n == 0
    expected = {tuple(h) for h in unique("P 2 2 2", gemmi.UnitCell(10, 10, 15, 90, 90, 90), 2.0)}
    assert {tuple(h) for h in changed.hkl} == expected


# ---- MTZ


def test_mtz_amplitudes(mtz_file: Path) -> None:
    data = read_amplitudes(mtz_file)
    hkl = unique("P 21 21 21")
    expected = {tuple(h): np.sqrt(i) for h, i in zip(hkl, intensities(hkl, "P 21 21 21"), strict=True)}
    assert len(data) == len(hkl) and data.completeness == 1.0
    assert np.allclose(data.f, [expected[tuple(h)] for h in data.hkl], rtol=1e-5)
    assert data.source.columns == ("FP", "SIGFP") and data.source.kind == "amplitude" and data.intensity is None
    assert any("FP, SIGFP" in note for note in data.notes)
    assert data.hkl.dtype == np.int32 and np.array_equal(data.hkl, data.hkl[np.lexsort(data.hkl.T[::-1])])


def test_gzip_is_told_by_content(mtz_file: Path, tmp_path: Path) -> None:
    packed = tmp_path / "data.mtz"
    packed.write_bytes(gzip.compress(mtz_file.read_bytes()))
    assert len(read_amplitudes(packed)) == len(read_amplitudes(mtz_file))


def test_indices_need_not_come_first(tmp_path: Path) -> None:
    hkl = unique("P 21 21 21")
    i, s = fi(hkl)
    path = write_mtz(tmp_path / "d.mtz", hkl, {"I": ("J", i), "SIGI": ("Q", s)}, order="last")
    data = read_amplitudes(path)
    assert data.source.kind == "intensity" and data.intensity is not None
    assert np.allclose(data.f**2, data.intensity, rtol=1e-5)


def test_unmerged_mtz_with_batches(tmp_path: Path) -> None:
    hkl = np.repeat(unique("P 21 21 21"), 3, axis=0)
    i = intensities(hkl, "P 21 21 21")
    mtz = gemmi.Mtz(with_base=True)
    mtz.spacegroup = gemmi.SpaceGroup("P 21 21 21")
    mtz.add_dataset("crystal")
    mtz.set_cell_for_all(CELL)
    for label, kind in (
        ("M/ISYM", "Y"),
        ("BATCH", "B"),
        ("I", "J"),
        ("SIGI", "Q"),
        ("IPR", "J"),
        ("SIGIPR", "Q"),
    ):
        mtz.add_column(label, kind)
    batch = gemmi.Mtz.Batch()
    batch.number = 1
    mtz.batches.append(batch)
    one = np.ones(len(hkl))
    off = np.tile([-3.0, 0.0, 3.0], len(hkl) // 3)
    mtz.set_data(np.column_stack([hkl, one, one, i + off, one * 2, i, one]).astype(np.float32))
    mtz.write_to_file(str(tmp_path / "u.mtz"))
    data = read_amplitudes(tmp_path / "u.mtz")
    assert data.source.columns == ("I", "SIGI") and data.intensity is not None and data.sigma_i is not None
    assert np.allclose(data.intensity, intensities(data.hkl, "P 21 21 21"), rtol=1e-4, atol=1e-3)
    # the scatter (standard error sqrt(3)) exceeds what the sigmas say (2/sqrt(3))
    assert np.allclose(data.sigma_i, np.sqrt(3), rtol=1e-3)


@pytest.mark.parametrize("seed", range(30))
def test_damaged_files_give_one_line_or_data(tmp_path: Path, mtz_file: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    data = bytearray(mtz_file.read_bytes())
    header = data.rindex(b"VERS MTZ")
    for place in rng.integers(header if seed % 2 else 80, len(data), 6):
        data[place] = rng.integers(256)
    mtz_file.write_bytes(bytes(data))
    try:
        found = read_amplitudes(mtz_file)
    except UserError as error:
        assert "\n" not in str(error)
    else:
        assert np.isfinite(found.f).all() and (found.f >= 0).all()


def test_friedel_pairs_give_the_mean(tmp_path: Path) -> None:
    hkl = unique("P 1 21 1", MONO)
    i = intensities(hkl, "P 1 21 1")
    columns = {
        "Iplus": ("K", i + 3),
        "SIGIplus": ("M", i * 0 + 2),
        "Iminus": ("K", i - 3),
        "SIGIminus": ("M", i * 0 + 2),
    }
    data = read_amplitudes(write_mtz(tmp_path / "d.mtz", hkl, columns, "P 1 21 1", MONO))
    assert data.source.kind == "anomalous intensity" and data.intensity is not None
    expected = {tuple(h): x for h, x in zip(hkl, i, strict=True)}
    assert np.allclose(data.intensity, [expected[tuple(h)] for h in data.hkl], atol=1e-3)
    assert np.allclose(data.sigma_i, np.sqrt(2), rtol=1e-5)
    assert any("Friedel pairs" in note for note in data.notes)


def test_centric_pair_written_twice_is_one_measurement(tmp_path: Path) -> None:
    hkl = unique("P 21 21 21")
    i, s = fi(hkl)
    columns = {"F(+)": ("G", np.sqrt(i)), "SIGF(+)": ("L", s), "F(-)": ("G", np.sqrt(i)), "SIGF(-)": ("L", s)}
    data = read_amplitudes(write_mtz(tmp_path / "d.mtz", hkl, columns))
    wanted = {tuple(h): x for h, x in zip(hkl, s, strict=True)}
    ratio = data.sigf / [wanted[tuple(h)] for h in data.hkl]
    assert np.allclose(ratio[data.centric], 1) and np.allclose(ratio[~data.centric], np.sqrt(0.5))


def two_forms(tmp_path: Path, other: NDArray | None = None) -> Path:
    hkl = unique("P 21 21 21")
    i, s = fi(hkl)
    f = np.sqrt(i if other is None else other)
    columns = {
        "FP": ("F", f),
        "SIGFP": ("Q", s),
        "I": ("J", i),
        "SIGI": ("Q", s),
        "FC": ("F", f),
        "PHIC": ("P", f),
    }
    return write_mtz(tmp_path / "two.mtz", hkl, columns)


def test_intensity_is_taken_of_two_forms_of_one_measurement(tmp_path: Path) -> None:
    path = two_forms(tmp_path)
    data = read_amplitudes(path)
    assert data.source.columns == ("I", "SIGI")
    assert any("LABIN FP=FP SIGFP=SIGFP" in note for note in data.notes)
    for labin in ("FP=FP SIGFP=SIGFP", "LABIN F = fp SIGF = SIGFP", "FP,SIGFP", "fp"):
        assert read_amplitudes(path, labin=labin).source.columns == ("FP", "SIGFP")


def test_unrelated_measurements_are_not_guessed(tmp_path: Path) -> None:
    path = two_forms(tmp_path, RNG.exponential(100, len(unique("P 21 21 21"))))
    line = fault(path)
    assert "LABIN FP=FP SIGFP=SIGFP" in line and "LABIN I=I SIGI=SIGI" in line


def test_several_amplitudes_are_listed(tmp_path: Path) -> None:
    hkl = unique("P 21 21 21")
    i, s = fi(hkl)
    columns = {}
    for name in ("NAT", "AU"):
        columns |= {f"F{name}": ("F", np.sqrt(i)), f"SIGF{name}": ("Q", s)}
    line = fault(write_mtz(tmp_path / "d.mtz", hkl, columns))
    assert "LABIN FP=FNAT SIGFP=SIGFNAT" in line and "LABIN FP=FAU SIGFP=SIGFAU" in line


@pytest.mark.parametrize(
    "labin", ["FP=FC", "FC", "FP=PHIC", "FP=NONE", "SIGFP=SIGFP", "FP=", "PHI=PHIC", "FP=I", "FP=FP SIGFP=FC"]
)
def test_labin_that_does_not_fit(tmp_path: Path, labin: str) -> None:
    assert "Try:" in fault(two_forms(tmp_path), labin=labin)


@pytest.mark.parametrize(
    "label",
    ["FC", "FC_ALL", "FC_ALL_LS", "FWT", "DELFWT", "2FOFCWT", "FOFCWT", "FOM", "F-model", "FMODEL", "F_calc"],
)
def test_calculated_columns_are_never_measured(tmp_path: Path, label: str) -> None:
    hkl = unique("P 21 21 21")
    i, s = fi(hkl)
    path = write_mtz(tmp_path / "d.mtz", hkl, {label: ("F", np.sqrt(i)), "SIG" + label: ("Q", s)})
    assert "no measured" in fault(path)
    assert "calculated" in fault(path, labin=f"FP={label}")


def test_free_flags(tmp_path: Path) -> None:
    hkl = unique("P 21 21 21")
    i, s = fi(hkl)
    flags = (np.arange(len(hkl)) % 20).astype(float)
    flags[7] = np.nan
    columns = {"FREE": ("I", flags), "FP": ("F", np.sqrt(i)), "SIGFP": ("Q", s)}
    data = read_amplitudes(write_mtz(tmp_path / "d.mtz", hkl[::-1], {k: (t, v[::-1]) for k, (t, v) in columns.items()}))
    expected = {tuple(h): x for h, x in zip(hkl, flags, strict=True)}
    wanted = np.array([expected[tuple(h)] for h in data.hkl])
    assert data.free is not None
    assert np.array_equal(data.free, np.where(np.isnan(wanted), -1, wanted))


def test_what_is_no_measurement_is_dropped(tmp_path: Path) -> None:
    hkl = unique("P 21 21 21")
    i, s = fi(hkl)
    i[:3] = np.nan
    i[3], s[3] = 0, 0
    i[4], s[4] = -1, -1
    i[5], s[5] = -520.0, 10.0
    i[6], s[6] = -5.0, 10.0
    path = write_mtz(
        tmp_path / "d.mtz",
        np.vstack([hkl, [[0, 0, 0]]]),
        {"I": ("J", np.append(i, 9e9)), "SIGI": ("Q", np.append(s, 1))},
    )
    data = read_amplitudes(path)
    assert len(data) == len(hkl) - 6
    assert data.intensity is not None and data.intensity.min() == pytest.approx(-5)
    weak = data.intensity.argmin()
    assert data.f[weak] == 0 and data.sigf[weak] == pytest.approx(np.sqrt(10))


def test_resolution_keeps_both_limits(mtz_file: Path) -> None:
    whole = read_amplitudes(mtz_file)
    d_max, d_min = sorted(whole.d)[-30], sorted(whole.d)[100]
    cut = read_amplitudes(mtz_file, resolution=(d_max, d_min))
    assert len(cut) == ((whole.d <= d_max * 1.0000001) & (whole.d >= d_min * 0.9999999)).sum()
    assert "from" in fault(mtz_file, resolution=(0.5, 0.4))


# ---- faults


def test_files_that_cannot_be_read(tmp_path: Path, mtz_file: Path) -> None:
    assert "no such file" in fault(tmp_path / "none.mtz")
    assert "directory" in fault(tmp_path)
    empty = tmp_path / "empty.mtz"
    empty.write_bytes(b"")
    assert "empty" in fault(empty)
    other = tmp_path / "x.pdb"
    other.write_text("HEADER\nATOM      1  N   ALA A   1      11.104   6.134  -6.504\n" * 9)
    assert "known format" in fault(other)
    packed = tmp_path / "cut.mtz.gz"
    packed.write_bytes(gzip.compress(mtz_file.read_bytes())[:-200])
    assert "truncated" in fault(packed)


@pytest.mark.parametrize("fraction", [0.001, 0.01, 0.3, 0.9, 0.99])
def test_truncated_mtz(mtz_file: Path, fraction: float) -> None:
    data = mtz_file.read_bytes()
    mtz_file.write_bytes(data[: max(5, int(len(data) * fraction))])
    assert "Try:" in fault(mtz_file)


def test_rubbish_after_the_mtz_stamp(tmp_path: Path) -> None:
    for seed in range(20):
        path = tmp_path / f"{seed}.mtz"
        path.write_bytes(b"MTZ " + np.random.default_rng(seed).bytes(400))
        assert "Try:" in fault(path)


@pytest.mark.parametrize(
    ("value", "message"),
    [(np.nan, "all missing"), (7.0, "constant"), (0.0, "Try"), (-3.0, "Try")],
)
def test_columns_without_information(tmp_path: Path, value: float, message: str) -> None:
    hkl = unique("P 21 21 21")
    columns = {"FP": ("F", np.full(len(hkl), value)), "SIGFP": ("Q", np.ones(len(hkl)))}
    assert message in fault(write_mtz(tmp_path / "d.mtz", hkl, columns))


def test_all_negative(tmp_path: Path) -> None:
    hkl = unique("P 21 21 21")
    columns = {"I": ("J", -RNG.exponential(9, len(hkl))), "SIGI": ("Q", np.full(len(hkl), 10.0))}
    assert "negative" in fault(write_mtz(tmp_path / "d.mtz", hkl, columns))


def test_three_reflections(tmp_path: Path) -> None:
    hkl = unique("P 21 21 21")[:3]
    i, s = fi(hkl)
    assert "only 3" in fault(write_mtz(tmp_path / "d.mtz", hkl, {"FP": ("F", i + 1), "SIGFP": ("Q", s)}))


def test_no_cell_no_group(tmp_path: Path) -> None:
    hkl = unique("P 21 21 21")
    i, s = fi(hkl)
    columns = {"FP": ("F", np.sqrt(i)), "SIGFP": ("Q", s)}
    path = write_mtz(tmp_path / "nocell.mtz", hkl, columns, cell=None)
    assert "cell" in fault(path)
    assert len(read_amplitudes(path, cell=CELL.parameters)) == len(hkl)
    path = write_mtz(tmp_path / "bad.mtz", hkl, columns, cell=gemmi.UnitCell(9, 9, 9, 150, 20, 90))
    assert "impossible cell" in fault(path)
    path = write_mtz(tmp_path / "nogroup.mtz", hkl, columns)
    path.write_bytes(path.read_bytes().replace(b"SYMINF", b"REMARK").replace(b"SYMM ", b"REM  "))
    assert "space group" in fault(path)
    assert len(read_amplitudes(path, spacegroup="P212121")) == len(hkl)


# ---- what the data say about the group


def test_screw_axes_the_data_contradict(tmp_path: Path) -> None:
    hkl = unique("P 2 2 2")
    i, s = fi(hkl, "P 2 2 2")
    path = write_mtz(tmp_path / "d.mtz", hkl, {"I": ("J", i), "SIGI": ("Q", s)}, "P 2 2 2")
    line = fault(path, spacegroup="P 21 21 21")
    assert "contradict" in line and '"P 2 2 2"' in line


def test_one_wrong_screw_axis_is_found_and_the_right_group_named(tmp_path: Path) -> None:
    hkl = unique("P 2 2 2")
    i, s = fi(hkl, "P 21 21 2")
    path = write_mtz(tmp_path / "d.mtz", hkl, {"I": ("J", i), "SIGI": ("Q", s)}, "P 21 21 21")
    assert '"P 21 21 2"' in fault(path)


def test_rotations_the_data_contradict(tmp_path: Path) -> None:
    cell = gemmi.UnitCell(10, 10, 12, 90, 90, 90)
    hkl = unique("P 4", cell)
    i, s = fi(hkl, "P 4")
    path = write_mtz(tmp_path / "d.mtz", hkl, {"I": ("J", i), "SIGI": ("Q", s)}, "P 4", cell)
    assert "contradict" in fault(path, spacegroup="P 4 2 2")
    assert "does not fit" in fault(path, spacegroup="P 2 3")


def test_unmerged_data_that_contradict_their_own_group(tmp_path: Path) -> None:
    everything = merge.expand_laue(unique("P 1", MONO), gemmi.SpaceGroup("P 1"))[0]
    i, s = fi(everything, "P 1")
    path = write_mtz(tmp_path / "d.mtz", everything, {"I": ("J", i), "SIGI": ("Q", s)}, "P 1 2 1", MONO)
    assert "contradict space group P 1 2 1" in fault(path)
    data = read_amplitudes(path, spacegroup="P1")
    assert len(data) == len(everything) and any("as asked" in note for note in data.notes)


def test_higher_symmetry_is_noted_not_imposed(tmp_path: Path) -> None:
    """alamet's case: P 1 21/c 1 data spread over P 1, without the absent ones."""
    hkl = unique("P 1", MONO)
    i, s = fi(hkl, "P 1 21/c 1")
    keep = i > 1e-6
    path = write_mtz(tmp_path / "d.mtz", hkl[keep], {"I": ("J", i[keep]), "SIGI": ("Q", s[keep])}, "P 1", MONO)
    data = read_amplitudes(path)
    assert data.spacegroup.xhm() == "P 1" and len(data) == keep.sum()
    assert any("P 1 21/c 1" in note for note in data.notes)
    merged = read_amplitudes(path, spacegroup="P21/c")
    assert len(merged) < 0.6 * len(data) and not any("higher symmetry" in note for note in merged.notes)


def test_no_false_alarm_about_symmetry(mtz_file: Path) -> None:
    assert not any("symmetry" in note for note in read_amplitudes(mtz_file).notes)


def test_lower_symmetry_spreads_the_data(mtz_file: Path) -> None:
    data = read_amplitudes(mtz_file, spacegroup="P1")
    expected = intensities(data.hkl, "P 21 21 21")
    assert np.allclose(data.f**2, expected, rtol=1e-4, atol=1e-3)
    assert {tuple(h) for h in data.hkl} == {
        tuple(h) for h in unique("P 1")[intensities(unique("P 1"), "P 21 21 21") > 1e-6]
    }


def test_absences_are_dropped_and_unmerged_data_merged(tmp_path: Path) -> None:
    one = unique("P 1")
    group = gemmi.SpaceGroup("P 21 21 21")
    i = intensities(one, "P 21 21 21") + RNG.normal(0, 0.4, len(one))
    path = write_mtz(
        tmp_path / "d.mtz",
        np.vstack([one, -one]),
        {"I": ("J", np.tile(i, 2)), "SIGI": ("Q", np.full(2 * len(one), 0.5))},
    )
    data = read_amplitudes(path)
    assert not group.operations().systematic_absences(data.hkl).any()
    assert {tuple(h) for h in data.hkl} == {tuple(h) for h in unique("P 21 21 21")}
    assert any("forbids" in n for n in data.notes) and any(f"{2 * len(one)} measurements" in n for n in data.notes)
    assert data.sigma_i is not None and np.median(data.sigma_i) == pytest.approx(0.5 / np.sqrt(8), rel=0.2)
    assert np.allclose(data.intensity, intensities(data.hkl, "P 21 21 21"), atol=1.5)


# ---- SHELX


def shelx_pair(tmp_path: Path, text: str, ins: str | None = INS) -> Path:
    if ins is not None:
        (tmp_path / "x.ins").write_text(ins)
    (tmp_path / "x.hkl").write_text(text, newline="")
    return tmp_path / "x.hkl"


@pytest.mark.parametrize(
    ("form", "end"),
    [
        ("%4d%4d%4d%8.2f%8.2f", "   0   0   0    0.00    0.00\n"),
        ("%4d%4d%4d%8.2f%8.2f", ""),  # no terminator
        ("%4d%4d%4d%8.2f%8.2f   1", "   0   0   0    0.00    0.00   0\n"),
        ("%4d%4d%4d%8.2f%8.2f\r", "   0   0   0    0.00    0.00\r\n_exptl text\r\n 1 2 3 words\r\n"),
        ("%4d%4d%4d%12.2f%12.2f", "\n"),
        ("%d %d %d %.3f %.3f", ""),
        ("%4d%4d%4d%8.2f%8.2f", "   0   0   0    0.00    0.00\n\nCELL 1.54 9 9 9 90 90 90\n"),
    ],
)
def test_hkl_layouts(tmp_path: Path, form: str, end: str) -> None:
    hkl = unique("P 21 21 21")
    i, s = fi(hkl)
    data = read_amplitudes(shelx_pair(tmp_path, hkl_lines(hkl, i, s, form) + end))
    assert data.spacegroup.xhm() == "P 21 21 21" and data.cell.approx(CELL, 1e-4)
    assert data.source.format == "SHELX hkl" and data.intensity is not None
    assert np.allclose(data.intensity, intensities(data.hkl, "P 21 21 21"), atol=0.006)


def test_hkl_with_touching_fields(tmp_path: Path) -> None:
    """ "  10 -10-12225936.35": read by blanks this is nonsense."""
    hkl = unique("P 21 21 21") * -1
    i, s = fi(hkl)
    scale = 99000 / i.max()
    text = hkl_lines(hkl - [0, 0, 0], i * scale, s * scale, "%4d%4d%4d%8.2f%8.2f")
    assert any(len(line.split()) == 4 for line in text.splitlines())
    data = read_amplitudes(shelx_pair(tmp_path, text))
    assert data.intensity is not None and len(data) == len(hkl)
    assert np.allclose(data.intensity, intensities(data.hkl, "P 21 21 21") * scale, atol=0.006)


def test_hkl_line_that_is_no_reflection(tmp_path: Path) -> None:
    hkl = unique("P 21 21 21")
    lines = hkl_lines(hkl, *fi(hkl)).splitlines()
    lines[40] = "   1   2 what is this"
    assert "line 41" in fault(shelx_pair(tmp_path, "\n".join(lines)))


def test_hkl_without_instructions(tmp_path: Path) -> None:
    hkl = unique("P 21 21 21")
    path = shelx_pair(tmp_path, hkl_lines(hkl, *fi(hkl)), ins=None)
    assert "cell" in fault(path)
    assert "space group" in fault(path, cell=CELL.parameters)
    data = read_amplitudes(path, cell=CELL.parameters, spacegroup="19")
    assert data.source.kind == "intensity" and any("HKLF 3" not in n and "HKLF 4" in n for n in data.notes)
    assert "instructions" in fault(_write(tmp_path / "y.ins", INS))


def _write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.mark.parametrize("group", ["P 21 21 21", "P 1 21/c 1"])
def test_amplitudes_and_intensities_are_told_apart(tmp_path: Path, group: str) -> None:
    cell = CELL if group == "P 21 21 21" else MONO
    hkl = unique(group, cell, 0.9)
    i, _ = fi(hkl, group)
    kinds = {}
    for name, value in (("I", i), ("F", np.sqrt(i) * 10)):
        path = _write(tmp_path / f"{name}.hkl", hkl_lines(hkl, value, 0.01 * value + 0.02))
        kinds[name] = read_amplitudes(path, cell=cell.parameters, spacegroup=group).source.kind
    assert kinds == {"I": "intensity", "F": "amplitude"}


def test_hklf_3_is_believed(tmp_path: Path) -> None:
    hkl = unique("P 21 21 21")
    f = np.sqrt(intensities(hkl, "P 21 21 21")) * 10
    data = read_amplitudes(shelx_pair(tmp_path, hkl_lines(hkl, f, f * 0.01 + 0.1), INS.replace("HKLF 4", "HKLF 3")))
    assert data.source.kind == "amplitude" and data.source.columns == ("F", "SIGF")


def test_cif_beside_the_list_gives_cell_group_and_hklf(tmp_path: Path) -> None:
    hkl = unique("P 21 21 21")
    f = np.sqrt(intensities(hkl, "P 21 21 21")) * 10
    path = shelx_pair(tmp_path, hkl_lines(hkl, f, f * 0.01 + 0.1), ins=None)
    res = f"_shelx_res_file\n;\n{INS.replace('HKLF 4', 'HKLF 3')};\n"
    _write(tmp_path / "X.cif", HEAD + GROUPS["Hall"] + res)
    data = read_amplitudes(path)
    assert data.source.kind == "amplitude" and any("as the instructions say" in n for n in data.notes)
    assert data.spacegroup.xhm() == "P 21 21 21" and data.cell.approx(CELL, 1e-4)


def test_hklf_matrix_transforms_the_indices(tmp_path: Path) -> None:
    hkl = unique("P 21 21 21")
    i, s = fi(hkl)
    moved = hkl[:, [1, 2, 0]]
    ins = INS.replace("HKLF 4", "HKLF 4 1 0 0 1 1 0 0 0 1 0")
    data = read_amplitudes(shelx_pair(tmp_path, hkl_lines(moved, i, s), ins))
    assert data.intensity is not None
    assert np.allclose(data.intensity, intensities(data.hkl, "P 21 21 21"), atol=0.006)


# ---- CIF

HEAD = """data_made
_cell_length_a 9.300(2)
_cell_length_b 10.700(3)
_cell_length_c 12.100(1)
_cell_angle_alpha 90
_cell_angle_beta 90
_cell_angle_gamma 90
"""
GROUPS = {
    "Hall": "_space_group_name_Hall 'P 2ac 2ab'\n",
    "unspaced": "_symmetry_space_group_name_H-M P212121\n",
    "number": "_symmetry_Int_Tables_number 19\n",
    "operators": "loop_\n_symmetry_equiv_pos_as_xyz\n'x,y,z'\n'1/2-x, -y, 1/2+z'\n"
    "'-x, 1/2+y, 1/2-z'\n'1/2+x,1/2-y,-z'\n",
    "bad Hall": "_space_group_name_Hall 'P 2xab;2ybc'\n_space_group_name_H-M_alt 'P 21 21 21'\n",
}


def refln_loop(tags: str, hkl: NDArray, *columns: list[str]) -> str:
    names = "".join(f"_refln_{t}\n" for t in ["index_h", "index_k", "index_l", *tags.split()])
    rows = "\n".join(" ".join([*map(str, h), *c]) for h, *c in zip(hkl, *columns, strict=True))
    return f"loop_\n{names}{rows}\n"


def text_of(x: NDArray) -> list[str]:
    return [f"{v:.4f}" for v in x]


@pytest.mark.parametrize("how", list(GROUPS))
def test_cif_with_every_way_to_say_the_group(tmp_path: Path, how: str) -> None:
    hkl = unique("P 21 21 21")
    i, s = fi(hkl)
    loop = refln_loop("F_squared_calc F_squared_meas F_squared_sigma", hkl, text_of(i * 2), text_of(i), text_of(s))
    data = read_amplitudes(_write(tmp_path / "x.fcf", HEAD + GROUPS[how] + loop))
    assert data.spacegroup.xhm() == "P 21 21 21" and data.source.columns == (
        "F_squared_meas",
        "F_squared_sigma",
    )
    assert data.intensity is not None
    assert np.allclose(data.intensity, intensities(data.hkl, "P 21 21 21"), atol=1e-3)


def test_mmcif_with_question_marks_and_status(tmp_path: Path) -> None:
    hkl = unique("P 21 21 21")
    i, s = fi(hkl)
    values, sigmas, status = text_of(i), text_of(s), ["o"] * len(hkl)
    values[3] = sigmas[3] = "?"
    status[3], status[4], status[10] = "x", "x", "f"
    loop = refln_loop(
        "status F_meas_au F_meas_sigma_au intensity_meas intensity_sigma F_calc",
        hkl,
        status,
        text_of(np.sqrt(i)),
        text_of(s),
        values,
        sigmas,
        text_of(i),
    ).replace("_refln_", "_refln.")
    path = _write(tmp_path / "x-sf.cif", HEAD.replace("_cell_", "_cell.") + GROUPS["number"] + loop)
    data = read_amplitudes(path)
    assert len(data) == len(hkl) - 2 and data.source.kind == "intensity"
    assert data.free is not None and [tuple(h) for h in data.hkl[data.free == 0]] == [tuple(hkl[10])]
    assert read_amplitudes(path, labin="F_meas_au,F_meas_sigma_au").source.kind == "amplitude"
    assert "calculated" in fault(path, labin="FP=F_calc")


def test_cif_with_calculated_values_only(tmp_path: Path) -> None:
    hkl = unique("P 21 21 21")
    loop = refln_loop("F_squared_calc", hkl, text_of(intensities(hkl, "P 21 21 21")))
    assert "no measured" in fault(_write(tmp_path / "x.fcf", HEAD + GROUPS["Hall"] + loop))


@pytest.mark.parametrize(
    "tags",
    [
        ("_shelx_res_file", "_shelx_hkl_file"),
        ("_iucr_refine_instructions_details", "_iucr_refine_reflections_details"),
    ],
)
@pytest.mark.parametrize(("hklf", "kind"), [("HKLF 4", "intensity"), ("HKLF 3", "amplitude")])
def test_cif_with_embedded_hkl(tmp_path: Path, tags: tuple[str, str], hklf: str, kind: str) -> None:
    hkl = unique("P 21 21 21")
    i, s = fi(hkl)
    value = i if kind == "intensity" else np.sqrt(i) * 10
    text = (
        f"{HEAD}{tags[0]}\n;\n{INS.replace('HKLF 4', hklf)};\n{tags[1]}\n;\n{hkl_lines(hkl, value, s)}"
        "   0   0   0    0.00    0.00\n;\n"
    )
    data = read_amplitudes(_write(tmp_path / "x.cif", text.replace("\n", "\r\n")))
    assert data.source.format == "CIF with embedded SHELX hkl" and data.source.kind == kind
    assert data.spacegroup.xhm() == "P 21 21 21" and len(data) == len(hkl)


def test_second_block_can_be_asked_for(tmp_path: Path) -> None:
    hkl = unique("P 21 21 21")
    i, s = fi(hkl)
    one, two = (refln_loop("F_squared_meas F_squared_sigma", hkl, text_of(i * x), text_of(s)) for x in (1, 3))
    path = _write(tmp_path / "x.cif", HEAD + GROUPS["Hall"] + one + HEAD.replace("made", "B") + two)
    data, other = read_amplitudes(path), read_amplitudes(path, labin="I=B/F_squared_meas")
    assert np.allclose(other.f, data.f * np.sqrt(3), rtol=1e-3) and any("B" in n for n in data.notes)


@pytest.mark.parametrize("cut", [0.35, 0.9])
def test_truncated_or_empty_cif(tmp_path: Path, cut: float) -> None:
    hkl = unique("P 21 21 21")
    loop = refln_loop("F_squared_meas F_squared_sigma", hkl, *map(text_of, fi(hkl)))
    text = HEAD + GROUPS["Hall"] + loop
    cut_at = text.rindex(" ", 0, int(len(text) * cut))
    assert "broken or truncated" in fault(_write(tmp_path / "x.cif", text[:cut_at]))
    assert "no measured" in fault(_write(tmp_path / "y.cif", HEAD))
