"""The report in the Django release: while a job runs, where it failed, for each verdict."""

import xml.etree.ElementTree as ET

import pytest
from i2_records import SAID, running

pytestmark = pytest.mark.ccp4i2


@pytest.fixture(scope="module")
def row(suite):
    """A job that was never run, to stand for one in any state."""
    return suite.run("reports", "--TRIALS", "1")


def said(element):
    pieces = [piece for part in element.iter() for piece in (part.get("label"), part.text, part.tail) if piece]
    return " ".join(" ".join(pieces).split())


@pytest.mark.parametrize("state", SAID)
def test_what_the_report_says(suite, state, tmp_path):
    from ccp4i2.core.tasks import get_report_class

    text, status, wanted, unwanted = SAID[state]
    root = None if text is None else ET.fromstring(text)
    made = get_report_class("ml_phaser")(xmlnode=root, jobInfo={"fileroot": str(tmp_path)}, jobStatus=status)
    words = said(made.as_data_etree())
    assert all(phrase in words for phrase in wanted), words
    assert not any(phrase in words for phrase in unwanted), words


def test_a_running_job_is_shown_live(row):
    from ccp4i2.db.models import Job

    row.row.status = Job.Status.RUNNING
    row.row.save()
    assert "ml_phaser has begun." in said(row.report())
    (row.folder / "program.xml").write_text(running())
    report = row.report()
    progress = report.find(".//CCP4i2ReportProgress")
    assert (progress.get("value"), progress.get("max")) == ("42", "100")
    scores = report.find(".//CCP4i2ReportFlotGraph//data").text.split("\n")
    assert [line.split() for line in scores if line.strip()] == [["1", "0.740"], ["2", "0.210"]]


def test_the_release_knows_it_is_live(suite):
    from ccp4i2.core.tasks import get_watched_file, supports_running_report

    assert supports_running_report("ml_phaser") and get_watched_file("ml_phaser") == "program.xml"


def test_the_histogram_of_the_density(suite, tmp_path):
    from ccp4i2.core.tasks import get_report_class

    root = ET.fromstring(SAID["solved"][0])
    made = get_report_class("ml_phaser")(xmlnode=root, jobInfo={"fileroot": str(tmp_path)}, jobStatus="Finished")
    tables = [data.text.split() for data in made.as_data_etree().iter("data")]
    assert ["-0.500", "70", "0.500", "30"] in tables
