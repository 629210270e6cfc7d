"""Heavy atoms from the Patterson function: vectors against direct sums, sites and phases against those put in."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import gemmi
import numpy as np
import pytest
from crystals import mates

from ml_phaser import pipeline
from ml_phaser.crystal.agreement import compare, permissible_origins
from ml_phaser.crystal.normalise import normalise
from ml_phaser.crystal.reflections import Amplitudes, Source
from ml_phaser.errors import UserError
from ml_phaser.notify import Silent
from ml_phaser.outcome import Verdict
from ml_phaser.parameters import Options
from ml_phaser.phasing.growth import COMPARED
from ml_phaser.phasing.heavy import sites as heavy_sites
from ml_phaser.phasing.heavy.sites import Effort, SiteSet, Superposition
from ml_phaser.phasing.heavy.solutions import METHOD, from_heavy_atoms, telling, unlike
from ml_phaser.phasing.heavy.vectors import Factors, Moduli, Operators, Vectors
from ml_phaser.phasing.search import Hunt
from ml_phaser.plan import plan_phasing

OPTIONS = Options(Path("a"), Path("b"), Path("c"), Path("d"), threads=1, timelimit=60.0)
CELLS = {
    "P 1": (16.0, 17.0, 18.0, 84.0, 97.0, 101.0),
    "P 1 21 1": (17.0, 20.0, 25.0, 90.0, 101.0, 90.0),
    "P 21 21 21": (18.0, 24.0, 31.0, 90.0, 90.0, 90.0),
    "C 1 2 1": (36.0, 19.0, 22.0, 90.0, 105.0, 90.0),
    "P 31 2 1": (26.0, 26.0, 30.0, 90.0, 90.0, 120.0),
    "R 3:H": (34.0, 34.0, 17.0, 90.0, 90.0, 120.0),
}


def atoms(name: str, light: int, heavy: int, seed: int = 0, element: str = "S") -> gemmi.SmallStructure:
    """Random atoms in the asymmetric unit, 1.4 A apart, the heavy ones 4 A from each other and their images."""
    rng = np.random.default_rng(seed)
    small = gemmi.SmallStructure()
    small.cell, small.spacegroup_hm = gemmi.UnitCell(*CELLS[name]), name
    group, orth = gemmi.SpaceGroup(name), np.array(small.cell.orth.mat)
    every = np.zeros((0, 3))
    for i in range(heavy + light):
        while True:
            new = mates(rng.random((1, 3)), group)
            gaps = new[:1] - np.vstack([every, new[1:]])
            gaps -= np.round(gaps)
            if np.linalg.norm(gaps @ orth.T, axis=1).min(initial=99.0) > (4.0 if i < heavy else 1.4):
                break
        every = np.vstack([every, new])
        site = gemmi.SmallStructure.Site()
        site.label, site.element = f"A{i}", gemmi.Element(element if i < heavy else "CNO"[i % 3])
        site.fract, site.u_iso, site.occ = gemmi.Fractional(*new[0]), 0.06, 1.0
        small.add_site(site)
    return small


def positions(small: gemmi.SmallStructure, element: str = "S") -> np.ndarray:
    return np.array([s.fract.tolist() for s in small.sites if s.element.name == element])


def measured(small: gemmi.SmallStructure, d_min: float, noise: float = 0.03, seed: int = 0) -> tuple:
    """Data with noise as a share of the r.m.s. amplitude, and the true structure factors, summed directly."""
    group = gemmi.SpaceGroup(small.spacegroup_hm)
    hkl = gemmi.make_miller_array(small.cell, group, d_min)
    hkl = hkl[~np.asarray(group.operations().systematic_absences(hkl), dtype=bool)].astype(np.int32)
    stol2 = np.asarray(small.cell.calculate_1_d2_array(hkl)) / 4
    f = np.zeros(len(hkl), dtype=complex)
    for site in small.sites:
        power = np.array([site.element.it92.calculate_sf(float(v)) for v in stol2])
        images = mates(np.array([site.fract.tolist()]), group)
        f += power * np.exp(-8 * np.pi**2 * site.u_iso * stol2) * np.exp(2j * np.pi * hkl @ images.T).sum(axis=1)
    rng = np.random.default_rng(seed)
    sigma = noise * np.sqrt(np.mean(np.abs(f) ** 2))
    moduli = np.abs(np.abs(f) + sigma * rng.normal(size=len(f)))
    source = Source("simulated", "simulated", ("F", "SIGF"), "amplitude")
    return Amplitudes(hkl, moduli, np.full(len(f), sigma), small.cell, group, source), f


def superposition(data: Amplitudes) -> Superposition:
    excess = normalise(data).e ** 2 - 1
    vectors = Vectors.of(data.hkl, excess, data.cell, data.spacegroup)
    moduli = Moduli.of(Factors.of(data.hkl, vectors.operators), excess, telling(data.d, data.sigf / data.f))
    return Superposition.of(vectors, moduli, data.cell, data.spacegroup, data.d_min)


def found(sites: np.ndarray, truth: np.ndarray, data: Amplitudes, within: float = 0.5) -> int:
    """The most true sites that have one of ``sites`` or an image of it within so many A, over origins and hands."""
    origins, orth = permissible_origins(data.spacegroup), np.array(data.cell.orth.mat)
    best, every = 0, mates(truth, data.spacegroup).reshape(-1, len(truth), 3)
    axes = np.linalg.qr((origins.directions @ orth.T).T)[0] if len(origins.directions) else np.zeros((3, 0))
    for sign in (1, -1):
        for origin in origins.shifts:
            moved = sign * sites + origin
            drifts = [np.zeros(3)]
            if axes.shape[1]:
                drifts = [
                    np.linalg.solve(orth, axes @ axes.T @ orth @ (t - s)) for s in moved for t in every.reshape(-1, 3)
                ]
            for drift in drifts:
                gaps = every[:, :, None] - (moved + drift)
                gaps -= np.round(gaps)
                near = np.linalg.norm(gaps @ orth.T, axis=-1).min(axis=(0, 2)) < within
                best = max(best, int(near.sum()))
    return best


@pytest.fixture(scope="module", params=["P 1", "P 1 21 1", "P 31 2 1", "R 3:H"])
def small(request) -> tuple:
    structure = atoms(request.param, 60, 4, seed=3)
    return (structure, *measured(structure, 1.1))


def test_vectors_are_read_where_the_patterson_has_them(small) -> None:
    """Far from the origin: the values are those of the sum over all reflections, less a constant, in another unit."""
    _, data, _ = small
    s, rng = superposition(data), np.random.default_rng(0)
    grid = rng.integers(0, s.vectors.shape, size=(400, 3)) / np.array(s.vectors.shape)
    near = np.linalg.norm((grid - np.round(grid)) @ np.array(data.cell.orth.mat).T, axis=1) < 9.5
    grid = grid[~near]
    excess = normalise(data).e ** 2 - 1
    rotations = [np.array(op.rot) / op.DEN for op in data.spacegroup.operations().sym_ops]
    every = {}
    for rotation in rotations:
        for h, value in zip(np.rint(data.hkl @ rotation).astype(int), excess, strict=True):
            every[max(tuple(h), tuple(-h))] = value
    hkl, values = np.array(list(every)), np.array(list(every.values()))
    total = np.cos(2 * np.pi * grid @ hkl.T) @ values
    assert len(grid) > 20
    read = s.vectors.at(grid, s.vectors.raw)
    assert np.corrcoef(read, total)[0, 1] > 0.9999
    assert s.vectors.at(grid).min() >= -2 and s.vectors.at(grid).max() <= 6


def test_vectors_between_sites_are_those_to_all_images(small) -> None:
    _, data, _ = small
    s, rng = superposition(data), np.random.default_rng(1)
    x, y = rng.random((5, 3)), rng.random(3)
    images = mates(y[None], data.spacegroup)
    expected = [sum(float(s.vectors.at(a - b)) for b in images) for a in x]
    np.testing.assert_allclose(s.vectors.between(x, y), expected, rtol=1e-5, atol=1e-5)
    own = [sum(float(s.vectors.at(a - b)) for b in mates(a[None], data.spacegroup)[1:]) for a in x]
    np.testing.assert_allclose(s.vectors.own(x), own, rtol=1e-5, atol=1e-5)
    # the quick way for all positions at once is the same but for rounding to neighbouring grid points
    quick, slow = s._said_by(y), s.vectors.between(s.positions, y)
    assert np.mean(quick == slow) > 0.9 and np.corrcoef(quick, slow)[0, 1] > 0.98


def test_positions_looked_at_are_one_of_each_set_of_equivalents(small) -> None:
    _, data, _ = small
    s = superposition(data)
    images = np.rint(mates(s.positions[:: max(1, len(s.index) // 50)], data.spacegroup) * s.shape).astype(int)
    looked = set(map(tuple, s.index))
    images = images.reshape(len(s.vectors.operators), -1, 3) % np.array(s.shape)
    counts = [len(looked & {tuple(image[k]) for image in images}) for k in range(images.shape[1])]
    assert set(counts) == {1}


def test_structure_factors_of_a_site_are_the_sum_over_its_images(small) -> None:
    _, data, _ = small
    moduli, x = superposition(data).moduli, np.array([0.13, 0.27, 0.41])
    expected = np.exp(2j * np.pi * data.hkl @ mates(x[None], data.spacegroup).T).sum(axis=1)
    np.testing.assert_allclose(moduli.factors.of_site(x), expected, atol=2e-4)


def test_the_fit_is_a_number_of_standard_deviations(small) -> None:
    structure, data, _ = small
    moduli, rng = superposition(data).moduli, np.random.default_rng(2)
    by_chance = [moduli.fit(sum(moduli.factors.of_site(x) for x in rng.random((3, 3)))) for _ in range(60)]
    assert 0.6 < np.std(by_chance) < 2.0 and abs(np.mean(by_chance)) < 0.6
    assert moduli.fit(sum(moduli.factors.of_site(x) for x in positions(structure))) > 5
    if len(list(data.spacegroup.operations())) == 1:
        assert moduli.fit(moduli.factors.of_site(np.zeros(3))) == 0.0  # one atom in P1 has the same modulus everywhere


def test_sites_of_heavy_atoms_are_found(small) -> None:
    structure, data, _ = small
    first = next(superposition(data).rounds(lambda: False))
    assert max(found(s.sites, positions(structure), data) for s in first[:3]) >= 3
    fits = [s.fit for s in first]
    assert fits == sorted(fits, reverse=True) and len(first[0].sites) == heavy_sites.MOST_SITES


def test_a_search_out_of_time_still_gives_sites() -> None:
    data, _ = measured(atoms("P 1 21 1", 40, 3), 1.2)
    rounds = list(superposition(data).rounds(lambda: True))
    assert len(rounds) == 1 and len(rounds[0][0].sites) >= 2


def test_later_rounds_look_further(monkeypatch) -> None:
    data, _ = measured(atoms("P 1 21 1", 40, 3), 1.2)
    narrow, wide = Effort(2, 2, (2,), 1, (3,), 2), Effort(8, 6, (6, 4), 2, (30, 20), 10)
    monkeypatch.setattr(heavy_sites, "EFFORTS", (narrow, wide))
    one, two = superposition(data).rounds(lambda: False)
    assert len(one) <= 2 < len(two) <= 10 and two[0].fit >= one[0].fit
    assert [wide.next(n) for n in (2, 3, 4, 9)] == [6, 4, 2, 2] and [wide.keep(n) for n in (2, 3, 4)] == [30, 20, 10]


def test_no_more_sets_than_memory_has_room_for(monkeypatch) -> None:
    data, _ = measured(atoms("P 1 21 1", 40, 3), 1.2)
    s = superposition(data)
    each = 4 * len(s.index) + 8 * len(data)
    assert s.room == int(heavy_sites.MEMORY / each) > 300
    monkeypatch.setattr(heavy_sites, "MEMORY", 20 * each)
    few = superposition(data)
    assert few.room == 20 and len(next(few.rounds(lambda: False))) <= 20 < len(next(s.rounds(lambda: False)))
    monkeypatch.setattr(heavy_sites, "MEMORY", 1.0)
    assert superposition(data).room == heavy_sites.FEWEST_SETS


@pytest.mark.parametrize("name", ["P 1 21 1", "P 21 21 21", "C 1 2 1"])
def test_no_two_sites_coincide_and_none_is_special(name: str) -> None:
    data, _ = measured(atoms(name, 40, 3, seed=5), 1.2)
    orth = np.array(data.cell.orth.mat)
    for chosen in next(superposition(data).rounds(lambda: False))[:5]:
        every = mates(chosen.sites, data.spacegroup)
        gaps = every[:, None] - every
        lengths = np.linalg.norm((gaps - np.round(gaps)) @ orth.T, axis=-1)
        assert lengths[np.triu_indices(len(every), 1)].min() > 1.0


def test_weights_are_the_powers_of_atoms() -> None:
    """Alone in the cell, three iron and three sulphur atoms stand out by the square of their numbers of electrons."""
    structure = atoms("P 1 21 1", 0, 3, seed=1, element="Fe")
    sulphur = atoms("P 1 21 1", 0, 6, seed=1)
    for site in list(sulphur.sites)[3:]:
        structure.add_site(site)
    data, _ = measured(structure, 1.0, noise=0.0)
    s = superposition(data)
    truth = np.concatenate([positions(structure, "Fe"), positions(structure)])
    weights = s.vectors.weights(truth)
    assert weights.max() == 1.0 and weights[:3].min() > 0.8
    np.testing.assert_allclose(weights[3:], 16 / 26, atol=0.15)
    spoilt = s.vectors.weights(np.vstack([truth, [[0.01, 0.6, 0.77]]]))
    assert spoilt[-1] < 0.35


def test_sulphur_tells_more_at_high_resolution_and_noise_tells_less() -> None:
    d = np.array([3.0, 2.0, 1.0])
    plain = telling(d, np.zeros(3))
    assert plain[0] < plain[1] < plain[2] and plain.mean() == pytest.approx(1.0)
    noisy = telling(d, np.array([0.0, 0.0, 1.0]))
    assert noisy[2] < noisy[0]


def test_sets_that_share_most_of_their_sites_are_tried_once() -> None:
    rng = np.random.default_rng(0)
    base = rng.random((8, 3))
    near = np.vstack([base[:7], rng.random((1, 3))])
    half = np.vstack([base[:4], rng.random((4, 3))])
    sets = [SiteSet(x, fit) for x, fit in ((base, 9.0), (near, 8.0), (half, 7.0))]
    assert unlike(sets) == [sets[0], sets[2]]
    assert unlike(sets[1:], sets[:1]) == [sets[2]]


# ----------------------------------------------------------------------------------------------------------- phasing


@pytest.fixture(scope="module", params=["P 1", "P 21 21 21"])
def protein(request) -> tuple:
    """Random atoms, six of sulphur."""
    structure = atoms(request.param, {"P 1": 220, "P 21 21 21": 150}[request.param], 6, seed=7)
    return (structure, *measured(structure, 1.0, noise=0.05))


def test_phases_grow_from_heavy_atoms(protein) -> None:
    _, data, truth = protein
    normalised = normalise(data)
    options = replace(OPTIONS, starts="heavy")
    plan = plan_phasing(data, normalised, options)
    assert plan.heavy is not None
    hunt = Hunt(plan.whole, plan.rows)
    told: list[float] = []
    from_heavy_atoms(hunt, plan.heavy, plan.finishers, plan.n, 0, 60.0, None, told.append)
    assert hunt.convinced and all(t.method.startswith(METHOD) for t in hunt.trials)
    best = hunt.solutions[0]
    assert np.isnan(best.symmetry)  # the sites obey the group: that the phases do is no evidence
    phased = data.f * np.exp(1j * np.angle(best.f))
    assert compare(data.hkl, phased, truth, data.cell, data.spacegroup, repeats=0).map_cc > 0.8
    assert told == sorted(told) and told[0] >= 0 and told[-1] <= 1


def test_random_phases_go_the_same_way_where_a_solution_does_not_convince(protein, monkeypatch) -> None:
    from ml_phaser.phasing import confidence, search

    _, data, _ = protein
    normalised = normalise(data)
    options = replace(OPTIONS, starts="heavy")
    plan = plan_phasing(data, normalised, options)

    def verdict(trials: int | None = None) -> tuple[Hunt, Verdict]:
        hunt, looks = Hunt(plan.whole, plan.rows), iter(range(10**6))
        from_heavy_atoms(
            hunt, plan.heavy, plan.finishers, plan.n, 0, 1.0, trials, lambda done: None, lambda: float(next(looks))
        )  # fmt: skip
        best, _ = pipeline.choose(hunt, data, normalised, plan)
        return hunt, pipeline.weigh(data, normalised, plan, best, keep_hand=True)[2]

    monkeypatch.setattr(search, "CONVINCED", 0.5)  # one turn of phases is close to what is asked for otherwise
    sure, _ = verdict()
    assert sure.convinced and np.isnan(sure.chance)  # no need to
    assert all(t.method.startswith(METHOD) for t in sure.trials)
    monkeypatch.setattr(search, "CONVINCED", 2.0)
    monkeypatch.setattr(confidence, "LARGE_HELD", 10**6)
    assert np.isnan(verdict()[0].chance)  # no use
    monkeypatch.setattr(confidence, "LARGE_HELD", 100)
    hunt, said = verdict()
    assert [t.method == COMPARED for t in hunt.trials] == [False, True]
    assert hunt.chance == hunt.trials[1].score < 0.2 < hunt.solutions[0].score
    assert f"random phases come to {hunt.chance:.2f}" in said.reason
    assert np.isnan(verdict(trials=1)[0].chance)


def test_no_more_trials_than_allowed_and_one_is_always_finished(monkeypatch) -> None:
    data, _ = measured(atoms("P 1 21 1", 60, 0, seed=4), 1.3)  # nothing heavy in it, and too coarse for light ones
    options = replace(OPTIONS, starts="heavy", trials=2)
    plan = plan_phasing(data, normalise(data), options)
    hunt = pipeline.phase(plan, options, Silent())
    assert len(hunt.trials) == 2 and len(hunt.solutions) == 1
    assert hunt.trials[hunt.solutions[0].trial].finished
    assert [t.cycles for t in hunt.trials] == [900, 900]  # nothing spoke for either


def test_the_most_promising_are_gone_on_with(monkeypatch) -> None:
    """When all sets of sites are tried, while there is time: here by a clock that goes on whenever it is looked at."""
    from ml_phaser.phasing.heavy import solutions

    monkeypatch.setattr(heavy_sites, "EFFORTS", (Effort(6, 6, (3,), 2, (12,), 8),))
    monkeypatch.setattr(solutions, "MOST_SHARED", 0.5)
    monkeypatch.setattr(solutions, "GONE_ON_WITH", 1)
    data, _ = measured(atoms("P 1 21 1", 90, 0, seed=4), 1.4)
    plan = plan_phasing(data, normalise(data), replace(OPTIONS, starts="heavy"))
    assert plan.heavy is not None
    hunt, looks = Hunt(plan.whole, plan.rows), iter(range(10**6))
    from_heavy_atoms(
        hunt, plan.heavy, plan.finishers, plan.n, 0, 260.0, None, lambda done: None, lambda: float(next(looks))
    )  # fmt: skip
    cycles = sorted(t.cycles for t in hunt.trials)
    assert len(cycles) > 1 and cycles[:-1] == [900] * (len(cycles) - 1) and cycles[-1] > 900


def test_reflections_held_out_are_not_in_the_patterson(protein) -> None:
    _, data, _ = protein
    normalised = normalise(data)
    options = replace(OPTIONS, starts="heavy")
    one = plan_phasing(data, normalised, options)
    held = np.zeros(len(data), dtype=bool)
    held[one.rows] = one.whole.held
    other = replace(normalised, e=np.where(held, 0.1, normalised.e), sig_e=np.where(held, 5.0, normalised.sig_e))
    two = plan_phasing(data, other, options)
    assert one.heavy is not None and two.heavy is not None and held.any()
    np.testing.assert_array_equal(one.heavy.superposition.vectors.raw, two.heavy.superposition.vectors.raw)
    np.testing.assert_array_equal(one.heavy.superposition.moduli.excess, two.heavy.superposition.moduli.excess)
    assert np.all(one.heavy.start(np.array([[0.1, 0.2, 0.3]]))[one.whole.held] == 0)


# ---------------------------------------------------------------------------------------------------------- the plan


def test_when_heavy_atoms_are_looked_for() -> None:
    large, few = (atoms("P 21 21 21", 0, 3, seed=2) for _ in range(2))
    at_1, _ = measured(large, 1.0)
    normalised = normalise(at_1)
    auto = plan_phasing(at_1, normalised, OPTIONS)
    assert auto.heavy is not None and any("heavy atoms" in said for said in auto.choices)
    for changed in (replace(OPTIONS, starts="random"), replace(OPTIONS, engine="learned")):
        assert plan_phasing(at_1, normalised, changed).heavy is None
    at_15, _ = measured(large, 1.5)
    assert plan_phasing(at_15, normalise(at_15), OPTIONS).heavy is None
    assert plan_phasing(at_15, normalise(at_15), replace(OPTIONS, starts="heavy")).heavy is not None
    few.cell = gemmi.UnitCell(8.0, 12.0, 14.0, 90, 90, 90)
    little, _ = measured(few, 1.0)
    assert plan_phasing(little, normalise(little), OPTIONS).heavy is None
    with pytest.raises(UserError, match="classical projections"):
        plan_phasing(at_1, normalised, replace(OPTIONS, starts="heavy", engine="learned"))


@pytest.mark.parametrize(("starts", "convinced"), [("auto", False), ("auto", True), ("heavy", False)])
def test_heavy_atoms_come_first(starts: str, convinced: bool, monkeypatch) -> None:
    from ml_phaser.phasing import search as searching
    from ml_phaser.phasing.heavy import solutions

    order: list[tuple[str, float]] = []
    monkeypatch.setattr(searching, "search", lambda *args, seconds, **more: order.append(("random", seconds)))
    monkeypatch.setattr(solutions, "from_heavy_atoms", lambda *args, **more: order.append(("heavy", args[5])))
    monkeypatch.setattr(Hunt, "convinced", property(lambda hunt: convinced))
    data, _ = measured(atoms("P 21 21 21", 0, 3, seed=2), 0.99)
    options = replace(OPTIONS, starts=starts, timelimit=10.0)
    plan = replace(plan_phasing(data, normalise(data), options), rebuilder=None)  # it has a share of its own
    pipeline.phase(plan, options, Silent(), lambda: 0.0)
    first = ("heavy", 10.0 if starts == "heavy" else 10.0 * pipeline.HEAVY_SHARE)
    assert order == ([first] if convinced else [first, ("random", 10.0)])


def test_operators_are_those_of_the_group() -> None:
    group = gemmi.SpaceGroup("C 1 2 1")
    ops = Operators.of(group)
    assert len(ops) == 4 and np.array_equal(ops.rotations[0], np.eye(3)) and not ops.translations[0].any()
    x = np.array([0.1, 0.2, 0.3])
    np.testing.assert_allclose(ops.images(x), mates(x[None], group))
    assert len(ops.laue) == 4
