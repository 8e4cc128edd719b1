"""Eight machines publish one suite to one PostgreSQL database at once: no run is lost, and none is there twice."""

import getpass
import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from harness.board.make import make_board
from harness.registry import PROJECT_ROOT
from harness.store.store import Store
from harness.trials.finish import finish_trials
from harness.trials.plan import make_plan
from harness.trials.suite import read_suite

SUITE = """
seeds = 3
controls = false
[[tasks]]
name = "low_rank"
n_users = 20
new_users = 10
pairs_per_user = 20
feature_dim = 4
rank = 2
shots = [0, 2, 4]
queries = 10
[[methods]]
name = "shared"
[[methods]]
name = "spectral"
[[methods]]
name = "oracle"
"""
PUBLISHERS = 8
# Publishes every row without comparison, as a running suite does, and then the board; starts when the file `go` is there.
PUBLISH = """
import sys, time
from pathlib import Path
from harness.report.to_mlflow import Publisher
from harness.store.store import Store
from harness.trials.plan import make_plan
from harness.trials.suite import read_suite
import mlflow

suite, store, uri, go = sys.argv[1:]
opened = Store(Path(store)).open()
plan = make_plan(read_suite(Path(suite)), opened)
Path(store, "ready").touch()
while not Path(go).exists():
    time.sleep(0.05)
publisher = Publisher(plan, opened, uri)
publisher.publish_trials(list(plan.trials))
if publisher.down:
    publisher.publish_everything()
    sys.exit("the first publication failed, the second did not")
publisher.publish_everything()
"""


def postgres_binaries() -> Path | None:
    """Return the folder of PostgreSQL's programs: those on the path, else those of Debian's package."""
    found = shutil.which("initdb")
    folders = [Path(found).parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    return folders[-1] if folders else None


@pytest.fixture(scope="module")
def database():
    """The URI of an empty PostgreSQL database, whose server ends with the tests."""
    binaries = postgres_binaries()
    if binaries is None:
        pytest.skip("PostgreSQL is not installed: apt-get install --no-install-recommends postgresql")
    pytest.importorskip("psycopg", reason="the driver is missing: pip install psycopg[binary]")
    user, prefix = getpass.getuser(), []
    folder = Path(tempfile.mkdtemp(prefix="manyminds-postgres-"))
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        try:
            account = pwd.getpwnam("postgres")
        except KeyError:
            pytest.skip("PostgreSQL does not run as root, and there is no user `postgres`")
        user, prefix = "postgres", ["runuser", "-u", "postgres", "--"]
        os.chown(folder, account.pw_uid, account.pw_gid)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    data = folder / "data"
    said = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": "/"}
    subprocess.run([*prefix, binaries / "initdb", "-D", data, "-U", user, "-A", "trust"], check=True, **said)
    control = [*prefix, binaries / "pg_ctl", "-D", data, "-w"]
    options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1"
    subprocess.run([*control, "-o", options, "-l", folder / "log", "start"], check=True, **said)
    try:
        yield f"postgresql://{user}@127.0.0.1:{port}/postgres"
    finally:
        subprocess.run([*control, "-m", "immediate", "stop"], check=False, **said)
        shutil.rmtree(folder, ignore_errors=True)


def publish_at_once(folder: Path, database: str, suite: Path) -> list[str]:
    """Publish the suite from eight copies of the store at the same moment. Returns what each one said of a failure."""
    go = folder / "go"
    go.unlink(missing_ok=True)
    stores = [folder / f"copy{number}" for number in range(PUBLISHERS)]
    for store in stores:
        if not store.exists():
            shutil.copytree(folder / "store", store)
        (store / "ready").unlink(missing_ok=True)
    running = [
        subprocess.Popen(
            [sys.executable, "-c", PUBLISH, suite, store, database, go],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            cwd=PROJECT_ROOT,
            env=os.environ | {"PYTHONPATH": str(PROJECT_ROOT)},
        )
        for store in stores
    ]
    deadline = time.monotonic() + 200
    while not all((store / "ready").exists() for store in stores) and time.monotonic() < deadline:
        time.sleep(0.2)
    go.touch()
    said = [process.communicate(timeout=300)[1] for process in running]
    return [text for process, text in zip(running, said, strict=True) if process.returncode]


@pytest.mark.slow
def test_eight_publishers_write_every_run_once(database, tmp_path):
    """The database is empty at first, so all eight also want to make its tables and the experiment."""
    suite = tmp_path / "eight.toml"
    suite.write_text(SUITE)
    store = Store(tmp_path / "store").open()
    plan = make_plan(read_suite(suite), store)
    assert all(done for _, done in finish_trials(plan.trials, store))
    assert publish_at_once(tmp_path, database, suite) == []
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=database)

    def published() -> list:
        experiment = client.get_experiment_by_name("manyminds/eight")
        return list(client.search_runs([experiment.experiment_id], run_view_type=3))  # also those marked as deleted

    runs = published()
    assert len({run.data.tags["row"] for run in runs}) == len(runs) == 4
    (task,) = make_board(plan, store).tasks
    rows = {row.label: row for row in task.rows}
    for run in runs:
        assert run.info.status == "FINISHED" and run.info.lifecycle_stage == "active" and run.data.tags["digest"]
        if run.data.tags["kind"] == "row":
            row = rows[run.data.tags["method"]]
            assert run.data.metrics["accuracy"] == pytest.approx(row.curves["accuracy"][4].value, rel=5e-4)
            assert ("rank" in run.data.metrics) == (row.rank is not None)
            for name in run.data.metrics:
                points = client.get_metric_history(run.info.run_id, name)
                assert len(points) == len({point.step for point in points}), name
    assert publish_at_once(tmp_path, database, suite) == []
    assert {run.info.run_id for run in published()} == {run.info.run_id for run in runs}
