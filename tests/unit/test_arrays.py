"""One engine, two kinds of arrays: single steps in numpy are those in torch, to rounding."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import scipy.special
import torch
from crystals import Crystal, crystal, problem_of
from hypothesis import given, settings
from hypothesis import strategies as st

from ml_phaser import arrays
from ml_phaser.crystal.phase_distributions import PhaseDistributions, hendrickson_lattman
from ml_phaser.crystal.symmetry import expand
from ml_phaser.networks.config import condition
from ml_phaser.phasing.combination import Combined
from ml_phaser.phasing.dual_space import Alternating, ChargeFlipping, Method, Relaxed, Shaped, ShrinkWrap, sparse
from ml_phaser.phasing.problem import Problem
from ml_phaser.phasing.projections import (
    flip,
    forward,
    impose_amplitudes,
    inverse,
    regrid,
    restore,
    sharpened,
    unit_variance,
)
from ml_phaser.phasing.seeds import Seeds, imposing
from ml_phaser.phasing.starts import GivenStarts

GROUPS = ("P 1", "P 1 21 1", "P -1", "P 31 2 1")
some_group = st.sampled_from(GROUPS)
some_seed = st.integers(0, 2**31 - 1)


@cache
def posed(name: str) -> tuple[Crystal, Problem, Problem]:
    c = crystal(name, d_min=1.2)
    return c, problem_of(c), problem_of(c, place=arrays.NUMPY)


def phases_of(c: Crystal, seed: int) -> PhaseDistributions:
    turn = expand(c.hkl, c.spacegroup).turn
    fom = np.random.default_rng(seed).uniform(0, 0.95, len(c.hkl))
    return PhaseDistributions(hendrickson_lattman(np.angle(c.f), fom, turn != 0), turn)


def same(ours: np.ndarray, theirs: torch.Tensor, tolerance: float = 2e-5) -> None:
    """To ``tolerance`` of the r.m.s. value, and in the same precision."""
    assert isinstance(ours, np.ndarray)
    other = theirs.numpy()
    assert ours.dtype == other.dtype and ours.shape == other.shape
    assert np.linalg.norm(ours - other) <= tolerance * np.linalg.norm(other)


@given(some_seed, st.lists(st.integers(1, 9), min_size=1, max_size=4).filter(lambda s: np.prod(s) >= 16))
def test_a_seed_means_the_same_starts(seed: int, shape: list[int]) -> None:
    """Against torch's own generator, whose every draw leaves it where ours is."""
    theirs, ours = torch.Generator().manual_seed(seed), arrays.Twister(seed)
    for _ in range(2):
        same(arrays.normal(tuple(shape), ours), arrays.normal(tuple(shape), theirs), 1e-5)
        assert arrays.integer(ours) == arrays.integer(theirs)


@given(some_group, some_seed)
@settings(deadline=None, max_examples=25)
def test_projections(name: str, seed: int) -> None:
    _, theirs, ours = posed(name)
    x, y = ours.random_starts(2, arrays.Twister(seed)), theirs.random_starts(2, torch.Generator().manual_seed(seed))
    y = torch.from_numpy(x).clone()  # the same to the last bit: thresholds are passed or not
    same(forward(x), forward(y))
    same(impose_amplitudes(x, ours.target), impose_amplitudes(y, theirs.target))
    same(impose_amplitudes(x, ours.target, keep_mean=True), impose_amplitudes(y, theirs.target, keep_mean=True))
    same(unit_variance(3 * x + 1), unit_variance(3 * y + 1))
    same(sharpened(x, ours.target), sharpened(y, theirs.target))
    same(flip(x, 1.1), flip(y, 1.1))
    same(sparse(0.07)(x), sparse(0.07)(y))
    other = (16, 20, 24)
    same(regrid(forward(x), other), regrid(forward(y), other))
    same(inverse(regrid(forward(x), other), other), inverse(regrid(forward(y), other), other))
    wrap = ShrinkWrap(ours, 0.2), ShrinkWrap(theirs, 0.2)
    assert np.mean(wrap[0].support(x, 0.3) != wrap[1].support(y, 0.3).numpy()) < 1e-3  # rounding at the threshold


