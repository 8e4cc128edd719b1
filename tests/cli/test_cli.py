"""The command line as a person meets it: what a mistake says, and that nothing is lost by it."""

import contextlib
import errno
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time

import psutil
import pytest

from harness import registry
from harness.board.make import make_board
from harness.errors import UserError, note_former_name
from harness.registry import PROJECT_ROOT
from harness.sources.public_files import PublicFile
from harness.store.store import CRASH_POINTS, Store
from harness.trials.finish import finish_trials
from harness.trials.plan import make_plan
from harness.trials.suite import read_suite
from tests.cli.conftest import told
from tests.conftest import TINY


def test_unknown_names(call, suite, tmp_path):
    told(call("check", "low_rnak"), "no task or method 'low_rnak'", "did you mean 'low_rank'?")
    told(call("check", "rf"), "no task or method 'rf'", "did you mean 'rfm'?")
    told(call("run", tmp_path), "is not TOML")
    told(call("run", suite('[[tasks]]\nname = "two_mods"')), "no task 'two_mods'", "did you mean 'two_modes'?")
    told(call("run", suite('[[tasks]]\nname = "low_rank"\nranks = 3')), "no field 'ranks'", "did you mean 'rank'?")
    told(call("run", tmp_path / "nothing.toml"), "does not exist")
    told(call("run", suite("[[")), "is not TOML")
    told(call("show", "abc", "--store", tmp_path), "no trial abc")


def test_a_mistyped_command_line(call):
    told(call("rnu"), "there is no command 'rnu'", "did you mean 'run'?")
    told(call("run", "--stor", "x"), "there is no option --stor", "did you mean '--store'?")
    told(call("run", "--workers", "0"), "invalid value for '--workers'", "manyminds run --help")
    told(call("show"), "missing argument", "manyminds show --help")


def test_missing_data(call, suite, tmp_path, no_data, monkeypatch):
    people = suite('seeds = 5\n[[tasks]]\nname = "snacks"')
    told(
        call("run", people, "--data", tmp_path / "nowhere", "--store", tmp_path / "s"), "data folder", "does not exist"
    )
    (tmp_path / "empty").mkdir()
    told(
        call("run", people, "--data", tmp_path / "empty", "--store", tmp_path / "s"),
        "there is no ClitheroDataset.csv in",
    )
    monkeypatch.delenv("MANYMINDS_DATA")
    monkeypatch.setattr(
        "tasks.snacks.SNACKS_FILE", PublicFile("ClitheroDataset.csv", "http://127.0.0.1:9/nothing.csv", "0" * 64)
    )
    told(call("run", people, "--store", tmp_path / "s"), "could not be downloaded", "--data DIR")


def test_data_is_fetched_once_and_believed_by_its_checksum(tmp_path, no_data, monkeypatch):
    import hashlib

    origin = tmp_path / "origin.csv"
    origin.write_text("a,b\n1,2\n")
    source = PublicFile("origin.csv", origin.as_uri(), hashlib.sha256(origin.read_bytes()).hexdigest())
    found = source.local_path()
    assert found.read_text() == "a,b\n1,2\n" and found != origin
    origin.unlink()
    assert source.local_path() == found
    found.write_text("a,b\n1,3\n")
    with pytest.raises(UserError, match="is not the file its source serves"):
        source.local_path()


def edited(data_folder, tmp_path, monkeypatch, change):
    """A copy of the snack choices with one change, its checksum accepted."""
    import hashlib

    import tasks.snacks

    text = next(data_folder.rglob("ClitheroDataset.csv")).read_text()
    folder = tmp_path / "edited"
    folder.mkdir()
    (folder / "ClitheroDataset.csv").write_text(change(text))
    sha256 = hashlib.sha256((folder / "ClitheroDataset.csv").read_bytes()).hexdigest()
    monkeypatch.setattr(
        tasks.snacks, "SNACKS_FILE", PublicFile("ClitheroDataset.csv", "https://nowhere.invalid", sha256)
    )
    return folder


