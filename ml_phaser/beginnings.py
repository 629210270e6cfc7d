"""What a search begins with before it tries chance: pieces of structure, the prediction of a network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ml_phaser import arrays
from ml_phaser.board import FINISH_POINTS, Board, affordable, atoms_share
from ml_phaser.crystal.agreement import multiplicity
from ml_phaser.crystal.phase_distributions import PhaseDistributions, hendrickson_lattman
from ml_phaser.crystal.reflections import Amplitudes
from ml_phaser.crystal.residues import RESIDUES
from ml_phaser.errors import UserError
from ml_phaser.learned import Network, conditions, there
from ml_phaser.networks.config import CrysFormerConfig, UNetConfig
from ml_phaser.networks.domain import Domain, outside
from ml_phaser.networks.runtime import Runtime
from ml_phaser.networks.store import Card, bundled_one_shot, load_one_shot
from ml_phaser.parameters import Options
from ml_phaser.phasing.dual_space import Alternating, Relaxed, sparse
from ml_phaser.phasing.finish import Finisher
from ml_phaser.phasing.fragments.pieces import MUCH, ROOM, Piece, library, molecules
from ml_phaser.phasing.growth import Growth
from ml_phaser.phasing.prediction import OneShot, from_prediction, predict_phases
from ml_phaser.phasing.problem import Problem
from ml_phaser.phasing.search import Entrant

if TYPE_CHECKING:
    import torch

    from ml_phaser.phasing.fragments.road import Road
    from ml_phaser.phasing.heavy.solutions import HeavyAtoms

FRAGMENTS_D_MIN = 1.0  # A: to here atoms are found one by one
ATOMS_D_MIN = 1.2  # A: and to here often: pieces come after random phases
FRAGMENTS_ROOM = (12, 3000)  # atoms of the asymmetric unit that pieces may be part of
SCENE = 1500  # reflections that poses are scored against; where there is room for MUCH,
ALL = 40_000  # all but so many; of these, in a first search, those that tell most,
WIDE_ATOM, WIDE = 10, (4000, 12_000)  # for each atom of room, least, most
POINT_SECONDS = 2.5e-4  # of the time limit for each point of the grid, without which a helix is not looked for
HEAVY_D_MIN = 1.25  # A: to here phases of a few heavy atoms grow into those of all
HEAVY_ROOM = 150  # atoms of the asymmetric unit: fewer are found from random phases
GROWTH = (1.0, 0.9)  # relaxation, and share of the cell in usual ones, with which relaxed reflections complete them
DESCENT = 0.3  # of the usual share of the cell that peaks may fill: few, as long as most of them are wrong


def room_for_atoms(data: Amplitudes) -> int:
    """Atoms that the asymmetric unit has room for."""
    return round(data.cell.volume / len(data.spacegroup.operations()) / ROOM)


def heavy_atoms(
    board: Board, entrants: Sequence[Entrant], options: Options, otherwise: str
) -> tuple[HeavyAtoms | None, list[str]]:
    """The search for heavy atoms if it is wanted and can pay, and what to say of it.

    ``entrants`` : the classical ones, none where they are not used; ``otherwise`` : what else was given to begin with,
    empty if nothing. Raises UserError where it was asked for and cannot be.
    """
    data, asked = board.data, options.starts == "heavy"
    relaxed = tight(entrants)
    room = room_for_atoms(data)
    if asked and otherwise:
        what = f"heavy atoms and {otherwise} cannot both be begun with"
        raise UserError(what, "starts heavy", f"leave it or {otherwise} out")
    if asked and relaxed is None:
        raise UserError("heavy atoms need the classical projections", "starts heavy", "engine auto")
    if relaxed is None or otherwise or (not asked and options.starts != "auto"):
        return None, []
    if not asked and (data.d_min > HEAVY_D_MIN or room < HEAVY_ROOM):
        return None, []
    from ml_phaser.phasing.heavy.solutions import HeavyAtoms

    grown = growth_of(relaxed)
    said = "Begins with heavy atoms, sulphur or heavier, from the Patterson function. To change: starts random."
    return HeavyAtoms.of(data, board.normalised, grown.entrant, grown.descent), [said]


def tight(entrants: Sequence[Entrant]) -> Entrant | None:
    """Relaxed reflections with a tight sparseness, where they are among the entrants."""
    return next((e for e in entrants if "RRR, tight" in e.method.name), None)


def growth_of(relaxed: Entrant) -> Growth:
    """Relaxed reflections that complete what is known of a small part."""
    problem = relaxed.problem
    projection = sparse(atoms_share(problem.d_min, DESCENT))
    home = Finisher(problem, relaxed.rows, (("sparse", projection),), affordable(40, problem, FINISH_POINTS))
    beta, factor = GROWTH
    method = Relaxed(problem, sparse(atoms_share(problem.d_min, factor)), beta, relaxed.method.name)
    return Growth(replace(relaxed, method=method, home=home, seeded=True), Alternating(problem, projection))


def growth(data: Amplitudes, entrants: Sequence[Entrant], road: Road | None) -> Growth | None:
    """How placed pieces grow by themselves, where atoms are seen and they are a small part of a large whole."""
    relaxed = tight(entrants)
    if relaxed is None or road is None or road.wide is None or data.d_min > HEAVY_D_MIN:
        return None
    return growth_of(relaxed)


def fragment_road(
    board: Board,
    runtime: Runtime,
    network: Network | None,
    learned: Sequence[Entrant],
    options: Options,
    pieces: Sequence[Piece],
    sequences: Sequence[str] = (),
) -> tuple[Road | None, NDArray[np.int64] | None, list[str]]:
    """The search for pieces of structure if it is wanted and can pay, its reflections, and what to say about it.

    ``learned`` : the entrant of the network, whose problem the road shares; ``sequences`` : of the chains in the
    crystal, where they are known. Raises UserError where it was asked for and cannot be.
    """
    data = board.data
    room = room_for_atoms(data)
    asked = options.starts == "fragments" or bool(pieces)
    if options.starts == "random":
        return None, None, []
    reasons = [
        (network is None or not learned, "the learned projection, which judges them, is not used"),
        (not pieces and not data.spacegroup.is_sohncke(), "no chiral molecule can crystallise in this space group"),
        (not asked and data.d_min < FRAGMENTS_D_MIN, ""),
        (not asked and not FRAGMENTS_ROOM[0] <= room <= FRAGMENTS_ROOM[1], ""),
    ]
    wanted = tuple(pieces) if pieces or any(hit for hit, _ in reasons) else tuple(library(sequences, room))
    too_large = not wanted and not molecules((), sequences, room)
    for hit, why in (*reasons, (too_large, f"none is small enough for the {room} atoms there is room for")):
        if hit and asked:
            raise UserError(f"no pieces can be placed: {why}", "starts fragments", "starts auto")
        if hit:
            return None, None, []
    if runtime.networks != "torch":
        if asked:
            hint = "engine auto, or starts auto" if options.engine == "onnx" else "pip install torch, or starts auto"
            raise UserError("no pieces can be placed: that needs PyTorch", "starts fragments", hint)
        change = " To change: engine auto." if arrays.installed("torch") else ""
        return None, None, [f"Pieces of strand and helix are not placed: that needs PyTorch.{change}"]
    from ml_phaser.phasing.fragments.judge import Judge
    from ml_phaser.phasing.fragments.road import Road
    from ml_phaser.phasing.fragments.scene import Scene

    assert network is not None
    rows, problem = learned[0].rows, learned[0].problem
    least = POINT_SECONDS * problem.points
    if not asked and room >= MUCH and options.timelimit < least:
        return None, None, [f"Helices are not placed: there is no time. To change: timelimit {math.ceil(least)}."]
    work = rows[~problem.held]
    work = work[np.argsort(-data.d[work], kind="stable")]
    judge = Judge.of(
        problem, there(network, board.place), conditions(problem), board.normalised.e[rows],
        multiplicity(data.hkl[rows], data.spacegroup), options.seed,
    )  # fmt: skip

    def scene(count: int) -> Scene:
        return Scene.of(data, board.normalised, np.sort(work[:count]), board.place, wet=room >= MUCH)

    fine = scene(ALL if room >= MUCH else SCENE)
    wide = fine.outline(int(np.clip(WIDE_ATOM * room, *WIDE))) if room >= MUCH else None
    road = Road(
        fine, judge, data.spacegroup, wanted, room, problem.d_min, () if pieces else sequences, options.seed, wide
    )
    what = "the piece given" if pieces else "pieces of strand and helix"
    told = ", and completed with side chains of the sequence" if road.sequences else ""
    begins = "After half the time goes on" if last_resort(data, options, pieces) else "Begins"
    return road, rows, [f"{begins} with {what}, placed by their agreement with E^2 and judged by the network{told}."]


def last_resort(data: Amplitudes, options: Options, pieces: Sequence[Piece]) -> bool:
    """Whether pieces are looked for only after random phases have led nowhere: they were not asked for, and the data
    show single atoms, not too many for random phases."""
    few = data.d_min < ATOMS_D_MIN and room_for_atoms(data) < MUCH
    return options.starts == "auto" and not pieces and few


def predicted_entrants(
    board: Board, runtime: Runtime, entrants: Sequence[Entrant], options: Options, threads: int = 1, sequence: str = ""
) -> tuple[list[Entrant], dict[str, Any], PhaseDistributions | None, list[str]]:
    """Entrants that begin with the prediction of a bundled one-shot network, its name, hash and how often its hand is
    right, the phases it predicts, and what to say of it.

    None where no network's domain covers the crystal. ``sequence`` : one-letter codes, empty where it is not known.
    Raises UserError where a prediction was asked for and cannot be.
    """
    data, cell = board.data, board.data.cell.parameters
    if options.starts == "network" and not runtime.networks:
        raise UserError("needs PyTorch or ONNX Runtime", "starts network", "pip install onnxruntime, or starts auto")
    if options.starts not in ("auto", "network") or not runtime.networks:
        return [], {}, None, []
    reasons: dict[str, list[str]] = {}
    for card in sorted(bundled_one_shot(), key=lambda card: -promised(card, data)):
        reason = outside(Domain.of(card.config), cell, data.spacegroup.hm, data.d_min)
        if not reason:
            network = one_shot_network(card.name, runtime, threads)
            residues = sequence if shown(network.config.parts, runtime, sequence) else ""
            known = predicted(board, network, card, residues)
            wrapped = ["shrink-wrap" in e.method.name for e in entrants]
            chosen = [entrants[wrapped.index(kind)] for kind in (True, False) if kind in wrapped]
            told = f", told that the residues are {residues}" if residues else ""
            said = f"Begins with the density that {card.name} predicts{told}. To change: starts random."
            facts: dict[str, Any] = {"name": card.name, "sha256": card.sha256, "runtime": runtime.networks}
            facts["hand_right"] = judged(card)["hand_right"][0]
            return [from_prediction(e, known) for e in chosen], facts, known, [said]
        reasons.setdefault(reason, []).append(card.name)
    why = "; ".join(f"{', '.join(names)}: {reason}" for reason, names in reasons.items())
    if options.starts == "network":
        what = f"no bundled network knows such crystals ({why or 'there is none'})"
        raise UserError(what, "starts network", "starts auto")
    return [], {}, None, [f"No network predicts a density to begin with ({why})."] if reasons else []


def promised(card: Card, data: Amplitudes) -> float:
    """Correlation with the map of all data that a network's own should have, as it was judged: reflections finer than
    it sees have no phases."""
    seen = data.d >= card.config["d_min"]
    return float(judged(card)["cc"][0] * np.sqrt(np.sum(data.f[seen] ** 2) / np.sum(data.f**2)))


class OneShotNetwork(OneShot, Protocol):
    """A one-shot network in torch or ONNX Runtime."""

    @property
    def config(self) -> UNetConfig | CrysFormerConfig: ...


def one_shot_network(name: str, runtime: Runtime, threads: int) -> OneShotNetwork:
    """The bundled network ``name`` where the maps are."""
    if runtime.networks == "onnx":
        from ml_phaser.networks.onnx_session import onnx_one_shot

        return onnx_one_shot(name, threads=threads)
    return load_one_shot(name).to(runtime.place)


def shown(most: int, runtime: Runtime, sequence: str) -> bool:
    """Whether a network that may see ``most`` residues by themselves is shown those of a sequence: if they are as many,
    and such as it knows. Their maps are made with torch."""
    return 0 < len(sequence) == most and set(sequence) <= set(RESIDUES) and runtime.networks == "torch"


def predicted(board: Board, network: OneShotNetwork, card: Card, residues: str) -> PhaseDistributions:
    """Phases of all reflections of a crystal in P1, as far as the network sees, by what it predicts.

    Their figures of merit are the mean cosines that the card's judgement found where predictions agreed as well.
    """
    data, config = board.data, network.config
    rows = board.beyond(config.d_min)
    problem = board.smoothed(rows, config.spacing, config.stride)
    parts = arrays.put(np.zeros((1, config.parts, *problem.shape), dtype=np.float32), board.place)
    if residues:
        parts = maps_of(residues, problem).to(board.place)
    found = predict_phases(network, problem, parts)
    hl = np.zeros((len(data), 4))
    hl[rows] = hendrickson_lattman(found.phase, merit(found.agreement, card), data.centric[rows])
    return PhaseDistributions(hl, np.zeros(len(data), dtype=complex))


def maps_of(residues: str, problem: Problem) -> torch.Tensor:
    """Each residue by itself in the cell, (1, J, u, v, w), as in training."""
    import torch

    from ml_phaser.structure_factors.boxes import maps_of_parts

    aa = torch.tensor([[RESIDUES.index(letter) for letter in residues]])
    lengths = torch.tensor([problem.cell.parameters[:3]], dtype=torch.float32)
    return maps_of_parts(aa, lengths, problem.shape, problem.d_min)


def merit(agreement: NDArray[np.float64], card: Card) -> NDArray[np.float64]:
    """Figures of merit (n,) of phases on which the last passes agree so well; the agreement itself is too sure."""
    rows = card.facts["benchmark"]["reliability"]
    return np.interp(agreement, [row["mean_agreement"] for row in rows], [row["cosine"] for row in rows])


def judged(card: Card) -> dict[str, list[float]]:
    """How the network did when it was judged, after its last pass, with measured amplitudes put back: for each figure
    the mean and half its 95 % interval."""
    row: dict[str, list[float]] = card.facts["benchmark"]["rows"][f"pass {card.facts['passes']}, |F|"]
    return row
