"""Structure factors by FFT of Gaussians.

    atom -> Gaussians of its own displacement + common blur -> grid -> FFT -> x f(s) x exp(+blur s^2 / 4) -> symmetry

The scattering factor f(s) of the element that scatters most is put on after the transform, so each of its atoms is a
single narrow Gaussian, where spreading f itself takes five, some of them wide (Ten Eyck 1977). Atoms of other elements
are one to four Gaussians, a fit to the ratio of the scattering factors (``form_factors.ratio``); an element that no
such sum fits has a grid of its own. The blur widens the atoms until the grid samples them finely enough (Bricogne,
International Tables B, 1.3.4.4.5). Only the asymmetric unit is spread, over the primitive reduced cell of the lattice;
symmetry is applied to the transform (``operators``). The gradient is one adjoint transform and a gather with the same
Gaussians (Agarwal 1978).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from typing import Any

import gemmi
import numpy as np
import torch
from numpy.typing import NDArray

from ml_phaser.crystal.grid import grid_shape
from ml_phaser.structure_factors.atoms import U_TO_B, Atoms
from ml_phaser.structure_factors.form_factors import RATIO_TERMS, Scatterer, form_factors, gaussians, ratio
from ml_phaser.structure_factors.operators import Operators, Sphere, cell_of, orthogonalisation

OVERSAMPLING = 1.35  # of the shortest wavelength, beyond two grid points
ALIASING = 4e-3  # of the sharpest atom at d_min
TRUNCATION, CUT_OFF = 1e-3, 1.5e-4  # of a Gaussian, at the edge of its box, unblurred and as it is
RATIO_ERROR = 2e-4  # that the ratios of one element's scattering factors add to the amplitudes
COST_POINT, COST_TERM, COST_GRID = 1.3, 0.6, 3.0  # ns on one core: of an atom's grid point, Gaussian at it; of the FFT
SMALL_GRID = 2**18  # points, up to which every element has a grid of its own
POINTS = {"cpu": 2**18, "cuda": 2**25}  # grid points handled at once
_I, _J = [0, 1, 2, 0, 0, 1], [0, 1, 2, 1, 2, 2]  # order of a symmetric matrix's elements


@dataclass(frozen=True)
class _Batch:
    """Atoms start to stop - 1 of one grid, with so many Gaussians each, in boxes of these half widths."""

    grid: int
    terms: int
    start: int
    stop: int
    half: tuple[int, int, int]


def _batches(grid: NDArray, terms: NDArray, half: NDArray, points: int) -> tuple[NDArray[np.int64], tuple[_Batch, ...]]:
    """Order of the atoms, and batches of at most ``points`` grid points of it that are of similar size."""
    volume = np.prod(2 * half + 1, axis=1)
    order = np.lexsort((-volume, terms, grid))
    grid, terms, half, volume = grid[order], terms[order], half[order], volume[order]
    batches, start = [], 0
    while start < len(order):
        some = slice(start, start + max(1, points // int(volume[start])))
        alike = (grid[some] == grid[start]) & (terms[some] == terms[start]) & (volume[some] > 0.6 * volume[start])
        stop = start + (len(alike) if alike.all() else int(np.argmin(alike)))
        widest = half[start:stop].max(axis=0)
        widths = int(widest[0]), int(widest[1]), int(widest[2])
        batches.append(_Batch(int(grid[start]), int(terms[start]), start, stop, widths))
        start = stop
    return order, tuple(batches)


@dataclass(frozen=True, eq=False)
class _Grid:
    """Points (nu, nv, nw), and where reflections are in the transform's planes (l_count, nu, nv), l >= 0: flat (r,)."""

    shape: tuple[int, int, int]
    l_count: int
    flat: torch.Tensor


