"""A small molecule that is known, at 1.5 A: found whole from its sequence, or from a model in another conformation."""

import json
import subprocess
import sys

import gemmi
import pytest
import torch

from ml_phaser.exchange.fragments import read_piece
from ml_phaser.phasing.fragments.pieces import of_user
from ml_phaser.phasing.fragments.refine import bent


@pytest.fixture(scope="module")
def crystal(tmp_path_factory):
    """Measured-looking data of Ala-Ser in P21, and its model."""
    folder = tmp_path_factory.mktemp("molecule")
    run("simulate family ideal sequence AS spacegroup P21 resolution 1.5 seed 3", "hklout", folder / "data.mtz",
        "xyzout", folder / "true.pdb")  # fmt: skip
    return folder


def run(words, *more):
    """The command in a process of its own; its log."""
    command = [sys.executable, "-m", "ml_phaser", *words.split(), *map(str, more)]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def other_shape(folder):
    """The model with every torsion turned by 100 degrees, moved elsewhere, in a cell of its own."""
    structure = gemmi.read_structure(str(folder / "true.pdb"))
    piece = of_user("mine", read_piece(folder / "true.pdb"))
    by = torch.full((1, len(piece.hinges)), 1.75, dtype=torch.float64)
    structure.remove_hydrogens()
    structure.remove_waters()
    xyz = bent(torch.from_numpy(piece.xyz)[None], piece.hinges, by)[0].numpy()
    for cra, x in zip(structure[0].all(), xyz, strict=True):
        cra.atom.pos = gemmi.Position(*(x + 5.0))
    structure.cell, structure.spacegroup_hm = gemmi.UnitCell(30, 30, 30, 90, 90, 90), "P 1"
    structure.write_pdb(str(folder / "other.pdb"))
    return folder / "other.pdb"


@pytest.mark.parametrize("known", ["sequence", "model"])
def test_a_small_molecule_is_found_whole(crystal, known):
    (crystal / "as.seq").write_text(">molecule\nAS\n")
    told = ("seqin", crystal / "as.seq") if known == "sequence" else ("xyzin", other_shape(crystal))
    here = [crystal / f"{known}.{suffix}" for suffix in ("map", "mtz", "pdb", "json")]
    log = run(
        "starts fragments timelimit 120 threads 1",
        "hklin",
        crystal / "data.mtz",
        *told,
        "mapout",
        here[0],
        "xyzout",
        here[2],
    )
    assert ("Begun with: the molecule AS" if known == "sequence" else "Begun with: other.pdb") in log
    placed, true = (gemmi.read_structure(str(path))[0] for path in (here[2], crystal / "true.pdb"))
    true.remove_waters()
    assert placed.count_atom_sites() == true.count_atom_sites()
    run("compare", "hklin", here[1], "xyzin", crystal / "true.pdb", "jsonout", here[3])
    assert json.loads(here[3].read_text())["agreement"]["map_cc"] > 0.8
