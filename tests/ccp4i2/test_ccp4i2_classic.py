"""The task in the classic Qt release; CCP4I2_CLASSIC names its sources (ccp4/ccp4i2, branch main)."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from i2_fields import EXAMPLE, check_every_field, other
from i2_records import SAID, THEN_FAILED, finished

from ml_phaser.cli.arguments import options_from, parse_command_line
from ml_phaser.suites.ccp4i2 import fields, plan
from ml_phaser.suites.install import install

pytestmark = pytest.mark.ccp4i2
PARTS = ("core", "report", "utils", "wrappers", "dbapi", "pimple", "smartie", "__init__.py", "VERSION", "data")


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """What the classic classes answer to everything these tests ask; one process."""
    sources = os.environ.get("CCP4I2_CLASSIC")
    if not sources:
        pytest.skip("CCP4I2_CLASSIC names no sources of the classic ccp4i2")
    if importlib.util.find_spec("lxml") is None:
        pytest.skip("the classic ccp4i2 needs lxml")
    folder, work = tmp_path_factory.mktemp("classic"), tmp_path_factory.mktemp("job")
    for name in PARTS:
        part = Path(sources) / name
        if part.is_dir():
            shutil.copytree(part, folder / name, symlinks=True)
        elif part.exists():
            shutil.copy(part, folder / name)
    install("ccp4i2", plan(folder), folder)
    asked = {
        "work": str(work),
        "commands": [[None, None], *([f.id, other(f)] for f in fields())],
        "ending": [finished(), str(EXAMPLE)],
        "next_failed": finished(then=THEN_FAILED),
        "reports": [[text, status, str(work)] for text, status, _, _ in SAID.values()],
    }
    script = Path(__file__).with_name("classic_process.py")
    done = subprocess.run(
        [sys.executable, str(script), str(folder)],
        input=json.dumps(asked), capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


def test_the_definition_loads_without_complaint(answers):
    definition = answers["definition"]
    assert definition["complaints"].strip() == ""
    assert list(definition["fields"]) == [f.id for f in fields()]
    for field in fields():
        kind, value, label, level = definition["fields"][field.id]
        default = False if field.kind == "CBoolean" else field.parameter.default
        assert kind == field.kind and label == field.label and (level == "1") == field.parameter.expert
        assert value == (None if default is None else str(default))


def test_every_field_changes_its_option_and_no_other(answers, tmp_path):
    asked = [None, *(f.id for f in fields())]
    lines = dict(zip(asked, answers["commands"], strict=True))
    check_every_field(lambda field, _: lines[field], tmp_path)


def test_the_labels_are_those_ccp4i2_gives(answers):
    given = options_from(parse_command_line(answers["commands"][0]))
    assert given.labin == answers["definition"]["labels"] == "F_SIGF_F,F_SIGF_SIGF"
    assert given.hklin.name == "hklin.mtz" and given.mapout.name == "MAPOUT.map" and given.xmlout.name == "program.xml"


def test_a_piece_to_place(answers):
    given = options_from(parse_command_line(answers["piece"]))
    assert given.xyzin.name == "piece.pdb" and given.xyzout.name == "XYZOUT.pdb"
    assert options_from(parse_command_line(answers["commands"][0])).xyzin is None


def test_a_next_program_that_fails_takes_no_phases_away(answers):
    recorded, not_started, not_phased = answers["next_failed"]
    assert recorded[0] == not_started[0] == 0 and not_phased[0] != 0
    told = "The phases are there; the next program failed: "
    assert f"{told}shelxe, exit status 3. no trace of a chain was saved" in recorded[1]
    assert f"{told}shelxe cannot be started" in not_started[1]
    assert told not in not_phased[1] and "ml_phaser stopped and said why" in not_phased[1]


def test_what_becomes_of_the_programs_files(answers):
    ending = answers["ending"]
    assert ending["status"] == 0
    assert ending["split"][:2] == [["ABCDOUT", "FPHIOUT", "FREEROUT"], ["HLA,HLB,HLC,HLD", "FWT,PHWT", "FreeR_flag"]]
    assert ending["figures"] == [0.6, 0.74, "solved, P = 0.97"] and "solved, P = 0.97" in ending["phases"]
    assert "ml_phaser stopped and said why: a.mtz: no such file" in ending["stopped"]


@pytest.mark.parametrize("state", SAID)
def test_what_the_report_says(answers, state):
    words = answers["reports"][list(SAID).index(state)]
    _, _, wanted, unwanted = SAID[state]
    assert all(phrase in words for phrase in wanted), words
    assert not any(phrase in words for phrase in unwanted), words


def test_the_window_shows_every_field_once(answers):
    window = answers["window"]
    shown = [line[line.index("widget") + 1] for line in window["lines"] if "widget" in line]
    data = ["F_SIGF", "FREERFLAG", "ABCD", "XYZIN", "ASUIN"]
    assert sorted(shown) == sorted([*data, *(f.id for f in fields())])
    assert len(window["folders"]) == 2
    steps = [step if isinstance(step, str) else step[0] for step in window["next"]]
    sources = Path(os.environ["CCP4I2_CLASSIC"])
    assert {"modelcraft", "parrot", "buccaneer_build_refine_mr", "shelxeMR"} <= set(steps)
    for step in steps:
        assert any((sources / kind / step).is_dir() for kind in ("wrappers", "pipelines")), step


def test_the_task_is_found(answers):
    found = answers["discovered"]
    folder = "wrappers.ml_phaser.script"
    assert "ml_phaser" in found[f"{folder}.ml_phaser"] and "ml_phaser_report" in found[f"{folder}.ml_phaser_report"]
