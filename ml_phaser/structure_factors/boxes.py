"""Structure factors of molecules in rectangular P1 cells, many at once, and the maps of single residues in them."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch

from ml_phaser.arrays import irfftn
from ml_phaser.crystal.amino_acids import build_chain
from ml_phaser.crystal.peptide import ROTAMERS
from ml_phaser.crystal.residues import ATOMS, ELEMENTS, RESIDUES
from ml_phaser.structure_factors.form_factors import Scatterer, form_factors

B_FACTOR = 20.0  # A^2
MASS = (12.011, 14.007, 15.999, 32.06)  # of ELEMENTS
NOTHING = -1  # element of a place without an atom
SCATTERERS = tuple(Scatterer(e) for e in ELEMENTS)
ROUNDING = 1 + 1e-6  # reflections at d_min itself are in, as gemmi has them


def structure_factors(
    frac: torch.Tensor, element: torch.Tensor, lengths: torch.Tensor, shape: tuple[int, int, int], d_min: float
) -> torch.Tensor:
    """Half-complex coefficients (B, u, v, w // 2 + 1) of a map on a grid, as ``crystal.grid`` has them, 0 beyond d_min.

    A phase factor of a rectangular cell is a product of one for each axis, so that sums over atoms are products of
    matrices. F(000) is left out.

    Parameters
    ----------
    frac : (B, m, 3); element : (B, m) index into ELEMENTS, NOTHING where there is no atom; lengths : (B, 3) A
    """
    most = [
        min((n - 1) // 2, int(ROUNDING * float(edge) / d_min)) for n, edge in zip(shape, lengths.amax(0), strict=True)
    ]
    axes = [torch.arange(0 if i == 2 else -m, m + 1, device=frac.device) for i, m in enumerate(most)]
    waves = [
        torch.polar(torch.ones((), device=frac.device), -2 * torch.pi * frac[..., i, None] * axes[i]) for i in range(3)
    ]  # (B, m, h)
    h, k, l = torch.meshgrid(*axes, indexing="ij")  # noqa: E741
    index = torch.stack([h, k, l], dim=-1).reshape(1, -1, 3)
    stol2 = (index / lengths[:, None]).pow(2).sum(-1) / 4  # (B, n)
    factors = form_factors(SCATTERERS, stol2) * torch.exp(-B_FACTOR * stol2)[:, None]  # (B, elements, n)
    total = torch.zeros(stol2.shape, dtype=waves[0].dtype, device=frac.device)
    for e in range(len(ELEMENTS)):
        kind = element == e
        if bool(kind.any()):
            plane = (waves[0] * kind[..., None])[..., None] * waves[1][:, :, None]  # (B, m, h, k)
            total = total + factors[:, e] * (plane.flatten(2).mT @ waves[2]).flatten(1)
    total = total * ((stol2 > 0) & (4 * stol2 <= ROUNDING / d_min**2))
    out = torch.zeros((len(frac), shape[0], shape[1], shape[2] // 2 + 1), dtype=total.dtype, device=frac.device)
    rows, columns = axes[0][:, None] % shape[0], axes[1] % shape[1]
    out[:, rows, columns, : most[2] + 1] = total.reshape(len(frac), *h.shape)
    return out


@cache
def standard_residues() -> tuple[torch.Tensor, torch.Tensor]:
    """Every residue of RESIDUES alone, extended, in its commonest rotamer: coordinates (20, m, 3) in A about the centre
    of mass, elements (20, m). Without the second oxygen of the carboxylate, as in a chain."""
    most = max(len(names) for names in ATOMS.values())
    xyz = torch.zeros(len(RESIDUES), most, 3)
    element = torch.full((len(RESIDUES), most), NOTHING)
    for i, letter in enumerate(RESIDUES):
        chain = build_chain(letter, [(-120.0, 130.0)], [ROTAMERS[letter][0]], [180.0])
        rows = [chain.names.index(name) for name in ATOMS[letter]]
        kinds = np.array([ELEMENTS.index(name[0]) for name in ATOMS[letter]])
        mass = np.array(MASS)[kinds]
        where = chain.xyz[rows]
        xyz[i, : len(rows)] = torch.from_numpy(where - mass @ where / mass.sum())
        element[i, : len(rows)] = torch.from_numpy(kinds)
    return xyz, element


def maps_of_parts(aa: torch.Tensor, lengths: torch.Tensor, shape: tuple[int, int, int], d_min: float) -> torch.Tensor:
    """Maps (B, J, u, v, w) of unit variance of residues ``aa`` (B, J), index into RESIDUES, each by itself in the
    standard conformation with its centre of mass at the centre of the cell."""
    xyz, element = (t.to(lengths.device) for t in standard_residues())
    b, j = aa.shape
    flat, edges = aa.flatten(), lengths.repeat_interleave(j, dim=0)
    half = structure_factors(xyz[flat] / edges[:, None] + 0.5, element[flat], edges, shape, d_min)
    return unit(half, shape)[1].reshape(b, j, *shape)


def unit(half: torch.Tensor, shape: tuple[int, int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Coefficients and maps scaled to unit variance; the mean is zero, as F(000) is left out."""
    rho = irfftn(half, shape)
    size = rho.pow(2).mean(dim=(1, 2, 3), keepdim=True).sqrt().clamp_min(1e-12)
    return half / size, rho / size
