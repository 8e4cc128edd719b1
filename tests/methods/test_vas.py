"""Value-augmented sampling agrees with logits by hand, the base model at strength zero, and mixed_logit."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import AutoModelForCausalLM

from harness.check.methods import method_checks
from harness.data import TEXT_SCHEMA, Items, PreferenceDataset
from harness.errors import UserError
from harness.learning import policy
from harness.method import Run, TaskFacts
from harness.methods.mixed_logit import MixedLogit
from harness.methods.vas import Vas, hidden_states, reward_axes
from harness.models.inputs import open_tokenizer, render_prompt
from harness.store.store import Store
from harness.task import split_in_order

UP, DOWN = " follow", " over"  # one token each
PROMPTS = [f"Number {i}?" for i in range(300)]


@pytest.fixture
def store(folder):
    return Store(folder.parent / "store").open()


@pytest.fixture
def run(store):
    return Run(0, store=store)


@pytest.fixture
def vas(folder):
    return Vas(model=f"transformers:{folder}", steps=150, rank=4, axes=2, max_tokens=24)


def splits():
    """Return splits of 40 users of two kinds: utility is the count of UP minus that of DOWN, or the reverse."""
    rng = np.random.default_rng(0)
    said = [rng.choice([UP, DOWN], rng.integers(4, 12)) for _ in range(2 * len(PROMPTS))]
    features = np.float32([[(words == UP).sum(), (words == DOWN).sum()] for words in said])
    text = pa.table([np.repeat(PROMPTS, 2), ["On" + "".join(words) for words in said]], schema=TEXT_SCHEMA)
    user, pair = np.divmod(np.arange(40 * 40), 40)
    pair = (pair + 7 * user) % len(PROMPTS)
    gap = ((features[0::2] - features[1::2])[pair] @ [1, -1]) * np.where(user % 2, 1, -1)
    label = 1 / (1 + np.exp(-gap / 2))
    data = PreferenceDataset.from_pairs(user, 2 * pair, 2 * pair + 1, label, Items(features, text))
    return split_in_order(data, 20, 10)


@pytest.fixture(scope="module")
def fits():
    return {}


@pytest.fixture
def fitted(vas, fits, run):
    """Return the splits and the fitted state; computed once for all tests."""
    if not fits:
        parts = splits()
        fits["all"] = parts, vas.fit(parts.train, parts.panels["validation"], run)
    return fits["all"]


def test_the_head_finds_the_tilt_that_is_known_by_hand(vas, run):
    """The head learns ten tosses: axis 0 counts all heads, axis 1 those of the last five tosses."""
    rng = np.random.default_rng(1)
    heads = rng.random((12000, 10)) < 0.5
    target = np.stack([heads.sum(1), heads[:, 5:].sum(1)], 1).astype(np.float32)
    target = np.repeat(target - target.mean(0), 10, axis=0)
    place = np.tile(np.eye(10, dtype=np.float32), (12000, 1))  # the hidden state is the index of the toss
    before = np.concatenate([np.zeros((12000, 1)), heads.cumsum(1)[:, :-1]], 1).reshape(-1, 1)
    hidden = torch.from_numpy(np.concatenate([place * 3, before, np.ones((120000, 1))], 1).astype(np.float32))
    token = torch.from_numpy(np.where(heads, 100, 101).reshape(-1))
    vas = replace(vas, strength=1.5)
    state = vas.train_value_head(hidden, token, torch.from_numpy(target), torch.arange(120000) // 10 % 8 == 0, run)
    state |= {"places": torch.eye(2)}
    weights = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-2.0, 1.0]])
    logits = vas.logits_adjuster(state, weights)(
        np.arange(3), hidden[:1000].expand(3, -1, -1), torch.zeros(3, 1000, 1000)
    )
    odds = (logits[..., 100] - logits[..., 101]).reshape(3, 100, 10).mean(1)
    first, last = torch.ones(10), (torch.arange(10) >= 5).float()
    golden = 1.5 * torch.stack([first, last, last - 2 * first])
    assert (odds - golden).abs().max() < 0.25


def test_a_user_is_given_his_words_by_as_much_as_they_are_worth_to_him(vas, folder, store, fitted):
    """A word adds one to its feature in any text, so its logit changes by the user's weight, from texts to choices."""
    parts, state = fitted
    users = vas.adapt(state, parts.panels["test"].context, Run(0))
    worth = users[0] @ torch.tensor([1.0, -1.0], dtype=torch.float64)
    likes_up = torch.from_numpy(parts.panels["test"].context.people % 2 == 1)
    assert (worth[likes_up] > 0.5).all() and (worth[~likes_up] < -0.5).all()
    up, down = (open_tokenizer(folder)(word)["input_ids"][0] for word in (UP, DOWN))
    hidden, token, _ = hidden_states(
        folder, policy.tokenise_items(parts.train.items, vas.language_model, store), np.arange(100)
    )
    hidden = hidden[(token == up) | (token == down)]
    n = len(users[0])
    tilt = vas.logits_adjuster(state, users[0])(
        np.arange(n), hidden.expand(n, -1, -1), torch.zeros(n, len(hidden), 1000)
    )
    found = (tilt[..., up] - tilt[..., down]).mean(1).double()
    assert (found / (vas.strength * worth) - 1).abs().max() < 0.2


