"""Crystals for the one-shot networks: gemmi, brute force, and the recipes that make them one by one."""

from dataclasses import replace
from functools import cache
from itertools import islice, product

import gemmi
import numpy as np
import pytest
import torch
from made_library import made_library, peptide_library

from ml_phaser.arrays import irfftn
from ml_phaser.crystal.amino_acids import THREE_LETTERS
from ml_phaser.crystal.grid import HalfSphere, synthesise
from ml_phaser.crystal.patterson import patterson_map
from ml_phaser.crystal.reflections import Amplitudes, Source
from ml_phaser.crystal.residues import ATOMS, ELEMENTS, RESIDUES
from ml_phaser.errors import UserError
from ml_phaser.phasing.prediction import patterson
from ml_phaser.phasing.projections import inverse
from ml_phaser.simulate import one_shot_cells
from ml_phaser.simulate.one_shot import FAMILIES, Family, Molecules, OneShotRecipe, grid, one_shot_batches, rotations
from ml_phaser.simulate.one_shot_cells import contacts, longest_first, minimal_cells
from ml_phaser.simulate.recipes import centred, dialanine, minimal_cell, shortest_contact
from ml_phaser.structure_factors.boxes import NOTHING, maps_of_parts, standard_residues, structure_factors, unit

P1 = gemmi.SpaceGroup("P 1")


@pytest.fixture(scope="module")
def library():
    return peptide_library()


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def drawn(library, family, count, seed=0):
    """Residues, coordinates, elements, and which atoms there are, of molecules of a family."""
    aa, xyz, element = Molecules(library, FAMILIES[family]).draw(count, generator(seed))
    return aa, xyz, element, element != NOTHING


def by_gemmi(xyz, element, lengths, hkl):
    """F (n,) of atoms at ``xyz`` (m, 3) in A, summed directly."""
    cell = gemmi.UnitCell(*map(float, lengths), 90, 90, 90)
    model, residue = gemmi.Model(1), gemmi.Residue()
    for place, kind in zip(xyz, element, strict=True):
        if kind != NOTHING:
            atom = gemmi.Atom()
            atom.element = gemmi.Element(ELEMENTS[int(kind)])
            atom.pos, atom.b_iso, atom.occ = gemmi.Position(*map(float, place)), 20.0, 1.0
            residue.add_atom(atom)
    model.add_chain(gemmi.Chain("A"))
    model[0].add_residue(residue)
    calculator = gemmi.StructureFactorCalculatorX(cell)
    return np.array([calculator.calculate_sf_from_model(model, tuple(map(int, h))) for h in hkl])


def reflections(lengths, d_min):
    return gemmi.make_miller_array(gemmi.UnitCell(*map(float, lengths), 90, 90, 90), P1, d_min)


def handed(xyz, element):
    """Chiral volumes in A^3 of CA from N, C and CB of both residues of dialanines (B, 10, 3): +2.5 in L residues."""
    assert (element[0] == torch.tensor([1, 0, 0, 2, 0] * 2)).all()
    n, ca, c, _, cb = xyz.unflatten(1, (2, 5)).unbind(2)
    return torch.linalg.det(torch.stack([n - ca, c - ca, cb - ca], dim=-2))


def distances(xyz):
    return torch.cdist(xyz.double(), xyz.double())


# --------------------------------------------------------------------------- structure factors and maps


