"""The program: what Phenix knows of the user's wishes in, the program ml_phaser run, its findings out."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

try:
    from phenix.program_template import ProgramTemplate
except ImportError:
    from libtbx.program_template import ProgramTemplate

import iotbx.phil
from libtbx import group_args
from libtbx.utils import Sorry

from ml_phaser_phenix import child, command
from ml_phaser_phenix.table import VERSION

MASTER_PHIL = (Path(__file__).resolve().parents[1] / "ml_phaser.phil").read_text(encoding="utf-8")

CITATIONS = f"""
citation {{
  article_id = ml_phaser
  caption = The program
  authors = the ml_phaser developers
  title = "ml_phaser: electron density and phases from measured X-ray amplitudes"
  journal = "software"
  volume = "version {VERSION}"
}}
citation {{
  article_id = ml_phaser_charge_flipping
  caption = Charge flipping
  authors = Oszlanyi G, Suto A
  title = "Ab initio structure solution by charge flipping"
  journal = "Acta Cryst. A"
  year = 2004
  volume = 60
  pages = 134-141
  doi_id = "10.1107/S0108767303027569"
}}
citation {{
  article_id = ml_phaser_iterated_projections
  caption = Iterated projections
  authors = Elser V
  title = "Phase retrieval by iterated projections"
  journal = "J. Opt. Soc. Am. A"
  year = 2003
  volume = 20
  pages = 40-55
  doi_id = "10.1364/JOSAA.20.000040"
}}
citation {{
  article_id = ml_phaser_shelxt
  caption = Phases in P1, then the space group
  authors = Sheldrick GM
  title = "SHELXT - Integrated space-group and crystal-structure determination"
  journal = "Acta Cryst. A"
  year = 2015
  volume = 71
  pages = 3-8
  doi_id = "10.1107/S2053273314026370"
}}
"""


class Program(ProgramTemplate):
    """Phases and electron density from measured amplitudes alone."""

    program_name = "phenix.ml_phaser"
    version = VERSION
    description = """
Phases and electron density from measured X-ray amplitudes alone: no model, no
heavy atoms, no phase information.

  phenix.ml_phaser data.mtz
  phenix.ml_phaser data.mtz user_selected_labels=I,SIGI timelimit=600

"""
    datatypes = ["miller_array", "phil"]  # noqa: RUF012
    master_phil_str = MASTER_PHIL
    citations = iotbx.phil.parse(CITATIONS)
    epilog = """
The program ml_phaser does the work; ml_phaser --help explains what it takes.