def test_opposite_weights_tilt_oppositely(vas, fitted):
    _, state = fitted
    weights = torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    hidden, none = torch.randn(5, 3, 128), torch.zeros(5, 3, 1000)
    one, other = (vas.logits_adjuster(state, w)(np.arange(5), hidden, none) for w in (weights, -weights))
    torch.testing.assert_close(one, -other)
    assert one.abs().max() > 0.01
    twice = replace(vas, strength=2 * vas.strength).logits_adjuster(state, weights)(np.arange(5), hidden, none)
    torch.testing.assert_close(twice, 2 * one)


def test_without_strength_or_without_users_it_is_the_base_model(vas, store, fitted):
    parts, state = fitted
    users = vas.adapt(state, parts.panels["test"].context, Run(0))
    user = np.arange(12) % len(users[0])
    base = vas.generate(state, None, user, PROMPTS[:12], Run(3, store=store))
    none = replace(vas, strength=0.0).generate(state, users, user, PROMPTS[:12], Run(3, store=store))
    assert none.equals(base) and not np.any(base["kl"])
    tilted = vas.generate(state, users, user, PROMPTS[:12], Run(3, store=store))
    assert np.all(tilted["kl"].to_numpy() > 0) and tilted["response"] != base["response"]
    assert tilted.equals(vas.generate(state, users, user, PROMPTS[:12], Run(3, store=store)))
    assert base["response"] != vas.generate(state, None, user, PROMPTS[:12], Run(4, store=store))["response"]


def test_places_multiply_to_rewards_and_the_leading_axes_explain_most():
    rng = torch.Generator().manual_seed(0)
    features = torch.randn(500, 6, dtype=torch.float64, generator=rng) * torch.tensor([3, 1, 1, 1, 0.2, 0.1])
    features -= features.mean(0)
    root = torch.randn(6, 6, dtype=torch.float64, generator=rng)
    prior = {"mean": torch.randn(6, dtype=torch.float64, generator=rng), "root": root}
    weights = prior["mean"] * torch.randn(4000, 1, dtype=torch.float64, generator=rng)
    weights = weights + torch.randn(4000, 6, dtype=torch.float64, generator=rng) @ root.T
    rewards = features @ weights.T
    whole, places = reward_axes(features, prior, 6)
    torch.testing.assert_close(whole @ (weights @ places).T, rewards)
    left = [
        (rewards - z @ (weights @ p).T).square().mean()
        for z, p in (reward_axes(features, prior, n) for n in range(1, 7))
    ]
    least = torch.linalg.svdvals(rewards).square()  # no n axes leave less
    for n in range(1, 6):
        assert left[n - 1] <= 1.15 * least[n:].sum() / rewards.numel()  # users are a sample from the prior


def test_hidden_states_are_those_before_each_token_of_a_response(vas, folder, store):
    items = splits().train.items
    tokens, rows = policy.tokenise_items(items, vas.language_model, store), np.array([5, 3, 40])
    hidden, token, text = hidden_states(folder, tokens, rows)
    names = open_tokenizer(folder)
    lm = AutoModelForCausalLM.from_pretrained(folder)
    for place, row in enumerate(rows.tolist()):
        prompt = render_prompt(names, None, items.text["prompt"][row].as_py())
        response = [*names(items.text["response"][row].as_py())["input_ids"], names.eos_token_id]
        with torch.no_grad():
            golden = lm(torch.tensor([prompt + response]), output_hidden_states=True).hidden_states[-1][0]
        mine = text == place
        assert token[mine].tolist() == response
        torch.testing.assert_close(hidden[mine], golden[len(prompt) - 1 : -1], atol=2e-5, rtol=1e-4)


def test_its_answers_are_those_of_mixed_logit(vas, fitted):
    parts, state = fitted
    panel, plain = parts.panels["test"], MixedLogit()
    theirs = plain.fit(parts.train, parts.panels["validation"], Run(0))
    for shots in (0, 5, 20):
        context, query = panel.context.first(shots), panel.query.without_labels()
        mine = vas.score(state, vas.adapt(state, context, Run(0)), query)
        assert torch.equal(mine, plain.score(theirs, plain.adapt(theirs, context, Run(0)), query))


def test_it_keeps_the_contract(vas, store):
    asked = [(what, ask()) for what, ask in method_checks(replace(vas, steps=2), store)]
    assert len(asked) > 15 and [what for what, problem in asked if problem] == []


def test_it_says_what_it_needs():
    def said(dimension, text):
        return Vas().refuses(TaskFacts(dimension, has_text=text, has_seconds=False, has_truth=False))

    assert said(6, True) is None
    assert "text" in said(6, False) and "numeric features" in said(None, True) and "1,024" in said(1100, True)
    for wrong in ({"strength": -1.0}, {"axes": 0}, {"model": "vllm:small"}, {"model": "gpt"}):
        with pytest.raises(UserError):
            Vas(**wrong)
