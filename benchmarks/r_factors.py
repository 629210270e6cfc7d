#!/usr/bin/env python3
"""R factors and solvent masks of every measured set with a model, beside those of mmtbx.f_model (see README.md).

    python benchmarks/r_factors.py
    python benchmarks/r_factors.py --sets 1dur,5edl --redo

Needs cctbx (pip install cctbx-base). Writes r_factors.json and r_factors.md; sets that are in the first are skipped.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from measured import LABIN, NOT_FINAL, ROOT, DataSet, finite, first_line, number, read_sets, write_whole

RESULTS = ROOT / "benchmarks" / "results"
MASK_LIMITS = (8.0, 6.0, 4.0, 3.0, 2.5)  # A
FINE, FINE_POINTS = (0.15, 0.3), 15_000_000  # A between points of the mask taken for the truth: the first if few enough
USUAL = 0.6, 0.9  # A, mmtbx's grid and what it shrinks by


def ours(item: DataSet) -> tuple[dict[str, Any], dict[str, Any]]:
    """The row, and what mmtbx needs to do the same."""
    import numpy as np

    from ml_phaser.evaluation.reference import atom_sum
    from ml_phaser.exchange.model import read_model
    from ml_phaser.exchange.read import read_amplitudes
    from ml_phaser.exchange.spacegroup import check_same_crystal
    from ml_phaser.structure_factors.atoms import atoms_of_small, atoms_of_structure
    from ml_phaser.structure_factors.scaling import f_model, fit_scales, free_set, r_factors
    from ml_phaser.structure_factors.solvent import exact_mask, mask_factors

    data = read_amplitudes(item.data, labin=LABIN.get(item.name))
    model = read_model(item.model)
    check_same_crystal(item.model, model.cell, model.spacegroup, data.cell, data.spacegroup)
    start = time.monotonic()
    atoms = (atoms_of_structure if model.is_macromolecule else atoms_of_small)(model.structure)
    f_calc = atom_sum(model, data.hkl, data.spacegroup, model.radiation)
    seconds, f_mask, row = {"f_calc": time.monotonic() - start}, None, {}
    if model.is_macromolecule:
        start = time.monotonic()
        mask = exact_mask(model.structure)
        f_mask = mask_factors(mask, data.hkl, data.cell).numpy().astype(np.complex128)
        seconds["mask"] = time.monotonic() - start
        row["solvent"] = float(mask.mean())
    free, story = free_set(data.free)
    row |= {
        "d_min": data.d_min,
        "spacegroup": data.spacegroup.xhm(),
        "reflections": len(data),
        "flags": story,
        "atoms": model.n_atoms,
        "radiation": model.radiation,
        "k_sol_b_sol": None,
    }
    start = time.monotonic()
    values = {}
    for name, flat in (("flat", True), ("shells", False)):
        scales = fit_scales(data.f, f_calc, f_mask, data.hkl, data.cell, data.spacegroup, free, flat=flat)
        values[name] = f_model(f_calc, 0.0 if f_mask is None else f_mask, *scales.at(data.hkl))
        r = r_factors(data.f, values[name], data.d, free)
        row[name] = {"work": r.work, "free": r.free}
        if f_mask is not None:
            row["k_sol_b_sol"] = [float(x) for x in scales.solvent]
    seconds["both fits"] = time.monotonic() - start
    row["seconds"] = {name: round(x, 2) for name, x in seconds.items()}
    return row, {"data": data, "model": model, "atoms": atoms, "free": free, "f": values["shells"]}


def theirs(job: dict[str, Any]) -> dict[str, Any]:
    """mmtbx.f_model on the same amplitudes, flags and model, and our R on the reflections it kept."""
    import numpy as np
    from cctbx import crystal, miller
    from cctbx.array_family import flex
    from mmtbx import f_model

    from ml_phaser.structure_factors.scaling import r_factors

    data, free = job["data"], job["free"]
    start = time.monotonic()
    symmetry = crystal.symmetry(
        unit_cell=data.cell.parameters,
        space_group_symbol="Hall: " + data.spacegroup.hall,
        force_compatible_unit_cell=False,
    )
    structure = xray_structure(job, symmetry)
    tables = {"X-ray": "it1992", "electron": "electron", "neutron": "neutron"}
    structure.scattering_type_registry(table=tables[job["model"].radiation])
    rows = np.flatnonzero(data.f > 0)
    indices = flex.miller_index([tuple(int(i) for i in h) for h in data.hkl[rows]])
    chosen = miller.set(symmetry, indices, anomalous_flag=False)
    sigma = np.where(data.sigf[rows] > 0, data.sigf[rows], 1.0)
    f_obs = chosen.array(
        data=flex.double(data.f[rows]), sigmas=flex.double(sigma)
    ).set_observation_type_xray_amplitude()
    flags = np.zeros(len(rows), dtype=bool) if free is None else free[rows]
    manager = f_model.manager(f_obs=f_obs, r_free_flags=chosen.array(data=flex.bool(flags)), xray_structure=structure)
    manager.update_all_scales(log=None)
    place = {tuple(h): i for i, h in enumerate(data.hkl.tolist())}
    kept = np.array([place[h] for h in manager.f_obs().indices()])
    same = r_factors(data.f[kept], job["f"][kept], data.d[kept], None if free is None else free[kept])
    return {
        "work": float(manager.r_work()),
        "free": float(manager.r_free()) if free is not None else math.nan,
        "used": len(kept),
        "ours_on_these": {"work": same.work, "free": same.free},
        "seconds": round(time.monotonic() - start, 2),
    }


def xray_structure(job: dict[str, Any], symmetry: Any) -> Any:
    """The same atoms in cctbx: by way of PDB, or one by one for a small molecule."""
    import iotbx.pdb
    import numpy as np
    from cctbx import adptbx, xray
    from cctbx.array_family import flex

    model, atoms = job["model"], job["atoms"]
    if model.is_macromolecule:
        lines = flex.std_string(model.structure.make_pdb_string().splitlines())
        return iotbx.pdb.input(source_info=None, lines=lines).xray_structure_simple(crystal_symmetry=symmetry)
    structure = xray.structure(crystal_symmetry=symmetry)
    aniso = np.zeros((len(atoms.kind), 6)) if atoms.u_aniso is None else atoms.u_aniso.numpy()
    for i, site in enumerate(model.structure.sites):
        u: Any = float(atoms.b_iso[i]) / (8 * math.pi**2)
        if aniso[i].any():
            u = adptbx.u_cart_as_u_star(symmetry.unit_cell(), tuple(aniso[i]))
        where = tuple(atoms.xyz[i].tolist())
        kind = site.element.name
        structure.add_scatterer(xray.scatterer(site.label, where, u, float(site.occ), kind))
    return structure


def masks(job: dict[str, Any]) -> dict[str, Any]:
    """Correlation of |F_mask|, smooth and usual, with that of a fine exact mask: to each limit, and in its shell."""
    import gemmi
    import numpy as np

    from ml_phaser.structure_factors.solvent import SmoothMask, exact_mask, mask_factors

    structure, atoms, group = job["model"].structure, job["atoms"], job["data"].spacegroup
    cell = structure.cell
    hkl = gemmi.make_miller_array(cell, group, min(MASK_LIMITS))
    d = np.asarray(cell.calculate_d_array(hkl))
    spacing = float(np.clip((cell.volume / FINE_POINTS) ** (1 / 3), *FINE))
    fine = exact_mask(structure, spacing=spacing)
    exact = mask_factors(fine, hkl, cell).abs().numpy()
    usual = mask_factors(exact_mask(structure, spacing=USUAL[0], shrink=USUAL[1]), hkl, cell).abs().numpy()
    elements = [cra.atom.element.name for cra in structure[0].all()]
    start = time.monotonic()
    smooth = SmoothMask.of(cell, group, elements, atoms.occupancy.numpy())
    f = mask_factors(smooth(atoms.xyz), hkl, cell).abs().numpy()
    seconds = time.monotonic() - start

    def table(amplitudes: Any) -> dict[str, dict[str, float]]:
        out: dict[str, dict[str, float]] = {"to": {}, "shell": {}}
        for high, low in zip((math.inf, *MASK_LIMITS), MASK_LIMITS, strict=False):
            for name, rows in (("to", d >= low), ("shell", (d >= low) & (d < high))):
                enough = rows.sum() > 5
                out[name][f"{low:g}"] = float(np.corrcoef(exact[rows], amplitudes[rows])[0, 1]) if enough else math.nan
        return out

    return {
        "solvent": float(fine.mean()),
        "spacing": round(spacing, 3),
        "smooth": table(f),
        "usual": table(usual),
        "seconds": round(seconds, 2),
    }


def one_set(item: DataSet) -> dict[str, Any]:
    """The row of one set."""
    from contextlib import suppress

    with suppress(ImportError):
        import cctbx.miller  # noqa: F401  before gemmi: in the other order it crashes
    import torch

    from ml_phaser.errors import UserError

    torch.set_num_threads(1)
    row: dict[str, Any] = {"set": item.name, "cls": item.cls, "final": item.name not in NOT_FINAL}
    try:
        found, job = ours(item)
    except UserError as error:
        return row | {"status": f"no model that can be used: {error.what}"}
    row |= found | {"status": "ok"}
    try:
        row["mmtbx"] = theirs(job)
    except Exception as error:  # whatever it stumbles over is part of the comparison
        row["mmtbx"] = {"error": f"{type(error).__name__}: {first_line(error)}"[:200]}
    if job["model"].is_macromolecule:
        row["masks"] = masks(job)
    return row


def differences(rows: list[dict[str, Any]], name: str) -> list[float]:
    """Our R less mmtbx's on the reflections it used."""
    both = [r["mmtbx"] for r in rows if "work" in r.get("mmtbx", {})]
    pairs = [(m["ours_on_these"][name], m[name]) for m in both]
    return [a - b for a, b in pairs if a is not None and b is not None]


