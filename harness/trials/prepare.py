"""Preparation of tasks: build, split, check for leaks, and commit to the store, from where workers memory-map them."""

from __future__ import annotations

import hashlib
import inspect
import io
import logging
import traceback
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from threadpoolctl import threadpool_limits

from harness.data import Pairs, PreferenceDataset, Splits, arrays_digest, named_arrays
from harness.errors import UserError, error_prefix, message_of
from harness.method import TaskFacts
from harness.parallel import standard_state
from harness.scaling import ColumnScale, check_magnitude
from harness.store.prepared import PAIR_COLUMNS
from harness.store.store import Store
from harness.task import Task, build_task, room_for_context
from harness.trials.trial import identity_hash, task_identity

log = logging.getLogger(__name__)

# Above this share of pairs that no method can decide, gains shrink by so much that a verdict would be about the
# features, not about people.
MAX_EQUAL_OPTIONS = 0.2
# Share of test queries that form may predict. On human choices form predicts up to .7 (`arguments`); data sets whose two
# sides were stored in different ways reach more than .9.
MAX_FORM_ACCURACY = 0.8
MAX_TIED_LABELS = 0.5  # share of test pairs whose label says nothing; above it too little is left to judge by
SMALLEST_GAP = 1e-18  # between features that share a unit: squares of smaller ones are 0 in single precision
EQUAL_GAP = 1e-3  # a gap shorter than this part of the median gap cannot be told from rounding


def prepare_task(store: Store, task: Task, seed: int) -> dict:
    """Return the manifest of the prepared task. Build, split, check and commit the task if the store lacks it.

    A task that does not name its input is always built again, since the files that it reads may have changed; a digest
    of what it built is then part of its key.

    Raises UserError where the task's code raises, and where people have too few pairs.
    """
    identity = task_identity(task, seed)
    if names_its_input(task) and (found := store.read_manifest("tasks", identity_hash(identity))):
        return found
    log.info("task %s, seed %d: building", task.name, seed)
    # sums in a fixed order give the same features, and so the same keys, on any machine
    with threadpool_limits(1), standard_state():
        data = _call_task(task, "build", build_task, task, seed, store)
        splits = _call_task(task, "split", task.split, data, seed)
    ids = data.users["id"].to_pylist()
    check_parts(task, splits)
    check_items_differ(task, data)
    check_one_table_of_items(task, data, splits)
    with error_prefix(f"task {task.name}"):
        splits.check_for_leaks(ids)
    check_enough_context(task, splits, ids)
    features = prepared_features(data, splits)
    named: dict[str, np.ndarray | pa.Table] = {}
    for where, pairs in splits.named_parts().items():
        named |= {f"{where}.{c}": getattr(pairs, c) for c in PAIR_COLUMNS if getattr(pairs, c) is not None}
    named |= {f"{n}.choices": p.choices for n, p in splits.panels.items() if p.choices is not None}
    named |= {n: v for n, v in named_arrays(data).items() if n in ("text", "profiles") or n.startswith("truth.")}
    if features is not None:
        named["features"] = features
    # rows of tables only join results to people's own tables: no method reads them
    items, digest = data.pairs.items, arrays_digest({n: v for n, v in named.items() if not n.endswith(".row")})
    settings = identity
    if not names_its_input(task):
        identity = identity | {"files": digest}
    facts: dict[str, Any] = {
        "feature_dim": None if items.features is None else int(items.features.shape[1]),
        "has_text": items.text is not None,
        "has_seconds": data.pairs.seconds is not None,
        "has_ratings": data.pairs.ratings is not None,
        "has_truth": data.truth is not None,
        "has_profiles": data.pairs.profiles is not None,
        "shares_pairs": shares_pairs(splits),
        "can_choose": can_choose(task, splits),
        "equal_options": equal_options_share(splits.panels["test"].query, features),
        "tied_labels": float((splits.panels["test"].query.label == 0.5).mean()),
        "left_wins": float(splits.panels["test"].query.label.mean(dtype=np.float64)),
        "items": len(items),
        "people": data.pairs.n_users,
        "notes": [*data.notes, *note_on_few_pairs(task, data, splits)],
        "population": data.content_digest(),  # seeds of one data set share people, seeds of a simulator do not
        "users": {where: pairs.n_users for where, pairs in splits.named_parts().items() if not where.endswith("query")},
        "pairs": {where: len(pairs) for where, pairs in splits.named_parts().items()},
        "data": digest,
    }
    key = identity_hash(identity)
    if found := store.read_manifest("tasks", key):
        return found
    if identity is not settings:
        facts["other_builds"] = _count_other_builds(store, settings, digest)
    files = named | {"persons": person_digests(task, data, facts["population"]), "users": data.users}
    if items.names is not None:
        files["names"] = pa.table({"name": items.names})
    store.commit(
        "tasks",
        key,
        identity,
        {f"{n}.{'arrow' if isinstance(v, pa.Table) else 'npy'}": _file_content(v) for n, v in files.items()},
        facts,
    )
    prepared = store.read_manifest("tasks", key)
    if prepared is None:
        raise UserError(
            f"the prepared task {key} has disappeared from {store.root}",
            "run the command again, and check that nothing else removes files there",
        )
    return prepared


