"""Lessons for the hand judge: maps of crystals made on the fly, and points at which their hand shows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import gemmi
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from ml_phaser.crystal.grid import HalfSphere
from ml_phaser.crystal.residues import ELEMENTS
from ml_phaser.errors import UserError
from ml_phaser.learned import density_projection
from ml_phaser.networks.hand import ATOMS, HandConfig, HandJudge
from ml_phaser.networks.projector import Projector
from ml_phaser.networks.store import configured, save_projector
from ml_phaser.phasing.problem import pose
from ml_phaser.phasing.projections import forward, inverse, unit_variance, with_amplitudes
from ml_phaser.report.record import json_safe
from ml_phaser.simulate import corrupt
from ml_phaser.simulate.batches import SHAPES, Drawn, Recipe, draw, pools_of, resolution_profile, true_factors
from ml_phaser.simulate.crystals import Contents, wrapped_distances
from ml_phaser.simulate.fragments import Library
from ml_phaser.training.loop import CHECKPOINT, Schedule, read_checkpoint
from ml_phaser.training.record import LICENCE, read_record

NEAR = 32  # points about alpha carbons the loss is taken at
# Worse maps are no solutions; one use in Judging.uses begins with such and goes through cycles of the engine.
RECIPE = Recipe(
    quality=(0.4, 0.99), kinds=(("phase", 0.4), ("resolution", 0.2), ("additive", 0.4)),
    families=(("box", 0.6), ("small", 0.4)),
)  # fmt: skip

Crystal = tuple[Drawn, NDArray[np.complex128]]  # and its structure factors


MUON = 0.02 / 3e-3  # learning rate of matrices over that of everything else
DECAY = 0.2  # of matrices, which without it grow for as long as the rate is high


def hand_schedule(seconds: float, batch: int = 8) -> Schedule:
    """How to train the hand judge in a wall-clock budget."""
    return Schedule(seconds, batch=batch, rate=2e-3, weight_decay=0.0, average=0.995, clip=math.inf, save_every=120.0)


@dataclass(frozen=True)
class Judging:
    """What the hand judge is taught with.

    uses : batches of maps each crystal serves for, every time with other errors
    repeats : steps for each new batch of maps; kept : batches of maps that steps draw from
    share : of the grid points the loss is taken at, beside those about alpha carbons
    most_cycles : of the engine that one map in ``uses`` goes through, after a start of quality ``rough``, once a fifth
        of the budget is spent
    gain : largest factor on the map's scale, either way: how much solvent a cell holds is not known
    """

    uses: int = 4
    repeats: int = 8
    kept: int = 100
    share: float = 0.1
    most_cycles: int = 6
    rough: tuple[float, float] = (0.25, 0.6)
    gain: float = 1.5


@dataclass(frozen=True, eq=False)
class Maps:
    """rho (B, u, v, w) of unit variance; frac (B, 3, 3); d_min (B,) A; volume (B,) A^3 of the cells."""

    rho: torch.Tensor
    frac: torch.Tensor
    d_min: torch.Tensor
    volume: torch.Tensor


def crystals(library: Library, size: int, seed: int, recipe: Recipe = RECIPE) -> Iterator[list[Crystal]]:
    """Endless lists of ``size`` crystals on one grid; the same seed gives the same ones."""
    rng = np.random.default_rng(seed)
    pools = pools_of(library, seed, recipe)
    while True:
        shape = SHAPES[rng.integers(len(SHAPES))]
        drawn = [draw(rng, library, shape, recipe, pools) for _ in range(size)]
        yield [(d, true_factors(d.contents, d.hkl, d.stol2)) for d in drawn]


def cycled(
    projector: Projector, drawn: Drawn, observed: NDArray, start: NDArray, cycles: int
) -> NDArray[np.complex128]:
    """Structure factors (m,) of the measured reflections after cycles of the learned projection and the measured
    amplitudes, as the engine's are."""
    known = observed > 0
    to_e = 1 / resolution_profile(observed, drawn.stol2, known)[known]
    problem = pose(
        drawn.hkl[known], observed[known], to_e, np.zeros(int(known.sum()), dtype=bool), drawn.contents.cell,
        gemmi.SpaceGroup("P 1"), spacing=projector.config.spacing, multiple=projector.config.stride,
    )  # fmt: skip
    project = density_projection(projector, problem)
    half = problem.scatter(start[known])
    for _ in range(cycles):
        half = with_amplitudes(forward(project(inverse(half, problem.shape))), problem.target)
    out = np.zeros(len(known), dtype=np.complex128)
    out[known] = problem.gather_p1(half[0])
    return out


