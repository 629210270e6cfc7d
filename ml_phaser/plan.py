"""Who searches, who finishes, on which data: the choices that resolution and size of a crystal ask for."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ml_phaser.crystal.agreement import multiplicity
from ml_phaser.crystal.normalise import Normalised
from ml_phaser.crystal.phase_distributions import PhaseDistributions, hendrickson_lattman
from ml_phaser.crystal.reflections import Amplitudes
from ml_phaser.errors import UserError
from ml_phaser.networks.crysformer import CrysFormer
from ml_phaser.networks.domain import Domain, outside
from ml_phaser.networks.projector import Projector, condition
from ml_phaser.networks.store import bundled_one_shot, choose_projector, load_one_shot, load_projector, read_card
from ml_phaser.networks.unet import UNet
from ml_phaser.parameters import Options
from ml_phaser.phasing.dual_space import ChargeFlipping, Method, Projection, Relaxed, Shaped, ShrinkWrap, sparse
from ml_phaser.phasing.finish import Finisher
from ml_phaser.phasing.fragments.judge import Judge
from ml_phaser.phasing.fragments.pieces import Piece, library
from ml_phaser.phasing.fragments.road import ROOM, Road
from ml_phaser.phasing.fragments.scene import Scene
from ml_phaser.phasing.prediction import from_prediction, predict_phases
from ml_phaser.phasing.problem import Problem, choose_held_out, pose
from ml_phaser.phasing.projections import restore, unit_variance
from ml_phaser.phasing.search import Entrant
from ml_phaser.phasing.seeds import Seeds, seeded
from ml_phaser.phasing.starts import modification, phased, remembering

SEARCH_D_MIN = 0.8  # A: finer data cost time in the search and help only the finish
SEARCH_FEWEST = 400  # unique reflections the search wants before it leaves finer data out
CLASSICAL_D_MIN = 0.95  # A: to here classical projections solve what they can in seconds
RELAXED_D_MIN = 0.9  # A: to here relaxed reflections with sparseness lead, beyond charge flipping
FLIPS_D_MIN = 1.25  # A: charge flipping in the group needs atoms that are separate
SEARCH_B = 11.0  # A^2: the overall B the network's training crystals have
WRAP_D_MIN = 1.25  # A: beyond it shrink-wrap is worth its time; finer data are solved without
WRAP_B = 20.0  # A^2: the overall B at which density to 1.5 A is positive but for small ripples
WRAP_SHARES = (0.25, 0.12, 0.45)  # of the cell: how empty it is, is not known; in order of success
WRAP_BAR = 0.6  # held-out correlation: wrong maps of packed crystals reach 0.4, right ones of empty cells 0.8
LEARNED_D_MIN = 1.1  # A: beyond it the learned projection gets a good part of the time, beyond SHAPED_D_MIN most
SHAPED_D_MIN = 1.35  # A: to here charge flipping brings random starts nearer to the structure,
SHAPING = 200  # in so many cycles
LEARNED = "learned projection"
STARTS_POINTS = 100_000  # grid points cycled at once: small batches give every method its turn early
LEARNED_STARTS = 60_000  # small batches: a network is as quick alone
LEARNED_POINTS = 120_000
LEARNED_MOST = 4_000_000
POINT_BYTES = 2000  # of memory that the learned projection takes for a grid point
FINISH_POINTS = 200_000
ONE_THREAD = 60_000  # grid points
FRAGMENTS_D_MIN = 1.2  # A: to here atoms are found one by one
FRAGMENTS_ROOM = (12, 400)  # atoms of the asymmetric unit that pieces may be part of
SCENE_MOST = 1500  # reflections that poses are scored against
SMALL_GRID = 200_000  # points: up to here cycles are so short that they are counted in larger blocks


@dataclass(frozen=True, eq=False)
class Plan:
    """The search laid out.

    whole, rows : the problem with all data used, and their rows among the n reflections; choices : sentences for the
    log; weights : name and hash of the network, empty if none is used; starts : phases that were given, on
    all reflections; road : to starts from pieces of structure, on the rows ``road_rows``, with finishers for finer data
    predictor : name and hash of the one-shot network whose prediction is begun with, empty if there is none
    """

    entrants: tuple[Entrant, ...]
    finishers: tuple[Finisher, ...]
    whole: Problem
    rows: NDArray[np.int64]
    choices: tuple[str, ...]
    weights: dict[str, Any]
    n: int
    device: str
    threads: int
    starts: PhaseDistributions | None = None
    road: Road | None = None
    road_rows: NDArray[np.int64] | None = None
    road_finishers: tuple[Finisher, ...] = ()
    predictor: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Board:
    """The crystal's data as problems on grids of any fineness; reflections held out are the same in all."""

    data: Amplitudes
    normalised: Normalised
    rows: NDArray[np.int64]
    held: NDArray[np.bool_]
    device: str

    def beyond(self, d_min: float) -> NDArray[np.int64]:
        """Rows of the data used to a resolution of ``d_min`` in A."""
        return self.rows[self.data.d[self.rows] >= d_min]

    def sharpened(self, rows: NDArray[np.int64], spacing: float) -> Problem:
        """The problem of point atoms at rest: moduli are E sqrt(epsilon)."""
        return self._pose(rows, np.sqrt(self.data.epsilon / self.normalised.expected), spacing, 2)

    def as_trained(self, rows: NDArray[np.int64], spacing: float, multiple: int) -> Problem:
        """The problem at the overall B the network knows."""
        scale = np.exp((self.normalised.wilson_b - SEARCH_B) * (0.25 / self.data.d**2))
        return self._pose(rows, scale, spacing, multiple)

    def smoothed(self, rows: NDArray[np.int64], spacing: float, multiple: int = 2) -> Problem:
        """The problem of density without negative ripples: an overall B of WRAP_B."""
        scale = np.exp((self.normalised.wilson_b - WRAP_B) * (0.25 / self.data.d**2))
        return self._pose(rows, scale, spacing, multiple)

    def _pose(self, rows: NDArray[np.int64], scale: NDArray[np.float64], spacing: float, multiple: int) -> Problem:
        to_e = 1 / np.sqrt(self.normalised.expected)
        return pose(
            self.data.hkl[rows], (scale * self.normalised.f)[rows], (to_e / scale)[rows], self.held[rows],
            self.data.cell, self.data.spacegroup, spacing=spacing, multiple=multiple, device=self.device,
        )  # fmt: skip


