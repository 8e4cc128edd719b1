"""Low-rank factors of users' weights: from moments (singular vectors), or fitted jointly by L-BFGS."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn.functional import softplus

from harness.data import Pairs
from harness.learning.linear import chunks_of_users, fit_map_weights, padded_gaps, times
from harness.method import Run


def mean_square_gap(pairs: Pairs) -> float:
    """Return the mean square of the gaps' entries, or 1 where all are zero."""
    return float(np.square(pairs.gap).mean()) or 1.0


def whitening_matrix(pairs: Pairs) -> torch.Tensor:
    """Return float64[d, d]: the symmetric square root of the inverse of E[x xT], where x are the pairs' gaps."""
    X = torch.from_numpy(pairs.gap).double()
    second = X.T @ X / len(X)
    second.diagonal().add_(1e-3 * mean_square_gap(pairs))  # ridge for features that never differ
    values, vectors = torch.linalg.eigh(second)
    return vectors * values.rsqrt() @ vectors.T


def moment_svd(train: Pairs) -> tuple[torch.Tensor, torch.Tensor]:
    """Factorise the users x pairs matrix of labels (1, -1; 0 where the user did not judge the pair) in feature space.

    Returns the singular values float64[r] with r = min(n_users, d), and weights float64[d, r]. The pairs' gaps times
    these weights are the right singular vectors, leading ones first, which are orthonormal over all pairs. The matrix is never formed:
    its product with the features is the sum of each user's signed gaps. Each row is divided by the root of its user's
    number of pairs, so that all rows are equally noisy.
    """
    whiten = whitening_matrix(train) / len(train) ** 0.5
    signed = torch.from_numpy(train.gap).double() * (2 * torch.from_numpy(train.label).double() - 1).unsqueeze(1)
    sums = torch.zeros(train.n_users, signed.shape[1], dtype=torch.float64)
    sums.index_add_(0, torch.from_numpy(train.user).long(), signed)
    counts = torch.from_numpy(np.diff(train.offsets)).clamp(min=1)
    _, singular, Vt = torch.linalg.svd(sums / counts.sqrt().unsqueeze(1) @ whiten, full_matrices=False)
    return singular, whiten @ Vt.T


def weights_in_basis(train: Pairs, basis: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return training users' MAP coordinates float64[n_users, r] in the rescaled basis, and that basis float64[d, r].

    basis: float64[d, r], which `scaled_to_unit_gaps` rescales.
    """
    basis = scaled_to_unit_gaps(train, basis)
    zero = torch.zeros(len(basis), dtype=basis.dtype)
    return fit_map_weights(train, zero, basis) @ torch.linalg.pinv(basis).T, basis


def random_factors(train: Pairs, rank: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw a random start for `fit_factors`: weights float[n_users, rank] and a basis float[d, rank].

    The basis is rescaled by `scaled_to_unit_gaps`.
    """
    basis = scaled_to_unit_gaps(train, torch.randn(train.gap.shape[1], rank, generator=generator))
    return torch.randn(train.n_users, rank, generator=generator), basis


def scaled_to_unit_gaps(train: Pairs, basis: torch.Tensor) -> torch.Tensor:
    """Rescale each column of the basis float[d, r] so that the pairs' gaps along that column have variance 1."""
    return basis / (torch.from_numpy(train.gap).to(basis) @ basis).square().mean(0).sqrt().clamp(min=1e-9)


def fit_factors(
    train: Pairs, weights: torch.Tensor, basis: torch.Tensor, decay: float, steps: int, run: Run, simplex: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Minimise the Bradley-Terry loss jointly over weights float[n_users, r] and basis float[d, r], by L-BFGS.

    Returns weights and basis as float64. An equal ridge on both is a nuclear-norm penalty on their product. Internally
    features are rescaled so that their gaps have mean square 1; L-BFGS does not converge otherwise.
    decay: strength of the ridge relative to the spectral norm of the labels' noise; one value suits few or many users.
    simplex: `weights` are logits and a user's weights are their softmax. The ridge penalises the logits, and the
        returned weights are on the simplex.
    """
    unit = mean_square_gap(train) ** 0.5
    n, n_users, d = len(train), train.n_users, len(basis)
    ridge = decay * noise_spectral_norm(n, n_users, d)
    chunks = [
        (users, (X / unit).float(), y.float(), mask.float())
        for users, part in chunks_of_users(train, d, lambda n: 1)
        for X, y, mask in [padded_gaps(part)]
    ]
    start = (weights, basis * unit)
    W, theta = (t.float().clone(memory_format=torch.contiguous_format).requires_grad_() for t in start)
    optimizer = torch.optim.LBFGS([W, theta], max_iter=steps, line_search_fn="strong_wolfe", tolerance_change=1e-8)

    def loss() -> torch.Tensor:
        """Compute users' weights in feature space first: the pairs are then read twice, not `r` times."""
        optimizer.zero_grad()
        in_features = (W.softmax(1) if simplex else W) @ theta.T
        total, slope = torch.zeros(()), torch.zeros(n_users, d)
        for users, X, y, mask in chunks:
            z = times(X, in_features.detach()[users])
            total += (mask * (softplus(z) - y * z)).sum()
            slope[users] = times(X.mT, mask * (torch.sigmoid(z) - y))
        penalty = ridge / 2 * (W.square().sum() + theta.square().sum())
        torch.autograd.backward([in_features, penalty], [slope / n, torch.tensor(1 / n)])
        total = (total + penalty.detach()) / n
        run.log(train_loss=total.item())
        return total

    optimizer.step(loss)
    return (W.softmax(1) if simplex else W).detach().double(), theta.detach().double() / unit


def noise_spectral_norm(n: int, n_users: int, d: int, variance: float = 1.0) -> float:
    """Approximate the spectral norm of the loss's gradient [n_users, d] when labels are pure noise.

    variance: the variance of the gaps' entries.
    """
    return 0.5 * (n / n_users * variance) ** 0.5 * (n_users**0.5 + d**0.5)  # sd of a label is 1/2