def note_on_few_pairs(task: Task, data: PreferenceDataset, splits: Splits) -> list[str]:
    """Return a note that counts the training people with too few pairs to be asked; [] where there are none."""
    seen = splits.panels.get("seen")
    unseen = np.setdiff1d(splits.train.people, seen.query.people) if seen else splits.train.people
    n = int((room_for_context(data.pairs)[unseen] < max(task.shots)).sum())
    return [f"{n:,} people have too few pairs to be asked, and are only trained on"] if n > 0 else []


def _count_other_builds(store: Store, settings: dict, digest: str) -> int:
    """Return how often a task of these settings, which does not name its input, has built other data in this store."""
    manifests = (store.read_manifest("tasks", key) for key in store.committed_keys("tasks"))
    others = (found["identity"] for found in manifests if found)
    same = identity_hash(settings)
    return sum(
        identity_hash({name: value for name, value in other.items() if name != "files"}) == same
        for other in others
        if other.get("files", digest) != digest
    )


def check_parts(task: Task, splits: Splits) -> None:
    """Raise UserError where a split has no training pairs, or lacks a panel, or the panel has no queries."""
    for name in ("train", "validation", "test"):
        panel = splits.panels.get(name)
        if not len(splits.train) if name == "train" else panel is None or not len(panel.query):
            raise UserError(
                f"task {task.name}: the split has no {'training pairs' if name == 'train' else f'queries in a panel {name!r}'}",
                "`manyminds check` lists the parts that a split needs",
            )


def check_items_differ(task: Task, data: PreferenceDataset) -> None:
    """Raise UserError where all items have the same features: they would all count as one item."""
    features = data.pairs.items.features
    if features is not None and len(features) and (features == features[0]).all():
        raise UserError(
            f"task {task.name}: all items have the same features", "check the columns of numbers that the task reads"
        )


def names_its_input(task: Task) -> bool:
    """Return whether the task's identity names all that `build` reads: it defines `files_digest`, or is the project's own."""
    return type(task).files_digest is not Task.files_digest or type(task).__module__.startswith("tasks.")


def check_one_table_of_items(task: Task, data: PreferenceDataset, splits: Splits) -> None:
    """Raise UserError where a part of the split has other items than the data set: rows would mean other options."""
    for where, pairs in splits.named_parts().items():
        if pairs.items is data.pairs.items:
            continue
        for name in ("features", "text"):
            own, common = getattr(pairs.items, name), getattr(data.pairs.items, name)
            equal = own is common or (own is not None and common is not None and np.array_equal(own, common))
            if not equal:
                raise UserError(
                    f"task {task.name}, {where}: its pairs have items of their own (other {name}), "
                    "but a task's parts must number the same items",
                    "put the items of all parts into one Items in `build`, and let `split` only choose pairs",
                )


