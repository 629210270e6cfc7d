"""The frontier as a picture: solved fraction over resolution and size, one heat map an entrant."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ml_phaser.atomic import atomic

Segment = tuple[tuple[float, float], tuple[float, float]]


def fractions(cells: Sequence[dict[str, Any]], d_min: Sequence[float], atoms: Sequence[int]) -> NDArray[np.float64]:
    """Solved fraction (len(d_min), len(atoms)) of one entrant's cells, NaN where nothing was tried."""
    out = np.full((len(d_min), len(atoms)), np.nan)
    for c in cells:
        out[d_min.index(c["d_min"]), atoms.index(c["atoms"])] = c["solved"] / c["n"]
    return out


def border(solved: NDArray[np.float64], level: float = 0.5) -> list[Segment]:
    """Edges, ((x, y), (x, y)), between neighbours of which one is solved to ``level`` or more and the other is not.

    Cell (i, j) is the unit square about x = j, y = i. Cells with NaN have no border.
    """
    known, good = ~np.isnan(solved), np.nan_to_num(solved) >= level
    across = np.argwhere((good[:, 1:] != good[:, :-1]) & known[:, 1:] & known[:, :-1])
    down = np.argwhere((good[1:] != good[:-1]) & known[1:] & known[:-1])
    edges = [((j + 0.5, i - 0.5), (j + 0.5, i + 0.5)) for i, j in across.tolist()]
    return edges + [((j - 0.5, i + 0.5), (j + 0.5, i + 0.5)) for i, j in down.tolist()]


def frontier(cells: Sequence[dict[str, Any]], path: Path, title: str) -> None:
    """Draw the heat maps side by side into a PNG; numbers: crystals solved of those tried; line: one half."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.collections import LineCollection
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(c["entrant"] for c in cells))
    d_min, atoms = sorted({c["d_min"] for c in cells}), sorted({c["atoms"] for c in cells})
    figure = Figure(figsize=(1.5 + 3.6 * len(names), 0.9 + 0.5 * len(d_min)), layout="constrained")
    FigureCanvasAgg(figure)
    for place, name in enumerate(names):
        mine = [c for c in cells if c["entrant"] == name]
        solved = fractions(mine, d_min, atoms)
        axes = figure.add_subplot(1, len(names), place + 1)
        image = axes.imshow(solved, vmin=0, vmax=1, cmap="viridis", aspect="auto")
        for c in mine:
            i, j = d_min.index(c["d_min"]), atoms.index(c["atoms"])
            dark = solved[i, j] < 0.6
            axes.text(j, i, f"{c['solved']}/{c['n']}", ha="center", va="center", color="white" if dark else "black")
        axes.add_collection(LineCollection(border(solved), colors="red", linewidths=2.5))
        axes.set_xticks(range(len(atoms)), [str(n) for n in atoms])
        axes.set_yticks(range(len(d_min)), [f"{d:g}" for d in d_min])
        axes.set_xlabel("atoms in the cell")
        axes.set_title(name, fontsize=10)
        if place == 0:
            axes.set_ylabel("d_min (A)")
    figure.colorbar(image, ax=figure.axes, label="solved fraction")
    figure.suptitle(f"{title}; red: one half", fontsize=10)
    with atomic(path) as part:
        figure.savefig(part, dpi=100, format="png")
