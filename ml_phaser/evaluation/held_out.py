"""Crystals cut from held-out entries, and starts of known error, to judge a density projection on."""

from __future__ import annotations

from dataclasses import dataclass

import gemmi
import numpy as np
import torch
from numpy.typing import NDArray

from ml_phaser.crystal.grid import HalfSphere
from ml_phaser.networks.config import condition
from ml_phaser.phasing.projections import Target
from ml_phaser.simulate import corrupt
from ml_phaser.simulate.batches import SHAPES, WIDE, calculate, resolution_profile, true_factors
from ml_phaser.simulate.crystals import Contents, dense_box, random_cell, wet_box
from ml_phaser.simulate.fragments import Library

MATES = 2  # neighbours share a grid: projected together, small batches stay in a processor's cache
TOLERANCE = 0.02  # of the correlation of a start with the truth


@dataclass(frozen=True, eq=False)
class Crystal:
    """A crystal of known structure on its grid.

    f : (n,) true structure factors on ``hkl``; contents : its atoms; places : of ``hkl`` on the grid
    d_min : A
    """

    hkl: NDArray[np.int32]
    stol2: NDArray[np.float64]
    f: NDArray[np.complex128]
    contents: Contents
    places: HalfSphere
    d_min: float

    def half(self, f: NDArray) -> torch.Tensor:
        """Half-complex coefficients (1, u, v, w') of structure factors, in units that give the true map variance 1."""
        unit = np.sqrt(np.prod(self.places.shape) / (2 * np.sum(np.abs(self.f) ** 2)))
        values = self.places.scatter(f * unit)
        return torch.from_numpy(values.astype(np.complex64 if np.iscomplexobj(values) else np.float32))[None]

    @property
    def target(self) -> Target:
        everything = torch.from_numpy(self.places.scatter(np.ones(len(self.hkl), dtype=bool)))[None]
        profile = self.half(resolution_profile(np.abs(self.f), self.stol2, np.ones(len(self.f), dtype=bool)))
        to_e = torch.where(everything, 1 / profile.clamp_min(1e-6), 0)
        return Target(self.half(np.abs(self.f)), everything, everything, to_e)

    @property
    def cond(self) -> torch.Tensor:
        one = torch.ones(1)
        steps = np.array(self.contents.cell.orth.mat) / np.array(self.places.shape)
        return condition(one * self.d_min, torch.from_numpy(steps).float()[None], one)


def make_crystal(
    rng: np.random.Generator, library: Library, shape: tuple[int, int, int], d_min: float, spacing: tuple[float, float],
    wet: bool = False,
) -> Crystal:  # fmt: skip
    """A box with less than 26 A^3 per atom, or a ``wet`` one, partly solvent, and all reflections to ``d_min``, without
    measurement errors."""
    while True:
        cell = random_cell(rng, shape, spacing)
        contents = wet_box(rng, library, cell) if wet else dense_box(rng, library, cell)
        if wet or (len(contents.xyz) >= 25 and cell.volume / len(contents.xyz) < 26):
            break
    hkl = gemmi.make_miller_array(cell, gemmi.SpaceGroup("P 1"), d_min)
    stol2 = np.asarray(cell.calculate_1_d2_array(hkl)) / 4
    return Crystal(hkl, stol2, true_factors(contents, hkl, stol2), contents, HalfSphere.of(hkl, shape), d_min)


def held_out_crystals(library: Library, d_min: float, count: int, seed: int, wet: bool = False) -> list[Crystal]:
    """Fixed crystals: the same seed gives the same ones. Every grid holds the whole sphere to ``d_min`` (A)."""
    rng = np.random.default_rng([seed, round(1000 * d_min)])
    spacing = (0.5, min(0.66, d_min / 2.03))
    shapes = WIDE if wet else SHAPES
    return [make_crystal(rng, library, shapes[i // MATES % len(shapes)], d_min, spacing, wet) for i in range(count)]


def start_correlation(f: NDArray[np.complex128], start: NDArray[np.complex128]) -> float:
    """Correlation over the cell of two maps given by structure factors."""
    return float((f * start.conj()).real.sum() / np.sqrt((np.abs(f) ** 2).sum() * (np.abs(start) ** 2).sum()))


def start_at(rng: np.random.Generator, crystal: Crystal, level: float, kind: str) -> NDArray[np.complex128]:
    """True moduli with wrong phases, (n,), whose map correlates with the truth by ``level`` within TOLERANCE."""
    quality = level
    best = crystal.f
    for _ in range(100):
        start = corrupt.noisy_phases(rng, crystal.f, crystal.stol2, quality, kind)
        reached = start_correlation(crystal.f, start)
        if abs(reached - level) < abs(start_correlation(crystal.f, best) - level):
            best = start
        if abs(reached - level) <= TOLERANCE:
            return start
        quality = float(np.clip(quality + 0.5 * (level - reached), 0.02, 0.995))
    return best


def partial_model(rng: np.random.Generator, crystal: Crystal, fraction: float) -> NDArray[np.complex128]:
    """Structure factors (n,) of a contiguous part of the atoms, misplaced as in training."""
    contents = crystal.contents
    kept, moved = corrupt.partial_structure(rng, contents.xyz, np.array(contents.cell.orth.mat), fraction)
    return calculate(contents, crystal.hkl, crystal.stol2, kept, moved)


def phased_by(crystal: Crystal, model: NDArray[np.complex128]) -> NDArray[np.complex128]:
    """True moduli with the phases of a model, (n,)."""
    return np.abs(crystal.f) * np.exp(1j * np.angle(model))
