"""The choices on validation users: of a prior, of a rank, and of how much quick answers count."""

import math

import numpy as np
import pytest
import torch

from harness.data import Items, Pairs, Panel
from harness.learning import priors
from harness.learning.linear import answer_weights, fit_map_weights
from harness.method import Run
from harness.registry import make_instance
from harness.scores.metrics import mean_log_loss
from tasks.raters import Raters
from tasks.response_times import ResponseTimes


def pairs_of(user, x, label, seconds=None):
    items = Items(np.concatenate([x, np.zeros((1, x.shape[1]))]).astype(np.float32))
    n = len(user)
    left, right = np.arange(n, dtype=np.int32), np.full(n, n, np.int32)
    people = np.arange(user.max() + 1, dtype=np.int32)
    seconds = None if seconds is None else np.asarray(seconds, np.float32)
    return Pairs(user.astype(np.int32), people, left, right, np.asarray(label, np.float32), items, seconds)


def with_losses(monkeypatch, losses):
    """Let the validation loss of state {"at": i} be losses[i], and return the list of states that are looked at."""
    looked = []

    def loss(state, validation, predict=None):
        looked.append(state["at"])
        return losses[state["at"]]

    monkeypatch.setattr(priors, "loss_on_validation", loss)
    return looked


@pytest.mark.parametrize("lowest", range(7))
def test_the_walk_finds_the_bottom_of_a_valley(monkeypatch, lowest):
    looked = with_losses(monkeypatch, [abs(i - lowest) for i in range(7)])
    found = priors.best_prior_on_validation([{"at": i} for i in range(7)], None)
    assert found == {"at": lowest} and len(looked) == len(set(looked))


def test_a_loss_that_is_no_number_is_never_the_lowest(monkeypatch):
    with_losses(monkeypatch, [2.0, math.nan, 1.5, math.inf, 1.0])
    assert priors.best_prior_on_validation([{"at": i} for i in range(5)], None) == {"at": 2}


@pytest.mark.parametrize(
    ("losses", "most", "chosen"),
    [
        ({2: 5, 4: 4, 8: 3, 16: 2, 32: 1}, 99, 32),
        ({2: 5, 4: 4, 8: 3, 16: 2, 32: 3}, 99, 16),
        ({2: 5, 4: 4, 8: 3, 16: 2, 20: 1}, 20, 20),
        ({2: 5, 4: 4, 8: 3, 16: 4}, 99, 8),
        ({2: 1, 4: 2, 8: 3, 16: 4}, 99, 2),
        ({3: 3}, 3, 3),
        ({1: 5}, 1, 1),
    ],
)
def test_ranks_are_doubled_while_that_helps_and_else_halved(monkeypatch, losses, most, chosen):
    monkeypatch.setattr(priors, "loss_on_validation", lambda state, *_: losses[state["rank"]] + abs(state["i"] - 1))
    run = Run(0)
    found = priors.best_rank_on_validation(
        None, most, lambda rank: [{"rank": rank, "i": i} for i in range(3)], None, run
    )
    assert found == {"rank": chosen, "i": 1} and run.curves["rank"][0] == min(8, most)


@pytest.mark.parametrize("name", ["pref", "spectral", "lore"])
def test_a_rank_that_is_given_is_obeyed_and_one_that_is_not_fits_the_people(name):
    """Raters read thirteen features with independent signs, which eight directions do not hold."""
    task = Raters(scenario="independent_signs", n_users=60, feature_dim=32, shots=(0, 50), queries=60)
    splits = task.split(task.build(0), 0)
    chosen, three = (
        make_instance("method", name, fields | ({"weights": "free"} if name == "lore" else {})).fit(
            splits.train, splits.panels["validation"], Run(0)
        )["root"]
        for fields in ({}, {"rank": 3})
    )
    assert chosen.shape[1] in (16, 32) and three.shape[1] == 3


