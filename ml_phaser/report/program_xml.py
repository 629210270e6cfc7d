"""program.xml: the facts of the run record for ccp4i2 and other graphical interfaces."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

from ml_phaser.atomic import atomic

ROOT = "ml_phaser"
ITEM = {
    "shells": "shell",
    "calibration": "bin",
    "trials": "trial",
    "notes": "note",
    "choices": "choice",
    "columns": "column",
    "rows": "row",
    "next": "step",
    "needs": "need",
    "warnings": "warning",
    "do": "sentence",
    "avoid": "sentence",
    "edges": "edge",
    "counts": "count",
}


def _name(key: str) -> str:
    """A key as an element's name."""
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", key)
    return name if re.match(r"[A-Za-z_]", name) else f"_{name}"


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    text = f"{value:.8g}" if isinstance(value, float) else str(value)
    return re.sub(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "?", text)


def _add(parent: ET.Element, key: str, value: Any) -> None:
    if value is None:
        return
    element = ET.SubElement(parent, _name(key))
    if isinstance(value, dict):
        for name, item in value.items():
            _add(element, name, item)
    elif isinstance(value, list):
        for item in value:
            _add(element, ITEM.get(key, "item"), item)
    else:
        element.text = _text(value)


def to_xml(record: dict[str, Any]) -> bytes:
    """The run record as XML: one element a key, lists as repeated elements, null left out. ASCII bytes."""
    root = ET.Element(ROOT)
    for key, value in record.items():
        _add(root, key, value)
    ET.indent(root)
    return ET.tostring(root, encoding="us-ascii", xml_declaration=True)


def write_xml(path: Path | str, record: dict[str, Any]) -> None:
    """Write program.xml, whole or not at all. Raises UserError where it cannot be written."""
    text = to_xml(record)
    with atomic(path) as tmp:
        tmp.write_bytes(text)
