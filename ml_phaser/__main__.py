"""``python -m ml_phaser`` is the command ``ml_phaser``."""

from ml_phaser.cli import main

raise SystemExit(main())
