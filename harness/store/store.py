"""The store: prepared tasks, finished trials and what they depend on, each committed completely or not at all.

    objects/<sha256>              content of one committed file, immutable

    Manifests. A manifest has the identity (everything that determines the result), the digests of the files, and facts
    (values about the result and how it was made, such as costs).

    tasks/<key>.json              a prepared task
    trials/<key>.json             a finished trial
    trials/<key>.diverged.json    a later run of the same trial with a different result
    searches/<key>.json           the loss of a method at one setting on validation users
    references/<key>.json         a language model's log-probabilities of a task's responses
    rows/<maker>/<block>.json     vectors, samples or answers that one model made for one block of texts; <maker> is the
                                  hash of the model and its options (harness/inference/cache.py)

    Copies of results, which can be removed and made again.

    boards/<name>.html            pages of boards and claims
    boards/<name>.suite           path of the suite file that the page of this name belongs to
    mlflow.db, mlflow-artifacts/  MLflow's database and files
    mlflow.env                    settings of the MLflow server that shows them
    mlflow.lock                   lock of the one process that writes to MLflow

    Everything else.

    failures/<key>.json           why a trial last failed; not a result, so the trial is run again
    checkpoints/<key>/            what a long training needs to resume after a kill; removed once it is finished
    models/small-<version>/       the project's own small language model
    salt                          random bytes that hide people's ids in anything published; readable by the owner only
    logs/<time>-<host>-<pid>...   log files of runs and their workers (harness/store/logs.py)
    tmp/                          temporary files of one writer or one run

A commit first writes and syncs each file under a temporary name, and renames it to the sha256 of its content. Then it
links the manifest to its final name. Linking fails if that name exists, so the first commit wins.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shlex
import signal
import time
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from harness.atomic import private_path, write_atomically
from harness.errors import UserError
from harness.store.secrets import without_secrets

# Steps of a commit after which MANYMINDS_CRASH can kill the process: commit begun; a file written under a temporary
# name; all files placed in objects/; manifest written under a temporary name; manifest linked to its final name;
# temporary name removed.
CRASH_POINTS = ("begun", "written", "placed", "described", "linked", "cleaned")
NAMED_BY_IDENTITY = ("tasks", "trials", "searches")  # kinds of manifests whose key is the hash of their identity
STALE_AFTER_SECONDS = 24 * 3600  # an older file in tmp/ was left by a process that died: no commit takes a day


class Store:
    """A store in a folder, which any number of processes on any number of machines may read and write at once."""

    def __init__(self, root: str | Path) -> None:
        if not str(root).strip():
            raise UserError("the store has no name", "name a folder: --store DIR")
        self.root = Path(root).expanduser().absolute()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Store) and other.root == self.root

    def __hash__(self) -> int:
        return hash(self.root)

    def board_page(self, name: str) -> Path:
        """Return the path of the page of a board or of claims."""
        return self.root / "boards" / f"{name}.html"

    def name_of_suite(self, name: str, file: str) -> str:
        """Return the name under which a suite's page and MLflow experiment are kept: its own, if no other suite has it.

        The first file of a name that uses the store keeps the name as long as it exists; another file of the same name gets
        six digits of its path behind it. file: the suite's path, "" for a suite made in Python. Raises OSError where the
        store has to be written and cannot be.
        """
        note = self.root / "boards" / f"{name}.suite"
        owner = note.read_text("utf-8", "replace") if note.is_file() else None
        if owner == file:
            return name
        if not owner or not Path(owner).is_file():
            write_atomically(note, file)
            return name
        return f"{name}-{hashlib.sha256(file.encode()).hexdigest()[:6]}"

    def suites(self) -> list[str]:
        """Return the names of the suites that have a page here."""
        return sorted(page.stem for page in (self.root / "boards").glob("*.html"))

    def checkpoint_folder(self, key: str) -> Path:
        """Return the folder where a trial's training saves what it needs to resume after a kill."""
        return self.root / "checkpoints" / key

    def model_folder(self, name: str) -> Path:
        """Return the folder of a language model that the project builds itself."""
        return self.root / "models" / name

    def log_file(self, name: str) -> Path:
        """Return the path of a run's log file."""
        return self.root / "logs" / f"{name}.log"

    @property
    def mlflow_paths(self) -> dict[str, Path]:
        """Paths of MLflow's `database`, `artifacts`, `settings` and `lock`."""
        names = {
            "database": "mlflow.db",
            "artifacts": "mlflow-artifacts",
            "settings": "mlflow.env",
            "lock": "mlflow.lock",
        }
        return {what: self.root / name for what, name in names.items()}

    @property
    def salt_file(self) -> Path:
        """Path of the random bytes that hide people's ids in anything published."""
        return self.root / "salt"

    @property
    def scratch_folder(self) -> Path:
        """Folder of files that belong to one writer or one run; `open` removes those older than STALE_AFTER_SECONDS."""
        return self.root / "tmp"

    def open(self) -> Store:
        """Create the folders, check that files can be written, and remove stale files from tmp/.

        Raises UserError where files cannot be written.
        """
        with self.os_errors_as_user_errors():
            for name in ("objects", "tasks", "trials", "searches", "references", "failures", "tmp"):
                (self.root / name).mkdir(parents=True, exist_ok=True)
            probe = self._private_path("probe")
            probe.write_bytes(b"x")
            probe.unlink()
            for file in filter(Path.is_file, self.scratch_folder.iterdir()):
                with contextlib.suppress(FileNotFoundError):  # another process removed the file first
                    if time.time() - file.stat().st_mtime > STALE_AFTER_SECONDS:
                        file.unlink()
        return self

    def existing(self) -> Store:
        """Return the store, opened where it can be written. Raises UserError where there is no store in its folder."""
        if not (self.root / "trials").is_dir():
            raise UserError(f"there is no store in {self.root}", "name the store of a finished run: --store DIR")
        with contextlib.suppress(UserError):
            self.open()
        return self

    def read_manifest(self, kind: str, key: str) -> dict | None:
        """Return the manifest, or None where nothing is committed or one of its files is missing or truncated."""
        path = self.root / kind / f"{key}.json"
        try:
            manifest = json.loads(path.read_bytes())
        except (FileNotFoundError, ValueError):  # missing, truncated or damaged: the result has to be made again
            return None
        _check_manifest(manifest, kind, key, path)
        names = [f"{self.root}/objects/{file['sha256']}" for file in manifest["files"].values()]
        try:
            sizes = [os.stat(name).st_size for name in names]  # noqa: PTH116 – of 10,000 manifests, Paths take a second
        except FileNotFoundError:
            return None
        return manifest if sizes == [file["bytes"] for file in manifest["files"].values()] else None

    def committed_keys(self, kind: str) -> set[str]:
        """Return the keys of everything committed of that kind."""
        with contextlib.suppress(FileNotFoundError):
            names = os.listdir(self.root / kind)  # noqa: PTH208 – called often, with thousands of names
            # KEY.json, but not KEY.diverged.json
            return {name[:-5] for name in names if name.endswith(".json") and "." not in name[:-5]}
        return set()

    def object_path(self, manifest: Mapping, name: str) -> Path:
        """Return the path of a committed file in objects/, where its name is its sha256."""
        return self.root / "objects" / manifest["files"][name]["sha256"]

    def read_verified(self, manifest: Mapping, name: str) -> bytes:
        """Return a committed file's content, verified. Raises UserError where the file is missing or damaged."""
        path = self.object_path(manifest, name)
        with self._missing_file_as_user_error(path):
            content = path.read_bytes()
        self._check_digest(path, hashlib.sha256(content).hexdigest())
        return content

    @contextlib.contextmanager
    def _missing_file_as_user_error(self, path: Path) -> Iterator[None]:
        """Turn the error for a committed file that is missing, because it was removed later, into a UserError."""
        try:
            yield
        except FileNotFoundError as error:
            raise UserError(
                f"{path} is gone: something removed it from the store",
                "run the suite again, which makes the file again",
            ) from error

    def verified_path(self, manifest: Mapping, name: str) -> Path:
        """Return the path of a committed file, for memory-mapping, after verifying its content once per process.

        Raises UserError where the file is missing or damaged.
        """
        path = self.object_path(manifest, name)
        with self._missing_file_as_user_error(path):
            self._check_digest(path, _file_digest(path, path.stat().st_mtime_ns))
        return path

    def _check_digest(self, path: Path, digest: str) -> None:
        if digest != path.name:
            raise UserError(
                f"{path} is damaged: its content is not what was committed",
                f"remove it (rm {shlex.quote(str(path))}) and run the suite again, which makes the file again",
            )

    def commit(
        self, kind: str, key: str, identity: Mapping, files: Mapping[str, bytes | memoryview], facts: Mapping
    ) -> bool:
        """Commit a result and return True, or return False where the key was committed before: the first commit wins.

        identity, facts: parts of the manifest (see the top of this file). files: name -> content.
        The first later commit with different files is recorded in `<key>.diverged.json`.
        """
        with self.os_errors_as_user_errors():
            (self.root / kind).mkdir(parents=True, exist_ok=True)
            _crash_point("begun")
            listed = {name: self._write_object(content) for name, content in sorted(files.items())}
            _crash_point("placed")
            _sync_folder(self.root / "objects")
            manifest = {"key": key, "identity": identity, "files": listed, "facts": facts}
            manifest["seal"] = _seal(manifest)
            first = self._link_manifest(kind, f"{key}.json", manifest)
            if not first:
                winner = self.read_manifest(kind, key)
                if winner is None:  # the manifest, or one of its files, was missing or truncated: replace it
                    private = self._private_path(key)
                    _write_and_sync(private, _manifest_json(manifest))
                    private.replace(self.root / kind / f"{key}.json")
                elif winner["files"] != listed:
                    self._link_manifest(kind, f"{key}.diverged.json", manifest)
            return first

    def record_failure(self, key: str, identity: Mapping, reason: str, trace: str, log: str = "") -> None:
        """Record why a trial failed. The record does not count once the trial has a result.

        reason: type and message of the error.  trace: its traceback.  log: name of the run whose log has details.
        """
        with self.os_errors_as_user_errors():
            said = {"reason": without_secrets(reason), "trace": without_secrets(trace)}
            note = {"key": key, "identity": identity, **said, "log": log}
            write_atomically(self.root / "failures" / f"{key}.json", json.dumps(note, indent=1))

    def forget_failure(self, key: str) -> None:
        """Remove the record of an earlier failure, so that a record found later is that of the run that starts now."""
        (self.root / "failures" / f"{key}.json").unlink(missing_ok=True)

    def has_ended(self, key: str) -> bool:
        """Return whether the trial has a result or a recorded failure; only checks that a file exists."""
        return any((self.root / kind / f"{key}.json").exists() for kind in ("trials", "failures"))

    def ended_keys(self) -> set[str]:
        """Return the keys of all trials that have a result or a recorded failure.

        Two folders are listed and no file is opened, because callers ask often while thousands of trials run.
        """
        return self.committed_keys("trials") | self.committed_keys("failures")

    def committed_at(self, kind: str, key: str) -> int:
        """Return when the manifest was committed, in nanoseconds. Raises FileNotFoundError where there is none."""
        return (self.root / kind / f"{key}.json").stat().st_mtime_ns

    def read_failure(self, key: str) -> dict | None:
        """Return the record of the trial's last failure, or None."""
        try:
            note = json.loads((self.root / "failures" / f"{key}.json").read_bytes())
        except (FileNotFoundError, ValueError):  # missing, truncated or damaged
            return None
        return note if isinstance(note, dict) and "reason" in note else None

    def has_diverged(self, key: str) -> bool:
        """Return whether a later run of the same trial had a different result."""
        return (self.root / "trials" / f"{key}.diverged.json").exists()

    def _private_path(self, name: str) -> Path:
        return private_path(Path(name), self.scratch_folder)

    def _write_object(self, content: bytes | memoryview) -> dict[str, object]:
        """Write content under the name of its digest; a file that already exists there has the same content."""
        sha256, size = hashlib.sha256(content).hexdigest(), memoryview(content).nbytes
        final = self.root / "objects" / sha256
        if not final.exists() or final.stat().st_size != size:
            private = self._private_path(sha256[:16])
            _write_and_sync(private, content)
            _crash_point("written")
            private.replace(final)
        return {"sha256": sha256, "bytes": size}

    def _link_manifest(self, kind: str, name: str, manifest: Mapping) -> bool:
        private = self._private_path(name)
        _write_and_sync(private, _manifest_json(manifest))
        _crash_point("described")
        try:
            os.link(private, self.root / kind / name)
            first = True
        except FileExistsError:
            first = False
        _crash_point("linked")
        _sync_folder(self.root / kind)
        private.unlink()
        _crash_point("cleaned")
        return first

    @contextlib.contextmanager
    def os_errors_as_user_errors(self) -> Iterator[None]:
        """Turn a full disk, or a folder that cannot be written, into a UserError."""
        try:
            yield
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                hint = f"free some space, or choose another folder: --store DIR; results are safe in {self.root}"
                raise UserError(f"the store {self.root} is full", hint) from error
            if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENOENT):
                hint = "choose a folder that you can write to: --store DIR"
                raise UserError(f"the store {self.root} cannot be written ({error.strerror})", hint) from error
            raise


