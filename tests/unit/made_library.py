"""A library of made-up chains, as dense as protein, for tests of simulation and training."""

import numpy as np

from ml_phaser.simulate.fragments import _library


def made_library(chains=3, seed=0):
    """Chains of 1,331 atoms on a wobbling lattice of 17 A^3 an atom, coordinates to 0.01 A."""
    rng = np.random.default_rng(seed)
    lattice = 2.58 * np.stack(np.meshgrid(*[np.arange(11)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    n = len(lattice)
    xyz = np.concatenate([np.round(lattice + rng.normal(scale=0.25, size=(n, 3)), 2) for _ in range(chains)])
    element = rng.choice(4, size=chains * n, p=[0.64, 0.17, 0.18, 0.01]).astype(np.int8)
    b = rng.integers(5, 40, size=chains * n).astype(np.float32)
    start = n * np.arange(chains + 1)
    entry = np.array([f"{i + 1}abc" for i in range(chains)])
    return _library(xyz.astype(np.float32), element, b, start, entry, np.arange(chains))
