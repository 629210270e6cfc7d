"""What a user gets from ``pip install``: the wheel holds what it must, its command runs, the metadata are sound."""

import json
import os
import re
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

from ml_phaser import __version__
from ml_phaser.cli import COMMANDS
from ml_phaser.parameters import PARAMETERS

ROOT = Path(__file__).resolve().parents[2]
ENV = {k: v for k, v in os.environ.items() if k not in ("ML_PHASER_DEBUG", "PYTHONPATH")}
OPTIONAL = {"onnx", "onnxruntime", "onnxscript"}
DECLARED = {"numpy", "scipy", "gemmi", "reciprocalspaceship", "torch", "safetensors", "rich", "jinja2", "matplotlib"}
HEAVY = (*sorted(DECLARED), "pandas")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel built from the tracked and new files of this checkout, elsewhere: building litters."""
    pytest.importorskip("setuptools", minversion="77")
    copy = tmp_path_factory.mktemp("source")
    (copy / "docs").mkdir()
    for name in ("pyproject.toml", "docs/package.md", "LICENSE"):
        (copy / name).write_bytes((ROOT / name).read_bytes())
    for path in sorted([*(ROOT / "ml_phaser").rglob("*"), *(ROOT / "plugins").rglob("*")]):
        if path.is_file() and "__pycache__" not in path.parts:
            target = copy / path.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    build = "import setuptools.build_meta as b; print(b.build_wheel('out'))"
    done = subprocess.run([sys.executable, "-c", build], cwd=copy, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return next((copy / "out").glob("*.whl"))


@pytest.fixture(scope="module")
def site(wheel, tmp_path_factory):
    """The wheel's content as Python would see it installed."""
    place = tmp_path_factory.mktemp("site")
    zipfile.ZipFile(wheel).extractall(place)
    return place


