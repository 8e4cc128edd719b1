"""PReF, LoRe and PAL agree with planted factors, naive loops and scipy's optimisers."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.special import expit

from harness.data import Items, Pairs, Panel
from harness.errors import UserError
from harness.learning import factors, priors
from harness.method import Run
from harness.registry import make_instance
from harness.trials.run import run_trial
from harness.trials.trial import Trial
from tasks.low_rank import LowRank

SMALL = dict(n_users=200, new_users=60, pairs_per_user=60, feature_dim=16, rank=3, queries=60)


def from_gaps(user, x, label):
    """Return pairs with the given gaps x: the right side is always an item of zeros."""
    items = Items(np.concatenate([x, np.zeros((1, x.shape[1]))]).astype(np.float32))
    n = len(user)
    left, right = np.arange(n, dtype=np.int32), np.full(n, n, np.int32)
    people = np.arange(user.max() + 1, dtype=np.int32)
    return Pairs(user.astype(np.int32), people, left, right, np.asarray(label, np.float32), items)


def accuracy(task, methods, seeds):
    """Return {method's index: mean accuracy at every number of shots} on test users."""
    found = []
    for seed in seeds:
        data = task.build(seed)
        splits = task.split(data, seed)
        for i, (name, fields) in enumerate(methods):
            result = run_trial(Trial(task, make_instance("method", name, fields), seed, "", ""), splits, data.truth)
            scores = result.scores.to_pandas()
            scores = scores[(scores.panel == "test") & ~scores.swapped]
            found.append(scores.groupby("shots").accuracy.mean().rename(i))
    return {i: sum(f for f in found if f.name == i) / len(seeds) for i in range(len(methods))}


@pytest.mark.parametrize(
    ("name", "fields"),
    [("pref", {"rank": 3}), ("pref", {"rank": 3, "svd": False}), ("lore", {"rank": 3, "weights": "free"})],
)
def test_a_planted_basis_is_recovered(name, fields):
    task = LowRank(**SMALL)
    data = task.build(0)
    splits = task.split(data, 0)
    state = make_instance("method", name, fields).fit(splits.train, splits.panels["validation"], Run(0))
    planted = np.linalg.lstsq(data.pairs.items.features, data.truth.items, rcond=None)[0]
    found = np.linalg.qr(state["root"].numpy())[0]
    cosines = np.linalg.svd(np.linalg.qr(planted)[0].T @ found)[1]
    assert cosines.min() > 0.98  # 12,000 answers for 48 + 600 parameters leave angles of a few degrees


@pytest.mark.slow
def test_low_rank_methods_reach_the_true_subspace():
    methods = [("true_subspace", {}), ("pref", {}), ("lore", {"weights": "free"})]
    found = accuracy(LowRank(queries=100), methods, range(2))
    for i in (1, 2):
        assert (found[i][[5, 10, 20]] > found[0][[5, 10, 20]] - 0.01).all(), methods[i]


@pytest.mark.slow
def test_mixtures_where_users_are_mixtures():
    task = LowRank(**SMALL, weights="dirichlet")
    methods = [
        ("true_subspace", {}),
        ("lore", {"rank": 3}),
        ("shared", {}),
        ("pal", {"variant": "angle", "steps": 600}),
    ]
    found = accuracy(task, methods, range(3))
    assert (found[1] > found[0] - 0.01).all()
    assert (found[3] > found[0] - 0.02).all()
    assert found[1][20] > found[2][20] + 0.03


@pytest.mark.parametrize("rank", [1, 4])
def test_the_matrix_of_shared_pairs_by_hand(rank):
    """The matrix is right for fifteen users on ten shared pairs, some reversed, some asked in both orders."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(20, 6)).astype(np.float32)
    user, column = np.divmod(np.arange(150), 10)
    user, column = np.r_[user, user[::7]], np.r_[column, column[::7]]
    order = np.argsort(user, kind="stable")
    user, column = user[order].astype(np.int32), column[order]
    flip = rng.random(len(user)) < 0.5
    left, right = np.where(flip, 2 * column + 1, 2 * column), np.where(flip, 2 * column, 2 * column + 1)
    label = rng.choice([0, 0.5, 1], len(user)).astype(np.float32)
    people = np.arange(15, dtype=np.int32)
    train = Pairs(user, people, left.astype(np.int32), right.astype(np.int32), label, Items(x))
    answers = [[[] for _ in range(10)] for _ in range(15)]
    for u, k, f, y in zip(user, column, flip, label, strict=True):
        answers[u][k].append(1 - 2 * y if f else 2 * y - 1)
    A = np.array([[np.mean(a, dtype=float) for a in row] for row in answers])
    _, s, Vt = np.linalg.svd(A, full_matrices=False)
    spectrum, basis = make_instance("method", "pref", {"rank": rank}).matrix_svd(train)
    assert np.abs(spectrum.numpy() - s).max() < 1e-10
    gap, columns = (x[0::2] - x[1::2]).astype(float), Vt[:rank].T * s[:rank] ** 0.5

    def ridge(rows, penalty):
        return np.linalg.solve(gap[rows].T @ gap[rows] + penalty * np.eye(6), gap[rows].T @ columns[rows])

    def left_out(penalty):
        return sum(np.square(gap[k] @ ridge(np.arange(10) != k, penalty) - columns[k]) for k in range(10))

    penalties = np.square(x[left] - x[right]).mean() * 10.0 ** np.arange(-2, 6)
    best = penalties[np.argmin([left_out(penalty) for penalty in penalties], axis=0)]  # of each direction
    fitted = np.stack([ridge(np.arange(10), best[i])[:, i] for i in range(rank)], 1)
    sign = np.sign((basis.numpy() * fitted).sum(0))  # the sign of a singular vector is arbitrary
    assert np.abs(basis.numpy() - sign * fitted).max() < 1e-6


def test_the_projected_svd_is_that_of_the_whole_matrix_where_features_tell_pairs_apart():
    """With as many features as shared pairs, projecting onto them changes nothing."""
    rng = np.random.default_rng(1)
    gap = np.linalg.qr(rng.normal(size=(12, 12)))[0]
    user = np.repeat(np.arange(9), 12)
    label = rng.integers(2, size=(9, 12)).astype(np.float32)
    singular, basis = factors.moment_svd(from_gaps(user, np.tile(gap, (9, 1)), label.ravel()))
    _, wanted, Vt = np.linalg.svd(2 * label - 1, full_matrices=False)
    scale = np.sqrt(9 * 1.001)  # every pair occurs nine times; 1.001 is the small ridge on the second moment
    assert np.abs(singular.numpy() * scale * np.sqrt(12) - wanted).max() < 1e-4  # rows are divided by the root of 12
    assert np.abs(np.abs(gap @ basis.numpy() * scale) - np.abs(Vt.T)).max() < 1e-4


def test_refinement_reaches_scipys_optimum():
    """At full rank the penalised problem has one minimum in the product, for any start."""
    rng = np.random.default_rng(2)
    n_users, n, d = 6, 15, 3
    user = np.repeat(np.arange(n_users), n)
    x = rng.normal(size=(len(user), d))
    label = rng.random(len(user)) < expit((x * rng.normal(size=(n_users, d))[user]).sum(1))
    train = from_gaps(user, x, label)
    noise = 0.5 * np.sqrt(n * np.mean(train.gap**2)) * (np.sqrt(n_users) + np.sqrt(d))

    def loss(v):
        W, theta = v[: n_users * d].reshape(n_users, d), v[n_users * d :].reshape(d, d)
        z = ((x @ theta) * W[user]).sum(1)
        return (np.logaddexp(0, z) - label * z).sum() + 0.12 * noise / 2 * (v**2).sum()

    best = min((minimize(loss, rng.normal(size=n_users * d + d * d)) for _ in range(3)), key=lambda r: r.fun)
    W, theta = best.x[: n_users * d].reshape(n_users, d), best.x[n_users * d :].reshape(d, d)
    weights, basis = factors.weights_in_basis(train, factors.moment_svd(train)[1])
    weights, basis = factors.fit_factors(train, weights, basis, 0.12, 500, Run(0))
    assert abs(loss(torch.cat([weights.flatten(), basis.flatten()]).numpy()) - best.fun) < 1e-4
    assert np.abs((weights @ basis.T).numpy() - W @ theta.T).max() < 0.02


def rescaled(pairs, factor):
    return replace(pairs, items=Items((pairs.items.features * factor).astype(np.float32)))


EVERY = [
    ("pref", {}),
    ("pref", {"svd": False}),
    ("lore", {}),
    ("lore", {"weights": "free"}),
    ("rfm", {}),
    ("spectral", {}),
    ("mixed_logit", {}),
    ("moment", {}),
]


@pytest.mark.parametrize(("name", "fields"), EVERY)
def test_the_unit_of_features_does_not_matter(name, fields):
    """New users' log-odds do not change if features are scaled by .01 or by 100."""
    task = LowRank(**SMALL | dict(n_users=60, new_users=40, pairs_per_user=30, queries=20))
    splits = task.split(task.build(0), 0)
    method, answers = make_instance("method", name, fields), []
    for factor in (1, 0.01, 100):
        shown = splits.panels["validation"]
        train, *panels = (rescaled(p, factor) for p in (splits.train, shown.context, shown.query))
        test = splits.panels["test"]
        state = method.fit(train, Panel(*panels), Run(0))
        users = method.adapt(state, rescaled(test.context, factor), Run(0))
        answers.append(method.score(state, users, rescaled(test.query, factor)).double().numpy())
    if name == "moment":  # its log-odds scale with the features
        answers = [z / np.sqrt(np.square(z).mean()) for z in answers]
    z, *others = answers
    for other in others:
        assert np.corrcoef(z, other)[0, 1] > 0.99 and 0.9 < np.std(other) / np.std(z) < 1.1


@pytest.mark.parametrize(("name", "fields"), [*EVERY, ("rfm", {"features": "mlp", "steps": 1}), ("per_user", {})])
@pytest.mark.parametrize("nothing", ["labels of one half", "features of zero", "one pair each"])
def test_where_there_is_nothing_to_learn_answers_are_finite(name, fields, nothing):
    task = LowRank(n_users=20, new_users=20, pairs_per_user=20, feature_dim=4, rank=2)
    splits = task.split(task.build(0), 0)
    validation, test = splits.panels["validation"], splits.panels["test"]
    pairs = [splits.train, validation.context, validation.query, test.context, test.query]
    if nothing == "labels of one half":
        pairs[0] = replace(pairs[0], label=np.full_like(pairs[0].label, 0.5))
    elif nothing == "features of zero":
        pairs = [rescaled(p, 0) for p in pairs]
    else:
        pairs[0] = pairs[0].first(1)
    method = make_instance("method", name, fields)
    state = method.fit(pairs[0], Panel(*pairs[1:3]), Run(0))
    assert torch.isfinite(method.score(state, method.adapt(state, pairs[3], Run(0)), pairs[4])).all()


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("pref", {"rank": -1}),
        ("pref", {"steps": 0}),
        ("pref", {"decay": -1.0}),
        ("lore", {"rank": 0}),
        ("spectral", {"rank": 0}),
        ("mixed_logit", {"steps": -1}),
        ("per_user", {"scale": 0.0}),
    ],
)
def test_settings_that_mean_nothing_are_refused(name, fields):
    with pytest.raises(UserError, match=name):
        make_instance("method", name, fields)


