"""Mixtures of Gaussians over users' weights: every user's posterior, and the mixture's fit by variational EM."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch.nn.functional import softplus

from harness.data import Pairs
from harness.learning.linear import chunks_of_users, padded_gaps, times
from harness.method import Run

# Points of the Gauss-Hermite rule over a pair's log-odds: the mean of a sigmoid is right to 1e-3 where the standard
# deviation is 3, and to .02 where it is 10.
NODES, NODE_WEIGHTS = (torch.from_numpy(x) for x in np.polynomial.hermite_e.hermegauss(8))
NODE_WEIGHTS = NODE_WEIGHTS / NODE_WEIGHTS.sum()
LATER_ROUNDS = 1  # of Newton's method, from the posteriors of the EM step before
MAX_ROUNDS = 20  # from the prior; 5 to 10 are enough
ROUND_TOLERANCE = 0.01  # log-odds: Newton's method ends at a smaller step


class Mixture(NamedTuple):
    """A mixture of K Gaussians N(means[k], root rootT) over users' weights, with one covariance for all."""

    means: torch.Tensor  # float64[K, d]
    root: torch.Tensor  # float64[d, d], lower triangular
    log_shares: torch.Tensor  # float64[K]: log of each component's share of the users


class Posteriors(NamedTuple):
    """Gaussian approximations of all users' posteriors under each component of a mixture."""

    weights: torch.Tensor  # float64[K, n_users, d]: posterior means
    shares: torch.Tensor  # float64[n_users, K]: posterior probabilities of the components
    covariance: torch.Tensor  # float64[d, d]: sum over users of the posterior covariance, averaged over components
    variances: list[torch.Tensor]  # for each chunk of users, float64[K, users, n]: posterior variances of log-odds


class Gaussians(NamedTuple):
    """Gaussians N(v, H^-1) over whitened weights, one for each user of a chunk."""

    v: torch.Tensor  # float64[users, d]
    variance: torch.Tensor  # float64[users, n]: of the log-odds of each of the user's pairs
    evidence: torch.Tensor  # float64[users]: lower bound of the log-likelihood of the user's answers
    # Dual: float64[users, n, d], A with H^-1 = I - AT A. Primal: float64[users, d, d], the Cholesky factor of H.
    factor: torch.Tensor
    dual: bool

    def sum_of_covariances(self, share: torch.Tensor) -> torch.Tensor:
        """Return float64[d, d]: the sum of H^-1 over users, weighted by share float64[users]."""
        if not self.dual:
            return torch.einsum("u,urs->rs", share, torch.cholesky_inverse(self.factor))
        rows = (self.factor * share.sqrt()[:, None, None]).flatten(0, 1)
        return share.sum() * torch.eye(rows.shape[1], dtype=rows.dtype) - rows.T @ rows


def mixture_posteriors(
    pairs: Pairs, mixture: Mixture, start: Posteriors | None = None, haste: float = 0.0
) -> Posteriors:
    """Return the posteriors of all users under each component.

    start: posteriors of the same pairs under a similar mixture.  haste: see `answer_weights`.
    """
    n_users, d = pairs.n_users, mixture.means.shape[1]
    weights = mixture.means.unsqueeze(1).repeat(1, n_users, 1) if start is None else start.weights.clone()
    evidence = mixture.log_shares.repeat(n_users, 1)
    covariance, variances = torch.zeros(d, d, dtype=weights.dtype), []
    unasked = n_users
    for number, (users, part) in enumerate(chunks_of_users(pairs, d, lambda n: min(n, d))):
        X, y, mask = padded_gaps(part, haste)
        Z, found = X @ mixture.root, []
        for k, mean in enumerate(mixture.means):
            if start is None:
                v, variance = Z.new_zeros(len(Z), d), Z.square().sum(2)
            else:
                v = torch.linalg.solve_triangular(mixture.root, (weights[k, users] - mean).T, upper=False).T
                variance = start.variances[number][k]
            rounds = MAX_ROUNDS if start is None else LATER_ROUNDS
            found.append(fit_gaussians(Z, y, mask, X @ mean, v, variance, rounds))
            weights[k, users] = mean + found[k].v @ mixture.root.T
            evidence[users, k] += found[k].evidence
        share = evidence[users].softmax(1)
        covariance += sum(each.sum_of_covariances(share[:, k]) for k, each in enumerate(found))
        variances.append(torch.stack([each.variance for each in found]))
        unasked -= len(users)
    covariance.diagonal().add_(unasked)
    return Posteriors(weights, evidence.softmax(1), mixture.root @ covariance @ mixture.root.T, variances)


