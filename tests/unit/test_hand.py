"""The hand judge: what holds for any weights, its training, and what the bundled one knows."""

from __future__ import annotations

from dataclasses import replace

import gemmi
import numpy as np
import pytest
import torch
from crystals import CELLS, crystal
from made_library import peptide_library
from torch import nn

from ml_phaser.crystal.agreement import hand_centre, move
from ml_phaser.crystal.normalise import normalise
from ml_phaser.errors import UserError
from ml_phaser.handedness import decide, in_words, log_odds, told_by_group
from ml_phaser.networks.hand import HandConfig, HandJudge
from ml_phaser.networks.store import load_hand_judge, save_projector
from ml_phaser.phasing.place import hand_is_fixed
from ml_phaser.simulate.families import make
from ml_phaser.simulate.simulated import amplitudes
from ml_phaser.training.hand import (
    RECIPE,
    Judging,
    TwoRates,
    averaged,
    backbone,
    crystals,
    hand_lessons,
    hand_schedule,
    maps_of,
)
from ml_phaser.training.loop import CHECKPOINT, LOG, train, untrained

SMALL = HandConfig(radii=(1.2, 2.5, 4.0), hidden=32, products=16)
CELL = gemmi.UnitCell(11.0, 9.5, 13.1, 84, 101, 96)


@pytest.fixture(scope="module")
def judge() -> HandJudge:
    """Random weights."""
    torch.manual_seed(5)
    return HandJudge(SMALL).eval()


def evidence(judge: HandJudge, rho: torch.Tensor, cell: gemmi.UnitCell = CELL) -> torch.Tensor:
    with torch.no_grad():
        return judge(rho, torch.tensor(cell.frac.mat.tolist()).expand(len(rho), 3, 3), torch.full((len(rho),), 1.6))


@pytest.fixture(scope="module")
def rho() -> torch.Tensor:
    return torch.randn((2, 20, 16, 24), generator=torch.Generator().manual_seed(1))


def test_evidence_changes_its_sign_with_the_hand(judge: HandJudge, rho: torch.Tensor) -> None:
    inverted = rho.flip((1, 2, 3)).roll((1, 1, 1), (1, 2, 3))  # rho(-x) on the same grid
    own, other = evidence(judge, rho), evidence(judge, inverted)
    points = own.reshape(-1, 10, 8, 12)
    at_minus_x = points.flip((1, 2, 3)).roll((1, 1, 1), (1, 2, 3)).flatten(1)
    assert own.std() > 0
    torch.testing.assert_close(other, -at_minus_x, rtol=1e-3, atol=1e-4 * float(own.std()))
    volume = torch.full((2,), 900.0)
    odds = [judge.log_odds(x.mean(1) * 1e4, volume) for x in (own, other)]
    torch.testing.assert_close(odds[0], -odds[1], rtol=1e-3, atol=1e-4)


def test_a_map_that_is_its_own_mirror_image_says_nothing(judge: HandJudge, rho: torch.Tensor) -> None:
    centric = rho + rho.flip((1, 2, 3)).roll((1, 1, 1), (1, 2, 3))
    assert evidence(judge, centric).mean(1).abs().max() < 1e-4 * evidence(judge, rho).std()


def test_evidence_moves_with_the_map(judge: HandJudge, rho: torch.Tensor) -> None:
    moved = evidence(judge, rho.roll((2, 6, -4), (1, 2, 3))).reshape(-1, 10, 8, 12)
    still = evidence(judge, rho).reshape(-1, 10, 8, 12)
    torch.testing.assert_close(moved, still.roll((1, 3, -2), (1, 2, 3)), rtol=1e-3, atol=1e-4 * float(still.std()))


def test_names_of_the_axes_do_not_matter(judge: HandJudge, rho: torch.Tensor) -> None:
    """a b c -> b c a is a rotation of the description, and turns the orthogonal axes too."""
    a, b, c, al, be, ga = CELL.parameters
    turned = evidence(judge, rho.permute(0, 2, 3, 1), gemmi.UnitCell(b, c, a, be, ga, al)).reshape(-1, 8, 12, 10)
    own = evidence(judge, rho).reshape(-1, 10, 8, 12).permute(0, 2, 3, 1)
    torch.testing.assert_close(turned, own, rtol=1e-2, atol=1e-2 * float(own.std()))


def test_log_odds_stay_within_the_lapse_rate(judge: HandJudge) -> None:
    odds = judge.log_odds(torch.tensor([1e6, -1e6]), torch.tensor([1e5, 1e5])).detach()
    lapse = float(judge.log_lapse.detach().sigmoid())
    limit = float(np.log((1 - lapse / 2) / (lapse / 2)))
    assert odds.tolist() == pytest.approx([limit, -limit], rel=1e-4)


