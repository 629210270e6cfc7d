"""Pictures of a run for its report: record and maps to SVG whose colours the page decides.

matplotlib draws with a few stand-in colours, which become variables of the page's style sheet, so that one picture
suits light and dark.
"""

from __future__ import annotations

import io
import logging
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gemmi
import numpy as np
from numpy.typing import NDArray

from ml_phaser.crystal.patterson import harker_sections

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Record = dict[str, Any]
Floats = NDArray[np.float64]

# Stand-ins, and the style sheet's variables they become.
INK, SOFT, FAINT = "#010101", "#020202", "#030303"
SERIES = tuple(f"#0404{i:02x}" for i in range(1, 9))
VARIABLES = {INK: "ink", SOFT: "soft", FAINT: "faint"} | {colour: f"series-{i}" for i, colour in enumerate(SERIES)}
MARKERS = "os^DvPX*"
POSITIVE, NEGATIVE = (43, 108, 176), (192, 86, 33)  # of density; between the page's two backgrounds in lightness

PIXELS = 260  # along the longer side of a section
SLAB = 2.0  # A to either side of the section through the highest peak
FAINTEST = 0.5  # sigma from which on density is coloured
LEVELS = {  # sigma, of contours
    "density": (1.5, 3.0, 6.0, 12.0, 24.0, 48.0),
    "patterson": (1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0),
}
MOST_HARKER = 3
FONT = "DejaVu Sans"  # comes with matplotlib; the page puts its own in the place
FLAT = 0.25  # ratio of a section's axes
MANY = 500  # points from which on a plot of them is a pixel image inside the SVG
AXES = ("a", "b", "c")
ANGLES = (3, 4, 5)  # of the cell, opposite to each axis


@dataclass(frozen=True)
class Picture:
    """One picture: ``svg`` an element ready to stand in a page, ``alt`` what it shows for those who cannot see it,
    ``caption`` what all should read beside it, ``group`` where it belongs: "density", "patterson", "starts" or
    "statistics"."""

    svg: str
    alt: str
    caption: str
    group: str


def draw(record: Record, rho: Floats | None = None, patterson: Floats | None = None) -> tuple[Picture, ...]:
    """All pictures the facts allow.

    Parameters
    ----------
    record : of a finished run (``report.record.run_record``)
    rho, patterson : maps [u, v, w] of the whole cell: density; Patterson function without its origin peak
    """
    import matplotlib

    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it would tell users about its caches
    style = {
        "svg.fonttype": "none", "svg.hashsalt": "ml_phaser", "text.parse_math": False, "font.family": [FONT],
        "font.size": 8.5, "text.color": INK, "axes.edgecolor": SOFT, "axes.labelcolor": INK, "xtick.color": SOFT,
        "ytick.color": SOFT, "xtick.labelcolor": INK, "ytick.labelcolor": INK, "axes.linewidth": 0.7,
        "xtick.major.width": 0.7, "ytick.major.width": 0.7, "axes.spines.top": False, "axes.spines.right": False,
        "axes.titlesize": 8.5, "legend.frameon": False, "figure.facecolor": "none", "axes.facecolor": "none",
        "savefig.facecolor": "none", "axes.grid": False, "path.simplify": True, "path.simplify_threshold": 0.3,
    }  # fmt: skip
    drawn: list[Picture | None] = []
    with matplotlib.rc_context(style):  # type: ignore[arg-type]
        if rho is not None and np.ptp(rho) > 0:
            drawn += density_pictures(rho, record["cell"])
        if patterson is not None and np.ptp(patterson) > 0:
            drawn += patterson_pictures(patterson, record["cell"], record["spacegroup"])
        drawn += [scores(record), by_resolution(record), reliability(record), wilson(record), histogram(record)]
    return tuple(picture for picture in drawn if picture is not None)


# ------------------------------------------------------------------------------------------- sections


@dataclass(frozen=True, eq=False)
class Section:
    """A plane of a map on a cartesian raster: ``values`` (ny, nx), NaN outside the cell; ``extent`` (left, right,
    bottom, top) in A; ``across``, ``up`` its cell axes (0-2), their lengths in A and the ``angle`` between them in
    degrees."""

    values: Floats
    extent: tuple[float, float, float, float]
    across: int
    up: int
    lengths: tuple[float, float]
    angle: float


