"""Runs units of work, one process each, and keeps their rows; a run that was stopped goes on where it was."""

from __future__ import annotations

import contextlib
import json
import math
import multiprocessing
import os
import platform
import resource
import signal
import sys
import time
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from benchmarks.phasing.crystals import Crystal, Recipe, get, prepare
from benchmarks.phasing.entrants import Entrant

PATIENCE = 12.0  # times a unit's budget, and
EXTRA = 120.0  # seconds more, after which it is ended
SHELLS = 5
Row = dict[str, Any]


@dataclass(frozen=True)
class Unit:
    """One entrant on one crystal."""

    recipe: Recipe
    entrant: str

    @property
    def name(self) -> str:
        return f"{self.recipe.task} | {self.recipe.name} | {self.entrant}"


def run(units: list[Unit], who: dict[str, Entrant], path: Path, *, jobs: int, seed: int) -> list[Row]:
    """Do what ``path`` (one JSON row a line) does not hold yet; all rows, in the order of the units.

    Raises KeyboardInterrupt once the running units are ended; their rows are not kept.
    """
    import ml_phaser.plan
    import ml_phaser.simulate.families  # noqa: F401  (here, so that no unit pays for the imports)

    rows = read_rows(path)
    todo = [unit for unit in units if unit.name not in rows]
    prepare(unit.recipe for unit in todo)
    began, finished = time.monotonic(), 0
    running: dict[Any, tuple[Any, Unit, float, Path]] = {}  # sentinel -> process, unit, when to end it, its row
    context = multiprocessing.get_context("fork")
    waiting = list(reversed(todo))
    part = path.with_name(path.name + ".units")
    part.mkdir(parents=True, exist_ok=True)
    stopped: list[int] = []  # an exception out of a signal can get lost in a destructor; a note cannot
    handlers = {s: signal.signal(s, lambda number, _: stopped.append(number)) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        with path.open("a+", encoding="utf-8") as out:
            if out.tell() and not path.read_bytes().endswith(b"\n"):  # a line cut off must not spoil the next
                out.write("\n")
            while waiting or running:
                if stopped:
                    raise KeyboardInterrupt
                while waiting and len(running) < jobs:
                    unit = _next(waiting, [u for _, u, _, _ in running.values()])
                    if unit is None:
                        break
                    result = part / f"{len(waiting)}.json"
                    process = context.Process(target=_work, args=(unit, who[unit.entrant], seed, result))
                    process.start()
                    limit = time.monotonic() + PATIENCE * unit.recipe.seconds + EXTRA
                    running[process.sentinel] = (process, unit, limit, result)
                for sentinel in wait(list(running), timeout=1.0):
                    process, unit, _, result = running.pop(sentinel)
                    process.join()
                    row = _collect(unit, result, process.exitcode)
                    rows[unit.name] = row
                    out.write(json.dumps(row) + "\n")
                    out.flush()
                    finished += 1
                    _progress(finished, len(todo), time.monotonic() - began, unit.name)
                for process, _, limit, _ in running.values():
                    if time.monotonic() > limit:
                        _end(process)
    finally:
        for process, _, _, _ in running.values():
            _end(process)
            process.join()
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for left in part.glob("*"):
            left.unlink()
        part.rmdir()
        if sys.stderr.isatty() and todo:
            print(file=sys.stderr)
    return [rows[unit.name] for unit in units]


def _next(waiting: list[Unit], busy: list[Unit]) -> Unit | None:
    """The next unit (the last of the list) whose crystal is not just being made by another."""
    making = {u.recipe.key() for u in busy if u.entrant == "centred blob"}
    for i in range(len(waiting) - 1, -1, -1):
        if waiting[i].recipe.key() not in making:
            return waiting.pop(i)
    return None


def _work(unit: Unit, entrant: Entrant, seed: int, result: Path) -> None:
    """In the child: phase, judge, write the row."""
    os.setsid()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    import torch

    torch.set_num_threads(1)
    from ml_phaser.errors import UserError

    try:
        crystal = get(unit.recipe)
    except Exception as error:  # a row of the table says so
        row: Row = {"status": "no crystal", "said": f"{type(error).__name__}: {error}".splitlines()[0]}
    else:
        before, began, cpu = resident(), time.monotonic(), _cpu()
        try:
            answer = entrant(crystal, unit.recipe.seconds, seed)
        except UserError as error:
            answer, row = None, {"status": "failed", "said": str(error)}
        except Exception as error:  # an entrant's fault is a row of the table, not the end of the benchmark
            answer, row = None, {"status": "failed", "said": f"{type(error).__name__}: {error}".splitlines()[0]}
        used = {"seconds": round(time.monotonic() - began, 3), "cpu": round(_cpu() - cpu, 3), **_memory(before)}
        if answer is not None:
            row = {
                "status": "ok" if answer.f is not None else "no answer", "said": answer.said, "starts": answer.starts,
                "score": answer.score, "claimed": answer.claimed,
            }  # fmt: skip
            if answer.f is not None:
                row |= judged(crystal, answer.f, answer.own, unit.entrant == "random phases", seed)
        row |= {**used, "facts": crystal.facts}
    part = result.with_suffix(".part")
    part.write_text(json.dumps(finite(row)), encoding="utf-8")
    part.replace(result)
    os._exit(0)


def judged(crystal: Crystal, f: Any, own: bool, chance: bool, seed: int) -> Row:
    """Agreement with the truth, at the best permitted origin and hand, of the measured amplitudes with the phases
    found; reflections without a phase count as missing from the map and as 90 degrees off."""
    import numpy as np

    from ml_phaser.crystal.agreement import compare

    data = crystal.data
    known = np.isfinite(crystal.f)
    map_f = f if own else np.where(f == 0, 0, data.f * np.exp(1j * np.angle(np.where(f == 0, 1, f))))
    a = compare(
        data.hkl[known], map_f[known], crystal.f[known], data.cell, data.spacegroup,
        repeats=10 if chance else 0, seed=seed, n_shells=SHELLS,
    )  # fmt: skip
    shells = [
        {"d_max": round(s.d_max, 3), "d_min": round(s.d_min, 3), "n": s.n, "cc": round(s.cc, 4),
         "phase_error": round(s.phase_error, 2)}
        for s in a.shells
    ]  # fmt: skip
    cc, error = (a.chance_cc, a.chance_phase_error) if chance else (a.map_cc, a.phase_error)
    return {"cc": round(cc, 4), "phase_error": round(error, 2), "shells": shells, "inverted": a.inverted,
            "hand_margin": round(a.hand_margin, 4)}  # fmt: skip


def _collect(unit: Unit, result: Path, exitcode: int | None) -> Row:
    try:
        row = json.loads(result.read_text(encoding="utf-8"))
        result.unlink()
    except (OSError, ValueError):
        row = {"status": "failed", "said": f"ended by signal {-exitcode}" if exitcode and exitcode < 0 else "crashed"}
    head = {"unit": unit.name, "task": unit.recipe.task, "crystal": unit.recipe.name, "entrant": unit.entrant}
    return {**head, "point": dict(unit.recipe.point), "budget": unit.recipe.seconds, **row}


def read_rows(path: Path) -> dict[str, Row]:
    """Rows by unit; a last line cut off is left out."""
    rows = {}
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                continue
            rows[row["unit"]] = row
    return rows


def _end(process: Any) -> None:
    """Kill a unit and what it started: it leads a session of its own."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        process.kill()


def _cpu() -> float:
    """Processor seconds of this process and the ended ones it started."""
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in usage)


def memory_status(field: str) -> float:
    """Memory in MB by /proc/self/status, NaN where the system has none."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 2**10
    except (OSError, StopIteration, ValueError, IndexError):
        return math.nan


def resident() -> float:
    """Resident memory in MB; the peak is counted from here."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return memory_status("VmRSS")


def _memory(before: float) -> dict[str, float]:
    """Peak MB of the process, or of the largest it started, and what the entrant added to the process."""
    unit = 2**20 if sys.platform == "darwin" else 2**10
    own, other = (resource.getrusage(w).ru_maxrss / unit for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    peak = memory_status("VmHWM")
    own = peak if math.isfinite(peak) else own
    return {"peak_mb": round(max(own, other), 1), "grown_mb": round(max(own - before, other), 1)}


def finite(value: Any) -> Any:
    """NaN and infinity to None, numpy numbers to Python's."""
    if isinstance(value, dict):
        return {str(k): finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(v) for v in value]
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _progress(done: int, total: int, seconds: float, name: str) -> None:
    """One line that moves, on a terminal only."""
    if sys.stderr.isatty():
        left = seconds / done * (total - done)
        print(f"\r{done}/{total}  {left / 60:.0f} min left  {name[:70]:70}", end="", file=sys.stderr, flush=True)


def record(settings: dict[str, Any]) -> dict[str, Any]:
    """What the run was: program, weights, settings, machine."""
    import gemmi
    import numpy
    import torch

    import ml_phaser
    from ml_phaser.networks.store import PROJECTOR, read_card

    card = read_card(PROJECTOR)
    return {
        "version": ml_phaser.__version__, "weights": {"name": card.name, "sha256": card.sha256}, "settings": settings,
        "machine": {"cores": os.cpu_count(), "architecture": platform.machine(), "processor": _processor()},
        "software": {"python": platform.python_version(), "torch": str(torch.__version__),
                     "numpy": numpy.__version__, "gemmi": gemmi.__version__},
    }  # fmt: skip


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
