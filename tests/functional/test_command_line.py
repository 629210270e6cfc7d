"""The command as a user runs it: in a process of its own, with typing errors, pipes, signals and terminals.

The pipeline is replaced by a stand-in that writes files and makes up an outcome; all the rest is tested.
"""

import html
import json
import os
import pty
import re
import select
import shlex
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from ml_phaser import __version__
from ml_phaser.cli import COMMANDS
from ml_phaser.parameters import PARAMETERS

TESTS = Path(__file__).resolve().parents[1]

STAND_IN = f"""
import sys, types
sys.path.insert(0, {str(TESTS)!r})
pipeline = types.ModuleType("ml_phaser.pipeline")
def run(options, notify):
    import os, time
    from sample_outcome import amplitudes, outcome
    from ml_phaser.atomic import atomic
    from ml_phaser.errors import UserError
    from ml_phaser.exchange.write import write_mtz
    from ml_phaser.report.html import write_html
    from ml_phaser.report.program_xml import write_xml
    from ml_phaser.report.record import run_record, write_json
    mode = os.environ.get("STAND_IN", "")
    notify.stage("phase")
    result = outcome(word="not solved")
    notify.progress(0.5, result.trials[1], result.trials)
    notify.say("half way")
    if mode == "user error": raise UserError("three reflections only", "data.mtz", "more data")
    if mode == "bug": raise ZeroDivisionError("division by zero")
    if mode == "memory": raise MemoryError
    if mode == "warn": import warnings; warnings.warn("a library is unhappy")
    if mode == "wait":
        with atomic(options.mapout) as tmp:
            tmp.write_bytes(b"half a map")
            print("waiting", flush=True)
            time.sleep(60)
    if mode == "map then wait":
        options.mapout.write_bytes(b"map")
        print("waiting", flush=True)
        time.sleep(60)
    if mode == "chatty":
        for _ in range(100000): notify.say("line")
    write_mtz(options.hklout, result.data, result.phases)
    record = run_record(result, options)
    write_json(options.jsonout, record)
    if options.xmlout: write_xml(options.xmlout, record)
    if options.reportout: write_html(options.reportout, record)
    if mode == "all then wait":
        options.mapout.write_bytes(b"map")
        print("waiting", flush=True)
        time.sleep(60)
    return result
pipeline.run = run
sys.modules["ml_phaser.pipeline"] = pipeline
from ml_phaser.cli import main
sys.exit(main())
"""
COMMAND = [sys.executable, "-c", STAND_IN]
FILES = ["hklin", "data.mtz", "mapout", "pred.map"]
ENV = {k: v for k, v in os.environ.items() if k != "ML_PHASER_DEBUG"} | {"OMP_NUM_THREADS": "1"}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    (tmp_path / "data.mtz").write_bytes(b"MTZ ")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def ml_phaser(*words, stdin="", mode="", **more):
    return subprocess.run(
        [*COMMAND, *words],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=30,
        env=ENV | {"STAND_IN": mode},
        **more,
    )


def assert_refused(done, *parts, files=("data.mtz",)):
    """One line on stderr, the same as the log's last message, exit 1, no traceback, no new files."""
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1, done.stderr
    message = done.stderr.strip()
    assert message.startswith("ml_phaser: ")
    for part in parts:
        assert part in message, message
    last = done.stdout.splitlines()[-2:]
    assert last[0] == " ml_phaser:  " + message.removeprefix("ml_phaser: ")
    assert last[1].startswith("Times: User: ")
    assert "Traceback" not in done.stdout
    assert sorted(p.name for p in Path().iterdir()) == sorted(files)


# ------------------------------------------------------------------------------- before any work


def test_help_is_fast_and_light():
    program = (
        "import sys, time; start = time.perf_counter(); from ml_phaser.cli import main; c = main(['--help']);"
        "print(time.perf_counter() - start, sorted({'torch', 'numpy', 'gemmi', 'pandas', 'scipy', 'rich',"
        "'reciprocalspaceship', 'matplotlib', 'jinja2'} & set(sys.modules)), c)"
    )
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    elapsed = time.perf_counter() - start
    *text, last = done.stdout.splitlines()
    seconds, loaded = last.split(maxsplit=1)
    assert loaded == "[] 0" and float(seconds) < 0.5 and elapsed < 2  # elapsed: with Python's own start, busy machine
    for p in PARAMETERS:
        assert any(line.startswith(f"  {p.name}") and p.help in line for line in text), p.name
    for name in COMMANDS:
        assert any(line.startswith(f"  {name} ") for line in text)
    assert max(map(len, text)) <= 120


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["hklin", "data.mtz", "--help"], ["help"]])
def test_help(words):
    done = ml_phaser(*words)
    assert done.returncode == 0 and "Usage:" in done.stdout and done.stderr == ""


