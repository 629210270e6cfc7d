"""The learned density projection: a periodic 3D U-Net that restores density from a phase-corrupted map.

Translation-equivariant (up to the pooling stride), so it needs no origin, no fixed cell and no space group. Input and
output are maps of zero mean; the input has unit variance over the cell.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as F


@dataclass(frozen=True)
class ProjectorConfig:
    """Architecture and domain.

    channels : features at each level, finest first; blocks : residual blocks at each level going down and up
    inputs : 1, the map; 2, the map and the same sharpened to point atoms at rest (the map of E)
    spacing : grid spacing in A the network is trained at; d_min, d_max_min : resolution range claimed, in A
    """

    channels: tuple[int, ...] = (16, 32, 64)
    blocks: int = 1
    inputs: int = 1
    spacing: float = 0.6
    d_best: float = 1.25
    d_worst: float = 2.2

    @property
    def stride(self) -> int:
        """Grid dimensions must be multiples of this."""
        return 2 ** (len(self.channels) - 1)


class Conv(nn.Conv3d):
    """3x3x3 convolution on a periodic grid."""

    def __init__(self, c_in: int, c_out: int, stride: int = 1) -> None:
        super().__init__(c_in, c_out, 3, stride=stride, padding=0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(F.pad(x, (1, 1, 1, 1, 1, 1), mode="circular"))


class Block(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), the conditioning shifting and scaling the second norm."""

    def __init__(self, channels: int, n_cond: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(8, channels), nn.GroupNorm(8, channels)
        self.conv1, self.conv2 = Conv(channels, channels), Conv(channels, channels)
        self.film = nn.Linear(n_cond, 2 * channels)
        nn.init.zeros_(self.film.weight)
        nn.init.zeros_(self.film.bias)
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: torch.Tensor, cond: torch.Tensor) -> torch.Tensor:
        y = self.conv1(F.silu(self.norm1(x)))  # (B, C, u, v, w)
        scale, shift = self.film(cond)[:, :, None, None, None].chunk(2, dim=1)
        return x + self.conv2(F.silu(self.norm2(y) * (1 + scale) + shift))


class Level(nn.ModuleList):
    """Residual blocks one after the other."""

    def __init__(self, channels: int, n_cond: int, blocks: int) -> None:
        super().__init__(Block(channels, n_cond) for _ in range(blocks))

    def forward(self, x: torch.Tensor, cond: torch.Tensor) -> torch.Tensor:
        for block in self:
            x = block(x, cond)
        return x


class Projector(nn.Module):
    """rho -> restored rho, (B, u, v, w) -> (B, u, v, w), for any grid whose dimensions ``config.stride`` divides."""

    N_COND = 3

    def __init__(self, config: ProjectorConfig) -> None:
        super().__init__()
        self.config = config
        c, n = config.channels, self.N_COND
        self.stem = Conv(config.inputs, c[0])
        self.down = nn.ModuleList(Level(k, n, config.blocks) for k in c)
        self.shrink = nn.ModuleList(Conv(a, b, stride=2) for a, b in pairwise(c))
        self.grow = nn.ModuleList(nn.Conv3d(b, a, 1) for a, b in pairwise(c))
        self.up = nn.ModuleList(Level(k, n, config.blocks) for k in c[:-1])
        last = Conv(c[0], 1)
        nn.init.zeros_(last.weight)
        self.head = nn.Sequential(nn.GroupNorm(8, c[0]), nn.SiLU(), last)
        # The output is gate * input + correction: at the start the network is close to the identity.
        self.gate = nn.Linear(n, 1)
        nn.init.zeros_(self.gate.weight)
        nn.init.constant_(self.gate.bias, 0.7)

    def forward(self, rho: torch.Tensor, cond: torch.Tensor, sharp: torch.Tensor | None = None) -> torch.Tensor:
        """``cond`` (B, 3) is made by ``condition``; ``sharp`` (B, u, v, w), of unit variance, where inputs is 2."""
        x = self.stem(rho[:, None] if sharp is None else torch.stack([rho, sharp], dim=1))
        skips = []
        for level, blocks in enumerate(self.down):
            x = blocks(x, cond)
            if level < len(self.shrink):
                skips.append(x)
                x = self.shrink[level](x)  # (B, C', u/2, v/2, w/2)
        for level in reversed(range(len(self.up))):
            x = F.interpolate(self.grow[level](x), scale_factor=2, mode="nearest") + skips[level]
            x = self.up[level](x, cond)
        return self.head(x)[:, 0] + self.gate(cond)[:, :, None, None] * rho


def condition(d_min: torch.Tensor, spacing: torch.Tensor, completeness: torch.Tensor) -> torch.Tensor:
    """What the network is told, (B, 3): resolution and mean grid spacing in A, completeness 0-1; order-one numbers."""
    return torch.stack([(d_min - 1.7) / 0.3, (spacing - 0.6) / 0.05, (completeness - 0.9) / 0.1], dim=1)
