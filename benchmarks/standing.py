#!/usr/bin/env python3
"""How far the right place of a helix stands out among random ones, on which reflections and with which weights.

    python -m benchmarks.standing

The longest helices of measured proteins, an ideal one of so many residues laid over each; the correlation of |F|^2 with
measured E^2 there, in standard deviations of the same at random orientations and places. A search looks at some 10^6
places, so that it needs five or six. "old" is what searches used to see: four reflections for each atom there is room
for, 1,500 to 4,000, the lowest orders, as they are; "wide": ten, the lowest orders; "telling": as many, those whose E^2
is furthest from 1, on which poses are looked for now. Of the latter two also the share of all orientations whose
rotation function is higher than that of the right one. Writes standing.json and standing.md into benchmarks/results.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[name] = "1"

import gemmi  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from numpy.typing import NDArray  # noqa: E402

from benchmarks.phasing.crystals import Recipe, get, shared_data  # noqa: E402
from benchmarks.phasing.runner import finite, record  # noqa: E402
from benchmarks.phasing.tables import table  # noqa: E402
from ml_phaser.atomic import atomic  # noqa: E402
from ml_phaser.beginnings import ALL, WIDE, WIDE_ATOM  # noqa: E402
from ml_phaser.crystal.normalise import normalise  # noqa: E402
from ml_phaser.phasing.fragments.chain import superposed  # noqa: E402
from ml_phaser.phasing.fragments.pieces import ROOM, helix  # noqa: E402
from ml_phaser.phasing.fragments.scene import Scene  # noqa: E402
from ml_phaser.phasing.fragments.search import orientations  # noqa: E402

OUT = Path(__file__).resolve().parent / "results" / "standing.json"
SETS = "1aie,1aba,1g1j,5jdt,2igc,5g27,1g8a,1n7s"
MAIN = ("N", "CA", "C", "O")
OLD_ATOM, OLD = 4, (1500, 4000)  # reflections of an atom, least, most
NEAR = 25.0  # degrees of phi and psi from those of a helix
TELLING = "telling, damped"
ROTATED = ("wide, damped", TELLING)
TURNED = 2000  # orientations that the right one is compared with
Floats = NDArray[np.float64]


def helices(chain: gemmi.Chain, least: int) -> list[list[gemmi.Residue]]:
    """Runs of residues of a chain with the phi and psi of a helix, the longest first."""
    residues = [r for r in chain.get_polymer() if all(r.find_atom(name, "*") for name in MAIN)]
    runs: list[list[gemmi.Residue]] = [[]]
    for before, here, after in zip(residues, residues[1:], residues[2:], strict=False):
        phi, psi = np.degrees(gemmi.calculate_phi_psi(before, here, after))
        inside = abs(phi + 63) < NEAR and abs(psi + 42) < NEAR
        runs = [*runs[:-1], [*runs[-1], here]] if inside else [*runs, []]
    return sorted((run for run in runs if len(run) >= least), key=lambda run: -len(run))


def laid_over(piece: Any, run: list[gemmi.Residue]) -> tuple[Floats, float]:
    """A helix (m, 3) in A laid over the middle of a run, and how far its main chain is off."""
    count = int(piece.residue.max()) + 1
    first = (len(run) - count) // 2
    there = np.array([run[first + i].find_atom(n, "*").pos.tolist() for i in range(count) for n in MAIN])
    rows = [
        next(k for k in range(len(piece)) if piece.names[k] == n and piece.residue[k] == i)
        for i in range(count) for n in MAIN
    ]  # fmt: skip
    xyz = superposed(piece.xyz, piece.xyz[rows], there)
    return xyz, float(np.sqrt(((xyz[rows] - there) ** 2).sum(1).mean()))


def rotation_function(scene: Scene, placed: list[Floats], weight: torch.Tensor) -> Floats:
    """Agreement of the own vectors of poses (m, 3) in A with the Patterson function, as ``search.likeliest`` has it."""
    found = []
    for some in torch.from_numpy(np.array(placed)).float().split(scene.together(len(weight))):
        parts = scene.parts(some, weight)
        found.append(scene.agreement((parts.real**2 + parts.imag**2).sum(-1)))
    return torch.cat(found).double().numpy()


def standing(name: str, residues: int, count: int, most: int) -> list[dict[str, Any]]:
    """A row for each helix of a measured protein."""
    crystal = get(Recipe("measured", name, "measured", settings=(("set", name),)))
    data, piece = crystal.data, helix(residues)
    normalised, room = normalise(data), round(data.cell.volume / len(data.spacegroup.operations()) / ROOM)
    order = np.argsort(-data.d, kind="stable")
    old, wide = int(np.clip(OLD_ATOM * room, *OLD)), int(np.clip(WIDE_ATOM * room, *WIDE))
    schemes = {"old": (old, False), "old, damped": (old, True), "wide, damped": (wide, True), TELLING: (wide, True),
               "all": (ALL, False), "all, damped": (ALL, True)}  # fmt: skip
    folder = shared_data() / "diffraction" / name
    structure = gemmi.read_structure(str(next(p for kind in ("*.pdb", "*.ent") for p in sorted(folder.glob(kind)))))
    structure.setup_entities()
    runs = helices(structure[0][0], residues)[:most]
    right = [laid_over(piece, run) for run in runs]
    orth, rng = np.array(data.cell.orth.mat), np.random.default_rng(0)
    wrong = [piece.xyz @ t.T + orth @ rng.random(3) for t in orientations(count)]
    weight, rows = torch.from_numpy(piece.weight).float(), []
    scores, rotations = {}, {}
    places, turns = (
        [*(xyz for xyz, _ in right), *more] for more in (wrong, [piece.xyz @ t.T for t in orientations(TURNED)])
    )
    for scheme, (n, wet) in schemes.items():
        scene = Scene.of(data, normalised, np.sort(order[: ALL if scheme == TELLING else n]), wet=wet)
        scene = scene.outline(n) if scheme == TELLING else scene
        there = torch.from_numpy(np.array(places)).float()
        scores[scheme] = scene.fits(there, torch.zeros(len(there), 3), weight).numpy()
        if scheme in ROTATED:
            rotations[scheme] = rotation_function(scene, turns, weight)
    for i, (run, (_, off)) in enumerate(zip(runs, right, strict=True)):
        row: dict[str, Any] = {
            "set": name, "group": data.spacegroup.hm, "d_min": data.d_min, "room": room, "length": len(run),
            "off": off, "reflections": {scheme: min(n, len(data)) for scheme, (n, _) in schemes.items()},
        }  # fmt: skip
        for scheme, found in scores.items():
            random = found[len(right) :]
            row[scheme] = float((found[i] - random.mean()) / random.std())
        row["turned"] = {scheme: float((f[len(right) :] > f[i]).mean()) for scheme, f in rotations.items()}
        rows.append(row)
    return rows


def page(rows: list[dict[str, Any]], residues: int, facts: dict[str, Any]) -> str:
    """The table, and its means."""
    schemes = list(rows[0]["reflections"])
    lines = [
        [r["set"], r["group"], f"{r['d_min']:.2f}", str(r["room"]), str(r["length"]), f"{r['off']:.2f}",
         *(f"{r[s]:.1f} ({r['reflections'][s]})" for s in schemes), *(f"{r['turned'][s]:.3f}" for s in ROTATED)]
        for r in rows
    ]  # fmt: skip
    lines.append(["mean", "", "", "", "", "", *(f"{np.mean([r[s] for r in rows]):.1f}" for s in schemes),
                  *(f"{np.median([r['turned'][s] for r in rows]):.3f} (median)" for s in ROTATED)])  # fmt: skip
    head = ["set", "group", "d_min", "room", "residues", "off, A", *(f"{s}: z (reflections)" for s in schemes),
            *(f"{s}: orientations ahead" for s in ROTATED)]  # fmt: skip
    return (
        f"# How far the right place of a helix stands out\n\nIdeal helices of {residues} residues of poly-alanine laid"
        f" over those of measured proteins; standard deviations of the correlation with E^2 at random places. ml_phaser"
        f" {facts['version']}.\n\n" + "\n".join(table(head, lines)) + "\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--sets", default=SETS, help="measured proteins, commas between")
    add("--residues", type=int, default=12, help="of the helix")
    add("--random", type=int, default=400, help="random places")
    add("--helices", type=int, default=2, help="of a protein, the longest")
    add("--out", type=Path, default=OUT)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for name in options.sets.split(","):
        began = time.process_time()
        rows += standing(name, options.residues, options.random, options.helices)
        print(f"{name}: {time.process_time() - began:.0f} s", file=sys.stderr)
    if not rows:
        sys.exit("standing: no helix of so many residues")
    facts = record({"residues": options.residues, "random": options.random})
    text = json.dumps({"record": facts, "rows": [finite(r) for r in rows]}, indent=1) + "\n"
    for target, said in ((options.out, text), (options.out.with_suffix(".md"), page(rows, options.residues, facts))):
        with atomic(target) as part:
            part.write_text(said, encoding="utf-8")


if __name__ == "__main__":
    main()
