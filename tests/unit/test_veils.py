"""Solvent: variances against sums over the cell, and what is left of a density where it is flat."""

from dataclasses import replace

import gemmi
import numpy as np
import pytest
from resolved import Made
from test_completion import OPTIONS, data_of

from ml_phaser import arrays
from ml_phaser.crystal.normalise import normalise
from ml_phaser.crystal.phase_distributions import PhaseDistributions
from ml_phaser.phasing.rebuild import SEEN
from ml_phaser.phasing.veils import FLAT, NOISE, VEILS, Veil, Veiled
from ml_phaser.plan import plan_phasing


@pytest.fixture(scope="module")
def problem():
    made = Made("P 1 21 1", d_min=2.0, count=12, seed=3, edges=(9.0, 8.0, 10.0))
    plan = plan_phasing(data_of(made), normalise(data_of(made)), replace(OPTIONS, engine="classical"))
    return plan.whole


def halves(problem, seed=0, noise=0.3):
    """Half of the cell with strong density, half with little, about a level of 0.5; and which is strong."""
    rng = np.random.default_rng(seed)
    u = np.arange(problem.shape[2]) < problem.shape[2] // 2
    strong = np.broadcast_to(u, problem.shape)
    rho = np.where(strong, rng.normal(0, 2, problem.shape), rng.normal(0.5, noise, problem.shape))
    return rho.astype(np.float32)[None], strong


def points(problem):
    """Positions of the grid's points, A."""
    fractions = [np.arange(n) / n for n in problem.shape]
    return np.stack(np.meshgrid(*fractions, indexing="ij"), axis=-1)


