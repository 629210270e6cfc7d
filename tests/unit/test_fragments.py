"""Starts from pieces of structure: each step against brute force, gemmi or scipy; the whole on a made crystal."""

import itertools
import math
from dataclasses import replace

import gemmi
import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from ml_phaser.crystal.agreement import compare
from ml_phaser.crystal.normalise import normalise
from ml_phaser.crystal.peptide import build
from ml_phaser.crystal.reflections import Amplitudes, Source
from ml_phaser.errors import UserError
from ml_phaser.exchange.fragments import read_piece, write_fragments
from ml_phaser.outcome import Chain, Fragments
from ml_phaser.phasing.fragments import pieces
from ml_phaser.phasing.fragments.chain import superposed, torsions
from ml_phaser.phasing.fragments.grow import longer
from ml_phaser.phasing.fragments.models import overlap
from ml_phaser.phasing.fragments.refine import about, bent, climb
from ml_phaser.phasing.fragments.scene import Scene
from ml_phaser.phasing.fragments.search import (
    NEAREST,
    Translations,
    likeliest,
    orientations,
    rescored,
    search,
    wanted,
)
from ml_phaser.phasing.fragments.waves import Sums, Waves

GROUPS = ("P 1", "P 1 21 1", "P 21 21 21", "C 1 2 1", "P 31", "I 4")
CELL = {"P 31": (14, 14, 17, 90, 90, 120), "I 4": (15, 15, 19, 90, 90, 90)}


def cell_of(name):
    system = CELL.get(name, (11, 13, 18, 90, 90 if name.startswith("P 21 21") else 97, 90))
    return gemmi.UnitCell(*(system if name != "P 1" else (10, 11, 14, 80, 95, 102)))


def copies(xyz, cell, spacegroup):
    """Fractional coordinates of every copy in the cell, by gemmi's operators."""
    frac = [cell.fractionalize(gemmi.Position(*x)) for x in xyz]
    return [np.array([op.apply_to_xyz([f.x, f.y, f.z]) for f in frac]) for op in spacegroup.operations()]


def crystal(name, piece, turn, place, d_min=1.6, cell=None):
    """Data of one piece as the whole content, electrons as point scatterers with a B of 8 A^2, and true F."""
    spacegroup, cell = gemmi.SpaceGroup(name), cell or cell_of(name)
    xyz = piece.xyz @ turn.T + place
    hkl = gemmi.make_miller_array(cell, spacegroup, d_min)
    hkl = hkl[~np.asarray(spacegroup.operations().systematic_absences(hkl), dtype=bool)]
    f = sum(np.exp(2j * np.pi * hkl @ x.T) @ piece.weight for x in copies(xyz, cell, spacegroup))
    f = f * np.exp(-8 * np.asarray(cell.calculate_1_d2_array(hkl)) / 4)
    source = Source("made", "test", {}, "amplitude")
    data = Amplitudes(hkl.astype(np.int32), np.abs(f), 0.01 * np.abs(f), cell, spacegroup, source)
    return data, f, xyz


def scene_of(data):
    return Scene.of(data, normalise(data), np.arange(len(data)))


@pytest.fixture(scope="module")
def strand():
    return pieces.polyalanine(4, (-120.0, 130.0), "strand of 4")


# ------------------------------------------------------------------------------------------------------- pieces


def test_pieces_are_chains_without_their_last_oxygen(strand):
    assert len(strand) == 20 and "OXT" not in strand.names
    assert np.allclose(strand.weight @ strand.xyz / strand.weight.sum(), 0, atol=1e-9)
    for piece in pieces.library(("LVHSSN",)):
        for hinge in piece.hinges:
            assert not hinge.moving[hinge.near] and hinge.moving[hinge.far] and len(hinge.moving) == len(piece)
    labels = [p.label for p in pieces.library(("LVHSSN",))]
    assert len(set(labels)) == len(labels)


def test_orientations_are_rotations_and_cover_them_evenly():
    turns = orientations(2000)
    assert np.allclose(turns @ turns.swapaxes(1, 2), np.eye(3), atol=1e-12)
    assert np.allclose(np.linalg.det(turns), 1)
    probes = Rotation.random(300, rng=np.random.default_rng(0)).as_matrix()
    trace = np.einsum("aij,bij->ab", probes, turns)
    nearest = np.degrees(np.arccos(np.clip((trace.max(1) - 1) / 2, -1, 1)))
    # 2000 balls of equal volume in SO(3) have a radius of 17 degrees
    assert nearest.max() < 30 and 5 < nearest.mean() < 17


