"""The main job: banner, pipeline, tables, verdict, last words."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ml_phaser.parameters import Options


def _outputs(options: Options) -> tuple[Path, ...]:
    paths = (options.mapout, options.hklout, options.pattout, options.jsonout, options.xmlout, options.xyzout)
    return tuple(p for p in paths if p is not None)


def _stamp(path: Path) -> tuple[int, int] | None:
    """Identity of a file's present content (inode and time of change), None where there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


@dataclass
class Session:
    """One run as its user sees it: whether to be quiet, when it began, how it ended."""

    quiet: bool = False
    options: Options | None = None
    wall: float = field(default_factory=time.monotonic)
    cpu: os.times_result = field(default_factory=os.times)
    before: dict[Path, tuple[int, int] | None] = field(default_factory=dict)

    def begin(self, options: Options) -> None:
        """Remember the outputs as they were, to be able to tell later what was written."""
        self.options = options
        self.before = {path: _stamp(path) for path in _outputs(options)}

    def written(self) -> list[Path]:
        """Outputs that this run has replaced or made."""
        return [path for path, stamp in self.before.items() if _stamp(path) != stamp]

    def interrupted(self) -> str:
        """The truth about an interrupted run."""
        written = self.written()
        if not written:
            return "interrupted; nothing was written"
        return f"interrupted; complete files were written: {', '.join(map(str, written))}"

    def ending(self, message: str) -> str:
        """CCP4's last two lines."""
        from ml_phaser.report.log import ending

        now = os.times()
        return ending(message, now.user - self.cpu.user, now.system - self.cpu.system, time.monotonic() - self.wall)

    def fail(self, message: str) -> None:
        """The message on stderr and, as the log's last words, on stdout; once where both are one terminal."""
        sys.stdout.flush()
        both = sys.stdout.isatty() and sys.stderr.isatty()
        if self.quiet or not both:
            print(f"ml_phaser: {message}", file=sys.stderr, flush=True)
        if not self.quiet:
            print(self.ending(message), flush=True)


def run(
    options: Options,
    data_lines: Sequence[str] = (),
    notes: Sequence[str] = (),
    *,
    session: Session | None = None,
) -> int:
    """Run the pipeline and print the log; 0 at the end. ``ml_phaser.cli.main`` tells of errors."""
    import datetime

    from ml_phaser import __version__
    from ml_phaser.cli.progress import Reporter
    from ml_phaser.report import log

    session = session or Session(quiet=options.quiet)
    session.begin(options)
    loud = not options.quiet
    if loud:
        print(log.banner(__version__, _user(), datetime.datetime.now()))
        print(log.data_lines(data_lines), end="")
        print(log.beginning(options, notes), flush=True)
    from ml_phaser.pipeline import run as phase

    with Reporter(quiet=options.quiet) as notify:
        outcome = phase(options, notify)
    if loud:
        print(log.report(outcome, options))
        print(session.ending("Normal termination"))
    else:
        print(log.verdict_line(outcome))
    return 0


def _user() -> str:
    import getpass

    try:
        return getpass.getuser().split()[0]
    except (OSError, KeyError, IndexError):
        return "unknown"
