"""ICRA and its control agree with least squares, scikit-learn and planted preferences."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from harness.check.methods import method_checks
from harness.data import Items, Panel
from harness.method import Run, TaskFacts
from harness.methods import icra
from harness.methods.icra import Icra
from harness.methods.moment import Moment
from harness.registry import make_instance
from harness.trials.run import run_trial
from harness.trials.trial import Trial
from tasks.low_rank import LowRank
from tasks.response_times import ResponseTimes


@pytest.fixture(scope="module")
def times():
    """Return data and splits with ten annotators; the first annotator alone gives other labels on the same pairs."""
    task = ResponseTimes(n_users=300, new_users=100, n_demonstrations=60)
    data = task.build(0)
    return task, data, task.split(data, 0)


def vectors(train, signal, length):
    """Return float64[n, d * d] and float64[n], by loops: outer products of x and the others' moment, and own signals.

    The moment is the mean of signal times x over the user's other pairs, or over the next `length` of them, cyclically.
    """
    x = train.gap.astype(float)
    own = 2 * train.label.astype(float) - 1
    if signal == "response_time":
        own = own / np.maximum(train.seconds, np.quantile(train.seconds, 0.01))
    rows = []
    for i in range(len(train)):
        others = np.flatnonzero((train.user == train.user[i]) & (np.arange(len(train)) != i))
        if length:
            others = np.r_[others[others > i], others[others < i]][:length]
        rows.append(np.outer(x[i], own[others] @ x[others] / len(others)).ravel())
    return np.array(rows), own


@pytest.mark.parametrize("length", [0, 7, 500])
def test_the_matrix_is_the_minimum(times, monkeypatch, length):
    """Without a ridge G equals scikit-learn's logistic regression, or least squares, on the outer products."""
    train = times[2].train.chunk(0, 40)
    sharp = replace(train, label=(train.label > 0.5).astype(np.float32))
    monkeypatch.setattr(icra, "RIDGE_STRENGTHS", (1e-9,))
    Z, own = vectors(sharp, "choice", length)
    exact = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-10, max_iter=1000).fit(Z, sharp.label).coef_[0]
    found = icra.LinearAttention(sharp, "choice", length, Run(0))[0]["gamma"].numpy().ravel()
    assert np.abs(Z @ (found - exact)).max() < 0.02 * np.abs(Z @ exact).max()
    Z, own = vectors(train, "response_time", length)
    exact = np.linalg.lstsq(Z, own, rcond=None)[0]
    found = icra.LinearAttention(train, "response_time", length, Run(0))[0]["gamma"].numpy().ravel()
    assert np.abs(Z @ (found - exact)).max() < 0.01 * np.abs(Z @ exact).max()


def test_equal_pairs_count_as_often_as_they_were_answered(times):
    """The matrix is the one of the same pairs with items of their own, which no two answers share."""
    train = times[2].train.chunk(0, 40)
    draw = np.random.default_rng(0)
    few = replace(train, left=draw.integers(0, 6, len(train)), right=draw.integers(6, 13, len(train)))
    features = few.items.features[np.r_[few.left, few.right]]
    n = len(few)
    own_items = replace(few, items=Items(features), left=np.arange(n), right=n + np.arange(n))
    assert len(icra.LinearAttention(few, "choice", 0, Run(0)).X) == 42
    found, apart = (icra.LinearAttention(pairs, "choice", 0, Run(0))[3]["gamma"] for pairs in (few, own_items))
    assert torch.allclose(found, apart, rtol=1e-4, atol=1e-4 * float(apart.abs().max()))


def test_only_the_ridges_that_are_compared_are_fitted(times):
    _, _, splits = times
    run = Run(0)
    Icra().fit(splits.train, splits.panels["validation"], run)
    assert 2 <= len(run.curves["iterations"]) < len(icra.RIDGE_STRENGTHS)


def test_a_heavy_ridge_is_the_moment(times, monkeypatch):
    monkeypatch.setattr(icra, "RIDGE_STRENGTHS", (1e9,))
    _, _, splits = times
    panel, run = splits.panels["shifted"], Run(0)
    answers = []
    for method in (Icra(), Moment()):
        state = method.fit(splits.train, splits.panels["validation"], run)
        answers.append(method.score(state, method.adapt(state, panel.context, run), panel.query.without_labels()))
    assert np.corrcoef(answers)[0, 1] > 1 - 1e-6


@pytest.mark.slow
def test_choices_over_times_give_the_weights_and_choices_do_not():
    """Mean answer over mean time is half the utility gap (eq. 8) for every user."""
    task = ResponseTimes(n_users=50, new_users=10, n_demonstrations=4000, annotators=100, shots=(0, 4000), queries=1)
    data = task.build(0)
    splits = task.split(data, 0)
    context, run = splits.panels["shifted"].context, Run(0)
    theta = data.truth.users[context.people]
    error = {}
    for signal in ("choice", "response_time"):
        method = Moment(signal=signal)
        weights = method.adapt(method.fit(splits.train, None, run), context, run)[0].numpy()
        error[signal] = np.linalg.norm(weights - theta) / np.linalg.norm(theta)
    assert error["response_time"] < 0.06
    assert error["choice"] > 0.2


def sign_accuracy(task, data, splits, method):
    """Return {panel: share of queries whose true sign is predicted} at the largest number of shots."""
    result = run_trial(Trial(task, method, 0, "test", "test"), splits, data.truth)
    found = {}
    for name, panel in splits.panels.items():
        query = panel.query
        gap = np.einsum("nd,nd->n", query.gap, data.truth.users[query.people[query.user]])
        found[name] = np.mean(np.sign(result.predictions[f"{name}/{task.shots[-1]}"]) == np.sign(gap))
    return found


