"""Packed peptide crystals and their measurement: contacts, structure factors and statistics by independent means."""

import gemmi
import numpy as np
import pytest

from ml_phaser.errors import UserError
from ml_phaser.simulate.data_set import as_mtz, as_pdb, true_map
from ml_phaser.simulate.families import make
from ml_phaser.simulate.measure import Flaws, calculate, displace, measure, overall_anisotropy, unique_reflections
from ml_phaser.simulate.packing import APOLAR, MIXED, POLAR, contacts, operators, pack
from ml_phaser.simulate.peptide_crystals import sites_of
from ml_phaser.simulate.simulated import Simulated

GROUPS = ("P 1", "P 1 21 1", "C 1 2 1", "P 21 21 21", "P 31 2 1", "P 43 21 2", "P -1")


@pytest.fixture(scope="module")
def crystals():
    """A tripeptide in every group."""
    return {g: pack(np.random.default_rng(4), "SAV", gemmi.SpaceGroup(g), starts=1, cycles=900) for g in GROUPS}


@pytest.fixture(scope="module")
def made(crystals):
    """Atoms and a measurement of the orthorhombic one."""
    crystal = crystals["P 21 21 21"]
    return crystal, displaced(crystal, 8.0, 0)


def displaced(crystal, b, seed):
    return displace(np.random.default_rng(seed), sites_of(crystal), crystal.cell, crystal.spacegroup, b)


def measured(made, *, d_min=0.8, seed=1, **flaws):
    crystal, atoms = made
    rng = np.random.default_rng(seed)
    hkl = unique_reflections(crystal.cell, crystal.spacegroup, d_min)
    f = calculate(atoms, crystal.cell, crystal.spacegroup, hkl)
    return measure(rng, hkl, f, crystal.cell, crystal.spacegroup, Flaws(**({"completeness": 0.97} | flaws)))


def as_simulated(crystal, atoms, d_min, measurement):
    settings = {"sequence": "SAV", "noise": 0, "completeness": 1, "b": 8}
    f = None if measurement is None else measurement.f
    return Simulated("ideal", 0, settings, crystal.cell, crystal.spacegroup, atoms, d_min, (48, 48, 48), f, measurement)


def as_structure(crystal):
    """The asymmetric unit as gemmi knows it: peptide as one residue, each water as another."""
    structure = gemmi.Structure()
    structure.cell, structure.spacegroup_hm = crystal.cell, crystal.spacegroup.xhm()
    chain = gemmi.Chain("A")
    parts = [(crystal.xyz, crystal.peptide.elements), *((w[None], ("O",)) for w in crystal.waters)]
    for i, (xyz, elements) in enumerate(parts):
        residue = gemmi.Residue()
        residue.name, residue.seqid = "LIG", gemmi.SeqId(str(i + 1))
        for k, (x, element) in enumerate(zip(xyz, elements, strict=True)):
            atom = gemmi.Atom()
            atom.name, atom.element, atom.pos = f"{element}{k}", gemmi.Element(element), gemmi.Position(*x)
            residue.add_atom(atom)
        chain.add_residue(residue)
    model = gemmi.Model(1)
    model.add_chain(chain)
    structure.add_model(model)
    structure.setup_cell_images()
    return structure


@pytest.mark.parametrize("group", GROUPS)
def test_molecules_do_not_clash_in_gemmis_eyes(crystals, group):
    crystal = crystals[group]
    structure = as_structure(crystal)
    search = gemmi.NeighborSearch(structure[0], structure.cell, 4.0).populate()
    nearest = {"polar": 9.0, "mixed": 9.0, "apolar": 9.0}
    for residue in structure[0]["A"]:
        for atom in residue:
            for mark in search.find_atoms(atom.pos, "\0", radius=3.99):
                other = mark.to_cra(structure[0])
                distance = mark.pos.dist(atom.pos)
                if other.residue == residue and mark.image_idx == 0 and (mark.pos - other.atom.pos).length() < 1e-3:
                    continue  # within the molecule
                polar = sum(e.name in "NO" for e in (atom.element, other.atom.element))
                kind = ("apolar", "mixed", "polar")[polar]
                nearest[kind] = min(nearest[kind], distance)
    assert nearest["polar"] >= POLAR - 1e-3
    assert nearest["mixed"] >= MIXED - 1e-3
    assert nearest["apolar"] >= APOLAR - 1e-3
    assert min(nearest.values()) < 3.6  # they do touch


