#!/usr/bin/env python3
"""What a cycle costs against the volume of the cell, and what training gets out of the device.

    python -m benchmarks.cost --run runs/RUN

writes benchmarks/results/cost.json and cost.md. A cycle is a density projection and the Fourier transforms of relaxed
reflections, on random amplitudes to ``--d-min`` in a cubic cell. Every volume runs in a process of its own; its memory
is what the cycle needs beyond the libraries and the network. On a processor time is that of the process divided by its
threads, so that other work on the machine does little harm; the rate of training is by the clock of its log. Without
``--run`` nothing is said about training.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.phasing.runner import finite, memory_status, resident
from benchmarks.phasing.statistics import exponent
from benchmarks.phasing.tables import number, table

ROOT = Path(__file__).resolve().parents[1]
VOLUMES = (8e3, 2e4, 5e4, 1.2e5, 3e5, 8e5, 2e6)  # A^3
BATCHES = (1, 2, 4, 8, 16)
KINDS = ("learned", "classical")
REPEATS = 5
FORWARDS = 3.0  # forward passes that a forward and a backward one cost


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="benchmarks.cost", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--volumes", default=",".join(f"{v:g}" for v in VOLUMES), help="A^3, commas between")
    add("--d-min", type=float, default=1.8, help="A [1.8]")
    add("--name", help="bundled network [the default one]")
    add("--device", default="cpu", choices=("cpu", "cuda"))
    add("--threads", type=int, default=1, help="processor threads [1]")
    add("--seconds", type=float, default=4.0, help="repeat for so long, at most five times [4]")
    add("--memory", type=float, default=8.0, help="GB a process may take [8]")
    add("--run", type=Path, help="folder of a training run")
    add("--out", type=Path, default=ROOT / "benchmarks" / "results" / "cost.json")
    add("--worker", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.worker:
        print(json.dumps(finite(work(args.worker[0], float(args.worker[1]), args))))
        return 0

    from ml_phaser.atomic import atomic

    rows = []
    for kind in KINDS:
        for volume in map(float, args.volumes.split(",")):
            rows.append(in_process(kind, volume, args))
            print(json.dumps(rows[-1]), flush=True)
    facts = {"device": args.device, "threads": args.threads, "d_min": args.d_min, "memory_gb": args.memory}
    report = {**facts, **json.loads(subprocess_text(["--worker", "device", "0"], args)), "rows": rows, "training": None}
    if args.run:
        report["training"] = json.loads(subprocess_text(["--worker", "training", "0"], args))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    text = markdown(report)
    for path, content in ((args.out, json.dumps(report, indent=1) + "\n"), (args.out.with_suffix(".md"), text)):
        with atomic(path) as part:
            part.write_text(content, encoding="utf-8")
    print(text)
    return 0


def in_process(kind: str, volume: float, args: argparse.Namespace) -> dict[str, Any]:
    """The row of one method at one volume."""
    try:
        return {"kind": kind, "volume": volume, **json.loads(subprocess_text(["--worker", kind, f"{volume}"], args))}
    except subprocess.CalledProcessError as error:
        lines = (error.stderr or "").strip().splitlines()[-1:] or ["killed"]
        short = any(word in (error.stderr or "") for word in ("MemoryError", "allocate memory", "bad_alloc"))
        return {
            "kind": kind, "volume": volume, "note": f"more than {args.memory:g} GB" if short else lines[0][:120]
        }  # fmt: skip


def subprocess_text(words: list[str], args: argparse.Namespace) -> str:
    """Last line that this program prints with other words, with the limits of this run; CalledProcessError."""
    limit = int(args.memory * 2**30)
    command = [sys.executable, "-m", "benchmarks.cost", *words, "--d-min", str(args.d_min), "--device", args.device]
    command += ["--seconds", str(args.seconds), "--threads", str(args.threads)]
    command += ["--name", args.name] if args.name else []
    command += ["--run", str(args.run.resolve())] if args.run else []
    environment = dict(os.environ, OMP_NUM_THREADS=str(args.threads), MKL_NUM_THREADS=str(args.threads))

    def limits() -> None:
        if args.device == "cpu":  # CUDA reserves addresses by the terabyte
            resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))

    done = subprocess.run(
        command, env=environment, cwd=ROOT, capture_output=True, text=True, preexec_fn=limits, check=True
    )
    return done.stdout.strip().splitlines()[-1]


def work(kind: str, volume: float, args: argparse.Namespace) -> dict[str, Any]:
    """In a process of its own: what is asked for."""
    import torch

    torch.set_num_threads(args.threads)
    if kind == "device":
        return device_facts(args)
    if kind == "training":
        return training(args.run, peaks(args.device), args)
    return cycle_cost(kind, volume, args)


def made_problem(volume: float, d_min: float, spacing: float, multiple: int, device: str):  # type: ignore[no-untyped-def]
    """Random amplitudes to ``d_min`` (A) of a cubic cell of ``volume`` (A^3), P1, none held out."""
    import gemmi
    import numpy as np

    from ml_phaser.phasing.problem import pose

    edge = volume ** (1 / 3)
    cell, group = gemmi.UnitCell(edge, edge, edge, 90, 90, 90), gemmi.SpaceGroup("P 1")
    hkl = gemmi.make_miller_array(cell, group, d_min)
    moduli = np.sqrt(np.random.default_rng(0).exponential(size=len(hkl)))
    ones, none = np.ones(len(hkl)), np.zeros(len(hkl), dtype=bool)
    return pose(hkl, moduli, ones, none, cell, group, spacing=spacing, multiple=multiple, place=device)


def cycle_cost(kind: str, volume: float, args: argparse.Namespace) -> dict[str, Any]:
    """Seconds of a cycle with one map, seconds of a map's cycle at the batch that makes it least, and memory of one."""
    import torch

    from ml_phaser.learned import density_projection
    from ml_phaser.networks.store import PROJECTOR, load_projector
    from ml_phaser.phasing.dual_space import Relaxed, sparse
    from ml_phaser.plan import atoms_share

    network = load_projector(args.name or PROJECTOR).to(args.device)
    before = resident()
    spacing = network.config.spacing
    problem = made_problem(volume, args.d_min, spacing, network.config.stride, args.device)
    projection = density_projection(network, problem) if kind == "learned" else sparse(atoms_share(args.d_min, 1.0))
    method = Relaxed(problem, projection, 0.6, kind, keep_mean=False)
    generator = torch.Generator().manual_seed(0)
    row: dict[str, Any] = {"points": problem.points, "reflections": len(problem.hkl)}
    best = (float("inf"), 0)
    for batch in BATCHES:
        x = problem.random_starts(batch, generator)
        if batch == 1:
            reset_peak(args.device)
        seconds = best_time(lambda x=x: method.advance(x, 1), args.seconds, args.device) / batch
        if batch == 1:
            row |= {"seconds": seconds, "mb": peak_mb(args.device, before)}
        best = min(best, (seconds, batch))
        if seconds * batch > args.seconds or row["mb"] * 2 * batch > 0.5 * 1024 * args.memory:
            break
    return {**row, "best_seconds": best[0], "best_batch": best[1]}


