"""News of a long run: a line for each task whose board can be drawn."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator

from harness.board.board import setting_labels
from harness.cli.terminal import progress_bar, stderr
from harness.store.store import Store
from harness.trials.trial import Trial

LOOK_SECONDS = 10.0  # between two looks at which trials have ended


class TaskNews:
    """A display of progress that also prints a line when the last trial of a task has ended, while others still run."""

    def __init__(self, trials: list[Trial], store: Store) -> None:
        self.store, self.pending, self.looked = store, list(trials), time.monotonic()
        self.labels = setting_labels(list(dict.fromkeys(trial.task for trial in trials)))

    @contextlib.contextmanager
    def progress(self, what: str, total: int) -> Iterator[Callable[[int], object]]:
        """Show the progress of a step, as `progress_bar` does, and the news."""
        with progress_bar(what, total) as step:

            def step_and_look(count: int) -> None:
                step(count)
                if time.monotonic() - self.looked >= LOOK_SECONDS:
                    self.look()

            yield step_and_look

    def look(self) -> None:
        """Print a line for each task of which no trial is left."""
        before = Counter(trial.task for trial in self.pending)
        ended = self.store.ended_keys()
        self.pending = [trial for trial in self.pending if trial.key not in ended]
        left = Counter(trial.task for trial in self.pending)
        for task in before.keys() - left.keys() if left else ():
            stderr.print(
                f"{self.labels[task]}: all its trials have ended; manyminds board shows it while the others run"
            )
        self.looked = time.monotonic()
