"""What Phenix's own code makes of the files of a solved run: maps, phases, figures of merit, tables of the log."""

import io
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import iotbx.mtz
import numpy as np
import pytest
from cctbx import crystal, maptbx, miller, sgtbx
from iotbx.data_plots import import_ccp4i_logfile
from iotbx.map_manager import map_manager
from iotbx.reflection_file_utils import reflection_file_server
from mmtbx.command_line import density_modification

import gemmi  # isort: skip

from ml_phaser.crystal.maps import symmetric_shape, write_map

ROOT = Path(__file__).resolve().parents[2]
HL = "HLA,HLB,HLC,HLD"


def phase(folder, hklin, *words):
    """A run of the command; its files and log."""
    command = [sys.executable, "-m", "ml_phaser", "hklin", str(hklin), "mapout", f"{folder}/out.map", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL)
    arrays = iotbx.mtz.object(f"{folder}/out.mtz").as_miller_arrays()
    return SimpleNamespace(
        log=done.stdout, map=f"{folder}/out.map", mtz=f"{folder}/out.mtz",
        record=json.loads((folder / "out.json").read_text()), arrays={a.info().label_string(): a for a in arrays},
    )  # fmt: skip


@pytest.fixture(scope="module")
def peptide(tmp_path_factory):
    """The example, solved."""
    run = phase(tmp_path_factory.mktemp("run"), ROOT / "examples" / "peptide.mtz", "timelimit", "20")
    assert run.record["verdict"]["word"] == "solved"
    return run


@pytest.fixture(scope="module", params=["peptide", "ntd106c_p-1/P-1.fcf", "cod2012000/2012000.hkl"])
def solved(request, peptide, tmp_path_factory):
    """The example, and measured data: centrosymmetric P -1, and P 1 21 1."""
    if request.param == "peptide":
        return peptide
    data = request.getfixturevalue("shared_data") / "diffraction" / request.param
    run = phase(tmp_path_factory.mktemp("run"), data, "timelimit", "30")
    assert run.record["verdict"]["word"] == "solved"
    return run


# ------------------------------------------------------------------------------------------ one truth in all columns


def test_columns_tell_one_story(solved):
    """cctbx integrates the distributions: figures of merit and phases are those of the columns beside them."""
    fom, phib, hl = solved.arrays["FOM"], solved.arrays["PHIB"], solved.arrays[HL]
    centroid = hl.phase_integrals().common_set(fom).data().as_numpy_array()
    weight = fom.data().as_numpy_array()
    assert len(centroid) == fom.size()
    np.testing.assert_allclose(np.abs(centroid), weight, atol=6e-3)
    told = np.exp(1j * np.deg2rad(phib.common_set(fom).data().as_numpy_array()))
    known = weight > 0.05
    assert np.abs(np.angle(centroid * np.conj(told))[known]).max() < np.deg2rad(0.5)
    shells = solved.record["shells"]
    mean = sum(row["n"] * row["fom"] for row in shells) / sum(row["n"] for row in shells)
    assert weight.mean() == pytest.approx(mean, abs=1e-4)


def test_map_is_that_of_the_coefficients(solved):
    """cctbx's transform of FWT and PHWT on the map's grid."""
    density = map_manager(solved.map)
    values = density.map_data().as_numpy_array()
    coefficients = solved.arrays["FWT,PHWT"].expand_to_p1()
    grid = maptbx.crystal_gridding(
        coefficients.unit_cell(), space_group_info=coefficients.space_group_info(), pre_determined_n_real=values.shape
    )
    calculated = miller.fft_map(grid, coefficients).apply_volume_scaling().real_map_unpadded().as_numpy_array()
    np.testing.assert_allclose(values, calculated, atol=1e-4 * np.abs(values).max())


def test_labels_phenix_looks_for(solved):
    """Data, free flags, map coefficients and phases are found without being named."""
    mtz = iotbx.mtz.object(solved.mtz)
    types = {column.label(): column.type() for column in mtz.columns()}
    wanted = {"FWT": "F", "PHWT": "P", "PHIB": "P", "FOM": "W", "HLA": "A", "HLB": "A", "HLC": "A", "HLD": "A"}
    assert wanted.items() <= types.items()
    arrays = mtz.as_miller_arrays()
    complex_ones = [a for a in arrays if a.is_complex_array() and not a.info().label_string().startswith("FC")]
    assert [a.info().label_string() for a in complex_ones] == ["FWT,PHWT"]
    assert [a.info().label_string() for a in arrays if a.is_hendrickson_lattman_array()] == [HL]
    server = reflection_file_server(
        crystal_symmetry=complex_ones[0].crystal_symmetry(),
        reflection_files=[iotbx.reflection_file_reader.any_reflection_file(solved.mtz)],
    )
    phases = server.get_experimental_phases(None, None, True, "", "")
    assert phases.info().label_string() == HL


def test_free_flags_are_found(peptide):
    data = peptide.arrays["FreeR_flag"]
    server = reflection_file_server(
        crystal_symmetry=data.crystal_symmetry(),
        reflection_files=[iotbx.reflection_file_reader.any_reflection_file(peptide.mtz)],
    )
    flags, value = server.get_r_free_flags(None, None, None, False, "")
    assert flags.info().label_string() == "FreeR_flag" and value == 0
    assert 0.03 < (flags.data() == value).count(True) / flags.size() < 0.07


