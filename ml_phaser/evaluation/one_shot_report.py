"""The tables of a one-shot network's judgement, for people and for its model card."""

from __future__ import annotations

from typing import Any

from ml_phaser.evaluation.one_shot import BLOB, BLOB_F, CHANCE, MARGIN, Mean, Report, Row, pass_name

HEAD = ("CC", "phase error", "CC, best origin and hand", "phase error there", "hand right")


def cells(row: Row) -> list[str]:
    """Numbers of a row, in the order of HEAD."""
    angles = [f"{x.value:.1f} ± {x.pm:.1f}" for x in (row.error, row.free_error)]
    hand = f"{row.hand.value:.0%} ± {row.hand.pm:.0%}"
    return [str(row.cc), angles[0], str(row.free_cc), angles[1], hand]


def line(name: str, values: list[str]) -> str:
    """Of a table."""
    name = name.replace("|", "\\|")  # as in |F|
    return f"| {name} | " + " | ".join(values) + " |"


def markdown(report: Report) -> str:
    """The tables for people."""
    count, made = report.plan.crystals, report.recipe
    lines = [
        f"{count} held-out crystals of {made.family} to {made.d_min:g} A. Map correlation with the truth and",
        "|F|-weighted mean phase error in degrees, with 95 % intervals of the mean; first at the origin and hand of",
        "the truth, then at the best origin and hand. *|F|*: measured amplitudes put back. The network is judged",
        f"after pass {report.passes}: with as many it was trained.",
        "",
        line("", list(HEAD)),
        "|---" * (len(HEAD) + 1) + "|",
        *(line(row.name, cells(row)) for row in report.rows),
        "",
        f"Ahead of the constant blob by {report.lead}, with measured amplitudes in both by {report.lead_f} "
        f"({MARGIN:g} is wanted of both).",
        "",
        line("A", ["reflections", "phase error, last pass"]),
        "|---|---|---|",
        *(line(f"{s.d_max:.2f}-{s.d_min:.2f}", [str(s.n), f"{s.error:.1f}"]) for s in report.shells),
    ]
    if report.reliability:
        lines += [
            "",
            f"Mean resultant length of a reflection's phases over the last {report.plan.last} passes, and the mean",
            "cosine of its phase error:",
            "",
            line("agreement", ["reflections", "mean agreement", "mean cosine"]),
            "|---|---|---|---|",
            *(
                line(f"{b.low:g}-{b.high:g}", [str(b.n), f"{b.agreement:.3f}", f"{b.cosine:.3f}"])
                for b in report.reliability
            ),
        ]
    return "\n".join([*lines, ""])


def _numbers(mean: Mean, digits: int) -> list[float]:
    return [round(mean.value, digits), round(mean.pm, digits)]


def brief(report: Report) -> dict[str, Any]:
    """What a model card needs of it; every number with half its 95 % interval."""

    def row(name: str) -> dict[str, list[float]]:
        found = report.row(name)
        return {
            "cc": _numbers(found.cc, 4), "phase_error": _numbers(found.error, 2),
            "cc_best_origin_hand": _numbers(found.free_cc, 4),
            "phase_error_best_origin_hand": _numbers(found.free_error, 2), "hand_right": _numbers(found.hand, 3),
        }  # fmt: skip

    names = {1, report.passes}
    return {
        "what": f"{report.plan.crystals} crystals of held-out entries; map correlation, |F|-weighted phase error in "
        "degrees, at the origin and hand of the truth and at the best ones; [mean, half the 95 % interval]; |F|: with "
        "the measured amplitudes put back",
        "held_out_sha256": report.data,
        "rows": {
            **{name: row(name) for name in (CHANCE, BLOB, BLOB_F)},
            **{pass_name(k, f): row(pass_name(k, f)) for k in sorted(names) for f in (False, True)},
        },
        "ahead_of_constant_blob": {"as_they_stand": _numbers(report.lead, 4), "with_F": _numbers(report.lead_f, 4)},
        "reliability": [
            {
                "agreement": [b.low, b.high], "n": b.n, "mean_agreement": round(b.agreement, 4),
                "cosine": round(b.cosine, 4),
            }
            for b in report.reliability
        ],
    }  # fmt: skip
