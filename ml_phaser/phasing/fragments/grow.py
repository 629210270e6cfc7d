"""Longer chains: a placed piece of poly-alanine is built on, residue by residue, as long as the judge approves."""

from __future__ import annotations

import math

import gemmi
import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from ml_phaser.crystal.peptide import REGIONS, build
from ml_phaser.phasing.fragments.pieces import Piece, of_peptide

NEXT = (*((-120.0, 130.0), (-140.0, 145.0), (-95.0, 120.0)), REGIONS["PPII"], REGIONS["helix"])  # phi, psi in degrees


def torsions(piece: Piece, xyz: NDArray[np.float64]) -> tuple[list[tuple[float, float]], list[float]]:
    """phi and psi of each residue (0 where there is none) and omega before it (180 of the first), in degrees."""
    at = {(int(r), n): gemmi.Position(*x) for r, n, x in zip(piece.residue, piece.names, xyz, strict=True)}

    def angle(*atoms: tuple[int, str]) -> float:
        return math.degrees(gemmi.calculate_dihedral(*(at[a] for a in atoms)))

    last = int(piece.residue.max())
    pairs, omega = [], []
    for i in range(last + 1):
        phi = angle((i - 1, "C"), (i, "N"), (i, "CA"), (i, "C")) if i else 0.0
        following = angle((i, "N"), (i, "CA"), (i, "C"), (i + 1, "N")) if i < last else None
        # O lies opposite to the next N: it tells psi where the chain ends.
        psi = following if following is not None else angle((i, "N"), (i, "CA"), (i, "C"), (i, "O")) - 180.0
        pairs.append((phi, psi))
        omega.append(angle((i - 1, "CA"), (i - 1, "C"), (i, "N"), (i, "CA")) if i else 180.0)
    return pairs, omega


def longer(piece: Piece, xyz: NDArray[np.float64]) -> tuple[Piece, NDArray[np.float64]]:
    """The piece with one more alanine, and where its atoms may be (2 x NEXT, m + 5, 3): with the alanine at either end,
    in every conformation of NEXT, superposed on (m, 3) A."""
    pairs, omega = torsions(piece, xyz)
    count = len(pairs)
    found = []
    for phi, psi in NEXT:
        behind = [*pairs, (phi, psi)]
        before = [(phi, psi), (phi, pairs[0][1]), *pairs[1:]]
        for offset, chain, turns in ((0, behind, [*omega, 180.0]), (1, before, [180.0, 180.0, *omega[1:]])):
            label = f"{piece.label.split(',')[0].rsplit(' ', 1)[0]} {count + 1}, grown"
            new = of_peptide(label, build("A" * (count + 1), chain, [()] * (count + 1), turns))
            there = {(int(r), n): i for i, (r, n) in enumerate(zip(new.residue, new.names, strict=True))}
            rows = [there[int(r) + offset, n] for r, n in zip(piece.residue, piece.names, strict=True)]
            found.append(superposed(new.xyz, new.xyz[rows], xyz))
    return new, np.stack(found)


def superposed(xyz: NDArray[np.float64], own: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """Atoms (m, 3), moved as their part ``own`` (k, 3) has to be to lie on ``other`` (k, 3)."""
    turn, _ = Rotation.align_vectors(other - other.mean(0), own - own.mean(0))
    return np.asarray(turn.apply(xyz - own.mean(0)) + other.mean(0))
