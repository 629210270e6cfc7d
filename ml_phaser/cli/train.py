"""``ml_phaser train``: train the network of the learned projection, judge it, export it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml_phaser.cli.progress import Reporter
from ml_phaser.cli.training import check_asked, choose_device, option_lines, parse, reporter, run_command, run_session
from ml_phaser.errors import UserError
from ml_phaser.parameters import Parameter

if TYPE_CHECKING:
    from ml_phaser.networks.projector import Projector, ProjectorConfig
    from ml_phaser.simulate.fragments import Library

PROGRAM = "ml_phaser train"
TABLE = (
    Parameter("data", "text", "protein coordinates: their folder, or a file made by train pack"),
    Parameter("out", "text", "folder of the run: checkpoint.pt, log.jsonl, run.json; gone on with if it is there"),
    Parameter("seconds", "float", "wall-clock budget of the whole run [0: train no more]", low=0, high=1e8, unit="s"),
    Parameter(
        "session", "float", "stop this session after so long [when the budget is spent]", low=0, high=1e8, unit="s"
    ),
    Parameter("channels", "text", "features of each level, finest first, multiples of 8", default="64,128"),
    Parameter("blocks", "text", "residual blocks at each level", default="2,3"),
    Parameter("begin", "text", "bundled network whose weights to begin with [random weights]"),
    Parameter("batch", "int", "crystals a step", default=8, low=1, high=4096),
    Parameter("rate", "float", "highest learning rate", default=2e-3, low=1e-7, high=1.0),
    Parameter("seed", "int", "of weights and crystals", default=0, low=0, high=2**31 - 1),
    Parameter("device", "choice", "where to train", default="auto", choices=("auto", "cpu", "cuda")),
    Parameter("threads", "int", "processor threads of the network", default=1, low=1, high=1024),
    Parameter("workers", "int", "processes that make crystals beside it; 0: none", default=0, low=0, high=1024),
    Parameter("export", "text", "judge the network on held-out entries and write it under this name [no]"),
    Parameter("weights", "text", "folder to export to [out]"),
    Parameter("holdout", "text", "held-out coordinates to judge by, where data is a file [data]"),
    Parameter("crystals", "int", "crystals a row in that judgement", default=32, low=2, high=4096),
    Parameter("benchout", "text", "full table of that judgement, JSON, and .md beside it [not written]"),
    Parameter("overwrite", "flag", "replace exported files that exist", default=False),
    Parameter("quiet", "flag", "print errors only", default=False),
)
PACK = (
    Parameter("data", "text", "folder of the protein coordinates"),
    Parameter("out", "text", "file to write, .npz"),
    Parameter("split", "choice", "which entries", default="train", choices=("train", "holdout", "validation")),
    Parameter("overwrite", "flag", "replace the file if it exists", default=False),
)
ONLY_EXPORT = ("weights", "holdout", "crystals", "benchout", "overwrite")


def usage() -> str:
    """The answer to ``--help``."""

    return "\n".join(
        [
            "usage: ml_phaser train data FOLDER out FOLDER seconds 6000 [name value ...]",
            "       ml_phaser train data FOLDER out FOLDER export NAME [name value ...]",
            "       ml_phaser train pack data FOLDER out FILE.npz [split train|holdout|validation]",
            "",
            "Train the network of the learned density projection on crystals made on the fly from protein coordinates.",
            "A run that is stopped (Ctrl-C too) goes on with the same command. Names in any case, with or without --.",
            "",
            *option_lines(TABLE),
            "",
            "pack writes one split of the coordinates as a compact file to carry to another machine:",
            "",
            *option_lines(PACK),
            "",
        ]
    )


def parse_levels(channels: str, blocks: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Features and blocks of one or two levels: training grids can be halved twice. Raises UserError."""

    def numbers(name: str, text: str, multiple: int) -> tuple[int, ...]:
        try:
            values = tuple(int(x) for x in text.split(","))
        except ValueError:
            values = ()
        if not 1 <= len(values) <= 2 or any(x <= 0 or x % multiple for x in values):
            what = "numbers" if multiple == 1 else f"multiples of {multiple}"
            raise UserError(f"wants one or two {what}, not {text!r}", name, "channels 64,128 blocks 2,3")
        return values

    features, depths = numbers("channels", channels, 8), numbers("blocks", blocks, 1)
    if len(features) != len(depths):
        raise UserError(f"has {len(depths)} levels, channels {len(features)}", "blocks", "channels 64,128 blocks 2,3")
    return features, depths


def run_training(options: dict[str, Any], library: Library, notify: Reporter) -> None:
    """One session of training. Raises UserError; one that says how to go on where the user stopped it."""
    from ml_phaser.networks.projector import Projector, ProjectorConfig
    from ml_phaser.simulate.batches import Recipe
    from ml_phaser.training.loop import Schedule, untrained
    from ml_phaser.training.projection import Repair, projection_lessons
    from ml_phaser.training.record import Recorder
    from ml_phaser.training.workers import stream

    out, batch, seed, workers = options["out"], options["batch"], options["seed"], options["workers"]
    device = choose_device(options["device"])
    config = ProjectorConfig(channels=options["channels"], blocks=options["blocks"])
    begin, origin = beginning(options["begin"], config)
    schedule = Schedule(options["seconds"], batch=batch, rate=options["rate"])
    recipe, repair = Recipe(), Repair()
    recorder = Recorder(
        out,
        config,
        schedule,
        library,
        recipe,
        repair,
        device=device,
        threads=options["threads"],
        workers=workers,
        seed=seed,
        begin=origin,
    )
    notify.say(
        f"training {options['channels']} on {device}: {len(library)} chains of {len(set(library.entry))} entries, "
        f"data sha256 {library.digest[:12]}"
    )
    lessons = projection_lessons(
        lambda steps: stream(library, batch, seed, steps, workers, recipe), repair, seed, device
    )
    network = untrained(Projector, config, seed, begin)
    run_session(network, schedule, lessons, out, recorder, notify, session=options["session"], device=device)


