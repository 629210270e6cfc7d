"""The plugin for ccp4i2: its definition made from the table of parameters, and what to put where.

One definition (``ml_phaser.def.xml``) serves the classic Qt release and the Django one. Parameters that ccp4i2 passes
as data are in DATA, those that the wrapper alone decides in FIXED; all others are fields of the interface.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ml_phaser.errors import UserError
from ml_phaser.parameters import GROUPS, PARAMETERS, Parameter
from ml_phaser.suites.install import Plugin, shipped

TASK = "ml_phaser"
TITLE = "Phases from amplitudes alone - ml_phaser"
DESCRIPTION = "Density and phases from measured amplitudes alone: no model, no heavy atoms"
NAMESPACE = "http://www.ccp4.ac.uk/ccp4ns"

# parameter -> the data object of ccp4i2 that carries it
DATA = {
    "hklin": "F_SIGF",
    "labin": "F_SIGF",
    "phasein": "ABCD",
    "labphase": "ABCD",
    "seqin": "ASUIN",
    "xyzin": "XYZIN",
    "mapout": "MAPOUT",
    "hklout": "ABCDOUT",
    "xyzout": "XYZOUT",
}
# parameter -> what the wrapper does with it, always
FIXED = {
    "jsonout": "ml_phaser.json in the folder of the job",
    "xmlout": "program.xml, which the report is made from",
    "overwrite": "given: the folder of a job is its own",
    "quiet": "not given: the log is part of the job",
}


@dataclass(frozen=True)
class Field:
    """One field of the interface: a content of controlParameters.

    id : its name in ccp4i2; kind : its class there; low, high : allowed range, ends included
    """

    id: str
    kind: str
    parameter: Parameter
    label: str
    low: float | None = None
    high: float | None = None


KINDS = {"int": "CInt", "float": "CFloat", "flag": "CBoolean", "output": "CBoolean"}


def fields() -> tuple[Field, ...]:
    """The fields, in the table's order. A range of resolution is two of them; an optional output is a yes or no."""
    return tuple(field for p in PARAMETERS if p.name not in DATA and p.name not in FIXED for field in _fields(p))


def _fields(p: Parameter) -> Iterator[Field]:
    unit = f" ({p.unit})" if p.unit else ""
    if p.kind == "resolution":
        yield Field(f"{p.name}_low".upper(), "CFloat", p, f"{p.caption}: low limit{unit}", low=p.low)
        yield Field(f"{p.name}_high".upper(), "CFloat", p, f"{p.caption}: high limit{unit}", p.low, p.high)
        return
    yield Field(p.name.upper(), KINDS.get(p.kind, "CString"), p, f"{p.caption}{unit}", p.low, p.high)


# ------------------------------------------------------------------------------------- the definition


@dataclass(frozen=True)
class Data:
    """One data object: class, label, help, and further qualifiers as ccp4i2 names them."""

    kind: str
    label: str
    help: str
    qualifiers: tuple[tuple[str, str], ...] = ()
    default: tuple[tuple[str, str], ...] = ()


_NEEDED = (("mustExist", "True"), ("allowUndefined", "False"), ("fromPreviousJob", "True"))
_OPTIONAL = (("mustExist", "True"), ("allowUndefined", "True"), ("fromPreviousJob", "False"))
_CRYSTAL = (("sameCrystalAs", "F_SIGF"),)

