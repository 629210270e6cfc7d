"""The molecules others published their results on: CrysFormer's list of test fragments of 15 residues."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from ml_phaser.crystal.amino_acids import THREE_LETTERS
from ml_phaser.crystal.residues import ELEMENTS, RESIDUES
from ml_phaser.errors import UserError
from ml_phaser.simulate.fragments import Library
from ml_phaser.simulate.one_shot import OneShotBatch, OneShotRecipe, grid, on_grid
from ml_phaser.simulate.recipes import FIFTEEN_CELL, build_fifteen


def published_batches(library: Library, names: Sequence[str], recipe: OneShotRecipe) -> Iterator[OneShotBatch]:
    """The crystals of fragments ``names``, one a batch, oriented as in their entries; those that ``library`` (the split
    "crysformer") lacks or does not hold whole are left out."""
    code = {THREE_LETTERS[letter]: i for i, letter in enumerate(RESIDUES)}
    chosen = {"rotate": False, "spacing": recipe.spacing, "d_min": recipe.d_min}
    lengths = torch.tensor([FIFTEEN_CELL])
    u, v, w = grid(lengths, recipe)[0].tolist()
    for name in names:
        try:
            sites = build_fifteen(np.random.default_rng(0), {**chosen, "fragment": name}, library).sites
        except UserError:
            continue
        xyz = torch.from_numpy((sites.xyz - 0.5) * np.array(FIFTEEN_CELL)).float()[None]
        element = torch.tensor([[ELEMENTS.index(e) for e in sites.element]])
        firsts = np.unique(sites.number, return_index=True)[1]
        aa = torch.tensor([[code[sites.residue[i]] for i in firsts]])
        yield on_grid(aa, xyz, element, lengths, shape=(u, v, w), recipe=recipe)
