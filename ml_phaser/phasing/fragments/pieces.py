"""What is searched for: strands and helices of poly-alanine, or a model of the user's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import gemmi
import numpy as np
from numpy.typing import NDArray

from ml_phaser.crystal.peptide import Hinge, Peptide, build

# phi, psi in degrees. Real strands differ more from each other than a search at 1.5 A forgives.
STRANDS = ((-120.0, 130.0), (-140.0, 140.0), (-135.0, 150.0), (-110.0, 120.0))
ROOM = 18.0  # A^3 that an atom of a dense peptide crystal takes
HELICES = ((-62.0, -42.0),)


@dataclass(frozen=True, eq=False)
class Piece:
    """Atoms to place together.

    names, elements : (m,); residue : (m,) number from 0; letters : of the residues
    xyz : (m, 3) A, centred; weight : (m,) electrons; hinges : bonds that may turn
    """

    label: str
    names: tuple[str, ...]
    elements: tuple[str, ...]
    residue: NDArray[np.int64]
    letters: str
    xyz: NDArray[np.float64]
    weight: NDArray[np.float64]
    hinges: tuple[Hinge, ...] = ()

    def __len__(self) -> int:
        return len(self.names)

    @property
    def grows(self) -> bool:
        """Whether it is a chain of alanine that can be built on."""
        return bool(self.hinges) and set(self.letters) == {"A"}

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


def library(strands: Sequence[int] = (4, 5, 3), helices: Sequence[int] = (8, 12, 5)) -> list[Piece]:
    """Strands and helices of several lengths, the likeliest to be found first."""
    found = [polyalanine(n, t, f"strand of {n}, {t[0]:.0f} {t[1]:.0f}") for n in strands for t in STRANDS]
    turns = [polyalanine(n, t, f"helix of {n}") for n in helices for t in HELICES]
    split = len(STRANDS)
    return [*found[:split], *turns[:1], *found[split : 2 * split], *turns[1:], *found[2 * split :]]
