"""One simulated crystal: its atoms, its true structure factors, and what was measured of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import gemmi
import numpy as np
from numpy.typing import NDArray

from ml_phaser.crystal.reflections import Amplitudes
from ml_phaser.exchange import columns as col
from ml_phaser.exchange.columns import Candidate, Table
from ml_phaser.exchange.read import amplitudes_from
from ml_phaser.simulate.measure import U_TO_B, Measurement, Sites
from ml_phaser.simulate.rigid import Bodies, Placed

LABELS = ("I", "SIGI", "FreeR_flag")


@dataclass(frozen=True)
class Solvent:
    """Flat bulk solvent: electrons/A^3, A^2, and the share of the cell it fills (0-1)."""

    k_sol: float
    b_sol: float
    fraction: float

    def factors(
        self, mask: NDArray[np.float32], hkl: NDArray[np.int32], cell: gemmi.UnitCell
    ) -> NDArray[np.complex128]:
        """k_sol exp(-B_sol s^2 / 4) F_mask, (n,), in electrons (Phillips 1980; Jiang & Bruenger 1994).

        ``mask`` : (u, v, w) over the cell, 1 where the solvent is
        """
        from ml_phaser.structure_factors.solvent import mask_factors

        stol2 = np.asarray(cell.calculate_1_d2_array(hkl)) / 4
        f = mask_factors(mask.astype(np.float64), hkl, cell).numpy()
        return np.asarray(self.k_sol * np.exp(-self.b_sol * stol2) * f)


@dataclass(frozen=True, eq=False)
class Built:
    """A crystal before it is measured; B factors of ``sites`` are still 0. shape : grid of the whole cell;
    source : fragments it is made of."""

    cell: gemmi.UnitCell
    spacegroup: gemmi.SpaceGroup
    sites: Sites
    shape: tuple[int, int, int]
    source: tuple[str, ...]
    solvent: Solvent | None = None


@dataclass(frozen=True, eq=False)
class Simulated:
    """A simulated crystal.

    Attributes
    ----------
    family, seed : what ``families.make`` was asked for; settings : all values used, drawn ones too
    cell, spacegroup, sites : the crystal
    d_min : A; shape : whole-cell grid for maps, that of the recipe where there is one
    hkl : (n, 3) in gemmi's reciprocal asymmetric unit, all to d_min, without systematic absences
    f : (n,) complex true structure factors in electrons, with those of the solvent where there is one
    measurement : intensities, sigmas, which were measured, free flags
    source : library fragments it is made of, e.g. "1a1x_A_12"; empty for built peptides
    """

    family: str
    seed: int
    settings: Mapping[str, Any]
    cell: gemmi.UnitCell
    spacegroup: gemmi.SpaceGroup
    sites: Sites
    d_min: float
    shape: tuple[int, int, int]
    f: NDArray[np.complex128]
    measurement: Measurement
    solvent: Solvent | None = None
    source: tuple[str, ...] = field(default=())

    @property
    def hkl(self) -> NDArray[np.int32]:
        return self.measurement.hkl

    @property
    def order(self) -> int:
        """Asymmetric units in the cell."""
        return len(list(self.spacegroup.operations()))

    @property
    def atoms_in_cell(self) -> int:
        return self.order * len(self.sites)

    @property
    def volume_per_atom(self) -> float:
        """A^3 of cell for each non-hydrogen atom, waters counted."""
        return float(self.cell.volume / self.atoms_in_cell)


def table(sim: Simulated) -> NDArray[np.float32]:
    """The measured reflections as the MTZ file holds them: H K L I SIGI FreeR_flag, (m, 6)."""
    m = sim.measurement
    return np.column_stack([m.hkl, m.intensity, m.sigma, m.free])[m.measured].astype(np.float32)


def amplitudes(sim: Simulated) -> Amplitudes:
    """What the reader gives of this crystal's MTZ file, by the reader's own code, without the file.

    Raises
    ------
    UserError
        for data the reader would refuse, e.g. fewer than 20 reflections
    """
    rows = table(sim).astype(np.float64)
    intensity, sigma, flag = LABELS
    return amplitudes_from(
        Table(
            where=f"{sim.family} {sim.seed}", format="MTZ", hkl=np.rint(rows[:, :3]).astype(np.int32),
            columns=dict(zip(LABELS, rows[:, 3:].T, strict=True)),
            roles={intensity: col.INTENSITY, sigma: col.SIGMA, flag: col.FREE},
            candidates=(Candidate((intensity,), (sigma,), intensity=True),),
            cell=sim.cell, spacegroup=sim.spacegroup,
        ),
        f"{sim.family} {sim.seed}",
    )  # fmt: skip


def structure(sites: Sites, cell: gemmi.UnitCell, spacegroup: gemmi.SpaceGroup) -> gemmi.Structure:
    """The asymmetric unit as gemmi's, with anisotropic displacements."""
    whole = gemmi.Structure()
    whole.cell, whole.spacegroup_hm = cell, spacegroup.xhm()
    model = gemmi.Model(1)
    xyz = sites.xyz @ np.array(cell.orth.mat).T
    residues: dict[tuple[str, int], list[int]] = {}  # in order; side chains follow the backbone
    for i, key in enumerate(zip(sites.chain, sites.number.tolist(), strict=True)):
        residues.setdefault(key, []).append(i)
    for (name, number), rows in residues.items():
        if not len(model) or model[-1].name != name:
            model.add_chain(gemmi.Chain(name))
        residue = gemmi.Residue()
        residue.name, residue.seqid = sites.residue[rows[0]], gemmi.SeqId(str(number))
        water = residue.name == "HOH"
        residue.het_flag = "H" if water else "A"
        residue.entity_type = gemmi.EntityType.Water if water else gemmi.EntityType.Polymer
        for i in rows:
            residue.add_atom(_atom(sites, i, xyz[i]))
        model[-1].add_residue(residue)
    whole.add_model(model)
    whole.setup_cell_images()
    return whole


