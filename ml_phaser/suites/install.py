"""Putting a plugin into a suite and taking it out again, so that nothing else in the suite's folders changes.

What was put there stands in a manifest in the suite's folder. Taking out reads it, removes these files, the folders made
for them, and the marked block added to files of the suite, and leaves every other byte as it was.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ml_phaser import __version__
from ml_phaser.atomic import atomic
from ml_phaser.errors import UserError

MANIFEST = ".ml_phaser-{suite}.json"
BEGIN, END = "# >>> ml_phaser: added by ml_phaser install >>>", "# <<< ml_phaser <<<"
LITTER = ("__pycache__",)  # what Python leaves beside files of ours


@dataclass(frozen=True)
class Plugin:
    """What belongs into a suite's folder.

    files : path relative to that folder -> content; blocks : a Python file of the suite -> lines to add at its end;
    said : sentences for the user, what to do next
    """

    files: Mapping[str, bytes]
    blocks: Mapping[str, str] = field(default_factory=dict)
    said: tuple[str, ...] = ()


def source(suite: str) -> Path:
    """The folder of a plugin as shipped: in an installed package, or in a checkout."""
    spec = importlib.util.find_spec(f"ml_phaser.plugins.{suite}")
    places = [*(spec.submodule_search_locations or ())] if spec is not None else []
    for place in (*map(Path, places), Path(__file__).resolve().parents[2] / "plugins" / suite):
        if place.is_dir():
            return place
    raise UserError(f"the plugin for {suite} is not part of this installation", "install", "pip install ml-phaser")
