"""Molecules packed into crystals: rigid bodies compressed without clashes, then waters in what is left empty.

A Monte Carlo search turns and moves the molecule and changes the cell, at falling temperature, against a price on
volume and a rising one on contacts that are too short; at the end the cell opens until no contact is. Every accepted
state is rounded, so that the last bits of a processor's arithmetic cannot lead two machines to different crystals.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import gemmi
import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from ml_phaser.crystal.peptide import Hinge, Peptide
from ml_phaser.errors import UserError
from ml_phaser.simulate.peptides import least_within, random_peptide

# Nearest distance in A allowed between molecules: N and O with each other, one of them with C or S, C and S.
POLAR, MIXED, APOLAR = 2.8, 3.1, 3.4
MOST_OPERATORS = 24
CYCLES = 60  # Monte Carlo moves of one start, for each atom; at most:
MOST_CYCLES = 4000
STARTS = 4
EASY_WIDTH = 2 * APOLAR + 0.2  # A between lattice planes from which on the nearest lattice translation is enough
SHORTEST_AXIS = 4.5  # A
DRAWS = 40  # random states, the best of which a search begins with
START_VOLUME = 30.0  # A^3 an atom
PRICE = (6.0, 5000.0)  # A^3 for each A^2 of overlap, at the beginning and at the end
HEAT = 0.3  # A^3 an atom, at the beginning
BOUND_WATERS = 0.35  # a residue; others fill what voids remain
LARGEST_BEND = 25.0  # degrees a torsion may leave its region or rotamer
_DIGITS = 6  # of a state


@dataclass(frozen=True, eq=False)
class Packed:
    """A crystal: cell, group, Cartesian xyz (n, 3) in A of the molecule and of the waters (w, 3), both in the
    asymmetric unit."""

    cell: gemmi.UnitCell
    spacegroup: gemmi.SpaceGroup
    peptide: Peptide
    xyz: NDArray[np.float64]
    waters: NDArray[np.float64]

    @property
    def volume_per_atom(self) -> float:
        """A^3 of cell for each non-hydrogen atom, waters counted."""
        order = len(list(self.spacegroup.operations()))
        return float(self.cell.volume / (order * (len(self.xyz) + len(self.waters))))


def least_distances(elements: tuple[str, ...], others: tuple[str, ...]) -> NDArray[np.float64]:
    """(n, m) shortest allowed contact in A between atoms of two molecules."""
    a = np.array([e in "NO" for e in elements])[:, None]
    b = np.array([e in "NO" for e in others])
    return np.where(a & b, POLAR, np.where(a | b, MIXED, APOLAR))


def operators(spacegroup: gemmi.SpaceGroup) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Rotations (g, 3, 3) and translations (g, 3) of all operators, the identity first."""
    ops = list(spacegroup.operations())
    rotations = np.array([np.array(op.rot) / op.DEN for op in ops], dtype=float)
    return rotations, np.array([np.array(op.tran) / op.DEN for op in ops], dtype=float)


def widths(cell: gemmi.UnitCell) -> NDArray[np.float64]:
    """Distances in A between the lattice planes (100), (010), (001)."""
    return 1 / np.linalg.norm(np.array(cell.frac.mat), axis=1)


def contacts(
    frac: NDArray, others: NDArray, cell: gemmi.UnitCell, symmetry: tuple[NDArray, NDArray], same: bool
) -> NDArray[np.float64]:
    """(g, n, m) distances in A from each atom to the nearest copy of each other under each operator.

    Parameters
    ----------
    frac, others : (n, 3) and (m, 3) fractional
    same : ``others`` is the very molecule ``frac``: distances within it are infinite
    """
    orth = np.array(cell.orth.mat).T
    shifts = _shifts(cell)[:, None, None]
    best = np.empty((len(symmetry[0]), len(frac), len(others)))
    for g, (rotation, translation) in enumerate(zip(*symmetry, strict=True)):  # one by one: small arrays stay in cache
        difference = frac[:, None] - (others @ rotation.T + translation)
        nearest = np.rint(difference)
        difference -= nearest
        vectors = (difference - shifts) @ orth
        squared = np.einsum("snmi,snmi->snm", vectors, vectors)
        if same and g == 0:
            squared[np.all(nearest == -shifts, axis=-1)] = np.inf
        best[g] = squared.min(axis=0)
    return np.sqrt(best)


