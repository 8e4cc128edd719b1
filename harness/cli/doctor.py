"""What this machine, the store and the security settings look like, a finding each."""

from __future__ import annotations

import os
import platform
import shutil
import stat
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from packaging.version import Version

from harness.errors import Mistake
from harness.sources.public_files import FOLDER
from harness.store.store import Store

PACKAGES = {"ray": "2.60", "torch": "2.13", "mlflow": "3.17", "pyarrow": "20", "polars": "2", "safetensors": "0.5"}
ROOM = 2  # GiB: the suites here write well under one


@dataclass(frozen=True)
class Finding:
    """state: ok, warn (works, but know it) or BAD (mend it)."""

    state: str
    what: str
    detail: str
    hint: str = ""


def examine(store: Store) -> Iterator[Finding]:
    """Every check, without importing Ray, torch or MLflow."""
    ok = sys.version_info >= (3, 11)
    yield Finding(
        "ok" if ok else "BAD", "python", platform.python_version(), "" if ok else "install Python 3.11 or newer"
    )
    for name, least in PACKAGES.items():
        yield _package(name, least)
    yield Finding("ok", "cores", f"{os.cpu_count()} cores; one Ray Train worker each unless --workers says otherwise")
    gpus = shutil.which("nvidia-smi")
    yield Finding("ok", "gpu", "an NVIDIA driver is here" if gpus else "none: everything so far runs on processors")
    try:
        free = shutil.disk_usage(store.open().root).free / 2**30
        state = "ok" if free > ROOM else "warn"
        yield Finding(
            state, "store", f"{store.root}: writable, {free:.0f} GiB free, {len(store.keys('trials'))} finished trials"
        )
    except Mistake as mistake:
        yield Finding("BAD", "store", mistake.message, mistake.hint)
    folder = os.environ.get(FOLDER)
    if folder:
        here = Path(folder).is_dir()
        yield Finding(
            "ok" if here else "BAD", "data folder", folder, "" if here else f"{FOLDER} or --data must name a folder"
        )
    else:
        yield Finding(
            "ok", "data folder", f"none named ({FOLDER}, --data): public files are fetched from their origins"
        )
    yield from _security(store)


def _package(name: str, least: str) -> Finding:
    try:
        found = version(name)
    except PackageNotFoundError:
        return Finding("BAD", name, "not installed", "make install")
    new = Version(found) >= Version(least)
    return Finding("ok" if new else "BAD", name, found, "" if new else f"{least} or newer is needed")


def _security(store: Store) -> Iterator[Finding]:
    mode = os.environ.get("RAY_AUTH_MODE", "token")
    detail = (
        "token authentication"
        if mode == "token"
        else f"RAY_AUTH_MODE={mode}: anyone who reaches the cluster runs code on it"
    )
    yield Finding(
        "ok" if mode == "token" else "BAD", "ray access", detail, "" if mode == "token" else "unset RAY_AUTH_MODE"
    )
    token = Path(os.environ.get("RAY_AUTH_TOKEN_PATH", Path.home() / ".ray" / "auth_token"))
    if token.exists():
        private = not token.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO)
        yield Finding("ok" if private else "BAD", "ray token", str(token), "" if private else f"chmod 600 {token}")
    else:
        yield Finding("ok", "ray token", "none yet: an embedded Ray makes its own")
    yield Finding(
        "ok", "ray dashboard", "not started by an embedded Ray; give a cluster's head --dashboard-host=127.0.0.1"
    )
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    plain = uri.startswith("http://") and not any(host in uri for host in ("127.0.0.1", "localhost"))
    yield Finding(
        "warn" if plain else "ok",
        "mlflow",
        uri or f"SQLite in {store.root}, read through a loopback server",
        "use https" if plain else "",
    )
    pickles = os.environ.get("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false").lower() in ("1", "true")
    yield Finding(
        "BAD" if pickles else "ok",
        "mlflow pickles",
        "allowed" if pickles else "never written",
        "unset MLFLOW_ALLOW_PICKLE_DESERIALIZATION" if pickles else "",
    )
    salt = store.salt
    if salt.exists():
        private = not salt.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO)
        yield Finding(
            "ok" if private else "BAD", "salt of people's ids", str(salt), "" if private else f"chmod 600 {salt}"
        )
    secrets = [name for name in os.environ if name in ("HF_TOKEN", "OPENAI_API_KEY", "AWS_SECRET_ACCESS_KEY")]
    yield Finding(
        "ok", "secrets", f"{', '.join(secrets)} set; never written to results" if secrets else "none in the environment"
    )
