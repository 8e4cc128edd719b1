"""Methods agree with closed forms, Bayes references and planted parameters, on simulated users."""

import numpy as np
import pytest
import torch

from harness.data import Items, Pairs, Truth
from harness.method import Run
from harness.registry import make_instance
from harness.trials.run import run_trial
from harness.trials.trial import Trial
from tasks.low_rank import LowRank
from tasks.raters import Raters
from tasks.two_modes import TwoModes, draw_option_pairs, mode_rewards


def accuracy(task, method, seeds=(0,), panel="test"):
    """Return {shots: accuracy} on the observed labels, macro-averaged over users, mean over seeds."""
    found = []
    for seed in seeds:
        data = task.build(seed)
        result = run_trial(
            Trial(task, make_instance("method", method, {}), seed, "test", "test"), task.split(data, seed), data.truth
        )
        scores = result.scores.to_pandas()
        found.append(scores[(scores.panel == panel) & ~scores.swapped].groupby("shots").accuracy.mean())
    return sum(found) / len(found)


@pytest.mark.parametrize(("query", "context"), [(0.5, 0.5), (1.0, 0.5), (0.5, 0.1), (0.2, 1.0)])
def test_bayes_reaches_its_closed_form(query, context):
    """Bayes reaches 1 - (c_q / 2)(1 - c_c)^n: without a conflicting context pair, a conflicting query is a coin."""
    task = TwoModes(n_users=4000, pairs_per_user=1, query_conflict_rate=query, context_conflict_rate=context)
    found = accuracy(task, "bayes")
    for shots in task.shots:
        exact = 1 - query / 2 * (1 - context) ** shots
        assert abs(found[shots] - exact) < 4.5 * 0.5 / np.sqrt(400)  # 400 test users, each at most a coin's variance


def test_conflict_rates_are_what_they_say():
    rng = np.random.default_rng(0)
    y = draw_option_pairs(rng, rng.random(20_000) < 0.3)
    a, b = mode_rewards(y[:, 0]), mode_rewards(y[:, 1])
    conflicting = (a[:, 0] > b[:, 0]) != (a[:, 1] > b[:, 1])
    assert abs(conflicting.mean() - 0.3) < 4.5 * np.sqrt(0.21 / 20_000)
    y = rng.random((20_000, 2))
    a, b = mode_rewards(y[:, 0]), mode_rewards(y[:, 1])
    natural = ((a[:, 0] > b[:, 0]) != (a[:, 1] > b[:, 1])).mean()
    assert abs(natural - 0.5) < 4.5 * 0.5 / np.sqrt(20_000)  # the modes disagree about half of all pairs


def test_two_modes_anchors():
    """One reward for all is right where the modes agree and a coin elsewhere; the oracle is always right."""
    task = TwoModes(n_users=400, feature_dim=2)
    shared = accuracy(task, "shared", seeds=range(5))
    assert shared.between(0.74 - 0.02, 0.76 + 0.02).all() and shared.nunique() == 1
    assert (accuracy(task, "oracle") == 1).all()
    assert (accuracy(task, "chance") == 0.5).all()
    assert accuracy(task, "spectral")[10] > 0.93


@pytest.mark.slow
def test_low_rank_methods_reach_the_true_subspace():
    """Low-rank methods are within .01 of `true_subspace` on the same data, as a mean of two seeds."""
    task = LowRank(queries=100)
    line = accuracy(task, "true_subspace", range(2))
    for method in ("spectral", "mixed_logit", "rfm"):
        assert (accuracy(task, method, range(2))[[5, 10, 20]] > line[[5, 10, 20]] - 0.01).all(), method
    assert accuracy(task, "per_user", range(2))[20] < line[20] - 0.1


@pytest.mark.slow
def test_bayes_is_above_the_true_subspace_where_weights_are_not_gaussian():
    task = LowRank(n_users=10, new_users=200, weights="dirichlet")
    seeds = range(3)
    assert (accuracy(task, "bayes", seeds) > accuracy(task, "true_subspace", seeds) - 0.005).all()


def test_bayes_by_hand():
    """For two kinds of user and one context pair, P(left) is the sum of posteriors times sigmoids."""
    items = Items(np.zeros((4, 1), np.float32))
    truth = Truth(
        np.eye(2, dtype=np.float32)[:1],
        np.array([[1, 0], [0, 2], [3, 0], [0, 0]], np.float32),
        1.0,
        np.eye(2, dtype=np.float32),
    )
    one = np.zeros(1, np.int32)
    context = Pairs(one, one, one, one + 1, np.ones(1, np.float32), items)
    query = Pairs(one, one, one + 2, one + 3, np.full(1, np.nan, np.float32), items)
    method, run = make_instance("method", "bayes", {}), Run(0, truth=truth)
    state = method.fit(context, None, run)
    found = method.score(state, method.adapt(state, context, run), query).sigmoid().item()

    def s(z):
        return 1 / (1 + np.exp(-z))

    likelihood = np.array([s(1), s(-2)])  # utilities of the context pair: (1, 0) against (0, 2)
    assert abs(found - (likelihood / likelihood.sum()) @ [s(3), s(0)]) < 1e-6


