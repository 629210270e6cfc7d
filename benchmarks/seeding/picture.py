"""Solved fraction over the share of seeds and, where the seeds are noisy, the map CC: a panel for each engine, with
seeds held and not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.phasing.statistics import wilson
from benchmarks.phasing.tables import SOLVED_CC, ccs, solved
from benchmarks.seeding.design import BANDS, ENGINES, NOISE_D_MIN, NOISE_SHARES, NOISES, SHARES
from benchmarks.seeding.tables import HELD, Row, of
from ml_phaser.atomic import atomic

BLUES, REDS = ("#08306b", "#2f7fbc", "#74b6dd"), ("#67000d", "#cb2a1f", "#f4793b", "#f5b13d")
POOLED = "#555555"
BARS_FROM = 4  # runs at a point: intervals of fewer fill the panel, and are in the tables
DODGE = 0.1  # between curves, so that they can be told apart


def curve(rows: Sequence[Row], shares: Sequence[float]) -> list[tuple[float, int, int]]:
    """(share, solved, tried) wherever anything was tried."""
    found = [(s, *solved(of(rows, share=s))) for s in shares]
    return [(s, good, n) for s, good, n in found if n]


def places(number: int, count: int, shares: Sequence[float], ticks: Sequence[float]) -> list[float]:
    """Where the points of curve ``number`` of ``count`` stand."""
    return [ticks.index(s) + DODGE * (number - (count - 1) / 2) for s in shares]


def line(axes: Any, x: Sequence[float], y: Sequence[float], colour: str, label: str) -> None:
    axes.plot(x, y, marker="o", markersize=4.5, color=colour, label=label, linewidth=1.8)


def fractions(axes: Any, rows: Sequence[Row]) -> None:
    """Solved fraction, a curve for each band of resolution and one for all, with 95 % intervals."""
    ticks = (0.0, *SHARES)
    parts = [(name, of(rows, d_min=d)) for name, d in BANDS]
    for number, ((name, mine), colour) in enumerate(zip([*parts, ("all", rows)], [*BLUES, POOLED], strict=True)):
        points = curve(mine, ticks)
        x = places(number, len(BANDS) + 1, [s for s, _, _ in points], ticks)
        barred = [(at, *wilson(good, n)) for at, (_, good, n) in zip(x, points, strict=True) if n >= BARS_FROM]
        if barred:
            axes.vlines(*zip(*barred, strict=True), color=colour, alpha=0.35, linewidth=1.4)
        line(axes, x, [good / n for _, good, n in points], colour, name)
    dressed(axes, ticks)


def correlations(axes: Any, rows: Sequence[Row]) -> None:
    """Median map CC, a curve for each noise; dashed: from where on a map counts as solved."""
    axes.axhline(SOLVED_CC, color=POOLED, linestyle="--", linewidth=1.0)
    for number, (noise, colour) in enumerate(zip((0.0, *NOISES), REDS, strict=True)):
        parts = [(s, of(rows, noise=noise, share=s)) for s in NOISE_SHARES]
        parts = [(s, mine) for s, mine in parts if mine]
        x = places(number, len(NOISES) + 1, [s for s, _ in parts], NOISE_SHARES)
        line(axes, x, [float(np.median(ccs(mine))) for _, mine in parts], colour, f"{noise:g} deg")
    dressed(axes, NOISE_SHARES)


def dressed(axes: Any, ticks: Sequence[float]) -> None:
    axes.set_xticks(range(len(ticks)), [f"{s:.0%}" for s in ticks])
    axes.set_xlim(-0.4, len(ticks) - 0.6)
    axes.set_ylim(-0.04, 1.04)
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def drawn(rows: Sequence[Row], path: Path) -> None:
    """The picture, PNG, of the small crystals in ``rows`` (as ``tables.flat`` gives them)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    small = of(rows, size="small")
    figure = Figure(figsize=(12.5, 6.0), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(2, 4, sharey="row")
    for column, (engine, held) in enumerate((e, h) for e in ENGINES for h in (False, True)):
        mine = of(small, engine=engine, held=held)
        fractions(grid[0, column], of(mine, noise=0.0))
        correlations(grid[1, column], of(mine, d_min=NOISE_D_MIN))
        grid[0, column].set_title(f"{engine}, {HELD[held]}", fontsize=11)
        grid[1, column].set_xlabel("reflections with a seed")
    grid[0, 0].set_ylabel("solved fraction, true quadrants")
    grid[1, 0].set_ylabel(f"median map CC, noise added\n({BANDS[1][0]})")
    for row, title in enumerate(("resolution", "noise")):
        grid[row, -1].legend(title=title, frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5))
    crystals = len({r["crystal"].split(", ", 1)[1] for r in small})
    said = f"Seeds with true phases, {crystals} small crystals; solved: map CC >= {SOLVED_CC} (dashed)"
    figure.suptitle(f"{said}; bars: 95 % intervals from {BARS_FROM} runs on", fontsize=11)
    with atomic(path) as part:
        figure.savefig(part, dpi=88, format="png")
