"""Workers that run one trial together: the same result as one worker alone, also after failures and kills."""

import os

os.environ["RAY_worker_niceness"] = (
    "0"  # Ray's default of 15 would starve workers beside other processes; read when Ray starts
)

import contextlib
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import safetensors.numpy
import torch

from harness import registry
from harness.cli import main
from harness.errors import UserError
from harness.models import small
from harness.on_ray import session
from harness.on_ray import trials as trials_module
from harness.registry import PROJECT_ROOT
from harness.store.store import Store
from harness.trials.finish import finish_trial, finish_trials
from harness.trials.plan import make_plan, unfinished_trials
from harness.trials.suite import read_suite
from harness.trials.trial import Trial

pytestmark = pytest.mark.timeout(600)  # far below on_ray.trials.TEAM_TIMEOUT_SECONDS: nothing here may wait that long

SUITE = """
seeds = %d
controls = false
tasks = [{ %s }]
methods = [%s]
"""
PEOPLE = 'name = "low_rank", n_users = 30, new_users = 10, pairs_per_user = 30'
TEXT = """name = "attributes", kinds = 2, n_users = 4, new_users = 2, pairs_per_user = 20, pairs = 30, pool = 12,
shots = [0, 2], queries = 10, n_candidates = 2, choice_prompts = 4, encoder = "numbers" """.replace("\n", " ")
TEAM = '''"""A linear reward by descent on the gradient of all workers' slices, saved every ten steps; steps are in a log.

While there is a file `hold`, the last worker waits at step 25.
"""
import os, time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar
import torch
from harness import parallel
from harness.errors import UserError
from harness.learning.linear import LinearMethod

LATE = {
    "full": UserError("the store is full", "free some space"),
    "disk": OSError(28, "No space left on device"),
    "own": ArithmeticError("not a number"),
}

@dataclass(frozen=True)
class Team(LinearMethod):
    trains_model: ClassVar[bool] = True
    fails: str = ""

    def fit(self, train, validation, run):
        x, y = torch.from_numpy(train.gap).double(), torch.from_numpy(train.label).double()
        mine = slice(parallel.worker_rank(), None, parallel.worker_count())
        weights, first, saved = torch.zeros(x.shape[1], dtype=torch.float64), 0, run.checkpoint / "state.pt"
        if saved.exists():
            weights, first = torch.load(saved)
        for step in range(first, 40):
            if self.fails == "all" and step == 5:
                raise ArithmeticError("all fail")
            if self.fails in LATE and step == 15:
                raise LATE[self.fails]
            if self.fails == "one" and step == 5 and parallel.worker_rank() == 1:
                raise ArithmeticError("one fails")
            weights = weights - parallel.sum_over_workers(x[mine].T @ (torch.sigmoid(x[mine] @ weights) - y[mine])) / len(x)
            if (step + 1) % 10 == 0 and parallel.worker_rank() == 0:
                torch.save((weights, step + 1), saved.with_suffix(".part"))
                os.replace(saved.with_suffix(".part"), saved)
            with open(Path(__file__).with_name("steps.log"), "a") as log:
                log.write(f"{os.getpid()} {parallel.worker_rank()} {parallel.worker_count()} {step}\\n")
            while step == 25 and parallel.worker_rank() == parallel.worker_count() - 1 and Path(__file__).with_name("hold").exists():
                time.sleep(0.05)
        return {"mean": weights, "root": torch.zeros(len(weights), 0, dtype=torch.float64)}
'''
WORKER = """
from tests.on_ray.test_teams import ready
from harness.trials.finish import finish_trials
from harness.store.store import Store
from torch import distributed
commit = Store.commit
def told(self, *args):
    print("committed", distributed.get_rank())
    return commit(self, *args)
Store.commit = told
distributed.init_process_group("gloo")
store, trials, _ = ready({folder!r}, 1, {methods!r}, {task!r})
for trial, good in finish_trials(trials, store):
    print(trial.key, good)
"""


def ready(folder: str | Path, seeds: int, methods: str, task: str = PEOPLE) -> tuple[Store, list[Trial], Path]:
    """A store under the folder with a small suite prepared, its unfinished trials, and the plug-in."""
    folder = Path(folder)
    folder.mkdir(exist_ok=True)
    plugin, suite = folder / "team.py", folder / "suite.toml"
    if not plugin.exists():  # otherwise another process may be reading it
        plugin.write_text(TEAM)
        suite.write_text(SUITE % (seeds, task, methods))
    registry.add_plugins([plugin])
    store = Store(folder / "store").open()
    return store, unfinished_trials(make_plan(read_suite(suite), store).trials, store), plugin


def found(store: Store, trial: Trial) -> dict[str, np.ndarray]:
    """Return the trial's predictions, committed once."""
    assert not store.has_diverged(trial.key)
    return safetensors.numpy.load(
        store.read_verified(store.read_manifest("trials", trial.key), "predictions.safetensors")
    )


