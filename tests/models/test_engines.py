"""Engines compared with plain transformers: vectors, log-odds and log-probabilities do not depend on the batch."""

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, BertConfig, BertModel

from harness.errors import UnavailableError, UserError
from harness.models import on_transformers, on_vllm, small
from harness.models.base import make_sample
from harness.models.engine import open_engine
from harness.models.inputs import open_tokenizer, render_prompt
from harness.models.sampling import draw_tokens, nucleus
from harness.models.tokens import batches_by_length
from harness.sources.text_world import PROMPTS, write_response

TEXTS = [
    "On baking bread.",
    "Zürich is far away, isn't it? 12 345",
    *(write_response(prompt, seed) for seed, prompt in enumerate(PROMPTS[:9])),
]
SEEDS = [10**12 + 10**6 * i for i in range(9)]
CLOSE = 2e-5  # float32: effect of the order of sums on a vector of this model, whose entries are about 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "small"
    small.build_small_model(folder, steps=0)
    return folder


@pytest.fixture(scope="module")
def bert(tmp_path_factory, folder):
    """A small bidirectional encoder, so that unmasked padding would change its vectors."""
    path = tmp_path_factory.mktemp("models") / "bert"
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=1000, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    BertModel(config).save_pretrained(path)
    open_tokenizer(folder).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def writer(folder):
    return open_engine("transformers", folder, "sample")


@pytest.fixture(scope="module")
def prompts(writer):
    systems = [None, "Be formal and brief.", "Say nothing at all, or very much, but say it well."]
    return [render_prompt(writer.tokenizer, systems[i % 3], PROMPTS[50 * i]) for i in range(9)]


def tokens(folder):
    return AutoTokenizer.from_pretrained(folder)(TEXTS)["input_ids"]


def plain_vectors(folder, texts, pooling):
    """Return vectors computed one text at a time, without padding."""
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    rows = []
    for text in texts:
        with torch.no_grad():
            hidden = model(torch.tensor([text])).last_hidden_state[0]
        rows.append(hidden[-1] if pooling == "last" else hidden.mean(0))
    return torch.stack(rows).numpy()


@pytest.mark.parametrize("pooling", ["last", "mean"])
@pytest.mark.parametrize("model", ["folder", "bert"])
def test_vectors_are_those_of_plain_transformers_however_batched(request, monkeypatch, model, pooling):
    path = request.getfixturevalue(model)
    texts, engine = tokens(path), open_engine("transformers", path, "embed")
    golden = plain_vectors(path, texts, pooling)
    for budget in (1, 150, 10**6):  # one by one, a few at a time, all at once
        monkeypatch.setattr(engine, "tokens", budget)
        vectors = engine.embed(texts, pooling)
        assert vectors.dtype == np.float32
        np.testing.assert_allclose(vectors, golden, atol=CLOSE)
        np.testing.assert_allclose(engine.embed(texts[::-1], pooling), golden[::-1], atol=CLOSE)
    assert np.abs(golden - golden[0]).max(1)[1:].min() > 100 * CLOSE  # vectors of different texts differ by far more


def test_no_texts_have_no_vectors(folder):
    assert open_engine("transformers", folder, "embed").embed([]).shape == (0, 128)


def test_bfloat16_vectors_point_the_same_way(folder):
    vectors = open_engine("transformers", folder, "embed", dtype="bfloat16").embed(tokens(folder), "mean")
    golden = plain_vectors(folder, tokens(folder), "mean")
    cosine = (vectors * golden).sum(1) / np.linalg.norm(vectors, axis=1) / np.linalg.norm(golden, axis=1)
    assert vectors.dtype == np.float32 and cosine.min() > 0.999 and not np.allclose(vectors, golden, atol=CLOSE)


def test_log_odds_are_those_of_a_plain_softmax(folder, writer, prompts, monkeypatch):
    model, names = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    a, b = names.convert_tokens_to_ids(["A", "B"])
    with torch.no_grad():
        p = [model(torch.tensor([prompt])).logits[0, -1].double().softmax(0) for prompt in prompts]
    golden = [float((row[a] / row[b]).log()) for row in p]
    for budget in (1, 100, 10**6):
        monkeypatch.setattr(on_transformers, "MAX_CPU_PACKED_TOKENS", budget)
        odds = writer.answer(prompts, ("A", "B"))
        assert odds.dtype == np.float64
        np.testing.assert_allclose(odds, golden, atol=CLOSE)
    np.testing.assert_array_equal(writer.answer(prompts, ("Bad", "Any")), -odds)  # only a word's first token counts
    with pytest.raises(UserError, match="begin with the same token"):
        writer.answer(prompts, ("Zurich", "Zug"))


