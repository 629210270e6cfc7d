"""The Phenix program as Phenix runs it: cctbx's own command-line parser, the real ml_phaser behind it."""

import io
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

pytest.importorskip("iotbx.cli_parser", reason="cctbx is not here")
import gemmi
import iotbx.mtz
from cctbx import sgtbx
from iotbx.map_manager import map_manager
from libtbx.utils import Sorry, multi_out, null_out

ROOT = Path(__file__).resolve().parents[2]
PLUGIN = ROOT / "plugins" / "phenix"
if str(PLUGIN) not in sys.path:
    sys.path.insert(0, str(PLUGIN))

from ml_phaser_phenix.command_line.ml_phaser import run  # noqa: E402

from ml_phaser import __version__  # noqa: E402
from ml_phaser.parameters import PARAMETERS  # noqa: E402
from ml_phaser.suites.phenix import path_of  # noqa: E402

PEPTIDE = str(ROOT / "examples" / "peptide.mtz")
RANGED = [p for p in PARAMETERS if p.low is not None]

# A program in ml_phaser's place for what no real run is needed for: it writes down its arguments, and ends as told.
STAND_IN = """#!/bin/sh
printf '%s\\n' "$@" > {folder}/arguments
echo " the log of a stand-in"
{ending}
"""


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """Folder with an executable ml_phaser that is this checkout's."""
    folder = tmp_path_factory.mktemp("bin")
    python = f"PYTHONPATH={shlex.quote(str(ROOT))} exec {shlex.quote(sys.executable)}"
    write_program(folder / "ml_phaser", f'#!/bin/sh\necho $$ > {folder}/pid\n{python} -m ml_phaser "$@"\n')
    return folder


def write_program(path, text):
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working folder, and no executable but what a test puts on PATH."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ML_PHASER_EXECUTABLE", raising=False)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setattr("sys.argv", ["phenix.ml_phaser"])
    return tmp_path


@pytest.fixture
def stand_in(here, monkeypatch):
    """A function that puts a stand-in on PATH."""

    def put(ending):
        (here / "bin").mkdir(exist_ok=True)
        write_program(here / "bin" / "ml_phaser", STAND_IN.format(folder=here, ending=ending))
        monkeypatch.setenv("PATH", f"{here}/bin:/usr/bin:/bin")
        return here / "arguments"

    return put


def run_quietly(*words):
    """The results, and all that was said."""
    said = io.StringIO()
    log = multi_out()
    log.register("here", said)
    try:
        return run(args=list(words), logger=log), said.getvalue()
    except SystemExit as ended:
        assert not ended.code
        return None, said.getvalue()


def command(*words, path="/usr/bin:/bin", **environment):
    """The command in a process of its own, as ``python -m ml_phaser_phenix``."""
    env = {k: v for k, v in os.environ.items() if k != "ML_PHASER_EXECUTABLE"}
    env |= {"PYTHONPATH": str(PLUGIN), "PATH": path, **environment}
    return subprocess.run(
        [sys.executable, "-m", "ml_phaser_phenix", *words], env=env, capture_output=True, text=True, check=False
    )


def refused(done):
    """The one line of a command that ended with Sorry."""
    assert done.returncode == 1 and "Traceback" not in done.stdout + done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("Sorry: "), done.stderr
    return lines[0]


# ------------------------------------------------------------------------------------------------- real runs


@pytest.fixture(scope="module")
def peptide(real, tmp_path_factory):
    """The example, solved by the program: its folder, results and log."""
    folder = tmp_path_factory.mktemp("peptide")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("ML_PHASER_EXECUTABLE", raising=False)
        patch.setenv("PATH", f"{real}:/usr/bin:/bin")
        results, said = run_quietly(PEPTIDE, "timelimit=20", "output.xmlout=program.xml", "--json")
    return folder, results, said


