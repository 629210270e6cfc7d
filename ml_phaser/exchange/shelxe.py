"""What SHELXE reads: phases (.phi), intensities (.hkl) and the crystal (.ins), three files of one stem.

All are FORTRAN: fields by column, not by blanks. ``.phi`` is ``3I4,F9.2,F8.4,F8.1,F8.2`` (h k l, F, figure of merit,
phase in degrees, sigma of F), ``.hkl`` is ``3I4,2F8.2`` (F^2 and its sigma; HKLF 4), ended by a line of zeros. One
scale serves both, so that F^2 of the one is the intensity of the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import gemmi
import numpy as np
from numpy.typing import NDArray

from ml_phaser.crystal.reflections import Amplitudes
from ml_phaser.errors import UserError
from ml_phaser.outcome import Phases

LONGEST_STEM = 75  # characters
LARGEST = 99_999.0  # of F8.2
MOST_NEGATIVE = -9_999.0
LATTICES = "PIRFABC"  # LATT 1 to 7
UNKNOWN_SIGMA = 0.05  # of an intensity whose standard uncertainty nobody gave
ATOM_VOLUME = 18.0  # A^3 for an atom other than hydrogen
ATOMS = {"C": 0.62, "N": 0.17, "O": 0.21}  # shares in proteins
DEFAULT_WAVELENGTH = 1.0  # A; SHELXE makes no use of it
_OPTION = "shelxout"


@dataclass(frozen=True)
class ShelxeSet:
    """Texts of the three files, and sentences for the log."""

    phi: str
    hkl: str
    ins: str
    notes: tuple[str, ...]


def companions(phi: Path) -> tuple[Path, Path, Path]:
    """The three files of a set: .phi, .hkl, .ins."""
    return phi, phi.with_suffix(".hkl"), phi.with_suffix(".ins")


def check_stem(phi: Path, option: str = _OPTION) -> None:
    """Raise UserError where SHELXE could not be told this file's name."""
    where = f"{option} {phi}"
    if phi.suffix != ".phi":
        raise UserError("does not end in .phi, by which SHELXE knows it", where, f"{option} {phi.with_suffix('.phi')}")
    if len(phi.stem) > LONGEST_STEM:
        raise UserError(f"SHELXE takes names of up to {LONGEST_STEM} characters", where, "a shorter name")
    if any(c.isspace() for c in phi.stem) or phi.stem.startswith("-") or not phi.stem.isascii():
        raise UserError("a name that SHELXE cannot be given", where, "letters and digits without blanks")


def check_group(spacegroup: gemmi.SpaceGroup, option: str = _OPTION) -> None:
    """Raise UserError where SHELX has no words for the setting: LATT knows inversion centres at the origin only."""
    ops = spacegroup.operations()
    if ops.is_centrosymmetric() and not _inversion_at_origin(ops):
        raise UserError(
            f"SHELX wants the inversion centre at the origin, which {spacegroup.xhm()} has elsewhere",
            option,
            "data in the setting with origin choice 2, or no files for SHELXE",
        )
    if ops.find_centering() not in LATTICES:
        raise UserError(f"SHELX has no LATT for {spacegroup.xhm()}", option, "data in the standard setting")


def shelxe_set(
    data: Amplitudes,
    phases: Phases,
    f: NDArray[np.float64],
    sigf: NDArray[np.float64],
    *,
    title: str,
    wavelength: float = 0.0,
) -> ShelxeSet:
    """The files for SHELXE.

    Parameters
    ----------
    phases : on ``data.hkl``; rows without a phase are left out of .phi
    f, sigf : (n,) amplitudes that the figures of merit belong to, on the scale of ``data``
    title : for TITL; wavelength : in A, for CELL; 0 where unknown

    Raises
    ------
    UserError : a space group SHELX has no words for
    """
    check_group(data.spacegroup)
    intensity, sigma, notes = _intensities(data)
    scale = _scale(intensity, sigma)
    columns = zip(data.hkl.tolist(), (scale * intensity).tolist(), (scale * sigma).tolist(), strict=True)
    hkl = "".join(_hkl_line(*row) for row in [*columns, ([0, 0, 0], 0.0, 0.0)])
    notes.append(f"Files for SHELXE: intensities times {scale:.4g}, to fit the columns of SHELX.")
    ins = instructions(data.cell, data.spacegroup, title, wavelength)
    return ShelxeSet(phase_list(data, phases, f, sigf), hkl, ins, tuple(notes))