def test_variance_is_that_of_a_gaussian_around_each_point(problem):
    """By brute force: squares, weighted by the distance to the nearest image, at some points."""
    reach = 1.0
    rho, _ = halves(problem)
    seen = []

    class Watched(Veiled):
        def drawn(self, rho):
            seen.append(self._kernel)
            return super().drawn(rho)

    veil = Veil("of this test", 0.4, reach)
    after = arrays.to_numpy(Watched(lambda x: x, problem, veil)(arrays.beside(rho, problem.target.amplitude)))
    where, orth = points(problem), np.array(problem.cell.orth.mat)
    square = rho[0].astype(float) ** 2
    variance = np.empty(problem.shape)
    images = np.array([(i, j, k) for i in (-1, 0, 1) for j in (-1, 0, 1) for k in (-1, 0, 1)])
    for index in np.ndindex(problem.shape):
        apart = (where - where[index]).reshape(-1, 1, 3) + images
        weight = np.exp(-((apart @ orth.T) ** 2).sum(-1) / (2 * reach**2)).sum(1).reshape(problem.shape)
        variance[index] = (weight * square).sum() / weight.sum()
    there = variance <= np.sort(variance.ravel())[round(0.4 * problem.points) - 1]
    level, least = rho[0][there].mean(), variance[there].mean()
    wanted = level + (rho[0] - level) * np.clip(1 - least / variance, 0, None)
    assert np.corrcoef(wanted.ravel(), after[0].ravel())[0, 1] > 0.999
    assert seen[0].shape == (*problem.shape[:2], problem.shape[2] // 2 + 1)


@pytest.mark.parametrize("veil", [replace(FLAT, reach=1.0), replace(NOISE, reach=1.0)])
def test_noise_goes_and_structure_stays(problem, veil):
    rho, _ = halves(problem)
    deep = np.zeros(problem.shape, dtype=bool)
    deep[:, :, round(0.65 * problem.shape[2]) : round(0.85 * problem.shape[2])] = True
    core = np.zeros(problem.shape, dtype=bool)
    core[:, :, round(0.15 * problem.shape[2]) : round(0.35 * problem.shape[2])] = True
    after = arrays.to_numpy(Veiled(lambda x: x, problem, veil)(arrays.beside(rho, problem.target.amplitude)))[0]
    assert after[deep].std() < 0.5 * rho[0][deep].std()
    assert after[core].std() > 0.8 * rho[0][core].std()
    assert after[deep].mean() == pytest.approx(0.5, abs=0.1)  # the level is kept


def test_a_level_is_reached_by_steps_as_steep_as_asked(problem):
    rho, _ = halves(problem)
    spread = []
    for power in (2.0, 12.0, 50.0):
        veil = replace(FLAT, reach=1.0, power=power)
        after = arrays.to_numpy(Veiled(lambda x: x, problem, veil)(arrays.beside(rho, problem.target.amplitude)))[0]
        spread.append(after[:, :, round(0.75 * problem.shape[2])].std())
    assert spread[0] > spread[1] > spread[2]


def test_maps_of_a_batch_do_not_see_each_other(problem):
    one, _ = halves(problem)
    two, _ = halves(problem, seed=5, noise=1.0)
    for veil in VEILS:
        veiled = Veiled(lambda x: x, problem, replace(veil, reach=1.0))
        alone = [arrays.to_numpy(veiled(arrays.beside(x, problem.target.amplitude))) for x in (one, two)]
        both = arrays.to_numpy(veiled(arrays.beside(np.concatenate([one, two]), problem.target.amplitude)))
        assert np.allclose(both, np.concatenate(alone), atol=1e-5)


def test_torch_and_numpy_agree(problem):
    torch = pytest.importorskip("torch")
    rho, _ = halves(problem)
    target = problem.target
    kinds = []
    for kind in (lambda x: torch.from_numpy(np.array(x)), np.asarray):
        other = replace(problem, target=replace(target, amplitude=kind(arrays.to_numpy(target.amplitude))))
        kinds.append(arrays.to_numpy(Veiled(lambda x: x, other, replace(NOISE, reach=1.0))(kind(rho))))
    assert np.allclose(*kinds, atol=1e-5)


def test_symmetry_is_kept(problem):
    """What goes in obeys the group, and so does what comes out."""
    rho, _ = halves(problem)
    grid = gemmi.FloatGrid(np.ascontiguousarray(rho[0]))
    grid.spacegroup = gemmi.SpaceGroup("P 1 21 1")
    grid.set_unit_cell(problem.cell)
    grid.symmetrize_avg()
    even = np.array(grid.array, dtype=np.float32)[None]
    for veil in VEILS:
        veiled = Veiled(lambda x: x, problem, replace(veil, reach=1.0))
        grid.array[:] = arrays.to_numpy(veiled(arrays.beside(even, problem.target.amplitude)))[0]
        before = np.array(grid.array)
        grid.symmetrize_avg()
        assert np.allclose(before, grid.array, atol=1e-4 * np.abs(before).max())


@pytest.mark.parametrize(("edges", "ways"), [((9.0, 8.0, 10.0), 1), ((22.0, 21.0, 23.0), 3)])
def test_phases_given_are_modified_with_solvent_taken_away_where_there_may_be_some(edges, ways):
    """Each with a projection of its own, the plain one first."""
    made = Made("P 1 21 1", d_min=2.0, count=12, seed=3, edges=edges)
    known = PhaseDistributions(np.zeros((len(made.f), 4)), np.zeros(len(made.f), dtype=complex))
    plan = plan_phasing(data_of(made), normalise(data_of(made)), replace(OPTIONS, engine="learned"), starts=known)
    modified = [e for e in plan.entrants if "from given phases" in e.method.name]
    assert len(modified) == ways
    names = ["", *(f", {veil.name}" for veil in VEILS)][:ways]
    ends = ["", ", released", ", released"]
    wanted = [f"learned projection{name}, from given phases{end}" for name, end in zip(names, ends, strict=False)]
    assert [e.method.name for e in modified] == wanted
    projections = [e.finishers[0].projections[0][1] for e in modified]
    assert [getattr(projection, "veil", None) for projection in projections] == [None, *VEILS][:ways]


def test_large_grids_have_as_many_cycles_as_the_time_allows():
    made = Made("P 1 21 1", d_min=2.0, count=12, seed=3, edges=(42.0, 41.0, 43.0))
    known = PhaseDistributions(np.zeros((len(made.f), 4)), np.zeros(len(made.f), dtype=complex))

    def cycles(seconds):
        options = replace(OPTIONS, engine="learned", timelimit=seconds)
        plan = plan_phasing(data_of(made), normalise(data_of(made)), options, starts=known)
        return [e.cycles for e in plan.entrants if "from given phases" in e.method.name]

    short, middle, long = cycles(1.0), cycles(60.0), cycles(1e4)
    assert len({*short}) == 1 and short[0] < middle[0] < long[0] == 20
    assert 0.4 * 60 < 3 * 1.5 * middle[0] * SEEN * made.cell.volume <= 0.5 * 60
