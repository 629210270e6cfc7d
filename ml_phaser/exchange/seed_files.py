"""Files of phase seeds for other programs.

Each form is one or several files; FORMS says what its main file is called. All phases are those of the MTZ the run
writes, at the same origin. Where a form has room for one phase only, it is the seed's: the middle of its part of the
circle, or the permitted value. docs/seeds.md says which forms were read by which program.
"""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path

import gemmi
import numpy as np
from numpy.typing import NDArray

from ml_phaser import __version__
from ml_phaser.crystal.maps import symmetric_shape
from ml_phaser.crystal.reflections import Amplitudes
from ml_phaser.errors import UserError
from ml_phaser.exchange import shelxe
from ml_phaser.outcome import Phases, PhaseSeeds

OPTION = "seedout"
# form -> endings of the main file, the first by default; empty: any
FORMS = {
    "shelxe": (".phi",), "phs": (".phs",), "phas": (".ins",), "mtz": (".mtz",), "acorn": (".mtz",), "csv": (".csv",),
    "superflip": (".inflip",), "sir": (".sir",),
}  # fmt: skip
FOR_SHELX = ("shelxe", "phas")
STRICT = (*FOR_SHELX, "mtz", "acorn")  # forms whose programs know a file by its ending; SHELX in lower case only
PLAIN = "mtz"  # form of a name without an ending
MTZ_COLUMNS = (("BIN", "I"), ("PHI", "P"), ("FOM", "W"), ("PROB", "W"), ("PHIB", "P"))
ACORN_COLUMNS = (("PHI", "P"), ("WT", "W"))
CSV_COLUMNS = ("h", "k", "l", "F", "SIGF", "E", "bin", "centre", "probability", "weight", "phase", "restricted")
SIR_MARK = "> phase seeds from ml_phaser"
SUPERFLIP_MARK = "fbegin"
FLIP_SPACING = 2.5  # grid points of Superflip's map in d_min: what charge flipping needs, and a little

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class SeedData:
    """What the files are made of: the data, the seeds, and of all n reflections phases, e, f and sigf (n,)."""

    data: Amplitudes
    phases: Phases
    seeds: PhaseSeeds
    e: Floats
    f: Floats
    sigf: Floats

    def column(self, values: NDArray) -> Floats:
        """(n,) with the values (m,) of the seeds, NaN elsewhere."""
        out = np.full(len(self.data), np.nan)
        out[self.seeds.rows] = values
        return out

    def as_phases(self) -> Phases:
        """The seeds' middles with their weights, NaN elsewhere."""
        return Phases(self.column(self.seeds.centre), self.column(self.seeds.weight), self.phases.hl)


# -------------------------------------------------------------------------------------------- names


def form_of(path: Path, asked: str) -> str:
    """The form of a file: the one ``asked`` for, or where that is "auto" the one its ending means.

    Raises
    ------
    UserError : an ending without a form, or one that the form's program would not know
    """
    where = f"{OPTION} {path}"
    if asked == "auto":
        found = next((form for form, endings in FORMS.items() if path.suffix.lower() in endings), None)
        if found is None:
            known = ", ".join(f"{form} ({endings[0]})" for form, endings in FORMS.items())
            raise UserError(f"its ending says no form; there are {known}", where, "seedformat csv")
        asked = found
    ending = path.suffix if asked in FOR_SHELX else path.suffix.lower()
    if asked in STRICT and ending not in FORMS[asked]:
        raise UserError(f"does not end in {FORMS[asked][0]}", where, f"{OPTION} {path.with_suffix(FORMS[asked][0])}")
    if asked in FOR_SHELX:
        shelxe.check_stem(path.with_suffix(".phi"), OPTION)
    return asked


def seeds_only(path: Path) -> Path:
    """The .phi of the seeds alone, beside that of all phases."""
    return path.with_name(f"{path.stem}_seeds.phi")


