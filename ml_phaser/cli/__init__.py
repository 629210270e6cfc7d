"""The command ``ml_phaser``: the only package that prints or exits. Heavy libraries are imported late."""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from ml_phaser import __version__
from ml_phaser.cli.interruption import deaf, interruptible
from ml_phaser.errors import UserError

if TYPE_CHECKING:
    from ml_phaser.cli.main_job import Session

COMMANDS = {
    "compare": "agreement of two sets of phases, or of phases and a model",
    "install": "put the plugin for ccp4i2 or Phenix into the suite",
    "uninstall": "take it out again",
    "next": "commands for the programs that can go on from phases",
    "export": "the networks as ONNX files, for ONNX Runtime and other programs",
    "refine": "coordinates and B of a model against measured amplitudes",
    "simulate": "measured-looking data of a crystal of known structure",
    "train": "train the network of the learned density modification",
    "train_one_shot": "train a network that predicts density from the Patterson map",
    "train_hand": "train the judge that tells a map from its mirror image",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code, 0 or 1. Never raises, never shows a traceback to a user.

    With ``ML_PHASER_DEBUG`` set in the environment, the traceback of any failure is shown.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    # Matrices that NumPy multiplies are small: on a busy machine threads of OpenBLAS made that several times slower.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        with _polite():
            code = _dispatch(words)
            sys.stdout.flush()
            return code
    except BrokenPipeError:
        # Whoever read our log has gone (ml_phaser ... | head); Python would complain again at its end.
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _dispatch(words: list[str]) -> int:
    first = words[0].lower() if words else ""
    if first in COMMANDS:
        return _sub_command(first, words[1:])
    if first in ("-h", "-help", "help") or "--help" in words:
        from ml_phaser.cli.arguments import help_text

        print(help_text(COMMANDS))
        return 0
    if first in ("--version", "version"):
        print(f"ml_phaser {__version__}")
        return 0
    if first == "-i":
        print(f" Program:             ml_phaser; version {__version__}")
        return 0
    return _main_job(words)


def _main_job(words: list[str]) -> int:
    from ml_phaser.cli.main_job import Session

    session = Session(quiet=any(word.lower().lstrip("-") == "quiet" for word in words))
    try:
        from ml_phaser.cli import main_job
        from ml_phaser.cli.arguments import understand

        request = understand(words, sys.stdin, tuple(COMMANDS))
        return main_job.run(request, session)
    except BrokenPipeError:
        session.record("interrupted")
        raise
    except BaseException as error:
        return _fail(error, session)


def _sub_command(name: str, words: list[str]) -> int:
    try:
        return int(importlib.import_module(f"ml_phaser.cli.{name}").main(words))
    except BrokenPipeError:
        raise
    except SystemExit as error:
        return int(error.code) if isinstance(error.code, int) else int(error.code is not None)
    except BaseException as error:
        deaf()
        message = _message(error, "interrupted")
        print(f"ml_phaser {name}: {message}", file=sys.stderr)
        return 1


def _fail(error: BaseException, session: Session) -> int:
    deaf()
    message = _message(error, session.interrupted())
    session.record("interrupted" if _of_interrupt(error) else "failed", message)
    session.fail(message)
    return 1


def _message(error: BaseException, interrupted: str) -> str:
    if os.environ.get("ML_PHASER_DEBUG"):
        import traceback

        traceback.print_exception(error)
    if _of_interrupt(error):
        return interrupted
    if isinstance(error, UserError):
        return " ".join(str(error).split())
    if isinstance(error, ModuleNotFoundError) and error.name == "torch":
        return "this needs PyTorch, which is not installed. Try: pip install torch"
    if isinstance(error, MemoryError):
        return "not enough memory. Try: a lower resolution, or a machine with more memory"
    text = " ".join(str(error).split())[:200]
    return (
        f"this is a bug in ml_phaser: {type(error).__name__}: {text}. "
        "Try: again with ML_PHASER_DEBUG=1 in the environment, and report what it shows"
    )


def _of_interrupt(error: BaseException | None) -> bool:
    """Whether Ctrl-C began it: what was being closed at that moment may complain in its own words."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None


@contextmanager
def _polite() -> Iterator[None]:
    """Termination requests end like Ctrl-C; libraries' warnings stay away from users."""
    with interruptible(), warnings.catch_warnings():
        if not os.environ.get("ML_PHASER_DEBUG"):
            warnings.simplefilter("ignore")
        yield
