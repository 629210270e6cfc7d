"""Going on with the next program: what it needs, checked before the run; its folder, its run, what it reached.

Everything happens in a folder of its own beside the map, ``pred_modelcraft`` for ``pred.map``. The program is given the
phased MTZ where it lies, and copies of what must be in another format: the sequence as FASTA, or the files for SHELXE.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml_phaser.errors import UserError
from ml_phaser.outcome import Then
from ml_phaser.parameters import Options, beside

if TYPE_CHECKING:
    from ml_phaser.crystal.reflections import Amplitudes
    from ml_phaser.exchange.sequence import Sequence
    from ml_phaser.outcome import Outcome

EXECUTABLES = {"modelcraft": "modelcraft", "shelxe": "shelxe", "autobuild": "phenix.autobuild"}
SOURCES = {
    "modelcraft": "CCP4 9 or later, and its setup script in this shell",
    "shelxe": "SHELXE from the SHELX site or CCP4, in a folder of PATH",
    "autobuild": "Phenix, and its phenix_env script in this shell",
}
BUILDERS = ("modelcraft", "autobuild")  # they want to know what to build
SEQUENCE_COPY = "sequence.fasta"
TRACED = 25.0  # %; a trace of that CC to data of 2.5 A or better is nearly always right (Thorn & Sheldrick 2013)
GRACE = 10.0  # s that an interrupted program has to end by itself
_CC = re.compile(r"Best trace \(cycle\s+(\d+) with CC\s+([\d.]+)%\)")
_R_FACTORS = re.compile(r"Best solution on cycle:\s*(\d+)\s+R/Rfree=\s*([\d.]+)\s*/\s*([\d.]+)")
_RESIDUES = re.compile(r"Residues built:\s*(\d+)")


@dataclass(frozen=True)
class Job:
    """A program ready to run: its executable and words, the folder it runs in, the file its output is kept in."""

    program: str
    executable: str
    words: tuple[str, ...]
    folder: Path
    log: Path

    @property
    def command(self) -> str:
        """As it could be typed."""
        return f"cd {shlex.quote(str(self.folder))} && {shlex.join(self.words)}"


def folder_of(options: Options) -> Path:
    """The folder of the next program."""
    return beside(options.mapout, f"_{options.then}")


def log_of(options: Options) -> Path:
    """What it printed. By this file a later run knows the folder for one of ours."""
    return folder_of(options) / f"{options.then}.log"


# --------------------------------------------------------------------------------- before the run


def check_program(options: Options) -> None:
    """Raise UserError where ``then`` cannot come to anything, whatever the data."""
    program = options.then
    if shutil.which(EXECUTABLES[program]) is None:
        raise UserError(f"{EXECUTABLES[program]} is not on PATH", f"then {program}", SOURCES[program])
    if program in BUILDERS and options.seqin is None:
        raise UserError("needs the sequence", f"then {program}", "seqin FILE (FASTA, PIR or plain letters)")
    folder = folder_of(options)
    where = f"then {program}"
    if not folder.exists() and not folder.is_symlink():
        return
    if not options.overwrite:
        raise UserError(f"its folder {folder} exists already", where, "the option overwrite, or another mapout")
    if folder.is_symlink() or not folder.is_dir() or not log_of(options).is_file():
        raise UserError(f"{folder} is in the way, and not from an earlier run", where, "another mapout")


def check_data(data: Amplitudes, options: Options) -> None:
    """Raise UserError where the data lack what the next program needs."""
    where = f"then {options.then}"
    if options.then == "shelxe":
        from ml_phaser.exchange.shelxe import check_group

        check_group(data.spacegroup)
        return
    if options.then == "modelcraft" and data.free is None and options.freer is None:
        raise UserError("needs free-R flags, and the data have none", where, "freer 5, which makes them")
    if not (data.sigf > 0).any():
        raise UserError("needs standard uncertainties, and the data have none", where, "then shelxe")


# ------------------------------------------------------------------------------------ the run


def prepare(outcome: Outcome, options: Options) -> Job:
    """Make the folder and what belongs into it. Raises UserError where it cannot be written."""
    folder = folder_of(options).resolve()
    if folder.exists():
        shutil.rmtree(folder)
    try:
        folder.mkdir()
    except OSError as error:
        raise UserError(
            f"its folder {folder} cannot be made ({(error.strerror or str(error)).lower()})",
            f"then {options.then}",
            "another mapout",
        ) from error
    words = _words(outcome, options, folder)
    executable = shutil.which(EXECUTABLES[options.then]) or EXECUTABLES[options.then]
    return Job(options.then, executable, tuple(words), folder, folder / log_of(options).name)


def _words(outcome: Outcome, options: Options, folder: Path) -> list[str]:
    from ml_phaser.exchange import next_steps as steps
    from ml_phaser.exchange.sequence import read_sequence

    facts = steps.of_result(options.hklout.resolve(), outcome.data)
    sequence = None if options.seqin is None else read_sequence(options.seqin)
    if options.then == "shelxe":
        stem = _shelx_stem(beside(options.mapout, ".phi").stem)
        _write_for_shelxe(folder / f"{stem}.phi", outcome)
        return steps.shelxe_words(f"{stem}.phi", steps.solvent(facts.volume, sequence))
    assert sequence is not None  # check_program
    copy = _write_sequence(folder / SEQUENCE_COPY, sequence)
    if options.then == "modelcraft":
        return [*steps.modelcraft_words(facts, copy, directory="."), "--overwrite-directory"]
    return steps.autobuild_words(facts, copy, sequence.kinds)


def _shelx_stem(stem: str) -> str:
    """A stem SHELXE can be given, as like the map's as can be."""
    from ml_phaser.exchange.shelxe import LONGEST_STEM

    return re.sub(r"[^A-Za-z0-9_.+-]", "_", stem).lstrip("-")[:LONGEST_STEM] or "phases"


