"""A one-shot network, dual-space cycles from random phases, and cycles that begin with its prediction, on one clock."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ml_phaser.crystal.agreement import Agreement, compare
from ml_phaser.crystal.normalise import normalise
from ml_phaser.crystal.reflections import Amplitudes, Source
from ml_phaser.evaluation.one_shot import P1, Reflections
from ml_phaser.parameters import Options
from ml_phaser.phasing.confidence import probability_solved
from ml_phaser.phasing.prediction import OneShot, corrected, predict
from ml_phaser.phasing.problem import Problem
from ml_phaser.phasing.projections import forward, inverse, unit_variance
from ml_phaser.phasing.search import CONVINCED, Entrant
from ml_phaser.plan import classical_entrants, lay_out, shrink_wrap_entrants
from ml_phaser.simulate.one_shot import OneShotBatch

METHODS = ("shrink-wrap HIO", "charge flipping")
LOOK = {"shrink-wrap HIO": 20, "charge flipping": 120}  # cycles between looks at the truth, for the record alone
SOLVED = 0.95
Phases = NDArray[np.float64]


@dataclass
class Clock:
    """Processor seconds, stopped while the truth is looked at."""

    since: float = field(default_factory=time.process_time)
    stopped: float = 0.0

    def __call__(self) -> float:
        return time.process_time() - self.since - self.stopped


@dataclass(frozen=True, eq=False)
class Crystal:
    """Data to phase and the truth."""

    data: Amplitudes
    truth: Reflections
    batch: OneShotBatch

    @classmethod
    def of(cls, batch: OneShotBatch, i: int, d_min: float) -> Crystal:
        """Crystal ``i`` of a batch, its amplitudes exact."""
        one = slice(i, i + 1)
        shape = tuple(batch.truth.shape[1:])
        truth = Reflections.of(batch.half[i], batch.lengths[i], shape, d_min)
        f = np.abs(truth.f)
        source = Source("simulated", "simulated", ("F", "SIGF"), "amplitude")
        data = Amplitudes(truth.hkl, f, 0.01 * f + 1e-6, truth.cell, P1, source)
        return cls(data, truth, OneShotBatch(batch.truth[one], batch.half[one], batch.parts[one], batch.lengths[one]))

    @property
    def fingerprint(self) -> str:
        """The same for the same crystal on whatever grid."""
        f = np.abs(self.truth.f)
        return f"{len(f)} reflections, {f.max() / f.mean():.3f} {np.median(f) / f.mean():.3f}"

    def agreement(self, f: NDArray[np.complex128]) -> Agreement:
        """Of measured amplitudes with the phases of ``f`` (n,), at the best origin and hand."""
        phased = np.abs(self.truth.f) * np.exp(1j * np.angle(f))
        return compare(self.truth.hkl, phased, self.truth.f, self.truth.cell, P1, repeats=0)


def predicted(network: OneShot, crystal: Crystal, passes: int) -> tuple[Phases, float]:
    """Phases (n,) in radians that a network predicts from amplitudes alone, and its processor seconds."""
    batch, clock = crystal.batch, Clock()
    moduli = torch.complex(batch.half.abs(), torch.zeros_like(batch.half.abs()))
    u, v, w = batch.truth.shape[1:]
    last = corrected(predict(network, moduli, (u, v, w), batch.parts, batch.lengths, passes)[-1], moduli)
    seconds = clock()
    return np.angle(crystal.truth.gather(forward(last)[0])), seconds


def alone(crystal: Crystal, phases: Phases, seconds: float) -> dict[str, Any]:
    """The row of a network by itself."""
    return {"seconds": seconds, **_judged(crystal.agreement(np.exp(1j * phases)))}


def _judged(found: Agreement) -> dict[str, Any]:
    return {"cc": round(found.map_cc, 4), "error": round(found.phase_error, 2), "hand": not found.inverted}


@dataclass(frozen=True, eq=False)
class PhasedStarts:
    """Maps of predicted phases (radians, on the entrant's reflections), random ones mixed in by any share; the first
    map made is the prediction itself. Reflections held out to judge by are left empty."""

    problem: Problem
    phases: Phases

    def make(self, many: int, generator: torch.Generator, pure: bool) -> torch.Tensor:
        """(many, u, v, w); ``pure``: the first of them without anything random."""
        f = self.problem.amplitude * np.exp(1j * self.phases)
        f[self.problem.held] = 0
        x = unit_variance(inverse(self.problem.scatter(f), self.problem.shape))
        noise = unit_variance(self.problem.random_starts(many, generator))
        share = torch.rand(many, 1, 1, 1, generator=generator)
        if pure:
            share[0] = 0
        return x + share * noise


def entrants(data: Amplitudes, method: str, seed: int) -> list[Entrant]:
    """The engine's own, of one method."""
    none = Path("none")
    chosen = Options(none, none, none, none, threads=1, engine="classical", seed=seed, device="cpu")
    board, whole, d_search = lay_out(data, normalise(data), chosen)
    if method == METHODS[0]:
        return shrink_wrap_entrants(board)
    return [e for e in classical_entrants(board, whole, d_search) if "flipping" in e.method.name]


def race(
    crystal: Crystal, method: str, phases: Phases | None, *, before: float, seconds: float, seed: int, batch: int
) -> dict[str, Any]:
    """Starts of a method until the held-out reflections convince or ``seconds`` of processor time are over.

    Parameters
    ----------
    phases : predicted ones to begin with, random ones if None; before : seconds they have cost
    batch : starts at once

    Returns
    -------
    the answer, chosen by the held-out score; ``curve``, best map correlation so far of any start [seconds, CC]; starts
    made, ``solved`` those that came to SOLVED, and ``first``, the number of the first that did (None: none)
    """
    generator = torch.Generator().manual_seed(seed)
    clock = Clock()
    clock.stopped = -before
    found, step = entrants(crystal.data, method, seed), LOOK[method]
    curve: list[list[float]] = []
    starts, solved, first = 0, 0, None
    answer, score, convinced = None, -2.0, False
    for turn in count():
        e = found[turn % len(found)]
        if phases is None:
            x = e.problem.random_starts(batch, generator)
        else:
            x = PhasedStarts(e.problem, phases[e.rows]).make(batch, generator, turn == 0)
        best = np.full(batch, -1.0)
        for done in range(0, e.cycles, step):
            x = e.method.advance(x, min(step, e.cycles - done), done)
            late = clock() > seconds and answer is not None
            if curve and curve[-1][1] >= SOLVED and not late and done + step < e.cycles:
                continue  # the rest is counted at its end
            at, since = clock(), time.process_time()
            best = np.maximum(best, _look(crystal, e, e.method.estimate(x)))
            if not curve or best.max() > curve[-1][1] + 1e-3:
                curve.append([round(at, 3), round(float(best.max()), 4)])
            clock.stopped += time.process_time() - since
            if late:
                break
        half = e.method.estimate(x)
        scores = np.nan_to_num(e.problem.scores(half).numpy().astype(float), nan=-1.0)
        i = int(np.argmax(scores))
        if answer is None or scores[i] > score:
            answer, score = _gathered(crystal, e, half[i]), float(scores[i])
            p = probability_solved(score, int(e.problem.held.sum()), float("nan"), 0, e.problem.d_min)
            convinced = p >= CONVINCED
        if first is None and (best >= SOLVED).any():
            first = starts + int(np.argmax(best >= SOLVED)) + 1
        starts, solved = starts + batch, solved + int((best >= SOLVED).sum())
        if convinced or clock() > seconds:
            break
    used = clock()
    assert answer is not None
    return {
        "seconds": round(used, 3), "curve": curve, "starts": starts, "solved": solved, "first": first,
        "score": round(score, 3), "convinced": convinced, **_judged(crystal.agreement(answer)),
    }  # fmt: skip


def _gathered(crystal: Crystal, entrant: Entrant, half: torch.Tensor) -> NDArray[np.complex128]:
    """Structure factors on all reflections of the data, of P1 entrants; 0 where the entrant has none."""
    problem = entrant.problem
    f = np.zeros(len(crystal.data), dtype=np.complex128)
    f[entrant.rows] = problem.expansion.average(problem.gather_p1(half), len(problem.hkl))
    return f


def _look(crystal: Crystal, entrant: Entrant, half: torch.Tensor) -> NDArray[np.float64]:
    return np.array([crystal.agreement(_gathered(crystal, entrant, h)).map_cc for h in half])


def seconds_to(row: dict[str, Any], cc: float) -> float:
    """Processor seconds until a start reached a map correlation, inf where none did."""
    return next((at for at, reached in row["curve"] if reached >= cc), float("inf"))


def summary(rows: Sequence[dict[str, Any]], limit: float, wanted: Sequence[float]) -> dict[str, Any]:
    """Of one entrant on several crystals; ``wanted`` (crystals,): the correlation whose time is asked for as well."""
    cc, error, hand = (np.array([row[k] for row in rows], dtype=float) for k in ("cc", "error", "hand"))
    to_solved = [seconds_to(row, SOLVED) for row in rows if "curve" in row]
    to_wanted = [seconds_to(row, w) for row, w in zip(rows, wanted, strict=True) if "curve" in row]
    made = sum(row.get("starts", 0) for row in rows)
    return {
        "n": len(rows), "cc": _mean(cc), "error": _mean(error), "hand": float(hand.mean()),
        "seconds": float(np.median([row["seconds"] for row in rows])), "limit": limit,
        "reached": float(np.mean(np.isfinite(to_solved))) if to_solved else None,
        "to_solved": float(np.median(to_solved)) if to_solved else None,
        "to_network": float(np.median(to_wanted)) if to_wanted else None,
        "starts_solved": sum(row["solved"] for row in rows) / made if made else None,
        "first": float(np.median([row["first"] or np.inf for row in rows])) if to_solved else None,
    }  # fmt: skip


def _mean(x: NDArray[np.float64]) -> list[float]:
    return [float(x.mean()), float(1.96 * x.std(ddof=1) / np.sqrt(len(x))) if len(x) > 1 else float("nan")]
