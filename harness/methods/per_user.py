"""Ridge logistic regression on each user's own pairs; users share nothing but the ridge."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from harness.data import Pairs, Panel
from harness.errors import UserError
from harness.learning.linear import LinearMethod
from harness.learning.priors import PRIOR_SCALES, best_prior_on_validation, with_haste
from harness.method import Run, State, TaskFacts
from harness.methods.moment import Signal, refusal_without_times
from harness.search_space import SearchSpace, Span


@dataclass(frozen=True)
class PerUser(LinearMethod):
    """A prior N(0, scale^2 I) for all users; the scale is chosen on validation users unless given.

    `signal = "response_time"`: a user's quick answers count more, by how much is chosen on validation users.
    """

    family = "linear"
    version = 2
    search_space: ClassVar[SearchSpace] = {"scale": Span(0.02, 20.0)}

    scale: float | None = None
    signal: Signal = "choice"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scale is not None and self.scale <= 0:
            raise UserError("per_user: scale must be positive", "leave it out to choose it on validation users")

    def refuses(self, task: TaskFacts) -> str | None:
        return refusal_without_times(self.signal, task) or super().refuses(task)

    def fit(self, train: Pairs, validation: Panel, run: Run) -> State:
        zero = torch.zeros(train.gap.shape[1], dtype=torch.float64)
        scales = PRIOR_SCALES if self.scale is None else (self.scale,)
        priors = [{"mean": zero, "root": torch.tensor(scale, dtype=torch.float64)} for scale in scales]
        found = best_prior_on_validation(priors, validation)
        return with_haste(found, validation) if self.signal == "response_time" else found
