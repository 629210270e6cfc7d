"""``ml_phaser export``: the bundled networks as ONNX files."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ml_phaser.cli.pairs import parse_pairs
from ml_phaser.errors import UserError

USAGE = """\
usage: ml_phaser export onnx [network NAME] [out FILE.onnx] [options]
       ml_phaser export graphs [network NAME] [folder FOLDER]

onnx: write a network, weights and all, as one ONNX file for ONNX Runtime and other programs; every bundled network
where none is named. Needs the package onnx. graphs, for who trains networks: make the graphs without weights that
engine onnx and this command read, beside the networks of a folder. Needs PyTorch, onnx and onnxscript.
Names in any case, with or without --.

  network NAME       e.g. projector-small [all in the folder]
  out FILE|FOLDER    a file for one network, a folder for all [NAME.onnx in the current folder]
  folder FOLDER      of the networks: model cards, weights, graphs [those that are bundled]
  overwrite yes|no   replace files that exist [no]
"""
FORMS = ("onnx", "graphs")
NAMES = {"onnx": ("network", "out", "folder", "overwrite"), "graphs": ("network", "folder")}


@dataclass(frozen=True)
class Request:
    """What to do: ``form`` of FORMS, for the networks ``names`` of ``folder``, into ``paths``."""

    form: str
    names: tuple[str, ...]
    folder: Path
    paths: tuple[Path, ...]


def parse(words: Sequence[str]) -> Request:
    """Raises UserError."""
    from ml_phaser.networks.store import FOLDER

    form = words[0].lower()
    if form not in FORMS:
        raise UserError("means nothing here", words[0], "export onnx, or export graphs")
    options = parse_pairs(words[1:], NAMES[form])
    folder = Path(options["folder"]).expanduser() if "folder" in options else FOLDER
    known = sorted(p.stem for p in folder.glob("*.json"))
    if not known:
        raise UserError("holds no networks", f"folder {folder}", "a folder of model cards (.json) and weights")
    asked = options.get("network", "").lower()
    name = next((n for n in known if n.lower() == asked), "")
    if asked and not name:
        raise UserError("no such network", f"network {options['network']}", f"one of {' '.join(known)}")
    names = (name,) if name else tuple(known)
    if form == "graphs":
        return Request(form, names, folder, tuple(folder / f"{n}.onnx" for n in names))
    return Request(form, names, folder, _outputs(names, bool(name), options))


def _outputs(names: tuple[str, ...], one: bool, options: dict[str, str]) -> tuple[Path, ...]:
    """Where the files go: ``one`` network was named, or all of a folder are meant."""
    out = Path(options.get("out", ".")).expanduser()
    if one and not out.is_dir():
        paths: tuple[Path, ...] = (out if out.suffix else out.with_suffix(".onnx"),)
        if paths[0].suffix.lower() != ".onnx":
            raise UserError("is not the name of an ONNX file", f"out {out}", "a name that ends in .onnx")
    elif out.is_dir():
        paths = tuple(out / f"{n}.onnx" for n in names)
    else:
        raise UserError("no such folder", f"out {out}", "network NAME for a single file")
    answer = options.get("overwrite", "no").lower()
    if answer not in ("yes", "no"):
        raise UserError("is neither yes nor no", f"overwrite {answer}")
    for path in paths:
        if path.exists() and answer == "no":
            raise UserError("exists already", f"out {path}", "overwrite yes, or another name")
    return paths


def main(argv: list[str]) -> int:
    """Run the command; 0 at the end. Raises UserError."""
    if not argv or any(word in ("--help", "-h") for word in argv):
        print(USAGE, end="", file=sys.stdout if argv else sys.stderr)
        return 0 if argv else 1
    request = parse(argv)
    if request.form == "graphs":
        from ml_phaser.networks.graphs import write_graph

        for name in request.names:
            path = write_graph(name, request.folder)
            print(f"{path}: {path.stat().st_size / 1000:.0f} kB; its hash is in the model card")
        return 0
    from ml_phaser.atomic import atomic
    from ml_phaser.networks.export import self_contained

    for name, path in zip(request.names, request.paths, strict=True):
        raw = self_contained(name, request.folder)
        with atomic(path) as tmp:
            tmp.write_bytes(raw)
        print(f"{path}: {name}, {len(raw) / 1e6:.1f} MB")
    return 0
