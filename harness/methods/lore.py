"""LoRe: a low-rank basis of rewards; every user's reward is a mixture of them (Bose et al. 2025)."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from harness.data import Pairs, Panel
from harness.errors import UserError
from harness.learning.factors import fit_factors, moment_svd, random_factors, weights_in_basis
from harness.learning.linear import LinearMethod, padded_gaps
from harness.learning.priors import (
    RANKS,
    best_rank_on_validation,
    empirical_prior,
    fit_simplex_weights,
    mixture_priors,
    rescaled,
    tempered_priors,
)
from harness.method import Run, State, Users
from harness.search_space import SearchSpace, Span


@dataclass(frozen=True)
class Lore(LinearMethod):
    """A reward r_i(x, y) = <w_i, B^T e(x, y)>: basis and training weights by maximum likelihood, then w_i of new users.

    `weights = "simplex"` is the paper's w_i >= 0, sum w_i = 1, trained as a softmax from a random start. "free" drops
    the constraint and starts from the SVD of the users' moments, or at random (`svd = False`). From a random start,
    training can end in a poor local optimum.

    Departures: L-BFGS minimises the negative log-likelihood over both jointly, instead of alternating steps of Adam.
    There is no penalty towards a reference reward, because few tasks have one. New users' weights have the training
    users' Gaussian prior. One number of it is chosen on validation users: its scale on the simplex, and the power of
    its eigenvalues for free weights.
    """

    family = "linear"
    paper = "Bose et al. 2025, LoRe"

    version = 2
    search_space: ClassVar[SearchSpace] = {"rank": Span(1, 64, whole=True), "steps": Span(15, 240, whole=True)}
    rank: int | None = None  # number of basis rewards; None: chosen on validation users
    weights: Literal["simplex", "free"] = "simplex"
    svd: bool = True  # free weights start from the SVD; False: from random values
    steps: int = 60

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.rank is not None and self.rank < 1) or self.steps < 1:
            raise UserError(
                "lore: rank and steps must be at least 1", "leave out rank to choose it on validation users"
            )

    def fit(self, train: Pairs, validation: Panel, run: Run) -> State:
        if self.weights == "simplex":
            return best_rank_on_validation(
                self.rank,
                RANKS[1],
                lambda rank: self.mixture_priors_at(rank, train, run),
                validation,
                run,
                lambda prior, shown: self.score_from_context(prior, shown, validation.query),
            )
        directions = moment_svd(train)[1]

        def priors_at(rank: int) -> list[State]:
            start = (
                weights_in_basis(train, directions[:, :rank])
                if self.svd
                else random_factors(train, rank, run.generator("lore"))
            )
            return tempered_priors(*empirical_prior(*fit_factors(train, *start, 0.0, self.steps, run)))

        return rescaled(best_rank_on_validation(self.rank, directions.shape[1], priors_at, validation, run), validation)

    def mixture_priors_at(self, rank: int, train: Pairs, run: Run) -> list[State]:
        """Fit `rank` basis rewards and training users' weights on the simplex; return priors of new users' weights."""
        start = random_factors(train, rank, run.generator("lore"))
        weights, basis = fit_factors(train, *start, 0.0, self.steps, run, simplex=True)
        return [prior | {"basis": basis} for prior in mixture_priors(weights)]

    def score_from_context(self, state: State, context: Pairs, query: Pairs) -> torch.Tensor:
        """Return the log-odds float64[n] of the queries for users adapted to the context."""
        return self.score(state, self.fit_mixtures(state, context), query)

    def adapt(self, state: State, context: Pairs, run: Run) -> Users:
        return self.fit_mixtures(state, context) if "basis" in state else super().adapt(state, context, run)

    def fit_mixtures(self, state: State, context: Pairs) -> Users:
        """Return users' weights in feature space float64[n_users, d] and on the simplex float64[n_users, rank]."""
        w = state["mean"].repeat(context.n_users, 1)
        if len(context):
            X, y, mask = padded_gaps(context)
            w = fit_simplex_weights(X @ state["basis"], y, mask, torch.zeros_like(y), state)
        return (w @ state["basis"].T, w)
