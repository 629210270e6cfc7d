#!/usr/bin/env python3
"""One pass of a learned projection against the identity and the classical ones, on held-out entries (docs/training.md).

    python benchmarks/projector.py --data ../shared/data/coordinates

writes benchmarks/results/projector.json and projector.md.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data" / "coordinates")
    parser.add_argument("--name", help="bundled network to judge [the default one]")
    parser.add_argument("--weights", type=Path, help="folder of weights and card [that of the package]")
    parser.add_argument("--checkpoint", type=Path, help="judge a training run's checkpoint instead")
    parser.add_argument("--crystals", type=int, default=32, help="crystals a row [32]")
    parser.add_argument("--threads", type=int, default=1, help="processor threads [1]")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "projector.json")
    args = parser.parse_args()

    os.environ.setdefault("OMP_NUM_THREADS", str(args.threads))
    import torch

    from ml_phaser.cli.train import averaged
    from ml_phaser.errors import UserError
    from ml_phaser.evaluation.one_pass import Plan, evaluate
    from ml_phaser.evaluation.one_pass_report import write_report
    from ml_phaser.networks.store import FOLDER, PROJECTOR, load_projector, read_card
    from ml_phaser.simulate.fragments import load_library
    from ml_phaser.training.loop import read_checkpoint

    torch.set_num_threads(args.threads)
    try:
        if args.checkpoint:
            network = averaged(args.checkpoint)[0]
            saved = read_checkpoint(args.checkpoint)
            facts = {"checkpoint of step": saved["steps"], "seconds of training": round(saved["seconds"])}
        else:
            where = args.name or PROJECTOR, args.weights or FOLDER
            network = load_projector(*where)
            facts = {"name": where[0], "sha256": read_card(*where).sha256}
        library = load_library(args.data, "holdout")
        plan = replace(Plan(), crystals=args.crystals)
        args.out.parent.mkdir(parents=True, exist_ok=True)
        report = evaluate(network, library, plan, lambda fraction, text: print(f"{fraction:4.0%} {text}", flush=True))
        print(write_report(args.out, report, facts))
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