@pytest.mark.parametrize("d_min", [1.5, 2.1])
def test_structure_factors_are_gemmis(library, d_min):
    _, xyz, element, there = drawn(library, "dipeptide-12", 3)
    lengths = torch.tensor([[12.0, 12.0, 12.0], [11.0, 12.0, 10.5], [12.0, 9.0, 12.0]])
    shape = (24, 24, 28)
    half = structure_factors(xyz / lengths[:, None] + 0.5, element, lengths, shape, d_min)
    for row in range(3):
        hkl = reflections(lengths[row], d_min)
        f = by_gemmi(xyz[row] + lengths[row] / 2, element[row], lengths[row], hkl)
        sphere = HalfSphere.of(hkl, shape)
        mine = sphere.gather(half[row].numpy(), len(hkl))
        assert np.abs(mine - f).max() < 2e-4 * np.abs(f).max()
        # These and no others: F(000) is left out.
        assert int((half[row] != 0).sum()) == len(sphere.flat)
        # A map is the density on crystal.grid's terms, but for its scale.
        volume = float(lengths[row].prod())
        rho = synthesise(hkl, f, shape, volume) * volume / np.prod(shape) ** 0.5
        assert np.allclose(irfftn(half, shape)[row], rho, atol=1e-3 * rho.max())
        # Atoms are where it is dense.
        size = torch.tensor(shape)
        places = ((xyz[row][there[row]] / lengths[row] + 0.5) * size).round().long() % size
        assert rho[tuple(places.T.numpy())].min() > 0.2 * rho.max()


@pytest.mark.parametrize("edges", [(12, 12, 12), (7.5, 10.5, 6), (41, 30, 24), (4.5, 3, 19.5), (20, 20, 20)], ids=str)
def test_reflections_at_the_limit_are_in(edges):
    """0 0 8 of a cube of 12 A has d = 1.5 A. Oracle: gemmi's list."""
    lengths = torch.tensor([edges], dtype=torch.float32)
    recipe = OneShotRecipe(spacing=0.75)
    shape = tuple(grid(lengths, recipe)[0].tolist())
    xyz, element = torch.tensor([[[0.3, 0.4, 0.2]]]), torch.tensor([[3]])
    half = structure_factors(xyz, element, lengths, shape, 1.5)
    hkl = reflections(edges, 1.5)
    assert np.abs(HalfSphere.of(hkl, shape).gather(half[0].numpy(), len(hkl))).min() > 0
    a_little_more = reflections(edges, 1.5 * (1 - 1e-6))
    assert (
        len(hkl) <= HalfSphere.of(a_little_more, shape).gather(half[0].numpy(), len(a_little_more)).astype(bool).sum()
    )
    assert int((half != 0).sum()) <= len(HalfSphere.of(a_little_more, shape).flat)


def test_cells_of_one_batch_do_not_mix():
    """Each has its own resolution sphere."""
    lengths = torch.tensor([[10.0, 10.0, 10.0], [6.0, 7.0, 8.0]])
    xyz, element = torch.rand(2, 5, 3, generator=generator()), torch.randint(0, 4, (2, 5), generator=generator())
    both = structure_factors(xyz, element, lengths, (20, 20, 20), 1.5)
    for row in range(2):
        alone = structure_factors(xyz[row, None], element[row, None], lengths[row, None], (20, 20, 20), 1.5)
        assert torch.allclose(both[row], alone[0], atol=1e-4)
    assert (both[0] != 0).sum() > 2.5 * (both[1] != 0).sum()


def test_unit_maps_have_mean_zero_and_variance_one(library):
    batch = next(one_shot_batches(library, 4, 0, OneShotRecipe("dipeptide-12")))
    assert torch.allclose(batch.truth.mean(dim=(1, 2, 3)), torch.zeros(4), atol=1e-5)
    assert torch.allclose(batch.truth.pow(2).mean(dim=(1, 2, 3)), torch.ones(4), atol=1e-4)
    assert torch.allclose(inverse(batch.half, batch.truth.shape), batch.truth, atol=1e-4)
    half, rho = unit(5 * batch.half, batch.truth.shape[1:])
    assert torch.allclose(rho, batch.truth, atol=1e-4)
    assert torch.allclose(half, batch.half, atol=1e-3)


