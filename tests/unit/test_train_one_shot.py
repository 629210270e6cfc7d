"""The command ``train_one_shot``: runs of seconds, what they leave behind, what it refuses."""

import hashlib
import itertools
import json
import os
import re
import signal

import pytest
import torch
from made_library import made_library, peptide_library

from ml_phaser.cli import main as ml_phaser
from ml_phaser.cli.train_one_shot import FAMILIES as NAMES_OF_THE_COMMAND
from ml_phaser.cli.train_one_shot import TABLE, main
from ml_phaser.networks.store import read_card
from ml_phaser.simulate.fragments import save_library
from ml_phaser.simulate.one_shot import FAMILIES
from ml_phaser.training import loop
from ml_phaser.training.alone import alone
from ml_phaser.training.loop import CHECKPOINT, LOG, read_checkpoint
from ml_phaser.training.record import RECORD

BASE = {
    "seconds": 1000, "session": 0.2, "device": "cpu", "network": "crysformer", "family": "dialanine-1b",
    "resolution": 3, "spacing": 1, "width": 16, "depth": 1, "patch": 5, "batch": 2, "rate": 0.01,
}  # fmt: skip


@pytest.fixture(scope="module")
def library():
    return peptide_library()


@pytest.fixture(scope="module")
def data(library, tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    save_library(library, folder / "train.npz", "train")
    save_library(peptide_library(seed=1), folder / "holdout.npz", "holdout")
    save_library(made_library(), folder / "nameless.npz", "train")
    save_library(peptide_library(chains=1, length=10), folder / "short.npz", "train")
    return folder


@pytest.fixture(autouse=True)
def threads(monkeypatch):
    """The numbers of threads asked for, instead of so many threads."""
    asked = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    return asked


@pytest.fixture(autouse=True)
def every_step_is_logged(monkeypatch):
    monkeypatch.setattr(loop, "LOG_EVERY", 1)


def command(data, out, /, **changes):
    options = {"data": data / "train.npz", "out": out, **BASE, **changes}
    return main([str(word) for pair in options.items() if pair[1] is not None for word in pair])


def record(out):
    return json.loads((out / RECORD).read_text())


def rows(out):
    return [json.loads(line) for line in (out / LOG).read_text().splitlines()]


# --------------------------------------------------------------------------------------- training


@pytest.fixture(scope="module")
def plain(data, tmp_path_factory):
    """A run as ``BASE`` has it: the first row of its log."""
    out = tmp_path_factory.mktemp("plain")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "LOG_EVERY", 1)
        assert command(data, out, quiet="yes") == 0
    return rows(out)[0]


@pytest.mark.parametrize(
    ("changes", "where", "value"),
    [
        ({"network": "unet", "patch": None}, ("config", "features"), 16),
        ({"family": "dialanine-1a"}, ("recipe", "family"), "dialanine-1a"),
        ({"family": "dipeptide-12", "spacing": 1.2}, ("config", "family"), "dipeptide-12"),
        ({"resolution": 4}, ("recipe", "d_min"), 4.0),
        ({"spacing": 0.7}, ("recipe", "spacing"), 0.7),
        ({"spacing": None, "resolution": 2.4}, ("config", "spacing"), 0.8),
        ({"parts": "yes"}, ("config", "parts"), 2),
        ({"recycles": 0}, ("config", "recycled"), False),
        ({"loss": "mse"}, ("lesson", "loss"), "mse"),
        ({"loss": "free"}, ("lesson", "loss"), "free"),
        ({"width": 32}, ("config", "dim"), 32),
        ({"depth": 2}, ("config", "depth"), 2),
        ({"patch": 2}, ("recipe", "multiple"), 2),
        ({"batch": 3}, ("sessions", 0, "schedule", "batch"), 3),
        ({"seed": 4}, ("sessions", 0, "seed"), 4),
    ],
    ids=lambda x: "-".join(f"{k}-{v}" for k, v in x.items()) if isinstance(x, dict) else "",
)
def test_every_option_changes_what_is_learnt(data, tmp_path, plain, changes, where, value):
    """The record has it, and the very first step is another."""
    assert command(data, tmp_path, quiet="yes", **changes) == 0
    found = record(tmp_path)
    for name in where:
        found = found[name]
    assert found == pytest.approx(value) if isinstance(value, float) else found == value
    first = rows(tmp_path)[0]
    assert first["step"] == 1
    assert (first["loss"], first["cc"]) != (plain["loss"], plain["cc"])


def test_the_same_options_do_the_same(data, tmp_path, plain):
    assert command(data, tmp_path, quiet="yes") == 0
    first = rows(tmp_path)[0]
    assert (first["loss"], first["cc"]) == (plain["loss"], plain["cc"])


