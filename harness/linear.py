"""Linear rewards: a Gaussian prior over user weights, and the batched solver that adapts every user at once.

A linear method says reward(u, i) = <features_i, w_u> and differs from the others only in the prior N(mean, root rootT)
that its `fit` learns. Adaptation is the maximum a posteriori weight under the Bradley-Terry likelihood: for each user
a convex logistic regression.
"""

from __future__ import annotations

import numpy as np
import torch
from torch.nn.functional import softplus

from harness.data import Items, Pairs, Panel
from harness.method import Manifest, Method, Run, State, Users
from harness.metrics import log_loss, temperature_scale

CACHE = 2**20  # bytes of Hessians per chunk of users: they are read every step, so they stay in a core's own cache
MEMORY = 2**24  # bytes of float64 features per chunk of users: they are read twice in the dual, so they need not
TOLERANCE = 1e-4  # last Newton step in log-odds; convergence is quadratic, so what remains is about its square
STEPS = 100  # Newton needs 4 to 12; the bound only guards against a bug


class LinearMethod(Method):
    """A method whose state is {"mean": float64[d], "root": float64[d, r], or a scalar standing for root * identity}."""

    def refuses(self, task: Manifest) -> str | None:
        return "needs items with numeric features" if task.feature_dim is None else super().refuses(task)

    def adapt(self, state: State, context: Pairs, run: Run) -> Users:
        return (map_weights(context, state["mean"], state["root"]),)

    def reward(self, state: State, users: Users, items: Items, user: np.ndarray, item: np.ndarray) -> torch.Tensor:
        features = torch.from_numpy(items.features[item]).to(users[0])
        return torch.einsum("nd,nd->n", features, users[0][torch.from_numpy(user).long()])

    def score(self, state: State, users: Users, query: Pairs) -> torch.Tensor:
        return dot(torch.from_numpy(query.gap), users[0], query)


