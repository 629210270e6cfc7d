"""program.xml while a run lasts: whole at any moment, seldom written, left alone once it is final."""

import dataclasses
import xml.etree.ElementTree as ET

import pytest
from sample_outcome import options, outcome

from ml_phaser.report.live import Live, write_records


class Clock:
    """Time that goes on only when told."""

    def __init__(self):
        self.time = 100.0

    def __call__(self):
        return self.time


class Listener:
    def __init__(self):
        self.heard = []

    def say(self, text):
        self.heard.append(text)

    def stage(self, name):
        self.heard.append(name)

    def progress(self, fraction, best, trials=()):
        self.heard.append((fraction, best, len(trials)))


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def live(tmp_path, clock):
    return Live(options(tmp_path), tmp_path / "program.xml", now=clock)


def facts(path):
    root = ET.parse(path).getroot()
    assert root.tag == "ml_phaser"
    return {name: root.findtext(name) for name in ("status", "stage", "progress")} | {
        "trials": [t.findtext("method") for t in root.findall("trials/trial")],
        "best": root.findtext("best/score"),
    }


def test_it_tells_of_stage_progress_and_trials(live, clock, tmp_path):
    trials = outcome().trials
    live.stage("phase")
    assert facts(tmp_path / "program.xml") == {
        "status": "running", "stage": "phase", "progress": "0", "trials": [], "best": None,
    }  # fmt: skip
    clock.time += 2
    live.progress(0.25, trials[1], trials)
    assert facts(tmp_path / "program.xml") == {
        "status": "running", "stage": "phase", "progress": "0.25", "best": "0.86",
        "trials": ["charge flipping", "learned", "learned"],
    }  # fmt: skip


def test_starts_without_a_cycle_are_left_out(live, tmp_path):
    trials = [dataclasses.replace(t, cycles=0) if t.index else t for t in outcome().trials]
    live.progress(0.5, None, trials)
    live.stage("weigh")
    assert len(facts(tmp_path / "program.xml")["trials"]) == 1


def test_at_most_once_a_second_but_at_each_stage(live, clock, tmp_path):
    live.stage("phase")
    clock.time += 0.9
    live.progress(0.1, None)
    assert facts(tmp_path / "program.xml")["progress"] == "0"
    clock.time += 0.2
    live.progress(0.2, None)
    assert facts(tmp_path / "program.xml")["progress"] == "0.2"
    live.progress(0.3, None)
    live.stage("weigh")
    assert facts(tmp_path / "program.xml") | {"progress": "0.3", "stage": "weigh"} == facts(tmp_path / "program.xml")


def test_slow_writing_is_done_more_seldom(live, clock, tmp_path, monkeypatch):
    from ml_phaser.report import program_xml

    quick = program_xml.write_xml

    def slow(path, record):
        clock.time += 3
        quick(path, record)

    monkeypatch.setattr(program_xml, "write_xml", slow)
    live.progress(0.1, None)
    clock.time += 100  # of which 3 are two hundredths only after 150
    live.progress(0.2, None)
    assert facts(tmp_path / "program.xml")["progress"] == "0.1"
    clock.time += 51
    live.progress(0.3, None)
    assert facts(tmp_path / "program.xml")["progress"] == "0.3"


def test_progress_never_goes_back(live):
    for fraction in (0.4, 0.2, 1.7):
        live.progress(fraction, None)
    assert live.record("running")["progress"] == 1.0


def test_the_final_file_is_left_alone(live, tmp_path):
    live.stage("write")
    (tmp_path / "final").write_text("<ml_phaser><status>finished</status></ml_phaser>")
    (tmp_path / "final").replace(tmp_path / "program.xml")
    live.stage("then")
    assert facts(tmp_path / "program.xml")["status"] == "finished"


def test_what_it_hears_is_passed_on(live):
    live.listener = listener = Listener()
    best = outcome().trials[1]
    live.say("a word")
    live.stage("phase")
    live.progress(0.5, best, outcome().trials)
    assert listener.heard == ["a word", "phase", (0.5, best, 3)]


def test_without_a_file_and_with_one_that_cannot_be(tmp_path, clock):
    Live(options(tmp_path), None, now=clock).stage("phase")
    Live(options(tmp_path), tmp_path / "none" / "program.xml", now=clock).stage("phase")
    assert list(tmp_path.iterdir()) == []


def test_a_device_gets_no_unfinished_versions(tmp_path, clock, monkeypatch):
    from ml_phaser.report import program_xml

    monkeypatch.setattr(program_xml, "write_xml", lambda *_: pytest.fail("written to a device"))
    Live(options(tmp_path), type(tmp_path)("/dev/null"), now=clock).stage("phase")


def test_records_of_a_failure(live, tmp_path):
    live.stage("read")
    record = live.record("failed", "data.mtz: three reflections only. Try: more data")
    write_records({"xmlout": tmp_path / "a.xml", "jsonout": tmp_path / "none" / "a.json"}, record)
    root = ET.parse(tmp_path / "a.xml").getroot()
    assert root.findtext("error/message") == record["error"]["message"] and root.findtext("stage") == "read"
    assert {p.name for p in tmp_path.iterdir()} == {"program.xml", "a.xml"}
