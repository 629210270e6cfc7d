"""Starts from pieces: the judge, growth, the plan that chooses them, the pipeline that travels the road."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import gemmi
import numpy as np
import pytest
import torch
from crystals import Crystal, crystal, problem_of
from scipy.spatial.transform import Rotation

from ml_phaser import beginnings, pipeline
from ml_phaser.beginnings import FRAGMENTS_D_MIN, SCENE, WIDE
from ml_phaser.crystal.agreement import compare, move, multiplicity
from ml_phaser.crystal.normalise import normalise
from ml_phaser.crystal.peptide import build
from ml_phaser.crystal.reflections import Amplitudes, Source
from ml_phaser.errors import UserError
from ml_phaser.notify import Silent
from ml_phaser.outcome import Chain, Fragments
from ml_phaser.parameters import Options
from ml_phaser.phasing.confidence import CLEAN
from ml_phaser.phasing.fragments import pieces, road
from ml_phaser.phasing.fragments.consensus import brought, consensus
from ml_phaser.phasing.fragments.judge import FOLDS, Judge, correlation
from ml_phaser.phasing.fragments.models import Body, Completed, Model
from ml_phaser.phasing.fragments.road import Road
from ml_phaser.phasing.fragments.scene import Scene
from ml_phaser.phasing.fragments.solutions import METHOD, from_fragments
from ml_phaser.phasing.problem import Problem
from ml_phaser.phasing.projections import forward
from ml_phaser.phasing.rebuild import SUFFIX
from ml_phaser.phasing.search import Hunt
from ml_phaser.phasing.weighting import Weighting
from ml_phaser.plan import plan_phasing

OPTIONS = Options(Path("in"), Path("map"), Path("mtz"), Path("json"), threads=1)
TINY, SMALL = gemmi.UnitCell(9.0, 9.4, 11.0, 90, 98, 90), gemmi.UnitCell(10.0, 10.0, 15.0, 90, 98, 90)


class Stand:
    """A network that returns what it is shown: the model's own density (2) or the map (0). Remembers its input."""

    def __init__(self, column: int) -> None:
        self.column, self.seen = column, []

    def __call__(self, maps: torch.Tensor, cond: torch.Tensor) -> torch.Tensor:
        self.seen.append(maps.clone())
        return maps[:, self.column]

    def to(self, device: str) -> Stand:
        return self


def judge_of(c: Crystal, network: Stand, amplitude: np.ndarray | None = None) -> Judge:
    """A judge of a crystal; ``amplitude`` (n,) instead of the true moduli."""
    problem = problem_of(c if amplitude is None else replace(c, f=amplitude * np.exp(1j * np.angle(c.f))))
    e = problem.amplitude / np.sqrt(np.mean(np.abs(c.f) ** 2))
    return Judge.of(problem, network, torch.zeros(1, 11), e, multiplicity(c.hkl, c.spacegroup).astype(float))


# ------------------------------------------------------------------------------------------------------- the judge


@pytest.mark.parametrize("name", ["P 1", "P 21 21 21", "C 1 2 1"])
def test_the_right_model_is_judged_best(name: str) -> None:
    """Its own density predicts what was left out; a model moved between the symmetry axes, or of others, does not."""
    c = crystal(name, atoms=6, d_min=1.4)
    other = crystal(name, atoms=6, d_min=1.4, seed=5)
    judge = judge_of(c, Stand(2))
    right, wrong = judge.score(c.f), judge.score(other.f)
    assert right > 0.99 and wrong < 0.5
    if name != "P 1":
        moved = sum(np.exp(2j * np.pi * c.hkl @ ((s @ rot.T) + tran)) for s in c.sites + 0.13 for rot, tran in ops(c))
        assert judge.score(moved) < 0.6


def ops(c: Crystal) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(np.array(o.rot) / o.DEN, np.array(o.tran) / o.DEN) for o in c.spacegroup.operations()]


def test_every_reflection_is_left_out_once_and_those_held_out_always() -> None:
    judge = judge_of(crystal("P 21 21 21", atoms=6, d_min=1.3), Stand(0))
    held = judge.problem.held
    assert held.sum() > 20 and np.array_equal(judge.fold == -1, held)
    sizes = np.bincount(judge.fold[~held], minlength=FOLDS)
    assert len(sizes) == FOLDS and sizes.min() > 0.5 * sizes.mean()
    c = crystal("P 21 21 21", atoms=6, d_min=1.3)
    judge.score(c.f)
    (maps,) = judge.network.seen  # type: ignore[attr-defined]
    half = forward(maps[:, 0])
    for k in range(FOLDS):
        f = np.abs(judge.problem.gather_p1(half[k]))
        of = judge.fold[judge.problem.expansion.asu]
        assert (
            f[(of == k) | (of == -1)].max() < 1e-3 * f.max() and np.median(f[(of != k) & (of != -1)]) > 0.01 * f.max()
        )


def test_reflections_left_out_never_reach_the_network(monkeypatch) -> None:
    """Their amplitudes can be anything: what it is shown stays the same, in scoring (both maps of the measured
    amplitudes) and, but for sigmaA, in density modification."""
    monkeypatch.setattr(Weighting, "sigma_a_square", lambda self, e, held: 0.4)
    c = crystal("P 1 21 1", atoms=6, d_min=1.3)
    plain = judge_of(c, Stand(0))
    for fold in (-1, 1):
        amplitude = np.abs(c.f) * np.where(plain.fold == fold, 7.0, 1.0)
        changed = judge_of(c, Stand(0), amplitude)
        assert np.array_equal(changed.fold, plain.fold)
        inputs = []
        for judge in (plain, changed):
            judge.network.seen.clear()  # type: ignore[attr-defined]
            judge.score(c.f)
            judge.complete(c.f, 2)
            inputs.append(
                [m / m.pow(2).mean((-3, -2, -1), keepdim=True).sqrt().clamp_min(1e-9) for m in judge.network.seen]
            )  # type: ignore[attr-defined]
        (scored, *completed), (other, *others) = inputs
        passes = range(FOLDS) if fold == -1 else [fold]
        for k in passes:
            assert torch.allclose(scored[k], other[k], atol=2e-4)
        if fold == -1:
            assert all(torch.allclose(a, b, atol=2e-4) for a, b in zip(completed, others, strict=True))
        else:  # the other passes do see them
            assert not torch.allclose(scored[0], other[0], atol=2e-2)


