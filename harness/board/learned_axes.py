"""Principal axes of a learned space of rewards, with the responses at their ends (PReF, section 5.6)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import safetensors.numpy

from harness.board.board import Board, Row
from harness.board.results import committed_manifest
from harness.data import Items
from harness.inference import generate
from harness.inference.cache import id_array
from harness.inference.jobs import NotCachedError
from harness.store.prepared import open_prepared_task
from harness.store.store import Store
from harness.task import Task

MAX_AXES = 7  # the number of traits in the paper's data
RESPONSES_PER_END = 3
MAX_RESPONSE_CHARACTERS = 1000  # in a prompt for a name: six responses of this length are about 1,500 tokens
NAMER_OPTIONS = "temperature=0&max_tokens=24"  # greedy decoding, and room for six words
# The wording is part of the answers' cache key: after a change the language model is asked again.
NAMING_QUESTION = """\
Responses were sorted along an axis that nobody has named yet. Here are the responses from its one end, and the \
responses from its other end.

# One end
{}

# Other end
{}

What sets the responses of the one end apart from those of the other? Answer with a short name of the axis and nothing \
else: "X vs. Y", where X describes the one end and Y the other, in at most six words."""


@dataclass(frozen=True)
class Axis:
    """One principal component, with the responses at its ends."""

    share: float  # of the variance
    top: tuple[str, ...]  # responses at one end of the axis, the farthest first
    bottom: tuple[str, ...]
    name: str = ""  # given by a language model


@dataclass(frozen=True)
class LearnedAxes:
    """The axes of the space that a method learned in the first seed's trial."""

    label: str  # of the method
    seed: int
    items: int  # number of distinct items in the training pairs
    axes: tuple[Axis, ...]


def find_learned_axes(board: Board, store: Store, axis_namer: str | None = None) -> dict[Task, LearnedAxes]:
    """Return the learned axes of each task with texts, from its best-ranked method with a linear space of rewards.

    axis_namer: the language model that names the axes. Raises NotCachedError where the model's answers are not cached.
    """
    found = {}
    for task in board.tasks:
        prepared = store.read_manifest("tasks", task.task_keys[0]) if task.task_keys else None
        facts = prepared["facts"] if prepared else {"has_text": False}
        if not facts["has_text"] or facts["feature_dim"] is None:
            continue
        roots = ((row, prior_root(row, facts["feature_dim"], store)) for row in task.rows if row.rank)
        row, root = next(((row, root) for row, root in roots if root is not None), (None, None))
        if row is not None and root is not None and prepared is not None:
            train = open_prepared_task(store, prepared["key"]).splits.train
            items = np.unique([train.left, train.right])
            axes = principal_axes(train.items, items, root)
            found[task.task] = LearnedAxes(row.label, board.suite.seeds[0], len(items), axes)
    found = {task: learned for task, learned in found.items() if learned.axes}
    return name_axes(found, axis_namer, store) if axis_namer else found


def prior_root(row: Row, d: int, store: Store) -> np.ndarray | None:
    """Return float64[d, r], the root of the covariance of a learned prior N(mean, root rootT) of users' weights.

    For users' rewards that mix base rewards (`lore`), the root is the basis times a root of the covariance of the
    mixture weights' prior. Return None where the method learned no such prior on the items' features.
    """
    manifest = committed_manifest(store, "trials", row.keys[0])
    if row.method.trains_model or "learned.safetensors" not in manifest["files"]:
        return None  # a language model, a state that was too large to store, or nothing learned
    state = safetensors.numpy.load(bytes(store.read_verified(manifest, "learned.safetensors")))
    if "state/phi.0.weight" in state:
        return None  # weights of a network's features, not of the items'
    root = state.get("state/root")
    if {"state/basis", "state/precision"} <= state.keys():
        root = state["state/basis"] @ np.linalg.cholesky(np.linalg.inv(state["state/precision"]))
    return None if root is None or root.ndim != 2 or len(root) != d or not root.any() else root


def principal_axes(items: Items, rows: np.ndarray, root: np.ndarray) -> tuple[Axis, ...]:
    """Return the leading principal components of features @ root over these rows of items.

    The sign of a component is arbitrary, so each axis is turned towards its farthest response.
    """
    assert items.features is not None and items.text is not None  # `find_learned_axes` skips tasks that lack either
    rewards = items.features[rows].astype(np.float64) @ root
    rewards -= rewards.mean(0)
    variances, directions = np.linalg.eigh(rewards.T @ rewards)
    largest = np.argsort(-variances)[:MAX_AXES]
    texts = items.text["response"].take(pa.array(rows)).to_pylist()
    count, axes = min(RESPONSES_PER_END, len(set(texts)) // 2), []
    for j in largest[variances[largest] > 1e-9 * variances.max()]:  # smaller variances are rounding errors
        places = rewards @ directions[:, j]
        order = np.argsort(-places if places.max() >= -places.min() else places, kind="stable")
        top = first_distinct((texts[i] for i in order), count)
        bottom = first_distinct((texts[i] for i in order[::-1]), count, besides=top)
        axes.append(Axis(float(variances[j] / variances.sum()), top, bottom))
    return tuple(axes)


def first_distinct(texts: Iterable[str], count: int, besides: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the first `count` distinct texts that are not in `besides`."""
    fresh = (text for text in texts if text not in besides)
    found: dict[str, None] = {}
    while len(found) < count:
        found[next(fresh)] = None
    return tuple(found)


def name_axes(learned: dict[Task, LearnedAxes], axis_namer: str, store: Store) -> dict[Task, LearnedAxes]:
    """Return the axes with names by the language model `axis_namer`, or with the reason why there is no name.

    Raises NotCachedError where the model's answers are not cached.
    """
    axes = [axis for one in learned.values() for axis in one.axes]
    asked = [NAMING_QUESTION.format(numbered_texts(axis.top), numbered_texts(axis.bottom)) for axis in axes]
    table = generate.generator_inputs(
        pa.table({"system": pa.nulls(len(asked)), "prompt": pa.array(asked, pa.string())})
    )
    job = generate.generate_job(with_namer_options(axis_namer), 1, lambda: [table], store)
    index, ids = job.cached_rows(store).build_index(), id_array(table["id"])
    if count := int(index.is_missing(ids).sum()):
        raise NotCachedError(job, count)
    name_at = {place: f"no name: {reason}" for place, reason in index.error_reasons(ids).items()}
    made = index.rows_table(ids)
    if len(made):
        answers = zip(made["place"].to_pylist(), made["responses"].to_pylist(), strict=True)
        name_at |= {place: responses[0].strip().splitlines()[0].strip(" \"'*`.") for place, responses in answers}
    names = iter(name_at[place] for place in range(len(axes)))
    return {
        task: replace(one, axes=tuple(replace(axis, name=next(names)) for axis in one.axes))
        for task, one in learned.items()
    }


def numbered_texts(texts: Sequence[str]) -> str:
    """Return the texts as a numbered list, each cut to MAX_RESPONSE_CHARACTERS."""
    return "\n".join(
        f"{i}. {text if len(text) <= MAX_RESPONSE_CHARACTERS else text[:MAX_RESPONSE_CHARACTERS] + ' ...'}"
        for i, text in enumerate(texts, 1)
    )


def with_namer_options(axis_namer: str) -> str:
    """Return the axis namer's model name with NAMER_OPTIONS added; options that the user gave take precedence."""
    model, _, options = axis_namer.partition("?")
    return f"{model}?{NAMER_OPTIONS}{'&' if options else ''}{options}"
