"""Which columns of a reflection file are the measurement: the one candidate, or what LABIN says."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import gemmi
import numpy as np
from numpy.typing import NDArray

from ml_phaser.errors import UserError

# Roles of columns
AMPLITUDE, INTENSITY, AMPLITUDE_PAIR, INTENSITY_PAIR = "F", "I", "F+-", "I+-"
SIGMA, CALCULATED, FREE, OTHER = "sigma", "calculated", "free", "other"
MEASURED = (AMPLITUDE, INTENSITY, AMPLITUDE_PAIR, INTENSITY_PAIR)

_CALCULATED = re.compile(
    r"^i?f?[-_]?c($|[-_(\d])|calc|model|f_?o-?d?f_?c|fwt|^fom|mask|bulk|solvent|^f_?part|^fdm|^phi|^ph?wt",
    re.IGNORECASE,
)
_FREE = re.compile(r"^(free|r-?_?free|test($|_)|pdbx_r_free|fr?eer?_?flag)", re.IGNORECASE)


def is_calculated(label: str) -> bool:
    """True for labels of calculated structure factors and map coefficients: FC, FC_ALL_LS, FWT, 2FOFCWT,
    F_calc...
    """
    return bool(_CALCULATED.search(label))


def is_free_flag(label: str) -> bool:
    """True for labels of free-R flags: FreeR_flag, FREE, FREER, R-free-flags, TEST, pdbx_r_free_flag."""
    return bool(_FREE.search(label))


@dataclass(frozen=True)
class Candidate:
    """Columns that together are one measurement.

    ``value`` has one label, or two for the members (+) and (-) of Friedel pairs; ``sigma`` has as many, or
    none.
    """

    value: tuple[str, ...]
    sigma: tuple[str, ...]
    intensity: bool

    @property
    def anomalous(self) -> bool:
        return len(self.value) == 2

    @property
    def kind(self) -> str:
        return ("anomalous " if self.anomalous else "") + ("intensity" if self.intensity else "amplitude")

    @property
    def labels(self) -> tuple[str, ...]:
        if not self.sigma:
            return self.value
        return tuple(x for pair in zip(self.value, self.sigma, strict=True) for x in pair)

    @property
    def labin(self) -> str:
        """What to type to choose it, e.g. "LABIN FP=FTOXD3 SIGFP=SIGFTOXD3"."""
        letter = "I" if self.intensity else "F"
        names = [f"{letter}(+)", f"{letter}(-)"] if self.anomalous else ["I" if self.intensity else "FP"]
        words = []
        for i, name in enumerate(names):
            words.append(f"{name}={self.value[i]}")
            if self.sigma:
                words.append(f"SIG{name}={self.sigma[i]}")
        return "LABIN " + " ".join(words)


@dataclass(frozen=True, eq=False)
class Table:
    """A reflection file before any choice was made.

    Attributes
    ----------
    where, format : file and kind of file, as they go into messages and ``Source``
    hkl : (n, 3) int32, rows as they stand in the file, in any asymmetric unit, merged or not
    columns : label -> (n,) float64, NaN where missing
    roles : label -> role, in file order
    candidates : the measurements it holds
    cell, spacegroup : None where the file gives none
    cells : label of a value -> cell of its dataset, where it differs
    free : (n,) int32 made of status flags, or None
    """

    where: str
    format: str
    hkl: NDArray[np.int32]
    columns: dict[str, NDArray[np.float64]]
    roles: dict[str, str]
    candidates: tuple[Candidate, ...]
    cell: gemmi.UnitCell | None = None
    spacegroup: gemmi.SpaceGroup | None = None
    cells: dict[str, gemmi.UnitCell] = field(default_factory=dict)
    free: NDArray[np.int32] | None = None
    notes: tuple[str, ...] = ()


def choose(table: Table, labin: str | None) -> tuple[Candidate, tuple[str, ...]]:
    """The measurement to use, and sentences about the choice.

    Without ``labin``: mean values before Friedel pairs; the intensity where one intensity and one amplitude
    are two forms of the same measurement (their squares correlate); anything else that is not unique is an
    error.

    Raises
    ------
    UserError : nothing measured, several measurements, or a LABIN that does not fit the file
    """
    if labin and labin.strip():
        chosen = _from_labin(table, labin)
        return chosen, (f"Columns {_names(chosen.labels)} ({chosen.kind}) are used, as LABIN asks.",)
    if not table.candidates:
        raise UserError(
            f"no measured amplitudes or intensities among the columns {_names(table.roles)}",
            table.where,
            "the file that came from data processing (with F or I and their sigmas)",
        )
    means = [c for c in table.candidates if not c.anomalous]
    pool = means or list(table.candidates)
    pool = [c for c in pool if not _is_filtered_copy(c, pool)]
    intensities = [c for c in pool if c.intensity]
    amplitudes = [c for c in pool if not c.intensity]
    if len(intensities) > 1 or len(amplitudes) > 1:
        raise _several(table, pool)
    if intensities and amplitudes:
        if not _same_measurement(table, intensities[0], amplitudes[0]):
            raise _several(table, pool)
        chosen = intensities[0]
        extra = f" {_names(amplitudes[0].labels)} hold the same measurement as amplitudes."
    else:
        chosen, extra = pool[0], ""
    if extra or len(table.candidates) > 1:
        first = f"Columns {_names(chosen.labels)} ({chosen.kind}) are used."
    else:
        first = f"Columns {_names(chosen.labels)} ({chosen.kind}) are used: the only measured ones."
    if not chosen.sigma:
        extra += " They have no standard uncertainties."
    left = [c for c in table.candidates if c is not chosen]
    change = f" To change: {left[0].labin}." if left else ""
    return chosen, (first + extra + change,)


def _names(labels: Sequence[str] | dict[str, str]) -> str:
    return ", ".join(labels) if labels else "(none)"


def _is_filtered_copy(candidate: Candidate, pool: Sequence[Candidate]) -> bool:
    """F-obs-filtered beside F-obs: the same data less the outliers of a refinement."""
    value = candidate.value[0]
    return any(value.lower() == f"{c.value[0].lower()}-filtered" for c in pool)


def _same_measurement(table: Table, intensity: Candidate, amplitude: Candidate) -> bool:
    """Do I and F^2 correlate? French-Wilson amplitudes and their intensities do, above 0.99 or so."""
    i, f = table.columns[intensity.value[0]], table.columns[amplitude.value[0]]
    both = np.isfinite(i) & np.isfinite(f)
    if both.sum() < 10:
        return False
    return bool(np.corrcoef(np.sqrt(np.maximum(i[both], 0)), f[both])[0, 1] > 0.9)


def _several(table: Table, pool: Sequence[Candidate]) -> UserError:
    listed = "; ".join(c.labin for c in pool)
    return UserError(
        f"several measurements ({len(pool)}) and no word on which to use", table.where, f"one of: {listed}"
    )


def _from_labin(table: Table, labin: str) -> Candidate:
    tokens = _tokens(labin, table.where)
    values: list[str] = []
    sigmas: list[str] = []
    for position, (key, text) in enumerate(tokens):
        label = _resolve(table, text)
        role = table.roles[label]
        is_sigma = key.startswith("SIG") if key else position % 2 == 1
        if key and _FREE.match(key):
            continue
        if key and not re.fullmatch(r"(SIG)?([FI](P|OBS|MEAN|NAT)?|[FI]\([+-]\)|[FI](PLUS|MINUS))", key):
            raise UserError(f"LABIN knows no {key}=", table.where, "FP= SIGFP=, I= SIGI=, or the pairs F(+)=, I(+)=")
        if is_sigma:
            if role != SIGMA:
                raise UserError(f"column {label} holds no standard uncertainties", table.where, _hint(table))
            sigmas.append(label)
        elif role == CALCULATED:
            raise UserError(f"column {label} is calculated, not measured", table.where, _hint(table))
        elif role not in MEASURED:
            raise UserError(f"column {label} holds neither amplitudes nor intensities", table.where, _hint(table))
        elif key and key[0] != role[0]:
            kind = "amplitudes" if role[0] == "F" else "intensities"
            raise UserError(f"column {label} holds {kind}, LABIN says {key}=", table.where, f"LABIN {role[0]}={label}")
        else:
            values.append(label)
    if not values:
        raise UserError(f"LABIN {labin!r} names no column of values", table.where, _hint(table))
    return _assemble(table, values, sigmas)


def _assemble(table: Table, values: list[str], sigmas: list[str]) -> Candidate:
    """Complete what LABIN left out from the file's own pairing of columns."""
    role = table.roles[values[0]]
    known = next((c for c in table.candidates if c.value[0] == values[0] or values[0] in c.value), None)
    if role in (AMPLITUDE_PAIR, INTENSITY_PAIR) and len(values) == 1:
        if known is None:
            raise UserError(f"column {values[0]} has no Friedel partner", table.where, _hint(table))
        return known
    if len(values) != (2 if role in (AMPLITUDE_PAIR, INTENSITY_PAIR) else 1):
        raise UserError(f"LABIN names {len(values)} columns of values ({_names(values)})", table.where, _hint(table))
    if not sigmas and known is not None and known.value == tuple(values):
        sigmas = list(known.sigma)
    if sigmas and len(sigmas) != len(values):
        raise UserError(f"LABIN names {len(values)} values but {len(sigmas)} sigmas", table.where, _hint(table))
    return Candidate(tuple(values), tuple(sigmas), role[0] == "I")


