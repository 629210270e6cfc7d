#!/usr/bin/env python3
"""Shake deposited models and let ``ml_phaser refine`` bring them back (see README.md).

    python benchmarks/refine.py
    python benchmarks/refine.py --sets 1dur,4xof --redo

Writes refine.json and refine.md; cases that are in the first are skipped.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from measured import ROOT, DataSet, number, read_sets, write_whole

RESULTS = ROOT / "benchmarks" / "results"
# (set, shake in A, macrocycles [the command's own])
CASES: tuple[tuple[str, float, int | None], ...] = (
    ("5awl", 0.3, None), ("4xof", 0.3, None), ("4lzt", 0.3, None), ("1aba", 0.3, None), ("1aie", 0.3, None),
    ("1zyt", 0.3, None), ("1dur", 0.3, None), ("1bff", 0.3, None), ("1rx4", 0.3, None), ("5bmi", 0.3, None),
    ("1va7", 0.3, None), ("4xof", 0.5, 6), ("1dur", 0.5, 6), ("1bff", 0.5, 6),
)  # fmt: skip


def shaken(model: Path, rms: float, out: Path, reference: Path) -> None:
    """Write the model without hydrogens: as it is (``reference``); moved by a Gaussian of ``rms`` A, with all B set to
    their mean (``out``)."""
    import gemmi
    import numpy as np

    from ml_phaser.exchange.model import read_model

    st = read_model(model).structure
    assert isinstance(st, gemmi.Structure)
    st.remove_hydrogens()
    st.write_pdb(str(reference))
    rng = np.random.default_rng(0)
    atoms = [cra.atom for cra in st[0].all()]
    mean_b = float(np.mean([a.b_iso for a in atoms]))
    for atom in atoms:
        atom.pos = gemmi.Position(*(np.array(atom.pos.tolist()) + rng.normal(0, rms / math.sqrt(3), 3)))
        atom.b_iso, atom.aniso = mean_b, gemmi.SMat33f(0, 0, 0, 0, 0, 0)
    st.write_pdb(str(out))


def moved(a: Path, b: Path) -> dict[str, float]:
    """Root mean square and median distance of the same atoms in two files, A: of all but water, main chain, water."""
    import gemmi
    import numpy as np

    structures = [gemmi.read_structure(str(p)) for p in (a, b)]  # their atoms live as long as they do
    first, second = (list(st[0].all()) for st in structures)
    distance = np.array([x.atom.pos.dist(y.atom.pos) for x, y in zip(first, second, strict=True)])
    water = np.array([x.residue.name == "HOH" for x in first])
    main = np.array([x.atom.name in ("N", "CA", "C", "O") for x in first]) & ~water
    rms = {n: float(np.sqrt(np.mean(distance[m] ** 2))) if m.any() else math.nan for n, m in
           (("model", ~water), ("main_chain", main), ("water", water))}  # fmt: skip
    return rms | {"median": float(np.median(distance[~water]))}


def refine(xyzin: Path, hklin: Path, folder: Path, name: str, cycles: int | None, threads: int) -> dict[str, Any]:
    """Run the command in a process of its own: its record, seconds, peak memory in MB."""
    files = {k: folder / f"{name}{s}" for k, s in (("xyzout", ".pdb"), ("hklout", ".mtz"), ("jsonout", ".json"))}
    words = [sys.executable, "-m", "ml_phaser", "refine", "xyzin", xyzin, "hklin", hklin, "threads", threads]
    words += [w for pair in files.items() for w in pair]
    words += ["cycles", cycles] if cycles is not None else []
    start = time.monotonic()
    process = subprocess.Popen(
        [str(w) for w in words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"OMP_NUM_THREADS": str(threads)},
    )  # fmt: skip
    assert process.stderr is not None
    said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError((said.strip().splitlines() or ["it failed without a word"])[-1])
    record: dict[str, Any] = json.loads(files["jsonout"].read_text(encoding="utf-8"))
    cpu = usage.ru_utime + usage.ru_stime
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return record | {
        "wall": round(time.monotonic() - start, 1), "cpu": round(cpu, 1), "peak_mb": round(usage.ru_maxrss / unit),
        "model": str(files["xyzout"]),
    }  # fmt: skip


def one_case(item: DataSet, rms: float, cycles: int | None, threads: int) -> dict[str, Any]:
    """The row of one set and shake."""
    row: dict[str, Any] = {"set": item.name, "shake": rms}
    if item.model is None:
        return row | {"status": "no model"}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        reference, start = folder / "reference.pdb", folder / "shaken.pdb"
        shaken(item.model, rms, start, reference)
        try:
            deposited = refine(reference, item.data, folder, "deposited", 0, threads)
            done = refine(start, item.data, folder, "refined", cycles, threads)
        except RuntimeError as error:
            return row | {"status": str(error)}
        keys = ("r_work", "r_free", "bonds", "angles", "mean_b")
        rows = {"deposited": deposited["cycles"][0], "shaken": done["cycles"][0], "refined": done["cycles"][-1]}
        row |= {name: {k: r[k] for k in keys} for name, r in rows.items()}
        row |= {
            "away_before": moved(start, reference),
            "away_after": moved(Path(done["model"]), reference),
            "atoms": done["atoms"],
            "reflections": done["reflections"],
            "test_set": done["test_set"],
            "flags_of_file": not any("set aside" in note for note in done["notes"]),
            "d_min": done["resolution"][1],
            "spacegroup": done["spacegroup"],
            "target": done["target"],
            "table": done["cycles"],
            "verdict": done["verdict"],
            "seconds": done["wall"],
            "cpu_seconds": done["cpu"],
            "peak_mb": done["peak_mb"],
            "status": "ok",
        }
    return row


def tables(rows: list[dict[str, Any]]) -> list[str]:
    """The Markdown file's lines."""
    good = [r for r in rows if r["status"] == "ok"]
    fell = sum(r["refined"]["r_free"] < r["shaken"]["r_free"] for r in good)
    nearer = sum(r["away_after"]["main_chain"] < r["away_before"]["main_chain"] for r in good)
    heads = (
        "set", "group", "d_min", "atoms", "reflections", "shake", "deposited R", "shaken R", "refined R",
        "away, all", "away, median", "away, main chain", "bonds", "angles", "cpu s", "MB",
    )  # fmt: skip
    out = [
        "# Shaken models refined",
        "",
        f"{len(good)} of {len(rows)} cases ran. R_free fell in {fell}; the main chain came nearer to the deposited one",
        f"in {nearer}.",
        "",
        "R is R_work / R_free, all scaled alike; \\* marks sets without a test set of their own: the deposited model",
        "had been refined against the reflections set aside here. Away: rms or median distance (A) from the deposited",
        "atoms, before -> after, without water. Bonds (A), angles (degrees): rms deviation from ideal, deposited ->",
        "refined.",
        "",
        "| " + " | ".join(heads) + " |",
        "|" + "---|" * len(heads),
    ]
    for r in rows:
        if r["status"] != "ok":
            out.append(f"| {r['set']} | | | | | {r['shake']:g} | {r['status']} |" + " |" * 9)
            continue

        def both(name: str, digits: int = 2, r: dict[str, Any] = r) -> str:
            return " -> ".join(number(r[k][name], digits) for k in ("away_before", "away_after"))

        def from_to(name: str, digits: int, r: dict[str, Any] = r) -> str:
            return " -> ".join(number(r[k][name], digits) for k in ("deposited", "refined"))

        r_values = [" / ".join(number(r[k][n], 3) for n in ("r_work", "r_free")) for k in
                    ("deposited", "shaken", "refined")]  # fmt: skip
        cells = [
            r["set"] + ("" if r["flags_of_file"] else "\\*"), r["spacegroup"], number(r["d_min"], 2), str(r["atoms"]),
            str(r["reflections"]), f"{r['shake']:g}", *r_values, both("model"), both("median"), both("main_chain"),
            from_to("bonds", 3), from_to("angles", 1), number(r["cpu_seconds"], 0), str(r["peak_mb"]),
        ]  # fmt: skip
        out.append("| " + " | ".join(cells) + " |")
    return out


