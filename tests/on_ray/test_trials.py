"""Trials on Ray: the same results as in process, for any number of workers and after kills."""

import os

os.environ["RAY_worker_niceness"] = (
    "0"  # Ray's default of 15 would starve workers beside other processes; read when Ray starts
)

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness import registry
from harness.errors import UserError
from harness.on_ray import session
from harness.on_ray import trials as trials_module
from harness.registry import PROJECT_ROOT
from harness.store.logs import log_files, log_to_store
from harness.store.store import Store
from harness.trials.finish import finish_trials
from harness.trials.plan import make_plan, unfinished_trials
from harness.trials.suite import read_suite
from harness.trials.trial import Trial

pytestmark = pytest.mark.timeout(600)

SUITE = """
seeds = 6
controls = false
tasks = [{ name = "low_rank", n_users = 30, new_users = 10, pairs_per_user = 30 }]
methods = [%s]
"""
COUNTED = '''"""per_user, with a line in a log for every fit; while there is a file `hold`, all fits after the fifth wait."""
import os, time
from dataclasses import dataclass
from pathlib import Path
from harness.methods.per_user import PerUser

@dataclass(frozen=True)
class Counted(PerUser):
    variant: int = 0

    def fit(self, train, validation, run):
        log, hold = (Path(__file__).with_name(name) for name in ("fits.log", "hold"))
        with open(log, "a") as file:
            file.write(f"{os.getpid()}\\n")
        while hold.exists() and len(log.read_text().splitlines()) > 5:
            time.sleep(0.05)
        return super().fit(train, validation, run)
'''
RAISING = '''"""Raises where the seed is odd."""
from dataclasses import dataclass
from harness.methods.chance import Chance

@dataclass(frozen=True)
class Raising(Chance):
    def fit(self, train, validation, run):
        if run.seed % 2:
            raise ArithmeticError(f"seed {run.seed} is odd")
        return super().fit(train, validation, run)
'''
FULL = '''"""Meets a store that is full."""
from dataclasses import dataclass
from harness.methods.chance import Chance
from harness.errors import UserError

@dataclass(frozen=True)
class Full(Chance):
    def fit(self, train, validation, run):
        raise UserError("the store is full", "free some space")
'''

DEADLY = '''"""Takes its worker with it where the seed is two."""
import os, signal
from dataclasses import dataclass
from harness.methods.chance import Chance

@dataclass(frozen=True)
class Deadly(Chance):
    def fit(self, train, validation, run):
        if run.seed == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().fit(train, validation, run)
'''

HANGING = '''"""Sleeps where the seed is one; where it is two, sleeps with the interpreter's lock held."""
import ctypes, time
from dataclasses import dataclass
from harness.methods.chance import Chance

@dataclass(frozen=True)
class Hanging(Chance):
    def fit(self, train, validation, run):
        if run.seed in (1, 2):
            (time.sleep if run.seed == 1 else ctypes.PyDLL(None).sleep)(3600)
        return super().fit(train, validation, run)
'''


def ready(folder: str | Path, name: str, methods: list[str]) -> tuple[Store, list[Trial], Path]:
    """A store under the folder with a small suite prepared, its unfinished trials, and the plug-in of that name."""
    folder = Path(folder)
    folder.mkdir(exist_ok=True)
    plugin = folder / f"{name}.py"
    plugin.write_text(
        {"counted": COUNTED, "raising": RAISING, "full": FULL, "deadly": DEADLY, "hanging": HANGING}[name]
    )
    registry.add_plugins([plugin])
    suite = folder / "suite.toml"
    suite.write_text(
        SUITE
        % ", ".join(
            f'{{ name = "{m}" }}' if m != "counted" else '{ name = "counted", variant = [0, 1] }' for m in methods
        )
    )
    store = Store(folder / "store").open()
    return store, unfinished_trials(make_plan(read_suite(suite), store).trials, store), plugin


def results(store: Store) -> dict[str, dict]:
    """Return the digests of each trial's predictions and scores, by key."""
    assert not [key for key in store.committed_keys("trials") if store.has_diverged(key)]
    return {key: store.read_manifest("trials", key)["files"] for key in store.committed_keys("trials")}


def fits(folder: Path) -> list[int]:
    """Return the process of every fit so far."""
    log = folder / "fits.log"
    return [int(line) for line in log.read_text().splitlines()] if log.exists() else []


