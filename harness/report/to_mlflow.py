"""Publishing to MLflow, which is a view of the store: anything lost or wrong in MLflow can be published again.

A suite is an experiment, `manyminds/<suite>`. A *row* of the board, that is one method setting on one task setting with
all its seeds, is one run; the step of its metrics is the number of shots. The board is one more run.

A run is tagged with the digest of its content, and is complete once it is terminated, which is done last. A run whose
digest is still right is kept. Otherwise a new run is written, and then the old one is deleted, so publishing may be
killed and repeated at any time. (MLflow keeps deleted runs until `mlflow gc`.) Runs of settings that have left the
suite stay, tagged with the digest of the suite they were in.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import hmac
import json
import math
import os
import re
import secrets
import shlex
import shutil
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from harness.atomic import private_path
from harness.board.board import Board, Row, TaskBoard
from harness.board.make import make_board
from harness.board.results import committed_manifest
from harness.errors import UserError
from harness.fields import field_values, name_at_version, recorded_values
from harness.store.secrets import without_secrets
from harness.store.store import Store
from harness.trials.plan import Plan
from harness.trials.trial import Trial, identity_hash

PUBLISH_VERSION = 5  # raised whenever the same results would be published differently
SUPPORTED_URIS = r"sqlite:///[^%?]+|(postgresql|mysql|mssql)(\+\w+)?://.+|https?://.+"
# Errors from these packages become user errors; they have no common base class.
MLFLOW_PACKAGES = ("alembic", "mlflow", "sqlalchemy", "sqlite3")
MAX_VALUE_CHARACTERS = 5000  # of a tag or parameter: servers since MLflow 2.8 store that many
MAX_NAME_CHARACTERS = 250  # of a run's name
CLIENT_SETTINGS = {  # for MLflow in this process, unless the environment has other values
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # stdout is for data
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",  # errors are raised anyway; the log is of migrations and retries
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # with the timeout below, an unreachable server is
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "8",  #     reported within 20 s instead of minutes
}
SERVER_SETTINGS = {  # for a server on this machine that shows the store
    "MLFLOW_HOST": "127.0.0.1",
    "MLFLOW_PORT": "5000",
    "MLFLOW_WORKERS": "1",  # the default of 4 would take 300 MB each
    "MLFLOW_SERVER_ALLOWED_HOSTS": "localhost,127.0.0.1,localhost:*,127.0.0.1:*",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "MLFLOW_SERVE_ARTIFACTS": "false",  # no uploads; artifacts of runs are still shown
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


@dataclass(frozen=True)
class RunRecord:
    """The content of one MLflow run.

    metrics: (name, value, step).  tables: columns by name, which the UI shows as tables.  files: makes the artifacts,
    called only when the run is written.
    """

    identity: str  # hash of the row's task, method and fields; `board` for the board
    name: str
    tags: dict[str, str]
    params: dict[str, str]
    metrics: tuple[tuple[str, float, int], ...] = ()
    tables: dict[str, dict[str, list]] = dataclasses.field(default_factory=dict)
    files: Callable[[], dict[str, bytes]] = dict
    files_digest: str = ""  # of the content of `files`, before users' ids are salted
    seconds: float = 0.0  # that the row's trials took, which MLflow shows as the run's duration

    @property
    def content_digest(self) -> str:
        """16 hex digits of the content, independent of the store's salt."""
        return identity_hash(
            {"version": PUBLISH_VERSION}
            | {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "files"}
        )


