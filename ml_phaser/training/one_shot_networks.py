"""Which one-shot network for which data set: configurations of the two families."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ml_phaser.errors import UserError
from ml_phaser.networks.crysformer import CrysFormer, CrysFormerConfig
from ml_phaser.networks.unet import UNet, UNetConfig
from ml_phaser.simulate.one_shot import FAMILIES, OneShotRecipe

# What may differ between a network and the one it begins with: the crystals, and the grid a patch is drawn on.
CARRIED_OVER = {"family", "d_min", "spacing", "shortest", "longest", "patch"}
CUBE = (3.0, 20.0)  # A, edges of minimal cells


def _heads(dim: int) -> int:
    """As many as leave each 32 dimensions or more, and divide them."""
    return next(n for n in range(max(1, dim // 32), 0, -1) if dim % n == 0)


def configure(
    network: str, family: str, d_min: float, spacing: float | None, *, parts: bool, recycled: bool,
    width: int | None = None, depth: int | None = None, patch: int | None = None,
) -> tuple[Callable[[Any], nn.Module], Any, OneShotRecipe]:  # fmt: skip
    """The class of a network ("unet" or "crysformer"), its configuration and the recipe of its crystals.

    ``width``, ``depth``, ``patch`` : None for those of the family
    """
    made = FAMILIES[family]
    spacing = d_min / 3 if spacing is None else spacing
    shortest, longest = (made.edges,) * 2 if made.edges else ((CUBE[0],) * 3, (CUBE[1],) * 3)
    domain: dict[str, Any] = {
        "family": family, "d_min": d_min, "spacing": spacing, "shortest": shortest, "longest": longest,
        "parts": made.residues if parts else 0, "recycled": recycled,
    }  # fmt: skip
    kind: Callable[[Any], nn.Module]
    config: Any
    if network == "unet":
        features = width or UNetConfig.features
        edge = UNetConfig.edge if width is None else max(8, width - 2)
        config = UNetConfig(edge=edge, features=features, blocks=depth or UNetConfig.blocks, squeeze=True, **domain)
        kind = UNet
    else:
        config = CrysFormerConfig(**domain)
        config = replace(
            config, dim=width or config.dim, depth=depth or config.depth, patch=patch or config.patch,
            heads=_heads(width or config.dim),
        )  # fmt: skip
        kind = CrysFormer
    return kind, config, OneShotRecipe(family, d_min, spacing, config.stride, parts)


def carried_over(weights: Mapping[str, torch.Tensor], of: Any, to: Any) -> dict[str, torch.Tensor]:
    """Weights of a network of configuration ``of`` for one of configuration ``to``, of other crystals or another grid.

    Where CrysFormer's patches have more or fewer points to an edge, what the first and the last layer know of a point
    is interpolated between its points.

    Raises
    ------
    UserError
        where anything else differs
    """
    if type(of) is not type(to):
        raise UserError(f"is a {type(of).__name__.removesuffix('Config')}", "begin", "network of the same kind")
    for field in fields(of):
        if field.name not in CARRIED_OVER and getattr(of, field.name) != getattr(to, field.name):
            what = f"is another network ({field.name} {getattr(of, field.name)}, not {getattr(to, field.name)})"
            raise UserError(what, "begin", "the same width, depth, parts and recycles")
    made = {name: value.clone() for name, value in weights.items()}
    if isinstance(of, CrysFormerConfig) and of.patch != to.patch:
        for name in ("embed.mlp.0.weight", "embed_part.mlp.0.weight"):
            if name in made:  # sums over the points of a patch
                made[name] = resampled(made[name], of.patch, to.patch) * (of.patch / to.patch) ** 3
        made["mlp.2.weight"] = resampled(made["mlp.2.weight"].T, of.patch, to.patch).T.contiguous()
        made["mlp.2.bias"] = resampled(made["mlp.2.bias"][None], of.patch, to.patch)[0]
    return made


def resampled(x: torch.Tensor, before: int, after: int) -> torch.Tensor:
    """(n, C before^3) -> (n, C after^3): values at the points of a patch, interpolated linearly."""
    patches = x.unflatten(1, (-1, before, before, before))
    return F.interpolate(patches, size=(after,) * 3, mode="trilinear", align_corners=False).flatten(1)
