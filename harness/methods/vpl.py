"""Variational preference learning: a network infers a Gaussian posterior of each user's latent (Poddar et al. 2024)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn.functional import silu

from harness.errors import UserError
from harness.learning.amortised import AmortisedMethod, TrainingBatch, gaussian_divergence, target_loss
from harness.learning.networks import apply_mlp, initial_mlp
from harness.method import State, Users
from harness.search_space import SearchSpace, Span


@dataclass(frozen=True)
class Vpl(AmortisedMethod):
    """Personalizing RLHF with Variational Preference Learning (Poddar et al. 2024, section 4: the ELBO).

    Training minimises E_q(z | context)[-log sigmoid(r(winner, z) - r(loser, z))] + beta KL(q || N(0, I)), with z drawn
    by reparametrisation. Adaptation is one pass of the encoder; rewards use the posterior's mean.

    Departures: encoder and decoder read given features, where the paper's language experiments have a language model's.
    q is a product of the prior and one Gaussian factor per context pair, so that an empty context gives the prior
    itself and more pairs give a narrower posterior (the paper's encoder pools pairs by attention). The decoder predicts
    other pairs of the same user, as in the paper's language experiments. Contexts have 0 to `context` pairs. The
    weights with the lowest loss on validation users are kept.
    """

    family = "network"
    paper = "Poddar et al. 2024, VPL"
    search_space: ClassVar[SearchSpace] = AmortisedMethod.search_space | {"beta": Span(1e-4, 0.1)}

    beta: float = 0.001  # weight of the KL against the loss per target, both in nats

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.beta < 0:
            raise UserError(f"vpl: beta = {self.beta} must be 0 or more", "beta = 0 leaves out the KL")

    def initial_networks(self, d: int, generator: torch.Generator) -> State:
        return initial_mlp("pair", [2 * d, self.width, 2 * self.latent_dim], generator)

    def encode_users(self, state: State, shown: torch.Tensor, mask: torch.Tensor) -> Users:
        """Return the mean and variance float32[users, latent_dim] of each user's posterior."""
        shift, log_precision = apply_mlp(state, "pair", shown, silu).chunk(2, 2)
        there = mask.unsqueeze(2)
        variance = 1 / (1 + (log_precision.exp() * there).sum(1))
        return variance * (shift * there).sum(1), variance

    def training_loss(self, state: State, batch: TrainingBatch, draw: torch.Generator) -> torch.Tensor:
        mean, variance = self.encode_users(state, batch.shown, batch.mask)
        z = mean + variance.sqrt() * torch.randn(mean.shape, generator=draw)
        return target_loss(state, batch, z) + self.beta * gaussian_divergence(
            mean, variance, torch.zeros(()), torch.ones(())
        )
