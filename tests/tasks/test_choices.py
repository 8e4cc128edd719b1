"""People's own tables of choices: every layout and file, odd rows, and splits that keep judgements whole."""

import json

import datasets
import numpy as np
import polars as pl
import pytest

from harness import registry
from harness.api import run_suite
from harness.api.running import make_suite
from harness.board.make import make_board
from harness.check.tasks import task_checks
from harness.errors import UserError
from harness.store.store import Store
from harness.trials.prepare import prepare_task
from tasks.choices import Choices
from tests.tasks.test_presets import judgements


def table(people=10, each=12):
    rows = list(judgements(people, each))
    return pl.DataFrame(rows, schema=["user", "prompt", "chosen", "rejected"], orient="row")


def task_of(frame, folder, **fields):
    path = folder / "table.parquet"
    frame.write_parquet(path)
    return Choices(**{"file": str(path), "shots": (0, 3)} | fields)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store").open()


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet", "arrow", "stream", "folder", "folders"])
def test_every_kind_of_file_holds_the_same_choices(kind, tmp_path, store):
    frame = table()
    path = tmp_path / f"choices.{kind}"
    if kind == "csv":
        frame.write_csv(path)
    elif kind == "jsonl":
        frame.write_ndjson(path)
    elif kind == "parquet":
        frame.write_parquet(path)
    elif kind in ("arrow", "stream"):
        path = path.with_suffix(".arrow")
        (frame.write_ipc if kind == "arrow" else frame.write_ipc_stream)(path)
    else:
        saved = datasets.Dataset.from_polars(frame)
        (saved if kind == "folder" else datasets.DatasetDict(train=saved, other=saved.select([0]))).save_to_disk(path)
    facts = prepare_task(store, Choices(file=str(path), shots=(0, 3)), 0)["facts"]
    wanted = prepare_task(store, task_of(frame, tmp_path), 0)["facts"]
    assert facts["data"] == wanted["data"] and facts["notes"] == []


def test_a_split_of_a_saved_folder_is_named(tmp_path):
    saved = datasets.DatasetDict(one=datasets.Dataset.from_polars(table()))
    saved.save_to_disk(tmp_path / "saved")
    with pytest.raises(UserError, match="no split 'train', but one") as caught:
        Choices(file=str(tmp_path / "saved")).read()
    assert caught.value.hint == 'set hub_split = "one"'


def test_a_query_renames_filters_and_unnests(tmp_path, store):
    nested = table().group_by("prompt", maintain_order=True).agg(judged=pl.struct("user", "chosen", "rejected"))
    query = """SELECT prompt, j.user AS who, j.chosen AS better, j.rejected AS worse
               FROM (SELECT prompt, UNNEST(judged) AS j FROM data) AS x"""
    task = task_of(
        nested, tmp_path, query=query.replace("j.user", 'j."user"'), user="who", chosen="better", rejected="worse"
    )
    assert (
        prepare_task(store, task, 0)["facts"]["data"]
        == prepare_task(store, task_of(table(), tmp_path), 0)["facts"]["data"]
    )
    with pytest.raises(UserError, match="the query failed") as caught:
        task_of(nested, tmp_path, query="SELECT nothing FROM data").read()
    assert "its columns are prompt, judged" in caught.value.hint


def test_a_query_that_keeps_no_order_gives_the_same_rows_each_time(tmp_path):
    frame = pl.concat([table(40, 40)] * 2)
    query = 'SELECT "user", prompt, chosen, MIN(rejected) AS rejected FROM data GROUP BY "user", prompt, chosen'
    tables = [task_of(frame, tmp_path, query=query).read() for _ in range(6)]
    assert len(tables[0]) == 1600 and all(other.equals(tables[0]) for other in tables)
    with pytest.raises(UserError) as caught:
        task_of(frame, tmp_path, query="SELECT user FROM data").read()
    assert 'needs quotes: "user"' in caught.value.hint


def test_a_misspelt_column_is_named(tmp_path):
    with pytest.raises(UserError, match="there is no column annotatr") as caught:
        task = task_of(table().rename({"user": "annotator"}), tmp_path, user="annotatr")
        task.build(0)
    assert "annotator" in caught.value.hint


