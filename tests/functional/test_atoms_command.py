"""The main job on a small crystal of resolved atoms: the atoms it finds, in the files it writes."""

import io
import json

import gemmi
import numpy as np
import pytest
from resolved import Made

from ml_phaser.cli import main
from ml_phaser.crystal.agreement import compare
from ml_phaser.exchange.fragments import element_of


def phased(path, hkl):
    """Structure factors of the written phases, on the indices asked for."""
    mtz = gemmi.read_mtz_file(str(path))
    index = {tuple(h): k for k, h in enumerate(mtz.make_miller_array().tolist())}
    rows = [index[tuple(h)] for h in hkl.tolist()]
    f, phi = (np.array(mtz.column_with_label(name))[rows] for name in ("F", "PHIB"))
    return f * np.exp(1j * np.radians(phi))


def of_model(structure, hkl):
    """Structure factors of a model by gemmi's direct summation."""
    structure.setup_cell_images()
    calculator = gemmi.StructureFactorCalculatorX(structure.cell)
    return np.array([calculator.calculate_sf_from_model(structure[0], [int(i) for i in h]) for h in hkl])


@pytest.fixture(scope="module", params=["P 1 21 1", "P -1"])
def run(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("atoms")
    made = Made(request.param, d_min=0.95, count=12, extra=("S",), seed=7, edges=(6.0, 7.0, 8.0))
    mtz = gemmi.Mtz(with_base=True)
    mtz.cell, mtz.spacegroup = made.cell, made.spacegroup
    mtz.add_dataset("data")
    mtz.add_column("F", "F")
    mtz.add_column("SIGF", "Q")
    f = np.abs(made.amplitude)
    mtz.set_data(np.column_stack([made.hkl, f, 0.03 * f + 0.01]).astype(np.float32))
    mtz.write_to_file(str(folder / "data.mtz"))
    words = ["hklin", "data.mtz", "mapout", "out.map", "xyzout", "out.pdb", "timelimit", "30", "seed", "1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("sys.stdin", io.StringIO(""))
        assert main(words) == 0
    return folder, made


def test_the_model_written_explains_the_data(run):
    folder, made = run
    structure = gemmi.read_structure(str(folder / "out.pdb"))
    assert len(list(structure[0].all())) == 12
    calculated = np.abs(of_model(structure, made.hkl))
    assert np.corrcoef(calculated, np.abs(made.f))[0, 1] > 0.97
    elements = [cra.atom.element.name for cra in structure[0].all()]
    assert elements[0] not in ("C", "N", "O")  # sulphur, or what is about as heavy
    assert set(elements[1:]) <= {"C", "N", "O"}


def test_atoms_have_the_origin_and_the_hand_of_the_phases(run):
    folder, made = run
    here, there = (
        phased(folder / "out.mtz", made.hkl),
        of_model(gemmi.read_structure(str(folder / "out.pdb")), made.hkl),
    )
    assert np.abs(np.sum(here * np.conj(there))) > 0.98 * np.linalg.norm(here) * np.linalg.norm(there)
    assert np.sum(here * np.conj(there)).real > 0.98 * np.linalg.norm(here) * np.linalg.norm(there)
    assert compare(made.hkl, here, made.f, made.cell, made.spacegroup).map_cc > 0.99


def test_log_and_record_tell_of_them(run):
    folder, _ = run
    record = json.loads((folder / "out.json").read_text())
    assert len(record["atoms"]) == 12
    weights = [atom["weight"] for atom in record["atoms"]]
    assert weights == sorted(weights, reverse=True) and weights[0] > 1.5 * weights[1]
    assert all(0 <= atom[axis] < 1 for atom in record["atoms"] for axis in "xyz")
    assert record["verdict"]["word"] == "solved"


@pytest.mark.parametrize(
    ("carbons", "symbol"), [(0.7, "C"), (1.0, "C"), (1.16, "N"), (1.35, "O"), (2.67, "S"), (2.83, "Cl"), (13.0, "Pt")]
)
def test_elements_are_guessed_by_weight(carbons, symbol):
    assert element_of(carbons).name == symbol
