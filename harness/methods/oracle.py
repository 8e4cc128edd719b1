"""Oracle: predicts from every user's true utility; an upper reference that is not ranked."""

from dataclasses import dataclass

import torch

from harness.data import Pairs, Panel, require_truth
from harness.method import Method, Run, State, Users


@dataclass(frozen=True)
class Oracle(Method):
    """The ground truth's log-odds: the true utility gap over the truth's temperature."""

    family = "line"

    privileged = True

    def fit(self, train: Pairs, validation: Panel, run: Run) -> State:
        truth = require_truth(run.truth)
        # temperature 0: deterministic labels
        utility = torch.from_numpy(truth.items).double() / max(truth.temperature, 0.01)
        return {"items": utility}

    def adapt(self, state: State, context: Pairs, run: Run) -> Users:
        return (torch.from_numpy(require_truth(run.truth).users[context.people]).double(),)

    def reward(self, state, users, items, user, item) -> torch.Tensor:
        mine = users[0][torch.from_numpy(user).long()]
        return torch.einsum("nk,nk->n", state["items"][torch.from_numpy(item).long()], mine)
