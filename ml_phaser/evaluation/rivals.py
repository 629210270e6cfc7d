"""Who is judged in one pass: nothing at all, classical density projections at several settings, the network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ml_phaser.evaluation.held_out import Crystal
from ml_phaser.networks.projector import Projector
from ml_phaser.phasing.dual_space import Projection, sparse
from ml_phaser.phasing.projections import Target, flip, forward, inverse, restore, unit_variance, with_amplitudes

DELTA = 1.1  # the customary threshold of charge flipping, in r.m.s. densities
DELTAS = (-1.0, -0.5, 0.0, 0.5, 0.8, DELTA)
SHARES = (0.03, 0.06, 0.1, 0.15, 0.2, 0.3, 0.4)
PIVOTS = (0.1, 0.25, 0.5, 1.0, 1.5, 2.5)
SOLVENTS = (0.1, 0.2, 0.35, 0.5)
NETWORK, IDENTITY = "network", "identity"
SHOWN = "network, model shown"  # not a rival: the same network, told more where phases come from a placed model


def low_density_elimination(pivot: float) -> Projection:
    """rho (1 - exp(-(rho / pivot)^2 / 2)) where positive, else 0 (Shiono & Woolfson, Acta Cryst. A48, 451, 1992);
    ``pivot`` in r.m.s. densities (there: a fifth of the height expected of an atom)."""

    def project(rho: torch.Tensor) -> torch.Tensor:
        scaled = rho.clamp_min(0) / (pivot * rho.pow(2).mean(dim=(-3, -2, -1), keepdim=True).sqrt())
        return rho.clamp_min(0) * (1 - torch.exp(-0.5 * scaled.pow(2)))

    return project


def solvent_flattening(fraction: float, kernel: torch.Tensor) -> Projection:
    """The ``fraction`` of the cell with the lowest smoothed positive density set to its mean (Wang, Methods Enzymol.
    115, 90, 1985; in reciprocal space Leslie, Acta Cryst. A43, 134, 1987). ``kernel``: half-complex, real."""

    def project(rho: torch.Tensor) -> torch.Tensor:
        smooth = inverse(forward(rho.clamp_min(0)) * kernel, rho.shape)
        k = max(1, round(fraction * rho[0].numel()))
        cut = smooth.reshape(len(rho), -1).kthvalue(k, dim=1).values[:, None, None, None]
        solvent = smooth <= cut
        level = (rho * solvent).sum(dim=(-3, -2, -1), keepdim=True) / solvent.sum(dim=(-3, -2, -1), keepdim=True)
        return torch.where(solvent, level, rho)

    return project


@dataclass(frozen=True)
class Entrant:
    """``name`` (a family of settings), ``setting``, and whether it acts on the map of E instead of F."""

    name: str
    setting: float
    sharp: bool = False


ENTRANTS = (
    Entrant(IDENTITY, 0.0),
    *(Entrant(f"charge flipping, delta {DELTA}", DELTA, sharp) for sharp in (False, True)),
    *(Entrant("charge flipping, best delta", d, sharp) for d in DELTAS for sharp in (False, True)),
    *(Entrant("positivity", 0.0, sharp) for sharp in (False, True)),
    *(Entrant("sparse, best share", s, sharp) for s in SHARES for sharp in (False, True)),
    *(Entrant("low-density elimination", p, sharp) for p in PIVOTS for sharp in (False, True)),
    *(Entrant("solvent flattening", s) for s in SOLVENTS),
    Entrant(NETWORK, 0.0),
    Entrant(SHOWN, 0.0),
)
NAMES = tuple(dict.fromkeys(e.name for e in ENTRANTS))


@dataclass(frozen=True, eq=False)
class Group:
    """Crystals on one grid. truth (B, u, v, w); kernel: of a 2 A Gaussian; model: half-complex, of placed models."""

    truth: torch.Tensor
    target: Target
    cond: torch.Tensor
    kernel: torch.Tensor
    model: torch.Tensor | None = None

    @classmethod
    def of(cls, crystals: Sequence[Crystal], models: Sequence[NDArray] | None = None) -> Group:
        shape = crystals[0].places.shape
        target = Target(
            *(torch.cat([getattr(c.target, k) for c in crystals]) for k in ("amplitude", "known", "inside", "to_e"))
        )
        truth = inverse(torch.cat([c.half(c.f) for c in crystals]), shape)
        kernel = torch.cat(
            [torch.from_numpy(c.places.scatter(np.exp(-2 * np.pi**2 * 4 * 4 * c.stol2)).astype(np.float32))[None]
             for c in crystals]
        )  # fmt: skip
        kernel[:, 0, 0, 0] = 1.0
        model = None if models is None else torch.cat([c.half(f) for c, f in zip(crystals, models, strict=True)])
        return cls(truth, target, torch.cat([c.cond for c in crystals]), kernel, model)

    def projection(self, entrant: Entrant, network: Projector) -> Projection:
        """What ``entrant`` does to maps of unit variance."""
        if entrant.name == NETWORK:
            return lambda rho: restore(network, rho, self.target, self.cond)
        if entrant.name == SHOWN:
            shown = None if self.model is None else unit_variance(inverse(self.model, self.truth.shape))
            return lambda rho: restore(network, rho, self.target, self.cond, shown)
        if entrant.name.startswith("charge flipping"):
            return lambda rho: flip(rho, entrant.setting)
        if entrant.name == "positivity":
            return lambda rho: rho.clamp_min(0)
        if entrant.name.startswith("sparse"):
            return sparse(entrant.setting)
        if entrant.name == "low-density elimination":
            return low_density_elimination(entrant.setting)
        if entrant.name == "solvent flattening":
            return solvent_flattening(entrant.setting, self.kernel)
        return lambda rho: rho

    def restored(self, entrant: Entrant, network: Projector, half: torch.Tensor) -> torch.Tensor:
        """Half-complex coefficients after ``entrant`` acted on those given."""
        rho = unit_variance(inverse(half * self.target.to_e if entrant.sharp else half, self.truth.shape))
        out = forward(self.projection(entrant, network)(rho))
        return out / self.target.to_e.clamp_min(1e-6) * self.target.inside if entrant.sharp else out

    def correlations(self, half: torch.Tensor) -> tuple[NDArray, NDArray]:
        """Correlation with the truth (B,) of a map as it is, and with the measured moduli put back."""
        fixed = with_amplitudes(half, self.target)
        shape = self.truth.shape
        before = (unit_variance(inverse(half, shape)) * unit_variance(self.truth)).mean(dim=(1, 2, 3))
        after = (unit_variance(inverse(fixed, shape)) * unit_variance(self.truth)).mean(dim=(1, 2, 3))
        return before.numpy().astype(float), after.numpy().astype(float)
