"""``ml_phaser compare`` and the readers of reference phases."""

import json
import re

import gemmi
import numpy as np
import pytest

from ml_phaser.cli.compare import main
from ml_phaser.crystal.agreement import compare
from ml_phaser.errors import UserError
from ml_phaser.evaluation.phase_files import read_prediction, reference_phases, to_asu
from ml_phaser.evaluation.reference import compare_files, model_reference
from ml_phaser.exchange.model import read_model, read_shelx

CELL, GROUP = gemmi.UnitCell(12.1, 14.3, 16.9, 90, 90, 90), gemmi.SpaceGroup("P 21 21 21")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("compare")


def structure(group=GROUP, cell=CELL, n=14, seed=0):
    """A little molecule of random atoms: anisotropic ones, altlocs at half occupancy, hydrogen, B = 0."""
    rng = np.random.default_rng(seed)
    st = gemmi.Structure()
    st.cell, st.spacegroup_hm = cell, group.xhm()
    residue = gemmi.Residue()
    residue.name, residue.seqid = "LIG", gemmi.SeqId("1")
    for i in range(n):
        atom = gemmi.Atom()
        atom.name, atom.element = f"C{i}", gemmi.Element(["C", "N", "O", "H"][i % 4])
        atom.pos = cell.orthogonalize(gemmi.Fractional(*rng.random(3)))
        atom.b_iso = 0.0 if i == 0 else float(rng.uniform(5, 20))
        atom.occ = 0.5 if i in (1, 2) else 1.0
        atom.altloc = {1: "A", 2: "B"}.get(i, "\0")
        if i in (3, 5):
            atom.aniso = gemmi.SMat33f(0.2, 0.1, 0.15, 0.02, -0.01, 0.03)
        residue.add_atom(atom)
    chain = gemmi.Chain("A")
    chain.add_residue(residue)
    model = gemmi.Model(1)
    model.add_chain(chain)
    st.add_model(model)
    st.setup_entities()
    return st


def write_mtz(path, hkl, f, columns=("FWT", "PHWT"), f_obs=None, cell=CELL, group=GROUP):
    mtz = gemmi.Mtz(with_base=True)
    mtz.cell, mtz.spacegroup = cell, group
    mtz.add_dataset("crystal")
    data = [hkl]
    if f_obs is not None:
        mtz.add_column("FP", "F")
        mtz.add_column("SIGFP", "Q")
        data += [f_obs[:, None], 0.01 * f_obs[:, None]]
    mtz.add_column(columns[0], "F")
    mtz.add_column(columns[1], "P")
    mtz.set_data(np.column_stack([*data, np.abs(f), np.rad2deg(np.angle(f))]).astype(np.float32))
    mtz.write_to_file(str(path))
    return path


@pytest.fixture(scope="module")
def files(folder):
    """A model, perfect phases at another origin and hand (with an unphased reflection), and blurred ones."""
    structure().write_pdb(str(folder / "model.pdb"))
    structure().make_mmcif_document().write_file(str(folder / "model.cif"))
    hkl = gemmi.make_miller_array(CELL, GROUP, 1.6)
    f = model_reference(folder / "model.pdb", hkl, CELL, GROUP).f
    rng = np.random.default_rng(2)
    f_obs = np.abs(f) * np.exp(rng.normal(0, 0.05, len(hkl)))
    moved = np.conj(f) * np.exp(2j * np.pi * hkl @ np.array([0.0, 0.5, 0.5]))  # of x -> -x: centre at 1/2 0 0
    moved[17] = np.nan
    write_mtz(folder / "pred.mtz", hkl, moved, f_obs=f_obs)
    write_mtz(folder / "other.mtz", hkl, f, columns=("FC", "PHIC"))
    noisy = f * np.exp(1j * rng.normal(0, 0.8, len(hkl)) * ~GROUP.operations().centric_flag_array(hkl))
    write_mtz(folder / "noisy.mtz", hkl, noisy, columns=("MYF", "MYPHI"))
    return folder


def run(capsys, *argv):
    status = main([str(x) for x in argv])
    out, err = capsys.readouterr()
    return status, out, err


def number(pattern, text):
    return float(re.search(pattern, text)[1])


