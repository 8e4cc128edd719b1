"""Deaths of drivers and nodes, and drivers that share a store: no finished trial is lost, and none runs twice."""

import os

os.environ["RAY_worker_niceness"] = (
    "0"  # Ray's default of 15 would starve workers beside other processes; read when Ray starts
)

import subprocess
import sys
from pathlib import Path

import pytest

from harness.on_ray import trials as trials_module
from harness.registry import PROJECT_ROOT
from harness.store.store import Store
from tests.on_ray import test_trials
from tests.on_ray.test_trials import fits, ready, results, wait_for

cluster, undisturbed = test_trials.cluster, test_trials.undisturbed  # fixtures
pytestmark = pytest.mark.timeout(600)

TWO_NODES = """
import os
from ray.cluster_utils import Cluster
from tests.on_ray.test_deaths import Path, ready, trials_module

cluster = Cluster()
cluster.add_node(num_cpus=2)  # enough for a group of two once the other node is gone
second = cluster.add_node(num_cpus=1)
os.environ["RAY_ADDRESS"] = cluster.address
store, trials, plugin = ready({folder!r}, "counted", ["counted"])
hold = Path({folder!r}, "hold")
hold.touch()  # fits after the fifth wait for it to go

def kill(n):
    if hold.exists():
        cluster.remove_node(second, allow_graceful=False)
        hold.unlink()

trials_module.run_trials_on_ray(trials, store, plugins=[plugin], workers=2, on_progress=kill)
cluster.shutdown()
"""
DRIVER = """
from harness.on_ray.trials import run_trials_on_ray
from tests.on_ray.test_deaths import ready
store, trials, plugin = ready({folder!r}, "counted", ["counted"])
run_trials_on_ray(trials, store, plugins=[plugin], workers=2)
"""


def test_a_killed_driver_leaves_no_worker_and_costs_at_most_the_running_trials(cluster, undisturbed, tmp_path):
    (tmp_path / "hold").touch()
    root = PROJECT_ROOT
    driver = subprocess.Popen([sys.executable, "-c", DRIVER.format(folder=str(tmp_path))], cwd=root)
    wait_for(lambda: len(fits(tmp_path)) > 5)
    driver.kill()
    driver.wait()
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in set(fits(tmp_path))), 60)
    (tmp_path / "hold").unlink()
    done = len(results(Store(tmp_path / "store")))

    store, trials, plugin = ready(tmp_path, "counted", ["counted"])
    assert 0 < done < 12 and len(trials) == 12 - done
    trials_module.run_trials_on_ray(trials, store, [plugin], 2)
    assert results(store) == undisturbed
    assert 12 < len(fits(tmp_path)) <= 12 + 2


@pytest.mark.ray_cluster
def test_a_node_that_dies_costs_at_most_the_running_trials(undisturbed, tmp_path):
    """The death of a node costs at most the running trials; in its own process, since Ray reads the token at import."""
    environment = os.environ | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}
    command = [sys.executable, "-c", TWO_NODES.format(folder=str(tmp_path))]
    subprocess.run(command, cwd=PROJECT_ROOT, env=environment, check=True, timeout=480)
    store = Store(tmp_path / "store")
    assert results(store) == undisturbed
    assert len(undisturbed) <= len(fits(tmp_path)) <= len(undisturbed) + 2
    assert not any((store.root / "tmp").iterdir())


def test_two_drivers_on_one_store(cluster, undisturbed, tmp_path):
    """Two drivers that run the same trials at once do not disturb each other."""
    store, trials, plugin = ready(tmp_path, "counted", ["counted"])
    other = subprocess.Popen([sys.executable, "-c", DRIVER.format(folder=str(tmp_path))], cwd=PROJECT_ROOT)
    trials_module.run_trials_on_ray(trials, store, [plugin], 1)
    assert other.wait(120) == 0
    assert results(store) == undisturbed and not any((store.root / "tmp").iterdir())
