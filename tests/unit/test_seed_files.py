"""Files of phase seeds, read by cctbx, gemmi and strict readers of FORTRAN fields, and back by the program."""

import csv
import dataclasses
import gzip
import re
from pathlib import Path

import gemmi
import numpy as np
import pytest
from sample_outcome import CELL, amplitudes, phases, structure_factors

from ml_phaser.errors import UserError
from ml_phaser.exchange.read_seeds import read_seeds
from ml_phaser.exchange.seed_files import (
    CSV_COLUMNS,
    FORMS,
    SeedData,
    check_seed_group,
    form_of,
    seed_files,
    seed_paths,
)
from ml_phaser.phasing.seed_choice import choose_seeds

NAMES = {form: f"x{endings[0]}" for form, endings in FORMS.items()}
PHI = "3I4,F9.2,F8.4,F8.1,F8.2"
HKL = "3I4,2F8.2"


def fortran(text, layout):
    """Rows of a list by its FORMAT statement: exact widths, right-justified, as many decimals as it says."""
    widths = []
    for times, kind, width, decimals in re.findall(r"(\d*)([IF])(\d+)(?:\.(\d+))?", layout):
        widths += [(int(width), r"-?\d+" if kind == "I" else rf"-?\d*\.\d{{{decimals}}}")] * int(times or 1)
    rows = []
    for line in text.splitlines():
        assert len(line) == sum(w for w, _ in widths), line
        at, row = 0, []
        for width, pattern in widths:
            word = line[at : at + width]
            at += width
            assert re.fullmatch(" *" + pattern, word), (line, word)
            row.append(float(word))
        rows.append(row)
    return np.array(rows)


def made(group="P 21 21 21", bins=4, most=60, **more):
    data = amplitudes(group=gemmi.SpaceGroup(group), **more)
    known = phases(data)
    e = data.f / np.sqrt(np.mean(data.f**2))
    seeds = choose_seeds(known, e, data.hkl, data.spacegroup, bins=bins, most=most)
    return SeedData(data, known, seeds, e, data.f, data.sigf)


def written(folder, form, sample):
    path = folder / NAMES[form]
    files = seed_files(path, form, sample)
    for name, content in files.items():
        name.write_bytes(content)
    return path, {p.name: p for p in files}


def apart(phase_in_degrees, radians):
    return np.abs(np.angle(np.exp(1j * (np.deg2rad(phase_in_degrees) - radians)), deg=True))


@pytest.fixture(scope="module")
def sample():
    return made()


# ------------------------------------------------------------------------------------------- each form


def test_shelxe_has_a_set_of_all_phases_and_one_of_the_seeds(tmp_path, sample):
    _, files = written(tmp_path, "shelxe", sample)
    assert list(files) == ["x.phi", "x.hkl", "x.ins", "x_seeds.phi", "x_seeds.hkl", "x_seeds.ins"]
    full, only = (fortran(files[x].read_text(), PHI) for x in ("x.phi", "x_seeds.phi"))
    np.testing.assert_array_equal(full[:, :3], sample.data.hkl)
    np.testing.assert_allclose(full[:, 4], sample.phases.fom, atol=6e-5)
    assert apart(full[:, 5], sample.phases.phase).max() < 0.051
    rows = np.sort(sample.seeds.rows)
    order = np.argsort(sample.seeds.rows)
    np.testing.assert_array_equal(only[:, :3], sample.data.hkl[rows])
    assert apart(only[:, 5], sample.seeds.centre[order]).max() < 0.051
    np.testing.assert_allclose(only[:, 4], sample.seeds.weight[order], atol=6e-5)
    np.testing.assert_array_equal(only[:, 3], full[rows, 3])
    assert files["x.hkl"].read_bytes() == files["x_seeds.hkl"].read_bytes()
    hkl = fortran(files["x_seeds.hkl"].read_text(), HKL)
    assert len(hkl) == len(sample.data) + 1 and (hkl[-1] == 0).all()


def test_phs_is_the_list_of_the_seeds(tmp_path, sample):
    _, files = written(tmp_path, "phs", sample)
    _, beside = written(tmp_path, "shelxe", sample)
    assert list(files) == ["x.phs"] and files["x.phs"].read_bytes() == beside["x_seeds.phi"].read_bytes()
    fortran(files["x.phs"].read_text(), PHI)