def test_scores_rest_on_every_reflection_but_those_held_out() -> None:
    c = crystal("P 1 21 1", atoms=6, d_min=1.3)
    judge = judge_of(c, Stand(2))
    before = judge.score(c.f)
    for fold, matters in ((-1, False), *((k, True) for k in range(FOLDS))):
        shuffled = np.random.default_rng(0).permutation(np.abs(c.f)) * np.exp(1j * np.angle(c.f))
        spoilt = judge.score(np.where(judge.fold == fold, shuffled, c.f))
        assert (spoilt < before - 0.02) == matters, fold
        assert matters or spoilt == pytest.approx(before, abs=1e-4)


def test_weighted_correlation_is_numpys() -> None:
    rng = np.random.default_rng(0)
    x, y, w = rng.normal(size=40), rng.normal(size=40), rng.integers(1, 4, 40)
    long = [np.repeat(v, w) for v in (x, y)]
    assert correlation(x, y, w.astype(float)) == pytest.approx(np.corrcoef(*long)[0, 1])
    assert correlation(x, np.ones(40), w.astype(float)) == 0


# ------------------------------------------------------------------------------------------------- copies and growth


def data_of(hkl: np.ndarray, f: np.ndarray, cell: gemmi.UnitCell, group: gemmi.SpaceGroup) -> Amplitudes:
    source = Source("made", "test", {}, "amplitude")
    return Amplitudes(hkl.astype(np.int32), np.abs(f), 0.01 * np.abs(f) + 1e-3, cell, group, source)


def made(
    chains: list[np.ndarray], weight: np.ndarray, cell: gemmi.UnitCell, name: str = "P 1 21 1", d_min: float = 1.6
):
    """Data of chains (m, 3) A with scattering powers (m,), B 8 A^2, and true F."""
    group = gemmi.SpaceGroup(name)
    hkl = gemmi.make_miller_array(cell, group, d_min)
    hkl = hkl[~np.asarray(group.operations().systematic_absences(hkl), dtype=bool)]
    f = np.zeros(len(hkl), dtype=complex)
    for xyz in chains:
        x = xyz @ np.array(cell.frac.mat).T
        for op in group.operations():
            mates = x @ (np.array(op.rot) / op.DEN).T + np.array(op.tran) / op.DEN
            f += np.exp(2j * np.pi * hkl @ mates.T) @ weight
    f *= np.exp(-2 * np.asarray(cell.calculate_1_d2_array(hkl)))
    return data_of(hkl, f, cell, group), f


def road_of(data: Amplitudes, pieces_: list[pieces.Piece], room: int) -> Road:
    """A road whose judge is the model's own density."""
    normalised = normalise(data)
    c = Crystal(data.hkl, data.f.astype(complex), data.cell, data.spacegroup, np.zeros((0, 3)))
    problem = problem_of(c)
    weight = multiplicity(data.hkl, data.spacegroup).astype(float)
    judge = Judge.of(problem, Stand(2), torch.zeros(1, 11), normalised.e, weight)
    return Road(Scene.of(data, normalised, np.arange(len(data))), judge, data.spacegroup, pieces_, room, problem.d_min)


def model_of(way: Road, piece: pieces.Piece, xyz: np.ndarray) -> Model:
    bodies = (Body(piece, torch.from_numpy(xyz).float()),)
    f = way.model_factors(bodies)
    return Model(bodies, 0.0, way.judge.score(f), f)


def apart(found: np.ndarray, wanted: np.ndarray, cell: gemmi.UnitCell, group: gemmi.SpaceGroup) -> float:
    """R.m.s. distance in A of atoms from those wanted, by the best symmetry operator, whole cells apart."""
    orth, frac = np.array(cell.orth.mat), np.array(cell.frac.mat)
    best = np.inf
    for op in group.operations():
        x = wanted @ frac.T @ (np.array(op.rot) / op.DEN).T + np.array(op.tran) / op.DEN
        d = found @ frac.T - x
        best = min(best, float(np.sqrt((((d - d.mean(0).round()) @ orth.T) ** 2).sum(1).mean())))
    return best


@pytest.fixture(scope="module")
def strand() -> pieces.Piece:
    return pieces.polyalanine(4, (-120.0, 130.0), "strand of 4")