def test_bad_files(call, suite, tmp_path, data_folder, monkeypatch):
    people = suite('seeds = 5\n[[tasks]]\nname = "snacks"')
    where = ["--store", tmp_path / "s"]
    shutil.copytree(next(data_folder.rglob("ClitheroDataset.csv")).parent, tmp_path / "copy")
    with (tmp_path / "copy" / "ClitheroDataset.csv").open("a") as file:
        file.write("\n")
    told(call("run", people, "--data", tmp_path / "copy", *where), "is not the file its source serves", "sha256")
    cases = {
        lambda t: t.replace("choice", "chose", 1): "no column choice",
        lambda t: t.replace("2.089112", "fast", 1): "line 2, column rt: 'fast' is not a number",
        lambda t: "\n".join(t.split("\n")[:2]) + "\n": "a user with fewer than 2 pairs",
    }
    for change, says in cases.items():
        with monkeypatch.context() as patch:
            folder = edited(data_folder, tmp_path, patch, change)
            told(call("run", people, "--data", folder, *where), says)
        shutil.rmtree(folder)


BAD_TASK = '''"""A task with something wrong in it, for the tests."""
from dataclasses import dataclass
import numpy as np
from harness.data import Items, PreferenceDataset
from harness.task import Task

@dataclass(frozen=True)
class Bad(Task):
    def build(self, seed):
        user = np.repeat(np.arange(10), 30)
        left, right = np.arange(300) % 20, (np.arange(300) + 1 + np.arange(300) % 7) % 20
        label, features = np.arange(300) % 2, np.random.default_rng(0).normal(size=(20, 2)).astype(np.float32)
        {}
        return PreferenceDataset.from_pairs(user, left, right, label, Items(features))
'''


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("label = label * 3", "a label outside [0, 1]"),
        ("features[3, 1] = np.nan", "a NaN or infinite feature"),
        ("user[-1] = 99", "a user with fewer than 2 pairs"),
        ("user = user // 4", "3 people are too few"),
        ("raise OSError('no such table')", "task bad_task: build raised OSError: no such table (bad_task.py:"),
        (
            "user, left, right, label = user[:95], left[:95], right[:95], label[:95]; user = user * 0 + np.arange(95) // 10",
            "too few different pairs for 20 to be shown and 1 to be asked",
        ),
    ],
)
def test_bad_values_in_a_plugin(call, suite, tmp_path, line, says):
    plugin = suite(BAD_TASK.format(line), "bad_task.py")
    wanted = suite('seeds = 5\n[[tasks]]\nname = "bad_task"')
    told(call("run", wanted, "--plugin", plugin, "--store", tmp_path / "s", "--local"), says)


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("no_task.py", "x = 1", "defines neither a task nor a method"),
        ("broken.py", "def (", "cannot be imported: SyntaxError"),
        ("two_modes.py", "", "the name of a built-in"),
        ("My-Task.py", "", "not a valid name for a task"),
        ("..sneaky.py", "", "not a valid name for a task"),
    ],
)
def test_a_plugin_that_is_none(call, suite, name, text, says):
    told(call("check", suite(text, name)), says)


def test_a_store_that_cannot_be_written(call, suite, tmp_path):
    (tmp_path / "file").write_text("")
    told(call("run", suite(TINY), "--store", tmp_path / "file", "--local"), "cannot be written", "--store DIR")
    told(call("run", suite(TINY), "--store", "/proc/x", "--local"), "cannot be written", "--store DIR")


