"""From a grid point to the nearest optimum: rigid bodies first, then every bond that may turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from ml_phaser.crystal.peptide import Hinge
from ml_phaser.phasing.fragments.pieces import Piece
from ml_phaser.phasing.fragments.scene import Scene
from ml_phaser.phasing.fragments.search import Poses

MEMORY = (0.9, 0.999)  # of slopes and of their squares, a step later


@dataclass(frozen=True)
class Stride:
    """First steps in rad, A and rad, what they shrink by each time, what a bond's turn of one radian costs in
    correlation."""

    turn: float
    move: float
    bend: float
    cooling: float
    stiffness: float


FINE = Stride(turn=0.008, move=0.03, bend=0.008, cooling=0.97, stiffness=0.006)  # larger ones leave an optimum at 1.5 A


@dataclass(frozen=True, eq=False)
class Fitted:
    """Refined poses: xyz (B, m, 3) A, about the place ``shift`` (B, 3), fractions of the cell; score (B,)."""

    xyz: torch.Tensor
    shift: torch.Tensor
    score: torch.Tensor

    def __len__(self) -> int:
        return len(self.score)

    def take(self, rows: torch.Tensor) -> Fitted:
        """Some of them, in the order of ``rows``."""
        return Fitted(self.xyz[rows], self.shift[rows], self.score[rows])


def bent(xyz: torch.Tensor, hinges: Sequence[Hinge], by: torch.Tensor) -> torch.Tensor:
    """Atoms (B, m, 3) with their hinges turned one after the other, ``by`` (B, k) radians."""
    for column, hinge in enumerate(hinges):
        pivot = xyz[:, hinge.far]
        axis = torch.nn.functional.normalize(pivot - xyz[:, hinge.near], dim=-1)
        moving = torch.from_numpy(hinge.moving).to(xyz.device)[None, :, None]
        turned = about(axis * by[:, column, None], xyz - pivot[:, None]) + pivot[:, None]
        xyz = torch.where(moving, turned, xyz)
    return xyz


def about(vector: torch.Tensor, xyz: torch.Tensor) -> torch.Tensor:
    """Points (B, m, 3) turned by rotation vectors (B, 3), radians (Rodrigues' formula)."""
    angle = vector.pow(2).sum(-1, keepdim=True).add(1e-20).sqrt()
    axis = (vector / angle)[:, None].expand_as(xyz)
    cosine, sine = angle.cos()[..., None], angle.sin()[..., None]
    along = (axis * xyz).sum(-1, keepdim=True)
    return xyz * cosine + torch.cross(axis, xyz, dim=-1) * sine + axis * along * (1 - cosine)


def refine(
    scene: Scene, piece: Piece, poses: Poses, steps: int, *, bend: bool, fixed: torch.Tensor | None = None
) -> Fitted:
    """Climb the correlation with E^2 from each pose, by Adam with shrinking steps.

    Parameters
    ----------
    bend : turn the piece's hinges too; fixed : (n,) structure factors of what is in place already
    """
    atoms = torch.from_numpy(piece.xyz).float().to(scene.device)
    start = torch.einsum("bij,mj->bmi", poses.turn, atoms)
    return climb(scene, piece, start, poses.shift, steps, bend=bend, fixed=fixed)


def scored(scene: Scene, piece: Piece, fitted: Fitted, fixed: torch.Tensor | None = None) -> Fitted:
    """Poses as they are, by their correlation with E^2 on another scene."""
    weight = torch.from_numpy(piece.weight).float().to(scene.device)
    return replace(fitted, score=scene.fits(fitted.xyz, fitted.shift, weight, fixed))


def climb(
    scene: Scene, piece: Piece, xyz: torch.Tensor, shift: torch.Tensor, steps: int, *, bend: bool,
    fixed: torch.Tensor | None = None, stride: Stride = FINE,
) -> Fitted:  # fmt: skip
    """As ``refine``, from atoms (B, m, 3) in A about their places ``shift`` (B, 3)."""
    if not len(xyz):
        return Fitted(xyz, shift, shift.new_zeros(0))
    some = max(1, scene.together(len(piece)) // 2)
    done = [
        _climb(scene, piece, x, s, steps, bend, fixed, stride)
        for x, s in zip(xyz.split(some), shift.split(some), strict=True)
    ]
    return Fitted(*(torch.cat([getattr(d, name) for d in done]) for name in ("xyz", "shift", "score")))


def _climb(
    scene: Scene, piece: Piece, xyz: torch.Tensor, shift: torch.Tensor, steps: int, bend: bool,
    fixed: torch.Tensor | None, stride: Stride,
) -> Fitted:  # fmt: skip
    weight = torch.from_numpy(piece.weight).float().to(scene.device)
    hinges = piece.hinges if bend else ()
    turn, move = torch.zeros_like(shift, requires_grad=True), torch.zeros_like(shift, requires_grad=True)
    by = shift.new_zeros((len(shift), len(hinges)), requires_grad=True)
    stepped = [(turn, stride.turn), (move, stride.move), *([(by, stride.bend)] if hinges else [])]
    mean, square = ([torch.zeros_like(x) for x, _ in stepped] for _ in range(2))

    def posed() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        now, there = about(turn, bent(xyz, hinges, by)), shift + move @ scene.frac.T
        f = scene.total(scene.parts(now, weight), there)
        return now, there, scene.correlation(f if fixed is None else f + fixed)

    best: Sequence[torch.Tensor] = [x.detach() for x in posed()]
    # Adam (Kingma & Ba 2015) in a few lines: torch's own loads its compiler first, seconds of every run.
    for i in range(steps):
        now, there, score = posed()
        best = better((now, there, score), best)
        slopes = torch.autograd.grad(stride.stiffness * by.pow(2).sum() - score.sum(), [x for x, _ in stepped])
        for (x, size), slope, m, v in zip(stepped, slopes, mean, square, strict=True):
            m.lerp_(slope, 1 - MEMORY[0])
            v.lerp_(slope.pow(2), 1 - MEMORY[1])
            rms = (v / (1 - MEMORY[1] ** (i + 1))).sqrt() + 1e-8
            x.data -= size * stride.cooling**i / (1 - MEMORY[0] ** (i + 1)) * m / rms
    with torch.no_grad():
        return Fitted(*better(posed(), best))


def better(new: Sequence[torch.Tensor], old: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Of two sets of poses, xyz (B, m, 3), shift (B, 3) and score (B,), the one of higher score for each pose."""
    gain = new[2].detach() > old[2]
    return [torch.where(gain.view(-1, *[1] * (n.ndim - 1)), n.detach(), o) for n, o in zip(new, old, strict=True)]
