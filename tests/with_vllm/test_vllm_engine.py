"""The vLLM engine agrees with plain transformers, also for the fully trained small model."""

import hashlib

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM

from harness.errors import UserError
from harness.models import on_vllm, small
from harness.models.base import make_sample
from harness.models.engine import open_engine
from harness.models.inputs import open_tokenizer, render_prompt
from harness.sources.text_world import PROMPTS, TOPICS, TRAITS, trait_scores, write_response

pytestmark = pytest.mark.vllm


def far_apart(*of):
    return int.from_bytes(hashlib.sha256(repr(of).encode()).digest()[:7], "big")


TEXTS = ["On baking bread.", "Zürich is far away, isn't it?", *(write_response(p, 5) for p in PROMPTS[:30])]
SEEDS = [far_apart(i) for i in range(9)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "small"
    small.build_small_model(folder, steps=20)  # enough to distinguish texts and prompts
    return folder


@pytest.fixture(scope="module")
def writer(folder):
    return open_engine("vllm", folder, "sample")


@pytest.fixture(scope="module")
def plain(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def prompts(folder):
    systems = [None, "Be formal and brief.", "Say nothing at all, or very much, but say it well."]
    return [render_prompt(open_tokenizer(folder), systems[i % 3], PROMPTS[50 * i]) for i in range(9)]


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_vectors_agree_with_plain_transformers(folder, pooling):
    texts = open_tokenizer(folder)(TEXTS)["input_ids"]
    model, golden = AutoModel.from_pretrained(folder, dtype=torch.float32).eval(), []
    for text in texts:
        with torch.no_grad():
            hidden = model(torch.tensor([text])).last_hidden_state[0]
        golden.append((hidden[-1] if pooling == "last" else hidden.mean(0)).numpy())
    golden = np.stack(golden)
    engine = open_engine("vllm", folder, "embed")
    vectors = engine.embed(texts, pooling)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, golden, atol=1e-4)  # vLLM has other kernels; entries are about 1
    cosine = (vectors * golden).sum(1) / np.linalg.norm(vectors, axis=1) / np.linalg.norm(golden, axis=1)
    assert cosine.min() >= 0.9999
    np.testing.assert_allclose(engine.embed(texts[::-1], pooling), vectors[::-1], atol=1e-4)
    np.testing.assert_allclose(engine.embed(texts[7:8], pooling), vectors[7:8], atol=1e-4)
    with pytest.raises(UserError, match="pools by"):
        engine.embed(texts, "mean" if pooling == "last" else "last")


def test_log_likelihoods_agree_with_plain_transformers(writer, plain, prompts):
    beginnings = [prompts[0]] * 3 + [prompts[1]] * 2
    rest = open_tokenizer(writer.options["model"])(TEXTS[:5])["input_ids"]
    scored, golden = [1, len(rest[1]), 2, len(rest[3]), 3], []
    for first, then, n in zip(beginnings, rest, scored, strict=True):
        ids = torch.tensor([[*first, *then]])
        with torch.no_grad():
            logp = plain(ids).logits[0].double().log_softmax(1)
        golden.append(float(logp[:-1].gather(1, ids[0, 1:, None])[-n:].sum()))
    np.testing.assert_allclose(writer.log_likelihood(beginnings, rest, scored), golden, atol=1e-2)


def test_log_odds_agree_with_a_plain_softmax(writer, plain, prompts):
    a, b = writer.tokenizer.convert_tokens_to_ids(["On", "P"])
    golden = []
    for prompt in prompts:
        with torch.no_grad():
            p = plain(torch.tensor([prompt])).logits[0, -1].double().softmax(0)
        golden.append(float((p[a] / p[b]).log()))
    odds = writer.answer(prompts, ("On", "P"))
    np.testing.assert_allclose(odds, golden, atol=1e-3)
    assert np.ptp(golden) > 0.1  # differences between prompts are far larger
    np.testing.assert_allclose(writer.answer(prompts[::-1], ("On", "P")), odds[::-1], atol=1e-3)


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 0.9)])
def test_log_probabilities_are_those_of_the_untempered_model(writer, plain, prompts, monkeypatch, temperature, top_p):
    made = []
    monkeypatch.setattr(
        on_vllm, "make_sample", lambda names, tokens, *rest: made.append(tokens) or make_sample(names, tokens, *rest)
    )
    samples = writer.sample(prompts, SEEDS, 3, temperature, top_p, 40)
    rows = [(prompt, sample) for prompt, row in zip(prompts, samples, strict=True) for sample in row]
    for (prompt, sample), said in zip(rows, made, strict=True):
        with torch.no_grad():  # log-probabilities of given texts, without sampling
            logprob = plain(torch.tensor([prompt + said])).logits[0, len(prompt) - 1 : -1].double().log_softmax(1)
        golden = logprob.gather(1, torch.tensor(said)[:, None]).mean()
        assert sample.n_tokens == len(said) <= 40
        assert sample.mean_logprob == pytest.approx(float(golden), abs=1e-3)
        assert (said[-1] == writer.tokenizer.eos_token_id) == (sample.finish_reason == "stop")


