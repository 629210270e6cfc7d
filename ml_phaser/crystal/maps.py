"""Maps of a crystal: grids its space group maps onto themselves, synthesis, CCP4 files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import gemmi
import numpy as np
from numpy.typing import NDArray

from ml_phaser.atomic import atomic
from ml_phaser.crystal.grid import grid_shape, synthesise
from ml_phaser.crystal.symmetry import expand
from ml_phaser.errors import UserError

# words of the CCP4 header (counted from 1) that describe the values
_DMIN, _DMAX, _DMEAN, _RMS = 20, 21, 22, 55
_HEADER_BYTES = 1024
_NSYMBT = 24
_BINS = 80


@dataclass(frozen=True)
class Distribution:
    """How the values of a map are spread: ``sigma`` their rms deviation, ``skewness`` their third moment in units of it
    (0 for noise, large where atoms stand out), ``histogram`` {"edges": m + 1 in units of sigma, "counts": m}."""

    sigma: float
    skewness: float
    histogram: dict[str, list[float]]


def distribution(rho: NDArray) -> Distribution | None:
    """Of the values of a map [u, v, w] about their mean; None for a map without features."""
    values = np.asarray(rho, dtype=np.float64).ravel()
    values = values - values.mean()
    sigma = float(values.std())
    if not sigma > 0:
        return None
    values /= sigma
    counts, edges = np.histogram(values, np.linspace(np.floor(values.min()), np.ceil(values.max()), _BINS + 1))
    return Distribution(sigma, float(np.mean(values**3)), {"edges": edges.tolist(), "counts": counts.tolist()})


def symmetric_shape(
    cell: gemmi.UnitCell, spacegroup: gemmi.SpaceGroup, d_min: float, spacing: float, multiple: int = 2
) -> tuple[int, int, int]:
    """Whole-cell grid that every operator of the group maps onto itself.

    Like ``grid.grid_shape``, and besides divisible by the denominators of the group's translations, and of
    equal size along axes that a rotation exchanges.

    Parameters
    ----------
    d_min : resolution in A; every index with d >= d_min fits
    spacing : largest distance between grid points along each axis, in A
    multiple : each dimension is a multiple of this
    """
    factors = spacegroup.operations().find_grid_factors()
    tied = tied_axes(spacegroup)
    shape = [0, 0, 0]
    for axes in tied:
        step = int(np.lcm.reduce([multiple, *(factors[axis] for axis in axes)]))
        # the finest of the tied axes decides; it is made with the common step, so it suits all of them
        finest = max(grid_shape(cell, d_min, spacing=spacing, multiple=step)[axis] for axis in axes)
        for axis in axes:
            shape[axis] = finest
    return shape[0], shape[1], shape[2]


def tied_axes(spacegroup: gemmi.SpaceGroup) -> list[tuple[int, ...]]:
    """Axes grouped by the rotations that mix them: [(0, 1), (2,)] in a tetragonal group."""
    mixed = sum((np.array(op.rot) != 0).astype(int) for op in spacegroup.operations().sym_ops)
    groups: list[set[int]] = [{0}, {1}, {2}]
    for i, j in ((0, 1), (0, 2), (1, 2)):
        if mixed[i, j] or mixed[j, i]:
            first = next(g for g in groups if i in g)
            second = next(g for g in groups if j in g)
            if first is not second:
                groups.remove(second)
                first |= second
    return [tuple(sorted(group)) for group in groups]


def density(
    hkl: NDArray[np.int32],
    f: NDArray,
    cell: gemmi.UnitCell,
    spacegroup: gemmi.SpaceGroup,
    shape: tuple[int, int, int],
) -> NDArray[np.float64]:
    """Density [u, v, w] in (units of F)/A^3 of the whole cell; its mean is 0, as F(000) is not measured.

    Parameters
    ----------
    hkl, f : (n, 3) unique indices and (n,) complex structure factors
    shape : grid, e.g. of ``symmetric_shape``

    Raises
    ------
    ValueError
        if the grid is too coarse for the indices
    """
    expansion = expand(hkl, spacegroup)
    return synthesise(expansion.hkl, expansion.spread(np.asarray(f, np.complex128)), shape, cell.volume)


def write_map(
    path: Path | str,
    rho: NDArray,
    cell: gemmi.UnitCell,
    spacegroup: gemmi.SpaceGroup,
    extent: str = "cell",
) -> None:
    """Write a CCP4 map (mode 2), whole or not at all.

    The header names the group, so that programs can expand the map. A whole cell is written as P 1, which is right for
    it, in settings that programs disagree on: those CCP4 has no number for, or one of its own (P 1 21/n 1 is its 2014:
    cctbx refuses the map), or that of another setting elsewhere (origin choice 1: cctbx takes it for choice 2).

    Parameters
    ----------
    rho : (nu, nv, nw) values over the whole cell
    extent : "cell", or "asu" for a brick that holds the asymmetric unit

    Raises
    ------
    UserError
        if the file cannot be written, or ``extent`` is "asu" in a setting CCP4 has no number for
    ValueError
        if the grid does not suit the group (see ``symmetric_shape``) or values are not finite
    """
    if extent not in ("cell", "asu"):
        raise ValueError(f"extent {extent!r} is neither 'cell' nor 'asu'")
    values = np.ascontiguousarray(rho, dtype=np.float32)
    if not np.isfinite(values).all():
        raise ValueError("the map holds values that are not finite numbers")
    if extent == "asu" and not spacegroup.ccp4:
        raise UserError(
            f"a CCP4 map cannot name space group {spacegroup.xhm()}, so none could expand it",
            str(path),
            "mapextent cell",
        )
    if extent == "cell" and not (0 < spacegroup.ccp4 <= 230 and spacegroup.ext != "1"):
        spacegroup = gemmi.SpaceGroup("P 1")
    if not fits(values.shape, spacegroup):
        raise ValueError(f"a grid of {values.shape} does not suit {spacegroup.xhm()}")
    ccp4 = gemmi.Ccp4Map()
    ccp4.grid = gemmi.FloatGrid(values, cell, spacegroup)
    ccp4.update_ccp4_header()
    if extent == "asu":
        ccp4.set_extent(gemmi.find_asu_brick(spacegroup).get_extent())
        _correct_statistics(ccp4)
    with atomic(path) as tmp:
        ccp4.write_ccp4_map(str(tmp))
        _check_size(tmp, _HEADER_BYTES + ccp4.header_i32(_NSYMBT) + 4 * ccp4.grid.array.size)


def fits(shape: tuple[int, ...], spacegroup: gemmi.SpaceGroup) -> bool:
    """True if every operator of the group maps the points of the grid onto points of the grid."""
    factors = spacegroup.operations().find_grid_factors()
    return all(n % k == 0 for n, k in zip(shape, factors, strict=True)) and all(
        len({shape[axis] for axis in axes}) == 1 for axes in tied_axes(spacegroup)
    )


def _correct_statistics(ccp4: gemmi.Ccp4Map) -> None:
    """``set_extent`` leaves those of the whole cell in the header; validators compare them."""
    values = np.asarray(ccp4.grid.array, dtype=np.float64)
    for word, value in (
        (_DMIN, values.min()),
        (_DMAX, values.max()),
        (_DMEAN, values.mean()),
        (_RMS, values.std()),
    ):
        ccp4.set_header_float(word, float(value))


def _check_size(path: Path, expected: int) -> None:
    """A short file is a failed write that nobody reported."""
    if path.is_file() and (size := path.stat().st_size) != expected:
        raise OSError(f"only {size} of {expected} bytes were written")
