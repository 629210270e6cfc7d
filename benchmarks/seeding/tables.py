"""Rows into counts, counts into Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from benchmarks.phasing.statistics import bootstrap, wilson
from benchmarks.phasing.tables import SOLVED_CC, ccs, interval, number, share, solved, table
from benchmarks.seeding.design import (
    BANDS,
    D_MIN,
    ENGINES,
    LARGE_D_MIN,
    LARGE_SHARES,
    NOISE_D_MIN,
    NOISE_SHARES,
    NOISES,
    SHARES,
    SIZES,
    every,
)  # fmt: skip
from benchmarks.seeding.own import RANDOM

Row = dict[str, Any]
KEPT = ("unit", "task", "crystal", "entrant", "point", "budget", "status", "said", "starts", "score", "claimed", "cc",
        "phase_error", "cpu")  # fmt: skip
EVERY_D = tuple(sorted(d for row in D_MIN for d in row))
HELD = {True: "held", False: "start only"}


def slim(row: Row) -> Row:
    """A row without what the tables do not use."""
    return {k: row[k] for k in KEPT if k in row}


def flat(rows: Iterable[Row]) -> list[Row]:
    """Rows with what they were given and to which crystal; others are left out."""
    known = every()
    return [
        {**r, **vars(known[r["entrant"]]), "size": r["point"]["size"], "d_min": r["point"]["d_min"]}
        for r in rows
        if r["entrant"] in known and r["status"] != "no crystal"
    ]


def of(rows: Iterable[Row], **wanted: Any) -> list[Row]:
    """Rows with these values, or with one of them where a tuple is given; random starts count as held and as not."""

    def fits(row: Row, key: str, value: Any) -> bool:
        if key == "held" and not row["share"]:
            return True
        return row[key] in value if isinstance(value, tuple) else bool(row[key] == value)

    return [r for r in rows if all(fits(r, k, v) for k, v in wanted.items())]


def cells(rows: Sequence[Row]) -> list[Row]:
    """Solved fraction with its interval for every size, resolution and treatment."""
    found = []
    keys = dict.fromkeys((r["size"], r["d_min"], r["entrant"]) for r in rows)
    for size, d_min, name in keys:
        mine = [r for r in rows if (r["size"], r["d_min"], r["entrant"]) == (size, d_min, name)]
        good, n = solved(mine)
        found.append({
            "size": size, "d_min": d_min, **vars(every()[name]), "solved": good, "n": n, "wilson": wilson(good, n),
            "median_cc": float(np.median(ccs(mine))),
        })  # fmt: skip
    return found


def counted(rows: Iterable[Row]) -> str:
    """Solved of tried with its interval, and the median CC."""
    mine = list(rows)
    return f"{share(*solved(mine))} {number(float(np.median(ccs(mine))))}" if mine else "-"


def brief(rows: Iterable[Row]) -> str:
    """Solved of tried, and the median CC."""
    mine = list(rows)
    good, n = solved(mine)
    return f"{good}/{n} ({number(float(np.median(ccs(mine))))})" if n else "-"


def listed(values: Iterable[float]) -> str:
    return ", ".join(f"{x:.1f}" for x in sorted(values))


def percent(x: float) -> str:
    return f"{x:.0%}"


def by_share(rows: Sequence[Row], held: bool, engine: str, shares: Sequence[float], **wanted: Any) -> list[str]:
    """Cells over the share, random starts first."""
    mine = of(rows, engine=engine, held=held, **wanted)
    return [counted(of(mine, share=s)) for s in shares]


def main_table(rows: Sequence[Row]) -> list[str]:
    """Small crystals, true quadrants, all resolutions together."""
    body = [
        [engine, HELD[held], *by_share(rows, held, engine, (0.0, *SHARES), size="small", noise=0.0)]
        for engine in ENGINES
        for held in (False, True)
    ]
    return table(["", "seeds", *map(percent, (0.0, *SHARES))], body)


def resolution_table(rows: Sequence[Row]) -> list[str]:
    """The same, a line a resolution."""
    body = []
    for engine in ENGINES:
        for held in (False, True):
            for d in EVERY_D:
                mine = of(rows, engine=engine, held=held, size="small", noise=0.0, d_min=d)
                body.append([engine, HELD[held], f"{d:.1f}", *(brief(of(mine, share=s)) for s in (0.0, *SHARES))])
    return table(["", "seeds", "d_min", *map(percent, (0.0, *SHARES))], body)


def noise_table(rows: Sequence[Row]) -> list[str]:
    """Small crystals at the resolutions where noise was tried."""
    body = []
    for engine in ENGINES:
        for held in (False, True):
            for noise in (0.0, *NOISES):
                line = by_share(rows, held, engine, NOISE_SHARES, size="small", d_min=NOISE_D_MIN, noise=noise)
                body.append([engine, HELD[held], f"{noise:g}", *line])
    return table(["", "seeds", "noise (deg)", *map(percent, NOISE_SHARES)], body)


def size_table(rows: Sequence[Row]) -> list[str]:
    """Small and large crystals at the resolutions where both were tried."""
    body = []
    for engine in ENGINES:
        for held in (False, True):
            for size in SIZES:
                line = by_share(rows, held, engine, (0.0, *LARGE_SHARES), size=size, d_min=LARGE_D_MIN, noise=0.0)
                body.append([engine, HELD[held], size, *line])
    return table(["", "seeds", "crystals", *map(percent, (0.0, *LARGE_SHARES))], body)


def paired(rows: Sequence[Row], key: str, first: Any, second: Any, **wanted: Any) -> list[str]:
    """The same runs but for ``key``: solved by both, by the first alone, by the second alone, by none."""
    others = [k for k in ("crystal", "size", "engine", "share", "noise", "held") if k != key]

    def table_of(value: Any) -> dict[tuple, bool]:
        mine = [r for r in of(rows, **{key: value}, **wanted) if r["share"]]
        return {tuple(r[k] for k in others): float(r.get("cc") or 0.0) >= SOLVED_CC for r in mine}

    a, b = table_of(first), table_of(second)
    pairs = [(a[k], b[k]) for k in a if k in b]
    one, two = pairs.count((True, False)), pairs.count((False, True))
    both, none = pairs.count((True, True)), pairs.count((False, False))
    return [str(len(pairs)), str(both), str(one), str(two), str(none)]


def paired_table(rows: Sequence[Row]) -> list[str]:
    """Held against start only, learned against flipping; by resolution."""
    bands = (*BANDS, ("all", EVERY_D))
    body = []
    for engine in ENGINES:
        for name, d in bands:
            body.append(
                [f"{engine}: held, start only", name, *paired(rows, "held", True, False, engine=engine, d_min=d)]
            )
    for held in (True, False):
        for name, d in bands:
            what = f"{HELD[held]}: learned, flipping"
            body.append([what, name, *paired(rows, "engine", ENGINES[1], ENGINES[0], held=held, d_min=d)])
    return table(["pairs", "d_min", "n", "both", "first alone", "second alone", "none"], body)


ORACLE_HOW = (
    f"Solved: map CC >= {SOLVED_CC} with the truth, best over permitted origins and both hands. Brackets: 95 % Wilson "
    "intervals. They count runs as independent; the same crystals come back at three resolutions, so they are too "
    "narrow where resolutions are pooled. The last number of a cell is the median CC. *held*: seeds imposed for the "
    "first half of a start's cycles, then released; *start only*: the phases of the first map. 0%: random starts."
)


def oracle(rows: Sequence[Row], record: Row) -> str:
    """All tables of the first experiment."""
    s = record["settings"]
    found = flat(rows)
    small, large = (len({r["crystal"].split(", ", 1)[1] for r in found if r["size"] == size}) for size in SIZES)
    lines = [
        "# Seeds with true phases", "", ORACLE_HOW, "",
        f"{len(found)} runs: {small} small crystals ({sizes(found, 'small')} atoms in the asymmetric unit) and {large} "
        f"large ({sizes(found, 'large')}), dense peptides of held-out entries, noise 5 %, each to three resolutions of "
        f"six. {s['seconds']:g} processor seconds a run, {2 * s['seconds']:g} for large crystals; seed {s['seed']}; "
        f"ml_phaser {record['version']}, weights {record['weights']['sha256'][:8]}; {record['machine']['processor']}, "
        f"{sum(r.get('cpu') or 0.0 for r in rows) / 60:.0f} processor minutes.", "",
    ]  # fmt: skip
    parts: list[tuple[str, Callable[[Sequence[Row]], list[str]]]] = [
        ("Share of seeds: small crystals, true quadrants, all resolutions together", main_table),
        ("By resolution: solved (median CC)", resolution_table),
        (f"Noise: small crystals at {listed(NOISE_D_MIN)} A", noise_table),
        (f"Size: at {listed(LARGE_D_MIN)} A", size_table),
        ("Pairs of runs that differ in one thing (all shares, noises and sizes)", paired_table),
    ]
    for title, make in parts:
        lines += [f"## {title}", "", *make(found), ""]
    return "\n".join(lines).rstrip() + "\n"


def sizes(rows: Sequence[Row], size: str) -> str:
    asu = sorted({r["point"]["asu"] for r in rows if r["size"] == size})
    return "-".join(map(str, sorted({asu[0], asu[-1]}))) if asu else "none"


def own(rows: Sequence[Row], record: Row) -> str:
    """The second experiment."""
    s = record["settings"]
    t = s["seconds"]
    good = [r for r in rows if "first" in r]
    hard = [r for r in good if "arms" in r]
    at_once = len(good) - len(hard)
    lines = [
        "# Seeds from the engine's own maps", "",
        f"{len(good)} crystals, dense peptides of held-out entries, 1.2-1.6 A, noise 5 %. {t:g} processor seconds from "
        f"random starts solved {at_once} (CC >= {SOLVED_CC}); the other {len(hard)} went on.", "",
        f"*no seeds*: {2 * t:g} s from random starts, a run of its own; *seeds*: the first {t:g} s, then {t:g} s with",
        "the likeliest quadrants of their best map on so many of the reflections, by |E| x probability. All choose",
        "among everything they found as the program does. Brackets: 95 % intervals (Wilson; bootstrap of the mean",
        f"difference). Weights {record['weights']['sha256'][:8]}, seed {s['seed']}, one thread.", "",
    ]  # fmt: skip
    if hard:
        body = []
        for name in hard[0]["arms"]:
            cc = [r["arms"][name]["cc"] for r in hard]
            n = sum(c >= SOLVED_CC for c in cc)
            some = sum(r["arms"][name]["best_cc"] >= SOLVED_CC for r in hard)
            gain = [r["arms"][name]["cc"] - r["arms"][RANDOM]["cc"] for r in hard]
            better = "-" if name == RANDOM else f"{np.mean(gain):+.3f}{interval(bootstrap(gain), 3)}"
            right = [r["arms"][name]["seeds"]["right"] for r in hard if "seeds" in r["arms"][name]]
            error = [r["arms"][name]["seeds"]["error"] for r in hard if "seeds" in r["arms"][name]]
            body.append([
                name, share(n, len(hard)), f"{some}/{len(hard)}", number(float(np.median(cc))), better,
                f"{np.mean(right):.0%}" if right else "-", f"{np.mean(error):.0f}" if error else "-",
                number(max((r["arms"][name].get("probability", 0.0) for r in hard if r["arms"][name]["cc"] < SOLVED_CC),
                           default=None)),
                number(float(np.median([r["arms"][name]["seconds"] for r in hard])), 1),
            ])  # fmt: skip
        head = ["", "solved", "solved, were the best chosen", "median CC", "mean CC less no seeds",
                "seeds within 45 deg", "mean error", "highest P of an unsolved one", "processor s"]  # fmt: skip
        lines += [*table(head, body), ""]
    names = list(hard[0]["arms"]) if hard else []
    body = [
        [r["crystal"], f"{r['first']['cc']:.2f}",
         *(f"{r['arms'][n]['cc']:.2f}" if "arms" in r else "-" for n in names),
         *(f"{r['arms'][n]['seeds']['right']:.0%}" if "arms" in r else "-" for n in names if n != RANDOM)]
        for r in good
    ]  # fmt: skip
    head = ["crystal", f"CC after {t:g} s", *names, *(f"right, {n}" for n in names if n != RANDOM)]
    lines += table(head, body)
    lines += ["", *(f"- {r['crystal']}: {r['error']}" for r in rows if "error" in r)]
    return "\n".join(lines).rstrip() + "\n"