@pytest.mark.parametrize("group", GROUPS)
def test_crystals_are_dense_and_fit_their_group(crystals, group):
    crystal = crystals[group]
    assert 15 < crystal.volume_per_atom < 30
    assert crystal.cell.is_compatible_with_spacegroup(crystal.spacegroup)
    if crystal.spacegroup.crystal_system_str() == "monoclinic":
        assert crystal.cell.beta >= 90


@pytest.mark.parametrize("cell", [(5.1, 6.3, 4.9, 71, 104, 97), (9, 12, 11, 90, 107, 90)])
def test_contacts_by_brute_force(cell):
    rng = np.random.default_rng(8)
    cell, group = gemmi.UnitCell(*cell), gemmi.SpaceGroup("P 1 21 1" if cell[3] == 90 else "P -1")
    frac = rng.random((6, 3)) * 1.5
    orth = np.array(cell.orth.mat)
    lattice = np.array(list(np.ndindex(9, 9, 9))) - 4
    got = contacts(frac, frac, cell, operators(group), True)
    for g, op in enumerate(group.operations()):
        for i in range(6):
            for j in range(6):
                vectors = (np.array(op.apply_to_xyz(list(frac[j]))) + lattice - frac[i]) @ orth.T
                lengths = np.linalg.norm(vectors, axis=1)
                if g == 0:
                    lengths = lengths[np.any(lattice != 0, axis=1)]  # not the molecule itself
                if lengths.min() < 3.4:  # what the search must know exactly
                    assert got[g, i, j] == pytest.approx(lengths.min(), abs=1e-9)
                else:
                    assert got[g, i, j] >= 3.4


def test_waters_are_hydrogen_bonded(crystals):
    waters = 0
    for crystal in crystals.values():
        symmetry = operators(crystal.spacegroup)
        polar = [e in "NO" for e in crystal.peptide.elements]
        frac = crystal.xyz @ np.array(crystal.cell.frac.mat).T
        for water in crystal.waters:
            waters += 1
            one = water[None] @ np.array(crystal.cell.frac.mat).T
            assert contacts(one, frac[polar], crystal.cell, symmetry, False).min() < 3.15
    assert waters >= 4


def test_too_many_operators():
    with pytest.raises(UserError, match="too many"):
        pack(np.random.default_rng(0), "AA", gemmi.SpaceGroup("F 2 3"))


def test_seeds_decide():
    one, same, other = (make("ideal", s, sequence="GA", spacegroup="P21", d_min=1.2) for s in (5, 5, 6))
    assert one.cell.parameters == same.cell.parameters
    assert one.cell.parameters != other.cell.parameters
    assert bytes(as_mtz(one).write_to_bytes()) == bytes(as_mtz(same).write_to_bytes())
    assert as_pdb(one) == as_pdb(same)


