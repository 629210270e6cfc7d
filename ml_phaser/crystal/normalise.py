"""Normalised amplitudes: anisotropy, Wilson scale and B, E values, French-Wilson amplitudes, outliers.

One generalised linear model does the work. The intensity of a reflection is taken as exponentially
distributed about its expectation (Wilson 1949, Acta Cryst. 2, 318)

    <I(h)> = epsilon(h) f(s)^2 exp(sum_k c_k hat_k(s^2) - s.B.s / 2)

with hat functions over resolution, each as wide as two shells, and a traceless tensor B that the point
group leaves alone. Its score equations are sum_h x(h) (I(h) / <I(h)> - 1) = 0 unless all is noise: linear in
the measured intensity, so negative ones count as they should, and the mean of E^2 = I / <I> is 1 in every
shell. The constant f(s), a carbon atom's form factor, only makes what is left smooth: E does not depend on
the crystal's content.
"""

from __future__ import annotations

from dataclasses import dataclass

import gemmi
import numpy as np
from numpy.typing import NDArray

from ml_phaser.crystal.reflections import Amplitudes

# One amino-acid residue of an average protein, hydrogen included; taken per atom other than hydrogen it also
# does for organic molecules.
_CONTENT = {"C": 4.94, "N": 1.36, "O": 1.48, "S": 0.04, "H": 7.76}
_HEAVY = sum(n for element, n in _CONTENT.items() if element != "H")
_VOLUME_PER_ATOM = 18.0  # A^3 for each non-hydrogen atom of a molecular crystal without solvent
_VOLUME_PER_ATOM_PROTEIN = 34.0  # 2.4 A^3/Da (Matthews 1968) of 14.1 Da each
_PROTEIN_PRIMITIVE_CELL = 15000.0  # A^3, from where on a cell is taken for a protein's

_POOR_FOR_WILSON = 2.5  # A

_PER_KNOT = 200  # reflections for each hat function
_PER_PARAMETER = 10  # reflections needed for each parameter of the expectation
_MOST_KNOTS = 40
_IMPROBABLE = 1e-6  # of a normalised intensity as large as this (Read 1999, Acta Cryst. D55, 1759)
_EXPECTED_FALSE = 1e-4  # false outliers to be expected in a data set
_LONGEST_TAIL = 0.65  # least exponent of the distribution's tail
_NEGATIVE = -5.0  # standard uncertainties below which a negative intensity is a mistake
_WEAK = 4.0  # I / sigma below which sqrt(I) is a poor amplitude
_STRONG = 20.0  # I / sigma from where on it is the right one
_FEWEST_FOR_FRENCH_WILSON = 100


@dataclass(frozen=True)
class Shell:
    """One resolution shell of the data.

    Limits in A, number of reflections, mean of E^2 without outliers, completeness (0-1), mean I / sigma (NaN
    where no uncertainty is known).
    """

    d_max: float
    d_min: float
    n: int
    mean_e2: float
    completeness: float
    i_over_sigma: float


@dataclass(frozen=True, eq=False)
class Normalised:
    """Normalised data, on the rows of ``Amplitudes.hkl``.

    Attributes
    ----------
    e : (n,) |E| >= 0, f divided by the square root of ``expected``
    e2 : (n,) E^2 with mean 1 in every shell, straight from measured intensities: weak ones may be negative
    sig_e : (n,) standard uncertainty of e (0 where unknown)
    f, sigf : (n,) amplitudes for maps, on the data's scale, after French & Wilson where weak intensities were
        measured
    outlier : (n,) True where the value is too improbable to be used in phasing
    expected : (n,) <I>, the expected intensity, epsilon and anisotropy included
    wilson_scale : f times this is in electrons (approximate: the content is guessed from the cell's volume)
    wilson_b : overall isotropic B in A^2
    aniso_b : B11 B22 B33 B12 B13 B23 in A^2, cartesian (x along a, z along c*), trace 0:
        <I> falls as exp(-s.B.s / 2) with |s| = 1/d; zeros where anisotropy is not significant
    shells : from low to high resolution
    notes : sentences for the log
    """

    e: NDArray[np.float64]
    e2: NDArray[np.float64]
    sig_e: NDArray[np.float64]
    f: NDArray[np.float64]
    sigf: NDArray[np.float64]
    outlier: NDArray[np.bool_]
    expected: NDArray[np.float64]
    wilson_scale: float
    wilson_b: float
    aniso_b: NDArray[np.float64]
    shells: tuple[Shell, ...]
    notes: tuple[str, ...]


