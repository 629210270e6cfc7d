"""A run while it lasts, and the record of one that fails or is interrupted."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml_phaser.errors import UserError
from ml_phaser.notify import Notify, Silent
from ml_phaser.parameters import Options

if TYPE_CHECKING:
    from ml_phaser.outcome import Trial

SHORTEST_PAUSE = 1.0  # s between two versions of program.xml
LARGEST_SHARE = 0.02  # of the time that may go into writing it


def stamp(path: Path) -> tuple[int, int] | None:
    """Identity of a file's present content (inode and time of change), None where there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


class Live:
    """``Notify`` that remembers how far a run has come, passes on to ``listener`` what it hears, and rewrites
    program.xml: at each stage, and in between once a second or, where that takes long, more seldom.

    A version that cannot be written is left out: only the last one, which the pipeline writes, may fail the run. Once
    the pipeline has written it, it is left alone. A device or pipe gets that last one only.
    """

    def __init__(self, options: Options, xml: Path | None = None, *, now: Callable[[], float] = time.monotonic) -> None:
        self.listener: Notify = Silent()
        self._options, self._now = options, now
        self._xml = None if xml is None or (xml.exists() and not xml.is_file()) else xml
        self._ours = None if xml is None else stamp(xml)
        self._began = now()
        self._due = self._began
        self._stage, self._fraction = "begin", 0.0
        self._best: Trial | None = None
        self._trials: Sequence[Trial] = ()

    def say(self, text: str) -> None:
        self.listener.say(text)

    def stage(self, name: str) -> None:
        self._stage = name
        self._write()
        self.listener.stage(name)

    def progress(self, fraction: float, best: Trial | None, trials: Sequence[Trial] = ()) -> None:
        self._fraction = max(self._fraction, min(fraction, 1.0))
        self._best, self._trials = best, trials
        if self._now() >= self._due:
            self._write()
        self.listener.progress(fraction, best, trials)

    def record(self, status: str, message: str | None = None) -> dict[str, Any]:
        """What is known so far; ``status`` "running", "failed" (``message`` says why) or "interrupted"."""
        from ml_phaser.report.record import unfinished_record

        return unfinished_record(
            self._options, status, stage=self._stage, fraction=self._fraction, message=message,
            seconds=round(self._now() - self._began, 3), trials=self._trials, best=self._best,
        )  # fmt: skip

    def _write(self) -> None:
        if self._xml is None or stamp(self._xml) != self._ours:
            return
        from ml_phaser.report.program_xml import write_xml

        before = self._now()
        with suppress(UserError):
            write_xml(self._xml, self.record("running"))
        self._ours = stamp(self._xml)
        took = self._now() - before
        self._due = self._now() + max(SHORTEST_PAUSE, took / LARGEST_SHARE)


def write_records(paths: Mapping[str, Path], record: dict[str, Any]) -> None:
    """Write a record without a result to those of jsonout, xmlout and reportout that are in ``paths``; a file that
    cannot be written is left out, as the run has failed with a better reason."""
    from ml_phaser.report.html import write_html
    from ml_phaser.report.program_xml import write_xml
    from ml_phaser.report.record import write_json

    writers = {"jsonout": write_json, "xmlout": write_xml, "reportout": write_html}
    for name, path in paths.items():
        with suppress(UserError):
            writers[name](path, record)
