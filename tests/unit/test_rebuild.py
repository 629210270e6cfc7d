"""Free atoms and a projection of densities in turn: what they lead to, when they are taken, how long they may go on."""

import itertools
from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest
from resolved import Made
from test_completion import OPTIONS, data_of, solution

from ml_phaser import arrays, pipeline
from ml_phaser.crystal.agreement import compare
from ml_phaser.crystal.normalise import normalise
from ml_phaser.notify import Silent
from ml_phaser.outcome import Fragments, Trial
from ml_phaser.phasing import rebuild
from ml_phaser.phasing.finish import Solution
from ml_phaser.phasing.projections import forward
from ml_phaser.phasing.rebuild import Rebuilder, rebuilder
from ml_phaser.phasing.search import Hunt, search
from ml_phaser.plan import plan_phasing

GROUP = "P 1 21 1"


def positive(x):
    """A projection that knows nothing of molecules."""
    return x.clip(min=0)


@pytest.fixture(scope="module")
def made():
    return Made(GROUP, d_min=1.3, count=40, noise=0.01, seed=2, edges=(12.0, 11.0, 13.0))


def learned(made, **changes):
    return plan_phasing(data_of(made), normalise(data_of(made)), replace(OPTIONS, **{"engine": "auto", **changes}))


@pytest.fixture(scope="module")
def builder(made):
    found = learned(made).rebuilder
    assert found is not None
    return replace(found, projection=positive, cycles=4)  # more lead such a projection astray


def begun(made, phases, **changes):
    """Phases, with moduli that tell nothing of the reflections held out."""
    f = made.rng.permutation(np.abs(made.f)) * np.exp(1j * phases)
    changes = {"score": 0.1, "symmetry": np.nan, **changes}
    return solution(f, trial=3, finisher="learned, with the model", **changes)


def agreement(made, found):
    return compare(made.hkl, np.abs(made.f) * np.exp(1j * np.angle(found.f)), made.f, made.cell, made.spacegroup).map_cc


def random_phases(made, seed=1):
    return np.random.default_rng(seed).uniform(0, 2 * np.pi, len(made.f))


PLACED = Fragments("helix", 0.2, 0.1, (), 0.12, 0.01)


def test_half_a_structure_becomes_all_of_it(made, builder):
    before = begun(made, made.spoilt(1.0), fragments=PLACED)
    assert agreement(made, before) < 0.65
    after = builder(before)
    assert agreement(made, after) > 0.9
    assert after.worth <= 1 and after.probability > 0.9 > before.probability
    assert after.trial == 3 and after.polished and after.finisher == "learned, with the model, atoms in turn"
    # Held-out reflections are in neither part: what they say counts for the merit as in the road.
    held, rest = 3 * builder.problem.held.sum(), (~builder.problem.held).sum()
    gain = after.score - builder.predicted(before.f)
    assert after.merit - 0.12 == pytest.approx(gain * held / (held + rest))
    assert after.fragments.lead - 0.01 == pytest.approx(after.merit - 0.12)
    assert not (builder.completer.moduli.used[builder.rows] & builder.problem.held).any()


def test_what_leads_nowhere_stays_as_it_was(made, builder):
    before = begun(made, random_phases(made))
    assert builder(before) is before


def test_less_is_asked_of_what_was_sure(made, builder):
    """A gain of two standard errors."""
    held = builder.problem.held.sum()

    class Told(Rebuilder):
        def turn(self, solution, building):
            return replace(solution, score=max(0.0, self.predicted(before.f)) + 2 / np.sqrt(held)), 5.0

    told = Told(builder.completer, builder.problem, builder.rows, builder.projection)
    before = begun(made, made.spoilt(0.3))
    assert told(before) is before
    sure = replace(before, worth=0.1)
    assert sure.probability > rebuild.SURE and told(sure).score > before.score


@pytest.mark.parametrize(("scores", "turns", "kept"), [
    ((0.4, 0.7, 0.7, 0.6, 0.9), 4, 0.7),  # a first turn may predict less: the second goes on from it
    ((0.4, 0.4, 0.409, 0.9), 3, None),
    ((0.507, 0.512, 0.518, 0.523, 0.526, 0.9), 5, 0.526),  # small gains add up
])  # fmt: skip
def test_every_turn_goes_on_from_the_last(made, builder, monkeypatch, scores, turns, kept):
    begins = []

    class Told(Rebuilder):
        def turn(self, solution, building):
            begins.append(solution.score)
            return replace(solution, score=scores[len(begins) - 1]), 5.0

        def predicted(self, f):
            return 0.5

    monkeypatch.setattr(rebuild, "LUCK", ((100.0, 500.0), (0.0, 0.0)))
    told = Told(builder.completer, builder.problem, builder.rows, builder.projection)
    before = begun(made, made.spoilt(0.3))
    after = told(before)
    assert begins == [0.1, *scores[: turns - 1]]
    assert after is before if kept is None else after.score == kept