def normalise(data: Amplitudes) -> Normalised:
    """Normalise amplitudes or intensities; takes from a few reflections to 100,000, at any resolution."""
    intensity, sigma = _intensities(data)
    expected, aniso_b, outlier, notes = _expectation(data, intensity, sigma)
    f, sigf, how = _amplitudes(data, expected)
    wilson_scale, wilson_b = _wilson(data, intensity, sigma, ~outlier, aniso_b)
    e2 = intensity / expected
    root = np.sqrt(expected)
    if data.d_min > _POOR_FOR_WILSON:
        notes.append(f"Wilson scale and B are uncertain without data beyond {_POOR_FOR_WILSON:g} A.")
    return Normalised(
        e=f / root,
        e2=e2,
        sig_e=sigf / root,
        f=f,
        sigf=sigf,
        outlier=outlier,
        expected=expected,
        wilson_scale=wilson_scale,
        wilson_b=wilson_b,
        aniso_b=aniso_b,
        shells=_shells(data, e2, intensity, sigma, ~outlier),
        notes=(*notes, *how),
    )


def _intensities(data: Amplitudes) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Intensities (n,) and their uncertainties (0 where unknown), measured or squared amplitudes."""
    if data.intensity is None:
        return data.f**2, 2 * data.f * data.sigf
    sigma = np.zeros(len(data)) if data.sigma_i is None else data.sigma_i
    return np.asarray(data.intensity, dtype=np.float64), np.nan_to_num(np.asarray(sigma, dtype=np.float64))


# --- the expected intensity ---------------------------------------------------------------------------------


def _expectation(data: Amplitudes, intensity: NDArray, sigma: NDArray) -> tuple[NDArray, NDArray, NDArray, list[str]]:
    """Expected intensity (n,), anisotropic B (6,), outliers (n,), notes.

    Outliers spoil the fit that finds them, so it starts from medians and is repeated without them.
    """
    s2 = 1 / data.d**2
    hats = _hats(s2)
    unit = data.epsilon * _form_factor({"C": 1.0}, s2) ** 2
    tensors = invariant_tensors(data.cell, data.spacegroup)
    features = _features(data, tensors)
    y, noise = intensity / unit, _noise(sigma, unit, hats)
    c = np.concatenate([_medians(y, hats, data.centric), np.zeros(len(tensors))])
    outlier = np.zeros(len(data), dtype=bool)
    for _ in range(4):
        keep = ~outlier
        c = _fit(hats[keep], features[keep], y[keep], noise[keep], c[: hats.shape[1]])
        expected = unit * np.exp(hats @ c[: hats.shape[1]] + features @ c[hats.shape[1] :])
        found = _improbable(intensity, sigma, expected, data.centric)
        if np.array_equal(found, outlier) or found.sum() > len(data) / 2:
            break
        outlier = found
    aniso_b = np.tensordot(c[hats.shape[1] :], tensors, axes=1)[[0, 1, 2, 0, 0, 1], [0, 1, 2, 1, 2, 2]]
    missing = len(tensors) and not aniso_b.any()
    return expected, aniso_b, outlier, ["The data show no significant anisotropy."] if missing else []


def _noise(sigma: NDArray, unit: NDArray, hats: NDArray) -> NDArray[np.float64]:
    """(n,) smooth level of a tenth of the uncertainties, in units of ``unit``.

    Smooth, because a reflection's own uncertainty depends on its intensity; a tenth, because only what is
    wholly lost in noise should count for less: else the mean of E^2 leaves 1 where data are anisotropic.
    """
    level = 0.1 * np.minimum(sigma, 10 * np.median(sigma)) / unit
    return hats @ (hats.T @ level / (hats.sum(axis=0) + 1e-12))


def _hats(s2: NDArray) -> NDArray[np.float64]:
    """(n, k) piecewise linear functions of s^2 adding up to 1, equally many reflections between knots."""
    n = len(s2)
    number = int(np.clip(round(n / _PER_KNOT) + 1, 2, _MOST_KNOTS))
    knots = np.unique(np.quantile(s2, np.linspace(0, 1, number))) if n > 9 else np.array([s2.mean()])
    if len(knots) == 1 or knots[-1] - knots[0] < 1e-9:
        return np.ones((n, 1))
    place = np.clip(np.searchsorted(knots, s2, side="right") - 1, 0, len(knots) - 2)
    part = (s2 - knots[place]) / (knots[place + 1] - knots[place])
    hats = np.zeros((n, len(knots)))
    rows = np.arange(n)
    hats[rows, place] = 1 - part
    hats[rows, place + 1] = part
    return hats


def invariant_tensors(cell: gemmi.UnitCell, spacegroup: gemmi.SpaceGroup) -> NDArray[np.float64]:
    """(k, 3, 3) orthonormal basis of the traceless symmetric tensors the point group leaves alone, Cartesian."""
    frac, orth = np.array(cell.frac.mat), np.array(cell.orth.mat)
    rotations = [orth @ (np.array(op.rot) / op.DEN) @ frac for op in spacegroup.operations().sym_ops]
    averaged = []
    for i, j in ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2)):
        tensor = np.zeros((3, 3))
        tensor[i, j] = tensor[j, i] = 1
        tensor = np.mean([rot @ tensor @ rot.T for rot in rotations], axis=0)
        averaged.append((tensor - np.eye(3) * np.trace(tensor) / 3).ravel())
    _, size, basis = np.linalg.svd(np.array(averaged))
    return basis[: len(size)][size > 1e-3].reshape(-1, 3, 3)


def _features(data: Amplitudes, tensors: NDArray) -> NDArray[np.float64]:
    """(n, k) values of -s.T_k.s / 2."""
    s = data.hkl @ np.array(data.cell.frac.mat)
    return -0.5 * np.einsum("ni,kij,nj->nk", s, tensors, s, optimize=True)


def _medians(y: NDArray, hats: NDArray, centric: NDArray) -> NDArray[np.float64]:
    """Starting values of the hats' coefficients: outliers hardly move a median."""
    ratio = y / np.where(centric, 0.4549, np.log(2))
    overall = float(np.median(ratio))
    positive = ratio[ratio > 0]
    if overall <= 0:
        overall = float(positive.mean()) if len(positive) else 1.0
    nearest = hats.argmax(axis=1)
    start = []
    for k in range(hats.shape[1]):
        members = ratio[nearest == k]
        start.append(max(np.median(members) if len(members) > 4 else overall, overall * 1e-4))
    return np.log(start)


