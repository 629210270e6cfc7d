"""Every measured data set of ../shared/data reads, and as its table says."""

from __future__ import annotations

import csv
from pathlib import Path

import gemmi
import numpy as np
import pytest

from ml_phaser.errors import UserError
from ml_phaser.exchange.read import read_amplitudes

pytestmark = pytest.mark.shared

FOLDER = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "diffraction"
TABLE = FOLDER / "README.csv"
ROWS = list(csv.DictReader(TABLE.read_text().splitlines())) if TABLE.is_file() else []
LABIN = {"1dtx": "FP=FTOXD3 SIGFP=SIGFTOXD3"}  # four crystals in one file
# The table counts what we leave out: rows marked as not measured, absences; or another block of the file.
OTHER_COUNT = {"1nsf": 24488, "epoxide": 2081, "abiraterone_ed": 1113}


@pytest.fixture(scope="module", autouse=True)
def data_here() -> None:
    if not ROWS:
        pytest.skip("the measured data (../shared/data) are not here")


@pytest.mark.parametrize("row", ROWS, ids=[r["name"] for r in ROWS])
def test_set_reads_as_its_table_says(row: dict[str, str]) -> None:
    data = read_amplitudes(FOLDER / row["name"] / row["refl_file"], labin=LABIN.get(row["name"]))
    assert data.spacegroup.xhm() == row["space_group"]
    assert np.allclose(data.cell.parameters, [float(x) for x in row["cell"].split()], atol=0.011)
    assert data.d_min == pytest.approx(float(row["d_min"]), abs=0.011)
    expected = OTHER_COUNT.get(row["name"], int(row["n_unique"]))
    assert len(data) == pytest.approx(expected, rel=0.016)
    # what Amplitudes promises
    ops, asu = data.spacegroup.operations(), gemmi.ReciprocalAsu(data.spacegroup)
    assert len(np.unique(data.hkl, axis=0)) == len(data) and np.any(data.hkl != 0, axis=1).all()
    assert not ops.systematic_absences(data.hkl).any()
    assert all(asu.is_in(list(map(int, h))) for h in data.hkl[:: max(1, len(data) // 500)])
    assert np.isfinite(data.f).all() and (data.f >= 0).all() and (data.sigf >= 0).all()
    assert data.completeness <= 1.0
    assert "calc" not in " ".join(data.source.columns).lower() and "FC" not in data.source.columns
    assert data.notes


def row_of(name: str) -> Path:
    row = next(r for r in ROWS if r["name"] == name)
    return FOLDER / name / row["refl_file"]


def test_toxd_lists_its_four_crystals() -> None:
    with pytest.raises(UserError) as caught:
        read_amplitudes(row_of("1dtx"))
    for crystal in ("TOXD3", "AU20", "MM11", "I100"):
        assert f"LABIN FP=F{crystal} SIGFP=SIGF{crystal}" in str(caught.value)


def test_alamet_is_seen_to_be_an_expanded_p21c() -> None:
    data = read_amplitudes(row_of("alamet"))
    assert data.spacegroup.xhm() == "P 1" and any("P 1 21/c 1" in note for note in data.notes)
    merged = read_amplitudes(row_of("alamet"), spacegroup="P21/c")
    assert 0.5 <= len(merged) / len(data) < 0.53


def test_a_tetragonal_crystal_is_no_p4122() -> None:
    with pytest.raises(UserError, match="contradict"):
        read_amplitudes(row_of("2xiu"), spacegroup="P4122")


def test_fused_fields_and_wide_fields() -> None:
    """biotin_ed: "   0   1   225936.35"; xylitol: 12 characters a field."""
    biotin, xylitol = read_amplitudes(row_of("biotin_ed")), read_amplitudes(row_of("xylitol"))
    assert biotin.intensity is not None and xylitol.intensity is not None
    assert biotin.intensity[np.all(biotin.hkl == (0, 1, 2), axis=1)] == pytest.approx(25936.35)
    assert xylitol.intensity[np.all(xylitol.hkl == (0, 0, 2), axis=1)] == pytest.approx(4713.47)


def test_measured_and_model_amplitudes_agree() -> None:
    """F of the CIF's model, which the reader never looks at, follows what was read (2012000)."""
    data = read_amplitudes(row_of("cod2012000"))
    block = gemmi.cif.read(str(row_of("cod2012000"))).sole_block()
    table = block.find(["_refln_index_h", "_refln_index_k", "_refln_index_l", "_refln_F_squared_calc"])
    calculated = {tuple(int(x) for x in list(r)[:3]): float(r[3]) for r in table}
    pairs = [
        (f, calculated[tuple(h)]) for h, f in zip(data.hkl.tolist(), data.f, strict=True) if tuple(h) in calculated
    ]
    f, i = np.array(pairs).T
    assert len(pairs) > 0.3 * len(data) and np.corrcoef(f, np.sqrt(i))[0, 1] > 0.98