@pytest.mark.parametrize("style", ["pairs", "dashes", "equals"])
@pytest.mark.parametrize("model", ["model.pdb", "model.cif"])
def test_perfect_phases_of_the_other_hand(files, capsys, style, model):
    p, m, j = files / "pred.mtz", files / model, files / "run.json"
    argv = {
        "pairs": ["HKLIN", p, "xyzin", m, "JsonOut", j],
        "dashes": ["--hklin", p, "--xyzin", m, "--jsonout", j],
        "equals": [f"--hklin={p}", f"--xyzin={m}", f"--jsonout={j}"],
    }[style]
    status, out, err = run(capsys, *argv)
    assert (status, err) == (0, "")
    record = json.loads(j.read_text())
    agreement = record["agreement"]
    assert agreement["map_cc"] > 0.999 and agreement["phase_error"] < 1.0
    assert agreement["inverted"] and agreement["hand_margin"] > 0.1
    assert 0.0 < agreement["chance_cc"] < 0.4
    assert 0.9 < record["ceiling"] < 0.9999
    assert number(r"Map correlation +([\d.]+)", out) == pytest.approx(agreement["map_cc"], abs=6e-4)
    assert number(r"Mean phase error +([\d.]+)", out) == pytest.approx(agreement["phase_error"], abs=0.06)
    assert "INVERTED" in out and "random phases reach" in out and "Origin shift" in out
    assert out.count("\n") >= 10 + len(agreement["shells"])


def test_second_mtz_labels_and_choice(files, capsys):
    status, out, _ = run(capsys, "hklin", files / "pred.mtz", "hklref", files / "other.mtz")
    assert status == 0 and "columns FC, PHIC" in out and number(r"Map correlation +([\d.]+)", out) > 0.999
    base = ("hklref", files / "noisy.mtz", "hklin", files / "other.mtz", "LABIN", "FC", "PHIC")
    _, sole, _ = run(capsys, *base)
    assert "columns MYF, MYPHI" in sole, "the only amplitude and phase pair is taken, and named"
    _, named, _ = run(capsys, *base, "labref", "F=MYF,PHI=MYPHI")
    assert named == sole
    assert 0.5 < number(r"Map correlation +([\d.]+)", named) < 0.95
    status, _, err = run(capsys, *base, "labref", "MYF,NOPHASE")
    assert status == 1 and "no column NOPHASE" in err and "MYPHI" in err


def test_resolution_limits_what_is_compared(files, capsys):
    argv = ("hklin", files / "pred.mtz", "xyzin", files / "model.pdb")
    _, whole, _ = run(capsys, *argv)
    _, part, _ = run(capsys, *argv, "RESOLUTION", "8,2.5")
    _, high, _ = run(capsys, *argv, "RESOLUTION", "2.5")
    d = gemmi.make_miller_array(CELL, GROUP, 1.6)
    d = np.delete(CELL.calculate_d_array(d), 17)  # the one without a phase

    def last(text):
        return [float(x) for x in text.strip().splitlines()[-1].split()]

    assert last(whole)[2] == len(d)
    assert last(part)[2] == np.sum((d <= 8) & (d >= 2.5)) and last(part)[0] <= 8 and last(part)[1] >= 2.5
    assert last(high)[2] == np.sum(d >= 2.5)


