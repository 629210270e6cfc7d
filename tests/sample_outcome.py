"""A small crystal, its data, and the outcome of an imaginary run; for tests of logs and files."""

from pathlib import Path

import gemmi
import numpy as np

from ml_phaser.crystal.normalise import Normalised, Shell
from ml_phaser.crystal.reflections import Amplitudes, Source
from ml_phaser.outcome import Hand, Outcome, Phases, ShellRow, Trial, Verdict
from ml_phaser.parameters import Options

CELL = gemmi.UnitCell(9, 11, 13, 90, 90, 90)
GROUP = gemmi.SpaceGroup("P 21 21 21")


def structure_factors(hkl, group=GROUP, seed=1):
    """F(h) of five atoms and their mates by direct summation, exp(+2 pi i h.x), B = 10 A^2 on CELL."""
    rng = np.random.default_rng(seed)
    sites = rng.random((5, 3))
    weight = rng.uniform(6, 16, 5)
    hkl = np.asarray(hkl)
    total = np.zeros(len(hkl), dtype=complex)
    for op in group.operations():
        mates = np.array([op.apply_to_xyz(list(x)) for x in sites])
        total += np.exp(2j * np.pi * hkl @ mates.T) @ weight
    return total * np.exp(-10 / (4 * CELL.calculate_d_array(hkl.astype(np.int32)) ** 2))


def amplitudes(source=None, group=GROUP, d_min=1.2, **more):
    hkl = np.asarray(gemmi.make_miller_array(CELL, group, d_min), dtype=np.int32)
    f = np.abs(structure_factors(hkl, group))
    return Amplitudes(
        hkl=hkl,
        f=f,
        sigf=0.02 * f + 0.1,
        cell=CELL,
        spacegroup=group,
        source=source or Source("data.hkl", "SHELX hkl", ("F", "SIGF"), "amplitude"),
        **more,
    )


def phases(data):
    """True phases; figures of merit and coefficients that belong together (tanh for centric, I1/I0 else)."""
    phi = np.angle(structure_factors(data.hkl, data.spacegroup))
    x = np.linspace(0.5, 5, len(data))
    from scipy.special import i0e, i1e

    fom = np.where(data.centric, np.tanh(x), i1e(x) / i0e(x))
    zero = np.zeros(len(data))
    return Phases(phi, fom, np.column_stack([x * np.cos(phi), x * np.sin(phi), zero, zero]))


def normalised(data):
    n = len(data)
    shells = (
        Shell(data.d_max, 2.0, int((data.d > 2).sum()), 1.01, 0.99, 25.0),
        Shell(2.0, data.d_min, int((data.d <= 2).sum()), 0.98, 0.97, float("nan")),
    )
    ones = np.ones(n)
    return Normalised(
        e=ones,
        e2=ones,
        sig_e=ones,
        f=data.f,
        sigf=data.sigf,
        outlier=np.arange(n) == 0,
        expected=data.f**2 + 1,
        wilson_scale=1.5,
        wilson_b=11.25,
        aniso_b=np.array([1.0, -0.5, -0.5, 0, 0, 0]),
        shells=shells,
        notes=(),
    )


def outcome(data=None, word="solved", **more):
    data = amplitudes() if data is None else data
    nan = float("nan")
    facts = {
        "data": data,
        "phases": phases(data),
        "trials": (
            Trial(0, "charge flipping", 11, 200, 1.5, 0.31, 0.40, nan, -1),
            Trial(1, "learned", 12, 100, 2.5, 0.86, 0.15, 0.97, 0),
            Trial(2, "learned", 13, 100, 2.5, nan, 0.20, 0.50, -1),
        ),
        "verdict": Verdict(word, 0.93, "two trials agree"),
        "hand": Hand("both hands fit equally"),
        "shells": (ShellRow(8.0, 2.0, 200, 0.91, 0.88), ShellRow(2.0, 1.2, 600, 0.75, nan)),
        "wilson": normalised(data),
        "choices": ("the sole amplitude column F was used",),
        "weights": {"name": "projector", "sha256": "ab" * 32},
        "times": {"read": 0.1, "phase": 12.5},
    }
    return Outcome(**{**facts, **more})


def options(folder=Path(), **more):
    folder = Path(folder)
    facts = {
        "hklin": folder / "data.mtz",
        "mapout": folder / "pred.map",
        "hklout": folder / "pred.mtz",
        "jsonout": folder / "pred.json",
    }
    return Options(**{**facts, **more})
