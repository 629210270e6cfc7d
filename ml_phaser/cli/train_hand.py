"""``ml_phaser train_hand``: train the hand judge and export it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml_phaser.cli.progress import Reporter
from ml_phaser.cli.training import option_lines, parse, reporter, run_command, run_session
from ml_phaser.errors import UserError
from ml_phaser.parameters import Parameter

if TYPE_CHECKING:
    from ml_phaser.simulate.fragments import Library

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
            *option_lines(TABLE),
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
    from ml_phaser.training.alone import alone

    torch.set_num_threads(options["threads"])
    with reporter(options["quiet"]) as notify:
        notify.stage("train")
        library = load_library(options["data"], "train")
        with alone(options["out"]):
            train(options, library, notify)
        if options["export"] is not None:
            from ml_phaser.training.hand import export_hand

            notify.stage("calibrate")
            card = export_hand(options["out"], library, options["export"], options["weights"], options["seed"])
            notify.say(f"exported: {card}")


def train(options: dict[str, Any], library: Library, notify: Reporter) -> None:
    """One session. Raises UserError; one that says how to go on where the user stopped it."""
    from ml_phaser.networks.hand import HandConfig, HandJudge
    from ml_phaser.networks.store import load_projector
    from ml_phaser.training.hand import RECIPE, Judging, TwoRates, hand_lessons, hand_schedule
    from ml_phaser.training.loop import untrained
    from ml_phaser.training.record import Recorder

    out, seed, config = options["out"], options["seed"], HandConfig()
    schedule, judging = hand_schedule(options["seconds"]), Judging()
    lessons = hand_lessons(library, schedule.batch, judging, load_projector(), seed)
    recorder = Recorder(
        out, config, schedule, library, RECIPE, judging, device="cpu", threads=options["threads"], workers=0, seed=seed,
        program=PROGRAM,
    )  # fmt: skip
    run_session(
        untrained(HandJudge, config, seed), schedule, lessons, out, recorder, notify, optimise=TwoRates,
        session=options["session"],
    )  # fmt: skip


def main(argv: list[str]) -> int:
    """Entry point; argv without the program's and sub-command's names. Returns the exit status."""
    return run_command(argv, PROGRAM, usage(), run)
