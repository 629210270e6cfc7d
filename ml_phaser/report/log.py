"""The log of a run as text: CCP4's banner and last words, tables its graph viewers read, the verdict."""

from __future__ import annotations

import datetime
import math
import shlex
import textwrap
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ml_phaser.report.advice import warnings

if TYPE_CHECKING:
    from ml_phaser.crystal.normalise import Normalised
    from ml_phaser.crystal.reflections import Amplitudes
    from ml_phaser.outcome import Given, NextStep, Outcome, PhaseSeeds, SeedsGiven, Trial
    from ml_phaser.parameters import Options

WIDTH = 63
TEXT_WIDTH = 100
TRIALS_IN_GRAPH = 500
METHODS = {
    "charge flipping": ("Oszlanyi & Suto (2004) Acta Cryst. A60, 134-141",),
    "iterative projections": (
        "Fienup (1982) Appl. Opt. 21, 2758-2769",
        "Elser (2003) J. Opt. Soc. Am. A20, 40-55",
    ),
    "free atoms": ("Sheldrick & Gould (1995) Acta Cryst. B51, 423-431",),
    "heavy atoms": (
        "Schneider & Sheldrick (2002) Acta Cryst. D58, 1772-1779",
        "Sim (1959) Acta Cryst. 12, 813-815",
    ),
}


# ------------------------------------------------------------------------------------ the CCP4 frame


def banner(version: str, user: str, now: datetime.datetime) -> str:
    """CCP4's banner, which log parsers recognise a program's start by."""
    bar = " " + "#" * WIDTH
    title = f" ### CCP4 9.0: {'ml_phaser':<17}{'version ' + version:<20}: {now:%d/%m/%y}##"
    when = f" User: {user}  Run date: {now:%d/%m/%Y} Run time: {now:%H:%M:%S}"
    return "\n".join([bar, bar, bar, title, bar, when, ""])


def data_lines(lines: Iterable[str]) -> str:
    """The keywords as read, each echoed as CCP4's parser does."""
    return "".join(f" Data line--- {line}\n" for line in lines)


def ending(message: str, user: float, system: float, elapsed: float) -> str:
    """The last two lines: what became of the run, and processor and wall-clock seconds."""
    minutes, seconds = divmod(int(elapsed), 60)
    return (
        f" ml_phaser:  {message}\nTimes: User: {user:9.1f}s System: {system:6.1f}s Elapsed: {minutes:5d}:{seconds:02d}"
    )


def beginning(options: Options, notes: Sequence[str] = ()) -> str:
    """What the program was asked to do."""
    from ml_phaser.report.record import command

    return "\n".join([f" Command: {command(options)}", *(f" Note: {note}" for note in notes)])


# -------------------------------------------------------------------------------------------- tables


def _cell(value: Any, digits: int) -> str:
    if isinstance(value, str):
        return value.replace(" ", "_") or "-"
    if value is None or not math.isfinite(value):
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.{digits}f}"


def loggraph(
    title: str,
    graphs: Sequence[tuple[str, Sequence[int]]],
    columns: Sequence[str],
    rows: Sequence[Sequence[Any]],
    *,
    digits: int = 3,
) -> str:
    """A table in the format of CCP4's graph viewers (``$TABLE``).

    Parameters
    ----------
    graphs : (name, columns to plot counted from 1, the first being x)
    columns : headings; the number of columns of every row
    rows : numbers or words; what is missing or not finite is written "-"
    """
    head = [f"$TABLE: {_safe(title)} :", "$GRAPHS"]
    head += [f":{_safe(name)}:A:{','.join(map(str, which))}:" for name, which in graphs]
    cells = [[_cell(value, digits) for value in row] for row in rows]
    names = [name.replace(" ", "_") for name in columns]
    width = [max(map(len, column)) for column in zip(names, *cells, strict=True)]
    body = [" ".join(c.rjust(w) for c, w in zip(row, width, strict=True)) for row in cells]
    names_line = " ".join(n.rjust(w) for n, w in zip(names, width, strict=True))
    return "\n".join([*head, "$$", f"{names_line} $$", "$$", *body, "$$"])


def _safe(text: str) -> str:
    return text.replace(":", " ").replace("$", " ")