@pytest.mark.parametrize(("d_min", "told"), [(None, "--- ++ -"), (1.79, "--- -- -")])
def test_in_large_wholes_the_network_begins_and_atoms_take_turns_with_it(made, builder, monkeypatch, d_min, told):
    """Whichever no longer gains leaves the best map to the other; where atoms are not seen there are none."""
    scores, begins, by = (0.3, 0.5, 0.45, 0.6, 0.6, 0.6, 0.9), [], []

    class Told(Rebuilder):
        def turn(self, solution, building):
            begins.append((solution.score, solution.veil))
            by.append("+" if building else "-")
            return replace(solution, score=scores[len(by) - 1], veil="one"), 5.0

    monkeypatch.setattr(Told, "wet", True)
    problem = builder.problem if d_min is None else replace(builder.problem, d_min=d_min)
    Told(builder.completer, problem, builder.rows, builder.projection)(begun(made, made.spoilt(0.3)))
    assert "".join(by) == told.replace(" ", "")
    if d_min is None:
        assert begins == [(0.1, None), (0.3, "one"), (0.5, "one"), (0.5, None), (0.6, "one"), (0.6, None)]


@pytest.mark.parametrize(("worth", "score", "wet", "taken"), [
    (1.4, 0.42, True, True), (1.6, 0.42, True, False), (1.4, 0.38, True, False), (1.4, 0.42, False, False),
])  # fmt: skip
def test_atoms_of_large_wholes_tell_earlier(made, builder, monkeypatch, worth, score, wet, taken):
    """Of maps that predict no less than the map before, up to a standard error, 0.1 here."""
    problem = replace(builder.problem, held=np.arange(len(builder.problem.held)) < 100)

    class Told(Rebuilder):
        def turn(self, solution, building):
            return replace(solution, score=score, finisher="turned"), worth

        def predicted(self, f):
            return 0.5

    monkeypatch.setattr(Told, "wet", wet)
    told = Told(builder.completer, problem, builder.rows, builder.projection)
    before = begun(made, made.spoilt(0.3), fragments=PLACED)
    after = told(before)
    assert (after.finisher == "turned") == taken and (after is before) != taken
    assert not taken or (after.worth == worth and after.merit < PLACED.merit)
    coarse = Told(builder.completer, replace(problem, d_min=1.7), builder.rows, builder.projection)
    assert coarse(before).worth == before.worth  # wrong atoms explain such data, too: the verdict does not hear of it


def test_the_clock_ends_it(made, builder):
    before = begun(made, made.spoilt(1.0))
    assert builder(before, lambda: 0.5 * builder.cost) is before
    calls = []
    counted = replace(builder, projection=lambda x: calls.append(1) or positive(x))
    left = itertools.chain([10 * builder.cost], itertools.repeat(0.5 * builder.cost))
    told = []
    counted(before, lambda: next(left), lambda: told.append(len(calls)))
    assert told == [len(calls)] == [builder.cycles]  # of one turn, which was told of


def test_reflections_finer_than_the_network_sees_have_the_phases_of_atoms():
    fine = Made(GROUP, d_min=1.1, count=30, seed=4, edges=(11.0, 10.0, 12.0))
    builder = replace(learned(fine).rebuilder, projection=positive, cycles=4)
    assert len(builder.rows) < len(fine.f)
    after = builder(begun(fine, fine.spoilt(0.6)))
    unseen = np.setdiff1d(np.arange(len(fine.f)), builder.rows)
    assert agreement(fine, after) > 0.95
    kept = np.abs(fine.f[unseen]) @ np.cos(np.angle(after.f[unseen]) - np.angle(fine.f[unseen]))
    assert kept / np.abs(fine.f[unseen]).sum() > 0.9
    # Their moduli are on one scale with those the network gives.
    sizes = [np.abs(after.f[rows]).mean() / np.abs(fine.f[rows]).mean() for rows in (unseen, builder.rows)]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.2)


def test_who_is_worth_it(made, builder):
    held = 100
    assert not builder.promising(begun(made, made.spoilt(0.5), score=0.15, held=held))
    assert builder.promising(begun(made, made.spoilt(0.5), score=0.25, held=held))
    assert builder.promising(begun(made, made.spoilt(0.5), score=0.0, held=held, fragments=PLACED))
    atoms = builder.completer(begun(made, made.spoilt(0.5)))
    assert atoms.atoms is not None and not builder.promising(atoms)