def test_results(peptide):
    folder, results, _ = peptide
    record = json.loads((folder / "peptide_ml_phaser_000.json").read_text())
    assert results.verdict == record["verdict"]["word"] == "solved"
    assert results.probability == record["verdict"]["probability"] > 0.9
    assert results.reason == record["verdict"]["reason"]
    assert results.hand == record["hand"] and "amino acids" in results.hand
    assert results.next_steps == record["next"]
    assert results.record == record and record["options"]["timelimit"] == 20
    assert results.files["xmlout"] == str(folder / "program.xml")
    for path in results.files.values():
        assert Path(path).is_file()
    assert {results.map_file, results.hkl_file, results.record_file} <= set(results.files.values())
    assert results.map_file == str(folder / "peptide_ml_phaser_000.map")


def test_results_as_json(peptide):
    folder, results, _ = peptide
    written = json.loads((folder / "ml_phaser_result.json").read_text())
    assert written["verdict"] == results.verdict and written["files"] == results.files
    assert written["fom"] == results.fom and written["record"] == results.record


def test_files_are_read_by_iotbx(peptide):
    _, results, _ = peptide
    arrays = {a.info().label_string(): a for a in iotbx.mtz.object(results.hkl_file).as_miller_arrays()}
    assert {"I,SIGI", "FreeR_flag", "FWT,PHWT", "PHIB", "FOM", "HLA,HLB,HLC,HLD"} <= set(arrays)
    assert results.fom == pytest.approx(arrays["FOM"].data().as_numpy_array().mean(), abs=1e-4)
    density = map_manager(results.map_file)
    assert density.unit_cell().is_similar_to(arrays["FWT,PHWT"].unit_cell())


def test_log_passes_through(peptide):
    _, results, said = peptide
    assert "$TABLE: FOM by resolution" in said and "ml_phaser:  Normal termination" in said
    assert f"Mean figure of merit: {results.fom:.3f}" in said
    shown = next(line for line in said.splitlines() if line.startswith("Command: "))
    words = shlex.split(shown)[2:]
    assert words[:2] == ["hklin", PEPTIDE] and words[-2:] == ["timelimit", "20"]


def test_pieces(here, real, monkeypatch):
    """A piece of the example's own structure, placed, grown and handed on; without pieces none are promised."""
    monkeypatch.setenv("PATH", f"{real}:/usr/bin:/bin")
    structure = gemmi.read_pdb(str(ROOT / "examples" / "peptide.pdb"))
    structure.remove_waters()
    structure.write_pdb("piece.pdb")
    placed, _ = run_quietly(
        PEPTIDE, "xyzin=piece.pdb", "xyzout=placed.cif", "starts=fragments", "timelimit=60", "freer=5"
    )
    assert placed.verdict == "solved" and placed.fragments["label"] == "piece.pdb"
    assert placed.pieces_file == placed.files["xyzout"] == str(here / "placed.cif")
    found, wanted = gemmi.read_structure(placed.pieces_file), gemmi.read_pdb("piece.pdb")
    assert found[0].count_atom_sites() == placed.fragments["atoms"] == wanted[0].count_atom_sites()
    assert found.cell.approx(wanted.cell, 1e-2)
    (here / "stale.pdb").write_text("of another run")
    words = ("xyzout=stale.pdb", "starts=random", "trials=1", "output.overwrite=True")
    plain, _ = run_quietly(PEPTIDE, *words, "resolution=1.7")  # too coarse for free atoms, too
    assert plain.pieces_file is None and plain.fragments is None and "xyzout" not in plain.files
    assert plain.atoms_file is None and (here / "stale.pdb").read_text() == "of another run"
    free, _ = run_quietly(PEPTIDE, *words)
    assert free.pieces_file is None and free.fragments is None and free.record["atoms"]
    assert free.atoms_file == free.files["xyzout"] == str(here / "stale.pdb")
    assert gemmi.read_structure(free.atoms_file)[0].count_atom_sites() == len(free.record["atoms"])


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("urea/iam.cif", []),  # a CIF that is no reflection file for cctbx
        ("thpp/thpp.hkl", []),  # SHELX hkl, which cctbx refuses without =hklf4
        ("ntd106c_p-1/P-1.fcf", ["user_selected_labels=F_squared_meas", "output.prefix=mine"]),
    ],
)
def test_measured_data(here, real, shared_data, monkeypatch, name, words):
    monkeypatch.setenv("PATH", f"{real}:/usr/bin:/bin")
    results, _ = run_quietly(str(shared_data / "diffraction" / name), *words, "timelimit=30", "--quiet")
    assert results.verdict == "solved"
    assert results.map_file == str(here / ("mine_000.map" if words else f"{Path(name).stem}_ml_phaser_000.map"))
    labin = "p-1/F_squared_meas,p-1/F_squared_sigma" if words else None
    assert results.record["options"]["labin"] == labin
    mtz, density = iotbx.mtz.object(results.hkl_file), map_manager(results.map_file)
    settings = (mtz.space_group(), sgtbx.space_group("P 1"))  # thpp's P 1 21/n 1 has no number all agree on
    assert density.unit_cell_crystal_symmetry().space_group() in settings
    assert mtz.n_reflections() == results.record["n_reflections"]


