"""Endless batches of corrupted maps and their truth, made on the fly from a seed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import gemmi
import numpy as np
import torch
from numpy.typing import NDArray

from ml_phaser.crystal.grid import HalfSphere
from ml_phaser.crystal.residues import ELEMENTS
from ml_phaser.networks.config import condition
from ml_phaser.phasing.projections import Target, inverse, unit_variance
from ml_phaser.simulate import corrupt
from ml_phaser.simulate.crystals import Contents, dense_box, random_cell, solvent_factors, wet_box
from ml_phaser.simulate.fragments import Library
from ml_phaser.simulate.pools import SETTINGS, Pool
from ml_phaser.structure_factors.direct import structure_factors
from ml_phaser.structure_factors.form_factors import Scatterer, form_factors

PAIRS = 2**26  # atom-reflection pairs held at once on a device
SHAPES = ((24, 24, 24), (20, 24, 28), (28, 20, 24), (24, 28, 20), (20, 20, 32), (16, 28, 32))
WIDE = ((32, 32, 32), (28, 32, 36))  # where solvent is farther from itself than the others let it be


@dataclass(frozen=True)
class Batch:
    """truth (B, u, v, w) unit-variance maps; start: half-complex coefficients (B, ...) with measured amplitudes and
    corrupted phases; target: amplitudes and masks; cond (B, CONDITIONS) for the network, the quality not told; model
    (B, u, v, w) unit-variance maps of the placed models, 0 where there is none; adrift (B,) bool: the phases are
    random, the truth at any origin is as true."""

    truth: torch.Tensor
    start: torch.Tensor
    target: Target
    cond: torch.Tensor
    model: torch.Tensor
    adrift: torch.Tensor

    def to(self, device: torch.device | str) -> Batch:
        parts = (self.truth, self.start, self.target, self.cond, self.model, self.adrift)
        return Batch(*(part.to(device) for part in parts))  # type: ignore[arg-type]

    def start_maps(self) -> torch.Tensor:
        """The corrupted maps, unit variance."""
        return unit_variance(inverse(self.start, self.truth.shape))


@dataclass(frozen=True)
class Recipe:
    """What a sample is drawn from: ranges, shares of the kinds of phase error, shares of the families of crystals.

    hexagonal : share of boxes with an angle of 120 degrees; shown : share of the placed models shown to the network
    families : "box" (dense boxes), "peptide" (packed peptide crystals, whole where the cell fits the grid, else a piece
        of the crystal), "small" (the same of one to six residues in P1, each number alike), "protein" (pieces of
        protein crystals with their contacts), "wet" (surfaces of proteins and flat solvent)
    shapes : grids, one for each batch
    """

    d_min: tuple[float, float] = (1.25, 2.2)
    spacing: tuple[float, float] = (0.5, 0.66)
    quality: tuple[float, float] = (0.12, 0.99)
    noise: tuple[float, float] = (0.0, 0.08)
    kinds: tuple[tuple[str, float], ...] = (
        ("phase", 0.21), ("resolution", 0.12), ("additive", 0.21), ("partial", 0.35), ("truth", 0.08), ("random", 0.03),
    )  # fmt: skip
    hexagonal: float = 0.1
    shown: float = 0.7
    families: tuple[tuple[str, float], ...] = (("box", 0.6), ("wet", 0.4))
    shapes: tuple[tuple[int, int, int], ...] = (*SHAPES, *WIDE)


def calculate(contents: Contents, hkl: NDArray, stol2: NDArray, rows: NDArray | slice, xyz: NDArray) -> NDArray:
    """Structure factors (n,) of the atoms ``rows`` of a box at fractional positions ``xyz``, in single precision."""

    def tensor(a: NDArray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(a, dtype=np.float32))

    f = structure_factors(
        tensor(hkl), tensor(stol2), tensor(xyz[rows]), torch.from_numpy(contents.element[rows]),
        tensor(contents.b[rows]), tensor(contents.occupancy[rows]), ELEMENTS,
    )  # fmt: skip
    return f.numpy().astype(np.complex128)


def true_factors(contents: Contents, hkl: NDArray, stol2: NDArray) -> NDArray:
    """Structure factors (n,) of a box: of its atoms and its solvent."""
    return calculate(contents, hkl, stol2, slice(None), contents.xyz) + solvent_factors(contents, hkl)


def resolution_profile(
    amplitude: NDArray[np.float64], stol2: NDArray[np.float64], known: NDArray[np.bool_], per_shell: int = 100
) -> NDArray[np.float64]:
    """Smooth r.m.s. amplitude (n,) at the resolution of each reflection, from those known: the divisor that makes E."""
    order = np.flatnonzero(known)[np.argsort(stol2[known])]
    parts = np.array_split(order, max(2, len(order) // per_shell))
    x = [stol2[p].mean() for p in parts]
    y = [np.sqrt(np.mean(amplitude[p] ** 2)) for p in parts]
    return np.interp(stol2, x, y)


@dataclass(frozen=True, eq=False)
class Drawn:
    """A crystal of a batch before its structure factors are known.

    hkl (n, 3), stol2 (n,) of its reflections; partial: atoms kept (m,) and where they went wrong (m, 3), or None where
    phases are spoilt otherwise; kind and quality of that
    """

    contents: Contents
    shape: tuple[int, int, int]
    d_min: float
    hkl: NDArray
    stol2: NDArray
    kind: str
    quality: float
    partial: tuple[NDArray, NDArray] | None


def draw(
    rng: np.random.Generator, library: Library, shape: tuple[int, int, int], recipe: Recipe,
    pools: Mapping[str, Pool] | None = None,
) -> Drawn:  # fmt: skip
    """A crystal on a grid, its resolution and what will be wrong with its phases."""
    contents = _contents(rng, library, shape, recipe, pools or {})
    cell = contents.cell
    steps = np.array([cell.a, cell.b, cell.c]) / np.array(shape)
    d_min = max(rng.uniform(*recipe.d_min), 2.03 * float(steps.max()))
    hkl = gemmi.make_miller_array(cell, gemmi.SpaceGroup("P 1"), d_min)
    stol2 = np.asarray(cell.calculate_1_d2_array(hkl)) / 4
    kinds, shares = zip(*recipe.kinds, strict=True)
    kind = str(rng.choice(kinds, p=np.array(shares) / sum(shares)))
    quality = rng.uniform(*recipe.quality)
    partial = None
    if kind == "partial":
        orth = np.array(cell.orth.mat)
        kept, moved = corrupt.partial_structure(rng, contents.xyz, orth, rng.uniform(0.1, 0.9), 0.6)
        partial = kept, corrupt.misplaced(rng, kept, moved, orth) if rng.random() < 0.5 else moved
    return Drawn(contents, shape, d_min, hkl, stol2, kind, quality, partial)


def _contents(
    rng: np.random.Generator, library: Library, shape: tuple[int, int, int], recipe: Recipe, pools: Mapping[str, Pool]
) -> Contents:
    families, shares = zip(*recipe.families, strict=True)
    single = len(families) == 1
    family = families[0] if single else str(rng.choice(families, p=np.array(shares) / sum(shares)))
    if family == "wet":
        return wet_box(rng, library, random_cell(rng, shape, recipe.spacing, recipe.hexagonal))
    while True:
        if family == "box":
            contents = dense_box(rng, library, random_cell(rng, shape, recipe.spacing, recipe.hexagonal))
        else:
            contents = pools[family].draw(rng, shape, recipe.spacing)
        # Mostly as dense as real crystals; one in five keeps the voids of a protein surface.
        loose = contents.cell.volume / max(1, len(contents.xyz)) >= 26
        if len(contents.xyz) >= 25 and (not loose or rng.random() < 0.2):
            return contents


Arrays = tuple[NDArray, ...]


def finish(rng: np.random.Generator, drawn: Drawn, f: NDArray, wrong: NDArray | None, recipe: Recipe) -> Arrays:
    """Arrays of one crystal: half-complex truth, start, amplitude, known, inside, to_e, most, model; then d_min, the
    grid's steps (3, 3), completeness, and whether its phases are random.

    Parameters
    ----------
    f : (n,) true structure factors; wrong : (n,) those of the partial structure, or None
    """
    stol2, shape = drawn.stol2, drawn.shape
    shown = wrong is not None and rng.random() < recipe.shown
    model = wrong if wrong is not None and shown else np.zeros_like(f)
    if wrong is None:
        wrong = corrupt.noisy_phases(rng, f, stol2, drawn.quality, drawn.kind)
    known = corrupt.missing(rng, stol2)
    observed = corrupt.noisy_amplitudes(rng, f, stol2, rng.uniform(*recipe.noise)) * known
    start = observed * np.exp(1j * np.angle(wrong))

    places = HalfSphere.of(drawn.hkl, shape)
    profile = resolution_profile(observed, stol2, known)
    to_e = known / profile
    n = float(np.prod(shape))
    # Unit variance of the measured map, orthonormal transform: sum over the full sphere of |F|^2 = number of points.
    unit = np.sqrt(n / (2 * np.sum(observed**2)))
    truth = places.scatter(f * np.sqrt(n / (2 * np.sum(np.abs(f) ** 2))))
    arrays = (
        truth.astype(np.complex64),
        places.scatter(start * unit).astype(np.complex64),
        places.scatter(observed * unit).astype(np.float32),
        places.scatter(known),
        places.scatter(np.ones(len(drawn.hkl), dtype=bool)),
        places.scatter(to_e / unit).astype(np.float32),
        places.scatter(profile * unit).astype(np.float32),
        places.scatter(model).astype(np.complex64),
    )
    steps = np.array(drawn.contents.cell.orth.mat) / np.array(shape)
    facts = (drawn.d_min, steps, known.mean(), drawn.kind == "random")
    return (*arrays, *(np.asarray(fact, dtype=np.float32) for fact in facts))


def make_sample(
    rng: np.random.Generator, library: Library, shape: tuple[int, int, int], recipe: Recipe,
    pools: Mapping[str, Pool] | None = None,
) -> Arrays:  # fmt: skip
    """One crystal on the processor: see ``finish``."""
    drawn = draw(rng, library, shape, recipe, pools)
    f = true_factors(drawn.contents, drawn.hkl, drawn.stol2)
    wrong = None if drawn.partial is None else calculate(drawn.contents, drawn.hkl, drawn.stol2, *drawn.partial)
    return finish(rng, drawn, f, wrong, recipe)


def calculate_together(
    crystals: Sequence[tuple[Drawn, NDArray | slice, NDArray]], device: torch.device | str
) -> list[NDArray[np.complex128]]:
    """Structure factors (n,) of each of many crystals at once, in single precision on a device.

    Shorter lists of atoms are filled up with atoms of occupancy 0, shorter lists of reflections with (0, 0, 0).

    Parameters
    ----------
    crystals : what was drawn, the atoms to take of it, and the fractional positions of all of them
    """
    atoms = [np.arange(len(d.contents.xyz))[rows] for d, rows, _ in crystals]
    m, n = max(len(a) for a in atoms), max(len(d.hkl) for d, _, _ in crystals)
    hkl, stol2 = np.zeros((len(crystals), n, 3), np.float32), np.zeros((len(crystals), n), np.float32)
    xyz, kind = np.zeros((len(crystals), m, 3), np.float32), np.zeros((len(crystals), m), np.int64)
    b, occupancy = np.zeros((len(crystals), m), np.float32), np.zeros((len(crystals), m), np.float32)
    for k, ((d, _, positions), rows) in enumerate(zip(crystals, atoms, strict=True)):
        hkl[k, : len(d.hkl)], stol2[k, : len(d.hkl)] = d.hkl, d.stol2
        xyz[k, : len(rows)], kind[k, : len(rows)] = positions[rows], d.contents.element[rows]
        b[k, : len(rows)], occupancy[k, : len(rows)] = d.contents.b[rows], d.contents.occupancy[rows]

    def tensor(a: NDArray) -> torch.Tensor:
        return torch.from_numpy(a).to(device)

    scatterers = tuple(Scatterer(e) for e in ELEMENTS)
    parts = []
    for rows in torch.arange(len(crystals)).split(max(1, PAIRS // (m * n))):
        h, s, x, t, bb, occ = (tensor(a[rows.numpy()]) for a in (hkl, stol2, xyz, kind, b, occupancy))
        phase = (2 * torch.pi) * torch.bmm(h, x.mT)  # (crystals, reflections, atoms)
        f = form_factors(scatterers, s.reshape(-1)).reshape(len(ELEMENTS), *s.shape).permute(1, 2, 0)
        size = torch.gather(f, 2, t[:, None].expand(-1, n, -1)) * torch.exp(-s[..., None] * bb[:, None]) * occ[:, None]
        parts.append(torch.complex((size * phase.cos()).sum(-1), (size * phase.sin()).sum(-1)).cpu())
    values = torch.cat(parts).numpy().astype(np.complex128)
    return [v[: len(d.hkl)] for v, (d, _, _) in zip(values, crystals, strict=True)]


def make_together(
    rng: np.random.Generator, library: Library, shape: tuple[int, int, int], recipe: Recipe, size: int,
    device: torch.device | str, pools: Mapping[str, Pool] | None = None,
) -> list[Arrays]:  # fmt: skip
    """``size`` crystals, their structure factors calculated in one go on a device."""
    streams = rng.spawn(size)
    drawn = [draw(r, library, shape, recipe, pools) for r in streams]
    jobs: list[tuple[Drawn, NDArray | slice, NDArray]] = [(d, slice(None), d.contents.xyz) for d in drawn]
    jobs += [(d, *d.partial) for d in drawn if d.partial is not None]
    f = calculate_together(jobs, device)
    wrong = iter(f[size:])
    return [
        finish(r, d, own + solvent_factors(d.contents, d.hkl), None if d.partial is None else next(wrong), recipe)
        for r, d, own in zip(streams, drawn, f[:size], strict=True)
    ]


def pools_of(library: Library, seed: int, recipe: Recipe) -> dict[str, Pool]:
    """Empty pools of the packed crystals that a recipe draws from."""
    packed = [family for family, share in recipe.families if family in SETTINGS and share > 0]
    return {family: Pool(family, library, seed) for family in packed}


def batches(
    library: Library, size: int, seed: int, recipe: Recipe | None = None, device: torch.device | str | None = None
) -> Iterator[Batch]:
    """Batches of ``size`` crystals on one grid each; the same seed gives the same crystals.

    ``device`` : where to calculate the structure factors of a whole batch at once; None: crystal by crystal here, which
    is quicker on a processor. The batches stay on the processor.
    """
    recipe = recipe or Recipe()
    rng = np.random.default_rng(seed)
    pools = pools_of(library, seed, recipe)
    while True:
        shape = recipe.shapes[rng.integers(len(recipe.shapes))]
        if device is None:
            samples = [make_sample(rng, library, shape, recipe, pools) for _ in range(size)]
        else:
            samples = make_together(rng, library, shape, recipe, size, device, pools)
        yield collate(samples, shape)


def collate(samples: Sequence[Arrays], shape: tuple[int, int, int]) -> Batch:
    """A batch of crystals on one grid."""
    truth, start, amplitude, known, inside, to_e, most, model, d_min, steps, completeness, adrift = (
        torch.from_numpy(np.stack(column)) for column in zip(*samples, strict=True)
    )
    cond = condition(d_min, steps, completeness)
    models = unit_variance(inverse(model, shape))
    target = Target(amplitude, known, inside, to_e, most=most)
    return Batch(inverse(truth, shape), start, target, cond, models, adrift > 0)
