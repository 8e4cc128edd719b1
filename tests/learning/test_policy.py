"""Policies agree with plain transformers, with margins by hand, and with themselves after a kill."""

import gc
import weakref
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from harness.data import TEXT_SCHEMA, Items, Pairs, Panel
from harness.learning import dpo_training, policy
from harness.learning.dpo_training import HELD_OUT_PAIRS, dpo_loss, held_out_every
from harness.method import Run
from harness.registry import make_instance
from harness.sources.text_world import PROMPTS, write_response
from harness.store.store import Store


@pytest.fixture
def base(folder):
    """Return the folder of an untrained small language model."""
    return folder


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Return one store for all tests, so that reference log-probabilities are computed once."""
    return Store(tmp_path_factory.mktemp("policy") / "store").open()


@pytest.fixture(scope="module")
def train():
    return two_camps(6)


def two_camps(users):
    """Return twelve pairs of each user in two camps: one likes long responses, the other short ones."""
    rng, n = np.random.default_rng(0), 12 * users
    prompts = [PROMPTS[i] for i in rng.integers(len(PROMPTS), size=n)]
    table = pa.table(
        [
            [prompt for prompt in prompts for _ in range(2)],
            [write_response(prompt, int(s)) for prompt in prompts for s in rng.integers(1 << 30, size=2)],
        ],
        schema=TEXT_SCHEMA,
    )
    length = np.array([len(t) for t in table["response"].to_pylist()])
    user = np.repeat(np.arange(users, dtype=np.int32), 12)
    left, right = np.arange(0, 2 * n, 2, dtype=np.int32), np.arange(1, 2 * n, 2, dtype=np.int32)
    longer = (length[left] > length[right]).astype(np.float32)
    features = np.stack([length / length.std(), rng.normal(size=2 * n)], 1).astype(np.float32)
    label = np.where(user % 2, longer, 1 - longer).astype(np.float32)
    return Pairs(user, np.arange(users, dtype=np.int32), left, right, label, Items(features, table))


def method(name, base, **fields):
    return make_instance("method", name, {"model": f"transformers:{base}", "steps": 4, "batch": 4} | fields)


@pytest.fixture
def run(store):
    return Run(0, store=store)


def fitted(made, train, run):
    return made.fit(train, Panel(train.first(2), train), run)


def by_hand(lm, tokenizer, prompt, response):
    """Return the log-probability of the response and its end, computed token by token."""
    head = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], add_generation_prompt=True, return_dict=False
    )
    ids = head + tokenizer(response)["input_ids"] + [tokenizer.eos_token_id]
    with torch.no_grad():
        said = lm(torch.tensor([ids])).logits[0].log_softmax(1)
    return sum(float(said[i - 1, ids[i]]) for i in range(len(head), len(ids)))


def test_only_what_a_short_training_reads_is_asked_of_the_reference(base, train, store, monkeypatch):
    """Of items of which fewer than half are needed, those alone; of the whole, where it is known already."""
    model, needed = policy.parse_policy_model(f"transformers:{base}"), (0, 7, 143)
    asked, ask = [], policy.response_log_probs

    def noted(opened, tokens, rows):
        asked.append(rows.tolist())
        return ask(opened, tokens, rows)

    monkeypatch.setattr(policy, "response_log_probs", noted)
    monkeypatch.setattr(policy, "WHOLE_BELOW", len(train.items) - 1)
    some = policy.reference_log_probs(train.items, model, store, needed=needed)
    assert asked == [[0, 7, 143]] and set(np.flatnonzero(~some.isnan())) == set(needed)
    again = Items(train.items.features, train.items.text)
    torch.testing.assert_close(policy.reference_log_probs(again, model, store, needed=needed), some, equal_nan=True)
    assert len(asked) == 1
    whole = policy.reference_log_probs(Items(train.items.features, train.items.text), model, store)
    torch.testing.assert_close(some[list(needed)], whole[list(needed)])
    found = policy.reference_log_probs(Items(train.items.features, train.items.text), model, store, needed=(1, 2))
    assert torch.equal(found, whole) and len(asked) == 2


def test_few_items_are_read_at_once_whatever_is_needed(base, train, store):
    model = policy.parse_policy_model(f"transformers:{base}")
    assert not policy.reference_log_probs(train.items, model, store, needed=(0,)).isnan().any()


def test_reference_is_what_transformers_says_and_is_found_once(base, train, store, monkeypatch):
    model = policy.parse_policy_model(f"transformers:{base}")
    found = policy.reference_log_probs(train.items, model, store)
    lm, tokenizer = AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)
    for row in (0, 7, 143):
        prompt, response = (train.items.text[name][row].as_py() for name in ("prompt", "response"))
        assert float(found[row]) == pytest.approx(by_hand(lm, tokenizer, prompt, response), rel=1e-5)
    monkeypatch.setattr(policy, "response_log_probs", lambda *_: 1 / 0)
    again = Items(train.items.features, train.items.text)  # another object with the same texts
    assert torch.equal(policy.reference_log_probs(again, model, store), found)


@pytest.mark.parametrize("name", ["dpo", "np_dpo"])
def test_before_training_every_reward_is_zero(base, train, store, name):
    made = method(name, base, **({"targets": 2} if name == "np_dpo" else {}))
    opened = made.untrained_policy(0, store, 2)
    latent = torch.randn(3, made.width) if name == "np_dpo" else None
    said = policy.response_log_probs(
        opened, policy.tokenise_items(train.items, made.language_model, store), np.array([0, 5, 9]), latent
    )
    assert torch.allclose(
        said, policy.reference_log_probs(train.items, made.language_model, store)[[0, 5, 9]], atol=1e-4
    )


def test_loss_is_rafailovs_by_hand():
    margin = torch.tensor([0.3, -2.0], dtype=torch.float64)
    loss = dpo_loss(margin, torch.tensor([1.0, 0.25]))
    expected = [
        -np.log(1 / (1 + np.exp(-0.3))),
        -0.25 * np.log(1 / (1 + np.exp(2))) - 0.75 * np.log(1 / (1 + np.exp(-2))),
    ]
    assert loss.tolist() == pytest.approx(expected)


@pytest.mark.slow
@pytest.mark.parametrize("tune", ["lora", "full"])
def test_training_raises_the_margins_of_choices_it_has_not_seen(base, train, run, tune):
    """Eight pairs of each of three users who agree are trained on, and the four others of each are asked."""
    one_camp = train.of(np.array([1, 3, 5]))
    one_camp, unseen = one_camp.take(one_camp.rank < 8), one_camp.take(one_camp.rank >= 8)
    made = method("dpo", base, tune=tune, steps=20, batch=9, beta=0.5, rate=2e-3)
    state = fitted(made, one_camp, run)
    with made.open_predictor(state, run) as at_work:
        users = at_work.adapt(state, one_camp, run)
        toward = at_work.score(state, users, unseen) * torch.from_numpy(2 * unseen.label - 1)
    # Length alone predicts the label, and a coin gets there in 2 % of draws.
    assert (toward > 0).sum() >= 10


def test_lora_learns_low_rank_terms_alone(base, train, run):
    state = fitted(method("dpo", base, tune="lora", rank=2), train, run)
    lm = AutoModelForCausalLM.from_pretrained(base)
    layers = 7 * lm.config.num_hidden_layers  # seven linear maps per block
    assert len(state) == 2 * layers and all("lora_" in name for name in state)
    assert {min(t.shape) for t in state.values()} == {2}


def test_the_unit_of_features_does_not_reach_np_dpos_contexts(base, run):
    """A user's context is summed up by its mean gap in units of the typical gap: about 1 for one pair, whatever the unit."""
    train = two_camps(12)
    bigger = replace(train, items=Items(100 * train.items.features, train.items.text))
    made = method("np_dpo", base, batch=40, targets=2, context=1)
    plain, scaled = (made.training_schedule(pairs, None, run)(3).context_gap for pairs in (train, bigger))
    assert np.allclose(plain, scaled, rtol=1e-4) and plain.any()
    shown = plain[(plain != 0).any(axis=1)]
    assert 0.5 < np.sqrt((shown**2).mean()) < 2


