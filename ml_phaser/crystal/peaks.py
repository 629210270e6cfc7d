"""Peaks of a periodic map, the atoms they are, and which of them are one."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import gemmi
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Atoms:
    """m atoms of the asymmetric unit. frac (m, 3); weight (m,) in nitrogens; b (m,) A^2; images (m,) by symmetry that
    are the atom itself, 1 in general positions"""

    frac: Floats
    weight: Floats
    b: Floats
    images: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.frac)

    def take(self, rows: NDArray) -> Atoms:
        return Atoms(self.frac[rows], self.weight[rows], self.b[rows], self.images[rows])

    def joined(self, other: Atoms) -> Atoms:
        both = (np.concatenate([getattr(x, k) for x in (self, other)]) for k in ("frac", "weight", "b", "images"))
        return Atoms(*both)


SEARCHED = 2**17  # pairs of positions, images counted, from which on a tree finds the near ones sooner
NEIGHBOURS = [step for step in product((-1, 0, 1), repeat=3) if any(step)]
NEIGHBOURS.sort(key=lambda step: sum(map(abs, step)))  # the nearest first: they tell most points apart


def peaks(rho: Floats, least: float) -> tuple[Floats, Floats]:
    """Local maxima of a map (u, v, w) of at least a height, highest first: fractional positions (m, 3) and heights (m,)
    at the top of parabolas through the neighbours along each axis."""
    shape = np.array(rho.shape)
    padded = np.pad(rho, 1, mode="wrap").reshape(-1)
    strides = np.array([(shape[1] + 2) * (shape[2] + 2), shape[2] + 2, 1])
    at = np.stack(np.unravel_index(np.flatnonzero(rho >= least), rho.shape), axis=1)
    place = (at + 1) @ strides
    for step in NEIGHBOURS:
        top = padded[place] >= padded[place + np.dot(step, strides)]
        at, place = at[top], place[top]
    here = padded[place]
    offset, height = np.zeros((len(at), 3)), here.astype(float)
    for axis in range(3):
        after, before = padded[place + strides[axis]], padded[place - strides[axis]]
        curvature = after + before - 2 * here
        flat = curvature >= 0
        offset[:, axis] = np.where(flat, 0.0, np.clip((before - after) / np.where(flat, 1, 2 * curvature), -0.5, 0.5))
        height += (after - before) * offset[:, axis] / 4
    order = np.argsort(-height, kind="stable")
    return ((at + offset) / shape)[order] % 1.0, height[order]


class Images:
    """Positions by symmetry and lattice translations: distances in a crystal."""

    def __init__(self, cell: gemmi.UnitCell, spacegroup: gemmi.SpaceGroup) -> None:
        operations = list(spacegroup.operations())
        self.orth = np.array(cell.orth.mat.tolist())
        self.rotations = np.array([op.rot for op in operations]) / gemmi.Op.DEN
        self.shifts = np.array([op.tran for op in operations]) / gemmi.Op.DEN
        # In a skew cell the nearest lattice translation need not be the one that rounding finds: another can be where
        # |u + c| < |u| for some u of the box of fractions from -1/2 to 1/2, whose least 2 u.c is the sum below.
        metric, corners = self.orth.T @ self.orth, np.array(list(product((-1, 0, 1), repeat=3)))
        nearer = np.einsum("ci,ij,cj->c", corners, metric, corners) < np.abs(corners @ metric).sum(axis=1) - 1e-9
        self.corners = corners[nearer | ~corners.any(axis=1)] @ self.orth.T
        self.reach = 0.5 / np.linalg.norm(np.linalg.inv(self.orth), axis=1).max()  # A: nearer ones rounding does find

    def of(self, x: Floats) -> Floats:
        """(g, m, 3) fractional images of positions (m, 3), themselves first."""
        return np.asarray(np.einsum("gij,mj->gmi", self.rotations, x) + self.shifts[:, None])

    def nearest(self, u: Floats) -> Floats:
        """(..., 3) A: the shortest of the vectors that differ from fractional ``u`` by lattice translations."""
        v = (u - np.rint(u)) @ self.orth.T
        if len(self.corners) == 1:
            return np.asarray(v)
        every = v[..., None, :] + self.corners
        which = np.einsum("...i,...i->...", every, every).argmin(axis=-1)
        return np.asarray(v + self.corners[which])

    def distances(self, a: Floats, b: Floats) -> Floats:
        """(len(a), len(b)) A, from each of ``a`` to the nearest image of each of ``b``."""
        least = np.full((len(a), len(b)), np.inf)
        for image in self.of(b):
            least = np.minimum(least, np.linalg.norm(self.nearest(a[:, None] - image), axis=-1))
        return least

    def close(self, a: Floats, b: Floats, near: float) -> NDArray[np.bool_]:
        """(len(a), len(b)), whether an image of the one is nearer than ``near`` (A) to the other."""
        if len(a) * len(b) * len(self.rotations) > SEARCHED:
            close = np.zeros((len(a), len(b)), dtype=bool)
            close[self.pairs(a, b, near)] = True
            return close
        if near >= self.reach:
            return self.distances(a, b) < near
        close = np.zeros((len(a), len(b)), dtype=bool)
        for image in self.of(b):
            u = a[:, None] - image
            v = (u - np.rint(u)) @ self.orth.T
            close |= np.einsum("abi,abi->ab", v, v) < near**2
        return close

    def pairs(self, a: Floats, b: Floats, near: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows of ``a`` and of ``b`` that ``close`` is true for, some of them more than once."""
        from scipy.spatial import cKDTree

        margin = near * np.linalg.norm(np.linalg.inv(self.orth), axis=1)  # of the cell, in fractions
        steps = np.array(list(product(*(range(-int(np.ceil(m)), int(np.ceil(m)) + 1) for m in margin))))
        images = (self.of(b) % 1.0).reshape(-1, 3)
        places, rows = [], []
        for step in steps:
            x = images + step
            there = np.flatnonzero(((x > -margin) & (x < 1 + margin)).all(axis=1))
            places.append(x[there])
            rows.append(there % len(b))
        tree = cKDTree(np.concatenate(places) @ self.orth.T)
        found = cKDTree((a % 1.0) @ self.orth.T).sparse_distance_matrix(tree, near, output_type="coo_matrix")
        inside = found.data < near
        return found.row[inside].astype(np.int64), np.concatenate(rows)[found.col[inside]]

    def settle(self, x: Floats, near: float) -> tuple[Floats, NDArray[np.int64]]:
        """Positions (m, 3), those nearer than ``near`` (A) to images of their own moved into the middle of them; and
        how many images (m,) each is one of."""
        apart = self.of(x) - x
        own = np.linalg.norm(self.nearest(apart), axis=-1) < near  # (g, m)
        apart -= np.rint(apart)
        count = own.sum(axis=0)
        return x + (apart * own[..., None]).sum(axis=0) / count[:, None], count

    def thin(self, x: Floats, near: float) -> NDArray[np.int64]:
        """Rows of positions, in order, that have no earlier one, or an image of it, nearer than ``near`` (A)."""
        close, kept = np.triu(self.close(x, x, near), 1), np.ones(len(x), dtype=bool)
        for i in np.flatnonzero(close.any(axis=1)):
            if kept[i]:
                kept[close[i]] = False
        return np.flatnonzero(kept)
