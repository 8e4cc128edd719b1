"""Tasks: where preferences come from, and how they are split into training, context and query pairs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from harness import fields
from harness.data import (
    ASKED_IN_TEST,
    ASKED_IN_VALIDATION,
    SHOWN,
    Pairs,
    Panel,
    PreferenceDataset,
    Splits,
    Truth,
    require_value,
)
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
    controls: ClassVar[tuple[str, ...]] = ()  # methods that its boards show beside the controls of all boards
    licence: ClassVar[str] = ""  # of the data, where they are not the project's own
    form_matters: ClassVar[bool] = False  # people judge the form of responses, such as their length or layout
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
    `seen` asks training users about pairs held out of training. The repeats of a pair by one user, and the pairs of one
    judgement (`Pairs.row`), are never divided between context (or training) pairs and query pairs.

    People with too few pairs for `n_context` and a query are training users whom the panel `seen` leaves out. Raises
    UserError where fewer than FOLD_COUNT people have enough.
    """
    pairs = data.pairs
    room = room_for_context(pairs)
    train, validation, test = folds_of_people(room, seed, n_context)
    rng = np.random.default_rng([seed, pairs.n_users, len(pairs)])
    return split_given_people(pairs, rng, (train, validation, test), room >= n_context, n_context, n_query)


def room_for_context(pairs: Pairs) -> np.ndarray:
    """Return int64[n_users]: how many different pairs a user can be shown so that one judgement is left to be asked."""
    _, owner, size = judgement_units(pairs)
    largest = np.zeros(pairs.n_users, dtype=np.int64)
    np.maximum.at(largest, owner, size)
    return np.bincount(owner, size, minlength=pairs.n_users).astype(np.int64) - largest


