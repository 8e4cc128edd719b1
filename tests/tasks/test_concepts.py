"""The cluster model and DPO's linear head agree with the paper's equations, solved and differentiated independently."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from scipy.optimize import brentq

from harness.data import Items
from harness.errors import UserError
from harness.method import Run
from harness.methods.dpo_head import DpoHead
from harness.trials.run import run_trial
from harness.trials.trial import Trial
from tasks.concepts import Concepts, generalisation_bound, smallest_informative_q

SMALL = Concepts(K=3, Q=8, feature_dim=10, width=2, queries=30)


def prepared(task, seed=0):
    data = task.build(seed)
    return task.split(data, seed), data.truth


def fitted(task, seed=0, **fields):
    splits, truth = prepared(task, seed)
    state = DpoHead(**fields).fit(splits.train, splits.panels["validation"], Run(seed))
    return state, task.diagnostics(splits, truth, state, ()), splits


def prompts(pairs, d):
    """Return g(x) float64[n, d], and the one-hot of the preferred token minus that of the other, float64[n, V]."""
    won = np.where(pairs.label == 1, pairs.left, pairs.right)
    lost = np.where(pairs.label == 1, pairs.right, pairs.left)
    blocks = pairs.items.features.astype(np.float64).reshape(len(pairs.items), -1, d)
    used = (blocks != 0).any(2).astype(np.float64)
    assert (used.sum(1) == 1).all()
    assert np.array_equal(blocks[won].sum(1), blocks[lost].sum(1))  # the same prompt
    return blocks[won].sum(1), used[won] - used[lost]


def test_clusters_are_the_papers():
    task = Concepts(K=3, Q=400, feature_dim=6, l_b=0.4)
    splits, _ = prepared(task)
    g, token = prompts(splits.train, 6)
    kinds, cluster, counts = np.unique(token, axis=0, return_inverse=True, return_counts=True)
    assert (counts == 400).all() and len(kinds) == 6
    means = np.array([g[cluster == c].mean(0) for c in range(6)])
    noise = 4.5 * task.cluster_sd / np.sqrt(400)
    for kind, mean in zip(kinds, means, strict=True):  # c_i is e_{1+i}; the + cluster prefers a concept's first token
        concept, aligned = np.flatnonzero(kind)[0] // 2, kind[np.flatnonzero(kind)[0]] > 0
        wanted = np.zeros(6)
        wanted[0], wanted[1 + concept] = 0.4, 1 if aligned else -1
        assert np.abs(mean - wanted).max() < noise
    assert abs((g - means[cluster]).std() / task.cluster_sd - 1) < 4.5 / np.sqrt(2 * g.size)
    assert task.cluster_sd == 1 / (4 * np.sqrt(400))
    assert prompts(prepared(replace(task, tokens="yes_no"))[0].train, 6)[1].shape[1] == 2


def test_margins_solve_the_papers_equations():
    """Margins satisfy eq. 10 on training prompts and eq. 9 on unseen ones, by an independent solver."""
    state, readings, splits = fitted(replace(SMALL, width=12), horizon=600.0, records=48)
    (g, token), (g_new, token_new) = prompts(splits.train, 10), prompts(splits.panels["test"].query, 10)
    C = (np.concatenate([token, token_new]) @ token.T) * (np.concatenate([g, g_new]) @ g.T)
    N = len(g)
    assert N == 2 * SMALL.K * SMALL.Q

    def flow(_, r):
        return 0.1**2 / N * C @ (1 / (1 + np.exp(r[:N])))

    times = state["times"].numpy()
    exact = solve_ivp(flow, (0, 600), np.zeros(len(C)), "DOP853", times, rtol=1e-10, atol=1e-12).y
    assert np.allclose(times, np.linspace(0, 600, 49))
    assert np.abs(state["margins"].numpy().T - exact[:N]).max() < 2e-6 and exact.max() > 1  # stored as float32
    assert abs(readings["test_mean_margin_5tau"] - np.interp(100 * np.log(3), times, exact[N:].mean(0))) < 2e-6
    inside = np.all(
        [(exact[:N, k] >= t / 2400) & (exact[:N, k] <= t / 60) for k, t in enumerate(times) if 0 < t < 66], 0
    )
    assert readings["inside_band"] == inside.mean() and 0.5 < inside.mean() < 1


def test_flow_descends_the_dpo_loss_as_printed():
    """dW/dt = -grad L / tau for L of eq. 4 with softmax probabilities and any reference W_0, by torch's gradient."""
    beta, tau, records = 0.3, 2.0, 400
    state, _, splits = fitted(SMALL, beta=beta, tau=tau, horizon=80.0, records=records)
    g, token = (torch.from_numpy(a) for a in prompts(splits.train, 10))
    won, lost = (token > 0).double(), (token < 0).double()
    W0 = torch.randn(6, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    u = state["weights"].double().reshape(-1, 6, 10)
    for k in (1, 100, records - 1):
        W = (W0 + u[k] / beta).requires_grad_()
        log_p, log_ref = torch.log_softmax(g @ W.T, 1), torch.log_softmax(g @ W0.T, 1)
        ratio = log_p - log_ref
        margin = beta * ((ratio * won).sum(1) - (ratio * lost).sum(1))
        (-torch.nn.functional.logsigmoid(margin).mean()).backward()
        moved = (u[k + 1] - u[k - 1]) / (2 * 80.0 / records) / beta
        assert torch.allclose(margin.detach(), state["margins"][k].double(), atol=1e-6)
        assert (moved + W.grad / tau).abs().max() < 1e-3 * W.grad.abs().max() / tau


@pytest.mark.parametrize("K", [1, 3])
def test_narrow_clusters_have_a_closed_form(K):
    """As v goes to 0, margins solve tau r' = 2 beta^2 / K sigmoid(-r), so that r + e^r = 1 + 2 beta^2 t / (K tau)."""
    state, _, _ = fitted(Concepts(K=K, Q=20, width=1e-4, l_b=0.5, queries=20), beta=0.2, tau=0.5, horizon=100.0)
    for t, margins in zip(state["times"].tolist(), state["margins"].numpy(), strict=True):
        exact = brentq(lambda r, t=t: r + np.exp(r) - 1 - 2 * 0.2**2 * t / (K * 0.5), -1, 20)
        assert np.abs(margins - exact).max() < 1e-4


def test_margins_slow_down_with_concepts():
    found = {
        K: np.mean(
            [
                fitted(Concepts(K=K, queries=2 * K), s, horizon=100 * np.log(3), records=4)[1]["mean_margin_5tau"]
                for s in (0, 1)
            ]
        )
        for K in (1, 2, 4, 8, 16)
    }
    for K, ratio in {1: 1, 2: 1.75, 4: 3.3, 8: 6.4, 16: 12.5}.items():
        assert abs(found[1] / found[K] / ratio - 1) < 0.05, K


def test_the_band_holds_where_allowed_and_not_for_wide_clusters():
    for seed in range(3):
        for allowed in (Concepts(), Concepts(K=2, Q=256, l_b=0.35)):
            readings = fitted(allowed, seed)[1]
            assert readings["inside_band"] == readings["test_inside_band"] == 1
            assert readings["test_accuracy_1tau"] == 1
        assert fitted(Concepts(K=1), seed, records=320)[1]["inside_band"] == 1  # at twenty times up to tau_1
    wide = [fitted(Concepts(width=8), seed)[1]["inside_band"] for seed in range(3)]
    assert 0.9 < np.mean(wide) < 1
    assert "inside_band" not in fitted(Concepts(), horizon=80.0)[1]  # tau_1 of four concepts is 87.9: not reached
    assert "inside_band" not in fitted(Concepts(), records=3)[1]  # tau_1 is reached, but no earlier time is recorded


def test_pairs_or_features_whichever_are_fewer():
    """Primal and dual agree, also for soft labels; constant zero features only change which of both is used."""
    splits, _ = prepared(Concepts(K=1, Q=20, feature_dim=8, width=6, queries=20))
    rng = np.random.default_rng(0)
    train = replace(splits.train, label=rng.random(len(splits.train)).astype(np.float32))
    features = train.items.features
    wide = Items(np.concatenate([features, np.zeros((len(features), 100), np.float32)], 1))
    validation = splits.panels["validation"]
    wider = replace(validation, query=replace(validation.query, items=wide))
    one = DpoHead().fit(train, validation, Run(0))["mean"]
    other = DpoHead().fit(replace(train, items=wide), wider, Run(0))["mean"]
    assert len(one) < len(train) < len(other)
    assert one.abs().max() > 0.01 and torch.allclose(one, other[: len(one)], atol=1e-10)


def test_in_a_trial():
    task = replace(SMALL, width=1)
    splits, truth = prepared(task)

    def result(method):
        return run_trial(Trial(task, method, 0, "test", "test"), splits, truth)

    found = result(DpoHead())
    accuracy = found.scores.to_pandas().set_index("panel").accuracy
    assert set(accuracy.index) == {"seen", "validation", "test"} and (accuracy == 1).all()
    assert found.facts["readings"]["accuracy_5tau"] == 1
    assert len(found.facts["curves"]["validation_loss"]) == 65
    assert set(found.learned) >= {"state/times", "state/margins", "state/weights"}
    from harness.methods.chance import Chance

    assert result(Chance()).facts["readings"] == {}


def test_the_bound_is_vacuous_at_any_real_size():
    assert 5.5e9 < smallest_informative_q(1) < 6e9 < smallest_informative_q(4) < smallest_informative_q(16) < 8e9
    for K in (1, 16):
        assert (
            generalisation_bound(K, 0.999 * smallest_informative_q(K))
            > 1
            > generalisation_bound(K, 1.001 * smallest_informative_q(K))
        )
        assert min(generalisation_bound(K, Q) for Q in np.geomspace(1, 5e9, 200)) > 1
    assert abs(generalisation_bound(1, 16) - 2 * 256 * np.exp(-1 / 3)) < 1e-9


@pytest.mark.parametrize("fields", [{"K": 64}, {"width": 0.0}, {"shots": (0, 5)}, {"l_b": -1.0}])
def test_refuses_what_cannot_be(fields):
    with pytest.raises(UserError):
        Concepts(**fields)


def test_says_where_features_are_too_large():
    splits, _ = prepared(Concepts(K=1, Q=5, l_b=3000.0, queries=4))
    with pytest.raises(ValueError, match="scale the features down"):
        DpoHead(horizon=1e6).fit(splits.train, splits.panels["validation"], Run(0))
