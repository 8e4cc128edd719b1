"""Learned axes: equal to plain PCA, named by a language model, with responses escaped and kept out of MLflow."""

import re

import numpy as np
import pyarrow as pa
import pytest
from sklearn.decomposition import PCA

from harness import registry
from harness.board import learned_axes
from harness.board.learned_axes import (
    RESPONSES_PER_END,
    find_learned_axes,
    name_axes,
    principal_axes,
    prior_root,
    with_namer_options,
)
from harness.board.make import make_board
from harness.data import TEXT_SCHEMA, Items, Panel
from harness.inference.cache import ID_TYPE, error_table, id_array
from harness.inference.jobs import NotCachedError, make_in_process
from harness.method import Run
from harness.models import small
from harness.report.mlflow_records import board_files
from harness.report.page import html
from harness.report.page.html import render_page, write_html
from harness.report.words import shorten_text
from harness.store.prepared import open_prepared_task
from harness.store.store import Store
from harness.trials.finish import finish_trials
from harness.trials.plan import make_plan
from harness.trials.suite import read_suite

EVIL = "<script>alert(1)</script>"
TASK = '''
"""People who love or hate exclamation marks, and care a little for length."""
from dataclasses import dataclass
import numpy as np
import pyarrow as pa
from harness.data import TEXT_SCHEMA, Items, PreferenceDataset
from harness.task import Task

@dataclass(frozen=True)
class Shouting(Task):
    shots: tuple[int, ...] = (0, 10)
    queries: int = 10

    def build(self, seed):
        rng = np.random.default_rng(7)
        marks, words = rng.integers(0, 9, 120), rng.integers(1, 9, 120)
        marks[0], words[0], marks[1] = 12, 1, 50
        texts = [f"No. {i}" + " so" * w + "!" * m for i, (m, w) in enumerate(zip(marks, words))]
        texts[0], texts[1] = "<script>alert(1)</script>" + "!" * 12, "never judged" + "!" * 50
        x = np.column_stack([marks, words, rng.normal(size=120)]).astype(np.float32)
        x = (x - x[2:].mean(0)) / x[2:].std(0)
        taste = np.column_stack([np.where(rng.random(30) < .5, 2, -2), .3 * rng.normal(size=30), np.zeros(30)])
        user = np.repeat(np.arange(30), 40)
        left, right = rng.integers(2, 120, (2, len(user)))
        left[::40], right = 0, np.where(left == right, (left - 1) % 118 + 2, right)
        right = np.where(left == right, 5, right)
        gap = ((x[left] - x[right]) * taste[user]).sum(1)
        label = rng.random(len(user)) < 1 / (1 + np.exp(-gap))
        text = pa.table([["Will it rain?"] * 120, texts], schema=TEXT_SCHEMA)
        return PreferenceDataset.from_pairs(user, left, right, label.astype(float), Items(x, text))
'''
SUITE = """
seeds = [3]
controls = false
[[tasks]]
name = "shouting"
[[methods]]
name = "shared"
[[methods]]
name = "spectral"
rank = 2
"""
OTHERS = """
[[methods]]
name = "lore"
rank = 2
[[methods]]
name = "per_user"
[[methods]]
name = "rfm"
dim = 3
features = "mlp"
steps = 1
"""


class World:
    """A finished suite on the planted task, its board and store."""

    def __init__(self, folder, more=""):
        self.file, self.store = folder / "read.toml", Store(folder / "store").open()
        (folder / "shouting.py").write_text(TASK)
        self.file.write_text(SUITE + more)
        registry.add_plugins([folder / "shouting.py"])
        self.plan = make_plan(read_suite(self.file), self.store)
        assert all(done for _, done in finish_trials(self.plan.trials, self.store))
        self.board = make_board(self.plan, self.store)


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def items(features, texts):
    table = pa.table([["?"] * len(texts), texts], schema=TEXT_SCHEMA)
    return Items(np.asarray(features, dtype=np.float32), table)


