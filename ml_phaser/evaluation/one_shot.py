"""What a one-shot network's density is worth, on held-out molecules in the cells it was trained for.

Beside the network, after each of its passes: the constant prediction (the mean map of other molecules), the same with
the measured amplitudes put back, and random phases. Judged where the papers judge, at the origin and hand of the truth,
which the recipes fix by centring an L-molecule, and at the best origin and hand, as phases are judged that do not know
them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import gemmi
import numpy as np
import torch
from numpy.typing import NDArray

from ml_phaser.crystal.agreement import compare
from ml_phaser.crystal.grid import HalfSphere
from ml_phaser.phasing.prediction import OneShot, corrected, predict
from ml_phaser.phasing.projections import forward, inverse, regrid
from ml_phaser.simulate.fragments import Library
from ml_phaser.simulate.one_shot import OneShotBatch, OneShotRecipe, one_shot_batches

MARGIN = 0.05  # of correlation by which a network must lead the constant prediction
ENOUGH = 64  # crystals on a grid that make a mean map of their own
SHELLS = 6
FLAT = 1e-6  # standard deviation of a map that is the same everywhere
AGREEMENT = (0.0, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 1.0)  # bins of the mean resultant length
BLOB, BLOB_F, CHANCE = "constant blob", "constant blob, |F|", "random phases, |F|"
P1 = gemmi.SpaceGroup("P 1")

Progress = Callable[[float], None]


@dataclass(frozen=True)
class Plan:
    """crystals : to judge; passes : of the network, and never fewer than it was trained with; last : passes whose
    phases are compared for their spread; batch : crystals at once; drawn : molecules for the constant
    prediction; seed : of both draws."""

    crystals: int = 256
    passes: int = 8
    last: int = 4
    batch: int = 16
    drawn: int = 2048
    seed: int = 40_000


@dataclass(frozen=True)
class Mean:
    """A mean and half its 95 % interval."""

    value: float
    pm: float

    @classmethod
    def of(cls, values: NDArray[np.float64]) -> Mean:
        pm = 1.96 * values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan
        return cls(float(values.mean()), float(pm))

    def __str__(self) -> str:
        return f"{self.value:.3f} ± {self.pm:.3f}"


@dataclass(frozen=True)
class Row:
    """One prediction. cc, error : map correlation and |F|-weighted mean phase error in degrees as it stands; free_cc,
    free_error : at the best origin and hand; hand : share of crystals, 0-1, in which that is the hand of the truth."""

    name: str
    cc: Mean
    error: Mean
    free_cc: Mean
    free_error: Mean
    hand: Mean


@dataclass(frozen=True)
class Shell:
    """Reflections between two resolutions in A: how many, |F|-weighted mean phase error in degrees, last pass."""

    d_max: float
    d_min: float
    n: int
    error: float


@dataclass(frozen=True)
class Bin:
    """Reflections whose phases over the last passes have a mean resultant length from ``low`` to ``high``: how many,
    its mean, and the mean cosine of the phase error; in an honest figure of merit the two are the same."""

    low: float
    high: float
    n: int
    agreement: float
    cosine: float


@dataclass(frozen=True)
class Report:
    """The whole judgement.

    passes : after which the network is judged, with how many it was trained; lead, lead_f : paired difference in
    correlation of the network after those and the constant blob, as they stand, and both with measured amplitudes
    data : digest of the held-out chains
    """

    plan: Plan
    recipe: OneShotRecipe
    rows: tuple[Row, ...]
    shells: tuple[Shell, ...]
    reliability: tuple[Bin, ...]
    passes: int
    lead: Mean
    lead_f: Mean
    data: str

    @property
    def beats_blob(self) -> bool:
        """Whether the network leads the constant prediction by more than chance and by MARGIN at least."""
        return all(lead.value - lead.pm > 0 and lead.value >= MARGIN for lead in (self.lead, self.lead_f))

    def row(self, name: str) -> Row:
        return next(row for row in self.rows if row.name == name)


def pass_name(number: int, with_f: bool) -> str:
    """Of a row; passes count from 1."""
    return f"pass {number}, |F|" if with_f else f"pass {number}"


class Blob:
    """The constant prediction: mean of true maps (unit variance), for each grid by itself where it is common."""

    def __init__(self, batches: Iterable[OneShotBatch], drawn: int) -> None:
        self.sums: dict[tuple[int, ...], torch.Tensor] = {}
        self.counts: dict[tuple[int, ...], int] = {}
        for batch in first(batches, drawn):
            shape = tuple(batch.truth.shape[1:])
            self.sums[shape] = self.sums.get(shape, 0) + batch.half.sum(0, keepdim=True)
            self.counts[shape] = self.counts.get(shape, 0) + len(batch.half)

    def on(self, shape: tuple[int, ...]) -> torch.Tensor:
        """The map (1, u, v, w); where fewer than ENOUGH crystals had this grid, that of all, by fractional position."""
        if self.counts.get(shape, 0) >= ENOUGH or list(self.counts) == [shape]:
            return inverse(self.sums[shape] / self.counts[shape], shape)
        every = torch.stack([regrid(half, shape) for half in self.sums.values()]).sum(0)
        return inverse(every / sum(self.counts.values()), shape)


@dataclass
class Scores:
    """Of one prediction, a number a crystal."""

    cc: list[float] = field(default_factory=list)
    error: list[float] = field(default_factory=list)
    free_cc: list[float] = field(default_factory=list)
    free_error: list[float] = field(default_factory=list)
    hand: list[float] = field(default_factory=list)

    def add(self, rho: torch.Tensor, batch: OneShotBatch, crystals: Sequence[Reflections]) -> None:
        """Enter predicted maps (B, u, v, w). One that is the same everywhere, as of a network whose last function is
        saturated, tells nothing: correlation 0, 90 degrees, half a hand."""
        flat = rho.flatten(1).std(dim=1) < FLAT
        half = torch.where(flat[:, None, None, None], 0, forward(rho))
        self.error += phase_errors(half, batch.half).tolist()
        for i, crystal in enumerate(crystals):
            if flat[i]:
                for column, value in ((self.cc, 0.0), (self.free_cc, 0.0), (self.free_error, 90.0), (self.hand, 0.5)):
                    column.append(value)
                continue
            self.cc.append(float(np.corrcoef(rho[i].flatten().numpy(), batch.truth[i].flatten().numpy())[0, 1]))
            found = compare(crystal.hkl, crystal.gather(half[i]), crystal.f, crystal.cell, P1, repeats=0)
            self.free_cc.append(found.map_cc)
            self.free_error.append(found.phase_error)
            self.hand.append(float(not found.inverted))

    def row(self, name: str) -> Row:
        columns = (self.cc, self.error, self.free_cc, self.free_error, self.hand)
        return Row(name, *(Mean.of(np.array(column)) for column in columns))


@dataclass(frozen=True, eq=False)
class Reflections:
    """A crystal of a batch by its reflections: hkl (n, 3), true structure factors f (n,), cell, places on the grid."""

    hkl: NDArray[np.int32]
    f: NDArray[np.complex128]
    cell: gemmi.UnitCell
    places: HalfSphere

    @classmethod
    def of(cls, half: torch.Tensor, lengths: torch.Tensor, shape: tuple[int, ...], d_min: float) -> Reflections:
        """Of half-complex coefficients (u, v, w') and edges (3,) in A."""
        a, b, c = (float(x) for x in lengths)
        cell = gemmi.UnitCell(a, b, c, 90, 90, 90)
        hkl = gemmi.make_miller_array(cell, P1, d_min * (1 - 1e-5))
        u, v, w = shape
        hkl = hkl[(2 * np.abs(hkl) < (u, v, w)).all(axis=1)]
        f = HalfSphere.of(hkl, (u, v, w)).gather(half.numpy().astype(np.complex128), len(hkl))
        hkl, f = hkl[f != 0], f[f != 0]  # beyond d_min there is nothing
        return cls(hkl, f, cell, HalfSphere.of(hkl, (u, v, w)))

    def gather(self, half: torch.Tensor) -> NDArray[np.complex128]:
        """Structure factors (n,) of one half-complex array."""
        return self.places.gather(half.numpy().astype(np.complex128), len(self.hkl))


def twice(half: torch.Tensor) -> torch.Tensor:
    """How many reflections of the whole sphere each place of a half-complex array stands for, (w // 2 + 1,): the plane
    l = 0 holds Friedel mates one by one."""
    weight = torch.full((half.shape[-1],), 2.0)
    weight[0] = 1.0
    return weight


def phase_errors(half: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Mean phase error (B,) in degrees over the whole sphere, weighted by |F|, at the origin and hand of the truth.

    Reflections that were not predicted have no phase and count as 90.
    """
    error = torch.where(half.abs() > 0, (half * truth.conj()).angle().abs(), torch.pi / 2)
    weight = truth.abs() * twice(truth)
    return torch.rad2deg((error * weight).sum((1, 2, 3)) / weight.sum((1, 2, 3)))


def random_phased(batch: OneShotBatch, generator: torch.Generator) -> torch.Tensor:
    """Maps (B, u, v, w) of the measured amplitudes and random phases."""
    noise = torch.randn(batch.truth.shape, generator=generator)
    return corrected(noise, batch.half)


@dataclass
class Phases:
    """What single reflections tell: of each, 1 / d^2 in A^-2, |F|, phase error in radians after the last pass, and the
    mean resultant length of its phases over the last passes."""

    s2: list[NDArray] = field(default_factory=list)
    f: list[NDArray] = field(default_factory=list)
    error: list[NDArray] = field(default_factory=list)
    agreement: list[NDArray] = field(default_factory=list)

    def add(self, passes: Sequence[torch.Tensor], crystals: Sequence[Reflections]) -> None:
        """Enter predictions (B, u, v, w) of the last passes."""
        halves = [forward(rho) for rho in passes]
        for i, crystal in enumerate(crystals):
            found = np.array([crystal.gather(half[i]) for half in halves])
            self.s2.append(np.asarray(crystal.cell.calculate_1_d2_array(crystal.hkl)))
            self.f.append(np.abs(crystal.f))
            self.error.append(np.angle(found[-1] * np.conj(crystal.f)))
            self.agreement.append(np.abs(np.mean(found / np.maximum(np.abs(found), 1e-30), axis=0)))

    def shells(self) -> tuple[Shell, ...]:
        """Of equal volume in reciprocal space, or nearly."""
        s2, f, error = (np.concatenate(x) for x in (self.s2, self.f, self.error))
        s = np.sqrt(s2)
        edges = s.max() * np.cbrt(np.linspace((s.min() / s.max()) ** 3, 1, SHELLS + 1))
        found = []
        for k, (low, high) in enumerate(pairwise(edges)):
            rows = (s >= low * (1 - 1e-9)) & ((s < high) if k < SHELLS - 1 else (s <= high * (1 + 1e-9)))
            if rows.any():
                mean = np.rad2deg(np.average(np.abs(error[rows]), weights=f[rows]))
                found.append(Shell(float(1 / s[rows].min()), float(1 / s[rows].max()), int(rows.sum()), float(mean)))
        return tuple(found)

    def reliability(self) -> tuple[Bin, ...]:
        """Mean cosine of the phase error against the agreement of the last passes."""
        r, cosine = np.concatenate(self.agreement), np.cos(np.concatenate(self.error))
        found = []
        for low, high in pairwise(AGREEMENT):
            rows = (r >= low) & ((r < high) if high < 1 else np.ones(len(r), dtype=bool))
            if rows.any():
                found.append(Bin(low, high, int(rows.sum()), float(r[rows].mean()), float(cosine[rows].mean())))
        return tuple(found)


def first(batches: Iterable[OneShotBatch], count: int) -> Iterator[OneShotBatch]:
    """Batches of ``count`` crystals in all, the last cut to fit."""
    left = count
    for batch in batches:
        yield OneShotBatch(batch.truth[:left], batch.half[:left], batch.parts[:left], batch.lengths[:left])
        left -= len(batch.truth)
        if left <= 0:
            return


@torch.no_grad()
def judge(
    network: OneShot, batches: Iterable[OneShotBatch], blob: Blob, recipe: OneShotRecipe, plan: Plan,
    *, recycled: bool, trained: int, data: str, progress: Progress = lambda _: None,
) -> Report:  # fmt: skip
    """Judge a network on given crystals, on the CPU.

    Parameters
    ----------
    batches : at least ``plan.crystals`` crystals, or all there are
    recycled : whether the network looks at earlier predictions; if not, one pass is made
    trained : passes it was trained with; data : digest of the coordinates
    """
    generator = torch.Generator().manual_seed(plan.seed)
    passes = max(plan.passes, trained) if recycled else 1
    scores: dict[str, Scores] = {}
    phases = Phases()
    done = 0
    for batch in first(batches, plan.crystals):
        u, v, w = batch.truth.shape[1:]
        crystals = [
            Reflections.of(half, lengths, (u, v, w), recipe.d_min)
            for half, lengths in zip(batch.half, batch.lengths, strict=True)
        ]
        # The network gets moduli alone: no phase can leak.
        moduli = torch.complex(batch.half.abs(), torch.zeros_like(batch.half.abs()))
        found = predict(network, moduli, (u, v, w), batch.parts, batch.lengths, passes)
        mean = blob.on((u, v, w)).expand(len(batch.truth), -1, -1, -1)
        maps = {BLOB: mean, BLOB_F: corrected(mean, moduli), CHANCE: random_phased(batch, generator)}
        for k, rho in enumerate(found, 1):
            maps |= {pass_name(k, False): rho, pass_name(k, True): corrected(rho, moduli)}
        for name, rho in maps.items():
            scores.setdefault(name, Scores()).add(rho, batch, crystals)
        phases.add(found[-plan.last :], crystals)
        done += len(batch.truth)
        progress(done / plan.crystals)
    judged = min(trained, passes)
    plain, fixed = (
        Mean.of(np.array(scores[pass_name(judged, with_f)].cc) - np.array(scores[rival].cc))
        for with_f, rival in ((False, BLOB), (True, BLOB_F))
    )
    rows = tuple(score.row(name) for name, score in scores.items())
    spread = phases.reliability() if passes > 1 else ()
    return Report(plan, recipe, rows, phases.shells(), spread, judged, plain, fixed, data)


def evaluate(
    network: OneShot, library: Library, recipe: OneShotRecipe, plan: Plan, *, recycled: bool, trained: int,
    progress: Progress = lambda _: None,
) -> Report:  # fmt: skip
    """Judge a network on molecules of ``library`` (held-out entries); see ``judge``. The constant prediction is made of
    other draws from the same entries, which leans to its side. Raises UserError where there are no such molecules."""
    small = min(plan.batch, plan.crystals)
    blob = Blob(one_shot_batches(library, small, plan.seed + 1, recipe), plan.drawn)
    batches = one_shot_batches(library, small, plan.seed, recipe)
    return judge(
        network, batches, blob, recipe, plan, recycled=recycled, trained=trained, data=library.digest, progress=progress
    )
