"""One Bradley-Terry reward for all users: classic RLHF, the baseline that gains are measured against."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch.nn.functional import softplus

from harness.data import Items, Pairs, Panel
from harness.errors import UserError
from harness.learning import networks
from harness.learning.linear import LinearMethod, fit_map_weights
from harness.learning.priors import PRIOR_SCALES, best_prior_on_validation
from harness.method import Run, State, Users
from harness.scores.metrics import fit_temperature_scale, mean_log_loss


@dataclass(frozen=True)
class Shared(LinearMethod):
    """One reward fitted to all training users' pairs as if one person had judged them; the context is ignored.

    linear: ridge logistic regression, solved exactly.
    mlp: a network with two hidden layers, for rewards that are not linear in the features; the weights with the lowest
    loss on validation users are kept.

    Departures: an item's strength is a function of its features, where Bradley and Terry fit one for each item, and has
    a ridge. For `mlp`, width 64 and 1,000 steps at 3e-3 replace Few-shot Steerable's 256 and 50 or 450 at 1e-4 (C.1,
    C.2.1).
    """

    family = "control"
    paper = "Bradley and Terry 1952"
    version = 2

    head: Literal["linear", "mlp"] = "linear"
    hidden: int = 64  # width of each hidden layer; `mlp` only
    steps: int = 1000  # `mlp` only

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.hidden, self.steps) < 1:
            raise UserError("shared: hidden and steps must be at least 1", 'head = "linear" needs neither')

    def fit(self, train: Pairs, validation: Panel, run: Run) -> State:
        if self.head == "mlp":
            return train_reward_network(
                train, validation, 1, [self.hidden] * 2, bradley_terry_log_odds, self.steps, run
            )
        d = train.gap.shape[1]
        zero, nothing = torch.zeros(d, dtype=torch.float64), torch.zeros(d, 0, dtype=torch.float64)
        fits = [
            fit_map_weights(train.pooled(), zero, torch.tensor(scale, dtype=torch.float64))[0] for scale in PRIOR_SCALES
        ]
        return best_prior_on_validation([{"mean": weights, "root": nothing} for weights in fits], validation)

    def adapt(self, state: State, context: Pairs, run: Run) -> Users:
        return super().adapt(state, context, run) if self.head == "linear" else (torch.zeros(context.n_users, 0),)

    def reward(self, state: State, users: Users, items: Items, user: np.ndarray, item: np.ndarray) -> torch.Tensor:
        if self.head == "linear":
            return super().reward(state, users, items, user, item)
        return apply_reward_network(state, items, item).squeeze(1)

    def score(self, state: State, users: Users, query: Pairs) -> torch.Tensor:
        if self.head == "linear":
            return super().score(state, users, query)
        return bradley_terry_log_odds(
            apply_reward_network(state, query.items, query.left), apply_reward_network(state, query.items, query.right)
        )


def bradley_terry_log_odds(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Return float32[n]: log-odds that left is preferred, from rewards float32[n, 1]."""
    return (left - right).squeeze(1)


def apply_reward_network(state: State, items: Items, item: np.ndarray) -> torch.Tensor:
    """Return float32[n, outputs]: outputs of the network of `train_reward_network` for the given rows of items."""
    x = torch.from_numpy(items.known_features[item])
    return networks.apply_mlp(state, "net", (x - state["center"]) / state["scale"])


def train_reward_network(
    train: Pairs,
    validation: Panel,
    outputs: int,
    hidden: list[int],
    log_odds: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    steps: int,
    run: Run,
) -> State:
    """Train a network `net` with `outputs` per item on all pairs as if one person had judged them, by cross-entropy.

    Inputs are centred on the training items' mean, `center`, and divided by `scale`, the root of their features' mean
    variance. The weights with the lowest validation loss are kept.
    log_odds: returns the log-odds that left is preferred from both sides' outputs.
    """
    draw = run.generator("network")
    x = torch.from_numpy(train.items.known_features[np.stack([train.left, train.right])])
    center = x.mean((0, 1))
    scale = (x - center).square().mean().sqrt().clamp(min=1e-6)  # one scale for all features: rare features stay small
    x, y = (x - center) / scale, torch.from_numpy(train.label)
    frame = {"center": center, "scale": scale}
    net = networks.initial_mlp("net", [x.shape[2], *hidden, outputs], draw)

    def loss(step: int) -> torch.Tensor:
        rows = torch.randint(len(y), (512,), generator=draw)  # 512 pairs per step: more were slower and no better
        z = log_odds(*networks.apply_mlp(net, "net", x[:, rows]))
        return (softplus(z) - y[rows] * z).mean()

    def held_out(now: State) -> float:
        asked = validation.query
        sides = (apply_reward_network(frame | now, asked.items, side) for side in (asked.left, asked.right))
        z = log_odds(*sides).double().numpy()
        return mean_log_loss(fit_temperature_scale(z, asked.label) * z, asked.label)

    return frame | networks.train_network(net, loss, steps, 3e-3, run, held_out=held_out)
