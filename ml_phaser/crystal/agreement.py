"""How well two sets of phases agree, whatever origin and hand they were found in.

Two maps of one crystal may differ by an origin shift that the space group permits and by inversion; neither
is an error. The agreement is therefore the best over both:

    c(s) = sum_h m F_test(h) conj(F_ref(h)) exp(2 pi i h.s) / sqrt(sum m |F_test|^2  sum m |F_ref|^2)

which is the correlation, over the whole cell and without F(000), of the reference map and the test map
shifted by s (m: multiplicity of the reflection in the whole sphere).

Which shifts are permitted follows from the group alone: s with (R - I) s in the lattice for every operation
(R, t) (Hirshfeld 1968, Acta Cryst. A24, 301; Giacovazzo, Direct Phasing in Crystallography, 1998, ch. 2).
The Smith normal form of the stacked R - I gives all of them exactly: a few discrete shifts, and directions
along which the origin floats. Inversion through c keeps the group where (R - I) c = -2 t modulo the lattice;
in the 22 enantiomorphic groups (P41, P3121...) that has no solution and the other hand belongs to another
group, so it is not an alternative.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import lru_cache

import gemmi
import numpy as np
from numpy.typing import NDArray

from ml_phaser.crystal.grid import synthesise
from ml_phaser.crystal.symmetry import expand
from ml_phaser.errors import UserError

DEN = 24  # all translations of the space groups are multiples of 1/24
OVERSAMPLING = 2.0  # of the correlation map, relative to 2 k_max + 1 points
GRID_POINTS = 16_000_000  # largest correlation map; beyond, the search starts from lower resolution
PEAKS = 3  # of the correlation map, refined off the grid

Floats = NDArray[np.float64]
Complexes = NDArray[np.complex128]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Shell:
    """One resolution shell: limits in A, reflections compared, correlation, phase error in degrees."""

    d_max: float
    d_min: float
    n: int
    cc: float
    phase_error: float


@dataclass(frozen=True)
class Agreement:
    """Agreement of test with reference phases at the best permitted origin and hand.

    Attributes
    ----------
    map_cc : correlation of the two maps over the whole cell without F(000), -1 to 1
    phase_error : mean |phase difference| in degrees over the whole sphere, weighted by |F_ref|, at the
        origin and hand of the best map_cc; a reflection whose test amplitude is zero has no phase and counts
        as 90
    origin_shift : fractional; x_ref = x_test + shift, or -x_test + shift where inverted
    inverted : the test map is the mirror image of the reference
    chance_cc, chance_phase_error : the same search with random phases on the test amplitudes (centric ones
        take either of their two values), mean of the repeats; NaN where no repeat was asked for
    shells : by resolution, equally populated
    hand_margin : map_cc less that of the other hand; 0 in centrosymmetric groups (the hands are the same),
        NaN where the other hand was not tried or belongs to another space group
    n : reflections compared
    """

    map_cc: float
    phase_error: float
    origin_shift: tuple[float, float, float]
    inverted: bool
    chance_cc: float
    chance_phase_error: float
    shells: tuple[Shell, ...]
    hand_margin: float
    n: int


@dataclass(frozen=True, eq=False)
class Origins:
    """Permitted origin shifts of a space group, modulo its lattice: shifts[i] plus any part of directions.

    ``shifts`` is (k, 3) fractional; ``directions`` is (p, 3), p = 0 to 3: lattice vectors along which the
    origin floats (shorter than a cell edge in centred cells).
    """

    shifts: Floats
    directions: Floats


def smith(matrix: Integers) -> tuple[Integers, Integers, Integers]:
    """Diagonalise an integer matrix: unimodular U (m, m) and V (n, n) with U M V = D, zero off the diagonal.

    The diagonal is not ordered by divisibility; the solver of congruences needs only that it is diagonal.
    """
    d = np.array(matrix, dtype=np.int64)
    m, n = d.shape
    u, v = np.eye(m, dtype=np.int64), np.eye(n, dtype=np.int64)
    for t in range(min(m, n)):
        while d[t:, t:].any():
            block = np.abs(d[t:, t:])
            smallest = int(np.where(block > 0, block, np.iinfo(np.int64).max).argmin())
            i, j = divmod(smallest, block.shape[1])
            d[[t, t + i]], u[[t, t + i]] = d[[t + i, t]], u[[t + i, t]]
            d[:, [t, t + j]], v[:, [t, t + j]] = d[:, [t + j, t]], v[:, [t + j, t]]
            rows = d[t + 1 :, t] // d[t, t]
            d[t + 1 :] -= rows[:, None] * d[t]
            u[t + 1 :] -= rows[:, None] * u[t]
            columns = d[t, t + 1 :] // d[t, t]
            d[:, t + 1 :] -= d[:, [t]] * columns
            v[:, t + 1 :] -= v[:, [t]] * columns
            if not d[t + 1 :, t].any() and not d[t, t + 1 :].any():
                break
    return u, d, v


@lru_cache(maxsize=64)
def _group(hall: str) -> tuple[Origins, tuple[float, float, float] | None]:
    ops = gemmi.symops_from_hall(hall)
    # columns of basis: primitive lattice vectors
    u, d, v = smith(np.concatenate([DEN * np.eye(3, dtype=np.int64), np.array(ops.cen_ops, dtype=np.int64)]))
    generators = u @ np.concatenate([DEN * np.eye(3, dtype=np.int64), np.array(ops.cen_ops, dtype=np.int64)])
    basis = generators[:3].T / DEN
    inverse = np.rint(np.linalg.inv(basis)).astype(np.int64)  # the lattice contains Z^3
    rotations = [np.array(op.rot, dtype=np.int64) // op.DEN - np.eye(3, dtype=np.int64) for op in ops.sym_ops]
    stacked = np.concatenate([np.rint(inverse @ r @ basis).astype(np.int64) for r in rotations])
    u, d, v = smith(stacked)
    diagonal = np.abs(np.diag(d))
    steps = [np.arange(x) / x if x else np.zeros(1) for x in diagonal]
    axes = basis @ v
    shifts = np.array([axes @ np.array(y) for y in itertools.product(*steps)]) % 1.0
    origins = Origins(shifts, axes.T[diagonal == 0])

    twice = np.concatenate([-2 * inverse @ np.array(op.tran, dtype=np.int64) for op in ops.sym_ops])
    rhs = u @ twice  # D y = rhs / DEN modulo 1
    zero = np.ones(len(rhs), dtype=bool)
    zero[:3] = diagonal == 0
    if np.any(rhs[zero] % DEN):
        return origins, None
    y = np.array([r / (DEN * x) if x else 0.0 for r, x in zip(rhs[:3], np.diag(d), strict=True)])
    centre = (axes @ y) % 1.0
    return origins, (float(centre[0]), float(centre[1]), float(centre[2]))


def permissible_origins(spacegroup: gemmi.SpaceGroup) -> Origins:
    """All origin shifts that leave the symmetry operations as they are."""
    return _group(spacegroup.hall)[0]


def hand_centre(spacegroup: gemmi.SpaceGroup) -> Floats | None:
    """(3,) c such that x -> c - x maps the group onto itself; None where inversion leads to another group.

    c is not always zero (I41, I4122, Fdd2...); any permitted origin shift may be added to it.
    """
    centre = _group(spacegroup.hall)[1]
    return None if centre is None else np.array(centre)


def multiplicity(hkl: NDArray[np.int32], spacegroup: gemmi.SpaceGroup) -> Floats:
    """(n,) reflections of the whole sphere, Friedel mates included, that each unique reflection stands
    for.
    """
    ops = spacegroup.operations()
    epsilon = np.asarray(ops.epsilon_factor_without_centering_array(hkl), dtype=np.float64)
    centric = np.asarray(ops.centric_flag_array(hkl), dtype=bool)
    return len(ops.sym_ops) / epsilon * np.where(centric, 1.0, 2.0)


def random_phases(hkl: NDArray[np.int32], spacegroup: gemmi.SpaceGroup, rng: np.random.Generator) -> Floats:
    """(n,) phases in radians without any knowledge: uniform, or one of the two permitted values where
    centric.
    """
    phase = rng.uniform(0.0, 2 * np.pi, len(hkl))
    flip = np.pi * rng.integers(0, 2, len(hkl))
    for op in spacegroup.operations().sym_ops:
        rot = np.array(op.rot, dtype=np.int64) // op.DEN
        restricted = np.all(hkl @ rot == -hkl, axis=1)
        # F(hR) = F(h) exp(-2 pi i h.t) = conj F(h): the phase is pi h.t modulo pi
        phase[restricted] = (np.pi * (hkl @ np.array(op.tran)) / op.DEN + flip)[restricted]
    return phase


def move(hkl: NDArray[np.int32], f: Complexes, shift: Floats | tuple[float, ...], inverted: bool = False) -> Complexes:
    """Structure factors after x -> x + shift, or x -> -x + shift where inverted."""
    return (np.conj(f) if inverted else f) * np.exp(2j * np.pi * (hkl @ np.asarray(shift)))


def _refine(k: Floats, w: Complexes, y: Floats) -> tuple[float, Floats]:
    """Climb sum Re w exp(2 pi i k.y) from y (p,) by Newton steps, falling back to the gradient off a
    maximum.
    """

    def value(at: Floats) -> tuple[float, Complexes]:
        terms = w * np.exp(2j * np.pi * (k @ at))
        return float(terms.real.sum()), terms

    scale = 4 * np.pi**2 * float((np.abs(w)[:, None] * k**2).sum(0).max()) + 1e-300
    best, terms = value(y)
    for _ in range(25):
        gradient = -2 * np.pi * (terms.imag @ k)
        curvature = 4 * np.pi**2 * (k * terms.real[:, None]).T @ k
        lowest = float(np.linalg.eigvalsh(curvature)[0])
        curvature += max(0.0, 1e-3 * scale - lowest) * np.eye(k.shape[1])
        step = np.linalg.solve(curvature, gradient)
        for _ in range(6):
            after, new_terms = value(y + step)
            if after > best:
                break
            step = step / 2
        else:
            break
        gain, best, terms, y = after - best, after, new_terms, y + step
        if gain < 1e-12 * np.abs(w).sum():
            break
    return best, y


def _fold(k: Integers, w: Complexes) -> tuple[Integers, Complexes]:
    """Sum the terms of equal or opposite index: Re w exp(i x) = Re conj(w) exp(-i x)."""
    first = np.where(k[:, 0] != 0, k[:, 0], np.where(k[:, 1] != 0, k[:, 1], k[:, 2]))
    k, w = np.where(first[:, None] < 0, -k, k), np.where(first < 0, np.conj(w), w)
    span = 2 * int(np.abs(k).max(initial=0)) + 1
    key = ((k[:, 0] * span) + k[:, 1]) * span + k[:, 2]
    _, index, where = np.unique(key, return_index=True, return_inverse=True)
    size = len(index)
    return k[index], np.bincount(where, w.real, size) + 1j * np.bincount(where, w.imag, size)


def _peaks(k: Integers, w: Complexes) -> list[Floats]:
    """(3,) positions of the highest peaks of sum Re w exp(2 pi i k.y) on a grid over 0-1; k folded."""
    from scipy.fft import next_fast_len

    limit = np.abs(k).max(axis=0)
    while True:
        wanted = np.where(limit > 0, OVERSAMPLING * (2 * limit + 1), 1)
        if np.prod(wanted) <= GRID_POINTS:
            break
        limit = (limit * 0.9).astype(np.int64)
    shape = tuple(next_fast_len(int(np.ceil(x)), real=True) for x in wanted)
    keep = np.all(np.abs(k) <= limit, axis=1) & np.any(k != 0, axis=1)
    heights = synthesise(k[keep].astype(np.int32), np.conj(w[keep]), (shape[0], shape[1], shape[2]), 1.0)
    flat = heights.reshape(-1)
    candidates = np.argpartition(flat, -min(200, flat.size))[-min(200, flat.size) :]
    candidates = candidates[np.argsort(-flat[candidates])]
    chosen: list[Integers] = []
    for place in np.stack(np.unravel_index(candidates, shape), axis=1):
        apart = [
            np.abs((place - other + np.array(shape) // 2) % shape - np.array(shape) // 2).max() for other in chosen
        ]
        if all(x > 2 for x in apart):
            chosen.append(place)
        if len(chosen) == PEAKS:
            break
    return [place / np.array(shape) for place in chosen]


def _best_shift(hkl: NDArray[np.int32], w: Complexes, origins: Origins, start: Floats) -> tuple[float, Floats]:
    """Highest sum Re w exp(2 pi i h.s) over s = start + permitted shift; returns it and s modulo 1."""
    best, where = -np.inf, start
    free = origins.directions
    k = np.zeros((len(hkl), 3), dtype=np.int64)
    k[:, : len(free)] = np.rint(hkl @ free.T)
    for shift in origins.shifts:
        rotated = w * np.exp(2j * np.pi * (hkl @ (start + shift)))
        if len(free) == 0:
            height, y = float(rotated.real.sum()), np.zeros(0)
        else:
            folded_k, folded_w = _fold(k, rotated)
            used = folded_k[:, : len(free)].astype(np.float64)
            starts = _peaks(folded_k, folded_w) if k.any() else [np.zeros(3)]
            height, y = max((_refine(used, folded_w, p[: len(free)]) for p in starts), key=lambda found: found[0])
        if height > best:
            best, where = height, start + shift + y @ free
    return best, where % 1.0


def _search(
    hkl: NDArray[np.int32],
    m: Floats,
    f_test: Complexes,
    f_ref: Complexes,
    spacegroup: gemmi.SpaceGroup,
    hands: bool,
) -> tuple[float, Floats, bool, float]:
    """Best correlation, shift, inverted?, and margin over the other hand (see Agreement.hand_margin)."""
    origins, centre = permissible_origins(spacegroup), hand_centre(spacegroup)
    norm = np.sqrt((m * np.abs(f_test) ** 2).sum() * (m * np.abs(f_ref) ** 2).sum())
    cc, shift = _best_shift(hkl, m * f_test * np.conj(f_ref) / norm, origins, np.zeros(3))
    if spacegroup.is_centrosymmetric():
        return cc, shift, False, 0.0
    if centre is None or not hands:
        return cc, shift, False, float("nan")
    other, other_shift = _best_shift(hkl, m * np.conj(f_test * f_ref) / norm, origins, centre)
    if other > cc:
        return other, other_shift, True, other - cc
    return cc, shift, False, cc - other


def _phase_error(weight: Floats, f_test: Complexes, f_ref: Complexes) -> float:
    error = np.where(f_test == 0, np.pi / 2, np.abs(np.angle(f_test * np.conj(f_ref))))
    return float(np.rad2deg((weight * error).sum() / max(weight.sum(), 1e-300)))


def correlation(m: Floats, f_test: Complexes, f_ref: Complexes) -> float:
    """Map correlation as the phases stand; ``m`` (n,) multiplicities; NaN where either map is zero."""
    norm = np.sqrt((m * np.abs(f_test) ** 2).sum() * (m * np.abs(f_ref) ** 2).sum())
    return float((m * (f_test * np.conj(f_ref)).real).sum() / norm) if norm > 0 else float("nan")


def _shells(d: Floats, m: Floats, f_test: Complexes, f_ref: Complexes, count: int) -> tuple[Shell, ...]:
    order = np.argsort(-d, kind="stable")
    rows = []
    for part in np.array_split(order, max(1, min(count, len(d) // 20))):
        ref, test = f_ref[part], f_test[part]
        error = _phase_error(m[part] * np.abs(ref), test, ref)
        rows.append(Shell(float(d[part[0]]), float(d[part[-1]]), len(part), correlation(m[part], test, ref), error))
    return tuple(rows)


def _lists_equivalents(hkl: NDArray[np.int32], spacegroup: gemmi.SpaceGroup) -> bool:
    """True for reflections of P1, symmetry equivalents one by one, rather than unique ones."""
    return len(expand(hkl, spacegroup).hkl) < round(multiplicity(hkl, spacegroup).sum() / 2)


def compare(
    hkl: NDArray[np.int32],
    f_test: Complexes,
    f_ref: Complexes,
    cell: gemmi.UnitCell,
    spacegroup: gemmi.SpaceGroup,
    *,
    centre: str = "permissible",
    hands: bool = True,
    repeats: int = 5,
    seed: int = 0,
    n_shells: int = 10,
) -> Agreement:
    """Agreement of two sets of structure factors of one crystal.

    Parameters
    ----------
    hkl : (n, 3) unique reflections (one of each symmetry and Friedel set, in any asymmetric unit)
    f_test, f_ref : (n,) complex, any scales; the scales do not matter, the fall-off with resolution does
    cell, spacegroup : of the hkl
    centre : "permissible": origins the space group permits, the normal way; "free": any shift and either
        hand, as in P1, for phases whose origin does not fit the space group yet. Then hkl may also be the
        reflections of P1, equivalents listed one by one
    hands : try the inverted map too
    repeats : random-phase searches for the chance level
    seed : of the random phases
    n_shells : resolution shells wanted (fewer where that leaves less than 20 reflections in one)

    Raises UserError where fewer than two reflections, or no amplitude other than zero, are left to compare,
    and ValueError for arrays that do not match or are not finite.
    """
    hkl = np.asarray(hkl, dtype=np.int32).reshape(-1, 3)
    f_test, f_ref = np.asarray(f_test, dtype=np.complex128), np.asarray(f_ref, dtype=np.complex128)
    if centre not in ("permissible", "free"):
        raise ValueError(f"centre is {centre!r}, neither 'permissible' nor 'free'")
    if not (f_test.shape == f_ref.shape == (len(hkl),)):
        raise ValueError(f"{len(hkl)} reflections, {f_test.shape} test and {f_ref.shape} reference values")
    if not (np.isfinite(f_test).all() and np.isfinite(f_ref).all()):
        raise ValueError("structure factors that are not finite")
    keep = np.any(hkl != 0, axis=1)
    if centre == "free" and _lists_equivalents(hkl[keep], spacegroup):
        spacegroup = gemmi.SpaceGroup("P 1")
    keep &= ~np.asarray(spacegroup.operations().systematic_absences(hkl), dtype=bool)
    hkl, f_test, f_ref = hkl[keep], f_test[keep], f_ref[keep]
    if len(hkl) < 2 or not f_test.any() or not f_ref.any():
        hint = "other columns or resolution"
        raise UserError("fewer than two reflections with amplitudes to compare", hint=hint)
    n = len(hkl)
    if centre == "free":
        spread = expand(hkl, spacegroup)
        hkl, f_test, f_ref = spread.hkl, spread.spread(f_test), spread.spread(f_ref)
        spacegroup = gemmi.SpaceGroup("P 1")

    m = multiplicity(hkl, spacegroup)
    cc, shift, inverted, margin = _search(hkl, m, f_test, f_ref, spacegroup, hands)
    rng = np.random.default_rng(seed)
    chance = []
    for _ in range(repeats):
        noise = np.abs(f_test) * np.exp(1j * random_phases(hkl, spacegroup, rng))
        noise_cc, noise_shift, noise_inverted, _margin = _search(hkl, m, noise, f_ref, spacegroup, hands)
        moved = move(hkl, noise, noise_shift, noise_inverted)
        chance.append((noise_cc, _phase_error(m * np.abs(f_ref), moved, f_ref)))
    chance_cc, chance_error = np.mean(chance, axis=0) if chance else (np.nan, np.nan)
    moved = move(hkl, f_test, shift, inverted)
    d = np.asarray(cell.calculate_d_array(hkl), dtype=np.float64)
    return Agreement(
        map_cc=cc,
        phase_error=_phase_error(m * np.abs(f_ref), moved, f_ref),
        origin_shift=(float(shift[0]), float(shift[1]), float(shift[2])),
        inverted=inverted,
        chance_cc=float(chance_cc),
        chance_phase_error=float(chance_error),
        shells=_shells(d, m, moved, f_ref, n_shells),
        hand_margin=margin,
        n=n,
    )
