"""Sequences, free-R flags, and the commands for the next programs; ModelCraft's own parser where it is installed."""

import dataclasses
import importlib.util
import shlex
import subprocess
import sys
from pathlib import Path

import gemmi
import numpy as np
import pytest
from sample_outcome import CELL, GROUP, amplitudes, phases

from ml_phaser.crystal.reflections import Source
from ml_phaser.errors import UserError
from ml_phaser.exchange.free_flags import free_flags, free_value
from ml_phaser.exchange.next_steps import Phased, next_steps, of_result, read_phased, solvent
from ml_phaser.exchange.sequence import fasta, read_sequence
from ml_phaser.exchange.write import FreeSet, write_mtz
from ml_phaser.report import log


@pytest.fixture
def sequence(tmp_path):
    path = tmp_path / "my seq.fasta"
    path.write_text(">one\nMKLV\nAGYS\n>two\nACDEFGHIKL\n")
    return read_sequence(path)


@pytest.fixture
def phased(tmp_path):
    """A file of ours with blanks in its name, as a run writes it from a SHELX list."""
    path = tmp_path / "my pred.mtz"
    data = amplitudes()
    write_mtz(path, data, phases(data), free=FreeSet(0.05, 0))
    return path


def foreign(path, columns, seed=0):
    """An MTZ of some other program."""
    hkl = np.asarray(gemmi.make_miller_array(CELL, GROUP, 1.5), dtype=np.int32)
    mtz = gemmi.Mtz(with_base=True)
    mtz.spacegroup = GROUP
    mtz.add_dataset("other")
    mtz.set_cell_for_all(CELL)
    for label, kind in columns:
        mtz.add_column(label, kind)
    rng = np.random.default_rng(seed)
    values = [rng.integers(0, 20, len(hkl)) if kind == "I" else rng.random(len(hkl)) for _, kind in columns]
    mtz.set_data(np.column_stack([hkl, *values]).astype(np.float32))
    mtz.write_to_file(str(path))
    return path


def of(steps, program):
    return next(s for s in steps if s.program == program)


# --------------------------------------------------------------------------------------------- sequences


@pytest.mark.parametrize(
    ("text", "form", "letters"),
    [
        (">a\nACDE\nFG\n>b\nKLM*\n", "FASTA", ["ACDEFG", "KLM"]),
        (">P1;x\nsome title with words\nACDE FGHI*\n", "PIR", ["ACDEFGHI"]),
        ("acde fghi\n 11 klmn\n", "plain letters", ["ACDEFGHIKLMN"]),
        ("; note\n>a|b\n  AGY SML KD\n", "FASTA", ["AGYSMLKD"]),
    ],
)
def test_sequence_formats(tmp_path, text, form, letters):
    path = tmp_path / "s"
    path.write_text(text)
    found = read_sequence(path)
    assert found.format == form and [c.letters for c in found.chains] == letters
    again = tmp_path / "again"
    again.write_text(fasta(found))
    assert [c.letters for c in read_sequence(again).chains] == letters
    assert max(map(len, fasta(found).splitlines())) <= 60


@pytest.mark.parametrize(
    "content", [b"", b">only a name\n", b"CRYST1 15.4 14.8\n", b"\xff\xfe\x00\x01", b"ACGT\n>late\nAAA\n", b"12 34\n"]
)
def test_what_is_no_sequence_is_refused(tmp_path, content):
    path = tmp_path / "s.fasta"
    path.write_bytes(content)
    with pytest.raises(UserError, match="seqin"):
        read_sequence(path)


def test_kinds(tmp_path):
    path = tmp_path / "s"
    path.write_text(">p\nACDEFGHIK\n>r\nACGUACGU\n>d\nGATTACA\n>polyala\nAAAAAA\n")
    kinds = ["protein", "nucleic acid", "nucleic acid", "protein"]
    assert [c.kind for c in read_sequence(path).chains] == kinds


def test_solvent_of_a_known_protein(tmp_path):
    """Hen egg-white lysozyme, tetragonal: 129 residues, one copy, about 36 % (77.06 77.06 37.22, P 43 21 2)."""
    path = tmp_path / "s"
    path.write_text(">l\n" + "KVFGRCELAAAMKRHGLDNYRGYSLGNWVCAAKFESNFNTQATNRNTDGSTDYGILQINSRWWCNDGRTPGSRN"
                    "LCNIPCSALLSSDITASVNCAKKIVSDGNGMNAWVAWRNRCKGTDVQAWIRGCRL\n")  # fmt: skip
    found = read_sequence(path)
    assert len(found.chains[0].letters) == 129
    assert solvent(77.06 * 77.06 * 37.22 / 8, found).fraction == pytest.approx(0.36, abs=0.05)
    assert solvent(2 * 77.06 * 77.06 * 37.22 / 8, found).fraction == pytest.approx(0.36, abs=0.05)  # two copies


