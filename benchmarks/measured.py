#!/usr/bin/env python3
"""Run the installed ``ml_phaser`` over every measured data set and judge each result (see README.md)."""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# Files with several measurements, where the reader rightly asks which one to use: the native set.
LABIN = {"1dtx": "FP=FTOXD3 SIGFP=SIGFTOXD3"}
# The model deposited beside the data may be a search model or an unfinished one: a low CC is not all ours.
NOT_FINAL = {"1dtx", "1crb", "moorhen1", "moorhen2", "moorhen3", "rnasesa_coot"}
KILL_FACTOR, KILL_EXTRA = 3.0, 600.0  # a run is killed after limit x factor + extra seconds
SOLVED_CC, FALSE_CC = 0.7, 0.5  # map CC of a solved set; of a claim that was plainly wrong


@dataclass(frozen=True)
class DataSet:
    """One row of the data folder's README.csv; ``model`` is None where there is none."""

    name: str
    cls: str
    note: str
    data: Path
    model: Path | None
    d_min: float


@dataclass(frozen=True)
class Plan:
    """What is passed to the command; None leaves its default. Limits in seconds."""

    timelimit: float | None
    timelimit_protein: float | None
    threads: int | None
    engine: str | None
    seed: int | None
    keep_maps: bool
    own_limits: tuple[tuple[str, float], ...] = ()  # of single sets

    def limit(self, item: DataSet) -> float | None:
        """Time limit of a set: its own, else that for proteins where one was given."""
        protein = item.cls.startswith("protein") and self.timelimit_protein is not None
        return dict(self.own_limits).get(item.name, self.timelimit_protein if protein else self.timelimit)


def read_sets(folder: Path) -> list[DataSet]:
    """The sets README.csv lists, in order of class and resolution."""
    with (folder / "README.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    sets = [
        DataSet(
            row["name"],
            row["cls"],
            row["note"],
            folder / row["name"] / row["refl_file"],
            folder / row["name"] / row["model_file"] if row["model_file"] else None,
            float(row["d_min"]),
        )
        for row in rows
    ]
    return sorted(sets, key=sort_key)


def sort_key(item: DataSet) -> tuple[int, float, str]:
    """Small molecules first, then peptides, then proteins; better data first."""
    order = ("small_molecule", "peptide", "protein")
    place = next((i for i, start in enumerate(order) if item.cls.startswith(start)), len(order))
    return place, item.d_min, item.name


def find_command(name: str = "ml_phaser") -> str:
    """The installed command, on PATH or beside this Python."""
    beside = Path(sys.executable).with_name(name)
    found = shutil.which(name) or (str(beside) if beside.exists() else None)
    if found is None:
        sys.exit(f"measured: the command {name} is not installed (pip install -e .)")
    return found


def arguments(item: DataSet, plan: Plan, folder: Path) -> list[str]:
    """Command line of one set, without the command."""
    words = ["hklin", item.data, "mapout", folder / "pred.map", "hklout", folder / "pred.mtz"]
    words += ["jsonout", folder / "pred.json"]
    options = {
        "labin": LABIN.get(item.name),
        "timelimit": plan.limit(item),
        "threads": plan.threads,
        "engine": plan.engine,
        "seed": plan.seed,
    }
    for name, value in options.items():
        if value is not None:
            words += [name, f"{value:g}" if isinstance(value, float) else value]
    return [str(word) for word in [*words, "--overwrite"]]