def recorded(monkeypatch, writer, prompts, n, **settings):
    """Return samples and the tokens of each, [prompts][n]."""
    made = []

    def record(tokenizer, tokens, *rest):
        made.append((make_sample(tokenizer, tokens, *rest), tokens))
        return made[-1][0]

    with monkeypatch.context() as patch:
        patch.setattr(on_transformers, "make_sample", record)
        samples = writer.sample(prompts, SEEDS[: len(prompts)], n, **settings)
    tokens = {id(sample): tokens for sample, tokens in made}
    return samples, [[tokens[id(sample)] for sample in row] for row in samples]


def texts_of(samples):
    return [[sample.text for sample in row] for row in samples]


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 0.9)])
def test_log_probabilities_are_those_of_the_untempered_model(folder, writer, prompts, monkeypatch, temperature, top_p):
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    samples, tokens = recorded(monkeypatch, writer, prompts, 3, temperature=temperature, top_p=top_p, max_tokens=30)
    for prompt, row, said_row in zip(prompts, samples, tokens, strict=True):
        for sample, said in zip(row, said_row, strict=True):
            with torch.no_grad():  # the text is given to the model, not drawn
                logprob = model(torch.tensor([prompt + said])).logits[0, len(prompt) - 1 : -1].double().log_softmax(1)
            golden = logprob.gather(1, torch.tensor(said)[:, None]).mean()
            assert sample.n_tokens == len(said)
            assert sample.mean_logprob == pytest.approx(float(golden), abs=CLOSE)


def test_a_sample_ends_with_its_first_ending_token(writer, prompts, monkeypatch):
    """A sample ends with its first end token, even when other lines end and leave the batch."""
    monkeypatch.setattr(writer, "ends", torch.tensor([], dtype=torch.long))
    _, endless = recorded(monkeypatch, writer, prompts, 4, max_tokens=60)
    monkeypatch.setattr(writer, "ends", torch.arange(0, 1000, 25))
    samples, tokens = recorded(monkeypatch, writer, prompts, 4, max_tokens=60)
    reasons = set()
    for row, cut, whole in zip(
        sum(samples, []),
        sum(tokens, []),
        sum(endless, []),
        strict=True,
    ):
        end = next((place for place, token in enumerate(whole) if token % 25 == 0), None)
        assert cut == (whole if end is None else whole[: end + 1])
        assert row.finish_reason == ("length" if end is None else "stop")
        said = cut if end is None else cut[:-1]
        assert row.text == writer.tokenizer.decode(said, skip_special_tokens=True)
        reasons.add(row.finish_reason)
    assert reasons == {"stop", "length"} and len({len(cut) for cut in sum(tokens, [])}) > 10


def test_samples_are_distinct_and_follow_from_their_seed_alone(writer, prompts, monkeypatch):
    def texts(*rows, n=4):
        made = writer.sample([prompts[i] for i in rows], [SEEDS[i] for i in rows], n, max_tokens=15)
        return [[sample.text for sample in row] for row in made]

    whole = texts(*range(9))
    assert len({text for row in whole for text in row}) == 36
    for budget in (1, 130):  # samples one by one, or of several prompts with different lengths
        monkeypatch.setattr(writer, "tokens", budget)
        assert texts(8, 3, 0) == [whole[8], whole[3], whole[0]]
    assert texts(3, n=2) == [whole[3][:2]]
    (neighbour,) = writer.sample(prompts[3:4], [SEEDS[3] + 1], 4, max_tokens=15)
    assert not {sample.text for sample in neighbour} & set(whole[3])


def test_at_temperature_0_the_likeliest_is_written(folder, writer, prompts, monkeypatch):
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    _, tokens = recorded(monkeypatch, writer, prompts[:3], 1, temperature=0, max_tokens=12)
    for prompt, (said,) in zip(prompts, tokens, strict=False):
        greedy = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=12)[0, len(prompt) :]
        assert said == greedy.tolist()
    with pytest.raises(UserError, match="equal"):
        writer.sample(prompts, SEEDS, 2, temperature=0)


def test_draws_are_in_proportion_to_probability():
    logits = torch.tensor([0.1, 0.4, 0.2, 0.3], dtype=torch.float64).log().expand(1000, 4)
    uniform = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    assert draw_tokens(logits, uniform, 1.0, 1.0).bincount(minlength=4).tolist() == [100, 400, 200, 300]
    # At temperature 0.5 probabilities are squared and normalised: 1, 16, 4 and 9 of 30.
    assert draw_tokens(logits, uniform, 0.5, 1.0).bincount(minlength=4).tolist() == [33, 534, 133, 300]
    # Only 0.4 and 0.3 are drawn, which together reach 0.6.
    assert draw_tokens(logits, uniform, 1.0, 0.6).bincount(minlength=4).tolist() == [0, 571, 0, 429]
    assert draw_tokens(logits, uniform, 1.0, 0.3).bincount(minlength=4).tolist() == [0, 1000, 0, 0]
    assert draw_tokens(logits, uniform, 0, 1.0).bincount(minlength=4).tolist() == [0, 1000, 0, 0]


