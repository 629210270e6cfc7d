"""What networks are trained on: splits without leaks, crystals without clashes, corruption as asked."""

import contextlib
import csv
import functools
import importlib.util
import io
import itertools
import lzma
import subprocess
import sys

import gemmi
import numpy as np
import pytest
from made_library import made_library, peptide_library

from ml_phaser.crystal.grid import HalfSphere
from ml_phaser.crystal.residues import ELEMENTS
from ml_phaser.errors import UserError
from ml_phaser.simulate import corrupt, fragments
from ml_phaser.simulate.batches import Recipe, batches, calculate_together, draw, make_sample, make_together
from ml_phaser.simulate.crystals import (
    FEWEST_ATOMS,
    MASK_SPACING,
    WET,
    dense_box,
    random_cell,
    solvent_factors,
    solvent_mask,
    wet_box,
    wrapped_distances,
)
from ml_phaser.simulate.families import make
from ml_phaser.simulate.fragments import Library, load_library
from ml_phaser.simulate.peptides import random_peptide
from ml_phaser.simulate.pools import Pool, fits, surroundings, whole
from ml_phaser.simulate.recipes import find_fragment


@pytest.fixture(scope="module")
def library():
    """Stand-in for proteins: three globules of peptides side by side, so that the tests need no data."""
    rng = np.random.default_rng(0)
    xyz, element, start = [], [], [0]
    for _ in range(3):
        chain, kinds = [], []
        for place in itertools.product(range(-2, 3), repeat=3):
            peptide = random_peptide(rng, "".join(rng.choice(list("AGSVLDKF"), 3)))
            chain.append(peptide.xyz - peptide.xyz.mean(axis=0) + np.array(place) * 7.5)
            kinds += [ELEMENTS.index(e) for e in peptide.elements]
        everything = np.concatenate(chain)
        apart = [
            i for i in range(len(everything))
            if not i or np.linalg.norm(everything[:i] - everything[i], axis=1).min() > 1.15
        ]  # fmt: skip
        xyz.append(everything[apart])
        element.append(np.array(kinds)[apart])
        start.append(start[-1] + len(apart))
    n = start[-1]
    return Library(
        np.concatenate(xyz).astype(np.float32), np.concatenate(element).astype(np.int8),
        rng.uniform(5, 40, n).astype(np.float32), np.array(start), np.array(["one", "two", "six"]),
        np.array([0, 0, 1]), "",
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------ crystals


def test_crystals_come_without_torch_until_it_is_needed():
    program = "import sys, ml_phaser.simulate.families; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "False\n"


@pytest.mark.parametrize("seed", range(4))
def test_boxes_have_no_contacts_across_images(library, seed):
    rng = np.random.default_rng(seed)
    cell = random_cell(rng, (24, 24, 24), (0.5, 0.66))
    contents = dense_box(rng, library, cell)
    assert len(contents.xyz) > 20
    orth = np.array(cell.orth.mat)
    shifts = np.array(list(itertools.product((-1, 0, 1), repeat=3)))
    difference = contents.xyz[:, None] - contents.xyz
    lengths = np.array([np.linalg.norm((difference + s) @ orth.T, axis=-1) for s in shifts])
    lengths[:, np.arange(len(contents.xyz)), np.arange(len(contents.xyz))] = np.inf
    # the box was moved by a random origin: bonded pairs may now be nearest through an image, so every pair must be
    # bonded (here as in the source, over 1.1 A) or farther than a clash; a pair is near one image only
    assert lengths.min() > 1.1
    near = np.sort(lengths, axis=0)
    assert (near[1] > 2.3).all()


def test_waters_keep_their_distance(library):
    from ml_phaser.simulate.crystals import _waters

    rng = np.random.default_rng(5)
    cell = gemmi.UnitCell(13, 14, 15, 80, 100, 95)
    frac = rng.random((20, 3))
    waters = _waters(rng, frac, cell, 0.9, np.inf)
    assert len(waters) > 10
    assert wrapped_distances(waters, frac, cell).min() > 2.6
    between = wrapped_distances(waters, waters, cell) + 9 * np.eye(len(waters))
    assert between.min() > 2.6
    near = wrapped_distances(_waters(rng, frac, cell, 0.9, 3.0), frac, cell).min(axis=1)
    assert len(near) and near.min() > 2.6 and near.max() <= 3.0


@pytest.mark.parametrize("seed", range(3))
def test_boxes_with_solvent(library, seed):
    rng = np.random.default_rng(seed)
    cell = random_cell(rng, (28, 28, 28), (0.5, 0.66))
    contents = wet_box(rng, library, cell)
    waters, rest = contents.xyz[contents.dry :], contents.xyz[: contents.dry]
    assert len(waters) and wrapped_distances(waters, rest, cell).min(axis=1).max() < 3.4 + 1e-6
    # the sum over the mask by hand, and what has no solvent has none of its scattering
    hkl = gemmi.make_miller_array(cell, gemmi.SpaceGroup("P 1"), 3.0)
    stol2 = np.asarray(cell.calculate_1_d2_array(hkl)) / 4
    k, b = contents.solvent.k_sol, contents.solvent.b_sol
    mask = solvent_mask(contents, MASK_SPACING)
    assert WET[0] - 0.02 < mask.mean() < WET[1] + 0.02
    points = np.stack(np.meshgrid(*[np.arange(n) / n for n in mask.shape], indexing="ij"), axis=-1)
    away = wrapped_distances(points.reshape(-1, 3), contents.xyz, cell).min(axis=1).reshape(mask.shape)
    assert (mask[away > 3.0] == 1).all() and (mask[away < 1.8] == 0).all()  # radii of 1.45 to 1.8 A, probe 1.1 less 0.7
    at = points[mask > 0]
    expected = k * np.exp(-b * stol2) * cell.volume / mask.size * np.exp(2j * np.pi * hkl @ at.T).sum(axis=1)
    assert np.allclose(solvent_factors(contents, hkl), expected, rtol=1e-5, atol=1e-4 * np.abs(expected).max())
    assert not solvent_factors(dense_box(rng, library, cell), hkl).any()


def test_a_cell_without_room_for_solvent_is_made_all_the_same():
    contents = wet_box(np.random.default_rng(0), made_library(), gemmi.UnitCell(9, 9, 9, 90, 90, 90))
    assert len(contents.xyz) >= FEWEST_ATOMS and solvent_mask(contents, 0.7).mean() < WET[0]


def test_true_structure_factors_have_solvent_in_them(library):
    wet = Recipe(families=(("wet", 1.0),), kinds=(("truth", 1.0),), noise=(0.0, 0.0))
    drawn = draw(np.random.default_rng(3), library, (24, 24, 24), wet)
    sample = make_sample(np.random.default_rng(3), library, (24, 24, 24), wet)
    (alone,) = calculate_together([(drawn, slice(None), drawn.contents.xyz)], "cpu")
    expected = alone + solvent_factors(drawn.contents, drawn.hkl)
    scale = np.sqrt(np.prod((24, 24, 24)) / (2 * np.sum(np.abs(expected) ** 2)))
    places = HalfSphere.of(drawn.hkl, (24, 24, 24))
    np.testing.assert_allclose(sample[0], places.scatter(expected * scale), atol=2e-3)
    assert not np.allclose(sample[0], places.scatter(alone * scale), atol=0.1)
    (together,) = make_together(np.random.default_rng(3), library, (24, 24, 24), wet, 1, "cpu")
    again = draw(np.random.default_rng(3).spawn(1)[0], library, (24, 24, 24), wet)
    f = calculate_together([(again, slice(None), again.contents.xyz)], "cpu")[0]
    f += solvent_factors(again.contents, again.hkl)
    ours = HalfSphere.of(again.hkl, (24, 24, 24)).scatter(f)
    assert np.corrcoef(np.abs(together[0]).ravel(), np.abs(ours).ravel())[0, 1] > 0.9999


def test_random_cells_fit_their_grid():
    rng = np.random.default_rng(3)
    cells = [random_cell(rng, (20, 24, 28), (0.5, 0.6)) for _ in range(200)]
    lengths = np.array([c.parameters[:3] for c in cells]) / (20, 24, 28)
    angles = np.array([c.parameters[3:] for c in cells])
    assert lengths.min() >= 0.5 and lengths.max() <= 0.6
    assert angles.min() >= 72 and angles.max() <= 108
    assert np.mean((angles != 90).any(axis=1)) == pytest.approx(0.4, abs=0.12)
    hexagonal = [sorted(random_cell(rng, (20, 24, 28), (0.5, 0.6), 1.0).parameters[3:]) for _ in range(9)]
    assert hexagonal == [[90, 90, 120]] * 9


def test_draws_give_every_cluster_its_turn(library):
    rng = np.random.default_rng(0)
    drawn = np.bincount([library.draw(rng) for _ in range(2000)], minlength=3) / 2000
    np.testing.assert_allclose(drawn, [0.25, 0.25, 0.5], atol=0.04)


# ------------------------------------------------------------------------------------------------- batches


def test_batches_are_what_the_projection_expects(library):
    batch = next(batches(library, 2, 7))
    again = next(batches(library, 2, 7))
    other = next(batches(library, 2, 8))
    assert np.array_equal(batch.truth, again.truth) and np.array_equal(batch.start, again.start)
    assert batch.truth.shape != other.truth.shape or not np.array_equal(batch.truth, other.truth)
    for maps in (batch.truth, batch.start_maps()):
        np.testing.assert_allclose(maps.mean(dim=(1, 2, 3)), 0, atol=1e-5)
        np.testing.assert_allclose(maps.pow(2).mean(dim=(1, 2, 3)), 1, rtol=2e-3)


def test_a_sample_has_measured_amplitudes_where_known_and_a_start_of_some_use(library):
    rng = np.random.default_rng(1)
    truth, start, amplitude, known, inside, to_e, most, model, d_min, steps, completeness, adrift = make_sample(
        rng, library, (24, 24, 24), Recipe(kinds=(("phase", 1.0),), quality=(0.5, 0.5))
    )
    spacing = np.linalg.norm(steps, axis=0)
    assert not model.any() and not adrift
    np.testing.assert_allclose(np.abs(start), amplitude, rtol=1e-4, atol=1e-5)
    assert not amplitude[~known].any()
    assert np.mean((amplitude * to_e)[known] ** 2) == pytest.approx(1, abs=0.1) and not to_e[~known].any()
    assert np.mean((amplitude[known] / most[known]) ** 2) == pytest.approx(1, abs=0.1) and (most[inside] > 0).all()
    assert not (known & ~inside).any() and not np.abs(truth[~inside]).any()
    assert 1.25 <= d_min <= 2.2 and 0.5 <= spacing.min() <= spacing.max() <= 0.66
    assert known.sum() / inside.sum() == pytest.approx(completeness, abs=0.02)
    use = known & (np.abs(truth) > 0)
    cosine = np.cos(np.angle(truth[use]) - np.angle(start[use]))
    assert cosine.mean() == pytest.approx(0.5, abs=0.06)


def test_truth_and_chance_are_kinds_of_start(library):
    def cosine(kind):
        recipe = Recipe(kinds=((kind, 1.0),))
        truth, start, *_, adrift = make_sample(np.random.default_rng(1), library, (24, 24, 24), recipe)
        use = (np.abs(truth) > 0) & (np.abs(start) > 0)
        assert adrift == (kind == "random")
        return np.cos(np.angle(truth[use]) - np.angle(start[use])).mean()

    assert cosine("truth") > 0.999
    assert cosine("random") == pytest.approx(0, abs=0.1)


def test_placed_models_are_shown_as_often_as_asked(library):
    """What is shown is the misplaced part: the start has its phases."""
    for shown in (0.0, 1.0):
        recipe = Recipe(kinds=(("partial", 1.0),), shown=shown)
        truth, start, _, known, *_, model, _, _, _, _ = make_sample(
            np.random.default_rng(1), library, (24, 24, 24), recipe
        )
        assert model.any() == bool(shown)
        if shown:
            strong = known & (np.abs(model) > np.median(np.abs(model[known])))
            np.testing.assert_allclose(np.cos(np.angle(start) - np.angle(model))[strong], 1, atol=1e-4)
            assert not np.allclose(model[strong] / truth[strong], 1, atol=0.1)


def test_what_a_model_gets_wrong_is_among_what_was_kept():
    rng = np.random.default_rng(0)
    xyz, kept, orth = rng.random((400, 3)), rng.random(400) < 0.5, np.diag([20.0, 30.0, 40.0])
    off = np.linalg.norm((corrupt.misplaced(rng, kept, xyz, orth, most=0.4) - xyz) @ orth.T, axis=1)
    assert not off[~kept].any()
    assert 0 < np.mean(off[kept] > 0) < 0.5
    assert 1.5 < off[off > 0].mean() < 3.5


def test_a_batch_at_once_has_the_structure_factors_of_one_by_one(library):
    rng = np.random.default_rng(4)
    drawn = [draw(rng, library, (20, 24, 28), Recipe(kinds=(("partial", 1.0),))) for _ in range(5)]
    jobs = [(d, slice(None), d.contents.xyz) for d in drawn] + [(d, *d.partial) for d in drawn]
    for (d, rows, xyz), f in zip(jobs, calculate_together(jobs, "cpu"), strict=True):
        c = d.contents
        weight = c.occupancy[rows] * np.exp(-d.stol2[:, None] * c.b[rows])
        factors = np.array(
            [[gemmi.Element(ELEMENTS[k]).it92.calculate_sf(float(s)) for k in range(4)] for s in d.stol2]
        )
        weight = weight * factors[:, c.element[rows]]
        expected = (weight * np.exp(2j * np.pi * (d.hkl @ xyz[rows].T))).sum(axis=1)
        np.testing.assert_allclose(f, expected, atol=2e-5 * np.abs(expected).max())
    one, same, other = (next(batches(library, 3, s, device="cpu")) for s in (5, 5, 6))
    assert np.array_equal(one.truth, same.truth) and one.truth.shape[0] == 3
    assert one.truth.shape != other.truth.shape or not np.array_equal(one.truth, other.truth)
    np.testing.assert_allclose(one.truth.pow(2).mean(dim=(1, 2, 3)), 1, rtol=2e-3)


@pytest.fixture(scope="module")
def packed():
    """A peptide crystal of oblique cell, and a library to make more of."""
    chains = peptide_library()
    return make("peptide", 3, chains, spacegroup="P21", residues=3, d_min=3.0, starts=1), chains


def test_whole_crystals_on_a_grid_are_the_crystal(packed):
    crystal, _ = packed
    a, b, c, *angles = crystal.cell.parameters
    for order in ((0, 1, 2), (1, 2, 0), (2, 0, 1)):
        contents = whole(np.random.default_rng(1), crystal, order)
        assert contents.cell.parameters[:3] == tuple((a, b, c)[k] for k in order)
        assert contents.cell.parameters[3:] == tuple(angles[k] for k in order)
        assert len(contents.xyz) == 2 * len(crystal.sites)
        hkl = np.array([[1, 2, 3], [2, 0, 1], [3, 1, 2], [1, 1, 0]])
        ops = [(np.array(op.rot) / 24, np.array(op.tran) / 24) for op in crystal.spacegroup.operations()]
        z_asu = np.array([gemmi.Element(e).atomic_number for e in crystal.sites.element])
        original = sum(np.exp(2j * np.pi * (crystal.sites.xyz @ r.T + t) @ hkl.T).T @ z_asu for r, t in ops)
        z = np.array([gemmi.Element(ELEMENTS[k]).atomic_number for k in contents.element])
        turned = np.exp(2j * np.pi * contents.xyz @ hkl[:, list(order)].T).T @ z
        np.testing.assert_allclose(np.abs(turned), np.abs(original), rtol=1e-9)
        # ... and a triplet, h1 + h2 = h3, whose phase no origin changes
        three = np.array([[1, 2, 3], [2, 0, 1], [3, 2, 4]])
        phases = [
            np.angle(np.exp(2j * np.pi * x @ h.T).T @ zz)
            for x, h, zz in (
                (contents.xyz, three[:, list(order)], z),
                (np.concatenate([crystal.sites.xyz @ r.T + t for r, t in ops]), three, np.tile(z_asu, 2)),
            )
        ]
        invariants = [p[0] + p[1] - p[2] for p in phases]
        assert np.cos(invariants[0] - invariants[1]) == pytest.approx(1)
    assert fits(crystal.cell, (500, 500, 500), (0.5, 0.66)) is None
    steps = tuple(round(x / 0.58) for x in (b, c, a))
    assert fits(crystal.cell, steps, (0.5, 0.66)) is not None


def test_pieces_of_crystals_hold_their_contacts(packed):
    crystal, _ = packed
    xyz, element, b = surroundings(np.random.default_rng(2), crystal)
    assert len(xyz) == len(element) == len(b)
    radius = np.linalg.norm(xyz, axis=1)
    assert radius.min() < 1e-9 and radius.max() < 20
    density = len(xyz) / (4 / 3 * np.pi * 20**3)
    assert density == pytest.approx(1 / crystal.volume_per_atom, rel=0.12)
    apart = np.linalg.norm(xyz[:400, None] - xyz[:400], axis=-1) + 9 * np.eye(min(400, len(xyz)))
    assert 1.1 < apart.min() < 1.6


def test_other_families_take_their_share(packed, library, monkeypatch):
    crystal, chains = packed
    monkeypatch.setattr("ml_phaser.simulate.pools.make", lambda family, seed, lib, **settings: crystal)
    monkeypatch.setattr("ml_phaser.simulate.pools.SIZE", 2)
    pools = {"peptide": Pool("peptide", chains, 1)}
    rng = np.random.default_rng(3)
    recipe = Recipe(families=(("box", 0.5), ("peptide", 0.5)))
    drawn = [draw(rng, library, (24, 24, 24), recipe, pools).contents.source for _ in range(40)]
    assert 10 <= sum(d == "peptide" for d in drawn) <= 30
    assert pools["peptide"].made >= 2 and max(pools["peptide"].uses) <= 40
    one, same = (next(batches(chains, 2, 9, Recipe(families=(("peptide", 1.0),)))) for _ in range(2))
    assert np.array_equal(one.truth, same.truth)


def test_small_crystals_are_of_one_to_six_residues_in_p1(packed):
    _, chains = packed
    pool = Pool("small", chains, 5)
    made = [pool._new() for _ in range(12)]
    residues = {len(set(c.sites.residue_index[~c.sites.water])) for c in made}
    assert {c.spacegroup.hm for c in made} == {"P 1"} and min(residues) <= 2 and max(residues) <= 6


# ------------------------------------------------------------------------------------------------ corruption


@pytest.fixture(scope="module")
def wilson():
    """Structure factors of a random structure: complex Gaussian, falling with resolution."""
    rng = np.random.default_rng(2)
    stol2 = np.sort(rng.uniform(0.0, 0.16, 20000) ** 1.0)
    f = (rng.normal(size=20000) + 1j * rng.normal(size=20000)) * np.exp(-8 * stol2)
    return f, stol2


@pytest.mark.parametrize("quality", [0.15, 0.5, 0.8, 0.95])
@pytest.mark.parametrize("kind", ["phase", "resolution", "additive"])
def test_noisy_phases_have_the_mean_cosine_asked_for(wilson, quality, kind):
    f, stol2 = wilson
    wrong = corrupt.noisy_phases(np.random.default_rng(3), f, stol2, quality, kind)
    np.testing.assert_allclose(np.abs(wrong), np.abs(f), rtol=1e-9)
    weight = np.abs(f) ** 2
    cosine = np.cos(np.angle(wrong) - np.angle(f))
    reached = np.sum(weight * cosine) / weight.sum()  # = map correlation, as amplitudes are kept
    assert reached == pytest.approx(quality, abs={"phase": 0.03, "resolution": 0.2, "additive": 0.15}[kind])


def test_noise_that_grows_with_resolution_and_noise_that_spares_the_strong(wilson):
    f, stol2 = wilson
    half = np.argsort(stol2)[: len(f) // 2]
    far = np.argsort(stol2)[len(f) // 2 :]
    strong, weak = np.abs(f) > np.quantile(np.abs(f), 0.8), np.abs(f) < np.quantile(np.abs(f), 0.2)

    def cosines(kind):
        wrong = corrupt.noisy_phases(np.random.default_rng(4), f, stol2, 0.5, kind)
        return np.cos(np.angle(wrong) - np.angle(f))

    c = cosines("resolution")
    assert c[half].mean() > c[far].mean() + 0.1
    c = cosines("additive")
    assert c[strong].mean() > c[weak].mean() + 0.2
    c = cosines("phase")
    assert c[strong].mean() == pytest.approx(c[weak].mean(), abs=0.06)


@pytest.mark.parametrize("mean_cos", [0.1, 0.3, 0.6, 0.9])
def test_concentration_against_bessel_functions(mean_cos):
    from scipy.special import i0e, i1e

    kappa = corrupt.concentration(mean_cos)
    assert i1e(kappa) / i0e(kappa) == pytest.approx(mean_cos, abs=0.03)


def test_amplitude_errors_are_as_large_as_asked(wilson):
    f, stol2 = wilson
    noisy = corrupt.noisy_amplitudes(np.random.default_rng(5), f, stol2, 0.05)
    assert (noisy >= 0).all()
    low, high = np.argsort(stol2)[:2000], np.argsort(stol2)[-2000:]
    for part in (low, high):
        error = np.sqrt(np.mean((noisy[part] - np.abs(f[part])) ** 2)) / np.sqrt(np.mean(np.abs(f[part]) ** 2))
        assert error == pytest.approx(np.hypot(0.05, 0.01), rel=0.1)
    assert np.array_equal(np.round(corrupt.noisy_amplitudes(np.random.default_rng(5), f, stol2, 0.0), 6).shape, f.shape)


def test_losses_stay_within_the_worst(wilson):
    _, stol2 = wilson
    rng = np.random.default_rng(6)
    kept = [corrupt.missing(rng, stol2) for _ in range(60)]
    share = np.array([k.mean() for k in kept])
    assert share.min() > 0.8 and share.max() == 1.0
    low = stol2 < (1 / 40) ** 2  # beyond 20 A
    gone = [not k[low].any() for k in kept]
    assert 5 < sum(gone) < 35


@pytest.mark.parametrize("fraction", [0.2, 0.6, 0.95])
def test_a_partial_structure_is_a_piece_a_little_misplaced(fraction):
    rng = np.random.default_rng(7)
    orth = np.array(gemmi.UnitCell(12, 13, 14, 80, 95, 101).orth.mat)
    xyz = rng.random((200, 3))
    kept, moved = corrupt.partial_structure(rng, xyz, orth, fraction)
    assert kept.sum() == round(fraction * 200)
    shift = np.linalg.norm((moved - xyz) @ orth.T, axis=1)
    assert 0 < shift.mean() < 1.0

    # in one piece: kept atoms lie nearer to one of them than those left out
    def nearness(i):
        difference = xyz - xyz[i]
        return np.linalg.norm((difference - np.round(difference)) @ orth.T, axis=1)

    assert any(nearness(i)[kept].max() <= nearness(i)[~kept].min() + 1e-9 for i in np.flatnonzero(kept))


def test_friedel_mates_share_a_place():
    hkl = np.array([[1, 2, 0], [0, 0, 1], [2, -1, 3]], dtype=np.int32)
    f = np.array([1 + 2j, 3 - 1j, 0.5j])
    places = HalfSphere.of(hkl, (8, 8, 8))
    np.testing.assert_allclose(places.gather(places.scatter(f), 3), f)


# ---------------------------------------------------------------------------- the coordinates themselves


SPLITS = ("train", "holdout", "crysformer", "validation")


@pytest.fixture(scope="module")
def coordinates(shared_data):
    """Folder, and the libraries, the pack decompressed once."""
    folder = shared_data / "coordinates"
    patch = pytest.MonkeyPatch()
    patch.setattr(fragments.lzma, "decompress", functools.cache(lzma.decompress))
    try:
        libraries = {split: load_library(folder, split) for split in SPLITS}
        pack = np.load(io.BytesIO(fragments.lzma.decompress((folder / "structures_pack.npz.xz").read_bytes())))
    finally:
        patch.undo()
    return folder, libraries, pack


def rows(path):
    with path.open(newline="") as f:
        return list(csv.DictReader(f))


@pytest.mark.shared
def test_splits_share_nothing(coordinates):
    folder, libraries, _ = coordinates
    train, holdout, validation = (set(libraries[s].entry.tolist()) for s in ("train", "holdout", "validation"))
    assert len(train) > 3000 and len(holdout) > 100 and len(validation) > 200
    assert not train & holdout and not validation & (train | holdout)
    clusters = {}
    for row in rows(folder / "chains.csv"):
        clusters.setdefault(row["entry"], set()).add(row["cluster30"])
    flags = {row["id"]: row for row in rows(folder / "index.csv")}
    for entry in train:
        for flag in ("holdout", "similar_to_measured_set", "crysformer_test", "antibody_set"):
            assert flags[entry][flag] != "1", (entry, flag)
    for entry in validation:
        for flag in ("holdout", "similar_to_measured_set", "crysformer_test"):
            assert flags[entry][flag] != "1", (entry, flag)
    for entry in holdout:
        assert flags[entry]["holdout"] == "1"


@pytest.mark.shared
def test_clusters_are_in_one_split_only(coordinates):
    folder, libraries, _ = coordinates
    by_chain = {}
    for row in rows(folder / "chains.csv"):
        by_chain.setdefault(row["entry"], []).append(row["cluster30"])
    # an entry of the training split may have chains left out: its own number of chains tells how many were taken
    taken = {}
    for split, library in libraries.items():
        counts = dict(zip(*np.unique(library.entry, return_counts=True), strict=True))
        taken[split] = {
            c for e, k in counts.items() if k == len(by_chain[str(e)]) for c in by_chain[str(e)]
        }  # whole entries
    assert len(taken["train"]) > 1000
    assert not taken["train"] & taken["holdout"]
    others = {c for s in ("train", "holdout", "crysformer") for c in taken[s]}
    assert len(taken["validation"]) > 150
    assert not taken["validation"] & others


def stretches(sequence, length=20):
    return {sequence[k : k + length] for k in range(len(sequence) - length + 1)}


def sequences(library):
    r = library.named
    letters = np.array(list(fragments.RESIDUES))
    return ["".join(letters[r.aa[a:b]]) for a, b in itertools.pairwise(r.start.tolist())]


@pytest.mark.shared
def test_no_training_chain_shares_twenty_residues_with_what_is_judged_on(coordinates):
    """Held-out entries, the published test fragments' entries, and the models of the measured sets; nor do those of the
    validation split, that what is fitted to it may be judged on the others."""
    folder, libraries, _ = coordinates
    runs = {split: set().union(*(stretches(s) for s in sequences(library))) for split, library in libraries.items()}
    trained = runs["train"] | runs["validation"]
    assert len(runs["train"]) > 500_000 and len(runs["validation"]) > 10_000
    assert not runs["train"] & runs["validation"]
    for split in ("holdout", "crysformer"):
        assert len(runs[split]) > 10_000
        assert not runs[split] & trained, split
    measured = 0
    for path in sorted((folder.parent / "diffraction").rglob("*.pdb*")):
        model = gemmi.read_structure(str(path))
        model.setup_entities()
        for chain in model[0]:
            sequence = gemmi.one_letter_code([r.name for r in chain.get_polymer()])
            measured += len(sequence) >= 20
            assert not stretches(sequence) & trained, path.name
    assert measured > 40


@pytest.mark.shared
def test_published_test_fragments_are_never_trained_on_and_can_be_made(coordinates):
    folder, libraries, _ = coordinates
    names = (folder / "crysformer_test_ids.txt").read_text().split()
    entries = {name[:4].lower() for name in names}
    assert not entries & set(libraries["train"].entry.tolist())
    assert len(entries & set(libraries["crysformer"].entry.tolist())) > 150
    made = 0
    for name in names:
        with contextlib.suppress(UserError):
            made += len(find_fragment(libraries["crysformer"], name, 15).sequence) == 15
    assert made > 0.8 * len(names)


@pytest.mark.shared
def test_compact_file_holds_everything_in_45_megabytes(coordinates, tmp_path):
    _, libraries, _ = coordinates
    library, path = libraries["holdout"], tmp_path / "some.npz"
    fragments.save_library(library, path, "holdout")
    again = load_library(path, "holdout")
    assert again.digest == library.digest
    assert sequences(again) == sequences(library)
    for i in (0, 5):
        a, b = library.fragment(i, 0), again.fragment(i, 0)
        assert a.names == b.names and a.source == b.source
        shift = a.xyz - b.xyz
        np.testing.assert_allclose(shift, np.broadcast_to(shift[0], shift.shape), atol=1e-3)
    assert np.array_equal(library.named.number, again.named.number)
    share = len(library.xyz) / len(libraries["train"].xyz)
    assert path.stat().st_size / share < 45e6  # the training core, at the same bytes an atom


@pytest.mark.shared
def test_decoded_coordinates_are_protein(coordinates):
    folder, libraries, pack = coordinates
    spec = importlib.util.spec_from_file_location("pack_reader", folder / "pack_reader.py")
    reader = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reader)
    reader.load = lambda path: pack
    library = libraries["holdout"]
    wanted = {str(e): i for i, e in enumerate(library.entry)}
    n_ca, ca_c, checked = [], [], 0
    for chain in reader.iter_chains(""):
        i = wanted.get(chain["entry"])
        if i is None or (library.entry == chain["entry"]).sum() != 1:
            continue
        xyz, element, b = library.chain(i)
        if len(xyz) != len(chain["xyz"]):
            continue
        np.testing.assert_allclose(xyz, chain["xyz"], atol=0.006)
        np.testing.assert_allclose(b, chain["b"])
        for residue, letter in enumerate(chain["seq"]):
            first, last = chain["atom_offset"][residue : residue + 2]
            mask = int(chain["mask"][residue])
            names = [name for k, name in enumerate(reader.ATOMS[letter]) if mask >> k & 1]
            assert [ELEMENTS[e] for e in element[first:last]] == [name[0] for name in names]
            if names[:3] == ["N", "CA", "C"]:
                n_ca.append(np.linalg.norm(xyz[first] - xyz[first + 1]))
                ca_c.append(np.linalg.norm(xyz[first + 1] - xyz[first + 2]))
        checked += 1
        if checked == 25:
            break
    assert checked >= 20
    assert np.median(n_ca) == pytest.approx(1.46, abs=0.01)
    assert np.median(ca_c) == pytest.approx(1.525, abs=0.01)


@pytest.mark.shared
def test_built_residues_match_deposited_ones(coordinates):
    """Distances over one and two bonds, and the handedness of every centre, against the median of real residues."""
    folder, _, pack = coordinates
    spec = importlib.util.spec_from_file_location("pack_reader", folder / "pack_reader.py")
    reader = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reader)
    reader.load = lambda path: pack
    letters = "ACDEFGHIKLMNPQRSTVWY"
    seen = {letter: [] for letter in letters}
    for chain in itertools.islice(reader.iter_chains(""), 0, 900, 6):
        for residue, letter in enumerate(chain["seq"][:-1]):
            first, last = chain["atom_offset"][residue : residue + 2]
            if last - first == len(reader.ATOMS[letter]):
                seen[letter].append(chain["xyz"][first:last])
    from ml_phaser.simulate.peptides import bond_steps

    peptide = random_peptide(np.random.default_rng(3), letters + "A")
    steps = bond_steps(peptide)
    for i, letter in enumerate(letters):
        at = {n: k for k, (n, r) in enumerate(zip(peptide.names, peptide.residue, strict=True)) if r == i}
        order = [at[name] for name in reader.ATOMS[letter]]
        real = np.array(seen[letter])
        assert len(real) > 100
        for a, b in itertools.combinations(range(len(order)), 2):
            if steps[order[a], order[b]] > 2:
                continue
            expected = np.median(np.linalg.norm(real[:, a] - real[:, b], axis=1))
            built = np.linalg.norm(peptide.xyz[order[a]] - peptide.xyz[order[b]])
            limit = 0.035 if steps[order[a], order[b]] == 1 else 0.07
            assert built == pytest.approx(expected, abs=limit), (
                letter,
                reader.ATOMS[letter][a],
                reader.ATOMS[letter][b],
            )
        for centre in range(len(order)):
            around = [k for k in range(len(order)) if steps[order[centre], order[k]] == 1]
            if len(around) < 3:
                continue
            volumes = np.linalg.det(real[:, around[:3]] - real[:, [centre]])
            if abs(np.median(volumes)) > 1.5:
                mine = np.linalg.det(peptide.xyz[[order[k] for k in around[:3]]] - peptide.xyz[order[centre]])
                assert mine == pytest.approx(np.median(volumes), abs=0.4), (letter, reader.ATOMS[letter][centre])
