"""Public data files: found in a folder or downloaded from their source, and verified by checksum."""

from __future__ import annotations

import hashlib
import os
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

import polars as pl

from harness.atomic import write_atomically
from harness.errors import UnavailableError, UserError

DATA_FOLDER_VARIABLE = "MANYMINDS_DATA"  # the environment variable that `--data` sets


@dataclass(frozen=True)
class PublicFile:
    """A file as its public source serves it. `url` names a fixed revision; `sha256` is that of the file's bytes."""

    file: str
    url: str
    sha256: str

    def local_path(self) -> Path:
        """Return the file's path: in the data folder at any depth, or downloaded into the cache where no folder is set.

        Raises UnavailableError where the file cannot be found or downloaded, UserError where its checksum is wrong.
        """
        if folder := os.environ.get(DATA_FOLDER_VARIABLE):
            return self._checked(self._find_under(Path(folder)))
        cached = Path.home() / ".cache" / "manyminds" / self.sha256[:16] / self.file
        if not cached.exists():
            self._download(cached)
        return self._checked(cached)

    def _find_under(self, folder: Path) -> Path:
        if not folder.is_dir():
            raise UnavailableError(
                f"the data folder {folder} does not exist",
                f"give the folder that contains {self.file}: --data DIR, in Python data=DIR",
            )
        found = sorted(folder.rglob(self.file))
        if not found:
            raise UnavailableError(
                f"there is no {self.file} in {folder}", f"download it from {self.url} into that folder"
            )
        return found[0]

    def _download(self, to: Path) -> None:
        try:
            with urllib.request.urlopen(self.url, timeout=60) as answer:
                write_atomically(to, answer.read())
        except (OSError, HTTPException) as error:  # HTTPException: the connection was cut
            raise UnavailableError(
                f"no data folder is set, and {self.file} could not be downloaded from {self.url} ({error})",
                f"copy the file here and give its folder: --data DIR, in Python data=DIR, or set {DATA_FOLDER_VARIABLE}=DIR",
            ) from error

    def _checked(self, path: Path) -> Path:
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        if found != self.sha256:
            raise UserError(
                f"{path} is not the file its source serves: sha256 {found[:16]}..., expected {self.sha256[:16]}...",
                f"remove it and download {self.url}",
            )
        return path


def read_csv_columns(path: Path, columns: Mapping[str, type[pl.DataType]]) -> pl.DataFrame:
    """Return the named columns of a csv file with their types.

    Raises UserError for a missing column or a wrong value.
    """
    with path.open("rb") as file:  # in a path polars would take [1] for a pattern
        frame = pl.read_csv(file, infer_schema=False)
    if missing := [name for name in columns if name not in frame.columns]:
        raise UserError(
            f"{path.name} has no column {', '.join(missing)}; "
            f"its columns are {', '.join(c or '(unnamed)' for c in frame.columns)}",
            "compare its first line with that of the file at its public source",
        )
    typed = frame.select(pl.col(name).cast(kind, strict=False) for name, kind in columns.items())
    for name in columns:
        wrong = frame[name].is_not_null() & typed[name].is_null()
        if wrong.any():
            row = int(wrong.arg_true()[0])
            raise UserError(
                f"{path.name}, line {row + 2}, column {name}: {frame[name][row]!r} is not a number",
                "fix or remove that line",
            )
    return typed


def files_content_digest(*paths: str | Path) -> str:
    """Return the sha256 of your own files, for a task's `files_digest`. Raises UserError where a file is missing."""
    total = hashlib.sha256()
    for path in map(Path, paths):
        if not path.is_file():
            raise UserError(
                f"the file {path} does not exist", "run from the folder that contains it, or give its full path"
            )
        with path.open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()


@dataclass(frozen=True)
class PublicTable(PublicFile):
    """A parquet table made from the larger or several files at `url`, which does not serve the table itself."""

    def read_columns(self, *columns: str) -> pl.DataFrame:
        """Return the named columns, with categories as text.

        Raises UserError for a missing or changed file, or a missing column.
        """
        frame = pl.read_parquet(self.local_path(), glob=False)
        if missing := [name for name in columns if name not in frame.columns]:
            raise UserError(
                f"{self.file} has no column {', '.join(missing)}; its columns are {', '.join(frame.columns)}",
                "name one of its columns",
            )
        return frame.select(columns).with_columns(pl.col(pl.Categorical).cast(pl.String))

    def _find_under(self, folder: Path) -> Path:
        if folder.is_dir() and not any(folder.rglob(self.file)):
            raise self._unavailable(f"there is no {self.file} in {folder}")
        return super()._find_under(folder)

    def _download(self, to: Path) -> None:
        raise self._unavailable(f"no data folder is set, and {self.file} cannot be downloaded")

    def _unavailable(self, message: str) -> UnavailableError:
        return UnavailableError(
            f"{message}: it is a table made from {self.url}",
            f"give the folder that contains it: --data DIR, in Python data=DIR, or set {DATA_FOLDER_VARIABLE}=DIR",
        )
