"""Macrocycles: scale and solvent, coordinates, B; each a minimisation of  weight x target + restraints.

    parts = Parts.of(structure, cell, spacegroup)        restraints, what moves with what, what stays where
    for each macrocycle: fit = explain(...); xyz = move(...); b = cool(...)

The minimiser is L-BFGS (Liu & Nocedal 1989), as scipy has it. Coordinates are varied in A, displacements as ln B, which
keeps B above zero and makes the steps of small and large ones alike.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import gemmi
import numpy as np
import torch
from numpy.typing import NDArray

from ml_phaser.building.restraints import Restraints
from ml_phaser.building.target import Target
from ml_phaser.building.topology import Neighbours, Sites, restraints_of, riders, site_projectors
from ml_phaser.crystal.reflections import Amplitudes
from ml_phaser.structure_factors.atoms import U_TO_B, Atoms, atoms_of_structure
from ml_phaser.structure_factors.calculate import structure_factors
from ml_phaser.structure_factors.scaling import RFactors, f_model, fit_scales, r_factors
from ml_phaser.structure_factors.sigmaa import fit_errors
from ml_phaser.structure_factors.solvent import exact_mask, mask_factors

LEAST_B, MOST_B = 0.5, 300.0  # A^2
LEAST_SHIFT = 0.05  # A^2, of all B at once
HYDROGEN_B = (1.0, 1.5)  # times the B of the atom that bears it, at least and at most

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Parts:
    """What of a model refinement needs, besides its coordinates and B.

    Attributes
    ----------
    restraints, neighbours : geometry
    atoms : all atoms (m) of the file, in its order
    free : (k,) rows of the atoms with coordinates and B of their own: all but hydrogens
    owner : (m,) place in ``free`` of the atom that each moves with; offset (m, 3) A from it; b_ratio (m,) of its B
    special : rows, matrices, vectors of atoms on special positions (``topology.site_projectors``)
    b_base : (m,) A^2, equivalent B of what anisotropic displacement an atom has and keeps
    least_b : (m,) A^2, what B must exceed
    """

    restraints: Restraints
    neighbours: Neighbours
    atoms: Atoms
    free: torch.Tensor
    owner: torch.Tensor
    offset: torch.Tensor
    b_ratio: torch.Tensor
    special: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
    b_base: torch.Tensor
    least_b: Floats

    @classmethod
    def of(
        cls, structure: gemmi.Structure, cell: gemmi.UnitCell, spacegroup: gemmi.SpaceGroup, table: str = "xray"
    ) -> Parts:
        """Parts of the first model of a structure in the cell and group of the data; ``table`` as in ``Scatterer``."""
        sites = Sites(structure[0])
        restraints = restraints_of(structure[0])
        owner, offset = riders(sites)
        free = np.flatnonzero(owner == np.arange(len(owner)))
        place = np.zeros(len(owner), dtype=np.int64)
        place[free] = np.arange(len(free))
        rows, matrix, vector = site_projectors(sites.xyz, cell, spacegroup)
        b = isotropic_b(structure)
        rides = owner != np.arange(len(owner))
        ratio = np.where(rides, np.clip(b / b[owner], *HYDROGEN_B), 1.0)
        anisotropic = np.array([a.aniso.nonzero() for a in sites.atoms])
        # of an anisotropic atom as much may be taken away as leaves its smallest axis positive
        u = [a.aniso.as_mat33().tolist() if a.aniso.nonzero() else np.eye(3) * i / U_TO_B
             for a, i in zip(sites.atoms, b, strict=True)]  # fmt: skip
        smallest = U_TO_B * np.linalg.eigvalsh(np.array(u).reshape(-1, 3, 3))[:, 0]
        least = np.maximum(b - smallest + LEAST_B, LEAST_B)
        return cls(
            restraints, Neighbours(sites, restraints, cell, spacegroup), atoms_of_structure(structure, table=table),
            torch.from_numpy(free), torch.from_numpy(place[owner]), torch.from_numpy(offset), torch.from_numpy(ratio),
            (torch.from_numpy(rows), torch.from_numpy(matrix), torch.from_numpy(vector)),
            torch.from_numpy(np.where(anisotropic, b, 0.0)), least,
        )  # fmt: skip

    def coordinates(self, moving: torch.Tensor) -> torch.Tensor:
        """(m, 3) of all atoms from (k, 3) of the free ones, those on special positions put back there."""
        xyz = moving[self.owner] + self.offset
        rows, matrix, vector = self.special
        if len(rows):
            xyz = xyz.index_copy(0, rows, torch.einsum("kij,kj->ki", matrix, xyz[rows]) + vector)
        return xyz

    def displacements(self, log_b: torch.Tensor) -> torch.Tensor:
        """(m,) B of all atoms from ln B (k,) of the free ones."""
        return torch.exp(log_b)[self.owner] * self.b_ratio

    def at(self, xyz: torch.Tensor, b: torch.Tensor, cell: gemmi.UnitCell) -> Atoms:
        """The atoms with these coordinates (m, 3) and equivalent isotropic B (m,)."""
        frac = torch.tensor(cell.frac.mat.tolist(), dtype=torch.float64)
        return self.atoms.replace(xyz=xyz @ frac.T, b_iso=(b - self.b_base).to(self.atoms.b_iso.dtype))


def isotropic_b(structure: gemmi.Structure) -> Floats:
    """(m,) isotropic equivalent of each atom's displacement, at least LEAST_B A^2."""
    b = [U_TO_B * a.aniso.trace() / 3 if a.aniso.nonzero() else a.b_iso for a in (c.atom for c in structure[0].all())]
    return np.maximum(np.array(b, dtype=float), LEAST_B)


