"""Who phases: each takes a crystal, a time and a seed, and gives phases; none sees the truth.

What all share: one thread, random starts until the time is over (processor seconds, so that a busy machine wrongs
nobody), the best start chosen by what the entrant itself can know. Ours choose by the correlation on held-out
reflections and stop early when that convinces.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.phasing.crystals import Crystal
from ml_phaser.crystal.reflections import Amplitudes
from ml_phaser.notify import Silent

SHARES = (0.1, 0.2, 0.3, 1.0)  # of the reflections whose phases are given as seeds
ALTERNATIONS = 40  # cycles of the network alternated with the amplitudes: beyond, it drifts


@dataclass(frozen=True, eq=False)
class Answer:
    """Phases found.

    f : (n,) complex structure factors on the data's hkl, None where there are none; own : f are a density's own moduli,
    else the measured ones are put to its phases; score : the entrant's own measure of success; claimed : it says solved
    """

    f: NDArray[np.complex128] | None
    starts: int = 0
    score: float | None = None
    claimed: bool | None = None
    own: bool = False
    said: str = ""


Entrant = Callable[[Crystal, float, int], Answer]


class Clock:
    """Processor seconds since it was made."""

    def __init__(self) -> None:
        self.began = time.process_time()

    def __call__(self) -> float:
        return time.process_time() - self.began


def blob(crystal: Crystal, seconds: float, seed: int) -> Answer:
    """A Gaussian at the centre of the cell (of each asymmetric unit), as wide as suits the measured amplitudes: what a
    network says that has learned nothing but the average."""
    data = crystal.data
    s2 = 1 / data.d**2
    where = [0.5] * 3 if data.spacegroup.number == 1 else [0.25] * 3
    sites = np.array([op.apply_to_xyz(where) for op in data.spacegroup.operations()])
    phases = np.exp(2j * np.pi * (data.hkl @ sites.T)).sum(axis=1)
    widths = np.geomspace(0.2, 8.0, 40)
    f = max(
        (phases * np.exp(-2 * np.pi**2 * w**2 * s2) for w in widths),
        key=lambda g: float(np.dot(np.abs(g), data.f) / max(np.linalg.norm(g), 1e-300)),
    )
    return Answer(f, 1, own=True)


def chance(crystal: Crystal, seconds: float, seed: int) -> Answer:
    """Random phases."""
    return Answer(crystal.data.f * np.exp(1j * random_phases(crystal.data, seed)), 1)


def random_phases(data: Amplitudes, seed: int) -> NDArray[np.float64]:
    """(n,) radians; centric ones take either of their values."""
    from ml_phaser.crystal.agreement import random_phases as draw

    return draw(data.hkl, data.spacegroup, np.random.default_rng(seed))


def options(seconds: float, seed: int, engine: str):  # type: ignore[no-untyped-def]
    """Options of the main job; the files are not written here."""
    from ml_phaser.parameters import Options

    none = Path("none")
    return Options(none, none, none, none, timelimit=seconds, threads=1, engine=engine, seed=seed, device="cpu")


def engine(crystal: Crystal, seconds: float, seed: int, *, kind: str, share: float = 0.0) -> Answer:
    """The main job's search; ``share`` of the strongest reflections seeded with the quadrant of their true phases."""
    from ml_phaser.crystal.normalise import normalise
    from ml_phaser.phasing.confidence import SOLVED
    from ml_phaser.pipeline import phase, weigh
    from ml_phaser.plan import plan_phasing

    clock, data = Clock(), crystal.data
    normalised = normalise(data)
    seeds = true_quadrants(crystal, normalised.e, share) if share else None
    asked = replace(options(seconds, seed, kind), starts="random")
    plan = plan_phasing(data, normalised, asked, seeds)
    hunt = phase(plan, replace(asked, timelimit=max(0.1, seconds - clock())), Silent(), time.process_time)
    best = max(hunt.solutions, key=lambda s: s.probability)
    said = f"{hunt.trials[best.trial].method}; {'no network' if not plan.weights else plan.weights['name']}"
    phases = weigh(data, normalised, plan, best, keep_hand=seeds is not None)[0]  # turns to the likelier hand
    return Answer(
        np.abs(best.f) * np.exp(1j * phases.phase), len(hunt.trials), best.score, best.probability >= SOLVED, said=said
    )


def true_quadrants(crystal: Crystal, e: NDArray[np.float64], share: float):  # type: ignore[no-untyped-def]
    """Seeds: the quadrants of the true phases of the ``share`` (0-1) of the reflections with the largest E."""
    from ml_phaser.phasing.seeds import Seeds, quadrants, strongest

    data, known = crystal.data, np.isfinite(crystal.f)
    true = quadrants(data.hkl, np.angle(np.where(known, crystal.f, 1)), data.spacegroup)
    return Seeds(true, strongest(np.where(known, e, 0), share) & known)


def alone(crystal: Crystal, seconds: float, seed: int, *, who: str, share: float = 0.0) -> Answer:
    """One family of the engine's methods, without the engine's finishing; ``share`` of the reflections seeded."""
    from ml_phaser.board import lay_out
    from ml_phaser.crystal.normalise import normalise
    from ml_phaser.phasing.seeds import seeded
    from ml_phaser.plan import classical_entrants, shrink_wrap_entrants

    clock, data = Clock(), crystal.data
    normalised = normalise(data)
    board, whole, d_search = lay_out(data, normalised, options(seconds, seed, "classical"))
    if who == "HIO":
        entrants = shrink_wrap_entrants(board)
    elif who == "network":
        found = learned(board, data)
        if isinstance(found, str):
            return Answer(None, said=found)
        entrants = found
    else:
        entrants = [e for e in classical_entrants(board, whole, d_search) if who in e.method.name]
    if share:
        seeds = true_quadrants(crystal, normalised.e, share)
        entrants = [seeded(e, seeds) for e in entrants]
    return multistart(entrants, data, max(0.1, seconds - clock()), seed)


