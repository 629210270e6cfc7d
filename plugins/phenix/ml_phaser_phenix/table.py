"""Parameters of the program, made from ml_phaser's table of parameters: do not edit."""

from __future__ import annotations

from typing import Any, NamedTuple

VERSION = "0.1.0"


class Entry(NamedTuple):
    """PHIL path, name on the command line, kind, default, allowed range (ends included), unit."""

    path: str
    name: str
    kind: str
    default: Any
    low: float | None
    high: float | None
    unit: str


TABLE = (
    Entry("ml_phaser.data.hklin", "hklin", "input", None, None, None, ""),
    Entry("ml_phaser.output.mapout", "mapout", "output", None, None, None, ""),
    Entry("ml_phaser.output.hklout", "hklout", "output", None, None, None, ""),
    Entry("ml_phaser.output.pattout", "pattout", "output", None, None, None, ""),
    Entry("ml_phaser.output.jsonout", "jsonout", "output", None, None, None, ""),
    Entry("ml_phaser.output.xmlout", "xmlout", "output", None, None, None, ""),
    Entry("ml_phaser.output.reportout", "reportout", "output", None, None, None, ""),
    Entry("ml_phaser.data.labin", "labin", "text", None, None, None, ""),
    Entry("ml_phaser.data.resolution", "resolution", "resolution", None, 0.2, 50, "A"),
    Entry("ml_phaser.starts.phasein", "phasein", "input", None, None, None, ""),
    Entry("ml_phaser.starts.labphase", "labphase", "text", None, None, None, ""),
    Entry("ml_phaser.starts.starts", "starts", "choice", "auto", None, None, ""),
    Entry("ml_phaser.starts.xyzin", "xyzin", "input", None, None, None, ""),
    Entry("ml_phaser.output.xyzout", "xyzout", "output", None, None, None, ""),
    Entry("ml_phaser.starts.seedin", "seedin", "input", None, None, None, ""),
    Entry("ml_phaser.starts.seedhold", "seedhold", "int", None, 0, 100000, ""),
    Entry("ml_phaser.data.spacegroup", "spacegroup", "text", None, None, None, ""),
    Entry("ml_phaser.data.cell", "cell", "cell", None, None, None, ""),
    Entry("ml_phaser.search.trials", "trials", "int", None, 1, 100000, ""),
    Entry("ml_phaser.search.timelimit", "timelimit", "float", 240.0, 1, 1000000.0, "s"),
    Entry("ml_phaser.search.engine", "engine", "choice", "auto", None, None, ""),
    Entry("ml_phaser.search.hand", "hand", "choice", "auto", None, None, ""),
    Entry("ml_phaser.output.mapextent", "mapextent", "choice", "cell", None, None, ""),
    Entry("ml_phaser.search.seed", "seed", "int", 0, 0, 2147483647, ""),
    Entry("ml_phaser.next.freer", "freer", "float", None, 1, 50, "%"),
    Entry("ml_phaser.next.seqin", "seqin", "input", None, None, None, ""),
    Entry("ml_phaser.next.shelxout", "shelxout", "output", None, None, None, ""),
    Entry("ml_phaser.next.seedout", "seedout", "output", None, None, None, ""),
    Entry("ml_phaser.next.seedformat", "seedformat", "choice", "auto", None, None, ""),
    Entry("ml_phaser.next.seedbins", "seedbins", "int", 4, 3, 8, ""),
    Entry("ml_phaser.next.seedfraction", "seedfraction", "float", None, 0.001, 1, ""),
    Entry("ml_phaser.next.seedcount", "seedcount", "int", None, 1, 10000000, ""),
    Entry("ml_phaser.next.seedmin", "seedmin", "float", None, 0, 1, ""),
    Entry("ml_phaser.next.then", "then", "choice", "none", None, None, ""),
    Entry("ml_phaser.run.device", "device", "choice", "auto", None, None, ""),
    Entry("ml_phaser.run.threads", "threads", "int", None, 1, 1024, ""),
    Entry("output.overwrite", "overwrite", "flag", False, None, None, ""),
    Entry("ml_phaser.run.quiet", "quiet", "flag", False, None, None, ""),
)