def test_options_of_the_run_itself(data, tmp_path, plain, threads, capsys):
    assert command(data, tmp_path, recycles=5, rate=0.02, threads=2, session=0, seconds=77) == 0
    run = record(tmp_path)
    assert run["lesson"]["recycles"] == 5
    session = run["sessions"][0]
    assert (session["schedule"]["rate"], session["schedule"]["seconds"], session["threads"]) == (0.02, 77, 2)
    assert threads == [2]
    assert session["device"] == "cpu"
    assert run["steps"] == 0
    assert "training crysformer" in capsys.readouterr().out
    assert command(data, tmp_path, recycles=5, session=0, quiet="yes") == 0
    assert capsys.readouterr().out == ""


def test_more_earlier_predictions_are_shown(data, tmp_path):
    """Up to as many as asked: with one step a crystal none is shown."""

    def shown(name, **options):
        seen = []
        with pytest.MonkeyPatch.context() as patch:
            from ml_phaser.training import one_shot

            real = one_shot.one_pass

            def spied(network, half, recycled, parts, lengths):
                seen.append(bool(recycled.any()))
                return real(network, half, recycled, parts, lengths)

            patch.setattr(one_shot, "one_pass", spied)
            assert command(data, tmp_path / name, session=1, quiet="yes", **options) == 0
        return seen

    assert any(shown("some", recycles=3))
    assert not any(shown("none", recycles=0))


def test_the_run_record_tells_all(data, library, tmp_path):
    assert command(data, tmp_path, seed=5, parts="yes") == 0
    run = record(tmp_path)
    assert run["program"] == "ml_phaser train_one_shot"
    assert run["data"]["sha256"] == library.digest
    assert (run["data"]["split"], run["data"]["chains"], run["data"]["clusters"]) == ("train", 4, 4)
    assert run["config"]["family"] == run["recipe"]["family"] == "dialanine-1b"
    assert run["config"]["longest"] == [10, 10, 10]
    assert run["lesson"] == {"loss": "mse+pearson", "pearson": 0.1, "recycles": 2, "hidden": 0.25}
    assert run["begun_with"] is None
    session = run["sessions"][0]
    assert session["seed"] == 5
    assert session["versions"]["torch"]
    assert os.uname().nodename not in json.dumps(run)
    assert run["samples"] == 2 * run["steps"] == 2 * session["steps"] > 0
    assert run["seconds"] > 0
    assert len(rows(tmp_path)) == run["steps"]
    saved = read_checkpoint(tmp_path / CHECKPOINT)
    assert (saved["steps"], saved["samples"]) == (run["steps"], run["samples"])
    assert saved["config"]["parts"] == 2


@pytest.mark.parametrize(
    "changes",
    [{}, {"resolution": 2.5}, {"family": "dipeptide-12"}, {"patch": 2}, {"patch": 10, "spacing": 0.5}],
    ids=str,
)
def test_a_run_begins_with_what_another_learnt(data, tmp_path, plain, changes):
    """From its averaged weights, on another grid and other crystals, too."""
    first, second = tmp_path / "first", tmp_path / "second"
    assert command(data, first, session=1, quiet="yes") == 0
    checkpoint = first / CHECKPOINT
    assert command(data, second, begin=checkpoint, session=0, quiet="yes", **changes) == 0
    begun = {"name": str(checkpoint), "sha256": hashlib.sha256(checkpoint.read_bytes()).hexdigest()}
    assert record(second)["begun_with"] == begun
    learnt, taken = (read_checkpoint(folder / CHECKPOINT)["mean"] for folder in (first, second))
    same = {name for name, value in learnt.items() if torch.equal(value.half().float(), taken[name].half().float())}
    outer = {"embed.mlp.0.weight", "mlp.2.weight", "mlp.2.bias"}
    assert same >= learnt.keys() - outer
    assert (same >= outer) == ("patch" not in changes)
    assert command(data, tmp_path / "third", begin=checkpoint, quiet="yes") == 0
    row = rows(tmp_path / "third")[0]
    assert (row["loss"], row["cc"]) != (plain["loss"], plain["cc"])


def test_a_run_begins_with_bundled_weights(data, tmp_path):
    """Those of 2 A, for crystals of 1.5 A."""
    name, finer = "crysformer-dialanine-2A", {"width": 192, "depth": 6, "resolution": 1.5, "spacing": 0.63}
    assert command(data, tmp_path, begin=name, session=0, recycles=3, **finer | {"patch": 4}) == 0
    assert record(tmp_path)["begun_with"] == {"name": name, "sha256": read_card(name).sha256}


