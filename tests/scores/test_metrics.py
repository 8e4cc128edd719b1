"""Scores, compared with scikit-learn and closed forms."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.special import expit
from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score

from harness.data import Items, Pairs, Panel, Splits, Truth
from harness.scores.metrics import (
    CALIBRATION_BINS,
    calibration_error,
    fit_temperature_scale,
    mean_log_loss,
    score_table,
    scores_per_person,
    user_auc,
)


def queries(counts, label):
    user = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    sides = np.zeros(len(user), np.int32)
    return Pairs(
        user,
        np.arange(len(counts), dtype=np.int32),
        sides,
        sides + 1,
        np.asarray(label, np.float32),
        Items(np.eye(2, dtype=np.float32)),
    )


@given(st.lists(st.integers(1, 12), min_size=1, max_size=6), st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_agrees_with_scikit_learn(counts, seed):
    rng = np.random.default_rng(seed)
    y = rng.integers(2, size=sum(counts))
    z = rng.integers(-3, 4, size=len(y)).astype(np.float32)  # whole numbers give many ties
    pairs = queries(counts, y)
    found = scores_per_person(pairs, z, scale=0.7)
    for u in range(len(counts)):
        rows = pairs.user == u
        p = expit(0.7 * z[rows].astype(float))
        assert found["log_loss"][u] == pytest.approx(log_loss(y[rows], p, labels=[0, 1]))
        assert found["brier"][u] == pytest.approx(brier_score_loss(y[rows], p))
        both = roc_auc_score(np.r_[y[rows], 1 - y[rows]], np.r_[z[rows], -z[rows]])
        assert found["auc"][u] == pytest.approx(both)
        credit = [0.5 if a == 0 else float((a > 0) == b) for a, b in zip(z[rows], y[rows], strict=True)]
        assert found["accuracy"][u] == pytest.approx(np.mean(credit))


def test_soft_labels_weigh_both_ways():
    """A label of 0.8 gives accuracy 0.8 or 0.2, and in AUC weights of 0.8 and 0.2 on the two orders."""
    pairs = queries([1, 1, 1], [0.8, 0.8, 0.8])
    found = scores_per_person(pairs, np.array([1.0, -1.0, 0.0]), 1.0)
    assert found["accuracy"] == pytest.approx([0.8, 0.2, 0.5])
    weights = np.array([0.8, 0.2])  # weights as preferred of scores +1 and -1; weights as rejected are reversed
    expected = (weights[0] * weights[0] + weights @ weights[::-1] / 2) / 1
    assert user_auc(pairs.user, 3, np.array([1.0, -1, 0]), np.full(3, 0.8))[0] == pytest.approx(expected)


def test_temperature_undoes_overconfidence():
    rng = np.random.default_rng(0)
    z = rng.normal(size=40_000) * 2
    y = rng.random(len(z)) < expit(z)
    assert fit_temperature_scale(5 * z, y) == pytest.approx(0.2, rel=0.05)
    assert fit_temperature_scale(z * 1e-6, y) == pytest.approx(1e6, rel=0.05)
    soft = rng.random(len(z))
    least = minimize_scalar(lambda s: mean_log_loss(s * z, 0.6 * y + 0.4 * soft))
    assert fit_temperature_scale(z, 0.6 * y + 0.4 * soft) == pytest.approx(least.x, rel=1e-5)


def test_temperature_at_its_limits():
    assert fit_temperature_scale(np.zeros(5), np.ones(5)) == 1
    for bad in (np.nan, np.inf):  # a prior that overflows loses against the others, and stops nothing
        assert fit_temperature_scale(np.array([bad, 1.0]), np.ones(2)) == 1
    assert 1 < fit_temperature_scale(np.array([1.0, -1]), np.array([1.0, 0])) <= 20.01  # separable, so capped
    assert fit_temperature_scale(np.array([1.0, -1]), np.array([0.0, 1])) < 1e-3  # always wrong, so scaled to nothing


def bins(p, y):
    order = np.argsort(p, kind="stable")
    cell = np.empty(len(p), int)
    cell[order] = np.arange(len(p)) * CALIBRATION_BINS // len(p)
    return [np.bincount(cell, w, minlength=CALIBRATION_BINS) for w in (None, p, y)]


def test_calibration_error_sees_what_is_there():
    """Calibrated answers have an error near 0 for any number of queries; answers off by 0.1 have an error of 0.1."""
    rng = np.random.default_rng(0)
    p = rng.uniform(0.15, 0.85, size=200_000)
    assert calibration_error(*bins(p, rng.random(len(p)) < p)) < 0.01
    assert calibration_error(*bins(p, rng.random(len(p)) < p + 0.1)) == pytest.approx(0.1, abs=0.01)


def test_calibration_error_is_debiased():
    """Its square averages 0 over small calibrated samples, where the plug-in error averages the noise."""
    rng = np.random.default_rng(1)
    plain, debiased = [], []
    for _ in range(400):
        p = rng.uniform(0.2, 0.8, size=200)
        n, sp, sy = bins(p, rng.random(200) < p)
        plain.append((n * ((sp - sy) / n) ** 2).sum() / n.sum())
        debiased.append((n * (((sp - sy) / n) ** 2 - (sy / n) * (1 - sy / n) / (n - 1))).sum() / n.sum())
        assert calibration_error(n, sp, sy) == pytest.approx(np.sqrt(max(0, debiased[-1])))
    assert abs(np.mean(debiased)) < np.mean(plain) / 10


def test_sign_accuracy_is_against_the_truth_and_not_the_label():
    """sign_accuracy uses the ground truth: both labels say right, but the truth prefers left, then ties."""
    pairs = queries([2], [0, 0])
    found = scores_per_person(pairs, np.array([1.0, 2.0]), 1.0, np.array([1.0, 0.5]))
    assert found["accuracy"][0] == 0 and found["sign_accuracy"][0] == 0.75
    assert scores_per_person(pairs, np.array([1.0, 2.0]), 1.0)["sign_accuracy"].null_count == 1
    truth = Truth(np.array([[2.0, 0], [0, -3]]), np.array([[1.0, 1], [4, 0]]))
    assert truth.gap(pairs).tolist() == [-6, -6]
    assert truth.gap(
        Pairs(pairs.user, np.array([1]), *(pairs.left, pairs.right, pairs.label), pairs.items)
    ).tolist() == [-3, -3]


def test_probabilities_are_calibrated_by_the_validation_panel_alone():
    """Validation says that log-odds are twice too small; the test panel, where they are pure noise, is not asked."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=4000).astype(np.float32)
    sure = queries([400] * 10, rng.random(4000) < expit(2 * z))
    coins = queries([400] * 10, rng.integers(2, size=4000))
    splits = Splits(sure, {"validation": Panel(sure, sure), "test": Panel(coins, coins), "seen": Panel(coins, coins)})
    names = [f"{panel}/{shots}" for panel in splits.panels for shots in (0, 5)]
    predictions = {name: z for name in names} | {"validation/5/swapped": -z, "validation/5": 2 * z}
    table = pl.from_arrow(score_table(predictions, splits))
    scale = dict(table.select("shots", "scale").unique().iter_rows())
    assert scale == {0: pytest.approx(2, rel=0.06), 5: pytest.approx(1, rel=0.06)}
    assert table["sign_accuracy"].null_count() == len(table)
    test = table.filter(panel="test", shots=0)
    wanted = np.logaddexp(0, scale[0] * z.astype(float)) - coins.label * scale[0] * z
    assert test["log_loss"].mean() == pytest.approx(wanted.mean())
    # which pairs were answered right is kept at the largest number of shots alone, and not for the swap control
    credit = table.filter(pl.col("credit").is_not_null())
    assert credit.select("panel", "shots", "swapped").unique().sort("panel").rows() == [
        (panel, 5, False) for panel in ("seen", "test", "validation")
    ]
    assert (credit["credit"].list.mean() - credit["accuracy"]).abs().max() < 1e-6


def test_sign_accuracy_of_a_table_is_against_the_truth():
    pairs = queries([3, 3], [0] * 6)
    splits = Splits(pairs, {"validation": Panel(pairs, pairs)})
    truth = Truth(np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([[2.0, 5.0], [1.0, 5.0]]))  # left is better, then equal
    table = pl.from_arrow(score_table({"validation/0": np.ones(6, dtype=np.float32)}, splits, truth))
    assert table["sign_accuracy"].to_list() == [1, 0.5] and table["accuracy"].to_list() == [0, 0]
