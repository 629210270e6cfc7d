"""Geometry restraints: values against gemmi and numpy, gradients by finite differences, what is found in models."""

import itertools

import gemmi
import numpy as np
import pytest
import torch

from ml_phaser.building import topology
from ml_phaser.building.restraints import (
    Contacts,
    Planes,
    Restraints,
    Term,
    bond_angles,
    bond_lengths,
    off_plane,
    repulsion,
    torsions,
    volumes,
)
from ml_phaser.building.topology import Neighbours, Sites, restraints_of, riders, site_projectors
from ml_phaser.simulate.peptides import THREE_LETTERS, random_peptide

ALL = "ACDEFGHIKLMNPQRSTVWY"


def quads(k, n, seed=0):
    rng = np.random.default_rng(seed)
    return torch.tensor(np.array([rng.choice(n, 4, replace=False) for _ in range(k)]))


@pytest.fixture
def xyz():
    return torch.tensor(np.random.default_rng(1).uniform(0, 4, (9, 3)))


def positions(xyz):
    return [gemmi.Position(*x) for x in xyz.tolist()]


def structure(peptide, cell=(40, 40, 40, 90, 90, 90), group="P 1"):
    """A peptide as a gemmi structure."""
    st = gemmi.Structure()
    st.cell, st.spacegroup_hm = gemmi.UnitCell(*cell), group
    model, chain = gemmi.Model(1), gemmi.Chain("A")
    for i, letter in enumerate(peptide.sequence):
        residue = gemmi.Residue()
        residue.name, residue.seqid = THREE_LETTERS[letter], gemmi.SeqId(i + 1, " ")
        for name, element, number, x in zip(peptide.names, peptide.elements, peptide.residue, peptide.xyz, strict=True):
            if number == i:
                residue.add_atom(atom(name, element, x))
        chain.add_residue(residue)
    model.add_chain(chain)
    st.add_model(model)
    return st


def atom(name, element, x, altloc="\0", occ=1.0, b=15.0):
    a = gemmi.Atom()
    a.name, a.element, a.pos, a.altloc, a.occ, a.b_iso = (
        name,
        gemmi.Element(element),
        gemmi.Position(*x),
        altloc,
        occ,
        b,
    )
    return a


@pytest.fixture(scope="module")
def every():
    peptide = random_peptide(np.random.default_rng(3), ALL)
    return peptide, structure(peptide)


def test_values_are_those_of_gemmi(xyz):
    atoms, at = quads(12, 9), positions(xyz)
    for q, bond, angle, torsion in zip(
        atoms.tolist(), bond_lengths(xyz, atoms[:, :2]), bond_angles(xyz, atoms[:, :3]), torsions(xyz, atoms),
        strict=True,
    ):  # fmt: skip
        p = [at[i] for i in q]
        assert float(bond) == pytest.approx(p[0].dist(p[1]), abs=1e-6)
        assert float(angle) == pytest.approx(gemmi.calculate_angle(*p[:3]), abs=1e-6)
        assert float(torsion) == pytest.approx(gemmi.calculate_dihedral(*p), abs=1e-6)


def test_volumes_are_determinants(xyz):
    atoms = quads(8, 9)
    expected = [np.linalg.det(xyz[q[1:]].numpy() - xyz[q[0]].numpy()) for q in atoms]
    np.testing.assert_allclose(volumes(xyz, atoms), expected, atol=1e-9)


def test_distances_from_planes_are_those_of_gemmi(xyz):
    groups = torch.tensor([[0, 1, 2, 3, 4, 5], [6, 7, 8, 2, 6, 6]])
    present = torch.tensor([[1.0] * 6, [1.0] * 4 + [0.0] * 2], dtype=torch.float64)
    found = off_plane(xyz, Planes(groups, present, torch.ones(2)))
    for group, n, value in zip(groups.tolist(), (6, 4), found, strict=True):
        members = [atom("C", "C", xyz[i].tolist()) for i in group[:n]]
        plane = gemmi.find_best_plane(members)
        assert float(value) == pytest.approx(
            sum(gemmi.get_distance_from_plane(m.pos, plane) ** 2 for m in members), rel=1e-5
        )