def seed_paths(path: Path, asked: str) -> tuple[Path, ...]:
    """Every file that is written for ``seedout``, the one named first. Raises UserError as ``form_of`` does."""
    match form_of(path, asked):
        case "shelxe":
            return (*shelxe.companions(path), *shelxe.companions(seeds_only(path)))
        case "phas":
            return path, path.with_suffix(".hkl")
    return (path,)


def check_seed_group(path: Path, asked: str, spacegroup: gemmi.SpaceGroup) -> None:
    """Raise UserError where the form has no words for the setting of the space group."""
    if form_of(path, asked) in FOR_SHELX:
        shelxe.check_group(spacegroup, OPTION)


# ------------------------------------------------------------------------------------------ content


def seed_files(path: Path, asked: str, made: SeedData) -> dict[Path, bytes]:
    """Every file and its content. Raises UserError for a name or a space group that the form does not know."""
    form, data, sets = form_of(path, asked), made.data, made.as_phases()
    texts: tuple[str, ...]
    match form:
        case "shelxe":
            title = path.stem
            full = shelxe.shelxe_set(data, made.phases, made.f, made.sigf, title=title)
            only = shelxe.shelxe_set(data, sets, made.f, made.sigf, title=f"{title}, seeds")
            texts = (full.phi, full.hkl, full.ins, only.phi, only.hkl, only.ins)
        case "phas":
            shelx = shelxe.shelxe_set(data, sets, made.f, made.sigf, title=path.stem)
            cards = ["TREF", *_phas_cards(made)]
            texts = (shelxe.instructions(data.cell, data.spacegroup, f"{path.stem}, seeds", more=cards), shelx.hkl)
        case "phs":
            texts = (shelxe.phase_list(data, sets, made.f, made.sigf),)
        case "csv":
            texts = (_csv(made),)
        case "superflip":
            texts = (_superflip(made, path.stem),)
        case "sir":
            texts = (_sir(made),)
        case _:
            return {path: _mtz(made, ACORN_COLUMNS if form == "acorn" else MTZ_COLUMNS)}
    return {p: text.encode("ascii") for p, text in zip(seed_paths(path, asked), texts, strict=True)}


def _degrees(phase: Floats) -> Floats:
    return np.asarray(np.round(np.rad2deg(phase) % 360.0, 4) % 360.0)


def _phas_cards(made: SeedData) -> list[str]:
    """SHELXS: a phase that direct methods start from and keep, PHAS h k l phi in degrees."""
    seeds = made.seeds
    rows = zip(made.data.hkl[seeds.rows].tolist(), _degrees(seeds.centre).tolist(), strict=True)
    return [f"PHAS {' '.join(map(str, hkl))} {phi:.1f}" for hkl, phi in rows]


def _csv(made: SeedData) -> str:
    """One line a seed, the best first; phases in degrees, 0-360."""
    seeds, rows = made.seeds, made.seeds.rows
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    centric, centre, phase = made.data.centric[rows], _degrees(seeds.centre), _degrees(seeds.phase)
    for i, row in enumerate(rows.tolist()):
        measured = (f"{x:.6g}" for x in (made.f[row], made.sigf[row], made.e[row]))
        chances = (f"{x:.4f}" for x in (centre[i], seeds.probability[i], seeds.weight[i], phase[i]))
        writer.writerow([*made.data.hkl[row].tolist(), *measured, seeds.number[i], *chances, int(centric[i])])
    return out.getvalue()


