"""Who searches, who finishes, on which data: the choices that resolution and size of a crystal ask for."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ml_phaser import arrays
from ml_phaser.beginnings import (
    fragment_road,
    growth,
    heavy_atoms,
    last_resort,
    predicted_entrants,
    room_for_atoms,
)
from ml_phaser.board import FINISH_POINTS, Board, affordable, atoms_share, lay_out
from ml_phaser.crystal.normalise import Normalised
from ml_phaser.crystal.phase_distributions import PhaseDistributions
from ml_phaser.crystal.reflections import Amplitudes
from ml_phaser.learned import CLASSICAL_D_MIN, Network, bundled_network, density_projection, there
from ml_phaser.networks.runtime import Runtime, choose_runtime
from ml_phaser.parameters import Options
from ml_phaser.phasing.atom_walks import Walks, walks
from ml_phaser.phasing.completion import Completer, LastTouch, completer
from ml_phaser.phasing.dual_space import ChargeFlipping, Method, Relaxed, Shaped, ShrinkWrap, sparse
from ml_phaser.phasing.finish import Finisher
from ml_phaser.phasing.fragments.pieces import MUCH, Piece
from ml_phaser.phasing.growth import Growth
from ml_phaser.phasing.polish import Polisher
from ml_phaser.phasing.problem import Problem
from ml_phaser.phasing.rebuild import SEEN, Rebuilder, rebuilder
from ml_phaser.phasing.search import Entrant
from ml_phaser.phasing.seeds import Seeds, seeded
from ml_phaser.phasing.starts import modification, phased, remembering
from ml_phaser.phasing.veils import VEILS, Veil, ways

if TYPE_CHECKING:
    from ml_phaser.phasing.fragments.road import Road
    from ml_phaser.phasing.heavy.solutions import HeavyAtoms

RELAXED_D_MIN = 0.9  # A: to here relaxed reflections with sparseness lead, beyond charge flipping
TIGHT, TIGHT_BEYOND = (0.4, 1.0), (0.8, 0.6)  # relaxation and share of the cell, to and beyond RELAXED_D_MIN
FLIPS_D_MIN = 1.25  # A: charge flipping in the group needs atoms that are separate
WRAP_D_MIN = 1.25  # A: beyond it shrink-wrap is worth its time; finer data are solved without
WRAP_SHARES = (0.25, 0.12, 0.45)  # of the cell: how empty it is, is not known; in order of success
WRAP_BAR = 0.6  # held-out correlation: wrong maps of packed crystals reach 0.4, right ones of empty cells 0.8
LEARNED_D_MIN = 1.1  # A: beyond it the learned projection gets a good part of the time, beyond SHAPED_D_MIN most
SHAPED_D_MIN = 1.35  # A: to here charge flipping brings random starts nearer to the structure,
SHAPING = 200  # in so many cycles
LEARNED = "learned projection"
STARTS_POINTS = 100_000  # grid points cycled at once: small batches give every method its turn early
LEARNED_STARTS = 60_000  # small batches: a network is as quick alone
LEARNED_POINTS = 120_000
POLISHING = 10  # cycles
RELEASED = 5  # cycles after which phases given are forgotten where solvent is taken from the density
MODIFICATION, MODIFYING = 20, 0.5  # cycles for phases given, half as many in the finish; share of the time for them
POINT_BYTES = 2000  # of memory that the learned projection takes for a grid point
ONE_THREAD = 60_000  # grid points
SMALL_GRID = 200_000  # points: up to here cycles are so short that they are counted in larger blocks


@dataclass(frozen=True, eq=False)
class Plan:
    """The search laid out.

    whole, rows : the problem with all data used, and their rows among the n reflections; choices : sentences for the
    log; polisher : what solutions are polished with, on data finer than the network sees; completer : what makes atoms
    of them; weights : name and hash of
    the network, empty if none is used; starts : phases that were given, on all reflections; road : to starts from
    pieces of structure, on the rows ``road_rows``, with finishers for finer data; road_last : random phases are tried
    before it; heavy : to starts from heavy atoms; walks : to free atoms from random phases; rebuilder : atoms and
    network in turn; growth : how pieces placed on the road grow by themselves
    predictor, predicted : name and hash of the one-shot network whose prediction is begun with, and how often its hand
    is right (empty if there is none); the phases it predicts, on all reflections
    """

    entrants: tuple[Entrant, ...]
    finishers: tuple[Finisher, ...]
    whole: Problem
    rows: NDArray[np.int64]
    choices: tuple[str, ...]
    weights: dict[str, Any]
    n: int
    runtime: Runtime
    threads: int
    starts: PhaseDistributions | None = None
    road: Road | None = None
    road_rows: NDArray[np.int64] | None = None
    road_finishers: tuple[Finisher, ...] = ()
    road_last: bool = False
    predictor: dict[str, Any] = field(default_factory=dict)
    predicted: PhaseDistributions | None = None
    polisher: Polisher | None = None
    heavy: HeavyAtoms | None = None
    completer: Completer | None = None
    walks: Walks | None = None
    rebuilder: Rebuilder | None = None
    growth: Growth | None = None

    @property
    def last_touch(self) -> LastTouch | None:
        """What promising solutions go through."""
        if self.polisher is None and self.completer is None:
            return None
        return LastTouch(self.polisher, self.completer)


def plan_phasing(
    data: Amplitudes,
    normalised: Normalised,
    options: Options,
    seeds: Seeds | None = None,
    starts: PhaseDistributions | None = None,
    pieces: Sequence[Piece] = (),
    sequences: Sequence[str] = (),
) -> Plan:
    """Hold reflections out, choose the methods; UserError where the device asked for is not there.

    ``seeds``, on all reflections, are what every start begins with; ``starts``, on all reflections, what the starts are
    drawn from; ``pieces`` those of the user to place; ``sequences`` the one-letter codes of the chains, where known.
    """
    runtime = choose_runtime(options.engine, options.device)
    board, whole, d_search = lay_out(data, normalised, options, runtime)
    used = board.rows
    choices = list(runtime.said)
    if len(used) < len(data):
        choices.append(f"{len(data) - len(used)} improbably strong reflections are left out of the phasing.")
    count = threads(options, whole.points)
    arrays.set_threads(count, runtime.place)
    network, weights, said = bundled_network(data.d_min, data.cell.volume, options.engine, runtime, count)
    choices += said

    wraps: list[Entrant] = []
    classical: list[Entrant] = []
    learned: list[Entrant] = []
    finishers: list[Finisher] = []
    if network is None or options.engine != "learned":
        wraps = shrink_wrap_entrants(board) if data.d_min > WRAP_D_MIN else []
        classical = classical_entrants(board, whole, d_search)
        if d_search > data.d_min * 1.001:
            choices.append(
                f"The search uses data to {d_search:.2f} A, the finish all data to {data.d_min:.2f} A. "
                f"To change: resolution {d_search:.2f} for the finish, too."
            )
    if network is None or options.engine != "learned" or data.d_min < network.config.d_best:
        finishers.append(classical_finisher(whole, used))
    polisher: Polisher | None = None
    if network is not None:
        seeing = entrant = learned_entrant(board, network)
        if data.d_min < network.config.d_best and entrant.home is not None:
            polisher = Polisher(replace(entrant.home, cycles=min(POLISHING, entrant.home.cycles)), whole, used)
    if network is not None and (options.engine == "learned" or data.d_min > CLASSICAL_D_MIN):
        if data.d_min < SHAPED_D_MIN and classical:
            entrant = replace(entrant, origin=flipped_starts(board, entrant.problem, d_search))
            choices.append(
                f"Random starts of the learned projection have {SHAPING} cycles of charge flipping behind them."
                + (" To change: engine learned." if runtime.networks == "torch" else "")
            )
        learned = [entrant]
        if data.d_min >= network.config.d_best and entrant.home is not None:
            finishers.append(entrant.home)
    entrants = wraps + in_turn(classical, learned, data.d_min)
    if seeds is not None:
        choices.append(said_of_seeds(seeds, options.seedhold))
        entrants = [held_for(seeded(entrant, seeds), options.seedhold) for entrant in entrants]
    if starts is not None:
        veils = VEILS if room_for_atoms(data) >= MUCH else ()
        entrants, finishers = from_phases(entrants, finishers, starts, whole, used, options, veils)
        polisher = polisher and replace(polisher, finisher=remembering(polisher.finisher, starts))
        choices.append(
            "All starts come from the phases given: the first of each method is their best map, the others are drawn "
            "from their distributions. Their origin and hand are kept."
        )
    predictor: dict[str, Any] = {}
    predicted: PhaseDistributions | None = None
    if starts is None and seeds is None and not pieces:
        only = sequences[0] if len(sequences) == 1 else ""
        first, predictor, predicted, said = predicted_entrants(board, runtime, entrants, options, count, only)
        entrants = first + entrants
        choices += said
    heavy, said = heavy_atoms(board, classical, options, _otherwise(starts, seeds, pieces))
    choices += said
    road, road_rows = None, None
    if starts is None and seeds is None and options.starts != "network" and not predictor:
        road, road_rows, said = fragment_road(board, runtime, network, learned, options, pieces, sequences)
        choices += said
    sprouting = growth(data, classical, road)
    if sprouting is not None:
        choices.append("Placed pieces grow by relaxed reflections first, as atoms are resolved.")
    bench = completer(data, normalised, whole, used, options.timelimit)
    free = bench if starts is None and bench is not None and bench.tries >= 0 else None
    turns: Rebuilder | None = None
    if network is not None and seeing.home is not None:
        turning = bench or completer(data, normalised, whole, used, options.timelimit, network.config.d_worst)
        turns = rebuilder(turning, seeing.problem, seeing.rows, seeing.home.projections[0][1], options.timelimit)
    if turns is not None:
        beside = "free atoms" if turns.atoms else "flat solvent"
        choices.append(f"From what looks right the search goes on with {beside} and the learned projection in turn.")
    wandering = None
    if options.starts in ("auto", "random") and not _otherwise(starts, seeds, pieces):
        wandering = walks(free, data.d_min, options.timelimit, options.seed)
    if wandering is not None and options.trials is not None:  # walks end by the clock: starts that are counted do not
        wandering = None
        choices.append("Free atoms are not looked for from random phases, as starts are counted. To change: timelimit.")
    elif wandering is not None:
        choices.append("Free atoms are looked for from random phases, too, beside densities.")
    beyond = tuple(finishers) if network is not None and data.d_min < network.config.d_best else ()
    return Plan(
        tuple(entrants), tuple(finishers), whole, used, tuple(choices), weights, len(data), runtime, count, starts,
        road, road_rows, beyond, road is not None and last_resort(data, options, pieces), predictor, predicted,
        polisher, heavy, free, wandering, turns, sprouting,
    )  # fmt: skip


def _otherwise(starts: PhaseDistributions | None, seeds: Seeds | None, pieces: Sequence[Piece]) -> str:
    """What the user gave to begin with, by the name of its parameter."""
    named = (("phasein", starts is not None), ("seedin", seeds is not None), ("xyzin", bool(pieces)))
    return next((name for name, there in named if there), "")


def held_for(entrant: Entrant, cycles: int | None) -> Entrant:
    """A seeded entrant with its seeds held for so many cycles of each start, where that is not None."""
    method: Any = entrant.method
    return entrant if cycles is None else replace(entrant, method=replace(method, cycles=cycles))


def said_of_seeds(seeds: Seeds, cycles: int | None) -> str:
    """A sentence about seeds that were given."""
    released = "half-way" if cycles is None else f"after {cycles} cycles"
    return (
        f"Every start has the phases of {int(seeds.given.sum())} seeds, released {released}; their origin and hand are "
        "kept. To change: seedhold."
    )


def in_turn(classical: list[Entrant], learned: list[Entrant], d_min: float) -> list[Entrant]:
    """The likeliest to succeed first: charge flipping while atoms are separate, then the learned projection."""
    quick = len(classical) if d_min < LEARNED_D_MIN else int(d_min < SHAPED_D_MIN)
    return classical[:quick] + learned + classical[quick:]


def from_phases(
    entrants: list[Entrant],
    finishers: list[Finisher],
    starts: PhaseDistributions,
    whole: Problem,
    rows: NDArray[np.int64],
    options: Options,
    veils: Sequence[Veil] = (),
) -> tuple[list[Entrant], list[Finisher]]:
    """Density modification of the phases given, by the network with each of ``veils``, too, then the entrants with
    their starts made of them. On large grids it has as many cycles as half of the time allows.

    Shrink-wrap stays away: its supports come from maps without phases.
    """
    learned = [e for e in entrants if e.method.name == LEARNED]
    first = []
    for e in learned:
        if e.home is not None:
            each = MODIFYING * options.timelimit / (1 + len(veils)) / (1.5 * SEEN * e.problem.cell.volume)
            cycles = max(affordable(MODIFICATION, e.problem, LEARNED_POINTS), min(MODIFICATION, int(each)))
            for veil, projection in ways(e.home.projections[0][1], e.problem, veils).items():
                way = {"name": f"{LEARNED}, {veil}" if veil else LEARNED, "cycles": cycles, "core": e.core}
                way |= {"block": min(e.block, cycles), "released": RELEASED if veil else None}
                first.append(modification(e.problem, e.rows, projection, starts, **way))  # type: ignore[arg-type]
    if options.engine != "learned" or not learned:
        few, core = (sparse(atoms_share(whole.d_min, factor)) for factor in (0.8, 0.25))
        cycles = affordable(60, whole, FINISH_POINTS)
        way = {"name": "sparse density", "cycles": cycles, "block": max(1, cycles // 3), "core": core}
        first.append(modification(whole, rows, few, starts, **way))  # type: ignore[arg-type]
    rest = [
        replace(phased(e, starts), home=None if e.home is None else remembering(e.home, starts))
        for e in entrants
        if "shrink-wrap" not in e.method.name
    ]
    return first + rest, [remembering(finisher, starts) for finisher in finishers]


def classical_entrants(board: Board, whole: Problem, d_search: float) -> list[Entrant]:
    """Relaxed reflections with a tight and a loose sparseness, and charge flipping; the likeliest first."""
    rows = board.beyond(d_search)
    problem = whole if len(rows) == len(board.rows) else board.sharpened(rows, d_search / 2)
    peaks = (("sparse", sparse(atoms_share(d_search, 0.6))),)
    flips = affordable(200, problem, FINISH_POINTS) if d_search < FLIPS_D_MIN else 0
    home = Finisher(problem, rows, peaks, affordable(40, problem, FINISH_POINTS), flips=flips)
    core = sparse(atoms_share(d_search, 0.25))
    batch = batch_size(problem.points, STARTS_POINTS, board.place)
    block = 50 if problem.points < SMALL_GRID else 10
    beta, factor = TIGHT if d_search < RELAXED_D_MIN else TIGHT_BEYOND
    tight = Relaxed(problem, sparse(atoms_share(d_search, factor)), beta, "RRR, tight")
    loose = Relaxed(problem, sparse(atoms_share(d_search, 1.5)), 0.5, "RRR, loose")
    flipping = ChargeFlipping(problem)
    methods: tuple[tuple[Method, int, float], ...]
    if d_search < RELAXED_D_MIN:
        methods = ((tight, 1500, 2.0), (loose, 1500, 1.0), (flipping, 600, 1.0))
    else:
        methods = ((flipping, 600, 3.0), (tight, 1500, 2.0), (loose, 1500, 0.5))
    return [
        Entrant(method, problem, rows, batch, cycles, block, core, share, home) for method, cycles, share in methods
    ]


def shrink_wrap_entrants(board: Board) -> list[Entrant]:
    """Hybrid input-output for molecules in mostly empty cells, with supports of several sizes."""
    problem = board.smoothed(board.rows, board.data.d_min / 2.5)
    batch = batch_size(problem.points, STARTS_POINTS, board.place)
    entrants = []
    for share in WRAP_SHARES:
        method = ShrinkWrap(problem, share, f"shrink-wrap, {share:.0%}")
        block = method.cycles if problem.points < SMALL_GRID else 20  # before its end a run is worth little
        cycles = affordable(40, problem, FINISH_POINTS)
        home = Finisher(problem, board.rows, (("shrink-wrap", method.project),), cycles)
        core = sparse(atoms_share(problem.d_min, 0.25))
        entrants.append(
            Entrant(
                method,
                problem,
                board.rows,
                batch,
                method.cycles,
                block,
                core,
                0.3,
                home,
                finishers=(home,),
                bar=WRAP_BAR,
            )
        )
    return entrants


def flipped_starts(board: Board, problem: Problem, d_search: float) -> Shaped:
    """Starts on ``problem`` that charge flipping, many times quicker than a network, has brought some order into."""
    before = board.sharpened(board.beyond(d_search), d_search / 2)
    return Shaped(problem, ChargeFlipping(before), before, SHAPING)


def classical_finisher(whole: Problem, rows: NDArray[np.int64]) -> Finisher:
    """Error reduction on all data, at several degrees of sparseness where atoms are resolved."""
    factors = (0.5, 0.8, 1.25) if whole.d_min < FLIPS_D_MIN else (0.8,)
    shares = [atoms_share(whole.d_min, factor) for factor in factors]
    projections = tuple((f"sparse {share:.1%}", sparse(share)) for share in shares)
    return Finisher(whole, rows, projections, affordable(40, whole, FINISH_POINTS))


def learned_entrant(board: Board, network: Network) -> Entrant:
    """Relaxed reflections with the learned projection, on data within the network's domain."""
    config = network.config
    rows = board.beyond(config.d_best)
    problem = board.as_trained(rows, config.spacing, config.stride)
    projection = density_projection(there(network, board.place), problem)
    home = Finisher(problem, rows, (("learned", projection),), affordable(20, problem, LEARNED_POINTS))
    method = Relaxed(problem, projection, 0.6, LEARNED, keep_mean=False)
    batch = batch_size(problem.points, LEARNED_STARTS, board.place)
    block = 10 if problem.points < SMALL_GRID else 5  # after each comes one more pass of the network, to judge by
    share = 1.0 if board.data.d_min < LEARNED_D_MIN else 2.0 if board.data.d_min < SHAPED_D_MIN else 8.0
    return Entrant(method, problem, rows, batch, 200, block, sparse(atoms_share(problem.d_min, 0.25)), share, home)


def threads(options: Options, points: int) -> int:
    """Processor threads to use: those asked for, else one for a small grid, where handing out work costs more than it
    saves (17-fold on a busy machine), and every core this process may run on for others."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    return options.threads or (1 if points < ONE_THREAD else len(allowed))


def batch_size(points: int, together: int, place: str) -> int:
    """Starts of ``points`` grid points cycled at once: on a processor, where many cost as much as one after the other,
    few, of ``together`` points in all; on a GPU as many as half of its free memory holds, at most 256."""
    if place == "cuda":
        import torch

        return int(np.clip(torch.cuda.mem_get_info()[0] // (2 * POINT_BYTES * points), 1, 256))
    return int(np.clip(together // points, 1, 8))
