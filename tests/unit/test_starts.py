"""Starts from given phases, phase combination, and the way back to their origin and hand."""

from __future__ import annotations

import gemmi
import numpy as np
import pytest
import torch
from scipy import special

from ml_phaser.crystal.agreement import hand_centre, move, permissible_origins
from ml_phaser.crystal.normalise import Normalised, normalise
from ml_phaser.crystal.phase_distributions import PhaseDistributions, hendrickson_lattman
from ml_phaser.crystal.reflections import Amplitudes, Source
from ml_phaser.crystal.symmetry import expand
from ml_phaser.phasing.combination import Combined
from ml_phaser.phasing.dual_space import sparse
from ml_phaser.phasing.problem import Problem, pose
from ml_phaser.phasing.projections import forward, inverse
from ml_phaser.phasing.starts import GivenStarts, as_given, modification
from ml_phaser.phasing.weighting import PER_SHELL

CELL, GROUP = gemmi.UnitCell(9, 11, 13, 90, 100, 90), gemmi.SpaceGroup("P 1 21 1")


def crystal() -> tuple[Amplitudes, Normalised, np.ndarray]:
    """Point-like atoms; data and true structure factors."""
    rng = np.random.default_rng(0)
    hkl = np.asarray(gemmi.make_miller_array(CELL, GROUP, 1.1), dtype=np.int32)
    hkl = hkl[~np.asarray(GROUP.operations().systematic_absences(hkl), dtype=bool)]
    f = np.zeros(len(hkl), dtype=complex)
    for atom in rng.uniform(size=(12, 3)):
        for op in GROUP.operations().sym_ops:
            f += np.exp(2j * np.pi * (hkl @ np.array(op.apply_to_xyz(atom.tolist()))))
    f *= 6 * np.exp(-8 * 0.25 / np.asarray(CELL.calculate_d_array(hkl)) ** 2)
    data = Amplitudes(hkl, np.abs(f), 0.01 * np.abs(f), CELL, GROUP, Source("none", "MTZ", ("F",), "amplitude"))
    return data, normalise(data), f


DATA, NORMALISED, TRUE = crystal()


def known_with(fom: float | np.ndarray, phase: np.ndarray | None = None) -> PhaseDistributions:
    turn = expand(DATA.hkl, GROUP).turn
    phase = np.angle(TRUE) if phase is None else phase
    return PhaseDistributions(hendrickson_lattman(phase, np.broadcast_to(fom, len(DATA)), turn != 0), turn)


def problem(held: np.ndarray | None = None) -> Problem:
    held = np.zeros(len(DATA), dtype=bool) if held is None else held
    return pose(DATA.hkl, DATA.f, 1 / np.maximum(DATA.f, 1e-3), held, CELL, GROUP, spacing=0.5)


def on_hkl(p: Problem, half: torch.Tensor) -> np.ndarray:
    return p.expansion.average(p.gather_p1(half), len(p.hkl))


def test_first_start_is_the_weighted_map_and_others_are_drawn() -> None:
    fom = np.random.default_rng(3).uniform(0, 0.95, len(DATA))
    fom[::7] = 0
    held = np.arange(len(DATA)) % 11 == 5
    p, known = problem(held), known_with(fom)
    starts = GivenStarts(p, known)
    x = starts.make(2, torch.Generator().manual_seed(0))
    first, second = (on_hkl(p, forward(y)) for y in x)
    scale = np.abs(second[~held]).sum() / DATA.f[~held].sum()
    assert first[~held] / scale == pytest.approx((known.centroid() * DATA.f)[~held], abs=0.01 * DATA.f.max())
    assert np.abs(second[~held]) / scale == pytest.approx(DATA.f[~held], abs=0.01 * DATA.f.max())
    assert np.abs(np.stack([first, second])[:, held]).max() < 1e-4 * scale * DATA.f.max()
    third = on_hkl(p, forward(starts.make(1, torch.Generator().manual_seed(1))[0]))
    assert np.abs(third - first).max() > 0.1 * scale * DATA.f.max()  # the centroid map comes once
    assert abs(np.exp(1j * np.angle((second * np.conj(TRUE))[::7])).mean()) < 0.3  # nothing known: random


