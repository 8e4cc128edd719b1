"""True causes: a trial that takes too long, processes of Ray that die, nodes that are lost, memory that is full."""

import os

os.environ["RAY_worker_niceness"] = (
    "0"  # Ray's default of 15 would starve workers beside other processes; read when Ray starts
)

import contextlib
import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from harness.errors import UserError
from harness.on_ray import trials as trials_module
from harness.on_ray import watch
from harness.on_ray.causes import cause_in_words
from harness.on_ray.deaths import DeathCounter
from harness.on_ray.marks import DEFAULT_TRIAL_MINUTES, GroupMarks
from harness.on_ray.plain import trial_as_dict
from harness.registry import PROJECT_ROOT
from tests.on_ray.test_trials import fits, ready, unfinished_of, wait_for

ray = trials_module.ray  # imported after the settings that it reads
pytestmark = pytest.mark.timeout(600)

FULL_MEMORY = """Failure # 1 (occurred at 2026-11-30_09-08-29)
1 worker(s) were killed due to the node running low on memory. Memory on the node (IP: 10.0.0.7, ID: 9348) was \
62.10GB used / 64.00GB limit (0.970312)
Ray killed 1 worker(s) based on the killing policy
Top 10 memory users: PID\tMEM(GB)\tCOMMAND
6852\t55.20\t/usr/bin/another --program
9082\t0.12\tray::TrainController.run
Refer to the documentation on how to address the out of memory issue: https://docs.ray.io
"""
DEAD_ACTOR = """The actor died unexpectedly before finishing this task.
\tclass_name: RayTrainWorker
\tactor_id: 497a
\tpid: 7267
\tnamespace: 069e
\tip: 10.0.0.7
The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR
"""


@pytest.mark.ray_cluster
def test_a_trial_that_takes_too_long_fails_alone(tmp_path):
    """A method that sleeps, and one that holds the interpreter's lock, too: the other trials run as ever."""
    store, trials, plugin = ready(tmp_path, "hanging", ["hanging", "per_user"])
    trials_module.run_trials_on_ray(trials, store, [plugin], 2, trial_minutes=0.2)
    late = unfinished_of(trials, store)
    assert [(t.method.name, t.seed) for t in late] == [("hanging", 1), ("hanging", 2)]
    for note in (store.read_failure(t.key) for t in late):
        assert "longer than 0.2 minutes, the limit that --trial-minutes sets" in note["reason"]
        assert "hanging.py" in note["trace"] and "in fit" in note["trace"]


@pytest.mark.ray_cluster
@pytest.mark.parametrize(
    ("process", "said"), [("TrainController", "Ray Train's process"), ("ImplicitFunc", "Ray Tune's process")]
)
def test_the_death_of_a_leading_process_is_said_and_fails_no_trial(tmp_path, process, said, capsys):
    store, trials, plugin = ready(tmp_path, "counted", ["counted"])
    (tmp_path / "hold").touch()

    environments = []

    def kill(n: int) -> None:
        if environments:
            return
        wait_for(lambda: len(fits(tmp_path)) > 5)
        (controller,) = children(os.getpid(), "ray::TrainController")
        environments.append(controller.environ())
        (child,) = children(os.getpid(), f"ray::{process}")
        child.kill()

    with pytest.raises(UserError) as caught:
        trials_module.run_trials_on_ray(trials, store, [plugin], 1, on_progress=kill)
    left = unfinished_of(trials, store)
    assert f"{len(left)} trials did not run: {said} that leads a group of trials died" in caught.value.message
    assert not capsys.readouterr().out  # Ray reports dead processes there
    # no health check may fail before a trial's limit: a method that holds the interpreter's lock answers none
    assert float(environments[0]["RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"]) > 60 * DEFAULT_TRIAL_MINUTES
    assert 0 < len(left) < 12 and not any(store.read_failure(t.key) for t in left)


@pytest.mark.ray_cluster
def test_the_death_of_rays_control_service_ends_the_run_with_a_board(tmp_path):
    _, _, plugin = ready(tmp_path, "counted", ["counted"])
    (tmp_path / "hold").touch()
    words = ["run", tmp_path / "suite.toml", "--store", tmp_path / "store", "--plugin", plugin, "--workers", "1"]
    command = [sys.executable, "-m", "harness.cli", *words, "--json"]
    run = subprocess.Popen(command, stdout=-1, stderr=-1, text=True, cwd=PROJECT_ROOT)
    wait_for(lambda: len(fits(tmp_path)) > 5)
    (service,) = children(run.pid, "gcs_server")
    service.kill()
    out, err = run.communicate(timeout=240)
    assert run.returncode == 2 and "Traceback" not in err, err
    assert "7 trials did not run: Ray's control service (GCS) has not answered for 30 s" in err and "\n\nhint: " in err
    assert len(json.loads(out)["tasks"][0]["rows"]) == 2


