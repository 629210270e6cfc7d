"""Every field of the ccp4i2 task with a value that is not its default, and what the program makes of the words."""

from pathlib import Path

from ml_phaser.cli.arguments import options_from, parse_command_line
from ml_phaser.suites.ccp4i2 import Field, fields

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "peptide.mtz"
TEXT = {"SPACEGROUP": "P 1 21 1", "CELL": "10,11,12,90,95,90", "SEEDIN": "seeds.csv"}


def other(field: Field) -> object:
    """A value unlike the default."""
    p = field.parameter
    if p.choices:
        return next(c for c in reversed(p.choices) if c != p.default)
    if field.kind == "CBoolean":
        return True
    if field.kind == "CString":
        return TEXT[field.id]
    low = 0 if field.low is None else field.low
    if field.kind == "CInt":
        return int(low) + 3
    return low + 1.5 if field.high is None or field.high > low + 1.5 else (low + field.high) / 2


def changed(words: list[str], before: list[str]) -> set[str]:
    """Options that two command lines set differently, each understood by the program itself."""
    now, then = (vars(options_from(parse_command_line([str(w) for w in line]))) for line in (words, before))
    return {name for name in now if now[name] != then[name]}


def check_every_field(command, tmp_path: Path) -> None:
    """``command(field, value)`` gives the words of a job with that one field set, (None, None) of one with none."""
    before = command(None, None)
    given = vars(options_from(parse_command_line([str(w) for w in before])))
    for field in fields():
        value = other(field)
        assert changed(command(field.id, value), before) == {field.parameter.name}, field.id
        if field.parameter.kind not in ("output", "resolution"):
            assert given[field.parameter.name] == field.parameter.default, field.id
