"""What this machine offers to this process."""

from __future__ import annotations

import atexit
import os
import pwd
import shutil
import tempfile
from pathlib import Path

import psutil


def core_count() -> int:
    """Return the number of cores that this process may use: the machine's, less affinity and a container's limit."""
    import joblib  # here, because it is slow to import

    return joblib.cpu_count()


def memory_bytes() -> int:
    """Return the bytes of memory that this process may use: the machine's, or a container's limit where that is lower."""
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text("ascii").strip() if limit.exists() else ""
    whole = psutil.virtual_memory().total
    return min(whole, int(text)) if text.isdigit() else whole


def ensure_home_folder() -> None:
    """Give this process a private home folder until it ends, where the machine names none.

    A container may run under a number that has no name and no home; Ray Tune and MLflow cannot be imported there.
    """
    if os.environ.get("HOME"):
        return
    try:
        pwd.getpwuid(os.getuid())
    except KeyError:
        os.environ["HOME"] = tempfile.mkdtemp(prefix="manyminds-home-")
        atexit.register(shutil.rmtree, os.environ["HOME"], ignore_errors=True)