def test_a_full_disk_keeps_what_is_finished(call, suite, tmp_path):
    """The store fills in mid-run; the same command goes on once there is room, and the board is the undisturbed one."""
    file, where = suite(TINY), ["--store", tmp_path / "s", "--local", "--mlflow", f"sqlite:///{tmp_path}/m.db"]
    assert call("prepare", file, "--store", tmp_path / "s")[0] == 0
    plugin = suite(
        '"""Fills the disk."""\nimport resource, signal\nfrom harness.methods.chance import Chance\n'
        "class Filler(Chance):\n    def fit(self, train, validation, run):\n"
        "        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "        resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))\n"
        "        return {}\n",
        "filler.py",
    )
    full = suite(TINY + '\n[[methods]]\nname = "filler"\n', "full.toml")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.getsignal(signal.SIGXFSZ)
    try:
        code, out, err = call("run", full, *where, "--plugin", plugin)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert code == 2 and "is full\n\nhint: " in err and "no verdict yet" in out
    assert Store(tmp_path / "s").committed_keys("trials")
    code, out, _ = call("run", file, *where)
    assert code == 0 and "incomplete" not in out


RAISES = '''"""Raises on every second seed."""
from harness.methods.per_user import PerUser

class Raises(PerUser):
    def fit(self, train, validation, run):
        if run.seed % 2:
            raise ValueError("odd seeds are not for me")
        return super().fit(train, validation, run)
'''


def test_a_method_that_raises_fails_alone(call, suite, tmp_path):
    plugin = suite(RAISES, "raises.py")
    file = suite(TINY + '\n[[methods]]\nname = "raises"\n')
    where = ["--store", tmp_path / "s", "--local", "--plugin", plugin, "--mlflow", f"sqlite:///{tmp_path}/m.db"]
    code, out, err = call("run", file, *where)
    assert code == 1 and "odd seeds are not for me" in err
    assert "incomplete: raises: 1 of 3 seeds failed: ValueError: odd seeds are not for me" in out
    key = err.split("manyminds show ")[1].split()[0]
    code, out, _ = call("show", key, "--store", tmp_path / "s")
    assert code == 0 and "raise ValueError" in out
    assert len(Store(tmp_path / "s").committed_keys("trials")) == 6 * 3 + 2


def test_json_for_programs(call, suite, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "no-token-yet"))
    file, where = suite(TINY), ["--store", tmp_path / "s"]
    assert set(json.loads(call("list", "--json")[1])) == {"tasks", "methods"}
    plan = json.loads(call("plan", file, *where, "--json")[1])
    assert plan["trials"] == 18 and plan["finished"] == 0
    board = json.loads(call("run", file, *where, "--local", "--json", "--mlflow", f"sqlite:///{tmp_path}/m.db")[1])
    keys = board["tasks"][0]["rows"][0]["keys"]
    assert json.loads(call("show", keys[0], *where, "--json")[1])["key"] == keys[0]
    assert json.loads(call("board", file, *where, "--json")[1])["digest"] == board["digest"]
    assert all(not f["problem"] for f in json.loads(call("check", "chance", "--json")[1]))
    assert {f["state"] for f in json.loads(call("doctor", *where, "--json")[1])} <= {"ok", "warn"}


def test_doctor_sees_what_is_unsafe(call, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    token = tmp_path / "token"
    token.write_text("hush-hush")
    token.chmod(0o644)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://ann:hush-hush@127.0.0.1.evil.example:5000")
    monkeypatch.setenv("HF_TOKEN", "hush-hush-hush")
    Store(tmp_path / "s").open()
    (tmp_path / "s" / "trials").chmod(0o777)
    code, out, _ = call("doctor", "--store", tmp_path / "s")
    assert code == 1 and "BAD  ray access" in out and "BAD  ray token" in out and "hush-hush" not in out
    assert (
        "BAD  store access" in out
        and "warn mlflow: http://127.0.0.1.evil.example:5000" in out
        and "HF_TOKEN set" in out
    )
    (tmp_path / "s" / "trials").chmod(0o755)
    assert "ok   store access" in call("doctor", "--store", tmp_path / "s")[1]


def test_cores_are_those_of_this_process():
    """A job scheduler gives a process some of the machine's cores by affinity."""
    code = "import os; from harness.machine import core_count; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); print(core_count())"
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PROJECT_ROOT
        ).stdout
        == "1\n"
    )


