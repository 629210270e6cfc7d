"""Phases put in at the command line: what they lead to, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import gemmi
import numpy as np
import pytest

from ml_phaser.crystal.agreement import correlation, move, multiplicity, permissible_origins
from ml_phaser.crystal.normalise import normalise
from ml_phaser.crystal.reflections import Amplitudes
from ml_phaser.evaluation.reference import model_reference
from ml_phaser.exchange.read import read_amplitudes

SET = "5awl"  # chignolin's variant, P 21 21 2, 1.11 A: not solved from random phases in minutes


@pytest.fixture(scope="module")
def measured(shared_data: Path) -> tuple[Path, Amplitudes, np.ndarray]:
    """File of measured data, the data, and the structure factors of the model."""
    folder = shared_data / "diffraction" / SET
    path = next(p for p in (folder / f"{SET}.mtz", *folder.glob("*.mtz")) if p.exists())
    data = read_amplitudes(path)
    model = next(folder.glob("*.pdb"))
    return path, data, model_reference(model, data.hkl, data.cell, data.spacegroup, f_obs=data.f).f


def with_errors(data: Amplitudes, truth: np.ndarray, kappa: float) -> tuple[np.ndarray, np.ndarray]:
    """Phases in radians with von Mises errors, centric ones flipped as often; their figures of merit."""
    from scipy.special import i0e, i1e

    rng = np.random.default_rng(0)
    x = kappa * np.maximum(normalise(data).e ** 2, 1e-6)
    flipped = np.pi * (rng.random(len(x)) > (1 + np.tanh(x / 2)) / 2)
    error = np.where(data.centric, flipped, rng.vonmises(0, x))
    return np.angle(truth) + error, np.where(data.centric, np.tanh(x / 2), i1e(x) / i0e(x))


def write(path: Path, data: Amplitudes, phase: np.ndarray, fom: np.ndarray) -> Path:
    mtz = gemmi.Mtz(with_base=True)
    mtz.spacegroup = data.spacegroup
    mtz.add_dataset("user")
    mtz.set_cell_for_all(data.cell)
    mtz.add_column("PHIB", "P")
    mtz.add_column("FOM", "W")
    mtz.set_data(np.column_stack([data.hkl, np.rad2deg(phase), fom]).astype(np.float32))
    mtz.write_to_file(str(path))
    return path


def run(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ml_phaser", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=300)


def cc_with(path: Path, data: Amplitudes, truth: np.ndarray) -> float:
    """Correlation of the maps of measured amplitudes, with PHWT of the file and with the true phases, as they stand."""
    mtz = gemmi.read_mtz_file(str(path))
    mtz.ensure_asu()
    found = dict(zip(map(tuple, mtz.make_miller_array().tolist()), mtz.column_with_label("PHWT").array, strict=True))
    phase = np.deg2rad(np.array([found[tuple(h)] for h in data.hkl.tolist()]))
    ok = np.isfinite(phase)
    weight = multiplicity(data.hkl, data.spacegroup)[ok]
    ours, true = (data.f[ok] * np.exp(1j * x[ok]) for x in (phase, np.angle(truth)))
    return correlation(weight, ours, true)


@pytest.mark.shared
def test_phases_of_a_measured_crystal_get_better_where_they_stand(measured, tmp_path: Path) -> None:
    """At an origin that is not the model's: the result keeps it."""
    path, data, truth = measured
    shift = permissible_origins(data.spacegroup).shifts[-1]
    assert np.any(shift != 0)
    elsewhere = move(data.hkl, truth, shift)
    phase, fom = with_errors(data, elsewhere, 0.8)
    given = write(tmp_path / "given.mtz", data, phase, fom)
    start = correlation(
        multiplicity(data.hkl, data.spacegroup), data.f * np.exp(1j * phase), data.f * np.exp(1j * np.angle(elsewhere))
    )
    ended = run("hklin", path, "phasein", given, "mapout", tmp_path / "o.map", "engine", "classical", "trials", 1)
    assert ended.returncode == 0, ended.stderr
    assert "Origin and hand: those of the phases given" in ended.stdout
    assert "All starts come from the phases given" in ended.stdout
    assert 0.4 < start < 0.8
    assert cc_with(tmp_path / "o.mtz", data, elsewhere) > start + 0.05
    record = json.loads((tmp_path / "o.json").read_text())
    facts = record["given_phases"]
    assert facts["n"] == len(data) and 0 < facts["moved"] < 60 and facts["hand_margin"] > 0
    assert record["options"]["phasein"] == str(given)
    assert all(t["symmetry"] is None for t in record["trials"])  # given phases obey the group: no evidence


@pytest.mark.shared
def test_phases_without_weight_or_of_nothing_are_refused(measured, tmp_path: Path) -> None:
    path, data, truth = measured
    none = write(tmp_path / "none.mtz", data, np.angle(truth), 0 * data.f)
    ended = run("hklin", path, "phasein", none, "mapout", tmp_path / "o.map")
    assert ended.returncode == 1 and "hold no phase with any weight" in ended.stderr
    assert not (tmp_path / "o.map").exists()
    good = write(tmp_path / "good.mtz", data, np.angle(truth), 0 * data.f + 0.5)
    ended = run("hklin", path, "phasein", good, "labphase", "PHI,FOM", "mapout", tmp_path / "o.map")
    assert ended.returncode == 1 and "no column PHI; there are PHIB, FOM" in ended.stderr
    ended = run("hklin", path, "phasein", good, "mapout", tmp_path / "o.map", "hklout", good, "overwrite")
    assert ended.returncode == 1 and "would overwrite the input" in ended.stderr
    ended = run("hklin", path, "phasein", tmp_path / "god.mtz", "mapout", tmp_path / "o.map")
    assert ended.returncode == 1 and f"phasein {good}" in ended.stderr
    ended = run("hklin", path, "labphase", "PHI,FOM", "mapout", tmp_path / "o.map")
    assert ended.returncode == 1 and "phasein" in ended.stderr
