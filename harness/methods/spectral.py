"""SVD of per-user mean moments, then ridge in the leading directions: the control for every low-rank method."""

from dataclasses import dataclass

import numpy as np
import torch

from harness.data import Pairs, Panel
from harness.linear import SCALES, LinearMethod, best_on_validation, empirical_prior, map_weights
from harness.method import Run, State


@dataclass(frozen=True)
class Spectral(LinearMethod):
    """Closed form but for the last step.

    A user's moment is the mean of (label - 1/2) x over his pairs, x the features' gap; whitened by the gaps' second
    moment it estimates his weights up to a factor. The leading right singular vectors of all users' moments span the
    subspace; the prior inside it is that of the training users' own ridge answers there.
    """

    rank: int = 8

    def fit(self, train: Pairs, validation: Panel, run: Run) -> State:
        X = torch.from_numpy(train.gap).double()
        n, d = X.shape
        counts = torch.from_numpy(np.diff(train.offsets)).double().clamp(min=1)
        signed = X * (torch.from_numpy(train.label).double() - 0.5).unsqueeze(1)
        moments = torch.zeros(train.n_users, d, dtype=torch.float64)
        moments.index_add_(0, torch.from_numpy(train.user).long(), signed)
        second = X.T @ X / n
        second.diagonal().add_(1e-3 * second.diagonal().mean())  # features that never differ have no moment
        values, vectors = torch.linalg.eigh(second)
        whiten = vectors * values.rsqrt() @ vectors.T
        directions = torch.linalg.svd(moments / counts.sqrt().unsqueeze(1) @ whiten, full_matrices=False).Vh
        basis = whiten @ directions[: self.rank].T
        own = map_weights(train, torch.zeros(d, dtype=torch.float64), 2 * basis)
        mean, root = empirical_prior(own @ torch.linalg.pinv(basis).T, basis)
        return best_on_validation([{"mean": mean, "root": scale * root} for scale in SCALES], validation)
