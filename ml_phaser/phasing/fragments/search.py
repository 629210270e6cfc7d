"""Six dimensions in seconds: every orientation, all translations of each at once by Fourier transform.

For one orientation the agreement of |F|^2 with E^2 is a Fourier series in the translation x:

    sum_h w (E^2 - 1) |F(h; x)|^2 = const + 2 Re sum_{s<s'} sum_h w (E^2 - 1) G_s G_s'* exp(2 pi i h (R_s - R_s') x)

with G_s of ``scene``, phase shifts included (Vagin & Teplyakov, J. Appl. Cryst. 30, 1022, 1997; a part that is in place
already adds terms linear in G_s). Its highest peaks are scored by the correlation with E^2 itself.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import gemmi
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.fft import next_fast_len

from ml_phaser.crystal.agreement import permissible_origins
from ml_phaser.phasing.fragments.pieces import Piece
from ml_phaser.phasing.fragments.scene import Scene

STEP, FINE_STEP = 1.1, 0.8  # A: how far an atom at the piece's radius moves from one orientation to the next
FEWEST, MOST, MOST_FINE = 3000, 40_000, 80_000  # orientations, counted with those that operators of the group make
GRID = 2**25  # grid points of translation functions held at once
PEAKS = 3  # translations kept of an orientation,
RIVALS = 12  # of so many times as many points, the highest, which may be neighbours,
CROWD = 100  # or, of which most may be on top of copies
NEAREST = 3.5  # A between C-alpha atoms of a piece and its copies; nearer they are the same place
ALIKE = 1e-4  # difference in score below which two poses are one


@dataclass(frozen=True, eq=False)
class Poses:
    """turn (B, 3, 3) rotations of the piece, shift (B, 3) fractions of the cell, score (B,) correlation with E^2."""

    turn: torch.Tensor
    shift: torch.Tensor
    score: torch.Tensor

    def __len__(self) -> int:
        return len(self.score)

    def take(self, rows: torch.Tensor) -> Poses:
        """Some of them, in the order of ``rows``."""
        return Poses(self.turn[rows], self.shift[rows], self.score[rows])


def orientations(count: int) -> NDArray[np.float64]:
    """Rotation matrices (count, 3, 3), evenly over all orientations: super-Fibonacci spirals (Alexa, CVPR 2022)."""
    golden, psi = math.sqrt(2.0), 1.533751168755204288118041
    s = np.arange(count) + 0.5
    t = s / count
    a, b = 2 * np.pi * s / golden, 2 * np.pi * s / psi
    inner, outer = np.sqrt(t), np.sqrt(1 - t)
    x, y, z, w = inner * np.sin(a), inner * np.cos(a), outer * np.sin(b), outer * np.cos(b)
    return np.stack([
        np.stack([1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)], -1),
        np.stack([2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)], -1),
        np.stack([2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)], -1),
    ], 1)  # fmt: skip


def wanted(radius: float, d_min: float, operators: int, *, fine: bool = False) -> int:
    """Orientations worth trying for a piece of ``radius`` A at ``d_min`` A: twice the volume of SO(3), 8 pi^2, in
    cells, shared among the operators of the group, each of which makes another of every one. ``fine`` : smaller cells,
    where a right pose stands out so little that it must not lose any of it"""
    step, most = (FINE_STEP, MOST_FINE) if fine else (STEP, MOST)
    angle = step * max(d_min, 1.5) / 1.5 / max(radius, 2.0)
    return round(float(np.clip(2 * 8 * np.pi**2 / angle**3, FEWEST, most)) / operators)


@dataclass(frozen=True, eq=False)
class Translations:
    """The translation function's grid.

    shape : points along a, b, c, over one ``periods``-th of each edge, after which the function repeats
    pairs : of operators; paired : where the coefficient of each pair goes; crossed : where the terms linear in G_s go
    allowed : (points,) bool, one of each set of points that permissible origin shifts make equal
    """

    shape: tuple[int, int, int]
    periods: tuple[int, int, int]
    pairs: tuple[tuple[int, int], ...]
    paired: Places
    crossed: Places
    allowed: torch.Tensor

    @classmethod
    def of(cls, scene: Scene, spacegroup: gemmi.SpaceGroup, *, fixed: bool) -> Translations:
        """``fixed`` : whether another part is in place, which gives every translation a meaning."""
        turned = scene.turned.cpu().numpy().round().astype(np.int64)
        pairs = tuple(itertools.combinations(range(turned.shape[1]), 2))
        k = (
            np.stack([turned[:, a] - turned[:, b] for a, b in pairs], 1)
            if pairs
            else np.zeros((len(turned), 0, 3), int)
        )
        every = (np.concatenate([k, turned], 1) if fixed else k).reshape(-1, 3)
        periods = np.maximum(1, np.gcd.reduce(every, axis=0)) if len(every) else np.ones(3, dtype=np.int64)
        k, most = k // periods, np.abs(every // periods).max(0, initial=0)
        shape = tuple(1 if n == 0 else 2 * next_fast_len(int(n) + 1, real=True) for n in most)
        allowed = np.ones(shape, dtype=bool) if fixed else _one_of_each(shape, periods, spacegroup)
        mask = torch.from_numpy(allowed.reshape(-1)).to(scene.device)
        paired, crossed = (Places.of(index, shape, scene.device) for index in (k, turned // periods))
        return cls(shape, tuple(periods.tolist()), pairs, paired, crossed, mask)  # type: ignore[arg-type]

    def peaks(
        self, scene: Scene, parts: torch.Tensor, fixed: torch.Tensor | None, count: int,
        trace: torch.Tensor | None = None,
    ) -> torch.Tensor:  # fmt: skip
        """The ``count`` best translations (B, count, 3) of each orientation, parts (B, n, S), fractions of the cell.
        With ``trace``, points (B, m, 3) in A of each, those first where these keep clear of their copies: on top of
        its copies a piece scatters more, and so tops the function by chance."""
        size = math.prod(self.shape)
        if size == 1:
            return parts.real.new_zeros((len(parts), 1, 3))
        t = self.function(scene, parts, fixed)
        flat = t.flatten(1)
        rivals = RIVALS * count if trace is None else CROWD * count
        index = flat.masked_fill(~self.allowed, -math.inf).topk(min(rivals, size), dim=1).indices
        v, w = self.shape[1:]
        steps = torch.stack([index // (v * w), index // w % v, index % w], -1)
        value = flat.gather(1, index)
        ridge = torch.ones_like(index, dtype=torch.bool)
        for axis, step in itertools.product(range(3), (-1, 1)):
            if self.shape[axis] > 2:
                beside = steps.clone()
                beside[..., axis] = (beside[..., axis] + step) % self.shape[axis]
                ridge &= value >= flat.gather(1, (beside[..., 0] * v + beside[..., 1]) * w + beside[..., 2])
        places = steps / torch.tensor(self.shape, device=t.device) / torch.tensor(self.periods, device=t.device)
        if trace is not None:
            row, column = ridge.nonzero(as_tuple=True)
            ridge[row, column] = scene.closest(trace[row], places[row, column]) > NEAREST
        best = value.masked_fill(~ridge, -math.inf).topk(min(count, size), dim=1).indices
        return places.gather(1, best[..., None].expand(-1, -1, 3))

    def function(self, scene: Scene, parts: torch.Tensor, fixed: torch.Tensor | None) -> torch.Tensor:
        """The translation function (B, u, v, w) of each orientation, up to a factor and a constant."""
        half = (*self.shape[:2], self.shape[2] // 2 + 1)
        g = parts * scene.phasor
        pull = scene.weight * (scene.value - 1) / scene.epsilon
        series = g.new_zeros((len(g), math.prod(half)))
        for column, (a, b) in enumerate(self.pairs):
            self.paired.add(series, column, pull * g[..., a] * g[..., b].conj())
        if fixed is not None:
            for s in range(g.shape[-1]):
                self.crossed.add(series, s, pull * g[..., s] * fixed.conj())
        return torch.fft.irfftn(series.reshape(-1, *half), s=self.shape, dim=(1, 2, 3))


@dataclass(frozen=True, eq=False)
class Places:
    """Where coefficients go in the half of a Fourier series that makes it real.

    flat : (n, columns) place; real, imag : (n, columns) factors of the parts: those in the other half are conjugated,
    and all but those of the first plane, which have no counterpart, are halved
    """

    flat: torch.Tensor
    real: torch.Tensor
    imag: torch.Tensor

    @classmethod
    def of(cls, index: NDArray[np.int64], shape: tuple[int, ...], device: torch.device) -> Places:
        """Of indices (n, columns, 3) on a grid."""
        other = index[..., 2] < 0
        u, v, w = np.moveaxis(np.where(other[..., None], -index, index), -1, 0)
        flat = (u % shape[0] * shape[1] + v % shape[1]) * (shape[2] // 2 + 1) + w
        real = np.where(w == 0, 1.0, 0.5).astype(np.float32)
        imag = np.where(other, -real, real)
        return cls(*(torch.from_numpy(np.ascontiguousarray(x)).to(device) for x in (flat, real, imag)))

    def add(self, series: torch.Tensor, column: int, values: torch.Tensor) -> None:
        """Add the values (B, n) of a column to the series (B, points)."""
        turned = torch.complex(values.real * self.real[:, column], values.imag * self.imag[:, column])
        series.index_add_(1, self.flat[:, column], turned)


def _one_of_each(shape: tuple[int, ...], periods: NDArray[np.int64], spacegroup: gemmi.SpaceGroup) -> NDArray[np.bool_]:
    """Grid points that no permissible discrete origin shift takes to one further to the front."""
    index = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), -1)
    number = (index[..., 0] * shape[1] + index[..., 1]) * shape[2] + index[..., 2]
    first = np.ones(shape, dtype=bool)
    for shift in permissible_origins(spacegroup).shifts:
        moved = np.asarray(shift, dtype=float) * periods * shape
        if np.abs(moved - moved.round()).max() > 1e-6:
            continue  # not on this grid: its duplicates differ a little, and are dropped later by their scores
        to = (index + moved.round().astype(int)) % np.array(shape)
        first &= number <= (to[..., 0] * shape[1] + to[..., 1]) * shape[2] + to[..., 2]
    return first


@torch.no_grad()
def likeliest(
    scene: Scene, piece: Piece, turns: NDArray[np.float64], stop: Callable[[], bool] = lambda: False
) -> NDArray[np.float64]:
    """The orientations (k, 3, 3), first those whose own vectors agree best with the Patterson function, wherever the
    piece is: correlation of E^2 with the sum over operators of |G_s|^2 (Rossmann & Blow, Acta Cryst. 15, 24, 1962).
    Those for which there was no time are left out."""
    atoms = torch.from_numpy(piece.xyz).float().to(scene.device)
    weight = torch.from_numpy(piece.weight).float().to(scene.device)
    every, together = torch.from_numpy(turns).float().to(scene.device), scene.together(len(piece))
    score, done = torch.empty(len(every), device=scene.device), 0  # in one piece: small ones hold on to memory between
    while done < len(every) and not (done and stop()):
        some = every[done : done + together]
        parts = scene.parts(torch.einsum("bij,mj->bmi", some, atoms), weight)
        score[done : done + together] = scene.agreement((parts.real**2 + parts.imag**2).sum(-1))
        done += len(some)
    return np.asarray(turns[np.argsort(-score[:done].cpu().numpy(), kind="stable")])


def rescored(scene: Scene, piece: Piece, poses: Poses, fixed: torch.Tensor | None = None) -> Poses:
    """The poses by their correlation with E^2 on another scene, best first."""
    atoms = torch.from_numpy(piece.xyz).float().to(scene.device)
    weight = torch.from_numpy(piece.weight).float().to(scene.device)
    score = scene.fits(torch.einsum("bij,mj->bmi", poses.turn, atoms), poses.shift, weight, fixed)
    return replace(poses, score=score).take(score.argsort(descending=True))


@torch.no_grad()
def search(
    scene: Scene, spacegroup: gemmi.SpaceGroup, piece: Piece, turns: NDArray[np.float64], keep: int,
    fixed: torch.Tensor | None = None, stop: Callable[[], bool] = lambda: False, alike: float = ALIKE, *,
    apart: bool = False,
) -> Poses:  # fmt: skip
    """The best poses of a piece.

    Parameters
    ----------
    turns : (k, 3, 3) orientations to try; keep : how many poses to return
    fixed : (n,) structure factors of what is in place already, in electrons
    stop : asked between batches; what has been found by then is returned
    alike : difference in score below which two poses are one
    apart : keep translations only where every second C-alpha atom keeps clear of its copies
    """
    if not len(turns):
        nothing = torch.zeros((0, 3), device=scene.device)
        return Poses(nothing.new_zeros((0, 3, 3)), nothing, nothing[:, 0])
    translations = Translations.of(scene, spacegroup, fixed=fixed is not None)
    atoms = torch.from_numpy(piece.xyz).float().to(scene.device)
    weight = torch.from_numpy(piece.weight).float().to(scene.device)
    trace = [i for i, name in enumerate(piece.names) if name == "CA"][::2] if apart else []
    together = min(scene.together(len(piece)), max(1, GRID // math.prod(translations.shape)))
    every, done = torch.from_numpy(turns).float().to(scene.device), 0
    shift, score = atoms.new_zeros((len(every), PEAKS, 3)), atoms.new_full((len(every), PEAKS), -math.inf)
    while done < len(every) and not (done and stop()):
        some, rows = every[done : done + together], slice(done, done + together)
        there = torch.einsum("bij,mj->bmi", some, atoms)
        parts = scene.parts(there, weight)
        shifts = translations.peaks(scene, parts, fixed, PEAKS, there[:, trace] if trace else None)
        for j in range(shifts.shape[1]):
            f = scene.total(parts, shifts[:, j])
            shift[rows, j], score[rows, j] = shifts[:, j], scene.correlation(f if fixed is None else f + fixed)
        done += len(some)
    row, column = score.isfinite().nonzero(as_tuple=True)
    all_of = Poses(every[row], shift[row, column], score[row, column])
    best = all_of.score.argsort(descending=True)
    return all_of.take(best[distinct(all_of.score[best], alike)][:keep])


def distinct(score: torch.Tensor, alike: float = ALIKE) -> torch.Tensor:
    """Rows of descending scores that are not the same pose again, found at an equivalent origin."""
    rounded = (score / alike).round()
    change = torch.ones_like(rounded, dtype=torch.bool)
    change[1:] = rounded[1:] != rounded[:-1]
    return change.nonzero()[:, 0]
