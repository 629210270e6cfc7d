"""The learned density projection: a periodic 3D network that restores density from a phase-corrupted map.

    maps (3, u, v, w) --fold 2x2x2--> (24, u/2, v/2, w/2) --blocks-->  + --blocks--> unfold --> correction
                                                  |                    ^
                                                  +--stride 2--> blocks -

Translation-equivariant up to ``config.stride`` grid points, so it needs no origin, no fixed cell and no space group.
Folding (eight neighbours become eight channels) keeps all of the map's resolution and puts the work where processors
are quick: many channels on few points. What is far away is known through the normalisations, which look at the whole
cell, and through the measured amplitudes imposed between passes.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as F

from ml_phaser.networks.config import CONDITIONS, MAPS, ProjectorConfig


class Conv(nn.Conv3d):
    """3x3x3 convolution on a periodic grid."""

    def __init__(self, c_in: int, c_out: int, stride: int = 1) -> None:
        super().__init__(c_in, c_out, 3, stride=stride, padding=0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(F.pad(x, (1, 1, 1, 1, 1, 1), mode="circular"))


class Block(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), the conditions shifting and scaling the second norm."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(8, channels), nn.GroupNorm(8, channels)
        self.conv1, self.conv2 = Conv(channels, channels), Conv(channels, channels)
        self.film = nn.Linear(CONDITIONS, 2 * channels)
        nn.init.zeros_(self.film.weight)
        nn.init.zeros_(self.film.bias)
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: torch.Tensor, cond: torch.Tensor) -> torch.Tensor:
        y = self.conv1(F.silu(self.norm1(x)))  # (B, C, u, v, w)
        scale, shift = self.film(cond)[:, :, None, None, None].chunk(2, dim=1)
        return x + self.conv2(F.silu(self.norm2(y) * (1 + scale) + shift))


class Level(nn.ModuleList):
    """Residual blocks one after the other."""

    def __init__(self, channels: int, blocks: int) -> None:
        super().__init__(Block(channels) for _ in range(blocks))

    def forward(self, x: torch.Tensor, cond: torch.Tensor) -> torch.Tensor:
        for block in self:
            x = block(x, cond)
        return x


def fold(x: torch.Tensor) -> torch.Tensor:
    """(B, C, u, v, w) -> (B, 8 C, u/2, v/2, w/2): eight neighbours become channels."""
    b, c, u, v, w = x.shape
    x = x.reshape(b, c, u // 2, 2, v // 2, 2, w // 2, 2)
    return x.permute(0, 1, 3, 5, 7, 2, 4, 6).reshape(b, 8 * c, u // 2, v // 2, w // 2)


def unfold(x: torch.Tensor) -> torch.Tensor:
    """The inverse of ``fold``."""
    b, c, u, v, w = x.shape
    x = x.reshape(b, c // 8, 2, 2, 2, u, v, w)
    return x.permute(0, 1, 5, 2, 6, 3, 7, 4).reshape(b, c // 8, 2 * u, 2 * v, 2 * w)


class Projector(nn.Module):
    """Restored density (B, u, v, w), for any grid whose dimensions ``config.stride`` divides."""

    def __init__(self, config: ProjectorConfig) -> None:
        super().__init__()
        self.config = config
        c, n = config.channels, config.blocks
        self.stem = nn.Conv3d(8 * MAPS, c[0], 1)
        self.down = nn.ModuleList(Level(k, blocks) for k, blocks in zip(c, n, strict=True))
        self.shrink = nn.ModuleList(Conv(a, b, stride=2) for a, b in pairwise(c))
        self.grow = nn.ModuleList(nn.Conv3d(b, a, 1) for a, b in pairwise(c))
        self.up = nn.ModuleList(Level(k, blocks) for k, blocks in zip(c[:-1], n[:-1], strict=True))
        last = Conv(c[0], 8)
        nn.init.zeros_(last.weight)
        self.head = nn.Sequential(nn.GroupNorm(8, c[0]), nn.SiLU(), last)
        # The output is gate * input + correction: at the start the network is close to the identity.
        self.gate = nn.Linear(CONDITIONS, 1)
        nn.init.zeros_(self.gate.weight)
        nn.init.constant_(self.gate.bias, 0.7)

    def forward(self, maps: torch.Tensor, cond: torch.Tensor) -> torch.Tensor:
        """
        Parameters
        ----------
        maps : (B, MAPS, u, v, w), each of zero mean and unit variance over the cell or nothing but zeros: the map to
            restore; the same sharpened to point atoms at rest (the map of E); the density of a placed model, if any
        cond : (B, CONDITIONS), made by ``condition``
        """
        x = self.stem(fold(maps))
        skips = []
        for level, blocks in enumerate(self.down):
            x = blocks(x, cond)
            if level < len(self.shrink):
                skips.append(x)
                x = self.shrink[level](x)  # (B, C', u/4, v/4, w/4)
        for level in reversed(range(len(self.up))):
            x = F.interpolate(self.grow[level](x), scale_factor=2, mode="nearest") + skips[level]
            x = self.up[level](x, cond)
        return unfold(self.head(x))[:, 0] + self.gate(cond)[:, :, None, None] * maps[:, 0]


def tell(cond: torch.Tensor, quality: torch.Tensor) -> torch.Tensor:
    """The conditions with the correlation (B,) of the map with the truth, NaN where it is not known."""
    known = torch.isfinite(quality)
    last = torch.stack([torch.where(known, (quality - 0.6) / 0.3, 0.0), known.to(cond)], dim=1)
    return torch.cat([cond[:, :-2], last], dim=1)
