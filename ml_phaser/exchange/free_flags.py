"""Free-R flags for data that have none, in CCP4's convention: 0 is the test set, 1 to n - 1 parts of the rest."""

from __future__ import annotations

import gemmi
import numpy as np
from numpy.typing import NDArray

LABEL = "FreeR_flag"


def free_flags(hkl: NDArray[np.int32], cell: gemmi.UnitCell, share: float, seed: int) -> NDArray[np.int32]:
    """Flags 0 to n - 1 of unique reflections, n the nearest whole number to 1 / share.

    Runs of n reflections of neighbouring resolution each hold one of the test set, or, where ``share`` is no 1 / n, as
    many as keep the running count within one of the share. So every resolution shell is represented, and a test set
    of 1000 has 1000 reflections, not 1000 give or take 30.

    Parameters
    ----------
    hkl : (n, 3) unique reflections; the flags depend on neither their order nor on anything but cell, share and seed
    share : of the test set, between 0 and 1 (1 / 2 at most)

    Returns
    -------
    (n,) int32
    """
    parts = max(2, round(1 / share))
    rng = np.random.default_rng(seed)
    d = np.asarray(cell.calculate_d_array(hkl), dtype=np.float64)
    order = np.lexsort((*np.asarray(hkl).T, -np.round(d, 6)))
    flags = np.empty(len(hkl), dtype=np.int32)
    for start in range(0, len(hkl), parts):
        run = order[start : start + parts]
        count = round(share * (start + len(run))) - round(share * start)
        rest = rng.permutation(np.arange(1, parts))
        values = np.concatenate([np.zeros(count, dtype=np.int32), np.resize(rest, len(run) - count)])
        flags[run] = rng.permutation(values)
    return flags


def free_value(flags: NDArray[np.float64]) -> int | None:
    """Which of the values (n,) marks the test set, NaN where missing; None where that cannot be told.

    CCP4's convention (0 of many values) and the two-valued one of Phenix and CNS (the rarer of two).
    """
    known = np.asarray(flags, dtype=np.float64)
    values, counts = np.unique(known[np.isfinite(known)], return_counts=True)
    if len(values) < 2:
        return None
    if len(values) == 2:
        return int(values[np.argmin(counts)])
    return 0 if values[0] == 0 else int(values[0])
