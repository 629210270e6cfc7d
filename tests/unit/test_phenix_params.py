"""The Phenix plugin without a run: its parameters beside the table they are made from, and where it is installed."""

import ast
import importlib.util
import math
import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

pytest.importorskip("iotbx.cli_parser", reason="cctbx is not here")
import iotbx.phil
import libtbx.env_config
import libtbx.phil.interface
from cctbx import sgtbx
from libtbx import Auto
from libtbx.program_template import ProgramTemplate
from libtbx.utils import Sorry

ROOT = Path(__file__).resolve().parents[2]
PLUGIN = ROOT / "plugins" / "phenix"
if str(PLUGIN) not in sys.path:
    sys.path.insert(0, str(PLUGIN))

from ml_phaser_phenix import child, command, table  # noqa: E402

from ml_phaser import __version__  # noqa: E402
from ml_phaser.cli import main  # noqa: E402
from ml_phaser.cli.arguments import convert, find_parameter, parse_command_line  # noqa: E402
from ml_phaser.errors import UserError  # noqa: E402
from ml_phaser.exchange.read import read_amplitudes  # noqa: E402
from ml_phaser.exchange.spacegroup import find_spacegroup  # noqa: E402
from ml_phaser.parameters import GROUPS, PARAMETERS  # noqa: E402
from ml_phaser.suites.phenix import generated, path_of, plan  # noqa: E402

PACKAGE = PLUGIN / "ml_phaser_phenix"
MASTER = iotbx.phil.parse((PACKAGE / "ml_phaser.phil").read_text())
MASTER.adopt_scope(iotbx.phil.parse(ProgramTemplate.output_phil_str))
DEFINITIONS = {d.path: d.object for d in MASTER.all_definitions()}
OURS = {path: d for path, d in DEFINITIONS.items() if path.startswith("ml_phaser.")}
RANGED = [p for p in PARAMETERS if p.low is not None]


def params(text=""):
    return MASTER.fetch(iotbx.phil.parse(text)).extract()


# ------------------------------------------------------------------------------------------- beside the table


def test_committed_files_are_those_made_from_the_table():
    for name, text in generated().items():
        assert (PLUGIN / name).read_text(encoding="utf-8") == text, "run python plugins/generate.py"


def test_every_parameter_is_there_and_nothing_else():
    assert {path_of(p) for p in PARAMETERS} <= set(DEFINITIONS)
    assert set(OURS) - {path_of(p) for p in PARAMETERS} == {"ml_phaser.run.executable"}
    assert [entry.name for entry in table.TABLE] == [p.name for p in PARAMETERS]
    assert __version__ == table.VERSION


@pytest.mark.parametrize("parameter", PARAMETERS, ids=lambda p: p.name)
def test_definition_is_that_of_the_table(parameter):
    path = path_of(parameter)
    definition, entry = DEFINITIONS[path], next(e for e in table.TABLE if e.name == parameter.name)
    same = (parameter.kind, parameter.default, parameter.low, parameter.high, parameter.unit)
    assert (entry.path, *entry[2:]) == (path, *same)
    value = command.value_of(params(), path)
    assert value == parameter.default
    if path not in OURS:  # Phenix's own
        return
    assert definition.short_caption == parameter.caption and definition.expert_level == int(parameter.expert)
    assert definition.help.startswith(parameter.help.partition(" [")[0])
    if parameter.low is not None:
        assert f"{parameter.low:.10g} to {parameter.high:.10g}" in definition.help
    if parameter.choices:
        assert [w.value.lstrip("*") for w in definition.words] == list(parameter.choices)
    assert path.split(".")[1] == parameter.group


@pytest.mark.parametrize("path", OURS)
def test_every_leaf_explains_itself(path):
    leaf = OURS[path]
    assert leaf.help and leaf.short_caption and leaf.type.phil_type


