"""Marks of which trial each worker runs: they tell which trial a dead worker was running, and end one that takes too long.

The marks of a group are files of the run's session, which all nodes see. They are removed with the session, so no other
run meets them, however long a trial takes.
"""

from __future__ import annotations

import contextlib
import faulthandler
from collections.abc import Iterator
from pathlib import Path

DEFAULT_TRIAL_MINUTES = 360.0  # generous: a policy may train for hours, a trial of any other method takes minutes


class GroupMarks:
    """The marks of one worker group.

    worker-RANK    the key of the trial that this worker runs; a worker that dies leaves the file behind. Below the key,
                   the traceback of a trial that took too long.
    deaths-KEY     one byte for each worker that died while it ran this trial
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    @contextlib.contextmanager
    def running(self, rank: int, key: str, minutes: float) -> Iterator[None]:
        """Mark the trial as running; end this process if the code within takes longer than `minutes`.

        The watching thread is not Python's, so a method that holds the interpreter's lock cannot block it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        mark = self._mark_of_worker(rank)
        with mark.open("w") as file:
            file.write(f"{key}\n")
            file.flush()
            faulthandler.dump_traceback_later(60 * minutes, exit=True, file=file)
            try:
                yield
            finally:  # also after an exception, which is reported and is not a death
                faulthandler.cancel_dump_traceback_later()
                mark.unlink(missing_ok=True)

    def interrupted_trial(self, rank: int) -> tuple[str, str]:
        """Return the key of the trial that a dead worker was running, and the traceback if it took too long; else ""."""
        try:
            key, _, trace = self._mark_of_worker(rank).read_text(errors="replace").partition("\n")
        except FileNotFoundError:
            return "", ""
        return key, trace

    def forget_workers(self) -> None:
        """Remove the marks of all workers, which are started again."""
        for mark in self.folder.glob("worker-*"):
            mark.unlink(missing_ok=True)

    def count_death(self, key: str) -> None:
        """Count one more death of a worker that was running this trial."""
        with self._deaths_of_trial(key).open("a") as deaths:
            deaths.write(".")

    def deaths(self, key: str) -> int:
        """Return how many workers have died while they ran this trial."""
        with contextlib.suppress(FileNotFoundError):
            return self._deaths_of_trial(key).stat().st_size
        return 0

    def _mark_of_worker(self, rank: int) -> Path:
        return self.folder / f"worker-{rank}"

    def _deaths_of_trial(self, key: str) -> Path:
        return self.folder / f"deaths-{key}"
