"""Peaks of maps and distances in crystals, against brute force."""

import gemmi
import numpy as np
import pytest

from ml_phaser.crystal.peaks import Images, peaks

SKEW = gemmi.UnitCell(8.0, 9.0, 10.0, 75, 110, 95)


def gaussians(cell, frac, heights, width, shape):
    """A periodic map of Gaussians (of ``width`` A), by summation over cells around."""
    grid = np.stack(np.meshgrid(*(np.arange(n) / n for n in shape), indexing="ij"), axis=-1)
    orth, rho = np.array(cell.orth.mat.tolist()), np.zeros(shape)
    for x, height in zip(frac, heights, strict=True):
        for shift in np.ndindex(3, 3, 3):
            d = (grid - x + np.array(shift) - 1) @ orth.T
            rho += height * np.exp(-(d**2).sum(-1) / (2 * width**2))
    return rho


def test_peaks_lie_where_the_atoms_are():
    rng = np.random.default_rng(2)
    frac = np.array([[0.02, 0.97, 0.5], [0.3, 0.4, 0.1], [0.7, 0.2, 0.8], [0.55, 0.75, 0.4]]) + 0.01 * rng.random(
        (4, 3)
    )
    heights = np.array([3.0, 1.0, 4.0, 2.0])
    x, height = peaks(gaussians(SKEW, frac, heights, 0.5, (32, 36, 40)), 0.5)
    order = np.argsort(-heights)
    assert len(x) == 4
    apart = np.array(SKEW.orth.mat.tolist()) @ ((x - frac[order] + 0.5) % 1 - 0.5).T
    assert np.linalg.norm(apart, axis=0).max() < 0.06  # a quarter of a grid step
    assert height == pytest.approx(heights[order], rel=0.02)
    assert (np.diff(height) < 0).all()
    fewer, _ = peaks(gaussians(SKEW, frac, heights, 0.5, (32, 36, 40)), 2.5)
    assert fewer == pytest.approx(x[:2])


@pytest.mark.parametrize("group", ["P 1", "P -1", "P 21 21 21", "C 1 2 1", "P 31"])
def test_distances_are_those_of_all_images(group):
    """Of every operator as gemmi applies it, and every lattice translation about."""
    spacegroup = gemmi.SpaceGroup(group)
    cell = {"P 1": SKEW, "P -1": SKEW, "C 1 2 1": gemmi.UnitCell(8, 9, 10, 90, 115, 90)}.get(
        group, gemmi.UnitCell(8, 8, 10, 90, 90, 120) if group == "P 31" else gemmi.UnitCell(8, 9, 10, 90, 90, 90)
    )
    images = Images(cell, spacegroup)
    rng = np.random.default_rng(1)
    a, b = rng.uniform(-1, 2, (6, 3)), rng.uniform(-1, 2, (5, 3))
    orth, shifts = np.array(cell.orth.mat.tolist()), np.array(list(np.ndindex(11, 11, 11))) - 5

    def oracle(x, y):
        there = np.array([op.apply_to_xyz(list(y)) for op in spacegroup.operations()])
        return np.linalg.norm((there[:, None] + shifts - x) @ orth.T, axis=-1).min()

    assert images.distances(a, b) == pytest.approx(np.array([[oracle(x, y) for y in b] for x in a]), abs=1e-6)


def test_the_nearest_image_of_a_very_skew_cell():
    """Where rounding the fractions does not find it."""
    cell = gemmi.UnitCell(10, 10, 10, 60, 60, 60)
    images = Images(cell, gemmi.SpaceGroup("P 1"))
    rng = np.random.default_rng(0)
    u = rng.uniform(-1, 1, (200, 3))
    orth = np.array(cell.orth.mat.tolist())
    shifts = np.array(list(np.ndindex(7, 7, 7))) - 3
    least = np.linalg.norm((u[:, None] + shifts) @ orth.T, axis=-1).min(axis=1)
    assert np.linalg.norm(images.nearest(u), axis=-1) == pytest.approx(least)
    rounded = np.linalg.norm((u - np.rint(u)) @ orth.T, axis=-1)
    assert (rounded > least + 0.5).any()


