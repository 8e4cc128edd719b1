"""Mixtures over users' weights meet optima found by scipy, an independent package, and planted populations."""

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.optimize import minimize
from scipy.special import expit
from scipy.stats import norm

from harness.data import Items, Pairs
from harness.learning.mixtures import Mixture, fit_gaussians, fit_mixture, mixture_posteriors
from harness.method import Run


def answers_of(weights, n, seed=0, hard=True):
    """Return n pairs of each user, with Gaussian gaps and answers by the given weights [users, d]."""
    rng = np.random.default_rng(seed)
    n_users, d = weights.shape
    counts = np.full(n_users, n) if np.isscalar(n) else np.asarray(n)
    user = np.repeat(np.arange(n_users, dtype=np.int32), counts)
    x = rng.normal(size=(len(user), d)).astype(np.float32)
    p = expit((x * weights[user]).sum(1))
    label = (rng.random(len(user)) < p) if hard else p
    items = Items(np.concatenate([x, np.zeros((1, d), np.float32)]))
    rows = np.arange(len(user), dtype=np.int32)
    ends = np.full(len(user), len(user), np.int32)
    return Pairs(user, np.arange(n_users, dtype=np.int32), rows, ends, label.astype(np.float32), items)


def one(mean, root=None):
    mean = torch.as_tensor(mean, dtype=torch.float64)
    root = torch.eye(len(mean), dtype=torch.float64) if root is None else root
    return Mixture(mean[None], root, torch.zeros(1, dtype=torch.float64))


def integral(f, mean, sd):
    return quad(lambda t: f(mean + sd * t) * norm.pdf(t), -9, 9)[0]


@pytest.mark.parametrize(("n", "d"), [(7, 2), (2, 3)])  # primal, dual
def test_the_gaussian_is_the_nearest_to_the_posterior(n, d):
    """No Gaussian that scipy finds has a higher evidence bound, computed by adaptive quadrature."""
    rng = np.random.default_rng(n)
    Z, y, offset = rng.normal(size=(n, d)), rng.integers(2, size=n).astype(float), rng.normal(size=n)
    given = (torch.from_numpy(a)[None] for a in (Z, y, np.ones(n), offset, np.zeros(d), np.square(Z).sum(1)))
    found = fit_gaussians(*given, rounds=60)

    def bound(parameters):
        mean, L = parameters[:d], np.zeros((d, d))
        L[np.tril_indices(d)] = parameters[d:]
        z, sd = offset + Z @ mean, np.linalg.norm(Z @ L, axis=1)
        loss = sum(integral(lambda t: np.logaddexp(0, t), a, s) for a, s in zip(z, sd, strict=True)) - y @ z
        return loss + (mean @ mean + np.square(L).sum() - d) / 2 - np.log(np.abs(np.diag(L))).sum()

    best = minimize(bound, np.r_[np.zeros(d), np.eye(d)[np.tril_indices(d)]], tol=1e-9)
    assert np.abs(found.v[0].numpy() - best.x[:d]).max() < 2e-3
    assert abs(float(found.evidence[0]) + best.fun) < 1e-3
    L = np.zeros((d, d))
    L[np.tril_indices(d)] = best.x[d:]
    covariance = found.sum_of_covariances(torch.ones(1, dtype=torch.float64)).numpy()
    assert np.abs(covariance - L @ L.T).max() < 2e-3
    np.testing.assert_allclose(found.variance[0].numpy(), np.square(Z @ L).sum(1), rtol=3e-3)


def test_users_without_answers_have_the_prior():
    mixture = Mixture(
        torch.tensor([[1.0, 0], [0, 2]], dtype=torch.float64),
        torch.eye(2, dtype=torch.float64) / 2,
        torch.tensor([0.25, 0.75], dtype=torch.float64).log(),
    )
    found = mixture_posteriors(answers_of(np.ones((3, 2)), [0, 5, 0]), mixture)
    for user in (0, 2):
        assert torch.equal(found.weights[:, user], mixture.means)
        assert torch.allclose(found.shares[user], mixture.log_shares.exp())
    two = mixture_posteriors(answers_of(np.ones((2, 2)), [0, 0]), mixture)
    assert torch.allclose(two.covariance, 2 * mixture.root @ mixture.root.T)