@dataclass(frozen=True)
class _Boxes:
    """The grid points about c atoms.

    index : (c, u, v, w) flat; offsets : three, (u,) (v,) (w,), of the points from the nearest one to the atom;
    fraction : (c, 3) of the atom from that; all in steps
    """

    index: torch.Tensor
    offsets: tuple[torch.Tensor, ...]
    fraction: torch.Tensor

    @classmethod
    def about(cls, place: torch.Tensor, half: tuple[int, ...], shape: tuple[int, ...], dtype: torch.dtype) -> _Boxes:
        """``place`` (c, 3) in grid steps."""
        nearest = torch.round(place)
        steps = [torch.arange(-n, n + 1, device=place.device) for n in half]
        u, v, w = ((nearest[:, i, None].long() + steps[i]) % shape[i] for i in range(3))
        index = ((u[:, :, None] * shape[1] + v[:, None]) * shape[2])[..., None] + w[:, None, None]
        return cls(index, tuple(s.to(dtype) for s in steps), (place - nearest).to(dtype))

    def gaussian(self, precision: torch.Tensor, weight: torch.Tensor | None = None) -> torch.Tensor:
        """weight (c,) exp(-d.P.d / 2) at the points, P the inverse covariance (c, 6) in 1/step^2; (c, u, v, w)."""
        du, dv, dw = (self.offsets[i] - self.fraction[:, i, None] for i in range(3))
        m11, m22, m33, m12, m13, m23 = (m[:, None] for m in precision.unbind(1))
        uv = (-0.5 * m11 * du * du)[:, :, None] + (-0.5 * m22 * dv * dv)[:, None] - (m12 * du)[:, :, None] * dv[:, None]
        uw = -(m13 * du)[:, :, None] * dw[:, None]
        vw = (-0.5 * m33 * dw * dw)[:, None] - (m23 * dv)[:, :, None] * dw[:, None]
        uv = uv.exp_() if weight is None else uv.exp_() * weight[:, None, None]
        return (uv[..., None] * uw.exp_()[:, :, None]).mul_(vw.exp_()[:, None])


class _Transform(torch.autograd.Function):
    """Fourier transforms, at chosen reflections, of each grid's Gaussians."""

    @staticmethod
    def forward(
        ctx: Any, weight: torch.Tensor, place: torch.Tensor, precision: torch.Tensor, batches: tuple[_Batch, ...],
        count: int, grid: _Grid,
    ) -> torch.Tensor:  # fmt: skip
        """weight (m, terms), place (m, 3), precision (m, terms, 6), in the batches' order; -> (count, r)."""
        ctx.save_for_backward(weight, place, precision)
        ctx.fixed = (batches, grid)
        out = torch.zeros((count, len(grid.flat)), dtype=_complex(weight.dtype), device=weight.device)
        for number, some in groupby(batches, key=lambda b: b.grid):
            density = weight.new_zeros(grid.shape)
            for b in some:
                box = _Boxes.about(place[b.start : b.stop], b.half, grid.shape, weight.dtype)
                value = box.gaussian(precision[b.start : b.stop, 0], weight[b.start : b.stop, 0])
                for k in range(1, b.terms):
                    value += box.gaussian(precision[b.start : b.stop, k], weight[b.start : b.stop, k])
                density.view(-1).scatter_add_(0, box.index.view(-1), value.view(-1))
            planes = torch.fft.fftn(torch.fft.rfft(density)[..., : grid.l_count], dim=(0, 1)).permute(2, 0, 1)
            torch.index_select(planes.reshape(-1), 0, grid.flat, out=out[number])
        return out.conj_physical_()  # the library's transform carries exp(-), ours exp(+)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        weight, place, precision = ctx.saved_tensors
        batches, grid = ctx.fixed
        to_weight, to_place, to_precision = (torch.zeros_like(t) for t in (weight, place, precision))
        scale = weight.new_tensor([-0.5, -0.5, -0.5, -1.0, -1.0, -1.0])
        halved = torch.where(grid.flat < grid.shape[0] * grid.shape[1], 1.0, 0.5).to(weight)  # irfft doubles l > 0
        for number, some in groupby(batches, key=lambda b: b.grid):
            planes = grads[0].new_zeros((grid.l_count, *grid.shape[:2]))
            planes.view(-1)[grid.flat] = grads[0][number].conj() * halved
            lines = torch.fft.ifftn(planes, dim=(1, 2), norm="forward").permute(1, 2, 0)
            field = torch.fft.irfft(lines, n=grid.shape[2], norm="forward").reshape(-1)
            for b in some:
                s = slice(b.start, b.stop)
                box = _Boxes.about(place[s], b.half, grid.shape, weight.dtype)
                around = torch.index_select(field, 0, box.index.view(-1)).view(box.index.shape)
                for k in range(b.terms):
                    moments = _moments(box, box.gaussian(precision[s, k]).mul_(around))
                    to_weight[s, k] = moments[:, 0]
                    to_place[s] += (_symmetric(precision[s, k], moments[:, 1:4]) * weight[s, k, None]).to(place)
                    to_precision[s, k] = moments[:, 4:] * scale * weight[s, k, None]
        return to_weight, to_place, to_precision, None, None, None


