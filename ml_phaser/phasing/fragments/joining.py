"""Poses that agree: of many found one by one, those that belong together are told by what neither says alone.

Two parts of one crystal give |F_a + F_b|^2 = |F_a|^2 + |F_b|^2 + 2 Re F_a F_b*. By the first two terms each was found,
as the best of a million places; the third was not chosen by anything yet, varies most, and goes with E^2 only where
both stand right, relative to each other too. As every pose was found at an origin of its own, all permissible ones are
tried (docs/decisions/0037-poses-that-agree.md; partial solutions are combined at a common origin by ALIXE: Millan et
al., IUCrJ 2, 95, 2015, there by their phases).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import gemmi
import numpy as np
import torch
from numpy.typing import NDArray

from ml_phaser.crystal.agreement import permissible_origins
from ml_phaser.phasing.fragments.pieces import Piece
from ml_phaser.phasing.fragments.refine import Fitted
from ml_phaser.phasing.fragments.scene import Scene

SPACING = 0.5  # of d_min: steps along axes on which the origin floats
ORIGINS = 1000  # more, and all of them cost as much as a search

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Partner:
    """A pose of a piece at the origin where it agrees best, xyz (1, m, 3) A about ``shift`` (1, 3), fractions of the
    cell, and how well, see ``partners``."""

    piece: Piece
    xyz: torch.Tensor
    shift: torch.Tensor
    agreement: float


def origins(spacegroup: gemmi.SpaceGroup, cell: gemmi.UnitCell, d_min: float) -> Floats:
    """Origin shifts (k, 3), fractions of the cell, one of each that makes a difference; none where there are too many,
    as in P1."""
    permitted, orth = permissible_origins(spacegroup), np.array(cell.orth.mat)
    counts = [math.ceil(float(np.linalg.norm(orth @ line)) / (SPACING * d_min)) for line in permitted.directions]
    if len(permitted.shifts) * math.prod(counts) > ORIGINS:
        return np.zeros((0, 3))
    steps = [
        sum((i / k * line for i, k, line in zip(at, counts, permitted.directions, strict=True)), np.zeros(3))
        for at in itertools.product(*map(range, counts))
    ]
    return np.array([shift + step for shift in permitted.shifts for step in steps])


@torch.no_grad()
def partners(
    scene: Scene, known: torch.Tensor, pools: Sequence[tuple[Piece, Fitted]], shifts: Floats, least: float
) -> list[Partner]:
    """The poses of the pools that agree with what is in place, each at its best origin, the best first: by ``least``
    standard deviations of all of them (most are wrong), or standard errors, whichever are larger.

    known : (n,) structure factors in electrons of what is in place; pools : pieces and the poses that they have by
    themselves; shifts : (k, 3) as from ``origins``
    """
    if not len(shifts) or not pools:
        return []
    places = torch.from_numpy(shifts).float().to(scene.device)
    waves = torch.polar(torch.ones(()).to(places), 2 * math.pi * scene.turned[:, 0] @ places.T)
    found: list[tuple[float, int, int, int]] = []
    square, count = 0.0, 0
    for number, (piece, poses) in enumerate(pools):
        weight, rows = torch.from_numpy(piece.weight).float().to(scene.device), torch.arange(len(poses))
        for some in rows.split(scene.together(len(piece))):
            f = scene.total(scene.parts(poses.xyz[some], weight), poses.shift[some])
            both = crossed(scene, known, f, waves)
            square, count = square + float(both.pow(2).sum()), count + both.numel()
            best, origin = both.max(1)
            found += zip(best.tolist(), [number] * len(some), some.tolist(), origin.tolist(), strict=True)
    spread = max(1.0, math.sqrt(square / max(1, count)))
    return [
        Partner(pools[i][0], pools[i][1].xyz[row, None], pools[i][1].shift[row, None] + places[k], z / spread)
        for z, i, row, k in sorted(found, key=lambda of: -of[0])
        if z >= least * spread
    ]


def crossed(scene: Scene, known: torch.Tensor, others: torch.Tensor, waves: torch.Tensor) -> torch.Tensor:
    """Weighted correlations (B, k) with E^2 of the cross terms of structure factors (n,) and (B, n), these moved by
    ``waves`` (n, k), exp(2 pi i h x), in standard errors: 1 / sqrt(n) of n reflections alike in weight. Of wrong poses
    they have a mean of 0."""
    departure = scene.value - (scene.weight * scene.value).sum()
    cross = known.conj() * others / scene.epsilon
    varies = 2 * (scene.weight * cross.abs() ** 2).sum(-1, keepdim=True)
    size = (scene.weight * departure**2).sum() * scene.weight.pow(2).sum()
    return 2 * ((scene.weight * departure * cross) @ waves).real / (varies * size).sqrt().clamp_min(1e-20)
