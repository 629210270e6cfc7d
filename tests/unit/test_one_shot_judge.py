"""How one-shot networks are judged, against calculations of other kinds; their weights and cards; the race."""

import json
from dataclasses import replace
from functools import partial

import gemmi
import numpy as np
import pytest
import torch
from made_library import peptide_library

from benchmarks.one_shot import Results, digest
from benchmarks.one_shot_race import (
    METHODS,
    Crystal,
    PhasedStarts,
    alone,
    entrants,
    predicted,
    race,
    seconds_to,
    summary,
)
from ml_phaser.cli import train_one_shot
from ml_phaser.errors import UserError
from ml_phaser.evaluation import one_shot
from ml_phaser.evaluation.one_shot import (
    BLOB,
    BLOB_F,
    CHANCE,
    Blob,
    Phases,
    Plan,
    Reflections,
    Scores,
    evaluate,
    first,
    judge,
    pass_name,
    phase_errors,
)  # fmt: skip
from ml_phaser.evaluation.one_shot_report import brief, markdown
from ml_phaser.evaluation.published import published_batches
from ml_phaser.networks import store
from ml_phaser.networks.crysformer import CrysFormer, CrysFormerConfig
from ml_phaser.networks.store import bundled_one_shot, kind_of, load_one_shot, read_card, save_one_shot
from ml_phaser.networks.unet import UNet, UNetConfig
from ml_phaser.phasing.projections import forward, inverse
from ml_phaser.simulate.families import make
from ml_phaser.simulate.fragments import save_library
from ml_phaser.simulate.one_shot import OneShotRecipe, one_shot_batches

RECIPE = OneShotRecipe("dialanine-1b", 2.0, 0.84, 3)
SMALL = Plan(crystals=6, passes=3, last=2, batch=4, drawn=64)
TINY = {
    "unet": UNetConfig(edge=4, features=4, blocks=1, squeeze=True, recycled=True, d_min=2.0, spacing=0.84),
    "crysformer": CrysFormerConfig(dim=16, depth=1, heads=2, stem=4, patch=3, family="dialanine-1b", d_min=2.0,
                                   spacing=0.84),
}  # fmt: skip
KINDS = {"unet": UNet, "crysformer": CrysFormer}


@pytest.fixture(scope="module")
def library():
    return peptide_library()


@pytest.fixture(scope="module")
def batch(library):
    return next(one_shot_batches(library, 4, 3, RECIPE))


@pytest.fixture(scope="module")
def blob(library):
    return Blob(one_shot_batches(library, 16, 9, RECIPE), 64)


def reflections(batch):
    shape = tuple(batch.truth.shape[1:])
    return [Reflections.of(h, length, shape, RECIPE.d_min) for h, length in zip(batch.half, batch.lengths, strict=True)]


def test_phase_errors_are_those_of_the_whole_sphere(batch):
    other = batch.truth.roll(1, 0) + batch.truth
    found = phase_errors(forward(other), batch.half)
    for i in range(len(other)):
        f, g = (np.fft.fftn(x[i].numpy().astype(float)) for x in (batch.truth, other))
        inside = np.abs(f) > 1e-3 * np.abs(f).max()
        error = np.abs(np.angle(g * f.conj()))[inside]
        assert float(found[i]) == pytest.approx(np.rad2deg(np.average(error, weights=np.abs(f)[inside])), abs=0.3)


def test_reflections_are_all_to_the_resolution_limit_and_give_the_map_back(batch):
    one = reflections(batch)[0]
    assert one.cell.parameters == (10, 10, 10, 90, 90, 90)
    steps = np.arange(-5, 6)
    sphere = sum((h * h + k * k + m * m) <= 25 for h in steps for k in steps for m in steps) - 1
    assert len(one.hkl) == sphere // 2
    rho = inverse(torch.from_numpy(one.places.scatter(one.f))[None], batch.truth.shape[1:])
    assert torch.allclose(rho[0].float(), batch.truth[0], atol=1e-4)


