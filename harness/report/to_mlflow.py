"""Publishing to MLflow, which is a view of the store: anything lost or wrong in MLflow can be published again.

A suite is an experiment, `manyminds/<suite>`, that opens with its leaderboard. `mlflow_records` says what each run holds.

A run is tagged with the digest of its content, and is complete once it is terminated. A run whose digest is still right is
kept. A run that has the right parameters and curves is updated in place: it gets other numbers, tags and files, and the
digest last. Otherwise a new run is written, and then the old one is removed, because a parameter or a point of a curve
cannot be changed. So publishing may be killed and repeated at any time.

A removed run is gone from a database. A server has no call for that: there it is marked as deleted, and `mlflow gc`, typed
where the server runs, ends it. Runs of settings that have left the suite stay, tagged with the digest of the suite they
were in.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shlex
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import url2pathname

from harness.atomic import private_path
from harness.board.board import Board
from harness.board.make import make_board
from harness.errors import UserError
from harness.report.mlflow_records import (
    BOARD_ROW,
    MAX_NAME_CHARACTERS,
    RecordMaker,
    RunRecord,
    board_version,
    cut_value,
    table_json,
)
from harness.report.mlflow_server import way_to_open, without_password
from harness.report.mlflow_view import (
    VIEW_KEY,
    experiment_description,
    leaderboard_view,
    state_of_view,
    view_value,
)
from harness.store.store import Store
from harness.trials.plan import Plan
from harness.trials.trial import Trial

SUPPORTED_URIS = r"sqlite:///[^%?]+|(postgresql|mysql|mssql)(\+\w+)?://.+|https?://.+"
# Errors from these packages become user errors; they have no common base class.
MLFLOW_PACKAGES = ("alembic", "mlflow", "sqlalchemy", "sqlite3")
MAX_ATTEMPTS = 3  # to publish to a server that other machines publish to
MAX_WRITING_SECONDS = 600  # an unfinished run that is older was left by a crash
FEW_RECORDS = 3  # are looked up one by one; more with one list of all runs
LOCK_NUMBER = 0x6D616E796D696E64  # of PostgreSQL's advisory lock: any number that other programs do not use
CLIENT_SETTINGS = {  # for MLflow in this process, unless the environment has other values
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # stdout is for data
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",  # errors are raised anyway; the log is of migrations and retries
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # with the timeout below, an unreachable server is
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "8",  #     reported within 20 s instead of minutes
}


class Publisher:
    """A writer of one suite's results to one tracking URI, by default SQLite in the store.

    MLflow is imported at first use. Raises UserError for a URI that MLflow cannot store results at.
    """

    def __init__(self, plan: Plan, store: Store, uri: str | None = None) -> None:
        self.plan, self.store, self.records = plan, store, RecordMaker(plan, store)
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
                f"MLflow cannot store results at {without_password(self.uri)}, which --mlflow or MLFLOW_TRACKING_URI names",
                "for example sqlite:////folder/mlflow.db (without % and ?), postgresql://... or http://host:port; "
                "without either, results go to a file in the store",
            )
        self.artifacts = store.mlflow_paths["artifacts"]  # used with a database; a server chooses its own folder
        for name, value in CLIENT_SETTINGS.items():  # before anything imports MLflow, as Ray Tune does
            os.environ.setdefault(name, value)
        self.down = False
        self.page = ""  # URL path of the suite's leaderboard, once known

    def publish_trials(self, finished: list[Trial]) -> None:
        """Publish the rows that these trials complete, without ranks and gains, which need other rows. Never raises.

        After a failure, later calls do nothing; `publish_everything` reports the problem and publishes all rows.
        """
        if self.down:
            return
        try:
            pairs = dict.fromkeys((t.task, t.method) for t in finished)
            records = [r for r in map(self.records.uncompared_record, pairs) if r]
            if records:
                self._publish_records(records)
        except Exception:  # the results are in the store, so a problem with MLflow must not stop the run
            self.down = True

    def publish_everything(self, board: Board | None = None) -> None:
        """Publish every row with a finished trial, and the board.

        board: the suite's board, if it is made already. Raises UserError where MLflow cannot be reached or written.
        """
        board = board or make_board(self.plan, self.store)
        self._publish_records(self.records.every_row(board), board)

    def publish_if_changed(self, board: Board) -> None:
        """Publish everything unless MLflow's run of the board says that it shows this one. Rows are not looked at.

        Raises UserError where MLflow cannot be reached or written.
        """
        with self._mlflow_errors_as_user_errors(), _publishing_lock(self._lock_file()), self._database_lock():
            client = self._open_client()
            experiment = self._experiment_id(client)
            runs = _runs_by_row(client, experiment, [BOARD_ROW]).get(BOARD_ROW, [])
            self.page = _page_of(experiment)
        wanted = {"shows": board_version(board), "suite": self._suite_digest}
        whole = [run for run in runs if run.info.status == "FINISHED" and _digest_of(run)]
        if [wanted] != [{name: run.data.tags.get(name) for name in wanted} for run in whole]:
            self.publish_everything(board)

    def command_to_open(self) -> str:
        """Return the command that shows the leaderboard, or its address on a server."""
        return way_to_open(self.uri, self.page, self.store.mlflow_paths["settings"], self.artifacts)

    def _publish_records(self, rows: list[RunRecord], board: Board | None = None) -> None:
        """Make MLflow hold each row exactly once, in its current state, below the run of the board.

        A server has no lock that machines could share: where another one has removed a run in the meantime, try again.
        board: published too; without it, that run is only there, as running.
        """
        with self._mlflow_errors_as_user_errors(), _publishing_lock(self._lock_file()), self._database_lock():
            client = self._open_client()
            from mlflow.exceptions import MlflowException

            for attempt in range(MAX_ATTEMPTS):
                try:
                    return self._publish_once(client, rows, board)
                except MlflowException as error:
                    removed = error.error_code in ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST")
                    if not (removed and self._is_server) or attempt == MAX_ATTEMPTS - 1:
                        raise

    def _publish_once(self, client, rows: list[RunRecord], board: Board | None) -> None:
        experiment = self._experiment_id(client)
        self.page = _page_of(experiment)
        found = _runs_by_row(client, experiment, [BOARD_ROW, *(record.identity for record in rows)])
        parent = self._parent_run(client, experiment, found.get(BOARD_ROW, []))
        for record in rows:
            self._keep_once(client, experiment, record, found.get(record.identity, []), parent.info.run_id)
        self._describe_experiment(client, experiment, rows, board)
        if board:
            seconds = sum(record.seconds for record in rows)
            record = self.records.board_record(board, seconds)
            if _digest_of(parent) != record.content_digest or parent.data.tags.get("suite") != self._suite_digest:
                self._update_run(client, parent, record)
                end = parent.info.start_time + round(1000 * seconds)
                client.set_terminated(parent.info.run_id, end_time=end)
            self._end_deleted_runs(client, experiment)

    @property
    def _is_server(self) -> bool:
        """Whether results go to a tracking server instead of a database."""
        return self.uri.startswith("http")

    @property
    def _is_alone(self) -> bool:
        """Whether a lock keeps processes of all machines from publishing at the same time."""
        return self.uri.startswith(("sqlite:", "postgresql"))

    @property
    def _suite_digest(self) -> str:
        return self.plan.suite.digest

    def _describe_experiment(self, client, experiment: str, rows: list[RunRecord], board: Board | None) -> None:
        """Set what the experiment opens with: mode, view and description. Without a board, an existing view stays."""
        held = client.get_experiment(experiment).tags
        wanted = {"mlflow.experimentKind": "custom_model_development"}  # else the UI takes it for one of chat bots
        view, state = f"mlflow.sharedViewState.{VIEW_KEY}", leaderboard_view(rows)
        if view not in held or (board and state_of_view(held[view]) != state):
            wanted[view] = view_value(state, int(time.time() * 1000))
        if board:
            wanted["mlflow.note.content"] = experiment_description(board)
        for name, value in wanted.items():
            if held.get(name) != value:
                client.set_experiment_tag(experiment, name, value)

    def _parent_run(self, client, experiment: str, runs: list):
        """Return the run of the board, created where there is none; more than one can be left by two machines."""
        usable = [run for run in runs if not run.data.params]  # earlier versions wrote parameters, which cannot change
        kept = min(usable, key=lambda run: run.info.run_id, default=None)
        for run in runs:
            if run is not kept:
                self._remove_run(client, run)
        if kept:
            return kept
        tags = {"kind": "board", "row": BOARD_ROW, "suite": self._suite_digest}
        return client.create_run(experiment, tags=tags, run_name=f"board of {self.plan.suite.name}")

    def _keep_once(self, client, experiment: str, record: RunRecord, runs: list, parent: str) -> None:
        """Make one run hold a record: one that holds it already, one that can be updated, or a new one.

        A record without comparison leaves a run of the same curves as it is: that one may be compared already.
        """

        def held_by(runs: list):
            whole = sorted((run for run in runs if run.info.status == "FINISHED"), key=lambda run: run.info.run_id)
            return next((run for run in whole if _digest_of(run) == record.content_digest), None) or next(
                (run for run in whole if _can_become(run, record)), None
            )

        kept = held_by(runs)
        if kept is None:
            self._write_run(client, experiment, record, parent)
            if not self._is_alone:
                # another machine may have written it in the meantime; all choose the same one to keep
                runs = _runs_by_row(client, experiment, [record.identity])[record.identity]
                kept = held_by(runs)
        elif _digest_of(kept) != record.content_digest and record.compared:
            self._update_run(client, kept, record, parent)
        else:
            for name, value in {"suite": self._suite_digest, "mlflow.parentRunId": parent}.items():
                if kept.data.tags.get(name) != value:
                    client.set_tag(kept.info.run_id, name, value)
        for run in runs:
            # outdated, left incomplete by a crash, or written twice by two machines
            if run is not kept and not self._is_being_written(run):
                self._remove_run(client, run)

    def _is_being_written(self, run) -> bool:
        """Return whether another machine may be writing this run to the same server; on a database, the lock is ours."""
        age = time.time() * 1000 - float(run.data.tags.get("created_ms", 0))
        return self._is_server and run.info.status == "RUNNING" and age < 1000 * MAX_WRITING_SECONDS

    def _write_run(self, client, experiment: str, record: RunRecord, parent: str = "") -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param

        now = int(time.time() * 1000)
        began = now - round(1000 * record.seconds)
        name = record.name[:MAX_NAME_CHARACTERS]
        tags = self._tags(record, parent) | {"created_ms": str(now)}
        run = client.create_run(experiment, start_time=began, tags=tags, run_name=name)
        run_id = run.info.run_id
        points = [*record.curves, *((name, value, 0) for name, value in record.scalars.items())]
        metrics = [Metric(name, value, now, step) for name, value, step in points]
        # one batch is 7 times faster than single calls
        client.log_batch(run_id, metrics, [Param(name, cut_value(value)) for name, value in record.params.items()])
        inputs = [
            DatasetInput(
                Dataset(name, key, "manyminds", json.dumps({"prepared_task": key, "seed": seed})),
                [InputTag("mlflow.data.context", f"seed {seed}")],
            )
            for name, key, seed in record.datasets
        ]
        if inputs:
            client.log_inputs(run_id, inputs)
        self._write_files(client, run, record)
        client.set_terminated(run_id, end_time=now)

    def _update_run(self, client, run, record: RunRecord, parent: str = "") -> None:
        """Give an existing run the record's numbers, tags and files. Its digest is set last, after a kill it is empty."""
        from mlflow.entities import Metric, RunTag

        now, run_id, tags = int(time.time() * 1000), run.info.run_id, self._tags(record, parent)
        client.set_tag(run_id, "digest", "")
        changed = {name: value for name, value in record.scalars.items() if run.data.metrics.get(name) != value}
        texts = {name: value for name, value in tags.items() if name != "digest" and run.data.tags.get(name) != value}
        metrics = [Metric(name, value, now, 0) for name, value in changed.items()]
        client.log_batch(run_id, metrics, tags=[RunTag(name, value) for name, value in texts.items()])
        if run.info.run_name != record.name[:MAX_NAME_CHARACTERS]:
            client.update_run(run_id, name=record.name[:MAX_NAME_CHARACTERS])
        self._write_files(client, run, record)
        client.set_tag(run_id, "digest", tags["digest"])

    def _tags(self, record: RunRecord, parent: str) -> dict[str, str]:
        own = {"row": record.identity, "digest": record.content_digest, "fixed": record.fixed_digest}
        own["suite"] = self._suite_digest
        if parent:
            own["mlflow.parentRunId"] = parent
        if record.tables:  # the UI draws these files as tables
            shown = [{"path": name, "type": "table"} for name in record.tables]
            own["mlflow.loggedArtifacts"] = json.dumps(shown)
        return {name: cut_value(value) for name, value in (record.tags | own).items()}

    def _write_files(self, client, run, record: RunRecord) -> None:
        """Write the record's files and tables, over those of the same names."""
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        written = record.files() | {name: table_json(columns) for name, columns in record.tables.items()}
        with tempfile.TemporaryDirectory() as folder:
            for name, content in written.items():
                Path(folder, name).write_bytes(content)
            if self._is_server:
                client.log_artifacts(run.info.run_id, folder)
            else:  # without reading the run from the database again
                get_artifact_repository(run.info.artifact_uri).log_artifacts(folder)

    def _remove_run(self, client, run) -> None:
        """Delete a run: from a database with its files, on a server only for the eye."""
        if self._is_server:
            from mlflow.exceptions import MlflowException

            with contextlib.suppress(MlflowException):  # another machine has deleted it
                client.delete_run(run.info.run_id)
            return
        client.delete_run(run.info.run_id)
        self._end_run(client, run)

    def _end_run(self, client, run) -> None:
        """Remove a deleted run from a database, as `mlflow gc` does."""
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        with contextlib.suppress(OSError):  # the files are in a folder of another machine, or gone
            get_artifact_repository(run.info.artifact_uri).delete_artifacts()
            if run.info.artifact_uri.startswith("file:"):  # MLflow removes what is inside the run's folder
                Path(url2pathname(urlparse(run.info.artifact_uri).path)).parent.rmdir()
        client._tracking_client.store._hard_delete_run(run.info.run_id)

    def _end_deleted_runs(self, client, experiment: str) -> None:
        """Remove runs that are only marked as deleted: by earlier versions, or before a kill. Runs of others stay."""
        if self._is_server:
            return
        from mlflow.entities import ViewType

        for run in list(_find_runs(client, experiment, "", ViewType.DELETED_ONLY)):
            if "row" in run.data.tags and "digest" in run.data.tags:
                self._end_run(client, run)

    @contextlib.contextmanager
    def _database_lock(self) -> Iterator[None]:
        """Let one process of all machines publish to a PostgreSQL database at a time, also while its tables are made."""
        if not self.uri.startswith("postgresql"):
            yield
            return
        import sqlalchemy

        engine = sqlalchemy.create_engine(self.uri, poolclass=sqlalchemy.NullPool, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:  # closing it releases the lock
            connection.execute(sqlalchemy.text(f"SELECT pg_advisory_lock({LOCK_NUMBER})"))
            yield

    def _open_client(self):
        if self.uri.startswith("sqlite:"):
            path = self._database_file()
            if not path.exists() or not path.stat().st_size:
                self._create_database(path)
            with contextlib.closing(sqlite3.connect(path, timeout=10)) as database:  # MLflow itself would try for 100 s
                database.execute("BEGIN IMMEDIATE")
        from mlflow import MlflowClient

        if not self._is_server:
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
        place = None if self._is_server else self.artifacts.as_uri()
        found = client.get_experiment_by_name(name)
        if found is None:
            from mlflow.exceptions import MlflowException

            try:
                return client.create_experiment(name, place)
            except MlflowException as error:
                found = client.get_experiment_by_name(name)
                if error.error_code != "RESOURCE_ALREADY_EXISTS" or found is None:
                    raise
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
            said = without_password((str(error).splitlines() or [type(error).__name__])[0].rpartition("Caused by ")[2])[
                :300
            ]
            if self._is_server:
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
            raise UserError(f"MLflow at {without_password(self.uri)} cannot be written: {said}", hint) from error


def _find_runs(client, experiment: str, wanted: str, view: int = 1) -> Iterator:
    """Yield an experiment's runs. view: MLflow's ViewType, which is 1 for runs that are not deleted."""
    token = None
    while True:
        page = client.search_runs([experiment], wanted, run_view_type=view, max_results=1000, page_token=token)
        yield from page
        if not (token := page.token):
            return


def _runs_by_row(client, experiment: str, rows: list[str]) -> dict[str, list]:
    """Return the runs that are not deleted, by the identity of their row."""
    wanted = [f"tags.row = '{row}'" for row in rows] if len(rows) <= FEW_RECORDS else [""]
    found: dict[str, list] = {}
    for run in (run for each in wanted for run in _find_runs(client, experiment, each)):
        found.setdefault(run.data.tags.get("row", ""), []).append(run)
    return found


def _page_of(experiment: str) -> str:
    """Return the URL path of the leaderboard; without workflowType the UI shows its view for chat bots."""
    return f"/#/experiments/{experiment}/runs?viewStateShareKey={VIEW_KEY}&workflowType=machine_learning"


def _digest_of(run) -> str:
    return run.data.tags.get("digest", "")


def _can_become(run, record: RunRecord) -> bool:
    """Return whether a run can be made to hold a record: what cannot be changed or taken away must be right."""
    if run.data.tags.get("fixed") != record.fixed_digest:
        return False
    points = {name for name, _, _ in record.curves}
    return not record.compared or not (run.data.metrics.keys() - record.scalars.keys() - points)


@contextlib.contextmanager
def _publishing_lock(path: Path) -> Iterator[None]:
    """Let one process publish at a time, since two that both find no run would both write it.

    On a file system without locks a run may be written twice; the next publishing deletes one of them.
    """
    with path.open("w", encoding="utf-8") as file:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
