"""Putting a plugin into a suite and taking it out again, so that nothing else in the suite's folder changes.

What is put there stands in a manifest in the suite's folder, written first: an installation that was cut short can be
taken out too. Taking out removes the files of the manifest, the folders made for them and the lines added to files of
the suite, and leaves every other byte as it was.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath

from ml_phaser import __version__
from ml_phaser.atomic import atomic, cannot_write
from ml_phaser.errors import UserError

BEGIN, END = "# >>> added by ml_phaser install >>>", "# <<< added by ml_phaser install <<<"


@dataclass(frozen=True)
class Plugin:
    """What belongs into a suite's folder.

    files : path relative to that folder -> content, executable where it begins with ``#!``; blocks : a Python file of
    the suite -> lines to add at its end; said : sentences for the user, what to do next
    """

    files: Mapping[str, bytes]
    blocks: Mapping[str, str] = field(default_factory=dict)
    said: tuple[str, ...] = ()


@dataclass
class Manifest:
    """What was put into a suite: sha256 of each file, folders made for them, text added to files of the suite."""

    version: str
    files: dict[str, str]
    folders: list[str]
    blocks: dict[str, str]


def source(suite: str) -> Path:
    """The folder of a plugin as shipped: in an installed package, or in a checkout."""
    with suppress(ModuleNotFoundError):
        spec = importlib.util.find_spec(f"ml_phaser.plugins.{suite}")
        for found in (spec.submodule_search_locations or ()) if spec is not None else ():
            return Path(found)
    checkout = Path(__file__).resolve().parents[2] / "plugins" / suite
    if checkout.is_dir():
        return checkout
    raise UserError(f"the plugin for {suite} is not part of this installation", "install", "pip install ml-phaser")


def shipped(suite: str) -> dict[str, bytes]:
    """Every file of a plugin as shipped, path relative to its folder."""
    folder = source(suite)
    paths = sorted(p for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts)
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in paths}


def install(suite: str, plugin: Plugin, prefix: Path) -> tuple[str, ...]:
    """Put a plugin into the suite at ``prefix``; an older one of ours is taken out first.

    Returns sentences for the user.

    Raises
    ------
    UserError
        a file in the way that ml_phaser did not put there, or one that cannot be written; then all is as before
    """
    said = uninstall(suite, prefix) if manifest_path(suite, prefix).exists() else ()
    for name in plugin.files:
        path = prefix / name
        if path.exists() or path.is_symlink():
            raise UserError("is there already, and not from ml_phaser", str(path), "move it away")
    manifest = Manifest(
        __version__, {name: _sha256(content) for name, content in plugin.files.items()},
        list(_new_folders(plugin.files, prefix)), {name: _block(prefix / name, t) for name, t in plugin.blocks.items()},
    )  # fmt: skip
    try:
        _write(manifest_path(suite, prefix), json.dumps(asdict(manifest), indent=1).encode() + b"\n")
        for name, content in plugin.files.items():
            with _telling(prefix / name):
                (prefix / name).parent.mkdir(parents=True, exist_ok=True)
            _write(prefix / name, content)
        for name, text in manifest.blocks.items():
            path = prefix / name
            _write(path, path.read_bytes() + text.encode())
    except BaseException:
        with suppress(UserError):
            uninstall(suite, prefix)
        raise
    kept = tuple(s for s in said if "left" in s)
    return (*kept, f"{len(plugin.files)} files put into {prefix}", *plugin.said)


def uninstall(suite: str, prefix: Path) -> tuple[str, ...]:
    """Take out what ``install`` put into the suite at ``prefix``; files changed since are left and named.

    Raises UserError where there is nothing to take out, or it cannot be.
    """
    path = manifest_path(suite, prefix)
    manifest = _read(path, suite)
    said = [
        f"{prefix / name}: our lines were changed since, and are left"
        for name, text in manifest.blocks.items()
        if not _without(prefix / name, text)
    ]
    removed = 0
    for name, sha256 in manifest.files.items():
        file = prefix / name
        if not file.is_file():
            continue
        if _sha256(file.read_bytes()) != sha256:
            said.append(f"{file} was changed since, and is left")
            continue
        with _telling(file):
            file.unlink()
            removed += 1
            for compiled in (file.parent / "__pycache__").glob(f"{file.stem}.*.pyc"):
                compiled.unlink()
    for name in sorted(manifest.folders, key=len, reverse=True):
        for folder in (prefix / name / "__pycache__", prefix / name):
            with suppress(OSError):  # not empty: something of somebody else's
                folder.rmdir()
    with _telling(path):
        path.unlink()
    return (f"{removed} files taken out of {prefix}", *said)


def manifest_path(suite: str, prefix: Path) -> Path:
    """Where it stands what was put into a suite."""
    return prefix / f".ml_phaser-{suite}.json"


def _read(path: Path, suite: str) -> Manifest:
    if not path.exists():
        raise UserError(f"no plugin of ml_phaser for {suite} is installed there", str(path.parent), "another prefix")
    try:
        return Manifest(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise UserError("cannot be read", str(path), "remove the plugin by hand") from error


def _new_folders(files: Mapping[str, bytes], prefix: Path) -> Iterator[str]:
    """Folders that have to be made for the files."""
    parents = {p for name in files for p in PurePosixPath(name).parents} - {PurePosixPath(".")}
    yield from sorted(str(p) for p in parents if not (prefix / p).exists())


def _block(path: Path, text: str) -> str:
    """What is added to the end of a file of the suite."""
    if not path.is_file():
        raise UserError("no such file", str(path), "the folder of the suite as prefix")
    gap = "" if path.read_bytes().endswith(b"\n") else "\n"
    return f"{gap}{BEGIN}\n{text.rstrip()}\n{END}\n"


def _without(path: Path, text: str) -> bool:
    """Take added lines out of a file, which the suite may have replaced since; False where somebody edited them."""
    content = path.read_bytes() if path.is_file() else b""
    added = text.encode()
    if added in content:
        before, after = content.split(added, 1)
        # A line break that we put before our lines is still needed where somebody added lines after them.
        gap = b"\n" if after and added.startswith(b"\n") else b""
        _write(path, before + gap + after)
        return True
    return BEGIN.encode() not in content


def _write(path: Path, content: bytes) -> None:
    """Write one file whole or not at all, keeping the permissions of one that exists."""
    mode = path.stat().st_mode if path.exists() else None
    with atomic(path) as part:
        part.write_bytes(content)
    if mode is not None:
        path.chmod(mode)
    elif content.startswith(b"#!"):
        path.chmod(path.stat().st_mode | 0o111)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@contextmanager
def _telling(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise cannot_write(path, error) from error