def texts(store: Store, trial: Trial) -> list[str]:
    """Return what the trial's policy wrote."""
    with pa.ipc.open_file(store.read_verified(store.read_manifest("trials", trial.key), "written.arrow")) as file:
        return file.read_all()["response"].to_pylist()


def steps(folder: Path) -> list[list[int]]:
    """Return process, rank, size and step of every step so far."""
    log = folder / "steps.log"
    return [[int(word) for word in line.split()] for line in log.read_text().splitlines()] if log.exists() else []


def two_processes(folder: Path, methods: str, task: str) -> list[list[str]]:
    """Finish the suite by processes together, without Ray; return the output of each."""
    ready(folder, 1, methods, task)
    environment = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    command = [sys.executable, "-c", WORKER.format(folder=str(folder), methods=methods, task=task)]
    workers = [
        subprocess.Popen(command, cwd=PROJECT_ROOT, env=environment | {"RANK": rank}, stdout=-1, text=True)
        for rank in "01"
    ]
    return [worker.communicate(timeout=280)[0].splitlines() for worker in workers]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def clean(store: Store) -> bool:
    """Return whether no checkpoints or markers of running trials are left."""
    return not any(any((store.root / name).iterdir()) for name in ("tmp", "checkpoints"))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with session.ray_session(Store(tmp_path_factory.mktemp("ray")).open(), 2):
        yield


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> dict[str, dict[str, np.ndarray]]:
    """Return what this process finds, by key."""
    store, trials, _ = ready(tmp_path_factory.mktemp("alone"), 1, '{ name = "team" }, { name = "shared" }')
    assert all(good for _, good in finish_trials(trials, store)) and clean(store)
    return {trial.key: found(store, trial) for trial in trials}


@pytest.fixture(scope="module")
def beside(cluster, tmp_path_factory) -> tuple[Store, list[Trial], Path]:
    """Policies trained by two workers on two cores that another trial wants as well."""
    folder, groups = tmp_path_factory.mktemp("beside"), []
    store, trials, plugin = ready(folder, 1, '{ name = "team", fails = ["one", "all", ""] }, { name = "shared" }')
    trials_module.run_trials_on_ray(trials, store, [plugin], 2, on_group=groups.append, workers_per_policy=2)
    assert [len(group) for group in groups] == [1]  # the others ended last, which the caller sees
    return store, trials, folder


def test_two_workers_find_what_one_does_beside_trials_on_cores(alone, beside):
    store, trials, folder = beside
    assert len(alone) == 2 and clean(store) and store.committed_keys("trials") == alone.keys()
    for trial in trials:
        if trial.key in alone:
            for name, values in found(store, trial).items():
                np.testing.assert_allclose(values, alone[trial.key][name], atol=1e-5)
            workers = 2 if trial.method.name == "team" else 1
            assert store.read_manifest("trials", trial.key)["facts"]["world_size"] == workers
    ended = sorted(line[1:] for line in steps(folder) if line[3] >= 5)
    assert ended == [[rank, 2, step] for rank in range(2) for step in range(5, 40)]


def test_a_failure_of_one_worker_or_all_fails_that_trial_alone(beside):
    store, trials, folder = beside
    reasons = {
        t.method.fails: (store.read_failure(t.key) or {}).get("reason") for t in trials if t.method.name == "team"
    }
    assert reasons == {"one": "ArithmeticError: one fails", "all": "ArithmeticError: all fail", "": None}
    assert (
        len({pid for pid, *_ in steps(folder)}) == 4
    )  # the group started again once, after one worker alone had failed


def test_a_killed_worker_costs_at_most_what_was_not_saved(beside, cluster, tmp_path):
    store, trials, plugin = ready(tmp_path, 1, '{ name = "team" }')
    (hold := tmp_path / "hold").touch()

    def kill() -> None:
        while not (at := [pid for pid, rank, _, step in steps(tmp_path) if (rank, step) == (1, 25)]):
            time.sleep(0.1)
        os.kill(at[0], signal.SIGKILL)
        hold.unlink()

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    trials_module.run_trials_on_ray(trials, store, [plugin], 2, workers_per_policy=2)
    killer.join()
    expected = found(beside[0], trials[0])
    assert all((values == expected[name]).all() for name, values in found(store, trials[0]).items())
    again = [step for _, rank, _, step in steps(tmp_path) if rank == 1]
    assert again == [*range(26), *range(20, 40)]  # saved after step 19
    assert clean(store)


