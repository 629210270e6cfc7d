"""Figures of merit brought to what figures of merit like them were worth in crystals of known structure.

The evidence on each reflection (Sim's weight from held-out reflections, how far independent solutions agree, the
phases given, the verdict) is added up on the scale of log-odds; a table says what cosine of the phase error such a sum
came with. The table is found by pooling adjacent violators (Ayer et al. 1955, Ann. Math. Stat. 26, 641), so more
evidence never lowers a figure of merit. The numbers lie beside the weights of the network whose solutions they were
found on, and hold for these alone. ``benchmarks/confidence`` makes them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ml_phaser.errors import UserError
from ml_phaser.outcome import Promise

Floats = NDArray[np.float64]

FILE = Path(__file__).resolve().parent.parent / "weights" / "confidence" / "calibration.json"
RISING = ("sim", "solved", "coarse", "score", "agreement", "fom", "strong")  # more of it never means less
OTHERS = ("one", "mates", "fine")
KINDS = ("found", "given")
CENTRIC = "centric"
PARTS = (*(str(bins) for bins in range(3, 9)), CENTRIC)
LEAST = 0.02  # of a figure of merit, where log-odds are taken; 1 - LEAST at most
HIGHEST = 0.99  # figure of merit; the phase distribution of 1 would be infinitely sharp


@dataclass(frozen=True, eq=False)
class Evidence:
    """What is known of n phases.

    sim : (n,) Sim's and Woolfson's weights, 0-1, as if the solution were right
    solved : probability of the verdict, 0-1; score : correlation on the held-out reflections, -1 to 1
    e : (n,) measured |E|; d : (n,) A
    agreement : (n,) mean cosine between the phases of solutions that independent starts led to, None where there is one
    given : (n,) figures of merit, 0-1, of phases that were put in, None where there are none
    unaided : probability of the verdict, 0-1, if one forgets that phases were put in
    """

    sim: Floats
    solved: float
    score: float
    e: Floats
    d: Floats
    agreement: Floats | None = None
    given: Floats | None = None
    unaided: float = 0.0

    def features(self) -> dict[str, Floats]:
        """Each part of it (n,), by the names of RISING and OTHERS."""
        one, zero = np.ones(len(self.sim)), np.zeros(len(self.sim))
        fine = (self.d.min() / self.d) ** 2
        return {
            "one": one, "sim": log_odds(self.sim), "solved": one * float(log_odds(np.array(self.solved))),
            "score": one * max(self.score, 0.0), "mates": one * (self.agreement is not None),
            "agreement": zero if self.agreement is None else log_odds(self.agreement),
            "fom": zero if self.given is None else log_odds(self.given),
            "strong": np.minimum(self.e, 3.0), "fine": fine, "coarse": (1 - fine**2) * self.solved,
        }  # fmt: skip

    def forgetting(self) -> Evidence:
        """As if no phases had been put in."""
        return replace(self, given=None, solved=self.unaided)


def log_odds(p: Floats, least: float = LEAST) -> Floats:
    """ln p / (1 - p) of p no nearer than ``least`` to 0 and 1."""
    p = np.clip(p, least, 1 - least)
    return np.asarray(np.log(p / (1 - p)))


@dataclass(frozen=True, eq=False)
class Table:
    """Evidence of one kind: the strength of each feature in log-odds; raw, fom : (k,) their sum as a probability, and
    the figure of merit it is worth, both rising."""

    strength: dict[str, float]
    raw: Floats
    fom: Floats

    def merits(self, evidence: Evidence, least: Floats | float = 0.0) -> Floats:
        """Figures of merit (n,), 0 to HIGHEST; ``least`` : 0-1, what the evidence amounts to at least."""
        features = evidence.features()
        total = sum(value * features[name] for name, value in self.strength.items())
        raw = np.maximum(1 / (1 + np.exp(-total)), least)
        return np.clip(np.interp(raw, self.raw, self.fom), 0.0, HIGHEST)


@dataclass(frozen=True, eq=False)
class Calibration:
    """What evidence is worth.

    weights : sha256 of the network that the solutions behind it come from; those found without a network count, too
    tables : by KINDS
    seeds : what the probability of the likeliest part of the circle is worth, by the number of parts ("3" to "8") and
        for restricted phases (CENTRIC): probabilities as the figure of merit has them, and as found, both rising
    reliability : bins of the reflections of other crystals
    about : on what it was made, for the log and the report
    """

    weights: str
    tables: dict[str, Table]
    seeds: dict[str, tuple[Floats, Floats]]
    reliability: tuple[Promise, ...]
    about: dict[str, Any]

    def merits(self, evidence: Evidence) -> Floats:
        """Figures of merit (n,), 0 to HIGHEST. Where phases were put in, what is known besides may say more."""
        found = self.tables["found"]
        if evidence.given is None:
            return found.merits(evidence)
        return self.tables["given"].merits(evidence, found.merits(evidence.forgetting()))

    def right(self, p: Floats, centric: NDArray[np.bool_], bins: int) -> Floats:
        """Probability (n,) that a phase lies in its likeliest of ``bins`` parts of the circle, or has its likelier
        value where ``centric``; ``p`` : (n,) the same by a distribution with the phase's figure of merit.

        A map is often right or wrong altogether, and its phase errors sharper at once and wider than any von Mises
        distribution.
        """
        free, two = self.seeds[str(bins)], self.seeds[CENTRIC]
        return np.where(centric, np.interp(p, *two), np.interp(p, *free))

    def holds_for(self, weights: dict[str, Any]) -> bool:
        """Whether it holds for solutions found with these weights (``Plan.weights``); none have no hash."""
        return weights.get("sha256", self.weights) == self.weights

    @property
    def error(self) -> float:
        """Expected calibration error: mean difference of the bins of ``reliability``."""
        return float(
            np.average([abs(b.fom - b.cos) for b in self.reliability], weights=[b.n for b in self.reliability])
        )


def read_calibration(path: Path = FILE) -> Calibration:
    """The calibration that comes with the program. Raises UserError for a missing or damaged file."""
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        found = Calibration(
            str(facts["weights"]), {kind: _table(facts["tables"][kind]) for kind in KINDS},
            {parts: _pair(facts["seeds"][parts]) for parts in PARTS},
            tuple(Promise(int(n), float(fom), float(cos)) for n, fom, cos in facts["reliability"]), facts["about"],
        )  # fmt: skip
        for table in found.tables.values():
            check(table)
    except FileNotFoundError:
        raise UserError(
            "the calibration of the figures of merit is missing", str(path), "reinstall ml_phaser"
        ) from None
    except (KeyError, TypeError, ValueError) as error:
        what = f"damaged calibration of the figures of merit ({error})"
        raise UserError(what, str(path), "reinstall ml_phaser") from None
    return found


def _table(facts: dict[str, Any]) -> Table:
    strength = {name: float(value) for name, value in facts["strength"].items()}
    return Table(strength, np.array(facts["raw"], dtype=float), np.array(facts["fom"], dtype=float))


def _pair(facts: dict[str, Any]) -> tuple[Floats, Floats]:
    raw, right = np.array(facts["raw"], dtype=float), np.array(facts["right"], dtype=float)
    if len(raw) != len(right) or np.any(np.diff(raw) <= 0) or np.any(np.diff(right) < 0):
        raise ValueError("a table of seeds that falls")
    return raw, right


def check(table: Table) -> None:
    """Raises ValueError for a table in which more evidence could mean less, or with names that are not known."""
    if unknown := set(table.strength) - {*RISING, *OTHERS}:
        raise ValueError(f"unknown evidence {', '.join(sorted(unknown))}")
    if any(table.strength.get(name, 0.0) < 0 for name in RISING):
        raise ValueError("evidence that counts against itself")
    if len(table.raw) != len(table.fom) or len(table.raw) < 2:
        raise ValueError("a table of unequal columns")
    if np.any(np.diff(table.raw) <= 0) or np.any(np.diff(table.fom) < 0):
        raise ValueError("a table that falls")
    if table.fom.min() < 0 or table.fom.max() > HIGHEST:
        raise ValueError("figures of merit out of range")


def describe(calibration: Calibration, weights: dict[str, Any]) -> str:
    """A sentence for the log: calibrated how, or why not."""
    if not calibration.holds_for(weights):
        return (
            f"Figures of merit are not calibrated: the calibration was made with other weights "
            f"({calibration.weights[:8]}) than these ({str(weights.get('sha256'))[:8]})."
        )
    return (
        f"Figures of merit are calibrated on {calibration.about['crystals']} simulated crystals; on "
        f"{calibration.about['tested']} others they differed from the cosine of the phase error by "
        f"{calibration.error:.3f} in the mean."
    )
