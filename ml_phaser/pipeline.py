"""The main job as the method section of a paper: read, normalise, phase, place, weigh, write."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml_phaser.notify import Notify
from ml_phaser.outcome import Hand, Outcome, Phases, PhaseSeeds, Promise, SeedsGiven, ShellRow, Verdict
from ml_phaser.parameters import Options

Part = Callable[[Path], Path]  # where to write what will become a file when all are complete

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ml_phaser.crystal.normalise import Normalised
    from ml_phaser.crystal.peaks import Atoms
    from ml_phaser.crystal.reflections import Amplitudes
    from ml_phaser.exchange.phases import UserPhases
    from ml_phaser.exchange.read_seeds import SeedsRead
    from ml_phaser.outcome import Given
    from ml_phaser.phasing.finish import Solution
    from ml_phaser.phasing.fragments.pieces import Piece
    from ml_phaser.phasing.search import Hunt
    from ml_phaser.plan import Plan


FRAGMENTS_SHARE = 0.5  # of the time limit for pieces of structure, where random phases have any hope beside them
GROWING = 0.7  # of that, for pieces that grow by themselves
HEAVY_SHARE, HEAVY_BESIDE = 0.6, 0.3  # for heavy atoms, and where pieces grow as they do
REBUILDING = 0.35  # for atoms and network in turn, at most


def run(options: Options, notify: Notify) -> Outcome:
    """Phase one crystal and write the files. Raises UserError for anything that is the user's to mend."""
    clock = Clock(notify)
    with clock.stage("read"):
        data = read(options)
        check_next(data, options)
        given = read_given(data, options)
        seeds = read_given_seeds(data, options)
    with clock.stage("normalise"):
        normalised = normalise(data)
    with clock.stage("phase"):
        plan = make_plan(data, normalised, options, given, read_piece(options), seeds)
        hunt = phase(plan, options, notify)
    with clock.stage("weigh"):
        solution, agreement = choose(hunt, data, normalised, plan)
        solution, seeds_given = to_seeds(solution, data, normalised, seeds)
        keep = options.hand == "keep" or given is not None or seeds is not None or solution.fragments is not None
        phases, shells, verdict, hand = weigh(data, normalised, plan, solution, hunt.solutions, keep_hand=keep)
        said, kept = how_calibrated(plan.weights, solution)
    outcome = Outcome(
        data, phases, tuple(hunt.trials), verdict, hand, shells, normalised,
        choices=(
            *data.notes, *(given.notes if given else ()), *(seeds.notes if seeds else ()), *normalised.notes,
            *plan.choices, said,
        ),
        calibration=kept, weights=plan.weights, times=clock.times,
        device=plan.runtime.device, threads=plan.threads, best=solution.trial, given=agreement, held=solution.held,
        fragments=solution.fragments, predictor=plan.predictor,
        seeds=pick_seeds(data, normalised, phases, plan, options), seeds_given=seeds_given,
        atoms=in_hand(solution.atoms, data, hand),
    )  # fmt: skip
    with clock.stage("write"):
        return write(outcome, normalised, options)


@dataclass
class Clock:
    """Seconds of each stage."""

    notify: Notify
    times: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self.notify.stage(name)
        began = time.monotonic()
        yield
        self.times[name] = round(time.monotonic() - began, 3)


def read(options: Options) -> Amplitudes:
    """Measured data of one crystal, merged and unique."""
    from ml_phaser.exchange.read import read_amplitudes

    return read_amplitudes(
        options.hklin, labin=options.labin, resolution=options.resolution,
        spacegroup=options.spacegroup, cell=options.cell,
    )  # fmt: skip


def check_next(data: Amplitudes, options: Options) -> None:
    """What later steps need and these data lack, said before the work rather than after it. Raises UserError."""
    if options.shelxout is not None:
        from ml_phaser.exchange.shelxe import check_group

        check_group(data.spacegroup)
    if options.seedout is not None:
        from ml_phaser.exchange.seed_files import check_seed_group

        check_seed_group(options.seedout, options.seedformat, data.spacegroup)
    if options.then != "none":
        from ml_phaser.chain import check_data

        check_data(data, options)


