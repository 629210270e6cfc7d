"""How often the hand judge is right, and whether its probabilities are honest.

    python benchmarks/hand.py --coordinates FOLDER [--sets FOLDER] [--crystals 48] [--out benchmarks/results/hand]

On crystals the judge has not been trained on: dense boxes of held-out entries, packed peptides of them, small ones of
one to eight residues, and measured amplitudes of deposited models, with phase errors of several sizes. Writes OUT.md
and OUT.json.
"""

from __future__ import annotations

import argparse
import json
import zlib
from itertools import pairwise
from pathlib import Path
from typing import Any

import gemmi
import numpy as np
import torch
from measured import LABIN, read_sets
from numpy.typing import NDArray

from ml_phaser.crystal.agreement import correlation, multiplicity
from ml_phaser.crystal.normalise import normalise
from ml_phaser.errors import UserError
from ml_phaser.evaluation.reference import model_reference
from ml_phaser.exchange.read import read_amplitudes
from ml_phaser.handedness import JUDGE_B, log_odds
from ml_phaser.networks.hand import HandJudge
from ml_phaser.networks.store import FOLDER, HAND_JUDGE, load_hand_judge, read_card
from ml_phaser.simulate import corrupt
from ml_phaser.simulate.batches import calculate
from ml_phaser.simulate.crystals import dense_box, random_cell
from ml_phaser.simulate.families import make
from ml_phaser.simulate.fragments import Library, load_library
from ml_phaser.simulate.simulated import Simulated

D_MIN = (1.3, 1.5, 1.7, 1.9, 2.1)
CC = (0.5, 0.7, 0.9, 1.0)
SHAPES = ((20, 20, 24), (24, 24, 24), (28, 28, 32))  # x 0.6 A: boxes of about 80 to 280 atoms
GROUPS = ("P 1 21 1", "P 21 21 21")
RESIDUES = ((1, 1), (2, 2), (3, 4), (6, 8))  # of small crystals, in P1
SMALL_D, SMALL_CC = (1.3, 1.7), (0.75, 0.9, 1.0)
BINS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.97, 1.0)
Row = dict[str, Any]


def spoilt(rng: np.random.Generator, f: NDArray, stol2: NDArray, cc: float) -> NDArray[np.complex128]:
    """Structure factors with phase errors that leave a map correlation of about ``cc``."""
    return f if cc >= 1 else corrupt.noisy_phases(rng, f, stol2, cc, "additive" if rng.random() < 0.5 else "phase")


def entry(odds: float, atoms: int, f: NDArray, test: NDArray, weight: NDArray, **facts: Any) -> Row:
    """One judgement. ``odds`` of the right hand: positive is right."""
    real = round(correlation(weight, test, f), 3)
    return {**facts, "map_cc": real, "atoms": atoms, "log_odds": round(odds, 3)}


def boxes(judge: HandJudge, library: Library, count: int, seed: int) -> list[Row]:
    """Dense boxes in P1 of held-out entries, at every resolution and correlation."""
    rows = []
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        while True:
            contents = dense_box(rng, library, random_cell(rng, SHAPES[number % len(SHAPES)], (0.55, 0.65)))
            if len(contents.xyz) >= 25 and contents.cell.volume / len(contents.xyz) < 26:
                break
        group = gemmi.SpaceGroup("P 1")
        for d_min in D_MIN:
            hkl = gemmi.make_miller_array(contents.cell, group, d_min)
            stol2 = np.asarray(contents.cell.calculate_1_d2_array(hkl)) / 4
            f = calculate(contents, hkl, stol2, slice(None), contents.xyz)
            for cc in CC:
                test = spoilt(rng, f, stol2, cc)
                odds = log_odds(judge, hkl, test, contents.cell, group)
                facts = {"kind": "box", "d_min": d_min, "cc": cc, "name": contents.source}
                rows.append(entry(odds, len(contents.xyz), f, test, np.ones(len(f)), **facts))
    return rows


def judged(
    judge: HandJudge, sim: Simulated, rng: np.random.Generator, correlations: tuple[float, ...], **facts: Any
) -> list[Row]:
    """A simulated crystal, its phases spoilt to each of some map correlations."""
    rows = []
    stol2, weight = np.asarray(sim.cell.calculate_1_d2_array(sim.hkl)) / 4, multiplicity(sim.hkl, sim.spacegroup)
    for cc in correlations:
        test = spoilt(rng, sim.f, stol2, cc)
        odds = log_odds(judge, sim.hkl, test, sim.cell, sim.spacegroup)
        rows.append(entry(odds, sim.atoms_in_cell, sim.f, test, weight, cc=cc, **facts))
    return rows


