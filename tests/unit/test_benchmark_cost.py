"""What a cycle costs and whether true phases are kept: the parts of these benchmarks that can be checked quickly."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from crystals import crystal
from torch import nn

from ml_phaser.crystal.reflections import Amplitudes, Source

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
cost = pytest.importorskip("benchmarks.cost")
from benchmarks import truth  # noqa: E402
from benchmarks.phasing.crystals import Crystal  # noqa: E402
from ml_phaser.networks.projector import Projector, ProjectorConfig  # noqa: E402


def small_network() -> Projector:
    torch.manual_seed(0)
    return Projector(ProjectorConfig(channels=(8, 16))).eval()


def test_operations_of_a_network_are_those_of_its_convolutions() -> None:
    network, counted = small_network(), []

    def count(layer: nn.Conv3d, _: object, out: torch.Tensor) -> None:
        weights = layer.weight.numel()  # a product and a sum each for every point of the output
        counted.append(2 * weights * out[0, 0].numel())

    for layer in network.modules():
        if isinstance(layer, nn.Conv3d):
            layer.register_forward_hook(count)
    per_point = cost.flop_per_point(network)
    problem = cost.made_problem(14.4**3, 1.8, network.config.spacing, network.config.stride, "cpu")
    assert per_point * problem.points == pytest.approx(sum(counted), rel=0.01)


def test_a_made_problem_has_the_sphere_to_its_resolution() -> None:
    problem = cost.made_problem(20.0**3, 2.0, 0.6, 4, "cpu")
    assert len(problem.hkl) == pytest.approx(2 * np.pi / 3 * 20**3 / 2**3, rel=0.03)
    assert problem.shape[0] % 4 == 0 and 20 / problem.shape[0] <= 0.6
    assert not problem.held.any()


def test_the_best_time_leaves_out_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    took, clock = iter([9.0, 3.0, 2.0, 4.0, 5.0, 6.0, 7.0]), [0.0]

    def call() -> None:
        clock[0] += next(took)

    monkeypatch.setattr(cost, "now", lambda device: clock[0])
    assert cost.best_time(call, 100.0, "cpu") == 2.0
    assert clock[0] == 29.0, "one call and five that count"
    clock[0], took = 0.0, iter([50.0, 40.0, 1.0])
    assert cost.best_time(call, 10.0, "cpu") == 40.0


def test_samples_a_second_are_those_of_the_last_session() -> None:
    log = [{"seconds": s, "samples": n} for s, n in ((10, 100), (20, 120), (30, 320), (35, 520))]
    assert cost.samples_per_second(log, 15.0) == [20.0, 40.0]
    assert cost.samples_per_second(log, 34.0) == []


def test_training_is_read_from_a_run(tmp_path: Path) -> None:
    schedule = {"own_cycles": 1.0, "batch": 8}
    session = {"seconds": 20.0, "samples": 400, "schedule": schedule, "device": "cpu", "processor": "x", "threads": 1}
    session |= {"workers": 0, "precision": "float32"}
    config = {"channels": [8, 16], "blocks": [1, 1], "spacing": 0.6, "d_best": 1.25, "d_worst": 2.2}
    run = {"config": config, "seconds": 30.0, "samples": 600, "sessions": [{}, session]}
    (tmp_path / "run.json").write_text(json.dumps(run))
    lines = [{"seconds": s, "samples": n} for s, n in ((5, 100), (15, 300), (25, 500))]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    args = argparse.Namespace(device="cpu", threads=1)
    found = cost.training(tmp_path, {"float32": 1e12, "bfloat16": 4e12}, args)
    assert found["samples_per_second"] == found["overall"] == 20.0
    assert found["passes"] == cost.FORWARDS
    assert found["share_of_peak"] == pytest.approx(20.0 * found["gflop_per_sample"] / 1e3)
    (tmp_path / "run.json").write_text(json.dumps(run | {"recipe": {"shapes": [[48, 48, 48]]}}))
    wide = cost.training(tmp_path, {"float32": 1e12, "bfloat16": 4e12}, args)
    assert wide["gflop_per_sample"] > 6 * found["gflop_per_sample"]
    args.threads = 2
    assert cost.training(tmp_path, {"float32": 1e12, "bfloat16": 4e12}, args)["share_of_peak"] is None


def test_the_table_of_cost_has_the_exponents() -> None:
    volumes = (1e4, 1e5, 1e6)
    rows = [
        {"kind": kind, "volume": v, "points": int(v), "seconds": 1e-6 * v**1.1, "best_seconds": 1e-6 * v, "mb": v / 1e3}
        for kind in cost.KINDS
        for v in volumes
    ]
    rows.append({"kind": "learned", "volume": 1e7, "note": "more than 8 GB"})
    report = {
        "rows": rows, "machine": {"processor": "x", "architecture": ""}, "threads": 1, "device": "cpu", "d_min": 1.8,
        "network": {"name": "n", "sha256": "0" * 64}, "peak": {"float32": 1e11, "bfloat16": 2e11},
        "flop_per_point": 1e5, "training": None,
    }  # fmt: skip
    text = cost.markdown(report)
    assert "| learned | 1.10 [" in text
    assert "more than 8 GB" in text
    assert cost.fits(rows, "classical")["mb"][0] == pytest.approx(1.0)


def known_crystal() -> Crystal:
    c = crystal("P 1 21 1", atoms=12, d_min=1.6, b=10)
    source = Source("none", "none", ("F", "SIGF"), "amplitude")
    data = Amplitudes(c.hkl, np.abs(c.f), 0.01 * np.abs(c.f) + 1e-3, c.cell, c.spacegroup, source)
    return Crystal(data, c.f, {})


def test_cycles_begin_with_the_truth() -> None:
    c = known_crystal()
    seen = []
    for who, mode, entrant in truth.methods(c, small_network()):
        from ml_phaser.phasing.projections import forward

        x = truth.start(entrant, truth.in_p1(c, entrant, c.f))
        assert truth.correlation(c, entrant, forward(x)[0]) == pytest.approx(1, abs=1e-4)
        assert entrant.problem.held.any() == (mode == "engine")
        seen.append((mode, who))
    assert sorted(seen) == sorted((mode, who) for mode in ("plain", "engine") for who in truth.WHO)


def test_a_shifted_map_is_found_at_its_best_origin() -> None:
    c = known_crystal()
    entrant = next(e for who, mode, e in truth.methods(c, small_network()) if (who, mode) == ("network", "plain"))
    hkl = entrant.problem.expansion.hkl
    moved = truth.in_p1(c, entrant, c.f) * np.exp(2j * np.pi * hkl @ np.array([0.03, 0.02, 0.01]))
    half = torch.from_numpy(entrant.problem.places.scatter(moved))
    assert truth.correlation(c, entrant, half) < 0.97
    assert truth.correlation(c, entrant, half, origin=True) == pytest.approx(1, abs=1e-3)


def test_kept_gives_every_count_and_the_best_origin() -> None:
    found = truth.kept(known_crystal(), small_network(), (1, 3))
    assert set(found) == {"plain", "engine"}
    assert all(len(values) == 3 for mode in found.values() for values in mode.values())


def test_one_pass_begins_at_the_levels_asked_for() -> None:
    rows = truth.one_pass(known_crystal(), small_network())
    assert [row["level"] for row in rows] == list(truth.LEVELS)
    for row in rows:
        assert row["network"][0] == pytest.approx(row["level"], abs=0.08)


def test_the_tables_of_truth() -> None:
    def row(d_min: float, noise: float | None, last: float) -> truth.Row:
        kept = {mode: {who: [0.99, last, last + 0.02] for who in truth.WHO} for mode in ("plain", "engine")}
        measured = noise is None
        return {
            "what": "measured" if measured else "box", "which": "5e5z" if measured else d_min, "noise": noise,
            "d_min": d_min, "kept": kept,
        }  # fmt: skip

    rows = [row(1.8001, 0.0, 0.96), row(1.8001, 0.0, 0.94), row(2.0, 0.05, 0.8), row(1.66, None, 0.9)]
    assert "plain, to 1.8 A, at the best origin: CC >= 0.95 in 2 of 3, lowest 0.920, mean 0.953" in truth.verdicts(rows)
    assert "plain, to 2 A, at the best origin: CC >= 0.9 in 3 of 4, lowest 0.820, mean 0.920" in truth.verdicts(rows)
    report = {"settings": {"network": "n", "sha256": "0" * 64, "cycles": [1, 9]}, "rows": rows}
    text = truth.markdown(report)
    assert "| 1.8001 A, exact | 2 | 0.990 0.950 [0.970] |" in text
    assert "| 5e5z, 1.66 A | 1 | 0.990 0.900 [0.920] |" in text
