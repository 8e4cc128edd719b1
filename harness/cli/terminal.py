"""Messages on stderr, results as JSON on stdout, and the progress of long steps: a bar at a terminal, lines in a log file."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

stderr = Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)
json_stream: ContextVar[TextIO | None] = ContextVar("json_stream", default=None)  # None: stdout
LINE_SECONDS = 30.0  # between two lines of progress in a log file


@contextlib.contextmanager
def only_json_on_stdout() -> Iterator[None]:
    """Send to stderr what anybody prints inside the block, such as a plug-in, except by `print_json`."""
    with contextlib.ExitStack() as stack:
        stdout = sys.stdout
        if stdout is sys.__stdout__ and stdout:  # what other processes and libraries in C write goes to the file itself
            stdout.flush()
            stdout = stack.enter_context(os.fdopen(os.dup(1), "w", encoding="utf-8"))
            stack.callback(os.dup2, stdout.fileno(), 1)
            os.dup2(2, 1)
        stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        token = json_stream.set(stdout)
        stack.callback(json_stream.reset, token)
        yield


def print_json(value: object) -> None:
    """Print a command's result as JSON on stdout; NaN and infinity, which JSON does not have, become null."""
    plain = json.loads(json.dumps(value), parse_constant=lambda name: None)
    print(json.dumps(plain, indent=1), file=json_stream.get())


@contextlib.contextmanager
def progress_bar(what: str, total: int) -> Iterator[Callable[[int], object]]:
    """Show the progress of a long step, and yield a function to call with the number of parts newly done.

    A terminal gets a bar with the time spent and the time left; anything else a line every LINE_SECONDS.
    """
    if not stderr.is_terminal:
        with _progress_lines(what, total) as step:
            yield step
        return
    columns = (
        TextColumn("{task.description:10}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left:"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=stderr, transient=True, speed_estimate_period=600) as progress:
        task = progress.add_task(what, total=total)
        yield lambda n: progress.advance(task, n)


@contextlib.contextmanager
def _progress_lines(what: str, total: int) -> Iterator[Callable[[int], object]]:
    began, done, ended = time.monotonic(), 0, threading.Event()

    def step(count: int) -> None:
        nonlocal done
        done += count

    def report() -> None:
        while not ended.wait(LINE_SECONDS):
            spent = time.monotonic() - began
            known = done >= max(3, total / 10)  # before that, the first and slowest steps would be taken for all
            left = f", about {_in_words(spent / done * (total - done))} left" if known else ""
            stderr.print(f"{what}: {done} of {total} in {_in_words(spent)}{left}")

    reporter = threading.Thread(target=report, daemon=True)
    reporter.start()
    try:
        yield step
    finally:
        ended.set()
        reporter.join()


def _in_words(seconds: float) -> str:
    """Return a duration with one unit: `45 s`, `12 min` or `3.5 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
