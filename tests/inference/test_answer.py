"""Questions to language models: equal to a plain forward pass, asked once, errors reported, roles in both orders."""

import shutil

import numpy as np
import pytest
import torch

from harness.errors import UserError
from harness.inference import answer, role_play
from harness.inference.jobs import NotCachedError, make_in_process
from harness.inference.role_play import player_system_prompt, wanted_traits, writer_system_prompt
from harness.method import Questions
from harness.models import engine, small
from harness.sources.text_world import TRAITS
from harness.store.store import Store
from harness.trials import questions

AB = ("A", "B")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An untrained model, whose answers have no meaning but exist."""
    folder = tmp_path_factory.mktemp("models") / "small"
    small.build_small_model(folder, steps=0)
    return folder


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store").open()


def make(store, *args):
    """Ask the missing questions and return the counts of the run."""
    with pytest.raises(NotCachedError) as lacking:
        answer.stored_log_odds(*args, store)
    job = lacking.value.job
    return make_in_process(job.cached_rows(store), job.recipe, job.batches())


@pytest.fixture
def no_engine(monkeypatch):
    def refuse(*args, **options):
        raise AssertionError("an engine was started")

    monkeypatch.setattr(engine, "open_engine", refuse)


def test_answers_are_those_of_a_plain_forward_pass(folder, store, monkeypatch):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    systems = ["Be formal.", None, "Be formal.", None, None]
    prompts = ["How do I start with baking bread?", "A or B?", "A or B?", "A or B?", "Why?\nA: yes\nB: no"]
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    first, second = tokenizer.convert_tokens_to_ids(["A", "B"])
    wanted = []
    for system, prompt in zip(systems, prompts, strict=True):
        messages = [("system", system)] * (system is not None) + [("user", prompt)]
        text = "<|begin|>" + "".join(f"<|{role}|>{said}<|end|>" for role, said in messages) + "<|assistant|>"
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            odds = model(ids).logits[0, -1].log_softmax(0)
        wanted.append(float(odds[first] - odds[second]))

    name = f"transformers:{folder}"
    found = make(store, name, systems, prompts, AB)
    assert (found["rows"], found["errors"]) == (4, 0)  # one question occurs twice
    np.testing.assert_allclose(answer.stored_log_odds(name, systems, prompts, AB, store), wanted, atol=1e-4)
    assert len(set(wanted)) == 4

    monkeypatch.setattr(engine, "open_engine", None)  # answered questions need no model
    again = answer.stored_log_odds(name, systems[::-1], prompts[::-1], AB, store)
    np.testing.assert_array_equal(again, answer.stored_log_odds(name, systems, prompts, AB, store)[::-1])
    with pytest.raises(NotCachedError, match="1 answers"):
        answer.stored_log_odds(name, [None] * 3, ["A or B?", "new", "new"], AB, store)
    with pytest.raises(NotCachedError, match="2 answers"):  # other words are another question
        answer.stored_log_odds(name, [None] * 2, ["A or B?", "Why?\nA: yes\nB: no"], ("B", "A"), store)


def test_what_cannot_be_asked_is_unknown_until_it_is_too_much(folder, store):
    good = [f"Question {i}?" for i in range(60)]
    bad = ["", "a \ufffd b", "word " * 1500]
    name = f"transformers:{folder}"
    assert make(store, name, [None] * 63, good + bad, AB)["errors"] == 3
    found = answer.stored_log_odds(name, [None] * 63, bad + good, AB, store)
    assert np.isnan(found[:3]).all() and np.isfinite(found[3:]).all()
    for asked, reason in (
        (bad[:1], "empty"),
        (bad[1:2], "decoded"),
        (bad[2:], "tokens, more than the 1023 that the model reads"),
    ):
        with pytest.raises(UserError, match=reason):
            answer.stored_log_odds(name, [None], asked, AB, store)
    assert len(answer.stored_log_odds(name, [], [], AB, store)) == 0


def test_log_odds_that_are_none_are_errors(folder, store, monkeypatch):
    class Broken:
        def answer(self, prompts, words):
            return np.where(np.arange(len(prompts)) == 5, np.nan, 1.5)

    monkeypatch.setattr(engine, "open_engine", lambda *args, **options: Broken())
    name, asked = f"transformers:{folder}", [f"Question {i}?" for i in range(40)]
    assert make(store, name, [None] * 40, asked, AB)["errors"] == 1
    found = answer.stored_log_odds(name, [None] * 40, asked, AB, store)
    assert np.isnan(found[5]) and np.delete(found, 5).tolist() == [1.5] * 39


def test_answers_that_begin_alike_are_told_before_a_model_starts(folder, store, no_engine):
    with pytest.raises(UserError, match="begin with the same token"):
        make(store, f"transformers:{folder}", [None], ["A or B?"], ("A", "A"))


def test_a_judge_is_named_by_what_it_is(folder, store, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    name, other = f"transformers:{folder}", f"transformers:{copy}?dtype=float32&max_length=16384"
    assert answer.canonical_judge(name) == answer.canonical_judge(other) and str(folder) not in answer.canonical_judge(
        name
    )
    job = answer.answer_job(name, AB, list, store)
    assert job.cached_rows(store).store_kind == answer.answer_job(other, AB, list, store).cached_rows(store).store_kind
    different = [(f"{name}?dtype=bfloat16", AB), (f"{name}?max_length=99", AB), (name, ("yes", "no"))]
    kinds = {answer.answer_job(*one, list, store).cached_rows(store).store_kind for one in [(name, AB), *different]}
    assert len(kinds) == 4
    for wrong in ("transformers:small?dtype=int8", "transformers:small?max_length=1", "vllm:small?seed=1", "gpt"):
        with pytest.raises(UserError):
            answer.parse_judge(wrong)


def test_max_length_lowers_what_a_question_may_hold(folder, store):
    name = f"transformers:{folder}?max_length=20"
    make(store, name, [None], ["word " * 30], AB)
    with pytest.raises(UserError, match="more than the 19 that the model reads"):
        answer.stored_log_odds(name, [None], ["word " * 30], AB, store)


def test_collecting_lists_what_is_not_answered(folder, store):
    name = f"transformers:{folder}"
    make(store, name, [None], ["known"], AB)
    jobs = []
    noting = questions.question_collector(store, jobs)
    found = noting(Questions(name, AB, [None] * 4, ["new", "known", "new", "newer"]))
    noting(Questions(name, AB, [None], ["known"]))
    assert (
        found[[0, 2, 3]].tolist() == [0, 0, 0]
        and found[1] == answer.stored_log_odds(name, [None], ["known"], AB, store)[0] != 0
    )
    assert [table["prompt"].to_pylist() for job in jobs for table in job.batches()] == [["new", "newer"]]
    with pytest.raises(NotCachedError):  # outside the context, missing answers are errors as before
        answer.stored_log_odds(name, [None], ["new"], AB, store)


LONG = np.eye(len(TRAITS))[0]
PEOPLE = np.stack([LONG, -LONG])


def liking(monkeypatch, bias=0.0):
    """A judge that plays a role by counting characters, with a bias for the response that is named first."""

    def answers(name, systems, prompts, words, store):
        odds = []
        for system, prompt in zip(systems, prompts, strict=True):
            a, b = prompt.split("\n\nA: ")[1].split("\n\nB: ")
            sign = {"long and detailed": 1, "short and concise": -1}[
                system.split("responses that are ")[1].split(",")[0]
            ]
            odds.append(sign * (len(a) - len(b.split("\n\nWhich")[0])) + bias)
        return np.array(odds)

    monkeypatch.setattr(role_play, "stored_log_odds", answers)


def played(people, prompts, left, right):
    return role_play.role_played_labels("vllm:small", people, prompts, left, right, Store("nowhere"))


def test_played_users_want_what_they_are_told_to(monkeypatch):
    left, right = ["long text here", "ab", "same"], ["short", "abcd", "mase"]
    liking(monkeypatch)
    for person, label in ((0, [1, 0, 0.5]), (1, [0, 1, 0.5])):
        assert played(PEOPLE[[person] * 3], ["Why?"] * 3, left, right).tolist() == label
    assert played(PEOPLE[[1, 0, 1]], ["Why?"] * 3, left, right).tolist() == [0, 0, 0.5]


def test_a_taste_for_the_first_is_averaged_out(monkeypatch):
    left, right = ["long text here", "ab", "same"], ["short", "abcd", "mase"]
    liking(monkeypatch, bias=5)
    assert played(PEOPLE[[0] * 3], ["Why?"] * 3, left, right).tolist() == [1, 0.5, 0.5]
    liking(monkeypatch, bias=100)
    assert played(PEOPLE[[0] * 3], ["Why?"] * 3, left, right).tolist() == [0.5] * 3


def test_half_a_pair_counts_for_nobody(monkeypatch):
    """Where one of the two orders of a question has no answer, a biased judge's label is one half."""
    first, second = answer.log_odds_of_both_orders(np.array([8.0, 8.0, np.nan, 3.0, 7.0, np.nan, 8.0, -1.0]))
    assert first.tolist() == [8, 0, 0, 3] and second.tolist() == [-7, 0, 0, 1]
    monkeypatch.setattr(role_play, "stored_log_odds", lambda *_: np.array([8.0, np.nan, np.nan, 8.0]))
    assert played(PEOPLE, ["Why?"] * 2, ["a", "b"], ["c", "d"]).tolist() == [0.5, 0.5]
    monkeypatch.setattr(role_play, "stored_log_odds", lambda name, systems, prompts, *_: np.zeros(len(prompts)))
    assert played(PEOPLE, ["Why?"] * 2, ["a", "b"], ["c", "d"]).tolist() == [0.5, 0.5]


def test_two_stores_in_one_process_are_two(folder, tmp_path):
    """Answers in one store are not found in another, whichever was used last."""
    one, two = (Store(tmp_path / name).open() for name in ("one", "two"))
    name = f"transformers:{folder}"
    make(one, name, [None], ["Which?"], AB)
    known = answer.stored_log_odds(name, [None], ["Which?"], AB, one)
    with pytest.raises(NotCachedError, match="1 answers"):
        answer.stored_log_odds(name, [None], ["Which?"], AB, two)
    assert answer.stored_log_odds(name, [None], ["Which?"], AB, one) == known


def test_roles_name_both_traits():
    wants = wanted_traits(np.float32([0, 1, 0, 0, -1, 0, 0]))
    assert wants == {"formality": 1, "politeness": -1}
    assert "formal and rude" in player_system_prompt(wants) and "formal and rude" in writer_system_prompt(
        wants, f"vllm:a/b@{'0' * 40}?dtype=bfloat16"
    )
    assert writer_system_prompt(wants, "vllm:small?temperature=0.5") == small.system_line(wants)
    every = {player_system_prompt({trait: sign}) for trait in TRAITS for sign in (1, -1)}
    assert len(every) == 14
