"""Inputs of language models: on every path, everything meant is in what the model reads, or an error says what is lost."""

import json
import shutil
import sys

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedTokenizerFast, T5Config, T5Model

from harness.cli import main
from harness.data import TEXT_SCHEMA, Items
from harness.errors import UserError
from harness.inference import answer, encode, generate
from harness.learning import policy, policy_sampling
from harness.models import small
from harness.models.engine import open_engine
from harness.models.tokens import OFFSET_POSITIONS
from harness.store.store import Store

SYSTEM, PROMPT, RESPONSE = "Be a pirate.", "Say hi, will you?", "Well, hello there."

TURN = "{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}"
OPEN = "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"


def template(turn=TURN, turns="messages", begin="", end=OPEN):
    """Return a chat template that writes each turn, between a beginning and an end."""
    return f"{begin}{{% for m in {turns} %}}{turn}{{% endfor %}}{end}"


TEMPLATES = {
    "none": None,
    "whole": template(),
    "begins": template(begin="{{ bos_token }}"),
    "refuses the system line": template(
        begin="{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    ),
    "skips the system line": template(turn="{% if m['role'] != 'system' %}" + TURN + "{% endif %}"),
    "always writes its own system line": template(
        begin="<|system|>Be helpful.<|end|>", turn="{% if m['role'] != 'system' %}" + TURN + "{% endif %}"
    ),
    "has a default system line": template(
        begin="{% if messages[0]['role'] != 'system' %}<|system|>Be helpful.<|end|>{% endif %}"
    ),
    "strips": template(turn=TURN.replace("m['content']", "m['content'] | trim")),
    "skips the last response": template(
        turn="{% if not (loop.last and m['role'] == 'assistant') %}" + TURN + "{% endif %}"
    ),
    "shortens responses": template(
        turn=TURN.replace("m['content']", "(m['content'] if m['role'] != 'assistant' else m['content'][:4])")
    ),
    "skips the prompt": template(turn="{% if m['role'] != 'user' %}" + TURN + "{% endif %}"),
    "joins words": template(turn=TURN.replace("m['content']", "m['content'] | replace(' ', '')")),
    "ends the prompt": template(end=""),
}
ADDED = {"nothing": [], "begin": ["<|begin|>", "$A"], "end": ["$A", "<|end|>"], "both": ["<|begin|>", "$A", "<|end|>"]}


@pytest.fixture(scope="module")
def made(folder, tmp_path_factory):
    """A function that returns the folder of a small model with a chat template and special tokens added to texts."""
    root = tmp_path_factory.mktemp("variants")

    def make(chat, added="nothing"):
        path = root / f"{chat} {added}".replace(" ", "_")
        if not path.exists():
            shutil.copytree(folder, path)
            tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
            if ADDED[added]:
                special = [(token, tokenizer.convert_tokens_to_ids(token)) for token in ("<|begin|>", "<|end|>")]
                tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
                    single=ADDED[added], special_tokens=special
                )
            tokenizer.chat_template = TEMPLATES[chat]
            (path / "chat_template.jinja").unlink(missing_ok=True)
            tokenizer.save_pretrained(path)
        return path

    return make


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return Store(tmp_path_factory.mktemp("inputs") / "store").open()


def prepared(job):
    """Return the only input that a job prepares as tokens. Raises ValueError with the reason where it is an error."""
    ready, bad = job.recipe.prepare(next(iter(job.batches())))
    if len(bad):
        raise ValueError(bad["reason"][0].as_py())
    return ready["tokens"][0].as_py()


def generated(model, store, system, prompt, response):
    table = pa.table({"system": pa.array([system], pa.string()), "prompt": [prompt]})
    return prepared(
        generate.generate_job(f"transformers:{model}", 1, lambda: [generate.generator_inputs(table)], store)
    )


def answered(model, store, system, prompt, response):
    return prepared(
        answer.answer_job(
            f"transformers:{model}", ("A", "B"), lambda: [answer.question_table([system], [prompt])], store
        )
    )


