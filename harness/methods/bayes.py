"""Bayes-optimal reference: knows the population and all items' true attributes; learns each user from the context."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.nn.functional import softplus

from harness.data import Items, Pairs, Panel, require_truth
from harness.learning.mixtures import Mixture, mixture_posteriors
from harness.method import Method, Run, State, Users

MIN_EFFECTIVE_DRAWS = (
    50  # fewer, and the average over draws is as far from the optimum as methods that learn the population
)
SAMPLE_ROWS = 10_000  # a population of so many rows is a sample; a smaller one lists all kinds of user
LOG_ODDS_PER_CHUNK = 2**18  # log-odds in memory at once: 1 MB of float32, which fits a core's own cache


@dataclass(frozen=True)
class Bayes(Method):
    """A posterior predictive: P(left) averaged over the true population, weighted by the likelihood of the context.

    The average is exact where the population lists all kinds of user. Where the population is a sample, the average is
    self-normalised importance sampling, which breaks down once a long context leaves weight on a few draws only. Users
    for whom fewer than MIN_EFFECTIVE_DRAWS count are answered with the mean of a Gaussian posterior instead
    (`mixture_posteriors`), under a Gaussian prior with the population's mean and covariance: with so many answers the
    shape of the prior matters little.
    """

    family = "line"
    version = 2

    privileged = True
    draws: int = 20_000  # members of the population used, at most

    def fit(self, train: Pairs, validation: Panel, run: Run) -> State:
        truth = require_truth(run.truth)
        utility = torch.from_numpy(truth.items) / max(truth.temperature, 0.01)  # temperature 0: deterministic labels
        return {"items": utility, "population": torch.from_numpy(truth.known_population[: self.draws])}

    def adapt(self, state: State, context: Pairs, run: Run) -> Users:
        """Return for every user the weights of the draws, the mean weights, and whether the draws are enough."""
        y = torch.from_numpy(context.label).unsqueeze(1)
        likelihood = torch.zeros(context.n_users, len(state["population"]))
        for rows, user, z in self.population_log_odds(state, context):
            likelihood.index_add_(0, user, (y[rows] * z).sub_(softplus(z)))
        shares = likelihood.softmax(1)
        mean, effective = shares @ state["population"], 1 / shares.square().sum(1)
        run.log(effective_draws=float(effective.median()))
        enough = (effective >= MIN_EFFECTIVE_DRAWS) | (len(state["population"]) < SAMPLE_ROWS)
        if not enough.all():
            few = torch.nonzero(~enough).squeeze(1)
            mean[few] = self.gaussian_means(state, context.of(few.numpy()))
        return shares, mean, enough

    def gaussian_means(self, state: State, context: Pairs) -> torch.Tensor:
        """Return float32[n_users, k]: means of the posteriors under a Gaussian prior, in units of the population."""
        population = state["population"].double()
        covariance = population.T.cov() + 1e-6 * population.square().mean() * torch.eye(population.shape[1])
        prior = Mixture(
            population.mean(0)[None], torch.linalg.cholesky(covariance), torch.zeros(1, dtype=torch.float64)
        )
        seen = replace(context, items=Items(state["items"].numpy()))
        return mixture_posteriors(seen, prior).weights[0].float()

    def score(self, state: State, users: Users, query: Pairs) -> torch.Tensor:
        shares, enough = users[0], users[2]
        z_at_mean = self.reward(state, users, query.items, query.user, query.left) - self.reward(
            state, users, query.items, query.user, query.right
        )
        p = torch.empty(len(query))
        for rows, user, z in self.population_log_odds(state, query):
            p[rows] = (shares[user] * z.sigmoid_()).sum(1)
        asked = torch.from_numpy(query.user).long()
        return torch.where(enough[asked], torch.logit(p.double(), eps=1e-7), z_at_mean.double())

    def reward(self, state: State, users: Users, items: Items, user: np.ndarray, item: np.ndarray) -> torch.Tensor:
        """Return the posterior expected utility of each item; choosing the largest is optimal."""
        taste = users[1][torch.from_numpy(user).long()]
        return (state["items"][torch.from_numpy(item).long()] * taste).sum(1)

    def population_log_odds(self, state: State, pairs: Pairs):
        """Yield slices of rows, their users, and float32[rows, draws]: log-odds of every member of the population."""
        left, right, user = (torch.from_numpy(x).long() for x in (pairs.left, pairs.right, pairs.user))
        step = max(1, LOG_ODDS_PER_CHUNK // len(state["population"]))
        for start in range(0, len(pairs), step):
            rows = slice(start, start + step)
            yield rows, user[rows], (state["items"][left[rows]] - state["items"][right[rows]]) @ state["population"].T