class Publisher:
    """A writer of one suite's results to one tracking URI, by default SQLite in the store.

    MLflow is imported at first use. Raises UserError for a URI that MLflow cannot store results at.
    """

    def __init__(self, plan: Plan, store: Store, uri: str | None = None) -> None:
        self.plan, self.store = plan, store
        self.own = uri is None
        self.uri = uri or f"sqlite:///{store.mlflow_paths['database']}"
        if self.uri.startswith("sqlite:///"):
            self.uri = f"sqlite:///{Path(self.uri.removeprefix('sqlite:///')).absolute()}"
        if not re.fullmatch(SUPPORTED_URIS, self.uri):
            if self.own:
                raise UserError(
                    f"the store is {store.root}, and MLflow can keep its database in no folder with % or ? in its name",
                    "name another folder: --store DIR; or another place for MLflow: --mlflow sqlite:////folder/mlflow.db",
                )
            raise UserError(
                f"MLflow cannot store results at {_without_password(self.uri)}, which --mlflow or MLFLOW_TRACKING_URI names",
                "for example sqlite:////folder/mlflow.db (without % and ?), postgresql://... or http://host:port; "
                "without either, results go to a file in the store",
            )
        self.artifacts = store.mlflow_paths["artifacts"]  # used with a database; a server chooses its own folder
        for name, value in CLIENT_SETTINGS.items():  # before anything imports MLflow, as Ray Tune does
            os.environ.setdefault(name, value)
        self.down = False
        self.page = ""  # URL path of the suite's experiment, once known

    def publish_trials(self, finished: list[Trial]) -> None:
        """Publish the rows that these trials complete, without ranks and gains, which need other rows. Never raises.

        After a failure, later calls do nothing; `publish_everything` reports the problem and publishes all rows.
        """
        if self.down:
            return
        try:
            records = [
                r for r in map(self._uncompared_record, dict.fromkeys((t.task, t.method) for t in finished)) if r
            ]
            if records:
                self._publish_records(records)
        except Exception:  # the results are in the store, so a problem with MLflow must not stop the run
            self.down = True

    def publish_everything(self, board: Board | None = None) -> None:
        """Publish every row with a finished trial, and the board.

        board: the suite's board, if it is made already. Raises UserError where MLflow cannot be reached or written.
        """
        board = board or make_board(self.plan, self.store)
        rows = [self._row_record(task, row, "compared") for task in board.tasks for row in task.rows if row.keys]
        # the UI lists the latest run first: the board, then rank 1, 2, ...
        self._publish_records([*rows[::-1], self._board_record(board)], f"# {board.suite.title}\n{_verdicts(board)}")

    def command_to_open(self) -> str:
        """Return the command that shows the results: a local server for a SQLite file, else the URI without password.

        The server's settings are written to `mlflow.env` in the store, which keeps the command short.
        """
        if not self.uri.startswith("sqlite:"):
            return _without_password(self.uri) + (self.page if self.uri.startswith("http") else "")
        settings = SERVER_SETTINGS | {
            "MLFLOW_BACKEND_STORE_URI": self.uri,
            "MLFLOW_DEFAULT_ARTIFACT_ROOT": self.artifacts.as_uri(),
        }
        file = self.store.mlflow_paths["settings"]
        file.write_text("".join(f"{name}={_dotenv_quoted(value)}\n" for name, value in settings.items()), "utf-8")
        beside = Path(sys.executable).with_name("mlflow")
        command = "mlflow" if shutil.which("mlflow") == str(beside) else shlex.quote(str(beside))
        address = f"http://{SERVER_SETTINGS['MLFLOW_HOST']}:{SERVER_SETTINGS['MLFLOW_PORT']}{self.page}"
        return f"{command} --env-file {shlex.quote(str(file))} server  # {address}"

    def _uncompared_record(self, pair: tuple) -> RunRecord | None:
        """Make the record of one task and method without comparing methods; None while trials are missing.

        The cost does not depend on the size of the suite.
        """
        trials = tuple(t for t in self.plan.trials if (t.task, t.method) == pair)
        suite = dataclasses.replace(self.plan.suite, tasks=(pair[0],))
        (task,) = make_board(dataclasses.replace(self.plan, suite=suite, trials=trials), self.store).tasks
        (row,) = task.rows
        own = dataclasses.replace(row, rank=None, gain=None, p=None, worse=None, users=None)
        return None if row.incomplete else self._row_record(task, own, "not compared yet")

    def _row_record(self, task: TaskBoard, row: Row, state: str) -> RunRecord:
        seeds = {trial.key: trial.seed for trial in self.plan.trials}
        facts = {key: committed_manifest(self.store, "trials", key)["facts"] for key in row.keys}
        fields = {"task": field_values(task.task), "method": field_values(row.method)}
        recorded = {"task": recorded_values(task.task), "method": recorded_values(row.method)}
        identity = identity_hash(
            {"task": name_at_version(task.task), "method": name_at_version(row.method), "fields": recorded}
        )
        if row.incomplete:
            state = row.incomplete.partition(":")[0]  # without the error's text, which may quote the data
        tags = {
            "task": task.label,
            "method": row.label,
            "seeds": " ".join(str(seeds[key]) for key in row.keys),
            "trials": " ".join(row.keys),
            "code": " ".join(sorted({f["code"] for f in facts.values()})),
            "state": f"{state}, privileged: not ranked" if row.privileged else state,
        }
        users = row.users

        def files() -> dict[str, bytes]:
            told = [
                {"key": k, "seed": seeds[k]} | {n: v for n, v in facts[k].items() if n != "curves"} for k in row.keys
            ]
            made = {"trials.json": json.dumps(told, indent=1).encode()}
            return (
                made
                if users is None
                else made | {"users.csv": self._with_salted_people(task, users).write_csv().encode()}
            )

        return RunRecord(
            identity=identity,
            name=f"{row.label} on {task.label}",
            tags={"kind": "row"} | tags,
            params={
                f"{kind}.{name}": _value_text(value)
                for kind, values in fields.items()
                for name, value in values.items()
            },
            metrics=tuple(row_metrics(row, task)),
            files=files,
            files_digest=hashlib.sha256(b"" if users is None else users.write_csv().encode()).hexdigest(),
            seconds=sum(told["seconds"] for told in facts.values()),
        )

    def _board_record(self, board: Board) -> RunRecord:
        lines = []
        for task in board.tasks:
            for row in task.rows:
                last = {name: value for name, value, step in row_metrics(row, task) if step == task.shots}
                state = (
                    row.incomplete.partition(":")[0]
                    if row.incomplete
                    else "privileged: not ranked"
                    if row.privileged
                    else "ranked"
                )
                lines.append(
                    {"task": task.label, "rank": None, "method": row.label, "state": state, "shots": task.shots} | last
                )
        tasks = [
            {
                "task": t.label,
                "verdict": t.verdict,
                "people": t.people,
                "seeds": t.seeds,
                "shots": t.shots,
                "note": t.note,
                "flags": "; ".join(t.flags),
                "refusals": "; ".join(f"{method}: {reason}" for method, reason in t.refusals.items()),
            }
            for t in board.tasks
        ]
        verdicts = _verdicts(board)
        flags = "\n".join(f"{t.label}: {flag}" for t in board.tasks for flag in t.flags)
        failed = any(":" in (row.incomplete or "") for task in board.tasks for row in task.rows)

        def files() -> dict[str, bytes]:
            from harness.report.html import published_page

            if failed:  # the page would show the errors' texts, which may quote the data
                return {}
            return {"board.html": published_page(board).encode()}

        return RunRecord(
            identity="board",
            name="board",
            tags={
                "kind": "board",
                "verdicts": verdicts,
                "flags": flags or "none",
                "mlflow.note.content": verdicts.replace("\n", "\n\n"),
            },
            params={
                "title": board.suite.title,
                "suite": board.suite.digest,
                "board": board.results_digest,
                "margin": f"{board.suite.margin:g}",
                "seeds": _value_text(board.suite.seeds),
            },
            tables={"leaderboard.json": _rows_as_columns(lines), "tasks.json": _rows_as_columns(tasks)},
            files=files,
        )

    def _with_salted_people(self, task: TaskBoard, users: pl.DataFrame) -> pl.DataFrame:
        """Replace users' ids by salted hashes: a person has one hash per task and store, and another one elsewhere."""
        salt = _read_salt(self.store)
        place = identity_hash({"task": name_at_version(task.task), "fields": recorded_values(task.task)})
        names = [hmac.new(salt, f"{place}/{person}".encode(), "sha256").hexdigest()[:16] for person in users["person"]]
        hidden = users.with_columns(pl.Series("person", names)).rename({"person": "user"})
        return hidden.sort("user")  # the original order would reveal the people

    def _publish_records(self, records: list[RunRecord], description: str = "") -> None:
        """Make MLflow hold each record exactly once, in its current state.

        description: Markdown that the UI shows above the experiment's runs; "" leaves it as it is.
        """
        with self._mlflow_errors_as_user_errors(), _publishing_lock(self._lock_file()):
            client = self._open_client()
            experiment = self._experiment_id(client)
            # without workflowType the UI shows its view for chat bots
            self.page = f"/#/experiments/{experiment}/runs?workflowType=machine_learning"
            if description:
                client.set_experiment_tag(
                    experiment, "mlflow.note.content", _cut_value(description.replace("\n", "\n\n"))
                )
            wanted = f"tags.row = '{records[0].identity}'" if len(records) == 1 else ""
            found: dict[str, list] = {}
            for run in _find_runs(client, experiment, wanted):
                found.setdefault(run.data.tags.get("row"), []).append(run)
            for record in records:
                digest, suite = record.content_digest, self.plan.suite.digest
                runs = found.get(record.identity, [])
                whole = [r for r in runs if r.info.status == "FINISHED"]
                kept = next((r for r in whole if r.data.tags.get("digest") == digest), None)
                if kept is None:
                    self._write_run(client, experiment, record, digest, suite)
                elif kept.data.tags.get("suite") != suite:
                    client.set_tag(kept.info.run_id, "suite", suite)
                for run in runs:
                    if run is not kept:  # outdated, left incomplete by a crash, or written twice by two machines
                        client.delete_run(run.info.run_id)

    def _write_run(self, client, experiment: str, record: RunRecord, digest: str, suite: str) -> None:
        from mlflow.entities import Metric, Param

        now = int(time.time() * 1000)
        tags = record.tags | {"row": record.identity, "digest": digest, "suite": suite}
        tags = {name: _cut_value(value) for name, value in tags.items()}
        began = now - round(1000 * record.seconds)
        run = client.create_run(
            experiment, start_time=began, tags=tags, run_name=record.name[:MAX_NAME_CHARACTERS]
        ).info.run_id
        metrics = [Metric(name, value, now, step) for name, value, step in record.metrics]
        # one batch is 7 times faster than single calls
        client.log_batch(run, metrics, [Param(name, _cut_value(value)) for name, value in record.params.items()])
        with tempfile.TemporaryDirectory() as folder:
            for name, content in record.files().items():
                Path(folder, name).write_bytes(content)
            client.log_artifacts(run, folder)
        for name, columns in record.tables.items():
            client.log_table(run, columns, name)
        client.set_terminated(run, end_time=now)

    def _open_client(self):
        if self.uri.startswith("sqlite:"):
            path = self._database_file()
            if not path.exists() or not path.stat().st_size:
                self._create_database(path)
            with contextlib.closing(sqlite3.connect(path, timeout=10)) as database:  # MLflow itself would try for 100 s
                database.execute("BEGIN IMMEDIATE")
        from mlflow import MlflowClient

        if not self.uri.startswith("http"):
            import mlflow.store.db.utils as database

            database.MAX_RETRY_COUNT = 3  # the default of 10 takes 100 s to report an unreachable database
        return MlflowClient(tracking_uri=self.uri)

    def _database_file(self) -> Path:
        return Path(self.uri.removeprefix("sqlite:///"))

    def _create_database(self, path: Path) -> None:
        """Create MLflow's tables under another name, and rename: a kill or a full disk leaves no half-made database."""
        from mlflow.store.db import utils

        private = private_path(path, self.store.scratch_folder if self.own else None)
        try:
            engine = utils.create_sqlalchemy_engine(f"sqlite:///{private}")
            utils._initialize_tables(engine)
            engine.dispose()
            private.replace(path)
        finally:
            private.unlink(missing_ok=True)

    def _lock_file(self) -> Path:
        """Return the lock of the one process that writes: beside a SQLite file, which several stores may share."""
        if self.own or not self.uri.startswith("sqlite:"):
            return self.store.mlflow_paths["lock"]
        path = self._database_file()
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.with_name(f"{path.name}.lock")

    def _experiment_id(self, client) -> str:
        """Return the id of the suite's experiment, which is created, or restored if it was deleted."""
        name = f"manyminds/{self.store.name_of_suite(self.plan.suite.name, self.plan.suite.file)}"
        place = None if self.uri.startswith("http") else self.artifacts.as_uri()
        found = client.get_experiment_by_name(name)
        if found is None:
            return client.create_experiment(name, place)
        if found.lifecycle_stage == "deleted":
            client.restore_experiment(found.experiment_id)
        if self.own and found.artifact_location != place:
            raise UserError(
                f"the store was moved to {self.store.root}, but its MLflow database still points to "
                f"{found.artifact_location}",
                f"rm {shlex.quote(str(self._database_file()))}, then `manyminds publish`, which makes the database again from the store",
            )
        return found.experiment_id

    @contextlib.contextmanager
    def _mlflow_errors_as_user_errors(self) -> Iterator[None]:
        """Turn errors of MLflow, its database, its server and missing drivers into user errors."""
        try:
            yield
        except Exception as error:
            if (
                not isinstance(error, OSError | ImportError)
                and type(error).__module__.partition(".")[0] not in MLFLOW_PACKAGES
            ):
                raise
            said = _without_password(
                (str(error).splitlines() or [type(error).__name__])[0].rpartition("Caused by ")[2]
            )[:300]
            if self.uri.startswith("http"):
                hint = (
                    "check that the server runs and lets you write; without --mlflow, results go to a file in the store"
                )
            elif self.own:
                hint = (
                    "check that no other program locks the file and that the disk is not full; the file may be "
                    "removed, and `manyminds publish` makes it again from the store"
                )
            else:
                hint = "check that the database runs, that its driver is installed, and that you can write to it"
            raise UserError(f"MLflow at {_without_password(self.uri)} cannot be written: {said}", hint) from error


