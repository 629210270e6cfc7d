"""Whole jobs in the Django release, through i2run: what it registers, shows and reports."""

import importlib.util
import os
import re
import shutil
import time

import gemmi
import numpy as np
import pytest
from i2_fields import EXAMPLE

pytestmark = [pytest.mark.ccp4i2, pytest.mark.slow]
FINISHED, FAILED, PENDING, RUNNING = 6, 5, 1, 3
DATA = ["--F_SIGF", f"fullPath={EXAMPLE}", "columnLabels=/*/*/[I,SIGI]"]


def words(element):
    return " ".join(" ".join(element.itertext()).split())


def words_of(job):
    return words(job.report())


def columns(path):
    mtz = gemmi.read_mtz_file(str(path))
    return {c.label: c.type for c in mtz.columns if c.type != "H"}, mtz


def test_a_solved_job_is_finished_and_its_files_registered(solved):
    assert solved.row.status == FINISHED, solved.said[-2000:]
    files = solved.files()
    assert {"ABCDOUT", "FPHIOUT", "MAPOUT", "PATTERSON"} <= set(files)
    assert files["ABCDOUT"].type.name == "application/CCP4-mtz-phases" and files["ABCDOUT"].content == 1
    assert files["FPHIOUT"].type.name == "application/CCP4-mtz-map" and files["FPHIOUT"].sub_type == 1
    assert files["MAPOUT"].type.name == "application/CCP4-map"
    assert files["MAPOUT"].annotation.startswith("Density map from ml_phaser (solved")


def test_the_phased_mtz_is_split_as_ccp4i2_names_columns(solved):
    whole_types, whole = columns(solved.folder / "hklout.mtz")
    hl_types, hl = columns(solved.folder / "ABCDOUT.mtz")
    map_types, coefficients = columns(solved.folder / "FPHIOUT.mtz")
    assert hl_types == {"HLA": "A", "HLB": "A", "HLC": "A", "HLD": "A"} and map_types == {"F": "F", "PHI": "P"}
    assert {"FWT", "PHWT", "FOM"} <= set(whole_types)

    def by_index(mtz, label):
        found = {
            tuple(h): v
            for h, v in zip(mtz.make_miller_array().tolist(), mtz.column_with_label(label).array, strict=True)
        }
        return {h: v for h, v in found.items() if np.isfinite(v)}

    for part, label, name in ((hl, "HLB", "HLB"), (coefficients, "F", "FWT"), (coefficients, "PHI", "PHWT")):
        here, there = by_index(part, label), by_index(whole, name)
        assert len(here) == len(there) > 500
        assert max(abs(here[h] - there[h]) for h in here) < 1e-3


def test_the_map_is_that_of_the_coefficients(solved):
    ccp4 = gemmi.read_ccp4_map(str(solved.folder / "MAPOUT.map"))
    ccp4.setup(0.0)
    _, mtz = columns(solved.folder / "FPHIOUT.mtz")
    shape = [ccp4.grid.nu, ccp4.grid.nv, ccp4.grid.nw]
    ours = mtz.transform_f_phi_to_map("F", "PHI", exact_size=shape)
    assert np.corrcoef(np.ravel(ours.array), np.ravel(ccp4.grid.array))[0, 1] > 0.999


def test_performance_indicators_are_in_the_database(solved):
    figures = solved.figures()
    assert 0.3 < figures["FOM"] <= 1 and 0.5 < figures["CC"] <= 1
    assert figures["annotation"].startswith("solved, P = ")


def test_the_report_puts_the_verdict_first(solved):
    report = solved.report()
    said = words(report)
    assert "Solved. The map is right with probability" in said and "No report" not in said
    kinds = [element.tag for element in report]
    assert kinds.index("CCP4i2ReportGeneric") < kinds.index("CCP4i2ReportTable") < kinds.index("CCP4i2ReportFold")
    graphs = report.findall(".//CCP4i2ReportFlotGraph")
    assert len(graphs) >= 2
    for graph in graphs:
        headings, data = graph.find(".//headers").text.split(), graph.find(".//data").text.strip().split("\n")
        assert all(len(row.split()) == len(headings) for row in data)
        assert all(int(line.get("ycol")) <= len(headings) for line in graph.iter("plotline"))
    fom = [float(row.split()[1]) for row in graphs[0].find(".//data").text.strip().split("\n")]
    assert all(0 <= value <= 1 for value in fom)


