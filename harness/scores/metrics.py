"""Scores per person, computed from log-odds and labels; a board averages them."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from scipy.optimize import brentq
from scipy.special import expit

from harness.data import Pairs, Splits, Truth
from harness.scores.scale import rating_scores

METRICS_VERSION = 4  # raised whenever a score of the same predictions changes; older score tables are then recomputed
CALIBRATION_BINS = 10  # bins of equal mass for the calibration error
# Largest mean |log-odds| after scaling. Without this bound the best scale would be infinite where all validation
# answers are predicted correctly.
MAX_MEAN_LOG_ODDS = 20.0


def score_table(predictions: dict[str, np.ndarray], splits: Splits, truth: Truth | None = None) -> pa.Table:
    """Return one row per (panel, shots, swapped, person): the columns of `scores_per_person`, and `credit`.

    credit: float32 for each of the person's queries, in their order, of which `accuracy` is the mean; only at a panel's
    largest number of shots, and not for the swap control. Two methods are compared by it pair by pair.

    predictions: log-odds of a panel's queries, named `PANEL/SHOTS`, or `PANEL/SHOTS/swapped` if each user's queries
    were answered with another user's adapted state. Choices among candidates (`choices/...`) are left out here: the
    board scores them, because a win rate compares two methods.

    Probabilities are calibrated by one temperature, fitted on the validation panel at the same number of shots. With
    ground truth, sign_accuracy is the share of queries for which the method prefers the side of larger true utility.
    """
    tables, scales = [], {}
    true_labels = {
        name: None if truth is None else np.sign(truth.gap(p.query)) / 2 + 0.5 for name, p in splits.panels.items()
    }
    asked = [name for name in predictions if not name.startswith("choices/")]
    for name in sorted(asked, key=lambda n: (not n.startswith("validation/"), n)):
        panel, shots, *swapped = name.split("/")
        query = splits.panels[panel].query
        if panel == "validation" and not swapped:
            scales[shots] = fit_temperature_scale(predictions[name], query.label)
        columns = scores_per_person(query, predictions[name], scales[shots], true_labels[panel])
        n = query.n_users
        last = max(int(other.split("/")[1]) for other in asked if other.split("/")[0] == panel)
        credit = pa.nulls(n, pa.list_(pa.float32()))
        if int(shots) == last and not swapped:
            per_query = label_of_preferred(predictions[name], query.label).astype(np.float32)
            credit = pa.ListArray.from_arrays(query.offsets.astype(np.int32), per_query)
        columns["credit"] = credit
        head = {"panel": [panel] * n, "shots": np.full(n, int(shots), np.int32), "swapped": np.full(n, bool(swapped))}
        tables.append(pa.table(head | {"person": query.people, "scale": np.full(n, scales[shots])} | columns))
    return pa.concat_tables(tables)


def scores_per_person(
    query: Pairs, log_odds: np.ndarray, scale: float, true_label: np.ndarray | None = None
) -> dict[str, object]:
    """Return columns with one row per user: means over the user's queries, and sums for the calibration bins.

    scale: one over the temperature; calibrated probabilities are sigmoid(scale log_odds).
    true_label: float[n], 1 where the ground truth prefers left, 0 where right, 1/2 for equal utilities.

    asked: number of queries.
    accuracy: mean label of the side that the method prefers; log-odds of 0 count one half.
    sign_accuracy: the same with `true_label`; null without ground truth.
    auc: see `user_auc`.
    rank_correlation, scale_error: of predicted ratings, see `scale.rating_scores`; null without ratings.
    log_loss (nats), brier: of the calibrated probabilities.
    bin_n, bin_p, bin_y: [n_users, CALIBRATION_BINS], number of queries, sum of probabilities and sum of labels in each
        bin. The bins hold equally many of the panel's queries, ordered by probability.
    """
    z, y, user, n_users = log_odds.astype(np.float64), query.label.astype(np.float64), query.user, query.n_users
    asked = np.bincount(user, minlength=n_users)

    def mean(values: np.ndarray) -> np.ndarray:
        return np.bincount(user, values, minlength=n_users) / asked

    p = expit(scale * z)

    def mean_label_of_preferred(label: np.ndarray) -> np.ndarray:
        return mean(label_of_preferred(z, label))

    order = np.argsort(p, kind="stable")
    bin_of = np.empty(len(p), dtype=np.int64)
    bin_of[order] = np.arange(len(p)) * CALIBRATION_BINS // len(p)
    cell = user * np.int64(CALIBRATION_BINS) + bin_of

    def binned(values: np.ndarray | None) -> pa.Array:
        sums = np.bincount(cell, values, minlength=n_users * CALIBRATION_BINS).astype(np.float32)
        return pa.FixedSizeListArray.from_arrays(pa.array(sums), CALIBRATION_BINS)

    nothing = pa.nulls(n_users, pa.float64())
    rank, error = (nothing, nothing) if query.ratings is None else rating_scores(query, z)
    return {
        "asked": asked.astype(np.int32),
        "accuracy": mean_label_of_preferred(y),
        "sign_accuracy": nothing if true_label is None else mean_label_of_preferred(true_label),
        "auc": user_auc(user, n_users, z, y),
        "rank_correlation": rank,
        "scale_error": error,
        "log_loss": mean(np.logaddexp(0, scale * z) - y * scale * z),
        "brier": mean((p - y) ** 2),
        "bin_n": binned(None),
        "bin_p": binned(p),
        "bin_y": binned(y),
    }


def label_of_preferred(log_odds: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Return float64[n]: the label of the side that the method prefers; log-odds of 0 count one half."""
    label = label.astype(np.float64)
    return np.where(log_odds > 0, label, np.where(log_odds < 0, 1 - label, 0.5))


