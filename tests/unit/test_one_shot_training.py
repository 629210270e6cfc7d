"""One-shot networks: what they are shown, what is asked of them, how they learn it."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from made_library import peptide_library
from torch import nn

from ml_phaser.errors import UserError
from ml_phaser.networks.crysformer import CrysFormer, CrysFormerConfig
from ml_phaser.networks.unet import UNet, UNetConfig
from ml_phaser.phasing import prediction
from ml_phaser.phasing.prediction import corrected, one_pass, patterson, predict, scaled
from ml_phaser.phasing.projections import forward, unit_variance
from ml_phaser.simulate.one_shot import OneShotRecipe, one_shot_batches
from ml_phaser.training.chains import shifted
from ml_phaser.training.loop import CHECKPOINT, Schedule, read_checkpoint, train, untrained
from ml_phaser.training.muon import Both
from ml_phaser.training.one_shot import Asked, OneShotLesson, loss_of, mirrored, nearest, one_shot_lessons, pearson

RECIPE = OneShotRecipe("dialanine-1b", d_min=2.5, spacing=1.0, multiple=2)
TINY_UNET = UNetConfig(edge=8, features=10, blocks=1, squeeze=True, recycled=True)
TINY_FORMER = CrysFormerConfig(dim=32, depth=2, heads=2, stem=4, patch=2, recycled=True)
TINY = {"unet": (UNet, TINY_UNET), "crysformer": (CrysFormer, TINY_FORMER)}


@pytest.fixture(scope="module")
def batches():
    source = one_shot_batches(peptide_library(), 2, 0, RECIPE)
    return list(itertools.islice(source, 12))


@pytest.fixture(scope="module")
def batch(batches):
    return batches[0]


def noise(batch, seed=0):
    return torch.randn(batch.truth.shape, generator=torch.Generator().manual_seed(seed))


class Fake(nn.Module):
    """Predicts as it is told by a function of what it sees, and remembers that."""

    def __init__(self, predict, recycled=True):
        super().__init__()
        self.config = replace(TINY_UNET, recycled=recycled)
        self.predict, self.seen = predict, []
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, patterson, parts, recycled, lengths):
        self.seen.append((patterson, parts, recycled, lengths))
        return self.predict(patterson, recycled) + self.weight


# ----------------------------------------------------------------------------------------- passes


def test_a_corrected_map_has_measured_moduli_and_its_own_phases(batch):
    rho = noise(batch)
    fixed = corrected(rho, batch.half)
    made, own = forward(fixed), forward(rho)
    known = batch.half.abs() > 1e-2
    ratio = made.abs() / batch.half.abs().clamp_min(1e-9)
    for row in range(2):
        its = ratio[row][known[row]]
        assert float(its.std() / its.mean()) < 1e-3
    turn = made * own.conj()
    assert float(torch.angle(turn[known]).abs().max()) < 1e-3
    assert made[batch.half == 0].abs().max() < 1e-4  # F(000) and all beyond d_min
    assert fixed.pow(2).mean(dim=(1, 2, 3)) == pytest.approx(1, abs=1e-4)
    assert torch.allclose(corrected(3 * rho + 1, batch.half), fixed, atol=1e-4)
    assert torch.allclose(corrected(batch.truth, batch.half), batch.truth, atol=1e-3)
    assert not corrected(torch.full_like(rho, -1.0), batch.half).isnan().any()


def test_maps_are_brought_to_plus_and_minus_one(batch):
    for rho in scaled(batch.truth):
        assert (float(rho.min()), float(rho.max())) == pytest.approx((-1, 1), abs=1e-6)
    assert torch.allclose(pearson(scaled(batch.truth), batch.truth), torch.ones(2), atol=1e-5)
    assert not scaled(torch.zeros(1, 2, 2, 2)).isnan().any()


def test_the_network_sees_the_patterson_map(batch):
    network = Fake(lambda seen, _: seen[:, 0] * 0.5)
    zeros = torch.zeros_like(batch.truth)[:, None]
    made = one_pass(network, batch.half, zeros, batch.parts, batch.lengths)
    seen = network.seen[0]
    assert torch.equal(seen[0][:, 0], patterson(batch.half, batch.truth.shape[1:]))
    assert seen[0].shape == (2, 1, *batch.truth.shape[1:])
    assert seen[1] is batch.parts
    assert seen[2] is zeros
    assert seen[3] is batch.lengths
    assert made.dtype == torch.float32
    # Phases are not told: with others it sees the same.
    other = batch.half * torch.polar(torch.ones(()), torch.tensor(1.0))
    one_pass(network, other, zeros, batch.parts, batch.lengths)
    assert torch.allclose(network.seen[1][0], seen[0], atol=1e-5)


@pytest.fixture
def single(monkeypatch):
    """Everything in single precision: products in bfloat16 differ from one call to the next on some processors."""
    monkeypatch.setattr(prediction, "has_bfloat16", lambda kind: False)


@pytest.mark.parametrize("kind", TINY)
def test_predictions_are_passes_shown_their_forerunner_corrected(batch, kind, single):
    make, config = TINY[kind]
    torch.manual_seed(0)
    network = make(config).eval()
    for layer in getattr(network, "layers", []):
        nn.init.normal_(layer.out.weight, std=0.3)
    shape = tuple(batch.truth.shape[1:])
    made = predict(network, batch.half, shape, batch.parts, batch.lengths, 3)
    assert len(made) == 3
    assert not any(x.requires_grad for x in made)
    seen = patterson(batch.half, shape)[:, None]
    recycled = torch.zeros_like(seen)
    with torch.no_grad():
        for x in made:
            assert torch.equal(network(seen, batch.parts, recycled, batch.lengths).float(), x)
            recycled = corrected(x, batch.half)[:, None]
    assert not torch.allclose(made[0], made[1], atol=1e-4)
    assert len(predict(network, batch.half, shape, batch.parts, batch.lengths, 1)) == 1


# ----------------------------------------------------------------------------------------- losses


def test_correlation_is_numpys(batch):
    rho = noise(batch) + 0.5 * batch.truth
    for row, value in enumerate(pearson(rho, batch.truth)):
        expected = np.corrcoef(rho[row].flatten(), batch.truth[row].flatten())[0, 1]
        assert float(value) == pytest.approx(expected, abs=1e-5)
    flat = torch.full_like(rho, -1.0).requires_grad_()
    value = pearson(flat, batch.truth)
    value.sum().backward()
    assert torch.equal(value, torch.zeros(2))
    assert torch.isfinite(flat.grad).all()


@pytest.mark.parametrize("weight", [0.0, 0.1, 3.0])
def test_losses_are_those_of_the_papers(batch, weight):
    """Mean squared error of maps in -1 ... 1; beside it, weighted, 1 - the mean correlation."""
    predicted = torch.tanh(noise(batch))
    truth = batch.truth.double().numpy()
    low, high = truth.min(axis=(1, 2, 3), keepdims=True), truth.max(axis=(1, 2, 3), keepdims=True)
    square = ((predicted.numpy() - (2 * (truth - low) / (high - low) - 1)) ** 2).mean()
    cc = np.mean([np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(predicted.numpy(), truth, strict=True)])
    assert float(loss_of(predicted, batch.truth, Asked("mse", weight))) == pytest.approx(square, rel=1e-4)
    both = float(loss_of(predicted, batch.truth, Asked("mse+pearson", weight)))
    assert both == pytest.approx(square + weight * (1 - cc), rel=1e-4)
    assert float(loss_of(predicted, 7 * batch.truth + 2, Asked("mse+pearson", weight))) == pytest.approx(both, rel=1e-4)
    assert float(loss_of(scaled(batch.truth), batch.truth, Asked())) == pytest.approx(0, abs=1e-5)


def test_the_mirror_image_is_that_through_the_origin(batch):
    rho = batch.truth
    other = mirrored(rho)
    n = rho.shape[1]
    for u, v, w in ((0, 0, 0), (1, 0, 0), (3, 7, 2)):
        assert torch.equal(other[:, -u % n, -v % n, -w % n], rho[:, u, v, w])
    assert torch.equal(mirrored(other), rho)
    shape = rho.shape[1:]
    assert torch.allclose(patterson(forward(other), shape), patterson(batch.half, shape), atol=1e-5)
    assert pearson(other, rho).max() < 0.9


def test_the_free_loss_does_not_ask_for_origin_and_hand(batch):
    predicted = torch.tanh(0.7 * batch.truth + 0.3 * noise(batch))
    free, tied = Asked("free"), Asked("mse+pearson")
    base = float(loss_of(predicted, batch.truth, free))
    assert base <= float(loss_of(predicted, batch.truth, tied)) + 0.005
    hands = {
        "moved": torch.roll(batch.truth, (3, 1, -2), (1, 2, 3)),
        "between grid points": shifted(batch.truth, torch.tensor([[0.4, 2.7, 5.2], [1.5, -0.3, 0.0]])),
        "other hand": mirrored(batch.truth),
        "both": torch.roll(mirrored(batch.truth), (0, 5, 4), (1, 2, 3)),
    }
    for name, truth in hands.items():
        assert float(loss_of(predicted, truth, free)) == pytest.approx(base, abs=0.01), name
        assert float(loss_of(predicted, truth, tied)) > base + 0.05, name
        assert float(loss_of(predicted, truth, Asked("mse"))) > float(loss_of(predicted, batch.truth, Asked("mse"))), (
            name
        )
    # Each crystal of a batch has a hand of its own.
    mixed = torch.stack([batch.truth[0], mirrored(batch.truth)[1]])
    assert pearson(nearest(mixed, unit_variance(predicted)), batch.truth).min() > 0.98


def test_the_truth_is_moved_and_not_the_prediction(batch):
    predicted = torch.tanh(torch.roll(batch.truth, (2, 0, 0), (1, 2, 3))).requires_grad_()
    loss_of(predicted, batch.truth, Asked("free")).backward()
    assert torch.isfinite(predicted.grad).all()
    assert predicted.grad.abs().max() > 0


# ---------------------------------------------------------------------------------------- lessons


def passes(lesson, network, count):
    """What was shown for each crystal of ``count`` steps: lists of (recycled, step), by crystal."""
    shown = {}
    for step in range(count):
        _, facts, samples = lesson.step(network, 0.0)
        assert samples == 2
        assert set(facts) == {"cc"}
        seen, _, recycled, _ = network.seen[-1]
        shown.setdefault(tuple(seen.flatten()[1:9].tolist()), []).append((recycled, step))
    return shown


def test_a_batch_is_shown_its_own_prediction_corrected(batches):
    network = Fake(lambda seen, recycled: torch.tanh(torch.roll(seen[:, 0], 1, 1) + 0.1 * recycled[:, 0]))
    lesson = OneShotLesson(iter(batches), Asked(recycles=3), 0)
    shown = passes(lesson, network, 16)
    by_start = {tuple(patterson(b.half, b.truth.shape[1:]).flatten()[1:9].tolist()): b for b in batches}
    several = 0
    for key, times in shown.items():
        half = by_start[key].half
        seen = patterson(half, by_start[key].truth.shape[1:])[:, None]
        expected = torch.zeros_like(seen)
        for recycled, _ in times:
            assert torch.allclose(recycled, expected, atol=1e-5)
            expected = corrected(network.predict(seen, recycled), half)[:, None]
        several += len(times) > 1
    assert several >= 2
    # Some are under way at once.
    assert any(b[1] - a[1] > 1 for times in shown.values() for a, b in itertools.pairwise(times))


@pytest.mark.parametrize(("recycles", "recycled", "most"), [(0, True, 1), (2, False, 1), (2, True, 3), (5, True, 6)])
def test_none_to_all_recycles_are_equally_likely(batch, recycles, recycled, most):
    network = Fake(lambda seen, _: seen[:, 0], recycled)
    count = itertools.count(1)
    source = (replace(batch, half=batch.half * (1 + next(count) * batch.half.abs())) for _ in itertools.count())
    lesson = OneShotLesson(source, Asked(recycles=recycles), 1)
    assert len(lesson.slots) == recycles + 1
    steps = 60 * most
    shown = passes(lesson, network, steps)
    lengths = np.array([len(times) for times in shown.values()])
    assert lengths.max() == most
    assert lengths.sum() == steps
    assert len(lengths) == pytest.approx(steps / ((1 + most) / 2), rel=0.2)
    never = all(not recycled.any() for times in shown.values() for recycled, _ in times)
    assert never is (most == 1)


def test_the_loss_asked_for_is_the_loss_learnt_from(batch):
    network = Fake(lambda seen, _: seen[:, 0] * 0.3)
    for asked in (Asked("mse", recycles=0), Asked("mse+pearson", 0.7, 0), Asked("free", 0.2, 0)):
        loss, facts, _ = OneShotLesson(itertools.repeat(batch), asked, 0).step(network, 0.5)
        predicted = 0.3 * patterson(batch.half, batch.truth.shape[1:])
        assert float(loss.detach()) == pytest.approx(float(loss_of(predicted, batch.truth, asked)), rel=1e-5)
        assert float(facts["cc"]) == pytest.approx(float(pearson(predicted, batch.truth).mean()), abs=1e-5)
        assert loss.requires_grad
        assert not facts["cc"].requires_grad


def test_a_resumed_run_asks_for_other_crystals_and_choices(batch):
    asked = []

    def make(steps):
        asked.append(steps)
        return itertools.repeat(batch)

    make_lesson = one_shot_lessons(make, Asked(recycles=5), 3)
    first, again, later = make_lesson(0), make_lesson(0), make_lesson(7)
    other = one_shot_lessons(make, Asked(recycles=5), 4)(0)
    assert asked == [0, 0, 7, 0]
    draws = [torch.randint(1000, (8,), generator=lesson.draw).tolist() for lesson in (first, again, later, other)]
    assert draws[0] == draws[1]
    assert len({tuple(d) for d in draws}) == 3


# ------------------------------------------------------------------------------------------- loop


def steps(count):
    counter = itertools.count()
    return lambda: next(counter) >= count


def learn(batch, out, count, kind="unet", asked=None, **options):
    """Train on one batch for ``count`` steps."""
    make, config = TINY[kind]
    lessons = one_shot_lessons(lambda _: itertools.repeat(batch), asked or Asked(recycles=0), 0)
    schedule = Schedule(1e6, batch=2, warmup=0, rate=5e-3)
    return train(untrained(make, config, 0), schedule, lessons, out, stop=options.pop("stop", steps(count)), **options)


@pytest.mark.parametrize(("kind", "recycles"), [("unet", 0), ("crysformer", 1)])
def test_a_batch_is_learnt_by_heart(tmp_path, kind, recycles):
    """By the averaged network, as it is used."""
    batch = next(one_shot_batches(peptide_library(), 2, 0, replace(RECIPE, d_min=3.5, spacing=1.3)))
    asked = Asked(recycles=recycles)
    make, config = TINY[kind]
    shape = tuple(batch.truth.shape[1:])

    def cc(network):
        made = predict(network.eval(), batch.half, shape, batch.parts, batch.lengths, recycles + 1)[-1]
        return float(pearson(made, batch.truth).mean())

    before = cc(untrained(make, config, 0))
    state = learn(batch, tmp_path, 60 * (recycles + 1), kind, asked)
    mean = make(config)
    mean.load_state_dict(state.mean)
    assert before < 0.3
    assert cc(mean) > 0.85
    assert cc(mean) > before + 0.5


def test_averages_are_of_weights_and_statistics_and_counts_are_copied(batch, tmp_path):
    """The moving average by hand, step by step."""
    make, config = TINY["unet"]
    network = untrained(make, config, 0)
    kept = []

    def stop():
        kept.append({k: v.clone() for k, v in network.state_dict().items()})
        return len(kept) > 6

    lessons = one_shot_lessons(lambda _: itertools.repeat(batch), Asked(recycles=0), 0)
    state = train(network, Schedule(1e6, batch=2, warmup=0, average=0.3), lessons, tmp_path, stop=stop)
    mean = kept[0]
    for step, now in enumerate(kept[1:], start=1):
        decay = min(0.3, step / (step + 10))
        mean = {k: decay * mean[k] + (1 - decay) * v if v.is_floating_point() else v for k, v in now.items()}
    counts = [k for k in mean if k.endswith("num_batches_tracked")]
    assert len(counts) == 2 + 2 + 1
    assert all(int(state.mean[k]) == 6 for k in counts)
    saved = read_checkpoint(tmp_path / CHECKPOINT)
    for name, value in mean.items():
        assert torch.allclose(state.mean[name], value, atol=1e-6), name
        assert torch.equal(saved["mean"][name], state.mean[name])
    assert not torch.allclose(state.mean["encode.0.1.running_mean"], network.state_dict()["encode.0.1.running_mean"])


@pytest.mark.parametrize("kind", TINY)
def test_stopping_does_not_change_what_is_learnt(batch, tmp_path, kind, single):
    whole = learn(batch, tmp_path / "whole", 5, kind)
    learn(batch, tmp_path / "parts", 2, kind)
    parts = learn(batch, tmp_path / "parts", 3, kind)
    assert (parts.steps, parts.samples) == (5, 10)
    for name, value in whole.mean.items():
        assert torch.allclose(parts.mean[name], value, atol=1e-5), name
    for name, value in whole.network.state_dict().items():
        assert torch.allclose(parts.network.state_dict()[name], value, atol=1e-5), name


def test_a_checkpoint_of_the_other_kind_is_refused(batch, tmp_path):
    learn(batch, tmp_path, 1, "unet")
    with pytest.raises(UserError, match="network"):
        learn(batch, tmp_path, 1, "crysformer")


@pytest.mark.parametrize("kind", TINY)
def test_every_weight_is_learnt_by_one_optimiser(kind):
    """Muon where matrices are wide: no norm, bias or squeeze."""
    make, config = TINY[kind]
    network = make(replace(config, parts=1))
    muon, adam = Both(network, 1e-3, 0.1).optimisers
    wide = {id(p) for p in muon.param_groups[0]["params"]}
    rest = {id(p) for p in adam.param_groups[0]["params"]}
    assert not wide & rest
    names = {n: id(p) in wide for n, p in network.named_parameters()}
    assert {id(p) for p in network.parameters()} == wide | rest
    assert not any(is_wide for n, is_wide in names.items() if n.endswith("bias") or "norm" in n or "squeeze" in n)
    assert names["learn.0.first.0.weight" if kind == "unet" else "layers.0.parts_keys.weight"]


def test_maps_of_residues_are_hidden_from_some_batches(batch):
    shown = replace(batch, parts=torch.ones((len(batch.truth), 2, *batch.truth.shape[1:])))
    network = Fake(lambda seen, _: seen[:, 0])
    lesson = OneShotLesson(itertools.repeat(shown), Asked(recycles=0, hidden=0.5), 1)
    for _ in range(60):
        lesson.step(network, 0.0)
    seen = [float(parts.mean()) for _, parts, _, _ in network.seen]
    assert set(seen) == {0.0, 1.0} and 0.3 < sum(seen) / len(seen) < 0.7
    assert float(shown.parts.min()) == 1.0