@pytest.mark.parametrize("group", ["P 1", "C 1 2 1", "P 31 2 1", "P 43 21 2"])
def test_structure_factors_agree_with_gemmi_given_the_pdb_text(crystals, group):
    crystal = crystals[group]
    atoms = displaced(crystal, 9.0, 2)
    hkl = gemmi.make_miller_array(crystal.cell, crystal.spacegroup, 0.9)
    f = calculate(atoms, crystal.cell, crystal.spacegroup, np.asarray(hkl, dtype=np.int32))
    structure = gemmi.read_pdb_string(as_pdb(as_simulated(crystal, atoms, 0.9, None)))
    assert structure[0].count_atom_sites() == len(atoms.xyz)
    calculator = gemmi.StructureFactorCalculatorX(structure.cell)
    expected = np.array([calculator.calculate_sf_from_model(structure[0], h.tolist()) for h in hkl])
    assert np.abs(f - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("group", ["P 1", "P 1 21 1", "P 43 21 2", "P 31 2 1", "P 2 3"])
def test_anisotropy_suits_the_group(group):
    group = gemmi.SpaceGroup(group)
    lengths = (10, 10, 10, 90, 90, 90) if group.number in (96, 195) else (10, 10, 14, 90, 90, 120)
    cell = gemmi.UnitCell(*lengths) if group.number > 15 else gemmi.UnitCell(9, 11, 12, 90, 101, 90)
    tensor = overall_anisotropy(np.random.default_rng(1), cell, group)
    assert np.trace(tensor) == pytest.approx(0, abs=1e-9)
    if group.number == 195:
        assert not tensor.any()
        return
    assert np.mean(np.linalg.eigvalsh(tensor) ** 2) == pytest.approx(1)
    rng = np.random.default_rng(2)
    for op in group.operations():
        h = rng.integers(-5, 6, 3)
        equivalent = op.apply_to_hkl([int(x) for x in h])
        s, t = (np.array(k) @ np.array(cell.frac.mat) for k in (h, equivalent))
        assert s @ tensor @ s == pytest.approx(t @ tensor @ t)


def test_mean_b_is_what_was_asked_and_waters_move_more(crystals):
    crystal = max(crystals.values(), key=lambda c: len(c.waters))
    b = displaced(crystal, 12.0, 3).b
    n = len(crystal.peptide)
    assert b[:n].mean() == pytest.approx(12.0, abs=0.1)
    assert b[n:].mean() > 1.2 * b[:n].mean()
    assert b[:n].std() > 1


def test_errors_are_as_large_as_asked_and_as_the_sigmas_say(made):
    for noise in (0.02, 0.05, 0.2):
        m = measured(made, noise=noise, completeness=1.0)
        true = np.abs(m.f) ** 2
        scale = 1000 / true.mean()
        error = m.intensity - true * scale
        assert m.sigma.mean() / 1000 == pytest.approx(noise, rel=0.1)
        assert np.median(np.abs(error) / m.sigma) == pytest.approx(0.6745, abs=0.06)  # of a normal distribution
        assert abs(error.mean()) < 4 * error.std() / np.sqrt(len(error))
        assert np.std(np.log(m.sigma)) > 0.1


def test_signal_falls_with_resolution_and_weak_reflections_can_be_negative(made):
    m = measured(made)
    d = made[0].cell.calculate_d_array(m.hkl)
    shells = np.array_split(np.argsort(-d), 5)
    ratio = [np.mean(m.intensity[s] / m.sigma[s]) for s in shells]
    assert ratio[0] > 12
    assert ratio[-1] < 0.4 * ratio[0]
    assert (m.intensity < 0).any()


def test_without_noise_intensities_are_exact(made):
    m = measured(made, noise=0.0)
    true = np.abs(m.f) ** 2
    np.testing.assert_allclose(m.intensity, true * 1000 / true.mean(), atol=1e-4)
    assert (m.sigma > 0).all()


@pytest.mark.parametrize("completeness", [1.0, 0.97, 0.7])
def test_losses(made, completeness, monkeypatch):
    monkeypatch.setattr("ml_phaser.simulate.measure.BEAM_STOP", 6.0)  # A; the cell is small
    m = measured(made, completeness=completeness)
    assert m.measured.mean() == pytest.approx(completeness, abs=0.5 / len(m.hkl) + 1e-9)
    low = made[0].cell.calculate_d_array(m.hkl) > 6
    if completeness < 1:
        assert low.any() and not m.measured[low].any()  # behind the beam stop
        assert (~m.measured & ~low).sum() > 3


def test_a_cone_is_blind(crystals):
    crystal = crystals["P 1"]
    m = measured((crystal, displaced(crystal, 8.0, 0)), completeness=0.8)
    s = m.hkl @ np.array(crystal.cell.frac.mat)
    s /= np.linalg.norm(s, axis=1)[:, None]
    lost = s[~m.measured]
    # Somewhere a tenth of a hemisphere has nothing but losses: no direction has if they are all random.
    emptiest = min(np.mean(m.measured[np.abs(s @ axis) > 0.97]) for axis in lost)
    assert emptiest < 0.1


def test_free_set(made):
    m = measured(made)
    assert set(m.free) == set(range(20))
    assert np.mean(m.free == 0) == pytest.approx(0.05, abs=4 * np.sqrt(0.05 / len(m.free)))


def test_true_map_has_its_peaks_at_the_atoms(made):
    crystal, atoms = made
    rho = true_map(as_simulated(crystal, atoms, 0.8, measured(made, noise=0.3)))
    assert rho.mean() == pytest.approx(0, abs=1e-9)
    grid = gemmi.FloatGrid(rho.astype(np.float32), crystal.cell, crystal.spacegroup)
    values = np.array([grid.interpolate_value(gemmi.Fractional(*x)) for x in atoms.xyz])
    assert values.min() > 3.5 * rho.std()


def test_the_same_crystal_can_be_measured_otherwise():
    one = make("ideal", 2, sequence="GA", d_min=1.1)
    other = make("ideal", 2, sequence="GA", noise=0.2, d_min=1.3)
    assert np.array_equal(one.sites.xyz, other.sites.xyz) and np.array_equal(one.sites.b, other.sites.b)
    assert not np.array_equal(one.measurement.intensity[:50], other.measurement.intensity[:50])


@pytest.mark.parametrize("d_min", [3.9, 0.02])
def test_a_resolution_that_makes_no_sense(d_min):
    with pytest.raises(UserError, match=r"reflections, too (few|many)"):
        make("ideal", 0, sequence="GA", d_min=d_min)
