"""Which phases are worth giving away as seeds, and how far a result has moved from seeds that were given.

A seed is a phase known to a part of the circle (Carrozzini et al., Acta Cryst. A81, 188, 2025). Strong reflections
carry the map and wrong ones spoil it, so what counts is |E| times the probability that the phase is in its part; that
probability is the integral of the phase's distribution, as the run's figures of merit have it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ml_phaser.crystal.agreement import compare, move
from ml_phaser.crystal.normalise import Normalised
from ml_phaser.crystal.phase_distributions import bin_of, bin_probabilities
from ml_phaser.crystal.reflections import Amplitudes
from ml_phaser.crystal.symmetry import expand
from ml_phaser.outcome import Phases, PhaseSeeds, SeedsGiven
from ml_phaser.phasing.calibration import Calibration

Floats = NDArray[np.float64]

DEFAULT_FRACTION = 0.1  # of the unique reflections


def seeds_wanted(n: int, fraction: float | None, count: int | None) -> int:
    """How many of ``n`` reflections: ``count`` or a ``fraction`` (0-1) of them, at least one; both None: a tenth."""
    share = DEFAULT_FRACTION if fraction is None else fraction
    return min(n, max(1, round(share * n)) if count is None else count)


def choose_seeds(
    phases: Phases,
    e: Floats,
    hkl: NDArray[np.int32],
    spacegroup: Any,
    *,
    bins: int,
    most: int,
    least: float = 0.0,
    usable: NDArray[np.bool_] | None = None,
    worth: Calibration | None = None,
) -> PhaseSeeds:
    """The ``most`` reflections with the largest E times bin probability.

    Parameters
    ----------
    phases : of the reflections ``hkl`` (n, 3), at an origin of the group; those not finite are left out
    e : (n,) normalised moduli; bins : parts of the circle; least : probability (0-1) that a seed must reach
    usable : (n,) bool, reflections to choose from, all if None
    worth : what such probabilities were found to be worth, None where that is not known
    """
    turn = expand(hkl, spacegroup).turn
    centric = turn != 0
    known = np.isfinite(phases.phase) & np.isfinite(phases.fom) & np.isfinite(phases.hl).all(axis=1) & (e > 0)
    if usable is not None:
        known &= usable
    table = bin_probabilities(np.where(known[:, None], phases.hl, 0.0), centric, bins)
    probability = table.max(axis=1) if worth is None else worth.right(table.max(axis=1), centric, bins)
    rows = np.flatnonzero(known & (probability >= least))
    rows = rows[np.argsort(-(e * probability)[rows], kind="stable")[:most]]
    phase = np.mod(phases.phase[rows], 2 * np.pi)
    middle = (table[rows].argmax(axis=1) + 0.5) * (2 * np.pi / bins)
    centre = np.where(centric[rows], nearest_permitted(phase, turn[rows]), middle)
    return PhaseSeeds(
        rows, bins, bin_of(centre, bins), centre, probability[rows], phase,
        np.clip(phases.fom[rows] * np.cos(phase - centre), 0.0, 1.0),
    )  # fmt: skip


def nearest_permitted(phase: Floats, turn: NDArray[np.complex128]) -> Floats:
    """Phases (n,) in [0, 2 pi) that symmetry permits nearest to those given; ``turn`` as in ``Expansion``."""
    permitted = np.angle(turn) / 2
    nearer = np.where(np.cos(phase - permitted) >= 0, permitted, permitted + np.pi)
    return np.asarray(np.where(turn == 0, phase, nearer) % (2 * np.pi))


def at_seeds(
    f: NDArray[np.complex128],
    data: Amplitudes,
    normalised: Normalised,
    phase: Floats,
    given: NDArray[np.bool_],
    probability: float = float("nan"),
) -> tuple[NDArray[np.complex128], SeedsGiven]:
    """Structure factors ``f`` (n,) of a density at the origin and in the hand of the seeds, and how they compare.

    Seeds define both: any permitted shift of a solution is a solution.

    Parameters
    ----------
    phase : (n,) radians, of the seeds; given : (n,) bool, where there is one; probability : mean, for the record
    """
    own, theirs = (normalised.f * np.exp(1j * x) for x in (np.angle(f), phase))
    found = compare(data.hkl, own, np.where(given, theirs, 0), data.cell, data.spacegroup, repeats=0)
    f = move(data.hkl, f, found.origin_shift, found.inverted)
    moved = np.abs(np.angle(np.exp(1j * (np.angle(f) - phase))[given]))
    return f, SeedsGiven(
        int(given.sum()), probability, float(np.rad2deg(moved.mean())), found.hand_margin, found.inverted
    )  # fmt: skip
