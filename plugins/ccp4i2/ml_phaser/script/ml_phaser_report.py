"""The report of a job, live while it runs: verdict first, then the evidence, then what to do next."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

try:
    from report.CCP4ReportParser import Report
except ImportError:
    from ccp4i2.report.CCP4ReportParser import Report

from .ml_phaser_files import best_score, mean_fom, next_failed, number, program_xml, text, why_failed

RUNNING = ("Running", "Running remotely", "Queued", "Pending")
TRIALS_IN_TABLE = 20
TRIALS_IN_GRAPH = 500
GRAPH = "width:500px; height:320px; border:0px; display:inline-block;"
STAGES = {
    "read": "reading the data",
    "normalise": "normalising the data",
    "phase": "phasing",
    "weigh": "weighing the phases",
    "write": "writing the files",
}
VERDICTS = {
    "solved": ("#2e7d32", "Solved.", "The map is right with probability {p}: go on with model building."),
    "uncertain": (
        "#b26a00",
        "Uncertain.",
        "The map is right with probability {p}. Look at it before you build: does it show atoms or chains?",
    ),
    "not solved": (
        "#b71c1c",
        "Not solved.",
        "The map is right with probability {p} only. Do not build into it without further evidence.",
    ),
}


class ml_phaser_report(Report):
    """Report of a finished, running or failed job."""

    TASKNAME = "ml_phaser"
    TASKVERSION = 0.1
    RUNNING = True
    FAILED = True
    WATCHED_FILE = "program.xml"
    USEPROGRAMXML = False  # a job that failed at once left none; what there is, is read below

    def __init__(self, xmlnode: Any = None, jobInfo: dict[str, Any] | None = None, jobStatus: Any = None, **kw: Any):
        super().__init__(xmlnode=xmlnode, jobInfo=jobInfo or {}, jobStatus=jobStatus, **kw)
        self.addDiv(style="clear:both;")
        folder = Path((jobInfo or {}).get("fileroot") or ".")
        ours = xmlnode is not None and xmlnode.tag == "ml_phaser"  # the classic release hands over a dummy
        record = xmlnode if ours else program_xml(folder / "program.xml")
        if jobStatus in RUNNING:
            self._running(record)
        elif record is None or text(record, "status", "finished") != "finished" or jobStatus == "Failed":
            self._failed(record, text(record, "error/message") or why_failed(folder))
        else:
            self._finished(record)

    def _say(self, parent: Any, words: str, style: str = "", tag: str = "p") -> None:
        attribute = f' style="{style}"' if style else ""
        parent.append(f"<{tag}{attribute}>{escape(words)}</{tag}>")

    # ------------------------------------------------------------------------------- running, failed

    def _running(self, record: Any) -> None:
        stage = text(record, "stage")
        said = f"ml_phaser is {STAGES[stage]}." if stage in STAGES else "ml_phaser has begun."
        self._say(self, said, "font-size:120%;")
        progress = number(record, "progress")
        if progress is not None:
            self.addProgress(value=round(100 * progress), max=100, label=f"{100 * progress:.0f} % of the time allowed")
        if record is not None and record.findall("trials/trial"):
            self._trials(record, initially_open=True)

    def _failed(self, record: Any, message: str) -> None:
        self._say(self, "No phases: the job did not finish.", "font-size:120%; color:#b71c1c; font-weight:bold;")
        self._say(self, message or "ml_phaser left no message; the end of its log says how far it came.")
        if record is not None and record.findall("trials/trial"):
            self._trials(record, initially_open=False)

    # -------------------------------------------------------------------------------------- finished

    def _finished(self, record: Any) -> None:
        self._verdict(record)
        self._numbers(record)
        if record.findall("shells/shell"):
            self._shells(record)
        if record.findall("trials/trial"):
            self._trials(record, initially_open=True)
        if record.findall("density/histogram/counts/*"):
            self._density(record)
        self._next(record)
        self._choices(record)
        self.addDiv(style="clear:both;")

    def _verdict(self, record: Any) -> None:
        word, probability = text(record, "verdict/word"), number(record, "verdict/probability")
        colour, head, advice = VERDICTS.get(word, ("#000000", word.capitalize() + ".", "Probability {p}."))
        said = advice.format(p="unknown" if probability is None else f"{probability:.2f}")
        self._say(self, head, f"font-size:150%; font-weight:bold; color:{colour}; margin-bottom:2px;")
        self._say(self, said, "font-size:110%;")
        if text(record, "verdict/reason"):
            self._say(self, f"Evidence: {text(record, 'verdict/reason')}")
        if text(record, "hand"):
            self._say(self, f"Hand: {text(record, 'hand')}")
        if text(record, "fragments/label"):
            self._say(self, _pieces(record))
        if text(record, "then/program"):
            self._then(record)

    def _then(self, record: Any) -> None:
        failed = next_failed(record)
        if failed:
            self._say(self, f"The phases are there; the next program failed: {failed}", "color:#b71c1c;")
        else:
            self._say(self, f"{text(record, 'then/program')}: {text(record, 'then/summary')}")

    def _numbers(self, record: Any) -> None:
        fom, score = mean_fom(record), best_score(record)
        table = self.addTable(transpose=True)
        for title, value in (
            ("Mean figure of merit", _shown(fom, 3)),
            ("CC on held-out reflections", _shown(score, 3)),
            ("Resolution (A)", f"{_shown(number(record, 'd_max'), 2)} - {_shown(number(record, 'd_min'), 2)}"),
            ("Reflections", text(record, "n_reflections", "-")),
            ("Starts tried", str(len(record.findall("trials/trial")))),
            ("Space group", text(record, "spacegroup", "-")),
        ):
            table.addData(title=title, data=[value])

    def _shells(self, record: Any) -> None:
        shells = record.findall("shells/shell")
        fold = self.addFold(label="Figures by resolution", brief="Resolution", initiallyOpen=True)
        columns = (
            ("1/d^2", [_inverse_square(number(shell, "d_min")) for shell in shells]),
            ("Figure of merit", [_shown(number(shell, "fom"), 3) for shell in shells]),
            ("CC of held-out E", [_shown(number(shell, "cc_free"), 3) for shell in shells]),
        )
        self._graph(fold, "Figure of merit and CC of held-out E", columns, x_label="Resolution (A)", one_over_d=True)
        table = fold.addFold(label="As a table", brief="Table", initiallyOpen=False).addTable()
        table.addData(title="d min (A)", data=[_shown(number(shell, "d_min"), 2) for shell in shells])
        table.addData(title="Reflections", data=[text(shell, "n", "-") for shell in shells])
        for title, values in columns[1:]:
            table.addData(title=title, data=values)

    def _trials(self, record: Any, initially_open: bool) -> None:
        trials = [(number(trial, "score"), trial) for trial in record.findall("trials/trial")]
        ranked = sorted(trials, key=lambda pair: -2.0 if pair[0] is None else pair[0], reverse=True)
        fold = self.addFold(label=f"Starts tried: {len(trials)}", brief="Starts", initiallyOpen=initially_open)
        scores = [score for score, _ in ranked if score is not None][:TRIALS_IN_GRAPH]
        if scores:
            columns = (
                ("Rank", [str(i + 1) for i in range(len(scores))]),
                ("CC of held-out E", [_shown(score, 3) for score in scores]),
            )
            self._graph(fold, "Starts, best first", columns, x_label="Rank")
        table = fold.addTable()
        best = [trial for _, trial in ranked[:TRIALS_IN_TABLE]]
        for title, name in (("Start", "index"), ("Method", "method"), ("Cycles", "cycles")):
            table.addData(title=title, data=[text(trial, name, "-") for trial in best])
        for title, name in (("CC of held-out E", "score"), ("R", "r_work"), ("Symmetry", "symmetry")):
            table.addData(title=title, data=[_shown(number(trial, name), 3) for trial in best])

    def _density(self, record: Any) -> None:
        edges = [float(item.text) for item in record.findall("density/histogram/edges/*")]
        counts = [item.text for item in record.findall("density/histogram/counts/*")]
        skewness = _shown(number(record, "density/skewness"), 2)
        fold = self.addFold(label="Density", brief="Density", initiallyOpen=False)
        self._say(fold, f"Skewness {skewness}: atoms give a density with a long tail upwards.")
        middles = [f"{(low + high) / 2:.3f}" for low, high in zip(edges, edges[1:])]
        columns = (("Density (sigma)", middles), ("Grid points", counts))
        self._graph(fold, "Histogram of the density", columns, x_label="Density (sigma)")

    def _graph(
        self,
        parent: Any,
        title: str,
        columns: tuple[tuple[str, list[str]], ...],
        x_label: str,
        one_over_d: bool = False,
    ) -> None:
        graph = parent.addFlotGraph(title=title, style=GRAPH)
        for name, values in columns:
            graph.addData(title=name.replace(" ", "_"), data=values)  # a space would begin the next heading
        plot = graph.addPlotObject()
        plot.append("title", title)
        plot.append("plottype", "xy")
        plot.append("xlabel", x_label)
        if one_over_d:
            plot.append("xscale", "oneoversqrt")
        if x_label == "Rank":
            plot.append("xintegral", "true")
        for i, (name, _) in enumerate(columns[1:], start=2):
            line = plot.append("plotline", xcol=1, ycol=i)
            line.append("label", name)
            line.append("colour", ("blue", "red")[i % 2])

    def _next(self, record: Any) -> None:
        steps = record.findall("next/step")
        fold = self.addFold(label="What to do next", brief="Next", initiallyOpen=True)
        if text(record, "verdict/word") == "not solved":
            self._say(fold, "Allow it more time, or phase otherwise: molecular replacement, anomalous scatterers.")
        if not steps:
            self._say(fold, "Go on with one of the tasks offered below, or look at the map in Coot.")
        for step in steps:
            needs = ", ".join(need.text or "" for need in step.findall("needs/need"))
            here = "" if text(step, "installed") == "true" else " (not installed here)"
            self._say(fold, f"{text(step, 'program')}{here}: {text(step, 'purpose')}")
            if needs:
                self._say(fold, f"Still needed: {needs}")
            self._say(fold, text(step, "command"), "white-space:pre-wrap;", "pre")

    def _choices(self, record: Any) -> None:
        said = [choice.text or "" for choice in record.findall("choices/choice")]
        weights = text(record, "weights/name")
        if weights:
            said.append(f"Network: {weights}.")
        if said:
            fold = self.addFold(label="Choices made", brief="Choices", initiallyOpen=False)
            for words in said:
                self._say(fold, words)


def _shown(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _pieces(record: Any) -> str:
    """What the solution was grown from."""
    fit, judged = (_shown(number(record, f"fragments/{name}"), 2) for name in ("fit", "judged"))
    label, atoms = (text(record, f"fragments/{name}") for name in ("label", "atoms"))
    return (
        f"Begun with pieces placed: {label}, {atoms} atoms. Correlation of their F^2 with the measured E^2 {fit}, "
        f"of the E predicted from them with those kept out {judged}."
    )


def _inverse_square(d: float | None) -> str:
    return "-" if not d else f"{1 / d**2:.5f}"