def plan_phasing(
    data: Amplitudes,
    normalised: Normalised,
    options: Options,
    seeds: Seeds | None = None,
    starts: PhaseDistributions | None = None,
    pieces: Sequence[Piece] = (),
) -> Plan:
    """Hold reflections out, choose the methods; UserError where the device asked for is not there.

    ``seeds``, on all reflections, are what every start begins with; ``starts``, on all reflections, what the starts are
    drawn from; ``pieces`` those of the user to place.
    """
    board, whole, d_search = lay_out(data, normalised, options)
    used = board.rows
    choices = []
    if len(used) < len(data):
        choices.append(f"{len(data) - len(used)} improbably strong reflections are left out of the phasing.")
    count = threads(options, whole.points)
    torch.set_num_threads(count)
    network, weights, said = bundled_network(data.d_min, data.cell.volume, options.engine, board.device)
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
    if network is not None:
        entrant = learned_entrant(board, network)
        if data.d_min < SHAPED_D_MIN and classical:
            entrant = replace(entrant, origin=flipped_starts(board, entrant.problem, d_search))
            choices.append(
                f"Random starts of the learned projection have {SHAPING} cycles of charge flipping behind them. "
                "To change: engine learned."
            )
        learned = [entrant]
        if data.d_min >= network.config.d_best and entrant.home is not None:
            finishers.append(entrant.home)
    entrants = wraps + in_turn(classical, learned, data.d_min)
    if seeds is not None:
        choices.append(f"Every start has the phases of {int(seeds.given.sum())} seeds, released half-way.")
        entrants = [seeded(entrant, seeds) for entrant in entrants]
    if starts is not None:
        entrants, finishers = from_phases(entrants, finishers, starts, whole, used, options.engine)
        choices.append(
            "All starts come from the phases given: the first of each method is their best map, the others are drawn "
            "from their distributions. Their origin and hand are kept."
        )
    predictor: dict[str, Any] = {}
    if starts is None and seeds is None and not pieces:
        first, predictor, said = predicted_entrants(board, entrants, options)
        entrants = first + entrants
        choices += said
    road, road_rows = None, None
    if starts is None and seeds is None and options.starts != "network":
        road, road_rows, said = fragment_road(board, network, learned, options, pieces)
        choices += said
    beyond = tuple(finishers) if network is not None and data.d_min < network.config.d_best else ()
    return Plan(
        tuple(entrants), tuple(finishers), whole, used, tuple(choices), weights, len(data), board.device, count, starts,
        road, road_rows, beyond, predictor,
    )  # fmt: skip


