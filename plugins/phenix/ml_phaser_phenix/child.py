"""The program ml_phaser as a child process: its log goes on as it comes, and it never outlives us."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from libtbx.utils import Sorry

GRACE = 10.0  # s; for the child's last words after it was told to stop
SEARCH_PATHS = ("PYTHONPATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")


def environment(ours: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment without what Phenix put there for its own Python: the child's Python is another.

    Entries of the search paths that lie in this Python's or Phenix's own tree are left out, the user's stay.
    """
    found = dict(os.environ if ours is None else ours)
    build = found.get("LIBTBX_BUILD")
    trees = [Path(sys.prefix).resolve(), *([Path(build).resolve().parent] if build else [])]
    for name in SEARCH_PATHS:
        entries = [entry for entry in found.pop(name, "").split(os.pathsep) if entry]
        kept = [entry for entry in entries if not any(_within(Path(entry), tree) for tree in trees)]
        if kept:
            found[name] = os.pathsep.join(kept)
    found.pop("PYTHONHOME", None)
    found["PYTHONUNBUFFERED"] = "1"
    return found


def _within(path: Path, tree: Path) -> bool:
    path = path.resolve()
    return path == tree or tree in path.parents


def follow(words: Sequence[str], log: Any) -> tuple[int, str]:
    """Run to the end, every line of the log written to ``log`` at once; the exit status, and the last words ("": none).

    Ctrl-C and requests to end reach the child once, from here: it has a session of its own. Sorry for these, and
    where it cannot be run.
    """
    with tempfile.TemporaryFile() as errors:
        try:
            child = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment(),
                start_new_session=True,
                encoding="utf-8",
                errors="replace",
            )
        except OSError as error:
            raise Sorry(f"{words[0]} cannot be run ({error.strerror})") from None
        try:
            with _ending_together(child):
                for line in child.stdout:
                    print(line.rstrip("\n"), file=log)
                    log.flush()
                code = child.wait()
        except KeyboardInterrupt:
            raise Sorry(_last_words(errors) or "interrupted") from None
        said = _last_words(errors)
        if said and code == 0:
            print(said, file=log)
        return code, said


def _last_words(errors: IO[bytes]) -> str:
    """What the child said on standard error, in one line, without its name."""
    errors.seek(0)
    lines = [line.strip() for line in errors.read().decode("utf-8", "replace").splitlines() if line.strip()]
    named = [line for line in lines if line.startswith("ml_phaser: ")] or lines
    return named[-1].partition("ml_phaser: ")[2] or named[-1] if named else ""


@contextmanager
def _ending_together(child: subprocess.Popen[str]) -> Iterator[None]:
    """Whatever ends this block early ends the child; requests to terminate are taken for Ctrl-C."""

    def stop(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    previous = {}
    try:
        for number in (signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
            if signal.getsignal(number) is not signal.SIG_IGN:
                previous.setdefault(number, signal.signal(number, stop))
    except ValueError:  # a thread of a graphical interface: it has its own way
        pass
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        if child.poll() is None:
            _stop(child)
        child.stdout.close()


def _stop(child: subprocess.Popen[str]) -> None:
    """First as Ctrl-C does, so that it tidies up; then by force."""
    child.send_signal(signal.SIGINT if os.name == "posix" else signal.SIGTERM)
    try:
        child.wait(GRACE)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
