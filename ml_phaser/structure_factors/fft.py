"""Structure factors by FFT: one Gaussian an atom, one grid an element, exact scattering factors.

    atom -> Gaussian of its own displacement + common blur -> grid -> FFT -> x f(s) x exp(+blur s^2 / 4) -> symmetry

All atoms of one element share f(s), which is put on after the transform; so each atom is a single Gaussian and no
scattering factor is approximated (Sayre 1951 and Ten Eyck 1977 spread the element's whole density). The blur widens
the atoms until the grid samples them finely enough (Bricogne, International Tables B, 1.3.4.4.5). Only the asymmetric
unit is spread, over the primitive reduced cell of the lattice; symmetry is applied to the transform (``operators``).
The gradient is one adjoint transform and a gather with the same Gaussians (Agarwal 1978).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import gemmi
import numpy as np
import torch
from numpy.typing import NDArray

from ml_phaser.crystal.grid import grid_shape
from ml_phaser.structure_factors.atoms import U_TO_B, Atoms
from ml_phaser.structure_factors.form_factors import form_factors
from ml_phaser.structure_factors.operators import Operators, Sphere

OVERSAMPLING = 1.5  # of the shortest wavelength, beyond two grid points
ALIASING = 1e-3  # of the sharpest atom at d_min
TRUNCATION = 3e-4  # of a Gaussian, at the edge of its box, after unblurring
CHUNK = {"cpu": 2**19, "cuda": 2**25}  # grid points handled at once


@dataclass(frozen=True)
class _Layout:
    """Atoms in the order they are spread: slices of one element and similar size, each with its box half widths."""

    order: torch.Tensor
    slices: tuple[tuple[int, int, int, tuple[int, int, int]], ...]  # element, first, last + 1, half widths


def _triple(a: NDArray) -> tuple[int, int, int]:
    return int(a[0]), int(a[1]), int(a[2])


def _layout(kind: NDArray, half: NDArray, chunk: int) -> _Layout:
    volume = np.prod(2 * half + 1, axis=1)
    order = np.lexsort((-volume, kind))
    kind, half, volume = kind[order], half[order], volume[order]
    slices, start = [], 0
    while start < len(order):
        stop = min(start + max(1, chunk // int(volume[start])), int(np.searchsorted(kind, kind[start], "right")))
        stop = min(stop, start + int(np.searchsorted(-volume[start:stop], -0.7 * volume[start], "right")))
        slices.append((int(kind[start]), start, stop, _triple(half[start:stop].max(axis=0))))
        start = stop
    return _Layout(torch.from_numpy(order), tuple(slices))


@dataclass(frozen=True)
class _Boxes:
    """The grid points about some atoms: where they are and what each atom puts there.

    index : (c, u, v, w) flat; value : (c, u, v, w) Gaussian of weight 1; offsets : three (u,) (v,) (w,) of the points
    from the nearest one; fraction : (c, 3) of the atom from that
    """

    index: torch.Tensor
    value: torch.Tensor
    offsets: tuple[torch.Tensor, ...]
    fraction: torch.Tensor


def _boxes(
    place: torch.Tensor, precision: torch.Tensor, weight: torch.Tensor, half: tuple[int, int, int],
    shape: tuple[int, int, int],
) -> _Boxes:  # fmt: skip
    """``place`` (c, 3) in grid steps; ``precision`` (c, 6) the inverse covariance per step^2; ``weight`` (c,)."""
    nearest = torch.round(place)
    fraction = (place - nearest).to(precision)
    steps = [torch.arange(-n, n + 1, device=place.device) for n in half]
    offsets = tuple(s.to(precision) for s in steps)
    u, v, w = ((nearest[:, i, None].long() + steps[i]) % shape[i] for i in range(3))
    index = ((u[:, :, None] * shape[1] + v[:, None]) * shape[2])[..., None] + w[:, None, None]
    du, dv, dw = (offsets[i] - fraction[:, i, None] for i in range(3))
    m11, m22, m33, m12, m13, m23 = (m[:, None] for m in precision.unbind(1))
    uv = (-0.5 * m11 * du * du)[:, :, None] + (-0.5 * m22 * dv * dv)[:, None] - (m12 * du)[:, :, None] * dv[:, None]
    uw = -(m13 * du)[:, :, None] * dw[:, None]
    vw = (-0.5 * m33 * dw * dw)[:, None] - (m23 * dv)[:, :, None] * dw[:, None]
    value = (uv.exp_() * weight[:, None, None])[..., None] * uw.exp_()[:, :, None]
    value *= vw.exp_()[:, None]
    return _Boxes(index, value, offsets, fraction)


class _Transform(torch.autograd.Function):
    """Fourier transforms, at chosen reflections, of each element's Gaussians."""

    @staticmethod
    def forward(
        ctx: Any, weight: torch.Tensor, place: torch.Tensor, precision: torch.Tensor, layout: _Layout, kinds: int,
        shape: tuple[int, int, int], flat: torch.Tensor,
    ) -> torch.Tensor:  # fmt: skip
        """weight (m,), place (m, 3), precision (m, 6), all in the layout's order; flat (r,) into the half-complex grid;
        -> (kinds, r)."""
        ctx.save_for_backward(weight, place, precision, flat)
        ctx.fixed = (layout, kinds, shape)
        out = torch.zeros((kinds, len(flat)), dtype=torch.promote_types(weight.dtype, torch.complex32)).to(
            weight.device
        )
        for kind, slices in _by_kind(layout):
            grid = weight.new_zeros(shape)
            for _, start, stop, half in slices:
                s = slice(start, stop)
                box = _boxes(place[s], precision[s], weight[s], half, shape)
                grid.view(-1).scatter_add_(0, box.index.view(-1), box.value.view(-1))
            # the library's transform carries exp(-), ours exp(+)
            out[kind] = torch.fft.rfftn(grid).view(-1)[flat].conj()
        return out

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        weight, place, precision, flat = ctx.saved_tensors
        layout, _, shape = ctx.fixed
        to_weight, to_place, to_precision = (torch.zeros_like(t) for t in (weight, place, precision))
        halved = torch.where(flat % (shape[2] // 2 + 1) == 0, 1.0, 0.5).to(weight)  # irfft counts the others twice
        for kind, slices in _by_kind(layout):
            half_grid = torch.zeros((shape[0], shape[1], shape[2] // 2 + 1), dtype=grads[0].dtype, device=weight.device)
            half_grid.view(-1)[flat] = grads[0][kind].conj() * halved
            field = torch.fft.irfftn(half_grid, s=shape, norm="forward").view(-1)
            for _, start, stop, half in slices:
                s = slice(start, stop)
                box = _boxes(place[s], precision[s], torch.ones_like(weight[s]), half, shape)
                moments = _moments(box, box.value.mul_(field[box.index]))
                to_weight[s] = moments[:, 0]
                to_place[s] = (_symmetric(precision[s], moments[:, 1:4]) * weight[s, None]).to(place)
                scale = weight.new_tensor([-0.5, -0.5, -0.5, -1.0, -1.0, -1.0])
                to_precision[s] = moments[:, 4:] * scale * weight[s, None]
        return to_weight, to_place, to_precision, None, None, None, None


def _by_kind(layout: _Layout) -> Iterator[tuple[int, list[Any]]]:
    for kind in sorted({s[0] for s in layout.slices}):
        yield kind, [s for s in layout.slices if s[0] == kind]


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
    i, j = [0, 1, 2, 0, 0, 1], [0, 1, 2, 1, 2, 2]
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
    """What does not depend on the atoms."""

    basis: torch.Tensor
    sphere: Sphere
    shape: tuple[int, int, int]
    d_min: float
    flat: torch.Tensor
    hkl: torch.Tensor


@lru_cache(maxsize=8)
def _plan(
    hkl_bytes: bytes, cell: tuple[float, ...], group: str, oversampling: float, device: torch.device, dtype: torch.dtype
) -> _Plan:
    hkl = np.frombuffer(hkl_bytes, dtype=np.int32).reshape(-1, 3)
    unit_cell, spacegroup = gemmi.UnitCell(*cell), gemmi.SpaceGroup(group)
    basis = reduced_basis(unit_cell, spacegroup)
    sphere = Sphere.of(hkl, Operators.of(spacegroup), basis)
    vectors = np.array(unit_cell.orth.mat) @ basis
    d_min = 1 / np.sqrt((unit_cell.calculate_1_d2_array(hkl)).max(initial=1e-4))
    shape = grid_shape(_cell_of(vectors), float(d_min), spacing=float(d_min) / (2 * oversampling))
    h = sphere.hkl % np.array(shape)
    flat = (h[:, 0] * shape[1] + h[:, 1]) * (shape[2] // 2 + 1) + h[:, 2]
    like = torch.zeros((), dtype=dtype, device=device)
    move = torch.from_numpy(basis).to(like), sphere.to(like)
    return _Plan(*move, shape, float(d_min), torch.from_numpy(flat).to(device), torch.from_numpy(sphere.hkl).to(like))


def _cell_of(vectors: NDArray) -> gemmi.UnitCell:
    """Unit cell of lattice vectors (columns, A)."""
    a, b, c = np.linalg.norm(vectors, axis=0)
    unit = vectors / np.linalg.norm(vectors, axis=0)
    angle = np.degrees(np.arccos(np.clip(unit.T @ unit, -1, 1)))
    return gemmi.UnitCell(a, b, c, angle[1, 2], angle[0, 2], angle[0, 1])


def _unit_cell(orth: torch.Tensor) -> gemmi.UnitCell:
    return _cell_of(orth.detach().cpu().double().numpy())


def fft_sum(
    atoms: Atoms,
    hkl: torch.Tensor | NDArray,
    cell: gemmi.UnitCell | torch.Tensor,
    spacegroup: gemmi.SpaceGroup | str,
    oversampling: float = OVERSAMPLING,
    aliasing: float = ALIASING,
    truncation: float = TRUNCATION,
) -> torch.Tensor:
    """F(h) by FFT: see ``calculate.structure_factors``."""
    group = gemmi.SpaceGroup(spacegroup) if isinstance(spacegroup, str) else spacegroup
    unit_cell = cell if isinstance(cell, gemmi.UnitCell) else _unit_cell(cell)
    like = atoms.b_iso
    indices = np.ascontiguousarray(hkl.cpu().numpy() if isinstance(hkl, torch.Tensor) else hkl, dtype=np.int32)
    plan = _plan(indices.tobytes(), unit_cell.parameters, group.xhm(), oversampling, like.device, like.dtype)
    orth = torch.as_tensor(np.array(cell.orth.mat) if isinstance(cell, gemmi.UnitCell) else cell).to(like)
    if atoms.kind.dim() > 1:
        rows = [
            fft_sum(_row(atoms, i), indices, cell, group, oversampling, aliasing, truncation)
            for i in range(len(atoms.kind))
        ]
        return torch.stack(rows)
    vectors = orth @ plan.basis
    inverse = torch.linalg.inv(vectors)

    u = torch.eye(3).to(like) * (atoms.b_iso[:, None, None] / U_TO_B)
    smallest = atoms.b_iso.detach()
    if atoms.u_aniso is not None:
        tensor = atoms.u_aniso[:, [0, 3, 4, 3, 1, 5, 4, 5, 2]].view(-1, 3, 3)
        u = u + tensor
        smallest = smallest + U_TO_B * torch.linalg.eigvalsh(tensor.detach())[:, 0]
    needed = plan.d_min**2 * np.log(1 / aliasing) / (oversampling * (oversampling - 1))
    blur = max(0.0, needed - float(smallest.min())) if len(smallest) else 0.0
    u = u + torch.eye(3).to(like) * (blur / U_TO_B)

    steps = like.new_tensor(plan.shape)
    to_steps = steps[:, None] * inverse  # from A to grid steps along each axis
    covariance = to_steps @ u @ to_steps.T
    precision, determinant = _inverse(covariance)
    weight = atoms.occupancy * torch.rsqrt(determinant) * (2 * np.pi) ** -1.5
    place = (atoms.xyz.double() @ torch.linalg.inv(plan.basis.double()).T % 1.0) * steps

    reach = np.sqrt(2 * (np.log(1 / truncation) + blur / (4 * plan.d_min**2)))
    widths = torch.sqrt(torch.diagonal(covariance.detach(), dim1=1, dim2=2)).cpu().numpy() * reach
    half = np.maximum(np.floor(widths + 0.5).astype(np.int64), 1)
    layout = _layout(atoms.kind.cpu().numpy(), half, CHUNK.get(like.device.type, CHUNK["cuda"]))
    order = layout.order.to(like.device)
    parts = _Transform.apply(
        weight[order], place[order], precision[order], layout, len(atoms.scatterers), plan.shape, plan.flat
    )

    s = plan.hkl @ inverse
    stol2 = (s * s).sum(-1) / 4
    unblur = torch.exp(blur * stol2)
    real = (form_factors(atoms.scatterers, stol2) * parts).sum(0) * unblur
    f2 = like.new_tensor([k.f_double_prime for k in atoms.scatterers])
    imaginary = (f2[:, None] * parts).sum(0) * unblur if f2.any() else None
    return plan.sphere.gather(real, imaginary)


def _row(atoms: Atoms, i: int) -> Atoms:
    u = None if atoms.u_aniso is None else atoms.u_aniso[i]
    return atoms.replace(
        xyz=atoms.xyz[i], kind=atoms.kind[i], b_iso=atoms.b_iso[i], occupancy=atoms.occupancy[i], u_aniso=u
    )


def _inverse(m: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Inverses (n, 6), as 11 22 33 12 13 23, and determinants (n,) of symmetric matrices (n, 3, 3)."""
    a, b, c, d, e, f = m[:, 0, 0], m[:, 1, 1], m[:, 2, 2], m[:, 0, 1], m[:, 0, 2], m[:, 1, 2]
    cofactors = [b * c - f * f, a * c - e * e, a * b - d * d, e * f - c * d, d * f - b * e, d * e - a * f]
    determinant = a * cofactors[0] + d * cofactors[3] + e * cofactors[4]
    return torch.stack(cofactors, dim=1) / determinant[:, None], determinant
