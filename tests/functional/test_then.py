"""Going on with the next program.

The programs are stand-ins, named as such: scripts on PATH that check names, arguments, columns and files strictly; so
is the phasing, whose outcome is made up. All else is the program.
"""

import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import gemmi
import numpy as np
import pytest
from sample_outcome import amplitudes, phases

from ml_phaser.exchange.write import write_mtz

TESTS = Path(__file__).resolve().parents[1]
COMMAND_LINE = f"""
import os, sys
sys.path.insert(0, {str(TESTS)!r})
import ml_phaser.pipeline as pipeline
from sample_outcome import outcome
def run(options, notify):  # stand-in for the phasing; reading, checks and all files are the real ones
    data = pipeline.read(options)
    pipeline.check_next(data, options)
    notify.stage("phase")
    result = outcome(data=data, word=os.environ.get("VERDICT", "solved"))
    return pipeline.write(result, result.wilson, options)
pipeline.run = run
from ml_phaser.cli import main
sys.exit(main())
"""
SHELXE = ["hklin", "data.mtz", "labin", "F,SIGF", "mapout", "pred.map", "then", "shelxe"]
STAND_INS = {
    "modelcraft": """
import json, sys, os
import gemmi
words = sys.argv[1:]
assert words[0] == "xray", words
flags = {"--unbiased", "--overwrite-directory"}
given, rest = {}, words[1:]
while rest:
    word = rest.pop(0)
    given[word] = None if word in flags else rest.pop(0)
assert set(given) == flags | {"--contents", "--data", "--observations", "--phases", "--freerflag", "--directory"}, given
assert open(given["--contents"]).read() == ">chain 1\\nMKLVAGYS\\n"
mtz = gemmi.read_mtz_file(given["--data"])
kinds = {c.label: c.type for c in mtz.columns}
types = [[kinds[x] for x in given[k].split(",")] for k in ("--observations", "--phases", "--freerflag")]
assert types == [["F", "Q"], ["A"] * 4, ["I"]], types
assert given["--directory"] == "." and os.path.basename(os.getcwd()) == "pred_modelcraft"
print("STAND-IN for ModelCraft\\n$TABLE: of its own:")
final = {"cycle": 2, "residues": 8, "r_work": 0.21, "r_free": 0.254}
json.dump({"final": final}, open("modelcraft.json", "w"))
""",
    "shelxe": """
import sys, os, re
assert sys.argv[1] == "pred.phi" and sys.argv[2:] == ["-s0.50", "-m20", "-a5", "-q"], sys.argv
assert os.path.basename(os.getcwd()) == "pred_shelxe"
def lines(name, pattern):
    text = open(name).read().splitlines()
    assert text and all(re.fullmatch(pattern, x) for x in text), name
    return text
phi = lines("pred.phi", r"[ \\d-]{12}[ \\d]{6}\\.\\d\\d[ ]{2}[01]\\.\\d{4}[ \\d]{6}\\.\\d[ \\d]{5}\\.\\d\\d")
hkl = lines("pred.hkl", r"[ \\d-]{12}[ \\d-]{5}\\.\\d\\d[ \\d]{5}\\.\\d\\d")
assert hkl[-1].split()[:3] == ["0", "0", "0"] and len(hkl) == len(phi) + 1
ins = open("pred.ins").read()
assert ins.startswith("TITL") and "LATT -1\\n" in ins and "HKLF 4\\nEND\\n" in ins
print(" STAND-IN for SHELXE")
print(" Best trace (cycle   3 with CC " + os.environ.get("CC", "37.26") + "%) was saved as pred.pdb")
""",
    "phenix.autobuild": """
import sys, os, gemmi
given = dict(w.split("=", 1) for w in sys.argv[1:])
assert set(given) == {"data", "seq_file", "input_labels"}, given
labels = given["input_labels"].split()
kinds = {c.label: c.type for c in gemmi.read_mtz_file(given["data"]).columns}
assert "".join(kinds.get(x, "-") for x in labels) == os.environ.get("TYPES", "FQPWAAAAI"), labels
assert open(given["seq_file"]).read().startswith(">")
os.mkdir("AutoBuild_run_1_")
summary = "Best solution on cycle: 4    R/Rfree=0.22/0.27\\n"
open("AutoBuild_run_1_/AutoBuild_summary.dat", "w").write(summary)
print("STAND-IN for AutoBuild\\nResidues built: 126\\nResidues placed: 118")
""",
}


