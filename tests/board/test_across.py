"""The board across tasks: by hand, in simulations of equal methods, and on a small suite."""

import json

import numpy as np
import pytest
from scipy.stats import spearmanr, trim_mean

from harness.board import across
from harness.board.across import (
    half_width,
    interquartile_mean,
    rank_correlations,
    serving_sets,
    surely_better,
    wins_by_task,
)
from harness.board.board import AcrossRow, Point
from harness.board.make import make_board
from harness.errors import UnavailableError
from harness.report.page.html import render_page
from harness.report.terminal import print_board
from harness.report.words import across_remarks
from harness.store.store import Store
from harness.trials.finish import finish_trials
from harness.trials.plan import make_plan
from harness.trials.suite import read_suite
from tasks.raters import Raters

SUITE = """
seeds = 3
controls = false
skip_unavailable = true
methods = [{ name = "shared" }, { name = "per_user" }, { name = "mixed_logit" }, { name = "bayes" }, { name = "rfm", steps = 5 }, { name = "longest" }]

[[tasks]]
name = "low_rank"
weights = ["gaussian", "dirichlet"]
n_users = 40
new_users = 20
pairs_per_user = 20
feature_dim = 8
queries = 10
shots = [0, 10]

[[tasks]]
name = "two_modes"
n_users = 60
queries = 10

[[tasks]]
name = "raters"
n_users = 20
queries = 20
shots = [0, 5]

[[tasks]]
name = "snacks"
"""


def test_wins_by_hand():
    wins = wins_by_task(np.array([[0.8, 0.5], [0.7, 0.5], [0.7, 0.9]]))
    assert wins.tolist() == [[1, 0.25], [0.25, 0.25], [0.25, 1]]


def test_the_interquartile_mean_is_the_mean_of_the_middle_half():
    values = np.random.default_rng(0).normal(size=12)
    mean, weight = interquartile_mean(values)
    assert mean == pytest.approx(trim_mean(values, 0.25)) and weight @ values == pytest.approx(mean)
    assert interquartile_mean(np.array([5.0, 1.0, 100.0]))[0] == pytest.approx((1 * 1 + 4 * 5 + 1 * 100) / 6)
    assert interquartile_mean(np.array([1.0, 2.0]))[0] == 1.5


def test_equal_methods_are_seldom_told_apart_and_a_better_one_often():
    """On 12 and on 4 tasks: at most 5 % of boards of equal methods name a difference, within the error of 300 boards."""
    rng = np.random.default_rng(1)
    for tasks in (12, 4):
        found = [surely_better(wins_by_task(rng.normal(size=(8, tasks)))).any() for _ in range(300)]
        assert np.mean(found) <= 0.05 + 2 * (0.05 * 0.95 / 300) ** 0.5
    better = [surely_better(wins_by_task(rng.normal(size=(8, 12)) + 3 * np.eye(8, 1)))[0, 1:].all() for _ in range(100)]
    assert np.mean(better) > 0.75


def test_the_limits_of_wins_cover_the_truth():
    """Equal methods win half of their comparisons; the t limits over 12 tasks contain that in 93 to 97 % of boards."""
    rng = np.random.default_rng(2)
    wins = np.stack([wins_by_task(rng.normal(size=(8, 12))) for _ in range(1000)])
    half = 2.201 * wins.std(2, ddof=1) / 12**0.5  # the quantile of t with 11 degrees of freedom, from a table
    assert 0.93 <= (np.abs(wins.mean(2) - 0.5) <= half).mean() <= 0.97


@pytest.mark.parametrize(("df", "n"), [(2, 1), (2, 5), (4, 3), (30, 4)])
def test_the_limits_of_a_sum_cover_it_with_few_seeds(df, n):
    """Each of n estimates has an error of another size, which df + 1 draws tell; normal limits would cover 81 % at (2, 1)."""
    rng = np.random.default_rng(4)
    spread = np.linspace(1, 2, n)
    error = (spread * rng.normal(size=(4000, n))).sum(1)
    se = spread * np.sqrt(rng.chisquare(df, (4000, n)) / df)
    half = np.array([half_width(own, np.full(n, float(df))) for own in se])
    assert 0.93 <= (np.abs(error) <= half).mean() <= 0.985
    assert half_width(np.zeros(2), np.ones(2)) == 0 and np.isnan(half_width(np.array([np.nan, 1]), np.ones(2)))


