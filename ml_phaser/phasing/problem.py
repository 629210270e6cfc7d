"""The phase problem of one crystal on one grid: P1 expansion, what is known, what is held out to judge by."""

from __future__ import annotations

from dataclasses import dataclass

import gemmi
import numpy as np
from numpy.typing import NDArray

from ml_phaser import arrays
from ml_phaser.arrays import Array, Generator
from ml_phaser.crystal.grid import HalfSphere, grid_shape
from ml_phaser.crystal.symmetry import Expansion, expand
from ml_phaser.phasing.projections import Target, impose_amplitudes

PER_SHELL = 100  # unique reflections that one expected modulus is the mean of


@dataclass(frozen=True, eq=False)
class Problem:
    """A crystal ready for dual-space cycles.

    Attributes
    ----------
    hkl : (n, 3) unique reflections; amplitude : (n,) moduli to impose; held : (n,) bool, kept out of the projection
    cell, spacegroup, d_min : A
    expansion, places : from the unique reflections to P1 and on to the half-complex grid ``shape``
    target : moduli on the grid, r.m.s. density one; the reflections in ``held`` are not known to it, systematic
        absences are known to be zero
    judge_flat, judge_value, judge_weight : places of the held-out reflections on the grid, their E values, and the
        factors that turn moduli into E: without them the common fall-off with resolution would pass for agreement
    """

    hkl: NDArray[np.int32]
    amplitude: NDArray[np.float64]
    held: NDArray[np.bool_]
    cell: gemmi.UnitCell
    spacegroup: gemmi.SpaceGroup
    d_min: float
    shape: tuple[int, int, int]
    expansion: Expansion
    places: HalfSphere
    target: Target
    judge_flat: Array
    judge_value: Array
    judge_weight: Array

    @property
    def points(self) -> int:
        """Grid points in the cell."""
        return int(np.prod(self.shape))

    def scatter(self, f: NDArray[np.complex128]) -> Array:
        """Half-complex coefficients (1, u, v, w') of structure factors on ``hkl``."""
        half = self.places.scatter(self.expansion.spread(f)).astype(np.complex64)
        return arrays.beside(half[None], self.target.amplitude)

    def gather_p1(self, half: Array) -> NDArray[np.complex128]:
        """Structure factors (m,) on ``expansion.hkl`` of one half-complex array (u, v, w')."""
        return self.places.gather(arrays.to_numpy(half).astype(np.complex128), len(self.expansion.hkl))

    def random_starts(self, count: int, generator: Generator) -> Array:
        """Maps (count, u, v, w) with random phases, those of the seeds if there are any."""
        x = arrays.normal((count, *self.shape), generator)
        if arrays.is_torch(x):
            x = x.to(self.target.amplitude.device)
        return x if self.target.seeds is None else impose_amplitudes(x, self.target)

    def scores(self, half: Array) -> Array:
        """Correlation (B,) of calculated and measured E on the held-out reflections."""
        x = abs(half.reshape(len(half), -1)[:, self.judge_flat]) * self.judge_weight
        y = self.judge_value[None]
        x, y = x - x.mean(axis=1, keepdims=True), y - y.mean(axis=1, keepdims=True)
        return (x * y).sum(axis=1) / (((x**2).sum(axis=1) * (y**2).sum(axis=1)) ** 0.5).clip(min=1e-20)

    def residuals(self, half: Array) -> Array:
        """R = sum | |F| - k|Fc| | / sum |F| on the imposed reflections, k from least squares, (B,)."""
        known = self.target.known & (self.target.amplitude > 0)
        fo = self.target.amplitude[known][None]
        fc = abs(half).reshape(len(half), -1)[:, known.reshape(-1)]
        k = (fo * fc).sum(axis=1, keepdims=True) / (fc**2).sum(axis=1, keepdims=True).clip(min=1e-20)
        return abs(fo - k * fc).sum(axis=1) / fo.sum()


