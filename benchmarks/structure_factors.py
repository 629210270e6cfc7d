#!/usr/bin/env python3
"""Structure factors of atoms side by side: time, memory and error of ml_phaser, gemmi, cctbx and SFcalculator.

    python benchmarks/structure_factors.py --threads 2 --sfcalculator ENVIRONMENT/bin/python

writes benchmarks/results/structure_factors.json and .md. Every entrant runs on every problem in a process of its own,
on the same model file and the same list of reflections (the unique ones to d_min). Times are the best of several calls
after one that is not counted; the memory is what the process needed beyond its libraries and the model. Entrants that
sum term by term in one thread are timed on part of the reflections, and that scaled up (~). SFcalculator pins an old
gemmi, so it needs an environment of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# name: (d_min, cell, group, atoms, share of hydrogens, share of anisotropic atoms) of a stand-in where the model is not
PROBLEMS: dict[str, tuple[Any, ...]] = {
    "1dur": (2.0, (30.5, 37.8, 39.4, 90, 90, 90), "P 21 21 21", 488, 0.0, 0.0),
    "4xof": (1.15, (27.9, 43.3, 50.2, 90, 90, 90), "P 21 21 21", 1492, 0.5, 0.53),
    "5jdt": (1.0, (60.3, 60.3, 97.0, 90, 90, 120), "P 32 2 1", 3749, 0.47, 0.53),
    # 10,000 atoms and 100,000 reflections: what must run in 4 GB
    "large": (2.05, (80.0, 110.0, 180.0, 90, 90, 90), "P 21 21 21", 10000, 0.0, 0.0),
    "large-aniso": (2.05, (60.0, 70.0, 90.0, 85, 95, 100), "P 1", 10000, 0.0, 1.0),
}
OWN = ("ml_phaser direct", "ml_phaser FFT")
OTHERS = ("gemmi FFT", "gemmi direct", "cctbx FFT", "cctbx direct", "SFcalculator")
SAMPLE = 1500  # reflections that errors are taken over
SCALED = 400  # reflections that slow entrants are timed on
PATIENCE = 15  # s; what takes longer is timed once, and its gradient not at all


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data" / "diffraction")
    parser.add_argument("--problems", default=",".join(PROBLEMS), help="some of " + ", ".join(PROBLEMS))
    parser.add_argument("--sfcalculator", type=Path, help="interpreter of the environment that has sfcalculator-torch")
    parser.add_argument("--threads", type=int, default=2, help="processor threads [2]")
    parser.add_argument("--seconds", type=float, default=6.0, help="repeat for so long, at most nine times [6]")
    parser.add_argument("--memory", type=float, default=8.0, help="GB an entrant may take [8]")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "structure_factors.json")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return work(*args.worker, seconds=args.seconds)

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for problem in args.problems.split(","):
            path = model_file(problem, args.data, Path(folder))
            entrants = OWN if problem.startswith("large") else OWN + OTHERS
            for entrant in ("reference", *entrants):
                row = {"problem": problem, "model": "deposited" if args.data in path.parents else "made"}
                row |= run(entrant, problem, path, Path(folder), args)
                if entrant != "reference":
                    rows.append(row)
                    print(json.dumps(row), flush=True)
    report = {"threads": args.threads, "cores": os.cpu_count(), "memory limit (GB)": args.memory, "rows": rows}
    from ml_phaser.atomic import atomic

    for path, text in (
        (args.out, json.dumps(report, indent=1) + "\n"),
        (args.out.with_suffix(".md"), markdown(report)),
    ):
        with atomic(path) as temporary:
            temporary.write_text(text)
    print(markdown(report))
    return 0


def run(entrant: str, problem: str, path: Path, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """One entrant on one problem: its row."""
    python = sys.executable
    if entrant == "SFcalculator":
        if args.sfcalculator is None:
            return {"entrant": entrant, "note": "not run: --sfcalculator not given"}
        python = str(args.sfcalculator)
    environment = dict(os.environ, OMP_NUM_THREADS=str(args.threads), MKL_NUM_THREADS=str(args.threads))
    command = [python, str(Path(__file__).resolve()), "--seconds", str(args.seconds)]
    limit = int(args.memory * 2**30)
    done = subprocess.run(
        [*command, "--worker", entrant, problem, str(path)], env=environment, cwd=folder, capture_output=True,
        text=True, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (limit, limit)), check=False,
    )  # fmt: skip
    if done.returncode:
        text = done.stderr.strip().splitlines()[-1:] or ["killed"]
        short = any(word in done.stderr for word in ("MemoryError", "allocate memory", "bad_alloc"))
        return {"entrant": entrant, "note": f"needs more than {args.memory:g} GB" if short else text[0][:120]}
    return {"entrant": entrant, **json.loads(done.stdout.strip().splitlines()[-1])}


def model_file(problem: str, data: Path, folder: Path) -> Path:
    """The deposited model where it is at hand, or one of the same size."""
    path = data / problem / f"{problem}.pdb"
    if path.is_file():
        return path
    import numpy as np

    _, cell, group, atoms, hydrogens, anisotropic = PROBLEMS[problem]
    rng = np.random.default_rng(0)
    lines = ["CRYST1{:9.3f}{:9.3f}{:9.3f}{:7.2f}{:7.2f}{:7.2f} {:<11s}".format(*cell, group)]
    heavy = rng.choice(["C", "N", "O", "S"], size=atoms, p=[0.63, 0.17, 0.195, 0.005])
    element = np.where(rng.random(atoms) < hydrogens, "H", heavy)
    import gemmi

    xyz = rng.random((atoms, 3)) @ np.array(gemmi.UnitCell(*cell).orth.mat).T
    for i, (e, (x, y, z), b) in enumerate(zip(element, xyz, rng.gamma(6, 3, atoms) + 5, strict=True)):
        tail = f"{e:<4s}ALA A{i // 10 % 9999 + 1:4d}    "
        lines.append(f"ATOM  {i % 99999 + 1:5d}  {tail}{x:8.3f}{y:8.3f}{z:8.3f}  1.00{b:6.2f}          {e:>2s}")
        if rng.random() < anisotropic:
            u = np.rint(b / (8 * np.pi**2) * 1e4 * np.array([0.8, 1.0, 1.2, 0.1, -0.1, 0.05])).astype(int)
            lines.append(f"ANISOU{i % 99999 + 1:5d}  {tail[:-4]}  " + "".join(f"{v:7d}" for v in u) + f"      {e:>2s}")
    path = folder / f"{problem}.pdb"
    path.write_text("\n".join([*lines, "END", ""]))
    return path


# One entrant, in its own process


def work(entrant: str, problem: str, path: str, *, seconds: float) -> int:
    """Measure, write the sampled structure factors beside the reference and print the row."""
    if entrant.startswith("cctbx"):
        import cctbx.miller  # noqa: F401  (before gemmi)
    import gemmi
    import numpy as np

    structure = gemmi.read_structure(path)
    hkl = np.asarray(gemmi.make_miller_array(structure.cell, structure.find_spacegroup(), PROBLEMS[problem][0]))
    hkl = hkl[~np.asarray(structure.find_spacegroup().operations().systematic_absences(hkl), dtype=bool)]
    sample = np.random.default_rng(0).permutation(len(hkl))[:SAMPLE]
    reference = Path(f"{problem}.npy")
    if entrant == "reference":
        forward, _, _ = ml_phaser("direct", structure, hkl[sample], double=True)
        np.save(reference, forward())
        print("{}")
        return 0
    makers: dict[str, Callable[..., Any]] = {
        "ml_phaser direct": lambda *a: ml_phaser("direct", *a),
        "ml_phaser FFT": lambda *a: ml_phaser("fft", *a),
        "gemmi FFT": gemmi_fft,
        "gemmi direct": gemmi_direct,
        "cctbx FFT": lambda *a: in_cctbx("fft", path, *a),
        "cctbx direct": lambda *a: in_cctbx("direct", path, *a),
        "SFcalculator": lambda *a: sfcalculator(path, PROBLEMS[problem][0], *a),
    }
    scaled = entrant in ("gemmi direct", "cctbx direct")
    some = sample[:SCALED] if scaled else np.arange(len(hkl))
    forward, both, picked = makers[entrant](structure, hkl[some])
    before, started, processor = peak(), time.perf_counter(), time.process_time()
    f = np.asarray(forward())
    first, first_cpu = time.perf_counter() - started, time.process_time() - processor
    expected = np.load(reference)
    f = f if scaled else f[picked(sample)]
    scale = len(hkl) / len(some)
    row = {
        "atoms": sum(1 for _ in structure[0].all()),
        "reflections": len(hkl),
        "first_ms": 1e3 * first if not scaled else None,
        **(
            best(forward, seconds, "forward", scale)
            if first < PATIENCE
            else {"forward_ms": 1e3 * scale * first, "forward_cpu_ms": 1e3 * scale * first_cpu}
        ),
        "forward_MB": peak() - before,
        "error": float(np.linalg.norm(f - expected[: len(f)]) / np.linalg.norm(expected[: len(f)])),
        "scaled": scaled,
    }
    if both is not None and first > PATIENCE:
        row["note"] = "gradient not timed"
    elif both is not None:
        try:
            row |= {**best(both, seconds, "gradient", scale), "gradient_MB": peak() - before}
        except (MemoryError, RuntimeError) as error:
            row["note"] = "no memory for the gradient" if "memory" in str(error) else str(error)[:100]
    row["load"] = os.getloadavg()[0]
    print(json.dumps(row))
    return 0


def peak() -> float:
    """Largest memory of this process so far, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def best(function: Callable[[], Any], seconds: float, name: str, scale: float) -> dict[str, float]:
    """Shortest wall and processor times (ms) of one to nine calls, after one that does not count."""
    wall: list[float] = []
    processor: list[float] = []
    while len(wall) < 2 or (len(wall) < 10 and sum(wall) < seconds):
        started = time.perf_counter(), time.process_time()
        function()
        wall.append(time.perf_counter() - started[0])
        processor.append(time.process_time() - started[1])
    return {f"{name}_ms": 1e3 * scale * min(wall[1:]),
            f"{name}_cpu_ms": 1e3 * scale * min(processor[1:])}  # fmt: skip