def test_larger_pieces_want_more_orientations():
    counts = [wanted(r, d, 2) for r, d in ((3.0, 2.0), (3.0, 1.5), (5.0, 1.5))]
    assert counts == sorted(counts) and counts[0] < counts[-1]
    # each operator turns one orientation into another: four of them need a quarter
    assert [wanted(5.0, 1.5, n) for n in (1, 4)] == pytest.approx([2 * counts[-1], counts[-1] / 2], abs=1)
    assert wanted(5.0, 1.5, 2, fine=True) == pytest.approx(counts[-1] * (1.1 / 0.8) ** 3, rel=0.01)


# -------------------------------------------------------------------------------------------------------- scene


@pytest.mark.parametrize("name", GROUPS)
def test_structure_factors_of_a_pose(name, strand):
    turn = Rotation.random(rng=np.random.default_rng(1)).as_matrix()
    place = np.array([2.0, 3.0, 4.0])
    data, f, _ = crystal(name, strand, turn, place)
    scene = scene_of(data)
    xyz = torch.from_numpy(strand.xyz @ turn.T).float()[None]
    shift = torch.from_numpy(place).float()[None] @ scene.frac.T
    ours = scene.total(scene.parts(xyz, torch.from_numpy(strand.weight).float()), shift)[0].numpy()
    there = scene.structure(xyz + torch.from_numpy(place).float(), torch.from_numpy(strand.weight).float())[0]
    assert np.abs(there.numpy() - ours).max() < 1e-3 * np.abs(ours).max()
    assert float(scene.overlap(there[None], there)) == pytest.approx(1, abs=1e-5)
    other = there[torch.randperm(len(there), generator=torch.Generator().manual_seed(0))]
    a, b = (np.asarray(x / scene.epsilon.sqrt()) for x in (there, other))
    w = scene.weight.numpy()
    cosine = (w * (a * b.conj()).real).sum() / np.sqrt((w * np.abs(a) ** 2).sum() * (w * np.abs(b) ** 2).sum())
    assert float(scene.overlap(there[None], other)) == pytest.approx(cosine, abs=1e-5)
    damping = np.exp(-8 * np.asarray(data.cell.calculate_1_d2_array(data.hkl)) / 4)
    centring = len(data.spacegroup.operations().cen_ops)
    assert np.abs(ours * centring - f / damping).max() < 2e-3 * np.abs(f / damping).max()
    assert scene.correlation(torch.from_numpy(ours)[None])[0] > 0.85  # E^2 are normalised by shells


@pytest.mark.parametrize("largest", [(3, 2, 5), (5, 2, 3), (0, 0, 0)])
def test_sums_of_waves_and_their_slopes(largest):
    rng = np.random.default_rng(3)
    index = np.stack([rng.integers(-n, n + 1, 40) for n in largest], 1)
    waves = Waves.of(index, "cpu")
    x, weight = torch.from_numpy(rng.uniform(-2, 2, (2, 6, 3))), torch.from_numpy(rng.uniform(1, 9, 6))
    direct = np.exp(2j * np.pi * np.einsum("kc,bmc->bkm", index, x.numpy())) @ weight.numpy()
    assert np.abs(Sums.apply(x, waves, weight).numpy() - direct).max() < 1e-9
    assert torch.autograd.gradcheck(lambda x: Sums.apply(x, waves, weight), x.requires_grad_())


def test_low_orders_count_less_where_there_is_solvent(strand):
    data, _, _ = crystal("P 21 21 21", strand, np.eye(3), np.array([3.0, 2.0, 8.0]))
    dry = Scene.of(data, normalise(data), np.arange(len(data)))
    wet = Scene.of(data, normalise(data), np.arange(len(data)), wet=True)
    ratio = (wet.weight / dry.weight).numpy()
    assert float(wet.weight.sum()) == pytest.approx(1, abs=1e-5)
    order = np.argsort(data.d)
    assert np.all(np.diff(ratio[order]) <= 1e-6)
    # of protein and of solvent of the same shape, 0.95 of the density apart, B 150 A^2
    left = 1 - 0.95 * np.exp(-150 / (4 * data.d**2))
    assert np.allclose(ratio / ratio[0], left**2 / left[0] ** 2, rtol=1e-4)