@pytest.fixture
def bin_folder(tmp_path):
    folder = tmp_path / "bin"
    folder.mkdir()
    return folder


def install(folder, name, text=None):
    path = folder / name
    path.write_text(f"#!{sys.executable}\n" + (STAND_INS[name] if text is None else text))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.fixture(autouse=True)
def work(tmp_path, monkeypatch):
    folder = tmp_path / "work place"  # with a blank
    folder.mkdir()
    data = amplitudes(free=np.arange(len(amplitudes())).astype(np.int32) % 20)
    write_mtz(folder / "flagged.mtz", data, phases(data))
    write_mtz(folder / "data.mtz", amplitudes(), phases(amplitudes()))
    (folder / "s.txt").write_text("MKLV AGYS\n")
    monkeypatch.chdir(folder)
    return folder


def environment(bin_folder, **more):
    return os.environ | {"PATH": f"{bin_folder}:/usr/bin:/bin", "OMP_NUM_THREADS": "1", **more}


def ml_phaser(bin_folder, then, *words, hklin="data.mtz", **more):
    command = [
        sys.executable,
        "-c",
        COMMAND_LINE,
        "hklin",
        hklin,
        "labin",
        "F,SIGF",
        "mapout",
        "pred.map",
        "then",
        then,
    ]
    return subprocess.run(
        [*command, *words], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60,
        env=environment(bin_folder, **more), check=False,
    )  # fmt: skip


def record():
    return json.loads(Path("pred.json").read_text(encoding="utf-8"))


def refused(done, *parts):
    assert done.returncode == 1 and "Traceback" not in done.stderr + done.stdout
    assert len(done.stderr.splitlines()) == 1, done.stderr
    for part in parts:
        assert part in done.stderr
    assert not list(Path().glob("pred*"))


# ---------------------------------------------------------------------------------------- it goes well


def test_modelcraft(bin_folder):
    install(bin_folder, "modelcraft")
    done = ml_phaser(bin_folder, "modelcraft", "seqin", "s.txt", "freer", "5", "xmlout", "p.xml")
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr
    lines = done.stdout.splitlines()
    assert "   STAND-IN for ModelCraft" in lines and "   $TABLE: of its own:" in lines
    assert lines[-2] == " ml_phaser:  Normal termination"
    then = record()["then"]
    assert then["program"] == "modelcraft" and then["exit_code"] == 0 and then["seconds"] >= 0
    assert then["summary"] == "8 residues, R-work 0.210, R-free 0.254 (cycle 2)" and then["summary"] in done.stdout
    log = Path(then["log"])
    assert log == Path("pred_modelcraft/modelcraft.log").resolve() and log.read_text().startswith("STAND-IN")
    assert "<summary>8 residues" in Path("p.xml").read_text()
    again = subprocess.run(["sh", "-c", then["command"]], env=environment(bin_folder), check=False)
    assert again.returncode == 0  # as recorded it can be pasted
    assert [s["program"] for s in record()["next"] if s["installed"]] == ["ModelCraft"]


def test_flags_of_the_data_will_do_for_modelcraft(bin_folder):
    install(bin_folder, "modelcraft")
    done = ml_phaser(bin_folder, "modelcraft", "seqin", "s.txt", hklin="flagged.mtz")
    assert done.returncode == 0, done.stderr
    given = gemmi.read_mtz_file("flagged.mtz")
    written = gemmi.read_mtz_file("pred.mtz")
    for label in ("FreeR_flag", "F"):
        values = [np.array(m.column_with_label(label)) for m in (given, written)]
        np.testing.assert_array_equal(*values)


@pytest.mark.parametrize(("cc", "side"), [("37.26", "above"), (" 8.39", "below")])
def test_shelxe(bin_folder, cc, side):
    install(bin_folder, "shelxe")
    done = ml_phaser(bin_folder, "shelxe", CC=cc)
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr
    assert f"CC {cc.strip()} %, {side} the 25 %" in record()["then"]["summary"]