@pytest.mark.slow
def test_times_narrow_the_shift():
    task = ResponseTimes(n_users=800, n_demonstrations=200, shots=(60,))
    gaps = {}
    for annotators, signal, length in ((1, "choice", 0), (10, "response_time", 0), (10, "response_time", 60)):
        now = replace(task, annotators=annotators)
        data = now.build(0)
        found = sign_accuracy(now, data, now.split(data, 0), Icra(signal=signal, length=length))
        assert found["test"] > 0.91
        gaps[signal, length] = found["test"] - found["shifted"]
    assert gaps["choice", 0] > 0.09 and gaps["response_time", 0] < 0.07
    assert gaps["response_time", 60] > gaps["response_time", 0] + 0.03  # shorter training contexts widen the gap


SMALL = {"model": "gpt2", "width": 16, "layers": 1, "steps": 20}


TIMES = "response_time"


@pytest.mark.parametrize(
    "method", [Icra(**SMALL), Icra(**SMALL, signal=TIMES), Icra(signal=TIMES), Moment(signal=TIMES)]
)
def test_variants_keep_the_contract(method, with_seconds):
    assert [(what, problem) for what, ask in method_checks(method) if (problem := ask())] == []


@pytest.fixture()
def with_seconds(monkeypatch):
    """Give the contract checks' simulated people response times."""
    build = LowRank.build

    def timed(self, seed):
        data = build(self, seed)
        seconds = np.random.default_rng(seed).uniform(0.2, 2, len(data.pairs)).astype(np.float32)
        return replace(data, pairs=replace(data.pairs, seconds=seconds))

    monkeypatch.setattr(LowRank, "build", timed)


def test_a_tie_in_context_has_no_side_and_a_tie_in_training_is_learned_from(times):
    _, _, splits = times
    tied = replace(splits.train, label=np.full(len(splits.train), 0.5, np.float32))
    method, run = Icra(**SMALL), Run(0)
    state = method.fit(splits.train, splits.panels["validation"], run)
    panel = splits.panels["test"]
    context = replace(panel.context, label=np.where(panel.context.rank % 3, panel.context.label, 0.5))
    z = [method.score(state, method.adapt(state, c, run), panel.query) for c in (context, context.swapped())]
    assert (z[0] - z[1]).abs().max() < 1e-4
    assert (icra.context_tokens(state, tied, "choice")[0][..., :-1] != 0).all()  # ties as queries keep their x
    other = method.fit(tied, splits.panels["validation"], Run(0))
    z = [method.score(s, method.adapt(s, panel.context, run), panel.query).abs().mean() for s in (state, other)]
    assert z[1] < z[0] / 2  # a context of ties carries no preference


@pytest.mark.parametrize("signal", ["choice", "response_time"])
def test_rewards_are_the_log_odds_or_none(times, signal):
    _, _, splits = times
    panel, run = splits.panels["test"], Run(0)
    query = panel.query
    method = Icra(signal=signal)
    state = method.fit(splits.train, splits.panels["validation"], run)
    users = method.adapt(state, panel.context, run)
    left, right = (method.reward(state, users, query.items, query.user, side) for side in (query.left, query.right))
    assert torch.allclose(left - right, method.score(state, users, query), atol=1e-6)
    with pytest.raises(NotImplementedError, match="pairs only"):
        Icra(model="gpt2", signal=signal).reward(state, users, query.items, query.user, query.left)


@pytest.mark.slow
@pytest.mark.parametrize("signal", ["choice", "response_time"])
def test_gpt2_learns_in_context(times, signal):
    task, data, splits = times
    found = sign_accuracy(
        task, data, splits, Icra(model="gpt2", signal=signal, width=32, steps=150, length=30, rate=3e-3)
    )
    assert found["test"] > 0.8  # .5 without context


def test_times_are_asked_for():
    without = TaskFacts(5, has_text=False, has_seconds=False, has_truth=False)
    for name in ("icra", "moment"):
        assert make_instance("method", name, {"signal": "response_time"}).refuses(without) == "needs response times"
        assert (
            make_instance("method", name, {"signal": "response_time"}).refuses(replace(without, has_seconds=True))
            is None
        )
        assert make_instance("method", name, {"signal": "choice"}).refuses(without) is None


def test_a_slip_of_the_finger_weighs_little(times):
    train = times[2].train
    seconds = train.seconds.copy()
    seconds[0] = 1e-6
    method, run = Moment(signal="response_time"), Run(0)
    answers = []
    for pairs in (train, replace(train, seconds=seconds)):
        answers.append(method.adapt(method.fit(pairs, None, run), pairs, run)[0])
    assert torch.dist(*answers) < 0.5


@pytest.mark.parametrize(("signal", "start"), [("choice", np.log(2)), ("response_time", 1.0)])
def test_the_transformers_loss_before_it_has_learned_is_that_of_saying_nothing(signal, start):
    """Choices are judged by the logistic loss, log 2 at zero; times by the squares of signals of mean square 1."""
    data = ResponseTimes(n_users=64, new_users=10, n_demonstrations=20, shots=(0, 5)).build(0)
    run = Run(0)
    method = Icra(model="gpt2", signal=signal, width=16, steps=1)
    method.fit(data.pairs, Panel(data.pairs.first(5), data.pairs), run)
    assert next(iter(run.curves.values()))[0] == pytest.approx(start, rel=0.15)