def test_graphs_of_the_log(solved):
    tables = {t.title: t for t in import_ccp4i_logfile(log_lines=solved.log.splitlines())}
    assert len(tables) == solved.log.count("$TABLE") >= 3
    assert sum(t.n_graphs for t in tables.values()) == solved.log.count(":A:")
    for table in tables.values():
        assert table.n_rows > 0 and all(len(column) == table.n_rows for column in table.data)
        assert all(0 <= i < table.n_cols for which in table.graph_columns for i in which)
    fom = tables["FOM by resolution"]
    column = dict(zip(fom.column_labels, fom.data, strict=True))
    assert column["FOM"] == pytest.approx([row["fom"] for row in solved.record["shells"]], abs=1e-4)


# ------------------------------------------------------------------------------------------------- the next program


def true_cosine(coefficients):
    """Mean cosine of phase errors against the true model of the example, at the best origin and hand.

    The origin of P 1 21 1 is free along y; elsewhere it may be shifted by half a cell.
    """
    structure = gemmi.read_structure(str(ROOT / "examples" / "peptide.pdb"))
    hkl = np.array(coefficients.indices())
    sites = [(a.pos, a.b_iso, a.element.atomic_number) for a in (cra.atom for cra in structure[0].all())]
    xyz = np.array([structure.cell.fractionalize(pos).tolist() for pos, _, _ in sites])
    s2 = 1 / (4 * np.array(coefficients.d_spacings().data()) ** 2)
    true = np.zeros(len(hkl), complex)
    for op in structure.find_spacegroup().operations():
        moved = xyz @ (np.array(op.rot) / op.DEN).T + np.array(op.tran) / op.DEN
        for position, (_, b, z) in zip(moved, sites, strict=True):
            true += z * np.exp(-b * s2) * np.exp(2j * np.pi * (hkl @ position))
    ours = coefficients.data().as_numpy_array()
    weight = np.abs(ours) / np.abs(ours).sum()
    best = -1.0
    for hand in (true, np.conj(true)):
        turn = np.exp(1j * np.angle(ours * np.conj(hand)))
        for x in (0, 0.5):
            for z in (0, 0.5):
                for y in np.arange(0, 1, 1 / 120):
                    shift = np.exp(2j * np.pi * (hkl @ np.array([x, y, z])))
                    best = max(best, float((weight * (turn * shift).real).sum()))
    return best


def test_density_modification_goes_on(peptide, tmp_path):
    """mmtbx takes data and Hendrickson-Lattman coefficients from our MTZ and runs; what it gets is right."""
    cell, group = peptide.record["cell"], peptide.record["spacegroup"]
    (tmp_path / "run.eff").write_text(f"""
density_modification {{
  input {{
    reflection_data {{ file_name = {peptide.mtz}
      labels = I,SIGI }}
    experimental_phases {{ file_name = {peptide.mtz}
      labels = {HL} }}
    unit_cell = {" ".join(map(str, cell))}
    space_group = "{group}"
  }}
  solvent_fraction = 0.2
  initial_steps = 2
  shrink_steps = 2
  final_steps = 2
  output {{ mtz {{ file_name = {tmp_path}/dm.mtz }} }}
}}
""")
    result = density_modification.run([str(tmp_path / "run.eff")], log=io.StringIO())
    first, last = result.stats.get_cycle_stats(0), result.stats.get_cycle_stats(-1)
    assert first.fom == pytest.approx(peptide.arrays["FOM"].data().as_numpy_array().mean(), abs=2e-3)
    assert 0 < last.fom < 1 and last.mean_delta_phi_initial < 40  # it stays near what it was given
    modified = {a.info().label_string(): a for a in iotbx.mtz.object(f"{tmp_path}/dm.mtz").as_miller_arrays()}
    before, after = true_cosine(peptide.arrays["FWT,PHWT"]), true_cosine(modified["FWT,PHWT"])
    assert before > 0.8 and after > 0.7


# ------------------------------------------------------------------------------------------- maps in every setting


def test_maps_are_read_in_the_group_they_name(tmp_path):
    """The whole cell, in every setting CCP4 has a number for: never refused, never taken for another group."""
    seen = set()
    for ours in (g for g in gemmi.spacegroup_table() if g.ccp4):
        group = sgtbx.space_group(ours.hall)
        info = sgtbx.space_group_info(group=group)
        cell = gemmi.UnitCell(*info.any_compatible_unit_cell(volume=500).parameters())
        shape = symmetric_shape(cell, ours, 4.0, 2.0)
        write_map(tmp_path / "m.map", np.ones(shape), cell, ours)
        read = map_manager(str(tmp_path / "m.map"))
        found = read.unit_cell_crystal_symmetry().space_group()
        assert found in (group, sgtbx.space_group("P 1")), ours.xhm()
        assert read.map_data().all() == shape
        assert crystal.symmetry(cell.parameters, "P 1").unit_cell().is_similar_to(read.unit_cell())
        seen.add(found == group)
    assert seen == {True, False}
