"""Phase seeds from command to file and back, judged by true phases.

SHELXE is a stand-in, named as such: a script that checks arguments, names and columns strictly.
"""

from __future__ import annotations

import json
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import gemmi
import numpy as np
import pytest

from ml_phaser.crystal.agreement import compare, move
from ml_phaser.crystal.reflections import Amplitudes
from ml_phaser.evaluation.reference import model_reference
from ml_phaser.exchange.read import read_amplitudes
from ml_phaser.exchange.read_seeds import read_seeds

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
PEPTIDE = EXAMPLES / "peptide.mtz"
QUICK = ("trials", 2, "timelimit", 30, "threads", 1)
SET = "5awl"  # a peptide, P 21 21 2, 1.11 A

STAND_IN_FOR_SHELXE = r"""
import re, sys
from pathlib import Path
name, rest = sys.argv[1], sys.argv[2:]
assert re.fullmatch(r"[A-Za-z0-9_]{1,75}\.phi", name), name
assert rest and all(re.fullmatch(r"-s0\.\d+|-[ma]\d+|-q", word) for word in rest), rest
stem = Path(name).stem
def rows(end, widths, pattern):
    found = Path(stem + end).read_text().splitlines()
    assert found and all(len(x) == sum(widths) and re.fullmatch(pattern, x) for x in found), end
    return [tuple(int(x[i:i + 4]) for i in (0, 4, 8)) for x in found]
hkl = r"(?: *-?\d+){3}"
phi = rows(".phi", (12, 9, 8, 8, 8), hkl + r" *\d+\.\d\d  [01]\.\d{4} *\d+\.\d *\d+\.\d\d")
data = rows(".hkl", (12, 8, 8), hkl + r" *-?\d+\.\d\d *\d+\.\d\d")
assert data.pop() == (0, 0, 0) and set(phi) <= set(data) and len(set(phi)) == len(phi)
ins = Path(stem + ".ins").read_text().splitlines()
assert ins[0].startswith("TITL") and len(ins[1].split()) == 8 and ins[-2:] == ["HKLF 4", "END"]
print("STAND-IN for SHELXE:", len(phi), "phases of", len(data), "reflections")
"""


def run(*words: object, good: bool = True) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ml_phaser", *map(str, words)]
    done = subprocess.run(
        command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=300, check=False
    )  # fmt: skip
    assert (done.returncode == 0) == good, done.stderr + done.stdout[-2000:]
    return done


def true_of(path: Path, model: Path) -> tuple[Amplitudes, np.ndarray]:
    """The data and the structure factors of their model."""
    data = read_amplitudes(path)
    return data, model_reference(model, data.hkl, data.cell, data.spacegroup, f_obs=data.f).f


def share_right(path: Path, data: Amplitudes, true: np.ndarray, bins: int = 4, moved: bool = False) -> float:
    """Share of the seeds of a file whose part of the circle, or permitted value, has the true phase; ``moved``: at the
    best origin and hand, else as they stand."""
    seeds = read_seeds(path, data)
    phasor = np.exp(1j * seeds.phase)
    if moved:
        unit = np.exp(1j * np.angle(true))
        found = compare(
            data.hkl, np.where(seeds.given, data.f * phasor, 0), data.f * unit, data.cell, data.spacegroup, repeats=0
        )
        phasor = move(data.hkl, phasor, found.origin_shift, found.inverted)
    off = np.abs(np.angle(phasor * np.conj(true)))[seeds.given]
    limit = np.where(data.centric[seeds.given], np.pi / 2, np.pi / bins + 1e-6)
    return float((off <= limit).mean())


def write_phases(path: Path, data: Amplitudes, phase: np.ndarray, fom: float) -> Path:
    mtz = gemmi.Mtz(with_base=True)
    mtz.spacegroup = data.spacegroup
    mtz.add_dataset("true")
    mtz.set_cell_for_all(data.cell)
    mtz.add_column("PHI", "P")
    mtz.add_column("FOM", "W")
    mtz.set_data(np.column_stack([data.hkl, np.rad2deg(phase), np.full(len(data), fom)]).astype(np.float32))
    mtz.write_to_file(str(path))
    return path


