"""Equivalent reflections: merging them, and what they say about the space group."""

from __future__ import annotations

from dataclasses import dataclass

import gemmi
import numpy as np
from numpy.typing import NDArray

Hkl = NDArray[np.int32]
Reals = NDArray[np.float64]

_OFFSET = 1 << 20


@dataclass(frozen=True, eq=False)
class Merged:
    """Unique reflections, sorted by h, k, l.

    Attributes
    ----------
    hkl : (n, 3) int32 in ``ReciprocalAsu``
    value, sigma : (n,) weighted mean and its standard uncertainty (0 where unknown)
    count : (n,) number of measurements in each
    rows : (n,) first input row of each
    """

    hkl: Hkl
    value: Reals
    sigma: Reals
    count: NDArray[np.int64]
    rows: NDArray[np.int64]


def asu_indices(hkl: Hkl, group: gemmi.SpaceGroup) -> Hkl:
    """Equivalents of (n, 3) indices in the asymmetric unit of ``gemmi.ReciprocalAsu``, Friedel mates
    included.
    """
    mtz = gemmi.Mtz(with_base=True)
    mtz.spacegroup = group
    mtz.set_data(np.ascontiguousarray(hkl, dtype=np.float32))  # exact up to 2^24
    mtz.ensure_asu()
    return np.asarray(mtz.make_miller_array(), dtype=np.int32).reshape(-1, 3)


def _keys(hkl: Hkl) -> NDArray[np.int64]:
    """One integer for each (n, 3) index, in the order of h, k, l."""
    h = hkl.astype(np.int64) + _OFFSET
    return (h[:, 0] << 42) | (h[:, 1] << 21) | h[:, 2]


def merge(hkl: Hkl, value: Reals, sigma: Reals, group: gemmi.SpaceGroup) -> Merged:
    """Inverse-variance weighted means over equivalents and Friedel mates.

    The uncertainty of a mean is 1/sqrt(sum w), or what the scatter of three or more measurements gives where
    that is larger. Unknown uncertainties (0) weigh as the median one.
    """
    asu = asu_indices(hkl, group)
    _, first, inverse = np.unique(_keys(asu), return_index=True, return_inverse=True)
    inverse = inverse.reshape(-1)
    n = len(first)
    known = sigma > 0
    typical = float(np.median(sigma[known])) if known.any() else 1.0
    # relative to the typical sigma, so that tiny or huge scales do not overflow
    weight = (typical / np.where(known, sigma, typical)) ** 2
    total = np.bincount(inverse, weight, n)
    mean = np.bincount(inverse, weight * value, n) / total
    count = np.bincount(inverse, minlength=n)
    internal = typical / np.sqrt(total)
    scatter = np.bincount(inverse, weight * (value - mean[inverse]) ** 2, n)
    external = np.sqrt(scatter / (np.maximum(count - 1, 1) * total))
    new_sigma = np.where(count >= 3, np.maximum(internal, external), internal)
    any_known = np.bincount(inverse, known, n) > 0
    return Merged(asu[first], mean, np.where(any_known, new_sigma, 0.0), count, first.astype(np.int64))


def expand_laue(hkl: Hkl, group: gemmi.SpaceGroup) -> tuple[Hkl, NDArray[np.int64]]:
    """All distinct rotations of (n, 3) indices, without Friedel mates, and the rows (m,) they come from."""
    rotations = _rotations(group.operations())
    rows = np.tile(np.arange(len(hkl)), len(rotations))
    everything = np.concatenate([hkl @ r for r in rotations]).astype(np.int32)
    p1 = asu_indices(everything, gemmi.SpaceGroup("P 1"))
    _, first = np.unique(_keys(p1), return_index=True)
    return p1[first], rows[first]


def change_group(data: Merged, old: gemmi.SpaceGroup, new: gemmi.SpaceGroup) -> tuple[Merged, float, int]:
    """Merged data of one group as data of another, in the same cell.

    Returns the data, R of the reflections that only the new group makes equivalent (NaN if none), and their
    number. A measurement spread over a lower symmetry is not counted twice where the two groups share an
    equivalence.
    """
    p1, rows = expand_laue(data.hkl, old)
    asu = asu_indices(p1, new)
    pairs = np.column_stack([_keys(asu), rows])
    _, first = np.unique(pairs, axis=0, return_index=True)
    merged = merge(p1[first], data.value[rows[first]], data.sigma[rows[first]], new)
    origin = rows[first][merged.rows]
    merged = Merged(merged.hkl, merged.value, merged.sigma, merged.count, origin)
    r, n = r_merge(p1[first], data.value[rows[first]], data.sigma[rows[first]], new)
    return merged, r, n


