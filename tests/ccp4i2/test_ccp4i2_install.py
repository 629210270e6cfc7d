"""The plugin in and out of a real ccp4i2, which is then as it was."""

import hashlib
import os
import shutil
from pathlib import Path

import pytest

from ml_phaser.suites.ccp4i2 import plan
from ml_phaser.suites.install import install, uninstall

pytestmark = pytest.mark.ccp4i2


def contents(folder: Path) -> dict[str, str]:
    """Every file and folder, with the hash of what a file holds."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in folder.rglob("*")
    }


@pytest.fixture(params=["django", "classic"])
def copy(request, tmp_path):
    """A fresh copy of the parts of ccp4i2 that the plugin touches."""
    if request.param == "django":
        original = request.getfixturevalue("package")
    elif "CCP4I2_CLASSIC" in os.environ:
        original = Path(os.environ["CCP4I2_CLASSIC"])
    else:
        pytest.skip("CCP4I2_CLASSIC names no sources of the classic ccp4i2")
    for name in ("core", "wrappers"):
        ignored = shutil.ignore_patterns("__pycache__", "test_data")
        shutil.copytree(original / name, tmp_path / "ccp4i2" / name, ignore=ignored, symlinks=True)
    return tmp_path / "ccp4i2"


def test_in_twice_and_out_again(copy):
    before = contents(copy)
    for _ in range(2):
        install("ccp4i2", plan(copy), copy)
    once = contents(copy)
    assert set(once) > set(before) and "wrappers/ml_phaser/script/ml_phaser.py" in once
    changed = {name for name in before if once[name] != before[name]}
    assert changed == ({"core/tasks.py"} if (copy / "core" / "tasks.py").exists() else set())
    uninstall("ccp4i2", copy)
    assert contents(copy) == before
