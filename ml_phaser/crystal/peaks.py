"""Peaks of a periodic map, the atoms they are, and which of them are one."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import gemmi
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import maximum_filter

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


def peaks(rho: Floats, least: float) -> tuple[Floats, Floats]:
    """Local maxima of a map (u, v, w) of at least a height, highest first: fractional positions (m, 3) and heights (m,)
    at the top of parabolas through the neighbours along each axis."""
    at = np.argwhere((maximum_filter(rho, 3, mode="wrap") == rho) & (rho >= least))
    shape, here = np.array(rho.shape), rho[tuple(at.T)]
    offset, height = np.zeros((len(at), 3)), here.astype(float)
    for axis in range(3):
        step = np.eye(3, dtype=int)[axis]
        after, before = (rho[tuple(((at + s) % shape).T)] for s in (step, -step))
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
        # In a skew cell the nearest lattice translation need not be the one that rounding finds.
        self.corners = np.array(list(product((-1, 0, 1), repeat=3))) @ self.orth.T

    def of(self, x: Floats) -> Floats:
        """(g, m, 3) fractional images of positions (m, 3), themselves first."""
        return np.asarray(np.einsum("gij,mj->gmi", self.rotations, x) + self.shifts[:, None])

    def nearest(self, u: Floats) -> Floats:
        """(..., 3) A: the shortest of the vectors that differ from fractional ``u`` by lattice translations."""
        v = (u - np.rint(u)) @ self.orth.T
        every = v[..., None, :] + self.corners
        which = np.einsum("...i,...i->...", every, every).argmin(axis=-1)
        return np.asarray(v + self.corners[which])

    def distances(self, a: Floats, b: Floats) -> Floats:
        """(len(a), len(b)) A, from each of ``a`` to the nearest image of each of ``b``."""
        least = np.full((len(a), len(b)), np.inf)
        for image in self.of(b):
            least = np.minimum(least, np.linalg.norm(self.nearest(a[:, None] - image), axis=-1))
        return least

    def settle(self, x: Floats, near: float) -> tuple[Floats, NDArray[np.int64]]:
        """Positions (m, 3), those nearer than ``near`` (A) to images of their own moved into the middle of them; and
        how many images (m,) each is one of."""
        own = np.linalg.norm(self.nearest(self.of(x) - x), axis=-1) < near  # (g, m)
        apart = self.of(x) - x
        apart -= np.rint(apart)
        count = own.sum(axis=0)
        return x + (apart * own[..., None]).sum(axis=0) / count[:, None], count

    def thin(self, x: Floats, near: float) -> NDArray[np.int64]:
        """Rows of positions, in order, that have no earlier one, or an image of it, nearer than ``near`` (A)."""
        close = self.distances(x, x) < near
        kept: list[int] = []
        for i in range(len(x)):
            if not close[i, kept].any():
                kept.append(i)
        return np.array(kept, dtype=np.int64)