def test_graphical_interface_indexes_it():
    """The index of the Phenix GUI, which reads the styles."""
    index = libtbx.phil.interface.index(master_phil=MASTER, parse=iotbx.phil.parse)
    for group, caption in GROUPS.items():
        assert MASTER.get(f"ml_phaser.{group}").objects[0].short_caption == caption
        assert index.get_scope_style(f"ml_phaser.{group}").box
    for parameter in PARAMETERS:
        if parameter.kind in ("input", "output") and path_of(parameter) in OURS:
            style = index.get_scope_style(path_of(parameter))
            assert style.new_file == (parameter.kind == "output"), parameter.name
    assert index.get_scope_style("ml_phaser.data.hklin").file_type == "hkl"
    assert index.get_scope_style("ml_phaser.run.quiet").hidden
    assert index.get_scope_style("ml_phaser.next.seqin").seq_file
    for path in ("starts.xyzin", "output.xyzout"):
        assert index.get_scope_style(f"ml_phaser.{path}").file_type == "pdb"
    assert index.get_input_files() == [] or all(not name for name, *_ in index.get_input_files())


# ------------------------------------------------------------------------------------- to the command line and back

# PHIL's text -> value as ml_phaser's own parser understands what it is told
OTHER_VALUES = {
    "labin": ("FP=F SIGFP=SIGF", "FP=F SIGFP=SIGF"),
    "resolution": ("20 1.2", (20.0, 1.2)),
    "labphase": ("PHI,FOM", "PHI,FOM"),
    "spacegroup": ("P212121", "P 21 21 21"),
    "cell": ("10 11 12 90 95.5 90", (10.0, 11.0, 12.0, 90.0, 95.5, 90.0)),
}


def other_value(parameter):
    """A value that is not the default, as PHIL text, and as ``Options`` should have it."""
    if parameter.name in OTHER_VALUES:
        return OTHER_VALUES[parameter.name]
    if parameter.kind in ("input", "output"):
        return f"some/{parameter.name}.file", Path.cwd() / f"some/{parameter.name}.file"
    if parameter.kind == "choice":
        other = next(c for c in parameter.choices if c != parameter.default)
        return other, other
    if parameter.kind == "flag":
        return str(not parameter.default), not parameter.default
    number = min((parameter.default or parameter.low) + 2, parameter.high)
    number = {"int": int, "float": float}[parameter.kind](number)
    return str(number), number


def given_to_program(text="", **chosen):
    """Name -> value, as the command line's own parser takes what the plugin would run."""
    words = command.words(params(text), chosen)
    return {name: convert(find_parameter(name), value) for name, value in parse_command_line(words).items()}


@pytest.mark.parametrize("parameter", PARAMETERS, ids=lambda p: p.name)
def test_parameter_reaches_the_program(parameter):
    text, value = other_value(parameter)
    assert given_to_program(f"{path_of(parameter)} = {text}") == {parameter.name: value}


def test_all_at_once_reach_the_program():
    text = "\n".join(f"{path_of(p)} = {other_value(p)[0]}" for p in PARAMETERS)
    assert given_to_program(text) == {p.name: other_value(p)[1] for p in PARAMETERS}


def test_nothing_and_auto_are_left_to_the_program():
    assert command.words(params(), {}) == []
    text = "\n".join(f"{path} = Auto" for path, d in OURS.items() if d.type.phil_type in ("int", "float"))
    assert text and command.words(params(text), {}) == []
    assert command.value_of(params("ml_phaser.search.trials=Auto"), "ml_phaser.search") is not Auto


def test_what_the_user_gave_comes_before_what_was_chosen():
    assert given_to_program(labin="I,SIGI") == {"labin": "I,SIGI"}
    assert given_to_program("ml_phaser.data.labin = F", labin="I,SIGI") == {"labin": "F"}


def test_executable_parameter(tmp_path, monkeypatch):
    there = tmp_path / "a program"
    there.write_text("#!/bin/sh\n")
    there.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv(command.ENVIRONMENT, raising=False)
    monkeypatch.setattr(command, "INSTALLED", tmp_path / "executable.txt")
    with pytest.raises(Sorry, match=r"not on PATH.*run\.executable="):
        command.executable()
    (tmp_path / "ml_phaser").symlink_to(there)
    assert command.executable() == str(tmp_path / "ml_phaser")
    (tmp_path / "executable.txt").write_text(f"{there}\n")
    assert command.executable() == str(there)
    monkeypatch.setenv(command.ENVIRONMENT, str(tmp_path / "ml_phaser"))
    assert command.executable() == str(tmp_path / "ml_phaser")
    named = params(f'ml_phaser.run.executable = "{there}"').ml_phaser.run.executable
    assert command.executable(named) == str(there)
    with pytest.raises(Sorry, match=r"run\.executable: no_such is no program"):
        command.executable("no_such")


