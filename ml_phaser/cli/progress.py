"""What the user sees while the program works: log lines on stdout, a progress bar on a terminal's stderr."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ml_phaser.outcome import Trial


class Reporter:
    """``Notify`` for the command line, used as a context.

    The bar appears only where standard error is a terminal and ``quiet`` is off; the log goes to standard
    output line by line, so that it can be followed.
    """

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Reporter:
        if not self._quiet and sys.stderr is not None and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.percentage:>3.0f} %"),
                TimeElapsedColumn(),
                TextColumn("{task.fields[best]}"),
                console=Console(stderr=True),
                transient=True,
                redirect_stdout=sys.stdout.isatty(),  # else rich would send the log to stderr
                redirect_stderr=False,
            )
            self._task = self._bar.add_task("", total=1.0, best="", visible=False)
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def say(self, text: str) -> None:
        if not self._quiet:
            print(text, flush=True)

    def stage(self, name: str) -> None:
        self.say(f"\n -- {name}")
        if self._bar is not None:
            self._bar.reset(self._task, total=1.0, description=name, best="", visible=False)

    def progress(self, fraction: float, best: Trial | None, trials: Sequence[Trial] = ()) -> None:
        if self._bar is None:
            return
        text = "" if best is None else f"best CC(free) {best.score:.2f}"
        self._bar.update(self._task, completed=min(max(fraction, 0.0), 1.0), best=text, visible=True)
