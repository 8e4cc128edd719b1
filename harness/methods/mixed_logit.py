"""Hierarchical-Bayes mixed logit: a Gaussian over user weights fitted by empirical Bayes; the classical baseline."""

from dataclasses import dataclass
from typing import Literal

import torch

from harness.data import Pairs, Panel
from harness.errors import UserError
from harness.fields import renamed_field
from harness.learning.factors import mean_square_gap
from harness.learning.linear import LinearMethod, laplace_posteriors
from harness.learning.priors import best_prior_on_validation, james_stein_mean, tempered_priors
from harness.method import Run, State, TaskFacts


@dataclass(frozen=True)
class MixedLogit(LinearMethod):
    """A mixed logit fitted by EM with a Laplace approximation of each user's posterior (Train 2009, chapter 12).

    With few people, plain EM overfits the covariance and does worse than `per_user`. So the M step has an
    inverse-Wishart prior with the weight of d people, centred on sigma^2 I. The eigenvalues are then raised to a power
    chosen on validation users, at constant trace: a power below one shrinks the covariance towards sigma^2 I (reached
    at zero), a power above one sharpens it towards the directions in which people differ most.

    Departures: EM with a Laplace approximation, where the chapter draws from the posterior by Gibbs sampling. The
    prior's mean is shrunk (James-Stein), and the power of the eigenvalues is this project's own.
    """

    family = "linear"
    paper = "Train 2009"

    steps: int = 10
    elicitation: Literal["random", "uncertainty"] = renamed_field("random", formerly="elicit")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps < 1:
            raise UserError("mixed_logit: steps must be at least 1", "use per_user for a prior that is not learned")

    def refuses(self, task: TaskFacts) -> str | None:
        if task.feature_dim is not None and task.feature_dim > 1024:
            return "needs at most 1,024 features, because it computes a d x d posterior for every user"
        return super().refuses(task)

    def fit(self, train: Pairs, validation: Panel, run: Run) -> State:
        n_users, d = train.n_users, train.gap.shape[1]
        eye = torch.eye(d, dtype=torch.float64)
        mean, covariance = torch.zeros(d, dtype=torch.float64), eye / mean_square_gap(train)
        for _ in range(self.steps):
            weights, spread = laplace_posteriors(train, mean, torch.linalg.cholesky(covariance))
            mean = weights.mean(0)
            total = (weights - mean).T @ (weights - mean) + spread
            covariance = (total + d * total.trace() / (n_users * d) * eye) / (n_users + d)
            run.log(sd=(covariance.trace() / d).sqrt())
        mean = james_stein_mean(mean, covariance, n_users)
        return best_prior_on_validation(tempered_priors(mean, torch.linalg.cholesky(covariance)), validation)
