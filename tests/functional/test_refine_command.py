"""``ml_phaser refine``: its files, each of its options, its errors, and a measured protein that comes back."""

import json
import re

import gemmi
import numpy as np
import pytest
import torch
from refinable import CELL, GROUP, apart, calculated, places, shaken, true_model, write_data

from ml_phaser.cli import main as ml_phaser
from ml_phaser.cli.refine import PARAMETERS, usage
from ml_phaser.exchange.refined import COLUMNS

QUICK = ["cycles", "1", "resolution", "2.6"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("refine")
    truth = true_model()
    write_data(folder / "data.mtz", truth)
    write_data(folder / "bare.mtz", truth, flags=False)
    truth.write_pdb(str(folder / "truth.pdb"))
    shaken(truth).write_pdb(str(folder / "shaken.pdb"))
    return folder


def run(
    folder, capsys, *words, name="out", model="shaken.pdb", data="data.mtz", suffix=".pdb", labin=("labin", "F,SIGF")
):
    """Model, MTZ, record and log of a run that must succeed."""
    files = {"xyzout": folder / f"{name}{suffix}", "hklout": folder / f"{name}.mtz", "jsonout": folder / f"{name}.json"}
    argv = ["refine", "xyzin", folder / model, "hklin", folder / data, *labin, "overwrite", *words]
    argv += [w for pair in files.items() for w in pair]
    status = ml_phaser([str(w) for w in argv])
    out, err = capsys.readouterr()
    assert (status, err) == (0, "")
    st = gemmi.read_structure(str(files["xyzout"]))
    return st, gemmi.read_mtz_file(str(files["hklout"])), json.loads(files["jsonout"].read_text()), out


def fails(folder, capsys, *words):
    """The one line of a run that must fail and leave nothing."""
    before = set(folder.iterdir())
    status = ml_phaser(["refine", *map(str, words)])
    out, err = capsys.readouterr()
    assert status == 1 and out.strip() in ("", "-- read") and len(err.strip().splitlines()) == 1
    assert err.startswith("ml_phaser refine: ") and "bug" not in err
    assert set(folder.iterdir()) == before
    return err


def test_a_shaken_model_comes_back_and_all_files_say_so(folder, capsys):
    st, mtz, record, log = run(folder, capsys, "solvent", "no")
    truth = gemmi.read_structure(str(folder / "truth.pdb"))
    assert apart(gemmi.read_structure(str(folder / "shaken.pdb")), truth) > 0.25 and apart(st, truth) < 0.05
    first, last = record["cycles"][0], record["cycles"][-1]
    assert [r["cycle"] for r in record["cycles"]] == [0, 1, 2, 3]
    assert first["r_free"] > 0.2 and last["r_free"] < 0.06 and last["r_work"] < last["r_free"] + 0.02
    assert last["bonds"] < 0.02 < first["bonds"] and last["angles"] < 3 < first["angles"]
    assert record["verdict"].startswith(f"R_free fell from {first['r_free']:.4f}") and record["verdict"] in log
    assert record["target"] == "maximum likelihood" and record["test_set"] > 100
    for r in record["cycles"]:
        assert re.search(rf"^ +{r['cycle']} +{r['r_work']:.4f} +{r['r_free']:.4f} +{r['bonds']:.4f}", log, re.MULTILINE)
    # the header
    text = (folder / "out.pdb").read_text()
    assert re.search(rf"^REMARK   3 .*FREE R VALUE +: {last['r_free']:.4f} *$", text, re.MULTILINE)
    assert all(len(line) <= 80 for line in text.splitlines())
    # the reflections
    assert mtz.column_labels() == ["H", "K", "L", *(label for label, _ in COLUMNS)]
    values = {c.label: np.array(c) for c in mtz.columns}
    given = gemmi.read_mtz_file(str(folder / "data.mtz"))
    assert np.array_equal(mtz.make_miller_array(), given.make_miller_array())
    for label in ("F", "SIGF", "FreeR_flag"):
        np.testing.assert_allclose(values[label], np.array(given.column_with_label(label)), rtol=1e-5)
    test = values["FreeR_flag"] == 0
    for part, key in ((~test, "r_work"), (test, "r_free")):
        r = np.abs(values["F"] - values["FC"])[part].sum() / values["F"][part].sum()
        assert r == pytest.approx(last[key], abs=1e-4)
    f = calculated(st, mtz.make_miller_array())
    np.testing.assert_allclose(np.cos(np.deg2rad(values["PHIC"]) - np.angle(f))[np.abs(f) > 5], 1, atol=2e-3)
    assert 0.9 < values["FOM"].mean() <= 1
    best = values["FWT"] * np.exp(1j * np.deg2rad(values["PHWT"]))
    true = calculated(truth, mtz.make_miller_array())
    assert np.vdot(best, true).real / np.linalg.norm(best) / np.linalg.norm(true) > 0.98
    assert np.abs(values["DELFWT"]).mean() < 0.1 * np.abs(values["FWT"]).mean()


def test_the_same_words_give_the_same_model(folder, capsys):
    one, *_ = run(folder, capsys, *QUICK, name="one")
    two, *_ = run(folder, capsys, *QUICK, name="two")
    assert np.array_equal(places(one), places(two))


@pytest.fixture(scope="module")
def plain(folder):
    """A quick run, for comparison."""
    words = ["xyzin", folder / "shaken.pdb", "hklin", folder / "data.mtz", "labin", "F,SIGF", *QUICK]
    words += ["xyzout", folder / "plain.pdb", "hklout", folder / "plain.mtz", "jsonout", folder / "plain.json"]
    assert ml_phaser(["refine", *map(str, words)]) == 0
    return gemmi.read_structure(str(folder / "plain.pdb")), json.loads((folder / "plain.json").read_text())


def test_cycles(folder, capsys, plain):
    none, _, record, _ = run(folder, capsys, "cycles", "0", "resolution", "2.6")
    np.testing.assert_allclose(places(none), places(gemmi.read_structure(str(folder / "shaken.pdb"))), atol=1e-3)
    assert len(record["cycles"]) == 1
    assert record["cycles"][0]["r_work"] > 0.1 > plain[1]["cycles"][1]["r_work"]


def test_weight(folder, capsys, plain):
    _, _, light, _ = run(folder, capsys, *QUICK, "weight", "0.01")
    _, _, heavy, _ = run(folder, capsys, *QUICK, "weight", "100")
    bonds = [r["cycles"][1]["bonds"] for r in (light, plain[1], heavy)]
    assert bonds[0] < bonds[1] < bonds[2]
    _, _, found, log = run(folder, capsys, *QUICK, "weight", "search")
    tried = {float(w): float(r) for w, r in re.findall(r"weight ([\d.]+): R_free ([\d.]+)", log)}
    assert len(tried) == 3 and found["weight"] == min(tried, key=tried.get)
    assert found["cycles"][1]["r_free"] == pytest.approx(min(tried.values()), abs=1e-4)


def test_resolution_and_labin(folder, capsys, plain):
    assert plain[1]["resolution"][1] >= 2.6
    _, mtz, record, _ = run(folder, capsys, "cycles", "0", "resolution", "10,3")
    assert mtz.resolution_high() >= 3 and mtz.resolution_low() <= 10 and record["reflections"] == mtz.nreflections
    _, clean, _, _ = run(folder, capsys, "cycles", "0")
    _, noisy, _, _ = run(folder, capsys, "cycles", "0", labin=("labin", "F2,SIGF2"))
    assert not np.allclose(clean.column_with_label("F"), noisy.column_with_label("F"))


def test_bfactor(folder, capsys, plain):
    start = [cra.atom.b_iso for cra in gemmi.read_structure(str(folder / "shaken.pdb"))[0].all()]
    kept, *_ = run(folder, capsys, *QUICK, "bfactor", "no")
    np.testing.assert_allclose([cra.atom.b_iso for cra in kept[0].all()], start, atol=0.011)
    assert np.std([cra.atom.b_iso for cra in plain[0][0].all()]) > 0.5


def test_solvent(folder, capsys, plain):
    dry, *_ = run(folder, capsys, *QUICK, "solvent", "no")
    assert not np.allclose(places(dry), places(plain[0]))


def test_free_flag_and_seed(folder, capsys, plain):
    _, _, other, log = run(folder, capsys, "cycles", "0", "free", "5")
    assert "flag 5" in log and other["cycles"][0]["r_free"] != plain[1]["cycles"][0]["r_free"]
    sets = []
    for seed in ("1", "2", "1"):
        _, mtz, record, log = run(folder, capsys, "cycles", "0", "seed", seed, data="bare.mtz")
        flags = np.array(mtz.column_with_label("FreeR_flag"))
        assert "set aside" in log and (flags == 0).sum() == record["test_set"]
        sets.append(tuple(np.flatnonzero(flags == 0)))
    assert sets[0] == sets[2] != sets[1]


def test_threads_quiet_and_overwrite(folder, capsys):
    before = torch.get_num_threads()
    try:
        *_, log = run(folder, capsys, "cycles", "0", "threads", "1", "quiet", name="quiet")
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
    assert "cycle" not in log and "R_free" in log
    words = ["xyzin", folder / "shaken.pdb", "hklin", folder / "data.mtz", "hklout", folder / "new.mtz"]
    assert "exists already" in fails(folder, capsys, *words, "xyzout", folder / "quiet.pdb")


def test_mmcif(folder, capsys):
    gemmi.read_structure(str(folder / "shaken.pdb")).make_mmcif_document().write_file(str(folder / "shaken.cif"))
    st, _, record, _ = run(folder, capsys, "cycles", "0", model="shaken.cif", suffix=".cif")
    block = gemmi.cif.read(str(folder / "out.cif")).sole_block()
    assert float(block.find_value("_refine.ls_R_factor_R_free")) == pytest.approx(
        record["cycles"][0]["r_free"], abs=1e-3
    )
    np.testing.assert_allclose(places(st), places(gemmi.read_structure(str(folder / "shaken.pdb"))), atol=2e-3)


def test_hydrogens_and_anisotropy_survive(folder, capsys):
    st = gemmi.read_structure(str(folder / "truth.pdb"))
    ca = st[0][0][2].find_atom("CA", "*")
    ca.aniso = gemmi.SMat33f(0.15, 0.12, 0.10, 0.01, 0, 0)
    h = gemmi.Atom()
    h.name, h.element, h.occ, h.b_iso = "HA", gemmi.Element("H"), 1.0, 12.0
    h.pos = gemmi.Position(*np.add(ca.pos.tolist(), (0.5, 0.6, 0.6)))
    st[0][0][2].add_atom(h)
    st.write_pdb(str(folder / "rich.pdb"))
    out, _, record, log = run(folder, capsys, *QUICK, model="rich.pdb")
    residue = out[0][0][2]
    a, rider = residue.find_atom("CA", "*"), residue.find_atom("HA", "*")
    np.testing.assert_allclose(np.array(rider.pos.tolist()) - a.pos.tolist(), [0.5, 0.6, 0.6], atol=2e-3)
    assert a.aniso.u11 - a.aniso.u33 == pytest.approx(0.05, abs=2e-4)
    assert "Hydrogens: 1," in log and record["atoms"] == out[0].count_atom_sites()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"xyzin": None}, "xyzin is missing"),
        ({"xyzin": "none.pdb"}, "no such file"),
        ({"hklin": "shaken.pdb"}, "not a reflection file"),
        ({"xyzin": "data.mtz"}, "not a kind of model"),
        ({"xyzin": "empty.pdb"}, "no atoms"),
        ({"xyzin": "small.res"}, "only macromolecular"),
        ({"xyzin": "cell.pdb"}, "has the cell"),
        ({"xyzin": "group.pdb"}, "is in P 21 21 21"),
        ({"xyzin": "ncs.pdb"}, "NCS"),
        ({"xyzout": "new.txt"}, "suffix"),
        ({"xyzout": "nowhere/new.pdb"}, "does not exist"),
        ({"hklout": "data.mtz"}, "same file as hklin"),
        ({"weight": "much"}, "neither auto"),
        ({"weight": "-1"}, "neither auto"),
        ({"cycles": "-2"}, "out of range"),
        ({"free": "77"}, "flag 77"),
        ({"labin": "FOO,SIGFOO"}, "no column FOO"),
        ({"resolution": "90"}, "out of range"),
        ({"cicles": "3"}, "unknown option"),
    ],
)
def test_bad_input_is_one_line(folder, capsys, change, says):
    pdb = (folder / "shaken.pdb").read_text()
    (folder / "empty.pdb").write_text("HEADER    NOTHING\n")
    (folder / "small.res").write_text(
        "TITL X\nCELL 0.7 5 6 7 90 90 90\nLATT -1\nSFAC C\nC1 1 0.1 0.2 0.3 11 0.05\nEND\n"
    )
    cryst = next(line for line in pdb.splitlines() if line.startswith("CRYST1"))
    (folder / "cell.pdb").write_text(pdb.replace(cryst, cryst.replace("13.000", "15.000")))
    other = gemmi.read_structure(str(folder / "shaken.pdb"))
    other.spacegroup_hm = "P 21 21 21"
    other.write_pdb(str(folder / "group.pdb"))
    rows = zip(("MTRIX1", "MTRIX2", "MTRIX3"), np.eye(3), strict=True)
    matrix = "".join(f"{n}   2{x:10.6f}{y:10.6f}{z:10.6f}     {7.0:10.5f}\n" for n, (x, y, z) in rows)
    (folder / "ncs.pdb").write_text(pdb.replace(cryst, cryst + "\n" + matrix.rstrip()))
    words = {"xyzin": "shaken.pdb", "hklin": "data.mtz", "xyzout": "new.pdb", "hklout": "new.mtz", "labin": "F,SIGF"}
    files = ("xyzin", "hklin", "xyzout", "hklout")
    given = {k: v for k, v in (words | change).items() if v is not None}
    argv = [w for k, v in given.items() for w in (k, folder / v if k in files else v)]
    assert says in fails(folder, capsys, *argv)


