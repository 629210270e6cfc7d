"""Peptides of ideal geometry, built atom by atom from bond lengths, angles and torsions.

Lengths and angles are those of ``crystal.amino_acids``. Torsions: the centres of the Ramachandran regions and
the common rotamers (Lovell et al., Proteins 40, 389, 2000), rounded. Non-hydrogen atoms only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ml_phaser.crystal.amino_acids import THREE_LETTERS, Chain, build_chain, side_chain
from ml_phaser.errors import UserError

_ROTAMERS: dict[str, tuple[tuple[float, ...], ...]] = {
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
_SHARES = {"strand": 0.35, "helix": 0.25, "PPII": 0.25, "turn": 0.15}

MOST_RESIDUES = 40
JITTER = 6.0  # degrees, standard deviation of the torsions that turn freely
TRIES = 40  # residues grown, for each of the sequence, before a conformation is given up
ROOM = 8  # torsions tried for a residue before those before it are taken back


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


def checked_sequence(text: str) -> str:
    """One-letter codes in capitals. Raises UserError for letters that mean no residue, and for more than 40."""
    sequence = "".join(text.split()).upper()
    wrong = sorted(set(sequence) - set(THREE_LETTERS))
    if wrong or not sequence:
        what = f"{', '.join(wrong)}: not a residue" if wrong else "is empty"
        raise UserError(what, "sequence", f"one-letter codes out of {''.join(sorted(THREE_LETTERS))}")
    if len(sequence) > MOST_RESIDUES:
        raise UserError(f"has {len(sequence)} residues, too many to pack", "sequence", f"at most {MOST_RESIDUES}")
    return sequence


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
    return tuple(Hinge(a, b, _beyond(linked, a, b), jumps) for a, b, jumps in turning)


def _beyond(linked: NDArray[np.bool_], near: int, far: int) -> NDArray[np.bool_]:
    """Atoms on the far side of a bond, its far atom included."""
    reached = np.zeros(len(linked), dtype=bool)
    reached[far] = True
    while True:
        more = reached | linked[reached].any(axis=0)
        more[near] = False
        if (more == reached).all():
            return reached
        reached = more


def random_peptide(rng: np.random.Generator, sequence: str) -> Peptide:
    """A clash-free conformation: stretches of strand, helix, polyproline II and turn with common rotamers.

    Grown residue by residue; where the next one finds no room, the last ones are taken back.

    Raises
    ------
    UserError
        for letters that mean no residue, or if no conformation without clashes was found
    """
    sequence = checked_sequence(sequence)
    done: list[_Residue] = []
    for _ in range(TRIES * len(sequence)):
        for _ in range(ROOM):
            grown = [*done, _random_residue(rng, sequence, len(done), done[-1].region if done else None)]
            phi_psi, chis, omega = [r.phi_psi for r in grown], [r.chi for r in grown], [r.omega for r in grown]
            peptide = build(sequence[: len(grown)], phi_psi, chis, omega)
            if not clashes(peptide):
                done = grown
                break
        else:
            done = done[: -int(rng.integers(1, 4))]
        if len(done) == len(sequence):
            return peptide
    raise UserError("no conformation without clashes was found", "sequence", "another seed, or fewer residues")


@dataclass(frozen=True)
class _Residue:
    """Torsions of a residue in degrees and the region they come from."""

    phi_psi: tuple[float, float]
    chi: tuple[float, ...]
    omega: float
    region: str


def _random_residue(rng: np.random.Generator, sequence: str, i: int, current: str | None) -> _Residue:
    """Torsions of residue ``i``, most likely in the region of the one before."""
    letter = sequence[i]
    if current is None or rng.random() < 0.35:
        current = str(rng.choice(list(_SHARES), p=list(_SHARES.values())))
    region = current
    if letter == "G" and rng.random() < 0.3:
        region = "left"
    elif "P" in sequence[i : i + 2] and region != "strand":
        region = "PPII"
    phi, psi = np.array(REGIONS[region], dtype=float) + rng.normal(0, JITTER, 2)
    if letter == "P":
        phi = -68 + rng.normal(0, 3)  # where the ring, planar at N, puts it
    rotamers = _ROTAMERS[letter]
    rotamer = np.array(rotamers[rng.integers(len(rotamers))], dtype=float)
    chi = rotamer + rng.normal(0, 0.5 if letter == "P" else JITTER, len(rotamer))
    return _Residue((float(phi), float(psi)), tuple(chi.tolist()), float(rng.normal(180, 3)), current)


def bond_steps(peptide: Peptide, most: int = 5) -> NDArray[np.int64]:
    """(n, n) number of bonds between atoms, ``most`` where it is that or more."""
    n = len(peptide)
    linked = np.eye(n, dtype=bool)
    linked[tuple(peptide.bonds.T)] = linked[tuple(peptide.bonds.T[::-1])] = True
    steps = np.full((n, n), most, dtype=np.int64)
    reach = np.eye(n, dtype=bool)
    for k in range(most):
        steps[reach & (steps == most)] = k
        reach = (reach.astype(float) @ linked) > 0
    return steps


def least_within(peptide: Peptide) -> NDArray[np.float64]:
    """(n, n) shortest distance in A allowed within a molecule, 0 for atoms three bonds apart or fewer."""
    steps = bond_steps(peptide)
    polar = np.array([e in "NO" for e in peptide.elements])
    least = np.where(polar[:, None] & polar, 2.7, 3.0)
    return np.where(steps == 4, 2.6, np.where(steps < 4, 0.0, least))


def clashes(peptide: Peptide) -> bool:
    """Whether atoms four bonds apart are nearer than 2.6 A, or more than four nearer than 3.0 A (N and O: 2.7 A)."""
    distance = np.linalg.norm(peptide.xyz[:, None] - peptide.xyz, axis=-1)
    return bool(np.any(distance < least_within(peptide)))