class Runs:
    """Running commands, so that an interrupt can end those it started and no others."""

    def __init__(self) -> None:
        self.lock, self.live, self.stopped = threading.Lock(), set[int](), False

    def run(self, words: list[str], folder: Path, limit: float | None) -> dict[str, Any]:
        """Run to the end; seconds, peak memory in MB (of the largest process), exit status, killed?"""
        killed = threading.Event()
        start = time.monotonic()
        with (folder / "stdout.txt").open("wb") as out, (folder / "stderr.txt").open("wb") as err:
            with self.lock:
                if self.stopped:
                    raise KeyboardInterrupt
                process = subprocess.Popen(
                    words, stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True
                )
                self.live.add(process.pid)

            def kill() -> None:
                killed.set()
                self.end(process.pid)

            timer = threading.Timer((limit or 120.0) * KILL_FACTOR + KILL_EXTRA, kill)
            timer.start()
            _, status, usage = os.wait4(process.pid, 0)
            timer.cancel()
            process.returncode = os.waitstatus_to_exitcode(status)
            with self.lock:
                self.live.discard(process.pid)
                if self.stopped:  # no result: the set is to be run again
                    raise KeyboardInterrupt
        unit = 2**20 if sys.platform == "darwin" else 2**10  # bytes there, kilobytes elsewhere
        return {
            "seconds": round(time.monotonic() - start, 2),
            "peak_mb": round(usage.ru_maxrss / unit, 1),
            "exit": process.returncode,
            "killed": killed.is_set(),
        }

    def end(self, pid: int) -> None:
        """Kill one command and what it started (it leads a session of its own)."""
        with self.lock:
            if pid in self.live:
                os.killpg(pid, signal.SIGKILL)

    def stop(self) -> None:
        """Kill all that run and start no more."""
        with self.lock:
            self.stopped = True
            for pid in self.live:
                os.killpg(pid, signal.SIGKILL)


def tail(path: Path) -> str:
    """Non-empty lines of a file."""
    lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return "\n".join(line for line in lines if line.strip())


def check_files(folder: Path) -> list[str]:
    """What is wrong with the files of a run that claims success."""
    import gemmi
    import numpy as np

    faults = []
    try:
        density = np.asarray(gemmi.read_ccp4_map(str(folder / "pred.map")).grid)
        if not np.isfinite(density).all() or density.std() == 0:
            faults.append("pred.map is constant or not finite")
    except (OSError, RuntimeError, ValueError) as error:
        faults.append(f"pred.map: {first_line(error)}")
    try:
        missing = {"FWT", "PHWT", "PHIB", "FOM"} - set(gemmi.read_mtz_file(str(folder / "pred.mtz")).column_labels())
        if missing:
            faults.append(f"pred.mtz lacks {' '.join(sorted(missing))}")
    except (OSError, RuntimeError, ValueError) as error:
        faults.append(f"pred.mtz: {first_line(error)}")
    return faults