def packed(judge: HandJudge, library: Library, count: int, seed: int) -> list[Row]:
    """Packed peptide crystals, a quarter of the time with each correlation, at a resolution of 1.3 to 2.1 A."""
    rows = []
    for number in range(count):
        rng = np.random.default_rng([seed, number, 1])
        group, d_min = GROUPS[number % 2], D_MIN[number % len(D_MIN)]
        try:
            sim = make(
                "peptide", seed + number, library, spacegroup=group, d_min=d_min, residues=(3, 15), b=(8.0, 16.0)
            )
        except UserError:
            continue
        rows += judged(judge, sim, rng, CC, kind="packed", d_min=d_min, name=f"{group} {seed + number}")
    return rows


def small(judge: HandJudge, library: Library, count: int, seed: int) -> list[Row]:
    """Peptides of few residues in P1, so many of each size, at every one of SMALL_D and SMALL_CC."""
    rows = []
    for residues in RESIDUES:
        for number in range(count):
            rng = np.random.default_rng([seed, number, 2])
            for d_min in SMALL_D:
                try:
                    sim = make(
                        "peptide", 1000 * seed + number, library, spacegroup="P 1", d_min=d_min, residues=residues,
                        b=(8.0, 16.0),
                    )  # fmt: skip
                except UserError:
                    continue
                facts = {"kind": "small", "d_min": d_min, "residues": residues[0], "name": f"{number}"}
                rows += judged(judge, sim, rng, SMALL_CC, **facts)
    return rows


def measured(judge: HandJudge, folder: Path, most_volume: float) -> tuple[list[Row], list[str]]:
    """Measured amplitudes with the deposited model's phases and errors added; and which sets were left out, and why."""
    rows, left = [], []
    for item in read_sets(folder):
        if item.model is None or not item.cls.startswith(("peptide", "protein")) or item.d_min > judge.config.d_worst:
            continue
        try:
            data = read_amplitudes(item.data, labin=LABIN.get(item.name))
            if data.cell.volume > most_volume or not data.spacegroup.is_sohncke():
                left.append(f"{item.name}: cell of {data.cell.volume:.0f} A^3, {data.spacegroup.hm}")
                continue
            f_calc = model_reference(item.model, data.hkl, data.cell, data.spacegroup, f_obs=data.f).f
        except (UserError, ValueError, RuntimeError) as error:
            left.append(f"{item.name}: {str(error).splitlines()[0][:100]}")
            continue
        normalised = normalise(data)
        stol2 = 0.25 / data.d**2
        scale = np.exp((normalised.wilson_b - JUDGE_B) * stol2)
        f = scale * normalised.f * np.exp(1j * np.angle(f_calc))
        rng = np.random.default_rng(zlib.crc32(item.name.encode()))
        for cc in (0.7, 0.9, 1.0):
            test = spoilt(rng, f, stol2, cc)
            odds = log_odds(judge, data.hkl, test, data.cell, data.spacegroup)
            facts = {"kind": "measured", "d_min": round(data.d_min, 2), "cc": cc, "name": item.name, "class": item.cls}
            rows.append(
                entry(odds, round(data.cell.volume / 20), f, test, multiplicity(data.hkl, data.spacegroup), **facts)
            )
    return rows, left


def right(rows: list[Row]) -> str:
    """Fraction right, and of how many."""
    return f"{np.mean([r['log_odds'] > 0 for r in rows]):.2f} ({len(rows)})" if rows else "-"


def grid(rows: list[Row], kind: str) -> list[str]:
    """Fraction right by resolution and correlation."""
    lines = ["| d_min (A) | " + " | ".join(f"CC {cc:g}" for cc in CC) + " |", "|---" * (len(CC) + 1) + "|"]
    for d in D_MIN:
        own = [[r for r in rows if (r["kind"], r["d_min"], r["cc"]) == (kind, d, cc)] for cc in CC]
        lines.append(f"| {d:g} | " + " | ".join(right(x) for x in own) + " |")
    return lines


def by_residues(rows: list[Row]) -> list[str]:
    """Fraction of small crystals right, by their number of residues."""
    lines = ["| residues | " + " | ".join(f"CC {cc:g}" for cc in SMALL_CC) + " |", "|---" * (len(SMALL_CC) + 1) + "|"]
    for low, high in RESIDUES:
        own = [[r for r in rows if (r["kind"], r["cc"], r.get("residues")) == ("small", cc, low)] for cc in SMALL_CC]
        lines.append(f"| {low if low == high else f'{low}-{high}'} | " + " | ".join(right(x) for x in own) + " |")
    return lines


