"""Structure factors of many free atoms by FFT: each a Gaussian on a grid, blurred until the grid is fine enough.

What ``atom_fit`` sums wave by wave, with the same steps: atoms and their changes are spread over the points near them
and transformed once; the transpose transforms once and gathers at the same points (Ten Eyck, Acta Cryst. A33, 486,
1977; Agarwal, Acta Cryst. A34, 791, 1978). Only one asymmetric unit is spread: operators are applied to the transform.
NumPy alone, as all of the least squares of atoms, which runs without PyTorch; ``structure_factors`` has elements.
"""

from __future__ import annotations

import math
from functools import cached_property

import gemmi
import numpy as np
import scipy.fft
from numpy.typing import NDArray

from ml_phaser.crystal.grid import grid_shape
from ml_phaser.crystal.peaks import Atoms
from ml_phaser.phasing.atom_fit import GRADIENTS, Floats, Scattering, Singles, State, stacked

FINE = 2.7  # grid points in the resolution
ALIASING, CUT = 3e-3, 1e-3  # of amplitudes at d_min; of a Gaussian's height where it ends
SIZES = 4  # of the surroundings of atoms
LEVELS = 80  # of B, at which curvatures are tabulated
# Processor seconds: of each pair of atom and reflection, operators counted, to make waves and to sum them; of each
# point near an atom, to find it and to use it, and of each point of the grid
WAVE, SUMMED, FOUND, USED, POINT = 1.7e-8, 2.1e-9, 5e-8, 1.2e-8, 7e-9
AROUND = 1100  # points near an atom


