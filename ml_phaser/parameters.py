"""The one table of parameters of the main job: command line, keywords and plugins are made from it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Parameter:
    """One parameter.

    ``name`` is what the user types (any case, with or without ``--``, also as a keyword on standard input,
    where the first four letters are enough); ``kind`` is "input", "output", "text", "int", "float", "choice",
    "flag", "resolution" (one or two numbers) or "cell" (six numbers). ``low`` and ``high`` are the allowed
    range, ends included; for a resolution they hold for the high-resolution limit. ``caption`` is what graphical
    interfaces put beside the field, ``group`` the one of GROUPS it stands in there, ``expert`` whether most users can
    leave it alone.
    """

    name: str
    kind: str
    help: str
    default: Any = None
    choices: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None
    unit: str = ""
    caption: str = ""
    group: str = ""
    expert: bool = False


MAP_SUFFIXES = (".map", ".ccp4", ".mrc")

GROUPS = {
    "data": "Measured data",
    "starts": "Starting phases",
    "search": "Phasing",
    "output": "Output",
    "next": "The next program",
    "run": "Running",
}

PARAMETERS: tuple[Parameter, ...] = (
    Parameter(
        "hklin", "input", "measured data: MTZ, structure-factor CIF, CIF with embedded SHELX hkl, SHELX hkl",
        caption="Measured data", group="data",
    ),
    Parameter("mapout", "output", "electron-density map (CCP4)", caption="Density map", group="output"),
    Parameter(
        "hklout", "output", "MTZ with phases, figures of merit and map coefficients [mapout with .mtz]",
        caption="Phased MTZ", group="output",
    ),
    Parameter(
        "pattout", "output", "Patterson map (CCP4) [not written]", caption="Patterson map", group="output", expert=True
    ),
    Parameter(
        "jsonout", "output", "run record (JSON) [mapout with .json]", caption="Run record", group="output", expert=True
    ),
    Parameter(
        "xmlout", "output", "program.xml for graphical interfaces [not written]",
        caption="Facts for interfaces", group="output", expert=True,
    ),
    Parameter(
        "reportout", "output", "report with pictures, one HTML file [not written]", caption="Report", group="output"
    ),
    Parameter(
        "labin", "text", "columns to use: FP=F SIGFP=SIGF, I=IMEAN SIGI=SIGIMEAN, or just F,SIGF",
        caption="Columns of the data", group="data",
    ),
    Parameter(
        "resolution", "resolution", "use data in this range only, e.g. 20,1.2 (or just the high limit)",
        low=0.2, high=50, unit="A", caption="Resolution range", group="data",
    ),
    Parameter(
        "phasein", "input", "your own phases to start from: MTZ, mmCIF or SHELXE .phs [none: random starts]",
        caption="Phases to start from", group="starts",
    ),
    Parameter(
        "labphase", "text", "columns of phasein: PHIB=PHI FOM=FOM, HLA=A HLB=B HLC=C HLD=D, or just PHI,FOM",
        caption="Columns of these phases", group="starts",
    ),
    Parameter(
        "starts",
        "choice",
        "auto: prediction, heavy atoms, pieces, where they pay, then random",
        default="auto",
        choices=("auto", "random", "fragments", "network", "heavy"),
        caption="Begin with",
        group="starts",
    ),
    Parameter(
        "xyzin",
        "input",
        "your own piece, or molecule, to place: PDB, CIF or .res [strands and helices]",
        caption="Piece to place",
        group="starts",
    ),
    Parameter(
        "xyzout",
        "output",
        "placed pieces or free atoms, PDB or mmCIF, where there are any [not written]",
        caption="Placed pieces or atoms",
        group="output",
    ),
    Parameter(
        "seedin", "input", "phase seeds to begin with, held at first: MTZ, .phs, .phi, CSV, PHAS [none]",
        caption="Phase seeds to begin with", group="starts", expert=True,
    ),
    Parameter(
        "seedhold", "int", "cycles of each start that seeds are held for [half of them]",
        low=0, high=100000, caption="Cycles to hold them", group="starts", expert=True,
    ),
    Parameter(
        "spacegroup", "text", 'space group, e.g. P212121 or "P 21 21 21" or 19 [that of the file]',
        caption="Space group", group="data", expert=True,
    ),
    Parameter(
        "cell", "cell", "a,b,c,alpha,beta,gamma in A and degrees, for files that hold none",
        caption="Unit cell", group="data", expert=True,
    ),
    Parameter(
        "trials", "int", "number of starts; no walks of free atoms then [as many as the time allows]",
        low=1, high=100000, caption="Number of starts", group="search", expert=True,
    ),
    Parameter(
        "timelimit", "float", "time for phasing",
        default=240.0, low=1, high=1e6, unit="s", caption="Time for phasing", group="search",
    ),
    Parameter(
        "engine", "choice", "density modification to use; onnx: as auto, but without PyTorch",
        default="auto", choices=("auto", "classical", "learned", "onnx"),
        caption="Density modification", group="search", expert=True,
    ),
    Parameter(
        "hand", "choice", "auto: that of L-amino acids, where the data leave it open; keep: as found",
        default="auto", choices=("auto", "keep"), caption="Hand", group="search",
    ),
    Parameter(
        "mapextent", "choice", "what the map covers",
        default="cell", choices=("cell", "asu"), caption="Map covers", group="output", expert=True,
    ),
    Parameter(
        "seed", "int", "seed of the random starts",
        default=0, low=0, high=2**31 - 1, caption="Seed of the random starts", group="search", expert=True,
    ),
    Parameter(
        "freer", "float", "free-R flags where the data have none: share of the reflections [not made]",
        low=1, high=50, unit="%", caption="Free-R flags for", group="next",
    ),
    Parameter(
        "seqin", "input", "sequence, for pieces and the next program: FASTA, PIR or plain letters [none]",
        caption="Sequence", group="next",
    ),
    Parameter(
        "shelxout", "output", "files for SHELXE: this .phi, with .hkl and .ins beside it [not written]",
        caption="Phases for SHELXE", group="next", expert=True,
    ),
    Parameter(
        "seedout", "output", "phase seeds for other programs: strong reflections in a few bins [not written]",
        caption="Phase seeds", group="next", expert=True,
    ),
    Parameter(
        "seedformat", "choice", "form of seedout; auto: by its ending",
        default="auto", choices=("auto", "shelxe", "phs", "phas", "mtz", "acorn", "csv", "superflip", "sir"),
        caption="Form of the seeds", group="next", expert=True,
    ),
    Parameter(
        "seedbins", "int", "equal parts of the circle that seeds are rounded to",
        default=4, low=3, high=8, caption="Parts of the circle", group="next", expert=True,
    ),
    Parameter(
        "seedfraction", "float", "share of the unique reflections to make seeds of [0.1]",
        low=0.001, high=1, caption="Share of the reflections", group="next", expert=True,
    ),
    Parameter(
        "seedcount", "int", "number of seeds, instead of seedfraction",
        low=1, high=10000000, caption="Number of seeds", group="next", expert=True,
    ),
    Parameter(
        "seedmin", "float", "least probability of a seed's part of the circle [any]",
        low=0, high=1, caption="Least probability", group="next", expert=True,
    ),
    Parameter(
        "then", "choice", "program to go on with, where it is installed",
        default="none", choices=("none", "modelcraft", "shelxe", "autobuild"), caption="Go on with", group="next",
    ),
    Parameter(
        "device", "choice", "where to compute",
        default="auto", choices=("auto", "cpu", "cuda"), caption="Compute on", group="run", expert=True,
    ),
    Parameter(
        "threads", "int", "processor threads [one for small cells, else all cores]",
        low=1, high=1024, caption="Processor threads", group="run", expert=True,
    ),
    Parameter(
        "overwrite", "flag", "replace output files that exist",
        default=False, caption="Replace existing files", group="run", expert=True,
    ),
    Parameter(
        "quiet", "flag", "print errors and the verdict only",
        default=False, caption="Print the verdict only", group="run", expert=True,
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Options:
    """The checked values of PARAMETERS; fields named as the parameters.

    Resolution is (d_max, d_min) in A, d_max infinite where only the high limit was given.
    """

    hklin: Path
    mapout: Path
    hklout: Path
    jsonout: Path
    pattout: Path | None = None
    xmlout: Path | None = None
    reportout: Path | None = None
    labin: str | None = None
    resolution: tuple[float, float] | None = None
    phasein: Path | None = None
    labphase: str | None = None
    starts: str = "auto"
    xyzin: Path | None = None
    xyzout: Path | None = None
    seedin: Path | None = None
    seedhold: int | None = None
    spacegroup: str | None = None
    cell: tuple[float, float, float, float, float, float] | None = None
    trials: int | None = None
    timelimit: float = 240.0
    engine: str = "auto"
    hand: str = "auto"
    mapextent: str = "cell"
    seed: int = 0
    freer: float | None = None
    seqin: Path | None = None
    shelxout: Path | None = None
    seedout: Path | None = None
    seedformat: str = "auto"
    seedbins: int = 4
    seedfraction: float | None = None
    seedcount: int | None = None
    seedmin: float | None = None
    then: str = "none"
    device: str = "auto"
    threads: int | None = None
    overwrite: bool = False
    quiet: bool = False


def beside(mapout: Path, suffix: str) -> Path:
    """``mapout`` with another extension; a last part that is no map extension belongs to the name."""
    stem = mapout.stem if mapout.suffix.lower() in MAP_SUFFIXES else mapout.name
    return mapout.with_name(stem + suffix)
