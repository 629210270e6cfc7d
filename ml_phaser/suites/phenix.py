"""The plugin for Phenix: its parameters made from the table, and where its files belong.

The plugin is one Python package, ``ml_phaser_phenix``, and a libtbx module too: docs/decisions/0010-phenix-plugin.md.
"""

from __future__ import annotations

import shlex
import shutil
import sysconfig
from pathlib import Path

from ml_phaser import __version__
from ml_phaser.errors import UserError
from ml_phaser.parameters import GROUPS, PARAMETERS, Parameter
from ml_phaser.suites.install import Plugin, shipped

PACKAGE = "ml_phaser_phenix"
COMMAND = "phenix.ml_phaser"
SCOPE = "ml_phaser"
PHIL_FILE = f"{PACKAGE}/ml_phaser.phil"
TABLE_FILE = f"{PACKAGE}/table.py"
EXECUTABLE_FILE = f"{PACKAGE}/executable.txt"

# Phenix has these already: the scope ``output`` that it adds to every program.
SUITE_PATHS = {"overwrite": "output.overwrite"}

TYPES = {
    "input": "path",
    "output": "path",
    "text": "str",
    "int": "int",
    "float": "float",
    "choice": "choice",
    "flag": "bool",
    "resolution": "floats",
    "cell": "unit_cell",
}
TYPE_OF = {"spacegroup": "space_group"}
WIDTHS = {"path": 400, "str": 200, "int": 80, "float": 80, "choice": 160, "floats": 120, "unit_cell": 240}
WIDTHS |= {"space_group": 120}  # pixels

STYLES = {
    "hklin": "bold input_file file_type:hkl process_hkl child:fobs:labin child:iobs:labin",
    "labin": "bold renderer:draw_fobs_label_widget parent:file_name:hklin",
    "mapout": "bold new_file file_type:ccp4_map",
    "hklout": "new_file file_type:hkl",
    "pattout": "new_file file_type:ccp4_map",
    "phasein": "input_file file_type:hkl",
    "xyzin": "input_file file_type:pdb",
    "xyzout": "new_file file_type:pdb",
    "seqin": "input_file file_type:seq seq_file",
    "quiet": "hidden",
}

# What Phenix does where the command line does something else, instead of what stands in [ ] there.
HELP = {
    "hklin": "; or a reflection file given without a name",
    "mapout": " [named by the scope output, else after the data]",
    "jsonout": " [mapout with .json]",
    "labin": " [those chosen with user_selected_labels, else the only measured ones]",
}


def path_of(parameter: Parameter) -> str:
    """A parameter's full path in PHIL, e.g. "ml_phaser.data.hklin"."""
    return SUITE_PATHS.get(parameter.name, f"{SCOPE}.{parameter.group}.{parameter.name}")


def phil_type(parameter: Parameter) -> str:
    return TYPE_OF.get(parameter.name, TYPES[parameter.kind])


def _range(parameter: Parameter) -> str:
    if parameter.low is None or parameter.high is None:
        return ""
    unit = f" {parameter.unit}" if parameter.unit else ""
    return f" ({parameter.low:.10g} to {parameter.high:.10g}{unit})"


def help_of(parameter: Parameter) -> str:
    """The table's help, with unit and range, and with Phenix's default where that is another."""
    text = parameter.help
    if parameter.name in HELP and not HELP[parameter.name].startswith(";"):
        text = text.partition(" [")[0]
    return text + HELP.get(parameter.name, "") + _range(parameter)


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _value(parameter: Parameter) -> str:
    if parameter.choices:
        return " ".join(f"*{c}" if c == parameter.default else c for c in parameter.choices)
    if parameter.default is None or isinstance(parameter.default, bool):
        return str(parameter.default)
    return f"{parameter.default:.10g}"


def _definition(parameter: Parameter) -> list[str]:
    """Lines of one PHIL definition."""
    kind = phil_type(parameter)
    attributes = {
        "type": kind,
        "short_caption": _quoted(parameter.caption),
        "help": _quoted(help_of(parameter)),
        "expert_level": str(int(parameter.expert)),
    }
    if parameter.choices:
        attributes["caption"] = " ".join(c.capitalize() for c in parameter.choices)
    if kind in WIDTHS:
        attributes["input_size"] = str(WIDTHS[kind])
    style = STYLES.get(parameter.name, {"output": "new_file", "input": "input_file"}.get(parameter.kind, ""))
    if style:
        attributes["style"] = style
    lines = [f"{parameter.name} = {_value(parameter)}"]
    return lines + [f"  .{name} = {value}" for name, value in attributes.items()]


def master_phil() -> str:
    """The master PHIL of the program, without what Phenix adds to every program."""
    lines = [f"{SCOPE}", "  .short_caption = ml_phaser", "{"]
    for group, caption in GROUPS.items():
        ours = [p for p in PARAMETERS if p.group == group and p.name not in SUITE_PATHS]
        definitions = [line for p in ours for line in _definition(p)]
        if group == "run":
            definitions += _executable()
        lines += [f"  {group}", f"    .short_caption = {_quoted(caption)}", "    .style = box auto_align", "  {"]
        lines += [f"    {line}" for line in definitions]
        lines += ["  }"]
    return "\n".join([*lines, "}"]) + "\n"