def wait_for(what, seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with session.ray_session(Store(tmp_path_factory.mktemp("ray")).open(), 2):
        yield


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> dict[str, dict]:
    """Return what `counted` finds in this process."""
    store, trials, _ = ready(tmp_path_factory.mktemp("undisturbed"), "counted", ["counted"])
    assert all(good for _, good in finish_trials(trials, store))
    return results(store)


def test_any_number_of_workers_finds_what_this_process_finds(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(trials_module, "MIN_GROUP_SECONDS", 0)  # otherwise short trials like these are one group
    methods = ["chance", "per_user", "shared", "raising"]
    store, trials, plugin = ready(tmp_path / "local", "raising", methods)
    list(finish_trials(trials, store))
    expected = results(store)
    assert len(expected) == 21
    for workers in (1, 2):
        store, trials, plugin = ready(tmp_path / f"ray{workers}", "raising", methods)
        progress, groups = [], []
        with log_to_store(store, "run"):
            trials_module.run_trials_on_ray(
                trials, store, [plugin], workers, progress.append, groups.append, per_method=workers == 2
            )
        assert results(store) == expected
        assert sum(progress) == len(trials) == 24
        assert (
            len(groups) < workers
        )  # of two groups at once the one that ends first; the caller sees the last one itself
        assert {t.key for group in groups for t in group} < {t.key for t in trials}
        failed = {t.seed for t in unfinished_of(trials, store)}
        assert failed == {1, 3, 5}
        for trial in unfinished_of(trials, store):
            note = store.read_failure(trial.key)
            assert "is odd" in note["reason"] and note["log"] == "run"
            told = [file.read_text() for file in log_files(store, note["log"]) if "worker" in file.name]
            assert len(told) == workers and any(f"trial {trial.key}" in text and "is odd" in text for text in told)


def unfinished_of(trials: list[Trial], store: Store) -> list[Trial]:
    return [t for t in trials if t.key not in store.committed_keys("trials")]


def test_a_killed_worker_costs_at_most_the_running_trials(cluster, undisturbed, tmp_path):
    store, trials, plugin = ready(tmp_path, "counted", ["counted"])
    hold = tmp_path / "hold"
    hold.touch()

    def kill(n: int) -> None:
        if hold.exists():
            wait_for(lambda: len(set(fits(tmp_path)[-2:])) == 2 and len(fits(tmp_path)) > 5)
            os.kill(fits(tmp_path)[-1], signal.SIGKILL)
            hold.unlink()

    trials_module.run_trials_on_ray(trials, store, [plugin], 2, on_progress=kill)
    assert results(store) == undisturbed
    assert len(trials) < len(fits(tmp_path)) <= len(trials) + 2


def test_a_trial_that_kills_its_worker_fails_alone(cluster, tmp_path):
    store, trials, plugin = ready(tmp_path, "deadly", ["deadly", "per_user"])
    trials_module.run_trials_on_ray(trials, store, [plugin], 1)
    (lost,) = unfinished_of(trials, store)
    assert lost.method.name == "deadly" and lost.seed == 2
    assert "was running when a worker died" in store.read_failure(lost.key)["reason"]


LOOK = """
import os, psutil
from harness.on_ray.session import ray_session
from harness.store.store import Store
with ray_session(Store({store!r}).open(), 1) as results:
    folder, this = os.path.dirname(results), psutil.Process()
    for process in [this, *this.children(recursive=True)]:
        for connection in process.net_connections("tcp"):
            if connection.status == "LISTEN":
                print("listens", connection.laddr.ip)
    print(oct(os.stat(folder).st_mode & 0o777))
    print(folder, flush=True)
    {then}
"""


@pytest.mark.ray_cluster
def test_an_embedded_ray_is_closed_to_others(tmp_path):
    """Its folder is the owner's alone, and every port that its processes listen on is on this machine's own address."""
    code = LOOK.format(store=str(tmp_path / "s"), then="pass")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PROJECT_ROOT)
    *listens, mode, _ = done.stdout.split("\n")[:-1]
    assert mode == "0o700" and len(listens) > 5
    assert {line.removeprefix("listens ").removeprefix("::ffff:") for line in listens} == {"127.0.0.1"}


@pytest.mark.ray_cluster
def test_what_a_killed_run_leaves_is_removed_by_the_next(tmp_path):
    code = LOOK.format(store=str(tmp_path / "s"), then="os.kill(os.getpid(), 9)")
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PROJECT_ROOT)
    folder = Path(process.stdout.splitlines()[-1])
    assert process.returncode == -9 and folder.is_dir()
    other = folder.with_name(folder.name.replace("-", "x", 1))  # not a session's name
    other.mkdir()
    session.remove_leftover_sessions(folder.parent)
    assert not folder.exists() and other.is_dir()
    other.rmdir()
    left = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert str(folder) not in left


def test_a_cluster_elsewhere_must_ask_for_a_token(monkeypatch, tmp_path):
    import asyncio

    from jobs import submit

    monkeypatch.setattr(submit.requests, "get", lambda *_, **__: type("Answer", (), {"ok": True}))
    suite = tmp_path / "suite.toml"
    suite.write_text(SUITE % '{ name = "chance" }')
    for address in ("http://10.0.0.5:8265", "http://127.evil.example:8265", "http://127.0.0.1@evil.example:8265"):
        with pytest.raises(UserError, match="asks for no token"):
            asyncio.run(submit.submit(address, str(suite), "--store", "/s"))


def test_a_mistake_in_a_worker_ends_the_run_as_that_mistake(cluster, tmp_path):
    store, trials, plugin = ready(tmp_path, "full", ["full"])
    with pytest.raises(UserError) as caught:
        trials_module.run_trials_on_ray(trials, store, [plugin], 1)
    assert (caught.value.message, caught.value.hint) == ("the store is full", "free some space")


seconds = st.lists(st.floats(0.01, 1000), min_size=1, max_size=40)


@given(seconds, st.integers(1, 8))
def test_shares_hold_every_trial_once_and_are_balanced(seconds, workers):
    split = trials_module.balanced_shares(seconds, workers)
    assert sorted(i for share in split for i in share) == list(range(len(seconds)))
    load = [sum(seconds[i] for i in share) for share in split]
    assert max(load) <= min(load) + max(seconds) + 1e-6


@settings(deadline=None)
@given(seconds, st.integers(1, 64), st.booleans())
def test_groups_hold_every_trial_once_and_have_workers(seconds, workers, per_method):
    class Fake:
        def __init__(self, i):
            self.method, self.number = i % 5, i

    trials = [Fake(i) for i in range(len(seconds))]
    workers = min(workers, len(trials))
    cost = dict(zip(trials, seconds, strict=True))
    groups = trials_module.make_groups(trials, cost, workers, per_method)
    assert sorted(t.number for g in groups for t in g) == list(range(len(trials)))
    given_ = trials_module.allot_workers(groups, cost, workers)
    assert sum(given_) == workers and all(1 <= n <= len(g) for n, g in zip(given_, groups, strict=True))
    assert per_method or len(groups) == 1