def test_combination_follows_the_formula_in_every_orientation() -> None:
    """Against the sum of the two witnesses on the unique reflections, bimodal ones included."""
    rng = np.random.default_rng(4)
    turn = expand(DATA.hkl, GROUP).turn
    hl = np.where((turn == 0)[:, None], rng.normal(0, 1.5, (len(DATA), 4)), 0)
    hl[:, :2] += known_with(0.3).hl[:, :2] * (turn != 0)[:, None]
    held = np.arange(len(DATA)) % 7 == 3
    p = pose(DATA.hkl, DATA.f, 1 / np.sqrt(DATA.epsilon), held, CELL, GROUP, spacing=0.5)
    known = PhaseDistributions(hl, turn)
    model = TRUE * np.where(turn == 0, np.exp(1j * rng.normal(0, 0.8, len(DATA))), 1) * rng.uniform(0.5, 1.5, len(DATA))
    ours = on_hkl(p, Combined(p, lambda rho: rho, known).combine(p.scatter(model))[0])
    everywhere = p.expansion.asu
    e, measured = (np.abs(f) / np.sqrt(DATA.epsilon) for f in (model, TRUE))
    inverse_square = CELL.calculate_1_d2_array(p.expansion.hkl)
    shells = np.array_split(np.argsort(inverse_square, kind="stable"), len(DATA) // PER_SHELL)
    times = np.bincount(np.concatenate([np.unique(everywhere[shell]) for shell in shells]))
    whole = times == 1  # mates on both sides of an edge have two scales
    assert whole.mean() > 0.95
    for moduli in (e, measured):
        spread = moduli[everywhere]
        for shell in shells:
            moduli[everywhere[shell]] = spread[shell] / np.sqrt(np.mean(spread[shell][~held[everywhere[shell]]] ** 2))
    judged = p.places.scatter(everywhere).reshape(-1)[np.asarray(p.judge_flat)]  # of the half-complex grid
    square = np.corrcoef(e[judged] ** 2, measured[judged] ** 2)[0, 1]
    assert 0.3 < square < 0.9
    x = 2 * np.sqrt(square) / (1 - square) * e * measured * np.where(turn == 0, 1, 0.5)
    u = np.exp(1j * np.angle(model))
    total = hl[:, 0] + 1j * hl[:, 1] + 2 * (hl[:, 2] + 1j * hl[:, 3]) * np.conj(u) + x * u
    strong = (np.abs(total) > 2) & ~held & whole
    assert np.abs(np.angle(ours * np.conj(total)))[strong].max() < 0.1
    unit = float(p.target.amplitude.max()) / DATA.f.max()
    merit = np.where(turn == 0, special.i1e(np.abs(total)) / special.i0e(np.abs(total)), np.tanh(np.abs(total)))
    assert np.abs(ours)[strong] == pytest.approx((merit * unit * DATA.f)[strong], rel=0.05, abs=1e-3 * unit)


def test_a_map_that_predicts_held_out_reflections_outweighs_the_phases_given() -> None:
    """And one that does not leaves them alone."""
    held = np.arange(len(DATA)) % 7 == 3
    p = pose(DATA.hkl, DATA.f, 1 / np.sqrt(DATA.epsilon), held, CELL, GROUP, spacing=0.5)
    turn = expand(DATA.hkl, GROUP).turn
    wrong = np.angle(TRUE) + np.where(turn == 0, 2.0, 0)
    method = Combined(p, lambda rho: rho, known_with(0.5, wrong))
    shuffled = np.abs(TRUE)[np.random.default_rng(1).permutation(len(TRUE))] * np.exp(1j * np.angle(TRUE))

    def moved(model: np.ndarray) -> float:
        f = on_hkl(p, method.combine(p.scatter(model))[0])
        pick = (turn == 0) & ~held & (np.abs(model) > 0)
        return float((np.abs(f) * np.cos(np.angle(f) - wrong))[pick].sum() / np.abs(f)[pick].sum())

    assert moved(TRUE) < 0 < 0.5 < moved(shuffled)


def test_modification_improves_phases_and_stays_where_they_are() -> None:
    rng = np.random.default_rng(5)
    turn = expand(DATA.hkl, GROUP).turn
    error = np.where(turn == 0, rng.vonmises(0, 2.0, len(DATA)), 0)
    known = known_with(0.7, np.angle(TRUE) + error)
    scale = np.sqrt(DATA.epsilon / NORMALISED.expected)
    p = pose(DATA.hkl, scale * NORMALISED.f, 1 / np.sqrt(DATA.epsilon), np.zeros(len(DATA), dtype=bool), CELL, GROUP,
             spacing=0.5)  # fmt: skip
    entrant = modification(
        p, np.arange(len(DATA)), sparse(0.05), known, name="x", cycles=20, block=5, core=sparse(0.02)
    )
    x = entrant.method.advance(entrant.starts(1, torch.Generator().manual_seed(0)), 20)
    f = on_hkl(p, entrant.method.estimate(x)[0])

    def agreement(g: np.ndarray) -> float:
        return float((DATA.f**2 * np.cos(np.angle(g * np.conj(TRUE)))).sum() / (DATA.f**2).sum())

    assert agreement(f) > agreement(np.exp(1j * (np.angle(TRUE) + error))) + 0.1


@pytest.mark.parametrize("inverted", [False, True])
def test_results_return_to_the_origin_and_hand_given(inverted: bool) -> None:
    """Of P 1 21 1: any height along b, half an edge along the others."""
    origins, centre = permissible_origins(GROUP), hand_centre(GROUP)
    assert centre is not None
    shift = origins.shifts[-1] + 0.2371 * origins.directions[0] + (centre if inverted else 0)
    elsewhere = move(DATA.hkl, TRUE, shift, inverted)
    f, given = as_given(elsewhere, DATA, NORMALISED, known_with(0.8))
    assert given.turned == inverted
    assert np.abs(np.angle(f * np.conj(TRUE)))[DATA.f > 1].max() < 0.02
    assert np.abs(f) == pytest.approx(np.abs(TRUE))
    assert given.n == len(DATA)
    assert given.moved < 1 and given.map_cc > 0.99 and given.hand_margin > 0.1
    assert given.kept == pytest.approx(1 / 0.8, abs=0.01)  # better than promised


def test_a_result_of_its_own_mind_keeps_nothing() -> None:
    other = np.abs(TRUE) * np.exp(1j * np.random.default_rng(6).uniform(0, 2 * np.pi, len(DATA)))
    _, given = as_given(other, DATA, NORMALISED, known_with(0.9))
    assert given.kept < 0.5 and given.moved > 5


@pytest.mark.parametrize("released", [None, 2])
def test_phases_are_forgotten_where_that_is_asked(released: int | None) -> None:
    """A projection that changes nothing: phases known nearly to certainty decide beside random ones, until then."""
    p, known = problem(), known_with(0.95)
    entrant = modification(
        p, np.arange(len(DATA)), lambda x: x, known, name="nothing", cycles=4, block=2, core=sparse(0.1),
        released=released,
    )  # fmt: skip
    method, rng = entrant.method, np.random.default_rng(3)
    random = inverse(p.scatter(np.abs(TRUE) * np.exp(2j * np.pi * rng.random(len(TRUE)))), p.shape)
    true = p.scatter(TRUE)

    def agreement(x: torch.Tensor) -> float:
        half = forward(x)
        return float((half * true.conj()).real.sum() / (abs(half) * abs(true)).sum())

    assert agreement(method.advance(random, 2, 0)) > 0.8
    later = agreement(method.advance(random, 2, 2))
    assert later > 0.8 if released is None else abs(later) < 0.3
    finishing = entrant.finishers[0].known
    assert finishing is not None and finishing.hl.any() == (released is None)
