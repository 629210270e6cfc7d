"""The restraints of a model: which atoms are bonded, and what lengths, angles, hands and planes they should have.

Amino acids are known by the names of their atoms and get the values of ``crystal.amino_acids``. Everything else
(ligands, modified residues, nucleic acids, metals) is bonded by distance and held, more loosely, to the geometry it
starts with. Hydrogens ride on the atom they are bonded to and have no restraints. Atoms of different alternative
conformations do not see each other.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import combinations, pairwise, product

import gemmi
import numpy as np
import torch
from numpy.typing import NDArray

from ml_phaser.building.restraints import METAL_BOND, Contacts, Planes, Restraints, Term, bond_angles, volumes
from ml_phaser.crystal.amino_acids import (
    ALPHA,
    CB_S_S,
    CENTRES,
    PLANES,
    PROLINE_LINK,
    RINGS,
    S_S,
    STAGGERED,
    THREE_LETTERS,
    build_chain,
    side_chain,
)
from ml_phaser.structure_factors.atoms import SAME_SITE

LETTERS = {name: letter for letter, name in THREE_LETTERS.items()}
BOND, ANGLE, VOLUME = 0.02, np.deg2rad(2.5), 0.2  # standard deviations: A, radians, A^3
FLAT, PEPTIDE_FLAT = 0.02, 0.06  # A
LOOSE = 2.0  # standard deviations of what is held to its start, in those of amino acids
SIMILAR_B, SIMILAR_B_ANGLE = 0.35, 0.6  # of ln B, of atoms one and two bonds apart
LINK_REACH, S_S_REACH = 2.5, 2.8  # A: further apart, C and N or two sulphurs are not bonded
STRETCH = 0.4  # A beyond the sum of the covalent radii
SHORTER, LONGER, METAL_LONGER = 0.28, 0.1, 0.3  # A from that sum: the range of ideal lengths taken from the start
CONTACT_REACH = 4.2  # A
# Shortest distances (A) of atoms that are not bonded, by elements; hydrogen bonds are among them
_CONTACTS = {("C", "C"): 3.3, ("C", "N"): 3.05, ("C", "O"): 3.0, ("N", "N"): 2.7, ("N", "O"): 2.6, ("O", "O"): 2.45}
_OTHER_CONTACT, _METAL_CONTACT = 3.2, 1.9


@dataclass(frozen=True, eq=False)
class Residue:
    """Ideal geometry by atom names: bonds and angles (A, radians), volumes (A^3), planes."""

    bonds: dict[tuple[str, ...], float]
    angles: dict[tuple[str, ...], float]
    volumes: dict[tuple[str, ...], float]
    planes: tuple[tuple[str, ...], ...]


def _chain(sequence: str) -> tuple[tuple[str, ...], NDArray[np.int64], torch.Tensor, NDArray[np.int64]]:
    """Names, residue numbers, coordinates and bonds of a peptide with any torsions."""
    turns = [[180.0] * max([row[6] for row in side_chain(letter)], default=0) for letter in sequence]
    chain = build_chain(sequence, [(-75.0, 140.0)] * len(sequence), turns, [180.0] * len(sequence))
    return chain.names, chain.residue, torch.from_numpy(chain.xyz), chain.bonds


def _neighbours(bonds: Iterable[Sequence[int]]) -> dict[int, list[int]]:
    found: dict[int, list[int]] = defaultdict(list)
    for i, j in bonds:
        found[int(i)].append(int(j))
        found[int(j)].append(int(i))
    return found


def _triples(bonds: Iterable[Sequence[int]]) -> list[tuple[int, int, int]]:
    """Atoms i-j-k with both i-j and j-k bonded."""
    return [(i, j, k) for j, near in _neighbours(bonds).items() for i, k in combinations(sorted(near), 2)]


@cache
def ideal_residue(letter: str, last: bool) -> Residue:
    """Geometry within an amino acid, ``last``: with OXT."""
    names, number, xyz, bonds = _chain(f"G{letter}" if last else f"G{letter}G")
    own = [tuple(b) for b in bonds.tolist() if number[b[0]] == number[b[1]] == 1]
    triples = _triples(own)
    angle = bond_angles(xyz, torch.tensor(triples)).tolist()
    planes = [tuple(plane.split()) for plane in PLANES.get(letter, ())]
    if last:
        planes.append(("CA", "C", "O", "OXT"))
    lengths = {tuple(names[i] for i in b): float((xyz[b[0]] - xyz[b[1]]).norm()) for b in own}
    angles = {tuple(names[i] for i in t): a for t, a in zip(triples, angle, strict=True)}
    for at, value in RINGS.get(letter, {}).items():
        table, value = (lengths, value) if len(at) == 2 else (angles, float(np.deg2rad(value)))
        table.pop(at[::-1], None)
        table[at] = value
    centres = [tuple(c.split()) for c in (*CENTRES.get(letter, ()), *((ALPHA,) if letter != "G" else ()))]
    where = {name: i for i, name in enumerate(names) if number[i] == 1}
    hands = {c: float(volumes(xyz, torch.tensor([[where[n] for n in c]]))) for c in centres}
    return Residue(lengths, angles, hands, tuple(planes))


@cache
def ideal_link(letter: str) -> Residue:
    """Geometry of the peptide bond before a residue; names of the residue before it end in "-"."""
    names, number, xyz, bonds = _chain(f"G{letter}")
    label = [name + "-" * int(i == 0) for name, i in zip(names, number, strict=True)]
    link = next(tuple(b) for b in bonds.tolist() if number[b[0]] != number[b[1]])
    triples = [t for t in _triples(bonds.tolist()) if len({int(number[i]) for i in t}) == 2]
    angle = bond_angles(xyz, torch.tensor(triples)).tolist()
    angles = {tuple(label[i] for i in t): a for t, a in zip(triples, angle, strict=True)}
    if letter == "P":
        angles = {t: a for t, a in angles.items() if "CD" not in t} | {
            ("C-", "N", "CD"): float(np.deg2rad(PROLINE_LINK))
        }
    plane = ("CA-", "C-", "O-", "N", "CA", *(("CD",) if letter == "P" else ()))
    length = float((xyz[link[0]] - xyz[link[1]]).norm())
    return Residue({tuple(label[i] for i in link): length}, angles, {}, (plane,))


@dataclass(eq=False)
class _Found:
    """Restraints as they are found: atoms -> (ideal, sigma)."""

    bonds: dict[tuple[int, ...], tuple[float, float]] = field(default_factory=dict)
    angles: dict[tuple[int, ...], tuple[float, float]] = field(default_factory=dict)
    volumes: dict[tuple[int, ...], tuple[float, float]] = field(default_factory=dict)
    staggered: list[tuple[int, ...]] = field(default_factory=list)
    planes: list[tuple[tuple[int, ...], float]] = field(default_factory=list)


class Sites:
    """Atoms of a model in the order of its file: what they are called and where they are.

    Attributes
    ----------
    atoms : gemmi's atoms; xyz : (m, 3) A; element : symbols; altloc : "" where there is one conformation
    heavy : (m,) True for what is not hydrogen
    residue : (m,) number of the residue; groups : for each chain its residue numbers, those that share a place together
    names : name of each residue; of : for each residue, atom name -> numbers of its atoms (hydrogens left out)
    """

    def __init__(self, model: gemmi.Model) -> None:
        self._model = model  # whose atoms live as long as it does
        self.atoms = [cra.atom for cra in model.all()]
        self.xyz = np.array([a.pos.tolist() for a in self.atoms]).reshape(-1, 3)
        self.element = [a.element.name for a in self.atoms]
        self.altloc = [a.altloc if a.has_altloc() else "" for a in self.atoms]
        self.heavy = np.array([not a.is_hydrogen() for a in self.atoms])
        self.metal = np.array([a.element.is_metal for a in self.atoms])
        self.names: list[str] = []
        self.of: list[dict[str, list[int]]] = []
        self.groups: list[list[list[int]]] = []
        number: list[int] = []
        for chain in model:
            groups: list[list[int]] = []
            before = None
            for residue in chain:
                if residue.seqid != before:
                    groups.append([])
                before = residue.seqid
                groups[-1].append(len(self.names))
                here: dict[str, list[int]] = defaultdict(list)
                for atom in residue:
                    if not atom.is_hydrogen():
                        here[atom.name].append(len(number))
                    number.append(len(self.names))
                self.of.append(dict(here))
                self.names.append(residue.name)
            self.groups.append(groups)
        self.residue = np.array(number, dtype=np.int64)

    def together(self, atoms: Iterable[int]) -> bool:
        """Whether atoms belong to one conformation."""
        return len({self.altloc[i] for i in atoms} - {""}) <= 1

    def sets(self, names: Sequence[str], here: dict[str, list[int]]) -> Iterator[tuple[int, ...]]:
        """Atoms of these names, once for each conformation; none where one is missing."""
        if all(name in here for name in names):
            yield from (atoms for atoms in product(*(here[name] for name in names)) if self.together(atoms))

    def distance(self, i: int, j: int) -> float:
        return float(np.linalg.norm(self.xyz[i] - self.xyz[j]))


def restraints_of(model: gemmi.Model) -> Restraints:
    """Restraints of a model; its coordinates matter for what has no table and to find out what is linked."""
    sites, found, notes = Sites(model), _Found(), []
    known = [name in LETTERS and "CA" in here for name, here in zip(sites.names, sites.of, strict=True)]
    for name, here, k in zip(sites.names, sites.of, known, strict=True):
        if k:
            _apply(ideal_residue(LETTERS[name], "OXT" in here), here, sites, found, FLAT)
            for torsion in STAGGERED.get(LETTERS[name], ()):
                found.staggered += sites.sets(torsion.split(), here)
    for groups in sites.groups:
        for before, after in pairwise(groups):
            for one, other in product(before, after):
                _link(one, other, sites, found)
    bridges = _disulphides(sites, found)
    strange = _by_distance(sites, known, found)
    if bridges:
        notes.append(f"Disulphide bridges: {bridges}.")
    if strange:
        kinds = ", ".join(sorted({sites.names[sites.residue[i]] for i in strange}))
        notes.append(f"Held to the geometry they start with, for want of a table: {kinds} ({len(strange)} atoms).")
    restraints = _gather(found)
    inverted = _wrong_hands(sites, restraints, known)
    if inverted:
        notes.append(f"Centres of the other hand than their names say: {inverted}; the restraints pull them over.")
    if not sites.heavy.all():
        notes.append(f"Hydrogens: {int((~sites.heavy).sum())}, each riding on the atom that bears it.")
    return replace(restraints, notes=tuple(notes))


def _apply(ideal: Residue, here: dict[str, list[int]], sites: Sites, found: _Found, flat: float) -> None:
    for table, into, sigma in (
        (ideal.bonds, found.bonds, BOND), (ideal.angles, found.angles, ANGLE), (ideal.volumes, found.volumes, VOLUME)
    ):  # fmt: skip
        for names, value in table.items():
            for atoms in sites.sets(names, here):
                into[atoms] = (value, float(sigma))
    for names in ideal.planes:
        present = [n for n in names if n in here]
        if len(present) > 3:
            found.planes += [(atoms, flat) for atoms in sites.sets(present, here)]


def _link(one: int, other: int, sites: Sites, found: _Found) -> None:
    """The peptide bond between two residues, where C and N are near enough."""
    before, after = sites.of[one], sites.of[other]
    if not all(n in before for n in ("CA", "C")) or not all(n in after for n in ("N", "CA")):
        return
    if min(sites.distance(i, j) for i, j in product(before["C"], after["N"])) > LINK_REACH:
        return
    here = {name + "-": atoms for name, atoms in before.items()} | after
    _apply(ideal_link(LETTERS.get(sites.names[other], "A")), here, sites, found, PEPTIDE_FLAT)
    for atoms in sites.sets(("CA-", "C-", "O-", "N"), here):
        found.planes.append((atoms, FLAT))


def _disulphides(sites: Sites, found: _Found) -> int:
    sulphurs = [(r, i) for r, here in enumerate(sites.of) if sites.names[r] == "CYS" for i in here.get("SG", ())]
    count = 0
    for (r, i), (q, j) in combinations(sulphurs, 2):
        if r == q or not sites.together((i, j)) or sites.distance(i, j) > S_S_REACH:
            continue
        count += 1
        found.bonds[i, j] = (S_S, BOND)
        for residue, near, far in ((r, i, j), (q, j, i)):
            for b in sites.of[residue].get("CB", ()):
                if sites.together((b, near, far)):
                    found.angles[b, near, far] = (float(np.deg2rad(CB_S_S)), float(ANGLE))
    return count


def _by_distance(sites: Sites, known: list[bool], found: _Found) -> list[int]:
    """Bonds, angles and volumes that involve an atom without a table, from the start; the atoms so bonded."""
    unknown = np.array([not known[r] for r in sites.residue]) & sites.heavy
    if not unknown.any():
        return []
    from scipy.spatial import cKDTree

    radius = np.array([a.element.covalent_r for a in sites.atoms])
    heavy = np.flatnonzero(sites.heavy)
    near = cKDTree(sites.xyz[heavy]).query_pairs(2 * float(radius[heavy].max()) + STRETCH, output_type="ndarray")
    strange: set[int] = set()
    for i, j in heavy[near].tolist():
        distance, usual = sites.distance(i, j), radius[i] + radius[j]
        if not (unknown[i] or unknown[j]) or (i, j) in found.bonds or (j, i) in found.bonds:
            continue
        if distance > usual + STRETCH or not sites.together((i, j)) or "HOH" in (
            sites.names[sites.residue[i]], sites.names[sites.residue[j]]
        ):  # fmt: skip
            continue
        strange |= {i, j} & set(np.flatnonzero(unknown).tolist())
        if sites.metal[i] or sites.metal[j]:
            found.bonds[i, j] = (float(np.clip(distance, usual - SHORTER, usual + METAL_LONGER)), METAL_BOND)
        else:
            found.bonds[i, j] = (float(np.clip(distance, usual - SHORTER, usual + LONGER)), BOND * LOOSE)
    organic = [b for b in found.bonds if not sites.metal[list(b)].any()]
    xyz = torch.from_numpy(sites.xyz)
    for t in _triples(organic):
        if unknown[list(t)].any() and sites.together(t) and t not in found.angles and t[::-1] not in found.angles:
            found.angles[t] = (float(bond_angles(xyz, torch.tensor([t]))), float(ANGLE * LOOSE))
    for centre, around in _neighbours(organic).items():
        if unknown[centre] and len(around) in (3, 4) and sites.together((centre, *around)):
            c = (centre, *sorted(around)[:3])
            found.volumes[c] = (float(volumes(xyz, torch.tensor([c]))), VOLUME * LOOSE)
    return sorted(strange)


def _gather(found: _Found) -> Restraints:
    longest = max((len(atoms) for atoms, _ in found.planes), default=4)
    padded = [(*atoms, *([atoms[0]] * (longest - len(atoms)))) for atoms, _ in found.planes]
    there = [[1.0] * len(atoms) + [0.0] * (longest - len(atoms)) for atoms, _ in found.planes]
    planes = Planes(
        torch.tensor(padded, dtype=torch.int64).reshape(-1, longest),
        torch.tensor(there, dtype=torch.float64).reshape(-1, longest),
        torch.tensor([sigma for _, sigma in found.planes], dtype=torch.float64),
    )
    staggered = torch.tensor(found.staggered, dtype=torch.int64).reshape(-1, 4)
    terms = _term(found.bonds, 2), _term(found.angles, 3), _term(found.volumes, 4)
    return Restraints(*terms, staggered, planes, _similar(found))


def _term(table: dict[tuple[int, ...], tuple[float, float]], j: int) -> Term:
    if not table:
        return Term.empty(j)
    values = torch.tensor(list(table.values()), dtype=torch.float64)
    return Term(torch.tensor(list(table), dtype=torch.int64), values[:, 0], values[:, 1])


def _similar(found: _Found) -> Term:
    table: dict[tuple[int, ...], tuple[float, float]] = {(a[0], a[2]): (0.0, SIMILAR_B_ANGLE) for a in found.angles}
    table |= dict.fromkeys(found.bonds, (0.0, SIMILAR_B))
    return _term(table, 2)


def _wrong_hands(sites: Sites, restraints: Restraints, known: list[bool]) -> int:
    """Centres of amino acids whose volume has the wrong sign."""
    term = restraints.volumes
    if not len(term):
        return 0
    seen = volumes(torch.from_numpy(sites.xyz), term.atoms)
    ours = torch.tensor([known[sites.residue[int(i)]] for i in term.atoms[:, 0]])
    return int(((seen * term.ideal < 0) & ours).sum())


# --- contacts


class Neighbours:
    """Finds the contacts of a crystal again and again, as its atoms move."""

    def __init__(self, sites: Sites, restraints: Restraints, cell: gemmi.UnitCell, group: gemmi.SpaceGroup) -> None:
        self._orth, self._frac = np.array(cell.orth.mat), np.array(cell.frac.mat)
        ops = list(group.operations())
        self._rotations = np.array([np.array(op.rot) / op.DEN for op in ops])
        self._translations = np.array([np.array(op.tran) / op.DEN for op in ops])
        self._rows = np.flatnonzero(sites.heavy & np.array([a.occ > 0 for a in sites.atoms], dtype=bool))
        self._number = len(sites.atoms)
        self._close = _within_three(restraints.bonds.atoms.numpy(), self._number)
        kinds = sorted(set(sites.element))
        self._kind = np.array([kinds.index(e) for e in sites.element])
        self._least = np.array([[_least(a, b) for b in kinds] for a in kinds])
        letters = sorted(set(sites.altloc) - {""})
        self._conformation = np.array([letters.index(a) if a else -1 for a in sites.altloc])

    def contacts(self, xyz: NDArray) -> Contacts:
        """Pairs of atoms (m, 3) A that are, or may soon be, too near: non-hydrogen, more than three bonds apart, of one
        conformation; each pair once, under any operator and lattice translation, but not an atom with itself."""
        from scipy.spatial import cKDTree

        frac = xyz[self._rows] @ self._frac.T
        near = CONTACT_REACH * np.linalg.norm(self._frac, axis=1)  # of the faces of the cell, as fractions
        most = np.ceil(near).astype(int)
        wraps = np.stack(np.meshgrid(*(np.arange(-n, n + 1) for n in most), indexing="ij"), -1).reshape(-1, 3)
        home = frac - np.floor(frac)
        places, which, operator, shift = [], [], [], []
        for number, (r, t) in enumerate(zip(self._rotations, self._translations, strict=True)):
            image = frac @ r.T + t
            base = -np.floor(image)
            for wrap in wraps:
                at = image + base + wrap
                kept = np.flatnonzero(np.all((at > -near) & (at < 1 + near), axis=1))
                places.append(at[kept])
                which.append(kept)
                operator.append(np.full(len(kept), number))
                shift.append(base[kept] + wrap)
        place, j, g, n = (np.concatenate(x) for x in (places, which, operator, shift))
        found = cKDTree(home @ self._orth.T).query_ball_tree(cKDTree(place @ self._orth.T), CONTACT_REACH)
        i = np.repeat(np.arange(len(found)), [len(f) for f in found])
        k = np.array([p for f in found for p in f], dtype=np.int64)
        one, two, g, n = self._rows[i], self._rows[j[k]], g[k], n[k] + np.floor(frac[i])
        a, b = self._conformation[one], self._conformation[two]
        keep = (one < two) & ((a < 0) | (b < 0) | (a == b))
        own = (g == 0) & ~n.any(axis=1)
        keep &= ~(own & np.isin(one * self._number + two, self._close))
        least = self._least[self._kind[one], self._kind[two]]
        one, two, g, n, least = one[keep], two[keep], g[keep], n[keep], least[keep]
        rotation = (self._orth @ self._rotations @ self._frac)[g]
        translation = (self._translations[g] + n) @ self._orth.T
        atoms = torch.from_numpy(np.column_stack([one, two]))
        return Contacts(atoms, *(torch.from_numpy(x) for x in (rotation, translation, least)))


def _least(one: str, other: str) -> float:
    if gemmi.Element(one).is_metal or gemmi.Element(other).is_metal:
        return _METAL_CONTACT
    return _CONTACTS.get((min(one, other), max(one, other)), _OTHER_CONTACT)


def _within_three(bonds: NDArray[np.int64], n: int) -> NDArray[np.int64]:
    """Pairs of atoms at most three bonds apart, as first * n + second."""
    from scipy.sparse import coo_array, eye_array

    ends = np.concatenate([bonds, bonds[:, ::-1]]).reshape(-1, 2).T
    linked = (coo_array((np.ones(ends.shape[1]), (ends[0], ends[1])), shape=(n, n)) + eye_array(n)).tocsr()
    first, second = (linked @ linked @ linked).nonzero()
    return first.astype(np.int64) * n + second


# --- hydrogens and special positions


def riders(sites: Sites) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """For each atom (m,) the one it moves with (itself but for hydrogens) and its offset (m, 3) A from it: the nearest
    atom of the same residue and conformation; a hydrogen that has none stays where it is."""
    owner = np.arange(len(sites.atoms))
    for i in np.flatnonzero(~sites.heavy).tolist():
        mates = [j for here in sites.of[sites.residue[i]].values() for j in here if sites.together((i, j))]
        if mates:
            owner[i] = min(mates, key=lambda j: sites.distance(i, j))
    return owner, sites.xyz - sites.xyz[owner]


def site_projectors(
    xyz: NDArray, cell: gemmi.UnitCell, group: gemmi.SpaceGroup
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Atoms on special positions: their rows (k,), the matrices (k, 3, 3) and vectors (k, 3) A by which x becomes the
    mean of its images on its own site, which keeps it there."""
    orth, frac = np.array(cell.orth.mat), np.array(cell.frac.mat)
    x = xyz @ frac.T
    matrix, vector, count = np.zeros((len(x), 3, 3)), np.zeros((len(x), 3)), np.zeros(len(x))
    for op in group.operations():
        r, t = np.array(op.rot) / op.DEN, np.array(op.tran) / op.DEN
        gap = x @ r.T + t - x
        lattice = np.round(gap)
        here = np.linalg.norm((gap - lattice) @ orth.T, axis=1) < SAME_SITE
        matrix[here] += r
        vector[here] += t - lattice[here]
        count += here
    rows = np.flatnonzero(count > 1)
    n = count[rows, None]
    return rows, orth @ (matrix[rows] / n[..., None]) @ frac, (vector[rows] / n) @ orth.T
