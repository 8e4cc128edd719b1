"""Searches on Ray: Tune finds what one process finds, tries nothing twice, and survives a worker."""

import os
import signal
import subprocess
import sys
import time

import pytest

from harness.on_ray.searches import AllSearches, OpenSearch, Searcher
from harness.registry import PROJECT_ROOT
from harness.store.store import Store
from harness.trials.finish import finish_trials, try_setting
from harness.trials.plan import make_plan
from harness.trials.suite import read_suite
from tests.small import SMALL_TASK

SUITE = f"""
seeds = 3
controls = false
[tune]
trials = 10
{SMALL_TASK}[[methods]]
name = "shared"
[[methods]]
name = "rfm"
[[methods]]
name = "pref"
"""


@pytest.fixture
def suite(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text(SUITE)
    return file


def searching(suite, store):
    return [trial for trial in make_plan(read_suite(suite), store).trials if trial.method.searches]


def test_tune_is_given_every_setting_once_whatever_order_they_end_in(suite, tmp_path):
    store = Store(tmp_path / "store").open()
    trials = searching(suite, store)[:2]
    algorithm = AllSearches([OpenSearch(trial, store) for trial in trials])
    running, given, number = {}, [], 0
    while True:
        number += 1
        proposed = algorithm.suggest(str(number))
        if proposed == Searcher.FINISHED:
            break
        if proposed is not None:
            running[str(number)] = proposed
            given.append((proposed["search"], str(proposed["setting"])))
            continue
        assert running, "nothing is being tried, and nothing is proposed"
        name, last = running.popitem()  # the latest ends first
        try_setting(trials[last["search"]], last["setting"], store)
        algorithm.on_trial_complete(name, {})
    assert len(given) == len(set(given)) == 20
    assert all(not each.settings and len(each.search.tried) == 10 for each in algorithm.searches)
    again = AllSearches([OpenSearch(trial, store) for trial in trials])
    assert again.suggest("1") == Searcher.FINISHED


def test_a_search_whose_worker_is_lost_is_left_to_its_trial(suite, tmp_path):
    store = Store(tmp_path / "store").open()
    trials = searching(suite, store)[:2]
    algorithm = AllSearches([OpenSearch(trial, store) for trial in trials])
    first = algorithm.suggest("1")
    algorithm.on_trial_complete("1", error=True)
    assert first["search"] == 0 and algorithm.suggest("2")["search"] == 1
    assert not algorithm.searches[0].settings and algorithm.searches[1].settings


@pytest.mark.ray_cluster
def test_ray_and_one_process_choose_the_same(suite, tmp_path):
    """Also where the run on Ray is killed in the middle of its searches, and repeated."""
    alone = Store(tmp_path / "alone").open()
    for _ in finish_trials(make_plan(read_suite(suite), alone).trials, alone):
        pass
    command = [
        sys.executable,
        "-m",
        "harness.cli",
        "run",
        str(suite),
        "--store",
        str(tmp_path / "ray"),
        "--workers",
        "2",
    ]
    tried = tmp_path / "ray" / "searches"
    killed = subprocess.Popen(command, cwd=PROJECT_ROOT, start_new_session=True, stderr=subprocess.DEVNULL)
    waited = time.monotonic()
    while not (tried.is_dir() and len(list(tried.iterdir())) >= 5) and time.monotonic() - waited < 120:
        time.sleep(0.05)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    before = {file.name: file.stat().st_mtime_ns for file in tried.iterdir()}
    assert 5 <= len(before) < 60
    subprocess.run(command, cwd=PROJECT_ROOT, check=True, capture_output=True)
    on_ray = Store(tmp_path / "ray")
    assert {name: (tried / name).stat().st_mtime_ns for name in before} == before
    assert on_ray.committed_keys("searches") == alone.committed_keys("searches")
    for trial in make_plan(read_suite(suite), alone).trials:
        here, there = (store.read_manifest("trials", trial.key) for store in (alone, on_ray))
        assert here["files"] == there["files"]
        for name in ("setting", "losses"):
            assert here["facts"]["chosen"].get(name) == there["facts"]["chosen"].get(name)


SLEEPY = '''"""per_user, which never ends at a small scale; for a test."""
import time
from dataclasses import dataclass
from harness.methods.per_user import PerUser
from harness.search_space import OneOf

@dataclass(frozen=True)
class Sleepy(PerUser):
    search_space = {"scale": OneOf((0.1, 1.0))}

    def fit(self, train, validation, run):
        if self.scale == 0.1:
            time.sleep(600)
        return super().fit(train, validation, run)
'''


@pytest.mark.ray_cluster
def test_a_setting_that_never_ends_fails_its_trial_and_no_other(tmp_path):
    (tmp_path / "sleepy.py").write_text(SLEEPY)
    (tmp_path / "mine.toml").write_text(
        SUITE.replace("seeds = 3", "seeds = 1").replace('name = "rfm"', 'name = "sleepy"')
    )
    command = [sys.executable, "-m", "harness.cli", "run", "mine.toml", "--plugin", "sleepy.py", "--workers", "2"]
    environment = os.environ | {"PYTHONPATH": str(PROJECT_ROOT)}
    done = subprocess.run(
        [*command, "--trial-minutes", "0.2"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 1, done.stderr
    failed = [line for line in done.stderr.splitlines() if line.startswith("failed")]
    assert len(failed) == 1 and "tuned on low_rank" in failed[0]
    assert len(Store(tmp_path / "store").committed_keys("trials")) == 4
