"""Items, Pairs, from_choices, splits and the check for leaks."""

from dataclasses import replace

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.data import (
    Items,
    Panel,
    PreferenceDataset,
    SplitLeakError,
    Splits,
    Truth,
    arrays_digest,
    named_arrays,
    require_truth,
)
from harness.errors import UserError
from harness.task import split_in_order, split_pairs_of_each_user, split_whole_users

FRAME = pl.DataFrame(
    {
        "user": ["b", "a", "b", "a", "c", "c"],
        "prompt": ["p", "p", "q", "q", "p", "q"],
        "chosen": ["x", "y", "u", "u", "x", "v"],
        "rejected": ["y", "x", "v", "v", "z", "u"],
    }
)


def people(n_users, n_pairs, n_items=12, seed=0):
    """Return a data set in which each person judges random pairs of few items, many of them twice."""
    rng = np.random.default_rng(seed)
    user = rng.permutation(np.repeat(np.arange(n_users), n_pairs))
    left = rng.integers(n_items, size=len(user))
    right = (left + rng.integers(1, n_items, size=len(user))) % n_items
    items = Items(rng.normal(size=(n_items, 3)).astype(np.float32))
    return PreferenceDataset.from_pairs(user, left, right, rng.integers(2, size=len(user)), items)


def test_from_choices_keeps_every_judgement():
    data = PreferenceDataset.from_choices(FRAME)
    text = data.pairs.items.text.to_pylist()
    ids = data.users["id"].to_pylist()
    told = set()
    for u, left, right, label in zip(data.pairs.user, data.pairs.left, data.pairs.right, data.pairs.label, strict=True):
        chosen, rejected = (left, right) if label == 1 else (right, left)
        told.add((ids[u], text[chosen]["prompt"], text[chosen]["response"], text[rejected]["response"]))
    assert told == set(FRAME.rows())
    assert len(text) == 5  # (p, x), (p, y), (p, z), (q, u), (q, v): equal texts are one item
    assert (np.diff(data.pairs.user) >= 0).all()


def test_from_choices_draws_sides_at_random():
    many = pl.concat([FRAME] * 500)
    label = PreferenceDataset.from_choices(many).pairs.label
    assert abs(label.mean() - 0.5) < 4.5 * 0.5 / np.sqrt(len(label))


def test_from_choices_takes_soft_labels_seconds_and_features():
    frame = FRAME.with_columns(label=pl.Series([0.9, 1, 1, 0.6, 0.5, 1]), seconds=pl.lit(1.5))
    data = PreferenceDataset.from_choices(frame, features=lambda items: np.ones((len(items), 2)))
    assert sorted(np.round(np.maximum(data.pairs.label, 1 - data.pairs.label), 3)) == [0.5, 0.6, 0.9, 1, 1, 1]
    assert (data.pairs.seconds == 1.5).all()
    assert data.pairs.items.features.shape == (5, 2)


@pytest.mark.parametrize(
    ("frame", "says"),
    [
        (FRAME.drop("chosen"), "no column chosen"),
        (FRAME.with_columns(prompt=pl.lit(1)), "not text"),
        (FRAME.with_columns(user=pl.Series(["a", None, "b", "b", "c", "c"])), "row 1 .*has no user"),
        (FRAME.with_columns(label=pl.lit(1.5)), r"outside \[0, 1\]"),
        (FRAME.with_columns(label=pl.lit(float("nan"))), r"outside \[0, 1\]"),
        (FRAME.with_columns(rejected=pl.col("chosen")), "the same text in chosen and rejected"),
        (FRAME.head(5), "a user with fewer than 2 pairs"),
    ],
)
def test_from_choices_explains_bad_rows(frame, says):
    with pytest.raises(UserError, match=says):
        PreferenceDataset.from_choices(frame)


def test_nan_features_are_refused():
    with pytest.raises(UserError, match="NaN or infinite feature"):
        PreferenceDataset.from_choices(FRAME, features=lambda items: np.full((len(items), 1), np.nan))


@pytest.mark.parametrize("ask", [lambda items: items.known_features, lambda items: items.known_text, len])
def test_what_is_not_there_is_named(ask):
    with pytest.raises(UserError, match=r"there is no (numeric features|texts) of the items"):
        ask(Items())
    with pytest.raises(UserError, match="no population in the task's ground truth"):
        _ = Truth(EYE, EYE).known_population
    with pytest.raises(UserError, match="no ground truth"):
        require_truth(None)


