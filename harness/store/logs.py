"""Log files of runs, kept in the store: a record of what each run did, to find out later why something failed."""

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

from harness.store.secrets import without_secrets
from harness.store.store import Store

LOGGER = logging.getLogger("harness")  # the parent of every module's logger
LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s [%(process)d] %(message)s"


class SecretsFormatter(logging.Formatter):
    """A formatter of log lines that leaves out secrets of the environment, also in tracebacks."""

    def format(self, record: logging.LogRecord) -> str:
        return without_secrets(super().format(record))


@cache
def run_name() -> str:
    """Return the name of this process's run and log files, `20261128-210533-HOST-PID`; names sort by time."""
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{socket.gethostname().partition('.')[0]}-{os.getpid()}"


@contextlib.contextmanager
def log_to_store(store: Store, name: str) -> Iterator[None]:
    """Also write what harness modules log to the store's log file of that name, inside this context.

    Contexts may be nested: a line is then written once to each file. The file is created with its first line. A run
    continues without a log that cannot be written.
    """
    path = store.log_file(name)
    if str(path) in [h.baseFilename for h in LOGGER.handlers if isinstance(h, logging.FileHandler)]:
        yield
        return
    handler: logging.Handler = logging.NullHandler()
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(path, encoding="utf-8", delay=True)
    handler.setFormatter(SecretsFormatter(LOG_FORMAT))
    handler.setLevel(logging.INFO)
    LOGGER.addHandler(handler)
    LOGGER.setLevel(min(LOGGER.level or logging.INFO, logging.INFO))
    try:
        yield
    finally:
        LOGGER.removeHandler(handler)
        handler.close()


def log_to_terminal(verbose: int) -> None:
    """Show the log on standard error: from level INFO where `verbose` is 1, from level DEBUG where it is higher."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(SecretsFormatter(LOG_FORMAT))
    LOGGER.addHandler(handler)
    LOGGER.setLevel(logging.INFO if verbose == 1 else logging.DEBUG)


def log_files(store: Store, name: str) -> list[Path]:
    """Return the log files of a run: the driver's, and those of its workers on Ray."""
    folder = store.log_file(name).parent
    return sorted([*folder.glob(f"{name}.log"), *folder.glob(f"{name}.worker-*.log")])


def current_run_name() -> str:
    """Return the name of the run that this process logs for, or "" where it writes no log file."""
    files = [Path(h.baseFilename) for h in LOGGER.handlers if isinstance(h, logging.FileHandler)]
    return files[-1].stem.partition(".")[0] if files else ""
