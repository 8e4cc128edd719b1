"""Packed texts: each token sees its beginning and its own text alone, and models that cannot read packs are not given any."""

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from harness.models import on_transformers
from harness.models.engine import open_engine
from harness.models.inputs import open_tokenizer
from harness.models.packing import common_tokens, may_pack, pack_texts, split_shared
from harness.models.small import build_small_model


def some_texts(seed=0, n=12):
    """Beginnings, some of them shared by several texts in succession, and texts."""
    rng = np.random.default_rng(seed)
    kinds = [rng.integers(0, 900, size) for size in (1, 4, 30, 0)]
    beginnings = [kinds[k] for k in np.repeat(rng.permutation([0, 1, 2, 3, 0, 2]), 2)[:n]]
    return beginnings, [rng.integers(0, 900, size) for size in rng.integers(1, 9, n)]


@pytest.mark.parametrize("max_tokens", [1, 20, 60, 10**6])
@pytest.mark.parametrize("seed", range(4))
def test_each_token_sees_its_beginning_and_its_own_text_alone(seed, max_tokens):
    beginnings, texts = some_texts(seed)
    kept = [slice(len(text) - 1, None) if row % 2 else slice(None) for row, text in enumerate(texts)]
    seen_rows = []
    for pack in pack_texts(beginnings, texts, kept, max_tokens):
        mask = pack.mask(torch.device("cpu"))[0, 0].numpy()
        everything = np.concatenate([pack.before, pack.ids])
        places = np.concatenate([np.arange(len(pack.before)), pack.position])
        assert mask.shape == (len(pack.ids), len(everything))
        asked = []
        for row in pack.rows:
            whole = np.concatenate([beginnings[row], texts[row]])
            mine = np.flatnonzero(pack.text == row)
            np.testing.assert_array_equal(pack.ids[mine], texts[row])
            for k, token in enumerate(mine):
                n = len(beginnings[row]) + k + 1
                np.testing.assert_array_equal(everything[mask[token]], whole[:n])
                np.testing.assert_array_equal(places[mask[token]], np.arange(n))
            asked += mine[kept[row]].tolist()
        np.testing.assert_array_equal(pack.kept, asked)
        assert len(pack.rows) == 1 or len(pack.ids) <= max_tokens
        seen_rows += pack.rows
    assert seen_rows == list(range(len(texts)))


def test_a_beginning_is_read_once_where_its_texts_fit():
    beginning, other = np.arange(20), np.arange(50, 60)
    texts = [np.array([7, 8, 9])] * 5
    (pack,) = pack_texts([beginning] * 3 + [other] * 2, texts, [slice(None)] * 5, 100)
    assert len(pack.ids) == 20 + 10 + 5 * 3
    packs = list(pack_texts([beginning] * 5, texts, [slice(None)] * 5, 6))
    assert [len(pack.ids) for pack in packs] == [6, 6, 3] and all(len(pack.before) == 20 for pack in packs)


def test_prompts_share_what_neighbours_have_in_common():
    one, other = [1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 7]
    assert common_tokens(one, other) == 4 and common_tokens(one, one) == 6 and common_tokens([], one) == 0
    assert split_shared([one, other, [9, 9], one]) == [4, 4, 0, 0]
    assert split_shared([one, one]) == [5, 5]  # one token at least is a prompt's own
    assert split_shared([[1, 2], [1, 2, 3]]) == [1, 1]
    assert split_shared([]) == [] and split_shared([one]) == [0]


def build_model(kind, folder):
    """Write a random model of an architecture, with this project's small tokenizer; return its folder."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 4, "num_hidden_layers": 3}
    more = {
        "gpt2": {"n_embd": 32, "n_head": 4, "n_layer": 3},
        "qwen2": sizes | {"num_key_value_heads": 2},
        "mistral": sizes | {"num_key_value_heads": 2, "sliding_window": 6, "head_dim": 8},
        "gemma3_text": sizes | {"num_key_value_heads": 2, "head_dim": 8, "sliding_window": 6},
        "bloom": {"hidden_size": 32, "n_head": 4, "n_layer": 3},
        "mamba": {"hidden_size": 32, "num_hidden_layers": 3, "state_size": 4},
    }
    config = AutoConfig.for_model(kind, vocab_size=1000, initializer_range=0.3, **more.get(kind, sizes))
    model = AutoModelForCausalLM.from_config(config).eval()
    build_small_model(folder.parent / "small", steps=0)
    model.save_pretrained(folder)
    open_tokenizer(folder.parent / "small").save_pretrained(folder)
    return model


@pytest.mark.parametrize(
    ("kind", "packs"),
    [
        ("llama", True),
        ("qwen2", True),
        ("gpt2", True),
        ("gpt_neox", True),
        ("mistral", False),  # a sliding window
        ("gemma3_text", False),  # windows in some layers
        ("bloom", False),  # places by distance within the sequence, not by numbers
        ("mamba", False),  # no attention
    ],
)
def test_numbers_are_those_of_each_text_alone(kind, packs, tmp_path, monkeypatch):
    """Log-likelihoods and answers, by plain transformers one text at a time, for packs of several sizes."""
    model = build_model(kind, tmp_path / "model")
    engine = open_engine("transformers", tmp_path / "model", "answer")
    assert engine.can_pack() is packs
    beginnings, texts = some_texts(n=10)
    beginnings = [np.concatenate([[5], first]) for first in beginnings]
    scored = [1 + row % len(text) for row, text in enumerate(texts)]
    a, b = engine.tokenizer.convert_tokens_to_ids(["A", "B"])
    whole = [np.concatenate(both) for both in zip(beginnings, texts, strict=True)]
    wanted, odds = [], []
    for text, n in zip(whole, scored, strict=True):
        with torch.no_grad():
            logp = model(torch.from_numpy(text)[None]).logits[0].double().log_softmax(1)
        wanted.append(float(logp[:-1].gather(1, torch.from_numpy(text[1:, None]))[-n:].sum()))
        odds.append(float(logp[-1, a] - logp[-1, b]))
    for limit in (1, 30, 10**6):
        monkeypatch.setattr(on_transformers, "MAX_CPU_PACKED_TOKENS", limit)
        monkeypatch.setattr(on_transformers, "MAX_SCORED_TOKENS", limit)
        np.testing.assert_allclose(engine.log_likelihood(beginnings, texts, scored), wanted, atol=1e-4)
        np.testing.assert_allclose(engine.answer(whole, ("A", "B")), odds, atol=1e-4)
    assert np.std(odds) > 0.01 and np.ptp(np.array(wanted) / scored) > 0.1


def test_a_configuration_tells_what_cannot_be_packed():
    assert may_pack(AutoConfig.for_model("qwen2", sliding_window=6, use_sliding_window=False))
    assert not may_pack(AutoConfig.for_model("qwen2", sliding_window=6, use_sliding_window=True))
    assert not may_pack(AutoConfig.for_model("mistral", sliding_window=6))
    assert may_pack(AutoConfig.for_model("mistral", sliding_window=None))
