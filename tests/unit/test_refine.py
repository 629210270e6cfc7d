"""The target and its gradients, what moves and what stays, scaling, verdicts."""

import dataclasses

import gemmi
import numpy as np
import pytest
import torch
from refinable import apart, make_atom, places, shaken, true_model, write_data

from ml_phaser import refinement
from ml_phaser.building.refine import (
    LEAST_B,
    Parts,
    State,
    cool,
    explain,
    isotropic_b,
    lbfgs,
    move,
    positions,
    target_of,
    update,
)
from ml_phaser.building.target import Target
from ml_phaser.errors import UserError
from ml_phaser.exchange.read import read_amplitudes
from ml_phaser.refinement import RefineOptions, Row, fit_cell, judge


@pytest.fixture(scope="module")
def crystal(tmp_path_factory):
    truth = true_model()
    data = read_amplitudes(write_data(tmp_path_factory.mktemp("refine") / "data.mtz", truth), labin="F,SIGF")
    return truth, data, data.free == 0


def state_of(st):
    return State(positions(st), isotropic_b(st))


def odd_crystal():
    """A few atoms with everything that needs care: anisotropy, a riding hydrogen, one on a twofold axis."""
    st = gemmi.Structure()
    st.cell, st.spacegroup_hm = gemmi.UnitCell(9, 7, 8, 90, 100, 90), "P 1 2 1"
    residue = gemmi.Residue()
    residue.name, residue.seqid = "LIG", gemmi.SeqId("1")
    atoms = [
        make_atom("C1", "C", (2, 1, 1), 8), make_atom("C2", "C", (3.4, 1.2, 1.1), 10),
        make_atom("H1", "H", (1.6, 1.9, 0.8), 11), make_atom("O1", "O", (0.05, 4, 0.02), 9),
    ]  # fmt: skip
    atoms[1].aniso = gemmi.SMat33f(0.2, 0.1, 0.15, 0.02, -0.01, 0.03)
    atoms[3].occ = 0.5
    for a in atoms:
        residue.add_atom(a)
    chain, model = gemmi.Chain("A"), gemmi.Model(1)
    chain.add_residue(residue)
    model.add_chain(chain)
    st.add_model(model)
    return st


@pytest.mark.parametrize("likelihood", [True, False])
def test_gradients_of_the_whole_target(likelihood):
    st = odd_crystal()
    group = st.find_spacegroup()
    parts = Parts.of(st, st.cell, group)
    hkl = gemmi.make_miller_array(st.cell, group, 2.5).astype(np.int32)
    n, rng = len(hkl), np.random.default_rng(0)
    centric = torch.tensor(group.operations().centric_flag_array(hkl))

    def numbers(low, high):
        return torch.tensor(rng.uniform(low, high, n))

    target = Target(
        hkl, st.cell, group, numbers(5, 30), numbers(0.9, 1.1), torch.complex(numbers(-2, 2), numbers(-2, 2)),
        numbers(0.8, 1) if likelihood else None, numbers(20, 60), centric,
        "direct",
    )  # fmt: skip
    state = state_of(st)
    moving = torch.from_numpy(state.xyz[parts.free.numpy()]).requires_grad_()
    log_b = torch.from_numpy(np.log(state.b[parts.free.numpy()])).requires_grad_()

    def value(x, v):
        return target(parts.at(parts.coordinates(x), parts.displacements(v), st.cell))

    assert torch.autograd.gradcheck(value, (moving, log_b), atol=1e-5, rtol=1e-4)
    gradient = torch.autograd.grad(value(moving, log_b), moving)[0]
    assert gradient[-1, [0, 2]].abs().max() < 1e-9 < gradient[-1, 1].abs()  # the atom on the axis moves along it


def test_target_is_that_of_gemmis_structure_factors(crystal):
    truth, data, free = crystal
    parts = Parts.of(truth, data.cell, data.spacegroup)
    state, fit = explain(parts, state_of(truth), data, free, None)
    assert fit.from_free and fit.r.free < 0.03
    work = ~free
    ratio = np.abs(fit.f_model[work]) / data.f[work]
    assert abs(np.median(ratio) - 1) < 0.01
    np.testing.assert_allclose(state.b, isotropic_b(truth), atol=0.5)