@pytest.mark.parametrize("name", GROUPS)
def test_contacts_against_brute_force(name, strand):
    rng = np.random.default_rng(2)
    cell, spacegroup = cell_of(name), gemmi.SpaceGroup(name)
    turn, place = Rotation.random(rng=rng).as_matrix(), rng.uniform(0, 10, 3)
    data, _, xyz = crystal(name, strand, turn, place)
    orth = np.array(cell.orth.mat)
    first, *others = copies(xyz, cell, spacegroup)
    best = math.inf
    for number, other in enumerate([first, *others]):
        for v in itertools.product(range(-3, 4), repeat=3):
            if number == 0 and not any(v):
                continue
            apart = (first[:, None] - other + np.array(v)) @ orth.T
            best = min(best, np.linalg.norm(apart, axis=-1).min())
    scene = scene_of(data)
    shift = torch.from_numpy(place).float()[None] @ scene.frac.T
    found = scene.closest(torch.from_numpy(strand.xyz @ turn.T).float()[None], shift)
    assert float(found[0]) == pytest.approx(best, abs=2e-3)


def test_contacts_with_a_neighbour_count_and_those_within_it_do_not(strand):
    data, _, _ = crystal("P 1", strand, np.eye(3), np.zeros(3), cell=gemmi.UnitCell(60, 60, 60, 90, 90, 90))
    scene = scene_of(data)
    both = torch.from_numpy(np.concatenate([strand.xyz, strand.xyz + np.array([0, 0, 9.0])])).float()[None]
    apart = np.linalg.norm(strand.xyz[:, None] - strand.xyz - [0, 0, 9.0], axis=-1).min()
    assert float(scene.closest(both, torch.zeros(1, 3), among=len(strand))[0]) == pytest.approx(apart, abs=1e-3)
    assert float(scene.closest(both, torch.zeros(1, 3))[0]) > 30


# ------------------------------------------------------------------------------------------------------- search


@pytest.mark.parametrize("name", GROUPS)
def test_the_translation_function_peaks_where_the_piece_is(name, strand):
    turn, place = Rotation.random(rng=np.random.default_rng(3)).as_matrix(), np.array([1.0, 4.0, 6.0])
    data, _, _ = crystal(name, strand, turn, place)
    scene = scene_of(data)
    parts = scene.parts(torch.from_numpy(strand.xyz @ turn.T).float()[None], torch.from_numpy(strand.weight).float())
    shifts = Translations.of(scene, data.spacegroup, fixed=False).peaks(scene, parts, None, 3)
    scores = [float(scene.correlation(scene.total(parts, shifts[:, j]))[0]) for j in range(shifts.shape[1])]
    at_truth = torch.from_numpy(place).float()[None] @ scene.frac.T
    truth = float(scene.correlation(scene.total(parts, at_truth))[0])
    assert max(scores) > 0.8 * truth  # a grid point, up to half a step away
    fine = torch.rand(4000, 3, generator=torch.Generator().manual_seed(0))
    anywhere = scene.correlation(scene.total(parts.expand(4000, -1, -1), fine)).max()
    assert max(scores) > 0.85 * float(anywhere)


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("name", GROUPS)
def test_the_translation_function_is_its_sum_over_reflections(name, strand, fixed):
    """sum w (E^2 - 1) |F(x)|^2 / epsilon at every grid point, up to a constant and a factor."""
    data, f, _ = crystal(name, strand, np.eye(3), np.array([3.0, 2.0, 5.0]))
    scene = scene_of(data)
    other = torch.from_numpy(f.astype(np.complex64)) if fixed else None
    grid = Translations.of(scene, data.spacegroup, fixed=fixed)
    turn = Rotation.random(rng=np.random.default_rng(5)).as_matrix()
    atoms = torch.from_numpy(strand.xyz @ turn.T).float()[None]
    parts = scene.parts(atoms, torch.from_numpy(strand.weight).float())
    if math.prod(grid.shape) == 1:
        assert name == "P 1" and not fixed  # no translation means anything
        return
    found = grid.function(scene, parts, other)[0]
    points = np.random.default_rng(6).integers(0, grid.shape, (60, 3))
    shift = torch.from_numpy(points / np.array(grid.shape) / np.array(grid.periods)).float()
    total = scene.total(parts.expand(len(shift), -1, -1), shift) + (0 if other is None else other)
    pull = scene.weight * (scene.value - 1) / scene.epsilon
    direct = (pull * total.abs() ** 2).sum(-1).numpy()
    assert np.corrcoef(direct, found[tuple(points.T)].numpy())[0, 1] > 0.9999


