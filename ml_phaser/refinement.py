"""Refinement as the method section of a paper: read, scale, restrain, refine, judge, write."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml_phaser.errors import UserError
from ml_phaser.notify import Notify

if TYPE_CHECKING:
    import gemmi
    import numpy as np
    from numpy.typing import NDArray

    from ml_phaser.building.refine import Fit, Parts, State
    from ml_phaser.crystal.reflections import Amplitudes

FREE_SHARE = 0.05  # of the reflections, where the file names no test set
TRIED_WEIGHTS = (0.3, 1.0, 3.0)  # with weight "search"
XYZ_STEPS, B_STEPS = 40, 30  # L-BFGS steps in a macrocycle
CELL_TOLERANCE = 0.01  # of an edge, and in radians: how far the cells of model and data may differ
NOTABLE_GAP = {1.5: 0.04, 2.0: 0.055, 2.5: 0.065, 99.0: 0.075}  # d_min (A) -> R_free - R_work that is still usual
NOTABLE_FALL = 0.002  # of R_free
LEAST_GAP = 0.01  # R_free - R_work of a model that has not seen the test set


@dataclass(frozen=True)
class RefineOptions:
    """Checked values of the command; fields named as its parameters.

    ``resolution`` is (d_max, d_min) in A; ``weight`` "auto", "search" or a number in text; ``free`` the flag of the
    test set.
    """

    xyzin: Path
    hklin: Path
    xyzout: Path
    hklout: Path
    jsonout: Path | None = None
    labin: str | None = None
    resolution: tuple[float, float] | None = None
    free: int | None = None
    cycles: int = 3
    weight: str = "auto"
    bfactor: bool = True
    solvent: bool = True
    seed: int = 0
    threads: int | None = None
    overwrite: bool = False


@dataclass(frozen=True)
class Row:
    """A model after so many macrocycles: R factors (NaN without a test set), rms deviations of bonds (A) and angles
    (degrees) from ideal values, mean B (A^2), seconds since the start."""

    cycle: int
    r_work: float
    r_free: float
    bonds: float
    angles: float
    mean_b: float
    seconds: float


@dataclass(frozen=True, eq=False)
class Refined:
    """What a refinement ends with. ``free`` (n,) marks the test set on ``data``; ``weight`` is that of the target."""

    data: Amplitudes
    free: NDArray[np.bool_]
    structure: gemmi.Structure
    parts: Parts
    state: State
    fit: Fit
    rows: tuple[Row, ...]
    weight: float
    verdict: str
    notes: tuple[str, ...]


def run(options: RefineOptions, notify: Notify) -> Refined:
    """Refine one model and write the files. Raises UserError for anything that is the user's to mend."""
    notify.stage("read")
    data = read(options)
    free, said = test_set(data, options)
    structure, table, more = read_structure(options, data)
    notify.stage("restrain")
    parts = restrain(structure, data, table)
    notes = (*data.notes, *said, *more, *parts.restraints.notes)
    for note in notes:
        notify.say(f" {note}")
    notify.stage("refine")
    state, fit, rows, weight = refine(structure, parts, data, free, options, notify)
    verdict = judge(rows, data.d_min)
    refined = Refined(data, free, structure, parts, state, fit, rows, weight, verdict, notes)
    notify.stage("write")
    write(refined, options)
    return refined


def read(options: RefineOptions) -> Amplitudes:
    """Measured amplitudes, merged and unique; French-Wilson ones from intensities."""
    from dataclasses import replace

    from ml_phaser.crystal.normalise import normalise
    from ml_phaser.exchange.read import read_amplitudes

    data = read_amplitudes(options.hklin, labin=options.labin, resolution=options.resolution)
    if data.intensity is None:
        return data
    normalised = normalise(data)
    note = "Amplitudes are those that the intensities make likely (French & Wilson)."
    return replace(data, f=normalised.f, sigf=normalised.sigf, notes=(*data.notes, note))


def test_set(data: Amplitudes, options: RefineOptions) -> tuple[NDArray[np.bool_], tuple[str, ...]]:
    """Which reflections judge, (n,), and what to say of it; a random twentieth where the file does not tell."""
    import numpy as np

    from ml_phaser.structure_factors.scaling import free_set

    if options.free is not None:
        if data.free is None or not (data.free == options.free).any():
            has = "no flags" if data.free is None else f"flags {', '.join(map(str, np.unique(data.free)[:20]))}"
            raise UserError(f"no reflection has the flag {options.free}; the file has {has}", "free", "another flag")
        chosen = np.asarray(data.free == options.free)
        return chosen, (f"Test set: flag {options.free}, {chosen.sum()} reflections.",)
    known, how = free_set(data.free)
    if known is not None:
        return known, (f"Test set: {how}, {known.sum()} reflections.",)
    chosen = np.random.default_rng(options.seed).random(len(data)) < FREE_SHARE
    return chosen, (
        f"Test set: {chosen.sum()} random reflections set aside, as there are {how}; a model that was refined "
        "against them before needs a few cycles to forget them.",
    )


