"""Tables of the benchmark that the verdict on large structures rests on."""

import gemmi
import numpy as np

from benchmarks import heavy_verdict
from benchmarks.phasing.crystals import Crystal
from ml_phaser.crystal.reflections import Amplitudes, Source

ROWS = [
    {"split": "holdout", "name": name, "group": "P 1", "d_min": d_min, "begun": begun, "turns": turns, "held": held,
     "score": score, "cc": cc}
    for name, d_min, held, begun, turns, score, cc in (
        ("a", 1.1, 900, 0.4, 1, 0.65, 0.95), ("a", 1.1, 900, 0.2, 1, 0.05, 0.03), ("a", 1.1, 900, 0, 1, 0.06, 0.02),
        ("a", 1.1, 900, 0, 2, 0.40, 0.90),
        ("b", 1.2, 1500, 0.4, 1, 0.17, 0.55), ("b", 1.2, 1500, 0, 1, 0.05, 0.05),
        ("coiled", 1.2, 700, 0.2, 1, 0.28, 0.10), ("coiled", 1.2, 700, 0, 1, 0.26, 0.10),
        ("small", 1.1, 200, 0.2, 1, 0.25, 0.20), ("small", 1.1, 200, 0, 1, 0.10, 0.10),
    )
]  # fmt: skip


def cells(lines: list[str]) -> dict[str, list[str]]:
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    return {row[0]: row[1:] for row in rows}


def test_chance_is_the_first_map_from_nothing() -> None:
    maps = heavy_verdict.with_chance(ROWS)
    assert [(r["name"], r["chance"]) for r in maps] == [
        ("a", 0.06), ("a", 0.06), ("b", 0.05), ("coiled", 0.26), ("small", 0.10)
    ]  # fmt: skip


def test_words_are_counted_with_what_was_right() -> None:
    words = cells(heavy_verdict.said(heavy_verdict.with_chance(ROWS)))
    assert words["solved"] == ["1", "1", words["solved"][2], "1.00", "0.95 to 0.95"]
    assert words["uncertain"][:2] == ["1", "1"] and words["uncertain"][4] == "0.55 to 0.55"
    assert words["not solved"][:2] == ["3", "0"]
    assert cells(heavy_verdict.said(heavy_verdict.with_chance(ROWS)[:1]))["uncertain"] == ["0", "", "", "", ""]


def test_maps_are_sorted_by_what_is_asked() -> None:
    maps = heavy_verdict.with_chance(ROWS)
    table = cells(heavy_verdict.by_score(maps, "score", lambda r: r["score"]))
    assert table["0.2 to 0.3"] == ["2", "0.15", "0.10", "0.20", "0.00"] and "0.3 to 0.45" not in table
    lead = cells(heavy_verdict.by_score(maps, "lead", lambda r: r["score"] - r["chance"]))
    assert lead["0 to 0.04"][0] == "1" and lead["0.45 to 1"][0] == "1"


def test_few_held_out_reflections_have_tables_of_their_own() -> None:
    text = heavy_verdict.report(ROWS, {"version": "1.2.3"})
    assert "5 maps of 4 crystals, 4 of them with 400 reflections held out or more" in text
    assert "random phases come to 0.05 to 0.26 there, a median of 0.06" in text
    many, few = text.split("## What the verdict")[0].split("## Fewer")
    assert "| 0.2 to 0.3 | 1 |" in many and "| 0.2 to 0.3 | 1 |" in few


def test_phases_begin_with_errors_of_every_strength() -> None:
    cell, group = gemmi.UnitCell(20, 21, 22, 90, 90, 90), gemmi.SpaceGroup("P 1")
    hkl = np.asarray(gemmi.make_miller_array(cell, group, 2.0), dtype=np.int32)
    rng = np.random.default_rng(1)
    f = rng.normal(size=len(hkl)) + 1j * rng.normal(size=len(hkl))
    source = Source("x", "x", ("F", "SIGF"), "amplitude")
    data = Amplitudes(hkl=hkl, f=abs(f), sigf=0.1 * abs(f), cell=cell, spacegroup=group, source=source)
    begun = list(heavy_verdict.starts(Crystal(data, f, {}), 3))
    found = [float((f.conj() * (abs(f) * np.exp(1j * np.angle(g)))).real.sum() / (abs(f) ** 2).sum()) for _, g in begun]
    for (asked, _), cc in zip(begun, found, strict=True):
        assert abs(cc - asked) < 0.1
    assert begun[0][0] < begun[1][0] and begun[2][0] == 0