def user_auc(user: np.ndarray, n_users: int, z: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return float64[n_users]: the probability that a preferred side has larger log-odds than a rejected one.

    The two sides may be from different pairs of the user. Each pair counts in both orders (z, y and -z, 1 - y), because
    the order carries no information. So every user has preferred and rejected sides. Ties count one half. A soft label
    y makes a side preferred with weight y and rejected with weight 1 - y.
    """
    user, z, up = np.concatenate([user, user]), np.concatenate([z, -z]), np.concatenate([y, 1 - y])
    order = np.lexsort((z, user))
    user, z, up, down = user[order], z[order], up[order], 1 - up[order]
    new = np.r_[True, (user[1:] != user[:-1]) | (z[1:] != z[:-1])]  # starts of groups: equal scores of one user
    group = np.cumsum(new) - 1
    group_user = user[new]
    ups, downs = np.bincount(group, up), np.bincount(group, down)
    total_up, total_down = np.bincount(user, up, minlength=n_users), np.bincount(user, down, minlength=n_users)
    # per group: weight of the same user's rejected sides with smaller log-odds
    before = np.cumsum(downs) - downs - np.r_[0, np.cumsum(total_down)][group_user]
    return np.bincount(group_user, ups * (before + downs / 2), minlength=n_users) / (total_up * total_down)


def fit_temperature_scale(z: np.ndarray, y: np.ndarray) -> float:
    """Return the scale s, one over the temperature, for which sigmoid(s z) has the lowest log loss.

    s lies in [0, MAX_MEAN_LOG_ODDS / mean |z|], and is 1 where all z are 0 or some are not finite.
    """
    z, y = z.astype(np.float64), y.astype(np.float64)
    if not z.any() or not np.isfinite(z).all():
        return 1.0
    z = z / (unit := np.abs(z).mean())  # makes the search range the same for log-odds of any size

    def slope(scale: float) -> float:  # of the log loss, which is convex in the scale
        return float(z @ (expit(scale * z) - y))

    if slope(0) >= 0:
        return 0.0
    if slope(MAX_MEAN_LOG_ODDS) <= 0:
        return float(MAX_MEAN_LOG_ODDS / unit)
    return float(brentq(slope, 0, MAX_MEAN_LOG_ODDS, xtol=1e-9) / unit)


def mean_log_loss(z: np.ndarray, y: np.ndarray) -> float:
    """Return the mean log loss, in nats, of log-odds z against labels y in [0, 1]."""
    return float((np.logaddexp(0, z) - y * z).mean())


def calibration_error(n: np.ndarray, p: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the debiased root mean square gap between confidence and frequency over equal-mass bins.

    The estimator is that of Kumar, Liang and Ma (2019). n, p, y: [..., CALIBRATION_BINS] counts, summed probabilities
    and summed labels. Returns shape [...].
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        gap, rate = (p - y) / n, y / n
        squared = gap**2 - rate * (1 - rate) / np.maximum(n - 1, 1)
        total = np.nansum(np.where(n > 1, n * squared, 0), axis=-1) / n.sum(axis=-1)
    return np.sqrt(np.maximum(total, 0))
