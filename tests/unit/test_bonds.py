"""Which bonds of a molecule turn, against what is known of amino acids and of gemmi's residues."""

import numpy as np
import pytest

from ml_phaser.crystal.bonds import hinges, linked
from ml_phaser.crystal.peptide import build
from ml_phaser.crystal.rotamers import likely


def axes(found):
    return {frozenset((h.near, h.far)) for h in found}


@pytest.mark.parametrize("sequence", ["RS", "YW", "NH", "PEK", "GMC", "FTI"])
def test_bonds_that_turn_are_those_of_the_builder(sequence):
    chis = [likely(letter)[0] for letter in sequence]
    peptide = build(sequence, [(-80.0, 120.0)] * len(sequence), chis, [180.0] * len(sequence))
    found = hinges(peptide.elements, peptide.xyz)
    bonded = {tuple(sorted(b)) for b in peptide.bonds.tolist()}
    assert {tuple(sorted(b)) for b in np.argwhere(linked(peptide.elements, peptide.xyz)).tolist()} == bonded
    # Rings and amides do not turn; the builder's own list, and what only turns atoms that it leaves out
    assert axes(found) >= axes(peptide.hinges)
    more = [sorted(peptide.names[i] for i in a) for a in axes(found) - axes(peptide.hinges)]
    assert all(pair in (["C", "CA"], ["CZ", "NE"]) for pair in more), more
    for h in found:
        assert h.moving[h.far] and not h.moving[h.near] and 2 <= h.moving.sum() <= len(peptide) / 2 + 1


def test_rings_and_short_bonds_do_not_turn():
    """Biphenyl with a nitrile: one bond."""
    ring = np.array([[1.39 * np.cos(a), 1.39 * np.sin(a), 0] for a in np.radians(range(0, 360, 60))])
    other = ring * [-1, 1, 1] + [2 * 1.39 + 1.49, 0, 0]
    tail = np.array([[-1.39 - 1.44, 0, 0], [-1.39 - 1.44 - 1.14, 0, 0]])
    elements, xyz = ["C"] * 12 + ["C", "N"], np.concatenate([ring, other, tail])
    found = hinges(elements, xyz)
    assert axes(found) == {frozenset((0, 6)), frozenset((3, 12))}
    assert sorted(h.moving.sum() for h in found) == [2, 6]
    assert hinges(["C"] * 6, ring) == ()


def test_atoms_far_apart_are_not_bonded():
    assert not linked(["C", "C"], np.array([[0.0, 0, 0], [1.9, 0, 0]])).any()
    assert linked(["C", "S"], np.array([[0.0, 0, 0], [1.82, 0, 0]])).sum() == 2