def read_structure(options: RefineOptions, data: Amplitudes) -> tuple[gemmi.Structure, str, tuple[str, ...]]:
    """The model in the cell and group of the data, its table of scattering factors, notes; UserError where it does not
    belong to them."""
    import gemmi

    from ml_phaser.exchange.model import read_model

    where = options.xyzin.name
    model = read_model(options.xyzin)
    structure = model.structure
    if model.radiation == "neutron":
        raise UserError("neutron diffraction is not refined against", where, "an X-ray or electron structure")
    if not isinstance(structure, gemmi.Structure):
        raise UserError("only macromolecular models are refined", where, "a PDB or mmCIF file; SHELXL for this one")
    if any(not op.given for op in structure.ncs):
        raise UserError("holds NCS operators instead of all copies", where, "a file with every copy written out")
    group = structure.find_spacegroup()
    if group is not None and group.xhm() != data.spacegroup.xhm():
        raise UserError(
            f"is in {group.xhm()}, the data are in {data.spacegroup.xhm()}", where, "the model of these data"
        )
    notes = fit_cell(structure, data.cell, where)
    structure.cell, structure.spacegroup_hm = data.cell, data.spacegroup.xhm()
    structure.setup_cell_images()
    return structure, "electron" if model.radiation == "electron" else "xray", notes


def fit_cell(structure: gemmi.Structure, cell: gemmi.UnitCell, where: str) -> tuple[str, ...]:
    """Check that the model's cell is that of the data, or nearly; an own fractional frame is changed to the usual."""
    import gemmi
    import numpy as np

    own = structure.cell
    if not own.is_crystal():
        return ("The model has no cell; that of the data is taken.",)
    a, b = np.array(own.parameters), np.array(cell.parameters)
    apart = np.concatenate([np.abs(a - b)[:3] / b[:3], np.deg2rad(np.abs(a - b)[3:])])
    if apart.max() > CELL_TOLERANCE:
        raise UserError(f"has the cell {shown(own)}, the data have {shown(cell)}", where, "the model of these data")
    if own.explicit_matrices:
        plain = gemmi.UnitCell(*own.parameters)
        for cra in structure[0].all():
            cra.atom.pos = plain.orthogonalize(own.fractionalize(cra.atom.pos))
    return () if apart.max() < 1e-4 else (f"The cell of the data replaces that of the model ({shown(own)}).",)


def shown(cell: gemmi.UnitCell) -> str:
    """Cell parameters in words."""
    return " ".join(f"{p:g}" for p in cell.parameters)


def restrain(structure: gemmi.Structure, data: Amplitudes, table: str) -> Parts:
    """Geometry restraints, riding hydrogens, special positions."""
    from ml_phaser.building.refine import Parts

    return Parts.of(structure, data.cell, data.spacegroup, table)


def refine(
    structure: gemmi.Structure, parts: Parts, data: Amplitudes, free: NDArray[np.bool_], options: RefineOptions,
    notify: Notify,
) -> tuple[State, Fit, tuple[Row, ...], float]:  # fmt: skip
    """Macrocycles: scale and solvent, coordinates, B. -> state, its fit, the table, the weight."""
    import torch

    from ml_phaser.building.refine import State, explain, isotropic_b, positions

    if options.weight == "search" and not free.any():
        raise UserError("search needs a test set to judge weights by", "weight", "weight auto")
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    began = time.monotonic()
    wet = structure if options.solvent else None
    start = State(positions(structure), isotropic_b(structure))
    state, fit = explain(parts, start, data, free, wet, fold=options.bfactor and options.cycles > 0)
    rows = [row(0, parts, state, fit, began)]
    notify.say(header())
    notify.say(line(rows[0]))
    weight = 1.0 if options.weight in ("auto", "search") else float(options.weight)
    for number in range(1, options.cycles + 1):
        if number == 1 and options.weight == "search":
            tried = [(w, *cycle(parts, state, fit, data, free, wet, w, options)) for w in TRIED_WEIGHTS]
            for w, _, seen in tried:
                notify.say(f"   weight {w:g}: R_free {seen.r.free:.4f}")
            weight, state, fit = min(tried, key=lambda t: t[2].r.free)
        else:
            state, fit = cycle(parts, state, fit, data, free, wet, weight, options)
        rows.append(row(number, parts, state, fit, began))
        notify.say(line(rows[-1]))
        notify.progress(number / options.cycles, None)
    return state, fit, tuple(rows), weight


def cycle(
    parts: Parts, state: State, fit: Fit, data: Amplitudes, free: NDArray[np.bool_], wet: gemmi.Structure | None,
    weight: float, options: RefineOptions,
) -> tuple[State, Fit]:  # fmt: skip
    """One macrocycle."""
    from ml_phaser.building.refine import cool, explain, move, target_of

    state = move(parts, target_of(fit, data, free), state, weight, XYZ_STEPS)
    if options.bfactor:
        state = cool(parts, target_of(fit, data, free), state, weight, B_STEPS)
    return explain(parts, state, data, free, wet, fold=options.bfactor)


