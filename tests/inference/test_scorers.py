"""Text scorers: hand-worked values, and a table of scores that is a task of raters."""

import numpy as np
import polars as pl
import pytest

from harness import registry
from harness.errors import UnavailableError, UserError
from harness.inference import scorers
from harness.inference.scorers import TEXT_SCORERS, disagreements, lix, mtld, open_scorer
from harness.models.small import build_small_model
from tests.methods.test_reward_model import build_reward_model
from tests.test_documents import call

TEXT = "You cannot stay here. Gonna leave, dude?"


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("words", 7),
        ("sentence_words", 3.5),
        ("word_letters", (3 + 6 + 4 + 4 + 5 + 5 + 4) / 7),
        ("second_person", 1 / 7),
        ("casual", 2 / 7),
    ],
)
def test_counts_are_as_by_hand(name, wanted):
    assert open_scorer(name)(TEXT) == pytest.approx(wanted)
    assert open_scorer(name)("") == 0


def test_readability_is_as_by_hand():
    text = "The cat sat. The elephant remembered everything."  # 7 words, 2 sentences, 3 of more than six letters
    assert lix(text) == pytest.approx(7 / 2 + 100 * 3 / 7)
    # parts by hyphens: the, cat, sat, the: 1 each; ele-phant: 2; re-mem-bered: 3; ev-ery-thing: 3
    flesch = open_scorer("flesch")
    assert flesch(text) == pytest.approx(206.835 - 1.015 * 3.5 - 84.6 * 12 / 7, abs=1e-6)
    assert flesch("Yes. No.") > flesch("Incomprehensible institutional considerations.")


def test_diversity_is_as_by_hand():
    assert mtld("a b c d e") == 5  # no stretch ends: the share of distinct words is 1
    # forwards a a: 1/2 <= .72 ends a stretch of two; so does the next: 4 words in 2 stretches
    assert mtld("a a a a") == 2
    assert mtld("the sea the sea the sky the sky") < mtld("one sea two skies three hills four lakes")


def test_sentiment_has_the_sign_of_words():
    for name in ("vader", "afinn"):
        score = open_scorer(name)
        assert score("I love this, it is wonderful.") > 0 > score("I hate this, it is horrible.")
        assert score("The table has four legs.") == 0


def test_disagreement_is_that_of_neighbours_within_a_prompt():
    scores = np.array([[1.0, 2.0], [2.0, 1.0], [3.0, 3.0], [9.0, 9.0], [9.0, 1.0]])
    prompt = np.array([0, 0, 0, 1, 1])
    apart, ties = disagreements(scores, prompt)  # steps: (+, -), (+, +), (0, -)
    assert apart == 0.5 and ties.tolist() == [1 / 3, 0]
    assert np.isnan(disagreements(scores, np.arange(5))[0])


def test_wrong_scorers_are_explained(monkeypatch):
    with pytest.raises(UserError, match="no text scorer 'word'") as error:
        open_scorer("word")
    assert "words" in error.value.hint
    monkeypatch.setattr(scorers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UnavailableError, match="needs the package afinn"):
        open_scorer("afinn")


def test_scorers_that_are_not_installed_are_left_out_unless_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    pl.DataFrame({"response": ["Yes.", "No, never."]}).write_csv("texts.csv")
    monkeypatch.setattr(scorers, "has_package", lambda name: not TEXT_SCORERS[name][1])
    out = call("manyminds score texts.csv --local", monkeypatch, capsys)
    assert "words" in out and "vader" not in out
    call("manyminds score texts.csv --by vader --local", monkeypatch, capsys, code=2)


def test_a_table_of_scores_is_a_task_of_raters(tmp_path, monkeypatch, capsys):
    """Ten text scorers and a reward model rate a file; `model_raters` reads it, and a second run asks nothing."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    words = ["you", "gonna", "love", "hate", "extraordinary", "sea", "I", "a", "dude", "remarkable", "is"]
    texts = [" ".join(rng.choice(words, rng.integers(2, 14))) + "." for _ in range(240)]
    pl.DataFrame({"prompt": [f"Prompt {i // 6}" for i in range(240)], "response": texts}).write_csv("texts.csv")
    build_small_model(tmp_path / "small", steps=0)
    build_reward_model("llama", tmp_path / "rm", tmp_path / "small")
    models = [f"transformers:{tmp_path / 'rm'}", f"transformers:{tmp_path / 'rm'}?max_length=40"]  # two raters
    by = " ".join(f"--by {name}" for name in [*TEXT_SCORERS, *models])
    out = call(f"manyminds score texts.csv {by} --out scores.parquet --local", monkeypatch, capsys)
    assert "two raters order two responses to a prompt differently in" in out and "reward model" in out
    again = call(f"manyminds score texts.csv {by} --out again.parquet --local", monkeypatch, capsys)
    assert again == out
    table = pl.read_parquet("scores.parquet")
    assert (
        table.width == 14
        and set(models) <= set(table.columns)
        and table.equals(pl.read_parquet("again.parquet"))
        and table.null_count().sum_horizontal()[0] == 0
    )
    task = registry.make_instance(
        "task", "model_raters", {"file": "scores.parquet", "shots": [0, 5], "encoder": "hashing-16"}
    )
    assert task.build(0).pairs.n_users == 12
