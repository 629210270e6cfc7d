"""Starts from a user's phases.

The first start of a method is the best map there is, with each phase at its centroid and weighted by its figure of
merit; the others draw every phase from its distribution. Reflections without phases are left out of the first and
random in the others. Density modification combines the phases in at every cycle (``combination``); the methods that
search are held to the good ones, as to seeds, and released half-way.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import gemmi
import numpy as np
import torch
from numpy.typing import NDArray

from ml_phaser.crystal.agreement import compare, correlation, move, multiplicity
from ml_phaser.crystal.phase_distributions import PhaseDistributions
from ml_phaser.outcome import Given
from ml_phaser.phasing.combination import Combined
from ml_phaser.phasing.dual_space import Projection
from ml_phaser.phasing.finish import Finisher
from ml_phaser.phasing.problem import Problem
from ml_phaser.phasing.projections import inverse
from ml_phaser.phasing.search import Entrant
from ml_phaser.phasing.seeds import HELD_SHARE, Held, Seeds, imposing

GOOD = 0.5  # figure of merit from which on a phase is held as a seed
HOLDABLE = 0.02  # share of such phases that makes holding them worth while


@dataclass(eq=False)
class GivenStarts:
    """Starts from the phases ``known`` of ``problem.hkl``; ``made`` so far: the first is the centroid map."""

    problem: Problem
    known: PhaseDistributions
    made: int = 0

    def make(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """Maps (count, u, v, w). Moduli of held-out reflections are not used."""
        rng = np.random.default_rng(int(torch.randint(2**31, (1,), generator=generator)))
        phasors = [self.known.draw(rng) if self.made + i else self.known.centroid() for i in range(count)]
        self.made += count
        half = torch.cat([self.problem.scatter(f) for f in phasors])
        return inverse(half * self.problem.target.imposed, self.problem.shape)


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
) -> Entrant:
    """Density modification of the phases ``known`` (of all reflections) with any density projection."""
    own = known.of(rows)
    method = Combined(problem, projection, own, f"{name}, from given phases")
    finisher = Finisher(problem, rows, ((name, projection),), max(2, cycles // 2), known=own)
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
    modulus: NDArray[np.float64],
    known: PhaseDistributions,
    hkl: NDArray[np.int32],
    cell: gemmi.UnitCell,
    spacegroup: gemmi.SpaceGroup,
) -> tuple[NDArray[np.complex128], Given]:
    """Structure factors ``f`` (n,) at the origin and hand that agree best with the phases ``known``, and how well.

    modulus : (n,) measured F
    """
    best = modulus * known.centroid()
    phased = modulus * np.exp(1j * np.angle(f))
    found = compare(hkl, phased, best, cell, spacegroup, repeats=0)
    moved = move(hkl, f, found.origin_shift, found.inverted)
    there = known.given
    weight = multiplicity(hkl, spacegroup)[there]
    turn = np.abs(np.angle(moved[there] * np.conj(best[there])))
    pull = weight * np.abs(best[there])
    given = Given(
        n=int(there.sum()),
        fom=float(np.abs(known.centroid()[there]).mean()),
        moved=float(np.rad2deg((pull * turn).sum() / pull.sum())),
        map_cc=correlation(weight, modulus[there] * np.exp(1j * np.angle(moved[there])), best[there]),
        kept=kept(moved, modulus, known, hkl, spacegroup),
        hand_margin=found.hand_margin,
        turned=found.inverted,
    )
    return moved, given


def kept(
    f: NDArray[np.complex128], modulus: NDArray[np.float64], known: PhaseDistributions, hkl: Any, group: Any
) -> float:
    """How much of what was known of the phases those of ``f`` (n,) keep: 1 as the figures of merit promise, 0 nothing.

    sum w m cos(phi - phi_known) / sum w m^2 with w the measured F^2: its expectation is 1 for the true phases where
    figures of merit m are honest.
    """
    best = known.centroid()
    weight = multiplicity(hkl, group) * modulus**2
    unit = f / np.maximum(np.abs(f), 1e-300)
    total = float((weight * np.abs(best) ** 2).sum())
    return float((weight * (unit * np.conj(best)).real).sum()) / total if total > 0 else 0.0