def main(argv: list[str]) -> int:
    """Command line; exit status."""
    parser = argparse.ArgumentParser(
        prog="refine.py", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add(
        "--data", type=Path, default=ROOT.parent / "shared" / "data" / "diffraction", help="folder of the measured sets"
    )
    add("--out", type=Path, default=RESULTS, help="folder for refine.json and refine.md")
    add("--sets", help="only these, separated by commas")
    add("--threads", type=int, default=1, help="processor threads [1]")
    add("--redo", action="store_true", help="also cases that are done")
    options = parser.parse_args(argv)
    if not (options.data / "README.csv").is_file():
        sys.exit(f"refine: no README.csv in {options.data}")
    sets = {item.name: item for item in read_sets(options.data)}
    path = options.out / "refine.json"
    done = {(r["set"], r["shake"]): r for r in json.loads(path.read_text())} if path.is_file() else {}
    wanted = set(options.sets.split(",")) if options.sets else set(sets)
    for name, rms, cycles in CASES:
        if name not in wanted or name not in sets or ((name, rms) in done and not options.redo):
            continue
        done[name, rms] = row = one_case(sets[name], rms, cycles, options.threads)
        print(name, rms, row["status"], row.get("refined"), flush=True)
        order = [(n, s) for n, s, _ in CASES if (n, s) in done]
        rows = [done[key] for key in order]
        write_whole(path, json.dumps(rows, indent=1) + "\n")
        write_whole(options.out / "refine.md", "\n".join(tables(rows)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
