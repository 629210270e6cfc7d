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
    turn : (n,) exp(2 i phi) where symmetry restricts the phase of the asymmetric unit's reflection to phi or
        phi + pi, 0 where it does not
    """

    hkl: NDArray[np.int32]
    asu: NDArray[np.int64]
    shift: NDArray[np.float64]
    friedel: NDArray[np.bool_]
    turn: NDArray[np.complex128]

    def spread(self, f: NDArray) -> NDArray:
        """Values in P1 of the asymmetric unit's structure factors, or real amplitudes, (n,) -> (m,)."""
        values = np.asarray(f)[self.asu]
        if not np.iscomplexobj(values):
            return values
        return np.where(self.friedel, np.conj(values), values) * np.exp(1j * self.shift)

    def average(self, f: NDArray, n: int) -> NDArray[np.complex128]:
        """Mean over equivalents of P1 structure factors, (m,) -> (n,): imposes the space group.

        Only one of a Friedel pair is in the list, where a restricted phase does not show: it is imposed last.
        """
        values = np.asarray(f) * np.exp(-1j * self.shift)
        values = np.where(self.friedel, np.conj(values), values)
        count = np.bincount(self.asu, minlength=n)
        total = np.bincount(self.asu, values.real, n) + 1j * np.bincount(self.asu, values.imag, n)
        mean = total / np.maximum(count, 1)
        return np.where(self.turn == 0, mean, (mean + np.conj(mean) * self.turn) / 2)


def expand(hkl: NDArray[np.int32], spacegroup: gemmi.SpaceGroup) -> Expansion:
    """Expand unique reflections (n, 3) to P1.

    For an operator x' = R x + t: F(hR) = F(h) exp(-2 pi i h.t) (International Tables B, 1.4.2).
    """
    hkl = np.asarray(hkl, dtype=np.int32).reshape(-1, 3)
    rows = np.arange(len(hkl))
    turn = np.zeros(len(hkl), dtype=np.complex128)
    all_hkl, all_shift = [], []
    for op in spacegroup.operations().sym_ops:
        rot = np.array(op.rot, dtype=np.int64) // op.DEN
        phase = 2 * np.pi * (hkl @ (np.array(op.tran) / op.DEN))
        turned = (hkl @ rot).astype(np.int32)
        restricts = np.all(turned == -hkl, axis=1)  # conj(F) = F exp(-i phase)
        turn[restricts] = np.exp(1j * phase[restricts])
        all_hkl.append(turned)
        all_shift.append(-phase)
    h, shift = np.concatenate(all_hkl), np.concatenate(all_shift)
    asu = np.tile(rows, len(all_hkl))
    negative = (h[:, 2] < 0) | ((h[:, 2] == 0) & ((h[:, 1] < 0) | ((h[:, 1] == 0) & (h[:, 0] < 0))))
    # F(-h) = conj(F(h)): conj(F exp(i s)) = conj(F) exp(-i s)
    h = np.where(negative[:, None], -h, h)
    shift = np.where(negative, -shift, shift)
    first = _first_of_each(h)
    return Expansion(h[first].astype(np.int32), asu[first], shift[first], negative[first], turn)


def _first_of_each(h: NDArray) -> NDArray[np.int64]:
    """Row numbers of the first of each distinct index (n, 3), in the order of the indices."""
    if not len(h):
        return np.zeros(0, dtype=np.int64)
    low = h.min(axis=0).astype(np.int64)
    span = h.max(axis=0).astype(np.int64) - low + 1
    k = h - low
    _, first = np.unique((k[:, 0] * span[1] + k[:, 1]) * span[2] + k[:, 2], return_index=True)
    return first


def asu_moves(
    hkl: NDArray[np.int32], spacegroup: gemmi.SpaceGroup
) -> tuple[NDArray[np.int32], NDArray[np.float64], NDArray[np.bool_]]:
    """Where reflections (n, 3) lie in gemmi's asymmetric unit, and how their phases get there.

    Returns the indices there, the phase shift in radians to be added, and whether to take the conjugate after it.
    """
    ops, asu = spacegroup.operations(), gemmi.ReciprocalAsu(spacegroup)
    moved, isym = np.empty((len(hkl), 3), dtype=np.int32), np.empty(len(hkl), dtype=np.int64)
    for i, h in enumerate(hkl):
        moved[i], isym[i] = asu.to_asu([int(x) for x in h], ops)
    translations = np.array([op.tran for op in ops.sym_ops]) / gemmi.Op.DEN
    # F(hR) = F(h) exp(-2 pi i h.t)
    shift = -2 * np.pi * np.einsum("ij,ij->i", hkl, translations[(isym - 1) // 2])
    return moved, shift, isym % 2 == 0


def look_up(hkl: NDArray[np.int32], f: NDArray[np.complex128], wanted: NDArray[np.int32]) -> NDArray[np.complex128]:
    """Values (m,) at the reflections ``wanted`` (m, 3), NaN where there is none."""
    both = np.concatenate([hkl, wanted]).astype(np.int64) + 100_000
    keys = (both[:, 0] * 200_001 + both[:, 1]) * 200_001 + both[:, 2]
    have, want = keys[: len(hkl)], keys[len(hkl) :]
    out = np.full(len(wanted), np.nan + 0j)
    if len(have) == 0:
        return out
    order = np.argsort(have)
    place = np.minimum(np.searchsorted(have[order], want), len(have) - 1)
    hit = have[order][place] == want
    out[hit] = f[order[place[hit]]]
    return out