def _executable() -> list[str]:
    """The one parameter that the command line has not. Its type is not path: Phenix would read the file."""
    return [
        "executable = None",
        "  .type = str",
        '  .short_caption = "Program ml_phaser"',
        '  .help = "the program ml_phaser [ML_PHASER_EXECUTABLE of the environment, else the one that installed this'
        ' plugin, else ml_phaser on PATH]"',
        "  .expert_level = 1",
        "  .input_size = 400",
        "  .style = noauto",
    ]


def _literal(value: object) -> str:
    return _quoted(value) if isinstance(value, str) else repr(value)


def _entry(p: Parameter) -> str:
    fields = (path_of(p), p.name, p.kind, p.default, p.low, p.high, p.unit)
    return f"    Entry({', '.join(map(_literal, fields))}),"


def table() -> str:
    """The module that tells the plugin which PHIL path is which word of the command line."""
    lines = [
        '"""Parameters of the program, made from ml_phaser\'s table of parameters: do not edit."""',
        "",
        "from __future__ import annotations",
        "",
        "from typing import Any, NamedTuple",
        "",
        f"VERSION = {_quoted(__version__)}",
        "",
        "",
        "class Entry(NamedTuple):",
        '    """PHIL path, name on the command line, kind, default, allowed range (ends included), unit."""',
        "",
        "    path: str",
        "    name: str",
        "    kind: str",
        "    default: Any",
        "    low: float | None",
        "    high: float | None",
        "    unit: str",
        "",
        "",
        "TABLE = (",
        *map(_entry, PARAMETERS),
        ")",
    ]
    return "\n".join(lines) + "\n"


def generated() -> dict[str, str]:
    """File of the plugin's folder -> text made from the table of parameters."""
    first = "# Made from ml_phaser's table of parameters: do not edit.\n"
    return {PHIL_FILE: first + master_phil(), TABLE_FILE: table()}


# ------------------------------------------------------------------------------------------------- installing


def _package_files(within: str) -> dict[str, bytes]:
    """Path below the suite's folder -> content, of the package as shipped and of what it must know of us."""
    found = {name: content for name, content in shipped("phenix").items() if name.startswith(f"{PACKAGE}/")}
    program = _this_executable()
    if program is not None:
        found[EXECUTABLE_FILE] = f"{program}\n".encode()
    return {f"{within}{name}": content for name, content in found.items()}


def _this_executable() -> Path | None:
    """The command ``ml_phaser`` of this installation."""
    here = shutil.which("ml_phaser", path=sysconfig.get_path("scripts")) or shutil.which("ml_phaser")
    return Path(here).absolute() if here else None


def _is_site_packages(folder: Path) -> bool:
    return all((folder / name).is_file() for name in ("iotbx/cli_parser.py", "libtbx/program_template.py"))


def plan(prefix: Path) -> Plugin:
    """What belongs into a Phenix or cctbx.

    Parameters
    ----------
    prefix : a Phenix installation or its folder ``modules``, an environment that holds a cctbx (as Phenix 2 is), or
        the site-packages of one

    Raises
    ------
    UserError : prefix is nothing of that kind
    """
    root = prefix.parent if prefix.name == "modules" else prefix
    if (root / "modules" / "cctbx_project" / "libtbx").is_dir():
        return _as_module(root, within="" if prefix.name == "modules" else "modules/")
    if _is_site_packages(prefix):
        return Plugin(_package_files(""), said=(f"Run it with the Python of {prefix}: python -m {PACKAGE} data.mtz",))
    inside = [p for p in sorted(prefix.glob("lib/python3*/site-packages")) if _is_site_packages(p)]
    if len(inside) == 1 and (prefix / "bin" / "python").exists():
        return _as_command(prefix, within=f"{inside[0].relative_to(prefix).as_posix()}/")
    raise UserError(
        "neither a Phenix installation nor the site-packages of a cctbx",
        f"prefix {prefix}",
        "the folder that holds phenix_env.sh, an environment with a cctbx in it, or the site-packages folder of one",
    )


def _as_module(root: Path, within: str) -> Plugin:
    configure = f"{root / 'build' / 'bin' / 'libtbx.configure'} {PACKAGE}"
    return Plugin(
        _package_files(within),
        said=(f"Let libtbx make the command, once: {configure}", "Then: phenix.ml_phaser data.mtz"),
    )


def _as_command(root: Path, within: str) -> Plugin:
    """The package in an environment's site-packages and the command beside its Python: libtbx makes none there."""
    script = f'#!/bin/sh\nexec {shlex.quote(str(root / "bin" / "python"))} -m {PACKAGE} "$@"\n'
    files = {**_package_files(within), f"bin/{COMMAND}": script.encode()}
    return Plugin(files, said=(f"Run it: {root / 'bin' / COMMAND} data.mtz",))
