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

import math
from dataclasses import dataclass

import torch
from torch import nn

VOLUME = 150.0  # A^3, about one residue: the volume that evidence is counted in
CHUNK = 20_000  # points judged at once: some 100 MB
ATOMS = 4  # CA, N, C, CB


@dataclass(frozen=True)
class HandConfig:
    """Architecture and domain.

    radii : of the shells, A; each is blurred by a quarter of itself
    hidden : width of the network of invariants; products : triple products of each kind
    spacing : largest grid spacing in A; d_best, d_worst : resolution range claimed, in A
    """

    radii: tuple[float, ...] = (1.0, 1.4, 1.9, 2.4, 3.0, 3.8, 4.8, 6.2)
    hidden: int = 96
    products: int = 32
    spacing: float = 0.6
    d_best: float = 1.25
    d_worst: float = 2.2

    @property
    def stride(self) -> int:
        """Grid dimensions must be multiples of this."""
        return 2


def bessel(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Spherical Bessel functions j0, j1, j2 of x >= 0, to 1e-5."""
    small = x < 0.1
    y = torch.where(small, torch.ones_like(x), x)
    sin, cos = y.sin(), y.cos()
    j0 = torch.where(small, 1 - x**2 / 6, sin / y)
    j1 = torch.where(small, x / 3 - x**3 / 30, sin / y**2 - cos / y)
    j2 = torch.where(small, x**2 / 15, (3 / y**2 - 1) * sin / y - 3 * cos / y**2)
    return j0, j1, j2


def profiles(q: torch.Tensor, radius: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Transforms of a blurred shell of order 0, 1, 2 at |q| in 1/A."""
    blur = torch.exp(-2 * (math.pi * 0.25 * radius * q) ** 2)
    j0, j1, j2 = bessel(2 * math.pi * radius * q)
    return j0 * blur, j1 * blur, j2 * blur


class Shell:
    """Averages over one blurred shell, scaled to order one for white noise to a resolution of ``d_min`` (A)."""

    def __init__(self, radius: float, d_min: float) -> None:
        self.radius = radius
        q = torch.linspace(0.001, 1 / d_min, 500)
        self.scale = [float(((q**2).sum() / (p * q).pow(2).sum()).sqrt()) for p in profiles(q, radius)]

    def filters(self, waves: Waves) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Factors (B, 1 / 3 / 6, u, v, w') of half-complex coefficients, for S, V and T (xx yy zz xy xz yz)."""
        p0, p1, p2 = (p * s for p, s in zip(profiles(waves.size, self.radius), self.scale, strict=True))
        return p0[:, None], p1[:, None] * 1j * waves.direction, -p2[:, None] * waves.quadrupole


class Waves:
    """Wave vectors of the half-complex grids (u, v, w') of maps of one shape in cells of any metric.

    size (B, u, v, w') in 1/A; direction (B, 3, ...) of unit length; quadrupole (B, 6, ...), n n - 1/3; inside
    (u, v, w'), where a direction is known: not at a grid's highest frequency, which is its own mate
    """

    def __init__(self, shape: tuple[int, ...], frac: torch.Tensor) -> None:
        axes = [torch.fft.fftfreq(n, 1 / n) for n in shape[:2]] + [torch.fft.rfftfreq(shape[2], 1 / shape[2])]
        h = torch.stack(torch.meshgrid(*axes, indexing="ij")).to(frac)
        self.inside = (2 * h.abs() < torch.tensor(shape).to(frac)[:, None, None, None]).all(dim=0)
        q = torch.einsum("iuvw,bij->bjuvw", h, frac)
        self.size = q.norm(dim=1)
        self.direction = q / self.size.clamp_min(1e-9)[:, None]
        x, y, z = self.direction.unbind(1)
        third = 1 / 3
        self.quadrupole = torch.stack([x * x - third, y * y - third, z * z - third, x * y, x * z, y * z], dim=1)


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

    def __init__(self, config: HandConfig) -> None:
        super().__init__()
        self.config = config
        k, m, hid = len(config.radii), config.products, config.hidden
        self.shells = [Shell(r, 1.7) for r in config.radii]
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
        waves = Waves(tuple(rho.shape[1:]), frac)
        spectrum = (torch.fft.rfftn(rho, dim=(1, 2, 3)) * waves.inside)[:, None]

        def points(field: torch.Tensor) -> torch.Tensor:
            fine = torch.fft.irfftn(spectrum * field, s=tuple(rho.shape[1:]), dim=(2, 3, 4))
            return fine[..., ::2, ::2, ::2].flatten(2).transpose(1, 2)  # (B, points, 1 / 3 / 6)

        found = [[points(f) for f in shell.filters(waves)] for shell in self.shells]
        s, v, t = (torch.stack(parts, dim=-1) for parts in zip(*found, strict=True))
        return rho[:, ::2, ::2, ::2].flatten(1)[..., None], s, v, t

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
        evidence = mean * (volume / VOLUME) * self.log_scale.exp()
        lapse = self.log_lapse.sigmoid()
        return torch.logit(lapse / 2 + (1 - lapse) * evidence.abs().sigmoid()) * evidence.sign()