# ------------------------------------------------------------------------------------- without ml_phaser and torch


def test_in_a_python_without_ml_phaser(here, stand_in):
    """As in Phenix: neither can be imported. A stand-in for the executable."""
    record = {
        "verdict": {"word": "not solved", "probability": 0.25, "reason": "made up"},
        "shells": [{"n": 1, "fom": 0.5}, {"n": 3, "fom": 0.1}], "hand": "h", "next": [{"program": "shelxe"}],
        "then": {"program": "shelxe", "exit_code": 0}, "fragments": None,
        "outputs": {"mapout": "a", "hklout": "b", "jsonout": "c"},
    }  # fmt: skip
    (here / "record").write_text(json.dumps(record))
    arguments = stand_in(f"cp {here}/record {here}/x.json")
    program = (
        "import sys; sys.modules.update(ml_phaser=None, torch=None)\n"
        "from ml_phaser_phenix.command_line.ml_phaser import run\n"
        f"r = run([{PEPTIDE!r}, 'output.mapout=x.map', 'search.seed=7'])\n"
        "print(r.verdict, r.probability, r.fom, r.next_steps, r.then['program'])"
    )
    env = os.environ | {"PYTHONPATH": str(PLUGIN)}
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "not solved 0.25 0.2 [{'program': 'shelxe'}] shelxe"
    assert " the log of a stand-in\n" in done.stdout
    told = ["hklin", PEPTIDE, "mapout", f"{here}/x.map", "hklout", f"{here}/x.mtz"]
    assert arguments.read_text().splitlines() == [*told, "seed", "7"]


def test_labels_the_user_selected(here, stand_in):
    arguments = stand_in("exit 3")
    for words, labin in (
        ([PEPTIDE, "user_selected_labels=I,SIGI"], "I,SIGI"),
        ([f"hklin={PEPTIDE}", "labin=I=I SIGI=SIGI"], "I=I SIGI=SIGI"),
        ([PEPTIDE, "user_selected_labels=I,SIGI", "labin=I"], "I"),
    ):
        with pytest.raises(Sorry):
            run_quietly(*words)
        told = arguments.read_text().splitlines()
        assert told[told.index("labin") + 1] == labin


def test_names_of_outputs_in_phenix_way(here, stand_in):
    arguments = stand_in("exit 3")
    for words, stem in (
        (["output.prefix=p", "output.suffix=_s", "output.serial=4"], "p_s_004"),
        (["output.suffix=_s"], "peptide_ml_phaser_s_000"),
        (["output.filename=just_this"], "just_this"),
        (["output.mapout=dir/m.ccp4"], "dir/m"),
    ):
        (here / "dir").mkdir(exist_ok=True)
        with pytest.raises(Sorry):
            run_quietly(PEPTIDE, *words)
        told = arguments.read_text().splitlines()
        assert told[told.index("hklout") + 1] == f"{here}/{stem}.mtz"