def maps_of(
    made: Sequence[Crystal], rng: np.random.Generator, recipe: Recipe, projector: Projector | None = None,
    most_cycles: int = 0,
) -> Maps:  # fmt: skip
    """Maps of the measured amplitudes of crystals on one grid with wrong phases, fresh errors at each call; after
    some cycles of the engine where there is a ``projector``."""
    kinds, shares = zip(*recipe.kinds, strict=True)
    cycles = int(rng.integers(1, most_cycles + 1)) if projector is not None else 0
    halves = []
    for drawn, f in made:
        kind = str(rng.choice(kinds, p=np.array(shares) / sum(shares)))
        wrong = corrupt.noisy_phases(rng, f, drawn.stol2, float(rng.uniform(*recipe.quality)), kind)
        level = float(rng.uniform(*recipe.noise))
        observed = corrupt.noisy_amplitudes(rng, f, drawn.stol2, level) * corrupt.missing(rng, drawn.stol2)
        if projector is not None:
            wrong = cycled(projector, drawn, observed, observed * np.exp(1j * np.angle(wrong)), cycles)
        start = observed * np.exp(1j * np.angle(wrong))
        halves.append(HalfSphere.of(drawn.hkl, drawn.shape).scatter(start).astype(np.complex64))
    cells = [drawn.contents.cell for drawn, _ in made]
    return Maps(
        unit_variance(inverse(torch.from_numpy(np.stack(halves)), made[0][0].shape)),
        torch.tensor([c.frac.mat.tolist() for c in cells]),
        torch.tensor([drawn.d_min for drawn, _ in made], dtype=torch.float32),
        torch.tensor([c.volume for c in cells], dtype=torch.float32),
    )


def backbone(contents: Contents) -> NDArray[np.float64]:
    """Fractional positions (n, ATOMS, 3) of CA, N, C, CB of residues that have them all, told by distances alone."""
    near = wrapped_distances(contents.xyz, contents.xyz, contents.cell)
    near[np.arange(contents.dry, len(near))] = np.inf
    np.fill_diagonal(near, np.inf)
    carbon, nitrogen, oxygen = (contents.element == ELEMENTS.index(e) for e in "CNO")
    carbonyl = carbon & ((near < 1.34) & oxygen).any(1)
    neighbours = [(near < 1.65) & kind for kind in (nitrogen, carbonyl, carbon & ~carbonyl)]
    alpha = np.flatnonzero(carbon & ~carbonyl & np.all([n.sum(1) == 1 for n in neighbours], axis=0))
    rows = np.stack([alpha, *(n[alpha].argmax(1) for n in neighbours)], axis=1)
    return contents.xyz[rows]


@dataclass(frozen=True, eq=False)
class Points:
    """Grid points the loss is taken at: NEAR about alpha carbons, then others.

    at : numbers (p,); share : of all points that are near; to : (NEAR, 3, ATOMS) vectors in units of 1.5 A from the
    near ones to CA, N, C, CB
    """

    at: NDArray[np.int64]
    share: float
    to: NDArray[np.float64]


def choose_points(drawn: Drawn, rng: np.random.Generator, share: float, reach: float = 0.9) -> Points:
    """NEAR points not farther than ``reach`` (A) from an alpha carbon and a ``share`` of the others."""
    half = np.array(drawn.shape) // 2
    grid = np.stack(np.unravel_index(np.arange(half.prod()), half), axis=1) / half
    cell, atoms = drawn.contents.cell, backbone(drawn.contents)
    distance = wrapped_distances(grid, atoms[:, 0], cell).min(1, initial=np.inf)
    close = distance < reach
    away = rng.choice(np.flatnonzero(~close), round(share * len(grid)))
    if not close.any():
        return Points(np.concatenate([away[:NEAR], away]), 0.0, np.zeros((NEAR, 3, ATOMS)))
    near = rng.choice(np.flatnonzero(close), NEAR)
    which = wrapped_distances(grid[near], atoms[:, 0], cell).argmin(1)
    to = atoms[which] - grid[near][:, None]
    to = (to - np.round(to)) @ np.array(cell.orth.mat).T / 1.5
    return Points(np.concatenate([near, away]), float(close.mean()), to.transpose(0, 2, 1))


