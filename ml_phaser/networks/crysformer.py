"""CrysFormer (Dun et al., arXiv:2310.03899): Patterson patches as tokens that also attend to partial structures.

    (B, C, u, v, w) --conv--> patches --MLP--> tokens (B, S, dim) --depth x layer--> --MLP--> patches --conv--> tanh

A layer: Patterson tokens ask themselves and the partial structures' tokens, which keep keys and values of their own and
never change (appendix A of the paper). Other than there: layers normalise first (the paper leaves norms and skips
out of its equations); no table of positions, which held most of the published model's parameters and fixed the largest
cell, but harmonics of the fractional position and of the distance in A from the cell's centre; recycling sees
the earlier prediction with the measured amplitudes put back.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from ml_phaser.networks.config import CrysFormerConfig

HARMONICS = 3  # of the fractional coordinates
WAVELENGTHS = (3.0, 6.0, 12.0, 24.0)  # A, of the Cartesian ones
POSITION = 6 * HARMONICS + 6 * len(WAVELENGTHS) + 3


class Conv(nn.Conv3d):
    """3x3x3 convolution on a periodic grid."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__(c_in, c_out, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(F.pad(x, (1, 1, 1, 1, 1, 1), mode="circular"))


def partition(x: torch.Tensor, p: int) -> torch.Tensor:
    """(B, C, u, v, w) -> (B, S, C p^3): patches of p^3 points, w fastest."""
    b, c, u, v, w = x.shape
    x = x.reshape(b, c, u // p, p, v // p, p, w // p, p)
    return x.permute(0, 2, 4, 6, 1, 3, 5, 7).reshape(b, (u // p) * (v // p) * (w // p), c * p**3)


def rearrange(x: torch.Tensor, p: int, shape: tuple[int, int, int]) -> torch.Tensor:
    """The inverse of ``partition``, onto the grid ``shape``."""
    u, v, w = shape
    b, c = x.shape[0], x.shape[2] // p**3
    x = x.reshape(b, u // p, v // p, w // p, c, p, p, p)
    return x.permute(0, 4, 1, 5, 2, 6, 3, 7).reshape(b, c, u, v, w)


def positions(shape: tuple[int, int, int], lengths: torch.Tensor) -> torch.Tensor:
    """What a patch knows of its place, (B, S, POSITION), for ``shape`` patches in cells of edges ``lengths`` (B, 3) A.

    Harmonics of the fractional coordinates of its middle, of its distance from the cell's centre along each axis, and
    the edges.
    """
    axes = [(torch.arange(n, device=lengths.device) + 0.5) / n for n in shape]
    frac = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, 3).to(lengths.dtype)  # (S, 3)
    orders = torch.arange(1, HARMONICS + 1, device=lengths.device)
    turn = (2 * torch.pi * frac[..., None] * orders).flatten(1)  # (S, 3 HARMONICS)
    periodic = torch.cat([turn.cos(), turn.sin()], dim=-1).expand(lengths.shape[0], -1, -1)
    from_centre = (frac - 0.5) * lengths[:, None]  # (B, S, 3)
    waves = 2 * torch.pi / torch.tensor(WAVELENGTHS, device=lengths.device)
    phase = (from_centre[..., None] * waves).flatten(2)
    edges = (lengths[:, None] / 10 - 1).expand(-1, frac.shape[0], -1)
    return torch.cat([periodic, phase.cos(), phase.sin(), edges], dim=-1)


class Embedding(nn.Module):
    """Maps to tokens (B, S, dim)."""

    def __init__(self, channels: int, config: CrysFormerConfig) -> None:
        super().__init__()
        self.patch = config.patch
        self.stem = Conv(channels, config.stem)
        self.mlp = nn.Sequential(
            nn.Linear(config.stem * config.patch**3, config.dim), nn.ReLU(), nn.Linear(config.dim, config.dim)
        )
        self.place = nn.Linear(POSITION, config.dim)

    def forward(self, maps: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
        return self.mlp(partition(self.stem(maps), self.patch)) + self.place(where)


class Layer(nn.Module):
    """One-way attention, then the feed-forward layer, each added to what came in."""

    def __init__(self, config: CrysFormerConfig) -> None:
        super().__init__()
        dim, self.heads = config.dim, config.heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.query, self.keys = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim)
        self.parts_keys = nn.Linear(dim, 2 * dim) if config.parts else None
        self.out = nn.Linear(dim, dim)
        self.forth, self.back = nn.Linear(dim, config.widen * dim), nn.Linear(config.widen * dim, dim)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.back.weight)

    def split(self, x: torch.Tensor) -> torch.Tensor:
        """(B, S, dim) -> (B, heads, S, dim / heads)."""
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)

    def forward(self, x: torch.Tensor, parts: torch.Tensor | None) -> torch.Tensor:
        """``parts`` (B, S J, dim), normalised once and for all; what is returned replaces ``x`` (B, S, dim) alone."""
        seen = self.norm1(x)
        keys = self.keys(seen)
        if parts is not None and self.parts_keys is not None:
            keys = torch.cat([keys, self.parts_keys(parts)], dim=1)
        k, v = keys.chunk(2, dim=2)
        found = F.scaled_dot_product_attention(self.split(self.query(seen)), self.split(k), self.split(v))
        x = x + self.out(found.transpose(1, 2).flatten(2))
        return x + self.back(F.relu(self.forth(self.norm2(x))))


class CrysFormer(nn.Module):
    """Predicted density (B, u, v, w) in -1 ... 1, for any grid whose dimensions ``config.patch`` divides."""

    def __init__(self, config: CrysFormerConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = Embedding(1 + int(config.recycled), config)
        self.embed_part = Embedding(1, config) if config.parts else None
        self.norm_parts = nn.LayerNorm(config.dim) if config.parts else None
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.dim)
        inside = config.stem * config.patch**3
        self.mlp = nn.Sequential(nn.Linear(config.dim, config.dim), nn.ReLU(), nn.Linear(config.dim, inside))
        self.head = Conv(config.stem, 1)

    def tokens_of_parts(self, parts: torch.Tensor, where: torch.Tensor) -> torch.Tensor | None:
        """(B, J, u, v, w) -> (B, J S, dim), None where there are none to look at."""
        if self.embed_part is None or self.norm_parts is None or parts.shape[1] == 0:
            return None
        b, j = parts.shape[:2]
        each = self.embed_part(parts.flatten(0, 1)[:, None], where.repeat_interleave(j, dim=0))
        return self.norm_parts(each).reshape(b, -1, each.shape[2])

    def forward(
        self, patterson: torch.Tensor, parts: torch.Tensor, recycled: torch.Tensor, lengths: torch.Tensor
    ) -> torch.Tensor:
        """
        Parameters
        ----------
        patterson : (B, 1, u, v, w); parts : (B, J, u, v, w), J from 0 to config.parts or more
        recycled : (B, 1, u, v, w), zeros at first; not used unless ``config.recycled``
        lengths : (B, 3), cell edges in A
        """
        u, v, w = patterson.shape[2:]
        p = self.config.patch
        where = positions((u // p, v // p, w // p), lengths)
        x = self.embed(torch.cat([patterson, recycled], dim=1) if self.config.recycled else patterson, where)
        fixed = self.tokens_of_parts(parts, where)
        for layer in self.layers:
            x = layer(x, fixed)
        x = rearrange(self.mlp(self.norm(x)), p, (u, v, w))
        return torch.tanh(self.head(x)[:, 0])
