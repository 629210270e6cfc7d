"""The plugin for ccp4i2 as shipped: what is made from the table of parameters, and what holds without ccp4i2."""

import ast
import sys
import xml.etree.ElementTree as ET
from importlib import util
from pathlib import Path

import gemmi
import numpy as np
import pytest

from ml_phaser.errors import UserError
from ml_phaser.parameters import GROUPS, PARAMETERS
from ml_phaser.suites.ccp4i2 import DATA, FIXED, fields, generated, plan
from ml_phaser.suites.install import source

SCRIPT = source("ccp4i2") / "ml_phaser" / "script"
MODULES = sorted((source("ccp4i2") / "ml_phaser").rglob("*.py"))


@pytest.fixture(scope="module")
def contents():
    """Container and name -> element of the definition."""
    root = ET.parse(SCRIPT / "ml_phaser.def.xml").getroot()
    assert root.tag == "{http://www.ccp4.ac.uk/ccp4ns}ccp4i2"
    assert root.findtext("ccp4i2_header/pluginName") == "ml_phaser"
    body = root.find("ccp4i2_body")
    return {(c.get("id"), x.get("id")): x for c in body.findall("container") for x in c.findall("content")}


def load(name):
    """A module of the plugin that needs no ccp4i2."""
    spec = util.spec_from_file_location(name, SCRIPT / f"{name}.py")
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_files_are_those_the_table_gives():
    for name, text in generated().items():
        assert (source("ccp4i2") / name).read_text(encoding="utf-8") == text, f"{name}: python plugins/generate.py"


def test_every_parameter_is_a_field_or_data_or_fixed():
    names = [p.name for p in PARAMETERS]
    in_fields = [f.parameter.name for f in fields()]
    assert set(in_fields) | set(DATA) | set(FIXED) == set(names)
    assert not set(in_fields) & (set(DATA) | set(FIXED)) and not set(DATA) & set(FIXED)


@pytest.mark.parametrize(
    "p", [p for p in PARAMETERS if p.name not in DATA and p.name not in FIXED], ids=lambda p: p.name
)
def test_a_field_says_what_the_table_says(p, contents):
    ids = [p.name.upper()] if p.kind != "resolution" else ["RESOLUTION_LOW", "RESOLUTION_HIGH"]
    for name in ids:
        content = contents["controlParameters", name]
        said = {q.tag: q.text for q in content.find("qualifiers")}
        kind = content.findtext("className")
        wanted = {"int": "CInt", "float": "CFloat", "resolution": "CFloat", "flag": "CBoolean", "output": "CBoolean"}
        assert kind == wanted.get(p.kind, "CString")
        assert said["toolTip"] == p.help and said["guiLabel"].startswith(p.caption) and p.unit in said["guiLabel"]
        if kind == "CBoolean":
            assert said["default"] == "False"
        elif p.default is None:
            assert "default" not in said and said["allowUndefined"] == "True"
        else:
            assert type(p.default)(said["default"]) == p.default
        assert said.get("enumerators", "") == ",".join(p.choices)
        assert ("onlyEnumerators" in said) == bool(p.choices)
        for key, limit in (("min", p.low), ("max", p.high)):
            if (name, key) != ("RESOLUTION_LOW", "max"):  # its upper end is the other limit's
                assert (float(said[key]) if key in said else None) == limit
        assert (content.findtext("qualifiers/expertLevel") == "1") == p.expert
        assert (content.findtext("qualifiers/guiDefinition/expertLevel") == "1") == p.expert


def test_data_objects(contents):
    classes = {key: content.findtext("className") for key, content in contents.items() if key[0] != "controlParameters"}
    assert classes["inputData", "F_SIGF"] == "CObsDataFile" and classes["outputData", "ABCDOUT"] == "CPhsDataFile"
    assert set(DATA.values()) <= {name for _, name in classes}
    needed = [k[1] for k, c in contents.items() if c.findtext("qualifiers/allowUndefined") == "False"]
    assert needed == ["F_SIGF"]
    # as measured: nothing that would have intensities converted
    assert contents["inputData", "F_SIGF"].find("qualifiers/requiredContentFlag") is None