def _hint(table: Table) -> str:
    return " or ".join(c.labin for c in table.candidates) or "a file with measured data"


def _tokens(labin: str, where: str) -> list[tuple[str, str]]:
    text = re.sub(r"^\s*labi?n?\s+", "", labin, flags=re.IGNORECASE)
    words = [w for w in re.split(r"[\s,]+", re.sub(r"\s*=\s*", "=", text)) if w]
    pairs = [(w.split("=", 1)[0].upper(), w.split("=", 1)[1]) if "=" in w else ("", w) for w in words]
    if len({bool(key) for key, _ in pairs}) > 1 or any(not label for _, label in pairs):
        raise UserError(f"cannot read LABIN {labin!r}", where, "LABIN FP=F SIGFP=SIGF, or just F,SIGF")
    return pairs


def _resolve(table: Table, text: str) -> str:
    """Label of the file for what the user typed; case matters only where two labels differ by nothing
    else.
    """
    if text in table.roles:
        return text
    alike = [label for label in table.roles if label.lower() == text.lower()]
    if len(alike) == 1:
        return alike[0]
    raise UserError(f"no column {text}; there are {_names(table.roles)}", table.where, _hint(table))


def pair_sigmas(
    labels: Sequence[str], is_value: Callable[[str], bool], is_sigma: Callable[[str], bool]
) -> dict[str, str]:
    """Standard uncertainty of each column of values: by name (SIGF, F_sigma, SIGF-obs), else the next
    column.
    """
    by_lower = {label.lower(): label for label in labels if is_sigma(label)}
    found: dict[str, str] = {}
    for label in filter(is_value, labels):
        low = label.lower()
        for name in (
            f"sig{low}",
            f"sig_{low}",
            f"sig-{low}",
            f"sigma{low}",
            f"{low}_sigma",
            f"{low}_sig",
            f"{low}-sigma",
        ):
            if name in by_lower:
                found[label] = by_lower[name]
                break
    taken = set(found.values())
    for here, following in pairwise(labels):
        if is_value(here) and here not in found and is_sigma(following) and following not in taken:
            found[here] = following
            taken.add(following)
    return found
