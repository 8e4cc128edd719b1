"""Adaptation of all users at once against a loop over scikit-learn: one thread, float64, same objective, no intercept.

Prints users per CPU second, medians of alternating runs, and ratios; the aims are 8, 4 and 2 times scikit-learn's
default solver: OMP_NUM_THREADS=1 python tests/benchmarks/bench_adaptation.py
"""

import time
import warnings

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from harness.data import Items, Pairs
from harness.learning import linear
from harness.trials.facts import peak_memory_mb, reset_peak_memory

SHAPES = [(1000, 20, 32, 8), (400, 50, 256, 4), (100, 50, 2048, 2)]  # users, pairs, features, target ratio
SOLVERS = ("lbfgs", "newton-cholesky", "liblinear")  # the first is the default
RUNS = 5
LOOPED = 60  # users in the timed scikit-learn loop: each costs about the same


def problem(n_users: int, n: int, d: int, items: int = 0) -> Pairs:
    """Return Gaussian gaps and Bradley-Terry labels of random users; with `items`, pairs among so many shared items."""
    rng = np.random.default_rng(0)
    user = np.repeat(np.arange(n_users, dtype=np.int32), n)
    if items:
        features = rng.normal(size=(items, d)).astype(np.float32) / np.float32(2**0.5)
        left, right = rng.integers(items, size=(2, len(user)), dtype=np.int32)
    else:
        features = np.concatenate([rng.normal(size=(len(user), d)), np.zeros((1, d))]).astype(np.float32)
        left, right = np.arange(len(user), dtype=np.int32), np.full(len(user), len(user), np.int32)
    z = (
        rng.normal(size=len(user)) * 2
        if items
        else (features[left] * rng.normal(size=(n_users, d))[user]).sum(1) * 2 / d**0.5
    )
    label = (rng.random(len(user)) < 1 / (1 + np.exp(-z))).astype(np.float32)
    return Pairs(user, np.arange(n_users, dtype=np.int32), left, right, label, Items(features))


def cpu_seconds(work) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def adapt(pairs: Pairs) -> torch.Tensor:
    d = pairs.items.features.shape[1]
    return linear.fit_map_weights(pairs, torch.zeros(d, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64))


def flops(n_users: int, n: int, d: int, steps: int) -> float:
    """Return the operations (two per multiply-add) of so many Newton steps, for the smaller of primal and dual."""
    if n < d:
        return n_users * (n * n * d + 2 * n * d + steps * (n**3 / 3 + 6 * n * n))
    return n_users * steps * (n * d * d + d**3 / 3 + 4 * n * d)


def newton_steps(pairs: Pairs) -> int:
    """Return the Newton steps of the slowest chunk of users."""
    counted = [0]
    cholesky = torch.linalg.cholesky_ex

    def counting(matrix):
        counted[0] += 1
        return cholesky(matrix)

    linear.torch.linalg.cholesky_ex = counting
    try:
        adapt(pairs.chunk(0, min(pairs.n_users, 20)))
    finally:
        linear.torch.linalg.cholesky_ex = cholesky
    return counted[0]


def peak_gflops() -> float:
    a = torch.randn(1024, 1024, dtype=torch.float64)
    return 2 * 1024**3 / min(cpu_seconds(lambda: a @ a) for _ in range(5)) / 1e9


def compare(n_users: int, n: int, d: int, aim: float) -> None:
    pairs = problem(n_users, n, d)
    X, y = pairs.gap.reshape(n_users, n, d).astype(float), pairs.label.reshape(n_users, n)
    both = [u for u in range(n_users) if 0 < y[u].sum() < n][:LOOPED]

    def loop(solver):
        for u in both:
            LogisticRegression(C=1.0, fit_intercept=False, solver=solver).fit(X[u], y[u])

    solvers = [s for s in SOLVERS if s != "newton-cholesky" or d <= 256]  # d^3 per step: larger d takes minutes
    rates = {name: [] for name in ("ours", *solvers)}
    adapt(pairs)
    for _ in range(RUNS):
        rates["ours"].append(n_users / cpu_seconds(lambda: adapt(pairs)))
        for solver in solvers:
            rates[solver].append(len(both) / cpu_seconds(lambda: loop(solver)))  # noqa: B023
    median = {name: float(np.median(rate)) for name, rate in rates.items()}
    fastest = max(solvers, key=median.get)
    found = adapt(pairs)
    tight = LogisticRegression(C=1.0, fit_intercept=False, tol=1e-12, max_iter=10**5)
    error = max(np.abs(tight.fit(X[u], y[u]).coef_[0] - found[u].numpy()).max() for u in both)
    done = flops(n_users, n, d, newton_steps(pairs)) * median["ours"] / n_users / 1e9
    print(f"{n_users} users x {n} pairs, d = {d}")
    print("  users per CPU second: " + ", ".join(f"{name} {rate:,.0f}" for name, rate in median.items()))
    print(
        f"  {median['ours'] / median['lbfgs']:.1f} x the default (aim {aim}), {median['ours'] / median[fastest]:.1f} x the fastest ({fastest})"
    )
    print(
        f"  largest distance to a tight optimum {error:.1e}; {done:.1f} GFLOP/s of {peak_gflops():.0f} in a large matrix product",
        flush=True,
    )


def at_scale(n_users: int) -> None:
    pairs = problem(n_users, 20, 16, items=100_000)
    reset_peak_memory()
    before = peak_memory_mb()
    seconds = cpu_seconds(lambda: adapt(pairs))
    after = peak_memory_mb()
    weights = n_users * 16 * 8 / 2**20
    print(
        f"{n_users:>9,} users x 20 pairs, d = 16: {n_users / seconds:,.0f} users per CPU second; peak memory grew by {after - before:,.0f} MB, of which {weights:.0f} MB are the answer",
        flush=True,
    )


if __name__ == "__main__":
    warnings.simplefilter("ignore", ConvergenceWarning)
    warnings.simplefilter("ignore", FutureWarning)
    torch.set_num_threads(1)
    with threadpool_limits(1):
        for users in (10_000, 100_000, 1_000_000):
            at_scale(users)
        for shape in SHAPES:
            compare(*shape)
