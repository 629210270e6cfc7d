"""The files of a simulated crystal: MTZ, model, true map and record, which say what they are."""

from __future__ import annotations

import json
import textwrap
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import gemmi
import numpy as np
from numpy.typing import NDArray

from ml_phaser import __version__
from ml_phaser.atomic import atomic
from ml_phaser.crystal.maps import density, write_map
from ml_phaser.simulate.measure import Sites
from ml_phaser.simulate.packing import operators
from ml_phaser.simulate.rigid import neighbours
from ml_phaser.simulate.simulated import LABELS, Simulated, structure, table

SHELLS = 10
_HISTORY_WIDTH = 80


def write(
    data: Simulated, *, hklout: Path | None = None, xyzout: Path | None = None, mapout: Path | None = None,
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
            write_map(part(mapout), true_map(data), data.cell, data.spacegroup)
        if jsonout is not None:
            part(jsonout).write_text(json.dumps(record(data), indent=1) + "\n", encoding="ascii")


def title(data: Simulated) -> str:
    """One line that says what this is."""
    what = data.settings.get("sequence") or data.family
    return f"SIMULATED by ml_phaser {__version__}: {what[:20]}, seed {data.seed}"


def remarks(data: Simulated) -> list[str]:
    """Sentences for the headers of the files."""
    sites, water, made = data.sites, int(data.sites.water.sum()), data.settings
    group = data.spacegroup.xhm()
    lines = [f"SIMULATED, not measured: made by ml_phaser {__version__} (simulate), seed {data.seed}."]
    if data.family == "ideal":
        lines.append(
            f"Peptide {made['sequence']}, ideal geometry, packed in {group}, {water} waters, no hydrogen atoms."
        )
    else:
        lines.append(
            f"Family {data.family}: {len(sites) - water} atoms and {water} waters in {group}, no hydrogen atoms."
        )
    if data.source:
        lines.append(f"Coordinates out of {', '.join(data.source)} (entry, chain, position).")
    if data.solvent is not None:
        s = data.solvent
        lines.append(
            f"Bulk solvent: {s.fraction:.3f} of the cell, k_sol {s.k_sol:g} electrons/A^3, B_sol {s.b_sol:g} A^2."
        )
    lines.append(
        f"Resolution {data.d_min:g} A, noise {made['noise']:g} (mean sigma(I) / mean I), "
        f"completeness {made['completeness']:g}, mean B {made.get('b', round(mean_b(sites), 1)):g} A^2."
    )
    return lines


def as_mtz(data: Simulated) -> gemmi.Mtz:
    """I SIGI FreeR_flag of the measured reflections."""
    mtz = gemmi.Mtz(with_base=True)
    mtz.title = title(data)[:70]
    mtz.spacegroup = data.spacegroup
    dataset = mtz.add_dataset("SIMULATED")
    dataset.project_name, dataset.crystal_name, dataset.wavelength = "ml_phaser", "SIMULATED", 1.0
    mtz.set_cell_for_all(data.cell)
    for label, kind in zip(LABELS, "JQI", strict=True):
        mtz.add_column(label, kind, dataset_id=dataset.id)
    mtz.set_data(table(data))
    mtz.history = [line for remark in remarks(data) for line in textwrap.wrap(remark, _HISTORY_WIDTH)]
    mtz.update_reso()
    return mtz


def as_pdb(data: Simulated) -> str:
    """The model, with anisotropic displacement parameters."""
    model = structure(data.sites, data.cell, data.spacegroup)
    model.info["_struct.title"] = title(data)
    model.raw_remarks = [f"REMARK   3 {line}" for remark in remarks(data) for line in textwrap.wrap(remark, 68)]
    model.setup_entities()
    return model.make_pdb_string()


def true_map(data: Simulated) -> NDArray[np.float64]:
    """Density of the whole cell in electrons/A^3 from every reflection to d_min, measured or not; F(000) absent."""
    return density(data.hkl, data.f, data.cell, data.spacegroup, data.shape)


def shells(data: Simulated) -> list[dict[str, Any]]:
    """Statistics of the measured intensities in ten shells of equally many reflections."""
    m = data.measurement
    d = np.asarray(data.cell.calculate_d_array(m.hkl))
    rows = []
    for part in np.array_split(np.argsort(-d, kind="stable"), SHELLS):
        use = part[m.measured[part]]
        ratio = float(np.mean(m.intensity[use] / m.sigma[use])) if len(use) else None
        rows.append({
            "d_max": round(float(d[part].max()), 3), "d_min": round(float(d[part].min()), 3), "n": len(use),
            "completeness": round(len(use) / len(part), 4), "i_over_sigma": None if ratio is None else round(ratio, 2),
        })  # fmt: skip
    return rows


def record(data: Simulated) -> dict[str, Any]:
    """What was asked for and what came of it, for JSON."""
    m, sites = data.measurement, data.sites
    water = int(sites.water.sum())
    request = {"family": data.family, "seed": data.seed, "spacegroup": data.spacegroup.xhm(), "resolution": data.d_min}
    request |= {k: v for k, v in data.settings.items() if k not in ("spacegroup", "d_min") and v is not None}
    return {
        "program": "ml_phaser simulate", "version": __version__, "simulated": True,
        "request": {k: (None if v == np.inf else v) for k, v in request.items()},
        "source": list(data.source), "cell": [round(float(x), 3) for x in data.cell.parameters],
        "atoms": len(sites) - water, "waters": water, "molecules": molecules(sites),
        "volume_per_atom": round(data.volume_per_atom, 2), "shortest_contact": round(shortest_contact(data), 3),
        "mean_b": round(mean_b(sites), 2), "map_grid": list(data.shape),
        "solvent": None if data.solvent is None else asdict(data.solvent),
        "reflections": int(m.measured.sum()), "possible": len(m.hkl),
        "completeness": round(float(m.measured.mean()), 4), "free": int(np.sum(m.free[m.measured] == 0)),
        "mean_sigma_over_mean_i": round(float(m.sigma[m.measured].mean() / m.intensity[m.measured].mean()), 4),
        "shells": shells(data),
    }  # fmt: skip


def mean_b(sites: Sites) -> float:
    """Mean B in A^2 of all atoms but waters."""
    return float(sites.b[~sites.water].mean())


def molecules(sites: Sites) -> int:
    """Chains in the asymmetric unit, waters aside."""
    return len({chain for chain, water in zip(sites.chain, sites.water, strict=True) if not water})


def shortest_contact(data: Simulated, reach: float = 5.0) -> float:
    """Shortest distance in A between molecules, ``reach`` if none is shorter."""
    sites, symmetry = data.sites, operators(data.spacegroup)
    orth = np.array(data.cell.orth.mat)
    pairs = neighbours(sites.xyz, sites.body, orth, symmetry, reach)
    return float(np.linalg.norm(pairs.vectors(sites.xyz, orth, symmetry), axis=1).min(initial=reach))