def test_hand_is_left_alone_on_request(files, capsys):
    argv = ("hklin", files / "pred.mtz", "xyzin", files / "model.pdb", "freehand")
    _, free, _ = run(capsys, *argv, "yes")
    _, held, _ = run(capsys, *argv, "NO")
    assert "INVERTED" in free and "not tried" in held
    assert number(r"Map correlation +([\d.]+)", held) < 0.8


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["hklin", "pred.mtz"], "either XYZIN"),
        (["xyzin", "model.pdb"], "HKLIN is missing"),
        (["hklin", "pred.mtz", "xyzin", "model.pdb", "hklref", "other.mtz"], "either XYZIN"),
        (["hklin", "pred.mtz", "xyzin"], "has no value"),
        (["hklin", "pred.mtz", "hklin", "pred.mtz"], "given twice"),
        (["hklin", "pred.mtz", "xyzin", "model.pdb", "labels", "x"], "not an option"),
        (["hklin", "pred.mtz", "xyzin", "model.pdb", "labin", "FWT"], "amplitude and a phase"),
        (["hklin", "pred.mtz", "xyzin", "model.pdb", "labin", "FP,SIGFP"], "not amplitude and phase"),
        (["hklin", "pred.mtz", "xyzin", "model.pdb", "labref", "FC,PHIC"], "HKLREF"),
        (["hklin", "pred.mtz", "xyzin", "model.pdb", "resolution", "low"], "limits in A"),
        (["hklin", "pred.mtz", "xyzin", "model.pdb", "resolution", "900,800"], "no reflections"),
        (["hklin", "pred.mtz", "xyzin", "model.pdb", "freehand", "maybe"], "yes or no"),
        (["hklin", "absent.mtz", "xyzin", "model.pdb"], "no such file"),
        (["hklin", "model.pdb", "xyzin", "model.pdb"], "cannot be read as MTZ"),
        (["hklin", "pred.mtz", "xyzin", "absent.pdb"], "no such file"),
        (["hklin", "pred.mtz", "xyzin", "empty.pdb"], "no atoms"),
        (["hklin", "pred.mtz", "xyzin", "broken.cif"], "not a CIF"),
        (["hklin", "pred.mtz", "xyzin", "wrong_cell.pdb"], "cell"),
        (["hklin", "pred.mtz", "xyzin", "wrong_group.pdb"], "space group P 21 21 2 is not"),
        (["hklin", "other.mtz", "xyzin", "model.pdb"], "no column FWT"),
        (["hklin", "pred.mtz", "xyzin", "model.pdb", "jsonout", "pred.mtz"], "overwrite"),
        (["hklin", "pred.mtz", "xyzin", "model.pdb", "jsonout", "nowhere/x.json"], "cannot be written"),
    ],
)
def test_mistakes_end_in_one_line(files, capsys, monkeypatch, argv, message):
    monkeypatch.chdir(files)
    (files / "empty.pdb").write_text("CRYST1   12.100   14.300   16.900  90.00  90.00  90.00 P 21 21 21\nEND\n")
    (files / "broken.cif").write_text("this is no CIF")
    structure(cell=gemmi.UnitCell(13, 14.3, 16.9, 90, 90, 90)).write_pdb("wrong_cell.pdb")
    structure(group=gemmi.SpaceGroup("P 21 21 2")).write_pdb("wrong_group.pdb")
    before = (files / "pred.mtz").read_bytes()
    status, out, err = run(capsys, *argv)
    assert status == 1 and out == ""
    assert err.startswith("ml_phaser compare: ") and err.count("\n") == 1
    assert message in err
    assert (files / "pred.mtz").read_bytes() == before


def test_help(capsys):
    status, out, _ = run(capsys, "--help")
    assert status == 0 and "XYZIN" in out and "FREEHAND" in out
    status, out, err = run(capsys)
    assert status == 1 and out == "" and "usage" in err


def test_mirror_image_group_is_named(tmp_path):
    cell = gemmi.UnitCell(14, 14, 20, 90, 90, 90)
    structure(group=gemmi.SpaceGroup("P 41 21 2"), cell=cell).write_pdb(str(tmp_path / "m.pdb"))
    hkl = gemmi.make_miller_array(cell, gemmi.SpaceGroup("P 43 21 2"), 3)
    with pytest.raises(UserError, match="mirror images of each other; phase the data in P 41 21 2"):
        model_reference(tmp_path / "m.pdb", hkl, cell, gemmi.SpaceGroup("P 43 21 2"))


def test_odd_atoms_count_and_radiation_matters(files):
    hkl = gemmi.make_miller_array(CELL, GROUP, 1.6)
    f = model_reference(files / "model.pdb", hkl, CELL, GROUP).f
    assert np.isfinite(f).all(), "B = 0 is raised"
    for radiation in ("electron", "neutron"):
        other = model_reference(files / "model.pdb", hkl, CELL, GROUP, radiation=radiation)
        assert radiation in other.taken
        assert not np.allclose(other.f, f, rtol=0.2)


