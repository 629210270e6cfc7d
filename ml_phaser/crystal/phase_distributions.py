"""What is known of each phase, as a distribution over the circle.

Hendrickson-Lattman coefficients (Acta Cryst. B26, 136, 1970) hold it all: P(phi) is proportional to

    exp(A cos phi + B sin phi + C cos 2 phi + D sin 2 phi).

A phase with a figure of merit m is A + iB = X exp(i phi) with I1(X)/I0(X) = m, or tanh X = m where symmetry leaves two
values; C and D make it bimodal, as a single isomorphous derivative does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import i0e, i1e

Floats = NDArray[np.float64]

MOST = 0.999  # figure of merit; exact phases would need infinite coefficients
STEPS = 120  # of the circle, in sums over it
CHUNK = 20_000  # reflections summed at once
BIN_STEPS = 96  # of a bin of the circle, in sums over it
EDGE = 1e-6  # of a bin: a restricted phase so little below a border is on it
LARGEST = 700.0  # coefficient beyond which a phase is exact in any case


def concentration(fom: Floats, centric: NDArray[np.bool_]) -> Floats:
    """X (n,) with I1(X)/I0(X) = fom, or tanh X = fom where centric; figures of merit above MOST count as MOST."""
    fom = np.clip(fom, 0.0, MOST)
    grid = np.concatenate([np.linspace(0, 3, 400), np.geomspace(3.01, 600, 600)])
    return np.asarray(np.where(centric, np.arctanh(fom), np.interp(fom, i1e(grid) / i0e(grid), grid)))


def hendrickson_lattman(phase: Floats, fom: Floats, centric: NDArray[np.bool_]) -> Floats:
    """(n, 4) coefficients of phases in radians with figures of merit 0-1: A = X cos phi, B = X sin phi, C = D = 0."""
    x = concentration(fom, centric)
    return np.stack([x * np.cos(phase), x * np.sin(phase), 0 * x, 0 * x], axis=1)


@dataclass(frozen=True, eq=False)
class PhaseDistributions:
    """Distributions of the phases of n unique reflections.

    hl : (n, 4) Hendrickson-Lattman coefficients, all zero where nothing is known
    turn : (n,) complex, as ``Expansion.turn``: exp(2 i phi) where symmetry restricts the phase to phi or phi + pi,
        else 0
    """

    hl: Floats
    turn: NDArray[np.complex128]

    def of(self, rows: NDArray[np.int64]) -> PhaseDistributions:
        """Those of some reflections."""
        return PhaseDistributions(self.hl[rows], self.turn[rows])

    @property
    def given(self) -> NDArray[np.bool_]:
        """(n,) where anything is known."""
        return np.any(self.hl != 0, axis=1)

    def centroid(self) -> NDArray[np.complex128]:
        """(n,) mean of exp(i phi): its modulus is the figure of merit, its phase the best one (Blow & Crick 1959)."""
        axis, x = self._restricted()
        out = np.where(self.turn == 0, 0, axis * np.tanh(x))
        for rows, angles, weight in self._circles():
            out[rows] = weight @ np.exp(1j * angles)
        return out

    def draw(self, rng: np.random.Generator) -> NDArray[np.complex128]:
        """(n,) exp(i phi), each phase drawn from its distribution: uniform where nothing is known."""
        axis, x = self._restricted()
        up = rng.random(len(x)) < (1 + np.tanh(x)) / 2
        out = np.where(up, axis, -axis)
        for rows, angles, weight in self._circles():
            reached = np.cumsum(weight, axis=1)
            step = (reached < rng.random((len(rows), 1))).sum(axis=1).clip(max=STEPS - 1)
            out[rows] = np.exp(1j * (angles[step] + (rng.random(len(rows)) - 0.5) * (2 * np.pi / STEPS)))
        return out

    def _restricted(self) -> tuple[NDArray[np.complex128], Floats]:
        """One permitted exp(i phi) (n,) where restricted, and half the log-odds of it."""
        axis = np.exp(0.5j * np.angle(self.turn))
        return axis, self.hl[:, 0] * axis.real + self.hl[:, 1] * axis.imag

    def _circles(self) -> Iterator[tuple[NDArray[np.intp], Floats, Floats]]:
        """Rows of unrestricted phases, the angles (STEPS,), and the distributions over them, in chunks."""
        angles: Floats = np.linspace(0, 2 * np.pi, STEPS, endpoint=False)
        basis = np.stack([np.cos(angles), np.sin(angles), np.cos(2 * angles), np.sin(2 * angles)])
        free = np.flatnonzero(self.turn == 0)
        for first in range(0, len(free), CHUNK):
            rows = free[first : first + CHUNK]
            log = self.hl[rows] @ basis
            weight = np.exp(log - log.max(axis=1, keepdims=True))
            yield rows, angles, np.asarray(weight / weight.sum(axis=1, keepdims=True))


def restricted(hl: Floats, turn: NDArray[np.complex128]) -> Floats:
    """(n, 4) coefficients with what symmetry forbids taken away: of a restricted phase only its two values differ."""
    axis = np.exp(0.5j * np.angle(turn))
    x = hl[:, 0] * axis.real + hl[:, 1] * axis.imag
    along = np.stack([x * axis.real, x * axis.imag, 0 * x, 0 * x], axis=1)
    return np.asarray(np.where((turn == 0)[:, None], hl, along))


def bin_probabilities(hl: Floats, centric: NDArray[np.bool_], bins: int) -> Floats:
    """Probability that each phase lies in each of ``bins`` equal parts of the circle, the first from 0 radians on.

    The integral of P(phi) over the part. A restricted phase has two values, that of A + iB and the opposite one, with
    exp(X) / (2 cosh X) and exp(-X) / (2 cosh X) for X = |A + iB|; one on a border belongs to the part above it.

    Parameters
    ----------
    hl : (n, 4) Hendrickson-Lattman coefficients; centric : (n,) bool, where symmetry restricts the phase; bins : >= 2

    Returns
    -------
    (n, bins), each row with the sum 1
    """
    out = np.zeros((len(hl), bins))
    x, axis = np.hypot(hl[:, 0], hl[:, 1]), np.arctan2(hl[:, 1], hl[:, 0])
    for value, share in ((axis, (1 + np.tanh(x)) / 2), (axis + np.pi, (1 - np.tanh(x)) / 2)):
        rows = np.flatnonzero(centric)
        out[rows, bin_of(value[rows], bins)] += share[rows]
    angles = (np.arange(bins * BIN_STEPS) + 0.5) * (2 * np.pi / (bins * BIN_STEPS))
    basis = np.stack([np.cos(angles), np.sin(angles), np.cos(2 * angles), np.sin(2 * angles)])
    free = np.flatnonzero(~centric)
    for first in range(0, len(free), CHUNK // 4):
        rows = free[first : first + CHUNK // 4]
        log = hl[rows] @ basis
        weight = np.exp(log - log.max(axis=1, keepdims=True)).reshape(len(rows), bins, BIN_STEPS).sum(axis=2)
        out[rows] = weight / weight.sum(axis=1, keepdims=True)
    return out


def bin_of(phase: Floats, bins: int) -> NDArray[np.int64]:
    """(n,) which of ``bins`` equal parts of the circle, from 0 radians on, phases (n,) lie in: 0 to bins - 1."""
    return (np.floor(phase / (2 * np.pi / bins) + EDGE) % bins).astype(np.int64)
