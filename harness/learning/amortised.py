"""Amortised methods: one network encodes a user's context pairs, another computes an item's reward for that user."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch.nn.functional import binary_cross_entropy_with_logits, silu

from harness.data import Items, Pairs, Panel
from harness.errors import UserError
from harness.learning.networks import apply_mlp, initial_mlp
from harness.learning.networks import train_network as minimise
from harness.method import Method, Run, State, TaskFacts, Users
from harness.scores.metrics import fit_temperature_scale, mean_log_loss
from harness.search_space import OneOf, SearchSpace, Span


class TrainingBatch(NamedTuple):
    """The users of one training step: their contexts, and the target pairs to predict."""

    shown: torch.Tensor  # float32[users, n, 2d], see `pair_inputs`
    mask: torch.Tensor  # bool[users, n], False for padding
    asked: torch.Tensor  # float32[users, m, 2, d], standardised items
    label: torch.Tensor  # float32[users, m]
    weight: torch.Tensor  # float32[users, m], 0 for padding; sums to 1


@dataclass(frozen=True)
class AmortisedMethod(Method):
    """A method with reward(x, z) = MLP_2([MLP_1(x) || z]) and a latent z that is encoded from the context.

    Few-shot Steerable Alignment, C.1. As MLP_1 ends and MLP_2 begins with a linear layer, this is computed as
    reward(silu(item(x) + user(z))), with networks `reward`, `item` and `user` in the state. A subclass defines how z is encoded (`initial_networks`, `encode_users`) and the loss
    (`training_loss`). Each step draws users and, for each of them, a context of 0 to `context` pairs and up to
    `targets` other pairs. Items are centred and scaled so that the mean variance of their features is 1. The weights
    with the lowest validation loss are kept (C.1).
    """

    search_space: ClassVar[SearchSpace] = {
        "width": OneOf((32, 64, 128)),  # multiples of the attention heads of `np_btl`
        "latent_dim": Span(4, 64, whole=True),
        "context": Span(5, 40, whole=True),
        "steps": Span(500, 3000, whole=True),
        "rate": Span(3e-4, 1e-2),
    }

    width: int = 64  # paper: 256; on `two_modes` 64 is as close to the Bayes score as 96, in two thirds of the time
    latent_dim: int = 32  # chosen, like all that follows, on validation users of `two_modes`, `low_rank` and `raters`
    context: int = 20
    targets: int = 10
    users_per_step: int = 32
    steps: int = 2000
    rate: float = 1e-3  # at higher ones the networks overfit the 500 people of `low_rank`

    def __post_init__(self) -> None:
        super().__post_init__()
        counts = (self.width, self.latent_dim, self.context, self.targets, self.users_per_step, self.steps)
        if min(counts) < 1 or self.rate <= 0:
            raise UserError(
                f"{self.name}: width, latent_dim, context, targets, users_per_step, steps must be 1 or more, rate above 0",
                f"for example context = {type(self).context}, steps = {type(self).steps}, rate = {type(self).rate}",
            )

    def initial_networks(self, d: int, generator: torch.Generator) -> State:
        """Draw the networks that `encode_users` applies, for items of d features."""
        raise NotImplementedError

    def encode_users(self, state: State, shown: torch.Tensor, mask: torch.Tensor) -> Users:
        """Encode contexts as tensors with a row per user; the first is the latent float32[users, latent_dim].

        shown: float32[users, n, 2d], see `pair_inputs`.  mask: bool[users, n], False for padding.
        """
        raise NotImplementedError

    def training_loss(self, state: State, batch: TrainingBatch, draw: torch.Generator) -> torch.Tensor:
        """Return the loss of a training step in nats, averaged over its targets."""
        raise NotImplementedError

    def refuses(self, task: TaskFacts) -> str | None:
        return "needs items with numeric features" if task.feature_dim is None else super().refuses(task)

    def fit(self, train: Pairs, validation: Panel, run: Run) -> State:
        draw = run.generator(self.name)
        used, row = np.unique(np.stack([train.left, train.right], 1), return_inverse=True)
        features = torch.from_numpy(train.items.known_features[used])
        mean = features.mean(0)
        frame = {"mean": mean, "scale": (features - mean).square().mean().sqrt().clamp(min=1e-6)}
        d, w = len(mean), self.width
        state = self.initial_networks(d, draw) | initial_mlp("item", [d, w, w], draw)
        state |= initial_mlp("user", [self.latent_dim, w], draw) | initial_mlp("reward", [w, 1], draw)
        episodes = self.training_batches(
            train, standardise(frame, features), torch.from_numpy(row.reshape(-1, 2)), draw
        )
        return frame | minimise(
            state,
            lambda step: self.training_loss(state, next(episodes), draw),
            self.steps,
            self.rate,
            run,
            held_out=lambda now: self.validation_loss(frame | now, validation, run),
        )

    def training_batches(
        self, train: Pairs, items: torch.Tensor, sides: torch.Tensor, draw: torch.Generator
    ) -> Iterator[TrainingBatch]:
        """Yield batches without end. For each batch users' pairs are shuffled again, and the first few are the context.

        items: float32[n, d], standardised.  sides: int64[pairs, 2], rows of `items`.
        """
        label, start = torch.from_numpy(train.label), torch.from_numpy(train.offsets[:-1])
        count = torch.from_numpy(np.diff(train.offsets))
        slot = torch.arange(int(count.max()))
        n, m = min(self.context, len(slot) - 1), min(self.targets, len(slot))
        while True:
            user = torch.randint(train.n_users, (self.users_per_step,), generator=draw)
            own = count[user].unsqueeze(1)
            key = torch.rand(len(user), len(slot), generator=draw).masked_fill_(slot >= own, 2.0)
            order = key.topk(min(n + m, len(slot)), largest=False).indices
            # 0..n context pairs, with at least one pair left as a target
            size = (torch.rand(len(user), 1, generator=draw) * own.clamp(max=n + 1)).long()
            target = size + slot[:m]
            there = target < own
            order = torch.cat([order[:, :n], order.gather(1, target.clamp(max=order.shape[1] - 1))], 1)
            rows = (start[user].unsqueeze(1) + order).clamp(max=len(label) - 1)
            x, y = items[sides[rows]], label[rows]
            yield TrainingBatch(
                pair_inputs(x[:, :n], y[:, :n]), slot[:n] < size, x[:, n:], y[:, n:], there / there.sum()
            )

    def adapt(self, state: State, context: Pairs, run: Run) -> Users:
        n = int(np.diff(context.offsets).max(initial=0))
        rows = torch.from_numpy(np.minimum(context.offsets[:-1, None] + np.arange(n), max(len(context) - 1, 0)))
        mask = torch.from_numpy(np.arange(n) < np.diff(context.offsets)[:, None])
        sides = torch.from_numpy(np.stack([context.left, context.right], 1).astype(np.int64))[rows]
        x = standardise(state, torch.from_numpy(context.items.known_features)[sides])
        return self.encode_users(state, pair_inputs(x, torch.from_numpy(context.label)[rows]), mask)

    def reward(self, state: State, users: Users, items: Items, user: np.ndarray, item: np.ndarray) -> torch.Tensor:
        x = standardise(state, torch.from_numpy(items.known_features[item]))
        return item_rewards(state, x, apply_mlp(state, "user", users[0])[torch.from_numpy(user).long()])

    def validation_loss(self, state: State, validation: Panel, run: Run) -> float:
        """Return the sum of calibrated log losses on validation users with 0, 1/8, 1/4, 1/2 and all of the context."""
        shots, query = int(np.diff(validation.context.offsets).max(initial=0)), validation.query
        total = 0.0
        for n in {0, shots // 8, shots // 4, shots // 2, shots}:
            z = self.score(state, self.adapt(state, validation.context.first(n), run), query).numpy()
            total += mean_log_loss(fit_temperature_scale(z, query.label) * z, query.label)
        return total


def standardise(state: State, features: torch.Tensor) -> torch.Tensor:
    """Centre items' features float32[..., d] and scale them to mean variance 1."""
    return (features - state["mean"]) / state["scale"]