# ------------------------------------------------------------------------------------------- free-R flags


@pytest.mark.parametrize(("share", "parts"), [(0.05, 20), (0.1, 10), (0.07, 14), (0.01, 100), (0.4, 2)])
def test_share_of_all_and_of_every_shell(share, parts):
    cell = gemmi.UnitCell(30, 32, 35, 90, 90, 90)
    hkl = np.asarray(gemmi.make_miller_array(cell, GROUP, 1.5), dtype=np.int32)
    flags = free_flags(hkl, cell, share, 0)
    assert set(flags) == set(range(parts)) and abs((flags == 0).sum() - share * len(hkl)) < 1
    shells = np.array_split(np.argsort(cell.calculate_d_array(hkl)), 10)
    for shell in shells:
        assert np.mean(flags[shell] == 0) == pytest.approx(share, abs=2.5 / len(shell) + 0.1 * share)
    counts = np.bincount(flags)[1:]
    assert counts.max() <= 1.25 * counts.min() + 2


def test_flags_depend_on_the_seed_and_not_on_the_order():
    hkl = np.asarray(gemmi.make_miller_array(CELL, GROUP, 1.2), dtype=np.int32)
    a, again, b = (free_flags(hkl, CELL, 0.05, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(a, again)
    assert 0.02 < np.mean((a == 0) & (b == 0)) / 0.05 + 0.05 < 0.5 and np.mean(a != b) > 0.8
    order = np.random.default_rng(0).permutation(len(hkl))
    np.testing.assert_array_equal(free_flags(hkl[order], CELL, 0.05, 1), a[order])


def test_test_set_is_not_tied_to_resolution_order():
    """Systematic choice (every twentieth) would make neighbours of the test set equally far apart."""
    hkl = np.asarray(gemmi.make_miller_array(CELL, GROUP, 0.8), dtype=np.int32)
    d = CELL.calculate_d_array(hkl)
    gaps = np.diff(np.flatnonzero(free_flags(hkl, CELL, 0.05, 0)[np.argsort(-d)] == 0))
    assert gaps.std() > 4


def test_all_rows_of_the_users_file_get_one(tmp_path):
    path = foreign(tmp_path / "in.mtz", (("FP", "F"), ("SIGFP", "Q")))
    data = amplitudes(Source(str(path), "MTZ", ("FP", "SIGFP"), "amplitude"), d_min=2.0)
    notes = write_mtz(tmp_path / "out.mtz", data, phases(data), free=FreeSet(0.1, 3))
    mtz = gemmi.read_mtz_file(str(tmp_path / "out.mtz"))
    labels = mtz.column_labels()
    assert labels == [
        "H",
        "K",
        "L",
        "FP",
        "SIGFP",
        "FreeR_flag",
        "FWT",
        "PHWT",
        "PHIB",
        "FOM",
        "HLA",
        "HLB",
        "HLC",
        "HLD",
    ]
    column = mtz.column_with_label("FreeR_flag")
    values = np.array(column)
    assert column.type == "I" and np.isfinite(values).all() and set(values) == set(range(10))
    assert len(values) > len(data) and np.isfinite(mtz.column_with_label("PHIB")).sum() == len(data)
    assert any("Free-R flags made: FreeR_flag" in n and "seed 3" in n for n in notes)


def test_flags_of_the_data_are_kept(tmp_path):
    free = np.arange(len(amplitudes())) % 7
    data = amplitudes(free=free.astype(np.int32))
    notes = write_mtz(tmp_path / "out.mtz", data, phases(data), free=FreeSet(0.1, 3))
    values = np.array(gemmi.read_mtz_file(str(tmp_path / "out.mtz")).column_with_label("FreeR_flag"))
    np.testing.assert_array_equal(values, free)
    assert notes == ()


def test_iotbx_takes_them_for_free_flags(phased):
    pytest.importorskip("iotbx.mtz")
    from cctbx import r_free_utils
    from iotbx import mtz as iotbx_mtz
    from iotbx import reflection_file_utils

    arrays = iotbx_mtz.object(str(phased)).as_miller_arrays()
    scores = reflection_file_utils.get_r_free_flags_scores(miller_arrays=arrays, test_flag_value=None)
    best = int(np.argmax(scores.scores))
    assert arrays[best].info().labels == ["FreeR_flag"] and scores.test_flag_values[best] == 0
    assert sum(s > 0 for s in scores.scores) == 1
    flags = arrays[best]
    assert r_free_utils.looks_like_ccp4_flags(flags)
    assert flags.is_unique_set_under_symmetry() and not flags.anomalous_flag()
    assert np.mean(np.array(flags.data()) == 0) == pytest.approx(0.05, abs=1 / flags.size())


@pytest.mark.parametrize(
    ("values", "wanted"),
    [(range(20), 0), ([0] * 19 + [1], 1), ([1] * 19 + [0], 0), ([0] * 9, None), ([np.nan, 0, 1, 1], 0)],
)
def test_value_of_the_test_set(values, wanted):
    assert free_value(np.array(list(values), dtype=float)) == wanted


# ------------------------------------------------------------------------------------ facts and commands


def test_facts_of_our_file(phased):
    facts = read_phased(phased)
    assert facts.amplitudes == ("F", "SIGF") and facts.phases == ("PHIB", "FOM")
    assert facts.hl == ("HLA", "HLB", "HLC", "HLD") and facts.coefficients == ("FWT", "PHWT")
    assert facts.free == "FreeR_flag" and facts.free_value == 0
    assert facts.d_min == pytest.approx(1.2, abs=0.01) and facts.volume == pytest.approx(CELL.volume / 4)
    assert facts.spacegroup == "P 21 21 21"


def test_every_command_can_be_pasted(phased, sequence):
    steps = next_steps(read_phased(phased), sequence, phased.with_suffix(".phi"))
    programs = ["ModelCraft", "SHELXE", "AutoBuild", "Parrot", "Buccaneer", "Coot", "Refmac", "Servalcat"]
    assert [s.program for s in steps] == programs
    for step in steps:
        assert "\n" not in step.command
        words = shlex.split(step.command)
        if step.program == "SHELXE":
            assert words[:3] == ["cd", str(phased.parent), "&&"] and words[3:5] == ["shelxe", "my pred.phi"]
        else:
            assert any(str(phased) in w for w in words)
    assert all("seqin" not in need and "freer" not in need for s in steps for need in s.needs)
    assert all(s.needs == () for s in steps[:6])
    assert all(any("a model" in n for n in s.needs) for s in steps[6:])


def test_what_is_lacking_is_named(tmp_path):
    path = foreign(tmp_path / "x.mtz", (("FP", "F"), ("SIGFP", "Q"), ("PHI", "P"), ("W", "W")))
    steps = next_steps(read_phased(path))
    needs = {s.program: " ".join(s.needs) for s in steps}
    assert "seqin" in needs["ModelCraft"] and "freer 5" in needs["ModelCraft"]
    assert "seqin" in needs["Buccaneer"] and "seqin" not in needs["Parrot"]
    assert "both or neither" in needs["AutoBuild"] and "shelxout" in needs["SHELXE"]
    assert "map coefficients" in needs["Coot"] and "--freerflag" not in of(steps, "ModelCraft").command
    assert "--phases PHI,W " in of(steps, "ModelCraft").command
    assert "-colin-phifom '/*/*/[PHI,W]'" in of(steps, "Parrot").command


def test_labels_of_other_programs(tmp_path, sequence):
    columns = [("FTOXD3", "F"), ("SIGFTOXD3", "Q"), ("FreeRflag", "I"), ("PHIM", "P"), ("FOMM", "W")]
    columns += [(f"HL{x}M", "A") for x in "ABCD"] + [("FWT", "F"), ("PHWT", "P")]
    path = foreign(tmp_path / "x.mtz", columns)
    steps = next_steps(read_phased(path), sequence)
    words = shlex.split(of(steps, "AutoBuild").command)
    assert words[-1] == "input_labels=FTOXD3 SIGFTOXD3 PHIM FOMM HLAM HLBM HLCM HLDM FreeRflag"
    refmac = of(steps, "Refmac").command
    assert "FP=FTOXD3 SIGFP=SIGFTOXD3 HLA=HLAM" in refmac and "FREE=FreeRflag" in refmac


def test_several_sets_are_not_guessed_between(tmp_path):
    path = foreign(tmp_path / "x.mtz", [(f"{x}{i}", k) for i in (1, 2) for x, k in (("F", "F"), ("S", "Q"))]
                   + [(f"{x}{i}", k) for i in (1, 2) for x, k in (("P", "P"), ("W", "W"))])  # fmt: skip
    with pytest.raises(UserError, match="labin F1,S1"):
        read_phased(path)
    with pytest.raises(UserError, match="labphase P1,W1"):
        read_phased(path, labin="F2,S2")
    facts = read_phased(path, labin="FP=F2 SIGFP=S2", labphase="P2,W2")
    assert facts.amplitudes == ("F2", "S2") and facts.phases == ("P2", "W2")
    with pytest.raises(UserError, match="no columns F2,W2"):
        read_phased(path, labin="F2,W2")


def test_files_without_phases_are_refused(tmp_path):
    with pytest.raises(UserError, match="no phases"):
        read_phased(foreign(tmp_path / "x.mtz", (("F", "F"), ("SIGF", "Q"))))
    (tmp_path / "y.mtz").write_text("text")
    with pytest.raises(UserError, match="not an MTZ"):
        read_phased(tmp_path / "y.mtz")


def test_amplitudes_are_those_that_were_phased(tmp_path):
    both = (("FP", "F"), ("SIGFP", "Q"), ("FD", "F"), ("SIGFD", "Q"))
    path = foreign(tmp_path / "in.mtz", both)
    data = amplitudes(Source(str(path), "MTZ", ("FD", "SIGFD"), "amplitude"), d_min=1.5)
    write_mtz(tmp_path / "out.mtz", data, phases(data))
    assert of_result(tmp_path / "out.mtz", data).amplitudes == ("FD", "SIGFD")
    alone = dataclasses.replace(data, source=Source(str(path), "MTZ", ("FD",), "amplitude"))
    assert of_result(tmp_path / "out.mtz", alone).amplitudes == ()
    made = dataclasses.replace(data, source=Source(str(path), "MTZ", ("I", "SIGI"), "intensity"))
    write_mtz(tmp_path / "made.mtz", made, phases(data))
    assert of_result(tmp_path / "made.mtz", made).amplitudes == ("F", "SIGF")


def test_test_sets_of_phenix_are_told_to_the_others():
    facts = Phased(Path("x.mtz"), ("F", "S"), ("P", "W"), (), (), "R-free-flags", 1, 2.0, 1e4, "P 1")
    steps = next_steps(facts)
    assert "--freerflag-value 1" in of(steps, "ModelCraft").command and "'FREE 1'" in of(steps, "Refmac").command
    assert "--free 1" in of(steps, "Servalcat").command


def test_installed_is_what_is_on_path(tmp_path, monkeypatch, phased):
    (tmp_path / "bin").mkdir()
    for name, mode in (("shelxe", 0o755), ("modelcraft", 0o644)):
        (tmp_path / "bin" / name).write_text("#!/bin/sh\n")
        (tmp_path / "bin" / name).chmod(mode)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert [s.program for s in next_steps(read_phased(phased)) if s.installed] == ["SHELXE"]


def test_verdict_governs_the_tone(phased):
    steps = next_steps(read_phased(phased))
    assert "none of these is worth running" in log.next_steps(steps, "not solved")
    assert "look at the map" in log.next_steps(steps, "uncertain")
    plain = log.next_steps(steps, "solved")
    assert "UNCERTAIN" not in plain and all(s.command in plain.splitlines()[i] for s in steps
                                            for i in [next(j for j, x in enumerate(plain.splitlines())
                                                           if s.command in x)])  # fmt: skip


def test_modelcraft_takes_its_command(phased, sequence):
    """The argument parser of ModelCraft itself, and its search for columns."""
    if importlib.util.find_spec("modelcraft") is None:
        pytest.skip("ModelCraft is not installed")
    command = of(next_steps(read_phased(phased), sequence), "ModelCraft").command
    program = (
        "import sys, types, json; sys.modules['coot_headless_api'] = types.ModuleType('coot_headless_api')\n"
        "from modelcraft.arguments import parse; from modelcraft.reflections import DataItem; import gemmi\n"
        "a = parse(sys.argv[2:])\n"
        "mtz = gemmi.read_mtz_file(a.data)\n"
        "found = {t: [i.label() for i in DataItem.search(mtz, t)] for t in ('FQ', 'AAAA', 'PW', 'I', 'FP')}\n"
        "print(json.dumps([a.fmean.label(), a.phases.label(), a.freer.label(), a.freerflag_value, a.unbiased,"
        " [p.sequence for p in a.contents.proteins], found]))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, *shlex.split(command)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    import json

    assert json.loads(done.stdout.splitlines()[-1]) == [
        "F,SIGF", "HLA,HLB,HLC,HLD", "FreeR_flag", 0, True, ["MKLVAGYS", "ACDEFGHIKL"],
        {"FQ": ["F,SIGF"], "AAAA": ["HLA,HLB,HLC,HLD"], "PW": ["PHIB,FOM"], "I": ["FreeR_flag"], "FP": ["FWT,PHWT"]},
    ]  # fmt: skip
    words = [w for w in shlex.split(command) if w not in ("--phases", "HLA,HLB,HLC,HLD")]
    refused = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, *words], capture_output=True, text=True, check=False
    )
    assert refused.returncode == 2 and "Multiple possible columns" in refused.stderr  # why --phases is always given
