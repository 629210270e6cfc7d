"""F(h) of a crystal's atoms in any space group, by direct summation or by FFT, whichever is quicker."""

from __future__ import annotations

from typing import Literal

import gemmi
import torch
from numpy.typing import NDArray

from ml_phaser.structure_factors.atoms import Atoms
from ml_phaser.structure_factors.direct import direct_sum
from ml_phaser.structure_factors.fft import fft_sum

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
    if method == "fft" or (method == "auto" and atoms.kind.shape[-1] * len(hkl) > 10**6):
        return fft_sum(atoms, hkl, cell, spacegroup)
    return direct_sum(atoms, hkl, cell, spacegroup)