def test_phases_to_start_from_are_not_the_data(here, stand_in, peptide):
    arguments = stand_in("exit 3")
    with pytest.raises(Sorry):
        run_quietly(PEPTIDE, f"phasein={peptide[1].hkl_file}")
    told = arguments.read_text().splitlines()
    assert told[told.index("hklin") + 1] == PEPTIDE and told[told.index("phasein") + 1] == peptide[1].hkl_file


# -------------------------------------------------------------------------------------------- questions it answers


def test_shows_its_parameters(here):
    _, said = run_quietly("--show-defaults", "--attributes-level=2")
    for parameter in PARAMETERS:
        assert f"\n    {parameter.name} = " in said or f"\n  {parameter.name} = " in said
        if path_of(parameter).startswith("ml_phaser."):
            assert parameter.help.partition(" [")[0].split()[0] in said
    _, simple = run_quietly("--show-defaults=0")
    assert "timelimit = " in simple and "threads = " not in simple


def test_says_version_and_citations(here):
    assert run_quietly("--version")[1].strip() == __version__
    said = run_quietly("--citations")[1]
    assert "Ab initio structure solution by charge flipping" in said and "ml_phaser developers" in said


def test_writes_what_differs(here):
    run_quietly(PEPTIDE, "timelimit=11", "--diff-params")
    text = (here / "ml_phaser_modified.eff").read_text()
    assert "timelimit = 11" in text and "engine" not in text
    with pytest.raises(Sorry, match="not on PATH"):  # as far as it can be without a program, it is understood again
        run_quietly("ml_phaser_modified.eff", "--dry-run")


def test_dry_run_checks_and_does_nothing(here, real, monkeypatch):
    monkeypatch.setenv("PATH", f"{real}:/usr/bin:/bin")
    results, said = run_quietly(PEPTIDE, "--dry-run")
    assert results is None and "have been validated" in said and list(here.iterdir()) == []


# ------------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize("parameter", RANGED, ids=lambda p: p.name)
def test_every_range_is_kept(here, real, monkeypatch, parameter):
    monkeypatch.setenv("PATH", f"{real}:/usr/bin:/bin")
    for value in (parameter.low - 1, parameter.high * 10 + 1):
        with pytest.raises(Sorry) as said:
            run_quietly(PEPTIDE, f"{path_of(parameter)}={value:.10g}", "--dry-run")
        assert "is out of range. Try: " in str(said.value) and "\n" not in str(said.value)


WRONG = [
    ("trials=1000001", "ml_phaser.search.trials: 1000001 is out of range. Try: 1 to 100000"),
    ("trials=many", "ml_phaser.search.trials"),
    ("trials=1.5", "ml_phaser.search.trials"),
    ("spacegroup=P999", "Space group symbol not recognized: P999"),
    ("hklin=missing.mtz", "ml_phaser.data.hklin: no such file: missing.mtz"),
    ("output.mapout=no/such/folder.map", "ml_phaser.output.mapout: no such folder"),
    ("executable=nothing_there", "run.executable: nothing_there is no program that can be run"),
    ("labin=F,SIGF", "no column F"),  # ml_phaser's own last words
]


@pytest.mark.parametrize(("word", "told"), WRONG)
def test_wrong_values_end_in_one_line(here, real, monkeypatch, word, told):
    monkeypatch.setenv("PATH", f"{real}:/usr/bin:/bin")
    with pytest.raises(Sorry) as said:
        run_quietly(PEPTIDE, word)
    assert told in str(said.value) and "\n" not in str(said.value)
    assert list(here.iterdir()) == []


@pytest.mark.parametrize(("word", "told"), [WRONG[0], WRONG[1], WRONG[-1]])
def test_refusal_as_the_user_sees_it(here, real, word, told):
    assert told in refused(command(PEPTIDE, word, path=f"{real}:/usr/bin:/bin"))


