"""Which one-shot network for which data set: configurations of the two families."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import nn

from ml_phaser.networks.crysformer import CrysFormer, CrysFormerConfig
from ml_phaser.networks.unet import UNet, UNetConfig
from ml_phaser.simulate.one_shot import FAMILIES, OneShotRecipe

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