def reliability(rows: list[Row]) -> list[str]:
    """How often the hand chosen was right, by the probability said of it."""
    lines = ["| probability said | maps | mean said | right |", "|---|---|---|---|"]
    p = np.array([1 / (1 + np.exp(-abs(r["log_odds"]))) for r in rows])
    good = np.array([r["log_odds"] > 0 for r in rows])
    for low, high in pairwise(BINS):
        inside = (p >= low) & ((p < high) | (high == 1.0))
        if inside.any():
            said = f"| {low:g}-{high:g} | {inside.sum()} | {p[inside].mean():.2f} | {good[inside].mean():.2f} |"
            lines.append(said)
    return lines


def report(rows: list[Row], left: list[str], digest: str, command: str) -> str:
    """The tables as markdown."""
    simulated = [r for r in rows if r["kind"] != "measured"]
    parts = [
        "# The hand judge\n", f"`{command}`; weights sha256 {digest[:12]}. Fraction of maps whose hand was told right "
        "(and number of maps). Both hands of each were scored: what one gives, the other gives with the opposite "
        "sign.\n",
        "## Dense boxes of held-out entries, P1\n", *grid(rows, "box"), "",
        "## Packed peptides of held-out entries, P21 and P212121\n", *grid(rows, "packed"), "",
        "## Small peptides of held-out entries, P1, 1.3 and 1.7 A\n", *by_residues(rows), "",
        "## By size\n", "Boxes and packed peptides, maps of CC 0.7 and better:\n",
        "| atoms in the cell | boxes | packed |", "|---|---|---|",
    ]  # fmt: skip
    good = [r for r in simulated if r["cc"] >= 0.7]
    for low, high in ((0, 100), (100, 150), (150, 250), (250, 10**6)):
        own = [[r for r in good if r["kind"] == k and low <= r["atoms"] < high] for k in ("box", "packed")]
        parts.append(f"| {low}-{high if high < 10**6 else ''} | {right(own[0])} | {right(own[1])} |")
    parts += ["", "## Calibration, simulated\n", *reliability(simulated), ""]
    tested = [r for r in rows if r["kind"] == "measured"]
    if tested:
        parts += ["## Measured amplitudes, phases of the model\n", "| set | class | d_min | CC 0.7 | CC 0.9 | model |",
                  "|---|---|---|---|---|---|"]  # fmt: skip
        for name in dict.fromkeys(r["name"] for r in tested):
            own = [r for r in tested if r["name"] == name]
            odds = " | ".join(f"{r['log_odds']:+.1f}" for r in own)
            parts.append(f"| {name} | {own[0]['class']} | {own[0]['d_min']:g} | {odds} |")
        for cc in (0.7, 0.9, 1.0):
            parts.append(f"\nRight at CC {cc:g}: {right([r for r in tested if r['cc'] == cc])}")
        parts += ["", "Calibration:\n", *reliability(tested), ""]
    if left:
        parts += ["\nLeft out:\n", *(f"- {line}" for line in left), ""]
    return "\n".join(parts)


def main() -> None:
    """Judge and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--coordinates", type=Path, required=True, help="folder of the protein coordinates")
    parser.add_argument("--sets", type=Path, help="folder of measured sets with README.csv [none]")
    parser.add_argument("--crystals", type=int, default=48, help="boxes, and half as many packed crystals")
    parser.add_argument("--most-volume", type=float, default=300_000.0, help="largest measured cell, A^3")
    parser.add_argument("--weights", type=Path, default=FOLDER, help="folder of hand-judge.json")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/hand"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    judge = load_hand_judge(folder=args.weights)
    library = load_library(args.coordinates, "holdout")
    rows = boxes(judge, library, args.crystals, args.seed)
    rows += packed(judge, library, args.crystals // 2, args.seed)
    rows += small(judge, library, args.crystals // 2, args.seed)
    tested, left = measured(judge, args.sets, args.most_volume) if args.sets else ([], [])
    rows += tested
    digest = read_card(HAND_JUDGE, args.weights).sha256
    sets = " --sets FOLDER" if args.sets else ""
    command = f"python benchmarks/hand.py --coordinates FOLDER{sets} --crystals {args.crystals} --seed {args.seed}"
    args.out.with_suffix(".md").write_text(report(rows, left, digest, command) + "\n")
    record = {"command": command, "weights_sha256": digest, "left_out": left, "rows": rows}
    args.out.with_suffix(".json").write_text(json.dumps(record, indent=None) + "\n")
    print(args.out.with_suffix(".md").read_text())


if __name__ == "__main__":
    main()