def summary(rows: list[dict[str, Any]]) -> list[str]:
    """Sentences about the whole table."""
    from statistics import median

    good = [r for r in rows if r["status"] == "ok"]
    failed = [r["set"] for r in good if "error" in r.get("mmtbx", {})]
    lines = [
        f"{len(rows)} sets; {len(good)} with a usable model; mmtbx.f_model ran on {len(good) - len(failed)}"
        f" (failed: {', '.join(failed) or 'none'})."
    ]
    for name in ("work", "free"):
        values = differences(good, name)
        if values:
            away = [abs(x) for x in values]
            near = sum(x <= 0.01 for x in away)
            lines.append(
                f"R_{name}, ours less mmtbx's on the same reflections, {len(values)} sets: "
                f"median {median(values):+.4f}, median absolute {median(away):.4f}, largest {max(away):.4f}; "
                f"within 0.01 on {near}; not above mmtbx's by more than 0.001 on {sum(x <= 0.001 for x in values)}."
            )
    wet = [r for r in good if "masks" in r]
    for kind, sets in (("protein", [r for r in wet if r["cls"].startswith("protein")]), ("all", wet)):
        for limit in ("4", "2.5"):
            found = [(r["masks"]["smooth"]["to"][limit], r["set"]) for r in sets]
            values = sorted((x, name) for x, name in found if x is not None)
            if values:
                lines.append(
                    f"|F_mask| to {limit} A, smooth against exact, {len(values)} {kind} sets: median "
                    f"{median(x for x, _ in values):.4f}, worst {values[0][0]:.4f} ({values[0][1]})."
                )
    return lines