def test_a_finished_suite_fits_nothing_and_starts_no_ray(tiny, tmp_path, call):
    """In a process of its own: no Ray is imported, nothing is fitted, and it is over well within ten seconds."""
    file, where = tiny[0], ["--store", str(tiny[2].root), "--mlflow", f"sqlite:///{tmp_path}/m.db"]
    assert call("run", file, *where, "--local")[0] == 0  # publishes it
    code = "import sys; from harness.cli import main; from harness.trials import finish; finish.run_trial = None; sys.argv[1:1] = ['run']\ntry: main()\nfinally: print('RAY' if 'ray' in sys.modules else 'NONE')"
    again = subprocess.run(
        [sys.executable, "-c", code, str(file), *where],
        capture_output=True,
        text=True,
        timeout=200,
        check=True,
        cwd=PROJECT_ROOT,
    )
    assert again.stdout.endswith("NONE\n") and "18 finished before" in again.stderr


def results(store):
    """Key -> digests of predictions and scores; nothing diverged, nothing half-written."""
    found = {key: store.read_manifest("trials", key) for key in store.committed_keys("trials")}
    assert all(found.values()) and not any(store.has_diverged(key) for key in found)
    return {key: manifest["files"] for key, manifest in found.items()}


def in_background(file, store, **environment):
    command = [sys.executable, "-m", "harness.cli", "run", file, "--local", "--store", store, "--json"]
    environment = {k: str(v) for k, v in environment.items()}
    where = PROJECT_ROOT
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=where, env=os.environ | environment
    )


@pytest.mark.slow
def test_killed_at_every_step_and_resumed(tiny, tmp_path):
    """A suite killed at each step of the commit protocol in turn, then finished: as if nothing had happened."""
    file, plan, undisturbed = tiny
    store = Store(tmp_path / "killed").open()
    make_plan(read_suite(file), store)
    for step in CRASH_POINTS:
        killed = in_background(file, store.root, MANYMINDS_CRASH=step)
        killed.communicate(timeout=200)
        assert killed.returncode == -signal.SIGKILL
        results(store)  # readable at any moment
    last = in_background(file, store.root)
    out, err = last.communicate(timeout=200)
    assert last.returncode == 0, err
    assert results(store) == results(undisturbed)
    assert json.loads(out)["digest"] == make_board(plan, undisturbed).results_digest


@pytest.mark.slow
def test_two_drivers_on_one_store(tiny, tmp_path):
    file, _, undisturbed = tiny
    both = [in_background(file, tmp_path / "both") for _ in range(2)]
    outs = [driver.communicate(timeout=300) for driver in both]
    assert [driver.returncode for driver in both] == [0, 0], outs
    assert results(Store(tmp_path / "both")) == results(undisturbed)
    assert outs[0][0] == outs[1][0]


def test_what_is_finished_is_shown_before_the_error_of_a_run_that_ended_early(call, suite, tmp_path, monkeypatch):
    given = {}

    def run_trials(trials, store, **options):
        given.update(options)
        list(finish_trials(trials[:count], store))
        raise UserError("2 trials did not run: Ray is gone", "start Ray again")

    monkeypatch.setattr("harness.api.run_trials", run_trials)
    for count in (0, 1):
        words = (suite(TINY + '\n[[methods]]\nname = "chance"\n'), "--store", tmp_path / "s", "--trial-minutes", 7)
        code, out, err = call("run", *words)
        assert code == 2 and given["trial_minutes"] == 7
        assert err.endswith("error: 2 trials did not run: Ray is gone\n\nhint: start Ray again\n")
        assert ("no verdict yet" in out) == bool(count) and "failed" not in err


