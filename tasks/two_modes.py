"""Two hidden kinds of user who disagree about large options (Few-shot Steerable Alignment, section 4.1)."""

from dataclasses import dataclass

import numpy as np

from harness.data import Items, PreferenceDataset, Splits, Truth
from harness.errors import UserError
from harness.method import State, Users
from harness.task import Task, split_in_order


@dataclass(frozen=True)
class TwoModes(Task):
    """A simulation of options y ~ U[0, 1] with reward y up to .5 and, above it, 2y (mode 0) or 1 - y (mode 1).

    The option with the larger reward is chosen. The paper's text says y in [-1, 1], which contradicts its own 75 %
    accuracy without shots: with that range the modes agree on seven pairs of eight, here on half. A pair is
    *conflicting* if the modes disagree; each conflict rate is the share of conflicting pairs (U[0, 1] gives .5). With
    `feature_dim` 1 an item is y itself, and no linear reward fits mode 1. With d it is y and d - 1 hinges
    max(y - j/d, 0), with which for even d a linear reward fits both modes.
    """

    family = "simulated"
    paper = "Kobalczyk et al. 2024, Few-shot Steerable Alignment"

    n_users: int = 2000  # training users; there are a tenth as many validation users, and as many test users
    pairs_per_user: int = 40
    feature_dim: int = 1
    train_conflict_rate: float = 0.5
    context_conflict_rate: float = 0.5
    query_conflict_rate: float = 0.5

    shots: tuple[int, ...] = (0, 1, 3, 5, 10)

    def __post_init__(self) -> None:
        super().__post_init__()
        rates = (self.train_conflict_rate, self.context_conflict_rate, self.query_conflict_rate)
        if min(self.n_users, self.pairs_per_user, self.feature_dim) < 1 or not all(0 <= rate <= 1 for rate in rates):
            raise UserError(
                "two_modes: counts must be 1 or more, and conflict rates in [0, 1]",
                "uniform options have a conflict rate of 0.5",
            )

    def build(self, seed: int) -> PreferenceDataset:
        rng = np.random.default_rng(seed)
        n_new, n_context = 2 * max(1, self.n_users // 10), max(self.shots)
        counts = np.repeat([self.pairs_per_user, n_context], [self.n_users, n_new]) + self.queries
        user = np.repeat(np.arange(len(counts)), counts)
        place = np.arange(len(user)) - (np.cumsum(counts) - counts)[user]
        shown_rate = np.where(user < self.n_users, self.train_conflict_rate, self.context_conflict_rate)
        asked = place >= counts[user] - self.queries
        y = draw_option_pairs(rng, rng.random(len(user)) < np.where(asked, self.query_conflict_rate, shown_rate))
        mode = rng.integers(2, size=len(counts))
        utility = mode_rewards(y.ravel())
        left, right = np.arange(0, 2 * len(user), 2), np.arange(1, 2 * len(user), 2)
        knots = np.arange(1, self.feature_dim) / self.feature_dim
        hinges = np.maximum(y.reshape(-1, 1) - knots, 0)
        features = np.column_stack([y.ravel(), hinges]).astype(np.float32)
        truth = Truth(np.eye(2, dtype=np.float32)[mode], utility.astype(np.float32), 0.0, np.eye(2, dtype=np.float32))
        label = utility[left, mode[user]] > utility[right, mode[user]]
        return PreferenceDataset.from_pairs(
            user, left, right, label, Items(features, columns_share_unit=True), truth=truth
        )

    def split(self, data: PreferenceDataset, seed: int) -> Splits:
        return split_in_order(data, self.n_users, self.queries)

    def diagnostics(self, splits: Splits, truth: Truth | None, state: State, users: Users) -> dict[str, float]:
        return mode_diagnostics(splits, truth, users)


def mode_rewards(y: np.ndarray) -> np.ndarray:
    """Return float64[n, 2]: the reward of each option in mode 0 and in mode 1."""
    return np.column_stack([np.where(y > 0.5, 2 * y, y), np.where(y > 0.5, 1 - y, y)])


def draw_option_pairs(rng: np.random.Generator, conflicting: np.ndarray) -> np.ndarray:
    """Draw float64[n, 2]: uniform options by rejection, such that pair i conflicts if conflicting[i]."""
    y = np.empty((len(conflicting), 2))
    open_rows = np.arange(len(conflicting))
    while open_rows.size:
        y[open_rows] = rng.random((open_rows.size, 2))
        first, second = mode_rewards(y[open_rows, 0]), mode_rewards(y[open_rows, 1])
        disagree = (first[:, 0] > second[:, 0]) != (first[:, 1] > second[:, 1])
        open_rows = open_rows[disagree != conflicting[open_rows]]
    return y


def mode_diagnostics(splits: Splits, truth: Truth | None, users: Users) -> dict[str, float]:
    """Return how well a method's first tensor of users, a row per test user, predicts the users' hidden modes.

    A user's mode is the largest of the user's true weights. {} where rows do not differ, or where fewer than two modes
    have ten test users; modes with fewer users are left out.
    probe_accuracy: of a logistic regression on the standardised rows, five-fold cross-validated over test users; about
    the share of the most frequent mode if nothing is learned.
    silhouette: of the true modes in these rows, -1..1.
    """
    if truth is None or not users:
        return {}
    rows = users[0].flatten(1).double().numpy() if users[0].ndim > 1 else users[0].double().numpy()[:, None]
    mode = truth.users[splits.panels["test"].query.people].argmax(1)
    sizes = np.bincount(mode)
    if np.ptp(rows, axis=0).max(initial=0) == 0 or not np.isfinite(rows).all() or np.sort(sizes)[-2:][0] < 10:
        return {}
    from sklearn.linear_model import LogisticRegression  # slow to import, and needed only once per trial
    from sklearn.metrics import silhouette_score
    from sklearn.model_selection import cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    rows, mode = rows[kept := sizes[mode] >= 10], mode[kept]
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    return {
        "probe_accuracy": float(cross_val_score(probe, rows, mode, cv=5).mean()),
        "silhouette": float(silhouette_score(rows, mode)),
    }
