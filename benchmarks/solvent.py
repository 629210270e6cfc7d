#!/usr/bin/env python3
"""What taking solvent from the network's density is worth: measured proteins from the first part of their model.

    python -m benchmarks.solvent

Phases begin as those of the model's first residues (a contiguous piece, one B for all atoms, errors of 0.3 A in each
coordinate, the rest missing); cycles of the network follow, phases weighted by what they predict of the reflections
held out, without anything and with either of ``ml_phaser.phasing.veils.VEILS`` over the density. Map correlations are
those of measured amplitudes with the model's phases, at the origin given. Writes benchmarks/results/solvent.json and
solvent.md.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from numpy.typing import NDArray

from benchmarks.phasing.crystals import Crystal, measured, shared_data
from benchmarks.phasing.runner import finite, record
from benchmarks.phasing.tables import number, table

ROOT = Path(__file__).resolve().parents[1]
RUNS = "1aba:0.22,1aba:0.35,2igc:0.3,5g27:0.3"  # set: share of the residues
CYCLES = (1, 8, 16, 24)
ERROR = 0.3  # A, in each coordinate
ATOM = 16.5  # A^3 of an atom of protein, about


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="benchmarks.solvent", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", default=RUNS, help=f"set:share of the residues, commas between [{RUNS}]")
    parser.add_argument("--name", help="another network than the bundled one")
    parser.add_argument("--weights", type=Path, help="folder of its weights and card [that of the package]")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "solvent.json")
    args = parser.parse_args(argv)
    from ml_phaser.networks.store import FOLDER, PROJECTOR, load_projector, read_card

    where = args.name or PROJECTOR, args.weights or FOLDER
    card, network = read_card(*where), load_projector(*where)
    judged = {"name": card.name, "sha256": card.sha256}
    report: dict[str, Any] = {**record({}), "weights": judged, "cycles": CYCLES, "rows": []}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    for run in args.runs.split(","):
        name, share = run.split(":")
        for row in rows_of(name, float(share), network):
            report["rows"].append(finite(row))
            print(json.dumps(report["rows"][-1]), flush=True)
            save(args.out, report)
    print(args.out.with_suffix(".md").read_text(encoding="utf-8"))
    return 0


@dataclass(frozen=True, eq=False)
class Start:
    """A measured set, structure factors (n,) of part of its model, the share of the cell that the rest leaves."""

    crystal: Crystal
    f: NDArray[np.complex128]
    solvent: float


def start(name: str, share: float) -> Start:
    """With the first ``share`` of the residues."""
    import gemmi

    from benchmarks.measured import read_sets

    crystal = measured(name)
    data = crystal.data
    item = next(s for s in read_sets(shared_data() / "diffraction") if s.name == name)
    model = gemmi.read_structure(str(item.model))
    model.setup_entities()
    model.remove_hydrogens()
    model.remove_waters()
    atoms = sum(len(residue) for chain in model[0] for residue in chain)
    left = round(share * sum(len(chain) for chain in model[0]))
    rng = np.random.default_rng(0)
    for chain in model[0]:
        for i in reversed(range(max(0, left), len(chain))):
            del chain[i]
        left -= len(chain)
        for residue in chain:
            for atom in residue:
                atom.b_iso = 15.0
                atom.pos = gemmi.Position(*(np.array(atom.pos.tolist()) + rng.normal(0, ERROR, 3)))
    model.spacegroup_hm, model.cell = data.spacegroup.hm, data.cell
    density = gemmi.DensityCalculatorX()
    density.d_min, density.rate = data.d_min, 1.5
    density.set_grid_cell_and_spacegroup(model)
    density.put_model_density_on_grid(model[0])
    grid = gemmi.transform_map_to_f_phi(density.grid)
    f = np.array([grid.get_value(*map(int, hkl)) for hkl in data.hkl])
    asu = data.cell.volume / len(data.spacegroup.operations())
    return Start(crystal, f, 1 - atoms * ATOM / asu)


def rows_of(name: str, share: float, network: Any) -> list[dict[str, Any]]:
    """Of one start, way after way, by a projector."""
    from ml_phaser.crystal.agreement import correlation, multiplicity
    from ml_phaser.crystal.normalise import normalise
    from ml_phaser.learned import density_projection
    from ml_phaser.parameters import Options
    from ml_phaser.phasing.veils import VEILS, ways
    from ml_phaser.phasing.weighting import direction
    from ml_phaser.plan import plan_phasing

    begun = start(name, share)
    data, none = begun.crystal.data, Path("none")
    normalised = normalise(data)
    options = Options(none, none, none, none, timelimit=1e5, threads=1, seed=0, device="cpu")
    builder = plan_phasing(data, normalised, options).rebuilder
    if builder is None:
        sys.exit(f"benchmarks.solvent: {name} is too small, or beyond the network's reach")
    p, rows = builder.problem, builder.rows
    truth = begun.crystal.f[rows]
    known = np.isfinite(truth)
    weight = multiplicity(data.hkl[rows], data.spacegroup)[known]

    def cc(f: NDArray[np.complex128]) -> float:
        phased = (normalised.f[rows] * np.exp(1j * np.angle(f)))[known]
        true = (normalised.f[rows] * np.exp(1j * np.angle(truth)))[known]
        return correlation(weight, phased, true)

    found = []
    half = p.scatter(begun.f[rows])
    begins = builder.weighting.combined(builder.weighting.argument(half) * direction(half))
    for way, projection in ways(density_projection(network, p), p, VEILS).items():
        x, done, began = begins, 0, time.process_time()
        row: dict[str, Any] = {
            "set": name, "group": data.spacegroup.xhm(), "d_min": data.d_min, "solvent": begun.solvent, "share": share,
            "start": cc(begun.f[rows]), "taken": way or "nothing",
        }  # fmt: skip
        for cycles in CYCLES:
            g, half, x = builder.cycled(x, projection, cycles - done)
            done = cycles
            row[f"cc {cycles}"], row[f"held {cycles}"] = cc(g), float(p.scores(half)[0])
        found.append({**row, "seconds": time.process_time() - began})
    return found


def save(path: Path, report: dict[str, Any]) -> None:
    """Numbers and table, whole or not at all."""
    from ml_phaser.atomic import atomic

    for place, text in ((path, json.dumps(report, indent=1) + "\n"), (path.with_suffix(".md"), markdown(report))):
        with atomic(place) as part:
            part.write_text(text, encoding="utf-8")


def markdown(report: dict[str, Any]) -> str:
    """The table."""
    heads = ["set", "group", "d_min", "solvent", "residues", "start CC", "taken"]
    heads += [f"CC, {c} cycle{'s' * (c > 1)}" for c in CYCLES] + ["held out", "s"]
    lines = [
        [
            r["set"], r["group"], number(r["d_min"], 2), number(r["solvent"], 2), f"{r['share']:.0%}",
            number(r["start"], 2), r["taken"], *(number(r[f"cc {c}"], 2) for c in CYCLES),
            number(r[f"held {CYCLES[-1]}"], 2), number(r["seconds"], 0),
        ]
        for r in report["rows"]
    ]  # fmt: skip
    body = __doc__.split("\n\n")[2].split(" Writes")[0]
    said = f"`python -m benchmarks.solvent`, ml_phaser {report['version']}, projector {report['weights']['name']}."
    return "\n".join(["# Solvent", "", body, "", said, "", *table(heads, lines), ""])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
