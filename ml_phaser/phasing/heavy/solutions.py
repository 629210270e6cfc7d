"""From sites of heavy atoms to phases: density modification of what the sites tell, as trials beside all others."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import gemmi
import numpy as np
from numpy.typing import NDArray
from scipy.special import i0e, i1e

from ml_phaser.arrays import Array
from ml_phaser.crystal.normalise import Normalised
from ml_phaser.crystal.reflections import Amplitudes
from ml_phaser.outcome import Trial
from ml_phaser.phasing.completion import LastTouch
from ml_phaser.phasing.confidence import large
from ml_phaser.phasing.dual_space import Method
from ml_phaser.phasing.finish import Finisher, Solution, finish
from ml_phaser.phasing.heavy.sites import SiteSet, Superposition
from ml_phaser.phasing.heavy.vectors import HIGHEST_E2, Factors, Moduli, Vectors
from ml_phaser.phasing.problem import Problem
from ml_phaser.phasing.projections import inverse, unit_variance, with_amplitudes
from ml_phaser.phasing.search import Entrant, Hunt
from ml_phaser.phasing.weighting import sim_argument

METHOD = "heavy atoms"
COMPARED = "random phases, to compare"
TRIED = 6  # sets of sites of a round that phases are made from
SEARCHING, DESCENDING = 200, 100  # cycles of relaxed reflections, of alternating ones,
TURNS = 3  # so often at first, each going on with the first where the one before left them
GONE_ON_WITH = 3  # trials, the most promising, when all sets are tried
BETTER = 0.04  # held-out correlation by which a trial that was finished must improve to be finished again
MOST_SHARED = 0.75
LEAST_SIGMA_A2 = 0.005
SEARCH_SHARE = 0.6  # of the time, that the search for sites may take


@dataclass(frozen=True, eq=False)
class HeavyAtoms:
    """The search for heavy atoms of one crystal.

    superposition : of the reflections in use, none held out; entrant : whose problem, method, and way to a solution in
    the group are used; descent : what follows its method, alternating projections; factors : on its reflections
    """

    superposition: Superposition
    entrant: Entrant
    descent: Method
    factors: Factors

    @property
    def problem(self) -> Problem:
        return self.entrant.problem

    @property
    def bar(self) -> float:
        """Held-out correlation from which on phases are worth finishing."""
        return max(self.entrant.bar, 2.5 / math.sqrt(max(1, int(self.problem.held.sum()))))

    @classmethod
    def of(cls, data: Amplitudes, normalised: Normalised, entrant: Entrant, descent: Method) -> HeavyAtoms:
        """The Patterson function laid out; reflections held out of ``entrant.problem`` are not in it."""
        rows = entrant.rows[~entrant.problem.held]
        hkl, e = data.hkl[rows], normalised.e[rows]
        excess = np.minimum(e**2, HIGHEST_E2) - 1
        weight = telling(data.d[rows], normalised.sig_e[rows] / np.maximum(e, 1e-3))
        vectors = Vectors.of(hkl, excess * weight, data.cell, data.spacegroup)
        moduli = Moduli.of(Factors.of(hkl, vectors.operators), excess, weight)
        d_min = entrant.problem.d_min
        superposition = Superposition.of(vectors, moduli, data.cell, data.spacegroup, d_min)
        return cls(superposition, entrant, descent, Factors.of(entrant.problem.hkl, vectors.operators))

    def start(self, sites: NDArray[np.float64]) -> NDArray[np.complex128]:
        """Structure factors (n,) to begin with: measured moduli of reflections in use, phases of point atoms at the
        sites (m, 3), weights after Sim."""
        p = self.problem
        f = np.zeros(len(p.hkl), dtype=np.complex128)
        for site, weight in zip(sites, self.superposition.vectors.weights(sites), strict=True):
            f += weight * self.factors.of_site(site)
        return np.where(p.held, 0, p.amplitude * _sim(p, f) * np.exp(1j * np.angle(f)))


def telling(d: NDArray[np.float64], relative: NDArray[np.float64]) -> NDArray[np.float64]:
    """What reflections (n,) of spacing ``d`` (A) are expected to say of heavy atoms: the share of a sulphur atom in
    their intensity, among nitrogen, which grows with resolution; less where they are not well measured (``relative`` :
    sigma of F over F)."""
    s2 = 0.25 / d**2
    heavy, light = (np.array([gemmi.Element(name).it92.calculate_sf(float(v)) for v in s2]) for name in ("S", "N"))
    weight = (heavy / light) ** 2 / (1 + (4 * relative) ** 2)
    return np.asarray(weight / weight.mean())


def _sim(p: Problem, f: NDArray[np.complex128]) -> NDArray[np.float64]:
    """I1(X) / I0(X) (n,) of partial structure factors: sigmaA^2 is the covariance of E^2 with those of the part."""
    use = ~p.held & (np.abs(f) > 0)
    obs, calc = p.amplitude, np.abs(f)
    obs, calc = obs / math.sqrt(np.mean(obs[use] ** 2)), calc / math.sqrt(np.mean(calc[use] ** 2))
    square = max(LEAST_SIGMA_A2, min(0.9, float(np.mean((obs[use] ** 2 - 1) * (calc[use] ** 2 - 1)))))
    x = sim_argument(calc, obs, square)
    return np.asarray(i1e(x) / i0e(x))


@dataclass(frozen=True, eq=False)
class Growing:
    """Phases on their way: the state (1, u, v, w) of the relaxed reflections, what the held-out reflections say of it,
    its phases in P1, and what they said when it was last finished."""

    trial: int
    x: Array
    score: float = -1.0
    f_p1: NDArray[np.complex128] | None = None
    finished_at: float = -math.inf


def from_heavy_atoms(
    hunt: Hunt, heavy: HeavyAtoms, finishers: Sequence[Finisher], n: int, seed: int, seconds: float,
    most_trials: int | None, tell: Callable[[float], None], now: Callable[[], float] = time.monotonic,
    polisher: LastTouch | None = None,
) -> None:  # fmt: skip
    """Look for sites and make phases of them for so many seconds, until a solution convinces or there have been so many
    trials; these being all there may be, the best of them is finished in any case. If all sets lead nowhere, the most
    promising ones are gone on with while there is time. Random phases go the same way in the end, where there is a
    solution that does not convince and what it scores can be compared."""
    began = now()
    growing: list[Growing] = []

    def spent() -> float:
        return now() - began

    def over() -> bool:
        tell(min(1.0, spent() / seconds))
        return spent() > SEARCH_SHARE * seconds

    def full() -> bool:
        return most_trials is not None and len(hunt.trials) >= most_trials

    def finished(g: Growing, polisher: LastTouch | None = polisher) -> Solution:
        assert g.f_p1 is not None
        solution = finish(g.f_p1, heavy.entrant, finishers, n, g.trial)
        hunt.add(polisher.at_once(solution) if polisher else solution)
        return solution

    def turned(g: Growing) -> Growing:
        g = turn(hunt, heavy, g, now)
        if g.score <= max(heavy.bar, g.finished_at + BETTER):
            return g
        finished(g)
        return replace(g, finished_at=g.score)

    def look() -> None:
        nonlocal growing
        tried: list[SiteSet] = []
        for sets in heavy.superposition.rounds(over):
            for found in unlike(sets, tried)[:TRIED]:
                tried.append(found)
                g = _begun(hunt, heavy, f"{METHOD}, {len(found.sites)} sites", seed, heavy.start(found.sites))
                for _ in range(TURNS):
                    g = turned(g)
                    if g.score > heavy.bar:
                        break
                growing = sorted([*growing, g], key=lambda g: -g.score)[:GONE_ON_WITH]
                tell(min(1.0, spent() / seconds))
                if full() and not hunt.solutions:
                    finished(growing[0])
                if full() or hunt.convinced or spent() > seconds:
                    return
        while growing and not hunt.convinced and spent() < seconds:
            growing = [turned(g) for g in growing]
            tell(min(1.0, spent() / seconds))

    look()
    worth = any(large(s.held, s.d_min) for s in hunt.solutions)
    if worth and not hunt.convinced and not full():
        g = turn(hunt, heavy, _begun(hunt, heavy, COMPARED, seed, random_phases(heavy.problem, seed)), now)
        hunt.chance = finished(g, polisher=None).score


def unlike(sets: Sequence[SiteSet], tried: Sequence[SiteSet] = ()) -> list[SiteSet]:
    """The sets that have not MOST_SHARED of their sites from one before, or from one that was tried."""
    out: list[SiteSet] = []
    for candidate in sets:
        rows = {site.tobytes() for site in candidate.sites}
        before = ({site.tobytes() for site in s.sites} for s in (*tried, *out))
        if all(len(rows & other) < MOST_SHARED * len(rows) for other in before):
            out.append(candidate)
    return out


def _begun(hunt: Hunt, heavy: HeavyAtoms, name: str, seed: int, start: NDArray[np.complex128]) -> Growing:
    """Structure factors (n,) to begin with, as a trial."""
    p, index = heavy.problem, len(hunt.trials)
    hunt.trials.append(Trial(index, name, seed, 0, 0.0, -1.0, 1.0, math.nan))
    return Growing(index, unit_variance(inverse(p.scatter(start), p.shape)))


def random_phases(problem: Problem, seed: int) -> NDArray[np.complex128]:
    """Measured moduli (n,) of reflections in use, phases at random that obey the group, as those of sites do; random
    starts of ``Problem`` do not."""
    phase = 2 * np.pi * np.random.default_rng(seed).random(len(problem.hkl))
    return np.where(problem.held, 0, problem.amplitude * np.exp(1j * phase))


def turn(hunt: Hunt, heavy: HeavyAtoms, g: Growing, now: Callable[[], float] = time.monotonic) -> Growing:
    """Some cycles more, and what alternating projections then make of them; entered in its trial."""
    p, since, trial = heavy.problem, now(), hunt.trials[g.trial]
    x = heavy.entrant.method.advance(g.x, SEARCHING, trial.cycles)
    half = heavy.entrant.method.estimate(x)
    y = unit_variance(inverse(with_amplitudes(half, p.target), p.shape))
    half = heavy.descent.estimate(heavy.descent.advance(y, DESCENDING))
    score, residual = float(p.scores(half)[0]), float(p.residuals(half)[0])
    trial = replace(trial, cycles=trial.cycles + SEARCHING + DESCENDING, seconds=trial.seconds + now() - since)
    hunt.trials[g.trial] = trial if trial.finished else replace(trial, score=score, r_work=residual)
    return replace(g, x=x, score=score, f_p1=p.gather_p1(half[0]))
