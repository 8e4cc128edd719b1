"""Linear rewards: a Gaussian prior over user weights, and the batched solver that adapts every user at once.

A linear method says reward(u, i) = <features_i, w_u> and differs from the others only in the prior N(mean, root rootT)
that its `fit` learns. Adaptation is the maximum a posteriori weight under the Bradley-Terry likelihood: for each user
a convex logistic regression.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

from harness.data import Items, Pairs, Panel
from harness.method import Manifest, Method, Run, State, Users
from harness.scores.metrics import log_loss, temperature_scale

CACHE = 2**20  # bytes of Hessians per chunk of users: they are read every step, so they stay in a core's own cache
MEMORY = 2**24  # bytes of float64 features per chunk of users: they are read twice in the dual, so they need not
TOLERANCE = 1e-4  # last Newton step in log-odds; convergence is quadratic, so what remains is about its square
BARRIER = 0.1  # of weights on a simplex: a tenth of one answer's worth keeps them off the edge
STEPS = 100  # Newton needs 4 to 12; the bound only guards against a bug


class LinearMethod(Method):
    """A method whose state is {"mean": float64[d], "root": float64[d, r], or a scalar standing for root * identity}.

    One that declares the field `elicit` can ask: it then also keeps every user's posterior covariance.
    """

    def refuses(self, task: Manifest) -> str | None:
        return "needs items with numeric features" if task.feature_dim is None else super().refuses(task)

    def adapt(self, state: State, context: Pairs, run: Run) -> Users:
        weights = map_weights(context, state["mean"], state["root"])
        if self.elicit == "random":
            return (weights,)
        return weights, covariances(context, weights, state["root"])

    def uncertainty(self, state: State, users: Users, pool: Pairs) -> torch.Tensor:
        """float64[n]: p(1 - p) xT C x, with C the user's posterior covariance: what an answer tells of the weights.

        To first order twice the expected gain of information in nats (MacKay 1992): a pair is asked whose answer is
        open and whose features the user's earlier answers say little of.
        """
        p = torch.sigmoid(self.score(state, users, pool))
        return p * (1 - p) * variance(state["root"], users[1], pool)

    def reward(self, state: State, users: Users, items: Items, user: np.ndarray, item: np.ndarray) -> torch.Tensor:
        features = torch.from_numpy(items.features[item]).to(users[0])
        return torch.einsum("nd,nd->n", features, users[0][torch.from_numpy(user).long()])

    def score(self, state: State, users: Users, query: Pairs) -> torch.Tensor:
        return dot(torch.from_numpy(query.gap), users[0], query)


def map_weights(context: Pairs, mean: torch.Tensor, root: torch.Tensor) -> torch.Tensor:
    """float64[n_users, d]: every user's maximum a posteriori weights under w ~ N(mean, root rootT).

    Minimises, for each user, sum_i [softplus(z_i) - y_i z_i] + |v|^2 / 2 with z = X w and w = mean + root v; labels y
    may be soft. Users without pairs get exactly `mean`. Works through chunks of users in the primal (r x r) or the dual
    (n x n), whichever is smaller. Never holds more than one chunk of features.
    """
    d = len(mean)
    weights = mean.repeat(context.n_users, 1)
    r = d if root.ndim == 0 else root.shape[1]
    if r == 0:
        return weights
    for users, part in chunks(context, d, lambda n: min(n, r)):
        X, y, mask = padded(part)
        offset = X @ mean if mean.any() else torch.zeros_like(y)
        Z = X.mul_(root) if root.ndim == 0 else X @ root
        v = newton_dual(Z, y, mask, offset) if Z.shape[1] < r else newton_primal(Z, y, mask, offset)
        weights[users] += v * root if root.ndim == 0 else v @ root.T
    return weights


def chunks(pairs: Pairs, d: int, side: Callable[[int], int]) -> Iterator[tuple[torch.Tensor, Pairs]]:
    """Users (int64[users]) and their pairs, as many at a time as fit the cache; users without pairs are left out.

    Those of a chunk have about equally many pairs, or one with thousands would make everybody's matrices large.
    side(n): of the square matrix of a user with n pairs, beside d features of each.
    """
    counts = np.diff(pairs.offsets)
    doubled = np.where(counts > 0, np.frexp(np.maximum(counts, 15))[1], 0)  # below 16, below 32, below 64, ...
    for size in np.unique(doubled[counts > 0]):
        users = np.flatnonzero(doubled == size)
        alike = pairs if len(users) == pairs.n_users else pairs.of(users)
        n = int(counts[users].max())
        step = max(1, min(CACHE // (8 * side(n) ** 2), MEMORY // (8 * n * d)))
        for start in range(0, len(users), step):
            stop = min(start + step, len(users))
            yield torch.from_numpy(users[start:stop]), alike.chunk(start, stop)


def padded(pairs: Pairs) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gaps float64[users, n, d], labels and mask float64[users, n]; users with fewer than n pairs get empty rows."""
    X, y = torch.from_numpy(pairs.gap).double(), torch.from_numpy(pairs.label).double()
    return padded_rows(pairs, X, y, torch.ones_like(y))


