"""The benchmark's runner, with a stub in place of the command."""

import importlib.util
import json
import os
import resource
import stat
import sys
import textwrap
import threading
import time
from pathlib import Path

import gemmi
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
CELL, GROUP = gemmi.UnitCell(10, 11, 12, 90, 90, 90), gemmi.SpaceGroup("P 21 21 21")

STUB = """\
#!{python}
import json, shutil, sys, time
from pathlib import Path
words = [w for w in sys.argv[1:] if w != "--overwrite"]
given = dict(zip(words[::2], words[1::2]))
hklin = Path(given["hklin"])
with open({log!r}, "a") as log:
    log.write(hklin.stem + "\\n")
if hklin.stem == "bad":
    sys.exit("ml_phaser: bad.mtz: not an MTZ. Try: another file")
if hklin.stem == "crash":
    raise RuntimeError("boom")
if hklin.stem == "slow":
    time.sleep(60)
ballast = bytearray(60_000_000)
shutil.copy(hklin.with_name("phased.mtz"), given["hklout"])
if hklin.stem == "invalid":
    Path(given["mapout"]).write_text("no map")
else:
    shutil.copy(hklin.with_name("phased.map"), given["mapout"])
record = dict(verdict=dict(word="solved", probability=0.9, reason="a stub"), d_min=1.5, trials=[{{}}] * 3,
              source=dict(columns=["FP", "SIGFP"]), cell=[10, 11, 12, 90, 90, 90], spacegroup="P 21 21 21",
              times=dict(phase=1.0), given=given)
Path(given["jsonout"]).write_text(json.dumps(record))
"""