def structure(sites: np.ndarray, cell: gemmi.UnitCell, group: gemmi.SpaceGroup) -> gemmi.SmallStructure:
    small = gemmi.SmallStructure()
    small.cell, small.spacegroup_hm = cell, group.xhm()
    for k, x in enumerate(sites):
        site = gemmi.SmallStructure.Site()
        site.label, site.element, site.occ, site.u_iso = f"C{k}", gemmi.Element("C"), 1.0, 0.1
        site.fract = gemmi.Fractional(*x)
        small.add_site(site)
    small.setup_cell_images()
    return small


@pytest.mark.parametrize("name", ["P 1", "P 21 21 21", "I 41", "F 2 3", "R 3:H"])
def test_the_solution_turned_is_that_of_inverted_atoms(judge: HandJudge, name: str) -> None:
    """Against gemmi's structure factors of the atoms at c - x, in the same group, also where c is not 0 (I41)."""
    c = crystal(name, atoms=7, d_min=1.4, seed=2)
    centre = hand_centre(c.spacegroup)
    assert centre is not None and (name != "I 41" or np.any(centre != 0))

    def calculated(sites: np.ndarray) -> np.ndarray:
        small = structure(sites, c.cell, c.spacegroup)
        calculator = gemmi.StructureFactorCalculatorX(small.cell)
        return np.array([calculator.calculate_sf_from_small_structure(small, list(map(int, h))) for h in c.hkl])

    f, mirror = calculated(c.sites), calculated(centre - c.sites)
    assert move(c.hkl, f, centre, inverted=True) == pytest.approx(mirror, abs=1e-3 * np.abs(f).max())
    own, other = (log_odds(judge, c.hkl, x, c.cell, c.spacegroup) for x in (f, mirror))
    assert own == pytest.approx(-other, rel=0.02, abs=1e-4)


def test_groups_without_the_other_hand_are_the_enantiomorphic_ones() -> None:
    for name in CELLS:
        group = gemmi.SpaceGroup(name)
        assert (hand_centre(group) is None) == hand_is_fixed(group)


@pytest.mark.parametrize(
    ("odds", "turned", "words"),
    [
        (4.0, True, ("that of L-amino acids with probability 0.982", "if it is a peptide", "turned into its mirror")),
        (1.0, False, ("not determined", "probability 0.73", "+1.0")),
        (-4.0, False, ("that of D-amino acids", "kept, as asked")),
    ],
)
def test_what_is_said(odds: float, turned: bool, words: tuple[str, ...]) -> None:
    assert all(word in in_words(odds, turned) for word in words)
    assert ("mirror image for it" in in_words(odds, turned)) == turned


def test_a_doubtful_enantiomorphic_group_is_told_of() -> None:
    assert told_by_group("told by the space group P 41", 3.0) == "told by the space group P 41"
    assert "enantiomorphic" in told_by_group("told by the space group P 41", -3.0)


# ------------------------------------------------------------------------------------------------ training


def test_backbones_are_found_by_distances() -> None:
    """All residues of ideal helices but glycine and the cut ones; of the hand of L: N, C, CB about CA."""
    for made in next(crystals(peptide_library(), 3, 1)):
        contents = made[0].contents
        atoms = backbone(contents)
        bonds = atoms[:, 1:] - atoms[:, :1]
        n, c, cb = ((bonds - np.round(bonds)) @ np.array(contents.cell.orth.mat).T).transpose(1, 0, 2)
        assert len(atoms) > 0
        assert np.all(np.abs(np.einsum("ij,ij->i", n, np.cross(c, cb)) - 2.55) < 0.4)


def test_cycles_of_the_engine_give_maps_of_the_measured_amplitudes() -> None:
    from ml_phaser.networks.store import load_projector

    made = next(crystals(peptide_library(), 1, 1))
    rng = np.random.default_rng(0)
    maps = maps_of(made, rng, RECIPE, load_projector(), 1)
    assert maps.rho.shape == (1, *made[0][0].shape) and torch.isfinite(maps.rho).all()
    assert float(maps.rho.pow(2).mean()) == pytest.approx(1, abs=1e-3)


