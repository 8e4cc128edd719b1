"""Priors over users' weights, estimated from training users and selected on validation users."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch.nn.functional import softplus

from harness.data import Pairs, Panel
from harness.learning.linear import MAX_NEWTON_STEPS, fit_map_weights, haste_of, row_log_odds, times
from harness.method import Run, State
from harness.scores.metrics import fit_temperature_scale, mean_log_loss

# Weight of the log barrier that keeps users' weights off the boundary of the simplex. In the same loss, each of the
# user's answers has weight 1.
SIMPLEX_BARRIER = 0.1


def empirical_prior(weights: torch.Tensor, basis: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Estimate a prior of new users' weights; return its mean float64[d] and a root float64[d, r] of its covariance.

    weights: float64[n_users, r], training users' weights as coordinates in the basis.
    basis: float64[d, r].
    The prior's mean is shrunk (`james_stein_mean`), and the covariance is taken about that mean.
    """
    n_users, r = weights.shape
    spread = weights - weights.mean(0)
    # keeps the covariance positive definite, also if all weights are zero
    least = 1e-6 * weights.square().mean() + 1e-12
    covariance = spread.T @ spread / n_users + least * torch.eye(r, dtype=weights.dtype)
    mean = james_stein_mean(weights.mean(0), covariance, n_users)
    rest = weights.mean(0) - mean
    return basis @ mean, basis @ torch.linalg.cholesky(covariance + torch.outer(rest, rest))


def james_stein_mean(mean: torch.Tensor, covariance: torch.Tensor, n_users: int) -> torch.Tensor:
    """Shrink the users' mean float64[r] towards zero by the positive-part James-Stein rule.

    A prior centred on the mean helps where people agree and hurts where they oppose each other. `agreement` is
    Hotelling's T^2: about r if the true mean is zero, and larger the more users agree.
    """
    agreement = float(n_users * mean @ torch.linalg.solve(covariance, mean))
    return mean * max(0.0, 1 - max(len(mean) - 2, 1) / agreement) if agreement > 0 else mean


# Factors of a prior's standard deviation, of which a method selects one on validation users.
PRIOR_SCALES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)


Predict = Callable[[State, Pairs], torch.Tensor]  # log-odds of the validation queries, given a state and a context