def _shifts(cell: gemmi.UnitCell) -> NDArray[np.float64]:
    """Lattice translations to try beside the nearest: in narrow cells it need not be the shortest vector."""
    around = [np.arange(-1, 2) if w < EASY_WIDTH else np.zeros(1) for w in widths(cell)]
    return np.stack(np.meshgrid(*around, indexing="ij"), axis=-1).reshape(-1, 3).astype(float)


@dataclass(frozen=True, eq=False)
class _Body:
    """What is packed as one: a peptide and the waters bound to it; xyz (n, 3) A, shortest distances within (n, n)."""

    xyz: NDArray[np.float64]
    elements: tuple[str, ...]
    least_within: NDArray[np.float64]
    hinges: tuple[Hinge, ...]


def _hydrated(rng: np.random.Generator, peptide: Peptide, waters: int) -> _Body:
    """Waters at hydrogen-bonding distance of random polar atoms, as long as they find room."""
    xyz, elements, least = peptide.xyz, peptide.elements, least_within(peptide)
    hinges = peptide.hinges
    polar = np.flatnonzero([e in "NO" for e in elements])
    n = len(xyz)
    for _ in range(30 * waters):
        if len(xyz) == n + waters:
            break
        partner = int(rng.choice(polar))
        direction = rng.normal(size=3)
        point = xyz[partner] + direction / np.linalg.norm(direction) * rng.uniform(POLAR + 0.02, 3.0)
        own = np.array([POLAR if e in "NO" else MIXED for e in elements])
        if np.any(np.linalg.norm(xyz - point, axis=1) < own):
            continue
        xyz, elements = np.vstack([xyz, point]), (*elements, "O")
        least = np.block([[least, own[:, None]], [own, np.zeros(1)]])
        hinges = tuple(replace(h, moving=np.append(h.moving, h.moving[partner])) for h in hinges)
    return _Body(xyz, elements, least, hinges)


@dataclass(frozen=True, eq=False)
class _State:
    """body: (n, 3) A around its centre; bends: degrees each hinge was turned; turn: quaternion; centre: fractional;
    lengths in A; angles in degrees. All rounded."""

    body: NDArray[np.float64]
    bends: tuple[float, ...]
    turn: tuple[float, ...]
    centre: tuple[float, ...]
    lengths: tuple[float, ...]
    angles: tuple[float, ...]

    @property
    def cell(self) -> gemmi.UnitCell:
        return gemmi.UnitCell(*self.lengths, *self.angles)

    def fractional(self) -> NDArray[np.float64]:
        """Fractional coordinates (n, 3) of the molecule."""
        turned = self.body @ Rotation.from_quat(self.turn).as_matrix().T
        return turned @ np.array(self.cell.frac.mat).T + np.array(self.centre)


def _rounded(values: NDArray) -> tuple[float, ...]:
    return tuple(float(x) for x in np.round(values, _DIGITS))


def tied(spacegroup: gemmi.SpaceGroup) -> tuple[tuple[tuple[int, ...], ...], tuple[int, ...], tuple[float, ...]]:
    """Axes of equal length, angles free to change, angles to begin with (International Tables A, table 2.1.2.1)."""
    system = spacegroup.crystal_system_str()
    separate = ((0,), (1,), (2,))
    if system == "triclinic":
        return separate, (0, 1, 2), (90, 90, 90)
    if system == "monoclinic":
        return separate, ("abc".index(spacegroup.monoclinic_unique_axis()),), (90, 90, 90)
    if system == "orthorhombic":
        return separate, (), (90, 90, 90)
    if system == "cubic":
        return ((0, 1, 2),), (), (90, 90, 90)
    if system == "trigonal" and spacegroup.ext == "R":
        return ((0, 1, 2),), (), (90, 90, 90)
    return ((0, 1), (2,)), (), (90, 90, 90) if system == "tetragonal" else (90, 90, 120)


def _start(rng: np.random.Generator, molecule: _Body, spacegroup: gemmi.SpaceGroup, volume: float) -> _State:
    axes, free, angles = tied(spacegroup)
    begin = np.array(angles, dtype=float)
    begin[list(free)] += rng.uniform(0, 15, len(free)) * (rng.choice([-1, 1], len(free)) if len(free) > 1 else 1)
    lengths = np.ones(3)
    for group in axes:
        lengths[list(group)] = np.exp(rng.normal(0, 0.35))
    scale = (volume / gemmi.UnitCell(*lengths, *begin).volume) ** (1 / 3)
    body = np.round(molecule.xyz - molecule.xyz.mean(axis=0), _DIGITS)
    return _State(
        body, (0.0,) * len(molecule.hinges), _rounded(Rotation.random(rng=rng).as_quat()), _rounded(rng.random(3)),
        _rounded(np.maximum(lengths * scale, SHORTEST_AXIS)), _rounded(begin),
    )  # fmt: skip


