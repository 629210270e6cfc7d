"""``ml_phaser simulate``: its files, each of its options, its errors, and the shipped example."""

import datetime
import json
import re
import shlex
import sys
from pathlib import Path

import gemmi
import numpy as np
import pytest

from ml_phaser import __version__
from ml_phaser.cli import main as ml_phaser
from ml_phaser.cli.simulate import main
from ml_phaser.exchange.read import read_amplitudes
from ml_phaser.simulate.fragments import save_library

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "unit"))
from made_library import peptide_library

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SMALL = "sequence GA spacegroup P21 resolution 1.1"


def run(folder, words, *names):
    """Outputs of a run that must succeed, by name."""
    suffix = {"hklout": "mtz", "xyzout": "pdb", "mapout": "map", "jsonout": "json"}
    files = {name: folder / f"out.{suffix[name]}" for name in names}
    argv = [*shlex.split(words), "overwrite", *(w for name, path in files.items() for w in (name, str(path)))]
    assert main(argv) == 0
    return files


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("simulate")
    return run(folder, f"{SMALL} seed 3", "hklout", "xyzout", "mapout", "jsonout")


def test_every_file_says_that_it_is_simulated(outputs):
    mtz = gemmi.read_mtz_file(str(outputs["hklout"]))
    said = "\n".join(mtz.history)
    assert mtz.title.startswith(f"SIMULATED by ml_phaser {__version__}")
    assert "SIMULATED" in said and "seed 3" in said and __version__ in said
    assert [d.dataset_name for d in mtz.datasets][-1] == "SIMULATED"
    pdb = outputs["xyzout"].read_text()
    assert re.search(r"^REMARK.*SIMULATED.*seed 3", pdb, re.MULTILINE)
    assert json.loads(outputs["jsonout"].read_text())["simulated"] is True


def test_nothing_in_the_files_is_dated(outputs):
    today = datetime.date.today()
    mtz, header = gemmi.read_mtz_file(str(outputs["hklout"])), outputs["mapout"].read_bytes()[224:1024]
    pdb = [line for line in outputs["xyzout"].read_text().splitlines() if not line.startswith(("ATOM", "ANISOU"))]
    texts = ["\n".join([mtz.title, *mtz.history]), header.decode("latin1"), "\n".join(pdb)]
    for text in [*texts, outputs["jsonout"].read_text()]:
        assert text.strip("\0 ")
        for style in ("%Y", "%d/%m", "%d-%b"):
            assert today.strftime(style).upper() not in text.upper()


def test_the_data_are_read_like_measured_ones(outputs):
    data = read_amplitudes(outputs["hklout"])
    assert data.source.kind == "intensity" and data.source.columns == ("I", "SIGI")
    assert data.d_min == pytest.approx(1.1, abs=0.02)
    assert data.spacegroup.xhm() == "P 1 21 1"
    assert (data.sigma_i > 0).all()
    assert set(np.unique(data.free)) <= set(range(20)) and (data.free == 0).any()
    mtz = gemmi.read_mtz_file(str(outputs["hklout"]))
    assert [c.type for c in mtz.columns] == ["H", "H", "H", "J", "Q", "I"]


def test_model_map_and_intensities_are_of_one_crystal(outputs):
    structure = gemmi.read_structure(str(outputs["xyzout"]))
    assert [r.name for r in structure[0]["A"]] == ["GLY", "ALA"]
    mtz = gemmi.read_mtz_file(str(outputs["hklout"]))
    hkl = mtz.make_miller_array()
    calculator = gemmi.StructureFactorCalculatorX(structure.cell)
    f = np.array([calculator.calculate_sf_from_model(structure[0], h.tolist()) for h in hkl])
    intensity = np.array(mtz.column_with_label("I"))
    assert np.corrcoef(np.abs(f) ** 2, intensity)[0, 1] > 0.99
    ccp4 = gemmi.read_ccp4_map(str(outputs["mapout"]), setup=True)
    heights = [ccp4.grid.interpolate_value(c.atom.pos) for c in structure[0].all()]
    rho = np.asarray(ccp4.grid)
    assert min(heights) > 3 * rho.std()
    assert rho.mean() == pytest.approx(0, abs=1e-5)
    whole = gemmi.transform_map_to_f_phi(ccp4.grid)  # the map, in electrons, is that of these structure factors
    back = np.array([whole.get_value(*h) for h in hkl])
    np.testing.assert_allclose(back, f, atol=2e-4 * np.abs(f).max())


def test_the_record_tells_what_was_made(outputs):
    record = json.loads(outputs["jsonout"].read_text())
    mtz = gemmi.read_mtz_file(str(outputs["hklout"]))
    assert record["reflections"] == mtz.nreflections
    assert record["cell"] == pytest.approx(mtz.cell.parameters, abs=1e-3)
    assert record["request"]["sequence"] == "GA" and record["request"]["seed"] == 3
    assert record["shortest_contact"] >= 2.75
    assert sum(s["n"] for s in record["shells"]) == mtz.nreflections


