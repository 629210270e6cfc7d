"""Where atoms are seen, phases of one placed helix grow into those of all by themselves: no judge, no network.

Which of the poses that fit best is right is seen from what becomes of it: relaxed reflections lead from a part of some
hundredth of all scattering to the whole structure, or nowhere (Yao, Woolfson and others, Acta Cryst. D58, 1774, 2002,
and Rodriguez and others, Nat. Methods 6, 651, 2009, for other density modifications).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import product

from ml_phaser.phasing.completion import LastTouch
from ml_phaser.phasing.finish import Finisher
from ml_phaser.phasing.fragments.models import Body, Complexes, factors, overlap
from ml_phaser.phasing.fragments.pieces import Piece
from ml_phaser.phasing.fragments.road import TWIN, Road
from ml_phaser.phasing.growth import Grower, Growth
from ml_phaser.phasing.search import Hunt

METHOD = "placed pieces that grow"
GROWN = 8  # poses of a piece that are grown
SEARCHING = 0.6  # of the time, in which poses are looked for


def from_poses(
    hunt: Hunt, road: Road, growth: Growth, finishers: Sequence[Finisher], n: int, seed: int, seconds: float,
    tell: Callable[[float], None], now: Callable[[], float] = time.monotonic, polisher: LastTouch | None = None,
) -> None:  # fmt: skip
    """Place piece after piece and let those that fit best grow, for so many seconds or until a solution convinces;
    first in the likeliest orientations, then in all others. Random phases go the same way in the end, where that can
    tell a solution that does not convince.

    Parameters as in ``solutions.from_fragments``; growth : on data that show atoms
    """
    began = now()
    grower = Grower(hunt, growth, finishers, n, seed, now, polisher)

    def late(share: float = 1.0) -> bool:
        tell(min(1.0, (now() - began) / seconds))
        return now() - began > share * seconds

    def grow(piece: Piece, deep: bool) -> None:
        for f in poses(road, growth, piece, lambda: late(SEARCHING), deep):
            grower.turned(grower.begun(f"{METHOD}, {piece.label}", growth.weighted(f)))
            if late() or hunt.convinced:
                return

    for deep, piece in product((False, True), road.pieces):
        if late(SEARCHING) or hunt.convinced:
            break
        grow(piece, deep)
    grower.compare()


def poses(road: Road, growth: Growth, piece: Piece, stop: Callable[[], bool], deep: bool) -> list[Complexes]:
    """Structure factors on the reflections of ``growth`` of the poses of a piece that fit best, each map once."""
    fitted, p = road.best_of(road.fitted(piece, (), stop, deep=deep), GROWN * 3), growth.problem
    kept: list[Complexes] = []
    for xyz, shift in zip(fitted.xyz, fitted.shift, strict=True):
        f = factors(road.scene, (Body(piece, xyz + shift @ road.scene.orth.T),), p.hkl, p.cell)
        if all(abs(overlap(f, k)) < TWIN for k in kept):
            kept.append(f)
    return kept[:GROWN]