def encoded(model, store, system, prompt, response, options="of=both"):
    table = pa.table({"prompt": [prompt], "response": [response]})
    return prepared(encode.encode_job(f"transformers:{model}?{options}", lambda: [table], store))


def trained(model, store, system, prompt, response):
    items = Items(text=pa.table([[prompt], [response]], schema=TEXT_SCHEMA))
    found = policy.tokenise_items(items, policy.parse_policy_model(f"transformers:{model}"), store)
    return found.ids.tolist()


def written(model, store, system, prompt, response):
    """Return the tokens of the prompt that a policy continues."""

    class Reached(Exception):
        pass

    def stop(lm, prompts, *rest):
        raise Reached(prompts[0])

    lm = AutoModelForCausalLM.from_pretrained(model)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(policy_sampling, "PolicyWriter", stop)
        try:
            policy_sampling.write_responses(lm, tokenizer_of(model), [prompt], 0, max_tokens=8)
        except Reached as reached:
            return reached.args[0]


def tokenizer_of(model):
    return PreTrainedTokenizerFast.from_pretrained(model)


PATHS = {  # path -> what builds its input, and the parts that it is given
    "generate": (generated, {SYSTEM, PROMPT}),
    "answer": (answered, {SYSTEM, PROMPT}),
    "encode both": (encoded, {PROMPT, RESPONSE}),
    "policy": (trained, {PROMPT, RESPONSE}),
    "policy writes": (written, {PROMPT}),
}
CONTINUED = {"generate", "answer", "policy writes"}
LOST = {  # (template, path) -> what the error says
    **{("skips the prompt", path): "does not show the prompt" for path in PATHS},
    **{("joins words", path): "does not show the " for path in PATHS},
    **{("ends the prompt", path): "ends a prompt" for path in CONTINUED | {"policy"}},
    ("skips the last response", "encode both"): "does not show the response",
    ("shortens responses", "encode both"): "does not show the response",
}


@pytest.mark.parametrize("added", ["nothing", "both"])
@pytest.mark.parametrize("chat", TEMPLATES)
@pytest.mark.parametrize("path", PATHS)
def test_everything_meant_is_read_once_on_every_path(made, store, chat, added, path):
    build, parts = PATHS[path]
    model = made(chat, added)
    if says := LOST.get((chat, path)):
        with pytest.raises(UserError, match=f"{model}.* {says}") as caught:
            build(model, store, SYSTEM, PROMPT, RESPONSE)
        assert "chat_template" in caught.value.hint
        return
    tokens = build(model, store, SYSTEM, PROMPT, RESPONSE)
    text = tokenizer_of(model).decode(tokens)
    assert [text.count(part) for part in sorted(parts)] == [1] * len(parts)
    assert SYSTEM not in parts or text.index(SYSTEM) < text.index(PROMPT)
    begins = {"begins": True, "none": added in ("begin", "both")}.get(chat, False)
    assert text.count("<|begin|>") == begins and text.startswith("<|begin|>") == begins
    if path in CONTINUED:
        assert not text.endswith("<|end|>") and text.endswith("\n" if chat == "none" else "<|assistant|>")
    if path == "policy":
        assert text.endswith(f"{RESPONSE}<|end|>")
        between = text[text.index(PROMPT) + len(PROMPT) : text.index(RESPONSE)]
        assert between == ("\n" if chat == "none" else "<|end|><|assistant|>")
    if path == "encode both" and chat == "none":
        assert text.endswith("<|end|>") == (added in ("end", "both"))
    if path == "encode both" and "default" in chat:
        assert "Be helpful" not in text  # an empty system line stands in its place: half of a short item would be alike
    elif "writes its own" in chat or ("default" in chat and SYSTEM not in parts):
        assert "<|system|>Be helpful." in text


