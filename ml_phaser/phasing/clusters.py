"""Solutions that are one and the same up to origin and hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import gemmi
import numpy as np
from numpy.typing import NDArray

from ml_phaser.evaluation.agreement import compare
from ml_phaser.outcome import Trial
from ml_phaser.phasing.search import Solution

SAME = 0.7  # map correlation from which on two solutions are one


def number(
    hkl: NDArray[np.int32],
    cell: gemmi.UnitCell,
    spacegroup: gemmi.SpaceGroup,
    solutions: Sequence[Solution],
    trials: Sequence[Trial],
) -> tuple[Trial, ...]:
    """Trials with the number of their cluster; ``solutions`` come best first, so cluster 0 is the best one's."""
    heads: list[Solution] = []
    numbered = list(trials)
    for solution in solutions:
        for i, head in enumerate(heads):
            if compare(hkl, solution.f, head.f, cell, spacegroup, repeats=0).map_cc >= SAME:
                cluster = i
                break
        else:
            cluster = len(heads)
            heads.append(solution)
        numbered[solution.trial] = replace(numbered[solution.trial], cluster=cluster)
    return tuple(numbered)