def test_the_table_of_the_wrapper_is_complete():
    table = load("ml_phaser_table")
    ids = [name for _, _, *names in table.KEYWORDS for name in names]
    assert ids == [f.id for f in fields()]
    shown = [(title, name, expert) for title, group in table.GROUPS for name, _, expert in group]
    assert sorted(name for _, name, _ in shown) == sorted(ids)
    of = {f.id: f.parameter for f in fields()}
    assert all(title == GROUPS[of[name].group] and expert == of[name].expert for title, name, expert in shown)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.name)
def test_modules_are_python_39_and_keep_to_themselves(path):
    tree = ast.parse(path.read_text(encoding="ascii"), feature_version=(3, 9))
    allowed = {"core", "ccp4i2", "qtgui", "report", "__future__"} | set(sys.stdlib_module_names)
    for node in ast.walk(tree):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module]
        assert {name.split(".")[0] for name in names} <= allowed
        assert not isinstance(node, ast.Call) or getattr(node.func, "id", "") != "print"


@pytest.mark.parametrize("last", [True, False])
def test_free_flags_are_found_in_an_mtz(tmp_path, last):
    files, path = load("ml_phaser_files"), tmp_path / "a.mtz"
    mtz = gemmi.Mtz(with_base=True)
    mtz.set_cell_for_all(gemmi.UnitCell(5, 6, 7, 90, 90, 90))
    mtz.spacegroup = gemmi.SpaceGroup("P 1")
    mtz.add_dataset("d")
    labels = [("F", "F"), ("M_ISYM", "I"), ("FreeR_flag", "I")]
    for label, kind in labels if last else labels[:2]:
        mtz.add_column(label, kind)
    mtz.set_data(np.ones((3, len(mtz.columns)), dtype=np.float32))
    mtz.write_to_file(str(path))
    assert files.free_column(path) == ("FreeR_flag" if last else "")


def test_why_a_run_failed(tmp_path):
    files = load("ml_phaser_files")
    assert files.why_failed(tmp_path) == ""
    (tmp_path / "log.txt").write_text(" Command: ml_phaser hklin a\n ml_phaser:  Normal termination\nTimes: User:\n")
    assert files.why_failed(tmp_path) == ""
    (tmp_path / "stderr.txt").write_text("ml_phaser: a.mtz: no such file. Try: b.mtz\n")
    assert files.why_failed(tmp_path) == "a.mtz: no such file. Try: b.mtz"
    (tmp_path / "program.xml").write_text("<ml_phaser><error><message>interrupted</message></error></ml_phaser>")
    assert files.why_failed(tmp_path) == "interrupted"
    (tmp_path / "program.xml").write_text("<ml_phaser><err")
    assert files.why_failed(tmp_path) == "a.mtz: no such file. Try: b.mtz"


def a_suite(folder: Path, *names: str) -> Path:
    (folder / "wrappers").mkdir(parents=True)
    (folder / "core").mkdir()
    for name in names:
        (folder / name).write_text("TASKS = {}\n")
    return folder


def test_plan_for_either_release(tmp_path):
    new = plan(a_suite(tmp_path / "new", "core/tasks.py"))
    old = plan(a_suite(tmp_path / "old", "core/CCP4TaskManager.py"))
    assert set(new.files) == set(old.files) and "wrappers/ml_phaser/script/ml_phaser.def.xml" in new.files
    assert set(new.blocks) == {"core/tasks.py"} and not old.blocks
    ast.parse(new.blocks["core/tasks.py"])
    assert any("buildCaches" in said for said in old.said)


def test_plan_for_anything_else(tmp_path):
    (tmp_path / "wrappers").mkdir()
    with pytest.raises(UserError, match="is no ccp4i2"):
        plan(tmp_path)
