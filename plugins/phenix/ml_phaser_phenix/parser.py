"""The command line: cctbx's parser, made to leave alone what only ml_phaser can read and to speak in one line."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import iotbx.phil
from iotbx.cli_parser import CCTBXParser
from iotbx.file_reader import any_file
from libtbx.utils import Sorry


def _readable(name: str) -> bool:
    """Whether cctbx can read a file at all; it refuses plain SHELX hkl and some CIFs, each in its own way."""
    try:
        file = any_file(name)
        return file.file_type != "hkl" or bool(file.file_server.miller_arrays)
    except Exception:
        return False


class Parser(CCTBXParser):
    """As its parent, but files foreign to cctbx are for ml_phaser, and a wrong value is no traceback."""

    def process_files(self, file_list: Iterable[str], message: str = "Processing files:") -> None:
        super().process_files([name for name in file_list if _readable(name)], message)

    def parse_args(self, args: Sequence[str], skip_help: bool = False) -> Any:
        try:
            return super().parse_args(args, skip_help)
        except RuntimeError as error:  # PHIL's way to say that a value is not of its type
            raise Sorry(" ".join(str(error).split())) from None


def take_data_file(parser: CCTBXParser) -> None:
    """A lone data file that cctbx does not know as reflections becomes data.hklin."""
    manager = parser.data_manager
    known = {*manager.get_miller_array_names(), *manager.get_phil_names()}
    foreign = [name for name in parser.namespace.files if name not in known]
    if not foreign:
        return
    hklin = parser.working_phil.extract().ml_phaser.data.hklin
    if hklin is not None or manager.has_miller_arrays() or len(foreign) > 1:
        names = "data.hklin, starts.xyzin, next.seqin"
        raise Sorry(f"which parameter is the file {foreign[-1]}? Try: NAME={foreign[-1]}, e.g. {names}")
    chosen = iotbx.phil.parse(f"ml_phaser.data.hklin = {json.dumps(foreign[0])}")
    parser.working_phil = parser.master_phil.fetch(sources=[parser.working_phil, chosen])
