"""The papers' data sets made by the thousand, in torch on any device: one molecule in a P1 cell, and its map.

The recipes are those of ``simulate.recipes`` (what they are, and what the papers leave open, is said there); this
is the same thing in batches, for training. Every molecule is turned at random, so none is seen twice. Differences: all
members of a batch share a grid, whose dimensions are multiples of what the network wants, so that its spacing is
``spacing`` or a little less; no hydrogen, B = 20 A^2, no noise, all reflections, as in the papers.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ml_phaser.crystal.residues import RESIDUES
from ml_phaser.errors import UserError
from ml_phaser.simulate.fragments import Library
from ml_phaser.simulate.one_shot_cells import contacts, longest_first, minimal_cells
from ml_phaser.simulate.recipes import FIFTEEN_CELL, SHORTEST_CONTACT, TRIES
from ml_phaser.structure_factors.boxes import MASS, NOTHING, ROUNDING, maps_of_parts, structure_factors, unit


@dataclass(frozen=True)
class Family:
    """A data set: residues of a molecule, cut back to alanine or not, the cell's edges in A (None: minimal)."""

    residues: int
    alanine: bool
    edges: tuple[float, float, float] | None


FAMILIES = {
    "dialanine-1a": Family(2, True, (20.0, 20.0, 20.0)),
    "dialanine-1b": Family(2, True, (10.0, 10.0, 10.0)),
    "dipeptide-12": Family(2, False, (12.0, 12.0, 12.0)),
    "dipeptide-minimal": Family(2, False, None),
    "residues-15": Family(15, False, FIFTEEN_CELL),
}


@dataclass(frozen=True)
class OneShotRecipe:
    """What to make: ``family`` of FAMILIES; d_min in A; spacing in A; multiple of all grid dimensions; parts : maps of
    the residues by themselves too."""

    family: str = "dipeptide-minimal"
    d_min: float = 1.5
    spacing: float = 0.5
    multiple: int = 4
    parts: bool = False


@dataclass(frozen=True, eq=False)
class OneShotBatch:
    """truth (B, u, v, w): density of zero mean and unit variance; half (B, u, v, w // 2 + 1): its coefficients, which
    are 0 beyond d_min, orthonormal; parts (B, J, u, v, w): each residue in a standard conformation at the cell's
    centre, unit variance; lengths (B, 3): edges in A."""

    truth: torch.Tensor
    half: torch.Tensor
    parts: torch.Tensor
    lengths: torch.Tensor


