"""The crystals of the benchmark: recipes, their making, and a cache of what was made."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import gemmi
import numpy as np
from numpy.typing import NDArray

from ml_phaser.crystal.reflections import Amplitudes, Source

COORDINATES = "coordinates/structures_pack.npz.xz"
FOR_TRAINING = ("batches.py", "corrupt.py", "pools.py")  # of simulate: they have no part in whole crystals
RETRIES = 5  # seeds tried where a crystal cannot be packed


@dataclass(frozen=True)
class Recipe:
    """How one crystal is come by.

    task : row group of the tables; name : unique within the task; family : of ``ml_phaser.simulate.families``, or
    "measured", where ``settings`` has the folder's name; split : of the coordinates; flaws : of ``damaged``
    """

    task: str
    name: str
    family: str
    seed: int = 0
    settings: tuple[tuple[str, Any], ...] = ()
    split: str = "holdout"
    flaws: tuple[tuple[str, float], ...] = ()
    seconds: float = 0.0
    point: tuple[tuple[str, Any], ...] = field(default=())  # where it lies on the axes of its task

    def key(self) -> str:
        """What decides the crystal, apart from the code."""
        return json.dumps([self.family, self.seed, self.settings, self.split, self.flaws])


@dataclass(frozen=True, eq=False)
class Crystal:
    """Data to phase and the truth to judge by.

    data : measured amplitudes; f : (n,) complex true structure factors of ``data.hkl``, NaN where unknown; facts : for
    the tables, among them volume (A^3 of the cell), atoms (in the cell, None where unknown), group
    """

    data: Amplitudes
    f: NDArray[np.complex128]
    facts: dict[str, Any]


def shared_data() -> Path:
    """Where the coordinates and the measured data are: ML_PHASER_DATA, else ../shared/data beside the repository."""
    return Path(os.environ.get("ML_PHASER_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data")


def cache_folder() -> Path:
    """ML_PHASER_CACHE, else the user's cache."""
    base = os.environ.get("ML_PHASER_CACHE") or os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "ml_phaser" / "benchmark"


@lru_cache(maxsize=1)
def code_version() -> str:
    """Hash of the code that makes crystals."""
    import ml_phaser

    digest = hashlib.sha256()
    root = Path(ml_phaser.__file__).parent
    for part in ("simulate", "structure_factors"):
        for path in sorted((root / part).glob("*.py")):
            if path.name not in FOR_TRAINING:
                digest.update(path.read_bytes())
    digest.update(Path(__file__).read_bytes())
    return digest.hexdigest()[:12]


@lru_cache(maxsize=2)
def library(split: str) -> Any:
    """Coordinates of one split."""
    from ml_phaser.simulate.fragments import load_library

    return load_library(shared_data() / "coordinates", split)


def cached(recipe: Recipe) -> Path:
    """Where a crystal that is made is kept."""
    return cache_folder() / f"{hashlib.sha256((code_version() + recipe.key()).encode()).hexdigest()[:24]}.npz"


def prepare(recipes: Iterable[Recipe]) -> None:
    """Read the coordinates that crystals still to be made need, so that processes forked from this one need not."""
    for split in sorted({r.split for r in recipes if r.family not in ("measured", "none") and not cached(r).exists()}):
        library(split)


def get(recipe: Recipe) -> Crystal:
    """The crystal of a recipe, from the cache if it was made before. Raises UserError."""
    if recipe.family == "measured":
        return measured(dict(recipe.settings)["set"])
    path = cached(recipe)
    if not path.exists():
        crystal = simulated(recipe)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.{os.getpid()}")
        with part.open("wb") as stream:
            np.savez(stream, **_packed(crystal))
        part.replace(path)
    with np.load(path, allow_pickle=False) as arrays:
        return _unpacked(arrays)


