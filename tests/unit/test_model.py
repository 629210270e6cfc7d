"""Reading models: what is taken from each kind of file, and what is refused in one line."""

import gzip

import gemmi
import pytest

from ml_phaser.errors import UserError
from ml_phaser.exchange.model import LOWEST_B, read_model

PDB = """\
CRYST1   30.000   40.000   50.000  90.00  90.00  90.00 P 21 21 21
MODEL        1
ATOM      1  N   ALA A   1      11.104   6.134   6.504  1.00  0.00           N
ANISOU    1  N   ALA A   1     1000   1000  -1000      0      0      0       N
ATOM      2  CA AALA A   1      11.639   6.071   5.147  0.60 20.00           C
ATOM      3  CA BALA A   1      11.739   6.171   5.247  0.40 20.00           C
ANISOU    3  CA BALA A   1     2000   1500   1800    100      0      0       C
ATOM      4  H   ALA A   1      10.104   6.134   6.504  1.00 25.00           H
ENDMDL
MODEL        2
ATOM      1  N   ALA A   1      12.104   6.134   6.504  1.00 20.00           N
ENDMDL
END
"""
SMALL = """\
data_x
_cell_length_a 8
_cell_length_b 9
_cell_length_c 10
_cell_angle_alpha 90
_cell_angle_beta 105
_cell_angle_gamma 90
_space_group_name_H-M_alt 'P 1 21/c 1'
{extra}
loop_
_atom_site_label
_atom_site_type_symbol
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
_atom_site_occupancy
_atom_site_U_iso_or_equiv
S1 S 0 0 0 1 0.03
C1 C 0.1 0.2 0.3 0.5 ?
"""


def test_macromolecule_is_its_first_model_made_usable(tmp_path):
    st = gemmi.read_pdb_string(PDB)
    (tmp_path / "m.pdb").write_text(PDB)
    (tmp_path / "m.ent.gz").write_bytes(gzip.compress(PDB.encode()))
    st.make_mmcif_document().write_file(str(tmp_path / "m.cif"))
    for name in ("m.pdb", "m.ent.gz", "m.cif"):
        model = read_model(tmp_path / name)
        assert model.is_macromolecule and len(model.structure) == 1 and model.n_atoms == 4
        assert model.spacegroup.xhm() == "P 21 21 21" and model.cell.parameters[:3] == (30, 40, 50)
        atoms = [cra.atom for cra in model.structure[0].all()]
        assert atoms[0].b_iso == LOWEST_B and not atoms[0].aniso.nonzero(), "no atom of negative displacement"
        assert atoms[2].aniso.nonzero() and [a.occ for a in atoms[1:3]] == pytest.approx([0.6, 0.4])
        assert len(model.structure.cell.images) == 3
        assert model.radiation == "X-ray"


@pytest.mark.parametrize(
    ("method", "radiation"),
    [("ELECTRON CRYSTALLOGRAPHY", "electron"), ("NEUTRON DIFFRACTION", "neutron"), ("X-RAY DIFFRACTION", "X-ray")],
)
def test_radiation_of_a_macromolecule(tmp_path, method, radiation):
    (tmp_path / "m.pdb").write_text(f"EXPDTA    {method}\n{PDB}")
    assert read_model(tmp_path / "m.pdb").radiation == radiation


@pytest.mark.parametrize(
    ("extra", "radiation"),
    [
        ("", "X-ray"),
        ("_diffrn_radiation_probe neutron", "neutron"),
        ("_diffrn_radiation_wavelength 0.0251", "electron"),
        ("_diffrn_radiation_wavelength 0.71073", "X-ray"),
    ],
)
def test_small_molecule_keeps_chemical_occupancies(tmp_path, extra, radiation):
    (tmp_path / "m.cif").write_text(SMALL.format(extra=extra))
    model = read_model(tmp_path / "m.cif")
    assert not model.is_macromolecule and model.n_atoms == 2 and model.radiation == radiation
    assert [s.occ for s in model.structure.sites] == [1, 0.5], "also on the inversion centre"
    assert model.structure.sites[1].u_iso > 0


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("m.txt", "x", "not a kind of model"),
        ("m.pdb", "END\n", "holds no atoms"),
        ("m.cif", "data_x\n_cell_length_a 3\n", "holds no atoms"),
        ("m.cif", "no cif", "not a CIF"),
        ("m.ins", "TITL x\nCELL 0.7 8 9 10 90 90 90\nSFAC C\nHKLF 4\n", "holds no atoms"),
        ("m.res", "CELL 0.7 8 9\nC1 1 0.1 0.1 0.1 11 0.05\n", "six numbers"),
        ("m.res", "CELL 0.7 8 9 10 90 90 90\nSFAC C\nC1 3 0.1 0.1 0.1 11 0.05\n", "cannot make sense of 'C1 3"),
        ("m.pdb", "", "the file is empty"),
    ],
)
def test_what_is_no_model_ends_in_one_line(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        read_model(tmp_path / name)
    assert "\n" not in str(caught.value) and name in str(caught.value)
    with pytest.raises(UserError, match="no such file"):
        read_model(tmp_path / "absent.pdb")