def test_people_with_few_pairs_train_or_are_left_out_and_counted(tmp_path, store):
    few = table(14).with_columns(
        place=pl.int_range(pl.len()).over("user"), number=pl.col("user").str.tail(2).cast(pl.Int32)
    )
    # person 10 has one pair, 11 has two, 12 and 13 three: three shots and a question need four
    kept = few.filter((pl.col("number") < 10) | (pl.col("place") < (pl.col("number") - 9).clip(1, 3)))
    manifest = prepare_task(store, task_of(kept, tmp_path), 0)
    facts = manifest["facts"]
    assert facts["people"] == 13 and facts["users"]["train"] == 6 + 3 and facts["users"]["seen/context"] == 6
    assert facts["notes"] == [
        "left out: 1 of 14 people with fewer than 2 pairs (1 pairs)",
        "3 people have too few pairs to be asked, and are only trained on",
    ]


def test_ties_are_dropped_and_counted_or_kept(tmp_path):
    tied = table().with_columns(label=pl.when(pl.int_range(pl.len()) % 6 == 0).then(0.5).otherwise(1.0))
    dropped, kept = (task_of(tied, tmp_path, ties=ties).build(0) for ties in ("drop", "keep"))
    assert len(dropped.pairs) == 100 and dropped.notes == ("left out: 20 ties",)
    assert len(kept.pairs) == 120 and (kept.pairs.label == 0.5).sum() == 20


def test_max_pairs_keeps_a_random_sample_of_each_person(tmp_path):
    data = task_of(table(each=30), tmp_path, max_pairs=8).build(0)
    assert (np.diff(data.pairs.offsets) == 8).all() and data.notes == ("left out: 220 pairs beyond 8 of a person",)
    firsts = data.pairs.row[data.pairs.offsets[:-1]] - 30 * np.arange(10)
    assert (firsts > 0).any()  # not the first eight of the table


def ranked(people=12, each=8):
    rng, rows = np.random.default_rng(0), []
    for person in range(people):
        for number in range(each):
            answers = [f"{person} {number} answer {k}" for k in range(4)]
            rows.append((f"p{person}", f"{person} {number}?", answers, ">".join(rng.permutation(list("ABCD")))))
    return pl.DataFrame(rows, schema=["user", "prompt", "responses", "ranking"], orient="row")


def test_the_pairs_of_a_ranking_are_shown_or_asked_together(tmp_path, store):
    task = task_of(ranked(), tmp_path, responses=("responses",), ranking="ranking", shots=(0, 12), queries=100)
    data = task.build(0)
    assert len(data.pairs) == 12 * 8 * 6
    for seed in range(3):
        splits = task.split(data, seed)
        for panel in splits.panels.values():
            for part in (panel.context, panel.query):
                _, count = np.unique(part.row, return_counts=True)
                assert (count == 6).all()
        test = splits.panels["test"]
        assert not np.isin(test.context.row, test.query.row).any() and (np.diff(test.context.offsets) == 12).all()


def test_one_ranking_of_a_training_person_is_kept_to_be_asked(tmp_path):
    """Of two rankings of six pairs each, one is trained on and one asked, though all but two pairs were wanted."""
    task = task_of(ranked(each=2), tmp_path, responses=("responses",), ranking="ranking", shots=(0, 6))
    splits = task.split(task.build(0), 0)
    assert (np.diff(splits.train.offsets) == 6).all() and (np.diff(splits.panels["seen"].query.offsets) == 6).all()


def test_new_prompts_are_in_no_context_and_no_training(tmp_path):
    shared = table(20, 20).with_columns(prompt=pl.format("prompt {}", pl.int_range(pl.len()).over("user")))
    task = task_of(shared, tmp_path, held_out="people and prompts", queries=4)
    data = task.build(0)
    splits = task.split(data, 0)
    prompts = data.pairs.items.known_text["prompt"].to_numpy(zero_copy_only=False)
    shown = set(prompts[splits.train.left]) | {
        p for panel in splits.panels.values() for p in prompts[panel.context.left]
    }
    asked = {p for panel in splits.panels.values() for p in prompts[panel.query.left]}
    assert len(asked) == 4 and not shown & asked and len(shown) == 16
    assert (
        prompts[task.split(data, 1).panels["test"].query.left].tolist()
        != prompts[splits.panels["test"].query.left].tolist()
    )