def example(xyz):
    """All kinds of restraints at once, none of them fulfilled."""
    q = quads(6, len(xyz), seed=5)
    ones = torch.ones(6, dtype=torch.float64)
    planes = Planes(q, torch.ones((6, 4), dtype=torch.float64), 0.5 * ones)
    return Restraints(
        Term(q[:, :2], 1.5 * ones, 0.3 * ones), Term(q[:, :3], 1.9 * ones, 0.2 * ones), Term(q, 2.5 * ones, ones), q,
        planes, Term(q[:, 1:3], 0 * ones, 0.3 * ones),
    )  # fmt: skip


def contacts(xyz):
    rotation = torch.tensor(np.linalg.qr(np.random.default_rng(4).normal(size=(5, 3, 3)))[0])
    return Contacts(quads(5, len(xyz))[:, :2], rotation, torch.zeros((5, 3)).double(), torch.full((5,), 6.0).double())


@pytest.mark.parametrize("kind", ["bonds", "angles", "volumes", "torsions", "planes", "contacts", "energy", "energy_b"])
def test_gradients(xyz, kind):
    r, c = example(xyz), contacts(xyz)
    q = quads(6, len(xyz), seed=5)
    functions = {
        "bonds": lambda x: bond_lengths(x, q[:, :2]), "angles": lambda x: bond_angles(x, q[:, :3]),
        "volumes": lambda x: volumes(x, q), "torsions": lambda x: torch.cos(torsions(x, q)),
        "planes": lambda x: off_plane(x, r.planes), "contacts": lambda x: repulsion(x, c),
        "energy": lambda x: r.energy(x, c), "energy_b": lambda x: r.energy_b(x[:, 0]),
    }  # fmt: skip
    assert float(repulsion(xyz, c)) > 1 and float(r.energy(xyz)) > 1
    assert torch.autograd.gradcheck(functions[kind], xyz.clone().requires_grad_())


def test_energy_is_the_sum_of_half_squares_over_variances(xyz):
    r = example(xyz)
    terms = (
        (bond_lengths(xyz, r.bonds.atoms), 1.5, 0.3), (bond_angles(xyz, r.angles.atoms), 1.9, 0.2),
        (volumes(xyz, r.volumes.atoms), 2.5, 1.0),
    )  # fmt: skip
    expected = sum(float((((v - ideal) / sigma) ** 2).sum()) / 2 for v, ideal, sigma in terms)
    expected += float(off_plane(xyz, r.planes).sum()) / 2 / 0.25
    chi = [gemmi.calculate_dihedral(*(positions(xyz)[i] for i in t)) for t in r.staggered.tolist()]
    expected += (1 + np.cos(3 * np.array(chi))).sum() / 9 / np.deg2rad(15) ** 2
    assert float(r.energy(xyz)) == pytest.approx(expected, rel=1e-6)


def test_a_peptide_of_ideal_geometry_is_at_rest(every):
    peptide, st = every
    r = restraints_of(st[0])
    assert {frozenset(b) for b in r.bonds.atoms.tolist()} == {frozenset(b) for b in peptide.bonds.tolist()}
    x = torch.from_numpy(peptide.xyz)
    bonds, angles = r.deviations(x)
    assert bonds < 0.01 and angles < 1.5  # only proline's ring does not close
    assert float(((volumes(x, r.volumes.atoms) - r.volumes.ideal).abs()).max()) < 0.15
    assert len(r.volumes) == 19 + 4  # every residue but glycine; I, T, V, L
    assert r.notes == ()