def _complex(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.complex32)


def _symmetric(m: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Symmetric matrices (c, 6) times vectors (c, 3)."""
    return torch.einsum("cij,cj->ci", m[:, [0, 3, 4, 3, 1, 5, 4, 5, 2]].view(-1, 3, 3), x)


def _moments(box: _Boxes, value: torch.Tensor) -> torch.Tensor:
    """Sums of value x 1, d_u, d_v, d_w, d_u^2, d_v^2, d_w^2, d_u d_v, d_u d_w, d_v d_w over each box, d the distance
    from the atom; (c, 10)."""
    powers = [torch.stack([torch.ones_like(o), o, o * o], dim=1) for o in box.offsets]
    over_w = value @ powers[2]  # (c, u, v, 3)
    over_vw = torch.einsum("cuvk,vj->cujk", over_w, powers[1])
    full = torch.einsum("cujk,ui->cijk", over_vw, powers[0])  # powers of u, v, w
    f = box.fraction
    s0 = full[:, 0, 0, 0]
    raw1 = torch.stack([full[:, 1, 0, 0], full[:, 0, 1, 0], full[:, 0, 0, 1]], dim=1)
    raw2 = torch.stack([full[:, 2, 0, 0], full[:, 0, 2, 0], full[:, 0, 0, 2],
                        full[:, 1, 1, 0], full[:, 1, 0, 1], full[:, 0, 1, 1]], dim=1)  # fmt: skip
    i, j = _I, _J
    first = raw1 - s0[:, None] * f
    second = raw2 - raw1[:, i] * f[:, j] - raw1[:, j] * f[:, i] + s0[:, None] * f[:, i] * f[:, j]
    return torch.cat([s0[:, None], first, second], dim=1)


def reduced_basis(cell: gemmi.UnitCell, spacegroup: gemmi.SpaceGroup) -> NDArray[np.float64]:
    """Columns: the vectors of a primitive reduced cell in terms of the cell's own."""
    gruber = gemmi.GruberVector(cell, spacegroup, True)
    gruber.niggli_reduce()
    return np.array(gruber.change_of_basis.rot) / gemmi.Op.DEN


@dataclass(frozen=True, eq=False)
class _Plan:
    """What does not depend on the atoms: lattice basis (3, 3), reflections (n, 3), symmetry, grid."""

    basis: torch.Tensor
    hkl: torch.Tensor
    sphere: Sphere
    grid: _Grid
    d_min: float
    oversampling: float


@lru_cache(maxsize=8)
def _plan(
    hkl_bytes: bytes, cell: tuple[float, ...], group: str, oversampling: float, device: torch.device, dtype: torch.dtype
) -> _Plan:
    hkl = np.frombuffer(hkl_bytes, dtype=np.int32).reshape(-1, 3)
    unit_cell, spacegroup = gemmi.UnitCell(*cell), gemmi.SpaceGroup(group)
    basis = reduced_basis(unit_cell, spacegroup)
    sphere = Sphere.of(hkl, Operators.of(spacegroup), basis)
    d_min = float(1 / np.sqrt(unit_cell.calculate_1_d2_array(hkl).max(initial=1e-4)))
    vectors = np.array(unit_cell.orth.mat) @ basis
    shape = grid_shape(cell_of(vectors), d_min, spacing=d_min / (2 * oversampling))
    h, l_count = sphere.hkl % np.array(shape), int(sphere.hkl[:, 2].max(initial=0)) + 1
    flat = torch.from_numpy((h[:, 2] * shape[0] + h[:, 0]) * shape[1] + h[:, 1]).to(device)
    like = torch.zeros((), dtype=dtype, device=device)
    indices = torch.from_numpy(hkl.astype(np.float64)).to(like)
    grid = _Grid(shape, l_count, flat)
    return _Plan(torch.from_numpy(basis).to(like), indices, sphere.to(like), grid, d_min, oversampling)


@dataclass(frozen=True, eq=False)
class _Mixture:
    """What is put on which grid: Gaussians of the atoms ``owner`` (k,), heights and widths in A^2 (k, terms) relative
    to the grid's scattering factor, that of ``references``; the last grid may be that of f'', of point atoms."""

    references: tuple[Scatterer, ...]
    owner: NDArray[np.int64]
    grid: NDArray[np.int64]
    heights: NDArray[np.float64]
    widths: NDArray[np.float64]

    @property
    def terms(self) -> NDArray[np.int64]:
        return np.maximum(np.count_nonzero(self.heights, axis=1), 1)

    @classmethod
    def of(cls, kind: NDArray[np.int64], b: NDArray, scatterers: tuple[Scatterer, ...], plan: _Plan) -> _Mixture:
        """Elements, the strongest first, join the grid where they are quickest to spread, or open one.

        kind (m,), b (m,) about what the atoms will have, blurred, A^2
        """
        many = np.bincount(kind, minlength=len(scatterers))
        mean_b = np.bincount(kind, b, minlength=len(scatterers)) / np.maximum(many, 1)
        step = plan.d_min / (2 * plan.oversampling)

        def cost(k: int, heights: Sequence[float], widths: Sequence[float]) -> float:
            side = 2 * np.sqrt(20 * max(mean_b[k] + max(widths), 1) / U_TO_B) / step
            return float(many[k] * side**3 * (COST_POINT + COST_TERM * len(heights)))

        charge = np.array([sum(gaussians(s)[0]) for s in scatterers])
        strength = many * charge**2
        ranked = np.argsort(-strength, kind="stable")
        errors = np.sqrt(many * np.maximum(charge, charge[ranked[:1]]) ** 2 / max(strength.sum(), 1e-9))
        points = int(np.prod(plan.grid.shape))
        references: list[Scatterer] = []
        grid = np.zeros(len(scatterers), dtype=np.int64)
        heights, widths = np.zeros((2, len(scatterers), RATIO_TERMS))
        for k in ranked:
            tolerance = float(f"{RATIO_ERROR / max(errors[k], 0.02):.1e}")
            best: tuple[int, tuple[float, ...], tuple[float, ...]]
            best, best_cost = (len(references), (1.0,), (0.0,)), np.inf
            if many[k] and references:
                best_cost = cost(k, *best[1:]) + COST_GRID * points
            for i, reference in enumerate(references):
                fit = ratio(scatterers[k], reference, 1 / plan.d_min, tolerance) if points > SMALL_GRID else None
                if fit is not None and cost(k, *fit) < best_cost:
                    best, best_cost = (i, *fit), cost(k, *fit)
            if best[0] == len(references):
                references.append(scatterers[k])
            grid[k] = best[0]
            heights[k, : len(best[1])], widths[k, : len(best[2])] = best[1:]
        f2 = np.array([s.f_double_prime for s in scatterers])
        heavy = np.flatnonzero(f2[kind])
        imaginary = np.zeros((2, len(heavy), RATIO_TERMS))
        imaginary[0, :, 0] = f2[kind[heavy]]
        return cls(
            tuple(references),
            np.concatenate([np.arange(len(kind)), heavy]),
            np.concatenate([grid[kind], np.full(len(heavy), len(references))]),
            np.concatenate([heights[kind], imaginary[0]]),
            np.concatenate([widths[kind], imaginary[1]]),
        )


def fft_sum(
    atoms: Atoms,
    hkl: NDArray[np.int32],
    cell: gemmi.UnitCell | torch.Tensor,
    group: gemmi.SpaceGroup,
    oversampling: float = OVERSAMPLING,
) -> torch.Tensor:
    """F(h) by FFT: see ``calculate.structure_factors``."""
    if atoms.kind.dim() > 1:
        return torch.stack([fft_sum(atoms[i], hkl, cell, group, oversampling) for i in range(len(atoms.kind))])
    like = atoms.b_iso
    parameters = cell.parameters if isinstance(cell, gemmi.UnitCell) else cell_of(cell).parameters
    plan = _plan(hkl.tobytes(), parameters, group.xhm(), oversampling, like.device, like.dtype)
    orth = orthogonalisation(cell, like, group)
    s = plan.hkl @ torch.linalg.inv(orth)
    stol2 = (s * s).sum(-1) / 4
    parts, mixture, blur = _spread(atoms, orth @ plan.basis, plan)
    parts = plan.sphere.gather(parts)
    known = form_factors(mixture.references, stol2) * torch.exp(blur * stol2)
    real = (parts[: len(known)] * known).sum(0)
    return real if len(parts) == len(known) else real + 1j * parts[-1] * torch.exp(blur * stol2)


def seconds(atoms: Atoms, d_min: float, cell: gemmi.UnitCell, spacegroup: gemmi.SpaceGroup) -> float:
    """About how long reflections to ``d_min`` (A) take on one core."""
    step = d_min / (2 * OVERSAMPLING)
    centring = len(spacegroup.operations().cen_ops)
    points = cell.volume / centring / step**3
    grids = len(atoms.scatterers) if points < SMALL_GRID else min(2, len(atoms.scatterers))
    mean_b = float(atoms.b_iso.detach().mean()) if atoms.b_iso.numel() else 0.0
    side = 2 * np.sqrt(20 * (mean_b + 10 * d_min**2) / U_TO_B) / step
    repeats = atoms.kind.numel() / max(1, atoms.kind.shape[-1])
    return float(repeats * (6e-3 + 1e-9 * COST_GRID * grids * points) + 2.5e-9 * atoms.kind.numel() * side**3)


def _spread(atoms: Atoms, vectors: torch.Tensor, plan: _Plan) -> tuple[torch.Tensor, _Mixture, float]:
    """Transforms (grids, m) of the atoms' Gaussians, blurred, on the sphere; and the blur, a B in A^2."""
    like = atoms.b_iso
    steps = like.new_tensor(plan.grid.shape)
    to_steps = steps[:, None] * torch.linalg.inv(vectors)
    needed = plan.d_min**2 * np.log(1 / ALIASING) / (plan.oversampling * (plan.oversampling - 1))
    sharpest = atoms.b_iso.detach().cpu().numpy()
    if atoms.u_aniso is not None:
        tensors = atoms.u_aniso.detach()[:, [0, 3, 4, 3, 1, 5, 4, 5, 2]].view(-1, 3, 3)
        sharpest = sharpest + U_TO_B * torch.linalg.eigvalsh(tensors)[:, 0].cpu().numpy()
    blurred = sharpest + max(0.0, needed - sharpest.min(initial=needed))
    mixture = _Mixture.of(atoms.kind.cpu().numpy(), blurred, atoms.scatterers, plan)
    narrowest = sharpest[mixture.owner] + mixture.widths.min(axis=1)
    blur = float(max(0.0, needed - narrowest.min(initial=needed)))

    i, j = _I, _J
    owner = torch.from_numpy(mixture.owner).to(like.device)
    heights, widths = (torch.from_numpy(a).to(like) for a in (mixture.heights, mixture.widths))
    own_b = atoms.b_iso[owner, None] + widths  # (k, terms)
    isotropic = (to_steps[i] * to_steps[j]).sum(-1)  # (6,), of unit U
    covariance = ((own_b + blur) / U_TO_B)[..., None] * isotropic
    if atoms.u_aniso is not None:
        mixed = to_steps[i][:, i] * to_steps[j][:, j] + to_steps[i][:, j] * to_steps[j][:, i]
        mixed = mixed * like.new_tensor([0.5, 0.5, 0.5, 1.0, 1.0, 1.0])
        covariance = covariance + (atoms.u_aniso @ mixed.T)[owner, None]
    precision, determinant = _inverse(covariance)
    weight = atoms.occupancy[owner, None] * heights * torch.rsqrt(determinant) * (2 * np.pi) ** -1.5
    place = (atoms.xyz.double() @ torch.linalg.inv(plan.basis.double()).T % 1.0)[owner] * steps

    # Unblurring makes the errors of the edge larger at high resolution; at low resolution it is the mass cut off.
    reach = torch.log(heights.abs().clamp(min=0.01)) - min(
        np.log(CUT_OFF), np.log(TRUNCATION) - blur / (4 * plan.d_min**2)
    )
    half = torch.sqrt(2 * reach[..., None] * covariance.detach()[..., :3]).amax(dim=1)
    widest = torch.floor(half + 0.5).long().clamp(min=1).cpu().numpy()
    order, batches = _batches(mixture.grid, mixture.terms, widest, POINTS.get(like.device.type, POINTS["cuda"]))
    rows = torch.from_numpy(order).to(like.device)
    grids = int(mixture.grid.max(initial=len(mixture.references) - 1)) + 1
    return _Transform.apply(weight[rows], place[rows], precision[rows], batches, grids, plan.grid), mixture, blur


def _inverse(m: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Inverses (..., 6), in the order 11 22 33 12 13 23, and determinants (...) of symmetric matrices (..., 6)."""
    a, b, c, d, e, f = m.unbind(-1)
    cofactors = [b * c - f * f, a * c - e * e, a * b - d * d, e * f - c * d, d * f - b * e, d * e - a * f]
    determinant = a * cofactors[0] + d * cofactors[3] + e * cofactors[4]
    return torch.stack(cofactors, dim=-1) / determinant[..., None], determinant