def _atom(sites: Sites, i: int, xyz: NDArray[np.float64]) -> gemmi.Atom:
    atom = gemmi.Atom()
    atom.name, atom.element = sites.name[i], gemmi.Element(sites.element[i])
    atom.pos = gemmi.Position(*xyz)
    u = sites.u_overall + np.eye(3) * (sites.b[i] / U_TO_B)
    atom.aniso = gemmi.SMat33f(u[0, 0], u[1, 1], u[2, 2], u[0, 1], u[0, 2], u[1, 2])
    atom.b_iso, atom.occ = float(sites.b[i]), float(sites.occupancy[i])
    return atom


def standard(placed: Placed, bodies: Bodies) -> tuple[gemmi.UnitCell, NDArray[np.float64]]:
    """Cell with rounded parameters and fractional coordinates (n, 3) as a PDB file holds them.

    The molecules, rigid, are turned into the frame of the standard orthogonalisation.
    """
    a, b, c = placed.orth.T
    lengths = [float(np.linalg.norm(x)) for x in (a, b, c)]

    def angle(x: NDArray, y: NDArray) -> float:
        return float(np.rad2deg(np.arccos(x @ y / np.linalg.norm(x) / np.linalg.norm(y))))

    angles = [angle(b, c), angle(a, c), angle(a, b)]
    # Up, not down: rounding must not shorten contacts.
    cell = gemmi.UnitCell(*np.ceil(np.array(lengths) * 1000 - 1e-3) / 1000, *np.round(angles, 2))
    orth = np.array(cell.orth.mat)
    left, _, right = np.linalg.svd(orth @ np.linalg.inv(placed.orth))
    turned = replace(placed, orth=orth, turn=(left @ right) @ placed.turn)
    return cell, np.round(turned.fractional(bodies) @ orth.T, 3) @ np.linalg.inv(orth).T
