"""Atomic file writes: a file appears complete or not at all, even when several processes write it at once."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import IO


def private_path(path: Path, folder: Path | None = None) -> Path:
    """Return a path beside `path` (or in `folder`) that no other process uses, on any node that shares the folder."""
    unique = f"{socket.gethostname()}.{os.getpid()}.{secrets.token_hex(4)}"
    return (folder or path.parent) / f".{path.name[:60]}.{unique}.part"  # a name has at most 255 bytes


@contextlib.contextmanager
def open_for_replacement(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary file for writing and rename it to `path` once its content is on disk; remove it on an error.

    Readers see the old content or the new content, never a part. Raises OSError where writing fails.
    """
    part = private_path(path)
    try:
        with part.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_atomically(path: Path, content: bytes | str) -> None:
    """Replace the file's content atomically and create its folder if needed. Raises OSError where writing fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open_for_replacement(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)
