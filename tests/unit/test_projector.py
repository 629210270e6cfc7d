"""The network: invariants that hold for any weights, and its first guess."""

import gemmi
import pytest
import torch

from ml_phaser.networks.config import condition
from ml_phaser.networks.projector import (
    CONDITIONS,
    MAPS,
    Projector,
    ProjectorConfig,
    fold,
    tell,
    unfold,
)

SMALL = ProjectorConfig(channels=(8, 16), blocks=(1, 2))


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
    maps = torch.randn((n, MAPS, *shape), generator=generator)
    return maps, torch.randn((n, CONDITIONS), generator=generator)


def test_condition_puts_numbers_of_order_one_in_order():
    cubic = 0.6 * torch.eye(3)
    oblique = torch.tensor(gemmi.UnitCell(11, 12, 13.5, 90, 90, 120).orth.mat.tolist()).float() / 20
    got = condition(torch.tensor([1.7, 2.0]), torch.stack([cubic, oblique]), torch.tensor([0.9, 1.0]))
    assert torch.allclose(got[0], torch.zeros(CONDITIONS), atol=1e-5)
    spacing = (11 + 12 + 13.5) / 60
    lengths = torch.tensor([0.55, 0.6, 0.675]) / spacing
    assert got[1, :3] == pytest.approx([1.0, (spacing - 0.6) / 0.05, 1.0], abs=1e-4)
    assert got[1, 3:6] == pytest.approx((lengths**2 - 1) / 0.15, abs=1e-4)
    assert got[1, 6:9] == pytest.approx([0, 0, float(-0.5 * lengths[0] * lengths[1] / 0.3)], abs=1e-4)
    assert got.abs().max() < 3


def test_the_quality_is_told_where_it_is_known():
    cond = torch.zeros(2, CONDITIONS)
    got = tell(cond, torch.tensor([0.9, torch.nan]))
    assert got[0, -2:] == pytest.approx([1.0, 1.0])
    assert torch.equal(got[1], cond[1])


def test_folding_keeps_everything_where_it_was():
    x = torch.arange(2 * 3 * 4 * 6 * 8.0).reshape(2, 3, 4, 6, 8)
    folded = fold(x)
    assert folded.shape == (2, 24, 2, 3, 4)
    assert torch.equal(unfold(folded), x)
    assert folded[1, 8 + 4 + 1, 1, 2, 3] == x[1, 1, 2 + 1, 4, 6 + 1]


@pytest.mark.parametrize(("channels", "stride"), [((8,), 2), ((8, 16), 4)], ids=["one", "two"])
def test_untrained_it_returns_seven_tenths_of_its_input(channels, stride):
    config = ProjectorConfig(channels=channels, blocks=(1,) * len(channels))
    assert config.stride == stride
    maps, cond = given()
    network = Projector(config)
    torch.nn.init.zeros_(network.head[2].bias)
    assert torch.allclose(network(maps, cond), 0.7 * maps[:, 0], atol=1e-6)


def test_shape_is_kept_on_uneven_grids():
    rho, cond = given((4, 8, 20), n=3)
    assert lively()(rho, cond).shape == (3, 4, 8, 20)


@torch.no_grad()
def test_shift_by_the_stride_shifts_the_answer():
    rho, cond = given()
    network = lively()
    shift, axes = (4, -8, 12), (1, 2, 3)
    moved = network(rho.roll(shift, (2, 3, 4)), cond)
    assert torch.allclose(moved, network(rho, cond).roll(shift, axes), atol=2e-5)
    assert not torch.allclose(moved, network(rho, cond), atol=1e-2)


@torch.no_grad()
@pytest.mark.parametrize("axis", [1, 2, 3])
def test_a_doubled_cell_gives_the_answer_twice(axis):
    """Two cells side by side are the same crystal: nothing happens at the cell's edges."""
    rho, cond = given()
    network = lively()
    twice = network(torch.cat([rho, rho], dim=axis + 1), cond)
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
    plain = network(rho, cond)
    for i in range(CONDITIONS):
        assert not torch.allclose(plain, network(rho, cond + torch.eye(CONDITIONS)[i]), atol=1e-3), i
    for i in range(MAPS):
        other = rho.clone()
        other[:, i] = 0
        assert not torch.allclose(plain, network(other, cond), atol=1e-2), i


def test_blocks_add_depth():
    size = {n: sum(p.numel() for p in Projector(ProjectorConfig((8, 16), n)).parameters()) for n in ((1, 1), (2, 3))}
    assert size[2, 3] > 1.5 * size[1, 1]
    assert lively(ProjectorConfig((8, 16), (2, 3)))(*given()).shape == (2, 8, 12, 16)


def test_every_weight_learns():
    rho, cond = given()
    network = lively()
    network(rho, cond).pow(2).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())
