"""``ml_phaser compare``: how well phases agree with a model or with other phases."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml_phaser.cli.pairs import parse_pairs
from ml_phaser.errors import UserError

if TYPE_CHECKING:
    from ml_phaser.evaluation.reference import FileAgreement

PROGRAM = "ml_phaser compare"
USAGE = """\
usage: ml_phaser compare HKLIN pred.mtz XYZIN model.pdb [options]
       ml_phaser compare HKLIN pred.mtz HKLREF other.mtz [options]

Map correlation and phase error of a result, best over the origins its space group permits and over both
hands, with the level that random phases reach in the same search. Names in any case, with or without --.

  HKLIN FILE         result to judge (MTZ)
  XYZIN FILE         model: PDB, mmCIF, small-molecule CIF, SHELX .ins or .res
  HKLREF FILE        reference phases: MTZ, or CIF/.fcf with calculated phases
  LABIN F,PHI        columns of HKLIN [FWT,PHWT]
  LABREF F,PHI       columns of HKLREF [FWT,PHWT, else FC,PHIC and the like; the choice is printed]
  RESOLUTION A[,B]   compare in this range only, in A [all]
  FREEHAND yes|no    also try the mirror image of the map [yes]
  JSONOUT FILE       the numbers as JSON [not written]
"""
NAMES = ("hklin", "xyzin", "hklref", "labin", "labref", "resolution", "freehand", "jsonout")


def parse(argv: list[str]) -> dict[str, str]:
    """Pairs of name and value; LABIN and LABREF may take two words. Raises UserError."""
    return parse_pairs(argv, NAMES, two=("labin", "labref"))


def parse_labels(text: str | None, name: str) -> tuple[str, str] | None:
    """Two labels out of "F,PHI" or "FWT=F,PHWT=PHI"."""
    if text is None:
        return None
    labels = [part.rpartition("=")[2].strip() for part in text.split(",")]
    if len(labels) != 2 or not all(labels):
        raise UserError(f"wants an amplitude and a phase column, not {text!r}", name, f"{name} FWT,PHWT")
    return labels[0], labels[1]


def parse_resolution(text: str | None) -> tuple[float, float] | None:
    """(d_max, d_min) in A; a single number is d_min."""
    if text is None:
        return None
    try:
        limits = sorted((float(x) for x in text.split(",")), reverse=True)
    except ValueError:
        limits = []
    if len(limits) not in (1, 2) or not all(math.isfinite(x) and x > 0 for x in limits):
        raise UserError(f"wants one or two limits in A, not {text!r}", "resolution", "RESOLUTION 20,1.5")
    return (limits[0], limits[1]) if len(limits) == 2 else (math.inf, limits[0])


def parse_yes_no(text: str, name: str) -> bool:
    """True for yes, False for no."""
    if text.lower() not in ("yes", "no"):
        raise UserError(f"is yes or no, not {text!r}", name)
    return text.lower() == "yes"


def _known(value: Any) -> Any:
    """NaN has no place in JSON."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _known(x) for key, x in value.items()}
    return [_known(x) for x in value] if isinstance(value, (list, tuple)) else value


def write_json(path: Path, result: FileAgreement, options: dict[str, str]) -> None:
    """Write the numbers; the file appears whole or not at all. Raises UserError."""
    record = {"program": PROGRAM, "options": options, **_known(asdict(result))}
    part = path.with_name(path.name + ".part")
    try:
        part.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise UserError(
            f"cannot be written ({(error.strerror or str(error)).lower()})", str(path), "another JSONOUT"
        ) from None


def hand_line(inverted: bool, margin: float, tried: bool) -> str:
    """The hand in words."""
    if margin == 0:
        return "the same as its mirror image (centrosymmetric)"
    if math.isnan(margin):
        return f"as given (the mirror image {'has another space group' if tried else 'was not tried'})"
    return f"{'INVERTED' if inverted else 'as given'} (the other hand correlates {margin:.3f} less)"


def table(result: FileAgreement, hands: bool) -> str:
    """What is printed; ``hands``: both were tried."""
    a = result.agreement
    lines = [
        f" Judged    : {result.prediction}",
        f" Reference : {result.reference}",
        "",
        f" Map correlation   {a.map_cc:7.3f}        random phases reach {a.chance_cc:.3f}",
        f" Mean phase error  {a.phase_error:7.1f} deg    random phases reach {a.chance_phase_error:.1f}",
    ]
    if math.isfinite(result.ceiling):
        lines.append(f" With the reference's own phases, the measured amplitudes would reach {result.ceiling:.3f}")
    last = f" {a.shells[0].d_max:7.2f} {a.shells[-1].d_min:7.2f}"
    lines += [
        f" Hand              {hand_line(a.inverted, a.hand_margin, hands)}",
        f" Origin shift      {' '.join(f'{x:.4f}' for x in a.origin_shift)}",
        "",
        "   d_max   d_min  reflections      CC  phase error",
        *(f" {s.d_max:7.2f} {s.d_min:7.2f} {s.n:12d} {s.cc:7.3f} {s.phase_error:12.1f}" for s in a.shells),
        f"{last} {a.n:12d} {a.map_cc:7.3f} {a.phase_error:12.1f}",
    ]
    return "\n".join(lines)


def run(argv: list[str]) -> str:
    """Compare as the command line says; the text to print. Raises UserError."""
    options = parse(argv)
    if "hklin" not in options:
        raise UserError("HKLIN is missing", hint="ml_phaser compare HKLIN pred.mtz XYZIN model.pdb")
    if ("xyzin" in options) == ("hklref" in options):
        raise UserError("give either XYZIN (a model) or HKLREF (phases)", hint="ml_phaser compare --help")
    if "labref" in options and "hklref" not in options:
        raise UserError("names columns of HKLREF, which is not given", "labref")
    labels = parse_labels(options.get("labin"), "LABIN") or ("FWT", "PHWT")
    reference_labels = parse_labels(options.get("labref"), "LABREF")
    resolution = parse_resolution(options.get("resolution"))
    hands = parse_yes_no(options.get("freehand", "yes"), "freehand")
    json_path = Path(options["jsonout"]) if "jsonout" in options else None
    reference = Path(options.get("xyzin") or options["hklref"])
    if json_path is not None and json_path.resolve() in (
        Path(options["hklin"]).resolve(),
        reference.resolve(),
    ):
        raise UserError("would overwrite an input file", str(json_path), "another JSONOUT")

    from ml_phaser.evaluation.reference import compare_files

    result = compare_files(
        options["hklin"],
        reference,
        labels=labels,
        reference_labels=reference_labels,
        resolution=resolution,
        hands=hands,
        phases="hklref" in options,
    )
    if json_path is not None:
        write_json(json_path, result, options)
    return table(result, hands)


def main(argv: list[str]) -> int:
    """Entry point; argv without the program's and sub-command's names. Returns the exit status."""
    if not argv or any(word in ("--help", "-h") for word in argv):
        print(USAGE, end="", file=sys.stdout if argv else sys.stderr)
        return 0 if argv else 1
    try:
        print(run(argv))
    except UserError as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return 1
    return 0