def folds_of_people(room: np.ndarray, seed: int, n_context: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the training, validation and test users of a seed, in five-fold cross-validation over people.

    room: int64[n_users], how many pairs each user can be shown. Users with room for fewer than `n_context` are training
    users. Raises UserError where fewer than FOLD_COUNT users have room.
    """
    able = np.flatnonzero(room >= n_context)
    if len(able) < FOLD_COUNT:
        fits = int(np.sort(room)[-FOLD_COUNT]) if len(room) >= FOLD_COUNT else -1
        few = "people are too few to hold out whole users"
        if fits < 0 or len(able) == len(room):
            raise UserError(f"{len(room)} {few}", f"use at least {FOLD_COUNT} people")
        raise UserError(
            f"{len(able)} {few}: of {len(room)} people, the others have too few different pairs for {n_context} to be shown and 1 to be asked",
            f"set shots to at most {fits}, with which {int((room >= fits).sum())} people have enough, or add pairs",
        )
    block, fold = divmod(seed, FOLD_COUNT)
    folds = np.array_split(np.random.default_rng([block, len(able)]).permutation(able), FOLD_COUNT)
    test, validation = folds[fold], folds[(fold + 1) % FOLD_COUNT]
    return np.setdiff1d(np.arange(len(room)), np.concatenate([test, validation])), np.sort(validation), np.sort(test)


def split_given_people(
    pairs: Pairs,
    rng: np.random.Generator,
    people: tuple[np.ndarray, np.ndarray, np.ndarray],
    able: np.ndarray,
    n_context: int,
    n_query: int,
) -> Splits:
    """Split the pairs of given training, validation and test users into training, context and query pairs.

    able: bool[n_users], whether a user has pairs enough to be asked; the panel `seen` leaves out the others.
    """
    train, validation, test = people
    known, held_out = split_pairs_of_each_user(
        pairs.of(train), rng, lambda counts: counts - np.minimum(n_query, np.maximum(counts // 5, 1))
    )
    asked = np.flatnonzero(able[train])
    if len(asked) < len(train):
        panels = {"seen": Panel(known.of(asked).first(n_context), held_out.of(asked))}
    else:
        panels = {"seen": Panel(known.first(n_context), held_out)}
    for name, users in (("validation", validation), ("test", test)):
        context, query = split_pairs_of_each_user(
            pairs.of(users), rng, lambda counts: np.minimum(n_context, counts - 1)
        )
        panels[name] = Panel(context, query.first(n_query))
    return Splits(known, panels)


def split_by_parts(data: PreferenceDataset, seed: int, n_context: int, n_query: int) -> Splits:
    """Split by the data set's own parts (`PreferenceDataset.parts`).

    Where people have pairs of several parts, whole people are held out 3:1:1 as in `split_whole_users`; a person's shown
    pairs are context or training pairs, and only the others are asked. Otherwise the parts divide people: each panel's
    pairs are split at random into context and query pairs. Where nothing is asked in validation, people for validation
    are drawn from the training people.
    """
    pairs, parts = (
        data.pairs,
        require_value(data.parts, "parts of the data set's own split", "give PreferenceDataset parts"),
    )
    counts = [np.bincount(pairs.user[parts == part], minlength=pairs.n_users) for part in range(3)]
    shown, in_validation, in_test = counts
    rng = np.random.default_rng([seed, pairs.n_users, len(pairs)])
    if not (shown.any() and in_test.any()):
        raise UserError(
            "the data set's own split has nothing to be shown, or nothing to be asked", "name another column"
        )
    if not ((shown > 0) & (in_test > 0)).any():  # parts divide people
        able = room_for_context(pairs) >= n_context
        train = np.flatnonzero(shown)
        validation = np.flatnonzero((in_validation > 0) & able)
        if not len(validation):
            validation = np.sort(rng.permutation(train[able[train]])[: max(1, len(train) // FOLD_COUNT)])
            train = np.setdiff1d(train, validation)
        people = train, validation, np.flatnonzero((in_test > 0) & able)
        return split_given_people(pairs, rng, people, able, n_context, n_query)
    to_show, in_test_part = pairs.take(parts == SHOWN), pairs.take(parts == ASKED_IN_TEST)
    in_validation_part = pairs.take(parts == ASKED_IN_VALIDATION) if in_validation.any() else in_test_part
    _, owner, size = judgement_units(to_show)
    room = np.bincount(owner, size, minlength=pairs.n_users).astype(np.int64)
    asked = np.minimum(np.diff(in_test_part.offsets), np.diff(in_validation_part.offsets))
    train, validation, test = folds_of_people(np.where(asked > 0, room, -1), seed, n_context)
    seen = train[(room[train] >= n_context) & (asked[train] > 0)]
    panels = {}
    for name, users, part in (
        ("seen", seen, in_test_part),
        ("validation", validation, in_validation_part),
        ("test", test, in_test_part),
    ):
        context = split_pairs_of_each_user(to_show.of(users), rng, lambda counts: np.minimum(n_context, counts))[0]
        query = split_pairs_of_each_user(part.of(users), rng, lambda counts: np.minimum(n_query, counts))[0]
        panels[name] = Panel(context, query)
    return Splits(to_show.of(train[room[train] > 0]), panels)


def judgement_units(pairs: Pairs) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the smallest groups of rows that a split must keep together, as unit of each row, owner and size of each unit.

    unit: int64[n], of each row.  owner: int64[units], local users.  size: int64[units], numbers of different pairs. The
    repeats of a pair by a user are together, also where a text is written in another way (`Items.first_same`), and so
    are the pairs of one judgement (`Pairs.row`).
    """
    items = np.arange(len(pairs.items)) if pairs.items.text is None else pairs.items.first_same
    left, right = items[pairs.left].astype(np.int64), items[pairs.right].astype(np.int64)
    low, high = np.minimum(left, right), np.maximum(left, right)
    key = (pairs.user * np.int64(len(pairs.items)) + low) * len(pairs.items) + high
    _, first_row, pair = np.unique(key, return_index=True, return_inverse=True)
    owner, size = pairs.user[first_row].astype(np.int64), np.ones(len(first_row), dtype=np.int64)
    if pairs.row is None:
        return pair, owner, size
    row = np.unique(pairs.row, return_inverse=True)[1]
    if len(row) == row.max(initial=-1) + 1:  # a row has one pair
        return pair, owner, size
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    n = len(owner) + row.max() + 1  # nodes: different pairs, then rows
    edges = coo_array((np.ones(len(row), dtype=bool), (pair, len(owner) + row)), shape=(n, n))
    _, unit = np.unique(connected_components(edges, directed=False)[1][: len(owner)], return_inverse=True)
    owner_of = np.empty(unit.max() + 1, dtype=np.int64)
    owner_of[unit] = owner
    return unit[pair], owner_of, np.bincount(unit)


def split_pairs_of_each_user(
    pairs: Pairs, rng: np.random.Generator, n_first: Callable[[np.ndarray], np.ndarray]
) -> tuple[Pairs, Pairs]:
    """Split each user's rows at random into a first part of `n_first(counts)` distinct pairs, and the rest.

    counts: int[n_users], each user's number of distinct pairs. Rows that belong together (`judgement_units`) stay in the
    same part; so the first part may be larger by less than one judgement, and never is all where `n_first` is less.
    """
    unit, owner, size = judgement_units(pairs)
    counts = np.bincount(owner, size, minlength=pairs.n_users).astype(np.int64)
    shuffled = np.lexsort((rng.random(len(owner)), owner))
    ends = np.cumsum(size[shuffled])
    starts_of_users = np.cumsum(counts) - counts
    before = np.empty(len(owner), dtype=np.int64)  # different pairs of the user's units in front of a unit
    before[shuffled] = ends - size[shuffled] - starts_of_users[owner[shuffled]]
    wanted = n_first(counts)[owner]
    in_first = (before < wanted) & ((wanted >= counts[owner]) | (before + size < counts[owner]))
    order = np.lexsort((before[unit], pairs.user))
    first = in_first[unit]
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
