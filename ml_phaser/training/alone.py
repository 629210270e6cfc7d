"""One training at a time in a folder: two would take turns at its checkpoint and neither would say so."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ml_phaser.atomic import cannot_write
from ml_phaser.errors import UserError

LOCK = "lock"


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Within it no other process may train in ``folder``, which is made if need be; the system undoes it when the
    process ends, however it ends. Raises UserError."""
    try:
        import fcntl
    except ImportError:  # not a POSIX system
        yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / LOCK).open("w")
    except OSError as error:
        raise cannot_write(folder, error) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            what = "another training is going on in this folder"
            raise UserError(what, str(folder), "wait for it, stop it, or another out folder") from None
        yield
