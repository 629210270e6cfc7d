"""Scaling: parameters that made the data come back, few or odd data do no harm, flags are read as customary."""

import gemmi
import numpy as np
import pytest
import torch

from ml_phaser.structure_factors.scaling import f_model, fit_scales, free_set, r_factors

CRYSTALS = [
    ("P 1", (31, 34, 37, 80, 95, 105)),
    ("P 1 21 1", (40, 36, 45, 90, 103, 90)),
    ("P 31 2 1", (50, 50, 60, 90, 90, 120)),
    ("P 2 3", (54, 54, 54, 90, 90, 90)),
]


def made(name, cell, d_min=2.5, seed=0):
    """Random F_calc and F_mask with fall-offs like a protein's."""
    rng = np.random.default_rng(seed)
    group, cell = gemmi.SpaceGroup(name), gemmi.UnitCell(*cell)
    hkl = gemmi.make_miller_array(cell, group, d_min)
    s2 = np.asarray(cell.calculate_1_d2_array(hkl))
    f_calc, f_mask = (rng.normal(size=(2, len(hkl))) + 1j * rng.normal(size=(2, len(hkl)))) * 100
    f_mask = -0.6 * f_calc + 0.8 * f_mask  # solvent opposes protein
    return hkl, cell, group, s2, f_calc * np.exp(-15 * s2 / 4), 5 * f_mask * np.exp(-30 * s2 / 4)


def invariant(tensor, cell, group):
    """Mean of a Cartesian tensor over the point group, without its trace."""
    orth, frac = np.array(cell.orth.mat), np.array(cell.frac.mat)
    rotations = [orth @ (np.array(op.rot) / op.DEN) @ frac for op in group.operations().sym_ops]
    mean = np.mean([r @ tensor @ r.T for r in rotations], axis=0)
    return mean - np.eye(3) * np.trace(mean) / 3


@pytest.mark.parametrize(("name", "cell"), CRYSTALS)
@pytest.mark.parametrize("flat", [True, False])
def test_scale_solvent_and_anisotropy_come_back(name, cell, flat):
    hkl, cell, group, s2, f_calc, f_mask = made(name, cell)
    b = invariant(np.array([[8.0, 2, -3], [2, -5, 1], [-3, 1, 4]]), cell, group)
    s = hkl @ np.array(cell.frac.mat)
    k = 0.37 * np.exp(-6 * s2 / 4 - np.einsum("ni,ij,nj->n", s, b, s) / 4)
    k_mask = 0.42 * np.exp(-55 * s2 / 4)
    rng = np.random.default_rng(1)
    truth = k * np.abs(f_calc + k_mask * f_mask)
    f_obs = truth * (1 + 0.01 * rng.normal(size=len(truth)))
    f_obs[::500] *= 20  # nonsense must not matter
    f_obs[5::97], f_obs[6::97] = np.nan, 0.0
    free = rng.random(len(hkl)) < 0.05
    scales = fit_scales(f_obs, f_calc, f_mask, hkl, cell, group, free, flat=flat)
    total, mask = scales.at(hkl)
    model = np.abs(f_model(f_calc, f_mask, total, mask))
    assert np.abs(model - truth).sum() < (0.004 if flat else 0.006) * truth.sum()
    np.testing.assert_allclose(scales.b_aniso, b[[0, 1, 2, 0, 0, 1], [0, 1, 2, 1, 2, 2]], atol=0.3 if flat else 2.5)
    if flat:
        assert scales.solvent == pytest.approx((0.42, 55), rel=0.05)
    low = s2 < 0.04
    np.testing.assert_allclose(mask[low], k_mask[low], atol=0.06)


def test_shells_follow_what_the_flat_model_cannot():
    hkl, cell, group, s2, f_calc, f_mask = made(*CRYSTALS[1])
    k = 2 + np.sin(30 * s2)
    k_mask = np.clip(0.5 - 6 * s2, 0, None)
    truth = k * np.abs(f_calc + k_mask * f_mask)
    r = [
        r_factors(truth, f_model(f_calc, f_mask, *s.at(hkl)), 1 / np.sqrt(s2), None).work
        for s in (fit_scales(truth, f_calc, f_mask, hkl, cell, group, flat=flat) for flat in (True, False))
    ]
    assert r[1] < 0.01 < 0.05 < r[0]


