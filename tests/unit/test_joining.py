"""Poses found one by one that agree: the origins between them, the cross term, the models they join to."""

from __future__ import annotations

from dataclasses import replace

import gemmi
import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from test_fragment_road import apart, made, model_of, packed, road_of

from ml_phaser.crystal.normalise import normalise
from ml_phaser.phasing.fragments import pieces, road
from ml_phaser.phasing.fragments.joining import ORIGINS, SPACING, crossed, origins, partners
from ml_phaser.phasing.fragments.models import Body
from ml_phaser.phasing.fragments.refine import Fitted
from ml_phaser.phasing.fragments.road import Road
from ml_phaser.phasing.fragments.search import Poses

CELLS = {
    "P 1 21 1": gemmi.UnitCell(12.0, 11.0, 19.0, 90, 98, 90),
    "P 21 21 21": gemmi.UnitCell(16.0, 17.0, 19.0, 90, 90, 90),
    "C 1 2 1": gemmi.UnitCell(21.0, 14.0, 17.0, 90, 102, 90),
    "P 32 2 1": gemmi.UnitCell(26.0, 26.0, 30.0, 90, 90, 120),
}


def moduli(xyz: np.ndarray, weight: np.ndarray, cell: gemmi.UnitCell, name: str) -> np.ndarray:
    return np.abs(made([xyz], weight, cell, name)[1])