@pytest.mark.parametrize(("name", "fields"), [("spectral", {"rank": 1}), ("lore", {"rank": 1}), ("pref", {"steps": 1})])
def test_the_smallest_settings_are_allowed(name, fields):
    made = make_instance("method", name, fields)
    assert all(getattr(made, field) == value for field, value in fields.items())


def simplex_problem(n_users=4, n=30, r=3, seed=0):
    rng = np.random.default_rng(seed)
    Z = rng.normal(size=(n_users, n, r)) * 3
    w = rng.dirichlet(np.ones(r), size=n_users)
    y = rng.random((n_users, n)) < expit((Z @ w[:, :, None])[..., 0])
    return Z, y.astype(float), w


def test_weights_on_the_simplex_are_scipys():
    Z, y, _ = simplex_problem()
    mask, offset = np.ones_like(y), np.full_like(y, 0.3)
    mask[1, 7:], mask[2] = 0, 0  # users with seven pairs and with none
    mean = np.array([0.2, 0.5, 0.3])
    prior = {"mean": torch.tensor(mean), "precision": torch.diag(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))}
    found = priors.fit_simplex_weights(*(torch.from_numpy(a) for a in (Z, y, mask, offset)), prior).numpy()
    assert np.abs(found[2] - mean).max() < 1e-9
    for u in range(len(Z)):

        def loss(w, u=u):
            z = offset[u] + Z[u] @ w
            ridge = (np.array([1.0, 2, 3]) * (w - mean) ** 2).sum() / 2 - priors.SIMPLEX_BARRIER * mean @ np.log(w)
            return (mask[u] * (np.logaddexp(0, z) - y[u] * z)).sum() + ridge

        one = {"type": "eq", "fun": lambda w: w.sum() - 1}
        wanted = minimize(loss, mean, bounds=[(1e-9, 1)] * 3, constraints=one, method="SLSQP", options={"ftol": 1e-12})
        assert np.abs(found[u] - wanted.x).max() < 1e-4


