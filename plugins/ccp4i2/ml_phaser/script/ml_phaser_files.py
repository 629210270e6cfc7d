"""What the program ml_phaser left in the folder of a job. Standard library alone: both releases read it."""

from __future__ import annotations

import re
import struct
import xml.etree.ElementTree as ET
from pathlib import Path

LAST_WORDS = re.compile(r"^ ?ml_phaser: +(.*\S)", re.MULTILINE)


def program_xml(path: Path) -> ET.Element | None:
    """The facts of the run, None where there are none (yet)."""
    try:
        return ET.parse(path).getroot()
    except (OSError, ET.ParseError):
        return None


def text(root: ET.Element | None, path: str, default: str = "") -> str:
    """Text of an element, or ``default``."""
    found = None if root is None else root.findtext(path)
    return default if found is None else found.strip()


def number(root: ET.Element | None, path: str) -> float | None:
    """Value of an element, None where it is missing or no number."""
    try:
        return float(text(root, path))
    except ValueError:
        return None


def mean_fom(root: ET.Element | None) -> float | None:
    """Figure of merit over all reflections, from the shells."""
    total = weight = 0.0
    for shell in [] if root is None else root.findall("shells/shell"):
        n, fom = number(shell, "n"), number(shell, "fom")
        if n and fom is not None:
            total, weight = total + n * fom, weight + n
    return total / weight if weight else None


def best_score(root: ET.Element | None) -> float | None:
    """Correlation on held-out reflections of the trial that the phases come from."""
    for trial in [] if root is None else root.findall("trials/trial"):
        if text(trial, "index", "-") == text(root, "best_trial"):
            return number(trial, "score")
    return None


def why_failed(folder: Path) -> str:
    """The program's own message, "" where it left none: from program.xml, else the last words of its output."""
    said = text(program_xml(folder / "program.xml"), "error/message")
    if said:
        return said
    for name in ("stderr.txt", "log_err.txt", "log.txt"):
        try:
            words = LAST_WORDS.findall((folder / name).read_text(encoding="utf-8", errors="replace"))
        except OSError:
            continue
        if words and words[-1] != "Normal termination":
            return words[-1]
    return ""


def next_failed(root: ET.Element | None) -> str:
    """What became of the next program where it failed, "" else. The run itself is finished then."""
    code = text(root, "then/exit_code", "0")
    if text(root, "status") != "finished" or code == "0":
        return ""
    log = text(root, "then/log")
    said = f"{text(root, 'then/program')}, exit status {code}. {text(root, 'then/summary')}".strip()
    return f"{said} Its log: {log}" if log else said


def free_column(mtz: Path) -> str:
    """Label of the free-R flags of an MTZ, "" where it has none: its columns of type I named FREE..."""
    with mtz.open("rb") as file:
        start = file.read(12)
        order = ">" if start[8] >> 4 == 1 else "<"
        (word,) = struct.unpack(order + "i", start[4:8])
        if word == -1:  # position too far for 32 bits
            start += file.read(12)
            (word,) = struct.unpack(order + "q", start[12:20])
        file.seek(4 * (word - 1))
        header = file.read()
    for i in range(0, len(header), 80):
        words = header[i : i + 80].decode("latin-1").split()
        if len(words) > 2 and words[0].startswith("COLU") and words[2] == "I" and words[1].upper().startswith("FREE"):
            return words[1]
    return ""
