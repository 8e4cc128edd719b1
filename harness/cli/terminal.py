"""Messages and progress bars on stderr, for people at a terminal."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

stderr = Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)


@contextlib.contextmanager
def progress_bar(what: str, total: int) -> Iterator:
    """Show a progress bar, and yield a function to call with the number of steps newly done."""
    columns = (TextColumn("{task.description:10}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=stderr, transient=True) as progress:
        task = progress.add_task(what, total=total)
        yield lambda n: progress.advance(task, n)