def test_phenix_own_refusals(here, real, monkeypatch):
    """cctbx's words, some of them several lines."""
    monkeypatch.setenv("PATH", f"{real}:/usr/bin:/bin")
    for words, told in (
        ([PEPTIDE, "engine=quantum"], "Not a possible choice for ml_phaser.search.engine: quantum"),
        ([PEPTIDE, "no_such_thing=1"], "PHIL parameters are not recognized"),
        ([PEPTIDE, "user_selected_labels=F,SIGF"], "F,SIGF, could not be found"),
        (["no_such_file.mtz"], "not recognized"),
    ):
        with pytest.raises(Sorry, match=told):
            run_quietly(*words)


def test_no_data(here, real, monkeypatch):
    monkeypatch.setenv("PATH", f"{real}:/usr/bin:/bin")
    with pytest.raises(Sorry, match=r"no measured data\. Try: data\.hklin=FILE"):
        run_quietly("timelimit=5")
    (here / "copy.mtz").write_bytes(Path(PEPTIDE).read_bytes())
    with pytest.raises(Sorry, match=r"several reflection files: .* Try: data\.hklin="):
        run_quietly(PEPTIDE, "copy.mtz")
    (here / "a.txt").write_text("MKTAYIAK")
    with pytest.raises(Sorry, match=r"which parameter is the file a\.txt"):
        run_quietly(PEPTIDE, "a.txt")


def test_no_program(here, monkeypatch):
    with pytest.raises(Sorry, match=r"ml_phaser is not on PATH\. Try: run\.executable="):
        run_quietly(PEPTIDE)
    monkeypatch.setenv("ML_PHASER_EXECUTABLE", "/no/such/program")
    with pytest.raises(Sorry, match="ML_PHASER_EXECUTABLE: /no/such/program is no program"):
        run_quietly(PEPTIDE)


def test_existing_files_are_kept(here, stand_in):
    arguments = stand_in("exit 3")
    (here / "peptide_ml_phaser_000.mtz").write_text("precious")
    with pytest.raises(Sorry, match=r"hklout: .*peptide_ml_phaser_000\.mtz exists already\. Try: --overwrite"):
        run_quietly(PEPTIDE)
    assert not arguments.exists()
    for word in ("--overwrite", "output.overwrite=True"):
        with pytest.raises(Sorry, match="exit status 3"):
            run_quietly(PEPTIDE, word)
        assert arguments.read_text().splitlines()[-2:] == ["overwrite", "yes"]
        arguments.unlink()


@pytest.mark.parametrize(
    ("ending", "told"),
    [
        ("echo 'ml_phaser: the disk is full. Try: another' >&2; exit 1", "the disk is full. Try: another"),
        ("echo 'Segmentation fault' >&2; exit 139", "Segmentation fault"),
        ("exit 7", r"ml_phaser failed without a word \(exit status 7\)"),
        ("exit 0", "ml_phaser left no run record: "),
        ("echo '{' > x.json", "ml_phaser left no run record: "),
    ],
)
def test_a_program_that_fails(here, stand_in, ending, told):
    stand_in(ending)
    with pytest.raises(Sorry, match=told) as said:
        run_quietly(PEPTIDE, "mapout=x.map")
    assert "\n" not in str(said.value)


PHASED = {
    "status": "finished", "verdict": {"word": "solved", "probability": 0.9, "reason": "made up"},
    "shells": [{"n": 1, "fom": 0.5}], "hand": "h", "next": [], "fragments": None,
    "then": {"program": "shelxe", "exit_code": 3}, "outputs": {"mapout": "a", "hklout": "b", "jsonout": "c"},
}  # fmt: skip
ONLY_THE_NEXT = "The phases are there; the next program failed: shelxe failed"


def test_a_next_program_that_fails_takes_no_phases_away(here, stand_in):
    """A stand-in that phases, and says of the next program what ml_phaser says."""
    (here / "record").write_text(json.dumps(PHASED))
    stand_in(f"cp {here}/record {here}/x.json; echo 'ml_phaser: shelxe failed' >&2; exit 1")
    results, said = run_quietly(PEPTIDE, "mapout=x.map")
    assert results.verdict == "solved" and results.then["exit_code"] == 3
    assert results.next_failed == ONLY_THE_NEXT and ONLY_THE_NEXT in said
    (here / "x.json").unlink()
    done = command(PEPTIDE, "mapout=x.map", "--quiet", path=f"{here}/bin:/usr/bin:/bin")
    assert done.returncode == 1 and done.stderr == f"{ONLY_THE_NEXT}\n" and "Traceback" not in done.stdout