def test_a_search_goes_on_with_the_best_first(made, builder, monkeypatch):
    seen = []

    class Told(Rebuilder):
        def __call__(self, solution, time_left=lambda: 1e9, tell=lambda: None):
            seen.append(solution.trial)
            return replace(solution, score=0.9, r_work=0.1, worth=0.1) if solution.trial == 1 else solution

    told = Told(builder.completer, builder.problem, builder.rows, builder.projection)
    hunt = Hunt(builder.problem)
    hunt.trials = [Trial(i, "", 0, 1, 1.0, 0.3, 0.5, 0.5) for i in range(4)]
    f = np.abs(made.f) * np.exp(1j * made.spoilt(0.5))
    hunt.solutions = [replace(solution(f, score=0.5 - i / 20, held=50, symmetry=0.0), trial=i) for i in range(4)]
    assert not hunt.convinced
    hunt.rebuild(told, lambda: 0.5 * told.cost)
    assert seen == []
    hunt.rebuild(told, lambda: 1e9)
    assert seen == [0, 1] and hunt.convinced  # and nobody after it
    assert [s.trial for s in hunt.solutions] == [1, 0, 2, 3]
    assert hunt.trials[1].score == 0.9 and hunt.trials[1].r_work == 0.1
    hunt.rebuild(told, lambda: 1e9, only=3)
    assert seen == [0, 1, 3]  # nobody but whom it is asked of, whatever convinces already


def test_where_turns_came_to_an_end_they_are_not_begun_again(made, builder):
    seen = []

    class Told(Rebuilder):
        def __call__(self, solution, time_left=lambda: 1e9, tell=lambda: None):
            seen.append(solution.trial)
            return solution

    told = Told(builder.completer, builder.problem, builder.rows, builder.projection)
    hunt = Hunt(builder.problem)
    hunt.trials = [Trial(i, "", 0, 1, 1.0, 0.3, 0.5, 0.5) for i in range(3)]
    f = np.abs(made.f) * np.exp(1j * made.spoilt(0.5))
    hunt.solutions = [replace(solution(f, score=0.4 - i / 20, held=50, symmetry=np.nan), trial=i) for i in range(3)]
    left = itertools.chain([1e9, 0.0], itertools.repeat(1e9))
    hunt.rebuild(told, lambda: next(left), only=0)
    assert seen == [0]  # but the time was up
    hunt.rebuild(told, lambda: 1e9, only=0)
    hunt.rebuild(told, lambda: 1e9)
    assert seen == [0, 0, 1, 2]
    hunt.add(replace(hunt.solutions[0], score=0.45))  # of the same trial, and better
    hunt.rebuild(told, lambda: 1e9)
    assert seen == [0, 0, 1, 2, 0]


def test_time_is_kept_for_it(made, monkeypatch):
    """Of the pipeline's: as much as most maps need, a third at most; what is not needed goes to other starts."""
    given, further = [], []

    def look(plan, options, notify, now, seconds):
        given.append(seconds)
        return Hunt(plan.whole, plan.rows, solutions=[], trials=[])

    def at_random(plan, options, hunt, seconds, tell, now):
        further.append(seconds)

    monkeypatch.setattr(pipeline, "look", look)
    monkeypatch.setattr(pipeline, "at_random", at_random)
    plan = learned(made)
    pipeline.phase(plan, OPTIONS, Silent(), lambda: 0.0)
    assert given[0] == pytest.approx(60 - plan.rebuilder.wanted)
    short = replace(OPTIONS, timelimit=plan.rebuilder.wanted)
    pipeline.phase(plan, short, Silent(), lambda: 0.0)
    assert given[1] == pytest.approx((1 - pipeline.REBUILDING) * short.timelimit)
    pipeline.phase(replace(plan, rebuilder=None), OPTIONS, Silent(), lambda: 0.0)
    assert given[2] == 60
    assert further == [60, short.timelimit]  # by a clock that stands still
    monkeypatch.setattr(Hunt, "convinced", property(lambda hunt: True))
    pipeline.phase(plan, OPTIONS, Silent(), lambda: 0.0)
    assert len(further) == 2


