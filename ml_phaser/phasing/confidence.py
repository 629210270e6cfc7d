"""How far to believe phases: figures of merit cross-validated on held-out reflections, and the verdict."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.special import i0e, i1e

from ml_phaser.crystal.phase_distributions import hendrickson_lattman
from ml_phaser.outcome import Fragments, Phases, ShellRow, Verdict

Floats = NDArray[np.float64]

# Logistic model of P(map CC >= 0.5) on simulated and measured crystals; docs/decisions/0004-verdict.md says how
# it was fitted and on what.
BIAS, PER_SCORE, PER_SYMMETRY, PER_AGREEING = -9.0, 20.0, 4.0, 0.7
PER_ANGSTROM, ATOMIC = -6.0, 1.2  # beyond atomic resolution wrong maps, too, come to predict held-out amplitudes
PIECES_BIAS, PER_MERIT = -6.6, 15.8  # for solutions from pieces; docs/decisions/0013-verdict-of-fragments.md
FAINTEST = 0.1  # sigmaA where the held-out reflections show none, for the same reason as FLOOR
FLOOR = 0.05  # of the weight of a map that is most likely wrong, so that it can be looked at
HIGHEST = 0.99  # figure of merit; the phase distribution of 1 would be infinitely sharp
SOLVED, NOT_SOLVED = 0.9, 0.25


def shell_edges(d: Floats, per_shell: int = 200, most: int = 20) -> list[NDArray[np.int64]]:
    """Rows of equally populated resolution shells, low resolution first."""
    count = int(np.clip(len(d) // per_shell, 1, most))
    return [np.sort(part) for part in np.array_split(np.argsort(-d, kind="stable"), count)]


def sigma_a(e_obs: Floats, e_calc: Floats) -> float:
    """sigmaA from the correlation of E^2, which is its square (Srinivasan & Ramachandran 1965; Read 1986)."""
    if len(e_obs) < 8 or np.ptp(e_calc) == 0 or np.ptp(e_obs) == 0:
        return 0.0
    return math.sqrt(max(0.0, float(np.corrcoef(e_obs**2, e_calc**2)[0, 1])))


def figures_of_merit(
    e_obs: Floats,
    e_calc: Floats,
    centric: NDArray[np.bool_],
    held: NDArray[np.bool_],
    d: Floats,
    probability: float,
) -> tuple[Floats, tuple[ShellRow, ...]]:
    """Figure of merit of each reflection and the table by shell.

    sigmaA comes from the held-out reflections alone, in overlapping groups along resolution, so that a map which
    merely fits the data it was made from gets no credit; I1(X)/I0(X) or tanh(X / 2) with
    X = 2 sigmaA Eo Ec / (1 - sigmaA^2) (Sim 1960; Woolfson 1956), times the probability that the solution is right.

    Parameters
    ----------
    e_obs, e_calc : (n,) normalised moduli, measured and of the density; d : (n,) A; probability : 0-1
    """
    fom = np.zeros(len(d))
    rows = []
    held_order = np.flatnonzero(held)[np.argsort(-d[held], kind="stable")]
    overall = sigma_a(e_obs[held], e_calc[held])
    for part in shell_edges(d):
        middle = np.searchsorted(-d[held_order], -np.median(d[part]))
        # At least 200 held-out reflections around the shell, or all there are, and half the weight to all of them:
        # fewer make sigmaA noise.
        reach = max(100, int(np.sum(held[part])))
        near = held_order[max(0, middle - reach) : middle + reach]
        own = len(near) / (len(near) + 200)
        s = max(FAINTEST, min(math.sqrt(own * sigma_a(e_obs[near], e_calc[near]) ** 2 + (1 - own) * overall**2), 0.98))
        ec = e_calc[part] / _rms(e_calc[part])
        x = 2 * s * e_obs[part] * ec / (1 - s * s)
        part_fom = np.where(centric[part], np.tanh(x / 2), i1e(x) / i0e(x)) * max(probability, FLOOR)
        fom[part] = np.clip(part_fom, 0.0, HIGHEST)
        inside = part[held[part]]
        cc = float(np.corrcoef(e_obs[inside], e_calc[inside])[0, 1]) if len(inside) >= 8 else float("nan")
        rows.append(ShellRow(float(d[part].max()), float(d[part].min()), len(part), float(fom[part].mean()), cc))
    return fom, tuple(rows)


def _rms(x: Floats) -> float:
    return float(np.sqrt(np.mean(x**2))) or 1.0


def weigh(f: NDArray[np.complex128], fom: Floats, centric: NDArray[np.bool_]) -> Phases:
    """Phases with their weights, ready for the MTZ."""
    phase = np.angle(f)
    return Phases(phase, fom, hendrickson_lattman(phase, fom, centric))


def probability_solved(score: float, held: int, symmetry: float, agreeing: int, d_min: float) -> float:
    """Probability (0-1) that the map is right.

    Parameters
    ----------
    score : correlation on ``held`` held-out reflections; one standard error of it is taken off
    symmetry : agreement of the P1 phases with the group, NaN where there is none to test
    agreeing : other starts that led to the same solution; three say as much as any number
    d_min : resolution of the data in A
    """
    cautious = score - 1.0 / math.sqrt(max(held, 4))
    logit = BIAS + PER_SCORE * cautious + PER_AGREEING * min(agreeing, 3) + PER_ANGSTROM * max(0.0, d_min - ATOMIC)
    if math.isfinite(symmetry):
        logit += PER_SYMMETRY * (4 * symmetry - 1)
    return 1.0 / (1.0 + math.exp(-max(-30.0, min(30.0, logit))))


def probability_of_pieces(merit: float) -> float:
    """Probability (0-1) that a map that comes from placed pieces is right; ``merit`` as in ``Fragments``."""
    return 1.0 / (1.0 + math.exp(-(PIECES_BIAS + PER_MERIT * merit)))


def judge(
    score: float, held: int, symmetry: float, agreeing: int, d_min: float, placed: Fragments | None = None
) -> Verdict:
    """The verdict in words. ``agreeing`` counts the other starts that led to the same solution; ``placed`` are the
    pieces it comes from: their merit, or what decision 4 rests on, whichever says more."""
    p = probability_solved(score, held, symmetry, agreeing, d_min)
    facts = f"correlation {score:.2f} on {held} reflections kept out of the phasing"
    if placed is not None:
        p = max(p, probability_of_pieces(placed.merit))
        facts += f", {placed.judged:.2f} of the amplitudes that the pieces let the network predict unseen"
        side = "above" if placed.lead >= 0 else "below"
        facts += f", together {abs(placed.lead):.2f} {side} pieces that lead elsewhere"
    if math.isfinite(symmetry):
        facts += f", phases found in P1 obey the space group to {symmetry:.2f} (1 perfect, 0 chance)"
    if agreeing:
        facts += f", {agreeing} other start{'s' if agreeing > 1 else ''} led to the same solution"
    if p >= SOLVED:
        return Verdict("solved", p, f"{facts}.")
    if p > NOT_SOLVED:
        return Verdict("uncertain", p, f"{facts}: look at the map before building on it.")
    return Verdict("not solved", p, f"{facts}: the map is most likely wrong and unlikely to be traceable.")
