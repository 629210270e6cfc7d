"""The main job from command to files, the files read by other programs, and every parameter's effect on them."""

import csv
import html
import io
import json
import math
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from types import SimpleNamespace

import gemmi
import numpy as np
import pytest
from sample_outcome import GROUP, structure_factors
from scipy.spatial.transform import Rotation

from ml_phaser.cli import main
from ml_phaser.parameters import PARAMETERS

CELL = gemmi.UnitCell(6, 7, 8, 90, 90, 90)
D_MIN = 0.9
QUICK = ["trials", "1", "timelimit", "5", "threads", "1"]
OTHER_SET = ["labin", "FP=G SIGFP=SIGG"]


def write_data(path, group=GROUP, cell=CELL, d_min=D_MIN, random=False, seed=1):
    """Amplitudes of five atoms as F and, of five others, as G; or random ones of no structure at all."""
    hkl = np.asarray(gemmi.make_miller_array(cell, group, d_min), dtype=np.int32)
    rng = np.random.default_rng(seed)
    if random:
        sets = [rng.rayleigh(10, len(hkl))]
    else:
        sets = [np.abs(structure_factors(hkl, group, seed + i)) for i in (0, 10)]
    mtz = gemmi.Mtz(with_base=True)
    mtz.spacegroup = group
    mtz.add_dataset("x")
    mtz.set_cell_for_all(cell)
    columns = [hkl]
    for label, f in zip("FG", sets, strict=False):
        mtz.add_column(label, "F")
        mtz.add_column(f"SIG{label}", "Q")
        columns += [f, 0.02 * f + 0.1]
    mtz.add_column("FreeR_flag", "I")
    mtz.set_data(np.column_stack([*columns, rng.integers(0, 20, len(hkl))]).astype(np.float32))
    mtz.write_to_file(str(path))