def run(site, *words):
    """The console script of the wheel, in a folder that is not this repository."""
    text = next(site.glob("*.dist-info/entry_points.txt")).read_text()
    module, function = re.search(r"^ml_phaser\s*=\s*(\S+):(\S+)", text, re.MULTILINE).groups()
    script = f"import sys; sys.argv[0] = 'ml_phaser'; from {module} import {function}; sys.exit({function}())"
    return subprocess.run(
        [sys.executable, "-c", script, *words], cwd=site, env=ENV | {"PYTHONPATH": str(site)},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def run_python(site, program):
    """A program that imports the wheel's content."""
    return subprocess.run(
        [sys.executable, "-c", program], cwd=site, env=ENV | {"PYTHONPATH": str(site)}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip


def test_wheel_holds_code_weights_and_licence(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    here = {p.relative_to(ROOT).as_posix() for p in (ROOT / "ml_phaser").rglob("*.py")}
    assert here <= names
    plugins = {p for s in ("ccp4i2", "phenix") for p in (ROOT / "plugins" / s).rglob("*") if p.is_file()}
    plugins = {f"ml_phaser/{p.relative_to(ROOT).as_posix()}" for p in plugins if "__pycache__" not in p.parts}
    assert plugins and plugins <= names
    assert not any("__pycache__" in name for name in names)
    assert "ml_phaser/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    weights = {Path(name).stem for name in names if re.fullmatch(r"ml_phaser/weights/[^/]+\.safetensors", name)}
    cards = {Path(name).stem for name in names if re.fullmatch(r"ml_phaser/weights/[^/]+\.json", name)}
    graphs = {Path(name).stem for name in names if re.fullmatch(r"ml_phaser/weights/[^/]+\.onnx", name)}
    assert weights and weights == cards == graphs
    assert "ml_phaser/weights/confidence/calibration.json" in names
    templates = {p.relative_to(ROOT).as_posix() for p in (ROOT / "ml_phaser" / "report" / "templates").iterdir()}
    assert templates and templates <= names
    strangers = [n for n in names if not n.startswith("ml_phaser/") and ".dist-info/" not in n]
    assert not strangers, "tests, plugins or data in the top folder of everybody's site-packages"
    assert wheel.stat().st_size < 30_000_000


def test_bundled_weights_load_from_the_wheel(site):
    card = json.loads((site / "ml_phaser" / "weights" / "projector-small.json").read_text())
    program = "from ml_phaser.networks.store import *; print(FOLDER, read_card().sha256); load_projector();"
    program += "load_hand_judge()"
    done = run_python(site, program)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(site / "ml_phaser" / "weights"), card["sha256"]]


def test_command_of_the_wheel(site):
    assert run(site, "--version").stdout == f"ml_phaser {__version__}\n"
    done = run(site, "--help")
    assert done.returncode == 0 and "Usage:" in done.stdout and done.stderr == ""
    nothing = run(site)
    assert nothing.returncode == 1 and len(nothing.stderr.splitlines()) == 1


def test_plugins_are_found_in_the_wheel(site):
    program = "from ml_phaser.suites.install import source; print(source('ccp4i2'), source('phenix'))"
    done = run_python(site, program)
    assert done.stdout.split() == [str(site / "ml_phaser" / "plugins" / s) for s in ("ccp4i2", "phenix")], done.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_sub_command_help(site, name):
    done = run(site, name, "--help")
    assert done.returncode == 0 and done.stderr == "" and f"ml_phaser {name}" in done.stdout
    wrong = run(site, name, "--nonsense")
    assert wrong.returncode == 1 and len(wrong.stderr.splitlines()) == 1, wrong.stderr
    assert "nonsense" in wrong.stderr and "Traceback" not in wrong.stderr


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_help_loads_no_heavy_library(name):
    program = f"import sys; from ml_phaser.cli import main; main({[name, '--help'] if name else ['--help']});"
    program += f"print(sorted(set({HEAVY}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.splitlines()[-1] == "[]"


def test_metadata(wheel):
    text = zipfile.ZipFile(wheel).read(f"ml_phaser-{__version__}.dist-info/METADATA").decode()
    assert "Name: ml-phaser" in text and "License-Expression: BSD-3-Clause" in text
    assert "Requires-Python: >=3.10" in text
    needs = {
        re.split(r"[ ;<>=\[]", n)[0]
        for n in re.findall(r"^Requires-Dist: (.*)", text, re.MULTILINE)
        if "extra" not in n
    }
    assert needs == DECLARED
    assert "Provides-Extra: onnx" in text and 'onnxruntime>=1.18; extra == "onnx"' in text


def test_what_is_needed_without_torch_is_everything_else():
    """The list for pip of an installation without torch, which pip cannot be told otherwise."""
    project = (ROOT / "pyproject.toml").read_text()
    needed = set(re.findall(r'"([a-z0-9]+>=[\d.]+)"', project.split("\ndependencies = [")[1].split("]")[0]))
    runs = set(re.findall(r'"(onnxruntime>=[\d.]+)"', project))
    lines = (ROOT / "requirements-onnx.txt").read_text().splitlines()
    assert {line for line in lines if line and not line.startswith("#")} == {
        n for n in needed if "torch" not in n
    } | runs


def test_every_import_is_a_dependency():
    """A library that only the developers have is found by users."""
    declared = DECLARED | OPTIONAL | {"ml_phaser"}
    found = {}
    for path in (ROOT / "ml_phaser").rglob("*.py"):
        for module in re.findall(r"^\s*(?:from (?=\S+ import)|import )([A-Za-z_]\w*)", path.read_text(), re.MULTILINE):
            found.setdefault(module, path.name)
    strange = {m: f for m, f in found.items() if m not in declared and m not in sys.stdlib_module_names}
    assert not strange


# ------------------------------------------------------------------------------------------- words about it


def test_versions_agree():
    assert f"\nversion: {__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## [{__version__}]" in (ROOT / "CHANGELOG.md").read_text()
    assert metadata.version("ml-phaser") == __version__


def test_citation_is_well_formed():
    yaml = pytest.importorskip("yaml")
    facts = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert facts["cff-version"] == "1.2.0" and facts["message"] and facts["title"]
    assert all(a.get("name") or a.get("family-names") for a in facts["authors"])
    for reference in facts["references"]:
        assert {"type", "title", "authors"} <= set(reference) and re.match(r"10\.\d{4,}/\S+$", reference["doi"])


def readme_table(heading):
    """Rows of the first table after a heading of the README, as lists of cells."""
    text = (ROOT / "README.md").read_text().split(f"\n{heading}\n", 1)[1]
    rows = re.search(r"(?:^\|.*\n)+", text, re.MULTILINE)[0].splitlines()
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[2:]]


def test_options_in_the_readme_are_those_of_the_program():
    rows = {row[0].strip("`"): row[1:] for row in readme_table("## Options")}
    assert list(rows) == [p.name for p in PARAMETERS]
    for p in PARAMETERS:
        meaning, default = rows[p.name]
        assert meaning.lower().startswith(re.split(r"[\[:;(]", p.help)[0].strip().lower()), p.name
        for choice in p.choices:
            assert f"`{choice}`" in meaning, (p.name, choice)
        if p.default is not None and p.kind != "flag":
            assert default.split()[0] == f"`{p.default:g}`" if isinstance(p.default, float) else f"`{p.default}`"


def test_commands_and_links_of_the_readme_exist():
    text = (ROOT / "README.md").read_text()
    for name in COMMANDS:
        assert f"ml_phaser {name}" in text
    assert all(
        f"\n {words}" in text
        for words in ("Verdict: SOLVED (probability", "Files written", "ml_phaser:  Normal termination")
    )
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {"demo", "test"} <= set(targets) and "make demo" in text and "make test" in text
    documents = [ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")]
    for document in documents:
        for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", document.read_text()):
            assert (document.parent / link).exists(), f"{document.name}: {link}"


def test_ci_runs_the_command_of_the_readme():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    lines = script.read_text().splitlines()
    assert lines[0].startswith("#!") and "set -euo pipefail" in lines and lines[-1] == "make test"
