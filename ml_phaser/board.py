"""The crystal's data laid out for phasing: what is used, what is held out, as problems on grids of any fineness."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ml_phaser.crystal.normalise import Normalised
from ml_phaser.crystal.reflections import Amplitudes
from ml_phaser.networks.runtime import Runtime, choose_runtime
from ml_phaser.parameters import Options
from ml_phaser.phasing.problem import Problem, choose_held_out, pose

SEARCH_D_MIN = 0.8  # A: finer data cost time in the search and help only the finish
SEARCH_FEWEST = 400  # unique reflections the search wants before it leaves finer data out
SEARCH_B = 11.0  # A^2: the overall B the network's training crystals have
FINISH_POINTS = 200_000  # grid points on which a finish has all its cycles
WRAP_B = 20.0  # A^2: the overall B at which density to 1.5 A is positive but for small ripples


@dataclass(frozen=True, eq=False)
class Board:
    """The crystal's data as problems on grids of any fineness; reflections held out are the same in all."""

    data: Amplitudes
    normalised: Normalised
    rows: NDArray[np.int64]
    held: NDArray[np.bool_]
    place: str

    def beyond(self, d_min: float) -> NDArray[np.int64]:
        """Rows of the data used to a resolution of ``d_min`` in A."""
        return self.rows[self.data.d[self.rows] >= d_min]

    def sharpened(self, rows: NDArray[np.int64], spacing: float) -> Problem:
        """The problem of point atoms at rest: moduli are E sqrt(epsilon)."""
        return self._pose(rows, np.sqrt(self.data.epsilon / self.normalised.expected), spacing, 2)

    def as_trained(self, rows: NDArray[np.int64], spacing: float, multiple: int) -> Problem:
        """The problem at the overall B the network knows."""
        scale = np.exp((self.normalised.wilson_b - SEARCH_B) * (0.25 / self.data.d**2))
        return self._pose(rows, scale, spacing, multiple)

    def smoothed(self, rows: NDArray[np.int64], spacing: float, multiple: int = 2) -> Problem:
        """The problem of density without negative ripples: an overall B of WRAP_B."""
        scale = np.exp((self.normalised.wilson_b - WRAP_B) * (0.25 / self.data.d**2))
        return self._pose(rows, scale, spacing, multiple)

    def _pose(self, rows: NDArray[np.int64], scale: NDArray[np.float64], spacing: float, multiple: int) -> Problem:
        to_e = 1 / np.sqrt(self.normalised.expected)
        return pose(
            self.data.hkl[rows], (scale * self.normalised.f)[rows], (to_e / scale)[rows], self.held[rows],
            self.data.cell, self.data.spacegroup, spacing=spacing, multiple=multiple, place=self.place,
        )  # fmt: skip


def lay_out(
    data: Amplitudes, normalised: Normalised, options: Options, runtime: Runtime | None = None
) -> tuple[Board, Problem, float]:
    """The data with reflections held out, the problem of all that are used, and the search's resolution limit in A."""
    used = np.flatnonzero(~normalised.outlier)
    d_search = search_resolution(data.d[used])
    held = choose_held_out(data.d, d_search, options.seed) & ~normalised.outlier
    board = Board(data, normalised, used, held, (runtime or choose_runtime(options.engine, options.device)).place)
    return board, board.sharpened(used, data.d_min / 2), d_search


def search_resolution(d: NDArray[np.float64]) -> float:
    """Resolution limit of the search in A: 0.8 where the data go beyond, finer only where few reflections are left."""
    enough = float(np.sort(d)[::-1][min(len(d), SEARCH_FEWEST) - 1])
    return max(float(d.min()), min(SEARCH_D_MIN, enough))


def affordable(cycles: int, problem: Problem, points: int) -> int:
    """Fewer cycles on grids larger than ``points``, so that finishing one solution takes seconds."""
    return max(2, min(cycles, round(cycles * points / problem.points)))


def atoms_share(d_min: float, factor: float) -> float:
    """Share of the cell's grid points that atoms fill on a sharpened map: a peak's volume goes with d_min cubed."""
    return min(0.25, factor * 0.08 * (d_min / 0.8) ** 3)