def read_given(data: Amplitudes, options: Options) -> UserPhases | None:
    """The user's phases, where there are any."""
    if options.phasein is None:
        return None
    from ml_phaser.exchange.phases import read_phases

    return read_phases(options.phasein, data, options.labphase)


def read_given_seeds(data: Amplitudes, options: Options) -> SeedsRead | None:
    """The user's phase seeds, where there are any."""
    if options.seedin is None:
        return None
    from ml_phaser.exchange.read_seeds import read_seeds

    return read_seeds(options.seedin, data)


def normalise(data: Amplitudes) -> Normalised:
    """E values, Wilson scale, anisotropy, outliers; French-Wilson amplitudes for the map."""
    from ml_phaser.crystal import normalise as stage

    return stage.normalise(data)


def patterson(data: Amplitudes, *, origin_removed: bool = False) -> NDArray[np.float64]:
    """The Patterson map from measured intensities (from F^2 where amplitudes were measured)."""
    from ml_phaser.crystal.patterson import patterson_map

    intensity = data.intensity if data.intensity is not None else data.f**2
    return patterson_map(data, intensity, origin_removed=origin_removed)


def read_piece(options: Options) -> Piece | None:
    """The user's piece of structure to place, where there is one."""
    if options.xyzin is None:
        return None
    from ml_phaser.exchange import fragments
    from ml_phaser.phasing.fragments.pieces import of_user

    return of_user(options.xyzin.name, fragments.read_piece(options.xyzin))


def make_plan(
    data: Amplitudes, normalised: Normalised, options: Options, given: UserPhases | None = None,
    piece: Piece | None = None, seeds: SeedsRead | None = None,
) -> Plan:  # fmt: skip
    """P1 expansion, held-out reflections, and the methods the resolution allows."""
    from ml_phaser.exchange.sequence import read_sequence
    from ml_phaser.phasing.seeds import Seeds
    from ml_phaser.plan import plan_phasing

    starts = None if given is None else given.known
    held = None if seeds is None else Seeds(seeds.phase, seeds.given)
    chains = () if options.seqin is None else read_sequence(options.seqin).chains
    sequences = tuple(chain.letters for chain in chains if chain.kind == "protein")
    return plan_phasing(data, normalised, options, held, starts, () if piece is None else (piece,), sequences)


def phase(plan: Plan, options: Options, notify: Notify, now: Callable[[], float] = time.monotonic) -> Hunt:
    """Look for solutions, then go on from them with atoms and network in turn, where atoms are resolved; look further
    in what that leaves of the time. By the clock ``now`` in seconds."""
    began, seconds = now(), options.timelimit

    def left() -> float:
        return seconds - (now() - began)

    hunt = look(plan, options, notify, now, (1 - rebuilding(plan, seconds)) * seconds)
    if plan.rebuilder is not None:

        def tell() -> None:
            notify.progress(min(1.0, 1 - left() / seconds), hunt.best, hunt.trials)

        hunt.rebuild(plan.rebuilder, left, tell)
        vain = options.starts in ("heavy", "fragments") or hopeless(plan)
        if left() > 0 and not (hunt.convinced or (vain and hunt.solutions)):
            at_random(plan, options, hunt, left(), lambda done: tell(), now)
        notify.progress(1.0, hunt.best, hunt.trials)
    return hunt


def hopeless(plan: Plan) -> bool:
    """Whether so much is to be found that random phases have no hope beside pieces of structure."""
    from ml_phaser.phasing.fragments.pieces import MUCH

    return plan.road is not None and plan.road.room >= MUCH


def at_random(
    plan: Plan, options: Options, hunt: Hunt, seconds: float, tell: Callable[[float], None], now: Callable[[], float]
) -> None:  # fmt: skip
    """Many starts, from random phases unless the plan has others. ``tell`` : the part of the time that is gone."""
    from ml_phaser.phasing.search import search

    search(
        plan.entrants, plan.finishers, plan.whole, plan.n, seconds=seconds, most_trials=options.trials,
        seed=options.seed, progress=lambda done, best, trials: tell(done), now=now, hunt=hunt,
        polisher=plan.last_touch, walks=plan.walks,
    )  # fmt: skip