def tables(rows: list[dict[str, Any]]) -> list[str]:
    """The Markdown file's lines."""
    out = ["# R factors and solvent masks", "", *(f"- {line}" for line in summary(rows)), "", "## R factors", ""]
    heads: tuple[str, ...] = (
        "set",
        "class",
        "group",
        "d_min",
        "reflections",
        "test set",
        "R flat",
        "R",
        "mmtbx used",
        "R on these",
        "mmtbx R",
    )
    heads += ("difference", "remarks")
    out += ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for row in rows:
        if row["status"] != "ok":
            out.append(f"| {row['set']} | {row['cls']} |" + " |" * 10 + f" {row['status']} |")
            continue
        mm = row.get("mmtbx", {})
        remarks = [] if row["final"] else ["model: not final"]
        remarks += [mm["error"]] if "error" in mm else []
        change = (
            [mm["ours_on_these"][k] - mm[k] if mm.get(k) is not None else None for k in ("work", "free")]
            if "work" in mm
            else []
        )
        cells = [
            *(
                row["set"],
                row["cls"],
                row["spacegroup"],
                number(row["d_min"], 2),
                str(row["reflections"]),
                row["flags"],
            ),
            *(pair(row["flat"]), pair(row["shells"]), str(mm.get("used", "-")), pair(mm.get("ours_on_these", {}))),
            *(
                pair(mm),
                " / ".join("-" if x is None else f"{x:+.4f}" for x in change) or "-",
                "; ".join(remarks).replace("|", "/"),
            ),
        ]
        out.append("| " + " | ".join(cells) + " |")
    out += ["", "## Amplitudes of the solvent mask", ""]
    limits = [f"{x:g}" for x in MASK_LIMITS]
    heads = (
        "set",
        "solvent",
        *(f"to {x} A" for x in limits),
        *(f"shell {x} A" for x in limits),
        "usual grid, to 4 / 2.5 A",
    )
    out += ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for row in rows:
        if "masks" in row:
            m = row["masks"]
            cells = [row["set"], f"{m['solvent']:.3f}"]
            cells += [number(m["smooth"][kind][x], 4) for kind in ("to", "shell") for x in limits]
            cells.append(" / ".join(number(m["usual"]["to"][x], 4) for x in ("4", "2.5")))
            out.append("| " + " | ".join(cells) + " |")
    return out


