"""Structure factors by direct summation, in torch: any cell, batched over reflections to bound memory."""

from __future__ import annotations

import gemmi
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.checkpoint import checkpoint

from ml_phaser.structure_factors.atoms import Atoms
from ml_phaser.structure_factors.form_factors import Scatterer, form_factors
from ml_phaser.structure_factors.operators import Operators

PAIRS = 2**20  # atom-reflection pairs held at once


def orthogonalisation(cell: gemmi.UnitCell | torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """(3, 3) matrix whose columns are a, b, c in A, in the precision and on the device of ``like``."""
    return torch.as_tensor(np.array(cell.orth.mat) if isinstance(cell, gemmi.UnitCell) else cell).to(like)


def direct_sum(
    atoms: Atoms,
    hkl: torch.Tensor | NDArray,
    cell: gemmi.UnitCell | torch.Tensor,
    spacegroup: gemmi.SpaceGroup | str,
    pairs: int = PAIRS,
) -> torch.Tensor:
    """F(h), exactly: see ``calculate.structure_factors``."""
    ops = Operators.of(spacegroup)
    h = torch.as_tensor(hkl, device=atoms.xyz.device).to(torch.float64)
    reciprocal = torch.linalg.inv(orthogonalisation(cell, atoms.b_iso))
    step = max(1, pairs // max(1, atoms.kind.numel() * len(ops.rotation)))
    parts = [
        checkpoint(_chunk, atoms, h[i : i + step], reciprocal, ops, use_reentrant=False) for i in range(0, len(h), step)
    ]
    return torch.cat(parts, dim=-1) if parts else _chunk(atoms, h, reciprocal, ops)


def _chunk(atoms: Atoms, h: torch.Tensor, reciprocal: torch.Tensor, ops: Operators) -> torch.Tensor:
    s = h.to(reciprocal) @ reciprocal  # (n, 3), 1/A
    stol2 = (s * s).sum(-1) / 4
    f = form_factors(atoms.scatterers, stol2)  # (kinds, n)
    f2 = f.new_tensor([k.f_double_prime for k in atoms.scatterers])
    total: dict[bool, torch.Tensor] = {}
    for rotation, translation in zip(ops.rotation, ops.translation, strict=True):
        turned = h @ torch.as_tensor(rotation).to(h)
        cycles = torch.einsum("...mi,ni->...mn", atoms.xyz.to(h), turned)
        angle = (2 * np.pi) * (cycles - torch.round(cycles.detach())).to(s)
        exponent = -atoms.b_iso[..., None] * stol2
        if atoms.u_aniso is not None:
            sr = turned.to(reciprocal) @ reciprocal
            x, y, z = sr.T
            products = torch.stack([x * x, y * y, z * z, 2 * x * y, 2 * x * z, 2 * y * z])
            exponent = exponent - (2 * np.pi**2) * (atoms.u_aniso @ products)
        wave = torch.polar(atoms.occupancy[..., None] * torch.exp(exponent), angle)
        shift = torch.exp(2j * np.pi * (h @ torch.as_tensor(translation).to(h))).to(wave)
        weights = {False: f[atoms.kind], True: f2[atoms.kind][..., None]} if f2.any() else {False: f[atoms.kind]}
        for imaginary, weight in weights.items():
            total[imaginary] = total.get(imaginary, 0) + shift * (weight * wave).sum(-2)
    if ops.inversion is not None:
        shift = torch.exp(2j * np.pi * (h @ torch.as_tensor(ops.inversion).to(h))).to(total[False])
        total = {key: value + shift * value.conj() for key, value in total.items()}
    result = total[False] + 1j * total[True] if True in total else total[False]
    return result * torch.as_tensor(ops.present(h.cpu().numpy())).to(s)


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