def rebuilding(plan: Plan, seconds: float) -> float:
    """Share of a search of so many seconds that is kept for atoms and network in turn."""
    return 0.0 if plan.rebuilder is None else min(REBUILDING, plan.rebuilder.wanted / seconds)


def look(plan: Plan, options: Options, notify: Notify, now: Callable[[], float], seconds: float) -> Hunt:
    """Heavy atoms, free atoms and pieces of structure, where they pay, and many starts until a solution convinces or
    the time is up. Pieces come before random phases, but last where the data show single atoms."""
    from ml_phaser.phasing.search import Hunt, walk_first

    hunt, began, gone = Hunt(plan.whole, plan.rows), now(), 0.0

    def left() -> float:
        return seconds - (now() - began)

    def telling(share: float) -> Callable[[float], None]:
        """Progress through the next ``share`` of the search."""
        nonlocal gone
        first, gone = gone, gone + share
        part = seconds / options.timelimit
        return lambda done: notify.progress(part * (first + share * done), hunt.best, hunt.trials)

    if plan.heavy is not None:
        from ml_phaser.phasing.heavy.solutions import from_heavy_atoms

        only = options.starts == "heavy"
        share = 1.0 if only else HEAVY_SHARE if plan.growth is None else HEAVY_BESIDE
        from_heavy_atoms(
            hunt, plan.heavy, plan.finishers, plan.n, options.seed, share * seconds, options.trials,
            telling(share), now, plan.last_touch,
        )  # fmt: skip
        if hunt.convinced or (only and hunt.solutions):
            return hunt
    if plan.walks is not None and plan.walks.lead > 0:
        walk_first(plan.walks, hunt, options.seed, telling((1.0 - gone) * plan.walks.lead / seconds), now)
        if hunt.convinced:
            at_random(plan, options, hunt, 0.0, telling(0.0), now)  # their last touch
            return hunt
    rest = 1.0 - gone
    if plan.road is None or plan.road_rows is None:
        at_random(plan, options, hunt, left(), telling(rest), now)
        return hunt
    alone = options.starts == "fragments" or hopeless(plan)
    share = 1.0 if alone else FRAGMENTS_SHARE
    if plan.road_last:
        at_random(plan, options, hunt, (1 - share) * left(), telling((1 - share) * rest), now)
        if hunt.convinced:
            return hunt
    spare, part = (left() if plan.road_last else share * left()), share * rest
    if plan.growth is not None:
        from ml_phaser.phasing.fragments.sprouts import from_poses

        from_poses(
            hunt, plan.road, plan.growth, plan.finishers, plan.n, options.seed, GROWING * spare,
            telling(GROWING * part), now, plan.last_touch,
        )  # fmt: skip
        if hunt.convinced:
            return hunt
        spare, part = (1 - GROWING) * spare, (1 - GROWING) * part
    from ml_phaser.phasing.fragments.solutions import from_fragments

    from_fragments(
        hunt, plan.road, plan.road_rows, plan.road_finishers, plan.n, options.seed, spare, telling(part), now,
        plan.last_touch, plan.rebuilder, lambda: options.timelimit - (now() - began),
    )  # fmt: skip
    if not plan.road_last and not (alone and hunt.solutions):
        at_random(plan, options, hunt, left(), telling((1 - share) * rest), now)
    return hunt


def choose(hunt: Hunt, data: Amplitudes, normalised: Normalised, plan: Plan) -> tuple[Solution, Given | None]:
    """The likeliest solution. Where phases were given: the first density modification of them, unless another solution
    that keeps what they say is better than the luck of so many trials; at their origin and hand, with them combined
    in."""
    if plan.starts is None:
        return replace(max(hunt.solutions, key=lambda s: s.probability), chance=hunt.chance), None
    from ml_phaser.phasing.starts import as_given

    known = plan.starts
    settled = []
    for s in sorted(hunt.solutions, key=lambda s: s.trial):
        vouched = min(1.0, max(0.0, (s.score * math.sqrt(s.held) - 1) / 2))  # no word for it at one standard error
        settled.append((s, *as_given(s.f, data, normalised, known, vouched)))
    worth = [s.score * min(1.0, max(0.0, given.kept)) for s, _, given in settled]
    best = worth.index(max(worth))
    luck = math.sqrt(2 * math.log(max(2, len(hunt.trials))) / max(1, settled[0][0].held))
    if worth[best] - worth[0] < luck:
        best = 0
    solution, f, given = settled[best]
    return replace(solution, f=f), given


