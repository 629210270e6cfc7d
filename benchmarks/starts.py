"""How many starts of each method solve a crystal, after how many cycles, and what tells them from the others.

    python -m benchmarks.starts --d-min 1.2 1.4 --atoms 50 --group P1 --starts 12 --cycles 80

Nothing is finished and nothing stops early: this is what the engine's shares, turns and stopping rule are chosen by.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace

import gemmi
import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.phasing.crystals import Crystal, get
from benchmarks.phasing.entrants import options
from benchmarks.phasing.tasks import dense
from ml_phaser.board import lay_out
from ml_phaser.crystal.agreement import compare
from ml_phaser.crystal.normalise import normalise
from ml_phaser.learned import bundled_network
from ml_phaser.phasing.search import Entrant
from ml_phaser.plan import classical_entrants, flipped_starts, learned_entrant

SOLVED = 0.7
CHECKS = 4
CLASSICAL_CYCLES = 600


def agreements(crystal: Crystal, entrant: Entrant, half: torch.Tensor) -> NDArray[np.float64]:
    """Map CC (B,) of the measured amplitudes with each start's phases in P1, best over origins and hands."""
    e, f = entrant.problem.expansion, crystal.f[entrant.rows]
    known = np.isfinite(f)[e.asu]
    truth = e.spread(np.where(np.isfinite(f), f, 0))[known]
    moduli, p1 = crystal.data.f[entrant.rows][e.asu][known], gemmi.SpaceGroup("P 1")
    phases = [np.angle(entrant.problem.gather_p1(h))[known] for h in half]
    return np.array([
        compare(e.hkl[known], moduli * np.exp(1j * a), truth, crystal.data.cell, p1, repeats=0).map_cc for a in phases
    ])  # fmt: skip


def entrants_of(crystal: Crystal) -> list[tuple[str, Entrant, bool]]:
    """Methods by name, and whether they are the network's."""
    data = crystal.data
    board, whole, d_search = lay_out(data, normalise(data), options(60.0, 0, "auto"))
    found = [(e.method.name, e, False) for e in classical_entrants(board, whole, d_search)[:2]]
    network, _, _ = bundled_network(data.d_min, data.cell.volume, "learned")
    if network is not None:
        entrant = learned_entrant(board, network)
        found.append(("network, random", entrant, True))
        shaped = replace(entrant, origin=flipped_starts(board, entrant.problem, d_search))
        found.append(("network, shaped", shaped, True))
    return found


def follow(crystal: Crystal, entrant: Entrant, starts: int, cycles: int) -> str:
    """A table's cells: starts solved at each check, processor seconds a start, score and R of solved and others."""
    began, used, solved = time.process_time(), 0.0, []
    x = entrant.starts(starts, torch.Generator().manual_seed(1))
    step = cycles // CHECKS
    for done in range(0, step * CHECKS, step):
        x = entrant.method.advance(x, step, done)
        half = entrant.method.estimate(x)
        used += time.process_time() - began
        right = agreements(crystal, entrant, half) >= SOLVED
        solved.append(str(int(right.sum())))
        began = time.process_time()
    score, residual = (v.cpu().numpy() for v in (entrant.problem.scores(half), entrant.problem.residuals(half)))
    means = [f"{v[part].mean():.2f}" if part.any() else "-" for v in (score, residual) for part in (right, ~right)]
    return " | ".join(
        [" ".join(solved), f"{used / starts:.2f}", f"{means[0]} / {means[1]}", f"{means[2]} / {means[3]}"]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--d-min", type=float, nargs="+", default=[1.2, 1.4])
    parser.add_argument("--atoms", type=int, default=50, help="in the cell")
    parser.add_argument("--group", default="P1", choices=["P1", "P21", "P212121"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="of the crystals")
    parser.add_argument("--starts", type=int, default=12)
    parser.add_argument("--cycles", type=int, default=80, help="of the network's methods; classical ones have 600")
    o = parser.parse_args()
    torch.set_num_threads(1)
    print("| crystal | method | solved at quarters | s a start | score, solved / not | R, solved / not |")
    print("|---|---|---|---|---|---|")
    for d_min in o.d_min:
        for seed in o.seeds:
            recipe = dense([((d_min, o.atoms, o.group, 0.05), 0)], 60.0, seed)[0]
            crystal = get(recipe)
            for name, entrant, learned in entrants_of(crystal):
                cells = follow(crystal, entrant, o.starts, o.cycles if learned else CLASSICAL_CYCLES)
                print(f"| {d_min:g} A, {o.atoms}, {o.group}, {seed} | {name} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
