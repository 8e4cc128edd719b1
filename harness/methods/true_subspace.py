"""Upper reference for low-rank methods: knows all items' true attributes and the population, but no user."""

from dataclasses import dataclass, replace

import numpy as np
import torch

from harness.data import Items, Pairs, Panel, require_truth
from harness.learning.linear import LinearMethod, fit_map_weights, row_log_odds
from harness.method import Run, State, Users


@dataclass(frozen=True)
class TrueSubspace(LinearMethod):
    """The linear methods' solver on the true attributes, with the true population's mean and covariance as prior."""

    family = "line"

    privileged = True

    def fit(self, train: Pairs, validation: Panel, run: Run) -> State:
        truth = require_truth(run.truth)
        population = torch.from_numpy(truth.known_population).double() / max(truth.temperature, 0.01)
        spread = population - population.mean(0)
        second = spread.T @ spread / len(population) + 1e-9 * torch.eye(population.shape[1], dtype=torch.float64)
        return {
            "mean": population.mean(0),
            "root": torch.linalg.cholesky(second),
            "items": torch.from_numpy(truth.items),
        }

    def adapt(self, state: State, context: Pairs, run: Run) -> Users:
        return (fit_map_weights(with_true_features(context, state), state["mean"], state["root"]),)

    def reward(self, state: State, users: Users, items: Items, user: np.ndarray, item: np.ndarray) -> torch.Tensor:
        return super().reward(state, users, Items(state["items"].numpy()), user, item)

    def score(self, state: State, users: Users, query: Pairs) -> torch.Tensor:
        query = with_true_features(query, state)
        return row_log_odds(torch.from_numpy(query.gap), users[0], query)


def with_true_features(pairs: Pairs, state: State) -> Pairs:
    """Return the pairs with the items' true attributes as features."""
    return replace(pairs, items=Items(state["items"].numpy()))
