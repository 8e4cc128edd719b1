"""`manyminds describe` counts what a person would count by hand; `manyminds schema` accepts every shipped suite."""

import functools
import json
import tomllib

import jsonschema
import numpy as np
import polars as pl
import pytest

from harness import registry
from harness.cli.suite_schema import suite_schema, table_schema
from harness.errors import UserError
from harness.learning.form import form_accuracy
from harness.registry import PROJECT_ROOT
from harness.sources.described import describe_answers, describe_columns, describe_pairs, guess_fields
from harness.trials.suite import read_suite
from tests.tasks.test_choices import table

suite_schema = functools.cache(suite_schema)  # takes seconds


def test_pairs_are_counted_as_by_hand():
    rows = [
        ("ann", "q", "a", "b", 1.0),
        ("ann", "q", "b", "a", 1.0),  # answered both ways
        ("bob", "q", "a", "b", 1.0),
        ("bob", "q", "a", "c" * 3000, 0.5),
        ("cid", "q", "b", "a", 1.0),
        ("cid", "q", "b", "a", 1.0),  # repeated
    ]
    found = describe_pairs(pl.DataFrame(rows, schema=["user", "prompt", "chosen", "rejected", "label"], orient="row"))
    assert (found["people"], found["pairs"], found["prompts"], found["responses"]) == (3, 6, 1, 3)
    assert (found["ties"], found["repeated"], found["contradictions"]) == (1, 2, 1)
    assert found["long_responses"] == pytest.approx(1 / 3) and found["shared_pairs"] == pytest.approx(5 / 6)
    # ann is split, bob says a, cid says b: of three pairs of people, one and two halves disagree
    assert found["disagreement"] == pytest.approx(0.75)
    assert found["pairs_of_a_person"]["median"] == 2


def test_disagreement_is_that_of_drawing_two_people():
    rng = np.random.default_rng(0)
    share = rng.random(300)
    rows = [
        (f"u{u}", f"q{q}", *(("a", "b") if rng.random() < share[q] else ("b", "a")), 1.0)
        for q in range(300)
        for u in rng.choice(400, 20, replace=False)
    ]
    found = describe_pairs(pl.DataFrame(rows, schema=["user", "prompt", "chosen", "rejected", "label"], orient="row"))
    assert found["disagreement"] == pytest.approx((2 * share * (1 - share)).mean(), abs=0.02)


@pytest.mark.parametrize("quality", [0.0, 0.5, 2.0])
def test_what_people_share_is_the_variance_of_items(quality):
    rng = np.random.default_rng(0)
    rating = quality * rng.normal(size=200) + rng.normal(size=(80, 200)) + 5 * rng.normal(size=(80, 1))
    user, item = np.divmod(np.arange(rating.size), 200)
    frame = pl.DataFrame({"user": user, "item": item, "rating": rating.ravel()})
    found = describe_answers(frame, "rating", "item")
    assert found["shared"] == pytest.approx(quality**2 / (quality**2 + 1), abs=0.04)
    assert found["repeated"] == 0
    assert describe_answers(pl.concat([frame, frame[:7]]), "rating", "item")["repeated"] == 7


@pytest.mark.parametrize(
    ("columns", "wanted"),
    [
        (["user", "prompt", "chosen", "rejected"], ("choices", {"user", "prompt", "chosen", "rejected"})),
        (
            ["worker_id", "question", "answer_a", "answer_b", "winner"],
            ("choices", {"user", "prompt", "responses", "winner"}),
        ),
        (["annotator", "text", "score"], ("ratings", {"user", "response", "rating"})),
        (["participant", "comment", "vote"], ("votes", {"user", "statement", "vote"})),
        (["viewer", "film", "stars"], ("ratings", {"user", "item", "rating"})),
    ],
)
def test_fields_are_guessed_from_names(columns, wanted):
    task, fields = guess_fields(pl.DataFrame({name: ["x"] for name in columns}))
    assert (task, set(fields)) == wanted
    registry.make_instance("task", task, fields)  # they are fields
    assert guess_fields(pl.DataFrame({"a": [1], "chosen": ["x"]})) is None


