"""From amplitudes to density in one shot: a network sees the Patterson map, then its own prediction corrected.

A prediction with the measured amplitudes put back is shown to the network again ("recycling").
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

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

    def __call__(
        self, patterson: torch.Tensor, parts: torch.Tensor, recycled: torch.Tensor, lengths: torch.Tensor
    ) -> torch.Tensor: ...


def scaled(rho: torch.Tensor) -> torch.Tensor:
    """Maps (B, u, v, w) brought to -1 ... 1 each."""
    low, high = rho.amin(dim=(1, 2, 3), keepdim=True), rho.amax(dim=(1, 2, 3), keepdim=True)
    return 2 * (rho - low) / (high - low).clamp_min(1e-12) - 1


def patterson(half: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """Patterson maps (B, u, v, w) in -1 ... 1 of half-complex coefficients."""
    square = half.abs().pow(2)
    return scaled(inverse(torch.complex(square, torch.zeros_like(square)), shape))


def corrected(predicted: torch.Tensor, half: torch.Tensor) -> torch.Tensor:
    """Predicted maps with the moduli of ``half``, unit variance: nothing where nothing was measured."""
    own = forward(predicted)
    return unit_variance(inverse(own / own.abs().clamp_min(1e-12) * half.abs(), predicted.shape))


def one_pass(
    network: OneShot, half: torch.Tensor, recycled: torch.Tensor, parts: torch.Tensor, lengths: torch.Tensor
) -> torch.Tensor:
    """What the network predicts, (B, u, v, w) in -1 ... 1.

    Parameters
    ----------
    half : half-complex coefficients whose moduli are the measured ones; parts, lengths : as ``OneShot`` wants them
    recycled : (B, 1, u, v, w), an earlier prediction, ``corrected``, or zeros
    """
    seen = patterson(half, recycled.shape[2:])[:, None]
    kind = seen.device.type
    with torch.autocast(kind, dtype=torch.bfloat16, enabled=has_bfloat16(kind)):
        predicted = network(seen, parts, recycled, lengths)
    return predicted.float()


def predict(
    network: OneShot, half: torch.Tensor, shape: tuple[int, int, int], parts: torch.Tensor, lengths: torch.Tensor,
    passes: int,
) -> list[torch.Tensor]:  # fmt: skip
    """Predictions (B, u, v, w) after each of ``passes`` passes, without gradients; see ``one_pass``."""
    found: list[torch.Tensor] = []
    recycled = torch.zeros((len(half), 1, *shape), dtype=torch.float32, device=half.device)
    with torch.no_grad():
        for _ in range(passes):
            found.append(one_pass(network, half, recycled, parts, lengths))
            recycled = corrected(found[-1], half)[:, None]
    return found


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a one-shot network makes of a crystal in P1.

    phase : (n,) radians, of ``problem.hkl``; fom : (n,) how well the last passes agree on it, 0-1
    """

    phase: NDArray[np.float64]
    fom: NDArray[np.float64]


def predict_phases(network: OneShot, problem: Problem, parts: torch.Tensor) -> Prediction:
    """Phases of a P1 problem that is posed as the network was trained; reflections held out are not shown to it.

    ``parts`` : (1, J, u, v, w), J may be 0
    """
    device = problem.target.amplitude.device
    lengths = torch.tensor([problem.cell.parameters[:3]], dtype=torch.float32, device=device)
    imposed = problem.target.imposed
    half = torch.complex(imposed, torch.zeros_like(imposed))
    maps = predict(network, half, problem.shape, parts.to(device), lengths, PASSES)[-LAST:]
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

    def advance(self, x: torch.Tensor, cycles: int, done: int = 0) -> torch.Tensor:
        return self.method.advance(x, cycles, done)

    def estimate(self, x: torch.Tensor) -> torch.Tensor:
        return self.method.estimate(x)


@dataclass(frozen=True, eq=False)
class PredictedStarts:
    """The predicted map first, then maps with phases drawn from the prediction's doubt; origin and hand are free."""

    starts: GivenStarts

    def random_starts(self, count: int, generator: torch.Generator) -> torch.Tensor:
        return self.starts.make(count, generator)


def from_prediction(entrant: Entrant, known: PhaseDistributions) -> Entrant:
    """The entrant with its starts made of predicted phases ``known``, of all reflections; a few at a time."""
    source = PredictedStarts(GivenStarts(entrant.problem, known.of(entrant.rows)))
    name = f"{entrant.method.name}, from the prediction"
    return replace(entrant, method=Named(entrant.method, name), origin=source, batch=min(entrant.batch, FEW))
