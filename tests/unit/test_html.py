"""The report's pages: the record's facts, nothing from elsewhere, and no stumbling over what is missing."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest
from sample_outcome import amplitudes, options, outcome

from ml_phaser.crystal.maps import distribution
from ml_phaser.crystal.reflections import Source
from ml_phaser.errors import UserError
from ml_phaser.outcome import Given, NextStep
from ml_phaser.report.html import number, to_html, write_html
from ml_phaser.report.live import Live
from ml_phaser.report.pictures import Picture
from ml_phaser.report.record import run_record

VOID = {"meta", "br", "img", "hr", "input", "link"}
NASTY = "<b>&\"'</b> $x^2$ {{ 7 * 7 }}.mtz"


class Page(HTMLParser):
    """Text, elements and attributes of a page; checks that every element is closed where it should be."""

    def __init__(self, text):
        super().__init__()
        self.open, self.words, self.elements = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def page(record, pictures=()):
    return Page(to_html(record, pictures))


def record(**more):
    return run_record(outcome(**more), options())


def test_the_verdict_comes_first():
    text = page(record(word="solved", held=174, best=1)).text
    order = [
        "Solved",
        "0.93",
        "two trials agree",
        "What to do",
        "What not to do",
        "Key numbers",
        "Mean figure of merit",
    ]
    order += ["Choices made for you", "Times", "To repeat this run", "Versions", "Please cite"]
    places = [text.index(word, text.index("Solved")) for word in order]
    assert places == sorted(places)
    assert "0.860 (174 reflections)" in text and "2 of 3, learned" in text and "0.790" in text


@pytest.mark.parametrize("word", ["solved", "uncertain", "not solved"])
def test_verdicts_differ_in_word_sign_and_advice(word):
    facts = record(word=word)
    seen = page(facts)
    assert word.capitalize() in seen.text
    for said in facts["advice"]["do"] + facts["advice"]["avoid"] + facts["warnings"]:
        assert said in seen.text
    signs = {
        page(record(word=w)).text.split(w.capitalize())[-2].split()[-1] for w in ("solved", "uncertain", "not solved")
    }
    assert len(signs) == 3


def test_nothing_in_names_is_taken_for_markup():
    data = amplitudes(
        Source(NASTY, "MTZ", ("F<1>", "SIG&F"), "amplitude"), notes=("Is a < b & c? To change: labin <x>.",)
    )
    facts = run_record(outcome(data), options())
    seen = page(facts)
    assert NASTY in seen.text and "F<1>, SIG&F" in seen.text and "Is a < b & c?" in seen.text
    assert "b" not in {tag for tag, _ in seen.elements}
    assert ("code", {}) in seen.elements and "labin <x>" in seen.text and "To change: labin" not in seen.text


def test_nothing_is_loaded_from_anywhere():
    text = to_html(record())
    seen = Page(text)
    assert not [a for _, a in seen.elements if {"src", "href", "action"} & set(a)]
    assert "url(" not in text and "@import" not in text and "<script" not in text
    policy = next(a["content"] for _, a in seen.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")


@pytest.mark.parametrize(
    "missing",
    [
        {"wilson": None}, {"shells": ()}, {"trials": (), "shells": ()}, {"choices": ()}, {"times": {}}, {"weights": {}},
        {"data": None}, {"density": None}, {"wilson": None, "shells": (), "trials": (), "choices": ()},
    ],
    ids=lambda m: ", ".join(m),
)  # fmt: skip
def test_missing_parts_leave_no_holes(missing):
    facts = record(**missing)
    seen = page(facts)
    assert not re.search(r"\b(None|nan|NaN|inf|Undefined)\b", seen.text)
    assert "Solved" in seen.text


def test_scores_that_are_no_numbers():
    facts = record()
    assert facts["trials"][2]["score"] is None
    facts["verdict"]["probability"] = facts["mean_fom"] = None
    text = page(facts).text
    assert "not known" in text and "The 2 highest of 3 starts" in text


def test_next_steps_phases_given_and_what_followed():
    step = NextStep(
        "modelcraft", "builds a protein model", "modelcraft xray --data pred.mtz", ("a sequence: seqin FILE",)
    )
    facts = record(next_steps=(step,), given=Given(400, 0.71, 32.0, 0.83, 0.9, 0.2, False))
    facts["then"] = {"program": "shelxe", "command": "shelxe x.phi", "exit_code": 1, "seconds": 3.0, "log": "x.log",
                     "summary": "it failed"}  # fmt: skip
    text = page(facts).text
    said = ["modelcraft: builds a protein model", "modelcraft xray --data pred.mtz", "a sequence: seqin FILE"]
    said += ["was not found", "0.71", "32°", "0.83", "What followed: shelxe", "Exit code 1", "it failed"]
    for part in said:
        assert part in text


def test_defaults_tell_which_option_changes_them():
    facts = run_record(outcome(), options(seed=5))
    text = page(facts).text
    assert "timelimit 240 s" in text and "device auto: cpu" in text and "seed 0" not in text


def test_pictures_stand_where_they_belong():
    pictures = [Picture(f"<svg id='{g}'></svg>", "alt", f"caption & {g}", g) for g in ("statistics", "density")]
    text = to_html(record(density=distribution(np.arange(8.0).reshape(2, 2, 2))), pictures)
    assert text.index("<svg id='density'>") < text.index("<svg id='statistics'>")
    assert "caption &amp; density" in text


@pytest.mark.parametrize(
    ("status", "message", "parts"),
    [
        (
            "failed",
            "data.mtz: <3 reflections. Try: more data",
            ("Run failed", "data.mtz: <3 reflections.", "more data"),
        ),
        ("failed", "not enough memory", ("Run failed", "not enough memory")),
        ("interrupted", None, ("Run interrupted", "the same command again")),
    ],
)
def test_runs_without_a_result(status, message, parts):
    live = Live(options())
    live.stage("phase")
    live.progress(0.5, outcome().trials[1], outcome().trials)
    text = page(live.record(status, message)).text
    for part in (*parts, "50 %", "Starts 3", "0.860, learned", "ml_phaser hklin data.mtz"):
        assert part in text
    assert "There is no map" in text and "Solved" not in text


def test_written_whole_or_not(tmp_path):
    write_html(tmp_path / "run.html", record())
    assert "two trials agree" in Page((tmp_path / "run.html").read_text(encoding="utf-8")).text
    with pytest.raises(UserError, match="cannot be written"):
        write_html(tmp_path / "none" / "run.html", record())


def test_numbers_in_words():
    assert [number(x) for x in (None, float("nan"), 0.256, 3)] == ["not known", "not known", "0.26", "3.00"]
