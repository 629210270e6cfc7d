"""What is phased: the crystals of the quick and the full run, of the one that finds where methods break, and grids of
resolution and size."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

from benchmarks.phasing.crystals import Recipe, shared_data

D_MIN = (1.0, 1.2, 1.4, 1.6, 1.8, 2.0, 2.5)
ATOMS = (25, 50, 100, 200, 400)
GROUPS = ("P1", "P21", "P212121")
NOISE = (0.0, 0.05, 0.1)
# The quick run's crystals of the dense grid: (d_min, atoms, group, noise); every value of every axis is there.
THIN = (
    (1.0, 50, "P1", 0.05), (1.0, 200, "P212121", 0.0), (1.2, 100, "P21", 0.05), (1.4, 25, "P1", 0.1),
    (1.6, 100, "P1", 0.0), (1.8, 50, "P21", 0.05), (2.0, 400, "P212121", 0.05), (2.5, 200, "P21", 0.1),
)  # fmt: skip
GRID_D_MIN = (1.0, 1.1, 1.2, 1.3, 1.4, 1.6, 1.8)  # the frontier
GRID_ATOMS = (12, 25, 50, 100, 200)
SEED_D_MIN, SEED_ATOMS = (1.4, 1.6, 1.8), (50, 100, 200)  # the table of seeds
ORDERS = {"P1": 1, "P21": 2, "P212121": 4}
LEAST = 6  # atoms of an asymmetric unit: glycine and a water
MEASURED_QUICK = ("l_alanine_tonto", "cod2200000", "6mw0", "5awl", "2olx", "5e5z")

FAMILY = {  # of the founding papers' tasks, and of peers' dipeptides
    "dialanine 1a": "dialanine-1a", "dialanine 1b": "dialanine-1b", "dipeptides 12 A": "dipeptide-12",
    "dipeptides minimal": "dipeptide-minimal", "dipeptides box + 3 A": "boxed", "15 residues": "residues-15",
    "15 residues, published": "residues-15",
}  # fmt: skip
PAPERS = tuple(FAMILY)
LARGE = 3.0  # the budget of large cells, in budgets of small ones
ORDER = (*PAPERS, "dense peptides", "measured small molecules", "measured peptides", "measured proteins")


def pairs(**values: Any) -> tuple[tuple[str, Any], ...]:
    return tuple(values.items())


def recipes(run: str, seconds: float, per_task: int, seed: int) -> list[Recipe]:
    """All crystals of a run: "quick", "full", "break", "seeds", "frontier" or "frontier-seeds".

    ``seconds`` of budget for one entrant on a small cell; ``per_task`` crystals a task, or a cell of a grid
    """
    if run == "break":
        return list(breaks(seconds, per_task, seed))
    if run == "seeds":
        return dense(latin(SEED_D_MIN, SEED_ATOMS, per_task), seconds, seed, run)
    if run.startswith("frontier"):
        return dense(grid(GRID_D_MIN, GRID_ATOMS, per_task), seconds, seed, run)
    found = [r for task in PAPERS for r in paper(task, seconds, per_task, seed)]
    points = THIN if run == "quick" else product(D_MIN, ATOMS, GROUPS, NOISE)
    found += dense(((point, 0) for point in points), seconds, seed)
    return found + measured(run, seconds)


def paper(task: str, seconds: float, count: int, seed: int) -> list[Recipe]:
    """Crystals of one of the founding papers' data sets, as calculated there: exact data."""
    large = "15" in task or task == "dialanine 1a"
    base = Recipe(task, "", FAMILY[task], seconds=seconds * (LARGE if large else 1))
    if task != "15 residues, published":
        return [replace(base, name=f"{i}", seed=seed + i) for i in range(max(1, count // 2) if "15" in task else count)]
    names = (shared_data() / "coordinates" / "crysformer_test_ids.txt").read_text(encoding="ascii").split()
    chosen = names[7 + seed :: max(1, len(names) // max(1, count // 2))][: max(1, count // 2)]
    return [replace(base, name=name, settings=pairs(fragment=name), split="crysformer") for name in chosen]


Point = tuple[float, int, str, float]  # d_min in A, atoms in the cell, group, noise


def grid(d_min: Sequence[float], atoms: Sequence[int], count: int) -> list[tuple[Point, int]]:
    """``count`` crystals of each size, to each resolution, with the number of each: the first of every cell of the grid
    before the second of any. They take turns in the groups that leave enough atoms to an asymmetric unit."""
    return [
        ((d, n, fitting[i % len(fitting)], 0.05), i)
        for i, n, d in product(range(count), atoms, d_min)
        for fitting in [[g for g in GROUPS if n / ORDERS[g] >= LEAST]]
    ]


def latin(d_min: Sequence[float], atoms: Sequence[int], count: int) -> list[tuple[Point, int]]:
    """``count`` crystals to each resolution, with the number of each: sizes in turn, groups in turn along and against
    them, so that nine hold every pair once."""
    sizes, groups = len(atoms), len(GROUPS)
    return [((d, atoms[i % sizes], GROUPS[(i + i // sizes) % groups], 0.05), i) for i in range(count) for d in d_min]


def dense(points: Iterable[tuple[Point, int]], seconds: float, seed: int, task: str = "dense peptides") -> list[Recipe]:
    """Packed peptides with varied B factors; the same crystal for all resolutions and noises. Beside each point, what
    is added to the seed."""
    found = []
    for (d_min, atoms, group, noise), number in points:
        settings = pairs(
            atoms=atoms, spacegroup=group, d_min=d_min, noise=noise, waters=0.0, volume_per_atom=None,
            completeness=1.0, low=60.0, cone=0.0, wedge=0.0, shell=0.0, sigma_scale=1.0, anisotropy=0.5,
            b=round(5.0 + 8.0 * (d_min - 0.8), 1), b_spread=0.3,
        )  # fmt: skip
        point = pairs(d_min=d_min, atoms=atoms, group=group, noise=noise)
        name = f"{d_min:g} A, {atoms} atoms, {group}, noise {noise:g}" + (f", {number}" if number else "")
        found.append(
            Recipe(task, name, "peptide", seed + number, settings, seconds=seconds * (2 if atoms > 100 else 1),
                   point=point)
        )  # fmt: skip
    return found


def measured(run: str, seconds: float) -> list[Recipe]:
    """Measured sets that have a model; proteins in the full run only."""
    folder = shared_data() / "diffraction"
    with (folder / "README.csv").open(newline="", encoding="utf-8") as stream:
        rows = sorted(csv.DictReader(stream), key=lambda row: float(row["d_min"]))
    kinds = {"small": "small molecules", "peptide": "peptides", "protein": "proteins"}
    found = []
    for row in rows:
        kind = kinds[row["cls"].split("_")[0]]
        if not row["model_file"].endswith((".cif", ".pdb", ".pdb.gz", ".cif.gz")):
            continue
        if row["name"] not in MEASURED_QUICK if run == "quick" else False:
            continue
        budget = seconds * (LARGE if kind == "proteins" else 2)
        found.append(
            Recipe(f"measured {kind}", row["name"], "measured", settings=pairs(set=row["name"]), seconds=budget)
        )
    return found


BREAKS: dict[str, tuple[float, ...]] = {
    "noise": (0.0, 0.02, 0.05, 0.1, 0.15, 0.2),
    "solvent": (0.0, 0.1, 0.2, 0.35),
    "low": (99.0, 15.0, 10.0, 7.0, 5.0),
    "completeness": (1.0, 0.9, 0.8, 0.7, 0.5),
    "d_min": (1.0, 1.2, 1.5, 1.8, 2.0, 2.5, 3.0),
    "volume per atom": (100.0, 60.0, 40.0, 30.0, 25.0, 20.0),
}
BASES = {"dipeptides 12 A": "dipeptide-12", "15 residues": "residues-15"}


def breaks(seconds: float, count: int, seed: int) -> Iterator[Recipe]:
    """One parameter at a time, from exact data of a molecule in vacuum; the same crystals at every value."""
    for (base, family), (axis, values) in product(BASES.items(), BREAKS.items()):
        large = family == "residues-15"
        if axis == "volume per atom":
            if large:  # the cell of the recipe is fixed
                continue
            family, base = "peptide", "peptides of 25 atoms, P1"
        for value, i in product(values, range(max(1, count // 2) if large else count)):
            flaws: dict[str, float] = {}
            settings: dict[str, Any] = {}
            if axis == "volume per atom":
                settings = {
                    "atoms": 25, "spacegroup": "P1", "waters": 0.0, "d_min": 1.5, "b": 20.0, "b_spread": 0.0,
                    "anisotropy": 0.0, "volume_per_atom": value,
                }  # fmt: skip
                flaws["noise"] = 0.0
            elif axis == "d_min":
                settings["d_min"] = value
            else:
                flaws[axis] = value
            yield Recipe(
                f"{base}: {axis}", f"{value:g}, {i}", family, seed + i, tuple(settings.items()), "holdout",
                tuple(flaws.items()), seconds * (LARGE if large else 1), ((axis, value),),
            )  # fmt: skip