def test_a_search_that_goes_on_takes_other_starts(made):
    """Nothing is cycled, so that what is finished is the starts themselves."""
    plan = learned(made, engine="classical")
    begun = []

    class Seen:
        name = "seen"

        def advance(self, x, cycles, done=0):
            begun.append(arrays.to_numpy(x))
            return x

        def estimate(self, x):
            return forward(x)

    entrant = replace(plan.entrants[0], method=Seen(), batch=2, cycles=1, block=1)
    hunt = Hunt(plan.whole, plan.rows)
    for trials in (2, 4):
        search(
            [entrant], plan.finishers, plan.whole, plan.n, seconds=60, most_trials=trials, seed=3,
            progress=lambda *_: None, hunt=hunt,
        )  # fmt: skip
    assert len(begun) == 2 and np.abs(begun[0] - begun[1]).max() > 0.1


def test_where_it_cannot_pay_it_is_not_tried(made, builder):
    way = (builder.completer, builder.problem, builder.rows, positive)
    assert rebuilder(*way, 60.0) is not None
    assert rebuilder(*way, builder.cost) is None
    assert rebuilder(None, *way[1:], 60.0) is None
    assert learned(Made(GROUP, d_min=1.7, count=20)).rebuilder is None
    large = {"count": 20, "edges": (22.0, 21.0, 23.0)}  # in name: room, which is what counts
    assert learned(Made(GROUP, d_min=1.7, **large), timelimit=900.0).rebuilder is not None
    assert learned(Made(GROUP, d_min=2.4, **large), timelimit=900.0).rebuilder is None  # beyond the network's reach
    assert learned(Made(GROUP, d_min=1.7, **large), timelimit=900.0).completer is None
    assert learned(made, engine="classical").rebuilder is None


def test_solutions_without_pieces_get_no_merit(builder, made):
    plain = begun(made, made.spoilt(0.2))
    assert builder.credited(plain, 0.3, 0.5).fragments is None
    assert isinstance(builder.credited(plain, 0.3, 0.5), Solution) and builder.credited(plain, 0.3, 0.5).worth == 0.5


class Ways(Rebuilder):
    """With ways of its own, that tell who is asked."""

    asked: ClassVar[list[str]] = []

    @property
    def ways(self):
        def told(name, projection):
            return lambda x: self.asked.append(name) or projection(x)

        return {"": told("", lambda x: -x), "right": told("right", positive), "lost": told("lost", lambda x: x * 0 + 1)}


def test_the_way_that_predicts_most_is_gone_on_with(made, builder):
    """Tried for half of the cycles, the best for the others; the next turn goes on with it."""
    Ways.asked.clear()
    ways = Ways(builder.completer, builder.problem, builder.rows, builder.projection, builder.cycles)
    before = begun(made, made.spoilt(0.8))
    after, _ = ways.turn(before, True)
    assert ways.asked == 2 * [""] + 2 * ["right"] + 2 * ["lost"] + 2 * ["right"]
    assert after.veil == "right" and after.finisher == "learned, with the model, atoms in turn, right"
    Ways.asked.clear()
    again, _ = ways.turn(after, True)
    assert ways.asked == builder.cycles * ["right"]
    assert again.finisher == after.finisher
    plain, _ = replace(builder).turn(before, True)
    assert plain.veil == "" and plain.finisher == "learned, with the model, atoms in turn"


def test_all_ways_are_tried_again_where_one_leads_no_further(made, builder):
    veils = []

    class Told(Rebuilder):
        def turn(self, solution, building):
            veils.append(solution.veil)
            return replace(solution, score=0.4, veil="one"), 5.0

    Told(builder.completer, builder.problem, builder.rows, builder.projection)(begun(made, made.spoilt(0.3)))
    assert veils == [None, "one", None]


def test_where_atoms_are_not_seen_the_network_goes_on_alone():
    large = {"count": 20, "edges": (22.0, 21.0, 23.0)}
    coarse = Made(GROUP, d_min=1.9, **large)
    plan = learned(coarse, timelimit=900.0)
    builder = plan.rebuilder
    assert not builder.atoms and builder.wet and len(builder.ways) == 3
    assert any("flat solvent and the learned projection in turn" in said for said in plan.choices)
    after, worth = replace(builder, projection=positive, cycles=4).turn(begun(coarse, coarse.spoilt(0.5)), False)
    assert worth == np.inf and rebuild.turned(after)
    assert after.finisher.startswith("learned, with the model, on and on")
    fine = learned(Made(GROUP, d_min=1.7, **large), timelimit=900.0).rebuilder
    assert fine.atoms and fine.cost > builder.cost
    named = replace(after, finisher="learned, on and on, flat solvent")
    assert rebuild.turned_from(named) == "learned" and not rebuild.turned(replace(after, finisher="learned"))
