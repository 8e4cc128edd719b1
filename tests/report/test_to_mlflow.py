"""MLflow holds exactly the board's numbers, each once, also after kills and failures."""

import contextlib
import csv
import dataclasses
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from dotenv import dotenv_values

from harness.board.make import make_board
from harness.errors import UserError
from harness.report.mlflow_records import MAX_VALUE_CHARACTERS, RecordMaker, board_image, limit_tags
from harness.report.mlflow_view import leaderboard_view
from harness.report.to_mlflow import Publisher
from harness.store.store import Store
from harness.trials.finish import finish_trials
from harness.trials.plan import make_plan
from harness.trials.suite import read_suite

TASK = """
[[tasks]]
name = "low_rank"
n_users = {n_users}
new_users = 10
pairs_per_user = 20
feature_dim = 4
rank = 2
shots = [0, 2, 4]
queries = 10
"""
METHOD = '[[methods]]\nname = "{}"\n'


class World:
    """A store with a database, and suites to publish there; each name of a suite is an experiment."""

    def __init__(self, folder):
        self.folder, self.store = folder, Store(folder / "store").open()
        self.client = None

    def plan(self, name, seeds=3, methods=("shared", "spectral", "oracle"), n_users=(20,), run=True):
        text = f"seeds = {seeds}\ncontrols = false\n" + "".join(TASK.format(n_users=n) for n in n_users)
        file = self.folder / f"{name}.toml"
        file.write_text(text + "".join(METHOD.format(method) for method in methods))
        plan = make_plan(read_suite(file), self.store)
        if run:
            assert all(done for _, done in finish_trials(plan.trials, self.store))
        return plan

    def publish(self, plan):
        publisher = Publisher(plan, self.store)
        publisher.publish_everything()
        from mlflow import MlflowClient  # here, after the publisher has made MLflow's settings

        self.client = self.client or MlflowClient(tracking_uri=publisher.uri)

    def runs(self, plan, kind="row"):
        """Return the live runs of a kind by their row's identity; fail where one exists twice."""
        experiment = self.client.get_experiment_by_name(f"manyminds/{plan.suite.name}")
        found = self.client.search_runs([experiment.experiment_id], f"tags.kind = '{kind}'")
        by_row = {run.data.tags["row"]: run for run in found}
        assert len(by_row) == len(found)
        return by_row

    def deleted(self, plan):
        """Return the runs that are only marked as deleted."""
        experiment = self.client.get_experiment_by_name(f"manyminds/{plan.suite.name}")
        return list(self.client.search_runs([experiment.experiment_id], run_view_type=2))

    def file(self, run, name):
        return Path(self.client.download_artifacts(run.info.run_id, name))

    def table(self, run, name):
        assert {"path": name, "type": "table"} in json.loads(run.data.tags["mlflow.loggedArtifacts"])  # the UI draws it
        table = json.loads(self.file(run, name).read_text())
        return [dict(zip(table["columns"], line, strict=True)) for line in table["data"]]

    def published(self):
        """Return every file that MLflow holds."""
        artifacts = (self.store.root / "mlflow-artifacts").rglob("*")
        return [self.store.root / "mlflow.db", *(path for path in artifacts if path.is_file())]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    world = World(tmp_path_factory.mktemp("publish"))
    said = io.StringIO()
    plan = world.plan("first")
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        world.publish(plan)
    world.first, world.said = plan, said.getvalue()
    return world


def ids(runs):
    return {row: run.info.run_id for row, run in runs.items()}


def board_rows(world, plan):
    return {(task.label, row.label): (task, row) for task in make_board(plan, world.store).tasks for row in task.rows}


def test_creating_the_database_and_publishing_say_nothing(world):
    assert world.said == ""


