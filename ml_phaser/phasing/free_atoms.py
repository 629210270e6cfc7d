"""Free atoms: a solution as atoms without bonds or names, refined against the measured amplitudes alone.

Peaks of the map become atoms of unknown weight; least squares moves them, sets their weights and displacements, first
to the phased structure factors, which resolves what the map does not, then to the moduli; those that fade are removed
and difference maps give new ones (peak list recycling: Sheldrick & Gould, Acta Cryst. B51, 423 (1995); least squares to
complete a structure: Sheldrick, Acta Cryst. A64, 112 (2008)). docs/decisions/0024-free-atoms.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import gemmi
import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from ml_phaser.crystal.grid import HalfSphere, grid_shape
from ml_phaser.crystal.peaks import Atoms, Images, peaks
from ml_phaser.crystal.symmetry import Expansion, expand

APART = 0.8  # A: nearer peaks are one atom
SHARP_B = 4.0  # A^2 of the map that peaks are first taken from; of difference maps two more
VOLUME = 13.0  # A^3 for an atom: there are never more
HIGH = 0.35  # of a usual atom: lowest peak that becomes an atom;
FAINT = (0.3, 0.5)  # lowest weight of one that stays, at first and at last
WEIGHT_SPREAD, B_SPREAD, TRUST = 0.3, 0.35, 0.02  # of logarithms, and what they count beside the data
WIDEST = 1.5  # change of a logarithm in one minimisation
PHASED_ROUNDS, ROUNDS = 3, 10  # to phased structure factors, to moduli
CYCLES = 25  # of minimisation a round
PATIENCE, STILL = 2, 0.005  # rounds without so much gain, relative, after which atoms rest
PARAMETERS = 4  # of an atom
B_RANGE = (1.0, 30.0)  # A^2
TRIES, MOST_TRIES, LEFT_OUT = 12, 3, 0.3
GRID = 0.3  # A, or a quarter of the resolution

Floats = NDArray[np.float64]
Complexes = NDArray[np.complex128]


@dataclass(frozen=True, eq=False)
class Moduli:
    """What atoms are refined against.

    hkl (n, 3) unique; f (n,) measured moduli; used (n,) bool; b : A^2, overall
    """

    hkl: NDArray[np.int32]
    f: Floats
    used: NDArray[np.bool_]
    cell: gemmi.UnitCell
    spacegroup: gemmi.SpaceGroup
    b: float


@dataclass(frozen=True, eq=False)
class Refined:
    """atoms; f (n,) their structure factors on the scale of the data they were refined against.

    r : R of the reflections used; worth : the same over the share of them that is left when every parameter has had its
    own, lower is better (after generalised cross-validation: Golub, Heath & Wahba, Technometrics 21, 215, 1979)
    """

    atoms: Atoms
    f: Complexes
    r: float = 1.0
    worth: float = math.inf


class Scattering:
    """Structure factors of atoms and their derivatives by direct summation."""

    def __init__(self, data: Moduli, rows: NDArray) -> None:
        operations = list(data.spacegroup.operations())
        hkl = data.hkl[rows].astype(np.int64)
        self.turned = [hkl @ (np.array(op.rot) // op.DEN) for op in operations]
        shifts = [2 * np.pi * (hkl @ (np.array(op.tran) / op.DEN)) for op in operations]
        self.shifts = [np.exp(1j * s).astype(np.complex64) for s in shifts]
        self.stol2 = np.asarray(data.cell.calculate_1_d2_array(data.hkl[rows])) / 4
        fine = np.linspace(0, float(self.stol2.max()), 200)
        nitrogen = gemmi.Element("N").it92
        self.form = np.interp(self.stol2, fine, [nitrogen.calculate_sf(float(s)) for s in fine])

    def waves(self, frac: Floats, turn: int) -> NDArray[np.complex64]:
        """exp(2 pi i h.(R x + t)), (n, m), from tables along the axes."""
        h, product = self.turned[turn], None
        for axis in range(3):
            most = int(np.abs(h[:, axis]).max())
            table = np.exp(2j * np.pi * np.arange(-most, most + 1)[:, None] * frac[:, axis]).astype(np.complex64)
            factor = table[h[:, axis] + most]
            product = factor if product is None else product * factor
        assert product is not None
        return np.asarray(product * self.shifts[turn][:, None])

    def profiles(self, b: Floats) -> NDArray[np.float32]:
        """Scattering (n, m) of a nitrogen of displacement ``b`` (m,)."""
        return np.asarray((self.form[:, None] * np.exp(-self.stol2[:, None] * b)), dtype=np.float32)

    def parts(self, atoms: Atoms) -> list[NDArray[np.complex64]]:
        """Of each operator, the structure factors (n, m) of every atom, were it a nitrogen."""
        size = self.profiles(atoms.b)
        return [self.waves(atoms.frac, g) * size for g in range(len(self.turned))]

    def calculate(self, atoms: Atoms, parts: list[NDArray[np.complex64]] | None = None) -> Complexes:
        """Structure factors (n,)."""
        own = (atoms.weight / atoms.images).astype(np.float32)
        return np.asarray(sum(part @ own for part in parts or self.parts(atoms)), dtype=np.complex128)

    def derivatives(
        self, atoms: Atoms, residual: Complexes, parts: list[NDArray[np.complex64]]
    ) -> tuple[Floats, Floats, Floats]:
        """Of sum |F - target|^2, by positions (m, 3), weights (m,), displacements (m,); ``residual`` is F - target."""
        against, own = np.conj(residual).astype(np.complex64)[:, None], atoms.weight / atoms.images
        by_x, by_w, by_b = np.zeros((len(atoms), 3)), np.zeros(len(atoms)), np.zeros(len(atoms))
        for h, part in zip(self.turned, parts, strict=True):
            t = against * part
            by_x -= 2 * own[:, None] * (t.imag.T @ (2 * np.pi * h).astype(np.float32))
            by_w += 2 * t.real.sum(axis=0) / atoms.images
            by_b -= 2 * own * (self.stol2.astype(np.float32) @ t.real)
        return by_x, by_w, by_b


def minimised(
    scattering: Scattering, atoms: Atoms, target: Complexes, *, phased: bool, cycles: int, unit: float, b: float,
    edges: Floats,
) -> Atoms:  # fmt: skip
    """Least squares to structure factors ``target`` (n,), or to their moduli unless ``phased``.

    Logarithms of weights and displacements keep near those of ``unit`` and ``b``. edges (3,) : of the cell, A
    """
    m, modulus = len(atoms), np.abs(target)
    size = float(np.sum(modulus**2))
    steps = np.concatenate([np.tile(0.3 / edges, m), np.full(m, 0.3), np.full(m, 0.3)])
    log_w, log_b = np.log(np.maximum(atoms.weight / unit, 0.05)), np.log(np.maximum(atoms.b, 0.5) / b)
    start = np.concatenate([atoms.frac.ravel(), log_w, log_b])
    general = np.repeat(atoms.images == 1, 3)

    def unpacked(p: Floats) -> tuple[Atoms, Floats, Floats]:
        lw, lb = p[3 * m : 4 * m], p[4 * m :]
        return replace(atoms, frac=p[: 3 * m].reshape(m, 3), weight=unit * np.exp(lw), b=b * np.exp(lb)), lw, lb

    def loss(z: Floats) -> tuple[float, Floats]:
        now, lw, lb = unpacked(start + z * steps)
        parts = scattering.parts(now)
        f = scattering.calculate(now, parts)
        residual = f - target if phased else f - modulus * np.exp(1j * np.angle(f))
        by_x, by_w, by_b = scattering.derivatives(now, residual, parts)
        trust = TRUST / len(target)
        value = float(np.sum(np.abs(residual) ** 2)) / size
        value += trust * float(np.sum((lw / WEIGHT_SPREAD) ** 2) + np.sum((lb / B_SPREAD) ** 2))
        slope = np.concatenate(
            [
                by_x.ravel() * general / size,
                by_w * now.weight / size + 2 * trust * lw / WEIGHT_SPREAD**2,
                by_b * now.b / size + 2 * trust * lb / B_SPREAD**2,
            ]
        )
        return value, slope * steps

    far = np.concatenate([np.full(3 * m, np.inf), np.full(2 * m, WIDEST / 0.3)])
    bounds = np.stack([-far, far], axis=1)
    found = minimize(
        loss, np.zeros(len(start)), jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": cycles}
    )
    best, _, _ = unpacked(start + found.x * steps)
    return replace(best, frac=best.frac % 1.0)


def r_factor(f: Complexes, modulus: Floats) -> float:
    """R of calculated and measured moduli, their scale by least squares."""
    fc = np.abs(f)
    k = np.sum(fc * modulus) / max(1e-20, float(np.sum(fc**2)))
    return float(np.sum(np.abs(k * fc - modulus)) / np.sum(modulus))


@dataclass(frozen=True, eq=False)
class Mapper:
    """Maps whose peaks are measured in usual atoms."""

    data: Moduli
    expansion: Expansion
    images: Images
    stol2: Floats
    form: Floats

    @classmethod
    def of(cls, data: Moduli) -> Mapper:
        stol2 = np.asarray(data.cell.calculate_1_d2_array(data.hkl)) / 4
        nitrogen = gemmi.Element("N").it92
        form = np.array([nitrogen.calculate_sf(float(s)) for s in stol2])
        return cls(data, expand(data.hkl, data.spacegroup), Images(data.cell, data.spacegroup), stol2, form)

    def peaks(self, f: Complexes, sharp: float, least: float) -> tuple[Floats, Floats]:
        """Positions and heights, in nitrogens, of peaks of structure factors (n,), B brought to ``sharp``; no two of
        them one atom."""
        data, stol2 = self.data, self.stol2
        d_min = 0.5 / float(np.sqrt(stol2.max()))
        gain = np.exp((data.b - sharp) * stol2)
        shape = grid_shape(data.cell, d_min * 0.99999, spacing=min(d_min / 4, GRID), multiple=2)
        half = HalfSphere.of(self.expansion.hkl, shape).scatter(self.expansion.spread(f * gain))
        rho = np.fft.irfftn(half, s=shape, axes=(0, 1, 2)) * np.prod(shape)
        form = self.form * np.exp(-sharp * stol2)
        one = 2 * float(np.sum(form[self.expansion.asu]))
        x, height = peaks(rho, least * one)
        x, height = x[: 4 * self.most], height[: 4 * self.most]
        rows = self.images.thin(x, APART)
        return x[rows], height[rows] / one

    @property
    def most(self) -> int:
        """Atoms that the asymmetric unit has room for."""
        return max(3, int(self.data.cell.volume / VOLUME / len(self.images.rotations)))

    def settled(self, atoms: Atoms, faint: float) -> Atoms:
        """The atoms, heaviest first, without those lighter than ``faint`` and those that have become one; in special
        positions where they are near."""
        atoms = atoms.take(np.argsort(-atoms.weight, kind="stable"))
        atoms = atoms.take(np.flatnonzero(atoms.weight > faint))
        frac, images = self.images.settle(atoms.frac, APART / 2)
        atoms = replace(atoms, frac=frac, images=images)
        return atoms.take(self.images.thin(atoms.frac, APART))

    def grown(self, atoms: Atoms, f: Complexes, sharp: float, unit: float) -> Atoms:
        """With new ones where structure factors (n,), of what is missing, have peaks apart from all. ``unit`` : weight
        of a usual atom"""
        x, height = self.peaks(f, sharp, HIGH * unit)
        if len(atoms):
            free = self.images.distances(x, atoms.frac).min(axis=1, initial=np.inf) > APART
            x, height = x[free], height[free]
        x, height = x[: max(0, self.most - len(atoms))], height[: max(0, self.most - len(atoms))]
        x, images = self.images.settle(x, APART / 2)
        return Atoms(
            np.concatenate([atoms.frac, x]),
            np.concatenate([atoms.weight, np.clip(height, FAINT[1] * unit, None)]),
            np.concatenate([atoms.b, np.full(len(x), self.data.b)]),
            np.concatenate([atoms.images, images]),
        )


NONE = Atoms(np.zeros((0, 3)), np.zeros(0), np.zeros(0), np.zeros(0, dtype=np.int64))


def usual(weight: Floats) -> float:
    """Weight of a usual atom: of those that are as heavy or heavier have half of all weight. A few heavy atoms do not
    move it, nor do many that are no atoms, which are light."""
    order = np.sort(weight)[::-1]
    return float(order[np.searchsorted(np.cumsum(order), order.sum() / 2)])


@dataclass(eq=False)
class Workshop:
    """Data and what refines atoms against them; unit : weight of a usual atom, which follows the atoms as B does."""

    data: Moduli
    unit: float = 1.0

    def __post_init__(self) -> None:
        self.mapper = Mapper.of(self.data)
        self.every = Scattering(self.data, np.arange(len(self.data.hkl)))
        self.fitted = Scattering(self.data, np.flatnonzero(self.data.used))
        self.edges = np.array(self.data.cell.parameters[:3])

    def fit(self, atoms: Atoms, target: Complexes, *, phased: bool) -> Refined:
        """After minimisation to structure factors (n,) or their moduli."""
        used, data = self.data.used, self.data
        atoms = minimised(
            self.fitted, atoms, target[used], phased=phased, cycles=CYCLES, unit=self.unit, b=data.b, edges=self.edges
        )
        f = self.every.calculate(atoms)
        r = r_factor(f[used], data.f[used])
        left = 1 - PARAMETERS * len(atoms) / max(1, int(used.sum()))
        return Refined(atoms, f, r, r / left if left > 0.05 else math.inf)

    def weeded(self, atoms: Atoms, faint: float) -> Atoms:
        """The atoms without the faint and the doubled; a usual one is what it is among them now."""
        self.unit = float(np.clip(usual(atoms.weight), 0.02, 50.0))
        self.data = replace(self.data, b=float(np.clip(np.median(atoms.b), *B_RANGE)))
        self.mapper = replace(self.mapper, data=self.data)
        return self.mapper.settled(atoms, faint * self.unit)

    def from_phases(self, phases: Floats) -> Refined:
        """Atoms fitted to the moduli used with ``phases`` (n,)."""
        used, turn = self.data.used, np.exp(1j * phases)
        _, height = self.mapper.peaks(used * self.data.f * turn, SHARP_B, 0.0)
        now = Refined(NONE, np.zeros(len(used), dtype=np.complex128))
        if not len(height) or not self.data.f.any():
            return now
        self.data = replace(self.data, f=self.data.f / usual(height[: self.mapper.most // 2 + 1]))
        self.mapper = replace(self.mapper, data=self.data)
        target = self.data.f * turn
        for k in range(PHASED_ROUNDS):
            atoms = self.mapper.grown(now.atoms, used * (target - now.f), SHARP_B + 2 * (k > 0), self.unit)
            if not len(atoms):
                break
            atoms = self.weeded(self.fit(atoms, target, phased=True).atoms, FAINT[0])
            now = Refined(atoms, self.every.calculate(atoms))
        return now

    def rest(self, atoms: Atoms, rounds: int = ROUNDS) -> Refined:
        """Atoms refined against moduli, completed and weeded until they rest, in so many rounds at most."""
        best, waiting, used = Refined(atoms, np.zeros(len(self.data.hkl), dtype=np.complex128)), 0, self.data.used
        for turn in range(rounds):
            if not len(atoms):
                break
            now = self.fit(atoms, self.data.f.astype(np.complex128), phased=False)
            waiting = 0 if now.worth < best.worth * (1 - STILL) else waiting + 1
            best = min(best, now, key=lambda x: x.worth)
            if waiting == PATIENCE:
                break
            atoms = self.weeded(now.atoms, float(np.interp(turn, (0, ROUNDS - 2), FAINT)))
            f = self.every.calculate(atoms)
            missing = used * 2 * (self.data.f - np.abs(f)) * np.exp(1j * np.angle(f))
            atoms = self.mapper.grown(atoms, missing, SHARP_B + 2, self.unit)
        return best


def refine_atoms(data: Moduli, phases: Floats, *, tries: int = TRIES, seed: int = 0) -> Refined:
    """Atoms from the map of ``phases`` (n,) in radians and the moduli used, refined until they rest; then part of them
    is left out and the rest completed anew, and again, as long as that helps.

    Parameters
    ----------
    tries : how often in vain, and no more than MOST_TRIES times as often in all; seed : of what is left out
    """
    workshop, rng = Workshop(data), np.random.default_rng(seed)
    best, vain = workshop.rest(workshop.from_phases(phases).atoms), 0
    for _ in range(MOST_TRIES * tries):
        kept = best.atoms.take(np.flatnonzero(rng.random(len(best.atoms)) > LEFT_OUT))
        found = workshop.rest(kept)
        vain = 0 if found.worth < best.worth * (1 - STILL) else vain + 1
        best = min(best, found, key=lambda x: x.worth)
        if vain == tries:
            break
    return best