@pytest.mark.parametrize(
    ("begin", "changes", "message"),
    [
        ("crysformer-dialanine-2A", {}, "begin: is another network (dim 192, not 16)"),
        ("crysformer-nothing", {}, "no such network is bundled"),
        ("nowhere.pt", {}, "nowhere.pt: there is no checkpoint"),
        (CHECKPOINT, {"depth": 2}, "begin: is another network (depth 1, not 2)"),
        (CHECKPOINT, {"parts": "yes"}, "begin: is another network (parts 0, not 2)"),
        (CHECKPOINT, {"recycles": 0}, "begin: is another network (recycled True, not False)"),
    ],
    ids=str,
)
def test_what_cannot_be_begun_with_is_told(data, tmp_path, capsys, begin, changes, message):
    assert command(data, tmp_path / "first", session=0, quiet="yes") == 0
    begin = tmp_path / "first" / begin if begin == CHECKPOINT else begin
    assert command(data, tmp_path / "second", begin=begin, **changes) == 1
    err = capsys.readouterr().err.strip()
    assert len(err.splitlines()) == 1
    assert message in err
    assert not (tmp_path / "second" / CHECKPOINT).exists()


def test_a_network_of_another_kind_cannot_be_begun_with(data, tmp_path, capsys):
    assert command(data, tmp_path / "first", session=0, quiet="yes", network="unet", patch=None) == 0
    assert command(data, tmp_path / "second", begin=tmp_path / "first" / CHECKPOINT) == 1
    err = capsys.readouterr().err.strip()
    assert len(err.splitlines()) == 1
    assert "begin: is a UNet. Try: network of the same kind" in err
    assert not (tmp_path / "second" / CHECKPOINT).exists()


@pytest.mark.parametrize("network", ["unet", "crysformer"])
def test_an_interrupted_run_goes_on(data, tmp_path, capsys, monkeypatch, network):
    """Ctrl-C after the third step; the same command again."""
    patch = None if network == "unet" else 5
    real = loop.append_row

    def interrupted(path, row):
        real(path, row)
        if row["step"] == 3:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(loop, "append_row", interrupted)
    assert command(data, tmp_path, network=network, patch=patch, session=None) == 1
    captured = capsys.readouterr()
    assert len(captured.err.strip().splitlines()) == 1
    steps = read_checkpoint(tmp_path / CHECKPOINT)["steps"]
    assert steps >= 3
    assert f"interrupted; step {steps}" in captured.err
    assert command(data, tmp_path, network=network, patch=patch) == 0
    assert re.search(rf"resumed after \d+ s, {steps} steps", capsys.readouterr().out)
    run = record(tmp_path)
    assert [s["steps"] for s in run["sessions"]] == [steps, run["steps"] - steps]
    assert run["steps"] > steps
    assert [row["step"] for row in rows(tmp_path)] == list(range(1, run["steps"] + 1))


def test_nothing_is_left_to_do_when_the_budget_is_spent(data, tmp_path):
    assert command(data, tmp_path, seconds=0.2, session=None) == 0
    run = record(tmp_path)
    assert run["seconds"] >= 0.2
    assert command(data, tmp_path, seconds=0.2, session=None) == 0
    assert record(tmp_path)["steps"] == run["steps"]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_can_be_trained_on(data, tmp_path, family):
    assert command(data, tmp_path, family=family, resolution=4, spacing=2, patch=2, parts="yes", batch=1) == 0
    row = rows(tmp_path)[0]
    assert 0 < row["loss"] < 4
    assert -1 <= row["cc"] <= 1
    assert set(NAMES_OF_THE_COMMAND) == set(FAMILIES)


def test_the_unet_takes_the_smallest_cells(data, tmp_path):
    """Half a grid of four points is smaller than half a kernel of seven."""
    changes = {"network": "unet", "family": "dipeptide-minimal", "resolution": 4, "spacing": 2, "patch": None}
    assert command(data, tmp_path, batch=1, **changes) == 0