class Molecules:
    """All molecules of a family that a library holds, to draw from at random: first a sequence cluster, then one of its
    members, so that large families do not dominate."""

    def __init__(self, library: Library, family: Family, device: torch.device | str = "cpu") -> None:
        """Raises UserError where there is none."""
        chain, first = _places(library, family)
        if not len(first):
            raise UserError("holds no such molecules", "the coordinates", "other coordinates, or another family")
        r = library.named
        rows = r.start[chain] + first  # of the first residue, among all
        self.family, self.device = family, device
        self.most = int((r.first[rows + family.residues] - r.first[rows]).max())
        self.rows, self.first = torch.from_numpy(rows).to(device), torch.from_numpy(r.first).to(device)
        self.aa = torch.from_numpy(r.aa.astype(np.int64)).to(device)
        self.xyz = torch.from_numpy(library.xyz).to(device)
        self.element = torch.from_numpy(library.element.astype(np.int64)).to(device)
        clusters = library.cluster[chain]
        order = np.argsort(clusters, kind="stable")
        _, begin, count = np.unique(clusters[order], return_index=True, return_counts=True)
        self.order, self.begin, self.count = (torch.from_numpy(a).to(device) for a in (order, begin, count))

    def __len__(self) -> int:
        return len(self.rows)

    def draw(self, count: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Residues (count, J), coordinates (count, m, 3) in A about the centre of mass, randomly turned, elements
        (count, m), NOTHING where there is no atom."""
        chance = torch.rand(2, count, generator=generator, device=self.device, dtype=torch.float64)
        cluster = (chance[0] * len(self.begin)).long()
        which = self.order[self.begin[cluster] + (chance[1] * self.count[cluster]).long()]
        residues = self.rows[which, None] + torch.arange(self.family.residues, device=self.device)
        atoms, there = self._atoms(residues)
        element = torch.where(there, self.element[atoms], NOTHING)
        xyz = self.xyz[atoms]
        mass = torch.tensor(MASS, device=self.device)[element.clamp_min(0)] * there
        centre = (mass[..., None] * xyz).sum(1) / mass.sum(1, keepdim=True)
        turned = (xyz - centre[:, None]) @ rotations(count, generator, self.device)
        return self.aa[residues], turned, element

    def _atoms(self, residues: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Atoms (count, m) of molecules of ``residues`` (count, J), and which there are of the ``m``."""
        if self.family.alanine:  # N, CA, C, O, CB come first in every residue
            atoms = (self.first[residues][:, :, None] + torch.arange(5, device=self.device)).flatten(1)
            return atoms, torch.ones_like(atoms, dtype=torch.bool)
        atoms = self.first[residues[:, :1]] + torch.arange(self.most, device=self.device)
        there = atoms < self.first[residues[:, -1:] + 1]
        return torch.where(there, atoms, 0), there


def _places(library: Library, family: Family) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Chain and position of every complete stretch of residues; dialanine is made of any but glycine."""
    chains, firsts = [], []
    r = library.named
    for i in range(len(library)):
        first = library.complete(i, family.residues)
        if family.alanine:
            glycine = r.aa[r.start[i] + first[:, None] + np.arange(family.residues)] == RESIDUES.index("G")
            first = first[~glycine.any(axis=1)]
        chains.append(np.full(len(first), i))
        firsts.append(first)
    return np.concatenate(chains), np.concatenate(firsts)


def rotations(count: int, generator: torch.Generator, device: torch.device | str) -> torch.Tensor:
    """Uniformly random rotations (count, 3, 3), from unit quaternions (Shoemake, 1992)."""
    q = torch.nn.functional.normalize(torch.randn(count, 4, generator=generator, device=device), dim=1)
    w, x, y, z = q.unbind(1)
    rows = (
        1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w),
        2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w),
        2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y),
    )  # fmt: skip
    return torch.stack(rows, dim=1).reshape(count, 3, 3)


def grid(lengths: torch.Tensor, recipe: OneShotRecipe) -> torch.Tensor:
    """Grid dimensions (B, 3): the multiple that makes the spacing ``recipe.spacing`` or less and holds all indices."""
    enough = torch.maximum(
        torch.ceil(lengths / recipe.spacing - 1e-4), 2 * torch.floor(ROUNDING * lengths / recipe.d_min) + 1
    )
    return (torch.ceil(enough / recipe.multiple) * recipe.multiple).long()


def one_shot_batches(
    library: Library, size: int, seed: int, recipe: OneShotRecipe, device: torch.device | str = "cpu"
) -> Iterator[OneShotBatch]:
    """Endless batches of ``size`` crystals on one grid each; the same seed and device give the same crystals.

    Raises
    ------
    UserError
        for an unknown family, a library without such molecules, or without any that fits its cell
    """
    family = FAMILIES.get(recipe.family)
    if family is None:
        raise UserError("no such family", f"family {recipe.family}", ", ".join(FAMILIES))
    molecules = Molecules(library, family, device)
    generator = torch.Generator(device=device).manual_seed(seed)
    waiting: dict[tuple[int, ...], list[tuple[torch.Tensor, ...]]] = defaultdict(list)
    drawn = size if family.edges is not None else 16 * size
    misses = 0
    while True:
        aa, xyz, element = molecules.draw(drawn, generator)
        xyz, lengths, sound = _celled(xyz, element != NOTHING, family)
        misses = 0 if bool(sound.any()) else misses + drawn
        if misses >= TRIES:
            raise UserError("no molecule fits without clashes", f"family {recipe.family}", "other coordinates")
        shapes = grid(lengths, recipe)
        for shape in torch.unique(shapes[sound], dim=0):
            rows = (sound & (shapes == shape).all(dim=1)).nonzero()[:, 0]
            key = tuple(shape.tolist())
            waiting[key].append((aa[rows], xyz[rows], element[rows], lengths[rows]))
            while sum(len(group[0]) for group in waiting[key]) >= size:
                joined = [torch.cat(column) for column in zip(*waiting[key], strict=True)]
                waiting[key] = [tuple(column[size:] for column in joined)]
                yield on_grid(*(column[:size] for column in joined), shape=key, recipe=recipe)


def _celled(xyz: torch.Tensor, there: torch.Tensor, family: Family) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Molecules in their cells: coordinates about the centre, edges, and which have no contact that is too short."""
    if family.edges is None:
        lengths, sound = minimal_cells(xyz, there)
        return (*longest_first(xyz, lengths), sound)
    lengths = torch.tensor(family.edges, device=xyz.device).expand(len(xyz), 3)
    if len(set(family.edges)) > 1:
        low = xyz.masked_fill(~there[..., None], torch.inf).amin(1)
        extent = xyz.masked_fill(~there[..., None], -torch.inf).amax(1) - low
        xyz, _ = longest_first(xyz, extent)
    return xyz, lengths, contacts(xyz, there, lengths).amin(1) >= SHORTEST_CONTACT


def on_grid(
    aa: torch.Tensor, xyz: torch.Tensor, element: torch.Tensor, lengths: torch.Tensor, *, shape: tuple[int, ...],
    recipe: OneShotRecipe,
) -> OneShotBatch:  # fmt: skip
    """A batch of molecules in their cells.

    Parameters
    ----------
    aa : (B, J) index into RESIDUES; xyz : (B, m, 3) in A from the cell's centre; element : (B, m) index into ELEMENTS,
        NOTHING where there is no atom; lengths : (B, 3) edges in A; shape : of the grid
    """
    u, v, w = shape
    half, truth = unit(
        structure_factors(xyz / lengths[:, None] + 0.5, element, lengths, (u, v, w), recipe.d_min), (u, v, w)
    )
    parts = truth.new_zeros((len(aa), 0, u, v, w))
    if recipe.parts:
        parts = maps_of_parts(aa, lengths, (u, v, w), recipe.d_min)
    return OneShotBatch(truth, half, parts, lengths)