def pair_inputs(x: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """Return float32[..., 2d] for pairs of items float32[..., 2, d]: their midpoint, and their gap times 2y - 1.

    For hard labels this is a linear map of (winner, loser); a soft label shortens the gap. Exchanging left and right
    (and the label) changes nothing.
    """
    left, right = x.unbind(-2)
    return torch.cat([(left + right) / 2, (left - right) * (2 * label - 1).unsqueeze(-1)], -1)


def item_rewards(state: State, x: torch.Tensor, user: torch.Tensor) -> torch.Tensor:
    """Return float32[...]: the reward of standardised items float32[..., d] for embedded users float32[..., width]."""
    return apply_mlp(state, "reward", silu(apply_mlp(state, "item", x, silu) + user)).squeeze(-1)


def target_loss(state: State, batch: TrainingBatch, z: torch.Tensor) -> torch.Tensor:
    """Return the mean Bradley-Terry loss of the targets under latents float32[users, latent_dim], in nats."""
    user = apply_mlp(state, "user", z)[:, None, None]
    left, right = item_rewards(state, batch.asked, user).unbind(-1)
    return binary_cross_entropy_with_logits(left - right, batch.label, batch.weight, reduction="sum")


def gaussian_divergence(
    mean: torch.Tensor, variance: torch.Tensor, other_mean: torch.Tensor, other_variance: torch.Tensor
) -> torch.Tensor:
    """Return KL(N(mean, variance) || N(other_mean, other_variance)) in nats: sum over dimensions, mean over users."""
    ratio = variance / other_variance
    return 0.5 * (ratio + (mean - other_mean).square() / other_variance - 1 - ratio.log()).sum(1).mean()
