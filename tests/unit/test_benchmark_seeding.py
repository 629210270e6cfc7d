"""The benchmark of phase seeds: its design, its seeds, its counts, its picture."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from crystals import crystal

from ml_phaser.crystal.normalise import normalise
from ml_phaser.crystal.phase_distributions import hendrickson_lattman
from ml_phaser.crystal.reflections import Amplitudes, Source
from ml_phaser.outcome import Phases
from ml_phaser.phasing.dual_space import ChargeFlipping, sparse
from ml_phaser.phasing.search import Entrant
from ml_phaser.phasing.seeds import Held
from ml_phaser.plan import classical_entrants, lay_out

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
crystals_of = pytest.importorskip("benchmarks.phasing.crystals")
from benchmarks.phasing.entrants import options  # noqa: E402
from benchmarks.phasing.runner import judged  # noqa: E402
from benchmarks.seeding import __main__ as program  # noqa: E402
from benchmarks.seeding import design, oracle, own, picture, tables  # noqa: E402
from benchmarks.seeding.design import ENGINES, Treatment  # noqa: E402


def made(name: str = "P 1", d_min: float = 1.0, atoms: int = 10) -> crystals_of.Crystal:
    """A small crystal as the benchmark holds it."""
    c = crystal(name, atoms=atoms, d_min=d_min, b=10)
    moduli = np.abs(c.f)
    source = Source("none", "none", ("F", "SIGF"), "amplitude")
    data = Amplitudes(c.hkl, moduli, 0.01 * moduli + 1e-3, c.cell, c.spacegroup, source)
    return crystals_of.Crystal(data, c.f, {"volume": c.cell.volume, "group": name, "reflections": len(c.hkl)})


def test_every_run_has_a_name_and_more_crystals_add_to_those_done() -> None:
    few, many = (list(design.units(n, 2.0, 0)) for n in (2, 4))
    assert [u.name for u in many[: len(few)]] == [u.name for u in few]
    assert len({u.name for u in many}) == len(many)
    assert {u.entrant for u in many} == set(design.every()) == set(oracle.contestants())
    assert all(u.recipe.seconds == (4.0 if u.recipe.task.endswith("large") else 2.0) for u in many)


def test_two_crystals_hold_every_value_of_every_axis() -> None:
    units = list(design.units(2, 2.0, 0))
    given = [(u.recipe, design.every()[u.entrant]) for u in units]
    assert {dict(r.point)["d_min"] for r, _ in given} == {1.0, 1.2, 1.4, 1.6, 1.8, 2.0}
    small = {(dict(r.point)["d_min"], t.share, t.held, t.engine) for r, t in given if "small" in r.task and t.share}
    assert len(small) == 6 * len(design.SHARES) * 4
    assert {t.noise for _, t in given} == {0.0, 20.0, 40.0, 60.0}
    for kinds, low, high in ((design.SMALL, 30, 60), (design.LARGE, 100, 200)):
        assert all(low <= asu <= high for _, asu in kinds)


def test_noise_spoils_seeds_more_and_more_and_restricted_phases_stay_permitted() -> None:
    c = made("P 21 21 21", d_min=0.9, atoms=14)
    e = normalise(c.data).e
    errors = []
    for noise in (0.0, 20.0, 40.0, 60.0):
        seeds = oracle.noisy_quadrants(c, e, 0.5, noise, 1)
        assert seeds.given.sum() == round(0.5 * len(e)) and e[seeds.given].min() >= e[~seeds.given].max()
        error = np.abs(np.angle(np.exp(1j * (seeds.phase - np.angle(c.f)))))
        errors.append(float(np.rad2deg(error[~c.data.centric].mean())))
        two = error[c.data.centric & (np.abs(c.f) > 1e-3 * np.abs(c.f).max())]
        assert np.minimum(two, np.pi - two).max() < 1e-5
    assert errors[0] == pytest.approx(22.5, abs=3)  # uniform within 45 degrees
    assert errors == sorted(errors) and errors[-1] > 40
    unknown = replace(c, f=np.where(np.arange(len(e)) % 2, c.f, complex("nan")))
    assert not oracle.noisy_quadrants(unknown, e, 1.0, 20.0, 1).given[::2].any()


def test_seeds_not_held_are_only_a_start() -> None:
    c = made()
    normalised = normalise(c.data)
    board, whole, d_search = lay_out(c.data, normalised, options(1.0, 0, "classical"))
    plain = next(e for e in classical_entrants(board, whole, d_search) if isinstance(e.method, ChargeFlipping))
    seeds = oracle.noisy_quadrants(c, normalised.e, 0.3, 0.0, 0)
    held, start = (oracle.given(plain, seeds, x) for x in (True, False))
    assert isinstance(held.method, Held) and held.method.cycles == plain.cycles // 2
    assert start.method is plain.method and start.origin is not None
    assert oracle.brief(plain) is plain
    slow = Entrant(replace(plain.method, name=oracle.LEARNED), plain.problem, plain.rows, 6, 200, 50, sparse(0.1))
    short = oracle.brief(slow)
    assert (short.batch, short.cycles, short.block) == (1, oracle.LEARNED_CYCLES, 10)


@pytest.mark.parametrize("engine", ENGINES)
def test_true_seeds_are_phased(engine: str) -> None:
    c = made(d_min=1.3, atoms=12)
    answer = oracle.phased(c, 0.5, 0, treatment=Treatment(engine, 1.0, 0.0, True))
    assert answer.f is not None and len(answer.f) == len(c.f)
    assert judged(c, answer.f, False, False, 0)["cc"] > 0.75
    assert answer.said.startswith("charge flipping" if engine == ENGINES[0] else oracle.LEARNED)


def test_own_seeds_of_the_true_phases_are_right_and_of_random_ones_are_not() -> None:
    c = made("P 1 21 1", atoms=14)
    e = normalise(c.data).e
    fom = np.full(len(e), 0.8)

    def right(phase: np.ndarray) -> dict:
        hl = hendrickson_lattman(phase, fom, c.data.centric)
        seeds = own.seeds_of(Phases(phase, fom, hl), e, c, 0.3)
        assert seeds.given.sum() == round(0.3 * len(e))
        return own.worth(seeds, np.abs(c.f) * np.exp(1j * phase), c)

    true = right(np.angle(c.f))
    assert true["right"] > 0.95 and true["error"] < 27
    shifted = right(np.angle(c.f * np.exp(2j * np.pi * c.data.hkl @ np.array([0.5, 0.21, 0.5]))))
    assert shifted["error"] < 30, "another permitted origin"
    turn = np.random.default_rng(0).uniform(0, 2 * np.pi, len(e))
    chance = right(np.where(c.data.centric, np.angle(c.f) + np.pi * (turn > np.pi), turn))
    assert chance["right"] < 0.65 and chance["error"] > 55


def test_a_better_known_reflection_is_seeded_before_a_stronger_one() -> None:
    c = made()
    e = np.ones(len(c.f))
    e[:5] = 1.5
    fom = np.full(len(e), 0.95)
    fom[:5] = 0.0
    phases = Phases(np.angle(c.f), fom, hendrickson_lattman(np.angle(c.f), fom, c.data.centric))
    assert not own.seeds_of(phases, e, c, 0.5).given[:5].any()


def rows_of(cc: float = 0.9) -> list[dict]:
    """Two crystals: the learned engine solves with seeds, charge flipping where they are held."""
    found = []
    for u in design.units(2, 2.0, 0):
        t = design.every()[u.entrant]
        good = t.share > 0 and (t.engine == ENGINES[1] or t.held)
        point = dict(u.recipe.point)
        found.append({
            "unit": u.name, "crystal": u.recipe.name, "entrant": u.entrant, "point": point, "status": "ok",
            "cc": cc if good else 0.3, "cpu": 2.0,
        })  # fmt: skip
    return found


FACTS = {"settings": {"seconds": 2.0, "seed": 0}, "version": "1", "weights": {"sha256": "0" * 64},
         "machine": {"processor": "any"}}  # fmt: skip


def test_counts_are_those_of_the_rows() -> None:
    rows = tables.flat([*rows_of(), {"entrant": "nobody", "status": "ok", "point": {}}])
    assert len(rows) == len(rows_of())
    cells = tables.cells(rows)
    assert sum(c["n"] for c in cells) == len(rows)
    assert all(c["n"] == 1 for c in cells if c["size"] == "small")
    line = tables.by_share(rows, True, ENGINES[0], (0.0, 0.1), size="small", noise=0.0)
    assert [x.split(" ")[0] for x in line] == ["0/6", "6/6"], "random starts stand beside seeds held and not"
    n, both, held, start, none = tables.paired(rows, "held", True, False, engine=ENGINES[0], size="small", noise=0.0)
    assert (n, both, held, start, none) == ("36", "0", "36", "0", "0")
    assert tables.paired(rows, "engine", ENGINES[1], ENGINES[0], held=False, size="small")[2] == "54"
    text = tables.oracle(rows_of(), FACTS)
    assert f"{len(rows)} runs: 2 small crystals (40 atoms" in text and "2 large (100-120)" in text


def test_the_picture_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    picture.drawn(tables.flat(rows_of()), tmp_path / "p.png")
    data = (tmp_path / "p.png").read_bytes()
    assert data.startswith(b"\x89PNG") and len(data) < 150_000
    assert picture.curve(tables.flat(rows_of()), (0.05,)) == [(0.05, 18, 24)]


def test_the_second_report_compares_equal_times() -> None:
    def arm(cc: float, **more: object) -> dict:
        return {"cc": cc, "best_cc": cc + 0.1, "seconds": 16.0, **more}

    seeds = {"n": 50, "right": 0.4, "error": 80.0}
    rows = [{"crystal": "easy", "first": {"cc": 0.9}}]
    for i, (a, b) in enumerate(((0.3, 0.8), (0.65, 0.4), (0.2, 0.2))):
        arms = {own.RANDOM: arm(a), "seeds on 20%": arm(b, seeds=seeds)}
        rows.append({"crystal": f"hard {i}", "first": {"cc": 0.2}, "arms": arms})
    text = tables.own([*rows, {"crystal": "none", "error": "cannot be packed"}], FACTS)
    assert "4 crystals" in text and "solved 1 " in text and "none: cannot be packed" in text
    (no,) = [x for x in text.splitlines() if x.startswith("| no seeds |")]
    (with_seeds,) = [x for x in text.splitlines() if x.startswith("| seeds on 20% |")]
    assert "| 0/3" in no and "| 1/3 |" in no  # chosen, and were the best chosen
    assert "| 1/3" in with_seeds and "+0.083" in with_seeds and "| 40% | 80 |" in with_seeds


def test_crystals_of_the_second_experiment_are_others() -> None:
    recipes = own.recipes(18, 0)
    assert len({r.key() for r in recipes}) == 18
    assert {(dict(r.point)["d_min"], dict(r.point)["group"]) for r in recipes} == {
        (d, g) for d in own.D_MIN for g in ("P1", "P21", "P212121")
    }
    assert not {r.seed for r in recipes} & {u.recipe.seed for u in design.units(4, 2.0, 0)}


def test_a_crystal_that_is_not_solved_gets_seeds_and_as_much_time_without() -> None:
    c = made(d_min=1.05, atoms=6)
    row = own.one(replace(c, f=np.abs(c.f) * np.exp(2j * np.pi * np.random.default_rng(1).random(len(c.f)))), 0.1, 0)
    assert set(row["arms"]) == {own.RANDOM, *map(own.arm_name, own.SHARES)}, "phases at random are never found"
    for share in own.SHARES:
        assert row["arms"][own.arm_name(share)]["seeds"]["n"] == round(share * len(c.f))
    assert own.one(made(d_min=0.9, atoms=6), 2.0, 0)["first"]["cc"] > 0.7


def test_the_program_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ML_PHASER_DATA", str(tmp_path))
    (tmp_path / "coordinates").mkdir()
    asked: list[str] = []

    def one(c: object, seconds: float, seed: int) -> dict:
        asked.append(str(c))
        return {"first": {"cc": 0.8}}

    monkeypatch.setattr(own, "one", one)
    monkeypatch.setattr(program.crystals, "get", lambda recipe: recipe.name)
    argv = ["own", "--out", str(tmp_path / "out")]
    assert program.main([*argv, "--crystals", "2"]) == 0
    assert program.main([*argv, "--crystals", "3"]) == 0
    assert asked == [r.name for r in own.recipes(3, 0)]
    rows = [json.loads(line) for line in (tmp_path / "out" / "rows.jsonl").read_text().splitlines()]
    assert len(rows) == 3 and "3 crystals" in (tmp_path / "out" / "results.md").read_text()
    with pytest.raises(SystemExit, match="other settings"):
        program.main([*argv, "--seconds", "3"])
    monkeypatch.setenv("ML_PHASER_DATA", str(tmp_path / "none"))
    with pytest.raises(SystemExit, match="no coordinates"):
        program.main(argv)