def pair(r: dict[str, Any]) -> str:
    """Work and free R."""
    return f"{number(r.get('work'), 4)} / {number(r.get('free'), 4)}"


def run_one(item: DataSet, options: argparse.Namespace) -> dict[str, Any]:
    """The row, made in a process of its own that can be ended: by time, or by a crash inside a library."""
    words = [sys.executable, str(Path(__file__).resolve()), "--data", str(options.data), "--one", item.name]
    row: dict[str, Any] = {"set": item.name, "cls": item.cls, "final": item.name not in NOT_FINAL}
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, timeout=options.limit, env=environment, check=False
        )
    except subprocess.TimeoutExpired:
        return row | {"status": f"took longer than {options.limit:g} s"}
    lines = done.stdout.strip().splitlines()
    if done.returncode == 0 and lines:
        return dict(json.loads(lines[-1]))
    said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
    return row | {"status": f"crashed: {said[-1][:200]}"}


def main(argv: list[str]) -> int:
    """0 where no set crashed."""
    parser = argparse.ArgumentParser(
        prog="r_factors.py", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("--data", type=Path, default=ROOT.parent / "shared" / "data" / "diffraction", help="folder with README.csv")
    add("--out", type=Path, default=RESULTS / "r_factors.json", help="results; the table lies beside it as .md")
    add("--sets", default="", help="only these, separated by commas")
    add("--redo", action="store_true", help="also the sets that have a result")
    add("--limit", type=float, default=300.0, help="seconds a set may take [300]")
    add("--one", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if not (options.data / "README.csv").is_file():
        sys.exit(f"r_factors: no README.csv in {options.data}; give --data")
    sets = {item.name: item for item in read_sets(options.data)}
    if options.one:
        print(json.dumps(finite(one_set(sets[options.one]))))
        return 0
    wanted = [name for name in options.sets.split(",") if name] or list(sets)
    if set(wanted) - set(sets):
        sys.exit(f"r_factors: no such sets: {' '.join(sorted(set(wanted) - set(sets)))}")
    rows = {row["set"]: row for row in json.loads(options.out.read_text())} if options.out.is_file() else {}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    for name in wanted:
        if sets[name].model is None or (name in rows and not options.redo):
            continue
        rows[name] = run_one(sets[name], options)
        print(
            name,
            rows[name]["status"],
            pair(rows[name].get("shells", {})),
            pair(rows[name].get("mmtbx", {})),
            flush=True,
        )
        ordered = [rows[x] for x in sets if x in rows]
        write_whole(options.out, json.dumps(ordered, indent=1) + "\n")
        write_whole(options.out.with_suffix(".md"), "\n".join(tables(ordered)) + "\n")
    print(*summary(list(rows.values())), sep="\n")
    return int(any(row["status"].startswith("crashed") for row in rows.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
