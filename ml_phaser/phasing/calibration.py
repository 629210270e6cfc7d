"""Figures of merit brought to what figures of merit like them were worth in crystals of known structure.

The evidence on each reflection (Sim's weight from held-out reflections, how far independent solutions agree, the
phases given, the verdict) is added up on the scale of log-odds; a table says what cosine of the phase error such a sum
came with. The table is found by pooling adjacent violators (Ayer et al. 1955, Ann. Math. Stat. 26, 641), so more
evidence never lowers a figure of merit. The numbers lie beside the weights of the network whose solutions they were
found on, and hold for these alone. ``benchmarks/confidence`` makes them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ml_phaser.errors import UserError
from ml_phaser.outcome import Promise

Floats = NDArray[np.float64]

FILE = Path(__file__).resolve().parent.parent / "weights" / "confidence" / "calibration.json"
RISING = ("sim", "solved", "agreement", "given_fom", "given_sim", "given_solved", "strong")  # more never means less
OTHERS = ("one", "mates", "given", "fine")
LEAST = 0.02  # of a figure of merit, where log-odds are taken; 1 - LEAST at most
LEAST_SOLVED = 0.005  # the same of the verdict's probability
HIGHEST = 0.99  # figure of merit; the phase distribution of 1 would be infinitely sharp


@dataclass(frozen=True, eq=False)
class Evidence:
    """What is known of n phases.

    sim : (n,) Sim's and Woolfson's weights, 0-1, as if the solution were right
    solved : probability of the verdict, 0-1
    e : (n,) measured |E|; d : (n,) A
    agreement : (n,) mean cosine between the phases of solutions that independent starts led to, None where there is one
    given : (n,) figures of merit, 0-1, of phases that were put in, None where there are none
    """

    sim: Floats
    solved: float
    e: Floats
    d: Floats
    agreement: Floats | None = None
    given: Floats | None = None

    def features(self) -> dict[str, Floats]:
        """Each part of it (n,), by the names of RISING and OTHERS."""
        one, zero = np.ones(len(self.sim)), np.zeros(len(self.sim))
        sim, solved = log_odds(self.sim), one * float(log_odds(np.array(self.solved), LEAST_SOLVED))
        mates, given = self.agreement is not None, self.given is not None
        return {
            "one": one, "sim": zero if given else sim, "solved": zero if given else solved,
            "mates": one * mates, "agreement": zero if self.agreement is None else log_odds(self.agreement),
            "given": one * given, "given_fom": zero if self.given is None else log_odds(self.given),
            "given_sim": sim * given, "given_solved": solved * given,
            "strong": np.minimum(self.e, 3.0), "fine": (self.d.min() / self.d) ** 2,
        }  # fmt: skip


def log_odds(p: Floats, least: float = LEAST) -> Floats:
    """ln p / (1 - p) of p no nearer than ``least`` to 0 and 1."""
    p = np.clip(p, least, 1 - least)
    return np.asarray(np.log(p / (1 - p)))


@dataclass(frozen=True, eq=False)
class Calibration:
    """What evidence is worth.

    weights : sha256 of the network that the solutions behind it come from; those found without a network count, too
    strength : of each feature, in log-odds
    raw, fom : (k,) the sum of the evidence, as a probability, and the figure of merit it is worth, both rising
    reliability : bins of the reflections of other crystals
    about : on what it was made, for the log and the report
    """

    weights: str
    strength: dict[str, float]
    raw: Floats
    fom: Floats
    reliability: tuple[Promise, ...]
    about: dict[str, Any]

    def sum_up(self, evidence: Evidence) -> Floats:
        """All evidence together as a probability (n,), 0-1."""
        features = evidence.features()
        total = sum(value * features[name] for name, value in self.strength.items())
        return np.asarray(1 / (1 + np.exp(-total)))

    def merits(self, evidence: Evidence) -> Floats:
        """Figures of merit (n,), 0 to HIGHEST."""
        return np.clip(np.interp(self.sum_up(evidence), self.raw, self.fom), 0.0, HIGHEST)

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
            str(facts["weights"]), {k: float(v) for k, v in facts["strength"].items()},
            np.array(facts["raw"], dtype=float), np.array(facts["fom"], dtype=float),
            tuple(Promise(int(n), float(fom), float(cos)) for n, fom, cos in facts["reliability"]), facts["about"],
        )  # fmt: skip
        check(found)
    except FileNotFoundError:
        raise UserError(
            "the calibration of the figures of merit is missing", str(path), "reinstall ml_phaser"
        ) from None
    except (KeyError, TypeError, ValueError) as error:
        what = f"damaged calibration of the figures of merit ({error})"
        raise UserError(what, str(path), "reinstall ml_phaser") from None
    return found


def check(found: Calibration) -> None:
    """Raises ValueError for a calibration in which more evidence could mean less, or with names that are not known."""
    if unknown := set(found.strength) - {*RISING, *OTHERS}:
        raise ValueError(f"unknown evidence {', '.join(sorted(unknown))}")
    if any(found.strength.get(name, 0.0) < 0 for name in RISING):
        raise ValueError("evidence that counts against itself")
    if len(found.raw) != len(found.fom) or len(found.raw) < 2:
        raise ValueError("a table of unequal columns")
    if np.any(np.diff(found.raw) <= 0) or np.any(np.diff(found.fom) < 0):
        raise ValueError("a table that falls")
    if found.fom.min() < 0 or found.fom.max() > HIGHEST:
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