def to_seeds(
    solution: Solution, data: Amplitudes, normalised: Normalised, seeds: SeedsRead | None
) -> tuple[Solution, SeedsGiven | None]:
    """The solution at the origin and in the hand of the seeds, where there are any, and how it compares with them. That
    it obeys the group, as seeds do, and that others lead to it, is no evidence then."""
    if seeds is None:
        return solution, None
    from ml_phaser.phasing.seed_choice import at_seeds

    f, found = at_seeds(solution.f, data, normalised, seeds.phase, seeds.given, seeds.probability)
    return replace(solution, f=f, symmetry=math.nan, agreeing=0), found


def pick_seeds(
    data: Amplitudes, normalised: Normalised, phases: Phases, plan: Plan, options: Options
) -> PhaseSeeds | None:
    """Phase seeds for other programs, where they are asked for; improbably strong reflections make none."""
    if options.seedout is None:
        return None
    from ml_phaser.phasing.calibration import read_calibration
    from ml_phaser.phasing.seed_choice import choose_seeds, seeds_wanted

    worth = read_calibration()
    most = seeds_wanted(len(data), options.seedfraction, options.seedcount)
    return choose_seeds(
        phases, normalised.e, data.hkl, data.spacegroup, bins=options.seedbins, most=most,
        least=options.seedmin or 0.0, usable=~normalised.outlier,
        worth=worth if worth.holds_for(plan.weights) else None,
    )  # fmt: skip


def weigh(
    data: Amplitudes, normalised: Normalised, plan: Plan, solution: Solution, others: Sequence[Solution] = (), *,
    keep_hand: bool = False,
) -> tuple[Phases, tuple[ShellRow, ...], Verdict, Hand]:  # fmt: skip
    """Figures of merit from held-out reflections and from the ``others`` of the solution's cluster, calibrated, or from
    what atoms leave of the moduli; Hendrickson-Lattman coefficients, verdict; the likelier hand."""
    import numpy as np

    from ml_phaser.phasing import calibration, confidence
    from ml_phaser.phasing.free_atoms import PARAMETERS

    given = None if plan.starts is None else np.abs(plan.starts.centroid())
    found = (
        solution.score, solution.held, solution.symmetry, solution.agreeing, solution.d_min, solution.fragments
    )  # fmt: skip
    verdict = confidence.judge(
        *found, None if given is None else float(given.mean()), solution.chance, solution.worth
    )  # fmt: skip
    unaided = verdict if given is None else confidence.judge(*found)
    held = np.zeros(len(data), dtype=bool)
    held[plan.rows] = plan.whole.held
    e_calc = np.abs(solution.f) / np.sqrt(data.epsilon)
    mates = [s.f for s in others if s.cluster == solution.cluster and s.trial != solution.trial]
    phased = normalised.f * np.exp(1j * np.angle(solution.f))
    worth = calibration.read_calibration()
    if solution.atoms is None:
        sim = confidence.sim_weights(normalised.e, e_calc, data.centric, held, data.d)
    else:
        used = np.zeros(len(data), dtype=bool)
        used[plan.rows] = ~plan.whole.held
        of_atoms, parameters = np.abs(solution.f) / np.sqrt(normalised.expected), PARAMETERS * len(solution.atoms)
        sim = confidence.atom_weights(normalised.e, of_atoms, data.centric, used, data.d, parameters)
    evidence = calibration.Evidence(
        sim, verdict.probability, solution.score, normalised.e, data.d,
        confidence.agreement(data.hkl, phased, mates, data.cell, data.spacegroup), given, unaided.probability,
    )  # fmt: skip
    holds = solution.atoms is None and worth.holds_for(plan.weights)
    fom = confidence.figures_of_merit(evidence, worth if holds else None)
    shells = confidence.shell_table(fom, normalised.e, e_calc, held, data.d)
    f, hand = tell_hand(data, normalised, plan, solution, keep=keep_hand, solved=verdict.word != "not solved")
    return confidence.weigh(f, fom, data.centric), shells, verdict, hand


