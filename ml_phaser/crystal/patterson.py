"""Patterson maps: the map of interatomic vectors, from intensities alone."""

from __future__ import annotations

import gemmi
import numpy as np
from numpy.typing import NDArray

from ml_phaser.crystal.grid import synthesise
from ml_phaser.crystal.maps import symmetric_shape, tied_axes
from ml_phaser.crystal.reflections import Amplitudes
from ml_phaser.crystal.symmetry import expand

_PER_SHELL, _MOST_SHELLS = 100, 40


def patterson_group(spacegroup: gemmi.SpaceGroup) -> gemmi.SpaceGroup:
    """Space group of the Patterson map: the crystal's rotations and lattice, an inversion, no translations.

    International Tables A, 2.1.3.5: P 21 -> P 1 2/m 1, F 2 3 -> F m -3, ... Where no table names it
    (C-centred tetragonal and a few other settings), P -1: less symmetry, equally right for a whole-cell map.
    """
    operations = spacegroup.operations().derive_symmorphic()
    operations.add_inversion()
    return gemmi.find_spacegroup_by_ops(operations) or gemmi.SpaceGroup("P -1")


def harker_sections(spacegroup: gemmi.SpaceGroup) -> tuple[tuple[int, float], ...]:
    """Planes of the Patterson map that hold the vectors between atoms and their mates by a rotation or screw axis.

    Only those across a cell axis: (axis 0-2, fraction 0 to 1/2), one of those that symmetry makes alike; (1, 0.5) is
    v = 1/2, as P 21 has it. None in groups without such axes.
    """
    stands_for = {axis: max(axes) for axes in tied_axes(spacegroup) for axis in axes}
    found = set()
    for op in spacegroup.operations():
        rot, shift = np.array(op.rot) // op.DEN, np.array(op.tran) / op.DEN
        moved = np.eye(3, dtype=int) - rot
        if np.linalg.matrix_rank(moved) != 2:
            continue
        for axis in np.flatnonzero(~moved.any(axis=1)):
            fraction = round(float(shift[axis]) % 1, 6)
            found.add((stands_for[int(axis)], min(fraction, 1 - fraction)))
    return tuple(sorted(found))


def patterson_map(
    data: Amplitudes,
    coefficients: NDArray,
    *,
    origin_removed: bool = False,
    spacing: float | None = None,
    shape: tuple[int, int, int] | None = None,
) -> NDArray[np.float64]:
    """Patterson function P(u) = (1/V) sum_h C(h) cos(2 pi h.u) over the whole cell, [u, v, w].

    The sum runs over all of P1 without C(000), so the map's mean is zero. It is left on the absolute scale of
    the coefficients: the height at the origin is their sum over P1 divided by V, which is 0 when the origin
    peak is removed. It has the symmetry of ``patterson_group``, and so has its grid.

    Parameters
    ----------
    coefficients : (n,) on ``data.hkl``: measured intensities (better than squared amplitudes, which lack the
        negative ones), or E^2 for a sharpened map
    origin_removed : subtract the coefficients' mean over P1, shell by shell in resolution, which takes away
        the peak of the vectors from each atom to itself
    spacing : largest distance between grid points in A [d_min / 3]
    shape : grid to use instead

    Raises
    ------
    ValueError
        if ``coefficients`` has the wrong length or is not finite, or the grid is too coarse
    """
    values = np.asarray(coefficients, dtype=np.float64)
    if values.shape != (len(data),) or not np.isfinite(values).all():
        raise ValueError(f"{len(data)} finite coefficients are needed")
    if shape is None:
        group = patterson_group(data.spacegroup)
        shape = symmetric_shape(data.cell, group, data.d_min, spacing or data.d_min / 3)
    expansion = expand(data.hkl, data.spacegroup)
    if origin_removed:
        copies = np.bincount(expansion.asu, minlength=len(data))
        values = values - _shell_means(values, copies, data.d)
    return synthesise(expansion.hkl, expansion.spread(values), shape, data.cell.volume)


def _shell_means(values: NDArray, weight: NDArray, d: NDArray) -> NDArray[np.float64]:
    """(n,) weighted mean of the values in each reflection's resolution shell; shells hold equal numbers."""
    n = len(values)
    number = int(np.clip(n // _PER_SHELL, 1, _MOST_SHELLS))
    shell = np.empty(n, dtype=np.int64)
    shell[np.argsort(-d, kind="stable")] = np.arange(n) * number // max(n, 1)
    total = np.bincount(shell, weight * values, number)
    return (total / np.maximum(np.bincount(shell, weight, number), 1e-300))[shell]
