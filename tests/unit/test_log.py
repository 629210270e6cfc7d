"""The log: the frame CCP4's tools look for, tables with the outcome's numbers, a verdict nobody misses."""

import dataclasses
import datetime
import re

import numpy as np
import pytest
from sample_outcome import amplitudes, options, outcome

from ml_phaser.outcome import Verdict
from ml_phaser.report import log

NOW = datetime.datetime(2026, 11, 20, 9, 15, 1)


def test_banner_has_the_shape_parsers_want():
    lines = log.banner("0.1.0", "mo", NOW).splitlines()
    assert lines[0] == lines[1] == lines[2] == lines[4] == " " + "#" * 63
    assert re.fullmatch(r" ### CCP4 9\.0: ml_phaser +version 0\.1\.0 +: 20/11/26##", lines[3])
    assert len(lines[3]) == 64
    assert lines[5] == " User: mo  Run date: 20/11/2026 Run time: 09:15:01"


def test_last_lines_match_the_log_parser_of_ccp4():
    # the message must stand on the line before "Times: User: ", or log parsers do not see the program's end
    expression = r" (\w+): +(.+)\nTimes: User: +([\d.]+)s System: +([\d.]+)s Elapsed: +([\d:]+)"
    for message in ("Normal termination", "hklin x.mtz: no such file. Try: check the spelling"):
        found = re.fullmatch(expression, log.ending(message, 1.04, 0.1, 67.9))
        assert found is not None and found.groups() == ("ml_phaser", message, "1.0", "0.1", "1:07")


def test_keywords_are_echoed():
    assert log.data_lines(["SEED 3", "END"]) == " Data line--- SEED 3\n Data line--- END\n"
    assert log.data_lines([]) == ""


def sections(table):
    parts = table.split("$$")
    assert len(parts) == 5 and parts[4] == ""
    columns, rows = parts[1].split(), [line.split() for line in parts[3].strip().splitlines()]
    assert all(len(row) == len(columns) for row in rows)
    for which in re.findall(r":A:([\d,]+):", parts[0]):
        assert all(1 <= int(i) <= len(columns) for i in which.split(","))
    return parts[0], columns, rows


def test_fom_table():
    head, columns, rows = sections(log.fom_table(outcome()))
    assert head.startswith("$TABLE: FOM by resolution :\n$GRAPHS\n:")
    got = [dict(zip(columns, row, strict=True)) for row in rows]
    assert [(float(r["d_min"]), int(r["N_refl"]), float(r["FOM"])) for r in got] == [
        (2, 200, 0.91),
        (1.2, 600, 0.75),
    ]
    assert float(got[0]["1/d^2"]) == pytest.approx(0.25)
    assert (got[0]["CC_free"], got[1]["CC_free"]) == ("0.8800", "-")


def test_trials_are_ranked_and_unscored_ones_last():
    _, columns, rows = sections(log.trials_table(outcome().trials))
    got = [dict(zip(columns, row, strict=True)) for row in rows]
    assert [r["Trial"] for r in got] == ["1", "0", "2"]
    assert got[1]["Method"] == "charge_flipping" and got[2]["CC_free"] == "-"


def test_wilson_table_is_of_the_data():
    data = amplitudes()
    result = outcome(data)
    wilson = dataclasses.replace(result.wilson, e2=data.f**2, expected=np.ones(len(data)))
    _, columns, rows = sections(log.wilson_table(data, wilson))
    low = data.d >= 2.0
    mean = np.log(np.mean(data.f[low] ** 2 / data.epsilon[low]))
    assert float(rows[0][columns.index("ln_mean_I")]) == pytest.approx(mean, abs=1e-3)
    assert rows[1][columns.index("I/sigma")] == "-"


def test_data_summary_names_columns_cell_group_and_range():
    text = log.report(outcome(), options())
    for part in (
        "F, SIGF",
        "9.000 11.000 13.000 90.000",
        "P 21 21 21 (number 19)",
        "1.20 A",
        "100.0 %",
        "11.25 A^2",
    ):
        assert part in text, part
    assert "the sole amplitude column F was used" in text


@pytest.mark.parametrize(("word", "warned"), [("solved", False), ("uncertain", True), ("not solved", True)])
def test_verdict_and_its_warning(word, warned):
    text = log.report(outcome(word=word, data=amplitudes(free=np.zeros(480, dtype=np.int32))), options())
    assert f"Verdict: {word.upper()} (probability 0.93" in text and "two trials agree" in text
    assert ("$TEXT:Warning: $$ comment $$" in text) is warned


def test_warning_blocks_are_closed():
    head, junk, message, rest = log.warning_block("costs $$ 5").split("$$")
    assert head == "$TEXT:Warning: " and junk.strip() == "comment" and "costs    5" in message and rest == ""


def test_missing_free_flags_and_gaps_are_warned_of():
    data = amplitudes()
    part = dataclasses.replace(data, hkl=data.hkl[::2], f=data.f[::2], sigf=data.sigf[::2])
    found = log.warnings(outcome(part))
    assert any("free-R" in w for w in found) and any("complete" in w for w in found)


def test_mean_fom_is_weighted_by_reflections():
    assert f"figure of merit: {(200 * 0.91 + 600 * 0.75) / 800:.3f}" in log.verdict(outcome())


def test_an_outcome_without_trials_or_shells_still_has_a_verdict():
    bare = outcome(trials=(), shells=(), wilson=None, verdict=Verdict("not solved", 0.0, ""))
    text = log.report(bare, options())
    assert "NOT SOLVED" in text and "$TABLE" not in text


@pytest.mark.parametrize("method", ["charge flipping", "heavy atoms, 10 sites"])
def test_what_the_best_trial_began_with_is_cited(method):
    done = outcome()
    trials = tuple(dataclasses.replace(t, method=method) if t.index == done.best else t for t in done.trials)
    other = tuple(dataclasses.replace(t, method="heavy atoms, 8 sites") for t in done.trials if t.index != done.best)
    text = log.report(dataclasses.replace(done, trials=(*trials, *other)), options())
    assert ("Schneider & Sheldrick (2002)" in text) == method.startswith("heavy atoms")
    assert "Elser (2003)" in text and "Oszlanyi & Suto" in text


def test_the_log_is_plain_ascii():
    log.report(outcome(), options()).encode("ascii")