def r_merge(hkl: Hkl, value: Reals, sigma: Reals, group: gemmi.SpaceGroup) -> tuple[float, int]:
    """R = sum |I - <I>| / sum I over reflections that the group, beyond Friedel's law, makes equivalent.

    Only those stronger than the mean and than 3 sigma count, so that noise does not pass for a wrong group.
    Independent acentric intensities give 0.4 or more. Returns R (NaN if there are none) and the number of
    means.
    """
    friedel = merge(hkl, value, sigma, gemmi.SpaceGroup("P 1"))
    unique = merge(friedel.hkl, friedel.value, friedel.sigma, group)
    key = _keys(unique.hkl)
    inverse = np.searchsorted(key, _keys(asu_indices(friedel.hkl, group)))
    plain = np.bincount(inverse, friedel.value) / unique.count
    several = unique.count >= 2
    if not several.any():
        return float("nan"), 0
    strong = several & (plain > np.mean(plain[several])) & (plain > 3 * unique.sigma)
    if not strong.any():
        return float("nan"), 0
    chosen = strong[inverse]
    off = np.abs(friedel.value - plain[inverse])[chosen].sum()
    return float(off / friedel.value[chosen].sum()), int(strong.sum())


def _rotations(ops: gemmi.GroupOps) -> list[NDArray[np.int64]]:
    """Distinct rotation matrices of a group: h' = h R."""
    unique = {}
    for op in ops.sym_ops:
        r = np.array(op.rot, dtype=np.int64) // op.DEN
        unique[tuple(int(x) for x in r.ravel())] = r
    return list(unique.values())


@dataclass(frozen=True)
class Violation:
    """A translation (screw, glide or centring) that strong reflections contradict."""

    element: str
    count: int
    strong: int
    relative: float  # mean intensity relative to reflections of like resolution