def test_killed_and_run_again_it_finds_the_same_bits(base, train, store, tmp_path, monkeypatch):
    made = method("np_dpo", base, steps=6, targets=2)
    undisturbed = fitted(made, train, Run(0, store=store))
    monkeypatch.setenv("MANYMINDS_CHECKPOINT_SECONDS", "0")
    run = Run(0, checkpoint=tmp_path / "checkpoint", store=store)

    class Killed(Exception):
        pass

    def dies_at(step, schedule):
        def step_at(now):
            if now == step:
                raise Killed
            asked.append(now)
            return schedule(now)

        return step_at

    asked, whole = [], type(made).training_schedule
    monkeypatch.setattr(type(made), "training_schedule", lambda *given: dies_at(4, whole(*given)))
    with pytest.raises(Killed):
        fitted(made, train, run)
    monkeypatch.setattr(type(made), "training_schedule", lambda *given: dies_at(99, whole(*given)))
    later = Run(0, checkpoint=tmp_path / "checkpoint", store=store)
    found = fitted(made, train, later)
    assert asked == [0, 1, 2, 3, 4, 5]  # no step is repeated
    assert found.keys() == undisturbed.keys() and all(torch.equal(found[k], undisturbed[k]) for k in found)
    assert later.curves["step"] == [1, 2, 3, 4, 5, 6]