def choose_held_out(d: NDArray[np.float64], d_search: float, seed: int) -> NDArray[np.bool_]:
    """Reflections (n,) kept out of the projection: 5 % of the rest, and of those the search uses at least 60.

    Parameters
    ----------
    d : (n,) A; d_search : resolution limit of the search in A. Never more than 15 % of either part, nor 3000.
    """
    held = np.zeros(len(d), dtype=bool)
    rng = np.random.default_rng(seed)
    for part, fewest in ((np.flatnonzero(d >= d_search), 60), (np.flatnonzero(d < d_search), 0)):
        count = int(min(max(0.05 * len(part), fewest), 3000, 0.15 * len(part)))
        held[rng.choice(part, size=count, replace=False)] = True
    return held


def expected_moduli(
    sphere: NDArray[np.int32], hkl: NDArray[np.int32], amplitude: NDArray[np.float64], cell: gemmi.UnitCell,
    shape: tuple[int, int, int],
) -> NDArray[np.float32]:  # fmt: skip
    """R.m.s. of measured moduli (n,) at the resolution of every reflection of ``sphere`` (m, 3), on the half-complex
    grid; between shells of PER_SHELL linear in 1/d^2."""
    place = np.asarray(cell.calculate_1_d2_array(hkl))
    shells = np.array_split(np.argsort(place, kind="stable"), max(1, len(hkl) // PER_SHELL))
    middle = [place[s].mean() for s in shells]
    mean = [np.sqrt((amplitude[s] ** 2).mean()) for s in shells]
    here = np.interp(np.asarray(cell.calculate_1_d2_array(sphere)), middle, mean)
    return HalfSphere.of(sphere, shape).scatter(here).astype(np.float32)


def pose(
    hkl: NDArray[np.int32],
    amplitude: NDArray[np.float64],
    to_e: NDArray[np.float64],
    held: NDArray[np.bool_],
    cell: gemmi.UnitCell,
    spacegroup: gemmi.SpaceGroup,
    *,
    spacing: float,
    multiple: int = 2,
    place: str = "cpu",
) -> Problem:
    """Set up the phase problem of unique reflections ``hkl`` (n, 3).

    Parameters
    ----------
    amplitude : (n,) moduli to impose; to_e : (n,) factors that turn them into E values, to judge by
    spacing : largest grid spacing in A; multiple : every grid dimension is a multiple of it
    place : where the arrays are to be, a torch device or ``arrays.NUMPY``
    """
    d_min = float(cell.calculate_d_array(hkl).min()) * 0.99999
    shape = grid_shape(cell, d_min, spacing=spacing, multiple=multiple)
    expansion = expand(hkl, spacegroup)
    places = HalfSphere.of(expansion.hkl, shape)

    sphere = gemmi.make_miller_array(cell, gemmi.SpaceGroup("P 1"), d_min)
    absent = np.asarray(spacegroup.operations().systematic_absences(sphere), dtype=bool)
    inside = HalfSphere.of(sphere, shape).scatter(np.ones(len(sphere), dtype=bool))
    forbidden = HalfSphere.of(sphere[absent], shape).scatter(np.ones(int(absent.sum()), dtype=bool))

    moduli = expansion.spread(amplitude)
    unit = np.sqrt(np.prod(shape) / (2 * np.sum(moduli**2)))
    values = places.scatter(moduli * unit).astype(np.float32)
    known = places.scatter(~held[expansion.asu]) | forbidden
    judged = places.scatter(held[expansion.asu])

    def there(a: NDArray) -> Array:
        return arrays.put(a[None], place)

    flat = np.flatnonzero(judged)
    weights = places.scatter(expansion.spread(to_e)).astype(np.float32)
    return Problem(
        hkl, amplitude, held, cell, spacegroup, d_min, shape, expansion, places,
        Target(
            there(values), there(known), there(inside), there((weights * known).astype(np.float32)),
            most=there(expected_moduli(sphere, hkl, amplitude * unit, cell, shape)),
        ),
        arrays.put(flat, place), arrays.put((values * weights).reshape(-1)[flat], place),
        arrays.put(weights.reshape(-1)[flat], place),
    )  # fmt: skip