@pytest.mark.parametrize(
    ("edges", "recipe", "shape"),
    [
        ((10, 10, 10), OneShotRecipe(), (20, 20, 20)),
        ((12, 12, 12), OneShotRecipe(spacing=0.6), (20, 20, 20)),
        ((12, 12, 12), OneShotRecipe(spacing=0.5, multiple=5), (25, 25, 25)),
        ((41, 30, 24), OneShotRecipe(multiple=2), (82, 60, 48)),
        ((41, 30, 24), OneShotRecipe(), (84, 60, 48)),
        ((12, 6, 4), OneShotRecipe(spacing=2.0, multiple=1), (17, 9, 5)),  # 2 h + 1 of 12 / 1.5 and so on
        ((12, 6, 4), OneShotRecipe(d_min=3.0, spacing=1.0, multiple=3), (12, 6, 6)),
    ],
)
def test_grids(edges, recipe, shape):
    assert tuple(grid(torch.tensor([edges], dtype=torch.float32), recipe)[0].tolist()) == shape


# ------------------------------------------------------------------------------------------ Patterson


def autocorrelation(rho):
    """sum over x of rho(x) rho(x + u), point by point."""
    out = np.zeros_like(rho)
    for u in np.ndindex(*rho.shape):
        out[u] = (rho * np.roll(rho, [-i for i in u], (0, 1, 2))).sum()
    return out


def stretched(rho):
    return 2 * (rho - rho.min()) / (rho.max() - rho.min()) - 1


def test_pattersons_are_autocorrelations_and_the_pipelines_own(library):
    recipe = OneShotRecipe("dialanine-1b", d_min=2.4, spacing=0.9)
    batch = next(one_shot_batches(library, 2, 3, recipe))
    made = patterson(batch.half, batch.truth.shape)
    assert made.shape == batch.truth.shape == (2, 12, 12, 12)
    cell = gemmi.UnitCell(10, 10, 10, 90, 90, 90)
    hkl = reflections((10, 10, 10), 2.4)
    for row in range(2):
        truth = batch.truth[row].double().numpy()
        assert np.allclose(made[row], stretched(autocorrelation(truth)), atol=1e-4)
        assert float(made[row].max()) == float(made[row, 0, 0, 0]) == pytest.approx(1, abs=1e-6)
        assert float(made[row].min()) == pytest.approx(-1, abs=1e-6)
        f = np.abs(HalfSphere.of(hkl, (12, 12, 12)).gather(batch.half[row].numpy(), len(hkl))).astype(float)
        data = Amplitudes(hkl, f, np.zeros(len(f)), cell, P1, Source("made", "MTZ", ("F",), "amplitude"))
        assert np.allclose(made[row], stretched(patterson_map(data, f**2, shape=(12, 12, 12))), atol=1e-4)


# ------------------------------------------------------------------------------------------ molecules


def test_molecules_are_those_of_the_library(library):
    """Any dipeptide drawn has the distances of one that the library holds whole, and its residues."""
    known = {}
    for i in range(len(library)):
        for first in library.complete(i, 2):
            fragment = library.fragment(i, int(first), 2)
            known.setdefault(fragment.sequence, []).append(fragment)
    aa, xyz, _, there = drawn(library, "dipeptide-12", 60)
    found = set()
    for row in range(60):
        sequence = "".join(RESIDUES[k] for k in aa[row])
        mine = distances(xyz[row][there[row]])
        off = [
            float((mine - distances(torch.from_numpy(f.xyz))).abs().max()) if len(f.xyz) == len(mine) else np.inf
            for f in known[sequence]
        ]
        assert min(off) < 1e-3
        found.add(known[sequence][int(np.argmin(off))].source)
    assert len(found) > 25
    assert not any(source in found for source in ("1xyz_A_1", "1xyz_A_2", "1xyz_A_10"))  # lacking an atom, or a bond


def test_dialanine_is_that_of_the_recipes(library):
    known = []
    for i in range(len(library)):
        for first in library.complete(i, 2):
            fragment = library.fragment(i, int(first), 2)
            cut = dialanine(fragment)
            if "G" not in fragment.sequence:
                known.append(centred(cut))
    known = distances(torch.from_numpy(np.array(known)))
    aa, xyz, element, there = drawn(library, "dialanine-1b", 40)
    assert xyz.shape == (40, 10, 3)
    assert there.all()
    assert RESIDUES.index("G") not in aa
    for mine in distances(xyz):
        assert (known - mine).abs().amax(dim=(1, 2)).min() < 1e-3
    assert handed(xyz, element).min() > 2  # rotations keep the hand


