"""Measured E^2 and the symmetry they belong to, as tensors: what poses of a piece are scored against.

A piece at its own place has the structure factors G_s(h) = sum_j z_j exp(2 pi i h R_s x_j) under operator s; shifted by
x it contributes G_s(h) exp(2 pi i h R_s x) exp(2 pi i h t_s) (International Tables B, 1.4.2). Rotation is in G,
translation in a factor: that makes searching translations cheap (Navaza & Vernoslova, Acta Cryst. A51, 445, 1995).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from ml_phaser.crystal.agreement import multiplicity
from ml_phaser.crystal.normalise import Normalised
from ml_phaser.crystal.reflections import Amplitudes
from ml_phaser.phasing.fragments.waves import Sums, Waves

LARGEST = 12.0  # E^2 counted as no more: one reflection must not decide
NUMBERS = 2**22  # of waves and structure factors held at once,
PAIRS = 2**23  # and of atoms with images of others
SOLVENT, SOLVENT_B = 0.95, 150.0  # of the density of a protein is missing in what it is surrounded by; A^2
CORNERS = 13  # points along each edge of a cell, to see which images of an atom can be near


@dataclass(frozen=True, eq=False)
class Scene:
    """Reflections and operators.

    rows : of the data, (n,); turned : (n, S, 3) h R_s; phasor : (n, S) exp(2 pi i h.t_s); value : (n,) measured E^2
    weight : (n,) sums to 1; epsilon : (n,)
    frac, orth : (3, 3) A to fractions of the cell and back; rot (S, 3, 3), tran (S, 3) : operators on fractions, all
        translations of centred lattices included in ``images``; images : (k, 3) translations
    """

    rows: NDArray[np.int64]
    turned: torch.Tensor
    phasor: torch.Tensor
    value: torch.Tensor
    weight: torch.Tensor
    epsilon: torch.Tensor
    frac: torch.Tensor
    orth: torch.Tensor
    rot: torch.Tensor
    tran: torch.Tensor
    images: torch.Tensor

    @classmethod
    def of(
        cls, data: Amplitudes, normalised: Normalised, rows: NDArray[np.int64], device: str = "cpu", *,
        wet: bool = False,
    ) -> Scene:  # fmt: skip
        """The scene of some reflections. ``wet`` : there is solvent between the molecules, of which a piece knows
        nothing, so that low orders count less (Babinet's principle: Tronrud, J. Appl. Cryst. 30, 1997, 243)."""
        ops = data.spacegroup.operations()
        rot = np.array([np.array(op.rot) / op.DEN for op in ops.sym_ops])
        tran = np.array([np.array(op.tran) / op.DEN for op in ops.sym_ops])
        hkl = data.hkl[rows]
        weight = multiplicity(hkl, data.spacegroup)
        if wet:
            weight = weight * (1 - SOLVENT * np.exp(-SOLVENT_B / (4 * data.d[rows] ** 2))) ** 2
        neighbours = np.array([(i, j, k) for i in (-1, 0, 1) for j in (-1, 0, 1) for k in (-1, 0, 1)], dtype=float)
        centring = np.array(ops.cen_ops, dtype=float) / ops.sym_ops[0].DEN
        images = (neighbours[:, None] + centring).reshape(-1, 3)
        epsilon = data.epsilon[rows] / len(centring)  # what the operators of the primitive cell alone give

        def tensor(a: NDArray) -> torch.Tensor:
            return torch.from_numpy(np.ascontiguousarray(a, dtype=np.float32)).to(device)

        phasor = torch.from_numpy(np.exp(2j * np.pi * hkl @ tran.T).astype(np.complex64)).to(device)
        return cls(
            rows, tensor(np.einsum("ni,sij->nsj", hkl, rot)), phasor, tensor(normalised.e2[rows].clip(max=LARGEST)),
            tensor(weight / weight.sum()), tensor(epsilon), tensor(np.array(data.cell.frac.mat)),
            tensor(np.array(data.cell.orth.mat)), tensor(rot), tensor(tran), tensor(images),
        )  # fmt: skip

    def outline(self, most: int) -> Scene:
        """The scene of the reflections that tell most of a pose, those whose E^2 is furthest from 1."""
        told = self.weight * (self.value - 1).abs()
        some = told.topk(min(most, len(told))).indices.sort().values
        weight = self.weight[some]
        return replace(
            self, rows=self.rows[some.cpu().numpy()], turned=self.turned[some], phasor=self.phasor[some],
            value=self.value[some], weight=weight / weight.sum(), epsilon=self.epsilon[some],
        )  # fmt: skip

    @property
    def device(self) -> torch.device:
        return self.value.device

    def together(self, atoms: int) -> int:
        """Poses of so many atoms to calculate at once."""
        rows, columns = len(self.waves.rows), len(self.waves.columns)
        return max(1, NUMBERS // (rows * (atoms + columns) + self.phasor.numel()))

    def parts(self, xyz: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """G (B, n, S) of atoms (B, m, 3) in A with scattering powers (m,)."""
        found: torch.Tensor = Sums.apply(xyz @ self.frac.T, self.waves, weight)
        return found.unflatten(1, self.phasor.shape)

    @cached_property
    def waves(self) -> Waves:
        """Of h R_s."""
        return Waves.of(self.turned.cpu().numpy().round().astype(np.int64).reshape(-1, 3), self.device)

    def total(self, parts: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
        """F (B, n) of parts (B, n, S) moved by ``shift`` (B, 3), fractions of the cell."""
        angle = (2 * math.pi) * torch.einsum("nsi,bi->bns", self.turned, shift)
        return (parts * self.phasor * torch.polar(torch.ones_like(angle), angle)).sum(-1)

    def structure(self, xyz: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """F (B, n) of atoms (B, m, 3) in A where they are."""
        return self.total(self.parts(xyz, weight), torch.zeros_like(xyz[:, 0]))

    @torch.no_grad()
    def fits(
        self, xyz: torch.Tensor, shift: torch.Tensor, weight: torch.Tensor, fixed: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Correlation (B,) with E^2 of atoms (B, m, 3) in A moved by ``shift`` (B, 3), fractions of the cell, with
        scattering powers (m,), beside structure factors ``fixed`` (n,)."""
        together, score = self.together(xyz.shape[1]), shift.new_empty(len(xyz))
        for start in range(0, len(xyz), together):
            some = slice(start, start + together)
            f = self.total(self.parts(xyz[some], weight), shift[some])
            score[some] = self.correlation(f if fixed is None else f + fixed)
        return score

    def correlation(self, f: torch.Tensor) -> torch.Tensor:
        """Correlation (B,) of |F|^2 (B, n) with the measured E^2."""
        return self.agreement(f.real**2 + f.imag**2)

    def agreement(self, square: torch.Tensor) -> torch.Tensor:
        """Correlation (B,) of squares of moduli (B, n) with the measured E^2."""
        x = square / self.epsilon
        x = x - (x * self.weight).sum(-1, keepdim=True)
        y = self.value - (self.value * self.weight).sum()
        return (self.weight * x * y).sum(-1) / (
            (self.weight * x * x).sum(-1) * (self.weight * y * y).sum()
        ).sqrt().clamp_min(1e-12)

    def overlap(self, f: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """Normalised overlap (B,) of densities with the structure factors ``f`` (B, n) and ``other`` (n,)."""
        f, other = f / self.epsilon.sqrt(), other / self.epsilon.sqrt()
        size = (self.weight * f.abs() ** 2).sum(-1) * (self.weight * other.abs() ** 2).sum()
        return (self.weight * (f * other.conj()).real).sum(-1) / size.sqrt().clamp_min(1e-12)

    def closest(self, xyz: torch.Tensor, shift: torch.Tensor, among: int = 0) -> torch.Tensor:
        """Shortest distance (B,) in A between atoms (B, m, 3), moved by ``shift``, and all copies of them; with
        ``among``, the first so many atoms are another molecule, and distances within the rest do not count."""
        x = xyz @ self.frac.T + shift[:, None]
        m = x.shape[1]
        metric = self.orth.T @ self.orth
        code = torch.tensor([100.0, 10.0, 1.0], device=x.device)  # tells the images of ``images`` apart
        best = []
        for some in x.split(max(1, PAIRS // (m * m * len(self.images)))):
            least = some.new_full((len(some),), math.inf)
            for s in range(len(self.rot)):
                copy = some @ self.rot[s].T + self.tran[s]
                apart = some[:, :, None] - copy[:, None]  # (b, m, m, 3)
                cells = apart.round()
                apart = apart - cells
                images = self.images if s == 0 else self.nearby
                along = apart @ metric
                square = (apart * along).sum(-1, keepdim=True) + 2 * along @ images.T  # (b, m, m, images)
                square += torch.einsum("ki,ij,kj->k", images, metric, images)
                if s == 0:
                    own = (cells @ code)[..., None] == images @ code  # the molecule itself, not an image of it
                    if among:
                        own[:, :among, among:] = own[:, among:, :among] = False
                    square = square.masked_fill(own, math.inf)
                least = torch.minimum(least, square.flatten(1).amin(1))
            best.append(least.clamp_min(0).sqrt())
        return torch.cat(best)

    @cached_property
    def nearby(self) -> torch.Tensor:
        """The images (k, 3) that can be nearer than where rounding to whole cells takes an atom: without centring and
        oblique angles only that itself."""
        edge = torch.linspace(-0.5, 0.5, CORNERS, device=self.device)
        apart = torch.cartesian_prod(edge, edge, edge)
        square = ((apart[:, None] + self.images) @ self.orth.T).pow(2).sum(-1)
        itself = (self.images == 0).all(-1)
        return self.images[itself | (square < square[:, itself] * (1 - 1e-5)).any(0)]