def test_same_seed_same_bytes(outputs, tmp_path):
    again = run(tmp_path, f"{SMALL} seed 3", *outputs)
    for name, path in outputs.items():
        assert path.read_bytes() == again[name].read_bytes(), name


OPTIONS = {
    "seed 4": lambda a, b: a["cell"] != b["cell"],
    "noise 0.2": lambda a, b: b["mean_sigma_over_mean_i"] > 3 * a["mean_sigma_over_mean_i"],
    "completeness 0.7": lambda a, b: b["completeness"] == pytest.approx(0.7, abs=0.01) and a["completeness"] > 0.95,
    "b 20": lambda a, b: b["shells"][-1]["i_over_sigma"] < 0.7 * a["shells"][-1]["i_over_sigma"],
    "resolution 0.9": lambda a, b: b["possible"] > 1.5 * a["possible"],
    "spacegroup P1": lambda a, b: b["request"]["spacegroup"] == "P 1",
    "sequence GS": lambda a, b: b["atoms"] == a["atoms"] + 1,
}


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_changes_the_outcome(outputs, option, tmp_path):
    name = option.split()[0]
    words = re.sub(rf"\b{name} \S+", option, SMALL + " seed 3")
    words = words if option in words else f"{words} {option}"
    changed = run(tmp_path, words, "jsonout")["jsonout"]
    assert OPTIONS[option](json.loads(outputs["jsonout"].read_text()), json.loads(changed.read_text()))


def test_spellings(tmp_path, capsys):
    out = tmp_path / "x"
    assert main([*shlex.split(f"--SEQUENCE=ga SPACEGROUP P 1 21 1 --resolution 1.3 HKLOUT {out}")]) == 0
    assert gemmi.read_mtz_file(f"{out}.mtz").spacegroup.xhm() == "P 1 21 1"
    assert "SIMULATED" in capsys.readouterr().out
    assert ml_phaser(["simulate", "--help"]) == 0
    help_text = capsys.readouterr().out
    for name in ("hklout", "xyzout", "mapout", "jsonout", "sequence", "spacegroup", "noise", "overwrite"):
        assert name in help_text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("sequence AXA hklout {0}/a.mtz", "X: not a residue"),
        ("hklout {0}/a.mtz", "sequence is missing"),
        ("sequence AA", "no output file"),
        ("sequence AA hklout {0}/no/a.mtz", "does not exist"),
        ("sequence AA hklout {0}", "is a folder"),
        ("sequence AA hklout {0}/there.mtz", "exists already"),
        ("sequence AA hklout {0}/a xyzout {0}/a.mtz", "same file"),
        ("sequence AA hklout {0}/a.mtz resolution 9", "out of range"),
        ("sequence AA hklout {0}/a.mtz noise -1", "out of range"),
        ("sequence AA hklout {0}/a.mtz completeness 97", "out of range"),
        ("sequence AA hklout {0}/a.mtz seed one", "not a whole number"),
        ("sequence AA hklout {0}/a.mtz spacegroup P7", "not a known space group"),
        ("sequence AA hklout {0}/a.mtz spacegroup Fm-3m", "too many"),
        ("sequence AA hklout {0}/a.mtz resolution 3.9", "too few"),
        ("sequence AA hklout {0}/a.mtz sequence AA", "given twice"),
        ("sequence AA hklout", "no value"),
        ("sequnce AA hklout {0}/a.mtz", 'unknown option "sequnce". Try: sequence'),
    ],
)
def test_errors_take_one_line_and_leave_nothing(words, said, tmp_path, capsys):
    (tmp_path / "there.mtz").write_text("precious")
    assert main(shlex.split(words.format(tmp_path))) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1 and captured.err.startswith("ml_phaser simulate: ")
    assert said in captured.err
    assert [p.name for p in tmp_path.iterdir()] == ["there.mtz"]
    assert (tmp_path / "there.mtz").read_text() == "precious"


