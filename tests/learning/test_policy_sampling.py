"""A policy's samples agree with the sampling engine, transformers' generate, and divergences by hand."""

from contextlib import contextmanager

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from harness.learning import policy_sampling
from harness.learning.policy_sampling import write_responses
from harness.method import GENERATED_SCHEMA
from harness.models import base
from harness.models.engine import open_engine
from harness.models.inputs import open_tokenizer, render_prompt
from harness.sources.text_world import PROMPTS

PROMPTS = [*PROMPTS[::251], "Hm?", " ".join(PROMPTS[:9])]  # very different lengths
SEEDS = [10**6 * i + 5 for i in range(len(PROMPTS))]


@pytest.fixture(scope="module")
def model(folder):
    lm = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return lm, open_tokenizer(folder)


@pytest.fixture
def tokens(monkeypatch):
    """Record the tokens of all responses in order, because texts do not determine them."""
    seen = []

    def noted(tokenizer, tokens, stop, logprob):
        seen.append(tokens)
        return base.make_sample(tokenizer, tokens, stop, logprob)

    monkeypatch.setattr(policy_sampling, "make_sample", noted)
    return seen


def earlier_end(rows, hidden, logits):
    """Make ends more likely, because they are rare before training."""
    return logits + 3 * torch.nn.functional.one_hot(torch.tensor(1), logits.shape[-1])


def test_without_a_condition_it_writes_what_the_engine_writes(folder, model):
    lm, names = model
    engine = open_engine("transformers", folder, "sample")
    golden = [
        one for (one,) in engine.sample([render_prompt(names, None, p) for p in PROMPTS], SEEDS, 1, max_tokens=40)
    ]
    table = write_responses(lm, names, PROMPTS, [[seed, 0] for seed in SEEDS], max_tokens=40)
    assert table.schema == GENERATED_SCHEMA
    assert table["response"].to_pylist() == [sample.text for sample in golden]
    assert table["n_tokens"].to_pylist() == [sample.n_tokens for sample in golden]
    assert table["stopped"].to_pylist() == [sample.finish_reason == "stop" for sample in golden]
    np.testing.assert_allclose(table["reference"], [sample.mean_logprob for sample in golden], rtol=1e-5)
    assert not np.any(table["kl"])


def test_with_sharp_logits_it_writes_what_transformers_generates(model, tokens):
    lm, names = model
    write_responses(
        lm, names, PROMPTS, 0, max_tokens=12, adjust_logits=lambda rows, hidden, logits: 1e6 * logits
    )  # the most likely token
    for prompt, response in zip(PROMPTS, tokens, strict=True):
        ids = torch.tensor([render_prompt(names, None, prompt)])
        plain = GenerationConfig(max_new_tokens=12, do_sample=False, eos_token_id=1, pad_token_id=0)
        golden = lm.generate(ids, attention_mask=torch.ones_like(ids), generation_config=plain)[0, ids.shape[1] :]
        assert golden.tolist() == response


def test_other_company_changes_no_text(model, monkeypatch):
    lm, names = model
    whole = write_responses(lm, names, PROMPTS, SEEDS, max_tokens=30, adjust_logits=earlier_end)
    assert len(set(whole["n_tokens"].to_pylist())) > 4 and any(whole["stopped"].to_pylist())
    for budget in (1, 200):  # one by one, a few at a time
        monkeypatch.setattr(policy_sampling, "MAX_BATCH_TOKENS", budget)
        monkeypatch.setattr(policy_sampling, "MAX_CPU_BATCH_TOKENS", budget)
        again = write_responses(lm, names, PROMPTS[::-1], SEEDS[::-1], max_tokens=30, adjust_logits=earlier_end)
        assert again["response"].to_pylist() == whole["response"].to_pylist()[::-1]
        for column in ("kl", "reference"):
            np.testing.assert_allclose(again[column].to_numpy()[::-1], whole[column], rtol=1e-4)
    other = write_responses(lm, names, PROMPTS, 0, max_tokens=30, adjust_logits=earlier_end)
    same = write_responses(
        lm, names, PROMPTS, [(0, row) for row in range(len(PROMPTS))], max_tokens=30, adjust_logits=earlier_end
    )
    assert same.equals(write_responses(lm, names, PROMPTS, 0, max_tokens=30, adjust_logits=earlier_end))
    assert other["response"].to_pylist() == same["response"].to_pylist() != whole["response"].to_pylist()


