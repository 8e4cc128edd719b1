"""Ctrl-C and SIGTERM as an exception that ends the command, with everything that it started."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

RETRY_SECONDS = 0.05  # between two looks at whether an import has ended
SWALLOWED_SECONDS = 2.0  # after which an exception must have ended what waits for Ray
WAITING = "call_watched"  # the function in which a command waits for Ray


class Interrupted(KeyboardInterrupt):
    """The exception that ends the command after Ctrl-C or SIGTERM."""


@contextmanager
def raising_interrupts() -> Iterator[list[int]]:
    """Raise Interrupted at Ctrl-C and SIGTERM inside the block; yield the list of signals received so far.

    A signal during an import waits until the import has ended, because libraries in C++ abort at an exception there. Python
    ignores an exception that meets it in a destructor: where the command still waits for Ray after SWALLOWED_SECONDS, the
    exception is raised again. A second signal ends the process at once.
    """
    received: list[int] = []
    raised: list[bool] = []

    def stop(number: int, frame: FrameType | None) -> None:
        if number != signal.SIGALRM:
            if received:
                os._exit(128 + number)
            received.append(number)
        names = _functions_of(frame)
        if "" in names:
            signal.setitimer(signal.ITIMER_REAL, RETRY_SECONDS)
            return
        signal.setitimer(signal.ITIMER_REAL, SWALLOWED_SECONDS)
        if not raised or WAITING in names:
            raised.append(True)
            raise Interrupted

    if threading.current_thread() is not threading.main_thread():  # no other thread may set handlers
        yield received
        return
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield received
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


def _functions_of(frame: FrameType | None) -> set[str]:
    """Return the names of the functions that are running; "" stands for an import."""
    names = set()
    while frame is not None:
        names.add("" if frame.f_code.co_filename.startswith("<frozen importlib") else frame.f_code.co_name)
        frame = frame.f_back
    return names
