"""The table of a one-pass judgement, for people and for a model card."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from ml_phaser.atomic import atomic
from ml_phaser.evaluation.one_pass import Report
from ml_phaser.evaluation.rivals import IDENTITY, NAMES, NETWORK, SHOWN
from ml_phaser.report.record import json_safe, write_json
from ml_phaser.simulate.crystals import WET


def markdown(report: Report) -> str:
    """The tables for people."""
    classical = [n for n in NAMES if n not in (IDENTITY, NETWORK, SHOWN)]
    said = {True: "yes", False: "no"}
    lines = [
        f"Mean map correlation with the truth over {report.plan.crystals} crystals a row, with the measured moduli put",
        "back after one projection (in brackets: before), and for the network the 95 % interval of the mean. Classical",
        "projections stand at the setting, on the map of F or of E, that is best on average over the rows of a",
        "resolution; *at best* is the best of them all at the best setting for that row alone. *Lead*: of the network",
        "over the best rival, less the 95 % interval of the paired difference; *wins* where both are positive.",
        "*Model shown*: the same network, given the density of the misplaced part beside the map it phased; not judged",
        f"as the network. *wet*: {report.plan.few} boxes a row, {WET[0]:.0%} to {WET[1]:.0%} of each flat solvent.",
        "",
        "| A | error | in | " + " | ".join([*classical, "at best", NETWORK, SHOWN]) + " | lead | wins |",
        "|---" * (len(classical) + 8) + "|",
    ]
    for r in report.rows:
        error = f"{r.kind} {r.level:g}" + (" kept" if "partial" in r.kind else "")
        cells = [f"{r.scores[n].cc_f:.3f} ({r.scores[n].cc:.3f})" for n in classical]
        best, best_f = (max(getattr(r.scores[n], k) for n in classical) for k in ("oracle", "oracle_f"))
        s = r.scores[NETWORK]
        cells += [f"{best_f:.3f} ({best:.3f})", f"**{s.cc_f:.3f} ± {s.cc_f_pm:.3f}** ({s.cc:.3f} ± {s.cc_pm:.3f})"]
        cells.append(f"{r.scores[SHOWN].cc_f:.3f} ({r.scores[SHOWN].cc:.3f})")
        lead = f"{r.lead_f:+.3f} ({r.lead:+.3f})"
        lines.append(f"| {r.d_min:g} | {error} | {r.cc_in:.3f} | {' | '.join(cells)} | {lead} | {said[r.wins]} |")
    names = list(next(iter(report.kept.values())))
    lines += [
        "",
        "Does the network beat the identity and every classical projection, beyond the 95 % interval, before and after",
        "the measured moduli are put back?",
        "",
        "| A | phase and additive error, on average | in every row | in every row, rivals at best | partial structures,"
        " on average | in every row | with solvent, on average | in every row |",
        "|---|---|---|---|---|---|---|---|",
        *(
            f"| {d} | {said[b.on_average]} | {said[b.every_row]} | {said[b.every_row_oracle]} "
            f"| {said[report.beats_partial[d].on_average]} | {said[report.beats_partial[d].every_row]} "
            f"| {said[report.beats_wet[d].on_average]} | {said[report.beats_wet[d].every_row]} |"
            for d, b in report.beats.items()
        ),
        "",
        f"Correlation kept after {report.plan.cycles} plain cycles (projection, then measured moduli) from the truth,"
        f" {report.plan.few} crystals, at the origin of the truth (maps drift slowly in P1, where every origin is as",
        "good; benchmarks/results/truth.md has them at the best one):",
        "",
        "| A | " + " | ".join(names) + " |",
        "|---" * (len(names) + 1) + "|",
        *(f"| {d} | " + " | ".join(f"{kept[n]:.3f}" for n in names) + " |" for d, kept in report.kept.items()),
        "",
        "Settings of the classical projections (threshold, share or pivot) for phase and additive error:",
        "",
        "| A | " + " | ".join(classical) + " |",
        "|---" * (len(classical) + 1) + "|",
        *(f"| {d} | " + " | ".join(s[n] for n in classical) + " |" for d, s in report.settings.items()),
    ]
    return "\n".join(lines) + "\n"


def brief(report: Report) -> dict[str, Any]:
    """What a model card needs of it: the network beside the best of its rivals, ``[before, after]`` the measured
    moduli are put back."""
    rivals = [n for n in NAMES if n not in (NETWORK, SHOWN)]
    return {
        "what": "mean map correlation with the truth on crystals cut from held-out entries, one pass, "
        f"{report.plan.crystals} crystals a row; [before, after] the measured amplitudes are put back",
        "held_out_sha256": report.data,
        "rows": [
            {
                "d_min": r.d_min,
                "error": r.kind,
                "level": r.level,
                "start": round(r.cc_in, 3),
                "network": [round(r.scores[NETWORK].cc, 3), round(r.scores[NETWORK].cc_f, 3)],
                "best_rival": [
                    round(max(r.scores[n].cc for n in rivals), 3),
                    round(max(r.scores[n].cc_f for n in rivals), 3),
                ],
                "wins": r.wins,
            }
            for r in report.rows
        ],
        "beats_identity_and_classical": {d: asdict(b) for d, b in report.beats.items()},
        "beats_on_partial_structures": {d: asdict(b) for d, b in report.beats_partial.items()},
        "beats_with_solvent": {d: asdict(b) for d, b in report.beats_wet.items()},
        "truth_kept": {"cycles": report.plan.cycles, "cc": report.kept},
    }


def write_report(path: Path, report: Report, network: dict[str, Any]) -> Path:
    """Write ``path`` (JSON) and the table beside it (``.md``), which is returned. ``network``: what was judged.

    Raises UserError where they cannot be written.
    """
    write_json(path, json_safe({"network": network, **asdict(report)}))
    table = path.with_suffix(".md")
    heading = ", ".join(f"{k} {v}" for k, v in network.items())
    with atomic(table) as tmp:
        tmp.write_text(f"# One pass of the learned projection\n\n{heading}\n\n{markdown(report)}", encoding="utf-8")
    return table
