"""`in_context` with known judges: the texts shown, position bias cancels, and questions are collected beforehand."""

import json
import re
import shutil
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
import torch

from harness.api import run_suite
from harness.board.flags import flag_judges
from harness.check.methods import method_checks, with_readable_items
from harness.data import TEXT_SCHEMA, Items, Pairs, PreferenceDataset
from harness.errors import UserError
from harness.inference.answer import question_table
from harness.inference.cache import id_array
from harness.inference.generate import likeliest_writer, parse_generator
from harness.inference.jobs import NotCachedError, make_in_process
from harness.method import Run, TaskFacts
from harness.methods import in_context
from harness.methods.in_context import PERSONA_TEMPLATE, SYSTEM_PROMPT, InContext
from harness.models import engine, small
from harness.store.store import Store
from harness.task import Task, split_in_order
from harness.trials import finish as finishing
from harness.trials import questions
from harness.trials.finish import finish_trial, finish_trials
from harness.trials.plan import make_plan
from harness.trials.run import run_trial
from harness.trials.suite import read_suite
from harness.trials.trial import Trial
from tasks.low_rank import LowRank


@dataclass(frozen=True)
class Loud(Task):
    """A task in which even people prefer more exclamation marks, odd people fewer."""

    shots: tuple[int, ...] = (0, 1, 4)
    queries: int = 5

    def build(self, seed):
        rng = np.random.default_rng(seed)
        user = np.repeat(np.arange(24), 20)
        marks = rng.permuted(np.tile(np.arange(1, 7), (len(user), 1)), axis=1)[:, :2].ravel()
        text = pa.table(
            [[f"Prompt {i // 2}" for i in range(len(marks))], [f"{'!' * m} " for m in marks]], schema=TEXT_SCHEMA
        )
        more = marks[::2] > marks[1::2]
        left = np.arange(0, len(marks), 2)
        data = PreferenceDataset.from_pairs(
            user, left, left + 1, np.where(user % 2 == 0, more, ~more), Items(text=text)
        )
        order = np.array(data.users["id"].to_pylist()).astype(int)
        profiles = pa.array([["loud", "quiet"][i % 2] for i in order], pa.large_string())
        return replace(data, pairs=replace(data.pairs, profiles=profiles))

    def split(self, data, seed):
        return split_in_order(data, 12, self.queries)


def counting(prompt: str) -> float:
    """Judge by whether the choices, or the profile, show that a person likes exclamation marks."""
    shown, _, asked = prompt.rpartition("New choice:")
    marks = {
        name: [part.count("!") for part in re.findall(rf"^{name}: (.*)$", shown, re.M)]
        for name in ("Preferred", "Rejected")
    }
    sign = np.sign(np.sum(marks["Preferred"]) - np.sum(marks["Rejected"]))
    sign = sign or 1.0 * ("\nloud\n" in shown) - ("\nquiet\n" in shown)
    a, b = (re.search(rf"^{name}: (.*)$", asked, re.M)[1].count("!") for name in "AB")
    return sign * (a - b)


def judged(bias=0.0):
    def answer(asked):
        assert asked.words == ("A", "B") and set(asked.systems) == {SYSTEM_PROMPT}
        return np.array([counting(prompt) for prompt in asked.prompts]) + bias

    return answer


def trial(method, answer, task=Loud()):
    data = task.build(0)
    return run_trial(Trial(task, method, 0, "check", "check"), task.split(data, 0), None, answer=answer)


def accuracy(result, swapped=False):
    scores = result.scores.to_pandas()
    return scores[(scores.panel == "test") & (scores.swapped == swapped)].groupby("shots").accuracy.mean().to_dict()


def test_a_planted_preference_is_found():
    assert accuracy(trial(InContext(), judged())) == {0: 0.5, 1: 1, 4: 1}
    assert accuracy(trial(InContext(view="profile"), judged())) == {0: 1, 1: 1, 4: 1}
    assert accuracy(trial(InContext(view="profile+context"), judged())) == {0: 1, 1: 1, 4: 1}


@pytest.mark.parametrize("view", ["context", "profile"])
def test_under_the_swap_control_another_person_is_shown(view):
    """Of six test users every other one is loud; a user with an unlike user's state gets all answers wrong."""
    from harness.scores.stats import fixed_derangement

    other = fixed_derangement(6)
    alike = (np.arange(6) % 2 == other % 2).mean()
    assert accuracy(trial(InContext(view=view), judged()), swapped=True)[4] == alike < 1


