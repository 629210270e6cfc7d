"""``ml_phaser simulate``: measured-looking data of a peptide crystal of known structure."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml_phaser.cli.arguments import convert, unknown
from ml_phaser.errors import UserError
from ml_phaser.parameters import Parameter

if TYPE_CHECKING:
    from ml_phaser.simulate.simulated import Simulated

PROGRAM = "ml_phaser simulate"
PARAMETERS = (
    Parameter("hklout", "output", "MTZ with I, SIGI and FreeR_flag"),
    Parameter("xyzout", "output", "the model (PDB)"),
    Parameter("mapout", "output", "the true density at the data's resolution, without F(000) (CCP4)"),
    Parameter("jsonout", "output", "what was made (JSON)"),
    Parameter("sequence", "text", "one-letter codes, e.g. ACDEF; L residues"),
    Parameter("spacegroup", "text", 'e.g. P212121, "P 21 21 21" or 19', default="P212121"),
    Parameter("resolution", "float", "high-resolution limit", default=1.0, low=0.5, high=4.0, unit="A"),
    Parameter("noise", "float", "mean sigma(I) over mean I", default=0.05, low=0.0, high=1.0),
    Parameter("completeness", "float", "fraction of the unique reflections measured", default=0.97, low=0.2, high=1.0),
    Parameter("b", "float", "mean displacement parameter", default=8.0, low=0.5, high=100.0, unit="A^2"),
    Parameter("seed", "int", "another seed, another crystal", default=0, low=0, high=2**31 - 1),
    Parameter("overwrite", "flag", "replace output files that exist", default=False),
)
BY_NAME = {p.name: p for p in PARAMETERS}
OUTPUTS = tuple(p.name for p in PARAMETERS if p.kind == "output")
SUFFIX = {"hklout": ".mtz", "xyzout": ".pdb", "mapout": ".map", "jsonout": ".json"}
EXAMPLE = f"{PROGRAM} sequence ACDEF hklout sim.mtz xyzout sim.pdb"


def usage() -> str:
    """The answer to ``--help``."""
    lines = [
        f"usage: {PROGRAM} sequence ACDEF hklout sim.mtz xyzout sim.pdb [mapout true.map] [name value ...]",
        "",
        "A peptide of ideal geometry packed into a crystal, and intensities as an experiment would give them.",
        "The files say that they are simulated. Same seed, same files. Names in any case, with or without --.",
        "",
    ]
    for p in PARAMETERS:
        value = {"output": "FILE", "text": "TEXT", "int": "N", "float": "X", "flag": ""}[p.kind]
        default = "" if p.default is None or p.kind == "flag" else f" [{p.default}]"
        unit = f" in {p.unit}" if p.unit else ""
        lines.append(f"  {p.name + ' ' + value:<18}{p.help}{unit}{default}")
    return "\n".join(lines)


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
    if "sequence" not in given:
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


def report(data: Simulated, written: list[str]) -> str:
    """What is printed."""
    from ml_phaser.simulate.data_set import record

    r = record(data)
    lines = [
        f" SIMULATED crystal : {r['request']['sequence']} in {r['request']['spacegroup']}, seed {r['request']['seed']}",
        f" Cell              : {' '.join(f'{x:g}' for x in r['cell'])}",
        f" Contents          : {r['atoms']} atoms and {r['waters']} waters in the asymmetric unit, "
        f"{r['volume_per_atom']:g} A^3 an atom, no contact under {r['shortest_contact']:.2f} A",
        f" Reflections       : {r['reflections']} of {r['possible']} to {r['request']['resolution']:g} A, "
        f"{r['free']} free; sigma(I)/I {r['mean_sigma_over_mean_i']:.3f}",
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
    from ml_phaser.simulate.families import make

    names = {"d_min": "resolution"} | {n: n for n in ("sequence", "spacegroup", "noise", "completeness", "b")}
    data = make("ideal", options["seed"], **{setting: options[name] for setting, name in names.items()})
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