@pytest.mark.parametrize("family", FAMILIES)
def test_the_centre_of_mass_is_the_origin(library, family):
    _, xyz, element, there = drawn(library, family, 5)
    mass = torch.tensor([gemmi.Element(e).weight for e in ELEMENTS])[element.clamp_min(0)] * there
    assert ((mass[..., None] * xyz).sum(1) / mass.sum(1, keepdim=True)).abs().max() < 1e-3


def test_clusters_are_drawn_first(library):
    """Three chains of one cluster together are drawn as often as the one of another."""
    crowded = replace(library, cluster=np.array([0, 0, 0, 1]))
    molecules = Molecules(crowded, FAMILIES["dialanine-1b"])
    last = distances(molecules.xyz[int(library.start[3]) :])
    mine = distances(molecules.draw(800, generator())[1])
    # N, CA, C, O, CB of neighbours in the last chain
    first = library.residues.first[library.residues.start[3] : library.residues.start[4] - 1] - library.start[3]
    second = np.append(first[1:], library.residues.first[library.residues.start[4] - 1] - library.start[3])
    rows = torch.from_numpy(np.concatenate([first[:, None] + np.arange(5), second[:, None] + np.arange(5)], axis=1))
    its = last[rows[:, :, None], rows[:, None]]
    of_last = (torch.cdist(mine.flatten(1), its.flatten(1)).amin(1) < 1e-2).double().mean()
    assert float(of_last) == pytest.approx(0.5, abs=0.06)
    assert len(molecules) == sum(
        "G" not in library.fragment(i, int(k), 2).sequence for i in range(4) for k in library.complete(i, 2)
    )


def test_no_molecules_no_crystals(library):
    with pytest.raises(UserError, match="holds no such molecules"):
        next(one_shot_batches(peptide_library(chains=1, length=8), 1, 0, OneShotRecipe("residues-15")))
    with pytest.raises(UserError, match="holds no residues"):
        next(one_shot_batches(made_library(), 1, 0, OneShotRecipe()))
    with pytest.raises(UserError, match=r"no such family.*dialanine-1a"):
        next(one_shot_batches(library, 1, 0, OneShotRecipe("tripeptide")))


def test_molecules_that_never_fit_are_told(library, monkeypatch):
    monkeypatch.setitem(FAMILIES, "cramped", Family(2, False, (4.0, 4.0, 4.0)))
    with pytest.raises(UserError, match="no molecule fits without clashes"):
        next(one_shot_batches(library, 8, 0, OneShotRecipe("cramped")))


def test_rotations_are_proper_and_uniform():
    turns = rotations(20000, generator(), "cpu").double()
    identity = torch.eye(3, dtype=torch.float64)
    assert torch.allclose(turns @ turns.mT, identity.expand_as(turns), atol=1e-5)
    assert torch.allclose(torch.linalg.det(turns), torch.ones(20000, dtype=torch.float64), atol=1e-5)
    # Moments of the Haar measure: mean 0; mean of R_ij R_kl is 1/3 where ij = kl, else 0.
    flat = turns.flatten(1)
    assert flat.mean(0).abs().max() < 0.02
    assert (flat.T @ flat / len(flat) - torch.eye(9) / 3).abs().max() < 0.02
    # Angles of rotation have the density (1 - cos a) / pi: mean pi / 2 + 2 / pi.
    angle = torch.arccos(((turns.diagonal(dim1=1, dim2=2).sum(1) - 1) / 2).clamp(-1, 1))
    assert float(angle.mean()) == pytest.approx(np.pi / 2 + 2 / np.pi, abs=0.02)


# ---------------------------------------------------------------------------------------------- cells