def test_planted_weights_on_the_simplex_are_recovered():
    Z, y, w = simplex_problem(n_users=20, n=5000, r=4)
    wide = {"mean": torch.full((4,), 0.25, dtype=torch.float64), "precision": 1e-6 * torch.eye(4, dtype=torch.float64)}
    Z, y = torch.from_numpy(Z), torch.from_numpy(y)
    found = priors.fit_simplex_weights(Z, y, torch.ones_like(y), torch.zeros_like(y), wide)
    assert np.abs(found.numpy() - w).max() < 0.06  # 5,000 answers give standard errors near .01
    assert (found > 0).all() and (found.sum(1) - 1).abs().max() < 1e-9


def test_a_basis_reward_that_nobody_uses_breaks_nothing():
    """A softmax in single precision may give every training user a weight of exactly 0."""
    weights = torch.tensor([[0.75, 0.25, 0.0], [0.5, 0.5, 0.0]], dtype=torch.float64)
    Z, y = (
        torch.randn(2, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)),
        torch.ones(2, 4).double(),
    )
    for prior in priors.mixture_priors(weights):
        found = priors.fit_simplex_weights(Z, y, torch.ones_like(y), torch.zeros_like(y), prior)
        assert torch.isfinite(found).all() and (found > 0).all() and found.sum(1) == pytest.approx([1, 1])


