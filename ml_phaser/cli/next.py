"""``ml_phaser next``: commands for the programs that can go on from a phased MTZ."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from ml_phaser.cli.pairs import parse_pairs
from ml_phaser.errors import UserError

USAGE = """\
usage: ml_phaser next HKLIN pred.mtz [options]

Ready-to-paste commands for SHELXE, ModelCraft, AutoBuild, Parrot, Buccaneer, Coot, Refmac and Servalcat, with the
columns that the file has, whichever program wrote it; what each still needs, and whether it is on PATH. Runs nothing.
Names in any case, with or without --.

  HKLIN FILE         MTZ with phases
  SEQIN FILE         sequence: FASTA, PIR or plain letters [none]
  SHELX FILE         .phi of a set of files for SHELXE, as shelxout writes them [none]
  JSONIN FILE        run record, for its verdict [HKLIN with .json, where that is one]
  LABIN F,SIGF       amplitudes [those phased, else the only ones]
  LABPHASE LIST      PHIB,FOM or HLA,HLB,HLC,HLD [those of ml_phaser, else the only ones]
"""
NAMES = ("hklin", "seqin", "shelx", "jsonin", "labin", "labphase")


def verdict_word(path: Path, *, asked: bool) -> str:
    """The verdict of a run record; "" where there is none and none was asked for. Raises UserError."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["program"] != "ml_phaser":
            raise KeyError("program")
        return str(record["verdict"]["word"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        if not asked:
            return ""
        reason = (error.strerror or str(error)).lower() if isinstance(error, OSError) else "no run record of ml_phaser"
        raise UserError(f"cannot be read ({reason})", f"jsonin {path}", "the .json beside the map") from error


def run(argv: list[str]) -> str:
    """What the command line asks for, as text. Raises UserError."""
    options = parse_pairs(argv, NAMES)
    if "hklin" not in options:
        raise UserError("HKLIN is missing", hint="ml_phaser next HKLIN pred.mtz")
    from ml_phaser.exchange.next_steps import next_steps, read_phased
    from ml_phaser.exchange.sequence import read_sequence
    from ml_phaser.report import log

    path = Path(options["hklin"]).expanduser()
    facts = read_phased(path, labin=options.get("labin"), labphase=options.get("labphase"))
    sequence = read_sequence(Path(options["seqin"]).expanduser()) if "seqin" in options else None
    shelx = _shelx_set(Path(options["shelx"]).expanduser()) if "shelx" in options else None
    beside = path.with_suffix(".json")
    word = verdict_word(Path(options.get("jsonin", beside)).expanduser(), asked="jsonin" in options)
    columns = "; ".join(",".join(c) for c in (facts.amplitudes, facts.phases, facts.hl, (facts.free,)) if any(c))
    head = [
        f" {path}: phases to {facts.d_min:.2f} A in {facts.spacegroup}",
        f" Columns: {columns}",
        f" Verdict: {word or 'not known (no run record)'}",
        "",
    ]
    return "\n".join([*head, log.next_steps(next_steps(facts, sequence, shelx), word)])


def _shelx_set(phi: Path) -> Path:
    from ml_phaser.exchange.shelxe import check_stem, companions

    check_stem(phi, "shelx")
    for path in companions(phi):
        if not path.is_file():
            raise UserError("no such file; SHELXE reads .phi, .hkl and .ins of one stem", f"shelx {path}", "shelxout")
    return phi


def main(argv: list[str]) -> int:
    """Entry point; argv without the program's and sub-command's names. Returns the exit status. Raises UserError."""
    if not argv or any(word in ("--help", "-h") for word in argv):
        print(USAGE, end="", file=sys.stdout if argv else sys.stderr)
        return 0 if argv else 1
    print(run(argv))
    return 0
