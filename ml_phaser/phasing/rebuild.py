"""Free atoms and the learned projection in turn: from a map of which half is right to all of it.

Either stops where it is by itself. Least squares of free atoms knows that density is atoms and nothing of where they
may be; the network knows what molecules look like, and sees no single atom. Atoms built into the map, refined against
the moduli and completed, give another map to the network, whose map is built again (as density modification and
building of atoms alternate in ARP/wARP: Perrakis, Morris & Lamzin, Nat. Struct. Biol. 6, 458, 1999; there without a
network). docs/decisions/0028-atoms-and-network-in-turn.md.

Where part of the cell is solvent, the network's density is tried with and without that taken from it, and what
predicts more is gone on with (docs/decisions/0032-solvent.md), and the network begins, atoms follow where it gains no
more (docs/decisions/0036-the-network-begins.md). Where the data show no atoms, the network's cycles are all there is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ml_phaser import arrays
from ml_phaser.arrays import Array
from ml_phaser.phasing.atom_grid import step_cost
from ml_phaser.phasing.completion import D_MIN, Completer
from ml_phaser.phasing.confidence import weight_of_held
from ml_phaser.phasing.dual_space import Projection
from ml_phaser.phasing.finish import Solution
from ml_phaser.phasing.fragments.pieces import MUCH, ROOM
from ml_phaser.phasing.free_atoms import Workshop
from ml_phaser.phasing.problem import Problem
from ml_phaser.phasing.projections import forward, inverse, unit_variance
from ml_phaser.phasing.veils import VEILS, ways
from ml_phaser.phasing.weighting import Weighting, direction

PHASED_ROUNDS, ROUNDS = 2, 3  # of atoms in each turn: to the map, to the moduli;
STEPS, GRADIENTS = 3, 4  # of least squares in a round, and in a step
WET = 30.0  # A^3 of an atom where there is room for MUCH: not all of such cells is atoms
CYCLES = 16  # of the network in each turn,
TRYING = 0.5  # share of them after which one of several ways is chosen
TURNS, VAIN = 40, 2  # turns at most, and so many in a row that do not predict more of the reflections held out
LUCK = ((100.0, 500.0), (3.0, 2.0))  # standard errors that they must predict more, by how many reflections are held out
SURE, LUCK_OF_SURE = 0.95, 1.0  # and how many if the solution was right with so much probability before
WORTH_IT = 2.0  # standard errors that phases must predict to go on from, unless they are those of pieces
TELLING = 1.5  # share of what wrong atoms do not come to, which those of large wholes do not come to, either:
# 1.65 and more, after three turns (docs/decisions/0031)
COARSEST = 1.78  # A: reach of atoms in turns of large wholes; of free atoms by themselves it is D_MIN
SETTLED = 0.01  # gain below which they do not
SEEN = 8e-6  # processor seconds of a cycle of the network for each A^3 of the cell
DEAREST = 0.3  # share of the time limit that a turn may take
WANTED = 6  # turns that time is kept for

Complexes = NDArray[np.complex128]


@dataclass(frozen=True, eq=False)
class Rebuilder:
    """``completer`` knows the data and judges atoms; ``problem``, ``rows`` of its reflections among all: what the
    network sees; ``projection`` : the network; ``cycles`` : of it in each turn."""

    completer: Completer
    problem: Problem
    rows: NDArray[np.int64]
    projection: Projection
    cycles: int = CYCLES

    @property
    def wet(self) -> bool:
        """Whether there is room for so much that part of it is solvent."""
        data = self.completer.moduli
        return data.cell.volume / len(data.spacegroup.operations()) > MUCH * ROOM

    @property
    def room(self) -> float:
        """A^3 of an atom."""
        return WET if self.wet else ROOM

    @cached_property
    def ways(self) -> dict[str, Projection]:
        """Projections to choose from: as it is, and where there is solvent with that taken from it."""
        return ways(self.projection, self.problem, VEILS if self.wet else ())

    @property
    def atoms(self) -> bool:
        """Whether the data show enough of atoms to build them."""
        return self.problem.d_min <= COARSEST

    @property
    def cost(self) -> float:
        """Processor seconds of a first turn, about."""
        cycles = self.cycles * (1 + TRYING * (len(self.ways) - 1))
        return self.building * self.atoms + cycles * SEEN * self.completer.moduli.cell.volume

    @property
    def building(self) -> float:
        """Processor seconds of building atoms, about."""
        data = self.completer.coarse
        atoms = data.cell.volume / len(data.spacegroup.operations()) / self.room
        step = step_cost(data.hkl[data.used], data.cell, data.spacegroup, atoms, GRADIENTS)
        return (PHASED_ROUNDS + ROUNDS) * STEPS * step

    @property
    def wanted(self) -> float:
        """Processor seconds that most maps need, about."""
        return WANTED * self.cost

    def promising(self, solution: Solution) -> bool:
        """Whether there is anything to go on from, and to gain: pieces, or phases that predict more than nothing, of
        which no atoms are made yet."""
        if solution.atoms is not None:
            return False
        return solution.fragments is not None or solution.score > WORTH_IT / math.sqrt(max(1, solution.held))

    def __call__(
        self, solution: Solution, time_left: Callable[[], float] = lambda: math.inf,
        tell: Callable[[], None] = lambda: None,
    ) -> Solution:  # fmt: skip
        """The solution after as many turns as help, while there is time; as it was, if they predict the reflections
        held out no better than luck may, and atoms do not explain the data as wrong ones cannot. Of what was sure
        before, less is asked. In large wholes the network begins alone, as atoms built into a poor map make it worse,
        and either takes over from the other where that no longer gains; and atoms tell earlier that they are right, of
        maps that predict no less.
        ``tell`` : called after every turn."""
        before, held = self.predicted(solution.f), max(1, int(self.problem.held.sum()))
        best, score, gained, worth, vain, cost = solution, -math.inf, -math.inf, solution.worth, 0, self.cost
        turned, building = solution, not self.wet
        for _ in range(TURNS):
            left, free = time_left(), turned.veil is None
            if left < cost:
                break
            turned, counted = self.turn(turned, building and self.atoms)
            tell()
            if free and math.isfinite(left):
                cost = left - time_left()
            worth = min(worth, counted)
            if turned.score > score:
                best, score = turned, turned.score
            if turned.score > gained + SETTLED:
                vain, gained = 0, turned.score
            elif self.wet and self.atoms:
                vain, building, turned = vain + 1, not building, replace(best, veil=None)
            else:
                vain, turned = vain + 1, replace(turned, veil=None)
            if vain == VAIN or (vain and worth <= 1):
                break
        errors = LUCK_OF_SURE if solution.probability >= SURE else float(np.interp(held, *LUCK))
        better = worth <= 1 or score - max(before, 0.0) >= errors / math.sqrt(held)
        telling = self.wet and worth <= TELLING and score >= before - 1 / math.sqrt(held)
        if best is solution or not (better or telling):
            return solution
        return self.credited(best, score - before, worth if self.problem.d_min <= D_MIN else solution.worth)

    def predicted(self, f: Complexes) -> float:
        """Correlation of E, measured and of structure factors (all n), on the reflections held out."""
        return float(self.problem.scores(self.problem.scatter(f[self.rows]))[0])

    def turn(self, solution: Solution, building: bool) -> tuple[Solution, float]:
        """Atoms, if ``building``, then the network: the solution that they lead to, and how well the atoms explain the
        moduli, as a share of what wrong ones do not come to; infinite without atoms."""
        f, counted = self.built(solution.f) if building else (solution.f.copy(), math.inf)
        if f is None:
            return replace(solution, score=-1.0), math.inf
        seen, score, residual, veil = self.seen(f[self.rows], solution.veil)
        f[self.rows] = seen * scale(np.abs(seen), np.abs(f[self.rows]))
        held = int(self.problem.held.sum())
        name = f"{turned_from(solution)}{SUFFIX if building else ALONE}{veil and ', '}{veil}"
        turned = replace(
            solution, f=f, score=score, held=held, r_work=residual, d_min=self.problem.d_min, finisher=name,
            polished=True, veil=veil,
        )  # fmt: skip
        return turned, counted

    def built(self, f: Complexes) -> tuple[Complexes | None, float]:
        """Structure factors (all n) with those of atoms, built into them, and how well these explain the moduli; None
        where there are no atoms in them."""
        data = self.completer.coarse
        shop = Workshop(data, room=self.room, steps=STEPS, gradients=GRADIENTS)
        atoms = shop.rest(shop.from_phases(np.angle(f[self.completer.rows]), PHASED_ROUNDS).atoms, ROUNDS)
        if not len(atoms.atoms):
            return None, math.inf
        f = f.copy()
        f[self.completer.rows] = atoms.f
        return f, self.completer.counted(atoms)

    def seen(self, f: Complexes, veil: str | None) -> tuple[Complexes, float, float, str]:
        """What some cycles of the network make of structure factors (n,): the density's own, their correlation with E
        on the reflections held out, R on the others, and in which of the ``ways``: ``veil``, or if that is None the one
        that predicts most of the reflections held out after part of them. Phases count by what they predict."""
        p, weigh = self.problem, self.weighting
        half = p.scatter(f)
        asked = list(self.ways) if veil is None else [veil]
        some = round(TRYING * self.cycles) if len(asked) > 1 else self.cycles
        with arrays.no_gradients(half):
            x = weigh.combined(weigh.argument(half) * direction(half))
            tried = {name: self.cycled(x, self.ways[name], some) for name in asked}
            veil = max(tried, key=lambda name: float(p.scores(tried[name][1])[0]))
            g, half, x = tried[veil]
            if some < self.cycles:
                g, half, x = self.cycled(x, self.ways[veil], self.cycles - some)
        return g, float(p.scores(half)[0]), float(p.residuals(half)[0]), veil

    def cycled(self, x: Array, projection: Projection, cycles: int) -> tuple[Complexes, Array, Array]:
        """Structure factors (n,) of the density after ``cycles`` from half-complex coefficients (1, u, v, w'), its own
        coefficients, and those that another cycle begins with."""
        p, weigh = self.problem, self.weighting
        for _ in range(cycles):
            half = forward(projection(unit_variance(inverse(x, p.shape))))
            g = p.expansion.average(p.gather_p1(half[0]), len(p.hkl))
            even = p.scatter(g)
            x = weigh.combined(weigh.argument(even) * direction(even)) + weigh.filled(even)
        return g, half, x

    @cached_property
    def weighting(self) -> Weighting:
        """Of the problem."""
        return Weighting(self.problem)

    def credited(self, solution: Solution, gain: float, worth: float) -> Solution:
        """With what its atoms are worth, and with the merit of pieces for what it predicts the more."""
        placed = solution.fragments
        if placed is not None:
            held = int(self.problem.held.sum())
            more = weight_of_held(held, len(self.problem.held) - held) * gain
            placed = replace(placed, merit=placed.merit + more, lead=placed.lead + more)
        return replace(solution, worth=worth, fragments=placed)


SUFFIX, ALONE = ", atoms in turn", ", on and on"


def turned(solution: Solution) -> bool:
    """Whether turns led to a solution."""
    return SUFFIX in solution.finisher or ALONE in solution.finisher


def turned_from(solution: Solution) -> str:
    """Name of the finisher that a solution had before turns."""
    return solution.finisher.partition(SUFFIX)[0].partition(ALONE)[0]


def scale(moduli: NDArray[np.float64], others: NDArray[np.float64]) -> float:
    """Factor that brings moduli to the size of others."""
    return float(np.sqrt(np.sum(others**2) / max(1e-20, float(np.sum(moduli**2)))))


def rebuilder(
    completer: Completer | None, problem: Problem, rows: NDArray[np.int64], projection: Projection, seconds: float
) -> Rebuilder | None:
    """For a search of ``seconds``; None where one turn would take too many of them, or there is neither enough of atoms
    to see nor solvent."""
    made = None if completer is None else Rebuilder(completer, problem, rows, projection)
    if made is None or made.cost > DEAREST * seconds or (problem.d_min > D_MIN and not made.wet):
        return None
    return made