def test_the_test_set_takes_no_part():
    hkl, cell, group, s2, f_calc, f_mask = made(*CRYSTALS[2])
    f_obs = np.abs(f_calc + 0.35 * np.exp(-46 * s2 / 4) * f_mask)
    free = np.random.default_rng(0).random(len(hkl)) < 0.1
    spoiled = np.where(free, 7 * f_obs, f_obs)
    a, b = (fit_scales(x, f_calc, f_mask, hkl, cell, group, free).at(hkl) for x in (f_obs, spoiled))
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("n", [1, 3, 8, 25, 60, 150, 400])
def test_few_reflections_are_scaled_with_few_parameters(n):
    hkl, cell, group, _, f_calc, f_mask = (x[-n:] if isinstance(x, np.ndarray) else x for x in made(*CRYSTALS[0]))
    rng = np.random.default_rng(n)
    f_obs = 3 * np.abs(f_calc) * np.exp(0.1 * rng.normal(size=n))
    for mask in (f_mask, None):
        scales = fit_scales(f_obs, f_calc, mask, hkl, cell, group, np.zeros(n, dtype=bool))
        total, _ = scales.at(hkl)
        assert np.isfinite(total).all()
        assert np.median(total) == pytest.approx(3, rel=0.35)
    with pytest.raises(ValueError, match="no measured amplitudes"):
        fit_scales(np.zeros(n), f_calc, None, hkl, cell, group)


def test_r_factors_are_those_of_their_definition():
    rng = np.random.default_rng(0)
    f_obs, d = rng.random(1000) + 0.1, rng.uniform(1.5, 20, 1000)
    model = f_obs * np.exp(1j * rng.random(1000)) * rng.choice([0.8, 1.1], 1000)
    free = rng.random(1000) < 0.1
    f_obs[3] = np.nan
    r = r_factors(f_obs, model, d, free, shells=7)
    use = np.isfinite(f_obs) & free
    assert r.free == pytest.approx(np.abs(f_obs - np.abs(model))[use].sum() / f_obs[use].sum())
    assert len(r.shells) == 7 and sum(x.n_work + x.n_free for x in r.shells) == 999
    assert all(a.d_min >= b.d_max for a, b in zip(r.shells, r.shells[1:], strict=False))
    inside = use & (d <= r.shells[2].d_max) & (d >= r.shells[2].d_min)
    assert r.shells[2].free == pytest.approx(np.abs(f_obs - np.abs(model))[inside].sum() / f_obs[inside].sum())
    assert np.isnan(r_factors(f_obs, model, d, None).free)


@pytest.mark.parametrize(
    ("flags", "free"),
    [
        ([0, 1, 1, 1, 1, 1], 0),  # CCP4 with two values, REFMAC
        ([1, 0, 0, 0, 0, 0], 1),  # Phenix, CNS
        ([3, 0, 1, 2, 4, 5], 0),  # CCP4
        ([3, 2, 1, 2, 4, 5], 1),
        ([1, 1, 1, 1, 1, 1], None),
        ([-1, -1, -1, -1, -1, -1], None),
        ([-1, 0, 0, 0, 0, 1], 1),
        ([0, 0, 0, 0, 1, 2], None),  # most reflections cannot be a test set
    ],
)
def test_flags_are_read_as_customary(flags, free):
    flags = np.array(flags)
    found, story = free_set(flags)
    if free is None:
        assert found is None and story
    else:
        np.testing.assert_array_equal(found, flags == free)
        assert f"flag {free} " in story
    assert free_set(None) == (None, "no free-R flags")


def test_model_is_differentiable_in_everything():
    rng = torch.Generator().manual_seed(0)
    f_calc, f_mask = (torch.randn(5, dtype=torch.complex128, generator=rng, requires_grad=True) for _ in range(2))
    scales = [torch.rand(5, dtype=torch.float64, generator=rng, requires_grad=True) for _ in range(2)]
    assert torch.autograd.gradcheck(lambda *x: f_model(*x).abs(), (f_calc, f_mask, *scales))