def test_what_comes_next_are_tasks_there_are(solved):
    from ccp4i2.core.tasks import TASKS
    from ccp4i2.lib.utils.navigation.what_next import get_what_next

    offered = get_what_next(solved.row)
    names = [step["taskName"] for step in offered["result"]]
    assert offered["Status"] == "Success" and "modelcraft" in names and set(names) <= set(TASKS)


@pytest.mark.skipif(
    importlib.util.find_spec("ml_phaser.report.live") is None,
    reason="this ml_phaser writes program.xml only at its end",
)
def test_a_job_is_watched_while_it_runs(suite):
    running = suite.begin("live", *DATA, "--TRIALS", "30", "--TIMELIMIT", "20", "--RESOLUTION_HIGH", "1.6")
    seen = set()
    while running.poll() is None:
        job = suite.job("live")
        if job is not None and job.row.status == RUNNING:
            seen.add(words(job.report()))
        time.sleep(0.1)
    job = suite.job("live")
    assert job.row.status == FINISHED, job.said[-2000:]
    assert any("ml_phaser is phasing." in report for report in seen), seen
    assert any("Starts, best first" in report for report in seen), "no starts were shown"
    assert not any("Figures by resolution" in report for report in seen)


def test_its_phases_can_be_started_from(suite, solved, measured, tmp_path):
    given = shutil.copy(solved.folder / "ABCDOUT.mtz", tmp_path / "given.mtz")
    phases = [f"fullPath={given}", "columnLabels=/*/*/[HLA,HLB,HLC,HLD]"]
    job = suite.run("again", *measured, "--ABCD", *phases, "--TIMELIMIT", "10")
    assert job.row.status == FINISHED, job.said[-2000:]
    assert "Phases given:" in (job.folder / "log.txt").read_text()
    moved = re.search(r"moved by (\d+) degrees", (job.folder / "log.txt").read_text())
    assert moved and int(moved[1]) < 45


def test_free_flags_stay_with_the_data(suite):
    job = suite.run(
        "free", *DATA, "--FREERFLAG", f"fullPath={EXAMPLE}", "columnLabels=/*/*/[FreeR_flag]", "--TRIALS", "1"
    )
    assert job.row.status == FINISHED, job.said[-2000:]
    assert columns(job.folder / "hklout.mtz")[0]["FREERFLAG_FREER"] == "I"
    assert "FREEROUT" not in job.files()


def test_free_flags_that_were_made_are_registered(suite):
    """The job's data are I, SIGI alone, without the flags of the example."""
    job = suite.run("made", *DATA, "--FREER", "10", "--TRIALS", "1")
    assert job.row.status == FINISHED, job.said[-2000:]
    assert job.files()["FREEROUT"].type.name == "application/CCP4-mtz-freerflag"
    types, mtz = columns(job.folder / "FREEROUT.mtz")
    assert types == {"FREER": "I"}
    flags = mtz.column_with_label("FREER").array
    assert 0.05 < np.mean(flags == 0) < 0.15 and np.isfinite(flags).all()
    whole = columns(job.folder / "hklout.mtz")[1]
    np.testing.assert_array_equal(np.sort(flags), np.sort(whole.column_with_label("FreeR_flag").array))


def test_pieces_are_placed_and_registered(suite, tmp_path):
    """A piece of the example's own structure."""
    structure = gemmi.read_pdb(str(EXAMPLE.with_suffix(".pdb")))
    structure.remove_waters()
    structure.write_pdb(str(tmp_path / "piece.pdb"))
    given = ["--XYZIN", f"fullPath={tmp_path / 'piece.pdb'}", "--STARTS", "fragments", "--TIMELIMIT", "60"]
    job = suite.run("pieces", *DATA, *given)
    assert job.row.status == FINISHED, job.said[-2000:]
    placed = job.files()["XYZOUT"]
    assert placed.type.name == "chemical/x-pdb" and placed.annotation.startswith("Pieces placed by ml_phaser (solved")
    found = gemmi.read_pdb(str(job.folder / "XYZOUT.pdb"))
    assert found[0].count_atom_sites() == structure[0].count_atom_sites()
    assert "Begun with pieces placed: piece.pdb" in words_of(job)