# ------------------------------------------------------------------------------------------------------ ranges


def check(parameter, value):
    command.check_ranges(params(f"{path_of(parameter)} = {value}"))


@pytest.mark.parametrize("parameter", RANGED, ids=lambda p: p.name)
def test_ends_of_a_range_are_allowed(parameter):
    for value in (parameter.low, parameter.high):
        check(parameter, f"{value:.10g}")


@pytest.mark.parametrize("parameter", RANGED, ids=lambda p: p.name)
def test_beyond_a_range_is_refused_in_one_line(parameter):
    step = 1 if parameter.kind == "int" else 1e-6
    beyond = [f"{parameter.low - step:.10g}", f"{parameter.high + max(step, 1e-6 * parameter.high):.10g}"]
    for value in beyond if parameter.kind == "int" else [*beyond, "nan", "inf"]:
        with pytest.raises(Sorry) as said:
            check(parameter, value)
        assert path_of(parameter) in str(said.value) and "\n" not in str(said.value)


@pytest.mark.parametrize("text", ["20 10 5", "2 2"])
def test_resolution_is_one_or_two_numbers(text):
    with pytest.raises(Sorry, match=r"ml_phaser\.data\.resolution: two different numbers"):
        command.check_ranges(params(f"ml_phaser.data.resolution = {text}"))


# ------------------------------------------------------------------------------------------- cctbx's words and ours


def test_every_space_group_of_cctbx_is_understood():
    for symbol in sgtbx.space_group_symbol_iterator():
        group = sgtbx.space_group(symbol)
        text = params(f'ml_phaser.data.spacegroup = "{symbol.universal_hermann_mauguin()}"').ml_phaser.data.spacegroup
        ours = find_spacegroup(str(text))
        assert ours is not None and sgtbx.space_group(ours.hall) == group, str(text)


@pytest.mark.parametrize(
    ("label", "labin"),
    [
        ("I,SIGI", "I,SIGI"),
        ("F", "F"),
        ("I(+),SIGI(+),I(-),SIGI(-),merged", "I(+),SIGI(+),I(-),SIGI(-)"),
        ("Iplus,SIGIplus,Iminus,SIGIminus", "Iplus,SIGIplus,Iminus,SIGIminus"),
        ("F,SIGF,DANO,SIGDANO,merged", "F,SIGF"),
        ("r2okzsf,_refln.F_meas_au,_refln.F_meas_sigma_au", "r2okzsf/F_meas_au,r2okzsf/F_meas_sigma_au"),
        ("p-1,_refln_F_squared_meas,_refln_F_squared_sigma", "p-1/F_squared_meas,p-1/F_squared_sigma"),
    ],
)
def test_labels_of_cctbx(label, labin):
    assert command.labin_of(label) == labin


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("2okz/2OKZ.cif", 2), ("6n87/6n87.mtz", 4), ("strep_sad/strep.mtz", 2), ("ntd106c_p-1/P-1.fcf", 1),
        ("cod2100301/2100301.hkl", 1), ("1dtx/toxd.mtz", 4), ("gamma_native/merged_intensities_native.mtz", 1),
    ],
)  # fmt: skip
def test_labels_of_measured_files_choose_the_same_columns(shared_data, name, kept):
    """What cctbx lists as measured in a file, ml_phaser reads under the name we make of it."""
    from iotbx.data_manager import DataManager

    path = str(shared_data / "diffraction" / name)
    manager = DataManager(["miller_array"])
    manager.process_miller_array_file(path)
    read = 0
    for label, kind in manager.get_miller_array_array_types(filename=path).items():
        measured = kind in ("amplitude", "intensity") or "_meas" in label
        if not measured or "calc" in label or label.startswith(("DP", "DANO", "ANA", "FC")):
            continue
        manager.set_miller_array_user_selected_labels(path, [label])
        data = read_amplitudes(Path(path), labin=command.chosen_labels(manager, path))
        assert kind == "unknown" or data.source.kind.endswith(kind)
        assert all(column in label for column in data.source.columns)
        read += 1
    assert read == kept


