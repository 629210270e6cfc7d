"""Pieces of structure: a user's own to be placed, and those placed, for Coot and other programs."""

from __future__ import annotations

import string
from pathlib import Path

import gemmi
import numpy as np

from ml_phaser.atomic import atomic
from ml_phaser.crystal.amino_acids import THREE_LETTERS
from ml_phaser.crystal.chirality import light
from ml_phaser.crystal.peaks import Atoms
from ml_phaser.errors import UserError
from ml_phaser.exchange.model import read_model
from ml_phaser.outcome import Chain, Fragments

MOST_ATOMS = 2000
HALF = 0.499  # occupancy
B_ISO = 15.0  # A^2, of atoms whose B nobody has refined


def read_piece(path: Path) -> Chain:
    """The first model of a coordinate file (PDB, mmCIF, small-molecule CIF, .ins, .res) without hydrogens, waters and
    alternatives: of macromolecules the first is kept, of small molecules what has an occupancy of a half or more.

    Raises UserError for a file that cannot be read, has no atoms, or more than MOST_ATOMS.
    """
    model = read_model(path)
    if isinstance(model.structure, gemmi.Structure):
        found = _macromolecule(model.structure)
    else:
        sites = [s for s in model.structure.sites if not s.element.is_hydrogen and s.occ >= HALF]
        xyz = np.array([model.cell.orthogonalize(s.fract).tolist() for s in sites]).reshape(-1, 3)
        found = Chain(
            tuple(s.label for s in sites),
            tuple(s.element.name for s in sites),
            np.zeros(len(sites), dtype=int),
            "X",
            xyz,
        )
    if not found.names:
        raise UserError("has no atoms to place", f"xyzin {path}", "a file of a few residues, or of the molecule")
    if len(found.names) > MOST_ATOMS:
        raise UserError(
            f"has {len(found.names)} atoms, {MOST_ATOMS} at most can be placed", f"xyzin {path}",
            "a part of it, or phaser",
        )  # fmt: skip
    return found


def _macromolecule(structure: gemmi.Structure) -> Chain:
    structure.remove_alternative_conformations()
    structure.remove_hydrogens()
    structure.remove_waters()
    names, elements, residue, letters, xyz = [], [], [], "", []
    for chain in structure[0] if len(structure) else ():
        for res in chain:
            letter = gemmi.find_tabulated_residue(res.name).one_letter_code.upper()
            letters += letter if letter in THREE_LETTERS else "X"
            for atom in res:
                names.append(atom.name)
                elements.append(atom.element.name)
                residue.append(len(letters) - 1)
                xyz.append(atom.pos.tolist())
    return Chain(tuple(names), tuple(elements), np.array(residue, dtype=int), letters, np.array(xyz).reshape(-1, 3))


def write_fragments(path: Path, placed: Fragments, cell: gemmi.UnitCell, spacegroup: gemmi.SpaceGroup) -> None:
    """Write the placed chains as PDB, or mmCIF if the suffix says so. Raises UserError where it cannot be written."""
    letters = string.ascii_uppercase + string.ascii_lowercase
    chains = [_chain(letter, chain) for letter, chain in zip(letters, placed.chains, strict=False)]
    _write(path, chains, cell, spacegroup)


def write_atoms(path: Path, atoms: Atoms, cell: gemmi.UnitCell, spacegroup: gemmi.SpaceGroup) -> None:
    """Write free atoms as PDB, or mmCIF if the suffix says so, heaviest first, each a residue UNX of its own; elements
    are guesses by their weight over that of a carbon. Raises UserError where it cannot be written."""
    chain, carbon = gemmi.Chain("A"), light(atoms.weight)
    for i in np.argsort(-atoms.weight, kind="stable"):
        residue, atom = gemmi.Residue(), gemmi.Atom()
        residue.name, residue.seqid, residue.het_flag = "UNX", gemmi.SeqId(len(chain) + 1, " "), "H"
        atom.element = element_of(float(atoms.weight[i]) / carbon)
        atom.name, atom.occ, atom.b_iso = atom.element.name.upper(), 1.0 / int(atoms.images[i]), float(atoms.b[i])
        atom.pos = cell.orthogonalize(gemmi.Fractional(*atoms.frac[i]))
        residue.add_atom(atom)
        chain.add_residue(residue)
    _write(path, [chain], cell, spacegroup)


def element_of(carbons: float) -> gemmi.Element:
    """A guess at the element that scatters as so many carbons; between C, N, O and what is much heavier."""
    for symbol, most in (("C", 1.09), ("N", 1.25), ("O", 1.8)):
        if carbons < most:
            return gemmi.Element(symbol)
    return gemmi.Element(int(np.clip(round(6 * carbons), 11, 92)))


def _write(path: Path, chains: list[gemmi.Chain], cell: gemmi.UnitCell, spacegroup: gemmi.SpaceGroup) -> None:
    structure = gemmi.Structure()
    structure.cell, structure.spacegroup_hm, structure.name = cell, spacegroup.xhm(), "ml_phaser"
    model = gemmi.Model(1)
    for chain in chains:
        model.add_chain(chain)
    structure.add_model(model)
    structure.setup_entities()
    with atomic(path) as part:
        if path.suffix.lower() in (".cif", ".mmcif"):
            structure.make_mmcif_document().write_file(str(part))
        else:
            structure.write_pdb(str(part))


def _chain(name: str, placed: Chain) -> gemmi.Chain:
    chain = gemmi.Chain(name)
    for i, letter in enumerate(placed.letters):
        residue = gemmi.Residue()
        residue.name, residue.seqid = THREE_LETTERS.get(letter, "UNK"), gemmi.SeqId(placed.first + i, " ")
        for k in np.flatnonzero(placed.residue == i):
            atom = gemmi.Atom()
            atom.name, atom.element = placed.names[k], gemmi.Element(placed.elements[k])
            atom.pos, atom.b_iso, atom.occ = gemmi.Position(*placed.xyz[k]), B_ISO, 1.0
            residue.add_atom(atom)
        chain.add_residue(residue)
    return chain
