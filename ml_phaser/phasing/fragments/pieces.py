"""What is searched for: strands, helices, hairpins and turns of poly-alanine, stretches of a known sequence, or a model
of the user's."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import gemmi
import numpy as np
from numpy.typing import NDArray

from ml_phaser.crystal.bonds import hinges
from ml_phaser.crystal.peptide import Hinge, Peptide, build
from ml_phaser.crystal.rotamers import ROTAMERS, likely
from ml_phaser.outcome import Chain
from ml_phaser.phasing.fragments.shapes import HAIRPINS, SHAPES

# phi, psi in degrees. Real strands differ more from each other than a search at 1.5 A forgives.
STRANDS = ((-120.0, 130.0), (-140.0, 140.0), (-135.0, 150.0), (-110.0, 120.0))
ROOM = 18.0  # A^3 that an atom of a dense peptide crystal takes
HELIX = (-62.0, -42.0)
# phi, psi of the two residues in the middle (Venkatachalam, Biopolymers 6, 1425, 1968)
TURNS = {
    "I": ((-60.0, -30.0), (-90.0, 0.0)), "II": ((-60.0, 120.0), (80.0, 0.0)),
    "I'": ((60.0, 30.0), (90.0, 0.0)), "II'": ((60.0, -120.0), (-80.0, 0.0)),
}  # fmt: skip
LITTLE = 30  # atoms there is room for: below, pieces of three residues come first
MUCH = 250  # atoms there is room for: from here on helices come first, as short pieces are too little of the whole
LONG_HELICES = (12, 18, 8)
SLACK = 1.2  # times the room, which is an estimate, may a piece have
PER_RESIDUE = 6.5  # atoms of it that the side chains of longer pieces will need, for each residue
MOST_HINGES = 16  # bonds of a molecule that turn: with more, minutes do not do
MOST_OF = 0.6  # of the room there is must a molecule take to be searched for whole
LARGEST_LIMP = 100  # atoms of a model whose bonds turn: larger ones are parts of proteins
SHORTEST, LONGEST, STRETCHES = 2, 5, 3  # residues of stretches of a sequence, and how many are searched for


@dataclass(frozen=True, eq=False)
class Piece:
    """Atoms to place together.

    names, elements : (m,); residue : (m,) number from 0; letters : of the residues
    xyz : (m, 3) A, centred; weight : (m,) electrons; hinges : bonds that may turn
    sequence, first : of the chain it is part of, and which residue of that it begins with; empty where it is not known
    given : it is the user's
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
    given: bool = False

    def __len__(self) -> int:
        return len(self.names)

    @property
    def grows(self) -> bool:
        """Whether it is a chain, of alanine or of a known sequence, that can be built on; whole molecules are not, nor
        are the user's."""
        chain = bool(self.hinges) and (bool(self.sequence) or set(self.letters) == {"A"})
        return chain and not self.given and "OXT" not in self.names

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


def of_user(label: str, chain: Chain) -> Piece:
    """A model of the user's; its bonds turn if it is not large."""
    turning = hinges(chain.elements, chain.xyz) if len(chain.names) <= LARGEST_LIMP else ()
    turning = turning if len(turning) <= MOST_HINGES else ()
    made = piece(label, chain.names, chain.elements, chain.residue, chain.letters, chain.xyz, turning)
    return replace(made, given=True)


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


def whole(sequence: str) -> Piece:
    """The molecule with nothing left out: a strand with the commonest rotamers."""
    count = len(sequence)
    peptide = build(sequence, [STRANDS[0]] * count, [likely(letter)[0] for letter in sequence], [180.0] * count)
    made = piece(
        f"the molecule {sequence}",
        peptide.names,
        peptide.elements,
        peptide.residue,
        sequence,
        peptide.xyz,
        peptide.hinges,
    )
    return replace(made, sequence=sequence)


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


def shape(torsions: Sequence[float], label: str) -> Piece:
    """Residues of alanine with torsions psi, phi, psi ... phi, psi (degrees)."""
    pairs = [(STRANDS[0][0], torsions[0]), *zip(torsions[1::2], torsions[2::2], strict=True)]
    count = len(pairs)
    return of_peptide(label, build("A" * count, pairs, [()] * count, [180.0] * count))


def library(sequences: Sequence[str] = (), room: int | None = None) -> list[Piece]:
    """Strands, helices and hairpins of several lengths, stretches of the sequences where those are known, turns, and
    the commonest shapes of main chain: one of each kind in turn, those to be found and told first before the others.

    room : atoms the asymmetric unit has place for; pieces that are larger are left out
    """
    strands = {n: [polyalanine(n, t, f"strand of {n}, {t[0]:.0f} {t[1]:.0f}") for t in STRANDS] for n in (3, 4, 5, 6)}
    some = [helix(n) for n in (8, 5, 12)]
    shapes = {n: [shape(t, f"shape {i} of {n}") for i, t in enumerate(SHAPES[n], 1)] for n in SHAPES}
    pins = {n: [shape(t, f"hairpin {i} of {n}") for i, t in enumerate(HAIRPINS[n], 1)] for n in HAIRPINS}
    own, little = stretches(sequences), room is not None and room < LITTLE
    kinds = (
        [*strands[4], *strands[5]], own, some, pins[8], [*shapes[6][1:], *shapes[4][2:]], pins[10],
        [*pins[6], *map(turn, TURNS)],
    )  # fmt: skip
    mixed = [p for some in itertools.zip_longest(*kinds) for p in some if p is not None]
    found = [*shapes[3], *mixed, *strands[3]] if little else [*mixed, *strands[3], *shapes[3], *strands[6]]
    if room is not None and room >= MUCH:
        return [*helices(room), *(p for p in found if p not in some and fits(p, room))]
    return [p for p in found if room is None or fits(p, room)]


def helix(residues: int) -> Piece:
    """An ideal alpha helix."""
    return polyalanine(residues, HELIX, f"helix of {residues}")


def helices(room: int) -> list[Piece]:
    """Those that proteins begin with, of those that there is room for."""
    return [p for p in map(helix, LONG_HELICES) if fits(p, room)]


def fits(piece: Piece, room: int) -> bool:
    """Whether there is place for a piece, and for the side chains of one that is longer than most."""
    residues = len(piece.letters)
    return len(piece) <= SLACK * room and (residues <= LONGEST or residues * PER_RESIDUE <= room)


def molecules(pieces: Sequence[Piece], sequences: Sequence[str], room: int) -> list[Piece]:
    """The user's molecule among the pieces, or the peptide of the sequence, if it is all there is room for and has few
    enough bonds that turn; else none."""
    found = [p for p in pieces if p.given]
    if not found and len(sequences) == 1 and len(sequences[0]) > 1 and set(sequences[0]) <= set(ROTAMERS):
        found = [whole(sequences[0])]
    return [m for m in found if 0 < len(m.hinges) <= MOST_HINGES and len(m) >= MOST_OF * room]
