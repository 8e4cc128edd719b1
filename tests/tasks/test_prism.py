"""PRISM on small files with its schema."""

import json

import numpy as np
import pytest
from huggingface_hub import constants
from typer.testing import CliRunner

from harness.check.tasks import task_checks
from harness.cli.verbs import app
from harness.errors import UnavailableError, UserError
from harness.store.prepared import open_prepared_task
from harness.store.store import Store
from harness.trials.prepare import prepare_task
from harness.trials.trial import task_identity
from tasks import prism
from tasks.prism import Prism, split_by_prompt

WORDS = ["amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "heath", "islet", "jetty", "knoll", "larch"]


def people(n=30, conversations=6, seed=0):
    """Return survey.jsonl and utterances.jsonl as in the codebook: four answers in turn 0, two in each later turn."""
    rng, survey, utterances = np.random.default_rng(seed), [], []
    for u in range(n):
        survey.append(
            {
                "user_id": f"user{u}",
                "survey_only": False,
                "self_description": f"I am number {u}.",
                "system_string": f"Be like {WORDS[u % 12]}.",
                "lm_usecases": {"research": 1, "other_text": None},
                "age": "25-34 years old",
            }
        )
        for c in range(conversations):
            for turn in range(int(rng.integers(1, 4))):
                n_answers = 4 if turn == 0 else 2
                kept = rng.integers(n_answers)
                for a in range(n_answers):
                    answer = " ".join(rng.choice(WORDS, rng.integers(3, 9)))
                    utterances.append(
                        {
                            "utterance_id": f"ut{len(utterances)}",
                            "interaction_id": f"int{u}-{c}-{turn}",
                            "conversation_id": f"c{u}-{c}",
                            "user_id": f"user{u}",
                            "turn": turn,
                            "within_turn_id": a,
                            "user_prompt": f"question {c} of {u}" if turn == 0 else "and then?",
                            "model_response": f"{answer} {len(utterances)}",
                            "model_name": "gpt-4",
                            "score": int(rng.integers(1, 101)),
                            "if_chosen": bool(a == kept),
                        }
                    )
    survey.append({**survey[0], "user_id": "user-of-the-survey-only"})
    return survey, utterances


def write(folder, survey, utterances):
    (folder / "survey.jsonl").write_text("\n".join(map(json.dumps, survey)))
    (folder / "utterances.jsonl").write_text("\n".join(map(json.dumps, utterances)))
    return str(folder)


def small(folder, **fields):
    return Prism(file=folder, **(dict(encoder="tfidf-svd-4") | fields))


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path, *people())


def judged(data):
    """Return (user id, prompt, preferred response, other response) of every pair."""
    ids, text, p = data.users["id"].to_pylist(), data.pairs.items.text.to_pylist(), data.pairs
    wins, loses = np.where(p.label == 1, p.left, p.right), np.where(p.label == 1, p.right, p.left)
    assert all(text[won]["prompt"] == text[lost]["prompt"] for won, lost in zip(wins, loses, strict=True))
    return sorted(
        (ids[u], text[won]["prompt"], text[won]["response"], text[lost]["response"])
        for u, won, lost in zip(p.user, wins, loses, strict=True)
    )


def by_hand(utterances):
    """Return the same as `judged`, computed from the rows turn by turn."""
    found = []
    for row in utterances:
        if row["turn"] == 0 and row["if_chosen"]:
            beaten = [r for r in utterances if r["conversation_id"] == row["conversation_id"] and r["turn"] == 0]
            found += [
                (row["user_id"], row["user_prompt"], row["model_response"], r["model_response"])
                for r in beaten
                if not r["if_chosen"]
            ]
    return sorted(found)


def test_the_answer_kept_beats_those_shown_with_it(folder):
    data = small(folder).build(0)
    assert judged(data) == by_hand(people()[1]) and len(data.pairs) == 30 * 6 * 3
    assert data.users["dropped"].to_pylist() == [0] * 30
    assert small(folder).build(7).content_digest() == data.content_digest()


