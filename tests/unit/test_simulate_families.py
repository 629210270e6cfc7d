"""The families of simulated crystals: recipes to the number; contacts, structure factors, settings by other means."""

import hashlib
import subprocess
import sys
from pathlib import Path

import gemmi
import numpy as np
import pytest
from made_library import made_library, peptide_library

from ml_phaser.cli.simulate import FAMILIES as NAMES_OF_THE_COMMAND
from ml_phaser.errors import UserError
from ml_phaser.exchange.read import read_amplitudes
from ml_phaser.simulate.data_set import as_mtz, as_pdb, record, shortest_contact
from ml_phaser.simulate.families import FAMILIES, make
from ml_phaser.simulate.measure import Flaws, draw_b, spared, unique_reflections
from ml_phaser.simulate.recipes import find_fragment, minimal_cell
from ml_phaser.simulate.rigid import clearance, neighbours
from ml_phaser.simulate.simulated import amplitudes, structure

EASY = {"d_min": 1.6, "starts": 1}  # quick
SETTINGS = {
    "ideal": {"sequence": "GA", "d_min": 1.3}, "peptide": {**EASY, "residues": 3},
    "protein": {"starts": 1, "residues": 30}, "box": {"edge": 13.0, "d_min": 1.6},
}  # fmt: skip


@pytest.fixture(scope="module")
def library():
    return peptide_library()


@pytest.fixture(scope="module")
def made(library):
    """One crystal of every family, by name."""
    crystals = {}

    def get(family, seed=1):
        if (family, seed) not in crystals:
            source = made_library() if family == "box" else library
            crystals[family, seed] = make(family, seed, source, **SETTINGS.get(family, {}))
        return crystals[family, seed]

    return get


def gemmi_contacts(sim, reach=3.9):
    """(distance, elements) of all contacts between molecules under ``reach``, by gemmi."""
    model = structure(sim.sites, sim.cell, sim.spacegroup)
    search = gemmi.NeighborSearch(model[0], model.cell, reach).populate(include_h=False)
    found = []
    for cra in model[0].all():
        for mark in search.find_atoms(cra.atom.pos, "\0", radius=reach):
            other = mark.to_cra(model[0])
            distance = search.dist(cra.atom.pos, mark.pos)
            # in place: the very copy of the atom that the model holds
            here = mark.image_idx == 0 and abs(distance - cra.atom.pos.dist(other.atom.pos)) < 1e-3
            water = cra.residue.name == "HOH"
            same = other.residue == cra.residue if water else other.chain == cra.chain
            if not (here and same):
                found.append((distance, {cra.atom.element.name, other.atom.element.name}))
    return found


def same(a, b):
    return bytes(as_mtz(a).write_to_bytes()) == bytes(as_mtz(b).write_to_bytes()) and as_pdb(a) == as_pdb(b)


# ---------------------------------------------------------------------------------------------- all families


def test_the_command_knows_all_families():
    assert set(NAMES_OF_THE_COMMAND) == set(FAMILIES)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_reader_gives_the_same_from_the_file(made, family, tmp_path):
    sim = made(family)
    path = tmp_path / "made.mtz"
    path.write_bytes(bytes(as_mtz(sim).write_to_bytes()))
    read, direct = read_amplitudes(path), amplitudes(sim)
    for name in ("hkl", "f", "sigf", "intensity", "sigma_i", "free"):
        assert np.array_equal(getattr(read, name), getattr(direct, name)), name
    assert read.notes == direct.notes and read.source.columns == direct.source.columns
    assert read.cell.parameters == direct.cell.parameters and read.spacegroup.xhm() == direct.spacegroup.xhm()