def _superflip(made: SeedData, title: str) -> str:
    """Superflip: amplitudes of all reflections, phases in cycles, "?" where there is none."""
    data = made.data
    ops = data.spacegroup.operations()
    shape = symmetric_shape(data.cell, data.spacegroup, data.d_min, data.d_min / FLIP_SPACING)
    cell = (data.cell.a, data.cell.b, data.cell.c, data.cell.alpha, data.cell.beta, data.cell.gamma)
    cycles = made.column(np.round(made.seeds.centre / (2 * np.pi), 5) % 1.0)
    lines = [
        f"# {len(made.seeds)} phase seeds from ml_phaser {__version__}; phases in cycles, ? where free",
        f"title {title}",
        "dimension 3",
        "voxel " + " ".join(map(str, shape)),
        "cell " + " ".join(f"{x:.4f}" for x in cell),
        "centers",
        *(" ".join(f"{x / gemmi.Op.DEN:.6f}" for x in c) for c in ops.cen_ops),
        "endcenters",
        "symmetry",
        *(_x1x2x3(op) for op in ops.sym_ops),
        "endsymmetry",
        "perform CF",
        "reflectionlist unique",
        "dataformat amplitude phase",
        SUPERFLIP_MARK,
    ]
    for hkl, f, phase in zip(data.hkl.tolist(), made.f.tolist(), cycles.tolist(), strict=True):
        shown = f"{phase:10.5f}" if np.isfinite(phase) else f"{'?':>10}"
        lines.append("".join(f"{x:4d}" for x in hkl) + f"{f:14.4f}{shown}")
    return "\n".join([*lines, "endf", ""])


def _x1x2x3(op: gemmi.Op) -> str:
    """An operator as Superflip writes it: "-x1+1/2 x2 x3"."""
    words = op.wrap().triplet().split(",")
    return " ".join(w.replace("x", "x1").replace("y", "x2").replace("z", "x3") for w in words)


def _sir(made: SeedData) -> str:
    """A plain list for programs of the SIR family. Their syntax for given phases was not found: the head says so."""
    seeds, group, cell = made.seeds, made.data.spacegroup, made.data.cell
    numbers = " ".join(f"{x:.4f}" for x in (cell.a, cell.b, cell.c, cell.alpha, cell.beta, cell.gamma))
    lines = [
        f"{SIR_MARK} {__version__}",
        "> UNVERIFIED: no program of the SIR family has read this list. Reshape it as your version asks.",
        f"> cell {numbers}",
        f"> space group {group.xhm()}",
        f"> {len(seeds)} seeds in {seeds.bins} bins: h k l, E, phase in degrees, probability",
        "> FORMAT(3I5,F9.4,F9.2,F8.4)",
    ]
    rows = zip(
        made.data.hkl[seeds.rows].tolist(), made.e[seeds.rows].tolist(), _degrees(seeds.centre).tolist(),
        seeds.probability.tolist(), strict=True,
    )  # fmt: skip
    lines += ["".join(f"{x:5d}" for x in hkl) + f"{e:9.4f}{phi:9.2f}{p:8.4f}" for hkl, e, phi, p in rows]
    return "\n".join([*lines, ""])


def _mtz(made: SeedData, columns: tuple[tuple[str, str], ...]) -> bytes:
    """F, SIGF and E of all reflections, and of the seeds the ``columns`` (label, type); missing elsewhere."""
    seeds, data = made.seeds, made.data
    values: dict[str, NDArray] = {
        "BIN": seeds.number, "PHI": _degrees(seeds.centre), "FOM": seeds.weight, "PROB": seeds.probability,
        "PHIB": _degrees(seeds.phase), "WT": seeds.weight,
    }  # fmt: skip
    mtz = gemmi.Mtz(with_base=True)
    mtz.title = f"{len(seeds)} phase seeds from ml_phaser"
    mtz.spacegroup = data.spacegroup
    mtz.set_cell_for_all(data.cell)
    dataset = mtz.add_dataset("ml_phaser")
    dataset.cell = data.cell
    for label, kind in (("F", "F"), ("SIGF", "Q"), ("E", "E"), *columns):
        mtz.add_column(label, kind, dataset_id=dataset.id)
    sigma = np.where(made.sigf > 0, made.sigf, np.nan)
    table: list[NDArray] = [data.hkl, made.f, sigma, made.e, *(made.column(values[label]) for label, _ in columns)]
    mtz.set_data(np.column_stack(table).astype(np.float32))
    mtz.history = [f"From ml_phaser {__version__}: phase seeds, {seeds.bins} bins"]
    mtz.update_reso()
    return bytes(mtz.write_to_bytes())
