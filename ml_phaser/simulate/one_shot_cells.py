"""Cells around molecules, in batches: contacts with the neighbouring images, minimal cells, the order of the axes."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ml_phaser.simulate.recipes import GROWTH, SHORTEST_CONTACT

STEPS = 200  # of growing a minimal cell
# Of the 26 neighbouring images one of each pair: atoms i and j, and j and i in the other one, are as far apart.
IMAGES = tuple(
    (i, j, k) for i in (-1, 0, 1) for j in (-1, 0, 1) for k in (-1, 0, 1) if (i, j, k) > (0, 0, 0)
)  # fmt: skip


def _apart(
    xyz: torch.Tensor, there: torch.Tensor, lengths: torch.Tensor
) -> Iterator[tuple[tuple[int, int, int], torch.Tensor]]:
    """Each of IMAGES with the squared distances (B, m, m) in A^2 to it, infinite where either atom is not there."""
    both = there[:, :, None] & there[:, None]
    along = []
    for axis in range(3):
        apart = (xyz[:, :, None, axis] - xyz[:, None, :, axis]).masked_fill(~both, torch.inf)
        along.append([(apart + i * lengths[:, axis, None, None]).pow(2) for i in (0, 1, -1)])
    for i, j, k in IMAGES:
        yield (i, j, k), along[0][i] + along[1][j] + along[2][k]


def contacts(xyz: torch.Tensor, there: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Shortest distance in A, (B, 13), of molecules (B, m, 3) to each of IMAGES in rectangular cells of edges
    ``lengths`` (B, 3); ``there`` (B, m): which atoms are."""
    return torch.stack([square.flatten(1).amin(1) for _, square in _apart(xyz, there, lengths)], dim=1).sqrt()


def _close_pairs(
    xyz: torch.Tensor, there: torch.Tensor, lengths: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Pairs of atoms that are too close: differences (B, k, 3) in A without the translation, infinite where a molecule
    has fewer than k, and images (B, k, 3)."""
    found = []
    for image, square in _apart(xyz, there, lengths):
        row, i, j = (square < SHORTEST_CONTACT**2).nonzero(as_tuple=True)
        found.append((row, xyz[row, i] - xyz[row, j], xyz.new_tensor(image).expand(len(row), 3)))
    row, apart, images = (torch.cat(column) for column in zip(*found, strict=True))
    order = torch.argsort(row, stable=True)
    row, count = row[order], torch.bincount(row, minlength=len(xyz))
    place = torch.arange(len(row), device=xyz.device) - (count.cumsum(0) - count)[row]
    shape = (len(xyz), max(1, int(count.max())), 3)
    out = xyz.new_full(shape, torch.inf), xyz.new_zeros(shape)
    out[0][row, place], out[1][row, place] = apart[order], images[order]
    return out


def minimal_cells(xyz: torch.Tensor, there: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Edges (B, 3) in A of the cells of ``recipes.minimal_cell``, and for which (B,) one was found.

    No edge is ever shorter than the molecule, so that growing only parts it from its images: pairs of atoms that are
    far enough apart at first need not be looked at again.
    """
    exact = xyz.double()
    low = exact.masked_fill(~there[..., None], torch.inf).amin(1)
    high = exact.masked_fill(~there[..., None], -torch.inf).amax(1)
    steps = torch.ceil((high - low).clamp_min(1.0) / GROWTH)
    apart, images = _close_pairs(exact, there, steps * GROWTH)
    rows = torch.arange(len(xyz), device=xyz.device)
    growing = torch.ones(len(xyz), dtype=torch.bool, device=xyz.device)
    for _ in range(STEPS):
        nearest, worst = (apart + images * (steps * GROWTH)[:, None]).pow(2).sum(-1).min(1)
        growing = nearest < SHORTEST_CONTACT**2
        if not bool(growing.any()):
            break
        axis = (images[rows, worst].abs() * steps).argmax(1)
        steps[rows, axis] += growing.to(steps)
    return (steps * GROWTH).to(xyz), ~growing


def longest_first(xyz: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Molecules (B, m, 3) and edges (B, 3) with the axes in the order of falling ``lengths``; no mirror images."""
    order = torch.argsort(-lengths, dim=1, stable=True)
    odd = torch.linalg.det(torch.eye(3, device=xyz.device)[order])
    swapped = torch.gather(xyz, 2, order[:, None].expand(-1, xyz.shape[1], -1))
    swapped[..., 2] *= odd[:, None]
    return swapped, torch.gather(lengths, 1, order)
