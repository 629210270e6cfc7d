"""Tables and the picture of what figures of merit, quadrants and verdicts promise and keep."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.confidence import verdict
from benchmarks.confidence.fit import Judged, assess, crossed, read_judged
from benchmarks.confidence.measures import Bin, largest_gap
from ml_phaser.phasing import confidence
from ml_phaser.phasing.calibration import Evidence, read_calibration

Floats = NDArray[np.float64]
FINEST = 0.6  # A, to which crystals were simulated
# Name, split, with or without phases put in, reflections to how many A
GROUPS = (
    ("held-out simulated", "holdout", None, 0.0), ("of these, from nothing", "holdout", False, 0.0),
    ("of these, from phases put in", "holdout", True, 0.0), ("measured", "measured", None, 0.0),
    (f"of these, to {FINEST} A", "measured", None, FINEST), ("of these, from nothing", "measured", False, 0.0),
    ("of these, from phases put in", "measured", True, 0.0),
    ("fitted to (each left out in turn)", "validation", None, 0.0),
)  # fmt: skip


def report(store: Path, out: Path, picture: Path) -> None:
    """Write OUT.json, OUT.md and the picture."""
    from ml_phaser.phasing.confidence import figures_of_merit

    worth = read_calibration()
    runs = {split: read_judged(store, split) for split in ("validation", "holdout", "measured")}
    foms = {s: [worth.merits(r.evidence) for r in rows] for s, rows in runs.items()}
    foms["validation"] = crossed(runs["validation"])
    before = {s: [figures_of_merit(as_it_was(r), None) for r in rows] for s, rows in runs.items()}
    groups: list[dict[str, Any]] = []
    for name, split, given, d_min in GROUPS:
        chosen = [i for i, r in enumerate(runs[split]) if given is None or (r.evidence.given is not None) == given]
        if not chosen:
            continue
        rows = [to(runs[split][i], d_min) for i in chosen]
        graded = [i for i in chosen if not runs[split][i].of_atoms]
        theirs = [to(runs[split][i], d_min) for i in graded]
        groups.append(
            {
                "name": name, "split": split, "runs": len(graded),
                "calibrated": assess(theirs, [foms[split][i] for i in graded], read_calibration()),
                "uncalibrated": assess(theirs, [before[split][i] for i in graded]),
                "verdict": verdict.words(np.array([r.evidence.solved for r in rows]), rows),
                "search": verdict.words(np.array([r.about["own"]["probability"] for r in rows]), rows),
            }
        )  # fmt: skip
    kinds = {k: crossed_verdict(k, runs["validation"]) for k in ("found", "pieces", "given")}
    sets = recorded(out.parent / "measured" / "results.json")
    facts = {"weights": worth.weights, "about": worth.about, "groups": groups, "crossed_verdict": kinds, "sets": sets}
    out.with_suffix(".json").write_text(json.dumps(facts, indent=1, default=plain) + "\n", encoding="utf-8")
    out.with_suffix(".md").write_text(text(groups, kinds, sets, worth.weights), encoding="utf-8")
    draw({g["name"]: g for g in groups if g["name"] in ("held-out simulated", "measured")}, picture)


def to(row: Judged, d_min: float) -> Judged:
    """With the reflections to ``d_min`` A."""
    return dataclasses.replace(row, used=row.used & (row.evidence.d >= d_min))


def as_it_was(row: Judged) -> Evidence:
    """With the probability that figures of merit were multiplied by before they were calibrated."""
    return dataclasses.replace(row.evidence, solved=row.about["own"]["probability"])


def recorded(path: Path) -> dict[str, Any]:
    """The words that the runs of ``benchmarks/measured.py`` would get now, from what they recorded: the search's
    probability, which was the verdict's then, and the number of reflections, which decides how many were held out."""
    found = []
    for row in json.loads(path.read_text(encoding="utf-8")):
        if not row.get("agreement") or not row.get("verdict"):
            continue
        p, n = min(max(row["verdict"]["probability"], 1e-13), 1 - 1e-13), row["n_reflections"]
        held = min(max(0.05 * n, 60), 3000, 0.15 * n)
        slope = 1 / math.sqrt(1 + confidence.NOISE * confidence.PER_SCORE**2 / held)
        found.append((row["set"], confidence.tempered(math.log(p / (1 - p)), slope), row["agreement"]["map_cc"]))
    lost = [(name, cc) for name, p, cc in found if p <= confidence.NOT_SOLVED]
    return {
        "sets": len(found), "solved": sum(p >= confidence.SOLVED for _, p, _ in found), "not_solved": len(lost),
        "solved_but_wrong": [f"{n} ({cc:.2f})" for n, p, cc in found if p >= confidence.SOLVED and cc < verdict.RIGHT],
        "not_solved_but_good": [f"{name} ({cc:.2f})" for name, cc in lost if cc > verdict.PLAINLY],
        "highest_of_not_solved": max(cc for _, cc in lost),
        "uncertain": [f"{n} ({cc:.2f})" for n, p, cc in found if confidence.NOT_SOLVED < p < confidence.SOLVED],
    }  # fmt: skip


def crossed_verdict(kind: str, rows: Sequence[Judged]) -> dict[str, Any]:
    """Words by constants fitted without the run itself."""
    own = [r for r in rows if verdict.kind(r) == kind]
    return verdict.words(verdict.crossed(kind, own), own)