def how_calibrated(weights: dict[str, Any], solution: Solution) -> tuple[str, tuple[Promise, ...]]:
    """How figures of merit of a solution found with these weights are calibrated: a sentence for the log, and what they
    promised and kept on crystals of known structure, nothing where they are not."""
    from ml_phaser.phasing.calibration import describe, read_calibration

    if solution.atoms is not None:
        return "Figures of merit are by what the refined atoms leave of the amplitudes, parameters allowed for.", ()
    worth = read_calibration()
    return describe(worth, weights), worth.reliability if worth.holds_for(weights) else ()


def tell_hand(
    data: Amplitudes, normalised: Normalised, plan: Plan, solution: Solution, *, keep: bool, solved: bool
) -> tuple[NDArray[np.complex128], Hand]:
    """The solution in its likelier hand, by the judge of hands, by what a network predicted, and by its atoms."""
    from ml_phaser.handedness import Carbons, carbons_of, decide, predicted_hand

    carbons = Carbons(0, 0, 0.0) if solution.atoms is None else carbons_of(solution.atoms, data)
    evidence = carbons.odds
    if plan.predicted is not None:
        evidence += predicted_hand(data, normalised, solution.f, plan.predicted, plan.predictor["hand_right"])
    networks = plan.runtime.networks
    f, hand = decide(data, normalised, solution.f, keep=keep, solved=solved, networks=networks, evidence=evidence)
    if carbons.said:
        hand = replace(hand, said=hand.said + (carbons.mirrored() if hand.turned else carbons).said)
    if solution.fragments is not None:
        hand = replace(hand, said="that of the pieces placed, which are of L-amino acids or as given")
    return f, hand


def in_hand(atoms: Atoms | None, data: Amplitudes, hand: Hand) -> Atoms | None:
    """The atoms of a solution in the hand that is written."""
    from ml_phaser.crystal.agreement import hand_centre

    if atoms is None or not hand.turned or (centre := hand_centre(data.spacegroup)) is None:
        return atoms
    return replace(atoms, frac=(centre - atoms.frac) % 1.0)


def write(outcome: Outcome, normalised: Normalised, options: Options) -> Outcome:
    """Map, MTZ, Patterson, files for SHELXE, run record, program.xml, report: all of them or none. Returns the outcome
    with what was noted and the programs that can go on from it."""
    from contextlib import ExitStack

    import numpy as np

    from ml_phaser import __version__
    from ml_phaser.atomic import atomic
    from ml_phaser.crystal.maps import density, distribution, symmetric_shape, write_map
    from ml_phaser.crystal.patterson import patterson_group
    from ml_phaser.exchange.fragments import write_atoms, write_fragments
    from ml_phaser.exchange.write import FreeSet, write_mtz
    from ml_phaser.report.pictures import draw
    from ml_phaser.report.record import run_record

    data, phases = outcome.data, outcome.phases
    coefficients = phases.fom * normalised.f * np.exp(1j * phases.phase)
    shape = symmetric_shape(data.cell, data.spacegroup, data.d_min, data.d_min / 3)
    rho = density(data.hkl, coefficients, data.cell, data.spacegroup, shape)
    with ExitStack() as together:  # every file is complete before the first takes its place

        def part(path: Path) -> Path:
            return together.enter_context(atomic(path))

        said = f"ml_phaser {__version__}: {outcome.verdict.word}, P = {outcome.verdict.probability:.2f}"
        free = None if options.freer is None else FreeSet(options.freer / 100, options.seed)
        hklout = part(options.hklout)
        notes = write_mtz(hklout, data, phases, normalised.f, normalised.sigf, history=[said], free=free)
        if free is not None and data.free is not None:
            notes = (*notes, "The data have free-R flags: they are kept, and freer makes no others.")
        write_map(part(options.mapout), rho, data.cell, data.spacegroup, options.mapextent)
        if options.pattout is not None:
            group = patterson_group(data.spacegroup)
            write_map(part(options.pattout), patterson(data), data.cell, group, options.mapextent)
        if options.xyzout is not None and outcome.fragments is not None:
            write_fragments(part(options.xyzout), outcome.fragments, data.cell, data.spacegroup)
        elif options.xyzout is not None and outcome.atoms is not None:
            write_atoms(part(options.xyzout), outcome.atoms, data.cell, data.spacegroup)
        if options.shelxout is not None:
            notes = (*notes, *write_for_shelxe(options.shelxout, outcome, normalised, part))
        if options.seedout is not None and outcome.seeds is not None:
            notes = (*notes, write_seeds(options, outcome, normalised, outcome.seeds, part))
        outcome = replace(outcome, choices=(*outcome.choices, *notes), density=distribution(rho))
        outcome = with_next_steps(outcome, hklout, options)
        if options.reportout is not None:
            drawn = draw(run_record(outcome, options), rho, patterson(data, origin_removed=True))
            outcome = replace(outcome, pictures=drawn)
        write_records(outcome, options, part)
    return outcome


