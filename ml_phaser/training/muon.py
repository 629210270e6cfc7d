"""Muon: momentum whose matrix is made orthogonal before it is applied, so that no direction of a layer is neglected.

Jordan et al. (2024), https://kellerjordan.github.io/posts/muon; the scale that lets it share a learning rate with AdamW
is that of Liu et al., arXiv:2502.16982. Convolution kernels are taken as matrices (out, in x volume); torch.optim.Muon
refuses weights that are not matrices, and torch before 2.9 has none.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

SMALLEST = 9  # rows and columns of a kernel's matrix worth orthogonalising
WIDE = 32  # of a linear layer's: what conditions a network has few columns
QUINTIC = (3.4445, -4.7750, 2.0315)  # of the Newton-Schulz step, tuned by Jordan for speed: singular values of 0.7-1.2


def orthogonal(matrix: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """About U V^T of the singular value decomposition U S V^T of a matrix (m, n), by Newton-Schulz steps."""
    a, b, c = QUINTIC
    x = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.mT
    x = (x / x.norm().clamp_min(1e-7)).to(torch.bfloat16)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x if matrix.shape[0] <= matrix.shape[1] else x.mT).to(matrix.dtype)


class Muon(torch.optim.Optimizer):
    """Muon for weights of two or more dimensions.

    lr : as for AdamW; momentum : Nesterov's; weight_decay : decoupled
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.01
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if "mean" not in state:
                    state["mean"] = torch.zeros_like(weight)
                mean = state["mean"].lerp_(weight.grad, 1 - group["momentum"])
                ahead = weight.grad.lerp(mean, group["momentum"]).reshape(len(weight), -1)
                size = 0.2 * max(ahead.shape) ** 0.5  # r.m.s. change of a weight 0.2 lr, as AdamW's
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.add_(orthogonal(ahead).reshape(weight.shape), alpha=-group["lr"] * size)


class Both:
    """Muon for the convolutions and wide linear layers of a network, AdamW for biases, norms and narrow layers."""

    def __init__(self, network: nn.Module, rate: float, weight_decay: float) -> None:
        self.optimisers: tuple[torch.optim.Optimizer, ...]
        matrices: list[nn.Parameter] = []
        rest: list[nn.Parameter] = []
        for weight in network.parameters():
            least = {2: WIDE, 5: SMALLEST}.get(weight.ndim)
            wide = least is not None and min(len(weight), weight[0].numel()) >= least
            (matrices if wide else rest).append(weight)
        adam = torch.optim.AdamW(rest, lr=rate, weight_decay=weight_decay)
        self.optimisers = (Muon(matrices, rate), adam) if matrices else (adam,)

    def step(self, rate: float) -> None:
        """One step at this learning rate."""
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = rate
            optimiser.step()

    def state_dict(self) -> list[dict[str, Any]]:
        return [optimiser.state_dict() for optimiser in self.optimisers]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        for optimiser, state in zip(self.optimisers, states, strict=True):
            optimiser.load_state_dict(state)
