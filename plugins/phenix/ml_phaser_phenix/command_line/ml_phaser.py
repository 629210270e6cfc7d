# LIBTBX_SET_DISPATCHER_NAME phenix.ml_phaser
"""The command phenix.ml_phaser."""

import sys

from iotbx.cli_parser import run_program

from ml_phaser_phenix.parser import Parser, take_data_file
from ml_phaser_phenix.programs.ml_phaser import Program


def run(args=None, logger=None):
    """Run with these words, those of the command line by default; the results."""
    return run_program(
        program_class=Program,
        parser_class=Parser,
        custom_process_arguments=take_data_file,
        args=args,
        logger=logger,
    )


def main():
    """The command: as ``run``, but where the next program failed it says so last, and the exit status is 1."""
    results = run()
    sys.exit(None if results is None else results.next_failed or None)


if __name__ == "__main__":
    main()
