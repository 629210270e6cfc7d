"""Models of the road: pieces in place, their structure factors, and what they led to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import gemmi
import numpy as np
import torch
from numpy.typing import NDArray

from ml_phaser.phasing.fragments.judge import B_MODEL
from ml_phaser.phasing.fragments.pieces import Piece
from ml_phaser.phasing.fragments.scene import Scene
from ml_phaser.structure_factors.direct import structure_factors

Complexes = NDArray[np.complex128]


@dataclass(frozen=True, eq=False)
class Body:
    """A piece in place: xyz (m, 3) in A."""

    piece: Piece
    xyz: torch.Tensor

    @property
    def moulded(self) -> Piece:
        """The piece in the shape it has here."""
        xyz = self.xyz.double().cpu().numpy()
        middle = (self.piece.weight[:, None] * xyz).sum(0) / self.piece.weight.sum()
        return replace(self.piece, xyz=xyz - middle)


@dataclass(frozen=True, eq=False)
class Model:
    """Bodies in place: fit, correlation of |F|^2 with E^2; judged, of E predicted by the network and measured; maps,
    how many its density is the mean of."""

    bodies: tuple[Body, ...]
    fit: float
    judged: float
    f: Complexes
    maps: int = 1

    @property
    def label(self) -> str:
        """What it is made of."""
        pieces = " + ".join(b.piece.label for b in self.bodies)
        return pieces if self.maps == 1 else f"{pieces}, mean of {self.maps} maps"

    @property
    def atoms(self) -> int:
        return sum(len(b.piece) for b in self.bodies)


@dataclass(frozen=True, eq=False)
class Completed:
    """A model and the density it led to: f (n,) on the judge's reflections, held-out correlation, R.

    merit : mean of ``model.judged`` and ``score``, weighted by what they were found from
    lead : of ``merit`` over that of the best model with another map, or its ``judged`` where it was not completed
    """

    model: Model
    f: Complexes
    score: float
    residual: float
    merit: float
    lead: float = 0.0
    seconds: float = 0.0


def factors(scene: Scene, bodies: Sequence[Body], hkl: NDArray[np.int32], cell: gemmi.UnitCell) -> Complexes:
    """Structure factors (n,) of bodies at reflections (n, 3), every atom with B_MODEL."""
    elements = tuple(sorted({e for b in bodies for e in b.piece.elements}))
    kind = torch.tensor([elements.index(e) for b in bodies for e in b.piece.elements])
    x = torch.cat([b.xyz for b in bodies]).cpu() @ scene.frac.cpu().T
    index = torch.from_numpy(hkl.astype(np.float32))
    stol2 = torch.from_numpy((cell.calculate_1_d2_array(hkl) / 4).astype(np.float32))
    one = torch.ones(len(x))
    total = torch.zeros(len(index), dtype=torch.complex64)
    for rot, tran in zip(scene.rot.cpu(), scene.tran.cpu(), strict=True):
        total += structure_factors(index, stol2, x @ rot.T + tran, kind, B_MODEL * one, one, elements)
    return total.numpy().astype(np.complex128)


def overlap(a: Complexes, b: Complexes) -> float:
    """Normalised overlap of two sets of structure factors at the same origin."""
    size = math.sqrt(float((np.abs(a) ** 2).sum() * (np.abs(b) ** 2).sum()))
    return float((a * np.conj(b)).sum().real) / size if size > 0 else 0.0