def now(device: str) -> float:
    """Seconds: of the process for each of its threads, or by the clock once a GPU has done what it was told."""
    import torch

    if device != "cuda":
        return time.process_time() / torch.get_num_threads()
    torch.cuda.synchronize()
    return time.perf_counter()


def best_time(call: Callable[[], Any], seconds: float, device: str) -> float:
    """Least seconds of a few calls after one that is not counted."""
    took: list[float] = []
    while len(took) <= REPEATS and (len(took) < 2 or sum(took) < seconds):
        start = now(device)
        call()
        took.append(now(device) - start)
    return min(took[1:])


def reset_peak(device: str) -> None:
    """Begin to count the peak of memory anew."""
    import torch

    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        resident()


def peak_mb(device: str, before: float) -> float:
    """Peak since ``reset_peak`` in MB, on a processor less the ``before`` MB of the libraries and the network."""
    import torch

    if device == "cuda":
        return round(torch.cuda.max_memory_allocated() / 2**20, 1)
    return round(memory_status("VmHWM") - before, 1)


def device_facts(args: argparse.Namespace) -> dict[str, Any]:
    """The device, its peak, and the network's floating-point operations for a grid point."""
    from benchmarks.phasing.runner import record
    from ml_phaser.networks.store import PROJECTOR, load_projector, read_card

    name = args.name or PROJECTOR
    machine = record({})
    if args.device == "cuda":
        import torch

        machine["machine"]["processor"] = torch.cuda.get_device_name()
    return {
        "machine": machine["machine"], "software": machine["software"],
        "network": {"name": name, "sha256": read_card(name).sha256},
        "flop_per_point": flop_per_point(load_projector(name)), "peak": peaks(args.device),
    }  # fmt: skip


def peaks(device: str) -> dict[str, float]:
    """Floating-point operations a second of large matrix products in float32 and bfloat16."""
    import torch

    n = 8192 if device == "cuda" else 1024
    found = {}
    for kind in ("float32", "bfloat16"):
        a = torch.randn(n, n, device=device).to(getattr(torch, kind))
        found[kind] = 2 * n**3 / best_time(lambda a=a: a @ a, 3.0, device)
    return found


