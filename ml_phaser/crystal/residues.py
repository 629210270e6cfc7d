"""The twenty amino acids as tables: their elements, their letters, their atoms in a fixed order."""

from __future__ import annotations

ELEMENTS = ("C", "N", "O", "S")
RESIDUES = "ARNDCQEGHILKMFPSTWYV"
MOST_ATOMS = 14
# Side-chain atoms of each residue, in the order in which the pack's bit mask counts them, after N CA C O.
_SIDE = {
    "G": "", "A": "CB", "S": "CB OG", "C": "CB SG", "T": "CB OG1 CG2", "V": "CB CG1 CG2", "P": "CB CG CD",
    "L": "CB CG CD1 CD2", "I": "CB CG1 CG2 CD1", "N": "CB CG OD1 ND2", "D": "CB CG OD1 OD2",
    "Q": "CB CG CD OE1 NE2", "E": "CB CG CD OE1 OE2", "K": "CB CG CD CE NZ", "R": "CB CG CD NE CZ NH1 NH2",
    "M": "CB CG SD CE", "H": "CB CG ND1 CD2 CE1 NE2", "F": "CB CG CD1 CD2 CE1 CE2 CZ",
    "Y": "CB CG CD1 CD2 CE1 CE2 CZ OH", "W": "CB CG CD1 CD2 NE1 CE2 CE3 CZ2 CZ3 CH2",
}  # fmt: skip
ATOMS = {letter: ("N", "CA", "C", "O", *side.split()) for letter, side in _SIDE.items()}