def fom_table(outcome: Outcome) -> str:
    """Mean figure of merit and held-out agreement by resolution shell."""
    rows = [(i, 1 / s.d_min**2, s.d_min, s.n, s.fom, s.cc_free) for i, s in enumerate(outcome.shells, start=1)]
    return loggraph(
        "FOM by resolution",
        [
            ("Mean FOM v. resolution", (2, 5)),
            ("CC of held-out E v. resolution", (2, 6)),
            ("Reflections per shell", (2, 4)),
        ],
        ("Shell", "1/d^2", "d_min", "N_refl", "FOM", "CC_free"),
        rows,
        digits=4,
    )


def trials_table(trials: Sequence[Trial]) -> str:
    """Held-out score of every trial, best first (the best ``TRIALS_IN_GRAPH`` of very many)."""
    ranked = sorted(trials, key=lambda t: -t.score if math.isfinite(t.score) else math.inf)
    rows = [
        (i, t.index, t.method, t.cycles, t.score, t.r_work, t.symmetry, t.cluster)
        for i, t in enumerate(ranked[:TRIALS_IN_GRAPH], start=1)
    ]
    return loggraph(
        "Held-out score of trials",
        [("CC of held-out E v. rank", (1, 5)), ("R on the data used v. rank", (1, 6))],
        ("Rank", "Trial", "Method", "Cycles", "CC_free", "R_work", "Symmetry", "Solution"),
        rows,
    )


# ------------------------------------------------------------------------------------------- the data


def data_summary(outcome: Outcome) -> str:
    """What was measured, in a dozen lines."""
    data = outcome.data
    cell = data.cell
    numbers = (cell.a, cell.b, cell.c, cell.alpha, cell.beta, cell.gamma)
    rows = [
        ("File", f"{data.source.path} ({data.source.format})"),
        ("Columns", f"{', '.join(data.source.columns)} ({data.source.kind})"),
        ("Unit cell", " ".join(f"{x:.3f}" for x in numbers)),
        ("Space group", f"{data.spacegroup.hm} (number {data.spacegroup.number})"),
        ("Resolution", f"{data.d_max:.2f} - {data.d_min:.2f} A"),
        ("Reflections", f"{len(data)}, {100 * data.completeness:.1f} % of those possible"),
        ("Free-R flags", free_set(outcome)),
    ]
    return "\n".join([" Data", *(f"   {name:<14}{value}" for name, value in rows)])


def free_set(outcome: Outcome) -> str:
    """Where the free-R flags are from."""
    if outcome.data.free is not None:
        return "kept"
    return f"made ({outcome.free_made})" if outcome.free_made else "none"


def wilson_summary(wilson: Normalised) -> str:
    """Scale, fall-off and anisotropy of the data."""
    tensor = wilson.aniso_b
    aniso = "not significant"
    if np.any(tensor != 0):
        aniso = "B11 B22 B33 B12 B13 B23 " + " ".join(f"{b:.2f}" for b in tensor) + " A^2"
    rows = [
        ("Wilson B", f"{wilson.wilson_b:.2f} A^2"),
        ("Anisotropy", aniso),
        ("Outliers", f"{int(np.count_nonzero(wilson.outlier))} reflections not used in phasing"),
    ]
    return "\n".join(f"   {name:<14}{value}" for name, value in rows)


def ln_mean_intensities(data: Amplitudes, wilson: Normalised) -> list[float]:
    """ln of the mean intensity, the data's epsilon taken out, of each shell of ``wilson``; NaN where it is not above
    zero."""
    intensity = wilson.e2 * wilson.expected / data.epsilon
    means = []
    for s in wilson.shells:
        inside = (data.d <= s.d_max) & (data.d >= s.d_min)
        means.append(float(intensity[inside].mean()) if inside.any() else math.nan)
    return [math.log(mean) if mean > 0 else math.nan for mean in means]


