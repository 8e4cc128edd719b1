"""Texts by policies: hand-worked worth, a toy policy from suite to page, stored models, and scores computed once."""

import dataclasses
import json
import sys

import numpy as np
import polars as pl
import pytest
import torch

from harness import registry
from harness.board import best_of, text_worth
from harness.board.make import make_board
from harness.board.text_worth import PolicyTexts
from harness.claims.measures import measure_check
from harness.claims.results import NoNumberError, Results
from harness.claims.schema import Check, Selection, dataclass_from_table
from harness.cli import main
from harness.data import Items, Pairs, Panel, Splits, Truth
from harness.errors import UserError
from harness.method import GENERATED_SCHEMA, Run
from harness.registry import make_instance
from harness.report.mlflow_records import row_metrics
from harness.report.page.charts import task_charts
from harness.report.page.html import write_html
from harness.report.page.looks import looks_of_methods
from harness.report.terminal import print_board
from harness.scores.stats import fixed_derangement
from harness.sources.text_world import LEXICON, TRAIT_LEVELS, TRAITS, WORDS_PER_LEVEL, split_words
from harness.store.prepared import PreparedTask, open_prepared_task
from harness.store.store import Store
from harness.trials import run as trial_run
from harness.trials import write_texts
from harness.trials.export import load_trained_method, save_trained_model
from harness.trials.finish import finish_trial, finish_trials
from harness.trials.plan import make_plan
from harness.trials.run import MAX_LEARNED_BYTES, run_trial
from harness.trials.suite import read_suite
from harness.trials.trial import Trial
from harness.trials.write_texts import REFERENCE_SHOTS

POLICY = '''
"""Writes what a user likes, once it may: a fixed text, and one phrase of a trait that he wants."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyarrow as pa
import torch

from harness.method import GENERATED_SCHEMA, Method
from harness.sources.text_world import LEXICON, TRAITS

TEXT = "People learn the small steps in the morning."


@dataclass(frozen=True)
class Pleaser(Method):
    """Knows the truth, from one answer on. An odd prompt is answered no better than the reference does."""

    generates: ClassVar[bool] = True
    privileged: ClassVar[bool] = True
    wrong: str = ""

    def fit(self, train, validation, run):
        return {"users": torch.from_numpy(run.truth.users)}

    def adapt(self, state, context, run):
        return (state["users"][context.people.astype(int)] * (len(context) > 0),)

    def reward(self, state, users, items, user, item):
        return torch.zeros(len(item))

    def generate(self, state, users, user, prompts, run):
        said = []
        for i, (u, prompt) in enumerate(zip(user, prompts)):
            likes = users is not None and np.flatnonzero(users[0][u, 1:])
            pleased = users is not None and len(likes) and i % 2 == 0
            trait = list(TRAITS)[1 + likes[0]] if pleased else None
            said.append(f"{TEXT} {LEXICON[trait][int(users[0][u, 1 + likes[0]] < 0)][0]}" if trait else TEXT)
        n = [len(t.split()) for t in said]
        kl = [float(count - 8) for count in n]
        table = pa.table([said, n, [count > 8 for count in n], kl, [-1.0 - k for k in kl]], names=GENERATED_SCHEMA.names)
        if self.wrong == "rows":
            return table.slice(1)
        if self.wrong == "kl":
            return table.set_column(3, "kl", pa.array([float("nan")] * len(said)))
        return table
'''

TRAINED = '''
"""Trains together, alone: its state is larger than what is kept of others, tied and in half precision."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch

from harness.method import Method


@dataclass(frozen=True)
class Tuned(Method):
    """A random model."""

    trains_model: ClassVar[bool] = True
    exports: ClassVar[bool] = True
    model: str = field(default="here", metadata={"identity": lambda model: "content"})

    def fit(self, train, validation, run):
        weights = torch.randn(1100, 2000, generator=run.generator()).bfloat16()
        return {"lm.embed": weights, "lm.head": weights, "lm.turned": torch.arange(6.0).reshape(2, 3).T}

    def adapt(self, state, context, run):
        return (torch.zeros(context.n_users, 0),)

    def reward(self, state, users, items, user, item):
        return torch.zeros(len(item))

    def export(self, state, folder):
        (folder / "model").write_bytes(state["lm.turned"].numpy().tobytes())
        return f"{self.model}: load it from {folder}"
'''

