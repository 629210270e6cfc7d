"""Bad input through the real command and the real pipeline: one line on stderr, exit 1, nothing written.

Most calls are made in this process, for speed; signals, full disks and damaged installations in one of their own.
"""

import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import gemmi
import numpy as np
import pytest
from sample_outcome import CELL, GROUP, structure_factors

import ml_phaser
from ml_phaser.cli import main

ENV = {k: v for k, v in os.environ.items() if k != "ML_PHASER_DEBUG"} | {"OMP_NUM_THREADS": "1"}
QUICK = ["trials", "1", "timelimit", "2", "threads", "1"]
FILES = ["hklin", "data.mtz", "mapout", "pred.map"]
SHORT = gemmi.UnitCell(6, 7, 8, 90, 90, 90)  # a third of the reflections of CELL, for runs that go all the way


# ------------------------------------------------------------------------------------------- making files


def indices(d_min=1.2, cell=CELL, group=GROUP):
    return np.asarray(gemmi.make_miller_array(cell, group, d_min), dtype=np.int32)


def write_mtz(path, hkl, cell=CELL, group=GROUP, **columns):
    """``columns``: label = (type, values)."""
    mtz = gemmi.Mtz(with_base=True)
    mtz.spacegroup = group
    mtz.add_dataset("x")
    mtz.set_cell_for_all(cell)
    for label, (kind, _) in columns.items():
        mtz.add_column(label, kind)
    mtz.set_data(np.column_stack([hkl, *(values for _, values in columns.values())]).astype(np.float32))
    mtz.write_to_file(str(path))


def measured(hkl, group=GROUP):
    return np.abs(structure_factors(hkl, group))


def amplitudes(path="data.mtz", f=None, hkl=None, cell=CELL, group=GROUP):
    """An MTZ with F and SIGF; those of a real crystal unless ``f`` says otherwise."""
    hkl = indices() if hkl is None else hkl
    f = measured(hkl) if f is None else np.broadcast_to(f, len(hkl))
    write_mtz(path, hkl, cell, group, F=("F", f), SIGF=("Q", 0.02 * np.abs(f) + 0.1))


def shelx_list(path, hkl, value):
    sigma = 0.03 * np.abs(value) + 0.5
    rows = [f"{h:4d}{k:4d}{m:4d}{v:8.2f}{s:8.2f}" for (h, k, m), v, s in zip(hkl, value, sigma, strict=True)]
    Path(path).write_text("\n".join([*rows, "   0   0   0    0.00    0.00"]) + "\n")


def cell_words(cell=CELL):
    return ["cell", ",".join(f"{x:g}" for x in cell.parameters)]


# ---------------------------------------------------------------------------------------- running, judging


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    return tmp_path


def snapshot():
    """Every file here and what is in it."""
    return {p.name: p.read_bytes() if p.is_file() else None for p in Path().iterdir()}


def judge_refusal(code, out, err, before, parts):
    assert code == 1, out[-2000:]
    assert len(err.splitlines()) == 1, err
    message = err.strip()
    assert message.startswith("ml_phaser: ") and "bug" not in message, message
    for part in parts:
        assert part.lower() in message.lower(), message
    assert out.splitlines()[-2] == " ml_phaser:  " + message.removeprefix("ml_phaser: ")
    assert "Traceback" not in out + err
    assert snapshot() == before
    return message


@pytest.fixture
def refused(capsys):
    """refused(words, *parts): the command refuses, with a message that holds the parts."""

    def check(words, *parts):
        before = snapshot()
        capsys.readouterr()
        code = main(words)
        return judge_refusal(code, *capsys.readouterr(), before, parts)

    return check


@pytest.fixture
def accepted(capsys):
    """accepted(words): the command ends well; the log."""

    def check(words):
        capsys.readouterr()
        code = main([*words, *QUICK])
        out, err = capsys.readouterr()
        assert code == 0 and err == "", err
        assert "Normal termination" in out
        return " ".join(out.split())

    return check


def command(*words, limit=None, env=None):
    """Begin the installed command in a process of its own; ``limit``: largest file in bytes."""

    def set_limit():
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # ignored by whatever was begun in the background of a shell
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    return subprocess.Popen(
        [sys.executable, "-m", "ml_phaser", *words],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENV | (env or {}),
        preexec_fn=set_limit,
    )  # fmt: skip


# ------------------------------------------------------------------------------------------- not data at all


def test_not_an_mtz(refused):
    Path("data.mtz").write_text("these are not the data you are looking for\n" * 50)
    refused(FILES, "data.mtz", "not a reflection file")
    Path("data.mtz").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 20)
    refused(FILES, "data.mtz", "not a reflection file")
    Path("data.mtz").write_bytes(b"")
    refused(FILES, "data.mtz", "empty")


