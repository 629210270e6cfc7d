"""What one application of a density projection repairs, on crystals cut from held-out entries.

The same maps of known error go through every entrant: nothing at all, the classical projections, the network. Each
classical one is tried on the map of F and on the sharpened map of E, at several settings. Its rival to the network is
the setting that is best on average over the errors of a resolution, *on the very crystals of the table*, so the
comparison leans to the classical side; the best setting for each row, which nobody can know beforehand, is given too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ml_phaser.evaluation.held_out import MATES, Crystal, held_out_crystals, partial_model, phased_by, start_at
from ml_phaser.evaluation.rivals import DELTA, ENTRANTS, IDENTITY, NETWORK, SHOWN, Entrant, Group
from ml_phaser.networks.projector import Projector
from ml_phaser.phasing.projections import forward, with_amplitudes
from ml_phaser.simulate.fragments import Library

RESOLUTIONS = (1.3, 1.5, 1.7, 1.9, 2.1)
LEVELS = (0.3, 0.5, 0.7, 0.9)
KINDS = ("phase", "additive")
FRACTIONS = (0.3, 0.5, 0.7)


@dataclass(frozen=True)
class Plan:
    """What to measure. resolutions in A; levels: map correlation of the starts; fractions: part of the atoms kept;
    crystals: how many a row; cycles: of alternation from the truth."""

    resolutions: tuple[float, ...] = RESOLUTIONS
    levels: tuple[float, ...] = LEVELS
    kinds: tuple[str, ...] = KINDS
    fractions: tuple[float, ...] = FRACTIONS
    crystals: int = 32
    cycles: int = 200
    seed: int = 20_000

    @property
    def few(self) -> int:
        """Crystals a row where there is solvent, and for ``cycles``."""
        return max(2, self.crystals // 2)


def _groups(crystals: Sequence[Crystal]) -> Iterator[list[int]]:
    """Neighbours on one grid, at most MATES."""
    for i in range(0, len(crystals), MATES):
        rows = list(range(i, min(i + MATES, len(crystals))))
        for shape in dict.fromkeys(crystals[j].places.shape for j in rows):
            yield [j for j in rows if crystals[j].places.shape == shape]


@dataclass(frozen=True)
class Score:
    """An entrant in one row: mean correlation with the truth and half its 95 % interval, of the map as it is (``cc``)
    and with measured moduli (``cc_f``); ``oracle``, ``oracle_f``: the same means at the best setting for this row."""

    cc: float
    cc_pm: float
    cc_f: float
    cc_f_pm: float
    oracle: float
    oracle_f: float


@dataclass(frozen=True)
class Row:
    """One row of the table. kind "phase", "additive" or "partial", after "wet" where there is solvent; level: map
    correlation aimed at, or part of the atoms kept; n crystals; cc_in: mean correlation of the starts; scores by
    entrant.

    lead, lead_f : smallest over the rivals of the mean paired difference network - rival less its 95 % interval, of
        the map as it is and with measured moduli; ``wins`` where both are positive
    wins_oracle : the same against rivals at their best setting for this row
    """

    d_min: float
    kind: str
    level: float
    n: int
    cc_in: float
    scores: dict[str, Score]
    lead: float
    lead_f: float
    wins: bool
    wins_oracle: bool


@dataclass(frozen=True)
class Beats:
    """Whether the network leads every rival by more than the 95 % interval, before and after the measured moduli are
    put back: on average over the rows, in every row, in every row with the rivals at their best setting for it."""

    on_average: bool
    every_row: bool
    every_row_oracle: bool


def half_interval(values: NDArray) -> float:
    """Half the 95 % interval of a mean."""
    return float(1.96 * values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")


Correlations = dict[Entrant, NDArray]  # (n, 2): of the map as it is, with measured moduli


def best_settings(rows: Sequence[Correlations]) -> dict[str, tuple[Entrant, Entrant]]:
    """By name, the entrant with the best mean over all rows: of maps as they are, with measured moduli."""
    mean = {e: np.mean([row[e].mean(axis=0) for row in rows], axis=0) for e in rows[0]}
    return {
        name: (
            max((e for e in mean if e.name == name), key=lambda e: float(mean[e][0])),
            max((e for e in mean if e.name == name), key=lambda e: float(mean[e][1])),
        )
        for name in dict.fromkeys(e.name for e in mean)
    }


def _columns(cc: Correlations, chosen: tuple[Entrant, Entrant]) -> NDArray:
    return np.stack([cc[chosen[0]][:, 0], cc[chosen[1]][:, 1]], axis=1)


def leads(rows: Sequence[Correlations], chosen: dict[str, tuple[Entrant, Entrant]]) -> tuple[float, float]:
    """Smallest lead of the network over the others, less the 95 % interval of the paired difference, on the mean of
    the rows (each on the same crystals): of maps as they are, with measured moduli."""
    mean = {name: np.mean([_columns(row, pair) for row in rows], axis=0) for name, pair in chosen.items()}
    own = mean.pop(NETWORK)
    mean.pop(SHOWN, None)
    found = [[float(d.mean()) - half_interval(d) for d in (own - other).T] for other in mean.values()]
    plain, fixed = (min(column) for column in zip(*found, strict=True))
    return plain, fixed


def summarise(
    d_min: float, labels: Sequence[tuple[str, float]], rows: Sequence[Correlations]
) -> tuple[list[Row], Beats, dict[str, str]]:
    """Rows (kind, level) of one resolution that share the rivals' settings, whether the network beats them, and the
    settings (for maps with measured moduli)."""
    chosen = best_settings(rows)
    out = []
    for (kind, level), cc in zip(labels, rows, strict=True):
        own = best_settings([cc])
        scores = {}
        for name, pair in chosen.items():
            a, b = _columns(cc, pair).T
            best = _columns(cc, own[name]).mean(axis=0)
            scores[name] = Score(
                float(a.mean()), half_interval(a), float(b.mean()), half_interval(b), float(best[0]), float(best[1])
            )
        plain, fixed = leads([cc], chosen)
        start = cc[ENTRANTS[0]][:, 1]
        out.append(
            Row(
                d_min, kind, level, len(start), float(start.mean()), scores, plain, fixed,
                min(plain, fixed) > 0, min(leads([cc], own)) > 0,
            )
        )  # fmt: skip
    beats = Beats(min(leads(rows, chosen)) > 0, all(r.wins for r in out), all(r.wins_oracle for r in out))
    settings = {
        name: f"{e.setting:g}{' on E' if e.sharp else ' on F'}"
        for name, (_, e) in chosen.items()
        if name not in (IDENTITY, NETWORK, SHOWN)
    }
    return out, beats, settings


@torch.no_grad()
def measure(
    network: Projector, crystals: Sequence[Crystal], starts: Sequence[NDArray], models: Sequence[NDArray] | None = None
) -> Correlations:
    """Correlations (n, 2) of every entrant, from starts (reflections,) of each crystal, perhaps phased by models."""
    cc = {e: np.zeros((len(crystals), 2)) for e in ENTRANTS}
    for rows in _groups(crystals):
        group = Group.of([crystals[i] for i in rows], models and [models[i] for i in rows])
        half = torch.cat([crystals[i].half(starts[i]) for i in rows])
        for entrant in ENTRANTS:
            cc[entrant][rows] = np.stack(group.correlations(group.restored(entrant, network, half)), axis=1)
    return cc


def completed(network: Projector, crystals: Sequence[Crystal], rng: np.random.Generator, part: float) -> Correlations:
    """``measure`` from phases of contiguous parts of the atoms."""
    models = [partial_model(rng, c, part) for c in crystals]
    return measure(network, crystals, [phased_by(c, m) for c, m in zip(crystals, models, strict=True)], models)


@torch.no_grad()
def keep_truth(network: Projector, crystals: Sequence[Crystal], cycles: int) -> dict[str, float]:
    """Mean correlation kept after plain cycles x <- P_F(P(x)) from the truth: the network, and two classical ones."""
    entrants = {
        NETWORK: Entrant(NETWORK, 0.0),
        "sparse 0.15": Entrant("sparse, best share", 0.15),
        f"charge flipping, delta {DELTA}": Entrant(f"charge flipping, delta {DELTA}", DELTA),
    }
    kept: dict[str, list[float]] = {name: [] for name in entrants}
    for rows in _groups(crystals):
        group = Group.of([crystals[i] for i in rows])
        for name, entrant in entrants.items():
            half = forward(group.truth)
            for _ in range(cycles):
                half = with_amplitudes(group.restored(entrant, network, half), group.target)
            kept[name] += list(group.correlations(half)[1])
    return {name: float(np.mean(values)) for name, values in kept.items()}


@dataclass(frozen=True)
class Report:
    """The whole benchmark.

    beats, beats_partial, beats_wet : by d_min, for phase and additive error, for partial structures, and for phases in
        error and partial structures of crystals with solvent
    settings : by d_min, the classical settings of the rows of phase and additive error
    kept : by d_min and method
    data : digest of the held-out chains
    """

    plan: Plan
    rows: tuple[Row, ...]
    beats: dict[str, Beats]
    beats_partial: dict[str, Beats]
    beats_wet: dict[str, Beats]
    settings: dict[str, dict[str, str]]
    kept: dict[str, dict[str, float]]
    data: str

    def claimed(self, criterion: str = "on_average") -> tuple[float, float] | None:
        """Best and worst resolution of the longest run of tested ones at which the network beats the rest by one of
        the criteria of ``Beats``; None where it never does."""
        runs: list[list[float]] = [[]]
        for d, beats in sorted((float(d), beats) for d, beats in self.beats.items()):
            if getattr(beats, criterion):
                runs[-1].append(d)
            elif runs[-1]:
                runs.append([])
        longest = max(runs, key=len)
        return (longest[0], longest[-1]) if longest else None


def evaluate(
    network: Projector,
    library: Library,
    plan: Plan | None = None,
    progress: Callable[[float, str], None] = lambda fraction, text: None,
) -> Report:
    """Run the benchmark on crystals cut from ``library`` (held-out entries), on the CPU.

    ``progress`` is called with the part done (0-1) and a line of text.
    """
    plan = plan or Plan()
    network = network.eval()
    rows: list[Row] = []
    kept: dict[str, dict[str, float]] = {}
    beats: dict[str, Beats] = {}
    beats_partial: dict[str, Beats] = {}
    beats_wet: dict[str, Beats] = {}
    settings: dict[str, dict[str, str]] = {}
    for i, d_min in enumerate(plan.resolutions):
        progress(i / len(plan.resolutions), f"{d_min:.2f} A")
        crystals = held_out_crystals(library, d_min, plan.crystals, plan.seed)
        rng = np.random.default_rng([plan.seed, i])
        name = f"{d_min:g}"
        labels = [(kind, level) for kind in plan.kinds for level in plan.levels]
        cc = [measure(network, crystals, [start_at(rng, c, level, kind) for c in crystals]) for kind, level in labels]
        found, beats[name], settings[name] = summarise(d_min, labels, cc)
        rows += found
        labels = [("partial", fraction) for fraction in plan.fractions]
        cc = [completed(network, crystals, rng, part) for _, part in labels]
        found, beats_partial[name], _ = summarise(d_min, labels, cc)
        rows += found
        wet = held_out_crystals(library, d_min, plan.few, plan.seed, wet=True)
        labels = [("wet phase", level) for level in plan.levels]
        cc = [measure(network, wet, [start_at(rng, c, level, "phase") for c in wet]) for _, level in labels]
        cc += [completed(network, wet, rng, part) for part in plan.fractions]
        labels += [("wet partial", fraction) for fraction in plan.fractions]
        found, beats_wet[name], _ = summarise(d_min, labels, cc)
        rows += found
        kept[name] = keep_truth(network, crystals[: plan.few], plan.cycles)
    progress(1.0, "done")
    return Report(plan, tuple(rows), beats, beats_partial, beats_wet, settings, kept, library.digest)
