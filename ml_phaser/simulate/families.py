"""The families of simulated crystals: one seed, one crystal, its structure factors and its measurement.

``make("dialanine-1b", 7, library)`` gives a ``Simulated``. A setting is a number, or a pair of them between which the
seed draws. Every setting and every stage has a random stream of its own, so that the same crystal can be had at another
resolution or noise.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ml_phaser.errors import UserError
from ml_phaser.simulate.crystals import build_box
from ml_phaser.simulate.fragments import Library
from ml_phaser.simulate.measure import (
    U_TO_B,
    Flaws,
    Sites,
    calculate,
    displace,
    draw_b,
    measure,
    overall_anisotropy,
    unique_reflections,
)
from ml_phaser.simulate.peptide_crystals import build_ideal, build_peptide
from ml_phaser.simulate.peptides import checked_sequence
from ml_phaser.simulate.protein_crystals import build_protein, solvent_factors
from ml_phaser.simulate.recipes import build_dialanine, build_dipeptide, build_fifteen, build_minimal
from ml_phaser.simulate.simulated import Built, Simulated

Setting = Any  # a number, a pair (low, high), a text, None
# As an experiment of average luck: everything varies.
VARIED: Mapping[str, Setting] = {
    "d_min": (1.0, 2.2), "noise": (0.01, 0.1), "completeness": (0.9, 1.0), "b": (6.0, 25.0), "b_spread": (0.1, 0.5),
    "b_correlation": (0.0, 0.9), "anisotropy": (0.0, 3.0), "sigma_error": (0.05, 0.3), "sigma_scale": (0.7, 1.4),
    "low": (12.0, 60.0), "cone": (0.0, 8.0), "wedge": (0.0, 10.0), "shell": (0.0, 0.15),
}  # fmt: skip
# As the papers calculated theirs: nothing does.
EXACT: Mapping[str, Setting] = {
    "d_min": 1.5, "noise": 0.0, "completeness": 1.0, "b": 20.0, "b_spread": 0.0, "b_correlation": 0.0,
    "anisotropy": 0.0, "sigma_error": 0.0, "sigma_scale": 1.0, "low": np.inf, "cone": 0.0, "wedge": 0.0, "shell": 0.0,
}  # fmt: skip


def displaced(rng: np.random.Generator, built: Built, chosen: Mapping[str, Any]) -> Sites:
    """B factors and overall anisotropy as the settings say."""
    sites = built.sites
    b = draw_b(rng, sites.residue_index, chosen["b"], chosen["b_spread"], chosen["b_correlation"])
    tensor = overall_anisotropy(rng, built.cell, built.spacegroup) * chosen["anisotropy"] / U_TO_B
    return replace(sites, b=b, u_overall=np.round(tensor, 4))


def _displaced_ideal(rng: np.random.Generator, built: Built, chosen: Mapping[str, Any]) -> Sites:
    return displace(rng, built.sites, built.cell, built.spacegroup, chosen["b"])


def _displaced_box(rng: np.random.Generator, built: Built, chosen: Mapping[str, Any]) -> Sites:
    tensor = overall_anisotropy(rng, built.cell, built.spacegroup) * chosen["anisotropy"] / U_TO_B
    return replace(built.sites, u_overall=np.round(tensor, 4))


@dataclass(frozen=True, eq=False)
class Family:
    """One kind of crystal: what it is, the function that builds one, and all its settings with their defaults."""

    name: str
    about: str
    build: Callable[[np.random.Generator, Mapping[str, Any], Library | None], Built]
    settings: Mapping[str, Setting]
    displace: Callable[[np.random.Generator, Built, Mapping[str, Any]], Sites] = displaced


_PAPER = {**EXACT, "rotate": False}
_IDEAL = {"sequence": None, "spacegroup": "P212121", "d_min": 1.0, "noise": 0.05, "completeness": 0.97, "b": 8.0}
_PEPTIDE = {
    "residues": (2, 15), "sequence": None, "atoms": None, "spacegroup": None, "volume_per_atom": (17.0, 20.0),
    "waters": (0.4, 1.0), "starts": 4,
}  # fmt: skip
_PROTEIN = {
    "residues": (60.0, 250.0), "spacegroup": None, "starts": 2, "solvent": (0.3, 0.75), "k_sol": (0.30, 0.40),
    "b_sol": (25.0, 80.0), "d_min": (1.5, 3.0), "b": (15.0, 50.0), "low": (20.0, 100.0),
}  # fmt: skip
FAMILIES: dict[str, Family] = {
    f.name: f
    for f in (
        Family("ideal", "a peptide of ideal geometry, packed with waters by a long search", build_ideal, _IDEAL,
               _displaced_ideal),
        Family("dialanine-1a", "Pan et al. 2023, data set 1a: Ala-Ala in a 20 A cube, P1", build_dialanine,
               {**_PAPER, "edge": 20.0, "spacing": 0.5}),
        Family("dialanine-1b", "Pan et al. 2023, data set 1b: Ala-Ala in a 10 A cube, P1", build_dialanine,
               {**_PAPER, "edge": 10.0, "spacing": 0.5}),
        Family("dipeptide-12", "Pan et al. 2023, data set 2: dipeptides in a 12 A cube, P1", build_dipeptide,
               {**_PAPER, "edge": 12.0, "spacing": 0.6}),
        Family("dipeptide-minimal", "CrysFormer: dipeptides in the smallest cell without contacts under 2.75 A, P1",
               build_minimal, {**_PAPER, "spacing": 0.5}),
        Family("residues-15", "CrysFormer: 15 residues in a cell of 41 x 30 x 24 A, P1", build_fifteen,
               {**_PAPER, "spacing": 0.5, "fragment": None}),
        Family("peptide", "2-15 residues with their side chains as deposited, packed in many groups", build_peptide,
               {**VARIED, **_PEPTIDE}),
        Family("box", "a box cut out of a protein and repeated in P1, with waters", build_box,
               {**{k: v for k, v in VARIED.items() if not k.startswith("b")}, "edge": (13.0, 24.0)}, _displaced_box),
        Family("protein", "a protein chain packed in a common group, with flat bulk solvent", build_protein,
               {**VARIED, **_PROTEIN}),
    )
}  # fmt: skip


def make(family: str, seed: int, library: Library | None = None, **settings: Setting) -> Simulated:
    """A crystal of a family; the same arguments give the same crystal, bit by bit.

    Parameters
    ----------
    family : one of FAMILIES
    seed : 0 or larger
    library : coordinates of either split, for families that need some
    settings : instead of the family's defaults (``FAMILIES[family].settings``); a pair is drawn from

    Raises
    ------
    UserError
        unknown family or setting, no library where one is needed, a crystal that cannot be made
    """
    kind = FAMILIES.get(family)
    if kind is None:
        raise UserError("is not a known family", f"family {family}", f"one of {', '.join(FAMILIES)}")
    unknown = sorted(set(settings) - set(kind.settings))
    if unknown:
        hint = f"one of {', '.join(kind.settings)}"
        raise UserError(f"means nothing in family {family}", unknown[0], hint)
    chosen = {name: _drawn(family, seed, name, settings.get(name, kind.settings[name])) for name in kind.settings}
    if chosen.get("sequence"):
        chosen["sequence"] = checked_sequence(chosen["sequence"])
    built = kind.build(stream(family, seed, "crystal"), chosen, library)
    sites = kind.displace(stream(family, seed, "displacement"), built, chosen)
    hkl = unique_reflections(built.cell, built.spacegroup, chosen["d_min"])
    f = calculate(sites, built.cell, built.spacegroup, hkl)
    if built.solvent is not None:
        f = f + solvent_factors(sites, built.cell, built.spacegroup, built.solvent, hkl)
    flaws = Flaws(**{name: chosen[name] for name in Flaws.__dataclass_fields__ if name in chosen})
    m = measure(stream(family, seed, "measurement"), hkl, f, built.cell, built.spacegroup, flaws)
    return Simulated(
        family, seed, chosen, built.cell, built.spacegroup, sites, chosen["d_min"], built.shape, f, m,
        built.solvent, built.source,
    )  # fmt: skip


_STAGES = ("crystal", "displacement", "measurement")


def stream(family: str, seed: int, stage: str) -> np.random.Generator:
    """The random numbers of one stage of one crystal."""
    if family == "ideal":  # as in the first version: its example files stay the same
        return np.random.default_rng(np.random.SeedSequence(seed).spawn(3)[_STAGES.index(stage)])
    return np.random.default_rng([seed, zlib.crc32(family.encode()), zlib.crc32(stage.encode())])


def _drawn(family: str, seed: int, name: str, value: Setting) -> Setting:
    if isinstance(value, tuple) and len(value) == 2:
        low, high = value
        return round(float(stream(family, seed, name).uniform(low, high)), 4)
    return value