def test_solvent_and_scale_are_fitted_to_measured_amplitudes(tmp_path):
    """A sparse crystal with solvent at k_sol 0.4, B_sol 60 and a scale of 5: the fit gets them back."""
    cell, group = gemmi.UnitCell(30, 33, 36, 90, 90, 90), GROUP
    st = structure(cell=cell, n=150)
    for cra in st[0].all():
        cra.atom.occ, cra.atom.altloc, cra.atom.b_iso = 1.0, "\0", 15.0
        cra.atom.pos = gemmi.Position(*(0.45 * np.array(cra.atom.pos.tolist())))
    st.write_pdb(str(tmp_path / "m.pdb"))
    hkl = gemmi.make_miller_array(cell, group, 2.0)
    plain = model_reference(tmp_path / "m.pdb", hkl, cell, group)
    assert "solvent at k_sol 0.35" in plain.taken
    mask = gemmi.FloatGrid()
    mask.setup_from(st, spacing=2.0 / 3)
    gemmi.SolventMasker(gemmi.AtomicRadiiSet.Cctbx).put_mask_on_float_grid(mask, st[0])
    f_mask = gemmi.transform_map_to_f_phi(mask).get_value_by_hkl(hkl)
    stol2 = 0.25 / cell.calculate_d_array(hkl) ** 2
    protein = plain.f - 0.35 * np.exp(-46 * stol2) * f_mask
    truth = 5 * np.exp(-4 * stol2) * (protein + 0.4 * np.exp(-60 * stol2) * f_mask)
    f_obs = np.abs(truth)
    f_obs[::7] = np.nan
    found = model_reference(tmp_path / "m.pdb", hkl, cell, group, f_obs=f_obs)
    assert number(r"k_sol ([\d.]+)", found.taken) == pytest.approx(0.4, abs=0.03)
    assert number(r"B_sol ([\d.]+)", found.taken) == pytest.approx(60, abs=6)
    assert np.sum(np.abs(found.f - truth)) < 0.02 * np.sum(np.abs(truth))


def test_reflections_move_to_the_asymmetric_unit_with_their_phases():
    """P3121, indices scattered over equivalents: gemmi's own reader of MTZ files does the same."""
    group, cell = gemmi.SpaceGroup("P 31 2 1"), gemmi.UnitCell(12, 12, 15, 90, 90, 120)
    hkl = gemmi.make_miller_array(cell, gemmi.SpaceGroup("P 1"), 2.5)
    rng = np.random.default_rng(1)
    hkl = hkl[rng.permutation(len(hkl))[:60]] * rng.choice([-1, 1], (60, 1))
    f = rng.normal(size=60) + 1j * rng.normal(size=60)
    mtz = gemmi.Mtz(with_base=True)
    mtz.cell, mtz.spacegroup = cell, group
    mtz.add_dataset("x")
    mtz.add_column("F", "F")
    mtz.add_column("P", "P")
    mtz.set_data(np.column_stack([hkl, np.abs(f), np.rad2deg(np.angle(f))]).astype(np.float32))
    mtz.ensure_asu()
    table = np.array(mtz.array)
    expected: dict = {}
    for h, k, i, amplitude, phase in table:
        expected.setdefault((int(h), int(k), int(i)), []).append(amplitude * np.exp(1j * np.deg2rad(phase)))
    ours, values = to_asu(hkl.astype(np.int32), f, group)
    assert {tuple(h) for h in ours.tolist()} == set(expected)
    for h, value in zip(ours.tolist(), values, strict=True):
        assert abs(value - np.mean(expected[tuple(h)])) < 1e-4


RES = """TITL test in P21/c
CELL 0.71073 8.0 9.0 10.0 90 105 90
ZERR 4 0 0 0 0 0 0
LATT 1
SYMM -x, 0.5+y, 0.5-z
SFAC C H O
UNIT 8 8 4
FVAR 0.5 0.7
REM  not an atom 1 2 3 4
C1    1  0.1000  0.2000  0.3000  11.00000  0.02000  0.03000 =
      0.04000  0.00100  0.00200  0.00300
AFIX 43
H1    2  0.1500  0.2500  0.3500  11.00000 -1.20000
AFIX 0
O1    3  0.4000  0.1000 10.25000  21.00000  0.03000
O2    3  0.4500  0.1500  0.2800 -21.00000  0.03000
HKLF 4
REM after
END
C9    1  0.9 0.9 0.9 11.0 0.05
"""


