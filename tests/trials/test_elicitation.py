"""Elicitation: the harness's order of questions equals that of naive loops, and uses only answers given so far."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.special import expit

from harness.data import Items, Pairs, Panel, Splits
from harness.method import Method, Run
from harness.registry import make_instance
from harness.trials.run import elicit_context, run_trial
from harness.trials.trial import Trial
from tasks.low_rank import LowRank

MEAN = np.array([0.5, -0.2, 0.0])
ROOT = np.array([[1.5, 0], [0.3, 0.8], [0, 0.4]])


def pool(sizes=(9, 4, 12), d=3, seed=0, scale=(1.0, 1.0, 1.0)):
    """People of several pool sizes and random answers; the right side is always the item of zeros."""
    rng = np.random.default_rng(seed)
    user = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
    x = rng.normal(size=(len(user), d)) * scale
    items = Items(np.concatenate([x, np.zeros((1, d))]).astype(np.float32))
    left, right = np.arange(len(user), dtype=np.int32), np.full(len(user), len(user), np.int32)
    label = (rng.random(len(user)) < 0.5).astype(np.float32)
    return Pairs(user, np.arange(len(sizes), dtype=np.int32), left, right, label, items, np.ones_like(label))


def mode(x, y):
    """The maximum a posteriori v by scipy, w = MEAN + ROOT v."""

    def loss(v):
        z = x @ (MEAN + ROOT @ v)
        return (np.logaddexp(0, z) - y * z).sum() + v @ v / 2

    return minimize(loss, np.zeros(2), tol=1e-12).x


@pytest.mark.parametrize("rule", ["slope", "printed"])
def test_asks_what_a_naive_loop_would_ask(rule):
    """The order equals that of a loop which, for each user and turn, fits, inverts eq. 7's matrix, and takes the pair
    with the largest value of eq. 8 (times sigma')."""
    pairs, shots = pool(), 6
    method = make_instance("method", "pref", {"elicitation": "uncertainty", "rule": rule})
    state = {"mean": torch.from_numpy(MEAN), "root": torch.from_numpy(ROOT)}
    found = elicit_context(method, state, pairs, shots, Run(0))
    for u in range(pairs.n_users):
        x, y = pairs.gap[pairs.user == u].astype(float), pairs.label[pairs.user == u]
        rows, asked = np.flatnonzero(pairs.user == u), []
        while len(asked) < min(shots, len(x)):
            v = mode(x[asked], y[asked])
            z = x @ (MEAN + ROOT @ v)
            phi, slope = x @ ROOT, expit(z) * expit(-z)
            H = sum((slope[i] * np.outer(phi[i], phi[i]) for i in asked), np.eye(2))
            worth = [phi[i] @ np.linalg.solve(H, phi[i]) * (slope[i] if rule == "slope" else 1) for i in range(len(x))]
            asked.append(max((i for i in range(len(x)) if i not in asked), key=lambda i: worth[i]))
        assert found.left[found.user == u].tolist() == rows[asked].tolist()


def test_the_most_informative_of_three_by_hand():
    """With prior N(0, I) in two features, the pair orthogonal to the longest is asked second, not the parallel one."""
    x = np.array([[2.0, 0], [1.9, 0.1], [0, 1.5], [0, 0]], np.float32)
    zero = np.zeros(3, np.int32)
    label = np.array([1, 0, 1], np.float32)
    pairs = Pairs(zero, zero[:1], np.arange(3, dtype=np.int32), zero + 3, label, Items(x))
    state = {"mean": torch.zeros(2, dtype=torch.float64), "root": torch.eye(2, dtype=torch.float64)}
    found = elicit_context(make_instance("method", "pref", {"elicitation": "uncertainty"}), state, pairs, 2, Run(0))
    assert found.left.tolist() == [0, 2]


@dataclass(frozen=True)
class Spy(Method):
    """A method that asks given rows, and records what it is shown."""

    elicitation: str = "uncertainty"

    def adapt(self, state, context, run):
        SEEN.append(context)
        return (torch.zeros(context.n_users),)

    def uncertainty(self, state, users, pool):
        assert np.isnan(pool.label).all() and pool.seconds is None
        return state["worth"]


SEEN: list[Pairs] = []


def test_answers_are_seen_only_once_asked_and_no_pair_twice():
    SEEN.clear()
    pairs = pool()
    worth = np.random.default_rng(3).normal(size=len(pairs))
    found = elicit_context(Spy(), {"worth": torch.from_numpy(worth)}, pairs, 6, Run(0))
    wanted = [r for u in range(3) for r in sorted(np.flatnonzero(pairs.user == u), key=lambda r: -worth[r])[:6]]
    assert (
        found.left.tolist() == wanted
    )  # each user's own order, every pair at most once, four pairs where there are four
    assert np.array_equal(found.label, pairs.label[wanted]) and np.array_equal(found.user, pairs.user[wanted])
    for turn, shown in enumerate(SEEN):
        first = found.first(turn)
        assert np.array_equal(shown.left, first.left) and np.array_equal(shown.label, first.label)
    assert len(SEEN) == 6


def test_a_wrong_answer_of_uncertainty_is_not_blamed_on_score():
    with pytest.raises(ValueError, match=r"uncertainty returned shape \(3,\) for 25 pairs"):
        elicit_context(Spy(), {"worth": torch.ones(3)}, pool(), 2, Run(0))
    with pytest.raises(ValueError, match="uncertainty returned 25 numbers that are not finite"):
        elicit_context(Spy(), {"worth": torch.full((25,), torch.nan)}, pool(), 2, Run(0))


def test_fewer_questions_are_the_first_of_more():
    method = make_instance("method", "pref", {"elicitation": "uncertainty"})
    state = {"mean": torch.from_numpy(MEAN), "root": torch.from_numpy(ROOT)}
    pairs = pool()
    more = elicit_context(method, state, pairs, 6, Run(0))
    fewer = elicit_context(method, state, pairs, 3, Run(0))
    assert np.array_equal(more.first(3).left, fewer.left)
    alone = elicit_context(method, state, pairs.of([2]), 6, Run(0))
    assert np.array_equal(alone.left, more.left[more.user == 2])


@pytest.mark.parametrize("method", ["pref", "mixed_logit"])
def test_what_is_asked_does_not_depend_on_answers_to_come(method):
    """Changing labels of queries, and of pairs that are never asked, changes no prediction of a whole trial."""
    task = LowRank(
        n_users=30, new_users=10, pairs_per_user=30, feature_dim=6, rank=2, shots=(0, 2, 4), queries=10
    )  # contexts of 20 are built by hand below: the pool is longer than the shots
    data = replace(task, shots=(0, 2, 20)).build(0)
    splits = task.split(data, 0)
    trial = Trial(task, make_instance("method", method, {"elicitation": "uncertainty"}), 0, "", "")
    before = run_trial(trial, splits, data.truth).predictions
    test = splits.panels["test"]
    validation = splits.panels["validation"]
    shown = Panel(validation.context.first(4), validation.query)  # of the pool what the largest count shows
    state = trial.method.fit(splits.train, shown, Run(0))
    asked = elicit_context(trial.method, state, test.context, 4, Run(0))
    never = ~np.isin(test.context.left, asked.left)
    context = replace(test.context, label=np.where(never, 1 - test.context.label, test.context.label))
    other = Panel(context, replace(test.query, label=1 - test.query.label))
    after = run_trial(trial, Splits(splits.train, dict(splits.panels) | {"test": other}), data.truth).predictions
    assert never.sum() == 10 * 16
    assert all(np.array_equal(before[k], after[k]) for k in before)


def test_asking_beats_chance_where_most_pairs_tell_little():
    """Elicitation beats random contexts where only one pair in ten differs in a feature that people disagree about."""
    rng = np.random.default_rng(0)
    n_users, n = 200, 60
    w = rng.normal(size=(n_users, 2)) * 2
    x = rng.normal(size=(n_users, n, 2)) * np.where(rng.random((n_users, n)) < 0.1, 2, 0.1)[..., None]
    asked = rng.normal(size=(n_users, 50, 2))

    def pairs(x):
        user = np.repeat(np.arange(n_users, dtype=np.int32), x.shape[1])
        flat = x.reshape(-1, 2)
        label = (rng.random(len(user)) < expit((flat * w[user]).sum(1))).astype(np.float32)
        items = Items(np.concatenate([flat, np.zeros((1, 2))]).astype(np.float32))
        left = np.arange(len(user), dtype=np.int32)
        return Pairs(user, np.arange(n_users, dtype=np.int32), left, np.full_like(left, len(user)), label, items)

    context, query = pairs(x), pairs(asked)
    state = {"mean": torch.zeros(2, dtype=torch.float64), "root": 2 * torch.eye(2, dtype=torch.float64)}
    method = make_instance("method", "mixed_logit", {"elicitation": "uncertainty"})
    right = {}
    for name, shown in (("asked", elicit_context(method, state, context, 5, Run(0))), ("random", context.first(5))):
        z = method.score(state, method.adapt(state, shown, Run(0)), query).numpy()
        right[name] = ((z > 0) == ((query.gap * w[query.user]).sum(1) > 0)).mean()
    assert right["asked"] > right["random"] + 0.08