def test_rank_correlations_are_scipys():
    a, b = np.random.default_rng(3).integers(0, 5, size=(2, 20, 9)).astype(float)
    expected = [spearmanr(x, y).statistic for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(rank_correlations(a, b), expected)


def test_serving_sets_by_hand():
    """a serves half of the people and b the others; c is second for everybody."""
    scores = [np.array([[0.9, 0.9, 0.1, 0.1], [0.1, 0.1, 0.9, 0.9], [0.6, 0.6, 0.6, 0.6]])]
    one, two = serving_sets(["a", "b", "c"], scores)[:2]
    assert (one.left, two.left) == (0.5, 0.0) and two.labels == ("a", "b")
    assert len(serving_sets(["a", "b", "c"], scores)) == 2  # three would leave out nobody


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("across")
    (folder / "suite.toml").write_text(SUITE)
    (folder / "empty").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MANYMINDS_DATA", str(folder / "empty"))
        store = Store(folder / "store").open()
        plan = make_plan(read_suite(folder / "suite.toml"), store)
        list(finish_trials(list(plan.trials), store))
        yield folder, make_board(plan, store)


def test_a_board_of_three_tasks_has_a_table_across_them(world, capsys):
    _, board = world
    own = board.across
    assert [row.label for row in own.rows][-1] == "shared" and len(own.rows) == 4
    assert own.tasks == 4 and own.families == {"simulated": 4} and not own.transfers
    assert own.left_out == {"longest": "no result on 4 of 4 tasks"}
    # settings of low_rank count together as one task of three
    accuracy = np.array(
        [
            [next(r for r in t.rows if r.label == row.label).curves["accuracy"][t.shots].value for t in board.tasks]
            for row in own.rows
        ]
    )
    wins = wins_by_task(accuracy)
    expected = np.stack([wins[:, :2].mean(1), wins[:, 2], wins[:, 3]]).mean(0)
    np.testing.assert_allclose([row.wins.value for row in own.rows], expected)
    assert own.units == {"simulated": "share of the possible gain"}
    line = np.array(
        [next(r for r in t.rows if r.label == "bayes").curves["accuracy"][t.shots].value for t in board.tasks]
    )
    shares = (accuracy - accuracy[-1]) / (line - accuracy[-1])
    for row, share in zip(own.rows, shares, strict=True):
        assert row.families["simulated"].value == pytest.approx(trim_mean(share, 0.25))
    page = render_page(board)
    assert "<h2>Across tasks</h2>" in page and own.verdict in page and page.count("<svg") >= 2
    assert json.loads(json.dumps(board.as_dict()))["across"]["rows"][0]["label"] == own.rows[0].label
    print_board(board)
    said = " ".join(capsys.readouterr().out.split())
    assert own.verdict in said and "left out: longest: no result on 4 of 4 tasks" in said


def test_simulated_tasks_and_the_others_are_compared_for_themselves_too(world, monkeypatch):
    _, board = world
    assert board.across.parts == {}  # all are simulated
    monkeypatch.setattr(across, "LEAST_TASKS", 2)
    monkeypatch.setattr(Raters, "family", "human choices")
    found = across.compare_across(board.tasks)
    ((name, part),) = found.parts.items()  # of raters alone nothing can be said
    assert name == "simulated" and part.tasks == 3 and part.families == {"simulated": 3}
    assert part == across.compare_across(board.tasks[:3])
    assert f"on the 3 simulated settings alone: {part.verdict}" in across_remarks(found)


@pytest.mark.parametrize(
    ("best", "said"),
    [
        ([1, 1, 1], "no difference can be told among all 3 methods on tasks like these (a wins 50%)"),
        ([1, 2, 2], "a is the best of 3 methods: on a task like these it beats another method with probability 50%"),
        (
            [1, 1, 2],
            "no difference can be told among a and b on tasks like these (a wins 50%); the other 1 is surely behind one of them",
        ),
        (
            [1, 1, 1, 2],
            "no difference can be told among 3 of 4 methods on tasks like these (a wins 50%); d is surely behind one of them",
        ),
        (
            [1, 1, 3, 3],
            "no difference can be told among a and b on tasks like these (a wins 50%); the other 2 are surely behind one of them",
        ),
    ],
)
def test_the_verdict_names_the_shorter_list(best, said):
    rows = [AcrossRow(label, Point(0.5), (1, b, 4), 1.0, {}) for label, b in zip("abcd", best, strict=False)]
    assert across.across_verdict(rows) == said


def test_a_task_without_its_data_is_left_out_and_named_or_stops_the_suite(world, capsys, monkeypatch):
    folder, board = world
    assert list(board.unavailable) == ["snacks"] and "there is no ClitheroDataset.csv" in board.unavailable["snacks"]
    print_board(board)
    assert "left out: snacks: there is no ClitheroDataset.csv" in capsys.readouterr().out
    (folder / "strict.toml").write_text(SUITE.replace("skip_unavailable = true", ""))
    monkeypatch.setenv("MANYMINDS_DATA", str(folder / "empty"))
    with pytest.raises(UnavailableError, match=r"there is no ClitheroDataset.csv"):
        make_plan(read_suite(folder / "strict.toml"), Store(folder / "store").open())
    (folder / "nothing.toml").write_text('skip_unavailable = true\ntasks = [{ name = "snacks" }]\n')
    with pytest.raises(UnavailableError, match=r"there is no ClitheroDataset.csv"):
        make_plan(read_suite(folder / "nothing.toml"), Store(folder / "store").open())
