"""What one application of a density projection repairs, on crystals cut from held-out entries.

The same maps of known error go through every entrant: nothing at all, the classical projections, the network. Each
classical one is tried on the map of F and on the sharpened map of E, at several settings. Its rival to the network is
the setting that is best on average over the errors of a resolution, *on the very crystals of the table*, so the
comparison leans to the classical side; the best setting for each row, which nobody can know beforehand, is given too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gemmi
import numpy as np
import torch
from numpy.typing import NDArray

from ml_phaser.atomic import atomic
from ml_phaser.crystal.grid import HalfSphere
from ml_phaser.networks.projector import Projector, condition
from ml_phaser.phasing.dual_space import Projection, sparse
from ml_phaser.phasing.projections import Target, flip, forward, inverse, restore, unit_variance, with_amplitudes
from ml_phaser.report.record import json_safe, write_json
from ml_phaser.simulate import corrupt
from ml_phaser.simulate.batches import SHAPES, calculate, resolution_profile
from ml_phaser.simulate.crystals import Contents, dense_box, random_cell
from ml_phaser.simulate.fragments import Library

RESOLUTIONS = (1.3, 1.5, 1.7, 1.9, 2.1)
LEVELS = (0.3, 0.5, 0.7, 0.9)
KINDS = ("phase", "additive")
FRACTIONS = (0.3, 0.5, 0.7)
TOLERANCE = 0.02  # of the correlation of a start with the truth
DELTA = 1.1  # the customary threshold of charge flipping, in r.m.s. densities
MATES = 2  # crystals of one shape are projected together; small batches stay in a processor's cache

DELTAS = (-1.0, -0.5, 0.0, 0.5, 0.8, DELTA)
SHARES = (0.03, 0.06, 0.1, 0.15, 0.2, 0.3, 0.4)
PIVOTS = (0.1, 0.25, 0.5, 1.0, 1.5, 2.5)
SOLVENTS = (0.1, 0.2, 0.35, 0.5)
NETWORK, IDENTITY = "network", "identity"
FURTHER = "network, a step further"  # not a rival
STEP = 0.4


@dataclass(frozen=True)
class Plan:
    """What to measure. resolutions in A; levels: map correlation of the starts; fractions: part of the atoms kept;
    crystals: how many a cell of the table; cycles: of alternation from the truth; fixed: crystals for that."""

    resolutions: tuple[float, ...] = RESOLUTIONS
    levels: tuple[float, ...] = LEVELS
    kinds: tuple[str, ...] = KINDS
    fractions: tuple[float, ...] = FRACTIONS
    crystals: int = 32
    fixed: int = 16
    cycles: int = 50
    seed: int = 20_000


@dataclass(frozen=True, eq=False)
class Crystal:
    """A crystal of known structure on its grid.

    f : (n,) true structure factors on ``hkl``; contents : its atoms; places : of ``hkl`` on the grid
    d_min, spacing : A
    """

    hkl: NDArray[np.int32]
    stol2: NDArray[np.float64]
    f: NDArray[np.complex128]
    contents: Contents
    places: HalfSphere
    d_min: float
    spacing: float

    def half(self, f: NDArray) -> torch.Tensor:
        """Half-complex coefficients (1, u, v, w') of structure factors, in units that give the true map variance 1."""
        unit = np.sqrt(np.prod(self.places.shape) / (2 * np.sum(np.abs(self.f) ** 2)))
        values = self.places.scatter(f * unit)
        return torch.from_numpy(values.astype(np.complex64 if np.iscomplexobj(values) else np.float32))[None]

    @property
    def target(self) -> Target:
        everything = torch.from_numpy(self.places.scatter(np.ones(len(self.hkl), dtype=bool)))[None]
        profile = self.half(resolution_profile(np.abs(self.f), self.stol2, np.ones(len(self.f), dtype=bool)))
        to_e = torch.where(everything, 1 / profile.clamp_min(1e-6), 0)
        return Target(self.half(np.abs(self.f)), everything, everything, to_e)

    @property
    def cond(self) -> torch.Tensor:
        one = torch.ones(1)
        return condition(one * self.d_min, one * self.spacing, one)


def make_crystal(
    rng: np.random.Generator, library: Library, shape: tuple[int, int, int], d_min: float, spacing: tuple[float, float]
) -> Crystal:
    """A box with less than 26 A^3 per atom and all reflections to ``d_min``, without measurement errors."""
    while True:
        cell = random_cell(rng, shape, spacing)
        contents = dense_box(rng, library, cell)
        if len(contents.xyz) >= 25 and cell.volume / len(contents.xyz) < 26:
            break
    hkl = gemmi.make_miller_array(cell, gemmi.SpaceGroup("P 1"), d_min)
    stol2 = np.asarray(cell.calculate_1_d2_array(hkl)) / 4
    f = calculate(contents, hkl, stol2, np.ones(len(contents.xyz), dtype=bool), contents.xyz)
    steps = np.array([cell.a, cell.b, cell.c]) / np.array(shape)
    return Crystal(hkl, stol2, f, contents, HalfSphere.of(hkl, shape), d_min, float(steps.mean()))


def held_out_crystals(library: Library, d_min: float, count: int, seed: int) -> list[Crystal]:
    """Fixed crystals: the same seed gives the same ones. Every grid holds the whole sphere to ``d_min`` (A)."""
    rng = np.random.default_rng([seed, round(1000 * d_min)])
    spacing = (0.5, min(0.66, d_min / 2.03))
    return [make_crystal(rng, library, SHAPES[i // MATES % len(SHAPES)], d_min, spacing) for i in range(count)]


def start_correlation(f: NDArray[np.complex128], start: NDArray[np.complex128]) -> float:
    """Correlation over the cell of two maps given by structure factors."""
    return float((f * start.conj()).real.sum() / np.sqrt((np.abs(f) ** 2).sum() * (np.abs(start) ** 2).sum()))


def start_at(rng: np.random.Generator, crystal: Crystal, level: float, kind: str) -> NDArray[np.complex128]:
    """True moduli with wrong phases, (n,), whose map correlates with the truth by ``level`` within TOLERANCE."""
    quality = level
    best = crystal.f
    for _ in range(100):
        start = corrupt.noisy_phases(rng, crystal.f, crystal.stol2, quality, kind)
        reached = start_correlation(crystal.f, start)
        if abs(reached - level) < abs(start_correlation(crystal.f, best) - level):
            best = start
        if abs(reached - level) <= TOLERANCE:
            return start
        quality = float(np.clip(quality + 0.5 * (level - reached), 0.02, 0.995))
    return best


def partial_start(rng: np.random.Generator, crystal: Crystal, fraction: float) -> NDArray[np.complex128]:
    """True moduli with the phases of a contiguous part of the atoms, misplaced as in training, (n,)."""
    contents = crystal.contents
    kept, moved = corrupt.partial_structure(rng, contents.xyz, np.array(contents.cell.orth.mat), fraction)
    part = calculate(contents, crystal.hkl, crystal.stol2, kept, moved)
    return np.abs(crystal.f) * np.exp(1j * np.angle(part))


# ---------------------------------------------------------------------------------------- entrants


def low_density_elimination(pivot: float) -> Projection:
    """rho (1 - exp(-(rho / pivot)^2 / 2)) where positive, else 0 (Shiono & Woolfson, Acta Cryst. A48, 451, 1992);
    ``pivot`` in r.m.s. densities (there: a fifth of the height expected of an atom)."""

    def project(rho: torch.Tensor) -> torch.Tensor:
        scaled = rho.clamp_min(0) / (pivot * rho.pow(2).mean(dim=(-3, -2, -1), keepdim=True).sqrt())
        return rho.clamp_min(0) * (1 - torch.exp(-0.5 * scaled.pow(2)))

    return project


def solvent_flattening(fraction: float, kernel: torch.Tensor) -> Projection:
    """The ``fraction`` of the cell with the lowest smoothed positive density set to its mean (Wang, Methods Enzymol.
    115, 90, 1985; in reciprocal space Leslie, Acta Cryst. A43, 134, 1987). ``kernel``: half-complex, real."""

    def project(rho: torch.Tensor) -> torch.Tensor:
        smooth = inverse(forward(rho.clamp_min(0)) * kernel, rho.shape)
        k = max(1, round(fraction * rho[0].numel()))
        cut = smooth.reshape(len(rho), -1).kthvalue(k, dim=1).values[:, None, None, None]
        solvent = smooth <= cut
        level = (rho * solvent).sum(dim=(-3, -2, -1), keepdim=True) / solvent.sum(dim=(-3, -2, -1), keepdim=True)
        return torch.where(solvent, level, rho)

    return project


def further(rho: torch.Tensor, restored: torch.Tensor, step: float) -> torch.Tensor:
    """restored + step (restored - k rho), k from least squares: a restoration of least squared error is timid, so some
    more of what it adds to ``rho`` (zero mean, unit variance) makes better phases."""
    k = (rho * restored).mean(dim=(-3, -2, -1), keepdim=True)
    return restored + step * (restored - k * rho)


@dataclass(frozen=True)
class Entrant:
    """``name`` (a family of settings), ``setting``, and whether it acts on the map of E instead of F."""

    name: str
    setting: float
    sharp: bool = False


ENTRANTS = (
    Entrant(IDENTITY, 0.0),
    *(Entrant(f"charge flipping, delta {DELTA}", DELTA, sharp) for sharp in (False, True)),
    *(Entrant("charge flipping, best delta", d, sharp) for d in DELTAS for sharp in (False, True)),
    *(Entrant("positivity", 0.0, sharp) for sharp in (False, True)),
    *(Entrant("sparse, best share", s, sharp) for s in SHARES for sharp in (False, True)),
    *(Entrant("low-density elimination", p, sharp) for p in PIVOTS for sharp in (False, True)),
    *(Entrant("solvent flattening", s) for s in SOLVENTS),
    Entrant(NETWORK, 0.0),
    Entrant(FURTHER, STEP),
)
NAMES = tuple(dict.fromkeys(e.name for e in ENTRANTS))


@dataclass(frozen=True, eq=False)
class Group:
    """Crystals on one grid. truth (B, u, v, w); kernel: of a 2 A Gaussian."""

    truth: torch.Tensor
    target: Target
    cond: torch.Tensor
    kernel: torch.Tensor

    @classmethod
    def of(cls, crystals: Sequence[Crystal]) -> Group:
        shape = crystals[0].places.shape
        target = Target(
            *(torch.cat([getattr(c.target, k) for c in crystals]) for k in ("amplitude", "known", "inside", "to_e"))
        )
        truth = inverse(torch.cat([c.half(c.f) for c in crystals]), shape)
        kernel = torch.cat(
            [torch.from_numpy(c.places.scatter(np.exp(-2 * np.pi**2 * 4 * 4 * c.stol2)).astype(np.float32))[None]
             for c in crystals]
        )  # fmt: skip
        kernel[:, 0, 0, 0] = 1.0
        return cls(truth, target, torch.cat([c.cond for c in crystals]), kernel)

    def projection(self, entrant: Entrant, network: Projector) -> Projection:
        """What ``entrant`` does to maps of unit variance."""
        if entrant.name == NETWORK:
            return lambda rho: restore(network, rho, self.target, self.cond)
        if entrant.name == FURTHER:
            return lambda rho: further(rho, restore(network, rho, self.target, self.cond), entrant.setting)
        if entrant.name.startswith("charge flipping"):
            return lambda rho: flip(rho, entrant.setting)
        if entrant.name == "positivity":
            return lambda rho: rho.clamp_min(0)
        if entrant.name.startswith("sparse"):
            return sparse(entrant.setting)
        if entrant.name == "low-density elimination":
            return low_density_elimination(entrant.setting)
        if entrant.name == "solvent flattening":
            return solvent_flattening(entrant.setting, self.kernel)
        return lambda rho: rho

    def restored(self, entrant: Entrant, network: Projector, half: torch.Tensor) -> torch.Tensor:
        """Half-complex coefficients after ``entrant`` acted on those given."""
        rho = unit_variance(inverse(half * self.target.to_e if entrant.sharp else half, self.truth.shape))
        out = forward(self.projection(entrant, network)(rho))
        return out / self.target.to_e.clamp_min(1e-6) * self.target.inside if entrant.sharp else out

    def correlations(self, half: torch.Tensor) -> tuple[NDArray, NDArray]:
        """Correlation with the truth (B,) of a map as it is, and with the measured moduli put back."""
        fixed = with_amplitudes(half, self.target)
        shape = self.truth.shape
        before = (unit_variance(inverse(half, shape)) * unit_variance(self.truth)).mean(dim=(1, 2, 3))
        after = (unit_variance(inverse(fixed, shape)) * unit_variance(self.truth)).mean(dim=(1, 2, 3))
        return before.numpy().astype(float), after.numpy().astype(float)


def _groups(crystals: Sequence[Crystal]) -> Iterator[list[int]]:
    """Neighbours on one grid, at most MATES."""
    for i in range(0, len(crystals), MATES):
        rows = list(range(i, min(i + MATES, len(crystals))))
        for shape in dict.fromkeys(crystals[j].places.shape for j in rows):
            yield [j for j in rows if crystals[j].places.shape == shape]


# ------------------------------------------------------------------------------------------ tables


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
    """One row of the table. kind "phase", "additive" or "partial"; level: map correlation aimed at, or part of the
    atoms kept; n crystals; cc_in: mean correlation of the starts; scores by entrant.

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
    mean.pop(FURTHER, None)
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
        if name not in (IDENTITY, NETWORK, FURTHER)
    }
    return out, beats, settings


@torch.no_grad()
def measure(network: Projector, crystals: Sequence[Crystal], starts: Sequence[NDArray]) -> Correlations:
    """Correlations (n, 2) of every entrant, from starts (reflections,) of each crystal."""
    cc = {e: np.zeros((len(crystals), 2)) for e in ENTRANTS}
    for rows in _groups(crystals):
        group = Group.of([crystals[i] for i in rows])
        half = torch.cat([crystals[i].half(starts[i]) for i in rows])
        for entrant in ENTRANTS:
            cc[entrant][rows] = np.stack(group.correlations(group.restored(entrant, network, half)), axis=1)
    return cc


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

    beats, beats_partial : by d_min, for phase and additive error, and for partial structures
    settings : by d_min, the classical settings of the rows of phase and additive error
    kept : by d_min and method
    data : digest of the held-out chains
    """

    plan: Plan
    rows: tuple[Row, ...]
    beats: dict[str, Beats]
    beats_partial: dict[str, Beats]
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
        cc = [measure(network, crystals, [partial_start(rng, c, part) for c in crystals]) for _, part in labels]
        found, beats_partial[name], _ = summarise(d_min, labels, cc)
        rows += found
        kept[name] = keep_truth(network, crystals[: plan.fixed], plan.cycles)
    progress(1.0, "done")
    return Report(plan, tuple(rows), beats, beats_partial, settings, kept, library.digest)


def markdown(report: Report) -> str:
    """The tables for people."""
    classical = [n for n in NAMES if n not in (IDENTITY, NETWORK, FURTHER)]
    said = {True: "yes", False: "no"}
    lines = [
        f"Mean map correlation with the truth over {report.plan.crystals} crystals a row, with the measured moduli put",
        "back after one projection (in brackets: before), and for the network the 95 % interval of the mean. Classical",
        "projections stand at the setting, on the map of F or of E, that is best on average over the rows of a",
        "resolution; *at best* is the best of them all at the best setting for that row alone. *Lead*: of the network",
        "over the best rival, less the 95 % interval of the paired difference; *wins* where both are positive.",
        f"*A step further*: the network's change of the map taken {1 + STEP:g} times; not judged as the network.",
        "",
        "| A | error | in | " + " | ".join([*classical, "at best", NETWORK, FURTHER]) + " | lead | wins |",
        "|---" * (len(classical) + 8) + "|",
    ]
    for r in report.rows:
        error = f"{r.kind} {r.level:g}" + (" kept" if r.kind == "partial" else "")
        cells = [f"{r.scores[n].cc_f:.3f} ({r.scores[n].cc:.3f})" for n in classical]
        best, best_f = (max(getattr(r.scores[n], k) for n in classical) for k in ("oracle", "oracle_f"))
        s = r.scores[NETWORK]
        cells += [f"{best_f:.3f} ({best:.3f})", f"**{s.cc_f:.3f} ± {s.cc_f_pm:.3f}** ({s.cc:.3f} ± {s.cc_pm:.3f})"]
        cells.append(f"{r.scores[FURTHER].cc_f:.3f} ({r.scores[FURTHER].cc:.3f})")
        lead = f"{r.lead_f:+.3f} ({r.lead:+.3f})"
        lines.append(f"| {r.d_min:g} | {error} | {r.cc_in:.3f} | {' | '.join(cells)} | {lead} | {said[r.wins]} |")
    names = list(next(iter(report.kept.values())))
    lines += [
        "",
        "Does the network beat the identity and every classical projection, beyond the 95 % interval, before and after",
        "the measured moduli are put back?",
        "",
        "| A | phase and additive error, on average | in every row | in every row, rivals at best | partial structures,"
        " on average | in every row |",
        "|---|---|---|---|---|---|",
        *(
            f"| {d} | {said[b.on_average]} | {said[b.every_row]} | {said[b.every_row_oracle]} "
            f"| {said[report.beats_partial[d].on_average]} | {said[report.beats_partial[d].every_row]} |"
            for d, b in report.beats.items()
        ),
        "",
        f"Correlation kept after {report.plan.cycles} plain cycles (projection, then measured moduli) from the truth,"
        f" {report.plan.fixed} crystals:",
        "",
        "| A | " + " | ".join(names) + " |",
        "|---" * (len(names) + 1) + "|",
        *(f"| {d} | " + " | ".join(f"{kept[n]:.3f}" for n in names) + " |" for d, kept in report.kept.items()),
        "",
        "Settings of the classical projections (threshold, share or pivot) for phase and additive error:",
        "",
        "| A | " + " | ".join(classical) + " |",
        "|---" * (len(classical) + 1) + "|",
        *(f"| {d} | " + " | ".join(s[n] for n in classical) + " |" for d, s in report.settings.items()),
    ]
    return "\n".join(lines) + "\n"


def brief(report: Report) -> dict[str, Any]:
    """What a model card needs of it: the network beside the best of its rivals, ``[before, after]`` the measured
    moduli are put back."""
    rivals = [n for n in NAMES if n not in (NETWORK, FURTHER)]
    return {
        "what": "mean map correlation with the truth on crystals cut from held-out entries, one pass, "
        f"{report.plan.crystals} crystals a row; [before, after] the measured amplitudes are put back",
        "held_out_sha256": report.data,
        "rows": [
            {
                "d_min": r.d_min,
                "error": r.kind,
                "level": r.level,
                "start": round(r.cc_in, 3),
                "network": [round(r.scores[NETWORK].cc, 3), round(r.scores[NETWORK].cc_f, 3)],
                "best_rival": [
                    round(max(r.scores[n].cc for n in rivals), 3),
                    round(max(r.scores[n].cc_f for n in rivals), 3),
                ],
                "wins": r.wins,
            }
            for r in report.rows
        ],
        "beats_identity_and_classical": {d: asdict(b) for d, b in report.beats.items()},
        "beats_on_partial_structures": {d: asdict(b) for d, b in report.beats_partial.items()},
        "truth_kept": {"cycles": report.plan.cycles, "cc": report.kept},
    }


def write_report(path: Path, report: Report, network: dict[str, Any]) -> Path:
    """Write ``path`` (JSON) and the table beside it (``.md``), which is returned. ``network``: what was judged.

    Raises UserError where they cannot be written.
    """
    write_json(path, json_safe({"network": network, **asdict(report)}))
    table = path.with_suffix(".md")
    heading = ", ".join(f"{k} {v}" for k, v in network.items())
    with atomic(table) as tmp:
        tmp.write_text(f"# One pass of the learned projection\n\n{heading}\n\n{markdown(report)}", encoding="utf-8")
    return table