def test_training_resumes(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ml_phaser.training.loop.LOG_EVERY", 2)
    schedule = replace(hand_schedule(1000.0), batch=2)
    library = peptide_library()

    def steps(count: int, config: HandConfig = SMALL) -> tuple[int, nn.Module]:
        left = iter([False] * count + [True])
        lessons = hand_lessons(library, 2, Judging(repeats=2), None, 0)  # type: ignore[arg-type]
        judge = untrained(HandJudge, config, 0)
        state = train(judge, schedule, lessons, tmp_path, optimise=TwoRates, stop=lambda: next(left))
        return state.steps, state.network

    first, one = steps(2)
    kept = {k: v.clone() for k, v in one.state_dict().items()}
    second, two = steps(0)
    assert (first, second) == (2, 2) and all(torch.equal(v, kept[k]) for k, v in two.state_dict().items())
    third, three = steps(2)
    assert third == 4 and any(not torch.equal(v, kept[k]) for k, v in three.state_dict().items())
    assert len((tmp_path / LOG).read_text().splitlines()) == 2
    assert isinstance(averaged(tmp_path / CHECKPOINT), HandJudge)
    with pytest.raises(UserError, match="another network"):
        steps(0, HandConfig())


def test_matrices_learn_faster_than_the_rest() -> None:
    judge = HandJudge(SMALL)
    before = {k: v.clone() for k, v in judge.state_dict().items()}
    optimiser = TwoRates(judge, hand_schedule(1.0))
    for weight in judge.parameters():
        weight.grad = torch.ones_like(weight)
    optimiser.step(0.0)
    assert all(torch.equal(v, before[k]) for k, v in judge.state_dict().items())
    optimiser.step(1e-3)
    assert all(not torch.equal(v, before[k]) for k, v in judge.state_dict().items())
    assert optimiser.optimisers[0].param_groups[0]["lr"] == pytest.approx(0.02 / 3)
    assert optimiser.optimisers[1].param_groups[0]["lr"] == pytest.approx(1e-3)


def test_a_damaged_checkpoint_is_the_users_to_mend(tmp_path) -> None:
    (tmp_path / CHECKPOINT).write_bytes(b"x")
    with pytest.raises(UserError, match="is not a checkpoint"):
        averaged(tmp_path / CHECKPOINT)


# -------------------------------------------------------------------------------------------- bundled weights


def test_other_weights_are_refused(judge: HandJudge, tmp_path) -> None:
    save_projector(judge.state_dict(), SMALL, {}, "hand", tmp_path)
    assert load_hand_judge("hand", tmp_path).config == SMALL
    raw = bytearray((tmp_path / "hand.safetensors").read_bytes())
    raw[-1] ^= 1
    (tmp_path / "hand.safetensors").write_bytes(bytes(raw))
    with pytest.raises(UserError, match="not those of the model card"):
        load_hand_judge("hand", tmp_path)


@pytest.mark.parametrize("group", ["P212121", "P21"])
def test_a_mirrored_solution_is_turned(group: str) -> None:
    """A helix of ideal geometry, packed: the right hand stays, the wrong one is turned into it."""
    sim = make("peptide", 3, peptide_library(), spacegroup=group, d_min=1.4, noise=0.02, residues=8, starts=1, b=10)
    data = amplitudes(sim)
    truth = {tuple(h): f for h, f in zip(sim.hkl.tolist(), sim.f, strict=True)}
    f = np.array([truth[tuple(h)] for h in data.hkl.tolist()])
    normalised = normalise(data)
    centre = hand_centre(data.spacegroup)
    kept, hand = decide(data, normalised, f)
    back, other = decide(data, normalised, move(data.hkl, f, centre, inverted=True))
    assert not hand.turned and other.turned
    assert hand.log_odds == pytest.approx(other.log_odds, abs=0.02) and hand.log_odds > 0
    assert kept == pytest.approx(f) and back == pytest.approx(f, abs=1e-6 * np.abs(f).max())
    wrong = move(data.hkl, f, centre, inverted=True)
    same, asked = decide(data, normalised, wrong, keep=True)
    assert asked.log_odds == pytest.approx(-hand.log_odds, abs=0.02) and np.array_equal(same, wrong)
    back, doubted = decide(data, normalised, wrong, solved=False)
    assert doubted.turned and back == pytest.approx(f, abs=1e-6 * np.abs(f).max())
    assert doubted.said == f"should the map be right, {other.said}"


@pytest.mark.shared
def test_held_out_crystals_are_told(shared_data) -> None:
    from ml_phaser.simulate.fragments import load_library

    folder = shared_data / "coordinates"
    if not folder.exists():
        pytest.skip("no coordinates here")
    judge = load_hand_judge()
    group = gemmi.SpaceGroup("P 1")
    source = crystals(load_library(folder, "holdout"), 12, 1)
    odds = [log_odds(judge, d.hkl, f, d.contents.cell, group) for d, f in next(source)]
    assert np.mean(np.array(odds) > 0) >= 0.9