def test_a_row_is_one_run_with_its_seeds_inside_and_the_numbers_of_the_board(world):
    runs, rows = world.runs(world.first), board_rows(world, world.first)
    assert len(runs) == len(rows) == 3
    for run in runs.values():
        _, row = rows[run.data.tags["task"], run.data.tags["method"]]
        assert run.data.tags["seeds"] == "0 1 2" and run.data.tags["trials"].split() == list(row.keys)
        assert run.data.params["task.n_users"] == "20" and run.data.params["task.shots"] == "[0, 2, 4]"
        told = {
            "accuracy": row.curves["accuracy"][4].value,
            "ece": row.curves["ece"][4].value,
            "gain": row.gain and row.gain.value,
            "rank": row.rank and row.rank[0],
            "p": row.p,
            "swapped": row.swapped,
            "worse": row.worse and row.worse.naive,
            "worse_by_chance": row.worse and row.worse.null,
            "worst_fitted": row.worst.fitted,
            "fit_seconds": row.costs["fit_seconds"],
        }
        known = {name: value for name, value in told.items() if value is not None}
        assert {name: run.data.metrics[name] for name in told.keys() & run.data.metrics} == pytest.approx(
            known, rel=5e-4
        )
        assert not [name for name in run.data.metrics if name.endswith(("_low", "_high"))]  # each would be a chart
        curves = {(line["metric"], line["shots"]): line for line in world.table(run, "curves.json")}
        assert curves["log_loss", 4]["high"] == row.curves["log_loss"][4].high
        if row.gain:
            limits = [float(limit) for limit in run.data.tags["gain_limits"].split(" to ")]
            assert limits == pytest.approx([row.gain.low, row.gain.high], abs=6e-4)
            assert run.data.tags["rank_limits"] == f"{row.rank[1]} to {row.rank[2]}"
        assert len(run.data.metrics) <= 30
        taken = sum(world.store.read_manifest("trials", key)["facts"]["seconds"] for key in row.keys)
        assert (run.info.end_time - run.info.start_time) / 1000 == pytest.approx(taken, abs=1e-3)
    assert sum("rank" in run.data.metrics for run in runs.values()) == 2  # the oracle is a line


def test_the_steps_of_a_curve_are_the_shots(world):
    rows = board_rows(world, world.first)
    for run in world.runs(world.first).values():
        curve = rows[run.data.tags["task"], run.data.tags["method"]][1].curves["accuracy"]
        history = world.client.get_metric_history(run.info.run_id, "accuracy")
        assert {m.step: m.value for m in history} == pytest.approx(
            {shots: point.value for shots, point in curve.items()}, rel=5e-4
        )
        assert len(history) == 3


def test_the_leaderboard_reads_like_the_board(world):
    (run,) = world.runs(world.first, "board").values()
    board = make_board(world.first, world.store)
    table = world.table(run, "leaderboard.json")
    rows = [row for task in board.tasks for row in task.rows]
    assert [line["method"] for line in table] == [row.label for row in rows]
    for line, row in zip(table, rows, strict=True):
        assert line["accuracy"] == pytest.approx(row.curves["accuracy"][4].value)
        assert line["accuracy_low"] == pytest.approx(row.curves["accuracy"][4].low)
        assert line["rank"] == (None if row.privileged else row.rank[0])
        assert line["gain_high"] == (None if row.privileged else pytest.approx(row.gain.high))
    assert [line["verdict"] for line in world.table(run, "tasks.json")] == [task.verdict for task in board.tasks]
    assert board.tasks[0].verdict in run.data.tags["verdicts"]
    # tags, because a parameter cannot change, and this run is updated in place
    assert run.data.tags["board"] == board.results_digest and run.data.tags["suite"] == world.first.suite.digest
    assert "spectral" in world.file(run, "board.html").read_text()


def test_the_experiment_opens_with_the_verdicts(world):
    experiment = world.client.get_experiment_by_name(f"manyminds/{world.first.suite.name}")
    said = experiment.tags["mlflow.note.content"]
    (task,) = make_board(world.first, world.store).tasks
    # MLflow shows one line of the description, and would cut a heading in half
    assert said.startswith(f"**{world.first.suite.title}** – {task.label}: {task.verdict}") and "**gain**" in said