SUITE = """
title = "written"
seeds = 3

[[tasks]]
name = "attributes"
encoder = "numbers"
n_users = 20
new_users = 6
pairs = 40
pairs_per_user = 40
pool = 40
queries = 10
n_candidates = 4
choice_prompts = 8
shots = [0, 2, 5]

[[methods]]
name = "pleaser"
"""


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    """Return a folder with the plug-ins, and the suite finished in its store."""
    folder = tmp_path_factory.mktemp("written")
    for name, text in (("pleaser", POLICY), ("steered", TRAINED)):
        (folder / f"{name}.py").write_text(text)
    registry.add_plugins([folder / "pleaser.py"])
    (folder / "written.toml").write_text(SUITE)
    store = Store(folder / "store").open()
    plan = make_plan(read_suite(folder / "written.toml"), store)
    assert all(done for _, done in finish_trials(plan.trials, store))
    return folder, plan, store


@pytest.fixture
def finished(once):
    folder, plan, store = once
    registry.add_plugins([folder / "pleaser.py", folder / "steered.py"])
    return plan, store


def of(plan, name):
    return [trial for trial in plan.trials if trial.method.name == name]


def by_hand(person: np.ndarray, whose: np.ndarray) -> float:
    """Return what the phrase written for `whose` is worth to `person`: one wanted trait, and so many more words."""
    trait = np.flatnonzero(whose[1:])[0]
    phrase = LEXICON[TRAITS[1 + trait]][int(whose[1 + trait] < 0)][0]
    longer = len(split_words(phrase)) / WORDS_PER_LEVEL
    return (person[1 + trait] * whose[1 + trait] + person[0] * longer) / TRAIT_LEVELS.std()


class Letters:
    """A task whose people like a's and b's."""

    has_text_attributes = True

    def text_attributes(self, texts):
        return np.array([[text.count("a"), text.count("b")] for text in texts], dtype=np.float32)


def small_world(population=None) -> tuple[PolicyTexts, PreparedTask]:
    """Return a world of two people, of two prompts with three candidates each, and of texts to both people."""
    people, zero = np.arange(2, dtype=np.int32), np.zeros(2, dtype=np.int32)
    items = Items(np.zeros((7, 1), dtype=np.float32))
    query = Pairs(zero + people, people, zero, zero + 1, np.full(2, np.nan, dtype=np.float32), items)
    candidates = np.array([[1, 2, 3], [4, 5, 6]], dtype=np.int32)
    worth = np.float32([[9, 9], [0, 0], [1, 0], [2, 3], [0, 0], [0, 1], [4, 1]])  # a's and b's of each item
    truth = Truth(np.float32([[1, 0], [0, 2]]), worth, population=population)
    columns = {"n_tokens": 3, "stopped": True, "kl": 0.0, "reference": -1.0}

    def block(texts: list[str], **told) -> pl.DataFrame:
        person, prompt = np.repeat(people, 2), np.tile(np.arange(2, dtype=np.int32), 2)
        told = {name: told.get(name, [value] * 4) for name, value in columns.items()}
        return pl.DataFrame({"person": person, "prompt": prompt, "response": texts} | told)

    mine = block(["aa", "a", "bb", "a"], n_tokens=[4, 6, 3, 4], stopped=[True, False, True, True],
                 kl=[1.0, 2.0, 0.5, 0.0], reference=[-2.0, -1.0, -1.5, -0.5])  # fmt: skip
    texts = PolicyTexts(people, 2, {REFERENCE_SHOTS: block(["a", "a", "b", "aab"]), 5: mine})
    return texts, PreparedTask(Splits(query, {"test": Panel(query, query, candidates)}), truth)


