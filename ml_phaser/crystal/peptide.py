"""Peptides of ideal geometry, built from bond lengths, angles and torsions.

Lengths and angles are those of ``crystal.amino_acids``. Torsions: the centres of the Ramachandran regions and
the common rotamers (Lovell et al., Proteins 40, 389, 2000), rounded. Non-hydrogen atoms only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ml_phaser.crystal.amino_acids import Chain, build_chain, side_chain

ROTAMERS: dict[str, tuple[tuple[float, ...], ...]] = {
    "G": ((),), "A": ((),),
    "S": ((62,), (-65,), (178,)), "C": ((-65,), (-177,), (62,)), "T": ((62,), (-65,)), "V": ((175,), (-60,)),
    "L": ((-65, 175), (-177, 65)), "I": ((-65, 170), (-57, -60), (62, 170)), "P": ((29, -33), (-29, 33)),
    "N": ((-65, -20), (-177, 20), (62, -10)), "D": ((-70, -15), (-177, 0), (62, -10)),
    "Q": ((-67, 180, 20), (-177, 65, 90), (-65, -65, -40)), "E": ((-67, 180, -10), (-177, 180, 0), (-65, -65, -40)),
    "K": ((-67, 180, 180, 180), (-177, 180, 180, 180), (-62, -68, 180, 180)),
    "R": ((-67, 180, 180, 180), (-177, 180, 65, 90), (-62, 180, -65, 175)),
    "M": ((-67, 180, 75), (-65, -65, -70), (-177, 65, 75)),
    "F": ((-65, 95), (-177, 80), (62, 90)), "Y": ((-65, 95), (-177, 80), (62, 90)),
    "H": ((-65, -70), (-177, 60), (62, -75)), "W": ((-65, 95), (-177, -105), (62, -90)),
}  # fmt: skip
REGIONS = {"strand": (-120, 130), "helix": (-62, -42), "PPII": (-70, 145), "turn": (-85, 5), "left": (57, 40)}


@dataclass(frozen=True, eq=False)
class Hinge:
    """A bond that turns: its two atoms, the atoms (n,) that move when it does, whether it may leave its rotamer."""

    near: int
    far: int
    moving: NDArray[np.bool_]
    jumps: bool


@dataclass(frozen=True, eq=False)
class Peptide:
    """One molecule: name, element and residue number (from 0) of each atom, (n, 3) coordinates in A, bonds (k, 2),
    the bonds that turn."""

    sequence: str
    names: tuple[str, ...]
    elements: tuple[str, ...]
    residue: NDArray[np.int64]
    xyz: NDArray[np.float64]
    bonds: NDArray[np.int64]
    hinges: tuple[Hinge, ...] = ()

    def __len__(self) -> int:
        return len(self.names)


def build(
    sequence: str, phi_psi: Sequence[tuple[float, float]], chis: Sequence[Sequence[float]], omega: Sequence[float]
) -> Peptide:
    """A zwitterionic L peptide from its torsions.

    Parameters
    ----------
    phi_psi : degrees, one pair a residue (the first phi is not used; the last psi turns the carboxylate)
    chis : degrees, the side-chain torsions of each residue
    omega : degrees, of the bond before each residue (the first is not used)
    """
    chain = build_chain(sequence, phi_psi, chis, omega)
    elements = tuple(name[0] for name in chain.names)
    hinges = _hinges(sequence, chain)
    return Peptide(sequence, chain.names, elements, chain.residue, chain.xyz, chain.bonds, hinges)


def _hinges(sequence: str, chain: Chain) -> tuple[Hinge, ...]:
    """phi (but proline's), psi and chi of every residue."""
    at, bonds = chain.at, chain.bonds
    linked = np.zeros((len(chain.names), len(chain.names)), dtype=bool)
    linked[tuple(bonds.T)] = linked[tuple(bonds.T[::-1])] = True
    turning = []
    for i, letter in enumerate(sequence):
        if letter != "P" and i:
            turning.append((at[i, "N"], at[i, "CA"], False))
        turning.append((at[i, "CA"], at[i, "C"], False))
        for _, parent, second, _, _, _, chi, offset in side_chain(letter):
            if chi and offset == 0 and letter != "P":
                turning.append((at[i, second], at[i, parent], letter not in "VTIL"))
    return tuple(Hinge(a, b, beyond(linked, a, b), jumps) for a, b, jumps in turning)


def beyond(linked: NDArray[np.bool_], near: int, far: int) -> NDArray[np.bool_]:
    """Atoms (n,) on the far side of a bond, its far atom included; ``linked`` : (n, n), of all bonds."""
    reached = np.zeros(len(linked), dtype=bool)
    reached[far] = True
    while True:
        more = reached | linked[reached].any(axis=0)
        more[near] = False
        if (more == reached).all():
            return reached
        reached = more
