"""Grids and Fourier transforms: the one place that knows signs, axis order and grid sizes.

Convention: F(h) = sum_atoms f exp(+2 pi i h.x) and rho(x) = (1/V) sum_h F(h) exp(-2 pi i h.x). A map is a
real array indexed [u, v, w] along a, b, c. Transforms are real-to-complex, so only the half of reciprocal
space with l >= 0 is stored, shape (nu, nv, nw // 2 + 1); because the library's inverse transform carries
exp(+), the array holds conj(F).
"""

from __future__ import annotations

from dataclasses import dataclass

import gemmi
import numpy as np
from numpy.typing import NDArray


def _fft_friendly(n: int, multiple: int) -> int:
    """Smallest multiple of ``multiple`` not below n with no prime factor above 5."""
    m = -(-n // multiple) * multiple
    while True:
        k = m
        for p in (2, 3, 5):
            while k % p == 0:
                k //= p
        if k == 1:
            return m
        m += multiple


def grid_shape(cell: gemmi.UnitCell, d_min: float, *, spacing: float, multiple: int = 2) -> tuple[int, int, int]:
    """Grid over the whole cell.

    Parameters
    ----------
    d_min : resolution in A; every index with d >= d_min fits (n >= 2 h_max + 1)
    spacing : largest distance between grid points along each axis, in A
    multiple : each dimension is a multiple of this
    """
    limits = cell.get_hkl_limits(d_min * (1 - 1e-6))  # d_min is a reflection's own d: not lost to rounding
    return tuple(  # type: ignore[return-value]
        _fft_friendly(max(2 * int(h) + 1, int(np.ceil(length / spacing - 1e-6))), multiple)
        for h, length in zip(limits, (cell.a, cell.b, cell.c), strict=True)
    )


@dataclass(frozen=True, eq=False)
class HalfSphere:
    """Places of reflections in the half-complex array of a grid.

    Attributes
    ----------
    shape : (nu, nv, nw) of the map
    flat : (m,) index into the flattened half-complex array
    refl : (m,) index into the list of reflections
    conjugate : (m,) True where the array holds F itself instead of conj(F), i.e. the place of -h
    """

    shape: tuple[int, int, int]
    flat: NDArray[np.int64]
    refl: NDArray[np.int64]
    conjugate: NDArray[np.bool_]

    @property
    def half_shape(self) -> tuple[int, int, int]:
        return self.shape[0], self.shape[1], self.shape[2] // 2 + 1

    @classmethod
    def of(cls, hkl: NDArray[np.int32], shape: tuple[int, int, int]) -> HalfSphere:
        """Places of P1 reflections (n, 3) given without Friedel mates.

        Raises
        ------
        ValueError
            if the grid is too coarse for them
        """
        limit = (np.array(shape) - 1) // 2
        if len(hkl) and np.any(np.abs(hkl) > limit):
            raise ValueError(f"indices up to {np.abs(hkl).max(axis=0)} do not fit a grid of {shape}")
        places, refls, conjs = [], [], []
        n_half = shape[2] // 2 + 1
        for sign in (1, -1):
            h = hkl.astype(np.int64) * sign
            keep = h[:, 2] >= 0
            u, v, w = h[keep, 0] % shape[0], h[keep, 1] % shape[1], h[keep, 2]
            places.append((u * shape[1] + v) * n_half + w)
            refls.append(np.flatnonzero(keep))
            conjs.append(np.full(keep.sum(), sign < 0))
        flat = np.concatenate(places)
        _, first = np.unique(flat, return_index=True)
        return cls(shape, flat[first], np.concatenate(refls)[first], np.concatenate(conjs)[first])

    def scatter(self, f: NDArray) -> NDArray:
        """Half-complex array (zero elsewhere) of the complex or real values ``f`` (n,)."""
        values = np.asarray(f)[self.refl]
        if np.iscomplexobj(values):
            values = np.where(self.conjugate, values, np.conj(values))
        out = np.zeros(int(np.prod(self.half_shape)), dtype=values.dtype)
        out[self.flat] = values
        return out.reshape(self.half_shape)

    def gather(self, half: NDArray, n: int) -> NDArray:
        """Complex values (n,) of the reflections out of a half-complex array."""
        values = half.reshape(-1)[self.flat]
        out = np.zeros(n, dtype=half.dtype)
        out[self.refl] = np.where(self.conjugate, values, np.conj(values))
        return out


def synthesise(hkl: NDArray[np.int32], f: NDArray, shape: tuple[int, int, int], volume: float) -> NDArray[np.float64]:
    """Density rho(x) in (units of F)/A^3 on a whole-cell grid from P1 reflections without Friedel mates."""
    half = HalfSphere.of(hkl, shape).scatter(np.asarray(f, dtype=np.complex128))
    return np.fft.irfftn(half, s=shape, axes=(0, 1, 2)) * (np.prod(shape) / volume)


def analyse(rho: NDArray, hkl: NDArray[np.int32], volume: float) -> NDArray[np.complex128]:
    """Structure factors (n,) of a whole-cell map."""
    half = np.fft.rfftn(rho, axes=(0, 1, 2)) * (volume / rho.size)
    return HalfSphere.of(hkl, rho.shape).gather(half, len(hkl))
