"""Starts from the prediction of a one-shot network: for which crystals, and what comes of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import gemmi
import numpy as np
import pytest
import torch

from ml_phaser import beginnings
from ml_phaser import plan as planning
from ml_phaser.arrays import NUMPY
from ml_phaser.cli import arguments
from ml_phaser.crystal.normalise import normalise
from ml_phaser.crystal.reflections import Amplitudes, Source
from ml_phaser.errors import UserError
from ml_phaser.handedness import decide, predicted_hand
from ml_phaser.networks.domain import Domain, outside
from ml_phaser.networks.runtime import Runtime
from ml_phaser.networks.store import Card
from ml_phaser.networks.unet import UNet, UNetConfig
from ml_phaser.parameters import Options
from ml_phaser.phasing.prediction import PASSES
from ml_phaser.simulate.families import make
from ml_phaser.simulate.simulated import amplitudes

SURE = [{"mean_agreement": 0.5, "cosine": 0.2}, {"mean_agreement": 1.0, "cosine": 0.999}]
JUDGED = {"reliability": SURE, "rows": {"pass 2, |F|": {"hand_right": [0.9, 0.02], "cc": [0.8, 0.01]}}}
CUBE = Domain(2.0, (10.0,) * 3, (10.0,) * 3)
BOXES = Domain(1.5, (4.0,) * 3, (20.0,) * 3)


@pytest.mark.parametrize(
    ("domain", "cell", "group", "d_min", "reason"),
    [
        (CUBE, (10, 10, 10, 90, 90, 90), "P 1", 2.0, ""),
        (CUBE, (10.1, 9.9, 10, 90.5, 90, 90), "P 1", 1.2, ""),
        (CUBE, (10, 10, 10, 90, 90, 90), "P 1 21 1", 2.0, "P 1 alone, not P 1 21 1"),
        (CUBE, (10, 10, 10, 90, 95, 90), "P 1", 2.0, "right angles"),
        (CUBE, (10.3, 10, 10, 90, 90, 90), "P 1", 2.0, "cells from 10 x 10 x 10"),
        (CUBE, (10, 10, 9.7, 90, 90, 90), "P 1", 2.0, "cells from 10 x 10 x 10"),
        (CUBE, (10, 10, 10, 90, 90, 90), "P 1", 2.1, "wants data to 2 A, these end at 2.10"),
        (BOXES, (12, 9, 7, 90, 90, 90), "P 1", 1.5, ""),
        (BOXES, (9, 12, 7, 90, 90, 90), "P 1", 1.5, "a longest"),
    ],
)
def test_a_network_knows_its_domain(domain, cell, group, d_min, reason):
    found = outside(domain, cell, group, d_min)
    assert (found == "") if not reason else (reason in found)


@pytest.fixture(scope="module")
def crystal():
    made = make("peptide", 5, None, sequence="GAS", spacegroup="P1", d_min=1.6, noise=0.02, waters=0)
    return made, amplitudes(made)


@pytest.fixture
def bundled(crystal, monkeypatch):
    """A network whose domain the crystal is in, and which predicts its density."""
    made, data = crystal
    cell = data.cell.parameters
    config = UNetConfig(edge=8, features=8, blocks=1, d_min=1.7, spacing=0.6, longest=cell[:3], shortest=cell[:3])
    card = Card("unet-test", "ab" * 32, {**vars(config)}, {"kind": "unet", "benchmark": JUDGED, "passes": 2})
    monkeypatch.setattr(beginnings, "bundled_one_shot", lambda: [card])
    monkeypatch.setattr(beginnings, "outside", lambda domain, cell, group, d_min: "")

    class Known(UNet):
        calls = 0

        def forward(self, patterson, parts, recycled, lengths):
            Known.calls += 1
            assert bool((recycled == 0).all()) == (Known.calls == 1)
            shape = tuple(patterson.shape[2:])
            half = coefficients(made, shape)
            return torch.fft.irfftn(half, s=shape, dim=(0, 1, 2))[None].to(patterson)

    network = Known(config)
    monkeypatch.setattr(beginnings, "load_one_shot", lambda name: network)
    return network


def coefficients(made, shape):
    """The true coefficients on a grid, as crystal.grid places them."""
    from ml_phaser.crystal.grid import HalfSphere

    near = np.all(np.abs(made.hkl) <= (np.array(shape) - 1) // 2, axis=1)
    return torch.from_numpy(HalfSphere.of(made.hkl[near], shape).scatter(made.f[near]))


def options(**chosen) -> Options:
    return replace(Options(Path("x.mtz"), mapout=Path("x.map"), hklout=Path("y.mtz"), jsonout=Path("x.json")), **chosen)


def test_the_first_start_is_the_prediction(crystal, bundled):
    made, data = crystal
    normalised = normalise(data)
    plan = planning.plan_phasing(data, normalised, options())
    assert type(bundled).calls == PASSES
    assert plan.predictor == {"name": "unet-test", "sha256": "ab" * 32, "runtime": "torch", "hand_right": 0.9}
    assert any("unet-test predicts" in choice for choice in plan.choices)
    first = plan.entrants[0]
    assert first.method.name.endswith("from the prediction")
    assert "from the prediction" not in plan.entrants[-1].method.name
    generator = torch.Generator().manual_seed(0)
    maps = first.starts(2, generator)
    problem = first.problem
    found = problem.gather_p1(torch.fft.rfftn(maps[0], norm="ortho"))
    # The phases are the true ones to the resolution the network sees, and there are none beyond or where held out.
    d = np.asarray(data.cell.calculate_d_array(problem.expansion.hkl))
    seen = (np.abs(found) > 1e-6 * np.abs(found).max()) & (d > 1.71)
    assert 0.7 < seen[d > 1.71].mean() <= 1
    assert np.abs(found[d < 1.69]).max() < 1e-4 * np.abs(found).max()
    truth = {tuple(h): f for h, f in zip(made.hkl.tolist(), made.f, strict=True)}
    truth |= {tuple(h): f.conjugate() for h, f in zip((-made.hkl).tolist(), made.f, strict=True)}
    both = [(f, truth[tuple(h)]) for h, f in zip(problem.expansion.hkl[seen].tolist(), found[seen], strict=True)]
    own, right = np.array(both).T
    assert np.cos(np.angle(own * right.conj())).min() > 0.999
    # The second differs only by the doubt, of which there is none here.
    assert float((maps[1] - maps[0]).abs().max()) < 0.2 * float(maps[0].abs().max())


def test_random_starts_ask_no_network(crystal, bundled):
    _, data = crystal
    plan = planning.plan_phasing(data, normalise(data), options(starts="random"))
    assert plan.predictor == {} and type(bundled).calls == 0
    assert not any("from the prediction" in e.method.name for e in plan.entrants)


def test_outside_of_the_domain_the_log_says_so(crystal, bundled, monkeypatch):
    _, data = crystal
    monkeypatch.setattr(beginnings, "outside", lambda *_: "it knows cats alone")
    plan = planning.plan_phasing(data, normalise(data), options())
    assert any("unet-test: it knows cats alone" in choice for choice in plan.choices)
    assert plan.predictor == {}
    with pytest.raises(UserError, match=r"no bundled network knows such crystals.*cats.*starts auto"):
        planning.plan_phasing(data, normalise(data), options(starts="network"))


def test_asked_for_and_none_bundled(crystal, monkeypatch):
    _, data = crystal
    monkeypatch.setattr(beginnings, "bundled_one_shot", list)
    with pytest.raises(UserError, match="there is none"):
        planning.plan_phasing(data, normalise(data), options(starts="network"))


def test_agreement_of_the_passes_is_worth_what_it_was_found_to_be(bundled):
    card = beginnings.bundled_one_shot()[0]
    assert beginnings.merit(np.array([0.0, 0.5, 0.75, 1.0]), card) == pytest.approx([0.2, 0.2, 0.5995, 0.999])


def test_residues_of_the_sequence_are_shown_to_a_network_that_knows_as_many(crystal, bundled):
    _, data = crystal
    bundled.config = replace(bundled.config, parts=3)
    seen = []
    forward = type(bundled).forward

    def note(self, patterson, parts, recycled, lengths):
        seen.append(parts)
        return forward(self, patterson, parts, recycled, lengths)

    type(bundled).forward = note
    normalised = normalise(data)
    for sequence in ("GAS", "GA", "GAX"):
        type(bundled).calls = 0
        plan = planning.plan_phasing(data, normalised, options(), sequences=(sequence,))
        said = any("told that the residues are GAS" in choice for choice in plan.choices)
        assert said == (sequence == "GAS") == bool(seen[-1].any())
        assert seen[-1].shape[1] == 3
    shown = seen[0][0]
    assert shown.std(dim=(1, 2, 3)) == pytest.approx([1.0] * 3, abs=1e-3)
    # Serine, the third, has more atoms than alanine, and all of them are near the middle of the cell.
    middle = [n // 2 for n in shown.shape[1:]]
    assert float(shown[2][tuple(middle)]) > 1 and not torch.allclose(shown[1], shown[2])


def test_a_prediction_tells_the_hand(crystal, bundled):
    made, data = crystal
    normalised = normalise(data)
    predicted = planning.plan_phasing(data, normalised, options()).predicted
    truth = {tuple(h): f for h, f in zip(made.hkl.tolist(), made.f, strict=True)}
    f = np.array([truth[tuple(h)] for h in data.hkl.tolist()])
    odds = np.log(0.9 / 0.1)
    assert predicted_hand(data, normalised, f, predicted, 0.9) == pytest.approx(odds)
    assert predicted_hand(data, normalised, f.conj(), predicted, 0.9) == pytest.approx(-odds)
    assert predicted_hand(data, normalised, np.abs(f) + 0j, predicted, 0.9) == 0  # agrees with both hands alike
    assert predicted_hand(data, normalised, f, predicted, 1.0) == pytest.approx(np.log(99))
    kept, hand = decide(data, normalised, f.conj(), evidence=-100.0)
    assert hand.turned and np.cos(np.angle(kept * f.conj())).mean() > 0.99


def test_the_network_that_was_judged_best_is_taken(crystal, bundled, monkeypatch):
    _, data = crystal
    good = beginnings.bundled_one_shot()[0]
    row = {**JUDGED["rows"]["pass 2, |F|"], "cc": [0.7, 0.01]}
    worse = replace(
        good, name="unet-first", facts={**good.facts, "benchmark": {**JUDGED, "rows": {"pass 2, |F|": row}}}
    )
    monkeypatch.setattr(beginnings, "bundled_one_shot", lambda: [worse, good])
    assert planning.plan_phasing(data, normalise(data), options()).predictor["name"] == "unet-test"


def test_a_network_that_sees_finer_data_is_taken_before_one_judged_a_little_better(bundled):
    """By the share of the data that has no phases where it does not."""
    card = beginnings.bundled_one_shot()[0]
    cell, group = gemmi.UnitCell(10, 10, 10, 90, 90, 90), gemmi.SpaceGroup("P 1")
    hkl = gemmi.make_miller_array(cell, group, 1.5)
    f = np.ones(len(hkl))
    data = Amplitudes(hkl, f, 0.01 * f, cell, group, Source("simulated", "simulated", ("F", "SIGF"), "amplitude"))
    fine, coarse = (replace(card, config={**card.config, "d_min": d}) for d in (1.5, 2.0))
    share = np.mean(data.d >= 2.0)
    assert beginnings.promised(fine, data) == pytest.approx(beginnings.judged(card)["cc"][0])
    assert beginnings.promised(coarse, data) == pytest.approx(beginnings.judged(card)["cc"][0] * share**0.5)


def test_a_prediction_without_a_runtime_is_refused(crystal, bundled, monkeypatch):
    _, data = crystal
    monkeypatch.setattr(planning, "choose_runtime", lambda engine, device: Runtime(NUMPY, ""))
    with pytest.raises(UserError, match=r"starts network.*needs PyTorch or ONNX Runtime"):
        planning.plan_phasing(data, normalise(data), options(starts="network"))


@pytest.mark.parametrize("name", ["phasein", "seedin"])
def test_predictions_and_given_phases_are_not_mixed(name, tmp_path):
    for file in ("data.mtz", "given.mtz"):
        (tmp_path / file).write_bytes(b"x")
    chosen = options(hklin=tmp_path / "data.mtz", starts="network", **{name: tmp_path / "given.mtz"})
    with pytest.raises(UserError, match=f"starts network.*cannot both.*leave it or {name} out"):
        arguments._check_starts(chosen)