def raster(plane: Floats, axes: tuple[int, int], cell: Sequence[float], pixels: int = PIXELS) -> Section:
    """One cell of a periodic ``plane`` (n, m), along the cell axes ``axes``, in its true proportions; the longer axis
    runs across."""
    from scipy.ndimage import map_coordinates

    if cell[axes[0]] < cell[axes[1]]:
        plane, axes = plane.T, (axes[1], axes[0])
    across, up = axes
    angle = cell[ANGLES[3 - across - up]]
    p, q = cell[across], cell[up]
    lean, height = q * math.cos(math.radians(angle)), q * math.sin(math.radians(angle))
    left, right = min(0.0, lean), p + max(0.0, lean)
    step = max(right - left, height) / pixels
    x = np.arange(left + step / 2, right, step)
    y = np.arange(step / 2, height, step)
    t = np.broadcast_to((y / height)[:, None], (len(y), len(x)))
    s = (x[None, :] - t * lean) / p
    values = map_coordinates(plane, [s * plane.shape[0], t * plane.shape[1]], order=3, mode="grid-wrap")
    values = np.where((s >= 0) & (s <= 1), values, np.nan)
    return Section(values, (left, right, 0.0, height), across, up, (p, q), angle)


def plane_at(rho: Floats, axis: int, fraction: float) -> Floats:
    """Plane of a map at a fraction of an axis, linear between the grid's planes; the two other axes in order."""
    n = rho.shape[axis]
    low = math.floor(fraction * n)
    part = fraction * n - low
    below, above = (np.take(rho, (low + i) % n, axis=axis) for i in (0, 1))
    return np.asarray((1 - part) * below + part * above, dtype=np.float64)


def others(axis: int) -> tuple[int, int]:
    """The two other axes, in order."""
    first, second = (i for i in range(3) if i != axis)
    return first, second


def shortest_axis(cell: Sequence[float]) -> int:
    """The one to look along: the picture is largest across it."""
    return int(np.argmin(cell[:3]))


def density_pictures(rho: Floats, cell: Sequence[float]) -> list[Picture]:
    """The section through the highest peak, and the highest density in a slab around it."""
    axis = shortest_axis(cell)
    unit = (rho - rho.mean()) / rho.std()
    peak = np.unravel_index(int(np.argmax(unit)), unit.shape)
    fraction = peak[axis] / unit.shape[axis]
    planes = max(1, round(SLAB / cell[axis] * unit.shape[axis]))
    around = np.arange(peak[axis] - planes, peak[axis] + planes + 1) % unit.shape[axis]
    slab = np.take(unit, np.unique(around), axis=axis).max(axis=axis)
    whole = 2 * planes + 1 >= unit.shape[axis]
    depth = "the whole cell" if whole else f"{2 * SLAB:.0f} A around that section"
    plane = f"{AXES[axis]} = {fraction:.2f}"
    high = f"{float(unit.max()):.1f} sigma"
    return [
        section_picture(
            "density-section", raster(plane_at(unit, axis, fraction), others(axis), cell), "density",
            f"Section {plane}, through the highest peak ({high})",
        ),
        section_picture(
            "density-slab", raster(slab, others(axis), cell), "density",
            f"Highest density along {AXES[axis]} in {depth}",
        ),
    ]  # fmt: skip


def patterson_pictures(patterson: Floats, cell: Sequence[float], group: str) -> list[Picture]:
    """Harker sections; in groups without them, the section through the highest peak."""
    unit = (patterson - patterson.mean()) / patterson.std()
    harker = harker_sections(gemmi.SpaceGroup(group))[:MOST_HARKER]
    if harker:
        return [
            section_picture(
                f"harker-{axis}-{i}", raster(plane_at(unit, axis, fraction), others(axis), cell), "patterson",
                f"Harker section {'uvw'[axis]} = {fraction:.4g}",
            )
            for i, (axis, fraction) in enumerate(harker)
        ]  # fmt: skip
    axis = shortest_axis(cell)
    peak = np.unravel_index(int(np.argmax(away_from_origin(unit, cell))), unit.shape)
    fraction = peak[axis] / unit.shape[axis]
    said = f"Section {'uvw'[axis]} = {fraction:.2f}, through the highest peak; the group has no Harker sections"
    section = raster(plane_at(unit, axis, fraction), others(axis), cell)
    return [section_picture("patterson-section", section, "patterson", said)]


def away_from_origin(unit: Floats, cell: Sequence[float], radius: float = 1.0) -> Floats:
    """The map with the lattice points' surroundings (``radius`` in A along each axis) set to zero."""
    near = np.ones(unit.shape, dtype=bool)
    for axis, n in enumerate(unit.shape):
        steps = np.minimum(np.arange(n), n - np.arange(n)) * cell[axis] / n
        near &= (steps <= radius).reshape([-1 if i == axis else 1 for i in range(3)])
    return np.where(near, 0.0, unit)


