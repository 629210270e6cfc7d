"""Free atoms: structure factors against gemmi, derivatives against differences, and structures that are found again."""

import gemmi
import numpy as np
import pytest
from resolved import Made, in_gemmi

from ml_phaser.crystal.agreement import compare
from ml_phaser.crystal.peaks import Atoms, Images
from ml_phaser.phasing.free_atoms import Moduli, Workshop, refine_atoms, usual


@pytest.mark.parametrize(
    ("group", "d_min", "error", "count"),
    [("P 1", 1.0, 1.0, 22), ("P 1", 1.4, 0.5, 22), ("P -1", 1.1, 0.9, 12), ("P 21 21 21", 1.2, 0.8, 8)],
)
def test_the_structure_comes_out_of_a_spoilt_map(group, d_min, error, count):
    """Every atom where it is and none else; reflections never seen are predicted; whatever the scale was."""
    edges = (8.0, 9.0, 10.0) if group == "P 21 21 21" else (7.0, 8.0, 9.0)
    made = Made(group, d_min, count, seed=4, edges=edges)
    refined = refine_atoms(made.moduli(scale=7.3), made.spoilt(error))
    there, false = made.found(refined)
    assert there == 1 and false == 0
    assert refined.r < 0.06
    assert made.held(refined.f) > 0.97
    assert compare(made.hkl, refined.f, made.f, made.cell, made.spacegroup).map_cc > 0.99


def test_the_same_seed_finds_the_same():
    made = Made(seed=6)
    phases = made.spoilt(1.0)
    first, again = (refine_atoms(made.moduli(), phases, seed=3) for _ in range(2))
    assert np.array_equal(first.f, again.f)


def test_what_was_left_out_and_completed_anew_is_better():
    """With phases too bad for the first refinement."""
    made = Made(count=20, d_min=1.2, seed=1)
    phases = made.spoilt(1.5)
    once, often = (refine_atoms(made.moduli(), phases, tries=tries) for tries in (0, 40))
    assert often.worth < 0.3 * once.worth
    assert made.held(often.f) > 0.97 > 0.5 > made.held(once.f)


def test_heavier_atoms_weigh_more():
    made = Made(extra=("S", "Cl"), seed=2, d_min=1.0)
    atoms = refine_atoms(made.moduli(), made.spoilt(0.7)).atoms
    apart = Images(made.cell, made.spacegroup).distances(made.frac, atoms.frac)
    weight = atoms.weight[apart.argmin(axis=1)]
    by_element = {e: np.mean([w for w, name in zip(weight, made.elements, strict=True) if name == e]) for e in "CNO"}
    assert by_element["C"] < by_element["N"] < by_element["O"] < weight[0] < weight[1]
    assert weight[0] == pytest.approx(16 / 7 * by_element["N"], rel=0.15)


def test_an_atom_in_an_inversion_centre_is_one_atom():
    made = Made("P -1", count=10, seed=3)
    made.frac[0] = (0.5, 0, 0.5)
    apart = np.linalg.norm(Images(made.cell, made.spacegroup).nearest(made.frac - made.frac[0]), axis=1)
    keep = np.flatnonzero((apart > 1.3) | (apart == 0))
    frac, elements, share = made.frac[keep], [made.elements[k] for k in keep], np.where(keep == 0, 0.5, 1.0)
    made.f = in_gemmi(made.cell, made.spacegroup, frac, elements, made.b[keep], made.hkl, share)
    made.amplitude = np.abs(made.f)
    refined = refine_atoms(made.moduli(), np.angle(made.f))
    here = np.linalg.norm(Images(made.cell, made.spacegroup).nearest(refined.atoms.frac - frac[0]), axis=1)
    assert refined.atoms.images[here.argmin()] == 2
    assert here.min() < 1e-6
    nitrogens = gemmi.Element(elements[0]).atomic_number / 7
    assert refined.atoms.weight[here.argmin()] / np.median(refined.atoms.weight) == pytest.approx(nitrogens, rel=0.3)
    assert refined.r < 0.06


def test_nothing_comes_of_nothing():
    """Random phases give atoms that predict nothing; a flat map none."""
    made = Made(count=40, d_min=1.2, edges=(10.0, 10.0, 11.0))
    phases = made.rng.uniform(-np.pi, np.pi, len(made.f))
    assert made.held(refine_atoms(made.moduli(), phases, tries=1).f) < 0.5
    none = Made(count=3)
    empty = Moduli(none.hkl, np.zeros(len(none.hkl)), none.used, none.cell, none.spacegroup, 6.0)
    refined = refine_atoms(empty, np.zeros(len(none.hkl)))
    assert len(refined.atoms) == 0
    assert not refined.f.any()


def test_a_few_heavy_atoms_and_many_false_ones_do_not_move_the_usual_weight():
    assert usual(np.array([11.0, *[1.0] * 47, *[0.5] * 60])) == 1.0
    assert usual(np.array([2.0])) == 2.0


@pytest.mark.parametrize("group", ["P 1 21 1", "C 1 2 1", "I 4"])
def test_a_nitrogen_has_a_peak_of_one(group):
    """Whatever the lattice's centring: images by it are not counted as more atoms in one place."""
    cell = gemmi.UnitCell(9, 9, 11, 90, 90, 90)
    spacegroup = gemmi.SpaceGroup(group)
    hkl = gemmi.make_miller_array(cell, spacegroup, 1.2)
    data = Moduli(hkl, np.ones(len(hkl)), np.ones(len(hkl), dtype=bool), cell, spacegroup, 6.0)
    shop = Workshop(data)
    atom = Atoms(np.array([[0.21, 0.33, 0.17]]), np.ones(1), np.array([6.0]), np.ones(1, dtype=np.int64))
    _, height = shop.mapper.peaks(shop.every.calculate(atom), 6.0, 0.3)
    assert height[0] == pytest.approx(1, abs=0.05)
