"""The command line among what it does not control: plug-ins that print, variables, folders, a machine without a home."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

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
