"""Hybrid input-output with a shrinking support."""

from __future__ import annotations

import gemmi
import numpy as np
import pytest
import torch
from crystals import Crystal, agreement
from scipy.ndimage import gaussian_filter

from ml_phaser.phasing.dual_space import ShrinkWrap, gaussian
from ml_phaser.phasing.problem import Problem, choose_held_out, pose
from ml_phaser.phasing.projections import forward, impose_amplitudes, inverse


def molecule_in_vacuum(seed: int = 0) -> tuple[Crystal, Problem]:
    """A chain of ten equal atoms in a P1 cell of 10 x 11 x 12 A, most of which is empty; data to 1.5 A, B 20 A^2."""
    rng = np.random.default_rng(seed)
    chain = [np.zeros(3)]
    while len(chain) < 10:
        step = rng.normal(size=3)
        new = chain[-1] + 1.5 * step / np.linalg.norm(step)
        if min(np.linalg.norm(new - old) for old in chain) > 1.4 and np.linalg.norm(new) < 5:
            chain.append(new)
    cell, group = gemmi.UnitCell(10, 11, 12, 90, 90, 90), gemmi.SpaceGroup("P 1")
    sites = np.array(chain) / [10, 11, 12]
    hkl = np.asarray(gemmi.make_miller_array(cell, group, 1.5), dtype=np.int32)
    stol2 = np.asarray(cell.calculate_1_d2_array(hkl)) / 4
    f = 6 * np.exp(-20 * stol2) * np.exp(2j * np.pi * (hkl @ sites.T)).sum(axis=1)
    c = Crystal(hkl, f, cell, group, sites)
    held = choose_held_out(np.asarray(cell.calculate_d_array(hkl)), 1.5, 0)
    to_e = np.exp(20 * stol2)
    return c, pose(hkl, np.abs(f), to_e, held, cell, group, spacing=0.6)


@pytest.mark.parametrize("width", [1.0, 2.3])
def test_the_smoothing_is_scipys(width: float) -> None:
    rho = gaussian_filter(np.random.default_rng(0).normal(size=(14, 12, 10)), 1.5, mode="wrap")
    x = torch.from_numpy(rho)[None]
    ours = inverse(forward(x) * gaussian(rho.shape, width), x.shape)[0].numpy()
    assert np.allclose(ours, gaussian_filter(rho, width, mode="wrap", truncate=8), atol=1e-3 * rho.std())


@pytest.mark.parametrize("share", [0.05, 0.3])
@pytest.mark.parametrize("progress", [0.0, 0.5, 1.0])
def test_the_support_fills_its_share_and_holds_the_highest(share: float, progress: float) -> None:
    _, problem = molecule_in_vacuum()
    rho = impose_amplitudes(problem.random_starts(3, torch.Generator().manual_seed(0)), problem.target)
    inside = ShrinkWrap(problem, share).support(rho, progress)
    assert inside.float().mean(dim=(1, 2, 3)).numpy() == pytest.approx(share, abs=0.002)
    soft = gaussian_filter(rho[0].numpy(), 3 - 2 * progress, mode="wrap", truncate=6)
    assert soft[inside[0].numpy()].min() > soft[~inside[0].numpy()].max() - 1e-3 * soft.std()


def test_a_molecule_in_vacuum_is_found_from_random_phases_and_known_without_the_truth() -> None:
    c, problem = molecule_in_vacuum()
    method = ShrinkWrap(problem, 0.2)
    half = method.estimate(method.advance(problem.random_starts(8, torch.Generator().manual_seed(2)), method.cycles))
    best = int(problem.residuals(half).argmin())
    assert int(problem.scores(half).argmax()) == best or problem.scores(half)[best] > 0.9
    assert agreement(c, problem.expansion.average(problem.gather_p1(half[best]), len(c.hkl))) > 0.98
    assert problem.residuals(half)[best] < 0.1


def test_the_map_ends_positive_and_inside_the_support() -> None:
    _, problem = molecule_in_vacuum()
    method = ShrinkWrap(problem, 0.2, cycles=80)
    x = method.advance(problem.random_starts(2, torch.Generator().manual_seed(2)), 80)
    assert (x >= 0).all()
    assert ((x > 0).float().mean(dim=(1, 2, 3)) <= 0.2 + 1e-3).all()


def test_a_run_in_blocks_is_the_run_in_one() -> None:
    _, problem = molecule_in_vacuum()
    method = ShrinkWrap(problem, 0.2, cycles=100)
    start = problem.random_starts(2, torch.Generator().manual_seed(3))
    x = start
    for done in range(0, 100, 20):
        x = method.advance(x, 20, done)
    assert torch.equal(x, method.advance(start, 100))
