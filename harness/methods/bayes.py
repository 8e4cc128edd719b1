"""The Bayes line: knows the population and every item's true attributes, and learns a user from the same context."""

from dataclasses import dataclass

import torch
from torch.nn.functional import logsigmoid

from harness.data import Pairs, Panel
from harness.method import Method, Run, State, Users

CHUNK = 2**21  # log-likelihoods held at once: 16 MB of float64


@dataclass(frozen=True)
class Bayes(Method):
    """P(left) averaged over the truth's population, each member weighed by the likelihood of the user's context.

    Exact where the population lists all kinds of user; where it holds draws, it is self-normalised importance
    sampling and falls slightly short of the true line once few draws explain a long context.
    """

    privileged = True
    draws: int = 5000  # of the population, at most

    def fit(self, train: Pairs, validation: Panel, run: Run) -> State:
        utility = torch.from_numpy(run.truth.items).double() / max(run.truth.temperature, 0.01)  # 0 means certain
        return {"items": utility, "population": torch.from_numpy(run.truth.population[: self.draws]).double()}

    def adapt(self, state: State, context: Pairs, run: Run) -> Users:
        y = torch.from_numpy(context.label).double().unsqueeze(1)
        likelihood = torch.zeros(context.n_users, len(state["population"]), dtype=torch.float64)
        for rows, z in self.log_odds(state, context):
            user = torch.from_numpy(context.user[rows]).long()
            likelihood.index_add_(0, user, y[rows] * logsigmoid(z) + (1 - y[rows]) * logsigmoid(-z))
        return (likelihood.softmax(1),)

    def score(self, state: State, users: Users, query: Pairs) -> torch.Tensor:
        p = torch.empty(len(query), dtype=torch.float64)
        for rows, z in self.log_odds(state, query):
            p[rows] = (users[0][torch.from_numpy(query.user[rows]).long()] * z.sigmoid()).sum(1)
        return torch.logit(p, eps=1e-9)

    def log_odds(self, state: State, pairs: Pairs):
        """Yields slices of rows with float64[rows, draws], what each member of the population would answer."""
        left, right = torch.from_numpy(pairs.left).long(), torch.from_numpy(pairs.right).long()
        step = max(1, CHUNK // len(state["population"]))
        for start in range(0, len(pairs), step):
            rows = slice(start, start + step)
            yield rows, (state["items"][left[rows]] - state["items"][right[rows]]) @ state["population"].T
