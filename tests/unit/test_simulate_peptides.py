"""Peptides of ideal geometry: measured with gemmi, textbook values and deposited proteins."""

import gemmi
import numpy as np
import pytest

from ml_phaser.crystal.amino_acids import place_atom
from ml_phaser.errors import UserError
from ml_phaser.simulate.peptides import (
    THREE_LETTERS,
    bond_steps,
    build,
    checked_sequence,
    clashes,
    random_peptide,
)

ALL = "ACDEFGHIKLMNPQRSTVWY"
# Covalent bonds of non-hydrogen atoms in the twenty amino acids, in A (Allen et al., 1987), by elements.
BOND = {"CC": (1.34, 1.56), "CN": (1.30, 1.50), "CO": (1.22, 1.44), "CS": (1.76, 1.83)}


@pytest.fixture(scope="module")
def every():
    return random_peptide(np.random.default_rng(3), ALL)


def positions(peptide):
    return {
        (int(i), name): gemmi.Position(*xyz)
        for i, name, xyz in zip(peptide.residue, peptide.names, peptide.xyz, strict=True)
    }


@pytest.mark.parametrize(("angle", "torsion"), [(109.5, 60), (120, 180), (90, -90), (112, -17)])
def test_an_atom_is_where_its_internal_coordinates_say(angle, torsion):
    a, b, c = np.array([[0.1, 0.2, 0.3], [1.4, 0.1, 0.0], [2.0, 1.3, 0.5]])
    d = place_atom(a, b, c, 1.5, angle, torsion)
    p = [gemmi.Position(*x) for x in (a, b, c, d)]
    assert p[2].dist(p[3]) == pytest.approx(1.5)
    assert np.rad2deg(gemmi.calculate_angle(*p[1:])) == pytest.approx(angle)
    assert np.cos(gemmi.calculate_dihedral(*p) - np.deg2rad(torsion)) == pytest.approx(1)


def test_torsions_are_those_asked_for():
    phi_psi = [(-60, -45), (-120, 130), (-75, 140), (-60, -40)]
    chis = [(), (-65, 175), (62,), (-67, 178, 175, -178)]
    at = positions(build("ALSK", phi_psi, chis, [180, 175, -178, 180]))
    names = {"L": ("N", "CA", "CB", "CG", "CD1"), "K": ("N", "CA", "CB", "CG", "CD", "CE", "NZ")}

    def torsion(*atoms):
        return np.rad2deg(gemmi.calculate_dihedral(*(at[a] for a in atoms)))

    for i in range(4):
        if i:
            phi = torsion((i - 1, "C"), (i, "N"), (i, "CA"), (i, "C"))
            omega = torsion((i - 1, "CA"), (i - 1, "C"), (i, "N"), (i, "CA"))
            assert phi == pytest.approx(phi_psi[i][0])
            assert np.cos(np.deg2rad(omega - [180, 175, -178, 180][i])) == pytest.approx(1)
        if i < 3:
            assert torsion((i, "N"), (i, "CA"), (i, "C"), (i + 1, "N")) == pytest.approx(phi_psi[i][1])
    for i, letter in ((1, "L"), (3, "K")):
        atoms = [(i, name) for name in names[letter]]
        for k, chi in enumerate(chis[i]):
            assert torsion(*atoms[k : k + 4]) == pytest.approx(chi)


def test_bonds_are_as_long_as_bonds_are(every):
    assert len(every.bonds) == len(every) - 1 + 2 + 5 - 2 + 1  # a tree; rings of P, F, Y, H close one bond, of W two
    for i, j in every.bonds:
        low, high = BOND["".join(sorted(every.elements[i] + every.elements[j]))]
        assert low < np.linalg.norm(every.xyz[i] - every.xyz[j]) < high, (every.names[i], every.names[j])


def test_each_residue_has_its_atoms_and_formula(every):
    tables = {
        letter: gemmi.find_tabulated_residue(THREE_LETTERS[letter]) for letter in ALL
    }  # gemmi's table: one letter code and number of hydrogen atoms, weight of the free amino acid
    for i, letter in enumerate(ALL):
        elements = [e for e, r in zip(every.elements, every.residue, strict=True) if r == i]
        weight = sum(gemmi.Element(e).weight for e in elements) + tables[letter].hydrogen_count * 1.008
        water = 0.0 if i == len(ALL) - 1 else gemmi.Element("O").weight  # lost on forming the peptide bond
        assert tables[letter].one_letter_code == letter
        assert weight + water == pytest.approx(tables[letter].weight, abs=2.1), letter  # protonation aside


