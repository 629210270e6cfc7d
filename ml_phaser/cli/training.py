"""What the commands that train networks have in common: options, bar, interruption, one session of the loop."""

from __future__ import annotations

import importlib.util
import math
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml_phaser.cli.arguments import NO, YES, convert, unknown
from ml_phaser.cli.progress import Reporter
from ml_phaser.errors import UserError
from ml_phaser.parameters import Parameter

if TYPE_CHECKING:
    from torch import nn

    from ml_phaser.training.loop import Lesson, Optimiser, Schedule
    from ml_phaser.training.record import Recorder


def option_lines(table: tuple[Parameter, ...]) -> list[str]:
    """A line of help for each option."""
    values = {"int": "N", "float": "X", "flag": "", "text": "TEXT"}
    out = []
    for p in table:
        value = "|".join(p.choices) or values[p.kind]
        unit = f" in {p.unit}" if p.unit else ""
        default = f" [{p.default}]" if p.default not in (None, False) else ""
        out.append(f"  {p.name + ' ' + value:<26}{p.help}{unit}{default}")
    return out


def parse(argv: list[str], table: tuple[Parameter, ...]) -> dict[str, Any]:
    """Checked values by name, defaults included, None where there is neither. Raises UserError."""
    by_name = {p.name: p for p in table}
    given: dict[str, Any] = {}
    words = list(argv)
    while words:
        word = words.pop(0)
        name, equals, value = word.partition("=")
        parameter = by_name.get(name.lstrip("-").lower())
        if parameter is None:
            raise unknown(word, by_name, "command line", "option")
        if parameter.name in given:
            raise UserError("given twice", parameter.name)
        if not equals:
            if parameter.kind == "flag":
                value = words.pop(0) if words and words[0].lower() in YES + NO else "yes"
            elif words:
                value = words.pop(0)
        if not value.strip():
            raise UserError("has no value", parameter.name)
        given[parameter.name] = convert(parameter, value)
    return {p.name: given.get(p.name, p.default) for p in table}


class PlainReporter(Reporter):
    """The reporter without its bar, for machines that have no rich."""

    def __enter__(self) -> PlainReporter:
        return self


def reporter(quiet: bool) -> Reporter:
    """Bar and log, as far as this machine has them."""
    return Reporter(quiet=quiet) if importlib.util.find_spec("rich") else PlainReporter(quiet=quiet)


@contextmanager
def stopping() -> Iterator[Callable[[], bool]]:
    """Within it, the first Ctrl-C (or termination request) is only noted: the function given says so. The next one
    ends the program."""
    asked = False

    def note(signum: int, frame: object) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    previous = {}
    with suppress(ValueError):  # not in the main thread
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is not signal.SIG_IGN:
                previous[number] = signal.signal(number, note)
    try:
        yield lambda: asked
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def choose_device(wanted: str) -> str:
    """ "cpu" or "cuda"; UserError where a GPU was asked for and there is none."""
    import torch

    if wanted == "cuda" and not torch.cuda.is_available():
        raise UserError("no usable CUDA device was found", "device cuda", "device cpu, or device auto")
    return "cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu"


def check_asked(
    options: dict[str, Any],
    table: tuple[Parameter, ...],
    program: str,
    only_export: tuple[str, ...],
    paths: tuple[str, ...],
) -> dict[str, Any]:
    """Options of a command that trains or exports, ``paths`` made of text; ``weights`` is ``out`` if not given.

    Raises
    ------
    UserError
        for what is missing, does nothing (``only_export`` without an export) or is in the way
    """
    for name in ("data", "out"):
        if options[name] is None:
            raise UserError("is missing", name, f"{program} --help")
    if not options["seconds"] and not options["export"]:
        raise UserError("nothing to do", hint="seconds 6000 to train, export NAME to write the network")
    if options["session"] is not None and not options["seconds"]:
        raise UserError("is part of a budget that is not given", "session", "seconds 6000 session 600")
    if not options["export"]:
        idle = [n for n in only_export if options[n] != next(p.default for p in table if p.name == n)]
        if idle:
            raise UserError("does nothing without export", idle[0], "export NAME")
    elif Path(options["export"]).name != options["export"]:
        raise UserError("is a name, not a path", f"export {options['export']}", "export NAME weights FOLDER")
    found = {n: Path(options[n]).expanduser() if options[n] else None for n in paths}
    found["weights"] = Path(options["weights"]).expanduser() if options["weights"] else found["out"]
    options = {**options, **found}
    for path in exported(options):
        if path.exists() and not options["overwrite"]:
            raise UserError("exists already", str(path), "overwrite yes, or another name")
    if options["export"]:
        if options["holdout"] is None and options["data"].is_file():
            raise UserError("holds no held-out entries", str(options["data"]), "holdout FOLDER, or holdout FILE.npz")
        if importlib.util.find_spec("safetensors") is None:
            raise UserError("safetensors is not installed", "export", "pip install safetensors, or export elsewhere")
    return options


def exported(options: dict[str, Any]) -> list[Path]:
    """Files an export writes."""
    if not options["export"]:
        return []
    stem = options["weights"] / options["export"]
    files = [stem.with_name(stem.name + suffix) for suffix in (".json", ".safetensors")]
    return files + ([options["benchout"]] if options.get("benchout") else [])


def run_session(
    network: nn.Module, schedule: Schedule, lessons: Callable[[int], Lesson], out: Path, recorder: Recorder,
    notify: Reporter, *, session: float | None, device: str = "cpu",
    optimise: Callable[[nn.Module, Schedule], Optimiser] | None = None,
) -> None:  # fmt: skip
    """One session of training, of ``session`` seconds or to the end of the budget; see ``training.loop.train``.

    Raises
    ------
    UserError
        also one that says how to go on, where the user stopped it
    """
    from ml_phaser.training.loop import CHECKPOINT, read_checkpoint, train

    checkpoint = out / CHECKPOINT
    if checkpoint.exists():
        earlier = read_checkpoint(checkpoint)
        samples = earlier.get("samples", earlier["steps"] * schedule.batch)
        recorder.begin(earlier["seconds"], earlier["steps"], samples)
    with stopping() as asked:
        state = train(
            network, schedule, lessons, out, device=device, optimise=optimise,
            session=math.inf if session is None else session, say=notify.say,
            progress=lambda fraction: notify.progress(fraction, None), saved=recorder, stop=asked,
        )  # fmt: skip
        stopped = asked()
    done = f"{state.seconds:.0f} of {schedule.seconds:.0f} s"
    if stopped:
        what = f"interrupted; step {state.steps} ({done}) is safe in {checkpoint}"
        raise UserError(what, hint="the same command, which goes on from there")
    notify.say(f"{state.steps} steps, {state.samples} samples, {state.seconds:.0f} s: {checkpoint}")


def run_command(argv: list[str], program: str, usage: str, run: Callable[[list[str]], None]) -> int:
    """Print the help, or run; the exit status."""
    if not argv or any(word in ("--help", "-h") for word in argv):
        print(usage, end="", file=sys.stdout if argv else sys.stderr)
        return 0 if argv else 1
    try:
        run(argv)
    except UserError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 1
    return 0