@pytest.mark.parametrize("bias", [3.0, -50.0])
def test_a_taste_for_a_position_cancels(bias):
    plain = trial(InContext(), judged()).predictions
    biased = trial(InContext(), judged(bias)).predictions
    assert plain.keys() == biased.keys()
    for name in plain:
        np.testing.assert_array_equal(plain[name], biased[name])


def problems(method):
    """Return the contract's violations; the judge's answers are hashes of the questions."""
    return {what: problem for what, check in method_checks(method) if (problem := check())}


@pytest.mark.parametrize(
    "fields", [{}, {"max_examples": 3}, {"view": "profile"}, {"view": "profile+context", "max_characters": 5}]
)
def test_keeps_the_contract_where_there_is_something_to_read(fields):
    assert problems(InContext(**fields)) == {}


@dataclass(frozen=True)
class AsksOnce(InContext):
    def score_answers(self, log_odds, query):
        return torch.from_numpy(log_odds[: len(query)])  # only the answers with left first


@dataclass(frozen=True)
class ShowsTheFirst(InContext):
    def adapt(self, state, context, run):
        return super().adapt(state, context.first(1), run)


@dataclass(frozen=True)
class LikesTheLeft(InContext):
    def adapt(self, state, context, run):
        return super().adapt(state, replace(context, label=np.ones_like(context.label)), run)


def test_the_contract_would_tell():
    assert "swapping the sides of a query flips the sign" in problems(AsksOnce())
    assert "the order of the context changes nothing" in problems(ShowsTheFirst())
    assert "swapping the sides of the context changes nothing" in problems(LikesTheLeft())


def texts_of(method, context, query):
    """Return the questions that a method asks."""
    return method.questions({}, method.adapt({}, context, None), query).prompts


def pairs(user, left, right, label, people, items, profiles=None):
    columns = [np.array(c, np.int32) for c in (user, people, left, right)]
    return Pairs(*columns, np.array(label, np.float32), items, profiles=profiles)


ITEMS = Items(
    text=pa.table(
        [["Why?", "Why?", "How?", "How?", "Who?", "What?"], ["zero", "one", "two", "three", "four", "five is long"]],
        schema=TEXT_SCHEMA,
    )
)


def test_what_is_asked_word_for_word():
    profiles = pa.array(["nobody", "I like it short."], pa.large_string())
    context = pairs([0, 0, 0, 0], [3, 0, 1, 2], [2, 1, 0, 3], [0.9, 0.2, 0.2, 0.5], [1], ITEMS, profiles)
    query = pairs([0], [4], [5], [np.nan], [1], ITEMS, profiles)
    left_first, right_first = texts_of(InContext(view="profile+context", max_characters=9), context, query)
    assert (
        left_first
        == """This person writes:
I like i…

Earlier choices:

Prompt: Why?
Equally good: zero
Equally good: one

Prompt: How?
Preferred: three
Rejected: two

New choice:

Prompt: Who?
A: four
Prompt: What?
B: five is …

A or B?"""
    )
    assert (
        right_first
        == left_first.split("Prompt: Who?")[0] + "Prompt: What?\nA: five is …\nPrompt: Who?\nB: four\n\nA or B?"
    )
    (shown, _) = texts_of(InContext(max_examples=1), context, query)
    assert "zero" in shown and "three" not in shown
    (alone, _) = texts_of(InContext(), context.first(0), query)
    assert alone.startswith("New choice:")


def test_a_profile_is_that_of_the_person_asked_about():
    data = with_readable_items(
        LowRank(n_users=4, new_users=4, pairs_per_user=4, feature_dim=3, rank=2, shots=(2,), queries=2).build(0)
    )
    every = data.pairs

    def written(of):
        """Return whose profile each question with left first shows."""
        asked = texts_of(InContext(view="profile"), of.first(0), of)
        return [int(re.search(r"I am (\d+)", prompt)[1]) for prompt in asked[: len(of)]]

    for some in (every, every.of([7, 2, 5]), every.chunk(3, 6), every.of([7, 2, 5]).chunk(1, 3), every.swapped()):
        assert written(some) == some.people[some.user].tolist()
    silent = replace(every, profiles=pa.array([None, " "] * 6, pa.large_string()))
    assert not any("writes" in prompt for prompt in texts_of(InContext(view="profile"), silent, silent))


