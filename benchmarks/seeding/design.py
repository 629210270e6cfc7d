"""What is tried: crystals, seeds, engines, in an order that leaves something balanced whenever it stops.

A full factorial of share, noise, resolution, size, holding and engine would be thousands of runs a crystal. Three
slices through it share their common part: the share at three resolutions, the noise at the middle one of them, and the
size there. Crystals have 1.0, 1.4, 1.8 A and 1.2, 1.6, 2.0 A in turn, so that a band of resolution holds every
crystal once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

from benchmarks.phasing.crystals import Recipe
from benchmarks.phasing.runner import Unit
from benchmarks.phasing.tasks import ORDERS, dense

ENGINES = ("charge flipping", "learned engine")
SHARES = (0.05, 0.1, 0.2, 0.3, 0.5, 1.0)
D_MIN = ((1.0, 1.4, 1.8), (1.2, 1.6, 2.0))  # A, of crystals in turn
BANDS = tuple((f"{a:.1f}-{b:.1f} A", (a, b)) for a, b in zip(*D_MIN, strict=True))
NOISES, NOISE_SHARES, NOISE_D_MIN = (20.0, 40.0, 60.0), (0.1, 0.3, 1.0), BANDS[1][1]
LARGE_SHARES, LARGE_D_MIN = (0.1, 0.3), BANDS[1][1]
SMALL = (("P1", 40), ("P21", 40), ("P212121", 30), ("P1", 60), ("P21", 30), ("P212121", 40))  # atoms of the asym. unit
LARGE = (("P1", 120), ("P21", 100), ("P1", 160), ("P21", 120), ("P1", 200), ("P21", 100))
FLAWS = 0.05  # mean sigma(I) / mean I
SIZES = ("small", "large")


@dataclass(frozen=True)
class Treatment:
    """Seeds and who gets them.

    share : 0-1 of the reflections, 0: random starts; noise : degrees, Gaussian s.d. added to the true phases before
    they are rounded to quadrants; held : imposed for the first half of a start's cycles
    """

    engine: str
    share: float = 0.0
    noise: float = 0.0
    held: bool = False

    @property
    def name(self) -> str:
        if not self.share:
            return f"{self.engine}, random starts"
        return f"{self.engine}, {self.share:.0%} seeds, {self.noise:g} deg, {'held' if self.held else 'start only'}"


def seeded(shares: tuple[float, ...], noises: tuple[float, ...]) -> list[Treatment]:
    """Both engines, held and not."""
    return [Treatment(e, s, n, h) for n, s, h, e in product(noises, shares, (True, False), ENGINES)]


def treatments(size: str, d_min: float) -> list[Treatment]:
    """All that a crystal of this size is given at this resolution."""
    found = [Treatment(e) for e in ENGINES]
    if size == "large":
        return found + seeded(LARGE_SHARES, (0.0,))
    return found + seeded(SHARES, (0.0,)) + (seeded(NOISE_SHARES, NOISES) if d_min in NOISE_D_MIN else [])


def every() -> dict[str, Treatment]:
    """All treatments by name."""
    return {t.name: t for size in SIZES for row in D_MIN for d in row for t in treatments(size, d)}


def crystal(size: str, d_min: float, number: int, seconds: float, seed: int) -> Recipe:
    """Peptide ``number`` of this size, the same at every resolution; large ones have twice the ``seconds``."""
    kinds = SMALL if size == "small" else LARGE
    group, asu = kinds[number % len(kinds)]
    (recipe,) = dense([((d_min, asu * ORDERS[group], group, FLAWS), number)], 0.0, seed, f"seeds, {size}")
    return replace(
        recipe, seconds=seconds * (2 if size == "large" else 1), point=(*recipe.point, ("size", size), ("asu", asu))
    )


def units(crystals: int, seconds: float, seed: int) -> Iterator[Unit]:
    """Every run: all of the first crystal before any of the second."""
    for number, size in product(range(crystals), SIZES):
        for d_min in D_MIN[number % len(D_MIN)]:
            if size == "large" and d_min not in LARGE_D_MIN:
                continue
            recipe = crystal(size, d_min, number, seconds, seed)
            yield from (Unit(recipe, t.name) for t in treatments(size, d_min))
