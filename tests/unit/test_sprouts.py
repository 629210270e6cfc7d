"""Placed pieces that grow by relaxed reflections, on made crystals whose structure factors are known."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import gemmi
import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from test_fragment_road import made

from ml_phaser import pipeline
from ml_phaser.beginnings import growth
from ml_phaser.crystal.agreement import compare
from ml_phaser.crystal.normalise import normalise
from ml_phaser.crystal.reflections import Amplitudes
from ml_phaser.notify import Silent
from ml_phaser.parameters import Options
from ml_phaser.phasing.fragments import pieces, road, solutions, sprouts
from ml_phaser.phasing.growth import Growth
from ml_phaser.phasing.search import Hunt
from ml_phaser.plan import Plan, plan_phasing

OPTIONS = Options(Path("in"), Path("map"), Path("mtz"), Path("json"), threads=1, starts="fragments", timelimit=300)
CELL = gemmi.UnitCell(14.0, 19.0, 21.0, 90, 98, 90)
RESIDUES = 6


def scattered(fixed: np.ndarray, count: int) -> np.ndarray:
    """Atoms (m, 3) in A at random, 1.4 A and more from each other and from those that are there, images too."""
    rng, orth, group = np.random.default_rng(4), np.array(CELL.orth.mat), gemmi.SpaceGroup("P 1 21 1")
    ops = [(np.array(op.rot) / op.DEN, np.array(op.tran) / op.DEN) for op in group.operations()]
    there = [x for r, t in ops for x in (fixed @ np.linalg.inv(orth).T) @ r.T + t]
    new: list[np.ndarray] = []
    while len(new) < count:
        x = rng.random(3)
        mates = [r @ x + t for r, t in ops]
        apart = np.array([*there, mates[1]]) - mates[0]
        if np.linalg.norm((apart - apart.round()) @ orth.T, axis=1).min() > 1.4:
            there += mates
            new.append(orth @ mates[0])
    return np.array(new)


@dataclass
class Sown:
    """plan : whose road has one piece; data; truth : its F; turn : the orientation of the piece"""

    plan: Plan
    data: Amplitudes
    truth: np.ndarray
    turn: np.ndarray

    def growth(self) -> Growth:
        found = growth(self.data, self.plan.entrants, self.plan.road)
        assert found is not None
        return found


@pytest.fixture(scope="module")
def sown() -> Sown:
    """A helix of six residues among five times as many atoms, at 1.05 A."""
    helix = pieces.helix(RESIDUES)
    turn = Rotation.random(rng=np.random.default_rng(1)).as_matrix()
    xyz = helix.xyz @ turn.T + np.array([4.0, 5.0, 6.0])
    others = scattered(xyz, 4 * len(helix))
    weight = np.concatenate([helix.weight, np.full(len(others), 7.0)])
    data, truth = made([np.concatenate([xyz, others])], weight, CELL, d_min=1.05)
    plan = plan_phasing(data, normalise(data), OPTIONS)
    assert plan.road is not None
    way = replace(plan.road, pieces=(helix,), wide=plan.road.scene)
    return Sown(replace(plan, road=way), data, truth, turn)


def test_a_part_in_its_place_grows_into_the_whole(sown: Sown, monkeypatch) -> None:
    plan, data, truth = sown.plan, sown.data, sown.truth
    near = np.concatenate([sown.turn[None], Rotation.random(30, rng=np.random.default_rng(3)).as_matrix()])
    monkeypatch.setattr(road, "orientations", lambda count: near)
    monkeypatch.setattr(road, "LIKELIEST", (1.0, 1.0))
    hunt = Hunt(plan.whole, plan.rows)
    sprouts.from_poses(hunt, plan.road, sown.growth(), plan.finishers, plan.n, 0, 120.0, lambda done: None)
    best = max(hunt.solutions, key=lambda s: s.probability)
    assert hunt.trials[best.trial].method == f"{sprouts.METHOD}, helix of {RESIDUES}"
    phased = np.abs(truth) * np.exp(1j * np.angle(best.f))
    assert compare(data.hkl, phased, truth, data.cell, data.spacegroup).map_cc > 0.8


def test_orientations_left_out_at_first_are_tried_when_the_likeliest_lead_nowhere(sown: Sown, monkeypatch) -> None:
    """That of the helix the last of all."""
    monkeypatch.setattr(road, "LIKELIEST", (0.25, 0.25))  # of these few, so that as many poses grow as may
    plan, data, truth = sown.plan, sown.data, sown.truth
    turns = np.concatenate([Rotation.random(30, rng=np.random.default_rng(3)).as_matrix(), sown.turn[None]])
    way = replace(plan.road, searches={}, likely={plan.road.pieces[0]: turns})
    hunt = Hunt(plan.whole, plan.rows)
    sprouts.from_poses(hunt, way, sown.growth(), plan.finishers, plan.n, 0, 120.0, lambda done: None)
    best = max(hunt.solutions, key=lambda s: s.probability)
    assert best.trial >= sprouts.GROWN
    phased = np.abs(truth) * np.exp(1j * np.angle(best.f))
    assert compare(data.hkl, phased, truth, data.cell, data.spacegroup).map_cc > 0.8


def test_no_more_poses_grow_than_wanted_and_none_when_the_time_is_up(sown: Sown, monkeypatch) -> None:
    plan = sown.plan
    monkeypatch.setattr(
        road, "orientations", lambda count: Rotation.random(8, rng=np.random.default_rng(5)).as_matrix()
    )
    monkeypatch.setattr(sprouts, "GROWN", 2)
    sprouting = sown.growth()
    lost = replace(sprouting, entrant=replace(sprouting.entrant, bar=2.0))  # none is good enough
    for clock, most in ((lambda: 0.0, 2 * 2), (iter([0.0, *[200.0] * 10**5]).__next__, 0)):
        hunt = Hunt(plan.whole, plan.rows)
        fresh = replace(plan.road, searches={}, likely={})
        sprouts.from_poses(hunt, fresh, lost, plan.finishers, plan.n, 0, 100.0, lambda done: None, clock)
        assert len(hunt.trials) == most and not hunt.solutions


def test_where_and_when_pieces_grow_first(sown: Sown, monkeypatch) -> None:
    plan, data = sown.plan, sown.data
    assert growth(data, plan.entrants, replace(plan.road, wide=None)) is None
    assert growth(data, plan.entrants, None) is None
    assert growth(data, [], plan.road) is None
    keep = data.d > 1.3
    short = replace(data, hkl=data.hkl[keep], f=data.f[keep], sigf=data.sigf[keep])
    assert growth(short, plan.entrants, plan.road) is None
    order: list[tuple[str, float]] = []
    monkeypatch.setattr(sprouts, "from_poses", lambda *args, **more: order.append(("grown", args[6])))
    monkeypatch.setattr(solutions, "from_fragments", lambda *args, **more: order.append(("judged", args[6])))
    grown = replace(plan, growth=sown.growth(), walks=None, rebuilder=None)
    monkeypatch.setattr("ml_phaser.phasing.search.search", lambda *args, **more: None)
    pipeline.phase(grown, OPTIONS, Silent(), lambda: 0.0)
    most = pipeline.GROWING * OPTIONS.timelimit
    assert order == [("grown", most), ("judged", pytest.approx(OPTIONS.timelimit - most))]
    monkeypatch.setattr(Hunt, "convinced", property(lambda hunt: True))
    order.clear()
    pipeline.phase(grown, OPTIONS, Silent(), lambda: 0.0)
    assert order == [("grown", most)]


def test_heavy_atoms_leave_time_for_pieces_that_grow(sown: Sown, monkeypatch) -> None:
    order: list[float] = []
    monkeypatch.setattr(
        "ml_phaser.phasing.heavy.solutions.from_heavy_atoms", lambda *args, **more: order.append(args[5])
    )
    monkeypatch.setattr(Hunt, "convinced", property(lambda hunt: True))
    auto = replace(OPTIONS, starts="auto", timelimit=10.0)
    plan = replace(plan_phasing(sown.data, normalise(sown.data), auto), rebuilder=None)
    assert plan.heavy is not None
    for growing in (None, sown.growth()):
        pipeline.phase(replace(plan, growth=growing), auto, Silent(), lambda: 0.0)
    assert order == [10.0 * pipeline.HEAVY_SHARE, 10.0 * pipeline.HEAVY_BESIDE]