EYE = np.eye(3, dtype=np.float32)
TEXTS = pa.table({"prompt": ["p"] * 3, "response": ["a", "b", "c"]})
GOOD = {"user": ["a", "a", "b", "b"], "left": [0, 1, 0, 1], "right": [1, 2, 2, 2], "label": [1, 0, 1, 0.5]}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"right": [1, 2, 2, 7]}, r"row 3 .counting from 0. has an item that does not exist \(7\)"),
        ({"left": [0, -1, 0, 1]}, r"row 1 .counting from 0. has an item that does not exist \(-1\)"),
        ({"left": [np.nan, 1, 0, 1]}, r"row 0 .counting from 0. has an item that does not exist \(nan\)"),
        ({"right": [1, 2, np.inf, 2]}, r"row 2 .counting from 0. has an item that does not exist \(inf\)"),
        ({"left": [0.5, 1, 0, 1]}, r"row 0 .counting from 0. has an item that does not exist \(0.5\)"),
        ({"left": ["x", "y", "x", "y"]}, "column left holds .*, not numbers"),
        ({"label": ["yes", "no", "no", "no"]}, "column label holds .*, not numbers"),
        ({"user": [1.0, np.nan, 2.0, np.nan]}, r"row 1 .counting from 0. has no user \(nan\); 2 such"),
        ({"user": np.array(["a", "a", None, "b"], object)}, r"row 2 .counting from 0. has no user \(None\)"),
        ({"seconds": [1, np.nan, 1, 1]}, r"row 1 .counting from 0. has an impossible response time"),
        ({"seconds": [1, 1, 1, -3]}, r"row 3 .counting from 0. has an impossible response time"),
        ({"seconds": [1, 1, np.inf, 1]}, r"row 2 .counting from 0. has an impossible response time"),
        ({"seconds": [1]}, r"column seconds has shape \(1,\), but column user has shape \(4,\)"),
        ({"left": [0, 1, 0, 1, 0]}, r"column left has shape \(5,\), but column user has shape \(4,\)"),
        ({"label": [1, 0]}, r"column label has shape \(2,\), but column user has shape \(4,\)"),
        ({"user": [], "left": [], "right": [], "label": []}, r"there are no judged pairs"),
        ({"items": Items(np.eye(9, dtype=np.float32), TEXTS)}, "9, 9.* for 3 texts"),
        ({"items": Items(np.ones(3, np.float32))}, r"features are float32 of shape \(3,\)"),
        ({"items": Items(np.array([["1"]] * 3))}, "features are <U1"),
    ],
)
def test_what_cannot_be_judged_is_refused(changes, says):
    good = GOOD | {"items": Items(EYE, TEXTS), "seconds": [1, 2, 3, 0]}
    assert PreferenceDataset.from_pairs(**good).pairs.seconds.tolist() == [1, 2, 3, 0]
    with pytest.raises(UserError, match=says):
        PreferenceDataset.from_pairs(**good | changes)


def test_item_numbers_may_be_whole_floats():
    data = PreferenceDataset.from_pairs(**GOOD | {"left": [0.0, 1.0, 0.0, 1.0], "items": Items(EYE)})
    assert data.pairs.left.tolist() == [0, 1, 0, 1] and data.pairs.left.dtype == np.int32


@given(st.integers(5, 30), st.integers(6, 25), st.integers(0, 50))
@settings(max_examples=25, deadline=None)
def test_whole_users_never_leak(n_users, n_pairs, seed):
    """Even where pairs are judged twice, no query was shown; each person is in one part, and queries are bounded."""
    data = people(n_users, n_pairs, seed=seed)
    splits = split_whole_users(data, seed, n_context=3, n_query=4)
    splits.check_for_leaks()
    assert sum(len(splits.panels[p].query.people) for p in ("validation", "test")) + splits.train.n_users == n_users
    assert all(
        np.diff(panel.query.offsets).max(initial=0) <= 4 for name, panel in splits.panels.items() if name != "seen"
    )