def test_describe_prints_a_suite_that_runs(tmp_path, monkeypatch, capsys):
    from tests.test_documents import call

    monkeypatch.chdir(tmp_path)
    table().rename({"user": "annotator_id"}).write_csv("judged.csv")
    out = call("manyminds describe judged.csv", monkeypatch, capsys)
    assert 'user = "annotator_id"' in out and "people: 10" in out and "12 (fewest)" in out
    suite = out[out.index("[[tasks]]") : out.index("people:")]
    (tmp_path / "s.toml").write_text(suite)
    assert read_suite(tmp_path / "s.toml").tasks[0].build(0).pairs.n_users == 10
    told = json.loads(call("manyminds describe s.toml --json", monkeypatch, capsys))
    assert told[0]["numbers"]["pairs"] == 120 and told[0]["columns"][0]["name"] == "annotator_id"


def test_describe_warns_where_form_tells_the_chosen_response_and_where_few_people_can_be_asked(
    tmp_path, monkeypatch, capsys
):
    from tests.test_documents import call

    monkeypatch.chdir(tmp_path)
    honest = table(people=25, each=22)
    honest.write_csv("honest.csv")
    leaking = honest.with_columns(rejected=pl.format("['{}']", "rejected"))  # a list, printed
    leaking.filter(pl.int_range(pl.len()).over("user") < 9).write_csv("leaking.csv")
    (told,) = json.loads(call("manyminds describe honest.csv --json", monkeypatch, capsys))
    assert told["notes"] == [] and told["numbers"]["form"] < 0.7 and told["numbers"]["askable"] == 25
    out = call("manyminds describe leaking.csv", monkeypatch, capsys)
    assert "warning: form alone tells the chosen response in 100.0% of pairs" in out
    assert "warning: 0 people have enough answers to be asked after 20" in out


def test_form_accuracy_is_that_of_people_who_were_not_fitted():
    """Everybody likes a mark that others do not: what is learned of others is wrong."""
    marks = ["!", "?", "*", "#", "`"]
    rows = [
        (f"{m * 3} yes", f"{other * 3} yes", m)
        for m, other in zip(marks, marks[1:] + marks[:1], strict=True)
        for _ in range(50)
    ]
    chosen, rejected, user = (pl.Series(column) for column in zip(*rows, strict=True))
    assert form_accuracy(chosen, rejected, user) < 0.5
    few = pl.Series([f"u{i % 4}" for i in range(250)])
    assert form_accuracy(chosen, rejected, few) is None
    plain, listed = (pl.Series([form.format(i) for i in range(250)]) for form in ("yes {}.", "['yes {}.']"))
    assert form_accuracy(plain, listed, pl.Series([f"u{i % 25}" for i in range(250)])) == 1


def test_nested_columns_show_their_first_value_on_one_line():
    frame = pl.DataFrame({"said": [[{"role": "user", "content": "Hi é"}]], "n": [[1, 2]]})
    assert [c["example"] for c in describe_columns(frame)] == ['[{"role": "user", "content": "Hi é"}]', "[1, 2]"]


def test_describe_of_an_unknown_table_shows_its_columns_and_what_is_missing(tmp_path, monkeypatch, capsys):
    from tests.test_documents import call

    monkeypatch.chdir(tmp_path)
    pl.DataFrame({"who": ["a"], "better": ["x"], "worse": ["y"]}).write_csv("odd.csv")
    out = call("manyminds describe odd.csv", monkeypatch, capsys, code=2)
    assert "worse" in out and "problem: odd.csv: there is no column user" in out
    assert "hint: the columns are who, better, worse: name the one that holds it, for example user = 'who'" in out


