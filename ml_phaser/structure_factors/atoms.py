"""Atoms of the asymmetric unit as tensors, from gemmi's structures."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import gemmi
import numpy as np
import torch
from numpy.typing import NDArray

from ml_phaser.structure_factors.form_factors import Scatterer, anomalous

U_TO_B = 8 * np.pi**2
SAME_SITE = 0.4  # A: an atom nearer than this to its own image lies on a special position


@dataclass(frozen=True, eq=False)
class Atoms:
    """Atoms of one asymmetric unit; leading dimensions are a batch, padded by atoms of occupancy 0.

    Attributes
    ----------
    xyz : (..., m, 3) fractional. Best kept in float64: the rounding of float32 alone costs 1e-5 of F at |h| = 50
    kind : (..., m) int64, index into ``scatterers``
    b_iso : (..., m) A^2
    occupancy : (..., m), already divided by the number of an atom's images that fall on its own site
    u_aniso : (..., m, 6) Cartesian U11 U22 U33 U12 U13 U23 in A^2, added to b_iso / (8 pi^2), or None
    scatterers : what ``kind`` means
    """

    xyz: torch.Tensor
    kind: torch.Tensor
    b_iso: torch.Tensor
    occupancy: torch.Tensor
    u_aniso: torch.Tensor | None = None
    scatterers: tuple[Scatterer, ...] = ()

    def __post_init__(self) -> None:
        shape = tuple(self.kind.shape)
        given = {"xyz": (self.xyz, (*shape, 3)), "b_iso": (self.b_iso, shape), "occupancy": (self.occupancy, shape)}
        if self.u_aniso is not None:
            given["u_aniso"] = (self.u_aniso, (*shape, 6))
        for name, (tensor, expected) in given.items():
            if tuple(tensor.shape) != expected:
                raise ValueError(f"{name} has shape {tuple(tensor.shape)}, kind asks for {expected}")

    def __getitem__(self, i: int) -> Atoms:
        """One asymmetric unit of a batch."""
        u = None if self.u_aniso is None else self.u_aniso[i]
        return Atoms(self.xyz[i], self.kind[i], self.b_iso[i], self.occupancy[i], u, self.scatterers)

    def replace(self, **changes: Any) -> Atoms:
        """A copy with some attributes changed."""
        return dataclasses.replace(self, **changes)

    def to(self, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> Atoms:
        """The same atoms in another precision, on another device; ``kind`` stays int64."""
        return self.replace(
            xyz=self.xyz.to(device=device, dtype=dtype),
            kind=self.kind.to(device=device),
            b_iso=self.b_iso.to(device=device, dtype=dtype),
            occupancy=self.occupancy.to(device=device, dtype=dtype),
            u_aniso=None if self.u_aniso is None else self.u_aniso.to(device=device, dtype=dtype),
        )


def site_multiplicity(
    xyz: NDArray[np.float64], cell: gemmi.UnitCell, spacegroup: gemmi.SpaceGroup | None, distance: float = SAME_SITE
) -> NDArray[np.int64]:
    """How many symmetry images of each atom (m, 3), itself included, lie within ``distance`` (A) of it, (m,)."""
    count = np.zeros(len(xyz), dtype=np.int64)
    orth = np.array(cell.orth.mat)
    for op in (spacegroup or gemmi.SpaceGroup("P 1")).operations():
        image = xyz @ (np.array(op.rot) / op.DEN).T + np.array(op.tran) / op.DEN
        apart = image - xyz
        count += np.linalg.norm((apart - np.round(apart)) @ orth.T, axis=1) < distance
    return np.maximum(count, 1)


def atoms_of_structure(
    structure: gemmi.Structure,
    *,
    model: int = 0,
    wavelength: float | None = None,
    table: str = "xray",
    ions: bool = False,
    dtype: torch.dtype = torch.float64,
) -> Atoms:
    """Atoms of a macromolecular model in the order of the file, hydrogens and alternative conformations included.

    Occupancies below 1 count as they are, since macromolecular files divide those on special positions by the number of
    images there; an atom of occupancy 1 on a special position was forgotten and is divided here (the rule of cctbx).

    Parameters
    ----------
    model : which model
    wavelength : A; adds f' and f'' of every element
    table : "xray" or "electron"
    ions : use the file's charges (often wrong, and left out by default as in gemmi)
    """
    if any(not op.given for op in structure.ncs):
        structure = structure.clone()
        structure.expand_ncs(gemmi.HowToNameCopiedChain.Dup)
    cell = structure.cell
    atoms = [site.atom for site in structure[model].all()] if len(structure) > model else []
    position = np.array([a.pos.tolist() for a in atoms]).reshape(-1, 3)
    xyz = position @ np.array(cell.frac.mat).T + np.array(cell.frac.vec.tolist())
    occupancy = np.array([a.occ for a in atoms], dtype=float)
    many = site_multiplicity(xyz, cell, structure.find_spacegroup())
    occupancy = np.where(np.abs(occupancy - 1) < 1e-3, occupancy / many, occupancy)
    names = [_name(a.element, a.charge if ions else 0) for a in atoms]
    u = np.array([a.aniso.elements_pdb() if a.aniso.nonzero() else [0.0] * 6 for a in atoms]).reshape(-1, 6)
    return _atoms(xyz, names, np.array([a.b_iso for a in atoms], dtype=float), occupancy, u, wavelength, table, dtype)


def atoms_of_small(
    small: gemmi.SmallStructure,
    *,
    wavelength: float | None = None,
    table: str = "xray",
    ions: bool = False,
    dtype: torch.dtype = torch.float64,
) -> Atoms:
    """Atoms of a small-molecule crystal in the order of the file, hydrogens and all parts of disorder included.

    A CIF's occupancies are chemical ones: those on special positions are divided by the number of images there, as
    gemmi's ``change_occupancies_to_crystallographic`` does (call only one of the two). Parameters as in
    ``atoms_of_structure``.
    """
    cell, sites = small.cell, list(small.sites)
    xyz = np.array([s.fract.tolist() for s in sites]).reshape(-1, 3)
    occupancy = np.array([s.occ for s in sites], dtype=float) / site_multiplicity(xyz, cell, small.spacegroup)
    # CIF tensors refer to the reciprocal axes' lengths: U_cart = A U A^T, A = orth diag(a*, b*, c*)
    to_cart = np.array(cell.orth.mat) * np.linalg.norm(np.array(cell.frac.mat), axis=1)
    u = np.zeros((len(sites), 6))
    b = np.zeros(len(sites))
    for i, site in enumerate(sites):
        if site.aniso.nonzero():
            tensor = to_cart @ np.array(site.aniso.as_mat33().tolist()) @ to_cart.T
            u[i] = tensor[[0, 1, 2, 0, 0, 1], [0, 1, 2, 1, 2, 2]]
        else:
            b[i] = U_TO_B * site.u_iso
    names = [_name(s.element, s.charge if ions else 0) for s in sites]
    return _atoms(xyz, names, b, occupancy, u, wavelength, table, dtype)


def _name(element: gemmi.Element, charge: int) -> str:
    return element.name + (f"{abs(charge)}{'+' if charge > 0 else '-'}" if charge else "")


def _atoms(
    xyz: NDArray, names: list[str], b: NDArray, occupancy: NDArray, u: NDArray, wavelength: float | None, table: str,
    dtype: torch.dtype,
) -> Atoms:  # fmt: skip
    kinds = sorted(set(names))
    dispersion = {n: anomalous(n.rstrip("0123456789+-"), wavelength) if wavelength else (0.0, 0.0) for n in kinds}
    aniso = u.any(axis=1)
    return Atoms(
        xyz=torch.tensor(xyz, dtype=dtype),
        kind=torch.tensor([kinds.index(n) for n in names], dtype=torch.int64),
        b_iso=torch.tensor(np.where(aniso, 0.0, b), dtype=dtype),
        occupancy=torch.tensor(occupancy, dtype=dtype),
        u_aniso=torch.tensor(u, dtype=dtype) if aniso.any() else None,
        scatterers=tuple(Scatterer(n, *dispersion[n], table) for n in kinds),
    )