@pytest.mark.parametrize(("hklin", "types"), [("flagged.mtz", "FQPWAAAAI"), ("data.mtz", "FQPWAAAA-")])
def test_autobuild(bin_folder, hklin, types):
    install(bin_folder, "phenix.autobuild")
    done = ml_phaser(bin_folder, "autobuild", "seqin", "s.txt", hklin=hklin, TYPES=types)
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr
    assert record()["then"]["summary"] == "126 residues, R 0.22, R-free 0.27 (cycle 4)"


def test_quiet_says_two_lines(bin_folder):
    install(bin_folder, "shelxe")
    done = ml_phaser(bin_folder, "shelxe", "quiet")
    assert done.returncode == 0 and len(done.stdout.splitlines()) == 2 and "exit status 0" in done.stdout
    assert "STAND-IN" in Path("pred_shelxe/shelxe.log").read_text()


def test_not_solved_is_not_gone_on_with(bin_folder):
    install(bin_folder, "shelxe")
    done = ml_phaser(bin_folder, "shelxe", VERDICT="not solved")
    assert done.returncode == 0 and "shelxe: not run: the phases are not solved" in done.stdout
    assert record()["then"]["exit_code"] is None and record()["next"] == [] and not Path("pred_shelxe").exists()
    assert "What can go on from here: nothing." in done.stdout and "shelxe pred.phi" not in done.stdout


# ----------------------------------------------------------------------------- known before the run


def test_what_cannot_come_to_anything_is_said_at_once(bin_folder):
    refused(ml_phaser(bin_folder, "shelxe"), "shelxe is not on PATH", "SHELXE")
    refused(ml_phaser(bin_folder, "modelcraft", "seqin", "s.txt"), "modelcraft is not on PATH", "CCP4")
    install(bin_folder, "shelxe")
    (bin_folder / "shelxe").chmod(0o644)
    refused(ml_phaser(bin_folder, "shelxe"), "shelxe is not on PATH")
    for name in ("modelcraft", "phenix.autobuild"):
        install(bin_folder, name)
    refused(ml_phaser(bin_folder, "modelcraft"), "needs the sequence", "seqin FILE")
    refused(ml_phaser(bin_folder, "autobuild"), "needs the sequence")
    refused(ml_phaser(bin_folder, "modelcraft", "seqin", "s.txt"), "needs free-R flags", "freer 5")
    Path("empty.fasta").write_text(">a\n")
    refused(ml_phaser(bin_folder, "modelcraft", "seqin", "empty.fasta"), "holds no sequence")


def test_folders_are_replaced_only_when_asked_and_ours(bin_folder):
    install(bin_folder, "shelxe")
    Path("pred_shelxe").mkdir()
    Path("pred_shelxe/thesis.txt").write_text("years of work")
    done = ml_phaser(bin_folder, "shelxe")
    assert done.returncode == 1 and "exists already" in done.stderr and not Path("pred.map").exists()
    done = ml_phaser(bin_folder, "shelxe", "overwrite")
    assert done.returncode == 1 and "not from an earlier run" in done.stderr
    assert Path("pred_shelxe/thesis.txt").exists()
    Path("pred_shelxe/thesis.txt").unlink()
    Path("pred_shelxe").rmdir()
    assert ml_phaser(bin_folder, "shelxe").returncode == 0
    Path("pred_shelxe/old").write_text("x")
    assert ml_phaser(bin_folder, "shelxe", "overwrite").returncode == 0
    assert not Path("pred_shelxe/old").exists()


# --------------------------------------------------------------------------------- it goes wrong


def test_failure_of_the_program(bin_folder):
    install(bin_folder, "shelxe", "print('** no licence **')\nraise SystemExit(3)\n")
    # of the outputs asked for, xyzout is not written here: the phases do not come from pieces
    done = ml_phaser(bin_folder, "shelxe", "jsonout", "pred.json", "xyzout", "pieces.pdb")
    assert done.returncode == 1 and "shelxe failed (exit status 3); the phases are written" in done.stderr
    assert not Path("pieces.pdb").exists()
    assert "no licence" in done.stdout and len(done.stderr.splitlines()) == 1
    assert record()["then"]["exit_code"] == 3 and record()["then"]["summary"] == "no trace of a chain was saved"
    assert Path("pred.mtz").exists() and record()["status"] == "finished"


