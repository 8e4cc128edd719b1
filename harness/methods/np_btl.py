"""NP-BTL: a neural process that encodes a user's context pairs (Few-shot Steerable Alignment 2024, eq. 4-7)."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch.nn.functional import scaled_dot_product_attention, silu, softplus

from harness.errors import UserError
from harness.learning.amortised import AmortisedMethod, TrainingBatch, gaussian_divergence, pair_inputs, target_loss
from harness.learning.networks import apply_mlp, initial_mlp
from harness.method import State, Users

ATTENTION_HEADS = 8  # C.2


@dataclass(frozen=True)
class NpBtl(AmortisedMethod):
    """A neural process: z = h_2(sum_j h_1(winner_j, loser_j)) (eq. 5), and log-odds from rewards under z (eq. 4, 6, 7).

    encoder: `deepset` (C.1), or `attention` between the pairs of a context before the sum (eq. 21, C.2).
    latent: z is Gaussian (eq. 3) and training maximises the neural process's bound: the log-likelihood of the targets
    under z ~ q(z | context and targets), minus KL(q(z | context and targets) || q(z | context)). Rewards use the mean
    of q(z | context).

    Departures: h_2 is linear, where the paper's has two hidden layers: with those, training stays for thousands of steps
    where it reads nothing of the context (on `low_rank` with Dirichlet users, accuracy did not rise from 0 to 20
    answers). Targets are never among the context pairs, where the paper's targets include them (appendix C). A sum
    replaces eq. 5's mean, as in eq. 21, because the number of pairs carries certainty; contexts longer than in training
    count as their mean times the training length. Contexts have 0 to 20 pairs, the paper's 0 to 10, and their sizes are
    drawn per user, not per batch. There are 2,000 steps with Adam at 1e-3, warm-up and cosine, where the paper has 50 or
    450 at 1e-4. Width 64 replaces 256, and SiLU GELU. `attention` has no dropout, and an extra token for the empty
    context.
    """

    family = "network"
    paper = "Kobalczyk et al. 2024, Few-shot Steerable Alignment"
    version = 2
    encoder: Literal["deepset", "attention"] = "deepset"
    latent: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.encoder == "attention" and self.width % ATTENTION_HEADS:
            raise UserError(
                f"np_btl: width = {self.width} must be a multiple of {ATTENTION_HEADS}, the attention heads",
                "for example width = 64",
            )

    def initial_networks(self, d: int, generator: torch.Generator) -> State:
        w, k = self.width, self.latent_dim * (1 + self.latent)
        state = initial_mlp("pool", [w, k], generator)
        if self.encoder == "deepset":
            return state | initial_mlp("pair", [2 * d, w, w], generator)
        state |= initial_mlp("pair", [2 * d, w], generator) | initial_mlp("heads", [w, 3 * w], generator)
        return state | initial_mlp("mixed", [w, w], generator) | {"empty": torch.zeros(w)}

    def encode_users(self, state: State, shown: torch.Tensor, mask: torch.Tensor) -> Users:
        pooled = (self.encode_pairs(state, shown, mask) * mask.unsqueeze(2)).sum(1)
        longer = (mask.sum(1, keepdim=True) / self.context).clamp(min=1)
        z = apply_mlp(state, "pool", pooled / longer)
        if not self.latent:
            return (z,)
        mean, spread = z.chunk(2, 1)
        return mean, softplus(spread).square() + 1e-4  # the variance is never zero, so the KL is finite

    def encode_pairs(self, state: State, shown: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return float32[users, n, width]: the embedding of every pair, which with attention depends on the others."""
        pairs = apply_mlp(state, "pair", shown, silu)
        if self.encoder == "deepset":
            return pairs
        # an extra token, which defines attention also for an empty context
        pairs = torch.cat([pairs, state["empty"].expand(len(pairs), 1, -1)], 1)
        seen = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)[:, None, None]
        query, key, value = (
            apply_mlp(state, "heads", pairs).unflatten(2, (3, ATTENTION_HEADS, -1)).permute(2, 0, 3, 1, 4)
        )
        mixed = scaled_dot_product_attention(query, key, value, seen).transpose(1, 2).flatten(2)
        return apply_mlp(state, "mixed", mixed)[:, :-1]

    def training_loss(self, state: State, batch: TrainingBatch, draw: torch.Generator) -> torch.Tensor:
        if not self.latent:
            return target_loss(state, batch, *self.encode_users(state, batch.shown, batch.mask))
        prior = self.encode_users(state, batch.shown, batch.mask)
        everything = torch.cat([batch.shown, pair_inputs(batch.asked, batch.label)], 1)
        mean, variance = self.encode_users(state, everything, torch.cat([batch.mask, batch.weight > 0], 1))
        z = mean + variance.sqrt() * torch.randn(mean.shape, generator=draw)
        per_target = len(mean) / (batch.weight > 0).sum()
        return target_loss(state, batch, z) + gaussian_divergence(mean, variance, *prior) * per_target