def test_refuses_what_it_cannot_read():
    wordless = TaskFacts(6, has_text=False, has_seconds=False, has_truth=False)
    silent = replace(wordless, has_text=True)
    assert "text" in InContext().refuses(wordless)
    assert InContext().refuses(silent) is None
    for view in ("profile", "profile+context"):
        assert "wrote" in InContext(view=view).refuses(silent)
        assert InContext(view=view).refuses(replace(silent, has_profiles=True)) is None


@pytest.mark.parametrize(
    "fields", [{"max_examples": 0}, {"max_characters": 0}, {"view": "both"}, {"model": "gpt"}, {"model": "vllm:a/b"}]
)
def test_settings_that_mean_nothing(fields):
    with pytest.raises(UserError):
        InContext(**fields)


SUITE = """
title = "questions"
seeds = 1
controls = false

[[tasks]]
name = "attributes"
encoder = "numbers"
n_users = 20
new_users = 2
pairs_per_user = 6
pairs = 8
pool = 6
queries = 2
shots = [0, 2]
n_candidates = 3
choice_prompts = 1

[[methods]]
name = "chance"

[[methods]]
name = "in_context"
model = "transformers:{}"
max_examples = [1, 2]
max_characters = 30
"""


@pytest.fixture
def suite(tmp_path):
    """Return a plan with an untrained model that has a context of a thousand tokens."""
    small.build_small_model(tmp_path / "small", steps=0)
    folder = shutil.copytree(tmp_path / "small", tmp_path / "longer")
    for file, option in (("config.json", "max_position_embeddings"), ("tokenizer_config.json", "model_max_length")):
        content = json.loads((folder / file).read_text())
        assert option in content
        (folder / file).write_text(json.dumps(content | {option: 1000}))
    file = tmp_path / "suite.toml"
    file.write_text(SUITE.format(folder))
    store = Store(tmp_path / "store").open()
    return make_plan(read_suite(file), store), store


def test_all_questions_of_a_suite_go_to_one_engine_beforehand(suite, monkeypatch):
    """Every trial then runs without a model and asks only questions that were answered beforehand."""
    plan, store = suite
    with pytest.raises(NotCachedError, match="answers"):
        finish_trial(next(t for t in plan.trials if t.method.name == "in_context"), store)
    starts, start = [], engine.open_engine
    monkeypatch.setattr(engine, "open_engine", lambda *args, **options: starts.append(args) or start(*args, **options))
    (job,) = questions.jobs_of_questions(plan.trials, store)
    assert len(plan.trials) == 3
    made = make_in_process(job.cached_rows(store), job.recipe, job.batches())
    assert made["errors"] == 0 and len(starts) == 1
    assert questions.jobs_of_questions(plan.trials, store) == []

    monkeypatch.setattr(engine, "open_engine", None)
    asked, answered_from = set(), questions.answers_from_store

    def noting(store):
        answer = answered_from(store)

        def noted(one):
            asked.update(id_array(question_table(one.systems, one.prompts)["id"]).tolist())
            return answer(one)

        return noted

    monkeypatch.setattr(finishing, "answers_from_store", noting)
    done = list(finish_trials(plan.trials, store))
    assert all(ok for _, ok in done), [store.read_failure(t.key) for t, ok in done if not ok]
    assert asked == set(job.cached_rows(store).build_index().ids.tolist()) and len(asked) == made["rows"]


@pytest.mark.parametrize(
    ("judge", "agree", "first"),
    [
        (lambda prompts: [2.0 for _ in prompts], 0.0, 1.0),  # the first one, always
        (lambda prompts: [counting(prompt) or 1.0 for prompt in prompts], 1.0, 0.5),
    ],
)
def test_how_a_judge_depends_on_order_is_a_fact_of_its_trial(judge, agree, first):
    task = Loud()
    data = task.build(0)
    trial = Trial(task, InContext(), 0, "data", "key")
    asked_for = []

    def answer(asked):
        asked_for.append(asked)
        return np.array(judge(asked.prompts))

    found = run_trial(trial, task.split(data, 0), None, answer=answer).facts
    # the panels validation and test at each number of shots, and test swapped: none twice, and nothing of the panel `seen`
    assert len(asked_for) == 2 * len(task.shots) + 1
    assert found["answers"] == {"orders_agree": agree, "first_named": pytest.approx(first)}
    row = SimpleNamespace(keys=["k"], label="in_context")
    flags = flag_judges({trial.method: row}, {"k": {"facts": found}})
    assert len(flags) == 1 and ("hardly judges" in flags[0]) == (agree < 0.6)


