"""What the hand judge sees of a map, and how its evidence adds up: everything about it but the network itself.

Averages over spherical shells, taken in reciprocal space with the cell's own metric (see ``hand``), of torch tensors
or numpy arrays.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ml_phaser import arrays
from ml_phaser.arrays import Array, namespace

VOLUME = 150.0  # A^3, about one residue: the volume that evidence is counted in
CHUNK = 20_000  # points judged at once: some 100 MB
D_MIN = 1.7  # A: white noise to here has averages of order one


def bessel(x: Array) -> tuple[Array, Array, Array]:
    """Spherical Bessel functions j0, j1, j2 of x >= 0, to 1e-5."""
    xp = namespace(x)
    small = x < 0.1
    y = xp.where(small, xp.ones_like(x), x)
    sin, cos = xp.sin(y), xp.cos(y)
    j0 = xp.where(small, 1 - x**2 / 6, sin / y)
    j1 = xp.where(small, x / 3 - x**3 / 30, sin / y**2 - cos / y)
    j2 = xp.where(small, x**2 / 15, (3 / y**2 - 1) * sin / y - 3 * cos / y**2)
    return j0, j1, j2


def profiles(q: Array, radius: float) -> tuple[Array, Array, Array]:
    """Transforms of a blurred shell of order 0, 1, 2 at |q| in 1/A."""
    blur = namespace(q).exp(-2 * (math.pi * 0.25 * radius * q) ** 2)
    j0, j1, j2 = bessel(2 * math.pi * radius * q)
    return j0 * blur, j1 * blur, j2 * blur


class Shell:
    """Averages over one blurred shell, scaled to order one for white noise to a resolution of ``d_min`` (A)."""

    def __init__(self, radius: float, d_min: float = D_MIN) -> None:
        self.radius = radius
        q = np.linspace(0.001, 1 / d_min, 500)
        self.scale = [math.sqrt((q**2).sum() / ((p * q) ** 2).sum()) for p in profiles(q, radius)]

    def filters(self, waves: Waves) -> tuple[Array, Array, Array]:
        """Factors (B, 1 / 3 / 6, u, v, w') of half-complex coefficients, for S, V and T (xx yy zz xy xz yz)."""
        p0, p1, p2 = (p * s for p, s in zip(profiles(waves.size, self.radius), self.scale, strict=True))
        return p0[:, None], p1[:, None] * 1j * waves.direction, -p2[:, None] * waves.quadrupole


class Waves:
    """Wave vectors of the half-complex grids (u, v, w') of maps of one shape in cells of any metric.

    size (B, u, v, w') in 1/A; direction (B, 3, ...) of unit length; quadrupole (B, 6, ...), n n - 1/3; inside
    (u, v, w'), where a direction is known: not at a grid's highest frequency, which is its own mate
    """

    def __init__(self, shape: tuple[int, ...], frac: Array) -> None:
        xp = namespace(frac)
        axes = [np.fft.fftfreq(n, 1 / n) for n in shape[:2]] + [np.fft.rfftfreq(shape[2], 1 / shape[2])]
        h = np.stack(np.meshgrid(*axes, indexing="ij"))
        limits = np.array(shape)[:, None, None, None]
        self.inside = arrays.beside(np.all(2 * abs(h) < limits, axis=0), frac)
        q = xp.einsum("iuvw,bij->bjuvw", arrays.astype(arrays.beside(h, frac), frac), frac)
        self.size = (q**2).sum(axis=1) ** 0.5
        self.direction = q / self.size.clip(min=1e-9)[:, None]
        x, y, z = (self.direction[:, i] for i in range(3))
        third = 1 / 3
        self.quadrupole = xp.stack([x * x - third, y * y - third, z * z - third, x * y, x * z, y * z], axis=1)


def surroundings(rho: Array, frac: Array, shells: Sequence[Shell]) -> tuple[Array, Array, Array, Array]:
    """Density (B, points, 1) at every second point, and S, V, T (B, points, 1 / 3 / 6, shells) about it.

    Parameters
    ----------
    rho : (B, u, v, w) of unit variance, dimensions even; frac : (B, 3, 3), fractional = frac @ orthogonal
    """
    xp = namespace(rho)
    shape = tuple(rho.shape[1:])
    waves = Waves(shape, frac)
    spectrum = (arrays.rfftn(rho) * waves.inside)[:, None]

    def points(field: Array) -> Array:
        coarse = arrays.irfftn(spectrum * field, shape)[..., ::2, ::2, ::2]
        return xp.swapaxes(coarse.reshape(*coarse.shape[:2], -1), 1, 2)  # (B, points, 1 / 3 / 6)

    found = [[points(f) for f in shell.filters(waves)] for shell in shells]
    s, v, t = (xp.stack(parts, axis=-1) for parts in zip(*found, strict=True))
    return rho[:, ::2, ::2, ::2].reshape(len(rho), -1)[..., None], s, v, t


def log_odds(mean: Array, volume: Array, log_scale: Array, log_lapse: Array) -> Array:
    """ln P / (1 - P) (B,) that the map, not its mirror image, shows L-amino acids.

    Parameters
    ----------
    mean : (B,) of the evidence over all points; volume : (B,) of the asymmetric unit in A^3
    log_scale, log_lapse : learned numbers, of the scale of the evidence and of the logit of the lapse rate
    """
    xp = namespace(mean)
    evidence = mean * (volume / VOLUME) * xp.exp(log_scale)
    lapse = 1 / (1 + xp.exp(-log_lapse))
    p = lapse / 2 + (1 - lapse) / (1 + xp.exp(-abs(evidence)))
    return xp.log(p / (1 - p)) * xp.sign(evidence)