"""

    def custom_init(self) -> None:
        self.record: dict[str, Any] | None = None
        self.next_failed = ""

    # ------------------------------------------------------------------------------------------------ before

    def validate(self) -> None:
        """Sorry where the run would fail: parameters, files, the program itself."""
        command.check_ranges(self.params)
        self.chosen = self._chosen()
        command.check_files(self.params, self.chosen)
        self.executable = command.executable(self.params.ml_phaser.run.executable)

    def _chosen(self) -> dict[str, Any]:
        """Values that stand in for those the user left open: data, their labels, names of the outputs."""
        hklin = self._given("data.hklin") or self._data_file()
        mapout = self._given("output.mapout") or f"{self._root(hklin)}.map"
        base = command.without_suffix(mapout)
        chosen = {"hklin": hklin, "mapout": mapout, "hklout": f"{base}.mtz", "jsonout": f"{base}.json"}
        if self._given("data.labin") is None:
            chosen["labin"] = command.chosen_labels(self.data_manager, hklin)
        return chosen

    def _given(self, path: str) -> Any:
        return command.value_of(self.params.ml_phaser, path)

    def _data_file(self) -> str:
        """The one reflection file that no parameter names."""
        phases = self._given("starts.phasein")
        names = self.data_manager.get_miller_array_names()
        files = [name for name in names if phases is None or command.absolute(name) != command.absolute(phases)]
        if not files:
            raise Sorry("no measured data. Try: data.hklin=FILE")
        if len(files) > 1:
            raise Sorry(f"several reflection files: {', '.join(files)}. Try: data.hklin={files[0]}")
        return files[0]

    def _root(self, hklin: str) -> str:
        """Path of the outputs without suffix, in Phenix's way: prefix, suffix and serial number, or a name."""
        if self.params.output.prefix is None:
            return self.get_default_output_filename(prefix=f"{command.stem_of(hklin)}_ml_phaser")
        return self.get_default_output_filename()

    # --------------------------------------------------------------------------------------------------- run

    def run(self) -> None:
        """Run the program, its log as ours, and read its run record. That the next program failed is said, no more."""
        # jsonout has that name anyway; named on the command line it would be written of a run that fails, too.
        chosen = {name: value for name, value in self.chosen.items() if name != "jsonout"}
        words = [self.executable, *command.words(self.params, chosen)]
        print(f"Command: {shlex.join(words)}\n", file=self.logger)
        before = self._record_stamp()
        code, said = child.follow(words, self.logger)
        record = self._read_record() if self._record_stamp() != before else {}
        if code != 0 and record.get("status") != "finished":
            raise Sorry(said or f"ml_phaser failed without a word (exit status {code})")
        if not record:
            raise Sorry(f"ml_phaser left no run record: {self._record_file()}")
        self.record = record
        if code != 0:
            self.next_failed = f"The phases are there; the next program failed: {said or f'exit status {code}'}"
            print(self.next_failed, file=self.logger)

    def _read_record(self) -> dict[str, Any]:
        """The run record, empty where there is none that can be read."""
        try:
            record: dict[str, Any] = json.loads(self._record_file().read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return record

    def _record_stamp(self) -> tuple[int, int] | None:
        """Tells an old record from that of this run."""
        try:
            status = self._record_file().stat()
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns

    def _record_file(self) -> Path:
        path = command.absolute(self._given("output.jsonout") or self.chosen["jsonout"])
        return path if path.suffix else path.with_suffix(".json")

    # ------------------------------------------------------------------------------------------------- after

    def get_results(self) -> Any:
        """What was found, as group_args; None before the run.

        verdict, probability, reason : the judgement, and the probability that the map is right; fom : mean figure of
        merit; hand : a sentence; files : parameter -> path of what was written; map_file, hkl_file, record_file : the
        three that always are; pieces_file, atoms_file : the placed pieces, or free atoms, None where the solution is
        not of them or xyzout was not given; fragments : what the pieces are and how well they fit; next_steps :
        programs that can go on, with their commands; then : what became of the next program, where one was asked for;
        next_failed : a sentence,
        where it failed, else ""; record : the whole run record
        """
        found = self._found()
        return None if found is None else group_args(group_args_type="results of ml_phaser", **found)

    def get_results_as_JSON(self) -> str:
        """The same as text."""
        return json.dumps(self._found(), indent=1)

    def _found(self) -> dict[str, Any] | None:
        record = self.record
        if record is None:
            return None
        pieces = record["fragments"]
        model = pieces is not None or record.get("atoms") is not None
        written = {k: v for k, v in record["outputs"].items() if k != "xyzout" or model}
        files = {name: path for name, path in written.items() if path is not None}
        shells = record["shells"]
        return {
            "verdict": record["verdict"]["word"],
            "probability": record["verdict"]["probability"],
            "reason": record["verdict"]["reason"],
            "fom": sum(row["n"] * row["fom"] for row in shells) / sum(row["n"] for row in shells),
            "hand": record["hand"],
            "files": files,
            "map_file": files["mapout"],
            "hkl_file": files["hklout"],
            "record_file": files["jsonout"],
            "pieces_file": files.get("xyzout") if pieces is not None else None,
            "atoms_file": files.get("xyzout") if pieces is None else None,
            "fragments": pieces,
            "next_steps": record["next"],
            "then": record["then"],
            "next_failed": self.next_failed,
            "record": record,
        }