@pytest.mark.parametrize("path", ["generate", "answer"])
@pytest.mark.parametrize("chat", TEMPLATES)
def test_opposed_system_lines_give_different_prompts(made, store, chat, path):
    if (chat, path) not in LOST:
        build = PATHS[path][0]
        assert build(made(chat), store, "Be rude.", PROMPT, "") != build(made(chat), store, "Be kind.", PROMPT, "")


def test_a_template_that_loses_a_part_is_refused_before_any_work(made, store):
    """Also where the tokenizer is only checked: no block is begun."""
    for name, make in (("skips the prompt", generate.GenerateRecipe), ("ends the prompt", generate.GenerateRecipe)):
        with pytest.raises(UserError, match="chat template"):
            make(f"transformers:{made(name)}", 1, store).check()
    with pytest.raises(UserError, match="chat template"):
        answer.AnswerRecipe(f"transformers:{made('skips the prompt')}", ("A", "B"), store).check()
    with pytest.raises(UserError, match="does not show the response"):
        encode.EncodeRecipe(f"transformers:{made('skips the last response')}?of=both", store).check()
    encode.EncodeRecipe(f"transformers:{made('skips the last response')}", store).check()


def test_a_template_that_loses_a_part_of_some_texts_makes_these_errors(made, store):
    """Reasoning is cut out of former turns by several public templates."""
    TEMPLATES["drops reasoning"] = template(turn=TURN.replace("m['content']", "m['content'].split('</think>')[-1]"))
    model = made("drops reasoning")
    table = pa.table({"prompt": ["Why?", "Why?"], "response": ["So.", "<think>Hm.</think>So."]})
    job = encode.encode_job(f"transformers:{model}?of=both", lambda: [table], store)
    ready, bad = job.recipe.prepare(next(iter(job.batches())))
    assert len(ready) == 1 and "leaves out a part of the response" in bad["reason"][0].as_py()
    for build in (generated, answered):
        with pytest.raises(ValueError, match="leaves out a part of the prompt"):
            build(model, store, SYSTEM, "<think>Hm.</think>So.", "")
    with pytest.raises(UserError, match="leaves out a part of the prompt"):
        trained(model, store, None, "<think>Hm.</think>So.", "Yes.")


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(*[st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\ufffd"), min_size=1)] * 3)
def test_any_text_reaches_the_model_or_is_an_error(made, store, system, prompt, response):
    """Texts of any characters, on all paths and by every kind of template; a byte-level tokenizer has tokens for all."""
    for chat in ("none", "begins", "skips the system line", "strips"):
        model = made(chat, "both")
        decode = tokenizer_of(model).decode
        for path, (build, parts) in PATHS.items():
            if path == "policy writes":
                continue  # loads a model each time; its prompt is built as that of "generate"
            meant = [
                given for name, given in ((SYSTEM, system), (PROMPT, prompt), (RESPONSE, response)) if name in parts
            ]
            try:
                tokens = build(model, store, system, prompt, response)
            except (ValueError, UserError):
                assert not all(text.strip() for text in meant)
                continue
            text = decode(tokens, skip_special_tokens=False)
            for part in meant:
                wanted = decode(tokenizer_of(model)(part.strip(), add_special_tokens=False)["input_ids"])
                assert wanted.strip() in text


@pytest.fixture(scope="module")
def lossy(folder, tmp_path_factory):
    """The folder of a small model whose tokenizer knows some characters, and maps all others to nothing."""
    path = tmp_path_factory.mktemp("lossy") / "model"
    shutil.copytree(folder, path)
    (path / "chat_template.jinja").unlink()
    vocabulary = {word: place for place, word in enumerate(["<|end|>", *"ABhi?", "hi"])}
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=[("h", "i")]))
    tokenizer.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>").save_pretrained(path)
    return path


