"""What the main job costs with arrays of torch and of numpy, on the example crystal, one thread.

    python -m benchmarks.engines [--seeds 3] [--out benchmarks/results/engines]

Whole runs in processes of their own, by processor time, and single steps on the same crystal. Writes OUT.json, OUT.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = ROOT / "examples" / "peptide.mtz"
ENGINES = {"auto": "cpu", "onnx": "numpy"}  # and where its arrays are
STEPS = 20  # timed together

Row = dict[str, Any]


def whole_run(engine: str, seed: int, folder: Path) -> Row:
    """One run of the program: processor seconds in all and of the phasing (wall clock), what it found."""
    words = ["hklin", EXAMPLE, "mapout", folder / f"{engine}{seed}.map", "engine", engine, "seed", seed, "threads", 1]
    began = os.times()
    subprocess.run(
        [sys.executable, "-m", "ml_phaser", *map(str, words)], cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=True, capture_output=True,
    )  # fmt: skip
    ended = os.times()
    spent = sum(getattr(ended, k) - getattr(began, k) for k in ("children_user", "children_system"))
    record = json.loads((folder / f"{engine}{seed}.json").read_text())
    cycles = sum(t["cycles"] for t in record["trials"])
    best = max(t["score"] for t in record["trials"] if t["finished"])
    return {
        "engine": engine, "seed": seed, "cpu_s": round(spent, 2), "cycles": cycles, "best": round(best, 3),
        "verdict": record["verdict"]["word"],
    }  # fmt: skip


def cost(step: Callable[[], Any]) -> float:
    """Processor milliseconds of a step."""
    step()
    began = time.process_time()
    for _ in range(STEPS):
        step()
    return round(1000 * (time.process_time() - began) / STEPS, 2)


def single_steps(engine: str, folder: Path) -> Row:
    """Cycles of a batch and passes of the network, each on its own grid of the example crystal."""
    from ml_phaser import arrays, pipeline
    from ml_phaser.networks.runtime import choose_runtime
    from ml_phaser.parameters import Options
    from ml_phaser.plan import bundled_network, classical_entrants, lay_out, learned_entrant

    options = Options(EXAMPLE, folder / "a.map", folder / "a.mtz", folder / "a.json", threads=1, engine=engine)
    data = pipeline.read(options)
    runtime = choose_runtime(engine, "cpu")
    arrays.set_threads(1, runtime.place)
    board, whole, d_search = lay_out(data, pipeline.normalise(data), options, runtime)
    row: Row = {"engine": engine}
    network, _, _ = bundled_network(1.5, data.cell.volume, engine, runtime)
    assert network is not None
    for entrant in (*classical_entrants(board, whole, d_search)[:2], learned_entrant(board, network)):
        x = entrant.starts(2, arrays.generator(0, entrant.problem.target.amplitude))
        row[f"{entrant.method.name}, 2 x {entrant.problem.points} points"] = cost(
            lambda entrant=entrant, x=x: entrant.method.advance(x, 1)
        )
    return row


def table(rows: list[Row]) -> str:
    """Rows as Markdown."""
    names = list(rows[0])
    lines = [f"| {' | '.join(names)} |", "|" + "---|" * len(names)]
    return "\n".join([*lines, *(f"| {' | '.join(str(r[k]) for k in names)} |" for r in rows)])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "engines")
    args = parser.parse_args()
    from ml_phaser.phasing.projections import has_bfloat16

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        runs = [whole_run(engine, seed, folder) for seed in range(args.seeds) for engine in ENGINES]
        steps = [single_steps(engine, folder) for engine in ENGINES]
    means = {e: float(np.mean([r["cpu_s"] for r in runs if r["engine"] == e])) for e in ENGINES}
    precision = "bfloat16" if has_bfloat16("cpu") else "single precision"
    said = ", ".join(f"{e} {m:.1f} s" for e, m in means.items())
    args.out.with_suffix(".json").write_text(json.dumps({"runs": runs, "steps_ms": steps}, indent=1) + "\n")
    args.out.with_suffix(".md").write_text(
        "# Engines: arrays of torch (auto) and of numpy (onnx)\n\n"
        f"`python -m benchmarks.engines --seeds {args.seeds}`: `examples/peptide.mtz`, one thread, processor time.\n\n"
        f"Whole runs, start-up and files included; on average {said}. Two runs of a seed begin alike and part by\n"
        f"rounding.\n\n{table(runs)}\n\nMilliseconds of one cycle of two starts; torch's network "
        f"works in {precision} on this processor:\n\n{table(steps)}\n"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