def test_version():
    assert ml_phaser("--version").stdout == f"ml_phaser {__version__}\n"
    done = ml_phaser("-i")
    assert done.returncode == 0 and re.search(rf"ml_phaser; version {re.escape(__version__)}", done.stdout)


def test_module_is_the_command():
    done = subprocess.run([sys.executable, "-m", "ml_phaser", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"ml_phaser {__version__}\n"


@pytest.mark.parametrize(
    ("words", "stdin", "parts"),
    [
        ([], "", ["hklin is missing", "ml_phaser hklin data.mtz mapout pred.map"]),
        (["hklin", "data.mtz"], "", ["mapout is missing"]),
        ([*FILES, "sede", "3"], "", ['unknown option "sede"', "Try: seed"]),
        (["comapre", *FILES], "", ["Try: compare"]),
        (["data.mtz", "pred.map"], "", ["hklin data.mtz"]),
        (["hklin", "dat.mtz", "mapout", "pred.map"], "", ["no such file", "Try: hklin data.mtz"]),
        (["hklin", "data.mtz", "mapout", "data.mtz"], "", ["mapout data.mtz"]),
        (["hklin", "data.mtz", "mapout", "none/pred.map"], "", ["none/pred.map", "does not exist"]),
        ([*FILES, "resolution", "0"], "", ["resolution", "0.2 to 50 A"]),
        (FILES, "SEDE 3\nEND\n", ['unknown keyword "SEDE"', "Try: seed"]),
        (FILES, "SEED three\nEND\n", ["seed", "whole number"]),
        (FILES, "@none.txt\n", ["none.txt", "cannot be read"]),
    ],
)
def test_refused_before_any_work(words, stdin, parts):
    assert_refused(ml_phaser(*words, stdin=stdin), *parts)


def test_quiet_errors_are_on_stderr_only():
    done = ml_phaser(*FILES, "quiet", "seed", "x")
    assert done.stdout == "" and done.returncode == 1 and "whole number" in done.stderr


# ------------------------------------------------------------------------------------- a whole run


def test_a_run(folder):
    done = ml_phaser(*FILES, "xmlout", "program.xml", stdin="seed 3 # comment\nRESO 20 1.2\nEND\nnonsense\n")
    assert done.returncode == 0 and done.stderr == ""
    lines = done.stdout.splitlines()
    assert lines[0] == " " + "#" * 63
    assert " Data line--- seed 3" in lines and " Data line--- RESO 20 1.2" in lines and " Data line--- END" in lines
    assert "nonsense" not in done.stdout
    assert lines[-2] == " ml_phaser:  Normal termination" and lines[-1].startswith("Times: User: ")
    assert "Verdict: NOT SOLVED" in done.stdout and "half way" in done.stdout
    record = json.loads((folder / "pred.json").read_text())
    assert record["seed"] == 3 and record["options"]["resolution"] == [20, 1.2]
    assert {p.name for p in folder.iterdir()} == {"data.mtz", "pred.mtz", "pred.json", "program.xml"}


def test_quiet_prints_the_verdict_only():
    done = ml_phaser(*FILES, "--quiet")
    assert done.returncode == 0 and done.stderr == ""
    assert len(done.stdout.splitlines()) == 1 and "NOT SOLVED (probability 0.93" in done.stdout


def test_second_run_needs_overwrite():
    assert ml_phaser(*FILES, "quiet").returncode == 0
    again = ml_phaser(*FILES)
    assert again.returncode == 1 and "exists already" in again.stderr and "overwrite" in again.stderr
    assert ml_phaser(*FILES, "--overwrite", "quiet").returncode == 0


def test_warnings_of_libraries_stay_away_from_users():
    assert ml_phaser(*FILES, mode="warn").stderr == ""


def test_open_silent_pipe_is_said_in_the_log():
    with subprocess.Popen([*COMMAND, *FILES], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=ENV) as process:
        assert process.stdout is not None and process.stdin is not None
        out = process.stdout.read().decode()
        assert process.wait(timeout=20) == 0
    assert "standard input was open but silent" in out


# ---------------------------------------------------------------------------------- when it goes wrong


def test_user_error_in_the_pipeline():
    done = ml_phaser(*FILES, mode="user error")
    assert_refused(done, "data.mtz: three reflections only. Try: more data")
    assert done.stdout.startswith(" ####")


def test_bug_is_named_and_shown_on_request():
    done = ml_phaser(*FILES, mode="bug")
    assert_refused(done, "bug", "ZeroDivisionError: division by zero", "ML_PHASER_DEBUG=1")
    shown = subprocess.run(
        [*COMMAND, *FILES],
        input="",
        capture_output=True,
        text=True,
        env=ENV | {"STAND_IN": "bug", "ML_PHASER_DEBUG": "1"},
        check=False,
    )
    assert shown.returncode == 1 and "Traceback" in shown.stderr and "ZeroDivisionError" in shown.stderr


def test_out_of_memory():
    assert_refused(ml_phaser(*FILES, mode="memory"), "not enough memory")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    ("mode", "left", "said"),
    [("wait", [], "interrupted; nothing was written"), ("map then wait", ["pred.map"], "pred.map")],
)
def test_interrupt(number, mode, left, said):
    with subprocess.Popen(
        [*COMMAND, *FILES],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENV | {"STAND_IN": mode},
    ) as process:
        assert process.stdout is not None
        head = []
        while not head or head[-1] != "waiting\n":
            head.append(process.stdout.readline())
            assert head[-1], "ended early"
        process.send_signal(number)
        out, err = process.communicate(timeout=20)
    done = subprocess.CompletedProcess([], process.returncode, "".join(head) + out, err)
    assert_refused(done, said, files=("data.mtz", *left))


RECORDS = ["jsonout", "why.json", "xmlout", "why.xml", "reportout", "why.html"]


def told():
    """What the three records say of a run: status, error's message, number of starts; all alike."""
    record, root = json.loads(Path("why.json").read_text()), ET.parse("why.xml").getroot()
    page = Path("why.html").read_text()
    message = (record["error"] or {}).get("message")
    assert root.findtext("status") == record["status"] and root.findtext("error/message") == message
    assert len(root.findall("trials/trial")) == len(record["trials"])
    assert f"Run {record['status']}" in page
    for part in (message or "").split(" Try: "):
        assert html.escape(part, quote=False).replace('"', "&#34;") in page
    return record["status"], message, len(record["trials"])


@pytest.mark.parametrize("mode", ["user error", "bug", "memory"])
def test_records_asked_for_say_why_a_run_failed(mode):
    done = ml_phaser(*FILES, *RECORDS, mode=mode)
    assert_refused(done, files=("data.mtz", "why.html", "why.json", "why.xml"))
    assert told() == ("failed", done.stderr.strip().removeprefix("ml_phaser: "), 3)
    record = json.loads(Path("why.json").read_text())
    assert record["stage"] == "phase" and record["progress"] == 0.5 and record["best"]["score"] == 0.86
    assert record["options"]["hklin"] == "data.mtz" and "reportout why.html" in record["command"]


def test_records_asked_for_by_keyword_count_as_well():
    done = ml_phaser(*FILES, stdin="XMLOUT why.xml\nEND\n", mode="user error")
    assert_refused(done, files=("data.mtz", "why.xml"))


def test_records_obey_overwrite(folder):
    (folder / "why.xml").write_text("mine")
    done = ml_phaser(*FILES, *RECORDS, mode="user error")
    assert_refused(done, "why.xml: exists already", files=("data.mtz", "why.xml"))
    assert (folder / "why.xml").read_text() == "mine"
    assert_refused(ml_phaser(*FILES, *RECORDS, "overwrite", mode="user error"), "three reflections only",
                   files=("data.mtz", "why.html", "why.json", "why.xml"))  # fmt: skip
    assert told()[0] == "failed"


def test_errors_before_any_work_leave_no_records():
    assert_refused(ml_phaser(*FILES, *RECORDS, "seed", "x"), "whole number")
    assert_refused(ml_phaser("hklin", "none.mtz", "mapout", "pred.map", *RECORDS), "no such file")


def test_a_record_that_cannot_be_written_changes_nothing_else():
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    done = ml_phaser(*FILES, "xmlout", "/dev/full", "jsonout", "why.json", mode="user error")
    assert_refused(done, "three reflections only", files=("data.mtz", "why.json"))


def interrupted(*words, mode):
    """The command, sent SIGTERM when it says that it waits."""
    with subprocess.Popen(
        [*COMMAND, *words], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=ENV | {"STAND_IN": mode},
    ) as process:  # fmt: skip
        assert process.stdout is not None
        head = []
        while not head or head[-1] != "waiting\n":
            head.append(process.stdout.readline())
            assert head[-1], "ended early"
        now = Path("why.xml").read_text() if Path("why.xml").exists() else ""
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=20)
    return now, subprocess.CompletedProcess([], process.returncode, "".join(head) + out, err)


