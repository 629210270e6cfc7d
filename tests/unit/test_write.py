"""The phased MTZ: nothing of the input lost, phases right in the new asymmetric unit, no half files."""

import resource
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import gemmi
import numpy as np
import pytest
from sample_outcome import CELL, GROUP, amplitudes, phases, structure_factors

from ml_phaser.crystal.reflections import Source
from ml_phaser.errors import UserError
from ml_phaser.exchange.write import PHASE_COLUMNS, write_mtz

OURS = [label for label, _ in PHASE_COLUMNS]
TYPES = [kind for _, kind in PHASE_COLUMNS]


def scrambled(hkl, seed=0):
    """Equivalent indices outside the asymmetric unit: a random operator and Friedel mate each."""
    rng = np.random.default_rng(seed)
    ops = list(GROUP.operations().sym_ops)
    out = [np.array(ops[rng.integers(len(ops))].apply_to_hkl(h.tolist())) * rng.choice([-1, 1]) for h in hkl]
    return np.array(out, dtype=np.int32)


def input_mtz(path, *, scramble=True, extra=(), intensities=False, keep=slice(None), valm=None):
    """An MTZ as a user has it: two datasets, title, history, free flags, a phase set at its own indices."""
    hkl = np.asarray(gemmi.make_miller_array(CELL, GROUP, 1.2))[keep]
    hkl = scrambled(hkl) if scramble else hkl
    f = structure_factors(hkl)
    mtz = gemmi.Mtz(with_base=True)
    mtz.title = "My crystal"
    mtz.history = ["From AIMLESS, run long ago", "From FREERFLAG"]
    mtz.spacegroup = GROUP
    mtz.set_cell_for_all(CELL)
    native = mtz.add_dataset("native")
    native.crystal_name, native.project_name, native.wavelength = "xtal1", "proj", 0.9763
    columns = [("FreeR_flag", "I", np.arange(len(hkl)) % 20)]
    if intensities:
        columns += [("IMEAN", "J", np.abs(f) ** 2), ("SIGIMEAN", "Q", np.full(len(f), 2.0))]
    else:
        columns += [("FP", "F", np.abs(f)), ("SIGFP", "Q", np.full(len(f), 0.5))]
    columns += [("FC", "F", np.abs(f)), ("PHIC", "P", np.rad2deg(np.angle(f)))]
    columns += [("HLA_old", "A", f.real), ("HLB_old", "A", f.imag)]
    columns += [("HLC_old", "A", 0 * f.real), ("HLD_old", "A", 0 * f.real), *extra]
    for label, kind, _ in columns:
        mtz.add_column(label, kind, dataset_id=native.id)
    table = np.column_stack([hkl, *(values for _, _, values in columns)]).astype(np.float32)
    if valm is not None:
        table[3, 3] = valm
        mtz.valm = valm
    mtz.set_data(table)
    mtz.write_to_file(str(path))
    columns = ("IMEAN", "SIGIMEAN") if intensities else ("FP", "SIGFP")
    return Source(str(path), "MTZ", columns, "intensity" if intensities else "amplitude")


@pytest.fixture
def written(tmp_path):
    def make(data=None, result=None, **arguments):
        data = amplitudes() if data is None else data
        path = tmp_path / "pred.mtz"
        notes = write_mtz(path, data, phases(data) if result is None else result, **arguments)
        return gemmi.read_mtz_file(str(path)), data, notes

    return make


def column(mtz, label):
    return np.asarray(mtz.column_with_label(label).array, dtype=float)


def by_hkl(mtz, label):
    return {tuple(h): v for h, v in zip(mtz.make_miller_array().tolist(), column(mtz, label), strict=True)}


def assert_phases_true(mtz, label="PHIB"):
    """Against direct summation at the indices of the file; exp(i phi), to see phi -> 180 - phi."""
    phi = column(mtz, label)
    have = np.isfinite(phi)
    assert have.sum() > 100
    true = np.angle(structure_factors(np.asarray(mtz.make_miller_array())[have]))
    np.testing.assert_allclose(np.exp(1j * np.deg2rad(phi[have])), np.exp(1j * true), atol=2e-4)


def test_copy_keeps_everything(tmp_path, written):
    source = input_mtz(tmp_path / "in.mtz")
    before = gemmi.read_mtz_file(source.path)
    mtz, _, notes = written(amplitudes(source), history=["SEED 3"])
    assert mtz.column_labels() == [*before.column_labels(), *OURS]
    assert [c.type for c in mtz.columns] == [*(c.type for c in before.columns), *TYPES]
    assert mtz.title == before.title and notes == ()
    assert mtz.history[0].startswith("From ml_phaser 0.") and mtz.history[1] == "SEED 3"
    assert mtz.history[2:] == before.history
    assert mtz.nreflections == before.nreflections
    native = mtz.column_with_label("FP").dataset
    assert (native.dataset_name, native.crystal_name, native.wavelength) == (
        "native",
        "xtal1",
        pytest.approx(0.9763),
    )
    own = mtz.column_with_label("FWT").dataset
    assert own.dataset_name == "ml_phaser" and own.wavelength == pytest.approx(0.9763)
    assert own.cell.parameters == pytest.approx(CELL.parameters)
    before.ensure_asu()
    for label in ("FreeR_flag", "FP", "SIGFP", "FC"):
        assert by_hkl(mtz, label) == by_hkl(before, label)