def _move(
    rng: np.random.Generator, state: _State, hinges: tuple[Hinge, ...], spacegroup: gemmi.SpaceGroup, step: float
) -> _State:
    """A neighbouring state; ``step`` 1 is a large move, 0 none."""
    axes, free, _ = tied(spacegroup)
    centre, lengths = np.array(state.centre), np.array(state.lengths)
    kind = rng.choice(["body", "bend", "axis", "angle"] if free else ["body", "bend", "axis"])
    if kind == "bend":
        return _bent(rng, state, hinges, step)
    if kind == "body":
        small = Rotation.from_rotvec(rng.normal(0, 0.25 * step, 3))
        turn = (small * Rotation.from_quat(state.turn)).as_quat()
        centre = centre + rng.normal(0, 0.5 * step, 3) / lengths
        return replace(state, turn=_rounded(turn), centre=_rounded(centre % 1))
    if kind == "axis":
        group = list(axes[rng.integers(len(axes))])
        lengths[group] *= np.exp(rng.normal(0, 0.05 * step))
        centre = centre + rng.normal(0, 0.3 * step, 3) / lengths
        return replace(state, lengths=_rounded(np.maximum(lengths, SHORTEST_AXIS)), centre=_rounded(centre % 1))
    angles = np.array(state.angles)
    axis = free[rng.integers(len(free))]
    lowest = 65 if len(free) > 1 else 90  # a monoclinic angle is obtuse by convention
    angles[axis] = np.clip(angles[axis] + rng.normal(0, 4 * step), lowest, 115)
    return replace(state, angles=_rounded(angles))


def _bent(rng: np.random.Generator, state: _State, hinges: tuple[Hinge, ...], step: float) -> _State:
    """One hinge turned by some degrees within its region, or to another rotamer."""
    i = int(rng.integers(len(hinges)))
    hinge = hinges[i]
    degrees = float(rng.normal(0, 12 * step))
    if hinge.jumps and rng.random() < 0.25:
        degrees += float(rng.choice([-120, 120]))
    total = state.bends[i] + degrees
    off = abs(total - 120 * np.rint(total / 120)) if hinge.jumps else abs(total)
    if off > LARGEST_BEND:
        return state
    origin = state.body[hinge.near]
    axis = state.body[hinge.far] - origin
    rotation = Rotation.from_rotvec(np.deg2rad(degrees) * axis / np.linalg.norm(axis))
    body = state.body.copy()
    body[hinge.moving] = rotation.apply(body[hinge.moving] - origin) + origin
    bends = tuple(_rounded(np.array(total)[None])[0] if j == i else b for j, b in enumerate(state.bends))
    return replace(state, body=np.round(body, _DIGITS), bends=bends)


def pack(
    rng: np.random.Generator, sequence: str, spacegroup: gemmi.SpaceGroup, *, waters: int | None = None,
    starts: int = STARTS, cycles: int | None = None,
) -> Packed:  # fmt: skip
    """Pack one peptide in the asymmetric unit, as densely as a few searches get.

    Parameters
    ----------
    sequence : one-letter codes; every search begins with a conformation of its own
    waters : most waters, some bound to the molecule before it is packed, others in voids; None: one a residue
    starts, cycles : searches, and moves of each; None: as many as the atoms call for

    Raises
    ------
    UserError
        where the group has more than 24 operators, or nothing without clashes was found
    """
    symmetry = operators(spacegroup)
    if len(symmetry[0]) > MOST_OPERATORS:
        where, hint = f"spacegroup {spacegroup.xhm()}", f"one of at most {MOST_OPERATORS}, e.g. P212121"
        raise UserError(f"has {len(symmetry[0])} symmetry operators, too many for the packing search", where, hint)
    most = len(sequence) if waters is None else waters
    found = []
    for _ in range(starts):
        peptide = random_peptide(rng, sequence)
        molecule = _hydrated(rng, peptide, min(most, round(len(sequence) * BOUND_WATERS)))
        moves = cycles or min(MOST_CYCLES, max(800, CYCLES * len(molecule.xyz)))
        found.append((peptide, molecule, _search(rng, molecule, spacegroup, symmetry, moves)))
    # The volume an atom, as some have more waters than others.
    peptide, molecule, best = min(found, key=lambda f: round(f[2].cell.volume / len(f[1].xyz), 3))
    cell = gemmi.UnitCell(*np.round(best.lengths, 3), *np.round(best.angles, 2))
    xyz = np.round(best.fractional() @ np.array(cell.orth.mat).T, 3)
    frac = xyz @ np.array(cell.frac.mat).T
    n = len(peptide)
    wet = add_waters(rng, frac, molecule.elements, cell, symmetry, most - (len(xyz) - n))
    waters_xyz = np.concatenate([xyz[n:], np.round(wet @ np.array(cell.orth.mat).T, 3)])
    return Packed(cell, spacegroup, peptide, xyz[:n], waters_xyz)