def packed(way: Road, piece: pieces.Piece, fixed: tuple[Body, ...], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """An orientation (3, 3), and atoms (m, 3) in A, of a piece where it touches nothing."""
    rng = np.random.default_rng(seed)
    for _ in range(2000):
        turn = Rotation.random(rng=rng).as_matrix()
        xyz = piece.xyz @ turn.T + rng.uniform(0, 12, 3)
        if way.contact(torch.from_numpy(xyz).float()[None], torch.zeros(1, 3), fixed)[0] > road.CLASH + 0.3:
            return turn, xyz
    raise AssertionError("no room")


@pytest.fixture(scope="module")
def pinned() -> tuple[Road, list[pieces.Piece]]:
    """A road in a crystal of a hairpin, which is the last of its pieces."""
    some = [p for p in pieces.library() if p.label in ("helix of 5", "strand of 4, -120 130", "hairpin 3 of 8")]
    some.sort(key=lambda p: p.label.startswith("hairpin"))
    cell = gemmi.UnitCell(15.0, 13.0, 17.0, 90, 98, 90)
    empty = road_of(made([some[-1].xyz], some[-1].weight, cell)[0], some, 60)
    _, xyz = packed(empty, some[-1], (), 1)
    return road_of(made([xyz], some[-1].weight, cell)[0], some, 60), some


def test_the_likeliest_piece_is_searched_for_first(pinned: tuple[Road, list[pieces.Piece]]) -> None:
    way, some = pinned
    way.models = []
    told: list[float] = []
    assert way.promising(lambda share: False, told.append)[0] is some[-1]
    assert len(told) == 2 * len(some)  # of every piece looked at and tried
    assert way.ranked()[0].label == some[-1].label and len(way.models) == len(some)


def test_without_the_time_to_try_a_quick_look_decides(pinned: tuple[Road, list[pieces.Piece]]) -> None:
    way, some = pinned
    way.models = []
    assert way.promising(lambda share: share == road.TRYING, lambda done: None)[0] is some[-1]
    assert way.promising(lambda share: True, lambda done: None) == some and way.models == []


def test_more_poses_are_judged_when_every_piece_has_been_searched(pinned: tuple[Road, list[pieces.Piece]]) -> None:
    way, some = pinned
    way.models, told = [], []
    way.look_for(some[:1] * 2, lambda share: len(way.models) >= road.EAGER + 1, told.append)
    early = len(way.models)
    assert road.EAGER < early <= 2 * road.EAGER and told == [0.5 * road.SEARCHING, road.SEARCHING]
    way.models = []
    way.look_for(some[:1] * 2, lambda share: False, told.append)
    assert 2 * road.EAGER < len(way.models) <= 2 * road.JUDGED


@pytest.mark.parametrize("room", [45, 30])
def test_a_second_copy_is_added_where_there_is_room(strand: pieces.Piece, room: int, monkeypatch) -> None:
    cell = gemmi.UnitCell(12.0, 11.0, 19.0, 90, 98, 90)
    empty = road_of(made([strand.xyz], strand.weight, cell)[0], [strand], room)
    before, one = packed(empty, strand, (), 1)
    turn, two = packed(empty, strand, (Body(strand, torch.from_numpy(one).float()),), 2)
    data, _ = made([one, two], strand.weight, cell)
    way = road_of(data, [strand], room)
    near = np.concatenate([(turn @ before.T)[None], Rotation.random(40, rng=np.random.default_rng(3)).as_matrix()])
    monkeypatch.setattr(road, "orientations", lambda count: near)  # of the strand as the first lies
    first = model_of(way, strand, one)
    way.add_copies(first, lambda: False)
    if room < 40:
        assert way.models == []
        return
    best = way.ranked()[0]
    assert len(best.bodies) == 2 and best.judged > first.judged + road.GAIN
    assert best.atoms == 40 and best.label == "strand of 4 + strand of 4"
    assert apart(best.bodies[1].xyz.numpy(), two, cell, data.spacegroup) < 0.4


def test_helices_no_longer_than_the_first_are_added_to_it_in_proteins(strand: pieces.Piece, monkeypatch) -> None:
    cell = gemmi.UnitCell(24.0, 30.0, 30.0, 90, 98, 90)
    way = road_of(made([strand.xyz], strand.weight, cell)[0], [strand], 300)
    eight = pieces.helix(8)
    first, twelve = model_of(way, eight, eight.xyz), model_of(way, pieces.helix(12), pieces.helix(12).xyz)
    given = model_of(way, replace(eight, given=True), eight.xyz)
    assert [p.label for p in way.further(first)] == ["helix of 8"]
    assert np.allclose(way.further(first)[0].xyz, eight.xyz, atol=1e-4)
    large = replace(way, wide=way.scene)
    assert [p.label for p in large.further(twelve)] == ["helix of 12", "helix of 8"]
    assert [p.label for p in large.further(first)] == ["helix of 8"]
    assert large.further(given)[0].given

    def tried(gains: dict[tuple[str, int, bool], float]) -> list[tuple[str, int, bool]]:
        """What is placed beside how many, and whether in other orientations, where those in ``gains`` are better."""
        seen: list[tuple[str, int, bool]] = []

        def placed(piece: pieces.Piece, fixed: tuple[Body, ...], stop: object, *, deep: bool) -> list:
            seen.append((piece.label, len(fixed), deep))
            judged = 0.1 + 0.02 * (len(fixed) - 1) + gains.get(seen[-1], 0.0)
            return [replace(twelve, bodies=(*fixed, fixed[0]), judged=judged)]

        monkeypatch.setattr(large, "placed", placed)
        monkeypatch.setattr(large, "sure", lambda: False)
        large.models = []
        large.add_copies(replace(twelve, judged=0.1), lambda: False)
        return seen

    twelve_one, twelve_two = ("helix of 12", 1, False), ("helix of 12", 2, False)
    gains = {twelve_one: 0.02, ("helix of 8", 2, False): 0.02, twelve_two: 0.005}
    assert tried(gains) == [twelve_one, twelve_two, ("helix of 8", 2, False), ("helix of 8", 3, False)]
    assert [len(m.bodies) for m in large.models] == [2, 3]
    # In other orientations only where the likeliest lead to nothing.
    gains = {("helix of 8", 1, True): 0.02}
    assert tried(gains) == [
        *((f"helix of {n}", 1, deep) for deep in (False, True) for n in (12, 8)), ("helix of 8", 2, True),
    ]  # fmt: skip
    assert [len(m.bodies) for m in large.models] == [2]


def test_of_a_smaller_part_more_orientations_are_tried_at_first(strand: pieces.Piece, monkeypatch) -> None:
    way = road_of(made([strand.xyz], strand.weight, gemmi.UnitCell(12, 11, 19, 90, 98, 90))[0], [strand], 60)
    seen: list[tuple[int, int]] = []

    def search(scene, spacegroup, piece, turns, keep, *rest, **more):
        seen.append((len(turns), keep))
        return road.Poses(*(torch.zeros(shape) for shape in ((0, 3, 3), (0, 3), (0,))))

    monkeypatch.setattr(road, "search", search)
    for room in (road.HUGE, road.HUGE + 1):
        large = replace(way, wide=way.scene, room=room, likely={strand: np.tile(np.eye(3), (100, 1, 1))})
        for deep in (False, True):
            large.searched(strand, None, lambda: False, deep)
    assert seen == [(6, 1000), (94, 3000), (25, 2500), (75, 3000)]


def test_of_small_parts_the_fit_has_a_say_and_a_clear_lead_ends_the_search(strand: pieces.Piece, monkeypatch) -> None:
    way = road_of(made([strand.xyz], strand.weight, gemmi.UnitCell(12, 11, 19, 90, 98, 90))[0], [strand], 60)
    rng = np.random.default_rng(9)
    places = [model_of(way, strand, strand.xyz + rng.uniform(0, 9, 3)) for _ in range(3)]
    judged, fits = (0.12, 0.13, 0.10), (0.14, 0.10, 0.10)
    models = [replace(m, judged=j, fit=f) for m, j, f in zip(places, judged, fits, strict=True)]
    large = replace(way, wide=way.scene, models=models)
    assert replace(way, models=models).ranked()[0] is models[1] and large.ranked()[0] is models[0]
    monkeypatch.setattr(large, "alike", lambda a, b: a is b)
    assert not large.ahead(large.ranked())  # by 0.03 of the second
    better = [replace(models[0], judged=0.15), *models[1:]]
    ahead = replace(large, models=better)
    monkeypatch.setattr(ahead, "alike", lambda a, b: a is b)
    assert ahead.ahead(ahead.ranked())
    calls: list[float] = []

    def completed(lead: float, score: float = 0.5) -> bool:
        monkeypatch.setattr(ahead, "completed", lambda m: Completed(m, m.f, score, 0.3, 0.1))
        monkeypatch.setattr(ahead, "lead", lambda c, done, ranked: calls.append(lead) or lead)
        return ahead.sure()

    problem = ahead.judge.problem
    many = np.arange(len(problem.held)) < 200  # held out, of which the lead says something
    ahead.judge = replace(ahead.judge, problem=replace(problem, held=many))
    assert completed(0.2) and not completed(0.05) and calls == [0.2, 0.05]
    assert not completed(0.2, score=0.49)  # right, but a poor map: more of it is looked for
    assert not replace(ahead, wide=None).sure()


def test_from_what_is_ahead_one_goes_on_while_others_are_looked_for(strand: pieces.Piece, monkeypatch) -> None:
    way = road_of(made([strand.xyz], strand.weight, gemmi.UnitCell(12, 11, 19, 90, 98, 90))[0], [strand], 60)
    model = replace(model_of(way, strand, strand.xyz), judged=0.3, fit=0.3)
    more = replace(model, bodies=model.bodies * 2, judged=0.4)
    large = replace(way, wide=way.scene, models=[model])
    monkeypatch.setattr(large, "alike", lambda a, b: True)
    monkeypatch.setattr(large, "by_chance", lambda piece: 0.0)
    monkeypatch.setattr(large, "completed", lambda m: Completed(m, m.f, 0.1, 0.3, 0.1))
    went: list[tuple[int, float]] = []

    def onward(completed: Completed) -> bool:
        went.append((len(completed.model.bodies), completed.lead))
        return len(went) == 2

    large.onward = onward
    assert not large.sure() and not large.sure()
    assert went == [(1, 0.1)]  # once, with its lead
    large.models = [replace(model, judged=0.35), model]
    assert not large.sure() and len(went) == 1  # nor from one like it
    large.models = [more, model]
    assert large.sure() and [bodies for bodies, _ in went] == [1, 2]  # but with one more
    large.models = []
    assert large.sure()  # that is the end
    large.onward = None
    large.gone, large.models = {}, [model]
    assert not large.sure()


@pytest.mark.parametrize(
    ("wide", "ahead", "sure"), [(True, True, True), (True, True, False), (True, False, False), (False, True, False)]
)
def test_in_proteins_there_is_no_quick_look_and_a_map_that_is_sure_ends_the_search(
    strand: pieces.Piece, wide: bool, ahead: bool, sure: bool, monkeypatch
) -> None:
    """A lead alone does not: other pieces may agree with it. It ends that in unlikely orientations."""
    way = road_of(made([strand.xyz], strand.weight, gemmi.UnitCell(12, 11, 19, 90, 98, 90))[0], [strand] * 3, 60)
    way = replace(way, wide=way.scene if wide else None)
    model, seen = model_of(way, strand, strand.xyz), []
    monkeypatch.setattr(way, "promising", lambda late, tell: seen.append("quick look") or way.pieces)
    monkeypatch.setattr(
        way, "fitted", lambda piece, fixed, stop, deep=False: seen.append("deep search" if deep else "search")
    )
    monkeypatch.setattr(way, "judge_all", lambda *args: [model] if len(args) == 4 else [])
    monkeypatch.setattr(way, "ahead", lambda ranked: ahead)
    monkeypatch.setattr(way, "sure", lambda: sure)
    for step in ("grow", "add_copies"):
        monkeypatch.setattr(way, step, lambda model, late, step=step: seen.append(step))
    way.travel(100.0, lambda done: None, lambda: 0.0)
    looked = [] if wide else ["quick look"]
    steps = [] if sure else ["add_copies", "grow"] if wide else ["grow", "add_copies"]
    deep = ["deep search"] * 3 if wide and not ahead else []  # the other orientations, where nothing leads
    assert seen == [*looked, *["search"] * (1 if sure else 3), *deep, *steps]


@pytest.mark.parametrize("room", [40, 22])
def test_chains_grow_into_the_density_that_is_there(strand: pieces.Piece, room: int) -> None:
    whole = pieces.polyalanine(6, (-120.0, 130.0), "strand of 6")
    cell = gemmi.UnitCell(16.0, 12.0, 18.0, 90, 98, 90)
    _, xyz = packed(road_of(made([whole.xyz], whole.weight, cell)[0], [whole], room), whole, (), 1)
    data, _ = made([xyz], whole.weight, cell)
    part = (whole.residue >= 1) & (whole.residue <= 4)
    way = road_of(data, [strand], room)
    start = model_of(way, strand, xyz[part])
    way.grow(start, lambda: False)
    if room < 25:
        assert way.models == []
        return
    best = way.ranked()[0]
    assert best.atoms >= 25 and best.judged > start.judged + road.GAIN and "grown" in best.label
    nearest = np.linalg.norm(best.bodies[0].xyz.numpy()[:, None] - xyz, axis=-1).min(1)
    assert np.sqrt((nearest**2).mean()) < 0.5
    way.grow(best, lambda: True)  # no time: nothing happens
    assert way.ranked()[0] is best


def test_models_lead_those_with_another_map(strand: pieces.Piece) -> None:
    xyz = strand.xyz + np.array([2.0, 3.0, 5.0])
    data, _ = made([xyz], strand.weight, TINY)
    way = road_of(data, [strand], 30)
    right, near = model_of(way, strand, xyz), model_of(way, strand, xyz + np.array([0.0, 0.4, 0.0]))
    wrong = model_of(way, strand, xyz @ Rotation.from_rotvec([1.0, 0.5, 0.2]).as_matrix().T)
    assert way.alike(right, near) and not way.alike(right, wrong)  # along b the origin of P 21 floats
    way.models = [wrong, right, near]
    ranked = way.ranked()
    done, other, false = (way.completed(m) for m in (right, near, wrong))
    assert way.lead(done, [done, other, false], ranked) == pytest.approx(done.merit - false.merit)
    assert way.lead(false, [done, other, false], ranked) == pytest.approx(false.merit - max(done.merit, other.merit))
    assert way.lead(done, [done, other], ranked) == pytest.approx(done.merit - wrong.judged)
    converted = replace(false, f=done.f)  # another model that came to the same map in the end is no rival
    assert way.lead(done, [done, converted], ranked[:2]) == pytest.approx(done.merit - max(way.astray(strand)))
    strays = way.astray(strand)
    assert len(strays) == road.STRAYS and max(strays) < right.judged
    assert way.lead(done, [done, other], ranked[:2]) == pytest.approx(done.merit - max(strays))
    held = int(way.judge.problem.held.sum())
    share = CLEAN * held / (CLEAN * held + len(data) - held)
    assert done.merit == pytest.approx((1 - share) * right.judged + share * done.score)


@dataclass
class Completer:
    """A judge that completes by adding errors of its own to the truth."""

    problem: Problem
    truth: np.ndarray
    spread: float
    calls: int = 0

    def complete(self, f: np.ndarray, cycles: int) -> tuple[np.ndarray, float, float]:
        self.calls += 1
        rng = np.random.default_rng(self.calls)
        free = np.abs(self.truth.imag) > 1e-6 * np.abs(self.truth)
        done = self.truth * np.exp(1j * np.where(free, rng.normal(0, self.spread, len(f)), 0))
        return done, float(self.problem.scores(self.problem.scatter(done))[0]), 0.3


def agreement(way: Road, f: np.ndarray, truth: np.ndarray) -> float:
    p = way.judge.problem
    phased = (p.amplitude * np.exp(1j * np.angle(g)) for g in (f, truth))
    return compare(p.hkl, *phased, p.cell, p.spacegroup, repeats=0).map_cc


def test_models_that_agree_are_averaged_and_others_are_not(strand: pieces.Piece) -> None:
    xyz = strand.xyz + np.array([2.0, 3.0, 5.0])
    data, _ = made([xyz], strand.weight, TINY)
    way = road_of(data, [strand], 30)
    right = [model_of(way, strand, xyz + np.array([0.0, 0.1 * i, 0.0])) for i in range(14)]
    wrong = model_of(way, strand, xyz @ Rotation.from_rotvec([1.0, 0.5, 0.2]).as_matrix().T)
    truth = right[0].f
    judge = Completer(way.judge.problem, truth, 0.9)
    way.judge = judge  # type: ignore[assignment]
    done = [way.completed(m) for m in right[:3]]
    single = [agreement(way, c.f, truth) for c in done]
    one = way.reinforced([done[0]], [], lambda: False)
    assert one == [done[0]]  # nothing to agree with
    few = way.reinforced(done, [], lambda: False)
    assert few[0].model.maps == 3 and few[1:] == done[1:] and few[0].merit >= done[0].merit
    assert agreement(way, few[0].f, truth) > max(single) + 0.05
    assert "mean of 3 maps" in few[0].model.label and few[0].model.bodies is done[0].model.bodies
    judge.calls = 3
    more = way.reinforced(done, [wrong, *right[3:]], lambda: False)
    assert judge.calls == 3 + road.FINALISTS + road.SECONDED - 2  # those like the best, as many as are wanted
    assert more[0].model.maps == road.MEAN_OF
    assert agreement(way, more[0].f, truth) > agreement(way, few[0].f, truth)
    lesser = [done[0], *(replace(c, merit=done[0].merit - road.PEER - 0.01) for c in done[1:])]
    assert way.reinforced(lesser, [], lambda: False) == lesser
    judge.calls = 0
    way.reinforced(done, [wrong], lambda: False)
    assert judge.calls == 0
    late = way.reinforced(done, right[3:], lambda: True)
    assert judge.calls == 0 and late[0].model.maps == 3


def test_a_mean_that_predicts_held_out_reflections_worse_is_not_taken(strand: pieces.Piece) -> None:
    xyz = strand.xyz + np.array([2.0, 3.0, 5.0])
    data, _ = made([xyz], strand.weight, TINY)
    way = road_of(data, [strand], 30)
    good = way.completed(model_of(way, strand, xyz))
    p = way.judge.problem
    rng = np.random.default_rng(0)
    moduli = np.where(p.held, rng.permutation(np.abs(good.f)) * 30, np.abs(good.f))
    bad = replace(good, f=moduli * np.exp(1j * (np.angle(good.f) + np.where(p.held, 0, 0.7))), merit=good.merit - 0.01)
    assert consensus(p, good.f, [bad.f], 6)[1] == 2
    assert way.reinforced([good, bad], [], lambda: False) == [good, bad]


def test_maps_are_brought_to_one_origin_and_repetitions_do_not_count(strand: pieces.Piece) -> None:
    xyz = strand.xyz + np.array([2.0, 3.0, 5.0])
    data, _ = made([xyz], strand.weight, TINY)
    way = road_of(data, [strand], 30)
    p, f = way.judge.problem, model_of(way, strand, xyz).f
    shifted = move(p.hkl, f, (0.5, 0.37, 0.5))
    there, cc = brought(p, shifted, f)
    assert cc > 0.999 and np.abs(np.angle(there * np.conj(f)))[np.abs(f) > 1].max() < 0.02
    assert brought(p, np.conj(f), f)[1] < 0.9  # the hand stays
    assert consensus(p, f, [shifted, 3 * f], 6)[1] == 1
    rng = np.random.default_rng(2)
    free = np.abs(f.imag) > 1e-6 * np.abs(f)
    other = shifted * np.exp(1j * np.where(free, rng.normal(0, 0.6, len(f)), 0))
    mean, count = consensus(p, f, [other, other, rng.permutation(f)], 6)
    assert count == 2
    unit = [g / np.sqrt(np.mean(np.abs(g[~p.held]) ** 2)) for g in (f, brought(p, other, f)[0])]
    np.testing.assert_allclose(mean, sum(unit) / 2, atol=1e-9)


def test_what_has_grown_is_dressed_too(strand: pieces.Piece, monkeypatch: pytest.MonkeyPatch) -> None:
    data, _ = made([strand.xyz + 3.0], strand.weight, TINY)
    way = road_of(data, [strand], 30)
    bare = model_of(way, strand, strand.xyz + 3.0)
    named = model_of(way, replace(strand, sequence="AAAA"), strand.xyz + 3.0)
    met: list[Model] = []
    monkeypatch.setattr(Road, "dress", lambda self, model, late: met.append(model))
    for model in (bare, named):
        way.dress_grown(model, lambda: False)
    assert met == [bare]


# -------------------------------------------------------------------------------------------------------- the plan


def simple(name: str = "P 1 21 1", d_min: float = 1.5, atoms: int = 12) -> Amplitudes:
    c = crystal(name, atoms=atoms, d_min=d_min)
    return data_of(c.hkl, c.f, c.cell, c.spacegroup)


@pytest.mark.parametrize(
    ("name", "d_min", "engine", "said"),
    [("P 1 21 1", 1.5, "classical", "learned projection"), ("P 1 21/c 1", 1.5, "auto", "no chiral molecule"),
     ("P 1 21 1", 0.9, "auto", "learned projection")],
)  # fmt: skip
def test_what_was_asked_for_and_cannot_be_is_refused(name: str, d_min: float, engine: str, said: str) -> None:
    data = simple(name, d_min)
    options = replace(OPTIONS, engine=engine)
    with pytest.raises(UserError, match=said) as caught:
        plan_phasing(data, normalise(data), replace(options, starts="fragments"))
    assert "starts fragments" in str(caught.value) and "starts auto" in str(caught.value)
    assert plan_phasing(data, normalise(data), options).road is None  # by itself it is left out in silence


def test_pieces_come_first_where_they_can_pay(strand: pieces.Piece) -> None:
    large = gemmi.UnitCell(10.0, 12.0, 14.0, 90, 98, 90)
    cases = [(made([strand.xyz], strand.weight, large, d_min=d)[0], d) for d in (1.6, 1.1)]
    planned = [plan_phasing(data, normalise(data), replace(OPTIONS, starts=s)) for data, _ in cases for s in
               ("auto", "random", "fragments")]  # fmt: skip
    assert [p.road is not None for p in planned] == [True, False, True, cases[1][1] > FRAGMENTS_D_MIN, False, True]
    assert any("pieces of strand and helix" in said for said in planned[0].choices)
    assert not any("placed by their agreement" in said for said in planned[1].choices)
    assert planned[0].road_finishers == () and len(planned[5].road_finishers) > 0  # data finer than the network's
    data = cases[0][0]
    own = plan_phasing(data, normalise(data), OPTIONS, pieces=(strand,))
    assert own.road is not None and own.road.pieces == (strand,)
    assert any("the piece given" in said for said in own.choices)
    assert own.road_rows is not None and np.array_equal(own.road.judge.problem.hkl, data.hkl[own.road_rows])
    assert not own.road.judge.problem.held[own.road.scene.rows].any()  # rows are all of the data here
    tiny = simple("P 1 21 1", 1.5)
    tiny = replace(tiny, cell=gemmi.UnitCell(5, 6, 7, 90, 98, 90), hkl=tiny.hkl)
    assert plan_phasing(tiny, normalise(tiny), replace(OPTIONS, resolution=None)).road is None  # no room for any


def test_proteins_begin_with_helices_if_there_is_time(monkeypatch) -> None:
    helix = pieces.polyalanine(8, (-62.0, -42.0), "helix of 8")
    data = made([helix.xyz], helix.weight, gemmi.UnitCell(24.0, 30.0, 30.0, 90, 98, 90), d_min=1.9)[0]
    normalised = normalise(data)
    long, short, asked = (
        plan_phasing(data, normalised, replace(OPTIONS, starts=s, timelimit=t))
        for s, t in (("auto", 240.0), ("auto", 1.0), ("fragments", 1.0))
    )
    assert long.road is not None and long.road.room >= pieces.MUCH
    assert [p.label for p in long.road.pieces[:3]] == ["helix of 12", "helix of 18", "helix of 8"]
    road = long.road
    assert road.wide is not None and set(road.wide.rows) <= set(road.scene.rows)
    assert len(road.wide.rows) == min(WIDE[0], len(road.scene.rows)) and len(road.scene.rows) > SCENE
    monkeypatch.setattr(beginnings, "WIDE", (500, 1000))
    few = plan_phasing(data, normalised, replace(OPTIONS, starts="fragments")).road
    assert few is not None and few.wide is not None and len(few.wide.rows) == 1000
    told = dict(zip(few.scene.rows, (few.scene.weight * (few.scene.value - 1).abs()).tolist(), strict=True))
    rest = set(few.scene.rows) - set(few.wide.rows)
    assert min(told[r] for r in few.wide.rows) >= max(told[r] for r in rest)  # those that tell most of a pose
    piece = few.pieces[0]
    assert len(few.turns(piece)) > len(replace(few, wide=None).turns(piece))
    assert short.road is None and any("no time. To change: timelimit" in said for said in short.choices)
    assert asked.road is not None


# ----------------------------------------------------------------------------------------------------- the pipeline


class Heard(Silent):
    def __init__(self) -> None:
        self.told: list[float] = []

    def progress(self, fraction, best, trials=()) -> None:
        self.told.append(fraction)


@pytest.fixture(scope="module")
def small(strand: pieces.Piece) -> tuple[Amplitudes, np.ndarray, np.ndarray]:
    way = road_of(made([strand.xyz], strand.weight, SMALL)[0], [strand], 30)
    turn, xyz = packed(way, strand, (), 1)
    return *made([xyz], strand.weight, SMALL), turn


@pytest.mark.parametrize("starts", ["random", "auto", "fragments"])
def test_starts_decide_what_is_tried(starts: str, small, strand: pieces.Piece, monkeypatch) -> None:
    """One piece, few orientations with the right one among them, the judge a stand-in."""
    data, truth, turn = small
    near = np.concatenate([turn[None], Rotation.random(40, rng=np.random.default_rng(3)).as_matrix()])
    monkeypatch.setattr(road, "orientations", lambda count: near)
    options = replace(OPTIONS, starts=starts, timelimit=4, trials=12)
    normalised = normalise(data)
    plan = plan_phasing(data, normalised, options, pieces=() if starts == "random" else (strand,))
    if plan.road is not None:
        plan = replace(plan, road=replace(plan.road, judge=replace(plan.road.judge, network=Stand(2))))
    heard = Heard()
    hunt = pipeline.phase(plan, options, heard)
    methods = {t.method for t in hunt.trials}
    assert (METHOD in methods) == (starts != "random")
    assert methods == {METHOD} or starts != "fragments"
    assert len(methods) > 1 or starts != "auto" or hunt.convinced
    best, _ = pipeline.choose(hunt, data, normalised, plan)
    assert best.probability == max(s.probability for s in hunt.solutions)
    assert all((s.fragments is not None) == (hunt.trials[s.trial].method == METHOD) for s in hunt.solutions)
    share = {"random": 1.0, "auto": pipeline.FRAGMENTS_SHARE, "fragments": 1.0}[starts]
    assert 0 < heard.told[0] <= share and max(heard.told) <= 1
    if starts == "fragments":
        phased = data.f * np.exp(1j * np.angle(best.f))
        assert compare(data.hkl, phased, truth, data.cell, data.spacegroup).map_cc > 0.7
        assert best.merit == best.fragments.merit and hunt.solutions[0].merit == max(s.merit for s in hunt.solutions)


@pytest.mark.parametrize("convinced", [False, True])
def test_where_atoms_are_seen_pieces_are_the_last_resort(strand: pieces.Piece, convinced: bool, monkeypatch) -> None:
    """At 1.1 A random phases come first, and pieces only if those convince of nothing; where they are asked for, or the
    data end at 1.6 A, first."""
    from ml_phaser.phasing import search as searching
    from ml_phaser.phasing.fragments import solutions

    large, order = gemmi.UnitCell(10.0, 12.0, 14.0, 90, 98, 90), []
    monkeypatch.setattr(searching, "search", lambda *args, seconds, **more: order.append(("random", seconds)))
    monkeypatch.setattr(solutions, "from_fragments", lambda *args, **more: order.append(("pieces", args[6])))
    monkeypatch.setattr(Hunt, "convinced", property(lambda hunt: convinced))
    found = []
    for d_min, starts in ((1.6, "auto"), (1.1, "auto"), (1.1, "fragments")):
        data, _ = made([strand.xyz], strand.weight, large, d_min=d_min)
        options = replace(OPTIONS, starts=starts, timelimit=10.0)
        plan = replace(plan_phasing(data, normalise(data), options), walks=None, rebuilder=None)  # theirs is the clock
        assert plan.road_last == (d_min == 1.1 and starts == "auto")
        assert plan.road_last == any(said.startswith("After half the time goes on with") for said in plan.choices)
        order.clear()
        pipeline.phase(plan, options, Silent(), lambda: 0.0)
        found.append(list(order))
    assert found[0] == [("pieces", 5.0), ("random", 10.0)]
    assert found[1] == ([("random", 5.0)] if convinced else [("random", 5.0), ("pieces", 10.0)])
    assert found[2] == [("pieces", 10.0), ("random", 10.0)]  # nothing was found by them here
    data, _ = made([strand.xyz], strand.weight, large, d_min=1.6)
    plan = plan_phasing(data, normalise(data), replace(OPTIONS, timelimit=10.0))
    assert plan.road is not None
    plan = replace(plan, walks=None, rebuilder=None, road=replace(plan.road, room=pieces.MUCH))
    order.clear()
    pipeline.phase(plan, replace(OPTIONS, timelimit=10.0), Silent(), lambda: 0.0)
    assert order == [("pieces", 10.0), ("random", 10.0)]  # of proteins pieces have all the time
    given = plan_phasing(data, normalise(data), OPTIONS, pieces=(strand,))
    assert given.road is not None and not given.road_last


def test_what_the_road_leads_to_is_entered_among_the_solutions(strand: pieces.Piece) -> None:
    data, _ = made([strand.xyz + np.array([2.0, 3.0, 5.0])], strand.weight, TINY)
    way = road_of(data, [strand], 30)
    right = model_of(way, strand, strand.xyz + np.array([2.0, 3.0, 5.0]))
    wrong = model_of(way, strand, strand.xyz @ Rotation.from_rotvec([1.0, 0.5, 0.2]).as_matrix().T)

    class Short(Road):
        def travel(self, seconds, tell, now=None):
            tell(1.0)
            self.models = [wrong, right]
            return [self.completed(m) for m in self.models]

    short = Short(way.scene, way.judge, way.spacegroup, way.pieces, way.room, way.d_min)
    hunt, told, n = Hunt(way.judge.problem), [], len(data) + 5
    rows = np.arange(len(data)) + 5
    hunt.problem = replace(way.judge.problem, hkl=np.concatenate([np.tile([[1, 0, 0]], (5, 1)), data.hkl]))
    from_fragments(hunt, short, rows, (), n, 3, 1.0, told.append)
    assert (
        told == [1.0]
        and [(t.seed, t.cycles) for t in hunt.trials] == [(3, 15)] * 2
        and all(t.finished for t in hunt.trials)
    )
    best = hunt.solutions[0]
    assert best.trial == 1 and best.fragments is not None and best.merit > hunt.solutions[1].merit
    assert best.f.shape == (n,) and (best.f[:5] == 0).all() and (best.f[5:] != 0).mean() > 0.9
    chain = best.fragments.chains[0]
    assert chain.letters == "AAAA" and chain.names == strand.names and best.fragments.atoms == 20
    np.testing.assert_allclose(chain.xyz, strand.xyz + np.array([2.0, 3.0, 5.0]), atol=1e-3)
    assert (best.fragments.judged, best.held) == (right.judged, int(way.judge.problem.held.sum()))


def test_turns_go_on_from_what_the_road_comes_to_while_it_travels(strand: pieces.Piece) -> None:
    """From each once, and what is entered then is not entered again, unless it is better."""
    data, _ = made([strand.xyz + np.array([2.0, 3.0, 5.0])], strand.weight, TINY)
    way = road_of(data, [strand], 30)
    right = model_of(way, strand, strand.xyz + np.array([2.0, 3.0, 5.0]))
    led: list[object] = []

    class Short(Road):
        def travel(self, seconds, tell, now=None):
            done = self.completed(right)
            led.append(self.onward and self.onward(done))
            better = replace(done, model=replace(right, maps=2), score=done.score + 0.01)
            return [done, better, replace(better, score=better.score - 0.005)]

    class Turning:
        cost = 1.0

        def __init__(self, **changes):
            self.changes = changes

        def promising(self, solution):
            return True

        def __call__(self, solution, time_left, tell):
            tell()
            return replace(solution, **self.changes)

    def entered(turning, left=1e9):
        short = Short(way.scene, way.judge, way.spacegroup, way.pieces, way.room, way.d_min)
        hunt, told = Hunt(way.judge.problem), []
        rows, n = np.arange(len(data)), len(data)
        from_fragments(hunt, short, rows, (), n, 3, 1.0, told.append, rebuilder=turning, time_left=lambda: left)
        return hunt, told

    hunt, told = entered(Turning())
    assert led == [hunt.convinced] and len(told) == 1
    assert len(hunt.trials) == len(hunt.solutions) == 1 and hunt.solutions[0].agreeing == 0
    first = way.completed(right)
    assert hunt.solutions[0].score == pytest.approx(first.score + 0.01) == hunt.trials[0].score
    hunt, told = entered(Turning(), left=0.5)
    assert not told and len(hunt.trials) == 1
    hunt, _ = entered(None)
    assert led[-1] is None and len(hunt.trials) == 1
    hunt, _ = entered(Turning(score=0.01, finisher=f"x{SUFFIX}"))  # taken for its atoms, though it predicts less
    assert hunt.solutions[0].score == hunt.trials[0].score == 0.01
    for score in (0.49, 0.51):
        hunt, _ = entered(Turning(score=score, worth=0.9))
        assert hunt.convinced and led[-1] == (score > 0.5)  # a poor map is gone on from, though it is right


# ------------------------------------------------------------------------------------------------- record and log


def test_the_log_and_the_record_name_the_pieces(strand: pieces.Piece) -> None:
    from sample_outcome import outcome

    from ml_phaser.report import log
    from ml_phaser.report.record import run_record

    chain = Chain(strand.names, strand.elements, strand.residue, strand.letters, strand.xyz)
    with_them = outcome(fragments=Fragments("strand of 4", 0.456, 0.5, (chain, chain), 0.52, 0.09))
    told = run_record(with_them, OPTIONS)["fragments"]
    assert told == {"label": "strand of 4", "atoms": 40, "fit": 0.456, "judged": 0.5, "merit": 0.52, "lead": 0.09}
    assert run_record(outcome(), OPTIONS)["fragments"] is None
    assert "strand of 4 (40 atoms placed, CC 0.46 with E^2)" in log.verdict(with_them)
    assert "Begun with" not in log.verdict(outcome())


def test_built_chains_have_the_letters_asked_for() -> None:
    chain = pieces.of_peptide("x", build("AGA", [(-120.0, 130.0)] * 3, [()] * 3, [180.0] * 3))
    assert chain.letters == "AGA" and not chain.grows and pieces.polyalanine(3, (-60.0, -40.0), "h").grows