def test_axes_are_those_of_plain_pca_and_end_in_what_was_planted():
    rng = np.random.default_rng(0)
    marks = rng.permutation(np.r_[0:30, 3, 4]) ** 2  # skewed, so that the farthest response has exclamation marks
    features = np.column_stack([marks, rng.normal(size=(32, 3))])
    texts = [f"text {i}" + "!" * m for i, m in enumerate(marks)]
    root = rng.normal(size=(4, 9))  # more columns than features: components without variance are not shown
    rows = np.flatnonzero(marks != marks.max())
    axes = principal_axes(items(features, texts), rows, root)
    rewards = features.astype(np.float32)[rows].astype(float) @ root
    singular = np.linalg.svd(rewards - rewards.mean(0), compute_uv=False)
    assert len(axes) == 4
    assert [axis.share for axis in axes] == pytest.approx((singular**2 / (singular**2).sum())[:4])
    assert [axis.share for axis in axes] == pytest.approx(PCA().fit(rewards).explained_variance_ratio_[:4])
    assert [text.count("!") for text in axes[0].top] == [28**2, 27**2, 26**2]  # 29 is not among the rows
    assert [text.count("!") for text in axes[0].bottom] == [0, 1, 4]
    assert principal_axes(items(features, texts), rows, -root) == axes


def test_ends_show_each_text_once_and_never_at_both():
    (axis,) = principal_axes(
        items([[30], [29], [8], [0], [0.5], [1]], ["a", "a", "b", "a", "c", "d"]), np.arange(6), np.eye(1)
    )
    assert axis.top == ("a", "b") and axis.bottom == ("c", "d")  # two of each, where four texts differ


def test_which_methods_have_a_space(tmp_path):
    """Roots equal those in the methods' files; for lore the covariance of users' weights is computed independently."""
    world = World(tmp_path, OTHERS)
    rows = {row.method.name: row for row in world.board.tasks[0].rows}
    found = {name: prior_root(row, 3, world.store) for name, row in rows.items()}
    assert {name for name, root in found.items() if root is not None} == {"spectral", "lore"}
    splits = open_prepared_task(world.store, world.plan.trials[0].task_key).splits
    asked = splits.panels["validation"]
    shown = Panel(asked.context.first(10), asked.query)
    state = rows["spectral"].method.fit(splits.train, shown, Run(3))
    np.testing.assert_allclose(found["spectral"], state["root"], rtol=1e-6)
    state = rows["lore"].method.fit(splits.train, shown, Run(3))
    draws = np.random.default_rng(0).multivariate_normal(state["mean"], np.linalg.inv(state["precision"]), 200_000)
    np.testing.assert_allclose(
        found["lore"] @ found["lore"].T, np.cov(draws @ state["basis"].numpy().T, rowvar=False), rtol=0.05, atol=1e-3
    )
    assert prior_root(rows["spectral"], 4, world.store) is None  # made for other features


def test_the_page_quotes_training_responses_escaped(world):
    (told,) = find_learned_axes(world.board, world.store).values()
    train = open_prepared_task(world.store, world.plan.trials[0].task_key).splits.train
    assert (told.label, told.seed) == ("spectral(rank=2)", 3)
    assert told.items == len(set(train.left.tolist()) | set(train.right.tolist()))
    ends = [[text.count("!") for text in texts] for texts in (told.axes[0].top, told.axes[0].bottom)]
    assert max(map(min, ends)) >= 7 and min(map(max, ends)) <= 1  # of 0 to 8, and 12 once
    text = write_html(world.board, world.store).read_text()
    assert "Axes of preference learned by spectral(rank=2)" in text and "seed 3 only" in text
    assert EVIL not in text and text.count("&lt;script&gt;alert(1)&lt;/script&gt;!!!!!!!!!!!!") >= 1
    assert (
        "never judged" not in text and "--axis-namer ENGINE:MODEL</code>.</p>" in text and "<th>name</th>" not in text
    )


def test_what_goes_to_mlflow_quotes_nothing(world):
    write_html(world.board, world.store)
    files = board_files(world.board)
    text = files["board.html"].decode()
    assert files.keys() == {"board.html", "board.png"} and "spectral" in text and "data-chart" in text
    assert "Axes of preference" not in text and "so!" not in text and "alert" not in text
    assert text == render_page(world.board, with_people=False) and "One person" not in text
    assert "One person" in render_page(world.board)


