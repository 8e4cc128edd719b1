"""Files that appear whole or not at all, whoever else writes them at the same time."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import IO


def private_path(path: Path, folder: Path | None = None) -> Path:
    """A name beside `path` (or in `folder`) that no other process has, on any node that shares the folder."""
    unique = f"{socket.gethostname()}.{os.getpid()}.{secrets.token_hex(4)}"
    return (folder or path.parent) / f".{path.name}.{unique}.part"


@contextlib.contextmanager
def open_for_replacement(path: Path) -> Iterator[IO[bytes]]:
    """A file open for writing that takes the name `path` once its content is on disk; on an error it is removed.

    Readers see the old content or the new one, never a part. Raises OSError as writing does.
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
    """Replaces the file's content at once, making its folder where there is none. Raises OSError as writing does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open_for_replacement(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)
