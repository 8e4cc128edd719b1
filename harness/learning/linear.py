"""Linear rewards: a Gaussian prior over user weights, and the batched solver that adapts all users at once.

A linear method models reward(u, i) = <features_i, w_u>. Linear methods differ only in the prior N(mean, root rootT)
that their `fit` learns (T marks a transpose). Adaptation finds the maximum a posteriori weights under the Bradley-Terry
likelihood, which is a convex logistic regression for each user.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch.nn.functional import softplus

from harness.data import Items, Pairs, require_value
from harness.method import Method, Run, State, TaskFacts, Users

# Bytes of Hessians per chunk of users. Every Newton step reads all of them, so a chunk must fit a core's own cache.
HESSIAN_CHUNK_BYTES = 2**20
# Bytes of float64 features per chunk of users. `newton_dual` reads them only twice, so they need not fit that cache.
FEATURE_CHUNK_BYTES = 2**24
# Newton's method ends at a step below this many log-odds. The remaining error is about the square of that step.
NEWTON_TOLERANCE = 1e-4
MAX_TIME_RATIO = 4.0  # an answer four times as fast as usual may be a click by accident, and counts as no faster
MAX_NEWTON_STEPS = 100  # Newton needs 4 to 12; the bound only guards against a bug


class LinearMethod(Method):
    """A method whose state is {"mean": float64[d], "root": float64[d, r]}.

    `root` may also be a scalar, which stands for that scalar times the d x d identity. A state may also have `haste`, by
    which a new user's quick answers count more (`answer_weights`).
    A subclass that declares the field `elicitation` can choose which pairs to ask. With `elicitation = "uncertainty"`,
    `adapt` also returns every user's posterior covariance.
    """

    def refuses(self, task: TaskFacts) -> str | None:
        return "needs items with numeric features" if task.feature_dim is None else super().refuses(task)

    def adapt(self, state: State, context: Pairs, run: Run) -> Users:
        weights = fit_map_weights(context, state["mean"], state["root"], haste_of(state))
        if self.elicitation == "random":
            return (weights,)
        return weights, posterior_covariances(context, weights, state["root"])

    def uncertainty(self, state: State, users: Users, pool: Pairs) -> torch.Tensor:
        """Return float64[n]: p(1 - p) xT C x, with C the user's posterior covariance.

        To first order this is twice the expected information gain about the weights in nats (MacKay 1992). It is large
        for pairs whose answer is uncertain and whose features the user's earlier answers say little about.
        """
        p = torch.sigmoid(self.score(state, users, pool))
        return p * (1 - p) * log_odds_variance(state["root"], users[1], pool)

    def reward(self, state: State, users: Users, items: Items, user: np.ndarray, item: np.ndarray) -> torch.Tensor:
        features = torch.from_numpy(items.known_features[item]).to(users[0])
        return torch.einsum("nd,nd->n", features, users[0][torch.from_numpy(user).long()])

    def score(self, state: State, users: Users, query: Pairs) -> torch.Tensor:
        return row_log_odds(torch.from_numpy(query.gap), users[0], query)


def haste_of(state: State) -> float:
    """Return by how much quick answers count more under a linear method's state."""
    return float(state["haste"]) if "haste" in state else 0.0


def fit_map_weights(context: Pairs, mean: torch.Tensor, root: torch.Tensor, haste: float = 0.0) -> torch.Tensor:
    """Return float64[n_users, d]: every user's maximum a posteriori weights under w ~ N(mean, root rootT).

    For each user, minimise sum_i [softplus(z_i) - y_i z_i] + |v|^2 / 2 with z = X w and w = mean + root v; labels y may
    be soft. Users without pairs get exactly `mean`. Chunks of users are solved in the primal (r x r) or the dual
    (n x n), whichever is smaller. No more than one chunk of features is in memory at a time.
    haste: by how much quick answers count more, see `answer_weights`.
    """
    d = len(mean)
    weights = mean.repeat(context.n_users, 1)
    r = d if root.ndim == 0 else root.shape[1]
    if r == 0:
        return weights
    for users, part in chunks_of_users(context, d, lambda n: min(n, r)):
        X, y, mask = padded_gaps(part, haste)
        offset = X @ mean if mean.any() else torch.zeros_like(y)
        Z = X.mul_(root) if root.ndim == 0 else X @ root
        v = newton_dual(Z, y, mask, offset) if Z.shape[1] < r else newton_primal(Z, y, mask, offset)
        weights[users] += v * root if root.ndim == 0 else v @ root.T
    return weights