def test_phases_after_the_change_of_asymmetric_unit(tmp_path, written):
    source = input_mtz(tmp_path / "in.mtz", scramble=True)
    before = np.asarray(gemmi.read_mtz_file(source.path).make_miller_array())
    mtz, _, _ = written(amplitudes(source))
    hkl = np.asarray(mtz.make_miller_array())
    asu = gemmi.ReciprocalAsu(GROUP)
    assert not all(asu.is_in(h) for h in before.tolist())
    assert all(asu.is_in(h) for h in hkl.tolist())
    for label in ("PHIB", "PHWT", "PHIC"):  # ours, and the user's own, shifted with its indices
        assert_phases_true(mtz, label)
    np.testing.assert_allclose(
        column(mtz, "HLA_old") + 1j * column(mtz, "HLB_old"), structure_factors(hkl), rtol=1e-3, atol=1e-2
    )


def test_values(tmp_path, written):
    mtz, _, _ = written(amplitudes(input_mtz(tmp_path / "in.mtz")))
    np.testing.assert_allclose(column(mtz, "FWT"), column(mtz, "FOM") * column(mtz, "FP"), rtol=1e-4)
    phi = column(mtz, "PHIB")
    assert phi.min() > -180 and phi.max() <= 180
    a, b = column(mtz, "HLA"), column(mtz, "HLB")
    np.testing.assert_allclose(np.exp(1j * np.arctan2(b, a)), np.exp(1j * np.deg2rad(phi)), atol=1e-4)
    hkl = np.asarray(mtz.make_miller_array(), dtype=np.int32)
    centric = np.asarray(GROUP.operations().centric_flag_array(hkl), dtype=bool)
    angles = np.linspace(0, 2 * np.pi, 3600, endpoint=False)
    for i in [
        *np.flatnonzero(centric)[:5],
        *np.flatnonzero(~centric)[:5],
    ]:  # FOM = |<exp i phi>| of the coefficients
        where = np.deg2rad(phi[i]) + np.array([0, np.pi]) if centric[i] else angles
        p = np.exp(a[i] * np.cos(where) + b[i] * np.sin(where))
        assert abs((p * np.exp(1j * where)).sum() / p.sum()) == pytest.approx(column(mtz, "FOM")[i], abs=1e-4)


def test_given_amplitudes_make_the_coefficients(written):
    data = amplitudes()
    mtz, _, _ = written(data, f=2 * data.f, sigf=data.sigf)
    np.testing.assert_allclose(column(mtz, "FWT"), 2 * data.f * column(mtz, "FOM"), rtol=1e-4)


def test_unphased_rows_stay_missing(tmp_path, written):
    data = amplitudes(input_mtz(tmp_path / "in.mtz"), d_min=2.0)  # the user cut the resolution
    result = phases(data)
    result.fom[5] = np.nan
    mtz, _, _ = written(data, result)
    phased = {tuple(h) for i, h in enumerate(data.hkl.tolist()) if i != 5}
    assert 0 < len(phased) < mtz.nreflections
    for label in OURS:
        assert {h for h, v in by_hkl(mtz, label).items() if np.isfinite(v)} == phased
    assert np.isfinite(column(mtz, "FP")).all()
    assert_phases_true(mtz)


def test_reflections_the_input_lacks_are_added(tmp_path, written):
    data = amplitudes(input_mtz(tmp_path / "in.mtz", keep=slice(10, None)))
    mtz, _, _ = written(data)
    assert mtz.nreflections == len(data)
    assert np.isfinite(column(mtz, "FOM")).all() and np.isnan(column(mtz, "FP")).sum() == 10


def test_columns_in_the_way_are_renamed(tmp_path, written):
    n = len(amplitudes())
    extra = [("FWT", "F", np.full(n, 7.0)), ("PHWT", "P", np.zeros(n)), ("FWT_in", "F", np.full(n, 8.0))]
    mtz, _, notes = written(amplitudes(input_mtz(tmp_path / "in.mtz", scramble=False, extra=extra)))
    labels = mtz.column_labels()
    assert len(set(labels)) == len(labels)
    assert np.all(column(mtz, "FWT_in2") == 7) and np.all(column(mtz, "FWT_in") == 8)
    assert "FWT to FWT_in2" in notes[0] and any("FWT to FWT_in2" in line for line in mtz.history)
    assert_phases_true(mtz, "PHWT")


