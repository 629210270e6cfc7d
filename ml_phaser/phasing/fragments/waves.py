"""Structure factors of atoms at the points of a lattice, as products of matrices.

exp(2 pi i (hx + ky + lz)) is the product of three, so that the sum over atoms is a matrix of (h, k) and atoms by one of
atoms and l: a table of sines and cosines for each axis instead of one for each atom and reflection (the factorisation
of Beevers & Lipson, Proc. Phys. Soc. 48, 772, 1936, with atoms in the middle).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Waves:
    """Indices, each split into a row and a column.

    axes : the two of the rows and that of the columns, which has most values; rows (r, 2), columns (c,) their indices,
    columns from 0; place : (k,) of every index in the rows by columns; mate : (k,) whether it is the Friedel mate of
    what is there
    """

    axes: tuple[int, int, int]
    rows: torch.Tensor
    columns: torch.Tensor
    place: torch.Tensor
    mate: torch.Tensor

    @classmethod
    def of(cls, index: NDArray[np.int64], device: torch.device | str) -> Waves:
        """Of integers (k, 3)."""
        column = int(np.argmax(np.abs(index).max(0, initial=0)))
        axes = (*(a for a in range(3) if a != column), column)
        index = index[:, axes]
        mate = index[:, 2] < 0
        index = np.where(mate[:, None], -index, index)
        rows, row = np.unique(index[:, :2], axis=0, return_inverse=True)
        columns = np.arange(index[:, 2].max(initial=0) + 1)
        place = row.reshape(-1) * len(columns) + index[:, 2]

        def tensor(a: NDArray) -> torch.Tensor:
            return torch.from_numpy(np.ascontiguousarray(a)).to(device)

        return cls(axes, tensor(rows), tensor(columns), tensor(place), tensor(mate))  # type: ignore[arg-type]

    def of_atoms(self, x: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Waves of atoms (B, m, 3), fractions of the cell: those of the rows (B, r, m), by their weights (m,), and of
        the columns (B, m, c)."""
        x = x - x.floor()
        along = []
        for k, axis in enumerate(self.axes[:2]):
            index = self.rows[:, k]
            low = int(index.min())
            each = torch.arange(low, int(index.max()) + 1, device=x.device)
            angle = (2 * math.pi) * each.to(x.dtype)[:, None] * x[:, None, :, axis]
            size = weight.to(x.dtype) if k == 0 else torch.ones_like(weight, dtype=x.dtype)
            along.append(torch.polar(size.expand_as(angle), angle).index_select(1, index - low))
        angle = (2 * math.pi) * x[..., self.axes[2], None] * self.columns.to(x.dtype)
        return along[0].mul_(along[1]), torch.polar(torch.ones_like(angle), angle)


class Sums(torch.autograd.Function):
    """Sums (B, k) of the waves of atoms (B, m, 3), fractions of the cell, with scattering powers (m,)."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, waves: Waves, weight: torch.Tensor) -> torch.Tensor:
        rows, columns = waves.of_atoms(x, weight)
        ctx.save_for_backward(rows, columns)
        ctx.waves = waves
        found = (rows @ columns).flatten(1)[:, waves.place]
        return torch.complex(found.real, torch.where(waves.mate, -found.imag, found.imag))

    @staticmethod
    def backward(ctx: Any, slope: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        rows, columns = ctx.saved_tensors
        waves: Waves = ctx.waves
        slope = torch.complex(slope.real, torch.where(waves.mate, -slope.imag, slope.imag))
        spread = slope.new_zeros((len(slope), len(waves.rows) * len(waves.columns)))
        spread = spread.index_add_(1, waves.place, slope).unflatten(1, (len(waves.rows), -1))
        back = columns.conj().transpose(1, 2)  # (B, c, m)
        by_row = (rows.conj() * (spread @ back)).imag  # d / d angle, summed over columns
        by_column = (rows.conj() * (spread @ (waves.columns[:, None] * back))).imag.sum(1)
        out = torch.empty((len(slope), rows.shape[2], 3), dtype=by_row.dtype, device=by_row.device)
        for k, axis in enumerate(waves.axes[:2]):
            out[..., axis] = torch.einsum("brm,r->bm", by_row, waves.rows[:, k].to(by_row.dtype))
        out[..., waves.axes[2]] = by_column
        return (2 * math.pi) * out, None, None
