"""Output files appear whole or not at all."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ml_phaser.errors import UserError

_HINTS = {
    errno.ENOSPC: "free some disk space, or write elsewhere",
    errno.EDQUOT: "free some of your disk quota, or write elsewhere",
    errno.EFBIG: "write to a disk that allows larger files",
    errno.EACCES: "another folder, or ask for permission to write there",
    errno.EPERM: "another folder, or ask for permission to write there",
    errno.EROFS: "a folder on a disk that can be written to",
    errno.ENOENT: "create the folder first, or check the spelling",
    errno.ENOTDIR: "a path whose parent is a folder",
    errno.EISDIR: "a file name, not a folder",
    errno.ENAMETOOLONG: "a shorter file name",
}


def cannot_write(path: Path | str, error: OSError) -> UserError:
    """The ``UserError`` that tells the user why ``path`` could not be written."""
    reason = (error.strerror or str(error) or type(error).__name__).strip()
    hint = _HINTS.get(error.errno or 0, "another output path")
    return UserError(f"cannot be written ({reason[:1].lower()}{reason[1:]})", str(path), hint)


def _default_mode() -> int:
    """Permissions an ordinary new file would get (``mkstemp`` gives the owner alone access)."""
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


@contextmanager
def atomic(path: Path | str) -> Iterator[Path]:
    """Write to a temporary file beside ``path``, which replaces ``path`` at the end.

    ::

        with atomic("out.map") as tmp:
            write(tmp)

    Whatever ends the block early (an error, Ctrl-C) removes the temporary file and leaves an existing
    ``path`` untouched. The temporary name keeps the extension, which some writers read the format from. A
    symbolic link is followed; a device such as ``/dev/null`` is written to directly. Do nothing but write
    inside the block: every ``OSError`` raised there is taken for this file's.

    Raises
    ------
    UserError
        if the file cannot be written, or the disk is full (made from ``OSError``)
    """
    path = Path(path)
    try:
        final = path.resolve()
        if final.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        direct = final.exists() and not final.is_file()
        if direct:
            tmp = final
        else:
            handle, name = tempfile.mkstemp(prefix=f".{final.stem[:40]}-", suffix=final.suffix[-20:], dir=final.parent)
            os.close(handle)
            tmp = Path(name)
    except OSError as error:
        raise cannot_write(path, error) from error
    try:
        yield tmp
        if not direct:
            _flush(tmp)
            tmp.chmod(final.stat().st_mode & 0o777 if final.exists() else _default_mode())
            tmp.replace(final)
    except BaseException as error:
        if not direct:
            with suppress(OSError):
                tmp.unlink()
        if isinstance(error, OSError):
            raise cannot_write(path, error) from error
        raise


def _flush(path: Path) -> None:
    """Force the file to disk, so that a full or failing disk is noticed before the old file is replaced."""
    handle = os.open(path, os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
