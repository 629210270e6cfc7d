"""A copy of the installed ccp4i2 with the plugin put in by our own installer, its projects and its database.

Runs in an environment of its own (make test-ccp4i2), which need not hold ml_phaser: the program is found on PATH.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from i2_fields import EXAMPLE

from ml_phaser.suites.ccp4i2 import plan
from ml_phaser.suites.install import install

SETTINGS = """\
from pathlib import Path
from ccp4i2.config.test_settings import *
CCP4I2_PROJECTS_DIR = Path("{folder}/projects")
CCP4I2_PROJECTS_DIR.mkdir(exist_ok=True)
"""
RUN = """\
import sys
import django
from django.core.management import call_command
django.setup()
sys.argv = ["manage.py", "i2run", *sys.argv[1:]]
call_command("i2run")
"""


def _package() -> Path | None:
    """Where the Django release is installed, None where it is not."""
    with suppress(ImportError):  # the folder of these tests has the same name
        spec = importlib.util.find_spec("ccp4i2.core.tasks")
        if spec is not None and spec.origin:
            return Path(spec.origin).parents[1]
    return None


@dataclass(frozen=True)
class Job:
    """One job that i2run made: its folder, its row in the database, and what i2run said."""

    folder: Path
    row: object
    said: str

    def files(self) -> dict[str, object]:
        """Parameter -> registered output file."""
        from ccp4i2.db.models import File

        return {f.job_param_name: f for f in File.objects.filter(job=self.row)}

    def figures(self) -> dict[str, object]:
        """Key -> performance indicator."""
        from ccp4i2.db.models import JobCharValue, JobFloatValue

        found = (*JobFloatValue.objects.filter(job=self.row), *JobCharValue.objects.filter(job=self.row))
        return {value.key.name: value.value for value in found}

    def report(self) -> ET.Element:
        """The report as the Django release makes it."""
        from ccp4i2.lib.utils.reporting.i2_report import generate_job_report

        return generate_job_report(self.row)


@dataclass(frozen=True)
class Suite:
    """An installation of ccp4i2 with the plugin."""

    folder: Path

    def begin(self, project: str, *words: str, path: str | None = None) -> subprocess.Popen[bytes]:
        """Begin one job of ml_phaser, through i2run in a process of its own; ``path`` is what PATH is set to."""
        environment = dict(os.environ, PYTHONPATH=str(self.folder)) | ({"PATH": path} if path is not None else {})
        command = [sys.executable, "-c", RUN, "ml_phaser", "--project_name", project, *map(str, words)]
        with (self.folder / f"{project}.txt").open("w") as said:
            return subprocess.Popen(command, env=environment, cwd=self.folder, stdout=said, stderr=subprocess.STDOUT)

    def job(self, project: str) -> Job | None:
        """The one job of a project as it stands now, None where there is none yet."""
        from ccp4i2.db.models import Job as Row

        row = Row.objects.filter(project__name=project).first()
        said = (self.folder / f"{project}.txt").read_text()
        return None if row is None else Job(Path(row.directory), row, said)

    def run(self, project: str, *words: str, path: str | None = None) -> Job:
        """One job of ml_phaser, from its beginning to its end."""
        self.begin(project, *words, path=path).wait(timeout=600)
        job = self.job(project)
        assert job is not None, (self.folder / f"{project}.txt").read_text()[-3000:]
        return job


@pytest.fixture(scope="session")
def package():
    """The installed package of the Django release."""
    found = _package()
    if found is None:
        pytest.skip("ccp4i2 is not in this environment: make test-ccp4i2")
    return found


@pytest.fixture(scope="session")
def suite(package, tmp_path_factory):
    """ccp4i2 with the plugin, its classes importable, its database made."""
    if shutil.which("ml_phaser") is None:
        pytest.skip("the executable ml_phaser is not on PATH")
    folder = tmp_path_factory.mktemp("suite")
    for name in [n for n in sys.modules if n.split(".")[0] == "ccp4i2"]:
        del sys.modules[name]
    shutil.copytree(package, folder / "ccp4i2", ignore=shutil.ignore_patterns("__pycache__"))
    install("ccp4i2", plan(folder / "ccp4i2"), folder / "ccp4i2")
    (folder / "i2_settings.py").write_text(SETTINGS.format(folder=folder))
    os.environ.update(
        DJANGO_SETTINGS_MODULE="i2_settings", CCP4I2_DB_FILE=str(folder / "db.sqlite"), HOME=str(folder),
        DJANGO_ALLOW_ASYNC_UNSAFE="1",
    )  # fmt: skip
    sys.path.insert(0, str(folder))
    import django
    from django.core.management import call_command

    django.setup()
    call_command("migrate", verbosity=0)
    import ccp4i2

    assert Path(ccp4i2.__path__[0]).parent == folder
    return Suite(folder)


@pytest.fixture(scope="session")
def measured():
    """Words for a measured data set that is solved in seconds; the simulated example where none is here."""
    shared = Path(__file__).resolve().parents[3] / "shared" / "data" / "diffraction" / "alamet" / "alamet.mtz"
    if shared.exists():
        return ["--F_SIGF", f"fullPath={shared}", "columnLabels=/*/*/[FOBS,SIGFOBS]", "--RESOLUTION_HIGH", "0.8"]
    return ["--F_SIGF", f"fullPath={EXAMPLE}", "columnLabels=/*/*/[I,SIGI]"]


@pytest.fixture(scope="session")
def solved(suite, measured):
    """A finished job on measured data, with every output there is."""
    return suite.run("solved", *measured, "--PATTOUT", "True", "--SEED", "1")