@pytest.mark.parametrize("fraction", [0.001, 0.3, 0.7, 0.99])
def test_truncated_file(refused, fraction):
    amplitudes()
    content = Path("data.mtz").read_bytes()
    Path("data.mtz").write_bytes(content[: int(len(content) * fraction)])
    refused(FILES, "data.mtz", "truncated", "copying the file again")


def test_input_is_a_folder_or_missing(refused):
    Path("data.mtz").mkdir()
    refused(FILES, "data.mtz", "folder")
    refused(["hklin", "dota.mtz", "mapout", "pred.map"], "dota.mtz", "no such file")


def test_a_model_instead_of_data(refused):
    Path("model.pdb").write_text("CRYST1   10.000   11.000   12.000  90.00  90.00  90.00 P 21 21 21\nEND\n")
    refused(["hklin", "model.pdb", "mapout", "pred.map"], "model.pdb", "not a reflection file")


# --------------------------------------------------------------------------------------- cell and space group


def test_no_cell_or_group(refused):
    shelx_list("data.hkl", indices(), measured(indices()) ** 2)
    words = ["hklin", "data.hkl", "mapout", "pred.map"]
    refused([*words, "spacegroup", "P212121"], "data.hkl", "no unit cell", "cell a,b,c,alpha,beta,gamma")
    refused([*words, *cell_words()], "data.hkl", "no space group", "spacegroup")


@pytest.mark.parametrize("bad", [(0, 0, 0, 0, 0, 0), (10, 11, 12, 10, 20, 150), (10, 11, -12, 90, 90, 90)])
def test_impossible_cell(refused, bad):
    amplitudes()
    refused([*FILES, "cell", ",".join(map(str, bad))], "cell")
    amplitudes(cell=gemmi.UnitCell(*bad))
    assert "cell" in refused(FILES, "data.mtz")


def test_cell_that_does_not_suit_the_group(refused):
    amplitudes()
    refused([*FILES, "spacegroup", "P 4"], "cell")


def test_group_the_data_contradict(refused):
    cell = gemmi.UnitCell(11, 11, 13, 90, 90, 90)
    amplitudes(cell=cell)
    refused([*FILES, "spacegroup", "P 43 21 2"], "contradict", "spacegroup")
    hkl = indices(group=gemmi.SpaceGroup("P 1"))
    amplitudes(f=np.random.default_rng(0).rayleigh(10, len(hkl)), hkl=hkl, group=gemmi.SpaceGroup("P 1"))
    refused([*FILES, "spacegroup", "P 2 2 2"], "contradict", "P1")
    refused([*FILES, "spacegroup", "P 21/q"], "P 21/q")


# ---------------------------------------------------------------------------------------------------- values


@pytest.mark.parametrize(
    ("value", "said"), [(np.nan, "all missing"), (7.0, "constant"), (0.0, ""), (-5.0, ""), (np.inf, "all missing")]
)
def test_column_without_information(refused, value, said):
    amplitudes(f=value)
    refused(FILES, "column F", said)


def test_negative_intensities_everywhere(refused):
    hkl = indices()
    write_mtz("data.mtz", hkl, I=("J", -(measured(hkl) ** 2)), SIGI=("Q", np.ones(len(hkl))))
    refused(FILES, "column I", "negative")


def test_three_reflections(refused):
    amplitudes(hkl=indices()[[5, 9, 14]])
    refused(FILES, "only 3 unique reflections")


def test_resolution_that_leaves_nothing(refused):
    amplitudes()
    refused([*FILES, "resolution", "0.9,0.5"], "no reflections between 0.9 and 0.5", "1.2")
    refused([*FILES, "resolution", "20,4"], "unique reflections are left")
    refused([*FILES, "resolution", "0.01"], "0.2 to 50")


def test_columns(refused):
    hkl = indices()
    f = measured(hkl)
    other = np.random.default_rng(1).rayleigh(f.mean(), len(f))
    write_mtz("data.mtz", hkl, FA=("F", f), SIGFA=("Q", f / 50), FB=("F", other), SIGFB=("Q", f / 50))
    message = refused(FILES, "FA", "FB", "LABIN")
    assert "SIGFA" in message
    refused([*FILES, "labin", "FP=FC SIGFP=SIGFC"], "FC", "FA")
    refused([*FILES, "labin", "FA,FB,FC,FD"], "labin")
    write_mtz("data.mtz", hkl, FC=("F", f), PHIC=("P", 0 * f))
    refused(FILES, "data.mtz", "FC")