def test_shelx_files_say_the_same_as_a_cif(tmp_path):
    small = read_shelx(RES)
    assert [s.label for s in small.sites] == ["C1", "H1", "O1", "O2"]
    assert [s.element.name for s in small.sites] == ["C", "H", "O", "O"]
    assert [round(s.occ, 6) for s in small.sites] == [1, 1, 0.7, 0.3]
    assert small.sites[1].u_iso == pytest.approx(1.2 * 0.03)
    assert small.sites[2].fract.z == pytest.approx(0.25)
    aniso = small.sites[0].aniso
    assert (aniso.u23, aniso.u13, aniso.u12) == pytest.approx((0.001, 0.002, 0.003))
    assert small.spacegroup.xhm() == "P 1 21/c 1"
    cif = """data_x
_cell_length_a 8
_cell_length_b 9
_cell_length_c 10
_cell_angle_alpha 90
_cell_angle_beta 105
_cell_angle_gamma 90
_space_group_name_H-M_alt 'P 1 21/c 1'
loop_
_atom_site_label
_atom_site_type_symbol
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
_atom_site_occupancy
_atom_site_U_iso_or_equiv
_atom_site_adp_type
C1 C 0.1 0.2 0.3 1 0.03 Uani
H1 H 0.15 0.25 0.35 1 0.036 Uiso
O1 O 0.4 0.1 0.25 0.7 0.03 Uiso
O2 O 0.45 0.15 0.28 0.3 0.03 Uiso
loop_
_atom_site_aniso_label
_atom_site_aniso_U_11
_atom_site_aniso_U_22
_atom_site_aniso_U_33
_atom_site_aniso_U_23
_atom_site_aniso_U_13
_atom_site_aniso_U_12
C1 0.02 0.03 0.04 0.001 0.002 0.003
"""
    (tmp_path / "m.res").write_text(RES)
    (tmp_path / "m.cif").write_text(cif)
    cell, group = gemmi.UnitCell(8, 9, 10, 90, 105, 90), gemmi.SpaceGroup("P 1 21/c 1")
    hkl = gemmi.make_miller_array(cell, group, 1.0)
    one, other = (model_reference(tmp_path / f"m.{x}", hkl, cell, group).f for x in ("res", "cif"))
    np.testing.assert_allclose(one, other, atol=1e-6 * np.abs(other).max())
    (tmp_path / "embedded.cif").write_text(f"data_x\n_shelx_res_file\n;\n{RES};\n")
    embedded = read_model(tmp_path / "embedded.cif")
    assert embedded.n_atoms == 4 and embedded.spacegroup.xhm() == "P 1 21/c 1" and not embedded.is_macromolecule
    with pytest.raises(UserError, match="no atoms"):
        (tmp_path / "bare.ins").write_text(RES.split("C1 ")[0] + "HKLF 4\nEND\n")
        model_reference(tmp_path / "bare.ins", hkl, cell, group)


@pytest.mark.parametrize("style", ["polar", "cartesian"])
def test_cif_with_calculated_phases(tmp_path, style):
    hkl = gemmi.make_miller_array(CELL, GROUP, 2.5)
    rng = np.random.default_rng(0)
    f = rng.normal(size=len(hkl)) + 1j * rng.normal(size=len(hkl))
    pair = ("F_calc", "phase_calc") if style == "polar" else ("A_calc", "B_calc")
    values = (np.abs(f), np.rad2deg(np.angle(f))) if style == "polar" else (f.real, f.imag)
    rows = "\n".join(f"{h[0]} {h[1]} {h[2]} {a:.5f} {b:.5f}" for h, a, b in zip(hkl, *values, strict=True))
    head = "\n".join(
        f"_cell_{name} {x}"
        for name, x in zip(
            ("length_a", "length_b", "length_c", "angle_alpha", "angle_beta", "angle_gamma"),
            CELL.parameters,
            strict=True,
        )
    )
    tags = "\n".join(f"_refln_{x}" for x in ("index_h", "index_k", "index_l", *pair))
    path = tmp_path / "x.fcf"
    path.write_text(f"data_x\n{head}\n_symmetry_space_group_name_H-M 'P 21 21 21'\nloop_\n{tags}\n{rows}\n")
    found = reference_phases(path, hkl, CELL, GROUP)
    assert pair[0] in found.taken and pair[1] in found.taken
    np.testing.assert_allclose(found.f, f, atol=1e-3)
    extra = np.array([[30, 30, 30]], dtype=np.int32)
    assert np.isnan(reference_phases(path, extra, CELL, GROUP).f).all()
    with pytest.raises(UserError, match="cell"):
        reference_phases(path, hkl, gemmi.UnitCell(13, 14.3, 16.9, 90, 90, 90), GROUP)


