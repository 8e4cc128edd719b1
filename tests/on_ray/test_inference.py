"""Rows on Ray: the same bytes as without Ray, also when processes are killed, hang or cannot start."""

import os

os.environ["RAY_worker_niceness"] = (
    "0"  # Ray's default of 15 would starve workers beside other processes; read when Ray starts
)

import json
import multiprocessing
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from harness.errors import UserError
from harness.inference.cache import CachedRows, text_id
from harness.inference.jobs import make_in_process
from harness.on_ray import session
from harness.on_ray.inference import make_on_ray
from harness.registry import PROJECT_ROOT
from harness.store.store import Store
from tests.inference import test_cache
from tests.inference.test_cache import IDENTITY, Shapes, blocks, committed, expected, ids, left_behind, shards, table

pytestmark = pytest.mark.timeout(600)
TEXTS = [f"text number {i} {'e' * (i % 5)}" for i in range(40)]
DRIVER = """
import sys
from tests.inference.test_cache import IDENTITY, Shapes, table
from tests.on_ray.test_inference import TEXTS, CachedRows, Store, make_on_ray
if __name__ == "__main__":
    folder = sys.argv[1]
    texts = [*TEXTS[:20], "HOLD", *TEXTS[20:]]
    make_on_ray(CachedRows(Store(folder + "/store").open(), IDENTITY), Shapes(folder), [table(texts)], workers=2)
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """One Ray for all tests; its workers get the tests' recipes by value, as they cannot import them."""
    from ray import cloudpickle

    with session.ray_session(Store(tmp_path_factory.mktemp("ray")).open(), 3):
        cloudpickle.register_pickle_by_value(test_cache)
        yield cloudpickle


@pytest.fixture
def rows(tmp_path):
    return CachedRows(Store(tmp_path / "store").open(), IDENTITY)


def processes(folder):
    """Return the process of every block begun so far."""
    log = Path(folder, "log")
    return [int(line.split()[0]) for line in log.read_text().splitlines()] if log.exists() else []


def wait_for(what, seconds=200):
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)
    return found


def holding(folder):
    """Return the process of the waiting block, once all other work is done or nearly done."""
    return next((pid for pid, block in zip(processes(folder), blocks(folder), strict=True) if "HOLD" in block), None)


def check_all_made_once(rows, texts, but=(), kept=(".waiting.arrow.",)):
    """Check that every row was made once. kept: prefixes of files that may be left until the store clears them."""
    assert committed(rows) == Counter(text_id(text) for text in texts)
    good = [text for text in texts if text not in but]
    np.testing.assert_array_equal(rows.build_index().vectors(ids(good)), expected(good))
    assert sorted(rows.build_index().error_reasons(ids(texts))) == [i for i, text in enumerate(texts) if text in but]
    assert not [name for name in left_behind(rows.store) if not name.startswith(kept)]


def test_the_same_bytes_as_without_ray(cluster, rows, tmp_path, capfd):
    texts = [*TEXTS, "", "NAN", *TEXTS[:9]]
    local = CachedRows(Store(tmp_path / "local").open(), IDENTITY)
    (tmp_path / "here").mkdir()
    here = make_in_process(local, Shapes(str(tmp_path / "here")), [table(texts)])
    started, progress = [], []
    found = make_on_ray(
        rows, Shapes(str(tmp_path)), [table(texts)], 2, on_start=started.append, on_progress=progress.append
    )
    assert shards(rows) == shards(local)
    assert (found["rows"], found["errors"]) == (here["rows"], here["errors"]) == (42, 2)
    assert started == [42] and sum(progress) == 42 and max(progress) <= 4
    assert found["start_seconds"] > 0 and found["seconds"] >= 0
    assert len(set(processes(tmp_path))) <= 2 and os.getpid() not in processes(tmp_path)
    assert capfd.readouterr() == ("", "")
    check_all_made_once(rows, [*TEXTS, "", "NAN"], but=("", "NAN"))


def test_a_killed_worker_costs_at_most_its_block(cluster, rows, tmp_path):
    texts = [*TEXTS[:10], "HOLD", *TEXTS[10:]]

    def kill():
        pid = wait_for(lambda: holding(tmp_path))
        Path(tmp_path, "go").touch()
        os.kill(pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    make_on_ray(rows, Shapes(str(tmp_path)), [table(texts)], workers=2)
    killer.join()
    check_all_made_once(rows, texts)
    begun = Counter(map(tuple, blocks(tmp_path)))
    assert len(begun) == 11 and sorted(begun.values()) == [1] * 10 + [2]
    assert [count for block, count in begun.items() if "HOLD" in block] == [2]


def test_a_killed_driver_costs_at_most_a_block_of_each_worker(cluster, rows, tmp_path):
    environment = os.environ | {"PYTHONPATH": str(PROJECT_ROOT)}
    (tmp_path / "driver.py").write_text(DRIVER)
    driver = subprocess.Popen([sys.executable, tmp_path / "driver.py", tmp_path], cwd=PROJECT_ROOT, env=environment)
    wait_for(lambda: holding(tmp_path))
    driver.kill()
    driver.wait()
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in set(processes(tmp_path))), 30)
    texts, done = [*TEXTS[:20], "HOLD", *TEXTS[20:]], sum(committed(rows).values())
    assert 0 < done < 41
    Path(tmp_path, "go").touch()
    found = make_on_ray(rows, Shapes(str(tmp_path)), [table(texts)], workers=2)
    assert found["rows"] == 41 - done
    check_all_made_once(rows, texts, kept=(".waiting.arrow.", f"{os.uname().nodename}-{driver.pid}-"))  # and its marks
    begun = Counter(text for block in blocks(tmp_path) for text in block)
    assert set(begun.values()) == {1, 2} and sum(n == 2 for n in begun.values()) <= 2 * 4


