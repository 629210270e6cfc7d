"""The 3D residual U-Net of Pan et al., IUCrJ 10, 487 (2023): a Patterson map in, a density map out.

    (B, C, u, v, w) --2 x conv 7^3, max-pool 2--> --residual blocks, conv 7^3--> --upsample 2, 2 x conv 5^3--> tanh

What the paper says: circular padding at the encoder and the blocks ('same' padding at the decoder), batch
normalisation and ReLU after every convolution but the last, squeeze-and-excitation with the channels halved in the
later version, He initialisation, "about three million" parameters, layers of 23 and 25 channels, later 25 and 30. Which
layers have which is not said; here the encoder and the decoder have the smaller number: 3.3 million. The padding of
the decoder is circular too, as a crystal is. Variants of Dun et al. (CrysFormer, section 5): +PS, maps of the residues
by themselves as further channels; +R, an earlier prediction as one more.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from ml_phaser.networks.config import UNetConfig


class Conv(nn.Conv3d):
    """k x k x k convolution on a periodic grid; grids smaller than the kernel wrap around more than once."""

    def __init__(self, c_in: int, c_out: int, kernel: int) -> None:
        super().__init__(c_in, c_out, kernel)
        nn.init.kaiming_normal_(self.weight, nonlinearity="relu")
        assert self.bias is not None
        nn.init.zeros_(self.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        reach = self.kernel_size[0] // 2
        if min(x.shape[2:]) < reach:  # F.pad goes round once at most
            for axis in (2, 3, 4):
                x = x.index_select(axis, torch.arange(-reach, x.shape[axis] + reach, device=x.device) % x.shape[axis])
            return super().forward(x)
        return super().forward(F.pad(x, (reach,) * 6, mode="circular"))


class Layer(nn.Sequential):
    """Convolution, batch normalisation, ReLU."""

    def __init__(self, c_in: int, c_out: int, kernel: int) -> None:
        super().__init__(Conv(c_in, c_out, kernel), nn.BatchNorm3d(c_out), nn.ReLU())


class Squeeze(nn.Module):
    """Channels weighted by what is in the whole map (Hu et al., 2018)."""

    def __init__(self, channels: int, reduction: int = 2) -> None:
        super().__init__()
        self.narrow, self.widen = nn.Linear(channels, channels // reduction), nn.Linear(channels // reduction, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = torch.sigmoid(self.widen(F.relu(self.narrow(x.mean(dim=(2, 3, 4))))))  # (B, C)
        return x * weight[:, :, None, None, None]


class Block(nn.Module):
    """relu(x + squeeze(norm(conv(relu(norm(conv(x)))))))."""

    def __init__(self, channels: int, squeeze: bool) -> None:
        super().__init__()
        self.first = Layer(channels, channels, 7)
        self.second = nn.Sequential(Conv(channels, channels, 7), nn.BatchNorm3d(channels))
        self.squeeze = Squeeze(channels) if squeeze else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(x + self.squeeze(self.second(self.first(x))))


class UNet(nn.Module):
    """Predicted density (B, u, v, w) in -1 ... 1, for any grid of even dimensions."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        channels = 1 + config.parts + int(config.recycled)
        self.encode = nn.Sequential(Layer(channels, config.edge, 7), Layer(config.edge, config.features, 7))
        self.learn = nn.Sequential(*(Block(config.features, config.squeeze) for _ in range(config.blocks)))
        self.decode = nn.Sequential(Layer(config.features, config.edge, 5), Conv(config.edge, 1, 5))

    def forward(
        self, patterson: torch.Tensor, parts: torch.Tensor, recycled: torch.Tensor, lengths: torch.Tensor
    ) -> torch.Tensor:
        """
        Parameters
        ----------
        patterson : (B, 1, u, v, w); parts : (B, config.parts, u, v, w); recycled : (B, 1, u, v, w), zeros at first; not
            used unless ``config.recycled``; lengths : (B, 3), not used: the grid is all it knows of the cell
        """
        seen = [patterson, parts] if self.config.parts else [patterson]
        x = torch.cat([*seen, recycled] if self.config.recycled else seen, dim=1)
        x = F.max_pool3d(self.encode(x), 2)  # (B, C, u/2, v/2, w/2)
        x = F.interpolate(self.learn(x), scale_factor=2, mode="nearest")
        return torch.tanh(self.decode(x)[:, 0])
