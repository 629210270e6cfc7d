"""The last touch to a solution: the learned projection, then free atoms instead of density, where they predict more."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ml_phaser.crystal.normalise import Normalised
from ml_phaser.crystal.reflections import Amplitudes
from ml_phaser.phasing.atom_grid import scattering, step_cost
from ml_phaser.phasing.finish import Solution
from ml_phaser.phasing.free_atoms import B_RANGE, STILL, TRIES, VOLUME, Moduli, Refined, refine_atoms
from ml_phaser.phasing.polish import WORTH_IT, Polisher
from ml_phaser.phasing.problem import Problem

D_MIN, FINE = 1.62, 0.8  # A: beyond it there are too few reflections for an atom; finer ones than that are not needed
SHARE, AT_ONCE = 0.15, 0.03  # of the time limit: what one solution may take at the end, and while the search goes on
CALLS, STEPS = 0.06, 50  # processor seconds of a refinement, and steps of least squares, about
# ``Refined.worth`` that wrong atoms do not come to, by reflections an atom: docs/decisions/0025 has what they came to.
CERTAIN = ((5.0, 14.0), (0.085, 0.2))

Floats = NDArray[np.float64]


def limit(reflections: int, atoms: int) -> float:
    """``Refined.worth`` that so many wrong atoms, refined against so many reflections, do not come to."""
    return float(np.interp(reflections / max(1, atoms), *CERTAIN))


@dataclass(frozen=True, eq=False)
class Completer:
    """``moduli`` of the n reflections, ``rows`` (m,) of those to refine against and to take maps of; e (n,) measured,
    normalised; to_e (n,) factors that turn moduli into them; held (n,) reflections to judge by; tries, at_once : how
    often parts are left out in vain at the end of a search, and while it goes on (-1: atoms are not tried then);
    cost : of a refinement, in seconds"""

    moduli: Moduli
    rows: NDArray[np.int64]
    e: Floats
    to_e: Floats
    held: NDArray[np.bool_]
    tries: int
    at_once: int
    cost: float

    def __call__(self, solution: Solution, tries: int | None = None) -> Solution:
        """The solution as atoms, if they explain the data as wrong ones cannot, or predict the reflections held out
        better than it does by more than the luck of so many; as it was if not."""
        if solution.given or solution.fragments is not None:
            return solution
        found = refine_atoms(
            self.coarse, np.angle(solution.f[self.rows]), tries=self.tries if tries is None else tries,
            seed=solution.trial,
        )  # fmt: skip
        if not len(found.atoms):
            return replace(solution, polished=True)
        if self.counted(found) > solution.worth * (1 - STILL):
            return replace(solution, polished=True)
        atoms = self.solution(found, solution.trial)
        luck = 2 / np.sqrt(max(4, atoms.held))  # of both scores
        if not self.certain(found) and atoms.score - solution.score < luck:
            return replace(solution, polished=True)
        name = solution.finisher if solution.atoms is not None else f"{solution.finisher}, atoms"
        return replace(
            solution, f=atoms.f, score=atoms.score, held=atoms.held, r_work=found.r, atoms=found.atoms, polished=True,
            finisher=name, worth=self.counted(found),
        )  # fmt: skip

    @property
    def room(self) -> int:
        """Atoms that an asymmetric unit has room for."""
        data = self.moduli
        return int(data.cell.volume / VOLUME / len(list(data.spacegroup.operations())))

    @property
    def coarse(self) -> Moduli:
        """What atoms are refined against."""
        whole, rows = self.moduli, self.rows
        return replace(whole, hkl=whole.hkl[rows], f=whole.f[rows], used=whole.used[rows])

    def counted(self, found: Refined) -> float:
        """Worth of atoms, as a share of what wrong ones do not come to."""
        return found.worth / limit(int(self.moduli.used[self.rows].sum()), len(found.atoms))

    def certain(self, found: Refined) -> bool:
        """Whether atoms explain the data as wrong ones cannot."""
        return self.counted(found) <= 1

    def solution(self, found: Refined, trial: int) -> Solution:
        """Atoms found without a density."""
        data = self.moduli
        f = scattering(data.hkl, data.cell, data.spacegroup, len(found.atoms)).calculate(found.atoms)
        d_min = float(np.min(self.moduli.cell.calculate_d_array(self.moduli.hkl[self.rows])))
        return Solution(
            f, self.correlation(np.abs(f)), found.r, math.nan, int(self.held.sum()), trial, found.r, d_min, "atoms",
            atoms=found.atoms, worth=self.counted(found),
        )  # fmt: skip

    def correlation(self, moduli: Floats) -> float:
        """Of calculated and measured E among the reflections held out."""
        x, y = (self.to_e * moduli)[self.held], self.e[self.held]
        if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
            return 0.0
        return float(np.corrcoef(x, y)[0, 1])


@dataclass(frozen=True, eq=False)
class LastTouch:
    """What solutions go through: ``polisher``, then ``completer``, those of the two there are."""

    polisher: Polisher | None
    completer: Completer | None

    def at_once(self, solution: Solution) -> Solution:
        """While the search goes on: the polisher for what is promising, the completer for all if it is cheap, which has
        its say again at the end where it is given more tries."""
        quick = self.completer is not None and self.completer.at_once >= 0
        promising = solution.score >= WORTH_IT
        if self.polisher is not None and promising:
            solution = replace(self.polisher(solution), polished=self.completer is None)
        if self.completer is not None and quick:
            solution = self.completer(solution, self.completer.at_once)
            solution = replace(solution, polished=solution.polished and not self.more_at_the_end)
        return solution

    @property
    def more_at_the_end(self) -> bool:
        return self.completer is not None and self.completer.at_once < self.completer.tries

    @property
    def reserve(self) -> float:
        """Share of the time that is kept for the end of the search."""
        return SHARE if self.more_at_the_end else 0.0

    def without_atoms(self, solution: Solution) -> Solution:
        """The polisher's part, which is for densities."""
        return solution if self.polisher is None or solution.atoms is not None else self.polisher(solution)

    def __call__(self, solution: Solution) -> Solution:
        solution = self.without_atoms(solution)
        return solution if self.completer is None else self.completer(solution)


def completer(
    data: Amplitudes, normalised: Normalised, whole: Problem, rows: NDArray[np.int64], seconds: float,
    coarsest: float = D_MIN,
) -> Completer | None:  # fmt: skip
    """For the reflections ``rows`` in use, in a search of ``seconds``; None where atoms are not resolved, beyond
    ``coarsest`` A. ``tries`` is negative where it would take too many of them."""
    if data.d_min > coarsest:
        return None
    held, used = np.zeros(len(data), dtype=bool), np.zeros(len(data), dtype=bool)
    held[rows], used[rows] = whole.held, ~whole.held
    coarse = np.flatnonzero(data.d >= FINE)
    atoms = data.cell.volume / VOLUME / len(data.spacegroup.operations())
    cost = CALLS + STEPS * step_cost(data.hkl[coarse][used[coarse]], data.cell, data.spacegroup, atoms)
    tries, at_once = (min(TRIES, int(share * seconds / cost) - 1) for share in (SHARE, AT_ONCE))
    b = float(np.clip(normalised.wilson_b, *B_RANGE))
    moduli = Moduli(data.hkl, normalised.f, used, data.cell, data.spacegroup, b)
    to_e = normalised.e / np.where(normalised.f > 0, normalised.f, 1.0)
    return Completer(moduli, coarse, normalised.e, to_e, held, tries, at_once, cost)
