"""Starts from a user's phases.

The first start of a method is the best map there is, with each phase at its centroid and weighted by its figure of
merit; the others draw every phase from its distribution. Reflections without phases are left out of the first and
random in the others. Density modification combines the phases in at every cycle (``combination``); the methods that
search are held to the good ones, as to seeds, and released half-way.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ml_phaser import arrays
from ml_phaser.arrays import Array, Generator, namespace
from ml_phaser.crystal.agreement import compare, correlation, move, multiplicity
from ml_phaser.crystal.normalise import Normalised
from ml_phaser.crystal.phase_distributions import PhaseDistributions
from ml_phaser.crystal.reflections import Amplitudes
from ml_phaser.outcome import Given
from ml_phaser.phasing.combination import Combined
from ml_phaser.phasing.confidence import shell_edges
from ml_phaser.phasing.dual_space import Projection
from ml_phaser.phasing.finish import Finisher
from ml_phaser.phasing.problem import Problem
from ml_phaser.phasing.projections import inverse
from ml_phaser.phasing.search import Entrant
from ml_phaser.phasing.seeds import HELD_SHARE, Held, Seeds, imposing

TRUST = 4.0  # in the density that came out: as much as a sigmaA of 0.8 would give
GOOD = 0.5  # figure of merit from which on a phase is held as a seed
LEAST = 1e-3  # of the trust in a density: it has the phase where nothing else is known
HOLDABLE = 0.02  # share of such phases that makes holding them worth while


@dataclass(eq=False)
class GivenStarts:
    """Starts from the phases ``known`` of ``problem.hkl``; ``made`` so far: the first is the centroid map."""

    problem: Problem
    known: PhaseDistributions
    made: int = 0

    def make(self, count: int, generator: Generator) -> Array:
        """Maps (count, u, v, w). Moduli of held-out reflections are not used."""
        rng = np.random.default_rng(arrays.integer(generator))
        phasors = [self.known.draw(rng) if self.made + i else self.known.centroid() for i in range(count)]
        self.made += count
        halves = [self.problem.scatter(f) for f in phasors]
        half = namespace(halves[0]).concatenate(halves)
        return inverse(half * self.problem.target.imposed, self.problem.shape)


class Released(Held):
    """Phases combined in for the first cycles, and then no more."""

    @property
    def name(self) -> str:
        return f"{self.free.name}, released"


def modification(
    problem: Problem,
    rows: NDArray[np.int64],
    projection: Projection,
    known: PhaseDistributions,
    *,
    name: str,
    cycles: int,
    block: int,
    core: Projection,
    released: int | None = None,
) -> Entrant:
    """Density modification of the phases ``known`` (of all reflections) with any density projection; they are forgotten
    after ``released`` cycles, if that is not None."""
    own = known.of(rows)
    method: Any = Combined(problem, projection, own, f"{name}, from given phases")
    later = own
    if released is not None:
        later = PhaseDistributions(np.zeros_like(own.hl), own.turn)
        method = Released(method, replace(method, known=later), released)
    finisher = Finisher(problem, rows, ((name, projection),), max(2, cycles // 2), known=later)
    return Entrant(
        method, problem, rows, 1, cycles, block, core, given=GivenStarts(problem, own), finishers=(finisher,)
    )  # fmt: skip


def phased(entrant: Entrant, known: PhaseDistributions) -> Entrant:
    """The entrant with its starts made of the phases ``known`` of all reflections, the good ones held at first."""
    own = known.of(entrant.rows)
    centroid = own.centroid()
    seeds = Seeds(np.angle(centroid), np.abs(centroid) >= GOOD)
    method: Any = entrant.method
    if seeds.given.mean() >= HOLDABLE:
        bound: Any = replace(entrant.method, problem=imposing(entrant.problem, seeds))  # type: ignore[type-var]
        method = Held(bound, entrant.method, round(HELD_SHARE * entrant.cycles))
    return replace(entrant, method=method, given=GivenStarts(entrant.problem, own))


def remembering(finisher: Finisher, known: PhaseDistributions) -> Finisher:
    """The finisher with the phases ``known`` of all reflections combined in."""
    return replace(finisher, known=known.of(finisher.rows))


def as_given(
    f: NDArray[np.complex128],
    data: Amplitudes,
    normalised: Normalised,
    known: PhaseDistributions,
    vouched: float = 1.0,
) -> tuple[NDArray[np.complex128], Given]:
    """Structure factors ``f`` (n,) of a density where the phases ``known`` are, and what became of these.

    They are brought to the origin and hand that agree best with the phases given, which are then combined in once more:
    the moduli stay those of the density. ``vouched`` (0-1): how far the density is to be trusted beside the phases.
    """
    best, weight = known.centroid(), multiplicity(data.hkl, data.spacegroup)
    square = weight * normalised.f**2
    phased = normalised.f * np.exp(1j * np.angle(f))
    found = compare(data.hkl, phased, normalised.f * best, data.cell, data.spacegroup, repeats=0)
    f = move(data.hkl, f, found.origin_shift, found.inverted)
    unit = np.exp(1j * np.angle(f))
    kept = float((square * (unit * np.conj(best)).real).sum() / (square * np.abs(best) ** 2).sum())
    unit = _combined(unit, max(vouched, LEAST) * normalised.e * _e_of(f, data), known)
    there = known.given
    turn = np.abs(np.angle(unit[there] * np.conj(best[there])))
    pull = (weight * normalised.f * np.abs(best))[there]
    given = Given(
        n=int(there.sum()),
        fom=float(np.abs(best[there]).mean()),
        moved=float(np.rad2deg((pull * turn).sum() / pull.sum())),
        map_cc=correlation(square[there], unit[there], best[there]),
        kept=kept,
        hand_margin=found.hand_margin,
        turned=found.inverted,
    )
    return np.abs(f) * unit, given


def _e_of(f: NDArray[np.complex128], data: Amplitudes) -> NDArray[np.float64]:
    """(n,) E values of a density, normalised by resolution shells."""
    e = np.abs(f) / np.sqrt(data.epsilon)
    for part in shell_edges(data.d):
        e[part] /= np.sqrt(np.mean(e[part] ** 2)) or 1.0
    return np.asarray(e)


def _combined(
    unit: NDArray[np.complex128], strength: NDArray[np.float64], known: PhaseDistributions
) -> NDArray[np.complex128]:
    """exp(i phi) (n,) of the phases of a map and those known together."""
    one, two = known.hl[:, 0] + 1j * known.hl[:, 1], known.hl[:, 2] + 1j * known.hl[:, 3]
    return np.asarray(np.exp(1j * np.angle(one + 2 * two * np.conj(unit) + TRUST * strength * unit)))