def coloured(values: Floats) -> NDArray[np.uint8]:
    """RGBA (ny, nx, 4) of a map in units of sigma: the colour tells the sign, the opacity (in few steps, which makes
    small files) the height, so that it stands on any background."""
    z = np.nan_to_num(values)
    top = max(4.0, 0.7 * float(np.abs(z).max()))
    alpha = np.clip((np.abs(z) - FAINTEST) / (top - FAINTEST), 0, 1) ** 0.6
    rgb = np.where((z >= 0)[..., None], POSITIVE, NEGATIVE)
    return np.dstack([rgb, 5 * np.round(47 * alpha)]).astype(np.uint8)


def section_picture(name: str, section: Section, group: str, title: str) -> Picture:
    """A section with contours, the cell's outline and its axes."""
    left, right, _, height = section.extent
    width, beside, below, around = 3.6, 0.4, 0.35, 0.04  # inches
    tall = (width - beside - around) * height / (right - left) + below + around
    fig = figure(width, tall)
    ax = fig.add_axes((beside / width, below / tall, 1 - (beside + around) / width, 1 - (below + around) / tall))
    # not interpolated: the browser smooths, and the file stays small
    ax.imshow(coloured(section.values), extent=section.extent, origin="lower", interpolation="none")
    highest = float(np.nanmax(section.values))
    levels = [level for level in LEVELS[group] if level < highest]
    if levels:
        ny, nx = section.values.shape
        x, y = np.linspace(left, right, nx), np.linspace(0, height, ny)
        ax.contour(x, y, section.values, levels=levels, colors=INK, linewidths=0.5)
    outline(ax, section)
    said = ", ".join(f"{level:g}" for level in levels)
    contours = f"Contours at {said} sigma." if levels else f"Nothing reaches {LEVELS[group][0]:g} sigma."
    alt = f"{title}. Highest value {highest:.1f} sigma, lowest {float(np.nanmin(section.values)):.1f}."
    return Picture(svg(fig, name, alt), alt, f"{title}. {contours}", group)


def outline(ax: Axes, section: Section) -> None:
    """The cell's edges with ticks at quarters, and the names and lengths of its axes."""
    (p, q), angle = section.lengths, math.radians(section.angle)
    lean, height = q * math.cos(angle), q * math.sin(angle)
    ax.plot([0, p, p + lean, lean, 0], [0, 0, height, height, 0], color=SOFT, linewidth=0.8)
    tick = 0.015 * max(section.extent[1] - section.extent[0], height)
    for part in (0.25, 0.5, 0.75):
        ax.plot([part * p] * 2, [0, -tick], color=SOFT, linewidth=0.7, clip_on=False)
        ax.plot([part * lean - tick, part * lean], [part * height] * 2, color=SOFT, linewidth=0.7, clip_on=False)
    below, beside = f"{AXES[section.across]}, {p:.2f} A", f"{AXES[section.up]}, {q:.2f} A"
    if q < FLAT * p:  # no room for a length along it
        below, beside = f"{below} (up: {beside})", AXES[section.up]
    ax.text(p / 2, -2.2 * tick, below, ha="center", va="top")
    ax.text(
        lean / 2 - 2.5 * tick, height / 2, beside, ha="center", va="bottom", rotation=section.angle,
        rotation_mode="anchor",
    )  # fmt: skip
    ax.set_xlim(section.extent[0], section.extent[1])
    ax.set_ylim(0, height)
    ax.set_aspect("equal")
    ax.set_axis_off()


# --------------------------------------------------------------------------------------------- graphs