def test_describe_counts_who_can_be_asked_as_the_task_does_and_refuses_people_without_a_name(
    tmp_path, monkeypatch, capsys
):
    from tests.test_documents import call

    monkeypatch.chdir(tmp_path)
    said = ["agree", "disagree", "pass"]
    rows = [(f"p{u:02}", f"Statement {s}", said[(u + s) % 3]) for u in range(30) for s in range(24)]
    pl.DataFrame(rows, schema=["viewer", "statement", "vote"], orient="row").write_csv("votes.csv")
    (told,) = json.loads(call("manyminds describe votes.csv --json", monkeypatch, capsys))
    assert told["task"] == "votes" and told["fields"]["user"] == "viewer"
    assert told["numbers"]["askable"] == 0  # of 24 votes 16 are no pass, and 20 are shown
    rows[7] = ("  ", "Statement 7", "agree")
    pl.DataFrame(rows, schema=["viewer", "statement", "vote"], orient="row").write_csv("votes.csv")
    out = call("manyminds describe votes.csv", monkeypatch, capsys, code=2)
    assert "row 7 (counting from 0; user '  ') has an empty user" in out


@pytest.mark.parametrize("task", ["choices", "ratings", "votes"])
def test_a_wrong_value_is_named_by_the_tables_own_row_and_column(task, tmp_path):
    """Rows keep their numbers however the task sorts them."""
    columns = {
        "choices": {"prompt": "q", "chosen": "a", "rejected": "b"},
        "ratings": {"prompt": "q", "response": "a", "rating": "3"},
        "votes": {"statement": "s", "vote": "agree"},
    }[task]
    frame = pl.DataFrame(
        [
            {"person": f"z{9 - i}"} | {k: f"{v}{'' if k in ('vote', 'rating') else i}" for k, v in columns.items()}
            for i in range(9)
        ]
    )
    for place in (3, 5):
        frame.with_columns(
            person=pl.when(pl.int_range(pl.len()) == place).then(pl.lit("")).otherwise("person")
        ).write_parquet(tmp_path / "t.parquet")
        with pytest.raises(UserError, match=rf"row {place} \(counting from 0; user ''\) has an empty user"):
            registry.make_instance("task", task, {"file": str(tmp_path / "t.parquet"), "user": "person"}).build(0)
    if task == "ratings":
        frame.rename({"rating": "stars"}).with_columns(
            stars=pl.when(pl.int_range(pl.len()) == 4).then(pl.lit("four")).otherwise("stars")
        ).write_parquet(tmp_path / "t.parquet")
        with pytest.raises(UserError, match="no number in column stars"):
            registry.make_instance(
                "task", task, {"file": str(tmp_path / "t.parquet"), "user": "person", "rating": "stars"}
            ).build(0)


SUITES = [file for file in (PROJECT_ROOT / "jobs" / "suites").rglob("*.toml") if file.parent.name != "papers"]


@pytest.mark.parametrize("file", SUITES, ids=lambda file: file.stem)
def test_the_schema_accepts_every_shipped_suite(file):
    jsonschema.Draft7Validator(suite_schema()).validate(tomllib.loads(file.read_text()))


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"tasks": [{"name": "low_rnk"}]},
        {"tasks": [{"name": "low_rank", "n_user": 3}]},
        {"tasks": [{"name": "low_rank", "n_users": "many"}]},
        {"tasks": [{"name": "low_rank"}], "methods": [{"name": "shared", "head": "deep"}]},
        {"tasks": [{"name": "low_rank"}], "seed": 3},
    ],
)
def test_the_schema_refuses_what_a_suite_refuses(wrong, tmp_path):
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft7Validator(suite_schema()).validate(wrong)


def test_the_published_schema_is_current():
    published = json.loads((PROJECT_ROOT / "jobs" / "suites" / "schema.json").read_text())
    assert published == suite_schema(), "run manyminds schema > jobs/suites/schema.json"


def test_a_field_takes_a_value_or_a_list_of_values():
    schema = table_schema("task", "low_rank")
    for good in ({"n_users": 5}, {"n_users": [5, 9]}, {"shots": [0, 5]}, {"shots": [[0], [0, 5]]}):
        jsonschema.validate({"name": "low_rank"} | good, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"name": "low_rank", "n_users": []}, schema)


def test_what_is_no_table_is_said(tmp_path):
    from harness.cli.describe_data import describe

    suite = tmp_path / "s.toml"
    suite.write_text('[[tasks]]\nname = "low_rank"\n')
    with pytest.raises(UserError, match="has no task that is a table"):
        describe(str(suite))
