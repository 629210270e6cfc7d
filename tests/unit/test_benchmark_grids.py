"""The grids of resolution and size of the phasing benchmark: what they hold, their tables, the picture."""

from __future__ import annotations

import json
import sys
from collections import Counter
from itertools import product
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
crystals = pytest.importorskip("benchmarks.phasing.crystals")
from benchmarks.phasing import picture, tables, tasks  # noqa: E402
from benchmarks.phasing.__main__ import LEARNED, SEEDED, WHO  # noqa: E402
from benchmarks.phasing.entrants import entrants  # noqa: E402


def test_the_frontier_has_every_cell_once_before_any_twice() -> None:
    points = tasks.grid(tasks.GRID_D_MIN, tasks.GRID_ATOMS, 3)
    every = set(product(tasks.GRID_D_MIN, tasks.GRID_ATOMS))
    for number in range(3):
        part = points[number * len(every) : (number + 1) * len(every)]
        assert {(d, n) for (d, n, _, _), _ in part} == every
        assert {i for _, i in part} == {number}
    groups = {n: {g for (_, m, g, _), _ in points if m == n} for n in tasks.GRID_ATOMS}
    assert groups[12] == {"P1", "P21"}, "an asymmetric unit of three atoms is no peptide"
    assert all(groups[n] == set(tasks.GROUPS) for n in tasks.GRID_ATOMS if n > 12)
    assert points[: len(every)] == tasks.grid(tasks.GRID_D_MIN, tasks.GRID_ATOMS, 1), "more crystals add to those done"


def test_nine_seeded_crystals_have_every_size_in_every_group() -> None:
    points = tasks.latin(tasks.SEED_D_MIN, tasks.SEED_ATOMS, 9)
    for d_min in tasks.SEED_D_MIN:
        pairs = Counter((n, g) for (d, n, g, _), _ in points if d == d_min)
        assert pairs == Counter(product(tasks.SEED_ATOMS, tasks.GROUPS))


@pytest.mark.parametrize("kind", ["seeds", "frontier", "frontier-seeds"])
def test_the_crystals_of_a_grid_have_names_of_their_own(kind: str) -> None:
    recipes = tasks.recipes(kind, 5.0, 4, 7)
    assert len({r.name for r in recipes}) == len({r.key() for r in recipes}) == len(recipes)
    assert {r.task for r in recipes} == {kind}
    assert {r.seed for r in recipes} == {7, 8, 9, 10}
    assert all(dict(r.settings)["noise"] == 0.05 for r in recipes)
    assert set(WHO[kind]) <= set(entrants(None))


def row(
    name: str, d_min: float, atoms: int, cc: float, inverted: bool = False, margin: float | None = 0.3
) -> tables.Row:
    return {
        "entrant": name, "crystal": f"{d_min} {atoms} {cc}", "point": {"d_min": d_min, "atoms": atoms, "group": "P1"},
        "status": "ok", "cc": cc, "inverted": inverted, "hand_margin": margin, "cpu": 2.0, "budget": 1.0,
    }  # fmt: skip


@pytest.fixture
def rows() -> list[tables.Row]:
    """Two resolutions, one size: the classical engine solves all at 1.0 A, one of three at 1.4; the learned one all."""
    classical, learned = LEARNED
    found = [row(classical, 1.0, 25, 0.9) for _ in range(3)] + [row(learned, 1.0, 25, 0.9, i == 0) for i in range(3)]
    found += [row(classical, 1.4, 25, cc) for cc in (0.9, 0.3, 0.2)]
    found += [row(learned, 1.4, 25, 0.95, margin=m) for m in (0.5, 0.0, None)]
    return [*found, {**row(learned, 1.4, 25, 0.0), "status": "no crystal"}]