def test_what_cannot_be_started(bin_folder):
    (bin_folder / "shelxe").write_bytes(b"\x7fELF of another machine")
    (bin_folder / "shelxe").chmod(0o755)
    done = ml_phaser(bin_folder, "shelxe")
    assert done.returncode == 1 and "cannot be started" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupts_are_passed_on_and_waited_for(bin_folder, number):
    name = number.name
    install(bin_folder, "shelxe", (
        "import signal, sys, time\n"
        "def stop(n, f):\n"
        "    time.sleep(0.5); open('ended', 'w').write(signal.Signals(n).name); sys.exit(5)\n"
        "signal.signal(signal.SIGINT, stop); signal.signal(signal.SIGTERM, stop)\n"
        "print('running', flush=True); time.sleep(60)\n"
    ))  # fmt: skip
    command = [sys.executable, "-c", COMMAND_LINE, *SHELXE]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=environment(bin_folder),
    ) as process:  # fmt: skip
        assert process.stdout is not None
        while "running" not in (line := process.stdout.readline()):
            assert line, "ended early"
        began = time.monotonic()
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 1 and time.monotonic() - began < 8
    assert Path("pred_shelxe/ended").read_text() == name
    assert "interrupted; complete files were written" in err and "Traceback" not in err + out
    then = record()["then"]
    assert then["summary"] == "interrupted" and then["exit_code"] == 5
    assert not list(Path().glob(".*"))  # nothing half-written


def test_reader_of_the_log_goes_away(bin_folder):
    install(bin_folder, "shelxe", (
        "import os, sys, time\nopen('pid', 'w').write(str(os.getpid()))\n"
        "while True: print('x' * 5000, flush=True)\n"
    ))  # fmt: skip
    command = [sys.executable, "-c", COMMAND_LINE, *SHELXE]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(bin_folder)
    ) as process:
        assert process.stdout is not None
        while b"xxx" not in process.stdout.readline():
            pass
        process.stdout.close()
        assert process.wait(timeout=30) == 1
    with pytest.raises(ProcessLookupError):
        os.kill(int(Path("pred_shelxe/pid").read_text()), 0)


# ------------------------------------------------------------------------------------- the command next


def next_command(*words):
    return subprocess.run(
        [sys.executable, "-m", "ml_phaser", "next", *words], capture_output=True, text=True, timeout=60, check=False
    )


def test_next_prints_what_the_log_did(bin_folder):
    install(bin_folder, "shelxe")
    log = ml_phaser(bin_folder, "shelxe", "seqin", "s.txt", "shelxout", "x.phi", CC="30.00")
    assert log.returncode in (0, 1)
    done = next_command("hklin", "pred.mtz", "SEQIN", "s.txt", "shelx", "x.phi", "--labin=F,SIGF")
    assert done.returncode == 0, done.stderr
    commands = [s["command"] for s in record()["next"]]
    assert all(c in done.stdout and c in log.stdout for c in commands) and len(commands) == 8
    assert "Verdict: solved" in done.stdout


def test_next_warns_where_nothing_was_solved(bin_folder):
    install(bin_folder, "shelxe")
    ml_phaser(bin_folder, "shelxe", VERDICT="not solved")
    done = next_command("hklin", "pred.mtz", "jsonin", "pred.json", "labin", "F,SIGF")
    assert "NOT SOLVED: none of these is worth running" in done.stdout and "modelcraft xray" in done.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["hklin", "none.mtz"], "no such file"),
        (["seqin", "s.txt"], "HKLIN is missing"),
        (["hklin", "s.txt"], "not an MTZ"),
        (["hklin", "data.mtz", "shelx", "x.phi"], "x.phi"),
        (["hklin", "data.mtz", "jsonin", "s.txt"], "no run record"),
        (["hklin", "data.mtz", "colour", "red"], "not an option"),
    ],
)
def test_next_refuses(words, said):
    done = next_command(*words)
    assert done.returncode == 1 and said in done.stderr and len(done.stderr.splitlines()) == 1