def phase(folder, name, *words, hklin="data.mtz", said=None):
    """Run the command; paths and contents of what it wrote."""
    stem = folder / name
    options = {"labin": "FP=F SIGFP=SIGF", "hklin": folder / hklin, "mapout": f"{stem}.map"}
    given = dict(zip(words[::2], words[1::2], strict=True))
    command = [
        str(w) for pair in (options | dict(zip(QUICK[::2], QUICK[1::2], strict=True)) | given).items() for w in pair
    ]
    stdin, stdout = sys.stdin, sys.stdout
    sys.stdin, sys.stdout = io.StringIO(""), io.StringIO()
    try:
        code, log = main(command), sys.stdout.getvalue()
    finally:
        sys.stdin, sys.stdout = stdin, stdout
    if said is not None:
        said.append(log)
    assert code == 0, log[-1000:]
    paths = {kind: Path(given.get(kind, f"{stem}{end}")) for kind, end in (("mapout", ".map"), ("hklout", ".mtz"))}
    record = json.loads(Path(given.get("jsonout", f"{stem}.json")).read_text(encoding="utf-8"))
    mtz = gemmi.read_mtz_file(str(paths["hklout"]))
    return SimpleNamespace(
        record=record, mtz=mtz, log=log, map=gemmi.read_ccp4_map(str(paths["mapout"])), paths=paths,
        column=lambda label: np.array(mtz.column_with_label(label)),
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("outputs")
    write_data(place / "data.mtz")
    write_data(place / "other.mtz", seed=2)
    write_data(place / "noise.mtz", random=True)
    return place


@pytest.fixture(scope="module")
def usual(folder):
    """The run that the others differ from."""
    more = ["pattout", str(folder / "patterson.map"), "xmlout", str(folder / "program.xml")]
    more += ["reportout", str(folder / "report.html")]
    return phase(folder, "usual", *more)


@pytest.fixture(scope="module")
def asu(folder):
    return phase(folder, "asu", "mapextent", "asu", "pattout", str(folder / "patterson_asu.map"))


# ----------------------------------------------------------------------------------------- independent readers


def test_mrcfile_finds_the_maps_valid(folder, usual, asu, capsys):
    import mrcfile

    for path in (usual.paths["mapout"], asu.paths["mapout"], folder / "patterson.map", folder / "patterson_asu.map"):
        assert mrcfile.validate(str(path)), capsys.readouterr().out
    with mrcfile.open(usual.paths["mapout"]) as file:  # sections, rows, columns: the grid transposed
        np.testing.assert_array_equal(file.data.transpose(2, 1, 0), np.asarray(usual.map.grid))
        assert int(file.header.ispg) == 19 and float(file.header.cella.y) == pytest.approx(CELL.b)


def test_density_is_that_of_the_columns(usual):
    """gemmi's own transform of FWT and PHWT."""
    grid = np.asarray(usual.map.grid)
    wanted = usual.mtz.transform_f_phi_to_map("FWT", "PHWT", exact_size=grid.shape)
    np.testing.assert_allclose(grid, np.asarray(wanted), atol=2e-5 * np.abs(grid).max())
    assert abs(grid.mean()) < 1e-4 * grid.std()


def test_asymmetric_unit_expands_to_the_whole_cell(usual, asu):
    before = asu.map.grid.array.size
    asu.map.setup(float("nan"))
    whole = np.asarray(asu.map.grid)
    assert before < whole.size and whole.shape == np.asarray(usual.map.grid).shape
    np.testing.assert_allclose(whole, np.asarray(usual.map.grid), atol=1e-5 * np.abs(whole).max())


def test_iotbx_reads_the_same(usual):
    iotbx_mtz = pytest.importorskip("iotbx.mtz")
    from iotbx.map_manager import map_manager
    from libtbx.utils import null_out

    mtz = iotbx_mtz.object(str(usual.paths["hklout"]))
    assert mtz.space_group().type().number() == 19
    arrays = {a.info().labels[0]: a for a in mtz.as_miller_arrays()}
    assert {"F", "FWT", "PHIB", "FOM", "HLA", "FreeR_flag"} <= set(arrays)
    assert arrays["F"].is_xray_amplitude_array() and arrays["HLA"].is_hendrickson_lattman_array()
    assert arrays["FWT"].is_complex_array() and arrays["FWT"].info().labels == ["FWT", "PHWT"]
    manager = map_manager(file_name=str(usual.paths["mapout"]), log=null_out())
    ours = manager.map_data().as_numpy_array()
    np.testing.assert_array_equal(ours, np.asarray(usual.map.grid))
    assert manager.crystal_symmetry().space_group_number() == 19
    coefficients = arrays["FWT"]
    back = coefficients.structure_factors_from_map(manager.map_data(), in_place_fft=False, use_scale=True)
    np.testing.assert_array_equal(np.array(back.indices()), np.array(coefficients.indices()))
    values, wanted = back.data().as_numpy_array(), coefficients.data().as_numpy_array()
    np.testing.assert_allclose(values, wanted, atol=1e-4 * np.abs(wanted).max())


def test_columns_belong_together(usual, folder):
    given = gemmi.read_mtz_file(str(folder / "data.mtz"))
    assert usual.mtz.column_labels()[:8] == given.column_labels()
    labels = usual.mtz.column_labels()
    start = labels.index("FWT")
    assert labels[start : start + 8] == ["FWT", "PHWT", "PHIB", "FOM", "HLA", "HLB", "HLC", "HLD"]
    assert "".join(c.type for c in usual.mtz.columns)[start : start + 8] == "FPPWAAAA"
    for label in ("F", "SIGF", "G", "FreeR_flag"):
        np.testing.assert_array_equal(usual.column(label), np.array(given.column_with_label(label)))
    fom, phi = usual.column("FOM"), np.deg2rad(usual.column("PHIB"))
    assert (fom >= 0).all() and (fom <= 1).all() and fom.std() > 0
    np.testing.assert_allclose(usual.column("FWT"), fom * usual.column("F"), rtol=1e-4)
    np.testing.assert_array_equal(usual.column("PHWT"), usual.column("PHIB"))
    a, b = usual.column("HLA"), usual.column("HLB")
    np.testing.assert_allclose(np.exp(1j * np.arctan2(b, a)), np.exp(1j * phi), atol=1e-3)
    hkl = np.asarray(usual.mtz.make_miller_array())
    ops = GROUP.operations()
    for h, p in zip(hkl.tolist(), phi, strict=True):  # centric phases sit on one of their two values
        if ops.is_reflection_centric(h):
            op = next(o for o in ops.sym_ops if o.apply_to_hkl(h) == [-x for x in h])
            allowed = -math.pi * float(np.dot(h, op.tran)) / op.DEN
            assert abs(math.sin(p - allowed)) < 1e-3, (h, p)


def test_patterson_map_transforms_back_to_intensities(usual, folder):
    grid = gemmi.read_ccp4_map(str(folder / "patterson.map")).grid
    back = gemmi.transform_map_to_f_phi(grid, half_l=True)
    hkl, f = np.asarray(usual.mtz.make_miller_array()), usual.column("F")
    values = np.array([back.get_value(*(int(x) for x in h)) for h in hkl])
    np.testing.assert_allclose(values, f**2, atol=1e-4 * (f**2).max())
    assert np.asarray(grid).argmax() == 0 and grid.spacegroup.hm == "P m m m"


def test_patterson_map_is_that_of_cctbx(usual, folder):
    pytest.importorskip("iotbx.mtz")
    from cctbx import crystal, miller
    from cctbx.array_family import flex

    grid = gemmi.read_ccp4_map(str(folder / "patterson.map")).grid
    symmetry = crystal.symmetry(unit_cell=CELL.parameters, space_group_symbol="P 21 21 21")
    indices = flex.miller_index([tuple(int(x) for x in h) for h in np.asarray(usual.mtz.make_miller_array())])
    f = flex.double(np.ascontiguousarray(usual.column("F"), dtype=float))
    array = miller.set(symmetry, indices, False).array(data=f).set_observation_type_xray_amplitude()
    theirs = array.patterson_map(resolution_factor=1 / 4).apply_volume_scaling().real_map_unpadded().as_numpy_array()
    here = np.stack(np.meshgrid(*[np.arange(n) / n for n in theirs.shape], indexing="ij"), -1).reshape(-1, 3)[::89]
    values = [grid.tricubic_interpolation(gemmi.Fractional(*x)) for x in here]
    assert np.corrcoef(values, theirs.reshape(-1)[::89])[0, 1] > 0.99  # interpolated: the grids differ


def test_spread_of_the_density_is_that_of_the_map(usual):
    """From the file, by numpy's and scipy's own functions."""
    from scipy.stats import skew

    grid = np.asarray(usual.map.grid, dtype=float).ravel()
    density = usual.record["density"]
    assert density["sigma"] == pytest.approx(grid.std(), rel=1e-5)
    assert density["skewness"] == pytest.approx(skew(grid), rel=1e-4)
    counts, edges = np.histogram((grid - grid.mean()) / grid.std(), density["histogram"]["edges"])
    assert np.abs(counts - density["histogram"]["counts"]).sum() < 1e-3 * grid.size  # single precision at the edges
    assert counts.sum() == grid.size and edges[0] <= -1 < 3 < edges[-1]


def test_record_and_xml(usual, folder):
    record = usual.record
    assert record["verdict"]["word"] in ("solved", "uncertain", "not solved")
    assert 0 <= record["verdict"]["probability"] <= 1
    assert record["source"]["columns"] == ["F", "SIGF"] and record["d_min"] == pytest.approx(D_MIN, abs=0.01)
    assert record["n_reflections"] == usual.mtz.nreflections
    json.loads(json.dumps(record), parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    root = ET.parse(folder / "program.xml").getroot()
    assert root.findtext("verdict/word") == record["verdict"]["word"]
    assert float(root.findtext("d_min")) == pytest.approx(record["d_min"], rel=1e-6)
    assert len(root.findall("trials/trial")) == len(record["trials"]) == 1


# --------------------------------------------------------------------------------------- every parameter matters


def different(a, b):
    """Share of reflections whose phase differs by more than 10 degrees."""
    return np.mean(np.abs(np.exp(1j * np.deg2rad(a.column("PHIB"))) - np.exp(1j * np.deg2rad(b.column("PHIB")))) > 0.17)


def hklin(folder, usual):
    other = phase(folder, "hklin", hklin="other.mtz")
    assert not np.allclose(other.column("F"), usual.column("F"))
    assert other.record["source"]["sha256"] != usual.record["source"]["sha256"]


def mapout(folder, usual):
    assert usual.record["outputs"]["mapout"] == str(folder / "usual.map") and (folder / "usual.mtz").exists()


def hklout(folder, usual):
    phase(folder, "hklout", "hklout", str(folder / "elsewhere.mtz"))
    assert not (folder / "hklout.mtz").exists()


def jsonout(folder, usual):
    phase(folder, "jsonout", "jsonout", str(folder / "elsewhere.json"))
    assert not (folder / "jsonout.json").exists()


def pattout(folder, usual):
    assert (folder / "patterson.map").exists()


def xmlout(folder, usual):
    root = ET.parse(folder / "program.xml").getroot()
    assert root.findtext("status") == usual.record["status"] == "finished"
    assert root.findtext("command") == usual.record["command"] and not list(folder.glob("hklout*.xml"))


def reportout(folder, usual):
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert html.escape(usual.record["verdict"]["reason"], quote=False) in page
    of_density = usual.record["atoms"] is None  # whose figures of merit have a calibration to draw
    # P 21 21 21 has three Harker sections
    assert page.count("<figure>") == page.count("<svg") == 2 + 3 + 1 + 3 + of_density
    assert [p.name for p in folder.glob("*.html")] == ["report.html"]


def labin(folder, usual):
    other = phase(folder, "labin", *OTHER_SET)
    assert other.record["source"]["columns"] == ["G", "SIGG"]
    np.testing.assert_allclose(other.column("FWT"), other.column("FOM") * other.column("G"), rtol=1e-4)


def resolution(folder, usual):
    other = phase(folder, "resolution", "resolution", "5,1.1")
    assert other.record["d_min"] >= 1.1 and other.record["d_max"] <= 5
    phased = np.isfinite(other.column("FWT"))
    d = other.mtz.cell.calculate_d_array(np.asarray(other.mtz.make_miller_array()))
    np.testing.assert_array_equal(phased, (d >= 1.1) & (d <= 5))
    assert np.asarray(other.map.grid).size < np.asarray(usual.map.grid).size


def spacegroup(folder, usual):
    other = phase(folder, "spacegroup", "spacegroup", "P 1 21 1")
    assert other.mtz.spacegroup.hm == other.map.grid.spacegroup.hm == "P 1 21 1"
    assert other.record["n_reflections"] > 1.3 * usual.record["n_reflections"]


def cell(folder, usual):
    other = phase(folder, "cell", "cell", "6.1,7.1,8.1,90,90,90")
    assert other.map.grid.unit_cell.a == pytest.approx(6.1) and other.mtz.cell.c == pytest.approx(8.1)


def trials(folder, usual):
    """On data without a solution, so that none ends the search."""
    some = [
        len(phase(folder, f"trials{n}", "trials", n, "timelimit", 60, hklin="noise.mtz").record["trials"])
        for n in (1, 3)
    ]
    assert some == [1, 3]


def timelimit(folder, usual):
    runs = [phase(folder, f"time{t}", "timelimit", t, "trials", 9999, hklin="noise.mtz").record for t in (1, 4)]
    assert runs[0]["times"]["phase"] >= 1 and runs[1]["times"]["phase"] >= 4
    assert sum(t["cycles"] for t in runs[1]["trials"]) > sum(t["cycles"] for t in runs[0]["trials"])


def engine(folder, usual):
    methods, networks = {}, {}
    for name in ("classical", "learned"):
        record = phase(folder, f"engine_{name}", "engine", name).record
        methods[name] = {t["method"] for t in record["trials"]}
        networks[name] = record["weights"]
    assert methods["learned"] == {"learned projection"} and methods["learned"].isdisjoint(methods["classical"])
    assert networks["classical"] == {} and len(networks["learned"]["sha256"]) == 64
    write_strand(folder)
    without = phase(folder, "engine_onnx", "engine", "onnx", "trials", 2, hklin="strand.mtz").record
    assert [w["runtime"] for w in (networks["learned"], without["weights"])] == ["torch", "onnx"]


def write_strand(folder):
    """Data to 1.6 A of one strand of alanine in P 21, and the strand as PDB, elsewhere."""
    from ml_phaser.phasing.fragments.pieces import polyalanine

    if (folder / "strand.mtz").exists():
        return
    strand, group = polyalanine(4, (-120.0, 130.0), "strand"), gemmi.SpaceGroup("P 1 21 1")
    cell, turn = gemmi.UnitCell(9.0, 9.4, 11.0, 90, 98, 90), Rotation.random(rng=np.random.default_rng(8)).as_matrix()
    x = (strand.xyz @ turn.T + [2, 3, 5]) @ np.array(cell.frac.mat).T
    hkl = gemmi.make_miller_array(cell, group, 1.6)
    hkl = hkl[~np.asarray(group.operations().systematic_absences(hkl), dtype=bool)]
    mates = [np.array([op.apply_to_xyz(list(v)) for v in x]) for op in group.operations()]
    f = np.abs(sum(np.exp(2j * np.pi * hkl @ m.T) @ strand.weight for m in mates))
    f *= np.exp(-2 * np.asarray(cell.calculate_1_d2_array(hkl)))
    mtz = gemmi.Mtz(with_base=True)
    mtz.spacegroup = group
    mtz.add_dataset("x")
    mtz.set_cell_for_all(cell)
    mtz.add_column("F", "F")
    mtz.add_column("SIGF", "Q")
    mtz.set_data(np.column_stack([hkl, f, 0.02 * f + 0.1]).astype(np.float32))
    mtz.write_to_file(str(folder / "strand.mtz"))
    lines = [
        f"ATOM  {i + 1:5d}  {name:<3s} ALA A{r + 1:4d}    {a:8.3f}{b:8.3f}{c:8.3f}  1.00 10.00           {e}"
        for i, (name, r, e, (a, b, c)) in enumerate(
            zip(strand.names, strand.residue, strand.elements, strand.xyz, strict=True)
        )
    ]
    (folder / "strand.pdb").write_text("\n".join([*lines, "END", ""]))


def starts(folder, usual):
    """Pieces, and nothing else, or none of them."""
    write_strand(folder)
    runs = [phase(folder, f"starts_{x}", "starts", x, hklin="strand.mtz").record for x in ("fragments", "random")]
    assert [{"placed pieces" in t["method"] for t in r["trials"]} for r in runs] == [{True}, {False}]
    assert runs[1]["fragments"] is None and runs[0]["fragments"]["atoms"] >= 15
    assert any("strand" in choice for choice in runs[0]["choices"]) and runs[0]["weights"]


def xyzin(folder, usual):
    """The piece that is named is placed; it is no use with random starts, nor beside phases."""
    write_strand(folder)
    run = phase(folder, "xyzin", "xyzin", folder / "strand.pdb", "starts", "fragments", hklin="strand.mtz")
    assert run.record["fragments"]["label"] == "strand.pdb" and run.record["fragments"]["atoms"] == 20
    assert "strand.pdb (20 atoms placed" in run.log
    words = f"hklin {folder}/strand.mtz mapout {folder}/no.map xyzin {folder}/strand.pdb".split()
    assert main([*words, "starts", "random"]) == main([*words, "phasein", str(usual.paths["hklout"])]) == 1
    assert not (folder / "no.map").exists()


def xyzout(folder, usual):
    """By gemmi: alanines at their place in the cell; their structure factors are those of the phases written."""
    write_strand(folder)
    words = ["xyzin", folder / "strand.pdb", "starts", "fragments"]
    run = phase(folder, "xyzout", *words, "xyzout", folder / "placed.cif", hklin="strand.mtz")
    assert not list(folder.glob("placed.pdb")) and not (folder / "xyzout.pdb").exists()
    structure = gemmi.read_structure(str(folder / "placed.cif"))
    assert structure.cell.approx(run.mtz.cell, 1e-2) and structure.spacegroup_hm == "P 1 21 1"
    assert {residue.name for chain in structure[0] for residue in chain} == {"ALA"}
    assert structure[0].count_atom_sites() == run.record["fragments"]["atoms"]
    calculate = gemmi.StructureFactorCalculatorX(structure.cell)
    f = np.array([calculate.calculate_sf_from_model(structure[0], h.tolist()) for h in run.mtz.make_miller_array()])
    agree = np.cos(np.angle(f) - np.deg2rad(run.column("PHIB")))
    assert np.average(agree, weights=run.column("F")) > 0.5


def write_phases(folder, usual):
    """The usual run's phases twice, as they are and at another origin of the group."""
    path = folder / "phases.mtz"
    hkl = usual.mtz.make_miller_array()
    mtz = gemmi.Mtz(with_base=True)
    mtz.spacegroup = GROUP
    mtz.add_dataset("given")
    mtz.set_cell_for_all(CELL)
    columns = [hkl]
    for end, move in (("", 0), ("2", 180 * hkl[:, 0])):
        mtz.add_column(f"PHI{end}", "P")
        mtz.add_column(f"W{end}", "W")
        columns += [usual.column("PHIB") + move, np.full(len(hkl), 0.9)]
    mtz.set_data(np.column_stack(columns).astype(np.float32))
    mtz.write_to_file(str(path))
    return path


def at_origins(run, usual):
    """Mean cosine of the phase differences from the usual run, as it is and at the other origin."""
    difference = np.deg2rad(run.column("PHIB") - usual.column("PHIB"))
    use = np.isfinite(difference)
    h = usual.mtz.make_miller_array()[use, 0]
    return np.cos(difference[use]).mean(), np.cos(difference[use] - np.pi * h).mean()


def phasein(folder, usual):
    path = write_phases(folder, usual)
    run = phase(folder, "phasein", "phasein", path, "labphase", "PHIB=PHI2 FOM=W2")
    here, there = at_origins(run, usual)
    assert there > 0.9 > here
    assert run.record["given_phases"] and not usual.record["given_phases"]


def labphase(folder, usual):
    path = write_phases(folder, usual)
    run = phase(folder, "labphase", "phasein", path, "labphase", "PHIB=PHI FOM=W")
    here, there = at_origins(run, usual)
    assert here > 0.9 > there
    assert main([*f"hklin {folder}/data.mtz mapout {folder}/two.map phasein {path}".split(), *OTHER_SET]) == 1


def hand(folder, usual):
    """A judge that finds the mirror image likelier: the solution is turned into it, unless it is to be kept."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ml_phaser.handedness.log_odds", lambda *_: -3.0)
        runs = [phase(folder, f"hand_{name}", "hand", name) for name in ("auto", "keep")]
    turned, kept = runs
    assert [r.record["hand_judged"]["turned"] for r in runs] == [True, False]
    assert [r.record["hand_judged"]["log_odds"] for r in runs] == [3.0, -3.0]
    assert different(turned, kept) > 0.3


def seed_list(path):
    """Lines of a CSV of seeds: indices, and numbers by name."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [tuple(int(r[x]) for x in "hkl") for r in rows], {x: np.array([float(r[x]) for r in rows]) for x in rows[0]}


def phases_at(run, hkl):
    """PHIB of the run's MTZ at reflections, degrees."""
    found = dict(zip(map(tuple, run.mtz.make_miller_array().tolist()), run.column("PHIB"), strict=True))
    return np.array([found[h] for h in hkl])


def cosine(degrees):
    return np.cos(np.deg2rad(degrees))


def seedin(folder, usual):
    """Seeds of the usual result moved to another origin: the result is there."""
    phase(folder, "seedin_made", "seedout", folder / "made.csv", "seedfraction", 0.3)
    hkl, made = seed_list(folder / "made.csv")
    lines = [",".join(map(str, (*h, phi + 180 * h[0]))) for h, phi in zip(hkl, made["centre"], strict=True)]
    (folder / "moved.csv").write_text("\n".join(["h,k,l,phi", *lines, ""]))
    run = phase(folder, "seedin", "seedin", folder / "moved.csv")
    here, there = at_origins(run, usual)
    assert there > 0.6 and here < 0.3
    assert run.record["given_seeds"]["n"] == len(hkl) and usual.record["given_seeds"] is None
    assert run.record["given_seeds"]["moved"] < 30 and "Origin and hand: those of the seeds" in run.log
    assert all("seeded" in t["method"] for t in run.record["trials"])
    words = f"hklin {folder}/data.mtz mapout {folder}/both.map seedin {folder}/moved.csv".split()
    assert main([*words, "phasein", str(usual.paths["hklout"]), *OTHER_SET]) == 1


def seedhold(folder, usual):
    """On data without a solution, where seeds held throughout lead elsewhere than seeds released at once."""
    hkl = np.asarray(gemmi.read_mtz_file(str(folder / "noise.mtz")).make_miller_array())
    rng = np.random.default_rng(4)
    given = rng.choice(len(hkl), 60, replace=False)
    rows = [",".join(map(str, (*hkl[i].tolist(), round(360 * rng.random(), 1)))) for i in given]
    (folder / "noise.csv").write_text("\n".join(["h,k,l,phi", *rows, ""]))
    words = ("seedin", folder / "noise.csv", "seedhold")
    runs = [phase(folder, f"seedhold{n}", *words, n, hklin="noise.mtz") for n in (0, 9999)]
    assert different(*runs) > 0.3


def seedout(folder, usual):
    run = phase(folder, "seedout", "seedout", folder / "seeds.csv")
    hkl, seeds = seed_list(folder / "seeds.csv")
    facts = run.record["seeds"]
    assert len(hkl) == facts["n"] == round(0.1 * run.record["n_reflections"]) and usual.record["seeds"] is None
    assert facts["mean_probability"] == pytest.approx(seeds["probability"].mean(), abs=1e-4)
    off = cosine(phases_at(run, hkl) - seeds["centre"])
    assert (off > np.where(seeds["restricted"] == 1, 1 - 1e-6, cosine(45) - 1e-6)).all()
    assert f"Phase seeds: {len(hkl)} in 4 bins" in run.log and not list(folder.glob("usual*.csv"))


def seedformat(folder, usual):
    phase(folder, "seedformat", "seedout", folder / "flip.txt", "seedformat", "superflip")
    assert "dataformat amplitude phase" in (folder / "flip.txt").read_text()
    words = f"hklin {folder}/data.mtz mapout {folder}/no.map seedout {folder}/none.txt".split()
    assert main([*words, *OTHER_SET]) == 1 and not (folder / "no.map").exists()


def seedbins(folder, usual):
    run = phase(folder, "seedbins", "seedout", folder / "three.csv", "seedbins", 3, "seedfraction", 0.5)
    _, seeds = seed_list(folder / "three.csv")
    assert set(seeds["centre"][seeds["restricted"] == 0]) == {60.0, 180.0, 300.0} and run.record["seeds"]["bins"] == 3


def seedfraction(folder, usual):
    run = phase(folder, "seedfraction", "seedout", folder / "half.csv", "seedfraction", 0.5)
    assert len(seed_list(folder / "half.csv")[0]) == round(0.5 * run.record["n_reflections"])


def seedcount(folder, usual):
    phase(folder, "seedcount", "seedout", folder / "seven.csv", "seedcount", 7)
    assert len(seed_list(folder / "seven.csv")[0]) == 7
    words = f"hklin {folder}/data.mtz mapout {folder}/no.map seedout {folder}/n.csv seedcount 7 seedfraction 0.1"
    assert main([*words.split(), *OTHER_SET]) == 1 and not (folder / "no.map").exists()


def seedmin(folder, usual):
    words = ("seedfraction", 1, "seedmin")
    phase(folder, "seedmin", "seedout", folder / "sure.csv", *words, 0.8)
    assert seed_list(folder / "sure.csv")[1]["probability"].min() >= 0.8
    run = phase(folder, "seedmin1", "seedout", folder / "none.csv", *words, 1)
    assert not (folder / "none.csv").exists() and run.record["seeds"]["n"] == 0
    assert "Phase seeds: none is good enough" in run.log


def mapextent(folder, usual):
    other = phase(folder, "extent", "mapextent", "asu")
    assert other.map.grid.array.size < usual.map.grid.array.size
    assert different(other, usual) == 0


def seed(folder, usual):
    other = phase(folder, "seed", "seed", "5", hklin="noise.mtz")
    same = phase(folder, "seed2", "seed", "5", hklin="noise.mtz")
    zero = phase(folder, "seed3", "seed", "0", hklin="noise.mtz")
    assert different(other, zero) > 0.3
    np.testing.assert_array_equal(same.column("PHIB"), other.column("PHIB"))
    assert same.paths["mapout"].read_bytes() == other.paths["mapout"].read_bytes()


def without_flags(folder):
    """The data less their free-R flags."""
    mtz = gemmi.read_mtz_file(str(folder / "data.mtz"))
    mtz.remove_column(len(mtz.columns) - 1)
    mtz.write_to_file(str(folder / "unflagged.mtz"))
    return "unflagged.mtz"


def freer(folder, usual):
    """Without it no flags; with it flags of that share, which the seed and nothing else of the run changes."""
    hklin = without_flags(folder)
    plain = phase(folder, "freer_none", hklin=hklin)
    assert "FreeR_flag" not in plain.mtz.column_labels() and not plain.record["free_flags"]
    runs = [phase(folder, f"freer{x}_{s}", "freer", x, "seed", s, hklin=hklin) for x, s in ((5, 0), (10, 0), (10, 1))]
    flags = [run.column("FreeR_flag") for run in runs]
    assert [len(set(f)) for f in flags] == [20, 10, 10] and all(run.record["free_flags"] for run in runs)
    for f, share in zip(flags, (0.05, 0.1, 0.1), strict=True):
        assert np.mean(f == 0) == pytest.approx(share, abs=1 / len(f))
    assert (flags[1] != flags[2]).any() and "no free-R flags" not in runs[0].log
    kept = phase(folder, "freer_kept", "freer", 10)
    np.testing.assert_array_equal(kept.column("FreeR_flag"), usual.column("FreeR_flag"))
    assert any("they are kept" in choice for choice in kept.record["choices"])


def seqin(folder, usual):
    """It is checked, and stands in the commands for the next programs."""
    (folder / "s.fasta").write_text(">s\nAGYSMLKD\n")
    other = phase(folder, "seqin", "seqin", folder / "s.fasta")
    commands = " ".join(step["command"] for step in other.record["next"])
    before = " ".join(step["command"] for step in usual.record["next"])
    assert str(folder / "s.fasta") in commands and "s.fasta" not in before and before
    (folder / "bad.fasta").write_text(">s\n1234\n")
    words = f"hklin {folder}/data.mtz mapout {folder}/bad.map seqin {folder}/bad.fasta".split()
    assert main([*words, *OTHER_SET]) == 1 and not (folder / "bad.map").exists()


def shelxout(folder, usual):
    """Phases of the MTZ, by FORTRAN columns; all three files or none."""
    other = phase(folder, "shelxout", "shelxout", folder / "x.phi")
    lines = (folder / "x.phi").read_text().splitlines()
    rows = np.array([[float(x[a:b]) for a, b in ((0, 4), (4, 8), (8, 12), (21, 29), (29, 37))] for x in lines])
    at = {tuple(h): i for i, h in enumerate(np.asarray(other.mtz.make_miller_array()).tolist())}
    mine = [at[tuple(h)] for h in rows[:, :3].astype(int).tolist()]
    turn = np.deg2rad(rows[:, 4] - other.column("PHIB")[mine])
    assert len(rows) == len(at) and np.abs(np.sin(turn / 2)).max() < 1e-3
    np.testing.assert_allclose(rows[:, 3], other.column("FOM")[mine], atol=1e-4)
    for gone in ("x.phi", "x.hkl"):
        (folder / gone).unlink()
    words = [*f"hklin {folder}/data.mtz mapout {folder}/again.map shelxout {folder}/x.phi".split(), *OTHER_SET]
    assert main(words) == 1 and not (folder / "x.phi").exists() and not (folder / "again.map").exists()


def then(folder, usual):
    """A stand-in for SHELXE on PATH is run in a folder of its own."""
    (folder / "bin").mkdir()
    (folder / "bin" / "shelxe").write_text('#!/bin/sh\nls "$1"\necho "Best trace (cycle 1 with CC 30.00%) was saved"\n')
    (folder / "bin" / "shelxe").chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{folder / 'bin'}:/usr/bin:/bin")
        other = phase(folder, "then", "then", "shelxe")
    assert usual.record["then"] is None
    assert other.record["then"]["exit_code"] == 0 and "CC 30.00 %" in other.record["then"]["summary"]
    assert {p.name for p in (folder / "then_shelxe").iterdir()} == {"then.phi", "then.hkl", "then.ins", "shelxe.log"}


def device(folder, usual):
    import torch

    assert phase(folder, "device", "device", "cpu").record["device"] == "cpu"
    if torch.cuda.is_available():
        assert phase(folder, "device2", "device", "cuda").record["device"] == "cuda"
    else:
        assert main([*f"hklin {folder}/data.mtz mapout {folder}/gpu.map device cuda".split(), *OTHER_SET]) == 1


def threads(folder, usual):
    import torch

    asked: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "set_num_threads", asked.append)
        other = phase(folder, "threads", "threads", "3")
    assert (usual.record["threads"], other.record["threads"]) == (1, 3) and set(asked) == {3}


def overwrite(folder, usual):
    phase(folder, "twice")
    before = (folder / "twice.json").read_bytes()
    assert main([*f"hklin {folder}/data.mtz mapout {folder}/twice.map".split(), *OTHER_SET]) == 1
    assert (folder / "twice.json").read_bytes() == before
    phase(folder, "twice", *OTHER_SET, "overwrite", "yes")
    assert (folder / "twice.json").read_bytes() != before


def quiet(folder, usual):
    other = phase(folder, "quiet", "quiet", "yes")
    assert len(other.log.splitlines()) == 1 < len(usual.log.splitlines()) and "Verdict" in other.log


CHECKS = (
    hklin, mapout, hklout, pattout, jsonout, xmlout, reportout, labin, resolution, phasein, labphase, starts, xyzin,
    xyzout, seedin, seedhold, spacegroup, cell, trials, timelimit, engine, hand, mapextent, seed, freer, seqin,
    shelxout, seedout, seedformat, seedbins, seedfraction, seedcount, seedmin, then, device, threads, overwrite, quiet,
)  # fmt: skip


def test_all_parameters_are_checked():
    assert [check.__name__ for check in CHECKS] == [p.name for p in PARAMETERS]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_parameter_changes_the_outputs(check, folder, usual, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    check(folder, usual)


# -------------------------------------------------------------------------------------- no structure, no solution


@pytest.mark.parametrize("name", ["P 1", "P 21 21 21", "P 1 21/c 1"])
@pytest.mark.parametrize("seed", [1, 2])
def test_random_amplitudes_are_never_solved(tmp_path, name, seed):
    write_data(tmp_path / "data.mtz", gemmi.SpaceGroup(name), gemmi.UnitCell(7, 8, 9, 90, 90, 90), 1.1, True, seed)
    result = phase(tmp_path, "noise", "timelimit", "2", "trials", "8", "seed", seed)
    assert result.record["verdict"]["word"] != "solved"
    assert "do not build into this map" in " ".join(result.log.split())