def script(job, store, answer):
    """Commit answers of an axis namer: `answer` of each prompt, None for an error."""
    for table in job.batches():
        said = [answer(prompt) for prompt in table["prompt"].to_pylist()]
        ids = id_array(table["id"])
        good = [i for i, text in enumerate(said) if text is not None]
        bad = [i for i, text in enumerate(said) if text is None]
        made = pa.table({"id": pa.array(ids[good].tolist(), ID_TYPE), "responses": [[said[i]] for i in good]})
        job.cached_rows(store).commit(ids, made, error_table(ids[bad], ["too long"] * len(bad)), {})


def test_a_reader_names_the_axes_once(world, monkeypatch):
    reader = "transformers:org/name@" + 40 * "a" + "?dtype=bfloat16"
    with pytest.raises(NotCachedError) as lacking:
        write_html(world.board, world.store, reader)
    job = lacking.value.job
    assert (job.what, job.identity["n"], job.identity["temperature"], job.identity["max_tokens"]) == (
        "samples",
        1,
        0,
        24,
    )
    assert job.identity["dtype"] == "bfloat16"
    (told,) = find_learned_axes(world.board, world.store).values()
    assert lacking.value.count == len(told.axes) > 1

    def answer(prompt):
        """Answer from both ends, as a model would; fail on all axes but the first."""
        one, other = prompt.partition("# One end")[2].split("# Other end")
        assert len(re.findall(r"^\d\. ", one, re.M)) == len(re.findall(r"^\d\. ", other, re.M)) == RESPONSES_PER_END
        if not all(text in prompt for text in told.axes[0].top):
            return None
        loud = one.count("!") > other.count("!")
        return f'"{"Loud vs. calm" if loud else "Calm vs. loud"} <b>"\nbecause'

    script(job, world.store, answer)
    text = write_html(world.board, world.store, reader).read_text()
    first_is_loud = "".join(told.axes[0].top).count("!") > "".join(told.axes[0].bottom).count("!")
    assert (
        f"<td>{'Loud vs. calm' if first_is_loud else 'Calm vs. loud'} &lt;b&gt;</td>" in text and "because" not in text
    )
    assert text.count("no name: too long") == len(told.axes) - 1 and "<th>name</th>" in text
    assert f"Named by {reader}, from these responses alone.</p>" in text and "--axis-namer ENGINE:MODEL" not in text
    monkeypatch.setattr(learned_axes, "find_learned_axes", lambda *_: pytest.fail("read again"))
    write_html(world.board, world.store, reader)


def test_a_real_engine_can_be_asked(world, monkeypatch, tmp_path):
    """An untrained model is asked through cache, tokenizer and transformers, and every answer is stored."""
    monkeypatch.setattr(small, "TRAINING_CONTEXT", 2048)
    small.build_small_model(tmp_path / "model", steps=0)
    readings = find_learned_axes(world.board, world.store)
    with pytest.raises(NotCachedError) as lacking:
        name_axes(readings, f"transformers:{tmp_path}/model", world.store)
    job = lacking.value.job
    assert make_in_process(job.cached_rows(world.store), job.recipe, job.batches())["rows"] == lacking.value.count
    (told,) = name_axes(readings, f"transformers:{tmp_path}/model", world.store).values()
    assert all(axis.name and "\n" not in axis.name for axis in told.axes)
    assert not any(axis.name.startswith("no name: the prompt") for axis in told.axes)  # it fitted


def test_a_readers_own_options_come_last_and_count():
    assert with_namer_options("vllm:./m") == "vllm:./m?temperature=0&max_tokens=24"
    assert (
        with_namer_options("vllm:./m?max_tokens=99&seed=1")
        == "vllm:./m?temperature=0&max_tokens=24&max_tokens=99&seed=1"
    )


def test_without_text_or_with_many_tasks_there_is_nothing_to_read(tiny, world, monkeypatch):
    _, plan, store = tiny
    board = make_board(plan, store)
    assert find_learned_axes(board, store, "transformers:small") == {}  # and no model is asked
    assert "Axes of preference" not in write_html(board, store).read_text()
    monkeypatch.setattr(html, "MAX_QUOTED_TASKS", 0)
    assert "Axes of preference" not in write_html(world.board, world.store).read_text()


def test_long_responses_are_cut_between_words():
    assert shorten_text("a\n b") == "a b"
    cut = shorten_text("word " * 100)
    assert cut == "word " * 39 + "word ... (100 words)" and shorten_text("x" * 500) == "x" * 200 + " ... (1 words)"