def test_components_are_told_apart_by_bayes_rule():
    """With next to no spread inside a component, its share is prior times likelihood, by hand."""
    means = torch.tensor([[2.0, 0], [-1, 1]], dtype=torch.float64)
    mixture = Mixture(means, 1e-4 * torch.eye(2, dtype=torch.float64), torch.tensor([0.3, 0.7]).double().log())
    pairs = answers_of(np.array([[2.0, 0], [-1, 1], [0, 0]]), 4)
    found = mixture_posteriors(pairs, mixture).shares.numpy()
    for user in range(3):
        part = pairs.of([user])
        p = expit(part.gap @ means.numpy().T)
        likely = np.where(part.label[:, None] > 0.5, p, 1 - p).prod(0) * [0.3, 0.7]
        assert np.abs(found[user] - likely / likely.sum()).max() < 1e-5


def test_a_planted_population_keeps_its_size():
    """The fitted mean is within a tenth of the true one; a fit by posterior modes shrinks it by a third."""
    rng = np.random.default_rng(3)
    truth = 1 + rng.normal(size=(1000, 3))
    fitted, _ = fit_mixture(answers_of(truth, 8), one(torch.zeros(3)), 60, Run(0))
    assert np.abs(fitted.means[0].numpy() - truth.mean(0)).max() < 0.12
    spread = (fitted.root @ fitted.root.T).diagonal().sqrt().numpy()
    assert np.abs(spread - truth.std(0)).max() < 0.2


@pytest.mark.slow
def test_the_population_is_that_of_an_independent_package():
    """Simulated maximum likelihood by xlogit finds the same mean and spread."""
    xlogit = pytest.importorskip("xlogit", reason="needs xlogit (the extra `test`)")
    rng = np.random.default_rng(4)
    pairs = answers_of(np.array([1.0, -0.5]) + np.array([1.0, 0.7]) * rng.normal(size=(500, 2)), 12)
    fitted, _ = fit_mixture(pairs, one(torch.zeros(2)), 100, Run(0))
    x = np.stack([pairs.gap, np.zeros_like(pairs.gap)], 1).reshape(-1, 2)  # the right item has no features
    chosen = np.stack([pairs.label, 1 - pairs.label], 1).ravel() > 0.5
    model = xlogit.MixedLogit()
    model.fit(
        X=x,
        y=chosen,
        varnames=["a", "b"],
        alts=np.tile([1, 2], len(pairs)),
        ids=np.repeat(np.arange(len(pairs)), 2),
        panels=np.repeat(pairs.user, 2),
        randvars={"a": "n", "b": "n"},
        n_draws=500,
        verbose=0,
    )
    mean, sd = model.coeff_[:2], np.abs(model.coeff_[2:])
    assert np.abs(fitted.means[0].numpy() - mean).max() < 0.12
    assert np.abs((fitted.root @ fitted.root.T).diagonal().sqrt().numpy() - sd).max() < 0.2


def test_two_kinds_of_people_are_found():
    rng = np.random.default_rng(5)
    kind = rng.integers(2, size=200)
    centers = np.array([[3.0, 0], [-3, 2]])
    start = Mixture(
        torch.tensor([[1.0, 0], [-1, 0]]).double(), torch.eye(2).double(), torch.tensor([0.5, 0.5]).double().log()
    )
    fitted, posteriors = fit_mixture(answers_of(centers[kind], 20), start, 30, Run(0))
    assert np.abs(fitted.means.numpy() - centers).max() < 0.6
    assert (posteriors.shares.argmax(1).numpy() == kind).mean() > 0.99
    assert np.abs(fitted.log_shares.exp().numpy() - np.bincount(kind) / 200).max() < 0.02
