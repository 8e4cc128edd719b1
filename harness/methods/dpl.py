"""Distributional preference learning: an item's reward is a distribution over people (Siththaranjan et al. 2024)."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch.nn.functional import softplus

from harness.data import Items, Pairs, Panel
from harness.errors import UserError
from harness.method import Method, Run, State, TaskFacts, Users
from harness.methods.shared import apply_reward_network, train_reward_network
from harness.search_space import OneOf, SearchSpace, Span


@dataclass(frozen=True)
class Dpl(Method):
    """A random utility U for each item; it is random because people differ and the method does not know who judges.

    P(left) = P(U_left > U_right), with the two utilities independent. Trained by cross-entropy on all training users' pairs; the context is ignored. The reward is the mean of U.
    mean_variance: U ~ N(mu, sigma^2), and P(left) = Phi(gap of mu / sqrt(sum of sigma^2)) (as in Few-shot Steerable
    Alignment, section 2.1). The network has two outputs, mu and s, and log sigma = softplus(s). So sigma is 1 or more,
    which restricts nothing, because P(left) depends on ratios of mu to sigma only. If sigma could fall to 0 where all
    people agree, training would diverge.
    categorical: U is one of `atoms` equally spaced values on [0, 1]. The network outputs their logits, and a tie counts
    one half.

    Departures: sigma is 1 or more (see above). The weights with the lowest loss on validation users are kept. The
    network has two hidden layers of width 64 on given features, where Few-shot Steerable Alignment has width 256 (C.1).
    """

    family = "network"
    paper = "Siththaranjan et al. 2024, DPL"
    search_space: ClassVar[SearchSpace] = {
        "model": OneOf(("mean_variance", "categorical")),
        "atoms": Span(3, 30, whole=True, when={"model": "categorical"}),
        "hidden": OneOf((0, 16, 64, 128)),
        "steps": Span(200, 3000, whole=True),
    }

    model: Literal["mean_variance", "categorical"] = "mean_variance"
    atoms: int = 10  # values of U in the categorical model
    hidden: int = 64  # width of both hidden layers; 0: outputs are linear in the item's features
    steps: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.atoms < 2 or self.hidden < 0 or self.steps < 1:
            raise UserError("dpl: atoms must be 2 or more, hidden 0 or more, steps 1 or more", "hidden = 0 is linear")

    def refuses(self, task: TaskFacts) -> str | None:
        return "needs items with numeric features" if task.feature_dim is None else super().refuses(task)

    def fit(self, train: Pairs, validation: Panel, run: Run) -> State:
        outputs, hidden = (2, self.atoms)[self.model == "categorical"], [self.hidden] * 2 if self.hidden else []
        return train_reward_network(train, validation, outputs, hidden, self.outputs_log_odds, self.steps, run)

    def outputs_log_odds(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        """Return float[n]: logit P(U_left > U_right), from both sides' outputs float[n, 2] or float[n, atoms]."""
        if self.model == "mean_variance":
            variance = torch.exp(2 * softplus(left[:, 1])) + torch.exp(2 * softplus(right[:, 1]))
            gap = (left[:, 0] - right[:, 0]) / variance.sqrt()
            return torch.special.log_ndtr(gap) - torch.special.log_ndtr(-gap)
        joint = left.log_softmax(1).unsqueeze(2) + right.log_softmax(1).unsqueeze(1)
        above = torch.ones(self.atoms, self.atoms).tril(-1) + torch.eye(self.atoms) / 2
        return (joint + above.log()).logsumexp((1, 2)) - (joint + above.T.log()).logsumexp((1, 2))

    def adapt(self, state: State, context: Pairs, run: Run) -> Users:
        return (torch.zeros(context.n_users, 0),)

    def reward(self, state: State, users: Users, items: Items, user: np.ndarray, item: np.ndarray) -> torch.Tensor:
        outputs = apply_reward_network(state, items, item)
        if self.model == "mean_variance":
            return outputs[:, 0]
        return outputs.softmax(1) @ torch.linspace(0, 1, self.atoms)

    def score(self, state: State, users: Users, query: Pairs) -> torch.Tensor:
        left, right = (apply_reward_network(state, query.items, side) for side in (query.left, query.right))
        return self.outputs_log_odds(left, right)
