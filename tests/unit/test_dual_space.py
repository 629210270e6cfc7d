"""Projections, problems and dual-space cycles."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from crystals import agreement, crystal, problem_of

from ml_phaser.crystal.agreement import compare
from ml_phaser.phasing.dual_space import Alternating, ChargeFlipping, Relaxed, Shaped, sparse
from ml_phaser.phasing.problem import choose_held_out, pose
from ml_phaser.phasing.projections import (
    Target,
    flip,
    forward,
    impose_amplitudes,
    inverse,
    regrid,
    unit_variance,
    unknown,
    with_amplitudes,
)  # fmt: skip


@pytest.mark.parametrize("name", ["P 1", "P 1 21 1", "C 1 2 1", "P 31 2 1", "F 2 3"])
def test_a_problem_holds_the_data_and_nothing_of_the_held_out(name: str) -> None:
    c = crystal(name, d_min=1.1)
    p = problem_of(c)
    truth = p.scatter(c.f)
    known = p.target.known & (p.target.amplitude > 0)
    ratio = p.target.amplitude[known] / truth.abs()[known]
    assert ratio.std() / ratio.mean() < 1e-4  # one scale
    judged = torch.zeros_like(p.target.known).reshape(-1)
    judged[p.judge_flat] = True
    assert not (judged.reshape(p.target.known.shape) & p.target.known).any()
    # density of one r.m.s., so that thresholds mean something
    full = torch.where(p.target.inside, p.target.amplitude.to(torch.complex64) * truth.sgn(), 0)
    assert inverse(full, p.shape).pow(2).mean().item() == pytest.approx(1, rel=0.02)
    assert np.allclose(p.expansion.average(p.gather_p1(truth[0]), len(c.hkl)), c.f, atol=1e-3 * np.abs(c.f).max())


def test_absences_are_known_to_be_zero() -> None:
    p = problem_of(crystal("C 1 2 1", d_min=1.1))
    rho = impose_amplitudes(torch.randn(1, *p.shape, generator=torch.Generator().manual_seed(0)), p.target)
    half = forward(rho)[0]
    assert half[1, 0, 1].abs() < 1e-4  # h + k odd
    assert half[2, 0, 1].abs() > 1e-3


def test_the_judge_knows_truth_from_chance() -> None:
    c = crystal("P 21 21 21", atoms=10, d_min=1.0)
    p = problem_of(c)
    assert p.scores(p.scatter(c.f))[0] == pytest.approx(1, abs=1e-4)
    assert p.residuals(p.scatter(c.f))[0] < 1e-4
    chance = p.scores(forward(p.random_starts(20, torch.Generator().manual_seed(1))))
    assert chance.abs().mean() < 3 / np.sqrt(p.held.sum())
    assert p.residuals(forward(p.random_starts(1, torch.Generator().manual_seed(1))))[0] > 0.3


def test_amplitudes_are_imposed_and_the_rest_left_alone() -> None:
    g = torch.Generator().manual_seed(0)
    shape = (2, 8, 10, 12)
    rho = torch.randn(shape, generator=g)
    half = forward(rho)
    pick = torch.rand(half.shape[1:], generator=g)[None]
    target = Target(torch.rand(pick.shape, generator=g), pick < 0.4, pick < 0.8, pick)
    out = with_amplitudes(half, target)
    known = target.known.expand_as(half).clone()
    known[..., 0, 0, 0] = False
    assert torch.allclose(out.abs()[known], target.amplitude.expand_as(known)[known], atol=1e-5)
    assert torch.allclose(torch.angle(out[known]), torch.angle(half[known]), atol=1e-4)
    loose = (target.inside & ~target.known).expand_as(known).clone()
    loose[..., 0, 0, 0] = False
    assert torch.equal(out[loose], half[loose])
    assert out[(~target.inside & ~target.known).expand_as(known)].abs().max() == 0
    assert (out[..., 0, 0, 0] == 0).all()
    assert torch.allclose(with_amplitudes(half, target, keep_mean=True)[..., 0, 0, 0], half[..., 0, 0, 0])


def test_what_is_unknown_is_no_stronger_than_what_is_measured() -> None:
    """Scaled like the measured moduli, kept as it is up to their r.m.s. at its resolution, cut to that beyond it."""
    c = crystal("P 21 21 21", atoms=40, d_min=1.2)
    p = problem_of(c)
    limit, free = p.target.most, p.target.free > 0
    assert limit is not None and free.any() and (limit[~p.target.inside] == 0).all()
    there = p.gather_p1(limit[0].to(torch.complex64)).real
    d2 = 1 / np.asarray(p.cell.calculate_d_array(p.hkl)) ** 2
    spread = p.expansion.spread(p.amplitude.astype(complex))
    unit = np.abs(p.gather_p1(p.target.amplitude[0].to(torch.complex64))).max() / np.abs(spread).max()
    for i in range(0, len(p.hkl), 25):
        near = np.argsort(np.abs(d2 - d2[i]))[:100]
        expected = unit * np.sqrt((p.amplitude[near] ** 2).mean())
        assert there[p.expansion.asu == i] == pytest.approx(expected, rel=0.35)
    half = p.scatter(c.f)
    right = unknown(3 * half, p.target)  # of another scale
    small = free & (p.target.amplitude < 0.9 * limit)
    assert (small & (right.abs() > 0)).any()
    assert torch.allclose(right.abs()[small], p.target.amplitude[small], rtol=1e-3, atol=1e-6)
    assert (right[~free] == 0).all() and (right.abs() <= limit * 1.0001).all()
    wild = torch.where(free, 1000 * half, half)
    kept = unknown(wild, p.target)
    strong = free & (half.abs() > 0)
    assert torch.allclose(kept.abs()[strong], limit[strong], rtol=1e-4)
    assert torch.allclose(torch.angle(kept[strong]), torch.angle(half[strong]), atol=1e-4)
    free_of_limits = unknown(wild, replace(p.target, most=None))
    assert free_of_limits.abs().max() > 100 * limit.max()


def test_projections_are_what_they_say() -> None:
    rho = torch.randn(3, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(inverse(forward(rho), rho.shape), rho, atol=1e-5)
    assert unit_variance(3 * rho + 7).mean().abs() < 1e-5
    flipped = flip(rho, 1.0)
    assert torch.equal(flipped.abs(), rho.abs())
    assert flipped.min() >= -rho.abs().max() and (flipped[rho > 1.1] > 0).all() and (flipped[rho < 0] > 0).all()
    kept = sparse(0.1)(rho)
    assert ((kept != 0).float().mean(dim=(1, 2, 3)) - 0.1).abs().max() < 0.01
    assert (kept >= 0).all() and kept.max() == rho.max()


def test_truth_is_a_fixed_point_of_sparse_cycles() -> None:
    c = crystal("P 1 21 1", atoms=8, d_min=0.9, b=1.0)
    p = problem_of(c)
    x = unit_variance(inverse(p.scatter(c.f), p.shape))
    method = Alternating(p, sparse(0.1))
    after = p.gather_p1(method.estimate(method.advance(x, 50))[0])
    assert agreement(c, p.expansion.average(after, len(c.hkl))) > 0.95
    # Relaxed reflections stay near, but nothing holds the origin: compared as in P1.
    relaxed = Relaxed(p, sparse(0.1), 0.4, "RRR")
    after = p.gather_p1(relaxed.estimate(relaxed.advance(x, 50))[0])
    there = compare(p.expansion.hkl, after, p.expansion.spread(c.f), c.cell, c.spacegroup, centre="free", repeats=0)
    assert there.map_cc > 0.7


@pytest.mark.parametrize("method", ["RRR", "charge flipping"])
def test_random_starts_solve_a_small_crystal(method: str) -> None:
    c = crystal("P 1", atoms=12, d_min=0.9, seed=1)
    p = problem_of(c)
    cycling = Relaxed(p, sparse(0.08), 0.4, "RRR") if method == "RRR" else ChargeFlipping(p)
    x = cycling.advance(p.random_starts(4, torch.Generator().manual_seed(0)), 400)
    half = cycling.estimate(x)
    best = int(p.scores(half).argmax())
    assert p.scores(half)[best] > 0.5
    f = p.expansion.average(p.gather_p1(half[best]), len(c.hkl))
    assert agreement(c, f) > (0.9 if method == "RRR" else 0.7)  # the weak reflections' shift costs charge flipping


def test_held_out_reflections_are_few_random_and_repeatable() -> None:
    d = np.linspace(5, 0.8, 4000)
    held = choose_held_out(d, 1.2, 0)
    assert held.sum() == pytest.approx(0.05 * 4000, rel=0.05)
    assert np.array_equal(held, choose_held_out(d, 1.2, 0))
    assert not np.array_equal(held, choose_held_out(d, 1.2, 1))
    small = choose_held_out(np.linspace(5, 1.6, 400), 1.6, 0)
    assert small.sum() == 60
    assert choose_held_out(np.linspace(5, 1.6, 40), 1.6, 0).sum() == 6


def test_coefficients_move_between_grids() -> None:
    """Against trigonometric interpolation point by point: a band-limited map is the same map on any finer grid."""
    g = torch.Generator().manual_seed(0)
    coarse, fine = (8, 10, 12), (16, 20, 24)
    smooth = regrid(forward(torch.randn(2, *coarse, generator=g)), coarse)  # without what a grid holds by halves
    x = inverse(smooth, coarse)
    scale = np.sqrt(np.prod(fine) / np.prod(coarse))  # of orthonormal transforms
    y = scale * inverse(regrid(smooth, fine), fine)
    assert torch.allclose(y[:, ::2, ::2, ::2], x, atol=1e-5)
    assert torch.allclose(regrid(regrid(smooth, fine), coarse), smooth)
    assert torch.allclose(regrid(smooth, (20, 8, 12)).abs().pow(2).sum(), regrid(smooth, (8, 8, 12)).abs().pow(2).sum())


def test_shaped_starts_carry_the_phases_of_the_quick_method_to_the_other_grid() -> None:
    c = crystal("P 1 21 1", atoms=10, d_min=1.0)
    before = problem_of(c)
    ones = np.ones(len(c.hkl))
    after = pose(c.hkl, before.amplitude, ones, before.held, c.cell, c.spacegroup, spacing=0.4)
    assert before.shape != after.shape

    class Solves(ChargeFlipping):
        def advance(self, x: torch.Tensor, cycles: int, done: int = 0) -> torch.Tensor:
            return inverse(before.scatter(c.f), before.shape).expand(len(x), -1, -1, -1)

        def estimate(self, x: torch.Tensor) -> torch.Tensor:
            return forward(x)

    x = Shaped(after, Solves(before), before, 10).random_starts(3, torch.Generator().manual_seed(0))
    assert x.shape == (3, *after.shape)
    assert x.pow(2).mean((1, 2, 3)).sqrt() == pytest.approx(torch.ones(3), abs=1e-3)
    f = after.expansion.average(after.gather_p1(forward(x)[2]), len(c.hkl))
    assert agreement(c, f) > 0.95
    moduli = forward(x)[0].abs()[after.target.known[0]]  # measured moduli, not those of the method
    assert np.corrcoef(moduli, after.target.imposed[after.target.known])[0, 1] > 0.999