def test_a_row_that_kills_its_worker_becomes_an_error(cluster, rows, tmp_path, capfd):
    texts = [*TEXTS[:6], "a KILL", *TEXTS[6:12]]
    assert make_on_ray(rows, Shapes(str(tmp_path)), [table(texts)], workers=1)["errors"] == 1
    check_all_made_once(rows, texts, but=("a KILL",))
    assert capfd.readouterr() == ("", "")
    assert "died or hung while it computed this row by itself" in rows.build_index().error_reasons(ids(texts))[6]
    begun = Counter(map(tuple, blocks(tmp_path)))
    assert begun[tuple(texts[4:8])] == begun["a KILL",] == 2
    assert begun[tuple(texts[:4])] == begun[tuple(texts[8:12])] == begun[tuple(texts[12:])] == 1


def test_workers_that_hang_are_killed_and_their_blocks_tried_again(cluster, rows, tmp_path):
    """A sleeping worker, and one in C code that holds the interpreter's lock, are killed and replaced."""
    texts = ["SLEEP ONCE", *TEXTS[:3], "SPIN ONCE", *TEXTS[3:8]]
    make_on_ray(rows, Shapes(str(tmp_path)), [table(texts)], workers=2, minutes=3 / 60)
    check_all_made_once(rows, texts)
    begun = Counter(map(tuple, blocks(tmp_path)))
    assert [begun[tuple(texts[at : at + 4])] for at in (0, 4, 8)] == [2, 2, 1]


@pytest.mark.parametrize(
    "recipe, texts, message",
    [(dict(refuses=True), TEXTS[:9], "this engine cannot start"), ({}, ["a", "RAISE"], "the worker cannot go on")],
)
def test_a_mistake_of_a_worker_is_the_driver_s(cluster, rows, tmp_path, recipe, texts, message):
    began = time.monotonic()
    with pytest.raises(UserError) as caught:
        make_on_ray(rows, Shapes(str(tmp_path), **recipe), [table(texts)], workers=1)
    assert caught.value.message == message and caught.value.hint
    assert time.monotonic() - began < 60
    assert left_behind(rows.store) == []


def test_workers_that_die_while_they_start_are_given_up(cluster, rows, tmp_path):
    class Heavy(Shapes):
        """Too large for the memory, say."""

        def start(self):
            with Path(self.folder, "starts").open("a") as log:
                log.write("x")
            os.kill(os.getpid(), signal.SIGKILL)

    cluster.register_pickle_by_value(sys.modules[__name__])
    with pytest.raises(UserError, match="workers died 5 times while loading"):
        make_on_ray(rows, Heavy(str(tmp_path)), [table(TEXTS)], workers=1)
    assert Path(tmp_path, "starts").read_text() == "x" * 5


def test_two_drivers_on_one_store(cluster, rows, tmp_path):
    def other():
        make_in_process(CachedRows(Store(rows.store.root), IDENTITY), Shapes(str(tmp_path)), [table(TEXTS)])

    rival = multiprocessing.get_context("fork").Process(target=other)
    rival.start()
    make_on_ray(rows, Shapes(str(tmp_path)), [table(TEXTS)], workers=1)
    rival.join(60)
    assert rival.exitcode == 0
    check_all_made_once(rows, TEXTS)


@pytest.mark.ray_cluster
def test_nothing_is_said_but_our_own(tmp_path):
    """The command, typed in its own process with its own Ray, prints only its own output."""
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps({"response": text}) + "\n" for text in TEXTS))
    command = [sys.executable, "-m", "harness.cli", "encode", path, "--encoder", "hashing-16"]
    found = subprocess.run(
        [*command, "--store", tmp_path / "store"],
        cwd=PROJECT_ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=400,
    )
    said = [line for line in found.stderr.splitlines() if line]
    assert said[0] == "40 vectors to make by hashing" and said[1].startswith("40 vectors made") and len(said) == 2
    (line,) = found.stdout.splitlines()
    assert line.startswith("40 rows made")
    assert not [name for name in left_behind(Store(tmp_path / "store"))]