@pytest.mark.parametrize(("letter", "flat"), [("W", 10), ("F", 7), ("Y", 8), ("H", 6), ("R", 5), ("D", 4), ("K", 0)])
def test_planes_are_flat_in_ideal_residues(every, letter, flat):
    peptide, st = every
    r = restraints_of(st[0])
    number = ALL.index(letter)
    groups = [
        g[: int(p.sum())] for g, p in zip(r.planes.atoms, r.planes.present, strict=True)
        if {int(peptide.residue[i]) for i in g} == {number} and "O" not in {peptide.names[i] for i in g}
    ]  # fmt: skip
    assert [len(g) for g in groups] == ([flat] if flat else [])
    for g in groups:
        one = Planes(g[None], torch.ones((1, len(g)), dtype=torch.float64), torch.ones(1))
        assert float(off_plane(torch.from_numpy(peptide.xyz), one)) < 0.01


def test_hands_are_l_and_a_mirror_image_is_told_of(every):
    peptide, st = every
    mirrored = st.clone()
    for cra in mirrored[0].all():
        cra.atom.pos.x *= -1
    assert any("say: 23;" in note for note in restraints_of(mirrored[0]).notes)
    r, x = restraints_of(st[0]), torch.from_numpy(peptide.xyz)
    assert float(r.energy(x * torch.tensor([-1.0, 1.0, 1.0]))) > float(r.energy(x)) + 1000


def test_chains_are_broken_where_residues_are_missing(every):
    _, st = every
    cut = st.clone()
    del cut[0][0][9]
    r, sites = restraints_of(cut[0]), Sites(cut[0])
    links = {tuple(sorted(sites.residue[b])) for b in r.bonds.atoms.numpy() if len(set(sites.residue[b])) == 2}
    assert links == {(i, i + 1) for i in range(18)} - {(8, 9)}


def test_conformations_do_not_see_each_other():
    peptide = random_peptide(np.random.default_rng(0), "GSG")
    st = structure(peptide)
    serine = st[0][0][1]
    og = serine.find_atom("OG", "*")
    og.altloc, og.occ = "A", 0.5
    serine.add_atom(atom("OG", "O", np.add(og.pos.tolist(), (0.8, 0.3, 0)), altloc="B", occ=0.5))
    sites, r = Sites(st[0]), restraints_of(st[0])
    a, b = (i for i, x in enumerate(sites.atoms) if x.name == "OG")
    cb = next(i for i, x in enumerate(sites.atoms) if x.name == "CB")
    bonds = {frozenset(p) for p in r.bonds.atoms.tolist()}
    assert {frozenset((a, cb)), frozenset((b, cb))} <= bonds
    for term in (r.bonds, r.angles, r.volumes, r.similar):
        assert not any({a, b} <= set(atoms) for atoms in term.atoms.tolist())
    assert len(r.staggered) == 2
    pairs = Neighbours(sites, r, st.cell, gemmi.SpaceGroup("P 1")).contacts(sites.xyz).atoms.tolist()
    assert not any({a, b} == set(p) for p in pairs)


