"""A Ray session: the cluster that RAY_ADDRESS names, or a local one that is private, uses a token and ends after use.

Import this module before anything that may import Ray, such as vLLM: it sets variables that Ray reads while it is
imported. The module itself imports Ray only when a session starts.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from harness.errors import UserError
from harness.store.store import Store

RAY_SETTINGS = {  # read while Ray is imported or started; Ray forwards the RAY_TRAIN_* ones to workers
    "RAY_AUTH_MODE": "token",  # without a token, anyone who reaches a Ray port can run code
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",  # C++ logs to the driver's stderr, with a warning for each actor pool
    "RAY_AIR_NEW_OUTPUT": "0",  # the new output prints to stdout at any verbosity
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # so that plug-ins and data named by relative paths are found
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # its csv, json and tensorboard files would be empty
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # the handler would turn Ctrl-C into an ordinary return
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # default 2: the end of a group, or of a worker, is noticed sooner
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_ENABLE_AUTO_CONNECT": "0",  # no thread that goes on after the session starts another Ray
    # Default 60: then a process that waits for Ray's control service ends without a word. The driver notices sooner that
    # it is gone (harness/on_ray/watch.py), and needs time to show what is finished.
    "RAY_gcs_rpc_server_reconnect_timeout_s": "3600",
}
# Begins the name of a session's folder, which goes on with the process id. It names the machine, shortly because of the
# limit on paths: on a store that machines share, others' folders are left alone.
SESSION_PREFIX = f"manyminds-{zlib.crc32(socket.gethostname().encode()):08x}-"
RAY_REPORTER = "ray_listen_error_messages"  # name of the thread that prints on standard output
SINGLE_NODE_SETTINGS = {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}  # this machine is never pre-empted
LOCAL_SETTINGS = {  # without RAY_ADDRESS, when Ray of this machine is started
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # every port listens on 127.0.0.1 alone, as on Windows and macOS
    "DASHBOARD_METRIC_PORT": "0",  # any free port, so that several sessions, or a cluster's head, have their own
    "AUTOSCALER_METRIC_PORT": "0",
}
for name, value in (RAY_SETTINGS | ({} if os.environ.get("RAY_ADDRESS") else LOCAL_SETTINGS)).items():
    os.environ.setdefault(name, value)


@contextmanager
def ray_session(store: Store, workers: int, object_store: int = 10**8) -> Iterator[str]:
    """Start or join a Ray session, and yield a private folder for the files of Tune and Train, removed afterwards.

    workers: CPUs of a local session.  object_store: bytes. The default is enough for trials: their data is
    memory-mapped from the store and never sent.

    On a cluster the folder is in the store, which all nodes share. Raises UserError where the cluster cannot be joined.
    """
    import ray

    remove_leftover_sessions(Path("/tmp"))
    # In /tmp, because a path for sockets must stay below 104 characters.
    folder = tempfile.mkdtemp(prefix=f"{SESSION_PREFIX}{os.getpid()}-", dir="/tmp")
    joined, address = ray.is_initialized(), os.environ.get("RAY_ADDRESS")
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "CRITICAL"}  # errors are raised, not only logged
    try:
        if joined or address:
            shutil.rmtree(folder)
            remove_leftover_sessions(store.scratch_folder)
            folder = tempfile.mkdtemp(prefix=f"{SESSION_PREFIX}{os.getpid()}-", dir=store.scratch_folder)
        if not joined and address:
            _join_cluster(address, **quiet)
        elif not joined:
            _set_single_node_defaults()
            with _own_termination_handler(), _silent_standard_error():
                ray.init(
                    "local",
                    num_cpus=workers,
                    include_dashboard=False,
                    object_store_memory=object_store,
                    _temp_dir=f"{folder}/ray",  # Ray opens its folder to everybody; the one around it stays closed
                    **quiet,
                )
        yield f"{folder}/results"
    finally:
        if not joined:
            ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def remove_leftover_sessions(parent: Path) -> None:
    """Remove the folders of this user's sessions on this machine whose process was killed, and what still runs there."""
    for folder in parent.glob(f"{SESSION_PREFIX}*-*"):
        owner = folder.name.removeprefix(SESSION_PREFIX).partition("-")[0]
        with contextlib.suppress(OSError):  # another process may be removing it
            if not owner.isdigit() or Path("/proc", owner).exists() or folder.stat().st_uid != os.getuid():
                continue
            for process in Path("/proc").glob("[0-9]*"):
                with contextlib.suppress(OSError):  # the process has ended, or is another user's
                    if f"{folder}/".encode() in (process / "cmdline").read_bytes():
                        os.kill(int(process.name), signal.SIGKILL)
            shutil.rmtree(folder)


@contextmanager
def _own_termination_handler() -> Iterator[None]:
    """Keep this process's handler of SIGTERM: Ray replaces it by one that prints a C++ stack and aborts."""
    handler = signal.getsignal(signal.SIGTERM)
    terminated = False
    try:
        yield
    except SystemExit:  # Ray's handler while it starts
        terminated = True
    if threading.current_thread() is threading.main_thread():  # elsewhere nothing may be set, and Ray sets nothing
        signal.signal(signal.SIGTERM, handler)
    if terminated:
        signal.raise_signal(signal.SIGTERM)


def _join_cluster(address: str, **options) -> None:
    import ray

    try:
        with _own_termination_handler(), _silent_standard_error():
            ray.init(address, **options)
    except (OSError, RuntimeError, ray.exceptions.RayError) as error:
        raise UserError(
            f"cannot join the Ray cluster at {address}: {error}",
            "check RAY_ADDRESS, and RAY_AUTH_TOKEN_PATH, which names the file with the cluster's token",
        ) from error


@contextmanager
def _silent_standard_error() -> Iterator[None]:
    """Send this process's standard error to nowhere, because Ray's C++ code prints there while Ray starts."""
    kept = os.dup(2)
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


@contextmanager
def without_ray_reports() -> Iterator[None]:
    """Keep Ray's reports of dead processes off standard output, which is for results: the run's error says why one died."""
    with contextlib.redirect_stdout(cast(IO[str], _WithoutRayReports(sys.stdout))):
        yield


class _WithoutRayReports:
    """A stream that ignores what Ray's thread of reports writes."""

    def __init__(self, stream: IO[str]) -> None:
        self.stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """Write the text, unless it is from Ray."""
        return len(text) if threading.current_thread().name == RAY_REPORTER else self.stream.write(text)


def _set_single_node_defaults() -> None:
    for name, value in SINGLE_NODE_SETTINGS.items():
        os.environ.setdefault(name, value)
    if "RAY_AUTH_TOKEN_PATH" not in os.environ:
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # otherwise Ray writes one to the home folder


def user_error_within(error: object) -> UserError | None:
    """Return the UserError that errors of Ray, Tune, Train or Ray Data are wrapped around; None without one.

    error: an exception, or the text of one, as Tune sometimes has it.
    """
    while isinstance(error, BaseException):
        inner = getattr(error, "cause", None) or getattr(error, "controller_failure", None)
        if isinstance(error, UserError) and not isinstance(inner, BaseException):
            return error
        error = inner if isinstance(inner, BaseException) else error.__cause__
    return None
