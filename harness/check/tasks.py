"""What every task must keep."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from harness.check.findings import _described, _differ, _missing, _settled, arrays_of
from harness.data import Leak, Pairs, PreferenceDataset, Splits, arrays, digest
from harness.errors import Mistake
from harness.store.store import Store
from harness.task import Task, build_task
from harness.trials.prepare import enough_context
from harness.trials.trial import hashed, task_identity


def task_checks(task: Task, store: Store) -> Iterator[tuple[str, Callable[[], str | None]]]:
    """(question, check) for each rule of a task; a check returns what is wrong, or None.

    Checks are asked as they come: what cannot be built is asked nothing more.
    """
    made: list[tuple[PreferenceDataset, Splits]] = []

    def builds() -> str | None:
        data = build_task(task, 0, store)
        splits = task.split(data, 0)
        if not isinstance(data, PreferenceDataset) or not isinstance(splits, Splits):
            return "build must return a PreferenceDataset, and split Splits"
        made.append((data, splits))
        return None

    yield "its file says in one line what it is", lambda: _described(task)
    yield "its settings can be a key", lambda: hashed(task_identity(task, 0)) and None
    yield "its fields take nothing else than they say", lambda: _settled(task)
    yield "it builds and splits", builds
    if not made:
        return
    data, splits = made[0]
    query = splits.panels["test"].query if "test" in splits.panels else splits.train
    users = {name: set(panel.query.people.tolist()) for name, panel in splits.panels.items()}

    def leaks() -> str | None:
        try:
            splits.check()
        except Leak as leak:
            return str(leak)
        return None

    def position() -> str | None:
        label = data.pairs.label
        bound = 4.5 * 0.5 / np.sqrt(len(label))  # labels are at most as spread as coin flips
        return None if abs(label.mean() - 0.5) < bound else f"left wins {label.mean():.3f} of {len(label)} pairs"

    def number() -> str | None:
        left, right = data.pairs.left, data.pairs.right
        times = np.bincount(np.r_[left, right], minlength=len(data.pairs.items))
        once = (times[left] == 1) & (times[right] == 1)  # nothing else is known of these items
        label = np.where(left < right, data.pairs.label, 1 - data.pairs.label)[once]
        if not once.any() or abs(label.mean() - 0.5) < 4.5 * 0.5 / np.sqrt(once.sum()):
            return None
        return f"the item of lower number wins {label.mean():.3f} of {once.sum()} pairs"

    def another_seed() -> str | None:
        other = task.split(build_task(task, 1, store), 1)
        changed = digest(arrays_of(splits)) != digest(arrays_of(other))
        return None if changed else "seeds 0 and 1 give the same split"

    def enough() -> str | None:
        try:
            enough_context(task, splits)
        except Mistake as mistake:
            return mistake.message
        return None

    yield (
        "the same seed builds the same data",
        lambda: _differ(digest(arrays(build_task(task, 0, store))), digest(arrays(data))),
    )
    yield (
        "the same seed splits the same way",
        lambda: _differ(digest(arrays_of(task.split(data, 0))), digest(arrays_of(splits))),
    )
    yield "another seed gives another split", another_seed
    yield (
        "panels are at least validation, seen and test",
        lambda: _missing({"validation", "seen", "test"} - set(splits.panels)),
    )
    yield "no split leaks", leaks
    yield (
        "validation and test people are different",
        lambda: _missing(users.get("validation", set()) & users.get("test", set())),
    )
    yield "everybody has enough pairs to show and one to ask", enough
    yield "features are float32 and finite", lambda: _features(query)
    yield (
        "labels are shares",
        lambda: None if ((query.label >= 0) & (query.label <= 1)).all() else "a label is outside [0, 1]",
    )
    yield "position tells nothing", position
    yield "an item's number tells nothing", number


def _features(pairs: Pairs) -> str | None:
    features = pairs.items.features
    if features is None:
        return None if pairs.items.text is not None else "items have neither features nor text"
    return (
        None
        if features.dtype == np.float32 and np.isfinite(features).all()
        else f"features are {features.dtype}, or not all finite"
    )
