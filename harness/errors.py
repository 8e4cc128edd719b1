"""An error a user can cause and mend: what is wrong, and what to type."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable
from functools import cache


class UserError(Exception):
    """Shown as the message, a blank line and `hint:`, without a traceback; the command exits with 2."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.message, self.hint = message, hint

    def __str__(self) -> str:
        return f"{self.message}\n\nhint: {self.hint}"

    def __reduce__(self):
        return type(self), (self.message, self.hint)


class UnavailableError(UserError):
    """Data that is not at hand: what else was asked for can go on without it."""


def did_you_mean(word: str, known: Iterable[str], otherwise: str, cutoff: float = 0.6) -> str:
    """A hint: the known word nearest to a misspelt one, or `otherwise` where none is near.

    cutoff: how alike they must be, from 0 to 1; .6 is difflib's own.
    """
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=cutoff)
    return f"did you mean {near[0]!r}?" if near else otherwise


@cache
def note_former_name(former: str, current: str, where: str = "") -> None:
    """Say once on stderr that a name has changed; the former one still works."""
    print(f"note: {where}{former} is now called {current}; the old name still works", file=sys.stderr)
