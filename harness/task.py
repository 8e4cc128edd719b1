"""Tasks: where preferences come from, and how they are split into training, context and query pairs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from harness import fields
from harness.data import Pairs, Panel, PreferenceDataset, Splits, Truth
from harness.errors import UserError
from harness.method import State, Users

if TYPE_CHECKING:
    from harness.store.store import Store

# A fifth of the users are test users; seeds 0-4, 5-9, ... each form one five-fold cross-validation over people.
FOLD_COUNT = 5


@dataclass(frozen=True)
class Task:
    """A source of preferences. Each file in `tasks/` defines one subclass, and the file's name is the task's name.

    Fields are the settings that a sweep varies, and all are part of a trial's identity. Raise `version` whenever scores
    stop being comparable with those of the previous version.
    """

    version: ClassVar[int] = 1
    family: ClassVar[str] = ""  # simulated, human choices, human text, or written by models
    paper: ClassVar[str] = ""  # authors, year and short title of where it comes from
    caveat: ClassVar[str] = ""  # what readers of a board must know before they believe a gain on this task

    shots: tuple[int, ...] = field(default=(0, 5, 10, 20), kw_only=True)  # numbers of context pairs shown for each user
    queries: int = field(default=20, kw_only=True)  # largest number of query pairs for each user

    def __post_init__(self) -> None:
        fields.validate_fields(self)
        if list(self.shots) != sorted(set(self.shots)) or min(self.shots, default=-1) < 0 or self.queries < 1:
            raise UserError(
                f"shots = {list(self.shots)}, queries = {self.queries}: "
                "shots must be 0 or more and in ascending order, queries 1 or more",
                "set for example shots = [0, 5, 10], queries = 20",
            )

    @property
    def name(self) -> str:
        """Name of the task: its file's stem."""
        return type(self).__module__.rpartition(".")[2]

    def build(self, seed: int) -> PreferenceDataset:
        """Build the data. A simulator draws its data from the seed; a fixed data set ignores the seed."""
        raise NotImplementedError

    def files_digest(self) -> str:
        """Return a digest of the files that `build` reads, or "" where there are none.

        The digest is part of the identity, so that a task with changed files counts as another task.
        """
        return ""

    def split(self, data: PreferenceDataset, seed: int) -> Splits:
        """Split whole users 60/20/20 into train, validation and test; context and query pairs are disjoint."""
        return split_whole_users(data, seed, max(self.shots), self.queries)

    @property
    def has_text_attributes(self) -> bool:
        """Whether `text_attributes` works for any text, so that true utilities can be computed."""
        return False

    def text_attributes(self, texts: Sequence[str]) -> np.ndarray:
        """Return float32[n, k]: attributes of any responses, such as a policy's.

        Only for tasks whose `has_text_attributes` is true. The responses' utilities are truth.users @ attributes.T. For
        a response that is one of the task's items, the attributes equal its row of truth.items.
        """
        raise NotImplementedError

    def diagnostics(self, splits: Splits, truth: Truth | None, state: State, users: Users) -> dict[str, float]:
        """Compare what a method learned with the task's ground truth: named numbers that are stored with the trial.

        state: what the method learned in `fit`.  users: what it learned about the test panel's users at the largest
        number of shots. The result is empty for a method that has not learned the quantities compared here.
        """
        return {}


class TextTask(Task):
    """A task whose `build` reads vectors, samples or answers of language models from the store.

    Without a store, `build` works only where no language model is needed, and raises UserError otherwise.
    """

    def build(self, seed: int, store: Store | None = None) -> PreferenceDataset:
        """Build the data; outputs of language models are read from the store."""
        raise NotImplementedError


def build_task(task: Task, seed: int, store: Store | None) -> PreferenceDataset:
    """Build the task's data, and pass the store to a TextTask."""
    return task.build(seed, store) if isinstance(task, TextTask) else task.build(seed)


