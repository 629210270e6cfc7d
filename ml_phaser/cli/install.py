"""``ml_phaser install`` and ``ml_phaser uninstall``: the plugins for ccp4i2 and Phenix."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path

from ml_phaser.errors import UserError

SUITES = ("ccp4i2", "phenix")
USAGE = """\
usage: ml_phaser {verb} ccp4i2 prefix FOLDER
       ml_phaser {verb} phenix prefix FOLDER

{purpose}
Names in any case, with or without --.

  prefix FOLDER      ccp4i2: the folder that holds ccp4i2's core and wrappers folders (of the classic release,
                     $CCP4I2; of release 3, the package folder site-packages/ccp4i2);
                     phenix: the installation of Phenix, an environment with a cctbx in it (its prefix, as of
                     conda or pip), or the site-packages folder of one
"""
PURPOSE = {
    "install": "Put the plugin into a suite, in place of an older one. Nothing that is there already is changed, but\n"
    "for lines added at the end of ccp4i2's list of tasks.",
    "uninstall": "Take the plugin out of a suite, which is then as it was, byte by byte.",
}


def parse(words: Sequence[str], verb: str) -> tuple[str, Path]:
    """Suite and its folder. Raises UserError."""
    suite, prefix, rest = "", "", list(words)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        if name.lstrip("-").lower() == "prefix":
            if prefix:
                raise UserError("given twice", "prefix")
            prefix = value if equals else rest.pop(0) if rest else ""
            if not prefix:
                raise UserError("has no value", "prefix", "prefix FOLDER")
        elif word.lower() in SUITES and not suite:
            suite = word.lower()
        else:
            raise UserError("means nothing here", word, f"{verb} {'|'.join(SUITES)} prefix FOLDER")
    if not suite:
        raise UserError("the suite is missing", verb, f"{verb} {'|'.join(SUITES)} prefix FOLDER")
    if not prefix:
        raise UserError("the folder of the suite is missing", verb, f"{verb} {suite} prefix FOLDER")
    folder = Path(prefix).expanduser()
    if not folder.is_dir():
        raise UserError("no such folder", f"prefix {folder}", "check the spelling")
    return suite, folder.resolve()


def main(words: list[str], verb: str = "install") -> int:
    """Run the command; 0 at the end. Raises UserError."""
    from ml_phaser.suites import install

    if "--help" in words or "-h" in words or not words:
        print(USAGE.format(verb=verb, purpose=PURPOSE[verb]), end="")
        return 0
    suite, prefix = parse(words, verb)
    if verb == "install":
        plugin = importlib.import_module(f"ml_phaser.suites.{suite}").plan(prefix)
        said = install.install(suite, plugin, prefix)
    else:
        said = install.uninstall(suite, prefix)
    print("\n".join(said))
    return 0
