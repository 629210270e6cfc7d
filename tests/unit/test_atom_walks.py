"""Free atoms from random phases."""

from dataclasses import replace

import numpy as np
import pytest
from resolved import Made
from test_completion import OPTIONS, data_of, planned, solution

from ml_phaser.crystal.agreement import compare
from ml_phaser.crystal.normalise import normalise
from ml_phaser.phasing import search as searching
from ml_phaser.phasing.atom_search import Walk
from ml_phaser.phasing.atom_walks import METHOD, walks
from ml_phaser.phasing.seeds import Seeds
from ml_phaser.plan import plan_phasing


@pytest.fixture(scope="module")
def made():
    return Made(count=12, d_min=1.3, seed=3, edges=(5.5, 6.0, 6.0), noise=0.05)


def walked(made, seed, blocks=10):
    """The best worth of looks, the atoms, and the correlation of their map with gemmi's structure factors."""
    walk = Walk(made.moduli(), (seed,), 13.0)
    found = []
    for _ in range(blocks):
        walk.block()
        found.append(walk.look())
        if found[-1].worth < 0.12:
            break
    best = min(found, key=lambda x: x.worth)
    phased = made.amplitude * np.exp(1j * np.angle(best.f))
    return best, compare(made.hkl, phased, made.f, made.cell, made.spacegroup).map_cc


@pytest.mark.parametrize("group", ["P 1", "P 21"])
def test_a_crystal_is_solved_from_random_phases(group):
    """Atoms that the data do not resolve, in one walk of a few."""
    count, edges = (12, (5.5, 6.0, 6.0)) if group == "P 1" else (9, (6.0, 6.5, 7.0))
    crystal = Made(group, 1.3, count, seed=3, edges=edges, noise=0.05)
    found = [walked(crystal, seed) for seed in range(3)]
    best, cc = min(found, key=lambda x: x[0].worth)
    assert best.worth < 0.12 and cc > 0.97
    assert abs(len(best.atoms) - count) <= 1


def test_no_more_atoms_than_there_is_room_for(made):
    walk = Walk(made.moduli(), (0,), 20.0)
    assert walk.most == int(made.cell.volume / 20)
    lowest = [walk.cycle() for _ in range(8)]
    assert 0 < len(walk.atoms) <= walk.most and walk.cycles == 8
    assert walk.best[0] == min(lowest) and np.isfinite(lowest).all()


def test_reflections_held_out_are_not_seen(made):
    """Walks are the same whatever these are; their starts differ by seed."""
    moduli = made.moduli()
    spoilt = replace(moduli, f=np.where(moduli.used, moduli.f, 7.0))
    first, second, other = (Walk(m, s, 13.0) for m, s in ((moduli, (1,)), (spoilt, (1,)), (moduli, (2,))))
    for walk in (first, second, other):
        walk.cycle()
    np.testing.assert_array_equal(first.atoms.frac, second.atoms.frac)
    assert not np.allclose(first.point, other.point)
    assert len(first.point) == moduli.used.sum()


def hunted(made, **changes):
    plan = planned(made, **changes)
    clock = iter(np.arange(0, 1e6, 0.01))
    hunt = searching.search(
        plan.entrants, plan.finishers, plan.whole, plan.n, seconds=20.0, most_trials=None, seed=0,
        progress=lambda *_: None, polisher=plan.last_touch, walks=plan.walks, now=lambda: float(next(clock)),
    )  # fmt: skip
    return plan, hunt


def test_a_search_stops_at_atoms_that_explain_the_data(made):
    _, hunt = hunted(made, timelimit=20.0)
    best = hunt.solutions[0]
    assert hunt.convinced and best.probability >= searching.CONVINCED
    assert hunt.trials[best.trial].method == METHOD and hunt.trials[best.trial].finished
    assert best.worth < 1 and len(best.atoms) >= 11
    phased = made.amplitude * np.exp(1j * np.angle(best.f))
    assert compare(made.hkl, phased, made.f, made.cell, made.spacegroup).map_cc > 0.97
    assert np.isnan(best.symmetry)  # the group was imposed
    again = hunted(made, timelimit=20.0)[1]
    assert [t.r_work for t in again.trials] == [t.r_work for t in hunt.trials]


