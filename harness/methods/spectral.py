"""SVD of users' mean moments, then ridge in the leading directions: the control for all low-rank methods."""

from dataclasses import dataclass
from typing import ClassVar

from harness.data import Pairs, Panel
from harness.errors import UserError
from harness.learning.factors import moment_svd, weights_in_basis
from harness.learning.linear import LinearMethod
from harness.learning.priors import PRIOR_SCALES, best_rank_on_validation, empirical_prior
from harness.method import Run, State
from harness.search_space import SearchSpace, Span


@dataclass(frozen=True)
class Spectral(LinearMethod):
    """A subspace in closed form, and a prior inside it.

    A user's moment is the sum of (2 label - 1) x over the user's pairs, divided by the root of their number, with x the
    gap of features. Whitened by the gaps' second moment, the moment estimates the user's weights up to a factor. The
    leading right singular vectors of all users' moments span the subspace. The prior inside it is estimated from the
    training users' ridge solutions there.
    """

    family = "linear"

    version = 2
    search_space: ClassVar[SearchSpace] = {"rank": Span(1, 64, whole=True)}
    rank: int | None = None  # the number of directions kept; None: chosen on validation users

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rank is not None and self.rank < 1:
            raise UserError("spectral: rank must be at least 1", "leave it out to choose it on validation users")

    def fit(self, train: Pairs, validation: Panel, run: Run) -> State:
        directions = moment_svd(train)[1]

        def priors_at(rank: int) -> list[State]:
            mean, root = empirical_prior(*weights_in_basis(train, directions[:, :rank]))
            return [{"mean": mean, "root": scale * root} for scale in PRIOR_SCALES]

        return best_rank_on_validation(self.rank, directions.shape[1], priors_at, validation, run)