class Manager:
    """As much of a data manager as the choice of labels needs."""

    kinds = {"I,SIGI": "intensity", "F,SIGF": "amplitude", "FreeR_flag": "integer"}  # noqa: RUF012

    def __init__(self, *selected):
        self.selected = list(selected)

    def get_miller_array_names(self):
        return ["a.mtz"]

    def get_miller_array_array_types(self, filename):
        return self.kinds

    def get_miller_array_user_selected_labels(self, filename):
        return self.selected


def test_labels_the_user_selected():
    assert command.chosen_labels(Manager(), "a.mtz") is None
    assert command.chosen_labels(Manager("F,SIGF", "FreeR_flag"), "a.mtz") == "F,SIGF"
    assert command.chosen_labels(Manager("sigi"), "a.mtz") == "I,SIGI"
    assert command.chosen_labels(Manager("F,SIGF"), "another.mtz") is None
    with pytest.raises(Sorry, match=r"several measurements: I,SIGI; F,SIGF"):
        command.chosen_labels(Manager("I,SIGI", "F,SIGF"), "a.mtz")
    with pytest.raises(Sorry, match="no amplitudes or intensities: FreeR"):
        command.chosen_labels(Manager("FreeR"), "a.mtz")


@pytest.mark.parametrize(
    ("name", "stem"), [("a/b_1.2A.mtz", "b_1.2A"), ("b.mtz.gz", "b"), ("plain", "plain"), ("x.hkl", "x")]
)
def test_outputs_are_named_after_the_data(name, stem):
    assert command.stem_of(name) == stem


# ----------------------------------------------------------------------------------------- as Python and as a module


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_runs_in_the_suites_python(path):
    """Python 3.9's grammar, and nothing imported that Phenix has not."""
    tree = ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 9))
    imported = {alias.name for n in ast.walk(tree) if isinstance(n, ast.Import) for alias in n.names}
    imported |= {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module and not n.level}
    tops = {name.partition(".")[0] for name in imported} - set(sys.stdlib_module_names)
    assert tops <= {"iotbx", "libtbx", "phenix", "ml_phaser_phenix"}
    assert not any(isinstance(n, ast.Match) for n in ast.walk(tree))
    if any(isinstance(n, ast.arg) and n.annotation for n in ast.walk(tree)):  # X | None must not be evaluated
        assert "from __future__ import annotations" in path.read_text(encoding="utf-8")


def test_libtbx_makes_the_command_and_no_other():
    """libtbx's own code for the dispatchers of a module."""
    made = {}
    env = SimpleNamespace(
        as_relocatable_path=lambda folder: folder,
        _write_dispatcher_in_bin=lambda source_file, target_file: made.update({target_file: Path(abs(source_file))}),
    )
    module = libtbx.env_config.module.__new__(libtbx.env_config.module)
    module.env, module.name = env, "ml_phaser_phenix"
    folder = libtbx.path.absolute_path(str(PACKAGE / "command_line"))
    for path in (PACKAGE / "command_line").iterdir():
        if path.is_file():
            module.write_dispatcher(folder, path.name, False, scan_for_libtbx_set_dispatcher_name=True)
    assert made == {"phenix.ml_phaser": PACKAGE / "command_line" / "ml_phaser.py"}


def test_module_configuration_is_read_as_libtbx_does():
    lines = (PACKAGE / "libtbx_config").read_text().splitlines(keepends=True)
    assert eval(" ".join(lines), {}, {}) == {"modules_required_for_use": ["iotbx", "libtbx"]}


def test_environment_of_the_child(tmp_path):
    """What Phenix's dispatchers put there is for its Python alone."""
    theirs, users = tmp_path / "phenix", tmp_path / "mine"
    given = {
        "LIBTBX_BUILD": str(theirs / "build"),
        "PYTHONPATH": os.pathsep.join([str(theirs / "modules"), str(users)]),
        "LD_LIBRARY_PATH": os.pathsep.join([str(theirs / "build" / "lib"), f"{sys.prefix}/lib"]),
        "PYTHONHOME": str(theirs),
        "HOME": "kept",
    }
    found = child.environment(given)
    assert found["PYTHONPATH"] == str(users) and found["HOME"] == "kept"
    assert "LD_LIBRARY_PATH" not in found and "PYTHONHOME" not in found
    assert given["PYTHONHOME"] == str(theirs)