def test_one_wild_index_does_not_take_all_the_memory(accepted):
    """A damaged line claims a reflection a hundred times beyond the rest."""
    hkl = indices(0.9, SHORT)
    f = measured(hkl)
    amplitudes(hkl=np.vstack([hkl, [[900, 3, 2]]]), f=np.append(f, f.mean()), cell=SHORT)
    assert "1 reflections at 0.01 A and beyond, far from all others" in accepted(FILES)
    assert len(phased()) == len(hkl)


# ------------------------------------------------------------------------------------------------- spelling


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["sede", "3"], ["sede", "seed"]),
        (["--nonsense"], ["nonsense", "--help"]),
        (["seed"], ["seed", "no value"]),
        (["seed", "three"], ["seed", "whole number"]),
        (["seed", "-1"], ["seed", "out of range"]),
        (["trials", "0"], ["trials", "1 to"]),
        (["timelimit", "nan"], ["timelimit", "out of range"]),
        (["engine", "magic"], ["engine", "classical"]),
        (["device", "gpu"], ["device", "cuda"]),
        (["seed", "1", "seed", "2"], ["seed", "twice"]),
        (["labin"], ["labin", "no value"]),
    ],
)
def test_options(refused, words, parts):
    amplitudes()
    refused([*FILES, *words], *parts)


@pytest.mark.skipif(os.environ.get("CUDA_VISIBLE_DEVICES", "-") != "-", reason="there may be a GPU")
def test_a_gpu_that_is_not_there(refused):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    amplitudes()
    refused([*FILES, "device", "cuda"], "CUDA", "device cpu")


# ------------------------------------------------------------------------------------------------- outputs


def test_outputs_that_would_destroy_something(refused):
    amplitudes()
    refused(["hklin", "data.mtz", "mapout", "data.mtz"], "mapout data.mtz")
    Path("link.mtz").symlink_to("data.mtz")
    refused([*FILES, "hklout", "link.mtz", "overwrite"], "hklout link.mtz", "input")
    refused([*FILES, "jsonout", "data.mtz", "overwrite"], "jsonout data.mtz", "input")
    refused([*FILES, "pattout", "pred.map"], "pattout pred.map", "mapout")
    Path("pred.json").write_text("{}")
    refused(FILES, "jsonout pred.json", "exists already", "overwrite")


def test_outputs_that_cannot_be(refused):
    amplitudes()
    refused(["hklin", "data.mtz", "mapout", "none/pred.map"], "none/pred.map", "does not exist", "mkdir")
    refused(["hklin", "data.mtz", "mapout", "data.mtz/pred.map"], "data.mtz/pred.map")
    Path("folder.map").mkdir()
    refused(["hklin", "data.mtz", "mapout", "folder.map"], "folder.map", "folder")
    if Path("/proc/self").is_dir():
        refused(["hklin", "data.mtz", "mapout", "/proc/pred.map", *QUICK], "/proc/pred.", "written")
    refused(["hklin", "data.mtz", "mapout", "m" * 300 + ".map"], "too long")


def test_folder_without_permission(refused):
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    amplitudes()
    Path("locked").mkdir(mode=0o500)
    refused(["hklin", "data.mtz", "mapout", "locked/pred.map"], "locked", "cannot be written to")


@pytest.mark.parametrize(
    ("limit", "which"),
    [(4_000, "temporary"), (14_000, ".mtz"), (40_000, ".map"), (None, "/dev/full")],
    ids=["copy of the input does not fit", "MTZ does not fit", "map does not fit", "no space on device"],
)
def test_full_disk(limit, which):
    hkl = indices(0.9, SHORT)
    amplitudes(hkl=hkl, cell=SHORT)
    before = snapshot()
    if limit is None and not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    files = [*FILES, "pattout", "/dev/full"] if limit is None else FILES
    process = command(*files, *QUICK, limit=limit)
    out, err = process.communicate(timeout=60)
    judge_refusal(process.returncode, out, err, before, [which, "cannot be written"])


# --------------------------------------------------------------------------------------------- interruption


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_in_the_middle_of_phasing(number):
    hkl = indices(0.9)
    amplitudes(hkl=hkl, f=np.random.default_rng(0).rayleigh(10, len(hkl)))
    before = snapshot()
    process = command(*FILES, "timelimit", "600", "threads", "1")
    assert process.stdout is not None
    head = []
    while not head or head[-1] != " -- phase\n":
        head.append(process.stdout.readline())
        assert head[-1], process.communicate()
    time.sleep(1.5)
    asked = time.monotonic()
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert time.monotonic() - asked < 10
    judge_refusal(process.returncode, "".join(head) + out, err, before, ["interrupted; nothing was written"])


