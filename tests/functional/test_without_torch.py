"""The main job in Pythons where torch, or ONNX Runtime too, cannot be imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import gemmi
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
PEPTIDE = ROOT / "examples" / "peptide.mtz"

BLOCKED = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in blocked:
            raise ModuleNotFoundError(f"{name} is not here", name=name)
blocked = set(filter(None, sys.argv.pop(1).split(",")))
sys.meta_path.insert(0, Blocker())
from ml_phaser.cli import main
code = main()
if "torch" in sys.modules:
    sys.exit("torch was imported")
sys.exit(code)
"""


def run(folder: Path, blocked: str, *words: object) -> subprocess.CompletedProcess[str]:
    """``ml_phaser`` in ``folder``, where the libraries ``blocked`` cannot be imported and torch is not."""
    return subprocess.run(
        [sys.executable, "-c", BLOCKED, blocked, *map(str, words)], cwd=folder, capture_output=True, text=True,
        stdin=subprocess.DEVNULL, timeout=600, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def solved(folder: Path, stem: str, log: str) -> dict:
    """The record of a run that must have solved the example, by the model it was simulated from."""
    from ml_phaser.cli import main

    record = json.loads((folder / f"{stem}.json").read_text())
    assert record["verdict"]["word"] == "solved" and "Verdict: SOLVED" in log
    found = folder / f"{stem}.agreement.json"
    truth = ROOT / "examples" / "peptide.pdb"
    words = ["compare", "hklin", folder / f"{stem}.mtz", "xyzin", truth, "jsonout", found]
    assert main([str(w) for w in words]) == 0
    assert json.loads(found.read_text())["agreement"]["map_cc"] > 0.8
    return record


def test_the_example_is_solved_and_everything_written_without_torch(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    outputs = {
        "mapout": "a.map", "pattout": "p.map", "xmlout": "a.xml", "reportout": "a.html", "shelxout": "a.phi",
    }  # fmt: skip
    words = [w for pair in outputs.items() for w in pair]
    done = run(tmp_path, "torch", "hklin", PEPTIDE, "threads", 1, *words)
    assert done.returncode == 0, done.stderr
    for name in (*outputs.values(), "a.mtz", "a.json", "a.hkl", "a.ins"):
        assert (tmp_path / name).stat().st_size > 100, name
    record = solved(tmp_path, "a", done.stdout)
    assert record["weights"]["runtime"] == "onnx" and record["device"] == "cpu"
    assert record["hand_judged"]["probability"] > 0.9
    assert "PyTorch is not installed: this is engine onnx" in " ".join(done.stdout.split())
    grid = np.array(gemmi.read_ccp4_map(str(tmp_path / "a.map")).grid)
    assert np.isfinite(grid).all() and grid.std() > 0

    # and once more from its own phases, which are kept
    again = run(
        tmp_path, "torch", "hklin", PEPTIDE, "phasein", "a.mtz", "mapout", "b.map", "trials", 2, "engine", "onnx"
    )
    assert again.returncode == 0, again.stderr
    assert json.loads((tmp_path / "b.json").read_text())["given_phases"]["map_cc"] > 0.9


def test_the_example_is_solved_with_neither(tmp_path: Path) -> None:
    done = run(tmp_path, "torch,onnxruntime", "hklin", PEPTIDE, "mapout", "a.map", "threads", 1)
    assert done.returncode == 0, done.stderr
    record = solved(tmp_path, "a", done.stdout)
    assert record["weights"] == {} and record["hand_judged"]["log_odds"] is None
    assert "Neither PyTorch nor ONNX Runtime is installed" in " ".join(done.stdout.split())


@pytest.mark.parametrize(
    ("blocked", "words", "said"),
    [
        ("torch", ("engine", "learned"), "engine learned: PyTorch is not installed. Try: engine onnx"),
        ("torch", ("device", "cuda"), "device cuda: PyTorch is not installed"),
        ("torch,onnxruntime", ("engine", "onnx"), "engine onnx: ONNX Runtime is not installed. Try: pip install"),
        (
            "",
            ("engine", "onnx", "starts", "fragments"),
            "no pieces can be placed: that needs PyTorch",
        ),
    ],
)
def test_what_cannot_be_had_is_one_clear_line(tmp_path: Path, blocked: str, words: tuple[str, ...], said: str) -> None:
    pytest.importorskip("onnxruntime")
    done = run(tmp_path, blocked, "hklin", PEPTIDE, "mapout", "a.map", *words)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1 and said in done.stderr, done.stderr
    assert not list(tmp_path.iterdir())


def test_other_commands_say_what_they_need(tmp_path: Path) -> None:
    truth = ROOT / "examples" / "peptide.pdb"
    done = run(tmp_path, "torch", "compare", "hklin", PEPTIDE, "xyzin", truth)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1, done.stderr
    done = run(tmp_path, "torch", "refine", "hklin", PEPTIDE, "xyzin", truth, "xyzout", "a.pdb", "hklout", "a.mtz")
    assert done.returncode == 1 and done.stderr.endswith(
        "this needs PyTorch, which is not installed. Try: pip install torch\n"
    )


def write_atoms(path: Path) -> None:
    """Amplitudes to 1.6 A of atoms enough for a network to look at, in P 21."""
    group, cell = gemmi.SpaceGroup("P 1 21 1"), gemmi.UnitCell(9.0, 9.4, 11.0, 90, 98, 90)
    rng = np.random.default_rng(8)
    x = rng.random((22, 3))
    hkl = gemmi.make_miller_array(cell, group, 1.6)
    hkl = hkl[~np.asarray(group.operations().systematic_absences(hkl), dtype=bool)]
    mates = [np.array([op.apply_to_xyz(list(v)) for v in x]) for op in group.operations()]
    f = 7 * np.abs(sum(np.exp(2j * np.pi * hkl @ m.T).sum(axis=1) for m in mates))
    f *= np.exp(-2 * np.asarray(cell.calculate_1_d2_array(hkl)))
    mtz = gemmi.Mtz(with_base=True)
    mtz.spacegroup = group
    mtz.add_dataset("x")
    mtz.set_cell_for_all(cell)
    mtz.add_column("F", "F")
    mtz.add_column("SIGF", "Q")
    mtz.set_data(np.column_stack([hkl, f, 0.02 * f + 0.1]).astype(np.float32))
    mtz.write_to_file(str(path))


def test_the_learned_projection_searches_and_pieces_are_left_out(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    write_atoms(tmp_path / "atoms.mtz")
    words = ("hklin", "atoms.mtz", "trials", 26, "timelimit", 60, "threads", 1)  # shrink-wrap takes 24
    done = run(tmp_path, "", *words, "mapout", "a.map", "engine", "onnx")
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "a.json").read_text())
    tried = [t for t in record["trials"] if t["method"] == "learned projection"]
    assert tried and all(np.isfinite(t["score"]) and abs(t["score"]) <= 1 for t in tried)
    assert "Pieces of strand and helix are not placed: that needs PyTorch." in " ".join(done.stdout.split())
