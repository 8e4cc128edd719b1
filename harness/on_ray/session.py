"""A Ray to run on: the cluster that RAY_ADDRESS names, or one of our own; token-authenticated, private, ended after use.

Import this before anything that might import Ray, as vLLM does. It sets what Ray reads then, and imports Ray only when
one is started.
"""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness.errors import UserError
from harness.store.store import Store

RAY_SETTINGS = {  # read while Ray is imported or started, hence set above its import; Ray hands the RAY_TRAIN_* ones on
    "RAY_AUTH_MODE": "token",  # whoever reaches a Ray port without one can run code
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",  # C++ writes to the driver's stderr; Ray Data makes it warn of each actor pool
    "RAY_AIR_NEW_OUTPUT": "0",  # the new output prints to stdout at any verbosity
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # so that plug-ins and data named by relative paths are found
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # csv, json and tensorboard copies of nothing
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # which would turn Ctrl-C into an ordinary return
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # of 2: a group ends, and a dead worker is noticed, that much sooner
    "RAY_TRAIN_METRICS_ENABLED": "0",
}
SINGLE_NODE_SETTINGS = {
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"
}  # nobody reclaims the only node: one thing less to start
for name, value in RAY_SETTINGS.items():
    os.environ.setdefault(name, value)


@contextmanager
def ray_session(store: Store, workers: int, object_store: int = 10**8) -> Iterator[str]:
    """A Ray to run on, and a private folder for what Tune and Train write, gone afterwards.

    On a cluster that folder must be one all nodes share, as the store is. object_store: bytes; trials are memory-mapped
    from the store and never sent, so little is enough for them.
    """
    import ray

    folder = tempfile.mkdtemp(prefix="manyminds-", dir="/tmp")  # a path for sockets must stay below 104 characters
    joined, address = ray.is_initialized(), os.environ.get("RAY_ADDRESS")
    quiet: dict[str, Any] = {
        "log_to_driver": False,
        "logging_level": "CRITICAL",
    }  # what went wrong is told by the error this module raises
    try:
        if joined or address:
            shutil.rmtree(folder)
            folder = tempfile.mkdtemp(prefix="ray-", dir=store.scratch_folder)
        if not joined and address:
            _join_cluster(address, **quiet)
        elif not joined:
            _set_single_node_defaults()
            with _silent_standard_error():
                ray.init(
                    "local",
                    num_cpus=workers,
                    include_dashboard=False,
                    object_store_memory=object_store,
                    _temp_dir=folder,
                    **quiet,
                )
        yield f"{folder}/results"
    finally:
        if not joined:
            ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def _join_cluster(address: str, **options) -> None:
    import ray

    try:
        with _silent_standard_error():
            ray.init(address, **options)
    except (OSError, RuntimeError, ray.exceptions.RayError) as error:
        raise UserError(
            f"cannot join the Ray cluster at {address}: {error}",
            "RAY_ADDRESS names the cluster, RAY_AUTH_TOKEN_PATH the file with its token",
        ) from error


@contextmanager
def _silent_standard_error() -> Iterator[None]:
    """Keeps this process's standard error, Ray's C++ included, from the terminal: it tells there that it will be silent."""
    kept = os.dup(2)
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _set_single_node_defaults() -> None:
    for name, value in SINGLE_NODE_SETTINGS.items():
        os.environ.setdefault(name, value)
    if "RAY_AUTH_TOKEN_PATH" not in os.environ:
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # else Ray leaves one in the home folder