INPUT = {
    "F_SIGF": Data("CObsDataFile", "Measured data", "intensities or amplitudes, as measured: not converted", _NEEDED),
    "FREERFLAG": Data("CFreeRDataFile", "Free-R flags", "kept in what is written", _OPTIONAL + _CRYSTAL),
    "ABCD": Data("CPhsDataFile", "Phases to start from", "your own phases, none: random starts", _OPTIONAL + _CRYSTAL),
    "XYZIN": Data(
        "CPdbDataFile", "Piece to place", "your own piece of a few residues, none: strands and helices",
        (*_OPTIONAL, ("ifAtomSelection", "True")),
    ),
    "ASUIN": Data("CAsuDataFile", "Sequence", "contents of the asymmetric unit, for the next program", _OPTIONAL),
}  # fmt: skip
OUTPUT = {
    "ABCDOUT": Data(
        "CPhsDataFile", "Phases", "Hendrickson-Lattman coefficients",
        default=(("annotation", "Phases from ml_phaser"), ("subType", "1"), ("contentFlag", "1")),
    ),
    "FPHIOUT": Data(
        "CMapCoeffsDataFile", "Map coefficients", "figure of merit times F, and phase",
        default=(("annotation", "Map coefficients from ml_phaser"), ("subType", "1"), ("contentFlag", "1")),
    ),
    "MAPOUT": Data(
        "CMapDataFile", "Density map", "electron density", default=(("annotation", "Density map from ml_phaser"),)
    ),
    "XYZOUT": Data(
        "CPdbDataFile", "Placed pieces", "as placed and grown, where the solution comes from them",
        default=(("annotation", "Pieces placed by ml_phaser"), ("subType", "3")),
    ),
    "PATTERSON": Data(
        "CMapDataFile", "Patterson map", "Patterson map", default=(("annotation", "Patterson map from ml_phaser"),)
    ),
    "FREEROUT": Data(
        "CFreeRDataFile", "Free-R flags", "where the data had none",
        default=(("annotation", "Free-R flags from ml_phaser"), ("contentFlag", "1")),
    ),
    "PERFORMANCE": Data("CExpPhasPerformance", "Figures", "mean figure of merit, CC on held-out reflections, verdict"),
}  # fmt: skip


def definition() -> str:
    """Text of ml_phaser.def.xml."""
    ET.register_namespace("ccp4", NAMESPACE)
    root = ET.Element(f"{{{NAMESPACE}}}ccp4i2")
    header = ET.SubElement(root, "ccp4i2_header")
    for name, text in (("function", "DEF"), ("pluginName", TASK), ("pluginTitle", TITLE)):
        ET.SubElement(header, name).text = text
    body = ET.SubElement(root, "ccp4i2_body", id=TASK)
    for container, contents in (("inputData", INPUT), ("outputData", OUTPUT)):
        parent = ET.SubElement(body, "container", id=container)
        for name, data in contents.items():
            _add_data(parent, name, data)
    parent = ET.SubElement(body, "container", id="controlParameters")
    for field in fields():
        _add_field(parent, field)
    ET.indent(root)
    return ET.tostring(root, encoding="us-ascii", xml_declaration=True).decode("ascii") + "\n"


def _content(parent: ET.Element, name: str, kind: str) -> ET.Element:
    content = ET.SubElement(parent, "content", id=name)
    ET.SubElement(content, "className").text = kind
    return ET.SubElement(content, "qualifiers")


def _add_data(parent: ET.Element, name: str, data: Data) -> None:
    qualifiers = _content(parent, name, data.kind)
    for key, text in (("guiLabel", data.label), ("toolTip", data.help), *data.qualifiers):
        ET.SubElement(qualifiers, key).text = text
    if data.default:
        default = ET.SubElement(qualifiers, "default")
        for key, text in data.default:
            ET.SubElement(default, key).text = text


def _add_field(parent: ET.Element, field: Field) -> None:
    p = field.parameter
    qualifiers = _content(parent, field.id, field.kind)
    for key, text in (("guiLabel", field.label), ("toolTip", p.help)):
        ET.SubElement(qualifiers, key).text = text
    if p.choices:
        for key in ("enumerators", "menuText"):
            ET.SubElement(qualifiers, key).text = ",".join(p.choices)
        ET.SubElement(qualifiers, "onlyEnumerators").text = "True"
    for key, limit in (("min", field.low), ("max", field.high)):
        if limit is not None:
            ET.SubElement(qualifiers, key).text = _number(limit, field.kind)
    default = False if field.kind == "CBoolean" else p.default
    if default is None:
        ET.SubElement(qualifiers, "allowUndefined").text = "True"
    else:
        text = _number(default, field.kind) if field.kind in ("CInt", "CFloat") else str(default)
        ET.SubElement(qualifiers, "default").text = text
    if p.expert:
        ET.SubElement(qualifiers, "expertLevel").text = "1"  # where the Django release reads it
        ET.SubElement(ET.SubElement(qualifiers, "guiDefinition"), "expertLevel").text = "1"  # and the classic one