def plain(value: Any) -> Any:
    """What JSON does not know."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return value.item()


def text(groups: Sequence[dict[str, Any]], kinds: dict[str, Any], sets: dict[str, Any], weights: str) -> str:
    """Markdown."""
    lines = [
        "# Confidence", "",
        f"`python -m benchmarks.confidence report`; calibration of the weights {weights[:8]}. What the columns mean is",
        "said in [docs/confidence.md](../../docs/confidence.md). Runs that end in free atoms have figures of merit of "
        "their own and are", "left out of the first table.", "",
        "| runs | | reflections | mean FOM | mean cos | ECE | largest gap, shells by d | shells by place "
        "| seeds, deciles | ECE before |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for g in groups:
        c, b = g["calibrated"], g["uncalibrated"]
        lines.append(
            f"| {g['name']} | {g['runs']} | {c['n']} | {c['mean_fom']:.3f} | {c['mean_cos']:.3f} | {c['ece']:.3f} "
            f"| {largest_gap(c['shells']):.3f} | {largest_gap(c['ranks']):.3f} | {largest_gap(c['all_seeds']):.3f} "
            f"| {b['ece']:.3f} |"
        )
    lines += ["", "## Verdicts", ""]
    lines += ["| runs | | CC >= 0.5 | solved | uncertain | not solved | Brier | Brier of the search's probability |"]
    lines += ["|---|---|---|---|---|---|---|---|"]
    for g in groups:
        v = g["verdict"]
        lines.append(
            f"| {g['name']} | {v['n']} | {v['right']} | {v['solved']} | {v['uncertain']} | {v['not_solved']} "
            f"| {v['brier']:.3f} | {g['search']['brier']:.3f} |"
        )
    lines.append("")
    for g in groups:
        v = g["verdict"]
        wrong, lost = ", ".join(v["solved_but_wrong"]) or "none", ", ".join(v["not_solved_but_good"]) or "none"
        lines.append(f"- {g['name']}: solved below CC 0.5: {wrong}; not solved above CC 0.8: {lost}.")
    wrong = ", ".join(sets["solved_but_wrong"]) or "none"
    lines.append(
        f"- all {sets['sets']} measured sets with a model, from what `benchmarks/measured.py` recorded: "
        f"{sets['solved']} solved, {len(sets['uncertain'])} uncertain ({', '.join(sets['uncertain'])}), "
        f"{sets['not_solved']} not solved; solved below CC 0.5: {wrong}; highest CC of those not solved: "
        f"{sets['highest_of_not_solved']:.2f}."
    )
    lines += ["", "By constants fitted without the run itself (validation split):", ""]
    for kind, v in kinds.items():
        bins = "; ".join(f"{n} runs of {p:.2f}: {y:.2f}" for _, _, n, p, y in v["bins"])
        lines.append(f"- {kind}: Brier {v['brier']:.3f}, log loss {v['log_loss']:.3f}. Claimed and found: {bins}.")
    for g in groups:
        if g["name"] not in ("held-out simulated", "measured"):
            continue
        lines += ["", f"## {g['name'].capitalize()}", ""]
        named = (
            ("FOM", "bins"), ("resolution, low first", "shells"), ("place in the crystal's range", "ranks"),
            ("likeliest quadrant or value", "all_seeds"), ("quadrants alone", "quadrants"), ("centric", "centric"),
        )  # fmt: skip
        for title, key in named:
            lines += [f"{title}: reflections, promised, found", ""]
            lines += [row_of(g["calibrated"][key]), ""]
        lines += ["probability of the verdict: runs, claimed, found", ""]
        lines += ["; ".join(f"{n}, {p:.2f}, {y:.2f}" for _, _, n, p, y in g["verdict"]["bins"]), ""]
    return "\n".join(lines).rstrip() + "\n"


def row_of(bins: Sequence[Bin]) -> str:
    """Bins in a line."""
    return "; ".join(f"{b.n}, {b.promised:.3f}, {b.found:.3f}" for b in bins) or "too few"


def draw(groups: dict[str, dict[str, Any]], path: Path) -> None:
    """Figures of merit, quadrants and verdicts: promised against found."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    fig = Figure((9.6, 3.3), layout="constrained")
    axes = fig.subplots(1, 3)
    titles = ("figure of merit", "likeliest quadrant", "verdict")
    sides = ("mean cosine of phase error", "fraction right", "fraction with CC of at least 0.5")
    styles = {"held-out simulated": ("o", "#2b6cb0"), "measured": ("s", "#c05621")}
    for ax, title, side in zip(axes, titles, sides, strict=True):
        ax.plot((0, 1), (0, 1), color="#888888", linestyle="--", linewidth=1)
        ax.set_xlabel(f"promised: {title}")
        ax.set_ylabel(side)
        ax.set_xlim(-0.02, 1.02)
        ax.set_ylim(-0.02, 1.02)
        ax.spines[["top", "right"]].set_visible(False)
    for name, g in groups.items():
        marker, colour = styles[name]
        style = {"marker": marker, "color": colour, "markersize": 4, "linewidth": 1}
        before = g["uncalibrated"]["bins"]
        axes[0].plot(
            [b.promised for b in before], [b.found for b in before], color=colour, linewidth=0.8, linestyle=":",
            label=f"{name}, before",
        )  # fmt: skip
        for ax, key in ((axes[0], "bins"), (axes[1], "all_seeds")):
            bins = g["calibrated"][key]
            ax.plot([b.promised for b in bins], [b.found for b in bins], label=name, **style)
        bins = g["verdict"]["bins"]
        axes[2].plot([b[3] for b in bins], [b[4] for b in bins], label=name, **style)
    for ax in axes:
        ax.legend(frameon=False, fontsize=7, loc="upper left")
    path.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(path, dpi=120, metadata={"Software": None})