def loss_of(
    judge: HandJudge, found: tuple[torch.Tensor, ...], chosen: Sequence[Points], volume: torch.Tensor
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Loss, and what to log of it.

    Logistic loss of the evidence at alpha carbons, of that elsewhere, of the whole maps, and of where alpha carbons
    are; squared error of the vectors to CA, N, C, CB. Mirror images need not be shown: the evidence changes its sign
    with the hand and the vectors are mirrored, the loss would be the same.

    Parameters
    ----------
    found : of ``judge.local`` at the points ``chosen``; volume : (B,) A^3
    """
    local, alpha, atoms = found
    share = torch.tensor([c.share for c in chosen], dtype=torch.float32)
    to = torch.from_numpy(np.stack([c.to for c in chosen])).float()
    near, away = local[:, :NEAR], local[:, NEAR:]
    odds = judge.log_odds(share * near.mean(1) + (1 - share) * away.mean(1), volume)
    seen = (share > 0).float() / (share > 0).sum().clamp_min(1)

    def there(x: torch.Tensor) -> torch.Tensor:
        return (x.flatten(1).mean(1) * seen).sum()

    crystal, evidence = F.softplus(-odds).mean(), there(F.softplus(-near))
    placing = there(F.softplus(-alpha[:, :NEAR])) + F.softplus(alpha[:, NEAR:]).mean()
    vectors = there((atoms[:, :NEAR] - to).pow(2).sum(dim=(2, 3)))
    loss = crystal + evidence + 0.5 * F.softplus(-away).mean() + 0.5 * placing + vectors
    logged = {"crystal": crystal, "evidence": evidence, "placing": placing, "vectors": vectors}
    return loss, {"right": (odds > 0).float().mean(), **{name: value.detach() for name, value in logged.items()}}


class TwoRates:
    """Muon for maps between wide layers, AdamW for inputs of a few features and biases, each at a rate of its own."""

    def __init__(self, judge: nn.Module, schedule: Schedule) -> None:
        """Raises UserError where torch has no Muon."""
        if not hasattr(torch.optim, "Muon"):
            raise UserError("this torch has no Muon optimiser", torch.__version__, "torch 2.9 or later to train")
        wide = [p for p in judge.parameters() if p.ndim == 2 and min(p.shape) > 16]
        others = [p for p in judge.parameters() if not any(p is w for w in wide)]
        self.optimisers: tuple[torch.optim.Optimizer, ...] = (
            torch.optim.Muon(wide, lr=MUON * schedule.rate, weight_decay=DECAY),
            torch.optim.AdamW(others, lr=schedule.rate, weight_decay=0.0),
        )

    def step(self, rate: float) -> None:
        for optimiser, factor in zip(self.optimisers, (MUON, 1.0), strict=True):
            for group in optimiser.param_groups:
                group["lr"] = factor * rate
            optimiser.step()

    def state_dict(self) -> list[dict[str, Any]]:
        return [optimiser.state_dict() for optimiser in self.optimisers]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        for optimiser, state in zip(self.optimisers, states, strict=True):
            optimiser.load_state_dict(state)


def averaged(path: Path) -> HandJudge:
    """The judge of a checkpoint with averaged weights, rounded to the half precision it is shipped in."""
    saved = read_checkpoint(path)
    judge = HandJudge(configured(HandConfig, saved["config"], str(path)))
    judge.load_state_dict({k: v.half().float() for k, v in saved["mean"].items()})
    return judge.eval()


DESCRIPTION = (
    "Hand judge: tells a density map of L-amino-acid protein from its mirror image. Odd under inversion by "
    "construction, invariant to rotation and translation; for any cell and space group (works on the P1 cell)."
)
LIMITS = [
    "Knows peptides and proteins of L-amino acids only: of D-peptides it finds the mirror image, of other molecules "
    "its answer means nothing.",
    "Trained on pieces of proteins and on small peptides in cells of 10-21 A, C, N, O, S only, without bulk solvent, "
    "anisotropy or twinning.",
]


def calibrate(judge: HandJudge, library: Library, seed: int, batches: int = 32) -> dict[str, float]:
    """Fit scale and lapse rate of a trained judge by maximum likelihood on fresh crystals, one wrong answer added to
    those found, however sure; returns what came of it."""
    rng = np.random.default_rng([seed, 1])
    source = crystals(library, 8, int(rng.integers(2**63)))
    means, volumes = [], []
    with torch.no_grad():
        for _ in range(batches):
            maps = maps_of(next(source), rng, RECIPE)
            means.append(judge(maps.rho, maps.frac, maps.d_min).mean(1))
            volumes.append(maps.volume)
    mean, volume = torch.cat(means), torch.cat(volumes)
    optimiser = torch.optim.LBFGS([judge.log_scale, judge.log_lapse], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        wrong = -torch.log(judge.log_lapse.sigmoid() / 2)
        value = (F.softplus(-judge.log_odds(mean, volume)).sum() + wrong) / len(mean)
        value.backward()
        return value

    optimiser.step(loss)
    scale, lapse = float(judge.log_scale.detach().exp()), float(judge.log_lapse.detach().sigmoid())
    right = float((mean > 0).float().mean())
    return {"maps": len(mean), "right": round(right, 4), "scale": round(scale, 4), "lapse": round(lapse, 5)}


def export_hand(out: Path, library: Library, name: str, folder: Path, seed: int = 0) -> Path:
    """Calibrate the judge of a run on fresh crystals and write weights and card; returns the card's path."""
    judge = averaged(out / CHECKPOINT)
    fitted = calibrate(judge, library, seed)
    config = judge.config
    facts = {
        "description": DESCRIPTION,
        "domain": {"d_min_A": (config.d_best, config.d_worst), "grid_spacing_A": config.spacing,
                   "grid_multiple": config.stride, "overall_B_A2": 11.0},
        "precision": "float16 weights", "training_run": read_record(out), "calibration": fitted, "limits": LIMITS,
        "licence": LICENCE,
    }  # fmt: skip
    return save_projector(judge.state_dict(), config, json_safe(facts), name, folder)


@dataclass(eq=False)
class Feed:
    """Batches of maps with their surroundings: the newest, or one of those kept, which cost nothing."""

    library: Library
    batch: int
    judging: Judging
    projector: Projector
    rng: np.random.Generator

    def __post_init__(self) -> None:
        self.source = crystals(self.library, self.batch, int(self.rng.integers(2**63)))
        self.made = 0
        self.kept: list[tuple[list[Crystal], Maps, tuple[torch.Tensor, ...]]] = []

    def next(self, judge: HandJudge, used: float, fresh: bool) -> tuple[list[Crystal], Maps, tuple[torch.Tensor, ...]]:
        """A batch; ``used`` of the budget (0-1), over which the maps become worse."""
        if not fresh and self.kept:
            return self.kept[self.rng.integers(len(self.kept))]
        j = self.judging
        turn = self.made % j.uses
        made = next(self.source) if turn == 0 else self.kept[-1][0]
        self.made += 1
        if turn == j.uses - 1 and used > 0.2:
            maps = maps_of(made, self.rng, replace(RECIPE, quality=j.rough), self.projector, j.most_cycles)
        else:
            best = RECIPE.quality[1]
            maps = maps_of(made, self.rng, replace(RECIPE, quality=(max(RECIPE.quality[0], 0.95 - 2 * used), best)))
        self.kept.append((made, maps, judge.surroundings(maps.rho, maps.frac)))
        del self.kept[: -j.kept]
        return self.kept[-1]


class HandLesson:
    """One step: maps of one hand, and what the judge says of them at some of their points."""

    def __init__(
        self, library: Library, batch: int, judging: Judging, projector: Projector, seed: Sequence[int]
    ) -> None:
        self.judging, self.steps = judging, 0
        self.rng = np.random.default_rng(seed)
        self.feed = Feed(library, batch, judging, projector, self.rng)

    def step(self, network: nn.Module, used: float) -> tuple[torch.Tensor, dict[str, torch.Tensor], int]:
        judge = cast(HandJudge, network)
        made, maps, around = self.feed.next(judge, used, self.steps % self.judging.repeats == 0)
        self.steps += 1
        chosen = [choose_points(drawn, self.rng, self.judging.share) for drawn, _ in made]
        gain = torch.from_numpy(self.judging.gain ** self.rng.uniform(-1, 1, len(made))).float()
        at = torch.from_numpy(np.stack([c.at for c in chosen]))
        lines = torch.arange(len(at))[:, None]
        seen = [y[lines, at] * gain.view(-1, *[1] * (y.ndim - 1)) for y in around]
        return *loss_of(judge, judge.local(maps.d_min, *seen), chosen, maps.volume), len(made)


def hand_lessons(
    library: Library, batch: int, judging: Judging, projector: Projector, seed: int
) -> Callable[[int], HandLesson]:
    """For ``train``: given the number of steps done so far, lessons with crystals not met before."""
    return lambda steps: HandLesson(library, batch, judging, projector, (seed, steps))