def _number(value: float, kind: str) -> str:
    return str(int(value)) if kind == "CInt" else repr(float(value))


# ------------------------------------------------------------------------- the table for the wrapper


def table() -> str:
    """Text of ml_phaser_table.py: from the interface's fields to the command line, and their groups."""
    lines = [
        '"""What the interface and the wrapper share. Made from ml_phaser\'s table of parameters: do not edit."""',
        "",
        "# word of the command line, kind there, fields",
        "KEYWORDS = (",
    ]
    for p in PARAMETERS:
        ids = [f.id for f in fields() if f.parameter is p]
        if ids:
            lines.append(f"    {_tuple([p.name, p.kind, *ids])},")
    lines += [")", "", "# title, fields: name, label, whether for experts", "GROUPS = ("]
    for group, title in GROUPS.items():
        inside = [f for f in fields() if f.parameter.group == group]
        shown = [f'("{f.id}", "{f.label}", {f.parameter.expert}),' for f in inside]
        if inside:
            lines += ["    (", f'        "{title}",']
            lines += [f"        ({shown[0]})," if len(shown) == 1 else _block(shown)]
            lines += ["    ),"]
    lines += [")", "", "# the finest resolution there is, A", f"FINEST = {_finest():g}", ""]
    return "\n".join(lines)


def _block(items: list[str]) -> str:
    return "\n".join(["        (", *(f"            {item}" for item in items), "        ),"])


def _tuple(words: list[str]) -> str:
    return "(" + ", ".join(f'"{word}"' for word in words) + ")"


def _finest() -> float:
    return next(p.low for p in PARAMETERS if p.kind == "resolution" and p.low is not None)


def generated() -> dict[str, str]:
    """File of the plugin's folder -> text made from the table of parameters."""
    return {
        f"{TASK}/script/{TASK}.def.xml": definition(),
        f"{TASK}/script/{TASK}_table.py": table(),
    }


# ------------------------------------------------------------------------------------- installation

CLASSIC, DJANGO = "core/CCP4TaskManager.py", "core/tasks.py"
REGISTRATION = f'''TASKS["{TASK}"] = Task(
    title="{TITLE}",
    description="{DESCRIPTION}",
    shortTitle="ml_phaser",
    pluginPath="ccp4i2.wrappers.{TASK}.script.{TASK}:{TASK}",
    defXmlPath="wrappers/{TASK}/script/{TASK}.def.xml",
    reportPath="ccp4i2.wrappers.{TASK}.script.{TASK}_report:{TASK}_report",
    runningReport=True,
    watchedFile="program.xml",
    ccp4_free=True,
)
'''


def plan(prefix: Path) -> Plugin:
    """What belongs into the ccp4i2 in ``prefix``: $CCP4I2 of the classic release, the package of the new one.

    Raises
    ------
    UserError
        neither of them
    """
    wrappers = (prefix / "wrappers").is_dir()
    if wrappers and (prefix / DJANGO).is_file():
        said = "Start ccp4i2 again: the task is ml_phaser; i2run ml_phaser runs it without the interface."
        return Plugin(_files(), {DJANGO: REGISTRATION}, (said,))
    if wrappers and (prefix / CLASSIC).is_file():
        said = f"Run {prefix / 'bin' / 'buildCaches'}, which tells ccp4i2 of it, then start ccp4i2 again."
        return Plugin(_files(), said=(said, "The task is under Experimental phasing."))
    raise UserError(
        "is no ccp4i2",
        f"prefix {prefix}",
        "the folder $CCP4I2 of CCP4, or where python -c 'import ccp4i2; print(ccp4i2.__path__[0])' says",
    )


def _files() -> dict[str, bytes]:
    return {f"wrappers/{name}": content for name, content in shipped("ccp4i2").items() if name.startswith(f"{TASK}/")}
