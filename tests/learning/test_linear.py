"""The batched solver agrees with scikit-learn, general-purpose minimisers and finite differences."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression

from harness.data import Items, Pairs
from harness.learning import linear
from harness.learning.linear import fit_map_weights, posterior_covariances, row_log_odds
from harness.learning.priors import empirical_prior, james_stein_mean


def problem(counts, d, seed=0, soft=False):
    """Return pairs with Gaussian gaps and labels of random linear users, `counts[u]` of user u."""
    rng = np.random.default_rng(seed)
    user = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    n = len(user)
    x = rng.normal(size=(n, d)).astype(np.float32)
    w = rng.normal(size=(len(counts), d)) * 2 / np.sqrt(d)
    p = 1 / (1 + np.exp(-np.einsum("nd,nd->n", x, w[user])))
    label = p if soft else rng.random(n) < p
    items = Items(np.concatenate([x, np.zeros((1, d), np.float32)]))
    left, right = np.arange(n, dtype=np.int32), np.full(n, n, np.int32)
    return Pairs(user, np.arange(len(counts), dtype=np.int32), left, right, label.astype(np.float32), items)


def zero(d):
    return torch.zeros(d, dtype=torch.float64)


def scalar(value):
    return torch.tensor(value, dtype=torch.float64)


@pytest.mark.parametrize(("n", "d"), [(40, 5), (12, 30), (20, 20), (3, 1)])
def test_agrees_with_scikit_learn(n, d):
    pairs = problem([n] * 6, d)
    found = fit_map_weights(pairs, zero(d), scalar(1.5))
    for u in range(6):
        part = pairs.of([u])
        if len(set(part.label)) == 2:
            reference = LogisticRegression(C=1.5**2, fit_intercept=False, tol=1e-12, max_iter=10_000)
            assert np.allclose(found[u], reference.fit(part.gap.astype(float), part.label).coef_[0], atol=1e-6)


@given(
    counts=st.lists(st.integers(0, 9), min_size=1, max_size=7).filter(any),
    d=st.integers(1, 12),
    r=st.integers(1, 12),
    seed=st.integers(0, 1000),
    soft=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_finds_the_minimum_of_its_objective(counts, d, r, seed, soft):
    """At the solution the gradient of loss + |v|^2/2 in v vanishes, for ragged users, soft labels and any prior."""
    pairs = problem(counts, d, seed, soft)
    draw = torch.Generator().manual_seed(seed)
    mean, root = torch.randn(d, generator=draw).double(), torch.randn(d, r, generator=draw).double()
    found = fit_map_weights(pairs, mean, root)
    for u in range(len(counts)):
        part = pairs.of([u])
        x, y = torch.from_numpy(part.gap).double(), torch.from_numpy(part.label).double()

        def loss(v, x=x, y=y):
            z = x @ (mean + root @ torch.as_tensor(v))
            return float((torch.nn.functional.softplus(z) - y * z).sum() + np.square(v).sum() / 2)

        best = minimize(loss, np.zeros(r), method="BFGS", options={"gtol": 1e-9})
        assert np.allclose(found[u], mean + root @ torch.as_tensor(best.x), atol=2e-4)


def test_primal_and_dual_agree():
    pairs = problem([15] * 4, 15, soft=True)
    X, y, mask = linear.padded_gaps(pairs)
    primal = linear.newton_primal(X, y, mask, zero(1) * y)
    assert torch.allclose(primal, linear.newton_dual(X, y, mask, zero(1) * y), atol=1e-7)


def test_without_pairs_the_prior_mean_is_exact():
    pairs = problem([5, 0, 3], 4)
    mean = torch.tensor([0.1, -0.2, 0.3, 1 / 3], dtype=torch.float64)
    assert torch.equal(fit_map_weights(pairs, mean, scalar(1.0))[1], mean)
    assert torch.equal(fit_map_weights(pairs.first(0), mean, scalar(1.0)), mean.repeat(3, 1))


@pytest.mark.parametrize("memory", [1, 2**30])
def test_chunks_do_not_move_an_answer(memory, monkeypatch):
    pairs = problem([3, 0, 9, 9, 1, 4, 4], 6)
    whole = fit_map_weights(pairs, zero(6), scalar(2.0))
    monkeypatch.setattr(linear, "FEATURE_CHUNK_BYTES", memory)
    assert torch.allclose(fit_map_weights(pairs, zero(6), scalar(2.0)), whole, atol=1e-9)


def test_one_heavy_user_makes_nobodys_matrices_large(monkeypatch):
    """A user with two pairs is solved with a 2 x 2 matrix even if another user has hundreds of pairs."""
    pairs, sides = problem([2] * 30 + [300] + [2] * 30, 40), []
    cholesky = torch.linalg.cholesky_ex

    def seen(matrix):
        sides.append(matrix.shape[:2])
        return cholesky(matrix)

    monkeypatch.setattr(torch.linalg, "cholesky_ex", seen)
    found = fit_map_weights(pairs, zero(40), scalar(1.0))
    assert set(sides) == {(60, 2), (1, 40)}
    alone = [fit_map_weights(pairs.of([u]), zero(40), scalar(1.0)) for u in (0, 30, 60)]
    assert torch.allclose(found[[0, 30, 60]], torch.cat(alone), atol=1e-7)


def test_separable_users_converge():
    """Few pairs in many dimensions are separable; a wide prior makes full Newton steps overshoot."""
    pairs = problem([6] * 20, 40)
    found = fit_map_weights(pairs, zero(40), scalar(100.0))
    z = row_log_odds(torch.from_numpy(pairs.gap), found, pairs)
    assert torch.isfinite(found).all() and ((z > 0) == (torch.from_numpy(pairs.label) > 0.5)).all()


def test_a_loss_near_zero_does_not_halve_steps_for_its_rounding_errors():
    """A user whose loss is 1e-24 may reach 1e-14; one whose loss really rises is halved, and nobody else's step."""
    point, direction = torch.zeros(2, 1, dtype=torch.float64), torch.tensor([[1e-7], [4.0]], dtype=torch.float64)

    def loss_at(v: torch.Tensor) -> torch.Tensor:
        return torch.stack([v[0, 0] ** 2, (v[1, 0] - 1) ** 2])

    (moved,), reached = linear.backtracking_step(loss_at, (point,), (direction,), loss_at(point))
    assert moved.flatten().tolist() == [1e-7, 2.0] and reached[1] == 1


