"""Small molecules whole: jumps keep their geometry, places are the best, the search ends at the truth."""

import dataclasses
import itertools
from pathlib import Path

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
from ml_phaser.outcome import Chain
from ml_phaser.parameters import Options
from ml_phaser.phasing.fragments import pieces, road
from ml_phaser.phasing.fragments.molecules import Wander, conformers
from ml_phaser.phasing.fragments.pieces import of_user, whole
from ml_phaser.phasing.fragments.refine import Fitted
from ml_phaser.phasing.fragments.scene import Scene
from ml_phaser.plan import plan_phasing

CELL = gemmi.UnitCell(5.6, 9.2, 10.4, 90, 97, 90)
GROUP = gemmi.SpaceGroup("P 1 21 1")


def truth(sequence="GS"):
    """A molecule in a shape that is none of those it is begun with, somewhere in the cell."""
    peptide = build(sequence, [(-105.0, 112.0), (-75.0, -20.0)], [(), (75.0,)], [180.0, 176.0])
    turn = Rotation.from_euler("xyz", [20, 70, 130], degrees=True)
    return peptide, turn.apply(peptide.xyz - peptide.xyz.mean(0)) + np.array([2.0, 3.1, 4.2])


def crystal(d_min=1.4):
    """Data of ``truth``: point scatterers with a B of 8 A^2, by direct summation; true F."""
    peptide, xyz = truth()
    hkl = gemmi.make_miller_array(CELL, GROUP, d_min)
    hkl = hkl[~np.asarray(GROUP.operations().systematic_absences(hkl), dtype=bool)]
    z = np.array([gemmi.Element(e).atomic_number for e in peptide.elements])
    f = np.zeros(len(hkl), dtype=complex)
    for op in GROUP.operations():
        x = np.array([op.apply_to_xyz(CELL.fractionalize(gemmi.Position(*a)).tolist()) for a in xyz])
        f += np.exp(2j * np.pi * hkl @ x.T) @ z
    f *= np.exp(-2 * np.asarray(CELL.calculate_1_d2_array(hkl)))
    source = Source("made", "test", {}, "amplitude")
    return Amplitudes(hkl.astype(np.int32), np.abs(f), 0.01 * np.abs(f), CELL, GROUP, source), f


@pytest.fixture(scope="module")
def scene():
    data, _ = crystal()
    return Scene.of(data, normalise(data), np.arange(len(data)))


@pytest.fixture
def search(scene):
    return Wander.of(scene, GROUP, whole("GS"), 0)


def bonds_and_angles(xyz, bonds):
    """Lengths and 1-3 distances: what no turn about a bond changes."""
    near = {frozenset(b) for b in bonds.tolist()}
    far = {frozenset((a, c)) for x, y in itertools.combinations(near, 2) if len(x & y) == 1 for a, c in [x ^ y]}
    pairs = np.array([sorted(p) for p in (*near, *far)])
    return np.linalg.norm(xyz[..., pairs[:, 0], :] - xyz[..., pairs[:, 1], :], axis=-1)


def test_which_molecules_are_looked_for_whole():
    (one,) = pieces.molecules([], ["GS"], 11)
    assert one.label == "the molecule GS" and "OXT" in one.names and not one.grows
    assert len(one) == 11 and len(one.hinges) == len(build("GS", [(0, 0)] * 2, [(), (60,)], [180.0] * 2).hinges)
    assert pieces.molecules([], ["GS"], 40) == []  # there is more in the crystal
    assert pieces.molecules([], ["GS", "GS"], 22) == []
    assert pieces.molecules([], ["MVGGVVSS"], 60) == []  # too many bonds that turn
    assert pieces.molecules([], ["GX"], 11) == [] and pieces.molecules([], ["G"], 5) == []


def test_conformers_are_peptides_of_many_shapes():
    some, again = (conformers(whole("RS"), 30, np.random.default_rng(1)) for _ in range(2))
    assert np.array_equal(some, again)
    bonds = build("RS", [(0, 0)] * 2, [(0,) * 4, (60,)], [180.0] * 2).bonds
    lengths = bonds_and_angles(some, bonds)
    assert np.allclose(lengths, lengths[0], atol=1e-6)
    ends = np.linalg.norm(some[:, 0] - some[:, -1], axis=1)
    assert np.ptp(ends) > 2 and np.allclose(some.mean(1), 0, atol=1e-9)


def user_chain():
    """``truth`` as a user's file would give it, in another shape."""
    peptide = build("GS", [(-60.0, -40.0), (-120.0, 150.0)], [(), (-60.0,)], [180.0, 176.0])
    return Chain(peptide.names, peptide.elements, peptide.residue, "GS", peptide.xyz)


def test_the_users_molecule_goes_before_the_sequence():
    mine = of_user("mine", user_chain())
    assert mine.given and not mine.grows and 0 < len(mine.hinges) <= pieces.MOST_HINGES
    assert pieces.molecules([mine], ["GS"], 11) == [mine]
    assert pieces.molecules([mine], [], 30) == []
    rigid = of_user("ring", Chain(("A", "B"), ("C", "C"), np.zeros(2, int), "X", np.array([[0.0, 0, 0], [1.5, 0, 0]])))
    assert rigid.hinges == () and pieces.molecules([rigid], [], 2) == []
    long = build("K" * 6, [(-120.0, 130.0)] * 6, [(-65.0, 180.0, 180.0, 180.0)] * 6, [180.0] * 6)
    assert of_user("long", Chain(long.names, long.elements, long.residue, "K" * 6, long.xyz)).hinges == ()


