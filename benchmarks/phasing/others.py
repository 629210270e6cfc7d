"""Other programs as entrants, each in a process of its own that is ended when the time is over."""

from __future__ import annotations

import csv
import resource
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.phasing.crystals import Crystal
from benchmarks.phasing.entrants import Answer, in_group

GRACE = 5.0  # processor seconds to start up and to write, beyond the budget
WAITING = 10.0  # times the limit that may pass on the clock, on a busy machine
ROOT = Path(__file__).resolve().parents[2]


def cctbx_flipping(crystal: Crystal, seconds: float, seed: int) -> Answer:
    """Charge flipping of cctbx (smtbx.ab_initio), its variant for weak reflections, on its quasi-E values.

    It expands to P1 itself; its P1 phases are placed in the group by our code.
    """
    from ml_phaser.crystal.symmetry import expand

    data = crystal.data
    with tempfile.TemporaryDirectory() as folder:
        source, result = Path(folder) / "in.npz", Path(folder) / "out.npz"
        np.savez(
            source, hkl=data.hkl, f=data.f, cell=np.array(data.cell.parameters), group=np.array(data.spacegroup.hall)
        )
        words = [
            sys.executable,
            "-m",
            "benchmarks.phasing.cctbx_run",
            str(source),
            str(result),
            str(seconds),
            str(seed),
        ]
        failed = _run(words, seconds + GRACE)
        if not result.exists():
            return Answer(None, said=failed or "no result")
        with np.load(result) as out:
            table = {tuple(h): f for h, f in zip(out["hkl"].tolist(), out["f"], strict=True)}
            starts, claimed, r1 = int(out["starts"]), bool(out["claimed"]), float(out["r1"])
    expansion = expand(data.hkl, data.spacegroup)
    f_p1 = _in_order(table, expansion.hkl)
    f = in_group(expansion, f_p1, data.f, data.cell, data.spacegroup)
    return Answer(f, starts, -r1, claimed, said="claims a solution" if claimed else "")


def _in_order(table: dict[Any, Any], hkl: np.ndarray) -> np.ndarray:
    """Values at ``hkl``, of the Friedel mate where that is what the table has, 0 where neither."""
    return np.array([
        table[tuple(h)] if tuple(h) in table else np.conj(table.get((-h[0], -h[1], -h[2]), 0)) for h in hkl.tolist()
    ])  # fmt: skip


def grok_solver(crystal: Crystal, seconds: float, seed: int, *, python: str | None) -> Answer:
    """grok-phase-solver with its own choice of method, on data expanded to P1, where it does best (peers)."""
    from ml_phaser.crystal.symmetry import expand

    if python is None:
        return Answer(None, said="not installed (--grok)")
    data = crystal.data
    expansion = expand(data.hkl, data.spacegroup)
    f = expansion.spread(data.f)
    with tempfile.TemporaryDirectory() as folder:
        hkl = Path(folder) / "x.hkl"
        scale = 9999.0 / float((f**2).max())
        lines = [
            "".join(f"{x:4d}" for x in index) + f"{i:8.2f}{max(0.01 * i, 0.05):8.2f}"
            for index, i in zip(expansion.hkl.tolist(), scale * f**2, strict=True)
        ]
        hkl.write_text("\n".join([*lines, f"{0:4d}{0:4d}{0:4d}{0:8.2f}{0:8.2f}"]) + "\n", encoding="ascii")
        cell = ",".join(f"{x:.4f}" for x in data.cell.parameters)
        call = "import sys; from grok_phase_solver.cli import solve_main; sys.exit(solve_main())"
        words = [python, "-c", call, "--hkl", str(hkl), "--cell", cell, "--sg", "P1", "--seed", str(seed), "--quiet"]
        failed = _run([*words, "--out", str(Path(folder) / "out")], seconds + GRACE)
        phases = Path(folder) / "out" / "phases.csv"
        if not phases.exists():
            return Answer(None, said=failed or "wrote no phases")
        with phases.open(newline="") as stream:
            table = {
                (int(r["h"]), int(r["k"]), int(r["l"])): np.exp(1j * np.deg2rad(float(r["phase_deg"])))
                for r in csv.DictReader(stream)
            }
    f_p1 = _in_order(table, expansion.hkl)
    return Answer(in_group(expansion, f_p1, data.f, data.cell, data.spacegroup), 1)


def _run(words: list[str], limit: float) -> str:
    """Run to the end or to ``limit`` processor seconds; what went wrong, in a line, or nothing."""

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_CPU, (int(limit), int(limit) + 2))

    try:
        done = subprocess.run(
            words, cwd=ROOT, capture_output=True, text=True, timeout=limit * WAITING, check=False, preexec_fn=limited
        )
    except subprocess.TimeoutExpired:
        return f"not done after {limit * WAITING:.0f} s"
    if done.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
        return f"not done after {limit:.0f} s"
    lines = [line for line in done.stderr.strip().splitlines() if line.strip()]
    return (lines[-1] if lines else f"exit status {done.returncode}") if done.returncode else ""
