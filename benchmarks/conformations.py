#!/usr/bin/env python3
"""The commonest shapes of three and four residues of main chain, as torsions for ``phasing/fragments/pieces.py``.

    python -m benchmarks.conformations

Six stretches of one chain of each sequence cluster of the training split; centres are taken from among them, one after
the other, each the one that is within RADIUS (r.m.s.d. of N, CA, C, O after superposition) of most stretches that no
earlier one is near to. Prints psi of the first residue, phi and psi of those between, phi and psi of the last, in
degrees, and the share of stretches covered so far.
"""

from __future__ import annotations

import gemmi
import numpy as np
from numpy.typing import NDArray

from benchmarks.phasing.crystals import library
from ml_phaser.crystal.residues import ATOMS, RESIDUES
from ml_phaser.simulate.fragments import LONGEST_BOND, Residues

RADIUS = {3: 0.5, 4: 0.6}  # A
WANTED, CANDIDATES, COVERED, PER_CHAIN = 12, 700, 6000, 6
MAIN = ("N", "CA", "C", "O")

Floats = NDArray[np.float64]


def stretches(count: int, seed: int = 0) -> Floats:
    """Main chains (k, 4 x count, 3) in A, each about its mean, in random order."""
    rng, chains = np.random.default_rng(seed), library("train")
    of = chains.named
    there = of.present
    first: dict[int, int] = {}
    for i, cluster in enumerate(chains.cluster):
        first.setdefault(int(cluster), i)
    found = []
    for i in first.values():
        start, stop = int(of.start[i]), int(of.start[i + 1])
        places = np.arange(start, stop - count + 1)
        for place in rng.choice(places, size=min(PER_CHAIN, len(places)), replace=False) if len(places) else ():
            atoms = [index for r in range(place, place + count) for index in main_chain(of, there[r], r)]
            xyz = chains.xyz[atoms].astype(float)
            bonds = np.linalg.norm(xyz[2::4][:-1] - xyz[4::4], axis=1) if len(atoms) == 4 * count else [np.inf]
            if np.max(bonds) < LONGEST_BOND:
                found.append(xyz - xyz.mean(0))
    out = np.array(found)
    rng.shuffle(out)
    return out


def main_chain(of: Residues, there: NDArray[np.bool_], residue: int) -> list[int]:
    """Rows of the main-chain atoms of a residue, of those that are ``there`` (14,)."""
    names = ATOMS[RESIDUES[of.aa[residue]]]
    rows = of.first[residue] + np.cumsum(there) - 1
    return [int(rows[names.index(name)]) for name in MAIN if there[names.index(name)]]


def rmsd(one: Floats, many: Floats) -> Floats:
    """R.m.s.d. (k,) of a stretch (n, 3) from many (k, n, 3), superposed (Kabsch)."""
    u, s, vt = np.linalg.svd(np.einsum("ni,knj->kij", one, many))
    s[:, 2] *= np.sign(np.linalg.det(u) * np.linalg.det(vt))
    square = (one**2).sum() + (many**2).sum((1, 2)) - 2 * s.sum(1)
    return np.sqrt(np.maximum(square, 0) / len(one))


def centres(xyz: Floats, radius: float) -> list[tuple[int, float]]:
    """Rows of the centres, and the share that they and those before them cover."""
    some = xyz[-COVERED:]
    near = np.array([rmsd(x, some) < radius for x in xyz[:CANDIDATES]])
    covered, found = np.zeros(len(some), dtype=bool), []
    for _ in range(WANTED):
        best = int((near & ~covered).sum(1).argmax())
        covered |= near[best]
        found.append((best, float(covered.mean())))
    return found


def dihedral(*points: Floats) -> float:
    """Degrees, of four points (3,) in A."""
    return float(np.degrees(gemmi.calculate_dihedral(*(gemmi.Position(*p) for p in points))))


def torsions(xyz: Floats) -> list[int]:
    """psi, phi, psi ... phi, psi in whole degrees; the last psi by the oxygen."""
    n, ca, c, o = xyz[::4], xyz[1::4], xyz[2::4], xyz[3::4]
    out = []
    for i in range(len(n)):
        if i:
            out.append(dihedral(c[i - 1], n[i], ca[i], c[i]))
        last = i == len(n) - 1
        psi = dihedral(n[i], ca[i], c[i], o[i] if last else n[i + 1]) + (180 if last else 0)
        out.append((psi + 180) % 360 - 180)
    return [round(t) for t in out]


def main() -> int:
    for count, radius in RADIUS.items():
        xyz = stretches(count)
        print(f"{count} residues, {len(xyz)} stretches, {radius} A")
        for row, share in centres(xyz, radius):
            print(f"    {tuple(torsions(xyz[row]))},  # {share:.2f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
