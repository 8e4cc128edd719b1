"""Preparation of tasks: build, split, check for leaks, and commit to the store, from where workers memory-map them."""

from __future__ import annotations

import io
import logging
import traceback
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
from threadpoolctl import threadpool_limits

from harness.data import Pairs, Splits, arrays_digest, named_arrays
from harness.errors import UserError
from harness.method import TaskFacts
from harness.store.prepared import PAIR_COLUMNS
from harness.store.store import Store
from harness.task import Task, build_task
from harness.trials.trial import identity_hash, task_identity

log = logging.getLogger(__name__)


def prepare_task(store: Store, task: Task, seed: int) -> dict:
    """Return the manifest of the prepared task. Build, split, check and commit the task if the store lacks it.

    Raises UserError where the task's code raises, and where people have too few pairs.
    """
    identity = task_identity(task, seed)
    key = identity_hash(identity)
    if found := store.read_manifest("tasks", key):
        return found
    log.info("task %s, seed %d: building %s", task.name, seed, key)
    with threadpool_limits(1):  # sums in a fixed order give the same features, and so the same keys, on any machine
        data = _call_task(task, "build", build_task, task, seed, store)
        splits = _call_task(task, "split", task.split, data, seed)
    splits.check_for_leaks()
    check_enough_context(task, splits)
    named: dict[str, np.ndarray | pa.Table] = {}
    for where, pairs in _named_pairs(splits).items():
        named |= {f"{where}.{c}": getattr(pairs, c) for c in PAIR_COLUMNS if getattr(pairs, c) is not None}
    named |= {f"{n}.choices": p.choices for n, p in splits.panels.items() if p.choices is not None}
    kept = ("features", "text", "profiles")
    named |= {n: v for n, v in named_arrays(data).items() if n in kept or n.startswith("truth.")}
    items = data.pairs.items
    facts = {
        "feature_dim": None if items.features is None else int(items.features.shape[1]),
        "has_text": items.text is not None,
        "has_seconds": data.pairs.seconds is not None,
        "has_truth": data.truth is not None,
        "has_profiles": data.pairs.profiles is not None,
        "shares_pairs": shares_pairs(splits),
        "can_choose": can_choose(task, splits),
        "items": len(items),
        "people": data.pairs.n_users,
        "population": data.content_digest(),  # seeds of one data set share people, seeds of a simulator do not
        "users": {where: pairs.n_users for where, pairs in _named_pairs(splits).items() if not where.endswith("query")},
        "pairs": {where: len(pairs) for where, pairs in _named_pairs(splits).items()},
        "data": arrays_digest(named),
    }
    store.commit(
        "tasks",
        key,
        identity,
        {f"{n}.{'arrow' if isinstance(v, pa.Table) else 'npy'}": _file_content(v) for n, v in named.items()},
        facts,
    )
    prepared = store.read_manifest("tasks", key)
    if prepared is None:
        raise UserError(
            f"the prepared task {key} has disappeared from {store.root}",
            "run the command again, and check that nothing else removes files there",
        )
    return prepared


T = TypeVar("T")


def _call_task(task: Task, step: str, function: Callable[..., T], *arguments: object) -> T:
    try:
        return function(*arguments)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"task {task.name}: {step} raised {describe_error(error)}",
            "check that its field values fit together; `manyminds check` builds it with its defaults",
        ) from error


def describe_error(error: Exception) -> str:
    """Return the error's type, message, file and line."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({Path(last.filename).name}:{last.lineno})"


def check_enough_context(task: Task, splits: Splits) -> None:
    """Raise UserError where a person has fewer context pairs than the largest number of shots, or no query pairs.

    Training users (panel `seen`) need only enough for the smallest number of shots: they are scored at the numbers of
    shots that all of them have.
    """
    for name, panel in splits.panels.items():
        needed = min(task.shots) if name == "seen" else max(task.shots)
        shown = np.diff(panel.context.offsets)
        asked = np.diff(panel.query.offsets)
        if shown.min(initial=needed) < needed or not asked.all():
            user = int(np.argmin(np.where(asked == 0, -1, shown)))
            raise UserError(
                f"task {task.name}, panel {name}: person {panel.context.people[user]} has {shown[user]} context pairs "
                f"and {asked[user]} query pairs, but needs {needed} and at least 1",
                f"lower shots below {shown[user] + 1}, or leave out people with few pairs",
            )


def shares_pairs(splits: Splits) -> bool:
    """Return whether training users judged most of the test users' query pairs too, in either order."""
    n = len(splits.train.items)

    def numbers(pairs: Pairs) -> np.ndarray:
        low, high = np.minimum(pairs.left, pairs.right), np.maximum(pairs.left, pairs.right)
        return low.astype(np.int64) * n + high

    return bool(np.isin(numbers(splits.panels["test"].query), numbers(splits.train)).mean() > 0.5)


def can_choose(task: Task, splits: Splits) -> bool:
    """Return whether methods can choose which pairs to be shown.

    Every test user then has more context pairs than the largest number of shots.
    """
    return bool((np.diff(splits.panels["test"].context.offsets) > max(task.shots)).all())


def task_facts(prepared: dict) -> TaskFacts:
    """Return what methods may know before they run. Facts that an older store lacks keep their defaults."""
    facts = prepared["facts"]
    return TaskFacts(**{field.name: facts[field.name] for field in fields(TaskFacts) if field.name in facts})


def _named_pairs(splits: Splits) -> dict[str, Pairs]:
    """Return every Pairs of a split under its name: `train`, `test/context`, `test/query`, ..."""
    panels = {
        f"{name}/{side}": getattr(panel, side) for name, panel in splits.panels.items() for side in ("context", "query")
    }
    return {"train": splits.train} | panels


def _file_content(value: np.ndarray | pa.Table) -> memoryview:
    if isinstance(value, pa.Table):
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, value.schema) as writer:
            writer.write_table(value)
        return memoryview(sink.getvalue())
    sink = io.BytesIO()
    np.save(sink, value, allow_pickle=False)
    return sink.getbuffer()