def _packed(crystal: Crystal) -> dict[str, Any]:
    d = crystal.data
    arrays = {"hkl": d.hkl, "F": d.f, "SIGF": d.sigf, "f": crystal.f, "cell": np.array(d.cell.parameters)}
    if d.intensity is not None and d.sigma_i is not None:
        arrays |= {"I": d.intensity, "SIGI": d.sigma_i}
    return {**arrays, "facts": np.array(json.dumps(crystal.facts)), "group": np.array(d.spacegroup.xhm())}


def _unpacked(a: Any) -> Crystal:
    source = Source("simulated", "simulated", ("I", "SIGI"), "intensity")
    data = Amplitudes(
        a["hkl"], a["F"], a["SIGF"], gemmi.UnitCell(*a["cell"]), gemmi.SpaceGroup(str(a["group"])), source,
        *((a["I"], a["SIGI"]) if "I" in a.files else (None, None)),
    )  # fmt: skip
    return Crystal(data, a["f"], json.loads(str(a["facts"])))


def simulated(recipe: Recipe) -> Crystal:
    """Make a crystal; where it cannot be packed, from another seed, which the facts tell."""
    from ml_phaser.errors import UserError
    from ml_phaser.simulate.families import make
    from ml_phaser.simulate.simulated import amplitudes

    settings = dict(recipe.settings)
    if recipe.family == "boxed":
        return boxed(recipe)
    for attempt in range(RETRIES):
        try:
            sim = make(recipe.family, recipe.seed + 1000 * attempt, library(recipe.split), **settings)
            break
        except UserError:
            if attempt == RETRIES - 1 or settings.get("fragment"):
                raise
    facts = {
        "atoms": sim.atoms_in_cell, "volume": float(sim.cell.volume), "group": sim.spacegroup.xhm(),
        "d_min": float(sim.d_min), "volume_per_atom": sim.volume_per_atom, "seed": sim.seed, "source": list(sim.source),
        "sequences": sequences(sim.sites),
    }  # fmt: skip
    if recipe.flaws:
        data, f = damaged(sim, dict(recipe.flaws))
    else:
        data = amplitudes(sim)
        f = aligned(sim.hkl, sim.f, data.hkl)
    return Crystal(data, f, {**facts, "reflections": len(data)})


def sequences(sites: Any) -> list[str]:
    """One-letter codes of the chains of a simulated crystal."""
    residues = {(c, int(n)): r for c, n, r in zip(sites.chain, sites.number, sites.residue, strict=True)}
    letters: dict[str, str] = {}
    for (chain, _), name in residues.items():
        if gemmi.find_tabulated_residue(name).is_amino_acid():
            letters[chain] = letters.get(chain, "") + gemmi.find_tabulated_residue(name).one_letter_code.upper()
    return list(letters.values())


def boxed(recipe: Recipe) -> Crystal:
    """A dipeptide in its bounding box and 3 A more along each axis, exact data to 1.5 A, B 20 A^2: cells others used,
    roomier than the least that keeps molecules apart."""
    from ml_phaser.simulate.families import EXACT, stream
    from ml_phaser.simulate.measure import calculate, unique_reflections
    from ml_phaser.simulate.recipes import alone, centred, draw_fragment

    fragment = draw_fragment(stream("boxed", recipe.seed, "crystal"), library(recipe.split), 2)
    xyz = centred(fragment)
    a, b, c = (float(x) for x in np.round(np.ptp(xyz, axis=0) + 3, 3))
    cell = gemmi.UnitCell(a, b, c, 90, 90, 90)
    d_min = float(EXACT["d_min"])
    built = alone(fragment, xyz, cell, 0.5, d_min)
    sites = replace(built.sites, b=np.full(len(built.sites), float(EXACT["b"])))
    hkl = unique_reflections(cell, built.spacegroup, d_min)
    f = calculate(sites, cell, built.spacegroup, hkl)
    source = Source("simulated", "simulated", ("F", "SIGF"), "amplitude")
    data = Amplitudes(hkl, np.abs(f), 0.01 * np.abs(f) + 1e-6, cell, built.spacegroup, source)
    facts = {
        "atoms": len(sites), "volume": float(cell.volume), "group": "P 1", "d_min": d_min, "reflections": len(hkl),
        "volume_per_atom": float(cell.volume) / len(sites), "source": list(built.source),
    }  # fmt: skip
    return Crystal(data, f, facts)