def wilson_table(data: Amplitudes, wilson: Normalised) -> str:
    """Wilson plot and quality of the data by resolution shell."""
    logs = ln_mean_intensities(data, wilson)
    rows = [
        (i, 1 / s.d_min**2, s.d_min, s.n, log, s.mean_e2, s.completeness, s.i_over_sigma)
        for i, (s, log) in enumerate(zip(wilson.shells, logs, strict=True), start=1)
    ]
    return loggraph(
        "Data by resolution",
        [
            ("Wilson plot, ln of mean I v. resolution", (2, 5)),
            ("Mean E^2 v. resolution", (2, 6)),
            ("Completeness v. resolution", (2, 7)),
            ("Mean I/sigma v. resolution", (2, 8)),
        ],
        ("Shell", "1/d^2", "d_min", "N_refl", "ln_mean_I", "mean_E^2", "Complete", "I/sigma"),
        rows,
        digits=4,
    )


# ----------------------------------------------------------------------------------------- the result


def verdict_line(outcome: Outcome) -> str:
    """The verdict in one sentence."""
    v = outcome.verdict
    reason = f": {v.reason}" if v.reason else ""
    return f" Verdict: {v.word.upper()} (probability {v.probability:.2f} that the map is right){reason}"


def verdict(outcome: Outcome) -> str:
    """The first thing to look at: verdict, mean figure of merit, best trial, hand."""
    bar = " " + "=" * WIDTH
    lines = [
        bar,
        textwrap.fill(verdict_line(outcome), TEXT_WIDTH, initial_indent="", subsequent_indent="   "),
    ]
    if outcome.shells:
        lines.append(f" Mean figure of merit: {outcome.mean_fom:.3f}")
    ranked = [t for t in outcome.trials if math.isfinite(t.score)]
    if ranked:
        best = next(t for t in outcome.trials if t.index == outcome.best)
        score = f"CC {best.score:.3f} on held-out reflections"
        lines.append(f" Best of {len(outcome.trials)} trials: {best.method}, {score}")
        agreeing = sum(t.cluster == best.cluster for t in outcome.trials if t.finished)
        if agreeing > 1:
            lines.append(f" Trials that agree on this solution: {agreeing}")
    if outcome.given is not None:
        lines += given_lines(outcome.given)
    if outcome.seeds_given is not None:
        lines += given_seeds_lines(outcome.seeds_given)
    if (placed := outcome.fragments) is not None:
        lines.append(f" Begun with: {placed.label} ({placed.atoms} atoms placed, CC {placed.fit:.2f} with E^2)")
    if outcome.atoms is not None:
        r = next(t.r_work for t in outcome.trials if t.index == outcome.best)
        lines.append(f" Phases: those of {len(outcome.atoms)} free atoms in the asymmetric unit, refined to R {r:.3f}")
    lines.append(textwrap.fill(f" Hand: {outcome.hand.said}", TEXT_WIDTH, subsequent_indent="   "))
    if outcome.seeds is not None:
        lines.append(f" {seeds_line(outcome.seeds)}")
    return "\n".join([*lines, bar])


def given_lines(given: Given) -> list[str]:
    """What became of the phases the user gave."""
    margin = f" (the other hand agrees {given.hand_margin:.2f} less)" if given.hand_margin > 0 else ""
    moved = f"moved by {given.moved:.0f} degrees on average"
    return [
        f" Phases given: {given.n}, mean figure of merit {given.fom:.2f}; {moved}",
        f" Correlation of the map with that of the phases given: {given.map_cc:.2f}",
        f" Origin and hand: those of the phases given{margin}",
    ]


def given_seeds_lines(given: SeedsGiven) -> list[str]:
    """What became of the phase seeds the user gave."""
    chance = f", mean probability {given.probability:.2f}" if math.isfinite(given.probability) else ""
    margin = f" (the other hand agrees {given.hand_margin:.2f} less)" if given.hand_margin > 0 else ""
    return [
        f" Phase seeds given: {given.n}{chance}; the result is {given.moved:.0f} degrees from them on average",
        f" Origin and hand: those of the seeds{margin}",
    ]


def seeds_line(seeds: PhaseSeeds) -> str:
    """What the phase seeds written are worth."""
    if not len(seeds):
        return "Phase seeds: none is good enough"
    return (
        f"Phase seeds: {len(seeds)} in {seeds.bins} bins, mean probability {seeds.mean_probability:.2f}, "
        f"about {seeds.probability.sum():.0f} expected right"
    )


def warning_block(text: str) -> str:
    """A warning that CCP4's interfaces pick out of the log."""
    return f"$TEXT:Warning: $$ comment $$\n WARNING: {text.replace('$', ' ')}\n$$"


