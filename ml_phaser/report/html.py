"""The report: a run record and its pictures as one HTML file that needs nothing else."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml_phaser.atomic import atomic
from ml_phaser.parameters import PARAMETERS
from ml_phaser.report.log import methods_of

if TYPE_CHECKING:
    from ml_phaser.report.pictures import Picture

CHANGE = " To change: "  # in a sentence about a choice, before the option that changes it
TRY = " Try: "  # in an error message, before what may mend it
LISTED = 10  # trials in the table
GROUPS = ("density", "patterson", "starts", "statistics")  # of pictures
SIGNS = {"solved": "✓", "uncertain": "?", "not solved": "✕", "failed": "!", "interrupted": "‖"}


def to_html(record: dict[str, Any], pictures: Sequence[Picture] = ()) -> str:
    """The page of a run that has ended, well or not. Every fact on it is one of the record."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("ml_phaser", "report/templates"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["num"] = number
    groups = {name: [p for p in pictures if p.group == name] for name in GROUPS}
    page = "finished.html" if record["status"] == "finished" else "unfinished.html"
    facts: dict[str, Any] = {
        "record": record,
        "pictures": groups,
        "signs": SIGNS,
        "defaults": defaults(record),
    }
    if page == "finished.html":
        began = [t["method"] for t in record["trials"] if t["index"] == record["best_trial"]]
        facts |= {"key": key_numbers(record), "choices": choices(record), "ranked": ranked(record)}
        facts["methods"] = methods_of(began, atoms=record.get("atoms") is not None)
    else:
        facts |= {"trouble": trouble(record), "ranked": ranked(record)}
    return environment.get_template(page).render(facts)


def write_html(path: Path | str, record: dict[str, Any], pictures: Sequence[Picture] = ()) -> None:
    """Write the report, whole or not at all. Raises UserError where it cannot be written."""
    text = to_html(record, pictures)
    with atomic(path) as tmp:
        tmp.write_text(text, encoding="utf-8")


def number(value: float | None, digits: int = 2) -> str:
    """A number of the record in words: "not known" for null."""
    if value is None or not math.isfinite(value):
        return "not known"
    return f"{value:.{digits}f}"


def key_numbers(record: dict[str, Any]) -> list[tuple[str, str]]:
    """What most readers look for, name and value."""
    best = next((t for t in record["trials"] if t["index"] == record["best_trial"]), None)
    rows = [("Mean figure of merit", number(record["mean_fom"], 3))]
    if best is not None:
        held = f" ({record['n_held']} reflections)" if record["n_held"] else ""
        rows += [
            ("CC, held-out reflections", number(best["score"], 3) + held),
            ("Best start", f"{best['index'] + 1} of {len(record['trials'])}, {best['method']}"),
        ]
    if (placed := record["fragments"]) is not None:
        rows.append(("Begun with", f"{placed['label']} ({placed['atoms']} atoms)"))
    if record.get("atoms") is not None and best is not None:
        rows.append(("Phases of", f"{len(record['atoms'])} free atoms, R {number(best['r_work'], 3)}"))
    a, b, c, alpha, beta, gamma = record["cell"]
    density = record["density"]
    rows += [
        ("Space group", record["spacegroup"]),
        ("Unit cell", f"{a:.3f} {b:.3f} {c:.3f} A, {alpha:.2f} {beta:.2f} {gamma:.2f}°"),
        ("Resolution", f"{record['d_max']:.2f} to {record['d_min']:.2f} A"),
        ("Reflections", f"{record['n_reflections']}, {100 * record['completeness']:.1f} % complete"),
        ("Columns", f"{', '.join(record['source']['columns'])} ({record['source']['kind']})"),
        ("Free-R flags", "kept" if record["free_flags"] else "none"),
    ]
    if record["wilson"] is not None:
        rows.append(("Wilson B", f"{number(record['wilson']['wilson_b'], 1)} A²"))
    if density is not None:
        rows.append(("Skewness of the density", number(density["skewness"], 1)))
    return rows


def choices(record: dict[str, Any]) -> list[tuple[str, str]]:
    """Sentences about decisions made for the user, each with what changes it ("" where nothing does)."""
    found = []
    for sentence in dict.fromkeys((*record["notes"], *record["choices"])):
        said, _, change = sentence.partition(CHANGE)
        found.append((said, change.rstrip(".")))
    return found


def defaults(record: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Options that were left as they are: name, value in force, meaning."""
    in_force = {name: record.get(name) for name in ("device", "threads") if record.get(name) is not None}
    rows = []
    for p in PARAMETERS:
        value = record["options"][p.name]
        if p.kind in ("input", "output", "flag") or p.default is None or value != p.default:
            continue
        said = f"{value:g}" if isinstance(value, float) else str(value)
        if p.name in in_force:
            said += f": {in_force[p.name]}"
        rows.append((p.name, f"{said} {p.unit}".strip(), p.help))
    return rows


def ranked(record: dict[str, Any]) -> list[dict[str, Any]]:
    """The starts with the highest scores, best first."""
    scored = [t for t in record["trials"] if t["score"] is not None]
    return sorted(scored, key=lambda t: -t["score"])[:LISTED]


def trouble(record: dict[str, Any]) -> tuple[str, str]:
    """What went wrong, and what to try."""
    if record.get("error") is None:
        return "The run was interrupted before it had a result.", "the same command again"
    said, _, hint = record["error"]["message"].partition(TRY)
    return said, hint
