"""Packed crystals kept for a while, so that training can draw from families that take a second to make."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import permutations
from typing import Any

import gemmi
import numpy as np
from numpy.typing import NDArray

from ml_phaser.crystal.residues import ELEMENTS
from ml_phaser.errors import UserError
from ml_phaser.simulate.crystals import Contents, cut_box, random_cell, varied_b
from ml_phaser.simulate.families import make
from ml_phaser.simulate.fragments import Library
from ml_phaser.simulate.simulated import Simulated

SIZE = 24  # crystals kept
USES = 40  # times one is drawn from before another takes its place
RADIUS = 20.0  # A of a crystal about a random atom, to cut a box from
SETTINGS: Mapping[str, tuple[str, Mapping[str, Any]]] = {  # what is drawn from: the family it is made by, and how
    "peptide": ("peptide", {"d_min": 3.0, "starts": 2}),
    "small": ("peptide", {"d_min": 3.0, "starts": 2, "residues": (0.5, 6.49), "spacegroup": "P 1"}),
    "protein": ("protein", {"d_min": 8.0, "starts": 1, "residues": (30.0, 150.0)}),
}


@dataclass(eq=False)
class Pool:
    """Crystals of a kind (of SETTINGS), made as they are needed and replaced when they have served; repeatable by its
    seed."""

    family: str
    library: Library
    seed: int
    made: int = 0
    crystals: list[Simulated] = field(default_factory=list)
    uses: list[int] = field(default_factory=list)

    def _new(self) -> Simulated:
        family, settings = SETTINGS[self.family]
        while True:
            self.made += 1
            number = int(np.random.SeedSequence([self.seed, self.made]).generate_state(1)[0])
            try:
                return make(family, number, self.library, **settings)
            except UserError:  # a molecule that would not pack
                continue

    def _pick(self, rng: np.random.Generator) -> Simulated:
        """One of SIZE; the pool fills as it is drawn from."""
        k = int(rng.integers(SIZE))
        if k >= len(self.crystals):
            self.crystals.append(self._new())
            self.uses.append(0)
            k = len(self.crystals) - 1
        elif self.uses[k] >= USES:
            self.crystals[k], self.uses[k] = self._new(), 0
        self.uses[k] += 1
        return self.crystals[k]

    def draw(self, rng: np.random.Generator, shape: tuple[int, int, int], spacing: tuple[float, float]) -> Contents:
        """Contents of a P1 cell on a grid: the whole crystal where its cell fits, else a piece of it, repeated."""
        crystal = self._pick(rng)
        fitting = fits(crystal.cell, shape, spacing)
        if fitting is not None:
            return whole(rng, crystal, fitting)
        xyz, element, b = surroundings(rng, crystal)
        return cut_box(rng, xyz, element, b, random_cell(rng, shape, spacing), self.family)


def fits(
    cell: gemmi.UnitCell, shape: tuple[int, int, int], spacing: tuple[float, float]
) -> tuple[int, int, int] | None:
    """An even order of the axes in which grid points lie as far apart as ``spacing`` (A) allows; None if there is
    none."""
    for a, b, c in permutations(range(3)):
        steps = np.array(cell.parameters[:3])[[a, b, c]] / np.array(shape)
        even = np.linalg.det(np.eye(3)[[a, b, c]]) > 0  # the others would make mirror images
        if even and steps.min() >= spacing[0] and steps.max() <= spacing[1]:
            return a, b, c
    return None


def whole(rng: np.random.Generator, crystal: Simulated, order: tuple[int, int, int]) -> Contents:
    """All atoms of the cell, axes in another order, random origin and B factors."""
    parameters = crystal.cell.parameters
    cell = gemmi.UnitCell(*(parameters[k] for k in order), *(parameters[3 + k] for k in order))
    images, element = _images(crystal)
    dry, wet = ~np.tile(crystal.sites.water, crystal.order), np.tile(crystal.sites.water, crystal.order)
    xyz = np.concatenate([images[dry], images[wet]])[:, list(order)]
    element = np.concatenate([element[dry], element[wet]])
    spread = np.tile(crystal.sites.b[~crystal.sites.water], crystal.order)
    b = varied_b(rng, spread, int(wet.sum()))
    return Contents(cell, (xyz + rng.random(3)) % 1.0, element, b, np.ones(len(xyz)), int(dry.sum()), crystal.family)


def surroundings(rng: np.random.Generator, crystal: Simulated) -> tuple[NDArray, NDArray, NDArray]:
    """Atoms (n, 3) in A about a random one, their elements and B factors, RADIUS far and through all contacts."""
    images, element = _images(crystal)
    orth = np.array(crystal.cell.orth.mat)
    centre = crystal.sites.xyz[rng.integers(len(crystal.sites))]
    near = (images - centre) - np.round(images - centre)
    reach = np.ceil(RADIUS * np.linalg.norm(np.linalg.inv(orth), axis=1) + 0.5).astype(int)
    lattice = np.stack(np.meshgrid(*[np.arange(-r, r + 1) for r in reach], indexing="ij"), axis=-1).reshape(-1, 3)
    xyz = (near + lattice[:, None]) @ orth.T
    k, j = np.nonzero(np.einsum("kna,kna->kn", xyz, xyz) < RADIUS**2)
    return xyz[k, j], element[j], np.tile(crystal.sites.b, crystal.order)[j]


def _images(crystal: Simulated) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Fractional positions of all atoms of the cell and their elements."""
    ops = [(np.array(op.rot) / op.DEN, np.array(op.tran) / op.DEN) for op in crystal.spacegroup.operations()]
    images = np.concatenate([crystal.sites.xyz @ r.T + t for r, t in ops])
    return images, np.tile([ELEMENTS.index(e) for e in crystal.sites.element], crystal.order)
