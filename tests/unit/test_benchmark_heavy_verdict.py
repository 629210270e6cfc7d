"""Tables of the benchmark that the verdict on large structures rests on."""

import gemmi
import numpy as np

from benchmarks import heavy_verdict
from benchmarks.phasing.crystals import Crystal
from ml_phaser.crystal.reflections import Amplitudes, Source

ROWS = [
    {"split": "holdout", "name": name, "group": "P 1", "d_min": d_min, "begun": 0.2, "turns": 1, "held": held,
     "score": score, "cc": cc}
    for name, d_min, held, score, cc in (
        ("a", 1.1, 900, 0.65, 0.95), ("a", 1.1, 900, 0.05, 0.03), ("b", 1.2, 1500, 0.23, 0.61),
        ("c", 1.2, 700, 0.28, 0.10), ("d", 1.1, 200, 0.25, 0.20), ("e", 1.1, 900, 0.66, 0.93),
    )
]  # fmt: skip


def cells(lines: list[str]) -> dict[str, list[str]]:
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    return {row[0]: row[1:] for row in rows}


def test_words_are_counted_with_what_was_right() -> None:
    words = cells(heavy_verdict.said([r for r in ROWS if r["held"] >= 400]))
    assert words["solved"][:2] == ["2", "2"] and words["solved"][3:] == ["1.00", "0.93 to 0.95"]
    assert words["uncertain"][:2] == ["2", "1"] and words["uncertain"][3] == "0.50"
    assert words["not solved"][:2] == ["1", "0"]
    assert cells(heavy_verdict.said(ROWS[:1]))["uncertain"] == ["0", "", "", "", ""]


def test_maps_are_sorted_by_score() -> None:
    table = cells(heavy_verdict.by_score(ROWS))
    assert table["0.2 to 0.3"] == ["3", "0.20", "0.10", "0.61", "0.33"] and "0.3 to 0.45" not in table


def test_few_held_out_reflections_have_a_table_of_their_own() -> None:
    text = heavy_verdict.report(ROWS, {"version": "1.2.3"})
    assert "6 maps of 5 crystals, 5 of them with 400 reflections held out or more" in text
    large, small = text.split("With fewer:")
    assert "| 0.2 to 0.3 | 2 |" in large and "| 0.2 to 0.3 | 1 |" in small


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
