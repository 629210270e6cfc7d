"""The report in a real browser beside the run record, and program.xml of a run that is going on."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import gemmi
import numpy as np
import pytest

from ml_phaser.cli import main

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "peptide.mtz"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
MOST_BYTES = 1_500_000


@pytest.fixture(scope="session")
def browser():
    """Path of a Chromium."""
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"none of {', '.join(BROWSERS)} is installed")
    return found


class Words(HTMLParser):
    """Visible text of a page and the labels of its pictures."""

    def __init__(self, text):
        super().__init__()
        self._inside, self.words, self.labels, self.figures = [], [], [], 0
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self._inside.append(tag)
        self.figures += tag == "figure"
        if tag == "svg":
            self.labels.append(dict(attrs).get("aria-label"))

    def handle_endtag(self, tag):
        while self._inside and self._inside.pop() != tag:
            pass

    def handle_data(self, data):
        if "style" not in self._inside and "svg" not in self._inside:
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def opened(browser, page, folder):
    """What a page looks like to a browser: its text, what it says on the console, and what it asks of the network."""
    log = folder / f"{page.stem}.net.json"
    done = subprocess.run(
        [browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-extensions",
         "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1", f"--user-data-dir={folder / 'profile'}",
         "--enable-logging=stderr", "--log-level=0", f"--log-net-log={log}", "--dump-dom", page.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    events = json.loads(log.read_text())["events"]
    asked = [e["params"] for e in events if isinstance(e.get("params"), dict) and "initiator" in e["params"]]
    words = Words(done.stdout)
    return SimpleNamespace(
        text=words.text,
        labels=words.labels,
        figures=words.figures,
        console=[line for line in done.stderr.splitlines() if "CONSOLE" in line],
        requests=[p["url"] for p in asked if p["initiator"] != "not an origin" and not p["url"].startswith("file:")],
    )


def run(folder, name, *words, hklin=EXAMPLE):
    """The command, in this process; exit code, record and page."""
    record, page = folder / f"{name}.json", folder / f"{name}.html"
    stdin, stdout, stderr = sys.stdin, sys.stdout, sys.stderr
    sys.stdin, sys.stdout, sys.stderr = io.StringIO(""), io.StringIO(), io.StringIO()
    try:
        code = main([
            "hklin", str(hklin), "mapout", str(folder / f"{name}.map"), "jsonout", str(record), "reportout", str(page),
            "threads", "1", *words,
        ])  # fmt: skip
        said = sys.stderr.getvalue()
    finally:
        sys.stdin, sys.stdout, sys.stderr = stdin, stdout, stderr
    return SimpleNamespace(code=code, record=json.loads(record.read_text()), page=page, said=said)


def noise(path, group="P 21 21 21", d_min=1.1):
    """Amplitudes of no structure at all."""
    cell, spacegroup = gemmi.UnitCell(7, 8, 9, 90, 90, 90), gemmi.SpaceGroup(group)
    hkl = np.asarray(gemmi.make_miller_array(cell, spacegroup, d_min), dtype=np.int32)
    f = np.random.default_rng(0).rayleigh(10, len(hkl))
    mtz = gemmi.Mtz(with_base=True)
    mtz.spacegroup = spacegroup
    mtz.add_dataset("x")
    mtz.set_cell_for_all(cell)
    mtz.add_column("F", "F")
    mtz.add_column("SIGF", "Q")
    mtz.set_data(np.column_stack([hkl, f, 0.02 * f + 0.1]).astype(np.float32))
    mtz.write_to_file(str(path))
    return path


def squeezed(text):
    return " ".join(text.split())


# ------------------------------------------------------------------------------------------- in a browser


def test_the_browser_tells_of_errors_and_requests(browser, tmp_path):
    """Or else the tests below would find none for want of looking."""
    page = tmp_path / "bad.html"
    page.write_text('<!DOCTYPE html><img src="http://127.0.0.1:9/a.png"><script>missing();</script>')
    seen = opened(browser, page, tmp_path)
    assert seen.requests == ["http://127.0.0.1:9/a.png"] and any("missing" in line for line in seen.console)


@pytest.mark.parametrize("right", [True, False], ids=["a crystal", "noise"])
def test_page_of_a_finished_run_says_what_the_record_says(browser, tmp_path, right):
    if right:
        done = run(tmp_path, "run", "trials", "4", "timelimit", "60")
    else:
        done = run(tmp_path, "run", "trials", "2", "timelimit", "5", hklin=noise(tmp_path / "noise.mtz"))
    record, page = done.record, opened(browser, done.page, tmp_path)
    kind = record["verdict"]["word"]  # of noise with 30 reflections held out it may be "uncertain"
    assert done.code == 0 and (kind == "solved") == right
    assert page.console == [] and page.requests == []
    assert done.page.stat().st_size < MOST_BYTES
    verdict, best = record["verdict"], record["trials"][record["best_trial"]]
    facts = [
        kind.capitalize(), f"right: {verdict['probability']:.2f}", verdict["reason"], record["hand"],
        record["spacegroup"], f"{record['mean_fom']:.3f}", f"{best['score']:.3f} ({record['n_held']} reflections)",
        best["method"],
        f"{best['index'] + 1} of {len(record['trials'])}", f"{record['d_min']:.2f} A", str(record["n_reflections"]),
        f"{100 * record['completeness']:.1f} % complete", f"{record['cell'][0]:.3f}", record["command"],
        f"{record['density']['skewness']:.1f}", f"B {record['wilson']['wilson_b']:.1f}", record["versions"]["torch"],
        f"phase {record['times']['phase']:.1f} s", *record["outputs"]["mapout"].split(),
    ]  # fmt: skip
    facts += [f"{s['fom']:.3f}" for s in record["shells"]] + [f"{t['score']:.3f}" for t in record["trials"][:10]]
    facts += [re.split(" To change: ", c)[0] for c in record["choices"]]
    facts += record["advice"]["do"] + record["advice"]["avoid"] + record["warnings"]
    for fact in facts:
        assert squeezed(fact) in page.text, fact
    assert page.text.index(kind.capitalize()) < page.text.index("Key numbers")
    harker = 1 if right else 3
    of_density = record["atoms"] is None  # figures of merit of atoms are by what they leave, of no calibration to draw
    assert bool(record["calibration"]) == of_density
    assert page.figures == len(page.labels) == 2 + harker + 1 + 3 + of_density and all(page.labels)


def test_page_of_a_failed_run_says_why(browser, tmp_path):
    done = run(tmp_path, "run", "resolution", "12,11.5")
    page = opened(browser, done.page, tmp_path)
    assert done.code == 1 and page.console == [] and page.requests == []
    message = done.record["error"]["message"]
    assert done.said == f"ml_phaser: {message}\n"
    for fact in ("Run failed", *message.split(" Try: "), "Stage read", done.record["command"]):
        assert squeezed(fact) in page.text
    assert sorted(p.suffix for p in tmp_path.glob("run.*") if "net" not in p.name) == [".html", ".json"]


@pytest.mark.shared
def test_page_of_a_measured_oblique_crystal(browser, shared_data, tmp_path):
    """P -1 without Harker sections; the angle between the axes drawn is that of the cell."""
    data = shared_data / "diffraction" / "alert_p-1" / "alert_example.cif"
    done = run(tmp_path, "run", "timelimit", "20", hklin=data)
    page = opened(browser, done.page, tmp_path)
    assert page.console == [] and page.requests == [] and done.page.stat().st_size < MOST_BYTES
    assert "Solved" in page.text and "the group has no Harker sections" in page.text
    assert page.figures == 7 + (done.record["atoms"] is None)
    assert "the data carry no free-R flags" in page.text


# ----------------------------------------------------------------------------------------------- while it runs


def test_interrupted_search_keeps_its_starts(tmp_path):
    path = tmp_path / "program.xml"
    process = subprocess.Popen(
        [sys.executable, "-m", "ml_phaser", "hklin", str(noise(tmp_path / "noise.mtz")), "mapout",
         str(tmp_path / "run.map"), "xmlout", str(path), "timelimit", "600", "threads", "1"],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    try:
        for _ in range(1200):
            if path.exists() and ET.parse(path).find("trials/trial") is not None:
                break
            assert process.poll() is None
            time.sleep(0.05)
        process.terminate()
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 1 and said.startswith("ml_phaser: interrupted; no results were written")
    root = ET.parse(path).getroot()
    assert root.findtext("status") == "interrupted" and root.findtext("stage") == "phase"
    assert len(root.findall("trials/trial")) > 0 and root.find("error") is None
    assert sorted(p.name for p in tmp_path.iterdir()) == ["noise.mtz", "program.xml"]


def test_program_xml_of_a_run_that_is_going_on(tmp_path):
    """Looked at many times: whole, running, and further each time; finished at the end."""
    path = tmp_path / "program.xml"
    process = subprocess.Popen(
        [sys.executable, "-m", "ml_phaser", "hklin", str(noise(tmp_path / "noise.mtz")), "mapout",
         str(tmp_path / "run.map"), "xmlout", str(path), "timelimit", "6", "trials", "100000", "threads", "1"],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    seen, versions = [], set()
    try:
        while process.poll() is None:
            if path.exists():
                text = path.read_bytes()
                root = ET.fromstring(text)
                assert root.tag == "ml_phaser"
                if root.findtext("status") == "running":
                    seen.append((float(root.findtext("progress")), len(root.findall("trials/trial"))))
                    versions.add(text)
                    assert root.findtext("stage") and root.findtext("command").startswith("ml_phaser hklin")
            time.sleep(0.05)
    finally:
        process.kill()
        _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert seen == sorted(seen) and seen[0][1] == 0 and seen[-1][1] > 0
    assert len({progress for progress, _ in seen}) >= 3 and 0 < seen[-1][0] <= 1
    assert len(versions) <= 5 + 6 + 2  # a version for each stage and each second
    root = ET.parse(path).getroot()
    assert root.findtext("status") == "finished" and root.findtext("verdict/word") in ("uncertain", "not solved")
    assert len(root.findall("trials/trial")) >= seen[-1][1] and root.find("density/histogram/counts/count") is not None
