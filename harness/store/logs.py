"""Log files of runs, kept in the store: what a run did, for finding out later why something failed."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from harness.store.store import Store

LOGGER = logging.getLogger("harness")  # of which every module's own is a child
LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s [%(process)d] %(message)s"


@cache
def run_name() -> str:
    """`20261128-210533-HOST-PID`: names the log files of this process's run, in the order of time."""
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{socket.gethostname().partition('.')[0]}-{os.getpid()}"


@contextlib.contextmanager
def log_to_store(store: Store, name: str) -> Iterator[None]:
    """Within it, what harness modules log goes to the store's log file of that name too; within another, to both once.

    The file appears with its first line. A log that cannot be written stops no run: the run goes on without.
    """
    path = store.log_file(name)
    if str(path) in [h.baseFilename for h in LOGGER.handlers if isinstance(h, logging.FileHandler)]:
        yield
        return
    handler: logging.Handler = logging.NullHandler()
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(path, encoding="utf-8", delay=True)
    handler.setFormatter(logging.Formatter(LOG_FORMAT))
    handler.setLevel(logging.INFO)
    LOGGER.addHandler(handler)
    LOGGER.setLevel(min(LOGGER.level or logging.INFO, logging.INFO))
    try:
        yield
    finally:
        LOGGER.removeHandler(handler)
        handler.close()


def log_to_terminal(verbose: int) -> None:
    """Shows the log on standard error: from INFO on where `verbose` is 1, from DEBUG on where it is more."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(LOG_FORMAT))
    LOGGER.addHandler(handler)
    LOGGER.setLevel(logging.INFO if verbose == 1 else logging.DEBUG)


def log_files(store: Store, name: str) -> list[Path]:
    """The log files of a run: the driver's, and those of its workers on Ray."""
    folder = store.log_file(name).parent
    return sorted([*folder.glob(f"{name}.log"), *folder.glob(f"{name}.worker-*.log")])


def current_run_name() -> str:
    """The name of the run that this process logs to, and "" where it logs to no file."""
    files = [Path(h.baseFilename) for h in LOGGER.handlers if isinstance(h, logging.FileHandler)]
    return files[-1].stem.partition(".")[0] if files else ""
