"""What was kept of a run, with the truth: phase errors without the luck of the search over origins, map correlation."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gemmi
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
ELSEWHERE = 0.3  # gain in map correlation over that at the origin and hand of phases put in and over chance


@dataclass(frozen=True, eq=False)
class Row:
    """A run: facts, measured data, solutions. cos : (n,) cosine of the phase error of the solution chosen;
    turn : (n,) phase error in radians; cc : map correlation of it; chance : that of random phases."""

    name: str
    about: dict[str, Any]
    hkl: NDArray[np.int32]
    cell: gemmi.UnitCell
    group: gemmi.SpaceGroup
    e: Floats
    f_obs: Floats
    held: NDArray[np.bool_]
    truth: NDArray[np.complex128]
    chosen: NDArray[np.complex128]
    solutions: NDArray[np.complex128]
    given: Floats
    turn: Floats
    moved: NDArray[np.complex128]
    cc: float
    chance: float

    @property
    def d(self) -> Floats:
        return np.asarray(self.cell.calculate_d_array(self.hkl), dtype=np.float64)

    @property
    def centric(self) -> NDArray[np.bool_]:
        return np.asarray(self.group.operations().centric_flag_array(self.hkl), dtype=bool)

    @property
    def epsilon(self) -> Floats:
        return np.asarray(self.group.operations().epsilon_factor_without_centering_array(self.hkl), dtype=np.float64)

    @property
    def cos(self) -> Floats:
        return np.asarray(np.cos(self.turn))

    @property
    def evidence(self) -> dict[str, Any]:
        """That of the solution chosen."""
        return next(s for s in self.about["solutions"] if s["trial"] == self.about["chosen"])


def read_rows(store: Path, split: str) -> Iterator[Row]:
    """All runs of a split, each judged once and kept."""
    for path in sorted(store.glob(f"{split}-*.npz")):
        yield read_row(path)


def read_row(path: Path) -> Row:
    """One run; the comparison with the truth is kept beside it."""
    with np.load(path, allow_pickle=False) as a:
        arrays = {k: a[k] for k in a.files}
    about = json.loads(str(arrays["about"]))
    hkl = arrays["hkl"].astype(np.int32)
    cell, group = gemmi.UnitCell(*about["cell"]), gemmi.SpaceGroup(about["group"])
    truth, chosen = (arrays[k].astype(np.complex128) for k in ("truth", "chosen"))
    f_obs = arrays["f_obs"].astype(np.float64)
    kept = path.parent / "judged" / path.name
    if not kept.exists() or kept.stat().st_mtime < path.stat().st_mtime:
        kept.parent.mkdir(exist_ok=True)
        phased = f_obs * np.exp(1j * np.angle(chosen))
        found = judged(hkl, phased, truth, cell, group, searched=about["case"]["given"] is None)
        np.savez(kept, **found)
    with np.load(kept) as a:
        moved, cc, chance = a["moved"], float(a["cc"]), float(a["chance"])
    turn = np.angle(moved * np.conj(truth))
    return Row(
        path.stem, about, hkl, cell, group, arrays["e"].astype(np.float64), f_obs, arrays["held"], truth, chosen,
        arrays["solutions"].astype(np.complex128), arrays["given"].astype(np.float64), turn, moved, cc, chance,
    )  # fmt: skip


def judged(
    hkl: NDArray[np.int32], phased: NDArray[np.complex128], truth: NDArray[np.complex128], cell: gemmi.UnitCell,
    group: gemmi.SpaceGroup, *, searched: bool,
) -> dict[str, Any]:  # fmt: skip
    """Phases brought to the truth's origin and hand, map correlation and its level of chance.

    Origin and hand of either half of the reflections are those that suit the other half, so that phases which mean
    nothing have a mean cosine of zero rather than that of the luckiest origin. Where phases were put in, theirs are
    kept, unless the search has plainly led elsewhere.
    """
    from ml_phaser.crystal.agreement import compare, correlation, move, multiplicity

    truth = np.where(np.isfinite(truth), truth, 0)
    whole = compare(hkl, phased, truth, cell, group, repeats=2)
    cc = correlation(multiplicity(hkl, group), phased, truth)
    if not searched and whole.map_cc - max(cc, whole.chance_cc) < ELSEWHERE:
        return {"moved": phased, "cc": cc, "chance": whole.chance_cc}
    half = np.random.default_rng(0).random(len(hkl)) < 0.5
    moved = np.zeros_like(phased)
    for part in (half, ~half):
        found = compare(hkl[part], phased[part], truth[part], cell, group, repeats=0)
        moved[~part] = move(hkl[~part], phased[~part], found.origin_shift, found.inverted)
    return {"moved": moved, "cc": whole.map_cc, "chance": whole.chance_cc}
