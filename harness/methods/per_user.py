"""Ridge logistic regression on each user's own pairs; users share nothing but the ridge."""

from dataclasses import dataclass

import torch

from harness.data import Pairs, Panel
from harness.errors import UserError
from harness.learning.linear import LinearMethod
from harness.learning.priors import PRIOR_SCALES, best_prior_on_validation
from harness.method import Run, State


@dataclass(frozen=True)
class PerUser(LinearMethod):
    """A prior N(0, scale^2 I) for all users; the scale is chosen on validation users unless given."""

    family = "linear"

    scale: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scale is not None and self.scale <= 0:
            raise UserError("per_user: scale must be positive", "leave it out to choose it on validation users")

    def fit(self, train: Pairs, validation: Panel, run: Run) -> State:
        zero = torch.zeros(train.gap.shape[1], dtype=torch.float64)
        scales = PRIOR_SCALES if self.scale is None else (self.scale,)
        priors = [{"mean": zero, "root": torch.tensor(scale, dtype=torch.float64)} for scale in scales]
        return best_prior_on_validation(priors, validation)