def test_number_as_missing_flag(tmp_path, written):
    source = input_mtz(tmp_path / "in.mtz", valm=-999.0)
    mtz, _, _ = written(amplitudes(source))
    assert np.isnan(mtz.valm)
    flags = column(mtz, "FreeR_flag")
    assert np.isnan(flags).sum() == 1 and np.nanmin(flags) == 0


@pytest.mark.parametrize("taken", [False, True])
def test_amplitudes_made_from_intensities_are_added(tmp_path, written, taken):
    n = len(amplitudes())
    extra = [("F", "F", np.ones(n))] if taken else []
    mtz, _, _ = written(amplitudes(input_mtz(tmp_path / "in.mtz", intensities=True, extra=extra)))
    label = "F_ML" if taken else "F"
    assert mtz.column_with_label(label).type == "F"
    np.testing.assert_allclose(column(mtz, "FWT"), column(mtz, "FOM") * column(mtz, label), rtol=1e-4)
    assert "IMEAN" in mtz.column_labels()


def test_other_group_or_cell_or_format_makes_a_new_file(tmp_path, written):
    source = input_mtz(tmp_path / "in.mtz")
    group = gemmi.SpaceGroup("P 2 21 21")
    mtz, _, notes = written(amplitudes(source, group=group))
    assert "another space group" in notes[0]
    assert mtz.spacegroup.xhm() == "P 2 21 21" and mtz.column_labels()[3:] == ["F", "SIGF", *OURS]


def test_new_file_holds_what_was_measured(written):
    data = amplitudes()
    free = (np.arange(len(data)) % 5 - 1).astype(np.int32)
    data = amplitudes(intensity=data.f**2 - 1, sigma_i=np.ones(len(data)), free=free)
    mtz, _, notes = written(data)
    assert mtz.column_labels()[3:] == ["F", "SIGF", "I", "SIGI", "FreeR_flag", *OURS] and notes == ()
    assert [c.type for c in mtz.columns] == [*"HHHFQJQI", *TYPES]
    flags = column(mtz, "FreeR_flag")
    assert np.isnan(flags[free < 0]).all() and np.array_equal(flags[free >= 0], free[free >= 0])
    np.testing.assert_allclose(column(mtz, "I"), data.f**2 - 1, rtol=1e-5)
    assert_phases_true(mtz)


def test_equivalents_listed_separately_make_a_new_file(tmp_path, written):
    source = input_mtz(tmp_path / "in.mtz", scramble=False)
    mtz = gemmi.read_mtz_file(source.path)
    mate = np.array(mtz.array[:5], copy=True)
    mate[:, :3] *= -1
    mtz.set_data(np.vstack([mtz.array, mate]))
    mtz.write_to_file(source.path)
    mtz, data, notes = written(amplitudes(source))
    assert "separately" in notes[0] and mtz.nreflections == len(data)


def test_fine_beside_reciprocalspaceship(tmp_path, written):
    import reciprocalspaceship as rs

    _, data, _ = written(amplitudes(input_mtz(tmp_path / "in.mtz")))
    with warnings.catch_warnings():  # of the base dataset's wavelength, 0 as everywhere
        warnings.simplefilter("ignore")
        table = rs.read_mtz(str(tmp_path / "pred.mtz"))
    assert [table.dtypes[label].mtztype for label in OURS] == TYPES
    assert len(table) == len(data) and table.spacegroup.xhm() == GROUP.xhm()


# ------------------------------------------------------------------------------------ when writing fails


def test_no_folder(tmp_path):
    data = amplitudes()
    with pytest.raises(UserError, match="cannot be written"):
        write_mtz(tmp_path / "none" / "x.mtz", data, phases(data))


@pytest.mark.parametrize("existing", [False, True])
def test_full_disk_leaves_nothing_behind(tmp_path, existing):
    """A limit on file size stands for the full disk: write(2) fails part of the way through."""
    data = amplitudes()
    path = tmp_path / "x.mtz"
    if existing:
        path.write_text("old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        with pytest.raises(UserError, match="cannot be written"):
            write_mtz(path, data, phases(data))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert [p.name for p in tmp_path.iterdir()] == (["x.mtz"] if existing else [])
    assert not existing or path.read_text() == "old"


def test_device_full():
    data = amplitudes()
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    with pytest.raises(UserError, match=r"[Nn]o space"):
        write_mtz("/dev/full", data, phases(data))


def test_interrupt_while_writing_leaves_nothing(tmp_path):
    program = f"""
import pathlib, sys, time
sys.path.insert(0, {str(Path(__file__).resolve().parents[1])!r})
from sample_outcome import amplitudes, phases
from ml_phaser.exchange.write import write_mtz
def slow(path, content):
    path.open("wb").write(content[: len(content) // 2])
    print("half", flush=True)
    time.sleep(30)
pathlib.Path.write_bytes = slow
data = amplitudes()
write_mtz({str(tmp_path / "x.mtz")!r}, data, phases(data))
"""
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "half\n"
        assert len(list(tmp_path.iterdir())) == 1
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=10) != 0
    assert list(tmp_path.iterdir()) == []
