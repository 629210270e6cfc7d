"""Reading a user's phases: which columns, which files, and what is refused."""

from __future__ import annotations

import gzip
from pathlib import Path

import gemmi
import numpy as np
import pytest

from ml_phaser.crystal.reflections import Amplitudes, Source
from ml_phaser.errors import UserError
from ml_phaser.exchange.phases import PLAIN_FOM, read_phases

CELL, GROUP = gemmi.UnitCell(11, 13, 17, 90, 90, 90), gemmi.SpaceGroup("P 21 21 21")


def make_data(d_min: float = 2.0) -> Amplitudes:
    hkl = np.asarray(gemmi.make_miller_array(CELL, GROUP, d_min), dtype=np.int32)
    hkl = hkl[~np.asarray(GROUP.operations().systematic_absences(hkl), dtype=bool)]
    f = np.random.default_rng(0).gamma(2, 10, len(hkl))
    return Amplitudes(hkl, f, f / 20, CELL, GROUP, Source("none", "MTZ", ("F", "SIGF"), "amplitude"))


DATA = make_data()
ACENTRIC = ~DATA.centric
PHASE = np.random.default_rng(1).uniform(-180, 180, len(DATA))
FOM = np.random.default_rng(2).uniform(0.1, 0.95, len(DATA))


def write(path: Path, columns: dict[str, tuple[str, np.ndarray]], hkl=DATA.hkl, cell=CELL, group=GROUP) -> Path:
    mtz = gemmi.Mtz(with_base=True)
    mtz.spacegroup = group
    mtz.add_dataset("user")
    mtz.set_cell_for_all(cell)
    for label, (kind, _) in columns.items():
        mtz.add_column(label, kind)
    mtz.set_data(np.column_stack([hkl, *(x for _, x in columns.values())]).astype(np.float32))
    mtz.write_to_file(str(path))
    return path


BOTH = {"PHIB": ("P", PHASE), "FOM": ("W", FOM)}


def expect(known, phase=PHASE, fom=FOM) -> None:
    here = known.centroid()[ACENTRIC]
    assert here == pytest.approx((fom * np.exp(1j * np.deg2rad(phase)))[ACENTRIC], abs=3e-3)


def test_sole_phase_with_its_merit(tmp_path: Path) -> None:
    found = read_phases(write(tmp_path / "a.mtz", BOTH), DATA)
    assert found.columns == ("PHIB", "FOM")
    expect(found.known)


def test_map_coefficients_do_not_compete(tmp_path: Path) -> None:
    columns = {"FWT": ("F", FOM), "PHWT": ("P", -PHASE), "SIGF": ("Q", FOM), **BOTH}
    assert read_phases(write(tmp_path / "a.mtz", columns), DATA).columns == ("PHIB", "FOM")


def test_coefficients_come_before_phases(tmp_path: Path) -> None:
    hl = {f"HL{x}": ("A", np.full(len(DATA), i + 1.0)) for i, x in enumerate("ABCD")}
    found = read_phases(write(tmp_path / "a.mtz", hl | BOTH), DATA)
    assert found.columns == ("HLA", "HLB", "HLC", "HLD")
    assert found.known.hl[ACENTRIC] == pytest.approx(np.tile([1.0, 2, 3, 4], (ACENTRIC.sum(), 1)))
    chosen = read_phases(tmp_path / "a.mtz", DATA, "FOM=FOM PHIB=PHIB")
    assert chosen.columns == ("PHIB", "FOM")


