"""What is searched for: strands, helices and turns of poly-alanine, stretches of a known sequence, or a model of the
user's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import gemmi
import numpy as np
from numpy.typing import NDArray

from ml_phaser.crystal.peptide import Hinge, Peptide, build
from ml_phaser.crystal.rotamers import ROTAMERS, likely

# phi, psi in degrees. Real strands differ more from each other than a search at 1.5 A forgives.
STRANDS = ((-120.0, 130.0), (-140.0, 140.0), (-135.0, 150.0), (-110.0, 120.0))
ROOM = 18.0  # A^3 that an atom of a dense peptide crystal takes
HELICES = ((-62.0, -42.0),)
# phi, psi of the two residues in the middle (Venkatachalam, Biopolymers 6, 1425, 1968)
TURNS = {
    "I": ((-60.0, -30.0), (-90.0, 0.0)), "II": ((-60.0, 120.0), (80.0, 0.0)),
    "I'": ((60.0, 30.0), (90.0, 0.0)), "II'": ((60.0, -120.0), (-80.0, 0.0)),
}  # fmt: skip
SHORTEST, LONGEST, STRETCHES = 2, 5, 3  # residues of stretches of a sequence, and how many are searched for


@dataclass(frozen=True, eq=False)
class Piece:
    """Atoms to place together.

    names, elements : (m,); residue : (m,) number from 0; letters : of the residues
    xyz : (m, 3) A, centred; weight : (m,) electrons; hinges : bonds that may turn
    sequence, first : of the chain it is part of, and which residue of that it begins with; empty where it is not known
    """

    label: str
    names: tuple[str, ...]
    elements: tuple[str, ...]
    residue: NDArray[np.int64]
    letters: str
    xyz: NDArray[np.float64]
    weight: NDArray[np.float64]
    hinges: tuple[Hinge, ...] = ()
    sequence: str = ""
    first: int = 0

    def __len__(self) -> int:
        return len(self.names)

    @property
    def grows(self) -> bool:
        """Whether it is a chain, of alanine or of a known sequence, that can be built on."""
        return bool(self.hinges) and (bool(self.sequence) or set(self.letters) == {"A"})

    @property
    def radius(self) -> float:
        """Root mean square distance of the atoms from the centre, in A."""
        return float(np.sqrt(np.mean((self.xyz**2).sum(1))))


def piece(
    label: str, names: Sequence[str], elements: Sequence[str], residue: NDArray[np.int64], letters: str,
    xyz: NDArray[np.float64], hinges: Sequence[Hinge] = (),
) -> Piece:  # fmt: skip
    """A piece of any atoms; coordinates (m, 3) in A are brought to their centre."""
    z = np.array([gemmi.Element(e).atomic_number for e in elements], dtype=float)
    centred = xyz - (z[:, None] * xyz).sum(0) / z.sum()
    return Piece(label, tuple(names), tuple(elements), residue, letters, centred, z, tuple(hinges))


def of_peptide(label: str, peptide: Peptide) -> Piece:
    """A piece of chain: the peptide without the atom that only its end has."""
    keep = np.array([name != "OXT" for name in peptide.names])
    number = np.cumsum(keep) - 1
    hinges = [
        Hinge(int(number[h.near]), int(number[h.far]), h.moving[keep], h.jumps)
        for h in peptide.hinges
        if keep[h.near] and keep[h.far]
    ]
    names = [n for n, k in zip(peptide.names, keep, strict=True) if k]
    elements = [e for e, k in zip(peptide.elements, keep, strict=True) if k]
    return piece(label, names, elements, peptide.residue[keep], peptide.sequence, peptide.xyz[keep], hinges)


def polyalanine(count: int, phi_psi: tuple[float, float], label: str) -> Piece:
    """``count`` residues of alanine with the same torsions (degrees)."""
    return of_peptide(label, build("A" * count, [phi_psi] * count, [()] * count, [180.0] * count))


def stretch(sequence: str, first: int, count: int, phi_psi: tuple[float, float], label: str) -> Piece:
    """``count`` residues of a sequence from number ``first`` on, with the same main-chain torsions (degrees) and their
    commonest rotamers."""
    letters = sequence[first : first + count]
    peptide = build(letters, [phi_psi] * count, [likely(letter)[0] for letter in letters], [180.0] * count)
    label = f"{label}, {letters} {first + 1}-{first + count}"
    return replace(of_peptide(label, peptide), sequence=sequence, first=first)


def turn(kind: str) -> Piece:
    """Four residues of alanine in a beta turn."""
    middle = TURNS[kind]
    return of_peptide(
        f"turn {kind} of 4", build("AAAA", [STRANDS[0], *middle, STRANDS[0]], [()] * 4, [180.0] * 4)
    )  # fmt: skip


def stretches(sequences: Sequence[str]) -> list[Piece]:
    """Strands of up to five residues of the sequences, those with the most electrons first: STRETCHES of them."""
    found = []
    for sequence in dict.fromkeys(sequences):
        count = min(LONGEST, len(sequence))
        for first in range(len(sequence) - count + 1) if count >= SHORTEST else ():
            if set(sequence[first : first + count]) <= set(ROTAMERS):
                found.append(stretch(sequence, first, count, STRANDS[0], f"strand of {count}"))
    return sorted(found, key=lambda p: -p.weight.sum())[:STRETCHES]


def library(
    sequences: Sequence[str] = (), strands: Sequence[int] = (4, 5, 3, 6), helices: Sequence[int] = (8, 12, 5)
) -> list[Piece]:
    """Strands and helices of several lengths, the likeliest to be found first, turns, and stretches of the sequences,
    where those are known."""
    found = [polyalanine(n, t, f"strand of {n}, {t[0]:.0f} {t[1]:.0f}") for n in strands for t in STRANDS]
    spirals = [polyalanine(n, t, f"helix of {n}") for n in helices for t in HELICES]
    split, own = len(STRANDS), stretches(sequences)
    return [
        *found[:split], *own[:1], *spirals[:1], *own[1:], *found[split : 2 * split], *map(turn, TURNS), *spirals[1:],
        *found[2 * split :],
    ]  # fmt: skip