def test_batches_hold_every_row_once_and_no_more_tokens_than_allowed():
    length = np.random.default_rng(0).integers(1, 200, 500)
    found = list(batches_by_length(length, 400))
    assert sorted(np.concatenate(found)) == list(range(500))
    assert max(len(rows) * length[rows].max() for rows in found) <= 400
    assert len(list(batches_by_length(np.array([900, 5, 900]), 400))) == 3  # a row over the budget has its own batch


def test_a_full_context_ends_the_text_and_a_longer_prompt_is_refused(writer, prompts):
    long = (prompts[0] * 200)[: small.MAX_POSITIONS - 5]
    short, full = writer.sample([prompts[0], long], SEEDS[:2], 1, max_tokens=20)
    assert (short[0].n_tokens, full[0].n_tokens, full[0].finish_reason) == (20, 5, "length")
    for prompt in (long + prompts[0], []):
        with pytest.raises(ValueError, match="prompt 1 has"):
            writer.sample([long, prompt], SEEDS[:2], 1)


def test_a_lower_context_can_be_asked_for(folder):
    assert open_engine("transformers", folder, "answer", max_length=64).context_length == 64
    assert open_engine("transformers", folder, "answer", max_length=10**6).context_length == small.MAX_POSITIONS


def test_prompts_are_rendered_as_the_tokenizer_wants_them(folder):
    names = open_tokenizer(folder)
    decoded = names.decode(render_prompt(names, "Be brief.", "Hi"))
    assert decoded == "<|begin|><|system|>Be brief.<|end|><|user|>Hi<|end|><|assistant|>"
    assert "<|system|>" not in names.decode(render_prompt(names, None, "Hi"))
    names.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        "[{{ messages[0]['content'] }}]{% if add_generation_prompt %}:{% endif %}"
    )
    assert names.decode(render_prompt(names, "Be brief.", "Hi")) == "[Be brief.\n\nHi]:"
    names.chat_template = None
    assert names.decode(render_prompt(names, "Be brief.", "Hi")) == "Be brief.\n\nHi\n"


def test_what_cannot_be_opened_says_what_to_do(folder, monkeypatch):
    with pytest.raises(UserError, match="one GPU"):
        open_engine("transformers", folder, "sample", tensor_parallel=2)
    monkeypatch.setattr(on_vllm, "find_spec", lambda name: None)
    with pytest.raises(UnavailableError, match="make vllm"):
        open_engine("vllm", folder, "sample")


@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9, 0.999])
def test_the_nucleus_of_leading_tokens_is_that_of_all(top_p):
    """Sorting the leading tokens alone keeps the same bits, also with ties and where many tokens are needed."""
    draw = torch.Generator().manual_seed(0)
    for sharpness in (0, 0.1, 1, 5):
        logits = torch.randn(7, 300, dtype=torch.float64, generator=draw)
        p = (sharpness * torch.round(logits, decimals=1)).softmax(1)  # rounded: many ties
        ranked, token = p.sort(dim=1, descending=True, stable=True)
        wanted = torch.zeros_like(p).scatter(1, token, ranked.masked_fill(ranked.cumsum(1) - ranked >= top_p, 0))
        assert torch.equal(nucleus(p, top_p, leading=20), wanted)
        assert torch.equal(nucleus(p, top_p), wanted)


def plain_log_likelihoods(folder, beginnings, rest, scored):
    """Return log-likelihoods computed one text at a time, without a cache."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    found = []
    for first, then, n in zip(beginnings, rest, scored, strict=True):
        ids = torch.tensor([[*first, *then]])
        with torch.no_grad():
            logp = model(ids).logits[0].double().log_softmax(1)
        each = logp[:-1].gather(1, ids[0, 1:, None])[:, 0]
        found.append(float(each[-n:].sum()))
    return np.array(found)


def test_log_likelihoods_are_those_of_plain_transformers_however_batched(folder, monkeypatch):
    """Beginnings of one token and of many, shared and not, and texts of which a part alone counts."""
    rng = np.random.default_rng(0)
    begun = [rng.integers(4, 900, n) for n in (1, 30, 7)]
    beginnings = [begun[i] for i in (0, 0, 1, 1, 1, 2, 0)]
    rest = [rng.integers(4, 900, n) for n in (1, 5, 3, 12, 4, 2, 9)]
    scored = [1, 3, 3, 12, 1, 2, 5]
    wanted = plain_log_likelihoods(folder, beginnings, rest, scored)
    engine = open_engine("transformers", folder, "answer")
    for budget in (1, 20, 10**6):
        monkeypatch.setattr(on_transformers, "MAX_CPU_PACKED_TOKENS", budget)
        np.testing.assert_allclose(engine.log_likelihood(beginnings, rest, scored), wanted, atol=1e-4)
    turned = engine.log_likelihood(beginnings[::-1], rest[::-1], scored[::-1])
    np.testing.assert_allclose(turned, wanted[::-1], atol=1e-4)
    assert np.ptp(wanted / scored) > 0.1  # they differ by far more
    assert engine.log_likelihood([], [], []).shape == (0,)