def phase_list(data: Amplitudes, phases: Phases, f: NDArray[np.float64], sigf: NDArray[np.float64]) -> str:
    """The list h k l F fom phi sigF (.phi, .phs) of the reflections with a phase; arguments as ``shelxe_set``'s."""
    intensity, sigma, _ = _intensities(data)
    scale = _scale(intensity, sigma)
    degrees = np.mod(np.rad2deg(phases.phase), 360.0)
    root = np.sqrt(scale)
    with np.errstate(invalid="ignore"):
        known = np.isfinite(phases.phase) & np.isfinite(phases.fom) & np.isfinite(f) & (f > 0)
    rows = zip(
        data.hkl[known].tolist(),
        (root * f[known]).tolist(),
        np.clip(phases.fom[known], 0, 1).tolist(),
        degrees[known].tolist(),
        np.where(np.isfinite(sigf[known]), root * sigf[known], 0.0).tolist(),
        strict=True,
    )
    return "".join(_phi_line(*row) for row in rows)


def _scale(intensity: NDArray[np.float64], sigma: NDArray[np.float64]) -> float:
    """What brings intensities into the columns of SHELX."""
    top = max(float(np.max(np.abs(intensity), initial=0.0)), float(np.max(sigma, initial=0.0)))
    low = float(-np.min(intensity, initial=0.0))
    return min(LARGEST / max(top, 1e-30), -MOST_NEGATIVE / max(low, 1e-30))


def instructions(
    cell: gemmi.UnitCell,
    spacegroup: gemmi.SpaceGroup,
    title: str,
    wavelength: float = 0.0,
    more: Sequence[str] = (),
) -> str:
    """Text of the .ins, with ``more`` lines before HKLF. The content of the cell is guessed from its volume: SHELXE
    does not use it."""
    ops = spacegroup.operations()
    numbers = " ".join(f"{x:.4f}" for x in (cell.a, cell.b, cell.c))
    angles = " ".join(f"{x:.4f}" for x in (cell.alpha, cell.beta, cell.gamma))
    latt = LATTICES.index(ops.find_centering()) + 1
    multiplicity = len(list(ops))
    units = [max(1, round(cell.volume / ATOM_VOLUME * share)) for share in ATOMS.values()]
    lines = [
        f"TITL {_ascii(title)} in {spacegroup.xhm()}"[:76],
        f"CELL {wavelength if wavelength > 0 else DEFAULT_WAVELENGTH:.5f} {numbers} {angles}",
        f"ZERR {multiplicity} 0.0000 0.0000 0.0000 0.0000 0.0000 0.0000",
        f"LATT {latt if ops.is_centrosymmetric() else -latt}",
        *(f"SYMM {op.triplet().upper()}" for op in _symm(ops)),
        f"SFAC {' '.join(ATOMS)}",
        f"UNIT {' '.join(map(str, units))}",
        *more,
        "HKLF 4",
        "END",
    ]
    return "\n".join(lines) + "\n"


def _inversion_at_origin(ops: gemmi.GroupOps) -> bool:
    return any(op.wrap().triplet() == "-x,-y,-z" for op in ops)


def _symm(ops: gemmi.GroupOps) -> list[gemmi.Op]:
    """What SYMM must list: the operators but the identity, and but those that the centre (positive LATT) makes."""
    identity = gemmi.Op("x,y,z").rot
    centred = ops.is_centrosymmetric()
    return [op.wrap() for op in ops.sym_ops if op.rot != identity and (op.det_rot() > 0 or not centred)]


def _intensities(data: Amplitudes) -> tuple[NDArray[np.float64], NDArray[np.float64], list[str]]:
    """Measured intensities, or F^2; where no standard uncertainty is known, one that is at least plausible."""
    if data.intensity is not None and data.sigma_i is not None:
        value, sigma = data.intensity, data.sigma_i
    else:
        value, sigma = data.f**2, 2 * data.f * data.sigf + data.sigf**2  # (F + sigma)^2 - F^2: sound at F = 0
    missing = ~(np.isfinite(sigma) & (sigma > 0))
    if not missing.any():
        return value, sigma, []
    guess = UNKNOWN_SIGMA * (np.abs(value) + np.abs(value).mean())
    share = f"{UNKNOWN_SIGMA:.0%} of I and of its mean"
    note = f"{int(missing.sum())} intensities without a standard uncertainty are given {share} in the files for SHELXE."
    return value, np.where(missing, guess, sigma), [note]


def _phi_line(hkl: list[int], f: float, fom: float, phase: float, sigf: float) -> str:
    h, k, l = hkl  # noqa: E741
    degrees = round(phase, 1) % 360.0
    return f"{h:4d}{k:4d}{l:4d}{f:9.2f}{fom:8.4f}{degrees:8.1f}{sigf:8.2f}\n"


def _hkl_line(hkl: list[int], intensity: float, sigma: float) -> str:
    h, k, l = hkl  # noqa: E741
    return f"{h:4d}{k:4d}{l:4d}{intensity:8.2f}{sigma:8.2f}\n"


def _ascii(text: str) -> str:
    return text.encode("ascii", "replace").decode()
