"""Which programs can go on from a phased MTZ, and the commands that make them do it.

The commands are made from the columns that the file has, whatever their names. Their syntax was taken from the
programs' own documentation and argument parsers (docs/next.md says which).
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Sequence as Items
from dataclasses import dataclass
from pathlib import Path

import gemmi
import numpy as np

from ml_phaser.crystal.reflections import Amplitudes
from ml_phaser.errors import UserError
from ml_phaser.exchange.columns import is_calculated, is_free_flag
from ml_phaser.exchange.free_flags import free_value
from ml_phaser.exchange.mtz import parse
from ml_phaser.exchange.read import load
from ml_phaser.exchange.sequence import Sequence
from ml_phaser.outcome import NextStep

PHASES, COEFFICIENTS, MAP = ("PHIB", "FOM"), ("HLA", "HLB", "HLC", "HLD"), ("FWT", "PHWT")
COOT_OPENS = (MAP, ("2FOFCWT", "PH2FOFCWT"), ("FDM", "PHIDM"))
OWN_DATASET = "ml_phaser"
DEFAULT_SOLVENT = 0.5
TYPICAL_SOLVENT = 0.47  # of protein crystals
LEAST_SOLVENT = 0.1
PROTEIN_VOLUME = 1.23  # A^3/Da
SHELXE_WORTH = 2.5  # A; beyond, SHELXE's chain tracing is not made for it
MODEL = "MODEL.pdb"
NEEDS_SEQUENCE = "a sequence: seqin FILE"
NEEDS_FREE = "free-R flags: freer 5 makes them when ml_phaser runs"
NEEDS_AMPLITUDES = "amplitudes with their standard uncertainties beside the phases"
NEEDS_MODEL = f"a model to refine, for {MODEL}: built by one of the programs above, or by hand"
NEEDS_SHELXE = "the files for SHELXE: shelxout x.phi when ml_phaser runs"
NEEDS_BOTH = "a phase with its figure of merit and Hendrickson-Lattman coefficients: it takes both or neither"
NEEDS_HEADER = "the sequence as FASTA: put a line >name first"


@dataclass(frozen=True)
class Phased:
    """Facts of a phased MTZ: labels as they stand in it, empty where it has none.

    amplitudes : F, SIGF; phases : phase, figure of merit; hl : the four coefficients; coefficients : F, phase of a map
    free, free_value : free-R flags and the value of the test set (None where that cannot be told)
    d_min : in A, of the phases; volume : of the asymmetric unit, A^3; spacegroup : Hermann-Mauguin symbol
    """

    path: Path
    amplitudes: tuple[str, ...]
    phases: tuple[str, ...]
    hl: tuple[str, ...]
    coefficients: tuple[str, ...]
    free: str
    free_value: int | None
    d_min: float
    volume: float
    spacegroup: str


@dataclass(frozen=True)
class Solvent:
    """Share of the cell (0-1) that is solvent, and whether a sequence says so."""

    fraction: float
    known: bool


# ------------------------------------------------------------------------------------- facts of a file


def read_phased(path: Path, *, labin: str | None = None, labphase: str | None = None) -> Phased:
    """Facts of a phased MTZ, from ml_phaser or any other program.

    Parameters
    ----------
    labin : amplitudes, e.g. "F,SIGF" or "FP=F SIGFP=SIGF" [those ml_phaser made; else the only ones]; "" for none
    labphase : "PHIB,FOM" or "HLA,HLB,HLC,HLD" [ml_phaser's; else the only ones]

    Raises
    ------
    UserError : no MTZ, no phases, or several sets of columns and no word on which
    """
    where = path.name
    content = load(path)
    if content[:4] != b"MTZ ":
        raise UserError("is not an MTZ", where, "the MTZ with phases that ml_phaser wrote")
    mtz = parse(content, where)
    if mtz.spacegroup is None or len(mtz.batches):
        raise UserError("is unmerged or has no known space group", where, "the MTZ with phases that ml_phaser wrote")
    given = _named(labphase)
    if len(given) not in (0, 2, 4):
        raise UserError(f"names {len(given)} columns", "labphase", "labphase PHIB,FOM or labphase HLA,HLB,HLC,HLD")
    measured = [r for r in _runs(mtz, "FQ") if not is_calculated(r[0]) and _filled(mtz, r)]
    if labin is not None:
        amplitudes = _checked(mtz, _named(labin), "FQ", "labin", where) if labin else ()
    else:
        amplitudes = _own(mtz) or _one_of(measured, (), "labin", where)
    if given:
        wanted = _checked(mtz, given, "PW" if len(given) == 2 else "AAAA", "labphase", where)
        phases, hl = (wanted, ()) if len(given) == 2 else ((), wanted)
    else:
        phases = _one_of(_runs(mtz, "PW"), PHASES, "labphase", where)
        hl = _one_of(_runs(mtz, "AAAA"), COEFFICIENTS, "labphase", where)
    if not hl and not phases:
        raise UserError(
            "holds no phases: neither a phase beside its figure of merit nor Hendrickson-Lattman coefficients",
            where,
            "the MTZ that ml_phaser wrote",
        )
    maps = _runs(mtz, "FP")
    free = next((c.label for c in mtz.columns if c.type == "I" and is_free_flag(c.label)), "")
    ops = mtz.spacegroup.operations()
    phased = np.isfinite(np.array(mtz.column_with_label((hl or phases)[0])))
    d = np.asarray(mtz.make_d_array())[phased]
    return Phased(
        path, amplitudes, phases, hl,
        coefficients=next((m for m in COOT_OPENS if m in maps), maps[0] if maps else ()),
        free=free, free_value=free_value(np.array(mtz.column_with_label(free))) if free else None,
        d_min=float(d.min()) if len(d) else float("nan"),
        volume=mtz.cell.volume / len(list(ops)), spacegroup=mtz.spacegroup.xhm(),
    )  # fmt: skip


def of_result(path: Path, data: Amplitudes) -> Phased:
    """Facts of the MTZ that a run wrote for ``data``: the amplitudes are those it phased."""
    labels = data.source.columns if data.source.kind == "amplitude" else ()
    mtz = parse(load(path), path.name)
    if not labels or not set(labels) <= set(mtz.column_labels()):
        labels = _own(mtz)
    usable = len(labels) == 2 and _filled(mtz, labels)  # with standard uncertainties
    return read_phased(path, labin=",".join(labels) if usable else "")


def _own(mtz: gemmi.Mtz) -> tuple[str, ...]:
    """The amplitudes that ml_phaser made of intensities, which its phases belong to; () where there are none."""
    measured = [r for r in _runs(mtz, "FQ") if _filled(mtz, r)]
    own = [r for r in measured if mtz.column_with_label(r[0]).dataset.dataset_name == OWN_DATASET]
    return own[-1] if own else ()


def _runs(mtz: gemmi.Mtz, types: str) -> list[tuple[str, ...]]:
    """Labels of neighbouring columns of these types."""
    kinds = "".join(c.type for c in mtz.columns)
    labels = mtz.column_labels()
    found, i = [], 0
    while (i := kinds.find(types, i)) >= 0:
        found.append(tuple(labels[i : i + len(types)]))
        i += len(types)
    return found


def _named(text: str | None) -> tuple[str, ...]:
    """Labels out of "F,SIGF" or "FP=F SIGFP=SIGF"."""
    return tuple(word.rpartition("=")[2] for word in (text or "").replace(",", " ").split())


def _filled(mtz: gemmi.Mtz, labels: Items[str]) -> bool:
    """Whether each column has a value somewhere."""
    return all(np.isfinite(np.array(mtz.column_with_label(label))).any() for label in labels)


def _checked(mtz: gemmi.Mtz, labels: tuple[str, ...], types: str, option: str, where: str) -> tuple[str, ...]:
    """Columns that the user named; UserError unless they are there and of these types."""
    kinds = {c.label: c.type for c in mtz.columns}
    if "".join(kinds.get(label, "?") for label in labels) != types:
        there = "; ".join(",".join(r) for r in _runs(mtz, types)) or "(none)"
        raise UserError(f"has no columns {','.join(labels)} of types {types}; there are {there}", where, option)
    return labels


def _one_of(found: Items[tuple[str, ...]], ours: tuple[str, ...], option: str, where: str) -> tuple[str, ...]:
    """The columns with names of ours, else the only ones; () where there are none."""
    if ours in found or not found:
        return ours if found else ()
    if len(found) > 1:
        listed = "; ".join(",".join(r) for r in found)
        raise UserError(f"several sets of columns: {listed}", where, f"{option} {','.join(found[0])}")
    return found[0]


# ----------------------------------------------------------------------------------------- commands


def solvent(phased_volume: float, sequence: Sequence | None) -> Solvent:
    """Solvent content of a crystal with ``phased_volume`` A^3 in its asymmetric unit: that of the number of copies of
    the sequence that comes nearest to what is usual; 0.5 where no sequence is known."""
    if sequence is None:
        return Solvent(DEFAULT_SOLVENT, known=False)
    one = PROTEIN_VOLUME * sequence.mass / phased_volume  # share of the asymmetric unit that a copy fills
    fractions = [1 - n * one for n in range(1, max(2, int(1 / one) + 1))]
    best = min(fractions, key=lambda x: abs(x - TYPICAL_SOLVENT))
    return Solvent(max(LEAST_SOLVENT, best), known=True)


def next_steps(facts: Phased, sequence: Sequence | None = None, shelxe: Path | None = None) -> tuple[NextStep, ...]:
    """Commands for every program that reads such a file, those that build a model first.

    Parameters
    ----------
    facts : of the phased MTZ
    sequence : of the molecule, where known
    shelxe : the .phi of a set of files for SHELXE, where there is one
    """
    return (
        _modelcraft(facts, sequence),
        _shelxe(facts, sequence, shelxe),
        _autobuild(facts, sequence),
        _parrot(facts, sequence),
        _buccaneer(facts, sequence),
        _coot(facts),
        _refmac(facts),
        _servalcat(facts),
    )


def modelcraft_words(facts: Phased, contents: Path, *, directory: str, program: str = "modelcraft") -> list[str]:
    """ModelCraft's command. Columns are named throughout: it refuses to choose between PHIB,FOM and coefficients."""
    phases = facts.hl or facts.phases
    words = [program, "xray", "--contents", str(contents), "--data", str(facts.path)]
    words += ["--observations", ",".join(facts.amplitudes), "--phases", ",".join(phases), "--unbiased"]
    words += ["--freerflag", facts.free] if facts.free else []
    if facts.free_value is not None and facts.free_value != 0:
        words += ["--freerflag-value", str(facts.free_value)]
    return [*words, "--directory", directory]


def autobuild_words(
    facts: Phased, sequence_file: Path, kinds: frozenset[str], program: str = "phenix.autobuild"
) -> list[str]:
    """AutoBuild's command; a label for each column it knows, None where the file has none."""
    labels = [*(facts.amplitudes or ("None", "None")), *facts.phases, *facts.hl, facts.free or "None"]
    words = [program, f"data={facts.path}", f"seq_file={sequence_file}", f"input_labels={' '.join(labels)}"]
    return [*words, "chain_type=DNA"] if kinds == {"nucleic acid"} else words


def shelxe_words(phi: str, water: Solvent, program: str = "shelxe") -> list[str]:
    """SHELXE's command, to be given in the folder of the files."""
    return [program, phi, f"-s{water.fraction:.2f}", "-m20", "-a5", "-q"]


def _modelcraft(facts: Phased, sequence: Sequence | None) -> NextStep:
    needs = _lacking(
        (not facts.amplitudes, NEEDS_AMPLITUDES), (sequence is None, NEEDS_SEQUENCE), (not facts.free, NEEDS_FREE)
    )
    words = modelcraft_words(facts, _file(sequence), directory=str(_beside(facts.path, "_modelcraft")))
    return _step("ModelCraft", "build and refine a model (CCP4)", words, needs, "modelcraft")


def _shelxe(facts: Phased, sequence: Sequence | None, phi: Path | None) -> NextStep:
    needs = _lacking((phi is None, NEEDS_SHELXE))
    phi = phi or _beside(facts.path, ".phi")
    command = shlex.join(shelxe_words(phi.name, solvent(facts.volume, sequence)))
    if phi.parent != Path():
        command = f"cd {shlex.quote(str(phi.parent))} && {command}"
    purpose = "modify the density and trace the chain"
    if facts.d_min > SHELXE_WORTH:
        purpose += f" (its tracing is meant for data to {SHELXE_WORTH} A; these end at {facts.d_min:.2f} A)"
    return NextStep("SHELXE", purpose, command, needs, shutil.which("shelxe") is not None)


def _autobuild(facts: Phased, sequence: Sequence | None) -> NextStep:
    needs = _lacking(
        (not facts.amplitudes, NEEDS_AMPLITUDES),
        (not (facts.phases and facts.hl), NEEDS_BOTH),
        (sequence is None, NEEDS_SEQUENCE),
    )
    words = autobuild_words(facts, _file(sequence), sequence.kinds if sequence else frozenset())
    return _step("AutoBuild", "build and refine a model (Phenix)", words, needs, "phenix.autobuild")


def _parrot(facts: Phased, sequence: Sequence | None) -> NextStep:
    words = ["cparrot", *_clipper(facts)]
    words += ["-seqin", str(sequence.path)] if sequence else []
    words += ["-solvent-content", f"{solvent(facts.volume, sequence).fraction:.2f}"]
    words += ["-mtzout", str(_beside(facts.path, "_parrot.mtz"))]
    needs = _lacking((not facts.amplitudes, NEEDS_AMPLITUDES), (_plain(sequence), NEEDS_HEADER))
    return _step("Parrot", "improve the phases by density modification (CCP4)", words, needs, "cparrot")


def _buccaneer(facts: Phased, sequence: Sequence | None) -> NextStep:
    words = ["cbuccaneer", *_clipper(facts), "-seqin", str(_file(sequence))]
    words += ["-pdbout", str(_beside(facts.path, "_buccaneer.pdb"))]
    needs = _lacking(
        (not facts.amplitudes, NEEDS_AMPLITUDES), (sequence is None, NEEDS_SEQUENCE), (_plain(sequence), NEEDS_HEADER)
    )
    return _step("Buccaneer", "build a protein, no refinement (CCP4)", words, needs, "cbuccaneer")


def _coot(facts: Phased) -> NextStep:
    needs: tuple[str, ...] = ()
    if not facts.coefficients:
        needs = ("map coefficients, or a map: coot --map FILE",)
    elif facts.coefficients not in COOT_OPENS:
        needs = (f"a choice in its dialogue: columns {' and '.join(facts.coefficients)}",)
    return _step("Coot", "look at the map, build by hand", ["coot", "--auto", str(facts.path)], needs, "coot")


def _refmac(facts: Phased) -> NextStep:
    names = [("FP", "SIGFP"), ("HLA", "HLB", "HLC", "HLD") if facts.hl else ("PHIB", "FOM")]
    labels = (facts.amplitudes, facts.hl or facts.phases)
    pairs = [f"{n}={x}" for ns, xs in zip(names, labels, strict=True) for n, x in zip(ns, xs, strict=False)]
    lines = ["LABIN " + " ".join([*pairs, *([f"FREE={facts.free}"] if facts.free else [])])]
    if facts.free_value is not None and facts.free_value != 0:
        lines.append(f"FREE {facts.free_value}")
    words = ["refmac5", "hklin", str(facts.path), "xyzin", MODEL]
    words += ["hklout", str(_beside(facts.path, "_refined.mtz")), "xyzout", str(_beside(facts.path, "_refined.pdb"))]
    text = f"printf '%s\\n' {shlex.join([*lines, 'END'])} | {shlex.join(words)}"
    needs = _lacking((True, NEEDS_MODEL), (not facts.amplitudes, NEEDS_AMPLITUDES), (not facts.free, NEEDS_FREE))
    purpose = "refine a model against amplitudes and phases (CCP4)"
    return NextStep("Refmac", purpose, text, needs, shutil.which("refmac5") is not None)


def _servalcat(facts: Phased) -> NextStep:
    columns = [*facts.amplitudes, *([facts.free] if facts.free else [])]
    words = ["servalcat", "refine_xtal_norefmac", "--model", MODEL, "--hklin", str(facts.path), "--source", "xray"]
    words += ["--labin", ",".join(columns), "--output_prefix", str(_beside(facts.path, "_servalcat"))]
    if facts.free_value is not None and facts.free_value != 0:
        words += ["--free", str(facts.free_value)]
    needs = _lacking((True, NEEDS_MODEL), (not facts.amplitudes, NEEDS_AMPLITUDES), (not facts.free, NEEDS_FREE))
    return _step("Servalcat", "refine a model against the amplitudes (CCP4)", words, needs, "servalcat")


def _clipper(facts: Phased) -> list[str]:
    """The columns as Parrot and Buccaneer want them."""
    words = ["-mtzin", str(facts.path), "-colin-fo", _path_of(facts.amplitudes)]
    words += ["-colin-hl", _path_of(facts.hl)] if facts.hl else ["-colin-phifom", _path_of(facts.phases)]
    return words + (["-colin-free", _path_of((facts.free,))] if facts.free else [])


def _path_of(labels: Items[str]) -> str:
    return f"/*/*/[{','.join(labels)}]"


def _step(program: str, purpose: str, words: Items[str], needs: tuple[str, ...], executable: str) -> NextStep:
    return NextStep(program, purpose, shlex.join(words), needs, shutil.which(executable) is not None)


def _lacking(*cases: tuple[bool, str]) -> tuple[str, ...]:
    return tuple(text for lacking, text in cases if lacking)


def _plain(sequence: Sequence | None) -> bool:
    return sequence is not None and sequence.format == "plain letters"


def _file(sequence: Sequence | None) -> Path:
    return sequence.path if sequence else Path("SEQUENCE.fasta")


def _beside(mtz: Path, ending: str) -> Path:
    return mtz.with_name(mtz.stem + ending)
