"""Charge flipping by cctbx, run by ``others.cctbx_flipping``: cctbx_run IN OUT SECONDS SEED."""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path

from cctbx import crystal, miller, sgtbx  # before numpy's and scipy's libraries, or it can crash
from cctbx.array_family import flex
from smtbx.ab_initio import charge_flipping

import numpy as np  # isort: skip


def main(source: str, result: str, seconds: float, seed: int) -> None:
    """Attempts from random phases until one claims a solution or the time is over; the best is written.

    A claim (phase transition and a sharp symmetry correlation) comes before no claim, then the lower R1. After its
    first restart the program's own loop ends in a ValueError, so every attempt is a loop of its own.
    """
    flex.set_random_seed(seed)
    random.seed(seed)
    with np.load(source) as data:
        group = sgtbx.space_group_info(symbol="Hall: " + str(data["group"])).group()
        symmetry = crystal.symmetry(unit_cell=tuple(data["cell"]), space_group=group)
        indices = flex.miller_index([tuple(h) for h in data["hkl"].tolist()])
        f_obs = miller.array(miller.set(symmetry, indices, anomalous_flag=False), flex.double(data["f"]))
    f_obs = f_obs.set_observation_type_xray_amplitude()
    began, starts, best = time.process_time(), 0, None
    while best is None or (time.process_time() - began < seconds and not best[0][0]):
        starts += 1
        flipping = charge_flipping.weak_reflection_improved_iterator(delta=None)
        solving = charge_flipping.solving_iterator(
            flipping, f_obs, yield_during_delta_guessing=True, yield_solving_interval=1,
            normalisations_for=charge_flipping.amplitude_quasi_normalisations, max_attempts_to_get_phase_transition=1,
            max_attempts_to_get_sharp_correlation_map=1,
        )  # fmt: skip
        claimed = False
        try:
            for _ in solving:
                if solving.state is solving.finished:
                    claimed = bool(solving.f_calc_solutions)
                    break
                if best is not None and time.process_time() - began > seconds:
                    break
        except (ValueError, RuntimeError, AssertionError):
            if best is not None:
                continue
            if not hasattr(flipping, "f_calc"):
                raise
        f = flipping.f_calc
        rank = (claimed, -float(flipping.r1_factor()) if hasattr(flipping, "_g") else -1.0)
        if best is None or rank > best[0]:
            best = (rank, np.array(list(f.indices())), np.array(list(f.data())))
            part = Path(result).with_suffix(".part.npz")
            np.savez(part, hkl=best[1], f=best[2], starts=starts, claimed=rank[0], r1=-rank[1])
            part.replace(result)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]), int(sys.argv[4]))