# --------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": None}, "data: is missing"),
        ({"out": None}, "out: is missing"),
        ({"seconds": None, "session": None}, "nothing to do"),
        ({"seconds": 0, "session": None}, "nothing to do"),
        ({"seconds": None, "export": "x", "holdout": "y"}, "session: is part of a budget"),
        ({"network": "unet"}, "patch: does nothing with network unet"),
        ({"network": "resnet"}, "network"),
        ({"family": "tripeptide"}, "family"),
        ({"resolution": 0.5}, "resolution"),
        ({"spacing": "fine"}, "spacing"),
        ({"width": 4}, "width"),
        ({"depth": 0}, "depth"),
        ({"batch": 0}, "batch"),
        ({"rate": 2}, "rate"),
        ({"recycles": -1}, "recycles"),
        ({"loss": "phases"}, "loss"),
        ({"seed": -1}, "seed"),
        ({"threads": 0}, "threads"),
        ({"device": "tpu"}, "device"),
        ({"crystals": 9}, "crystals: does nothing without export"),
        ({"weights": "w"}, "weights: does nothing without export"),
        ({"holdout": "h"}, "holdout: does nothing without export"),
        ({"overwrite": "yes"}, "overwrite: does nothing without export"),
        ({"export": "a/b"}, "is a name"),
        ({"export": "x"}, r"train\.npz: holds no held-out entries"),
        ({"chanels": 9}, "unknown option"),
        ({"data": "nowhere.npz"}, r"nowhere\.npz: no such file"),
        ({"data": "holdout.npz"}, "holds the holdout split, not train"),
    ],
    ids=lambda x: "-".join(f"{k}-{v}" for k, v in x.items()) if isinstance(x, dict) else "",
)
def test_wrong_words_get_one_clear_line(data, tmp_path, capsys, changes, message):
    options = {"data": "train.npz", "out": tmp_path / "run", **BASE, **changes}
    if options["data"]:
        options["data"] = data / options["data"]
    words = [str(word) for name, value in options.items() if value is not None for word in (name, value)]
    assert main(words) == 1
    captured = capsys.readouterr()
    err = captured.err.strip()
    assert len(err.splitlines()) == 1
    assert re.search(message, err)
    assert err.startswith("ml_phaser train_one_shot: ")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("source", "changes", "message"),
    [
        ("nameless.npz", {}, "holds no residues"),
        ("short.npz", {"family": "residues-15"}, "holds no such molecules"),
    ],
)
def test_coordinates_that_will_not_do_are_told(data, tmp_path, capsys, source, changes, message):
    assert command(data, tmp_path, data=data / source, **changes) == 1
    err = capsys.readouterr().err.strip()
    assert len(err.splitlines()) == 1
    assert message in err
    assert not (tmp_path / CHECKPOINT).exists()


def test_runs_are_not_mixed(data, tmp_path, capsys):
    """Another network, other data, another program in the same folder; two at a time."""
    assert command(data, tmp_path, session=0) == 0
    kept = (tmp_path / CHECKPOINT).read_bytes()
    capsys.readouterr()
    save_library(peptide_library(seed=2), tmp_path / "other.npz", "train")
    for changes, message in (
        ({"depth": 2}, "holds another network (depth 1, not 2)"),
        ({"resolution": 2.9}, "d_min 3.0, not 2.9"),
        ({"recycles": 0}, "recycled True, not False"),
        ({"network": "unet", "patch": None}, "network"),
        ({"data": tmp_path / "other.npz"}, "other data"),
    ):
        assert command(data, tmp_path, **changes) == 1
        err = capsys.readouterr().err.strip()
        assert message in err
        assert len(err.splitlines()) == 1
    with alone(tmp_path):
        assert command(data, tmp_path) == 1
    assert "another training is going on" in capsys.readouterr().err
    assert (tmp_path / CHECKPOINT).read_bytes() == kept
    (tmp_path / CHECKPOINT).write_bytes(b"cut off")
    assert command(data, tmp_path) == 1
    assert "is not a checkpoint" in capsys.readouterr().err


def test_exported_files_are_not_overwritten_unasked(data, tmp_path, capsys):
    for suffix in (".json", ".safetensors"):
        path = tmp_path / f"tiny{suffix}"
        path.write_text("old")
        assert command(data, tmp_path, export="tiny", holdout=data / "holdout.npz") == 1
        assert f"tiny{suffix}: exists already" in capsys.readouterr().err
        assert path.read_text() == "old"
        path.unlink()
    assert not (tmp_path / CHECKPOINT).exists()  # told before an hour of training, not after


def test_a_gpu_that_is_not_there_is_told(data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert command(data, tmp_path / "run", device="cuda") == 1
    assert "no usable CUDA device" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_rate_that_is_too_high_is_told(data, tmp_path, capsys, monkeypatch):
    """The last good checkpoint stays."""
    assert command(data, tmp_path, session=0) == 0
    from ml_phaser.training import one_shot

    real = one_shot.loss_of
    monkeypatch.setattr(one_shot, "loss_of", lambda *given: real(*given) * float("nan"))
    assert command(data, tmp_path) == 1
    assert "diverged" in capsys.readouterr().err
    assert read_checkpoint(tmp_path / CHECKPOINT)["steps"] == 0


def test_help_names_every_option(capsys):
    assert ml_phaser(["train_one_shot", "--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"  {p.name} " in out for p in TABLE)
    assert main([]) == 1
    assert "usage" in capsys.readouterr().err
    assert len({p.name for p in TABLE}) == len(TABLE)
    assert not any(len(line) > 120 for line in out.splitlines())


def test_names_in_any_case_and_with_dashes(data, tmp_path):
    words = itertools.chain.from_iterable((f"--{k.upper()}", str(v)) for k, v in BASE.items())
    assert main(["DATA", str(data / "train.npz"), f"--out={tmp_path}", *words, "--quiet", "session=0"][:-1]) == 0
    assert record(tmp_path)["config"]["patch"] == 5