def test_the_experiment_opens_as_a_leaderboard(world):
    """The address names a saved view, whose columns exist, and the mode of model training."""
    publisher = Publisher(world.first, world.store)
    publisher.publish_everything()
    experiment = world.client.get_experiment_by_name(f"manyminds/{world.first.suite.name}")
    address = publisher.command_to_open().partition("# ")[2]
    route = f"/#/experiments/{experiment.experiment_id}/runs?"
    assert address == f"http://127.0.0.1:5000{route}viewStateShareKey=leaderboard&workflowType=machine_learning"
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"
    view = json.loads(experiment.tags["mlflow.sharedViewState.leaderboard"])
    state = json.loads(view["state"])
    assert view["name"] == "Leaderboard" and isinstance(view["createdAt"], int)
    assert state["orderByKey"] == "metrics.`gain`" and state["orderByAsc"] is False
    assert state["groupBy"]["groupByKeys"] == [{"mode": "tag", "groupByData": "task"}]
    found = world.client.search_runs(
        [experiment.experiment_id], state["searchFilter"], order_by=[f"{state['orderByKey']} DESC"]
    )
    assert {run.info.run_id for run in found} == set(ids(world.runs(world.first)).values())
    assert [run.data.tags["method"] for run in found][-1] == "oracle"  # not ranked: it has no gain
    for column in state["selectedColumns"]:
        kind, name = re.fullmatch("(metrics|params|tags)\\.`(.+)`", column).groups()
        assert any(name in getattr(run.data, kind) for run in found), column
    assert set(state["selectedColumns"]) < set(state["columnOrder"]) == state["columnWidths"].keys()
    assert "metrics.`accuracy`" in state["selectedColumns"] and "params.`task.shots`" in state["selectedColumns"]


def test_a_view_shows_the_parameters_that_differ(world):
    plan = world.plan("differ", n_users=(20, 25))
    rows = RecordMaker(plan, world.store).every_row(make_board(plan, world.store))
    columns = leaderboard_view(rows)["selectedColumns"]
    assert [name for name in columns if name.startswith("params.`task")] == [
        "params.`task.shots`",
        "params.`task.n_users`",
    ]
    assert (
        leaderboard_view([dataclasses.replace(row, scalars={}) for row in rows])["orderByKey"] == "metrics.`accuracy`"
    )


def test_names_of_runs_are_short_and_tell_settings_apart(world):
    assert {run.info.run_name for run in world.runs(world.first).values()} == {
        f"{method} on low_rank" for method in ("shared", "spectral", "oracle")
    }
    plan = world.plan("two", n_users=(20, 25), methods=("shared",))
    world.publish(plan)
    names = {run.info.run_name for run in world.runs(plan).values()}
    assert len(names) == 2 and all("n_users=" in name for name in names)


def test_rows_stand_below_the_board_and_name_the_data_they_read(world):
    (parent,) = world.runs(world.first, "board").values()
    keys = {trial.task_key: trial.seed for trial in world.first.trials}
    for run in world.runs(world.first).values():
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.data.tags["mlflow.runType"] == "evaluation"  # else the UI would show the folded board alone
        inputs = world.client.get_run(run.info.run_id).inputs.dataset_inputs
        told = {
            each.dataset.digest: int(tag.value.removeprefix("seed "))
            for each in inputs
            for tag in each.tags
            if tag.key == "mlflow.data.context"
        }
        assert told == keys and {each.dataset.name for each in inputs} == {"low_rank"}
    assert "mlflow.parentRunId" not in parent.data.tags
    seconds = sum(run.info.end_time - run.info.start_time for run in world.runs(world.first).values())
    assert parent.info.end_time - parent.info.start_time == pytest.approx(seconds, abs=3)


def test_the_board_has_one_image(world):
    (run,) = world.runs(world.first, "board").values()
    image = world.file(run, "board.png").read_bytes()
    assert image.startswith(b"\x89PNG") and len(image) > 5000
    board = make_board(world.first, world.store)
    assert image == board_image(board)
    assert board_image(dataclasses.replace(board, tasks=())) is None


def test_a_long_description_is_cut(world):
    plan = world.plan("wordy")
    board = make_board(plan, world.store)
    wordy = dataclasses.replace(board, suite=dataclasses.replace(board.suite, title="x" * 30_000))
    Publisher(plan, world.store).publish_everything(wordy)
    said = world.client.get_experiment_by_name("manyminds/wordy").tags["mlflow.note.content"]
    assert len(said) == MAX_VALUE_CHARACTERS


def test_publishing_again_changes_nothing(world):
    before = ids(world.runs(world.first)) | ids(world.runs(world.first, "board"))
    world.publish(world.first)
    assert ids(world.runs(world.first)) | ids(world.runs(world.first, "board")) == before


