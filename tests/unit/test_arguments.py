"""Command line and keywords become options; whatever is wrong is said in one line."""

import contextlib
import dataclasses
import math
import os
import shlex
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ml_phaser.cli.arguments import (
    check_files,
    find_parameter,
    keyword_lines,
    options_from,
    parse_command_line,
    parse_keywords,
    read_standard_input,
    understand,
)
from ml_phaser.errors import UserError
from ml_phaser.parameters import PARAMETERS, Options
from ml_phaser.report.record import command

FILES = ["hklin", "data.mtz", "mapout", "pred.map"]


def options(*words):
    return options_from(parse_command_line([*FILES, *words]))


def refusal(*words):
    with pytest.raises(UserError) as caught:
        options(*words)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_table_and_options_name_the_same_things():
    fields = {f.name: f for f in dataclasses.fields(Options)}
    assert {p.name for p in PARAMETERS} == set(fields)
    for p in PARAMETERS:
        if fields[p.name].default is not dataclasses.MISSING:
            assert fields[p.name].default == p.default


def test_every_parameter_differs_in_its_first_four_letters_but_for_those_about_seeds():
    others = [p.name for p in PARAMETERS if not p.name.startswith("seed")]
    assert len({name[:4] for name in ["seed", *others]}) == len(others) + 1


@pytest.mark.parametrize("keyword", [True, False])
def test_words_about_seeds_are_told_apart_by_as_many_letters_as_it_takes(keyword):
    def meant(word):
        found = find_parameter(word, keyword=keyword)
        return found and found.name

    assert [meant(w) for w in ("SEED", "seedi", "SEEDO", "seedb", "seedfr", "SEED-FORM", "seedm", "seedcount")] == [
        "seed", "seedin", "seedout", "seedbins", "seedfraction", "seedformat", "seedmin", "seedcount",
    ]  # fmt: skip
    assert meant("seedf") is None and meant("seedx") is None and meant("seeds") is None


@pytest.mark.parametrize(
    "words",
    [
        ["hklin", "a.mtz", "MAPOUT", "b.map"],
        ["HKLIN", "a.mtz", "mapout", "b.map"],
        ["--hklin", "a.mtz", "--mapout", "b.map"],
        ["--HKLIN=a.mtz", "--mapout=b.map"],
        ["hklin=a.mtz", "--map-out", "b.map"],
        ["-hklin", "a.mtz", "MapOut=b.map"],
        ["mapout", "b.map", "hklin", "a.mtz"],
    ],
)
def test_spellings(words):
    assert parse_command_line(words) == {"hklin": "a.mtz", "mapout": "b.map"}


# every parameter, given both ways, must reach its field with the value meant
VALUES = {
    "hklin": ("x.cif", "x.cif"),
    "mapout": ("m.ccp4", "m.ccp4"),
    "hklout": ("o.mtz", "o.mtz"),
    "pattout": ("p.map", "p.map"),
    "jsonout": ("r.json", "r.json"),
    "xmlout": ("program.xml", "program.xml"),
    "reportout": ("report.html", "report.html"),
    "labin": ("FP=F SIGFP=SIGF", "FP=F SIGFP=SIGF"),
    "phasein": ("mir.mtz", "mir.mtz"),
    "labphase": ("PHIB=PHI FOM=W", "PHIB=PHI FOM=W"),
    "starts": ("Fragments", "fragments"),
    "xyzin": ("helix.pdb", "helix.pdb"),
    "xyzout": ("placed.cif", "placed.cif"),
    "resolution": ("20 1.2", (20.0, 1.2)),
    "spacegroup": ("P 21 21 21", "P 21 21 21"),
    "cell": ("10 11 12 90 95.5 90", (10.0, 11.0, 12.0, 90.0, 95.5, 90.0)),
    "trials": ("7", 7),
    "timelimit": ("33.5", 33.5),
    "engine": ("Classical", "classical"),
    "hand": ("Keep", "keep"),
    "mapextent": ("asu", "asu"),
    "seed": ("3", 3),
    "freer": ("5", 5.0),
    "seqin": ("s.pir", "s.pir"),
    "shelxout": ("x.phi", "x.phi"),
    "seedin": ("seeds.csv", "seeds.csv"),
    "seedhold": ("40", 40),
    "seedout": ("seeds.phs", "seeds.phs"),
    "seedformat": ("Superflip", "superflip"),
    "seedbins": ("6", 6),
    "seedfraction": ("0.25", 0.25),
    "seedcount": ("120", 120),
    "seedmin": ("0.5", 0.5),
    "then": ("SHELXE", "shelxe"),
    "device": ("cpu", "cpu"),
    "threads": ("2", 2),
    "overwrite": ("", True),
    "quiet": ("", True),
}


