"""Errors that a user can cause and fix: each says what is wrong and what to type."""

from __future__ import annotations

import contextlib
import difflib
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import cache


class UserError(Exception):
    """An error shown as its message, a blank line and `hint:`, without a traceback; the command exits with status 2."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.message, self.hint = message, hint

    def __str__(self) -> str:
        return f"{self.message}\n\nhint: {self.hint}"

    def __reduce__(self):
        return type(self), (self.message, self.hint)


@contextlib.contextmanager
def error_prefix(where: str) -> Iterator[None]:
    """Begin the message of a UserError inside the block with where it was found, such as a file."""
    try:
        yield
    except UserError as error:
        error.message = f"{where}: {error.message}"
        raise


class UnavailableError(UserError):
    """A file, data set or model is unavailable. Work that does not need it can continue."""


def did_you_mean(
    word: str,
    known: Iterable[str],
    otherwise: str,
    cutoff: float = 0.6,
    shown: Mapping[str, str] | None = None,
) -> str:
    """Return a hint that names the known word closest to a misspelt one, or `otherwise` where none is close.

    cutoff: the least similarity of the two words, from 0 to 1; 0.6 is difflib's default. shown: how to write a known
    word in the hint, such as the path of a file for its name.
    """
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=cutoff)
    return f"did you mean {(shown or {}).get(near[0], near[0])!r}?" if near else otherwise


def message_of(error: BaseException) -> str:
    """Return an error's message, also where its own code cannot say it."""
    try:
        return str(error)
    except Exception:
        return "(its message cannot be shown)"


@cache
def print_note(note: str) -> None:
    """Print a note on stderr, once per process."""
    print(f"note: {note}", file=sys.stderr)


@cache
def note_former_name(former: str, current: str, where: str = "") -> None:
    """Print a note on stderr, once per name, that a name has changed; the former name still works."""
    print(f"note: {where}{former} is now called {current}; the old name still works", file=sys.stderr)
