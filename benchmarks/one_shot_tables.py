"""The tables of benchmarks/one_shot.py for people."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

from benchmarks.one_shot_race import METHODS, SOLVED, summary

Row = dict[str, Any]


def number(x: float | None, digits: int) -> str:
    """A dash for what does not apply, "-" too for what was never reached."""
    return "-" if x is None or not math.isfinite(x) else f"{x:.{digits}f}"


def markdown(results: Row) -> str:
    """All tables."""
    lines = [
        "# One-shot networks",
        "",
        "Made by `python -m benchmarks.one_shot` ([what it does](../README.md#one_shotpy)), on "
        f"{results['run'].get('processor', 'an unknown processor')}.",
        "",
        *race(list(results["race"].values())),
        *latency(results["latency"]),
    ]
    for name, row in results["judged"].items():
        lines += [f"## {name}", "", f"Trained on {row['samples'] or 'an unknown number of'} samples.", "", row["table"]]
        if "published" in row:
            lines += ["On fragments of the published list of test ids:", "", row["published"]["table"]]
    return "\n".join(lines)


def race(rows: list[Row]) -> list[str]:
    """Network alone, classical, both."""
    if not rows:
        return []
    lines = [
        "## Network alone, classical, both",
        "",
        "Measured amplitudes with the phases found, at the best origin and hand; the answer is chosen by what the",
        "method can know, after the same processor seconds. *hand*: that of the truth. *reached*: crystals in which",
        f"some start came to a map correlation of {SOLVED:g}, median seconds until it did (the network's included;",
        "over all crystals), the number of that start, and the share of all starts that did. *to the network's CC*:",
        "median seconds to the correlation of the network alone, named in brackets.",
        "",
    ]
    groups: dict[tuple[str, float, float], list[Row]] = defaultdict(list)
    for row in rows:
        groups[row["family"], row["d_min"], row["limit"]].append(row)
    for (family, d_min, limit), some in groups.items():
        lines += [
            f"{family}, {d_min:g} A, {limit:g} s:",
            "",
            "| | crystals | CC | phase error | hand | seconds | reached | seconds to it | start | starts "
            "| to the network's CC |",
            "|---" * 11 + "|",
        ]
        own: dict[str, dict[str, float]] = defaultdict(dict)
        for r in some:
            if r["way"] == "alone":
                own[r["network"]][r["crystal"]] = r["cc"]
        networks = list(own)
        for network in networks:
            mine = [r for r in some if r.get("network") == network and r["way"] == "alone"]
            lines.append(line(f"{network}, alone", mine, limit, {}))
        for method in METHODS:
            every = [r for r in some if (r["way"], r["method"]) == ("random", method)]
            if every:
                lines.append(line(f"{method}, from random phases", every, limit, own))
            for network in networks:
                of = ("from the prediction", method, network)
                mine = [r for r in some if (r["way"], r["method"], r.get("network")) == of]
                if mine:
                    lines.append(
                        line(f"{method}, from the prediction of {network}", mine, limit, {network: own[network]})
                    )
        lines.append("")
    return lines


def line(title: str, rows: list[Row], limit: float, own: dict[str, dict[str, float]]) -> str:
    """One entrant. ``own`` : of each network it is compared with, the correlation it reached alone in each crystal."""
    s = summary(rows, limit, [1.0] * len(rows))
    to = []
    for network, reached_alone in own.items():
        shared = [r for r in rows if r["crystal"] in reached_alone]
        if shared:
            median = summary(shared, limit, [reached_alone[r["crystal"]] for r in shared])["to_network"]
            to.append(f"{number(median, 3)} ({network})")
    reached = "-" if s["reached"] is None else f"{s['reached']:.0%}"
    share = "-" if s["starts_solved"] is None else f"{s['starts_solved']:.0%}"
    cells = [
        str(s["n"]), f"{s['cc'][0]:.3f} ± {s['cc'][1]:.3f}", f"{s['error'][0]:.1f} ± {s['error'][1]:.1f}",
        f"{s['hand']:.0%}", number(s["seconds"], 3), reached, number(s["to_solved"], 3), number(s["first"], 0),
        share, "; ".join(to) or "-",
    ]  # fmt: skip
    return f"| {title} | {' | '.join(cells)} |"


def latency(rows: dict[str, Row]) -> list[str]:
    """Seconds of a prediction."""
    if not rows:
        return []
    names = list(dict.fromkeys(k for row in rows.values() for k in row if k.split()[0] in ("wall", "processor")))
    names.sort(key=lambda k: (int(k.split()[1]), k))
    return [
        "## One prediction",
        "",
        "Least of some repetitions, in seconds of wall clock and of all processors together, of one crystal; *wall",
        "8*: eight passes (blank where a pass takes more than 10 s). Untrained networks take the time of trained ones.",
        "",
        "| network | | M parameters | grid | threads | " + " | ".join(names) + " |",
        "|---" * (5 + len(names)) + "|",
        *(
            f"| {r['network']} | {r['what']} | {r['parameters'] / 1e6:.1f} | {'x'.join(map(str, r['grid']))} "
            f"| {r['threads']} | " + " | ".join(number(r.get(k), 3) if k in r else "" for k in names) + " |"
            for r in rows.values()
        ),
        "",
    ]