def test_values_cover_the_table():
    assert set(VALUES) == {p.name for p in PARAMETERS}


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("way", ["words", "equals", "keyword"])
def test_every_parameter_reaches_options(name, way):
    text, value = VALUES[name]
    words = {"hklin": "data.mtz", "mapout": "pred.map"}
    words.pop(name, None)
    base = [w for pair in words.items() for w in pair]
    if way == "keyword":
        word = name if name.startswith("seed") else name[:4]
        given = {**parse_command_line(base), **parse_keywords([f"{word.upper()} {text}"])}
    elif way == "equals":
        given = parse_command_line([*base, f"--{name}={text}" if text else f"--{name}"])
    else:
        given = parse_command_line([*base, name, *text.split(), "--seed=5"] if name != "seed" else [*base, name, text])
    got = getattr(options_from(given), name)
    assert (str(got) if isinstance(got, os.PathLike) else got) == value
    untouched = options_from({"hklin": "data.mtz", "mapout": "pred.map"})
    assert getattr(untouched, name) != got


@pytest.mark.parametrize("name", [n for n in VALUES if n not in ("hklin", "mapout")])
def test_recorded_command_gives_the_same_options_again(name):
    text, _ = VALUES[name]
    first = options(f"--{name}={text}" if text else name)
    assert options_from(parse_command_line(shlex.split(command(first))[1:])) == first


@pytest.mark.parametrize(
    ("text", "limits"),
    [
        ("20,1.2", (20, 1.2)),
        ("1.2,20", (20, 1.2)),
        ("20 1.2", (20, 1.2)),
        ("1.2 20", (20, 1.2)),
        ("20, 1.2", (20, 1.2)),
        ("1.2", (math.inf, 1.2)),
        ("inf,1.2", (math.inf, 1.2)),
    ],
)
def test_resolution(text, limits):
    assert options(f"--resolution={text}").resolution == limits
    assert options_from({"hklin": "a", "mapout": "b", **parse_keywords([f"RESO {text}"])}).resolution == limits


@given(st.floats(0.3, 5), st.floats(6, 500))
def test_resolution_in_either_order(high, low):
    assert options("resolution", repr(low), repr(high)).resolution == (low, high)
    assert options("resolution", repr(high), repr(low)).resolution == (low, high)


@pytest.mark.parametrize(
    ("form", "name"), [("phs", "s.phs"), ("shelxe", "s.phi"), ("superflip", "s.inflip"), ("auto", "s.mtz")]
)
def test_a_file_of_seeds_without_an_ending_gets_that_of_its_form(form, name):
    assert options("seedout", "s", "seedformat", form).seedout == Path(name)
    assert options("seedformat", form, "seedout", "s.x").seedout == Path("s.x")


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["sed", "3"], ['"sed"', "Try: seed"]),
        (["--resolutoin", "2"], ["--resolutoin", "Try: resolution"]),
        (["zzzz", "3"], ["zzzz", "--help"]),
        (["seed"], ["seed", "no value"]),
        (["seed", "x"], ["seed", '"x"', "whole number"]),
        (["seed", "1.5"], ["seed", "whole number"]),
        (["seed", "-1"], ["seed", "-1", "0 to 2147483647"]),
        (["seed", "1", "seed", "2"], ["seed", "twice"]),
        (["trials", "0"], ["trials", "1 to 100000"]),
        (["seedx", "3"], ["seedx", "Try: seed"]),
        (["seedbins", "2"], ["seedbins", "3 to 8"]),
        (["seedfraction", "0"], ["seedfraction", "0.001 to 1"]),
        (["seedmin", "high"], ["seedmin", "seedmin 0.5"]),
        (["seedout", "s.csv", "seedformat", "sri"], ["seedformat", "Try: seedformat sir"]),
        (["timelimit", "nan"], ["timelimit", "out of range"]),
        (["timelimit", "-5"], ["timelimit", "1 to 1000000 s"]),
        (["threads", "0"], ["threads"]),
        (["device", "gpu"], ["device", "auto, cpu, cuda"]),
        (["engine", "learnt"], ["engine", "Try: engine learned"]),
        (["mapextent", "box"], ["mapextent", "cell, asu"]),
        (["resolution", "0"], ["resolution", "0.2 to 50 A"]),
        (["resolution", "-1.2"], ["resolution", "out of range"]),
        (["resolution", "2,2"], ["resolution", "same"]),
        (["resolution", "1,2,3"], ["resolution", "3 numbers"]),
        (["resolution", "high"], ["resolution", "numbers"]),
        (["cell", "10,10,10"], ["cell", "3 numbers", "six"]),
        (["cell", "10,10,10,90,90,190"], ["cell", "not a possible unit cell"]),
        (["cell", "10,10,10,30,30,100"], ["cell", "not a possible unit cell"]),
        (["cell", "0,10,10,90,90,90"], ["cell", "not a possible unit cell"]),
        (["overwrite=perhaps"], ["overwrite", "yes"]),
        (["more.mtz"], ["more.mtz", "hklin more.mtz"]),
        (["hklout", "mapextent", "asu"], ["hklout", "no value"]),
        (["--labin="], ["labin", "no value"]),
    ],
)
def test_mistakes(words, parts):
    message = refusal(*words)
    for part in parts:
        assert part in message, message


