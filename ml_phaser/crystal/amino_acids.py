"""Ideal geometry of the twenty amino acids, and chains built of it atom by atom. Non-hydrogen atoms only.

Lengths and angles: Engh & Huber, Acta Cryst. A47, 392 (1991).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

THREE_LETTERS = {
    "A": "ALA", "R": "ARG", "N": "ASN", "D": "ASP", "C": "CYS", "Q": "GLN", "E": "GLU", "G": "GLY", "H": "HIS",
    "I": "ILE", "L": "LEU", "K": "LYS", "M": "MET", "F": "PHE", "P": "PRO", "S": "SER", "T": "THR", "W": "TRP",
    "Y": "TYR", "V": "VAL",
}  # fmt: skip

# Backbone: N-CA, CA-C (A); N-CA-C, C(-1)-N-CA (degrees)
_BACKBONE = {"": (1.458, 1.525, 111.2, 121.7), "G": (1.451, 1.516, 112.5, 120.6), "P": (1.466, 1.525, 111.8, 122.6)}
# C-N (A), CA-C-N, CA-C-O (degrees), by the residue that N belongs to
_LINK = {"": (1.329, 116.2, 120.8), "G": (1.329, 116.4, 120.8), "P": (1.341, 116.9, 120.9)}
_C_O, _C_OXT, _CA_C_OXT = 1.231, 1.249, 117.0
# CA-CB (A), N-CA-CB, C-CA-CB (degrees)
_BETA = {
    "": (1.530, 110.5, 110.1), "A": (1.521, 110.4, 110.5), "V": (1.540, 111.5, 109.1), "I": (1.540, 111.5, 109.1),
    "T": (1.540, 111.5, 109.1), "P": (1.530, 103.0, 110.1),
}  # fmt: skip

_CG = "CG CB CA N 1.520 114.1 x1"
_AMIDE_CG = "CG CB CA N 1.516 112.6 x1"
_RING = "CG CB CA N {0} 113.8 x1; CD1 CG CB CA {1} {2} x2; CD2 CG CB CA {1} {2} x2+180; CE1 CD1 CG CB 1.382 {3} 180; "
_RING += "CE2 CD2 CG CB 1.382 {3} 180; CZ CE1 CD1 CG {4} {5} 0"
# Atoms beyond CB: name, bonded to, angle with, torsion with, length (A), angle, torsion (degrees; x1 = chi 1 ...)
_SIDE_CHAINS = {
    "G": "", "A": "",
    "S": "OG CB CA N 1.417 111.1 x1",
    "C": "SG CB CA N 1.808 114.4 x1",
    "T": "OG1 CB CA N 1.433 109.6 x1; CG2 CB CA N 1.521 110.5 x1-121",
    "V": "CG1 CB CA N 1.521 110.5 x1; CG2 CB CA N 1.521 110.5 x1+123",
    "I": "CG1 CB CA N 1.530 110.4 x1; CG2 CB CA N 1.521 110.5 x1-123; CD1 CG1 CB CA 1.513 113.8 x2",
    "L": "CG CB CA N 1.530 116.3 x1; CD1 CG CB CA 1.521 110.7 x2; CD2 CG CB CA 1.521 110.7 x2+123",
    "P": "CG CB CA N 1.492 104.5 x1; CD CG CB CA 1.503 106.1 x2",
    "N": f"{_AMIDE_CG}; OD1 CG CB CA 1.231 120.8 x2; ND2 CG CB CA 1.328 116.4 x2+180",
    "D": f"{_AMIDE_CG}; OD1 CG CB CA 1.249 118.4 x2; OD2 CG CB CA 1.249 118.4 x2+180",
    "Q": f"{_CG}; CD CG CB CA 1.516 112.6 x2; OE1 CD CG CB 1.231 120.8 x3; NE2 CD CG CB 1.328 116.4 x3+180",
    "E": f"{_CG}; CD CG CB CA 1.516 112.6 x2; OE1 CD CG CB 1.249 118.4 x3; OE2 CD CG CB 1.249 118.4 x3+180",
    "K": f"{_CG}; CD CG CB CA 1.520 111.3 x2; CE CD CG CB 1.520 111.3 x3; NZ CE CD CG 1.489 111.9 x4",
    "R": f"{_CG}; CD CG CB CA 1.520 111.3 x2; NE CD CG CB 1.460 112.0 x3; CZ NE CD CG 1.329 124.2 x4; "
    "NH1 CZ NE CD 1.326 120.0 0; NH2 CZ NE CD 1.326 120.0 180",
    "M": f"{_CG}; SD CG CB CA 1.803 112.7 x2; CE SD CG CB 1.791 100.9 x3",
    "F": _RING.format("1.502", "1.384", "120.7", "120.7", "1.382", "120.0"),
    "Y": _RING.format("1.512", "1.389", "120.8", "121.2", "1.378", "119.6") + "; OH CZ CE1 CD1 1.376 119.9 180",
    "H": "CG CB CA N 1.497 113.8 x1; ND1 CG CB CA 1.378 122.7 x2; CD2 CG CB CA 1.354 131.2 x2+180; "
    "CE1 ND1 CG CB 1.321 109.0 180; NE2 CD2 CG CB 1.374 107.2 180",
    "W": "CG CB CA N 1.498 113.6 x1; CD1 CG CB CA 1.365 126.9 x2; CD2 CG CB CA 1.433 126.8 x2+180; "
    "NE1 CD1 CG CB 1.374 110.2 180; CE2 CD2 CG CB 1.409 107.2 180; CE3 CD2 CG CB 1.398 133.9 0; "
    "CZ2 CE2 CD2 CG 1.394 122.4 180; CZ3 CE3 CD2 CG 1.382 118.6 180; CH2 CZ2 CE2 CD2 1.368 117.5 0",
}  # fmt: skip
# Bonds that close rings: all others are those to the atom that an atom is built on.
_CLOSURES = {
    "P": (("CD", "N"),), "F": (("CZ", "CE2"),), "Y": (("CZ", "CE2"),), "H": (("CE1", "NE2"),),
    "W": (("NE1", "CE2"), ("CH2", "CZ3")),
}  # fmt: skip

# What closes rings, where the rows above leave it to chance: lengths (A) and angles (degrees)
RINGS: dict[str, dict[tuple[str, ...], float]] = {
    "P": {("CD", "N"): 1.473, ("CA", "N", "CD"): 112.0, ("N", "CD", "CG"): 103.2, ("CB", "CG", "CD"): 106.1,
          ("CA", "CB", "CG"): 104.5},
    "Y": {("CZ", "CE2"): 1.378}, "H": {("CE1", "NE2"): 1.319}, "W": {("NE1", "CE2"): 1.370, ("CH2", "CZ3"): 1.400},
}  # fmt: skip
PROLINE_LINK = 125.0  # degrees, C(-1)-N-CD
S_S, CB_S_S = 2.033, 103.8  # disulphides: A, degrees
# Atoms in one plane
PLANES = {
    "N": ("CB CG OD1 ND2",), "D": ("CB CG OD1 OD2",), "Q": ("CG CD OE1 NE2",), "E": ("CG CD OE1 OE2",),
    "R": ("CD NE CZ NH1 NH2",), "F": ("CB CG CD1 CD2 CE1 CE2 CZ",), "Y": ("CB CG CD1 CD2 CE1 CE2 CZ OH",),
    "H": ("CB CG ND1 CD2 CE1 NE2",), "W": ("CB CG CD1 CD2 NE1 CE2 CE3 CZ2 CZ3 CH2",),
}  # fmt: skip
# Side-chain torsions between tetrahedral atoms, which prefer 60, 180 and 300 degrees
STAGGERED = {
    letter: tuple(" ".join(path.split()[k : k + 4]) for k in range(len(path.split()) - 3))
    for letter, path in {
        "S": "N CA CB OG", "C": "N CA CB SG", "T": "N CA CB OG1", "V": "N CA CB CG1", "I": "N CA CB CG1 CD1",
        "L": "N CA CB CG CD1", "M": "N CA CB CG SD CE", "K": "N CA CB CG CD CE NZ", "R": "N CA CB CG CD NE",
        "E": "N CA CB CG CD", "Q": "N CA CB CG CD", "D": "N CA CB CG", "N": "N CA CB CG", "F": "N CA CB CG",
        "Y": "N CA CB CG", "W": "N CA CB CG", "H": "N CA CB CG",
    }.items()
}  # fmt: skip
# Centres whose hand, or whose labels, must not change: centre and three neighbours
CENTRES = {"I": ("CB CA CG1 CG2",), "T": ("CB CA OG1 CG2",), "V": ("CB CA CG1 CG2",), "L": ("CG CB CD1 CD2",)}
ALPHA = "CA N C CB"  # that of every residue but glycine


@dataclass(frozen=True, eq=False)
class Chain:
    """A peptide chain: name and residue number (from 0) of each atom, (n, 3) coordinates in A, bonds (k, 2), and the
    number of each atom by residue and name."""

    names: tuple[str, ...]
    residue: NDArray[np.int64]
    xyz: NDArray[np.float64]
    bonds: NDArray[np.int64]
    at: dict[tuple[int, str], int]


def place_atom(a: NDArray, b: NDArray, c: NDArray, length: float, angle: float, torsion: float) -> NDArray[np.float64]:
    """Position d with |cd| = length, angle b-c-d and torsion a-b-c-d in degrees (Parsons et al., J. Comput. Chem.
    26, 1063, 2005)."""
    axis = (c - b) / np.linalg.norm(c - b)
    normal = np.cross(b - a, axis)
    normal /= np.linalg.norm(normal)
    theta, tau = np.deg2rad(angle), np.deg2rad(torsion)
    local = length * np.array([-np.cos(theta), np.sin(theta) * np.cos(tau), np.sin(theta) * np.sin(tau)])
    return c + local[0] * axis + local[1] * np.cross(normal, axis) + local[2] * normal


def _beta(n: NDArray, ca: NDArray, c: NDArray, length: float, n_angle: float, c_angle: float) -> NDArray[np.float64]:
    """CB of an L residue from the angles N-CA-CB and C-CA-CB."""
    u, v = (n - ca) / np.linalg.norm(n - ca), (c - ca) / np.linalg.norm(c - ca)
    p, q, r = np.cos(np.deg2rad(n_angle)), np.cos(np.deg2rad(c_angle)), float(u @ v)
    along_u, along_v = np.array([p - q * r, q - p * r]) / (1 - r * r)
    in_plane = along_u * u + along_v * v
    up = np.cross(u, v) / np.linalg.norm(np.cross(u, v))
    return ca + length * (in_plane + np.sqrt(1 - in_plane @ in_plane) * up)


@cache
def side_chain(letter: str) -> tuple[tuple[str, str, str, str, float, float, int, float], ...]:
    """Rows of the table: four names, length, angle, number of the chi (0: none), torsion to add to it."""
    rows = []
    for line in filter(None, _SIDE_CHAINS[letter].split("; ")):
        name, parent, second, third, length, angle, torsion = line.split()
        chi, offset = 0, torsion
        if torsion.startswith("x"):
            chi, offset = int(torsion[1]), torsion[2:] or "0"
        rows.append((name, parent, second, third, float(length), float(angle), chi, float(offset)))
    return tuple(rows)


def build_chain(
    sequence: str, phi_psi: Sequence[tuple[float, float]], chis: Sequence[Sequence[float]], omega: Sequence[float]
) -> Chain:
    """A zwitterionic L peptide from its torsions.

    Parameters
    ----------
    phi_psi : degrees, one pair a residue (the first phi is not used; the last psi turns the carboxylate)
    chis : degrees, the side-chain torsions of each residue
    omega : degrees, of the bond before each residue (the first is not used)
    """
    names: list[str] = []
    residue: list[int] = []
    xyz: list[NDArray] = []
    bonds: list[tuple[int, int]] = []
    at: dict[tuple[int, str], int] = {}

    def add(i: int, name: str, position: NDArray, parent: int | None) -> None:
        at[i, name] = len(names)
        if parent is not None:
            bonds.append((parent, len(names)))
        names.append(name)
        residue.append(i)
        xyz.append(position)

    n, ca, c = _first_residue(sequence[0])
    for i, letter in enumerate(sequence):
        psi = phi_psi[i][1]
        n_ca, ca_c, n_ca_c, c_n_ca = _BACKBONE.get(letter, _BACKBONE[""])
        if i:
            link, ca_c_n, _ = _LINK.get(letter, _LINK[""])
            before = xyz[at[i - 1, "N"]], xyz[at[i - 1, "CA"]], xyz[at[i - 1, "C"]]
            n = place_atom(*before, link, ca_c_n, phi_psi[i - 1][1])
            ca = place_atom(before[1], before[2], n, n_ca, c_n_ca, omega[i])
            c = place_atom(before[2], n, ca, ca_c, n_ca_c, phi_psi[i][0])
        add(i, "N", n, at[i - 1, "C"] if i else None)
        add(i, "CA", ca, at[i, "N"])
        add(i, "C", c, at[i, "CA"])
        last = i + 1 == len(sequence)
        ca_c_o = _CA_C_OXT if last else _LINK.get(sequence[i + 1], _LINK[""])[2]
        add(i, "O", place_atom(n, ca, c, _C_OXT if last else _C_O, ca_c_o, psi + 180), at[i, "C"])
        if letter != "G":
            add(i, "CB", _beta(n, ca, c, *_BETA.get(letter, _BETA[""])), at[i, "CA"])
        for name, parent, second, third, length, angle, chi, offset in side_chain(letter):
            torsion = offset + (chis[i][chi - 1] if chi else 0.0)
            a, b, d = (xyz[at[i, other]] for other in (third, second, parent))
            add(i, name, place_atom(a, b, d, length, angle, torsion), at[i, parent])
        bonds += [(at[i, one], at[i, other]) for one, other in _CLOSURES.get(letter, ())]
        if last:
            add(i, "OXT", place_atom(n, ca, c, _C_OXT, _CA_C_OXT, psi), at[i, "C"])
    return Chain(tuple(names), np.array(residue), np.array(xyz), np.array(bonds), at)


def _first_residue(letter: str) -> tuple[NDArray, NDArray, NDArray]:
    n_ca, ca_c, angle, _ = _BACKBONE.get(letter, _BACKBONE[""])
    turn = np.deg2rad(angle)
    ca = np.array([n_ca, 0.0, 0.0])
    return np.zeros(3), ca, ca + ca_c * np.array([-np.cos(turn), np.sin(turn), 0.0])
