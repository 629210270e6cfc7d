"""Who the plan lets search."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import gemmi
import numpy as np
import pytest
from crystals import agreement, crystal

from ml_phaser.crystal.normalise import normalise
from ml_phaser.crystal.reflections import Amplitudes, Source
from ml_phaser.parameters import Options
from ml_phaser.phasing.search import search
from ml_phaser.phasing.seeds import Held, Seeds, quadrants, strongest
from ml_phaser.plan import plan_phasing

OPTIONS = Options(Path("in"), Path("map"), Path("mtz"), Path("json"), threads=1, engine="classical")


def data_of(hkl: np.ndarray, f: np.ndarray, cell: gemmi.UnitCell, group: gemmi.SpaceGroup) -> Amplitudes:
    moduli = np.abs(f)
    source = Source("none", "none", ("F", "SIGF"), "amplitude")
    return Amplitudes(hkl, moduli, 0.02 * moduli + 1e-3, cell, group, source)


@pytest.mark.parametrize(("d_min", "wanted"), [(0.9, False), (1.5, True), (2.0, True)])
def test_shrink_wrap_searches_beyond_atomic_resolution(d_min: float, wanted: bool) -> None:
    c = crystal("P 1", atoms=12, d_min=d_min)
    data = data_of(c.hkl, c.f, c.cell, c.spacegroup)
    plan = plan_phasing(data, normalise(data), OPTIONS)
    assert any("shrink-wrap" in e.method.name for e in plan.entrants) == wanted
    assert any("flipping" in e.method.name for e in plan.entrants)
    for entrant in plan.entrants:  # what is held out is held out of every entrant's projection
        assert np.array_equal(entrant.problem.held, plan.whole.held[np.isin(plan.rows, entrant.rows)])


def test_seeds_reach_every_entrant_and_the_search_returns_to_them() -> None:
    c = crystal("P 1 21 1", atoms=12, d_min=0.9)
    data = data_of(c.hkl, c.f, c.cell, c.spacegroup)
    normalised = normalise(data)
    seeds = Seeds(quadrants(c.hkl, np.angle(c.f), c.spacegroup), strongest(normalised.e, 0.5))
    plan = plan_phasing(data, normalised, OPTIONS, seeds)
    assert all(isinstance(e.method, Held) for e in plan.entrants)
    assert any("seeds" in said for said in plan.choices)
    one = [replace(plan.entrants[-1], batch=1, cycles=100)]
    hunt = search(one, plan.finishers, plan.whole, plan.n, seconds=60, most_trials=1, seed=0, progress=lambda *_: None)
    assert agreement(c, hunt.solutions[0].f) > 0.9
