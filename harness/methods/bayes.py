"""Bayes-optimal reference: knows the population and all items' true attributes; learns each user from the context."""

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import softplus

from harness.data import Items, Pairs, Panel, require_truth
from harness.method import Method, Run, State, Users

LOG_ODDS_PER_CHUNK = 2**18  # log-odds in memory at once: 1 MB of float32, which fits a core's own cache


@dataclass(frozen=True)
class Bayes(Method):
    """A posterior predictive: P(left) averaged over the true population, weighted by the likelihood of the context.

    The average is exact where the population lists all kinds of user. Where the population is a sample, the average is
    self-normalised importance sampling, which falls slightly short of the optimum once few draws explain a long
    context.
    """

    family = "line"

    privileged = True
    draws: int = 20_000  # members of the population used, at most

    def fit(self, train: Pairs, validation: Panel, run: Run) -> State:
        truth = require_truth(run.truth)
        utility = torch.from_numpy(truth.items) / max(truth.temperature, 0.01)  # temperature 0: deterministic labels
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
        """Return the posterior expected utility of each item; choosing the largest is optimal."""
        taste = (users[0] @ state["population"])[torch.from_numpy(user).long()]
        return (state["items"][torch.from_numpy(item).long()] * taste).sum(1)

    def population_log_odds(self, state: State, pairs: Pairs):
        """Yield slices of rows, their users, and float32[rows, draws]: log-odds of every member of the population."""
        left, right, user = (torch.from_numpy(x).long() for x in (pairs.left, pairs.right, pairs.user))
        step = max(1, LOG_ODDS_PER_CHUNK // len(state["population"]))
        for start in range(0, len(pairs), step):
            rows = slice(start, start + step)
            yield rows, user[rows], (state["items"][left[rows]] - state["items"][right[rows]]) @ state["population"].T
