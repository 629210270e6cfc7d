"""Least squares of free atoms: structure factors by direct summation, and steps towards given ones or their moduli.

Every step solves the linearised problem, damped, by conjugate gradients (Levenberg, Quart. Appl. Math. 2, 164 (1944);
Marquardt, J. SIAM 11, 431 (1963); in crystallography: Konnert, Acta Cryst. A32, 614 (1976)), so that waves, which take
longest, are calculated once a step. Real and imaginary parts are kept one below the other.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import gemmi
import numpy as np
from numpy.typing import NDArray

from ml_phaser.crystal.peaks import Atoms

SPREADS, TRUST = (0.3, 0.35), 0.02  # of logarithms of weights and of B, and what they count beside the data
FARTHEST, MOST_CHANGED = 0.4, 0.7  # A and logarithm: what one step may do
LIGHTEST, WIDEST = 0.02, 1.5  # weight, in usual ones; logarithm of B, from the usual, where atoms become background
DAMPING, LESS, MORE = 0.05, 0.3, 5.0  # share of the curvature, and by what it changes after good and bad steps
GRADIENTS = 6  # conjugate, a step
DONE = 1e-4  # relative gain of a step after which there is none

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]
Complexes = NDArray[np.complex128]


def stacked(f: Complexes) -> Singles:
    """Real parts (n,), then imaginary ones."""
    return np.concatenate([f.real, f.imag]).astype(np.float32)


def as_complex(parts: Singles) -> Complexes:
    n = len(parts) // 2
    return np.asarray(parts[:n] + 1j * parts[n:], dtype=np.complex128)


class Scattering:
    """Structure factors of atoms, weights in nitrogens, at reflections (n, 3).

    form : (n,) of a nitrogen at rest and its images by centring
    """

    def __init__(self, hkl: NDArray[np.int32], cell: gemmi.UnitCell, spacegroup: gemmi.SpaceGroup) -> None:
        group, index = spacegroup.operations(), hkl.astype(np.int64)
        self.turned: list[Singles] = [
            (2 * np.pi * (index @ (np.array(op.rot) // op.DEN))).astype(np.float32) for op in group.sym_ops
        ]
        tran = np.array([op.tran for op in group.sym_ops])
        self.shifts: list[Singles] = [
            (2 * np.pi * (index @ t % gemmi.Op.DEN / gemmi.Op.DEN)).astype(np.float32)[:, None] for t in tran
        ]
        self.stol2 = np.asarray(cell.calculate_1_d2_array(hkl)) / 4
        fine = np.linspace(0, float(self.stol2.max()), 200)
        nitrogen = gemmi.Element("N").it92
        self.form = np.interp(self.stol2, fine, [nitrogen.calculate_sf(float(s)) for s in fine])
        centring = np.array(group.cen_ops) / gemmi.Op.DEN  # images by centring scatter alike, or cancel
        self.form = self.form * np.cos(2 * np.pi * (index @ centring.T)).sum(axis=1).round()
        self.orth = np.array(cell.orth.mat.tolist())
        self.stol2_single, self.form_single = self.stol2.astype(np.float32), self.form.astype(np.float32)[:, None]

    def waves(self, frac: Floats, b: Floats) -> list[Singles]:
        """Of each operator, (2n, m): what every atom would give, were it a nitrogen."""
        n, x = len(self.stol2), (frac % 1.0).astype(np.float32).T
        size = np.exp(-self.stol2_single[:, None] * b.astype(np.float32))
        size *= self.form_single
        out = []
        for turned, shift in zip(self.turned, self.shifts, strict=True):
            phase = turned @ x
            phase += shift
            wave = np.empty((2, n, len(b)), dtype=np.float32)
            np.cos(phase, out=wave[0])
            np.sin(phase, out=wave[1])
            wave *= size
            out.append(wave.reshape(2 * n, len(b)))
        return out

    def at(self, atoms: Atoms) -> State:
        return State(self, atoms, self.waves(atoms.frac, atoms.b))

    def calculate(self, atoms: Atoms) -> Complexes:
        """Structure factors (n,)."""
        return self.at(atoms).f


@dataclass(frozen=True, eq=False)
class State:
    """Atoms, and the waves (2n, m) of each operator that they give."""

    scattering: Scattering
    atoms: Atoms
    waves: list[Singles]

    @cached_property
    def own(self) -> Singles:
        """Weights of single images."""
        return np.asarray(self.atoms.weight / self.atoms.images, dtype=np.float32)

    @cached_property
    def parts(self) -> Singles:
        """(2n,) structure factors."""
        return np.asarray(sum(wave @ self.own for wave in self.waves), dtype=np.float32)

    @cached_property
    def f(self) -> Complexes:
        return as_complex(self.parts)

    def of(self, rows: NDArray) -> State:
        """Of some of the atoms."""
        return State(self.scattering, self.atoms.take(rows), [wave[:, rows] for wave in self.waves])

    def joined(self, other: State) -> State:
        waves = [np.concatenate(pair, axis=1) for pair in zip(self.waves, other.waves, strict=True)]
        return State(self.scattering, self.atoms.joined(other.atoms), waves)

    # A change of the atoms is (m, 5): of the logarithm of weights, of fractional positions, of the logarithm of B; or,
    # without the last, (m, 4).

    @cached_property
    def rates(self) -> Singles:
        """(m, 5) what a change is multiplied by before waves are summed."""
        rates = np.repeat(self.own[:, None], 5, axis=1)
        rates[:, 1:4] *= (self.atoms.images == 1)[:, None]
        rates[:, 4] *= self.atoms.b
        return rates

    def forward(self, change: Singles) -> Singles:
        """(2n,) change of structure factors."""
        n, stol2 = len(self.scattering.stol2), self.scattering.stol2_single
        out = np.zeros((2, n), dtype=np.float32)
        k = change.shape[1]
        moved = change * self.rates[:, :k]
        for wave, turned in zip(self.waves, self.scattering.turned, strict=True):
            y = (wave @ moved).reshape(2, n, k)
            along = np.einsum("cnk,nk->cn", y[:, :, 1:4], turned)
            out += y[:, :, 0] - stol2 * y[:, :, 4] if k == 5 else y[:, :, 0]
            out[0] -= along[1]
            out[1] += along[0]
        return out.reshape(-1)

    def backward(self, residual: Singles, k: int = 5) -> Singles:
        """(m, k): the transpose of ``forward``, of (2n,)."""
        n, stol2 = len(self.scattering.stol2), self.scattering.stol2_single
        r = residual.reshape(2, n)
        against = np.empty((2, n, k), dtype=np.float32)
        against[:, :, 0] = r
        if k == 5:
            against[:, :, 4] = -stol2 * r
        out = np.zeros((len(self.atoms), k), dtype=np.float32)
        for wave, turned in zip(self.waves, self.scattering.turned, strict=True):
            np.multiply(turned, r[1][:, None], out=against[0, :, 1:4])
            np.multiply(turned, -r[0][:, None], out=against[1, :, 1:4])
            out += wave.T @ against.reshape(2 * n, k)
        return np.asarray(out * self.rates[:, :k], dtype=np.float32)

    @cached_property
    def curvature(self) -> Singles:
        """(m, 5) diagonal of ``backward`` after ``forward``, images taken as apart."""
        shop, n = self.scattering, len(self.scattering.stol2)
        wave = self.waves[0]
        size = wave[:n] ** 2 + wave[n:] ** 2
        of = np.empty((n, 5), dtype=np.float32)
        of[:, 0], of[:, 4] = len(shop.turned), len(shop.turned) * shop.stol2**2
        of[:, 1:4] = sum(turned**2 for turned in shop.turned)
        return np.asarray((size.T @ of) * self.rates**2, dtype=np.float32)


@dataclass(frozen=True, eq=False)
class Aim:
    """target (n,) structure factors, or those whose moduli matter unless ``phased``; unit, b : usual weight and B;
    spreads : of their logarithms; B stay as they are if theirs is 0"""

    target: Complexes
    phased: bool
    unit: float
    b: float
    spreads: tuple[float, float] = SPREADS

    @cached_property
    def size(self) -> float:
        return float(np.sum(np.abs(self.target) ** 2)) or 1.0

    @cached_property
    def trust(self) -> list[float]:
        """What squares of the logarithms of weights and of B, unless they stay, count."""
        return [TRUST * self.size / len(self.target) / spread**2 for spread in self.spreads if spread]

    def away(self, atoms: Atoms) -> tuple[Floats, Floats]:
        """Logarithms (m,) of weights and of B, in usual ones."""
        return np.log(atoms.weight / self.unit), np.log(atoms.b / self.b)

    def value(self, state: State) -> float:
        """What is to be small."""
        gone = np.abs(self.target) - np.abs(state.f) if not self.phased else np.abs(self.target - state.f)
        kept = sum(t * float(np.sum(x**2)) for t, x in zip(self.trust, self.away(state.atoms), strict=False))
        return float(np.sum(gone**2)) + kept

    def step(self, state: State, damping: float, gradients: int = GRADIENTS) -> Atoms:
        """The atoms after a damped step of so many conjugate gradients."""
        direction = None if self.phased else stacked(np.exp(1j * np.angle(state.f))).reshape(2, -1)

        def seen(parts: Singles) -> Singles:
            """What of a change of structure factors changes the moduli, if only they matter."""
            if direction is None:
                return parts
            return (direction * np.einsum("cn,cn->n", direction, parts.reshape(2, -1))).reshape(-1)

        target = stacked(self.target) if direction is None else (direction * np.abs(self.target)).reshape(-1)
        columns = 3 + len(self.trust)
        own = np.zeros((len(state.atoms), columns), dtype=np.float32)
        away = np.zeros_like(own)
        for k, trust, x in zip((0, 4), self.trust, self.away(state.atoms), strict=False):
            own[:, k], away[:, k] = trust, x
        curvature = state.curvature[:, :columns] * np.float32(1.0 if self.phased else 0.5)
        extra = own + np.float32(damping) * curvature
        scale = curvature + extra + np.float32(1e-20)
        gradient = state.backward(target - state.parts, columns) - own * away
        change, z = np.zeros_like(own), gradient / scale
        p, rz = z, float(np.vdot(gradient, z))
        for _ in range(gradients):
            q = state.backward(seen(state.forward(p)), columns) + extra * p
            curved = float(np.vdot(p, q))
            if curved <= 0 or rz <= 0:
                break
            change = change + np.float32(rz / curved) * p
            gradient = gradient - np.float32(rz / curved) * q
            z = gradient / scale
            rz, before = float(np.vdot(gradient, z)), rz
            p = z + np.float32(rz / before) * p
        return self.moved(state, change)

    def moved(self, state: State, change: Singles) -> Atoms:
        """The atoms after a change, none of it too large."""
        atoms, dx = state.atoms, change[:, 1:4].astype(float) * (state.atoms.images == 1)[:, None]
        far = np.linalg.norm(dx @ state.scattering.orth.T, axis=1)
        dx *= np.minimum(1.0, FARTHEST / np.maximum(far, 1e-9))[:, None]
        by = np.exp(np.clip(change[:, ::4].astype(float), -MOST_CHANGED, MOST_CHANGED)).T
        weight = np.maximum(atoms.weight * by[0], LIGHTEST * self.unit)
        b = np.clip(atoms.b * by[1], self.b / np.exp(WIDEST), self.b * np.exp(WIDEST)) if len(by) > 1 else atoms.b
        return replace(atoms, frac=(atoms.frac + dx) % 1.0, weight=weight, b=b)


def fitted(scattering: Scattering, atoms: Atoms, aim: Aim, steps: int, gradients: int = GRADIENTS) -> State:
    """Least squares: so many steps at most, of so many gradients each, none of which makes it worse."""
    now, damping = scattering.at(atoms), DAMPING
    value = aim.value(now)
    for _ in range(steps):
        new = scattering.at(aim.step(now, damping, gradients))
        gain = value - aim.value(new)
        damping *= LESS if gain > 0 else MORE
        if gain > 0:
            now, value = new, value - gain
            if gain < DONE * value:
                break
    return now
