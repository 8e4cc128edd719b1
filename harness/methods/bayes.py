"""The Bayes line: knows the population and every item's true attributes, and learns a user from the same context."""

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import softplus

from harness.data import Items, Pairs, Panel, require_truth
from harness.method import Method, Run, State, Users

LOG_ODDS_PER_CHUNK = 2**18  # log-odds held at once: 1 MB of float32, which stays in a core's own cache


@dataclass(frozen=True)
class Bayes(Method):
    """P(left) averaged over the truth's population, each member weighed by the likelihood of the user's context.

    Exact where the population lists all kinds of user; where it holds draws, it is self-normalised importance
    sampling and falls slightly short of the true line once few draws explain a long context.
    """

    privileged = True
    draws: int = 20_000  # of the population, at most

    def fit(self, train: Pairs, validation: Panel, run: Run) -> State:
        truth = require_truth(run.truth)
        utility = torch.from_numpy(truth.items) / max(truth.temperature, 0.01)  # 0 means certain
        return {"items": utility, "population": torch.from_numpy(truth.known_population[: self.draws])}

    def adapt(self, state: State, context: Pairs, run: Run) -> Users:
        y = torch.from_numpy(context.label).unsqueeze(1)
        likelihood = torch.zeros(context.n_users, len(state["population"]))
        for rows, user, z in self.population_log_odds(state, context):
            likelihood.index_add_(0, user, (y[rows] * z).sub_(softplus(z)))
        return (likelihood.softmax(1),)

    def score(self, state: State, users: Users, query: Pairs) -> torch.Tensor:
        p = torch.empty(len(query))
        for rows, user, z in self.population_log_odds(state, query):
            p[rows] = (users[0][user] * z.sigmoid_()).sum(1)
        return torch.logit(p.double(), eps=1e-7)

    def reward(self, state: State, users: Users, items: Items, user: np.ndarray, item: np.ndarray) -> torch.Tensor:
        """The utility expected of an item: choosing the largest is the best one can do."""
        taste = (users[0] @ state["population"])[torch.from_numpy(user).long()]
        return (state["items"][torch.from_numpy(item).long()] * taste).sum(1)

    def population_log_odds(self, state: State, pairs: Pairs):
        """Yields slices of rows, their users, and float32[rows, draws]: what each of the population would answer."""
        left, right, user = (torch.from_numpy(x).long() for x in (pairs.left, pairs.right, pairs.user))
        step = max(1, LOG_ODDS_PER_CHUNK // len(state["population"]))
        for start in range(0, len(pairs), step):
            rows = slice(start, start + step)
            yield rows, user[rows], (state["items"][left[rows]] - state["items"][right[rows]]) @ state["population"].T
