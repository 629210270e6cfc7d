"""The one-shot networks against their papers' equations, written out again in numpy."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ml_phaser.networks import crysformer
from ml_phaser.networks.crysformer import POSITION, CrysFormer, CrysFormerConfig, partition, positions, rearrange
from ml_phaser.networks.unet import Conv, Squeeze, UNet, UNetConfig
from ml_phaser.simulate.one_shot import FAMILIES
from ml_phaser.training.one_shot_networks import carried_over, configure

SMALL_UNET = UNetConfig(edge=5, features=6, blocks=2, squeeze=True, parts=2, recycled=True)
SMALL_FORMER = CrysFormerConfig(dim=24, depth=2, heads=3, widen=2, stem=3, patch=2, parts=2)
LENGTHS = torch.tensor([[6.0, 8.0, 10.0], [7.0, 9.0, 11.0]])


def stirred(network, seed=0, scale=0.3):
    """All weights and running statistics at random: nothing is zero or one by initialisation."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in network.state_dict().items():
            if value.is_floating_point():
                size = scale / max(1, value[0].numel()) ** 0.5 * 3 if value.ndim > 1 else scale
                value.copy_(size * torch.randn(value.shape, generator=generator))
                if "running_var" in name or (value.ndim == 1 and name.endswith("weight")):
                    value.abs_().add_(0.5)
    return network.eval()


def inputs(shape, parts=2, batch=2, seed=1):
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randn(batch, 2 + parts, *shape, generator=generator)
    return maps[:, :1], maps[:, 1 : 1 + parts], maps[:, 1 + parts :], LENGTHS[:batch]


def parameters(network):
    return sum(p.numel() for p in network.parameters())


def stages(network, *given):
    """Shape of what every module makes, by name."""
    shapes = {}
    hooks = [
        module.register_forward_hook(lambda _, __, out, name=name: shapes.__setitem__(name, tuple(out.shape)))
        for name, module in network.named_modules()
    ]
    with torch.no_grad():
        network(*given)
    for hook in hooks:
        hook.remove()
    return shapes


def rolled(given, shift):
    return (*(torch.roll(x, shift, (2, 3, 4)) for x in given[:3]), given[3])


# ------------------------------------------------------------------------------------------ U-Net


def unet_parameters(channels, edge, features, blocks, squeeze):
    """Closed formula: k^3 c_in c_out + c_out a convolution, 2 c a batch norm, two linear layers a squeeze."""

    def conv(a, b, k):
        return k**3 * a * b + b

    def layer(a, b, k):
        return conv(a, b, k) + 2 * b

    half = features // 2
    excitation = 2 * features * half + half + features if squeeze else 0
    return (
        layer(channels, edge, 7) + layer(edge, features, 7) + blocks * (2 * layer(features, features, 7) + excitation)
        + layer(features, edge, 5) + conv(edge, 1, 5)
    )  # fmt: skip


def test_the_unet_has_the_published_number_of_parameters():
    """Section 2.2: "about three million" with layers of 23 and 25 channels and seven blocks."""
    original = UNetConfig()
    assert (original.edge, original.features, original.blocks, original.squeeze) == (23, 25, 7, False)
    count = parameters(UNet(original))
    assert count == unet_parameters(1, 23, 25, 7, False)
    assert count == pytest.approx(3e6, rel=0.1)
    later = UNetConfig(edge=25, features=30, blocks=8, squeeze=True, parts=2, recycled=True)
    assert parameters(UNet(later)) == unet_parameters(4, 25, 30, 8, True)


