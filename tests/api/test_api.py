"""The Python door: suites as objects, boards as frames, one method fitted to any kind of frame, finished trials read back."""

from typing import ClassVar

import datasets
import nbformat
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch
from nbclient import NotebookClient

from harness.api import fit, load_trial, run_suite
from harness.api.running import make_suite
from harness.data import PreferenceDataset
from harness.errors import UserError
from harness.frames import as_polars
from harness.method import Method, Run
from harness.registry import PROJECT_ROOT, make_instance
from harness.scores.metrics import METRICS_VERSION
from harness.store.prepared import open_prepared_task
from harness.store.store import Store


def length(items: pl.DataFrame) -> np.ndarray:
    """One feature: tens of characters of the response."""
    return items["response"].str.len_chars().to_numpy()[:, None] / 10


def choices(n_people: int = 30, n_pairs: int = 20) -> pl.DataFrame:
    """People who always choose the longer response (even number), or always the shorter one (odd number)."""
    rng, rows = np.random.default_rng(0), []
    for person in range(n_people):
        for _ in range(n_pairs):
            short, long = (int(n) for n in np.sort(rng.choice(np.arange(1, 40), 2, replace=False)))
            likes, other = (long, short) if person % 2 == 0 else (short, long)
            rows.append((person, "Tell me.", "x" * likes, "x" * other))
    return pl.DataFrame(rows, schema=["user", "prompt", "chosen", "rejected"], orient="row")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A suite of two methods on a small simulation, run from objects."""
    tasks = [
        make_instance("task", "low_rank", {"n_users": 40, "new_users": 20, "pairs_per_user": 40, "feature_dim": 6})
    ]
    methods = [make_instance("method", name, {}) for name in ("shared", "mixed_logit", "oracle")]
    return run_suite(make_suite(tasks, methods, seeds=3), tmp_path_factory.mktemp("api") / "store")


@pytest.mark.parametrize("kind", ["polars", "lazy", "pandas", "arrow", "hugging face", "dict"])
def test_every_kind_of_frame_gives_the_same_data(kind):
    frame = choices(6, 4)
    other = {
        "polars": lambda: frame,
        "lazy": frame.lazy,
        "pandas": lambda: pd.DataFrame(frame.to_dict(as_series=False)),
        "arrow": frame.to_arrow,
        "hugging face": lambda: datasets.Dataset.from_dict(frame.to_dict(as_series=False)),
        "dict": lambda: frame.to_dict(as_series=False),
    }[kind]()
    found = PreferenceDataset.from_choices(other, length)
    assert found.content_digest() == PreferenceDataset.from_choices(frame, length).content_digest()


def test_chat_messages_are_read_as_their_texts():
    """Also a prompt that both conversations share, in what is fitted, adapted to and asked."""
    data = choices()

    def said(role, column):
        return pl.concat_list(pl.struct(role=pl.lit(role), content=pl.col(column)))

    answers = {name: said("assistant", name) for name in ("chosen", "rejected")}
    explicit = data.with_columns(said("user", "prompt").alias("prompt"), **answers)
    implicit = data.select("user", *(pl.concat_list(said("user", "prompt"), answers[n]).alias(n) for n in answers))
    new = choices(1, 6)
    plain = fit(data, features=length).adapt(new)
    for messages in (explicit, implicit):
        person = fit(messages, features=length).adapt(
            new.with_columns(said("user", "prompt").alias("prompt"), **answers)
        )
        item = pl.DataFrame({"prompt": ["Tell me."], "response": ["x" * 9]})
        as_chat = item.with_columns(
            said("user", "prompt").alias("prompt"), said("assistant", "response").alias("response")
        )
        assert person.rewards(as_chat) == plain.rewards(item) == person.rewards(item)


def test_texts_are_fitted_by_counts_of_words_without_a_function():
    data, new = choices(), choices(1, 12)
    person = fit(data, features="hashing-64").adapt(new)
    query = choices(1, 30)[12:]
    z = person.log_odds(query.select("prompt", left="chosen", right="rejected"))
    assert z.shape == (18,) and np.isfinite(z).all()
    assert repr(person) == "<mixed_logit, adapted to 1 person>" and len(repr(person.fitted)) < 80
    with pytest.raises(UserError, match="only hashing-DIM encodes a new item alone"):
        fit(data, features="tfidf-svd-8")


def test_what_is_not_a_frame_is_refused():
    with pytest.raises(UserError, match="int is not a data frame"):
        as_polars(3)


@pytest.mark.parametrize(
    ("table", "says"),
    [
        (
            lambda: datasets.DatasetDict(
                {name: datasets.Dataset.from_dict({"user": ["a"]}) for name in ("train", "b")}
            ),
            r"several tables: train, b\n\nhint: give one of them: data\['train'\]",
        ),
        (lambda: pd.DataFrame([["a", "b"]], columns=["user", "user"]), "DataFrame cannot be read as one table"),
        (lambda: pd.DataFrame({"user": [7, "7"]}), "DataFrame cannot be read as one table"),
        (lambda: pa.table([[1], [2]], names=["user", "user"]), "Table cannot be read as one table"),
        (lambda: {"user": [7, "7"]}, "dict cannot be read as one table"),
        (lambda: {"user": ["a", "b"], "prompt": ["p"]}, "dict cannot be read as one table"),
        (lambda: pl.LazyFrame({"user": ["a"]}).select("person"), "LazyFrame cannot be read as one table"),
    ],
)
def test_a_table_that_is_several_or_none_is_refused(table, says):
    with pytest.raises(UserError, match=says):
        as_polars(table())


@pytest.mark.parametrize(
    "scaled",
    [
        lambda x: (x - x.mean()) / x.std(),  # one item alone would be 0 / 0
        lambda x: x / x.max(),  # and here always 1
        lambda x: x.argsort(0).argsort(0) / len(x),
        lambda x: x / np.linalg.norm(x),
    ],
)
def test_features_that_depend_on_the_items_beside_are_refused(scaled):
    with pytest.raises(UserError, match="other numbers when it is alone"):
        fit(choices(), features=lambda items: scaled(length(items)))


class Odd(Method):
    """A method whose hooks return what each test wants."""

    answer: ClassVar = {"fit": {}, "adapt": None, "reward": None}

    def fit(self, train, validation, run):
        return self.answer["fit"]

    def adapt(self, state, context, run):
        return (torch.zeros(context.n_users),) if self.answer["adapt"] is None else self.answer["adapt"]

    def reward(self, state, users, items, user, item):
        return torch.ones(len(item)) if self.answer["reward"] is None else self.answer["reward"]


@pytest.mark.parametrize(
    ("hook", "answer", "says"),
    [
        ("fit", None, "fit returned NoneType"),
        ("fit", [1], "fit returned list"),
        ("adapt", [torch.zeros(3)], "adapt returned list"),
        ("reward", torch.full((2,), np.nan), "2 numbers that are not finite"),
        ("reward", np.zeros(2), r"reward returned ndarray\[2\]"),
        ("reward", torch.zeros(3), r"shape \(3,\) for 2 pairs"),
        ("reward", torch.zeros(2, dtype=torch.complex64), "complex numbers"),
        ("reward", torch.full((2,), 1e-60, dtype=torch.float64), "beyond the range of single precision"),
        ("reward", torch.full((2,), 1e60, dtype=torch.float64), "beyond the range of single precision"),
    ],
)
def test_hooks_are_checked_here_as_in_a_suite(monkeypatch, hook, answer, says):
    monkeypatch.setattr(Odd, "answer", Odd.answer | {hook: answer})
    with pytest.raises(UserError, match=says):
        fit(choices(), Odd(), features=length).adapt(choices(2, 3)).rewards(
            {"prompt": ["?"] * 2, "response": ["a", "b"]}, 0
        )


def test_whole_numbers_without_sign_do_not_wrap_around(monkeypatch):
    monkeypatch.setattr(
        Odd, "reward", lambda self, state, users, items, user, item: torch.from_numpy(item).to(torch.uint8)
    )
    person = fit(choices(), Odd(), features=length).adapt(choices(1, 3))
    assert (person.log_odds({"prompt": ["?"], "left": ["a"], "right": ["b"]}) == -1).all()


def test_a_feature_that_is_missing_for_a_new_item_is_refused():
    def long_only(items):
        x = length(items)
        return np.where(x == 0.1, np.nan, x)  # a response of one character

    data = choices().filter(pl.col("chosen").str.len_chars() > 1, pl.col("rejected").str.len_chars() > 1)
    person = fit(data, features=long_only).adapt(data.filter(pl.col("user") == data["user"][0]).drop("user"))
    with pytest.raises(UserError, match=r"item 1 .*NaN or infinite feature"):
        person.rewards({"prompt": ["?", "?"], "response": ["xxx", "x"]})


def test_a_new_person_is_learned_from_a_few_choices():
    """Two people with opposite tastes, and their rewards rise and fall with the one feature that they differ in."""
    with fit(choices(), "mixed_logit", features=length, steps=5) as fitted:
        people = fitted.adapt(choices(2, 5).with_columns(pl.col("user") + 100))
    assert people.ids == ("100", "101")
    items = {"prompt": ["?"] * 3, "response": ["x", "x" * 20, "x" * 39]}
    assert (np.diff(people.rewards(items, user=100)) > 0).all() and (
        np.diff(people.rewards(items, user="101")) < 0
    ).all()
    pairs = {"prompt": ["?", "?"], "left": ["x", "x" * 39], "right": ["x" * 39, "x"]}
    odds = people.log_odds(pairs, user=100)
    assert odds[0] < -1 and odds[1] == pytest.approx(-odds[0])
    rewards = people.rewards(items, user=100)
    assert odds[1] == pytest.approx(rewards[2] - rewards[0])  # Bradley-Terry: log-odds are the gap of rewards


def test_one_person_needs_no_name_and_one_choice_is_enough():
    person = fit(choices(), features=length).adapt({"prompt": ["?"], "chosen": ["xxxx"], "rejected": ["x"]})
    assert person.rewards({"prompt": ["?"], "response": ["xx"]}).shape == (1,)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (lambda: fit(choices(), "mixed_logit"), "cannot use this data: it needs items with numeric features"),
        (lambda: fit(choices(3)), "3 people are too few"),
        (lambda: fit(choices(), Method, features=length), "is no method"),
        (lambda: fit(choices(), features=length, seed=-1), "seed = -1 is not a whole number"),
        (lambda: fit(choices(), features=lambda items: np.zeros((len(items), 0))), "one row of numbers for each item"),
        (
            lambda: fit(PreferenceDataset.from_choices(choices(), length)).adapt(choices(1, 3)),
            "features of new items are unknown",
        ),
        (
            lambda: fit(choices(), features=length).adapt(choices(1, 3)).rewards({"prompt": ["?"], "response": [None]}),
            "column response holds|no text in column response",
        ),
        (lambda: fit(choices(), "in_context", features=length), "asks a language model"),
        (lambda: fit(choices(), "mixed_logitt", features=length), "there is no method 'mixed_logitt'"),
        (lambda: fit(choices(), features=length).adapt({"prompt": ["?"]}), "no column chosen, rejected"),
        (lambda: fit(choices(), features=length).adapt(choices(2, 3)).rewards({"response": ["x"]}, 0), "column prompt"),
        (
            lambda: fit(choices(), features=length).adapt(choices(2, 3)).rewards({"prompt": ["?"], "response": ["x"]}),
            "no adapted person None",
        ),
    ],
)
def test_mistakes(asked, message):
    with pytest.raises(UserError, match=message):
        asked()


def test_a_board_as_frames(finished):
    scores, board = finished.scores(), finished.board
    assert scores["method"].to_list() == ["mixed_logit", "shared", "oracle"]  # best first, the line last
    assert scores["state"].to_list() == ["ranked", "ranked", "privileged"]
    best = board.tasks[0].rows[0]
    assert scores.row(0, named=True)["gain_low"] == best.gain.low and scores["rank"].to_list() == [1, 2, None]
    curves = finished.curves().filter(method="mixed_logit", metric="accuracy").sort("shots")
    assert curves["value"].to_list() == [point.value for point in best.curves["accuracy"].values()]
    differences = finished.differences().filter(shots=20)
    forth = differences.filter(a="mixed_logit", b="shared")["value"][0]
    assert forth == pytest.approx(-differences.filter(a="shared", b="mixed_logit")["value"][0])
    assert finished.verdicts()["verdict"].to_list() == [board.tasks[0].verdict]
    assert finished.trials()["finished"].all() and len(finished.trials()) == 9


def test_a_second_run_computes_nothing(finished, monkeypatch):
    monkeypatch.setattr("harness.api.running.run_trials", lambda *_, **__: pytest.fail("run again"))
    again = run_suite(finished.plan.suite, finished.store)
    assert again.scores().equals(finished.scores())


def test_a_finished_trial_goes_on_where_it_ended(finished):
    """Its learned state, adapted to the same people again, gives the very predictions that are stored."""
    key = finished.trials().filter(method="mixed_logit", seed=0)["key"][0]
    trial = load_trial(finished.store.root, key[:8])
    assert trial.key == key and trial.identity["seed"] == 0 and trial.facts["seconds"] > 0
    method = trial.method()
    assert method == make_instance("method", "mixed_logit", {})
    task_key = next(t.task_key for t in finished.plan.trials if t.key == key)
    test = open_prepared_task(finished.store, task_key).splits.panels["test"]
    users = method.adapt(trial.state, test.context.first(20), Run(0))
    torch.testing.assert_close(users, trial.users)  # the trial summed with one thread
    odds = method.score(trial.state, users, test.query).float().numpy()
    np.testing.assert_allclose(odds, trial.predictions["test/20"], rtol=1e-5)
    assert set(trial.scores["panel"]) == {"seen", "validation", "test"}


def test_a_failed_trial_says_why(tmp_path):
    store = Store(tmp_path / "store").open()
    store.record_failure("f" * 16, {}, "ValueError: no", "trace")
    with pytest.raises(UserError, match="failed: ValueError: no"):
        load_trial(store, "ffff")
    with pytest.raises(UserError, match="no trial 0123"):
        load_trial(store, "0123")


def test_the_notebook_runs(tmp_path, monkeypatch):
    """Every cell, in a kernel of its own; the last one asserts what the new person prefers."""
    monkeypatch.setenv("PYTHONPATH", str(PROJECT_ROOT))
    notebook = nbformat.read(PROJECT_ROOT / "harness" / "api" / "tour.ipynb", as_version=4)
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any("personalising pays" in str(output) for output in shown)


def test_scores_of_older_metrics_are_refused(finished, monkeypatch):
    trial = load_trial(finished.store, finished.trials()["key"][0])
    monkeypatch.setattr("harness.api.finished.METRICS_VERSION", 99)
    with pytest.raises(UserError, match=f"of metrics {METRICS_VERSION}, not 99"):
        _ = trial.scores