def _search(
    rng: np.random.Generator, molecule: _Body, spacegroup: gemmi.SpaceGroup, symmetry: tuple[NDArray, NDArray],
    cycles: int,
) -> _State:  # fmt: skip
    n, order = len(molecule.xyz), len(symmetry[0])
    least, least_inside = least_distances(molecule.elements, molecule.elements), molecule.least_within

    def costs(s: _State) -> tuple[float, float]:
        frac = s.fractional()
        short = np.maximum(0.0, least - contacts(frac, frac, s.cell, symmetry, True))
        inside = np.maximum(0.0, least_inside - np.linalg.norm(s.body[:, None] - s.body, axis=-1))
        return s.cell.volume / order, float(np.sum(short * short) + 4 * np.sum(inside * inside))

    # Chains that thread through each other never come apart again: begin with the least tangled of many.
    states = [_start(rng, molecule, spacegroup, START_VOLUME * n * order) for _ in range(DRAWS)]
    state = min(states, key=lambda s: round(costs(s)[1], 6))
    volume, overlap = costs(state)
    for k in range(cycles):
        progress = k / cycles
        price = PRICE[0] * (PRICE[1] / PRICE[0]) ** progress
        heat = HEAT * n * (1 - progress) ** 2 + 1e-9
        candidate = _move(rng, state, molecule.hinges, spacegroup, step=1.0 - 0.9 * progress)
        luck = rng.random()
        if candidate is state:
            continue
        new_volume, new_overlap = costs(candidate)
        rise = (new_volume - volume) + price * (new_overlap - overlap)
        if rise < 0 or luck < np.exp(-rise / heat):
            state, volume, overlap = candidate, new_volume, new_overlap
    return _opened(state, least, symmetry)


def _opened(state: _State, least: NDArray, symmetry: tuple[NDArray, NDArray]) -> _State:
    """The cell widened, the molecules kept rigid, until no contact is too short (with 0.002 A for rounding)."""
    for factor in np.arange(0, 400) * 0.0025:
        wider = replace(state, lengths=_rounded(np.array(state.lengths) * (1 + factor)))
        frac = wider.fractional()
        if np.all(contacts(frac, frac, wider.cell, symmetry, True) >= least + 0.002):
            return wider
    raise UserError("no packing without clashes was found", "sequence", "another seed or space group")


def add_waters(
    rng: np.random.Generator, frac: NDArray, elements: tuple[str, ...], cell: gemmi.UnitCell,
    symmetry: tuple[NDArray, NDArray], most: int,
) -> NDArray[np.float64]:  # fmt: skip
    """Fractional positions (w, 3) of waters in voids, each at hydrogen-bonding distance (2.8-3.1 A) of an N or O.

    Candidates lie around polar atoms; each keeps all shortest contacts to atoms, to other waters and to its own copies.
    """
    polar = np.flatnonzero([e in "NO" for e in elements])
    if not most or not len(polar):
        return np.zeros((0, 3))
    directions = rng.normal(size=(len(polar), 60, 3))
    directions *= rng.uniform(POLAR + 0.01, 3.1, (len(polar), 60, 1)) / np.linalg.norm(
        directions, axis=-1, keepdims=True
    )
    trial = frac[polar][:, None] + directions @ np.array(cell.frac.mat).T
    trial = np.round(trial.reshape(-1, 3), _DIGITS)
    least = least_distances(("O",), elements)
    distance = contacts(trial, frac, cell, symmetry, False).min(axis=0)
    trial = trial[np.all(distance >= least + 0.002, axis=1)]
    chosen: list[NDArray] = []
    for point in trial[rng.permutation(len(trial))]:
        if len(chosen) == most:
            break
        own = contacts(point[None], point[None], cell, symmetry, True).min()
        others = contacts(point[None], np.array(chosen), cell, symmetry, False).min() if chosen else np.inf
        if min(own, others) >= POLAR + 0.002:
            chosen.append(point)
    return np.array(chosen).reshape(-1, 3)
