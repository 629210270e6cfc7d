"""Ctrl-C and termination requests: one exception for both, asked for again until somebody hears it."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import FrameType

REQUESTS = (signal.SIGINT, signal.SIGTERM)
SOON = 0.05  # seconds
UNHEARD = 5.0  # seconds after which a request counts as swallowed; longer than clearing up takes


def deaf() -> None:
    """Further requests are ignored: the last words of a program that ends anyway are not to be spoiled."""
    with suppress(ValueError):  # not in the main thread
        for number in REQUESTS:
            signal.signal(number, signal.SIG_IGN)


@contextmanager
def interruptible() -> Iterator[None]:
    """Within it, requests to end raise KeyboardInterrupt in the main thread.

    Not while a module loads: a library written in C++ aborts the process then. And an exception can get lost, in a
    finaliser, in a callback from C. In both cases the request is made again, until ``deaf`` says that it was heard.
    """
    again: list[threading.Timer] = []

    def repeat(number: int, seconds: float) -> None:
        later = threading.Timer(seconds, os.kill, (os.getpid(), number))
        later.daemon = True
        later.start()
        again.append(later)

    def stop(number: int, frame: FrameType | None) -> None:
        if _importing(frame):
            repeat(number, SOON)
            return
        repeat(number, UNHEARD)
        raise KeyboardInterrupt

    def lost(what: Any) -> None:
        if issubclass(what.exc_type, KeyboardInterrupt):
            repeat(signal.SIGINT, SOON)
        else:
            hook(what)

    previous: dict[signal.Signals, Callable[..., Any] | int | None] = {}
    hook = sys.unraisablehook
    with suppress(ValueError):  # not in the main thread
        for number in REQUESTS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup and background jobs want it
                previous[number] = signal.signal(number, stop)
        sys.unraisablehook = lost
    try:
        yield
    finally:
        for timer in again:
            timer.cancel()
        sys.unraisablehook = hook
        for number, handler in previous.items():
            signal.signal(number, handler)


def _importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False
