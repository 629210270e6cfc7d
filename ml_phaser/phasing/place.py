"""Back into the crystal's own space group: find the symmetry origin of P1 phases, average over the group.

A P1 solution has an arbitrary origin. With F'(h) = F(h) exp(2 pi i h.x0), an operator (R, t) of the group asks for
F'(hR) = F'(h) exp(-2 pi i h.t), so the agreement summed over operators is a Fourier series in the unknown origin,

    S(x0) = sum_(R,t) sum_h Re[ F(h)* F(hR) exp(2 pi i h.t) exp(2 pi i (hR - h).x0) ],

one transform finds its maximum (the idea of SHELXT's space-group search, Sheldrick, Acta Cryst. A71, 3, 2015).
"""

from __future__ import annotations

from dataclasses import dataclass

import gemmi
import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from ml_phaser.crystal.symmetry import Expansion

STRONGEST = 20_000
GRID_POINTS = 4_000_000


@dataclass(frozen=True, eq=False)
class Placed:
    """Phases brought to the group's origin.

    f : (n,) complex, unique reflections, mean over equivalents; shift : fractional; symmetry : agreement of the P1
    phases with the group at that origin, 1 perfect, 0 random, NaN where the group has no operator to test
    """

    f: NDArray[np.complex128]
    shift: NDArray[np.float64]
    symmetry: float


def _pairs(
    hkl: NDArray[np.int32], f: NDArray[np.complex128], spacegroup: gemmi.SpaceGroup
) -> tuple[NDArray[np.int64], NDArray[np.complex128]]:
    """Indices k = hR - h and their coefficients F(h)* F(hR) exp(2 pi i h.t), those with k = 0 left out."""
    limit = np.abs(hkl).max(axis=0).astype(np.int64) if len(hkl) else np.zeros(3, dtype=np.int64)
    reach = int(limit.max())
    table = np.zeros((2 * reach + 1,) * 3, dtype=np.complex128)
    h = hkl.astype(np.int64)
    table[tuple((h + reach).T)] = f
    table[tuple((-h + reach).T)] = np.conj(f)
    ks, cs = [np.zeros((0, 3), dtype=np.int64)], [np.zeros(0, dtype=np.complex128)]
    for op in spacegroup.operations().sym_ops:
        rot = np.array(op.rot, dtype=np.int64) // op.DEN
        mate = h @ rot
        moved = np.any(mate != h, axis=1) & np.all(np.abs(mate) <= reach, axis=1)
        phase = np.exp(2j * np.pi * (h[moved] @ (np.array(op.tran) / op.DEN)))
        ks.append((mate - h)[moved])
        cs.append(np.conj(f[moved]) * table[tuple((mate[moved] + reach).T)] * phase)
    return np.concatenate(ks), np.concatenate(cs)


def find_origin(
    hkl: NDArray[np.int32], f: NDArray[np.complex128], cell: gemmi.UnitCell, spacegroup: gemmi.SpaceGroup
) -> tuple[NDArray[np.float64], float]:
    """Shift x0 (3,) that makes P1 structure factors obey the group best, and the agreement reached.

    Parameters
    ----------
    hkl, f : (m, 3), (m,) P1 reflections without Friedel mates
    """
    if len(f) > STRONGEST:
        rows = np.argpartition(-np.abs(f), STRONGEST)[:STRONGEST]
        hkl, f = hkl[rows], f[rows]
    k, c = _pairs(hkl, f, spacegroup)
    total = float(np.abs(c).sum())
    if total == 0:
        return np.zeros(3), float("nan")
    shape = 2 * np.abs(k).max(axis=0) + 1
    shape = np.maximum(1, (shape * min(1.0, (GRID_POINTS / float(np.prod(shape.astype(float)))) ** (1 / 3))).astype(int))
    flat = np.ravel_multi_index(tuple((k % shape).T), tuple(shape))
    size = int(np.prod(shape))
    grid = (np.bincount(flat, c.real, size) + 1j * np.bincount(flat, c.imag, size)).reshape(shape)
    agreement = np.fft.ifftn(grid).real.ravel() * size

    def negative(x: NDArray) -> tuple[float, NDArray]:
        term = c * np.exp(2j * np.pi * (k @ x))
        return -float(term.real.sum()) / total, 2 * np.pi * (term.imag @ k) / total

    best_x, best_s = np.zeros(3), -np.inf
    for place in np.argsort(-agreement)[:3]:
        start = np.array(np.unravel_index(place, tuple(shape))) / shape
        found = minimize(negative, start, jac=True, method="BFGS", options={"maxiter": 40})
        if -found.fun > best_s + 1e-9:
            best_x, best_s = found.x % 1.0, -float(found.fun)
    return best_x, best_s


def place(
    f_p1: NDArray[np.complex128], expansion: Expansion, n: int, cell: gemmi.UnitCell, spacegroup: gemmi.SpaceGroup
) -> Placed:
    """Shift P1 structure factors (m,) to the group's origin and average equivalents to the (n,) unique ones."""
    shift, symmetry = find_origin(expansion.hkl, f_p1, cell, spacegroup)
    moved = f_p1 * np.exp(2j * np.pi * (expansion.hkl @ shift))
    return Placed(expansion.average(moved, n), shift, symmetry)


def hand_is_fixed(spacegroup: gemmi.SpaceGroup) -> bool:
    """True for the 22 enantiomorphic groups (P41, P3121, ...): there the group itself tells the hand."""
    return bool(spacegroup.is_enantiomorphic())