def test_interrupted_run_is_recorded_as_such():
    now, done = interrupted(*FILES, *RECORDS, mode="wait")
    assert ET.fromstring(now).findtext("status") == "running"
    assert_refused(done, "interrupted; no results were written", "why.xml",
                   files=("data.mtz", "why.html", "why.json", "why.xml"))  # fmt: skip
    assert told() == ("interrupted", None, 3)


def test_record_of_a_complete_run_survives_what_comes_after():
    _, done = interrupted(*FILES, *RECORDS, mode="all then wait")
    assert_refused(done, "complete files were written",
                   files=("data.mtz", "pred.map", "pred.mtz", "why.html", "why.json", "why.xml"))  # fmt: skip
    assert json.loads(Path("why.json").read_text())["status"] == "finished"
    assert ET.parse("why.xml").findtext("status") == "finished" and "Not solved" in Path("why.html").read_text()


def test_reader_that_goes_away_leaves_a_record():
    with subprocess.Popen(
        [*COMMAND, *FILES, "xmlout", "why.xml"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, env=ENV | {"STAND_IN": "chatty"},
    ) as process:  # fmt: skip
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(timeout=20) == 1
    assert ET.parse("why.xml").findtext("status") == "interrupted"


def test_reader_of_the_log_goes_away():
    with subprocess.Popen(
        [*COMMAND, *FILES],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=ENV | {"STAND_IN": "chatty"},
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(timeout=20) == 1
        assert process.stderr.read() == b""


def on_a_terminal(*words, mode=""):
    """Everything the command shows on a terminal that nobody types on."""
    master, slave = pty.openpty()
    with subprocess.Popen(
        [*COMMAND, *words],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env=ENV | {"STAND_IN": mode, "TERM": "xterm"},
    ) as process:
        os.close(slave)
        shown = b""
        while select.select([master], [], [], 20)[0]:
            try:
                block = os.read(master, 65536)
            except OSError:
                break
            if not block:
                break
            shown += block
        code = process.wait(timeout=20)
    os.close(master)
    return code, shown.decode()


def test_terminal_is_not_waited_for_and_shows_progress():
    code, shown = on_a_terminal(*FILES)
    assert code == 0
    assert "best CC(free) 0.86" in shown and "50 %" in shown
    assert shown.rstrip().splitlines()[-2].strip() == "ml_phaser:  Normal termination"


def test_error_is_shown_once_on_a_terminal():
    code, shown = on_a_terminal(*FILES, "seed", "x")
    assert code == 1 and shown.count("whole number") == 1


def test_no_progress_bar_in_a_file():
    done = ml_phaser(*FILES)
    assert "%" not in done.stderr and "\x1b" not in done.stdout


def test_ignored_signals_stay_ignored():
    """A background job of a script has Ctrl-C ignored; it must live through one meant for the foreground."""
    with subprocess.Popen(
        ["sh", "-c", 'trap "" INT; exec "$0" "$@"', *COMMAND, *FILES],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        env=ENV | {"STAND_IN": "map then wait"},
    ) as process:
        assert process.stdout is not None
        while process.stdout.readline() != "waiting\n":
            pass
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
        assert process.poll() is None
        process.terminate()
        assert process.wait(timeout=20) == 1


def test_in_process_call_restores_signal_handlers():
    from ml_phaser.cli import main

    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    assert main(["--version"]) == 0
    assert main([*FILES, "seed", "x"]) == 1
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_recorded_command_repeats_the_run(folder):
    assert ml_phaser(*FILES, "seed", "7", "trials", "3", "quiet").returncode == 0
    first = json.loads((folder / "pred.json").read_text())
    words = shlex.split(first["command"])[1:]
    assert ml_phaser(*words, "overwrite").returncode == 0
    second = json.loads((folder / "pred.json").read_text())
    assert second["options"] == {**first["options"], "overwrite": True}
    assert (second["seed"], second["options"]["trials"]) == (7, 3)