def test_free_reflections_never_enter(crystal):
    truth, data, free = crystal
    parts = Parts.of(truth, data.cell, data.spacegroup)
    spoilt = dataclasses.replace(data, f=np.where(free, data.f * 3 + 7, data.f))
    _, fit = explain(parts, state_of(truth), data, free, None)
    target = target_of(fit, spoilt, free)
    assert len(target.hkl) == (~free).sum()
    assert not set(map(tuple, target.hkl)) & set(map(tuple, data.hkl[free]))
    assert np.array_equal(target.f_obs.numpy(), data.f[~free])


def test_too_few_free_reflections_mean_least_squares(crystal):
    truth, data, free = crystal
    parts = Parts.of(truth, data.cell, data.spacegroup)
    few = free & (np.cumsum(free) < 40)
    _, fit = explain(parts, state_of(truth), data, few, None)
    target = target_of(fit, data, few)
    assert target.alpha is None
    residual = data.f - np.abs(fit.f_model)
    factor = target.beta.numpy() / fit.beta[~few]
    assert np.ptp(factor) < 1e-9 and np.mean(residual[few] ** 2 / fit.beta[few] / factor[0]) == pytest.approx(1)


def test_overall_b_is_folded_into_the_atoms(crystal):
    truth, data, free = crystal
    parts = Parts.of(truth, data.cell, data.spacegroup)
    start = state_of(truth)
    hot = State(start.xyz, start.b + 9)
    folded, fit = explain(parts, hot, data, free, None)
    kept, plain = explain(parts, hot, data, free, None, fold=False)
    assert abs(np.mean(folded.b - start.b)) < 0.5 and np.array_equal(kept.b, hot.b)
    assert fit.r.work == pytest.approx(plain.r.work, abs=2e-3)


def test_solvent_is_that_of_the_coordinates(crystal):
    truth, data, free = crystal
    parts = Parts.of(truth, data.cell, data.spacegroup)
    _, dry = explain(parts, state_of(truth), data, free, None)
    _, wet = explain(parts, state_of(truth), data, free, truth.clone())
    assert not dry.solvent.any()
    # the data have none, so little is found
    assert np.abs(wet.f_model - dry.f_model).mean() < 0.02 * np.abs(dry.f_model).mean()


@pytest.mark.parametrize("ml", [True, False])
def test_a_shaken_model_comes_back(crystal, ml):
    truth, data, free = crystal
    free = free if ml else free & (np.cumsum(free) < 60)
    st = shaken(truth)
    parts = Parts.of(st, data.cell, data.spacegroup)
    state, fit = explain(parts, state_of(st), data, free, None)
    start = fit.r.free
    assert fit.from_free == ml
    for _ in range(2):
        target = target_of(fit, data, free)
        state = cool(parts, target, move(parts, target, state, 1.0, 30), 1.0, 15)
        state, fit = explain(parts, state, data, free, None)
    update(st, parts, state)
    assert apart(shaken(truth), truth) > 0.25 and apart(st, truth) < 0.06
    assert start > 0.2 and fit.r.free < 0.07
    np.testing.assert_allclose(isotropic_b(st), isotropic_b(truth), atol=4)


def test_riding_and_special_positions_stay():
    st = odd_crystal()
    parts = Parts.of(st, st.cell, st.find_spacegroup())
    assert parts.free.tolist() == [0, 1, 3]
    moving = torch.from_numpy(places(st)[[0, 1, 3]]) + torch.tensor([[0.1, 0.2, 0.3], [0, 0, 0], [0.4, 0.5, 0.6]])
    xyz = parts.coordinates(moving).numpy()
    np.testing.assert_allclose(xyz[2] - places(st)[2], [0.1, 0.2, 0.3], atol=1e-9)
    np.testing.assert_allclose(xyz[3], [0, 4.5, 0], atol=1e-9)
    b = parts.displacements(torch.log(torch.tensor([20.0, 10.0, 9.0], dtype=torch.float64))).numpy()
    assert b[2] == pytest.approx(20 * 11 / 8)  # the hydrogen keeps its ratio


