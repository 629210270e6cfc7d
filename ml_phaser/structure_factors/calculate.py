"""F(h) of a crystal's atoms in any space group, by direct summation or by FFT, whichever is quicker."""

from __future__ import annotations

from typing import Literal

import gemmi
import numpy as np
import torch
from numpy.typing import NDArray

from ml_phaser.structure_factors import direct, fft
from ml_phaser.structure_factors.atoms import Atoms
from ml_phaser.structure_factors.direct import direct_sum
from ml_phaser.structure_factors.fft import fft_sum
from ml_phaser.structure_factors.operators import cell_of

Method = Literal["auto", "direct", "fft"]


def structure_factors(
    atoms: Atoms,
    hkl: torch.Tensor | NDArray,
    cell: gemmi.UnitCell | torch.Tensor,
    spacegroup: gemmi.SpaceGroup | str,
    method: Method = "auto",
) -> torch.Tensor:
    """F(h) in electrons: the sum over the cell's atoms of
    occ (f0 + f' + i f'') exp(-B s^2 / 4 - 2 pi^2 s.U.s) exp(2 pi i h.x), s = 1/d (International Tables B, 1.2).

    Parameters
    ----------
    hkl : (n, 3) integers, anywhere in reciprocal space
    cell : unit cell, or its orthogonalisation matrix (3, 3), columns a b c in A, which then gets a gradient
    spacegroup : whose operators, centring included, make the cell's atoms from ``atoms``
    method : "direct", exact; "fft", relative error below 1e-3; "auto", the quicker one

    Returns
    -------
    (..., n) complex, in the precision of ``atoms``, differentiable in xyz, b_iso, u_aniso, occupancy (and ``cell``)
    """
    group = gemmi.SpaceGroup(spacegroup) if isinstance(spacegroup, str) else spacegroup
    indices = np.ascontiguousarray(hkl.cpu().numpy() if isinstance(hkl, torch.Tensor) else hkl, dtype=np.int32)
    if method == "auto":
        method = quicker(atoms, indices, cell, group)
    return (direct_sum if method == "direct" else fft_sum)(atoms, indices, cell, group)


def quicker(
    atoms: Atoms, hkl: NDArray[np.int32], cell: gemmi.UnitCell | torch.Tensor, spacegroup: gemmi.SpaceGroup
) -> Literal["direct", "fft"]:
    """The method that is likely to take less time, by the number of atoms, reflections and grid points."""
    if not len(hkl):
        return "direct"
    unit_cell = cell if isinstance(cell, gemmi.UnitCell) else cell_of(cell)
    d_min = float(1 / np.sqrt(max(unit_cell.calculate_1_d2_array(hkl).max(), 1e-4)))
    by_fft = fft.seconds(atoms, d_min, unit_cell, spacegroup)
    return "direct" if direct.seconds(atoms, len(hkl), cell, spacegroup) <= by_fft else "fft"
