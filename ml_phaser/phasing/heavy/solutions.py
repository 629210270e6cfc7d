"""From sites of heavy atoms to phases: density modification of what the sites tell, as trials beside all others."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import gemmi
import numpy as np
from numpy.typing import NDArray

from ml_phaser.crystal.normalise import Normalised
from ml_phaser.crystal.reflections import Amplitudes
from ml_phaser.phasing.completion import LastTouch
from ml_phaser.phasing.dual_space import Method
from ml_phaser.phasing.finish import Finisher
from ml_phaser.phasing.growth import Grower, Growing, Growth
from ml_phaser.phasing.heavy.sites import SiteSet, Superposition
from ml_phaser.phasing.heavy.vectors import HIGHEST_E2, Factors, Moduli, Vectors
from ml_phaser.phasing.search import Entrant, Hunt

METHOD = "heavy atoms"
TRIED = 6  # sets of sites of a round that phases are made from
TURNS = 3  # so often at first, each going on with the first where the one before left them
GONE_ON_WITH = 3  # trials, the most promising, when all sets are tried
MOST_SHARED = 0.75
SEARCH_SHARE = 0.6  # of the time, that the search for sites may take


@dataclass(frozen=True, eq=False)
class HeavyAtoms(Growth):
    """The search for heavy atoms of one crystal.

    superposition : of the reflections in use, none held out; factors : on the reflections of ``entrant``
    """

    superposition: Superposition
    factors: Factors

    @classmethod
    def of(cls, data: Amplitudes, normalised: Normalised, entrant: Entrant, descent: Method) -> HeavyAtoms:
        """The Patterson function laid out; reflections held out of ``entrant.problem`` are not in it."""
        rows = entrant.rows[~entrant.problem.held]
        hkl, e = data.hkl[rows], normalised.e[rows]
        excess = np.minimum(e**2, HIGHEST_E2) - 1
        weight = telling(data.d[rows], normalised.sig_e[rows] / np.maximum(e, 1e-3))
        vectors = Vectors.of(hkl, excess * weight, data.cell, data.spacegroup)
        moduli = Moduli.of(Factors.of(hkl, vectors.operators), excess, weight)
        d_min = entrant.problem.d_min
        superposition = Superposition.of(vectors, moduli, data.cell, data.spacegroup, d_min)
        return cls(entrant, descent, superposition, Factors.of(entrant.problem.hkl, vectors.operators))

    def start(self, sites: NDArray[np.float64]) -> NDArray[np.complex128]:
        """Structure factors (n,) to begin with, of point atoms at the sites (m, 3)."""
        f = np.zeros(len(self.problem.hkl), dtype=np.complex128)
        for site, weight in zip(sites, self.superposition.vectors.weights(sites), strict=True):
            f += weight * self.factors.of_site(site)
        return self.weighted(f)


def telling(d: NDArray[np.float64], relative: NDArray[np.float64]) -> NDArray[np.float64]:
    """What reflections (n,) of spacing ``d`` (A) are expected to say of heavy atoms: the share of a sulphur atom in
    their intensity, among nitrogen, which grows with resolution; less where they are not well measured (``relative`` :
    sigma of F over F)."""
    s2 = 0.25 / d**2
    heavy, light = (np.array([gemmi.Element(name).it92.calculate_sf(float(v)) for v in s2]) for name in ("S", "N"))
    weight = (heavy / light) ** 2 / (1 + (4 * relative) ** 2)
    return np.asarray(weight / weight.mean())


def from_heavy_atoms(
    hunt: Hunt, heavy: HeavyAtoms, finishers: Sequence[Finisher], n: int, seed: int, seconds: float,
    most_trials: int | None, tell: Callable[[float], None], now: Callable[[], float] = time.monotonic,
    polisher: LastTouch | None = None,
) -> None:  # fmt: skip
    """Look for sites and make phases of them for so many seconds, until a solution convinces or there have been so many
    trials; these being all there may be, the best of them is finished in any case. If all sets lead nowhere, the most
    promising ones are gone on with while there is time. Random phases go the same way in the end, where there is a
    solution that does not convince and what it scores can be compared."""
    began = now()
    growing: list[Growing] = []
    grower = Grower(hunt, heavy, finishers, n, seed, now, polisher)

    def spent() -> float:
        return now() - began

    def over() -> bool:
        tell(min(1.0, spent() / seconds))
        return spent() > SEARCH_SHARE * seconds

    def full() -> bool:
        return most_trials is not None and len(hunt.trials) >= most_trials

    def look() -> None:
        nonlocal growing
        tried: list[SiteSet] = []
        for sets in heavy.superposition.rounds(over):
            for found in unlike(sets, tried)[:TRIED]:
                tried.append(found)
                g = grower.begun(f"{METHOD}, {len(found.sites)} sites", heavy.start(found.sites))
                for _ in range(TURNS):
                    g = grower.turned(g)
                    if g.score > heavy.bar:
                        break
                growing = sorted([*growing, g], key=lambda g: -g.score)[:GONE_ON_WITH]
                tell(min(1.0, spent() / seconds))
                if full() and not hunt.solutions:
                    grower.finished(growing[0])
                if full() or hunt.convinced or spent() > seconds:
                    return
        while growing and not hunt.convinced and spent() < seconds:
            growing = [grower.turned(g) for g in growing]
            tell(min(1.0, spent() / seconds))

    look()
    if not full():
        grower.compare()


def unlike(sets: Sequence[SiteSet], tried: Sequence[SiteSet] = ()) -> list[SiteSet]:
    """The sets that have not MOST_SHARED of their sites from one before, or from one that was tried."""
    out: list[SiteSet] = []
    for candidate in sets:
        rows = {site.tobytes() for site in candidate.sites}
        before = ({site.tobytes() for site in s.sites} for s in (*tried, *out))
        if all(len(rows & other) < MOST_SHARED * len(rows) for other in before):
            out.append(candidate)
    return out