def test_two_people_and_two_prompts_by_hand():
    """Worth is as worked by hand: texts of 2 and 1 against a reference of 1 and 1, and of 4 and 0 against 2 and 2."""
    texts, prepared = small_world()
    found = {name: values.tolist() for name, values in text_worth.worth_of_texts(texts, Letters(), prepared)[5].items()}
    assert found["gain"] == [0.5, 0.0]
    assert found["win"] == [0.75, 0.5]  # won and tied; won and lost
    assert found["swapped"] == [(0 + 1) / 2 - 1, (0 + 0) / 2 - 2]  # bb and a to the first, aa and a to the second
    # The mean user likes an a half as much as a b: aa a | bb a are worth 1 .5 | 2 .5, the reference's .5 .5 | 1 2.
    assert found["mean_user"] == pytest.approx([0.25, -0.25])
    # Candidates are worth 0 1 2 and 0 0 4 to the first, and 0 0 6 and 0 2 2 to the second.
    assert found["above"] == pytest.approx([(2 - 1 + 1 - 4 / 3) / 2, (4 - 2 + 0 - 4 / 3) / 2])
    assert found["room"] == pytest.approx([(1 + 8 / 3) / 2, (4 + 2 / 3) / 2])
    assert found["win_random"] == pytest.approx([(2.5 + 2) / 6, (2 + 0.5) / 6])
    means = {name: values.tolist() for name, values in texts.policy_means(5).items()}
    assert means == {
        "kl": [1.5, 0.25],
        "tokens": [5, 3.5],
        "tokens_more": [2, 0.5],
        "stopped": [0.5, 1],
        "stopped_more": [-0.5, 0],
        "fluency": [-1.5, -1],
        "fluency_more": [-0.5, 0],
    }


def test_the_mean_user_is_the_populations_where_that_is_known():
    texts, prepared = small_world(population=np.float32([[4, 0], [0, 0]]))
    found = text_worth.worth_of_texts(texts, Letters(), prepared)[5]["mean_user"]
    assert found.tolist() == [2 * (1.5 - 1), 2 * (0.5 - 1)]  # two times the a's


def test_what_nobody_can_read_has_no_worth():
    texts, prepared = small_world()
    assert text_worth.worth_of_texts(texts, make_instance("task", "snacks", {}), prepared) == {}
    assert text_worth.worth_of_texts(texts, Letters(), dataclasses.replace(prepared, truth=None)) == {}


def test_a_policy_that_knows_what_people_like(finished):
    """Every person's numbers are as worked by hand: the policy pleases at every other prompt, and no one at 0 shots."""
    plan, store = finished
    for trial in of(plan, "pleaser"):
        found = text_worth.text_outcomes(store, trial)
        prepared = open_prepared_task(store, trial.task_key)
        people = prepared.splits.panels["test"].query.people
        users = prepared.truth.users[people]
        none, all_ = (found.filter(shots=shots) for shots in (0, 5))
        assert found["shots"].unique().sort().to_list() == [0, 5]  # the smallest and the largest
        assert none["person"].to_list() == all_["person"].to_list() == people.tolist()
        for name, value in {"gain": 0, "win": 0.5, "swapped": 0, "kl": 0, "tokens_more": 0}.items():
            assert none[name].to_list() == [value] * len(people)
        assert all_["gain"].to_list() == pytest.approx([by_hand(u, u) / 2 for u in users], abs=1e-6)
        assert all_["win"].to_list() == [0.75] * len(people)
        other = users[fixed_derangement(len(users))]
        crossed = [by_hand(u, v) / 2 for u, v in zip(users, other, strict=True)]
        assert all_["swapped"].to_list() == pytest.approx(crossed, abs=1e-6)
        assert "mean_user" not in all_.columns  # opposite users are equally common
        assert all_["kl"].to_list() == all_["tokens_more"].to_list() == (-all_["fluency_more"]).to_list()
        assert all_["stopped"].to_list() == [0.5] * len(people)
        panel = prepared.splits.panels["test"]
        utility = np.einsum("uk,pnk->upn", users, prepared.truth.items[panel.choices])
        base = run_utility(trial.task, "People learn the small steps in the morning.", users)
        above = base + all_["gain"].to_numpy() - utility.mean((1, 2))
        assert all_["above"].to_numpy() == pytest.approx(above, abs=1e-5)


def run_utility(task, text, users):
    return users @ task.text_attributes([text])[0]


