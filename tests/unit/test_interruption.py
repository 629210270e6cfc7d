"""Requests to end: heard even where Python loses the exception."""

import os
import signal
import sys
import time
from contextlib import suppress

import pytest

from ml_phaser.cli import interruption
from ml_phaser.cli.interruption import deaf, interruptible

REQUESTS = [signal.SIGINT, signal.SIGTERM]


@pytest.fixture(autouse=True)
def late():
    """Requests that come after the context has ended."""
    came = []
    before = {n: signal.signal(n, lambda number, frame: came.append(number)) for n in REQUESTS}
    yield came
    for number, handler in before.items():
        signal.signal(number, handler)


def ask(number):
    os.kill(os.getpid(), number)


def wait(seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.01)


@pytest.mark.parametrize("number", REQUESTS)
def test_a_request_is_an_exception(number, late):
    with interruptible(), pytest.raises(KeyboardInterrupt):
        ask(number)
        wait(5)
    ask(number)
    assert late == [number]


class Finaliser:
    def __init__(self, number):
        self.number = number

    def __del__(self):
        ask(self.number)
        wait(0.05)


@pytest.mark.parametrize("number", REQUESTS)
def test_heard_though_lost_in_a_finaliser(number, capfd):
    hook = sys.unraisablehook
    with interruptible(), pytest.raises(KeyboardInterrupt):
        Finaliser(number)
        wait(4)
    assert capfd.readouterr().err == ""
    assert sys.unraisablehook is hook


@pytest.mark.parametrize("number", REQUESTS)
def test_heard_though_swallowed(number, monkeypatch):
    monkeypatch.setattr(interruption, "UNHEARD", 0.3)
    with interruptible(), pytest.raises(KeyboardInterrupt):
        with suppress(BaseException):
            ask(number)
            wait(5)
        wait(5)


def test_other_losses_are_told():
    told = []
    before, sys.unraisablehook = sys.unraisablehook, told.append

    class Faulty:
        def __del__(self):
            raise ValueError("mine")

    try:
        with interruptible():
            Faulty()
    finally:
        sys.unraisablehook = before
    assert [one.exc_type for one in told] == [ValueError]


def test_deaf_to_what_comes_later(late, monkeypatch):
    monkeypatch.setattr(interruption, "UNHEARD", 0.1)
    with interruptible():
        with suppress(KeyboardInterrupt):
            ask(signal.SIGINT)
            wait(5)
        deaf()
        for number in REQUESTS:
            ask(number)
        wait(0.3)
    assert late == []


def test_nothing_comes_after_the_end(late, monkeypatch):
    monkeypatch.setattr(interruption, "UNHEARD", 0.2)
    with interruptible(), suppress(KeyboardInterrupt):
        ask(signal.SIGTERM)
        wait(5)
    wait(0.5)
    assert late == []


def test_ignored_requests_stay_ignored():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with interruptible():
        ask(signal.SIGINT)
        wait(0.1)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