def test_phas_cards_stand_in_instructions_that_cctbx_reads(tmp_path, sample):
    path, files = written(tmp_path, "phas", sample)
    assert list(files) == ["x.ins", "x.hkl"]
    lines = path.read_text().splitlines()
    cards = [x.split() for x in lines if x.startswith("PHAS")]
    found = np.array([[float(x) for x in words[1:]] for words in cards])
    np.testing.assert_array_equal(found[:, :3], sample.data.hkl[sample.seeds.rows])
    assert apart(found[:, 3], sample.seeds.centre).max() < 0.051 and found.shape[1] == 4
    assert [x for x in lines if not x.startswith(("PHAS", "SYMM"))][-3:] == ["TREF", "HKLF 4", "END"]
    assert all(len(x) <= 80 for x in lines)
    fortran(files["x.hkl"].read_text(), HKL)
    pytest.importorskip("cctbx")
    from iotbx.shelx import crystal_symmetry_from_ins

    symmetry = crystal_symmetry_from_ins.extract_from(file_name=str(path))
    assert symmetry.space_group().type().number() == 19
    np.testing.assert_allclose(symmetry.unit_cell().parameters(), CELL.parameters, atol=1e-4)


def test_mtz_holds_bins_phases_and_probabilities(tmp_path, sample):
    path, _ = written(tmp_path, "mtz", sample)
    mtz, seeds = gemmi.read_mtz_file(str(path)), sample.seeds
    assert mtz.column_labels()[3:] == ["F", "SIGF", "E", "BIN", "PHI", "FOM", "PROB", "PHIB"]
    assert "".join(c.type for c in mtz.columns) == "HHHFQEIPWWP"
    assert mtz.nreflections == len(sample.data) and mtz.spacegroup.number == 19 and mtz.cell.approx(CELL, 1e-3)
    column = {c.label: np.array(c) for c in mtz.columns}
    given = np.isfinite(column["PHI"])
    assert set(np.flatnonzero(given)) == set(seeds.rows)
    assert all((np.isfinite(column[x]) == given).all() for x in ("BIN", "FOM", "PROB", "PHIB"))
    assert np.isfinite(column["E"]).all() and np.isfinite(column["F"]).all()
    np.testing.assert_array_equal(column["BIN"][seeds.rows], seeds.number)
    np.testing.assert_allclose(column["PROB"][seeds.rows], seeds.probability, atol=1e-6)
    assert apart(column["PHI"][seeds.rows], seeds.centre).max() < 1e-3
    assert apart(column["PHIB"][seeds.rows], seeds.phase).max() < 1e-3


def test_cctbx_reads_the_mtz_for_acorn(tmp_path, sample):
    iotbx_mtz = pytest.importorskip("iotbx.mtz")
    path, _ = written(tmp_path, "acorn", sample)
    mtz = iotbx_mtz.object(str(path))
    assert list(mtz.column_labels()) == ["H", "K", "L", "F", "SIGF", "E", "PHI", "WT"]
    assert "".join(mtz.column_types()) == "HHHFQEPW"
    found = {tuple(h): p for h, p in zip(mtz.extract_miller_indices(), mtz.extract_reals("PHI").data, strict=False)}
    valid = mtz.extract_reals("WT")
    assert {tuple(h) for h in valid.indices} == set(map(tuple, sample.data.hkl[sample.seeds.rows].tolist()))
    wanted = dict(zip(map(tuple, sample.data.hkl[sample.seeds.rows].tolist()), sample.seeds.weight, strict=True))
    assert max(abs(wanted[tuple(h)] - w) for h, w in zip(valid.indices, valid.data, strict=True)) < 1e-6
    assert len(found) == len(sample.seeds)


def test_csv_has_everything(tmp_path, sample):
    path, _ = written(tmp_path, "csv", sample)
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    seeds, data = sample.seeds, sample.data
    assert list(rows[0]) == list(CSV_COLUMNS)
    table = {name: np.array([float(row[name]) for row in rows]) for name in rows[0]}
    np.testing.assert_array_equal(np.stack([table[x] for x in "hkl"], 1), data.hkl[seeds.rows])
    np.testing.assert_allclose(table["F"], data.f[seeds.rows], rtol=1e-5)
    np.testing.assert_array_equal(table["bin"], seeds.number)
    np.testing.assert_array_equal(table["restricted"], data.centric[seeds.rows])
    np.testing.assert_allclose(table["probability"], seeds.probability, atol=6e-5)
    assert apart(table["centre"], seeds.centre).max() < 1e-3 and apart(table["phase"], seeds.phase).max() < 1e-3
    free = table["restricted"] == 0
    assert set(table["centre"][free]) <= {45.0, 135.0, 225.0, 315.0}


