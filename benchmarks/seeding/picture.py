"""Solved fraction over the share of seeds, one panel for each engine with seeds held and not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.phasing.statistics import wilson
from benchmarks.phasing.tables import SOLVED_CC, solved
from benchmarks.seeding.design import BANDS, ENGINES, NOISE_D_MIN, NOISE_SHARES, NOISES, SHARES
from benchmarks.seeding.tables import HELD, Row, of
from ml_phaser.atomic import atomic

BLUES, REDS = ("#08306b", "#2f7fbc", "#74b6dd"), ("#67000d", "#cb2a1f", "#f4793b", "#f5b13d")
DODGE = 0.07  # between curves, so that their bars can be told apart


def curve(rows: Sequence[Row], shares: Sequence[float]) -> list[tuple[float, int, int]]:
    """(share, solved, tried) wherever anything was tried."""
    found = [(s, *solved(of(rows, share=s))) for s in shares]
    return [(s, good, n) for s, good, n in found if n]


def panel(axes: Any, curves: Sequence[tuple[str, str, list[tuple[float, int, int]]]], ticks: Sequence[float]) -> None:
    """Curves (label, colour, points) with their 95 % intervals over the shares ``ticks``, evenly spaced."""
    for number, (label, colour, points) in enumerate(curves):
        shift = DODGE * (number - (len(curves) - 1) / 2)
        x = [ticks.index(s) + shift for s, _, _ in points]
        y = [good / n for _, good, n in points]
        low, high = zip(*(wilson(good, n) for _, good, n in points), strict=True) if points else ((), ())
        axes.vlines(x, low, high, color=colour, alpha=0.35, linewidth=1.2)
        axes.plot(x, y, marker="o", markersize=4.5, color=colour, label=label, linewidth=1.8)
    axes.set_xticks(range(len(ticks)), [f"{s:.0%}" for s in ticks])
    axes.set_xlim(-0.35, len(ticks) - 0.65)
    axes.set_ylim(-0.03, 1.03)
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def drawn(rows: Sequence[Row], path: Path) -> None:
    """The picture, PNG: above curves by resolution with true quadrants, below by noise, small crystals."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    small = of(rows, size="small")
    crystals = len({r["crystal"].split(", ", 1)[1] for r in small})
    figure = Figure(figsize=(12.5, 6.0), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(2, 4, sharey=True)
    for column, (engine, held) in enumerate((e, h) for e in ENGINES for h in (False, True)):
        mine = of(small, engine=engine, held=held)
        exact = of(mine, noise=0.0)
        by_d = [
            (name, colour, curve(of(exact, d_min=d), (0.0, *SHARES)))
            for (name, d), colour in zip(BANDS, BLUES, strict=True)
        ]
        panel(grid[0, column], by_d, (0.0, *SHARES))
        some = of(mine, d_min=NOISE_D_MIN)
        by_noise = [
            (f"{noise:g} deg", colour, curve(of(some, noise=noise), NOISE_SHARES))
            for noise, colour in zip((0.0, *NOISES), REDS, strict=True)
        ]
        panel(grid[1, column], by_noise, NOISE_SHARES)
        grid[0, column].set_title(f"{engine}, {HELD[held]}", fontsize=11)
        grid[1, column].set_xlabel("reflections with a seed")
    grid[0, 0].set_ylabel("solved, true quadrants")
    grid[1, 0].set_ylabel(f"solved, noise added ({BANDS[1][0]})")
    for row, title in enumerate(("resolution", "noise")):
        grid[row, -1].legend(title=title, frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5))
    said = f"Crystals solved (map CC >= {SOLVED_CC}) against seeds given"
    figure.suptitle(f"{said}; {crystals} crystals a point, bars: 95 % intervals", fontsize=11)
    with atomic(path) as part:
        figure.savefig(part, dpi=95, format="png")
