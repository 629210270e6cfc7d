"""Longer chains: a placed chain is built on, residue by residue, as long as the judge approves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ml_phaser.crystal.peptide import REGIONS, build
from ml_phaser.crystal.rotamers import ROTAMERS, likely
from ml_phaser.phasing.fragments.chain import common, relabelled, side_torsions, superposed, torsions
from ml_phaser.phasing.fragments.pieces import Piece, of_peptide

NEXT = (*((-120.0, 130.0), (-140.0, 145.0), (-95.0, 120.0)), REGIONS["PPII"], REGIONS["helix"])  # phi, psi in degrees
MOST = 4  # rotamers of a residue of the sequence that are tried


def longer(piece: Piece, xyz: NDArray[np.float64]) -> list[tuple[Piece, NDArray[np.float64]]]:
    """The piece with one more residue at either end, and where its atoms may be, (k, m, 3) A, in every conformation of
    NEXT, superposed on ``xyz`` (m, 3): the next residue of the sequence in its likely rotamers, alanine where there is
    no sequence, nothing beyond the ends of one."""
    pairs, omega = torsions(piece, xyz)
    count, chis = len(pairs), side_torsions(piece, xyz)
    found = []
    for before in (False, True):
        place = piece.first - 1 if before else piece.first + count
        if piece.sequence and not 0 <= place < len(piece.sequence):
            continue
        letter = piece.sequence[place] if piece.sequence else "A"
        if letter not in ROTAMERS:
            continue
        letters = letter + piece.letters if before else piece.letters + letter
        first = min(place, piece.first) if piece.sequence else 0
        new: Piece | None = None
        there = []
        for phi, psi in NEXT:
            for chi in likely(letter)[:MOST]:
                if before:
                    chain, turns = [(phi, psi), (phi, pairs[0][1]), *pairs[1:]], [180.0, 180.0, *omega[1:]]
                    new = _built(piece, letters, chain, [chi, *chis], turns, first)
                else:
                    new = _built(piece, letters, [*pairs, (phi, psi)], [*chis, chi], [*omega, 180.0], first)
                rows, old = common(new, piece, range(int(before), count + int(before)))
                there.append(superposed(new.xyz, new.xyz[rows], xyz[old]))
        assert new is not None
        found.append((new, np.stack(there)))
    return found


def _built(
    piece: Piece, letters: str, pairs: Sequence[tuple[float, float]], chis: Sequence[Sequence[float]],
    omega: Sequence[float], first: int,
) -> Piece:  # fmt: skip
    label = f"{piece.label.split(',')[0].rsplit(' ', 1)[0]} {len(letters)}, grown"
    if piece.sequence:
        label = relabelled(label, letters, first)
    return replace(of_peptide(label, build(letters, pairs, chis, omega)), sequence=piece.sequence, first=first)
