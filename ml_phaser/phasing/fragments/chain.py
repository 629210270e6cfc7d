"""Placed chains as torsions, and chains built anew on the same place with other side chains."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import gemmi
import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from ml_phaser.crystal.amino_acids import side_chain
from ml_phaser.crystal.peptide import build
from ml_phaser.phasing.fragments.pieces import Piece, of_peptide

MAIN = ("N", "CA", "C", "O")

Floats = NDArray[np.float64]


def torsions(piece: Piece, xyz: Floats) -> tuple[list[tuple[float, float]], list[float]]:
    """phi and psi of each residue (0 where there is none) and omega before it (180 of the first), in degrees."""
    at = _positions(piece, xyz)

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


def side_torsions(piece: Piece, xyz: Floats) -> list[tuple[float, ...]]:
    """chi 1, chi 2 ... of each residue, in degrees."""
    at = _positions(piece, xyz)
    found = []
    for i, letter in enumerate(piece.letters):
        rows = [row for row in side_chain(letter) if row[6] and row[7] == 0]
        names = [(row[3], row[2], row[1], row[0]) for row in rows]
        found.append(tuple(math.degrees(gemmi.calculate_dihedral(*(at[i, n] for n in four))) for four in names))
    return found


def _positions(piece: Piece, xyz: Floats) -> dict[tuple[int, str], gemmi.Position]:
    return {(int(r), n): gemmi.Position(*x) for r, n, x in zip(piece.residue, piece.names, xyz, strict=True)}


def rebuilt(
    piece: Piece, xyz: Floats, sequence: str, first: int, chis: Sequence[Sequence[float]]
) -> tuple[Piece, Floats]:
    """The same main chain, (m, 3) A, with the side chains of a stretch of ``sequence`` that begins at ``first``."""
    pairs, omega = torsions(piece, xyz)
    letters = sequence[first : first + len(pairs)]
    label = relabelled(piece.label, letters, first)
    new = replace(of_peptide(label, build(letters, pairs, chis, omega)), sequence=sequence, first=first)
    rows, old = common(new, piece, range(len(letters)))
    return new, superposed(new.xyz, new.xyz[rows], xyz[old])


def relabelled(label: str, letters: str, first: int) -> str:
    """A label such as "strand of 4, LVHS 1-4" from one such as "strand of 4, -120 130"."""
    return f"{label.split(',')[0]}, {letters} {first + 1}-{first + len(letters)}"


def common(new: Piece, old: Piece, place: Sequence[int]) -> tuple[list[int], list[int]]:
    """Rows of main-chain atoms that both have; residue i of the old one is residue ``place[i]`` of the new one."""
    there = {(int(r), n): i for i, (r, n) in enumerate(zip(new.residue, new.names, strict=True))}
    pairs = [
        (there[place[int(r)], n], i)
        for i, (r, n) in enumerate(zip(old.residue, old.names, strict=True))
        if n in MAIN and (place[int(r)], n) in there
    ]
    return [a for a, _ in pairs], [b for _, b in pairs]


def superposed(xyz: Floats, own: Floats, other: Floats) -> Floats:
    """Atoms (m, 3), moved as their part ``own`` (k, 3) has to be to lie on ``other`` (k, 3)."""
    turn, _ = Rotation.align_vectors(other - other.mean(0), own - own.mean(0))
    return np.asarray(turn.apply(xyz - own.mean(0)) + other.mean(0))