@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "protein"])
def test_structure_factors_are_those_gemmi_calculates_from_the_pdb_text(made, family):
    sim = made(family)
    model = gemmi.read_pdb_string(as_pdb(sim))
    calculator = gemmi.StructureFactorCalculatorX(model.cell)
    some = np.linspace(0, len(sim.hkl) - 1, 60).astype(int)
    expected = np.array([calculator.calculate_sf_from_model(model[0], sim.hkl[k].tolist()) for k in some])
    assert np.abs(sim.f[some] - expected).max() < 2e-4 * np.abs(sim.f).max()  # the text has three digits


@pytest.mark.parametrize("family", FAMILIES)
def test_indices_are_unique_complete_and_present(made, family):
    sim = made(family)
    asu = gemmi.ReciprocalAsu(sim.spacegroup)
    assert all(asu.is_in(h.tolist()) for h in sim.hkl[:: max(1, len(sim.hkl) // 300)])
    assert not np.asarray(sim.spacegroup.operations().systematic_absences(sim.hkl)).any()
    assert len(sim.hkl) == len(gemmi.make_miller_array(sim.cell, sim.spacegroup, sim.d_min))
    assert sim.cell.is_compatible_with_spacegroup(sim.spacegroup)


def digest(sim):
    return hashlib.sha256(bytes(as_mtz(sim).write_to_bytes()) + as_pdb(sim).encode()).hexdigest()


def test_another_process_makes_the_same_bytes(made):
    """Also where its hashes are salted otherwise and it uses another number of threads."""
    families = ("dialanine-1b", "dipeptide-minimal", "peptide", "protein")
    code = (
        "import torch\ntorch.set_num_threads(2)\n"
        "from test_simulate_families import SETTINGS, digest, make, peptide_library\n"
        f"for f in {families!r}:\n    print(digest(make(f, 1, peptide_library(), **SETTINGS.get(f, {{}}))))"
    )
    here = Path(__file__).resolve().parent
    out = subprocess.run([sys.executable, "-c", code], cwd=here, capture_output=True, text=True, check=True)
    assert out.stdout.split() == [digest(made(family)) for family in families]


def test_seeds_decide(library):
    one, two = (make("peptide", s, library, **SETTINGS["peptide"]) for s in (3, 4))
    assert not same(one, two)
    assert same(one, make("peptide", 3, library, **SETTINGS["peptide"]))


@pytest.mark.parametrize(
    ("family", "settings", "said"),
    [
        ("dipeptide", {}, "not a known family"),
        ("dialanine-1a", {"solvent": 0.5}, "means nothing in family dialanine-1a"),
        ("residues-15", {"fragment": "1ABC"}, "entry_entity_first"),
        ("residues-15", {"fragment": "9ABC_1_3"}, "not among the coordinates"),
        ("residues-15", {"fragment": "1XYZ_1_2"}, "incomplete or not bonded"),
        ("peptide", {"sequence": "AAA", "atoms": 100}, "together with a sequence"),
        ("peptide", {"spacegroup": "P7"}, "not a known space group"),
    ],
)
def test_what_cannot_be_made(library, family, settings, said):
    with pytest.raises(UserError, match=said):
        make(family, 0, library, **settings)


def test_families_of_coordinates_say_that_they_need_them():
    for family in set(FAMILIES) - {"ideal"}:
        with pytest.raises(UserError, match="coordinates"):
            make(family, 0, None)
    with pytest.raises(UserError, match="holds no residues"):
        make("dialanine-1a", 0, made_library())


# ----------------------------------------------------------------------------------------- the papers' recipes

EDGES = {"dialanine-1a": (20.0, 40), "dialanine-1b": (10.0, 20), "dipeptide-12": (12.0, 20)}
PAPERS = (*EDGES, "dipeptide-minimal", "residues-15")


@pytest.mark.parametrize("family", PAPERS)
def test_recipes_to_the_number(made, family):
    sim = made(family)
    assert sim.spacegroup.xhm() == "P 1" and sim.cell.parameters[3:] == (90, 90, 90)
    assert sim.d_min == 1.5 and sim.measurement.measured.all()
    assert (sim.sites.b == 20).all() and (sim.sites.occupancy == 1).all() and not sim.sites.u_overall.any()
    assert sim.solvent is None and not sim.sites.water.any() and "H" not in sim.sites.element
    true = np.abs(sim.f) ** 2
    np.testing.assert_allclose(sim.measurement.intensity, true * 1000 / true.mean(), atol=1e-4)
    mass = np.array([gemmi.Element(e).weight for e in sim.sites.element])
    np.testing.assert_allclose(mass @ sim.sites.xyz / mass.sum(), 0.5, atol=2e-4)
    edges = np.array(sim.cell.parameters[:3])
    if family in EDGES:
        assert tuple(edges) == (EDGES[family][0],) * 3 and sim.shape == (EDGES[family][1],) * 3
    else:
        assert edges[0] >= edges[1] >= edges[2]
        assert (edges / np.array(sim.shape) <= 0.5).all()
    if family == "residues-15":
        assert tuple(edges) == (41, 30, 24)
        assert len(set(sim.sites.number.tolist())) == 15
    else:
        assert set(sim.sites.number.tolist()) == {1, 2}
    assert min((d for d, _ in gemmi_contacts(sim)), default=9) >= 2.75 - 1e-3


def test_dialanine_is_cut_back_at_c_beta(made):
    sites = made("dialanine-1a").sites
    assert sites.name == ("N", "CA", "C", "O", "CB") * 2 and set(sites.residue) == {"ALA"}


@pytest.mark.parametrize("family", PAPERS)
def test_residues_keep_their_hand(made, family):
    """Also where the axes were put into another order."""
    for seed in range(1, 4):
        sim = made(family, seed)
        xyz = sim.sites.xyz @ np.array(sim.cell.orth.mat).T
        for k in set(sim.sites.number.tolist()):
            at = {n: x for n, r, x in zip(sim.sites.name, sim.sites.number, xyz, strict=True) if r == k}
            if "CB" in at:
                centre = at["CA"]
                assert np.linalg.det([at["N"] - centre, at["C"] - centre, at["CB"] - centre]) > 1.5


def test_minimal_cells_cannot_shrink_everywhere(made):
    """The contact is just kept: a cell smaller by one step along every axis breaks it."""
    sim = made("dipeptide-minimal")
    xyz = (sim.sites.xyz - 0.5) @ np.array(sim.cell.orth.mat).T
    smaller = np.array(sim.cell.parameters[:3]) - 0.1
    lattice = np.array([s for s in np.ndindex(3, 3, 3) if s != (1, 1, 1)]) - 1
    apart = [np.linalg.norm(xyz[:, None] - xyz - s * smaller, axis=-1).min() for s in lattice]
    assert min(apart) < 2.75
    assert minimal_cell(xyz) is not None


def test_fragments_by_their_published_names(library):
    fragment = find_fragment(library, "2XYZ_1_4", 15)
    assert fragment.source == "2xyz_B_4" and len(fragment.sequence) == 15
    assert find_fragment(library, "2XYZ_1.pd_4", 15).sequence == fragment.sequence
    sim = make("residues-15", 0, library, fragment="2XYZ_1_4")
    assert sim.source == ("2xyz_B_4",)


# --------------------------------------------------------------------------------------------------- fragments


def test_only_whole_bonded_residues_are_used(library):
    starts = set(library.complete(0, 2).tolist())
    assert {0, 1}.isdisjoint(starts)  # the second residue lacks an atom
    assert 9 not in starts  # the chain is broken after the tenth
    assert {2, 8, 10} <= starts
    for count in (1, 2, 15):
        for first in library.complete(1, count):
            fragment = library.fragment(1, int(first), count)
            c = fragment.xyz[[n == "C" for n in fragment.names]][:-1]
            n = fragment.xyz[[n == "N" for n in fragment.names]][1:]
            assert (np.linalg.norm(c - n, axis=1) < 1.45).all()


# ---------------------------------------------------------------------------------------------------- peptides


@pytest.mark.parametrize("group", ["P1", "P21", "C2", "P212121", "P41212", "P32", "P-1", "R3:H"])
def test_packed_peptides_touch_and_do_not_clash(library, group):
    sim = make("peptide", 5, library, spacegroup=group, residues=4, volume_per_atom=None, **EASY)
    found = gemmi_contacts(sim)
    polar = [d for d, pair in found if pair <= {"N", "O"}]
    mixed = [d for d, pair in found if pair & {"N", "O"} and pair - {"N", "O"}]
    apolar = [d for d, pair in found if not pair & {"N", "O"}]
    assert min(polar, default=9) >= 2.75 - 2e-3
    assert min(mixed, default=9) >= 3.1 - 2e-3
    assert min(apolar, default=9) >= 3.4 - 2e-3
    assert min(d for d, _ in found) < 3.5
    assert min(d for d, _ in found) == pytest.approx(shortest_contact(sim), abs=2e-3)
    assert sim.volume_per_atom < 32
    if group in ("P21", "C2"):
        assert sim.cell.beta >= 90 and sim.cell.alpha == sim.cell.gamma == 90
    assert min(sim.cell.parameters[3:]) > 59 and max(sim.cell.parameters[3:]) < 122


@pytest.mark.parametrize("group", ["P1", "P21", "P212121"])
@pytest.mark.parametrize("atoms", [25, 50, 100])
def test_cells_of_as_many_atoms_as_asked_for(library, group, atoms):
    sim = make("peptide", 2, library, spacegroup=group, atoms=atoms, volume_per_atom=(17, 20), **EASY)
    assert sim.atoms_in_cell == pytest.approx(atoms, rel=0.1)
    assert 16.9 < sim.volume_per_atom < 26
    assert shortest_contact(sim) >= 2.75 - 2e-3


def test_a_large_cell_holds_several_molecules(library):
    sim = make("peptide", 1, library, spacegroup="P1", atoms=200, d_min=2.5, starts=1)
    assert record(sim)["molecules"] == 2 and sim.atoms_in_cell == 200
    assert len(sim.source) == 2


def test_packing_from_dense_to_vacuum_like(library):
    dense = make("peptide", 2, library, spacegroup="P21", volume_per_atom=20.5, **SETTINGS["peptide"])
    wide = make("peptide", 2, library, spacegroup="P21", volume_per_atom=80, **SETTINGS["peptide"])
    assert dense.volume_per_atom == pytest.approx(20.5, abs=1)
    assert wide.volume_per_atom == pytest.approx(80, rel=1e-3)
    # the same molecule: its own distances are the same
    xyz = [s.sites.xyz[~s.sites.water] @ np.array(s.cell.orth.mat).T for s in (dense, wide)]
    spread = [np.linalg.norm(x[:, None] - x, axis=-1) for x in xyz]
    np.testing.assert_allclose(spread[0], spread[1], atol=4e-3)


def test_a_sequence_needs_no_library():
    sim = make("peptide", 0, None, sequence="gsd", **EASY)
    assert sim.settings["sequence"] == "GSD" and sim.source == ()
    assert [sim.sites.residue[k] for k in np.flatnonzero(np.array(sim.sites.name) == "CA")] == ["GLY", "SER", "ASP"]
    assert "OXT" in sim.sites.name


@pytest.mark.parametrize("cell", [(5.1, 6.3, 4.9, 71, 104, 97), (9, 12, 11, 90, 107, 90)])
def test_neighbours_by_brute_force(cell):
    rng = np.random.default_rng(8)
    cell, group = gemmi.UnitCell(*cell), gemmi.SpaceGroup("P 1 21 1" if cell[3] == 90 else "P -1")
    frac = rng.random((6, 3)) * 1.5 - 0.3
    body = np.array([0, 0, 0, 1, 1, 2])
    orth = np.array(cell.orth.mat)
    operations = list(group.operations())
    symmetry = (np.array([op.rot for op in operations]) / 24.0, np.array([op.tran for op in operations]) / 24.0)
    pairs = neighbours(frac, body, orth, symmetry, 4.0)
    got = {(i, j, g, *s) for i, j, g, s in zip(pairs.i, pairs.j, pairs.g, map(tuple, pairs.shift), strict=True)}
    expected = set()
    for g, op in enumerate(operations):
        for i in range(6):
            for j in range(6):
                for shift in np.array(list(np.ndindex(9, 9, 9))) - 4:
                    vector = orth @ (np.array(op.apply_to_xyz(list(frac[j]))) + shift - frac[i])
                    own = g == 0 and not shift.any() and body[i] == body[j]
                    if np.linalg.norm(vector) < 4.0 and not own:
                        expected.add((i, j, g, *shift))
    assert got == expected
    point = np.array([[0.2, 1.4, -0.3]])
    images = [np.array(op.apply_to_xyz(list(x))) for op in operations for x in frac]
    lattice = np.array(list(np.ndindex(7, 7, 7))) - 3
    nearest = min(np.linalg.norm((image + lattice - point) @ orth.T, axis=1).min() for image in images)
    assert clearance(point, frac, orth, symmetry)[0] == pytest.approx(min(nearest, 4.0))


@pytest.mark.parametrize("seed", range(3))
def test_boxes_are_dense_and_mostly_protein(made, seed):
    sim = made("box", seed)
    assert 15 < sim.volume_per_atom < 26
    assert sim.sites.water.mean() < 0.3
    assert sim.spacegroup.xhm() == "P 1" and len(sim.source) == 1


# ---------------------------------------------------------------------------------------------------- proteins


@pytest.mark.parametrize("group", ["P212121", "C2", "P43212", "P3221", "I4"])
def test_protein_crystals_have_the_solvent_asked_for(library, group):
    sim = make("protein", 2, library, spacegroup=group, solvent=0.7, d_min=3.0, **SETTINGS["protein"])
    assert sim.solvent.fraction == pytest.approx(0.7, abs=0.06)
    assert min((d for d, _ in gemmi_contacts(sim)), default=9) >= 2.75 - 2e-3
    # Matthews: what is not protein, of 1.35 g/cm^3; heavy atoms only
    mass = sim.order * sum(gemmi.Element(e).weight for e in sim.sites.element) * 1.08
    assert 1 - mass * 1.66054 / 1.35 / sim.cell.volume == pytest.approx(sim.solvent.fraction, abs=0.09)


def test_solvent_against_cctbx(library):
    pytest.importorskip("mmtbx")
    import iotbx.pdb
    import mmtbx.f_model
    from cctbx import crystal, miller
    from cctbx.array_family import flex

    sim = make(
        "protein", 1, library, spacegroup="P212121", solvent=0.6, d_min=2.5, k_sol=0.35, b_sol=46.0, anisotropy=0.0,
        **SETTINGS["protein"],
    )  # fmt: skip
    symmetry = crystal.symmetry(sim.cell.parameters, "P 21 21 21")
    text = iotbx.pdb.input(source_info=None, lines=as_pdb(sim).splitlines())
    xrs = text.xray_structure_simple(crystal_symmetry=symmetry)
    xrs.scattering_type_registry(table="it1992")
    indices = miller.set(symmetry, flex.miller_index([tuple(h) for h in sim.hkl.tolist()]), anomalous_flag=False)
    f_obs = indices.array(data=flex.double(np.abs(sim.f)))
    model = mmtbx.f_model.manager(f_obs=f_obs, xray_structure=xrs, k_sol=0.35, b_sol=46.0)
    theirs = model.f_model().common_set(indices)
    expected = np.array(theirs.data())
    assert [tuple(h) for h in theirs.indices()] == [tuple(h) for h in sim.hkl.tolist()]
    protein = np.array(indices.structure_factors_from_scatterers(xrs, algorithm="direct").f_calc().data())
    assert np.abs(expected - protein).max() > 0.1 * np.abs(protein).max()  # solvent matters
    mine, other = sim.f - protein, expected - protein
    assert np.abs(np.vdot(mine, other)) / np.linalg.norm(mine) / np.linalg.norm(other) > 0.99
    assert np.linalg.norm(mine) / np.linalg.norm(other) == pytest.approx(1, abs=0.05)
    assert np.linalg.norm(sim.f - expected) < 0.06 * np.linalg.norm(expected)


# ---------------------------------------------------------------------------------------------------- settings


def half(sim, values, *, outer):
    d = np.asarray(sim.cell.calculate_d_array(sim.hkl))
    order = np.argsort(-d)
    return values[order[len(order) // 2 :] if outer else order[: len(order) // 2]]


SPARING = {"noise": 0.05, "completeness": 1.0, "cone": 0.0, "wedge": 0.0, "shell": 0.0, "low": np.inf, "waters": 0.0}
CHANGES = {
    "d_min": (1.6, 2.0, lambda a, b: len(b.hkl) < 0.6 * len(a.hkl)),
    "noise": (0.02, 0.3, lambda a, b: record(b)["mean_sigma_over_mean_i"] > 8 * record(a)["mean_sigma_over_mean_i"]),
    "completeness": (1.0, 0.8, lambda a, b: b.measurement.measured.mean() == pytest.approx(0.8, abs=0.01)),
    "b": (8.0, 30.0, lambda a, b: b.sites.b.mean() == pytest.approx(30, abs=0.5)),
    "b_spread": (0.0, 0.5, lambda a, b: np.ptp(a.sites.b) < 0.02 and b.sites.b.std() > 2),
    "anisotropy": (0.0, 4.0, lambda a, b: np.linalg.norm(b.sites.u_overall - a.sites.u_overall) > 0.05),
    "sigma_error": (0.0, 0.5, lambda a, b: not np.allclose(a.measurement.sigma, b.measurement.sigma)),
    "sigma_scale": (1.0, 2.0, lambda a, b: np.allclose(b.measurement.sigma, 2 * a.measurement.sigma)),
    "low": (np.inf, 5.0, lambda a, b: amplitudes(b).d_max <= 5.0 < amplitudes(a).d_max),
    "cone": (0.0, 30.0, lambda a, b: b.measurement.measured.mean() < 0.95),
    "wedge": (0.0, 90.0, lambda a, b: b.measurement.measured.mean() < 0.7),
    "shell": (0.0, 0.5, lambda a, b: half(b, b.measurement.measured, outer=True).mean() < 0.9),
    "waters": (0.0, 1.0, lambda a, b: not a.sites.water.any() and b.sites.water.any()),
    "residues": (2, 3, lambda a, b: max(b.sites.number) == 3 and max(a.sites.number) == 2),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_every_setting_changes_what_it_should(library, name):
    one, other, changed = CHANGES[name]
    fixed = {**SPARING, **SETTINGS["peptide"], "spacegroup": "P1", "volume_per_atom": None, "seed": 3, "residues": 5}
    a, b = (make("peptide", library=library, **{**fixed, name: value}) for value in (one, other))
    assert changed(a, b)
    if name not in ("waters", "residues"):  # and leaves the crystal alone
        assert a.cell.parameters == b.cell.parameters and np.array_equal(a.sites.xyz, b.sites.xyz)


@pytest.mark.parametrize("name", ["rotate", "edge", "spacing", "fragment"])
def test_settings_of_the_recipes(library, name):
    a = make("residues-15" if name == "fragment" else "dialanine-1a", 2, library)
    if name == "rotate":
        b = make("dialanine-1a", 2, library, rotate=True)
        assert not np.allclose(a.sites.xyz, b.sites.xyz)
    elif name == "edge":
        b = make("dialanine-1a", 2, library, edge=14.0)
        assert b.cell.a == 14
    elif name == "spacing":
        b = make("dialanine-1a", 2, library, spacing=0.25)
        assert b.shape == (80, 80, 80)
    else:
        b = make("residues-15", 2, library, fragment="3XYZ_1_2")
        assert b.source == ("3xyz_C_2",) != a.source


def test_settings_of_solvent_and_groups(library):
    a, b, c = (
        make("protein", 3, library, spacegroup="P21", solvent=s, k_sol=k, b_sol=46.0, d_min=3.0, **SETTINGS["protein"])
        for s, k in ((0.6, 0.35), (0.6, 0.0), (0.75, 0.35))
    )
    assert np.array_equal(a.sites.xyz, b.sites.xyz) and c.cell.volume > 1.3 * a.cell.volume
    change = np.abs(a.f - b.f)
    assert half(a, change, outer=False).mean() > 2 * half(a, change, outer=True).mean()
    d = make("protein", 3, library, spacegroup="P21", solvent=0.6, k_sol=0.35, b_sol=200.0, d_min=3.0,
             **SETTINGS["protein"])  # fmt: skip
    assert half(d, np.abs(d.f - b.f), outer=True).mean() < 0.2 * half(a, change, outer=True).mean()
    names = {make("peptide", s, library, **SETTINGS["peptide"]).spacegroup.xhm() for s in range(8)}
    assert len(names) >= 3


def test_pairs_are_ranges(library):
    drawn = [make("dialanine-1b", s, library, d_min=(1.5, 2.5)).d_min for s in range(12)]
    assert 1.5 <= min(drawn) < 1.8 and 2.2 < max(drawn) <= 2.5
    assert make("dialanine-1b", 0, library, d_min=(1.5, 2.5), b=10.0).d_min == drawn[0]  # a stream of its own


@pytest.mark.parametrize("correlation", [0.0, 0.9])
def test_b_factors_run_along_the_chain(correlation):
    residue = np.repeat(np.arange(4000), 6)
    b = draw_b(np.random.default_rng(1), residue, 20.0, 0.4, correlation)
    assert b.mean() == pytest.approx(20, abs=0.3) and b.min() >= 2
    log = np.log(b).reshape(-1, 6)
    assert log.std() == pytest.approx(0.4, abs=0.03)
    mean = log.mean(axis=1) - log.mean()
    seen = np.mean(mean[1:] * mean[:-1]) / np.mean(mean**2)
    assert seen == pytest.approx(correlation * 0.64 / (0.64 + 0.36 / 6), abs=0.06)


def test_wedge_and_cone_follow_the_symmetry():
    """What is lost is lost with all its equivalents: the fewer, the more operators there are."""
    cell = gemmi.UnitCell(20, 22, 24, 90, 90, 90)
    lost = {}
    for name in ("P 1", "P 21 21 21"):
        group = gemmi.SpaceGroup(name)
        hkl = unique_reflections(cell, group, 1.5)
        for flaw in ({"wedge": 60.0}, {"cone": 30.0}):
            kept = [spared(np.random.default_rng(s), hkl, cell, group, Flaws(**flaw)).mean() for s in range(20)]
            lost[name, next(iter(flaw))] = 1 - np.mean(kept)
    assert lost["P 1", "wedge"] == pytest.approx(60 / 180, abs=0.02)
    assert lost["P 1", "cone"] == pytest.approx(1 - np.cos(np.deg2rad(30)), abs=0.02)
    assert lost["P 21 21 21", "wedge"] < 0.5 * lost["P 1", "wedge"]
    assert lost["P 21 21 21", "cone"] < 0.2 * lost["P 1", "cone"]