def children(parent: int, name: str) -> list[psutil.Process]:
    """Return the living processes whose name begins so, among those that the parent has started."""
    started = psutil.Process(parent).children(recursive=True)
    return [child for child in started if child.status() != psutil.STATUS_ZOMBIE and child.name().startswith(name)]


def test_a_deadline_ends_a_process_that_holds_the_interpreters_lock(tmp_path):
    code = """
import ctypes, sys
from harness.on_ray.marks import DEFAULT_TRIAL_MINUTES, GroupMarks
def sleeps_locked(): ctypes.PyDLL(None).sleep(60)
with GroupMarks(sys.argv[1]).running(0, "quick", 1): pass
with GroupMarks(sys.argv[1]).running(3, "slow", 0.005): sleeps_locked()
"""
    assert subprocess.run([sys.executable, "-c", code, tmp_path], cwd=PROJECT_ROOT, timeout=50).returncode == 1
    key, trace = GroupMarks(tmp_path).interrupted_trial(3)
    assert key == "slow" and "sleeps_locked" in trace
    assert GroupMarks(tmp_path).interrupted_trial(0) == ("", "")  # a trial that ended leaves no mark


def group_of(tmp_path: Path, in_team: bool = False):
    """Return a store, four trials, the marks of their group, and the callback that counts its deaths."""
    store, trials, _ = ready(tmp_path, "deadly", ["deadly"])
    work = {"store": str(store.root), "marks": str(tmp_path / "marks"), "log": "", "trial_minutes": 2.0}
    described = [trial_as_dict(t) for t in trials[:4]]
    counter = DeathCounter(work | {"trials": described, "in_team": in_team})
    return store, trials[:4], GroupMarks(tmp_path / "marks"), counter


def die(marks: GroupMarks, *keys: str, trace: str = "") -> None:
    """Leave the marks of workers that ran these trials."""
    marks.folder.mkdir(exist_ok=True)
    for rank, key in enumerate(keys):
        (marks.folder / f"worker-{rank}").write_text(f"{key}\n{trace}")


def test_only_trials_whose_own_worker_died_fail(tmp_path):
    store, (deadly, innocent, other, _), marks, counter = group_of(tmp_path)
    for death in range(4):
        die(marks, deadly.key, innocent.key)
        with contextlib.nullcontext() if death < 3 else pytest.raises(UserError, match="workers died 4 times"):
            counter.after_exception(None, {0: RuntimeError(DEAD_ACTOR)})
        turns = [trials_module._turn_of_trial(store, t, marks) for t in (deadly, innocent, other)]
        first, last, done = trials_module.FIRST, trials_module.LAST, trials_module.DONE
        assert turns == [last if death < 3 else done, first, first]
    reason = store.read_failure(deadly.key)["reason"]
    assert "was running when a worker died, 4 times" in reason and "(process 7267 on 10.0.0.7)" in reason


def test_a_policy_that_kills_its_team_fails_and_the_team_goes_on(tmp_path):
    store, (deadly, *others), marks, counter = group_of(tmp_path, in_team=True)
    for _ in range(4):
        assert not store.read_failure(deadly.key)
        die(marks, deadly.key, deadly.key)
        counter.after_exception(None, {0: RuntimeError(DEAD_ACTOR), 1: RuntimeError(DEAD_ACTOR)})
    assert "was running when a worker died, 4 times" in store.read_failure(deadly.key)["reason"]
    assert not any(store.read_failure(t.key) for t in others)


def test_late_trials_and_nodes_taken_back_are_no_deaths(tmp_path):
    store, (late, innocent, *_), marks, counter = group_of(tmp_path)
    preempted = RuntimeError()
    preempted.health_check_failure = ray.exceptions.RayActorError(preempted=True)
    for _ in range(5):
        die(marks, late.key, trace="Timeout (0:02:00)!\n  in fit\n")
        counter.after_exception(None, {0: RuntimeError(DEAD_ACTOR)})
        die(marks, innocent.key)
        counter.after_exception(None, {0: preempted})
    assert "took longer than 2 minutes" in store.read_failure(late.key)["reason"]
    assert not store.read_failure(innocent.key) and counter.deaths == 0