@pytest.mark.parametrize("lost", ["日", "hi 日", "hi é hi"])
@pytest.mark.parametrize("path", [*PATHS, "encode response"])
def test_characters_without_a_token_are_an_error_on_every_path(lossy, store, lost, path):
    build = PATHS[path][0] if path in PATHS else lambda *parts: encoded(*parts, options="of=response")
    read = {
        "generate": (0, 1),
        "answer": (0, 1),
        "encode both": (1, 2),
        "policy": (1, 2),
        "policy writes": (1,),
        "encode response": (2,),
    }
    assert build(lossy, store, "hi", "hi", "hi?")
    for place in read[path]:
        parts = ["hi", "hi", "hi?"]
        parts[place] = lost
        with pytest.raises((ValueError, UserError), match="has no token for '[日é]' in the "):
            build(lossy, store, *parts)


@pytest.mark.parametrize("path", PATHS)
def test_prompts_may_be_empty_where_responses_are_read(made, store, path):
    """Tasks without prompts have items with empty ones; questions and prompts to write for may not be empty."""
    build = PATHS[path][0]
    if path in ("generate", "answer"):
        with pytest.raises(ValueError, match="the prompt is empty"):
            build(made("whole"), store, SYSTEM, " ", RESPONSE)
    else:
        assert build(made("whole"), store, None, "", RESPONSE)
    if path in ("encode both", "policy"):
        with pytest.raises(ValueError, match="empty"):
            build(made("whole"), store, None, PROMPT, " ")


def test_answers_without_a_token_are_said(lossy, store):
    with pytest.raises(UserError, match="has no token for '日'"):
        answer.AnswerRecipe(f"transformers:{lossy}", ("A", "日"), store).check()


@pytest.mark.parametrize("chat", ["none", "whole"])
def test_a_prompt_that_leaves_no_room_for_the_response_is_an_error(made, store, chat):
    """A response may be cut, but a vector of the prompt alone would be the same for all responses."""
    model, options = made(chat, "both"), "of=both&max_length=64"
    cut = encoded(model, store, None, "word " * 10, "far " * 99, options)
    assert len(cut) == 64 and "far" in tokenizer_of(model).decode(cut)
    with pytest.raises(ValueError, match="leaves no room for the response"):
        encoded(model, store, None, "word " * 500, "yes", options)


RECIPES = {  # (template, added tokens) -> inputs that are not as before: judges and generators, policies, of=both
    ("whole", "both"): (1, 1, 1),
    ("strips", "nothing"): (1, 1, 1),
    ("refuses the system line", "nothing"): (1, 1, 1),
    ("has a default system line", "nothing"): (1, 1, 2),
    ("none", "nothing"): (1, 1, 1),
    ("none", "begin"): (1, 1, 2),
    ("none", "end"): (2, 2, 2),
    ("skips the system line", "nothing"): (2, 1, 1),
    ("always writes its own system line", "nothing"): (2, 1, 1),
    ("skips the last response", "nothing"): (1, 1, 2),
}


@pytest.mark.parametrize("case", RECIPES, ids=" ".join)
def test_only_results_of_changed_inputs_have_a_new_key(made, case, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))  # the cache of what is known about models
    name = f"transformers:{made(*case)}"
    found = [
        generate.parse_generator(name),
        answer.parse_judge(name),
        policy.parse_policy_model(name),
        encode.parse_encoder(f"{name}?of=both"),
    ]
    asked, trained_on, both = RECIPES[case]
    for _ in range(2):  # the second time from the cache
        assert [model.identity["recipe"] for model in found] == [asked, asked, trained_on, both]
        assert [f"recipe={model.identity['recipe']}" in model.canonical_name for model in found] == [True] * 4
        assert encode.parse_encoder(name).identity["recipe"] == 1


def test_the_projects_own_model_keeps_its_keys(folder):
    assert generate.parse_generator("transformers:small").identity["recipe"] == 1
    assert generate.parse_generator(f"transformers:{folder}").identity["recipe"] == 1
    assert tokenizer_of(folder).chat_template == small.CHAT_TEMPLATE