def _fit(hats: NDArray, features: NDArray, y: NDArray, noise: NDArray, start: NDArray) -> NDArray[np.float64]:
    """Coefficients of hats and features; those of the features are 0 where they explain too little (BIC)."""
    y = _lifted(y, hats)
    smooth = np.diff(np.eye(hats.shape[1]), n=2, axis=0) if hats.shape[1] > 2 else np.zeros((0, hats.shape[1]))
    plain, loss = _glm(hats, y, noise, start, smooth)
    none = np.concatenate([plain, np.zeros(features.shape[1])])
    if not features.shape[1] or len(y) < _PER_PARAMETER * len(none):
        return none
    smooth = np.pad(smooth, ((0, 0), (0, features.shape[1])))
    full, full_loss = _glm(np.hstack([hats, features]), y, noise, none, smooth)
    mean = np.exp(hats @ plain)
    dispersion = max(1.0, float(np.mean(((y - mean) / (mean + noise)) ** 2)))
    gain = 2 * (loss - full_loss) / dispersion
    return full if gain > features.shape[1] * np.log(len(y)) else none


def _lifted(y: NDArray, hats: NDArray) -> NDArray[np.float64]:
    """Intensities with a positive mean under every hat: its own standard error where it was less.

    Measured intensities beyond the crystal's diffraction may average to zero or less: no expectation fits.
    """
    weight = hats.sum(axis=0) + 1e-12
    mean = hats.T @ y / weight
    least = np.maximum(np.sqrt((hats**2).T @ y**2) / weight, 1e-6 * np.abs(y).mean() + 1e-300)
    return y + hats @ np.maximum(least - mean, 0) if np.any(mean < least) else y