def row(number: int, parts: Parts, state: State, fit: Fit, began: float) -> Row:
    """Where a refinement stands."""
    import torch

    bonds, angles = parts.restraints.deviations(torch.from_numpy(state.xyz))
    mean_b = float(state.b[parts.free.numpy()].mean())
    return Row(number, fit.r.work, fit.r.free, bonds, angles, mean_b, round(time.monotonic() - began, 1))


def header() -> str:
    """Head of the table of macrocycles."""
    return "\n   cycle  R_work  R_free  rms bonds (A)  rms angles (deg)  mean B (A^2)  seconds"


def line(r: Row) -> str:
    """A line of the table of macrocycles."""
    return (
        f"   {r.cycle:5d} {r.r_work:7.4f} {r.r_free:7.4f} {r.bonds:14.4f} {r.angles:17.2f} {r.mean_b:13.1f} "
        f"{r.seconds:8.1f}"
    )


def judge(rows: tuple[Row, ...], d_min: float) -> str:
    """What the R factors say of the refinement, in a sentence or two.

    A test set whose R began no higher than that of the work set is taken for one that the model was refined against.
    """
    first, last = rows[0], rows[-1]
    if not math.isfinite(last.r_free):
        return f"R_work went from {first.r_work:.4f} to {last.r_work:.4f}; there is no test set to judge it by."
    change = last.r_free - first.r_free
    moved = f"from {first.r_free:.4f} to {last.r_free:.4f}"
    if change < -NOTABLE_FALL:
        text = f"R_free fell {moved}: the model is better than it was."
    elif change <= NOTABLE_FALL:
        text = f"R_free stayed ({moved}): the model explains the data no better than it did."
    elif first.r_free - first.r_work > LEAST_GAP:
        text = f"R_free ROSE {moved}: the refinement did not improve the model."
    else:
        text = f"R_free rose {moved}, but was not free: the model had been refined against the test set."
    gap = last.r_free - last.r_work
    usual = next(g for limit, g in NOTABLE_GAP.items() if d_min <= limit)
    if gap > usual:
        text += f" It exceeds R_work by {gap:.3f}, more than usual at {d_min:.2f} A: overfitted; try a lower weight."
    return text


def write(refined: Refined, options: RefineOptions) -> None:
    """Model, MTZ, run record: all of them or none."""
    from contextlib import ExitStack

    import numpy as np

    from ml_phaser.atomic import atomic
    from ml_phaser.building.refine import update
    from ml_phaser.exchange.refined import write_model, write_refined_mtz
    from ml_phaser.report.record import json_safe, write_json
    from ml_phaser.structure_factors.sigmaa import figure_of_merit, map_coefficients

    data, fit = refined.data, refined.fit
    update(refined.structure, refined.parts, refined.state)
    fom = figure_of_merit(data.f, fit.f_model, fit.alpha, fit.beta, data.centric)
    maps = map_coefficients(data.f, fit.f_model, fit.alpha, fit.beta, data.centric)
    flags = data.free if data.free is not None and np.ptp(data.free) > 0 else np.where(refined.free, 0, 1)
    with ExitStack() as together:  # every file is complete before the first takes its place

        def part(path: Path) -> Path:
            return together.enter_context(atomic(path))

        write_model(part(options.xyzout), refined.structure, statistics(refined))
        write_refined_mtz(
            part(options.hklout), data, flags.astype(np.int32), fit.f_model, fom, maps.best, maps.difference
        )
        if options.jsonout is not None:
            write_json(part(options.jsonout), json_safe(record(refined, options)))


def statistics(refined: Refined) -> Any:
    """For the header of the model."""
    from ml_phaser.exchange.refined import Statistics

    data, last = refined.data, refined.rows[-1]
    test = int(refined.free.sum())
    return Statistics(
        data.d_max, data.d_min, data.completeness, last.r_work, last.r_free, len(data) - test, test, last.bonds,
        last.angles, last.mean_b, target_name(refined.fit),
    )  # fmt: skip


def target_name(fit: Fit) -> str:
    """The target in words."""
    return "maximum likelihood" if fit.from_free else "least squares"


def record(refined: Refined, options: RefineOptions) -> dict[str, Any]:
    """The run record."""
    from dataclasses import asdict

    from ml_phaser import __version__

    data = refined.data
    return {
        "program": "ml_phaser refine",
        "version": __version__,
        "options": asdict(options),
        "spacegroup": data.spacegroup.xhm(),
        "cell": list(data.cell.parameters),
        "reflections": len(data),
        "test_set": int(refined.free.sum()),
        "resolution": [data.d_max, data.d_min],
        "target": target_name(refined.fit),
        "weight": refined.weight,
        "atoms": len(refined.state.b),
        "restraints": refined.parts.restraints.counts(),
        "cycles": [asdict(r) for r in refined.rows],
        "shells": [asdict(s) for s in refined.fit.r.shells],
        "notes": list(refined.notes),
        "verdict": refined.verdict,
    }
