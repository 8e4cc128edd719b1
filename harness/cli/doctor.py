"""Checks of this machine, the store and the security settings."""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import stat
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from urllib.parse import urlsplit

from packaging.version import Version

from harness.errors import UserError
from harness.machine import core_count
from harness.sources.public_files import DATA_FOLDER_VARIABLE
from harness.store.secrets import secret_names, without_secrets
from harness.store.store import Store

LEAST_VERSIONS = {
    "ray": "2.60",
    "torch": "2.13",
    "mlflow": "3.17",
    "pyarrow": "20",
    "polars": "2",
    "safetensors": "0.5",
}
MIN_FREE_GIB = 2  # the shipped suites write well under 1 GiB


@dataclass(frozen=True)
class MachineFinding:
    """The result of one check. state: ok, warn (works, with a risk) or BAD (needs fixing)."""

    state: str
    what: str
    detail: str
    hint: str = ""


def examine_machine(store: Store) -> Iterator[MachineFinding]:
    """Yield the result of every check, without importing Ray, torch or MLflow."""
    ok = sys.version_info >= (3, 11)
    yield MachineFinding(
        "ok" if ok else "BAD", "python", platform.python_version(), "" if ok else "install Python 3.11 or newer"
    )
    for name, least in LEAST_VERSIONS.items():
        yield _check_package(name, least)
    yield MachineFinding(
        "ok",
        "cores",
        f"{core_count()} cores for this process; one Ray Train worker per core unless --workers sets another number",
    )
    gpus = shutil.which("nvidia-smi")
    yield MachineFinding(
        "ok", "gpu", "an NVIDIA driver is installed" if gpus else "no NVIDIA driver: everything runs on the CPU"
    )
    yield from _check_store(store)
    folder = os.environ.get(DATA_FOLDER_VARIABLE)
    if folder:
        here = Path(folder).is_dir()
        yield MachineFinding(
            "ok" if here else "BAD",
            "data folder",
            folder,
            "" if here else f"set {DATA_FOLDER_VARIABLE} or --data to an existing folder",
        )
    else:
        yield MachineFinding(
            "ok",
            "data folder",
            f"none set ({DATA_FOLDER_VARIABLE} or --data): public files are downloaded from their sources",
        )
    yield from _check_security(store)


def _check_store(store: Store) -> Iterator[MachineFinding]:
    """Check that the store can be written, by its owner alone."""
    try:
        free = shutil.disk_usage(store.open().root).free / 2**30
    except UserError as mistake:
        yield MachineFinding("BAD", "store", mistake.message, mistake.hint)
        return
    yield MachineFinding(
        "ok" if free > MIN_FREE_GIB else "warn",
        "store",
        f"{store.root}: writable, {free:.0f} GiB free, {len(store.committed_keys('trials'))} finished trials",
    )
    folders = [store.root, *(store.root / name for name in ("objects", "tasks", "trials"))]
    exposed = [folder for folder in folders if folder.stat().st_mode & stat.S_IWOTH]
    foreign = [folder for folder in folders if folder.stat().st_uid != os.getuid()]
    if exposed:
        detail = f"{exposed[0]} can be written by everybody on this machine, who could forge results"
        yield MachineFinding("BAD", "store access", detail, f"chmod -R o-w {shlex.quote(str(store.root))}")
    elif foreign:
        detail = f"{foreign[0]} belongs to another user, who can change results"
        yield MachineFinding("warn", "store access", detail, "use a store of your own, unless you trust that user")
    else:
        yield MachineFinding("ok", "store access", "its folders belong to you, and others cannot write to them")


def _check_package(name: str, least: str) -> MachineFinding:
    try:
        found = version(name)
    except PackageNotFoundError:
        return MachineFinding("BAD", name, "not installed", "make install")
    new = Version(found) >= Version(least)
    return MachineFinding("ok" if new else "BAD", name, found, "" if new else f"install {name} {least} or newer")


def _check_security(store: Store) -> Iterator[MachineFinding]:
    mode = os.environ.get("RAY_AUTH_MODE", "token")
    detail = (
        "token authentication"
        if mode == "token"
        else f"RAY_AUTH_MODE={mode}: anyone who reaches the cluster can run code on it"
    )
    yield MachineFinding(
        "ok" if mode == "token" else "BAD", "ray access", detail, "" if mode == "token" else "unset RAY_AUTH_MODE"
    )
    token = Path(os.environ.get("RAY_AUTH_TOKEN_PATH", Path.home() / ".ray" / "auth_token"))
    if token.exists():
        private = not token.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO)
        yield MachineFinding(
            "ok" if private else "BAD", "ray token", str(token), "" if private else f"chmod 600 {token}"
        )
    else:
        yield MachineFinding("ok", "ray token", "none: a local Ray makes its own")
    yield MachineFinding(
        "ok", "ray dashboard", "not started by a local Ray; start a cluster's head with --dashboard-host=127.0.0.1"
    )
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    plain = uri.startswith("http://") and urlsplit(uri).hostname not in ("127.0.0.1", "localhost", "::1")
    yield MachineFinding(
        "warn" if plain else "ok",
        "mlflow",
        without_secrets(uri) or f"SQLite in {store.root}, shown by a server on this machine only",
        "use https" if plain else "",
    )
    pickles = os.environ.get("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false").lower() in ("1", "true")
    yield MachineFinding(
        "BAD" if pickles else "ok",
        "mlflow pickles",
        "allowed" if pickles else "never written",
        "unset MLFLOW_ALLOW_PICKLE_DESERIALIZATION" if pickles else "",
    )
    salt = store.salt_file
    if salt.exists():
        private = not salt.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO)
        yield MachineFinding(
            "ok" if private else "BAD", "salt of people's ids", str(salt), "" if private else f"chmod 600 {salt}"
        )
    names = secret_names()
    yield MachineFinding(
        "ok",
        "secrets",
        f"{', '.join(names)} set; left out of results, logs and messages" if names else "none in the environment",
    )