def _verdicts(board: Board) -> str:
    """Return the board's verdicts, a line for each task, that across tasks first."""
    across = [f"across tasks: {board.across.verdict}"] if board.across else []
    return "\n".join([*across, *(f"{task.label}: {task.verdict}" for task in board.tasks)])


def row_metrics(row: Row, task: TaskBoard) -> Iterator[tuple[str, float, int]]:
    """Yield a row's metrics as (name, value, shots): at most 30 names, and five more for a policy.

    A number that a row has only once, such as its rank or a cost, is yielded with the largest number of shots.
    """
    last = task.shots
    told: list[tuple[str, float | None, int]] = []
    for metric, curve in row.curves.items():
        for shots, point in curve.items():
            told.append((metric, point.value, shots))
            if metric not in (
                "ece",
                "brier",
                "sign_accuracy",
                "rank_correlation",
                "scale_error",
            ):  # no limits of these, to have fewer names; `manyminds board --json` prints them
                told += [(f"{metric}_low", point.low, shots), (f"{metric}_high", point.high, shots)]
    if row.gain:
        told += [("gain", row.gain.value, last), ("gain_low", row.gain.low, last), ("gain_high", row.gain.high, last)]
    if row.rank:
        told += [
            (name, float(value), last) for name, value in zip(("rank", "rank_low", "rank_high"), row.rank, strict=True)
        ]
    for shots, best in row.best_of.items():
        n, gain = list(best.gain.items())[-1]
        told += [("best_of_gain", gain.value, shots), ("best_of_win", best.win_random[n].value, shots)]
    for shots, own in row.written.items():
        names = [name for name in ("gain", "win", "kl", "tokens") if name in own.scores]
        told += [(f"written_{name}", own.scores[name].value, shots) for name in names]
    told += [("p", row.p, last), ("swapped", row.swapped, last)]
    if row.worse:
        told += [("worse", row.worse.naive, last), ("worse_by_chance", row.worse.null, last)]
    if row.worst:
        told += [("worst_fitted", row.worst.fitted, last)]
    told += [(name, value, last) for name, value in row.costs.items()]
    return ((name, value, step) for name, value, step in told if value is not None and math.isfinite(value))