def test_contacts_are_those_of_the_recipes(library):
    _, xyz, _, there = drawn(library, "dipeptide-12", 12)
    lengths = torch.tensor([8.0, 10.0, 9.0]) + 3 * torch.rand(12, 3, generator=generator(2))
    mine = contacts(xyz, there, lengths).amin(1)
    for row in range(12):
        edges = lengths[row].double().numpy()
        frac = xyz[row][there[row]].double().numpy() / edges
        its = shortest_contact(frac, gemmi.UnitCell(*edges, 90, 90, 90), P1, reach=8.0)
        assert float(mine[row]) == pytest.approx(its, abs=1e-4)
        # By brute force over all 26 images.
        images = [
            xyz[row][there[row]] + torch.tensor(n) * lengths[row] for n in product((-1, 0, 1), repeat=3) if any(n)
        ]
        assert float(mine[row]) == pytest.approx(
            float(torch.cdist(xyz[row][there[row]], torch.cat(images)).min()), abs=1e-4
        )


def test_minimal_cells_are_those_of_the_recipes(library):
    _, xyz, _, there = drawn(library, "dipeptide-minimal", 60, seed=4)
    lengths, found = minimal_cells(xyz, there)
    assert found.all()
    for row in range(60):
        assert np.allclose(lengths[row], minimal_cell(xyz[row][there[row]].double().numpy()), atol=1e-4)
    nearest = contacts(xyz, there, lengths).amin(1)
    assert nearest.min() >= 2.75 - 1e-4
    assert nearest.max() < 3.2  # no larger than need be
    assert torch.allclose(10 * lengths, (10 * lengths).round(), atol=1e-3)