def test_every_person_is_a_test_person_once_in_five_seeds():
    data = people(31, 20)
    tested = np.concatenate([split_whole_users(data, seed, 5, 5).panels["test"].query.people for seed in range(5)])
    assert sorted(tested) == list(range(31))
    again = np.concatenate([split_whole_users(data, seed, 5, 5).panels["test"].query.people for seed in range(5, 10)])
    assert sorted(again) == list(range(31)) and list(again) != list(tested)


def test_in_order_shows_first_and_asks_last():
    data = people(10, 8, n_items=400)
    splits = split_in_order(data, n_train=6, n_query=3)
    assert list(splits.panels["test"].query.people) == [8, 9]
    rows = data.pairs.of([9])
    assert np.array_equal(splits.panels["test"].query.of([1]).left, rows.left[-3:])
    assert np.array_equal(splits.panels["test"].context.of([1]).left, rows.left[:-3])


def test_repeats_go_where_their_pair_goes():
    data = people(4, 60, n_items=5)
    first, rest = split_pairs_of_each_user(data.pairs, np.random.default_rng(0), lambda counts: counts // 2)

    def judged(pairs):
        return {(u, *sorted(ab)) for u, *ab in zip(pairs.user, pairs.left, pairs.right, strict=True)}

    assert not judged(first) & judged(rest)
    assert len(first) + len(rest) == len(data.pairs)


class TestLeak:
    def splits(self):
        return split_whole_users(people(10, 20, n_items=300), 0, n_context=5, n_query=5)

    def with_test(self, **changes):
        splits = self.splits()
        return Splits(splits.train, dict(splits.panels) | {"test": replace(splits.panels["test"], **changes)})

    def test_a_clean_split_passes(self):
        self.splits().check_for_leaks()

    def test_a_query_in_the_context_is_caught(self):
        context = self.splits().panels["test"].context
        with pytest.raises(SplitLeakError, match="own user's context"):
            self.with_test(query=context).check_for_leaks()

    def test_the_other_orientation_is_caught(self):
        context = self.splits().panels["test"].context
        with pytest.raises(SplitLeakError, match="own user's context"):
            self.with_test(query=context.swapped()).check_for_leaks()

    @pytest.mark.parametrize("kind", ["features", "text"])
    def test_equal_items_under_other_numbers_are_caught(self, kind):
        splits = self.splits()
        features = splits.train.items.features
        table = pa.table({"prompt": ["p"] * len(features), "response": [str(row) for row in features]})
        twins = Items(np.concatenate([features, features]))
        if kind == "text":  # with texts, features are not compared
            twins = Items(np.arange(2 * len(features), dtype=np.float32)[:, None], pa.concat_tables([table, table]))
        moved = {
            n: Panel(replace(p.context, items=twins), replace(p.query, items=twins)) for n, p in splits.panels.items()
        }
        shown = moved["test"].context
        moved["test"] = Panel(shown, replace(shown, left=shown.left + len(features)))
        with pytest.raises(SplitLeakError, match="own user's context"):
            Splits(replace(splits.train, items=twins), moved).check_for_leaks()

    def test_a_test_person_in_train_is_caught(self):
        splits = self.splits()
        with pytest.raises(SplitLeakError, match="are in train"):
            Splits(
                replace(splits.train, people=splits.train.people + splits.panels["test"].query.people.min()),
                splits.panels,
            ).check_for_leaks()

    def test_a_test_person_in_validation_is_caught(self):
        splits = self.splits()
        with pytest.raises(SplitLeakError, match="are in validation"):
            Splits(splits.train, dict(splits.panels) | {"test": splits.panels["validation"]}).check_for_leaks()

    def test_a_seen_query_in_train_is_caught(self):
        splits = self.splits()
        seen = Panel(splits.panels["seen"].context.first(0), splits.train.first(2))
        with pytest.raises(SplitLeakError, match="own user's train"):
            Splits(splits.train, dict(splits.panels) | {"seen": seen}).check_for_leaks()


def test_different_items_are_never_taken_for_one():
    """Rows that differ in one bit, in one place or in the order of their numbers are different items."""
    near = 1 + np.arange(2**17) * np.float64(2**-23)
    x = np.zeros((3 * 2**17, 2), np.float32)
    x[: 2**17, 0], x[2**17 : 2**18, 1], x[2**18 :, 0], x[2**18 :, 1] = near, near, near, near[::-1]
    first = Items(np.concatenate([x, x])).first_same
    assert len(np.unique(first)) == len(x) == len(np.unique(x, axis=0))
    assert np.array_equal(first[: len(x)], np.arange(len(x))) and np.array_equal(first[len(x) :], np.arange(len(x)))


def test_pairs_slices():
    pairs = people(6, 7).pairs
    assert np.array_equal(pairs.chunk(2, 4).left, pairs.left[14:28])
    assert list(pairs.chunk(2, 4).people) == [2, 3]
    assert np.array_equal(pairs.of([5, 0]).left, np.r_[pairs.left[35:], pairs.left[:7]])
    assert np.array_equal(pairs.first(2).rank, [0, 1] * 6)
    assert np.array_equal(pairs.swapped().gap, -pairs.gap)
    assert np.isnan(pairs.without_labels().label).all() and pairs.without_labels().seconds is None
    assert pairs.pooled().n_users == 1 and len(pairs.pooled()) == len(pairs)


def test_item_numbers_tell_nothing():
    """Item numbers do not reveal the chosen response, as they would if chosen responses were numbered first."""
    rng = np.random.default_rng(0)
    n = 2000
    texts = [str(x) for x in rng.permutation(2 * n)]
    frame = pl.DataFrame(
        {"user": rng.integers(20, size=n), "prompt": "p", "chosen": texts[:n], "rejected": texts[n:]}, strict=False
    )
    pairs = PreferenceDataset.from_choices(frame.with_columns(pl.lit("p").alias("prompt"))).pairs
    assert abs(((pairs.left < pairs.right) == (pairs.label == 1)).mean() - 0.5) < 4.5 * 0.5 / np.sqrt(n)


def test_mistakes_name_the_row_as_it_was_given():
    items = Items(np.eye(3, dtype=np.float32))
    with pytest.raises(UserError, match="row 1 .counting from 0. has a label"):
        PreferenceDataset.from_pairs(["b", "a", "b", "a"], [0, 1, 0, 1], [1, 2, 2, 2], [1, 7, 1, 0], items)


def test_the_digest_sees_every_value():
    """A change in any array or table of a data set changes the digest."""
    frame = FRAME.with_columns(seconds=pl.Series([1.0, 2, 3, 4, 5, 6]))
    data = PreferenceDataset.from_choices(frame, features=lambda items: np.arange(len(items) * 2).reshape(-1, 2))
    draws = np.ones((3, 2), np.float32)
    data = replace(data, truth=Truth(draws, np.ones((5, 2), np.float32), 1.0, draws))
    named = named_arrays(data)
    expected = {"user", "people", "left", "right", "label", "seconds", "features", "text", "users"}
    assert set(named) == expected | {f"truth.{n}" for n in ("users", "items", "population", "temperature")}
    for name, value in named.items():
        if isinstance(value, pa.Table):
            first = value.column(0).to_pylist()
            changed = value.set_column(0, value.column_names[0], [[first[0] + "!", *first[1:]]])
        else:
            changed = np.array(value)
            changed.flat[0] += 1
        assert arrays_digest(named | {name: changed}) != arrays_digest(named), name
    assert data.content_digest() == arrays_digest(named)


def test_a_bad_label_or_a_blank_user_is_named_as_it_stands_in_the_table():
    """The number in the message is the one in the file, whichever side it was drawn to; two blank users are not one person."""
    frame = pl.DataFrame(
        {"user": ["a", "a", "b", "b"], "prompt": ["?"] * 4, "chosen": list("wxyz"), "rejected": list("stuv")}
    )
    with pytest.raises(UserError, match=r"row 2 .* has a label outside \[0, 1\] \(3.0\)") as caught:
        PreferenceDataset.from_choices(frame.with_columns(label=pl.Series([1.0, 0.5, 3.0, 1.0])))
    assert "P(chosen preferred)" in caught.value.hint
    with pytest.raises(UserError, match="row 1 .* has no user"):
        PreferenceDataset.from_choices(frame.with_columns(user=pl.Series(["a", " ", "", "b"])))
    with pytest.raises(UserError, match="there are no judged pairs"):
        PreferenceDataset.from_choices(frame.clear())
