"""A page out of a report of ccp4i2: ``python ccp4i2_report.py report.xml page.html``.

Draws the elements that the Django release hands to its browser client (``manage.py get_job_report``), plainly: what the
report says is ccp4i2's and ours, how it looks here is not ccp4i2's. Needs matplotlib.
"""

from __future__ import annotations

import base64
import io
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import MaxNLocator

STYLE = """
body { font: 14px sans-serif; width: 760px; margin: 12px; color: #222; }
table { border-collapse: collapse; font-size: 12px; margin: 6px 0; }
td, th { border: 1px solid #ccc; padding: 2px 8px; text-align: right; }
summary { background: #eef2f6; padding: 5px 8px; margin-top: 8px; font-weight: bold; }
p { margin: 5px 0; } img { width: 480px; } pre { background: #f5f5f5; padding: 6px; }
"""
LEFT_OUT = ("CCP4i2ReportTitle", "CCP4i2ReportInputData", "CCP4i2ReportOutputData")


def graph(element: ET.Element) -> str:
    """One graph as an image."""
    data = next(e for e in element.iter() if e.tag.endswith("ccp4_data"))
    rows = [row.split() for row in (data.findtext("data") or "").strip().split("\n")]
    columns = [[float("nan") if v == "-" else float(v) for v in column] for column in zip(*rows, strict=True)]
    plot = data.find("plot")
    assert plot is not None
    figure, axes = plt.subplots(figsize=(6, 3), dpi=110)
    x = columns[0]
    for line in plot.findall("plotline"):
        y = columns[int(line.get("ycol", "2")) - 1]
        axes.plot(x, y, "o-", ms=3, color=line.findtext("colour"), label=line.findtext("label"))
    if plot.findtext("xscale") == "oneoversqrt":
        axes.set_xticks(x[:: max(1, len(x) // 6)])
        axes.set_xticklabels([f"{v**-0.5:.2f}" for v in axes.get_xticks()])
    if plot.findtext("xintegral") == "true":
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_title(plot.findtext("title") or "", fontsize=10)
    axes.set_xlabel(plot.findtext("xlabel") or "")
    axes.legend(fontsize=8)
    figure.tight_layout()
    image = io.BytesIO()
    figure.savefig(image, format="png")
    plt.close(figure)
    return f'<img src="data:image/png;base64,{base64.b64encode(image.getvalue()).decode()}"/>'


def html(element: ET.Element) -> str:
    """An element and what it holds."""
    if element.tag in LEFT_OUT:
        return ""
    if element.tag == "CCP4i2ReportFlotGraph":
        return graph(element)
    if element.tag == "CCP4i2ReportFold":
        inside = "".join(map(html, element))
        opened = " open" if element.get("initiallyOpen") == "True" else ""
        return f"<details{opened}><summary>{element.get('label')}</summary>{inside}</details>" if inside else ""
    if element.tag == "CCP4i2ReportProgress":
        return f'<progress value="{element.get("value")}" max="100"></progress> {element.get("label")}'
    if element.tag.startswith("CCP4i2Report"):
        return "".join(map(html, element))
    return ET.tostring(element, encoding="unicode")


if __name__ == "__main__":
    page = f"<html><head><style>{STYLE}</style></head><body>{html(ET.parse(sys.argv[1]).getroot())}</body></html>"
    Path(sys.argv[2]).write_text(page, encoding="utf-8")