def test_the_second_copy_is_found_beside_the_first(strand):
    rng = np.random.default_rng(4)
    cell, turns = gemmi.UnitCell(12, 13, 22, 85, 95, 100), Rotation.random(2, rng=rng).as_matrix()
    data, one, first = crystal("P 1", strand, turns[0], np.zeros(3), cell=cell)
    _, two, second = crystal("P 1", strand, turns[1], np.array([3.0, 6.0, 11.0]), cell=cell)
    both = Amplitudes(data.hkl, np.abs(one + two), data.sigf, cell, data.spacegroup, data.source)
    scene = scene_of(both)
    weight = torch.from_numpy(strand.weight).float()
    fixed = scene.total(scene.parts(torch.from_numpy(first).float()[None], weight), torch.zeros(1, 3))[0]
    near = np.concatenate([turns[1:], orientations(200)])
    poses = search(scene, data.spacegroup, strand, near, 5, fixed)
    fitted = climb(
        scene, strand, torch.einsum("bij,mj->bmi", poses.turn, torch.from_numpy(strand.xyz).float()), poses.shift, 40,
        bend=False, fixed=fixed,
    )  # fmt: skip
    best = int(fitted.score.argmax())
    found = (fitted.xyz[best] + fitted.shift[best] @ scene.orth.T).numpy()
    apart = (found - second) @ np.array(cell.frac.mat).T
    assert np.abs((apart - apart.round()) @ np.array(cell.orth.mat).T).max() < 0.1
    assert fitted.score[best] > 0.85


def test_places_on_top_of_copies_do_not_crowd_out_the_others():
    """Of a helix in a flat cell, where most of what tops the function is the helix through its own copy."""
    helix = pieces.polyalanine(10, (-62.0, -42.0), "helix of 10")
    rng = np.random.default_rng(12)
    cell = gemmi.UnitCell(13, 24, 26, 90, 90, 90)
    data, _, _ = crystal("P 21 21 21", helix, np.eye(3), np.array([3.0, 2.0, 8.0]), cell=cell)
    scene, turns = scene_of(data), Rotation.random(40, rng=rng).as_matrix()
    trace = torch.from_numpy(helix.xyz[[i for i, name in enumerate(helix.names) if name == "CA"][::2]]).float()

    def clear(poses):
        return scene.closest(torch.einsum("bij,mj->bmi", poses.turn, trace), poses.shift) > NEAREST

    plain, apart = (search(scene, data.spacegroup, helix, turns, 120, apart=a) for a in (False, True))
    assert (
        clear(plain).float().mean() < 0.3 and clear(apart).float().mean() > 0.6
    )  # in some orientations all are on top
    assert float(apart.score[clear(apart)].max()) >= float(plain.score[clear(plain)].max())
    bare = replace(helix, names=("C",) * len(helix))  # of what has no C-alpha atoms nothing is known
    assert torch.equal(search(scene, data.spacegroup, bare, turns, 120, apart=True).score, plain.score)


# ------------------------------------------------------------------------------------------------------- refine


def test_the_right_orientation_is_among_the_likeliest_and_all_are_scored_as_defined():
    helix = pieces.polyalanine(8, (-62.0, -42.0), "helix of 8")
    turn = Rotation.random(rng=np.random.default_rng(6)).as_matrix()
    cell = gemmi.UnitCell(17, 18, 21, 90, 90, 90)
    data, _, _ = crystal("P 21 21 21", helix, turn, np.array([3.0, 2.0, 8.0]), cell=cell)
    scene, turns = scene_of(data), np.concatenate([orientations(300), turn[None]])
    best = likeliest(scene, helix, turns)
    assert best.shape == (301, 3, 3) and np.abs(best[:15] - turn).max((1, 2)).min() < 1e-12
    # the sum of |G_s|^2 over operators, by brute force
    hkl, scores = data.hkl.astype(float), []
    for r in turns:
        x = (helix.xyz @ r.T) @ np.array(cell.frac.mat).T
        own = sum(
            np.abs(np.exp(2j * np.pi * hkl @ (np.array(op.rot) / op.DEN) @ x.T) @ helix.weight) ** 2
            for op in data.spacegroup.operations()
        )  # fmt: skip
        c = np.cov(own / data.epsilon, scene.value.numpy(), aweights=scene.weight.numpy())
        scores.append(c[0, 1] / np.sqrt(c[0, 0] * c[1, 1]))
    order = np.argsort(-np.array(scores))
    assert np.allclose(best[:15], turns[order[:15]])
    assert sorted(map(tuple, best.reshape(-1, 9))) == sorted(map(tuple, turns.reshape(-1, 9)))


