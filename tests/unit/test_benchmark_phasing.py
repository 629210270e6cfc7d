"""The phasing benchmark: its statistics, its runner, and that no entrant sees the truth."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from crystals import crystal
from scipy.stats import binomtest

from ml_phaser.crystal.reflections import Amplitudes, Source

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
crystals_of = pytest.importorskip("benchmarks.phasing.crystals")
from benchmarks.phasing import entrants, runner, statistics, tables, tasks  # noqa: E402


def made(name: str = "P 1", d_min: float = 1.4, atoms: int = 8) -> crystals_of.Crystal:
    """A small crystal as the benchmark holds it."""
    c = crystal(name, atoms=atoms, d_min=d_min, b=10)
    source = Source("none", "none", ("F", "SIGF"), "amplitude")
    moduli = np.abs(c.f)
    data = Amplitudes(c.hkl, moduli, 0.01 * moduli + 1e-3, c.cell, c.spacegroup, source)
    return crystals_of.Crystal(data, c.f, {"volume": c.cell.volume, "group": name, "reflections": len(c.hkl)})


@pytest.mark.parametrize(("good", "n"), [(0, 5), (3, 7), (7, 7), (50, 200)])
def test_the_interval_of_a_fraction_is_scipys(good: int, n: int) -> None:
    exact = binomtest(good, n).proportion_ci(method="wilson")
    assert statistics.wilson(good, n) == pytest.approx((exact.low, exact.high), abs=1e-6)


def test_the_bootstrap_interval_of_a_mean_is_that_of_its_error() -> None:
    x = np.random.default_rng(0).normal(3, 1, 400)
    low, high = statistics.bootstrap(list(x))
    error = x.std(ddof=1) / np.sqrt(len(x))
    assert (low, high) == pytest.approx((x.mean() - 1.96 * error, x.mean() + 1.96 * error), abs=0.02)
    assert np.isnan(statistics.bootstrap([1.0])).all()


def test_an_exponent_is_found_with_its_interval() -> None:
    rng = np.random.default_rng(1)
    size = np.geomspace(10, 1e4, 60)
    b, low, high = statistics.exponent(size, 0.3 * size**1.5 * np.exp(rng.normal(0, 0.2, 60)))
    assert low < 1.5 < high
    assert b == pytest.approx(1.5, abs=0.05)
    assert high - low < 0.2
    assert np.isnan(statistics.exponent([5, 5, 5], [1, 2, 3])).all()
    assert tables.at(size, 0.3 * size**1.5, 1000.0) == pytest.approx(0.3 * 1000**1.5)


class Ticks:
    """A clock that goes on by a second whenever it is read."""

    def __init__(self) -> None:
        self.read = 0

    def __call__(self) -> float:
        self.read += 1
        return float(self.read)


@pytest.mark.parametrize("name", ["centred blob", "random phases", "charge flipping", "shrink-wrap HIO", "RRR"])
@pytest.mark.parametrize("group", ["P 1", "P 1 21 1"])
def test_what_an_entrant_says_does_not_depend_on_the_truth(
    name: str, group: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    who = entrants.entrants(None)[name]
    c = made(group)
    other = replace(c, f=np.full(len(c.f), complex("nan")))
    monkeypatch.setattr(entrants, "Clock", Ticks)
    a, b = (who(x, 5.0, 3) for x in (c, other))
    assert np.array_equal(a.f, b.f)
    assert len(a.f) == len(c.f)


def test_seeds_alone_use_the_truth() -> None:
    c = made(d_min=1.1)
    seeded = entrants.engine(c, 1.0, 0, kind="classical", share=1.0)
    assert runner.judged(c, seeded.f, False, False, 0)["cc"] > 0.8


def test_true_phases_are_solved_and_none_are_not() -> None:
    c = made("P 21 21 21")
    right = runner.judged(c, c.f, False, False, 0)
    assert right["cc"] == pytest.approx(1, abs=1e-3)
    assert right["phase_error"] < 1
    assert all(s["phase_error"] < 1 for s in right["shells"])
    half = np.where(np.arange(len(c.f)) % 2 == 0, c.f, 0)
    part = runner.judged(c, half, False, False, 0)
    assert 0.4 < part["cc"] < 0.9
    assert 20 < part["phase_error"] < 70  # those without a phase count as 90 degrees
    level = runner.judged(c, c.f, False, True, 0)
    assert level["cc"] < 0.6
    unknown = replace(c, f=np.where(np.arange(len(c.f)) < 5, complex("nan"), c.f))
    assert runner.judged(unknown, c.f, False, False, 0)["cc"] == pytest.approx(1, abs=1e-3)


def test_the_thinned_grid_holds_every_value_of_every_axis() -> None:
    d_min, atoms, groups, noise = (set(axis) for axis in zip(*tasks.THIN, strict=True))
    assert d_min == set(tasks.D_MIN)
    assert atoms == set(tasks.ATOMS)
    assert groups == set(tasks.GROUPS)
    assert noise == set(tasks.NOISE)


def test_structure_factors_are_aligned_by_index() -> None:
    hkl = np.array([[1, 0, 0], [0, 2, 0], [0, 0, 3]], dtype=np.int32)
    out = crystals_of.aligned(hkl, np.array([1 + 0j, 2, 3]), hkl[[2, 0]])
    assert out.tolist() == [3, 1]
    assert np.isnan(crystals_of.aligned(hkl, np.array([1 + 0j, 2, 3]), np.array([[9, 9, 9]], dtype=np.int32))).all()


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> list[tasks.Recipe]:
    """Two recipes that need no coordinates."""
    monkeypatch.setattr(runner, "get", lambda recipe: made(atoms=5 + recipe.seed))
    return [tasks.Recipe("task", f"crystal {i}", "none", i, seconds=0.1) for i in range(2)]


def fails(c: object, seconds: float, seed: int) -> entrants.Answer:
    raise ZeroDivisionError("on purpose")


def dies(c: object, seconds: float, seed: int) -> entrants.Answer:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def test_a_run_goes_on_where_it_was_and_survives_what_entrants_do(small: list[tasks.Recipe], tmp_path: Path) -> None:
    who = {"centred blob": entrants.blob, "fails": fails, "dies": dies}
    units = [runner.Unit(r, name) for r in small for name in who]
    path = tmp_path / "rows.jsonl"
    rows = runner.run(units, who, path, jobs=2, seed=0)
    assert [r["unit"] for r in rows] == [u.name for u in units]
    assert [r["status"] for r in rows] == ["ok", "failed", "failed"] * 2
    assert "on purpose" in rows[1]["said"]
    assert rows[0]["cpu"] >= 0
    assert rows[0]["peak_mb"] > 10
    text = path.read_text()
    lines = text.splitlines()
    assert sorted(json.loads(line)["unit"] for line in lines) == sorted(u.name for u in units)
    path.write_text("\n".join(lines[:4]) + "\n" + lines[4][: len(lines[4]) // 2])  # as a power failure leaves it
    again = runner.run(units, who, path, jobs=1, seed=0)
    assert [r["unit"] for r in again] == [u.name for u in units]
    assert path.read_text().splitlines()[:4] == lines[:4]
    assert len(runner.read_rows(path)) == len(units)
    assert list(tmp_path.iterdir()) == [path]


def test_an_interrupt_ends_the_units_and_keeps_the_rows(small: list[tasks.Recipe], tmp_path: Path) -> None:
    def waits(c: object, seconds: float, seed: int) -> entrants.Answer:
        (tmp_path / "pid").write_text(str(os.getpid()))
        time.sleep(60)
        raise AssertionError

    def interrupt() -> None:
        while not (tmp_path / "pid").exists():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    path = tmp_path / "rows.jsonl"
    who = {"centred blob": entrants.blob, "waits": waits}
    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        runner.run([runner.Unit(small[0], name) for name in who], who, path, jobs=1, seed=0)
    assert list(runner.read_rows(path)) == ["task | crystal 0 | centred blob"]
    pid = int((tmp_path / "pid").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_tables_hold_every_entrant_and_task(small: list[tasks.Recipe], tmp_path: Path) -> None:
    who = {"centred blob": entrants.blob, "random phases": entrants.chance, "fails": fails}
    units = [runner.Unit(r, name) for r in small for name in who]
    rows = runner.run(units, who, tmp_path / "rows.jsonl", jobs=2, seed=0)
    record = runner.record({"kind": "quick", "seconds": 1.0, "crystals": 1, "seed": 0, "jobs": 2})
    text = tables.full(rows, record, "test")
    assert all(f"| {name} |" in text for name in who)
    assert record["weights"]["sha256"][:12] in text
    fails_row = next(line for line in text.splitlines() if line.startswith("| fails | 2 |"))
    assert "0/2" in fails_row
    assert "on purpose" in fails_row


def test_tables_of_harm_have_a_line_for_every_value(tmp_path: Path) -> None:
    recipes = list(tasks.breaks(1.0, 1, 0))
    who = ("random phases", "RRR")
    rows = [
        {"task": r.task, "crystal": r.name, "entrant": w, "point": dict(r.point), "status": "ok", "cc": 0.5}
        for r in recipes
        for w in who
    ]
    rows[0] |= {"cc": 0.9}
    record = runner.record({"kind": "break", "seconds": 1.0, "crystals": 1, "seed": 0, "jobs": 1})
    lines = tables.broken(rows, record, "test").splitlines()
    for axis, values in tasks.BREAKS.items():
        first = next(i for i, line in enumerate(lines) if line.startswith(f"| {axis} |"))
        assert [float(line.split("|")[1]) for line in lines[first + 2 : first + 2 + len(values)]] == list(values)
    assert sum("1/1" in line for line in lines) == 1
