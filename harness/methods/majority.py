"""Majority vote of the training users on the same pair: a control that uses neither person nor features."""

from dataclasses import dataclass

import torch

from harness.data import Pairs, Panel
from harness.errors import UserError
from harness.method import Method, Run, State, TaskFacts, Users


@dataclass(frozen=True)
class Majority(Method):
    """The log-odds log((yes + smoothing) / (no + smoothing)) of the training users' votes on a pair, in either order.

    A tie or a soft label is a split vote. A pair without votes gets zero. Only pairs are scored; items have no reward.
    """

    family = "control"

    smoothing: float = 1.0  # votes added to each side (Laplace): pairs with few votes get log-odds closer to zero

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.smoothing > 0:
            raise UserError(f"majority: smoothing = {self.smoothing} must be above 0", "smoothing = 1.0")

    def refuses(self, task: TaskFacts) -> str | None:
        return super().refuses(task) if task.shares_pairs else "needs pairs that training users judged as well"

    def fit(self, train: Pairs, validation: Panel, run: Run) -> State:
        pair, forward = unordered_pair_ids(train)
        pair, row = pair.unique(return_inverse=True)  # ascending
        label = torch.from_numpy(train.label).double()
        yes = torch.zeros(len(pair), dtype=torch.float64).index_add_(0, row, torch.where(forward, label, 1 - label))
        no = torch.bincount(row, minlength=len(pair)) - yes
        return {"pair": pair, "log_odds": ((yes + self.smoothing) / (no + self.smoothing)).log()}

    @property
    def has_rewards(self) -> bool:
        return False

    def adapt(self, state: State, context: Pairs, run: Run) -> Users:
        return (torch.zeros(context.n_users),)

    def score(self, state: State, users: Users, query: Pairs) -> torch.Tensor:
        pair, forward = unordered_pair_ids(query)
        row = torch.searchsorted(state["pair"], pair).clamp(max=len(state["pair"]) - 1)
        log_odds = torch.where(state["pair"][row] == pair, state["log_odds"][row], 0.0)
        return torch.where(forward, log_odds, -log_odds)


def unordered_pair_ids(pairs: Pairs) -> tuple[torch.Tensor, torch.Tensor]:
    """Return int64[n], an id per unordered pair of items, and bool[n], whether left has the lower item number."""
    left, right = torch.from_numpy(pairs.left).long(), torch.from_numpy(pairs.right).long()
    return torch.minimum(left, right) * len(pairs.items) + torch.maximum(left, right), left < right