def test_poses_of_a_part_of_the_data_are_scored_on_all_of_them(strand):
    turn = Rotation.random(rng=np.random.default_rng(7)).as_matrix()
    data, _, _ = crystal("P 1 21 1", strand, turn, np.array([3.0, 2.0, 8.0]))
    scene = scene_of(data)
    part = Scene.of(data, normalise(data), np.flatnonzero(data.d > 2.2))
    poses = search(part, data.spacegroup, strand, orientations(60), 30, alike=1e-7)
    again = rescored(scene, strand, poses)
    assert len(again) == len(poses) and np.all(np.diff(again.score.numpy()) <= 0)
    xyz = torch.einsum("bij,mj->bmi", again.turn, torch.from_numpy(strand.xyz).float())
    f = scene.structure(xyz + (again.shift @ scene.orth.T)[:, None], torch.from_numpy(strand.weight).float())
    assert np.allclose(scene.correlation(f), again.score, atol=1e-4)
    there = 2.0 * f[:1].conj().flip(1)[0]
    beside = rescored(scene, strand, poses, there)
    assert float(beside.score[0]) == pytest.approx(float(scene.correlation(f + there).max()), abs=1e-4)


def test_turning_about_a_vector_is_scipys():
    rng = np.random.default_rng(5)
    vector, xyz = rng.normal(size=(4, 3)), rng.normal(size=(4, 7, 3))
    ours = about(torch.from_numpy(vector), torch.from_numpy(xyz)).numpy()
    theirs = np.stack([Rotation.from_rotvec(v).apply(x) for v, x in zip(vector, xyz, strict=True)])
    assert np.allclose(ours, theirs, atol=1e-9)


def test_hinges_turn_their_torsion_and_keep_all_bonds(strand):
    by = torch.zeros(1, len(strand.hinges), dtype=torch.float64)
    by[0, 2] = 0.4
    before, _ = torsions(strand, strand.xyz)
    moved = bent(torch.from_numpy(strand.xyz)[None], strand.hinges, by)[0].numpy()
    after, omega = torsions(strand, moved)
    change = np.array(after) - np.array(before)
    changed = np.argwhere(np.abs(change) > 1e-6)
    assert len(changed) == 1 and abs(change[tuple(changed[0])]) == pytest.approx(np.degrees(0.4), abs=1e-6)
    assert np.allclose(np.abs(omega), 180, atol=1e-6)
    bonds = build("AAAA", [(-120.0, 130.0)] * 4, [()] * 4, [180.0] * 4).bonds
    bonds = bonds[(bonds < len(strand)).all(1)]
    length = [np.linalg.norm(x[bonds[:, 0]] - x[bonds[:, 1]], axis=1) for x in (strand.xyz, moved)]
    assert np.allclose(*length, atol=1e-9)


def test_climbing_finds_back_to_the_truth(strand):
    rng = np.random.default_rng(6)
    turn, place = Rotation.random(rng=rng).as_matrix(), np.array([3.0, 2.0, 8.0])
    data, _, truth = crystal("P 21 21 21", strand, turn, place)
    scene = scene_of(data)
    by = torch.from_numpy(rng.normal(size=(1, len(strand.hinges))) * 0.1).float()
    shaken = strand.xyz @ Rotation.from_rotvec([0.05, -0.06, 0.04]).as_matrix().T @ turn.T
    start = bent(torch.from_numpy(shaken).float()[None], strand.hinges, by)
    shift = torch.from_numpy(place + np.array([0.2, -0.15, 0.2])).float()[None] @ scene.frac.T
    rigid = climb(scene, strand, start, shift, 60, bend=False)
    free = climb(scene, strand, rigid.xyz, rigid.shift, 120, bend=True)
    assert free.score[0] > rigid.score[0] + 0.05 and free.score[0] > 0.95
    found = (free.xyz[0] + free.shift[0] @ scene.orth.T).numpy()
    assert np.sqrt(((found - truth) ** 2).sum(1).mean()) < 0.1