def split_whole_users(data: PreferenceDataset, seed: int, n_context: int, n_query: int) -> Splits:
    """Split whole users 3:1:1 into train, validation and test.

    Seeds 0-4, 5-9, ... each form one five-fold cross-validation, in which each person is a test user once. The panel
    `seen` asks training users about pairs held out of training. The repeats of a pair by one user are never divided
    between context (or training) pairs and query pairs. Raises UserError for fewer than FOLD_COUNT people.
    """
    pairs, n = data.pairs, data.pairs.n_users
    if n < FOLD_COUNT:
        raise UserError(f"{n} people are too few to hold out whole users", f"use at least {FOLD_COUNT} people")
    block, fold = divmod(seed, FOLD_COUNT)
    folds = np.array_split(np.random.default_rng([block, n]).permutation(n), FOLD_COUNT)
    test, validation = folds[fold], folds[(fold + 1) % FOLD_COUNT]
    train = np.setdiff1d(np.arange(n), np.concatenate([test, validation]))
    rng = np.random.default_rng([seed, n, len(pairs)])
    known, held_out = split_pairs_of_each_user(
        pairs.of(train), rng, lambda counts: counts - np.minimum(n_query, np.maximum(counts // 5, 1))
    )
    panels = {"seen": Panel(known.first(n_context), held_out)}
    for name, users in (("validation", validation), ("test", test)):
        context, query = split_pairs_of_each_user(
            pairs.of(np.sort(users)), rng, lambda counts: np.minimum(n_context, counts - 1)
        )
        panels[name] = Panel(context, query.first(n_query))
    return Splits(known, panels)


def split_pairs_of_each_user(
    pairs: Pairs, rng: np.random.Generator, n_first: Callable[[np.ndarray], np.ndarray]
) -> tuple[Pairs, Pairs]:
    """Split each user's rows at random into a first part of `n_first(counts)` distinct pairs, and the rest.

    counts: int[n_users], each user's number of distinct pairs. Repeats of a pair stay in the same part, also where a text
    is written in another way (`Items.first_same`).
    """
    items = np.arange(len(pairs.items)) if pairs.items.text is None else pairs.items.first_same
    left, right = items[pairs.left].astype(np.int64), items[pairs.right].astype(np.int64)
    low, high = np.minimum(left, right), np.maximum(left, right)
    key = (pairs.user * np.int64(len(pairs.items)) + low) * len(pairs.items) + high
    _, first_row, pair = np.unique(key, return_index=True, return_inverse=True)
    owner = pairs.user[first_row]
    shuffled = np.lexsort((rng.random(len(owner)), owner))
    counts = np.bincount(owner, minlength=pairs.n_users)
    place = np.empty(len(owner), dtype=np.int64)
    place[shuffled] = np.arange(len(owner)) - (np.cumsum(counts) - counts)[owner[shuffled]]
    order = np.lexsort((place[pair], pairs.user))
    first = (place < n_first(counts)[owner])[pair]
    return pairs.take(order[first[order]]), pairs.take(order[~first[order]])


def split_in_order(data: PreferenceDataset, n_train: int, n_query: int) -> Splits:
    """Split a simulator's people in order: the first `n_train` are training users.

    Of the rest, the first half are validation users and the others test users. Each user's last `n_query` pairs are
    query pairs, and the earlier ones are context. `seen`: training users, at most as many as there are validation
    users.
    """
    pairs = data.pairs
    new = np.arange(n_train, pairs.n_users)
    half = len(new) // 2
    asked = pairs.rank >= np.diff(pairs.offsets)[pairs.user] - n_query
    shown, query = pairs.take(~asked), pairs.take(asked)
    groups = {"seen": np.arange(min(n_train, half)), "validation": new[:half], "test": new[half:]}
    n_context = np.diff(shown.offsets)[new].max(initial=0)
    panels = {name: Panel(shown.of(users).first(n_context), query.of(users)) for name, users in groups.items()}
    return Splits(shown.of(np.arange(n_train)), panels)
