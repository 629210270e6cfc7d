"""A simulated data set from one seed: peptide, crystal, measurement; and its files, which say what they are."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gemmi
import numpy as np
from numpy.typing import NDArray

from ml_phaser import __version__
from ml_phaser.atomic import atomic
from ml_phaser.crystal.maps import density, symmetric_shape, write_map
from ml_phaser.errors import UserError
from ml_phaser.simulate.measure import U_TO_B, Atoms, Measurement, displace, measure
from ml_phaser.simulate.packing import Packed, contacts, operators, pack
from ml_phaser.simulate.peptides import THREE_LETTERS, checked_sequence

FEWEST, MOST = 30, 300_000  # reflections
SHELLS = 10
RESIDUE_VOLUME = 165.0  # A^3, of an average residue in a dense crystal
_HISTORY_WIDTH = 80


@dataclass(frozen=True)
class Request:
    """What to simulate: one-letter codes, space group, d_min (A), mean sigma(I) / mean I, fraction measured, mean B
    (A^2), seed."""

    sequence: str
    spacegroup: gemmi.SpaceGroup
    d_min: float = 1.0
    noise: float = 0.05
    completeness: float = 0.97
    b: float = 8.0
    seed: int = 0


@dataclass(frozen=True, eq=False)
class DataSet:
    """A crystal, its atoms and what was measured of it."""

    request: Request
    crystal: Packed
    atoms: Atoms
    measurement: Measurement


def simulate(request: Request) -> DataSet:
    """Make a crystal and measure it; the same request gives the same data set.

    Raises
    ------
    UserError
        for a sequence that is none, a group too large, a peptide that would not pack, too few or many reflections
    """
    sequence = checked_sequence(request.sequence)
    # One stream a stage: data of the same crystal at another resolution or noise are possible.
    streams = [np.random.default_rng(s) for s in np.random.SeedSequence(request.seed).spawn(3)]
    expected = 2 * np.pi / 3 * RESIDUE_VOLUME * len(sequence) / request.d_min**3
    if not FEWEST <= expected <= MOST:
        few = expected < FEWEST
        what = f"about {expected:.0f} reflections, too {'few' if few else 'many'}"
        raise UserError(what, f"resolution {request.d_min:g}", f"a {'higher' if few else 'lower'} resolution")
    crystal = pack(streams[0], sequence, request.spacegroup)
    atoms = displace(streams[1], crystal, request.b)
    measurement = measure(
        streams[2], atoms, crystal.cell, crystal.spacegroup,
        d_min=request.d_min, noise=request.noise, completeness=request.completeness,
    )  # fmt: skip
    return DataSet(request, crystal, atoms, measurement)


def write(
    data: DataSet, *, hklout: Path | None = None, xyzout: Path | None = None, mapout: Path | None = None,
    jsonout: Path | None = None,
) -> None:  # fmt: skip
    """Write MTZ, PDB, true map and record: all that are named, or none. No file holds a date.

    Raises
    ------
    UserError
        where a file cannot be written
    """
    with ExitStack() as together:

        def part(path: Path) -> Path:
            return together.enter_context(atomic(path))

        if hklout is not None:
            part(hklout).write_bytes(bytes(as_mtz(data).write_to_bytes()))
        if xyzout is not None:
            part(xyzout).write_text(as_pdb(data), encoding="ascii")
        if mapout is not None:
            write_map(part(mapout), true_map(data), data.crystal.cell, data.crystal.spacegroup)
        if jsonout is not None:
            part(jsonout).write_text(json.dumps(record(data), indent=1) + "\n", encoding="ascii")


def title(data: DataSet) -> str:
    """One line that says what this is."""
    request = data.request
    return f"SIMULATED by ml_phaser {__version__}: {data.crystal.peptide.sequence[:20]}, seed {request.seed}"


def remarks(data: DataSet) -> list[str]:
    """Sentences for the headers of the files."""
    r, crystal = data.request, data.crystal
    return [
        f"SIMULATED, not measured: made by ml_phaser {__version__} (simulate), seed {r.seed}.",
        f"Peptide {crystal.peptide.sequence}, ideal geometry, packed in {crystal.spacegroup.xhm()}, "
        f"{len(crystal.waters)} waters, no hydrogen atoms.",
        f"Resolution {r.d_min:g} A, noise {r.noise:g} (mean sigma(I) / mean I), completeness {r.completeness:g}, "
        f"mean B {r.b:g} A^2.",
    ]


def as_mtz(data: DataSet) -> gemmi.Mtz:
    """I SIGI FreeR_flag of the measured reflections."""
    m = data.measurement
    mtz = gemmi.Mtz(with_base=True)
    mtz.title = title(data)[:70]
    mtz.spacegroup = data.crystal.spacegroup
    dataset = mtz.add_dataset("SIMULATED")
    dataset.project_name, dataset.crystal_name, dataset.wavelength = "ml_phaser", "SIMULATED", 1.0
    mtz.set_cell_for_all(data.crystal.cell)
    for label, kind in (("I", "J"), ("SIGI", "Q"), ("FreeR_flag", "I")):
        mtz.add_column(label, kind, dataset_id=dataset.id)
    table = np.column_stack([m.hkl, m.intensity, m.sigma, m.free])[m.measured]
    mtz.set_data(table.astype(np.float32))
    mtz.history = [line for remark in remarks(data) for line in textwrap.wrap(remark, _HISTORY_WIDTH)]
    mtz.update_reso()
    return mtz


def as_pdb(data: DataSet) -> str:
    """The model, with anisotropic displacement parameters."""
    crystal, atoms = data.crystal, data.atoms
    structure = gemmi.Structure()
    structure.cell, structure.spacegroup_hm = crystal.cell, crystal.spacegroup.xhm()
    structure.info["_struct.title"] = title(data)
    structure.raw_remarks = [f"REMARK   3 {line}" for remark in remarks(data) for line in textwrap.wrap(remark, 68)]
    peptide, water = gemmi.Chain("A"), gemmi.Chain("W")
    for name, number, rows in _residues(crystal):
        residue = gemmi.Residue()
        residue.name, residue.seqid = name, gemmi.SeqId(str(number + 1))
        residue.het_flag = "H" if name == "HOH" else "A"
        residue.entity_type = gemmi.EntityType.Water if name == "HOH" else gemmi.EntityType.Polymer
        for i in rows:
            residue.add_atom(_atom(atoms, i, "O" if name == "HOH" else crystal.peptide.names[i]))
        (water if name == "HOH" else peptide).add_residue(residue)
    model = gemmi.Model(1)
    model.add_chain(peptide)
    if len(water):
        model.add_chain(water)
    structure.add_model(model)
    structure.setup_entities()
    return structure.make_pdb_string()


def _residues(crystal: Packed) -> Iterator[tuple[str, int, list[int]]]:
    """Name, number from 0 and atoms of each residue, then each water; side chains follow the backbone."""
    peptide = crystal.peptide
    for i, letter in enumerate(peptide.sequence):
        yield THREE_LETTERS[letter], i, np.flatnonzero(peptide.residue == i).tolist()
    for j in range(len(crystal.waters)):
        yield "HOH", j, [len(peptide) + j]


def _atom(atoms: Atoms, i: int, name: str) -> gemmi.Atom:
    atom = gemmi.Atom()
    atom.name, atom.element = name, gemmi.Element(atoms.element[i])
    atom.pos = gemmi.Position(*atoms.xyz[i])
    u = atoms.u_overall + np.eye(3) * atoms.u_iso[i]
    atom.aniso = gemmi.SMat33f(u[0, 0], u[1, 1], u[2, 2], u[0, 1], u[0, 2], u[1, 2])
    atom.b_iso = float(atoms.u_iso[i] * U_TO_B)
    return atom


def true_map(data: DataSet) -> NDArray[np.float64]:
    """Density of the whole cell in electrons/A^3 from every reflection to d_min, measured or not; F(000) absent."""
    cell, group, d_min = data.crystal.cell, data.crystal.spacegroup, data.request.d_min
    shape = symmetric_shape(cell, group, d_min, d_min / 3)
    return density(data.measurement.hkl, data.measurement.f, cell, group, shape)


def shells(data: DataSet) -> list[dict[str, Any]]:
    """Statistics of the measured intensities in ten shells of equally many reflections."""
    m = data.measurement
    d = np.asarray(data.crystal.cell.calculate_d_array(m.hkl))
    rows = []
    for part in np.array_split(np.argsort(-d, kind="stable"), SHELLS):
        use = part[m.measured[part]]
        ratio = float(np.mean(m.intensity[use] / m.sigma[use])) if len(use) else None
        rows.append({
            "d_max": round(float(d[part].max()), 3), "d_min": round(float(d[part].min()), 3), "n": len(use),
            "completeness": round(len(use) / len(part), 4), "i_over_sigma": None if ratio is None else round(ratio, 2),
        })  # fmt: skip
    return rows


def record(data: DataSet) -> dict[str, Any]:
    """What was asked for and what came of it, for JSON."""
    r, crystal, m = data.request, data.crystal, data.measurement
    symmetry = operators(crystal.spacegroup)
    frac = data.atoms.xyz @ np.array(crystal.cell.frac.mat).T
    n = len(crystal.peptide)
    between = min(
        contacts(frac[:n], frac[:n], crystal.cell, symmetry, True).min(),
        contacts(frac[n:], frac[:n], crystal.cell, symmetry, False).min() if len(frac) > n else np.inf,
        contacts(frac[n:], frac[n:], crystal.cell, symmetry, True).min() if len(frac) > n else np.inf,
    )
    return {
        "program": "ml_phaser simulate", "version": __version__, "simulated": True,
        "request": {
            "sequence": crystal.peptide.sequence, "spacegroup": crystal.spacegroup.xhm(), "resolution": r.d_min,
            "noise": r.noise, "completeness": r.completeness, "b": r.b, "seed": r.seed,
        },
        "cell": [round(float(x), 3) for x in crystal.cell.parameters],
        "atoms": n, "waters": len(crystal.waters),
        "volume_per_atom": round(crystal.volume_per_atom, 2), "shortest_contact": round(float(between), 3),
        "reflections": int(m.measured.sum()), "possible": len(m.hkl),
        "completeness": round(float(m.measured.mean()), 4), "free": int(np.sum(m.free[m.measured] == 0)),
        "mean_sigma_over_mean_i": round(float(m.sigma[m.measured].mean() / m.intensity[m.measured].mean()), 4),
        "shells": shells(data),
    }  # fmt: skip