def test_origin_and_hand_count_where_the_papers_judge_and_not_at_the_best_ones(batch):
    moved = batch.truth.roll((2, 5, 7), (1, 2, 3))
    mirrored = moved.flip((1, 2, 3))
    for rho, right in ((moved, 1.0), (mirrored, 0.0)):
        scores = Scores()
        scores.add(rho, batch, reflections(batch))
        assert max(scores.cc) < 0.7 and min(scores.error) > 45
        assert min(scores.free_cc) == pytest.approx(1, abs=1e-3) and max(scores.free_error) < 1
        assert scores.hand == [right] * len(batch.truth)
    scores = Scores()
    scores.add(batch.truth, batch, reflections(batch))
    assert scores.cc == pytest.approx([1] * 4, abs=1e-5) and max(scores.error) < 0.1


def test_a_flat_map_tells_nothing(batch):
    """As of a network whose last function is saturated for one crystal."""
    rho = batch.truth.clone()
    rho[1] = -1
    scores = Scores()
    scores.add(rho, batch, reflections(batch))
    for column, flat in ((scores.cc, 0.0), (scores.free_cc, 0.0), (scores.error, 90.0), (scores.free_error, 90.0)):
        assert column[1] == pytest.approx(flat, abs=1e-4)
        assert column[0] == pytest.approx(0.0 if flat else 1.0, abs=0.1)
    assert scores.hand == [1, 0.5, 1, 1]


def test_the_constant_prediction_is_the_mean_map(library, blob):
    maps = torch.cat([b.truth for b in first(one_shot_batches(library, 16, 9, RECIPE), 64)])
    assert torch.allclose(blob.on((12, 12, 12))[0], maps.mean(0), atol=1e-4)
    # on a grid that had too few crystals: the same density, at the same fractional places
    small = Blob(one_shot_batches(library, 4, 9, replace(RECIPE, multiple=4, spacing=0.6)), 4)
    assert small.on((20, 20, 20)).shape == (1, 20, 20, 20)
    mixed = Blob([*first(one_shot_batches(library, 4, 9, RECIPE), 4),
                  *first(one_shot_batches(library, 4, 9, replace(RECIPE, multiple=16)), 4)], 8)  # fmt: skip
    assert set(mixed.counts) == {(12, 12, 12), (16, 16, 16)}
    fine, coarse = mixed.on((16, 16, 16)), mixed.on((12, 12, 12))
    assert torch.allclose(fine[:, ::4, ::4, ::4] * 16**1.5, coarse[:, ::3, ::3, ::3] * 12**1.5, atol=1e-2)


def test_a_network_sees_moduli_alone_and_must_beat_the_constant_prediction(library, blob):
    batches = list(first(one_shot_batches(library, 4, 3, RECIPE), SMALL.crystals))
    seen = []

    def constant(patterson, parts, recycled, lengths):
        seen.append(patterson)
        return blob.on((12, 12, 12)).expand(len(patterson), -1, -1, -1)

    way = {"recycled": True, "trained": 2, "data": ""}
    report = judge(constant, batches, blob, RECIPE, SMALL, **way)
    square = np.abs(np.fft.fftn(batches[0].truth[0].numpy().astype(float))) ** 2
    wanted = np.fft.ifftn(square).real
    assert np.corrcoef(seen[0][0, 0].numpy().ravel(), wanted.ravel())[0, 1] == pytest.approx(1, abs=1e-4)
    assert [row.name for row in report.rows] == [
        BLOB, BLOB_F, CHANCE, *(pass_name(k, f) for k in (1, 2, 3) for f in (False, True)),
    ]  # fmt: skip
    assert report.lead.value == pytest.approx(0, abs=1e-6) and not report.beats_blob
    assert report.row(BLOB).cc.value == pytest.approx(report.row("pass 1").cc.value, abs=1e-6)
    assert abs(report.row(CHANCE).cc.value) < 0.3 and report.row(CHANCE).free_cc.value > 0.25
    assert all(b.agreement == pytest.approx(1) for b in report.reliability)  # a constant agrees with itself

    turn = iter([b for b in batches for _ in range(SMALL.passes)])
    report = judge(lambda *_: next(turn).truth, batches, blob, RECIPE, SMALL, **way)
    assert report.beats_blob and report.row("pass 2, |F|").cc.value == pytest.approx(1, abs=1e-4)
    assert max(s.error for s in report.shells) < 1
    assert sum(s.n for s in report.shells) == sum(len(r.hkl) for b in batches for r in reflections(b))
    assert report.passes == 2 and brief(report)["rows"]["pass 2"]["cc"][0] == pytest.approx(1, abs=1e-3)
    assert "| pass 3, \\|F\\| |" in markdown(report)


