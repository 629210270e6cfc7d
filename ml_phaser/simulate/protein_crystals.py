"""Whole protein crystals with flat bulk solvent: one chain of a library placed in a common group."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import gemmi
import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from ml_phaser.crystal.amino_acids import THREE_LETTERS
from ml_phaser.crystal.maps import symmetric_shape
from ml_phaser.errors import UserError
from ml_phaser.exchange.spacegroup import parse_spacegroup
from ml_phaser.simulate.fragments import Fragment, Library
from ml_phaser.simulate.measure import Sites
from ml_phaser.simulate.recipes import needed
from ml_phaser.simulate.rigid import Bodies, Placed, press, thrown, widened
from ml_phaser.simulate.simulated import Built, Solvent, standard, structure

# Groups that proteins crystallise in, by rounded shares of the Protein Data Bank.
GROUPS: Mapping[str, float] = {
    "P 21 21 21": 0.28, "P 1 21 1": 0.20, "C 1 2 1": 0.13, "P 1": 0.07, "P 21 21 2": 0.06, "C 2 2 21": 0.06,
    "P 43 21 2": 0.05, "P 32 2 1": 0.05, "I 4": 0.03, "P 65 2 2": 0.03, "P 61": 0.02, "H 3": 0.02,
}  # fmt: skip
BEAD = 6.5  # A between the centres of residues of two molecules that touch
BEAD_VOLUME = 900.0  # A^3 of cell a residue, to begin with
CROWDED = 40  # neighbours within 6 A of an atom that no other molecule can touch
FEWEST_RESIDUES = 20
TRIES = 30
INTERLOCKED = 4  # packings whose molecules may turn out to be impossible to draw apart


def build_protein(rng: np.random.Generator, chosen: Mapping[str, Any], library: Library | None) -> Built:
    """A chain packed in a group, then the cell opened to the share of solvent asked for, as far as it is below that.

    Raises
    ------
    UserError
        a group that is none, no chain of the size asked for, no packing without clashes
    """
    name = chosen["spacegroup"]
    group = gemmi.SpaceGroup(str(rng.choice(list(GROUPS), p=list(GROUPS.values())))) if name is None else None
    group = group or parse_spacegroup(name, where="spacegroup")
    protein = draw_chain(rng, needed(library), chosen["residues"])
    atoms = Bodies.of([protein.xyz], [protein.elements])
    sites = _sites(protein)
    for _ in range(INTERLOCKED):
        placed = _packed(rng, protein, atoms, group, int(chosen["starts"]))
        for _ in range(3):
            cell, frac = standard(placed, atoms)
            filled = solvent_fraction(replace(sites, xyz=frac), cell, group)
            placed = widened(placed, atoms, group, placed.volume * (1 - filled) / (1 - chosen["solvent"]))
        cell, frac = standard(placed, atoms)
        filled = solvent_fraction(replace(sites, xyz=frac), cell, group)
        if filled > chosen["solvent"] - 0.03:
            break
    solvent = Solvent(chosen["k_sol"], chosen["b_sol"], round(filled, 4))
    shape = symmetric_shape(cell, group, chosen["d_min"], chosen["d_min"] / 3)
    return Built(cell, group, replace(sites, xyz=frac), shape, (protein.source,), solvent)


def draw_chain(rng: np.random.Generator, library: Library, residues: float) -> Fragment:
    """A whole chain, of all draws the one nearest to so many residues. Raises UserError where all are tiny."""
    sizes = np.diff(library.named.start)
    drawn = [library.draw(rng) for _ in range(TRIES)]
    best = min(drawn, key=lambda i: abs(int(sizes[i]) - residues))
    if sizes[best] < FEWEST_RESIDUES:
        raise UserError("holds no chain of that size", "residues", "other coordinates")
    return library.fragment(best, 0)


def _sites(protein: Fragment) -> Sites:
    n = len(protein.names)
    return Sites(
        np.zeros((n, 3)), protein.elements, np.zeros(n), np.ones(n), protein.names,
        tuple(THREE_LETTERS[protein.sequence[k]] for k in protein.residue), protein.residue + 1, ("A",) * n,
    )  # fmt: skip


def _packed(rng: np.random.Generator, protein: Fragment, atoms: Bodies, group: gemmi.SpaceGroup, starts: int) -> Placed:
    """The densest of some packings: first the residues as beads, then the atoms of the surface."""
    count = int(protein.residue[-1]) + 1
    sums = np.stack([np.bincount(protein.residue, atoms.local[:, a], count) for a in range(3)], axis=1)
    beads = np.asarray(sums / np.bincount(protein.residue)[:, None], dtype=np.float64)
    coarse = Bodies(beads, np.zeros(count, dtype=int), np.zeros(count, dtype=bool), (BEAD, BEAD, BEAD))
    surface = cKDTree(atoms.local).query_ball_point(atoms.local, 6.0, return_length=True) < CROWDED
    outer = Bodies(atoms.local[surface], atoms.body[surface], atoms.polar[surface])
    found: list[Placed] = []
    for k in range(TRIES):
        if k >= starts and found:
            break
        placed = press(thrown(rng, coarse, group, BEAD_VOLUME), coarse, group)
        if placed is not None:
            placed = press(placed.scaled(1.03), outer, group, 100, (0.02, 0.002))
        if placed is not None:  # also atoms that do not seem to lie at the surface
            placed = press(placed, atoms, group, steps=0)
        if placed is not None:
            found.append(placed)
    if not found:
        raise UserError("no packing without clashes was found", "family protein", "another seed or space group")
    return min(found, key=lambda p: round(p.volume, 3))


def solvent_fraction(sites: Sites, cell: gemmi.UnitCell, group: gemmi.SpaceGroup) -> float:
    """Share of the cell that is bulk solvent by the mask (0-1)."""
    from ml_phaser.structure_factors.solvent import exact_mask

    return float(exact_mask(structure(sites, cell, group), spacing=0.7).mean())


def solvent_factors(
    sites: Sites, cell: gemmi.UnitCell, group: gemmi.SpaceGroup, solvent: Solvent, hkl: NDArray[np.int32]
) -> NDArray[np.complex128]:
    """Of the solvent (n,), in electrons."""
    from ml_phaser.structure_factors.solvent import exact_mask

    return solvent.factors(exact_mask(structure(sites, cell, group)), hkl, cell)
