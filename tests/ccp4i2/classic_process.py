"""The task inside the classic release's own classes: ``python classic_process.py CCP4I2 < requests > answers``.

Requests and answers are JSON. The classic release needs Qt and CCP4's libraries; here a stub stands for Qt's objects
and signals and mocks for the libraries, so that what is tested is its core: definitions, command line, reports.
"""

import contextlib
import json
import os
import re
import sys
import types
from pathlib import Path
from unittest import mock


class QObject:
    """A tree of named objects. Attributes go past the classes' own __getattr__."""

    def __init__(self, parent=None, *_, **__):
        self.__dict__["_parent"] = parent

    def parent(self):
        return self.__dict__.get("_parent")

    def setParent(self, parent):
        self.__dict__["_parent"] = parent

    def objectName(self):
        return self.__dict__.get("_name", "")

    def setObjectName(self, name):
        self.__dict__["_name"] = name

    def blockSignals(self, *_):
        return False


class Signal:
    def __init__(self, *_, **__):
        pass

    def connect(self, *_, **__):
        pass

    disconnect = emit = connect


class QtModule(types.ModuleType):
    """Any class that is asked for, made on the spot."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        made = type(name, (QObject,), {})
        setattr(self, name, made)
        return made


class RecordingWidget:
    """In place of the task widget: what drawContents asks for."""

    def __init__(self):
        self.lines, self.folders = [], []

    def openFolder(self, **given):
        self.folders.append(given["title"])

    def createLine(self, line):
        self.lines.append(line)

    def openSubFrame(self, **_):
        pass

    def closeSubFrame(self):
        pass


def prepare(folder):
    """Make the classic release importable."""
    sys.path.insert(0, folder)
    os.environ.setdefault("CCP4", folder)
    qt = QtModule("PySide2")
    qt.__path__ = []
    sys.modules["PySide2"] = qt
    for name in ("QtCore", "QtGui", "QtWidgets", "QtSql", "QtNetwork", "QtSvg", "QtXml", "QtWebEngineWidgets"):
        module = QtModule(f"PySide2.{name}")
        sys.modules[module.__name__] = module
        setattr(qt, name, module)
    core = sys.modules["PySide2.QtCore"]
    core.QObject, core.Signal, core.Qt = QObject, Signal, mock.MagicMock()
    core.Slot = lambda *_, **__: lambda function: function
    for name in ("clipper", "ccp4mg", "mmdb2", "hapi", "pyrvapi", "ccp4srs", "mmut"):
        sys.modules[name] = mock.MagicMock()
    definition = str(Path(folder) / "wrappers" / "ml_phaser" / "script" / "ml_phaser.def.xml")
    from core import CCP4TaskManager

    manager = mock.MagicMock()
    manager.lookupDefFile.return_value = definition
    CCP4TaskManager.TASKMANAGER = lambda: manager


def task(work):
    """The task, given amplitudes."""
    from core.CCP4XtalData import CMiniMtzDataFile
    from wrappers.ml_phaser.script.ml_phaser import ml_phaser

    CMiniMtzDataFile.setContentFlag = lambda *_, **__: None  # would read the file with CCP4's library
    (Path(work) / "obs.mtz").touch()
    made = ml_phaser(workDirectory=work)
    made.container.inputData.F_SIGF.setFullPath(str(Path(work) / "obs.mtz"))
    made.container.inputData.F_SIGF.contentFlag.set(4)
    for name, suffix in (("MAPOUT", "map"), ("PATTERSON", "map"), ("XYZOUT", "pdb")):
        getattr(made.container.outputData, name).setFullPath(str(Path(work) / f"{name}.{suffix}"))
    return made


def commands(requests, work):
    """The command line of each (field, value)."""
    from core.CCP4PluginScript import CPluginScript

    answers = []
    for field, value in requests:
        made = task(work)
        made.hklin = str(Path(work) / "hklin.mtz")
        if field is not None:
            made.container.controlParameters.get(field).set(value)
        assert made.makeCommandAndScript() == CPluginScript.SUCCEEDED
        answers.append([str(word) for word in made.commandLine])
    return answers


def piece(work):
    """The command line where there is a piece to place."""
    from core.CCP4PluginScript import CPluginScript

    made = task(work)
    made.hklin = str(Path(work) / "hklin.mtz")
    before = made._piece()
    (Path(work) / "piece.pdb").touch()
    made.container.inputData.XYZIN.setFullPath(str(Path(work) / "piece.pdb"))
    made.piece = made._piece()
    assert before == "" and made.makeCommandAndScript() == CPluginScript.SUCCEEDED
    return [str(word) for word in made.commandLine]


def next_failed(record, work):
    """What becomes of a job whose next program failed: with its exit status in the record, and without."""
    from core import CCP4Modules

    processes = mock.MagicMock()
    processes.getJobData.side_effect = lambda number, what: {"exitStatus": 0, "exitCode": 1}.get(what, "ml_phaser")
    CCP4Modules.PROCESSMANAGER = lambda: processes
    answers = []
    for text in (record, re.sub(r"(?s)<then>.*</then>", "", record), record.replace("finished", "running")):
        made = task(work)
        made.hklout, made.xmlout = Path(work) / "obs.mtz", Path(work) / "program.xml"
        made.xmlout.write_text(text)
        (Path(work) / "MAPOUT.map").touch()
        (Path(work) / "log.txt").write_text(" ml_phaser:  shelxe cannot be started\nTimes: User:\n")
        answers.append([made.postProcessCheck(1)[0], made.getErrorReport().report()])
    return answers


def definition(work):
    """What the release made of the definition: complaints, and class, value, label and level of each field."""
    made = task(work)
    fields = {}
    for name in made.container.controlParameters.dataOrder():
        content = made.container.controlParameters.get(name)
        level = content.qualifiers("guiDefinition").get("expertLevel")
        value = str(content) if content.isSet() else None
        fields[name] = [type(content).__name__, value, content.qualifiers("guiLabel"), level]
    colin, colout = made.makeColinColout("F_SIGF", made.container.inputData.F_SIGF)
    return {"complaints": made.getErrorReport().report(), "fields": fields, "labels": colout, "columns": colin}


def ending(record, hklout, work):
    """What is made of the program's files, and of a program that stopped."""
    made, split = task(work), []
    (Path(work) / "program.xml").write_text(record)
    made.hklin, made.hklout, made.xmlout = "hklin.mtz", Path(hklout), Path(work) / "program.xml"
    nothing_wrong = mock.MagicMock()
    nothing_wrong.maxSeverity.return_value = 0
    made.splitHklout = lambda *given: split.append(given) or nothing_wrong
    status, figures = made.processOutputFiles(), made.container.outputData.PERFORMANCE
    stopped = task(work)
    (Path(work) / "program.xml").unlink()
    (Path(work) / "log.txt").write_text(" ml_phaser:  a.mtz: no such file\nTimes: User:\n")
    stopped._explain()
    return {
        "status": status,
        "split": [list(map(str, names)) if isinstance(names, list) else str(names) for names in split[0]],
        "figures": [float(figures.FOM), float(figures.CC), str(figures.annotation)],
        "phases": str(made.container.outputData.ABCDOUT.annotation),
        "stopped": stopped.getErrorReport().report(),
    }


