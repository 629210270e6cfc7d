"""The symmetry origin of P1 phases, against crystals summed by brute force."""

from __future__ import annotations

import gemmi
import numpy as np
import pytest
from crystals import CELLS, crystal

from ml_phaser.crystal.agreement import compare
from ml_phaser.crystal.symmetry import expand
from ml_phaser.phasing.place import about_hand, find_origins, hand_is_fixed, place


@pytest.mark.parametrize("name", [n for n in CELLS if n != "P 1"])
def test_a_shifted_crystal_finds_home(name: str) -> None:
    c = crystal(name, atoms=5, d_min=1.2, seed=3)
    expansion = expand(c.hkl, c.spacegroup)
    lost = expansion.spread(c.f) * np.exp(2j * np.pi * (expansion.hkl @ np.array([0.137, 0.291, 0.418])))
    home = place(lost, expansion, len(c.hkl), c.cell, c.spacegroup)[0]
    assert home.symmetry > 0.999
    agreement = compare(c.hkl, home.f, c.f, c.cell, c.spacegroup, hands=False, repeats=0)
    assert agreement.map_cc > 0.999
    assert np.abs(home.f) == pytest.approx(np.abs(c.f), abs=1e-3 * np.abs(c.f).max())


def test_random_phases_do_not_obey_a_group() -> None:
    c = crystal("P 21 21 21", atoms=8, d_min=1.0)
    expansion = expand(c.hkl, c.spacegroup)
    noise = np.exp(2j * np.pi * np.random.default_rng(0).random(len(expansion.hkl)))
    _, symmetry = find_origins(expansion.hkl, np.abs(expansion.spread(c.f)) * noise, c.cell, c.spacegroup)[0]
    assert symmetry < 0.25


def test_p1_has_nothing_to_test() -> None:
    c = crystal("P 1")
    expansion = expand(c.hkl, c.spacegroup)
    home = place(expansion.spread(c.f), expansion, len(c.hkl), c.cell, c.spacegroup)[0]
    assert np.isnan(home.symmetry)
    assert home.f == pytest.approx(c.f)


def test_the_mirror_image_fails_an_enantiomorphic_group() -> None:
    c = crystal("P 41", atoms=8, d_min=1.1)
    expansion = expand(c.hkl, c.spacegroup)
    right, wrong = (place(f, expansion, len(c.hkl), c.cell, c.spacegroup)[0] for f in
                    (expansion.spread(c.f), np.conj(expansion.spread(c.f))))  # fmt: skip
    assert right.symmetry > 0.999 > 0.7 > wrong.symmetry
    assert hand_is_fixed(c.spacegroup)
    assert not hand_is_fixed(crystal("P 21 21 21").spacegroup)


def test_rival_origins_are_not_equivalent_to_each_other() -> None:
    # Two copies half a cell apart, slightly different: the false origin agrees almost as well.
    c = crystal("P 1 21/c 1", atoms=4, d_min=1.0, seed=5)
    h = c.hkl
    pseudo = c.f * (1 + 0.85 * np.exp(1j * np.pi * h[:, 0]))
    expansion = expand(h, c.spacegroup)
    found = find_origins(expansion.hkl, expansion.spread(pseudo), c.cell, c.spacegroup, most=4)
    assert 1 < len(found) <= 4
    assert found[0][1] >= found[-1][1]
    homes = [expansion.average(expansion.spread(pseudo) * np.exp(2j * np.pi * (expansion.hkl @ x)), len(h))
             for x, _ in found]  # fmt: skip
    ccs = [compare(h, f, pseudo, c.cell, c.spacegroup, hands=False, repeats=0).map_cc for f in homes]
    assert ccs[0] > 0.99 > max(ccs[1:])


@pytest.mark.parametrize(
    ("name", "word"),
    [("P -1", "none"), ("P c", "both"), ("P 41", "told by the space group"), ("P 1 21 1", "not determined")],
)
def test_the_hand_is_not_guessed(name: str, word: str) -> None:
    assert about_hand(gemmi.SpaceGroup(name)).startswith(word)


def test_there_is_always_an_origin() -> None:
    """Also for phases that are not numbers, or too few to agree with anything."""
    c = crystal("P 21 21 21", atoms=4, d_min=1.0)
    expansion = expand(c.hkl, c.spacegroup)
    lost = np.full(len(expansion.hkl), np.nan + 0j)
    (shift, symmetry), *rest = find_origins(expansion.hkl, lost, c.cell, c.spacegroup, 4)
    assert not rest and symmetry == 0 and np.isfinite(shift).all()
    few = expand(c.hkl[:3], c.spacegroup)
    for seed in range(30):
        f = np.exp(2j * np.pi * np.random.default_rng(seed).random(len(few.hkl)))
        assert find_origins(few.hkl, f, c.cell, c.spacegroup, 4)