def test_what_is_trained_is_not_trained_again_where_something_fails_later(base, train, store, tmp_path, monkeypatch):
    made, run = method("dpo", base), Run(0, checkpoint=tmp_path / "checkpoint", store=store)
    first = fitted(made, train, run)
    monkeypatch.setattr(dpo_training, "accumulate_gradients", lambda *_: 1 / 0)
    again = fitted(made, train, Run(0, checkpoint=tmp_path / "checkpoint", store=store))
    assert all(torch.equal(first[name], again[name]) for name in first)


@pytest.mark.slow
def test_np_dpo_tells_two_camps_apart(base, run):
    """Nine pairs of each user are trained on; the others are asked, as of oneself and as of a user of the other camp."""
    made = method("np_dpo", base, steps=60, batch=12, targets=4, context=4, beta=0.5, rate=3e-3)
    train = two_camps(30)
    seen, unseen = train.take(train.rank < 9), train.take(train.rank >= 9)
    state, right = fitted(made, seen, run), torch.from_numpy(unseen.label) > 0.5
    with made.open_predictor(state, run) as at_work:
        users = at_work.adapt(state, seen.first(4), run)
        assert ((at_work.score(state, users, unseen) > 0) == right).double().mean() > 0.75
        swapped = (users[0].roll(1, 0),)  # each user gets the other camp's latent
        assert ((at_work.score(state, swapped, unseen) > 0) == right).double().mean() < 0.35


def test_a_loss_that_is_no_number_names_the_step_and_the_pairs(base, train, run):
    with pytest.raises(ValueError, match=r"at step \d+, for the item pairs \d+:\d+"):
        fitted(method("dpo", base, tune="full", rate=1e30, steps=10), train, run)


def changed(train, row, response):
    responses = train.items.text["response"].to_pylist()
    responses[row] = response
    text = pa.table([train.items.text["prompt"], responses], schema=TEXT_SCHEMA)
    return replace(train, items=Items(train.items.features, text))


@pytest.mark.parametrize(
    ("response", "says"),
    [
        ("  ", "1 responses are empty, for example that of item 5"),
        ("a " * 3000, "1 responses leave no room for a prompt in the context of 1024"),
    ],
)
def test_responses_that_cannot_be_used_are_named(base, train, run, response, says):
    with pytest.raises(ValueError, match=says):
        fitted(method("dpo", base), changed(train, 5, response), run)


def test_a_long_prompt_loses_its_beginning(base, train, store):
    text = pa.table([["word " * 3000 + "end"], ["Yes."]], schema=TEXT_SCHEMA)
    tokens = policy.tokenise_items(Items(text=text), policy.parse_policy_model(f"transformers:{base}"), store)
    tokenizer = AutoTokenizer.from_pretrained(base)
    assert tokens.length.tolist() == [1024]
    assert tokenizer.decode(tokens.ids[tokens.response_start[0] :]) == "Yes.<|end|>"
    assert tokenizer.decode(tokens.ids[: tokens.response_start[0]]).endswith("word end<|end|><|assistant|>")