def test_questions_without_an_answer_are_left_out_of_what_a_judge_is_said_to_do():
    method = InContext()
    assert method.answer_facts(np.array([1.0, np.nan, -1.0, 1.0]), None) == {"orders_agree": 1.0, "first_named": 0.5}
    assert method.answer_facts(np.full(4, np.nan), None) == {}


def test_a_persona_is_written_from_choices_and_shown(monkeypatch):
    """A writer that reads the choices rightly; the judge then sees its words, and the choices only if it shall."""
    asked = []

    def write(systems, prompts, writer, n, store):
        asked.extend(prompts)
        assert writer == "transformers:small?temperature=0&max_tokens=200" and n == 1
        return [["loud" if counting(f"{p}New choice:\n\nA: !!\nB: !") > 0 else "quiet"] for p in prompts]

    monkeypatch.setattr(in_context, "stored_candidates", write)
    found = accuracy(trial(InContext(view="persona"), judged()))
    assert found == {0: 0.5, 1: 1, 4: 1}
    assert asked and all("Preferred: !" in prompt and "New choice" not in prompt for prompt in asked)
    assert accuracy(trial(InContext(view="persona+context"), judged())) == {0: 0.5, 1: 1, 4: 1}
    data = Loud().build(0)
    for view, shown in (("persona", False), ("persona+context", True)):
        method = InContext(view=view)
        users = method.adapt({}, data.pairs.first(2), Run(0))
        texts = method.questions({}, users, data.pairs).prompts
        assert all("This person is described so:\n" in text for text in texts)
        assert all(("Preferred:" in text) == shown for text in texts)


def test_personas_of_other_alphabets_come_back_whole(monkeypatch):
    written = ["Mag es kürzer — «ça va».", "", "好き", "🙂"]
    monkeypatch.setattr(InContext, "write_personas", lambda self, context, run: written)
    context = pairs([0, 1, 2, 3], [0] * 4, [1] * 4, [1.0] * 4, range(4), ITEMS)
    method = InContext(view="persona")
    texts = method.questions({}, method.adapt({}, context, None), context).prompts
    for text, persona in zip(texts[:4], written, strict=True):
        assert (PERSONA_TEMPLATE.format(persona) in text) == bool(persona)


def test_a_persona_s_writer_is_the_judge_s_model():
    assert (
        likeliest_writer("openai:m?base_url=http://localhost:1/v1&votes=3&parallel=2", 9)
        == "openai:m?base_url=http%3A%2F%2Flocalhost%3A1%2Fv1&parallel=2&temperature=0&max_tokens=9"
    )
    model = parse_generator(likeliest_writer("transformers:small?dtype=bfloat16&max_length=99", 9))
    assert (model["dtype"], model["temperature"], model["max_tokens"]) == ("bfloat16", 0.0, 9)


def test_a_suite_writes_personas_before_it_asks(suite, tmp_path):
    """With a real, untrained model: personas at every number of shots, then questions; a second run makes nothing."""
    file = tmp_path / "personas.toml"
    file.write_text((tmp_path / "suite.toml").read_text().replace("max_examples = [1, 2]", 'view = "persona"'))
    result = run_suite(file, tmp_path / "store")
    assert result.scores().filter(pl.col("method").str.contains("in_context"))["accuracy"].is_not_null().all()
    made = sorted(path.name for path in (tmp_path / "store" / "rows").rglob("*") if path.is_file())
    assert run_suite(file, tmp_path / "store").trials()["key"].to_list() == result.trials()["key"].to_list()
    assert sorted(path.name for path in (tmp_path / "store" / "rows").rglob("*") if path.is_file()) == made


@dataclass(frozen=True)
class Curt(InContext):
    """A judge with a prompt of its own."""

    system_prompt = "Which?"
    question_template = "{}\n\nfirst or second?"
    answer_words = ("first", "second")

    def person_text(self, profile, persona, choices):
        return f"Seen: {choices.count('Preferred')}\n"


def test_a_judge_has_a_prompt_of_its_own_by_a_subclass():
    context = pairs([0], [0], [1], [1.0], [0], ITEMS)
    asked = Curt().questions({}, Curt().adapt({}, context, None), context)
    assert asked.words == ("first", "second") and set(asked.systems) == {"Which?"}
    assert asked.prompts[0] == "Seen: 1\nPrompt: Why?\nA: zero\nB: one\n\nfirst or second?"