def fragment_road(
    board: Board, network: Projector | None, learned: Sequence[Entrant], options: Options, pieces: Sequence[Piece]
) -> tuple[Road | None, NDArray[np.int64] | None, list[str]]:
    """The search for pieces of structure if it is wanted and can pay, its reflections, and what to say about it.

    ``learned`` : the entrant of the network, whose problem the road shares. Raises UserError where it was asked for and
    cannot be.
    """
    data = board.data
    room = round(data.cell.volume / len(data.spacegroup.operations()) / ROOM)
    asked = options.starts == "fragments" or bool(pieces)
    if options.starts == "random":
        return None, None, []
    reasons = [
        (network is None, "the learned projection, which judges them, is not used"),
        (not data.spacegroup.is_sohncke(), "no chiral molecule can crystallise in this space group"),
        (not asked and data.d_min < FRAGMENTS_D_MIN, ""),
        (not asked and not FRAGMENTS_ROOM[0] <= room <= FRAGMENTS_ROOM[1], ""),
    ]
    for hit, why in reasons:
        if hit and asked:
            raise UserError(f"no pieces can be placed: {why}", "starts fragments", "starts auto")
        if hit:
            return None, None, []
    assert network is not None
    rows, problem = learned[0].rows, learned[0].problem
    work = rows[~problem.held]
    coarse = work[np.argsort(-data.d[work], kind="stable")[:SCENE_MOST]]
    judge = Judge.of(
        problem, network.to(board.device), conditions(problem), board.normalised.e[rows],
        multiplicity(data.hkl[rows], data.spacegroup), options.seed,
    )  # fmt: skip
    scene = Scene.of(data, board.normalised, np.sort(coarse), board.device)
    road = Road(scene, judge, data.spacegroup, tuple(pieces) or tuple(library()), room, problem.d_min)
    what = "the piece given" if pieces else "pieces of strand and helix"
    return road, rows, [f"Begins with {what}, placed by their agreement with E^2 and judged by the network."]


def predicted_entrants(
    board: Board, entrants: Sequence[Entrant], options: Options
) -> tuple[list[Entrant], dict[str, Any], list[str]]:
    """Entrants that begin with the prediction of a bundled one-shot network, its name and hash, and what to say of it.

    None where no network's domain covers the crystal. Raises UserError where one was asked for.
    """
    data, cell = board.data, board.data.cell.parameters
    if options.starts not in ("auto", "network"):
        return [], {}, []
    reasons = []
    for card in bundled_one_shot():
        reason = outside(Domain.of(card.config), cell, data.spacegroup.hm, data.d_min)
        if not reason:
            known = predicted(board, load_one_shot(card.name))
            chosen = [e for e in entrants if "shrink-wrap" not in e.method.name][:2]
            said = f"Begins with the density that {card.name} predicts. To change: starts random."
            return [from_prediction(e, known) for e in chosen], {"name": card.name, "sha256": card.sha256}, [said]
        reasons.append(f"{card.name}: {reason}")
    if options.starts == "network":
        what = f"no bundled network knows such crystals ({'; '.join(reasons) or 'there is none'})"
        raise UserError(what, "starts network", "starts auto")
    return [], {}, [f"No network predicts a density to begin with ({'; '.join(reasons)})."] if reasons else []