def test_people_wrote_their_own_profile(folder):
    data = small(folder).build(0)
    for name, told in zip(data.users["id"].to_pylist(), data.pairs.profiles.to_pylist(), strict=True):
        n = int(name.removeprefix("user"))
        assert told == f"About me: I am number {n}.\nHow an AI should behave: Be like {WORDS[n % 12]}."
    test = small(folder).split(data, 0).panels["test"].query
    names = [data.users["id"].to_pylist()[p] for p in test.people]
    assert [test.profiles[p].as_py().split(".")[0].split()[-1] for p in test.people] == [n[4:] for n in names]


def test_it_keeps_the_contract(folder):
    """All checks of `manyminds check prism` pass on local files instead of the hub's."""
    findings = [(what, ask()) for what, ask in task_checks(small(folder))]
    assert len(findings) >= 15 and [f for f in findings if f[1]] == []


def test_a_prepared_task_has_profiles(folder, tmp_path):
    store = Store(tmp_path / "store").open()
    prepared = prepare_task(store, small(folder), 0)
    assert prepared["facts"]["has_profiles"] and prepared["facts"]["has_text"] and prepared["facts"]["people"] == 30
    assert open_prepared_task(store, prepared["key"]).splits.train.profiles[0].as_py().startswith("About me: ")


@pytest.mark.parametrize("seed", range(6))
def test_a_prompt_is_wholly_shown_or_wholly_asked(tmp_path, seed):
    """The same holds for a prompt in two conversations of a user; only pairs beyond `queries` are dropped."""
    survey, utterances = people()
    for row in utterances:
        if row["turn"] == 0:
            row["user_prompt"] = row["user_prompt"].replace("question 4", "question 1")
    task = small(write(tmp_path, survey, utterances))
    data = task.build(seed)
    splits = task.split(data, seed)
    splits.check_for_leaks()
    prompt = np.array(data.pairs.items.text["prompt"].to_pylist())
    for name, panel in splits.panels.items():
        shown = splits.train if name == "seen" else panel.context
        for u in range(panel.query.n_users):
            parts = [set(prompt[p.left[p.user == u]]) for p in (shown, panel.query)]
            assert not parts[0] & parts[1] and len(parts[0] | parts[1]) == 5  # of six conversations
            counts = [(p.user == u).sum() for p in (shown, panel.query)]
            assert sum(counts) == 18 and (9 <= counts[0] <= 14 if name != "seen" else counts[1] in (3, 6))


def test_prompts_are_shown_by_chance(folder):
    """All prompts of a user are shown equally often, and a user's first pairs come from every prompt."""
    data = small(folder).build(0)
    prompt = np.array([int(p.split()[1]) for p in data.pairs.items.text["prompt"].to_pylist()])
    shown, first = np.zeros(6), np.zeros(6)
    for seed in range(40):
        context, query = split_by_prompt(data.pairs, np.random.default_rng(seed), 7)
        assert (np.diff(context.offsets) == 9).all() and (np.diff(query.offsets) == 9).all()
        shown += np.bincount(prompt[context.left], minlength=6) / 3
        first += np.bincount(prompt[context.first(1).left], minlength=6)
    n = 40 * 30
    assert np.abs(shown / n - 1 / 2).max() < 4.5 * 0.5 / np.sqrt(n)
    assert np.abs(first / n - 1 / 6).max() < 4.5 * np.sqrt(5) / 6 / np.sqrt(n)


def test_unusable_answers_are_dropped_and_counted(tmp_path):
    """An empty answer is in no pair; a turn without exactly one kept answer gives no pairs."""
    survey, utterances = people(8)
    first = {}
    for row in utterances:
        if row["turn"] == 0:
            first.setdefault(row["conversation_id"], []).append(row)

    def rejected(name, nth=0):
        return [row for row in first[name] if not row["if_chosen"]][nth]

    def kept(name):
        return next(row for row in first[name] if row["if_chosen"])

    rejected("c0-0")["model_response"] = "EMPTY STRING"
    rejected("c0-0", 1)["model_response"] = None
    kept("c1-0")["model_response"] = " "  # four answers, none of which wins
    kept("c2-0")["if_chosen"] = False
    rejected("c3-0")["if_chosen"] = True
    rejected("c4-0")["model_response"] = kept("c4-0")["model_response"]  # two models gave the same answer: no pair
    rejected("c5-0")["model_response"] = rejected("c5-0", 1)["model_response"]  # loses once
    data = small(write(tmp_path, survey, utterances)).build(0)
    assert dict(zip(*data.users.to_pydict().values(), strict=True)) == {
        f"user{u}": n for u, n in enumerate([2, 4, 4, 4, 0, 0, 0, 0])
    }
    assert np.diff(data.pairs.offsets).tolist() == [16, 15, 15, 15, 17, 17, 18, 18]
    assert len(judged(data)) == len(set(judged(data)))


