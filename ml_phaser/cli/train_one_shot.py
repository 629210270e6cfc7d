"""``ml_phaser train_one_shot``: train a network that predicts density from the Patterson map, judge it, export it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml_phaser.cli.progress import Reporter
from ml_phaser.cli.training import check_asked, choose_device, option_lines, parse, reporter, run_command, run_session
from ml_phaser.errors import UserError
from ml_phaser.parameters import Parameter

if TYPE_CHECKING:
    from torch import nn

    from ml_phaser.networks.crysformer import CrysFormer
    from ml_phaser.networks.unet import UNet
    from ml_phaser.simulate.fragments import Library
    from ml_phaser.simulate.one_shot import OneShotRecipe

PROGRAM = "ml_phaser train_one_shot"
FAMILIES = ("dialanine-1a", "dialanine-1b", "dipeptide-12", "dipeptide-minimal", "residues-15")
TABLE = (
    Parameter("data", "text", "protein coordinates: their folder, or a file made by train pack"),
    Parameter("out", "text", "folder of the run: checkpoint.pt, log.jsonl, run.json; gone on with if it is there"),
    Parameter("seconds", "float", "wall-clock budget of the whole run [0: train no more]", low=0, high=1e8, unit="s"),
    Parameter(
        "session", "float", "stop this session after so long [when the budget is spent]", low=0, high=1e8, unit="s"
    ),
    Parameter("network", "choice", "the U-Net of Pan et al. or CrysFormer", default="crysformer",
              choices=("unet", "crysformer")),
    Parameter("family", "choice", "the data set", default="dipeptide-minimal", choices=FAMILIES),
    Parameter("resolution", "float", "d_min of the data set", default=1.5, low=0.8, high=4.0, unit="A"),
    Parameter("spacing", "float", "largest grid spacing [a third of the resolution]", low=0.2, high=2.0, unit="A"),
    Parameter("parts", "flag", "show the residues by themselves, in a standard conformation", default=False),
    Parameter("recycles", "int", "most earlier predictions shown to the next pass; 0: none", default=2, low=0, high=50),
    Parameter("loss", "choice", "mean squared error, with 1 - correlation, or at any origin and hand",
              default="mse+pearson", choices=("mse", "mse+pearson", "free")),
    Parameter("width", "int", "features: of the blocks (unet) or the tokens (crysformer) [25, 256]", low=8, high=4096),
    Parameter("depth", "int", "residual blocks (unet) or layers (crysformer) [7, 8]", low=1, high=64),
    Parameter("patch", "int", "grid points along a patch (crysformer) [4]", low=1, high=16),
    Parameter("begin", "text", "bundled network, or checkpoint.pt, as wide and deep, to begin with [random weights]"),
    Parameter("batch", "int", "crystals a step", default=32, low=1, high=65536),
    Parameter("rate", "float", "highest learning rate", default=2e-3, low=1e-7, high=1.0),
    Parameter("seed", "int", "of weights and crystals", default=0, low=0, high=2**31 - 1),
    Parameter("device", "choice", "where to train", default="auto", choices=("auto", "cpu", "cuda")),
    Parameter("threads", "int", "processor threads", default=1, low=1, high=1024),
    Parameter("export", "text", "judge the network on held-out entries and write it under this name [no]"),
    Parameter("weights", "text", "folder to export to [out]"),
    Parameter("holdout", "text", "held-out coordinates to judge by, where data is a file [data]"),
    Parameter("crystals", "int", "crystals in that judgement", default=256, low=8, high=65536),
    Parameter("overwrite", "flag", "replace exported files that exist", default=False),
    Parameter("quiet", "flag", "print errors only", default=False),
)  # fmt: skip
ONLY_EXPORT = ("weights", "holdout", "crystals", "overwrite")


def usage() -> str:
    """The answer to ``--help``."""
    return "\n".join(
        [
            "usage: ml_phaser train_one_shot data FOLDER out FOLDER seconds 6000 [name value ...]",
            "       ml_phaser train_one_shot data FOLDER out FOLDER export NAME [name value ...]",
            "",
            "Train a network that predicts density from the Patterson map, on the data sets of the founding papers,",
            "every molecule turned at random. A run that is stopped goes on with the same command. Names in any case,",
            "with or without --.",
            "",
            *option_lines(TABLE),
            "",
        ]
    )


def check(options: dict[str, Any]) -> dict[str, Any]:
    """Options with paths made of text; UserError for what is missing, does nothing or is in the way."""
    options = check_asked(options, TABLE, PROGRAM, ONLY_EXPORT, ("data", "out", "holdout"))
    if options["patch"] is not None and options["network"] == "unet":
        raise UserError("does nothing with network unet", "patch", "network crysformer")
    return options


def run_training(options: dict[str, Any], library: Library, notify: Reporter) -> None:
    """One session of training. Raises UserError; one that says how to go on where the user stopped it."""
    from ml_phaser.simulate.one_shot import one_shot_batches
    from ml_phaser.training.loop import Schedule, untrained
    from ml_phaser.training.one_shot import Asked, one_shot_lessons
    from ml_phaser.training.one_shot_networks import configure
    from ml_phaser.training.record import Recorder
    from ml_phaser.training.workers import seed_of

    out, batch, seed, device = options["out"], options["batch"], options["seed"], options["device"]
    kind, config, recipe = configure(
        options["network"], options["family"], options["resolution"], options["spacing"], parts=options["parts"],
        recycled=options["recycles"] > 0, width=options["width"], depth=options["depth"], patch=options["patch"],
    )  # fmt: skip
    begin, origin = beginning(options["begin"], kind, config)
    schedule = Schedule(options["seconds"], batch=batch, rate=options["rate"])
    asked_for = Asked(options["loss"], recycles=options["recycles"])
    recorder = Recorder(
        out, config, schedule, library, recipe, asked_for, device=device, threads=options["threads"], workers=0,
        seed=seed, begin=origin, program=PROGRAM,
    )  # fmt: skip
    network = untrained(kind, config, seed, begin)
    count = sum(p.numel() for p in network.parameters())
    notify.say(
        f"training {options['network']}, {count / 1e6:.2f} M parameters, on {device}; data {library.digest[:12]}"
    )
    lessons = one_shot_lessons(
        lambda steps: one_shot_batches(library, batch, seed_of(seed, steps, 0), recipe, device), asked_for, seed
    )
    run_session(network, schedule, lessons, out, recorder, notify, session=options["session"], device=device)


def beginning(
    name: str | None, kind: Callable[[Any], nn.Module], config: Any
) -> tuple[nn.Module | None, dict[str, str] | None]:
    """A network of ``config`` with the weights of a bundled one or of a checkpoint, and what the record says of it.

    Raises
    ------
    UserError
        where there is none, or it is another network than ``config`` but for its crystals and its grid
    """
    if name is None:
        return None, None
    from ml_phaser.networks.store import load_one_shot, read_card
    from ml_phaser.training.one_shot_networks import carried_over

    path = Path(name)
    if path.suffix == ".pt":
        earlier, _, _ = averaged(path)
        origin = {"name": name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    else:
        earlier, origin = load_one_shot(name), {"name": name, "sha256": read_card(name).sha256}
    network = kind(config)
    network.load_state_dict(carried_over(earlier.state_dict(), earlier.config, config))
    return network, origin


def averaged(path: Path) -> tuple[UNet | CrysFormer, str, dict[str, Any]]:
    """The network of a checkpoint with averaged weights, rounded as they are shipped; its kind; the run's totals.

    Raises
    ------
    UserError
        where it is no checkpoint of a one-shot network
    """
    from ml_phaser.networks.store import kind_of, make_one_shot, shipped
    from ml_phaser.training.loop import read_checkpoint

    saved = read_checkpoint(path)
    kind = kind_of(saved["config"], str(path))
    network = make_one_shot(kind, saved["config"], str(path))
    try:
        network.load_state_dict({k: shipped(v).to(v.dtype) for k, v in saved["mean"].items()})
    except RuntimeError:
        raise UserError("the weights do not fit the network", str(path)) from None
    return network.eval(), kind, {k: saved[k] for k in ("seconds", "steps", "samples") if k in saved}


def recipe_of(config: Any) -> OneShotRecipe:
    """The crystals a network was trained for."""
    from ml_phaser.simulate.one_shot import OneShotRecipe

    return OneShotRecipe(config.family, config.d_min, config.spacing, config.stride, config.parts > 0)


def passes_of(record: dict[str, Any], recycled: bool) -> int:
    """Most passes a network was trained with, by the record of its run."""
    return 1 + int((record.get("lesson") or {}).get("recycles", 0)) if recycled else 1


def run_export(options: dict[str, Any], holdout: Library, notify: Reporter) -> Path:
    """Judge the network on held-out crystals, write weights and card; returns the path of the card.

    Raises
    ------
    UserError
        where it is no better than the constant prediction, and the errors of ``save_one_shot``
    """
    from ml_phaser.evaluation.one_shot import MARGIN, Plan, evaluate
    from ml_phaser.evaluation.one_shot_report import brief
    from ml_phaser.networks.store import check_size, save_one_shot, shipped
    from ml_phaser.training.loop import CHECKPOINT
    from ml_phaser.training.one_shot_card import one_shot_card
    from ml_phaser.training.record import read_record

    out, name = options["out"], options["export"]
    network, kind, totals = averaged(out / CHECKPOINT)
    if not name.startswith(f"{kind}-"):
        raise UserError("is not how such a network is looked for", f"export {name}", f"export {kind}-NAME")
    check_size({k: shipped(v) for k, v in network.state_dict().items()}, name)  # before minutes of judging
    record = totals | read_record(out)
    passes = passes_of(record, network.config.recycled)
    notify.stage(f"judge on {len(set(holdout.entry))} held-out entries")
    report = evaluate(
        network, holdout, recipe_of(network.config), Plan(crystals=options["crystals"]),
        recycled=network.config.recycled, trained=passes, progress=lambda fraction: notify.progress(fraction, None),
    )  # fmt: skip
    led = f"ahead by {report.lead} of correlation, {report.lead_f} with measured amplitudes"
    if not report.beats_blob:
        what = f"does not beat the mean map of other molecules ({led}; {MARGIN:g} is wanted): it is not exported"
        raise UserError(what, str(out), "more training, or more crystals to judge by")
    notify.say(f"the mean map of other molecules is beaten: {led}")
    facts = one_shot_card(kind, network.config, record, brief(report), passes)
    return save_one_shot(network.state_dict(), kind, network.config, facts, name, options["weights"])


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
            options["device"] = choose_device(options["device"])
            library = load_library(options["data"], "train")
            with alone(options["out"]):
                run_training(options, library, notify)
        if options["export"]:
            holdout = load_library(options["holdout"] or options["data"], "holdout")
            notify.say(f"exported: {run_export(options, holdout, notify)}")


def main(argv: list[str]) -> int:
    """Entry point; argv without the program's and sub-command's names. Returns the exit status."""
    return run_command(argv, PROGRAM, usage(), run)