def test_cells_count_what_was_solved(rows: list[tables.Row]) -> None:
    found = {(c["entrant"], c["d_min"]): c for c in tables.cells(rows)}
    classical, learned = LEARNED
    assert [(found[x]["solved"], found[x]["n"]) for x in ((classical, 1.4), (learned, 1.4))] == [(1, 3), (3, 3)]
    assert (found[learned, 1.0]["hand_right"], found[learned, 1.0]["handed"]) == (2, 3)
    assert (found[learned, 1.4]["hand_right"], found[learned, 1.4]["handed"]) == (1, 1), "without a hand none is right"
    assert found[classical, 1.4]["median_cc"] == pytest.approx(0.3)
    assert tables.comparison(list(found.values())) == {
        "cells": 1, "crystals": 3, "classical": 1, "learned": 3, "twice": 1
    }  # fmt: skip


def test_twice_nothing_is_not_nothing() -> None:
    none = [row(name, 1.8, 200, 0.1) for name in LEARNED]
    assert tables.comparison(tables.cells(none))["twice"] == 0


def record() -> dict:
    return {
        "version": "0", "weights": {"name": "none", "sha256": "0" * 64},
        "settings": {"seed": 0, "seconds": 1.0, "jobs": 1},
        "machine": {"cores": 1, "processor": "", "architecture": "none"},
    }  # fmt: skip


def test_the_tables_of_the_grids(rows: list[tables.Row]) -> None:
    text = tables.frontier(rows, record(), "a title")
    assert "| 1.4 | 3/3 (0.95) |" in text
    assert "| 1.4 | 1/3 (0.30) |" in text
    assert "classical 1, learned 3; the learned one at least twice as many in 1 cells" in text
    assert "| 4/6 [0.30, 0.90] |" in tables.seeds(rows, record(), "a title")


def test_the_border_lies_between_solved_and_unsolved() -> None:
    solved = np.array([[1.0, 0.5], [1.0, 0.2], [np.nan, 0.9]])
    edges = {tuple(sorted(edge)) for edge in picture.border(solved)}
    assert edges == {
        ((0.5, 0.5), (0.5, 1.5)),  # right of (1, 0)
        ((0.5, 0.5), (1.5, 0.5)),  # below (0, 1)
        ((0.5, 1.5), (1.5, 1.5)),  # below (1, 1)
    }
    assert picture.border(np.ones((3, 4))) == []


def test_the_picture_is_small(rows: list[tables.Row], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    names = dict(zip(LEARNED, SEEDED, strict=True))
    both = [*rows, *({**r, "point": {**r["point"], "atoms": 100}, "entrant": names[r["entrant"]]} for r in rows)]
    picture.frontier(tables.cells(both), tmp_path / "a.png", "a title")
    data = (tmp_path / "a.png").read_bytes()
    assert data.startswith(b"\x89PNG")
    assert len(data) < 150_000


def test_the_code_that_only_trains_has_no_part_in_crystals() -> None:
    import subprocess

    script = "import sys, ml_phaser.simulate.families; print(*(m for m in sys.modules if 'ml_phaser.simulate.' in m))"
    used = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert "ml_phaser.simulate.packing" in used
    assert not {f"{m.rsplit('.', 1)[-1]}.py" for m in used} & set(crystals.FOR_TRAINING)


def test_results_of_other_weights_or_settings_are_not_mixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.phasing import __main__ as command

    (tmp_path / "coordinates").mkdir()
    monkeypatch.setattr(crystals, "shared_data", lambda: tmp_path)
    settings = {"kind": "seeds", "seconds": 3.0, "crystals": 1, "seed": 0, "jobs": 1}
    earlier = {"settings": settings, "weights": {"name": "others", "sha256": "0"}, "load": [0.0]}
    (tmp_path / "seeds.run.json").write_text(json.dumps(earlier))
    words = ["--seeds", "--out", str(tmp_path), "--crystals", "5", "--seconds"]
    with pytest.raises(SystemExit, match="other weights"):
        command.main([*words, "3"])
    with pytest.raises(SystemExit, match="other settings"):
        command.main([*words, "4"])
