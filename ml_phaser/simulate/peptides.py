"""Conformations of peptides without clashes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ml_phaser.crystal.amino_acids import THREE_LETTERS
from ml_phaser.crystal.peptide import REGIONS, ROTAMERS, Peptide, build
from ml_phaser.errors import UserError

_SHARES = {"strand": 0.35, "helix": 0.25, "PPII": 0.25, "turn": 0.15}

MOST_RESIDUES = 40
JITTER = 6.0  # degrees, standard deviation of the torsions that turn freely
TRIES = 40  # residues grown, for each of the sequence, before a conformation is given up
ROOM = 8  # torsions tried for a residue before those before it are taken back


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
    rotamers = ROTAMERS[letter]
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