@pytest.mark.slow
def test_two_processes_train_the_policy_that_one_trains(tmp_path):
    """Two processes of plain torch.distributed train the same policy as one, also in batches with unequal shares."""
    small.build_small_model(tmp_path / "lm", steps=0)
    model = f'model = "transformers:{tmp_path}/lm", steps = 8, max_tokens = 6'
    methods = f'{{ name = "dpo", batch = 7, {model} }}, {{ name = "np_dpo", targets = 3, batch = 9, {model} }}'
    store, trials, _ = ready(tmp_path / "one", 1, methods, TEXT)
    assert all(good for _, good in finish_trials(trials, store)), [store.read_failure(trial.key) for trial in trials]
    first, second = two_processes(tmp_path / "two", methods, TEXT)
    good = {f"{trial.key} True" for trial in trials}
    assert good < set(first) == good | {"committed 0"} and set(second) == good
    other = Store(tmp_path / "two" / "store")
    for trial in trials:
        assert other.read_manifest("trials", trial.key)["facts"]["world_size"] == 2 and clean(other)
        expected, predicted = found(store, trial), found(other, trial)
        assert max(np.abs(values).max() for values in expected.values()) > 0.02  # it has learned something
        for name, values in expected.items():
            np.testing.assert_allclose(predicted[name], values, atol=1e-4)
        assert texts(store, trial) == texts(other, trial)


@pytest.mark.slow
def test_one_process_goes_on_from_a_checkpoint(alone, tmp_path):
    store, (trial,), _ = ready(tmp_path, 1, '{ name = "team" }')
    (hold := tmp_path / "hold").touch()
    code = "from tests.on_ray.test_teams import *; s, (t,), _ = ready(sys.argv[1], 1, '{ name = \"team\" }'); finish_trial(t, s)"
    process = subprocess.Popen([sys.executable, "-c", code, tmp_path], cwd=PROJECT_ROOT)
    while len(steps(tmp_path)) < 26:
        assert process.poll() is None
        time.sleep(0.1)
    process.kill()
    process.wait()
    hold.unlink()
    assert finish_trial(trial, store) and clean(store)
    assert [step for *_, step in steps(tmp_path)] == [*range(26), *range(20, 40)]
    assert all((values == alone[trial.key][name]).all() for name, values in found(store, trial).items())


def test_a_failed_trial_begins_anew(tmp_path):
    store, (trial,), _ = ready(tmp_path, 1, '{ name = "team", fails = "all" }')
    folder = store.root / "checkpoints" / trial.key
    folder.mkdir(parents=True)
    (folder / "state.pt").touch()  # cut short
    assert not finish_trial(trial, store)
    assert "all fail" not in store.read_failure(trial.key)["reason"]
    assert not finish_trial(trial, store)
    assert "all fail" in store.read_failure(trial.key)["reason"] and clean(store)


@pytest.mark.parametrize(("fails", "kept"), [("full", 2), ("disk", 2), ("own", 1)])
def test_only_a_failure_that_comes_again_costs_the_checkpoint(tmp_path, fails, kept):
    """The training saves at step 10 and fails at step 15; `kept`: after how many failures the checkpoint is still there."""
    store, (trial,), _ = ready(tmp_path, 1, f'{{ name = "team", fails = "{fails}" }}')
    folder = store.checkpoint_folder(trial.key)
    for times in (1, 2):
        with contextlib.suppress(UserError):
            assert not finish_trial(trial, store)
        assert (folder / "state.pt").exists() == (times <= kept)


def test_teams_hold_every_policy_once():
    seconds = {name: cost for cost, name in enumerate("abcdefg", 1)}
    for together, cores, gpus, teams in ((2, 4, 0, 2), (2, 1, 0, 1), (1, 4, 3, 3), (4, 8, 4, 1), (1, 2, 16, 7)):
        made = trials_module.make_teams(list(seconds), seconds, together, cores, gpus)
        assert len(made) == teams and sorted("".join(map("".join, made))) == list(seconds)


@pytest.mark.parametrize(
    ("there", "words", "message", "hint"),
    [
        (0, ["--require-gpu"], "there is no GPU here", "leave out --require-gpu"),
        (
            1,
            ["--require-gpu", "--workers-per-policy", 2],
            "asks for 2 GPUs, but there is only 1 GPU",
            "--workers-per-policy 1",
        ),
        (0, ["--local", "--workers-per-policy", 2], "--local is one process", "leave out"),
    ],
)
def test_what_is_not_there_is_said_at_once(monkeypatch, capsys, tmp_path, there, words, message, hint):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: there)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    (tmp_path / "suite.toml").write_text(SUITE % (1, PEOPLE, '{ name = "chance" }'))
    words = ["manyminds", "run", tmp_path / "suite.toml", "--store", tmp_path / "store", *words]
    monkeypatch.setattr(sys, "argv", list(map(str, words)))
    with pytest.raises(SystemExit) as ended:
        main()
    told = " ".join(capsys.readouterr().err.split())
    assert ended.value.code == 2 and message in told and hint in told
    assert not any((tmp_path / "store" / "tasks").iterdir())  # nothing has begun


def test_a_cluster_without_room_is_told(cluster, tmp_path):
    store, trials, plugin = ready(tmp_path, 1, '{ name = "team" }')
    with pytest.raises(UserError, match="--workers-per-policy 3 asks for 3 cores"):
        trials_module.run_trials_on_ray(trials, store, [plugin], 2, workers_per_policy=3)