def test_disulphides_ligands_metals_and_waters():
    st = structure(random_peptide(np.random.default_rng(0), "GCG"))
    model = st[0]
    sg = np.array(model[0][1].find_atom("SG", "*").pos.tolist())
    other = structure(random_peptide(np.random.default_rng(0), "GCG"))[0][0]
    for residue in other:
        residue.seqid.num += 20
        for a in residue:
            a.pos = gemmi.Position(*(2 * sg - np.array(a.pos.tolist()) + [2.1, 0.3, 0.2]))
    other.name = "B"
    model.add_chain(other)
    chain = gemmi.Chain("L")
    ligand = {"C1": ("C", 0, 0), "C2": ("C", 1.5, 0), "O3": ("O", 2.1, 1.2), "N4": ("N", 2.2, -1.2)}
    for i, (name, group) in enumerate({"LIG": ligand, "HOH": {"O": ("O", 3.2, 0)}, "ZN": {"ZN": ("Zn", 4, 2)}}.items()):
        residue = gemmi.Residue()
        residue.name, residue.seqid = name, gemmi.SeqId(i + 1, " ")
        for label, (element, x, y) in group.items():
            residue.add_atom(atom(label, element, (x + 30, y + 30, 30)))
        chain.add_residue(residue)
    model.add_chain(chain)
    r, sites = restraints_of(model), Sites(model)
    label = [f"{sites.names[sites.residue[i]]}.{a.name}" for i, a in enumerate(sites.atoms)]
    bonds = {
        frozenset(label[i] for i in b): float(d) for b, d in zip(r.bonds.atoms.tolist(), r.bonds.ideal, strict=True)
    }
    assert bonds[frozenset(["CYS.SG"])] == pytest.approx(2.033)
    strange = {tuple(sorted(b)) for b in bonds if any(n.startswith(("LIG", "HOH", "ZN")) for n in b)}
    assert strange == {("LIG.C1", "LIG.C2"), ("LIG.C2", "LIG.O3"), ("LIG.C2", "LIG.N4"), ("LIG.O3", "ZN.ZN")}
    assert bonds[frozenset(["LIG.C1", "LIG.C2"])] == pytest.approx(1.5)
    assert not any("ZN.ZN" in {label[i] for i in t} for t in r.angles.atoms.tolist())
    said = " ".join(r.notes)
    assert "bridges: 1." in said and "LIG" in said and "HOH" not in said


def brute_force_contacts(sites, st, group, reach):
    """Distances of all pairs i < j under any operator and translation."""
    orth, frac = np.array(st.cell.orth.mat), np.array(st.cell.frac.mat)
    x = sites.xyz @ frac.T
    found = []
    for op in group.operations():
        image = x @ (np.array(op.rot) / op.DEN).T + np.array(op.tran) / op.DEN
        for shift in itertools.product(range(-4, 5), repeat=3):
            d = np.linalg.norm((x[:, None] - image[None] - np.array(shift)) @ orth.T, axis=-1)
            found += [(int(i), int(j), round(float(d[i, j]), 4)) for i, j in np.argwhere(d < reach) if i < j]
    return sorted(found)


@pytest.mark.parametrize(
    ("group", "cell"),
    [
        ("P 1", (7.5, 8, 9, 65, 100, 112)), ("P 21 21 21", (9, 12, 14, 90, 90, 90)),
        ("R 3:R", (12, 12, 12, 75, 75, 75)), ("C 1 2 1", (20, 6, 11, 90, 125, 90)),
    ],
)  # fmt: skip
def test_contacts_are_those_of_brute_force(group, cell):
    rng = np.random.default_rng(2)
    st = gemmi.Structure()
    st.cell, st.spacegroup_hm = gemmi.UnitCell(*cell), group
    model, chain = gemmi.Model(1), gemmi.Chain("W")
    for i in range(6):
        residue = gemmi.Residue()
        residue.name, residue.seqid = "HOH", gemmi.SeqId(i + 1, " ")
        where = st.cell.orthogonalize(gemmi.Fractional(*rng.uniform(-1, 2, 3)))
        residue.add_atom(atom("O", "O", where.tolist()))
        chain.add_residue(residue)
    model.add_chain(chain)
    st.add_model(model)
    sites, r = Sites(model), restraints_of(model)
    found = Neighbours(sites, r, st.cell, gemmi.SpaceGroup(group)).contacts(sites.xyz)
    x = torch.from_numpy(sites.xyz)
    i, j = found.atoms.T
    d = (x[i] - torch.einsum("kab,kb->ka", found.rotation, x[j]) - found.translation).norm(dim=1)
    ours = sorted(zip(i.tolist(), j.tolist(), np.round(d.numpy(), 4).tolist(), strict=True))
    expected = brute_force_contacts(sites, st, gemmi.SpaceGroup(group), topology.CONTACT_REACH)
    assert len(expected) > 3
    assert [p[:2] for p in ours] == [p[:2] for p in expected]
    np.testing.assert_allclose([p[2] for p in ours], [p[2] for p in expected], atol=2e-4)