def test_an_unchanged_board_is_not_published_again(world, monkeypatch):
    """It is again after any change, and after a kill while the board's run was written."""
    plan = world.plan("unchanged")
    board = make_board(plan, world.store)
    world.publish(plan)
    publisher, written = Publisher(plan, world.store), []
    address = publisher.command_to_open()
    monkeypatch.setattr(publisher, "_publish_records", lambda rows, board: written.append(board))
    publisher.publish_if_changed(board)
    assert not written and publisher.command_to_open() != address  # the leaderboard's address is known
    (task,) = board.tasks
    said = dataclasses.replace(board, tasks=(dataclasses.replace(task, verdict="other"),))
    publisher.publish_if_changed(said)
    assert written == [said]
    (run,) = world.runs(plan, "board").values()
    world.client.set_tag(run.info.run_id, "digest", "")
    publisher.publish_if_changed(board)
    assert written == [said, board]


def test_another_task_or_line_replaces_no_row_and_updates_the_board(world):
    plan = world.plan("more")
    world.publish(plan)
    rows, board = ids(world.runs(plan)), ids(world.runs(plan, "board"))
    more = world.plan("more", methods=("shared", "spectral", "oracle", "true_subspace"), n_users=(20, 25))
    world.publish(more)
    after = world.runs(more)
    assert rows.items() <= ids(after).items() and len(after) == 8
    assert {run.data.tags["suite"] for run in after.values()} == {more.suite.digest}
    (kept,) = world.runs(more, "board").values()
    assert ids({"board": kept}) == board and kept.data.tags["board"] == make_board(more, world.store).results_digest
    assert len(world.table(kept, "leaderboard.json")) == 8


def test_another_method_updates_the_rows_it_changes_in_place(world):
    plan = world.plan("method")
    world.publish(plan)
    before = world.runs(plan)
    more = world.plan("method", methods=("shared", "spectral", "oracle", "chance", "per_user"))
    world.publish(more)
    after = world.runs(more)
    assert ids(before).items() <= ids(after).items() and len(after) == 5
    other = {after[row].data.tags["method"] for row, run in before.items() if after[row].data != run.data}
    assert "spectral" in other  # two more methods change adjusted p-values
    rows = board_rows(world, more)
    for run in after.values():
        row = rows[run.data.tags["task"], run.data.tags["method"]][1]
        assert run.data.metrics.get("p") == (row.p and pytest.approx(row.p, rel=5e-4))
        assert run.data.tags["digest"] and run.info.status == "FINISHED"
        assert len(world.client.get_metric_history(run.info.run_id, "accuracy")) == 3  # no point of a curve twice


def test_another_seed_replaces_every_row_and_leaves_no_deleted_run(world):
    plan = world.plan("seed")
    world.publish(plan)
    before = world.runs(plan)
    more = world.plan("seed", seeds=4)
    world.publish(more)
    after = world.runs(more)
    assert after.keys() == before.keys() and not set(ids(after).values()) & set(ids(before).values())
    assert {run.data.tags["seeds"] for run in after.values()} == {"0 1 2 3"}
    assert world.deleted(more) == []
    assert not any(Path(run.info.artifact_uri.removeprefix("file://")).parent.exists() for run in before.values())


def test_runs_that_an_earlier_version_marked_as_deleted_go_and_those_of_others_stay(world):
    plan = world.plan("earlier")
    world.publish(plan)
    (run, *_) = world.runs(plan).values()
    stranger = world.client.create_run(run.info.experiment_id, run_name="by hand").info.run_id
    for each in (run.info.run_id, stranger):
        world.client.delete_run(each)
    world.publish(plan)
    assert [run.info.run_id for run in world.deleted(plan)] == [stranger] and len(world.runs(plan)) == 3


def test_while_a_suite_runs_complete_rows_appear_without_comparison(world):
    plan = world.plan("live", seeds=4, methods=("spectral", "shared"), n_users=(21,), run=False)
    spectral = [t for t in plan.trials if t.method.name == "spectral"]
    list(finish_trials(spectral[:3], world.store))
    publisher = Publisher(plan, world.store)
    publisher.publish_trials(spectral[:3])
    assert world.client.get_experiment_by_name("manyminds/live") is None  # a seed is missing
    list(finish_trials(spectral[3:], world.store))
    publisher.publish_trials(spectral[3:])
    publisher.publish_trials(spectral)
    (run,) = world.runs(plan).values()
    assert run.data.tags["state"] == "not compared yet" and "rank" not in run.data.metrics
    (parent,) = world.runs(plan, "board").values()
    assert parent.info.status == "RUNNING" and run.data.tags["mlflow.parentRunId"] == parent.info.run_id
    list(finish_trials(plan.trials, world.store))
    world.publish(plan)
    states = {
        run.data.tags["method"]: (run.data.tags["state"], run.data.metrics["accuracy"])
        for run in world.runs(plan).values()
    }
    assert states["spectral"] == ("ranked", run.data.metrics["accuracy"]) and len(states) == 2
    (compared,) = (each for each in world.runs(plan).values() if each.data.tags["method"] == "spectral")
    assert compared.info.run_id == run.info.run_id and "rank" in compared.data.metrics  # written once, then completed
    for name in compared.data.metrics:
        points = world.client.get_metric_history(run.info.run_id, name)
        assert len(points) == len({point.step for point in points}), name
    publisher.publish_trials(list(plan.trials))  # as when a suite is run again: nothing is taken away
    assert next(iter(world.runs(plan).values())).data.tags["state"] == "ranked" and not publisher.down
    (finished,) = world.runs(plan, "board").values()
    assert finished.info.run_id == parent.info.run_id and finished.info.status == "FINISHED"