def _glm(
    x: NDArray, y: NDArray, noise: NDArray, start: NDArray, smooth: NDArray | None = None
) -> tuple[NDArray[np.float64], float]:
    """Minimise sum(log m + (y + noise) / m) + |smooth.c|^2, m = exp(x.c) + noise; (coefficients, minimum).

    Exponential distribution, logarithmic link; the smooth noise level (n,) gives reflections lost in it less
    weight, and bounds the sum below whatever the sign of y. The rows of ``smooth`` (k, m), which
    weigh as one reflection each, decide only where the data say nothing. Fisher scoring with step halving.
    """
    penalty = np.zeros((x.shape[1], x.shape[1])) if smooth is None else smooth.T @ smooth
    ridge = np.eye(x.shape[1])

    def evaluate(c: NDArray) -> tuple[NDArray[np.float64], float]:
        mean = np.exp(np.clip(x @ c, -300, 300))
        loss = np.sum(np.log(mean + noise + 1e-300) + (y + noise) / (mean + noise + 1e-300))
        return mean, float(loss + c @ penalty @ c)

    c = start.astype(np.float64)
    mean, loss = evaluate(c)
    for iteration in range(100):
        weight = mean / (mean + noise)
        if iteration % 5 == 0:
            information = (x * (weight**2)[:, None]).T @ x + 2 * penalty
            information += ridge * (1e-9 * np.trace(information) + 1e-300)
        score = x.T @ (weight * (y - mean) / (mean + noise)) - 2 * penalty @ c
        step = np.linalg.solve(information, score)
        size = min(1.0, 2.0 / max(1e-12, float(np.abs(x @ step).max())))
        for _ in range(20):
            new_mean, new_loss = evaluate(c + size * step)
            if new_loss <= loss:
                break
            size /= 2
        else:
            break
        gain = loss - new_loss
        c, mean, loss = c + size * step, new_mean, new_loss
        if gain < 1e-9 * len(y) and size == 1:
            break
    return c, loss


def _improbable(intensity: NDArray, sigma: NDArray, expected: NDArray, centric: NDArray) -> NDArray[np.bool_]:
    """(n,) True where E^2 is too large to be believed, measurement error granted, or I far below zero.

    Wilson's distribution gives z, the exponential variate as improbable as E^2 is. Helices, layers, heavy
    atoms and pseudo-translations stretch its tail, and their strongest reflections are true and the most
    useful of all: so the tail's exponent is measured, P(z) = exp(-(z / scale)^k) with k <= 1, and a value is
    an outlier where none as large is expected in the whole data set.
    """
    least = np.maximum(intensity - 3 * sigma, 0) / expected
    z = _exponential(least, centric)
    far = 0.98 if len(z) >= 500 else 0.9
    middle, high = np.maximum(np.quantile(_exponential(intensity / expected, centric), [0.5, far]), 1e-6)
    ln_2, ln_far = np.log(2), -np.log(1 - far)
    k = np.clip(np.log(ln_far / ln_2) / max(1e-6, np.log(high / middle)), _LONGEST_TAIL, 1.0)
    scale = max(1.0, high / ln_far ** (1 / k))
    limit = -np.log(min(_IMPROBABLE, _EXPECTED_FALSE / max(1, len(z))))
    return ((z / scale) ** k > limit) | ((sigma > 0) & (intensity < _NEGATIVE * sigma))