def padded_rows(pairs: Pairs, *columns: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """[users, n, ...] of each [len(pairs), ...], n the most pairs of a user; rows that do not exist are zero."""
    counts = np.diff(pairs.offsets)
    n = int(counts.max())
    if (counts == n).all():
        return tuple(c.view(len(counts), n, *c.shape[1:]) for c in columns)
    rows = torch.from_numpy(pairs.user * np.int64(n) + pairs.rank)
    full = [c.new_zeros(len(counts) * n, *c.shape[1:]).index_copy_(0, rows, c) for c in columns]
    return tuple(c.view(len(counts), n, *c.shape[1:]) for c in full)


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
    least = 1e-6 * weights.square().mean() + 1e-12  # where nobody prefers anything all weights are zero
    covariance = spread.T @ spread / n_users + least * torch.eye(r, dtype=weights.dtype)
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


def best_on_validation(
    priors: list[State], validation: Panel, answer: Callable[[State, Pairs], torch.Tensor] | None = None
) -> State:
    """The prior with the lowest calibrated log loss, averaged over eighths, quarters, halves and whole contexts.

    `answer` gives the log-odds of the validation queries from a context; without it they are a linear method's.
    """
    shots = int(np.diff(validation.context.offsets).max(initial=0))
    contexts = [validation.context.first(n) for n in sorted({shots // 8, shots // 4, shots // 2, shots})]
    gap, y = torch.from_numpy(validation.query.gap), validation.query.label

    def linear(prior: State, context: Pairs) -> torch.Tensor:
        return dot(gap, map_weights(context, prior["mean"], prior["root"]), validation.query)

    def loss(prior: State) -> float:
        scores = [(answer or linear)(prior, context).numpy() for context in contexts]
        return sum(log_loss(temperature_scale(z, y) * z, y) for z in scores)

    return min(priors, key=loss)


POWERS = (0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0)  # as many as SCALES


def tempered(mean: torch.Tensor, root: torch.Tensor) -> list[State]:
    """Priors whose covariance is that of root float64[d, r] with its eigenvalues raised to powers, at constant trace.

    At 1 new users differ as the training users do; at 0 equally in all r directions, which is safer where few people
    were trained on; above 1 mostly where people differ most.
    """
    vectors, values, _ = torch.linalg.svd(root, full_matrices=False)
    variances = values**2
    powered = [variances**power * variances.sum() / (variances**power).sum() for power in POWERS]
    return [{"mean": mean, "root": vectors * p.sqrt()} for p in powered]


def laplace(pairs: Pairs, mean: torch.Tensor, root: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Every user's posterior under the prior: its modes float64[n_users, d], and its covariances' sum float64[d, d]."""
    weights = map_weights(pairs, mean, root)
    eye = torch.eye(root.shape[1], dtype=torch.float64)
    total = pairs.n_users * eye
    for _, covariance in posteriors(pairs, weights, root):
        total += (covariance - eye).sum(0)
    return weights, root @ total @ root.T


def covariances(pairs: Pairs, weights: torch.Tensor, root: torch.Tensor) -> torch.Tensor:
    """float64[n_users, r, r]: each user's Laplace covariance of v, where w = mean + root v, at the mode `weights`."""
    found = torch.eye(root.shape[1], dtype=torch.float64).repeat(pairs.n_users, 1, 1)
    for users, covariance in posteriors(pairs, weights, root):
        found[users] = covariance
    return found


def posteriors(pairs: Pairs, weights: torch.Tensor, root: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Chunks of users with pairs, and their `covariances`."""
    d, r = root.shape
    for users, part in chunks(pairs, d, lambda n: r):
        X, _, mask = padded(part)
        p = torch.sigmoid((X @ weights[users].unsqueeze(2)).squeeze(2))
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


def variance(root: torch.Tensor, covariance: torch.Tensor, pairs: Pairs) -> torch.Tensor:
    """float64[n]: the posterior variance of each row's log-odds, from `covariances` of its user."""
    Z = torch.from_numpy(pairs.gap).to(root) @ root
    counts = np.diff(pairs.offsets)
    if (counts == counts[0]).all():
        Z = Z.view(len(counts), counts[0], -1)
        return ((Z @ covariance) * Z).sum(2).view(-1)
    return torch.einsum("nr,nrs,ns->n", Z, covariance[torch.from_numpy(pairs.user).long()], Z)


def mean_square(pairs: Pairs) -> float:
    """Of the gaps' entries: the square of the features' unit; 1 where all are zero."""
    return float(np.square(pairs.gap).mean()) or 1.0


def whitener(pairs: Pairs) -> torch.Tensor:
    """float64[d, d]: the symmetric root of the inverse of E[x xT], x the rows' gaps."""
    X = torch.from_numpy(pairs.gap).double()
    second = X.T @ X / len(X)
    second.diagonal().add_(1e-3 * mean_square(pairs))  # features that never differ tell nothing
    values, vectors = torch.linalg.eigh(second)
    return vectors * values.rsqrt() @ vectors.T


def moment_svd(train: Pairs, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The users x pairs matrix of labels (1, -1, and 0 where nobody was asked), projected on the features and factorised.

    Returns the singular values float64[min(n_users, d)] and weights float64[d, <= rank] whose gaps, orthonormal over
    all pairs, are the leading right singular vectors. The matrix is never formed: its product with the features is the
    sum of each user's signed gaps. A row is divided by the root of its user's number of pairs: all are equally noisy.
    """
    whiten = whitener(train) / len(train) ** 0.5
    signed = torch.from_numpy(train.gap).double() * (2 * torch.from_numpy(train.label).double() - 1).unsqueeze(1)
    sums = torch.zeros(train.n_users, signed.shape[1], dtype=torch.float64)
    sums.index_add_(0, torch.from_numpy(train.user).long(), signed)
    counts = torch.from_numpy(np.diff(train.offsets)).clamp(min=1)
    _, singular, Vt = torch.linalg.svd(sums / counts.sqrt().unsqueeze(1) @ whiten, full_matrices=False)
    return singular, whiten @ Vt[:rank].T


def own_weights(train: Pairs, basis: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Each training user's ridge answer float64[n_users, r] in a basis float64[d, r], rescaled to gaps of variance 1."""
    basis = of_unit_gaps(train, basis)
    zero = torch.zeros(len(basis), dtype=basis.dtype)
    return map_weights(train, zero, basis) @ torch.linalg.pinv(basis).T, basis


def random_factors(train: Pairs, rank: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Where `factorise` can begin: weights float[n_users, rank], and a basis float[d, rank] of gaps of variance 1."""
    basis = of_unit_gaps(train, torch.randn(train.gap.shape[1], rank, generator=generator))
    return torch.randn(train.n_users, rank, generator=generator), basis


def of_unit_gaps(train: Pairs, basis: torch.Tensor) -> torch.Tensor:
    """The basis float[d, r] with each column rescaled so that the pairs' gaps in it have variance 1."""
    return basis / (torch.from_numpy(train.gap).to(basis) @ basis).square().mean(0).sqrt().clamp(min=1e-9)


def factorise(
    train: Pairs, weights: torch.Tensor, basis: torch.Tensor, decay: float, steps: int, run: Run, simplex: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Minimises the Bradley-Terry loss over weights float[n_users, r] and basis float[d, r] jointly, by L-BFGS.

    An equal ridge on both is a nuclear-norm penalty on their product; `decay` is relative to the spectral norm of the
    labels' noise, so that one value suits few people and many. With `simplex` a user's weights are the softmax of what
    is given and penalised. Returns weights and basis as float64. Inside, features are in a unit in which their gaps'
    mean square is 1: in another L-BFGS does not arrive.
    """
    unit = mean_square(train) ** 0.5
    X, y = torch.from_numpy(train.gap).T / unit, torch.from_numpy(train.label)
    X = X.contiguous()  # as columns: twice as fast
    user = torch.from_numpy(train.user).long()
    (d, n), n_users = X.shape, train.n_users
    ridge = decay * noise_norm(n, n_users, d)
    start = (weights, basis * unit)
    W, theta = (t.T.float().clone(memory_format=torch.contiguous_format).requires_grad_() for t in start)
    optimizer = torch.optim.LBFGS([W, theta], max_iter=steps, line_search_fn="strong_wolfe", tolerance_change=1e-8)

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        z = ((theta @ X) * (W.softmax(0) if simplex else W).index_select(1, user)).sum(0)
        misfit = binary_cross_entropy_with_logits(z, y, reduction="sum")
        total = (misfit + ridge / 2 * (W.square().sum() + theta.square().sum())) / n
        total.backward()
        run.log(train_loss=total.item())
        return total

    optimizer.step(loss)
    return (W.softmax(0) if simplex else W).detach().T.double(), theta.detach().T.double() / unit


def noise_norm(n: int, n_users: int, d: int, variance: float = 1.0) -> float:
    """About the spectral norm of the loss's gradient [n_users, d] by noise alone, for gaps of that variance."""
    return 0.5 * (n / n_users * variance) ** 0.5 * (n_users**0.5 + d**0.5)  # sd of a label is 1/2


def simplex_weights(
    Z: torch.Tensor, y: torch.Tensor, mask: torch.Tensor, offset: torch.Tensor, prior: State
) -> torch.Tensor:
    """float64[users, r]: argmin over w > 0, sum w = 1, of the logistic loss of offset + Z w plus a prior around `mean`.

    The prior is (w - mean)T precision (w - mean) / 2 - BARRIER meanT log w: without data the answer is `mean`. Z is
    float64[users, n, r]. Newton's method under the equality constraint; the barrier keeps its steps inside.
    """
    mean, precision = prior["mean"], prior["precision"]

    def value(w: torch.Tensor) -> torch.Tensor:
        z = offset + (Z @ w.unsqueeze(2)).squeeze(2)
        ridge = (((w - mean) @ precision) * (w - mean)).sum(1) / 2 - BARRIER * (mean * w.log()).sum(1)
        return (mask * (softplus(z) - y * z)).sum(1) + ridge

    w = mean.repeat(len(Z), 1)
    loss = value(w)
    for _ in range(STEPS):
        p = torch.sigmoid(offset + (Z @ w.unsqueeze(2)).squeeze(2))
        gradient = (((p - y) * mask).unsqueeze(1) @ Z).squeeze(1) + (w - mean) @ precision - BARRIER * mean / w
        hessian = (Z * (p * (1 - p) * mask).unsqueeze(2)).mT @ Z + precision + torch.diag_embed(BARRIER * mean / w**2)
        both = torch.stack([gradient, torch.ones_like(w)], 2)
        downhill, level = torch.cholesky_solve(both, torch.linalg.cholesky_ex(hessian)[0]).unbind(2)
        dw = downhill.sum(1, keepdim=True) / level.sum(1, keepdim=True) * level - downhill  # sums to zero
        t = 0.99 / (-dw / w).amax(1, keepdim=True).clamp(min=0.99)  # stops short of the boundary
        while (worse := (reached := value(w + t * dw)) > loss + 1e-9 * loss.abs()).any() and t.min() > 1e-6:
            t = torch.where(worse.unsqueeze(1), t / 2, t)
        w, loss = w + t * dw, reached
        if (t * dw).abs().max() < 1e-6:
            break
    return w


def mixture_priors(weights: torch.Tensor) -> list[State]:
    """Priors of a new user's place on the simplex, from training users' float64[n_users, r], at every SCALE."""
    mean, r = weights.mean(0), weights.shape[1]
    spread = weights - mean
    covariance = spread.T @ spread / len(weights) + 1e-4 * torch.eye(r, dtype=weights.dtype)
    return [{"mean": mean, "precision": torch.linalg.inv(scale**2 * covariance)} for scale in SCALES]
