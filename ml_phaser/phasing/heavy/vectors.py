"""What vectors between heavy atoms find in the Patterson function, and how well sites explain E^2."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import gemmi
import numpy as np
from numpy.typing import NDArray

from ml_phaser.crystal.grid import grid_shape, synthesise
from ml_phaser.crystal.symmetry import expand

HIGHEST_E2 = 8.0  # of one reflection: more is noise or a crystal's habit
FINE = 1 / 3  # of d_min: spacing of the Patterson's grid
LOW, HIGH = -2.0, 6.0  # r.m.s. of the Patterson: what one vector may say against or for two sites
NOTHING = 1.4  # A: shorter vectors are bonds of light atoms or the origin's own ripples
NEAR, SHELL = 9.0, 0.15  # A: to here the Patterson is that of every protein; levelled in shells of such width


@dataclass(frozen=True, eq=False)
class Operators:
    """All operators of a group, centring included: x' = rotations[g] x + translations[g], the identity first."""

    rotations: NDArray[np.float64]
    translations: NDArray[np.float64]

    @classmethod
    def of(cls, spacegroup: gemmi.SpaceGroup) -> Operators:
        ops = list(spacegroup.operations())
        rotations = np.array([op.rot for op in ops], dtype=float) / gemmi.Op.DEN
        return cls(rotations, np.array([op.tran for op in ops], dtype=float) / gemmi.Op.DEN)

    def __len__(self) -> int:
        return len(self.rotations)

    def images(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """Equivalents (..., g, 3) of fractional positions (..., 3)."""
        return np.einsum("gij,...j->...gi", self.rotations, x) + self.translations

    @cached_property
    def laue(self) -> NDArray[np.float64]:
        """Rotations (k, 3, 3) of the Patterson function."""
        return np.unique(np.concatenate([self.rotations, -self.rotations]), axis=0)


@dataclass(frozen=True, eq=False)
class Vectors:
    """A Patterson function of E^2 without its origin, in units of its r.m.s., read at the nearest grid point.

    raw : (u * v * w,) ; shape : (u, v, w)
    """

    raw: NDArray[np.float32]
    shape: tuple[int, int, int]
    operators: Operators

    @classmethod
    def of(
        cls, hkl: NDArray[np.int32], excess: NDArray[np.float64], cell: gemmi.UnitCell, spacegroup: gemmi.SpaceGroup
    ) -> Vectors:
        """From E^2 - 1, ``excess`` (n,), of unique reflections (n, 3). Near the origin the mean over directions is
        taken off and larger ripples are made smaller: bonds and angles of light atoms are the same everywhere."""
        d_min = float(cell.calculate_d_array(hkl).min()) * 0.99999
        shape = grid_shape(cell, d_min, spacing=d_min * FINE)
        expansion = expand(hkl, spacegroup)
        raw = synthesise(expansion.hkl, excess[expansion.asu], shape, cell.volume).astype(np.float32)
        raw /= raw.std()
        return cls(_levelled(raw, cell), shape, Operators.of(spacegroup))

    @cached_property
    def clipped(self) -> NDArray[np.float32]:
        return np.clip(self.raw, LOW, HIGH)

    def at(self, u: NDArray[np.float64], values: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """Values at fractional vectors (..., 3), clipped unless ``values`` are others."""
        steps = [np.rint(u[..., a] % 1.0 * n).astype(np.int64) % n for a, n in enumerate(self.shape)]
        flat = (steps[0] * self.shape[1] + steps[1]) * self.shape[2] + steps[2]
        return np.asarray((self.clipped if values is None else values)[flat])

    def own(self, x: NDArray[np.float64]) -> NDArray[np.float32]:
        """Sums (...) over the vectors of positions (..., 3) to their own images: Harker vectors, none in P1."""
        total = np.zeros(x.shape[:-1], dtype=np.float32)
        for rotation, shift in zip(self.operators.rotations[1:], self.operators.translations[1:], strict=True):
            total += self.at(x - (x @ rotation.T + shift))
        return total

    def between(self, x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float32]:
        """Sums (k,) over the vectors from positions (k, 3) to all images of ``y`` (3,)."""
        return self.at(x[:, None] - self.operators.images(y)).sum(axis=1)

    def weights(self, sites: NDArray[np.float64]) -> NDArray[np.float64]:
        """Relative scattering power (m,) of sites (m, 3), the largest 1: vectors between two of them are as high as the
        product of theirs, so that the matrix of heights has the powers for its first eigenvector."""
        m, count = len(sites), len(self.operators)
        heights = np.zeros((m, m))
        for i in range(m):
            images = self.operators.images(sites[i])
            for j in range(m):
                u = sites[j] - images
                if i == j:
                    u = u[1:]
                if len(u):
                    heights[i, j] = self.at(u, self.raw).sum() / (count - (i == j))
        first = np.linalg.eigh((heights + heights.T) / 2)[1][:, -1]
        first = np.maximum(first * np.sign(first.sum()), 0)
        return np.asarray(first / first.max())


def _levelled(raw: NDArray[np.float32], cell: gemmi.UnitCell) -> NDArray[np.float32]:
    """The Patterson (flat) with what depends on the length of a vector alone taken out, to NEAR; nothing is said by
    vectors shorter than NOTHING."""
    fractions = [np.fft.fftfreq(n).astype(np.float32) for n in raw.shape]
    orth = np.array(cell.orth.mat, dtype=np.float32)
    length = np.zeros(raw.shape, dtype=np.float32)
    for row in orth:
        part = row[0] * fractions[0][:, None, None] + row[1] * fractions[1][:, None] + row[2] * fractions[2]
        length += part**2
    shell = np.minimum(np.sqrt(length) / SHELL, round(NEAR / SHELL)).astype(np.int64).reshape(-1)
    flat = raw.reshape(-1)
    count = np.maximum(np.bincount(shell), 1)
    mean = np.bincount(shell, flat) / count
    spread = np.sqrt(np.maximum(np.bincount(shell, flat.astype(float) ** 2) / count - mean**2, 1e-6))
    out = (flat - np.maximum(mean, 0)[shell]) / np.maximum(spread / spread[-1], 1)[shell]
    out[shell < NOTHING / SHELL] = LOW
    return out.astype(np.float32)


@dataclass(frozen=True, eq=False)
class Factors:
    """Structure factors of point atoms on given reflections.

    index : (3, n) rows of the tables of phase factors; lowest, highest : indices along each axis, (3,)
    """

    index: NDArray[np.int32]
    lowest: NDArray[np.int32]
    highest: NDArray[np.int32]
    operators: Operators

    @classmethod
    def of(cls, hkl: NDArray[np.int32], operators: Operators) -> Factors:
        low = hkl.min(axis=0)
        return cls(np.ascontiguousarray((hkl - low).T.astype(np.int32)), low, hkl.max(axis=0), operators)

    def of_site(self, x: NDArray[np.float64]) -> NDArray[np.complex64]:
        """Those (n,) of an atom at ``x`` (3,) and its images."""
        total = np.zeros(self.index.shape[1], dtype=np.complex64)
        for image in self.operators.images(x):
            tables = [
                np.exp(2j * np.pi * image[a] * np.arange(self.lowest[a], self.highest[a] + 1)).astype(np.complex64)
                for a in range(3)
            ]
            total += tables[0][self.index[0]] * tables[1][self.index[1]] * tables[2][self.index[2]]
        return total


@dataclass(frozen=True, eq=False)
class Moduli:
    """How well equal point atoms at given sites explain E^2.

    excess : (n,) E^2 less its mean, unit length; weight : (n,) what a reflection is expected to say of heavy atoms
    """

    factors: Factors
    excess: NDArray[np.float64]
    weight: NDArray[np.float64]

    @classmethod
    def of(cls, factors: Factors, excess: NDArray[np.float64], weight: NDArray[np.float64]) -> Moduli:
        centred = excess - excess.mean()
        return cls(factors, centred / np.linalg.norm(centred), weight)

    def fit(self, f: NDArray[np.complex64]) -> float:
        """Correlation of |f|^2 (n,) with E^2 in units of its standard deviation by chance: about 1 for wrong sites,
        before any search."""
        square = f.real**2 + f.imag**2
        told = self.weight * (square - square.mean())
        size = float(np.linalg.norm(told))
        return float(told @ self.excess) / size * len(f) ** 0.5 if size > 1e-6 * len(f) else 0.0