def map_weights(context: Pairs, mean: torch.Tensor, root: torch.Tensor) -> torch.Tensor:
    """float64[n_users, d]: every user's maximum a posteriori weights under w ~ N(mean, root rootT).

    Minimises, for each user, sum_i [softplus(z_i) - y_i z_i] + |v|^2 / 2 with z = X w and w = mean + root v; labels y
    may be soft. Users without pairs get exactly `mean`. Works through chunks of users that fit the cache, in the
    primal (r x r) or the dual (n x n), whichever is smaller. Never holds more than one chunk of features.
    """
    d = len(mean)
    weights = mean.repeat(context.n_users, 1)
    counts = np.diff(context.offsets)
    if not len(context) or root.ndim == 2 and root.shape[1] == 0:
        return weights
    n, r = int(counts.max()), d if root.ndim == 0 else root.shape[1]
    per_chunk = max(1, min(CACHE // (8 * min(n, r) ** 2), MEMORY // (8 * n * d)))
    for start in range(0, context.n_users, per_chunk):
        part = context.chunk(start, min(start + per_chunk, context.n_users))
        if not len(part):
            continue
        X, y, mask = padded(part)
        offset = X @ mean if mean.any() else torch.zeros_like(y)
        Z = X.mul_(root) if root.ndim == 0 else X @ root
        v = newton_dual(Z, y, mask, offset) if n < r else newton_primal(Z, y, mask, offset)
        weights[start : start + len(X)] += v * root if root.ndim == 0 else v @ root.T
    return weights


def padded(pairs: Pairs) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gaps float64[users, n, d], labels and mask float64[users, n]; users with fewer than n pairs get empty rows."""
    counts = np.diff(pairs.offsets)
    n = int(counts.max())
    X = torch.from_numpy(pairs.gap).double()
    y = torch.from_numpy(pairs.label).double()
    if (counts == n).all():
        shape = (len(counts), n)
        return X.view(*shape, X.shape[1]), y.view(shape), torch.ones(shape, dtype=torch.float64)
    rows = torch.from_numpy(pairs.user * np.int64(n) + pairs.rank)
    full = torch.zeros(len(counts) * n, X.shape[1], dtype=torch.float64).index_copy_(0, rows, X)
    label, mask = torch.zeros(2, len(counts) * n, dtype=torch.float64)
    label[rows], mask[rows] = y, 1.0
    return full.view(len(counts), n, -1), label.view(-1, n), mask.view(-1, n)


def newton_primal(X: torch.Tensor, y: torch.Tensor, mask: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
    """float64[users, d]: argmin over v of the logistic loss of offset + X v, plus |v|^2 / 2."""
    v = X.new_zeros(X.shape[0], X.shape[2])
    z = offset
    loss = (mask * (softplus(z) - y * z)).sum(1)
    for _ in range(STEPS):
        p = torch.sigmoid(z)
        gradient = (((p - y) * mask).unsqueeze(1) @ X).squeeze(1) + v
        hessian = (X * (p * (1 - p) * mask).unsqueeze(2)).mT @ X
        hessian.diagonal(dim1=1, dim2=2).add_(1.0)
        dv = -torch.cholesky_solve(gradient.unsqueeze(2), torch.linalg.cholesky_ex(hessian)[0]).squeeze(2)
        dz = (X @ dv.unsqueeze(2)).squeeze(2)
        t, loss = backtrack(lambda t: (y, mask, z + t * dz, ((v + t * dv) ** 2).sum(1)), loss)
        v, z = v + t * dv, z + t * dz
        if (dz * mask).abs().max() < TOLERANCE:
            break
    return v


def newton_dual(X: torch.Tensor, y: torch.Tensor, mask: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
    """The same minimum through v = XT a with one weight a per pair (Rasmussen and Williams 2006, algorithm 3.1)."""
    K = X @ X.mT
    a = torch.zeros_like(y)
    z = offset
    loss = (mask * (softplus(z) - y * z)).sum(1)
    for _ in range(STEPS):
        p = torch.sigmoid(z)
        s = (p * (1 - p) * mask).sqrt()
        B = K * s.unsqueeze(2) * s.unsqueeze(1)
        B.diagonal(dim1=1, dim2=2).add_(1.0)
        b = s * s * (z - offset) + (y - p) * mask
        Kb = (K @ b.unsqueeze(2)).squeeze(2)
        da = b - s * torch.cholesky_solve((s * Kb).unsqueeze(2), torch.linalg.cholesky_ex(B)[0]).squeeze(2) - a
        dz = (K @ da.unsqueeze(2)).squeeze(2)
        t, loss = backtrack(lambda t: (y, mask, z + t * dz, ((a + t * da) * (z - offset + t * dz)).sum(1)), loss)
        a, z = a + t * da, z + t * dz
        if (dz * mask).abs().max() < TOLERANCE:
            break
    return (X.mT @ a.unsqueeze(2)).squeeze(2)


def backtrack(at, loss: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Step sizes float64[users, 1], halved for the users whose loss would rise, and the losses reached."""
    t = loss.new_ones(len(loss), 1)
    while True:
        y, mask, z, square = at(t)
        reached = (mask * (softplus(z) - y * z)).sum(1) + square / 2
        worse = reached > loss + 1e-9 * loss.abs()  # rounding is no rise
        if not worse.any() or t.min() < 1e-6:
            return t, reached
        t = torch.where(worse.unsqueeze(1), t / 2, t)


def dot(gap: torch.Tensor, weights: torch.Tensor, pairs: Pairs) -> torch.Tensor:
    """float64[n]: each row's features times its own user's weights."""
    counts = np.diff(pairs.offsets)
    if (counts == counts[0]).all():
        return (gap.view(len(counts), counts[0], -1).to(weights) @ weights.unsqueeze(2)).view(-1)
    return torch.einsum("nd,nd->n", gap.to(weights), weights[torch.from_numpy(pairs.user).long()])


def empirical_prior(weights: torch.Tensor, basis: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The prior of new users' weights, from coordinates float64[n_users, r] of training users in basis float64[d, r]."""
    n_users, r = weights.shape
    spread = weights - weights.mean(0)
    covariance = spread.T @ spread / n_users + 1e-6 * weights.square().mean() * torch.eye(r, dtype=weights.dtype)
    mean = shrunk_mean(weights.mean(0), covariance, n_users)
    rest = weights.mean(0) - mean
    return basis @ mean, basis @ torch.linalg.cholesky(covariance + torch.outer(rest, rest))


def shrunk_mean(mean: torch.Tensor, covariance: torch.Tensor, n_users: int) -> torch.Tensor:
    """Positive-part James-Stein: the users' mean float64[r] drawn towards zero as far as their spread explains it.

    A prior centred on the mean helps where people agree and costs where they oppose each other; the statistic below is
    about r where the true mean is zero and grows with the number of users who agree.
    """
    agreement = float(n_users * mean @ torch.linalg.solve(covariance, mean))
    return mean * max(0.0, 1 - max(len(mean) - 2, 1) / agreement) if agreement > 0 else mean


SCALES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)  # one number per method, chosen among seven on validation users


def best_on_validation(priors: list[State], validation: Panel) -> State:
    """The prior with the lowest calibrated log loss, averaged over eighths, quarters, halves and whole contexts."""
    shots = int(np.diff(validation.context.offsets).max(initial=0))
    contexts = [validation.context.first(n) for n in sorted({shots // 8, shots // 4, shots // 2, shots})]
    gap, y = torch.from_numpy(validation.query.gap), validation.query.label

    def loss(prior: State) -> float:
        scores = [dot(gap, map_weights(c, prior["mean"], prior["root"]), validation.query).numpy() for c in contexts]
        return sum(log_loss(temperature_scale(z, y) * z, y) for z in scores)

    return min(priors, key=loss)


def laplace(pairs: Pairs, mean: torch.Tensor, root: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Every user's posterior under the prior: its modes float64[n_users, d], and its covariances' sum float64[d, d]."""
    weights = map_weights(pairs, mean, root)
    d, r = root.shape
    total = torch.zeros(r, r, dtype=torch.float64)
    n = max(1, int(np.diff(pairs.offsets).max()))
    per_chunk = max(1, min(CACHE // (8 * r**2), MEMORY // (8 * n * d)))
    for start in range(0, pairs.n_users, per_chunk):
        X, _, mask = padded(pairs.chunk(start, min(start + per_chunk, pairs.n_users)))
        p = torch.sigmoid((X @ weights[start : start + len(X)].unsqueeze(2)).squeeze(2))
        Z = X @ root
        hessian = (Z * (p * (1 - p) * mask).unsqueeze(2)).mT @ Z
        hessian.diagonal(dim1=1, dim2=2).add_(1.0)
        total += torch.cholesky_inverse(torch.linalg.cholesky_ex(hessian)[0]).sum(0)
    return weights, root @ total @ root.T
