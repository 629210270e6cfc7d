"""The hand judge: tells a map of L-amino-acid protein from its mirror image.

At every second grid point the map's surroundings are described by averages over spherical shells,

    S_k(x) = <rho(x + r)>,   V_k(x) = <rho(x + r) n>,   T_k(x) = <rho(x + r) (n n - 1/3)>,   |r| = r_k, n = r / |r|,

and by products of them that do not change with rotations (the atomic cluster expansion: Drautz, Phys. Rev. B 99,
014104, 2019). The evidence a(x) is a sum of triple products of vectors, u.(v x w), weighted by a small network of the
invariants; one of them is the chiral volume of the alpha carbon and its neighbours N, C, CB, where the vectors to them
are estimated. Whatever the weights are, the evidence moves with translation and rotation and changes its sign when the
map is inverted: it can tell nothing but the hand. Shells are taken in reciprocal space with the cell's own metric.

Pieces of a crystal that lie apart testify independently, so that evidence adds up over the volume of the asymmetric
unit; and as a whole map may mislead, the probability keeps away from 0 and 1 by half a lapse rate e (Wichmann & Hill,
Percept. Psychophys. 63, 1293, 2001):  P = e/2 + (1 - e) / (1 + exp(-S)).
"""

from __future__ import annotations

import torch
from torch import nn

from ml_phaser.networks import shells
from ml_phaser.networks.config import HandConfig
from ml_phaser.networks.shells import CHUNK, Shell

ATOMS = 4  # CA, N, C, CB


def triple(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    """a.(b x c) of vectors (..., 3, m)."""
    ax, ay, az = a.unbind(-2)
    bx, by, bz = b.unbind(-2)
    cx, cy, cz = c.unbind(-2)
    return ax * (by * cz - bz * cy) + ay * (bz * cx - bx * cz) + az * (bx * cy - by * cx)


def bounded(v: torch.Tensor) -> torch.Tensor:
    """Vectors (..., 3, m) made shorter than one."""
    return v * torch.rsqrt(1 + v.pow(2).sum(-2, keepdim=True))


class HandJudge(nn.Module):
    """Maps (B, u, v, w) of unit variance, dimensions even -> (B, points) local evidence for L-amino acids."""

    place = "cpu"  # of its arrays, where it is not moved

    def __init__(self, config: HandConfig) -> None:
        super().__init__()
        self.config = config
        k, m, hid = len(config.radii), config.products, config.hidden
        self.shells = [Shell(r) for r in config.radii]
        self.vectors = nn.Linear(k, 3 * m, bias=False)
        self.tensors = nn.Linear(k, m, bias=False)
        self.weigh = nn.Sequential(
            nn.Linear(2 + k + 5 * m, hid), nn.SiLU(), nn.Linear(hid, hid), nn.SiLU(), nn.Linear(hid, hid), nn.SiLU(),
            nn.Linear(hid, 2 * m + 2 + ATOMS * 3 * m),
        )  # fmt: skip
        self.log_scale = nn.Parameter(torch.tensor(0.0))
        self.log_lapse = nn.Parameter(torch.tensor(-2.0))

    def forward(self, rho: torch.Tensor, frac: torch.Tensor, d_min: torch.Tensor) -> torch.Tensor:
        """a (B, u/2 v/2 w/2).

        Parameters
        ----------
        frac : (B, 3, 3), fractional = frac @ orthogonal; d_min : (B,) A
        """
        chunks = zip(*(y.split(CHUNK, dim=1) for y in self.surroundings(rho, frac)), strict=True)
        return torch.cat([self.local(d_min, *chunk)[0] for chunk in chunks], dim=1)

    @torch.no_grad()
    def surroundings(self, rho: torch.Tensor, frac: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Density (B, points, 1) at every second point, and S, V, T (B, points, 1 / 3 / 6, k) about it."""
        return shells.surroundings(rho, frac, self.shells)

    def local(
        self, d_min: torch.Tensor, rho: torch.Tensor, s: torch.Tensor, v: torch.Tensor, t: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """At points (B, p) of such ``surroundings``: a (B, p), log-odds (B, p) that an alpha carbon is near, and the
        vectors (B, p, 3, ATOMS) from the point to CA, N, C, CB of it in units of 1.5 A."""
        vectors, tensors = self.vectors(v), self.tensors(t)  # (B, p, 3, 3 m), (B, p, 6, m)
        short = bounded(vectors)
        a, b, c = short.chunk(3, dim=-1)
        ax, ay, az = a.unbind(2)
        xx, yy, zz, xy, xz, yz = tensors.unbind(2)
        ta = [xx * ax + xy * ay + xz * az, xy * ax + yy * ay + yz * az, xz * ax + yz * ay + zz * az]
        bent = bounded(torch.stack(ta, dim=2))
        told = ((d_min - 1.7) / 0.3)[:, None, None].expand_as(rho)
        sizes = [torch.log1p(vectors.pow(2).sum(2)), torch.log1p(tensors.pow(2).sum(2)), (bent * b).sum(2)]
        y = self.weigh(torch.cat([rho, told, s[:, :, 0], *sizes], dim=-1))
        weights, alpha, pull = y.split([2 * a.shape[-1] + 1, 1, y.shape[-1] - 2 * a.shape[-1] - 2], dim=-1)
        atoms = short @ pull.unflatten(-1, (short.shape[-1], ATOMS)) / short.shape[-1] ** 0.5
        ca, n, co, cb = atoms.split(1, dim=-1)
        odd = [triple(a, b, c), triple(bent, a, b), triple(n - ca, co - ca, cb - ca)]
        return (torch.cat(odd, dim=-1) * weights).sum(-1), alpha[..., 0], atoms

    def log_odds(self, mean: torch.Tensor, volume: torch.Tensor) -> torch.Tensor:
        """ln P / (1 - P) (B,) that the map, not its mirror image, shows L-amino acids.

        Parameters
        ----------
        mean : (B,) of a over all points; volume : (B,) of the asymmetric unit in A^3
        """
        return shells.log_odds(mean, volume, self.log_scale, self.log_lapse)
