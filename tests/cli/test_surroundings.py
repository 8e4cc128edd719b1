"""The command line among what it does not control: plug-ins that print, variables, folders, a machine without a home."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness.registry import PROJECT_ROOT
from harness.store.store import Store
from tests.cli.conftest import told


def test_what_a_plug_in_prints_leaves_the_json_alone(call, suite, tmp_path):
    """A method prints while it is imported and while it fits; stdout holds one JSON value, stderr what was printed."""
    plugin = suite(
        '''"""A method that talks."""
from dataclasses import dataclass
from harness.methods.shared import Shared
print("imported")

@dataclass(frozen=True)
class Talks(Shared):
    def fit(self, train, validation, run):
        print("fitting")
        return super().fit(train, validation, run)
''',
        "talks.py",
    )
    file = suite('seeds = 1\ncontrols = false\n[[tasks]]\nname = "two_modes"\n[[methods]]\nname = "talks"')
    where = ["--store", tmp_path / "s", "--local", "--plugin", plugin, "--mlflow", f"sqlite:///{tmp_path}/m.db"]
    code, out, err = call("run", file, *where, "--json")
    assert code == 0 and json.loads(out)["tasks"][0]["verdict"]
    assert "imported" in err and "fitting" in err


@pytest.mark.parametrize("name", ["100%", "what?"])
def test_a_store_whose_name_mlflow_cannot_hold(call, suite, tmp_path, name):
    file = suite('seeds = 1\ncontrols = false\n[[tasks]]\nname = "two_modes"\n[[methods]]\nname = "shared"')
    told(call("run", file, "--store", tmp_path / name, "--local"), "in no folder with % or ?", "--store DIR")


def test_a_tracking_uri_of_the_environment_is_named(call, suite, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "databricks")
    file = suite('seeds = 1\ncontrols = false\n[[tasks]]\nname = "two_modes"\n[[methods]]\nname = "shared"')
    told(
        call("run", file, "--store", tmp_path / "s", "--local"), "at databricks, which --mlflow or MLFLOW_TRACKING_URI"
    )


def test_a_machine_without_a_home_folder(suite, tmp_path):
    """As in a container that runs under a number without a name: MLflow and Ray Tune look for a home while imported."""
    file = suite('seeds = 1\ncontrols = false\n[[tasks]]\nname = "two_modes"\n[[methods]]\nname = "shared"')
    nameless = (
        "import os, pwd, sys\n"
        "def nobody(uid): raise KeyError(uid)\n"
        "pwd.getpwuid = nobody\n"
        "from harness.cli import main\n"
        "import ray.tune\n"
        "home = os.environ['HOME']\n"
        "assert os.stat(home).st_mode & 0o777 == 0o700\n"
        "open(sys.argv.pop(1), 'w').write(home)\n"
        "main()\n"
    )
    command = [sys.executable, "-c", nameless, tmp_path / "home", "run", file, "--store", tmp_path / "s", "--local"]
    ended = subprocess.run(
        command, env={n: v for n, v in os.environ.items() if n != "HOME"}, capture_output=True, text=True
    )
    assert ended.returncode == 0 and "MLflow:" in ended.stderr and "Traceback" not in ended.stderr
    assert not Path((tmp_path / "home").read_text()).exists()


def manyminds(*words, **variables):
    command = [sys.executable, "-m", "harness.cli", *map(str, words)]
    environment = os.environ | variables
    return subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", cwd=PROJECT_ROOT)


def test_what_other_processes_print_leaves_the_json_alone(suite, tmp_path):
    plugin = suite(
        '''"""A method whose helper talks, in C and in a process of its own."""
import os
import subprocess
from dataclasses import dataclass
from harness.methods.shared import Shared
os.write(1, b"in C\\n")
subprocess.run(["echo", "a process"], check=True)

@dataclass(frozen=True)
class Talks(Shared):
    pass
''',
        "talks.py",
    )
    ended = manyminds("list", "--plugin", plugin, "--json")
    assert ended.returncode == 0 and any("talks" in names for names in json.loads(ended.stdout).values())
    assert "in C" in ended.stderr and "a process" in ended.stderr


def test_files_are_read_as_utf_8_under_any_locale(suite, tmp_path):
    """As on a machine without any locale, where Python takes all text for ASCII."""
    plain = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    ended = manyminds("list", **plain)
    assert ended.returncode == 0 and "Traceback" not in ended.stderr
    text = '"""A task whose author is called Müller."""\nfrom tasks.two_modes import TwoModes\nclass Own(TwoModes):\n    pass\n'
    (tmp_path / "own.py").write_text(text, "utf-8")
    shown = manyminds("show", "own", "--plugin", tmp_path / "own.py", "--store", tmp_path / "s", **plain)
    assert shown.returncode == 0 and "Müller" in shown.stdout


def test_a_store_is_named(call, suite):
    told(call("board", "quick", "--store", " "), "the store has no name")
    assert Store("~/results").root == Path.home() / "results"


def test_seeds_beyond_what_generators_take_are_refused(call, suite, tmp_path):
    file = suite(f'seeds = [{2**64}]\ncontrols = false\n[[tasks]]\nname = "two_modes"\n[[methods]]\nname = "shared"')
    told(call("plan", file, "--store", tmp_path / "s"), "whole numbers from 0 to 2^32 - 1")


def test_a_long_run_says_whose_board_can_be_drawn(call, suite, tmp_path, monkeypatch):
    monkeypatch.setattr("harness.cli.task_news.LOOK_SECONDS", 0)
    file = suite(
        'seeds = 1\ncontrols = false\n[[tasks]]\nname = "two_modes"\n[[tasks]]\nname = "two_modes"\nn_users = 300\n'
        '[[methods]]\nname = "shared"\n[[methods]]\nname = "chance"'
    )
    code, _, err = call("run", file, "--store", tmp_path / "s", "--local", "--mlflow", f"sqlite:///{tmp_path}/m.db")
    assert code == 0 and err.count("all its trials have ended") == 1  # not of the last, whose board follows
