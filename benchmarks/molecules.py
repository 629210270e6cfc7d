#!/usr/bin/env python3
"""Small molecules beyond atomic resolution: what is it worth to know the molecule?

    python -m benchmarks.molecules --seconds 20

Measured sets, cut to --cut A. "molecule": the largest molecule of the deposited model as `xyzin`, every bond that turns
turned at random, and the whole too, so that nothing but its bonds and angles (and the shape of its rings) is
known. "nothing": the same without `xyzin`. Writes molecules.json and molecules.md into benchmarks/results.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[name] = "1"

import numpy as np  # noqa: E402

from benchmarks.fragments import Case, agreement, crystal_of  # noqa: E402
from benchmarks.phasing.runner import finite, record  # noqa: E402
from benchmarks.phasing.tables import table  # noqa: E402

OUT = Path(__file__).resolve().parent / "results" / "molecules.json"
# All small-molecule sets with a model of one kind of molecule (biggest part) and at least one bond that turns.
SETS = (
    "xylitol", "alert_p-1", "thpp", "cod2012000", "1979688", "ntd106c_p-1", "cod2016452", "cod2200000", "biotin_ed",
    "abiraterone_ed",
)  # fmt: skip


def molecule(path: Path, seed: int) -> Any:
    """The largest molecule of a model as a piece, in a shape and an orientation of chance."""
    import torch
    from scipy.sparse.csgraph import connected_components
    from scipy.spatial.transform import Rotation

    from ml_phaser.crystal.bonds import linked
    from ml_phaser.exchange.fragments import read_piece
    from ml_phaser.phasing.fragments.pieces import of_user
    from ml_phaser.phasing.fragments.refine import bent

    chain, rng = read_piece(path), np.random.default_rng(seed)
    part = connected_components(linked(chain.elements, chain.xyz))[1]
    keep = np.flatnonzero(part == np.bincount(part).argmax())
    chain = replace(
        chain, names=tuple(chain.names[i] for i in keep), elements=tuple(chain.elements[i] for i in keep),
        residue=chain.residue[keep], xyz=chain.xyz[keep],
    )  # fmt: skip
    piece = of_user("molecule", chain)
    by = torch.from_numpy(rng.uniform(-np.pi, np.pi, (1, len(piece.hinges))))
    xyz = bent(torch.from_numpy(piece.xyz)[None], piece.hinges, by)[0].numpy()
    return of_user("molecule", replace(chain, xyz=Rotation.from_quat(rng.normal(size=4)).apply(xyz)))


def run(name: str, cut: float, seconds: float, seed: int, *, known: bool) -> dict[str, Any]:
    """One set, with or without its molecule."""
    from benchmarks.measured import read_sets
    from benchmarks.phasing.crystals import shared_data
    from ml_phaser import pipeline
    from ml_phaser.notify import Silent
    from ml_phaser.parameters import Options
    from ml_phaser.plan import plan_phasing

    crystal, none = crystal_of(Case("measured", name, d_min=cut)), Path("none")
    (model,) = (s.model for s in read_sets(shared_data() / "diffraction") if s.name == name)
    assert model is not None
    piece = molecule(model, seed)
    options = Options(none, none, none, none, timelimit=seconds, threads=1, seed=seed, device="cpu")
    data, began = crystal.data, time.process_time()
    normalised = pipeline.normalise(data)
    plan = plan_phasing(data, normalised, options, pieces=(piece,) if known else ())
    hunt = pipeline.phase(plan, options, Silent(), time.process_time)
    used = time.process_time() - began
    best, _ = pipeline.choose(hunt, data, normalised, plan)
    _, _, verdict, _ = pipeline.weigh(data, normalised, plan, best, keep_hand=True)
    return {
        "name": name, "known": known, "group": data.spacegroup.hm, "reflections": len(data), "atoms": len(piece),
        "hinges": len(piece.hinges), "seconds": round(used, 1), "verdict": verdict.word,
        "probability": verdict.probability, **agreement(crystal, best, normalised.f, 5),
    }  # fmt: skip


def report(rows: list[dict[str, Any]], facts: dict[str, Any]) -> str:
    """The table."""
    settings = facts["settings"]
    head = ("set", "group", "reflections", "atoms", "bonds that turn", "begun with", "CC", "phase error", "chance",
            "P", "verdict", "s")  # fmt: skip
    body = [
        (r["name"], r["group"], str(r["reflections"]), str(r["atoms"]), str(r["hinges"]),
         "molecule" if r["known"] else "nothing", f"{r['cc']:.2f}", f"{r['phase_error']:.0f}", f"{r['chance']:.2f}",
         f"{r['probability']:.2f}", r["verdict"], f"{r['seconds']:.0f}")
        for r in rows
    ]  # fmt: skip
    about = (
        f"Measured sets cut to {settings['cut']} A, {settings['seconds']:g} processor seconds a run, one thread, seed "
        f"{settings['seed']}; ml_phaser {facts['version']}, weights {facts['weights']['sha256'][:8]}."
    )
    return "\n".join(["# Small molecules whole", "", about, "", *table(head, body)])


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="benchmarks.molecules", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--seconds", type=float, default=20.0, help="processor seconds a run [20]")
    add("--cut", type=float, default=1.5, help="A [1.5]")
    add("--seed", type=int, default=0)
    add("--sets", default=",".join(SETS), help="commas between")
    add("--out", type=Path, default=OUT)
    o = parser.parse_args(argv)
    facts, rows = record({"seconds": o.seconds, "cut": o.cut, "seed": o.seed}), []
    for name in o.sets.split(","):
        for known in (True, False):
            rows.append(finite(run(name, o.cut, o.seconds, o.seed, known=known)))
            print(*rows[-1].values(), flush=True)
    o.out.write_text(json.dumps({"record": facts, "rows": rows}, indent=1) + "\n", encoding="utf-8")
    o.out.with_suffix(".md").write_text(report(rows, facts) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
