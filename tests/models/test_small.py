"""The small model: the same bytes each time, complete or absent, and loadable in transformers and PEFT."""

import hashlib

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from harness.models import small
from harness.sources.text_world import PROMPTS, TRAITS, trait_scores, write_response


def digests(folder):
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "small"
    small.build_small_model(folder, steps=2)
    return folder


def test_the_same_build_gives_the_same_files(folder, tmp_path):
    torch.rand(3)  # the build neither uses nor changes the global generator's state
    before = torch.random.get_rng_state()
    small.build_small_model(tmp_path / "again", steps=2)
    assert torch.equal(before, torch.random.get_rng_state())
    small.build_small_model(tmp_path / "other", steps=2, seed=1)
    assert digests(tmp_path / "again") == digests(folder)
    assert digests(tmp_path / "other")["model.safetensors"] != digests(folder)["model.safetensors"]


def test_what_fails_half_way_leaves_nothing(tmp_path, monkeypatch):
    def full(tokenizer, folder):
        raise OSError("No space left on device")

    monkeypatch.setattr("transformers.Qwen2Tokenizer.save_pretrained", full)
    with pytest.raises(OSError, match="No space"):
        small.build_small_model(tmp_path / "small", steps=0)
    assert not list(tmp_path.iterdir())


def test_what_is_there_is_left_alone(folder):
    before = digests(folder)
    small.build_small_model(folder, steps=0, seed=5)
    assert digests(folder) == before
    assert [path.name for path in folder.parent.iterdir()] == ["small"]


def test_any_text_survives_the_tokenizer(folder):
    names = AutoTokenizer.from_pretrained(folder)
    for text in ("It is thus established. I can't wait!", "Zürich 東京 🙂\n\ttab", write_response(PROMPTS[0], 3)):
        assert names.decode(names(text)["input_ids"]) == text
    assert len({names.bos_token_id, names.eos_token_id, names.pad_token_id}) == 3
    assert len(names) == small.VOCABULARY_SIZE  # each token has a row in the model
    assert AutoModelForCausalLM.from_pretrained(folder).generation_config.eos_token_id == names.eos_token_id


def test_every_conversation_fits_and_ends(folder):
    names = AutoTokenizer.from_pretrained(folder)
    talk = small.world_conversations(300, seed=7)
    rows = names(names.apply_chat_template(talk, tokenize=False))["input_ids"]
    assert max(map(len, rows)) <= small.TRAINING_CONTEXT
    assert all(row[0] == names.bos_token_id and row[-1] == names.eos_token_id for row in rows)


def test_the_system_line_names_the_two_strongest_traits():
    talk = small.world_conversations(300, seed=7)
    steered = [messages for messages in talk if messages[0]["role"] == "system"]
    assert 100 < len(steered) < 200
    manner = {
        word: (t, sign)
        for t, words in enumerate(small.TRAIT_MANNERS.values())
        for word, sign in zip(words, (1, -1), strict=False)
    }
    assert tuple(small.TRAIT_MANNERS) == TRAITS and len(manner) == 14
    for system, _, response in steered:
        score = trait_scores([response["content"]])[0]
        named = [manner[word] for word in system["content"].removeprefix("Be ").removesuffix(".").split(" and ")]
        assert all(sign * score[t] > 0 for t, sign in named)
        rest = np.delete(np.abs(score), [t for t, _ in named])
        assert min(abs(score[t]) for t, _ in named) >= rest.max()
    assert small.system_line({"formality": 1, "length": -1}) == "Be formal and brief."


def test_training_teaches(folder, tmp_path):
    """After two training steps a simulator's text has a lower loss than without training."""
    small.build_small_model(tmp_path / "untrained", steps=0)
    names = AutoTokenizer.from_pretrained(folder)
    ids = names(write_response(PROMPTS[3], 11), return_tensors="pt")["input_ids"]
    loss = [AutoModelForCausalLM.from_pretrained(f)(ids, labels=ids).loss for f in (tmp_path / "untrained", folder)]
    assert loss[1] < loss[0] - 0.2


def test_peft_adapts_it(folder):
    peft = pytest.importorskip("peft", reason="an optional library, tried where it is installed")
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(folder), peft.LoraConfig(task_type="CAUSAL_LM"))
    ids = torch.tensor([[0, 4, 45, 78, 1, 5]])
    model(ids, labels=ids).loss.backward()
    learns = [name for name, weight in model.named_parameters() if weight.grad is not None]
    assert learns and all("lora_" in name for name in learns)
