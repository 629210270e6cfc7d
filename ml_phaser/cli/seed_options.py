"""What can be known of the options about phase seeds before any work: none without its file, none against another."""

from __future__ import annotations

from pathlib import Path

from ml_phaser.errors import UserError
from ml_phaser.parameters import PARAMETERS, Options

ABOUT_SEEDOUT = ("seedformat", "seedbins", "seedfraction", "seedcount", "seedmin")


def check_seeds(options: Options) -> None:
    """Raise UserError where seeds meet another thing to begin with, or an option has nothing to be about."""
    if options.seedin is not None:
        named = {"phasein": options.phasein, "xyzin": options.xyzin}
        rivals = [f"{name} {path}" for name, path in named.items() if path is not None]
        rivals += ["starts fragments"] if options.starts == "fragments" else []
        if rivals:
            raise UserError(f"seeds cannot be begun with beside {rivals[0]}", "seedin", f"leave it or {rivals[0]} out")
    elif options.seedhold is not None:
        raise UserError("holds the seeds of seedin, which is missing", "seedhold", "seedin seeds.csv")
    if options.seedfraction is not None and options.seedcount is not None:
        raise UserError("says how many seeds, as seedfraction does", "seedcount", "leave one of them out")
    defaults = {p.name: p.default for p in PARAMETERS}
    lost = next((name for name in ABOUT_SEEDOUT if getattr(options, name) != defaults[name]), None)
    if options.seedout is None and lost is not None:
        raise UserError("is about the seeds of seedout, which is missing", lost, "seedout seeds.mtz")


def seed_files(options: Options) -> tuple[Path, ...]:
    """Every file of ``seedout``, () without it. Raises UserError for a name that its form does not know."""
    if options.seedout is None:
        return ()
    from ml_phaser.exchange.seed_files import seed_paths

    return seed_paths(options.seedout, options.seedformat)


def usual_ending(form: str) -> str:
    """The ending of ``seedout`` for a form, "auto" among them."""
    from ml_phaser.exchange.seed_files import FORMS, PLAIN

    return FORMS[PLAIN if form == "auto" else form][0]
