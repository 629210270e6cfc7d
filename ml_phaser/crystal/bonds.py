"""Bonds of a molecule from its coordinates, and which of them turn."""

from __future__ import annotations

from collections.abc import Sequence

import gemmi
import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from ml_phaser.crystal.peptide import Hinge, beyond

SLACK = 0.4  # A over the sum of the radii to which atoms are bonded, as in the Cambridge Structural Database
SINGLE = 0.945  # of the sum of the radii, from which on a bond turns: double bonds and amides are shorter


def linked(elements: Sequence[str], xyz: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which of n atoms (n, 3) A are bonded, (n, n), by covalent radii (Cordero et al., Dalton Trans. 2832, 2008)."""
    return (cdist(xyz, xyz) < _usual(elements) + SLACK) & ~np.eye(len(xyz), dtype=bool)


def hinges(elements: Sequence[str], xyz: NDArray[np.float64]) -> tuple[Hinge, ...]:
    """Single bonds outside rings that have something to turn at both ends; the smaller side moves.

    Parameters
    ----------
    elements : symbols of n atoms, no hydrogens; xyz : (n, 3) A
    """
    bonded, out = linked(elements, xyz), []
    single = bonded & (cdist(xyz, xyz) > SINGLE * _usual(elements))
    for a, b in np.argwhere(np.triu(single)).tolist():
        far, near = beyond(bonded, a, b), beyond(bonded, b, a)
        ring = (bonded[a] & far).sum() > 1
        if not ring and min(far.sum(), near.sum()) > 1:
            out.append(Hinge(a, b, far, True) if far.sum() <= near.sum() else Hinge(b, a, near, True))
    return tuple(out)


def _usual(elements: Sequence[str]) -> NDArray[np.float64]:
    """Sums (n, n) of covalent radii in A."""
    radius = np.array([gemmi.Element(e).covalent_r for e in elements])
    return np.asarray(radius[:, None] + radius)