def test_a_next_program_that_fails_takes_no_phases_away(suite, tmp_path):
    """A stand-in for SHELXE, without a licence."""
    (tmp_path / "shelxe").write_text("#!/bin/sh\necho no licence\nexit 3\n")
    (tmp_path / "shelxe").chmod(0o755)
    job = suite.run("next", *DATA, "--THEN", "shelxe", path=f"{tmp_path}:{os.environ['PATH']}")
    assert job.row.status == FINISHED, job.said[-2000:]
    assert {"ABCDOUT", "FPHIOUT", "MAPOUT"} <= set(job.files()) and "XYZOUT" not in job.files()
    report = words_of(job)
    assert "Solved." in report and "No phases" not in report
    assert "The phases are there; the next program failed: shelxe, exit status 3." in report
    diagnostic = (job.folder / "diagnostic.xml").read_text()
    assert "the next program failed: shelxe" in diagnostic and "ml_phaser stopped" not in diagnostic


def test_a_failure_is_reported_in_the_programs_words(suite):
    job = suite.run("failed", *DATA, "--SPACEGROUP", "P 4 3 2")
    assert job.row.status == FAILED
    diagnostic = (job.folder / "diagnostic.xml").read_text()
    assert "<code>202</code>" in diagnostic.replace(" ", "") and "ml_phaser stopped and said why" in diagnostic
    said = [line for line in (job.folder / "stderr.txt").read_text().splitlines() if line.startswith("ml_phaser: ")]
    message = said[-1].removeprefix("ml_phaser: ")
    assert message.split(". Try:")[0] in diagnostic
    assert "the job did not finish" in words(job.report()) and message in words(job.report())
    assert not (job.folder / "ABCDOUT.mtz").exists() and not job.files().keys() & {"ABCDOUT", "MAPOUT"}


def test_a_crash_is_reported_as_one(suite, tmp_path):
    crashing = tmp_path / "ml_phaser"
    crashing.write_text("#!/bin/sh\nkill -SEGV $$\n")
    crashing.chmod(0o755)
    job = suite.run("crash", *DATA, path=f"{tmp_path}:/usr/bin:/bin")
    assert job.row.status == FAILED
    diagnostic = (job.folder / "diagnostic.xml").read_text()
    assert "SIGSEGV" in diagnostic and "stopped without a word" in diagnostic
    assert "left no message" in words(job.report())


def test_files_missing_at_the_end_fail_the_job(suite, tmp_path):
    idle = tmp_path / "ml_phaser"
    idle.write_text("#!/bin/sh\nexit 0\n")
    idle.chmod(0o755)
    job = suite.run("idle", *DATA, path=f"{tmp_path}:/usr/bin:/bin")
    assert job.row.status == FAILED
    assert "hklout.mtz, program.xml, MAPOUT.map" in (job.folder / "diagnostic.xml").read_text()


def test_a_missing_program_is_named(suite, tmp_path):
    job = suite.run("absent", *DATA, path=str(tmp_path))
    assert job.row.status == FAILED
    assert "The program ml_phaser is not on PATH" in (job.folder / "diagnostic.xml").read_text()


def test_missing_data_are_refused(suite):
    job = suite.run("nothing", "--TRIALS", "1")
    assert job.row.status == PENDING and "inputData.F_SIGF" in job.said
    assert not (job.folder / "log.txt").exists()


def test_the_log_is_read_by_smartie(solved):
    from ccp4i2.smartie import smartie

    log = smartie.parselog(str(solved.folder / "log.txt"))
    assert log.nprograms() == 1 and log.program(0).name == "ml_phaser"
    titles = {table.title().strip(): table for table in log.tables()}
    assert {"Data by resolution", "FOM by resolution", "Held-out score of trials"} <= set(titles)
    fom = titles["FOM by resolution"]
    assert fom.ngraphs() == 3 and fom.nrows() > 3
    assert all(0 <= float(value) <= 1 for value in fom.col("FOM"))
