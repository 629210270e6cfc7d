"""Libraries of made-up chains, for tests of simulation and training that need no data."""

import numpy as np

from ml_phaser.crystal.peptide import REGIONS, build
from ml_phaser.crystal.residues import ATOMS, ELEMENTS, RESIDUES
from ml_phaser.simulate.fragments import Residues, _library
from ml_phaser.simulate.peptides import _random_residue


def made_library(chains=3, seed=0):
    """Chains of 1,331 atoms on a wobbling lattice of 17 A^3 an atom, coordinates to 0.01 A; they have no residues."""
    rng = np.random.default_rng(seed)
    lattice = 2.58 * np.stack(np.meshgrid(*[np.arange(11)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    n = len(lattice)
    xyz = np.concatenate([np.round(lattice + rng.normal(scale=0.25, size=(n, 3)), 2) for _ in range(chains)])
    element = rng.choice(4, size=chains * n, p=[0.64, 0.17, 0.18, 0.01]).astype(np.int8)
    b = rng.integers(5, 40, size=chains * n).astype(np.float32)
    start = n * np.arange(chains + 1)
    entry = np.array([f"{i + 1}abc" for i in range(chains)])
    return _library(xyz.astype(np.float32), element, b, start, entry, np.arange(chains))


def peptide_library(chains=4, length=30, seed=0):
    """Helices with bends, of ideal geometry, residues named. In the first chain the second residue lacks its last atom,
    and the tenth is cut from the eleventh by 5 A."""
    rng = np.random.default_rng(seed)
    xyz, aa, mask, sizes = [], [], [], []
    for chain in range(chains):
        sequence = "MK" + "".join(rng.choice(list("AVLIGSTDEKNFYWHRQPMC"), length - 2))
        torsions = [_random_residue(rng, sequence, k, "helix") for k in range(length)]
        bends = np.array([REGIONS["helix" if k % 12 else "turn"] for k in range(length)]) + rng.normal(
            0, 6, (length, 2)
        )
        peptide = build(sequence, bends, [t.chi for t in torsions], [180.0] * length)
        count = 0
        for k, letter in enumerate(sequence):
            at = {n: x for n, r, x in zip(peptide.names, peptide.residue, peptide.xyz, strict=True) if r == k}
            names = ATOMS[letter][:-1] if (chain, k) == (0, 1) else ATOMS[letter]
            shift = 5.0 if chain == 0 and k >= 10 else 0.0
            xyz += [at[name] + shift for name in names]
            aa.append(RESIDUES.index(letter))
            mask.append((1 << len(names)) - 1)
            count += len(names)
        sizes.append(count)
    residues = Residues(
        np.array(aa, dtype=np.int8), np.array(mask, dtype=np.uint16),
        np.tile(np.arange(1, length + 1, dtype=np.int32), chains), length * np.arange(chains + 1),
        np.array(list("ABCDEFGH")[:chains]),
    )  # fmt: skip
    element = residues.elements()
    b = rng.integers(5, 40, size=len(element)).astype(np.float32)
    start = np.concatenate([[0], np.cumsum(sizes)])
    entry = np.array([f"{i + 1}xyz" for i in range(chains)])
    coordinates = np.round(np.array(xyz), 2).astype(np.float32)
    assert len(ELEMENTS) == 4
    return _library(coordinates, element, b, start, entry, np.arange(chains), residues)
