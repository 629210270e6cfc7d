"""The weighing of a solution as the pipeline does it: what is written is what the table by shell says."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from resolved import Made
from sample_outcome import amplitudes, structure_factors

from ml_phaser.crystal.normalise import normalise
from ml_phaser.crystal.peaks import Atoms
from ml_phaser.crystal.phase_distributions import PhaseDistributions, concentration, hendrickson_lattman
from ml_phaser.crystal.reflections import Amplitudes, Source
from ml_phaser.crystal.symmetry import expand
from ml_phaser.networks.runtime import Runtime
from ml_phaser.phasing.calibration import read_calibration
from ml_phaser.phasing.confidence import shell_edges
from ml_phaser.phasing.finish import Solution
from ml_phaser.phasing.free_atoms import refine_atoms
from ml_phaser.pipeline import how_calibrated, weigh

DATA = amplitudes()
TRUE = structure_factors(DATA.hkl, DATA.spacegroup)
NORMALISED = normalise(DATA)
WEIGHTS = {"name": "projector-small", "sha256": read_calibration().weights}


def plan(given: np.ndarray | None = None, weights: dict[str, str] = WEIGHTS) -> Any:
    starts = None
    if given is not None:
        hl = hendrickson_lattman(np.angle(TRUE), given, DATA.centric)
        starts = PhaseDistributions(hl, expand(DATA.hkl, DATA.spacegroup).turn)
    held = np.arange(len(DATA)) % 8 == 0
    return SimpleNamespace(
        starts=starts,
        rows=np.arange(len(DATA)),
        whole=SimpleNamespace(held=held),
        weights=weights,
        predicted=None,
        runtime=Runtime(),
    )


def solution(error: float, trial: int = 0, seed: int = 0) -> Solution:
    rng = np.random.default_rng(seed)
    noise = (rng.normal(size=len(DATA)) + 1j * rng.normal(size=len(DATA))) * np.abs(TRUE).mean()
    f = TRUE + error * np.where(DATA.centric, np.abs(noise) * np.exp(1j * np.angle(TRUE)), noise)
    return Solution(f, 0.5, 0.2, float("nan"), 60, trial, 0.3, DATA.d_min, cluster=0)


@pytest.mark.parametrize("given", [None, 0.2, 0.9])
@pytest.mark.parametrize("weights", [WEIGHTS, {}, {"sha256": "ab" * 32}], ids=["ours", "none", "others"])
def test_shells_are_those_of_the_figures_written(given: float | None, weights: dict[str, str]) -> None:
    fom = None if given is None else np.linspace(0.1, given, len(DATA))
    phases, shells, _, _ = weigh(DATA, NORMALISED, plan(fom, weights), solution(0.3), keep_hand=True)
    for row, part in zip(shells, shell_edges(DATA.d), strict=True):
        assert row.n == len(part) and row.fom == pytest.approx(phases.fom[part].mean())
    assert phases.fom.min() >= 0 and phases.fom.max() <= 0.99
    x = np.hypot(phases.hl[:, 0], phases.hl[:, 1])
    assert x == pytest.approx(concentration(phases.fom, DATA.centric))


def test_phases_given_keep_their_worth_with_weights_nobody_calibrated() -> None:
    fom = np.linspace(0.1, 0.95, len(DATA))
    phases, *_ = weigh(DATA, NORMALISED, plan(fom, {"sha256": "ab" * 32}), solution(0.3), keep_hand=True)
    assert np.all(phases.fom >= fom - 0.01)
    ours, *_ = weigh(DATA, NORMALISED, plan(fom), solution(0.3), keep_hand=True)
    assert not np.allclose(ours.fom, phases.fom)


def test_other_solutions_of_the_cluster_are_heard() -> None:
    one = solution(0.2)
    alone, near, far = (
        weigh(DATA, NORMALISED, plan(), one, others, keep_hand=True)[0].fom.mean()
        for others in ((), (one, solution(0.2, 1, 1)), (one, solution(3.0, 1, 1)))
    )
    assert far < near and alone != near


def test_the_log_says_whether_figures_are_calibrated() -> None:
    said, bins = how_calibrated(WEIGHTS, solution(0.3))
    assert said.startswith("Figures of merit are calibrated on") and bins == read_calibration().reliability
    said, bins = how_calibrated({"sha256": "ab" * 32}, solution(0.3))
    assert "not calibrated" in said and bins == ()


@pytest.mark.parametrize(
    ("group", "count", "d_min", "noise"),
    [("P 1", 20, 1.3, 0.05), ("P 1", 20, 1.5, 0.15), ("P -1", 12, 1.1, 0.05), ("P 21 21 21", 8, 1.2, 0.05)],
)
def test_atoms_keep_what_their_figures_promise(group: str, count: int, d_min: float, noise: float) -> None:
    """The mean cosine of the phase error of atoms refined from true phases, against gemmi's; a little more at most."""
    promised, kept = [], []
    for seed in range(3):
        edges = (8.0, 9.0, 10.0) if group == "P 21 21 21" else (7.0, 8.0, 9.0)
        made = Made(group, d_min, count, seed=seed, edges=edges, noise=noise)
        source = Source("made", "simulated", ("F", "SIGF"), "amplitude")
        f = np.abs(made.amplitude) * 3.0
        data = Amplitudes(made.hkl, f, noise * f + 0.01, made.cell, made.spacegroup, source)
        normalised = normalise(data)
        refined = refine_atoms(made.moduli(), np.angle(made.f), tries=0)
        right = Solution(
            refined.f, 0.95, refined.r, float("nan"), 60, 0, refined.r, d_min, atoms=refined.atoms, worth=0.3
        )
        here = plan()
        here.rows, here.whole.held = np.arange(len(data)), ~made.used
        phases, _, verdict, _ = weigh(data, normalised, here, right, keep_hand=True)
        assert verdict.word == "solved"
        promised.append(phases.fom.mean())
        kept.append(np.cos(phases.phase - np.angle(made.f)).mean())
        doubtful, _, _, _ = weigh(data, normalised, here, replace(right, worth=1.1, score=0.1), keep_hand=True)
        assert doubtful.fom.mean() < 0.6 * phases.fom.mean()
    assert np.mean(promised) < np.mean(kept) < np.mean(promised) + 0.06
    assert np.mean(promised) > 0.9 or noise > 0.1


def test_the_log_says_what_figures_of_atoms_rest_on() -> None:
    atoms = Atoms(np.zeros((1, 3)), np.ones(1), np.ones(1), np.ones(1, dtype=np.int64))
    said, bins = how_calibrated(WEIGHTS, replace(solution(0.3), atoms=atoms))
    assert "atoms leave" in said and bins == ()