def test_mistyped_command():
    with pytest.raises(UserError, match="Try: compare"):
        parse_command_line(["comapre", "hklin", "x"], ["compare", "simulate"])


@pytest.mark.parametrize("missing", ["hklin", "mapout"])
def test_needed(missing):
    given = {"hklin": "a.mtz", "mapout": "b.map"}
    given.pop(missing)
    with pytest.raises(UserError, match=f"{missing} is missing"):
        options_from(given)


def test_flags_may_be_spelt_out():
    assert options("overwrite", "no").overwrite is False
    assert options("overwrite", "yes", "quiet").overwrite is True
    assert options("--quiet=off").quiet is False
    assert options_from({"hklin": "a", "mapout": "b", **parse_keywords(["QUIE", "OVER NO"])}).quiet is True


@pytest.mark.parametrize(
    ("mapout", "hklout", "jsonout"),
    [
        ("pred.map", "pred.mtz", "pred.json"),
        ("pred.ccp4", "pred.mtz", "pred.json"),
        ("pred", "pred.mtz", "pred.json"),
        ("run.1", "run.1.mtz", "run.1.json"),
        ("a.b/pred.MAP", "a.b/pred.mtz", "a.b/pred.json"),
    ],
)
def test_default_outputs(mapout, hklout, jsonout):
    got = options_from({"hklin": "data.mtz", "mapout": mapout})
    assert (str(got.hklout), str(got.jsonout)) == (hklout, jsonout)


# ------------------------------------------------------------------------------------------ keywords


def test_keyword_syntax(tmp_path):
    (tmp_path / "more.txt").write_text("trials 4\n! nothing\n")
    text = [
        "# a comment",
        "",
        "labin FP=F -",
        "   SIGFP=SIGF ! the usual",
        "RESOL 20 &",
        "1.2",
        f"@{tmp_path / 'more.txt'}",
        "seed=3",
        "spacegroup 'P 21 21 21'",
        "End",
        "nonsense 4",
    ]
    lines = list(keyword_lines(text))
    assert lines == [
        "labin FP=F SIGFP=SIGF",
        "RESOL 20 1.2",
        "trials 4",
        "seed=3",
        "spacegroup 'P 21 21 21'",
        "END",
    ]
    assert parse_keywords(lines) == {
        "labin": "FP=F SIGFP=SIGF",
        "resolution": "20 1.2",
        "trials": "4",
        "seed": "3",
        "spacegroup": "P 21 21 21",
    }


def test_end_in_an_included_file_ends_all(tmp_path):
    (tmp_path / "end.txt").write_text("SEED 1\nEND\n")
    assert list(keyword_lines([f"@{tmp_path / 'end.txt'}", "TRIALS 2"])) == ["SEED 1", "END"]


