"""Structure factors by direct summation, in torch: any cell, batched over reflections to bound memory."""

from __future__ import annotations

from functools import cache

import gemmi
import numpy as np
import torch


@cache
def form_factor_table(elements: tuple[str, ...]) -> torch.Tensor:
    """Coefficients a1 b1 ... a4 b4 c of International Tables vol. C (1992), shape (elements, 9)."""
    rows = []
    for name in elements:
        it92 = gemmi.Element(name).it92
        rows.append([v for ab in zip(it92.a, it92.b, strict=True) for v in ab] + [it92.c])
    return torch.tensor(np.array(rows), dtype=torch.float64)


def form_factors(elements: tuple[str, ...], stol2: torch.Tensor) -> torch.Tensor:
    """f(s) of each element, shape (elements, n), for (sin theta / lambda)^2 in 1/A^2, shape (n,)."""
    t = form_factor_table(elements).to(stol2)
    a, b, c = t[:, 0:8:2, None], t[:, 1:8:2, None], t[:, 8, None]
    return (a * torch.exp(-b * stol2)).sum(dim=1) + c


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
    f = form_factors(elements, stol2)  # (elements, n)
    step = max(1, chunk // max(1, len(xyz)))
    parts = []
    for i in range(0, len(hkl), step):
        s = slice(i, i + step)
        phase = (2 * torch.pi) * (hkl[s].to(xyz) @ xyz.T)  # (chunk, m)
        amp = f[:, s].T[:, kind] * torch.exp(-stol2[s, None] * b_iso) * occupancy
        parts.append(torch.complex((amp * torch.cos(phase)).sum(1), (amp * torch.sin(phase)).sum(1)))
    return torch.cat(parts)
