"""A small peptide crystal to refine: the true model, a shaken one, and amplitudes that gemmi calculated."""

from __future__ import annotations

from pathlib import Path

import gemmi
import numpy as np
from numpy.typing import NDArray

from ml_phaser.simulate.peptides import THREE_LETTERS, random_peptide

CELL, GROUP = gemmi.UnitCell(13, 16, 18, 90, 104, 90), gemmi.SpaceGroup("P 1 21 1")
D_MIN = 1.7


def true_model(
    sequence: str = "SFTAV", cell: gemmi.UnitCell = CELL, group: gemmi.SpaceGroup = GROUP
) -> gemmi.Structure:
    """A peptide somewhere in the cell, B from 6 to 14, and a water."""
    peptide = random_peptide(np.random.default_rng(5), sequence)
    rng = np.random.default_rng(6)
    st = gemmi.Structure()
    st.cell, st.spacegroup_hm = cell, group.xhm()
    chain, waters = gemmi.Chain("A"), gemmi.Chain("W")
    xyz = peptide.xyz - peptide.xyz.mean(axis=0) + [6, 5, 5]
    for i, letter in enumerate(sequence):
        residue = gemmi.Residue()
        residue.name, residue.seqid = THREE_LETTERS[letter], gemmi.SeqId(i + 1, " ")
        for j in np.flatnonzero(peptide.residue == i):
            residue.add_atom(make_atom(peptide.names[j], peptide.elements[j], xyz[j], 6 + 8 * rng.random()))
        chain.add_residue(residue)
    water = gemmi.Residue()
    water.name, water.seqid = "HOH", gemmi.SeqId(1, " ")
    water.add_atom(make_atom("O", "O", xyz.max(axis=0) + 1.5, 12))
    waters.add_residue(water)
    model = gemmi.Model(1)
    model.add_chain(chain)
    model.add_chain(waters)
    st.add_model(model)
    st.setup_entities()
    return st


def make_atom(name: str, element: str, x: NDArray, b: float) -> gemmi.Atom:
    a = gemmi.Atom()
    a.name, a.element, a.pos, a.b_iso, a.occ = name, gemmi.Element(element), gemmi.Position(*x), b, 1.0
    return a


def shaken(st: gemmi.Structure, rms: float = 0.3, seed: int = 1) -> gemmi.Structure:
    """The model moved by a Gaussian of ``rms`` A, all B at their mean."""
    rng, out = np.random.default_rng(seed), st.clone()
    atoms = [cra.atom for cra in out[0].all()]
    mean_b = float(np.mean([a.b_iso for a in atoms]))
    for a in atoms:
        a.pos, a.b_iso = gemmi.Position(*(np.array(a.pos.tolist()) + rng.normal(0, rms / np.sqrt(3), 3))), mean_b
    return out


def calculated(st: gemmi.Structure, hkl: NDArray) -> NDArray[np.complex128]:
    """F by gemmi, in electrons."""
    calculator = gemmi.StructureFactorCalculatorX(st.cell)
    st.setup_cell_images()
    return np.array([calculator.calculate_sf_from_model(st[0], h) for h in hkl.tolist()])


def write_data(path: Path, st: gemmi.Structure, d_min: float = D_MIN, noise: float = 0.02, flags: bool = True) -> Path:
    """MTZ with F, SIGF (a scale of 2.5 and noise on them), a second, noisier pair F2, SIGF2, and FreeR_flag 0 to 7."""
    group = st.find_spacegroup()
    hkl = gemmi.make_miller_array(st.cell, group, d_min)
    hkl = hkl[~np.asarray(group.operations().systematic_absences(hkl), dtype=bool)]
    rng = np.random.default_rng(2)
    f = 2.5 * np.abs(calculated(st, hkl))
    mtz = gemmi.Mtz(with_base=True)
    mtz.cell, mtz.spacegroup = st.cell, group
    mtz.add_dataset("crystal")
    columns = [hkl]
    for label, share in (("F", noise), ("F2", 5 * noise)):
        mtz.add_column(label, "F")
        mtz.add_column(f"SIG{label}", "Q")
        columns += [
            np.abs(f + rng.normal(0, share * f.mean(), len(f)))[:, None],
            np.full((len(f), 1), share * f.mean()),
        ]
    if flags:
        mtz.add_column("FreeR_flag", "I")
        columns.append(rng.integers(0, 8, len(f))[:, None])
    mtz.set_data(np.column_stack(columns).astype(np.float32))
    mtz.write_to_file(str(path))
    return path


def places(st: gemmi.Structure) -> NDArray[np.float64]:
    """(m, 3) A."""
    return np.array([cra.atom.pos.tolist() for cra in st[0].all()])


def apart(a: gemmi.Structure, b: gemmi.Structure) -> float:
    """Root mean square distance of the same atoms, A."""
    return float(np.sqrt(((places(a) - places(b)) ** 2).sum(axis=1).mean()))
