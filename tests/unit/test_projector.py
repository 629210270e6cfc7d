"""The network: invariants that hold for any weights, and its first guess."""

import pytest
import torch

from ml_phaser.networks.projector import Projector, ProjectorConfig, condition

SMALL = ProjectorConfig(channels=(8, 16, 24))


def lively(config=SMALL, seed=0):
    """A network none of whose weights is zero."""
    torch.manual_seed(seed)
    network = Projector(config).eval()
    with torch.no_grad():
        for value in network.parameters():
            value.add_(0.2 * torch.randn(value.shape))
    return network


def given(shape=(8, 12, 16), n=2, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((n, *shape), generator=generator), torch.randn((n, 3), generator=generator)


def test_condition_puts_numbers_of_order_one_in_order():
    got = condition(torch.tensor([1.7, 2.0]), torch.tensor([0.6, 0.55]), torch.tensor([0.9, 1.0]))
    assert torch.allclose(got, torch.tensor([[0.0, 0.0, 0.0], [1.0, -1.0, 1.0]]), atol=1e-5)


@pytest.mark.parametrize(
    ("channels", "stride"), [((8,), 1), ((8, 16), 2), ((8, 16, 24), 4)], ids=["one", "two", "three"]
)
def test_untrained_it_returns_seven_tenths_of_its_input(channels, stride):
    config = ProjectorConfig(channels=channels)
    assert config.stride == stride
    rho, cond = given()
    network = Projector(config)
    torch.nn.init.zeros_(network.head[2].bias)
    assert torch.allclose(network(rho, cond), 0.7 * rho, atol=1e-6)


def test_shape_is_kept_on_uneven_grids():
    rho, cond = given((4, 8, 20), n=3)
    assert lively()(rho, cond).shape == (3, 4, 8, 20)


@torch.no_grad()
def test_shift_by_the_stride_shifts_the_answer():
    rho, cond = given()
    network = lively()
    shift, axes = (4, -8, 12), (1, 2, 3)
    moved = network(rho.roll(shift, axes), cond)
    assert torch.allclose(moved, network(rho, cond).roll(shift, axes), atol=2e-5)
    assert not torch.allclose(moved, network(rho, cond), atol=1e-2)


@torch.no_grad()
def test_without_pooling_any_shift_does():
    rho, cond = given((5, 6, 7))
    network = lively(ProjectorConfig(channels=(8,)))
    moved = network(rho.roll((1, -2, 3), (1, 2, 3)), cond)
    assert torch.allclose(moved, network(rho, cond).roll((1, -2, 3), (1, 2, 3)), atol=2e-5)


@torch.no_grad()
@pytest.mark.parametrize("axis", [1, 2, 3])
def test_a_doubled_cell_gives_the_answer_twice(axis):
    """Two cells side by side are the same crystal: nothing happens at the cell's edges."""
    rho, cond = given()
    network = lively()
    twice = network(torch.cat([rho, rho], dim=axis), cond)
    once = network(rho, cond)
    assert torch.allclose(twice, torch.cat([once, once], dim=axis), atol=2e-5)


@torch.no_grad()
def test_crystals_of_a_batch_do_not_mix():
    rho, cond = given(n=3)
    network = lively()
    assert torch.allclose(network(rho, cond)[1], network(rho[1:2], cond[1:2])[0], atol=2e-5)


@torch.no_grad()
def test_what_it_is_told_matters():
    rho, cond = given()
    network = lively()
    assert not torch.allclose(network(rho, cond), network(rho, cond + 1), atol=1e-2)


def test_blocks_add_depth():
    size = {n: sum(p.numel() for p in Projector(ProjectorConfig((8, 16), blocks=n)).parameters()) for n in (1, 2)}
    assert size[2] > 1.5 * size[1]
    assert lively(ProjectorConfig((8, 16), blocks=2))(*given()).shape == (2, 8, 12, 16)


def test_every_weight_learns():
    rho, cond = given()
    network = lively()
    network(rho, cond).pow(2).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())