def prepared_features(data: PreferenceDataset, splits: Splits) -> np.ndarray | None:
    """Return float32[n, d], the features as methods get them; None where items have none.

    Columns in units of their own are centred and scaled by the training pairs (harness/scaling.py).
    """
    items = data.pairs.items
    if items.features is None:
        return None
    if items.columns_share_unit:
        check_magnitude(items.features, items.features)
        gap = np.abs(items.features[splits.train.left] - items.features[splits.train.right]).max(initial=0)
        if 0 < gap < SMALLEST_GAP:
            raise UserError(
                f"features differ by {gap:.3g} at most, and the square of that is 0 in single precision",
                "multiply all features by one large number",
            )
        return items.features.astype(np.float32, copy=False)
    scale = ColumnScale.of_pairs(items.features, splits.train.left, splits.train.right)
    return scale.apply(items.features)


def equal_options_share(pairs: Pairs, features: np.ndarray | None) -> float:
    """Return the share of pairs whose options have equal or nearly equal features, so that no method can prefer one.

    Nearly equal: the gap is shorter than EQUAL_GAP of the median gap.
    """
    if features is None or not len(pairs):
        return 0.0
    length = np.linalg.norm(features[pairs.left].astype(np.float64) - features[pairs.right], axis=1)
    usual = np.median(length[length > 0]) if length.any() else 0.0
    return float((length <= EQUAL_GAP * usual).mean())


def person_digests(task: Task, data: PreferenceDataset, population: str) -> np.ndarray:
    """Return uint64[people]: a number for each person, the same for the same person in other builds of the task.

    A person is known by id. A simulator draws new people under the same ids, so there a person is known by id and
    population: the digest of the whole data.
    """
    drawn = "" if data.truth is None else population
    names = (f"{task.name}\0{drawn}\0{person}" for person in data.users["id"].to_pylist())
    return np.frombuffer(b"".join(hashlib.sha256(name.encode()).digest()[:8] for name in names), dtype="<u8")


T = TypeVar("T")


def _call_task(task: Task, step: str, function: Callable[..., T], *arguments: object) -> T:
    try:
        return function(*arguments)
    except UserError as error:
        if type(error) is UserError and not error.message.startswith((task.name, f"task {task.name}")):
            error.message = f"task {task.name}: {error.message}"
        raise
    except (Exception, SystemExit) as error:
        raise UserError(
            f"task {task.name}: {step} raised {describe_error(error, inspect.getfile(type(task)))}",
            "check that its field values fit together; `manyminds check` builds it with its defaults",
        ) from error


def describe_error(error: BaseException, file: str | None = None) -> str:
    """Return the error's type, message, file and line; the last line in `file`, if the error passed through it."""
    places = traceback.extract_tb(error.__traceback__)
    own = [place for place in places if place.filename == file] or places
    return f"{type(error).__name__}: {message_of(error)} ({Path(own[-1].filename).name}:{own[-1].lineno})"


def check_enough_context(task: Task, splits: Splits, ids: Sequence[str]) -> None:
    """Raise UserError where a person has fewer context pairs than the largest number of shots, or no query pairs.

    Training users (panel `seen`) need only enough for the smallest number of shots: they are scored at the numbers of
    shots that all of them have.

    ids: the people's ids, for the message.
    """
    for name, panel in splits.panels.items():
        needed = min(task.shots) if name == "seen" else max(task.shots)
        shown, asked = np.diff(panel.context.offsets), np.diff(panel.query.offsets)
        few = np.flatnonzero((shown < needed) | (asked == 0))
        if len(few):
            person, most = ids[panel.context.people[few[0]]], int(shown.min())
            lower = f"set shots to at most {most}, or " if name != "seen" and asked.all() and most > 0 else ""
            raise UserError(
                f"task {task.name}, panel {name}: {len(few)} people have too few different pairs, for example {person!r}, "
                f"with {shown[few[0]]} to be shown and {asked[few[0]]} to be asked; "
                f"{needed} to be shown and at least 1 to be asked are needed",
                f"{lower}leave out people with fewer than {needed + 1} different pairs"
                + ("" if name == "seen" else " (training people need two)"),
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


def _file_content(value: np.ndarray | pa.Table) -> memoryview:
    if isinstance(value, pa.Table):
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, value.schema) as writer:
            writer.write_table(value)
        return memoryview(sink.getvalue())
    sink = io.BytesIO()
    np.save(sink, value, allow_pickle=False)
    return sink.getbuffer()
