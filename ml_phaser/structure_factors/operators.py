"""Symmetry in reciprocal space: F(h) of a crystal from F_asu(hR) of its asymmetric unit.

For an operator x' = R x + t, the images of the atoms add exp(2 pi i h.t) F_asu(hR) (International Tables B, 1.4.2).
F_asu is wanted on each pair of Friedel mates once, over the whole sphere: a ``Sphere``.
"""

from __future__ import annotations

from dataclasses import dataclass

import gemmi
import numpy as np
import torch
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Operators:
    """The operators x' = R x + t of a space group, those related by centring or by an inversion counted once.

    rotation : (g, 3, 3) int; translation : (g, 3), fractions; centring : (c, 3), fractions, the first 0
    inversion : (3,) translation v of x' = -x + v where the group is centrosymmetric, else None
    """

    rotation: NDArray[np.int64]
    translation: NDArray[np.float64]
    centring: NDArray[np.float64]
    inversion: NDArray[np.float64] | None

    @classmethod
    def of(cls, spacegroup: gemmi.SpaceGroup | str) -> Operators:
        """Raises ValueError for a name that gemmi does not know."""
        group = gemmi.SpaceGroup(spacegroup) if isinstance(spacegroup, str) else spacegroup
        ops = group.operations()
        rotation, translation, inversion, seen = [], [], None, set()
        for op in ops.sym_ops:
            rot, tran = np.array(op.rot, dtype=np.int64) // op.DEN, np.array(op.tran) / op.DEN
            if np.array_equal(rot, -np.eye(3)):
                inversion = tran
            if ops.is_centrosymmetric() and (-rot).tobytes() in seen:
                continue
            seen.add(rot.tobytes())
            rotation.append(rot)
            translation.append(tran)
        centring = np.array(ops.cen_ops) / gemmi.Op.DEN
        return cls(np.array(rotation), np.array(translation), centring, inversion)

    def phases(self, hkl: NDArray) -> NDArray[np.complex128]:
        """exp(2 pi i h.t) of each operator, (g, n)."""
        return np.exp(2j * np.pi * (self.translation @ hkl.T))

    def present(self, hkl: NDArray) -> NDArray[np.float64]:
        """Number of centring vectors, 0 where they extinguish the reflection, (n,)."""
        return np.round(np.exp(2j * np.pi * (hkl @ self.centring.T)).sum(axis=1).real)


def orthogonalisation(
    cell: gemmi.UnitCell | torch.Tensor, like: torch.Tensor, spacegroup: gemmi.SpaceGroup
) -> torch.Tensor:
    """(3, 3) matrix whose columns are a, b, c in A, in the precision and on the device of ``like``.

    The gradient of a tensor is limited to changes that leave the cell one of the space group, by adding the difference
    from the mean metric over the point group, which is zero in value.
    """
    if isinstance(cell, gemmi.UnitCell):
        return torch.as_tensor(np.array(cell.orth.mat)).to(like)
    orth = cell.to(like)
    if not orth.requires_grad:
        return orth
    metric = orth.T @ orth
    turns = torch.as_tensor(Operators.of(spacegroup).rotation).to(orth)
    mean = (turns.mT @ metric @ turns).mean(dim=0)
    change = torch.linalg.inv(orth.detach()).T @ (mean - metric) / 2
    return orth + change - change.detach()


def cell_of(orth: torch.Tensor | NDArray) -> gemmi.UnitCell:
    """Unit cell of lattice vectors (3, 3), columns, A."""
    vectors = orth.detach().cpu().double().numpy() if isinstance(orth, torch.Tensor) else orth
    length = np.linalg.norm(vectors, axis=0)
    angle = np.degrees(np.arccos(np.clip(vectors.T @ vectors / np.outer(length, length), -1, 1)))
    a, b, c = length
    return gemmi.UnitCell(a, b, c, angle[1, 2], angle[0, 2], angle[0, 1])


@dataclass(frozen=True, eq=False)
class Sphere:
    """Where F_asu is wanted, and how reflections are put together from it.

    hkl : (m, 3) int64, in the basis that was asked for, no two of them Friedel mates
    row : (g, n) row of ``hkl`` that operator g turns reflection n into
    shift : (g, n) phase factor, times the number of centring vectors
    mate : (g, n) True where it is turned into the Friedel mate of that row
    inverted : (n,) phase factor of the inversion, or None
    """

    hkl: NDArray[np.int64]
    row: torch.Tensor
    shift: torch.Tensor
    mate: torch.Tensor
    inverted: torch.Tensor | None

    @classmethod
    def of(cls, hkl: NDArray, ops: Operators, basis: NDArray) -> Sphere:
        """``basis`` (3, 3): columns are the lattice vectors, in those of the cell, that indices shall refer to."""
        present = ops.present(hkl)
        kept = np.where(present[:, None] > 0, hkl, 0)  # extinct ones need no place of their own
        h = np.rint(np.einsum("ni,gij,jk->gnk", kept, ops.rotation, basis)).astype(np.int64)
        mate = (h[..., 2] < 0) | ((h[..., 2] == 0) & ((h[..., 1] < 0) | ((h[..., 1] == 0) & (h[..., 0] < 0))))
        h = np.where(mate[..., None], -h, h).reshape(-1, 3)
        low = h.min(axis=0, initial=0)
        span = h.max(axis=0, initial=0) - low + 1
        place = ((h[:, 0] - low[0]) * span[1] + h[:, 1] - low[1]) * span[2] + h[:, 2] - low[2]
        taken = np.zeros(int(np.prod(span)), dtype=bool)
        taken[place] = True
        places = np.flatnonzero(taken)
        number = np.zeros(len(taken), dtype=np.int64)
        number[places] = np.arange(len(places))
        unique = np.stack(np.unravel_index(places, tuple(span)), axis=1) + low
        inverted = None
        if ops.inversion is not None:
            inverted = torch.from_numpy(np.exp(2j * np.pi * (hkl @ ops.inversion)))
        return cls(
            unique, torch.from_numpy(number[place].reshape(mate.shape)),
            torch.from_numpy(ops.phases(hkl) * present), torch.from_numpy(mate), inverted,
        )  # fmt: skip

    def to(self, like: torch.Tensor) -> Sphere:
        """On the device and in the precision of a complex or real tensor."""
        kind = like.dtype if like.dtype.is_complex else torch.promote_types(like.dtype, torch.complex32)
        move = (self.row.to(like.device), self.shift.to(like.device, kind), self.mate.to(like.device))
        return Sphere(self.hkl, *move, None if self.inverted is None else self.inverted.to(like.device, kind))

    def gather(self, real: torch.Tensor, imaginary: torch.Tensor | None = None) -> torch.Tensor:
        """F (..., n) from F_asu (..., m): ``real`` of the real part of form factors, ``imaginary`` of f''."""
        turned = real[..., self.row]
        total = (torch.where(self.mate, turned.conj(), turned) * self.shift).sum(-2)
        if self.inverted is not None:
            total = total + self.inverted * total.conj()
        return total if imaginary is None else total + 1j * self.gather(imaginary)
