"""Reward-feature model: shared features and user weights learned jointly (Barreto et al. 2025, eq. 5-8)."""

from dataclasses import dataclass

import torch
from torch.nn.functional import softplus

from harness.data import Pairs, Panel
from harness.linear import SCALES, LinearMethod, best_on_validation, empirical_prior
from harness.method import Run, State


@dataclass(frozen=True)
class Rfm(LinearMethod):
    """r_h(x, y) = <phi(x, y), w_h> with phi linear in the item's features.

    Training minimises the Bradley-Terry loss over the features and all training users' weights jointly (eq. 7), with an
    equal ridge on both, which is a nuclear-norm penalty on their product; it is set relative to the spectral norm of
    the labels' noise, so that one `decay` suits few people and many. Adaptation freezes the features and solves for w
    (eq. 8). Departure: w has the training users' own prior (James-Stein mean, second moment); the paper has none.
    """

    dim: int = 32
    decay: float = 0.12  # of the noise's spectral norm; chosen on validation users of `low_rank` and `snacks`
    steps: int = 200

    def fit(self, train: Pairs, validation: Panel, run: Run) -> State:
        X, y = torch.from_numpy(train.gap), torch.from_numpy(train.label)
        user = torch.from_numpy(train.user).long()
        (n, d), n_users = X.shape, train.n_users
        noise = 0.5 * (n / n_users * float(X.square().mean())) ** 0.5 * (n_users**0.5 + d**0.5)  # sd of a label is 1/2
        draw = run.generator("rfm")
        theta = (torch.randn(d, self.dim, generator=draw) / d**0.5).requires_grad_()
        W = (0.1 * torch.randn(n_users, self.dim, generator=draw)).requires_grad_()
        optimizer = torch.optim.Adam([theta, W], lr=0.02)
        for _ in range(self.steps):
            optimizer.zero_grad()
            z = ((X @ theta) * W[user]).sum(1)
            loss = (softplus(z) - y * z).sum() + self.decay * noise / 2 * (W.square().sum() + theta.square().sum())
            (loss / n).backward()
            optimizer.step()
            run.log(train_loss=loss.item() / n)
        mean, root = empirical_prior(W.detach().double(), theta.detach().double())
        return best_on_validation([{"mean": mean, "root": scale * root} for scale in SCALES], validation)
