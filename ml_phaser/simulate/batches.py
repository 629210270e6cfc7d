"""Endless batches of corrupted maps and their truth, made on the fly from a seed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import gemmi
import numpy as np
import torch
from numpy.typing import NDArray

from ml_phaser.crystal.grid import HalfSphere
from ml_phaser.networks.projector import condition
from ml_phaser.phasing.projections import Target, inverse, unit_variance
from ml_phaser.simulate import corrupt
from ml_phaser.simulate.crystals import Contents, dense_box, random_cell
from ml_phaser.simulate.fragments import ELEMENTS, Library
from ml_phaser.structure_factors.direct import structure_factors

SHAPES = ((24, 24, 24), (20, 24, 28), (28, 20, 24), (24, 28, 20), (20, 20, 32), (16, 28, 32))


@dataclass(frozen=True)
class Batch:
    """truth (B, u, v, w) unit-variance maps; start: half-complex coefficients (B, ...) with measured amplitudes and
    corrupted phases; target: amplitudes and masks; cond (B, 3) for the network; d_min (B,) A."""

    truth: torch.Tensor
    start: torch.Tensor
    target: Target
    cond: torch.Tensor
    d_min: torch.Tensor

    def to(self, device: torch.device | str) -> Batch:
        target = self.target.to(device)
        return Batch(self.truth.to(device), self.start.to(device), target, self.cond.to(device), self.d_min.to(device))

    def start_maps(self) -> torch.Tensor:
        """The corrupted maps, unit variance."""
        return unit_variance(inverse(self.start, self.truth.shape))


@dataclass(frozen=True)
class Recipe:
    """What a sample is drawn from; ``d_min`` and ``quality`` ranges, shares of the kinds of phase error."""

    d_min: tuple[float, float] = (1.25, 2.2)
    spacing: tuple[float, float] = (0.5, 0.66)
    quality: tuple[float, float] = (0.12, 0.99)
    noise: tuple[float, float] = (0.0, 0.08)
    kinds: tuple[tuple[str, float], ...] = (
        ("phase", 0.3), ("resolution", 0.15), ("additive", 0.35), ("partial", 0.2),
    )  # fmt: skip


def calculate(contents: Contents, hkl: NDArray, stol2: NDArray, rows: NDArray | slice, xyz: NDArray) -> NDArray:
    """Structure factors (n,) of the atoms ``rows`` of a box at fractional positions ``xyz``, in single precision."""

    def tensor(a: NDArray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(a, dtype=np.float32))

    f = structure_factors(
        tensor(hkl), tensor(stol2), tensor(xyz[rows]), torch.from_numpy(contents.element[rows]),
        tensor(contents.b[rows]), tensor(contents.occupancy[rows]), ELEMENTS,
    )  # fmt: skip
    return f.numpy().astype(np.complex128)


def resolution_profile(
    amplitude: NDArray[np.float64], stol2: NDArray[np.float64], known: NDArray[np.bool_], per_shell: int = 100
) -> NDArray[np.float64]:
    """Smooth r.m.s. amplitude (n,) at the resolution of each reflection, from those known: the divisor that makes E."""
    order = np.flatnonzero(known)[np.argsort(stol2[known])]
    parts = np.array_split(order, max(2, len(order) // per_shell))
    x = [stol2[p].mean() for p in parts]
    y = [np.sqrt(np.mean(amplitude[p] ** 2)) for p in parts]
    return np.interp(stol2, x, y)


def make_sample(
    rng: np.random.Generator, library: Library, shape: tuple[int, int, int], recipe: Recipe
) -> tuple[NDArray, NDArray, NDArray, NDArray, NDArray, NDArray, tuple[float, float, float]]:
    """Half-complex arrays of one crystal: truth, start, amplitude, known, inside, to_e; (d_min, spacing,
    completeness)."""
    while True:
        cell = random_cell(rng, shape, recipe.spacing)
        contents = dense_box(rng, library, cell)
        # Mostly as dense as real crystals; one in five keeps the voids of a protein surface.
        if len(contents.xyz) >= 25 and (cell.volume / len(contents.xyz) < 26 or rng.random() < 0.2):
            break
    steps = np.array([cell.a, cell.b, cell.c]) / np.array(shape)
    d_min = max(rng.uniform(*recipe.d_min), 2.03 * float(steps.max()))
    hkl = gemmi.make_miller_array(cell, gemmi.SpaceGroup("P 1"), d_min)
    stol2 = np.asarray(cell.calculate_1_d2_array(hkl)) / 4
    f = calculate(contents, hkl, stol2, slice(None), contents.xyz)

    kinds, shares = zip(*recipe.kinds, strict=True)
    kind = str(rng.choice(kinds, p=np.array(shares) / sum(shares)))
    quality = rng.uniform(*recipe.quality)
    if kind == "partial":
        kept, moved = corrupt.partial_structure(rng, contents.xyz, np.array(cell.orth.mat), rng.uniform(0.15, 0.95))
        wrong = calculate(contents, hkl, stol2, kept, moved)
    else:
        wrong = corrupt.noisy_phases(rng, f, stol2, quality, kind)
    known = corrupt.missing(rng, stol2)
    observed = corrupt.noisy_amplitudes(rng, f, stol2, rng.uniform(*recipe.noise)) * known
    start = observed * np.exp(1j * np.angle(wrong))

    places = HalfSphere.of(hkl, shape)
    to_e = known / resolution_profile(observed, stol2, known)
    n = float(np.prod(shape))
    # Unit variance of the measured map, orthonormal transform: sum over the full sphere of |F|^2 = number of points.
    unit = np.sqrt(n / (2 * np.sum(observed**2)))
    truth = places.scatter(f * np.sqrt(n / (2 * np.sum(np.abs(f) ** 2))))
    arrays = (
        truth.astype(np.complex64),
        places.scatter(start * unit).astype(np.complex64),
        places.scatter(observed * unit).astype(np.float32),
        places.scatter(known),
        places.scatter(np.ones(len(hkl), dtype=bool)),
        places.scatter(to_e / unit).astype(np.float32),
    )
    return (*arrays, (d_min, float(steps.mean()), float(known.mean())))


def batches(library: Library, size: int, seed: int, recipe: Recipe | None = None) -> Iterator[Batch]:
    """Batches of ``size`` crystals on one grid each; the same seed gives the same crystals."""
    recipe = recipe or Recipe()
    rng = np.random.default_rng(seed)
    while True:
        shape = SHAPES[rng.integers(len(SHAPES))]
        samples = [make_sample(rng, library, shape, recipe) for _ in range(size)]
        truth, start, amplitude, known, inside, to_e = (
            torch.from_numpy(np.stack([s[i] for s in samples])) for i in range(6)
        )
        facts = torch.tensor([s[6] for s in samples], dtype=torch.float32)
        target = Target(amplitude, known, inside, to_e)
        cond = condition(facts[:, 0], facts[:, 1], facts[:, 2])
        yield Batch(inverse(truth, shape), start, target, cond, facts[:, 0])