def relative_intensities(hkl: Hkl, intensity: Reals, cell: gemmi.UnitCell, group: gemmi.SpaceGroup) -> Reals:
    """Intensities (n,) over the mean of allowed reflections of like resolution and over epsilon."""
    ops = group.operations()
    s2 = np.asarray(cell.calculate_1_d2_array(hkl), dtype=np.float64)
    allowed = ~np.asarray(ops.systematic_absences(hkl), dtype=bool)
    if not allowed.any():
        return np.ones(len(hkl))
    epsilon = np.asarray(ops.epsilon_factor_without_centering_array(hkl), dtype=np.float64)
    i = intensity / np.maximum(epsilon, 1)
    n_bins = int(np.clip(allowed.sum() // 100, 1, 20))
    edges = np.quantile(s2[allowed], np.linspace(0, 1, n_bins + 1)[1:-1])
    shell = np.searchsorted(edges, s2)
    total = np.bincount(shell[allowed], i[allowed], n_bins)
    mean = total / np.maximum(np.bincount(shell[allowed], minlength=n_bins), 1)
    floor = max(float(np.mean(i[allowed])) * 1e-6, 1e-300)
    return i / np.maximum(mean[shell], floor)


def violations(hkl: Hkl, z: Reals, snr: Reals, group: gemmi.SpaceGroup) -> list[Violation]:
    """Translations of the group whose forbidden reflections are strong.

    Parameters
    ----------
    hkl : (n, 3) indices
    z : (n,) relative intensities
    snr : (n,) intensity over its uncertainty (large where unknown)

    Each element is judged alone, for a wrong screw axis forbids few reflections beside those of the right
    ones.
    """
    forbidden = np.asarray(group.operations().systematic_absences(hkl), dtype=bool)
    h, z, snr = hkl[forbidden].astype(np.int64), z[forbidden], snr[forbidden]
    found = []
    for op in group.operations():
        absent = _forbidden_by(h, op)
        strong = absent & (snr > 5) & (z > 0.1)
        n = int(absent.sum())
        if n >= 4 and strong.sum() >= 3 and np.mean(z[absent]) > 0.25:
            found.append(Violation(op.triplet(), n, int(strong.sum()), float(np.mean(z[absent]))))
    return found


def _forbidden_by(hkl: NDArray[np.int64], op: gemmi.Op) -> NDArray[np.bool_]:
    """h R = h with h.t no integer (International Tables A, 2.2.13)."""
    rot = np.array(op.rot, dtype=np.int64) // op.DEN
    fixed = np.all(hkl @ rot == hkl, axis=1)
    shift: NDArray[np.int64] = hkl @ np.array(op.tran, dtype=np.int64)
    return fixed & (shift % op.DEN != 0)


def groups_that_fit(
    data: Merged,
    intensity: Reals,
    sigma: Reals,
    cell: gemmi.UnitCell,
    group: gemmi.SpaceGroup,
    extra: tuple[str, ...] = (),
) -> tuple[str, ...]:
    """Tabulated groups of the Laue class of ``group`` and ``extra`` rotations, in its axes, that the data
    suggest.

    Groups whose forbidden reflections are strong are out; of the rest, those win that explain most
    reflections that are missing or weak though like ones are measured, groups without mirrors and inversions
    before others. Empty where more than three are equally good.
    """
    p1, rows = expand_laue(data.hkl, group)
    i, s = intensity[rows], sigma[rows]
    z = relative_intensities(p1, i, cell, group)
    snr = np.where(s > 0, i / np.where(s > 0, s, 1), 99.0)
    wanted = _laue_rotations(group, extra)
    centring = group.centring_type()
    possible = _special_reflections(cell, float(cell.calculate_d_array(p1).min()), group.operations(), wanted)
    strength = _lookup(_keys(p1), z, _keys(possible))
    ranked = []
    for other in gemmi.spacegroup_table():
        if other.centring_type() != centring or len(other.operations().sym_ops) not in (
            len(wanted),
            len(wanted) // 2,
        ):
            continue
        if _laue_rotations(other) != wanted or violations(p1, z, snr, other):
            continue
        ranked.append(
            (
                -_explained(possible.astype(np.int64), strength, other),
                not other.is_sohncke(),
                other.number,
                other,
            )
        )
    ranked.sort(key=lambda x: x[:3])
    best = [x for x in ranked if x[:2] == ranked[0][:2]]
    names = tuple(dict.fromkeys(x[3].xhm() for x in best))
    return names if len(names) <= 3 else ()


def _laue_rotations(group: gemmi.SpaceGroup, extra: tuple[str, ...] = ()) -> set[tuple[int, ...]]:
    """Rotations of the Laue group that a group and further operators generate, as flat matrices."""
    ops = group.operations().derive_symmorphic().sym_ops
    whole = gemmi.GroupOps([*ops, *(gemmi.Op(x) for x in extra), gemmi.Op("-x,-y,-z")])
    whole.add_missing_elements()
    return {tuple(int(x) for x in r.ravel()) for r in _rotations(whole)}


def _special_reflections(
    cell: gemmi.UnitCell, d_min: float, lattice: gemmi.GroupOps, rotations: set[tuple[int, ...]]
) -> Hkl:
    """Reflections (m, 3), one of each Friedel pair, that some rotation maps on themselves."""
    volume = 2 * np.pi / 3 * cell.volume / d_min**3
    d_min *= max(1.0, volume / 300_000) ** (1 / 3)  # memory: large cells to high resolution are not needed whole
    hkl = np.asarray(gemmi.make_miller_array(cell, gemmi.SpaceGroup("P 1"), d_min), dtype=np.int32)
    hkl = hkl[~_centring_absent(hkl, lattice)]
    special = np.zeros(len(hkl), dtype=bool)
    for flat in rotations:
        r = np.array(flat).reshape(3, 3)
        if not np.array_equal(r, np.eye(3)):
            special |= np.all(hkl @ r == hkl, axis=1)
    return hkl[special]


def _centring_absent(hkl: Hkl, ops: gemmi.GroupOps) -> NDArray[np.bool_]:
    absent = np.zeros(len(hkl), dtype=bool)
    for t in ops.cen_ops:
        absent |= (hkl.astype(np.int64) @ np.array(t, dtype=np.int64)) % gemmi.Op.DEN != 0
    return absent


def _lookup(keys: NDArray[np.int64], values: Reals, wanted: NDArray[np.int64]) -> Reals:
    """Values at the wanted keys, NaN where there are none; ``keys`` is sorted."""
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, values[place], np.nan)


def _explained(possible: NDArray[np.int64], strength: Reals, group: gemmi.SpaceGroup) -> int:
    """Number of missing or weak reflections that the group forbids, where those it allows alike are
    measured.
    """
    explained = np.zeros(len(possible), dtype=bool)
    for op in group.operations():
        rot = np.array(op.rot, dtype=np.int64) // op.DEN
        fixed = np.all(possible @ rot == possible, axis=1)
        forbidden = _forbidden_by(possible, op)
        like = fixed & ~forbidden
        quiet = ~(strength > 0.1)
        measured = like & np.isfinite(strength)
        if forbidden.sum() >= 3 and measured.sum() >= max(3, 0.3 * like.sum()) and quiet[forbidden].mean() > 0.95:
            explained |= forbidden
    return int(explained.sum())


@dataclass(frozen=True)
class HigherSymmetry:
    """Rotations beyond those of the group under which the data agree."""

    operations: tuple[str, ...]
    r: float
    groups: tuple[str, ...]


def higher_symmetry(
    data: Merged, intensity: Reals, sigma: Reals, cell: gemmi.UnitCell, group: gemmi.SpaceGroup
) -> HigherSymmetry | None:
    """Test the rotations of the lattice that the Laue group lacks (Le Page 1982 gives the lattice's).

    An operation counts where strong reflections and their images agree to R < 0.15 (see ``r_merge``), which
    twinning can also bring about.
    """
    lattice = gemmi.find_lattice_symmetry(cell, group.centring_type(), 1.0)
    own = {r.tobytes() for r in _rotations(group.operations())}
    own |= {(-r).tobytes() for r in _rotations(group.operations())}
    p1, rows = expand_laue(data.hkl, group)
    key = _keys(p1)
    value = intensity[rows]
    strong = np.flatnonzero((value > np.mean(intensity)) & (value > 3 * sigma[rows]))[:6000]
    found, worst = [], 0.0
    for op in lattice.sym_ops:
        rot = np.array(op.rot, dtype=np.int64) // op.DEN
        if rot.tobytes() in own:
            continue
        image = asu_indices((p1[strong] @ rot).astype(np.int32), gemmi.SpaceGroup("P 1"))
        place = np.minimum(np.searchsorted(key, _keys(image)), len(key) - 1)
        there = (key[place] == _keys(image)) & (rows[place] != rows[strong])
        if there.sum() < 50:
            continue
        a, b = value[strong[there]], value[place[there]]
        r = float(np.abs(a - b).sum() / np.maximum(a + b, 1e-300).sum())
        if r < 0.15:
            found.append(op.triplet())
            worst = max(worst, r)
    if not found:
        return None
    names = groups_that_fit(data, intensity, sigma, cell, group, tuple(found))
    return HigherSymmetry(tuple(found), worst, names)


def amplitude_like(data: Merged, cell: gemmi.UnitCell, group: gemmi.SpaceGroup) -> tuple[bool, float]:
    """Are the values amplitudes rather than intensities? Wilson statistics of both readings (Wilson 1949).

    <x^2>/<x>^2 in thin shells is 2 (acentric) or 3 (centric) for intensities, 4/pi or pi/2 for amplitudes.
    Returns the answer and the observed value over that expected of intensities (1 for intensities, 0.64 or
    0.52 for amplitudes), where noise counts off. A fair share of negative values means intensities.
    """
    x, s = data.value, data.sigma
    if np.mean(x < -np.maximum(2 * s, 0)) > 0.003 or np.mean(x < 0) > 0.03:
        return False, 1.0
    s2 = np.asarray(cell.calculate_1_d2_array(data.hkl), dtype=np.float64)
    ops = group.operations()
    x = x / np.sqrt(np.maximum(np.asarray(ops.epsilon_factor_without_centering_array(data.hkl)), 1))
    centric = np.asarray(ops.centric_flag_array(data.hkl), dtype=bool)
    logs, weights = [], []
    order = np.argsort(s2)
    for chunk in np.array_split(order, max(1, len(order) // 80)):
        for kind, moment in ((True, 3.0), (False, 2.0)):
            i = chunk[centric[chunk] == kind]
            mean = float(np.mean(x[i])) if len(i) >= 15 else 0.0
            noise = float(np.mean(s[i] ** 2)) if len(i) else 0.0
            if mean <= 0 or noise > 0.2 * mean**2:
                continue
            logs.append(np.log(max(float(np.mean(x[i] ** 2)) - noise, 1e-12 * mean**2) / mean**2 / moment))
            weights.append(len(i))
    if not logs:
        return False, 1.0
    seen = float(np.exp(np.average(logs, weights=weights)))
    expected = 0.52 if centric.mean() > 0.5 else 0.64
    return bool(np.log(seen) < 0.5 * np.log(expected)), seen