def test_a_tokenizer_without_pad_or_template_will_do_and_one_without_end_will_not(base, train, run, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = tokenizer.pad_token = None
    for name in ("plain", "endless"):
        AutoModelForCausalLM.from_pretrained(base).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        tokenizer.eos_token = None
    assert fitted(method("dpo", tmp_path / "plain"), train, run)
    with pytest.raises(ValueError, match="no end-of-text token"):
        fitted(method("dpo", tmp_path / "endless"), train, run)


@pytest.mark.parametrize("tune", ["lora", "full"])
def test_what_is_exported_loads_in_transformers_and_says_the_same(base, train, store, run, tmp_path, tune):
    made = method("dpo", base, tune=tune, rate=1e-2)
    state = fitted(made, train, run)
    ids, mask, _ = policy.tokenise_items(train.items, made.language_model, store).padded_batch(
        np.array([3, 4]), torch.device("cpu")
    )
    with made.open_predictor(state, run) as at_work, torch.no_grad():
        told = at_work.export(state, tmp_path / "policy")
        wanted = at_work.model.lm(ids, attention_mask=mask.long()).logits
    assert str(tmp_path / "policy") in told
    if tune == "full":
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "policy")
    else:
        from peft import PeftModel

        loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "policy")
    with torch.no_grad():
        assert torch.equal(loaded(ids, attention_mask=mask.long()).logits, wanted)


def test_np_dpo_gives_away_its_model_and_what_modulates_it(base, train, run, tmp_path):
    made = method("np_dpo", base, targets=2, rate=1e-2)
    state = fitted(made, train, run)
    with made.open_predictor(state, run) as at_work:
        assert "film.safetensors" in at_work.export(state, tmp_path / "policy")
    kept = load_file(tmp_path / "policy" / "film.safetensors")
    assert kept and all(torch.equal(kept[name], state[name]) for name in kept)
    weights = dict(AutoModelForCausalLM.from_pretrained(tmp_path / "policy").named_parameters())
    assert all(torch.equal(weights[name], state[f"lm.{name}"]) for name in weights)
    assert kept.keys() | {f"lm.{name}" for name in weights} == state.keys()


def test_the_same_prompts_and_draws_for_policy_and_reference(base, train, run):
    made = method("np_dpo", base, targets=2, max_tokens=12, rate=1e-2)
    state = fitted(made, train, run)
    prompts, user = list(PROMPTS[:4]), np.array([0, 1, 0, 1])
    with made.open_predictor(state, run) as at_work:
        users = at_work.adapt(state, train.first(3), run)
        reference = at_work.generate(state, None, user, prompts, run)
        first, again = (at_work.generate(state, users, user, prompts, run) for _ in range(2))
        alone = at_work.generate(state, users, user[:1], prompts[:1], run)
    assert reference["kl"].to_pylist() == [0.0] * 4
    assert first.equals(again)
    assert (first["kl"].to_numpy() > 0).all()
    assert alone["response"][0] == first["response"][0]


def test_no_model_outlives_its_trial(base, train, run):
    """A closed policy keeps nothing but the state in memory, so the next policy fits."""
    made = method("dpo", base)
    state = fitted(made, train, run)
    with made.open_predictor(state, run) as at_work:
        kept = weakref.ref(at_work.model)
        at_work.score(state, at_work.adapt(state, train.first(1), run), train)
        assert kept() is not None
    gc.collect()
    assert kept() is None


def test_refuses_what_it_cannot_do(base):
    from harness.method import TaskFacts

    plain = TaskFacts(None, has_text=True, has_seconds=False, has_truth=False)
    assert method("dpo", base).refuses(plain) is None
    assert "numeric features" in method("np_dpo", base, targets=2).refuses(plain)
    assert "text" in method("dpo", base).refuses(replace(plain, has_text=False))


@pytest.mark.parametrize(
    ("steps", "batch", "every"), [(240, 16, 24), (24, 16, 4), (10, 4, 10), (3, 64, 1), (40, 1, 40)]
)
def test_held_out_pairs_cost_less_than_training(steps, batch, every):
    """Ten times where training is long; a scored pair costs a third of a trained one."""
    assert held_out_every(steps, batch) == every
    assert steps // every * HELD_OUT_PAIRS / 3 <= max(steps * batch, HELD_OUT_PAIRS / 3)
