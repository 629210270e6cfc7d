"""Superposition of the Patterson function: sites of heavy atoms, one after the other, many sets side by side.

The function is looked up at all vectors between a new site, its images and the sites there are (Buerger's
superposition, as a clipped sum; kin to the seeding of SHELXD, Schneider & Sheldrick, Acta Cryst. D58, 1772, 2002).
Sums propose sites; sets are ranked by the correlation of |F|^2 with E^2, which sets that
use one Patterson peak many times do not deceive.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import gemmi
import numpy as np
from numpy.typing import NDArray

from ml_phaser.crystal.agreement import Origins, permissible_origins
from ml_phaser.crystal.maps import symmetric_shape
from ml_phaser.phasing.heavy.vectors import Moduli, Vectors

COARSE = 1 / 2.5  # of d_min: spacing of the positions looked at
APART = 1.6  # A between sites, and from a site to its images
DISTINCT = 0.6  # A: vectors nearer than that, in the Patterson's symmetry, are one
MOST_SITES = 10
MEMORY = 1e9  # bytes that the sets gone on with may take: in large cells fewer fit
FEWEST_SETS = 16


@dataclass(frozen=True)
class Effort:
    """How wide a search is.

    first : first sites, or second ones where the first is the origin; second : for each
    following : sites tried as the next of each set of two, three...; more : of larger ones
    kept : sets of two, three... gone on with; sets : larger ones
    """

    first: int
    second: int
    following: tuple[int, ...]
    more: int
    kept: tuple[int, ...]
    sets: int

    def next(self, size: int) -> int:
        """Sites tried as the next of a set of ``size``."""
        return self.following[size - 2] if size - 2 < len(self.following) else self.more

    def keep(self, size: int) -> int:
        """Sets of ``size`` sites gone on with."""
        return self.kept[size - 2] if size - 2 < len(self.kept) else self.sets


# Right sets of few sites do not lead by their fit, but by that of six or eight: the second round waits for them.
EFFORTS = (
    Effort(100, 40, (12, 3), 2, (300, 128), 32),
    Effort(200, 60, (30, 10, 5), 3, (300, 400, 200, 100), 60),
)


@dataclass(frozen=True, eq=False)
class SiteSet:
    """Sites (m, 3), fractional, and how well they explain E^2 (``Moduli.fit``)."""

    sites: NDArray[np.float64]
    fit: float


@dataclass(frozen=True, eq=False)
class Partial:
    """A set on its way: sums (n,) of what its sites say of every position, structure factors of all."""

    sites: tuple[NDArray[np.float64], ...]
    fit: float
    sums: NDArray[np.float32]
    f: NDArray[np.complex64]


@dataclass(frozen=True, eq=False)
class Superposition:
    """index : (n, 3) positions looked at, on a grid ``shape`` over the cell, one of each set of equivalents."""

    vectors: Vectors
    moduli: Moduli
    cell: gemmi.UnitCell
    spacegroup: gemmi.SpaceGroup
    index: NDArray[np.int32]
    shape: tuple[int, int, int]
    step: NDArray[np.float64]

    @classmethod
    def of(
        cls, vectors: Vectors, moduli: Moduli, cell: gemmi.UnitCell, spacegroup: gemmi.SpaceGroup, d_min: float
    ) -> Superposition:
        spacing = COARSE * d_min
        shape = symmetric_shape(cell, spacegroup, d_min, spacing)
        grid = gemmi.Int8Grid(*shape)
        grid.set_unit_cell(cell)
        grid.spacegroup = spacegroup
        outside = np.asarray(grid.masked_asu().mask_array) != 0
        index = np.argwhere(~outside).astype(np.int32)
        step = 0.5 * spacing / np.array(cell.parameters[:3])
        return cls(vectors, moduli, cell, spacegroup, index, shape, step)

    @cached_property
    def positions(self) -> NDArray[np.float64]:
        """(n, 3) fractional."""
        return self.index / np.array(self.shape)

    @cached_property
    def own(self) -> NDArray[np.float32]:
        """What every position's own images say for it."""
        return self.vectors.own(self.positions)

    @cached_property
    def room(self) -> int:
        """Sets that memory has room for."""
        each = self.own.nbytes + 8 * len(self.moduli.excess)
        return max(FEWEST_SETS, int(MEMORY / each))

    @cached_property
    def origins(self) -> Origins:
        return permissible_origins(self.spacegroup)

    @cached_property
    def generic(self) -> int:
        """Distinct vectors from a position to its images, where it is not special in the Patterson's symmetry."""
        draws = np.random.default_rng(1).random((10, 3))
        return max(self._distinct(x) for x in draws)

    def rounds(self, over: Callable[[], bool]) -> Iterator[list[SiteSet]]:
        """Sets of sites, best first, of ever wider searches; one is cut short, but not left out, when time is over."""
        for effort in EFFORTS:
            found = self._grown(self._begun(effort, over), effort, over)
            if found:
                yield [SiteSet(np.array(p.sites), p.fit) for p in found]
            if over():
                return

    def _begun(self, effort: Effort, over: Callable[[], bool]) -> list[Partial]:
        """Pairs of sites, best first."""
        if len(self.origins.directions) == 3:  # P1: the first site is anywhere
            return _best(self._extended(self._single(np.zeros(3)), effort.first), min(effort.keep(2), self.room))
        pairs: list[Partial] = []
        for x in self._peaks(self.own, (), effort.first, unlike=True):
            if pairs and over():
                break
            pairs = _best(pairs + self._extended(self._single(x), effort.second), min(effort.keep(2), self.room))
        return pairs

    def _grown(self, sets: list[Partial], effort: Effort, over: Callable[[], bool]) -> list[Partial]:
        for size in range(2, MOST_SITES):
            kept, more = min(effort.keep(size + 1), self.room), list[Partial]()
            for part in sets:
                if more and over():
                    break
                more += self._extended(part, effort.next(size))
                if len(more) > 2 * kept:
                    more = _best(more, kept)
            if not more:
                break
            sets = _best(more, kept)
        return sets

    def _single(self, x: NDArray[np.float64]) -> Partial:
        f = self.moduli.factors.of_site(x)
        return Partial((x,), self.moduli.fit(f), self.own, f)

    def _extended(self, part: Partial, count: int) -> list[Partial]:
        """The set with each of its ``count`` likeliest next sites."""
        sums = part.sums + self._said_by(part.sites[-1])
        out = []
        for x in self._peaks(sums, part.sites, count):
            f = part.f + self.moduli.factors.of_site(x)
            out.append(Partial((*part.sites, x), self.moduli.fit(f), sums, f))
        return out

    def _said_by(self, y: NDArray[np.float64]) -> NDArray[np.float32]:
        """What a site at ``y`` says of every position, (n,): ``Vectors.between`` by tables along the axes."""
        fine, total = self.vectors.shape, np.zeros(len(self.index), dtype=np.float32)
        strides = (fine[1] * fine[2], fine[2], 1)
        i, j, k = self.index.T
        for image in self.vectors.operators.images(y):
            tables = [
                np.rint((np.arange(n) / n - image[a]) % 1.0 * fine[a]).astype(np.int32) % fine[a] * strides[a]
                for a, n in enumerate(self.shape)
            ]
            total += self.vectors.clipped[tables[0][i] + tables[1][j] + tables[2][k]]
        return total

    def _peaks(
        self, sums: NDArray[np.float32], known: tuple[NDArray[np.float64], ...], count: int, unlike: bool = False
    ) -> list[NDArray[np.float64]]:
        """The highest positions, apart from each other and from ``known`` sites, moved to the top of their peaks.
        ``unlike``: only one of those that a change of origin makes equal."""
        most = min(len(sums), 60 * count * (len(self.origins.shifts) if unlike else 1))
        order = np.argpartition(-sums, most - 1)[:most]
        found: list[NDArray[np.float64]] = []
        for row in order[np.argsort(-sums[order], kind="stable")]:
            x = self.positions[row]
            if not self._apart(x, known, APART) or not self._apart(x, found, 1.0):
                continue
            if unlike and self._seen(x, found):
                continue
            if len(self.vectors.operators) > 1 and not self._ordinary(x):
                continue
            found.append(self._climbed(x, known))
            if len(found) == count:
                break
        return found

    def _lengths(self, u: NDArray[np.float64]) -> NDArray[np.float64]:
        """A, of fractional vectors (..., 3) to the nearest lattice translation along each axis."""
        u = u - np.rint(u)
        return np.asarray(np.linalg.norm(u @ np.array(self.cell.orth.mat).T, axis=-1))

    def _apart(self, x: NDArray[np.float64], others: object, least: float) -> bool:
        sites = np.array(others).reshape(-1, 3)
        return not len(sites) or bool(self._lengths(self.vectors.operators.images(x)[:, None] - sites).min() > least)

    def _ordinary(self, x: NDArray[np.float64]) -> bool:
        """Whether a position is away from its images and from the Patterson's mirrors, where few peaks count twice."""
        images = self.vectors.operators.images(x)
        return bool(self._lengths(images[1:] - x).min() > APART) and self._distinct(x) >= self.generic

    def _distinct(self, x: NDArray[np.float64]) -> int:
        u = x - self.vectors.operators.images(x)[1:]
        copies = np.einsum("lij,gj->lgi", self.vectors.operators.laue, u)
        same = np.asarray((self._lengths(copies[:, :, None] - u) < DISTINCT).any(axis=0))
        return sum(not same[i, :i].any() for i in range(len(u)))

    def _seen(self, x: NDArray[np.float64], found: list[NDArray[np.float64]]) -> bool:
        """Whether one of ``found`` is the same position from another origin."""
        if not found:
            return False
        u = (self.vectors.operators.images(np.array(found))[..., None, :] + self.origins.shifts - x).reshape(-1, 3)
        u -= np.rint(u)
        free = self.origins.directions
        if len(free):
            orth = np.array(self.cell.orth.mat)
            axes = np.linalg.qr((free @ orth.T).T)[0]
            a = u @ orth.T
            return bool((np.linalg.norm(a - a @ axes @ axes.T, axis=-1) < 1.0).any())
        return bool((self._lengths(u) < 1.0).any())

    def _climbed(self, x: NDArray[np.float64], known: tuple[NDArray[np.float64], ...]) -> NDArray[np.float64]:
        for scale in (1.0, 0.5):
            around = x + np.array(list(itertools.product((-1, 0, 1), repeat=3))) * self.step * scale
            values = self.vectors.own(around)
            for y in known:
                values = values + self.vectors.between(around, y)
            x = around[int(np.argmax(values))]
        return x


def _best(sets: list[Partial], count: int) -> list[Partial]:
    """The sets that explain E^2 best, each but once: equal ones fit equally well."""
    out: dict[float, Partial] = {}
    for part in sorted(sets, key=lambda p: -p.fit):
        out.setdefault(round(part.fit, 3), part)
        if len(out) == count:
            break
    return list(out.values())
