"""Tests of rfm, dpl and shared: opposed raters, planted non-linear features, Borda counts, utility distributions."""

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch.distributions import Categorical, Normal

from harness.check.methods import method_checks
from harness.data import Items
from harness.method import Run
from harness.methods.dpl import Dpl
from harness.methods.shared import apply_reward_network
from harness.registry import make_instance
from harness.trials.run import run_trial
from harness.trials.trial import Trial
from tasks.raters import Raters
from tasks.two_modes import TwoModes, mode_rewards


def accuracy(task, method, fields=None, seeds=(0,)):
    """Return {shots: accuracy} on test users' labels, mean over seeds."""
    found = []
    for seed in seeds:
        data = task.build(seed)
        trial = Trial(task, make_instance("method", method, fields or {}), seed, "test", "test")
        scores = run_trial(trial, task.split(data, seed), data.truth).scores.to_pandas()
        found.append(scores[(scores.panel == "test") & ~scores.swapped].groupby("shots").accuracy.mean())
    return sum(found) / len(found)


@pytest.mark.parametrize(
    ("method", "fields"),
    [
        ("rfm", {"features": "mlp", "steps": 1}),
        ("shared", {"head": "mlp", "steps": 50}),
        ("dpl", {"model": "categorical", "steps": 50}),
        ("dpl", {"hidden": 0, "steps": 50}),
    ],
)
def test_variants_keep_the_contract(method, fields):
    problems = {what: ask() for what, ask in method_checks(make_instance("method", method, fields))}
    assert len(problems) >= 16 and not any(problems.values()), problems


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scenario", "least"),
    [("two_camps", {5: 0.73, 20: 0.77, 200: 0.84}), ("independent_signs", {5: 0.60, 20: 0.70, 200: 0.825})],
)
def test_opposed_raters_need_their_own_reward(scenario, least):
    """Claim R1: one reward for all is a coin, shared features are better; two seeds give about .01 precision."""
    task, seeds = Raters(scenario=scenario), range(2)
    assert accuracy(task, "shared", seeds=seeds).between(0.47, 0.53).all()
    found = accuracy(task, "rfm", seeds=seeds)
    assert all(found[shots] > line - 0.01 for shots, line in least.items()), found


def test_where_raters_agree_answers_do_not_hurt():
    found = accuracy(Raters(scenario="same_sign", shots=(0, 2, 5, 10, 20)), "rfm", seeds=range(2))
    assert found[0] > 0.75 and (found > found[0] - 0.005).all(), found


def test_fewer_features_than_the_truth_has_are_too_few():
    task = Raters(scenario="independent_signs", shots=(0, 200))
    few, enough = (accuracy(task, "rfm", {"dim": dim})[200] for dim in (8, 32))
    assert few < enough - 0.05


@pytest.mark.slow
def test_a_network_finds_features_that_are_not_linear():
    """With 300 raters and 16 features the network closes more than half of the gap to the true features."""
    task = Raters(truth="tanh", n_users=300, feature_dim=16, shots=(0, 20, 200))
    linear, line = (accuracy(task, method)[200] for method in ("rfm", "true_subspace"))
    assert accuracy(task, "rfm", {"features": "mlp"})[200] > (linear + line) / 2


def test_log_odds_are_those_of_drawn_utilities():
    draw = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    left, right = 2 * torch.randn(2, 20, 2, generator=draw)
    sides = [Normal(o[:, 0], torch.nn.functional.softplus(o[:, 1]).exp()).sample((100_000,)) for o in (left, right)]
    found = Dpl().outputs_log_odds(left, right).sigmoid()
    assert (found - (sides[0] > sides[1]).float().mean(0)).abs().max() < 4.5 * 0.5 / 100_000**0.5
    left, right = 2 * torch.randn(2, 20, 5, generator=draw)
    one, other = (Categorical(logits=o).sample((100_000,)) for o in (left, right))
    found = Dpl("categorical", atoms=5).outputs_log_odds(left, right).sigmoid()
    assert (found - ((one > other).float() + (one == other) / 2).mean(0)).abs().max() < 4.5 * 0.5 / 100_000**0.5


@pytest.mark.parametrize("model", ["mean_variance", "categorical"])
def test_certain_utilities_have_finite_log_odds(model):
    outputs = torch.eye(2 if model == "mean_variance" else 10)[[0, -1]] * 1e4
    found = Dpl(model).outputs_log_odds(outputs, outputs.flip(0))
    assert torch.isfinite(found).all() and torch.equal(found[:1], -found[1:])


GRID = np.linspace(0.02, 0.98, 49)


@pytest.fixture(scope="module")
def two_modes():
    """Return each model's state after training on 500 users of `two_modes`, and a grid of y as items."""
    task = TwoModes(n_users=500)
    splits = task.split(task.build(0), 0)
    items = Items(GRID[:, None].astype(np.float32))

    def fitted(method):
        return method.fit(splits.train, splits.panels["validation"], Run(0)), items

    return fitted


def test_one_reward_for_two_modes_orders_options_by_borda_count(two_modes):
    """The reward rises with the share of options that an option beats over all people (Siththaranjan et al. 2024)."""
    method = make_instance("method", "shared", {"head": "mlp"})
    state, items = two_modes(method)
    rows = np.arange(len(GRID))
    found = method.reward(state, (), items, rows, rows).numpy()
    utility = mode_rewards(GRID)
    borda = (utility[:, None] > utility).mean((1, 2))
    assert spearmanr(found, borda).statistic > 0.95


@pytest.mark.slow
@pytest.mark.parametrize("model", ["mean_variance", "categorical"])
def test_a_distribution_says_where_people_disagree(two_modes, model):
    """Utility has a spread only above .5, where modes differ; P is the share of people who prefer an option."""
    method = make_instance("method", "dpl", {"model": model})
    state, items = two_modes(method)
    outputs = apply_reward_network(state, items, np.arange(len(GRID)))
    if model == "mean_variance":
        spread = torch.nn.functional.softplus(outputs[:, 1]).exp()
    else:
        value, p = torch.linspace(0, 1, method.atoms), outputs.softmax(1)
        spread = (p @ value**2 - (p @ value) ** 2).sqrt()
    assert spread[GRID > 0.75].mean() > 2 * spread[GRID < 0.5].mean()
    first, second = (grid.ravel() for grid in np.meshgrid(np.arange(len(GRID)), np.arange(len(GRID))))
    share = (np.sign(mode_rewards(GRID)[first] - mode_rewards(GRID)[second]) / 2 + 0.5).mean(
        1
    )  # the share of people who prefer `first`
    found = method.outputs_log_odds(outputs[first], outputs[second]).sigmoid().numpy()
    assert np.abs(found - share).mean() < 0.12
    assert found[share == 1].mean() > 0.9
    assert np.abs(found[(share == 0.5) & (first != second)] - 0.5).mean() < 0.2
