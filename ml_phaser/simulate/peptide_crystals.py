"""Crystals of peptides: of ideal geometry after a long search, or out of a library and pressed together quickly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import gemmi
import numpy as np
from numpy.typing import NDArray

from ml_phaser.crystal.amino_acids import THREE_LETTERS, place_atom
from ml_phaser.crystal.maps import symmetric_shape
from ml_phaser.errors import UserError
from ml_phaser.exchange.spacegroup import parse_spacegroup
from ml_phaser.simulate.fragments import Fragment, Library
from ml_phaser.simulate.measure import Sites
from ml_phaser.simulate.packing import Packed, operators, pack
from ml_phaser.simulate.peptides import checked_sequence, random_peptide
from ml_phaser.simulate.recipes import draw_fragment, needed
from ml_phaser.simulate.rigid import Bodies, Placed, pack_rigid, press, voids, widened
from ml_phaser.simulate.simulated import Built, standard

# Groups that peptides crystallise in, by their shares.
GROUPS: Mapping[str, float] = {
    "P 21 21 21": 0.34, "P 1 21 1": 0.30, "P 1": 0.14, "C 1 2 1": 0.12, "P 21 21 2": 0.04, "P 41 21 2": 0.02,
    "P 32": 0.02, "P 61": 0.02,
}  # fmt: skip
LARGEST = 118  # atoms of one molecule: 15 residues
DENSE = 17.5  # A^3 an atom of a molecule takes; what is left can be filled with waters
WATER_VOLUME = 28.0  # A^3 of void to put a water in
WET = 0.25  # waters for each atom of the molecules, at most, where the number of atoms is asked for
FEWEST, MOST = 30, 300_000  # reflections
RESIDUE_VOLUME = 165.0  # A^3, of an average residue in a dense crystal


def build_ideal(rng: np.random.Generator, chosen: Mapping[str, Any], library: Library | None) -> Built:
    """A peptide of ideal geometry, packed by a long search (``packing``).

    Raises
    ------
    UserError
        for a sequence that is none, a group too large, a peptide that would not pack, too few or many reflections
    """
    sequence = checked_sequence(chosen["sequence"] or "")
    expected = 2 * np.pi / 3 * RESIDUE_VOLUME * len(sequence) / chosen["d_min"] ** 3
    if not FEWEST <= expected <= MOST:
        few = expected < FEWEST
        what = f"about {expected:.0f} reflections, too {'few' if few else 'many'}"
        raise UserError(what, f"resolution {chosen['d_min']:g}", f"a {'higher' if few else 'lower'} resolution")
    crystal = pack(rng, sequence, parse_spacegroup(chosen["spacegroup"], where="spacegroup"))
    shape = symmetric_shape(crystal.cell, crystal.spacegroup, chosen["d_min"], chosen["d_min"] / 3)
    return Built(crystal.cell, crystal.spacegroup, sites_of(crystal), shape, ())


def sites_of(crystal: Packed) -> Sites:
    """The peptide as chain A, waters as chain W, B factors 0."""
    peptide, waters = crystal.peptide, len(crystal.waters)
    n = len(peptide)
    return Sites(
        np.concatenate([crystal.xyz, crystal.waters]) @ np.array(crystal.cell.frac.mat).T,
        (*peptide.elements, *("O",) * waters), np.zeros(n + waters), np.ones(n + waters),
        (*peptide.names, *("O",) * waters),
        (*(THREE_LETTERS[peptide.sequence[k]] for k in peptide.residue), *("HOH",) * waters),
        np.concatenate([peptide.residue + 1, np.arange(waters) + 1]), (*("A",) * n, *("W",) * waters),
    )  # fmt: skip


def build_peptide(rng: np.random.Generator, chosen: Mapping[str, Any], library: Library | None) -> Built:
    """Peptides with their side chains as deposited (or of ideal geometry, where a ``sequence`` is given), pressed
    together with some waters.

    Raises
    ------
    UserError
        a group that is none, settings that contradict each other, no packing without clashes
    """
    group = _group(rng, chosen["spacegroup"])
    order = len(operators(group)[0])
    molecules, waters = _contents(rng, chosen, library, order)
    bodies = Bodies.of([m.xyz for m in molecules], [m.elements for m in molecules])
    placed = pack_rigid(rng, bodies, group, int(chosen["starts"]))
    if waters is None:
        free = placed.volume / order - DENSE * len(bodies.local)
        waters = round(chosen["waters"] * max(0.0, free) / WATER_VOLUME)
    placed, bodies = with_waters(rng, placed, bodies, group, waters)
    n = len(bodies.local)
    if chosen["volume_per_atom"] is not None:
        placed = widened(placed, bodies, group, chosen["volume_per_atom"] * n * order)
    cell, frac = standard(placed, bodies)
    letters = "ABCDEFGHIJKLMNOPQRSTUVXYZ"
    sites = Sites(
        frac, tuple(e for m in molecules for e in m.elements) + ("O",) * waters, np.zeros(n), np.ones(n),
        tuple(x for m in molecules for x in m.names) + ("O",) * waters,
        tuple(THREE_LETTERS[m.sequence[k]] for m in molecules for k in m.residue) + ("HOH",) * waters,
        np.concatenate([*(m.residue + 1 for m in molecules), np.arange(waters) + 1]),
        tuple(letters[i] for i, m in enumerate(molecules) for _ in m.names) + ("W",) * waters,
    )  # fmt: skip
    shape = symmetric_shape(cell, group, chosen["d_min"], chosen["d_min"] / 3)
    return Built(cell, group, sites, shape, tuple(m.source for m in molecules if m.source))


def _group(rng: np.random.Generator, name: str | None) -> gemmi.SpaceGroup:
    if name is None:
        return gemmi.SpaceGroup(str(rng.choice(list(GROUPS), p=list(GROUPS.values()))))
    return parse_spacegroup(name, where="spacegroup")


def _contents(
    rng: np.random.Generator, chosen: Mapping[str, Any], library: Library | None, order: int
) -> tuple[list[Fragment], int | None]:
    """Molecules and number of waters of the asymmetric unit; None: as many as fill the voids."""
    if chosen["sequence"]:
        if chosen["atoms"] is not None:
            raise UserError("cannot be had together with a sequence", "atoms", "atoms or sequence")
        molecules = [ideal_fragment(rng, chosen["sequence"])]
    elif chosen["atoms"] is not None:
        wanted = max(5, round(chosen["atoms"] / order))
        dry = max(5, round(wanted / (1 + WET * chosen["waters"])))
        count = -(-dry // LARGEST)
        sizes = np.diff(np.round(np.linspace(0, dry, count + 1)).astype(int))
        molecules = [terminated(fragment_of_size(rng, needed(library), int(n) - 1)) for n in sizes]
        return molecules, wanted - sum(len(m.names) for m in molecules)
    else:
        molecules = [terminated(draw_fragment(rng, needed(library), round(chosen["residues"])))]
    return molecules, None


def with_waters(
    rng: np.random.Generator, placed: Placed, bodies: Bodies, spacegroup: gemmi.SpaceGroup, count: int
) -> tuple[Placed, Bodies]:
    """Waters put into voids and everything pressed once more. Raises UserError where they find no place."""
    if not count:
        return placed, bodies
    for attempt in range(6):
        wider, points = voids(rng, placed.scaled(1 + 0.01 * attempt), bodies, spacegroup, count)
        both = Bodies(
            np.concatenate([bodies.local, np.zeros((count, 3))]),
            np.concatenate([bodies.body, bodies.count + np.arange(count)]),
            np.concatenate([bodies.polar, np.ones(count, dtype=bool)]),
        )
        turn = np.concatenate([wider.turn, np.broadcast_to(np.eye(3), (count, 3, 3))])
        wet = Placed(wider.orth, np.concatenate([wider.centre, points]), turn)
        pressed = press(wet, both, spacegroup, 200, (0.02, 0.002))
        if pressed is not None:
            return pressed, both
    raise UserError("no packing without clashes was found", "waters", "another seed, or fewer waters")


def ideal_fragment(rng: np.random.Generator, sequence: str) -> Fragment:
    """A peptide of ideal geometry in a random conformation, as if it came out of a library."""
    peptide = random_peptide(rng, sequence)
    order = np.argsort(peptide.residue, kind="stable")
    names = tuple(peptide.names[k] for k in order)
    return Fragment("", peptide.sequence, names, peptide.residue[order], peptide.xyz[order], np.zeros(len(order)))


def fragment_of_size(rng: np.random.Generator, library: Library, atoms: int) -> Fragment:
    """Consecutive complete residues of at most ``atoms`` atoms, as near to that as many draws get.

    Raises
    ------
    UserError
        where nothing as small is found
    """
    residues = library.named
    best: tuple[int, int, int, int] | None = None
    for _ in range(60):
        i = library.draw(rng)
        for count in range(max(1, round(atoms / 11)), round(atoms / 4) + 1):
            places = library.complete(i, count)
            first = residues.first[int(residues.start[i]) + places]
            size = residues.first[int(residues.start[i]) + places + count] - first
            fits = np.flatnonzero(size <= atoms)
            if len(fits):
                k = int(fits[np.argmax(size[fits])])
                if best is None or size[k] > best[0]:
                    best = (int(size[k]), i, int(places[k]), count)
        if best is not None and best[0] == atoms:
            break
    if best is None:
        raise UserError(f"no fragment of at most {atoms} atoms was found", "atoms", "more atoms")
    return library.fragment(best[1], best[2], best[3])


def terminated(fragment: Fragment) -> Fragment:
    """With the second oxygen of its carboxylate, OXT."""
    last = np.flatnonzero(fragment.residue == fragment.residue[-1])
    n, ca, c, o = (fragment.xyz[last[fragment.names[last[0] :].index(x)]] for x in ("N", "CA", "C", "O"))
    oxt = place_atom(n, ca, c, 1.249, 117.0, dihedral(n, ca, c, o) + 180)
    return replace(
        fragment, names=(*fragment.names, "OXT"), residue=np.append(fragment.residue, fragment.residue[-1]),
        xyz=np.vstack([fragment.xyz, oxt]), b=np.append(fragment.b, fragment.b[-1]),
    )  # fmt: skip


def dihedral(a: NDArray, b: NDArray, c: NDArray, d: NDArray) -> float:
    """Torsion angle a-b-c-d in degrees."""
    axis = (c - b) / np.linalg.norm(c - b)
    u, v = (a - b) - axis * ((a - b) @ axis), (d - c) - axis * ((d - c) @ axis)
    return float(np.rad2deg(np.arctan2(np.cross(axis, u) @ v, u @ v)))