def film(lm, scale):
    """Return a policy that scales the second block's output by a number per row, as FiLM does."""

    @contextmanager
    def policy(rows):
        def modulate(block, args, output):
            return output * scale[rows][:, None, None]

        hook = lm.model.layers[1].register_forward_hook(modulate)
        try:
            yield
        finally:
            hook.remove()

    return policy


def test_divergence_is_that_of_whole_distributions_by_hand(model, tokens):
    lm, names = model
    scale = torch.linspace(0.5, 2.0, len(PROMPTS))
    policy = film(lm, scale)
    other = AutoModelForCausalLM.from_config(lm.config)

    def likeliest(rows, hidden, logits):
        """Adjust logits depending on the row and the hidden state."""
        return logits + scale[rows][:, None, None] * (hidden @ lm.lm_head.weight.T).tanh()

    for reference, start in ((None, lm), (lambda ids, mask: other(input_ids=ids, attention_mask=mask).logits, other)):
        tokens.clear()
        found = write_responses(
            lm, names, PROMPTS, SEEDS, max_tokens=20, policy=policy, adjust_logits=likeliest, reference=reference
        ).to_pylist()
        for row, (prompt, response) in enumerate(zip(PROMPTS, tokens, strict=True)):
            ids = torch.tensor([render_prompt(names, None, prompt) + response])
            place = torch.arange(len(response)) + ids.shape[1] - len(response)
            with torch.no_grad():
                with policy(np.array([row])):
                    out = lm(ids, output_hidden_states=True)
                p = likeliest(np.array([row]), out.hidden_states[-1], out.logits)[0, place - 1].double().log_softmax(1)
                q = start(ids).logits[0, place - 1].double().log_softmax(1)
            assert found[row]["kl"] == pytest.approx(float((p.exp() * (p - q)).sum()), rel=1e-4)
            assert found[row]["reference"] == pytest.approx(float(q[range(len(place)), ids[0, place]].mean()), rel=1e-4)
        assert min(line["kl"] for line in found) > 0.1


def test_a_policy_that_changes_nothing_has_no_divergence(model):
    lm, names = model
    plain = write_responses(lm, names, PROMPTS, 3, max_tokens=20)
    again = write_responses(
        lm, names, PROMPTS, 3, max_tokens=20, policy=film(lm, torch.ones(len(PROMPTS))), adjust_logits=lambda r, h, z: z
    )
    assert again.equals(plain) and not np.any(again["kl"])


def test_every_row_keeps_its_own_condition_while_others_leave_the_batch(model, tokens):
    lm, names = model

    def spell(rows, hidden, logits):
        """Make row i write only token 100 + i, and end with probability 1/8 if i is even."""
        only = torch.full_like(logits, -1e4)
        only[torch.arange(len(rows)), :, 100 + rows] = 0.0
        only[:, :, 1] = torch.where(torch.tensor(rows % 2 == 0), -np.log(7), -1e4)[:, None]
        return only

    found = write_responses(lm, names, PROMPTS, SEEDS, max_tokens=25, adjust_logits=spell).to_pylist()
    for row, response in enumerate(tokens):
        stop = found[row]["stopped"]
        assert response == [100 + row] * (len(response) - stop) + [1] * stop
        assert found[row]["n_tokens"] == len(response) and (stop or len(response) == 25)
        assert row % 2 == 0 or not stop
        assert found[row]["response"] == names.decode([100 + row]) * (len(response) - stop)
    assert sum(line["stopped"] for line in found) > 3


def test_a_prompt_that_leaves_no_room_loses_its_beginning(model):
    lm, names = model
    end = "word " * 1500  # longer than the context
    one, other, short = (
        write_responses(lm, names, [text], 3, max_tokens=6)["response"][0] for text in ("a" + end, "b" + end, "a")
    )
    assert one == other != short
    assert write_responses(lm, names, [], 0, max_tokens=5).schema == GENERATED_SCHEMA


def test_it_writes_without_dropout_and_leaves_the_model_as_it_was(model):
    lm, names = model
    attention = lm.model.layers[1].self_attn
    attention.attention_dropout, attention.training = 0.5, True
    try:
        first, second = (write_responses(lm, names, PROMPTS, 3, max_tokens=20) for _ in range(2))
        assert first.equals(second)
        assert [module for module in lm.modules() if module.training] == [attention]
    finally:
        attention.attention_dropout, attention.training = 0.0, False