def write_for_shelxe(phi: Path, outcome: Outcome, normalised: Normalised, part: Part) -> tuple[str, ...]:
    """The three files that SHELXE reads; sentences for the log."""
    from ml_phaser.exchange.shelxe import companions, shelxe_set

    texts = shelxe_set(outcome.data, outcome.phases, normalised.f, normalised.sigf, title=phi.stem)
    for path, text in zip(companions(phi), (texts.phi, texts.hkl, texts.ins), strict=True):
        part(path).write_text(text, encoding="ascii")
    return texts.notes


def write_seeds(options: Options, outcome: Outcome, normalised: Normalised, seeds: PhaseSeeds, part: Part) -> str:
    """The files of phase seeds, if there are any seeds; a sentence for the log."""
    from ml_phaser.exchange.seed_files import SeedData, seed_files

    assert options.seedout is not None
    if not len(seeds):
        least = options.seedmin or 0.0
        return f"No phase seeds are written: none reaches a probability of {least:g}. To change: seedmin."
    made = SeedData(outcome.data, outcome.phases, seeds, normalised.e, normalised.f, normalised.sigf)
    for path, content in seed_files(options.seedout, options.seedformat, made).items():
        part(path).write_bytes(content)
    return (
        f"Phase seeds: {len(seeds)} of {len(outcome.data)} reflections, those with the largest E times probability, in "
        f"{seeds.bins} parts of the circle; their origin and hand are those of the MTZ. To change: seedcount, seedbins."
    )


def with_next_steps(outcome: Outcome, mtz: Path, options: Options) -> Outcome:
    """The outcome with what the MTZ just written is good for. Nothing is, where nothing was solved."""
    from ml_phaser.exchange.next_steps import next_steps, of_result
    from ml_phaser.exchange.sequence import read_sequence

    facts = replace(of_result(mtz, outcome.data), path=options.hklout)
    outcome = replace(outcome, free_made=facts.free if outcome.data.free is None else "")
    if outcome.verdict.word == "not solved":
        return outcome
    sequence = None if options.seqin is None else read_sequence(options.seqin)
    return replace(outcome, next_steps=next_steps(facts, sequence, options.shelxout))


def write_records(outcome: Outcome, options: Options, part: Part) -> None:
    """The views of the run record: JSON, and program.xml and the report where asked for."""
    from ml_phaser.report.html import write_html
    from ml_phaser.report.program_xml import write_xml
    from ml_phaser.report.record import run_record, write_json

    record = run_record(outcome, options)
    if options.xmlout is not None:
        write_xml(part(options.xmlout), record)
    if options.reportout is not None:
        write_html(part(options.reportout), record, outcome.pictures)
    write_json(part(options.jsonout), record)


def record_again(outcome: Outcome, options: Options) -> None:
    """Write the views of the run record anew, with what happened after the other files were written."""
    from contextlib import ExitStack

    from ml_phaser.atomic import atomic

    with ExitStack() as together:
        write_records(outcome, options, lambda path: together.enter_context(atomic(path)))
