"""The task ml_phaser: from ccp4i2's data to the command line of the program, and back.

Runs in the classic release and in the Django one. The program itself is the executable ``ml_phaser`` on PATH; this
module shares its name with the program's Python package and imports nothing of it.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

try:
    from core.CCP4ErrorHandling import SEVERITY_WARNING
    from core.CCP4PluginScript import CPluginScript

    SEVERE: dict[str, int] = {}  # there ERROR_CODES says how severe an error is, by default as much as can be
    MILD: dict[str, int] = {}
    BUILDERS = ["buccaneer_build_refine_mr"]  # the Django release has it no longer
except ImportError:
    from ccp4i2.core.CCP4ErrorHandling import SEVERITY_ERROR, SEVERITY_WARNING
    from ccp4i2.core.CCP4PluginScript import CPluginScript

    SEVERE, MILD = {"severity": SEVERITY_ERROR}, {"severity": SEVERITY_WARNING}
    BUILDERS = []

from .ml_phaser_files import best_score, free_column, mean_fom, next_failed, program_xml, text, why_failed
from .ml_phaser_table import FINEST, KEYWORDS

OBSERVED = {
    1: ("Iplus", "SIGIplus", "Iminus", "SIGIminus"),
    2: ("Fplus", "SIGFplus", "Fminus", "SIGFminus"),
    3: ("I", "SIGI"),
    4: ("F", "SIGF"),
}
PHASES = {1: "HLA=HLA HLB=HLB HLC=HLC HLD=HLD", 2: "PHIB=PHI FOM=FOM"}
OPTIONAL_OUTPUT = {"reportout": "ml_phaser.html", "shelxout": "ml_phaser.phi", "seedout": "ml_phaser_seeds"}


class ml_phaser(CPluginScript):
    """One job."""

    TASKMODULE = "expt_phasing"
    TASKTITLE = "Phases from amplitudes alone - ml_phaser"
    SHORTTASKTITLE = "ml_phaser"
    TASKNAME = "ml_phaser"
    TASKVERSION = 0.1
    TASKCOMMAND = "ml_phaser"
    MAINTAINER = "the ml_phaser developers"
    PERFORMANCECLASS = "CExpPhasPerformance"
    WHATNEXT = ["modelcraft", "parrot", *BUILDERS, "shelxeMR", "coot_rebuild", "coot1"]  # noqa: RUF012
    piece = ""
    ERROR_CODES = {  # noqa: RUF012
        201: {"description": "The program ml_phaser is not on PATH. Install it, then start ccp4i2 again"},
        202: {"description": "ml_phaser stopped and said why"},
        203: {"description": "ml_phaser stopped without a word. The end of its log says how far it came"},
        204: {"description": "ml_phaser ended well but files are missing. Is the disk full?"},
        205: {"description": "The measured data (and free-R flags) could not be put together for ml_phaser"},
        206: {"description": "The sequence could not be written for ml_phaser"},
        207: {"description": "The phased MTZ could not be split into phases and map coefficients"},
        208: {"description": "The piece to place could not be written for ml_phaser"},
        209: {"description": "The phases are there; the next program failed", "severity": SEVERITY_WARNING},
    }

    def _fail(self, code: int, details: str = "") -> int:
        said = self.ERROR_CODES[code]["description"]
        self.appendErrorReport(code, f"{said}: {details}" if details else said, **SEVERE)
        return CPluginScript.FAILED

    def _path(self, name: str) -> Path:
        return Path(str(self.getWorkDirectory())) / name

    # ------------------------------------------------------------------------------------ input

    def processInputFiles(self) -> int:
        """One MTZ of the data as measured (and free-R flags), the sequence as FASTA, the piece to place."""
        if shutil.which(self.getCommand(self.TASKCOMMAND)) is None:
            return self._fail(201)
        data = self.container.inputData
        together = ["F_SIGF"] + (["FREERFLAG"] if data.FREERFLAG.isSet() else [])
        self.hklin, _, error = self.makeHklin0(together)
        if error.maxSeverity() > SEVERITY_WARNING or not Path(str(self.hklin)).exists():
            return self._fail(205)
        if data.ASUIN.isSet():
            data.ASUIN.writeFasta(str(self._path("sequence.fasta")))
            if not self._path("sequence.fasta").exists():
                return self._fail(206)
        self.piece = self._piece()
        if self.piece and not Path(self.piece).exists():
            return self._fail(208)
        return CPluginScript.SUCCEEDED

    def _piece(self) -> str:
        """Path of the piece to place, "" where there is none: the user's file, or the atoms selected of it."""
        piece = self.container.inputData.XYZIN
        if not piece.isSet():
            return ""
        if not piece.isSelectionSet():
            return str(piece.fullPath)
        path = self._path("piece.cif" if piece.isMMCIF() else "piece.pdb")
        piece.getSelectedAtomsPdbFile(str(path))
        return str(path)

    # ---------------------------------------------------------------------------------- command

    def makeCommandAndScript(self, **_: Any) -> int:
        """The command line: data, outputs, then every field that has a value."""
        data, out = self.container.inputData, self.container.outputData
        data.F_SIGF.setContentFlag()
        labels = ["F_SIGF_" + name for name in OBSERVED[int(data.F_SIGF.contentFlag)]]
        self.appendCommandLine(["hklin", self.hklin, "labin", ",".join(labels)])
        if data.ABCD.isSet():
            data.ABCD.setContentFlag()
            labphase = PHASES[int(data.ABCD.contentFlag)]
            self.appendCommandLine(["phasein", str(data.ABCD.fullPath), "labphase", labphase])
        if data.ASUIN.isSet():
            self.appendCommandLine(["seqin", self._path("sequence.fasta")])
        if self.piece:
            self.appendCommandLine(["xyzin", self.piece])
        self.hklout, self.xmlout = self._path("hklout.mtz"), Path(str(self.makeFileName("PROGRAMXML")))
        self.appendCommandLine(["mapout", str(out.MAPOUT.fullPath), "hklout", self.hklout])
        self.appendCommandLine(["xyzout", str(out.XYZOUT.fullPath)])
        self.appendCommandLine(["jsonout", self._path("ml_phaser.json"), "xmlout", self.xmlout, "overwrite"])
        for keyword, kind, *fields in KEYWORDS:
            self.appendCommandLine(self._words(keyword, kind, *fields))
        return CPluginScript.SUCCEEDED

    def _words(self, keyword: str, kind: str, *fields: str) -> list[str]:
        """Words of one keyword, none where its field is empty."""
        values = [getattr(self.container.controlParameters, field) for field in fields]
        if kind == "resolution":
            return self._resolution(keyword, *values)
        if kind == "output":
            if not bool(values[0]):
                return []
            if keyword == "pattout":
                return [keyword, str(self.container.outputData.PATTERSON.fullPath)]
            return [keyword, str(self._path(OPTIONAL_OUTPUT[keyword]))]
        written = str(values[0]).strip() if values[0].isSet() else ""
        return [keyword, written] if written else []

    @staticmethod
    def _resolution(keyword: str, low: Any, high: Any) -> list[str]:
        if not (low.isSet() or high.isSet()):
            return []
        finest = str(high) if high.isSet() else str(FINEST)
        return [keyword, f"{low},{finest}" if low.isSet() else finest]

    # ---------------------------------------------------------------------------------- the end

    def startProcess(self, *args: Any, **kw: Any) -> Any:
        """As the base class does; where the program stopped, its own message goes into the error report. That the next
        program failed stops nothing: the phases are there."""
        self.xmlout.unlink(missing_ok=True)  # of an earlier run, whose end must not be taken for this one's
        failed = super().startProcess(*args, **kw)
        if failed and self._phased():
            return CPluginScript.SUCCEEDED
        if failed:  # the Django release goes no further then
            self._explain()
        return failed

    def postProcessCheck(self, *args: Any, **kw: Any) -> tuple[int, Any, Any]:
        """As the base class does; then whether every file is there."""
        said, (status, exit_status, exit_code) = next_failed(program_xml(self.xmlout)), (CPluginScript.SUCCEEDED, 0, 0)
        if not said:
            status, exit_status, exit_code = super().postProcessCheck(*args, **kw)
        if status != CPluginScript.SUCCEEDED:
            if not self._phased():
                self._explain()
                return status, exit_status, exit_code
            said, status = why_failed(self._path("")) or "it left no message", CPluginScript.SUCCEEDED
        if said:
            self.appendErrorReport(209, f"{self.ERROR_CODES[209]['description']}: {said}", **MILD)
        wanted = [self.hklout, self.xmlout, Path(str(self.container.outputData.MAPOUT.fullPath))]
        missing = [path.name for path in wanted if not path.exists()]
        if missing:
            return self._fail(204, ", ".join(missing)), exit_status, exit_code
        return status, exit_status, exit_code

    def _phased(self) -> bool:
        """Whether the program came to its end; where it says so and fails, the next program has failed."""
        return text(program_xml(self.xmlout), "status") == "finished"

    def _explain(self) -> None:
        said = why_failed(self._path(""))
        self._fail(202, said) if said else self._fail(203)

    def processOutputFiles(self) -> int:
        """Phases, map coefficients and free-R flags out of the phased MTZ; labels; the figures of the job."""
        out, record = self.container.outputData, program_xml(self.xmlout)
        word = text(record, "verdict/word", "no verdict")
        verdict = f"{word}, P = {float(text(record, 'verdict/probability', '0')):.2f}"
        files = {"ABCDOUT": "HLA,HLB,HLC,HLD", "FPHIOUT": "FWT,PHWT"}
        out.ABCDOUT.contentFlag.set(1)
        out.ABCDOUT.subType.set(1)
        out.FPHIOUT.contentFlag.set(1)
        out.FPHIOUT.subType.set(1)
        out.ABCDOUT.annotation.set(f"Phases from ml_phaser ({verdict})")
        out.FPHIOUT.annotation.set(f"Map coefficients from ml_phaser ({verdict})")
        out.MAPOUT.annotation.set(f"Density map from ml_phaser ({verdict})")
        out.PATTERSON.annotation.set("Patterson map from ml_phaser")
        out.XYZOUT.annotation.set(f"Pieces placed by ml_phaser ({verdict})")
        free = "" if self.container.inputData.FREERFLAG.isSet() else free_column(self.hklout)
        if free:
            files["FREEROUT"] = free
            out.FREEROUT.annotation.set("Free-R flags from ml_phaser")
        error = self.splitHklout(list(files), list(files.values()), str(self.hklout))
        if error.maxSeverity() > SEVERITY_WARNING:
            return self._fail(207, self.hklout.name)
        fom, score = mean_fom(record), best_score(record)
        if fom is not None:
            out.PERFORMANCE.FOM.set(round(fom, 3))
        if score is not None and score >= 0:  # ccp4i2 takes none below
            out.PERFORMANCE.CC.set(round(score, 3))
        out.PERFORMANCE.annotation.set(verdict)
        return CPluginScript.SUCCEEDED
