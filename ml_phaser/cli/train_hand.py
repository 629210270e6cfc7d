"""``ml_phaser train_hand``: train the hand judge and export it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from ml_phaser.cli.progress import Reporter
from ml_phaser.cli.train import parse, reporter, stopping
from ml_phaser.errors import UserError
from ml_phaser.parameters import Parameter

PROGRAM = "ml_phaser train_hand"
TABLE = (
    Parameter("data", "text", "protein coordinates: their folder, or a file made by train pack"),
    Parameter("out", "text", "folder of the run: checkpoint.pt, log.jsonl, run.json; gone on with if it is there"),
    Parameter("seconds", "float", "wall-clock budget of the whole run", default=1500.0, low=0, high=1e8, unit="s"),
    Parameter(
        "session", "float", "stop this session after so long [when the budget is spent]", low=0, high=1e8, unit="s"
    ),
    Parameter("seed", "int", "of weights and crystals", default=0, low=0, high=2**31 - 1),
    Parameter("threads", "int", "processor threads", default=1, low=1, high=1024),
    Parameter("export", "text", "calibrate the judge and write it under this name [no]"),
    Parameter("weights", "text", "folder to export to [out]"),
    Parameter("overwrite", "flag", "replace exported files that exist", default=False),
    Parameter("quiet", "flag", "print errors only", default=False),
)


def usage() -> str:
    """The answer to ``--help``."""
    return "\n".join(
        [
            "usage: ml_phaser train_hand data FOLDER out FOLDER [seconds 1500] [export NAME] [name value ...]",
            "",
            "Train the judge that tells a map of L-amino acids from its mirror image, on crystals made on the fly.",
            "A run that is stopped goes on with the same command. Names in any case, with or without --.",
            "",
            *(
                f"  {p.name:<12}{p.help}" + ("" if p.default is None or p.default is False else f" [{p.default:g}]")
                for p in TABLE
            ),
            "",
        ]
    )


def check(options: dict[str, Any]) -> dict[str, Any]:
    """Options with paths made of text; UserError for what is missing or in the way."""
    for name in ("data", "out"):
        if options[name] is None:
            raise UserError("is missing", name, f"{PROGRAM} --help")
        options = {**options, name: Path(options[name]).expanduser()}
    if options["export"] is None:
        for name in ("weights", "overwrite"):
            if options[name]:
                raise UserError("does nothing without export", name, "export NAME")
        return options
    folder = Path(options["weights"]).expanduser() if options["weights"] else options["out"]
    if Path(options["export"]).name != options["export"]:
        raise UserError("is a name, not a path", f"export {options['export']}", "export NAME weights FOLDER")
    for suffix in (".json", ".safetensors"):
        path = folder / (options["export"] + suffix)
        if path.exists() and not options["overwrite"]:
            raise UserError("exists already", str(path), "overwrite yes, or another name")
    return {**options, "weights": folder}


def run(argv: list[str]) -> None:
    """Train, and export where asked. Raises UserError."""
    options = check(parse(argv, TABLE))
    import torch

    from ml_phaser.simulate.fragments import load_library

    torch.set_num_threads(options["threads"])
    with reporter(options["quiet"]) as notify:
        notify.stage("train")
        library = load_library(options["data"], "train")
        train(options, library, notify)
        if options["export"] is not None:
            from ml_phaser.training.hand import export_hand

            notify.stage("calibrate")
            card = export_hand(options["out"], library, options["export"], options["weights"], options["seed"])
            notify.say(f"exported: {card}")


def train(options: dict[str, Any], library: Any, notify: Reporter) -> None:
    """One session. Raises UserError; one that says how to go on where the user stopped it."""
    import math

    from ml_phaser.networks.hand import HandConfig
    from ml_phaser.networks.store import load_projector
    from ml_phaser.training.alone import alone
    from ml_phaser.training.hand import HandSchedule, train_hand

    schedule = HandSchedule(options["seconds"])
    with alone(options["out"]), stopping() as asked:
        state = train_hand(
            HandConfig(), schedule, library, load_projector(), options["out"], seed=options["seed"],
            session=math.inf if options["session"] is None else options["session"],
            say=notify.say, progress=lambda fraction: notify.progress(fraction, None), stop=asked,
        )  # fmt: skip
        if asked():
            where = f"interrupted; step {state.steps} ({state.seconds:.0f} s) is safe in {options['out']}"
            raise UserError(where, hint="the same command, which goes on from there")


def main(argv: list[str]) -> int:
    """Entry point; argv without the program's and sub-command's names. Returns the exit status."""
    if not argv or any(word in ("--help", "-h") for word in argv):
        print(usage(), end="", file=sys.stdout if argv else sys.stderr)
        return 0 if argv else 1
    try:
        run(argv)
    except UserError as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return 1
    return 0