def test_help_names_every_option(capsys):
    assert ml_phaser(["refine", "--help"]) == 0
    out = capsys.readouterr().out
    assert out.strip() == usage().strip() and all(p.name in out for p in PARAMETERS)


@pytest.mark.shared
def test_a_measured_protein_comes_back(shared_data, tmp_path, capsys):
    sets = shared_data / "diffraction" / "1dur"
    truth = gemmi.read_structure(str(sets / "1dur.pdb"))
    shaken(truth).write_pdb(str(tmp_path / "shaken.pdb"))
    st, _, record, _ = run(tmp_path, capsys, "cycles", "2", data=sets / "1dur.mtz", labin=())
    first, last = record["cycles"][0], record["cycles"][-1]
    assert first["r_free"] > 0.28 and last["r_free"] < 0.19 and last["r_work"] < 0.15
    protein = np.array([cra.residue.name not in ("HOH", "SF4") for cra in truth[0].all()])

    def away(a):
        return np.sqrt(((places(a) - places(truth)) ** 2).sum(axis=1)[protein].mean())

    assert away(gemmi.read_structure(str(tmp_path / "shaken.pdb"))) > 0.28 and away(st) < 0.2
    assert last["bonds"] < 0.02 and last["angles"] < 2


def test_the_crystal_is_what_it_says(folder):
    st = gemmi.read_structure(str(folder / "shaken.pdb"))
    assert st.cell.approx(CELL, 1e-2) and st.find_spacegroup().xhm() == GROUP.xhm()