def test_climbing_never_leaves_a_better_pose(strand):
    """From the truth, at a resolution where the optimum is narrow: every pose ends at least as high as it began."""
    turn, place = Rotation.random(rng=np.random.default_rng(9)).as_matrix(), np.array([3.0, 2.0, 8.0])
    data, _, truth = crystal("P 21 21 21", strand, turn, place, d_min=1.2)
    scene = scene_of(data)
    x = torch.from_numpy(truth).float()[None] + torch.tensor([0.0, 0.15, 0.4])[:, None, None]
    before = scene.correlation(scene.structure(x, torch.from_numpy(strand.weight).float()))
    for bend in (False, True):
        after = climb(scene, strand, x, torch.zeros(3, 3), 30, bend=bend)
        assert (after.score >= before - 1e-5).all()
        found = (after.xyz + after.shift[:, None] @ scene.orth.T)[0].numpy()
        assert np.sqrt(((found - truth) ** 2).sum(1).mean()) < 0.1


def test_the_outline_keeps_what_tells_most(strand):
    data, _, xyz = crystal("P 21 21 21", strand, np.eye(3), np.array([3.0, 2.0, 8.0]))
    scene = scene_of(data)
    part = scene.outline(60)
    told = (scene.weight * (scene.value - 1).abs()).numpy()
    kept = np.isin(scene.rows, part.rows)
    assert len(part.rows) == 60 and told[kept].min() >= told[~kept].max()
    assert float(part.weight.sum()) == pytest.approx(1, abs=1e-5)
    f = scene.structure(torch.from_numpy(xyz).float()[None], torch.from_numpy(strand.weight).float())
    x, y, w = (f.abs()[0] ** 2 / scene.epsilon).numpy()[kept], scene.value.numpy()[kept], scene.weight.numpy()[kept]
    c = np.cov(x, y, aweights=w)
    there = part.structure(torch.from_numpy(xyz).float()[None], torch.from_numpy(strand.weight).float())
    assert float(part.correlation(there)[0]) == pytest.approx(c[0, 1] / np.sqrt(c[0, 0] * c[1, 1]), abs=1e-4)
    assert len(scene.outline(10**6).rows) == len(scene.rows)


@pytest.mark.parametrize("name", GROUPS)
def test_images_left_out_are_never_the_nearest(name, strand):
    data, _, _ = crystal(name, strand, np.eye(3), np.zeros(3))
    scene = scene_of(data)
    rng = np.random.default_rng(4)
    apart = rng.uniform(-0.5, 0.5, (2000, 3))

    def nearest(images: torch.Tensor) -> np.ndarray:
        every = (apart[:, None] + images.numpy()) @ np.array(data.cell.orth.mat).T
        return np.linalg.norm(every, axis=-1).min(1)

    assert np.allclose(nearest(scene.nearby), nearest(scene.images), atol=1e-3)
    right_angles = data.cell.alpha == data.cell.beta == data.cell.gamma == 90
    assert (len(scene.nearby) == 1) == (right_angles and not name.startswith(("C", "I")))


# --------------------------------------------------------------------------------------------------------- grow


def test_torsions_are_those_a_chain_was_built_with():
    pairs = [(-120.0, 130.0), (-65.0, -40.0), (-100.0, 120.0)]
    chain = pieces.of_peptide("chain", build("AAA", pairs, [()] * 3, [180.0, 175.0, -178.0]))
    found, omega = torsions(chain, chain.xyz)
    turn = (np.array(found).reshape(-1)[1:] - np.array(pairs).reshape(-1)[1:] + 180) % 360 - 180
    assert np.abs(turn).max() < 1.0  # the last psi is told by O, whose plane is not exact
    assert omega[1:] == pytest.approx([175.0, -178.0], abs=1e-6)


def test_longer_chains_keep_the_atoms_they_have(strand):
    moved = strand.xyz @ Rotation.from_rotvec([1, 2, 0.5]).as_matrix().T + [5, 6, 7]
    found = longer(strand, moved)
    assert len(found) == 2  # at either end
    for piece, every in found:
        assert len(piece) == 25 and every.shape[0] >= 4 and every.shape[1:] == (25, 3)
        assert set(piece.letters) == {"A"} and len(piece.letters) == 5
        for xyz in every:
            near = np.linalg.norm(xyz[:, None] - moved, axis=-1).min(0)
            assert np.sqrt(np.mean(near**2)) < 0.15


