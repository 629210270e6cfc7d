"""Phase seeds: rounded to quadrants, held, released."""

from __future__ import annotations

import gemmi
import numpy as np
import pytest
import torch
from crystals import agreement, crystal, problem_of

from ml_phaser.phasing.dual_space import ChargeFlipping, Relaxed, ShrinkWrap, sparse
from ml_phaser.phasing.finish import Finisher, finish
from ml_phaser.phasing.projections import forward, impose_amplitudes
from ml_phaser.phasing.search import Entrant
from ml_phaser.phasing.seeds import Held, Seeds, imposing, quadrants, seeded, strongest


def test_phases_go_to_the_middle_of_their_quadrant() -> None:
    c = crystal("P 1")
    phase = np.angle(c.f)
    rounded = quadrants(c.hkl, phase, c.spacegroup)
    assert set(np.round(np.rad2deg(rounded)).astype(int)) <= {45, 135, 225, 315}
    assert np.abs(np.angle(np.exp(1j * (rounded - phase)))).max() <= np.pi / 4 + 1e-9


@pytest.mark.parametrize("name", ["P 21 21 21", "P 1 21 1", "P -1", "P 31 2 1"])
def test_restricted_phases_stay_permitted(name: str) -> None:
    c = crystal(name)
    centric = np.asarray(c.spacegroup.operations().centric_flag_array(c.hkl), dtype=bool)
    strong = centric & (np.abs(c.f) > 1e-3 * np.abs(c.f).max())
    rounded = quadrants(c.hkl, np.angle(c.f), c.spacegroup)
    error = np.abs(np.angle(np.exp(1j * (rounded - np.angle(c.f)))))
    assert error[strong].max() < 1e-6  # a restricted true phase is permitted, so it is its own seed
    nudged = quadrants(c.hkl, np.angle(c.f) + 1.2, c.spacegroup)
    assert np.abs(np.angle(np.exp(1j * (nudged - np.angle(c.f)))))[strong].max() < 1e-6


def test_the_strongest_are_chosen() -> None:
    e = np.array([0.1, 3.0, 2.0, 0.5, 1.0])
    assert strongest(e, 0.4).tolist() == [False, True, True, False, False]
    assert strongest(e, 0.001).sum() == 1


@pytest.mark.parametrize("name", ["P 1", "P 1 21 1", "P 21 21 21", "C 1 2 1"])
def test_a_start_has_the_phases_of_the_seeds_in_all_of_p1_and_the_rest_is_random(name: str) -> None:
    c = crystal(name)
    p = problem_of(c)
    given = strongest(np.abs(c.f), 0.3)
    bound = imposing(p, Seeds(np.angle(c.f), given))
    found = bound.gather_p1(forward(bound.random_starts(1, torch.Generator().manual_seed(0)))[0])
    error = np.abs(np.angle(found * np.conj(p.expansion.spread(c.f))))
    fixed = (given & ~p.held)[p.expansion.asu]
    moduli = p.expansion.spread(np.abs(c.f))
    assert error[fixed & (moduli > 1e-2 * moduli.max())].max() < 0.01
    assert error[~fixed & (moduli > 1e-2 * moduli.max())].mean() == pytest.approx(np.pi / 2, abs=0.4)
    free = imposing(p, Seeds(np.angle(c.f), np.zeros(len(c.f), dtype=bool)))
    x = p.random_starts(1, torch.Generator().manual_seed(1))
    assert torch.allclose(impose_amplitudes(x, free.target), impose_amplitudes(x, p.target), atol=1e-6)


def test_held_out_reflections_give_no_seeds() -> None:
    c = crystal("P 1")
    p = problem_of(c)
    bound = imposing(p, Seeds(np.angle(c.f), np.ones(len(c.f), dtype=bool)))
    assert not bound.target.seeded.reshape(-1)[p.judge_flat].any()


@pytest.mark.parametrize("kind", ["flipping", "relaxed", "hio"])
def test_seeds_are_held_then_released(kind: str) -> None:
    c = crystal("P 1", atoms=8)
    p = problem_of(c)
    method = {
        "flipping": ChargeFlipping(p),
        "relaxed": Relaxed(p, sparse(0.1), 0.5, "relaxed"),
        "hio": ShrinkWrap(p, 0.2, cycles=40, ending=10),
    }[kind]
    given = strongest(np.abs(c.f), 0.2)
    entrant = seeded(Entrant(method, p, np.arange(len(c.f)), 2, 40, 20, sparse(0.1)), Seeds(np.angle(c.f), given))
    assert isinstance(entrant.method, Held)
    x = entrant.starts(2, torch.Generator().manual_seed(0))
    bound = entrant.method.advance(x, 20)
    assert torch.equal(bound, entrant.method.bound.advance(x, 20))
    both = entrant.method.advance(x, 40)
    assert torch.equal(both, method.advance(bound, 20, 20))
    assert torch.equal(entrant.method.advance(bound, 20, 20), both)
    assert torch.equal(entrant.method.estimate(both), method.estimate(both))


def test_true_quadrants_of_the_strong_lead_where_random_phases_take_longer() -> None:
    c = crystal("P 1 21 1", atoms=14, d_min=0.9)
    p = problem_of(c)
    given = strongest(np.abs(c.f), 0.3)
    seeds = Seeds(quadrants(c.hkl, np.angle(c.f), c.spacegroup), given)
    entrant = seeded(Entrant(ChargeFlipping(p), p, np.arange(len(c.f)), 4, 60, 20, sparse(0.1)), seeds)

    def solved(method: object, x: torch.Tensor) -> int:
        half = method.estimate(method.advance(x, 60))  # type: ignore[attr-defined]
        found = [p.expansion.average(p.gather_p1(h), len(c.f)) for h in half]
        return sum(agreement(c, f) > 0.7 for f in found)

    g = torch.Generator().manual_seed(0)
    assert solved(entrant.method, entrant.starts(4, g)) == 4
    assert solved(ChargeFlipping(p), p.random_starts(4, g)) < 4


def test_the_group_of_quadrants_may_be_any() -> None:
    hkl = np.zeros((0, 3), dtype=np.int32)
    assert quadrants(hkl, np.zeros(0), gemmi.SpaceGroup("P 2 3")).shape == (0,)


def test_that_seeded_solutions_obey_the_group_is_no_evidence() -> None:
    c = crystal("P 21 21 21", atoms=8, d_min=1.2)
    p, rows = problem_of(c), np.arange(len(c.hkl))
    home = Finisher(p, rows, (("sparse", sparse(0.06)),), 5)
    plain = Entrant(ChargeFlipping(p), p, rows, 1, 20, 10, sparse(0.02), home=home)
    given = seeded(plain, Seeds(np.angle(c.f), np.ones(len(c.f), dtype=bool)))
    true = p.expansion.spread(c.f)
    free, bound = (finish(true, entrant, (home,), len(c.f), 0) for entrant in (plain, given))
    assert free.symmetry > 0.9 and np.isnan(bound.symmetry)
    assert agreement(c, bound.f) > 0.9 and bound.probability < free.probability
