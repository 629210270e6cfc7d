"""The model card of a one-shot network: what it is, what it knows, what it was trained on."""

from __future__ import annotations

from typing import Any

from ml_phaser.report.record import json_safe
from ml_phaser.training.record import LICENCE

DESCRIPTION = {
    "unet": "Electron density in one shot from the Patterson map: the 3D residual U-Net of Pan et al., IUCrJ 10, 487 "
    "(2023), trained anew.",
    "crysformer": "Electron density in one shot from the Patterson map: a transformer on patches after CrysFormer (Dun "
    "et al., arXiv:2310.03899), trained anew.",
}
INPUT = (
    "Patterson map of the measured |F|^2, F(000) left out, brought to -1 ... 1; the last prediction with measured "
    "amplitudes, zero mean and unit variance, zeros at first (where recycled); maps of the residues by themselves, "
    "unit variance (where parts); cell edges in A"
)
CONVENTIONS = (
    "F(h) = sum f exp(+2 pi i h.x); grids indexed [u, v, w] along a, b, c; the molecule's centre of mass lies at the "
    "centre of the cell, its amino acids are L: this fixes origin and hand of what is predicted"
)
LIMITS = (
    "One molecule of the family alone in a P1 cell, calculated without noise: no packing, no solvent, no other group.",
    "All reflections to d_min are wanted; finer data are to be cut there. B is 20 A^2.",
    "The agreement of its passes says too much for its phases: see reliability.",
    "Classical methods solve such crystals from random phases; the benchmark of the repository has both side by side.",
)


def one_shot_card(
    kind: str, config: Any, record: dict[str, Any], benchmark: dict[str, Any], passes: int
) -> dict[str, Any]:
    """The facts of a model card, without name, hash and config.

    Parameters
    ----------
    kind : "unet" or "crysformer"; config : of the network; record : of the run; benchmark : of ``evaluation.one_shot``
    passes : with how many it was trained and judged
    """
    facts: dict[str, Any] = json_safe(
        {
            "description": DESCRIPTION[kind],
            "domain": {
                "family": config.family,
                "d_min_A": config.d_min,
                "grid_spacing_A": config.spacing,
                "grid_multiple": config.stride,
                "cell_edges_A": {"shortest": config.shortest, "longest": config.longest},
                "space_group": "P 1, right angles, one molecule in the cell",
                "elements": ("C", "N", "O", "S"),
                "residues_shown": config.parts,
            },
            "passes": passes,
            "input": INPUT,
            "output": "density on the same grid, -1 ... 1; its scale and mean carry no meaning",
            "conventions": CONVENTIONS,
            "precision": "kernels and matrices float16, the rest float32",
            "training_data": {
                "what": "fragments of X-ray protein structures of the Protein Data Bank (wwPDB, CC0 1.0), each turned "
                "at random; no held-out entry nor any member of its 30 % sequence cluster",
                **(record.get("data") or {}),
            },
            "training_run": {k: v for k, v in record.items() if k not in ("data", "config")},
            "benchmark": benchmark,
            "limits": LIMITS,
            "licence": LICENCE,
        }
    )
    return facts