def _write_for_shelxe(phi: Path, outcome: Outcome) -> None:
    from ml_phaser.exchange.shelxe import companions, shelxe_set

    wilson = outcome.wilson
    texts = shelxe_set(outcome.data, outcome.phases, wilson.f, wilson.sigf, title=phi.stem)
    for path, text in zip(companions(phi), (texts.phi, texts.hkl, texts.ins), strict=True):
        path.write_text(text, encoding="ascii")


def _write_sequence(path: Path, sequence: Sequence) -> Path:
    from ml_phaser.exchange.sequence import fasta

    path.write_text(fasta(sequence), encoding="ascii")
    return path


def run(job: Job, say: Callable[[str], None]) -> tuple[Then, int]:
    """Run a program to its end; every line it prints goes to its log and to ``say``.

    Ctrl-C and requests to terminate are passed on to it and to all it has started; what has not ended ``GRACE`` seconds
    later is killed.

    Returns
    -------
    what became of it, and the number of the signal that interrupted it (0: none)

    Raises
    ------
    UserError : it could not be started
    """
    began = time.monotonic()
    with _Child() as child, job.log.open("w", encoding="utf-8") as log:
        process = child.start(job)
        try:
            assert process.stdout is not None
            for line in process.stdout:
                log.write(line)
                log.flush()
                say(line.rstrip("\n"))
        except BaseException:  # nobody listens any more, or the disk is full: leave nothing running
            child.stop(signal.SIGTERM)
            raise
        finally:
            process.wait()
    seconds = round(time.monotonic() - began, 1)
    said = "interrupted" if child.received else reached(job)
    return Then(job.program, job.command, process.returncode, seconds, job.log, said), child.received


class _Child:
    """A program in a process group of its own; while the context lasts, signals that would end us go to it instead.

    ``received`` is the number of the first one (0: none).
    """

    def __init__(self) -> None:
        self.received = 0
        self._process: subprocess.Popen[str] | None = None
        self._before: dict[int, Any] = {}
        self._timer: threading.Timer | None = None

    def __enter__(self) -> _Child:
        with suppress(ValueError):  # not in the main thread
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup and background jobs want it
                    self._before[number] = signal.signal(number, self._pass_on)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._timer is not None:
            self._timer.cancel()

    def start(self, job: Job) -> subprocess.Popen[str]:
        """Begin. Raises UserError where that is impossible."""
        try:
            self._process = subprocess.Popen(
                [job.executable, *job.words[1:]], cwd=job.folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT, text=True, encoding="utf-8", errors="replace", start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            raise UserError(
                f"{job.executable} cannot be started ({(error.strerror or str(error)).lower()})",
                f"then {job.program}",
                SOURCES[job.program],
            ) from error
        if self.received:  # while it was starting
            self.stop(self.received)
        return self._process

    def stop(self, number: int) -> None:
        """Send a signal to the whole group, and end what has not ended ``GRACE`` seconds after the first one."""
        if self._process is None:
            return
        self._send(number)
        if self._timer is None:
            self._timer = threading.Timer(GRACE, self._send, (signal.SIGKILL,))
            self._timer.daemon = True
            self._timer.start()

    def _send(self, number: int) -> None:
        with suppress(OSError):
            if self._process is not None:
                os.killpg(self._process.pid, number)

    def _pass_on(self, number: int, frame: Any) -> None:
        self.received = self.received or number
        self.stop(number)


# ---------------------------------------------------------------------------------- what it reached


def not_run(options: Options, why: str) -> Then:
    """The record of a program that was not started."""
    return Then(options.then, "", None, 0.0, None, f"not run: {why}")


def reached(job: Job) -> str:
    """What a program that has ended says of its own result, in a sentence."""
    text = job.log.read_text(encoding="utf-8", errors="replace")
    return {"modelcraft": _modelcraft, "shelxe": _shelxe, "autobuild": _autobuild}[job.program](text, job.folder)


def _modelcraft(text: str, folder: Path) -> str:
    try:
        report = json.loads((folder / "modelcraft.json").read_text(encoding="utf-8"))
        final = report["final"]
        return (
            f"{int(final['residues'])} residues, R-work {final['r_work']:.3f}, R-free {final['r_free']:.3f} "
            f"(cycle {int(final['cycle'])})"
        )
    except (OSError, ValueError, KeyError, TypeError):
        return "no model: its report (modelcraft.json) has no result"


def _shelxe(text: str, folder: Path) -> str:
    found = _CC.search(text)
    if found is None:
        return "no trace of a chain was saved"
    cc = float(found[2])
    side = "above" if cc >= TRACED else "below"
    return f"best trace in cycle {found[1]}, CC {cc:.2f} %, {side} the {TRACED:g} % that mark a solution"


def _autobuild(text: str, folder: Path) -> str:
    summaries = sorted(folder.glob("AutoBuild_run_*_/AutoBuild_summary.dat"))
    with suppress(OSError):
        text += "".join(p.read_text(encoding="utf-8", errors="replace") for p in summaries[-1:])
    best, residues = _R_FACTORS.findall(text), _RESIDUES.findall(text)
    if not best:
        return "no model: its log names no best solution"
    cycle, r, free = best[-1]
    built = f"{residues[-1]} residues, " if residues else ""
    return f"{built}R {float(r):.2f}, R-free {float(free):.2f} (cycle {cycle})"
