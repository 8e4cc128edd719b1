"""The ensemble: weights that an independent search finds too, sums by hand, and nothing fitted again."""

import numpy as np
import pytest
import torch
from scipy.optimize import brute

from harness.api.running import run_suite
from harness.data import Pairs
from harness.errors import UserError
from harness.method import Run, TaskFacts
from harness.methods.ensemble import EQUAL_WEIGHTS_PULL, fit_weights
from harness.methods.per_user import PerUser
from harness.methods.spectral import Spectral
from harness.registry import make_instance
from harness.scores.metrics import fit_temperature_scale
from harness.trials.run import run_trial
from harness.trials.trial import Trial
from tasks.low_rank import LowRank
from tests.small import SMALL_TASK

TASK = LowRank(n_users=80, new_users=40, pairs_per_user=30, feature_dim=12, rank=3, queries=30, shots=(0, 5, 15))
TWO = {"members": ["per_user", "spectral"]}


def result_of(name, fields):
    data = TASK.build(0)
    trial = Trial(TASK, make_instance("method", name, fields), 0, "", "")
    return run_trial(trial, TASK.split(data, 0), data.truth)


def test_weights_are_those_of_a_search_over_all():
    rng = np.random.default_rng(0)
    truth = rng.normal(size=3000)
    y = (rng.random(3000) < 1 / (1 + np.exp(-2 * truth))).astype(float)
    Z = np.stack([truth + rng.normal(size=3000), 5 * (truth + 2 * rng.normal(size=3000))], 1)
    found = fit_weights(Z, y, 50)
    scale = np.array([fit_temperature_scale(z, y) for z in Z.T])

    def loss(w):
        z = Z @ (w * scale)
        return np.logaddexp(0, -(2 * y - 1) * z).mean() + EQUAL_WEIGHTS_PULL / 50 * np.square(w - 0.5).sum()

    best = brute(loss, ((0, 2), (0, 2)), Ns=41)
    assert np.abs(found / scale - best).max() < 0.01
    assert found[0] * Z[:, 0].std() > found[1] * Z[:, 1].std() > 0  # the better one has more weight, whatever its unit


def test_a_member_that_knows_nothing_gets_no_weight_and_harms_nobody():
    rng = np.random.default_rng(1)
    truth = 2 * rng.normal(size=5000)
    y = (rng.random(5000) < 1 / (1 + np.exp(-truth))).astype(float)
    found = fit_weights(np.stack([truth, rng.normal(size=5000), -truth], 1), y, 1000)
    assert found[0] > 0.9 and np.abs(found[1:]).max() < 0.05 and (found >= 0).all()


def test_log_odds_are_the_weighted_sum_of_what_the_members_trials_said():
    found = result_of("ensemble", TWO)
    members = [result_of(name, {}).predictions for name in TWO["members"]]
    weights = found.facts["chosen"]["weights"]
    for name, values in found.predictions.items():
        own = weights[name.split("/")[1]]
        by_hand = sum(own[m] * p[name].astype(float) for m, p in zip(TWO["members"], members, strict=True))
        assert np.abs(values - by_hand).max() < 1e-4 * max(1, np.abs(by_hand).max()), name


def test_people_with_fewer_answers_get_the_weights_of_so_few():
    data = TASK.build(0)
    splits = TASK.split(data, 0)
    method, run = make_instance("method", "ensemble", TWO), Run(0, shots=TASK.shots)
    state = method.fit(splits.train, splits.panels["validation"], run)
    context = splits.panels["test"].context
    shown: Pairs = context.take(context.rank < np.arange(context.n_users)[context.user] % 16)
    weights = method.adapt(state, shown, run)[0].numpy()
    for user, n in enumerate(np.diff(shown.offsets)):
        level = str(max(shots for shots in TASK.shots if shots <= n))
        assert np.allclose(weights[user], list(run.chosen["weights"][level].values()))


def test_rewards_differ_by_the_log_odds():
    data = TASK.build(0)
    splits = TASK.split(data, 0)
    method, run = make_instance("method", "ensemble", TWO), Run(0, shots=TASK.shots)
    state = method.fit(splits.train, splits.panels["validation"], run)
    panel = splits.panels["test"]
    users, query = method.adapt(state, panel.context, run), panel.query.without_labels()
    left, right = (method.reward(state, users, query.items, query.user, side) for side in (query.left, query.right))
    torch.testing.assert_close(left - right, method.score(state, users, query), atol=1e-5, rtol=1e-4)


SUITE = f"""
seeds = 3
{SMALL_TASK}[[methods]]
name = "ensemble"
members = ["per_user", "spectral"]
"""


def test_it_comes_last_and_fits_nothing_again(tmp_path, monkeypatch):
    fitted = []
    for cls in (PerUser, Spectral):
        own = cls.fit
        monkeypatch.setattr(cls, "fit", lambda self, *a, own=own: fitted.append(type(self)) or own(self, *a))
    file = tmp_path / "mine.toml"
    file.write_text(SUITE)
    result = run_suite(file, tmp_path / "store")
    assert len(fitted) == 6 and not any(row.incomplete for row in result.board.tasks[0].rows)
    alone = tmp_path / "alone.toml"
    alone.write_text("controls = false\n" + SUITE)
    again = run_suite(alone, tmp_path / "other")  # without the members' trials it fits them itself
    assert len(fitted) == 12
    files = [
        [
            found.store.read_manifest("trials", t.key)["files"]["predictions.safetensors"]
            for t in found.plan.trials
            if t.method.combines
        ]
        for found in (result, again)
    ]
    assert files[0] == files[1] and len(files[0]) == 3


@pytest.mark.parametrize(
    ("members", "said"),
    [
        (["rfm"], "two or more different methods"),
        (["rfm", "rfm"], "two or more different methods"),
        (["rfm", "bayes"], "bayes cannot be a member"),
        (["rfm", "likelihood"], "likelihood cannot be a member"),
        (["rfm", "pfer"], "there is no method 'pfer'"),
        (["rfm", "pref?ranks=3"], "method 'pref' has no field 'ranks'"),
    ],
)
def test_members_that_cannot_be(members, said):
    with pytest.raises(UserError, match=said.replace("?", r"\?")):
        make_instance("method", "ensemble", {"members": members})


def test_it_refuses_what_a_member_refuses():
    made = make_instance("method", "ensemble", {"members": ["rfm", "moment?signal=response_time"]})
    facts = TaskFacts(feature_dim=3, has_text=False, has_seconds=False, has_truth=False)
    assert made.refuses(facts) == "its member moment needs response times"


def test_outside_a_trial_people_with_a_few_answers_are_not_weighed_as_those_with_none():
    data = TASK.build(0)
    splits = TASK.split(data, 0)
    validation = splits.panels["validation"]
    state = make_instance("method", "ensemble", TWO).fit(splits.train, validation, Run(0))
    most = int(np.diff(validation.context.offsets).max())
    assert state["levels"].tolist() == [0, most // 8, most // 4, most // 2, most]
    assert not torch.equal(state["weights"][0], state["weights"][2])
