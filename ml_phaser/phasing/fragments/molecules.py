"""Small molecules whole: place, orientation and every bond that turns, all at once, from anywhere.

As in the direct-space methods of powder diffraction (Harris, Tremayne, Lightfoot & Bruce, J. Am. Chem. Soc. 116, 3543,
1994; David, Shankland & Shankland, Chem. Commun. 931, 1998), by basin hopping (Wales & Doye, J. Phys. Chem. A 101,
5111, 1997): many molecules side by side take jumps, each climbs to the nearest optimum of the correlation with E^2, and
a jump counts if that is better, or not much worse.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import gemmi
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from ml_phaser.crystal.peptide import build
from ml_phaser.crystal.rotamers import likely
from ml_phaser.phasing.fragments.pieces import Piece
from ml_phaser.phasing.fragments.refine import Fitted, Stride, about, bent, better, climb
from ml_phaser.phasing.fragments.scene import Scene
from ml_phaser.phasing.fragments.search import PEAKS, Translations

# phi, psi in degrees: where residues are found
SHAPES = ((-120, 130), (-140, 150), (-95, 120), (-62, -42), (-70, 145), (-85, 5), (57, 40))
SPREAD = 15.0  # degrees about those, and about rotamers
SIDE_BY_SIDE, STEPS = 64, 20  # molecules, and steps of a climb
DRAWN = 8  # molecules of which one is begun with, the one that fits best
WIDE = Stride(turn=0.06, move=0.12, bend=0.12, cooling=0.96, stiffness=0.0)
TWICE, ELSEWHERE, TURNED = 0.5, 0.3, 0.5  # of the jumps turn a second bond, go to another place, of these turn first
NEARBY, NEAR = 0.25, 0.8  # of the angles are small, and how small, in radians
LENIENCE = 0.03  # in correlation: a loss of so much is forgiven with probability 1/e
RENEWED, EVERY = 16, 4  # molecules that begin anew, and after how many rounds
LEAD, SETTLED = 0.3, 10  # correlation over the median, and rounds without a gain, that tell the search is done

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Wander:
    """A search for the place, the orientation and the torsions of a molecule."""

    scene: Scene
    molecule: Piece
    translations: Translations
    rng: np.random.Generator

    @classmethod
    def of(cls, scene: Scene, spacegroup: gemmi.SpaceGroup, molecule: Piece, seed: int) -> Wander:
        """In a space group; the same ``seed`` takes the same way."""
        translations = Translations.of(scene, spacegroup, fixed=False)
        return cls(scene, molecule, translations, np.random.default_rng([seed, 3]))

    def run(self, stop: Callable[[], bool]) -> Fitted:
        """The best optimum that each of SIDE_BY_SIDE molecules comes to, until ``stop`` or until one leads and
        stays."""
        now = best = self.anew(SIDE_BY_SIDE)
        top, since, rounds = -1.0, 0, 0
        while not stop() and not (since >= SETTLED and top - float(best.score.median()) > LEAD):
            tried = self.climbed(*self.jumped(now))
            gain = (tried.score - now.score).double().cpu().numpy()
            now = _where(self.tensor(self.rng.random(len(gain)) < np.exp(np.minimum(gain, 0) / LENIENCE)), tried, now)
            best = Fitted(*better((tried.xyz, tried.shift, tried.score), (best.xyz, best.shift, best.score)))
            rounds, since = rounds + 1, since + 1
            if rounds % EVERY == 0:
                worst, rest = best.score.argsort().split([RENEWED, SIDE_BY_SIDE - RENEWED])
                new = self.anew(len(worst))
                now, best = _joined(now.take(rest), new), _joined(best.take(rest), new)
            if float(best.score.max()) > top + 1e-3:
                top, since = float(best.score.max()), 0
        return best

    def tensor(self, a: NDArray) -> torch.Tensor:
        """An array where the scene is, real numbers in single precision."""
        return torch.from_numpy(a.astype(np.float32) if a.dtype == np.float64 else a).to(self.scene.device)

    def climbed(self, xyz: torch.Tensor, shift: torch.Tensor) -> Fitted:
        """The optimum next to each."""
        return climb(self.scene, self.molecule, xyz, shift, STEPS, bend=True, stride=WIDE)

    def anew(self, count: int) -> Fitted:
        """Molecules that fit best of DRAWN times as many in any shape and orientation, each at the optimum next to
        it."""
        xyz = self.tensor(conformers(self.molecule, DRAWN * count, self.rng))
        shift, score = self.placed(xyz)
        chosen = score.argsort(descending=True)[:count]
        return self.climbed(xyz[chosen], shift[chosen])

    @torch.no_grad()
    def placed(self, xyz: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The best place (B, 3), fractions of the cell, of atoms (B, m, 3), and the correlation there (B,)."""
        weight, done = self.tensor(self.molecule.weight), []
        for some in xyz.split(self.scene.together(len(weight))):
            parts = self.scene.parts(some, weight)
            shifts = self.translations.peaks(self.scene, parts, None, PEAKS)
            scores = [self.scene.correlation(self.scene.total(parts, shifts[:, j])) for j in range(shifts.shape[1])]
            score, which = torch.stack(scores, 1).max(1)
            done.append((shifts[torch.arange(len(some)), which], score))
        return torch.cat([d[0] for d in done]), torch.cat([d[1] for d in done])

    def jumped(self, start: Fitted) -> tuple[torch.Tensor, torch.Tensor]:
        """Each molecule with one bond or two turned far, some of them turned as a whole and put elsewhere: atoms
        (B, m, 3) in A about their mean, and the place (B, 3), fractions of the cell."""
        rng, count = self.rng, len(start)
        xyz = self.turned(start.xyz)
        xyz = torch.where(self.tensor(rng.random(count) < TWICE)[:, None, None], self.turned(xyz), xyz)
        middle = xyz.mean(1, keepdim=True)
        xyz, shift = xyz - middle, start.shift + middle[:, 0] @ self.scene.frac.T
        going = rng.random(count) < ELSEWHERE
        axis = rng.normal(size=(count, 3))
        angle = _angles(count, rng) * (going & (rng.random(count) < TURNED))
        xyz = about(self.tensor(axis * (angle / np.linalg.norm(axis, axis=1))[:, None]), xyz)
        gone = self.tensor(np.flatnonzero(going))
        if len(gone):
            shift[gone] = self.placed(xyz[gone])[0]
        return xyz, shift

    def turned(self, xyz: torch.Tensor) -> torch.Tensor:
        """Molecules with one bond each turned, either side of it in place."""
        count, rng, hinges = len(xyz), self.rng, self.molecule.hinges
        chosen = [hinges[i] for i in rng.integers(len(hinges), size=count)]
        rows = torch.arange(count, device=xyz.device)
        pivot, near = (xyz[rows, torch.tensor([getattr(h, end) for h in chosen])] for end in ("far", "near"))
        axis = torch.nn.functional.normalize(pivot - near, dim=-1) * self.tensor(_angles(count, rng))[:, None]
        there = about(axis, xyz - pivot[:, None]) + pivot[:, None]
        moving = np.stack([h.moving for h in chosen]) ^ (rng.random((count, 1)) < 0.5)
        return torch.where(self.tensor(moving)[..., None], there, xyz)