def test_best_of_n_stands_beside_it_over_the_same_people_and_prompts(finished, monkeypatch):
    plan, store = finished
    trial = of(plan, "pleaser")[0]
    everything = best_of.best_of_n_outcomes(store, trial).filter(pl.col("shots") != 2).sort("shots", "n", "person")
    beside = text_worth.best_of_n_with_texts(store, trial).select(everything.columns).sort("shots", "n", "person")
    assert beside.equals(everything)  # texts were written to all people and prompts
    monkeypatch.setattr(write_texts, "MAX_PEOPLE", 4)
    monkeypatch.setattr(write_texts, "MAX_PROMPTS", 3)
    few = Store(store.root.with_name("few")).open()
    (few.root / "tasks").rmdir()
    (few.root / "tasks").symlink_to(store.root / "tasks")
    for file in (store.root / "objects").iterdir():
        (few.root / "objects" / file.name).symlink_to(file)
    assert finish_trial(trial, few)
    texts = text_worth.read_policy_texts(few, trial)
    assert len(texts.people) == 4 and texts.prompts == 3 and set(texts.rows) == {REFERENCE_SHOTS, 0, 5}
    prepared, places = open_prepared_task(store, trial.task_key), best_of.choices_by_shots(few, trial)
    known = best_of.candidate_worth(prepared)
    beside = text_worth.best_of_n_with_texts(few, trial).filter(shots=5, n=4)
    picked = np.take_along_axis(known.utility, places[5], 2)[:4, :3, -1]
    assert beside["gain"].to_numpy() == pytest.approx(picked.mean(1) - known.utility[:4, :3].mean((1, 2)), abs=1e-6)


def test_a_finished_trial_writes_nothing_again(finished, monkeypatch):
    plan, store = finished
    first = {t.key: store.read_manifest("trials", t.key)["files"] for t in of(plan, "pleaser")}
    again = Store(store.root.with_name("again")).open()
    assert all(finish_trial(t, again) for t in make_plan(plan.suite, again).trials if t.method.name == "pleaser")
    assert {key: again.read_manifest("trials", key)["files"] for key in first} == first  # the same bytes
    monkeypatch.setattr(trial_run, "write_texts", lambda *_: pytest.fail("written again"))
    assert all(done for _, done in finish_trials(plan.trials, store))


def test_example_texts_say_whose_they_are(finished):
    plan, store = finished
    trial = of(plan, "pleaser")[0]
    told = text_worth.example_texts(store, store.read_manifest("trials", trial.key))
    texts = text_worth.read_policy_texts(store, trial)
    first = [texts.rows[shots].filter(prompt=0)["response"].to_list() for shots in (REFERENCE_SHOTS, 5)]
    people = texts.people[:2].tolist()
    assert told == [
        ("by the reference model", first[0][0]),
        *((f"for person {person}", text) for person, text in zip(people, first[1][:2], strict=True)),
    ]


@pytest.mark.parametrize(("wrong", "says"), [("rows", "96 prompts"), ("kl", "kl is missing or not finite")])
def test_a_policy_that_writes_nonsense_fails(finished, wrong, says):
    plan, store = finished
    trial = dataclasses.replace(of(plan, "pleaser")[0], method=make_instance("method", "pleaser", {"wrong": wrong}))
    assert not finish_trial(trial, store)
    assert "pleaser.generate" in (reason := store.read_failure(trial.key)["reason"])
    assert says.replace("96", str(6 * 8)) in reason


def captions_of(board):
    looks = looks_of_methods({method: method.name for method in board.suite.methods})
    return [chart.caption for chart in task_charts(board.tasks[0], looks)]


def test_every_view_tells_it(finished, capsys):
    plan, store = finished
    board = make_board(plan, store)
    mine, shared = (next(r for r in board.tasks[0].rows if r.method.name == n) for n in ("pleaser", "shared"))
    assert shared.written == {} and set(mine.written) == {0, 5}
    cells = pl.concat([text_worth.text_outcomes(store, t).filter(shots=5) for t in of(plan, "pleaser")])
    scores = mine.written[5].scores
    assert scores["gain"].value == pytest.approx(cells["gain"].mean())
    assert 0 < scores["gain"].low < scores["gain"].value < scores["gain"].high
    assert scores["normalised"].value == pytest.approx(cells["above"].sum() / cells["room"].sum())
    assert list(mine.written[5].best_of) == [1, 2, 4]
    assert mine.written[5].best_of[4].value == pytest.approx(mine.best_of[5].gain[4].value)
    assert mine.costs["written_tokens_per_second"] > 0 and "written_tokens_per_second" not in shared.costs
    print_board(board)
    said = capsys.readouterr().out
    assert "texts written by policies" in said and "of the best of n by the same reward" in said
    page = write_html(board, store).read_text()
    assert "<h3>Texts by policies</h3>" in page and "<th>win rate</th>" in page
    assert any("against KL divergence" in caption for caption in captions_of(board))
    told = json.loads(json.dumps(board.as_dict()))["tasks"][0]["rows"]
    told = next(r for r in told if r["label"] == "pleaser")["written"]["5"]
    assert told["scores"]["gain"]["value"] == scores["gain"].value
    logged = {(name, step): value for name, value, step in row_metrics(mine)}
    assert logged["written_gain", 5] == scores["gain"].value and logged["written_kl", 0] == 0
    assert len({name for name, _ in logged}) <= 35


