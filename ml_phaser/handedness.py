"""The hand of a solution: a solution and its mirror image, scored by the hand judge."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import gemmi
import numpy as np
from numpy.typing import NDArray

from ml_phaser import arrays
from ml_phaser.arrays import Array
from ml_phaser.crystal.agreement import compare, hand_centre, move
from ml_phaser.crystal.chirality import alpha_carbons
from ml_phaser.crystal.grid import HalfSphere, grid_shape
from ml_phaser.crystal.normalise import Normalised
from ml_phaser.crystal.peaks import Atoms, Images
from ml_phaser.crystal.phase_distributions import PhaseDistributions
from ml_phaser.crystal.reflections import Amplitudes
from ml_phaser.crystal.symmetry import expand
from ml_phaser.networks.config import HandConfig
from ml_phaser.networks.store import HAND_JUDGE, read_card
from ml_phaser.outcome import Hand
from ml_phaser.phasing.place import about_hand

JUDGE_B = 11.0  # A^2: the overall B the judge's training crystals have
DETERMINED = 0.9  # probability from which on a hand counts as determined
CLEAR = 0.05  # of map correlation between hands: less tells nothing
SUREST = 0.99
SURE_ATOMS = 6.0  # log-odds that all alpha carbons together may come to
PLAIN = 1.0  # log-odds from which on an alpha carbon is counted as L or D
MOST_POINTS = 4_000_000  # grid points: about 1 kB of memory each


class Judge(Protocol):
    """The hand judge, in torch or ONNX Runtime; its arrays are to be at ``place``."""

    @property
    def config(self) -> HandConfig: ...

    @property
    def place(self) -> str: ...

    def __call__(self, rho: Array, frac: Array, d_min: Array) -> Array: ...

    def log_odds(self, mean: Array, volume: Array) -> Array: ...


def log_odds(
    judge: Judge, hkl: NDArray[np.int32], f: NDArray[np.complex128], cell: gemmi.UnitCell,
    spacegroup: gemmi.SpaceGroup,
) -> float:  # fmt: skip
    """ln P / (1 - P) that the map of ``f`` (n,), and not its mirror image, shows L-amino acids.

    ``f`` : of unique reflections ``hkl`` (n, 3), overall B about JUDGE_B; those finer than the judge knows are left out
    """
    d = cell.calculate_d_array(hkl)
    used = d >= judge.config.d_best
    expansion = expand(hkl[used], spacegroup)
    d_min = float(d[used].min())
    shape = grid_shape(cell, d_min, spacing=judge.config.spacing, multiple=judge.config.stride)
    half = HalfSphere.of(expansion.hkl, shape).scatter(expansion.spread(f[used]))
    rho = np.fft.irfftn(half, s=shape, axes=(0, 1, 2))
    volume = cell.volume / len(list(spacegroup.operations()))
    values = ((rho / rho.std())[None], np.array(cell.frac.mat.tolist())[None], np.array([d_min]), np.array([volume]))
    unit, frac, finest, room = (arrays.put(x.astype(np.float32), judge.place) for x in values)
    with arrays.no_gradients(unit):
        local = judge(unit, frac, finest)
        return float(judge.log_odds(local.mean(axis=1), room)[0])


def decide(
    data: Amplitudes,
    normalised: Normalised,
    f: NDArray[np.complex128],
    *,
    keep: bool = False,
    solved: bool = True,
    networks: str = "torch",
    evidence: float = 0.0,
) -> tuple[NDArray[np.complex128], Hand]:
    """The likelier of the solution ``f`` (n,) and its mirror image, as it stands where that cannot be told; and why.

    Parameters
    ----------
    keep : report only, do not turn the solution
    solved : False for a map called not solved: some of those are right, so it is turned all the same, but what is said
        of its hand is said with that reserve
    networks : what the judge runs in, as in ``networks.runtime.Runtime``
    evidence : log-odds for the hand of ``f`` from elsewhere
    """
    said = about_hand(data.spacegroup)
    if not data.spacegroup.is_sohncke() or not networks:
        return f, Hand(said)
    card = read_card(HAND_JUDGE)
    if data.d_min > card.config["d_worst"] or data.cell.volume / card.config["spacing"] ** 3 > MOST_POINTS:
        return f, Hand(said)
    scale = np.exp((normalised.wilson_b - JUDGE_B) * (0.25 / data.d**2))
    density = scale * normalised.f * np.exp(1j * np.angle(f))
    odds = log_odds(bundled_judge(networks), data.hkl, density, data.cell, data.spacegroup) + evidence
    if (centre := hand_centre(data.spacegroup)) is None:
        return f, Hand(told_by_group(said, odds) if solved else said, odds)
    turned = odds < 0 and not keep
    if turned:
        f, odds = move(data.hkl, f, centre, inverted=True), -odds
    return f, Hand(
        in_words(odds, turned) if solved else f"should the map be right, {in_words(odds, turned)}", odds, turned
    )


@dataclass(frozen=True)
class Carbons:
    """Alpha carbons found among the atoms of a solution: how many look L and D, and the log-odds for L of all."""

    left: int
    right: int
    odds: float

    def mirrored(self) -> Carbons:
        return Carbons(self.right, self.left, -self.odds)

    @property
    def said(self) -> str:
        """A clause for the log, empty where there are none."""
        if not self.left and not self.right:
            return ""
        return f"; of the alpha carbons among the atoms found {self.left} look L and {self.right} D"


def carbons_of(atoms: Atoms, data: Amplitudes) -> Carbons:
    """What the atoms of a solution say of its hand: each alpha carbon at most as much as ``chirality.MOST``, all
    together no more than SURE_ATOMS, as atoms may mislead as a whole."""
    odds = alpha_carbons(atoms.frac, atoms.weight, Images(data.cell, data.spacegroup))
    total = float(np.clip(odds.sum(), -SURE_ATOMS, SURE_ATOMS))
    return Carbons(int((odds > PLAIN).sum()), int((odds < -PLAIN).sum()), total)


def predicted_hand(
    data: Amplitudes, normalised: Normalised, f: NDArray[np.complex128], predicted: PhaseDistributions, right: float
) -> float:
    """Log-odds that a solution ``f`` (n,), not its mirror image, has the hand that a network predicted; 0 where it
    agrees with both alike.

    ``right`` : share of the predictions, 0-1, whose hand was right when the network was judged
    """
    phased = normalised.f * np.exp(1j * np.angle(f))
    best = normalised.f * predicted.centroid()
    margin = compare(data.hkl, phased, best, data.cell, data.spacegroup, repeats=0)
    if abs(margin.hand_margin) < CLEAR:
        return 0.0
    right = min(right, SUREST)
    return float(np.log(right / (1 - right))) * (-1 if margin.inverted else 1)


def bundled_judge(networks: str) -> Judge:
    """The judge in "torch" or "onnx"."""
    if networks == "onnx":
        from ml_phaser.networks.onnx_session import onnx_hand_judge

        return onnx_hand_judge()
    from ml_phaser.networks.store import load_hand_judge

    return load_hand_judge()


def in_words(odds: float, turned: bool) -> str:
    """What the judge says of the hand written, in a sentence."""
    p = Hand("", odds).probability
    margin = f"log-odds {odds:+.1f} over the mirror image"
    done = "; the solution was turned into its mirror image for it" if turned else ""
    if p >= DETERMINED:
        return f"that of L-amino acids with probability {p:.3f} ({margin}), if it is a peptide or protein of them{done}"
    if p <= 1 - DETERMINED:
        return f"that of D-amino acids: of L-amino acids with probability {p:.3f} only ({margin}); kept, as asked"
    return f"not determined: that of L-amino acids with probability {p:.2f} ({margin}), the map may be mirrored{done}"


def told_by_group(said: str, odds: float) -> str:
    """The sentence where the space group tells the hand, and the judge may doubt the space group."""
    p = Hand("", odds).probability
    if p > 1 - DETERMINED:
        return said
    return f"{said}, but the map looks like D-amino acids (probability {1 - p:.3f}): try the enantiomorphic group"
