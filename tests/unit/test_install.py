"""Putting a plugin into a folder and out of it: every other byte stays."""

import json
import os

import pytest

from ml_phaser.cli import main
from ml_phaser.errors import UserError
from ml_phaser.suites.install import Plugin, install, manifest_path, shipped, source, uninstall

PLUGIN = Plugin(
    {"wrappers/ours/__init__.py": b"", "wrappers/ours/deep/a.py": b"A = 1\n", "bin/run": b"#!/bin/sh\n"},
    {"core/tasks.py": 'TASKS["ours"] = 1'},
    ("now do this",),
)


@pytest.fixture(params=["TASKS = {}\n", "TASKS = {}"])
def suite(tmp_path, request):
    (tmp_path / "core").mkdir()
    (tmp_path / "core" / "tasks.py").write_text(request.param)
    (tmp_path / "core" / "tasks.py").chmod(0o640)
    (tmp_path / "wrappers" / "theirs").mkdir(parents=True)
    (tmp_path / "wrappers" / "theirs" / "b.py").write_text("B = 1\n")
    return tmp_path


def tree(folder):
    return {
        str(p.relative_to(folder)): (p.stat().st_mode, None if p.is_dir() else p.read_bytes())
        for p in folder.rglob("*")
    }


def test_out_again_leaves_every_byte(suite):
    before = tree(suite)
    said = install("s", PLUGIN, suite)
    assert said == (f"3 files put into {suite}", "now do this")
    assert (suite / "wrappers/ours/deep/a.py").read_bytes() == b"A = 1\n"
    assert os.access(suite / "bin/run", os.X_OK) and not os.access(suite / "wrappers/ours/deep/a.py", os.X_OK)
    names: dict = {}
    exec((suite / "core/tasks.py").read_text(), names)
    assert names["TASKS"] == {"ours": 1}
    cache = suite / "wrappers/ours/deep/__pycache__"
    cache.mkdir()
    (cache / "a.cpython-311.pyc").write_bytes(b"compiled by use")
    uninstall("s", suite)
    assert tree(suite) == before


def test_twice_is_once(suite):
    install("s", PLUGIN, suite)
    once = tree(suite)
    install("s", PLUGIN, suite)
    assert tree(suite) == once


def test_newer_one_takes_the_place_of_an_older(suite):
    before = tree(suite)
    install("s", PLUGIN, suite)
    install("s", Plugin({"wrappers/ours/new.py": b"N = 1\n"}), suite)
    assert not (suite / "wrappers/ours/deep").exists() and (suite / "wrappers/ours/new.py").exists()
    assert (suite / "core/tasks.py").read_bytes() == before["core/tasks.py"][1]
    uninstall("s", suite)
    assert tree(suite) == before


def test_what_somebody_else_put_there_stays(suite):
    (suite / "wrappers/ours").mkdir()
    (suite / "wrappers/ours/__init__.py").write_text("theirs")
    before = tree(suite)
    with pytest.raises(UserError, match="not from ml_phaser"):
        install("s", PLUGIN, suite)
    assert tree(suite) == before


def test_changed_files_are_left_and_named(suite):
    install("s", PLUGIN, suite)
    (suite / "wrappers/ours/deep/a.py").write_text("A = 2\n")
    (suite / "wrappers/ours/mine.txt").write_text("mine")
    said = uninstall("s", suite)
    assert any("a.py was changed" in s for s in said)
    assert (suite / "wrappers/ours/deep/a.py").read_text() == "A = 2\n" and (suite / "wrappers/ours/mine.txt").exists()
    assert not (suite / "wrappers/ours/__init__.py").exists() and not manifest_path("s", suite).exists()


def test_a_suite_replaced_by_an_update(suite):
    install("s", PLUGIN, suite)
    (suite / "core/tasks.py").write_text("TASKS = {'more': 2}\n")
    assert uninstall("s", suite) == (f"3 files taken out of {suite}",)
    assert (suite / "core/tasks.py").read_text() == "TASKS = {'more': 2}\n"


def test_lines_somebody_edited_are_left_and_named(suite):
    install("s", PLUGIN, suite)
    tasks = suite / "core/tasks.py"
    tasks.write_text(tasks.read_text().replace('"ours"', '"hours"'))
    assert any("our lines were changed" in s for s in uninstall("s", suite))
    assert "hours" in tasks.read_text()


def test_lines_added_after_ours_stay(suite):
    install("s", PLUGIN, suite)
    tasks = suite / "core/tasks.py"
    tasks.write_text(tasks.read_text() + "MORE = 1\n")
    uninstall("s", suite)
    assert tasks.read_text() == "TASKS = {}\nMORE = 1\n"


def test_failure_half_way_leaves_all_as_before(suite, monkeypatch):
    before = tree(suite)
    from ml_phaser.suites import install as module

    written = []

    def write(path, content, real=module._write):
        written.append(path)
        if path.name == "run":
            raise UserError("disk full", str(path))
        real(path, content)

    monkeypatch.setattr(module, "_write", write)
    with pytest.raises(UserError, match="disk full"):
        install("s", PLUGIN, suite)
    assert len(written) > 2 and tree(suite) == before


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"version": 1}'])
def test_broken_manifest(suite, content):
    manifest_path("s", suite).write_text(content)
    with pytest.raises(UserError, match="cannot be read"):
        uninstall("s", suite)


def test_nothing_to_take_out(suite):
    with pytest.raises(UserError, match="is installed there"):
        uninstall("s", suite)


def test_a_block_without_its_file(suite):
    before = tree(suite)
    with pytest.raises(UserError, match="no such file"):
        install("s", Plugin({"x.py": b""}, {"core/nothing.py": "1"}), suite)
    assert tree(suite) == before


@pytest.mark.parametrize("name", ["ccp4i2", "phenix"])
def test_plugins_are_shipped(name):
    assert source(name).is_dir() and shipped(name)
    assert not any("__pycache__" in path for path in shipped(name))
    with pytest.raises(UserError, match="not part of"):
        source("coot")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["install"], "usage"),
        (["install", "coot", "prefix", "."], '"coot"|coot'),
        (["install", "ccp4i2"], "folder of the suite is missing"),
        (["install", "prefix", "."], "suite is missing"),
        (["install", "ccp4i2", "prefix"], "has no value"),
        (["install", "ccp4i2", "--prefix=/no/such/folder"], "no such folder"),
        (["uninstall", "phenix", "prefix", "."], "is installed there"),
        (["uninstall", "phenix", "prefix", ".", "PREFIX", "."], "given twice"),
    ],
)
def test_command_line(words, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code = main(words)
    out, err = capsys.readouterr()
    if words == ["install"]:
        assert code == 0 and said in out
    else:
        assert code == 1 and len(err.splitlines()) == 1
        assert any(s in err for s in said.split("|")), err


@pytest.mark.parametrize("suite_name", ["ccp4i2", "phenix"])
def test_a_folder_that_is_no_suite(suite_name, tmp_path, capsys):
    (tmp_path / "readme.txt").write_text("x")
    assert main(["install", suite_name, "prefix", str(tmp_path)]) == 1
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1 and "Traceback" not in err and "bug" not in err
    assert [p.name for p in tmp_path.iterdir()] == ["readme.txt"]


def test_manifest_is_plain_json(suite):
    install("s", PLUGIN, suite)
    record = json.loads(manifest_path("s", suite).read_text())
    assert sorted(record["files"]) == sorted(PLUGIN.files) and record["folders"] == [
        "bin", "wrappers/ours", "wrappers/ours/deep",
    ]  # fmt: skip
