"""``ml_phaser uninstall``: see ``install``."""

from __future__ import annotations

from ml_phaser.cli import install


def main(words: list[str]) -> int:
    """Run the command; 0 at the end. Raises UserError."""
    return install.main(words, "uninstall")