def _rows_as_columns(rows: list[dict]) -> dict[str, list]:
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def _find_runs(client, experiment: str, wanted: str) -> Iterator:
    token = None
    while True:
        page = client.search_runs([experiment], wanted, max_results=1000, page_token=token)
        yield from page
        if not (token := page.token):
            return


def _read_salt(store: Store) -> bytes:
    """Return 32 random bytes, made once per store and never published.

    A reader without the salt cannot find the person behind a published hash by hashing known ids.
    """
    path = store.salt_file
    if not path.exists():
        private = private_path(path)
        with os.fdopen(os.open(private, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(secrets.token_bytes(32))
        with contextlib.suppress(FileExistsError):
            os.link(private, path)
        private.unlink()
    return path.read_bytes()


@contextlib.contextmanager
def _publishing_lock(path: Path) -> Iterator[None]:
    """Let one process publish at a time, since two that both find no run would both write it.

    On a file system without locks a run may be written twice; the next publishing deletes one of them.
    """
    with path.open("w", encoding="utf-8") as file:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _value_text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _cut_value(text: str) -> str:
    return text if len(text) <= MAX_VALUE_CHARACTERS else f"{text[: MAX_VALUE_CHARACTERS - 4]} ..."


def _dotenv_quoted(value: str) -> str:
    """Quote a value for a dotenv file."""
    return "'" + value.replace("\\", r"\\").replace("'", r"\'") + "'"


def _without_password(text: str) -> str:
    """Remove the user and password from the text's URIs, and secrets of the environment."""
    return re.sub(r"//[^/\s]+@", "//", without_secrets(text))