def aligned(hkl: NDArray[np.int32], f: NDArray[np.complex128], wanted: NDArray[np.int32]) -> NDArray[np.complex128]:
    """Values at the ``wanted`` indices, NaN where ``hkl`` lacks them."""
    table = {tuple(h): value for h, value in zip(hkl.tolist(), f, strict=True)}
    return np.array([table.get(tuple(h), complex("nan")) for h in wanted.tolist()])


def damaged(sim: Any, flaws: dict[str, float]) -> tuple[Amplitudes, NDArray[np.complex128]]:
    """Amplitudes with one kind of harm each, as far as possible, and the truth they are to be judged by.

    noise : r.m.s. error of F relative to F; solvent : electrons/A^3 of bulk solvent around the molecule (B 50 A^2);
    low : A, reflections beyond it are missing; completeness : share of the reflections measured
    """
    rng = np.random.default_rng([sim.seed, 7])
    f, hkl = sim.f, sim.hkl
    stol2 = np.asarray(sim.cell.calculate_1_d2_array(hkl)) / 4
    if flaws.get("solvent"):
        f = f + flaws["solvent"] * np.exp(-50.0 * stol2) * solvent_factors(sim)
    moduli = np.abs(f * (1 + flaws.get("noise", 0.0) * rng.normal(size=len(f))))
    keep = 0.5 / np.sqrt(stol2) <= flaws.get("low", np.inf)
    keep &= rng.random(len(f)) < flaws.get("completeness", 1.0)
    sigma = np.maximum(flaws.get("noise", 0.0), 0.01) * moduli
    source = Source("simulated", "simulated", ("F", "SIGF"), "amplitude")
    data = Amplitudes(hkl[keep], moduli[keep], sigma[keep] + 1e-6, sim.cell, sim.spacegroup, source)
    return data, f[keep]


def solvent_factors(sim: Any) -> NDArray[np.complex128]:
    """Structure factors of the space the molecules leave, in A^3."""
    from ml_phaser.structure_factors.solvent import exact_mask, mask_factors

    structure = gemmi.Structure()
    structure.cell, structure.spacegroup_hm = sim.cell, sim.spacegroup.xhm()
    chain, residue = gemmi.Chain("A"), gemmi.Residue()
    residue.name, residue.seqid = "UNK", gemmi.SeqId("1")
    for x, element in zip(sim.sites.xyz, sim.sites.element, strict=True):
        atom = gemmi.Atom()
        atom.name, atom.element = element, gemmi.Element(element)
        atom.pos = sim.cell.orthogonalize(gemmi.Fractional(*x))
        residue.add_atom(atom)
    chain.add_residue(residue)
    model = gemmi.Model(1)
    model.add_chain(chain)
    structure.add_model(model)
    return mask_factors(exact_mask(structure), sim.hkl, sim.cell).numpy()


def measured(name: str) -> Crystal:
    """A measured set with its model's structure factors; UserError where it has no model with atoms."""
    from benchmarks.measured import LABIN, read_sets
    from ml_phaser.evaluation.reference import model_reference
    from ml_phaser.exchange.read import read_amplitudes

    item = next(s for s in read_sets(shared_data() / "diffraction") if s.name == name)
    data = replace(read_amplitudes(item.data, labin=LABIN.get(name)), notes=())
    assert item.model is not None
    ref = model_reference(item.model, data.hkl, data.cell, data.spacegroup, f_obs=data.f)
    facts = {
        "atoms": None, "volume": float(data.cell.volume), "group": data.spacegroup.xhm(), "d_min": data.d_min,
        "reflections": len(data),
    }  # fmt: skip
    return Crystal(data, ref.f, facts)