def identity_hash(identity: dict[str, object]) -> str:
    """Return 16 hex digits of the sha256 of the canonical JSON: sorted keys, no spaces, shortest floats."""
    canonical = json.dumps(identity, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def _check_manifest(manifest: Any, kind: str, key: str, path: Path) -> None:
    """Raise UserError where a manifest is not one that a commit wrote: names of files are digests, keys those of identities."""
    sound = (
        isinstance(manifest, dict)
        and {"key", "identity", "files", "facts"} <= manifest.keys()
        and manifest["key"] == key
        and isinstance(manifest["files"], dict)
        and isinstance(manifest["facts"], dict)
        and manifest.get("seal", seal := _seal_of_read(manifest)) == seal  # older manifests have none
        and all(re.fullmatch("[0-9a-f]{64}", str(file.get("sha256"))) for file in manifest["files"].values())
        and (kind not in NAMED_BY_IDENTITY or identity_hash(manifest["identity"]) == key)
    )
    if not sound:
        raise UserError(
            f"{path} was changed after it was committed, or was never committed: its name is not that of its content",
            f"rm {shlex.quote(str(path))}, then run the suite again, which makes the result again",
        )


def _seal(manifest: Mapping) -> str:
    """Return 16 hex digits of a manifest's files and facts, so that a change by hand is noticed."""
    return _seal_of_read(json.loads(json.dumps(manifest)))  # as it is read: keys are text


def _seal_of_read(manifest: Mapping) -> str:
    sealed = json.dumps([manifest["files"], manifest["facts"]], sort_keys=True)
    return hashlib.sha256(sealed.encode()).hexdigest()[:16]


def _manifest_json(manifest: Mapping) -> bytes:
    return (json.dumps(manifest, indent=1, sort_keys=True) + "\n").encode()


def _write_and_sync(path: Path, content: bytes | memoryview) -> None:
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


@lru_cache(10_000)
def _file_digest(path: Path, modified: int) -> str:
    """Return the sha256 of a file. modified: when it was changed last, so that a changed file is read again."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync_folder(folder: Path) -> None:
    """Sync a folder to disk, so that new names in it survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _crash_point(step: str) -> None:
    """Kill the process if MANYMINDS_CRASH names this step; tests use this to reach every crash point."""
    if os.environ.get("MANYMINDS_CRASH") == step:
        os.kill(os.getpid(), signal.SIGKILL)