def test_anisotropy_is_kept_and_stays_positive():
    st = odd_crystal()
    before = np.array(st[0][0][0][1].aniso.as_mat33().tolist())
    parts = Parts.of(st, st.cell, st.find_spacegroup())
    b = isotropic_b(st)
    assert b[1] == pytest.approx(8 * np.pi**2 * 0.15, rel=1e-5)
    update(st, parts, State(places(st), np.array([8, b[1] + 5, 11, 9])))
    after = np.array(st[0][0][0][1].aniso.as_mat33().tolist())
    np.testing.assert_allclose(after - before, np.eye(3) * 5 / (8 * np.pi**2), atol=1e-6)
    lowest = 8 * np.pi**2 * (np.linalg.eigvalsh(before)[0]) - (b[1] - parts.least_b[1])
    assert lowest == pytest.approx(LEAST_B, rel=1e-4)


def test_lbfgs_finds_a_minimum_within_bounds():
    centre = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)

    def valley(x):
        return ((x - centre) ** 2 * torch.tensor([1.0, 50.0, 3.0])).sum()

    np.testing.assert_allclose(lbfgs(valley, np.zeros(3), 30), centre, atol=1e-5)
    found = lbfgs(valley, np.zeros(3), 30, np.array([[-5, 5], [-1, 5], [-5, 5]]))
    np.testing.assert_allclose(found, [1, -1, 3], atol=1e-5)


def row(work, free):
    return Row(0, work, free, 0.01, 1.0, 20.0, 1.0)


@pytest.mark.parametrize(
    ("first", "last", "says", "not_said"),
    [
        ((0.30, 0.32), (0.18, 0.21), ["R_free fell from 0.3200 to 0.2100"], ["overfitted"]),
        ((0.30, 0.32), (0.15, 0.31), ["fell", "overfitted"], ["ROSE"]),
        ((0.20, 0.23), (0.19, 0.26), ["R_free ROSE"], ["was not free"]),
        ((0.20, 0.195), (0.18, 0.22), ["rose", "was not free"], ["ROSE"]),
        ((0.20, 0.23), (0.199, 0.2305), ["stayed"], ["fell", "ROSE"]),
        ((0.20, np.nan), (0.15, np.nan), ["R_work went from 0.2000 to 0.1500", "no test set"], ["fell", "better"]),
    ],
)
def test_verdicts_are_honest(first, last, says, not_said):
    said = judge((row(*first), row(*last)), 1.9)
    assert all(word in said for word in says) and not any(word in said for word in not_said)


def options(**changes):
    return RefineOptions("model.pdb", "data.mtz", "out.pdb", "out.mtz", **changes)


def test_test_sets(crystal):
    _, data, _ = crystal
    known, said = refinement.test_set(data, options())
    assert np.array_equal(known, data.free == 0) and "flag 0" in said[0]
    other, _ = refinement.test_set(data, options(free=3))
    assert np.array_equal(other, data.free == 3)
    with pytest.raises(UserError, match="flag 11"):
        refinement.test_set(data, options(free=11))
    bare = dataclasses.replace(data, free=None)
    made, said = refinement.test_set(bare, options(seed=1))
    again, _ = refinement.test_set(bare, options(seed=1))
    different, _ = refinement.test_set(bare, options(seed=2))
    assert 0.02 < made.mean() < 0.09 and "set aside" in said[0]
    assert np.array_equal(made, again) and not np.array_equal(made, different)


def test_cells_must_agree_and_odd_frames_are_straightened(crystal):
    truth, data, _ = crystal
    assert fit_cell(truth.clone(), data.cell, "m") == ()
    near = truth.clone()
    near.cell = gemmi.UnitCell(13.05, 16, 18, 90, 104, 90)
    assert "replaces" in fit_cell(near, data.cell, "m")[0]
    far = truth.clone()
    far.cell = gemmi.UnitCell(13, 16, 18.5, 90, 104, 90)
    with pytest.raises(UserError, match="has the cell 13 16"):
        fit_cell(far, data.cell, "m")
    odd = gemmi.read_pdb_string(
        "CRYST1   13.000   16.000   18.000  90.00  90.00  90.00 P 1           1\n"
        "SCALE1      0.076923  0.000000  0.000000        0.50000\n"
        "SCALE2      0.000000  0.062500  0.000000        0.00000\n"
        "SCALE3      0.000000  0.000000  0.055556        0.00000\n"
        "ATOM      1  CA  GLY A   1       1.000   2.000   3.000  1.00 10.00           C\n"
    )
    assert odd.cell.explicit_matrices
    fit_cell(odd, gemmi.UnitCell(13, 16, 18, 90, 90, 90), "m")
    np.testing.assert_allclose(places(odd)[0], [7.5, 2, 3], atol=1e-3)