@dataclass(frozen=True, eq=False)
class State:
    """A model in refinement: coordinates (m, 3) A and equivalent isotropic B (m,) A^2 of all atoms."""

    xyz: Floats
    b: Floats


@dataclass(frozen=True, eq=False)
class Fit:
    """How a state fits the data, all reflections of which it covers: (n,) each.

    f_model : complex, on the scale of the data; k_total; solvent : k_mask F_mask, complex
    alpha, beta : of the error model; from_free : whether the test set gave them
    """

    f_model: NDArray[np.complex128]
    k_total: Floats
    solvent: NDArray[np.complex128]
    r: RFactors
    alpha: Floats
    beta: Floats
    from_free: bool


def explain(
    parts: Parts, state: State, data: Amplitudes, free: NDArray[np.bool_], structure: gemmi.Structure | None, *,
    fold: bool = True,
) -> tuple[State, Fit]:  # fmt: skip
    """Scale a state to the data, with bulk solvent if ``structure`` (whose coordinates are set to the state's) is
    given. With ``fold`` the isotropic fall-off of the scale is moved into B: the state returned has it."""
    s2 = 1 / data.d**2
    with torch.no_grad():
        atoms = parts.at(torch.from_numpy(state.xyz), torch.from_numpy(state.b), data.cell)
        f_calc = structure_factors(atoms, data.hkl, data.cell, data.spacegroup).numpy().astype(np.complex128)
    f_mask = None
    if structure is not None:
        put(structure, state)
        f_mask = mask_factors(exact_mask(structure), data.hkl, data.cell).numpy().astype(np.complex128)
    scales = fit_scales(data.f, f_calc, f_mask, data.hkl, data.cell, data.spacegroup, free)
    slope = np.polyfit(s2, np.interp(s2, scales.knots, scales.log_k), 1)[0] if len(data) > 2 else 0.0
    shift = max(-4 * slope, float(np.max(parts.least_b - state.b)))
    if fold and abs(shift) > LEAST_SHIFT:
        f_calc = f_calc * np.exp(-shift * s2 / 4)
        state = State(state.xyz, np.minimum(state.b + shift, MOST_B))
        scales = fit_scales(data.f, f_calc, f_mask, data.hkl, data.cell, data.spacegroup, free)
    k_total, k_mask = scales.at(data.hkl)
    mask = f_mask if f_mask is not None else np.zeros_like(f_calc)
    f = f_model(f_calc, mask, k_total, k_mask)
    errors = fit_errors(data.f, f, s2, data.epsilon, data.centric, free)
    r = r_factors(data.f, f, data.d, free)
    return state, Fit(f, k_total, k_mask * mask, r, *errors.at(s2, data.epsilon), errors.from_free)


