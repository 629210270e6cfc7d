"""Phases of a small part grown into those of the whole by relaxed reflections, where the data show single atoms.

The part may be a few heavy atoms or a helix: its phases agree with the true ones little more than by chance, but the
density that is sharpest among those with the measured moduli is near. docs/decisions/0021-heavy-atoms.md.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import i0e, i1e

from ml_phaser.arrays import Array
from ml_phaser.outcome import Trial
from ml_phaser.phasing.completion import LastTouch
from ml_phaser.phasing.confidence import large
from ml_phaser.phasing.dual_space import Method
from ml_phaser.phasing.finish import Finisher, Solution, finish
from ml_phaser.phasing.problem import Problem
from ml_phaser.phasing.projections import inverse, unit_variance, with_amplitudes
from ml_phaser.phasing.search import Entrant, Hunt
from ml_phaser.phasing.weighting import sim_argument

COMPARED = "random phases, to compare"
SEARCHING, DESCENDING = 200, 100  # cycles of relaxed reflections, of alternating ones
BETTER = 0.04  # held-out correlation by which a trial that was finished must improve to be finished again
LEAST_SIGMA_A2 = 0.005


@dataclass(frozen=True, eq=False)
class Growth:
    """entrant : whose problem, method, and way to a solution in the group are used; descent : what follows its method,
    alternating projections"""

    entrant: Entrant
    descent: Method

    @property
    def problem(self) -> Problem:
        return self.entrant.problem

    @property
    def bar(self) -> float:
        """Held-out correlation from which on phases are worth finishing."""
        return max(self.entrant.bar, 2.5 / math.sqrt(max(1, int(self.problem.held.sum()))))

    def weighted(self, f: NDArray[np.complex128]) -> NDArray[np.complex128]:
        """Measured moduli (n,) of reflections in use with the phases of structure factors (n,), weights after Sim."""
        p = self.problem
        return np.where(p.held, 0, p.amplitude * _sim(p, f) * np.exp(1j * np.angle(f)))


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


@dataclass(frozen=True, eq=False)
class Grower:
    """Growth whose trials and solutions are entered in a hunt. n : reflections of the crystal; now : the clock, s"""

    hunt: Hunt
    growth: Growth
    finishers: Sequence[Finisher]
    n: int
    seed: int
    now: Callable[[], float] = time.monotonic
    polisher: LastTouch | None = None

    def begun(self, name: str, start: NDArray[np.complex128]) -> Growing:
        """Structure factors (n,) to begin with, as a trial."""
        p, index = self.growth.problem, len(self.hunt.trials)
        self.hunt.trials.append(Trial(index, name, self.seed, 0, 0.0, -1.0, 1.0, math.nan))
        return Growing(index, unit_variance(inverse(p.scatter(start), p.shape)))

    def turned(self, g: Growing) -> Growing:
        """After one more turn; as a solution, if that is promising and better than when it was last."""
        g = turn(self.hunt, self.growth, g, self.now)
        if g.score <= max(self.growth.bar, g.finished_at + BETTER):
            return g
        self.finished(g)
        return replace(g, finished_at=g.score)

    def finished(self, g: Growing, *, touched: bool = True) -> Solution:
        """As a solution of the hunt, with the last touch unless it shall go without."""
        assert g.f_p1 is not None
        solution = finish(g.f_p1, self.growth.entrant, self.finishers, self.n, g.trial)
        self.hunt.add(self.polisher.at_once(solution) if self.polisher and touched else solution)
        return solution

    def compare(self) -> None:
        """Let random phases go the same way, where there is a solution that does not convince and whose score can be
        compared with what they come to."""
        worth = any(large(s.held, s.d_min) for s in self.hunt.solutions)
        if worth and not self.hunt.convinced:
            g = self.begun(COMPARED, random_phases(self.growth.problem, self.seed))
            self.hunt.chance = self.finished(turn(self.hunt, self.growth, g, self.now), touched=False).score


def random_phases(problem: Problem, seed: int) -> NDArray[np.complex128]:
    """Measured moduli (n,) of reflections in use, phases at random that obey the group, as those of sites do; random
    starts of ``Problem`` do not."""
    phase = 2 * np.pi * np.random.default_rng(seed).random(len(problem.hkl))
    return np.where(problem.held, 0, problem.amplitude * np.exp(1j * phase))


def turn(hunt: Hunt, growth: Growth, g: Growing, now: Callable[[], float] = time.monotonic) -> Growing:
    """Some cycles more, and what alternating projections then make of them; entered in its trial."""
    p, since, trial = growth.problem, now(), hunt.trials[g.trial]
    x = growth.entrant.method.advance(g.x, SEARCHING, trial.cycles)
    half = growth.entrant.method.estimate(x)
    y = unit_variance(inverse(with_amplitudes(half, p.target), p.shape))
    half = growth.descent.estimate(growth.descent.advance(y, DESCENDING))
    score, residual = float(p.scores(half)[0]), float(p.residuals(half)[0])
    trial = replace(trial, cycles=trial.cycles + SEARCHING + DESCENDING, seconds=trial.seconds + now() - since)
    hunt.trials[g.trial] = trial if trial.finished else replace(trial, score=score, r_work=residual)
    return replace(g, x=x, score=score, f_p1=p.gather_p1(half[0]))