def test_causes_are_one_line():
    assert cause_in_words(FULL_MEMORY) == (
        "the memory of the node 10.0.0.7 was full (62.10GB used / 64.00GB limit), so Ray killed processes there; "
        "most was used by: 55.20 GB by /usr/bin/another --program; 0.12 GB by ray::TrainController.run"
    )
    assert cause_in_words(RuntimeError(DEAD_ACTOR)) == "a worker died (process 7267 on 10.0.0.7)"
    node = DEAD_ACTOR.replace("RayTrainWorker", "TrainController").replace("worker process has", "node has")
    assert cause_in_words(node).endswith("that leads a group of trials died (process 7267 on 10.0.0.7), with its node")
    assert cause_in_words(ValueError("first\nlast\n")) == "last" and cause_in_words(ValueError()) == "ValueError()"


def test_errors_that_are_texts_are_said(tmp_path, monkeypatch):
    """What Tune lists as an error need not be an exception."""
    store, trials, plugin = ready(tmp_path, "counted", ["counted"])
    monkeypatch.setattr(trials_module.session, "ray_session", lambda *_: contextlib.nullcontext(str(tmp_path)))
    monkeypatch.setattr(trials_module, "plan_groups", lambda *_: [trials_module.Group(trials, [], 1, False, False)])
    monkeypatch.setattr(trials_module, "_schedule_groups", lambda *_: [FULL_MEMORY])
    with pytest.raises(UserError, match="12 trials did not run: the memory of the node 10.0.0.7 was full"):
        trials_module.run_trials_on_ray(trials, store, [plugin], 1)


def node(number: str, alive: bool = True, cores: int = 2) -> dict:
    return {
        "NodeID": number,
        "Alive": alive,
        "NodeManagerHostname": f"host-{number}",
        "NodeManagerAddress": f"10.0.0.{number}",
        "Resources": {"CPU": cores} if alive else {},
    }


@pytest.fixture
def quick(monkeypatch):
    """Shorten all waiting."""
    for name, seconds in (("POLL", 0.02), ("ASK", 0.02), ("MAX_SILENT", 0.5), ("MAX_SHORT", 0.5)):
        monkeypatch.setattr(watch, f"{name}_SECONDS", seconds)


def test_watched_work_returns_or_raises_as_it_would(quick, monkeypatch):
    monkeypatch.setattr(ray, "nodes", lambda: [node("1")])
    looks = []
    assert watch.call_watched(lambda: time.sleep(0.2) or 7, lambda: looks.append(0)) == 7 and len(looks) > 2
    with pytest.raises(ZeroDivisionError):
        watch.call_watched(lambda: 1 / 0)


def test_a_control_service_that_does_not_answer_ends_the_work(quick, monkeypatch):
    never = threading.Event()
    monkeypatch.setattr(ray, "nodes", never.wait)
    with pytest.raises(watch.RayLostError, match="control service"):
        watch.call_watched(never.wait)
    never.set()


def test_lost_nodes_are_named_if_no_work_can_go_on(quick, monkeypatch, capsys):
    groups = [trials_module.Group([], [], workers, False, False) for workers in (3, 4)]

    def shortage(nodes: list[dict]) -> str:
        return trials_module._shortage(groups, nodes)

    answers = [[node("1"), node("2")], *[[node("1"), node("2", alive=False)]] * 5, [node("1"), node("3")]]
    monkeypatch.setattr(ray, "nodes", lambda: answers.pop(0) if len(answers) > 1 else answers[0])
    assert watch.call_watched(lambda: time.sleep(1) or 7, shortage=shortage) == 7  # a node returns in time
    assert "lost: host-2 (10.0.0.2)" in capsys.readouterr().err
    answers = [[node("1"), node("2")], [node("1"), node("2", alive=False)]]
    never = threading.Event()
    with pytest.raises(watch.RayLostError) as caught:
        watch.call_watched(never.wait, shortage=shortage)
    assert "4 workers need 4 cores, and the cluster has 2; lost: host-2 (10.0.0.2)" in caught.value.message
    never.set()


def test_a_failure_that_another_driver_takes_back_is_no_death(tmp_path):
    """Two drivers on one store: a trial that failed here has no record, because the other one is trying it again."""
    store, trials, _ = ready(tmp_path, "raising", ["raising"])
    progress, groups = [], []
    seen = watch.StoreWatch(store, [trials[:2], trials[2:]], progress.append, groups.append)
    seen.ended.put((0, True))
    seen.ended.put((1, False))
    seen.look()
    assert progress == [2] and groups == [trials[:2], trials[2:]] and seen.pending == {t.key for t in trials[2:]}
