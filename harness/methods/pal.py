"""PAL: every user is an ideal point, a mixture of K prototypes, and prefers items near it (Chen et al. 2024)."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch.nn.functional import softplus

from harness.data import Items, Pairs, Panel
from harness.errors import UserError
from harness.learning.linear import padded_rows
from harness.learning.networks import apply_mlp, initial_mlp, train_network
from harness.learning.priors import best_prior_on_validation, fit_simplex_weights, mixture_priors
from harness.method import Method, Run, State, TaskFacts, Users
from harness.search_space import OneOf, SearchSpace, Span


@dataclass(frozen=True)
class Pal(Method):
    """Pluralistic alignment: a user's ideal point a_i = sum_k w_ik p_k mixes K prototypes, with w_i on the simplex.

    The reward is -|f(x) - a_i|^2 for `variant = "distance"` (model A of the paper), and <f(x), a_i> for "angle" (model
    B). f is linear, or an MLP with one hidden layer of `hidden` units. Adam trains f, the prototypes and the logits of
    the weights together. For a new user only w is fitted, a convex problem, because a pair's log-odds are linear in w
    in both variants.

    Departures: f maps given features, where the paper's is on top of a pretrained model, and it is one f for prompt and
    response together. There is no temperature, because f can have any scale. New users' weights have the training
    users' Gaussian prior, with a scale chosen on validation users.
    """

    family = "network"
    paper = "Chen et al. 2024, PAL"
    version = 2
    search_space: ClassVar[SearchSpace] = {
        "variant": OneOf(("distance", "angle")),
        "prototypes": Span(2, 64, whole=True),
        "dim": Span(2, 64, whole=True),
        "hidden": OneOf((0, 32, 128)),
        "steps": Span(300, 3000, whole=True),
        "rate": Span(0.002, 0.1),
    }

    variant: Literal["distance", "angle"] = "distance"
    prototypes: int = 16  # K
    dim: int = 16  # of the space of ideal points
    hidden: int = 0
    steps: int = 1200
    batch: int = 256
    rate: float = 0.02

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.prototypes, self.dim, self.steps, self.batch) < 1 or self.hidden < 0 or self.rate <= 0:
            raise UserError(
                "pal: prototypes, dim, steps and batch must be 1 or more, hidden 0 or more, rate above 0",
                "hidden = 0 is linear",
            )

    def refuses(self, task: TaskFacts) -> str | None:
        return "needs items with numeric features" if task.feature_dim is None else super().refuses(task)

    def fit(self, shown: Pairs, validation: Panel, run: Run) -> State:
        draw = run.generator("pal")
        d = shown.items.known_features.shape[1]
        state = initial_mlp("map", [d, self.hidden, self.dim] if self.hidden else [d, self.dim], draw)
        state["prototypes"] = torch.randn(self.prototypes, self.dim, generator=draw)
        state["logits"] = torch.zeros(shown.n_users, self.prototypes)
        x = torch.from_numpy(shown.items.known_features[np.stack([shown.left, shown.right])])
        center = x.mean((0, 1))
        # with this scale the items of a pair differ by about 1 in a feature
        scale = (2 * (x - center).square().mean()).sqrt().clamp(min=1e-6)
        x, y, user = (x - center) / scale, torch.from_numpy(shown.label), torch.from_numpy(shown.user).long()

        def loss(step: int) -> torch.Tensor:
            rows = torch.randint(len(y), (self.batch,), generator=draw)
            slope, offset = self.log_odds_parts(state, *x[:, rows])
            z = (slope * state["logits"][user[rows]].softmax(1)).sum(1) + offset
            return (softplus(z) - y[rows] * z).mean()

        state = train_network(state, loss, self.steps, self.rate, run)
        state["map.0.weight"] = state["map.0.weight"] / scale  # from here on f takes raw features
        state["map.0.bias"] = state["map.0.bias"] - state["map.0.weight"] @ center
        weights = state.pop("logits").softmax(1).double()
        priors = [state | prior for prior in mixture_priors(weights)]
        return best_prior_on_validation(
            priors, validation, lambda prior, c: self.score(prior, self.adapt(prior, c, run), validation.query)
        )

    def log_odds_parts(
        self, state: State, left: torch.Tensor, right: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return slope float32[n, K] and offset float32[n]: the log-odds of the pairs are slope w + offset.

        left, right: float32[n, d], features of both items.
        """
        left, right = apply_mlp(state, "map", left), apply_mlp(state, "map", right)
        slope = (left - right) @ state["prototypes"].T
        if self.variant == "angle":
            return slope, torch.zeros(len(slope))
        return 2 * slope, right.square().sum(1) - left.square().sum(1)

    def adapt(self, state: State, context: Pairs, run: Run) -> Users:
        if not len(context):
            return (state["mean"].repeat(context.n_users, 1),)
        sides = (torch.from_numpy(context.items.known_features[side]) for side in (context.left, context.right))
        slope, offset = (part.double() for part in self.log_odds_parts(state, *sides))
        y = torch.from_numpy(context.label).double()
        Z, y, mask, offset = padded_rows(context, slope, y, torch.ones_like(y), offset)
        return (fit_simplex_weights(Z, y, mask, offset, state),)

    def reward(self, state: State, users: Users, items: Items, user: np.ndarray, item: np.ndarray) -> torch.Tensor:
        place = apply_mlp(state, "map", torch.from_numpy(items.known_features[item])).double()
        ideal = (users[0] @ state["prototypes"].double())[torch.from_numpy(user).long()]
        return -(place - ideal).square().sum(1) if self.variant == "distance" else (place * ideal).sum(1)