def test_interrupt_while_libraries_load():
    """Anywhere between the banner and the first cycle: an exception inside a C++ module would abort Python."""
    amplitudes()
    before = snapshot()
    processes = [command(*FILES, "timelimit", "600", "threads", "1", "quiet") for _ in range(8)]
    time.sleep(0.15)
    for process in processes:
        time.sleep(0.15)
        process.send_signal(signal.SIGINT)
    for process in processes:
        out, err = process.communicate(timeout=30)
        assert (process.returncode, err, out) == (1, "ml_phaser: interrupted; nothing was written\n", "")
    assert snapshot() == before


# ---------------------------------------------------------------------------------------- damaged installation


@pytest.fixture
def copy_of_package(tmp_path_factory):
    """A copy of the package to damage, and the environment in which Python takes it."""
    place = tmp_path_factory.mktemp("site")
    source = Path(ml_phaser.__file__).parent
    shutil.copytree(source, place / "ml_phaser", ignore=shutil.ignore_patterns("__pycache__"))
    return place / "ml_phaser", {"PYTHONPATH": str(place)}


@pytest.mark.parametrize("damage", ["flipped bit", "truncated weights", "no weights", "no card", "card cut short"])
def test_damaged_weights(copy_of_package, damage):
    package, env = copy_of_package
    weights = next((package / "weights").glob("projector-*.safetensors"))
    card = weights.with_suffix(".json")
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    match damage:
        case "flipped bit":
            weights.write_bytes(bytes(content))
        case "truncated weights":
            weights.write_bytes(bytes(content)[:1000])
        case "no weights":
            weights.unlink()
        case "no card":
            card.unlink()
        case "card cut short":
            card.write_text(card.read_text()[:80])
    amplitudes(hkl=indices(1.3))
    before = snapshot()
    process = command(*FILES, *QUICK, env=env)
    out, err = process.communicate(timeout=60)
    judge_refusal(process.returncode, out, err, before, [weights.stem, "reinstall ml_phaser"])


# ---------------------------------------------------------------------- odd, but no reason to refuse anything


def phased(path="pred.mtz"):
    """Phased reflections, after a look at the record and the map."""
    json.loads(Path(path).with_suffix(".json").read_text())
    assert np.isfinite(np.asarray(gemmi.read_ccp4_map(str(Path(path).with_suffix(".map"))).grid)).all()
    mtz = gemmi.read_mtz_file(path)
    fom = np.asarray(mtz.column_with_label("FOM"))
    return np.asarray(mtz.make_miller_array())[np.isfinite(fom)]


def test_missing_values_are_left_out(accepted):
    hkl = indices(0.9, SHORT)
    f = measured(hkl)
    sigma = 0.02 * f + 0.1
    f[::10], sigma[5::10] = np.nan, np.nan
    write_mtz("data.mtz", hkl, SHORT, F=("F", f), SIGF=("Q", sigma))
    log = accepted(FILES)
    assert {tuple(h) for h in phased()} == {tuple(h) for h in hkl[np.isfinite(f)]}
    assert "no standard uncertainty" in log


def test_duplicate_reflections_are_merged(accepted):
    hkl = indices(0.9, SHORT)
    twice = np.vstack([hkl, hkl[::3]])
    f = measured(twice) * np.random.default_rng(0).normal(1, 0.01, len(twice))
    amplitudes(hkl=twice, f=f, cell=SHORT)
    assert f"{len(twice)} measurements are merged to {len(hkl)} unique reflections" in accepted(FILES)
    assert len(phased()) == len(hkl)


def test_unmerged_list_with_negative_intensities(accepted):
    """Every reflection measured three times, weak ones below zero, a beam-stop victim among them."""
    rng = np.random.default_rng(0)
    every = indices(0.9, SHORT)
    mates = np.vstack([every @ np.diag(signs) for signs in ((1, 1, 1), (-1, -1, 1), (1, -1, -1))])
    f2 = measured(mates) ** 2
    value = f2 + rng.normal(0, 0.03 * f2 + 0.5)
    assert (value < 0).any()
    value[7] = -f2.max()
    shelx_list("data.hkl", mates, value)
    words = ["hklin", "data.hkl", "mapout", "pred.map", *cell_words(SHORT), "spacegroup", "P212121"]
    log = accepted(words)
    assert "are merged to" in log and "beam stop" in log
    found = {tuple(h) for h in phased()}
    assert len(found) == len(every)


def test_names_with_spaces_and_other_letters(accepted):
    folder = Path("my données")
    folder.mkdir()
    amplitudes(folder / "lysozyme (1).mtz", hkl=indices(0.9, SHORT), cell=SHORT)
    accepted(["hklin", str(folder / "lysozyme (1).mtz"), "mapout", str(folder / "Ergebnis für mich.map")])
    assert {p.suffix for p in folder.iterdir()} == {".mtz", ".map", ".json"}