def scores(record: Record) -> Picture | None:
    """Held-out correlation of every start in the order they were made."""
    trials = [t for t in record["trials"] if t["score"] is not None]
    if not trials:
        return None
    from matplotlib.ticker import MaxNLocator

    fig = figure(8.0, 2.9)
    ax = fig.add_axes((0.09, 0.17, 0.68, 0.78))
    methods = list(dict.fromkeys(t["method"] for t in trials))
    many = len(trials) > MANY
    for i, method in enumerate(methods):
        colour, marker = SERIES[i % len(SERIES)], MARKERS[i % len(MARKERS)]
        for finished in (True, False):
            some = [t for t in trials if t["method"] == method and t["finished"] == finished]
            ax.plot([t["index"] + 1 for t in some], [t["score"] for t in some], linestyle="none", marker=marker,
                    markersize=4 if many else 5.5, markeredgecolor=colour, markeredgewidth=1, rasterized=many,
                    markerfacecolor=colour if finished else "none")  # fmt: skip
        ax.plot([], [], linestyle="none", marker=marker, color=colour, label=method)
    held = record["n_held"]
    if held:
        chance = 2 / math.sqrt(held)
        ax.axhspan(-chance, chance, facecolor=FAINT, edgecolor="none", zorder=0)
        ax.axhline(0, color=SOFT, linewidth=0.6, zorder=0)
    best = next((t for t in trials if t["index"] == record["best_trial"]), None)
    if best is not None:
        ax.plot(best["index"] + 1, best["score"], marker="o", markersize=13, markerfacecolor="none", color=INK)
        word = "solution" if record["verdict"]["word"] == "solved" else "taken"
        ax.annotate(word, (best["index"] + 1, best["score"]), (10, 0), textcoords="offset points", va="center")
    ax.set_xlabel("start")
    ax.set_ylabel("CC, held-out")
    last = max(t["index"] for t in record["trials"]) + 1
    ax.set_xlim(0.5 - 0.01 * last, last + 0.5 + 0.06 * last)
    ax.set_ylim(min(-0.2, *(t["score"] for t in trials)) - 0.05, max(0.5, *(t["score"] for t in trials)) + 0.08)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), handletextpad=0.2, labelspacing=0.7)
    top = max(t["score"] for t in trials)
    alt = f"Correlation on held-out reflections of {len(trials)} starts; the highest is {top:.2f}."
    if held:
        alt += f" Wrong solutions lie mostly within {chance:.2f} of zero."
    caption = "Correlation on the reflections kept out of the phasing, in the order of the starts. Filled: refined in "
    caption += "the space group. Ring: the one whose phases are written."
    if held:
        caption += f" Band: chance, two standard errors of {held} reflections about zero."
    return Picture(svg(fig, "starts", alt), alt, caption, "starts")


def by_resolution(record: Record) -> Picture | None:
    """Figure of merit and held-out correlation of the shells."""
    shells = record["shells"]
    if not shells:
        return None
    x = [0.5 * (s["d_max"] ** -2 + s["d_min"] ** -2) for s in shells]
    fig, ax = small()
    ax.plot(x, numbers(s["fom"] for s in shells), color=SERIES[0], marker="o", markersize=3.5, label="FOM")
    cc = numbers(s["cc_free"] for s in shells)
    ax.plot(x, cc, color=SERIES[1], marker="s", markersize=3.5, linestyle="--", label="CC, held-out")
    ax.set_ylim(min(0.0, float(np.nanmin([*cc, 0.0]))) - 0.02, 1.02)
    ax.legend(loc="best", fontsize=8)
    along_resolution(ax, shells)
    alt = f"Mean figure of merit from {shells[0]['fom']:.2f} at low to {shells[-1]['fom']:.2f} at high resolution."
    said = "Mean figure of merit, and correlation on held-out reflections where a shell has enough of them."
    return Picture(svg(fig, "resolution", alt), alt, said, "statistics")


def reliability(record: Record) -> Picture | None:
    """What figures of merit like those written kept on crystals of known structure."""
    bins = record["calibration"]
    if not bins:
        return None
    fig, ax = small()
    ax.plot((0, 1), (0, 1), color=SOFT, linestyle="--", linewidth=1)
    fom, cos = [b["fom"] for b in bins], [b["cos"] for b in bins]
    ax.plot(fom, cos, color=SERIES[0], marker="o", markersize=3.5)
    ax.set_xlim(0, 1)
    ax.set_ylim(min(0.0, *cos) - 0.02, 1.02)
    ax.set_xlabel("figure of merit")
    ax.set_ylabel("mean cosine of phase error")
    gap = sum(b["n"] * abs(b["fom"] - b["cos"]) for b in bins) / sum(b["n"] for b in bins)
    alt = (
        f"Figures of merit of simulated crystals differed from the cosine of the phase error by {gap:.2f} in the mean."
    )
    said = (
        f"How figures of merit were calibrated: what they promised and kept on {sum(b['n'] for b in bins)} reflections "
    )
    said += f"of simulated crystals that had no part in it; mean difference {gap:.3f}. Dashed: kept to the letter."
    return Picture(svg(fig, "reliability", alt), alt, said, "statistics")


