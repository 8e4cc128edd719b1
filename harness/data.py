"""Items, Pairs, PreferenceDataset, Panel and Splits: the data structures that all tasks and methods share."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import polars as pl
import pyarrow as pa

from harness.errors import UserError, error_prefix
from harness.frames import as_polars
from harness.rows import (
    check_columns,
    check_labels,
    check_numeric,
    check_pairs,
    raise_for_first_bad,
    sides_of_choices,
    user_numbers,
    with_numbers,
)
from harness.sameness import as_read, group_equal_rows
from harness.table_files import read_table

TEXT_SCHEMA = pa.schema([("prompt", pa.large_string()), ("response", pa.large_string())])

SHOWN, ASKED_IN_VALIDATION, ASKED_IN_TEST = 0, 1, 2  # parts of a data set's own split

T = TypeVar("T")


class SplitLeakError(UserError):
    """A split shows a method something that it is asked later."""

    def __init__(self, message: str, hint: str = "correct the task's split; `manyminds check` shows each rule") -> None:
        super().__init__(message, hint)


@dataclass(frozen=True, eq=False)
class Items:
    """The distinct options that people choose between; an item's id is its row.

    features: float[n, d], numeric features from the task; for methods always float32 (often memory-mapped).
    text: a table with the columns `prompt` and `response`, n rows.
    columns_share_unit: whether all features are in one unit, as the dimensions of an encoder's vectors are. Otherwise
        each column is scaled to spread 1 when the task is prepared, so that no result depends on a column's unit.
    names: string[n], what the data set calls items that have no text; no method reads them.
    """

    features: np.ndarray | None = None
    text: pa.Table | None = None
    columns_share_unit: bool = False
    names: pa.Array | None = None

    def __len__(self) -> int:
        return len(self.known_text if self.features is None else self.features)

    @property
    def known_features(self) -> np.ndarray:
        """Features of the items. Raises UserError where they have none."""
        return require_value(
            self.features, "numeric features of the items", "make the method refuse tasks without them"
        )

    @property
    def known_text(self) -> pa.Table:
        """Texts of the items. Raises UserError where they have none."""
        return require_value(self.text, "texts of the items", "make the method refuse tasks without them")

    @cached_property
    def first_same(self) -> np.ndarray:
        """For every item, int64[n], the first item that a person would call the same.

        Texts are compared without regard to upper and lower case, spaces, invisible characters and Unicode forms; items
        without texts by their features.
        """
        if self.text is None:
            return group_equal_rows(pl.from_numpy(self.known_features))
        return group_equal_rows(pl.DataFrame(self.text).select(pl.col("prompt", "response").map_batches(as_read)))

    @cached_property
    def first_equal(self) -> np.ndarray:
        """For every item, int64[n], the first item with exactly the same text, or without texts the same features."""
        return self.first_same if self.text is None else group_equal_rows(pl.DataFrame(self.text))

    def check_content(self) -> None:
        """Raise UserError where items have no content, or features are not one row of finite numbers for each item."""
        x = self.features
        if x is None and self.text is None:
            raise UserError(
                "the items have neither features nor text", "give Items a row of numbers, or a text, for each item"
            )
        if x is None:
            return
        if (
            x.ndim != 2
            or not x.shape[1]
            or x.dtype.kind not in "iuf"
            or (self.text is not None and len(x) != len(self.text))
        ):
            raise UserError(
                f"features are {x.dtype} of shape {x.shape}"
                + ("" if self.text is None else f" for {len(self.text)} texts"),
                "give one row of numbers for each item: float[n, d]",
            )
        raise_for_first_bad(
            ~np.isfinite(x).all(axis=1),
            "a NaN or infinite feature",
            np.arange(len(x)),
            "drop the item, or fill in the value, before building the data set",
            "item",
        )


@dataclass(frozen=True, eq=False)
class Pairs:
    """Judged pairs, one per row, sorted by user.

    user: int32[n], local index 0..n_users-1.
    people: int32[n_users], each local user's row in the data set's table `users`. Persons are the unit of every
        confidence interval.
    left, right: int32[n], rows of `items`.
    label: float32[n], P(left preferred); NaN when hidden.
    seconds: float32[n], response time, where known.
    row: int64[n], the row of the table that a judgement was read from, where known. The pairs of one row, such as those
        of one ranking, are one judgement: a split keeps them together.
    ratings: float32[n, 2], the person's ratings of left and right, where the pairs are made of ratings.
    profiles: large_string[all people of the data set], what people wrote about themselves, where known:
        profiles[people[u]] is local user u's.
    """

    user: np.ndarray
    people: np.ndarray
    left: np.ndarray
    right: np.ndarray
    label: np.ndarray
    items: Items
    seconds: np.ndarray | None = None
    row: np.ndarray | None = None
    ratings: np.ndarray | None = None
    profiles: pa.Array | None = None

    def __len__(self) -> int:
        return len(self.user)

    @property
    def n_users(self) -> int:
        """Number of users."""
        return len(self.people)

    @cached_property
    def offsets(self) -> np.ndarray:
        """Row offsets, int64[n_users + 1]: user u's rows are offsets[u]:offsets[u + 1]."""
        return np.searchsorted(self.user, np.arange(self.n_users + 1))

    @cached_property
    def rank(self) -> np.ndarray:
        """Place of each row among its user's rows, int64[n]; 0 for the first."""
        return np.arange(len(self)) - self.offsets[self.user]

    @cached_property
    def gap(self) -> np.ndarray:
        """Features of left minus features of right, float32[n, d]; computed once and kept."""
        features = self.items.known_features
        return features[self.left] - features[self.right]

    def take(self, rows: np.ndarray | slice) -> Pairs:
        """Select rows by a mask, a slice or ascending indices; the users stay the same."""
        return replace(
            self,
            user=self.user[rows],
            left=self.left[rows],
            right=self.right[rows],
            label=self.label[rows],
            seconds=None if self.seconds is None else self.seconds[rows],
            row=None if self.row is None else self.row[rows],
            ratings=None if self.ratings is None else self.ratings[rows],
        )

    def first(self, shots: int) -> Pairs:
        """Select each user's first `shots` pairs."""
        return self.take(self.rank < shots)

    def chunk(self, start: int, stop: int) -> Pairs:
        """Select the pairs of users start..stop-1 and renumber the users from 0."""
        part = self.take(slice(self.offsets[start], self.offsets[stop]))
        return replace(part, user=part.user - np.int32(start), people=self.people[start:stop])

    def of(self, users: np.ndarray | Sequence[int]) -> Pairs:
        """Select the pairs of the given local users, in that order, and renumber the users from 0."""
        users = np.asarray(users, dtype=np.int64)
        counts = np.diff(self.offsets)[users]
        user = np.repeat(np.arange(len(users), dtype=np.int32), counts)
        starts = np.cumsum(counts) - counts
        rows = np.arange(len(user)) - starts[user] + self.offsets[users][user]
        return replace(self.take(rows), user=user, people=self.people[users])

    def pooled(self) -> Pairs:
        """Return the same rows as if one person had judged them all."""
        return replace(self, user=np.zeros_like(self.user), people=self.people[:1])

    def swapped(self) -> Pairs:
        """Exchange left and right: the same judgements in the opposite order."""
        ratings = None if self.ratings is None else self.ratings[:, ::-1]
        return replace(self, left=self.right, right=self.left, label=1 - self.label, ratings=ratings)

    def rated_items(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return user int64[n], item int64[n] and rating float64[n] of pairs made of ratings, each user's item once."""
        ratings = require_value(self.ratings, "ratings of the pairs", "make the method refuse tasks without them")
        n, user = len(self.items), self.user.astype(np.int64)
        known, first = np.unique(np.concatenate([user * n + self.left, user * n + self.right]), return_index=True)
        return known // n, known % n, ratings.T.reshape(-1)[first].astype(np.float64)

    def without_labels(self) -> Pairs:
        """Hide the answers: labels become NaN, and response times and ratings are dropped."""
        return replace(self, label=np.full_like(self.label, np.nan), seconds=None, ratings=None)


@dataclass(frozen=True, eq=False)
class Truth:
    """Ground truth of a simulator: utility = users @ items.T. Only metrics and privileged methods read it.

    users: float32[people, k];  items: float32[items, k].
    temperature: P(left) = sigmoid(utility gap / temperature); 0 means the larger utility always wins.
    population: float32[m, k], draws from (or all atoms of) the distribution users come from.
    """

    users: np.ndarray
    items: np.ndarray
    temperature: float = 1.0
    population: np.ndarray | None = None

    @property
    def known_population(self) -> np.ndarray:
        """Population in the ground truth. Raises UserError where there is none."""
        return require_value(
            self.population, "population in the task's ground truth", "pass one to Truth, for example population=users"
        )

    def gap(self, pairs: Pairs) -> np.ndarray:
        """Return float32[n]: utility of left minus utility of right, for the person of each row."""
        rows = self.users[pairs.people[pairs.user]]
        return np.einsum("nk,nk->n", self.items[pairs.left] - self.items[pairs.right], rows)


@dataclass(frozen=True, eq=False)
class PreferenceDataset:
    """All people's judgements, before any split.

    users: a table with a row per person and at least the column `id`.
    choices: int32[prompts, n], rows of `items`: the n candidate responses to each prompt, from which a method
        chooses each user's best.
    parts: int8[n pairs], the data set's own split: SHOWN, or ASKED_IN_VALIDATION, or ASKED_IN_TEST; None where it has none.
    notes: what a reader of a board must know, such as what was left out.
    """

    users: pa.Table
    pairs: Pairs
    truth: Truth | None = None
    choices: np.ndarray | None = None
    parts: np.ndarray | None = None
    notes: tuple[str, ...] = ()

    @classmethod
    def from_pairs(
        cls,
        user: np.ndarray | Sequence | pl.Series,
        left: np.ndarray,
        right: np.ndarray,
        label: np.ndarray,
        items: Items,
        seconds: np.ndarray | None = None,
        truth: Truth | None = None,
        min_pairs: int = 2,
        row: np.ndarray | None = None,
    ) -> PreferenceDataset:
        """Build a data set from one array per column; `user` holds ids of any kind, and rows may be in any order.

        row: the row of the table that each pair is from, as in `Pairs`.
        min_pairs: the smallest number of pairs per user; with 2, one pair can be shown to a method and one asked.
        Raises UserError where a row cannot be used, and names the first such row.
        """
        given = {"left": left, "right": right, "label": label, "seconds": seconds}
        columns = {name: np.asarray(values) for name, values in given.items() if values is not None}
        ids, person = user_numbers(user)
        check_columns(columns, len(person))
        items.check_content()
        columns |= {name: columns[name].astype(np.float32) for name in ("label", "seconds") if name in columns}
        check_pairs(columns, len(items))
        left, right, label = (columns[name] for name in ("left", "right", "label"))
        counts, names = np.bincount(person), np.array(ids, dtype=object)
        hint = (
            f"drop users with fewer than {min_pairs} pairs: methods see some of a user's pairs and are asked the others"
        )
        few = f"a user with fewer than {min_pairs} pairs"
        raise_for_first_bad(counts[person] < min_pairs, few, names[person], hint)
        order = np.argsort(person, kind="stable")
        pairs = Pairs(
            user=person[order].astype(np.int32),
            people=np.arange(len(ids), dtype=np.int32),
            left=left[order].astype(np.int32),
            right=right[order].astype(np.int32),
            label=label[order],
            items=items,
            seconds=columns["seconds"][order] if "seconds" in columns else None,
            row=None if row is None else np.asarray(row, dtype=np.int64)[order],
        )
        return cls(pa.table({"id": pa.array(ids, pa.string())}), pairs, truth)

    @classmethod
    def from_choices(
        cls,
        frame: Any,
        features: Callable[[pl.DataFrame], np.ndarray] | Sequence[str] | None = None,
        min_pairs: int = 2,
        columns_share_unit: bool = False,
        row: np.ndarray | None = None,
    ) -> PreferenceDataset:
        """Build a data set from the columns user, prompt, chosen and rejected.

        These are Hugging Face's preference columns plus a user id. Optional columns: `label`, P(chosen preferred) for
        soft labels, and `seconds`. Sides are drawn at random, and items are numbered in a random order, so neither side
        nor number reveals the preferred response.

        frame: any data frame that harness.frames.as_polars takes, or the path of a csv, jsonl or parquet file, whose
            ids and texts are read as text.
        features: maps the distinct items (columns prompt, response) to float[n, d]; or the names of numbers, which are
            columns chosen_NAME and rejected_NAME. With names, the texts may be missing.
        min_pairs: the smallest number of pairs per user; with 2, one pair can be shown to a method and one asked.
        columns_share_unit: as for Items: true for features by an encoder of texts.
        row: the row of the table that each pair is from, as in `Pairs`; without it, its row in `frame`.
        Raises UserError where a row cannot be used, and names the first such row.
        """
        if isinstance(frame, str | Path):
            with error_prefix(str(frame)):
                return cls.from_choices(read_table(Path(frame)), features, min_pairs, columns_share_unit, row)
        frame = with_numbers(as_polars(frame), "label", "seconds")
        numbers = () if features is None or callable(features) else tuple(features)
        options = pl.concat(sides_of_choices(frame, numbers))
        items = options.unique().sort(options.columns)
        # A sorted order would let an item's number reveal something about its text: "I am" comes before "I am not".
        mixed = np.random.default_rng(len(items)).permutation(len(items))
        items = items[mixed].with_row_index("item")
        of = options.join(items, on=options.columns, how="left", maintain_order="left")["item"].to_numpy()
        chosen, rejected = of[: len(frame)], of[len(frame) :]
        left_wins = np.random.default_rng(len(frame)).random(len(frame)) < 0.5
        label = frame["label"].to_numpy() if "label" in frame.columns else np.ones(len(frame))
        check_numeric("label", label)
        check_labels(label, "chosen")
        items = items.drop("item")
        values = np.asarray(features(items)) if callable(features) else None
        if numbers:
            values = items.select(numbers).cast(pl.Float64).to_numpy()
        text = items.select("prompt", "response").to_arrow().cast(TEXT_SCHEMA) if "response" in items.columns else None
        return cls.from_pairs(
            user=frame["user"],
            left=np.where(left_wins, chosen, rejected),
            right=np.where(left_wins, rejected, chosen),
            label=np.where(left_wins, label, 1 - label),
            items=Items(values, text, columns_share_unit),
            seconds=frame["seconds"].to_numpy() if "seconds" in frame.columns else None,
            min_pairs=min_pairs,
            row=np.arange(len(frame)) if row is None else row,
        )

    def content_digest(self) -> str:
        """Return the sha256 of every array and table, 64 hex digits."""
        return arrays_digest(named_arrays(self))


def require_value(value: T | None, what: str, hint: str) -> T:
    """Return the value. Raises UserError, which says that there is no `what`, where the value is None."""
    if value is None:
        raise UserError(f"there is no {what}", hint)
    return value


def require_truth(truth: Truth | None) -> Truth:
    """Return the ground truth. Raises UserError where there is none: only privileged methods are given the truth."""
    return require_value(
        truth, "ground truth", "declare privileged = True in the method, and make it refuse tasks without ground truth"
    )


@dataclass(frozen=True, eq=False)
class Panel:
    """Users with the pairs that a method is shown (context) and the pairs that it must answer (query).

    choices: int32[prompts, n], rows of `items`: for each user, a method chooses one of each prompt's n candidates.
    """

    context: Pairs
    query: Pairs
    choices: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Splits:
    """Training pairs of a method, and the panels that it is evaluated on."""

    train: Pairs
    panels: Mapping[str, Panel] = field(default_factory=dict)

    def named_parts(self) -> dict[str, Pairs]:
        """Return every Pairs of the split under its name: `train`, `test/context`, `test/query`, ..."""
        sides = {f"{n}/{side}": getattr(p, side) for n, p in self.panels.items() for side in ("context", "query")}
        return {"train": self.train} | sides

    def check_for_leaks(self, ids: Sequence[str] | None = None) -> None:
        """Raise SplitLeakError where users or answers leak into training.

        A panel other than `seen` must not share users with the training data, nor any panel with the validation panel.
        A user's query must not be among that user's context pairs or training pairs. A pair is the same pair in either
        order, and also between other items that a person would call the same (`Items.first_same`).

        ids: the people's ids, for the message; without them people are named by their rows in the table `users`.
        """

        def example(people: np.ndarray) -> str:
            return f"for example person {people[0] if ids is None else repr(ids[people[0]])}"

        train, size = _judgement_ids(self.train), len(self.train.items) ** 2 * 4
        nobody = np.zeros(0, dtype=np.int32)
        chooses = self.panels["validation"].query.people if "validation" in self.panels else nobody
        for name, panel in self.panels.items():
            if not np.array_equal(panel.context.people, panel.query.people):
                raise SplitLeakError(f"panel {name}: context and query do not list the same users")
            if name != "seen" and (both := np.intersect1d(panel.query.people, self.train.people)).size:
                raise SplitLeakError(f"panel {name}: {both.size} of its users are in train, {example(both)}")
            if name != "validation" and (both := np.intersect1d(panel.query.people, chooses)).size:
                raise SplitLeakError(f"panel {name}: {both.size} of its users are in validation, {example(both)}")
            asked = _judgement_ids(panel.query)
            for where, shown in (("context", _judgement_ids(panel.context)), ("train", train)):
                if (both := np.unique(shown[np.isin(shown, asked)])).size:
                    raise SplitLeakError(
                        f"panel {name}: {both.size} query pairs are in their own user's {where}, {example(both // size)}"
                    )


def _judgement_ids(pairs: Pairs) -> np.ndarray:
    """Return int64[n]: a number for each person and unordered pair of items, the same for items that read the same.

    Where the two options of a pair read the same, such as "yes" and "YES", their difference counts.
    """
    n = len(pairs.items)
    same = pairs.items.first_same
    a, b = same[pairs.left], same[pairs.right]
    alike = a == b
    exact = pairs.items.first_equal + n
    a, b = np.where(alike, exact[pairs.left], a), np.where(alike, exact[pairs.right], b)
    return (pairs.people[pairs.user].astype(np.int64) * 2 * n + np.minimum(a, b)) * 2 * n + np.maximum(a, b)


def profile_table(pairs: Pairs) -> pa.Table | None:
    """Return what people wrote about themselves, as a table with the column `profile`; None where there is nothing."""
    return None if pairs.profiles is None else pa.table({"profile": pairs.profiles})


def named_arrays(data: PreferenceDataset) -> dict[str, np.ndarray | pa.Table]:
    """Return every array and table of a data set under a stable name."""
    found = {name: getattr(data.pairs, name) for name in ("user", "people", "left", "right", "label", "seconds")}
    found |= {"features": data.pairs.items.features, "text": data.pairs.items.text, "users": data.users}
    found |= {"profiles": profile_table(data.pairs), "choices": data.choices}
    if data.truth is not None:
        found |= {f"truth.{name}": getattr(data.truth, name) for name in ("users", "items", "population")}
        found["truth.temperature"] = np.float64(data.truth.temperature)
    return {name: value for name, value in found.items() if value is not None}


def split_arrays(splits: Splits) -> dict[str, np.ndarray]:
    """Return all arrays of the training pairs and of the panels' contexts and queries under stable names."""
    columns = ("user", "people", "left", "right", "label", "seconds")
    found = {f"{name}.{c}": getattr(pairs, c) for name, pairs in splits.named_parts().items() for c in columns}
    return {name: value for name, value in found.items() if value is not None}


def arrays_digest(named: Mapping[str, np.ndarray | pa.Table]) -> str:
    """Return the sha256 of named arrays and tables: names, types, shapes and values."""
    total = hashlib.sha256()
    for name in sorted(named):
        value = named[name]
        if isinstance(value, pa.Table):
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, value.schema) as writer:
                writer.write_table(value.combine_chunks())
            kind, content = "table", sink.getvalue()
        else:
            value = np.ascontiguousarray(value)
            kind, content = f"{value.dtype.str}{value.shape}", value.data if value.size else b""
        total.update(f"{name}:{kind}:".encode())
        total.update(content)
    return total.hexdigest()