def test_the_data_sets_own_split_within_people_is_kept(tmp_path):
    parts = ["train", "train", "val", "test"]
    own = table().with_columns(fold=pl.Series([parts[i % 4] for i in range(120)]))
    task = task_of(own, tmp_path, own_split="fold")
    data = task.build(0)
    splits = task.split(data, 0)
    of = {name: {i for i in range(120) if parts[i % 4] == name} for name in parts}
    assert set(splits.train.row) <= of["train"]
    for name, part in (("test", "test"), ("validation", "val"), ("seen", "test")):
        panel = splits.panels[name]
        assert set(panel.context.row) <= of["train"] and set(panel.query.row) <= of[part]
        assert (np.diff(panel.query.offsets) == 3).all()  # all of a person's part are asked
    with pytest.raises(UserError, match=r"row 0 .*user 'w00'.* unknown part in own_split \('holdout'\)"):
        task_of(own.with_columns(fold=pl.lit("holdout")), tmp_path, own_split="fold").build(0)


def test_the_data_sets_own_split_of_people_is_kept(tmp_path):
    of_person = pl.col("user").str.tail(2).cast(pl.Int32)
    fold = (
        pl.when(of_person < 6).then(pl.lit("train")).when(of_person < 8).then(pl.lit("dev")).otherwise(pl.lit("test"))
    )
    task = task_of(table().with_columns(fold=fold), tmp_path, own_split="fold")
    data = task.build(0)
    splits = task.split(data, 3)
    ids = np.array(data.users["id"].to_pylist())
    assert set(ids[splits.train.people]) == {f"w0{i}" for i in range(6)}
    assert set(ids[splits.panels["validation"].query.people]) == {"w06", "w07"}
    assert set(ids[splits.panels["test"].query.people]) == {"w08", "w09"}


def test_options_may_be_numbers_alone(tmp_path, store):
    rng = np.random.default_rng(0)
    columns = {f"{side}_{name}": rng.normal(size=120) for side in ("chosen", "rejected") for name in ("price", "size")}
    frame = pl.DataFrame({"user": [f"u{i // 12}" for i in range(120)]} | columns)
    data = task_of(frame, tmp_path, features=("price", "size")).build(0)
    assert data.pairs.items.text is None and len(data.pairs.items) == 240
    won = np.where(data.pairs.label > 0.5, data.pairs.left, data.pairs.right)
    order = np.argsort(data.pairs.row)
    assert np.allclose(data.pairs.items.features[won[order]], frame.select("chosen_price", "chosen_size").to_numpy())
    both = frame.with_columns(table().select("prompt", "chosen", "rejected"))
    data = task_of(both, tmp_path, features=("price",)).build(0)
    assert data.pairs.items.text is not None and data.pairs.items.features.shape[1] == 1


ODD = {
    "ids that are numbers": lambda t: t.with_columns(user=pl.col("user").str.tail(2).cast(pl.Int64)),
    "duplicated rows": lambda t: pl.concat([t, t.head(30)]),
    "contradicting rows": lambda t: pl.concat(
        [t, t.head(30).select("user", "prompt", chosen="rejected", rejected="chosen")]
    ),
    "emoji and right-to-left": lambda t: t.with_columns(
        chosen=pl.col("chosen") + " \U0001f600 \u05e9\u05dc\u05d5\u05dd"
    ),
    "a row of a megabyte": lambda t: t.with_columns(
        chosen=pl.when(pl.int_range(pl.len()) == 5).then(pl.lit("word " * 200_000)).otherwise("chosen")
    ),
    "quotes and line breaks": lambda t: t.with_columns(chosen=pl.col("chosen") + '\n"so", he said'),
}


@pytest.mark.parametrize("kind", ["csv", "parquet"])
@pytest.mark.parametrize("what", ODD)
def test_odd_rows_lose_nothing(what, kind, tmp_path, store):
    frame = ODD[what](table())
    path = tmp_path / f"odd.{kind}"
    frame.write_csv(path) if kind == "csv" else frame.write_parquet(path)
    data = Choices(file=str(path), shots=(0, 3)).build(0)
    assert len(data.pairs) == len(frame) and data.notes == ()
    text = data.pairs.items.known_text["response"].to_pylist()
    won = np.where(data.pairs.label > 0.5, data.pairs.left, data.pairs.right)
    found = [text[i] for i in won[np.argsort(data.pairs.row)]]
    assert found == frame["chosen"].to_list()
    prepare_task(store, Choices(file=str(path), shots=(0, 3)), 0)


