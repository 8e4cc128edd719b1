"""Real people's choices: the files' contents, and the scores of methods on them."""

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression

from tasks.food_risk import FoodRisk
from tasks.snacks import Snacks
from tests.methods.test_methods import accuracy


def test_snacks_holds_what_its_authors_say(data_folder):
    pairs = Snacks().build(0).pairs
    assert pairs.n_users == 31 and len(pairs) == 31 * 136 and len(pairs.items) == 17
    judged = {(u, min(a, b), max(a, b)) for u, a, b in zip(pairs.user, pairs.left, pairs.right, strict=True)}
    assert len(judged) == 31 * 136  # every pair of 17 once
    assert 0.3 < np.median(pairs.seconds) < 3  # seconds, not milliseconds


def test_food_risk_agrees_with_the_raw_file(data_folder):
    """The published choice rule (the higher sum of ratings) scores .686 over all trials."""
    raw = pd.read_csv(next(data_folder.rglob("foodrisk.csv"))).drop_duplicates(["subj", "trial"])
    assert len(raw) == 6092
    pairs = FoodRisk().build(0).pairs
    same = (raw.upleftval == raw.uprightval) & (raw.downleftval == raw.downrightval)
    assert pairs.n_users == 42 and len(pairs) == 6092 - same.sum()
    total = pairs.gap[:, 0] + pairs.gap[:, 1]
    credit = np.where(np.abs(total) < 1e-6, 0.5, (total > 0) == (pairs.label == 1))
    assert abs((credit.sum() + same.sum() / 2) / 6092 - 0.686) < 0.002 and abs(credit.mean() - 0.690) < 0.002
    assert np.allclose(
        pairs.gap[:, 4],
        [
            ul * dl - ur * dr
            for ul, dl, ur, dr in raw[~same]
            .sort_values("subj", kind="stable")[["upleftval", "downleftval", "uprightval", "downrightval"]]
            .to_numpy()
            / 10
        ],
        atol=1e-5,
    )


def test_people_differ_about_snacks(data_folder):
    """Every person is a test person once in five folds. About .75 at 10 shots would mean that the prior leaked."""
    per_user = accuracy(Snacks(), "per_user", range(5))
    mixed = accuracy(Snacks(), "mixed_logit", range(5))
    shared = accuracy(Snacks(), "shared", range(5))
    assert (per_user[[10, 50, 100]] >= [0.66, 0.82, 0.87]).all()
    assert (mixed[[10, 50, 100]] >= [0.67, 0.82, 0.87]).all() and mixed[10] < 0.73
    assert (mixed - per_user)[[5, 10, 20, 50, 100]].mean() > -0.01
    assert shared.between(0.53, 0.59).all()


def test_per_user_on_snacks_is_scikit_learns(data_folder):
    task = Snacks()
    splits = task.split(task.build(0), 0)
    panel = splits.panels["test"]
    hits = []
    for u in range(panel.query.n_users):
        shown, asked = panel.context.first(50).of([u]), panel.query.of([u])
        model = LogisticRegression(C=4.0, fit_intercept=False, tol=1e-10).fit(shown.gap, shown.label)
        hits.append(model.score(asked.gap, asked.label))
    from harness.method import Run
    from harness.registry import make_instance

    method = make_instance("method", "per_user", {"scale": 2.0})
    state = method.fit(splits.train, splits.panels["validation"], Run(0))
    z = method.score(state, method.adapt(state, panel.context.first(50), Run(0)), panel.query).numpy()
    assert ((z > 0) == (panel.query.label == 1)).mean() == pytest.approx(np.mean(hits), abs=1e-9)


@pytest.mark.slow
def test_nobody_gains_on_food_risk(data_folder):
    """On the negative control no method's point estimate is far above one reward for all."""
    shared = accuracy(FoodRisk(), "shared", range(5))
    for method in ("per_user", "spectral", "mixed_logit", "rfm"):
        assert (accuracy(FoodRisk(), method, range(5)) - shared).max() < 0.015
