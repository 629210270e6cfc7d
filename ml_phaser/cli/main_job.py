"""The main job: banner, pipeline, tables, verdict, last words."""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from ml_phaser.cli.arguments import Request
from ml_phaser.cli.seed_options import seed_files
from ml_phaser.parameters import PARAMETERS, Options
from ml_phaser.report.live import Live, stamp


def _outputs(options: Options) -> tuple[Path, ...]:
    paths = (getattr(options, p.name) for p in PARAMETERS if p.kind == "output")
    named = tuple(dict.fromkeys((*(p for p in paths if p is not None), *seed_files(options))))
    if options.shelxout is None:
        return named
    from ml_phaser.exchange.shelxe import companions

    return (*named, *(p for p in companions(options.shelxout) if p not in named))


@dataclass
class Session:
    """One run as its user sees it: whether to be quiet, when it began, how far it has come, how it ended.

    ``records`` are the outputs that tell of the run even if it fails (parameter to path), ``before`` the others with
    what they were; ``phased``: everything of this run is written, a next program may follow.
    """

    quiet: bool = False
    wall: float = field(default_factory=time.monotonic)
    cpu: os.times_result = field(default_factory=os.times)
    before: dict[Path, tuple[int, int] | None] = field(default_factory=dict)
    records: dict[str, Path] = field(default_factory=dict)
    live: Live | None = None
    phased: bool = False

    def begin(self, request: Request) -> Live:
        """Remember the results as they were, to be able to tell later what was written; returns who listens to the
        run."""
        self.quiet, self.records = request.options.quiet, request.records
        results = set(_outputs(request.options)) - set(self.records.values())
        self.before = {path: stamp(path) for path in sorted(results)}
        self.live = Live(request.options, self.records.get("xmlout"))
        return self.live

    def written(self) -> list[Path]:
        """Results that this run has replaced or made."""
        return [path for path, before in self.before.items() if stamp(path) != before]

    def interrupted(self) -> str:
        """The truth about an interrupted run."""
        written = self.written()
        if written:
            return f"interrupted; complete files were written: {', '.join(map(str, written))}"
        if self.records:
            return (
                f"interrupted; no results were written, the record is in {', '.join(map(str, self.records.values()))}"
            )
        return "interrupted; nothing was written"

    def record(self, status: str, message: str = "") -> None:
        """Say in the records asked for that the run failed or was interrupted; not where all results are there."""
        if self.live is None or not self.records or self.phased or len(self.written()) == len(self.before):
            return
        from ml_phaser.report.live import write_records

        with suppress(Exception):  # the message of the failure must be printed, whatever happens here
            write_records(self.records, self.live.record(status, message if status == "failed" else None))

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


def run(request: Request, session: Session) -> int:
    """Run the pipeline and print the log; 0 at the end. ``ml_phaser.cli.main`` tells of errors."""
    import datetime

    from ml_phaser import __version__
    from ml_phaser.cli.progress import Reporter
    from ml_phaser.report import log

    options = request.options
    live = session.begin(request)
    loud = not options.quiet
    if loud:
        print(log.banner(__version__, _user(), datetime.datetime.now()))
        print(log.data_lines(request.data_lines), end="")
        print(log.beginning(options, request.notes), flush=True)
    from ml_phaser.pipeline import run as phase

    with Reporter(quiet=options.quiet) as live.listener:
        outcome = phase(options, live)
        session.phased = True
    print(log.report(outcome, options) if loud else log.verdict_line(outcome))
    if options.then != "none":
        from ml_phaser.cli.then import go_on

        go_on(outcome, options)
    if loud:
        print(session.ending("Normal termination"))
    return 0


def _user() -> str:
    import getpass

    try:
        return getpass.getuser().split()[0]
    except (OSError, KeyError, IndexError):
        return "unknown"
