"""L and D read off atoms without names: amino acids of gemmi's own geometry, and their mirror images."""

from pathlib import Path

import gemmi
import numpy as np
import pytest

from ml_phaser.crystal.chirality import MOST, alpha_carbons, bonds
from ml_phaser.crystal.peaks import Images

EXAMPLE = Path(__file__).parents[2] / "examples" / "peptide.pdb"
CELL = gemmi.UnitCell(20, 21, 22, 90, 90, 90)
# N, C and CB about an alpha carbon, ideal tetrahedral angles, distances (A) of the free amino acids.
N, C, CB = np.array([[1.487], [1.531], [1.53]]) * np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1]]) / 3**0.5


def planar(carbon, parent, towards, length=1.25):
    """Two atoms bonded to ``carbon`` at 120 degrees, in the plane of ``towards``."""
    axis = (carbon - parent) / np.linalg.norm(carbon - parent)
    side = towards - axis * (towards @ axis)
    side /= np.linalg.norm(side)
    return [carbon + length * (0.5 * axis + sign * 0.866 * side) for sign in (1, -1)]


def further(carbon, parent, angles, length):
    """Atoms bonded to ``carbon`` at tetrahedral angles, at some turns (degrees) about its bond to ``parent``."""
    axis = (carbon - parent) / np.linalg.norm(carbon - parent)
    first = np.cross(axis, [0.3, 0.5, 0.8])
    first /= np.linalg.norm(first)
    second = np.cross(axis, first)
    turns = np.radians(angles)
    return [carbon + length * (axis / 3 + 0.943 * (np.cos(t) * first + np.sin(t) * second)) for t in turns]


def l_amino_acid(name):
    """Positions (m, 3) in A and electrons (m,) of an L-amino acid: (N x C) . CB > 0, as seen in L-alanine."""
    assert np.cross(N, C) @ CB > 0
    atoms, z = [np.zeros(3), N, C, CB, *planar(C, np.zeros(3), N)], [6, 7, 6, 6, 8, 8]
    if name == "SER":
        atoms, z = [*atoms, *further(CB, np.zeros(3), [60], 1.42)], [*z, 8]
    if name == "VAL":
        atoms, z = [*atoms, *further(CB, np.zeros(3), [60, 180], 1.52)], [*z, 6, 6]
    if name == "CYS":
        atoms, z = [*atoms, *further(CB, np.zeros(3), [60], 1.81)], [*z, 16]
    return np.array(atoms), np.array(z, dtype=float)


def turned(xyz, seed):
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    return xyz @ (q * np.sign(np.linalg.det(q))).T


def judged(xyz, z, group="P 1", shift=(0.3, 0.4, 0.45)):
    frac = xyz @ np.array(CELL.frac.mat.tolist()).T + np.array(shift)
    return alpha_carbons(frac, z, Images(CELL, gemmi.SpaceGroup(group)))


@pytest.mark.parametrize("name", ["ALA", "SER", "VAL", "CYS"])
@pytest.mark.parametrize("seed", range(3))
def test_l_is_told_from_d(name, seed):
    """However it lies, across the cell's faces too; and mirrored it is D, by exactly as much."""
    xyz, z = l_amino_acid(name)
    odds = judged(turned(xyz, seed), z, shift=(0.0, 0.98, 0.5))
    assert odds[0] > 2
    assert np.abs(odds[1:]).max() < 0.5  # no other centre says anything
    assert judged(-turned(xyz, seed), z, shift=(0.0, 0.98, 0.5)) == pytest.approx(-odds)
    assert judged(turned(xyz, seed), 0.1 * z) == pytest.approx(odds)  # on any scale


def test_nothing_is_said_where_nothing_is_chiral():
    xyz, z = l_amino_acid("ALA")
    glycine = [0, 1, 2, 4, 5]
    assert not judged(xyz[glycine], z[glycine]).any()
    same = np.full(len(z), 6.0)
    methyls = np.array([np.zeros(3), N, C, CB])  # four carbons: no role is likelier than another
    assert np.abs(judged(methyls, same[:4])).max() < 0.6
    assert len(judged(np.zeros((0, 3)), np.zeros(0))) == 0


def test_small_errors_make_it_less_sure_and_large_ones_silent():
    xyz, z = l_amino_acid("ALA")
    rng = np.random.default_rng(4)
    errors = (0, 0.03, 0.3)
    moved = [np.mean([judged(xyz + rng.normal(0, e, xyz.shape), z)[0] for _ in range(30)]) for e in errors]
    assert MOST >= moved[0] > moved[1] > 0.5
    assert abs(moved[2]) < 0.5


def test_bonds_go_to_images_too():
    """An atom half a bond from an inversion centre is bonded to its own image."""
    frac = np.array([[0.76 / 20, 0.0, 0.0], [0.3, 0.3, 0.3]])
    first, second = bonds(frac, Images(CELL, gemmi.SpaceGroup("P -1")))
    assert first.rows.tolist() == [0] and first.lengths == pytest.approx([1.52])
    assert len(second.rows) == 0


def test_residues_of_a_protein_model_are_l():
    """Every residue of the example but glycine, whose coordinates come from a deposited structure."""
    structure = gemmi.read_structure(str(EXAMPLE))
    atoms = [cra.atom for cra in structure[0].all() if not cra.residue.is_water()]
    frac = np.array([structure.cell.fractionalize(a.pos).tolist() for a in atoms])
    z = np.array([a.element.atomic_number for a in atoms], dtype=float)
    odds = alpha_carbons(frac, z, Images(structure.cell, structure.find_spacegroup()))
    alpha = np.array([a.name == "CA" for a in atoms])
    chiral = alpha & np.array([cra.residue.find_atom("CB", "*") is not None for cra in structure[0].all()
                               if not cra.residue.is_water()])  # fmt: skip
    assert chiral.sum() >= 4
    assert (odds[chiral] > 1).all()
    assert np.abs(odds[alpha & ~chiral]).max(initial=0) < 0.5
    assert np.abs(odds[~alpha]).max() < 1.5