class OnGrid(Scattering):
    """As ``Scattering``; ``blur`` A^2 is added to every B, and taken off in reciprocal space."""

    def __init__(self, hkl: NDArray[np.int32], cell: gemmi.UnitCell, spacegroup: gemmi.SpaceGroup) -> None:
        super().__init__(hkl, cell, spacegroup)
        d_min = 0.5 / math.sqrt(float(self.stol2.max()))
        self.shape = grid_shape(cell, d_min * 0.99999, spacing=d_min / FINE, multiple=2)
        fold = min(n / edge for n, edge in zip(self.shape, (cell.a, cell.b, cell.c), strict=True)) - 1 / d_min
        self.blur = math.log(1 / ALIASING) * 4 / (fold**2 - 1 / d_min**2)
        index = np.stack([np.rint(turned / (2 * np.pi)).astype(np.int64) for turned in self.turned])
        other = index[..., 2] < 0
        u, v, w = np.moveaxis(np.where(other[..., None], -index, index), -1, 0)
        self.place = (u % self.shape[0] * self.shape[1] + v % self.shape[1]) * (self.shape[2] // 2 + 1) + w
        size = self.form * np.exp(self.blur * self.stol2) * (cell.volume / math.prod(self.shape))
        turn = size * np.exp(1j * np.stack([shift[:, 0] for shift in self.shifts]))
        self.turn: NDArray[np.complex64] = turn.astype(np.complex64)
        self.other = other
        self.share = np.where(w == 0, 1.0, 0.5).astype(np.float32) * math.prod(self.shape)

    def at(self, atoms: Atoms) -> State:
        return Spread(self, atoms, [])

    def transformed(self, rho: Singles) -> Singles:
        """(2n,) structure factors of a map."""
        half = scipy.fft.rfftn(rho).reshape(-1)[self.place]
        return stacked((self.turn * np.where(self.other, half, half.conj())).sum(axis=0))

    def returned(self, residual: Singles) -> Singles:
        """Map (u, v, w), flat: the transpose of ``transformed``, of (2n,)."""
        real, imag = residual.reshape(2, -1)
        a = self.turn * (real - 1j * imag) * self.share
        half_shape = (*self.shape[:2], self.shape[2] // 2 + 1)
        place, size = self.place.reshape(-1), math.prod(half_shape)
        half = np.empty(size, dtype=np.complex64)
        half.real = np.bincount(place, a.real.reshape(-1), size)
        half.imag = np.bincount(place, np.where(self.other, -a.imag, a.imag).reshape(-1), size)
        return np.asarray(scipy.fft.irfftn(half.reshape(half_shape), s=self.shape), dtype=np.float32).reshape(-1)

    @cached_property
    def squares(self) -> Floats:
        """(n, 5) what squares of a wave of each reflection are multiplied by in ``State.curvature``."""
        of = np.empty((len(self.stol2), 5))
        of[:, 0], of[:, 4] = len(self.turned), len(self.turned) * self.stol2**2
        of[:, 1:4] = sum(turned.astype(float) ** 2 for turned in self.turned)
        return of


class Around:
    """Some atoms and the grid points near them.

    rows : of the atoms; place : (m, p) points; value : (m, p) of Gaussians of unit weight; shape : (m, p, 5) what they
    are multiplied by when weight, position (A) and B change: 1, the way from the atom, its square
    """

    def __init__(self, grid: OnGrid, rows: NDArray[np.int64], frac: Floats, wide: Floats) -> None:
        self.rows, self.wide, shape = rows, wide.astype(np.float32), np.array(grid.shape)
        to_a = grid.orth / shape
        reach = math.sqrt(float(wide.max()) * math.log(1 / CUT)) / (2 * math.pi) + np.linalg.norm(to_a.sum(1)) / 2
        most = np.ceil(reach * np.linalg.norm(np.linalg.inv(to_a), axis=1)).astype(int)
        steps = np.stack(np.meshgrid(*(np.arange(-n, n + 1) for n in most), indexing="ij"), -1).reshape(-1, 3)
        steps = steps[np.linalg.norm(steps @ to_a.T, axis=1) <= reach]
        middle = np.rint(frac * shape).astype(np.int64)
        u, v, w = (
            np.take((middle[:, k, None] + np.arange(-n, n + 1)) % shape[k], steps[:, k] + n, axis=1)
            for k, n in enumerate(most)
        )
        self.place = (u * shape[1] + v) * shape[2] + w
        offset = ((middle - frac * shape) @ to_a.T).astype(np.float32)
        way = offset[:, None] + (steps @ to_a.T).astype(np.float32)
        square = np.einsum("mpk,mpk->mp", way, way)
        self.value = np.exp(square * (-4 * np.pi**2 / self.wide)[:, None])
        self.value *= ((4 * np.pi / self.wide) ** 1.5)[:, None]
        self.shape = np.empty((*square.shape, 5), dtype=np.float32)
        self.shape[..., 0], self.shape[..., 1:4], self.shape[..., 4] = 1, way, square

    @property
    def slopes(self) -> tuple[Singles, Singles, Singles]:
        """Factors (m,) of the change of Gaussians: with position; with B, of the square of the way and of 1."""
        return 8 * np.pi**2 / self.wide, 4 * np.pi**2 / self.wide**2, -1.5 / self.wide


class Spread(State):
    """Atoms on a grid; they have no waves."""

    scattering: OnGrid

    def of(self, rows: NDArray) -> State:
        return self.scattering.at(self.atoms.take(rows))

    def joined(self, other: State) -> State:
        return self.scattering.at(self.atoms.joined(other.atoms))

    @cached_property
    def around(self) -> list[Around]:
        """The atoms in groups of similar width."""
        wide = self.atoms.b + self.scattering.blur
        order = np.argsort(wide)
        groups = [rows for rows in np.array_split(order, SIZES) if len(rows)]
        return [Around(self.scattering, rows, self.atoms.frac[rows] % 1.0, wide[rows]) for rows in groups]

    def spread(self, change: Singles) -> Singles:
        """(2n,) of changes of weights, (m, 1), of positions in fractions too, (m, 4), of B, (m, 5)."""
        rho, k = np.zeros(math.prod(self.scattering.shape)), change.shape[1]
        for near in self.around:
            c = change[near.rows]
            along, square, same = near.slopes
            by = np.zeros((len(c), 5), dtype=np.float32)
            by[:, 0] = c[:, 0]
            if k > 1:
                by[:, 1:4] = along[:, None] * (c[:, 1:4] @ self.scattering.orth.T.astype(np.float32))
            if k == 5:
                by[:, 0] += same * c[:, 4]
                by[:, 4] = square * c[:, 4]
            density = near.value * (by[:, :1] if k == 1 else np.matmul(near.shape, by[:, :, None])[..., 0])
            rho += np.bincount(near.place.reshape(-1), density.reshape(-1), len(rho))
        return self.scattering.transformed(rho.astype(np.float32).reshape(self.scattering.shape))

    @cached_property
    def parts(self) -> Singles:
        return self.spread(self.own[:, None])

    def forward(self, change: Singles) -> Singles:
        return self.spread(change * self.rates[:, : change.shape[1]])

    def backward(self, residual: Singles, k: int = 5) -> Singles:
        rho = self.scattering.returned(residual)
        out = np.zeros((len(self.atoms), 5), dtype=np.float32)
        for near in self.around:
            there = rho[near.place] * near.value
            s = np.matmul(there[:, None], near.shape)[:, 0]
            along, square, same = near.slopes
            out[near.rows, 0] = s[:, 0]
            out[near.rows, 1:4] = along[:, None] * (s[:, 1:4] @ self.scattering.orth.astype(np.float32))
            out[near.rows, 4] = square * s[:, 4] + same * s[:, 0]
        return np.asarray((out * self.rates)[:, :k], dtype=np.float32)

    @cached_property
    def curvature(self) -> Singles:
        b, grid = self.atoms.b, self.scattering
        if not len(b):
            return np.zeros((0, 5), dtype=np.float32)
        levels = np.linspace(b.min(), b.max() + 1e-6, LEVELS)
        table = (grid.form**2 * np.exp(-2 * levels[:, None] * grid.stol2)) @ grid.squares
        of = np.stack([np.interp(b, levels, column) for column in table.T], axis=1)
        return np.asarray(of * self.rates**2, dtype=np.float32)


def scattering(hkl: NDArray[np.int32], cell: gemmi.UnitCell, spacegroup: gemmi.SpaceGroup, atoms: float) -> Scattering:
    """Of about so many atoms, by summation of waves or by FFT, whichever is quicker."""
    summed, gridded = _costs(hkl, cell, spacegroup, atoms, GRADIENTS)
    return (Scattering if summed <= gridded else OnGrid)(hkl, cell, spacegroup)


def step_cost(
    hkl: NDArray[np.int32], cell: gemmi.UnitCell, spacegroup: gemmi.SpaceGroup, atoms: float, gradients: int = GRADIENTS
) -> float:
    """Processor seconds of a step of least squares of about so many atoms."""
    return min(_costs(hkl, cell, spacegroup, atoms, gradients))


def _costs(
    hkl: NDArray[np.int32], cell: gemmi.UnitCell, spacegroup: gemmi.SpaceGroup, atoms: float, gradients: int
) -> tuple[float, float]:
    """By summation of waves, by FFT."""
    calls, pairs = 2 * (gradients + 1), atoms * len(hkl) * len(spacegroup.operations().sym_ops)
    d_min = 1 / math.sqrt(float(cell.calculate_1_d2_array(hkl).max(initial=1e-6)))
    near, grid = AROUND * atoms, cell.volume * (FINE / d_min) ** 3
    return pairs * (WAVE + calls * SUMMED), near * FOUND + calls * (near * USED + grid * POINT)