def _exponential(e2: NDArray, centric: NDArray) -> NDArray[np.float64]:
    """-ln P(> E^2), which is E^2 itself where the reflection is acentric."""
    from scipy.special import log_ndtr

    e2 = np.maximum(e2, 0)
    return np.where(centric, -np.log(2) - log_ndtr(-np.sqrt(e2)), e2)


# --- amplitudes ---------------------------------------------------------------------------------------------


def _amplitudes(data: Amplitudes, expected: NDArray) -> tuple[NDArray[np.float64], NDArray[np.float64], list[str]]:
    """Amplitudes, uncertainties and a sentence on how they were made."""
    if data.intensity is None:
        return data.f, data.sigf, []
    intensity, sigma = _intensities(data)
    known = sigma > 0
    weak = known & (intensity < _WEAK * sigma)
    f = np.sqrt(np.maximum(intensity, 0))
    sigf = np.where(known, sigma / np.maximum(2 * f, np.sqrt(np.maximum(sigma, 1e-300))), 0.0)
    if not weak.any():
        return f, sigf, ["Amplitudes are square roots of the intensities (none is weak)."]
    f[known], sigf[known] = _sivia_david(intensity[known], sigma[known])
    plain = f"Amplitudes of {weak.sum()} weak intensities after Sivia and David (1994)"
    if known.sum() < _FEWEST_FOR_FRENCH_WILSON:
        return f, sigf, [f"{plain}: too few reflections for French-Wilson."]
    try:
        posterior = _french_wilson(data, intensity / expected, sigma / expected, known)
    except (ValueError, ArithmeticError, np.linalg.LinAlgError) as error:
        return f, sigf, [f"{plain}: French-Wilson failed ({error})."]
    good = np.isfinite(posterior).all(axis=0) & (posterior > 0).all(axis=0) & (intensity < _STRONG * sigma)
    root = np.sqrt(expected)
    f, sigf = np.where(good, posterior[0] * root, f), np.where(good, posterior[1] * root, sigf)
    return f, sigf, [f"French-Wilson amplitudes ({weak.sum()} intensities are below {_WEAK:g} sigma)."]


def _french_wilson(data: Amplitudes, e2: NDArray, sig_e2: NDArray, known: NDArray) -> NDArray[np.float64]:
    """(2, n) posterior mean and standard deviation of |E|, NaN where no uncertainty is known.

    French & Wilson (1978), Acta Cryst. A34, 517, by reciprocalspaceship. Values divided by their expectation
    go in, so the prior's mean is 1 whatever the resolution and direction.
    """
    import reciprocalspaceship as rs

    epsilon = data.epsilon[known]  # the library divides by it
    hkl = data.hkl[known]
    frame = rs.DataSet(
        {
            "H": rs.DataSeries(hkl[:, 0], dtype="H"),
            "K": rs.DataSeries(hkl[:, 1], dtype="H"),
            "L": rs.DataSeries(hkl[:, 2], dtype="H"),
            "I": rs.DataSeries(e2[known] * epsilon, dtype="J"),
            "SIGI": rs.DataSeries(sig_e2[known] * epsilon, dtype="Q"),
        },
        cell=data.cell,
        spacegroup=data.spacegroup,
    ).set_index(["H", "K", "L"])
    with np.errstate(all="ignore"):
        frame = rs.algorithms.scale_merged_intensities(frame, "I", "SIGI", bins=8, dropna=False)
    posterior = np.full((2, len(data)), np.nan)
    for row, name in zip(posterior, ("FW-F", "FW-SIGF"), strict=True):
        row[known] = frame[name].to_numpy(dtype=np.float64) / np.sqrt(epsilon)
    return posterior


