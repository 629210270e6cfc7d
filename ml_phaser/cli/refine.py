"""``ml_phaser refine``: coordinates and B of a model against measured amplitudes."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from ml_phaser.cli.progress import Reporter
from ml_phaser.cli.training import parse
from ml_phaser.errors import UserError
from ml_phaser.parameters import Parameter

PROGRAM = "ml_phaser refine"
PARAMETERS = (
    Parameter("xyzin", "input", "model to refine: PDB or mmCIF"),
    Parameter("hklin", "input", "measured data, as for phasing (MTZ, CIF, SHELX hkl)"),
    Parameter("xyzout", "output", "refined model: PDB, or mmCIF if it ends in .cif"),
    Parameter("hklout", "output", "MTZ with F, test set, FC, PHIC, FOM, FWT, PHWT (2mFo-DFc), DELFWT, PHDELWT"),
    Parameter("jsonout", "output", "run record (JSON) [not written]"),
    Parameter("labin", "text", "columns to use: FP=F SIGFP=SIGF, or just F,SIGF"),
    Parameter("resolution", "resolution", "use data in this range only, e.g. 20,1.9 (or the high limit)", low=0.2,
              high=50, unit="A"),
    Parameter("free", "int", "value of the free-R flag that marks the test set [told from the flags]", low=0, high=999),
    Parameter("cycles", "int", "macrocycles: scale and solvent, coordinates, B; 0: only maps and R factors", default=3,
              low=0, high=200),
    Parameter("weight", "text", "of the data against geometry: auto, search (by R_free), or a number", default="auto"),
    Parameter("bfactor", "flag", "refine B, one for each atom", default=True),
    Parameter("solvent", "flag", "bulk solvent", default=True),
    Parameter("seed", "int", "which reflections are set aside, where the file names no test set", default=0, low=0,
              high=2**31 - 1),
    Parameter("threads", "int", "processor threads [all cores]", low=1, high=1024),
    Parameter("overwrite", "flag", "replace output files that exist", default=False),
    Parameter("quiet", "flag", "print errors and the verdict only", default=False),
)  # fmt: skip
NEEDED = ("xyzin", "hklin", "xyzout", "hklout")
EXAMPLE = f"{PROGRAM} xyzin model.pdb hklin data.mtz xyzout refined.pdb hklout refined.mtz"
MOST_WEIGHT = 1e4


def usage() -> str:
    """The answer to ``--help``."""
    lines = [
        f"usage: {EXAMPLE} [name value ...]",
        "",
        "Refine coordinates and isotropic B of a model against measured amplitudes, by maximum likelihood with",
        "geometry restraints. Occupancies, anisotropy and special positions are kept; hydrogens ride. Names in any",
        "case, with or without --.",
        "",
    ]
    for p in PARAMETERS:
        value = {"input": "FILE", "output": "FILE", "text": "TEXT", "int": "N", "flag": "", "resolution": "LOW,HIGH"}
        unit = f" in {p.unit}" if p.unit else ""
        shown = {True: "yes", False: "no"}.get(p.default, p.default) if p.kind == "flag" else p.default
        default = "" if p.default is None else f" [{shown}]"
        lines.append(f"  {p.name + ' ' + value[p.kind]:<20}{p.help}{unit}{default}")
    return "\n".join(lines)


def options_from(argv: list[str]) -> dict[str, Any]:
    """Checked values of all parameters. Raises UserError."""
    options = parse(argv, PARAMETERS)
    for name in NEEDED:
        if options[name] is None:
            raise UserError(f"{name} is missing", "command line", EXAMPLE)
    options["weight"] = checked_weight(options["weight"])
    check_files(options)
    return options


def checked_weight(text: str) -> str:
    """auto, search or a positive number. Raises UserError."""
    word = text.strip().lower()
    if word in ("auto", "search"):
        return word
    try:
        value = float(word)
    except ValueError:
        value = -1.0
    if not 0 < value <= MOST_WEIGHT:
        raise UserError(f'"{text}" is neither auto, search nor a number above 0', "weight", "weight 0.5")
    return word


def check_files(options: dict[str, Any]) -> None:
    """Whatever about the files can be known before any work. Raises UserError."""
    from ml_phaser.exchange.refined import MODEL_SUFFIXES

    seen: dict[Path, str] = {}
    for p in PARAMETERS:
        path = options[p.name]
        if p.kind not in ("input", "output") or path is None:
            continue
        where, full = f"{p.name} {path}", path.resolve()
        if full.is_dir():
            raise UserError("is a folder", where, "the name of a file")
        if p.kind == "input" and not full.exists():
            raise UserError("no such file", where, "check the spelling")
        if p.kind == "output":
            if not full.parent.is_dir():
                raise UserError(f"folder {full.parent} does not exist", where, f"mkdir -p {full.parent}")
            if not os.access(full.parent, os.W_OK | os.X_OK):
                raise UserError(f"folder {full.parent} cannot be written to", where, "another folder")
            if full in seen:
                raise UserError(f"is the same file as {seen[full]}", where, f"another name for {p.name}")
            if full.is_file() and not options["overwrite"]:
                raise UserError("exists already", where, f"the option overwrite to replace it, or another {p.name}")
        seen[full] = p.name
    if options["xyzout"].suffix.lower() not in MODEL_SUFFIXES:
        raise UserError("ends in no suffix that tells the format", f"xyzout {options['xyzout']}", "refined.pdb")


def main(argv: list[str]) -> int:
    """Entry point; argv without the program's and sub-command's names. Returns the exit status."""
    if not argv or any(word in ("--help", "-h") for word in argv):
        print(usage(), file=sys.stdout if argv else sys.stderr)
        return 0 if argv else 1
    options = options_from(argv)
    quiet = options.pop("quiet")

    from ml_phaser.refinement import RefineOptions, run

    with Reporter(quiet=quiet) as reporter:
        refined = run(RefineOptions(**options), reporter)
    written = [str(options[n]) for n in ("xyzout", "hklout", "jsonout") if options[n] is not None]
    print(f"\n {refined.verdict}\n\n Written: {', '.join(written)}")
    return 0