@pytest.mark.parametrize("name", CELLS)
def test_origins_are_those_that_moduli_cannot_tell_each_of_them_once(name: str) -> None:
    cell, piece = CELLS[name], pieces.helix(5)
    shifts = origins(gemmi.SpaceGroup(name), cell, 1.6)
    here = moduli(piece.xyz, piece.weight, cell, name)
    for shift in shifts[:: max(1, len(shifts) // 10)]:
        assert np.allclose(moduli(piece.xyz + np.array(cell.orth.mat) @ shift, piece.weight, cell, name), here)
    apart_ = shifts[:, None] - shifts
    apart_ -= apart_.round()
    assert (np.abs(apart_).max(-1) > 1e-3).sum() == len(shifts) * (len(shifts) - 1)
    along = {"P 1 21 1": cell.b, "C 1 2 1": cell.b}.get(name)  # the axis on which the origin floats
    discrete = {"P 1 21 1": 4, "C 1 2 1": 2, "P 21 21 21": 8, "P 32 2 1": 2}[name]
    assert len(shifts) == discrete * (1 if along is None else np.ceil(along / (SPACING * 1.6)))


def test_where_the_origin_floats_everywhere_there_are_none() -> None:
    big = gemmi.UnitCell(30, 31, 32, 85, 97, 103)
    assert origins(gemmi.SpaceGroup("P 1"), big, 1.6).shape == (0, 3)
    assert len(origins(gemmi.SpaceGroup("P 1"), gemmi.UnitCell(7, 6, 5, 85, 97, 103), 1.6)) <= ORIGINS


def two(name: str, seed: int = 1) -> tuple[Road, pieces.Piece, np.ndarray, np.ndarray]:
    """A road in a crystal of two strands, the strand, and both of them in place."""
    strand = pieces.polyalanine(4, (-120.0, 130.0), "strand of 4")
    empty = road_of(made([strand.xyz], strand.weight, CELLS[name], name)[0], [strand], 300)
    _, one = packed(empty, strand, (), seed)
    _, other = packed(empty, strand, (Body(strand, torch.from_numpy(one).float()),), seed + 1)
    way = road_of(made([one, other], strand.weight, CELLS[name], name)[0], [strand], 300)
    way.wide = way.scene
    return way, strand, one, other


def strewn(
    way: Road, strand: pieces.Piece, right: np.ndarray, name: str, wrong: int = 150
) -> tuple[tuple[pieces.Piece, Fitted], int]:
    """A pool of wrong poses with a right one among them at some other permissible origin, and where it is."""
    rng = np.random.default_rng(4)
    frac = np.array(CELLS[name].frac.mat)
    shifts = origins(gemmi.SpaceGroup(name), CELLS[name], 1.6)
    middle = right.mean(0)
    xyz = [strand.xyz @ t.T for t in Rotation.random(wrong, rng=rng).as_matrix()]
    places = list(rng.random((wrong, 3)))
    xyz.insert(40, right - middle)
    places.insert(40, frac @ middle + shifts[rng.integers(len(shifts))])
    there = Fitted(*(torch.from_numpy(np.array(x)).float() for x in (xyz, places)), torch.zeros(len(xyz)))
    return (strand, there), 40


@pytest.mark.parametrize("name", CELLS)
def test_a_right_pose_at_another_origin_is_the_best_partner_and_is_brought_to_its_place(name: str) -> None:
    way, strand, one, other = two(name)
    pool, _ = strewn(way, strand, other, name)
    known = way.fixed((Body(strand, torch.from_numpy(one).float()),))
    shifts = origins(way.spacegroup, CELLS[name], 1.6)
    found = partners(way.scene, known, [pool], shifts, -np.inf)
    assert len(found) == len(pool[1]) and found[0].agreement > 1.5 * found[1].agreement > 0
    there = (found[0].xyz + found[0].shift @ way.scene.orth.T)[0].numpy()
    assert apart(there, other, CELLS[name], way.spacegroup) < 0.5  # a step along a floating axis
    least = found[1].agreement
    assert [p.agreement for p in partners(way.scene, known, [pool], shifts, least)] == [found[0].agreement, least]
    assert partners(way.scene, known, [pool], shifts[:0], 0.0) == partners(way.scene, known, [], shifts, 0.0) == []


def test_agreement_is_the_correlation_of_the_cross_term_in_standard_errors() -> None:
    """Structure factors by summation over atoms, weights by multiplicity."""
    name = "P 21 21 21"
    way, strand, one, other = two(name)
    data = made([one, other], strand.weight, CELLS[name], name)[0]
    f = [made([x], strand.weight, CELLS[name], name)[1] for x in (one, other)]
    b = np.exp(-2 * np.asarray(data.cell.calculate_1_d2_array(data.hkl)))  # of ``made``, not of poses
    e2, w, eps = normalise(data).e2.clip(max=12.0), way.scene.weight.double().numpy(), data.epsilon
    cross = 2 * (f[0] * f[1].conj()).real / b**2 / eps
    y = e2 - w @ e2
    wanted = (w @ (cross * y)) / np.sqrt((w @ (2 * np.abs(f[0] * f[1] / b**2 / eps) ** 2)) * (w @ y**2) * (w @ w))
    known = way.fixed((Body(strand, torch.from_numpy(one).float()),))
    there = way.fixed((Body(strand, torch.from_numpy(other).float()),))[None]
    assert float(crossed(way.scene, known, there, torch.ones(len(e2), 1).cfloat())) == pytest.approx(wanted, rel=1e-3)


def test_agreement_by_chance_is_in_standard_deviations() -> None:
    way, strand, one, other = two("P 21 21 21")
    pool, right = strewn(way, strand, other, "P 21 21 21", wrong=400)
    known = way.fixed((Body(strand, torch.from_numpy(one).float()),))
    wrong = np.arange(401) != right
    poses = pool[1].take(torch.from_numpy(np.flatnonzero(wrong)))
    chance = [p.agreement for p in partners(way.scene, known, [(strand, poses)], np.zeros((1, 3)), -np.inf)]
    assert abs(np.mean(chance)) < 0.3 and np.std(chance) == pytest.approx(1, abs=0.01)


def test_models_are_joined_to_what_agrees_if_the_judge_approves_while_there_is_room_and_time(monkeypatch) -> None:
    name = "P 21 21 21"
    way, strand, one, other = two(name)
    single = model_of(way, strand, one)
    pool, _ = strewn(way, strand, other, name)

    def joined(late: bool = False, **changes: object) -> Road:
        road_ = replace(way, models=[single], **{"pools": [pool], "met": {}, **changes})
        road_.join(lambda: late)
        return road_

    made_ = joined()
    best = made_.ranked()[0]
    assert len(best.bodies) == 2 and best.judged > single.judged + road.GAIN
    assert apart(best.bodies[1].xyz.numpy(), other, CELLS[name], way.spacegroup) < 0.4
    assert all(len(m.bodies) <= 2 for m in made_.models)  # nothing agrees with both
    assert joined(late=True).models == [single] and joined(room=30).models == [single]
    assert joined(pools=[]).models == [single]  # nothing was searched for
    found = list(made_.models)
    made_.join(lambda: False)
    assert made_.models == found  # what was tried is not tried again,
    made_.pools.append(pool)
    made_.join(lambda: False)
    assert len(made_.models) > len(found)  # what is found later is
    other_judge = replace(way.judge)
    monkeypatch.setattr(type(other_judge), "score", lambda self, f: single.judged)
    assert joined(judge=other_judge).models == [single]


def test_what_a_search_finds_is_kept_to_be_joined_in_large_wholes_alone(monkeypatch) -> None:
    way, strand, one, _ = two("P 21 21 21")
    turns = torch.from_numpy(Rotation.random(130, rng=np.random.default_rng(0)).as_matrix()).float()
    poses = Poses(turns, torch.rand(130, 3, generator=torch.Generator().manual_seed(0)), torch.zeros(130))
    monkeypatch.setattr(road, "SEARCHED_WIDE", 100)
    for wide in (None, way.scene):
        here = replace(way, wide=wide, pools=[], met={})
        monkeypatch.setattr(here, "searched", lambda *a: poses)
        monkeypatch.setattr(
            here, "free", lambda piece, found, fixed, most: found.take(torch.arange(most).clip(max=129))
        )
        here.refined(strand, (), lambda: True, False)
        assert len(here.pools) == (wide is not None)
        here.refined(strand, (Body(strand, torch.from_numpy(one).float()),), lambda: True, False)
        assert len(here.pools) == (wide is not None)  # poses beside another are at its origin
    ((_, pool),) = here.pools
    assert len(pool.xyz) == len(poses) and torch.equal(pool.shift[100:], poses.shift[100:])
    atoms = torch.from_numpy(strand.xyz).float()
    assert torch.allclose(pool.xyz[-1], atoms @ turns[-1].T, atol=1e-5)
    assert not torch.allclose(pool.xyz[0], atoms @ turns[0].T, atol=1e-3)  # refined


@pytest.mark.parametrize("late", [True, False])
def test_small_parts_of_a_large_whole_are_refined_on_some_reflections_and_fit_all(monkeypatch, late: bool) -> None:
    way, strand, one, _ = two("P 21 21 21")
    some = way.scene.outline(len(way.scene.rows) // 2)
    here = replace(way, wide=some, pools=[], met={})
    weight = torch.from_numpy(strand.weight).float()
    turns = torch.from_numpy(Rotation.random(30, rng=np.random.default_rng(0)).as_matrix()).float()
    poses = Poses(turns, torch.rand(30, 3, generator=torch.Generator().manual_seed(0)), torch.zeros(30))
    monkeypatch.setattr(here, "searched", lambda *a: poses)
    monkeypatch.setattr(here, "free", lambda piece, found, fixed, most: found)
    for fixed in ((), (Body(strand, torch.from_numpy(one).float()),)):
        known = here.fixed(fixed)
        near, there = here.near(known)
        assert near is some and (there is None) == (not fixed)
        if there is not None and known is not None:
            rows = [list(way.scene.rows).index(r) for r in some.rows]
            assert torch.equal(there, known[rows])
        found = here.refined(strand, fixed, lambda: late, False)
        assert len(found) == road.BENT_WIDE
        moved = found.xyz + (found.shift @ way.scene.orth.T)[:, None]
        f = way.scene.structure(moved, weight)
        wanted = way.scene.correlation(f if known is None else f + known)
        assert torch.allclose(found.score, wanted, atol=1e-4)
        before = way.scene.fits(
            torch.einsum("bij,mj->bmi", turns, torch.from_numpy(strand.xyz).float()), poses.shift, weight, known
        )
        assert float(found.score.mean()) > float(before.topk(road.BENT_WIDE).values.mean())
    assert here.near(None)[0] is some and replace(here, wide=None).near(None)[0] is way.scene