def loss_on_validation(state: State, validation: Panel, predict: Predict | None = None) -> float:
    """Return the calibrated log loss of a state on validation users, in nats.

    The loss is summed over contexts of an eighth, a quarter, half and all of the users' context pairs.
    predict: None for a linear method.
    """
    most = int(np.diff(validation.context.offsets).max(initial=0))
    shots = sorted({most // 8, most // 4, most // 2, most})
    if predict is None:
        # The users of all contexts are adapted at once, as so many people: a few of them keep no core busy.
        gap, n_users = torch.from_numpy(validation.query.gap), validation.context.n_users
        everybody = validation.context.of(np.tile(np.arange(n_users), len(shots)))
        contexts = everybody.take(everybody.rank < np.repeat(shots, n_users)[everybody.user])
        weights = fit_map_weights(contexts, state["mean"], state["root"], haste_of(state))
        scores = [row_log_odds(gap, own, validation.query) for own in weights.split(n_users)]
    else:
        scores = [predict(state, validation.context.first(n)) for n in shots]
    y = validation.query.label
    return sum(mean_log_loss(fit_temperature_scale(z.numpy(), y) * z.numpy(), y) for z in scores)


def best_prior_on_validation(priors: Sequence[State], validation: Panel, predict: Predict | None = None) -> State:
    """Return the prior with the lowest `loss_on_validation` of those that `lowest_nearby` looks at.

    priors: states of a method that differ in one number of the prior, in its order.
    """
    return priors[lowest_nearby(priors, len(priors) // 2, validation, predict)[1]]


def lowest_nearby(
    priors: Sequence[State], start: int, validation: Panel, predict: Predict | None = None
) -> tuple[float, int]:
    """Walk downhill from priors[start], and return the lowest loss on validation users with the prior's place.

    The loss is taken to have one valley along the number in which the priors differ: three or four of seven are looked at.
    """

    def looked_at(place: int) -> tuple[float, int]:
        loss = loss_on_validation(priors[place], validation, predict)
        return (loss if math.isfinite(loss) else math.inf), place

    best = first = looked_at(start)
    for step in (1, -1):
        while 0 <= best[1] + step < len(priors) and (found := looked_at(best[1] + step)) < best:
            best = found
        if best != first:
            break
    return best


def rescaled(state: State, validation: Panel, predict: Predict | None = None) -> State:
    """Return the state with its prior's standard deviations multiplied by one of PRIOR_SCALES, chosen on validation users."""
    priors = [state | {"root": scale * state["root"]} for scale in PRIOR_SCALES]
    return best_prior_on_validation(priors, validation, predict)


# Powers of answers' times (`answer_weights`): at 0 all answers count alike, at 1 one in half the time counts twice as much.
HASTES = (0.0, 0.25, 0.5, 1.0)


def with_haste(state: State, validation: Panel, predict: Predict | None = None) -> State:
    """Add to a linear method's state by how much quick answers count more: one of HASTES, chosen on validation users."""
    states = [state | {"haste": torch.tensor(haste, dtype=torch.float64)} for haste in HASTES]
    return min(states, key=lambda state: loss_on_validation(state, validation, predict))


FIRST_RANK = 8  # from which the choice of a rank starts
RANKS = (2, 32)  # the lowest and the highest rank that is tried


def best_rank_on_validation(
    rank: int | None,
    most: int,
    priors_at: Callable[[int], list[State]],
    validation: Panel,
    run: Run,
    predict: Predict | None = None,
) -> State:
    """Return the prior with the lowest loss on validation users, over ranks and the priors of each rank.

    The rank is doubled as long as the loss falls. If it does not fall at once, the rank is halved as long as it does.
    rank: a rank that is given, so that only the prior is chosen.  most: no higher rank can differ.
    priors_at: returns the priors of a rank, as for `best_prior_on_validation`.
    """
    if rank is not None:
        return best_prior_on_validation(priors_at(rank), validation, predict)

    def tried(rank: int, start: int | None = None) -> tuple[float, int, int, list[State]]:
        priors = priors_at(rank)
        loss, place = lowest_nearby(priors, len(priors) // 2 if start is None else start, validation, predict)
        run.log(rank=rank, rank_loss=loss)
        return loss, rank, place, priors

    best = first = tried(min(FIRST_RANK, most))
    for factor in (2, 0.5):
        while RANKS[0] <= (after := min(int(best[1] * factor), RANKS[1], most)) != best[1]:
            if (found := tried(after, best[2]))[0] >= best[0]:
                break
            best = found
        if best is not first:
            break
    return best[3][best[2]]


# Powers of a prior's variances, of which a method selects one on validation users.
EIGENVALUE_POWERS = (0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0)


def tempered_priors(mean: torch.Tensor, root: torch.Tensor) -> list[State]:
    """Return one prior for each of EIGENVALUE_POWERS, with the eigenvalues of its covariance raised to that power.

    root: float64[d, r]; the covariance is root rootT. Every prior's covariance is scaled to the trace of that one.
    At power 1 new users vary as the training users do. At 0 they vary equally in all r directions, which is safer with
    few training users. Above 1 they vary mostly in the directions in which training users differ most.
    """
    vectors, values, _ = torch.linalg.svd(root, full_matrices=False)
    variances = values**2
    powered = [variances**power * variances.sum() / (variances**power).sum() for power in EIGENVALUE_POWERS]
    return [{"mean": mean, "root": vectors * p.sqrt()} for p in powered]


def fit_simplex_weights(
    Z: torch.Tensor, y: torch.Tensor, mask: torch.Tensor, offset: torch.Tensor, prior: State
) -> torch.Tensor:
    """Return float64[users, r]: argmin over w > 0, sum w = 1, of the logistic loss of offset + Z w plus a prior term.

    The prior term is (w - mean)T precision (w - mean) / 2 - SIMPLEX_BARRIER meanT log w; without data the result is
    `mean`. Solved by Newton's method under the equality constraint, with steps that stay inside the simplex.
    Z: float64[users, n, r].  y, mask, offset: float64[users, n]; mask is 0 for rows that do not exist.
    """
    mean, precision = prior["mean"], prior["precision"]

    def value(w: torch.Tensor) -> torch.Tensor:
        z = offset + times(Z, w)
        ridge = (((w - mean) @ precision) * (w - mean)).sum(1) / 2 - SIMPLEX_BARRIER * (mean * w.log()).sum(1)
        return (mask * (softplus(z) - y * z)).sum(1) + ridge

    w = mean.repeat(len(Z), 1)
    loss = value(w)
    for _ in range(MAX_NEWTON_STEPS):
        p = torch.sigmoid(offset + times(Z, w))
        gradient = times(Z.mT, (p - y) * mask) + (w - mean) @ precision - SIMPLEX_BARRIER * mean / w
        hessian = (
            (Z * (p * (1 - p) * mask).unsqueeze(2)).mT @ Z + precision + torch.diag_embed(SIMPLEX_BARRIER * mean / w**2)
        )
        # The constrained Newton step is a combination of H^-1 gradient (`downhill`) and H^-1 1 (`level`).
        both = torch.stack([gradient, torch.ones_like(w)], 2)
        downhill, level = torch.cholesky_solve(both, torch.linalg.cholesky_ex(hessian)[0]).unbind(2)
        dw = downhill.sum(1, keepdim=True) / level.sum(1, keepdim=True) * level - downhill  # sums to zero
        t = 0.99 / (-dw / w).amax(1, keepdim=True).clamp(min=0.99)  # at most 0.99 of the way to the boundary
        while (worse := (reached := value(w + t * dw)) > loss + 1e-9 * (1 + loss.abs())).any() and t.min() > 1e-6:
            t = torch.where(worse.unsqueeze(1), t / 2, t)
        w, loss = w + t * dw, reached
        if (t * dw).abs().max() < 1e-6:
            break
    return w


def mixture_priors(weights: torch.Tensor) -> list[State]:
    """Return one prior of new users' weights on the simplex for each of PRIOR_SCALES.

    weights: float64[n_users, r], training users' weights on the simplex.
    """
    # A weight that nobody has, as after a softmax in single precision, would end at the barrier's logarithm of 0.
    mean, r = weights.mean(0).clamp(min=1e-6), weights.shape[1]
    mean = mean / mean.sum()
    spread = weights - mean
    # Weights sum to 1, so without the second term the covariance has no inverse.
    covariance = spread.T @ spread / len(weights) + 1e-4 * torch.eye(r, dtype=weights.dtype)
    return [{"mean": mean, "precision": torch.linalg.inv(scale**2 * covariance)} for scale in PRIOR_SCALES]
