"""The crystals that confidence is judged by: what is drawn for each, and its making."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

# Family, weight, settings. Peptides are packed like real crystals, boxes are P1 and dense, the others mostly vacuum.
FAMILIES: tuple[tuple[str, float, dict[str, Any]], ...] = (
    ("peptide", 0.6, {"residues": (1.6, 5.4), "starts": 1}),
    ("box", 0.2, {"edge": (6.0, 10.0)}),
    ("dipeptide-minimal", 0.1, {}),
    ("dialanine-1b", 0.05, {}),
    ("dipeptide-12", 0.05, {}),
)
MOST_REFLECTIONS = 2500
FINE = 1000  # number from which on crystals are small and diffract to 0.6-0.9 A, as small molecules do
ATTEMPTS = 5
GIVEN = (0.25, 0.95)  # map correlation of phases put in,
WRONG = 0.3  # of which so many are not what they claim to be
MEASURED_GIVEN = 2  # runs of a measured set that begin with phases put in


@dataclass(frozen=True)
class Case:
    """One run. ``given``: map correlation of the phases put in, None for none; ``boast``: power that their figures of
    merit are raised to, below 1 where they promise too much; ``claimed``: the correlation that these figures would
    befit, where it is not ``given``; ``limit``: processor seconds of the search."""

    name: str
    split: str
    family: str
    seed: int
    settings: dict[str, Any]
    engine: str
    limit: float
    given: float | None
    boast: float = 1.0
    claimed: float | None = None


def cases(split: str, first: int, last: int) -> Iterator[Case]:
    """Simulated crystals number ``first`` to ``last`` - 1 of a split; the same number is the same crystal. Beginning
    with FINE their data are finer."""
    for number in range(first, last):
        rng = np.random.default_rng([zlib.crc32(split.encode()), number])
        weights = np.array([w for _, w, _ in FAMILIES])
        family, _, settings = FAMILIES[int(rng.choice(len(FAMILIES), p=weights / weights.sum()))]
        settings = {
            **settings,
            "d_min": float(np.round(rng.uniform(*((0.9, 1.4) if rng.random() < 0.6 else (1.4, 2.0))), 2)),
        }
        if number >= FINE:
            settings["d_min"] = float(np.round(rng.uniform(0.6, 0.9), 2))
            settings |= {k: v for k, v in (("residues", (1.6, 2.4)), ("edge", (5.0, 6.5))) if k in settings}
        settings["noise"] = float(rng.choice([0.02, 0.05, 0.1]))
        if family in ("dialanine-1b", "dipeptide-12", "dipeptide-minimal"):
            settings["b"] = float(np.round(rng.uniform(8, 25), 1))
            settings["completeness"] = float(np.round(rng.uniform(0.9, 1.0), 2))
        given = float(np.round(rng.uniform(*GIVEN), 2)) if rng.random() < 0.3 else None
        case = Case(
            f"{split}-{number:04d}", split, family, int(rng.integers(2**31)), settings,
            str(rng.choice(["auto", "auto", "auto", "classical"])), float(rng.choice([0.5, 1.0, 2.0, 4.0])), given,
            float(rng.choice([1.0, 1.0, 0.5])) if given is not None else 1.0,
        )  # fmt: skip
        yield wrong(case, rng) if given is not None and rng.random() < WRONG else case


def wrong(case: Case, rng: np.random.Generator) -> Case:
    """Somebody else's phases, that promise what they do not keep."""
    given, claimed = float(np.round(rng.uniform(0.02, 0.6), 2)), float(np.round(rng.uniform(0.5, 0.95), 2))
    return replace(case, given=given, boast=1.0, claimed=claimed)


def measured_cases(limit: float, names: list[str] | None = None, most: int = 20_000) -> Iterator[Case]:
    """Measured sets with a final model and at most ``most`` reflections: from nothing, and twice from phases of the
    model with errors, drawn like those of simulated crystals."""
    from benchmarks.measured import NOT_FINAL, read_sets
    from benchmarks.phasing.crystals import shared_data

    for item in read_sets(shared_data() / "diffraction"):
        if item.model is None or item.name in NOT_FINAL or (names and item.name not in names):
            continue
        bare = Case(f"measured-{item.name}", "measured", item.name, 0, {"most": most}, "auto", limit, None)
        yield bare
        for draw in range(MEASURED_GIVEN):
            rng = np.random.default_rng([zlib.crc32(item.name.encode()), draw])
            given = float(np.round(rng.uniform(*GIVEN), 2))
            honest = replace(
                bare, name=f"{bare.name}-{draw}", seed=draw, given=given, boast=float(rng.choice([1.0, 1.0, 0.5]))
            )
            yield wrong(honest, rng) if rng.random() < WRONG else honest


def crystal_of(case: Case, libraries: dict[str, Any]) -> tuple[Any, np.ndarray]:
    """Measured amplitudes and the true structure factors (n,) of a case. Raises UserError."""
    from benchmarks.phasing.crystals import aligned, measured
    from ml_phaser.errors import UserError
    from ml_phaser.simulate.families import make
    from ml_phaser.simulate.simulated import amplitudes

    if case.split == "measured":
        found = measured(case.family)
        if len(found.data) > case.settings["most"]:
            raise UserError(f"more than {case.settings['most']} reflections", case.name)
        return found.data, found.f
    for attempt in range(ATTEMPTS):
        try:
            sim = make(case.family, case.seed + attempt, libraries[case.split], **case.settings)
        except UserError:
            if attempt == ATTEMPTS - 1:
                raise
            continue
        if int(sim.measurement.measured.sum()) <= MOST_REFLECTIONS:
            break
    data = replace(amplitudes(sim), notes=())
    return data, aligned(sim.hkl, sim.f, data.hkl)


def facts(case: Case) -> dict[str, Any]:
    """A case as it is written down."""
    return asdict(case)