def conformers(molecule: Piece, count: int, rng: np.random.Generator) -> Floats:
    """Molecules (count, m, 3) in A about their mean, turned anyhow: peptides in common shapes and rotamers, the user's
    with every bond turned anyhow."""
    if molecule.given:
        by = torch.from_numpy(rng.uniform(-math.pi, math.pi, (count, len(molecule.hinges))))
        made = bent(torch.from_numpy(molecule.xyz).expand(count, -1, -1), molecule.hinges, by).numpy()
    else:
        made = np.stack([_peptide(molecule.letters, rng) for _ in range(count)])
    turn = Rotation.from_quat(rng.normal(size=(count, 4))).as_matrix()
    return np.asarray(np.einsum("bij,bmj->bmi", turn, made - made.mean(1, keepdims=True)))


def _peptide(sequence: str, rng: np.random.Generator) -> Floats:
    shapes = np.array(SHAPES)[rng.integers(len(SHAPES), size=len(sequence))]
    shapes = shapes + SPREAD * rng.normal(size=shapes.shape)
    rotamers = [likely(letter) for letter in sequence]
    chis = [np.array(r[rng.integers(len(r))]) for r in rotamers]
    chis = [chi + SPREAD * rng.normal(size=len(chi)) for chi in chis]
    pairs = [(float(phi), float(psi)) for phi, psi in shapes]
    return build(sequence, pairs, [chi.tolist() for chi in chis], [180.0] * len(sequence)).xyz


def _angles(count: int, rng: np.random.Generator) -> Floats:
    """From one rotamer to the next, to the opposite side, or to anywhere near; radians."""
    far = rng.choice([2 * math.pi / 3, -2 * math.pi / 3, math.pi], size=count)
    return np.where(rng.random(count) < NEARBY, NEAR * rng.normal(size=count), far)


def _where(taken: torch.Tensor, new: Fitted, old: Fitted) -> Fitted:
    return Fitted(
        torch.where(taken[:, None, None], new.xyz, old.xyz), torch.where(taken[:, None], new.shift, old.shift),
        torch.where(taken, new.score, old.score),
    )  # fmt: skip


def _joined(a: Fitted, b: Fitted) -> Fitted:
    return Fitted(torch.cat([a.xyz, b.xyz]), torch.cat([a.shift, b.shift]), torch.cat([a.score, b.score]))