def test_a_windows_file_with_a_mark_is_read(tmp_path):
    path = tmp_path / "windows.csv"
    path.write_bytes(b"\xef\xbb\xbf" + table().write_csv(line_terminator="\r\n").encode())
    assert len(Choices(file=str(path), shots=(0, 3)).build(0).pairs) == 120


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.with_columns(user=pl.col("user").str.tail(1).cast(pl.Float64)), "user"),
        (lambda t: t.with_columns(chosen=pl.lit(None, dtype=pl.String)), "row 0 .* nothing in column chosen"),
        (lambda t: t.with_columns(label=pl.lit(1.5)), "label outside"),
        (lambda t: t.drop("rejected"), "there is no column rejected"),
        (lambda t: t.head(0), "the table has no rows"),
        (lambda t: t.head(1), "no person has 2 pairs"),
    ],
)
def test_what_cannot_be_used_is_said(change, said, tmp_path, store):
    with pytest.raises(UserError, match=said):
        prepare_task(store, task_of(change(table()), tmp_path), 0)


def test_without_a_table_the_suite_to_write_is_shown():
    with pytest.raises(UserError, match="neither file nor hub is given") as caught:
        Choices().build(0)
    assert '[[tasks]] with name = "choices"' in caught.value.hint
    with pytest.raises(UserError, match="is not the 40 hex digits of a commit"):
        registry.make_instance("task", "multipref", {}).build(0)


def leaky(rows):
    """Lay out choices as a public pipeline did: the chosen response as text, the rejected one as a printed list."""
    for user, prompt, chosen, rejected in rows:
        yield {"user": user, "prompt": prompt, "chosen": chosen, "rejected": str([rejected])}


@pytest.fixture(scope="module")
def boards(tmp_path_factory):
    """Boards of the same choices, which nobody can predict, as they are and in a layout that leaks the answer."""
    folder, rng = tmp_path_factory.mktemp("layouts"), np.random.default_rng(0)
    rows = [(u, p, *((a, b) if rng.random() < 0.5 else (b, a))) for u, p, a, b in judgements(20, 20)]
    found = {}
    for name, lines in (
        ("leaky", list(leaky(rows))),
        ("repaired", [dict(zip(("user", "prompt", "chosen", "rejected"), row, strict=True)) for row in rows]),
    ):
        path = folder / f"{name}.jsonl"
        path.write_text("\n".join(map(json.dumps, lines)))
        task = Choices(file=str(path), shots=(0, 5))
        methods = [registry.make_instance("method", m, {}) for m in ("surface", "shared", "lore", "mixed_logit")]
        run = run_suite(make_suite([task], methods, 5), folder / "store")
        (board,) = make_board(run.plan, run.store).tasks
        found[name] = {row.method.name: row.curves["accuracy"][5] for row in board.rows}
        assert any("form alone predicts" in flag for flag in board.flags) == (name == "leaky")
    return found


def test_a_layout_that_leaks_is_seen_by_form_alone(boards):
    assert boards["leaky"]["surface"].value > 0.99 and boards["leaky"]["lore"].value > 0.9
    for name, point in boards["repaired"].items():
        assert abs(point.value - 0.5) < 0.1, name  # what a layout gave is gone; twenty people's coins differ by .07


def test_check_refuses_a_layout_that_leaks(tmp_path):
    plain = table().with_columns(coin=pl.int_range(pl.len()) % 2 == 0)  # half of the choices are turned round
    plain = plain.select(
        "user",
        "prompt",
        chosen=pl.when("coin").then("chosen").otherwise("rejected"),
        rejected=pl.when("coin").then("rejected").otherwise("chosen"),
    )
    rule = "the form of responses does not tell which wins"
    for frame, wrong in ((pl.DataFrame(list(leaky(plain.iter_rows()))), True), (plain, False)):
        found = {what: check() for what, check in task_checks(task_of(frame, tmp_path), None)}[rule]
        assert bool(found) == wrong and "form alone predicts" in found
