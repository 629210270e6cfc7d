#!/usr/bin/env python3
"""Processor seconds of a step of least squares of free atoms, by sums of waves and by FFT, and how far those differ.

    python -m benchmarks.atom_steps

Random atoms, nitrogens with B of 3 to 30 A^2, one thread. A step: structure factors, and a transform to and fro for
each conjugate gradient. Sums are left out where waves would take more than MOST bytes. Writes atom_steps.json and
atom_steps.md into benchmarks/results.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[name] = "1"

import gemmi  # noqa: E402
import numpy as np  # noqa: E402

from benchmarks.phasing.runner import finite, record  # noqa: E402
from benchmarks.phasing.tables import table  # noqa: E402
from ml_phaser.atomic import atomic  # noqa: E402
from ml_phaser.crystal.peaks import Atoms  # noqa: E402
from ml_phaser.phasing.atom_fit import DAMPING, Aim, Complexes, Scattering  # noqa: E402
from ml_phaser.phasing.atom_grid import OnGrid, step_cost  # noqa: E402

OUT = Path(__file__).resolve().parent / "results" / "atom_steps.json"
# Cell, group, d_min, atoms of an asymmetric unit; the last four are of the size of 1AIE, 1ABA, 4LZT and 2IGC
CRYSTALS = (
    ((10, 12, 15, 90, 90, 90), "P 21 21 21", 1.2, 25), ((20, 22, 25, 90, 90, 90), "P 21 21 21", 1.4, 90),
    ((45.5, 45.5, 33.2, 90, 90, 90), "P 4 2 2", 1.5, 290), ((30.2, 47.8, 61.3, 90, 90, 90), "P 21 21 21", 1.45, 740),
    ((27.2, 31.9, 34.2, 88.5, 108.5, 111.9), "P 1", 1.1, 900), ((59.8, 59.8, 95.4, 90, 90, 120), "P 32 2 1", 1.4, 1640),
)  # fmt: skip
GRADIENTS = 4
MOST = 2e9  # bytes of waves


def measure(edges: tuple[float, ...], group: str, d_min: float, count: int, repeats: int) -> dict[str, Any]:
    """A row: the shortest of some times of each way."""
    cell, spacegroup, rng = gemmi.UnitCell(*edges), gemmi.SpaceGroup(group), np.random.default_rng(0)
    hkl = gemmi.make_miller_array(cell, spacegroup, d_min)
    b, images = rng.uniform(3, 30, count), np.ones(count, dtype=np.int64)
    atoms = Atoms(rng.random((count, 3)), rng.uniform(0.5, 1.5, count), b, images)
    pairs = count * len(hkl) * len(spacegroup.operations().sym_ops)
    row: dict[str, Any] = {"cell": edges, "group": group, "d_min": d_min, "atoms": count, "reflections": len(hkl),
                           "pairs": pairs, "expected": step_cost(hkl, cell, spacegroup, count, GRADIENTS)}  # fmt: skip
    found: dict[str, Complexes] = {}
    for kind, way in (("sums", Scattering), ("fft", OnGrid)):
        if kind == "sums" and 8 * pairs > MOST:
            continue
        scattering, times = way(hkl, cell, spacegroup), []
        for _ in range(repeats):
            began = time.process_time()
            state = scattering.at(atoms)
            Aim(state.f * 1.01, True, 1.0, 15.0).step(state, DAMPING, GRADIENTS)
            times.append(time.process_time() - began)
        row[kind], found[kind] = min(times), state.f
    if len(found) == 2:
        off = np.abs(found["fft"] - found["sums"])
        row["off"] = float(np.linalg.norm(off) / np.linalg.norm(found["sums"]))
    return row


def page(rows: list[dict[str, Any]], facts: dict[str, Any]) -> str:
    """The table."""
    head = ["group", "d_min", "atoms", "reflections", "sums, s", "FFT, s", "expected, s", "difference of F"]
    body = [
        [r["group"], f"{r['d_min']:.2f}", str(r["atoms"]), str(r["reflections"]),
         f"{r['sums']:.3f}" if "sums" in r else "", f"{r['fft']:.3f}", f"{r['expected']:.3f}",
         f"{r['off']:.1e}" if "off" in r else ""]
        for r in rows
    ]  # fmt: skip
    lines = "\n".join(table(head, body))
    return (
        "# A step of least squares of free atoms\n\nProcessor seconds of one thread, four conjugate gradients, by sums"
        f" of waves and by FFT; *expected*: by what the quicker is chosen by. ml_phaser {facts['version']},"
        f" {facts['machine']['processor']}; `python -m benchmarks.atom_steps`.\n\n{lines}\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="benchmarks.atom_steps", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    rows = []
    for crystal in CRYSTALS:
        rows.append(measure(*crystal, args.repeats))
        print(json.dumps(rows[-1]), flush=True)
    facts = record({"gradients": GRADIENTS, "repeats": args.repeats})
    with atomic(args.out) as part:
        part.write_text(json.dumps(finite({"rows": rows, **facts}), indent=1) + "\n")
    with atomic(args.out.with_suffix(".md")) as part:
        part.write_text(page(rows, facts))


if __name__ == "__main__":
    main()
