"""Methods that read a user by a network: against Bayes, planted modes and closed forms."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import expit

from harness.amortised import as_shown, divergence
from harness.check import method_checks
from harness.data import Pairs
from harness.find import make
from harness.method import Run
from harness.mistake import Mistake
from harness.neural import forward, mlp, train
from tasks.two_modes import TwoModes


@pytest.fixture(scope="module")
def world():
    task = TwoModes()
    data = task.build(0)
    return task.split(data, 0), data.truth


@pytest.fixture(scope="module")
def fitted(world):
    splits, _ = world
    found = {}
    for name, fields in (("np_btl", {}), ("vpl", {"steps": 1500, "rate": 3e-3})):
        method = make("method", name, fields)
        found[name] = method, method.fit(splits.train, splits.panels["validation"], Run(0))
    return found


def log_odds(method, state, panel, shots):
    return method.score(state, method.adapt(state, panel.context.first(shots), Run(0)), panel.query.without_labels())


def right(z, panel):
    return float(((z.numpy() > 0) == (panel.query.label > 0.5)).mean())


@pytest.mark.parametrize(("name", "bound"), [("np_btl", 0.03), ("vpl", 0.04)])
def test_close_to_bayes(world, fitted, name, bound):
    splits, truth = world
    panel, bayes = splits.panels["test"], make("method", "bayes", {})
    line = bayes.fit(splits.train, splits.panels["validation"], Run(0, truth=truth))
    for shots in (1, 3, 5, 10):
        reached = right(log_odds(*fitted[name], panel, shots), panel)
        assert reached > right(log_odds(bayes, line, panel, shots), panel) - bound, shots


@pytest.mark.parametrize("name", ["np_btl", "vpl"])
def test_without_context_it_answers_for_the_population(world, fitted, name):
    """Sure where both modes agree, near a coin where they do not; the same answer for everybody."""
    splits, truth = world
    panel = splits.panels["test"]
    z = log_odds(*fitted[name], panel, 0)
    gap = truth.items[panel.query.left] - truth.items[panel.query.right]
    agreed = (gap[:, 0] > 0) == (gap[:, 1] > 0)
    assert ((z.numpy() > 0) == (gap[:, 0] > 0))[agreed].mean() > 0.97
    assert np.abs(expit(z.numpy()[~agreed]) - 0.5).mean() < 0.2
    users = fitted[name][0].adapt(fitted[name][1], panel.context.first(0), Run(0))
    assert all((tensor == tensor[0]).all() for tensor in users)


@pytest.mark.parametrize("name", ["np_btl", "vpl"])
def test_latents_tell_the_planted_mode(world, fitted, name):
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_score

    splits, truth = world
    panel = splits.panels["test"]
    latents = fitted[name][0].adapt(fitted[name][1], panel.context, Run(0))[0].numpy()
    mode = truth.users[panel.query.people].argmax(1)
    assert cross_val_score(LogisticRegression(max_iter=1000), latents, mode, cv=5).mean() > 0.95
    strangers = np.random.default_rng(0).permutation(mode)
    assert cross_val_score(LogisticRegression(max_iter=1000), latents, strangers, cv=5).mean() < 0.65


def test_a_narrower_posterior_with_more_pairs(world, fitted):
    method, state = fitted["vpl"]
    context = world[0].panels["test"].context
    widths = [method.adapt(state, context.first(n), Run(0))[1] for n in (0, 1, 3, 10)]
    assert (widths[0] == 1).all()  # the prior
    assert all((more < fewer).all() for fewer, more in zip(widths, widths[1:], strict=False))


@pytest.mark.parametrize("fields", [{"encoder": "attention"}, {"latent": True}])
def test_variants_keep_the_contract_and_learn(world, fields):
    splits, _ = world
    short = make("method", "np_btl", {"steps": 300, **fields})
    panel = splits.panels["test"]
    state = short.fit(splits.train, splits.panels["validation"], Run(0))
    assert right(log_odds(short, state, panel, 10), panel) > right(log_odds(short, state, panel, 0), panel) + 0.1
    assert [what for what, ask in method_checks(replace(short, steps=20)) if ask()] == []


def test_divergence_is_torchs():
    draw = torch.Generator().manual_seed(0)
    (m, n), (v, w) = torch.randn(2, 5, 3, generator=draw), torch.rand(2, 5, 3, generator=draw) + 0.1
    normal = torch.distributions.Normal
    wanted = torch.distributions.kl_divergence(normal(m, v.sqrt()), normal(n, w.sqrt())).sum(1).mean()
    assert torch.allclose(divergence(m, v, n, w), wanted, atol=1e-5)


def test_a_shown_pair_is_winner_and_loser():
    """For hard labels a linear change of (winner, loser), and the same whichever side is called left."""
    x = torch.randn(4, 2, 3, generator=torch.Generator().manual_seed(0))
    label = torch.tensor([1.0, 0.0, 1.0, 0.0])
    middle, gap = as_shown(x, label).chunk(2, 1)
    winner = torch.where(label[:, None] == 1, x[:, 0], x[:, 1])
    loser = torch.where(label[:, None] == 1, x[:, 1], x[:, 0])
    assert torch.allclose(middle + gap / 2, winner) and torch.allclose(middle - gap / 2, loser)
    soft = torch.tensor([0.3, 0.5, 0.9, 1.0])
    assert torch.allclose(as_shown(x, soft), as_shown(x.flip(1), 1 - soft), atol=1e-6)


def test_episodes_ask_only_what_they_do_not_show():
    """Users of 2 to 30 pairs: every pair at most once, all of the user's own, context sizes from none to all but one."""
    rng = np.random.default_rng(0)
    counts = np.array([2, 3, 8, 30])
    user = np.repeat(np.arange(4, dtype=np.int32), counts)
    n = len(user)
    rows = np.arange(n, dtype=np.int32)
    pairs = Pairs(user, np.arange(4, dtype=np.int32), rows, rows + n, rng.random(n).astype(np.float32), None)
    ids = torch.arange(2 * n, dtype=torch.float32).unsqueeze(1)  # an item's only feature is its number
    sides = torch.from_numpy(np.stack([pairs.left, pairs.right], 1).astype(np.int64))
    method = make("method", "np_btl", {})
    episodes = method.episodes(pairs, ids, sides, torch.Generator().manual_seed(0))
    sizes = {2: set(), 3: set(), 8: set(), 30: set()}
    for batch in (next(episodes) for _ in range(30)):
        for u in range(len(batch.shown)):
            there = batch.weight[u] > 0
            asked = batch.asked[u, there, 0, 0].long()
            shown = (batch.shown[u, batch.mask[u], 0] - n / 2).round().long()  # the middle of rows i and i + n
            both = torch.cat([asked, shown]).tolist()
            own = user[both[0]]
            assert len(set(both)) == len(both) and (user[both] == own).all() and len(asked)
            assert torch.equal(batch.label[u, there], torch.from_numpy(pairs.label)[asked])
            assert len(asked) == min(20, counts[own] - len(shown))
            sizes[int(counts[own])].add(len(shown))
        assert abs(float(batch.weight.sum()) - 1) < 1e-5
    assert sizes == {2: {0, 1}, 3: {0, 1, 2}, 8: set(range(8)), 30: set(range(11))}


def test_training_finds_a_regression_and_keeps_the_best_on_the_way():
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(200, 2, generator=draw)
    y = torch.sin(x[:, :1]) + x[:, 1:]
    state = mlp("f", [2, 32, 1], draw)
    found = train(state, lambda step: (forward(state, "f", x) - y).square().mean(), 400, 1e-2, Run(0))
    assert (forward(found, "f", x) - y).square().mean() < 0.01
    weights, run = {"w": torch.tensor([0.0])}, Run(0)
    best = train(
        weights, lambda step: -weights["w"].sum(), 100, 0.1, run, held_out=lambda now: float((now["w"] - 2) ** 2)
    )
    assert len(run.curves["held_out"]) == 10
    assert (best["w"].item() - 2) ** 2 == pytest.approx(min(run.curves["held_out"]), rel=1e-4)
    assert weights["w"].item() > best["w"].item() + 1  # training went on past it


def test_heads_must_share_the_width():
    with pytest.raises(Mistake, match="8 heads"):
        make("method", "np_btl", {"encoder": "attention", "width": 30})