def test_a_task_that_reads_no_text_still_tells_what_it_cost(finished, monkeypatch, capsys):
    plan, store = finished
    monkeypatch.setattr(type(plan.suite.tasks[0]), "has_text_attributes", False)
    text_worth.text_outcomes.cache_clear()
    board = make_board(plan, store)
    text_worth.text_outcomes.cache_clear()
    mine = next(r for r in board.tasks[0].rows if r.method.name == "pleaser")
    own = {"kl", "tokens", "stopped", "fluency", "tokens_more", "stopped_more", "fluency_more"}
    assert set(mine.written[5].scores) == own and mine.written[5].best_of == {}
    print_board(board)
    said = capsys.readouterr().out
    assert "costs, and in brackets" in said and "win rate" not in said
    assert "<h3>Texts by policies</h3>" in write_html(board, store).read_text()
    assert not any("against KL divergence" in caption for caption in captions_of(board))


def test_a_claim_measures_what_the_board_shows(finished):
    plan, store = finished
    results, board = Results(plan, store), make_board(plan, store)
    mine = next(r for r in board.tasks[0].rows if r.method.name == "pleaser").written
    for name in ("gain", "win", "kl", "swapped"):
        of_texts = dataclass_from_table(Selection, {"method": "pleaser", "metric": f"written_{name}"}, "claim")
        value, low, high, *_ = measure_check(Check("", of_texts), results)
        point = mine[5].scores[name]
        assert (value, low) == pytest.approx((point.value, point.low), abs=1e-12)
        assert (min(high, 1.0) if name == "win" else high) == pytest.approx(point.high)
    before = Selection(None, "pleaser", metric="written_gain", shots=0)
    gained = Selection(None, "pleaser", metric="written_gain")
    assert measure_check(Check("", gained, minus=before), results)[0] == pytest.approx(mine[5].scores["gain"].value)
    with pytest.raises(NoNumberError, match=r"no texts were written at 2 shots .* only at \[0, 5\]"):
        measure_check(Check("", dataclasses.replace(gained, shots=2)), results)
    with pytest.raises(NoNumberError, match="shared wrote no texts"):
        measure_check(Check("", Selection(None, "shared", metric="written_kl")), results)


class Counted:
    """Run a method that counts its scorings, and with `fresh` never adapts to equal users."""

    def __init__(self, method, fresh=False):
        self.times, self.calls = 0, 0

        def adapt(own, state, context, run):
            self.times += fresh
            users = type(method).adapt(own, state, context, run)
            return (*users, torch.arange(context.n_users) + 1000 * self.times) if fresh else users

        def score(own, state, users, query):
            self.calls += 1
            return type(method).score(own, state, users[: len(users) - fresh], query)

        def reward(own, state, users, items, user, item):
            self.calls += 0 if sys._getframe(1).f_code.co_name == "score" else 1
            return type(method).reward(own, state, users[: len(users) - fresh], items, user, item)

        kind = type("Counted", (type(method),), {"adapt": adapt, "score": score, "reward": reward, "name": method.name})
        self.method = kind(**{f.name: getattr(method, f.name) for f in dataclasses.fields(method)})