@pytest.mark.parametrize("status", ["running", "failed", "of another run"])
def test_a_run_that_did_not_finish_has_failed(here, stand_in, status):
    (here / "record").write_text(json.dumps(PHASED | {"status": status}))
    copy = f"cp {here}/record {here}/x.json; "
    if status == "of another run":  # which did finish
        (here / "x.json").write_text(json.dumps(PHASED))
        copy = ""
    stand_in(f"{copy}echo 'ml_phaser: no memory' >&2; exit 1")
    with pytest.raises(Sorry, match=r"^no memory$"):
        run_quietly(PEPTIDE, "mapout=x.map", "--overwrite")


# --------------------------------------------------------------------------------------------------- interruption


def gone(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "terminate"])
def test_interrupting_it_ends_the_child(here, real, number):
    """Only the Phenix process is told; ml_phaser ends too, in its own way, and leaves nothing."""
    (real / "pid").unlink(missing_ok=True)
    env = os.environ | {"PYTHONPATH": str(PLUGIN), "PATH": f"{real}:/usr/bin:/bin", "PYTHONUNBUFFERED": "1"}
    words = [PEPTIDE, "resolution=2.5", "timelimit=60"]
    phenix = subprocess.Popen(
        [sys.executable, "-m", "ml_phaser_phenix", *words], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    try:
        for line in phenix.stdout:
            if "-- phase" in line:
                break
        time.sleep(0.5)
        phenix.send_signal(number)
        _, errors = phenix.communicate(timeout=20)
    finally:
        phenix.kill()
    assert phenix.returncode == 1 and errors.strip() == "Sorry: interrupted; nothing was written"
    assert gone(int((real / "pid").read_text()))
    assert list(here.iterdir()) == []


def test_the_record_of_a_failed_run_is_written_where_it_was_asked_for(here, real, monkeypatch):
    monkeypatch.setenv("PATH", f"{real}:/usr/bin:/bin")
    with pytest.raises(Sorry, match="no column F"):
        run_quietly(PEPTIDE, "labin=F,SIGF", "jsonout=mine.json")
    assert [p.name for p in here.iterdir()] == ["mine.json"]
    assert json.loads((here / "mine.json").read_text())["status"] == "failed"


def test_a_child_that_will_not_stop_is_killed(here, stand_in, monkeypatch):
    """A stand-in that ignores Ctrl-C."""
    from ml_phaser_phenix import child

    monkeypatch.setattr(child, "GRACE", 0.5)
    stand_in(f"trap '' INT TERM\necho $$ > {here}/pid\necho ready\nsleep 60 >/dev/null 2>&1")

    class Impatient:
        def write(self, text):
            if "ready" in text:
                os.kill(os.getpid(), signal.SIGTERM)

        def flush(self):
            pass

    with pytest.raises(Sorry, match="interrupted"):
        child.follow([str(here / "bin" / "ml_phaser")], Impatient())
    assert gone(int((here / "pid").read_text()))
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    with suppress(FileNotFoundError):
        (here / "pid").unlink()


def test_in_a_thread_of_a_graphical_interface(here, stand_in):
    """Where signals cannot be handled: the log comes all the same, and so does what the program warns of."""
    from ml_phaser_phenix import child

    stand_in("echo 'ml_phaser: beware' >&2")
    said = io.StringIO()
    thread = threading.Thread(target=child.follow, args=([str(here / "bin" / "ml_phaser")], said))
    thread.start()
    thread.join(20)
    assert said.getvalue() == " the log of a stand-in\nbeware\n"


def test_what_cannot_be_started(here):
    from ml_phaser_phenix import child

    write_program(here / "broken", "#!/no/such/interpreter\n")
    with pytest.raises(Sorry, match=r"broken cannot be run \(No such file"):
        child.follow([str(here / "broken")], null_out())