def test_superflip_has_phases_in_cycles_and_the_operators(tmp_path):
    sample = made("C 1 2/c 1")
    path, _ = written(tmp_path, "superflip", sample)
    text = path.read_text()
    inside = text.split("fbegin\n")[1].split("endf")[0].splitlines()
    assert len(inside) == len(sample.data)
    phased = [x for x in inside if not x.endswith("?")]
    rows = fortran("\n".join(phased), "3I4,F14.4,F10.5")
    assert len(rows) == len(sample.seeds) and (rows[:, 4] >= 0).all() and (rows[:, 4] < 1).all()
    at = {tuple(h): i for i, h in enumerate(sample.data.hkl[sample.seeds.rows].tolist())}
    order = [at[tuple(h)] for h in rows[:, :3].astype(int).tolist()]
    assert apart(360 * rows[:, 4], sample.seeds.centre[order]).max() < 0.003
    np.testing.assert_allclose(rows[:, 3], sample.data.f[sample.seeds.rows][order], atol=6e-5)
    ops = text.split("\nsymmetry\n")[1].split("endsymmetry")[0].split("\n")[:-1]
    read = [gemmi.Op(re.sub(r"x([123])", lambda m: "xyz"[int(m[1]) - 1], x).replace(" ", ",")) for x in ops]
    centred = [float(x) for x in text.split("\ncenters\n")[1].split("endcenters")[0].split()]
    assert {o.wrap().triplet() for o in read} == {
        o.wrap().triplet() for o in sample.data.spacegroup.operations().sym_ops
    }
    assert centred == [0, 0, 0, 0.5, 0.5, 0]
    assert "dataformat amplitude phase\n" in text and "\nperform CF\n" in text


def test_the_list_for_sir_says_that_nobody_has_read_it(tmp_path, sample):
    path, _ = written(tmp_path, "sir", sample)
    head = [x for x in path.read_text().splitlines() if x.startswith(">")]
    assert "UNVERIFIED" in head[1]
    layout = next(re.search(r"FORMAT\((.*)\)", x)[1] for x in head if "FORMAT" in x)
    rows = fortran("\n".join(x for x in path.read_text().splitlines() if not x.startswith(">")), layout)
    np.testing.assert_array_equal(rows[:, :3], sample.data.hkl[sample.seeds.rows])
    np.testing.assert_allclose(rows[:, 5], sample.seeds.probability, atol=6e-5)
    assert apart(rows[:, 4], sample.seeds.centre).max() < 0.01


# ---------------------------------------------------------------------------------------- back into the program


@pytest.mark.parametrize("group", ["P 1", "P 21 21 21", "P 1 21/c 1", "P 31 2 1"])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_read_back(tmp_path, form, group):
    sample = made(group, bins=6)
    path, files = written(tmp_path, form, sample)
    found = read_seeds(files.get("x_seeds.phi", path), sample.data)
    rows = sample.seeds.rows
    assert set(np.flatnonzero(found.given)) == set(rows)
    assert apart(np.rad2deg(found.phase[rows]), sample.seeds.centre).max() < 0.051
    if form in ("csv", "mtz", "sir"):
        assert found.probability == pytest.approx(sample.seeds.mean_probability, abs=1e-4)
    else:
        assert np.isnan(found.probability)


def test_mates_are_brought_to_the_data(tmp_path):
    """Each seed written at another of its equivalents, by direct summation there."""
    sample = made("P 1 21/c 1")
    group = sample.data.spacegroup
    ops = list(group.operations().sym_ops)
    lines = ["h,k,l,phi"]
    for i, h in enumerate(sample.data.hkl[sample.seeds.rows].tolist()):
        mate = np.array(ops[i % len(ops)].apply_to_hkl(h)) * (-1 if i % 3 == 0 else 1)
        value = np.rad2deg(np.angle(structure_factors([mate], group)[0]))
        lines.append(",".join(map(str, [*mate.tolist(), value])))
    path = tmp_path / "mates.csv"
    path.write_text("\n".join(lines) + "\n")
    found = read_seeds(path, sample.data)
    true = np.angle(structure_factors(sample.data.hkl, group))
    assert found.given.sum() == len(sample.seeds)
    assert apart(np.rad2deg(found.phase[found.given]), true[found.given]).max() < 0.1


