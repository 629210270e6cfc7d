"""Flat bulk solvent: the exact mask, and a smooth one that coordinates can be refined through.

    mask = exact_mask(structure)                               # gemmi.Structure -> 1 in the solvent, 0 elsewhere
    f_mask = mask_factors(mask, hkl, structure.cell)           # (n,) complex, electrons for 1 electron/A^3

    smooth = SmoothMask.of(cell, spacegroup, elements, occupancy)   # made once for a crystal
    f_mask = mask_factors(smooth(xyz), hkl, cell)                   # differentiable in xyz (m, 3) fractional
    f_model = k_total * (f_calc + k_mask * f_mask)                  # scaling.py

The exact mask (Jiang & Bruenger 1994, J. Mol. Biol. 243, 100): what lies further than r + PROBE from all atoms
is solvent, and so is what lies within SHRINK of that. Radii and probe are those of cctbx. Its 0.9 A to shrink by goes
with its grid of 0.6 A, whose steps fall short of that: on our grids 0.7 A makes the same mask, and R over five sets
0.003 lower than 0.9 A does. Hydrogen and atoms of no occupancy are left out.

The smooth mask does the same with soft edges. The accessible region is
S0(x) = exp(-1/2 sum_j max(0, (r_j + PROBE + 1.18 w - |x - x_j|) / w)^2): a union of spheres with half a Gaussian of
width w for an edge. Its convolution c with exp(-BETA |x|) falls as exp(-BETA e) with the distance e from S0
(Varadhan's approximation to the distance), so c / (c + c0), with c0 the value at e = SHRINK from a plane, is the
region grown by SHRINK, with an edge of 1 / BETA. Both steps are cheap and differentiable everywhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gemmi
import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from ml_phaser.crystal.grid import HalfSphere

PROBE, SHRINK = 1.1, 0.7  # A
EDGE = 0.1  # A, w above: the finer, the nearer to the exact mask and the rougher its gradients
BETA = 8.0  # 1/A
SPACINGS = (0.3, 0.4)  # A between grid points: the first as long as USUAL_POINTS suffice, else up to the second
USUAL_POINTS, MOST_POINTS = 2_000_000, 20_000_000
_KERNEL_REACH = 2.5  # A, where exp(-BETA r) is 2e-9
_PAIRS = 2**21  # atom-point pairs held at once

# A; van der Waals radii of cctbx (van_der_waals_radii) where they differ from those gemmi gives
_TABLE = """
    Be:0.63 B:1.75 C:1.775 N:1.5 O:1.45 Al:1.5 P:1.9 Ca:1.95 Sc:1.32 Ge:1.48 As:0.83 Rb:2.65 Sr:2.02 Sb:1.12
    Te:1.26 Cs:3.01 Ba:2.41 Pt:1.72 Bi:1.73 Po:1.21 At:1.12 Rn:2.3 Fr:3.24 Ra:2.57 U:1.75
"""
_RADII = dict(pair.split(":") for pair in _TABLE.split())


def radius(element: str) -> float:
    """Van der Waals radius in A, as the mask takes it."""
    return float(_RADII.get(element, gemmi.Element(element).vdw_r))


def mask_grid(cell: gemmi.UnitCell, spacegroup: gemmi.SpaceGroup, spacing: float | None = None) -> gemmi.FloatGrid:
    """Empty grid over the cell with the group's symmetry; ``spacing`` in A [see above]."""
    if spacing is None:
        spacing = float(np.clip((cell.volume / USUAL_POINTS) ** (1 / 3), *SPACINGS))
        spacing = max(spacing, (cell.volume / MOST_POINTS) ** (1 / 3))
    grid = gemmi.FloatGrid()
    grid.set_unit_cell(cell)
    grid.spacegroup = spacegroup
    grid.set_size_from_spacing(spacing, gemmi.GridSizeRounding.Up)
    return grid


def exact_mask(
    structure: gemmi.Structure, *, spacing: float | None = None, probe: float = PROBE, shrink: float = SHRINK
) -> NDArray[np.float32]:
    """(nu, nv, nw) mask of the first model, 1 in the solvent and 0 elsewhere; lengths in A."""
    grid = mask_grid(structure.cell, structure.find_spacegroup() or gemmi.SpaceGroup("P 1"), spacing)
    masker = gemmi.SolventMasker(gemmi.AtomicRadiiSet.Cctbx)
    masker.rprobe, masker.rshrink = probe, shrink
    masker.put_mask_on_float_grid(grid, structure[0])
    return np.ascontiguousarray(grid.array)