def whole(sample: Any) -> Any:
    return sample


def ml_phaser(method: str, structure: Any, hkl: Any, double: bool = False) -> tuple[Any, Any, Any]:
    import torch

    from ml_phaser.structure_factors.atoms import atoms_of_structure
    from ml_phaser.structure_factors.calculate import structure_factors

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    group = structure.find_spacegroup()
    atoms = atoms_of_structure(structure)
    atoms = atoms if double else atoms.to(torch.float32).replace(xyz=atoms.xyz)

    def forward() -> Any:
        with torch.no_grad():
            return structure_factors(atoms, hkl, structure.cell, group, method).numpy()  # type: ignore[arg-type]

    def both() -> Any:
        names = ["xyz", "b_iso", "occupancy", *(["u_aniso"] if atoms.u_aniso is not None else [])]
        moved = atoms.replace(**{n: getattr(atoms, n).clone().requires_grad_() for n in names})
        structure_factors(moved, hkl, structure.cell, group, method).abs().sum().backward()  # type: ignore[arg-type]
        return moved.xyz.grad

    return forward, both, whole


def gemmi_fft(structure: Any, hkl: Any) -> tuple[Any, Any, Any]:
    import gemmi
    import numpy as np

    d_min = float(structure.cell.calculate_d_array(hkl).min())
    order: dict[str, Any] = {}

    def forward() -> Any:
        density = gemmi.DensityCalculatorX()
        density.d_min, density.rate = d_min - 1e-6, 1.5
        density.set_refmac_compatible_blur(structure[0])
        density.grid.setup_from(structure)
        density.put_model_density_on_grid(structure[0])
        half = gemmi.transform_map_to_f_phi(density.grid, half_l=True)
        data = half.prepare_asu_data(dmin=density.d_min, unblur=density.blur)
        order["hkl"] = data.miller_array
        return data.value_array

    def picked(sample: Any) -> Any:
        place = {tuple(h): i for i, h in enumerate(np.asarray(order["hkl"]).tolist())}
        return [place[tuple(h)] for h in hkl[sample].tolist()]

    return forward, None, picked


