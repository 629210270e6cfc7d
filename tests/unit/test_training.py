"""Training: the loop, what it leaves behind, the command; coordinates on their way to another machine."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial

import gemmi
import numpy as np
import pytest
import scipy.special
import torch
from made_library import made_library

from ml_phaser.cli import main as ml_phaser
from ml_phaser.cli.train import averaged, main
from ml_phaser.errors import UserError
from ml_phaser.evaluation import one_pass
from ml_phaser.networks.projector import Projector, ProjectorConfig
from ml_phaser.networks.store import load_projector, read_card
from ml_phaser.phasing.projections import (
    forward,
    has_bfloat16,
    impose_amplitudes,
    inverse,
    restore,
    sharpened,
    unit_variance,
)
from ml_phaser.phasing.weighting import LEAST, MOST
from ml_phaser.simulate.batches import Recipe, collate, make_sample
from ml_phaser.simulate.fragments import load_library, save_library
from ml_phaser.training.alone import alone
from ml_phaser.training.chains import HELD, Chain, Chains, best_shift, shifted
from ml_phaser.training.loop import (
    CHECKPOINT,
    LOG,
    LOG_EVERY,
    Schedule,
    learning_rate,
    read_checkpoint,
    train,
    untrained,
)
from ml_phaser.training.muon import Both, orthogonal
from ml_phaser.training.projection import Repair, correlation, phase_agreement, projection_lessons
from ml_phaser.training.record import RECORD, claims
from ml_phaser.training.workers import seed_of, stream

TINY = ProjectorConfig(channels=(8, 16), blocks=(1, 1))
SHAPE = (16, 16, 16)
PLAIN = Repair(own_cycles=2, told=0)


@pytest.fixture(scope="module")
def library():
    return made_library()


@pytest.fixture(scope="module")
def batch(library):
    """Two little crystals."""
    rng = np.random.default_rng(5)
    families = (("box", 1.0),)
    recipe = Recipe(d_min=(1.6, 1.8), quality=(0.4, 0.5), kinds=(("phase", 1.0),), families=families)
    samples = [make_sample(rng, library, SHAPE, recipe) for _ in range(2)]
    return collate(samples, SHAPE)


def restored(network, batch):
    return restore(network, batch.start_maps(), batch.target, batch.cond, batch.model)


def steps(count):
    """Stop after so many asked-for steps."""
    counter = itertools.count()
    return lambda: next(counter) >= count


def loop(batch, out, count, *, schedule=None, config=TINY, repair=PLAIN, seed=0, asked=None, **options):
    """Train on the same batch for ``count`` steps, no clock involved."""

    def source(done):
        if asked is not None:
            asked.append(done)
        return itertools.repeat(batch)

    schedule = schedule or Schedule(1e6, batch=2, warmup=0, rate=5e-3)
    lessons = projection_lessons(source, repair, seed)
    return train(untrained(Projector, config, seed), schedule, lessons, out, stop=steps(count), **options)


# ------------------------------------------------------------------------------------------ loop


def test_it_learns_one_batch_by_heart(batch, tmp_path):
    def loss(network):
        with torch.no_grad():
            return float((restored(network, batch) - batch.truth).pow(2).mean())

    before = loss(untrained(Projector, TINY, 0))
    said = []
    state = loop(batch, tmp_path, LOG_EVERY, say=said.append)
    assert loss(state.network) < 0.5 * before
    mean = Projector(TINY)
    mean.load_state_dict(state.mean)
    assert loss(mean) < 0.8 * before
    row = json.loads((tmp_path / LOG).read_text())
    assert (row["step"], row["samples"]) == (LOG_EVERY, 2 * LOG_EVERY)
    assert loss(state.network) < row["loss"] < before
    assert row["cc_gain"] > 0.05
    assert len(said) == 1


def test_a_resumed_run_goes_on_where_it_stopped(batch, tmp_path):
    asked, saved = [], []
    first = loop(batch, tmp_path, 3, asked=asked)
    second = loop(batch, tmp_path, 2, asked=asked, saved=lambda s: saved.append(s.steps))
    assert asked == [0, 3]
    assert (second.steps, second.samples) == (5, 10)
    assert second.seconds > first.seconds > 0
    assert saved == [5]
    kept = read_checkpoint(tmp_path / CHECKPOINT)
    assert (kept["steps"], kept["samples"], kept["seconds"]) == (5, 10, second.seconds)


def test_stopping_does_not_change_what_is_learnt(batch, tmp_path):
    whole = loop(batch, tmp_path / "whole", 4)
    loop(batch, tmp_path / "parts", 2)
    parts = loop(batch, tmp_path / "parts", 2)
    for name, value in whole.mean.items():
        assert torch.allclose(parts.mean[name], value, atol=1e-6), name


def test_seed_makes_the_network(batch, tmp_path):
    def weights(seed, name):
        return loop(batch, tmp_path / name, 1, seed=seed).network.stem.weight

    assert torch.equal(weights(1, "a"), weights(1, "b"))
    assert not torch.equal(weights(1, "a"), weights(2, "c"))


def test_budget_and_session_end_it(batch, tmp_path):
    def run(seconds, name, **options):
        lessons = projection_lessons(lambda _: itertools.repeat(batch), Repair(), 0)
        schedule = Schedule(seconds, batch=2)
        return train(untrained(Projector, TINY, 0), schedule, lessons, tmp_path / name, **options)

    assert run(0, "a").steps == 0
    told = []
    state = run(0.3, "b", progress=told.append)
    assert state.steps >= 1
    assert 0.3 <= state.seconds < 3
    assert told[-1] >= 1
    short = run(50, "c", session=0.2)
    assert 0.2 <= short.seconds < 5


def test_checkpoints_of_the_first_runs_are_understood(batch, tmp_path):
    loop(batch, tmp_path, 3)
    path = tmp_path / CHECKPOINT
    saved = read_checkpoint(path)
    del saved["samples"]
    torch.save(saved, path)
    assert loop(batch, tmp_path, 1).samples == 3 * 2 + 2


def test_another_network_is_not_continued(batch, tmp_path):
    loop(batch, tmp_path, 1)
    with pytest.raises(UserError, match=r"another network.*channels \(8, 16\), not \(8, 24\)"):
        loop(batch, tmp_path, 1, config=replace(TINY, channels=(8, 24)))


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04"])
def test_damaged_checkpoints_are_refused(batch, tmp_path, content):
    (tmp_path / CHECKPOINT).write_bytes(content)
    with pytest.raises(UserError, match="is not a checkpoint"):
        loop(batch, tmp_path, 1)
    with pytest.raises(UserError, match="there is no checkpoint"):
        read_checkpoint(tmp_path / "other.pt")


def test_divergence_is_told_and_the_good_checkpoint_stays(batch, tmp_path):
    loop(batch, tmp_path, 2)
    bad = replace(batch, truth=batch.truth * float("nan"))
    with pytest.raises(UserError, match="diverged"):
        loop(bad, tmp_path, 1)
    kept = read_checkpoint(tmp_path / CHECKPOINT)
    assert kept["steps"] == 2
    assert all(torch.isfinite(v).all() for v in kept["mean"].values())


def test_learning_rate_rises_and_falls():
    schedule = Schedule(100, rate=1.0, warmup=0.1)
    assert [learning_rate(schedule, x) for x in (0, 0.05)] == [0, 0.5]
    assert learning_rate(schedule, 0.5) == pytest.approx(0.5)
    assert learning_rate(schedule, 1.0) == pytest.approx(0) == learning_rate(schedule, 2.0)


def test_phases_are_judged_by_the_map_of_measured_moduli(batch):
    def agreement(rho):
        return phase_agreement(rho, batch.truth, batch.target)

    truth = agreement(batch.truth)
    assert truth.min() > 0.99
    assert agreement(-batch.truth) == pytest.approx(-truth, abs=1e-5)
    # Moduli do not count, phases do: the map with measured moduli has this correlation with the truth.
    start = batch.start_maps()
    half = forward(start)
    louder = inverse(half * torch.linspace(0.5, 2, half.shape[-1]), start.shape)
    assert agreement(louder) == pytest.approx(agreement(start), abs=0.01)
    assert agreement(start) == pytest.approx(correlation(start, batch.truth), abs=0.03)
    start.requires_grad_()
    agreement(start).sum().backward()
    assert torch.isfinite(start.grad).all()
    assert float((start.grad * batch.truth).sum()) > 0


def test_the_loss_on_phases_counts(batch, tmp_path):
    schedule = Schedule(1e9, warmup=0)
    plain, both = (
        loop(batch, tmp_path / str(x), 40, schedule=schedule, repair=Repair(own_cycles=2, phases=x)).network
        for x in (0.0, 5.0)
    )

    def agreement(network):
        with torch.no_grad():
            return float(phase_agreement(restored(network, batch), batch.truth, batch.target).mean())

    assert agreement(both) > agreement(plain)


def test_a_network_that_begins_with_anothers_weights_does_what_it_does(batch):
    torch.manual_seed(3)
    old = Projector(TINY)
    for value in old.parameters():
        torch.nn.init.normal_(value, std=0.1)
    new = untrained(Projector, TINY, 0, old)
    with torch.no_grad():
        assert torch.equal(restored(new, batch), restored(old, batch))
    with pytest.raises(UserError, match="another network"):
        untrained(Projector, replace(TINY, channels=(8, 24)), 0, old)


def test_the_map_of_e_and_the_model_are_seen(batch):
    torch.manual_seed(3)
    network = Projector(TINY)
    torch.nn.init.normal_(network.head[2].weight)
    rho = batch.start_maps()
    zero = torch.zeros_like(rho)

    def seen(sharp, model):
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=has_bfloat16("cpu")):
            return network(torch.stack([rho, sharp, model], dim=1), batch.cond).float()

    sharp = sharpened(rho, batch.target)
    model = unit_variance(batch.truth)
    with torch.no_grad():
        both = restore(network, rho, batch.target, batch.cond, model)
        assert torch.equal(both, seen(sharp, model))
        assert torch.equal(restore(network, rho, batch.target, batch.cond), seen(sharp, zero))
    for other in (seen(zero, model), seen(sharp, zero)):
        assert not torch.allclose(other, both, atol=1e-3)
    e = forward(sharp).abs()[batch.target.known & batch.target.inside]
    f = forward(rho).abs()[batch.target.known & batch.target.inside]
    assert e.std() / e.mean() < f.std() / f.mean()


# ---------------------------------------------------------------------------------------- chains


def test_maps_are_shifted_as_explicit_sums_say(batch):
    """Oracle: the Fourier sum evaluated point by point at the shifted places."""
    rho = batch.truth[:1]
    shift = torch.tensor([[1.3, -2.6, 0.45]])
    moved = shifted(rho, shift)[0]
    f = torch.fft.fftn(rho[0].double()) / rho[0].numel()
    h = torch.stack(torch.meshgrid(*(torch.fft.fftfreq(n) * n for n in SHAPE), indexing="ij"), dim=-1).double()
    for point in ((0, 0, 0), (3, 7, 11)):
        x = (torch.tensor(point) - shift[0]).double() / torch.tensor(SHAPE)
        value = (f * torch.exp(2j * torch.pi * (h @ x))).sum().real
        assert float(moved[point]) == pytest.approx(float(value), abs=1e-4)


def test_the_best_shift_is_found_again(batch):
    shift = torch.tensor([[1.3, 2.7, 5.2], [7.5, 0.0, 3.3]])
    moved = shifted(batch.truth, shift)
    again = shifted(batch.truth, best_shift(moved, batch.truth))
    assert correlation(again, moved).min() > 0.97


def chain(batch, **changes):
    return Chain(**{"batch": batch, "x": batch.start_maps(), "left": 3, "relaxed": False, "told": False, **changes})


def test_only_a_map_adrift_gets_the_truth_moved_to_it(batch):
    adrift = replace(batch, adrift=torch.tensor([True, False]))
    rho = shifted(batch.truth, torch.tensor([[4.0, 0.0, -3.0]] * 2))
    truth = chain(adrift).truth(rho)
    assert correlation(truth, rho)[0] > 0.99
    assert torch.equal(truth[1], batch.truth[1])


def test_a_chain_cycles_as_the_engine_does(batch):
    made = 0.5 * batch.start_maps() + 0.3 * batch.truth
    plain, relaxed = chain(batch), chain(batch, relaxed=True)
    before = relaxed.x
    plain.advance(made)
    relaxed.advance(made)
    assert (plain.left, relaxed.left) == (2, 2)
    known = batch.target.known & (batch.target.amplitude > 0)
    ratio = (forward(plain.x).abs() / batch.target.amplitude.clamp_min(1e-9))[known]
    assert ratio.std() / ratio.mean() < 0.02
    assert plain.x.pow(2).mean(dim=(1, 2, 3)) == pytest.approx(1, abs=1e-4)
    expected = before + 0.6 * (impose_amplitudes(2 * made - before, batch.target) - made)
    assert torch.allclose(relaxed.x, expected)


def test_a_weighted_chain_cycles_as_pieces_are_completed(batch):
    """What is held out never reaches the network; sigmaA and the weights are numpy's and scipy's."""
    chains = Chains(itertools.repeat(batch), torch.Generator().manual_seed(3), "cpu", count=4)
    assert all(chains.begin(0.0, 0.0, 0.0).witness is None for _ in range(20))
    one = chains.begin(3.0, 0.0, 1.0)
    witness, target = one.witness, one.batch.target
    share = witness.held.sum() / (batch.target.known & (batch.target.to_e > 0)).sum()
    assert 0.5 * HELD < share < 1.6 * HELD and not (target.known & witness.held).any()
    assert torch.equal(target.known | witness.held, batch.target.known)
    half = forward(one.x)
    assert half.abs()[witness.held].max() < 1e-3 * half.abs().max()
    assert torch.equal(witness.held[:, 1:, 1:, 0], witness.held[:, 1:, 1:, 0].flip(1, 2))  # Friedel mates
    made = 0.5 * batch.start_maps() + 0.4 * batch.truth
    one.advance(made)
    new, old = forward(one.x).numpy(), forward(made).numpy()
    for k in range(len(made)):
        to_e, held = batch.target.to_e[k].numpy(), witness.held[k].numpy()
        e, eo = np.abs(old[k]) * to_e, batch.target.amplitude[k].numpy() * to_e
        e, eo = (v / np.sqrt(np.mean(v[v > 0] ** 2)) for v in (e, eo))
        square = np.clip(np.corrcoef(e[held] ** 2, eo[held] ** 2)[0, 1], LEAST, MOST)
        x = 2 * np.sqrt(square) / (1 - square) * e * eo
        known = target.known[k].numpy() & (eo > 0)
        wanted = batch.target.amplitude[k].numpy() * scipy.special.i1e(x) / scipy.special.i0e(x)
        scale = (np.abs(new[k]) * wanted)[known].sum() / (wanted[known] ** 2).sum()
        assert (np.abs(new[k]) <= scale * target.most[k].numpy() * 1.001)[held].all()
        assert np.allclose(np.abs(new[k])[known], scale * wanted[known], rtol=2e-2, atol=1e-2 * scale * wanted.max())
    assert one.x.pow(2).mean(dim=(1, 2, 3)) == pytest.approx(1, abs=1e-4)
    shares = [chains.begin(0.0, 0.0, 0.4).witness is not None for _ in range(300)]
    assert np.mean(shares) == pytest.approx(0.4, abs=0.1)


def test_chains_are_gone_on_with_for_as_long_as_asked(batch):
    chains = Chains(itertools.repeat(batch), torch.Generator().manual_seed(0), "cpu", count=4)
    assert {chains.begin(0.0, 0.0).left for _ in range(50)} == {1}
    lives = [chains.begin(2.0, 0.5) for _ in range(400)]
    # The whole part of an exponential of mean 2, and one.
    assert np.mean([c.left for c in lives]) == pytest.approx(1 + 1 / (np.exp(0.5) - 1), rel=0.15)
    for share in (np.mean([c.told for c in lives]), np.mean([c.relaxed for c in lives])):
        assert share == pytest.approx(0.5, abs=0.1)
    taken = [chains.next((2.0, 2.0), 0.0) for _ in range(20)]
    assert 4 <= len({id(c) for c in taken}) < 20
    for c in taken:
        c.left = 0
    assert not {id(chains.next((2.0, 2.0), 0.0)) for _ in range(4)} & {id(c) for c in taken}


# ------------------------------------------------------------------------------------------ muon


def test_muon_applies_the_orthogonal_part_of_its_momentum():
    """Oracle: the singular value decomposition."""
    generator = torch.Generator().manual_seed(0)
    for shape in ((16, 40), (40, 16)):
        matrix = torch.randn(shape, generator=generator)
        u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
        inner = u.T @ orthogonal(matrix) @ vh.T
        assert torch.allclose(inner, torch.diag(inner.diag()), atol=0.05)
        assert inner.diag().min() > 0.6
        assert inner.diag().max() < 1.3


def test_muon_has_the_convolutions_and_no_more():
    network = Projector(TINY)
    muon, rest = Both(network, 1e-3, 0.1).optimisers
    wide = {id(p) for p in muon.param_groups[0]["params"]}
    names = {n for n, p in network.named_parameters() if id(p) in wide}
    assert "shrink.0.weight" in names
    assert all(n.endswith("weight") and ("conv" in n or "shrink" in n or "grow" in n) for n in names)
    assert len(wide) + len(rest.param_groups[0]["params"]) == len(list(network.parameters()))


# --------------------------------------------------------------------------------------- crystals


def test_stream_is_repeatable_and_never_the_same_twice(library):
    def first(**changes):
        return next(stream(library, 1, **{"seed": 0, "steps": 0, **changes})).start

    a = first()
    assert torch.equal(a, first())
    for changes in ({"seed": 1}, {"steps": 1}):
        other = first(**changes)
        assert other.shape != a.shape or not torch.equal(other, a)
    assert len({seed_of(s, n, w) for s, n, w in itertools.product(range(5), repeat=3)}) == 125


def test_workers_make_crystals_of_their_own(library):
    many = stream(library, 1, 0, 7, workers=2)
    got = [next(many) for _ in range(2)]
    for worker, batch in enumerate(got):
        alone = next(stream_of_worker(library, worker))
        assert torch.equal(batch.truth, alone.truth)
        assert torch.equal(batch.target.known, alone.target.known)
    assert got[0].truth.shape != got[1].truth.shape or not torch.equal(got[0].truth, got[1].truth)


def stream_of_worker(library, worker):
    from ml_phaser.simulate.batches import batches

    return batches(library, 1, seed_of(0, 7, worker))


def test_packed_coordinates_are_the_same(library, tmp_path):
    path = tmp_path / "core.npz"
    save_library(library, path, "train")
    back = load_library(path, "train")
    assert back.digest == library.digest
    assert back.entry.tolist() == library.entry.tolist()
    for i in range(len(library)):
        for mine, its in zip(library.chain(i), back.chain(i), strict=True):
            offset = mine[0] - its[0] if mine.ndim == 2 else 0
            assert np.abs(mine - its - offset).max() < 1e-5
    with pytest.raises(UserError, match="holds the train split, not holdout"):
        load_library(path, "holdout")


def test_digest_is_of_the_chains(library):
    assert made_library().digest == library.digest != made_library(seed=1).digest


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off", None])
def test_damaged_or_missing_coordinates_are_the_users_error(tmp_path, content):
    path = tmp_path / "core.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"core\.npz: (cannot be read|no such file)"):
        load_library(path, "train")
    with pytest.raises(UserError, match=r"structures_pack\.npz\.xz: no such file"):
        load_library(tmp_path, "train")


@pytest.mark.shared
def test_no_cluster_is_both_trained_and_held_out(shared_data):
    import csv

    from ml_phaser.simulate.fragments import _chains_of_split

    folder = shared_data / "coordinates"
    split = {name: _chains_of_split(folder, name) for name in ("train", "holdout")}
    assert len(split["train"]) > 1000 < 10 * len(split["holdout"])
    assert not {e for e, _ in split["train"]} & {e for e, _ in split["holdout"]}
    assert not set(split["train"].values()) & set(split["holdout"].values())
    with (folder / "index.csv").open(newline="") as f:
        barred = {
            r["id"]
            for r in csv.DictReader(f)
            if "1" in (r["holdout"], r["similar_to_measured_set"], r["crysformer_test"], r["antibody_set"])
        }
    assert not {e for e, _ in split["train"]} & barred


# ---------------------------------------------------------------------------------------- command


@pytest.fixture(scope="module")
def data(library, tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    save_library(library, folder / "train.npz", "train")
    save_library(made_library(seed=1), folder / "holdout.npz", "holdout")
    return folder


@pytest.fixture(autouse=True)
def threads(monkeypatch):
    """The numbers of threads asked for, instead of so many threads."""
    asked = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    return asked


def command(data, out, *words):
    network = ("channels", "8,16", "blocks", "1,1")
    return main(["data", str(data / "train.npz"), "out", str(out), "device", "cpu", *network, *map(str, words)])


def record(out):
    return json.loads((out / RECORD).read_text())


def test_the_run_record_tells_all(data, library, tmp_path, capsys):
    assert command(data, tmp_path, "seconds", 1, "batch", 2, "--rate=0.001", "SEED", 5) == 0
    run = record(tmp_path)
    assert run["data"]["sha256"] == library.digest
    assert (run["data"]["chains"], run["data"]["entries"], run["data"]["clusters"]) == (3, 3, 3)
    assert run["config"]["channels"] == [8, 16]
    assert run["recipe"]["d_min"] == [1.25, 2.2]
    session = run["sessions"][0]
    assert session["schedule"]["seconds"] == 1
    assert (session["schedule"]["batch"], session["schedule"]["rate"], session["seed"]) == (2, 0.001, 5)
    assert session["versions"]["torch"] == torch.__version__.split("+")[0] or torch.__version__ in str(session)
    assert session["processor"]
    assert os.uname().nodename not in json.dumps(run)
    assert run["samples"] == 2 * run["steps"] == 2 * session["steps"] > 0
    assert "samples" in capsys.readouterr().out

    assert command(data, tmp_path, "seconds", 2, "batch", 3) == 0
    again = record(tmp_path)
    assert [s["schedule"]["batch"] for s in again["sessions"]] == [2, 3]
    assert again["steps"] == run["steps"] + again["sessions"][1]["steps"]
    assert again["samples"] == run["samples"] + 3 * again["sessions"][1]["steps"]


@pytest.mark.parametrize(
    ("words", "where", "value"),
    [
        (["channels", "16,24"], ("config", "channels"), [16, 24]),
        (["blocks", "2,1"], ("config", "blocks"), [2, 1]),
        (["batch", "3"], ("schedule", "batch"), 3),
        (["rate", "0.01"], ("schedule", "rate"), 0.01),
        (["seconds", "77"], ("schedule", "seconds"), 77),
        (["seed", "4"], ("seed",), 4),
        (["workers", "1"], ("workers",), 1),
        (["threads", "2"], ("threads",), 2),
        (["device", "auto"], ("device",), "cuda" if torch.cuda.is_available() else "cpu"),
    ],
    ids=lambda x: x[0] if isinstance(x, list) else "",
)
def test_every_option_of_training_arrives(data, tmp_path, threads, words, where, value):
    given = {"data": str(data / "train.npz"), "out": str(tmp_path), "seconds": "50"}
    given |= {"channels": "8,16", "blocks": "1,1"} | {words[0]: words[1]}
    assert main([*itertools.chain(*given.items()), "session", "0", "quiet"]) == 0
    run = record(tmp_path)
    found = run if where[0] == "config" else run["sessions"][0]
    for name in where:
        found = found[name]
    assert found == value
    assert run["steps"] == 0
    network = averaged(tmp_path / CHECKPOINT)[0]
    assert list(network.config.channels) == run["config"]["channels"]
    assert threads == [2 if words[0] == "threads" else 1]
    if words[0] == "seed":
        torch.manual_seed(4)
        assert torch.equal(network.stem.weight, Projector(network.config).stem.weight.half().float())


def test_two_do_not_train_in_one_folder(data, tmp_path, capsys):
    with alone(tmp_path):
        assert command(data, tmp_path, "seconds", 9, "session", 0) == 1
    assert "another training is going on" in capsys.readouterr().err
    assert not (tmp_path / CHECKPOINT).exists()
    assert command(data, tmp_path, "seconds", 9, "session", 0) == 0


def test_quiet_prints_nothing(data, tmp_path, capsys):
    assert command(data, tmp_path, "seconds", 1, "session", 0, "quiet") == 0
    assert capsys.readouterr().out == ""


def test_a_run_can_begin_with_bundled_weights(data, tmp_path):
    card = read_card()
    network = [w for n in ("channels", "blocks") for w in (n, ",".join(map(str, card.config[n])))]
    words = ["data", data / "train.npz", "out", tmp_path, "seconds", 1, "session", 0, *network]
    assert main([*map(str, words), "begin", card.name, "quiet"]) == 0
    assert record(tmp_path)["begun_with"] == {"name": card.name, "sha256": card.sha256}
    trained, bundled = averaged(tmp_path / CHECKPOINT)[0], load_projector()
    assert torch.equal(trained.head[2].weight, bundled.head[2].weight)


def test_other_data_do_not_go_on_with_a_run(data, tmp_path, capsys):
    assert command(data, tmp_path, "seconds", 9, "session", 0) == 0
    save_library(made_library(seed=2), tmp_path / "other.npz", "train")
    assert command(data, tmp_path, "seconds", 9, "session", 0) == 0
    words = ["data", str(tmp_path / "other.npz"), "out", str(tmp_path), "seconds", "9"]
    assert main([*words, "channels", "8,16", "blocks", "1,1"]) == 1
    assert "other data" in capsys.readouterr().err


@pytest.fixture
def small_plan(monkeypatch):
    """A benchmark of one resolution."""
    small = partial(Plan, resolutions=(1.9,), levels=(0.5,), kinds=("phase",), fractions=(0.5,), cycles=1)
    monkeypatch.setattr(one_pass, "Plan", small)


Plan = one_pass.Plan


def test_export_judges_and_writes_the_network_with_its_card(data, tmp_path, small_plan, capsys):
    assert command(data, tmp_path, "seconds", 9, "session", 0, "batch", 2) == 0
    words = ["export", "tiny", "holdout", data / "holdout.npz", "crystals", 2]
    weights, table = tmp_path / "weights", tmp_path / "table.json"
    assert command(data, tmp_path, *words, "weights", weights, "benchout", table) == 0
    assert "exported" in capsys.readouterr().out
    network, card = load_projector("tiny", weights), read_card("tiny", weights).facts
    trained = averaged(tmp_path / CHECKPOINT)[0]
    for name, value in trained.state_dict().items():
        assert torch.equal(network.state_dict()[name], value)
    assert card["licence"] == "BSD-3-Clause"
    assert card["training_data"]["sha256"] == record(tmp_path)["data"]["sha256"]
    assert card["training_run"]["sessions"][0]["schedule"]["batch"] == 2
    assert card["domain"]["d_min_A"] == [network.config.d_best, network.config.d_worst]
    assert card["domain"]["grid_multiple"] == 4
    assert card["benchmark"]["held_out_sha256"] == made_library(seed=1).digest
    # Untrained it is the identity: no win, and the card says so.
    assert card["benchmark"]["beats_identity_and_classical"]["1.9"]["on_average"] is False
    assert "did NOT beat" in card["limits"][0]
    assert json.loads(table.read_text())["plan"]["crystals"] == 2
    assert table.with_suffix(".md").exists()

    assert command(data, tmp_path, *words, "weights", weights) == 1
    assert "exists already" in capsys.readouterr().err
    (weights / "tiny.json").write_text("")
    assert command(data, tmp_path, *words, "weights", weights, "overwrite") == 0
    assert read_card("tiny", weights).facts["benchmark"]
    assert command(data, tmp_path, *words) == 0
    assert (tmp_path / "tiny.safetensors").exists()


def test_claims_are_narrowed_to_what_was_won():
    config = ProjectorConfig(d_best=1.25, d_worst=2.2)
    narrow, limits = claims((1.5, 1.9), config)
    assert (narrow.d_best, narrow.d_worst) == (1.5, 1.9)
    assert "1.25-2.2" in limits[0]
    assert claims(None, config)[0] == config


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "nothing to do"),
        (["seconds", "9", "channels", "8,12"], "multiples of 8"),
        (["seconds", "9", "channels", "8,8,8,8"], "multiples of 8"),
        (["seconds", "9", "crystals", "4"], "crystals: does nothing without export"),
        (["seconds", "9", "overwrite"], "overwrite: does nothing without export"),
        (["session", "9", "export", "x"], "budget"),
        (["export", "a/b"], "is a name"),
        (["export", "x"], "holds no held-out entries"),
        (["export", "x", "holdout", "nowhere"], "no checkpoint|no such file"),
        (["seconds"], "has no value"),
        (["seconds", "9", "seconds", "9"], "given twice"),
        (["secnds", "9"], r"unknown option.*seconds"),
        (["seconds", "-1"], "seconds"),
        (["seconds", "9", "device", "tpu"], "device"),
    ],
)
def test_wrong_words_get_one_clear_line(data, tmp_path, capsys, words, message):
    base = {} if "channels" in words else {"channels": "8,16"}
    arguments = ["data", str(data / "train.npz"), "out", str(tmp_path / "run"), *itertools.chain(*base.items()), *words]
    assert main(arguments) == 1
    err = capsys.readouterr().err.strip()
    assert len(err.splitlines()) == 1
    import re

    assert re.search(message, err)
    assert not (tmp_path / "run").exists()


def test_a_gpu_that_is_not_there_is_told(data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    words = ["data", str(data / "train.npz"), "out", str(tmp_path), "seconds", "9", "device", "cuda"]
    assert main(words) == 1
    assert "no usable CUDA device" in capsys.readouterr().err


def test_help_names_every_option(capsys):
    from ml_phaser.cli.train import PACK, TABLE

    assert ml_phaser(["train", "--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"  {p.name} " in out for p in (*TABLE, *PACK))
    assert main([]) == 1


def test_pack_refuses_to_overwrite_and_says_what_it_wrote(tmp_path, capsys, library, monkeypatch):
    from ml_phaser.simulate import fragments

    monkeypatch.setattr(fragments, "load_library", lambda folder, split: {"train": library}[split])
    out = tmp_path / "core.npz"
    assert main(["pack", "data", "anywhere", "out", str(out)]) == 0
    assert library.digest[:12] in capsys.readouterr().out
    assert load_library(out, "train").digest == library.digest
    assert main(["pack", "data", "anywhere", "out", str(out)]) == 1
    assert "exists already" in capsys.readouterr().err
    assert main(["pack", "data", "anywhere", "out", str(out), "overwrite"]) == 0
    assert main(["pack", "out", str(out), "overwrite"]) == 1
    with pytest.raises(KeyError):
        main(["pack", "data", "anywhere", "out", str(out), "overwrite", "split", "holdout"])


def test_ctrl_c_leaves_a_checkpoint_on_a_bare_machine(data, tmp_path):
    """In a process of its own, with nothing but torch, numpy, scipy and gemmi, crystals made by two others."""
    program = (
        "import sys\n"
        "for name in ('reciprocalspaceship', 'pandas', 'rich', 'safetensors', 'cctbx', 'mrcfile'):\n"
        "    sys.modules[name] = None\n"
        "from ml_phaser.cli import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    out = tmp_path / "run"
    words = ["train", "data", data / "train.npz", "out", out, "seconds", "600"]
    words += ["channels", "8", "blocks", "1", "batch", "1"]
    process = subprocess.Popen(
        [sys.executable, "-c", program, *map(str, words), "workers", "2", "device", "cpu"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        while not (out / LOG).exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGINT)
        _, stderr = process.communicate(timeout=30)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 1, stderr
    assert "interrupted; step" in stderr
    assert "Traceback" not in stderr
    assert len(stderr.strip().splitlines()) == 1
    kept = read_checkpoint(out / CHECKPOINT)
    assert kept["steps"] >= LOG_EVERY
    assert record(out)["steps"] == kept["steps"]
    assert f"step {kept['steps']}" in stderr
    assert gemmi.__version__ in json.dumps(record(out)["sessions"][0]["versions"])
