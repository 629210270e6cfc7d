"""What a run of the main job knows at its end; the log, the run record and the files are views of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ml_phaser.crystal.maps import Distribution
from ml_phaser.crystal.peaks import Atoms
from ml_phaser.crystal.reflections import Amplitudes


@dataclass(frozen=True)
class Trial:
    """One start of the dual-space engine.

    ``score`` is the correlation of calculated and measured |E| on reflections held out of the projection (-1 to 1),
    ``symmetry`` the agreement of its P1 phases with the space group (0-1, NaN in P1), ``finished`` whether it was
    refined in the group (its score is then that of the refined phases), ``cluster`` the number of the solution it
    led to (-1: none).
    """

    index: int
    method: str
    seed: int
    cycles: int
    seconds: float
    score: float
    r_work: float
    symmetry: float
    cluster: int = -1
    finished: bool = False


@dataclass(frozen=True)
class Verdict:
    """The verdict: ``word`` is "solved", "uncertain" or "not solved"; ``probability`` (0-1) that map CC >= 0.5;
    ``reason`` a sentence."""

    word: str
    probability: float
    reason: str


@dataclass(frozen=True)
class Hand:
    """What is known of the hand of the phases written: ``said`` a sentence; ``log_odds`` (natural) that they, not
    their mirror image, show L-amino acids, NaN where not judged; ``turned`` the solution was inverted for it."""

    said: str
    log_odds: float = float("nan")
    turned: bool = False

    @property
    def probability(self) -> float:
        """That of L-amino acids, 0 to 1, or NaN."""
        return 1 / (1 + math.exp(-self.log_odds))


@dataclass(frozen=True, eq=False)
class Phases:
    """Phases on ``Amplitudes.hkl``: phase in radians (n,), fom (n,) 0-1, hl (n, 4) Hendrickson-Lattman A B C D."""

    phase: NDArray[np.float64]
    fom: NDArray[np.float64]
    hl: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class PhaseSeeds:
    """Phases of some reflections known to a part of the circle, worth giving to a program that finds the rest.

    rows : (m,) of the reflections of the data, the most valuable first; bins : number of equal parts of the circle, the
    first of which begins at 0
    number : (m,) the part, 0 to bins - 1; centre : (m,) radians, its middle or, where symmetry leaves two values, the
    one of them; probability : (m,) 0-1 that the true phase is in that part, or is that value; phase : (m,) radians, not
    rounded; weight : (m,) 0-1, mean cosine of the true phase about ``centre``
    """

    rows: NDArray[np.int64]
    bins: int
    number: NDArray[np.int64]
    centre: NDArray[np.float64]
    probability: NDArray[np.float64]
    phase: NDArray[np.float64]
    weight: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def mean_probability(self) -> float:
        """Share of the seeds that can be expected to be right, 0-1, NaN where there are none."""
        return float(self.probability.mean()) if len(self) else float("nan")


@dataclass(frozen=True)
class SeedsGiven:
    """How a result compares with the phase seeds the user gave.

    n : seeds on the reflections of the data; probability : their mean probability as their file has it, NaN where it
    has none; moved : mean phase change in degrees; hand_margin, turned : as in ``Given``
    """

    n: int
    probability: float
    moved: float
    hand_margin: float
    turned: bool


@dataclass(frozen=True)
class Given:
    """How a result compares with the phases the user gave.

    n : reflections that had one; fom : their mean figure of merit; moved : mean phase change in degrees, weighted by
    figure of merit times F; map_cc : correlation of the best map of the phases given and that of the result, on the
    reflections both have; kept : share of what was given that the density keeps, 1 as honest figures of merit promise
    of the true phases; hand_margin : how much better the result agrees with the hand given than with the other (NaN
    where there is none to tell); turned : the result had to be brought to the hand given
    """

    n: int
    fom: float
    moved: float
    map_cc: float
    kept: float
    hand_margin: float
    turned: bool


@dataclass(frozen=True)
class ShellRow:
    """One resolution shell of the result."""

    d_max: float
    d_min: float
    n: int
    fom: float
    cc_free: float  # held-out |E| correlation in the shell, NaN where too few


@dataclass(frozen=True)
class Promise:
    """Figures of merit of one bin on crystals of known structure: number of reflections, their mean figure of merit and
    the mean cosine of their phase errors (-1 to 1)."""

    n: int
    fom: float
    cos: float


@dataclass(frozen=True, eq=False)
class Chain:
    """Atoms in place: names and elements (m,), residue (m,) number from 0, letters of the residues, xyz (m, 3) A.

    first : number of the first residue in the sequence, 1 where that is not known
    """

    names: tuple[str, ...]
    elements: tuple[str, ...]
    residue: NDArray[np.int64]
    letters: str
    xyz: NDArray[np.float64]
    first: int = 1


@dataclass(frozen=True, eq=False)
class Fragments:
    """The pieces a solution comes from.

    label : what they are; fit : correlation of their |F|^2 with the measured E^2; judged : of the E that the network
    predicts from them with the measured ones it was not given; merit : mean of ``judged`` and the held-out score;
    lead : of ``merit`` over that of the best pieces with another map
    """

    label: str
    fit: float
    judged: float
    chains: tuple[Chain, ...]
    merit: float
    lead: float

    @property
    def atoms(self) -> int:
        return sum(len(c.names) for c in self.chains)


@dataclass(frozen=True)
class NextStep:
    """A program that can go on from the result.

    program : its name; purpose : what it is for, a phrase; command : ready to paste, with the files and labels of this
        run; needs : what the user has still to supply, e.g. "a sequence: seqin FILE"; installed : whether it is on PATH
    """

    program: str
    purpose: str
    command: str
    needs: tuple[str, ...] = ()
    installed: bool = False


@dataclass(frozen=True)
class Then:
    """What became of the program that went on from the result.

    command : as it could be typed again; exit_code : None where it was not started, minus the signal that ended it;
    seconds : wall-clock; log : what it printed; summary : a sentence, what it reached or why it was not run
    """

    program: str
    command: str
    exit_code: int | None
    seconds: float
    log: Path | None
    summary: str


@dataclass(frozen=True, eq=False)
class Outcome:
    """Everything a run found out.

    ``choices`` are sentences about decisions made for the user; ``weights`` describes the network used (empty if
    none: name, sha256, ...); ``times`` maps stage to seconds; ``wilson`` has scale, B, anisotropy and the table of
    shells; ``device`` and ``threads`` are those used; ``best`` is the index of the trial the phases come from;
    ``given``: what became of phases the user gave; ``free_made``: label of free-R flags made, empty if none;
    ``next_steps``: programs that can go on from here, none where nothing was solved; ``then``: the one that did;
    ``held``: number of reflections kept out of the phasing; ``density``: spread of the values of the map written;
    ``pictures``: drawn for the report; ``fragments``: the pieces it comes from, where it does; ``predictor``: name
    and hash of the network whose prediction the search began with, empty if there was none; ``seeds``: phase seeds
    chosen for the user, where asked for; ``seeds_given``: what became of phase seeds the user gave;
    ``calibration``: what figures of merit like these kept on crystals of known structure, empty where that is not
    known; ``atoms``: free atoms that the structure factors are those of, None where it is a density.
    """

    data: Amplitudes
    phases: Phases
    trials: tuple[Trial, ...]
    verdict: Verdict
    hand: Hand
    shells: tuple[ShellRow, ...]
    wilson: Any
    choices: tuple[str, ...] = ()
    weights: dict[str, Any] = field(default_factory=dict)
    times: dict[str, float] = field(default_factory=dict)
    device: str = "cpu"
    threads: int = 1
    best: int = 0
    given: Given | None = None
    free_made: str = ""
    next_steps: tuple[NextStep, ...] = ()
    then: Then | None = None
    held: int = 0
    density: Distribution | None = None
    pictures: tuple[Any, ...] = ()
    fragments: Fragments | None = None
    predictor: dict[str, Any] = field(default_factory=dict)
    seeds: PhaseSeeds | None = None
    seeds_given: SeedsGiven | None = None
    calibration: tuple[Promise, ...] = ()
    atoms: Atoms | None = None

    @property
    def mean_fom(self) -> float:
        """Mean figure of merit of all reflections, NaN where there are none."""
        n = sum(s.n for s in self.shells)
        return sum(s.fom * s.n for s in self.shells) / n if n else float("nan")