def test_who_has_too_few_pairs_or_prompts_is_left_out(tmp_path):
    survey, utterances = people(10)
    few = [r for r in utterances if (r["user_id"], r["conversation_id"][-1]) not in {("user3", c) for c in "345"}]
    for row in few:
        if row["user_id"] == "user4" and row["conversation_id"][-1] in "0123":
            row["user_prompt"] = "the same"  # 12 pairs of one prompt leave 6 for the context
    folder = write(tmp_path, survey, few)
    assert set(small(folder).build(0).users["id"].to_pylist()) == {f"user{u}" for u in range(10)} - {"user3", "user4"}
    more = small(folder, min_pairs=9, shots=(0, 6)).build(0)
    assert len(more.users) == 10
    with pytest.raises(UserError, match=r"none of 10 people \(with 171 pairs\) has 19 pairs"):
        small(folder, min_pairs=19).build(0)


def test_mistakes(folder, tmp_path):
    for fields, says in (
        (dict(min_pairs=9), "leaves no queries"),
        (dict(revision="main"), "not the 40 hex digits"),
        (dict(revision="0" * 40), "file and revision cannot both be set"),
        (dict(encoder="tfdif"), "no text encoder"),
    ):
        with pytest.raises(UserError, match=says):
            small(folder, **fields)
    survey, utterances = people()
    with pytest.raises(UserError, match=r"user 'user3' of conversation 'c3-0' is not in survey.jsonl; 1 such"):
        small(write(tmp_path, survey[:3] + survey[4:], utterances)).build(0)
    with pytest.raises(UserError, match=r"utterances.jsonl, row 0: .*'if_chosen': 'yes'"):
        small(write(tmp_path, survey, [utterances[0] | {"if_chosen": "yes"}])).build(0)
    with pytest.raises(UserError, match=r"survey.jsonl, row 1: "):
        small(write(tmp_path, [survey[0], {"user_id": "user1"}], utterances)).build(0)
    (tmp_path / "survey.jsonl").unlink()
    for ask in (lambda: small(folder).build(0), small(folder).files_digest):
        with pytest.raises(UserError, match=r"survey.jsonl does not exist"):
            ask()


def test_the_folder_is_named_by_its_content(folder, tmp_path):
    (tmp_path / "other").mkdir()
    other = write(tmp_path / "other", *people())
    assert task_identity(small(folder), 0) == task_identity(small(other), 0)
    write(tmp_path / "other", *people(seed=1))
    assert task_identity(small(folder), 0) != task_identity(small(other), 0)
    assert task_identity(Prism(), 0) != task_identity(Prism(revision="0" * 40), 0)


def test_from_the_hub(folder, tmp_path, monkeypatch):
    asked = []

    def served(repo, revision, files):
        asked.append((repo, revision, tuple(files)))
        return [tmp_path / file for file in files]

    monkeypatch.setattr(prism, "hub_files", served)
    data = Prism(encoder="tfidf-svd-4").build(0)
    assert data.content_digest() == small(folder).build(0).content_digest()
    assert asked == [("HannahRoseKirk/prism-alignment", prism.PRISM_REVISION, ("survey.jsonl", "utterances.jsonl"))]


def test_check_says_where_the_data_is_when_it_is_not_at_hand(monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        UnavailableError, match=r"survey.jsonl of the data set HannahRoseKirk/prism-alignment is not in"
    ) as told:
        Prism().build(0)
    line = "hf download HannahRoseKirk/prism-alignment survey.jsonl utterances.jsonl --repo-type dataset --revision "
    assert line + prism.PRISM_REVISION in told.value.hint
    found = CliRunner().invoke(app, ["check", "prism"])
    assert isinstance(found.exception, UnavailableError) and str(found.exception) == str(told.value)
