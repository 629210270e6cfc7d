"""Crystals of resolved atoms at random positions, their structure factors by gemmi."""

import gemmi
import numpy as np

from ml_phaser.crystal.agreement import compare
from ml_phaser.crystal.peaks import Images
from ml_phaser.phasing.free_atoms import Moduli


def placed(rng, cell, spacegroup, count, apart=1.3):
    """Random positions (count, 3) of an asymmetric unit, atoms and images at least so far apart (A)."""
    images, kept = Images(cell, spacegroup), np.zeros((0, 3))
    while len(kept) < count:
        x = rng.random((1, 3))
        own = np.linalg.norm(images.nearest(images.of(x)[1:] - x), axis=-1)
        if (own > apart).all() and (not len(kept) or images.distances(x, kept).min() > apart):
            kept = np.concatenate([kept, x])
    return kept


def in_gemmi(cell, spacegroup, frac, elements, b, hkl, occupancy=None):
    """Structure factors by gemmi's direct summation."""
    small = gemmi.SmallStructure()
    small.cell, small.spacegroup = cell, spacegroup
    occupancy = np.ones(len(frac)) if occupancy is None else occupancy
    for x, element, displacement, share in zip(frac, elements, b, occupancy, strict=True):
        site = gemmi.SmallStructure.Site()
        site.fract, site.element, site.occ = gemmi.Fractional(*x), gemmi.Element(element), share
        site.type_symbol, site.label, site.u_iso = element, element, displacement / (8 * np.pi**2)
        small.add_site(site)
    small.setup_cell_images()
    calculator = gemmi.StructureFactorCalculatorX(small.cell)
    return np.array([calculator.calculate_sf_from_small_structure(small, [int(i) for i in h]) for h in hkl])


class Made:
    """A crystal of C, N, O (and what else is asked for) with noisy amplitudes."""

    def __init__(self, group="P 1", d_min=1.1, count=14, extra=(), seed=0, edges=(7.0, 8.0, 9.0), noise=0.03):
        rng = np.random.default_rng(seed)
        self.spacegroup = gemmi.SpaceGroup(group)
        skew = (82, 97, 101) if group in ("P 1", "P -1") else (90, 90, 90)
        self.cell = gemmi.UnitCell(*edges, *skew)
        self.frac = placed(rng, self.cell, self.spacegroup, count)
        self.elements = [*extra, *rng.choice(["C", "N", "O"], count - len(extra))]
        self.b = rng.uniform(4, 9, count)
        self.hkl = gemmi.make_miller_array(self.cell, self.spacegroup, d_min)
        self.f = in_gemmi(self.cell, self.spacegroup, self.frac, self.elements, self.b, self.hkl)
        self.amplitude = np.abs(self.f) * (1 + noise * rng.normal(size=len(self.f)))
        self.used = rng.random(len(self.f)) > 0.08
        self.rng = rng

    def spoilt(self, error):
        """Phases with normal errors (radians), real ones left as they are or turned by half a circle."""
        centric = np.array(self.spacegroup.operations().centric_flag_array(self.hkl), dtype=bool)
        wrong = self.rng.normal(0, error, len(self.f))
        return np.angle(self.f) + np.where(centric, np.pi * (np.abs(wrong) > np.pi / 2), wrong)

    def moduli(self, scale=1.0, b=6.0):
        return Moduli(self.hkl, scale * np.abs(self.amplitude), self.used, self.cell, self.spacegroup, b)

    def found(self, refined, near=0.15):
        """Share of the atoms that were found, and of those found that are none; in P1 at the best origin."""
        shift = compare(self.hkl, refined.f, self.f, self.cell, self.spacegroup).origin_shift
        apart = Images(self.cell, self.spacegroup).distances(self.frac, refined.atoms.frac + shift)
        return float((apart.min(axis=1) < near).mean()), float((apart.min(axis=0) > near).mean())

    def held(self, f):
        """Correlation of moduli of the reflections not used, their fall-off with resolution taken out."""
        unseen = ~self.used
        s2 = np.array(self.cell.calculate_1_d2_array(self.hkl[unseen])) / 4
        usual = np.exp(-6 * s2) * np.array([gemmi.Element("N").it92.calculate_sf(s) for s in s2])
        return np.corrcoef(np.abs(f[unseen]) / usual, np.abs(self.f[unseen]) / usual)[0, 1]
