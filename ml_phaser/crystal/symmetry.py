"""From the asymmetric unit of reciprocal space to P1 and back."""

from __future__ import annotations

from dataclasses import dataclass

import gemmi
import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Expansion:
    """Reflections of the asymmetric unit spread over P1, without Friedel mates.

    F(hkl[i]) = F(asu[i])^(*) exp(i shift[i]), conjugated where ``friedel[i]``; the shift is applied last.

    Attributes
    ----------
    hkl : (m, 3) int32, P1 indices, one of each Friedel pair
    asu : (m,) row of the reflection they come from
    shift : (m,) phase shift in radians
    friedel : (m,) True where the mate's conjugate is meant
    """

    hkl: NDArray[np.int32]
    asu: NDArray[np.int64]
    shift: NDArray[np.float64]
    friedel: NDArray[np.bool_]

    def spread(self, f: NDArray) -> NDArray:
        """Values in P1 of complex structure factors (or real amplitudes) of the asymmetric unit, (n,) -> (m,)."""
        values = np.asarray(f)[self.asu]
        if not np.iscomplexobj(values):
            return values
        return np.where(self.friedel, np.conj(values), values) * np.exp(1j * self.shift)

    def average(self, f: NDArray, n: int) -> NDArray[np.complex128]:
        """Mean over equivalents of P1 structure factors, (m,) -> (n,): imposes the space group."""
        values = np.asarray(f) * np.exp(-1j * self.shift)
        values = np.where(self.friedel, np.conj(values), values)
        count = np.bincount(self.asu, minlength=n)
        total = np.bincount(self.asu, values.real, n) + 1j * np.bincount(self.asu, values.imag, n)
        return total / np.maximum(count, 1)


def expand(hkl: NDArray[np.int32], spacegroup: gemmi.SpaceGroup) -> Expansion:
    """Expand unique reflections (n, 3) to P1.

    For an operator x' = R x + t: F(hR) = F(h) exp(-2 pi i h.t) (International Tables B, 1.4.2).
    """
    hkl = np.asarray(hkl, dtype=np.int32)
    rows = np.arange(len(hkl))
    all_hkl, all_asu, all_shift = [], [], []
    for op in spacegroup.operations().sym_ops:
        rot = np.array(op.rot, dtype=np.int64) // op.DEN
        tran = np.array(op.tran) / op.DEN
        all_hkl.append((hkl @ rot).astype(np.int32))
        all_asu.append(rows)
        all_shift.append(-2 * np.pi * (hkl @ tran))
    h, asu, shift = np.concatenate(all_hkl), np.concatenate(all_asu), np.concatenate(all_shift)
    negative = (h[:, 2] < 0) | ((h[:, 2] == 0) & ((h[:, 1] < 0) | ((h[:, 1] == 0) & (h[:, 0] < 0))))
    # F(-h) = conj(F(h)): conj(F exp(i s)) = conj(F) exp(-i s)
    h = np.where(negative[:, None], -h, h)
    shift = np.where(negative, -shift, shift)
    _, first = np.unique(h, axis=0, return_index=True)
    return Expansion(h[first].astype(np.int32), asu[first], shift[first], negative[first])
