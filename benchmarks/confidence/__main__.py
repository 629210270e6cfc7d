"""Are figures of merit and verdicts to be believed?

    python -m benchmarks.confidence collect --split validation --last 800
    python -m benchmarks.confidence collect --split holdout --last 760
    python -m benchmarks.confidence collect --split measured --limit 3
    python -m benchmarks.confidence fit       # writes ml_phaser/weights/confidence/calibration.json
    python -m benchmarks.confidence report    # writes benchmarks/results/confidence.* and docs/pictures/confidence.png

`collect` phases crystals in this process, keeps one file each and goes on where it stopped. `fit` uses those of
"validation" alone, and states the reliability on those of "holdout". `report` compares, for both and for measured sets,
what figures of merit, quadrants and verdicts promise with what they keep.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="confidence", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--store", type=Path, help="folder of the runs [the user's cache]")
    steps = parser.add_subparsers(dest="step", required=True)
    gather = steps.add_parser("collect", help="phase crystals, one file each; goes on where it stopped")
    gather.add_argument("--split", choices=("validation", "holdout", "measured"), required=True)
    gather.add_argument("--first", type=int, default=0)
    gather.add_argument("--last", type=int, default=200)
    gather.add_argument("--limit", type=float, default=6.0, help="processor seconds of a measured set [6]")
    gather.add_argument("--sets", help="measured sets, with commas [all]")
    gather.add_argument("--most", type=int, default=6000, help="reflections of a measured set [6000]")
    steps.add_parser("fit", help="calibrate on the crystals of the validation split")
    steps.add_parser("report", help="tables and the picture of reliability")
    words = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from benchmarks.phasing.crystals import cache_folder

    store = words.store or cache_folder().parent / "confidence"
    if words.step == "collect":
        return collect_runs(words, store)
    if words.step == "fit":
        return fit_all(store)
    from benchmarks.confidence.report import report

    report(store, ROOT / "benchmarks" / "results" / "confidence", ROOT / "docs" / "pictures" / "confidence.png")
    return 0


def collect_runs(words: argparse.Namespace, store: Path) -> int:
    """Run the crystals asked for."""
    from benchmarks.confidence.collect import collect
    from benchmarks.confidence.crystals import cases, measured_cases
    from benchmarks.phasing.crystals import library

    if words.split == "measured":
        libraries = {}
        todo = measured_cases(words.limit, words.sets.split(",") if words.sets else None, words.most)
    else:
        libraries = {words.split: library(words.split)}
        todo = cases(words.split, words.first, words.last)
    for case in todo:
        began = time.monotonic()
        if said := collect(case, store, libraries):
            print(f"{said}, {time.monotonic() - began:.0f} s in all", flush=True)
    return 0


def fit_all(store: Path) -> int:
    """Print the constants of the verdict, write the calibration of figures of merit."""
    from benchmarks.confidence import verdict
    from benchmarks.confidence.fit import calibrate, read_judged, write
    from ml_phaser import __version__
    from ml_phaser.networks.store import PROJECTOR, read_card
    from ml_phaser.phasing.calibration import FILE

    train, tested = read_judged(store, "validation"), read_judged(store, "holdout")
    for kind in ("found", "pieces", "given"):
        rows = [r for r in train if verdict.kind(r) == kind]
        constants = verdict.fit(kind, rows)
        print(kind, len(rows), "runs, constants", (constants**2 if kind == "found" else constants).round(3).tolist())
    sha = read_card(PROJECTOR).sha256
    strange = {r.about["weights"]["sha256"] for r in (*train, *tested) if r.about["weights"]} - {sha}
    if strange:
        sys.exit(f"confidence: runs of other weights ({', '.join(s[:8] for s in strange)}); collect anew")
    about = {"crystals": len(train), "made_by": "python -m benchmarks.confidence fit", "version": __version__}
    write(calibrate(train, sha, about), tested, FILE)
    print(f"{FILE}: {len(train)} crystals, tested on {len(tested)}. Constants of the verdict are set in confidence.py.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