def test_laplace_covariance_is_the_inverse_hessian():
    pairs = problem([8, 40, 0, 2], 3)  # primal, another chunk, no pairs, dual
    mean, root = zero(3), torch.diag(torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64))
    modes = fit_map_weights(pairs, mean, root)
    precision = torch.linalg.inv(root @ root.T)
    each = posterior_covariances(pairs, modes, root)
    for u in range(4):
        part = pairs.of([u])
        x, y = torch.from_numpy(part.gap).double(), torch.from_numpy(part.label).double()

        def loss(w, x=x, y=y):
            return (torch.nn.functional.softplus(x @ w) - y * (x @ w)).sum() + w @ precision @ w / 2

        own = torch.linalg.inv(torch.autograd.functional.hessian(loss, modes[u]))
        assert torch.allclose(root @ each[u] @ root.T, own, atol=1e-6)


def test_the_mean_is_kept_where_people_agree_and_dropped_where_they_oppose():
    draw = torch.Generator().manual_seed(0)
    half = torch.randn(100, 5, generator=draw).double()
    spread = torch.cat([half, -half])  # two camps
    opposed = empirical_prior(spread, torch.eye(5, dtype=torch.float64))[0]
    agreed = empirical_prior(spread + 3, torch.eye(5, dtype=torch.float64))[0]
    assert torch.equal(opposed, zero(5))
    assert torch.allclose(agreed, torch.full((5,), 3.0, dtype=torch.float64), rtol=0.01)


def test_james_stein_by_hand():
    """n mT S^-1 m = 10 * (1 + 1 + 4) = 60 with r = 3: the factor is 1 - 1/60."""
    mean = torch.tensor([1.0, -1.0, 2.0], dtype=torch.float64)
    assert torch.allclose(james_stein_mean(mean, torch.eye(3, dtype=torch.float64), 10), mean * (59 / 60))
