#!/usr/bin/env python3
"""The commonest shapes of main chain, as torsions for ``phasing/fragments/shapes.py``.

    python -m benchmarks.conformations

Stretches of one chain of each sequence cluster of the training split, at most six of a chain; hairpins are stretches
whose two outermost pairs of residues are neighbours in a sheet. Centres are taken from among them, one after the
other, each the one that is within its radius (r.m.s.d. of N, CA, C, O after superposition) of most stretches that no
earlier one is near to. From six residues on, a chain of ideal geometry is fitted to the mean of those. Prints psi of
the first residue, phi and psi of those between, phi and psi of the last, in degrees, and the share covered so far.
"""

from __future__ import annotations

from dataclasses import dataclass

import gemmi
import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from benchmarks.phasing.crystals import library
from ml_phaser.crystal.peptide import build
from ml_phaser.crystal.residues import ATOMS, RESIDUES
from ml_phaser.phasing.fragments.chain import superposed
from ml_phaser.simulate.fragments import LONGEST_BOND, Residues

CANDIDATES, COVERED, PER_CHAIN = 700, 6000, 6
ACROSS = 6.3  # A, between CA of neighbours in a sheet
FITTED = 6  # residues from which on rounded torsions of one stretch would add up to too much
MAIN = ("N", "CA", "C", "O")

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Kind:
    """Stretches to group: residues, A that a centre stands for, how many centres, whether only hairpins."""

    count: int
    radius: float
    wanted: int
    hairpins: bool = False


KINDS = (
    Kind(3, 0.5, 12), Kind(4, 0.6, 12), Kind(6, 0.7, 12),
    Kind(6, 0.5, 6, True), Kind(8, 0.5, 12, True), Kind(10, 0.5, 8, True),
)  # fmt: skip


def stretches(kind: Kind, seed: int = 0) -> Floats:
    """Main chains (k, 4 x count, 3) in A, each about its mean, in random order."""
    rng, chains, count = np.random.default_rng(seed), library("train"), kind.count
    of = chains.named
    there = of.present
    first: dict[int, int] = {}
    for i, cluster in enumerate(chains.cluster):
        first.setdefault(int(cluster), i)
    found = []
    for i in first.values():
        start, stop = int(of.start[i]), int(of.start[i + 1])
        rows = [main_chain(of, there[r], r) for r in range(start, stop)]
        places = np.arange(stop - start - count + 1)
        if kind.hairpins and len(places):
            places = places[[pinned(chains.xyz, rows[p : p + count]) for p in places]]
        for place in rng.choice(places, size=min(PER_CHAIN, len(places)), replace=False) if len(places) else ():
            atoms = [index for r in rows[place : place + count] for index in r]
            xyz = chains.xyz[atoms].astype(float)
            bonds = np.linalg.norm(xyz[2::4][:-1] - xyz[4::4], axis=1) if len(atoms) == 4 * count else [np.inf]
            if np.max(bonds) < LONGEST_BOND:
                found.append(xyz - xyz.mean(0))
    out = np.array(found)
    rng.shuffle(out)
    return out


def pinned(xyz: NDArray[np.float32], rows: list[list[int]]) -> bool:
    """Whether the two outermost pairs of residues, rows of their main-chain atoms, are neighbours in a sheet."""
    ends = [rows[i][1:2] for i in (0, -1, 1, -2)]
    if not all(ends):
        return False
    a, z, b, y = (xyz[e[0]] for e in ends)
    return bool(np.linalg.norm(a - z) < ACROSS and np.linalg.norm(b - y) < ACROSS)


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


def centres(xyz: Floats, kind: Kind) -> list[tuple[Floats, float]]:
    """The stretches near to each centre that none before is near to, and the share covered by then."""
    some = xyz[-COVERED:]
    near = np.array([rmsd(x, some) < kind.radius for x in xyz[:CANDIDATES]])
    covered, found = np.zeros(len(some), dtype=bool), []
    for _ in range(kind.wanted):
        best = int((near & ~covered).sum(1).argmax())
        members = np.concatenate([xyz[best][None], some[near[best] & ~covered]])
        covered |= near[best]
        found.append((members, float(covered.mean())))
    return found


def middle(members: Floats) -> Floats:
    """The mean (n, 3) of stretches (k, n, 3), each superposed on the first."""
    return np.mean([superposed(m, m, members[0]) for m in members], axis=0)


def ideal(xyz: Floats) -> list[int]:
    """Torsions, as ``torsions`` gives them, of the chain of ideal geometry that is nearest to main chain (n, 3)."""
    count = len(xyz) // 4

    def off(values: Floats) -> Floats:
        chain = build("A" * count, [(0.0, values[0]), *values[1:].reshape(-1, 2)], [()] * count, [180.0] * count)
        at = {(int(r), n): x for r, n, x in zip(chain.residue, chain.names, chain.xyz, strict=True)}
        own = np.array([at[r, name] for r in range(count) for name in MAIN])
        return np.asarray((superposed(own, own, xyz) - xyz).ravel())

    found = least_squares(off, np.array(torsions(xyz), dtype=float), method="lm", diff_step=1e-3).x
    return [round(t) for t in (found + 180) % 360 - 180]


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
    for kind in KINDS:
        xyz = stretches(kind)
        print(
            f"{'hairpins of ' if kind.hairpins else ''}{kind.count} residues, {len(xyz)}, {kind.radius} A", flush=True
        )
        for members, share in centres(xyz, kind):
            found = ideal(middle(members)) if kind.count >= FITTED else torsions(members[0])
            print(f"    {tuple(found)},  # {share:.2f}", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
