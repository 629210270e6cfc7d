"""Walks of free atoms from random phases, one after another, as trials of a search beside those of densities."""

from __future__ import annotations

from dataclasses import dataclass

from ml_phaser.phasing.atom_search import ROOMS, Walk
from ml_phaser.phasing.completion import Completer
from ml_phaser.phasing.finish import Solution

METHOD = "free atoms"
SHARE, REFINEMENTS = 0.5, 5  # there are none where so many refinements take more of the time limit
LEAD = (0.5, 100)  # share of the time limit, refinements: so much time they have before densities are tried,
ATOMIC, MANY = 1.05, 85  # A: to which these are as quick; atoms an asymmetric unit: more are rarely found. There
RARELY = 0.2  # densities come first, and walks have this share of their time;
HOPELESS = 250  # and from so much room on there are none


@dataclass(eq=False)
class Walks:
    """``completer`` knows the data and judges; seed : of the walks' phases; lead : seconds of them before all else;
    share : of the time of all else"""

    completer: Completer
    seed: int
    lead: float
    share: float
    walk: Walk | None = None
    trial: int = -1  # of the walk
    begun: int = 0
    spent: float = 0.0  # seconds
    done: bool = False  # it has come to a solution

    @property
    def over(self) -> bool:
        """Whether it is time for another walk."""
        return self.walk is None or self.walk.over or self.done

    @property
    def cycles(self) -> int:
        """Of the walk so far."""
        return 0 if self.walk is None else self.walk.cycles

    def begin(self, trial: int) -> None:
        """Another walk, from other phases and with another number of atoms."""
        self.walk = Walk(self.completer.coarse, (self.seed, self.begun), ROOMS[self.begun % len(ROOMS)])
        self.trial, self.begun, self.done = trial, self.begun + 1, False

    def go_on(self) -> Solution:
        """Some cycles; the best atoms of them, refined, and over if they are right."""
        assert self.walk is not None
        self.walk.block()
        found = self.walk.look()
        if self.completer.certain(found):
            self.done = True
        return self.completer.solution(found, self.trial)


def walks(completer: Completer | None, d_min: float, seconds: float, seed: int) -> Walks | None:
    """For a search of ``seconds`` in data to ``d_min`` A; None where a walk would take too many of them, or lead to
    nothing."""
    if completer is None or completer.room >= HOPELESS or REFINEMENTS * completer.cost > SHARE * seconds:
        return None
    if d_min <= ATOMIC or completer.room > MANY:
        return Walks(completer, seed, 0.0, RARELY)
    return Walks(completer, seed, min(LEAD[0] * seconds, LEAD[1] * completer.cost), 1.0)