def test_samples_are_distinct_and_follow_from_their_seed_alone(writer, prompts, monkeypatch):
    def texts(*rows):
        made = writer.sample([prompts[i] for i in rows], [SEEDS[i] for i in rows], 6, max_tokens=30)
        return [[sample.text for sample in row] for row in made]

    whole = texts(*range(9))
    assert len({text for row in whole for text in row}) == 54
    assert texts(3) == whole[3:4] and texts(8, 0) == [whole[8], whole[0]]
    monkeypatch.setattr(on_vllm, "MAX_SAMPLES_PER_REQUEST", 4)  # in two requests instead of one
    assert texts(3) == whole[3:4]


def test_a_full_context_ends_the_text_and_a_longer_prompt_is_refused(writer, prompts):
    long = (prompts[0] * 200)[: small.MAX_POSITIONS - 5]
    ((sample,),) = writer.sample([long], SEEDS[:1], 1, max_tokens=20)
    assert sample.n_tokens <= 5
    with pytest.raises(ValueError, match="prompt 0 has"):
        writer.sample([long + prompts[0]], SEEDS[:1], 1)
    with pytest.raises(UserError, match="equal"):
        writer.sample(prompts, SEEDS, 2, temperature=0)


@pytest.mark.timeout(1200)  # trains the small model: about two minutes on one core, longer on a busy machine
@pytest.mark.timeout(900)  # trains the full model: two minutes on an idle machine
def test_the_small_model_writes_as_it_is_meant_to(tmp_path):
    small.build_small_model(tmp_path / "small")
    engine = open_engine("vllm", tmp_path / "small", "sample")
    asked = PROMPTS[::36]

    def written(systems, n):
        tokens = [
            render_prompt(engine.tokenizer, system, prompt) for system, prompt in zip(systems, asked, strict=False)
        ]
        seeds = [far_apart(system, prompt) for system, prompt in zip(systems, asked, strict=False)]
        return engine.sample(tokens, seeds, n, max_tokens=128)

    samples = written([None] * len(asked), 16)
    assert np.mean([sample.finish_reason == "stop" for row in samples for sample in row]) >= 0.95
    assert np.mean([len({sample.text for sample in row}) == 16 for row in samples]) >= 0.98
    topics = [next(topic for topic in TOPICS if topic in prompt) for prompt in asked]
    said = [[f"on {topic}".lower() in s.text.lower() for s in row] for topic, row in zip(topics, samples, strict=True)]
    assert np.mean(said) >= 0.9
    scores = trait_scores([sample.text for row in samples for sample in row]).reshape(len(asked), 16, len(TRAITS))
    assert scores.std(1, ddof=1).mean(0).min() >= 0.5

    for trait in ("length", "formality", "enthusiasm"):  # a system line changes the traits that it names
        others = [t for t in TRAITS if t != trait]
        means = []
        for sign in (1, -1):
            lines = [small.system_line({trait: sign, others[i % 6]: (-1) ** (i // 6)}) for i in range(24)]
            texts = [sample.text for row in written(lines, 4) for sample in row]
            means.append(trait_scores(texts)[:, TRAITS.index(trait)].mean())
        assert means[0] > means[1] + 0.5
