"""The next program, as its user sees it: its log streamed into ours, and what it reached."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING

from ml_phaser.errors import UserError

if TYPE_CHECKING:
    from ml_phaser.outcome import Outcome, Then
    from ml_phaser.parameters import Options

INDENT = "   "  # so that readers of our log do not take its tables for ours
BLUNT = "the phases are not solved, so there is nothing for it to build on"


def go_on(outcome: Outcome, options: Options) -> None:
    """Run the program ``then`` names and record what became of it.

    Where nothing was solved it is not run, which is no error.

    Raises
    ------
    UserError : it could not be started, or ended with an exit status other than 0
    KeyboardInterrupt : Ctrl-C or a request to terminate, after the program has ended
    """
    from ml_phaser import chain
    from ml_phaser.pipeline import record_again

    loud = not options.quiet
    if outcome.verdict.word == "not solved":
        then, number = chain.not_run(options, BLUNT), 0
    else:
        job = chain.prepare(outcome, options)
        if loud:
            _print(f"\n -- then {options.then}\n\n{INDENT}{job.command}\n")
        then, number = chain.run(job, (lambda line: _print(INDENT + line)) if loud else (lambda line: None))
    record_again(replace(outcome, then=then), options)
    _print(("\n" if loud else "") + _line(then))
    if number:
        raise KeyboardInterrupt
    if then.exit_code:
        raise UserError(
            f"{then.program} failed (exit status {then.exit_code}); the phases are written all the same",
            f"then {then.program}",
            f"its log, {then.log}",
        )


def _line(then: Then) -> str:
    if then.exit_code is None:
        return f" {then.program}: {then.summary}"
    return f" {then.program}: exit status {then.exit_code} after {then.seconds:.1f} s; {then.summary}"


def _print(text: str) -> None:
    """Print what our terminal may have no letters for."""
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, "replace").decode(encoding), flush=True)
