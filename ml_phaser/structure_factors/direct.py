"""Structure factors by direct summation, exact, in bounded memory.

F_asu(h) = sum_j occ_j f_j(s) exp(-B_j s^2 / 4 - 2 pi^2 s.U_j.s) exp(2 pi i h.x_j)

Where the displacements are isotropic and one reciprocal axis (r, index l) is at right angles to the others, the summand
is a product of a part of (h, k) and one of l, for each atom; the sum over atoms is then a matrix product, rows (h, k)
by columns l, some thirty times quicker than taking the terms one by one. Phases are reduced to a fraction of a cycle in
double precision, so that single precision does not suffer from large indices.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import gemmi
import numpy as np
import torch
from numpy.typing import NDArray

from ml_phaser.structure_factors.atoms import Atoms
from ml_phaser.structure_factors.form_factors import Scatterer, form_factors
from ml_phaser.structure_factors.operators import Operators, Sphere, orthogonalisation

PAIRS = 2**21  # atom-reflection pairs, or atom-row pairs, held at once


@dataclass(frozen=True)
class _Block:
    """Reflections of a sphere that share a rectangle of rows (two indices) and columns (the third).

    rows : (k, 2) indices; columns : (c,) indices; flat : places in the rectangle of the reflections ``number``
    """

    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    flat: torch.Tensor
    number: torch.Tensor


def rectangles(hkl: NDArray[np.int64], axis: int, largest: int) -> list[_Block]:
    """Cover reflections (m, 3) by rectangles of at most ``largest`` rows: columns are along ``axis``, only those that
    the lattice's centring leaves in the rows, and rows in one rectangle are of similar length."""
    others = [i for i in range(3) if i != axis]
    order = np.lexsort((hkl[:, axis], hkl[:, others[1]], hkl[:, others[0]]))
    h = hkl[order]
    starts = np.flatnonzero(np.any(np.diff(h[:, others], axis=0, prepend=np.inf) != 0, axis=1))
    if not len(starts):
        return []
    length = np.diff(np.append(starts, len(h)))
    low, high = h[starts, axis], h[starts + length - 1, axis]
    gaps = np.diff(h[:, axis], append=0)
    gaps[starts + length - 1] = 0
    step = np.maximum(np.gcd.reduceat(gaps, starts), 1)
    step = np.where((high - low) // step + 1 < 4, 1, step)  # too short to tell
    offset = low % step
    reach = np.maximum(np.abs(low), np.abs(high))
    by_size = np.lexsort((-reach, offset, step))
    blocks, at = [], 0
    while at < len(by_size):
        first = by_size[at]
        alike = (step[by_size[at:]] == step[first]) & (offset[by_size[at:]] == offset[first])
        alike &= reach[by_size[at:]] >= 0.8 * reach[first] - 2
        count = min(largest, len(alike) if alike.all() else int(np.argmin(alike)))
        chosen = by_size[at : at + count]
        columns = np.arange(low[chosen].min(), high[chosen].max() + 1, step[first])
        inside = np.repeat(np.arange(count), length[chosen])
        member = np.repeat(starts[chosen] - np.cumsum(length[chosen]) + length[chosen], length[chosen])
        member = member + np.arange(len(member))
        flat = inside * len(columns) + (h[member, axis] - columns[0]) // step[first]
        blocks.append(_Block(h[starts[chosen]][:, others], columns, torch.from_numpy(flat),
                             torch.from_numpy(order[member])))  # fmt: skip
        at += count
    return blocks


@dataclass(frozen=True, eq=False)
class _Plan:
    """Per list of reflections and group: the sphere, and it cut into rectangles (made when first asked for)."""

    sphere: Sphere
    blocks: dict[tuple[int, int], list[_Block]]

    def cut(self, axis: int, largest: int) -> list[_Block]:
        if (axis, largest) not in self.blocks:
            self.blocks[axis, largest] = rectangles(self.sphere.hkl, axis, largest)
        return self.blocks[axis, largest]


@lru_cache(maxsize=8)
def _plan(hkl: bytes, group: str, like: tuple[torch.dtype, torch.device]) -> _Plan:
    indices = np.frombuffer(hkl, dtype=np.int32).reshape(-1, 3)
    sphere = Sphere.of(indices, Operators.of(gemmi.SpaceGroup(group)), np.eye(3))
    return _Plan(sphere.to(torch.zeros((), dtype=like[0], device=like[1])), {})


def direct_sum(
    atoms: Atoms,
    hkl: NDArray[np.int32],
    cell: gemmi.UnitCell | torch.Tensor,
    group: gemmi.SpaceGroup,
    pairs: int = PAIRS,
) -> torch.Tensor:
    """F(h), exactly: see ``calculate.structure_factors``; ``pairs`` bounds what is held at once."""
    like = atoms.b_iso
    plan = _plan(hkl.tobytes(), group.xhm(), (like.dtype, like.device))
    reciprocal = torch.linalg.inv(orthogonalisation(cell, like, group))
    axis = _separable_axis(reciprocal) if _by_rows_will_do(atoms, reciprocal) else None
    if axis is not None and len(hkl):
        parts = _by_rows(atoms, plan, axis, reciprocal, pairs)
    else:
        parts = _by_terms(atoms, plan.sphere, reciprocal, pairs)
    f2 = [k.f_double_prime for k in atoms.scatterers]
    return plan.sphere.gather(parts[0], parts[1] if any(f2) else None)


def seconds(atoms: Atoms, count: int, cell: gemmi.UnitCell | torch.Tensor, spacegroup: gemmi.SpaceGroup) -> float:
    """About how long ``count`` reflections take on one core."""
    pairs = count * len(Operators.of(spacegroup).rotation) * atoms.kind.numel()
    reciprocal = torch.linalg.inv(orthogonalisation(cell, atoms.b_iso.detach(), spacegroup))
    by_rows = _by_rows_will_do(atoms, reciprocal)
    return 5e-3 + 1.5e-10 * pairs if by_rows else 1e-3 + 5e-9 * pairs


def _by_rows_will_do(atoms: Atoms, reciprocal: torch.Tensor) -> bool:
    simple = atoms.u_aniso is None and atoms.kind.dim() == 1 and not reciprocal.requires_grad
    return simple and _separable_axis(reciprocal) is not None


def _separable_axis(reciprocal: torch.Tensor) -> int | None:
    """A reciprocal axis at right angles to both others, the one whose rows are longest, or None."""
    metric = (reciprocal @ reciprocal.T).detach().cpu().double().numpy()
    length = np.sqrt(np.diag(metric))
    cosine = np.abs(metric / np.outer(length, length) - np.eye(3)).max(axis=1)
    axes = [i for i in np.argsort(length) if cosine[i] < 1e-6]
    return int(axes[0]) if axes else None


class _InPieces(torch.autograd.Function):
    """Columns of a result, a piece of them at a time; the gradient is worked out by calling each piece again. The
    first tensor tells precision and device.

    Results and gradients are added to what was made at the start: small tensors that stay, between large ones that
    go, would break up the memory until little of it can be used again.
    """

    @staticmethod
    def forward(
        ctx: Any, pieces: list[tuple[Callable[..., torch.Tensor], torch.Tensor | slice]], shape: tuple[int, ...],
        *tensors: torch.Tensor,
    ) -> torch.Tensor:  # fmt: skip
        ctx.pieces = pieces
        ctx.save_for_backward(*tensors)
        dtype = torch.promote_types(tensors[0].dtype, torch.complex32)
        out = torch.zeros(shape, dtype=dtype, device=tensors[0].device)
        for function, columns in pieces:
            out[..., columns] = function(*tensors)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        needed = ctx.needs_input_grad[2:]
        tensors = [t.detach().requires_grad_(n) for t, n in zip(ctx.saved_tensors, needed, strict=True)]
        wanted = [t for t in tensors if t.requires_grad]
        totals = [torch.zeros_like(t) for t in wanted]
        for function, columns in ctx.pieces:
            with torch.enable_grad():
                value = torch.sum(torch.real(function(*tensors) * grads[0][..., columns].conj()))
            for total, part in zip(totals, torch.autograd.grad(value, wanted), strict=True):
                total += part
        found = iter(totals)
        return (None, None, *(next(found) if n else None for n in needed))


def _waves(x: torch.Tensor, index: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """exp(2 pi i h x), (indices, m), of coordinates (m,) and whole numbers (indices,)."""
    cycles = index.to(torch.float64)[:, None] * x.to(torch.float64)
    angle = (2 * np.pi) * (cycles - torch.round(cycles.detach())).to(dtype)
    return torch.complex(torch.cos(angle), torch.sin(angle))


def _by_rows(atoms: Atoms, plan: _Plan, axis: int, reciprocal: torch.Tensor, pairs: int) -> torch.Tensor:
    """Real and f'' part of F_asu on the sphere, (2, m), by matrix products."""
    order = torch.argsort(atoms.kind, stable=True)
    counts = torch.bincount(atoms.kind, minlength=len(atoms.scatterers)).tolist()
    pieces = [
        (partial(_rectangle, block, axis, reciprocal, atoms.scatterers, counts), block.number)
        for block in plan.cut(axis, max(16, pairs // max(1, len(order))))
    ]
    moved = (t[order] for t in (atoms.b_iso, atoms.xyz, atoms.occupancy))
    return _InPieces.apply(pieces, (2, len(plan.sphere.hkl)), *moved)


def _rectangle(
    block: _Block, axis: int, reciprocal: torch.Tensor, scatterers: tuple[Scatterer, ...], counts: list[int],
    b_iso: torch.Tensor, xyz: torch.Tensor, occupancy: torch.Tensor,
) -> torch.Tensor:  # fmt: skip
    """Real and f'' part of F_asu of one block's reflections, (2, r)."""
    others = [i for i in range(3) if i != axis]
    device, dtype = b_iso.device, b_iso.dtype
    rows, columns = torch.from_numpy(block.rows).to(device), torch.from_numpy(block.columns).to(device)
    along_row = rows.to(dtype) @ reciprocal[others]
    row_stol2 = (along_row * along_row).sum(-1) / 4
    column_stol2 = columns.to(dtype) ** 2 * (reciprocal[axis] @ reciprocal[axis]) / 4
    left = (occupancy * torch.exp(-row_stol2[:, None] * b_iso)).to(torch.promote_types(dtype, torch.complex32))
    for i, x in enumerate(others):
        used, number = torch.unique(rows[:, i], return_inverse=True)
        left = left * _waves(xyz[:, x], used, dtype)[number]
    right = (torch.exp(-column_stol2[:, None] * b_iso) * _waves(xyz[:, axis], columns, dtype)).T
    flat = block.flat.to(device)
    stol2 = (row_stol2[:, None] + column_stol2).reshape(-1)[flat]
    f = form_factors(scatterers, stol2)
    total, start = [torch.zeros_like(flat, dtype=left.dtype)] * 2, 0
    for k, count in enumerate(counts):
        if count:
            own = (left[:, start : start + count] @ right[start : start + count]).view(-1)[flat]
            total = [total[0] + f[k] * own, total[1] + scatterers[k].f_double_prime * own]
        start += count
    return torch.stack(total)


def _by_terms(atoms: Atoms, sphere: Sphere, reciprocal: torch.Tensor, pairs: int) -> torch.Tensor:
    """Real and, where there is any, f'' part of F_asu on the sphere, (1 or 2, ..., m), term by term."""
    step = max(1, pairs // max(1, atoms.kind.numel()))
    hkl = torch.from_numpy(sphere.hkl).to(atoms.b_iso.device)
    pieces = [
        (partial(_terms, atoms.kind, atoms.scatterers, hkl[i : i + step]), slice(i, i + step))
        for i in range(0, len(hkl), step)
    ]
    parts = 1 + any(k.f_double_prime for k in atoms.scatterers)
    tensors = [atoms.b_iso, atoms.xyz, atoms.occupancy, reciprocal]
    tensors += [] if atoms.u_aniso is None else [atoms.u_aniso]
    return _InPieces.apply(pieces, (parts, *atoms.kind.shape[:-1], len(hkl)), *tensors)


def _terms(
    kind: torch.Tensor, scatterers: tuple[Scatterer, ...], hkl: torch.Tensor, b_iso: torch.Tensor, xyz: torch.Tensor,
    occupancy: torch.Tensor, reciprocal: torch.Tensor, u_aniso: torch.Tensor | None = None,
) -> torch.Tensor:  # fmt: skip
    """Real and, where there is any, f'' part of F_asu, (1 or 2, ..., r)."""
    s = hkl.to(reciprocal) @ reciprocal  # (r, 3), 1/A
    stol2 = (s * s).sum(-1) / 4
    cycles = hkl.to(torch.float64) @ xyz.to(torch.float64).mT  # (..., r, m)
    angle = (2 * np.pi) * (cycles - torch.round(cycles.detach())).to(s)
    exponent = -stol2[:, None] * b_iso[..., None, :]
    if u_aniso is not None:
        x, y, z = s.unbind(-1)
        products = torch.stack([x * x, y * y, z * z, 2 * x * y, 2 * x * z, 2 * y * z], dim=-1)
        exponent = exponent - (2 * np.pi**2) * (products @ u_aniso.mT)
    size = occupancy[..., None, :] * torch.exp(exponent)
    factors = [form_factors(scatterers, stol2).T[:, kind].movedim(0, -2)]
    if any(k.f_double_prime for k in scatterers):
        factors.append(size.new_tensor([k.f_double_prime for k in scatterers])[kind][..., None, :])
    cosine, sine = torch.cos(angle), torch.sin(angle)
    parts = [f * size for f in factors]
    return torch.stack([torch.complex((p * cosine).sum(-1), (p * sine).sum(-1)) for p in parts])


def structure_factors(
    hkl: torch.Tensor,
    stol2: torch.Tensor,
    xyz: torch.Tensor,
    kind: torch.Tensor,
    b_iso: torch.Tensor,
    occupancy: torch.Tensor,
    elements: tuple[str, ...],
    chunk: int = 2**22,
) -> torch.Tensor:
    """F(h) = sum_j occ_j f_j(s) exp(-B_j s^2 / 4) exp(2 pi i h.x_j) in P1 (International Tables B, 1.2.1).

    Parameters
    ----------
    hkl : (n, 3); stol2 : (n,) (sin theta / lambda)^2 in 1/A^2
    xyz : (m, 3) fractional; kind : (m,) index into ``elements``; b_iso : (m,) A^2; occupancy : (m,)
    chunk : largest number of atom-reflection pairs held at once

    Returns
    -------
    (n,) complex, differentiable in xyz, b_iso and occupancy
    """
    f = form_factors(tuple(Scatterer(e) for e in elements), stol2)  # (elements, n)
    step = max(1, chunk // max(1, len(xyz)))
    parts = []
    for i in range(0, len(hkl), step):
        s = slice(i, i + step)
        phase = (2 * torch.pi) * (hkl[s].to(xyz) @ xyz.T)  # (chunk, m)
        amp = f[:, s].T[:, kind] * torch.exp(-stol2[s, None] * b_iso) * occupancy
        parts.append(torch.complex((amp * torch.cos(phase)).sum(1), (amp * torch.sin(phase)).sum(1)))
    return torch.cat(parts)