def test_every_stage_of_the_unet_has_the_papers_shape():
    config = UNetConfig(edge=5, features=6, blocks=3, squeeze=True)
    network = stirred(UNet(config))
    shapes = stages(network, *inputs((12, 8, 16)))
    assert shapes["encode.0"] == (2, 5, 12, 8, 16)
    assert shapes["encode.1"] == (2, 6, 12, 8, 16)
    for block in range(3):
        assert shapes[f"learn.{block}"] == shapes[f"learn.{block}.first"] == (2, 6, 6, 4, 8)
        assert shapes[f"learn.{block}.squeeze.narrow"] == (2, 3)  # channels reduced by a factor of 2
        assert shapes[f"learn.{block}.squeeze.widen"] == (2, 6)
    assert "learn.3" not in shapes
    assert shapes["decode.0"] == (2, 5, 12, 8, 16)
    assert shapes["decode.1"] == (2, 1, 12, 8, 16)
    assert shapes[""] == (2, 12, 8, 16)
    sizes = {n: m.kernel_size for n, m in network.named_modules() if isinstance(m, Conv)}
    assert {k for n, k in sizes.items() if n.startswith("decode")} == {(5, 5, 5)}
    assert {k for n, k in sizes.items() if not n.startswith("decode")} == {(7, 7, 7)}
    assert len(sizes) == 2 + 2 * 3 + 2


def wrapped_convolution(x, weight, bias):
    """Sum over the kernel of x moved by whole grid points, indices modulo the grid."""
    reach = weight.shape[2] // 2
    out = np.zeros((len(x), len(weight), *x.shape[2:]))
    for i, j, k in np.ndindex(*weight.shape[2:]):
        moved = np.roll(x, (reach - i, reach - j, reach - k), (2, 3, 4))
        out += np.einsum("oc,bcuvw->bouvw", weight[:, :, i, j, k], moved)
    return out + bias[:, None, None, None]


