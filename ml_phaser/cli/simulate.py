"""``ml_phaser simulate``: measured-looking data of a peptide crystal of known structure."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml_phaser.cli.arguments import convert, unknown
from ml_phaser.errors import UserError
from ml_phaser.parameters import Parameter

if TYPE_CHECKING:
    from ml_phaser.simulate.simulated import Simulated

PROGRAM = "ml_phaser simulate"
FAMILIES = (
    "ideal", "dialanine-1a", "dialanine-1b", "dipeptide-12", "dipeptide-minimal", "residues-15", "peptide", "box",
    "protein",
)  # fmt: skip
PARAMETERS = (
    Parameter("hklout", "output", "MTZ with I, SIGI and FreeR_flag"),
    Parameter("xyzout", "output", "the model (PDB)"),
    Parameter("mapout", "output", "the true density at the data's resolution, without F(000) (CCP4)"),
    Parameter("jsonout", "output", "what was made (JSON)"),
    Parameter("family", "choice", "kind of crystal", default="ideal", choices=FAMILIES),
    Parameter("seed", "int", "another seed, another crystal", default=0, low=0, high=2**31 - 1),
    Parameter("data", "text", "protein coordinates to build from: their folder, or a file made by train pack"),
    Parameter(
        "split",
        "choice",
        "which entries of them",
        default="holdout",
        choices=("holdout", "train", "validation", "crysformer"),
    ),
    Parameter("sequence", "text", "one-letter codes, e.g. ACDEF; L residues"),
    Parameter("spacegroup", "text", 'e.g. P212121, "P 21 21 21" or 19'),
    Parameter("resolution", "float", "high-resolution limit", low=0.5, high=4.0, unit="A"),
    Parameter("noise", "float", "mean sigma(I) over mean I", low=0.0, high=1.0),
    Parameter("completeness", "float", "fraction of the unique reflections measured", low=0.2, high=1.0),
    Parameter("b", "float", "mean displacement parameter", low=0.5, high=200.0, unit="A^2"),
    Parameter("b_spread", "float", "standard deviation of ln B", low=0.0, high=1.5),
    Parameter("b_correlation", "float", "correlation of B between neighbouring residues", low=0.0, high=0.99),
    Parameter(
        "anisotropy", "float", "r.m.s. principal B of the anisotropy of the data", low=0.0, high=50.0, unit="A^2"
    ),
    Parameter("low", "float", "no reflections beyond this spacing", low=3.0, high=10000.0, unit="A"),
    Parameter("cone", "float", "half angle of the blind cone about the spindle", low=0.0, high=60.0, unit="degrees"),
    Parameter("wedge", "float", "part of the half turn not measured", low=0.0, high=170.0, unit="degrees"),
    Parameter("shell", "float", "share lost of the outer fifth of the reflections", low=0.0, high=0.5),
    Parameter("sigma_error", "float", "relative error of the sigmas", low=0.0, high=2.0),
    Parameter("sigma_scale", "float", "factor by which all sigmas are wrong", low=0.1, high=10.0),
    Parameter("residues", "int", "length of the chain", low=1, high=2000),
    Parameter("atoms", "int", "atoms in the cell, waters counted", low=20, high=2000),
    Parameter("waters", "float", "share of the voids filled with waters", low=0.0, high=1.0),
    Parameter(
        "volume_per_atom", "float", "cell for each atom, if it packs as densely", low=12.0, high=1000.0, unit="A^3"
    ),
    Parameter("edge", "float", "cell edge of boxes", low=8.0, high=60.0, unit="A"),
    Parameter("fragment", "text", "published 15-residue fragment, e.g. 1A1X_1_12 (with split crysformer)"),
    Parameter("solvent", "float", "share of the cell for bulk solvent, at least", low=0.1, high=0.9),
    Parameter("k_sol", "float", "density of the solvent", low=0.0, high=1.0, unit="electrons/A^3"),
    Parameter("b_sol", "float", "B of the solvent", low=0.0, high=300.0, unit="A^2"),
    Parameter("overwrite", "flag", "replace output files that exist", default=False),
)
BY_NAME = {p.name: p for p in PARAMETERS}
OUTPUTS = tuple(p.name for p in PARAMETERS if p.kind == "output")
SUFFIX = {"hklout": ".mtz", "xyzout": ".pdb", "mapout": ".map", "jsonout": ".json"}
# Everything else is a setting of the family, under this name.
NOT_SETTINGS = (*OUTPUTS, "family", "seed", "data", "split", "overwrite")
SETTING = {"resolution": "d_min"}
EXAMPLE = f"{PROGRAM} sequence ACDEF hklout sim.mtz xyzout sim.pdb"


def usage() -> str:
    """The answer to ``--help``."""
    lines = [
        f"usage: {PROGRAM} sequence ACDEF hklout sim.mtz xyzout sim.pdb [mapout true.map] [name value ...]",
        f"       {PROGRAM} family NAME data COORDINATES hklout sim.mtz [name value ...]",
        "",
        "A crystal of known structure, and intensities as an experiment would give them; without a family, a peptide",
        "of ideal geometry. The files say that they are simulated. Same seed, same files. Names in any case, with or",
        "without --. What is not given is the family's own choice (docs/simulation.md).",
        "",
    ]
    for p in PARAMETERS:
        value = {"output": "FILE", "text": "TEXT", "int": "N", "float": "X", "flag": "", "choice": "NAME"}[p.kind]
        default = "" if p.default is None or p.kind == "flag" else f" [{p.default}]"
        unit = f" in {p.unit}" if p.unit else ""
        lines.append(f"  {p.name + ' ' + value:<18}{p.help}{unit}{default}")
    return "\n".join([*lines, "", f"Families: {', '.join(FAMILIES[:5])},", f"  {', '.join(FAMILIES[5:])}"])


def parse(argv: list[str]) -> dict[str, str]:
    """Name -> value as typed. Raises UserError."""
    given: dict[str, str] = {}
    words = list(argv)
    while words:
        word = words.pop(0)
        name, equals, value = word.partition("=")
        name = name.lstrip("-").lower()
        if name not in BY_NAME:
            raise unknown(word, BY_NAME, PROGRAM, "option")
        if name in given:
            raise UserError("given twice", name, "give it once")
        if BY_NAME[name].kind == "flag":
            given[name] = value or (words.pop(0) if words and words[0].lower() in ("yes", "no") else "yes")
            continue
        if not equals:
            value = words.pop(0) if words and not words[0].startswith("--") else ""
        if name == "spacegroup":  # P 21 21 21 in several words
            while words and words[0].lower().lstrip("-") not in BY_NAME and not words[0].startswith("--"):
                value += " " + words.pop(0)
        if not value.strip():
            raise UserError("no value given", name, f"{PROGRAM} --help")
        given[name] = value
    return given


def options_from(given: dict[str, str]) -> dict[str, Any]:
    """Checked values of all parameters, defaults filled in; outputs not asked for are None. Raises UserError."""
    if "sequence" not in given and given.get("family", "ideal").lower() == "ideal":
        raise UserError("sequence is missing", "command line", EXAMPLE)
    if not any(name in given for name in OUTPUTS):
        raise UserError("no output file is named", "command line", EXAMPLE)
    values = {name: convert(BY_NAME[name], text) for name, text in given.items()}
    for name in OUTPUTS:
        path = values.get(name)
        if path is not None and not path.suffix and not path.exists():
            values[name] = path.with_name(path.name + SUFFIX[name])
    options = {p.name: values.get(p.name, p.default) for p in PARAMETERS}
    check_outputs(options)
    return options


def check_outputs(options: dict[str, Any]) -> None:
    """Whatever about the output files can be known before any work. Raises UserError."""
    seen: dict[Path, str] = {}
    for name in OUTPUTS:
        path = options[name]
        if path is None:
            continue
        where, full = f"{name} {path}", path.resolve()
        if full.is_dir():
            raise UserError("is a folder", where, f"{name} {path / ('sim' + SUFFIX[name])}")
        if not full.parent.is_dir():
            raise UserError(f"folder {full.parent} does not exist", where, f"mkdir -p {full.parent}")
        if not os.access(full.parent, os.W_OK | os.X_OK):
            raise UserError(f"folder {full.parent} cannot be written to", where, "another folder")
        if full.is_file() and not options["overwrite"]:
            raise UserError("exists already", where, f"the option overwrite to replace it, or another {name}")
        if full in seen and (full.is_file() or not full.exists()):
            raise UserError(f"is the same file as {seen[full]}", where, f"another name for {name}")
        seen[full] = name


def check_settings(family: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Before any coordinates are read. Raises UserError for an option that means nothing in this family."""
    names = {setting: name for name, setting in SETTING.items()}
    fitting = sorted(names.get(n, n) for n in known if names.get(n, n) in BY_NAME)
    for name in given:
        if name not in known:
            raise UserError(f"means nothing in family {family}", names.get(name, name), f"one of {', '.join(fitting)}")