def gemmi_direct(structure: Any, hkl: Any) -> tuple[Any, Any, Any]:
    import gemmi

    calculator, wanted = gemmi.StructureFactorCalculatorX(structure.cell), hkl.tolist()
    return lambda: [calculator.calculate_sf_from_model(structure[0], h) for h in wanted], None, whole


def in_cctbx(algorithm: str, path: str, _: Any, hkl: Any) -> tuple[Any, Any, Any]:
    import iotbx.pdb
    from cctbx import miller, xray
    from cctbx.array_family import flex

    atoms = iotbx.pdb.input(path).xray_structure_simple()
    atoms.scattering_type_registry(table="it1992")
    indices = flex.miller_index([tuple(h) for h in hkl.tolist()])
    wanted = miller.set(atoms.crystal_symmetry(), indices, anomalous_flag=False)

    def calculate() -> Any:
        return wanted.structure_factors_from_scatterers(atoms, algorithm=algorithm).f_calc()

    def both() -> Any:
        f = calculate().data()
        return xray.structure_factors.gradients(miller_set=wanted)(
            xray_structure=atoms, u_iso_refinable_params=None, miller_set=wanted,
            d_target_d_f_calc=flex.polar(flex.double(f.size(), 1.0), flex.arg(f)), n_parameters=0, algorithm=algorithm,
        )  # fmt: skip

    xray.set_scatterer_grad_flags(scatterers=atoms.scatterers(), site=True, u_iso=True, u_aniso=True, occupancy=True)
    return lambda: calculate().data().as_numpy_array(), both if algorithm == "fft" else None, whole


