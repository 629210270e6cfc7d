"""How badly a model explains measured amplitudes: minus the log likelihood, or least squares.

The likelihood is that of ``structure_factors.sigmaa``, its errors estimated from the free reflections (Read 1986, Acta
Cryst. A42, 140; Murshudov, Vagin & Dodson 1997, Acta Cryst. D53, 240). Least squares, the sum of
(F_obs - |F_model|)^2 / (2 v), is for data with too few of those.
"""

from __future__ import annotations

from dataclasses import dataclass

import gemmi
import numpy as np
import torch
from numpy.typing import NDArray

from ml_phaser.structure_factors.atoms import Atoms
from ml_phaser.structure_factors.calculate import Method, structure_factors
from ml_phaser.structure_factors.sigmaa import minus_log_likelihood


@dataclass(frozen=True, eq=False)
class Target:
    """The target of one macrocycle: scales, solvent and errors stay as they are, atoms change.

    Attributes
    ----------
    hkl : (n, 3) of the work set, like all that follows
    f_obs : (n,); k_total (n,); solvent (n,) complex, k_mask F_mask
    alpha, beta : (n,) of the error model; alpha None for least squares, whose variances beta then are
    centric : (n,) bool
    """

    hkl: NDArray[np.int32]
    cell: gemmi.UnitCell
    spacegroup: gemmi.SpaceGroup
    f_obs: torch.Tensor
    k_total: torch.Tensor
    solvent: torch.Tensor
    alpha: torch.Tensor | None
    beta: torch.Tensor
    centric: torch.Tensor
    method: Method = "auto"

    def __call__(self, atoms: Atoms) -> torch.Tensor:
        """A scalar, differentiable in what the structure factors are."""
        f_calc = structure_factors(atoms, self.hkl, self.cell, self.spacegroup, self.method).to(torch.complex128)
        f = self.k_total * (f_calc + self.solvent)
        size = (f.real.pow(2) + f.imag.pow(2) + 1e-12).sqrt()
        if self.alpha is None:
            return ((self.f_obs - size).pow(2) / (2 * self.beta)).sum()
        return minus_log_likelihood(self.f_obs, size, self.alpha, self.beta, self.centric).sum()