@pytest.mark.slow
def test_distances_to_ideal_points_are_learned():
    """PAL learns users between three prototypes in a plane, whose rewards are distances and not linear."""
    rng = np.random.default_rng(0)
    prototypes = np.array([[2.0, 0], [-1, 1.7], [-1, -1.7]])

    def people(n_users, n):
        user = np.repeat(np.arange(n_users, dtype=np.int32), n)
        ideal = (rng.dirichlet(np.full(3, 0.3), size=n_users) @ prototypes)[user]
        x = rng.normal(size=(2 * len(user), 2)) * 2
        gap = ((x[1::2] - ideal) ** 2).sum(1) - ((x[0::2] - ideal) ** 2).sum(1)
        label = (rng.random(len(user)) < expit(gap)).astype(np.float32)
        left = np.arange(0, len(x), 2, dtype=np.int32)
        pairs = Pairs(user, np.arange(n_users, dtype=np.int32), left, left + 1, label, Items(x.astype(np.float32)))
        return pairs, gap

    train, _ = people(100, 50)
    validation, test = ((p.first(20), p.take(p.rank >= 20), g) for p, g in (people(30, 60), people(30, 60)))

    def share(name, fields):
        method = make_instance("method", name, fields)
        state = method.fit(train, Panel(*validation[:2]), Run(0))
        z = method.score(state, method.adapt(state, test[0], Run(0)), test[1]).numpy()
        return ((z > 0) == test[1].label).mean()

    oracle = ((test[2] > 0)[np.tile(np.arange(60) >= 20, 30)] == test[1].label).mean()
    assert share("pal", {"prototypes": 3, "dim": 2}) > oracle - 0.04  # .02 to .035 below over seeds
    assert share("pal", {"prototypes": 3, "dim": 2, "variant": "angle"}) < oracle - 0.1
    assert share("per_user", {}) < oracle - 0.1


@pytest.mark.parametrize("fields", [{"hidden": 8}, {"variant": "angle", "hidden": 8}])
def test_pal_with_a_network_keeps_the_contract_of_sides(fields):
    task = LowRank(n_users=20, new_users=10, pairs_per_user=20, feature_dim=4, rank=2)
    splits = task.split(task.build(0), 0)
    context, query = splits.panels["test"].context, splits.panels["test"].query
    method = make_instance("method", "pal", fields | {"steps": 50})
    state = method.fit(splits.train, splits.panels["validation"], Run(0))
    users = method.adapt(state, context, Run(0))
    z = method.score(state, users, query)
    assert (method.score(state, users, query.swapped()) + z).abs().max() < 1e-4
    alone = replace(context, label=1 - context.label)
    assert (method.score(state, method.adapt(state, alone, Run(0)), query) - z).abs().max() > 0.1