def test_phenix_own_template_comes_first(monkeypatch):
    """phenix.program_template where there is one: a stand-in for it, derived from cctbx's."""
    import ml_phaser_phenix.programs.ml_phaser as program

    theirs = type("ProgramTemplate", (ProgramTemplate,), {})
    assert program.Program.__mro__[1] is ProgramTemplate
    monkeypatch.setitem(sys.modules, "phenix", ModuleType("phenix"))
    monkeypatch.setitem(sys.modules, "phenix.program_template", SimpleNamespace(ProgramTemplate=theirs))
    spec = importlib.util.spec_from_file_location("again", program.__file__)
    again = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(again)
    assert again.Program.__mro__[1] is theirs


def test_example_of_the_page_is_understood():
    page = (ROOT / "docs" / "phenix.md").read_text(encoding="utf-8")
    example = next(block for block in page.split("```") if block.lstrip().startswith("ml_phaser {"))
    found, unused = MASTER.fetch(sources=[iotbx.phil.parse(example)], track_unused_definitions=True)
    assert not unused
    words = command.words(found.extract(), {})
    assert words[words.index("labin") + 1] == "I,SIGI" and words[-2:] == ["overwrite", "yes"]


# -------------------------------------------------------------------------------------------------- where it goes


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("")


@pytest.fixture
def phenix(tmp_path):
    """A Phenix of the kind with modules and build folders; only the folders."""
    touch(tmp_path / "phenix/modules/cctbx_project/libtbx/env_config.py")
    touch(tmp_path / "phenix/phenix_env.sh")
    return tmp_path / "phenix"


@pytest.fixture
def environment(tmp_path):
    """An environment with a cctbx, as conda or pip make it; only the folders."""
    for name in ("iotbx/cli_parser.py", "libtbx/program_template.py"):
        touch(tmp_path / "env/lib/python3.9/site-packages" / name)
    touch(tmp_path / "env/bin/python")
    return tmp_path / "env"


def package_below(files, within):
    return {name.removeprefix(within) for name in files if name.startswith(f"{within}ml_phaser_phenix/")}


SHIPPED = {f.relative_to(PLUGIN).as_posix() for f in PACKAGE.rglob("*") if f.is_file() and "__pycache__" not in f.parts}


def test_into_a_phenix(phenix):
    for prefix, within in ((phenix, "modules/"), (phenix / "modules", "")):
        planned = plan(prefix)
        assert package_below(planned.files, within) >= SHIPPED and len(planned.files) <= len(SHIPPED) + 1
        assert f"{phenix}/build/bin/libtbx.configure ml_phaser_phenix" in planned.said[0]


def test_into_an_environment(environment):
    within = "lib/python3.9/site-packages/"
    planned = plan(environment)
    assert package_below(planned.files, within) >= SHIPPED
    script = planned.files["bin/phenix.ml_phaser"].decode()
    assert script == f'#!/bin/sh\nexec {environment}/bin/python -m ml_phaser_phenix "$@"\n'
    alone = plan(environment / within)
    assert package_below(alone.files, "") >= SHIPPED and "bin/phenix.ml_phaser" not in alone.files
    assert "python -m ml_phaser_phenix" in alone.said[0]


def test_nowhere_else(tmp_path):
    with pytest.raises(UserError, match="neither a Phenix installation nor the site-packages of a cctbx"):
        plan(tmp_path)


def test_installed_and_taken_out_again(environment, monkeypatch, capsys):
    monkeypatch.setattr("ml_phaser.suites.phenix._this_executable", lambda: Path("/some/bin/ml_phaser"))
    before = sorted(environment.rglob("*"))
    assert main(["install", "phenix", "prefix", str(environment)]) == 0
    package = environment / "lib/python3.9/site-packages/ml_phaser_phenix"
    assert (package / "executable.txt").read_text() == "/some/bin/ml_phaser\n"
    assert os.access(environment / "bin/phenix.ml_phaser", os.X_OK)
    assert str(environment / "bin/phenix.ml_phaser") in capsys.readouterr().out
    assert main(["uninstall", "phenix", "prefix", str(environment)]) == 0
    assert sorted(environment.rglob("*")) == before


def test_numbers_survive_the_way():
    """No digits are lost between PHIL and the program."""
    words = command.words(params("ml_phaser.search.timelimit = 1234.5678\nml_phaser.data.resolution = 1.23456"), {})
    assert [float(w) for w in words[1::2]] == [1.23456, 1234.5678] and not math.isnan(float(words[1]))
