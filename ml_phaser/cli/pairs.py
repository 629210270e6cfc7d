"""Options of a sub-command as pairs of words: name and value."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from ml_phaser.errors import UserError


def parse_pairs(argv: Sequence[str], names: Collection[str], two: Collection[str] = ()) -> dict[str, str]:
    """Value of each option given, names in any case, with or without ``--``; those in ``two`` may take two words.

    Raises UserError for a name not in ``names``, one given twice, one without a value.
    """
    options: dict[str, str] = {}
    words = list(argv)
    while words:
        word = words.pop(0)
        name, equals, value = word.partition("=") if word.startswith("--") else (word, "", "")
        name = name.lstrip("-").lower()
        if name not in names:
            raise UserError("not an option", word, f"one of {' '.join(names)}, or --help")
        if name in options:
            raise UserError("given twice", name)
        if not equals:
            if not words:
                raise UserError("has no value", name)
            value = words.pop(0)
        if name in two and "," not in value and words and words[0].lower() not in names:
            value += "," + words.pop(0) if not words[0].startswith("--") else ""
        options[name] = value
    return options