def test_superposition_is_exact_where_it_can_be():
    rng = np.random.default_rng(7)
    xyz = rng.normal(size=(9, 3))
    turn = Rotation.random(rng=rng)
    assert np.allclose(superposed(xyz, xyz[:5], turn.apply(xyz[:5]) + 3), turn.apply(xyz) + 3, atol=1e-6)


# -------------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("suffix", [".pdb", ".cif"])
def test_pieces_written_are_read_back(tmp_path, strand, suffix):
    chain = Chain(strand.names, strand.elements, strand.residue, strand.letters, strand.xyz + 20)
    path = tmp_path / f"placed{suffix}"
    cell = gemmi.UnitCell(30, 40, 50, 90, 95, 90)
    write_fragments(
        path, Fragments("two strands", 0.5, 0.4, (chain, chain), 0.42, 0.1), cell, gemmi.SpaceGroup("P 1 21 1")
    )
    structure = gemmi.read_structure(str(path))
    assert structure.spacegroup_hm == "P 1 21 1" and structure.cell.b == 40
    assert [r.name for r in structure[0][0]] == ["ALA"] * 4 and len(structure[0]) == 2
    back = read_piece(path)
    assert back.letters == "A" * 8 and back.names == strand.names * 2
    assert np.abs(back.xyz[:20] - chain.xyz).max() < 1e-3


def test_small_molecule_files_are_pieces_too(tmp_path):
    small = gemmi.SmallStructure()
    small.cell, small.spacegroup_hm = gemmi.UnitCell(7, 8, 9, 90, 100, 90), "P 1 21/c 1"
    for label, element, x, occ in (
        ("C1", "C", 0.1, 1.0), ("O2", "O", 0.3, 1.0), ("H1", "H", 0.2, 1.0), ("C3A", "C", 0.5, 0.6),
        ("C3B", "C", 0.6, 0.4),
    ):  # fmt: skip
        site = gemmi.SmallStructure.Site()
        site.label, site.element, site.fract, site.occ = (
            label,
            gemmi.Element(element),
            gemmi.Fractional(x, 0.2, 0.3),
            occ,
        )
        small.add_site(site)
    (tmp_path / "one.cif").write_text(small.make_cif_block().as_string())
    found = read_piece(tmp_path / "one.cif")
    assert found.names == ("C1", "O2", "C3A") and found.elements == ("C", "O", "C") and found.letters == "X"
    assert np.allclose(found.xyz[1], small.cell.orthogonalize(gemmi.Fractional(0.3, 0.2, 0.3)).tolist(), atol=1e-3)


def test_pieces_that_cannot_be_read(tmp_path):
    for name, text in (
        ("no.pdb", "HEADER    NOTHING\n"),
        ("no.cif", "data_x\n_cell.length_a 1\n"),
        ("bad.cif", "loop_\n"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(UserError):
            read_piece(tmp_path / name)


# ---------------------------------------------------------------------------------------------------- the whole


def test_a_strand_is_found_and_its_crystal_phased(strand):
    """The whole road on a crystal of one strand; the bundled network judges."""
    from pathlib import Path

    from ml_phaser.parameters import Options
    from ml_phaser.plan import plan_phasing

    turn = Rotation.random(rng=np.random.default_rng(8)).as_matrix()
    cell = gemmi.UnitCell(9.0, 9.4, 11.0, 90, 98, 90)
    data, f, _ = crystal("P 1 21 1", strand, turn, np.array([2.0, 3.0, 5.0]), cell=cell)
    options = Options(Path("a"), Path("b"), Path("c"), Path("d"), starts="fragments")
    plan = plan_phasing(data, normalise(data), options, pieces=(strand,))
    assert plan.road is not None and plan.road_rows is not None
    done = plan.road.travel(30.0, lambda share: None)
    best = done[0]
    rows = plan.road_rows
    cc = compare(data.hkl[rows], data.f[rows] * np.exp(1j * np.angle(best.f)), f[rows], cell, data.spacegroup).map_cc
    assert cc > 0.8 and best.lead > 0.1
    assert plan.road.ranked()[0].judged == max(m.judged for m in plan.road.models)
    assert abs(overlap(best.model.f, best.model.f) - 1) < 1e-6