def test_several_phases_are_not_guessed_among(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mtz", {**BOTH, "PHI2": ("P", -PHASE), "FOM2": ("W", FOM)})
    with pytest.raises(UserError, match=r"several sets of phases.*PHIB=PHI2 FOM=FOM2"):
        read_phases(path, DATA)
    expect(read_phases(path, DATA, "PHI2,FOM2").known, -PHASE)


def test_phases_without_merit(tmp_path: Path) -> None:
    found = read_phases(write(tmp_path / "a.mtz", {"PHI": ("P", PHASE)}), DATA)
    expect(found.known, fom=np.full(len(DATA), PLAIN_FOM))
    assert "0.7" in found.notes[0]


def test_shelxe_list_gzipped_and_fixed(tmp_path: Path) -> None:
    rows = zip(-DATA.hkl, FOM, -PHASE, strict=True)  # Friedel mates
    text = "".join(f"{h:4d}{k:4d}{m:4d}{99999.99:9.2f}{w:8.4f}{p:8.1f}{1.0:8.2f}\n" for (h, k, m), w, p in rows)
    path = tmp_path / "x.phs.gz"
    path.write_bytes(gzip.compress(text.encode()))
    found = read_phases(path, DATA)
    here = found.known.centroid()[ACENTRIC]
    assert here == pytest.approx((FOM * np.exp(1j * np.deg2rad(PHASE)))[ACENTRIC], abs=4e-3)
    assert any("no cell" in note for note in found.notes)


def test_mmcif(tmp_path: Path) -> None:
    head = ["data_r1sf", *(f"_cell.length_{x} {v}" for x, v in zip("abc", (11, 13, 17), strict=True))]
    head += [
        *(f"_cell.angle_{x} 90" for x in ("alpha", "beta", "gamma")),
        "_symmetry.space_group_name_H-M 'P 21 21 21'",
    ]
    head += ["loop_", *(f"_refln.index_{x}" for x in "hkl"), "_refln.phase_meas", "_refln.fom"]
    body = [f"{h} {k} {m} {p:.2f} {w:.4f}" for (h, k, m), p, w in zip(DATA.hkl, PHASE, FOM, strict=True)]
    (tmp_path / "x.cif").write_text("\n".join([*head, *body]) + "\n")
    found = read_phases(tmp_path / "x.cif", DATA)
    assert found.columns == ("phase_meas", "fom")
    expect(found.known)


def test_zero_merit_is_no_information(tmp_path: Path) -> None:
    some = np.where(np.arange(len(DATA)) % 2, FOM, 0)
    known = read_phases(write(tmp_path / "a.mtz", {**BOTH, "FOM": ("W", some)}), DATA).known
    assert not known.given[::2].any()
    with pytest.raises(UserError, match="no phase with any weight"):
        read_phases(write(tmp_path / "b.mtz", {**BOTH, "FOM": ("W", 0 * FOM)}), DATA)


def test_lower_resolution_leaves_the_rest_free(tmp_path: Path) -> None:
    low = DATA.d > 3
    columns = {label: (kind, x[low]) for label, (kind, x) in BOTH.items()}
    found = read_phases(write(tmp_path / "a.mtz", columns, DATA.hkl[low]), DATA)
    assert not found.known.given[~low].any()
    assert any("phases are free" in note for note in found.notes)


def test_another_origin_of_another_group_is_noticed(tmp_path: Path) -> None:
    turned = np.where(ACENTRIC, PHASE, 10.0)  # restricted ones are multiples of 90 degrees here
    turned = np.where(DATA.centric, 45.0 + 90 * (np.arange(len(DATA)) % 4), turned) + np.where(DATA.centric, 40, 0)
    found = read_phases(write(tmp_path / "a.mtz", {**BOTH, "PHIB": ("P", turned)}), DATA)
    off = [note for note in found.notes if "far from their permitted values" in note]
    assert len(off) == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"cell": gemmi.UnitCell(11, 13, 19, 90, 90, 90)}, "cell .* is not that of the data"),
        ({"group": gemmi.SpaceGroup("P 21 21 2")}, "space group P 21 21 2 is not that of the data"),
        ({"hkl": DATA.hkl + 40}, "only 0 of the reflections"),
    ],
)
def test_another_crystal(tmp_path: Path, change: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        read_phases(write(tmp_path / "a.mtz", BOTH, **change), DATA)


def test_nothing_to_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no phases among the columns F"):
        read_phases(write(tmp_path / "a.mtz", {"F": ("F", FOM)}), DATA)
    with pytest.raises(UserError, match="no column PHIX; there are PHIB, FOM"):
        read_phases(write(tmp_path / "b.mtz", BOTH), DATA, "PHIX,FOM")
    with pytest.raises(UserError, match=r"FOM \(W\), PHIB \(P\) are not a phase"):
        read_phases(tmp_path / "b.mtz", DATA, "FOM,PHIB")
    with pytest.raises(UserError, match="is no figure of merit: 10"):
        read_phases(write(tmp_path / "c.mtz", {**BOTH, "FOM": ("W", 10 + FOM)}), DATA)
    (tmp_path / "d.phs").write_text("hello\n")
    with pytest.raises(UserError, match="line 1 is not h k l F fom phi"):
        read_phases(tmp_path / "d.phs", DATA)
