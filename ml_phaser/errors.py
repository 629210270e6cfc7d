"""Errors that are the user's to mend: what is wrong, where, what to try."""

from __future__ import annotations


class UserError(Exception):
    """One clear line for the user. The core raises it; only ``cli`` prints it and exits with 1.

    Parameters
    ----------
    what : what is wrong, without a full stop
    where : file, column or option it is wrong in
    hint : what to try
    """

    def __init__(self, what: str, where: str = "", hint: str = "") -> None:
        self.what, self.where, self.hint = what, where, hint
        line = f"{where}: {what}" if where else what
        super().__init__(f"{line}. Try: {hint}" if hint else line)
