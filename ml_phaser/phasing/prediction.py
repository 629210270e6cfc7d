"""From amplitudes to density in one shot: a network sees the Patterson map, then its own prediction corrected.

A prediction with the measured amplitudes put back is shown to the network again ("recycling").
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ml_phaser import arrays
from ml_phaser.arrays import Array, Generator, namespace
from ml_phaser.crystal.phase_distributions import PhaseDistributions
from ml_phaser.phasing.dual_space import Method
from ml_phaser.phasing.problem import Problem
from ml_phaser.phasing.projections import forward, has_bfloat16, inverse, unit_variance
from ml_phaser.phasing.search import Entrant
from ml_phaser.phasing.starts import GivenStarts

PASSES = 8
LAST = 4  # passes whose predictions are compared
FEW = 4  # starts from a prediction at once


class OneShot(Protocol):
    """A one-shot network: Patterson maps (B, 1, u, v, w) in -1 ... 1, maps of residues by themselves (B, J, u, v, w),
    an earlier prediction with measured amplitudes (B, 1, u, v, w) or zeros, cell edges (B, 3) in A -> density
    (B, u, v, w)."""

    def __call__(self, patterson: Array, parts: Array, recycled: Array, lengths: Array) -> Array: ...


def scaled(rho: Array) -> Array:
    """Maps (B, u, v, w) brought to -1 ... 1 each."""
    xp = namespace(rho)
    low, high = (edge(rho, axis=(1, 2, 3), keepdims=True) for edge in (xp.amin, xp.amax))
    return 2 * (rho - low) / (high - low).clip(min=1e-12) - 1


def patterson(half: Array, shape: tuple[int, ...]) -> Array:
    """Patterson maps (B, u, v, w) in -1 ... 1 of half-complex coefficients."""
    return scaled(inverse(half * half.conj(), shape))


def corrected(predicted: Array, half: Array) -> Array:
    """Predicted maps with the moduli of ``half``, unit variance: nothing where nothing was measured."""
    own = forward(predicted)
    return unit_variance(inverse(own / abs(own).clip(min=1e-12) * abs(half), predicted.shape))


def one_pass(network: OneShot, half: Array, recycled: Array, parts: Array, lengths: Array) -> Array:
    """What the network predicts, (B, u, v, w) in -1 ... 1.

    Parameters
    ----------
    half : half-complex coefficients whose moduli are the measured ones; parts, lengths : as ``OneShot`` wants them
    recycled : (B, 1, u, v, w), an earlier prediction, ``corrected``, or zeros
    """
    seen = patterson(half, recycled.shape[2:])[:, None]
    if not arrays.is_torch(seen):
        return network(seen, parts, recycled, lengths)
    import torch

    kind = seen.device.type
    with torch.autocast(kind, dtype=torch.bfloat16, enabled=has_bfloat16(kind)):
        predicted = network(seen, parts, recycled, lengths)
    return predicted.float()


def predict(
    network: OneShot, half: Array, shape: tuple[int, int, int], parts: Array, lengths: Array,
    passes: int,
) -> list[Array]:  # fmt: skip
    """Predictions (B, u, v, w) after each of ``passes`` passes, without gradients; see ``one_pass``."""
    found: list[Array] = []
    recycled = arrays.zeros((len(half), 1, *shape), abs(half[:1]))
    with arrays.no_gradients(half):
        for _ in range(passes):
            found.append(one_pass(network, half, recycled, parts, lengths))
            recycled = corrected(found[-1], half)[:, None]
    return found


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a one-shot network makes of a crystal in P1.

    phase : (n,) radians, of ``problem.hkl``; agreement : (n,) of the last passes on it, the mean resultant length, 0-1
    """

    phase: NDArray[np.float64]
    agreement: NDArray[np.float64]


def predict_phases(network: OneShot, problem: Problem, parts: Array) -> Prediction:
    """Phases of a P1 problem that is posed as the network was trained; reflections held out are not shown to it.

    ``parts`` : (1, J, u, v, w), J may be 0
    """
    imposed = problem.target.imposed
    lengths = arrays.beside(np.array([problem.cell.parameters[:3]], dtype=np.float32), imposed)
    maps = predict(network, imposed + 0j, problem.shape, parts, lengths, PASSES)[-LAST:]
    found = np.array([problem.gather_p1(forward(rho)[0]) for rho in maps])
    phasors = found / np.maximum(np.abs(found), 1e-12)
    mean = phasors.mean(axis=0)
    first = np.unique(problem.expansion.asu, return_index=True)[1]  # in P1 every reflection is its own
    sign = np.where((problem.expansion.hkl[first] == problem.hkl).all(axis=1), 1, -1)
    return Prediction(np.angle(phasors[-1][first]) * sign, np.abs(mean[first]))


@dataclass(frozen=True, eq=False)
class Named:
    """A method under another name: where its starts come from."""

    method: Method
    name: str

    def advance(self, x: Array, cycles: int, done: int = 0) -> Array:
        return self.method.advance(x, cycles, done)

    def estimate(self, x: Array) -> Array:
        return self.method.estimate(x)


@dataclass(frozen=True, eq=False)
class PredictedStarts:
    """The predicted map first, then maps with phases drawn from the prediction's doubt; origin and hand are free."""

    starts: GivenStarts

    def random_starts(self, count: int, generator: Generator) -> Array:
        return self.starts.make(count, generator)


def from_prediction(entrant: Entrant, known: PhaseDistributions) -> Entrant:
    """The entrant with its starts made of predicted phases ``known``, of all reflections; a few at a time."""
    source = PredictedStarts(GivenStarts(entrant.problem, known.of(entrant.rows)))
    name = f"{entrant.method.name}, from the prediction"
    return replace(entrant, method=Named(entrant.method, name), origin=source, batch=min(entrant.batch, FEW))
