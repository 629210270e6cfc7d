"""Side chains of a sequence on placed chains, and phases of piece and map combined by sigmaA."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import gemmi
import numpy as np
import pytest
import scipy.special
import torch
from crystals import crystal
from scipy.spatial.transform import Rotation
from test_fragment_road import Stand, judge_of, made, model_of, packed, road_of

from ml_phaser.crystal.amino_acids import THREE_LETTERS, side_chain
from ml_phaser.crystal.normalise import normalise
from ml_phaser.crystal.peptide import build
from ml_phaser.crystal.rotamers import ROTAMERS, likely
from ml_phaser.exchange.fragments import write_fragments
from ml_phaser.parameters import Options
from ml_phaser.phasing.fragments import pieces, road
from ml_phaser.phasing.fragments.chain import MAIN, rebuilt, side_torsions, torsions
from ml_phaser.phasing.fragments.dress import dress, registers
from ml_phaser.phasing.fragments.grow import MOST, NEXT, longer
from ml_phaser.phasing.fragments.judge import Judge
from ml_phaser.phasing.fragments.models import Body
from ml_phaser.phasing.fragments.solutions import fragments
from ml_phaser.phasing.weighting import PER_SHELL, Weighting
from ml_phaser.plan import plan_phasing

SEQUENCE = "LVHSSN"
STRAND = (-120.0, 130.0)
FAR = float("inf")


def turned(a: float, b: float) -> float:
    """Degrees between two torsions."""
    return abs((a - b + 180) % 360 - 180)


def peptide(letters: str, chis: list[tuple[float, ...]]) -> pieces.Piece:
    return pieces.of_peptide("true", build(letters, [STRAND] * len(letters), chis, [180.0] * len(letters)))


def alanines(of: pieces.Piece, xyz: np.ndarray, first: int, count: int) -> tuple[pieces.Piece, np.ndarray]:
    """The main chain and CB of a stretch of a chain, as a placed strand of alanine."""
    part = np.isin(of.names, [*MAIN, "CB"]) & (of.residue >= first) & (of.residue < first + count)
    strand = pieces.polyalanine(count, STRAND, f"strand of {count}")
    order = {(int(r), n): i for i, (r, n) in enumerate(zip(of.residue - first, of.names, strict=True))}
    rows = [order[int(r), n] for r, n in zip(strand.residue, strand.names, strict=True)]
    assert part[rows].all()
    return strand, xyz[rows]


# ---------------------------------------------------------------------------------------------------- rotamers


def test_rotamers_have_the_torsions_of_their_side_chain() -> None:
    assert set(ROTAMERS) == set(THREE_LETTERS)
    for letter, rows in ROTAMERS.items():
        wanted = len({row[6] for row in side_chain(letter) if row[6]})
        assert {len(chis) for chis in likely(letter)} == {wanted}
        share = [row[0] for row in rows]
        assert share == sorted(share, reverse=True) and 55 <= sum(share) <= 102
        for i, one in enumerate(rows):
            assert all(max(map(turned, one[1:], two[1:])) > 25 for two in rows[:i])


@pytest.mark.parametrize("letters", ["LVHSSN", "WKRME", "YDPETG", "FQICA"])
def test_side_chains_are_measured_as_they_were_built(letters: str) -> None:
    chis = [likely(letter)[-1] for letter in letters]
    piece = peptide(letters, chis)
    found = side_torsions(piece, piece.xyz)
    for letter, built, measured in zip(letters, chis, found, strict=True):
        assert len(measured) == len(built), letter
        assert all(turned(a, b) < 0.1 for a, b in zip(built, measured, strict=True)), letter


def test_a_chain_is_rebuilt_where_it_was() -> None:
    strand = pieces.polyalanine(4, STRAND, "strand of 4, -120 130")
    xyz = strand.xyz @ Rotation.from_rotvec([1.0, 2.0, 0.5]).as_matrix().T + [5.0, 6.0, 7.0]
    chis = [likely(letter)[0] for letter in SEQUENCE[1:5]]
    new, there = rebuilt(strand, xyz, SEQUENCE, 1, chis)
    assert (new.letters, new.sequence, new.first) == ("VHSS", SEQUENCE, 1) and new.label == "strand of 4, VHSS 2-5"
    assert new.grows
    at = {(int(r), n): x for r, n, x in zip(new.residue, new.names, there, strict=True)}
    for r, n, x in zip(strand.residue, strand.names, xyz, strict=True):
        assert np.linalg.norm(at[int(r), n] - x) < 0.2
    assert all(
        turned(*pair) < 2 for pair in zip(np.ravel(torsions(new, there)[0])[1:-1], [*STRAND * 4][1:-1], strict=True)
    )


# ------------------------------------------------------------------------------------------------------- dress


def test_places_in_the_sequence() -> None:
    strand = pieces.polyalanine(3, STRAND, "strand")
    assert registers(strand, strand.xyz, ["LVHSS", "LVHSS"]) == [("LVHSS", 0), ("LVHSS", 1), ("LVHSS", 2)]
    assert registers(strand, strand.xyz, ["LVXSS", "NQ"]) == []
    # phi of -120 is nothing for proline, but at the beginning of the chain, where there is none
    assert registers(strand, strand.xyz, ["PVPSSA"]) == [("PVPSSA", 2), ("PVPSSA", 3)]
    spiral = pieces.polyalanine(3, (-65.0, 140.0), "PPII")
    assert len(registers(spiral, spiral.xyz, ["PVPSSA"])) == 4


@pytest.fixture(scope="module")
def truth() -> tuple[pieces.Piece, np.ndarray, road.Road, np.ndarray]:
    """A crystal of LVHSSN, none of whose rotamers is the commonest: piece, atoms, road, structure factors."""
    true = peptide(SEQUENCE, [likely(letter)[1] for letter in SEQUENCE])
    cell = gemmi.UnitCell(17.0, 13.0, 21.0, 90, 98, 90)
    _, xyz = packed(road_of(made([true.xyz], true.weight, cell)[0], [true], 60), true, (), 1)
    data, f = made([xyz], true.weight, cell, d_min=1.5)
    return true, xyz, road_of(data, [true], 60), f


def test_side_chains_are_found_in_the_density(truth) -> None:
    true, xyz, way, f = truth
    strand, there = alanines(true, xyz, 1, 4)
    found = dress(
        way.scene, strand, there, [SEQUENCE], 3, way.phased(f), None, lambda x: torch.full((len(x),), FAR), 1.6
    )
    best, second, third = found
    assert (best.piece.letters, best.piece.first) == ("VHSS", 1) and best.fit > second.fit + 0.05 > third.fit
    chis = side_torsions(best.piece, best.xyz)
    for letter, measured in zip("VHSS", chis, strict=True):
        assert all(turned(a, b) < 5 for a, b in zip(likely(letter)[1], measured, strict=True)), letter
    assert best.fit == pytest.approx(
        float(way.scene.overlap(
            way.scene.structure(torch.from_numpy(best.xyz).float()[None], torch.from_numpy(best.piece.weight).float()),
            way.phased(f),
        )), abs=1e-3)  # fmt: skip
    assert (
        len(dress(way.scene, strand, there, [SEQUENCE], 1, way.phased(f), None, lambda x: torch.ones(len(x)), 1.6)) == 1
    )


def test_rotamers_that_clash_are_left_out_if_others_do_not(truth) -> None:
    true, xyz, way, f = truth
    strand, there = alanines(true, xyz, 1, 4)
    row = list(zip(true.residue.tolist(), true.names, strict=True)).index((2, "NE2"))
    ring = torch.from_numpy(xyz[row]).float()

    def contact(atoms: torch.Tensor) -> torch.Tensor:
        return (atoms - ring).norm(dim=-1).amin(-1)  # something stands where the ring of His 3 is

    best = dress(way.scene, strand, there, [SEQUENCE], 1, way.phased(f), None, contact, 1.6)[0]
    ours = [x for r, n, x in zip(best.piece.residue, best.piece.names, best.xyz, strict=True) if (r, n) == (1, "NE2")]
    assert np.linalg.norm(ours[0] - xyz[row]) > 1.6


def test_a_model_is_dressed_where_the_judge_approves(truth, monkeypatch, tmp_path) -> None:
    true, xyz, way, _ = truth
    strand, there = alanines(true, xyz, 1, 4)
    way = replace(way, sequences=(SEQUENCE,), models=[])
    start = model_of(way, strand, there)
    with monkeypatch.context() as patch:  # the density of the truth
        patch.setattr(Judge, "complete", lambda self, f, cycles: (truth[3], 0.0, 0.0))
        way.dress(start, lambda: False)
    best = way.ranked()[0]
    assert best.bodies[0].piece.letters == "VHSS" and best.judged > start.judged and best.atoms > start.atoms
    way.models = []
    way.dress(start, lambda: True)  # no time
    assert way.models == []
    placed = fragments(way.completed(best))
    assert placed.chains[0].letters == "VHSS" and placed.chains[0].first == 2
    write_fragments(tmp_path / "placed.pdb", placed, way.judge.problem.cell, way.spacegroup)
    written = gemmi.read_structure(str(tmp_path / "placed.pdb"))[0][0]
    assert [(r.name, r.seqid.num) for r in written] == [("VAL", 2), ("HIS", 3), ("SER", 4), ("SER", 5)]


def test_chains_grow_along_the_sequence() -> None:
    piece = replace(peptide("VHSS", [likely(letter)[1] for letter in "VHSS"]), sequence=SEQUENCE, first=1)
    found = longer(piece, piece.xyz + 5)
    assert [(p.letters, p.first) for p, _ in found] == [("VHSSN", 1), ("LVHSS", 0)]
    for new, every in found:
        assert every.shape == (
            len(NEXT) * min(MOST, len(likely(new.letters[0 if new.first == 0 else -1]))),
            len(new),
            3,
        )
        old = slice(0, 4) if new.first else slice(1, 5)
        for xyz in every:
            for letter, measured in zip("VHSS", side_torsions(new, xyz)[old], strict=True):
                assert all(turned(a, b) < 0.1 for a, b in zip(likely(letter)[1], measured, strict=True))
    whole = replace(peptide(SEQUENCE, [likely(letter)[0] for letter in SEQUENCE]), sequence=SEQUENCE)
    assert longer(whole, whole.xyz) == []  # both ends are reached
    assert [p.letters for p, _ in longer(replace(piece, sequence="LVHSSX"), piece.xyz)] == ["LVHSS"]


def test_a_body_keeps_its_shape_as_a_piece() -> None:
    strand = pieces.polyalanine(4, STRAND, "strand of 4")
    bent = strand.xyz + np.linspace(0, 1, 20)[:, None] + 7
    piece = Body(strand, torch.from_numpy(bent)).moulded
    assert np.allclose(piece.weight @ piece.xyz, 0, atol=1e-8)
    assert np.allclose(piece.xyz - piece.xyz[0], bent - bent[0])


def test_the_library_knows_turns_and_the_sequence() -> None:
    plain, told = pieces.library(), pieces.library((SEQUENCE, SEQUENCE))
    assert {p.label for p in plain} < {p.label for p in told} and sum("turn" in p.label for p in plain) == 4
    own = [p for p in told if p.sequence]
    assert {p.letters for p in own} == {"LVHSS", "VHSSN"} and not any(p.sequence for p in plain)
    assert pieces.stretches(["X" * 9, "G"]) == []
    middle = torsions(pieces.turn("II"), pieces.turn("II").xyz)[0][1:3]
    assert np.allclose(middle, pieces.TURNS["II"], atol=1e-6)


@pytest.mark.parametrize(("count", "which"), [(3, 7), (4, 2), (4, 10), (6, 5)])
def test_shapes_have_their_torsions(count: int, which: int) -> None:
    wanted = pieces.SHAPES[count][which]
    made_ = pieces.shape(wanted, "x")
    assert len(made_) == 5 * count and made_.letters == "A" * count
    found = torsions(made_, made_.xyz)[0]
    assert np.allclose([a for pair in found for a in pair][1:-1], wanted[:-1], atol=1e-6)
    xyz = {(n, int(r)): x for n, r, x in zip(made_.names, made_.residue, made_.xyz, strict=True)}
    last = count - 1
    turn = gemmi.calculate_dihedral(*(gemmi.Position(*xyz[n, last]) for n in ("N", "CA", "C", "O")))
    assert np.cos(turn) == pytest.approx(np.cos(np.deg2rad(wanted[-1] + 180)), abs=1e-3)


def test_hairpins_come_back_to_where_they_began() -> None:
    pins = [p for p in pieces.library() if p.label.startswith("hairpin")]
    assert {len(p.letters) for p in pins} == {6, 8, 10} and len(pins) > 20
    for piece in pins:
        ca = piece.xyz[[i for i, n in enumerate(piece.names) if n == "CA"]]
        # the outermost pairs of residues are neighbours in a sheet: 4.4 to 6 A
        assert 3.5 < np.linalg.norm(ca[0] - ca[-1]) < 6.8 and 3.5 < np.linalg.norm(ca[1] - ca[-2]) < 6.8
        far = np.linalg.norm(piece.xyz[:, None] - piece.xyz[None], axis=-1)
        apart = np.abs(piece.residue[:, None] - piece.residue[None]) > 1
        assert far[apart].min() > 2.3


def test_every_kind_of_piece_comes_early() -> None:
    first = [p.label.split()[0] for p in pieces.library(room=100)[:8]]
    assert {"strand", "helix", "hairpin", "shape"} <= set(first)


def test_helices_come_first_where_a_protein_may_be() -> None:
    labels = [p.label for p in pieces.library(room=pieces.MUCH)]
    assert labels[:3] == ["helix of 12", "helix of 18", "helix of 8"] and len(set(labels)) == len(labels)
    assert "helix of 18" not in [p.label for p in pieces.library(room=pieces.MUCH - 1)]


def test_long_pieces_leave_room_for_side_chains() -> None:
    longest = {room: max(len(p.letters) for p in pieces.library(room=room)) for room in (45, 60, 100)}
    assert longest[45] == 6 and longest[60] == 8 and longest[100] == 12


def test_the_library_suits_the_room() -> None:
    small, large = pieces.library(room=18), pieces.library(room=100)
    assert max(len(p) for p in small) <= 21 and "of 3" in small[0].label
    assert len(large) == len(pieces.library()) and "strand of 4" in large[0].label
    assert {p.label for p in small} <= {p.label for p in large}


def test_the_sequence_reaches_the_road() -> None:
    strand = pieces.polyalanine(4, STRAND, "strand of 4")
    data, _ = made([strand.xyz], strand.weight, gemmi.UnitCell(10.0, 12.0, 14.0, 90, 98, 90))
    options = Options(Path("in"), Path("map"), Path("mtz"), Path("json"), threads=1)
    plans = [plan_phasing(data, normalise(data), options, sequences=s) for s in ((), (SEQUENCE,))]
    assert [p.road.sequences for p in plans] == [(), (SEQUENCE,)]  # type: ignore[union-attr]
    assert [any("side chains of the sequence" in said for said in p.choices) for p in plans] == [False, True]
    own = plan_phasing(data, normalise(data), options, pieces=(strand,), sequences=(SEQUENCE,))
    assert own.road is not None and own.road.sequences == () and own.road.pieces == (strand,)


# --------------------------------------------------------------------------------------------------- weighting


@pytest.mark.parametrize("name", ["P 1", "P 21 21 21", "C 1 2 1"])
def test_weights_are_sims(name: str) -> None:
    """By numpy and scipy from the list of reflections, whatever the scale of the map."""
    c = crystal(name, atoms=6, d_min=1.2)
    problem = judge_of(c, Stand(0)).problem
    rng = np.random.default_rng(0)
    other = c.f + 0.6 * np.abs(c.f).mean() * (rng.normal(size=len(c.f)) + 1j * rng.normal(size=len(c.f)))
    weigh = Weighting(problem)
    half = problem.scatter(other)
    x = weigh.argument(half)
    assert torch.allclose(weigh.argument(7.5 * half), x, rtol=1e-4)
    asu = problem.expansion.asu
    inverse_square = problem.cell.calculate_1_d2_array(problem.expansion.hkl)
    e_obs, e_map = np.abs(c.f)[asu].astype(float), np.abs(other)[asu].astype(float)
    for part in np.array_split(np.argsort(inverse_square, kind="stable"), max(1, len(c.f) // PER_SHELL)):
        twice = 1 + (problem.expansion.hkl[part, 2] == 0)  # both mates have a place of their own there
        twice = twice * ~problem.held[asu[part]]  # the scale is that of the reflections in use
        for e in (e_obs, e_map):
            e[part] /= np.sqrt((twice * e[part] ** 2).sum() / twice.sum())
    for held in (True, False):
        rows = problem.held[asu] == held
        twice = np.where(problem.expansion.hkl[:, 2] == 0, 2.0, 1.0)[rows]
        square = np.cov(e_obs[rows] ** 2, e_map[rows] ** 2, aweights=twice)
        sigma2 = square[0, 1] / np.sqrt(square[0, 0] * square[1, 1])
        wanted = 2 * np.sqrt(sigma2) / (1 - sigma2) * e_obs * e_map
        found = np.abs(problem.places.gather(weigh.argument(half, held=held)[0].numpy().astype(complex), len(asu)))
        assert np.allclose(found, wanted, rtol=2e-2, atol=1e-3)


def test_phases_of_piece_and_map_are_combined() -> None:
    """The first map shown has the piece's phases and Sim's weights; with a network that agrees with all it sees, the
    density keeps them."""
    c = crystal("P 21 21 21", atoms=6, d_min=1.2)
    judge = judge_of(c, Stand(0))
    p = judge.problem
    rng = np.random.default_rng(1)
    model = c.f + 0.5 * np.abs(c.f).mean() * rng.normal(size=len(c.f)) * np.exp(1j * np.angle(c.f))
    f, _, _ = judge.complete(model, 2, 0)
    first = judge.network.seen[0][0, 0]  # type: ignore[attr-defined]
    seen = p.gather_p1(torch.fft.rfftn(first))
    known = ~p.held[p.expansion.asu] & (np.abs(c.f)[p.expansion.asu] > 0.05 * np.abs(c.f).mean())
    spread = p.expansion.spread(model)
    assert np.abs(np.angle(seen * np.conj(spread)))[known & (np.abs(seen) > 1e-3 * np.abs(seen).max())].max() < 2e-3
    x = p.places.gather(judge.weighting.argument(p.scatter(model), held=False)[0].numpy().astype(complex), len(spread))
    weight = scipy.special.i1e(np.abs(x)) / scipy.special.i0e(np.abs(x))
    wanted = weight * np.abs(c.f)[p.expansion.asu]
    scale = (np.abs(seen) * wanted)[known].sum() / (wanted[known] ** 2).sum()
    assert np.allclose(np.abs(seen)[known], scale * wanted[known], rtol=5e-3, atol=2e-3 * scale * wanted.max())
    work = ~p.held & (np.abs(f) > 1e-3 * np.abs(f).max())
    assert np.abs(np.angle(f * np.conj(model)))[work].max() < 5e-3


def test_what_is_released_is_kept_only_if_it_judges_better() -> None:
    c = crystal("P 1 21 1", atoms=6, d_min=1.3)

    class Changing(Stand):
        """Right in view of the model, noise once that is gone, or the other way round."""

        def __init__(self, good: torch.Tensor, first: bool) -> None:
            super().__init__(0)
            self.good, self.first = good, first

        def __call__(self, maps: torch.Tensor, cond: torch.Tensor) -> torch.Tensor:
            told = bool(maps[:, 2].abs().max() > 0)
            noise = torch.randn(maps[:, 0].shape, generator=torch.Generator().manual_seed(0))
            return self.good if told == self.first else noise

    plain = judge_of(c, Stand(0))
    good = torch.fft.irfftn(plain.problem.scatter(c.f), s=plain.problem.shape, dim=(1, 2, 3))
    for first in (True, False):
        f, score, _ = replace(plain, network=Changing(good, first)).complete(c.f, 2, 3)
        assert score > 0.9 and np.abs(np.angle(f * np.conj(c.f)))[np.abs(c.f) > 1].mean() < 0.1
    _, alone, _ = replace(plain, network=Changing(good, False)).complete(c.f, 2, 0)
    assert alone < 0.5
