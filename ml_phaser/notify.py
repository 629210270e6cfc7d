"""How a long computation tells of its progress; who listens (terminal, log, nobody) is not its concern."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from ml_phaser.outcome import Trial


class Notify(Protocol):
    """What the pipeline may say while it runs."""

    def say(self, text: str) -> None:
        """One line (or several) for the log."""
        ...

    def stage(self, name: str) -> None:
        """A new stage begins, e.g. "normalise"."""
        ...

    def progress(self, fraction: float, best: Trial | None, trials: Sequence[Trial] = ()) -> None:
        """Part of the current stage that is done (0-1), the best trial so far, and all of them."""
        ...


class Silent:
    """Listens to nothing."""

    def say(self, text: str) -> None:
        pass

    def stage(self, name: str) -> None:
        pass

    def progress(self, fraction: float, best: Trial | None, trials: Sequence[Trial] = ()) -> None:
        pass
