"""Scaling of calculated to measured amplitudes, bulk solvent included, and R factors.

    free, story = free_set(data.free)                     # True for the test set; None where there is none
    scales = fit_scales(data.f, f_calc, f_mask, data.hkl, data.cell, data.spacegroup, free)
    k_total, k_mask = scales.at(data.hkl)                 # any reflections, also unmeasured ones
    f = f_model(f_calc, f_mask, k_total, k_mask)          # torch or numpy; differentiable in all four
    r = r_factors(data.f, f, data.d, free)                # r.work, r.free, r.shells

The model is that of Afonine, Grosse-Kunstleve, Adams & Urzhumtsev (2013), Acta Cryst. D69, 625:

    F_model = k_iso(s) k_aniso(h) (F_calc + k_mask(s) F_mask)

with ln k_iso and k_mask piecewise linear in s^2 between knots (dense at low resolution) instead of constant in
shells, and ln k_aniso = s.A.s + s^2 s.C.s, the tensors A and C traceless and of the point group's symmetry, so that
the scale is positive everywhere. k_mask is 0 beyond 2.5 A. ``flat=True`` fits the few parameters of old instead: k, B
and A, k_sol and B_sol with k_mask = k_sol exp(-B_sol s^2 / 4). The fit minimises sum |F_obs - |F_model||, the
numerator of R, over the work set by iteratively reweighted Gauss-Newton steps; s is 1/d in 1/A. Without F_mask (small
molecules) only the scale is fitted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gemmi
import numpy as np
from numpy.typing import NDArray

from ml_phaser.crystal.normalise import invariant_tensors

Floats = NDArray[np.float64]

USUAL_SOLVENT = (0.35, 46.0)  # electrons/A^3, A^2: means over the PDB (Fokine & Urzhumtsev 2002, D58, 1387)
_MOST_SOLVENT = (1.0, 200.0)  # of k_sol and k_mask, and of B_sol
_MASK_D_MIN = 2.5  # A; the solvent says nothing beyond
_PER_KNOT = 150  # work reflections for each knot on average
_LEAST_PER_KNOT = 40
_MOST_KNOTS = 20
_PER_PARAMETER = 10  # work reflections needed for each parameter; else fewer are fitted
_CYCLES = 60
_FREE_FRACTION = 0.5  # at most, of a test set


def free_set(flags: NDArray[np.integer] | None) -> tuple[NDArray[np.bool_] | None, str]:
    """Test set out of the flags of a file, and a sentence that says how they were read.

    Two values: the rarer is the test set (CNS and Phenix write 1, REFMAC 0). More values: 0, as CCP4 numbers its
    equal parts; their lowest where 0 is missing. Negative flags are missing ones, their reflections work.
    None where one value fills the file or no flags are given.
    """
    if flags is None:
        return None, "no free-R flags"
    values, counts = np.unique(flags[flags >= 0], return_counts=True)
    if len(values) < 2:
        return None, "free-R flags are all alike"
    chosen = values[np.argmin(counts)] if len(values) == 2 else values[0]
    free = np.asarray(flags == chosen)
    if free.mean() > _FREE_FRACTION:
        return None, f"free-R flag {chosen} on {free.mean():.0%} of the reflections is no test set"
    how = "the rarer of two" if len(values) == 2 else f"the lowest of {len(values)}, as CCP4 counts"
    return free, f"free-R flag {chosen} ({free.mean():.1%}; {how})"


def f_model(f_calc: Any, f_mask: Any, k_total: Any, k_mask: Any) -> Any:
    """k_total (F_calc + k_mask F_mask), (n,) complex; numpy arrays or torch tensors."""
    return k_total * (f_calc + k_mask * f_mask)


@dataclass(frozen=True, eq=False)
class Scales:
    """Scale functions of one crystal.

    Attributes
    ----------
    knots : (k,) s^2 in 1/A^2; log_k : (k,) ln k_iso there
    k_mask : (k,) at the knots, or None where the exponential ``solvent`` holds
    solvent : k_sol in electrons/A^3, B_sol in A^2 of the flat model; (0, 0) without solvent
    tensors : (t, 3, 3) basis; aniso, quartic : (t,) coefficients of A in A^2 and C in A^4
    """

    cell: gemmi.UnitCell
    knots: Floats
    log_k: Floats
    k_mask: Floats | None
    solvent: tuple[float, float]
    tensors: Floats
    aniso: Floats
    quartic: Floats

    def at(self, hkl: NDArray) -> tuple[Floats, Floats]:
        """k_total = k_iso k_aniso and k_mask, (n,) each, of reflections (n, 3)."""
        s2 = _s2(hkl, self.cell)
        forms = _forms(hkl, self.cell, self.tensors)
        exponent = np.interp(s2, self.knots, self.log_k) + forms @ self.aniso + s2 * (forms @ self.quartic)
        if self.k_mask is None:
            k_mask = self.solvent[0] * np.exp(-self.solvent[1] * s2 / 4)
        else:
            k_mask = np.interp(s2, self.knots, self.k_mask)
        return np.exp(exponent), k_mask

    @property
    def b_aniso(self) -> Floats:
        """B11 B22 B33 B12 B13 B23 in A^2, Cartesian, trace 0: the anisotropic part of the amplitudes' fall-off,
        exp(-s.B.s / 4), without the quartic one."""
        return -4 * np.tensordot(self.aniso, self.tensors, axes=1)[[0, 1, 2, 0, 0, 1], [0, 1, 2, 1, 2, 2]]


@dataclass(frozen=True)
class RShell:
    """R of one resolution shell (NaN where it has no such reflections), and how many there are."""

    d_max: float
    d_min: float
    n_work: int
    n_free: int
    work: float
    free: float


@dataclass(frozen=True)
class RFactors:
    """R of the work and the test set (NaN without one), and by shells of equally many reflections."""

    work: float
    free: float
    shells: tuple[RShell, ...]


def r_factors(f_obs: Floats, model: NDArray, d: Floats, free: NDArray[np.bool_] | None, shells: int = 10) -> RFactors:
    """sum |F_obs - |F_model|| / sum F_obs; reflections with F_obs not above zero or missing are left out."""
    use = np.isfinite(f_obs) & (f_obs > 0)
    test = np.zeros(len(f_obs), dtype=bool) if free is None else free

    def r(rows: NDArray) -> float:
        return float(np.abs(f_obs[rows] - np.abs(model[rows])).sum() / f_obs[rows].sum()) if rows.any() else np.nan

    parts = []
    for members in np.array_split(np.flatnonzero(use)[np.argsort(-d[use], kind="stable")], shells):
        if len(members):
            inside = np.zeros(len(d), dtype=bool)
            inside[members] = True
            work, held = inside & ~test, inside & test
            limits = float(d[members].max()), float(d[members].min())
            parts.append(RShell(*limits, int(work.sum()), int(held.sum()), r(work), r(held)))
    return RFactors(r(use & ~test), r(use & test), tuple(parts))


def fit_scales(
    f_obs: Floats,
    f_calc: NDArray[np.complex128],
    f_mask: NDArray[np.complex128] | None,
    hkl: NDArray,
    cell: gemmi.UnitCell,
    spacegroup: gemmi.SpaceGroup,
    free: NDArray[np.bool_] | None = None,
    *,
    flat: bool = False,
) -> Scales:
    """Scale and solvent that bring F_calc (n,) nearest to F_obs (n,).

    Reflections that are free, missing (NaN) or not above zero take no part (free ones do where hardly any others are
    left). With few reflections fewer parameters are fitted, down to k alone. Raises ValueError where nothing is left.
    """
    use = np.isfinite(f_obs) & (f_obs > 0) & np.isfinite(f_calc) & (np.abs(f_calc) > 0)
    if free is not None and (use & ~free).sum() >= _PER_PARAMETER:
        use &= ~free
    if not use.any():
        raise ValueError("no measured amplitudes above zero to scale to")
    s2 = _s2(hkl[use], cell)
    tensors = invariant_tensors(cell, spacegroup)
    wet = f_mask is not None and bool(np.any(np.abs(f_mask[use]) > 0)) and len(s2) >= 4 * _PER_PARAMETER
    mask = f_mask[use] if f_mask is not None and wet else np.zeros(len(s2), dtype=np.complex128)
    fit = _Fit(f_obs[use], f_calc[use], mask, s2, _forms(hkl[use], cell, tensors))
    knots, log_k, solvent = fit.start(wet)
    none = np.zeros(len(tensors))
    if len(s2) < 2 * _PER_PARAMETER:
        return Scales(cell, knots, log_k, None, (0.0, 0.0), tensors, none, none)
    room = len(s2) // _PER_PARAMETER - 4
    forms = min(tensors.shape[0], max(0, room)) // max(1, tensors.shape[0])  # all of them or none
    simple = fit.minimise(_Simple(fit, knots, forms), np.concatenate([log_k, solvent, np.zeros(len(tensors) * forms)]))
    aniso = simple[4:] if forms else none
    flat_scales = Scales(cell, knots, simple[:2], None, (simple[2], simple[3]), tensors, aniso, none)
    many = _knots(s2)
    if flat or len(many) < 3 or room < 2 * len(many) + 2 * len(tensors):
        return flat_scales
    shells = _Shells(fit, many, len(tensors))
    first = np.interp(many, knots, simple[:2])
    k_mask = simple[2] * np.exp(-simple[3] * many / 4)
    best = fit.minimise(shells, np.concatenate([first, k_mask[: shells.wet], aniso, none]))
    log_k, k_mask, aniso, quartic = shells.split(best)
    padded = np.concatenate([k_mask, np.zeros(len(many) - len(k_mask))])
    return Scales(cell, many, log_k, padded, (simple[2], simple[3]), tensors, aniso, quartic)


def _s2(hkl: NDArray, cell: gemmi.UnitCell) -> Floats:
    return np.asarray(cell.calculate_1_d2_array(np.asarray(hkl, dtype=np.int32)), dtype=np.float64)


def _forms(hkl: NDArray, cell: gemmi.UnitCell, tensors: Floats) -> Floats:
    """(n, t) values of s.T.s."""
    s = np.asarray(hkl) @ np.array(cell.frac.mat)
    return np.einsum("ni,kij,nj->nk", s, tensors, s, optimize=True)


def _knots(s2: Floats) -> Floats:
    """Knots over s^2, nearer to each other where reflections are few and change fastest: at low resolution."""
    n = len(s2)
    number = int(np.clip(n / _PER_KNOT, 2, _MOST_KNOTS))
    steps = np.arange(number + 1)
    place = np.maximum((n - 1) * (steps / number) ** 2, _LEAST_PER_KNOT * steps).astype(int)
    knots = np.unique(np.sort(s2)[np.minimum(place, n - 1)])
    return knots[np.concatenate([[True], np.diff(knots) > 1e-9])]


def _hats(s2: Floats, knots: Floats) -> Floats:
    """(n, k) piecewise linear functions that are 1 at one knot and 0 at the others."""
    return np.stack([np.interp(s2, knots, row) for row in np.eye(len(knots))], axis=1)


class _Fit:
    """Measured and calculated values of the work set, and the minimiser."""

    def __init__(self, f_obs: Floats, f_calc: NDArray, f_mask: NDArray, s2: Floats, forms: Floats) -> None:
        self.f_obs, self.f_calc, self.f_mask, self.s2, self.forms = f_obs, f_calc, f_mask, s2, forms

    def start(self, wet: bool) -> tuple[Floats, Floats, Floats]:
        """Knots (2,), ln k there and (k_sol, B_sol): the best of a few."""
        knots = np.array([0.0, max(float(self.s2.max()), 1e-6)])
        slope = self.s2 * (len(self.s2) >= _PER_PARAMETER)
        trials = [(0.0, USUAL_SOLVENT[1])] + [(k, b) for k in (0.2, 0.35, 0.5) for b in (25, 46, 80)] * wet
        best = (np.inf, np.zeros(2), np.zeros(2))
        for k_sol, b_sol in trials:
            model = np.abs(self.f_calc + k_sol * np.exp(-b_sol * self.s2 / 4) * self.f_mask) + 1e-9 * self.f_obs.mean()
            # the ratio as a Gaussian of s, strong reflections deciding
            weight = np.sqrt(self.f_obs)
            line = np.stack([np.ones_like(slope), slope], axis=1)
            a, b = np.linalg.lstsq(line * weight[:, None], np.log(self.f_obs / model) * weight, rcond=None)[0]
            loss = float(np.abs(self.f_obs - np.exp(a + b * self.s2) * model).sum())
            if loss < best[0]:
                best = (loss, np.array([a, a + b * knots[1]]), np.array([k_sol, b_sol]))
        return knots, best[1], best[2]

    def minimise(self, form: _Simple | _Shells, start: Floats) -> Floats:
        """Parameters of least sum |F_obs - |F_model||: reweighted Gauss-Newton, damped (Levenberg-Marquardt)."""
        p, damping = start, 1e-3
        model, jacobian = form.evaluate(p)
        residual = self.f_obs - model
        loss = np.abs(residual).sum()
        for _ in range(_CYCLES):
            # a median's share bounds the weights, so that no reflection is fitted exactly
            weight = 1 / np.maximum(np.abs(residual), 0.2 * np.median(np.abs(residual)) + 1e-12 * self.f_obs.mean())
            normal = (jacobian * weight[:, None]).T @ jacobian
            slope = jacobian.T @ (weight * residual)
            scale = np.diag(normal) + 1e-12 * np.trace(normal) + 1e-300
            for _ in range(8):
                new = form.bound(p + np.linalg.solve(normal + damping * np.diag(scale), slope))
                new_model, new_jacobian = form.evaluate(new)
                new_residual = self.f_obs - new_model
                new_loss = np.abs(new_residual).sum()
                if new_loss <= loss:
                    break
                damping *= 5
            else:
                break
            gain = loss - new_loss
            p, jacobian, residual, loss = new, new_jacobian, new_residual, new_loss
            damping = max(damping / 3, 1e-6)
            if gain < 1e-5 * loss:
                break
        return p

    def amplitudes(self, k_total: Floats, k_mask: Floats) -> tuple[Floats, Floats]:
        """|F_model| and its derivative with respect to k_mask."""
        total = self.f_calc + k_mask * self.f_mask
        size = np.maximum(np.abs(total), 1e-9 * np.abs(self.f_calc).mean())
        return k_total * size, k_total * (np.conj(total) * self.f_mask).real / size


class _Simple:
    """Parameters: ln k at two knots, k_sol, B_sol, and the anisotropic ones if ``forms`` is 1."""

    def __init__(self, fit: _Fit, knots: Floats, forms: int) -> None:
        self.fit, self.hats, self.forms = fit, _hats(fit.s2, knots), fit.forms[:, : fit.forms.shape[1] * forms]

    def evaluate(self, p: Floats) -> tuple[Floats, Floats]:
        """(n,) amplitudes and their Jacobian (n, parameters)."""
        fall = np.exp(-p[3] * self.fit.s2 / 4)
        model, by_mask = self.fit.amplitudes(np.exp(_clip(self.hats @ p[:2] + self.forms @ p[4:])), p[2] * fall)
        columns = [model[:, None] * self.hats, (by_mask * fall)[:, None]]
        columns += [(-by_mask * p[2] * fall * self.fit.s2 / 4)[:, None], model[:, None] * self.forms]
        return model, np.concatenate(columns, axis=1)

    def bound(self, p: Floats) -> Floats:
        p[2:4] = np.clip(p[2:4], 0, _MOST_SOLVENT)
        return p


class _Shells:
    """Parameters: ln k at the knots, k_mask at the first ``wet`` of them, anisotropic and quartic coefficients."""

    def __init__(self, fit: _Fit, knots: Floats, tensors: int) -> None:
        self.fit, self.hats, self.tensors = fit, _hats(fit.s2, knots), tensors
        self.wet = int((knots <= 1 / _MASK_D_MIN**2).sum()) if np.any(fit.f_mask) else 0

    def split(self, p: Floats) -> tuple[Floats, Floats, Floats, Floats]:
        k = self.hats.shape[1]
        log_k, k_mask, aniso, quartic = np.split(p, np.cumsum([k, self.wet, self.tensors]))
        return log_k, k_mask, aniso, quartic

    def evaluate(self, p: Floats) -> tuple[Floats, Floats]:
        """(n,) amplitudes and their Jacobian (n, parameters)."""
        log_k, mask, aniso, quartic = self.split(p)
        forms, wet, s2 = self.fit.forms, self.hats[:, : self.wet], self.fit.s2[:, None]
        exponent = self.hats @ log_k + forms @ aniso + (s2 * forms) @ quartic
        model, by_mask = self.fit.amplitudes(np.exp(_clip(exponent)), wet @ mask)
        column = model[:, None]
        return model, np.concatenate(
            [column * self.hats, by_mask[:, None] * wet, column * forms, column * s2 * forms], 1
        )

    def bound(self, p: Floats) -> Floats:
        k = self.hats.shape[1]
        p[k : k + self.wet] = np.clip(p[k : k + self.wet], 0, _MOST_SOLVENT[0])
        return p


def _clip(exponent: Floats) -> Floats:
    return np.clip(exponent, -100, 100)