def test_the_higher_of_near_peaks_stays():
    images = Images(gemmi.UnitCell(10, 10, 10, 90, 90, 90), gemmi.SpaceGroup("P -1"))
    x = np.array([[0.1, 0.1, 0.1], [0.3, 0.3, 0.3], [0.15, 0.1, 0.1], [0.7, 0.7, 0.66], [0.5, 0.1, 0.1]])
    assert images.thin(x, 0.8).tolist() == [0, 1, 4]  # the third is near the first, the fourth near an image
    assert images.thin(x, 0.3).tolist() == [0, 1, 2, 3, 4]


def test_positions_near_an_inversion_centre_settle_in_it():
    images = Images(gemmi.UnitCell(10, 10, 10, 90, 90, 90), gemmi.SpaceGroup("P -1"))
    x = np.array([[0.51, 0.005, 0.99], [0.2, 0.3, 0.4]])
    settled, count = images.settle(x, 0.4)
    assert settled[0] % 1 == pytest.approx([0.5, 0, 0])
    assert settled[1] == pytest.approx(x[1])
    assert count.tolist() == [2, 1]


@pytest.mark.parametrize("near", [0.8, 3.0, 5.5])
@pytest.mark.parametrize("cell", [SKEW, gemmi.UnitCell(10, 10, 10, 60, 60, 60), gemmi.UnitCell(4, 5, 30, 90, 90, 90)])
def test_what_is_close_is_so_by_distance(cell, near):
    images = Images(cell, gemmi.SpaceGroup("P -1"))
    rng = np.random.default_rng(5)
    a, b = rng.uniform(-1, 2, (40, 3)), rng.uniform(-1, 2, (30, 3))
    close = images.close(a, b, near)
    assert close.any() and (close == (images.distances(a, b) < near)).all()


def test_a_rough_map_has_the_peaks_of_a_filter():
    from scipy.ndimage import maximum_filter

    rho = np.random.default_rng(0).normal(size=(9, 8, 12))
    x, _ = peaks(rho, 0.5)
    expected = np.argwhere((maximum_filter(rho, 3, mode="wrap") == rho) & (rho >= 0.5))
    here = np.rint(x * rho.shape).astype(int) % rho.shape
    assert len(x) == len(expected)
    near = np.abs((x[:, None] - expected / rho.shape + 0.5) % 1 - 0.5) * rho.shape
    assert (near.max(axis=2).min(axis=0) <= 0.5 + 1e-9).all() and len(np.unique(here, axis=0)) <= len(expected)


@pytest.mark.parametrize("near", [0.8, 6.0])
@pytest.mark.parametrize("group", ["P -1", "C 1 2 1"])
def test_a_tree_finds_the_same_pairs(group, near, monkeypatch):
    """Many positions go through a tree; in a cell with an edge of 4 A, so that images two cells away are near, too."""
    cell = SKEW if group == "P -1" else gemmi.UnitCell(4, 9, 30, 90, 100, 90)
    images = Images(cell, gemmi.SpaceGroup(group))
    rng = np.random.default_rng(6)
    a, b = rng.uniform(-1, 2, (50, 3)), rng.uniform(-1, 2, (40, 3))
    b[0] = a[0] + [1, -1, 0]  # no distance at all
    few = images.close(a, b, near)
    monkeypatch.setattr("ml_phaser.crystal.peaks.SEARCHED", 0)
    many = images.close(a, b, near)
    assert many[0, 0] and 0 < many.mean() < 1 and (many == few).all()
    assert (images.thin(a, near) == [i for i in range(50) if kept_before(few=images, x=a, i=i, near=near)]).all()


def kept_before(few, x, i, near):
    """Whether the greedy rule, said plainly, keeps position i."""
    kept = []
    for j in range(i + 1):
        if all(few.distances(x[k : k + 1], x[j : j + 1])[0, 0] >= near for k in kept):
            kept.append(j)
    return i in kept