def flop_per_point(network: Any) -> float:
    """Of one pass of the network, transforms left out, for a grid point."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from ml_phaser.learned import density_projection

    problem = made_problem(14.4**3, 1.8, network.config.spacing, network.config.stride, "cpu")
    x = problem.random_starts(1, torch.Generator().manual_seed(0))
    projection = density_projection(network.eval(), problem)
    with FlopCounterMode(display=False) as counter:
        projection(x)
    return counter.get_total_flops() / problem.points


def training(folder: Path, peak: dict[str, float], args: argparse.Namespace) -> dict[str, Any]:
    """Samples a second of a run's last session, and what share of the device's peak that is."""
    import numpy as np

    from ml_phaser.networks.projector import Projector
    from ml_phaser.networks.store import config_from
    from ml_phaser.simulate.batches import SHAPES

    run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines() if line]
    session = run["sessions"][-1]
    rates = samples_per_second(log, run["seconds"] - session["seconds"])
    shapes = run.get("recipe", {}).get("shapes", SHAPES)  # early runs do not say
    points = float(np.mean([np.prod(shape) for shape in shapes]))
    flop = flop_per_point(Projector(config_from(run["config"], "run.json"))) * points * FORWARDS
    precision = "bfloat16" if "bfloat16" in session["precision"] else "float32"
    here = session["device"] == args.device and session["threads"] == args.threads
    rate = float(np.median(rates)) if rates else float("nan")
    return {
        "samples_per_second": rate, "slowest": min(rates, default=None), "fastest": max(rates, default=None),
        "overall": session["samples"] / session["seconds"] if session["seconds"] else None,
        "device": session["device"], "processor": session["processor"], "threads": session["threads"],
        "workers": session["workers"], "precision": precision, "batch": session["schedule"]["batch"],
        "samples": run["samples"], "gflop_per_sample": flop / 1e9, "passes": FORWARDS,
        "share_of_peak": rate * flop / peak[precision] if here else None,
    }  # fmt: skip


def samples_per_second(log: Sequence[dict[str, Any]], since: float) -> list[float]:
    """Between neighbouring lines of a log, of those later than ``since`` seconds of training."""
    late = [row for row in log if row["seconds"] >= since]
    return [
        (b["samples"] - a["samples"]) / (b["seconds"] - a["seconds"])
        for a, b in pairwise(late)
        if b["seconds"] > a["seconds"]
    ]


def fits(rows: Sequence[dict[str, Any]], kind: str) -> dict[str, tuple[float, float, float]]:
    """Exponents of cost against volume with their intervals, by what costs."""
    mine = [r for r in rows if r["kind"] == kind and "seconds" in r]
    return {
        what: exponent([r["volume"] for r in mine], [r[what] for r in mine])
        for what in ("seconds", "best_seconds", "mb")
    }


def markdown(report: dict[str, Any]) -> str:
    """The report in words and tables."""
    peak, machine = report["peak"], report["machine"]
    where = f"{machine['processor'] or machine['architecture']}, {report['threads']} threads"
    lines = [
        "# Cost of a cycle", "",
        f"- {where} ({report['device']}); network {report['network']['name']} {report['network']['sha256'][:12]}",
        f"- the device's own peak, by large matrix products: {peak['float32'] / 1e9:.0f} GFLOP/s in float32, "
        f"{peak['bfloat16'] / 1e9:.0f} in bfloat16",
        f"- the network: {report['flop_per_point'] / 1e3:.1f} kFLOP a grid point and pass (convolutions and linear "
        "layers as counted; transforms not)",
        f"- cycle: density projection and transforms of relaxed reflections, one map; data to {report['d_min']:g} A, "
        "cubic cell; memory beyond libraries and network", "",
    ]  # fmt: skip
    head = ("", "A^3", "grid points", "s a cycle", "s a map, best batch", "of", "MB", "GFLOP/s of the network", "")
    body = []
    for r in report["rows"]:
        rate = report["flop_per_point"] * r["points"] / r["seconds"] / 1e9 if "seconds" in r else None
        body.append([
            r["kind"], f"{r['volume']:.3g}", str(r.get("points", "-")), number(r.get("seconds"), 4),
            number(r.get("best_seconds"), 4), str(r.get("best_batch", "-")), number(r.get("mb"), 0),
            number(rate, 1) if r["kind"] == "learned" else "", r.get("note", ""),
        ])  # fmt: skip
    lines += [*table(head, body), "", "Exponents b of cost = a V^b, least squares of the logarithms [95 %]:", ""]
    body = []
    for kind in KINDS:
        found = fits(report["rows"], kind)
        body.append([kind, *(f"{b:.2f} [{low:.2f}, {high:.2f}]" for b, low, high in found.values())])
    lines += table(["", "time, one map", "time, best batch", "memory"], body)
    if t := report["training"]:
        share = "not known here" if t["share_of_peak"] is None else f"{t['share_of_peak']:.0%}"
        lines += ["", "## Training", ""]
        lines += [
            f"{number(t['samples_per_second'], 1)} samples a second ({number(t['slowest'], 1)} to "
            f"{number(t['fastest'], 1)} between lines of the log) on {t['processor']} ({t['device']}, {t['threads']} "
            f"threads, {t['workers']} workers), batch {t['batch']}, {t['precision']}; {t['gflop_per_sample']:.1f} "
            f"GFLOP a sample (a step counted as {t['passes']:.2f} forward passes); share of the device's peak in "
            f"{t['precision']}: {share}."
        ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