def test_walks_wait_for_nothing_and_no_longer_than_their_lead(made, monkeypatch):
    """Before densities for the time of their lead, then as long as they."""
    plan = planned(made, timelimit=20.0)
    order, now, many = [], [0.0], replace(plan.walks, lead=1.5)

    def spend(name, seconds):
        def act(first, *_, **__):
            order.append(name)
            now[0] += seconds
            if first is many:
                many.spent += seconds

        return act

    monkeypatch.setattr(searching, "_walk", spend("walk", 1.0))
    monkeypatch.setattr(searching, "_batch", spend("batch", 3.0))
    hunt = searching.Hunt(plan.whole)
    hunt.solutions.append(solution(made.f, score=0.0))
    searching.search(
        plan.entrants, plan.finishers, plan.whole, plan.n, seconds=17.0, most_trials=None, seed=0,
        progress=lambda *_: None, hunt=hunt, walks=many, now=lambda: now[0],
    )  # fmt: skip
    assert plan.walks.share == 1
    assert order == ["walk"] * 2 + ["batch"] + ["walk"] * 3 + ["batch"] + ["walk"] * 3 + ["batch"]


def test_walks_come_before_pieces_and_all_else(made):
    """For their lead; what convinces then ends the search, with its last touch."""
    from ml_phaser.notify import Silent
    from ml_phaser.pipeline import phase

    plan = planned(made, timelimit=30.0)
    clock = iter(np.arange(0, 1e6, 0.01))
    hunt = phase(plan, replace(OPTIONS, timelimit=30.0), Silent(), lambda: float(next(clock)))
    assert hunt.convinced and {t.method for t in hunt.trials} == {METHOD}
    assert plan.walks.spent > 0 and hunt.solutions[0].polished
    told = []
    late = searching.Hunt(plan.whole)
    many = replace(plan.walks, walk=None, spent=0.0, lead=1e-9)
    searching.walk_first(many, late, 0, told.append)
    assert len(late.trials) == 1 and told and max(told) == 1.0  # a block at least, and no more than the lead
    searching.walk_first(many, late, 0, told.append)
    assert late.trials[0].cycles == many.cycles


def test_where_walks_are_tried(made):
    """Where they are cheap, and nothing is given to begin with."""
    assert planned(made).walks is not None
    assert planned(made, starts="random").walks is not None
    counted = planned(made, trials=4)
    assert counted.walks is None and any("starts are counted" in said for said in counted.choices)
    free = planned(made).completer
    assert walks(free, 1.3, 0.1, 0) is None and walks(None, 1.3, 60.0, 0) is None
    poor, good = walks(free, 1.3, 8.0, 0), walks(free, 1.0, 8.0, 0)
    assert 0 < poor.lead <= 4.0 and poor.share == 1  # half of the time
    assert good.lead == 0 and good.share < 0.5  # densities come first
    large = Made(count=60, d_min=1.2, edges=(12.0, 13.0, 14.0))
    assert planned(large, timelimit=5.0).walks is None
    late = planned(large, timelimit=600.0).walks
    assert late.lead == 0 and late.share == good.share
    assert planned(Made(count=80, d_min=1.2, edges=(16.0, 17.0, 16.0)), timelimit=600.0).walks is None  # hopeless
    data = data_of(made)
    seeds = Seeds(np.angle(made.f), np.arange(len(made.f)) < 40)
    assert plan_phasing(data, normalise(data), OPTIONS, seeds).walks is None


def test_every_walk_has_other_phases_and_another_number_of_atoms(made):
    many = planned(made).walks
    assert many.over
    begun = []
    for trial in range(3):
        many.begin(trial)
        begun.append((many.walk.most, many.walk.point[0]))
        assert many.trial == trial and not many.over and many.cycles == 0
    assert len({most for most, _ in begun}) == 3 and len({point for _, point in begun}) == 3
