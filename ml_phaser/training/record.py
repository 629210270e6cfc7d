"""What a training run says of itself: the run record beside the checkpoint, and the model card of its network."""

from __future__ import annotations

import dataclasses
import datetime
import json
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

from ml_phaser import __version__
from ml_phaser.errors import UserError
from ml_phaser.networks.projector import ProjectorConfig
from ml_phaser.phasing.projections import has_bfloat16
from ml_phaser.report.record import json_safe, write_json
from ml_phaser.simulate.fragments import Library
from ml_phaser.training.loop import Schedule, State

RECORD = "run.json"
LIBRARIES = ("numpy", "scipy", "gemmi", "torch", "safetensors")
LICENCE = "BSD-3-Clause"


def versions() -> dict[str, str | None]:
    """Versions of Python, this program and the libraries a training run leans on; None where one is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version(), "ml_phaser": __version__}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def processor(device: str) -> str:
    """The kind of processor or GPU; never the name of the machine."""
    if device == "cuda":
        import torch

        return str(torch.cuda.get_device_name())
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def read_record(folder: Path) -> dict[str, Any]:
    """The record of the run in ``folder``, {} where there is none. Raises UserError if it is damaged."""
    path = folder / RECORD
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(f"is damaged ({type(error).__name__})", str(path), "another out folder") from None
    if not isinstance(record, dict) or not isinstance(record.get("sessions", []), list):
        raise UserError("is not the record of a training run", str(path), "another out folder")
    return record


def check_data(record: dict[str, Any], library: Library, folder: Path) -> None:
    """UserError if the run in ``folder`` was trained on other data."""
    known = record.get("data", {}).get("sha256")
    if known and known != library.digest:
        raise UserError(
            f"was trained on other data (sha256 {known[:12]}..., now {library.digest[:12]}...)", str(folder),
            "the data it began with, or another out folder",
        )  # fmt: skip


class Recorder:
    """Keeps ``folder/run.json`` up to date: called with the state after each checkpoint."""

    def __init__(
        self, folder: Path, config: Any, schedule: Schedule, library: Library, recipe: Any, lesson: Any,
        *, device: str, threads: int, workers: int, seed: int, begin: dict[str, str] | None = None,
        program: str = "ml_phaser train",
    ) -> None:  # fmt: skip
        """config, recipe, lesson : dataclasses, of the network, the crystals, and what is asked of it."""
        self.folder = folder
        self.earlier = read_record(folder)
        check_data(self.earlier, library, folder)
        self.run = {
            "program": program,
            "config": config,
            "recipe": recipe,
            "lesson": lesson,
            "begun_with": begin,
            "data": {
                "sha256": library.digest,
                "split": "train",
                "chains": len(library),
                "clusters": int(library.cluster.max()) + 1,
                "entries": len(set(library.entry.tolist())),
            },
        }
        self.session: dict[str, Any] = {
            "began": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "schedule": schedule,
            "seed": seed,
            "device": device,
            "processor": processor(device),
            "precision": "bfloat16 autocast" if has_bfloat16(device) else "float32",
            "threads": threads,
            "workers": workers,
            "versions": versions(),
        }
        self.before: tuple[float, int, int] | None = None

    def begin(self, seconds: float, steps: int, samples: int) -> None:
        """What was done before this session."""
        self.before = seconds, steps, samples

    def __call__(self, state: State) -> None:
        before = self.before or (0.0, 0, 0)
        done = {
            "seconds": round(state.seconds - before[0], 1),
            "steps": state.steps - before[1],
            "samples": state.samples - before[2],
        }
        total = {"seconds": round(state.seconds, 1), "steps": state.steps, "samples": state.samples}
        sessions = [*self.earlier.get("sessions", []), {**self.session, **done}]
        write_json(self.folder / RECORD, json_safe({**self.run, **total, "sessions": sessions}))


DESCRIPTION = (
    "Learned density projection: a periodic 3D U-Net that restores electron density from a map made of measured "
    "amplitudes and wrong phases. Translation-equivariant, for any cell and space group (works on the P1 cell)."
)
NORMALISATION = {
    "input": "three maps of zero mean and unit variance over the cell, F(000) left out: density to restore, the map of "
    "E with the same phases, the density of a placed model (zeros where there is none)",
    "output": "density on the same grid; its mean carries no meaning",
    "amplitudes": "measured amplitudes scaled to an overall Wilson B of about 11 A^2 (training crystals: 4-40 A^2 an "
    "atom); not sharpened, not normalised to E",
    "conditioning": "(d_min - 1.7) / 0.3, (mean grid spacing - 0.6) / 0.05, (completeness - 0.9) / 0.1 (A, A, 0-1); "
    "the grid's metric over the squared spacing: (diagonal - 1) / 0.15, off-diagonal (bc, ac, ab) / 0.3; (map "
    "correlation - 0.6) / 0.3 and 1 where it is known, else 0 and 0",
    "conventions": "F(h) = sum f exp(+2 pi i h.x); grids indexed [u, v, w] along a, b, c",
}
LIMITS = [
    "Light atoms only (C, N, O, S): crystals with heavier atoms lie outside of what it has seen.",
    "Trained on pieces of L-amino-acid proteins in cells of 10-24 A; it has never seen nucleic acids, sugars or "
    "ligands, and larger cells only as far as the network's reach is local.",
    "No anisotropy, twinning or translational non-crystallographic symmetry in training; flat solvent as far as the "
    "recipe of the run has crystals with it (family wet).",
    "One pass repairs; it does not phase. Starts whose map correlates with the truth by less than about 0.3 are hardly "
    "improved.",
]


def model_card(
    config: ProjectorConfig, record: dict[str, Any], benchmark: dict[str, Any] | None, limits: list[str]
) -> dict[str, Any]:
    """The facts of a model card, without name, hash and config.

    Parameters
    ----------
    config : as claimed; record : of the run; benchmark : of ``evaluation.one_pass``; limits : beside the general ones
    """
    facts: dict[str, Any] = json_safe(
        {
            "description": DESCRIPTION,
            "domain": {
                "d_min_A": (config.d_best, config.d_worst),
                "grid_spacing_A": config.spacing,
                "grid_multiple": config.stride,
                "elements": ("C", "N", "O", "S"),
            },
            "normalisation": NORMALISATION,
            "precision": "float16 weights",
            "training_data": {
                "what": "X-ray protein structures of the Protein Data Bank (wwPDB, CC0 1.0): boxes cut out at "
                "random orientation; no held-out entry nor any member of its 30 % sequence cluster",
                **(record.get("data") or {}),
            },
            "training_run": {k: v for k, v in record.items() if k not in ("data", "config")},
            "benchmark": benchmark,
            "limits": [*limits, *LIMITS],
            "licence": LICENCE,
        }
    )
    return facts


def claims(report_claim: tuple[float, float] | None, config: ProjectorConfig) -> tuple[ProjectorConfig, list[str]]:
    """The configuration claiming only the resolutions borne out, and the sentences that say so.

    ``report_claim``: best and worst resolution at which the network beat its rivals, None where it did nowhere
    """
    if report_claim is None:
        text = (
            "On held-out crystals it did NOT beat the best classical projection in one pass on average, at any "
            "resolution: the resolution range is that of its training, not of a proven advantage."
        )
        return config, [text]
    best, worst = report_claim
    text = (
        f"Trained at {config.d_best:g}-{config.d_worst:g} A; the claim is narrowed to the resolutions tested and won."
    )
    return dataclasses.replace(config, d_best=best, d_worst=worst), [text]