def fit_gaussians(
    Z: torch.Tensor,
    y: torch.Tensor,
    mask: torch.Tensor,
    offset: torch.Tensor,
    v: torch.Tensor,
    variance: torch.Tensor,
    rounds: int,
) -> Gaussians:
    """Return the variational Gaussians of users' posteriors (Opper and Archambeau 2009), under the prior N(0, I).

    The Gaussian nearest to a posterior in Kullback-Leibler divergence is where Newton's method ends if the loss's
    gradient and Hessian are averaged over the Gaussian itself. (A Laplace approximation takes them at the mode, and
    underestimates the weights of users with few answers, whose posteriors are skewed away from zero.)
    Z: float64[users, n, d].  y, mask, offset: float64[users, n]; mask is 0 for rows that do not exist.
    v, variance: where to start, see Gaussians.
    """
    dual = Z.shape[1] < Z.shape[2]
    kernel = Z @ Z.mT if dual else None
    z = offset + times(Z, v)
    for _ in range(rounds):
        p = (z.unsqueeze(-1) + variance.sqrt().unsqueeze(-1) * NODES).sigmoid_()
        slope = (p * (1 - p)) @ NODE_WEIGHTS * mask
        gradient = times(Z.mT, (p @ NODE_WEIGHTS - y) * mask) + v
        half = slope.sqrt().unsqueeze(2)
        A = Z * half
        matrix = kernel * half * half.mT if kernel is not None else A.mT @ A
        matrix.diagonal(dim1=1, dim2=2).add_(1.0)
        cholesky = torch.linalg.cholesky_ex(matrix)[0]
        if kernel is not None:
            A = torch.linalg.solve_triangular(cholesky, A, upper=False)
            dv = times(A.mT, times(A, gradient)) - gradient
            after = (kernel.diagonal(dim1=1, dim2=2) - (Z @ A.mT).square().sum(2)).clamp(min=0)
        else:
            dv = -torch.cholesky_solve(gradient.unsqueeze(2), cholesky).squeeze(2)
            after = torch.linalg.solve_triangular(cholesky, Z.mT, upper=False).square().sum(1)
        dz = times(Z, dv)
        # The averaged loss is close to a parabola over 1 + one standard deviation, so a step of three of them is safe.
        size = (dz.abs() / (1 + variance.sqrt())).amax(1, keepdim=True)
        step = 3 / size.clamp(min=3)
        v, z, variance = v + step * dv, z + step * dz, after
        if (step * dz).abs().max() < ROUND_TOLERANCE:
            break
    at = z.unsqueeze(-1) + variance.sqrt().unsqueeze(-1) * NODES
    loss = ((softplus(at) @ NODE_WEIGHTS - y * z) * mask).sum(1)
    # KL from the prior: the trace of H^-1 is d - sum of slope * variance
    log_determinant = 2 * cholesky.diagonal(dim1=1, dim2=2).log().sum(1)
    divergence = (v.square().sum(1) - (slope * variance).sum(1) + log_determinant) / 2
    return Gaussians(v, variance, -loss - divergence, A if dual else cholesky, dual)


def fit_mixture(
    pairs: Pairs, start: Mixture, steps: int, run: Run, posteriors: Posteriors | None = None
) -> tuple[Mixture, Posteriors]:
    """Fit a mixture to all users' pairs by EM; return it, and the users' posteriors from the last E step.

    The covariance has an inverse-Wishart prior with the weight of d people, centred on sigma^2 I: with few people, plain
    EM overfits it.
    posteriors: of the same pairs under one Gaussian, if known, from which those under each component start.
    """
    mixture = start
    if posteriors is not None:
        K = len(start.means)
        copies = [variance.expand(K, -1, -1) for variance in posteriors.variances]
        posteriors = posteriors._replace(weights=posteriors.weights.expand(K, -1, -1), variances=copies)
    n_users, d = pairs.n_users, start.means.shape[1]
    for _ in range(steps):
        posteriors = mixture_posteriors(pairs, mixture, posteriors)
        share = posteriors.shares.T.unsqueeze(2)
        # one person's worth in each component, so that none vanishes
        means = ((share * posteriors.weights).sum(1) + mixture.means) / (share.sum(1) + 1)
        spread = ((posteriors.weights - means.unsqueeze(1)) * share.sqrt()).flatten(0, 1)
        total = spread.T @ spread + posteriors.covariance
        covariance = (total + total.trace() / n_users * torch.eye(d, dtype=total.dtype)) / (n_users + d)
        shares = (posteriors.shares.sum(0) + 1) / (n_users + len(means))
        mixture = Mixture(means, torch.linalg.cholesky(covariance), shares.log())
        run.log(sd=float((covariance.trace() / d).sqrt()))
    assert posteriors is not None
    return mixture, posteriors
