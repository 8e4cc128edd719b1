"""Reward models: heads are those of plain transformers however batched, and a suite scores with them once."""

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from harness import registry
from harness.api import load_trial, run_suite
from harness.errors import UserError
from harness.inference.cache import ID_TYPE, text_id
from harness.inference.encode import EncodeRecipe, asked_rewards, parse_encoder
from harness.inference.jobs import make_in_process
from harness.method import TaskFacts
from harness.models.engine import open_engine
from harness.models.small import build_small_model
from harness.store.store import Store
from tests.tasks.test_choices import table

KINDS = ("qwen2", "llama", "gpt2", "bert", "roberta")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "small"
    build_small_model(folder, steps=0)
    return folder


def build_reward_model(kind, folder, small, heads=1, pad=None, template=True):
    """Write a random reward model of some kind."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2}
    sizes |= {"num_key_value_heads": 1} if kind in ("qwen2", "llama") else {}
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2} if kind == "gpt2" else sizes
    config = AutoConfig.for_model(
        kind, vocab_size=1001, num_labels=heads, pad_token_id=pad, max_position_embeddings=300, **sizes
    )
    if kind == "roberta":
        config.pad_token_id = 1
    model = AutoModelForSequenceClassification.from_config(config).eval()
    for name, weights in model.named_parameters():
        if "score" in name or "classifier" in name:
            torch.nn.init.normal_(weights)
    model.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(small)
    tokenizer.chat_template = tokenizer.chat_template if template else None
    tokenizer.save_pretrained(folder)
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_heads_are_those_of_plain_transformers_however_batched(kind, small, tmp_path, monkeypatch):
    """Also for a model without a padding token: padding and the size of a batch move no score."""
    model = build_reward_model(kind, tmp_path / kind, small, heads=3)
    rng = np.random.default_rng(0)
    texts = [rng.integers(4, 990, n).tolist() for n in (1, 7, 30, 12, 2)]
    with torch.no_grad():
        wanted = torch.cat([model(torch.tensor([text])).logits for text in texts]).numpy()
    engine = open_engine("transformers", tmp_path / kind, "classify")
    for budget in (1, 40, 10**6):
        monkeypatch.setattr(engine, "tokens", budget)
        np.testing.assert_allclose(engine.embed(texts, "heads"), wanted, atol=1e-4)
    assert np.ptp(wanted, axis=0).min() > 0.01


@pytest.mark.parametrize("template", [True, False])
def test_a_conversation_is_read_as_reward_models_are_trained(template, small, tmp_path):
    """By the chat template; without one, as the tokenizer's two parts."""
    model = build_reward_model("llama", tmp_path / "rm", small, template=template)
    store, name = Store(tmp_path / "store").open(), f"transformers:{tmp_path / 'rm'}?pooling=heads"
    assert parse_encoder(name)["of"] == "both"
    pairs = [("Why?", "Because."), ("How are you?", "Fine, thanks.")]
    prompts, responses = zip(*pairs, strict=True)
    inputs = pa.table(
        {"id": pa.array([text_id(r, p) for p, r in pairs], ID_TYPE), "prompt": prompts, "response": responses}
    )
    recipe = EncodeRecipe(name, store)
    recipe.check()
    ready, wrong = recipe.prepare(inputs)
    found = np.stack(recipe.start()(ready)[0]["vector"].to_numpy())
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "rm")
    for row, (prompt, response) in enumerate(pairs):
        if template:
            said = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
            ids = tokenizer(tokenizer.apply_chat_template(said, tokenize=False), add_special_tokens=False)["input_ids"]
        else:
            ids = tokenizer(prompt, response)["input_ids"]
        with torch.no_grad():
            wanted = model(torch.tensor([ids])).logits[0].numpy()
        np.testing.assert_allclose(found[row], wanted, atol=1e-4)
    assert len(wrong) == 0


def test_a_model_without_heads_is_refused(small, tmp_path):
    with pytest.raises(UserError, match="holds no reward model: its architecture is Qwen2ForCausalLM"):
        EncodeRecipe(f"transformers:{small}?pooling=heads", Store(tmp_path / "store").open()).check()
    method = registry.make_instance("method", "reward_model", {})
    facts = TaskFacts(feature_dim=None, has_text=True, has_seconds=False, has_truth=False)
    assert "needs a reward model" in method.refuses(facts)
    with pytest.raises(UserError, match="read by transformers alone"):
        registry.make_instance("method", "reward_model", {"model": "vllm:small"})
    with pytest.raises(UserError, match="a reward model has no pooling"):
        registry.make_instance("method", "reward_model", {"model": "transformers:small?pooling=mean"})


def test_a_board_with_a_reward_model_as_a_row_and_as_features(small, tmp_path):
    """Nobody's answers change the row: all numbers of shots, and the swap control, give the same."""
    build_reward_model("llama", tmp_path / "rm", small, heads=4)
    table(10).write_csv(tmp_path / "choices.csv")
    name = f"transformers:{tmp_path / 'rm'}"
    (tmp_path / "s.toml").write_text(
        f'seeds = 3\n[[tasks]]\nname = "choices"\nfile = "{tmp_path}/choices.csv"\nshots = [0, 3]\n'
        f'encoder = "{name}?pooling=heads"\n[[methods]]\nname = "reward_model"\nmodel = "{name}"\nhead = 2\n'
    )
    run = run_suite(tmp_path / "s.toml", tmp_path / "store")
    row = next(row for row in run.board.tasks[0].rows if row.method.name == "reward_model")
    curve = {shots: point.value for shots, point in row.curves["accuracy"].items()}
    assert curve[0] == curve[3]
    asked = asked_rewards(name, 7, ["Why?"], ["So."], run.store)
    make_in_process(asked.make_job(list).cached_rows(run.store), asked.make_job(list).recipe, [asked.missing()])
    with pytest.raises(UserError, match="head = 7, and the model has 4 heads"):
        asked.stored()
    trial = next(trial for trial in run.plan.trials if trial.method.name == "reward_model" and trial.seed == 0)
    data = run.plan.suite.tasks[0].build(0, run.store)
    pairs = run.plan.suite.tasks[0].split(data, 0).panels["test"].query
    scores = pl.DataFrame(data.pairs.items.known_features)  # the heads, on the scale of the task's features
    z = scores["column_2"].to_numpy()
    wanted = np.sign(z[pairs.left] - z[pairs.right])
    assert (np.sign(load_trial(run.store, trial.key).predictions["test/3"]) == wanted).all()