@pytest.mark.parametrize("step", ["log_batch", "_write_files", "set_terminated", "delete_run"])
def test_a_kill_in_between_leaves_neither_gaps_nor_doubles(world, monkeypatch, step):
    name, methods = f"killed_{step}", ("shared", "spectral")
    plan = world.plan(name, methods=methods)
    if step == "delete_run":  # runs of three seeds, which others replace
        world.publish(plan)
        plan = world.plan(name, seeds=4, methods=methods)

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Publisher if step == "_write_files" else type(world.client), step, killed)
        with pytest.raises(KeyboardInterrupt):
            Publisher(plan, world.store).publish_everything()
    world.publish(plan)
    runs = world.runs(plan)
    assert len(runs) == 2 and all(
        run.info.status == "FINISHED" and "accuracy" in run.data.metrics for run in runs.values()
    )
    assert all(world.file(run, "users.csv") for run in runs.values())
    assert len(world.runs(plan, "board")) == 1 and world.deleted(plan) == []
    (parent,) = world.runs(plan, "board").values()
    assert parent.info.status == "FINISHED" and world.file(parent, "board.png")


def world_task(world, plan):
    (task,) = make_board(plan, world.store).tasks
    return task


@pytest.mark.parametrize(("step", "nth"), [("log_batch", 1), ("_write_files", 1), ("set_tag", 2)])
def test_a_kill_while_a_run_is_updated_is_made_good(world, monkeypatch, step, nth):
    plan = world.plan(f"halfway_{step}", methods=("shared", "spectral"))
    world.publish(plan)
    more = world.plan(f"halfway_{step}", methods=("shared", "spectral", "per_user"))
    owner, calls = Publisher if step == "_write_files" else type(world.client), []
    real = getattr(owner, step)

    def killed(own, *arguments, **named):
        run = arguments[1].info.run_id if step == "_write_files" else arguments[0]
        if run in before and calls.append(run) is None and len(calls) == nth:
            raise KeyboardInterrupt
        return real(own, *arguments, **named)

    before = set(ids(world.runs(plan)).values())
    with monkeypatch.context() as patch:
        patch.setattr(owner, step, killed)
        with pytest.raises(KeyboardInterrupt):
            Publisher(more, world.store).publish_everything()
    assert len(calls) == nth
    for published in (plan, more):  # also where the run is to hold again what it held before the kill
        world.publish(published)
        rows = board_rows(world, published)
        runs = {run.data.tags["method"]: run for run in world.runs(published).values()}
        for (_, method), (_, row) in rows.items():
            assert runs[method].data.metrics.get("p") == (row.p and pytest.approx(row.p, rel=5e-4))
            assert runs[method].data.tags["gain_limits"] == limit_tags(row, world_task(world, published))["gain_limits"]
            assert runs[method].data.tags["digest"]


def test_a_deleted_experiment_comes_back(world):
    plan = world.plan("deleted")
    world.publish(plan)
    before = world.runs(plan)
    world.client.delete_experiment(next(iter(before.values())).info.experiment_id)
    world.publish(plan)
    assert ids(world.runs(plan)) == ids(before)


