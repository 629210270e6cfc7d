"""The run record and program.xml: complete, strict JSON, well-formed XML, whole or absent."""

import dataclasses
import hashlib
import json
import subprocess
import sys
import xml.etree.ElementTree as ET
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sample_outcome import amplitudes, options, outcome

from ml_phaser.crystal.reflections import Source
from ml_phaser.errors import UserError
from ml_phaser.report.program_xml import to_xml, write_xml
from ml_phaser.report.record import json_safe, run_record, unfinished_record, write_json


@pytest.fixture
def record(tmp_path):
    path = tmp_path / "data.mtz"
    path.write_bytes(b"MTZ data")
    data = amplitudes(Source(str(path), "MTZ", ("FP", "SIGFP"), "amplitude"), notes=("a note",))
    return run_record(outcome(data), options(tmp_path, seed=5, resolution=(float("inf"), 1.2)))


def strict(text):
    def refuse(word):
        raise ValueError(word)

    return json.loads(text, parse_constant=refuse)


def test_facts(record):
    assert record["verdict"] == {"word": "solved", "probability": 0.93, "reason": "two trials agree"}
    assert record["source"]["columns"] == ["FP", "SIGFP"]
    assert record["source"]["sha256"] == hashlib.sha256(b"MTZ data").hexdigest()
    assert record["cell"] == [9, 11, 13, 90, 90, 90] and record["spacegroup"] == "P 21 21 21"
    assert record["d_min"] == pytest.approx(1.2, abs=0.01) and record["n_reflections"] == 480
    assert record["completeness"] == 1.0
    assert record["seed"] == 5 and "seed 5" in record["command"] and "resolution inf,1.2" in record["command"]
    assert record["times"] == {"read": 0.1, "phase": 12.5}
    assert [t["method"] for t in record["trials"]] == ["charge flipping", "learned", "learned"]
    assert record["trials"][2]["score"] is None and record["shells"][1]["cc_free"] is None
    assert record["notes"] == ["a note"] and record["weights"]["sha256"] == "ab" * 32
    assert record["outputs"]["mapout"].endswith("pred.map") and record["outputs"]["xmlout"] is None
    assert record["versions"]["numpy"] == np.__version__
    assert record["versions"]["gemmi"] == metadata.version("gemmi")
    assert record["date"].endswith("+00:00")


def test_wilson_without_the_reflections(record):
    wilson = record["wilson"]
    assert wilson["wilson_b"] == 11.25 and wilson["aniso_b"] == [1.0, -0.5, -0.5, 0, 0, 0]
    assert len(wilson["shells"]) == 2 and wilson["shells"][1]["i_over_sigma"] is None
    assert "e" not in wilson and len(json.dumps(record)) < 10000


def test_status_and_what_readers_should_know(record):
    assert record["status"] == "finished" and record["density"] is None and record["n_held"] == 0
    assert record["mean_fom"] == pytest.approx((0.91 * 200 + 0.75 * 600) / 800)
    assert record["warnings"] == ["the data carry no free-R flags; set some aside before refinement (freer 5 does)"]
    assert record["advice"]["do"] and record["advice"]["avoid"]
    assert run_record(outcome(word="uncertain"), options())["advice"] != record["advice"]


def test_wilson_plot_is_that_of_the_data(record):
    """The stand-in's expected intensity is f^2 + 1 in units of E^2 = 1."""
    data = amplitudes()
    for shell in record["wilson"]["shells"]:
        inside = (data.d <= shell["d_max"]) & (data.d >= shell["d_min"])
        wanted = np.log(np.mean((data.f[inside] ** 2 + 1) / data.epsilon[inside]))
        assert shell["ln_mean_i"] == pytest.approx(wanted)


def test_record_of_a_run_without_a_result():
    trials = outcome().trials
    record = unfinished_record(
        options(seed=4), "failed", stage="phase", fraction=0.5, seconds=3.0, trials=trials, best=trials[1], message="no"
    )
    assert strict(json.dumps(record)) == record
    assert (record["status"], record["error"], record["stage"]) == ("failed", {"message": "no"}, "phase")
    assert record["best"]["score"] == 0.86 and len(record["trials"]) == 3 and record["seed"] == 4
    assert "verdict" not in record
    assert set(record["options"]) == {f.name for f in dataclasses.fields(options())}


def test_every_parameter_is_in_the_record(record):
    assert set(record["options"]) == {f.name for f in dataclasses.fields(options())}


def test_written_json_reads_back_as_strict_json(record, tmp_path):
    write_json(tmp_path / "run.json", record)
    assert strict((tmp_path / "run.json").read_text(encoding="utf-8")) == record


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(json_values)
def test_json_safe_makes_strict_json(value):
    safe = json_safe(value)
    assert strict(json.dumps(safe)) == safe


@given(st.dictionaries(st.text(), json_values, max_size=4))
def test_xml_is_always_well_formed_ascii(value):
    text = to_xml(json_safe(value))
    text.decode("ascii")
    assert ET.fromstring(text).tag == "ml_phaser"


def test_numpy_is_understood():
    value = {
        "a": np.float32(0.5),
        "b": np.int64(3),
        "c": np.array([1.0, np.nan]),
        "d": np.bool_(True),
        "p": Path("x"),
    }
    assert json_safe(value) == {"a": 0.5, "b": 3, "c": [1.0, None], "d": True, "p": "x"}
    with pytest.raises(TypeError):
        json_safe(object())


def test_xml_holds_the_same_facts(record, tmp_path):
    write_xml(tmp_path / "program.xml", record)
    root = ET.parse(tmp_path / "program.xml").getroot()
    assert root.findtext("verdict/word") == "solved"
    assert float(root.findtext("verdict/probability")) == 0.93
    assert [c.text for c in root.findall("source/columns/column")] == ["FP", "SIGFP"]
    assert [float(t.findtext("r_work")) for t in root.findall("trials/trial")] == [0.40, 0.15, 0.20]
    assert root.findall("trials/trial")[2].find("score") is None
    assert [float(s.findtext("fom")) for s in root.findall("shells/shell")] == [0.91, 0.75]
    assert root.findtext("free_flags") == "false"


@pytest.mark.parametrize("write", [write_json, write_xml])
def test_unwritable(write, record, tmp_path):
    with pytest.raises(UserError, match="cannot be written"):
        write(tmp_path / "none" / "x", record)


def test_record_needs_no_torch():
    program = "import ml_phaser.report.record, ml_phaser.report.log, sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
