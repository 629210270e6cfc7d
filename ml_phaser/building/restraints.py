"""What is known of geometry before any measurement, as one energy of coordinates and one of B.

    E(x) = 1/2 sum ((bond - ideal) / sigma)^2 + the same of angles, volumes of chiral centres, distances from planes,
           and of contacts that are too short + (1 + cos 3 chi) / (9 sigma^2) of torsions that like to be staggered

so that exp(-E) is the prior probability that a likelihood is multiplied with (Konnert & Hendrickson, Acta Cryst. A36,
344, 1980). All in double precision; coordinates in A, Cartesian. ``topology`` finds the restraints of a model.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch


@dataclass(frozen=True, eq=False)
class Term:
    """Restraints of one kind: atoms (k, j), ideal values (k,), standard deviations (k,)."""

    atoms: torch.Tensor
    ideal: torch.Tensor
    sigma: torch.Tensor

    @classmethod
    def empty(cls, j: int) -> Term:
        """No restraints, of ``j`` atoms each."""
        nothing = torch.zeros(0, dtype=torch.float64)
        return cls(torch.zeros((0, j), dtype=torch.int64), nothing, nothing)

    def __len__(self) -> int:
        return len(self.atoms)


@dataclass(frozen=True, eq=False)
class Planes:
    """Groups of atoms in a plane: atoms (p, q), padded with any; present (p, q) 1 or 0; sigma (p,) in A."""

    atoms: torch.Tensor
    present: torch.Tensor
    sigma: torch.Tensor


@dataclass(frozen=True, eq=False)
class Contacts:
    """Pairs that must not come too near, the second atom under an operator: atoms (k, 2), rotation (k, 3, 3) and
    translation (k, 3) Cartesian in A, least (k,) distance in A."""

    atoms: torch.Tensor
    rotation: torch.Tensor
    translation: torch.Tensor
    least: torch.Tensor


REPULSION = 0.2  # A, standard deviation of contacts below the least distance
METAL_BOND = 0.1  # A, standard deviation of bonds to metals
TORSION = np.deg2rad(15)  # standard deviation near a minimum


@dataclass(frozen=True, eq=False)
class Restraints:
    """All restraints of a model.

    bonds, angles, volumes : of 2, 3 and 4 atoms (of a volume, the centre first); A, radians, A^3
    staggered : (k, 4) atoms of torsions with minima at 60, 180 and 300 degrees
    similar : pairs whose ln B should differ little; ideal values are 0
    notes : sentences for the log
    """

    bonds: Term
    angles: Term
    volumes: Term
    staggered: torch.Tensor
    planes: Planes
    similar: Term
    notes: tuple[str, ...] = field(default=())

    def energy(self, xyz: torch.Tensor, contacts: Contacts | None = None) -> torch.Tensor:
        """E of coordinates (m, 3), a scalar."""
        total = _half_squares(bond_lengths(xyz, self.bonds.atoms), self.bonds)
        total = total + _half_squares(bond_angles(xyz, self.angles.atoms), self.angles)
        total = total + _half_squares(volumes(xyz, self.volumes.atoms), self.volumes)
        total = total + (1 + torch.cos(3 * torsions(xyz, self.staggered))).sum() / (9 * TORSION**2)
        total = total + 0.5 * (off_plane(xyz, self.planes) / self.planes.sigma**2).sum()
        return total if contacts is None else total + repulsion(xyz, contacts)

    def energy_b(self, log_b: torch.Tensor) -> torch.Tensor:
        """Energy of ln B, (m,)."""
        pairs = self.similar.atoms
        return _half_squares(log_b[pairs[:, 0]] - log_b[pairs[:, 1]], self.similar)

    def deviations(self, xyz: torch.Tensor) -> tuple[float, float]:
        """Root mean square deviation of bonds in A, those to metals left out, and of angles in degrees."""
        bond = (bond_lengths(xyz, self.bonds.atoms) - self.bonds.ideal)[self.bonds.sigma < METAL_BOND]
        angle = torch.rad2deg(bond_angles(xyz, self.angles.atoms) - self.angles.ideal)
        return _rms(bond), _rms(angle)

    def counts(self) -> dict[str, int]:
        """How many of each kind."""
        return {
            "bonds": len(self.bonds), "angles": len(self.angles), "volumes": len(self.volumes),
            "staggered": len(self.staggered), "planes": len(self.planes.sigma),
        }  # fmt: skip


def _rms(values: torch.Tensor) -> float:
    return float(values.pow(2).mean().sqrt()) if len(values) else 0.0


def _half_squares(values: torch.Tensor, term: Term) -> torch.Tensor:
    return 0.5 * ((values - term.ideal) / term.sigma).pow(2).sum()


def bond_lengths(xyz: torch.Tensor, atoms: torch.Tensor) -> torch.Tensor:
    """(k,) in A."""
    return _length(xyz[atoms[:, 0]] - xyz[atoms[:, 1]])


def _length(v: torch.Tensor) -> torch.Tensor:
    return (v.pow(2).sum(-1) + 1e-12).sqrt()


def bond_angles(xyz: torch.Tensor, atoms: torch.Tensor) -> torch.Tensor:
    """(k,) angles at the second of three atoms, in radians, 0 to pi."""
    u, v = xyz[atoms[:, 0]] - xyz[atoms[:, 1]], xyz[atoms[:, 2]] - xyz[atoms[:, 1]]
    return torch.atan2(_length(torch.linalg.cross(u, v)), (u * v).sum(-1))


def volumes(xyz: torch.Tensor, atoms: torch.Tensor) -> torch.Tensor:
    """(k,) a . (b x c) of the vectors from the first atom to the others, in A^3; the sign tells the hand."""
    a, b, c = (xyz[atoms[:, i]] - xyz[atoms[:, 0]] for i in (1, 2, 3))
    return (a * torch.linalg.cross(b, c)).sum(-1)


def torsions(xyz: torch.Tensor, atoms: torch.Tensor) -> torch.Tensor:
    """(k,) torsions of four atoms, in radians, -pi to pi."""
    u, v, w = (xyz[atoms[:, i + 1]] - xyz[atoms[:, i]] for i in range(3))
    m, n = torch.linalg.cross(u, v), torch.linalg.cross(v, w)
    return torch.atan2((u * n).sum(-1) * _length(v), (m * n).sum(-1))


def off_plane(xyz: torch.Tensor, planes: Planes) -> torch.Tensor:
    """(p,) sum of squared distances from each group's best plane, A^2: the least eigenvalue of its scatter."""
    weight = planes.present[..., None]
    x = xyz[planes.atoms]
    centred = (x - (x * weight).sum(1, keepdim=True) / weight.sum(1, keepdim=True)) * weight
    return torch.linalg.eigvalsh(centred.transpose(1, 2) @ centred)[:, 0]


def repulsion(xyz: torch.Tensor, contacts: Contacts) -> torch.Tensor:
    """Energy of contacts shorter than their least distance."""
    other = torch.einsum("kij,kj->ki", contacts.rotation, xyz[contacts.atoms[:, 1]]) + contacts.translation
    short = torch.relu(contacts.least - _length(xyz[contacts.atoms[:, 0]] - other))
    return 0.5 * (short / REPULSION).pow(2).sum()
