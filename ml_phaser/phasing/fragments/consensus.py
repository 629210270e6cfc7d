"""One map of several that agree. Pieces of different shape, at different ends of the molecule, leave different errors;
what is right in their maps is the same."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from ml_phaser.crystal.agreement import compare, move
from ml_phaser.phasing.problem import Problem

AGREE = 0.6  # map correlation from which on maps show one structure: wrong ones on measured sets reach 0.3
REPEAT = 0.97  # and from which on one only repeats the other

Complexes = NDArray[np.complex128]


def brought(problem: Problem, f: Complexes, reference: Complexes) -> tuple[Complexes, float]:
    """Structure factors (n,) at the origin of others, and the correlation of the maps of measured amplitudes. The hand
    stays: pieces have one."""
    a, b = (problem.amplitude * np.exp(1j * np.angle(g)) for g in (f, reference))
    found = compare(problem.hkl, a, b, problem.cell, problem.spacegroup, hands=False, repeats=0)
    return move(problem.hkl, f, found.origin_shift), found.map_cc


def consensus(problem: Problem, first: Complexes, others: Iterable[Complexes], most: int) -> tuple[Complexes, int]:
    """The mean (n,) of the first map and at most ``most`` - 1 others that agree with it and repeat none, each of the
    same power, and of how many it is."""
    maps = [_levelled(problem, first)]
    for f in others:
        if len(maps) == most:
            break
        there, agreement = brought(problem, f, first)
        if AGREE <= agreement < REPEAT and all(brought(problem, there, m)[1] < REPEAT for m in maps[1:]):
            maps.append(_levelled(problem, there))
    return np.mean(maps, axis=0), len(maps)


def _levelled(problem: Problem, f: Complexes) -> Complexes:
    return f / max(1e-20, math.sqrt(float(np.mean(np.abs(f[~problem.held]) ** 2))))
