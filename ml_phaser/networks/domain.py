"""Which crystals a one-shot network was trained for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

SLACK = 0.02  # of cell edges
RIGHT = 1.0  # degrees from a right angle


@dataclass(frozen=True)
class Domain:
    """Training crystals of a one-shot network: d_min in A, and shortest and longest a, b, c in A."""

    d_min: float
    shortest: tuple[float, ...]
    longest: tuple[float, ...]

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Domain:
        """As a network's configuration states it."""
        shortest, longest = tuple(config["shortest"]), tuple(config["longest"])
        return cls(config["d_min"], shortest, longest)


def outside(domain: Domain, cell: Sequence[float], group: str, d_min: float) -> str:
    """Why a crystal lies outside of a network's domain, empty if it does not.

    Parameters
    ----------
    cell : a, b, c in A and three angles in degrees; group : Hermann-Mauguin symbol; d_min : of the data, in A
    """
    if group != "P 1":
        return f"it knows P 1 alone, not {group}"
    if any(abs(angle - 90) > RIGHT for angle in cell[3:]):
        return "it knows right angles alone"
    low, high = (
        [edge * f for edge in edges] for edges, f in ((domain.shortest, 1 - SLACK), (domain.longest, 1 + SLACK))
    )
    if any(not a <= edge <= b for a, edge, b in zip(low, cell[:3], high, strict=True)):
        return f"it knows cells from {_edges(domain.shortest)} to {_edges(domain.longest)} A alone"
    if domain.shortest != domain.longest and not cell[0] >= cell[1] >= cell[2]:
        return "it knows cells with a longest and c shortest alone"
    if d_min > domain.d_min + 0.01:
        return f"it wants data to {domain.d_min:g} A, these end at {d_min:.2f} A"
    return ""


def _edges(lengths: Sequence[float]) -> str:
    return " x ".join(f"{length:g}" for length in lengths)