def runner():
    spec = importlib.util.spec_from_file_location("measured", ROOT / "benchmarks" / "measured.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["measured"] = module
    spec.loader.exec_module(module)
    return module


def make_phases(folder, wrong):
    """A model, and phases that are its own or random."""
    rng = np.random.default_rng(0)
    sites = rng.random((8, 3))
    rows = "\n".join(f"C{i} C {x:.5f} {y:.5f} {z:.5f} 0.03 1" for i, (x, y, z) in enumerate(sites))
    names = ("length_a", "length_b", "length_c", "angle_alpha", "angle_beta", "angle_gamma")
    head = "\n".join(f"_cell_{n} {x}" for n, x in zip(names, CELL.parameters, strict=True))
    tags = ("label", "type_symbol", "fract_x", "fract_y", "fract_z", "U_iso_or_equiv", "occupancy")
    loop = "loop_\n" + "\n".join(f"_atom_site_{t}" for t in tags)
    (folder / "model.cif").write_text(f"data_x\n{head}\n_space_group_name_H-M_alt 'P 21 21 21'\n{loop}\n{rows}\n")
    small = gemmi.read_small_structure(str(folder / "model.cif"))
    hkl = gemmi.make_miller_array(CELL, GROUP, 1.5)
    calc = gemmi.StructureFactorCalculatorX(small.cell)
    f = np.array([calc.calculate_sf_from_small_structure(small, [int(x) for x in h]) for h in hkl])
    if wrong:
        f = np.abs(f) * np.exp(2j * np.pi * rng.random(len(f)))
    mtz = gemmi.Mtz(with_base=True)
    mtz.cell, mtz.spacegroup = CELL, GROUP
    mtz.add_dataset("x")
    for label, kind in zip(("FP", "SIGFP", "FWT", "PHWT", "PHIB", "FOM"), "FQFPPW", strict=True):
        mtz.add_column(label, kind)
    phase = np.rad2deg(np.angle(f))
    columns = [hkl, np.abs(f), np.ones(len(f)), np.abs(f), phase, phase, np.ones(len(f))]
    mtz.set_data(np.column_stack(columns).astype(np.float32))
    mtz.write_to_file(str(folder / "phased.mtz"))
    ccp4 = gemmi.Ccp4Map()
    ccp4.grid = mtz.transform_f_phi_to_map("FWT", "PHWT")
    ccp4.update_ccp4_header()
    ccp4.write_ccp4_map(str(folder / "phased.map"))


@pytest.fixture
def bench(tmp_path, monkeypatch):
    """A data folder of made-up sets and a stub of the command on PATH; returns run(*arguments)."""
    data = tmp_path / "data"
    rows = ["name,cls,note,space_group,cell,d_min,refl_file,model_file"]
    for name, cls, model in [
        ("good", "small_molecule", "model.cif"),
        ("wrong", "peptide_mid", "model.cif"),
        ("nomodel", "peptide_mid", ""),
        ("bad", "peptide_mid", "model.cif"),
        ("crash", "peptide_mid", "model.cif"),
        ("invalid", "peptide_mid", "model.cif"),
        ("slow", "protein_mid", "model.cif"),
        ("1dtx", "peptide_mid", "model.cif"),
    ]:
        (data / name).mkdir(parents=True)
        make_phases(data / name, wrong=name == "wrong")
        rows.append(f"{name},{cls},a note,P 21 21 21,10 11 12 90 90 90,1.5,{name}.mtz,{model}")
        (data / name / f"{name}.mtz").write_text("stub")
    (data / "README.csv").write_text("\n".join(rows) + "\n")
    (tmp_path / "bin").mkdir()
    log = tmp_path / "calls.txt"
    log.touch()
    stub = tmp_path / "bin" / "ml_phaser"
    stub.write_text(textwrap.dedent(STUB).format(python=sys.executable, log=str(log)))
    stub.chmod(stub.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{stub.parent}{os.pathsep}{os.environ['PATH']}")
    module = runner()
    monkeypatch.setattr(module, "KILL_EXTRA", 2.0)
    out = tmp_path / "out"

    def run(*words):
        return module.main(["--data", str(data), "--out", str(out), "--timelimit", "30", *words])

    run.out, run.calls = out, lambda: log.read_text().split()
    return run


def test_every_set_gets_a_row(bench, capsys):
    # only the slow one is a protein: a busy machine must not get the others killed
    status = bench("--timelimit-protein", "0.1", "--threads", "1", "--engine", "classical", "--jobs", "2", "--progress")
    rows = {row["set"]: row for row in json.loads((bench.out / "results.json").read_text())}
    assert status == 1, "some crashed"
    assert {n: r["status"] for n, r in rows.items()} == {
        **dict.fromkeys(("good", "wrong", "nomodel", "1dtx"), "ok"),
        "bad": "error",
        "crash": "crashed",
        "invalid": "invalid",
        "slow": "killed",
    }
    good = rows["good"]
    assert good["agreement"]["map_cc"] > 0.9999 and good["agreement"]["phase_error"] < 0.1
    assert good["ceiling"] > 0.9999 and good["model"] == "final" and good["trials"] == 3
    assert good["verdict"]["word"] == "solved" and good["columns"] == ["FP", "SIGFP"]
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # a fork begins with its parent's peak
    assert good["seconds"] > 0 and 60 < good["peak_mb"] < 500 + own
    assert rows["wrong"]["agreement"]["map_cc"] < 0.5
    assert rows["nomodel"]["agreement"] is None and rows["nomodel"]["model"] == "none"
    assert rows["bad"]["error"] == "ml_phaser: bad.mtz: not an MTZ. Try: another file"
    assert str(bench.out) not in json.dumps(rows), "results name no folder of this machine"
    assert good["command"][:3] == ["ml_phaser", "hklin", "good.mtz"]
    assert rows["crash"]["error"] == "RuntimeError: boom"
    assert "pred.map" in rows["invalid"]["error"]
    given = json.loads((bench.out / "wrong" / "pred.json").read_text())["given"]
    assert (given["timelimit"], given["threads"], given["engine"]) == ("30", "1", "classical")
    assert rows["slow"]["limit"] == 0.1 and "timelimit 0.1" in " ".join(rows["slow"]["command"])
    toxd = json.loads((bench.out / "1dtx" / "pred.json").read_text())["given"]
    assert toxd["labin"] == "FP=FTOXD3 SIGFP=SIGFTOXD3" and rows["1dtx"]["model"] == "not final"
    assert not (bench.out / "good" / "pred.map").exists()

    table = (bench.out / "results.md").read_text()
    lines = [line for line in table.splitlines() if line.startswith("| ")]
    assert lines[1].startswith("| good |") and len(lines) == 9
    assert len({line.count("|") for line in lines}) == 1
    assert "with CC < 0.5: wrong." in table
    out, err = capsys.readouterr()
    assert "crash" in out and "8 of 8 done" in err


def test_finished_sets_are_skipped_unless_redone(bench, capsys):
    assert bench("--sets", "good") == 0
    assert bench("--sets", "good,nomodel") == 0
    assert bench.calls() == ["good", "nomodel"]
    assert bench("--sets", "good", "--redo", "--keep-maps") == 0
    assert bench.calls() == ["good", "nomodel", "good"]
    assert (bench.out / "good" / "pred.map").exists()
    assert len(json.loads((bench.out / "results.json").read_text())) == 2
    with pytest.raises(SystemExit, match="no such sets: nonesuch"):
        bench("--sets", "nonesuch")
    capsys.readouterr()


def test_sets_with_limits_of_their_own_join_earlier_results(bench, capsys):
    assert bench("--sets", "good") == 0
    (bench.out / "good.json").unlink()  # as in a checkout, which has results.json alone
    assert bench("--sets", "nomodel:7,1dtx") == 0
    rows = {row["set"]: row for row in json.loads((bench.out / "results.json").read_text())}
    assert {name: row["limit"] for name, row in rows.items()} == {"good": 30.0, "nomodel": 7.0, "1dtx": 30.0}
    assert "timelimit 7" in " ".join(rows["nomodel"]["command"])
    table = (bench.out / "results.md").read_text()
    assert all(f"| {name} |" in table for name in rows)
    with pytest.raises(SystemExit, match="number of seconds"):
        bench("--sets", "good:soon")
    capsys.readouterr()


def test_interrupt_leaves_no_result(bench, tmp_path):
    module = runner()
    runs, plan = module.Runs(), module.Plan(100.0, None, None, None, None, False)
    slow = next(x for x in module.read_sets(tmp_path / "data") if x.name == "slow")

    def stop_once_started():
        while not bench.calls():
            time.sleep(0.02)
        runs.stop()

    threading.Thread(target=stop_once_started).start()
    with pytest.raises(KeyboardInterrupt):
        module.one_set(slow, plan, module.find_command(), tmp_path / "out", runs)
    assert not (tmp_path / "out" / "slow.json").exists()