def test_a_hub_model_that_is_not_here_keeps_its_key(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    name = "transformers:org/name@" + 40 * "b"
    assert generate.parse_generator(name).identity["recipe"] == 1


TINY = {
    "vocab_size": 1000,
    "hidden_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 50,
    "pad_token_id": 1,
}


@pytest.mark.parametrize("kind", sorted(OFFSET_POSITIONS | {"bert", "mobilebert"}))
def test_a_long_text_is_cut_to_the_positions_of_the_model(folder, store, tmp_path, kind):
    """RoBERTa and its like number positions from `pad_token_id + 1`, so that 50 positions hold 48 tokens."""
    more = {
        "longformer": {"attention_window": 8},
        "mobilebert": {"embedding_size": 24, "true_hidden_size": 24, "intra_bottleneck_size": 24},
        "esm": {"position_embedding_type": "absolute", "mask_token_id": 3, "token_dropout": False},
        "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
        "layoutlmv3": {"visual_embed": False, "coordinate_size": 4, "shape_size": 4},
        "lilt": {"channel_shrink_ratio": 2},
        "luke": {"entity_vocab_size": 5, "entity_emb_size": 8},
    }
    config = AutoConfig.for_model(kind, **TINY | more.get(kind, {}))
    AutoModel.from_config(config).save_pretrained(tmp_path / kind)
    tokenizer = tokenizer_of(folder)
    tokenizer.model_max_length = int(1e30)
    tokenizer.save_pretrained(tmp_path / kind)
    tokens = encoded(tmp_path / kind, store, None, "hi", "word " * 300, options="max_length=9999")
    engine = open_engine("transformers", tmp_path / kind, "embed", max_length=9999)
    assert len(tokens) == engine.context_length == 50 - 2 * (kind in OFFSET_POSITIONS)
    assert np.isfinite(engine.embed([tokens, tokens[:3]])).all()


def test_an_encoder_decoder_model_encodes_and_does_nothing_else(folder, store, tmp_path):
    torch.manual_seed(0)
    model = T5Model(T5Config(vocab_size=1000, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)).eval()
    model.save_pretrained(tmp_path / "t5")
    tokenizer_of(folder).save_pretrained(tmp_path / "t5")
    found = open_engine("transformers", tmp_path / "t5", "embed").embed([[5, 6, 7], [8]])
    with torch.no_grad():
        wanted = model.get_encoder()(torch.tensor([[5, 6, 7]])).last_hidden_state[0, -1]
    np.testing.assert_allclose(found[0], wanted.numpy(), atol=1e-5)
    for use, engine in (("sample", "transformers"), ("answer", "transformers"), ("embed", "vllm")):
        with pytest.raises(UserError, match="encoder-decoder model \\(t5\\)"):
            open_engine(engine, tmp_path / "t5", use)
    with pytest.raises(UserError, match="encoder-decoder model"):
        policy.load_language_model(tmp_path / "t5")
    assert json.loads((tmp_path / "t5" / "config.json").read_text())["is_encoder_decoder"]


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json", "config.json"])
@pytest.mark.parametrize("content", [b"\0" * 1000, b"", b"{"])
def test_damaged_files_of_a_model_are_named_by_their_folder(tmp_path, capsys, monkeypatch, file, content):
    small.build_small_model(tmp_path / "model", steps=0)
    (tmp_path / "model" / file).write_bytes(content)
    (tmp_path / "texts.csv").write_text("response\nhello\n")
    encoder = f"transformers:{tmp_path}/model"
    words = ["encode", tmp_path / "texts.csv", "--encoder", encoder, "--out", tmp_path / "v.npy", "--local"]
    monkeypatch.setattr(sys, "argv", ["manyminds", *map(str, words), "--store", str(tmp_path / "store")])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr().err
    assert ended.value.code == 2 and f"{tmp_path}/model" in said and "\n\nhint: " in said, said
