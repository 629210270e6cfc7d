"""Side chains of the sequence on a placed chain: every place in the sequence, the rotamers that agree best with the
density that the network has made of the chain.

The main chain stays; side chains add their structure factors to it, so that all combinations cost one calculation of
each rotamer. Rotamers are chosen in turn, each the best beside the others, until none changes. E^2 alone is a bad guide
here: on 5E5Z it led from CC 0.71 to 0.66.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ml_phaser.crystal.rotamers import ROTAMERS, likely
from ml_phaser.phasing.fragments.chain import MAIN, rebuilt, torsions
from ml_phaser.phasing.fragments.pieces import Piece
from ml_phaser.phasing.fragments.scene import Scene

ROUNDS = 3  # of choosing rotamers in turn
PROLINE = (-110.0, -40.0)  # degrees: what phi of proline can be

Floats = NDArray[np.float64]
Contact = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, eq=False)
class Dressed:
    """A piece with side chains: atoms (m, 3) in A, overlap with the density."""

    piece: Piece
    xyz: Floats
    fit: float


def registers(piece: Piece, xyz: Floats, sequences: Sequence[str]) -> list[tuple[str, int]]:
    """Sequence and first place of all stretches of known residues that the main chain can be."""
    count = len(piece.letters)
    phi = [p for p, _ in torsions(piece, xyz)[0]]
    found = []
    for sequence in dict.fromkeys(sequences):
        for first in range(len(sequence) - count + 1):
            letters = sequence[first : first + count]
            bent = [i for i, letter in enumerate(letters) if letter == "P" and i]
            if all(PROLINE[0] <= phi[i] <= PROLINE[1] for i in bent) and set(letters) <= set(ROTAMERS):
                found.append((sequence, first))
    return found


def dress(
    scene: Scene, piece: Piece, xyz: Floats, sequences: Sequence[str], most: int, target: torch.Tensor,
    fixed: torch.Tensor | None, contact: Contact, least: float,
) -> list[Dressed]:  # fmt: skip
    """The chain (m, 3) A with the side chains of the ``most`` places in the sequences that fit best.

    Parameters
    ----------
    target : (n,) E with the phases of the density
    fixed : (n,) structure factors of what is in place already
    contact : shortest distance (B,) in A of atoms (B, k, 3) from copies of themselves and from what is in place;
        rotamers closer than ``least`` are left out, if others are not
    """
    found = [_best(scene, piece, xyz, sequence, first, target, fixed, contact, least)
             for sequence, first in registers(piece, xyz, sequences)]  # fmt: skip
    return sorted(found, key=lambda d: -d.fit)[:most]


def _best(
    scene: Scene, piece: Piece, xyz: Floats, sequence: str, first: int, target: torch.Tensor,
    fixed: torch.Tensor | None, contact: Contact, least: float,
) -> Dressed:  # fmt: skip
    options = [likely(letter) for letter in sequence[first : first + len(piece.letters)]]
    deep = max(map(len, options))
    builds = [rebuilt(piece, xyz, sequence, first, [o[min(k, len(o) - 1)] for o in options]) for k in range(deep)]
    one = builds[0][0]
    main = np.isin(one.names, [*MAIN, "CB"])
    weight = torch.from_numpy(one.weight).float().to(scene.device)
    base = torch.from_numpy(builds[0][1][main]).float().to(scene.device)
    total = scene.structure(base[None], weight[torch.from_numpy(main)])[0]
    if fixed is not None:
        total = total + fixed
    parts: list[torch.Tensor] = []
    for i, own in enumerate(options):
        mine = (one.residue == i) & ~main
        atoms = torch.from_numpy(np.stack([b[1][mine] for b in builds[: len(own)]])).float().to(scene.device)
        if not mine.any():
            parts.append(torch.zeros((1, len(total)), dtype=total.dtype, device=total.device))
            continue
        f = scene.structure(atoms, weight[torch.from_numpy(mine)])
        near = contact(torch.cat([base.expand(len(atoms), -1, -1), atoms], dim=1))
        # One that clashes is worth less than nothing: it must not be chosen beside one that does not.
        f[near < least] = f[near < least] * (math.nan if (near >= least).any() else 1.0)
        parts.append(f)
    chosen = [int(torch.isfinite(f.real[:, 0]).float().argmax()) for f in parts]
    fit = -1.0
    for _ in range(ROUNDS):
        before = list(chosen)
        for i, f in enumerate(parts):
            rest = total + sum(parts[j][chosen[j]] for j in range(len(parts)) if j != i)
            score = scene.overlap(rest + f, target).nan_to_num(-1.0)
            chosen[i] = int(score.argmax())
            fit = float(score.max())
        if chosen == before:
            break
    chis = [own[k] for own, k in zip(options, chosen, strict=True)]
    new, atoms_ = rebuilt(piece, xyz, sequence, first, chis)
    return Dressed(new, atoms_, fit)