def test_weights_of_zero_are_no_seeds_and_gzip_is_read(tmp_path, sample):
    data = sample.data
    lines = [
        "".join(f"{x:4d}" for x in h) + f"{10:9.2f}{w:8.4f}{40:8.1f}{1:8.2f}"
        for h, w in zip(data.hkl[:30].tolist(), np.arange(30) % 2, strict=True)
    ]
    path = tmp_path / "x.phs.gz"
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    found = read_seeds(path, data)
    assert np.flatnonzero(found.given).tolist() == list(range(1, 30, 2))
    free = found.given & ~data.centric
    np.testing.assert_allclose(np.rad2deg(found.phase[free]), 40, atol=1e-6)


def test_seeds_at_an_origin_that_is_none_are_noticed(tmp_path, sample):
    shifted = dataclasses.replace(
        sample.seeds, centre=sample.seeds.centre + 2 * np.pi * (sample.data.hkl[sample.seeds.rows] @ [0.25, 0.1, 0.3])
    )
    path, _ = written(tmp_path, "csv", dataclasses.replace(sample, seeds=shifted))
    assert any("is their origin one of the space group" in note for note in read_seeds(path, sample.data).notes)
    path, _ = written(tmp_path, "csv", sample)
    assert len(read_seeds(path, sample.data).notes) == 1


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("x.csv", "h,k,l,F\n1,2,3,4\n", "no column centre or phi"),
        ("x.csv", "h,k,l,phi\n1,2,3,north\n", "line 2 is no phase seed"),
        ("x.csv", "h,k,l,phi\n1,2,3,nan\n", "line 2 has no sound phase"),
        ("x.csv", "h,k,l,phi,probability\n1,2,3,40,7\n", "line 2 has no sound phase and probability"),
        ("x.csv", "h,k,l,phi\n", "holds no phases"),
        ("x.csv", "h,k,l,phi\n90,80,70,10\n", "none of its reflections"),
        ("x.ins", "TITL x\nPHAS 1 2\n", "no phase seed"),
        ("x.phs", "one two three\n", "is not h k l F fom phi"),
        ("x.phs", "", "the file is empty"),
        ("x.inflip", "dataformat amplitude phase\nfbegin\n1 2 3 10 ?\nendf\n", "holds no phases"),
    ],
)
def test_what_holds_no_seeds_is_refused(tmp_path, name, text, said):
    path: Path = tmp_path / name
    path.write_text(text)
    with pytest.raises(UserError, match=said) as caught:
        read_seeds(path, amplitudes())
    assert "\n" not in str(caught.value) and path.name in str(caught.value) and "phasein" not in str(caught.value)


def test_seeds_of_another_crystal_and_unknown_columns_are_refused(tmp_path, sample):
    path, _ = written(tmp_path, "mtz", sample)
    with pytest.raises(UserError):
        read_seeds(path, amplitudes(group=gemmi.SpaceGroup("P 1 21 1")))
    mtz = gemmi.read_mtz_file(str(path))
    mtz.column_with_label("PHI").label = "ALPHA"
    mtz.write_to_file(str(tmp_path / "two.mtz"))
    with pytest.raises(UserError, match="ALPHA, PHIB"):
        read_seeds(tmp_path / "two.mtz", sample.data)


# -------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(("name", "form"), [("a.phi", "shelxe"), ("a.phs", "phs"), ("a.INS", "phas"), ("a.MTZ", "mtz"),
                                            ("a.csv", "csv"), ("a.inflip", "superflip"), ("a.sir", "sir")])  # fmt: skip
def test_endings_say_the_form(name, form):
    if name == "a.INS":  # SHELXS knows lower case alone
        with pytest.raises(UserError, match=r"does not end in \.ins"):
            form_of(Path(name), "auto")
    else:
        assert form_of(Path(name), "auto") == form


@pytest.mark.parametrize(
    ("name", "form", "said"),
    [
        ("a.txt", "auto", "seedformat csv"),
        ("a.csv", "shelxe", "seedout a.phi"),
        ("a.csv", "acorn", "seedout a.mtz"),
        ("a b.phi", "auto", "SHELXE cannot be given|cannot be given"),
        ("a" * 80 + ".ins", "auto", "75 characters"),
    ],
)
def test_names_that_a_program_would_not_know(name, form, said):
    with pytest.raises(UserError, match=said):
        seed_paths(Path(name), form)


def test_any_ending_where_no_program_minds():
    assert seed_paths(Path("seeds.txt"), "csv") == (Path("seeds.txt"),)


def test_settings_that_shelx_has_no_words_for():
    group = gemmi.SpaceGroup("P n n n :1")
    with pytest.raises(UserError, match="seedout"):
        check_seed_group(Path("a.phi"), "auto", group)
    check_seed_group(Path("a.csv"), "auto", group)