def test_agreement_of_passes_is_held_against_the_cosine_of_the_error(batch):
    rng = np.random.default_rng(1)
    crystals = reflections(batch)[:1]
    f = crystals[0].f
    passes = []
    for _ in range(4):
        noisy = f * np.exp(1j * rng.normal(0, 0.3, len(f)))
        passes.append(inverse(torch.from_numpy(crystals[0].places.scatter(noisy))[None], batch.truth.shape[1:]))
    phases = Phases()
    phases.add(passes, crystals)
    bins = phases.reliability()
    assert sum(b.n for b in bins) == len(f)
    error = np.angle(crystals[0].gather(forward(passes[-1])[0]) * f.conj())
    assert sum(b.n * b.cosine for b in bins) / len(f) == pytest.approx(np.cos(error).mean())
    assert sum(b.n * b.agreement for b in bins) / len(f) == pytest.approx(np.exp(-0.045) ** 1, abs=0.03)
    # half of the spread of four draws is lost when they are compared with their own mean
    shells = phases.shells()
    total = np.rad2deg(np.average(np.abs(error), weights=np.abs(f)))
    lowest = np.argsort(crystals[0].cell.calculate_1_d2_array(crystals[0].hkl))[: shells[0].n]
    assert shells[0].error == pytest.approx(np.rad2deg(np.average(np.abs(error[lowest]), weights=np.abs(f[lowest]))))
    assert min(s.error for s in shells) <= total <= max(s.error for s in shells)


def test_published_fragments_are_the_recipe_s(library):
    recipe = OneShotRecipe("residues-15", 2.0, 1.0, 4, parts=True)
    found = list(published_batches(library, ["2XYZ_1_3", "9ZZZ_1_1", "3XYZ_1_5"], recipe))
    assert len(found) == 2 and found[0].parts.shape[:2] == (1, 15)
    sim = make("residues-15", 0, library, fragment="2XYZ_1_3", d_min=2.0)
    one = Reflections.of(found[0].half[0], found[0].lengths[0], tuple(found[0].truth.shape[1:]), 2.0)
    table = {tuple(h): f for h, f in zip(sim.hkl.tolist(), sim.f, strict=True)}
    both = np.array([(f, table[tuple(h)]) for h, f in zip(one.hkl.tolist(), one.f, strict=True) if tuple(h) in table])
    assert len(both) == len(table) and len(both) >= len(one.hkl) - 4  # (14 9 5) and its like lie at 2 A exactly
    own, other = both.T
    assert np.abs(np.vdot(own, other)) / np.linalg.norm(own) / np.linalg.norm(other) > 0.9999
    assert np.real(np.vdot(own, other)) > 0


@pytest.mark.parametrize("kind", KINDS)
def test_weights_come_back_with_their_statistics(kind, tmp_path):
    network = KINDS[kind](TINY[kind])
    state = network.state_dict()
    for name, value in state.items():
        if "running_var" in name:
            value.fill_(1e6)  # half precision ends at 65504
        if "num_batches" in name:
            value.fill_(70_000)
    card = save_one_shot(state, kind, network.config, {"passes": 2}, f"{kind}-tiny", tmp_path)
    back = load_one_shot(f"{kind}-tiny", tmp_path)
    assert type(back) is KINDS[kind] and back.config == network.config and not back.training
    for name, value in back.state_dict().items():
        wanted = state[name].half().float() if state[name].ndim > 1 else state[name]
        assert torch.equal(value, wanted), name
    assert [c.name for c in bundled_one_shot(tmp_path)] == [f"{kind}-tiny"]
    assert kind_of(json.loads(card.read_text())["config"], "here") == kind
    assert digest(back) == digest(load_one_shot(f"{kind}-tiny", tmp_path))