def first_line(error: BaseException) -> str:
    """An exception in one line."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def status_of(run: dict[str, Any], folder: Path) -> tuple[str, str]:
    """("ok", "error", "crashed", "killed" or "invalid", one line that says why)."""
    said = tail(folder / "stderr.txt")
    if run["killed"]:
        return "killed", "ran far past its time limit"
    if run["exit"] == 0:
        faults = check_files(folder)
        return ("invalid", "; ".join(faults)) if faults else ("ok", "")
    if run["exit"] == 1 and said and "Traceback" not in said:
        return "error", said.splitlines()[-1]
    return "crashed", said.splitlines()[-1] if said else f"exit status {run['exit']}, nothing on stderr"


def read_record(folder: Path) -> tuple[dict[str, Any], str]:
    """The command's run record and what is wrong with it."""
    try:
        record = json.loads((folder / "pred.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return {}, f"pred.json: {first_line(error)}"
    return (record, "") if isinstance(record, dict) else ({}, "pred.json is not a record")


def judge(item: DataSet, folder: Path) -> dict[str, Any]:
    """Agreement of pred.mtz with the model, or why there is none."""
    from ml_phaser.errors import UserError
    from ml_phaser.evaluation.reference import compare_files

    if item.model is None:
        return {"agreement": None, "model": "none"}
    try:
        result = compare_files(folder / "pred.mtz", item.model, phases=False)
    except UserError as error:
        return {"agreement": None, "model": "none" if "no atoms" in error.what else f"unusable: {error}"}
    model = "not final" if item.name in NOT_FINAL else "final"
    return {
        "agreement": asdict(result.agreement),
        "ceiling": result.ceiling,
        "model": model,
        "how": result.reference,
    }


def one_set(item: DataSet, plan: Plan, command: str, out: Path, runs: Runs) -> dict[str, Any]:
    """Run, check and judge one set; the row, which is also written to out/NAME.json."""
    folder = out / item.name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    words = arguments(item, plan, folder)
    limit = plan.limit(item)
    row: dict[str, Any] = {"set": item.name, "cls": item.cls, "note": item.note, "table_d_min": item.d_min}
    row |= {"limit": limit, "labin": LABIN.get(item.name), "command": ["ml_phaser", *words]}
    run = runs.run([command, *words], folder, limit)
    row |= run
    row["status"], row["error"] = status_of(run, folder)
    if row["status"] == "ok":
        record, fault = read_record(folder)
        if fault:
            row["status"], row["error"] = "invalid", fault
        for key in ("cell", "spacegroup", "d_min", "n_reflections", "verdict", "times", "hand", "version"):
            row[key] = record.get(key)
        row["columns"] = (record.get("source") or {}).get("columns")
        row["trials"] = len(record.get("trials") or [])
        try:
            row |= judge(item, folder)
        except Exception as error:  # a fault of the comparison must not cost the other sets their run
            row |= {
                "agreement": None,
                "model": f"comparison failed: {type(error).__name__}: {first_line(error)}",
            }
    if not plan.keep_maps:
        (folder / "pred.map").unlink(missing_ok=True)
    text = json.dumps(finite(row), indent=1, allow_nan=False)
    for place in (
        item.data.parent,
        folder,
    ):  # results are for sharing: file names without this machine's folders
        text = text.replace(json.dumps(f"{place}/")[1:-1], "")
    write_whole(out / f"{item.name}.json", text + "\n")
    return dict(json.loads(text))


def finite(value: Any) -> Any:
    """NaN and infinity to None, which JSON can hold."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: finite(x) for key, x in value.items()}
    return [finite(x) for x in value] if isinstance(value, (list, tuple)) else value


def write_whole(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


HEADER = (
    *("set", "class", "columns", "cell", "group", "d_min", "s", "MB", "trials", "verdict", "p"),
    *("CC", "phase err", "chance CC", "chance err", "ceiling", "hand", "remarks"),
)


def number(value: Any, digits: int) -> str:
    """A number, or a dash where there is none."""
    return "-" if value is None or (isinstance(value, float) and math.isnan(value)) else f"{value:.{digits}f}"


def cells(row: dict[str, Any]) -> list[str]:
    """One row of the table."""
    a, verdict = row.get("agreement") or {}, row.get("verdict") or {}
    remarks = [row["error"]] if row["error"] else []
    if row.get("model") not in (None, "final"):
        remarks.append(f"model: {row['model']}")
    if row.get("labin"):
        remarks.append(f"LABIN {row['labin']} given")
    hand = "-" if not a else "inverted" if a["inverted"] else "either" if a["hand_margin"] == 0 else "as given"
    return [
        row["set"],
        row["cls"],
        " ".join(row.get("columns") or ["-"]),
        " ".join(f"{x:.4g}" for x in row.get("cell") or []) or "-",
        row.get("spacegroup") or "-",
        number(row.get("d_min") or row["table_d_min"], 2),
        number(row["seconds"], 1),
        number(row["peak_mb"], 0),
        str(row.get("trials", "-")),
        verdict.get("word") or row["status"].upper(),
        number(verdict.get("probability"), 2),
        number(a.get("map_cc"), 3),
        number(a.get("phase_error"), 1),
        number(a.get("chance_cc"), 3),
        number(a.get("chance_phase_error"), 1),
        number(row.get("ceiling"), 3),
        hand,
        "; ".join(remarks).replace("|", "/").replace("\n", " "),
    ]


def summary(rows: list[dict[str, Any]]) -> list[str]:
    """Sentences about the whole table."""
    judged = [r for r in rows if r.get("agreement")]
    good = [r for r in judged if r["agreement"]["map_cc"] >= SOLVED_CC]
    claimed = [r for r in judged if (r.get("verdict") or {}).get("word") == "solved"]
    false = [r["set"] for r in claimed if r["agreement"]["map_cc"] < FALSE_CC]
    missed = [r["set"] for r in good if r not in claimed]
    failed = [f"{r['set']} ({r['status']})" for r in rows if r["status"] not in ("ok", "error")]
    errors = [r["set"] for r in rows if r["status"] == "error"]
    return [
        f"{len(rows)} sets; {len(judged)} judged by a model, {len(good)} of them at map CC >= {SOLVED_CC}.",
        f"Verdict solved: {len(claimed)} of the judged; with CC < {FALSE_CC}: {', '.join(false) or 'none'}.",
        f"CC >= {SOLVED_CC} not called solved: {', '.join(missed) or 'none'}.",
        f"Ended in an error of one line: {', '.join(errors) or 'none'}.",
        f"Crashed, killed or wrote bad files: {', '.join(failed) or 'none'}.",
    ]


def merge(out: Path, sets: list[DataSet]) -> list[dict[str, Any]]:
    """Gather the sets' JSON files into results.json and results.md, where sets without one keep their row; the rows."""
    results = out / "results.json"
    found = {row["set"]: row for row in json.loads(results.read_text(encoding="utf-8"))} if results.exists() else {}
    for path in (out / f"{item.name}.json" for item in sets):
        if path.exists():
            found[path.stem] = json.loads(path.read_text(encoding="utf-8"))
    rows = [found[item.name] for item in sets if item.name in found]
    write_whole(out / "results.json", json.dumps(rows, indent=1) + "\n")
    lines = ["# Measured data", "", *(f"- {line}" for line in summary(rows)), ""]
    lines += ["| " + " | ".join(HEADER) + " |", "|" + "---|" * len(HEADER)]
    lines += ["| " + " | ".join(cells(row)) + " |" for row in rows]
    write_whole(out / "results.md", "\n".join(lines) + "\n")
    return rows


def own_limits(words: str) -> dict[str, float | None]:
    """Names out of "a,b:60", and the seconds of those that have a limit of their own. Raises ValueError."""
    pairs = [word.partition(":") for word in words.split(",") if word]
    return {name: float(seconds) if colon else None for name, colon, seconds in pairs}


def parse(argv: list[str]) -> argparse.Namespace:
    """Arguments."""
    parser = argparse.ArgumentParser(prog="measured.py", description=__doc__)
    add = parser.add_argument
    data = ROOT.parent / "shared" / "data" / "diffraction"
    add("--data", type=Path, default=data, help="folder with README.csv [../shared/data/diffraction]")
    add("--out", type=Path, default=ROOT / "benchmarks" / "results" / "measured", help="folder for results")
    add("--sets", default="", help="only these, commas between; NAME:SECONDS has a limit of its own")
    add("--redo", action="store_true", help="also run the sets that have a result")
    add("--timelimit", type=float, help="seconds of phasing per set, passed on [the command's default]")
    add("--timelimit-protein", type=float, help="the same for classes protein_* [timelimit]")
    add("--threads", type=int, help="threads per run, passed on [the command's default]")
    add("--engine", help="passed on [the command's default]")
    add("--seed", type=int, help="passed on [the command's default]")
    add("--jobs", type=int, default=1, help="runs at a time [1]")
    add("--keep-maps", action="store_true", help="do not remove the maps once checked")
    add("--progress", action="store_true", help="say on stderr what starts and how many are left")
    return parser.parse_args(argv)


def main(argv: list[str]) -> int:
    """0 where every set ended in valid files or a one-line error."""
    options = parse(argv)
    if not (options.data / "README.csv").is_file():
        sys.exit(f"measured: no README.csv in {options.data}; give --data")
    sets = read_sets(options.data)
    try:
        limits = own_limits(options.sets)
    except ValueError:
        sys.exit(f"measured: --sets {options.sets}: after a colon comes a number of seconds")
    wanted = list(limits)
    unknown = set(wanted) - {item.name for item in sets}
    if unknown:
        sys.exit(f"measured: no such sets: {' '.join(sorted(unknown))}")
    options.out.mkdir(parents=True, exist_ok=True)
    todo = [
        item
        for item in sets
        if (not wanted or item.name in wanted) and (options.redo or not (options.out / f"{item.name}.json").exists())
    ]
    command = find_command()
    plan = Plan(
        options.timelimit,
        options.timelimit_protein,
        options.threads,
        options.engine,
        options.seed,
        options.keep_maps,
        tuple((name, seconds) for name, seconds in limits.items() if seconds is not None),
    )
    runs = Runs()
    print(" | ".join(HEADER), flush=True)
    with ThreadPoolExecutor(max(1, options.jobs)) as pool:
        waiting = {pool.submit(one_set, item, plan, command, options.out, runs): item for item in todo}
        try:
            for done, future in enumerate(as_completed(waiting), start=1):
                print(" | ".join(cells(future.result())), flush=True)
                merge(options.out, sets)
                if options.progress:
                    print(f"measured: {done} of {len(todo)} done", file=sys.stderr, flush=True)
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            runs.stop()
            print("measured: interrupted; run again to go on", file=sys.stderr)
            return 130
    rows = merge(options.out, sets)
    print(*summary(rows), sep="\n")
    return int(any(row["status"] not in ("ok", "error") for row in rows))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