@given(some_group, some_seed)
@settings(deadline=None, max_examples=25)
def test_what_starts_are_judged_by(name: str, seed: int) -> None:
    c, theirs, ours = posed(name)
    noise = 0.5 * np.abs(c.f) * np.random.default_rng(seed).normal(size=len(c.f))
    half = ours.scatter(c.f + noise)
    same(half, theirs.scatter(c.f + noise))
    there = torch.from_numpy(half)
    same(ours.scores(half), theirs.scores(there))
    same(ours.residuals(half), theirs.residuals(there))
    np.testing.assert_allclose(ours.gather_p1(half[0]), theirs.gather_p1(there[0]))


def methods(p: Problem, c: Crystal) -> list[Method]:
    known = phases_of(c, 3)
    seeds = Seeds(np.angle(c.f), np.abs(c.f) > np.median(np.abs(c.f)))
    return [
        ChargeFlipping(p), Relaxed(p, sparse(0.1), 0.4, "RRR"), Alternating(p, sparse(0.1)), ShrinkWrap(p, 0.3),
        ShrinkWrap(p, 0.3, cycles=2, ending=1), Combined(p, sparse(0.1), known),
        Relaxed(imposing(p, seeds), sparse(0.1), 0.4, "RRR, seeded"), ChargeFlipping(imposing(p, seeds)),
    ]  # fmt: skip


@pytest.mark.parametrize("name", GROUPS)
@pytest.mark.parametrize("which", range(8))
def test_a_cycle(name: str, which: int) -> None:
    """A few cycles: longer ones part, as any two that differ by rounding do."""
    c, theirs, ours = posed(name)
    x = unit_variance(inverse(ours.scatter(c.f), ours.shape)) + 0.3 * ours.random_starts(2, arrays.Twister(which))
    y = torch.from_numpy(x)
    here, there = methods(ours, c)[which], methods(theirs, c)[which]
    done = 0 if which != 4 else 1
    # a point that rounding takes over a threshold changes the rest by its own height
    same(here.advance(x, 2, done), there.advance(y, 2, done), 5e-3)
    same(here.estimate(x), there.estimate(y), 5e-3)


def test_shaped_and_given_starts() -> None:
    c, theirs, ours = posed("P 1 21 1")
    known = phases_of(c, 5)
    same(
        GivenStarts(ours, known).make(3, arrays.Twister(1)),
        GivenStarts(theirs, known).make(3, torch.Generator().manual_seed(1)),
    )
    here, there = (Shaped(p, ChargeFlipping(p), p, 1) for p in (ours, theirs))
    got, wanted = here.random_starts(2, arrays.Twister(1)), there.random_starts(2, torch.Generator().manual_seed(1))
    same(got, wanted, 1e-2)


def test_networks_see_the_same_maps() -> None:
    c, theirs, ours = posed("P 1")
    rho = unit_variance(inverse(ours.scatter(c.f), ours.shape))
    model = unit_variance(rho**2)
    seen: list = []

    def network(maps: arrays.Array, cond: arrays.Array) -> arrays.Array:
        seen.append(maps)
        return maps[:, 0] + cond[0, 0]

    cond = np.ones((1, 11), dtype=np.float32)
    got = restore(network, rho, ours.target, cond, model)
    wanted = restore(network, torch.from_numpy(rho), theirs.target, torch.from_numpy(cond), torch.from_numpy(model))
    same(got, wanted, 1e-2)  # torch may use bfloat16
    same(seen[0], seen[1])
    steps = np.array(c.cell.orth.mat)[None] / 20
    one = np.ones(1)
    told = condition(torch.ones(1).double() * 1.5, torch.from_numpy(steps), torch.ones(1).double() * 0.9)
    same(condition(one * 1.5, steps, one * 0.9), told)


@given(st.integers(1, 50), some_seed)
def test_small_things(k: int, seed: int) -> None:
    x = np.random.default_rng(seed).normal(size=(3, 50)).astype(np.float32)
    assert np.array_equal(arrays.kth(x, k), np.sort(x, axis=1)[:, k - 1])
    assert np.array_equal(arrays.kth(torch.from_numpy(x), k).numpy(), np.sort(x, axis=1)[:, k - 1])
    size = 30 * np.abs(x)
    wanted = scipy.special.ive(1, size) / scipy.special.ive(0, size)
    same(arrays.sim(size), torch.from_numpy(wanted))
    same(wanted.astype(np.float32), arrays.sim(torch.from_numpy(size)))


def test_libraries_that_are_not_there_are_known_without_importing() -> None:
    assert arrays.installed("numpy") and not arrays.installed("no_such_library")
    assert not arrays.is_torch(np.zeros(1)) and arrays.is_torch(torch.zeros(1))
