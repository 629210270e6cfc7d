"""The learned projection for a crystal: whether there is a network for it, and what that is told."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from ml_phaser import arrays
from ml_phaser.arrays import Array
from ml_phaser.networks.config import ProjectorConfig, condition
from ml_phaser.networks.runtime import Runtime
from ml_phaser.networks.store import choose_projector, load_projector, read_card
from ml_phaser.phasing.dual_space import Projection
from ml_phaser.phasing.problem import Problem
from ml_phaser.phasing.projections import Restorer, restore, unit_variance

CLASSICAL_D_MIN = 0.95  # A: to here classical projections solve what they can in seconds
LEARNED_MOST = 4_000_000


def bundled_network(
    d_min: float, volume: float, engine: str, runtime: Runtime | None = None, threads: int = 1
) -> tuple[Network | None, dict[str, Any], list[str]]:
    """The learned projection if it is wanted, the data lie in its domain and the cell (A^3) is not too large for it;
    its hash, and what to say about it. ``runtime`` : torch on a processor, where it is not given; ``threads`` : of ONNX
    Runtime."""
    runtime = runtime or Runtime()
    if engine == "classical":
        return None, {}, ["The learned projection is not used, as asked. To change: engine auto."]
    if not runtime.networks:
        return None, {}, []
    card = read_card(choose_projector(runtime.device))
    best, worst = card.config["d_best"], card.config["d_worst"]
    if d_min > worst:
        said = f"The learned projection claims {best}-{worst} A; these data end at {d_min:.2f} A: it is not used."
        return None, {}, [said]
    if (points := volume / card.config["spacing"] ** 3) > LEARNED_MOST:
        said = f"The learned projection is not used: the cell would need {points:.1e} grid points, and much memory."
        return None, {}, [said]
    cut = []
    if engine in ("auto", "onnx") and d_min <= CLASSICAL_D_MIN:
        other = "classical or learned" if runtime.networks == "torch" else "classical"
        cut = [
            f"The learned projection polishes what is found, to {best} A, and leaves the search to classical ones, "
            f"which need no help to {CLASSICAL_D_MIN} A. To change: engine {other}."
        ]
    elif d_min < best:
        cut = [f"The learned projection sees data to {best} A. To change: engine classical."]
    facts = {"name": card.name, "sha256": card.sha256, "runtime": runtime.networks}
    if runtime.networks == "onnx":
        from ml_phaser.networks.onnx_session import onnx_projector

        return onnx_projector(card.name, threads=threads), facts, cut
    return load_projector(card.name), facts, cut


class Network(Protocol):
    """The learned projection, in torch or ONNX Runtime."""

    @property
    def config(self) -> ProjectorConfig: ...

    def __call__(self, maps: Array, cond: Array) -> Array: ...


def there(network: Any, place: str) -> Network:
    """The network where the maps are."""
    return network if place == arrays.NUMPY else network.to(place)


def density_projection(network: Restorer, problem: Problem) -> Projection:
    """The network as a projection of maps on the problem's grid."""
    cond = conditions(problem)

    def project(rho: Array) -> Array:
        with arrays.no_gradients(rho):
            told = arrays.namespace(cond).broadcast_to(cond, (len(rho), cond.shape[1]))
            return restore(network, unit_variance(rho), problem.target, told)

    return project


def conditions(problem: Problem) -> Array:
    """What the network is told of a problem, (1, k)."""
    steps = np.array(problem.cell.orth.mat) / np.array(problem.shape)
    target = problem.target
    known = float((target.known & target.inside).sum()) / float(target.inside.sum())
    one = np.ones(1)
    told = condition(one * problem.d_min, steps[None], one * known)
    return arrays.beside(told.astype(np.float32), target.amplitude)