def target_of(fit: Fit, data: Amplitudes, free: NDArray[np.bool_]) -> Target:
    """The target on the work set: likelihood, or least squares where the test set is too small for an error model. Then
    the variances are those of all reflections at that resolution, times what makes them right for the test set."""
    work = ~free & (data.f > 0)
    judged = free if free.any() else work
    inflation = np.mean(((data.f - np.abs(fit.f_model)) ** 2 / fit.beta)[judged])

    def rows(values: NDArray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(values[work]))

    return Target(
        data.hkl[work], data.cell, data.spacegroup, rows(data.f), rows(fit.k_total), rows(fit.solvent),
        rows(fit.alpha) if fit.from_free else None, rows(fit.beta if fit.from_free else fit.beta * inflation),
        rows(data.centric),
    )  # fmt: skip


def positions(structure: gemmi.Structure) -> Floats:
    """(m, 3) coordinates of the first model's atoms in A."""
    return np.array([cra.atom.pos.tolist() for cra in structure[0].all()]).reshape(-1, 3)


def update(structure: gemmi.Structure, parts: Parts, state: State) -> None:
    """Give a structure the coordinates and B of a state; anisotropic tensors get the change of their isotropic part."""
    put(structure, state)
    change = (state.b - parts.b_base.numpy()) / U_TO_B
    for cra, b, du in zip(structure[0].all(), state.b.tolist(), change.tolist(), strict=True):
        cra.atom.b_iso = b
        if cra.atom.aniso.nonzero():
            cra.atom.aniso = cra.atom.aniso.added_kI(du)


def put(structure: gemmi.Structure, state: State) -> None:
    """Give a structure the coordinates of a state."""
    for cra, position in zip(structure[0].all(), state.xyz.tolist(), strict=True):
        cra.atom.pos = gemmi.Position(*position)


def move(parts: Parts, target: Target, state: State, weight: float, steps: int) -> State:
    """Coordinates that lower  weight x target + restraints."""
    contacts = parts.neighbours.contacts(state.xyz)
    b = torch.from_numpy(state.b)

    def energy(x: torch.Tensor) -> torch.Tensor:
        xyz = parts.coordinates(x.view(-1, 3))
        return weight * target(parts.at(xyz, b, target.cell)) + parts.restraints.energy(xyz, contacts)

    moving = lbfgs(energy, state.xyz[parts.free.numpy()].reshape(-1), steps)
    return State(parts.coordinates(torch.from_numpy(moving).view(-1, 3)).numpy(), state.b)


def cool(parts: Parts, target: Target, state: State, weight: float, steps: int) -> State:
    """B that lower  weight x target + restraints."""
    xyz = torch.from_numpy(state.xyz)
    rows = parts.free.numpy()

    def energy(log_b: torch.Tensor) -> torch.Tensor:
        b = parts.displacements(log_b)
        spread = parts.restraints.energy_b(torch.log(b))
        return weight * target(parts.at(xyz, b, target.cell)) + spread

    low, high = np.log(parts.least_b[rows]), np.full(len(rows), np.log(MOST_B))
    start = np.clip(np.log(state.b[rows]), low, high)
    log_b = lbfgs(energy, start, steps, np.column_stack([low, high]))
    return State(state.xyz, parts.displacements(torch.from_numpy(log_b)).numpy())


def lbfgs(
    energy: Callable[[torch.Tensor], torch.Tensor], start: Floats, steps: int, bounds: Floats | None = None
) -> Floats:
    """Parameters (p,) of lower energy after ``steps`` steps; bounds (p, 2)."""
    from scipy.optimize import minimize

    def value_and_gradient(x: Floats) -> tuple[float, Floats]:
        p = torch.from_numpy(x.copy()).requires_grad_()
        value = energy(p)
        (gradient,) = torch.autograd.grad(value, p)
        return value.item(), gradient.numpy()

    found = minimize(
        value_and_gradient, start, jac=True, method="L-BFGS-B", bounds=bounds,
        options={"maxiter": steps, "maxfun": 2 * steps, "maxcor": 20},
    )  # fmt: skip
    return np.asarray(found.x, dtype=np.float64)