@pytest.mark.parametrize(("name", "reused"), [("shared", True), ("per_user", False)])
def test_what_follows_of_equal_users_is_computed_once(finished, name, reused):
    """Reused scores of equal users have the same bits as from separate calls, for all panels, shots and the swap."""
    plan, store = finished
    trial = of(plan, name)[0]
    prepared = open_prepared_task(store, trial.task_key)
    found = {}
    for fresh in (False, True):
        counted = Counted(trial.method, fresh)
        changed = Trial(trial.task, counted.method, trial.seed, trial.data, trial.task_key)
        found[fresh] = run_trial(changed, prepared.splits, prepared.truth).predictions, counted.calls
    (mine, calls), (every, all_calls) = found[False], found[True]
    assert all_calls == 3 * (3 + 1) + 3 and calls == (3 + 1 if reused else all_calls)
    assert mine.keys() == every.keys() and all(np.array_equal(mine[name], every[name]) for name in every)


def test_texts_follow_of_equal_users_too(finished, monkeypatch):
    """A policy that ignores the user writes texts once for both numbers of shots."""
    plan, store = finished
    trial, asked = of(plan, "pleaser")[0], []
    prepared, kind = open_prepared_task(store, trial.task_key), type(trial.method)
    generate = kind.generate
    monkeypatch.setattr(kind, "adapt", lambda self, state, context, run: (torch.zeros(context.n_users, 7),))
    monkeypatch.setattr(kind, "generate", lambda self, *a: (asked.append(a[1]), generate(self, *a))[1])
    texts = run_trial(trial, prepared.splits, prepared.truth).written
    assert len(asked) == 2 and asked[0] is None
    assert texts["shots"].unique().to_pylist() == [REFERENCE_SHOTS, 0, 5] and len(texts) == 3 * 6 * 8
    assert texts.schema.names == ["shots", "person", "prompt", *GENERATED_SCHEMA.names]


def test_a_trained_model_is_kept_and_given_away(finished, monkeypatch, capsys):
    plan, store = finished
    trial = dataclasses.replace(of(plan, "shared")[0], method=make_instance("method", "steered", {"model": "there"}))
    assert finish_trial(trial, store)
    manifest = store.read_manifest("trials", trial.key)
    assert manifest["files"]["learned.safetensors"]["bytes"] > MAX_LEARNED_BYTES
    method, state = load_trained_method(store, manifest)
    assert method == trial.method and method.model == "there"  # as typed; the identity has the model's content instead
    prepared = open_prepared_task(store, trial.task_key)
    trained = trial.method.fit(prepared.splits.train, None, Run(trial.seed))
    assert state.keys() == trained.keys()
    assert all(state[name].dtype == t.dtype and torch.equal(state[name], t) for name, t in trained.items())
    assert load_trained_method(store, store.read_manifest("trials", of(plan, "shared")[0].key)) is None

    def show(*words) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["manyminds", "show", *map(str, words), "--store", str(store.root)])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return ended.value.code or 0, said.out, " ".join(said.err.split())

    folder = store.root.with_name("model")
    assert f"manyminds show {trial.key} --save DIR" in show(trial.key)[1]
    assert "--save" not in show(of(plan, "shared")[0].key)[1]
    code, out, _ = show(trial.key, "--save", folder, "--plugin", store.root.with_name("steered.py"))
    assert (code, out.strip()) == (0, f"there: load it from {folder}")
    assert (folder / "model").read_bytes() == trained["lm.turned"].contiguous().numpy().tobytes()
    code, _, err = show(trial.key, "--save", folder)
    assert code == 2 and "is not empty" in err and "hint: name a new folder" in err
    code, _, err = show(trial.key, "--save", folder / "model")
    assert code == 2 and "cannot be written" in err
    code, _, err = show(of(plan, "shared")[0].key, "--save", store.root.with_name("none"))
    assert code == 2 and "has no language model to save" in err and not store.root.with_name("none").exists()


def test_a_model_that_no_program_reads_is_said_to_be_so(finished, monkeypatch):
    plan, store = finished
    trial = dataclasses.replace(of(plan, "shared")[0], method=make_instance("method", "steered", {}))
    assert finish_trial(trial, store)
    monkeypatch.setattr(type(trial.method), "exports", False)
    with pytest.raises(UserError, match="steered trains no model that could be saved"):
        save_trained_model(store, store.read_manifest("trials", trial.key), store.root.with_name("other"))
    assert not store.root.with_name("other").exists()
