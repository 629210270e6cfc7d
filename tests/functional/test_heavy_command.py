"""Heavy atoms from command to map: random atoms with some sulphur, and triclinic lysozyme as measured."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import gemmi
import numpy as np
import pytest

from ml_phaser.crystal.agreement import compare

CELL = gemmi.UnitCell(16.0, 17.0, 18.0, 84.0, 97.0, 101.0)
LIGHT, HEAVY, D_MIN = 220, 6, 1.0


def run(*words: object, good: bool = True) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ml_phaser", *map(str, words)]
    done = subprocess.run(
        command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=300, check=False
    )  # fmt: skip
    assert (done.returncode == 0) == good, done.stderr + done.stdout[-2000:]
    return done


@pytest.fixture(scope="module")
def crystal(tmp_path_factory) -> tuple[Path, np.ndarray, np.ndarray]:
    """An MTZ of one molecule of random atoms in P1; indices and true structure factors (gemmi's density and FFT)."""
    rng, orth = np.random.default_rng(7), np.array(CELL.orth.mat)
    placed: list[np.ndarray] = []
    while len(placed) < LIGHT + HEAVY:
        new = rng.random(3)
        gaps = np.array(placed).reshape(-1, 3) - new
        least = 4.0 if len(placed) < HEAVY else 1.4
        if np.linalg.norm((gaps - np.round(gaps)) @ orth.T, axis=1).min(initial=99.0) > least:
            placed.append(new)
    model = gemmi.Model(1)
    chain, residue = gemmi.Chain("A"), gemmi.Residue()
    residue.name = "UNL"
    for i, x in enumerate(placed):
        atom = gemmi.Atom()
        atom.name, atom.element = f"X{i}", gemmi.Element("S" if i < HEAVY else "CNO"[i % 3])
        atom.pos, atom.b_iso, atom.occ = CELL.orthogonalize(gemmi.Fractional(*x)), 5.0, 1.0
        residue.add_atom(atom)
    chain.add_residue(residue)
    model.add_chain(chain)
    calculator = gemmi.DensityCalculatorX()
    calculator.d_min, calculator.rate, calculator.blur = D_MIN * 0.98, 2.5, 0.0
    calculator.grid.set_unit_cell(CELL)
    calculator.grid.spacegroup = gemmi.SpaceGroup("P 1")
    calculator.initialize_grid()
    calculator.put_model_density_on_grid(model)
    hkl = gemmi.make_miller_array(CELL, gemmi.SpaceGroup("P 1"), D_MIN)
    f = gemmi.transform_map_to_f_phi(calculator.grid).get_value_by_hkl(hkl)
    sigma = 0.04 * np.sqrt(np.mean(np.abs(f) ** 2))
    moduli = np.abs(np.abs(f) + sigma * rng.normal(size=len(f)))
    mtz = gemmi.Mtz(with_base=True)
    mtz.spacegroup = gemmi.SpaceGroup("P 1")
    mtz.set_cell_for_all(CELL)
    mtz.add_dataset("x")
    mtz.add_column("F", "F")
    mtz.add_column("SIGF", "Q")
    mtz.set_data(np.column_stack([hkl, moduli, np.full(len(f), sigma)]).astype(np.float32))
    path = tmp_path_factory.mktemp("heavy") / "heavy.mtz"
    mtz.write_to_file(str(path))
    return path, hkl, f


def test_starts_heavy_solves_by_heavy_atoms(crystal, tmp_path) -> None:
    path, hkl, f = crystal
    hklout = tmp_path / "h.mtz"
    done = run("hklin", path, "mapout", tmp_path / "h.map", "starts", "heavy", "timelimit", 60, "threads", 1)
    record = json.loads((tmp_path / "h.json").read_text())
    assert record["verdict"]["word"] == "solved"
    assert all(t["method"].startswith("heavy atoms") for t in record["trials"])
    assert "Begins with heavy atoms" in " ".join(done.stdout.split())
    mtz = gemmi.read_mtz_file(str(hklout))
    phased = mtz.column_with_label("FWT").array * np.exp(1j * np.radians(mtz.column_with_label("PHWT").array))
    there = {tuple(h): v for h, v in zip(mtz.make_miller_array().tolist(), phased, strict=True)}
    found = np.array([there[tuple(h)] for h in hkl.tolist()])
    assert compare(hkl, found, f, CELL, gemmi.SpaceGroup("P 1"), repeats=0).map_cc > 0.85


def test_starts_random_does_without(crystal, tmp_path) -> None:
    done = run(
        "hklin", crystal[0], "mapout", tmp_path / "r.map", "starts", "random", "trials", 1, "timelimit", 5,
        "threads", 1,
    )  # fmt: skip
    record = json.loads((tmp_path / "r.json").read_text())
    assert not any(t["method"].startswith("heavy atoms") for t in record["trials"])
    assert "heavy atoms" not in done.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [(("engine", "learned"), "engine auto"), (("phasein",), "leave it or phasein out")],
)
def test_what_heavy_atoms_cannot_be_begun_with(words: tuple, said: str, crystal, tmp_path) -> None:
    if words[0] == "phasein":
        given = gemmi.read_mtz_file(str(crystal[0]))
        given.add_column("PHI", "P")
        given.add_column("FOM", "W")
        data = np.array(given.array)
        data[:, -2:] = (10.0, 0.5)
        given.set_data(data)
        given.write_to_file(str(tmp_path / "given.mtz"))
        words = ("phasein", tmp_path / "given.mtz")
    done = run("hklin", crystal[0], "mapout", tmp_path / "e.map", "starts", "heavy", *words, good=False)
    assert done.returncode == 1 and len(done.stderr.strip().splitlines()) == 1
    assert "starts heavy" in done.stderr and said in done.stderr
    assert not list(tmp_path.glob("e.*"))


def test_triclinic_lysozyme_is_solved(shared_data, tmp_path) -> None:
    """4LZT, measured, P1, 0.95 A, 1001 atoms and water: amplitudes alone, the plain command."""
    folder = shared_data / "diffraction" / "4lzt"
    run("hklin", folder / "4lzt.mtz", "mapout", tmp_path / "l.map", "threads", 1)
    record = json.loads((tmp_path / "l.json").read_text())
    assert record["verdict"]["word"] == "solved"
    done = run("compare", "hklin", tmp_path / "l.mtz", "xyzin", folder / "4lzt.pdb", "jsonout", tmp_path / "c.json")
    assert json.loads((tmp_path / "c.json").read_text())["agreement"]["map_cc"] > 0.85, done.stdout
    assert "L-amino acids" in str(record["hand"])
