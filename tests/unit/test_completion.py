"""Free atoms as the last touch of a search: when they are tried, when they are taken."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from resolved import Made

from ml_phaser.crystal.agreement import compare
from ml_phaser.crystal.normalise import normalise
from ml_phaser.crystal.reflections import Amplitudes, Source
from ml_phaser.outcome import Trial
from ml_phaser.parameters import Options
from ml_phaser.phasing.completion import LastTouch
from ml_phaser.phasing.finish import Solution
from ml_phaser.phasing.free_atoms import TRIES, refine_atoms
from ml_phaser.phasing.polish import WORTH_IT
from ml_phaser.phasing.search import Hunt
from ml_phaser.plan import plan_phasing

NONE = Path("none")
OPTIONS = Options(NONE, NONE, NONE, NONE, timelimit=60.0, threads=1, engine="classical", device="cpu")


def data_of(made):
    source = Source("simulated", "simulated", ("F", "SIGF"), "amplitude")
    f = 5 * np.abs(made.amplitude)
    return Amplitudes(made.hkl, f, 0.02 * f + 0.01, made.cell, made.spacegroup, source)


def planned(made, **changes):
    data = data_of(made)
    normalised = normalise(data)
    return plan_phasing(data, normalised, replace(OPTIONS, **changes))


def solution(f, **changes):
    return replace(Solution(f, 0.3, 0.4, 0.9, 60, 0, 0.4, 1.0, "sparse"), **changes)


@pytest.fixture(scope="module")
def made():
    return Made(count=20, d_min=1.0, seed=5)


def test_atoms_replace_a_worse_density(made):
    completer = replace(planned(made).completer, tries=1)
    before = solution(np.abs(made.f) * np.exp(1j * made.spoilt(0.8)))
    after = completer(before)
    assert after.polished and after.finisher == "sparse, atoms"
    assert len(after.atoms) == 20
    assert after.score > 0.95 and after.held == completer.held.sum()
    assert after.r_work < 0.06
    phased = np.abs(made.f) * np.exp(1j * np.angle(after.f))
    assert compare(made.hkl, phased, made.f, made.cell, made.spacegroup).map_cc > 0.99
    unseen = completer.held
    assert not (completer.moduli.used & unseen).any()
    assert (after.trial, after.symmetry, after.core, after.agreeing) == (0, 0.9, 0.4, 0)


def test_a_density_that_predicts_as_well_stays():
    """Atoms that explain the data no better than chance are not believed for a lucky score."""
    wrong = Made(count=60, d_min=1.5, edges=(11.0, 12.0, 13.0))
    completer = replace(planned(wrong).completer, tries=0)
    before = solution(np.abs(wrong.f) * np.exp(1j * wrong.rng.uniform(-np.pi, np.pi, len(wrong.f))), score=0.8)
    after = completer(before)
    assert after.f is before.f and after.polished and after.atoms is None
    assert after.score == before.score and after.finisher == "sparse"


@pytest.mark.parametrize("changes", [{"given": True}, {"fragments": object()}], ids=["given", "pieces"])
def test_phases_given_and_pieces_placed_are_left_alone(made, changes):
    before = solution(made.f, **changes)
    assert planned(made).completer(before) is before


def test_where_atoms_are_tried(made):
    """To 1.6 A, where one refinement takes a small part of the time; more of it, more tries."""
    assert planned(made).completer.tries == TRIES
    assert planned(made, timelimit=0.2).completer is None
    few = planned(made, timelimit=4.0).completer
    assert few is not None and 0 <= few.tries < TRIES
    assert planned(Made(count=12, d_min=1.65)).completer is None
    assert planned(Made(count=12, d_min=1.55)).completer is not None


def test_finer_reflections_than_are_needed_are_phased_too():
    fine = Made(count=12, d_min=0.6, edges=(6.0, 6.0, 7.0))
    completer = replace(planned(fine).completer, tries=1)
    d = fine.cell.calculate_d_array(fine.hkl)
    assert d[completer.rows].min() >= 0.8 and len(completer.rows) == (d >= 0.8).sum() < len(d)
    after = completer(solution(np.abs(fine.f) * np.exp(1j * fine.spoilt(0.6))))
    far = d < 0.8
    assert compare(fine.hkl[far], after.f[far], fine.f[far], fine.cell, fine.spacegroup).map_cc > 0.95


def test_atoms_are_tried_at_once_where_they_are_cheap(made):
    """However little a solution promises; else at the end of the search."""
    plan = planned(made, timelimit=60.0)
    before = solution(np.abs(made.f) * np.exp(1j * made.spoilt(0.7)), score=WORTH_IT - 0.1)
    assert 0 <= plan.completer.at_once < TRIES
    assert plan.last_touch.at_once(before).atoms is not None
    dear = planned(made, timelimit=4.0)
    assert dear.completer.at_once == -1
    assert dear.last_touch.at_once(before) is before
    assert dear.last_touch(before).atoms is not None
    assert planned(Made(count=12, d_min=1.65)).last_touch is None


def test_a_search_keeps_time_for_atoms(made):
    """Where they are not tried at once: of the best solution always, of the next if there is time left."""
    assert planned(made, timelimit=240.0).last_touch.reserve == 0
    touch = planned(made, timelimit=4.0).last_touch
    assert 0.1 < touch.reserve < 0.3
    assert touch.without_atoms(solution(made.f)).atoms is None
    for left, atoms in ((0.0, [True, False]), (1.0, [True, True])):
        hunt = Hunt(planned(made).whole)
        for i in range(2):
            hunt.trials.append(Trial(i, "x", 0, 10, 0.0, -1.0, 1.0, float("nan")))
            hunt.add(solution(np.abs(made.f) * np.exp(1j * made.spoilt(0.8)), score=0.2 - 0.1 * i, trial=i))
        hunt.polish(LastTouch(None, replace(touch.completer, tries=1)), lambda left=left: left)
        found = {s.trial: s.atoms is not None for s in hunt.solutions}
        assert [found[i] for i in range(2)] == atoms


def test_what_was_polished_at_once_is_made_atoms_at_the_end(made):
    calls = []

    def polisher(s):
        calls.append(s.score)
        return replace(s, polished=True)

    dear = planned(made, timelimit=4.0).completer
    found, poor = (solution(np.abs(made.f) * np.exp(1j * made.spoilt(0.7)), score=s) for s in (WORTH_IT, 0.1))
    assert not LastTouch(polisher, dear).at_once(found).polished  # the end of the search will go on with it
    assert LastTouch(polisher, None).at_once(found).polished
    assert LastTouch(polisher, None).at_once(poor) is poor
    assert calls == [WORTH_IT] * 2


def test_atoms_made_at_once_are_gone_on_with_at_the_end(made):
    """Where there were fewer tries at once; as atoms, not as a density."""

    def polisher(s):
        raise AssertionError("atoms are no density")

    some = replace(planned(made, timelimit=60.0).completer, at_once=0, tries=2)
    touch, found = LastTouch(polisher, some), solution(np.abs(made.f) * np.exp(1j * made.spoilt(0.7)), score=0.1)
    early = touch.at_once(found)
    assert early.atoms is not None and not early.polished and touch.reserve > 0
    late = touch(early)
    assert late.polished and late.worth <= early.worth
    assert LastTouch(None, replace(some, at_once=2)).at_once(found).polished
    assert LastTouch(None, replace(some, at_once=2)).reserve == 0


def test_phases_that_were_given_are_not_made_atoms(made):
    from ml_phaser.crystal.phase_distributions import PhaseDistributions, hendrickson_lattman

    data = data_of(made)
    centric = np.zeros(len(data), dtype=bool)
    known = PhaseDistributions(hendrickson_lattman(np.angle(made.f), np.full(len(data), 0.5), centric), centric)
    plan = plan_phasing(data, normalise(data), OPTIONS, starts=known)
    assert plan.completer is None


def test_atoms_that_were_found_stay_unless_others_explain_more(made):
    completer = replace(planned(made).completer, tries=0)
    before = replace(completer(solution(np.abs(made.f) * np.exp(1j * made.spoilt(0.5)))), polished=False)
    assert before.worth < 0.7 and before.finisher == "sparse, atoms"
    after = completer(before)
    assert after.f is before.f and after.polished and after.worth == before.worth
    poorer = completer(replace(before, worth=0.9))
    assert poorer.f is not before.f and poorer.worth < 0.7
    assert poorer.finisher == "sparse, atoms" and len(poorer.atoms) == 20


def test_the_limit_of_certainty_grows_with_reflections(made):
    completer = planned(made).completer
    found = refine_atoms(completer.coarse, np.angle(made.f[completer.rows]), tries=0)
    each = completer.coarse.used.sum() / len(found.atoms)
    assert each > 14 and completer.counted(found) == pytest.approx(found.worth / 0.2)
    few = replace(completer, moduli=replace(completer.moduli, used=np.arange(len(made.f)) < 100))
    assert few.counted(found) == pytest.approx(found.worth / 0.085)
    assert completer.certain(found) and not completer.certain(replace(found, worth=0.21))
    assert not few.certain(replace(found, worth=0.09))