def test_measured_amplitudes_are_found_beside_the_prediction(files):
    found = read_prediction(files / "pred.mtz")
    assert "measured FP" in found.taken and found.f_obs is not None and len(found.f_obs) == len(found.f)
    assert read_prediction(files / "other.mtz", ("FC", "PHIC")).f_obs is None
    assert np.isnan(compare_files(files / "other.mtz", files / "model.pdb", labels=("FC", "PHIC")).ceiling)


@pytest.mark.shared
def test_refmac_and_shelxl_phases_are_reproduced(shared_data):
    """2UUI's FC from REFMAC beyond its solvent's reach (the mask differs), and SHELXL's phases in P-1."""
    folder = shared_data / "diffraction"
    result = compare_files(
        folder / "2uui" / "2uui_sigmaa.mtz",
        folder / "2uui" / "2UUI.pdb",
        labels=("FC", "PHIC"),
        resolution=(3.0, 2.0),
    )
    assert result.agreement.map_cc > 0.999 and result.agreement.phase_error < 1.0
    model, fcf = folder / "ntd106c_p-1" / "P-1.cif", folder / "ntd106c_p-1" / "P-1.fcf"
    small = gemmi.read_small_structure(str(model))
    group = gemmi.SpaceGroup("P -1")
    hkl = gemmi.make_miller_array(small.cell, group, 0.8)
    ours = model_reference(model, hkl, small.cell, group)
    theirs = reference_phases(fcf, hkl, small.cell, group)
    have = np.isfinite(theirs.f)
    assert have.mean() > 0.95
    agreement = compare(hkl[have], ours.f[have], theirs.f[have], small.cell, group, repeats=0)
    assert agreement.map_cc > 0.999 and max(agreement.origin_shift) == 0


def test_atoms_on_symmetry_elements_weigh_the_same_in_shelx_and_cif(tmp_path):
    """An atom on the inversion centre: 10.5 in SHELX, 1 in a CIF, and half of it in each asymmetric unit."""
    head = "TITL x\nCELL 0.71073 8.0 9.0 10.0 90 105 90\nLATT 1\nSYMM -x, 0.5+y, 0.5-z\nSFAC C S\nFVAR 1\n"
    (tmp_path / "m.res").write_text(head + "S1 2 10.0 10.0 10.0 10.5 0.03\nC1 1 0.1 0.2 0.3 11.0 0.03\nEND\n")
    model = read_model(tmp_path / "m.res")
    assert [s.occ for s in model.structure.sites] == pytest.approx([1, 1])
    hkl = np.array([[0, 0, 2], [1, 1, 1], [2, 0, 0]], dtype=np.int32)
    f = model_reference(tmp_path / "m.res", hkl, model.cell, model.spacegroup).f
    stol2 = 0.25 * model.cell.calculate_1_d2_array(hkl)
    expected = np.zeros(3, dtype=complex)
    for symbol, place, share in (("S", (0, 0, 0), 0.5), ("C", (0.1, 0.2, 0.3), 1.0)):
        fall = np.exp(-8 * np.pi**2 * 0.03 * stol2)
        size = np.array([gemmi.Element(symbol).it92.calculate_sf(x) for x in stol2]) * fall * share
        for op in model.spacegroup.operations():
            expected += size * np.exp(2j * np.pi * (hkl @ np.array(op.apply_to_xyz(list(place)))))
    np.testing.assert_allclose(f, expected, atol=1e-4)