@pytest.fixture(scope="module")
def peptide() -> tuple[Amplitudes, np.ndarray]:
    return true_of(PEPTIDE, EXAMPLES / "peptide.pdb")


@pytest.fixture(scope="module")
def solved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The example phased, with seeds for SHELXE; its folder and log."""
    folder = tmp_path_factory.mktemp("solved")
    words = ("seedout", folder / "x.phi", "xmlout", folder / "x.xml", "reportout", folder / "x.html")
    return folder, run("hklin", PEPTIDE, "mapout", folder / "o.map", *words, *QUICK).stdout


def test_seeds_of_a_solved_crystal_are_as_right_as_they_say(solved, peptide) -> None:
    folder, log = solved
    facts = json.loads((folder / "o.json").read_text())["seeds"]
    right = share_right(folder / "x_seeds.phi", *peptide, moved=True)
    assert facts["n"] == round(0.1 * len(peptide[0])) and right > 0.9
    assert facts["mean_probability"] - 0.05 < right  # they may be better than they say
    assert facts["expected_right"] == pytest.approx(facts["n"] * facts["mean_probability"])
    assert (
        f"mean probability {facts['mean_probability']:.2f}, about {facts['expected_right']:.0f} expected right" in log
    )


def test_log_record_xml_and_report_tell_of_them(solved) -> None:
    folder, log = solved
    facts = json.loads((folder / "o.json").read_text())["seeds"]
    assert f"phase seeds   {folder / 'x.phi'}" in log and facts["origin"].startswith("that of the phases in hklout")
    assert ET.parse(folder / "x.xml").getroot().findtext("seeds/n") == str(facts["n"])
    page = (folder / "x.html").read_text()
    assert '<h2 id="seeds">' in page and f"{facts['n']}, in 4 bins" in page and "given-seeds" not in page


def test_a_stand_in_for_shelxe_takes_both_sets(solved) -> None:
    folder, _ = solved
    script = folder / "shelxe.py"
    script.write_text(STAND_IN_FOR_SHELXE)
    count = json.loads((folder / "o.json").read_text())
    for name, phases in (("x.phi", count["n_reflections"]), ("x_seeds.phi", count["seeds"]["n"])):
        done = subprocess.run(
            [sys.executable, script, name, "-s0.50", "-m20", "-a5", "-q"], cwd=folder, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert f"STAND-IN for SHELXE: {phases} phases" in done.stdout
    done = subprocess.run([sys.executable, script, "o.mtz", "-m20"], cwd=folder, capture_output=True, check=False)
    assert done.returncode != 0  # it can refuse


def test_seeds_lead_back_to_the_solution_where_it_stands(solved, peptide, tmp_path: Path) -> None:
    """At another origin of the group: the result is where the seeds are."""
    folder, _ = solved
    data, _ = peptide
    seeds = read_seeds(folder / "x_seeds.phi", data)
    shift = np.array([0.5, 0.37, 0.5])  # P 21: free along y
    phase = np.rad2deg(seeds.phase + 2 * np.pi * data.hkl @ shift)
    lines = [
        ",".join(map(str, (*h, p))) for h, p in zip(data.hkl[seeds.given].tolist(), phase[seeds.given], strict=True)
    ]
    (tmp_path / "in.csv").write_text("\n".join(["h,k,l,phi", *lines, ""]))
    words = ("seedin", tmp_path / "in.csv", "reportout", tmp_path / "o.html")
    log = run("hklin", PEPTIDE, "mapout", tmp_path / "o.map", *words, *QUICK).stdout
    mtz = gemmi.read_mtz_file(str(tmp_path / "o.mtz"))
    found = dict(zip(map(tuple, mtz.make_miller_array().tolist()), mtz.column_with_label("PHIB").array, strict=True))
    ours = np.array([found[tuple(h)] for h in data.hkl[seeds.given].tolist()])
    assert np.cos(np.deg2rad(ours - phase[seeds.given])).mean() > 0.9
    record = json.loads((tmp_path / "o.json").read_text())
    assert record["given_seeds"]["n"] == seeds.given.sum() and record["given_seeds"]["moved"] < 25
    assert "Origin and hand: those of the seeds" in log and "released half-way" in log
    assert '<h2 id="given-seeds">' in (tmp_path / "o.html").read_text()


def test_true_phases_make_true_seeds(peptide, tmp_path: Path) -> None:
    (data, true), bins = peptide, 8
    given = write_phases(tmp_path / "true.mtz", data, np.angle(true), 0.95)
    words = ("phasein", given, "engine", "classical", "seedout", tmp_path / "s.mtz", "seedbins", bins, *QUICK)
    run("hklin", PEPTIDE, "mapout", tmp_path / "o.map", *words)
    facts = json.loads((tmp_path / "o.json").read_text())["seeds"]
    assert share_right(tmp_path / "s.mtz", data, true, bins) > max(0.9, facts["mean_probability"] - 0.03)


@pytest.mark.shared
def test_true_phases_of_a_measured_crystal_make_true_seeds(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "diffraction" / SET
    path = next(p for p in (folder / f"{SET}.mtz", *folder.glob("*.mtz")) if p.exists())
    data, true = true_of(path, next(folder.glob("*.pdb")))
    given = write_phases(tmp_path / "true.mtz", data, np.angle(true), 0.9)
    words = ("phasein", given, "engine", "classical", "trials", 1, "threads", 1)
    run("hklin", path, "mapout", tmp_path / "o.map", "seedout", tmp_path / "s.csv", "seedfraction", 0.2, *words)
    facts = json.loads((tmp_path / "o.json").read_text())["seeds"]
    right = share_right(tmp_path / "s.csv", data, true)
    assert right > 0.95 and facts["mean_probability"] > 0.8


def test_seeds_of_an_unsolved_crystal_promise_little(tmp_path: Path) -> None:
    words = ("resolution", 3, "engine", "classical", "trials", 1, "timelimit", 1, "threads", 1)
    log = run("hklin", PEPTIDE, "mapout", tmp_path / "o.map", "seedout", tmp_path / "s.csv", *words).stdout
    record = json.loads((tmp_path / "o.json").read_text())
    assert record["verdict"]["word"] == "not solved" and record["seeds"]["n"] > 10
    assert record["seeds"]["mean_probability"] < 0.6 and "expected right" in log


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (("seedout", "s.csv", "seedcount", 9, "seedfraction", 0.1), ("seedcount", "leave one of them out")),
        (("seedcount", 9), ("seedcount", "seedout seeds.mtz")),
        (("seedbins", 6), ("seedbins", "seedout seeds.mtz")),
        (("seedhold", 9), ("seedhold", "seedin seeds.csv")),
        (("seedin", "data.csv", "phasein", PEPTIDE), ("seedin", "phasein", "leave it or")),
        (("seedin", "data.csv", "starts", "fragments"), ("seedin", "starts fragments")),
        (("seedin", "dota.csv"), ("no such file", "seedin data.csv")),
        (("seedin", "data.csv"), ("none of its reflections",)),
        (("seedin", "empty.csv"), ("empty",)),
        (("seedout", "s.txt"), ("seedout s.txt", "seedformat csv")),
        (("seedout", "s.txt", "seedformat", "shelxe"), ("seedout s.phi",)),
        (("seedout", "o.mtz"), ("same file as",)),
        (("seedout", "there.phi"), ("there_seeds.hkl", "exists already", "overwrite")),
        (("seedout", "s.phi", "shelxout", "s.phi"), ("same file as shelxout",)),
    ],
)
def test_one_line_for_what_cannot_be(tmp_path: Path, monkeypatch, words, parts) -> None:
    monkeypatch.chdir(tmp_path)
    Path("data.csv").write_text("h,k,l,phi\n90,80,70,10\n")
    Path("empty.csv").write_text("")
    Path("there_seeds.hkl").write_text("mine\n")
    before = sorted(p.name for p in tmp_path.iterdir())
    done = run("hklin", PEPTIDE, "mapout", "o.map", *words, *QUICK, good=False)
    assert len(done.stderr.splitlines()) == 1 and "Traceback" not in done.stdout + done.stderr, done.stderr
    assert all(part in done.stderr for part in parts), done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == before and Path("there_seeds.hkl").read_text() == "mine\n"
