"""One Bradley-Terry reward for everybody: classic RLHF, the reference every gain is measured against."""

from dataclasses import dataclass

import torch

from harness.data import Pairs, Panel
from harness.linear import SCALES, LinearMethod, best_on_validation, map_weights
from harness.method import Run, State


@dataclass(frozen=True)
class Shared(LinearMethod):
    """Ridge logistic regression on all training users' pairs, ignoring who judged; context changes nothing."""

    def fit(self, train: Pairs, validation: Panel, run: Run) -> State:
        d = train.gap.shape[1]
        zero, nothing = torch.zeros(d, dtype=torch.float64), torch.zeros(d, 0, dtype=torch.float64)
        fits = [map_weights(train.pooled(), zero, torch.tensor(scale, dtype=torch.float64))[0] for scale in SCALES]
        return best_on_validation([{"mean": weights, "root": nothing} for weights in fits], validation)
