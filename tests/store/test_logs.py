"""Log files of runs: their content, that they appear only when something is logged, and that they stop no run."""

import json
import logging
import sys

import pytest

from harness.cli import main
from harness.store.logs import current_run_name, log_files, log_to_store, run_name
from harness.store.store import Store

LOG = logging.getLogger("harness.somewhere")
FAILS = '''"""Fails."""
from dataclasses import dataclass
from harness.methods.chance import Chance

@dataclass(frozen=True)
class Fails(Chance):
    def fit(self, train, validation, run):
        raise ArithmeticError("nothing adds up")
'''


def test_a_log_holds_what_was_logged_within_it_once(tmp_path):
    store = Store(tmp_path)
    with log_to_store(store, "run"), log_to_store(store, "run"):
        LOG.info("inside")
        LOG.debug("too small to keep")
        assert current_run_name() == "run"
    LOG.warning("outside")
    (file,) = log_files(store, "run")
    assert file.read_text().count("inside") == 1 and "harness.somewhere" in file.read_text()
    assert "outside" not in file.read_text() and "too small" not in file.read_text()
    assert current_run_name() == ""


def test_a_run_that_logs_nothing_leaves_no_file(tmp_path):
    with log_to_store(Store(tmp_path), "quiet"):
        pass
    assert log_files(Store(tmp_path), "quiet") == []


def test_workers_logs_belong_to_their_run(tmp_path):
    store = Store(tmp_path)
    for name in ("run", "run.worker-0-host-7", "running"):
        with log_to_store(store, name):
            LOG.info(name)
            assert current_run_name() == name.partition(".")[0]
    assert [file.name for file in log_files(store, "run")] == ["run.log", "run.worker-0-host-7.log"]


def test_a_log_that_cannot_be_written_stops_nothing(tmp_path):
    (tmp_path / "logs").write_text("a file in the folder's place")
    with log_to_store(Store(tmp_path), "run"):
        LOG.info("lost, and that is all")


def test_a_failed_trial_points_to_its_log(tmp_path, monkeypatch, capsys):
    """`run` points to `show`, which points to the log file with the line that says why the trial failed."""
    (tmp_path / "fails.py").write_text(FAILS)
    suite = tmp_path / "suite.toml"
    task = '{ name = "low_rank", n_users = 20, new_users = 10, pairs_per_user = 20, shots = [0, 4], queries = 10 }'
    suite.write_text(f'seeds = 1\ncontrols = false\ntasks = [{task}]\nmethods = [{{ name = "fails" }}]')

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["manyminds", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code or 0, capsys.readouterr()

    where = ["--store", tmp_path / "store", "--plugin", tmp_path / "fails.py"]
    code, _ = call("run", suite, "--local", *where)
    assert code == 1
    store = Store(tmp_path / "store")
    (key,) = store.committed_keys("failures")
    assert store.read_failure(key)["log"] == run_name()
    code, said = call("show", key, *where)
    (file,) = log_files(store, run_name())
    assert code == 0 and str(file) in said.out and "ArithmeticError" in said.out
    text = file.read_text()
    assert f"trial {key} fails on low_rank, seed 0: failed" in text and "ArithmeticError: nothing adds up" in text
    assert json.loads(call("show", key, "--json", *where)[1].out)["log"] == run_name()


def test_a_trial_whose_file_is_lost_is_reported_not_a_traceback(tiny, monkeypatch, capsys):
    """After a damaged file is removed, as the store's hint says, `show` reports what is missing and what to do."""
    _, plan, store = tiny
    trial = plan.trials[0]
    store.object_path(store.read_manifest("trials", trial.key), "scores.arrow").unlink()
    monkeypatch.setattr(sys, "argv", ["manyminds", "show", trial.key, "--store", str(store.root)])
    with pytest.raises(SystemExit) as ended:
        main()
    said = " ".join(capsys.readouterr().err.split())
    assert (
        ended.value.code == 2
        and f"a file of the trial {trial.key} is gone" in said
        and "hint: run its suite again" in said
    )
