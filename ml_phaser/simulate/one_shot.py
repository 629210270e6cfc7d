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

from ml_phaser.crystal.amino_acids import build_chain
from ml_phaser.crystal.peptide import ROTAMERS
from ml_phaser.errors import UserError
from ml_phaser.simulate.fragments import ATOMS, ELEMENTS, RESIDUES, Library
from ml_phaser.simulate.recipes import FIFTEEN_CELL, GROWTH, SHORTEST_CONTACT
from ml_phaser.structure_factors.form_factors import Scatterer, form_factors

B_FACTOR = 20.0  # A^2
MASS = (12.011, 14.007, 15.999, 32.06)  # of ELEMENTS
NOTHING = -1  # element of a place without an atom
SCATTERERS = tuple(Scatterer(e) for e in ELEMENTS)
STEPS = 200  # of growing a minimal cell


@dataclass(frozen=True)
class Family:
    """A data set: residues of a molecule, cut back to alanine or not, the cell's edges in A (None: as small as goes),
    and the papers' grid spacing in A."""

    residues: int
    alanine: bool
    edges: tuple[float, float, float] | None
    spacing: float


FAMILIES = {
    "dialanine-1a": Family(2, True, (20.0, 20.0, 20.0), 0.5),
    "dialanine-1b": Family(2, True, (10.0, 10.0, 10.0), 0.5),
    "dipeptide-12": Family(2, False, (12.0, 12.0, 12.0), 0.6),
    "dipeptide-minimal": Family(2, False, None, 0.5),
    "residues-15": Family(15, False, FIFTEEN_CELL, 0.5),
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
        self.aa = torch.from_numpy(r.aa[rows[:, None] + np.arange(family.residues)].astype(np.int64)).to(device)
        self.start = torch.from_numpy(_atoms(library, rows, family)).to(device)  # (n, m), NOTHING where there is none
        self.xyz = torch.from_numpy(library.xyz).to(device)
        self.element = torch.from_numpy(library.element.astype(np.int64)).to(device)
        clusters = library.cluster[chain]
        order = np.argsort(clusters, kind="stable")
        _, begin, count = np.unique(clusters[order], return_index=True, return_counts=True)
        self.order, self.begin, self.count = (torch.from_numpy(a).to(device) for a in (order, begin, count))

    def __len__(self) -> int:
        return len(self.aa)

    def draw(self, count: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Residues (count, J), coordinates (count, m, 3) in A about the centre of mass, randomly turned, elements
        (count, m), NOTHING where there is no atom."""
        chance = torch.rand(2, count, generator=generator, device=self.device, dtype=torch.float64)
        cluster = (chance[0] * len(self.begin)).long()
        which = self.order[self.begin[cluster] + (chance[1] * self.count[cluster]).long()]
        rows = self.start[which]
        there = rows >= 0
        element = torch.where(there, self.element[rows.clamp_min(0)], NOTHING)
        xyz = self.xyz[rows.clamp_min(0)]
        mass = torch.tensor(MASS, device=self.device)[element.clamp_min(0)] * there
        centre = (mass[..., None] * xyz).sum(1) / mass.sum(1, keepdim=True)
        turned = (xyz - centre[:, None]) @ rotations(count, generator, self.device)
        return self.aa[which], turned, element


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


def _atoms(library: Library, rows: NDArray[np.int64], family: Family) -> NDArray[np.int64]:
    """Atoms (n, m) of the molecules beginning with residues ``rows``, NOTHING behind the last."""
    begin = library.named.first
    if family.alanine:  # N, CA, C, O, CB come first in every residue
        each = begin[rows[:, None] + np.arange(family.residues)]
        return (each[:, :, None] + np.arange(5)).reshape(len(rows), -1)
    count = begin[rows + family.residues] - begin[rows]
    places = np.arange(int(count.max()))
    return np.where(places < count[:, None], begin[rows][:, None] + places, NOTHING)


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


IMAGES = torch.tensor([(i, j, k) for i in (-1, 0, 1) for j in (-1, 0, 1) for k in (-1, 0, 1) if (i, j, k) != (0, 0, 0)])


def contacts(xyz: torch.Tensor, there: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Shortest distance in A, (B, 26), of molecules (B, m, 3) to each of their neighbouring images in rectangular cells
    of edges ``lengths`` (B, 3); ``there`` (B, m): which atoms are."""
    images = IMAGES.to(xyz.device)
    apart = xyz[:, :, None] - xyz[:, None]  # (B, m, m, 3)
    blank = ~(there[:, :, None] & there[:, None])
    nearest = []
    for image in images:
        square = (apart + (image * lengths)[:, None, None]).pow(2).sum(-1)
        nearest.append(square.masked_fill(blank, torch.inf).flatten(1).amin(1))
    return torch.stack(nearest, dim=1).sqrt()


def minimal_cells(xyz: torch.Tensor, there: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Edges (B, 3) in A of the cells of ``recipes.minimal_cell``, and for which (B,) one was found."""
    low = xyz.masked_fill(~there[..., None], torch.inf).amin(1)
    high = xyz.masked_fill(~there[..., None], -torch.inf).amax(1)
    lengths = torch.ceil((high - low).clamp_min(1.0) / GROWTH) * GROWTH
    images = IMAGES.to(xyz)
    growing = torch.ones(len(xyz), dtype=torch.bool, device=xyz.device)
    for _ in range(STEPS):
        rows = growing.nonzero()[:, 0]
        if not len(rows):
            break
        distance = contacts(xyz[rows], there[rows], lengths[rows])
        short = distance.amin(1) < SHORTEST_CONTACT
        growing[rows[~short]] = False
        rows, worst = rows[short], images[distance[short].argmin(1)]
        axis = (worst.abs() * lengths[rows]).argmax(1)
        lengths[rows, axis] += GROWTH
    return lengths, ~growing


def longest_first(xyz: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Molecules (B, m, 3) and edges (B, 3) with the axes in the order of falling ``lengths``; no mirror images."""
    order = torch.argsort(-lengths, dim=1, stable=True)
    odd = torch.linalg.det(torch.eye(3, device=xyz.device)[order])
    swapped = torch.gather(xyz, 2, order[:, None].expand(-1, xyz.shape[1], -1))
    swapped[..., 2] *= odd[:, None]
    return swapped, torch.gather(lengths, 1, order)


def structure_factors(
    frac: torch.Tensor, element: torch.Tensor, lengths: torch.Tensor, shape: tuple[int, int, int], d_min: float
) -> torch.Tensor:
    """Half-complex coefficients (B, u, v, w // 2 + 1) of a map on a grid, as ``crystal.grid`` has them, 0 beyond d_min.

    A phase factor of a rectangular cell is a product of one for each axis, so that sums over atoms are products of
    matrices. F(000) is left out.

    Parameters
    ----------
    frac : (B, m, 3); element : (B, m) index into ELEMENTS, NOTHING where there is no atom; lengths : (B, 3) A
    """
    most = [min((n - 1) // 2, int(float(edge) / d_min)) for n, edge in zip(shape, lengths.amax(0), strict=True)]
    axes = [torch.arange(0 if i == 2 else -m, m + 1, device=frac.device) for i, m in enumerate(most)]
    waves = [
        torch.polar(torch.ones((), device=frac.device), -2 * torch.pi * frac[..., i, None] * axes[i]) for i in range(3)
    ]  # (B, m, h)
    h, k, l = torch.meshgrid(*axes, indexing="ij")  # noqa: E741
    index = torch.stack([h, k, l], dim=-1).reshape(1, -1, 3)
    stol2 = (index / lengths[:, None]).pow(2).sum(-1) / 4  # (B, n)
    factors = form_factors(SCATTERERS, stol2) * torch.exp(-B_FACTOR * stol2)[:, None]  # (B, elements, n)
    total = torch.zeros(stol2.shape, dtype=waves[0].dtype, device=frac.device)
    for e in range(len(ELEMENTS)):
        kind = element == e
        if bool(kind.any()):
            plane = (waves[0] * kind[..., None])[..., None] * waves[1][:, :, None]  # (B, m, h, k)
            total = total + factors[:, e] * (plane.flatten(2).mT @ waves[2]).flatten(1)
    total = total * ((stol2 > 0) & (4 * stol2 <= 1 / d_min**2))
    out = torch.zeros((len(frac), shape[0], shape[1], shape[2] // 2 + 1), dtype=total.dtype, device=frac.device)
    rows, columns = axes[0][:, None] % shape[0], axes[1] % shape[1]
    out[:, rows, columns, : most[2] + 1] = total.reshape(len(frac), *h.shape)
    return out


def to_map(half: torch.Tensor, shape: tuple[int, int, int]) -> torch.Tensor:
    """Maps of half-complex coefficients, orthonormal transform."""
    return torch.fft.irfftn(half, s=shape, dim=(-3, -2, -1), norm="ortho")


def standard_residues() -> tuple[torch.Tensor, torch.Tensor]:
    """Every residue of RESIDUES alone, extended, in its commonest rotamer: coordinates (20, m, 3) in A about the centre
    of mass, elements (20, m). Without the second oxygen of the carboxylate, as in a chain."""
    most = max(len(names) for names in ATOMS.values())
    xyz = torch.zeros(len(RESIDUES), most, 3)
    element = torch.full((len(RESIDUES), most), NOTHING)
    for i, letter in enumerate(RESIDUES):
        chain = build_chain(letter, [(-120.0, 130.0)], [ROTAMERS[letter][0]], [180.0])
        rows = [chain.names.index(name) for name in ATOMS[letter]]
        kinds = np.array([ELEMENTS.index(name[0]) for name in ATOMS[letter]])
        mass = np.array(MASS)[kinds]
        where = chain.xyz[rows]
        xyz[i, : len(rows)] = torch.from_numpy(where - mass @ where / mass.sum())
        element[i, : len(rows)] = torch.from_numpy(kinds)
    return xyz, element


def maps_of_parts(aa: torch.Tensor, lengths: torch.Tensor, shape: tuple[int, int, int], d_min: float) -> torch.Tensor:
    """Maps (B, J, u, v, w) of unit variance of residues ``aa`` (B, J), index into RESIDUES, each by itself in the
    standard conformation with its centre of mass at the centre of the cell."""
    xyz, element = (t.to(lengths.device) for t in standard_residues())
    b, j = aa.shape
    flat, edges = aa.flatten(), lengths.repeat_interleave(j, dim=0)
    half = structure_factors(xyz[flat] / edges[:, None] + 0.5, element[flat], edges, shape, d_min)
    return unit(half, shape)[1].reshape(b, j, *shape)


def unit(half: torch.Tensor, shape: tuple[int, int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Coefficients and maps scaled to unit variance; the mean is zero, as F(000) is left out."""
    rho = to_map(half, shape)
    size = rho.pow(2).mean(dim=(1, 2, 3), keepdim=True).sqrt().clamp_min(1e-12)
    return half / size, rho / size


def grid(lengths: torch.Tensor, recipe: OneShotRecipe) -> torch.Tensor:
    """Grid dimensions (B, 3): the multiple that makes the spacing ``recipe.spacing`` or less and holds all indices."""
    enough = torch.maximum(torch.ceil(lengths / recipe.spacing - 1e-4), 2 * torch.floor(lengths / recipe.d_min) + 1)
    return (torch.ceil(enough / recipe.multiple) * recipe.multiple).long()


def one_shot_batches(
    library: Library, size: int, seed: int, recipe: OneShotRecipe, device: torch.device | str = "cpu"
) -> Iterator[OneShotBatch]:
    """Endless batches of ``size`` crystals on one grid each; the same seed and device give the same crystals.

    Raises
    ------
    UserError
        for an unknown family, or a library without such molecules
    """
    family = FAMILIES.get(recipe.family)
    if family is None:
        raise UserError("no such family", f"family {recipe.family}", ", ".join(FAMILIES))
    molecules = Molecules(library, family, device)
    generator = torch.Generator(device=device).manual_seed(seed)
    waiting: dict[tuple[int, ...], list[tuple[torch.Tensor, ...]]] = defaultdict(list)
    drawn = size if family.edges is not None else 16 * size
    while True:
        aa, xyz, element = molecules.draw(drawn, generator)
        xyz, lengths, sound = _celled(xyz, element != NOTHING, family)
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