def test_bayes_stays_the_ceiling_where_no_draw_explains_the_answers():
    """With thirteen features and 200 answers one of 20,000 draws has all the weight, and predicts worse than methods do."""
    task = Raters(scenario="independent_signs", shots=(0, 200), queries=100)
    data = task.build(0)
    splits = task.split(data, 0)
    panel, run = splits.panels["test"], Run(0, truth=data.truth)

    def accuracy_of(name, context, **fields):
        method = make_instance("method", name, fields)
        state = method.fit(splits.train, splits.panels["validation"], run)
        z = method.score(state, method.adapt(state, context, run), panel.query.without_labels()).numpy()
        return ((z > 0) == (panel.query.label > 0.5)).mean()

    reached = accuracy_of("bayes", panel.context)
    assert run.curves["effective_draws"][-1] < 2
    assert reached > accuracy_of("pref", panel.context) + 0.01
    # the first draw alone is what the weights of the draws amount to
    method = make_instance("method", "bayes", {})
    state = method.fit(splits.train, splits.panels["validation"], run)
    shares, mean, enough = method.adapt(state, panel.context, run)
    all_enough = (shares, mean, torch.ones_like(enough))
    by_draws = method.score(state, all_enough, panel.query.without_labels()).numpy()
    assert reached > ((by_draws > 0) == (panel.query.label > 0.5)).mean() + 0.03


def planted(n_users=400, n=60, seed=0):
    """Return pairs of users whose weights are N(mean, diag(sd^2)) in six features."""
    rng = np.random.default_rng(seed)
    mean, sd = np.array([1.0, -1, 0, 0, 0, 0]), np.array([2.0, 0.3, 1.5, 0.1, 0.1, 0.1])
    w = mean + sd * rng.normal(size=(n_users, 6))
    x = rng.normal(size=(n_users * n, 6)).astype(np.float32)
    user = np.repeat(np.arange(n_users, dtype=np.int32), n)
    label = rng.random(len(user)) < 1 / (1 + np.exp(-(x * w[user]).sum(1)))
    items = Items(np.concatenate([x, np.zeros((1, 6), np.float32)]))
    left, right = np.arange(len(user), dtype=np.int32), np.full(len(user), len(user), np.int32)
    return Pairs(user, np.arange(n_users, dtype=np.int32), left, right, label.astype(np.float32), items), mean, sd


def prior(method, **fields):
    from harness.data import Panel

    train, mean, sd = planted()
    new = planted(100, 30, seed=1)[0]
    validation = Panel(new.first(15), new.take(new.rank >= 15))
    return make_instance("method", method, fields).fit(train, validation, Run(0)), mean, sd


def test_mixed_logit_recovers_a_planted_prior():
    state, mean, sd = prior("mixed_logit", steps=30, components=1)
    assert np.abs(state["mean"].numpy() - mean).max() < 0.3
    # the covariance is then raised to a power and scaled by what serves validation users best
    covariance = (state["root"] @ state["root"].T).numpy()
    found = np.sqrt(np.diag(covariance))
    assert (np.argsort(-found)[:2] == [0, 2]).all() and 0.7 < found[0] / sd[0] < 1.5
    assert np.abs(covariance / np.outer(found, found) - np.eye(6))[:3:2, :3:2].max() < 0.3


@pytest.mark.parametrize("method", ["spectral", "rfm"])
def test_low_rank_priors_point_where_people_differ(method):
    state, _, _ = prior(method, **({"rank": 3} if method == "spectral" else {"dim": 3}))
    leading = torch.linalg.svd(state["root"]).U[:, :2].numpy()
    assert np.linalg.norm(leading[[0, 2]], axis=0).min() > 0.95  # features 0 and 2 carry the planted spread


def test_shared_is_the_pooled_regression():
    from sklearn.linear_model import LogisticRegression

    state, _, _ = prior("shared")
    train = planted()[0]
    reference = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-10).fit(train.gap, train.label).coef_[0]
    assert np.abs(state["mean"].numpy() - reference).max() < 0.01  # 24,000 pairs: any ridge on the grid moves it less


def test_per_user_takes_a_scale_by_hand():
    assert prior("per_user", scale=0.7)[0]["root"].item() == 0.7


def test_generators_differ_by_seed_and_by_purpose():
    """Seeds and purposes differ in the low 32 bits, the only ones of a seed that torch uses."""
    draws = {(s, p): torch.rand(4, generator=Run(s).generator(p)).tolist() for s in range(50) for p in ("a", "b")}
    assert len({tuple(d) for d in draws.values()}) == 100
    assert draws[3, "a"] == torch.rand(4, generator=Run(3).generator("a")).tolist()