def unet_in_numpy(state, patterson, parts, recycled, blocks):
    """Section 2.2, line by line, as it predicts (running statistics)."""
    w = {name: value.double().numpy() for name, value in state.items()}

    def conv(x, name):
        return wrapped_convolution(x, w[name + ".weight"], w[name + ".bias"])

    def norm(x, name):
        scale = w[name + ".weight"] / np.sqrt(w[name + ".running_var"] + 1e-5)
        moved = (x - w[name + ".running_mean"][:, None, None, None]) * scale[:, None, None, None]
        return moved + w[name + ".bias"][:, None, None, None]

    def layer(x, name):
        return np.maximum(norm(conv(x, name + ".0"), name + ".1"), 0)

    x = np.concatenate([t.double().numpy() for t in (patterson, parts, recycled)], axis=1)
    x = layer(layer(x, "encode.0"), "encode.1")
    b, c, n1, n2, n3 = x.shape
    x = x.reshape(b, c, n1 // 2, 2, n2 // 2, 2, n3 // 2, 2).max(axis=(3, 5, 7))
    for k in range(blocks):
        y = layer(x, f"learn.{k}.first")
        y = norm(conv(y, f"learn.{k}.second.0"), f"learn.{k}.second.1")
        s = y.mean(axis=(2, 3, 4)) @ w[f"learn.{k}.squeeze.narrow.weight"].T + w[f"learn.{k}.squeeze.narrow.bias"]
        s = np.maximum(s, 0) @ w[f"learn.{k}.squeeze.widen.weight"].T + w[f"learn.{k}.squeeze.widen.bias"]
        x = np.maximum(x + y / (1 + np.exp(-s))[:, :, None, None, None], 0)
    x = x.repeat(2, axis=2).repeat(2, axis=3).repeat(2, axis=4)
    return np.tanh(conv(layer(x, "decode.0"), "decode.1")[:, 0])


# 4 is smaller than the kernel, and half of it smaller than its reach.
@pytest.mark.parametrize("shape", [(8, 10, 12), (4, 6, 2)], ids=str)
def test_the_unet_is_what_the_paper_says(shape):
    network = stirred(UNet(SMALL_UNET))
    given = inputs(shape)
    with torch.no_grad():
        made = network(*given).numpy()
    expected = unet_in_numpy(network.state_dict(), *given[:3], blocks=2)
    assert made.shape == (2, *shape)
    assert np.abs(expected).max() > 0.05
    assert np.allclose(made, expected, atol=1e-5)


def test_the_unet_moves_with_the_crystal_by_two_grid_points():
    network = stirred(UNet(SMALL_UNET))
    given = inputs((8, 8, 12))
    with torch.no_grad():
        for mode in (False, True):  # statistics of the batch do not depend on the origin either
            network.train(mode)
            straight = network(*given)
            for shift in ((2, 0, 0), (4, 6, -2)):
                assert torch.allclose(network(*rolled(given, shift)), torch.roll(straight, shift, (1, 2, 3)), atol=1e-5)
            odd = network(*rolled(given, (1, 0, 0)))  # pooling knows even from odd
            assert not torch.allclose(odd, torch.roll(straight, (1, 0, 0), (1, 2, 3)), atol=1e-3)


def test_the_unet_predicts_between_minus_one_and_one():
    network = stirred(UNet(SMALL_UNET), scale=20.0)
    with torch.no_grad():
        made = network(*inputs((8, 8, 8)))
    assert made.abs().max() <= 1
    assert made.min() < -0.9
    assert made.max() > 0.9


def test_he_initialisation_of_every_convolution():
    torch.manual_seed(0)
    network = UNet(UNetConfig(blocks=1))
    for module in network.modules():
        if isinstance(module, Conv):
            assert float(module.weight.detach().std()) == pytest.approx((2 / module.weight[0].numel()) ** 0.5, rel=0.05)
            assert not module.bias.any()


@pytest.mark.parametrize(
    ("parts", "recycled", "channels"), [(0, False, 1), (2, False, 3), (0, True, 2), (15, True, 17)]
)
def test_the_unet_sees_the_channels_it_is_made_for(parts, recycled, channels):
    config = UNetConfig(edge=5, features=6, blocks=1, parts=parts, recycled=recycled)
    network = stirred(UNet(config))
    assert network.encode[0][0].weight.shape[1] == channels
    given = inputs((6, 6, 6), parts=parts)
    with torch.no_grad():
        base = network(*given)
        other = [network(given[0] + 1, *given[1:]), network(given[0], given[1] + 1, *given[2:])]
        other.append(network(*given[:2], given[2] + 1, given[3]))
    changed = [not torch.allclose(x, base, atol=1e-4) for x in other]
    assert changed == [True, parts > 0, recycled]


def test_squeeze_and_excitation_weighs_whole_channels():
    torch.manual_seed(0)
    squeeze = Squeeze(25)
    assert squeeze.narrow.out_features == 12
    x = torch.rand(2, 25, 4, 4, 4) + 0.5
    with torch.no_grad():
        weight = (squeeze(x) / x).flatten(2)
    assert torch.allclose(weight, weight[..., :1].expand_as(weight), atol=1e-6)
    assert weight.min() > 0
    assert weight.max() < 1
    assert weight[..., 0].std() > 0


# ------------------------------------------------------------------------------------- CrysFormer


def former_parameters(c):
    """Closed formula, biases and norms included."""

    def linear(a, b):
        return a * b + b

    inside = c.stem * c.patch**3

    def embedding(channels):
        return 27 * channels * c.stem + c.stem + linear(inside, c.dim) + linear(c.dim, c.dim) + linear(POSITION, c.dim)

    layer = 4 * c.dim + linear(c.dim, c.dim) * 2 + linear(c.dim, 2 * c.dim)
    layer += linear(c.dim, c.widen * c.dim) + linear(c.widen * c.dim, c.dim)
    layer += linear(c.dim, 2 * c.dim) if c.parts else 0
    total = embedding(1 + c.recycled) + c.depth * layer + 2 * c.dim
    total += linear(c.dim, c.dim) + linear(c.dim, inside) + 27 * c.stem + 1
    return total + (embedding(1) + 2 * c.dim if c.parts else 0)


@pytest.mark.parametrize(
    "config",
    [CrysFormerConfig(), CrysFormerConfig(parts=2), CrysFormerConfig(parts=15, recycled=False), SMALL_FORMER],
    ids=["plain", "parts", "not recycled", "small"],
)
def test_the_number_of_parameters_of_crysformer(config):
    """Nothing in it grows with the cell: there is no table of positions."""
    network = CrysFormer(config)
    assert parameters(network) == former_parameters(config)
    assert not list(network.buffers())


def test_every_stage_of_crysformer_has_the_appendixs_shape():
    network = stirred(CrysFormer(SMALL_FORMER))
    tokens = 2 * 3 * 4
    shapes = stages(network, *inputs((4, 6, 8)))
    assert shapes["embed.stem"] == (2, 3, 4, 6, 8)
    assert shapes["embed_part.stem"] == (4, 3, 4, 6, 8)  # both parts of both crystals
    assert shapes["embed.mlp"] == (2, tokens, 24)
    assert shapes["embed_part.mlp"] == (4, tokens, 24)
    for k in range(2):
        assert shapes[f"layers.{k}.keys"] == (2, tokens, 48)
        assert shapes[f"layers.{k}.parts_keys"] == (2, 2 * tokens, 48)
        assert shapes[f"layers.{k}.forth"] == (2, tokens, 48)
        assert shapes[f"layers.{k}"] == (2, tokens, 24)
    assert shapes["mlp"] == (2, tokens, 3 * 2**3)
    assert shapes["head"] == (2, 1, 4, 6, 8)
    assert shapes[""] == (2, 4, 6, 8)


def test_patches_are_cut_and_put_back():
    x = torch.arange(2 * 3 * 4 * 6 * 8, dtype=torch.float32).reshape(2, 3, 4, 6, 8)
    cut = partition(x, 2)
    assert cut.shape == (2, 2 * 3 * 4, 3 * 8)
    for number, (u, v, w) in enumerate(np.ndindex(2, 3, 4)):
        patch = x[:, :, 2 * u : 2 * u + 2, 2 * v : 2 * v + 2, 2 * w : 2 * w + 2]
        assert torch.equal(cut[:, number], patch.flatten(1))
    assert torch.equal(rearrange(cut, 2, (4, 6, 8)), x)
    whole = partition(x[..., :4, :4], 4)
    assert whole.shape == (2, 1, 3 * 64)
    assert torch.equal(rearrange(whole, 4, (4, 4, 4)), x[..., :4, :4])


def linear(x, w, name):
    return x @ w[name + ".weight"].T + w[name + ".bias"]


def layer_norm(x, w, name):
    x = (x - x.mean(axis=-1, keepdims=True)) / np.sqrt(x.var(axis=-1, keepdims=True) + 1e-5)
    return x * w[name + ".weight"] + w[name + ".bias"]


def layer_in_numpy(x, u, w, name, heads):
    """The appendix's equations of one layer: tokens x (S, d_t), all tokens of partial structures u (S J, d_t) or None;
    head by head, with the skips and norms it leaves out."""
    size = x.shape[1] // heads
    seen = layer_norm(x, w, name + ".norm1")
    q, kv = linear(seen, w, name + ".query"), linear(seen, w, name + ".keys")
    k, v = kv[:, : x.shape[1]], kv[:, x.shape[1] :]
    if u is not None:
        other = linear(u, w, name + ".parts_keys")
        k, v = np.concatenate([k, other[:, : x.shape[1]]]), np.concatenate([v, other[:, x.shape[1] :]])
    out = []
    for h in range(heads):
        s = slice(h * size, (h + 1) * size)
        score = np.exp(q[:, s] @ k[:, s].T / np.sqrt(size))
        attention = score / score.sum(axis=1, keepdims=True)
        assert attention.shape == (len(x), len(k))
        out.append(attention @ v[:, s])
    x = x + linear(np.concatenate(out, axis=1), w, name + ".out")
    inner = np.maximum(linear(layer_norm(x, w, name + ".norm2"), w, name + ".forth"), 0)
    return x + linear(inner, w, name + ".back")


def former_in_numpy(network, patterson, parts, recycled, lengths):
    """Appendix A for one crystal: maps (C, u, v, w) and (J, u, v, w) -> density."""
    w = {name: value.double().numpy() for name, value in network.state_dict().items()}
    c, shape = network.config, patterson.shape[1:]
    where = places_in_numpy([n // c.patch for n in shape], lengths)

    def tokens(maps, name):
        x = wrapped_convolution(maps[None], w[name + ".stem.weight"], w[name + ".stem.bias"])[0]
        first = [range(0, n, c.patch) for n in shape]
        cut = [x[:, a : a + c.patch, b : b + c.patch, d : d + c.patch].ravel() for a, b, d in product(*first)]
        inner = np.maximum(linear(np.array(cut), w, name + ".mlp.0"), 0)
        return linear(inner, w, name + ".mlp.2") + linear(where, w, name + ".place")

    x = tokens(np.concatenate([patterson, recycled]) if c.recycled else patterson, "embed")
    u = None
    if c.parts and len(parts):
        u = np.concatenate([layer_norm(tokens(part[None], "embed_part"), w, "norm_parts") for part in parts])
    for k in range(c.depth):
        x = layer_in_numpy(x, u, w, f"layers.{k}", c.heads)
    x = linear(np.maximum(linear(layer_norm(x, w, "norm"), w, "mlp.0"), 0), w, "mlp.2")
    rho = np.zeros((c.stem, *shape))
    for row, (a, b, d) in zip(x, np.ndindex(*(n // c.patch for n in shape)), strict=True):
        corner = [slice(c.patch * i, c.patch * (i + 1)) for i in (a, b, d)]
        rho[:, corner[0], corner[1], corner[2]] = row.reshape(c.stem, *(c.patch,) * 3)
    return np.tanh(wrapped_convolution(rho[None], w["head.weight"], w["head.bias"])[0, 0])


def places_in_numpy(patches, lengths):
    rows = []
    for index in np.ndindex(*patches):
        x = [(i + 0.5) / n for i, n in zip(index, patches, strict=True)]
        turn = [2 * np.pi * order * t for t in x for order in (1, 2, 3)]
        phase = [
            2 * np.pi * (t - 0.5) * edge / wave for t, edge in zip(x, lengths, strict=True) for wave in (3, 6, 12, 24)
        ]
        rows.append([*np.cos(turn), *np.sin(turn), *np.cos(phase), *np.sin(phase), *(e / 10 - 1 for e in lengths)])
    return np.array(rows)


@pytest.mark.parametrize("parts", [0, 1, 2, 5])
@pytest.mark.parametrize("patch", [2, 3])
def test_crysformer_is_what_the_appendix_says(patch, parts):
    """Grids of any multiples of the patch; any number of partial structures, none too."""
    network = stirred(CrysFormer(CrysFormerConfig(dim=24, depth=2, heads=3, widen=2, stem=3, patch=patch, parts=2)))
    given = inputs((2 * patch, 3 * patch, patch), parts=parts)
    with torch.no_grad():
        made = network(*given).numpy()
    for row in range(2):
        expected = former_in_numpy(network, *(x[row].double().numpy() for x in given))
        assert np.abs(expected).max() > 0.05
        assert np.allclose(made[row], expected, atol=1e-5)


def test_attention_is_one_way():
    """Tokens of partial structures are the same for every layer, whatever the Patterson map; but they do count."""
    network = stirred(CrysFormer(SMALL_FORMER))
    given = inputs((4, 4, 4))
    seen = []
    for layer in network.layers:
        layer.register_forward_pre_hook(lambda _, args: seen.append((args[0].clone(), args[1].clone())))
    with torch.no_grad():
        base = network(*given)
        network(given[0] + 1, given[1], given[2] - 1, given[3])
        moved = network(given[0], given[1].flip(4), given[2], given[3])
        swapped = network(given[0], given[1].flip(1), given[2], given[3])
    first, others = seen[0][1], seen[1:4]
    assert all(torch.equal(parts, first) for _, parts in others)
    assert not torch.allclose(seen[0][0], seen[2][0], atol=1e-3)
    assert not torch.allclose(moved, base, atol=1e-3)
    assert torch.allclose(swapped, base, atol=1e-5)  # a set: keys have no order


def test_what_is_not_asked_for_is_not_seen():
    given = inputs((4, 4, 4))
    blind = stirred(CrysFormer(CrysFormerConfig(dim=24, depth=2, heads=3, stem=3, patch=2, recycled=False)))
    assert not any("part" in name for name, _ in blind.named_parameters())
    with torch.no_grad():
        base = blind(*given)
        assert torch.equal(blind(given[0], given[1] + 1, given[2] + 1, given[3]), base)
        assert not torch.allclose(blind(given[0] * 2, *given[1:]), base, atol=1e-3)
        assert not torch.allclose(blind(*given[:3], given[3] * 1.3), base, atol=1e-4)


def test_a_new_layer_adds_but_a_constant():
    """So that a deep network begins as a shallow one."""
    torch.manual_seed(0)
    layer = crysformer.Layer(SMALL_FORMER)
    x, parts = torch.randn(2, 5, 24), torch.randn(2, 10, 24)
    with torch.no_grad():
        added = layer(x, parts) - x
        assert torch.allclose(added, (layer.out.bias + layer.back.bias).expand_as(added), atol=1e-6)
    assert not torch.allclose(stirred(layer)(x, parts) - x, added, atol=1e-2)


def test_crysformer_predicts_between_minus_one_and_one():
    network = stirred(CrysFormer(SMALL_FORMER), scale=10.0)
    with torch.no_grad():
        made = network(*inputs((4, 4, 4)))
    assert made.abs().max() <= 1
    assert made.min() < -0.9
    assert made.max() > 0.9


def test_positions_are_those_of_the_patches():
    lengths = torch.tensor([[6.0, 8.0, 10.0], [12.0, 5.0, 7.0]])
    made = positions((2, 3, 4), lengths)
    assert made.shape == (2, 24, POSITION)
    for row in range(2):
        assert np.allclose(made[row], places_in_numpy((2, 3, 4), lengths[row].tolist()), atol=1e-5)


def test_positions_are_periodic_and_tell_patches_and_cells_apart():
    lengths = torch.tensor([[6.0, 8.0, 10.0]])
    made = positions((5, 4, 3), lengths)[0].reshape(5, 4, 3, POSITION)
    harmonics = made[..., :18]
    # A step beyond the last patch comes to the first: the same turn of the harmonics as between any neighbours.
    cos, sin = harmonics[:, 0, 0, 0], harmonics[:, 0, 0, 9]
    turn = torch.atan2(torch.roll(sin, -1), torch.roll(cos, -1)) - torch.atan2(sin, cos)
    assert torch.allclose(turn % (2 * torch.pi), torch.full((5,), 2 * torch.pi / 5), atol=1e-5)
    flat = made.reshape(-1, POSITION)
    assert (torch.cdist(flat, flat) + 10 * torch.eye(60)).min() > 0.1
    # Either side of the middle of an axis is the other's mirror image: equal cosines, opposite sines of the distance.
    mirror = made.flip(0)
    assert torch.allclose(mirror[..., 18:22], made[..., 18:22], atol=1e-5)
    assert torch.allclose(mirror[..., 30:34], -made[..., 30:34], atol=1e-5)
    # The same place in A from the centre reads the same in any cell.
    larger = positions((7, 4, 3), torch.tensor([[6.0 * 7 / 5, 8.0, 10.0]]))[0].reshape(7, 4, 3, POSITION)
    assert torch.allclose(larger[1:6, ..., 18:42], made[..., 18:42], atol=1e-5)


# -------------------------------------------------------------------------------- configurations


@pytest.mark.parametrize("network", ["unet", "crysformer"])
@pytest.mark.parametrize("family", FAMILIES)
def test_configurations_fit_their_crystals(network, family):
    kind, config, recipe = configure(network, family, 1.8, None, parts=True, recycled=True, width=16, depth=1)
    assert config.family == recipe.family == family
    assert (config.d_min, config.spacing) == (recipe.d_min, recipe.spacing) == (1.8, pytest.approx(0.6))
    assert config.parts == FAMILIES[family].residues
    assert recipe.parts
    assert recipe.multiple == config.stride == (2 if network == "unet" else 4)
    edges = FAMILIES[family].edges
    assert (config.shortest, config.longest) == ((edges, edges) if edges else ((3.0,) * 3, (20.0,) * 3))
    assert isinstance(kind(config), UNet if network == "unet" else CrysFormer)
    plain = configure(network, family, 1.8, 0.5, parts=False, recycled=False)
    assert (plain[1].parts, plain[1].recycled, plain[2].parts, plain[2].spacing) == (0, False, False, 0.5)


def test_default_configurations_are_the_papers():
    unet = configure("unet", "dialanine-1b", 1.5, None, parts=False, recycled=False)[1]
    assert (unet.edge, unet.features, unet.blocks) == (23, 25, 7)
    former = configure("crysformer", "dipeptide-minimal", 1.5, None, parts=True, recycled=True)[1]
    assert (former.dim, former.depth, former.heads, former.patch) == (256, 8, 8, 4)


@pytest.mark.parametrize("width", [8, 31, 37, 100, 192, 250, 384])
def test_any_width_will_do(width):
    """The number of heads divides it, and is no larger than leaves each 32 dimensions, where there are so many."""
    kind, config, _ = configure("crysformer", "dialanine-1b", 1.5, None, parts=True, recycled=True, width=width,
                                depth=1, patch=2)  # fmt: skip
    assert config.dim == width
    assert config.dim % config.heads == 0
    assert config.heads == 1 or config.dim // config.heads >= 32
    if width % 32 == 0:
        assert config.heads == width // 32
    with torch.no_grad():
        made = stirred(kind(config))(*inputs((2, 4, 2)))
    assert torch.isfinite(made).all()


def test_wrapping_by_hand_is_wrapping_by_torch():
    """Where torch can do both."""
    torch.manual_seed(0)
    conv = Conv(2, 3, 7)
    x = torch.randn(1, 2, 3, 4, 5)
    with torch.no_grad():
        padded = F.conv3d(F.pad(x, (3,) * 6, mode="circular"), conv.weight, conv.bias)
        assert torch.allclose(conv(x), padded, atol=1e-6)
        thin = x[:, :, :2]
        twice = conv(torch.cat([thin, thin], dim=2))[:, :, :2]  # two cells of the same crystal
        assert torch.allclose(conv(thin), twice, atol=1e-6)


@pytest.mark.parametrize(("before", "after"), [(2, 4), (3, 4), (4, 2)])
def test_what_was_learnt_of_smooth_maps_is_carried_over_to_another_grid(before, after):
    """Tokens, and with them predictions, of the same smooth map are nearly the same on both grids."""
    config = CrysFormerConfig(dim=32, depth=2, heads=1, stem=4, patch=before, parts=1)
    first = stirred(CrysFormer(config))
    to = replace(config, patch=after, d_min=1.0)
    second = CrysFormer(to)
    with torch.no_grad():
        for network in (first.embed, first.embed_part, first):  # kernels of one point: those of more see a finer grid
            conv = network.stem if hasattr(network, "stem") else network.head
            centre = conv.weight[..., 1:2, 1:2, 1:2].clone()
            conv.weight.zero_()
            conv.weight[..., 1:2, 1:2, 1:2] = centre
        first.embed.mlp[0].weight.mul_(0.2)
    second.load_state_dict(carried_over(first.state_dict(), config, to))

    def smooth(n):
        x = torch.arange(n) / n + 0.5 / n  # where the middles of the points are
        wave = torch.cos(2 * torch.pi * x)
        return (wave[:, None, None] + wave[None, :, None] * wave[None, None, :])[None, None]

    lengths = torch.full((1, 3), 10.0)
    tokens, predictions = [], []
    for network in (first, second):
        p = network.config.patch
        rho = smooth(4 * p)
        both = torch.cat([rho, rho], dim=1)
        where = positions((4, 4, 4), lengths)
        with torch.no_grad():
            tokens.append(network.embed(both, where) - network.embed(0 * both, where))
            predictions.append(F.avg_pool3d(network(rho, rho, rho, lengths)[:, None], p))
    for pair in (tokens, predictions):
        assert np.corrcoef(*(x.flatten() for x in pair))[0, 1] > 0.95
    assert tokens[1].std() == pytest.approx(float(tokens[0].std()), rel=0.2)


def test_what_was_learnt_is_kept_as_it_is_on_the_same_grid():
    config = CrysFormerConfig(dim=32, depth=1, heads=1, stem=4, patch=3)
    learnt = stirred(CrysFormer(config)).state_dict()
    taken = carried_over(learnt, config, replace(config, family="dialanine-1a", d_min=2.0))
    assert learnt.keys() == taken.keys()
    assert all(torch.equal(learnt[name], taken[name]) for name in learnt)
    taken["norm.weight"].zero_()
    assert learnt["norm.weight"].any()
