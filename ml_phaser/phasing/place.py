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
from scipy.ndimage import maximum_filter
from scipy.optimize import minimize

from ml_phaser.crystal.agreement import Origins, permissible_origins
from ml_phaser.crystal.symmetry import Expansion

STRONGEST = 20_000
GRID_POINTS = 4_000_000
PEAKS_TRIED = 40
RIVAL = 0.75  # of the best origin's agreement, from which on another is worth a try


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


def find_origins(
    hkl: NDArray[np.int32],
    f: NDArray[np.complex128],
    cell: gemmi.UnitCell,
    spacegroup: gemmi.SpaceGroup,
    most: int = 1,
) -> list[tuple[NDArray[np.float64], float]]:
    """Shifts x0 (3,) that make P1 structure factors obey the group, with the agreement reached, best first.

    Pseudosymmetry (a flat molecule, a layer) lets wrong origins agree almost as well as the right one, so there may
    be several: at most ``most``, none equivalent to another, none below RIVAL of the best.

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
        return [(np.zeros(3), float("nan"))]
    shape = 2 * np.abs(k).max(axis=0) + 1
    fraction = min(1.0, (GRID_POINTS / float(np.prod(shape.astype(float)))) ** (1 / 3))
    shape = np.maximum(1, (shape * fraction).astype(int))
    flat = np.ravel_multi_index(tuple((k % shape).T), tuple(shape))
    size = int(np.prod(shape))
    grid = (np.bincount(flat, c.real, size) + 1j * np.bincount(flat, c.imag, size)).reshape(shape)
    agreement = np.fft.ifftn(grid).real * (size / total)

    def negative(x: NDArray) -> tuple[float, NDArray]:
        term = c * np.exp(2j * np.pi * (k @ x))
        return -float(term.real.sum()) / total, 2 * np.pi * (term.imag @ k) / total

    peaks = np.argwhere(agreement == maximum_filter(agreement, 3, mode="wrap"))
    peaks = peaks[np.argsort(-agreement[tuple(peaks.T)], kind="stable")][:PEAKS_TRIED]
    origins = permissible_origins(spacegroup)
    found: list[tuple[NDArray[np.float64], float]] = []
    for peak in peaks:
        if found and agreement[tuple(peak)] < RIVAL * found[0][1] - 0.05:
            break
        result = minimize(negative, peak / shape, jac=True, method="BFGS", options={"maxiter": 40})
        if not any(_equivalent(result.x - x, origins, cell) for x, _ in found):
            found.append((result.x % 1.0, -float(result.fun)))
            found.sort(key=lambda pair: -pair[1])
        if len(found) > most:
            break
    if not found:  # phases that are not numbers agree with nothing
        return [(np.zeros(3), 0.0)]
    # The best stays even where nothing agrees, that is where its agreement is negative.
    return [found[0], *(pair for pair in found[1:] if pair[1] >= RIVAL * abs(found[0][1]))][:most]


def _equivalent(difference: NDArray, origins: Origins, cell: gemmi.UnitCell) -> bool:
    """Whether two origins differ by a permissible shift, to within half an angstrom."""
    orth = np.array(cell.orth.mat)
    rest = difference - origins.shifts
    rest = (rest - np.round(rest)) @ orth.T  # A
    if len(origins.directions):
        free = np.linalg.qr((origins.directions @ orth.T).T)[0]
        rest = rest - rest @ free @ free.T
    return bool(np.min(np.linalg.norm(rest, axis=1)) < 0.5)


def place(
    f_p1: NDArray[np.complex128],
    expansion: Expansion,
    n: int,
    cell: gemmi.UnitCell,
    spacegroup: gemmi.SpaceGroup,
    most: int = 1,
) -> list[Placed]:
    """Shift P1 structure factors (m,) to the group's origin and average equivalents to the (n,) unique ones.

    The best origin first, then up to ``most`` - 1 rivals.
    """
    out = []
    for shift, symmetry in find_origins(expansion.hkl, f_p1, cell, spacegroup, most):
        moved = f_p1 * np.exp(2j * np.pi * (expansion.hkl @ shift))
        out.append(Placed(expansion.average(moved, n), shift, symmetry))
    return out


def hand_is_fixed(spacegroup: gemmi.SpaceGroup) -> bool:
    """True for the 22 enantiomorphic groups (P41, P3121, ...): there the group itself tells the hand."""
    return bool(spacegroup.is_enantiomorphic())


def about_hand(spacegroup: gemmi.SpaceGroup) -> str:
    """What can be said of the hand of a solution found from merged amplitudes alone."""
    if spacegroup.is_centrosymmetric():
        return "none: the space group is centrosymmetric"
    if not spacegroup.is_sohncke():
        return "both are present: the space group holds mirror images"
    if hand_is_fixed(spacegroup):
        return f"told by the space group {spacegroup.hm}"
    return "not determined: the map may be the mirror image (merged amplitudes are the same for both)"