@pytest.mark.parametrize(
    ("change", "what"),
    [({"kind": "oracle"}, "unknown kind of network"), ({"sha256": "0"}, "not those of the model card"),
     ({"config": {"crystal": 1}}, "unknown network configuration")],
)  # fmt: skip
def test_what_is_not_known_is_refused(change, what, tmp_path):
    card = save_one_shot(UNet(TINY["unet"]).state_dict(), "unet", TINY["unet"], {}, "unet-x", tmp_path)
    card.write_text(json.dumps({**json.loads(card.read_text()), **change}))
    with pytest.raises(UserError, match=what):
        load_one_shot("unet-x", tmp_path)
    with pytest.raises(UserError, match="not a one-shot network"):
        kind_of({"channels": (8,)}, "there")


def test_weights_too_large_for_a_package_are_refused(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(store, "LARGEST", 10_000)
    monkeypatch.setattr(one_shot, "evaluate", None)  # it is told before the network is judged
    assert train_one_shot.main([*trained[0], "export", "crysformer-x", "weights", str(tmp_path)]) == 1
    assert "MB a package may bring along" in capsys.readouterr().err
    with pytest.raises(UserError, match="MB a package may bring along"):
        save_one_shot(UNet(TINY["unet"]).state_dict(), "unet", TINY["unet"], {}, "unet-x", tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def trained(library, tmp_path_factory):
    """A run of a network that has learned nothing, and coordinates."""
    folder = tmp_path_factory.mktemp("run")
    save_library(library, folder / "train.npz", "train")
    save_library(library, folder / "held.npz", "holdout")
    given = [
        "data",
        folder / "train.npz",
        "out",
        folder / "run",
        "family",
        "dialanine-1b",
        "resolution",
        2,
        "spacing",
        0.84,
    ]
    given += ["network", "crysformer", "width", 32, "depth", 1, "patch", 3, "batch", 2, "quiet", "yes"]
    words = [str(word) for word in given]
    assert train_one_shot.main([*words, "seconds", "0.2"]) == 0
    return [*words, "holdout", str(folder / "held.npz"), "crystals", "8"], folder


@pytest.fixture(autouse=True)
def few_molecules(monkeypatch):
    """Make the mean map that export compares with of few molecules."""
    monkeypatch.setattr(one_shot, "Plan", partial(Plan, drawn=64, passes=3))


def test_no_network_is_exported_that_is_no_better_than_the_mean_map(trained, tmp_path, capsys):
    words, _ = trained
    assert train_one_shot.main([*words, "export", "crysformer-none", "weights", str(tmp_path)]) == 1
    assert "does not beat the mean map" in capsys.readouterr().err
    assert train_one_shot.main([*words, "export", "best", "weights", str(tmp_path)]) == 1
    assert "crysformer-NAME" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_card_says_what_the_network_is(trained, tmp_path, monkeypatch):
    words, folder = trained
    monkeypatch.setattr(one_shot.Report, "beats_blob", True)
    assert train_one_shot.main([*words, "export", "crysformer-x", "weights", str(tmp_path)]) == 0
    facts = read_card("crysformer-x", tmp_path).facts
    assert facts["kind"] == "crysformer" and facts["passes"] == 3
    assert facts["domain"]["cell_edges_A"] == {"shortest": [10.0] * 3, "longest": [10.0] * 3}
    assert facts["domain"]["d_min_A"] == 2.0 and facts["domain"]["family"] == "dialanine-1b"
    record = json.loads((folder / "run" / "run.json").read_text())
    assert facts["training_data"]["sha256"] == record["data"]["sha256"]
    assert facts["training_run"]["samples"] == record["samples"] > 0
    assert facts["benchmark"]["rows"]["pass 3"]["cc"][0] < 0.9 and facts["limits"]
    loaded = load_one_shot("crysformer-x", tmp_path)
    checkpoint, kind, _ = train_one_shot.averaged(folder / "run" / "checkpoint.pt")
    assert kind == "crysformer" and digest(loaded) == digest(checkpoint)


@pytest.mark.parametrize("card", bundled_one_shot(), ids=lambda card: card.name)
def test_bundled_networks_are_what_their_cards_say(card, library):
    network = load_one_shot(card.name)
    recipe = train_one_shot.recipe_of(network.config)
    plan = Plan(crystals=8, passes=card.facts["passes"], batch=8, drawn=64)
    report = evaluate(network, library, recipe, plan, recycled=network.config.recycled, trained=card.facts["passes"])
    said = card.facts["benchmark"]["rows"][pass_name(report.passes, False)]["cc"][0]
    # ideal helices with bends are no deposited conformers: near what it says is enough
    assert report.row(pass_name(report.passes, False)).cc.value > said - 0.15
    assert (store.FOLDER / f"{card.name}.safetensors").stat().st_size <= store.LARGEST


def test_starts_from_true_phases_are_the_truth_but_for_what_is_held_out(batch):
    crystal = Crystal.of(batch, 0, RECIPE.d_min)
    entrant = entrants(crystal.data, METHODS[1], 0)[0]
    problem = entrant.problem
    maps = PhasedStarts(problem, np.angle(crystal.truth.f)[entrant.rows]).make(
        3, torch.Generator().manual_seed(1), True
    )
    f = problem.gather_p1(forward(maps[:1])[0])
    held = problem.held[problem.expansion.asu]
    assert held.any() and np.abs(f[held]).max() < 1e-5 * np.abs(f).max()
    true = crystal.truth.f[entrant.rows].conj()
    phases = [problem.expansion.average(problem.gather_p1(half), len(f)) * true for half in forward(maps)]
    errors = [np.abs(np.angle(x))[~problem.held].max() for x in phases]
    assert errors[0] < 1e-2 < 0.1 < min(errors[1:]) and errors[1] != errors[2]


def test_the_race_is_run_blind_and_timed(batch, tmp_path):
    crystal = Crystal.of(batch, 0, RECIPE.d_min)
    row = race(crystal, METHODS[0], None, before=0.0, seconds=0.3, seed=1, batch=4)
    assert row["cc"] > 0.95 and row["starts"] >= 4 and row["solved"] >= 1 and row["first"] >= 1
    times, reached = zip(*row["curve"], strict=True)
    assert list(times) == sorted(times) and list(reached) == sorted(reached)
    assert seconds_to(row, 0.5) <= seconds_to(row, 0.95) < seconds_to(row, 1.1) == float("inf")
    true = np.angle(crystal.truth.f)
    later = race(crystal, METHODS[1], true, before=5.0, seconds=5.1, seed=1, batch=2)
    assert later["curve"][0][0] > 5.0  # what the network took counts
    lone = alone(crystal, true, 0.5)
    assert lone["cc"] == pytest.approx(1, abs=1e-3) and lone["hand"] and lone["seconds"] == 0.5
    told = summary([row, {**row, "first": None, "curve": []}], 0.3, [0.5, 0.5])
    assert told["n"] == 2 and told["reached"] == 0.5 and told["starts_solved"] == row["solved"] / row["starts"]
    network = CrysFormer(TINY["crysformer"]).eval()
    phases, seconds = predicted(network, crystal, 2)
    assert phases.shape == (len(crystal.data),) and seconds > 0
    base = {"family": "f", "d_min": 2.0, "limit": 0.3, "crystal": "c"}
    results = Results(tmp_path / "new" / "one_shot")
    results.add("race", "a", {**base, "network": "net", "way": "alone", "method": "", **lone})
    results.add("race", "b", {**base, "way": "random", "method": METHODS[0], **row})
    again = Results(tmp_path / "new" / "one_shot")
    assert again.rows["race"]["b"]["curve"] == row["curve"]
    table = (tmp_path / "new" / "one_shot.md").read_text()
    assert "| net, alone | 1 | 1.000" in table and f"| {METHODS[0]}, from random phases | 1 |" in table


def test_gemmi_agrees_on_the_resolution_of_reflections(batch):
    one = reflections(batch)[1]
    assert np.asarray(gemmi.UnitCell(10, 10, 10, 90, 90, 90).calculate_d_array(one.hkl)).min() >= 2.0 - 1e-5
