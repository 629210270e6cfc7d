"""Markdown, and the numbers of a grid, out of rows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from benchmarks.phasing.statistics import bootstrap, exponent, wilson
from benchmarks.phasing.tasks import BREAKS, ORDER

SOLVED_CC = 0.7
HAND_MATTERS = 0.02  # difference of CC between the hands from which on one of them is wrong
CLASSICAL = "engine, no network"  # in names of entrants; the learned one is called the same without ", no network"
Row = dict[str, Any]

HOW = (
    "CC: correlation of the map of measured amplitudes and phases found (of the blob's own density, for the blob) with "
    "the true map, at the data's resolution, unweighted, best over the origins the group permits and both hands; "
    f"solved: CC >= {SOLVED_CC}. The row *random phases* is the chance level of the same search (mean of ten draws). "
    "An entrant without an answer counts as 0. Brackets: 95 % intervals (Wilson for fractions, bootstrap for means and "
    "medians). Seeds: true phases rounded to the middle of their quadrant for that share of the reflections with the "
    "largest E, imposed for the first half of a start's cycles: they show what good seeds are worth, and are no result."
)


def of(rows: Iterable[Row], **wanted: Any) -> list[Row]:
    """Rows with these values."""
    return [r for r in rows if all(r.get(k) == v for k, v in wanted.items())]


def order(rows: Iterable[Row], what: str) -> list[str]:
    """The values of a column, as first seen; tasks in the order of the recipes."""
    seen = list(dict.fromkeys(r[what] for r in rows))
    return sorted(seen, key=lambda t: ORDER.index(t) if t in ORDER else len(ORDER)) if what == "task" else seen


def number(x: float | None, digits: int = 2) -> str:
    return "-" if x is None or not math.isfinite(x) else f"{x:.{digits}f}"


def interval(pair: tuple[float, float], digits: int = 2) -> str:
    return "" if not math.isfinite(pair[0]) else f" [{pair[0]:.{digits}f}, {pair[1]:.{digits}f}]"


def table(head: Sequence[str], body: Iterable[Sequence[str]]) -> list[str]:
    clean = [[cell.replace("|", "/").replace("\n", " ") for cell in line] for line in body]
    return ["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *("| " + " | ".join(c) + " |" for c in clean)]


def ccs(rows: Iterable[Row]) -> list[float]:
    """Map correlations; an entrant without an answer has 0."""
    return [float(r.get("cc") or 0.0) for r in rows if r["status"] != "no crystal"]


def brief(rows: Sequence[Row]) -> str:
    """Median CC and how many of how many are solved."""
    cc = ccs(rows)
    if not cc:
        return "-"
    if not any("cc" in r for r in rows):
        return "no answer"
    return f"{np.median(cc):.2f} ({sum(c >= SOLVED_CC for c in cc)}/{len(cc)})"


def hands(rows: Iterable[Row]) -> tuple[int, int]:
    """Of the solved crystals that have a hand: how many maps are of the right one, and how many there are."""
    told = [r for r in rows if (r.get("cc") or 0.0) >= SOLVED_CC and (r.get("hand_margin") or 0.0) >= HAND_MATTERS]
    return sum(not r["inverted"] for r in told), len(told)


def solved(rows: Iterable[Row]) -> tuple[int, int]:
    """Crystals solved, and tried."""
    cc = ccs(rows)
    return sum(c >= SOLVED_CC for c in cc), len(cc)


def share(good: int, n: int) -> str:
    """A fraction with its interval."""
    return f"{good}/{n}{interval(wilson(good, n))}" if n else "-"


def cells(rows: list[Row]) -> list[Row]:
    """What was found in every cell of a grid of d_min x atoms, for each entrant."""
    found = []
    keys = sorted({(r["point"]["d_min"], r["point"]["atoms"]) for r in rows})
    for name in order(rows, "entrant"):
        for d_min, atoms in keys:
            mine = [r for r in of(rows, entrant=name) if (r["point"]["d_min"], r["point"]["atoms"]) == (d_min, atoms)]
            good, n = solved(mine)
            if n:
                right, handed = hands(mine)
                found.append({
                    "entrant": name, "d_min": d_min, "atoms": atoms, "solved": good, "n": n, "wilson": wilson(good, n),
                    "median_cc": median(ccs(mine)), "hand_right": right, "handed": handed,
                    "cpu": median([r["cpu"] for r in mine if "cpu" in r]),
                })  # fmt: skip
    return found


def comparison(found: list[Row]) -> dict[str, int]:
    """Cells where the classical engine solves less than half, what both solve in them all, and in how many of them the
    learned one solves at least twice as many (and one at least)."""
    classical = {(c["d_min"], c["atoms"]): c for c in found if CLASSICAL in c["entrant"]}
    learned = {(c["d_min"], c["atoms"]): c for c in found if CLASSICAL not in c["entrant"]}
    hard = [k for k, c in classical.items() if k in learned and c["solved"] < 0.5 * c["n"]]
    return {
        "cells": len(hard), "crystals": sum(classical[k]["n"] for k in hard),
        "classical": sum(classical[k]["solved"] for k in hard), "learned": sum(learned[k]["solved"] for k in hard),
        "twice": sum(learned[k]["solved"] >= max(1, 2 * classical[k]["solved"]) for k in hard),
    }  # fmt: skip


def overall(rows: list[Row], axis: str) -> list[str]:
    """Solved, hand, time: one line an entrant, a column for each value of an axis."""
    values = sorted({r["point"][axis] for r in rows})
    head = ["", *(f"{axis} {v:g}" for v in values), "all", "median CC", "hand right", "processor s", "of"]
    body = []
    for name in order(rows, "entrant"):
        mine = of(rows, entrant=name)
        parts = [share(*solved(r for r in mine if r["point"][axis] == v)) for v in values]
        cpu = [r["cpu"] for r in mine if "cpu" in r]
        body.append([
            name, *parts, share(*solved(mine)), number(median(ccs(mine))), share(*hands(mine)),
            f"{number(median(cpu), 1)} (most {number(max(cpu, default=None), 0)})",
            number(median([r["budget"] for r in mine]), 0),
        ])  # fmt: skip
    return table(head, body)


GRID_HOW = (
    "Cells: crystals solved of those tried. *hand right*: of the solved crystals, those whose map is not the mirror "
    "image of the truth. *processor s*: median and most; an engine that is sure stops early, one in the middle of "
    "finishing a solution goes on."
)


def seeds(rows: list[Row], record: dict[str, Any], title: str) -> str:
    """Solved fractions with seeds, by resolution, by size and by group, and every crystal."""
    lines = [f"# {title}", "", HOW, GRID_HOW, "", *told(record), "", "## By resolution", ""]
    lines += [*overall(rows, "d_min"), "", "## By atoms in the cell", "", *overall(rows, "atoms")]
    lines += ["", "## By group", "", *by_axis(rows, "group"), "", "## Every crystal", "", *by_crystal(rows)]
    return "\n".join(lines) + "\n"


def frontier(rows: list[Row], record: dict[str, Any], title: str) -> str:
    """Solved fractions over the grid of d_min and atoms, an entrant a table."""
    found = cells(rows)
    c = comparison(found)
    lines = [f"# {title}", "", HOW, GRID_HOW, "", *told(record), ""]
    lines += [
        f"Where the classical engine solves less than half ({c['cells']} cells, {c['crystals']} crystals): classical "
        f"{c['classical']}, learned {c['learned']}; the learned one at least twice as many in {c['twice']} cells.", "",
        *overall(rows, "d_min"), "", *overall(rows, "atoms"),
    ]  # fmt: skip
    sizes = sorted({x["atoms"] for x in found})
    for name in order(rows, "entrant"):
        mine = {(x["d_min"], x["atoms"]): x for x in of(found, entrant=name)}
        body = [
            [f"{d:g}", *(f"{x['solved']}/{x['n']} ({number(x['median_cc'])})" if (x := mine.get((d, n))) else "-"
                         for n in sizes)]
            for d in sorted({d for d, _ in mine})
        ]  # fmt: skip
        lines += ["", f"## {name}: solved (median CC)", "", *table(["A", *(f"{n} atoms" for n in sizes)], body)]
    return "\n".join(lines) + "\n"


def summary(rows: list[Row], record: dict[str, Any], title: str) -> str:
    """The short table, all tasks in one, and what it cost."""
    tasks, who = order(rows, "task"), order(rows, "entrant")
    lines = [f"Median map CC, and crystals solved (CC >= {SOLVED_CC}) of those tried. {title}", ""]
    body = [[name, *(brief(of(rows, task=t, entrant=name)) for t in tasks)] for name in who]
    lines += table(["", *tasks], body)
    return "\n".join(lines) + "\n"


def full(rows: list[Row], record: dict[str, Any], title: str) -> str:
    """All tables of a run over the tasks."""
    lines = [f"# Phasing benchmark: {title}", "", HOW, "", *told(record), "", "## All tasks", ""]
    lines += summary(rows, record, "").splitlines()
    for task in order(rows, "task"):
        lines += ["", f"## {task}", "", *task_table(of(rows, task=task))]
    dense = [r for r in rows if r["point"]]
    if dense:
        lines += ["", "## Dense peptides, by crystal", "", *by_crystal(dense)]
        for axis in ("d_min", "atoms", "group", "noise"):
            lines += ["", f"## Dense peptides, by {axis}", "", *by_axis(dense, axis)]
    sets = [r for r in rows if r["task"].startswith("measured")]
    if sets:
        lines += ["", "## Measured sets, by crystal", "", *by_crystal(sets)]
    lines += ["", "## Cost against the volume of the cell", "", *growth(rows)]
    return "\n".join(lines) + "\n"


def told(record: dict[str, Any]) -> list[str]:
    """What the run was, in a few lines."""
    s, m = record["settings"], record["machine"]
    lines = [
        f"- ml_phaser {record['version']}, weights {record['weights']['name']} {record['weights']['sha256'][:12]}, "
        f"seed {s['seed']}, {s['seconds']:g} processor seconds an entrant on a small cell (the tables name exceptions)",
        f"- {m['cores']} cores, {m['processor'] or m['architecture']}; {s['jobs']} units at a time",
    ]
    if "cpu_hours" in record:
        lines.append(
            f"- {record['cpu_hours']:.2f} processor hours in all, {record['unit_hours']:.2f} hours of units "
            f"on the clock, load {record['load'][0]:.1f} before"
        )
    return lines


def task_table(rows: list[Row]) -> list[str]:
    """One line an entrant."""
    head = (
        "entrant", "n", "solved", "median CC", "mean CC", "phase error", "by shell, low to high", "processor s",
        "of", "peak MB", "claims (wrong)", "remarks",
    )  # fmt: skip
    body = []
    for name in order(rows, "entrant"):
        mine = [r for r in of(rows, entrant=name) if r["status"] != "no crystal"]
        found = [r for r in mine if "cc" in r]
        cc = ccs(mine)
        solved = sum(c >= SOLVED_CC for c in cc)
        claims = [r for r in found if r.get("claimed")]
        wrong = sum(r["cc"] < 0.5 for r in claims)
        said = sorted({r["said"] for r in mine if "cc" not in r and r.get("said")})
        errors = [float(r["phase_error"]) for r in found]
        body.append([
            name, str(len(mine)), f"{solved}/{len(cc)}{interval(wilson(solved, len(cc)))}",
            number(median(cc)), f"{number(mean(cc))}{interval(bootstrap(cc))}",
            f"{number(mean(errors), 1)}{interval(bootstrap(errors), 0)}", by_shell(found),
            number(median([r["cpu"] for r in mine if "cpu" in r]), 1), number(median([r["budget"] for r in mine]), 0),
            number(max((r["peak_mb"] for r in mine if "peak_mb" in r), default=None), 0),
            f"{len(claims)} ({wrong})" if any(r.get("claimed") is not None for r in found) else "-",
            "; ".join(said)[:200],
        ])  # fmt: skip
    return table(head, body)


def median(x: Sequence[float]) -> float:
    return float(np.median(x)) if len(x) else math.nan


def mean(x: Sequence[float]) -> float:
    return float(np.mean(x)) if len(x) else math.nan


def by_shell(rows: Sequence[Row]) -> str:
    """Mean phase error of equally populated resolution shells, degrees."""
    found = [[s["phase_error"] for s in r["shells"]] for r in rows if r.get("shells")]
    if not found:
        return "-"
    most = max(map(len, found))
    means = np.mean([f for f in found if len(f) == most], axis=0)
    return " ".join(f"{m:.0f}" for m in means)


def by_crystal(rows: list[Row]) -> list[str]:
    """CC of each crystal and entrant."""
    who = order(rows, "entrant")
    body = []
    for name in order(rows, "crystal"):
        mine = of(rows, crystal=name)
        facts: Row = next((r["facts"] for r in mine if "facts" in r), {})
        cells = [next((number(r.get("cc")) for r in of(mine, entrant=w)), "-") for w in who]
        what = f"{facts.get('volume', math.nan):.0f} A^3, {facts.get('reflections', '-')} refl., {facts.get('group')}"
        body.append([name, what, *cells])
    return table(["crystal", "", *who], body)


def by_axis(rows: list[Row], axis: str) -> list[str]:
    """Solved fraction at each value of one axis, over all others."""
    values = sorted({r["point"][axis] for r in rows})
    body = [
        [name, *(brief([r for r in of(rows, entrant=name) if r["point"][axis] == v]) for v in values)]
        for name in order(rows, "entrant")
    ]
    return table(["", *(f"{v:g}" if isinstance(v, (int, float)) else v for v in values)], body)


def growth(rows: list[Row]) -> list[str]:
    """Exponents b of cost = a V^b: processor seconds a start, and memory the entrant adds to its process."""
    head = (
        "entrant",
        "crystals",
        "s a start at 1,000 A^3",
        "exponent of time",
        "MB at 1,000 A^3",
        "exponent of memory",
    )
    body = []
    for name in order(rows, "entrant"):
        mine = [r for r in of(rows, entrant=name) if r["status"] == "ok" and r.get("starts") and "facts" in r]
        volume = [r["facts"]["volume"] for r in mine]
        body.append([name, str(len(mine))])
        for cost in ([r["cpu"] / r["starts"] for r in mine], [r["grown_mb"] for r in mine]):
            b, low, high = exponent(volume, cost)
            near = at(volume, cost, 1000.0)
            body[-1] += [number(near, 3 if near < 1 else 1), f"{number(b)}{interval((low, high))}"]
    return table(head, body)


def at(size: Sequence[float], cost: Sequence[float], where: float) -> float:
    """The fitted cost at a size."""
    good = [(s, c) for s, c in zip(size, cost, strict=True) if s > 0 and c > 0]
    if len(good) < 3:
        return math.nan
    x, y = np.log(np.array(good)).T
    _, a = np.polyfit(x - math.log(where), y, 1)
    return float(np.exp(a))


def broken(rows: list[Row], record: dict[str, Any], title: str) -> str:
    """Where methods break: one table a parameter."""
    lines = [f"# Where they break: {title}", "", HOW, "", *told(record), ""]
    lines += [
        "Exact data of a molecule alone in its cell, harmed in one way at a time: *noise*, r.m.s. error of F relative "
        "to F; *solvent*, electrons/A^3 of flat bulk solvent (B 50 A^2) around the molecule; *low*, A, reflections "
        "beyond it missing; *completeness*, at random; *d_min*, A; *volume per atom*, A^3 of cell. Cells: median CC "
        "with its interval, and how many are solved."
    ]
    for task in order(rows, "task"):
        mine = of(rows, task=task)
        axis = next(iter(mine[0]["point"]))
        values = [v for v in BREAKS[axis] if any(r["point"][axis] == v for r in mine)]
        body = []
        for v in values:
            line = [f"{v:g}"]
            for name in order(mine, "entrant"):
                cc = ccs(r for r in of(mine, entrant=name) if r["point"][axis] == v)
                if not cc:
                    line.append("no crystal")
                    continue
                solved = sum(c >= SOLVED_CC for c in cc)
                line.append(f"{number(median(cc))}{interval(bootstrap(cc, np.median))} {solved}/{len(cc)}")
            body.append(line)
        lines += ["", f"## {task}", "", *table([axis, *order(mine, "entrant")], body)]
    return "\n".join(lines) + "\n"
