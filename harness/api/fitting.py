"""One method fitted to one data set, and adapted to new people from their choices."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import polars as pl
import torch

from harness import registry
from harness.data import Items, Pairs, Panel, PreferenceDataset
from harness.errors import UserError, error_prefix
from harness.frames import as_polars
from harness.inference.encode import HASHING_NAME, HashingEncoder, parse_encoder
from harness.method import Method, Predictor, Run, State, TaskFacts, Users
from harness.rows import text_columns
from harness.scaling import ColumnScale
from harness.sources.judged import with_prompt
from harness.sources.messages import as_messages, text_of_messages
from harness.store.store import Store
from harness.table_files import read_table
from harness.task import split_pairs_of_each_user
from harness.trials.outputs import checked_per_pair, checked_state, checked_users
from harness.trials.plan import refusal

T = TypeVar("T")
Features = Callable[[pl.DataFrame], np.ndarray]  # items (columns prompt, response) -> float32[n, d]

OWN_SHARE = 0.02  # of a column's spread: by so much sums in half precision may differ between batches
TEXT_COLUMNS = ("prompt", "chosen", "rejected", "response", "left", "right")
VALIDATION_PEOPLE = 5  # one person in five chooses settings, as in the benchmark's own splits


@dataclass(frozen=True, eq=False)
class FittedMethod:
    """A method with what it learned from everybody in a data set.

    A policy holds its language model until `close`; use `with fit(...) as fitted` there.
    """

    method: Method
    state: State
    run: Run
    features: Features | None
    needs_features: bool
    predictor: Predictor
    resources: contextlib.ExitStack = field(repr=False)

    def __repr__(self) -> str:
        return f"<{self.method.name}, fitted>"

    def __enter__(self) -> FittedMethod:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free what the method holds in memory."""
        self.resources.close()

    def adapt(self, choices: Any) -> AdaptedPeople:
        """Adapt to new people, all at once, from the choices each has made.

        choices: any data frame with the columns prompt, chosen and rejected (texts, or lists of chat messages); `user`
        where it holds several people, and `label` and `seconds` as in PreferenceDataset.from_choices.
        """
        if self.features is None and self.needs_features:
            raise UserError("the features of new items are unknown", "give fit the function: features=...")
        frame = _with_texts(as_polars(choices))
        if "user" not in frame.columns:
            frame = frame.with_columns(user=pl.lit("this person"))
        data = PreferenceDataset.from_choices(frame, self.features, min_pairs=1)
        users = self.predictor.adapt(self.state, data.pairs, self.run)
        users = _checked(lambda: checked_users(users, data.pairs.n_users, self.method.name))
        return AdaptedPeople(self, tuple(data.users["id"].to_pylist()), users)


@dataclass(frozen=True, eq=False)
class AdaptedPeople:
    """People to whom a fitted method has adapted."""

    fitted: FittedMethod
    ids: tuple[str, ...]  # in the order of the rows of `users`
    users: Users  # tensors with a row per person

    def __repr__(self) -> str:
        return (
            f"<{self.fitted.method.name}, adapted to {len(self.ids):,} {'person' if len(self.ids) == 1 else 'people'}>"
        )

    def rewards(self, items: Any, user: object = None) -> np.ndarray:
        """Return float64[n]: the reward that the person gives to each item; only differences within a person mean something.

        items: any data frame with the columns prompt and response. user: whose; needed where there are several people.
        """
        if not self.fitted.method.has_rewards:
            raise UserError(f"{self.fitted.method.name} scores pairs alone", "ask for log_odds instead")
        frame = _columns(items, "prompt", "response")
        row = np.full(len(frame), self._row(user), dtype=np.int32)
        found = self.fitted.predictor.reward(
            self.fitted.state, self.users, self._items(frame), row, np.arange(len(frame))
        )
        return self._numbers(found, len(frame), "reward")

    def log_odds(self, pairs: Any, user: object = None) -> np.ndarray:
        """Return float64[n]: log-odds that the person prefers `left` to `right`, not calibrated.

        pairs: any data frame with the columns prompt, left and right (two responses). user: as for `rewards`.
        """
        frame = _columns(pairs, "prompt", "left", "right")
        n, person = len(frame), self._row(user)
        sides = [frame.select("prompt", response=side) for side in ("left", "right")]
        query = Pairs(
            user=np.full(n, person, dtype=np.int32),
            people=np.arange(len(self.ids), dtype=np.int32),
            left=np.arange(n, dtype=np.int32),
            right=np.arange(n, 2 * n, dtype=np.int32),
            label=np.full(n, np.nan, dtype=np.float32),
            items=self._items(pl.concat(sides)),
        )
        return self._numbers(self.fitted.predictor.score(self.fitted.state, self.users, query), n, "score")

    def _numbers(self, answer: torch.Tensor, n: int, hook: str) -> np.ndarray:
        """Return the method's answer as float64[n]. Raises UserError where it is none."""
        who = f"{self.fitted.method.name}.{hook}"
        return _checked(lambda: checked_per_pair(answer, n, who)).astype(np.float64)

    def _items(self, frame: pl.DataFrame) -> Items:
        features = self.fitted.features
        items = Items(
            None if features is None else np.asarray(features(frame)), frame.select("prompt", "response").to_arrow()
        )
        items.check_content()
        return items

    def _row(self, user: object) -> int:
        if user is None and len(self.ids) == 1:
            return 0
        if str(user) not in self.ids:
            raise UserError(f"there is no adapted person {user!r}", f"user = one of {', '.join(self.ids[:10])}")
        return self.ids.index(str(user))


