"""The main job as the method section of a paper: read, normalise, phase, place, weigh, write."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml_phaser.notify import Notify
from ml_phaser.outcome import Outcome, Phases, ShellRow, Verdict
from ml_phaser.parameters import Options

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ml_phaser.crystal.normalise import Normalised
    from ml_phaser.crystal.reflections import Amplitudes
    from ml_phaser.networks.projector import Projector
    from ml_phaser.phasing.problem import Problem
    from ml_phaser.phasing.search import Finisher, Hunt, Solution

SEARCH_D_MIN = 0.8  # A: finer data cost time in the search and help only the finish
SEARCH_FEWEST = 400  # unique reflections the search wants before it leaves finer data out
CLASSICAL_D_MIN = 0.95  # A: to here classical projections solve what they can in seconds
SEARCH_B = 11.0  # A^2: the overall B the network's training crystals have
STARTS_POINTS = 400_000  # grid points cycled at once
LEARNED_POINTS = 120_000
FINISH_POINTS = 200_000


def run(options: Options, notify: Notify) -> Outcome:
    """Phase one crystal and write the files. Raises UserError for anything that is the user's to mend."""
    clock = Clock(notify)
    with clock.stage("read"):
        data = read(options)
    with clock.stage("normalise"):
        normalised = normalise(data)
    with clock.stage("phase"):
        plan = plan_phasing(data, normalised, options)
        hunt = phase(plan, options, notify)
    with clock.stage("place"):
        solution = max(hunt.solutions, key=lambda s: s.probability)
        solution, hand = choose_hand(plan, solution)
    with clock.stage("weigh"):
        phases, shells, verdict = weigh(data, normalised, plan, solution)
    outcome = Outcome(
        data, phases, tuple(hunt.trials), verdict, hand, shells, normalised,
        choices=(*data.notes, *normalised.notes, *plan.choices), weights=plan.weights, times=clock.times,
        device=plan.device, threads=threads(options), best=solution.trial,
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


def normalise(data: Amplitudes) -> Normalised:
    """E values, Wilson scale, anisotropy, outliers; French-Wilson amplitudes for the map."""
    from ml_phaser.crystal import normalise as stage

    return stage.normalise(data)


def patterson(data: Amplitudes) -> NDArray[np.float64]:
    """The Patterson map from measured intensities (from F^2 where amplitudes were measured)."""
    from ml_phaser.crystal.patterson import patterson_map

    return patterson_map(data, data.intensity if data.intensity is not None else data.f**2)


@dataclass(frozen=True, eq=False)
class Plan:
    """Who searches, who finishes, and why."""

    entrants: tuple[Any, ...]
    finishers: tuple[Any, ...]
    full: Problem
    rows: Any
    prior: Finisher | None
    choices: tuple[str, ...]
    weights: dict[str, Any]
    n: int
    device: str


def plan_phasing(data: Amplitudes, normalised: Normalised, options: Options) -> Plan:
    """Expand to P1, hold reflections out, choose the methods the resolution allows."""
    import numpy as np

    from ml_phaser.phasing.dual_space import ChargeFlipping, Relaxed, sparse
    from ml_phaser.phasing.problem import choose_held_out, pose
    from ml_phaser.phasing.search import Entrant, Finisher

    device = set_up_torch(options)
    choices: list[str] = []
    used = np.flatnonzero(~normalised.outlier)
    if len(used) < len(data):
        choices.append(f"{len(data) - len(used)} improbably strong reflections are left out of the phasing.")
    d_search = search_resolution(data.d[used])
    held = choose_held_out(data.d, d_search, options.seed) & ~normalised.outlier

    to_e = 1 / np.sqrt(normalised.expected)

    def problem(rows: Any, scale: Any, spacing: float, multiple: int) -> Problem:
        return pose(
            data.hkl[rows], (scale * normalised.f)[rows], (to_e / scale)[rows], held[rows], data.cell, data.spacegroup,
            spacing=spacing, multiple=multiple, device=device,
        )  # fmt: skip

    sharp = to_e * np.sqrt(data.epsilon)
    full = problem(used, sharp, data.d_min / 2, 2)
    entrants: list[Entrant] = []
    finishers: list[Finisher] = []
    network, weights, why_not = bundled_network(data, options)
    if why_not:
        choices.append(why_not)
    if options.engine != "learned" or network is None:
        rows = used[data.d[used] >= d_search]
        crystal, home = full, None
        if len(rows) < len(used):
            choices.append(f"The search uses data to {d_search:.2f} A, the finish all data to {data.d_min:.2f} A.")
            crystal = problem(rows, sharp, d_search / 2, 2)
        tight = (("sparse", sparse(atoms_share(d_search, 0.6))),)
        flips = affordable(200, crystal, FINISH_POINTS) if d_search < 1.25 else 0
        home = Finisher(crystal, rows, tight, affordable(40, crystal, FINISH_POINTS), flips=flips)
        core = sparse(atoms_share(d_search, 0.25))
        batch = int(np.clip(STARTS_POINTS // crystal.points, 1, 8))
        block = 50 if crystal.points < 300_000 else 10
        for method, cycles, share in (
            (Relaxed(crystal, sparse(atoms_share(d_search, 1.0)), 0.4, "RRR, tight"), 1500, 2.0),
            (Relaxed(crystal, sparse(atoms_share(d_search, 1.5)), 0.5, "RRR, loose"), 1500, 1.0),
            (ChargeFlipping(crystal), 600, 1.0),
        ):
            entrants.append(Entrant(method, crystal, rows, batch, cycles, block, core, share, home))
    if options.engine != "learned" or network is None or data.d_min < network.config.d_best:
        shares = [atoms_share(data.d_min, factor) for factor in ((0.5, 0.8, 1.25) if data.d_min < 1.25 else (0.8,))]
        trio = tuple((f"sparse {s:.1%}", sparse(s)) for s in shares)
        finishers.append(Finisher(full, used, trio, affordable(40, full, FINISH_POINTS)))
    prior = None
    if network is not None:
        config = network.config
        rows = used[data.d[used] >= config.d_best]
        smooth = np.exp((normalised.wilson_b - SEARCH_B) * (0.25 / data.d**2))
        learned = problem(rows, smooth, config.spacing, config.stride)
        projection = density_projection(network.to(device), learned)
        prior = Finisher(learned, rows, (("learned", projection),), affordable(20, learned, LEARNED_POINTS))
        if options.engine == "learned" or (options.engine == "auto" and data.d_min > CLASSICAL_D_MIN):
            batch = int(np.clip(LEARNED_POINTS // learned.points, 1, 8))
            block = 10 if learned.points < 200_000 else 2
            method = Relaxed(learned, projection, 0.6, "learned projection", keep_mean=False)
            share = 1.0 if data.d_min < config.d_best else 4.0
            core = sparse(atoms_share(learned.d_min, 0.25))
            entrants.append(Entrant(method, learned, rows, batch, 200, block, core, share))
        if options.engine != "classical" and data.d_min >= config.d_best:
            finishers.append(prior)
    return Plan(tuple(entrants), tuple(finishers), full, used, prior, tuple(choices), weights, len(data), device)


def affordable(cycles: int, problem: Problem, points: int) -> int:
    """Fewer cycles on grids larger than ``points``, so that finishing one solution takes seconds."""
    return max(2, min(cycles, round(cycles * points / problem.points)))


def search_resolution(d: NDArray[np.float64]) -> float:
    """Resolution limit of the search in A: 0.8 where the data go beyond, finer only where few reflections are left."""
    import numpy as np

    enough = float(np.sort(d)[::-1][min(len(d), SEARCH_FEWEST) - 1])
    return max(float(d.min()), min(SEARCH_D_MIN, enough))


def atoms_share(d_min: float, factor: float) -> float:
    """Share of the cell's grid points that atoms fill on a sharpened map: a peak's volume goes with d_min cubed."""
    return min(0.25, factor * 0.08 * (d_min / 0.8) ** 3)


def threads(options: Options) -> int:
    """Processor threads to use: those asked for, else every core this process may run on."""
    import os

    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    return options.threads or len(allowed)


def set_up_torch(options: Options) -> str:
    """Threads and device; UserError where a GPU was asked for and there is none."""
    import torch

    from ml_phaser.errors import UserError

    torch.set_num_threads(threads(options))
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UserError("no usable CUDA device was found", "device cuda", "device cpu, or device auto")
    return "cuda" if options.device != "cpu" and torch.cuda.is_available() else "cpu"


def bundled_network(data: Amplitudes, options: Options) -> tuple[Projector | None, dict[str, Any], str]:
    """The learned projection if the crystal lies in its domain, else why not."""
    from ml_phaser.networks.store import PROJECTOR, load_projector, read_card

    if options.engine == "classical":
        return None, {}, "The learned projection is not used, as asked (engine classical)."
    card = read_card(PROJECTOR)
    best, worst = card.config["d_best"], card.config["d_worst"]
    if data.d_min > worst:
        return None, {}, (
            f"The learned projection claims {best}-{worst} A; these data end at {data.d_min:.2f} A: not used."
        )  # fmt: skip
    return load_projector(PROJECTOR), {"name": card.name, "sha256": card.sha256}, ""


def density_projection(network: Projector, problem: Problem) -> Any:
    """The network as a projection of maps on the problem's grid."""
    import torch

    from ml_phaser.networks.projector import condition
    from ml_phaser.phasing.projections import unit_variance

    cell, device = problem.cell, problem.target.amplitude.device
    spacing = sum(a / n for a, n in zip((cell.a, cell.b, cell.c), problem.shape, strict=True)) / 3
    known = (problem.target.known & problem.target.inside).sum() / problem.target.inside.sum()
    one = torch.ones(1)
    cond = condition(one * problem.d_min, one * spacing, one * float(known)).to(device)

    @torch.no_grad()
    def project(rho: torch.Tensor) -> torch.Tensor:
        return network(unit_variance(rho), cond.expand(len(rho), -1))

    return project


def phase(plan: Plan, options: Options, notify: Notify) -> Hunt:
    """Many starts until a solution convinces or the time is up."""
    from ml_phaser.phasing.search import search

    return search(
        plan.entrants, plan.finishers, plan.full, plan.n, seconds=options.timelimit, most_trials=options.trials,
        seed=options.seed, progress=notify.progress,
    )  # fmt: skip


def choose_hand(plan: Plan, solution: Solution) -> tuple[Solution, str]:
    """The hand: told by the group, by the learned prior, or not at all."""
    from ml_phaser.phasing.confidence import NOT_SOLVED
    from ml_phaser.phasing.hand import choose

    if solution.probability <= NOT_SOLVED:
        return solution, "not asked: there is no solution to have one"
    return choose(solution, plan.full, plan.rows, plan.prior)


def weigh(
    data: Amplitudes, normalised: Normalised, plan: Plan, solution: Solution
) -> tuple[Phases, tuple[ShellRow, ...], Verdict]:
    """Figures of merit from held-out reflections, Hendrickson-Lattman coefficients, verdict."""
    import numpy as np

    from ml_phaser.phasing import confidence

    verdict = confidence.judge(solution.score, solution.held, solution.symmetry, solution.agreeing)
    held = np.zeros(len(data), dtype=bool)
    held[plan.rows] = plan.full.held
    e_calc = np.abs(solution.f) / np.sqrt(data.epsilon)
    fom, shells = confidence.figures_of_merit(normalised.e, e_calc, data.centric, held, data.d, verdict.probability)
    return confidence.weigh(solution.f, fom, data.centric), shells, verdict


def write(outcome: Outcome, normalised: Normalised, options: Options) -> Outcome:
    """Map, MTZ, Patterson, run record, program.xml: all of them or none. Returns the outcome with what was noted."""
    from contextlib import ExitStack

    import numpy as np

    from ml_phaser import __version__
    from ml_phaser.atomic import atomic
    from ml_phaser.crystal.maps import density, symmetric_shape, write_map
    from ml_phaser.crystal.patterson import patterson_group
    from ml_phaser.exchange.write import write_mtz
    from ml_phaser.report.program_xml import write_xml
    from ml_phaser.report.record import run_record, write_json

    data, phases = outcome.data, outcome.phases
    coefficients = phases.fom * normalised.f * np.exp(1j * phases.phase)
    shape = symmetric_shape(data.cell, data.spacegroup, data.d_min, data.d_min / 3)
    rho = density(data.hkl, coefficients, data.cell, data.spacegroup, shape)
    with ExitStack() as together:  # every file is complete before the first takes its place

        def part(path: Path) -> Path:
            return together.enter_context(atomic(path))

        said = f"ml_phaser {__version__}: {outcome.verdict.word}, P = {outcome.verdict.probability:.2f}"
        notes = write_mtz(part(options.hklout), data, phases, normalised.f, normalised.sigf, history=[said])
        write_map(part(options.mapout), rho, data.cell, data.spacegroup, options.mapextent)
        if options.pattout is not None:
            group = patterson_group(data.spacegroup)
            write_map(part(options.pattout), patterson(data), data.cell, group, options.mapextent)
        outcome = replace(outcome, choices=(*outcome.choices, *notes))
        record = run_record(outcome, options)
        if options.xmlout is not None:
            write_xml(part(options.xmlout), record)
        write_json(part(options.jsonout), record)
    return outcome