def wilson(record: Record) -> Picture | None:
    """ln of the mean intensity over resolution."""
    shells = [s for s in (record["wilson"] or {}).get("shells", ()) if s.get("ln_mean_i") is not None]
    if not shells:
        return None
    x = [0.5 * (s["d_max"] ** -2 + s["d_min"] ** -2) for s in shells]
    fig, ax = small()
    ax.plot(x, [s["ln_mean_i"] for s in shells], color=SERIES[2], marker="^", markersize=4)
    ax.set_ylabel("ln mean I")
    along_resolution(ax, shells)
    b = record["wilson"]["wilson_b"]
    alt = f"Wilson plot: ln of the mean intensity from {shells[0]['ln_mean_i']:.1f} to {shells[-1]['ln_mean_i']:.1f}."
    return Picture(svg(fig, "wilson", alt), alt, f"Wilson plot of the data; B {b:.1f} A².", "statistics")


def histogram(record: Record) -> Picture | None:
    """Spread of the density values beside that of noise."""
    density = record["density"]
    if density is None:
        return None
    edges, counts = np.array(density["histogram"]["edges"]), np.array(density["histogram"]["counts"], dtype=float)
    fig, ax = small()
    ax.stairs(np.maximum(counts, 0.5), edges, baseline=0.5, fill=True, facecolor=SERIES[0], edgecolor="none", alpha=0.6)
    middle = (edges[1:] + edges[:-1]) / 2
    noise = counts.sum() * np.diff(edges) * np.exp(-(middle**2) / 2) / math.sqrt(2 * math.pi)
    seen = noise >= 0.5
    ax.plot(middle[seen], noise[seen], color=INK, linestyle="--", linewidth=1, label="noise")
    ax.set_yscale("log")
    ax.set_ylim(0.5, counts.max() * 2)
    powers = range(math.ceil(math.log10(counts.max() * 2)))
    ax.set_yticks([10.0**power for power in powers], [f"{10**power}" for power in powers])
    ax.minorticks_off()
    ax.set_xlabel("density, sigma")
    ax.set_ylabel("grid points")
    ax.legend(loc="upper right", fontsize=8)
    alt = f"Histogram of the density from {edges[0]:.0f} to {edges[-1]:.0f} sigma, skewness {density['skewness']:.1f}."
    said = (
        f"Density values of the map; skewness {density['skewness']:.1f}. Dashed: noise of the same sigma. Atoms make "
    )
    said += "the long tail on the right."
    return Picture(svg(fig, "histogram", alt), alt, said, "statistics")


def numbers(values: Any) -> list[float]:
    """With NaN for what is null in the record."""
    return [math.nan if value is None else float(value) for value in values]


def along_resolution(ax: Axes, shells: Sequence[Record]) -> None:
    """A horizontal axis linear in 1/d^2 that reads in A."""
    low, high = shells[0]["d_max"] ** -2, shells[-1]["d_min"] ** -2
    ticks = [
        d for d in (10, 5, 3, 2.5, 2, 1.6, 1.4, 1.2, 1.1, 1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4) if d**-2 <= high * 1.001
    ]
    spaced: list[float] = []
    for d in ticks:  # room for each number
        if d**-2 >= low and (not spaced or d**-2 - spaced[-1] ** -2 > 0.11 * (high - low)):
            spaced.append(d)
    ax.set_xticks([d**-2 for d in spaced], [f"{d:g}" for d in spaced])
    ax.set_xlim(min(low, 0.98 * high), high * 1.02)
    ax.set_xlabel("resolution, A")


# ------------------------------------------------------------------------------------------------ SVG


def figure(width: float, height: float) -> Figure:
    """An empty figure; sizes in inches."""
    from matplotlib.figure import Figure

    return Figure((width, height))


def small() -> tuple[Figure, Axes]:
    """A figure for one graph of a row of three."""
    fig = figure(3.1, 2.4)
    return fig, fig.add_axes((0.17, 0.19, 0.8, 0.77))


def svg(fig: Figure, name: str, alt: str) -> str:
    """The figure as an SVG element for a page: short numbers, ids that begin with ``name``, the page's colours and
    font."""
    buffer = io.StringIO()
    fig.savefig(buffer, format="svg", dpi=150, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"\s*<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", text)
    text = re.sub(r'(?<= d=")[^"]*', lambda path: re.sub(r"\d+\.\d+", _short, path[0]), text)
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, f"var(--{variable})")
    text = text.replace(f"'{FONT}'", "var(--font)")
    view = re.search(r'viewBox="[^"]*"', text)
    assert view is not None
    opening = f'<svg {view[0]} role="img" aria-label="{_escaped(alt)}" xmlns:xlink="http://www.w3.org/1999/xlink">'
    return opening + text[text.index(">") + 1 :].strip()


def _short(number: re.Match[str]) -> str:
    return f"{float(number[0]):.1f}"


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
