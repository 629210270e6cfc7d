"""The hand of amino acids, read off atoms without names: which three of a carbon's neighbours are N, C and CB.

An alpha carbon is told by what it is bonded to and by what those are bonded to: distances of Engh & Huber, Acta Cryst.
A47, 392 (1991), for termini those of amino acids (International Tables C, 9.5), and weights. Seen from the hydrogen, C,
N and CB of an L-amino acid lie counter-clockwise: (N - CA) x (C - CA) . (CB - CA) > 0 (IUPAC-IUB 1970).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import permutations

import numpy as np
from numpy.typing import NDArray

from ml_phaser.crystal.peaks import Images

Floats = NDArray[np.float64]

BOND = (1.05, 1.95)  # A: all that can be bonds between C, N, O and S
DISTANCE, WEIGHT = 0.035, 0.13  # standard errors: A; of weights over those of carbon
TO_CA = (1.475, 1.525, 1.530)  # A, of N, C, CB
ELECTRONS = (7 / 6, 1.0, 1.0)  # over those of carbon
# Of each role: what else it may be bonded to (A), and how often. Open ends are those of chains that break off.
BEYOND: tuple[tuple[tuple[tuple[float, ...], float], ...], ...] = (
    (((), 0.3), ((1.335,), 0.6), ((1.335, 1.47), 0.05), ((1.47,), 0.05)),
    (((1.235, 1.33), 0.6), ((1.25, 1.25), 0.25), ((1.235,), 0.15)),
    (((), 0.1), ((1.52,), 0.6), ((1.42,), 0.08), ((1.81,), 0.02), ((1.52, 1.525), 0.13), ((1.425, 1.52), 0.07)),
)  # fmt: skip
ELSE = -4.0  # log-likelihood of what is not in the table, for a role
NO_CARBON = -6.0  # of a centre that is no alpha carbon at all
FLAT = 0.3  # of the volume of three unit vectors, about 0.74 about a tetrahedral atom: less is no chiral centre
MOST = 4.0  # log-odds that one centre may give


@dataclass(frozen=True, eq=False)
class Bonded:
    """What an atom is bonded to: rows of the atoms, vectors to them in A, longest bonds last."""

    rows: NDArray[np.int64]
    vectors: Floats

    @property
    def lengths(self) -> Floats:
        return np.asarray(np.linalg.norm(self.vectors, axis=1))


def bonds(frac: Floats, images: Images) -> list[Bonded]:
    """Of each of m atoms (m, 3), those of all images within the length of a bond."""
    found: list[list[tuple[float, int, Floats]]] = [[] for _ in frac]
    for image in images.of(frac):
        vectors = images.nearest(image[None] - frac[:, None])  # from atom i to the image of j
        lengths = np.linalg.norm(vectors, axis=-1)
        for i, j in np.argwhere((lengths > BOND[0]) & (lengths < BOND[1])).tolist():
            found[i].append((float(lengths[i, j]), j, vectors[i, j]))
    out = []
    for near in found:
        near.sort(key=lambda x: x[0])
        out.append(
            Bonded(np.array([j for _, j, _ in near], dtype=np.int64), np.array([v for *_, v in near]).reshape(-1, 3))
        )
    return out


def alpha_carbons(frac: Floats, weight: Floats, images: Images) -> Floats:
    """Log-odds that centres are L and not D, of each atom (m,): 0 where it is no chiral alpha carbon.

    Parameters
    ----------
    frac : (m, 3) of the asymmetric unit; weight : (m,) scattering power, on any scale
    """
    bonded = bonds(frac, images)
    carbon = light(weight)
    return np.array([_centre(i, bonded, weight / carbon) for i in range(len(frac))])


def light(weight: Floats) -> float:
    """Weight of a carbon: the lightest third of the atoms of organic matter are carbons."""
    return float(np.quantile(weight, 0.3)) if len(weight) else 1.0


def _centre(i: int, bonded: list[Bonded], electrons: Floats) -> float:
    around = bonded[i]
    if not 3 <= len(around.rows) <= 4:
        return 0.0
    unit = around.vectors / around.lengths[:, None]
    roles = np.array([_roles(i, k, bonded, electrons) for k in range(len(around.rows))])
    odds = {True: [NO_CARBON * 3], False: [NO_CARBON * 3]}
    for n, c, cb in permutations(range(len(around.rows)), 3):
        volume = float(np.dot(unit[n], np.cross(unit[c], unit[cb])))
        if abs(volume) > FLAT:
            odds[volume > 0].append(roles[n, 0] + roles[c, 1] + roles[cb, 2])
    left, right = (float(np.logaddexp.reduce(odds[side])) for side in (True, False))
    return float(np.clip(left - right, -MOST, MOST))


def _roles(i: int, k: int, bonded: list[Bonded], electrons: Floats) -> tuple[float, ...]:
    """Log-likelihoods that the k-th neighbour of atom i is N, C, CB."""
    j, to = int(bonded[i].rows[k]), bonded[i].vectors[k]
    back = np.linalg.norm(bonded[j].vectors + to, axis=1) > 0.3 if len(bonded[j].rows) else np.zeros(0, dtype=bool)
    beyond = np.sort(bonded[j].lengths[back]) if len(back) else np.zeros(0)
    length, power = float(np.linalg.norm(to)), float(electrons[j])
    found = []
    for role in range(3):
        value = _normal(length - TO_CA[role], DISTANCE) + _normal(power - ELECTRONS[role], WEIGHT)
        cases = [
            math.log(share) + sum(_normal(x - y, DISTANCE) for x, y in zip(beyond, usual, strict=True))
            for usual, share in BEYOND[role]
            if len(usual) == len(beyond)
        ]
        found.append(value + float(np.logaddexp.reduce([*cases, ELSE])))
    return tuple(found)


def _normal(x: float, error: float) -> float:
    """Logarithm of a normal density but for its constant, no less than far out."""
    return max(-8.0, -0.5 * (x / error) ** 2)
