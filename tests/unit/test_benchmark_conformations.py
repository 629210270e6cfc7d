"""The commonest shapes of main chain: grouping, means and ideal chains, on chains whose torsions are known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from benchmarks import conformations as bench
from ml_phaser.phasing.fragments import pieces

HAIRPIN = pieces.HAIRPINS[8][2]


def main_chain(torsions: tuple[float, ...], seed: int = 0, noise: float = 0.0) -> np.ndarray:
    piece = pieces.shape(torsions, "x")
    rows = [i for i, name in enumerate(piece.names) if name != "CB"]
    rng = np.random.default_rng(seed)
    xyz = piece.xyz[rows] @ Rotation.random(rng=rng).as_matrix().T + rng.normal(size=3)
    return xyz + noise * rng.normal(size=xyz.shape)


def test_a_chain_is_fitted_to_where_its_atoms_are() -> None:
    found = bench.ideal(main_chain(HAIRPIN, noise=0.05))
    turn = (np.array(found) - HAIRPIN + 180) % 360 - 180
    assert np.abs(turn).max() < 15
    assert bench.rmsd(main_chain(tuple(found)), main_chain(HAIRPIN)[None])[0] < 0.1


def test_rmsd_forgets_place_and_orientation_but_not_the_hand() -> None:
    one, other = main_chain(HAIRPIN, 1), main_chain(HAIRPIN, 2)
    both = np.array([other - other.mean(0), (other - other.mean(0)) * [1, 1, -1]])
    found = bench.rmsd(one - one.mean(0), both)
    assert found[0] < 1e-3 and found[1] > 0.5


def test_centres_come_by_size_and_their_means_are_near_them() -> None:
    shapes = (HAIRPIN, pieces.HAIRPINS[8][1])
    many = [main_chain(shapes[i % 3 == 0], i, 0.05) for i in range(90)]
    xyz = np.array([x - x.mean(0) for x in many])
    found = bench.centres(xyz, bench.Kind(8, 0.5, 2, True))
    assert [round(share, 2) for _, share in found] == [pytest.approx(2 / 3, abs=0.01), 1.0]
    for (members, _), wanted in zip(found, shapes, strict=True):
        right = main_chain(wanted)
        assert (
            bench.rmsd(bench.middle(members) - bench.middle(members).mean(0), (right - right.mean(0))[None])[0] < 0.05
        )


@pytest.mark.parametrize(("torsions", "expected"), [(HAIRPIN, True), (pieces.SHAPES[6][0], False)])
def test_hairpins_are_told_by_their_ends(torsions: tuple[float, ...], expected: bool) -> None:
    xyz = main_chain(torsions).astype(np.float32)
    rows = [[4 * i + k for k in range(4)] for i in range(len(xyz) // 4)]
    assert bench.pinned(xyz, rows) is expected
    assert bench.pinned(xyz, [*rows[:-1], []]) is False
