"""Hierarchical-Bayes mixed logit: Gaussians over user weights fitted by empirical Bayes; the classical baseline."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from sklearn.cluster import KMeans

from harness.data import Pairs, Panel
from harness.errors import UserError
from harness.fields import renamed_field
from harness.learning.factors import mean_square_gap
from harness.learning.linear import LinearMethod, fit_map_weights, haste_of, posterior_covariances, row_log_odds
from harness.learning.mixtures import Mixture, Posteriors, fit_mixture, mixture_posteriors
from harness.learning.priors import (
    best_prior_on_validation,
    james_stein_mean,
    loss_on_validation,
    rescaled,
    tempered_priors,
    with_haste,
)
from harness.method import Run, State, TaskFacts, Users
from harness.methods.moment import Signal, refusal_without_times
from harness.search_space import OneOf, SearchSpace, Span

MAX_MIXTURE_FEATURES = 64  # with more, a few hundred people do not tell kinds apart, and it takes half a minute
COMPONENTS = 5  # of the mixture that is tried: 2 or 8 do no better on validation users of `two_modes` and `low_rank`


@dataclass(frozen=True)
class MixedLogit(LinearMethod):
    """A mixed logit (Train 2009, chapter 12): users' weights are drawn from a Gaussian, or from a mixture of Gaussians.

    EM fits the population, with a variational Gaussian approximation of each user's posterior. With few people, plain EM
    overfits the covariance and does worse than `per_user`. So the M step has an inverse-Wishart prior with the weight of
    d people, centred on sigma^2 I. The eigenvalues are then raised to a power, and after that multiplied by a factor, both
    chosen on validation users: a power below one shrinks the covariance towards sigma^2 I (reached at zero), a power above
    one sharpens it towards the directions in which people differ most.

    The components of a mixture share their covariance. They start from a clustering of the training users' weights, and
    their number is chosen on validation users unless given. A new user's weights are the posterior mean.

    `signal = "response_time"`: a new user's quick answers count more, by how much is chosen on validation users.

    Departures: EM with an approximate posterior, where the chapter draws from the posterior by Gibbs sampling. The
    prior's mean is shrunk (James-Stein) where there is one component; the power of the eigenvalues and the choice of the
    number of components are this project's own.
    """

    family = "linear"
    paper = "Train 2009"
    version = 2
    search_space: ClassVar[SearchSpace] = {"steps": Span(3, 30, whole=True), "components": OneOf((1, 2, 3, 5, 8))}

    steps: int = 10
    components: int | None = None  # of the mixture; None: one or COMPONENTS, chosen on validation users
    signal: Signal = "choice"
    elicitation: Literal["random", "uncertainty"] = renamed_field("random", formerly="elicit")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps < 1 or (self.components is not None and self.components < 1):
            raise UserError(
                "mixed_logit: steps and components must be at least 1", "use per_user for a prior that is not learned"
            )

    def refuses(self, task: TaskFacts) -> str | None:
        if task.feature_dim is not None and task.feature_dim > 1024:
            return "needs at most 1,024 features, because it computes a d x d posterior for every user"
        return refusal_without_times(self.signal, task) or super().refuses(task)

    def fit(self, train: Pairs, validation: Panel, run: Run) -> State:
        d = train.gap.shape[1]
        zero, root = (
            torch.zeros(1, d, dtype=torch.float64),
            torch.eye(d, dtype=torch.float64) / mean_square_gap(train) ** 0.5,
        )
        one, posteriors = fit_mixture(train, Mixture(zero, root, zero[:, 0]), self.steps, run)
        mean = james_stein_mean(one.means[0], one.root @ one.root.T, train.n_users)
        components = self.components or (COMPONENTS if d <= MAX_MIXTURE_FEATURES else 1)
        if components > 1:
            start = self.clustered(one, posteriors, components, run)
            mixture, _ = fit_mixture(train, start, self.steps, run, posteriors)
            parts = {"mean": mixture.means, "log_shares": mixture.log_shares}
            mixtures = [prior | parts for prior in tempered_priors(mean, mixture.root)]
            middle = mixtures[len(mixtures) // 2]

        def predict(state: State, context: Pairs) -> torch.Tensor:
            return row_log_odds(torch.from_numpy(validation.query.gap), user_weights(state, context), validation.query)

        def loss(state: State) -> float:
            return loss_on_validation(state, validation, predict)

        if self.components is None or components == 1:
            found = best_prior_on_validation(tempered_priors(mean, one.root), validation)
        # a mixture that is not given has to be better with its middle prior; to look at all of them costs more
        if components > 1 and (self.components or loss(middle) < loss(found)):
            found = best_prior_on_validation(mixtures, validation, predict)
        found = rescaled(found, validation, predict)
        return with_haste(found, validation, predict) if self.signal == "response_time" else found

    def clustered(self, one: Mixture, posteriors: Posteriors, components: int, run: Run) -> Mixture:
        """Return where EM starts with several components: users' weights are clustered in units of their covariance."""
        white = torch.linalg.solve_triangular(one.root, posteriors.weights[0].T, upper=False).T
        components = min(components, len(np.unique(white.numpy().round(6), axis=0)))
        seed = int(torch.randint(2**31, (1,), generator=run.generator("mixed_logit")))
        clusters = KMeans(components, n_init=10, random_state=seed).fit(white.numpy())
        share = np.bincount(clusters.labels_, minlength=components) / len(white)
        means = torch.from_numpy(clusters.cluster_centers_).double() @ one.root.T
        return Mixture(means, one.root, torch.from_numpy(share).log())

    def adapt(self, state: State, context: Pairs, run: Run) -> Users:
        weights = user_weights(state, context)
        if self.elicitation == "random":
            return (weights,)
        return weights, posterior_covariances(context, weights, state["root"])


def user_weights(state: State, context: Pairs) -> torch.Tensor:
    """Return float64[n_users, d]: the mode of every user's posterior; the mean, where the prior is a mixture."""
    if "log_shares" not in state:
        return fit_map_weights(context, state["mean"], state["root"], haste_of(state))
    prior = Mixture(state["mean"], state["root"], state["log_shares"])
    found = mixture_posteriors(context, prior, haste=haste_of(state))
    return torch.einsum("uk,kud->ud", found.shares, found.weights)
