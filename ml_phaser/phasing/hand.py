"""Which of the two mirror images: told by the space group, or by the learned prior, which knows L-amino acids."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ml_phaser.phasing.place import hand_is_fixed, place
from ml_phaser.phasing.problem import Problem
from ml_phaser.phasing.projections import inverse, unit_variance
from ml_phaser.phasing.search import Finisher, Solution

CLEAR = 0.004  # difference in restored correlation below which the prior does not know


def mirror(f: NDArray[np.complex128], problem: Problem) -> NDArray[np.complex128]:
    """The inverted structure on an origin of the same group, (n,) -> (n,) on ``problem.hkl``."""
    spread = np.conj(problem.expansion.spread(f))
    return place(spread, problem.expansion, len(problem.hkl), problem.cell, problem.spacegroup)[0].f


def familiarity(f: NDArray[np.complex128], prior: Finisher) -> float:
    """Correlation of a map (measured moduli, phases of ``f``) with what the network makes of it, -1 to 1."""
    problem = prior.problem
    phased = problem.amplitude * np.exp(1j * np.angle(f[prior.rows]))
    x = unit_variance(inverse(problem.scatter(phased), problem.shape))
    _, projection = prior.projections[0]
    y = unit_variance(projection(x))
    return float((x * y).mean())


def choose(solution: Solution, full: Problem, rows: NDArray[np.int64], prior: Finisher | None) -> tuple[Solution, str]:
    """The solution in the hand to give the user, and a sentence about it. ``rows``: those of ``full``."""
    group = full.spacegroup
    if group.is_centrosymmetric():
        return solution, "none: the space group is centrosymmetric"
    if not group.is_sohncke():
        return solution, "both are present: the space group holds mirror images"
    if hand_is_fixed(group):
        return solution, f"told by the space group {group.hm}"
    if prior is None:
        return solution, "not determined: the map may be the mirror image"
    other = solution.f.copy()
    other[rows] = mirror(solution.f[rows], full)
    here, there = familiarity(solution.f, prior), familiarity(other, prior)
    sentence = f"margin of the learned prior {abs(here - there):.4f}, trained on L-amino acids"
    if abs(here - there) < CLEAR:
        return solution, f"not determined ({sentence}): the map may be the mirror image"
    return (solution if here > there else replace(solution, f=other)), f"chosen by the learned prior ({sentence})"