def mask_factors(mask: ArrayLike | torch.Tensor, hkl: ArrayLike, cell: gemmi.UnitCell) -> torch.Tensor:
    """F_mask(h) = integral of mask(x) exp(2 pi i h.x) over the cell, in A^3: (n,) complex.

    Zero for reflections that the grid of the mask is too coarse for. Differentiable in the mask.
    """
    values = torch.as_tensor(mask)
    index = np.asarray(hkl, dtype=np.int32).reshape(-1, 3)
    inside = np.all(np.abs(index) <= (np.array(values.shape) - 1) // 2, axis=1)
    place = HalfSphere.of(index[inside], tuple(values.shape))  # type: ignore[arg-type]
    refl, first = np.unique(place.refl, return_index=True)  # both h and -h have a place where l = 0
    half = torch.fft.rfftn(values).reshape(-1)[torch.from_numpy(place.flat[first]).to(values.device)]
    # the transform carries exp(-), so h's own place holds conj(F)
    sign = torch.from_numpy(np.where(place.conjugate[first], 1.0, -1.0)).to(half.real)
    half = torch.complex(half.real, half.imag * sign) * (cell.volume / values.numel())
    rows = torch.from_numpy(np.flatnonzero(inside)[refl]).to(values.device)
    return torch.zeros(len(index), dtype=half.dtype, device=values.device).index_copy(0, rows, half)


@dataclass(frozen=True, eq=False)
class SmoothMask:
    """The differentiable mask of one crystal: call it with coordinates.

    Attributes
    ----------
    shape : (nu, nv, nw), of the group's symmetry
    orth : (3, 3) orthogonalisation matrix in A
    rotations, translations : (g, 3, 3), (g, 3) operators of the group, fractional
    atoms : (m,) rows of the atoms that count, small ones first
    reach : (m,) A, where the edge around each of them begins
    steps : (p, 3) int64 grid offsets of all points that can lie within reach of an atom, near ones first
    far : (p,) A, an atom of less reach has no such point
    kernel : (nu, nv, nw // 2 + 1) transform of exp(-BETA r)
    """

    shape: tuple[int, int, int]
    orth: torch.Tensor
    rotations: torch.Tensor
    translations: torch.Tensor
    atoms: torch.Tensor
    reach: torch.Tensor
    steps: torch.Tensor
    far: torch.Tensor
    kernel: torch.Tensor
    threshold: float
    top: float

    @classmethod
    def of(
        cls,
        cell: gemmi.UnitCell,
        spacegroup: gemmi.SpaceGroup,
        elements: list[str] | tuple[str, ...],
        occupancy: ArrayLike | None = None,
        *,
        spacing: float | None = None,
        probe: float = PROBE,
        shrink: float = SHRINK,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> SmoothMask:
        """Prepare the mask of atoms of these elements (m symbols) and occupancies [1]; lengths in A."""
        grid = mask_grid(cell, spacegroup, spacing)
        shape = (grid.nu, grid.nv, grid.nw)
        present = np.ones(len(elements)) if occupancy is None else np.asarray(occupancy)
        rows = [i for i, e in enumerate(elements) if e not in ("H", "D") and present[i] > 0]
        rows = sorted(rows, key=lambda i: radius(elements[i]))
        reach = np.array([radius(elements[i]) for i in rows]) + probe + _HALF * EDGE
        ops = list(spacegroup.operations())
        kernel, total = _kernel(cell, shape)
        steps, far = _steps(cell, shape, float(reach.max(initial=0.0)))

        def tensor(values: Any, dtype: torch.dtype = dtype) -> torch.Tensor:
            return torch.as_tensor(np.asarray(values), dtype=dtype, device=device)

        return cls(
            shape,
            tensor(cell.orth.mat.tolist(), torch.float64),
            tensor([np.array(op.rot) / op.DEN for op in ops], torch.float64),
            tensor([np.array(op.tran) / op.DEN for op in ops], torch.float64),
            tensor(rows, torch.int64),
            tensor(reach),
            tensor(steps, torch.int64),
            tensor(far, torch.float64),
            torch.fft.rfftn(tensor(kernel)),
            # integral of exp(-BETA r) over the half space at a distance SHRINK
            float(2 * np.pi / BETA**2 * (shrink + 2 / BETA) * np.exp(-BETA * shrink)),
            total,
        )

    def __call__(self, xyz: torch.Tensor) -> torch.Tensor:
        """(nu, nv, nw) mask of the atoms at ``xyz`` (m, 3), fractional: 1 in the solvent, near 0 in molecules."""
        x = xyz.to(torch.float64)[self.atoms]
        images = torch.einsum("gij,mj->mgi", self.rotations, x) + self.translations
        edges = _Edges.apply(images.reshape(-1, 3), self)
        free = torch.exp(edges.reshape(self.shape))
        c = torch.fft.irfftn(torch.fft.rfftn(free) * self.kernel, s=self.shape)
        return c / (c + self.threshold) * (1 + self.threshold / self.top)


_HALF = float(np.sqrt(2 * np.log(2)))  # widths from the beginning of the edge to its half


def _steps(cell: gemmi.UnitCell, shape: tuple[int, int, int], reach: float) -> tuple[NDArray[np.int64], NDArray]:
    """Grid offsets within ``reach`` A of any place nearest to the origin's grid point, and the least such reach."""
    n, orth = np.array(shape), np.array(cell.orth.mat)
    slack = np.linalg.norm(orth / n, axis=0).sum() / 2  # an atom's distance from its nearest grid point, at most
    high = np.ceil((reach + slack) * np.linalg.norm(np.array(cell.frac.mat), axis=1) * n).astype(int)
    steps = np.stack(np.meshgrid(*(np.arange(-h, h + 1) for h in high), indexing="ij"), axis=-1).reshape(-1, 3)
    length = np.linalg.norm((steps / n) @ orth.T, axis=1)
    order = np.argsort(length, kind="stable")
    order = order[: np.searchsorted(length[order], reach + slack, side="right")]
    return steps[order], length[order] - slack


def _kernel(cell: gemmi.UnitCell, shape: tuple[int, int, int]) -> tuple[NDArray, float]:
    """exp(-BETA r) times a point's volume, periodic, and its sum."""
    steps, _ = _steps(cell, shape, _KERNEL_REACH)
    length = np.linalg.norm((steps / np.array(shape)) @ np.array(cell.orth.mat).T, axis=1)
    values = np.exp(-BETA * length) * cell.volume / np.prod(shape)
    kernel = np.zeros(shape)
    np.add.at(kernel, tuple((steps % np.array(shape)).T), values)
    return kernel, float(values.sum())


class _Edges(torch.autograd.Function):
    """ln S0 of all images (k, 3) on the flattened grid; recomputes rather than keeps what gradients need."""

    @staticmethod
    def forward(ctx: Any, images: torch.Tensor, mask: SmoothMask) -> torch.Tensor:
        ctx.save_for_backward(images)
        ctx.mask = mask
        total = torch.zeros(int(np.prod(mask.shape)), dtype=mask.reach.dtype, device=images.device)
        for near in _neighbours(images, mask):
            total.index_add_(0, near.flat.reshape(-1), (-0.5 * near.depth**2).reshape(-1))
        return total

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        (images,) = ctx.saved_tensors
        out = torch.zeros_like(images)
        for near in _neighbours(images, ctx.mask):
            pull = grads[0][near.flat] * near.depth / (EDGE * near.distance)  # d ln S0 / d distance, per distance
            out[near.rows] = (near.off * pull.sum(1, keepdim=True) - pull @ near.points).to(out.dtype)
        return out @ ctx.mask.orth, None


@dataclass(frozen=True, eq=False)
class _Near:
    """Points around some atoms, ``rows``: flat grid index, distance and depth in the edge (in its widths), (k, p).

    ``off`` (k, 3) and ``points`` (p, 3): atoms and points in A from the grid point nearest to the atom.
    """

    rows: slice
    flat: torch.Tensor
    distance: torch.Tensor
    depth: torch.Tensor
    off: torch.Tensor
    points: torch.Tensor


def _neighbours(images: torch.Tensor, mask: SmoothMask) -> Iterator[_Near]:
    """The points within reach, some atoms at a time."""
    n = torch.tensor(mask.shape, device=images.device)
    every = ((mask.steps / n.double()) @ mask.orth.T).to(mask.reach.dtype)
    reach = mask.reach.repeat_interleave(len(mask.rotations))
    low = mask.steps.amin(0)
    width = (mask.steps.amax(0) - low + 1).tolist()
    stride = (mask.shape[1] * mask.shape[2], mask.shape[2], 1)
    size = max(1, _PAIRS // max(1, len(mask.steps)))
    for start in range(0, len(images), size):
        rows = slice(start, start + size)
        near = int(torch.searchsorted(mask.far, reach[rows][-1].double(), right=True))
        steps, points = mask.steps[:near] - low, every[:near]
        nearest = torch.round(images[rows] * n)
        off = ((images[rows] - nearest / n) @ mask.orth.T).to(mask.reach.dtype)
        square = off.pow(2).sum(1, keepdim=True) - 2 * off @ points.T + points.pow(2).sum(1)
        distance = square.clamp_min(1e-6).sqrt()
        depth = torch.relu((reach[rows, None] - distance) / EDGE)
        flat = torch.zeros((len(off), near), dtype=torch.int32, device=images.device)
        for axis in range(3):  # one division for each plane of points, not for each point
            first = nearest[:, axis].long() + low[axis]
            planes = (first[:, None] + torch.arange(width[axis], device=images.device)) % n[axis] * stride[axis]
            flat += planes.int()[:, steps[:, axis]]
        yield _Near(rows, flat, distance, depth, off, points)
