"""The measured data of one crystal, as the rest of the program sees them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import gemmi
import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Source:
    """Where the amplitudes came from, for the log and the run record."""

    path: str
    format: str  # "MTZ", "structure-factor CIF", "CIF with embedded SHELX hkl", "SHELX hkl"
    columns: tuple[str, ...]  # labels as they stand in the file, e.g. ("FP", "SIGFP")
    kind: str  # "amplitude", "intensity", "anomalous amplitude", "anomalous intensity"


@dataclass(frozen=True, eq=False)
class Amplitudes:
    """Merged measured data: one row per unique reflection, no systematic absences.

    Attributes
    ----------
    hkl : (n, 3) int32, Miller indices in gemmi's reciprocal asymmetric unit (``ReciprocalAsu``)
    f, sigf : (n,) float64, amplitude and its standard uncertainty (0 where unknown), arbitrary scale, f >= 0
    intensity, sigma_i : (n,) float64 or None, the measured intensity where intensities were measured
        (weak ones may be negative)
    cell, spacegroup : gemmi objects
    source : provenance of the columns
    free : (n,) int or None, free-R flags as they stand in the file (-1 where missing)
    notes : sentences for the log: choices made for the user while reading
    """

    hkl: NDArray[np.int32]
    f: NDArray[np.float64]
    sigf: NDArray[np.float64]
    cell: gemmi.UnitCell
    spacegroup: gemmi.SpaceGroup
    source: Source
    intensity: NDArray[np.float64] | None = None
    sigma_i: NDArray[np.float64] | None = None
    free: NDArray[np.int32] | None = None
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.hkl)

    @cached_property
    def d(self) -> NDArray[np.float64]:
        """(n,) resolution of each reflection in A."""
        return np.asarray(self.cell.calculate_d_array(self.hkl), dtype=np.float64)

    @property
    def d_min(self) -> float:
        """Highest resolution in A."""
        return float(self.d.min())

    @property
    def d_max(self) -> float:
        """Lowest resolution in A."""
        return float(self.d.max())

    @cached_property
    def centric(self) -> NDArray[np.bool_]:
        """(n,) True where the phase is restricted by symmetry."""
        return np.asarray(self.spacegroup.operations().centric_flag_array(self.hkl), dtype=bool)

    @cached_property
    def epsilon(self) -> NDArray[np.float64]:
        """(n,) statistical weight: mean <|F|^2> is epsilon times that of a general reflection."""
        ops = self.spacegroup.operations()
        return np.asarray(ops.epsilon_factor_without_centering_array(self.hkl), dtype=np.float64)

    @cached_property
    def completeness(self) -> float:
        """Fraction of the unique reflections to d_min that are present, 0-1."""
        possible = gemmi.make_miller_array(self.cell, self.spacegroup, self.d_min * 0.99999)
        return float(len(self) / max(1, len(possible)))
