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
    range, ends included; for a resolution they hold for the high-resolution limit.
    """

    name: str
    kind: str
    help: str
    default: Any = None
    choices: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None
    unit: str = ""


PARAMETERS: tuple[Parameter, ...] = (
    Parameter("hklin", "input", "measured data: MTZ, structure-factor CIF, CIF with embedded SHELX hkl, SHELX hkl"),
    Parameter("mapout", "output", "electron-density map (CCP4)"),
    Parameter("hklout", "output", "MTZ with phases, figures of merit and map coefficients [mapout with .mtz]"),
    Parameter("pattout", "output", "Patterson map (CCP4) [not written]"),
    Parameter("jsonout", "output", "run record (JSON) [mapout with .json]"),
    Parameter("xmlout", "output", "program.xml for graphical interfaces [not written]"),
    Parameter("labin", "text", "columns to use: FP=F SIGFP=SIGF, I=IMEAN SIGI=SIGIMEAN, or just F,SIGF"),
    Parameter(
        "resolution",
        "resolution",
        "use data in this range only, e.g. 20,1.2 (or just the high limit)",
        low=0.2,
        high=50,
        unit="A",
    ),
    Parameter("phasein", "input", "your own phases to start from: MTZ, mmCIF or SHELXE .phs [none: random starts]"),
    Parameter("labphase", "text", "columns of phasein: PHIB=PHI FOM=FOM, HLA=A HLB=B HLC=C HLD=D, or just PHI,FOM"),
    Parameter("spacegroup", "text", 'space group, e.g. P212121 or "P 21 21 21" or 19 [that of the file]'),
    Parameter("cell", "cell", "a,b,c,alpha,beta,gamma in A and degrees, for files that hold none"),
    Parameter("trials", "int", "number of starts [as many as the time allows]", low=1, high=100000),
    Parameter("timelimit", "float", "time for phasing", default=240.0, low=1, high=1e6, unit="s"),
    Parameter(
        "engine",
        "choice",
        "density modification to use",
        default="auto",
        choices=("auto", "classical", "learned"),
    ),
    Parameter(
        "hand",
        "choice",
        "auto: that of L-amino acids, where the data leave it open; keep: as found",
        default="auto",
        choices=("auto", "keep"),
    ),
    Parameter("mapextent", "choice", "what the map covers", default="cell", choices=("cell", "asu")),
    Parameter("seed", "int", "seed of the random starts", default=0, low=0, high=2**31 - 1),
    Parameter("device", "choice", "where to compute", default="auto", choices=("auto", "cpu", "cuda")),
    Parameter("threads", "int", "processor threads [one for small cells, else all cores]", low=1, high=1024),
    Parameter("overwrite", "flag", "replace output files that exist", default=False),
    Parameter("quiet", "flag", "print errors and the verdict only", default=False),
)


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
    labin: str | None = None
    resolution: tuple[float, float] | None = None
    phasein: Path | None = None
    labphase: str | None = None
    spacegroup: str | None = None
    cell: tuple[float, float, float, float, float, float] | None = None
    trials: int | None = None
    timelimit: float = 240.0
    engine: str = "auto"
    hand: str = "auto"
    mapextent: str = "cell"
    seed: int = 0
    device: str = "auto"
    threads: int | None = None
    overwrite: bool = False
    quiet: bool = False