def learned(board, data: Amplitudes):  # type: ignore[no-untyped-def]
    """The network alternated with the amplitudes, or why it may not be."""
    from ml_phaser.learned import bundled_network, density_projection
    from ml_phaser.phasing.dual_space import Alternating
    from ml_phaser.plan import learned_entrant

    network, _, said = bundled_network(data.d_min, data.cell.volume, "learned")
    if network is None:
        return "; ".join(said)
    entrant = learned_entrant(board, network)
    method = Alternating(entrant.problem, density_projection(network, entrant.problem), "network alternated")
    return [replace(entrant, method=method, cycles=ALTERNATIONS, block=5)]


def one_pass(crystal: Crystal, seconds: float, seed: int) -> Answer:
    """The network applied once to the map of measured amplitudes and random phases."""
    import torch

    from ml_phaser.board import lay_out
    from ml_phaser.crystal.normalise import normalise
    from ml_phaser.phasing.projections import forward, impose_amplitudes

    data = crystal.data
    board, _, _ = lay_out(data, normalise(data), options(seconds, seed, "learned"))
    found = learned(board, data)
    if isinstance(found, str):
        return Answer(None, said=found)
    (entrant,) = found
    x = entrant.problem.random_starts(1, torch.Generator().manual_seed(seed))
    x = impose_amplitudes(x, entrant.problem.target)
    half = forward(entrant.method.projection(x))
    return Answer(at_home(entrant, entrant.problem.gather_p1(half[0]), len(data)), 1)


def multistart(entrants: Sequence, data: Amplitudes, seconds: float, seed: int) -> Answer:
    """Batches of random starts, each entrant in turn, until one convinces or the time is over; the start with the best
    held-out score, placed in the space group."""
    import torch

    from ml_phaser.phasing.confidence import SOLVED, probability_solved
    from ml_phaser.phasing.search import CONVINCED

    clock, generator = Clock(), torch.Generator().manual_seed(seed)
    starts, best, score, turn, p = 0, None, -2.0, 0, 0.0
    while best is None or (clock() < seconds and p < CONVINCED):
        e = entrants[turn % len(entrants)]
        x = e.starts(e.batch, generator)
        for done in range(0, e.cycles, e.block):
            x = e.method.advance(x, e.block, done)
            if clock() > seconds:
                break
        half = e.method.estimate(x)
        scores = np.nan_to_num(e.problem.scores(half).numpy().astype(float), nan=-1.0)
        starts, turn, i = starts + e.batch, turn + 1, int(np.argmax(scores))
        if best is None or scores[i] > score:
            best, score = (e, e.problem.gather_p1(half[i])), float(scores[i])
            p = probability_solved(score, int(e.problem.held.sum()), float("nan"), 0, e.problem.d_min)
    said = best[0].method.name
    return Answer(at_home(best[0], best[1], len(data)), starts, score, p >= SOLVED, said=said)


def at_home(entrant, f_p1: NDArray[np.complex128], n: int) -> NDArray[np.complex128]:  # type: ignore[no-untyped-def]
    """P1 phases shifted to an origin of the space group and averaged over it, on all ``n`` reflections of the data."""
    problem = entrant.problem
    f = np.zeros(n, dtype=np.complex128)
    f[entrant.rows] = in_group(problem.expansion, f_p1, problem.amplitude, problem.cell, problem.spacegroup)
    return f


def in_group(expansion, f_p1, amplitude, cell, spacegroup) -> NDArray[np.complex128]:  # type: ignore[no-untyped-def]
    """(n,) unique structure factors of P1 phases (m,) with the measured moduli; the better hand if it matters."""
    from ml_phaser.phasing.place import hand_is_fixed, place

    phased = expansion.spread(amplitude) * np.exp(1j * np.angle(f_p1))
    hands = (phased, np.conj(phased)) if hand_is_fixed(spacegroup) else (phased,)
    found = [place(f, expansion, len(amplitude), cell, spacegroup)[0] for f in hands]
    return max(found, key=lambda p: np.nan_to_num(p.symmetry, nan=1.0)).f


def entrants(grok: str | None) -> dict[str, Entrant]:
    """All of them by name, in the order of the tables."""
    from benchmarks.phasing.others import cctbx_flipping, grok_solver

    found: dict[str, Entrant] = {
        "centred blob": blob,
        "random phases": chance,
        "charge flipping": partial(alone, who="flipping"),
        "shrink-wrap HIO": partial(alone, who="HIO"),
        "RRR": partial(alone, who="RRR"),
        "cctbx charge flipping": cctbx_flipping,
        "grok-phase-solver": partial(grok_solver, python=grok),
        "network, one pass": one_pass,
        "network, alternated": partial(alone, who="network"),
    }
    for kind, name in (("classical", "engine, no network"), ("auto", "engine")):
        found[name] = partial(engine, kind=kind)
    found["charge flipping, 20% seeds"] = partial(alone, who="flipping", share=0.2)
    for kind, name in (("classical", "engine, no network"), ("auto", "engine")):
        for share in SHARES:
            found[f"{name}, {share:.0%} seeds"] = partial(engine, kind=kind, share=share)
    return found
