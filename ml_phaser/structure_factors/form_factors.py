"""Atomic scattering factors: sums of five Gaussians of s^2 plus anomalous terms, from gemmi's tables."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from itertools import combinations, product

import gemmi
import numpy as np
import torch
from numpy.typing import NDArray

from ml_phaser.errors import UserError

EV_ANGSTROM = 12398.419843320026  # photon energy x wavelength


@dataclass(frozen=True)
class Scatterer:
    """A kind of atom.

    name : element, or ion as in "Fe3+" (X-rays only; an ion the table lacks counts as neutral)
    f_prime, f_double_prime : anomalous terms f' and f'', electrons
    table : "xray" (International Tables C, 1992, 6.1.1.4) or "electron" (ibid., 4.3.2.2, in A)
    """

    name: str
    f_prime: float = 0.0
    f_double_prime: float = 0.0
    table: str = "xray"


@cache
def gaussians(scatterer: Scatterer) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Heights a (5) and widths b (5, A^2) of f0(s) = sum a exp(-b s^2 / 4), s = 1/d; a constant has b = 0.

    Raises
    ------
    UserError
        for an element that the table does not hold
    """
    parts = re.fullmatch(r"([A-Za-z]{1,2})(?:(\d*)([+-]))?", scatterer.name)
    element = gemmi.Element(parts[1] if parts else "X")
    if parts and element.atomic_number and scatterer.table == "electron" and (electron := element.c4322):
        return tuple(electron.a), tuple(electron.b)
    if parts and element.atomic_number and scatterer.table == "xray":
        charge = int(parts[3] + (parts[2] or "1")) if parts[3] else 0
        if xray := _ion(element, charge) or element.it92:
            return (*xray.a, xray.c), (*xray.b, 0.0)
    raise UserError(f"no {scatterer.table} scattering factor for {scatterer.name!r}", hint="name an element")


def _ion(element: gemmi.Element, charge: int) -> gemmi.IT92Coef | None:
    ignored = gemmi.IT92_get_ignore_charge()  # a switch of the whole process
    gemmi.IT92_set_ignore_charge(False)
    try:
        return gemmi.IT92_get_exact(element, charge)
    finally:
        gemmi.IT92_set_ignore_charge(ignored)


@cache
def coefficients(scatterers: tuple[Scatterer, ...]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """``gaussians`` of several scatterers: heights and widths, (scatterers, 5) each."""
    pairs = [gaussians(s) for s in scatterers]
    return np.array([p[0] for p in pairs]).reshape(-1, 5), np.array([p[1] for p in pairs]).reshape(-1, 5)


def form_factors(scatterers: tuple[Scatterer, ...], stol2: torch.Tensor) -> torch.Tensor:
    """f0(s) + f' of each scatterer, (..., scatterers, n), for (sin theta / lambda)^2 in 1/A^2, (..., n)."""
    a, b = (torch.as_tensor(c).to(stol2) for c in coefficients(scatterers))
    f = stol2.new_tensor([s.f_prime for s in scatterers])[:, None]
    for i in range(a.shape[1]):
        f = f + a[:, i, None] * torch.exp(-b[:, i, None] * stol2[..., None, :])
    return f


WIDTHS = np.array([-3, -1.5, 0, 1.5, 3, 4.5, 6, 8, 10, 13, 16, 20, 25, 32])  # A^2, where ``ratio`` starts
RATIO_TERMS = 4
CANCELLING = 8  # largest sum of |heights| over the ratio itself


@cache
def ratio(
    scatterer: Scatterer, reference: Scatterer, s_max: float, tolerance: float
) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """The ratio of two scattering factors f0 + f' as sum a exp(-b s^2 / 4), for s up to ``s_max`` (1/A).

    Heights a by least squares; widths b by trying all sets of ``WIDTHS``, then shifting the best while its largest
    error falls.

    Returns
    -------
    a, b : one to four each, as few as keep the error below ``tolerance`` of the larger factor at every s, and of
        those the narrowest; or None
    """
    if scatterer == reference:
        return (1.0,), (0.0,)
    s2 = np.linspace(0, s_max, 30) ** 2
    own, other = form_factors((scatterer, reference), torch.from_numpy(s2 / 4)).numpy()
    if np.abs(other).min() < 0.02 * np.abs(other).max():
        return None
    scale = np.minimum(1, np.abs(other) / np.maximum(np.abs(own), 1e-9))
    target = own / other * scale

    def judge(widths: NDArray[np.float64]) -> tuple[float, NDArray[np.float64], NDArray[np.float64]]:
        """Of sets of widths (k, r) the narrowest that will do, or the best: its largest error, widths and heights."""
        waves = np.exp(-widths[:, :, None] * s2 / 4) * scale
        gram = waves @ waves.transpose(0, 2, 1) + 1e-8 * np.eye(widths.shape[1])
        heights = np.linalg.solve(gram, (waves @ target)[..., None])[..., 0]
        error = np.abs(np.einsum("kr,krs->ks", heights, waves) - target).max(axis=1)
        error[np.abs(heights).sum(axis=1) > CANCELLING * np.abs(own[0] / other[0])] = np.inf
        will_do = error < tolerance
        i = int(np.argmin(np.where(will_do, widths.max(axis=1), np.inf) if will_do.any() else error))
        return float(error[i]), widths[i], heights[i]

    for terms in range(1, RATIO_TERMS + 1):
        best = judge(np.array(list(combinations(WIDTHS, terms))))
        moves, step = np.array(list(product((-1.0, 0.0, 1.0), repeat=terms))), 1.0
        for _ in range(8 if best[0] > tolerance else 0):
            trial = judge(np.maximum(best[1] + moves * step * (1 + np.abs(best[1]) / 8), WIDTHS[0]))
            best, step = (trial, step) if trial[0] < best[0] else (best, step / 2)
        if best[0] < tolerance:
            return tuple(best[2].tolist()), tuple(best[1].tolist())
    return None


def anomalous(element: str, wavelength: float) -> tuple[float, float]:
    """f' and f'' of an element at a wavelength in A (Cromer & Liberman 1981, as gemmi computes them)."""
    z = gemmi.Element(element).atomic_number
    if not 0.1 < wavelength < 10:
        raise UserError(f"no anomalous scattering factors for a wavelength of {wavelength} A", hint="0.1 to 10 A")
    return gemmi.cromer_liberman(z=z, energy=EV_ANGSTROM / wavelength)