def predicted(board: Board, network: UNet | CrysFormer) -> PhaseDistributions:
    """Phases of all reflections of a crystal in P1, as far as the network sees, by what it predicts."""
    data, config = board.data, network.config
    rows = board.beyond(config.d_min)
    problem = board.smoothed(rows, config.spacing, config.stride)
    found = predict_phases(network.to(board.device), problem, torch.zeros((1, config.parts, *problem.shape)))
    hl = np.zeros((len(data), 4))
    hl[rows] = hendrickson_lattman(found.phase, found.fom, data.centric[rows])
    return PhaseDistributions(hl, np.zeros(len(data), dtype=complex))


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
    engine: str,
) -> tuple[list[Entrant], list[Finisher]]:
    """Density modification of the phases given, then the entrants with their starts made of them.

    Shrink-wrap stays away: its supports come from maps without phases.
    """
    learned = [e for e in entrants if e.method.name == LEARNED]
    first = []
    for e in learned:
        if e.home is not None:
            cycles = affordable(20, e.problem, LEARNED_POINTS)
            way = {"name": LEARNED, "cycles": cycles, "block": min(e.block, cycles), "core": e.core}
            first.append(modification(e.problem, e.rows, e.home.projections[0][1], starts, **way))  # type: ignore[arg-type]
    if engine != "learned" or not learned:
        projection, core = (sparse(atoms_share(whole.d_min, factor)) for factor in (0.8, 0.25))
        cycles = affordable(60, whole, FINISH_POINTS)
        way = {"name": "sparse density", "cycles": cycles, "block": max(1, cycles // 3), "core": core}
        first.append(modification(whole, rows, projection, starts, **way))  # type: ignore[arg-type]
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
    batch = batch_size(problem.points, STARTS_POINTS, board.device)
    block = 50 if problem.points < SMALL_GRID else 10
    tight = Relaxed(problem, sparse(atoms_share(d_search, 1.0)), 0.4, "RRR, tight")
    loose = Relaxed(problem, sparse(atoms_share(d_search, 1.5)), 0.5, "RRR, loose")
    flipping = ChargeFlipping(problem)
    methods: tuple[tuple[Method, int, float], ...]
    if d_search < RELAXED_D_MIN:
        methods = ((tight, 1500, 2.0), (loose, 1500, 1.0), (flipping, 600, 1.0))
    else:
        methods = ((flipping, 600, 3.0), (tight, 1500, 1.0), (loose, 1500, 0.5))
    return [
        Entrant(method, problem, rows, batch, cycles, block, core, share, home) for method, cycles, share in methods
    ]


def lay_out(data: Amplitudes, normalised: Normalised, options: Options) -> tuple[Board, Problem, float]:
    """The data with reflections held out, the problem of all that are used, and the search's resolution limit in A."""
    used = np.flatnonzero(~normalised.outlier)
    d_search = search_resolution(data.d[used])
    held = choose_held_out(data.d, d_search, options.seed) & ~normalised.outlier
    board = Board(data, normalised, used, held, device(options))
    return board, board.sharpened(used, data.d_min / 2), d_search


def shrink_wrap_entrants(board: Board) -> list[Entrant]:
    """Hybrid input-output for molecules in mostly empty cells, with supports of several sizes."""
    problem = board.smoothed(board.rows, board.data.d_min / 2.5)
    batch = batch_size(problem.points, STARTS_POINTS, board.device)
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


def learned_entrant(board: Board, network: Projector) -> Entrant:
    """Relaxed reflections with the learned projection, on data within the network's domain."""
    config = network.config
    rows = board.beyond(config.d_best)
    problem = board.as_trained(rows, config.spacing, config.stride)
    projection = density_projection(network.to(board.device), problem)
    home = Finisher(problem, rows, (("learned", projection),), affordable(20, problem, LEARNED_POINTS))
    method = Relaxed(problem, projection, 0.6, LEARNED, keep_mean=False)
    batch = batch_size(problem.points, LEARNED_STARTS, board.device)
    block = 10 if problem.points < SMALL_GRID else 5  # after each comes one more pass of the network, to judge by
    share = 1.0 if board.data.d_min < LEARNED_D_MIN else 2.0 if board.data.d_min < SHAPED_D_MIN else 8.0
    return Entrant(method, problem, rows, batch, 200, block, sparse(atoms_share(problem.d_min, 0.25)), share, home)


def bundled_network(
    d_min: float, volume: float, engine: str, device: str = "cpu"
) -> tuple[Projector | None, dict[str, Any], list[str]]:
    """The learned projection if it is wanted, the data lie in its domain and the cell (A^3) is not too large for it;
    its hash, and what to say about it."""
    if engine == "classical":
        return None, {}, ["The learned projection is not used, as asked. To change: engine auto."]
    card = read_card(choose_projector(device))
    best, worst = card.config["d_best"], card.config["d_worst"]
    if d_min > worst:
        said = f"The learned projection claims {best}-{worst} A; these data end at {d_min:.2f} A: it is not used."
        return None, {}, [said]
    if engine == "auto" and d_min <= CLASSICAL_D_MIN:
        said = f"The learned projection is not used: to {CLASSICAL_D_MIN} A classical projections need no help. "
        said += "To change: engine learned."
        return None, {}, [said]
    if (points := volume / card.config["spacing"] ** 3) > LEARNED_MOST:
        said = f"The learned projection is not used: the cell would need {points:.1e} grid points, and much memory."
        return None, {}, [said]
    cut = [f"The learned projection sees data to {best} A. To change: engine classical."] if d_min < best else []
    return load_projector(card.name), {"name": card.name, "sha256": card.sha256}, cut


def density_projection(network: Projector, problem: Problem) -> Projection:
    """The network as a projection of maps on the problem's grid."""
    cond = conditions(problem)

    @torch.no_grad()
    def project(rho: torch.Tensor) -> torch.Tensor:
        return restore(network, unit_variance(rho), problem.target, cond.expand(len(rho), -1))

    return project


def conditions(problem: Problem) -> torch.Tensor:
    """What the network is told of a problem, (1, k)."""
    steps = torch.from_numpy(np.array(problem.cell.orth.mat) / np.array(problem.shape)).float()
    known = (problem.target.known & problem.target.inside).sum() / problem.target.inside.sum()
    one = torch.ones(1)
    return condition(one * problem.d_min, steps[None], one * float(known)).to(problem.target.amplitude.device)


def threads(options: Options, points: int) -> int:
    """Processor threads to use: those asked for, else one for a small grid, where handing out work costs more than it
    saves (17-fold on a busy machine), and every core this process may run on for others."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    return options.threads or (1 if points < ONE_THREAD else len(allowed))


def device(options: Options) -> str:
    """ "cuda" or "cpu"; UserError where a GPU was asked for and there is none."""
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UserError("no usable CUDA device was found", "device cuda", "device cpu, or device auto")
    return "cuda" if options.device != "cpu" and torch.cuda.is_available() else "cpu"


def batch_size(points: int, together: int, device: str) -> int:
    """Starts of ``points`` grid points cycled at once: on a processor, where many cost as much as one after the other,
    few, of ``together`` points in all; on a GPU as many as half of its free memory holds, at most 256."""
    if device == "cuda":
        return int(np.clip(torch.cuda.mem_get_info()[0] // (2 * POINT_BYTES * points), 1, 256))
    return int(np.clip(together // points, 1, 8))


def affordable(cycles: int, problem: Problem, points: int) -> int:
    """Fewer cycles on grids larger than ``points``, so that finishing one solution takes seconds."""
    return max(2, min(cycles, round(cycles * points / problem.points)))


def search_resolution(d: NDArray[np.float64]) -> float:
    """Resolution limit of the search in A: 0.8 where the data go beyond, finer only where few reflections are left."""
    enough = float(np.sort(d)[::-1][min(len(d), SEARCH_FEWEST) - 1])
    return max(float(d.min()), min(SEARCH_D_MIN, enough))


def atoms_share(d_min: float, factor: float) -> float:
    """Share of the cell's grid points that atoms fill on a sharpened map: a peak's volume goes with d_min cubed."""
    return min(0.25, factor * 0.08 * (d_min / 0.8) ** 3)
