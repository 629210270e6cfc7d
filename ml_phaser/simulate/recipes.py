"""The data sets of the founding papers, to their recipes: fragments of deposited proteins alone in P1 cells.

Pan et al., IUCrJ 10, 487 (2023), section 2.3 and table 1: dipeptides of adjacent residues, centre of mass at the centre
of the cell; dialanine is made of them "by truncation at the C-beta atom", so its conformers are those of all residues.
Dun et al. (CrysFormer), section 4 and appendix B: all B factors 20 A^2, no hydrogens, no contact under 2.75 A, the
first axis the longest, the third the shortest, structure factors to 1.5 A, maps on a 0.5 A grid. Not said there and
chosen here: Pan's B (20 A^2) and clash limit (2.75 A), the order in which a minimal cell is expanded, and that the
longest extent of 15 residues lies along the longest axis. Fragments keep the orientation of their entry unless
``rotate``; residues have all their atoms and none is a terminus with OXT.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import gemmi
import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from ml_phaser.crystal.amino_acids import THREE_LETTERS
from ml_phaser.crystal.maps import symmetric_shape
from ml_phaser.errors import UserError
from ml_phaser.simulate.fragments import Fragment, Library
from ml_phaser.simulate.measure import Sites
from ml_phaser.simulate.packing import operators
from ml_phaser.simulate.rigid import neighbours
from ml_phaser.simulate.simulated import Built

SHORTEST_CONTACT = 2.75  # A
FIFTEEN_CELL = (41.0, 30.0, 24.0)
GROWTH = 0.1  # A, of a minimal cell in one step
TRIES = 400
P1 = gemmi.SpaceGroup("P 1")


def needed(library: Library | None) -> Library:
    """The library. Raises UserError where there is none."""
    if library is None:
        raise UserError("this family is made of protein coordinates", "data", "data FOLDER")
    return library


def draw_fragment(rng: np.random.Generator, library: Library, count: int) -> Fragment:
    """``count`` complete residues bonded to each other, out of a random cluster's random chain.

    Raises
    ------
    UserError
        where no chain has so many
    """
    for _ in range(TRIES):
        i = library.draw(rng)
        places = library.complete(i, count)
        if len(places):
            return library.fragment(i, int(rng.choice(places)), count)
    raise UserError(f"no chain with {count} complete residues was found", "the coordinates", "fewer residues")


def centred(fragment: Fragment, turn: NDArray | None = None) -> NDArray[np.float64]:
    """Coordinates (n, 3) in A about the centre of mass, turned by (3, 3) if given."""
    mass = np.array([gemmi.Element(e).weight for e in fragment.elements])
    xyz = fragment.xyz - mass @ fragment.xyz / mass.sum()
    return xyz if turn is None else xyz @ turn.T


def alone(fragment: Fragment, xyz: NDArray, cell: gemmi.UnitCell, spacing: float, d_min: float) -> Built:
    """A P1 crystal of one fragment at ``xyz`` (n, 3) in A about the centre of the cell."""
    frac = np.round(xyz, 3) @ np.array(cell.frac.mat).T + 0.5
    n = len(frac)
    sites = Sites(
        frac, fragment.elements, np.zeros(n), np.ones(n), fragment.names,
        tuple(THREE_LETTERS[fragment.sequence[k]] for k in fragment.residue), fragment.residue + 1, ("A",) * n,
    )  # fmt: skip
    return Built(cell, P1, sites, symmetric_shape(cell, P1, d_min, spacing), (fragment.source,))


def shortest_contact(
    frac: NDArray, cell: gemmi.UnitCell, spacegroup: gemmi.SpaceGroup, body: NDArray | None = None, reach: float = 5.0
) -> float:
    """Shortest distance in A between molecules, ``reach`` if none is shorter; ``body`` (n,) numbers those of the
    asymmetric unit (one, if None)."""
    symmetry, orth = operators(spacegroup), np.array(cell.orth.mat)
    pairs = neighbours(frac, np.zeros(len(frac), dtype=int) if body is None else body, orth, symmetry, reach)
    return float(np.linalg.norm(pairs.vectors(frac, orth, symmetry), axis=1).min(initial=reach))


def _placed(rng: np.random.Generator, chosen: Mapping[str, Any], fragment: Fragment) -> NDArray[np.float64]:
    return centred(fragment, Rotation.random(rng=rng).as_matrix() if chosen["rotate"] else None)


def _in_cube(rng: np.random.Generator, chosen: Mapping[str, Any], library: Library, *, alanine: bool) -> Built:
    cell = gemmi.UnitCell(chosen["edge"], chosen["edge"], chosen["edge"], 90, 90, 90)
    for _ in range(TRIES):
        fragment = draw_fragment(rng, library, 2)
        if alanine:
            fragment = dialanine(fragment)
            if len(fragment.names) < 10:  # glycine has no C-beta
                continue
        xyz = _placed(rng, chosen, fragment)
        if shortest_contact(xyz @ np.array(cell.frac.mat).T, cell, P1) >= SHORTEST_CONTACT:
            return alone(fragment, xyz, cell, chosen["spacing"], chosen["d_min"])
    raise UserError("no dipeptide fits without clashes", f"edge {chosen['edge']:g}", "a larger cell")


def dialanine(fragment: Fragment) -> Fragment:
    """A dipeptide cut back to its C-beta atoms and renamed."""
    kept = fragment.at(np.array([name in ("N", "CA", "C", "O", "CB") for name in fragment.names]))
    return Fragment(kept.source, "AA", kept.names, kept.residue, kept.xyz, kept.b)


def build_dialanine(rng: np.random.Generator, chosen: Mapping[str, Any], library: Library | None) -> Built:
    """Pan et al., data sets 1a and 1b."""
    return _in_cube(rng, chosen, needed(library), alanine=True)


def build_dipeptide(rng: np.random.Generator, chosen: Mapping[str, Any], library: Library | None) -> Built:
    """Pan et al., data set 2."""
    return _in_cube(rng, chosen, needed(library), alanine=False)


def build_minimal(rng: np.random.Generator, chosen: Mapping[str, Any], library: Library | None) -> Built:
    """CrysFormer's dipeptides.

    The cell starts at the extent of the molecule along each axis. While a contact is too short, the axis along which
    its lattice translation is longest grows.
    """
    library = needed(library)
    for _ in range(TRIES):
        fragment = draw_fragment(rng, library, 2)
        xyz = _placed(rng, chosen, fragment)
        lengths = minimal_cell(xyz)
        if lengths is not None:
            order = np.argsort(-lengths, kind="stable")
            # Another order of the axes must not make a mirror image.
            sign = np.array([1, 1, np.linalg.det(np.eye(3)[order])])
            a, b, c = lengths[order]
            cell = gemmi.UnitCell(a, b, c, 90, 90, 90)
            return alone(fragment, xyz[:, order] * sign, cell, chosen["spacing"], chosen["d_min"])
    raise UserError("no dipeptide fits without clashes", "family dipeptide-minimal", "another seed")


def minimal_cell(xyz: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """Edges (3,) in A, to 0.1, of a box in which a molecule (n, 3) keeps SHORTEST_CONTACT to its images; None where
    none is found within 200 steps."""
    lengths = np.ceil(np.maximum(np.ptp(xyz, axis=0), 1.0) / GROWTH) * GROWTH
    body, symmetry = np.zeros(len(xyz), dtype=int), operators(P1)
    for _ in range(200):
        orth = np.diag(lengths)
        pairs = neighbours(xyz / lengths, body, orth, symmetry, SHORTEST_CONTACT)
        distance = np.linalg.norm(pairs.vectors(xyz / lengths, orth, symmetry), axis=1)
        if not np.any(distance < SHORTEST_CONTACT):
            return np.round(lengths, 3)
        worst = pairs.shift[np.argmin(np.round(distance, 6))]
        lengths[np.argmax(np.abs(worst) * lengths)] += GROWTH
    return None


def build_fifteen(rng: np.random.Generator, chosen: Mapping[str, Any], library: Library | None) -> Built:
    """CrysFormer's 15 residues; ``fragment`` names one of the published list, else the seed draws.

    Raises
    ------
    UserError
        for a named fragment that the library does not hold whole, or that clashes
    """
    library = needed(library)
    cell = gemmi.UnitCell(*FIFTEEN_CELL, 90, 90, 90)
    named = chosen["fragment"]
    for _ in range(1 if named else TRIES):
        fragment = find_fragment(library, named, 15) if named else draw_fragment(rng, library, 15)
        xyz = _placed(rng, chosen, fragment)
        # The longest extent of the molecule along the longest axis, as the paper reorients.
        order = np.argsort(-np.ptp(xyz, axis=0), kind="stable")
        xyz = xyz[:, order] * np.array([1, 1, np.linalg.det(np.eye(3)[order])])
        if shortest_contact(xyz @ np.array(cell.frac.mat).T, cell, P1) >= SHORTEST_CONTACT:
            return alone(fragment, xyz, cell, chosen["spacing"], chosen["d_min"])
    what = f"fragment {named}" if named else "family residues-15"
    raise UserError("clashes with its images in the cell of 41 x 30 x 24 A", what, "another fragment")


def find_fragment(library: Library, name: str, count: int) -> Fragment:
    """A fragment by the name of the published lists, ``entry_entity_first``: the position of the first residue counts
    the residues modelled, from 1.

    An entity is the n-th distinct chain of the entry, or the only one there is.

    Raises
    ------
    UserError
        for a name that is none, an entry or chain the library lacks, residues that are incomplete or not bonded
    """
    match = re.fullmatch(r"(\w{4})_(\d+)(?:\.pdb?)?_(\d+)", name.strip())
    if match is None:
        raise UserError("is not entry_entity_first", f"fragment {name}", "e.g. 1A1X_1_12")
    chains = np.flatnonzero(library.entry == match[1].lower())
    entity, first = int(match[2]), int(match[3])
    if not len(chains) or (len(chains) > 1 and not 1 <= entity <= len(chains)):
        raise UserError("is not among the coordinates", f"fragment {name}", "another fragment, or other coordinates")
    i = int(chains[0] if len(chains) == 1 else chains[entity - 1])
    if first - 1 not in library.complete(i, count):
        raise UserError("has residues that are incomplete or not bonded", f"fragment {name}", "another fragment")
    return library.fragment(i, first - 1, count)