def test_users_are_salted_hashes(world):
    def users(plan):
        (run,) = (r for r in world.runs(plan).values() if r.data.tags["method"] == "spectral")
        return list(csv.DictReader(world.file(run, "users.csv").open()))

    (row,) = (row for _, row in board_rows(world, world.first).values() if row.label == "spectral")
    table, people = users(world.first), {str(person) for person in row.users["person"]}
    names = {line["user"] for line in table}
    assert list(table[0]) == ["user", "asked", "accuracy", "gain"] and len(names) == len(people)
    assert all(re.fullmatch("[0-9a-f]{16}", name) for name in names) and not names & people
    assert sorted(float(line["gain"]) for line in table) == pytest.approx(sorted(row.users["gain"]))
    salt = world.store.root / "salt"
    assert salt.stat().st_mode & 0o777 == 0o600 and salt.stat().st_size == 32
    old = salt.read_bytes()
    same, other = world.plan("same"), world.plan("other")
    world.publish(same)
    assert {line["user"] for line in users(same)} == names  # methods and suites of one store can be joined by person
    salt.unlink()
    world.publish(other)
    assert not {line["user"] for line in users(other)} & names
    published = b"".join(path.read_bytes() for path in world.published())
    assert old not in published and old.hex().encode() not in published


def test_neither_texts_of_errors_nor_pickles_are_published(world):
    plan = world.plan("failed", seeds=5, run=False)
    spectral = [t for t in plan.trials if t.method.name == "spectral"]
    list(finish_trials([t for t in plan.trials if t is not spectral[-1]], world.store))
    world.store.record_failure(
        spectral[-1].key, spectral[-1].identity, "KeyError: 'what Ann wrote to Bob'", "Traceback: what Ann wrote to Bob"
    )
    world.publish(plan)
    (run,) = (r for r in world.runs(plan).values() if r.data.tags["method"] == "spectral")
    assert (
        run.data.tags["state"] == "1 of 5 seeds failed"
        and "rank" not in run.data.metrics
        and run.data.tags["seeds"] == "0 1 2 3"
    )
    assert {path.suffix for path in world.published()} == {".csv", ".db", ".html", ".json", ".png"}
    assert not any(b"what Ann wrote" in path.read_bytes() for path in world.published())


def test_long_lists_are_cut_in_tags_and_whole_in_the_artifact(world):
    publisher = Publisher(world.first, world.store)
    (task,) = make_board(world.first, world.store).tasks
    row = next(row for row in task.rows if row.label == "shared")
    record = publisher.records.row_record(task, dataclasses.replace(row, keys=row.keys * 300))
    client = publisher._open_client()
    experiment = client.create_experiment("long", (world.store.root / "mlflow-artifacts").as_uri())
    publisher._write_run(client, experiment, record)
    (run,) = client.search_runs([experiment])
    assert len(run.data.tags["trials"]) <= MAX_VALUE_CHARACTERS and run.data.tags["trials"].endswith(" ...")
    assert world.file(run, "trials.json").read_text().count('"key"') == 900


def test_a_server_that_is_gone_costs_seconds_and_no_result(world):
    publisher = Publisher(world.first, world.store, "http://ann:top@secret@127.0.0.1:9")
    began = time.monotonic()
    publisher.publish_trials(list(world.first.trials))
    with pytest.raises(UserError) as caught:
        publisher.publish_everything()
    assert time.monotonic() - began < 20
    assert "http://127.0.0.1:9" in str(caught.value) and "secret" not in str(caught.value) + publisher.command_to_open()
    assert "server" in caught.value.hint


@pytest.mark.parametrize(
    "uri",
    [
        "file:///tmp/runs",
        "mlruns",
        "127.0.0.1:5000",
        "postgresql://ann:secret@127.0.0.1:9/x",
        "http://ann:secret@127.0.0.1:port",
    ],
)
def test_what_cannot_hold_results_is_a_mistake(world, uri):
    with pytest.raises(UserError) as caught:
        Publisher(world.first, world.store, uri).publish_everything()
    assert "secret" not in str(caught.value)


def test_a_file_that_is_no_database_is_a_mistake(world):
    (world.folder / "notes.db").write_text("dear diary, " * 100)
    with pytest.raises(UserError, match="not a database"):
        Publisher(world.first, world.store, f"sqlite:///{world.folder / 'notes.db'}").publish_everything()


def test_a_moved_store_says_how_to_make_the_view_anew(world):
    moved = Store(world.folder / "moved")
    shutil.copytree(world.store.root, moved.root)
    with pytest.raises(UserError, match="was moved") as caught:
        Publisher(world.first, moved).publish_everything()
    assert str(moved.root / "mlflow.db") in caught.value.hint


