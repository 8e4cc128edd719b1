"""Task: which preferences are asked about, and how they are split."""

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

FOLD_COUNT = 5  # test users are a fifth: five successive seeds are a five-fold cross-validation over people


@dataclass(frozen=True)
class Task:
    """One file in `tasks/` holds one subclass; the file's name is the task's name.

    Fields are what a sweep varies, and all of them are part of a trial's identity. `version` is raised whenever
    scores stop being comparable with those of the version before.
    """

    version: ClassVar[int] = 1

    shots: tuple[int, ...] = field(default=(0, 5, 10, 20), kw_only=True)  # context pairs shown of each user
    queries: int = field(default=20, kw_only=True)  # pairs asked of each user, at most

    def __post_init__(self) -> None:
        fields.validate_fields(self)
        if list(self.shots) != sorted(set(self.shots)) or min(self.shots, default=-1) < 0 or self.queries < 1:
            raise UserError(
                f"shots = {list(self.shots)}, queries = {self.queries}: shots must rise from 0 or more, queries be 1 or more",
                "for example shots = [0, 5, 10], queries = 20",
            )

    @property
    def name(self) -> str:
        return type(self).__module__.rpartition(".")[2]

    def build(self, seed: int) -> PreferenceDataset:
        """The data: a simulator draws its world from the seed, a data set ignores it."""
        raise NotImplementedError

    def files_digest(self) -> str:
        """Of the files `build` reads, so that changed data is another task; a simulator reads none."""
        return ""

    def split(self, data: PreferenceDataset, seed: int) -> Splits:
        """Whole users 60/20/20 into train, validation and test; context and query drawn once, disjoint."""
        return split_whole_users(data, seed, max(self.shots), self.queries)

    @property
    def reads_texts(self) -> bool:
        """Whether `utility` knows what any response is worth: of simulators that can read."""
        return False

    def utility(self, texts: Sequence[str]) -> np.ndarray:
        """float32[n, k]: attributes of any responses, such as a policy's: they are worth truth.users @ utility.T.

        Of tasks that declare `reads_texts`. For responses among the items it gives their rows of truth.items.
        """
        raise NotImplementedError

    def diagnostics(self, splits: Splits, truth: Truth | None, state: State, users: Users) -> dict[str, float]:
        """What the task's truth says of what a method learned, as named numbers stored beside the trial.

        `state` is the method's, `users` the test panel's at the largest number of shots. Says nothing of a method
        that has not learned what it looks for.
        """
        return {}


class TextTask(Task):
    """A task whose `build` needs the store: for vectors, samples and answers of language models, which are kept there.

    Without a store it builds what needs no language model, and raises UserError where it needs one.
    """

    def build(self, seed: int, store: Store | None = None) -> PreferenceDataset:
        raise NotImplementedError


def build_task(task: Task, seed: int, store: Store | None) -> PreferenceDataset:
    """What the task builds, with the store where it takes one."""
    return task.build(seed, store) if isinstance(task, TextTask) else task.build(seed)


def split_whole_users(data: PreferenceDataset, seed: int, n_context: int, n_query: int) -> Splits:
    """Splits whole users three fifths, one fifth, one fifth; every person is a test person once in FOLD_COUNT seeds.

    A pair that a user judged twice is either shown or asked, never both.
    """
    pairs, n = data.pairs, data.pairs.n_users
    if n < FOLD_COUNT:
        raise UserError(f"{n} people are too few to hold whole users out", f"bring at least {FOLD_COUNT} people")
    block, fold = divmod(seed, FOLD_COUNT)
    folds = np.array_split(np.random.default_rng([block, n]).permutation(n), FOLD_COUNT)
    test, validation = folds[fold], folds[(fold + 1) % FOLD_COUNT]
    train = np.setdiff1d(np.arange(n), np.concatenate([test, validation]))
    rng = np.random.default_rng([seed, n, len(pairs)])
    known, held_out = split_pairs_of_each_user(
        pairs.of(train), rng, lambda counts: counts - np.minimum(n_query, counts // 5)
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
    """Draws each user's rows into a first part of `n_first(counts)` distinct pairs, and the rest.

    `counts` is int[n_users], the distinct pairs of each user; a pair's repeats go where the pair goes.
    """
    low, high = np.minimum(pairs.left, pairs.right).astype(np.int64), np.maximum(pairs.left, pairs.right)
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
    """For simulators: the first `n_train` people train, the rest are half validation, half test.

    Each user's last `n_query` pairs are asked, the ones before are shown.
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