def sfcalculator(path: str, d_min: float, _: Any, hkl: Any) -> tuple[Any, Any, Any]:
    import numpy as np
    import torch
    from SFC_Torch.Fmodel import SFcalculator

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    calculator = SFcalculator(path, dmin=d_min, device=torch.device("cpu"))

    def forward() -> Any:
        with torch.no_grad():
            return calculator.calc_fprotein(Return=True).numpy()

    def both() -> Any:
        moved = [calculator.atom_pos_orth.clone().requires_grad_(), calculator.atom_b_iso.clone().requires_grad_()]
        calculator.calc_fprotein(moved[0], moved[1], Return=True).abs().sum().backward()
        calculator.atom_pos_orth, calculator.atom_b_iso = (m.detach() for m in moved)
        return moved[0].grad

    def picked(sample: Any) -> Any:
        place = {tuple(h): i for i, h in enumerate(np.asarray(calculator.Hasu_array).tolist())}
        return [place[tuple(h)] for h in hkl[sample].tolist()]

    return forward, both, picked


def markdown(report: dict[str, Any]) -> str:
    """Tables, one a problem; ratios to the quicker of ours."""
    lines = ["# Structure factors of atoms", "",
             f"{report['threads']} threads of {report['cores']} cores, single precision where there is a choice. Times "
             "in ms, best of up to nine calls, ~ scaled up from part of the reflections; ratios are to the quicker of "
             "ours in the same column. 'cpu' is processor time, which other work on the machine disturbs less: load is "
             "the machine's when the entrant ended. Memory (MB) is beyond libraries and model. The error is "
             "||F - F0|| / ||F0|| against a direct sum in double precision.", ""]  # fmt: skip
    for problem in dict.fromkeys(row["problem"] for row in report["rows"]):
        rows = [row for row in report["rows"] if row["problem"] == problem]
        known = next((row for row in rows if "atoms" in row), None)
        if known is None:
            continue
        d_min, _, group = PROBLEMS[problem][:3]
        made = " (made model)" if known["model"] == "made" else ""
        lines += [
            f"## {problem}: {known['atoms']} atoms, {group}, {d_min} A, {known['reflections']} reflections{made}", "",
            "| | F | ratio | F cpu | ratio | gradient | ratio | gradient cpu | ratio | MB | MB gradient | error | load "
            "| |", "|---|" + "---:|" * 12 + "---|",
        ]  # fmt: skip
        for row in rows:
            cells = [row["entrant"]]
            for key in ("forward_ms", "forward_cpu_ms", "gradient_ms", "gradient_cpu_ms"):
                own = min((r[key] for r in rows if r["entrant"] in OWN and key in r), default=None)
                shown = f"{row[key]:.{1 if row[key] < 100 else 0}f}" if key in row else ""
                cells.append(f"~{shown}" if shown and row["scaled"] else shown)
                cells.append(f"{row[key] / own:.2f}" if shown and own else "")
            cells += [f"{row[key]:.0f}" if key in row else "" for key in ("forward_MB", "gradient_MB")]
            cells += [f"{row['error']:.1e}" if "error" in row else "", f"{row['load']:.1f}" if "load" in row else ""]
            lines.append("| " + " | ".join([*cells, row.get("note", "")]) + " |")
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