def test_shapes_of_the_users_molecule_keep_its_rings_and_bonds():
    mine = of_user("mine", user_chain())
    some = conformers(mine, 20, np.random.default_rng(2))
    bonds = build("GS", [(0, 0)] * 2, [(), (60,)], [180.0] * 2).bonds
    assert np.allclose(bonds_and_angles(some, bonds), bonds_and_angles(mine.xyz, bonds), atol=1e-6)
    assert np.ptp(np.linalg.norm(some[:, 0] - some[:, -1], axis=1)) > 1


@pytest.mark.parametrize("known", ["sequence", "molecule"])
def test_the_road_looks_for_the_molecule_first(known, monkeypatch):
    """Through the plan: what is found is a model like others, judged and ranked."""
    data, _ = crystal()
    options = Options(*(Path(name) for name in "abcd"), starts="auto", threads=1)
    mine = (of_user("mine", user_chain()),) if known == "molecule" else ()
    plan = plan_phasing(data, normalise(data), options, pieces=mine, sequences=("GS",))
    xyz = torch.from_numpy(truth()[1]).float()[None]
    middle = xyz.mean(1)
    found = Fitted(xyz - middle[:, None], middle @ plan.road.scene.frac.T, torch.zeros(1))
    seen = []
    monkeypatch.setattr(road, "CLASH_DRESSED", 0.5)  # this crystal is no real one
    monkeypatch.setattr(Wander, "run", lambda search, stop: seen.append(search.molecule) or found)
    plan.road.travel(1.0, lambda share: None)
    assert len(seen) == 1 and seen[0].given == bool(mine)
    best = plan.road.ranked()[0]
    assert best.label == ("mine" if mine else "the molecule GS") and best.fit > 0.9
    assert np.sqrt(((best.bodies[0].xyz.numpy() - xyz[0].numpy()) ** 2).sum(1).mean()) < 0.2


def test_jumps_turn_bonds_and_nothing_else(search):
    bonds = build("GS", [(0, 0)] * 2, [(), (60,)], [180.0] * 2).bonds
    start = search.anew(48)
    xyz, shift = search.jumped(start)
    before, after = (bonds_and_angles(x.double().numpy(), bonds) for x in (start.xyz, xyz))
    assert np.allclose(before, after, atol=1e-4)
    assert torch.allclose(xyz.mean(1), torch.zeros(48, 3), atol=1e-4)
    assert len(shift) == 48 and not torch.allclose(xyz, start.xyz, atol=0.1)
    still = (search.turned(start.xyz) - start.xyz).norm(dim=-1) < 1e-4  # either side stays in place, now and then
    assert still[:, 0].any() and still[:, -1].any() and not (still[:, 0] & still[:, -1]).all()


def test_the_best_place_is_that_of_the_truth(search):
    _, xyz = truth()
    here = torch.from_numpy(np.stack([xyz - xyz.mean(0), xyz - xyz.mean(0) + 1.0])).float()
    shift, score = search.placed(here)
    climbed = search.climbed(here, shift)
    weight = torch.from_numpy(search.molecule.weight).float()
    own = search.scene.correlation(search.scene.structure(torch.from_numpy(xyz).float()[None], weight))
    assert float(climbed.score.min()) > float(own) - 0.02 and float(score.min()) > 0.5
    there = (here.mean(1) + shift @ search.scene.orth.T).numpy() - xyz.mean(0)
    # the origin is free along b, and may lie on any of four screw axes
    cells = there @ np.array(CELL.frac.mat).T * 2
    assert np.abs((cells - cells.round())[:, [0, 2]]).max() < 0.25


def test_a_molecule_is_found_from_nothing(search, scene):
    data, f = crystal()
    rounds = iter(range(100))  # of seeds 0 to 11, none took more than 52 to end by itself
    found = search.run(lambda: next(rounds, None) is None)
    assert next(rounds, None) is not None  # it knew that it was there
    best = int(found.score.argmax())
    assert float(found.score[best]) > 0.9 and float(found.score.median()) < 0.8
    weight = torch.from_numpy(search.molecule.weight).float()
    g = scene.total(scene.parts(found.xyz[best][None], weight), found.shift[best][None])[0].numpy()
    phased = np.abs(f) * np.exp(1j * np.angle(g))
    assert compare(data.hkl, phased, f, CELL, GROUP, hands=False, repeats=0).map_cc > 0.95


def test_the_same_seed_takes_the_same_way(scene):
    ends = [Wander.of(scene, GROUP, whole("GS"), seed).run(iter([False, True]).__next__) for seed in (5, 5, 6)]
    assert torch.equal(ends[0].xyz, ends[1].xyz) and not torch.equal(ends[0].xyz, ends[2].xyz)


def test_where_nothing_is_small_enough_nothing_is_begun_with():
    """Room for twelve atoms: no piece of three residues; a sequence of two is a molecule."""
    cell = gemmi.UnitCell(5.0, 8.0, 10.4, 90, 97, 90)
    hkl = gemmi.make_miller_array(cell, GROUP, 1.4)
    hkl = hkl[~np.asarray(GROUP.operations().systematic_absences(hkl), dtype=bool)]
    f = np.random.default_rng(0).rayleigh(10, len(hkl))
    data = Amplitudes(hkl.astype(np.int32), f, 0.05 * f, cell, GROUP, Source("made", "test", {}, "amplitude"))
    auto = Options(*(Path(name) for name in "abcd"), threads=1)
    assert pieces.library((), 11) == [] and plan_phasing(data, normalise(data), auto).road is None
    with pytest.raises(UserError, match="none is small enough for the 11 atoms"):
        plan_phasing(data, normalise(data), dataclasses.replace(auto, starts="fragments"))
    known = plan_phasing(data, normalise(data), dataclasses.replace(auto, starts="fragments"), sequences=("GS",))
    assert known.road is not None and known.road.sequences == ("GS",)