def test_residues_are_of_the_l_kind(every):
    at = {key: np.array(p.tolist()) for key, p in positions(every).items()}

    def handed(i, centre, *names):  # signed volume of three bonds; the sign of an L residue: monomer library, CCP4
        return np.linalg.det([at[i, name] - at[i, centre] for name in names])

    for i, letter in enumerate(ALL):
        if letter != "G":
            assert 2.2 < handed(i, "CA", "N", "C", "CB") < 2.9, letter
    # threonine and isoleucine have a second centre: (2S,3R) and (2S,3S)
    assert 2.2 < handed(ALL.index("T"), "CB", "CA", "OG1", "CG2") < 2.9
    assert 2.2 < handed(ALL.index("I"), "CB", "CA", "CG1", "CG2") < 2.9


def test_rings_and_amides_are_flat(every):
    rings = {
        "F": "CB CG CD1 CD2 CE1 CE2 CZ", "Y": "CB CG CD1 CD2 CE1 CE2 CZ OH", "H": "CB CG ND1 CD2 CE1 NE2",
        "W": "CB CG CD1 CD2 NE1 CE2 CE3 CZ2 CZ3 CH2", "N": "CB CG OD1 ND2", "R": "CD NE CZ NH1 NH2",
    }  # fmt: skip
    for letter, names in rings.items():
        i = ALL.index(letter)
        rows = [k for k in range(len(every)) if every.residue[k] == i and every.names[k] in names.split()]
        assert len(rows) == len(names.split())
        centred = every.xyz[rows] - every.xyz[rows].mean(axis=0)
        thickness = np.linalg.svd(centred)[1][-1] / np.sqrt(len(rows))
        assert thickness < 0.03, letter


def test_hinges_turn_what_lies_beyond_them_and_leave_the_geometry():
    peptide = random_peptide(np.random.default_rng(5), "SKPFV")
    near = bond_steps(peptide) <= 2
    assert len(peptide.hinges) == 5 + 3 + 1 + 4 + 2 + 1  # psi; phi but of S and P; S, K, F, V side chains
    for hinge in peptide.hinges:
        assert hinge.moving[hinge.far] and not hinge.moving[hinge.near]
        axis = peptide.xyz[hinge.far] - peptide.xyz[hinge.near]
        axis /= np.linalg.norm(axis)
        x = peptide.xyz[hinge.moving] - peptide.xyz[hinge.near]
        c, s = np.cos(0.7), np.sin(0.7)
        turned = peptide.xyz.copy()
        turned[hinge.moving] = (
            x * c + np.cross(axis, x) * s + np.outer(x @ axis, axis) * (1 - c) + peptide.xyz[hinge.near]
        )
        before = np.linalg.norm(peptide.xyz[:, None] - peptide.xyz, axis=-1)
        after = np.linalg.norm(turned[:, None] - turned, axis=-1)
        np.testing.assert_allclose(after[near], before[near], atol=1e-9)
        # a bond turns something, but for a last methyl or hydroxyl every hinge has atoms off its axis
        assert np.abs(after - before).max() > 0.01


@pytest.mark.parametrize("sequence", ["AGYSLKFD", "WWPPW", "GGGG", "IVTIVT", "RMQEHN"])
def test_conformations_have_no_clashes_by_brute_force(sequence):
    rng = np.random.default_rng(11)
    for _ in range(3):
        peptide = random_peptide(rng, sequence)
        far = bond_steps(peptide) > 4
        distance = np.linalg.norm(peptide.xyz[:, None] - peptide.xyz, axis=-1)
        assert distance[far].min(initial=9) >= 2.7


def test_a_folded_back_chain_is_a_clash():
    assert clashes(build("AAAAA", [(-60, 60)] * 5, [()] * 5, [0] * 5))


def test_bonds_apart_by_breadth_first_search(every):
    links = {i: set() for i in range(len(every))}
    for i, j in every.bonds:
        links[i].add(j)
        links[j].add(i)
    steps = bond_steps(every)
    for start in range(0, len(every), 17):
        depth, ring = {start: 0}, {start}
        for k in range(1, 5):
            ring = {j for i in ring for j in links[i]} - set(depth)
            depth.update(dict.fromkeys(ring, k))
        assert [depth.get(i, 5) for i in range(len(every))] == steps[start].tolist()


def test_seeds_decide():
    one, same, other = (random_peptide(np.random.default_rng(s), "ACDK") for s in (1, 1, 2))
    assert np.array_equal(one.xyz, same.xyz)
    assert not np.allclose(one.xyz, other.xyz)


@pytest.mark.parametrize("text", ["", "  ", "AXB", "AC-D", "ACZ1", "A" * 41])
def test_letters_that_mean_nothing(text):
    with pytest.raises(UserError, match="sequence"):
        checked_sequence(text)


def test_spaces_and_case_do_not_matter():
    assert checked_sequence(" ac de\nf ") == "ACDEF"