def test_includes_that_cannot_be(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        list(keyword_lines(["@nowhere.txt"]))
    loop = tmp_path / "loop.txt"
    loop.write_text(f"@{loop}\n")
    with pytest.raises(UserError, match="without end"):
        list(keyword_lines([f"@{loop}"]))


@pytest.mark.parametrize(
    ("line", "part"),
    [("SED 3", "Try: seed"), ("SEED", "no value"), ("XYZZY 1", 'unknown keyword "XYZZY"'), ("= 3", "sense")],
)
def test_keyword_mistakes(line, part):
    with pytest.raises(UserError) as caught:
        parse_keywords([line])
    assert part in str(caught.value)


def test_keyword_twice():
    with pytest.raises(UserError, match="twice"):
        parse_keywords(["SEED 1", "SEED 2"])


@pytest.mark.parametrize("word", ["RESO", "reso", "Resolution", "RESOLUTION"])
def test_four_letters_are_enough(word):
    parameter = find_parameter(word, keyword=True)
    assert parameter is not None and parameter.name == "resolution"


# ------------------------------------------------------------------------------------ standard input


@pytest.fixture
def pipe():
    reading, writing = os.pipe()
    stream = os.fdopen(reading)
    yield stream, writing
    stream.close()
    with contextlib.suppress(OSError):
        os.close(writing)


def test_pipe_that_closes(pipe):
    stream, writing = pipe
    os.write(writing, b"SEED 3\nTRIALS 2")
    os.close(writing)
    assert read_standard_input(stream) == (["SEED 3", "TRIALS 2"], "")


def test_pipe_left_open_after_end(pipe):
    stream, writing = pipe
    os.write(writing, b"SEED 3\nend\n")
    start = time.monotonic()
    assert read_standard_input(stream)[0] == ["SEED 3", "end"]
    assert time.monotonic() - start < 1


def test_silent_open_pipe_does_not_hang(pipe):
    stream, _ = pipe
    start = time.monotonic()
    lines, note = read_standard_input(stream, first_wait=0.1)
    assert lines == [] and "silent" in note
    assert 0.1 <= time.monotonic() - start < 2


def test_keywords_that_never_end(pipe):
    stream, writing = pipe
    os.write(writing, b"SEED 3\n")
    with pytest.raises(UserError, match="no END"):
        read_standard_input(stream, next_wait=0.1)


def test_terminal_is_never_read():
    master, slave = os.openpty()
    os.write(master, b"SEED 3\n")
    with os.fdopen(slave) as stream:
        assert read_standard_input(stream) == ([], "")
    os.close(master)


def test_no_standard_input():
    assert read_standard_input(None) == ([], "")
    with Path(os.devnull).open() as stream:
        assert read_standard_input(stream) == ([], "")


# --------------------------------------------------------------------------------------------- files


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "data.mtz").write_bytes(b"MTZ ")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(*words):
    with pytest.raises(UserError) as caught:
        check_files(options_from(parse_command_line(words)))
    return str(caught.value)


def test_good_files_pass(folder):
    check_files(options())
    check_files(options("xmlout", "program.xml", "pattout", str(folder / "patt.map")))


def test_missing_extension_of_the_input(folder):
    assert options_from(parse_command_line(["hklin", "data", "mapout", "p"])).hklin.name == "data.mtz"


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["hklin", "dta.mtz", "mapout", "p.map"], ["no such file", "hklin data.mtz"]),
        (["hklin", "no/data.mtz", "mapout", "p.map"], ["no such folder"]),
        (["hklin", ".", "mapout", "p.map"], ["is a folder"]),
        (["hklin", "data.mtz", "mapout", "no/p.map"], ["mapout no/p.map", "does not exist", "mkdir -p"]),
        (["hklin", "data.mtz", "mapout", "."], ["mapout", "is a folder"]),
        (["hklin", "data.mtz", "mapout", "data.map"], ["hklout data.mtz", "exists already", "overwrite"]),
        (["hklin", "data.mtz", "mapout", "data.map", "overwrite"], ["hklout", "would overwrite the input"]),
        (
            ["hklin", "data.mtz", "mapout", "p.map", "hklout", "p.map"],
            ["hklout p.map", "same file as mapout"],
        ),
        (["hklin", "data.mtz", "mapout", "p.map", "xmlout", "./p.json"], ["same file as jsonout"]),
        (["hklin", "data.mtz", "mapout", "data.mtz/p.map"], ["not a folder"]),
        (["hklin", "data.mtz", "mapout", "x" * 300 + ".map"], ["too long"]),
    ],
)
def test_bad_files(folder, words, parts):
    message = refused(*words)
    for part in parts:
        assert part in message, message


def test_links_to_the_input_are_seen_through(folder):
    Path("soft.mtz").symlink_to("data.mtz")
    Path("hard.mtz").hardlink_to("data.mtz")
    for name in ("soft.mtz", "hard.mtz"):
        assert "overwrite the input" in refused(*FILES, "hklout", name, "overwrite")


def test_dangling_links_to_one_place_are_one_output(folder):
    Path("a.map").symlink_to("target.map")
    assert "same file" in refused("hklin", "data.mtz", "mapout", "a.map", "pattout", "target.map")


def test_existing_output_needs_overwrite(folder):
    (folder / "pred.json").write_text("{}")
    message = refused(*FILES)
    assert "jsonout pred.json" in message and "overwrite" in message
    check_files(options("overwrite"))


def test_devices_are_written_to_freely(folder):
    check_files(options("xmlout", os.devnull))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_unwritable_folder(folder):
    (folder / "locked").mkdir(mode=0o500)
    assert "cannot be written to" in refused("hklin", "data.mtz", "mapout", "locked/p.map")


def test_command_line_wins_over_keywords(folder, pipe):
    stream, writing = pipe
    os.write(writing, b"SEED 3\nTRIALS 9\nEND\n")
    request = understand([*FILES, "seed", "4"], stream)
    assert (request.options.seed, request.options.trials) == (4, 9)
    assert request.data_lines == ("SEED 3", "TRIALS 9", "END")
    assert any("seed" in note and "overrides" in note for note in request.notes)
