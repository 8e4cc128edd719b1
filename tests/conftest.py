"""Settings of all tests, such as one thread, and shared fixtures, such as a small finished suite."""

import os
import shutil
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.pop("MANYMINDS_CRASH", None)
os.environ.pop("MANYMINDS_STORE", None)

import pytest
import torch
from hypothesis import settings

from harness import registry
from harness.models import small
from harness.store.store import Store
from harness.trials.finish import finish_trials
from harness.trials.plan import make_plan
from harness.trials.suite import read_suite

torch.set_num_threads(1)
settings.register_profile("side by side", deadline=None)  # other processes may use the core
settings.load_profile("side by side")
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
DATA = Path(os.environ.get("MANYMINDS_DATA", SHARED))

TINY = """
title = "tiny"
seeds = 3

[[tasks]]
name = "low_rank"
n_users = 20
new_users = 10
pairs_per_user = 20
feature_dim = 4
rank = 2
shots = [0, 4]
queries = 10
"""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Mark tests that start Ray as `ray_cluster`, and skip tests that need a GPU where there is none."""
    for item in items:
        if "cluster" in item.fixturenames:
            item.add_marker(pytest.mark.ray_cluster)
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="there is no GPU here"))


@pytest.fixture
def data_folder(monkeypatch):
    """The folder of public data files; tests that need it are skipped where it is missing."""
    if not any(DATA.rglob("ClitheroDataset.csv")):
        pytest.skip(f"no ClitheroDataset.csv under {DATA}: set MANYMINDS_DATA to the folder of public data files")
    monkeypatch.setenv("MANYMINDS_DATA", str(DATA))
    return DATA


@pytest.fixture
def no_data(monkeypatch, tmp_path):
    """An environment without a data folder or a cache."""
    monkeypatch.delenv("MANYMINDS_DATA", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture(autouse=True)
def forget_plugins():
    """Reset plug-ins, the store variable and the data variable after each test."""
    before = {name: os.environ.get(name) for name in ("MANYMINDS_STORE", "MANYMINDS_DATA")}
    yield
    registry.PLUGINS.clear()
    for name, value in before.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value


@pytest.fixture(scope="session")
def tiny_once(tmp_path_factory):
    """A folder with a suite file and a store where the suite is finished; a test that writes to it must use `tiny`."""
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "tiny.toml").write_text(TINY)
    store = Store(folder / "store")
    plan = make_plan(read_suite(folder / "tiny.toml"), store.open())
    assert all(done for _, done in finish_trials(plan.trials, store))
    return folder


@pytest.fixture
def tiny(tiny_once, tmp_path):
    """A suite file, its plan and a store where the suite is finished, copied for one test."""
    shutil.copytree(tiny_once, tmp_path, dirs_exist_ok=True)
    file, store = tmp_path / "tiny.toml", Store(tmp_path / "store").open()
    return file, make_plan(read_suite(file), store), store


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """The folder of an untrained small language model; tests must not write to it."""
    folder = tmp_path_factory.mktemp("models") / "small"
    small.build_small_model(folder, steps=0)
    return folder