def beginning(name: str | None, config: ProjectorConfig) -> tuple[Projector | None, dict[str, str] | None]:
    """The bundled network to begin with and what the record says of it. Raises UserError."""
    if name is None:
        return None, None
    from dataclasses import replace

    from ml_phaser.networks.store import load_projector, read_card

    network = load_projector(name)
    # The domain a card claims is what was shown of the network, not part of it.
    network.config = replace(network.config, d_best=config.d_best, d_worst=config.d_worst)
    return network, {"name": name, "sha256": read_card(name).sha256}


def averaged(path: Path) -> tuple[Projector, ProjectorConfig]:
    """The network of a checkpoint with averaged weights, rounded to the half precision it is shipped in."""
    from ml_phaser.networks.projector import Projector
    from ml_phaser.networks.store import config_from
    from ml_phaser.training.loop import read_checkpoint

    saved = read_checkpoint(path)
    config = config_from(saved["config"], str(path))
    network = Projector(config)
    try:
        network.load_state_dict({k: v.half().float() for k, v in saved["mean"].items()})
    except RuntimeError:
        raise UserError("the weights do not fit the network", str(path)) from None
    return network.eval(), config


def run_export(options: dict[str, Any], holdout: Library, notify: Reporter) -> Path:
    """Judge the network on held-out crystals, write weights and card; returns the path of the card."""
    from ml_phaser.evaluation.one_pass import Plan, evaluate
    from ml_phaser.evaluation.one_pass_report import brief, write_report
    from ml_phaser.networks.store import save_projector
    from ml_phaser.training.loop import CHECKPOINT, read_checkpoint
    from ml_phaser.training.record import claims, model_card, read_record

    out, name = options["out"], options["export"]
    network, config = averaged(out / CHECKPOINT)
    saved = read_checkpoint(out / CHECKPOINT)
    record = {k: saved[k] for k in ("seconds", "steps", "samples") if k in saved} | read_record(out)
    notify.stage(f"judge on {len(set(holdout.entry))} held-out entries")
    report = evaluate(
        network, holdout, replace(Plan(), crystals=options["crystals"]),
        lambda fraction, text: notify.progress(fraction, None),
    )  # fmt: skip
    claimed, limits = claims(report.claimed(), config)
    card = save_projector(
        network.state_dict(), claimed, model_card(claimed, record, brief(report), limits), name, options["weights"]
    )
    if options["benchout"] is not None:
        facts = {"name": name, "steps": saved["steps"], "seconds of training": round(saved["seconds"])}
        notify.say(f"table: {write_report(options['benchout'], report, facts)}")
    for d, beats in report.beats.items():
        notify.say(f" {d} A: ahead of every rival on average {beats.on_average}, in every row {beats.every_row}")
    for sentence in limits:
        notify.say(sentence)
    return card


def check(options: dict[str, Any]) -> dict[str, Any]:
    """Options with paths and channels made of text; UserError for what is missing, does nothing or is in the way."""
    options = check_asked(options, TABLE, PROGRAM, ONLY_EXPORT, ("data", "out", "holdout", "benchout"))
    options["channels"], options["blocks"] = parse_levels(options["channels"], options["blocks"])
    return options


def run(argv: list[str]) -> None:
    """Train, export, or both. Raises UserError."""
    options = check(parse(argv, TABLE))
    import torch

    from ml_phaser.simulate.fragments import load_library
    from ml_phaser.training.alone import alone

    torch.set_num_threads(options["threads"])
    with reporter(options["quiet"]) as notify:
        if options["seconds"]:
            notify.stage("train")
            library = load_library(options["data"], "train")
            with alone(options["out"]):
                run_training(options, library, notify)
        if options["export"]:
            holdout = load_library(options["holdout"] or options["data"], "holdout")
            notify.say(f"exported: {run_export(options, holdout, notify)}")


def pack(argv: list[str]) -> str:
    """Write the compact file; the text to print. Raises UserError."""
    options = parse(argv, PACK)
    for name in ("data", "out"):
        if options[name] is None:
            raise UserError("is missing", name, "ml_phaser train pack data FOLDER out FILE.npz")
    path = Path(options["out"]).expanduser()
    if path.exists() and not options["overwrite"]:
        raise UserError("exists already", str(path), "overwrite yes, or another name")
    from ml_phaser.simulate.fragments import load_library, save_library

    library = load_library(options["data"], options["split"])
    save_library(library, path, options["split"])
    size = path.stat().st_size / 1e6
    return f"{path}: {len(library)} chains, {size:.1f} MB, data sha256 {library.digest[:12]}"


def main(argv: list[str]) -> int:
    """Entry point; argv without the program's and sub-command's names. Returns the exit status."""

    def either(words: list[str]) -> None:
        if words[0].lower() == "pack":
            print(pack(words[1:]))
        else:
            run(words)

    return run_command(argv, PROGRAM, usage(), either)