def _sivia_david(intensity: NDArray, sigma: NDArray) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Amplitudes from intensities under a flat prior (Sivia & David 1994, Acta Cryst. A50, 703)."""
    f2 = (intensity + np.sqrt(intensity**2 + 2 * sigma**2)) / 2
    return np.sqrt(f2), 1 / np.sqrt(1 / f2 + 2 * (3 * f2 - intensity) / sigma**2)


# --- absolute scale and summary -----------------------------------------------------------------------------


def _form_factor(content: dict[str, float], s2: NDArray) -> NDArray[np.float64]:
    """(n,) root of the summed squared form factors (International Tables C, 6.1.1.4), s^2 = 1/d^2 in A^-2."""
    total = np.zeros_like(s2)
    for element, number in content.items():
        coefficients = gemmi.Element(element).it92
        f = np.full_like(s2, coefficients.c)
        for a, b in zip(coefficients.a, coefficients.b, strict=True):
            f += a * np.exp(-b * s2 / 4)
        total += number * f**2
    return np.sqrt(total)


def _wilson(
    data: Amplitudes, intensity: NDArray, sigma: NDArray, keep: NDArray, aniso_b: NDArray
) -> tuple[float, float]:
    """Scale that brings amplitudes to electrons, and overall B, against the content the volume suggests.

    Reflections beyond 4 A only, where atoms scatter independently enough, unless they are too few.
    """
    operations = data.spacegroup.operations()
    volume = data.cell.volume / len(operations.cen_ops)
    per_atom = _VOLUME_PER_ATOM if volume < _PROTEIN_PRIMITIVE_CELL else _VOLUME_PER_ATOM_PROTEIN
    atoms = max(1.0, volume / per_atom)
    content = {element: n * atoms / _HEAVY for element, n in _CONTENT.items()}
    use = keep & (data.d < 4)
    if use.sum() < max(10, 0.2 * len(data)):
        use = keep
    s2 = 1 / data.d[use] ** 2
    tensor = aniso_b[[0, 3, 4, 3, 1, 5, 4, 5, 2]].reshape(1, 3, 3)
    direction = _features(data, tensor)[use, 0]
    # a centred lattice: the primitive cell's content, seen once for each lattice point
    lattice = float(len(operations.cen_ops)) ** 2
    model = data.epsilon[use] * lattice * _form_factor(content, s2) ** 2 * np.exp(direction)
    x = np.stack([np.ones_like(s2), -s2 / 2], axis=1) if np.ptp(s2) > 1e-6 else np.ones((len(s2), 1))
    y = intensity[use] / model
    noise = np.full(len(y), 0.1 * np.median(sigma[use] / model))
    c, _ = _glm(x, y, noise, np.array([np.log(max(y.mean(), 1e-300)), 0.0][: x.shape[1]]))
    return float(np.exp(-c[0] / 2)), float(c[1]) if len(c) > 1 else 0.0


def _shells(data: Amplitudes, e2: NDArray, intensity: NDArray, sigma: NDArray, keep: NDArray) -> tuple[Shell, ...]:
    """Shells of equal numbers, five to twenty of them where the data suffice."""
    number = int(np.clip(len(data) // 100, min(5, max(1, len(data) // 10)), 20))
    s2 = 1 / data.d**2
    edges = np.quantile(s2, np.linspace(0, 1, number + 1))
    edges[0], edges[-1] = edges[0] * (1 - 1e-6), edges[-1] * (1 + 1e-6)
    possible_hkl = gemmi.make_miller_array(data.cell, data.spacegroup, 1 / np.sqrt(edges[-1]), 1 / np.sqrt(edges[0]))
    possible = np.histogram(1 / data.cell.calculate_d_array(possible_hkl) ** 2, edges)[0]
    shell = np.clip(np.searchsorted(edges, s2, side="right") - 1, 0, number - 1)
    rows = []
    for k in range(number):
        inside = shell == k
        used, certain = inside & keep, inside & (sigma > 0)
        rows.append(
            Shell(
                d_max=float(1 / np.sqrt(edges[k])),
                d_min=float(1 / np.sqrt(edges[k + 1])),
                n=int(inside.sum()),
                mean_e2=float(e2[used].mean()) if used.any() else float("nan"),
                completeness=float(min(1.0, inside.sum() / max(1, possible[k]))),
                i_over_sigma=float(np.mean(intensity[certain] / sigma[certain])) if certain.any() else float("nan"),
            )
        )
    return tuple(rows)
