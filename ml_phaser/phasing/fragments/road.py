"""The road from pieces to solutions: search, refine, judge, dress, grow, add copies, complete; small molecules whole.

pieces --a quick look, the likeliest first; every pose--> best by E^2 --rigid, then bonds--> no clashes --the network
predicts unseen reflections--> best --side chains? one more residue? another copy?--> judged again --density
modification with the model in view-->
solutions
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import gemmi
import numpy as np
import torch
from numpy.typing import NDArray

from ml_phaser.crystal.agreement import compare
from ml_phaser.phasing.confidence import probability_of_pieces, weight_of_held
from ml_phaser.phasing.fragments.consensus import consensus
from ml_phaser.phasing.fragments.dress import dress
from ml_phaser.phasing.fragments.grow import longer
from ml_phaser.phasing.fragments.joining import Partner, origins, partners
from ml_phaser.phasing.fragments.judge import COMPLETING, Judge
from ml_phaser.phasing.fragments.models import Body, Completed, Complexes, Model, factors, overlap
from ml_phaser.phasing.fragments.molecules import Wander
from ml_phaser.phasing.fragments.pieces import Piece, helices, molecules
from ml_phaser.phasing.fragments.refine import Fitted, climb, refine, scored
from ml_phaser.phasing.fragments.scene import Scene
from ml_phaser.phasing.fragments.search import (
    ALIKE,
    Poses,
    distinct,
    likeliest,
    orientations,
    rescored,
    search,
    wanted,
)

SCOUTS, OUTLINE, SCOUTED = 2, 500, 30  # for a first look: one orientation in so many, reflections, poses refined,
TRIED = 8  # and then with torsions
SEARCHED, HOPEFUL = 100, 40  # poses of a piece refined as rigid bodies, a little and further,
SEARCHED_WIDE = 400  # of small parts of a large whole, on the reflections they were searched on
LIKELIEST, MANY = (0.06, 0.25), (1000, 2500)  # orientations of a small part of a large whole that are tried at first,
# and poses kept of these, up to so many atoms of room and beyond: the more there are, the less the rotation function
# knows of one helix
HUGE, MORE = 1500, 3000  # and poses kept of the others
ALMOST, EQUAL = 1e-5, 1e-8  # difference of their scores below which two poses are one, refined, and as found
ANCHORS, JOINED = 2, 2  # models, those that fit best, that others are joined to, and partners tried at a time,
AGREEING = 5.5  # standard deviations that they must agree by
AHEAD = 0.03  # in ``Road.worth``, of all other maps, from which on a model is completed and gone on from at once,
SURE = 0.95  # and probability,
GOOD = 0.5  # and correlation of reflections held out, from which on nothing is added to a model
BENT, JUDGED = 24, 12  # with torsions, and judged
BENT_WIDE = 8  # of small parts of a large whole
EAGER = 3  # of which before other pieces have been searched for
HURRIED = 2  # poses judged, and models completed, when the time is up and none led onward
REGISTERS = 3  # places in the sequence, of all that a chain can have, whose side chains are judged
OVERLAP, CLASH = 1.6, 2.4  # A: contacts below are refused before and after refinement,
CLASH_DRESSED = 1.9  # with side chains, which stand where their rotamers are, not where they keep clear of each other
FIRST_STEPS, RIGID_STEPS, BENDING_STEPS, GROWING_STEPS = 8, 17, 50, 25
BEST = 3  # models that get another copy and grow
LIKELY = 5  # ways to grow that are judged
GAIN = 0.01  # in judgement that a longer chain must bring
FINALISTS, NEAR = 6, 0.08  # models completed, and how much less the judge may think of them than of the best
SECONDED, MEAN_OF = 2, 6  # more models like the best that are completed, and maps that the mean is of,
PEER = 0.04  # none of which has a merit so much less
TWIN = 0.95  # overlap from which on two poses are one
STRAYS = 3  # random places that a model without a rival is compared with
SAME = 0.6  # map correlation from which on two models are one solution

# of the time, until pieces are looked at, until what is seen of them is tried, until they are searched for, and until
# models are added to
GLANCING, TRYING, SEARCHING, IMPROVING = 0.3, 0.4, 0.6, 0.85

Floats = NDArray[np.float64]
Late = Callable[[float], bool]


@dataclass(eq=False)
class Road:
    """All that a search for fragments needs: see the module's picture.

    wide : the reflections that poses are searched on first, where a piece is a small part of the whole and every
        reflection is needed to tell the right ones; of ``scene``, none where it is no larger
    room : atoms the asymmetric unit has place for; sequences : of the chains in it, where they are known; seed : of
        what is left to chance; strays : what the judge says of a piece in random places, once that was asked;
        finished : models that were completed; searches : poses of pieces by themselves, in the likeliest
        orientations or the others; likely : all orientations of a piece, the likeliest first
    pools : of small parts of a large whole, pieces and all their poses that were found, which may agree with each
        other; met : how many of them were tried with a model
    onward : goes on, by other means, from a model that is ahead, and says whether that led to a good map beyond doubt;
        gone : from which it did, and what it said
    """

    scene: Scene
    judge: Judge
    spacegroup: gemmi.SpaceGroup
    pieces: Sequence[Piece]
    room: int
    d_min: float
    sequences: Sequence[str] = ()
    seed: int = 0
    wide: Scene | None = None
    models: list[Model] = field(default_factory=list)
    strays: list[float] = field(default_factory=list)
    finished: dict[Model, Completed] = field(default_factory=dict)
    searches: dict[tuple[Piece, bool], Fitted] = field(default_factory=dict)
    likely: dict[Piece, Floats] = field(default_factory=dict)
    onward: Callable[[Completed], bool] | None = None
    gone: dict[Model, bool] = field(default_factory=dict)
    pools: list[tuple[Piece, Fitted]] = field(default_factory=list)
    met: dict[Model, int] = field(default_factory=dict)

    def travel(
        self, seconds: float, tell: Callable[[float], None], now: Callable[[], float] = time.monotonic
    ) -> list[Completed]:
        """Look at small molecules whole, then at piece after piece, for so long; the best models completed, best first.

        A quick look at every piece tells which to search for first. After the search comes the time for side chains,
        for growing and for further copies, then for completing.
        """
        began = now()

        def late(share: float = IMPROVING) -> bool:
            return now() - began > share * seconds

        for molecule in molecules(self.pieces, self.sequences, self.room):
            self.models += self.whole(molecule, late)
            tell(min(SEARCHING, (now() - began) / seconds))

        def told(done: float) -> None:
            tell(max(done, min(1.0, (now() - began) / seconds)))

        some = len(self.pieces) > 1 and self.wide is None  # few reflections say nothing of a small part
        self.look_for(self.promising(late, told) if some else self.pieces, late, told)
        before, after = ([self.dress], [self.dress_grown]) if self.sequences else ([], [])
        between = (self.grow, self.add_copies) if self.wide is None else (self.add_copies, self.grow)
        for step in (*before, *between, *after):
            for model in self.ranked()[:BEST]:
                if not late() and not self.sure():
                    step(model, late)
                    tell(min(1.0, (now() - began) / seconds))
        ranked, sure = self.ranked(), self.sure()
        done: list[Completed] = []
        least = 1 if self.gone else HURRIED
        for model in ranked[:FINALISTS]:
            if done and sure:
                break
            if self.worth(model) > self.worth(ranked[0]) - NEAR and (len(done) < least or not late(1.0)):
                done.append(self.completed(model))
        done.sort(key=lambda c: -c.merit)
        done = self.reinforced(done, ranked[FINALISTS:], lambda: late(1.0))
        each = (now() - began) / max(1, len(done))
        return [replace(c, lead=self.lead(c, done, ranked), seconds=each) for c in done]

    def reinforced(self, done: list[Completed], more: Sequence[Model], late: Callable[[], bool]) -> list[Completed]:
        """The best completed model with the mean of its map and of those that agree with it and have nearly its merit,
        among all completed and, while there is time, of ``more`` models like it; unless that predicts the reflections
        held out worse by more than their luck. Its merit is not less for it: the model is the same. The others as they
        are."""
        if not done:
            return done
        best, rest = done[0], list(done[1:])
        for model in more:
            if late() or len(rest) >= FINALISTS + SECONDED:
                break
            if self.alike(model, best.model):
                rest.append(self.completed(model))
        p = self.judge.problem
        peers = (c.f for c in rest if c.merit > best.merit - PEER)
        f, count = consensus(p, best.f, peers, MEAN_OF)
        half = p.scatter(f)
        score, held = float(p.scores(half)[0]), int(p.held.sum())
        if count == 1 or score < best.score - 1 / math.sqrt(max(1, held)):
            return done
        model = replace(best.model, maps=count)
        merit = max(best.merit, self.merit(model, score))
        return [Completed(model, f, score, float(p.residuals(half)[0]), merit), *done[1:]]

    def completed(self, model: Model) -> Completed:
        """Density modification of a model, once."""
        if model not in self.finished:
            f, score, residual = self.judge.complete(model.f, COMPLETING)
            self.finished[model] = Completed(model, f, score, residual, self.merit(model, score))
        return self.finished[model]

    def sure(self) -> bool:
        """Whether the best model of a small part of a large whole leads to a good map, right beyond doubt."""
        if self.wide is None:
            return False
        if any(self.gone.values()):
            return True
        ranked = self.ranked()
        if not ranked or not self.ahead(ranked):
            return False
        best, held = self.completed(ranked[0]), int(self.judge.problem.held.sum())
        best = replace(best, lead=self.lead(best, [best], ranked))
        likely = probability_of_pieces(best.merit, best.lead, held) >= SURE
        return (likely and best.score >= GOOD) or self.went(best)

    def went(self, best: Completed) -> bool:
        """Whether going on from a model led to a good map; not tried again from one like it with as many bodies."""
        model, bodies = best.model, len(best.model.bodies)
        if self.onward is None or any(len(m.bodies) >= bodies and self.alike(m, model) for m in self.gone):
            return False
        self.gone[model] = self.onward(best)
        return self.gone[model]

    def ahead(self, ranked: Sequence[Model]) -> bool:
        """Whether the judge thinks far more of the first model than of any other map, or of random places."""
        best = ranked[0]
        other = next((m for m in ranked if not self.alike(m, best)), None)
        if other is None:
            return best.judged - self.by_chance(best.bodies[0].piece) > AHEAD
        return self.worth(best) - self.worth(other) > AHEAD

    def merit(self, model: Model, score: float) -> float:
        """What reflections left out of passes say of a model, and those held out of everything of its density."""
        held = int(self.judge.problem.held.sum())
        return model.judged + weight_of_held(held, len(self.judge.problem.held) - held) * (score - model.judged)

    def lead(self, completed: Completed, done: Sequence[Completed], ranked: Sequence[Model]) -> float:
        """Over the best rival, which leads to another map, the only one it has, or the best of some random places."""
        rivals = [c.merit for c in done if not (self.alike(c.model, completed.model) or self.one(c.f, completed.f))]
        if rivals:
            return completed.merit - max(rivals)
        other = next((m for m in ranked if not self.alike(m, completed.model)), None)
        if other is not None:
            return completed.merit - other.judged
        return completed.merit - self.by_chance(completed.model.bodies[0].piece)

    def by_chance(self, piece: Piece) -> float:
        """The best that the judge says of a piece in random places; the same for all: where there is no rival they are
        much the same."""
        if not self.strays:
            self.strays = self.astray(piece)
        return max(self.strays)

    def astray(self, piece: Piece) -> list[float]:
        """What the judge says of a piece in random places."""
        rng = np.random.default_rng(self.seed)
        turns = torch.from_numpy(orientations(STRAYS)).float().to(self.scene.device)
        atoms = torch.from_numpy(piece.xyz).float().to(self.scene.device)
        shifts = torch.from_numpy(rng.random((STRAYS, 3))).float().to(self.scene.device) @ self.scene.orth.T
        places = torch.einsum("bij,mj->bmi", turns, atoms) + shifts[:, None]
        return [self.judge.score(self.model_factors((Body(piece, xyz),))) for xyz in places]

    def alike(self, a: Model, b: Model) -> bool:
        """Whether two models give one map, whatever its origin."""
        return a is b or self.one(a.f, b.f)

    def one(self, a: Complexes, b: Complexes) -> bool:
        """Whether the phases of structure factors (n,) give one map, whatever its origin."""
        p = self.judge.problem
        first, second = (p.amplitude * np.exp(1j * np.angle(f)) for f in (a, b))
        return compare(p.hkl, first, second, p.cell, p.spacegroup, repeats=0).map_cc >= SAME

    def worth(self, model: Model) -> float:
        """What models are ranked by: what the judge says, and of small parts of a large whole, of which it can say
        little, the fit."""
        return model.judged if self.wide is None else model.judged + model.fit

    def ranked(self) -> list[Model]:
        """Models, best first, each kind of map once."""
        kept: list[Model] = []
        for model in sorted(self.models, key=lambda m: -self.worth(m)):
            if all(abs(overlap(model.f, k.f)) < TWIN for k in kept):
                kept.append(model)
        return kept

    def whole(self, molecule: Piece, late: Callable[[], bool]) -> list[Model]:
        """What a search for the whole molecule ends with, refined and judged."""
        found = Wander.of(self.scene, self.spacegroup, molecule, self.seed).run(late)
        fitted = climb(self.scene, molecule, found.xyz, found.shift, BENDING_STEPS, bend=True)
        return self.judge_all(molecule, fitted, (), JUDGED)

    def promising(self, late: Late, tell: Callable[[float], None]) -> list[Piece]:
        """The pieces in the order in which they are worth searching for: by what the judge says of the best pose of a
        quick look, then, where there was no time for that, by its fit."""
        seen: dict[int, Fitted] = {}
        for i, piece in enumerate(self.pieces):
            if late(GLANCING):
                break
            seen[i] = self.glance(piece)
            tell(0.0)
        fits = {i: float(fitted.score.max()) if len(fitted) else -1.0 for i, fitted in seen.items()}
        judged: dict[int, float] = {}
        for i in sorted(seen, key=lambda i: -fits[i]):
            if late(TRYING):
                break
            first = self.best_of(seen[i], TRIED)
            fitted = climb(self.scene, self.pieces[i], first.xyz, first.shift, BENDING_STEPS, bend=True)
            found = self.judge_all(self.pieces[i], fitted, (), 1)
            self.models += found
            judged[i] = max((m.judged for m in found), default=-1.0)
            tell(0.0)
        rank = sorted(range(len(self.pieces)), key=lambda i: (-judged.get(i, -2.0), -fits.get(i, -2.0)))
        return [self.pieces[i] for i in rank]

    def glance(self, piece: Piece) -> Fitted:
        """The best poses of few orientations of a piece, a little refined, on the reflections that tell most."""
        poses = search(self.outline, self.spacegroup, piece, self.turns(piece)[::SCOUTS], 2 * SCOUTED)
        poses = self.free(piece, poses, (), SCOUTED)
        return refine(self.outline, piece, poses, FIRST_STEPS, bend=False)

    def look_for(self, pieces: Sequence[Piece], late: Late, tell: Callable[[float], None]) -> None:
        """Search for piece after piece and judge the poses that fit best, of small parts of a large whole, until a map
        is sure, first those in the likeliest orientations, then, if none is ahead, in the others; then, in the same
        order, more of them."""
        searched: list[tuple[Piece, Fitted, list[Model]]] = []
        passes = [(deep, piece) for deep in ((False,) if self.wide is None else (False, True)) for piece in pieces]
        for i, (deep, piece) in enumerate(passes):
            if self.models and (late(SEARCHING) or (deep and self.ahead(self.ranked()))):
                return
            fitted = self.fitted(piece, (), lambda: late(SEARCHING), deep=deep)
            found = self.judge_all(piece, fitted, (), HURRIED if late(SEARCHING) else EAGER)
            searched.append((piece, fitted, found))
            self.models += found
            self.join(lambda: late(SEARCHING))
            tell((i + 1) / len(passes) * SEARCHING)
            if self.sure():
                return
        for piece, fitted, found in searched:
            if late(SEARCHING):
                return
            self.models += self.judge_all(piece, fitted, (), JUDGED, found)

    @cached_property
    def outline(self) -> Scene:
        """The reflections of a first look."""
        return self.scene.outline(OUTLINE)

    def turns(self, piece: Piece) -> Floats:
        """Orientations (k, 3, 3) of a piece that are worth trying."""
        fine = self.wide is not None
        return orientations(wanted(piece.radius, self.d_min, len(self.scene.rot), fine=fine))

    def free(self, piece: Piece, poses: Poses, fixed: Sequence[Body], most: int) -> Poses:
        """The first poses that do not overlap with copies of themselves and what is in place."""
        atoms = torch.from_numpy(piece.xyz).float().to(self.scene.device)
        there = torch.einsum("bij,mj->bmi", poses.turn, atoms)
        return poses.take((self.contact(there, poses.shift, fixed) > OVERLAP).nonzero()[:, 0][:most])

    def placed(
        self, piece: Piece, fixed: tuple[Body, ...], stop: Callable[[], bool], *, deep: bool = False
    ) -> list[Model]:
        """The best poses of a piece beside what is in place, refined and judged."""
        fitted = self.fitted(piece, fixed, stop, deep=deep)
        return self.judge_all(piece, fitted, fixed, HURRIED if stop() else JUDGED if self.wide is None else EAGER)

    def fitted(self, piece: Piece, fixed: tuple[Body, ...], stop: Callable[[], bool], *, deep: bool = False) -> Fitted:
        """The best poses of a piece beside what is in place, refined; with torsions while there is time. By itself a
        piece is searched for once. ``deep`` : in the orientations that are left out at first"""
        if fixed:
            return self.refined(piece, fixed, stop, deep)
        if (piece, deep) not in self.searches:
            self.searches[piece, deep] = self.refined(piece, fixed, stop, deep)
        return self.searches[piece, deep]

    def refined(self, piece: Piece, fixed: tuple[Body, ...], stop: Callable[[], bool], deep: bool) -> Fitted:
        """The best poses of a piece beside what is in place, searched for and refined."""
        known = self.fixed(fixed)
        near, there = self.near(known)
        many = SEARCHED if self.wide is None else SEARCHED_WIDE
        found = self.searched(piece, known, stop, deep)
        poses = self.free(piece, found, fixed, many if fixed or self.wide is None else len(found))
        first = poses.take(torch.arange(min(many, len(poses)), device=poses.score.device))
        fitted = refine(near, piece, first, FIRST_STEPS, bend=False, fixed=there)
        fitted = self.on_all(piece, fitted, known)
        if not fixed and self.wide is not None:
            self.pools.append((piece, with_unrefined(piece, fitted, poses)))
        fitted = self.best_of(fitted, HOPEFUL)
        fitted = climb(near, piece, fitted.xyz, fitted.shift, RIGID_STEPS, bend=False, fixed=there)
        fitted = self.best_of(self.on_all(piece, fitted, known), BENT if self.wide is None else BENT_WIDE)
        if stop():
            return fitted
        return climb(self.scene, piece, fitted.xyz, fitted.shift, BENDING_STEPS, bend=True, fixed=known)

    def near(self, known: torch.Tensor | None) -> tuple[Scene, torch.Tensor | None]:
        """The reflections that poses are searched and first refined on, and structure factors (n,) there of what has
        them, ``known``, on all."""
        if self.wide is None or known is None:
            return self.wide or self.scene, known
        return self.wide, known[np.searchsorted(self.scene.rows, self.wide.rows)]

    def on_all(self, piece: Piece, fitted: Fitted, known: torch.Tensor | None) -> Fitted:
        """Poses with their fit to all reflections."""
        return fitted if self.wide is None else scored(self.scene, piece, fitted, known)

    def searched(self, piece: Piece, known: torch.Tensor | None, stop: Callable[[], bool], deep: bool) -> Poses:
        """The best poses of a piece beside structure factors (n,) that are known: of many that agree with some of the
        reflections, where it is a small part, those that agree with all. The likeliest orientations, or the others."""
        near, there = self.near(known)
        if self.wide is None:
            return search(near, self.spacegroup, piece, self.turns(piece), 2 * SEARCHED, there, stop)
        if piece not in self.likely:
            self.likely[piece] = likeliest(near, piece, self.turns(piece), stop)
        turns = self.likely[piece]
        huge = self.room > HUGE
        first = max(1, round(LIKELIEST[huge] * len(turns)))
        turns, most = (turns[first:], MORE) if deep else (turns[:first], MANY[huge])
        poses = search(near, self.spacegroup, piece, turns, most, there, stop, EQUAL, apart=True)
        return rescored(self.scene, piece, poses, known)

    def best_of(self, fitted: Fitted, most: int) -> Fitted:
        """The best by fit, each optimum once."""
        return best_of(fitted, most, ALIKE if self.wide is None else ALMOST)

    def dress(self, model: Model, late: Callable[[], bool]) -> None:
        """Give the bodies of a model the side chains of the sequence, one body after the other, where the density that
        the network makes of it suggests them and the judge approves."""
        for body in model.bodies:
            if late() or not body.piece.grows:
                continue
            found = self.dressed(model, body, tuple(b for b in model.bodies if b is not body))
            self.models += found
            best = max(found, key=lambda m: m.judged, default=model)
            model = best if best.judged > model.judged else model

    def dress_grown(self, model: Model, late: Callable[[], bool]) -> None:
        """Side chains for a model that has become longer, or got copies, as poly-alanine."""
        if any(body.piece.grows and not body.piece.sequence for body in model.bodies):
            self.dress(model, late)

    def dressed(self, model: Model, body: Body, rest: tuple[Body, ...]) -> list[Model]:
        """A body of a model with side chains in its likeliest places in the sequences, as built and refined, judged."""
        known, here = self.fixed(rest), torch.zeros((1, 3), device=self.scene.device)

        def contact(xyz: torch.Tensor) -> torch.Tensor:
            return self.contact(xyz, here.expand(len(xyz), -1), rest)

        target = self.phased(self.judge.complete(model.f, COMPLETING)[0])
        tried = dress(
            self.scene, body.piece, body.xyz.double().cpu().numpy(), self.sequences, REGISTERS, target, known, contact,
            OVERLAP,
        )  # fmt: skip
        found: list[Model] = []
        for d in tried:
            start = torch.from_numpy(d.xyz).to(body.xyz)[None]
            fitted = climb(self.scene, d.piece, start, here, BENDING_STEPS, bend=True, fixed=known)
            for f in (fitted, Fitted(start, here, fitted.score)):
                found += self.judge_all(d.piece, f, rest, 1)
        return found

    def phased(self, f: Complexes) -> torch.Tensor:
        """Measured E with the phases of structure factors (n,) of the judge's, on the scene's reflections."""
        place = {tuple(h): i for i, h in enumerate(self.judge.problem.hkl.tolist())}
        rows = [place[tuple(h)] for h in self.scene.turned[:, 0].round().long().tolist()]
        target = np.sqrt(self.scene.value.clamp_min(0).cpu().numpy()) * np.exp(1j * np.angle(f[rows]))
        return torch.from_numpy(target.astype(np.complex64)).to(self.scene.device) * self.scene.epsilon.sqrt()

    def judge_all(
        self, piece: Piece, fitted: Fitted, fixed: tuple[Body, ...], most: int, before: Sequence[Model] = ()
    ) -> list[Model]:
        """Models of the poses that clash with nothing, each kind of map once, the ``most`` that fit best; without
        those judged ``before``."""
        clash = CLASH_DRESSED if piece.sequence or piece.given else CLASH
        fitted = fitted.take((self.contact(fitted.xyz, fitted.shift, fixed) > clash).nonzero()[:, 0])
        fitted = self.best_of(fitted, len(fitted))
        found = list(before)
        for xyz, shift, fit in zip(fitted.xyz, fitted.shift, fitted.score, strict=True):
            if len(found) >= most:
                break
            bodies = (*fixed, Body(piece, xyz + shift @ self.scene.orth.T))
            f = self.model_factors(bodies)
            if all(abs(overlap(f, m.f)) < TWIN for m in found):
                found.append(Model(bodies, float(fit), self.judge.score(f), f))
        return found[len(before) :]

    def join(self, late: Callable[[], bool]) -> None:
        """Join to each of the models that fit best, while there is time, all poses found that agree with it; each is
        tried but once."""
        singles = [m for m in self.models if len(m.bodies) == 1] if self.pools else []
        for model in sorted(singles, key=lambda m: -m.fit)[:ANCHORS]:
            better: Model | None = model
            while better is not None and not late():
                better = self.joined(better)

    def joined(self, model: Model) -> Model | None:
        """The model with the best partner, refined, if one agrees beyond chance and the judge approves."""
        known = self.fixed(model.bodies)
        assert known is not None
        found: list[Model] = []
        for partner in self.partners_of(model, known):
            fitted = climb(
                self.scene, partner.piece, partner.xyz, partner.shift, BENDING_STEPS, bend=True, fixed=known
            )  # fmt: skip
            found += self.judge_all(partner.piece, fitted, model.bodies, 1)
        return self.approved(found, model)

    def partners_of(self, model: Model, known: torch.Tensor) -> list[Partner]:
        """The few, of those not tried with a model, that agree best with it and do not overlap with it."""
        new, kept = self.pools[self.met.get(model, 0) :], []
        self.met[model] = len(self.pools)
        for partner in partners(self.scene, known, new, self.shifts, AGREEING):
            room = model.atoms + len(partner.piece) <= self.room
            if room and float(self.contact(partner.xyz, partner.shift, model.bodies)[0]) > OVERLAP:
                kept.append(partner)
            if len(kept) == JOINED:
                break
        return kept

    @cached_property
    def shifts(self) -> Floats:
        """Of the origin, that poses found by themselves may have between them."""
        return origins(self.spacegroup, self.judge.problem.cell, self.d_min)

    def approved(self, found: list[Model], model: Model) -> Model | None:
        """The best of models that add to ``model``, if the judge approves: the fit is better for any."""
        best = max(found, key=lambda m: m.judged, default=None)
        if best is None or best.judged < model.judged + GAIN:
            return None
        self.models += found
        return best

    def add_copies(self, model: Model, late: Callable[[], bool]) -> None:
        """Place the first piece, as it has become, again, and in a large whole helices, as long as there is room and
        the judge approves; in other orientations where the likeliest lead to none at all."""
        alone, pieces = model, self.further(model)
        for deep in (False, True) if self.wide is not None else (False,):
            for piece in pieces:
                while not late() and not self.sure() and model.atoms + len(piece) <= self.room:
                    better = self.another(piece, model, late, deep)
                    if better is None:
                        break
                    model = better
            if model is not alone:
                return

    def another(self, piece: Piece, model: Model, late: Callable[[], bool], deep: bool) -> Model | None:
        """The model with one more piece, if the judge approves."""
        return self.approved(self.placed(piece, model.bodies, late, deep=deep), model)

    def further(self, model: Model) -> list[Piece]:
        """What to place beside the first body of a model: helices no longer than it, the longest first."""
        first = model.bodies[0]
        if self.wide is None or not first.piece.grows:
            return [first.moulded]
        shorter = (p for p in helices(self.room) if len(p) <= len(first.piece))
        return sorted(shorter, key=lambda p: -len(p)) or [first.moulded]

    def grow(self, model: Model, late: Callable[[], bool]) -> None:
        """Lengthen the bodies in turn, as long as there is room and the judge approves."""
        longest = True
        while longest and not late():
            longest = False
            for i, body in enumerate(model.bodies):
                if late() or not body.piece.grows:
                    continue
                rest = (*model.bodies[:i], *model.bodies[i + 1 :])
                found = self.lengthened(body, rest)
                best = max(found, key=lambda m: m.judged, default=None)
                if best is not None and best.judged > model.judged + GAIN:
                    self.models.append(best)
                    model, longest = best, True
                    break

    def lengthened(self, body: Body, rest: tuple[Body, ...]) -> list[Model]:
        """Models with one residue more at either end of a body, refined and judged, where there is room."""
        known, others = self.fixed(rest), sum(len(b.piece) for b in rest)
        found: list[Model] = []
        for piece, xyz in longer(body.piece, body.xyz.double().cpu().numpy()):
            start = torch.from_numpy(xyz).to(body.xyz)
            start = start[self.contact(start, torch.zeros_like(start[:, 0]), rest) > OVERLAP]
            if others + len(piece) <= self.room and len(start):
                shift = torch.zeros_like(start[:, 0])
                fitted = climb(self.scene, piece, start, shift, GROWING_STEPS, bend=True, fixed=known)
                found += self.judge_all(piece, fitted, rest, LIKELY)
        return found

    def fixed(self, bodies: Sequence[Body]) -> torch.Tensor | None:
        """Structure factors (n,) in electrons of what is in place, on the scene's reflections."""
        if not bodies:
            return None
        total = torch.zeros(len(self.scene.rows), dtype=torch.complex64, device=self.scene.device)
        for body in bodies:
            weight = torch.from_numpy(body.piece.weight).float().to(self.scene.device)
            total = total + self.scene.structure(body.xyz[None], weight)[0]
        return total

    def contact(self, xyz: torch.Tensor, shift: torch.Tensor, fixed: Sequence[Body]) -> torch.Tensor:
        """Shortest contact (B,) in A of poses with copies of themselves and with what is in place."""
        if not fixed:
            return self.scene.closest(xyz, shift)
        others = torch.cat([b.xyz for b in fixed])
        move = shift @ self.scene.orth.T
        both = torch.cat([others.expand(len(xyz), -1, -1), xyz + move[:, None]], dim=1)
        return self.scene.closest(both, torch.zeros_like(shift), among=len(others))

    def model_factors(self, bodies: Sequence[Body]) -> Complexes:
        """Structure factors (n,) of bodies on the judge's reflections."""
        return factors(self.scene, bodies, self.judge.problem.hkl, self.judge.problem.cell)


def best_of(fitted: Fitted, most: int, alike: float = ALIKE) -> Fitted:
    """The best by fit; those whose scores differ by less than ``alike`` are one optimum."""
    order = fitted.score.argsort(descending=True)
    return fitted.take(order[distinct(fitted.score[order], alike)][:most])


def with_unrefined(piece: Piece, fitted: Fitted, poses: Poses) -> Fitted:
    """Refined poses, and those of ``poses`` after as many as were refined, as they were found."""
    rest = poses.take(torch.arange(len(fitted), len(poses), device=poses.score.device))
    atoms = torch.from_numpy(piece.xyz).float().to(rest.turn.device)
    xyz = torch.einsum("bij,mj->bmi", rest.turn, atoms)
    parts = ((fitted.xyz, xyz), (fitted.shift, rest.shift), (fitted.score, rest.score))
    return Fitted(*(torch.cat(pair) for pair in parts))