def seed_files(outcome: Outcome, options: Options) -> str | None:
    """The file of phase seeds, None where there are none."""
    return str(options.seedout) if options.seedout and outcome.seeds is not None and len(outcome.seeds) else None


def has_atoms(outcome: Outcome) -> bool:
    """Whether there are coordinates to write."""
    return outcome.fragments is not None or outcome.atoms is not None


def files(outcome: Outcome, options: Options) -> str:
    """Output files."""
    rows = [
        ("map", options.mapout),
        ("phases", options.hklout),
        ("Patterson map", options.pattout),
        ("atoms" if outcome.fragments is None else "pieces", options.xyzout if has_atoms(outcome) else None),
        ("run record", options.jsonout),
        ("program.xml", options.xmlout),
        ("report", options.reportout),
        ("phase seeds", seed_files(outcome, options)),
        ("for SHELXE", options.shelxout and f"{options.shelxout}, with .hkl and .ins"),
    ]
    return "\n".join([" Files written", *(f"   {name:<14}{path}" for name, path in rows if path is not None)])


def next_steps(steps: Sequence[NextStep], word: str) -> str:
    """Commands to paste, under what the verdict ``word`` (empty where unknown) says of them. Never wrapped."""
    caution = {
        "uncertain": " The phases are UNCERTAIN: look at the map before you trust what any of these builds.",
        "not solved": " The phases are NOT SOLVED: none of these is worth running.",
    }.get(word)
    lines = [" What can go on from here", *([caution] if caution else [])]
    for step in steps:
        lines.append(f"   {step.program}: {step.purpose}{'' if step.installed else '; not found on PATH'}")
        lines += [f"      needs {need}" for need in step.needs]
        lines.append(f"      {step.command}")
    return "\n".join(lines)


def nothing_next(options: Options) -> str:
    """Instead of commands where nothing was solved: one that lies ready to be pasted would be taken for advice."""
    text = (
        " What can go on from here: nothing. The phases are not solved, and no program will build a right model from "
        f"them. (ml_phaser next hklin {shlex.quote(str(options.hklout))} lists the commands nevertheless.)"
    )
    return textwrap.fill(text, TEXT_WIDTH, subsequent_indent="   ", break_long_words=False, break_on_hyphens=False)


def methods_of(trials: Iterable[str], *, atoms: bool) -> dict[str, tuple[str, ...]]:
    """Methods and their papers, of results that began as ``trials`` say, and of which some are free ``atoms``."""
    begun = set(trials)
    absent = {m for m in ("heavy atoms",) if not any(t.startswith(m) for t in begun)}
    return {m: p for m, p in METHODS.items() if m not in absent | (set() if atoms else {"free atoms"})}


def citation(outcome: Outcome) -> str:
    """What to cite."""
    began = (t.method for t in outcome.trials if t.index == outcome.best)
    methods = methods_of(began, atoms=outcome.atoms is not None)
    return "\n".join(
        [
            " If this helped, please cite ml_phaser (CITATION.cff), and the methods it rests on:",
            *(f"   {method}: {'; '.join(papers)}" for method, papers in methods.items()),
        ]
    )


def report(outcome: Outcome, options: Options) -> str:
    """Everything after the run but the last two lines: data, tables, warnings, files, verdict, what can go on."""
    # the pipeline may hand on the notes of the data among its choices
    sentences = tuple(dict.fromkeys((*outcome.data.notes, *outcome.choices)))
    parts = [data_summary(outcome)]
    if sentences:
        parts.append("\n".join([" Choices made", *(f"   {s}" for s in sentences)]))
    if outcome.wilson is not None:
        parts[0] += "\n" + wilson_summary(outcome.wilson)
        parts.append(wilson_table(outcome.data, outcome.wilson))
    if outcome.shells:
        parts.append(fom_table(outcome))
    if outcome.trials:
        parts.append(trials_table(outcome.trials))
    parts += [warning_block(w) for w in warnings(outcome)]
    parts += [citation(outcome), files(outcome, options), verdict(outcome)]
    solved = outcome.verdict.word != "not solved"
    if outcome.next_steps or not solved:
        parts.append(next_steps(outcome.next_steps, outcome.verdict.word) if solved else nothing_next(options))
    return "\n\n".join(["", *parts, ""])