def report(requests):
    """The page of each (program.xml as text or None, status of the job, folder), as the release makes it: for a report
    that reads its own files it hands over an empty element."""
    from lxml import etree
    from wrappers.ml_phaser.script.ml_phaser_report import ml_phaser_report

    answers = []
    for text, status, folder in requests:
        (Path(folder) / "program.xml").unlink(missing_ok=True)
        if text is not None:
            (Path(folder) / "program.xml").write_text(text)
        made = ml_phaser_report(
            xmlnode=etree.fromstring("<dummy/>"), jobInfo={"fileroot": folder}, jobStatus=status, standardise=False
        )
        made.as_html_file(fileName=str(Path(folder) / "report.html"), htmlBase="")
        page = etree.parse(str(Path(folder) / "report.html"), etree.HTMLParser())
        for script in page.iter("script"):
            if script.get("type") != "application/xml":  # else a table, drawn by the browser
                script.text = None
        words = re.sub(r"</?t(able|head|body|r|h|d)\b[^>]*>", " ", " ".join(page.getroot().itertext()))
        answers.append(" ".join(words.split()))
    return answers


def discovered():
    """Modules of the task that the release's walk through its wrappers finds, and the tasks in them."""
    import importlib

    from core.CCP4TaskManager import CTaskManager

    names = []
    CTaskManager.explore_package(None, "wrappers", names)
    ours = [name for name in names if name.startswith("wrappers.ml_phaser.")]
    return {
        name: sorted(vars(importlib.import_module(name))) for name in ours if not name.endswith(("_gui", ".script"))
    }


def window():
    """Folders and lines of the task window."""
    module = types.ModuleType("qtgui.CCP4TaskWidget")
    module.CTaskWidget = RecordingWidget
    sys.modules["qtgui"] = types.ModuleType("qtgui")
    sys.modules["qtgui.CCP4TaskWidget"] = module
    from wrappers.ml_phaser.script.ml_phaser_gui import ml_phaser_gui

    drawn = ml_phaser_gui()
    drawn.drawContents()
    return {"folders": drawn.folders, "lines": drawn.lines, "next": drawn.WHATNEXT}


if __name__ == "__main__":
    asked = json.load(sys.stdin)
    with contextlib.redirect_stdout(sys.stderr):
        prepare(sys.argv[1])
        answers = {
            "definition": definition(asked["work"]),
            "commands": commands(asked["commands"], asked["work"]),
            "reports": report(asked["reports"]),
            "piece": piece(asked["work"]),
            "next_failed": next_failed(asked["next_failed"], asked["work"]),
            "ending": ending(*asked["ending"], asked["work"]),
            "window": window(),
            "discovered": discovered(),
        }
    json.dump(answers, sys.stdout)
