"""Who the plan lets search."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import gemmi
import numpy as np
import pytest
import torch
from crystals import agreement, crystal, problem_of

from ml_phaser import learned, plan
from ml_phaser.crystal.normalise import normalise
from ml_phaser.crystal.reflections import Amplitudes, Source
from ml_phaser.parameters import Options
from ml_phaser.phasing import projections
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
    planned = plan_phasing(data, normalise(data), OPTIONS)
    assert any("shrink-wrap" in e.method.name for e in planned.entrants) == wanted
    assert any("flipping" in e.method.name for e in planned.entrants)
    for entrant in planned.entrants:  # what is held out is held out of every entrant's projection
        assert np.array_equal(entrant.problem.held, planned.whole.held[np.isin(planned.rows, entrant.rows)])


def test_seeds_reach_every_entrant_and_the_search_returns_to_them() -> None:
    c = crystal("P 1 21 1", atoms=12, d_min=0.9)
    data = data_of(c.hkl, c.f, c.cell, c.spacegroup)
    normalised = normalise(data)
    seeds = Seeds(quadrants(c.hkl, np.angle(c.f), c.spacegroup), strongest(normalised.e, 0.5))
    planned = plan_phasing(data, normalised, OPTIONS, seeds)
    assert all(isinstance(e.method, Held) for e in planned.entrants)
    assert any("seeds" in said for said in planned.choices)
    one = [replace(planned.entrants[-1], batch=1, cycles=100)]
    hunt = search(
        one, planned.finishers, planned.whole, planned.n, seconds=60, most_trials=1, seed=0, progress=lambda *_: None
    )
    assert agreement(c, hunt.solutions[0].f) > 0.9


class Blur(torch.nn.Module):
    """A network of one convolution that remembers in which precision it was done."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv3d(1, 1, 3, padding=1)
        self.precision = torch.float64

    def forward(self, maps: torch.Tensor, cond: torch.Tensor) -> torch.Tensor:
        y = self.conv(maps[:, :1])[:, 0]
        self.precision = y.dtype
        return y


def test_the_learned_projection_uses_bfloat16_where_the_device_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    p = problem_of(crystal("P 1", atoms=6, d_min=1.5))
    x = p.random_starts(2, torch.Generator().manual_seed(0))
    network, maps = Blur(), []
    for able, precision in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(projections, "has_bfloat16", lambda where, able=able: able)
        maps.append(learned.density_projection(network, p)(x))
        assert network.precision == precision and maps[-1].dtype == torch.float32
    assert 0 < (maps[0] - maps[1]).norm() / maps[1].norm() < 0.02


def test_batches_fit_the_memory_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    assert plan.batch_size(5_000, 60_000, "cpu") == 8 and plan.batch_size(30_000, 60_000, "cpu") == 2
    assert plan.batch_size(10**6, 60_000, "cpu") == 1
    free = 16 * 2**30
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (free, 2 * free))
    for points in (5_000, 100_000, 1_000_000):
        count = plan.batch_size(points, 60_000, "cuda")
        assert count == 256 or free / 4 < count * points * plan.POINT_BYTES <= free / 2
    assert plan.batch_size(10**9, 60_000, "cuda") == 1


def test_the_likeliest_method_has_the_first_turn() -> None:
    c = crystal("P 1", atoms=12, d_min=1.0)
    data = data_of(c.hkl, c.f, c.cell, c.spacegroup)
    entrants = plan_phasing(data, normalise(data), OPTIONS).entrants
    assert "flipping" in entrants[0].method.name
    classical, learned = list(entrants), [replace(entrants[0], share=99)]
    places = [plan.in_turn(classical, learned, d).index(learned[0]) for d in (1.0, 1.2, 1.6)]
    assert places == [len(classical), 1, 0]
