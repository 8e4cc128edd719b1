"""Raters that are no people: personas by likelihood against plain transformers, tables of personas, and the command."""

import numpy as np
import polars as pl
import pytest
import torch
from transformers import AutoModelForCausalLM

from harness import registry
from harness.errors import UserError
from harness.inference import raters
from harness.inference.jobs import NotCachedError, make_in_process
from harness.inference.raters import PERSONA_PROMPT, PLAIN_PERSONAS, canonical_rater, rater_scores, read_personas
from harness.models.inputs import open_tokenizer
from harness.models.small import build_small_model
from harness.store.store import Store
from tests.test_documents import call

PERSONAS = {"pirate": "a pirate", "judge": "a judge, who is severe"}
PROMPTS = ["Where is the sea?", "What is bread?", "Where is the sea?"]
RESPONSES = ["It is over there.", "Food!", "Far away, my friend."]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "small"
    build_small_model(path, steps=0)
    return path


def computed(name, store, personas=PERSONAS):
    """Return the scores, after the model has read what was missing."""
    try:
        return rater_scores(name, PROMPTS, RESPONSES, store, personas)
    except NotCachedError as missing:
        make_in_process(missing.job.cached_rows(store), missing.job.recipe, missing.job.batches())
        return rater_scores(name, PROMPTS, RESPONSES, store, personas)


def test_a_persona_likes_what_is_likely_of_it_and_not_of_anybody(folder, tmp_path):
    """log p(answer | persona, prompt) minus its mean over plain personas, computed one text at a time."""
    found = computed(f"likelihood:transformers:{folder}", Store(tmp_path).open())
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), open_tokenizer(folder)

    def log_likelihood(persona, prompt, response):
        begun = tokenizer(PERSONA_PROMPT.format(persona, prompt))["input_ids"]
        text = tokenizer(f" {response}", add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            logp = model(torch.tensor([begun + text])).logits[0].double().log_softmax(1)
        return sum(float(logp[len(begun) - 1 + k, token]) for k, token in enumerate(text))

    assert list(found) == ["pirate", "judge"]
    for name, description in PERSONAS.items():
        for place, both in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
            plain = np.mean([log_likelihood(persona, *both) for persona in PLAIN_PERSONAS])
            assert found[name][place] == pytest.approx(log_likelihood(description, *both) - plain, abs=1e-4)
    assert np.abs(found["pirate"] - found["judge"]).max() > 1e-3


def test_scores_are_in_the_order_of_the_texts_and_read_once(folder, tmp_path):
    store, name = Store(tmp_path).open(), f"likelihood:transformers:{folder}"
    whole = computed(name, store)
    turned = rater_scores(name, PROMPTS[::-1], RESPONSES[::-1], store, PERSONAS)  # nothing is missing
    for persona in PERSONAS:
        np.testing.assert_array_equal(whole[persona], turned[persona][::-1])


def test_names_of_raters(folder):
    assert canonical_rater("words") == "words"
    assert canonical_rater(f"likelihood:transformers:{folder}").startswith("likelihood:transformers:sha256:")
    with pytest.raises(UserError, match="no text scorer 'wrds'"):
        canonical_rater("wrds")
    with pytest.raises(UserError):
        canonical_rater("likelihood:nothing")
    with pytest.raises(UserError, match="two raters are called words"):
        raters.add_scores({"words": np.zeros(1)}, {"words": np.ones(1)})


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"name": ["a"], "text": ["x"]}, "no column description"),
        ({"name": ["a", " "], "description": ["x", "y"]}, r"row 1 \(counting from 0\) of column name is empty"),
        ({"name": ["a", "a"], "description": ["x", "y"]}, "two personas are called 'a'"),
        ({"name": [], "description": []}, "no rows"),
    ],
)
def test_a_wrong_table_of_personas_is_explained(rows, message, tmp_path):
    pl.DataFrame(rows, schema=dict.fromkeys(rows, pl.String)).write_csv(tmp_path / "p.csv")
    with pytest.raises(UserError, match=message):
        read_personas(str(tmp_path / "p.csv"))
    with pytest.raises(UserError, match="does not exist"):
        read_personas(str(tmp_path / "q.csv"))