def test_quick_answers_count_more_by_hand():
    user = np.array([0, 0, 0, 1])
    pairs = pairs_of(user, np.eye(4), [1, 0, 1, 1], seconds=[1, 2, 4, 9])
    found = answer_weights(pairs, 1.0).numpy()
    assert np.allclose(found[:3], np.array([2, 1, 0.5]) / 3.5 * 3) and found[3] == 1
    assert torch.equal(answer_weights(pairs, 0.0), torch.ones(4, dtype=torch.float64))
    slower = pairs_of(user, np.eye(4), [1, 0, 1, 1], seconds=[10, 20, 40, 9])
    assert np.allclose(answer_weights(slower, 1.0), found)
    accident = answer_weights(pairs_of(np.zeros(9, int), np.eye(9), np.ones(9), [0.001] + [1] * 8), 1.0).numpy()
    assert abs(accident[0] / accident[1] - 4 * np.exp(np.log(1000) / 9)) < 1e-6  # cut at four times the usual speed


@pytest.mark.parametrize("d", [2, 9])  # primal, dual
def test_an_answer_that_counts_more_is_an_answer_given_more_often(d):
    rng = np.random.default_rng(d)
    x, label = rng.normal(size=(4, d)), np.array([1, 0, 1, 1])
    # times 1, 1, 1, 1/4: relative to their geometric mean 2^-.5 the weights at haste 2 are as 1 : 1 : 1 : 16
    once = pairs_of(np.zeros(4, int), x, label, [1, 1, 1, 0.25])
    weights = answer_weights(once, 2.0).numpy()
    assert np.allclose(weights, np.array([1, 1, 1, 16]) * 4 / 19, rtol=1e-4)
    often = np.r_[0, 1, 2, [3] * 16]
    many = pairs_of(np.zeros(19, int), x[often], label[often])
    root = torch.tensor(1.0, dtype=torch.float64)
    zero = torch.zeros(d, dtype=torch.float64)
    found = fit_map_weights(once, zero, root * 19**0.5 / 2, 2.0)  # weights sum to 4, not 19
    assert torch.allclose(found, fit_map_weights(many, zero, root, 0.0), atol=2e-4)


@pytest.mark.parametrize("name", ["per_user", "mixed_logit"])
def test_times_are_used_only_where_they_help(name):
    """Where times are noise, the choice on validation users loses next to nothing."""
    task = ResponseTimes(n_users=100, n_demonstrations=60, annotators=1)
    splits = task.split(task.build(0), 0)
    panel, test = splits.panels["validation"], splits.panels["test"]
    method = make_instance("method", name, {"signal": "response_time"})
    states = [
        make_instance("method", name, {}).fit(splits.train, panel, Run(0)),
        method.fit(splits.train, panel, Run(0)),
    ]
    assert float(states[1]["haste"]) in priors.HASTES
    losses = [
        mean_log_loss(
            method.score(s, method.adapt(s, test.context.first(20), Run(0)), test.query).numpy(), test.query.label
        )
        for s in states
    ]
    assert losses[1] < losses[0] + 0.005


def test_a_prior_of_the_wrong_size_is_rescaled():
    rng = np.random.default_rng(0)
    user = np.repeat(np.arange(80), 40)
    x = rng.normal(size=(len(user), 4))
    w = 2 * rng.normal(size=(80, 4))
    label = rng.random(len(user)) < 1 / (1 + np.exp(-(x * w[user]).sum(1)))
    pairs = pairs_of(user, x, label)
    panel = Panel(pairs.first(20), pairs.take(pairs.rank >= 20))
    eye = torch.eye(4, dtype=torch.float64)
    for wrong in (0.25, 2.0, 16.0):
        state = {"mean": torch.zeros(4, dtype=torch.float64), "root": wrong * eye}
        assert 0.9 < float(priors.rescaled(state, panel)["root"][0, 0]) < 4.1
