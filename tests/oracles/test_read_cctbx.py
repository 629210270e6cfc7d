"""Merging and reading against cctbx."""

from __future__ import annotations

from pathlib import Path

import gemmi
import numpy as np
import pytest
from cctbx import crystal, miller
from cctbx.array_family import flex

from ml_phaser.exchange import merge
from ml_phaser.exchange.read import read_amplitudes

FOLDER = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "diffraction"
CELLS = {
    "P -1": (9, 10, 11, 80, 95, 103),
    "P 1 21/c 1": (9, 10, 11, 90, 104, 90),
    "C 1 2 1": (19, 10, 11, 90, 104, 90),
    "P 21 21 21": (9, 10, 11, 90, 90, 90),
    "P 43 21 2": (9, 9, 15, 90, 90, 90),
    "R 3 :H": (12, 12, 15, 90, 90, 120),
    "P 61 2 2": (12, 12, 15, 90, 90, 120),
    "F 2 3": (20, 20, 20, 90, 90, 90),
    "I 21 3": (14, 14, 14, 90, 90, 90),
}


def cctbx_merged(hkl: np.ndarray, value: np.ndarray, sigma: np.ndarray, cell: tuple, group: str) -> miller.array:
    symmetry = crystal.symmetry(unit_cell=cell, space_group_symbol=group)
    indices = flex.miller_index([tuple(int(x) for x in h) for h in hkl])
    data = miller.set(symmetry, indices, anomalous_flag=False).array(flex.double(value), flex.double(sigma))
    data = data.set_observation_type_xray_intensity()
    return data.merge_equivalents(algorithm="gaussian").array()


def by_orbit(hkl: np.ndarray, group: gemmi.SpaceGroup) -> list[tuple[int, ...]]:
    """One name for each set of equivalents, whatever the asymmetric unit: the largest of them."""
    rotations = [np.array(op.rot) // op.DEN for op in group.operations().sym_ops]
    orbits = np.stack([h for r in rotations for h in (hkl @ r, -(hkl @ r))], axis=1)
    return [max(tuple(int(x) for x in h) for h in orbit) for orbit in orbits]


@pytest.mark.parametrize("name", list(CELLS))
def test_merged_intensities_are_those_of_cctbx(name: str) -> None:
    group = gemmi.SpaceGroup(name.replace(" :", ":"))
    rng = np.random.default_rng(len(name))
    hkl = rng.integers(-5, 6, (1500, 3)).astype(np.int32)
    hkl = hkl[np.any(hkl != 0, axis=1)]
    value, sigma = rng.normal(50, 15, len(hkl)), rng.uniform(0.5, 5, len(hkl))
    ours = merge.merge(hkl, value, sigma, group)
    theirs = cctbx_merged(hkl, value, sigma, CELLS[name], name)
    mine = dict(zip(by_orbit(ours.hkl, group), zip(ours.value, ours.sigma, strict=True), strict=True))
    other = np.array(list(theirs.indices()))
    assert len(mine) == len(ours.hkl) == theirs.size()
    for orbit, mean, spread in zip(by_orbit(other, group), theirs.data(), theirs.sigmas(), strict=True):
        assert mine[orbit][0] == pytest.approx(mean, rel=1e-6)
        # cctbx takes the scatter of two measurements for an uncertainty too; we want three
        assert mine[orbit][1] <= spread * (1 + 1e-6)


@pytest.mark.shared
def test_unmerged_shelx_list_is_read_as_by_iotbx(tmp_path: Path) -> None:
    """1979688: 51,774 measurements of 4,329 reflections, with batch numbers and text after the end."""
    source = FOLDER / "1979688" / "1979688.cif"
    if not source.is_file():
        pytest.skip("the measured data (../shared/data) are not here")
    from iotbx.shelx import hklf

    block = gemmi.cif.read(str(source)).sole_block()
    text = gemmi.cif.as_string(block.find_value("_shelx_hkl_file")).strip("\n")
    copy = tmp_path / "x.hkl"
    copy.write_text(text[: text.index("_exptl")])
    data = read_amplitudes(source)
    symmetry = crystal.symmetry(unit_cell=data.cell.parameters, space_group_symbol="P 21 21 2")
    with copy.open() as stream:
        raw = hklf.reader(file_object=stream).as_miller_arrays(crystal_symmetry=symmetry)[0]
    theirs = (
        raw.as_non_anomalous_array()
        .set_observation_type_xray_intensity()
        .merge_equivalents(algorithm="gaussian")
        .array()
    )
    theirs = theirs.select(~theirs.sys_absent_flags().data())
    assert data.intensity is not None and len(data) == theirs.size()
    expected = dict(zip(by_orbit(np.array(list(theirs.indices())), data.spacegroup), theirs.data(), strict=True))
    got = dict(zip(by_orbit(data.hkl, data.spacegroup), data.intensity, strict=True))
    assert got.keys() == expected.keys()
    difference = np.array([got[h] - expected[h] for h in got])
    assert np.abs(difference).max() < 1e-3 * data.intensity.max()
    assert np.median(np.abs(difference)) < 1e-6 * data.intensity.max()
