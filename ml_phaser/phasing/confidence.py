"""How far to believe phases: figures of merit cross-validated on held-out reflections, and the verdict."""

from __future__ import annotations

import math
from collections.abc import Sequence

import gemmi
import numpy as np
from numpy.typing import NDArray
from scipy.special import i0e, i1e

from ml_phaser.crystal.agreement import compare, move
from ml_phaser.crystal.phase_distributions import hendrickson_lattman
from ml_phaser.outcome import Fragments, Phases, ShellRow, Verdict
from ml_phaser.phasing.calibration import HIGHEST, LEAST, Calibration, Evidence

Floats = NDArray[np.float64]

# Logistic model of P(map CC >= 0.5) on simulated and measured crystals; docs/decisions/0004-verdict.md says how
# it was fitted and on what.
BIAS, PER_SCORE, PER_SYMMETRY, PER_AGREEING = -9.0, 20.0, 4.0, 0.7
PER_ANGSTROM, ATOMIC = -6.0, 1.2  # beyond atomic resolution wrong maps, too, come to predict held-out amplitudes
# Of large structures: docs/decisions/0023-verdict-of-large-structures.md
LARGE_EVEN, LARGE_PER_LEAD = 0.08, 45.0  # lead of even odds, log-odds for each unit of it
LARGE_HELD, LARGE_D = 400, (0.9, 1.25)  # held-out reflections, A
# Of free atoms: docs/decisions/0034-atoms-must-predict.md
ATOMS_BIAS, PER_LOG_WORTH, ATOMS_PER_SCORE, LEAST_WORTH = -1.58, 3.64, 5.02, 0.02
CLEAN = 3.0  # how much more of pieces a reflection held out of everything tells than one left out of passes alone
PIECES_BIAS, PER_MERIT = -9.3, 21.0  # for solutions from pieces; docs/decisions/0013-verdict-of-fragments.md
# Of pieces of proteins: docs/decisions/0027-helices-of-proteins.md
PIECES_EVEN, PER_LEAD, PIECES_HELD = 0.08, 100.0, 150  # lead of even odds, log-odds a unit; least held-out reflections
NOISE, PIECES_SLOPE = 0.49, 0.58  # of the verdict below "solved"; docs/confidence.md says how they were fitted
FITTED_TO = 2.2  # A: beyond it no crystal had a part in that, and the search's strict reckoning stands
GIVEN_BIAS, GIVEN_PER_SCORE, GIVEN_PER_FOM = -0.61, 8.73, 0.34  # for phases put in; docs/confidence.md
SIM_SHELL, SIM_NEAR = 60, 30  # reflections of one sigmaA; held-out ones around them that weigh as much as all
LEAST_LEFT = 0.05  # of the reflections, beside as many parameters as there are
FAINTEST = 0.1  # sigmaA where the held-out reflections show none, for the same reason as FLOOR
FLOOR = 0.05  # of the weight of a map that is most likely wrong, so that it can be looked at
SOLVED, NOT_SOLVED = 0.9, 0.25
SURE = math.log(SOLVED / (1 - SOLVED))  # log-odds
FEW = 30  # held-out reflections that are too few to trust at once
SOLVED_GIVEN = 0.96  # where phases were put in, which may claim too much: wrong ones came to 0.95
NOT_SOLVED_GIVEN = 0.05  # of maps from phases put in a quarter of those below 0.25 were right after all