def test_the_board_of_a_suite_that_has_not_run_here_says_what_has(call, suite, tmp_path):
    assert call("run", suite(TINY), "--store", tmp_path / "s", "--local")[0] == 0
    (tmp_path / "other.toml").write_text(TINY.replace("queries = 10", "queries = 9"))
    assert (tmp_path / "other.toml").read_text() != TINY
    _, _, err = call("board", tmp_path / "other.toml", "--store", tmp_path / "s")
    assert re.search(r"nothing of other has run in \S+, which has: \w+", err)
    assert "has run" not in call("board", suite(TINY), "--store", tmp_path / "s")[2]


def test_the_command_runs_a_suite_on_ray(tiny, tmp_path):
    """As typed, in a process of its own, which starts a Ray of its own: the results and the board of this process."""
    file, plan, undisturbed = tiny
    done = subprocess.run(
        [sys.executable, "-m", "harness.cli", "run", file, "--workers", "1", "--store", tmp_path / "ray", "--json"],
        cwd=PROJECT_ROOT,
        env=os.environ | {"RAY_worker_niceness": "0"},  # Ray's 15 would starve the workers next to anything else
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr
    assert results(Store(tmp_path / "ray")) == results(undisturbed)
    assert json.loads(done.stdout)["digest"] == make_board(plan, undisturbed).results_digest


@pytest.fixture
def slow_run(suite, tmp_path):
    """Start a run whose second trial takes a minute."""
    slow = suite(
        '"""Slow."""\nimport time\nfrom harness.methods.chance import Chance\nclass Slow(Chance):\n    def fit(self, *a):\n        time.sleep(60)\n',
        "slow.py",
    )
    file = suite(TINY + '\n[[methods]]\nname = "slow"\n')

    def start(*options):
        return subprocess.Popen(
            [sys.executable, "-m", "harness.cli", "run", file, "--store", tmp_path / "s", "--plugin", slow, *options],
            stderr=subprocess.PIPE,
            text=True,
            cwd=PROJECT_ROOT,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )

    return start


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("options", [("--local",), pytest.param(("--workers", "1"), marks=pytest.mark.ray_cluster)])
def test_an_interruption_says_that_work_is_kept(slow_run, tmp_path, number, status, options):
    process, store = slow_run(*options), Store(tmp_path / "s")
    while not store.committed_keys("trials") and process.poll() is None:
        time.sleep(0.1)
    children = psutil.Process(process.pid).children(recursive=True)
    assert bool(children) == ("--local" not in options)  # Ray's own processes, and its workers
    process.send_signal(number)
    _, err = process.communicate(timeout=120)
    assert process.returncode == status and err.count("finished work is kept") == 1, err
    assert "Traceback" not in err and "***" not in err
    assert not psutil.wait_procs(children, timeout=20)[1]
    assert all(store.read_manifest("trials", key) for key in store.committed_keys("trials"))


@pytest.mark.parametrize("turned", ["sys.exit(1)", "raise RuntimeError('lost')", "return 1"])
def test_an_interruption_that_a_library_turns_into_something_else_is_said(turned):
    script = f"""if True:
        import os, signal, sys, time
        from harness.cli import main, verbs

        def run(words):
            try:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(5)
            except KeyboardInterrupt:
                {turned}

        verbs.run_command_line = run
        main()"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=PROJECT_ROOT, timeout=60)
    assert done.returncode == 143 and done.stderr.startswith("interrupted: finished work is kept")


@pytest.mark.parametrize("seconds", [0.3, 1, 2])
def test_an_interruption_at_the_start(slow_run, seconds):
    """While modules are imported, libraries in C++ would abort at an exception."""
    process = slow_run("--local")
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in err and "finished work is kept" in err


def test_a_first_day(call):
    """`manyminds` alone names the four commands of a first day; --version says which code this is."""
    code, out, _ = call()
    assert code == 0 and [line.split()[1] for line in out.splitlines() if line.startswith("  manyminds")] == [
        "run",
        "list",
        "run",
        "check",
    ]
    code, out, _ = call("--version")
    assert code == 0 and re.fullmatch(r"manyminds \d+\.\d+\.\d+ \(\S+\)", out.strip())


def test_list_filters(call):
    code, out, _ = call("list", "--family", "human choices", "--json")
    found = json.loads(out)
    assert code == 0 and list(found["tasks"]) == ["food_risk", "ratings", "snacks", "votes"] and found["methods"] == {}
    _, out, _ = call("list", "--needs", "shared pairs", "--json")
    assert list(json.loads(out)["methods"]) == ["majority"]
    _, out, _ = call("list", "--paper", "pref", "--needs", "features", "--json")
    assert list(json.loads(out)["methods"]) == ["pref"]
    code, _, err = call("list", "--family", "fruit")
    assert code == 2 and "no task or method fits" in err and "human choices" in err


def test_show_explains_tasks_methods_and_claims(call, tmp_path):
    code, out, _ = call("show", "in_context", "--store", tmp_path)
    assert code == 0 and "max_examples = 20" in out and "formerly most" in out and "no finished trials" in out
    code, out, _ = call("show", "two_modes", "--store", tmp_path)
    assert code == 0 and "family   simulated" in out and "train_conflict_rate = 0.5" in out
    code, out, _ = call("show", "N1", "--store", tmp_path)
    assert code == 0 and "Few-shot Steerable Alignment, section 4.1" in out and "expected 0.95 to inf" in out
    code, _, err = call("show", "in_contxt", "--store", tmp_path)
    assert code == 2 and "did you mean 'in_context'" in err
    code, _, err = call("show", "N1", "--json", "--store", tmp_path)
    assert code == 2 and "is for trials" in err


def test_former_options_and_fields_work_and_are_said_to_be_old(call, tmp_path):
    """The board is the same, and so are the keys of its trials, under both spellings."""
    note_former_name.cache_clear()  # a note is printed once in a process
    suite = tmp_path / "old.toml"
    text = TINY + '[[methods]]\nname = "mixed_logit"\nelicit = ["random"]\n'
    suite.write_text(text)
    code, old, err = call("plan", suite, "--store", tmp_path / "store", "--json")
    assert code == 0 and "elicit is now called elicitation" in err
    note_former_name.cache_clear()
    suite.write_text(text.replace("elicit ", "elicitation "))
    code, new, err = call("plan", suite, "--store", tmp_path / "store", "--json")
    assert code == 0 and "now called" not in err and json.loads(old) == json.loads(new)
    suite.write_text(text + 'elicitation = "random"\n')
    code, _, err = call("plan", suite, "--store", tmp_path / "store")
    assert code == 2 and "elicitation is given twice, once as elicit" in err
    code, _, err = call("run", suite, "--local", "--together=2", "--store", tmp_path / "store")
    assert code == 2 and "--together is now called --workers-per-policy" in err


def test_the_suite_or_plugin_that_was_meant_is_found(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = call("run", "poeple", "--store", tmp_path / "store")
    assert code == 2 and "did you mean" in err and "jobs/suites/people.toml" in err
    (tmp_path / "my_task.py").write_text('"""A task."""\n')
    (tmp_path / "mine.toml").write_text('[[tasks]]\nname = "my_task"\n')
    code, _, err = call("plan", "mine.toml", "--store", tmp_path / "store")
    assert code == 2 and "add --plugin my_task.py" in err
    code, _, err = call("show", "my_task", "--store", tmp_path / "store")
    assert code == 2 and "add --plugin my_task.py" in err


def test_a_log_file_gets_lines_of_progress(monkeypatch, capsys):
    """Every so often a line says how much is done, in how long, and how long the rest will take."""
    from harness.cli import terminal

    monkeypatch.setattr(terminal, "LINE_SECONDS", 0.05)
    with terminal.progress_bar("running", 10) as step:
        step(4)
        time.sleep(0.3)
    said = capsys.readouterr().err.splitlines()
    assert 2 <= len(said) < 9 and said[-1].startswith("running: 4 of 10 in 0 s, about 0 s left")


def test_a_shipped_suite_is_found_by_its_name(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "quick" in call("plan", "quick", "--store", tmp_path / "s")[1].splitlines()[0]
    told(call("plan", "quikc", "--store", tmp_path / "s"), "does not exist", "did you mean")


def test_far_too_many_settings_are_counted_and_refused(call, suite, tmp_path):
    """52 million trials are refused at once, before any is made; an empty list is no setting."""
    many = suite(f'[[tasks]]\nname = "low_rank"\nrank = {list(range(1, 500))}\nn_users = {list(range(5, 500))}')
    told(call("plan", many, "--store", tmp_path / "s"), "its lists make 247,005 settings")
    none = suite('[[tasks]]\nname = "low_rank"\nrank = []')
    told(call("plan", none, "--store", tmp_path / "s"), "rank = [] has no value", "leave the line out")


def test_two_suites_of_one_name_have_two_pages_and_experiments(call, tmp_path):
    """The one that came first keeps the name; a third run of each finds its own again."""
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path}/m.db"
    for folder, seeds in (("a", 3), ("b", 4)) * 2:
        (tmp_path / folder).mkdir(exist_ok=True)
        text = "controls = false\n" + TINY.replace("seeds = 3", f"seeds = {seeds}") + '[[methods]]\nname = "chance"\n'
        (tmp_path / folder / "mine.toml").write_text(text)
        code, _, err = call(
            "run", tmp_path / folder / "mine.toml", "--local", "--store", tmp_path / "s", "--mlflow", uri
        )
        assert code == 0 and "mine" in err
    pages = sorted(page.name for page in (tmp_path / "s" / "boards").glob("*.html"))
    assert len(pages) == 2 and pages[1] == "mine.html" and pages[0].startswith("mine-")
    texts = [(tmp_path / "s" / "boards" / page).read_text() for page in pages]
    assert "4 seeds" in texts[0] and "3 seeds" in texts[1]
    experiments = [
        e.name for e in MlflowClient(tracking_uri=uri).search_experiments() if e.name.startswith("manyminds/")
    ]
    assert sorted(experiments) == sorted(f"manyminds/{page.removesuffix('.html')}" for page in pages)


def test_a_board_of_a_store_that_cannot_be_written_or_is_none(tiny, call, tmp_path, monkeypatch):
    """Whoever may only read a store sees its board, without a page; a mistyped store is no empty board."""
    file, _, store = tiny
    told(call("board", file, "--store", tmp_path / "mistyped"), "there is no store in")
    assert not (tmp_path / "mistyped").exists()

    def refuse(*_):
        raise OSError(errno.EROFS, "Read-only file system")

    for place in (
        "harness.store.store.write_atomically",
        "harness.report.page.html.write_atomically",
        "pathlib.Path.write_bytes",
    ):
        monkeypatch.setattr(place, refuse)
    code, out, err = call("board", file, "--store", store.root)
    assert code == 0 and "mixed_logit" in out and "no page was written: Read-only file system" in err


def test_show_names_fields_as_suites_do_and_tells_the_score(tiny, call):
    _, plan, store = tiny
    trial = next(t for t in plan.trials if t.method.name == "mixed_logit")
    _, out, _ = call("show", trial.key, "--store", store.root)
    assert '"elicitation": "random"' in out and '"elicit":' not in out and "accuracy at 4 shots" in out


def test_one_fault_is_told_once(call, suite):
    plugin = suite(
        '"""A method that raises."""\nfrom harness.methods.chance import Chance\nclass Raises(Chance):\n    def fit(self, *a):\n        raise ValueError("mine")\n',
        "raises_so.py",
    )
    code, out, _ = call("check", plugin)
    assert code == 1 and out.count("ValueError: mine (raises_so.py:5)") == 1 and "the same as above" in out
    code, out, err = call("check", "chance")
    assert (
        code == 0 and "FAIL" not in out and out.count("ok  ") == int(re.search(r"(\d+) checks ran, 0 failed", err)[1])
    )


def test_a_missing_decorator_is_named(call, suite, tmp_path):
    plugin = suite(
        '"""A method whose field would be ignored."""\nfrom harness.methods.chance import Chance\nclass Forgets(Chance):\n    scale: float = 1.0\n',
        "forgets.py",
    )
    told(call("check", plugin), "class Forgets declares scale", "@dataclass(frozen=True)")


@pytest.mark.parametrize("name", ["statistics", "queue"])
def test_a_plugin_replaces_no_module(call, suite, name):
    plugin = suite(
        '"""A plug-in named like a module."""\nfrom harness.methods.chance import Chance\nclass Own(Chance):\n    pass\n',
        f"{name}.py",
    )
    assert call("check", plugin)[0] == 0
    assert not hasattr(__import__(name), "Own")


def test_a_plugin_that_cannot_be_imported_is_forgotten(call, suite):
    broken = suite('"""Broken."""\n\nraise RuntimeError("not today")\n', "breaks.py")
    told(call("check", broken), f"{broken}, line 3", "RuntimeError: not today")
    assert "breaks" not in registry.PLUGINS


@pytest.mark.parametrize("name", ["../linear", "linear/../chance", "__init__", ".hidden"])
def test_a_path_is_no_name(call, suite, tmp_path, name):
    told(
        call("plan", suite(f'[[methods]]\nname = "{name}"\n[[tasks]]\nname = "low_rank"'), "--store", tmp_path),
        "there is no method",
    )


def test_a_mistake_in_a_suite_leaves_nothing_behind(call, suite, tmp_path):
    told(call("run", suite("[["), "--store", tmp_path / "s"), "is not TOML")
    assert not (tmp_path / "s").exists()
    told(
        call("plan", suite('seeds = 1000000000\n[[tasks]]\nname = "low_rank"'), "--store", tmp_path / "s"),
        "trials, more than",
    )


def test_show_counts_a_seed_once_though_its_data_have_changed(call, suite, tmp_path):
    """A task is run, its data change, and it is run again: the scores shown are those of the later data, of three seeds."""
    text = BAD_TASK.format('label = label if __import__("os").path.exists("later") else 1 - label')
    plugin, file = (
        suite(text, "bad_task.py"),
        suite(
            'seeds = 3\ncontrols = false\n[[tasks]]\nname = "bad_task"\nshots = [0, 5]\n[[methods]]\nname = "per_user"'
        ),
    )
    where = ["--plugin", plugin, "--store", tmp_path / "s"]
    for name in ("first", "later"):
        (tmp_path / name).touch()
        with contextlib.chdir(tmp_path):
            assert call("run", file, *where, "--local", "--mlflow", f"sqlite:///{tmp_path}/m.db")[0] == 0
    assert len(Store(tmp_path / "s").committed_keys("trials")) == 6
    assert "(3 seeds)" in call("show", "bad_task", *where)[1]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("user;prompt;chosen;rejected\nann;p;a, b;c", "separated by semicolons"),
        ("user,prompt,chosen,rejected\nann,p,caf\xe9,c".encode("latin-1"), "is not UTF-8"),
        ("user,prompt,chosen,rejected\nann,p,a,c,d,e", "cannot be read"),
        ("", "the file is empty"),
    ],
)
def test_csv_files_that_cannot_be_read(tmp_path, text, says):
    from harness.data import PreferenceDataset

    (tmp_path / "choices.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=says) as caught:
        PreferenceDataset.from_choices(tmp_path / "choices.csv")
    assert caught.value.message.startswith(f"{tmp_path}/choices.csv: ")