def test_all_files_or_none(tmp_path, monkeypatch, capsys):
    def fails(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ml_phaser.simulate.data_set.json.dumps", fails)
    out = [w for n, s in (("hklout", "mtz"), ("xyzout", "pdb"), ("jsonout", "json")) for w in (n, f"{tmp_path}/a.{s}")]
    assert main([*SMALL.split(), *out]) == 1
    assert "no space left" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------------------ families


@pytest.fixture(scope="module")
def coordinates(tmp_path_factory):
    """A compact file of made-up chains, as ``train pack`` writes them."""
    path = tmp_path_factory.mktemp("coordinates") / "made.npz"
    save_library(peptide_library(), path, "holdout")
    return path


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("family dialanine-1b", {"cell": [10, 10, 10, 90, 90, 90], "atoms": 10, "mean_b": 20.0, "completeness": 1.0}),
        ("family residues-15 fragment 2XYZ_1_4 noise 0.1", {"source": ["2xyz_B_4"], "map_grid": [90, 60, 48]}),
        ("family peptide spacegroup P 21 atoms 50 resolution 1.5 completeness 1", {"molecules": 1}),
        ("family protein spacegroup C2 residues 30 resolution 3 solvent 0.6 k_sol 0.4 b_sol 50", {"waters": 0}),
    ],
)
def test_every_family_can_be_written(coordinates, words, expected, tmp_path, capsys):
    made = run(tmp_path, f"{words} data {coordinates} seed 2", "hklout", "xyzout", "mapout", "jsonout")
    assert "SIMULATED" in capsys.readouterr().out
    record = json.loads(made["jsonout"].read_text())
    for name, value in expected.items():
        assert record[name] == value, name
    family = words.split()[1]
    assert record["request"]["family"] == family and record["simulated"] is True
    data = read_amplitudes(made["hklout"])
    assert len(data) == record["reflections"]
    structure = gemmi.read_structure(str(made["xyzout"]))
    assert structure[0].count_atom_sites() == record["atoms"] + record["waters"]
    text = made["xyzout"].read_text()
    assert family in text and record["source"][0] in text
    ccp4 = gemmi.read_ccp4_map(str(made["mapout"]), setup=True)
    rho = np.asarray(ccp4.grid)
    assert list(rho.shape) == record["map_grid"] and rho.mean() == pytest.approx(0, abs=1e-4)
    heights = [ccp4.grid.interpolate_value(c.atom.pos) for c in structure[0].all()]
    assert np.mean(heights) > rho.std()
    if family == "protein":
        solvent = record["solvent"]
        assert (solvent["k_sol"], solvent["b_sol"]) == (0.4, 50) and solvent["fraction"] > 0.55
        assert "Bulk solvent" in text.replace("BULK SOLVENT", "Bulk solvent")
        assert record["request"]["spacegroup"] == "C 1 2 1"
    again = run(tmp_path, f"{words} data {coordinates} seed 2", *made)
    assert json.loads(again["jsonout"].read_text()) == record


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("family dialanine-1b hklout {0}/a.mtz", "data: this family is made of protein coordinates"),
        ("family dialanine-1b data {1} hklout {0}/a.mtz solvent 0.5", "solvent: means nothing in family dialanine-1b"),
        ("family dialanine-1b data {1} hklout {0}/a.mtz spacegroup P21", "means nothing"),
        ("family protein data {1} hklout {0}/a.mtz sequence AAA", "means nothing"),
        ("sequence AAA hklout {0}/a.mtz atoms 100", "atoms: means nothing in family ideal"),
        ("family residues-15 data {1} hklout {0}/a.mtz fragment nonsense", "not entry_entity_first"),
        ("family proteins data {1} hklout {0}/a.mtz", '"proteins" is not one of'),
        ("family box data {0}/none.npz hklout {0}/a.mtz", "no such file"),
        ("family box split train data {1} hklout {0}/a.mtz", "holds the holdout split, not train"),
    ],
)
def test_options_without_a_meaning_are_refused_in_one_line(coordinates, words, said, tmp_path, capsys):
    assert main(shlex.split(words.format(tmp_path, coordinates))) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    assert said in captured.err
    assert not list(tmp_path.iterdir())


# --------------------------------------------------------------------------------------------- the example


def example_command():
    """The command in the examples' README that made the files."""
    match = re.search(r"^ +ml_phaser (simulate (?:.*\\\n)*.*)$", (EXAMPLES / "README.md").read_text(), re.MULTILINE)
    assert match
    return shlex.split(match[1].replace("\\\n", " "))


@pytest.mark.slow
def test_the_shipped_example_is_what_its_command_makes(tmp_path, monkeypatch):
    words = example_command()
    for name, file in (("hklout", "peptide.mtz"), ("xyzout", "peptide.pdb")):
        assert words[words.index(name) + 1] == f"examples/{file}"
    (tmp_path / "examples").mkdir()
    monkeypatch.chdir(tmp_path)
    assert ml_phaser(words) == 0
    assert Path("examples/peptide.pdb").read_text() == (EXAMPLES / "peptide.pdb").read_text()
    made, shipped = (gemmi.read_mtz_file(str(f)) for f in (Path("examples/peptide.mtz"), EXAMPLES / "peptide.mtz"))
    assert made.title == shipped.title and made.column_labels() == shipped.column_labels()
    np.testing.assert_allclose(made.array, shipped.array, rtol=1e-5)


def test_the_shipped_example_is_small_and_says_what_it_is():
    files = [f for f in EXAMPLES.rglob("*") if f.is_file()]
    assert sum(f.stat().st_size for f in files) < 1.5e6
    assert gemmi.read_mtz_file(str(EXAMPLES / "peptide.mtz")).title.startswith("SIMULATED")
    assert "SIMULATED" in (EXAMPLES / "peptide.pdb").read_text()[:400]