def report(data: Simulated, written: list[str]) -> str:
    """What is printed."""
    from ml_phaser.simulate.data_set import record

    r = record(data)
    lines = [
        f" SIMULATED crystal : {r['request'].get('sequence') or data.family} in {r['request']['spacegroup']}, "
        f"seed {r['request']['seed']}",
        f" Cell              : {' '.join(f'{x:g}' for x in r['cell'])}",
        f" Contents          : {r['atoms']} atoms and {r['waters']} waters in the asymmetric unit, "
        f"{r['volume_per_atom']:g} A^3 an atom, no contact under {r['shortest_contact']:.2f} A",
        f" Reflections       : {r['reflections']} of {r['possible']} to {r['request']['resolution']:g} A, "
        f"{r['free']} free; sigma(I)/I {r['mean_sigma_over_mean_i']:.3f}",
        *([f" Coordinates of    : {', '.join(data.source)}"] if data.source else []),
        *([f" Bulk solvent      : {data.solvent.fraction:.2f} of the cell"] if data.solvent else []),
        "",
        "   d_max   d_min      n  completeness  I/sigma",
    ]
    for s in r["shells"]:
        ratio = "-" if s["i_over_sigma"] is None else f"{s['i_over_sigma']:.1f}"
        lines.append(f" {s['d_max']:7.2f} {s['d_min']:7.2f} {s['n']:6d} {s['completeness']:13.3f} {ratio:>8}")
    return "\n".join([*lines, "", f" Written           : {', '.join(written)}"])


def run(argv: list[str]) -> str:
    """Simulate as the command line says; the text to print. Raises UserError."""
    options = options_from(parse(argv))

    from ml_phaser.simulate.data_set import write
    from ml_phaser.simulate.families import FAMILIES as KINDS
    from ml_phaser.simulate.families import make
    from ml_phaser.simulate.fragments import load_library

    settings = {SETTING.get(n, n): v for n, v in options.items() if n not in NOT_SETTINGS and v is not None}
    check_settings(options["family"], settings, KINDS[options["family"]].settings)
    library = load_library(Path(options["data"]).expanduser(), options["split"]) if options["data"] else None
    data = make(options["family"], options["seed"], library, **settings)
    files = {name: options[name] for name in OUTPUTS}
    write(data, **files)
    return report(data, [str(path) for path in files.values() if path is not None])


def main(argv: list[str]) -> int:
    """Entry point; argv without the program's and sub-command's names. Returns the exit status."""
    if not argv or any(word in ("--help", "-h") for word in argv):
        print(usage(), file=sys.stdout if argv else sys.stderr)
        return 0 if argv else 1
    try:
        print(run(argv))
    except UserError as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return 1
    return 0
