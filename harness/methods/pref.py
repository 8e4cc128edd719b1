"""PReF: the users x pairs matrix, factorised and refined by maximum likelihood; can choose the pairs to ask."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from sklearn.linear_model import RidgeCV

from harness.data import Pairs, Panel
from harness.errors import UserError
from harness.fields import renamed_field
from harness.learning.factors import fit_factors, mean_square_gap, moment_svd, random_factors, weights_in_basis
from harness.learning.linear import LinearMethod, log_odds_variance
from harness.learning.priors import (
    PRIOR_SCALES,
    RANKS,
    best_rank_on_validation,
    empirical_prior,
    rescaled,
    tempered_priors,
)
from harness.method import Run, State, Users
from harness.search_space import SearchSpace, Span

# The SVD of a users x pairs matrix with this many entries takes 4 s on one core. `arguments` would have 61 million.
MAX_MATRIX_ENTRIES = 4_000_000


@dataclass(frozen=True)
class Pref(LinearMethod):
    """Personalization via Reward Factorization: r_i = <lambda_i, phi>, with phi linear in the item's features.

    Algorithm 1 takes the rank-J SVD of the users x pairs matrix of labels, fits features to it by ridge regression
    (least squares would interpolate where pairs barely outnumber dimensions), and refines both factors by eq. 4. The
    matrix is projected onto the features before the SVD instead of after it in two cases: where pairs have fewer than
    two answers on average (most entries are empty, so each singular vector would describe a single user), and where the
    matrix has more than MAX_MATRIX_ENTRIES entries.
    Algorithm 2 fits lambda of a new user by eq. 5 and chooses the next pair. `rule = "printed"` is eq. 8 as printed:
    the longest phi in the norm of the inverse Hessian (eq. 7). "slope" multiplies that by sigma' of the pair's
    log-odds, as in the authors' code, because eq. 8 alone asks pairs with a large phi whose answers are already certain.

    Departures: phi is linear in given features, where the paper trains a head on a language model, and L-BFGS takes the
    place of its gradient steps. A larger phi undoes an L2 penalty on lambda alone, so both have an equal penalty (as in
    `rfm`). The SVD gives phi, and lambda starts at every user's ridge solution under it. The prior of new users comes
    from the training users' mean and second moment, whose eigenvalues are raised to a power chosen on validation users;
    `whiten = False` is the paper's beta I, with beta chosen on validation users. The next pair is chosen from a pool of
    existing pairs, where the paper also has the best pair in closed form (the leading eigenvector of the inverse
    Hessian) and lets a language model write it. The first pair is the most uncertain one under the prior, not a random
    one.

    The state's `spectrum` holds the singular values; the paper chooses J at their elbow (figure 9).
    """

    family = "linear"
    paper = "Shenfeld et al. 2025, PReF"

    version = 2
    search_space: ClassVar[SearchSpace] = {
        "rank": Span(1, 64, whole=True),
        "decay": Span(0.01, 1.0),
        "steps": Span(10, 160, whole=True),
    }
    rank: int | None = None  # J; None: chosen on validation users
    decay: float = 0.12  # relative to the noise's spectral norm, as in `rfm`; 0 is the ablation without L2
    svd: bool = True  # False starts from random factors: the ablation without SVD
    whiten: bool = True  # the prior has the training users' covariance; False: the paper's beta I
    steps: int = 40  # of L-BFGS; 60 steps gain nothing
    elicitation: Literal["random", "uncertainty"] = renamed_field("random", formerly="elicit")
    rule: Literal["slope", "printed"] = "slope"

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.rank is not None and self.rank < 1) or self.steps < 1 or self.decay < 0:
            raise UserError(
                "pref: rank and steps must be at least 1, decay 0 or more",
                "leave out rank to choose it on validation users; decay = 0 is the ablation without L2",
            )

    def fit(self, train: Pairs, validation: Panel, run: Run) -> State:
        spectrum, directions = self.matrix_svd(train)

        def priors_at(rank: int) -> list[State]:
            start = (
                weights_in_basis(train, directions[:, :rank])
                if self.svd
                else random_factors(train, rank, run.generator("pref"))
            )
            weights, basis = fit_factors(train, *start, self.decay, self.steps, run)
            if self.whiten:
                return tempered_priors(*empirical_prior(weights, basis))
            zero = torch.zeros(len(basis), dtype=basis.dtype)
            return [{"mean": zero, "root": scale * basis} for scale in PRIOR_SCALES]

        found = best_rank_on_validation(self.rank, directions.shape[1], priors_at, validation, run)
        if self.whiten:
            found = rescaled(found, validation)
        return found | {"spectrum": spectrum}

    def matrix_svd(self, train: Pairs) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the singular values, and float64[d, r]: the map from features to phi, leading directions first.

        Ridge regression on the pairs' gaps fits this map to the pairs' side of the SVD (algorithm 1, lines 2 to 5). It is
        fitted for the given rank, or for the highest one that is tried.
        """
        low, high = np.minimum(train.left, train.right).astype(np.int64), np.maximum(train.left, train.right)
        _, first, pair = np.unique(low * len(train.items) + high, return_index=True, return_inverse=True)
        if len(train) < 2 * len(first) or train.n_users * len(first) > MAX_MATRIX_ENTRIES:
            return moment_svd(train)
        sign = np.where(train.left == low, 1.0, -1.0)  # both orders of a pair are one column
        cells = torch.from_numpy(train.user).long(), torch.from_numpy(pair)
        matrix, times = torch.zeros(2, train.n_users, len(first), dtype=torch.float64)
        matrix.index_put_(cells, torch.from_numpy(sign * (2 * train.label - 1)), accumulate=True)
        times.index_put_(cells, torch.ones(len(train), dtype=torch.float64), accumulate=True)
        _, spectrum, Vt = torch.linalg.svd(matrix / times.clamp(min=1), full_matrices=False)
        gap = torch.from_numpy(train.gap[first] * sign[first, None]).double()
        most = self.rank or RANKS[1]
        columns = spectrum[:most].sqrt() * Vt[:most].T
        alphas = mean_square_gap(train) * np.logspace(-2, 5, 8)
        # leave-one-out over pairs chooses alpha, for each direction its own
        ridge = RidgeCV(alphas, fit_intercept=False, alpha_per_target=True).fit(gap, columns)
        return spectrum, torch.from_numpy(np.atleast_2d(ridge.coef_).T.copy())

    def uncertainty(self, state: State, users: Users, pool: Pairs) -> torch.Tensor:
        if self.rule == "printed":
            return log_odds_variance(state["root"], users[1], pool)
        return super().uncertainty(state, users, pool)