def fit(
    data: Any,
    method: str | Method = "mixed_logit",
    *,
    features: Features | str | None = None,
    columns_share_unit: bool = False,
    seed: int = 0,
    store: Store | None = None,
    **fields: object,
) -> FittedMethod:
    """Fit one method to everybody in a data set.

    data: a PreferenceDataset, or any data frame, or a csv, jsonl or parquet file, with the columns user, prompt, chosen and
    rejected, which hold texts or lists of chat messages. method: its name, with its `fields`, or an instance.
    features: maps items (columns prompt, response) to float32[n, d]; it must give the same numbers to the same item
    whatever stands beside it, since new people's items pass through it too. Or "hashing-DIM", such as "hashing-256":
    counts of words and marks of the response. columns_share_unit: as for Items. store: where a policy keeps its
    language model. One person in five is held out to choose settings.

    Raises UserError where the method cannot use the data, and where features depends on the items beside.
    """
    made = registry.make_instance("method", method, fields) if isinstance(method, str) else method
    if not isinstance(made, Method):
        raise UserError(f"{made!r} is no method", "give its name, or an instance such as MyMethod()")
    if not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise UserError(f"seed = {seed!r} is not a whole number from 0 on", "for example seed=0")
    if isinstance(features, str):
        features, columns_share_unit = _hashed(features), True
    if not isinstance(data, PreferenceDataset):
        with error_prefix(str(data)) if isinstance(data, str | Path) else contextlib.nullcontext():
            frame = _with_texts(read_table(Path(data)) if isinstance(data, str | Path) else as_polars(data))
            data = PreferenceDataset.from_choices(frame, features, columns_share_unit=columns_share_unit)
    check_features_of_one_item(data.pairs.items, features)
    if data.pairs.n_users < VALIDATION_PEOPLE:
        raise UserError(
            f"{data.pairs.n_users} people are too few to fit a method to", f"bring at least {VALIDATION_PEOPLE} people"
        )
    if made.asks_model:
        raise UserError(
            f"{made.name} fits nothing and asks a language model about every pair",
            "run it in a suite: harness.api.run_suite collects its questions first",
        )
    if reason := refusal(made, _facts(data)):
        raise UserError(
            f"{made.name} cannot use this data: it {reason}",
            'give features, for example "hashing-256" for texts, or choose another method',
        )
    run = Run(seed, truth=data.truth if made.privileged else None, store=store)
    people = np.random.default_rng([seed, data.pairs.n_users]).permutation(data.pairs.n_users)
    n_validation = len(people) // VALIDATION_PEOPLE
    train, held_out = data.pairs.of(np.sort(people[n_validation:])), data.pairs.of(np.sort(people[:n_validation]))
    scale = None
    if data.pairs.items.features is not None and not data.pairs.items.columns_share_unit:
        scale = ColumnScale.of_pairs(data.pairs.items.features, train.left, train.right)
        items = replace(data.pairs.items, features=scale.apply(data.pairs.items.features))
        train, held_out = replace(train, items=items), replace(held_out, items=items)
    context, query = split_pairs_of_each_user(held_out, np.random.default_rng(seed), lambda counts: counts // 2)
    state = made.fit(train, Panel(context, query), run)
    _checked(lambda: checked_state(state, made.name))
    resources = contextlib.ExitStack()
    predictor = resources.enter_context(made.open_predictor(state, run))
    needs_features = data.pairs.items.features is not None
    return FittedMethod(made, state, run, _scaled(features, scale), needs_features, predictor, resources)


def _checked(check: Callable[[], T]) -> T:
    """Return what a check returns. Raises UserError where the method's own code returned what it must not."""
    try:
        return check()
    except (TypeError, ValueError) as error:
        raise UserError(str(error), "`manyminds check my_method.py` shows every rule of a method") from error


def check_features_of_one_item(items: Items, features: Features | None) -> None:
    """Raise UserError where an item alone has other features than among all items, as after scaling by their own mean."""
    if features is None or items.text is None or items.features is None:
        return
    x = items.features.astype(np.float64)
    deviation, spread = x - x.mean(axis=0), x.std(axis=0)
    distance = np.abs(deviation / np.where(spread > 0, spread, 1)).sum(axis=1)
    for item in np.argsort(distance)[
        [0, len(x) // 2, -1]
    ]:  # a mean shows at the last, a maximum or a rank at the others
        frame = pl.DataFrame(pl.from_arrow(items.text.slice(int(item), 1))).select("prompt", "response")
        with np.errstate(all="ignore"):
            alone = np.asarray(features(frame), dtype=np.float64)
        if alone.shape != (1, x.shape[1]) or not (np.abs(alone[0] - x[item]) <= OWN_SHARE * spread + 1e-9).all():
            raise UserError(
                "features gives an item other numbers when it is alone than beside other items",
                "compute means, spreads, largest values and vocabularies once, before, and use them inside the function",
            )


def _scaled(features: Features | None, scale: ColumnScale | None) -> Features | None:
    """Return a function that computes features in the units in which the method was fitted, float32[n, d]."""
    if features is None:
        return None

    def scaled(items: pl.DataFrame) -> np.ndarray:
        found = np.asarray(features(items))
        return found.astype(np.float32) if scale is None else scale.apply(found)

    return scaled


def _facts(data: PreferenceDataset) -> TaskFacts:
    """Return what a method may know of the data before it is fitted."""
    items = data.pairs.items
    return TaskFacts(
        feature_dim=None if items.features is None else items.features.shape[1],
        has_text=items.text is not None,
        has_seconds=data.pairs.seconds is not None,
        has_truth=data.truth is not None,
        has_profiles=data.pairs.profiles is not None,
    )


def _hashed(name: str) -> Features:
    """Return the function that counts words and marks of responses. Raises UserError for any other encoder."""
    encoder = parse_encoder(name) if HASHING_NAME.fullmatch(name) else None
    if not isinstance(encoder, HashingEncoder):
        raise UserError(
            f"features = {name!r}: only hashing-DIM encodes a new item alone",
            'features="hashing-256", or your own function',
        )
    return lambda items: encoder.vectors(items["response"].to_arrow())


def _with_texts(frame: pl.DataFrame) -> pl.DataFrame:
    """Return the frame with texts in place of chat messages; a prompt that both sides share gets a column of its own."""
    frame = frame.with_columns(as_messages(frame[name]).alias(name) for name in TEXT_COLUMNS if name in frame.columns)
    if {"chosen", "rejected"} <= set(frame.columns):
        frame = with_prompt(frame)
    return frame.with_columns(
        text_of_messages(frame[name]).alias(name) for name in TEXT_COLUMNS if name in frame.columns
    )


def _columns(frame: Any, *names: str) -> pl.DataFrame:
    """Return the named text columns of any data frame. Raises UserError where one is missing."""
    found = _with_texts(as_polars(frame))
    if missing := [name for name in names if name not in found.columns]:
        raise UserError(
            f"the frame has no column {', '.join(missing)}; it has {', '.join(found.columns)}", "rename a column"
        )
    return text_columns(found, *names)