def shell_edges(d: Floats, per_shell: int = 200, most: int = 20) -> list[NDArray[np.int64]]:
    """Rows of equally populated resolution shells, low resolution first."""
    count = int(np.clip(len(d) // per_shell, 1, most))
    return [np.sort(part) for part in np.array_split(np.argsort(-d, kind="stable"), count)]


def sigma_a(e_obs: Floats, e_calc: Floats) -> float:
    """sigmaA from the correlation of E^2, which is its square (Srinivasan & Ramachandran 1965; Read 1986)."""
    if len(e_obs) < 8 or np.ptp(e_calc) == 0 or np.ptp(e_obs) == 0:
        return 0.0
    return math.sqrt(max(0.0, float(np.corrcoef(e_obs**2, e_calc**2)[0, 1])))


def sim_weights(
    e_obs: Floats, e_calc: Floats, centric: NDArray[np.bool_], held: NDArray[np.bool_], d: Floats
) -> Floats:
    """Weight (n,), 0 to HIGHEST, of each phase if the solution is right up to noise.

    sigmaA comes from the held-out reflections alone, in overlapping groups along resolution, so that a map which
    merely fits the data it was made from gets no credit; I1(X)/I0(X) or tanh(X / 2) with
    X = 2 sigmaA Eo Ec / (1 - sigmaA^2) (Sim 1960; Woolfson 1956).

    Parameters
    ----------
    e_obs, e_calc : (n,) normalised moduli, measured and of the density; held : (n,) not used in phasing; d : (n,) A
    """
    weight = np.zeros(len(d))
    held_order = np.flatnonzero(held)[np.argsort(-d[held], kind="stable")]
    overall = sigma_a(e_obs[held], e_calc[held])
    for part in shell_edges(d, SIM_SHELL):
        middle = np.searchsorted(-d[held_order], -np.median(d[part]))
        # A third of them, around the shell, with half the weight at most beside all of them: few make noise.
        reach = max(SIM_NEAR // 2, min(100, len(held_order) // 6), int(np.sum(held[part])))
        near = held_order[max(0, middle - reach) : middle + reach]
        own = min(0.5, len(near) / (len(near) + SIM_NEAR))
        s = max(FAINTEST, min(math.sqrt(own * sigma_a(e_obs[near], e_calc[near]) ** 2 + (1 - own) * overall**2), 0.98))
        ec = e_calc[part] / _rms(e_calc[part])
        x = 2 * s * e_obs[part] * ec / (1 - s * s)
        weight[part] = np.where(centric[part], np.tanh(x / 2), i1e(x) / i0e(x))
    return np.clip(weight, 0.0, HIGHEST)


def atom_weights(
    e_obs: Floats, e_calc: Floats, centric: NDArray[np.bool_], used: NDArray[np.bool_], d: Floats, parameters: int
) -> Floats:
    """Weight (n,), 0 to HIGHEST, of each phase of refined atoms if they are right up to noise: Sim's and Woolfson's,
    with the variance of what the atoms leave of the moduli.

    Held-out reflections of small crystals are too few to say it. Those ``used`` are many, and what they leave is too
    small by the share of them that is left when every one of ``parameters`` has had its own, squared (after generalised
    cross-validation: Golub, Heath & Wahba, Technometrics 21, 215, 1979). The phase of an acentric reflection is as
    wrong across as its modulus is along. All of the difference counts as the atoms', none as the measurement's.

    Parameters as in ``sim_weights``.
    """
    left = max(LEAST_LEFT, 1 - parameters / max(1, int(used.sum())))
    ec = e_calc * (np.sum((e_obs * e_calc)[used]) / max(1e-20, float(np.sum(e_calc[used] ** 2))))
    gone = np.where(centric, 1.0, 2.0) * (e_obs - ec) ** 2
    overall = float(np.mean(gone[used]))
    weight = np.zeros(len(d))
    for part in shell_edges(d, SIM_SHELL):
        near = part[used[part]]
        own = len(near) / (len(near) + SIM_NEAR)
        mean = float(np.mean(gone[near])) if len(near) else overall
        variance = max(1e-6, (own * mean + (1 - own) * overall) / left**2)
        x = 2 * e_obs[part] * ec[part] / variance
        weight[part] = np.where(centric[part], np.tanh(x / 2), i1e(x) / i0e(x))
    return np.clip(weight, 0.0, HIGHEST)


def figures_of_merit(evidence: Evidence, calibration: Calibration | None) -> Floats:
    """Figure of merit (n,), 0 to HIGHEST, of each reflection: what ``calibration`` says, else Sim's weight times the
    probability that the solution is right, and no less than that of a phase that was given."""
    if calibration is not None:
        return calibration.merits(evidence)
    fom = evidence.sim * max(evidence.solved, FLOOR)
    if evidence.given is not None:  # phases given are worth what they were, whatever became of them
        fom = np.maximum(fom, evidence.given)
    return np.clip(fom, 0.0, HIGHEST)


def shell_table(fom: Floats, e_obs: Floats, e_calc: Floats, held: NDArray[np.bool_], d: Floats) -> tuple[ShellRow, ...]:
    """Mean figure of merit and correlation of the held-out |E| (NaN where fewer than eight) by resolution shell."""
    rows = []
    for part in shell_edges(d):
        inside = part[held[part]]
        cc = float(np.corrcoef(e_obs[inside], e_calc[inside])[0, 1]) if len(inside) >= 8 else float("nan")
        rows.append(ShellRow(float(d[part].max()), float(d[part].min()), len(part), float(fom[part].mean()), cc))
    return tuple(rows)


def agreement(
    hkl: NDArray[np.int32],
    f: NDArray[np.complex128],
    others: Sequence[NDArray[np.complex128]],
    cell: gemmi.UnitCell,
    spacegroup: gemmi.SpaceGroup,
) -> Floats | None:
    """Mean cosine (n,), -1 to 1, of the phase differences between solutions, each brought to the origin and hand of the
    first; None where there are no others.

    Parameters
    ----------
    f : (n,) structure factors of the solution; others : those of solutions from other starts; amplitudes weight the
        search for origin and hand, and nothing else
    """
    if not others:
        return None
    total = np.exp(1j * np.angle(f))
    for other in others:
        phased = np.abs(f) * np.exp(1j * np.angle(other))
        found = compare(hkl, phased, f, cell, spacegroup, repeats=0)
        total = total + np.exp(1j * np.angle(move(hkl, phased, found.origin_shift, found.inverted)))
    m = len(others) + 1
    return np.asarray((np.abs(total) ** 2 - m) / (m * (m - 1)))  # |sum|^2 has m ones and every pair twice


def _rms(x: Floats) -> float:
    return float(np.sqrt(np.mean(x**2))) or 1.0


def weigh(f: NDArray[np.complex128], fom: Floats, centric: NDArray[np.bool_]) -> Phases:
    """Phases with their weights, ready for the MTZ."""
    phase = np.angle(f)
    return Phases(phase, fom, hendrickson_lattman(phase, fom, centric))


def log_odds_solved(score: float, held: int, symmetry: float, agreeing: int, d_min: float) -> float:
    """ln p / (1 - p) that the map is right, of the search's own, strict reckoning.

    Parameters
    ----------
    score : correlation on ``held`` held-out reflections; one standard error of it is taken off
    symmetry : agreement of the P1 phases with the group, NaN where there is none to test
    agreeing : other starts that led to the same solution; three say as much as any number
    d_min : resolution of the data in A
    """
    odds = BIAS + PER_SCORE * cautious(score, held) + PER_AGREEING * min(agreeing, 3)
    odds += PER_ANGSTROM * max(0.0, d_min - ATOMIC)
    if math.isfinite(symmetry):
        odds += PER_SYMMETRY * (4 * symmetry - 1)
    return odds


def cautious(score: float, held: int) -> float:
    """A correlation on so many reflections less its standard error."""
    return score - 1.0 / math.sqrt(max(held, 4))


def _probability(odds: float) -> float:
    return 1.0 / (1.0 + math.exp(-max(-30.0, min(30.0, odds))))


def probability_solved(score: float, held: int, symmetry: float, agreeing: int, d_min: float) -> float:
    """Probability (0-1) of ``log_odds_solved``: by it the search ranks solutions and stops."""
    return _probability(log_odds_solved(score, held, symmetry, agreeing, d_min))


def large(held: int, d_min: float) -> bool:
    """Whether so many reflections of a large structure at atomic resolution are held out that they say more than those
    of small ones, which the search's reckoning was set by."""
    return held >= LARGE_HELD and LARGE_D[0] <= d_min <= LARGE_D[1]


def probability_large(lead: float, held: int) -> float:
    """Probability (0-1) that the map of a large structure is right, by the ``lead`` of its score over the one that
    random phases come to in the same crystal: any density that fits the measured amplitudes predicts a little of the
    held-out ones, in some crystals much. A standard error is taken off, as the luckiest of many starts is judged."""
    return _probability(LARGE_PER_LEAD * (cautious(lead, held) - LARGE_EVEN))


def probability_of_atoms(worth: float, score: float) -> float:
    """Probability (0-1) that free atoms are right.

    ``worth`` : their R, parameters allowed for, as a share of what wrong ones hardly come to (``Completer.counted``),
    infinite where there are none; above 1 it says nothing. ``score`` : as in ``log_odds_solved``; wrong atoms fit what
    they were refined against, and predict nothing. Below zero it is bad luck, no worse than none."""
    if worth > 1:
        return 0.0
    return _probability(
        ATOMS_BIAS - PER_LOG_WORTH * math.log(max(worth, LEAST_WORTH)) + ATOMS_PER_SCORE * max(score, 0.0)
    )


def log_odds_of_pieces(merit: float, lead: float = -math.inf, held: int = 0) -> float:
    """ln p / (1 - p) that a map that comes from placed pieces is right.

    ``merit``, ``lead`` as in ``Fragments``. Of ``held`` held-out reflections, and with them all others, there must be
    many for the lead to say more than the luck of the best of some models.
    """
    odds = PIECES_BIAS + PER_MERIT * merit
    return max(odds, PER_LEAD * (lead - PIECES_EVEN)) if held >= PIECES_HELD else odds


def weight_of_held(held: int, others: int) -> float:
    """Share (0-1) that reflections held out of everything have in the merit of pieces; the others, left out of passes
    of the network in turn, have the rest."""
    return CLEAN * held / (CLEAN * held + others)


def probability_of_pieces(merit: float, lead: float = -math.inf, held: int = 0) -> float:
    """The same as a probability (0-1)."""
    return _probability(log_odds_of_pieces(merit, lead, held))


def probability_right(
    score: float, held: int, symmetry: float, agreeing: int, d_min: float, placed: Fragments | None = None,
    chance: float = math.nan,
) -> float:  # fmt: skip
    """Probability (0-1) of the verdict that the map correlates with the truth to at least 0.5.

    Parameters as in ``log_odds_solved`` and ``judge``.
    """
    odds = log_odds_solved(score, held, symmetry, agreeing, d_min)
    if placed is not None:
        return tempered(max(odds, log_odds_of_pieces(placed.merit, placed.lead, held)), PIECES_SLOPE)
    if d_min > FITTED_TO:
        return _probability(odds)
    p = tempered(odds, 1.0 / math.sqrt(1.0 + NOISE * PER_SCORE**2 / max(held, 4)))
    return max(p, probability_large(score - chance, held)) if math.isfinite(chance) and large(held, d_min) else p


def enough(
    score: float, held: int, symmetry: float, agreeing: int, d_min: float, placed: Fragments | None = None
) -> bool:
    """Whether there is enough to say "solved": fewer than FEW reflections must say so with two errors of their score
    taken off, since the luckiest of many starts was chosen by them. Parameters as in ``probability_right``."""
    if held >= FEW or (placed is not None and log_odds_of_pieces(placed.merit) >= SURE):
        return True
    return log_odds_solved(score, held, symmetry, agreeing, d_min) - PER_SCORE / math.sqrt(max(held, 4)) >= SURE


def tempered(odds: float, slope: float) -> float:
    """Probability (0-1) of the verdict, of the search's log-odds.

    From SOLVED on it is the search's. Below, the search is too strict, as what few held-out reflections fail to say is
    no evidence against a map: the log-odds are drawn towards those of SOLVED, to ``slope`` times their distance
    (docs/confidence.md).
    """
    return _probability(odds if odds >= SURE else SURE + slope * (odds - SURE))


def probability_of_given(score: float, held: int, fom: float) -> float:
    """Probability (0-1) of the verdict where phases were put in, whose mean figure of merit over all reflections is
    ``fom`` (0-1); ``score`` and ``held`` as in ``log_odds_solved``. A score below zero is bad luck, no worse than
    none."""
    fom, sure = min(max(fom, LEAST), 1 - LEAST), cautious(max(score, 0.0), held)
    return _probability(GIVEN_BIAS + GIVEN_PER_SCORE * sure + GIVEN_PER_FOM * math.log(fom / (1 - fom)))


def judge(
    score: float, held: int, symmetry: float, agreeing: int, d_min: float, placed: Fragments | None = None,
    given: float | None = None, chance: float = math.nan, atoms: float = math.inf,
) -> Verdict:  # fmt: skip
    """The verdict in words. ``agreeing`` counts the other starts that led to the same solution; ``placed`` are the
    pieces it comes from: their merit, or what decision 4 rests on, whichever says more; ``given`` is the mean figure of
    merit of phases that were put in; ``chance`` is the score that random phases come to in the same crystal, NaN where
    that was not tried; ``atoms`` how well free atoms explain the moduli, as in ``probability_of_atoms``."""
    of_atoms = probability_of_atoms(atoms, score)
    if given is not None:
        p, sure = probability_of_given(score, held, given), True
    else:
        p = probability_right(score, held, symmetry, agreeing, d_min, placed, chance)
        p = max(p, of_atoms)
        sure = enough(score, held, symmetry, agreeing, d_min, placed) or of_atoms >= SOLVED
    facts = f"correlation {score:.2f} on {held} reflections kept out of the phasing"
    if math.isfinite(chance):
        facts += f", random phases come to {chance:.2f}"
    if given is not None:
        facts += f", phases put in of mean figure of merit {given:.2f}"
    if placed is not None:
        facts += f", {placed.judged:.2f} of the amplitudes that the pieces let the network predict unseen"
        side = "above" if placed.lead >= 0 else "below"
        facts += f", together {abs(placed.lead):.2f} {side} pieces that lead elsewhere"
    if math.isfinite(symmetry):
        facts += f", phases found in P1 obey the space group to {symmetry:.2f} (1 perfect, 0 chance)"
    if of_atoms >= SOLVED:
        facts += ", free atoms explain the amplitudes as wrong ones do not"
    if agreeing:
        facts += f", {agreeing} other start{'s' if agreeing > 1 else ''} led to the same solution"
    if p >= (SOLVED if given is None else SOLVED_GIVEN):
        if sure:
            return Verdict("solved", p, f"{facts}.")
        facts += f"; {held} reflections are too few to be sure"
    if p > (NOT_SOLVED if given is None else NOT_SOLVED_GIVEN):
        return Verdict("uncertain", p, f"{facts}: look at the map before building on it.")
    return Verdict("not solved", p, f"{facts}: the map is most likely wrong and unlikely to be traceable.")
