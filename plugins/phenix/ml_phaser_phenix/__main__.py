"""``python -m ml_phaser_phenix``, where libtbx makes no command: cctbx from pip or conda."""

from ml_phaser_phenix.command_line.ml_phaser import main

main()
