"""Symmetry in reciprocal space: F(h) of a crystal from F_asu(hR) of its asymmetric unit."""

from __future__ import annotations

from dataclasses import dataclass

import gemmi
import numpy as np
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

    def present(self, hkl: NDArray) -> NDArray[np.float64]:
        """Number of centring vectors, or 0 where they extinguish the reflection; hkl (..., 3) -> (...)."""
        phase = np.exp(2j * np.pi * (np.asarray(hkl) @ self.centring.T))
        return np.round(phase.sum(axis=-1).real)
