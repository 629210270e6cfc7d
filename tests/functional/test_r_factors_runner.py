"""The benchmark of R factors: rows, resuming, sets without a model; mmtbx beside us where it is installed."""

import importlib.util
import json
import sys
from pathlib import Path

import gemmi
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
CELL, GROUP = gemmi.UnitCell(18, 20, 22, 90, 90, 90), gemmi.SpaceGroup("P 21 21 21")


@pytest.fixture(scope="module")
def runner():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        spec = importlib.util.spec_from_file_location("r_factors", ROOT / "benchmarks" / "r_factors.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))
    return module


def write_set(folder):
    """A little crystal whose amplitudes are the model's own, solvent and a scale of 3 included, and 5 % noise."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    st = gemmi.Structure()
    st.cell, st.spacegroup_hm = CELL, GROUP.xhm()
    residue = gemmi.Residue()
    residue.name, residue.seqid = "LIG", gemmi.SeqId("1")
    for i, place in enumerate(rng.uniform(1, 7, (30, 3))):
        atom = gemmi.Atom()
        atom.name, atom.element, atom.b_iso = f"C{i}", gemmi.Element("CNO"[i % 3]), 15
        atom.pos = gemmi.Position(*place)
        residue.add_atom(atom)
    chain, model = gemmi.Chain("A"), gemmi.Model(1)
    chain.add_residue(residue)
    model.add_chain(chain)
    st.add_model(model)
    st.setup_cell_images()
    st.write_pdb(str(folder / "m.pdb"))
    hkl = gemmi.make_miller_array(CELL, GROUP, 2.0)
    calculator = gemmi.StructureFactorCalculatorX(st.cell)
    f = np.array([calculator.calculate_sf_from_model(st[0], [int(x) for x in h]) for h in hkl])
    grid = gemmi.FloatGrid()
    grid.setup_from(st, spacing=0.3)
    gemmi.SolventMasker(gemmi.AtomicRadiiSet.Cctbx).put_mask_on_float_grid(grid, st[0])
    s2 = CELL.calculate_1_d2_array(hkl)
    f += 0.4 * np.exp(-50 * s2 / 4) * gemmi.transform_map_to_f_phi(grid).get_value_by_hkl(hkl)
    mtz = gemmi.Mtz(with_base=True)
    mtz.cell, mtz.spacegroup = CELL, GROUP
    mtz.add_dataset("x")
    for label, kind in (("FP", "F"), ("SIGFP", "Q"), ("FREE", "I")):
        mtz.add_column(label, kind)
    noisy = 3 * np.abs(f) * np.exp(0.05 * rng.normal(size=len(f)))
    mtz.set_data(np.column_stack([hkl, noisy, 0.05 * noisy, rng.integers(0, 20, len(f))]).astype(np.float32))
    mtz.write_to_file(str(folder / "d.mtz"))


def test_rows_resume_and_summary(runner, tmp_path, capsys, monkeypatch):
    write_set(tmp_path / "data" / "made")
    (tmp_path / "data" / "bare").mkdir()
    (tmp_path / "data" / "bare" / "m.pdb").write_text(
        "CRYST1   18.000   20.000   22.000  90.00  90.00  90.00 P 21 21 21\n"
    )
    (tmp_path / "data" / "README.csv").write_text(
        "name,cls,note,d_min,refl_file,model_file\n"
        "made,protein_mid,,2.0,d.mtz,m.pdb\nbare,protein_mid,,2.0,../made/d.mtz,m.pdb\nnone,protein_mid,,2.0,d.mtz,\n"
    )
    out = tmp_path / "out" / "r.json"
    argv = ["--data", str(tmp_path / "data"), "--out", str(out)]
    monkeypatch.setattr(
        runner, "run_one", lambda item, options: json.loads(json.dumps(runner.finite(runner.one_set(item))))
    )
    assert runner.main(argv) == 0
    rows = {row["set"]: row for row in json.loads(out.read_text())}
    assert set(rows) == {"made", "bare"} and "no atoms" in rows["bare"]["status"]
    row = rows["made"]
    assert 0.03 < row["shells"]["work"] < 0.05 and 0.03 < row["shells"]["free"] < 0.06
    assert row["masks"]["smooth"]["to"]["4"] > 0.99 and "0" in row["flags"]
    if importlib.util.find_spec("mmtbx"):
        assert row["mmtbx"]["work"] == pytest.approx(row["shells"]["work"], abs=0.03)
    else:
        assert "error" in row["mmtbx"]
    table = out.with_suffix(".md").read_text()
    assert "| made |" in table and "| bare |" in table and str(tmp_path) not in table + out.read_text()
    assert "2 sets; 1 with a usable model" in capsys.readouterr().out

    monkeypatch.setattr(runner, "run_one", lambda item, options: pytest.fail(f"{item.name} is run again"))
    assert runner.main(argv) == 0
    with pytest.raises(SystemExit, match="no such sets: other"):
        runner.main([*argv, "--sets", "other"])
    with pytest.raises(SystemExit, match=r"no README\.csv"):
        runner.main(["--data", str(tmp_path)])


def test_a_set_that_crashes_or_hangs_costs_only_itself(runner, tmp_path, monkeypatch):
    write_set(tmp_path / "made")
    (tmp_path / "README.csv").write_text(
        "name,cls,note,d_min,refl_file,model_file\nmade,protein_mid,,2.0,d.mtz,m.pdb\n"
    )
    argv = ["--data", str(tmp_path), "--out", str(tmp_path / "r.json"), "--redo"]
    assert runner.main([*argv, "--limit", "0.01"]) == 0
    assert "longer than 0.01 s" in json.loads((tmp_path / "r.json").read_text())[0]["status"]
    monkeypatch.setattr(runner.sys, "executable", "/bin/false")
    assert runner.main(argv) == 1
