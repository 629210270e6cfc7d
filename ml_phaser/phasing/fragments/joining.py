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
from dataclasses import dataclass, replace

import gemmi
import numpy as np
import torch
from numpy.typing import NDArray

from ml_phaser.crystal.agreement import permissible_origins
from ml_phaser.phasing.fragments.pieces import Piece
from ml_phaser.phasing.fragments.scene import Scene

SPACING = 0.5  # of d_min: steps along axes on which the origin floats
ORIGINS = 1000  # more, and all of them cost as much as a search

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Pool:
    """Poses of a piece by itself: xyz (B, m, 3) A, about the place ``shift`` (B, 3), fractions of the cell."""

    piece: Piece
    xyz: torch.Tensor
    shift: torch.Tensor


@dataclass(frozen=True, eq=False)
class Partner:
    """A pose (m, 3), (3,) of a pool's piece at the origin where it agrees best, and how well, see ``partners``."""

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
def partners(scene: Scene, known: torch.Tensor, pools: Sequence[Pool], shifts: Floats) -> list[Partner]:
    """All poses of the pools, each at its best origin, those first that agree best with what is in place, by how many
    standard deviations of all of them (most are wrong), or standard errors, whichever are larger.

    known : (n,) structure factors in electrons of what is in place; shifts : (k, 3) as from ``origins``
    """
    if not len(shifts):
        return []
    places = torch.from_numpy(shifts).float().to(scene.device)
    found: list[Partner] = []
    square, count = 0.0, 0
    for pool in pools:
        weight, some = torch.from_numpy(pool.piece.weight).float().to(scene.device), scene.together(len(pool.piece))
        for xyz, shift in zip(pool.xyz.split(some), pool.shift.split(some), strict=True):
            both = crossed(scene, known, scene.total(scene.parts(xyz, weight), shift), places)
            square, count = square + float(both.pow(2).sum()), count + both.numel()
            best = both.max(1)
            found += [
                Partner(pool.piece, x, s + places[k], float(z))
                for x, s, k, z in zip(xyz, shift, best.indices, best.values, strict=True)
            ]
    spread = max(1.0, math.sqrt(square / max(1, count)))
    found = [replace(p, agreement=p.agreement / spread) for p in found]
    return sorted(found, key=lambda p: -p.agreement)


def crossed(scene: Scene, known: torch.Tensor, others: torch.Tensor, shifts: torch.Tensor) -> torch.Tensor:
    """Weighted correlations (B, k) of the cross terms of structure factors (n,) and (B, n) with E^2 at origins (k, 3),
    in standard errors, 1 / sqrt(n) of n reflections alike in weight; of wrong poses they have a mean of 0."""
    waves = torch.polar(torch.ones(()).to(shifts), 2 * math.pi * scene.turned[:, 0] @ shifts.T)  # (n, k)
    departure = scene.value - (scene.weight * scene.value).sum()
    cross = known.conj() * others / scene.epsilon
    varies = 2 * (scene.weight * cross.abs() ** 2).sum(-1, keepdim=True)
    size = (scene.weight * departure**2).sum() * scene.weight.pow(2).sum()
    return 2 * ((scene.weight * departure * cross) @ waves).real / (varies * size).sqrt().clamp_min(1e-20)
