"""What a careful reader should not miss, and what to do with a result."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ml_phaser.outcome import Outcome
    from ml_phaser.parameters import Options

LOW_COMPLETENESS = 0.8
LITTLE_KEPT = 0.3  # of what honest figures of merit would leave


def warnings(outcome: Outcome) -> tuple[str, ...]:
    """Sentences about weak points of the data and the result."""
    found = []
    if outcome.verdict.word != "solved":
        found.append(f"{outcome.verdict.word}: do not build into this map without further evidence")
    if outcome.given is not None and outcome.given.kept < LITTLE_KEPT:
        found.append(f"the result keeps only {outcome.given.kept:.0%} of what the phases given promised")
    if outcome.data.completeness < LOW_COMPLETENESS:
        found.append(f"the data are {100 * outcome.data.completeness:.0f} % complete")
    if outcome.data.free is None and not outcome.free_made:
        found.append("the data carry no free-R flags; set some aside before refinement (freer 5 does)")
    return tuple(found)


def advice(outcome: Outcome, options: Options) -> dict[str, list[str]]:
    """What to "do" with the result and what to "avoid", in sentences."""
    longer = (
        f"Run again with more time (timelimit {10 * options.timelimit:g}) or another seed (seed {options.seed + 1})."
    )
    match outcome.verdict.word:
        case "solved":
            do = [
                f"Open {options.hklout} in Coot (it takes FWT and PHWT by itself); look for the molecule you expect.",
                "Build it and refine it against the measured data: a falling R free is the proof.",
            ]
            avoid = ["Do not read geometry off the map: before refinement its peaks are only near the atoms."]
        case "uncertain":
            do = [
                "Look at the map for chemistry: distances of 1.2 to 1.6 A, rings, a chain.",
                f"{longer} Other starts that lead to the same solution make it more likely.",
            ]
            avoid = ["Do not build further than the map is clear: a wrong map, too, can look right in places."]
        case _:
            do = [
                longer,
                "Check the space group and whether the crystal is twinned: neither is put right here.",
                "Get phases by molecular replacement or experiment; phasein improves them.",
            ]
            avoid = ["Do not build into this map and do not take its phases as known: they are most likely wrong."]
    return {"do": do, "avoid": avoid}
