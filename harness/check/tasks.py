"""What every task must keep."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from harness.check.findings import Question, arrays_of, listed, two_runs_differ, unchecked_field, undescribed
from harness.data import Leak, Pairs, PreferenceDataset, Splits, arrays, digest
from harness.errors import Mistake
from harness.store.store import Store
from harness.task import Task, build_task
from harness.trials.prepare import enough_context
from harness.trials.trial import hashed, task_identity


def task_checks(task: Task, store: Store | None = None) -> Iterator[Question]:
    """(question, check) for each rule of a task; a check returns what is wrong, or None.

    Checks are asked as they come: what cannot be built is asked nothing more.
    """
    built: list[BuiltTask] = []

    def builds() -> str | None:
        data = build_task(task, 0, store)
        splits = task.split(data, 0)
        if not isinstance(data, PreferenceDataset) or not isinstance(splits, Splits):
            return "build must return a PreferenceDataset, and split Splits"
        built.append(BuiltTask(task, store, data, splits))
        return None

    yield "its file says in one line what it is", lambda: undescribed(task)
    yield "its settings can be a key", lambda: hashed(task_identity(task, 0)) and None
    yield "its fields take nothing else than they say", lambda: unchecked_field(task)
    yield "it builds and splits", builds
    if built:
        yield from built[0].checks()


@dataclass(frozen=True, eq=False)
class BuiltTask:
    """A task with what it built and split under seed 0."""

    task: Task
    store: Store | None
    data: PreferenceDataset
    splits: Splits

    def checks(self) -> list[Question]:
        return [
            ("the same seed builds the same data", self.builds_the_same),
            ("the same seed splits the same way", self.splits_the_same),
            ("another seed gives another split", self.another_seed),
            ("panels are at least validation, seen and test", self.panels),
            ("no split leaks", self.leaks),
            ("validation and test people are different", self.people),
            ("everybody has enough pairs to show and one to ask", self.enough),
            ("features are float32 and finite", self.features),
            ("labels are shares", self.labels),
            ("position tells nothing", self.position),
            ("an item's number tells nothing", self.number),
        ]

    def builds_the_same(self) -> str | None:
        again = build_task(self.task, 0, self.store)
        return two_runs_differ(digest(arrays(again)), digest(arrays(self.data)))

    def splits_the_same(self) -> str | None:
        again = self.task.split(self.data, 0)
        return two_runs_differ(digest(arrays_of(again)), digest(arrays_of(self.splits)))

    def another_seed(self) -> str | None:
        other = self.task.split(build_task(self.task, 1, self.store), 1)
        changed = digest(arrays_of(self.splits)) != digest(arrays_of(other))
        return None if changed else "seeds 0 and 1 give the same split"

    def panels(self) -> str | None:
        return listed({"validation", "seen", "test"} - set(self.splits.panels))

    def leaks(self) -> str | None:
        try:
            self.splits.check()
        except Leak as leak:
            return str(leak)
        return None

    def people(self) -> str | None:
        users = {name: set(panel.query.people.tolist()) for name, panel in self.splits.panels.items()}
        return listed(users.get("validation", set()) & users.get("test", set()))

    def enough(self) -> str | None:
        try:
            enough_context(self.task, self.splits)
        except Mistake as mistake:
            return mistake.message
        return None

    @property
    def asked(self) -> Pairs:
        """The test panel's questions; the training pairs where there is no such panel."""
        return self.splits.panels["test"].query if "test" in self.splits.panels else self.splits.train

    def features(self) -> str | None:
        items = self.asked.items
        if items.features is None:
            return None if items.text is not None else "items have neither features nor text"
        if items.features.dtype == np.float32 and np.isfinite(items.features).all():
            return None
        return f"features are {items.features.dtype}, or not all finite"

    def labels(self) -> str | None:
        label = self.asked.label
        return None if ((label >= 0) & (label <= 1)).all() else "a label is outside [0, 1]"

    def position(self) -> str | None:
        label = self.data.pairs.label
        return None if _like_coin_flips(label) else f"left wins {label.mean():.3f} of {len(label)} pairs"

    def number(self) -> str | None:
        left, right = self.data.pairs.left, self.data.pairs.right
        times = np.bincount(np.r_[left, right], minlength=len(self.data.pairs.items))
        once = (times[left] == 1) & (times[right] == 1)  # nothing else is known of these items
        label = np.where(left < right, self.data.pairs.label, 1 - self.data.pairs.label)[once]
        if not once.any() or _like_coin_flips(label):
            return None
        return f"the item of lower number wins {label.mean():.3f} of {once.sum()} pairs"


def _like_coin_flips(label: np.ndarray) -> bool:
    """Whether a mean of labels is within 4.5 standard errors of one half; labels are at most as spread as coin flips."""
    return bool(abs(label.mean() - 0.5) < 4.5 * 0.5 / np.sqrt(len(label)))