def test_bonded_atoms_are_no_contacts(every):
    peptide, st = every
    sites, r = Sites(st[0]), restraints_of(st[0])
    pairs = Neighbours(sites, r, st.cell, gemmi.SpaceGroup("P 1")).contacts(sites.xyz).atoms.numpy()
    linked = np.eye(len(peptide), dtype=bool)
    linked[tuple(peptide.bonds.T)] = linked[tuple(peptide.bonds.T[::-1])] = True
    three = np.linalg.matrix_power(linked.astype(int), 3) > 0
    assert len(pairs) > 100 and not three[tuple(pairs.T)].any()


def test_hydrogens_ride_on_the_nearest_atom(every):
    _, st = every
    st = st.clone()
    residue = st[0][0][0]
    ca = np.array(residue.find_atom("CA", "*").pos.tolist())
    residue.add_atom(atom("HA", "H", ca + np.array((0.3, -0.9, 0.2))))
    sites = Sites(st[0])
    owner, offset = riders(sites)
    h = next(i for i, a in enumerate(sites.atoms) if a.name == "HA")
    assert sites.atoms[owner[h]].name == "CA" and owner[h] != h
    np.testing.assert_allclose(offset[h], [0.3, -0.9, 0.2], atol=1e-9)
    assert np.array_equal(np.delete(owner, h), np.delete(np.arange(len(owner)), h))
    r = restraints_of(st[0])
    assert h not in r.bonds.atoms and "Hydrogens: 1," in r.notes[-1]


def test_special_positions():
    cell, group = gemmi.UnitCell(10, 10, 14, 90, 90, 120), gemmi.SpaceGroup("P 3 2 1")
    at = [(0.3, 0, 0), (1, 1, 0.27), (0, 0, 0.5), (0.21, 0.13, 0.4)]  # on 2 (0.1 A off), 3, 32, and nowhere
    xyz = np.array([cell.orthogonalize(gemmi.Fractional(*x)).tolist() for x in at])
    xyz[0] += [0.02, 0.05, 0.08]
    rows, matrix, vector = site_projectors(xyz, cell, group)
    assert rows.tolist() == [0, 1, 2]
    for i, m, v, rank in zip(rows, matrix, vector, (1, 1, 0), strict=True):
        np.testing.assert_allclose(m @ m, m, atol=1e-9)
        assert round(np.trace(m)) == rank
        back = m @ (xyz[i] + [0.4, 0.2, -0.3]) + v
        np.testing.assert_allclose(m @ back + v, back, atol=1e-9)
        st = gemmi.Structure()
        st.cell, st.spacegroup_hm = cell, group.xhm()
        st.setup_cell_images()
        assert st.cell.is_special_position(gemmi.Position(*back), 0.01) == {0: 2, 1: 3, 2: 6}[int(i)] - 1


@pytest.mark.shared
@pytest.mark.parametrize("name", ["4xof/4xof.pdb", "2igc/2igc.pdb", "1aba/1aba.pdb"])
def test_ideal_values_are_those_of_precise_models(shared_data, name):
    st = gemmi.read_structure(str(shared_data / "diffraction" / name))
    sites, r = Sites(st[0]), restraints_of(st[0])
    x = torch.from_numpy(sites.xyz)
    quiet = torch.tensor([a.b_iso < 25 for a in sites.atoms])
    for term, values, most, spread in (
        (r.bonds, bond_lengths, 0.004, 0.02), (r.angles, bond_angles, np.deg2rad(0.5), np.deg2rad(2.6)),
        (r.volumes, volumes, 0.05, 0.15),
    ):  # fmt: skip
        use = quiet[term.atoms].all(dim=1)
        deviation = (values(x, term.atoms) - term.ideal)[use]
        assert len(deviation) > 50
        assert abs(float(deviation.mean())) < most and float(deviation.std()) < spread