def test_the_command_scores_by_personas(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    pl.DataFrame({"prompt": PROMPTS, "response": RESPONSES}).write_csv("texts.csv")
    pl.DataFrame({"name": list(PERSONAS), "description": list(PERSONAS.values())}).write_csv("mine.csv")
    command = f"manyminds score texts.csv --by words --by likelihood:transformers:{folder} --personas mine.csv --local"
    out = call(f"{command} --out scores.parquet", monkeypatch, capsys)
    assert "a judge, who is severe" in out and "number of words" in out
    table = pl.read_parquet("scores.parquet")
    assert table.columns == ["prompt", "response", "words", "pirate", "judge"]
    np.testing.assert_array_equal(
        table["pirate"], computed(f"likelihood:transformers:{folder}", Store(tmp_path / "store"))["pirate"]
    )


def test_answers_are_written_rated_and_split_by_raters(folder, tmp_path):
    """A model writes and rates; no test rater is trained on, and five seeds test each rater once."""
    pl.DataFrame({"prompt": ["How?", "Why?", "Who?", "When?", "How?"] + [f"What is {i}?" for i in range(8)]}).write_csv(
        tmp_path / "questions.csv"
    )
    model = f"transformers:{folder}"
    fields = {
        "file": str(tmp_path / "questions.csv"),
        "writer": f"{model}?max_tokens=12",
        "raters": [f"likelihood:{model}", "words", "lix"],
        "answers": 6,
        "encoder": "hashing-16",
        "n_candidates": 6,
        "shots": [0, 3],
    }
    task, store = registry.make_instance("task", "written_answers", fields), Store(tmp_path / "store").open()
    for _ in range(2):  # the answers, and what they are worth to personas
        with pytest.raises(NotCachedError) as missing:
            task.build(0, store)
        job = missing.value.job
        make_in_process(job.cached_rows(store), job.recipe, job.batches())
    data = task.build(0, store)
    text = data.pairs.items.known_text.to_pandas()
    assert set(text.groupby("prompt").size()) <= {4, 5, 6} and text["prompt"].nunique() == 12
    assert not text["prompt"].str.contains("sentence").any()  # the instruction is no part of the item
    names = data.users["id"].to_pylist()
    assert names[:2] == list(raters.PERSONAS)[:2] and names[-2:] == ["words", "lix"] and len(names) == 20
    pairs, words = data.pairs.of([18]), text["response"].str.split().str.len().to_numpy()
    agree = (words[pairs.left] > words[pairs.right]) == (pairs.label > 0.5)
    assert agree.mean() > 0.9  # the rater `words` counts punctuation otherwise than split does
    tested = []
    for seed in range(5):
        splits = task.split(data, seed)
        test, validation = (set(splits.panels[name].query.people.tolist()) for name in ("test", "validation"))
        assert not (test & validation) and not (test | validation) & set(splits.train.people.tolist())
        tested += test
    assert sorted(tested) == list(range(20))
    assert registry.make_instance("task", "written_answers", {}).build(0).pairs.n_users == 7


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"answers": 3}, "answers = 3 must be 4 to 14"),
        ({"raters": ["wordz"]}, "no text scorer 'wordz'"),
        ({"file": "questions.csv"}, "templates answer the simulator's own prompts only"),
        ({"writer": "template"}, "'template' is not the name of a writer"),
        ({"personas": "mine.csv"}, "raters names none"),
    ],
)
def test_wrong_fields_of_written_answers_are_explained(fields, message):
    with pytest.raises(UserError, match=message):
        registry.make_instance("task", "written_answers", fields)


def test_personas_without_a_model_are_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    pl.DataFrame({"response": RESPONSES}).write_csv("texts.csv")
    call("manyminds score texts.csv --by words --personas mine.csv --local", monkeypatch, capsys, code=2)
    with pytest.raises(UserError) as error:
        canonical_rater("likelihood:transformers:smolm")
    assert error.value.hint == "did you mean 'smollm'?"


def test_too_few_raters_are_refused(tmp_path):
    task = registry.make_instance("task", "written_answers", {"raters": ["words", "lix"]})
    with pytest.raises(UserError, match=r"2 raters \(words, lix\) are too few"):
        task.build(0)
