"""Rigid molecules pressed into a crystal, quickly: soft contacts, a falling pressure, forces instead of dice.

Overlaps cost (d0 - d)^2 / 2 each, the cell's volume a price; molecules turn and move and the cell strains, as far as
the space group lets it, down the gradient (FIRE: Bitzek et al., Phys. Rev. Lett. 97, 170201, 2006). In the end the cell
opens until no contact is too short. Every state is rounded, so that the last bits of a processor's arithmetic cannot
lead two machines to different crystals.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import gemmi
import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from ml_phaser.errors import UserError
from ml_phaser.simulate.packing import SHORTEST_AXIS, operators, tied

# Shortest distance in A allowed between molecules: N and O with each other, one of them with C or S, C and S.
POLAR, MIXED, APOLAR = 2.75, 3.1, 3.4
SKIN = 1.0  # A a molecule may move before its neighbours are looked for again, both together
PRESSURE = (0.2, 0.002)  # price of a volume, in squared overlaps (A^2) for each A^3: at the beginning and at the end
STEPS, RELEASE, DRAWS = 350, 150, 12
START_VOLUME = 100.0  # A^3 an atom
MARGIN = 0.02  # A kept beyond the shortest distances while pressing
CLEAR = 0.008  # A kept beyond the shortest distances for the rounding of cell and coordinates
WIDENING = 1.05  # factor on cell edges in one step
OPENINGS = 40  # steps of 0.25 % by which a cell may be opened
ROOM = 2.3  # A around a water put into a void, before it is pressed
ANGLES = (59.9, 122.0)  # degrees
_DIGITS = 9

Symmetry = tuple[NDArray[np.float64], NDArray[np.float64]]


@dataclass(frozen=True, eq=False)
class Pairs:
    """Contacts: atom ``i``, and atom ``j`` under operator ``g`` and then lattice translation ``shift`` (k, 3)."""

    i: NDArray[np.int64]
    j: NDArray[np.int64]
    g: NDArray[np.int64]
    shift: NDArray[np.int64]

    def vectors(self, frac: NDArray, orth: NDArray, symmetry: Symmetry) -> NDArray[np.float64]:
        """(k, 3) in A, from i to the image of j."""
        images = np.einsum("gab,nb->gna", symmetry[0], frac) + symmetry[1][:, None]
        return (images[self.g, self.j] + self.shift - frac[self.i]) @ orth.T


def neighbours(
    frac: NDArray[np.float64], body: NDArray[np.int64], orth: NDArray[np.float64], symmetry: Symmetry, cutoff: float
) -> Pairs:
    """All pairs of atoms nearer than ``cutoff`` (A) that are not of one molecule in one place, each from both ends.

    Parameters
    ----------
    frac : (n, 3); body : (n,) which molecule of the asymmetric unit an atom belongs to
    orth : (3, 3) orthogonalisation matrix; symmetry : rotations (g, 3, 3) and translations (g, 3), the identity first
    """
    margin = cutoff * np.linalg.norm(np.linalg.inv(orth), axis=1) + 1e-9
    low, high = frac.min(axis=0) - margin, frac.max(axis=0) + margin
    several = bool(body.min() != body.max())
    places, labels = [], []
    for g, (rotation, translation) in enumerate(zip(*symmetry, strict=True)):
        image = frac @ rotation.T + translation
        first = np.ceil(low - image.max(axis=0)).astype(int)
        last = np.floor(high - image.min(axis=0)).astype(int)
        axes = [np.arange(a, b + 1) for a, b in zip(first, last, strict=True)]
        lattice = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
        if g == 0 and not several:
            lattice = lattice[np.any(lattice != 0, axis=1)]  # not the molecule itself
        place = image + lattice[:, None]
        k, j = np.nonzero(np.all((place > low) & (place < high), axis=-1))
        places.append(place[k, j])
        labels.append(np.column_stack([np.full(len(k), g), j, lattice[k]]))
    label = np.concatenate(labels).astype(np.int64)
    near = cKDTree(frac @ orth.T).query_ball_tree(cKDTree(np.concatenate(places) @ orth.T), cutoff)
    i = np.repeat(np.arange(len(frac)), [len(x) for x in near])
    label = label[np.concatenate([np.array(x, dtype=np.int64) for x in near])]
    g, j, shift = label[:, 0], label[:, 1], label[:, 2:]
    other = ~((g == 0) & np.all(shift == 0, axis=1) & (body[i] == body[j]))
    return Pairs(i[other], j[other], g[other], shift[other])


@dataclass(frozen=True, eq=False)
class Bodies:
    """What is packed: local (n, 3) A about the centre of each molecule, body (n,) its number, polar (n,) N or O;
    limits: shortest distances in A between two others, one of each, two polar ones."""

    local: NDArray[np.float64]
    body: NDArray[np.int64]
    polar: NDArray[np.bool_]
    limits: tuple[float, float, float] = (APOLAR, MIXED, POLAR)

    @classmethod
    def of(cls, molecules: list[NDArray[np.float64]], elements: list[tuple[str, ...]]) -> Bodies:
        local = np.concatenate([x - x.mean(axis=0) for x in molecules])
        body = np.repeat(np.arange(len(molecules)), [len(x) for x in molecules])
        return cls(np.round(local, 6), body, np.array([e in "NO" for names in elements for e in names]))

    @property
    def count(self) -> int:
        return int(self.body[-1]) + 1

    @property
    def reach(self) -> float:
        """Distance in A within which neighbours are listed."""
        return self.limits[0] + MARGIN + SKIN

    def least(self, pairs: Pairs) -> NDArray[np.float64]:
        """(k,) shortest allowed distance of each pair."""
        return np.choose(self.polar[pairs.i].astype(int) + self.polar[pairs.j], self.limits)


@dataclass(frozen=True, eq=False)
class Placed:
    """orth : (3, 3) A; centre : (m, 3) fractional; turn : (m, 3, 3) of each molecule."""

    orth: NDArray[np.float64]
    centre: NDArray[np.float64]
    turn: NDArray[np.float64]

    def fractional(self, bodies: Bodies) -> NDArray[np.float64]:
        offset = np.einsum("nab,nb->na", self.turn[bodies.body], bodies.local)
        return self.centre[bodies.body] + offset @ np.linalg.inv(self.orth).T

    @property
    def volume(self) -> float:
        return float(np.linalg.det(self.orth))

    def scaled(self, factor: float) -> Placed:
        """The cell larger, the molecules as they are."""
        return replace(self, orth=self.orth * factor)


def _begin(rng: np.random.Generator, bodies: Bodies, spacegroup: gemmi.SpaceGroup, volume: float) -> Placed:
    axes, free, angles = tied(spacegroup)
    begin = np.array(angles, dtype=float)
    begin[list(free)] += rng.uniform(0, 18, len(free)) * (rng.choice([-1, 1], len(free)) if len(free) > 1 else 1)
    lengths = np.ones(3)
    for group in axes:
        lengths[list(group)] = np.exp(rng.normal(0, 0.3))
    scale = (volume / gemmi.UnitCell(*lengths, *begin).volume) ** (1 / 3)
    cell = gemmi.UnitCell(*np.maximum(lengths * scale, SHORTEST_AXIS), *begin)
    turn = Rotation.random(bodies.count, rng=rng).as_matrix()
    return Placed(np.array(cell.orth.mat), rng.random((bodies.count, 3)), turn)


@dataclass(frozen=True, eq=False)
class _Forces:
    """On centres (m, 3), turns (m, 3) and the cell (3, 3), overlap energy."""

    centre: NDArray[np.float64]
    turn: NDArray[np.float64]
    strain: NDArray[np.float64]
    overlap: float


def _forces(bodies: Bodies, placed: Placed, symmetry: Symmetry, pairs: Pairs, least: NDArray) -> _Forces:
    frac = placed.fractional(bodies)
    vector = pairs.vectors(frac, placed.orth, symmetry)
    length = np.sqrt(np.einsum("ka,ka->k", vector, vector)) + 1e-9
    deep = least > length
    i, body = pairs.i[deep], bodies.body
    excess = least[deep] - length[deep]
    push = -(excess / length[deep])[:, None] * vector[deep]
    force = np.stack([np.bincount(i, push[:, a], len(frac)) for a in range(3)], axis=1)
    arm = (frac - placed.centre[body]) @ placed.orth.T
    torque = np.cross(arm, force)
    chosen = Pairs(i, pairs.j[deep], pairs.g[deep], pairs.shift[deep])
    between = chosen.vectors(placed.centre[body], placed.orth, symmetry)
    strain = -0.5 * push.T @ between
    m = bodies.count
    return _Forces(
        np.stack([np.bincount(body, force[:, a], m) for a in range(3)], axis=1),
        np.stack([np.bincount(body, torque[:, a], m) for a in range(3)], axis=1),
        strain, float(np.sum(excess**2)) / 4,
    )  # fmt: skip


def thrown(
    rng: np.random.Generator, bodies: Bodies, spacegroup: gemmi.SpaceGroup, volume_each: float = START_VOLUME
) -> Placed:
    """Molecules in a wide cell at random, those of some draws that overlap least; ``volume_each`` in A^3 an atom."""
    symmetry = operators(spacegroup)
    volume = volume_each * len(symmetry[0]) * len(bodies.local)
    trials = [_begin(rng, bodies, spacegroup, volume) for _ in range(DRAWS)]
    costs = []
    for trial in trials:
        pairs = neighbours(trial.fractional(bodies), bodies.body, trial.orth, symmetry, bodies.limits[0])
        costs.append(round(_forces(bodies, trial, symmetry, pairs, bodies.least(pairs)).overlap, 6))
    return trials[int(np.argmin(costs))]


def press(
    placed: Placed, bodies: Bodies, spacegroup: gemmi.SpaceGroup, steps: int = STEPS,
    pressure: tuple[float, float] = PRESSURE,
) -> Placed | None:  # fmt: skip
    """Molecules pressed together at falling pressure, then let go until nothing overlaps; None where they are tangled
    or the cell becomes too oblique."""
    symmetry = operators(spacegroup)
    order, n = len(symmetry[0]), len(bodies.local)
    cartesian = placed.orth @ symmetry[0] @ np.linalg.inv(placed.orth)
    counts = np.bincount(bodies.body).astype(float)[:, None]
    inertia = np.maximum(np.bincount(bodies.body, np.sum(bodies.local**2, axis=1))[:, None] * 2 / 3, 1.0)
    masses = (counts, inertia, n * placed.volume ** (2 / 3) / 4)
    pace, mixing, since = 0.15, 0.1, 0
    still = np.zeros_like(placed.centre)
    velocities = [still, still, np.zeros((3, 3))]
    pairs = neighbours(placed.fractional(bodies), bodies.body, placed.orth, symmetry, bodies.reach)
    reference, least = (placed.fractional(bodies) @ placed.orth.T, placed.orth), bodies.least(pairs) + MARGIN
    for k in range(steps + RELEASE):
        frac = placed.fractional(bodies)
        if _moved(frac @ placed.orth.T, placed.orth, *reference) > SKIN / 2:
            pairs = neighbours(frac, bodies.body, placed.orth, symmetry, bodies.reach)
            reference, least = (frac @ placed.orth.T, placed.orth), bodies.least(pairs) + MARGIN
        f = _forces(bodies, placed, symmetry, pairs, least)
        if k >= steps and f.overlap < 1e-4:
            break
        price = pressure[0] * (pressure[1] / pressure[0]) ** (k / steps) if k < steps else 0.0
        strain = f.strain - price * placed.volume / order * np.eye(3)
        strain = np.mean(cartesian @ ((strain + strain.T) / 2) @ np.swapaxes(cartesian, 1, 2), axis=0)
        forces = [f.centre / masses[0], f.turn / masses[1], strain / masses[2]]
        power, speed, size = (
            sum(float(np.sum(x * y * w)) for x, y, w in zip(u, v, masses, strict=True))
            for u, v in ((forces, velocities), (velocities, velocities), (forces, forces))
        )
        if power > 0:
            pull = mixing * np.sqrt(speed / (size + 1e-20))
            velocities = [(1 - mixing) * v + pull * a for v, a in zip(velocities, forces, strict=True)]
            since += 1
            if since > 5:
                pace, mixing = min(pace * 1.1, 0.6), mixing * 0.99
        else:
            velocities, since, pace, mixing = [v * 0 for v in velocities], 0, max(pace * 0.6, 0.05), 0.1
        velocities = [v + pace * a for v, a in zip(velocities, forces, strict=True)]
        placed = _advance(placed, *(v * pace for v in velocities))
    return opened(reduced(placed, spacegroup), bodies, symmetry)


def reduced(placed: Placed, spacegroup: gemmi.SpaceGroup) -> Placed:
    """The same crystal in a less oblique cell, where the group has no centring or glide to mind: axes shortened by
    each other (all in P1, a and c in P2 and P21); a monoclinic angle is obtuse by convention."""
    name = spacegroup.xhm()
    between = {"P 1": [(0, 1), (0, 2), (1, 2)], "P 1 2 1": [(0, 2)], "P 1 21 1": [(0, 2)]}.get(name, [])
    change, again = np.eye(3), True
    while again:
        again = False
        for i, j in [*between, *((j, i) for i, j in between)]:
            axes = placed.orth @ change
            steps = np.round(axes[:, i] @ axes[:, j] / (axes[:, i] @ axes[:, i]))
            if steps:
                change[:, j] -= steps * change[:, i]
                again = True
    axes = placed.orth @ change
    if spacegroup.monoclinic_unique_axis() == "b" and axes[:, 0] @ axes[:, 2] > 0:
        change[:, :2] *= -1
    if np.linalg.det(change) < 0:
        change[:, 2] *= -1
    return replace(placed, orth=placed.orth @ change, centre=placed.centre @ np.linalg.inv(change).T)


def _moved(atoms: NDArray, orth: NDArray, before: NDArray, orth_before: NDArray) -> float:
    """How far an atom, or the image of one, may have come, in A."""
    return float(np.abs(atoms - before).max() * 1.8 + np.linalg.norm(orth - orth_before, axis=0).max())


def _advance(placed: Placed, shift: NDArray, turn: NDArray, strain: NDArray) -> Placed:
    """Steps no larger than 0.3 A, 0.15 rad and 1 %."""
    shift = shift * min(1.0, 0.3 / (np.abs(shift).max() + 1e-12))
    turn = turn * min(1.0, 0.15 / (np.abs(turn).max() + 1e-12))
    strain = strain * min(1.0, 0.01 / (np.abs(strain).max() + 1e-12))
    orth = placed.orth + strain @ placed.orth
    rotation = Rotation.from_rotvec(turn).as_matrix() @ placed.turn
    left, _, right = np.linalg.svd(np.round(rotation, _DIGITS))
    return Placed(
        np.round(orth, _DIGITS), np.round(placed.centre + shift @ np.linalg.inv(placed.orth).T, _DIGITS), left @ right
    )


def opened(placed: Placed, bodies: Bodies, symmetry: Symmetry) -> Placed | None:
    """The cell widened until no contact is too short (with CLEAR for rounding); None where that takes a third of its
    volume, as with molecules threaded through each other, or where an angle lies outside ANGLES."""
    unit = placed.orth / np.linalg.norm(placed.orth, axis=0)
    cosines = (unit.T @ unit)[[1, 0, 0], [2, 2, 1]]
    right, left = np.cos(np.deg2rad(ANGLES))
    if np.any((cosines > right) | (cosines < left)):
        return None
    for factor in 1 + np.arange(0, OPENINGS) * 0.0025:
        wider = placed.scaled(float(factor))
        frac = wider.fractional(bodies)
        pairs = neighbours(frac, bodies.body, wider.orth, symmetry, bodies.limits[0] + 0.01)
        length = np.linalg.norm(pairs.vectors(frac, wider.orth, symmetry), axis=1)
        if np.all(length >= bodies.least(pairs) + CLEAR):
            return wider
    return None


def widened(placed: Placed, bodies: Bodies, spacegroup: gemmi.SpaceGroup, volume: float) -> Placed:
    """The cell scaled to ``volume`` (A^3) if it is smaller, in small steps: molecules that interlock are let go, or
    stop it short of that."""
    while volume > placed.volume * 1.0001:
        step = min((volume / placed.volume) ** (1 / 3), WIDENING)
        wider = press(placed.scaled(step), bodies, spacegroup, steps=0)
        if wider is None or wider.volume <= placed.volume:
            break
        placed = wider
    return placed


def pack_rigid(rng: np.random.Generator, bodies: Bodies, spacegroup: gemmi.SpaceGroup, starts: int) -> Placed:
    """The densest of ``starts`` packings. Raises UserError if eight times as many give none."""
    found: list[Placed] = []
    for k in range(8 * starts):
        if k >= starts and found:
            break
        placed = press(thrown(rng, bodies, spacegroup), bodies, spacegroup)
        if placed is not None:
            found.append(placed)
    if not found:
        raise UserError("no packing without clashes was found", "peptide", "another seed or space group")
    return min(found, key=lambda p: round(p.volume, 3))


def voids(
    rng: np.random.Generator, placed: Placed, bodies: Bodies, spacegroup: gemmi.SpaceGroup, count: int
) -> tuple[Placed, NDArray[np.float64]]:
    """``count`` fractional positions (count, 3) in the widest voids, at least ROOM from everything; the cell grows
    where there are too few."""
    symmetry = operators(spacegroup)
    while True:
        trial = rng.random((max(200, int(placed.volume / len(symmetry[0]) * 2)), 3))
        room = clearance(trial, placed.fractional(bodies), placed.orth, symmetry)
        own = clearance(trial, None, placed.orth, symmetry)
        room = np.minimum(room, own)
        chosen: list[int] = []
        while len(chosen) < count:
            best = int(np.argmax(np.round(room, 6)))
            if room[best] < ROOM:
                break
            chosen.append(best)
            room = np.minimum(room, clearance(trial, trial[best][None], placed.orth, symmetry))
        if len(chosen) == count:
            return placed, trial[chosen]
        placed = placed.scaled(1.015)


def clearance(
    points: NDArray[np.float64], frac: NDArray[np.float64] | None, orth: NDArray[np.float64], symmetry: Symmetry
) -> NDArray[np.float64]:
    """Distances (k,) in A, up to 4, from fractional points (k, 3) to the nearest image of atoms (n, 3), or of the point
    itself where those are None."""
    shifts = np.stack(np.meshgrid(*[np.arange(-1, 2)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    if frac is None:
        images = np.einsum("gab,kb->gka", symmetry[0], points) + symmetry[1][:, None]
        apart = images - points
        apart = (apart - np.round(apart))[:, :, None] + shifts
        length = np.linalg.norm(apart @ orth.T, axis=-1)
        length[0][:, np.all(shifts == 0, axis=1)] = 4.0
        return np.minimum(length.min(axis=(0, 2)), 4.0)
    margin = 4.0 * np.linalg.norm(np.linalg.inv(orth), axis=1)
    images = ((np.einsum("gab,nb->gna", symmetry[0], frac) + symmetry[1][:, None]) % 1.0).reshape(-1, 3)
    reach = [np.arange(-r, r + 1) for r in np.ceil(margin).astype(int)]
    lattice = np.stack(np.meshgrid(*reach, indexing="ij"), axis=-1).reshape(-1, 3)
    around = (images[:, None] + lattice).reshape(-1, 3)
    around = around[np.all((around > -margin) & (around < 1 + margin), axis=1)]
    distance, _ = cKDTree(around @ orth.T).query((points % 1.0) @ orth.T, distance_upper_bound=4.0)
    return np.minimum(distance, 4.0)