def chunks_of_users(pairs: Pairs, d: int, side: Callable[[int], int]) -> Iterator[tuple[torch.Tensor, Pairs]]:
    """Yield chunks of users (int64[users]) with their pairs; users without pairs are left out.

    HESSIAN_CHUNK_BYTES and FEATURE_CHUNK_BYTES limit the size of a chunk. The users of a chunk have about equally many
    pairs. Otherwise one user with thousands of pairs would make all padded matrices large.
    side(n): side length of the square matrix of a user with n pairs.
    d: number of features of a pair.
    """
    counts = np.diff(pairs.offsets)
    # groups of users: with fewer than 16 pairs, fewer than 32, fewer than 64, ...
    doubled = np.where(counts > 0, np.frexp(np.maximum(counts, 15))[1], 0)
    for size in np.unique(doubled[counts > 0]):
        users = np.flatnonzero(doubled == size)
        alike = pairs if len(users) == pairs.n_users else pairs.of(users)
        n = int(counts[users].max())
        step = max(1, min(HESSIAN_CHUNK_BYTES // (8 * side(n) ** 2), FEATURE_CHUNK_BYTES // (8 * n * d)))
        for start in range(0, len(users), step):
            stop = min(start + step, len(users))
            yield torch.from_numpy(users[start:stop]), alike.chunk(start, stop)


def padded_gaps(pairs: Pairs, haste: float = 0.0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return gaps float64[users, n, d], labels and weights float64[users, n]; users with fewer pairs get zero rows.

    The weights are those of `answer_weights`: with haste 0 they are 1, and 0 for rows that do not exist.
    """
    X, y = torch.from_numpy(pairs.gap).double(), torch.from_numpy(pairs.label).double()
    X, y, weight = padded_rows(pairs, X, y, answer_weights(pairs, haste))
    return X, y, weight


def answer_weights(pairs: Pairs, haste: float) -> torch.Tensor:
    """Return float64[n]: how much each answer counts; the mean over a user's answers is 1.

    An answer counts (t / m)^-haste, with t its time and m the geometric mean of the user's times, and t / m cut to
    MAX_TIME_RATIO. In a drift-diffusion process people decide quickly where their preference is strong, so quick answers
    say more (ICRA, section 4).
    """
    if haste == 0:
        return torch.ones(len(pairs), dtype=torch.float64)
    user = torch.from_numpy(pairs.user).long()
    own = torch.from_numpy(np.diff(pairs.offsets)).clamp(min=1)
    times = torch.from_numpy(require_value(pairs.seconds, "response times", "use signal = choice")).double()
    log_time = times.clamp(min=1e-3).log()  # a millisecond

    def user_mean(x: torch.Tensor) -> torch.Tensor:
        return (torch.zeros(pairs.n_users, dtype=torch.float64).index_add_(0, user, x) / own)[user]

    longer = (log_time - user_mean(log_time)).clamp(-np.log(MAX_TIME_RATIO), np.log(MAX_TIME_RATIO))
    weight = (-haste * longer).exp()
    return weight / user_mean(weight)


def padded_rows(pairs: Pairs, *columns: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Reshape each column [len(pairs), ...] to [users, n, ...]; n is the largest number of pairs of a user.

    Users with fewer pairs get zero rows.
    """
    counts = np.diff(pairs.offsets)
    n = int(counts.max())
    if (counts == n).all():
        return tuple(c.view(len(counts), n, *c.shape[1:]) for c in columns)
    rows = torch.from_numpy(pairs.user * np.int64(n) + pairs.rank)
    full = [c.new_zeros(len(counts) * n, *c.shape[1:]).index_copy_(0, rows, c) for c in columns]
    return tuple(c.view(len(counts), n, *c.shape[1:]) for c in full)


def times(matrices: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
    """Return [users, n]: each user's matrix [users, n, m] times that user's vector [users, m].

    A row vector times the transpose, because torch is up to 19 times slower with a column on a CPU (50 x 2,048).
    """
    return (vectors.unsqueeze(1) @ matrices.mT).squeeze(1)


def newton_primal(X: torch.Tensor, y: torch.Tensor, mask: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
    """Return float64[users, d]: argmin over v of the logistic loss of offset + X v, plus |v|^2 / 2."""

    def loss_at(v: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        return (mask * (softplus(z) - y * z)).sum(1) + (v**2).sum(1) / 2

    v = X.new_zeros(X.shape[0], X.shape[2])
    z = offset
    loss = loss_at(v, z)
    for _ in range(MAX_NEWTON_STEPS):
        p = torch.sigmoid(z)
        gradient = times(X.mT, (p - y) * mask) + v
        hessian = (X * (p * (1 - p) * mask).unsqueeze(2)).mT @ X
        hessian.diagonal(dim1=1, dim2=2).add_(1.0)
        dv = -torch.cholesky_solve(gradient.unsqueeze(2), torch.linalg.cholesky_ex(hessian)[0]).squeeze(2)
        dz = times(X, dv)
        (v, z), loss = backtracking_step(loss_at, (v, z), (dv, dz), loss)
        if (dz * mask).abs().max() < NEWTON_TOLERANCE:
            break
    return v


def newton_dual(X: torch.Tensor, y: torch.Tensor, mask: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
    """Return the same v as `newton_primal`, computed as v = XT a with one unknown a_i per pair.

    Rasmussen and Williams 2006, algorithm 3.1.
    """

    def loss_at(a: torch.Tensor, z: torch.Tensor, Ka: torch.Tensor) -> torch.Tensor:
        return (mask * (softplus(z) - y * z)).sum(1) + (a * Ka).sum(1) / 2

    K = X @ X.mT
    a = torch.zeros_like(y)
    z = offset
    loss = loss_at(a, z, a)
    for _ in range(MAX_NEWTON_STEPS):
        p = torch.sigmoid(z)
        s = (p * (1 - p) * mask).sqrt()
        B = K * s.unsqueeze(2) * s.unsqueeze(1)
        B.diagonal(dim1=1, dim2=2).add_(1.0)
        Ka = z - offset
        b = s * s * Ka + (y - p) * mask
        Kb = times(K, b)
        da = b - s * torch.cholesky_solve((s * Kb).unsqueeze(2), torch.linalg.cholesky_ex(B)[0]).squeeze(2) - a
        dz = times(K, da)
        (a, z, _), loss = backtracking_step(loss_at, (a, z, Ka), (da, dz, dz), loss)
        if (dz * mask).abs().max() < NEWTON_TOLERANCE:
            break
    return times(X.mT, a)


def backtracking_step(
    loss_at: Callable[..., torch.Tensor],
    point: tuple[torch.Tensor, ...],
    direction: tuple[torch.Tensor, ...],
    loss: torch.Tensor,
) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
    """Take a step in the direction, halved for users whose loss rises; return the new point and its loss.

    point, direction: float64[users, ...] each, the arguments of `loss_at`.
    loss: float64[users], the loss at `point`.
    """
    t = loss.new_ones(len(loss), 1)
    while True:
        moved = tuple(x + t * dx for x, dx in zip(point, direction, strict=True))
        reached = loss_at(*moved)
        worse = reached > loss + 1e-9 * (1 + loss.abs())  # tolerates rounding errors, also of a loss near 0
        if not worse.any() or t.min() < 1e-6:
            return moved, reached
        t = torch.where(worse.unsqueeze(1), t / 2, t)


def row_log_odds(gap: torch.Tensor, weights: torch.Tensor, pairs: Pairs) -> torch.Tensor:
    """Return float64[n]: the inner product of each row's feature gap and the weights of that row's user."""
    counts = np.diff(pairs.offsets)
    if (counts == counts[0]).all():
        return times(gap.view(len(counts), counts[0], -1).to(weights), weights).view(-1)
    return torch.einsum("nd,nd->n", gap.to(weights), weights[torch.from_numpy(pairs.user).long()])


def posterior_covariances(pairs: Pairs, weights: torch.Tensor, root: torch.Tensor) -> torch.Tensor:
    """Return float64[n_users, r, r]: each user's Laplace covariance of v, with w = mean + root v, at mode `weights`."""
    found = torch.eye(root.shape[1], dtype=torch.float64).repeat(pairs.n_users, 1, 1)
    for users, covariance in covariances_by_chunk(pairs, weights, root):
        found[users] = covariance
    return found


def covariances_by_chunk(
    pairs: Pairs, weights: torch.Tensor, root: torch.Tensor
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield the users with pairs, int64[users], chunk by chunk, with their `posterior_covariances` [users, r, r]."""
    d, r = root.shape
    for users, part in chunks_of_users(pairs, d, lambda n: r):
        X, _, mask = padded_gaps(part)
        p = torch.sigmoid(times(X, weights[users]))
        Z = (X @ root).mul_((p * (1 - p) * mask).sqrt().unsqueeze(2))
        dual = Z.shape[1] < r
        hessian = Z @ Z.mT if dual else Z.mT @ Z
        hessian.diagonal(dim1=1, dim2=2).add_(1.0)
        factor = torch.linalg.cholesky_ex(hessian)[0]
        if dual:  # I - ZT (I + Z ZT)^-1 Z
            known = torch.linalg.solve_triangular(factor, Z, upper=False)
            yield users, torch.eye(r, dtype=Z.dtype) - known.mT @ known
        else:
            yield users, torch.cholesky_inverse(factor)


def log_odds_variance(root: torch.Tensor, covariance: torch.Tensor, pairs: Pairs) -> torch.Tensor:
    """Return float64[n]: the posterior variance of each row's log-odds, from its user's `posterior_covariances`."""
    Z = torch.from_numpy(pairs.gap).to(root) @ root
    counts = np.diff(pairs.offsets)
    if (counts == counts[0]).all():
        Z = Z.view(len(counts), counts[0], -1)
        return ((Z @ covariance) * Z).sum(2).view(-1)
    return torch.einsum("nr,nrs,ns->n", Z, covariance[torch.from_numpy(pairs.user).long()], Z)