def test_the_server_line_is_closed_to_others(world, tmp_path):
    store = Store(tmp_path / "Ann's store").open()
    line = Publisher(world.first, store).command_to_open()
    assert re.search(r"mlflow --env-file .* server  # http://127.0.0.1:5000", line)
    settings = dotenv_values(store.root / "mlflow.env")
    assert (
        settings["MLFLOW_HOST"] == "127.0.0.1"
        and settings["MLFLOW_BACKEND_STORE_URI"] == f"sqlite:///{store.root}/mlflow.db"
    )
    assert settings["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == settings["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] == "false"
    assert not (store.root / "mlflow.db").exists()


def test_a_full_disk_leaves_no_half_made_database(tmp_path, monkeypatch):
    """MLflow makes its tables in some forty steps; those of a database that was left in between would clash later."""
    from mlflow.store.db import utils

    world = World(tmp_path)
    plan = world.plan("one", methods=("shared",))
    upgrade = utils._upgrade_db

    def fail(engine):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(utils, "_upgrade_db", fail)
    with pytest.raises(UserError, match="cannot be written"):
        world.publish(plan)
    assert not world.store.mlflow_paths["database"].exists() and not any(world.store.scratch_folder.iterdir())
    monkeypatch.setattr(utils, "_upgrade_db", upgrade)
    world.publish(plan)
    assert len(world.runs(plan)) == 1


@pytest.mark.slow
def test_two_stores_share_one_new_database(tmp_path):
    """Both make its tables at the same moment; neither fails, and every run is there once."""
    names = ("a", "b")
    for name in names:
        (tmp_path / f"{name}.toml").write_text(
            "seeds = 1\ncontrols = false\n" + TASK.format(n_users=20) + METHOD.format("shared")
        )
    uri = f"sqlite:///{tmp_path / 'shared.db'}"
    command = [sys.executable, "-m", "harness.cli", "run", "--local", "--mlflow", uri]
    running = [
        subprocess.Popen(
            [*command, tmp_path / f"{name}.toml", "--store", tmp_path / name], stderr=subprocess.PIPE, text=True
        )
        for name in names
    ]
    said = [process.communicate(timeout=300)[1] for process in running]
    assert [process.returncode for process in running] == [0, 0] and "cannot be written" not in "".join(said), said
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    for name in names:
        experiment = client.get_experiment_by_name(f"manyminds/{name}")
        assert len(client.search_runs([experiment.experiment_id])) == 2


@pytest.mark.slow
def test_a_server_holds_each_row_once_too(tmp_path):
    """A server's interface can do less than a database: a run that cannot be updated is only marked as deleted."""
    world = World(tmp_path)
    plan = world.plan("served")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{free.getsockname()[1]}"
    backend = ["--backend-store-uri", f"sqlite:///{tmp_path / 'served.db'}", "--workers", "1"]
    place = ["--artifacts-destination", tmp_path / "served", "--port", uri.rpartition(":")[2]]
    command = [Path(sys.executable).with_name("mlflow"), "server", *backend, *place]
    with open_process(command) as process:
        deadline = time.monotonic() + 100
        while not is_served(uri) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.5)
        publisher = Publisher(plan, world.store, uri)
        publisher.publish_trials(list(plan.trials))
        publisher.publish_everything()
        assert not publisher.down and publisher.command_to_open().startswith(f"{uri}/#/experiments/")
        from mlflow import MlflowClient

        world.client = MlflowClient(tracking_uri=uri)
        before = ids(world.runs(plan))
        more = world.plan("served", methods=("shared", "spectral", "oracle", "per_user"))
        Publisher(more, world.store, uri).publish_everything()
        runs = world.runs(more)
        assert before.items() <= ids(runs).items() and len(runs) == 4 and world.deleted(more) == []
        seeds = world.plan("served", seeds=4)
        Publisher(seeds, world.store, uri).publish_everything()
        assert {run.info.run_id for run in world.deleted(seeds)} == set(before.values())
        (board,) = world.runs(seeds, "board").values()
        assert len(world.table(board, "leaderboard.json")) == 3


def is_served(uri):
    with contextlib.suppress(OSError), urllib.request.urlopen(f"{uri}/health", timeout=2) as answer:
        return answer.status == 200
    return False


@contextlib.contextmanager
def open_process(command):
    """Run a command in a group of processes of its own, which ends with the block."""
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True, text=True
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=30)