def test_a_cell_that_cannot_be_found_is_told():
    """With a step too few."""
    pair = torch.tensor([[[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]]])
    there = torch.ones(1, 2, dtype=torch.bool)
    lengths, found = minimal_cells(pair, there)
    assert found.all()
    assert np.allclose(lengths[0], minimal_cell(pair[0].double().numpy()), atol=1e-4)
    steps = round(float((lengths[0] - torch.tensor([1.0, 1.0, 1.0])).sum() / 0.1))
    for most, well in ((steps, False), (steps + 1, True)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(one_shot_cells, "STEPS", most)
            assert bool(minimal_cells(pair, there)[1]) is well


def test_the_longest_axis_comes_first_and_the_hand_stays(library):
    _, xyz, element, there = drawn(library, "dialanine-1b", 200)
    lengths, _ = minimal_cells(xyz, there)
    turned, sorted_lengths = longest_first(xyz, lengths)
    assert (sorted_lengths.diff(dim=1) <= 0).all()
    assert torch.equal(sorted_lengths, lengths.sort(dim=1, descending=True).values)
    assert torch.allclose(handed(turned, element), handed(xyz, element), atol=1e-4)
    assert handed(turned, element).min() > 2
    assert torch.allclose(distances(turned), distances(xyz), atol=1e-5)
    assert torch.allclose(contacts(turned, there, sorted_lengths).amin(1), contacts(xyz, there, lengths).amin(1))
    assert not torch.allclose(turned, xyz)


# -------------------------------------------------------------------------------------------- batches


@pytest.mark.parametrize("family", ["dialanine-1a", "dialanine-1b", "dipeptide-12"])
def test_a_batch_is_its_molecules_at_the_centre_of_the_cube(library, family):
    """The same draw, put into the cell by gemmi."""
    edge = {"dialanine-1a": 20.0, "dialanine-1b": 10.0, "dipeptide-12": 12.0}[family]
    recipe = OneShotRecipe(family, d_min=2.0, spacing=0.7, parts=True)
    batch = next(one_shot_batches(library, 3, 5, recipe))
    aa, xyz, element, there = drawn(library, family, 3, seed=5)
    lengths = torch.full((3, 3), edge)
    assert contacts(xyz, there, lengths).min() > 2.75  # all three fit
    assert torch.equal(batch.lengths, lengths)
    hkl = reflections(lengths[0], 2.0)
    for row in range(3):
        f = by_gemmi(xyz[row] + edge / 2, element[row], lengths[row], hkl)
        mine = HalfSphere.of(hkl, batch.truth.shape[1:]).gather(batch.half[row].numpy(), len(hkl))
        scale = np.abs(mine).max() / np.abs(f).max()
        assert np.allclose(mine, scale * f, atol=2e-4 * np.abs(mine).max())
    assert torch.equal(batch.parts, maps_of_parts(aa, lengths, batch.truth.shape[1:], 2.0))


def test_clashing_molecules_are_left_out(library, monkeypatch):
    """A tight cube: of the same draw those without contacts under 2.75 A, in the same order."""
    monkeypatch.setitem(FAMILIES, "tight", Family(2, False, (9.5, 9.5, 9.5)))
    recipe = OneShotRecipe("tight", d_min=2.0, spacing=0.7)
    batch = next(one_shot_batches(library, 8, 1, recipe))
    _, xyz, element, there = drawn(library, "tight", 8, seed=1)
    lengths = torch.full((8, 3), 9.5)
    sound = contacts(xyz, there, lengths).amin(1) >= 2.75
    assert 0 < sound.sum() < 8
    shape = batch.truth.shape[1:]
    half = unit(structure_factors(xyz / 9.5 + 0.5, element, lengths, shape, 2.0), shape)[0]
    assert torch.allclose(batch.half[: int(sound.sum())], half[sound], atol=1e-3)


def test_fifteen_residues_lie_along_the_longest_axis(library):
    batch = next(one_shot_batches(library, 2, 0, OneShotRecipe("residues-15", d_min=3.0, spacing=1.0)))
    assert batch.lengths.tolist() == [[41.0, 30.0, 24.0]] * 2
    assert batch.truth.shape == (2, 44, 32, 24)
    for rho in batch.truth:
        dense = (rho > 0.2 * rho.max()).nonzero().double()
        spread = dense.std(0) * torch.tensor([41 / 44, 30 / 32, 24 / 24])
        assert spread[0] > spread[1] > 0.8 * spread[2]


def test_minimal_cells_share_a_grid_and_have_the_longest_axis_first(library):
    recipe = OneShotRecipe("dipeptide-minimal", d_min=2.0, spacing=0.7)
    for batch in islice(one_shot_batches(library, 4, 0, recipe), 4):
        shape = torch.tensor(batch.truth.shape[1:])
        assert (shape % 4 == 0).all()
        assert torch.equal(grid(batch.lengths, recipe), shape.expand(4, 3))
        assert (batch.lengths.diff(dim=1) <= 0).all()
        assert (batch.lengths / shape <= 0.7 + 1e-4).all()


@pytest.mark.parametrize("family", ["dialanine-1b", "dipeptide-minimal"])
def test_the_same_seed_makes_the_same_crystals(library, family):
    recipe = OneShotRecipe(family, d_min=2.0, spacing=0.7)

    def three(seed):
        return list(islice(one_shot_batches(library, 4, seed, recipe), 3))

    a, b, other = three(7), three(7), three(8)
    assert all(torch.equal(x.truth, y.truth) and torch.equal(x.lengths, y.lengths) for x, y in zip(a, b, strict=True))
    assert a[0].truth.shape != other[0].truth.shape or not torch.allclose(a[0].truth, other[0].truth, atol=1e-2)
    truths = [x for batch in a for x in batch.truth]
    for i, x in enumerate(truths):  # none twice
        assert all(x.shape != y.shape or not torch.allclose(x, y, atol=1e-2) for y in truths[:i])


def test_batch_size_and_multiple_are_as_asked(library):
    for size, multiple in ((1, 6), (5, 8)):
        batch = next(one_shot_batches(library, size, 0, OneShotRecipe("dialanine-1b", multiple=multiple)))
        assert len(batch.truth) == len(batch.half) == len(batch.parts) == len(batch.lengths) == size
        assert batch.truth.shape[1:] == (24, 24, 24)
        assert batch.parts.shape[1] == 0


# ----------------------------------------------------------------------------------- standard residues


@cache
def named_residues():
    xyz, element = standard_residues()
    return {
        letter: dict(zip(ATOMS[letter], xyz[i].double().numpy(), strict=False)) for i, letter in enumerate(RESIDUES)
    }, element


def test_standard_residues_are_the_residues_of_gemmis_table():
    """Its weights are of free amino acids: with all hydrogens and a second oxygen."""
    xyz, element = standard_residues()
    for i, letter in enumerate(RESIDUES):
        info = gemmi.find_tabulated_residue(THREE_LETTERS[letter])
        weights = [gemmi.Element(ELEMENTS[int(e)]).weight for e in element[i] if e != NOTHING]
        assert len(weights) == len(ATOMS[letter])
        hydrogens = info.hydrogen_count * gemmi.Element("H").weight
        assert sum(weights) + gemmi.Element("O").weight + hydrogens == pytest.approx(info.weight, abs=0.1)
        centre = np.array(weights) @ xyz[i, : len(weights)].double().numpy() / sum(weights)
        assert np.abs(centre).max() < 1e-3


def test_standard_residues_have_the_geometry_of_l_amino_acids():
    for letter, at in named_residues()[0].items():
        for a, b, length in (("N", "CA", 1.46), ("CA", "C", 1.525), ("C", "O", 1.24), ("CA", "CB", 1.53)):
            if b in at:
                assert np.linalg.norm(at[a] - at[b]) == pytest.approx(length, abs=0.03), (letter, a, b)
        all_atoms = np.array(list(at.values()))
        apart = np.linalg.norm(all_atoms[:, None] - all_atoms, axis=-1)[np.triu_indices(len(at), 1)]
        assert apart.min() > 1.15
        bonded = (apart < 1.9).sum()
        rings = {"P": 1, "F": 1, "Y": 1, "H": 1, "W": 2}.get(letter, 0)
        assert bonded == len(at) - 1 + rings, letter
        if letter != "G":
            volume = np.linalg.det([at["N"] - at["CA"], at["C"] - at["CA"], at["CB"] - at["CA"]])
            assert volume == pytest.approx(2.5, abs=0.3), letter
    # The second centres, as the wwPDB's ideal coordinates have them: (2S,3S)-isoleucine, (2S,3R)-threonine.
    at = named_residues()[0]["I"]
    assert np.linalg.det([at[x] - at["CB"] for x in ("CA", "CG1", "CG2")]) == pytest.approx(2.6, abs=0.4)
    at = named_residues()[0]["T"]
    assert np.linalg.det([at[x] - at["CB"] for x in ("CA", "OG1", "CG2")]) == pytest.approx(2.5, abs=0.4)


def test_maps_of_parts_are_gemmis(library):
    xyz, element = standard_residues()
    aa = torch.tensor([[RESIDUES.index("W"), RESIDUES.index("G")], [RESIDUES.index("M"), RESIDUES.index("I")]])
    lengths = torch.tensor([[12.0, 11.0, 10.0], [9.0, 10.0, 12.0]])
    shape = (16, 16, 16)
    made = maps_of_parts(aa, lengths, shape, 2.0)
    assert made.shape == (2, 2, *shape)
    assert torch.allclose(made.pow(2).mean(dim=(2, 3, 4)), torch.ones(2, 2), atol=1e-4)
    for i, j in np.ndindex(2, 2):
        k = int(aa[i, j])
        hkl = reflections(lengths[i], 2.0)
        f = by_gemmi(xyz[k] + lengths[i] / 2, element[k], lengths[i], hkl)
        rho = synthesise(hkl, f, shape, 1.0)
        assert np.allclose(made[i, j], rho / rho.std(), atol=5e-3)


def test_parts_are_made_only_where_asked_for(library):
    batch = next(one_shot_batches(library, 2, 0, OneShotRecipe("residues-15", d_min=4.0, spacing=1.3, parts=True)))
    assert batch.parts.shape[1] == 15
    without = next(one_shot_batches(library, 2, 0, OneShotRecipe("residues-15", d_min=4.0, spacing=1.3)))
    assert without.parts.shape == (2, 0, *batch.parts.shape[2:])
    assert torch.equal(without.truth, batch.truth)
